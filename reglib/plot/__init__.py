"""Figures of images, fields and histories. Each function returns a new `Figure` and shows nothing.

Convention:
    Neurological: the reader's left is the subject's left; the letters at the edges of a picture (L R, A P, S I) say
    so. Axes are in mm along the image's own grid, equal to the world's where the grid is not oblique; on an oblique
    grid the slices are the grid's own, closest to axial, coronal and sagittal.
    Images are (1, 1, *s), a ddf is (1, d, *s) in voxels, in 2-D and 3-D. In 3-D a figure shows one slice, by default
    through the middle of the nonzero voxels; `plane` chooses the direction, `world` a point in mm that it contains.
    Fixed, moving and warped images keep FIXED_COLOR, MOVING_COLOR and WARPED_COLOR; truth is dashed; folds, where a
    map's Jacobian is not positive, are FOLD_COLOR. Before and after share slice and window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from torch import Tensor

from ..grid import Grid, require_on_grid
from . import canvas
from .canvas import FIXED_COLOR, FOLD_COLOR, MOVING_COLOR, TRUTH_STYLE, WARPED_COLOR
from .planes import PLANE_NAMES, Plane, PlaneName, Window, frame_of, middle, plane_of, voxel_at, window

Image = Float[Tensor, "1 1 *s"]
Point = Sequence[float]


# -- two images -----------------------------------------------------------------------------------------------
def pair(
    fixed: Image,
    moving: Float[Tensor, "1 1 *m"],
    grid: Grid,
    *,
    warped: Image | None = None,
    moving_grid: Grid | None = None,
    plane: PlaneName = "axial",
    world: Point | None = None,
) -> Figure:
    """The fixed and the moving image beside each other, then the warped one; moving and warped share their window.

    Args:
        moving_grid: of the moving image, if it is not `grid`: it is drawn in its own millimeters, at the same world
            point if it has it, else through its own middle.
    """
    require_on_grid(fixed, grid, "fixed")
    require_on_grid(moving, moving_grid or grid, "moving")
    here = plane_of(fixed, grid, name=plane, world=world)
    there = here if moving_grid is None else _same_place(here, moving, moving_grid)
    shown = window(moving)
    parts = [(fixed, here, "fixed", FIXED_COLOR, window(fixed)), (moving, there, "moving", MOVING_COLOR, shown)]
    if warped is not None:
        require_on_grid(warped, grid, "warped")
        parts.append((warped, here, "warped", WARPED_COLOR, shown))
    slots = [canvas.slot(p, canvas.titled(name, p), color=color) for _, p, name, color, _ in parts]
    figure, axes = canvas.panels([slots])
    for panel, (image, p, _, _, values) in zip(axes, parts, strict=True):
        canvas.gray(panel, p, p.cut(image), values)
    return figure


def _same_place(plane: Plane, image: Tensor, grid: Grid) -> Plane:
    try:
        return plane_of(image, grid, name=plane.name, world=plane.world())
    except ValueError:  # two scans whose headers share no world: each shows its own middle
        return plane_of(image, grid, name=plane.name)


def overlay(
    fixed: Image,
    warped: Image,
    grid: Grid,
    *,
    before: Image | None = None,
    name: str = "warped",
    plane: PlaneName = "axial",
    world: Point | None = None,
) -> Figure:
    """Both images as light of complementary colors: gray where they agree, colored where only one is bright.

    Args:
        before: the moving image on `grid`, not yet warped; drawn first, in the window of `warped`.
        name: what the second image is called; "moving" where it is not warped yet.
    """
    return _compare(fixed, warped, grid, before, canvas.blended, name=name, plane=plane, world=world)


def checkerboard(
    fixed: Image,
    warped: Image,
    grid: Grid,
    *,
    before: Image | None = None,
    tiles: int = 8,
    plane: PlaneName = "axial",
    world: Point | None = None,
) -> Figure:
    """Square tiles of both images in turn, `tiles` along the longer side: edges should run on from tile to tile.

    Args: before: as for `overlay`.
    """
    draw = partial(canvas.checkers, tiles=tiles)
    return _compare(fixed, warped, grid, before, draw, plane=plane, world=world)


def _compare(
    fixed: Tensor,
    warped: Tensor,
    grid: Grid,
    before: Tensor | None,
    draw: Callable[[Panel, Plane, np.ndarray, np.ndarray], object],
    *,
    name: str = "warped",
    plane: PlaneName,
    world: Point | None,
) -> Figure:
    """One panel for each of before, after; `draw` gets the slices of both images, scaled to [0, 1]."""
    images = {f"fixed and {name}": warped} if before is None else {"before": before, "after": warped}
    for role, image in {"fixed": fixed, name: warped, **images}.items():
        require_on_grid(image, grid, role)
    here, shown = plane_of(fixed, grid, name=plane, world=world), window(warped)
    figure, axes = canvas.panels([[canvas.slot(here, canvas.titled(title, here)) for title in images]])
    light = canvas.scaled(here.cut(fixed), window(fixed))
    for panel, (title, image) in zip(axes, images.items(), strict=True):
        draw(panel, here, light, canvas.scaled(here.cut(image), shown))
        canvas.name_both(panel, "fixed", "moving" if title == "before" else name)
    return figure


# -- one image ------------------------------------------------------------------------------------------------
def contours(
    image: Image,
    labels: Shaped[Tensor, "1 c *s"],
    grid: Grid,
    *,
    other: Shaped[Tensor, "1 e *s"] | None = None,
    names: Mapping[int, str] | None = None,
    plane: PlaneName = "axial",
    world: Point | None = None,
) -> Figure:
    """Contours of labels on the gray image, one color a label.

    Args:
        labels: whole numbers, 0 is background; or one structure a channel.
        other: the labels that should have come out, dashed.
        names: of the labels, written beside the picture.
    """
    require_on_grid(image, grid, "image")
    require_on_grid(labels, grid, "labels")
    here = plane_of(image, grid, name=plane, world=world)
    slot = canvas.slot(here, canvas.titled("labels", here), right=canvas.legend_inches(names or {}))
    figure, (panel,) = canvas.panels([[slot]])
    canvas.gray(panel, here, here.cut(image), window(image), dim=True)
    canvas.outlines(panel, here, labels)
    if other is not None:
        require_on_grid(other, grid, "other")
        canvas.outlines(panel, here, other, truth=True)
        canvas.note(panel, "dashed: truth", right=True)
    canvas.legend(panel, names or {})
    return figure


def slices(
    image: Image,
    grid: Grid,
    *,
    labels: Shaped[Tensor, "1 c *s"] | None = None,
    world: Point | None = None,
    shown: Window | None = None,
) -> Figure:
    """The three planes through a world point (mm), with a crosshair there; in 2-D the one there is.

    Args:
        labels: drawn as contours.
        world: default the middle of the nonzero voxels.
        shown: intensities drawn black and white; default `window(image)`.
    """
    require_on_grid(image, grid, "image")
    frame = frame_of(grid)
    mm = frame.mm(middle(image) if world is None else voxel_at(world, grid))
    names = PLANE_NAMES if grid.dim == 3 else PLANE_NAMES[:1]
    planes = [plane_of(image, grid, name=name, world=frame.world(mm)) for name in names]
    figure, axes = canvas.panels([[canvas.slot(p, canvas.titled(p.name, p)) for p in planes]])
    for panel, at in zip(axes, planes, strict=True):
        canvas.gray(panel, at, at.cut(image), shown or window(image), dim=labels is not None)
        if labels is not None:
            canvas.outlines(panel, at, labels)
        canvas.crosshair(panel, at, mm)
    return figure


# -- fields ---------------------------------------------------------------------------------------------------
def warped_grid(
    ddf: Float[Tensor, "1 d *s"],
    grid: Grid,
    *,
    image: Image | None = None,
    truth: Float[Tensor, "1 d *s"] | None = None,
    plane: PlaneName = "axial",
    world: Point | None = None,
) -> Figure:
    """Graph paper on the fixed grid, each point p drawn where the map takes it, p + ddf[p]; folds in FOLD_COLOR.

    In 3-D it is one slice of the paper, seen from above; folds count all three axes.

    Args:
        image: drawn below; the moving image (on `grid`) fits, as that is where the points are read.
        truth: the field that should have come out, dashed.
    """
    require_on_grid(ddf, grid, "ddf")
    here = plane_of(ddf if image is None else image, grid, name=plane, world=world)
    figure, (panel,) = canvas.panels([[canvas.slot(here, canvas.titled("warped grid", here))]])
    draw_warped_grid(panel, here, ddf, image=image, lines=26 if truth is None else 13)
    if truth is not None:
        require_on_grid(truth, grid, "truth")
        canvas.lattice(panel, here.nodes(truth), truth=True, lines=13)
        canvas.note(panel, "dashed: truth", right=True)
    return figure


def draw_warped_grid(panel: Panel, at: Plane, ddf: Tensor, *, image: Tensor | None = None, lines: int = 26) -> None:
    """The lattice and folds of `warped_grid` on a panel of another figure."""
    if image is not None:
        canvas.gray(panel, at, at.cut(image), window(image), dim=True)
    nodes = at.nodes(ddf)
    canvas.lattice(panel, nodes, lines=lines)
    canvas.folded(panel, nodes, at.determinant(ddf) <= 0)


def quiver(
    ddf: Float[Tensor, "1 d *s"],
    grid: Grid,
    image: Image | None = None,
    *,
    arrows: int = 20,
    plane: PlaneName = "axial",
    world: Point | None = None,
) -> Figure:
    """Arrows from p to p + ddf[p], where the moving image is read, true to scale, about `arrows` along the longer side.

    Color is the length in mm with all axes counted; the arrow shows what lies in the plane.

    Args: image: drawn below, on `grid`.
    """
    require_on_grid(ddf, grid, "ddf")
    here = plane_of(ddf if image is None else image, grid, name=plane, world=world)
    figure, (panel,) = canvas.panels([[canvas.slot(here, canvas.titled("displacement", here), right=canvas.BAR_IN)]])
    if image is not None:
        require_on_grid(image, grid, "image")
        canvas.gray(panel, here, here.cut(image), window(image), dim=True)
    length = np.sqrt(sum((here.cut(ddf, channel=k) * step) ** 2 for k, step in enumerate(grid.spacing)))
    picked = canvas.sparse(here, arrows)
    starts, moves = (field[:, *picked].reshape(2, -1) for field in (here.nodes(), here.vectors(ddf)))
    drawn = canvas.arrows(panel, starts, moves, length[picked].ravel(), largest=float(length.max()) or 1.0)
    canvas.color_bar(panel, drawn, "displacement [mm]")
    return figure


def jacobian_map(
    ddf_or_det: Float[Tensor, "1 c *s"],
    grid: Grid,
    *,
    plane: PlaneName = "axial",
    world: Point | None = None,
) -> Figure:
    """Local change of volume, det(I + grad u), on a log scale centered at 1; folds (at or below 0) in FOLD_COLOR.

    Args: ddf_or_det: a ddf (1, d, *s), or its determinant (1, 1, *s).
    """
    require_on_grid(ddf_or_det, grid, "ddf_or_det")
    here = plane_of(ddf_or_det, grid, name=plane, world=world)
    figure, (panel,) = canvas.panels([[canvas.slot(here, canvas.titled("Jacobian", here), right=canvas.BAR_IN)]])
    draw_jacobian(panel, here, ddf_or_det)
    return figure


def draw_jacobian(panel: Panel, at: Plane, ddf_or_det: Tensor) -> None:
    """The picture of `jacobian_map` with its color bar on a panel of another figure."""
    determinant = at.cut(ddf_or_det) if ddf_or_det.shape[1] == 1 else at.determinant(ddf_or_det)
    canvas.ratio_bar(panel, canvas.ratios(panel, at, determinant))
    if folds := int((determinant <= 0).sum()):
        canvas.note(panel, f"folds: {folds} voxels", color=FOLD_COLOR, right=True)


def error_map(
    error_mm: Image,
    grid: Grid,
    *,
    largest_mm: float | None = None,
    plane: PlaneName = "axial",
    world: Point | None = None,
) -> Figure:
    """How far off each voxel is, in mm.

    Args: largest_mm: end of the color scale, to compare figures; default the largest error of the slice.
    """
    require_on_grid(error_mm, grid, "error_mm")
    here = plane_of(error_mm, grid, name=plane, world=world)
    figure, (panel,) = canvas.panels([[canvas.slot(here, canvas.titled("error", here), right=canvas.BAR_IN)]])
    values = here.cut(error_mm)
    drawn = canvas.amounts(panel, here, values, float(values.max()) if largest_mm is None else largest_mm)
    canvas.color_bar(panel, drawn, "error [mm]")
    return figure


# -- registration ---------------------------------------------------------------------------------------------
def curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Every term of the objective against the step, all levels in a row, every other level shaded.

    Args: history: one record a step, `Registration.history`: the terms, and `level`, the factor it was coarser by.

    Raises: ValueError for a history without steps.
    """
    terms = [name for name in history[0] if name not in ("level", "step")] if history else []
    if not terms:
        raise ValueError("history must hold a record of at least one term for each step; got none. Did no step run?")
    figure = Figure(figsize=(canvas.WIDTH_IN, 3.8), dpi=canvas.DPI)
    axes = figure.subplots(1, len(terms), squeeze=False)[0]
    figure.subplots_adjust(left=0.08, right=0.985, bottom=0.19, top=0.88, wspace=0.32)
    levels = [record.get("level", 1) for record in history]
    starts = [k for k in range(len(levels)) if k == 0 or levels[k] != levels[k - 1]]
    for panel, term in zip(axes, terms, strict=True):
        canvas.curve(panel, term, [record.get(term, np.nan) for record in history])
        canvas.shade(panel, [*starts, len(levels)], [levels[k] for k in starts] if "level" in history[0] else [])
    return figure


