"""What the views of maps share: graph paper on a 2-D grid, and a chart right of a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from torch import Tensor

from .. import field, plot
from ..grid import Axes, Grid, require_on_grid
from ..plot import canvas
from ..plot.planes import Plane, plane_of

GROUND = "#222222"  # under graph paper
LINES = 10  # of the paper, along its longer side
CHART_IN = 5.5  # room for a chart right of a picture, inches


def plane(grid: Grid, **tensors: Tensor) -> Plane:
    """The one slice of a 2-D grid that holds all these tensors."""
    if grid.dim != 2:
        raise ValueError(f"graph paper is drawn on a 2-D grid; got {grid.dim}-D {grid.shape}. Cut a slice first.")
    for name, each in tensors.items():
        require_on_grid(each, grid, name)
    return plane_of(torch.zeros(1, 1, *grid.shape), grid)


def length_mm(ddf: Tensor, grid: Grid) -> Tensor:
    """How far each voxel moves, (1, 1, *s) mm."""
    return field.magnitude(field.convert_ddf(ddf, grid, to=Axes.WORLD, from_=Axes.VOXEL))


def draw_paper(
    panel: Panel, at: Plane, ddf: Tensor, *, image: Tensor | None = None, truth: Tensor | None = None
) -> None:
    """Graph paper, over the image it reads or on a dark ground; dashed, where it should have come out."""
    panel.set_facecolor(GROUND)
    plot.draw_warped_grid(panel, at, ddf, image=image, lines=LINES)
    if truth is not None:
        canvas.lattice(panel, at.nodes(truth), truth=True, lines=LINES)
        canvas.note(panel, "dashed: truth", right=True)


def chart_beside(figure: Figure, panel: Panel, title: str, across: str, up: str) -> Panel:
    """A chart in the room that CHART_IN keeps right of a panel."""
    box, width = panel.get_position(), figure.get_size_inches()[0]
    chart = figure.add_axes((box.x1 + 1.0 / width, box.y0, (CHART_IN - 1.15) / width, box.height))
    chart.set_title(title, fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")
    chart.set_xlabel(across, fontsize=canvas.TEXT_SIZE, color=canvas.INK, labelpad=2)
    chart.set_ylabel(up, fontsize=canvas.TEXT_SIZE, color=canvas.INK)
    chart.tick_params(labelsize=canvas.TEXT_SIZE)
    chart.spines[["top", "right"]].set_visible(False)
    return chart


def draw_joint(panel: Panel, fixed: Tensor, warped: Tensor, bins: int, title: str) -> None:
    """How often each pair of intensities meets, on a log scale of gray."""
    f, w = (image.flatten().double().cpu().numpy() for image in (fixed, warped))
    count, across, up = np.histogram2d(f, w, bins=bins)
    panel.pcolormesh(across, up, np.log1p(count).T, cmap="Greys")
    panel.set_title(title, fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")
    panel.set_xlabel("intensity, fixed", fontsize=canvas.TEXT_SIZE, color=canvas.FIXED_COLOR, fontweight="bold")
    panel.set_ylabel("intensity, moving", fontsize=canvas.TEXT_SIZE, color=canvas.WARPED_COLOR, fontweight="bold")
    panel.tick_params(labelsize=canvas.TEXT_SIZE)
    panel.locator_params(nbins=5)


def ring(chart: Panel, x: float, y: float) -> None:
    """A ring around the present state's point on a chart."""
    look: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": canvas.INK, "markeredgewidth": 3.0}
    chart.plot([x], [y], "o", markersize=18, zorder=6, clip_on=False, **look)
