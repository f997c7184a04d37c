"""The visual language and the parts of every figure: panels of exact size, images, colors, contours, lattices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes as Panel
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.quiver import Quiver
from torch import Tensor

from .planes import LETTERS, WORLD_AXES, Plane, Window

# -- the visual language; red-blind and green-blind readers can tell it apart too (tested) -------------------------
FIXED_COLOR = "#0080ff"
WARPED_COLOR = "#ff8000"  # the complement of fixed: equal amounts of both are gray
MOVING_COLOR = "#00795a"
FOLD_COLOR = "#ff00ff"  # the loud one, unlike every gray, ratio and lattice for every reader
MARK_COLOR = "#ffe100"  # crosshairs and clicked points
TRUTH_STYLE = (0, (3.0, 1.6))  # dashed in every chapter
TRUTH_COLOR = "#ffffff"
LABEL_COLORS = ("#ffcc00", "#19c3ff", "#ff5c9a", "#4fd13c", "#a98bff", "#ff6a2b", "#00d6b0", "#d9d26a")
RATIO_COLORS = "BrBG_r"
RATIO_TICKS = {1.25: (1.1, 1.25), 1.5: (1.2, 1.5), 2.0: (1.4, 2.0), 3.0: (1.7, 3.0), 5.0: (2.0, 5.0), 10.0: (3.0, 10.0)}
AMOUNT_COLORS = "viridis"
INK = "#222222"
HALO = [withStroke(linewidth=2.5, foreground="black")]
TITLE_SIZE, TEXT_SIZE, LETTER_SIZE = 16, 13, 15  # points
WIDTH_IN, PANEL_IN, DPI = 11.0, 4.3, 100  # widest figure and tallest panel, inches
LEFT_IN, GAP_IN, BAR_IN, ABOVE_IN, BELOW_IN = 0.8, 0.14, 1.15, 0.42, 0.62  # around a panel
LETTER_IN = 0.15  # from a panel's edge to the middle of its letter
EDGE_IN, WORDS_IN = 0.05, 3.4  # right of a panel, without and with a table


# -- panels ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Slot:
    """Room for one picture.

    Args:
        extent: left, right, bottom, top in the picture's units; all slots of a figure share one scale.
        color: of the title and, unless it is INK, of the frame.
        labels: names of the axes across and up; an empty one also hides the numbers.
        right: inches kept free at the right, for a color bar (BAR_IN) or words.
        letters: of the edges left, right, bottom, top.
    """

    extent: tuple[float, float, float, float]
    title: str = ""
    color: str = INK
    labels: tuple[str, str] = ("", "")
    right: float = EDGE_IN
    letters: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in the picture's units."""
        left, right, bottom, top = self.extent
        return right - left, top - bottom


def slot(plane: Plane, title: str = "", *, color: str = INK, right: float = EDGE_IN) -> Slot:
    """Room for a slice, with its millimeters and orientation letters."""
    across, up = WORLD_AXES[plane.name][:2]
    letters = (*LETTERS[across], *LETTERS[up])
    return Slot(plane.extent, title, color, plane.labels, right, letters)


def titled(name: str, plane: Plane) -> str:
    """A name and where the slice is."""
    return f"{name}, {plane.position}" if plane.position else name


def panels(rows: Sequence[Sequence[Slot]]) -> tuple[Figure, list[Panel]]:
    """A figure with these slots, row by row in aligned columns, as large as WIDTH_IN and PANEL_IN allow.

    Neighbors in a row that share their vertical axis, and rows that share their horizontal one, name it once.
    """
    columns = [[row[k] for row in rows if k < len(row)] for k in range(max(map(len, rows)))]
    before = np.array([max(LEFT_IN if _names_up(row, k) else GAP_IN for row in rows) for k in range(len(columns))])
    after = np.array([max(s.right for s in column) for column in columns])
    below = np.array([BELOW_IN if _names_across(rows, k) else GAP_IN for k in range(len(rows))])
    widths = np.array([max(s.size[0] for s in column) for column in columns])
    heights = np.array([max(s.size[1] for s in row) for row in rows])
    limit = PANEL_IN if len(rows) == 1 else PANEL_IN * 0.8
    scale = min((WIDTH_IN - before.sum() - after.sum()) / widths.sum(), limit / heights.max())  # inches per unit
    lefts = np.cumsum(before + after + widths * scale) - after - widths * scale
    bottoms = np.cumsum((below + ABOVE_IN + heights * scale)[::-1])[::-1] - ABOVE_IN - heights * scale
    size = lefts[-1] + widths[-1] * scale + after[-1], bottoms[0] + heights[0] * scale + ABOVE_IN
    figure = Figure(figsize=tuple(np.ceil(np.array(size) * DPI - 1e-6) / DPI), dpi=DPI)  # whole pixels
    axes = []
    for j, row in enumerate(rows):
        for k, item in enumerate(row):
            corner = lefts[k], bottoms[j] + (heights[j] - item.size[1]) * scale  # titles stand in line
            panel = _panel(figure, item, (*corner, item.size[0] * scale, item.size[1] * scale))
            _name_axes(panel, item, across=_names_across(rows, j), up=_names_up(row, k))
            axes.append(panel)
    return figure, axes


