"""Views of flows: maps that can be undone, the steps they are made of, their inverses, logarithms and compositions.

All of them draw 2-D grids, as graph paper whose points p stand where the map takes them, p + ddf[p].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes as Panel
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from .. import filters
from ..field import (
    compose,
    compose_velocities,
    exponential,
    inverse,
    jacobian_determinant,
    logarithm,
    sample,
    warp_points,
)
from ..grid import Axes, Grid, apply_affine
from ..plot import canvas
from ..plot.planes import Plane, signed
from .controls import Choice, Slider
from .paper import CHART_IN, GROUND, LINES, chart_beside, draw_paper, length_mm, plane, ring
from .views import State, View

Field = Float[Tensor, "1 d *s"]
Points = Float[Tensor, "k d"]
Start = Literal["euler", "midpoint"]
STARTS: tuple[Start, ...] = ("euler", "midpoint")
ORDERS = {1: "v + w", 2: "and a bracket", 3: "and its brackets"}  # of compose_velocities


def _folds(ddf: Tensor) -> int:
    return int((jacobian_determinant(ddf) <= 0).sum())


def _folding(at: Plane, name: str, ddf: Tensor, *, right: float = canvas.EDGE_IN) -> canvas.Slot:
    """Room for graph paper, titled with how many voxels fold."""
    count = _folds(ddf)
    color = canvas.FOLD_COLOR if count else canvas.INK
    return canvas.slot(at, f"{name}: {count} folded" if count else f"{name}: no fold", color=color, right=right)


def _arrows(panel: Panel, at: Plane, velocity: Tensor, *, count: int = 16) -> None:
    """A velocity as arrows on a dark ground, true to scale for a third of the unit time."""
    panel.set_facecolor(GROUND)
    picked = canvas.sparse(at, count)
    moves = at.vectors(velocity)[:, *picked].reshape(2, -1)
    lengths = np.hypot(*moves)
    canvas.arrows(panel, at.nodes()[:, *picked].reshape(2, -1), moves / 3, lengths, largest=float(lengths.max()) or 1.0)


# -- from arrows to flows --------------------------------------------------------------------------------------
def added_or_flowed(velocity: Field, grid: Grid, *, most: float = 1.5) -> View:
    """One arrow a voxel, used in two ways: added once, p + v[p], and followed for unit time, `exponential`."""
    at = plane(grid, velocity=velocity)

    def render(state: State) -> Figure:
        arrows = velocity * state["strength"]
        maps = {"jumped": arrows, "drifted": exponential(arrows)}
        figure, axes = canvas.panels([[_folding(at, name, ddf) for name, ddf in maps.items()]])
        for panel, ddf in zip(axes, maps.values(), strict=True):
            draw_paper(panel, at, ddf)
        return figure

    return render, {"strength": Slider(0.0, most, most / 3, step=0.05)}


def walk_along(velocity: Field, grid: Grid, starts: Points) -> View:
    """Points walking through a velocity in so many equal straight steps; dashed, the paths without corners.

    Args: starts: where points set out, world mm.
    """
    at = plane(grid, velocity=velocity)
    points = grid.points(starts.to(velocity), to=Axes.VOXEL, from_=Axes.WORLD).unsqueeze(0)  # (1, k, 2)

    def render(state: State) -> Figure:
        steps = _steps(state["steps"], state["time"])
        ddf = torch.zeros_like(velocity)
        for step in steps:
            ddf = compose(velocity * step, ddf)
        slots = [canvas.slot(at, f"time {state['time']:.2f}"), _folding(at, "the paper", ddf)]
        figure, (left, right) = canvas.panels([slots])
        _arrows(left, at, velocity)
        _draw_paths(left, at, _path(velocity, points, _steps(64, state["time"]), halfway=True), truth=True)
        _draw_paths(left, at, _path(velocity, points, steps))
        draw_paper(right, at, ddf)
        return figure

    return render, {"time": Slider(0.0, 1.0, 1.0, step=0.05), "steps": Choice((1, 2, 4, 16), 1)}


def _steps(count: int, time: float) -> list[float]:
    """Lengths of steps of 1 / count up to a time; the last one is cut short."""
    whole = math.floor(time * count + 1e-6)
    rest = time - whole / count
    return [1 / count] * whole + ([rest] if rest > 1e-6 else [])


def _path(velocity: Tensor, points: Tensor, steps: list[float], *, halfway: bool = False) -> Tensor:
    """Where points (1, k, 2) in voxels are after each step, (m, k, 2); `halfway` asks for the speed in mid-step."""
    path = [points]
    for step in steps:
        asked = warp_points(path[-1], velocity * (step / 2)) if halfway else path[-1]
        path.append(path[-1] + step * sample(velocity, asked).movedim(1, -1))
    return torch.cat(path)


def _draw_paths(panel: Panel, at: Plane, path: Tensor, *, truth: bool = False) -> None:
    mm = apply_affine(at.frame.mm_from_voxel, path.double()).movedim(1, 0).numpy()  # (k, m, 2)
    color, style = (canvas.TRUTH_COLOR, canvas.TRUTH_STYLE) if truth else (canvas.MARK_COLOR, "solid")
    panel.add_collection(LineCollection(list(mm), colors=color, linestyles=[style], linewidths=2.2, zorder=4))
    if not truth:
        panel.scatter(mm[:, -1, 0], mm[:, -1, 1], s=60, color=color, edgecolors="black", zorder=5)


def squaring_race(velocity: Field, grid: Grid, starts: Points, ends: Points, *, most: int = 8) -> View:
    """What so many squarings make of a velocity, by both starts of `exponential`, against known ends.

    Args: starts, ends: world mm; where points set out and where the flow really takes them.
    """
    at = plane(grid, velocity=velocity)
    if starts.shape != ends.shape:
        raise ValueError(f"starts and ends must be pairs; got {tuple(starts.shape)} and {tuple(ends.shape)}.")
    here, there = (grid.points(x.double(), to=Axes.VOXEL, from_=Axes.WORLD).unsqueeze(0) for x in (starts, ends))
    ddfs = {(s, n): exponential(velocity, steps=n, start=s) for s in STARTS for n in range(most + 1)}
    off = {key: float((warp_points(here, ddf) - there).norm(dim=-1).mean()) for key, ddf in ddfs.items()}

    def render(state: State) -> Figure:
        key = state["start"], state["squarings"]
        slot = _folding(at, f"{key[0]}, {2 ** key[1]} step{'s' if key[1] else ''}", ddfs[key], right=CHART_IN)
        figure, (panel,) = canvas.panels([[slot]])
        draw_paper(panel, at, ddfs[key])
        chart = chart_beside(figure, panel, f"off by {off[key]:.2f} voxels", "squarings", "mean error [voxels]")
        for start, look, place, side in zip(STARTS, ("--", "-"), (1.3, 1.9), (1.3, 0.75), strict=True):
            errors = [off[start, n] for n in range(most + 1)]
            chart.plot(errors, look, color=canvas.INK, linewidth=2.2)
            chart.text(place, errors[1] * side, start, size=canvas.TEXT_SIZE, color=canvas.INK, va="center")
            folded = [n for n in range(most + 1) if _folds(ddfs[start, n])]
            chart.plot(folded, [errors[n] for n in folded], "s", color=canvas.FOLD_COLOR, markersize=9, zorder=4)
        ring(chart, key[1], off[key])
        chart.set_yscale("log")
        chart.set_xticks(range(most + 1))
        return figure

    return render, {"squarings": Slider(0, most, 0), "start": Choice(STARTS, "euler")}


# -- and back --------------------------------------------------------------------------------------------------
def inverse_steps(maps: Mapping[str, Field], grid: Grid, *, most: int = 20) -> View:
    """The fixed point iteration of `inverse`, stopped after so many rounds: there and back again, and what is left."""
    at = plane(grid, **maps)

    def render(state: State) -> Figure:
        ddf = maps[state["map"]]
        guess = inverse(ddf, iterations=state["rounds"], tolerance=0.0, step=1.0).ddf
        both = compose(ddf, guess)
        left, first = (length_mm(x, grid) for x in (both, compose(ddf, -ddf)))
        titles = "back, then there", f"left over: {float(left.mean()):.2f} mm"
        slots = [canvas.slot(at, titles[0]), canvas.slot(at, titles[1], right=canvas.BAR_IN)]
        figure, axes = canvas.panels([slots])
        draw_paper(axes[0], at, both)
        drawn = canvas.amounts(axes[1], at, at.cut(left), float(first.max()))
        canvas.color_bar(axes[1], drawn, "left over [mm]")
        canvas.note(axes[1], f"largest {float(left.max()):.1f} mm", right=True)
        return figure

    return render, {"rounds": Slider(0, most, 0), "map": Choice(tuple(maps), next(iter(maps)))}


def logarithm_test(family: Callable[[float], Field], grid: Grid, turn: Slider) -> View:
    """The velocity that `logarithm` finds for a map, and its flow; dashed, the map itself.

    Args:
        family: from an angle in degrees to a ddf.
        turn: the slider that chooses the angle.
    """
    at = plane(grid, ddf=family(turn.value))

    def render(state: State) -> Figure:
        ddf = family(state["turn_deg"])
        velocity = logarithm(ddf)
        flow = exponential(velocity)
        off = f"its flow, off by up to {float(length_mm(flow - ddf, grid).max()):.1f} mm"
        figure, (left, right) = canvas.panels([[canvas.slot(at, "log u"), canvas.slot(at, off)]])
        _arrows(left, at, velocity, count=20)
        draw_paper(right, at, flow)
        canvas.lattice(right, at.nodes(ddf), truth=True, lines=LINES)
        canvas.note(right, "dashed: u", right=True)
        return figure

    return render, {"turn_deg": turn}


# -- areas, and flows in a row ---------------------------------------------------------------------------------
def linear_flow(*, half_mm: float = 48.0) -> View:
    """The linear velocity  v(x) = A x  and a square that it carries along; exact, by the matrix exponential.

    A has this divergence and this curl; `strain` stretches along x as fast as it squeezes along y.
    """
    box = (-half_mm, half_mm, -0.75 * half_mm, 0.75 * half_mm)

    def render(state: State) -> Figure:
        half_curl, strain = state["curl"] / 2, state["strain"]
        matrix = torch.tensor([[strain, -half_curl], [half_curl, -strain]]) + torch.eye(2) * state["divergence"] / 2
        moved = torch.matrix_exp(matrix * state["time"])
        area = signed(float(torch.linalg.det(moved)), 2)
        labels = ("x [mm]", "y [mm]")
        slots = [canvas.Slot(box, "the velocity", labels=labels), canvas.Slot(box, f"area ×{area}", labels=labels)]
        figure, (left, right) = canvas.panels([slots])
        _draw_linear(left, matrix, half_mm)
        _draw_square(right, torch.eye(2), half_mm / 3, truth=True)
        _draw_square(right, moved, half_mm / 3)
        return figure

    amount = {"divergence": Slider(-1.0, 1.0, 0.0, step=0.1), "curl": Slider(-3.0, 3.0, 0.0, step=0.25)}
    return render, {**amount, "strain": Slider(-0.6, 0.6, 0.0, step=0.1), "time": Slider(0.0, 1.0, 1.0, step=0.1)}


def _draw_linear(panel: Panel, matrix: Tensor, half_mm: float) -> None:
    panel.set_facecolor(GROUND)
    x, y = torch.linspace(-0.9, 0.9, 11) * half_mm, torch.linspace(-0.65, 0.65, 8) * half_mm
    places = torch.cartesian_prod(x, y)  # (k, 2)
    moves = (places @ matrix.T).T.numpy() / 4
    canvas.arrows(panel, places.T.numpy(), moves, 4 * np.hypot(*moves), largest=0.6 * half_mm)


def _draw_square(panel: Panel, matrix: Tensor, half_mm: float, *, truth: bool = False) -> None:
    panel.set_facecolor(GROUND)
    line = torch.linspace(-half_mm, half_mm, 9)
    nodes = torch.stack(torch.meshgrid(line, line, indexing="xy"))  # (2, h, w)
    carried = torch.einsum("ij,jhw->ihw", matrix, nodes).numpy()
    if truth:
        rim = carried[:, (0, 0, -1, -1, 0), (0, -1, -1, 0, 0)]
        panel.plot(*rim, color=canvas.TRUTH_COLOR, linestyle=canvas.TRUTH_STYLE, linewidth=2.0)
        return
    paths = [carried[:, :, k].T for k in range(9)] + [carried[:, k].T for k in range(9)]
    panel.add_collection(LineCollection(paths, colors=canvas.WARPED_COLOR, linewidths=1.6))


def velocities_in_a_row(v: Field, w: Field, grid: Grid) -> View:
    """Two flows in a row, exp(v) o exp(w), and how near one velocity comes: the sum, or with its brackets.

    The slider `unlike` leads from v itself, with which v commutes, in the place of w, to w.
    """
    at = plane(grid, v=v, w=w)
    shares = [k / 5 for k in range(6)]

    @lru_cache(maxsize=128)
    def off(share: float, order: int) -> Tensor:
        second = (1 - share) * v + share * w
        both = compose(exponential(v), exponential(second))
        return length_mm(exponential(compose_velocities(v, second, order=order)) - both, grid)

    largest = float(off(1.0, 1).max())

    def render(state: State) -> Figure:
        share, order = state["unlike"], state["order"]
        error = off(share, order)
        figure, (panel,) = canvas.panels([[canvas.slot(at, f"order {order}: {ORDERS[order]}", right=CHART_IN + 0.9)]])
        drawn = canvas.amounts(panel, at, at.cut(error), largest)
        canvas.color_bar(panel, drawn, "error [mm]")
        chart = chart_beside(figure, panel, f"error {float(error.mean()):.2f} mm", "how unlike", "mean error [mm]")
        box, width = chart.get_position(), figure.get_size_inches()[0]
        chart.set_position((box.x0 + 1.0 / width, box.y0, box.width - 0.1 / width, box.height))
        for k, look in zip(ORDERS, (":", "--", "-"), strict=True):
            errors = [float(off(s, k).mean()) for s in shares]
            chart.plot(shares, errors, look, color=canvas.INK, linewidth=2.2, label=f"order {k}")
        chart.legend(fontsize=canvas.TEXT_SIZE, frameon=False, loc="upper left")
        ring(chart, share, float(error.mean()))
        return figure

    return render, {"unlike": Slider(0.0, 1.0, 1.0, step=0.1), "order": Choice(tuple(ORDERS), 1)}


# -- at another resolution -------------------------------------------------------------------------------------
def half_resolution(velocity: Field, grid: Grid) -> View:
    """A velocity followed on a grid of half the size: values times a factor going down, divided by it going up.

    Dashed: the flow on the whole grid.
    """
    at = plane(grid, velocity=velocity)
    half = [(n + 1) // 2 for n in grid.shape]

    def render(state: State) -> Figure:
        arrows, down = velocity * state["strength"], state["factor_down"]
        small = exponential(filters.resize(arrows, half) * down)
        found, truth = filters.resize(small, grid.shape) / down, exponential(arrows)
        off = length_mm(found - truth, grid)
        slots = [_folding(at, f"×{down:g}, then ×{1 / down:g}", found)]
        slots.append(canvas.slot(at, f"off by {float(off.mean()):.2f} mm", right=canvas.BAR_IN))
        figure, (left, right) = canvas.panels([slots])
        draw_paper(left, at, found)
        canvas.lattice(left, at.nodes(truth), truth=True, lines=LINES)
        canvas.color_bar(right, canvas.amounts(right, at, at.cut(off), 8.0), "error [mm]")
        return figure

    return render, {"factor_down": Choice((2.0, 1.0, 0.5), 2.0), "strength": Slider(0.0, 1.0, 1.0, step=0.05)}
