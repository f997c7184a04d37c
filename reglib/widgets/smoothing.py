"""Views of demons: what pushes one edge, what pushes an image, and what smoothing makes of it."""

from __future__ import annotations

from typing import get_args

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from .. import plot
from ..grid import Grid
from ..optimize import DemonsOptions, Level, demons
from ..optimize.demons import Forces
from ..plot import canvas
from .controls import Choice, Control, Slider
from .paper import length_mm, plane
from .views import State, View

Image = Float[Tensor, "1 1 *s"]
WIDTH = 1.2  # of the edges in `edge_push`, voxels
REACH = 12.0  # of its chart to both sides, voxels
ARROWS = 26  # along the longer side of `push_dial`
LONGEST = 2.0  # max_step of `push_dial`, voxels
DRAWN_MM = 12.0  # length of its longest arrow


def edge_push() -> View:
    """One edge in two scans, in one dimension: the gap, and how far it pushes each voxel to read.

    Convention: the arrow at fixed voxel p goes to p + s, where the moving image is read next.
    """
    x = np.arange(-REACH, REACH + 0.5)
    fine = np.linspace(-REACH, REACH, 400)

    def render(state: State) -> Figure:
        apart, longest = state["apart"], state["max_step"]
        push = _push(x, apart, longest)
        figure = Figure(figsize=(canvas.WIDTH_IN, 4.2), dpi=canvas.DPI)
        chart = figure.add_axes((0.08, 0.16, 0.9, 0.72))
        fixed, moving = _edge(fine), _edge(fine - apart)
        chart.fill_between(fine, fixed, moving, color="#dfe6ee", zorder=0)
        chart.plot(fine, fixed, color=canvas.FIXED_COLOR, linewidth=4, label="fixed")
        chart.plot(fine, moving, color=canvas.MOVING_COLOR, linewidth=4, label="moving")
        for voxel, height, move in zip(x, _edge(x), push, strict=True):
            if abs(move) > 0.05:
                look = {"width": 3, "headwidth": 11, "color": canvas.INK}
                chart.annotate("", (voxel + move, height), (voxel, height), arrowprops=look)
        words = f"the longest push: {np.abs(push).max():.1f} of {abs(apart):g} voxels"
        chart.set_title(words, fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")
        chart.set_xlabel("voxel", fontsize=canvas.TEXT_SIZE)
        chart.set_ylabel("intensity", fontsize=canvas.TEXT_SIZE)
        chart.tick_params(labelsize=canvas.TEXT_SIZE)
        chart.legend(fontsize=canvas.TEXT_SIZE, loc="upper left", frameon=False)
        chart.spines[["top", "right"]].set_visible(False)
        chart.set(xlim=(-REACH, REACH), ylim=(-0.08, 1.12))
        return figure

    return render, {
        "apart": Slider(-6.0, 6.0, 3.0, step=0.5, unit="voxels"),
        "max_step": Slider(0.5, 4.0, 2.0, step=0.5, unit="voxels"),
    }


def _edge(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x / WIDTH))


def _push(x: np.ndarray, apart: float, longest: float) -> np.ndarray:
    """s = g J / (J^2 + g^2 / (4 L^2)) with the slope of the mean image, voxels."""
    gap = _edge(x) - _edge(x - apart)
    slope = sum(edge * (1 - edge) for edge in (_edge(x), _edge(x - apart))) / (2 * WIDTH)
    return gap * slope / (slope**2 + gap**2 / (4 * longest**2) + 1e-8)


def push_dial(fixed: Image, moving: Image, grid: Grid) -> View:
    """The first push of `demons` at full resolution: the gap it comes from, and the push as arrows.

    Choose along whose slope it pushes, and by how many voxels it is smoothed.
    """
    at = plane(grid, fixed=fixed, moving=moving)
    gap = at.cut(moving - fixed)
    most = float(np.abs(gap).max()) or 1.0

    def first_push(forces: Forces, sigma: float) -> Tensor:
        seen: list[Tensor] = []
        options = DemonsOptions(
            forces=forces, max_step=LONGEST, fluid_sigma=sigma, callback=lambda _, u: seen.append(u), progress=False
        )
        demons(fixed, moving, grid, update="additive", smoothing=0.0, levels=[Level(1, steps=2)], options=options)
        return seen[-1]

    def render(state: State) -> Figure:
        push = first_push(state["forces"], state["sigma"])
        lengths = at.cut(length_mm(push, grid))
        larger = max(1, round(DRAWN_MM / max(float(lengths.max()), 1e-3)))
        title = f"first push, drawn x {larger}"
        slots = [canvas.slot(at, "gap: blue, fixed is brighter"), canvas.slot(at, title, right=canvas.BAR_IN)]
        figure, panels = canvas.panels([slots])
        canvas.differences(panels[0], at, gap, most)
        canvas.gray(panels[1], at, at.cut(fixed), plot.window(fixed), dim=True)
        picked = canvas.sparse(at, ARROWS)
        starts, moves = (field[:, *picked].reshape(2, -1) for field in (at.nodes(), larger * at.vectors(push)))
        largest = LONGEST * float(np.mean(grid.spacing))
        drawn = canvas.arrows(panels[1], starts, moves, lengths[picked].ravel(), largest=largest)
        canvas.color_bar(panels[1], drawn, "push [mm]")
        return figure

    controls: dict[str, Control] = {
        "forces": Choice(get_args(Forces), "symmetric"),
        "sigma": Slider(0.0, 6.0, 0.0, step=0.5, unit="voxels"),
    }
    return render, controls


__all__ = ["edge_push", "push_dial"]