def landscape(
    curves: Mapping[str, Sequence[float]],
    offsets: Sequence[float],
    *,
    unit: str = "mm",
    captured: Mapping[str, float] | None = None,
) -> Figure:
    """Each loss against the distance from the truth, on its own scale, four in a row; the truth is dashed.

    Args:
        curves: of each name, a value for every offset.
        captured: how far from the truth all slopes point home; shaded, and written above the curve.
    """
    if not curves or any(len(values) != len(offsets) for values in curves.values()):
        raise ValueError(f"curves must hold {len(offsets)} values each, one an offset, and not be empty.")
    rows = -(-len(curves) // 4)
    figure = Figure(figsize=(canvas.WIDTH_IN, 0.6 + 2.3 * rows), dpi=canvas.DPI)
    axes = figure.subplots(rows, 4, squeeze=False, sharex=True)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.6 / (0.6 + 2.3 * rows), top=0.93, wspace=0.08, hspace=0.32)
    for panel, (name, values) in zip(axes.flat, curves.items(), strict=False):
        reach = None if captured is None else captured[name]
        _valley(panel, name, offsets, values, reach=reach, unit=unit)
    for panel in list(axes.flat)[len(curves) :]:
        panel.set_visible(False)
    figure.supxlabel(f"off the truth by [{unit}]", fontsize=canvas.TEXT_SIZE, color=canvas.INK, y=0.01)
    return figure


