"""A cost volume to look into: what every displacement of one point would cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from .. import plot
from ..field import resize_ddf
from ..grid import Grid
from ..optimize import CostVolume
from ..plot import canvas
from ..plot.planes import Plane
from .controls import Click, Control
from .paper import CHART_IN, chart_beside, plane
from .views import State, View

Image = Float[Tensor, "1 1 *s"]
Ddf = Float[Tensor, "1 2 *s"]


def cost_dial(fixed: Image, grid: Grid, volume: CostVolume, *, truth: Ddf) -> View:
    """Click a point of the fixed image: what each displacement costs its nearest control point, pale is cheap.

    A cross marks the cheapest, a ring the truth.

    Args: volume: of two images on `grid`, with one pair.
    """
    at = plane(grid, fixed=fixed, truth=truth)
    costs, table = volume
    control, reach = costs.shape[2:], [int(r) for r in table.amax(0)]
    if len(control) != 2 or len(table) != costs.shape[1] or len(table) != math.prod(2 * r + 1 for r in reach):
        raise ValueError(
            f"volume must hold a cost for each displacement of a 2-D lattice; got costs {tuple(costs.shape)} and "
            f"displacements {tuple(table.shape)}."
        )
    steps = [(n - 1) / (m - 1) for n, m in zip(grid.shape, control, strict=True)]  # voxels
    true = resize_ddf(truth, control)

    def render(state: State) -> Figure:
        place = _nearest(at, state["point"], steps, control)
        figure, (panel,) = canvas.panels([[canvas.slot(at, "fixed", color=canvas.FIXED_COLOR, right=CHART_IN)]])
        canvas.gray(panel, at, at.cut(fixed), plot.window(fixed))
        canvas.ring(panel, at.frame.mm([p * s for p, s in zip(place, steps, strict=True)])[:2])
        patch = costs[0, :, place[0], place[1]].reshape([2 * r + 1 for r in reach])
        cheapest = table[int(patch.argmin())]
        chart = chart_beside(figure, panel, "what each move costs", "move across [mm]", "move up [mm]")
        sizes = [steps[a] * size for a, size in zip(at.axes, at.spacing, strict=True)]
        halves = [(reach[a] + 0.5) * size for a, size in zip(at.axes, sizes, strict=True)]
        light: dict[str, Any] = {"cmap": "Blues", "aspect": "equal", "origin": "lower", "interpolation": "nearest"}
        chart.imshow(_turned(at, patch), extent=(-halves[0], halves[0], -halves[1], halves[1]), **light)
        runs = list(zip(at.axes, at.signs, sizes, strict=True))
        move, goal = (
            [float(steps_of[a]) * sign * size for a, sign, size in runs]
            for steps_of in (cheapest, true[0, :, place[0], place[1]])
        )
        chart.plot(*move, "X", color=canvas.WARPED_COLOR, markersize=16, markeredgecolor=canvas.INK, zorder=4)
        chart.plot(*goal, "o", markersize=22, clip_on=False, zorder=5, mfc="none", mec=canvas.INK, mew=3.0)
        chart.set_title(f"{math.dist(move, goal):.1f} mm apart", fontsize=canvas.TITLE_SIZE, fontweight="bold")
        return figure

    left, right, bottom, top = at.extent
    middle = ((left + right) / 2, (bottom + top) / 2)
    controls: dict[str, Control] = {"point": Click((left, bottom), (right, top), middle)}
    return render, controls


def _nearest(at: Plane, point: tuple[float, float], steps: list[float], control: tuple[int, ...]) -> list[int]:
    """The control point nearest to a point of the picture."""
    place = [0, 0]
    for a, sign, line, mm, size in zip(at.axes, at.signs, at.centers, point, at.spacing, strict=True):
        voxel = (mm - line[0]) / size
        voxel = voxel if sign > 0 else len(line) - 1 - voxel
        place[a] = min(max(round(voxel / steps[a]), 0), control[a] - 1)
    return place


def _turned(at: Plane, patch: Tensor) -> np.ndarray:
    """Costs of a patch as the picture runs: rows go up, columns across."""
    if at.axes[0] < at.axes[1]:
        patch = patch.T
    turned = [row for row, sign in ((0, at.signs[1]), (1, at.signs[0])) if sign < 0]
    return torch.flip(patch, turned).cpu().numpy()


__all__ = ["cost_dial"]