def _names_up(row: Sequence[Slot], k: int) -> bool:
    """Whether slot k shows its vertical axis: not if its left neighbor shows the same."""
    if k >= len(row) or not row[k].labels[1]:
        return False
    return k == 0 or (row[k].labels[1], row[k].extent[2:]) != (row[k - 1].labels[1], row[k - 1].extent[2:])


def _names_across(rows: Sequence[Sequence[Slot]], j: int) -> bool:
    """Whether row j shows its horizontal axes: not if the row below shows the same."""
    here = [(item.labels[0], item.extent[:2]) for item in rows[j]]
    return any(name for name, _ in here) and (
        j + 1 == len(rows) or here != [(item.labels[0], item.extent[:2]) for item in rows[j + 1]]
    )


def _panel(figure: Figure, item: Slot, box: tuple[float, float, float, float]) -> Panel:
    """Axes at a box in inches, with title, frame and letters, and no ticks."""
    width, height = figure.get_size_inches()
    panel = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    panel.set(xlim=item.extent[:2], ylim=item.extent[2:], aspect="equal", xticks=[], yticks=[], autoscale_on=False)
    panel.set_title(item.title, fontsize=TITLE_SIZE, color=item.color, fontweight="bold")
    framed = item.color != INK
    for spine in panel.spines.values():
        spine.set(color=item.color if framed else "#888888", linewidth=3.0 if framed else 0.8, zorder=5)
    dx, dy = LETTER_IN / box[2], LETTER_IN / box[3]
    for (x, y), letter in zip(((dx, 0.5), (1 - dx, 0.5), (0.5, dy), (0.5, 1 - dy)), item.letters, strict=False):
        write(panel, x, y, letter, size=LETTER_SIZE, weight="bold")
    return panel


def _name_axes(panel: Panel, item: Slot, *, across: bool, up: bool) -> None:
    left, right, bottom, top = item.extent
    inches = _inches(panel) * (panel.get_position().width, panel.get_position().height)
    if across:
        panel.set_xticks(nice_ticks(left, right, inches[0] / 0.65))
        panel.set_xlabel(item.labels[0], fontsize=TEXT_SIZE, color=INK, labelpad=2)
    if up:
        panel.set_yticks(nice_ticks(bottom, top, inches[1] / 0.6))
        panel.set_ylabel(item.labels[1], fontsize=TEXT_SIZE, color=INK, labelpad=0)
    panel.tick_params(labelsize=TEXT_SIZE, color=INK, labelcolor=INK)


def _inches(panel: Panel) -> np.ndarray:
    """Width and height of a panel's figure."""
    return np.asarray(panel.figure.bbox.size) / panel.figure.dpi