def _valley(
    panel: Panel, name: str, offsets: Sequence[float], values: Sequence[float], *, reach: float | None, unit: str
) -> None:
    """One panel of `landscape`."""
    if reach is not None:
        panel.axvspan(-reach, reach, color="#cfe3f7", zorder=0)
    panel.axvline(0, color=canvas.INK, linewidth=1.8, linestyle=TRUTH_STYLE, zorder=1)
    panel.plot(offsets, values, color=WARPED_COLOR, linewidth=3)
    words = name if reach is None else f"{name}: {reach:.0f} {unit}"
    color = FOLD_COLOR if reach == 0 else canvas.INK
    panel.set_title(words, fontsize=canvas.TITLE_SIZE, color=color, fontweight="bold")
    panel.set_yticks([])
    panel.tick_params(labelsize=canvas.TEXT_SIZE)
    panel.locator_params(axis="x", nbins=5, prune="both")
    panel.margins(x=0, y=0.08)


def registration(
    fixed: Image, moving_on_fixed: Image, warped: Image, ddf: Float[Tensor, "1 d *s"], grid: Grid
) -> Figure:
    """A registration at a glance, all on one slice: before (overlay, fixed, moving), after (overlay, grid, Jacobian).

    Args: moving_on_fixed: the moving image resampled on `grid`; `warped` is drawn in its window.
    """
    images = {"fixed": fixed, "moving_on_fixed": moving_on_fixed, "warped": warped, "ddf": ddf}
    for name, image in images.items():
        require_on_grid(image, grid, name)
    here, shown = plane_of(fixed, grid), window(moving_on_fixed)
    figure, axes = canvas.panels(_overview(here))
    light = canvas.scaled(here.cut(fixed), window(fixed))
    for panel, image, name in ((axes[0], moving_on_fixed, "moving"), (axes[3], warped, "warped")):
        canvas.blended(panel, here, light, canvas.scaled(here.cut(image), shown))
        canvas.name_both(panel, "fixed", name)
    canvas.gray(axes[1], here, here.cut(fixed), window(fixed))
    canvas.gray(axes[2], here, here.cut(moving_on_fixed), shown)
    draw_warped_grid(axes[4], here, ddf, image=moving_on_fixed)
    draw_jacobian(axes[5], here, ddf)
    return figure


def _overview(here: Plane) -> list[list[canvas.Slot]]:
    fixed = canvas.slot(here, canvas.titled("fixed", here), color=FIXED_COLOR)
    before = [canvas.slot(here, "before"), fixed, canvas.slot(here, "moving", color=MOVING_COLOR)]
    after = [
        canvas.slot(here, "after"),
        canvas.slot(here, "warped grid"),
        canvas.slot(here, "Jacobian", right=canvas.BAR_IN),
    ]
    return [before, after]


__all__ = [
    "FIXED_COLOR",
    "FOLD_COLOR",
    "MOVING_COLOR",
    "TRUTH_STYLE",
    "WARPED_COLOR",
    "PlaneName",
    "Window",
    "checkerboard",
    "contours",
    "curves",
    "error_map",
    "jacobian_map",
    "landscape",
    "overlay",
    "pair",
    "quiver",
    "registration",
    "slices",
    "warped_grid",
    "window",
]
