"""Views of scans that differ in more than place: what their intensities have in common, and which loss finds it."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from torch import Tensor

from .. import plot
from ..field import warp
from ..grid import Grid
from ..plot import canvas
from .bending import Bend
from .controls import Choice
from .paper import CHART_IN, chart_beside, draw_joint, draw_paper, plane
from .views import State, View

Image = Float[Tensor, "1 1 *s"]
Ddf = Float[Tensor, "1 2 *s"]
BINS = 40  # of the joint histogram, each way
AIR = 0.02  # intensity up to which a voxel of the fixed image is left out of it


def contrast_dial(fixed: Image, aligned: Mapping[str, Image], grid: Grid) -> View:
    """Choose a contrast: both images where they belong together, and which intensities meet in the head.

    Args: aligned: of each contrast, the moving image as the true map would warp it.
    """
    if not aligned:
        raise ValueError("give at least one contrast; got none.")
    at = plane(grid, fixed=fixed, **aligned)
    head = fixed > AIR

    def render(state: State) -> Figure:
        image = aligned[state["contrast"]]
        slots = [
            canvas.slot(at, "fixed", color=canvas.FIXED_COLOR),
            canvas.slot(at, "moving, true map", color=canvas.MOVING_COLOR, right=CHART_IN),
        ]
        figure, panels = canvas.panels([slots])
        canvas.gray(panels[0], at, at.cut(fixed), plot.window(fixed))
        canvas.gray(panels[1], at, at.cut(image), plot.window(image))
        chart = chart_beside(figure, panels[1], "", "", "")
        draw_joint(chart, fixed[head], image[head], BINS, "voxels of the head")
        chart.yaxis.label.set_color(canvas.MOVING_COLOR)
        return figure

    return render, {"contrast": Choice((*aligned,), next(iter(aligned)))}


def loss_race(
    movings: Mapping[str, Image],
    found: Mapping[str, Mapping[str, Bend]],
    grid: Grid,
    *,
    labels: Shaped[Tensor, "1 1 *s"],
    truth: Ddf,
) -> View:
    """Choose a contrast and a loss: the warped image under the fixed outlines, and its graph paper on the truth.

    Args:
        found: of each contrast, of each loss, what was found, with its error.
        labels: of the fixed image, their outlines dashed.
    """
    names = {frozenset(each) for each in found.values()}
    if set(movings) != set(found) or len(names) != 1 or not next(iter(names)):
        raise ValueError("every contrast must hold what the same losses found, at least one, and an image of its own.")
    at = plane(grid, truth=truth, labels=labels, **movings)

    def render(state: State) -> Figure:
        moving, bend = movings[state["contrast"]], found[state["contrast"]][state["loss"]]
        slots = [
            canvas.slot(at, "warped", color=canvas.WARPED_COLOR),
            canvas.slot(at, f"{bend.error_mm or 0:.1f} mm off"),
        ]
        figure, panels = canvas.panels([slots])
        canvas.gray(panels[0], at, at.cut(warp(moving, bend.ddf, padding="zeros")), plot.window(moving))
        canvas.outlines(panels[0], at, labels, truth=True)
        draw_paper(panels[1], at, bend.ddf, truth=truth)
        return figure

    losses = next(iter(found.values()))
    return render, {
        "contrast": Choice((*found,), next(iter(found))),
        "loss": Choice((*losses,), next(iter(losses))),
    }


__all__ = ["contrast_dial", "loss_race"]
