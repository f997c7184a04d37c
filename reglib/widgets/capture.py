"""Views of linear registration: poses, from where a descent comes home, principal axes, steps in two units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .. import plot
from ..field import affine_ddf, warp
from ..grid import Axes, Grid, apply_affine, require_on_grid
from ..optimize import align_moments
from ..plot import canvas
from ..plot.planes import Plane, plane_of
from .controls import Choice, Control, Slider, Toggle
from .views import State, View

Image = Float[Tensor, "1 1 n m"]
Matrix = Float[Tensor, "e e"]  # world matrix moving_from_fixed
Names = str | int
PALE = "#cfe3f7"  # found


# -- how far off a matrix is ------------------------------------------------------------------------------------
def box_corners(image: Float[Tensor, "1 1 *s"], grid: Grid, *, above: float = 0.05) -> Float[Tensor, "k d"]:
    """The 2^d corners of the box around all voxels brighter than `above`, world mm."""
    require_on_grid(image, grid, "image")
    inside = (image[0, 0] > above).nonzero()
    if not len(inside):
        raise ValueError(f"the image has no voxel above {above}, so there is no box around it. Lower `above`.")
    ends = torch.stack([inside.amin(0), inside.amax(0)]).double()  # (2, d)
    corners = torch.cartesian_prod(*ends.T)
    return grid.points(corners, to=Axes.WORLD, from_=Axes.VOXEL)


def corner_error_mm(matrix: Matrix, truth: Matrix, corners: Float[Tensor, "k d"]) -> float:
    """Mean distance, mm, between where two world matrices take these points."""
    away = apply_affine(matrix.detach(), corners) - apply_affine(truth, corners)
    return float(away.norm(dim=-1).mean())


def _pose(grid: Grid, *, x_mm: float, y_mm: float, turn_deg: float) -> Tensor:
    """A turn about the middle of a 2-D grid and a shift, as a world matrix."""
    a, middle = math.radians(turn_deg), torch.tensor(grid.center, dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)
    matrix[:2, 2] = middle - matrix[:2, :2] @ middle + torch.tensor([x_mm, y_mm], dtype=torch.float64)
    return matrix


def _require_flat(grid: Grid, **images: Tensor) -> None:
    if grid.dim != 2:
        raise ValueError(f"these pictures are of 2-D images; got a {grid.dim}-D grid. Take a slice first.")
    for name, image in images.items():
        require_on_grid(image, grid, name)


# -- parts of pictures ------------------------------------------------------------------------------------------
def _overlaid(
    panel: Panel, at: Plane, fixed: Tensor, moving: Tensor, matrix: Tensor, moving_grid: Grid | None = None
) -> None:
    """The fixed image and the moving one under a world matrix, in their two colors."""
    ddf = affine_ddf(matrix.detach(), at.frame.grid).to(moving)
    here = at.frame.grid
    warped = warp(moving, ddf, padding="zeros", moving_grid=moving_grid or here, fixed_grid=here)
    light = canvas.scaled(at.cut(fixed), plot.window(fixed)), canvas.scaled(at.cut(warped), plot.window(moving))
    canvas.blended(panel, at, *light)


def _drawn(points: Tensor, at: Plane) -> np.ndarray:
    """World points as (k, 2) mm of the picture."""
    voxels = at.frame.grid.points(points.double(), to=Axes.VOXEL, from_=Axes.WORLD)
    return np.array([at.frame.mm(voxel)[:2] for voxel in voxels.tolist()])


def _frames(panel: Panel, at: Plane, corners: Tensor, truth: Tensor, found: Tensor) -> None:
    """The fixed box as two matrices carry it: dashed where it belongs, and a stick from corner to corner."""
    true, mine = (_drawn(apply_affine(m.detach(), corners), at) for m in (truth, found))
    for a, b in zip(true, mine, strict=True):
        panel.plot(*zip(a, b, strict=True), color=canvas.MARK_COLOR, linewidth=2, path_effects=canvas.HALO, zorder=4)
    around = [0, 1, 3, 2, 0]
    panel.plot(*mine[around].T, color=canvas.WARPED_COLOR, linewidth=3, path_effects=canvas.HALO, zorder=5)
    panel.plot(*true[around].T, color="white", linewidth=2.5, linestyle=canvas.TRUTH_STYLE, zorder=6)


def _beside(figure: Figure, panel: Panel, gap_in: float, width_in: float) -> Panel:
    """Axes right of a panel, as high, in the room that `Slot.right` keeps."""
    box, (width, _) = panel.get_position(), figure.get_size_inches()
    axes = figure.add_axes((box.x1 + gap_in / width, box.y0, width_in / width, box.height))
    axes.tick_params(labelsize=canvas.TEXT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def overlays(
    fixed: Image, moving: Image, grid: Grid, maps: Mapping[str, Matrix], *, moving_grid: Grid | None = None
) -> Figure:
    """The two images overlaid under each world matrix, in a row, each under its name."""
    _require_flat(grid, fixed=fixed)
    require_on_grid(moving, moving_grid or grid, "moving")
    if not maps:
        raise ValueError("overlays needs at least one matrix to draw; got none.")
    at = plane_of(fixed, grid)
    figure, panels = canvas.panels([[canvas.slot(at, name) for name in maps]])
    for k, (panel, matrix) in enumerate(zip(panels, maps.values(), strict=True)):
        _overlaid(panel, at, fixed, moving, matrix, moving_grid)
        if k == 0:
            canvas.name_both(panel, "fixed", "moving")
    return figure


# -- a pose by hand ---------------------------------------------------------------------------------------------
def pose_dial(fixed: Image, moving: Image, grid: Grid, truth: Matrix, *, reach_mm: float = 40.0) -> View:
    """Lay the moving image on the fixed one by hand: where a box around the fixed brain is read, and where it should.

    Dashed is the box as the truth carries it into the moving image, orange as your numbers do.
    """
    _require_flat(grid, fixed=fixed, moving=moving)
    at, corners = plane_of(fixed, grid), box_corners(fixed, grid)

    def render(state: State) -> Figure:
        matrix = _pose(grid, **{name: state[name] for name in ("x_mm", "y_mm", "turn_deg")})
        error = corner_error_mm(matrix, truth, corners)
        slots = [canvas.slot(at, f"corners: {error:.0f} mm off", color=canvas.MOVING_COLOR), canvas.slot(at, "overlay")]
        figure, (left, right) = canvas.panels([slots])
        canvas.gray(left, at, at.cut(moving), plot.window(moving), dim=True)
        _frames(left, at, corners, truth, matrix)
        _overlaid(right, at, fixed, moving, matrix)
        canvas.name_both(right, "fixed", "moving")
        return figure

    controls: dict[str, Control] = {
        "x_mm": Slider(-reach_mm, reach_mm, 0.0, step=2.0, unit="mm"),
        "y_mm": Slider(-reach_mm, reach_mm, 0.0, step=2.0, unit="mm"),
        "turn_deg": Slider(-180.0, 180.0, 0.0, step=2.0, unit="deg"),
    }
    return render, controls


# -- many registrations -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Attempt:
    """One moving image, the world matrix that brings it home, and what each way to register it found.

    Args:
        name: the degrees by which it is turned, or what was done to it.
        moving_grid: of the moving image, if it is not the fixed one's.
    """

    name: Names
    moving: Tensor
    truth: Tensor
    found: dict[str, Tensor] = field(default_factory=dict)
    moving_grid: Grid | None = None

    def errors_mm(self, corners: Tensor) -> dict[str, float]:
        """The corner error of everything found."""
        return {way: corner_error_mm(matrix, self.truth, corners) for way, matrix in self.found.items()}


def _require_attempts(attempts: Sequence[Attempt], grid: Grid) -> list[str]:
    """The ways that all attempts were registered."""
    ways = list(attempts[0].found) if attempts else []
    if not ways or any(list(attempt.found) != ways for attempt in attempts):
        raise ValueError("attempts must hold at least one, each with the same ways to register and what they found.")
    for attempt in attempts:
        _require_flat(attempt.moving_grid or grid, **{f"moving of {attempt.name}": attempt.moving})
    return ways


def start_dial(fixed: Image, grid: Grid, attempts: Sequence[Attempt], *, found_mm: float = 3.0) -> View:
    """Turn the moving image and see where each way to register ends: before, after, and the error of all turns.

    Args:
        attempts: by rising turn in degrees, evenly spaced.
        found_mm: corner errors below it count as found.
    """
    _require_flat(grid, fixed=fixed)
    ways, at, corners = _require_attempts(attempts, grid), plane_of(fixed, grid), box_corners(fixed, grid)
    turns = [int(attempt.name) for attempt in attempts]
    curves = {way: [attempt.errors_mm(corners)[way] for attempt in attempts] for way in ways}

    def render(state: State) -> Figure:
        k = min(range(len(turns)), key=lambda i: abs(turns[i] - state["turn_deg"]))
        attempt, way = attempts[k], state["way"]
        error = curves[way][k]
        color = canvas.FOLD_COLOR if error > found_mm else canvas.INK
        slots = [canvas.slot(at, "start"), canvas.slot(at, f"end: {error:.0f} mm off", color=color, right=4.9)]
        figure, panels = canvas.panels([slots])
        for panel, matrix in zip(panels, (torch.eye(3, dtype=torch.float64), attempt.found[way]), strict=True):
            _overlaid(panel, at, fixed, attempt.moving, matrix, attempt.moving_grid)
        canvas.name_both(panels[0], "fixed", "moving")
        _error_curve(_beside(figure, panels[1], 0.95, 3.8), turns, curves[way], k, found_mm)
        return figure

    first = min(turns, key=lambda turn: abs(turn - 40))
    step = turns[1] - turns[0] if len(turns) > 1 else 1
    return render, {
        "turn_deg": Slider(turns[0], turns[-1], first, step=step, unit="deg"),
        "way": Choice((*ways,), ways[0]),
    }


def _error_curve(panel: Panel, turns: Sequence[int], errors: Sequence[float], chosen: int, found_mm: float) -> None:
    colors = [canvas.FOLD_COLOR if error > found_mm else canvas.FIXED_COLOR for error in errors]
    panel.plot(turns, np.maximum(errors, 0.1), color="#888888", linewidth=1.5, zorder=1)
    panel.scatter(turns, np.maximum(errors, 0.1), s=60, c=colors, zorder=2)
    panel.scatter(
        turns[chosen], max(errors[chosen], 0.1), s=260, facecolors="none", edgecolors="black", lw=2.5, zorder=3
    )
    panel.axhline(found_mm, color=canvas.INK, linewidth=1.2, linestyle=(0, (1, 2)))
    panel.set(yscale="log", ylim=(0.1, 500), xlim=(min(turns) - 12, max(turns) + 12))
    panel.set_yticks([1, 10, 100], ["1", "10", "100"])
    panel.set_xlabel("turned by [deg]", fontsize=canvas.TEXT_SIZE)
    panel.set_title("error at the end [mm]", fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")
    panel.locator_params(axis="x", nbins=7)


def capture_map(attempts: Sequence[Attempt], grid: Grid, corners: Tensor, *, found_mm: float = 3.0) -> Figure:
    """A row for each way to register, a column for each turn, the error in mm in each cell; loud where it is lost."""
    ways = _require_attempts(attempts, grid)
    figure = Figure(figsize=(canvas.WIDTH_IN, 1.2 + 0.5 * len(ways)), dpi=canvas.DPI)
    panel = figure.subplots()
    figure.subplots_adjust(left=0.19, right=0.995, bottom=0.03, top=1 - 0.95 / (1.2 + 0.5 * len(ways)))
    for column, attempt in enumerate(attempts):
        for row, error in enumerate(attempt.errors_mm(corners).values()):
            lost = error > found_mm
            color = canvas.FOLD_COLOR if lost else PALE
            panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, edgecolor="white", lw=1.5))
            look: dict[str, Any] = {"color": "white" if lost else canvas.INK, "weight": "bold" if lost else "normal"}
            panel.text(column, row, f"{error:.0f}", ha="center", va="center", size=canvas.TEXT_SIZE, **look)
    panel.set(xlim=(-0.5, len(attempts) - 0.5), ylim=(len(ways) - 0.5, -0.5))
    panel.set_xticks(range(len(attempts)), [str(attempt.name).replace("-", "−") for attempt in attempts])
    panel.set_yticks(range(len(ways)), ways)
    panel.tick_params(labelsize=canvas.TEXT_SIZE, length=0, labeltop=True, labelbottom=False)
    panel.tick_params(axis="x", labelsize=canvas.TEXT_SIZE - 2)  # many columns
    panel.spines[:].set_visible(False)
    panel.set_title("turned by [deg]", fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")
    return figure


def freedom_dial(fixed: Image, grid: Grid, attempts: Sequence[Attempt], *, found_mm: float = 3.0) -> View:
    """What was done to the moving image against the model that may explain it: start, end, and the box it reads."""
    _require_flat(grid, fixed=fixed)
    ways, at, corners = _require_attempts(attempts, grid), plane_of(fixed, grid), box_corners(fixed, grid)
    known = {str(attempt.name): attempt for attempt in attempts}

    def render(state: State) -> Figure:
        attempt = known[state["moved"]]
        found = attempt.found[state["model"]]
        error = corner_error_mm(found, attempt.truth, corners)
        color = canvas.FOLD_COLOR if error > found_mm else canvas.INK
        there = at if attempt.moving_grid is None else plane_of(attempt.moving, attempt.moving_grid)
        slots = [
            canvas.slot(at, "start"),
            canvas.slot(at, f"end: {error:.1f} mm off", color=color),
            canvas.slot(there, "where the box is read", color=canvas.MOVING_COLOR),
        ]
        figure, panels = canvas.panels([slots])
        for panel, matrix in zip(panels, (torch.eye(3, dtype=torch.float64), found), strict=False):
            _overlaid(panel, at, fixed, attempt.moving, matrix, attempt.moving_grid)
        canvas.name_both(panels[0], "fixed", "moving")
        canvas.gray(panels[2], there, there.cut(attempt.moving), plot.window(attempt.moving), dim=True)
        _frames(panels[2], there, corners, attempt.truth, found)
        return figure

    return render, {"moved": Choice((*known,), next(iter(known))), "model": Choice((*ways,), ways[0])}


# -- centers and axes -------------------------------------------------------------------------------------------
def flip_dial(
    fixed: Image,
    moving: Image,
    grid: Grid,
    candidates: Mapping[str, Matrix],
    *,
    center_mm: Float[Tensor, " d"],
    axes: Float[Tensor, "d d"],
    similarity: Callable[..., Tensor],
    length_mm: float = 60.0,
) -> View:
    """Ways to lay principal axes on each other: the fixed axes, where a candidate carries them, and the overlay.

    Args: center_mm, axes: of the fixed image, axes as columns.   similarity: (warped, fixed) to the loss shown.
    """
    _require_flat(grid, fixed=fixed, moving=moving)
    at = plane_of(fixed, grid)
    tips = torch.stack([center_mm, *(center_mm + length_mm * axis for axis in axes.T.flip(0))])  # longest first

    def render(state: State) -> Figure:
        matrix = candidates[state["candidate"]]
        warped = warp(moving, affine_ddf(matrix, grid).to(moving), padding="zeros")
        title = f"loss {float(similarity(warped, fixed)):.2f}"
        slots = [
            canvas.slot(at, "fixed", color=canvas.FIXED_COLOR),
            canvas.slot(at, "moving", color=canvas.MOVING_COLOR),
            canvas.slot(at, title),
        ]
        figure, panels = canvas.panels([slots])
        for panel, image, points in zip(panels, (fixed, moving), (tips, apply_affine(matrix, tips)), strict=False):
            canvas.gray(panel, at, at.cut(image), plot.window(image), dim=True)
            start, *ends = _drawn(points, at)
            for end in ends:
                canvas.arrow(panel, start.tolist(), (end - start).tolist())
        _overlaid(panels[2], at, fixed, moving, matrix)
        return figure

    return render, {"candidate": Choice((*candidates,), next(iter(candidates)))}


def cut_dial(fixed: Image, moving: Image, grid: Grid, truth: Matrix, *, most_mm: float = 100.0) -> View:
    """Cut the moving image's field of view from below, and see where its center and axes go.

    The ring is the center of mass that is found, the dashed one where the fixed center belongs.
    """
    _require_flat(grid, fixed=fixed, moving=moving)
    at, corners = plane_of(fixed, grid), box_corners(fixed, grid)
    mass = (fixed - fixed.min())[0, 0].double()
    center = (mass[..., None] * grid.coordinates(Axes.WORLD, dtype=torch.float64)).sum((0, 1)) / mass.sum()

    def render(state: State) -> Figure:
        rows = round(state["cut_mm"] / grid.spacing[1])
        seen, smaller = moving[..., rows:], grid.crop([0, rows], grid.shape)
        start = align_moments(fixed, seen, fixed_grid=grid, moving_grid=smaller, rotate=state["axes"])
        error = corner_error_mm(start, truth, corners)
        slots = [
            canvas.slot(at, "fixed", color=canvas.FIXED_COLOR),
            canvas.slot(at, "moving", color=canvas.MOVING_COLOR),
            canvas.slot(at, f"start: {error:.0f} mm off"),
        ]
        figure, panels = canvas.panels([slots])
        canvas.gray(panels[0], at, at.cut(fixed), plot.window(fixed), dim=True)
        canvas.ring(panels[0], _drawn(center[None], at)[0].tolist())
        kept = torch.zeros_like(moving)
        kept[..., rows:] = seen
        canvas.gray(panels[1], at, at.cut(kept), plot.window(moving), dim=True)
        found, belongs = (_drawn(apply_affine(m, center[None]), at)[0] for m in (start, truth))
        canvas.ring(panels[1], found.tolist())
        dashed: dict[str, Any] = {"facecolors": "none", "edgecolors": "white", "linestyles": [canvas.TRUTH_STYLE]}
        panels[1].scatter(belongs[:1], belongs[1:], s=520, lw=2.5, zorder=4, **dashed)
        _overlaid(panels[2], at, fixed, seen, start, smaller)
        return figure

    most = grid.spacing[1] * min(round(most_mm / grid.spacing[1]), grid.shape[1] - 8)
    controls: dict[str, Control] = {
        "cut_mm": Slider(0.0, most, 0.0, step=grid.spacing[1], unit="mm"),
        "axes": Toggle(),
    }
    return render, controls


# -- steps in two units -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Valley:
    """A loss over two numbers: a shift in mm and a turn in degrees; `losses[i, j]` at `turns[i]`, `shifts[j]`."""

    shifts: Sequence[float]
    turns: Sequence[float]
    losses: np.ndarray
    home: tuple[float, float]


def step_dial(valley: Valley, paths: Mapping[str, Sequence[tuple[float, float]]]) -> View:
    """Descents through a valley of two units, on its contours and step by step.

    Args: paths: (shift, turn) at each step, for each choice of how many mm one radian counts as.
    """
    shape = (len(valley.turns), len(valley.shifts))
    if valley.losses.shape != shape or not paths:
        raise ValueError(f"losses must be {shape}, turns by shifts, and paths not empty; got {valley.losses.shape}.")

    def render(state: State) -> Figure:
        path = np.array(paths[state["radian"]])
        figure = Figure(figsize=(canvas.WIDTH_IN, 4.3), dpi=canvas.DPI)
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.08, right=0.985, bottom=0.16, top=0.89, wspace=0.22)
        left.contourf(valley.shifts, valley.turns, valley.losses, levels=24, cmap="Greys_r")
        left.plot(*path.T, "-o", color=canvas.WARPED_COLOR, markersize=4, linewidth=2)
        left.plot(*path[0], "s", color=canvas.MARK_COLOR, markeredgecolor="black", markersize=11)
        ring: dict[str, Any] = {
            "facecolors": "none",
            "edgecolors": canvas.FIXED_COLOR,
            "linestyles": [canvas.TRUTH_STYLE],
        }
        left.scatter(*valley.home, s=420, lw=3, zorder=5, **ring)
        left.set(xlim=(valley.shifts[0], valley.shifts[-1]), ylim=(valley.turns[0], valley.turns[-1]))
        _named(left, f"1 rad counts as {state['radian']}", "shift [mm]", "turn [deg]")
        for k, (label, color) in enumerate((("shift [mm]", canvas.FIXED_COLOR), ("turn [deg]", canvas.WARPED_COLOR))):
            right.plot(np.abs(path[:, k] - valley.home[k]), color=color, linewidth=3, label=label)
        right.set(ylim=(-1, 60), xlim=(0, len(path) - 1))
        right.legend(fontsize=canvas.TEXT_SIZE, frameon=False, loc="upper right")
        _named(right, "how far from home", "step", "")
        return figure

    return render, {"radian": Choice((*paths,), next(iter(paths)))}


def _named(panel: Panel, title: str, across: str, up: str) -> None:
    panel.set_title(title, fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")
    panel.set_xlabel(across, fontsize=canvas.TEXT_SIZE)
    panel.set_ylabel(up, fontsize=canvas.TEXT_SIZE, labelpad=0)
    panel.tick_params(labelsize=canvas.TEXT_SIZE)