def nice_ticks(low: float, high: float, most: float) -> list[float]:
    """At most so many round numbers between two others."""
    rough = (high - low) / max(most, 1.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def write(panel: Panel, x: float, y: float, words: str, **look: Any) -> None:
    """White words with a dark edge, centered at a place given as fractions of the panel."""
    style: dict[str, Any] = {"color": "white", "ha": "center", "va": "center", "zorder": 6} | look
    panel.text(x, y, words, transform=panel.transAxes, path_effects=HALO, **style)


def note(panel: Panel, words: str, *, color: str = "white", right: bool = False) -> None:
    """Words on a dark ground in an upper corner."""
    look: dict[str, Any] = {"color": color, "size": TEXT_SIZE, "weight": "bold", "va": "top", "zorder": 6}
    ground = {"facecolor": "black", "alpha": 0.65, "edgecolor": "none", "pad": 2.0}
    place = (0.985, 0.985, "right") if right else (0.015, 0.985, "left")
    panel.text(*place[:2], words, transform=panel.transAxes, ha=place[2], bbox=ground, **look)


# -- layers ---------------------------------------------------------------------------------------------------
def gray(
    panel: Panel, plane: Plane, values: np.ndarray, shown: Window, *, dim: bool = False, sharp: bool = False
) -> AxesImage:
    """An image in gray.

    Args:
        shown: values drawn black and white.
        dim: draw it darker, as a ground for lines.
        sharp: leave every voxel its square, whatever the size.
    """
    if dim:
        shown = shown[0], shown[0] + 1.6 * (shown[1] - shown[0])
    look = "nearest" if sharp else "antialiased"
    return _image(panel, plane, values, cmap="gray", norm=Normalize(*shown), interpolation=look)


def _image(panel: Panel, plane: Plane, values: np.ndarray, **look: Any) -> AxesImage:
    picture = AxesImage(panel, extent=plane.extent, origin="lower", **look)
    picture.set_data(values)
    picture.set_clip_path(panel.patch)
    panel.add_image(picture)
    return picture


def scaled(values: np.ndarray, shown: Window) -> np.ndarray:
    """Intensities as fractions of a window, in [0, 1]."""
    return np.clip((values - shown[0]) / (shown[1] - shown[0]), 0, 1)


def blended(panel: Panel, plane: Plane, fixed: np.ndarray, warped: np.ndarray) -> AxesImage:
    """Two images in [0, 1] as light of complementary colors: where they agree, gray."""
    light = fixed[..., None] * to_rgb(FIXED_COLOR) + warped[..., None] * to_rgb(WARPED_COLOR)
    return _image(panel, plane, np.clip(light, 0, 1), interpolation="antialiased")


def checkers(panel: Panel, plane: Plane, fixed: np.ndarray, warped: np.ndarray, tiles: int) -> AxesImage:
    """Two images in [0, 1] in square tiles, `tiles` along the longer side, each with a tint of its color."""
    left, right, bottom, top = plane.extent
    side = max(right - left, top - bottom) / tiles
    x, y = plane.centers
    odd = (np.floor((x - left) / side)[None, :] + np.floor((y - bottom) / side)[:, None]) % 2 == 1
    tints = [0.2 * np.array(to_rgb(color)) + 0.8 for color in (FIXED_COLOR, WARPED_COLOR)]
    light = np.where(odd[..., None], warped[..., None] * tints[1], fixed[..., None] * tints[0])
    return _image(panel, plane, light, interpolation="antialiased")


def differences(panel: Panel, plane: Plane, values: np.ndarray, largest: float) -> AxesImage:
    """Signed differences: where warped is brighter its color, where fixed is brighter the fixed one's."""
    colors = LinearSegmentedColormap.from_list("difference", [FIXED_COLOR, "white", WARPED_COLOR])
    return _image(panel, plane, values, cmap=colors, norm=Normalize(-largest, largest), interpolation="antialiased")


def amounts(panel: Panel, plane: Plane, values: np.ndarray, largest: float) -> AxesImage:
    """Numbers from 0 to `largest` in color."""
    norm = Normalize(0, largest if largest > 0 else 1.0)
    return _image(panel, plane, values, cmap=AMOUNT_COLORS, norm=norm, interpolation="nearest")


def name_both(panel: Panel, first: str, second: str) -> None:
    """Name the two colors of an overlay in its upper corners."""
    note(panel, first, color=FIXED_COLOR)
    note(panel, second, color=WARPED_COLOR, right=True)


def ratios(panel: Panel, plane: Plane, determinant: np.ndarray, largest: float | None = None) -> AxesImage:
    """Changes of volume on a log scale centered at 1; folds, at or below 0, in FOLD_COLOR."""
    largest = largest or ratio_limit(determinant)
    colors = matplotlib.colormaps[RATIO_COLORS].with_extremes(bad=FOLD_COLOR)
    valid = np.ma.masked_where(~(determinant > 0), determinant)
    norm = LogNorm(1 / largest, largest)
    return _image(panel, plane, valid, cmap=colors, norm=norm, interpolation="nearest")


def ratio_limit(determinant: np.ndarray) -> float:
    """A round number that 99 % of the ratios and their inverses stay below."""
    valid = determinant[determinant > 0]
    reached = math.exp(float(np.quantile(np.abs(np.log(valid)), 0.99))) if valid.size else 1.0
    return next((limit for limit in RATIO_TICKS if limit >= reached), 10.0)


def ratio_bar(panel: Panel, picture: AxesImage) -> None:
    """The color bar of `ratios`."""
    upper = RATIO_TICKS[picture.get_clim()[1] or 10.0]
    ticks = [*(1 / t for t in reversed(upper)), 1.0, *upper]
    color_bar(panel, picture, "volume, moving / fixed", [(t, f"×{t:.2g}") for t in ticks])


def color_bar(
    panel: Panel, picture: AxesImage | Quiver, label: str, ticks: Sequence[tuple[float, str]] | None = None
) -> Panel:
    """A color bar with its unit, in the room that `Slot.right` keeps; cheaper than `Figure.colorbar`."""
    figure, box = panel.figure, panel.get_position()
    inch = 1 / _inches(panel)[0]
    bar = figure.add_axes((box.x1 + 0.1 * inch, box.y0, 0.18 * inch, box.height), label="color bar")
    norm, cmap = picture.norm, picture.get_cmap()
    low, high = (float(end or 0.0) for end in picture.get_clim())
    inside = np.linspace(0, 1, 128)
    bar.imshow(cmap(inside)[:, None], extent=(0, 1, 0, 1), origin="lower", aspect="auto", interpolation="bilinear")
    ticks = ticks or [(t, f"{t:g}".replace("-", "−")) for t in nice_ticks(low, high, 5)]
    bar.set_xticks([])
    bar.set_yticks(norm(np.array([t for t, _ in ticks])), [words for _, words in ticks])
    bar.yaxis.tick_right()
    bar.yaxis.set_label_position("right")
    bar.tick_params(labelsize=TEXT_SIZE, color=INK, labelcolor=INK)
    bar.set_ylabel(label, fontsize=TEXT_SIZE, color=INK)
    return bar


def outlines(panel: Panel, plane: Plane, labels: Tensor, *, truth: bool = False) -> None:
    """Contours of a label map (1, 1, *s), or of one structure a channel (1, c, *s); truth is dashed and paler."""
    lines, colors = [], []
    for number, mask in _masks(plane, labels):
        color = np.array(to_rgb(LABEL_COLORS[(number - 1) % len(LABEL_COLORS)]))
        found = _contours(plane, mask)
        lines += found
        colors += [0.4 * color + 0.6 if truth else color] * len(found)
    style = TRUTH_STYLE if truth else "solid"
    panel.add_collection(LineCollection(lines, colors=colors, linewidths=2.0 if truth else 1.8, linestyles=[style]))


def _contours(plane: Plane, mask: np.ndarray) -> list[np.ndarray]:
    """Closed lines (k, 2) in mm around a mask (h, w), halfway between voxel centers inside and outside."""
    from skimage.measure import find_contours

    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return []
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = plane.centers[0][columns[0]], plane.centers[1][rows[0]]
    found = find_contours(np.pad(box, 1).astype(np.float32), 0.5)  # (k, 2) row, column
    return [(line[:, ::-1] - 1) * plane.spacing + corner for line in found]


def _masks(plane: Plane, labels: Tensor) -> list[tuple[int, np.ndarray]]:
    if labels.shape[1] > 1:
        return [(k + 1, plane.cut(labels, channel=k) > 0.5) for k in range(labels.shape[1])]
    values = plane.cut(labels)
    return [(int(label), values == label) for label in np.unique(values) if label != 0]


def lattice(panel: Panel, nodes: np.ndarray, *, truth: bool = False, lines: int = 26) -> None:
    """Lines through the displaced voxels `Plane.nodes`, about so many along the longer side."""
    color, style = (TRUTH_COLOR, TRUTH_STYLE) if truth else (WARPED_COLOR, "solid")
    _, h, w = nodes.shape
    size = np.ptp(nodes[0].mean(0)) / max(w - 1, 1), np.ptp(nodes[1].mean(1)) / max(h - 1, 1)  # mm per voxel
    apart = max(size[0] * w, size[1] * h) / lines
    steps = [max(1, round(apart / s)) if s > 0 else 1 for s in size]
    paths = [nodes[:, :, k].T for k in range((w - 1) % steps[0] // 2, w, steps[0])]
    paths += [nodes[:, k, :].T for k in range((h - 1) % steps[1] // 2, h, steps[1])]
    panel.add_collection(LineCollection(paths, colors=color, linewidths=1.6 if truth else 1.2, linestyles=[style]))


def folded(panel: Panel, nodes: np.ndarray, folds: np.ndarray) -> None:
    """Fill the displaced voxels that fold, (h, w) bool, with the loud color."""
    if not folds.any():
        return
    grown = np.pad(nodes, ((0, 0), (1, 1), (1, 1)), mode="reflect", reflect_type="odd")
    corners = (grown[:, :-1, :-1] + grown[:, 1:, :-1] + grown[:, :-1, 1:] + grown[:, 1:, 1:]) / 4
    around = [corners[:, :-1, :-1], corners[:, :-1, 1:], corners[:, 1:, 1:], corners[:, 1:, :-1]]
    shapes = np.stack([c[:, folds].T for c in around], axis=1)  # (k, 4, 2)
    panel.add_collection(
        PolyCollection(list(shapes), facecolors=FOLD_COLOR, edgecolors=FOLD_COLOR, linewidths=0.8, zorder=3)
    )


def arrows(panel: Panel, starts: np.ndarray, moves: np.ndarray, amounts: np.ndarray, *, largest: float) -> Quiver:
    """Arrows from `starts` (2, k) by `moves` (2, k), true to scale, colored by `amounts` (k,) from 0 to `largest`."""
    scale: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1.0}
    look: dict[str, Any] = {"units": "dots", "width": 2.0, "headwidth": 4.0, "headlength": 4.5, "zorder": 3}
    return panel.quiver(*starts, *moves, amounts, cmap=AMOUNT_COLORS, norm=Normalize(0, largest), **scale, **look)


def arrow(panel: Panel, start: Sequence[float], move: Sequence[float]) -> None:
    """One arrow true to scale, with a dot at its foot."""
    x, y = start
    panel.plot([x], [y], marker="o", markersize=7, color=MARK_COLOR, markeredgecolor="black", zorder=4)
    scale: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "units": "dots", "width": 3.5}
    edge: dict[str, Any] = {"color": MARK_COLOR, "edgecolor": "black", "linewidth": 1.0}
    panel.quiver([x], [y], [move[0]], [move[1]], headwidth=4.5, headlength=4.5, zorder=4, **scale, **edge)


def ring(panel: Panel, point: Sequence[float]) -> None:
    """A ring around a point."""
    for color, width in (("black", 4.5), (MARK_COLOR, 2.5)):
        edge: dict[str, Any] = {"markeredgecolor": color, "markeredgewidth": width}
        panel.plot([point[0]], [point[1]], "o", markersize=15, markerfacecolor="none", zorder=4, **edge)


def flagged(panel: Panel, plane: Plane, mask: np.ndarray, color: str) -> None:
    """Fill the voxels of a mask (h, w) with a color."""
    light = np.zeros((*mask.shape, 4), dtype=np.float32)
    light[mask] = (*to_rgb(color), 1.0)
    _image(panel, plane, light, interpolation="nearest")


def zoom(panel: Panel, plane: Plane, voxel: Sequence[float], point: Sequence[float], *, count: int = 7) -> None:
    """Show at least `count` voxels around one, their edges and centers, and a point (x, y mm).

    The panel keeps its shape; ticks are voxel numbers, as the tensor counts them.
    """
    left, right, bottom, top = plane.extent
    share = count * max(plane.spacing) / min(right - left, top - bottom)
    half = (right - left) * share / 2, (top - bottom) * share / 2
    panel.set(xlim=(voxel[0] - half[0], voxel[0] + half[0]), ylim=(voxel[1] - half[1], voxel[1] + half[1]))
    panel.set_facecolor("#c8d0d8")
    for k, (axis, centers) in enumerate(zip((panel.xaxis, panel.yaxis), plane.centers, strict=True)):
        numbers = np.arange(len(centers))[:: plane.signs[k]]
        seen = np.abs(centers - voxel[k]) <= half[k]
        axis.set_ticks(centers[seen][::2], [str(n) for n in numbers[seen][::2]])
    x, y = (line[np.abs(line - voxel[k]) <= half[k]] for k, line in enumerate(plane.centers))
    _edges(panel, plane)
    panel.plot(*(line.ravel() for line in np.meshgrid(x, y)), ".", color=FIXED_COLOR, markersize=7)
    corner = voxel[0] - plane.spacing[0] / 2, voxel[1] - plane.spacing[1] / 2
    panel.add_patch(Rectangle(corner, *plane.spacing, fill=False, edgecolor=MARK_COLOR, linewidth=3.0, zorder=4))
    panel.plot([point[0]], [point[1]], marker="+", markersize=20, markeredgewidth=3.0, color=WARPED_COLOR, zorder=5)


def _edges(panel: Panel, plane: Plane) -> None:
    left, right, bottom, top = plane.extent
    across = np.arange(len(plane.centers[0]) + 1) * plane.spacing[0] + left
    up = np.arange(len(plane.centers[1]) + 1) * plane.spacing[1] + bottom
    lines = [[(x, bottom), (x, top)] for x in across] + [[(left, y), (right, y)] for y in up]
    panel.add_collection(LineCollection(lines, colors="#5a6672", linewidths=0.8))


def table(panel: Panel, lines: Sequence[tuple[str, str]]) -> None:
    """Names, and below each its value, in WORDS_IN right of the panel."""
    apart = 1 / len(lines)
    look: dict[str, Any] = {"transform": panel.transAxes, "va": "top", "color": INK}
    for row, (name, value) in enumerate(lines):
        panel.text(1.06, 1.0 - row * apart, name, size=TEXT_SIZE, **look)
        panel.text(1.06, 1.0 - (row + 0.4) * apart, value, size=TITLE_SIZE - 1, weight="bold", **look)


def sparse(plane: Plane, count: int) -> tuple[slice, slice]:
    """Evenly spaced voxels of a slice (h, w), about `count` along the longer side."""
    dx, dy = plane.spacing
    (w, h) = (len(line) for line in plane.centers)
    apart = max(w * dx, h * dy) / count
    steps = max(1, round(apart / dy)), max(1, round(apart / dx))
    return slice((h - 1) % steps[0] // 2, None, steps[0]), slice((w - 1) % steps[1] // 2, None, steps[1])


def crosshair(panel: Panel, plane: Plane, mm: Sequence[float]) -> None:
    """Two lines through a point given in mm along the grid's axes."""
    across, up = WORLD_AXES[plane.name][:2]
    panel.axvline(mm[across], color=MARK_COLOR, linewidth=1.0, alpha=0.8)
    panel.axhline(mm[up], color=MARK_COLOR, linewidth=1.0, alpha=0.8)


def legend(panel: Panel, names: Mapping[int, str]) -> None:
    """Names of labels in their colors, on a dark ground right of the panel."""
    for row, (number, name) in enumerate(names.items()):
        look: dict[str, Any] = {"color": LABEL_COLORS[(number - 1) % len(LABEL_COLORS)], "size": TEXT_SIZE}
        ground = {"facecolor": "#333333", "edgecolor": "none", "pad": 3.0}
        panel.text(
            1.04, 0.97 - 0.08 * row, name, transform=panel.transAxes, va="top", weight="bold", bbox=ground, **look
        )


def legend_inches(names: Mapping[int, str]) -> float:
    """The room that `legend` needs."""
    return 0.3 + 0.12 * max(map(len, names.values()), default=-2)


def curve(panel: Panel, name: str, values: Sequence[float]) -> None:
    """One line against the step."""
    panel.plot(np.arange(len(values)), values, color=INK, linewidth=2)
    panel.set_title(name, fontsize=TITLE_SIZE, color=INK, fontweight="bold")
    panel.set_xlabel("step", fontsize=TEXT_SIZE)
    panel.tick_params(labelsize=TEXT_SIZE)
    panel.locator_params(nbins=5)
    panel.margins(x=0)


def shade(panel: Panel, edges: Sequence[int], levels: Sequence[float]) -> None:
    """Bands from edge to edge, every other one shaded, each with how much coarser its images were."""
    for k, level in enumerate(levels):
        panel.axvspan(edges[k], edges[k + 1], color="#dfe6ee" if k % 2 == 0 else "white", zorder=0)
        words = "full" if level == 1 else f"1/{level:g}"
        place = (edges[k] + edges[k + 1]) / 2
        panel.text(place, 0.97, words, transform=panel.get_xaxis_transform(), ha="center", va="top", size=TEXT_SIZE)
