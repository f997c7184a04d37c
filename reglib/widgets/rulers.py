"""Views of grids: rulers, the half voxel, storage puzzles, and grids in the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes as Panel
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor

from .. import plot
from ..grid import Axes, Grid, reorient, require_on_grid
from ..plot import canvas
from ..plot.planes import signed
from .controls import Choice, Slider, Toggle
from .views import State, View

NORMALIZED: dict[str, Callable[[Tensor, int], Tensor]] = {  # voxel x of n to [-1, 1]; see half_voxel
    "2x/(n-1) - 1": lambda x, n: 2 * x / (n - 1) - 1,
    "(2x+1)/n - 1": lambda x, n: (2 * x + 1) / n - 1,
    "2x/n - 1": lambda x, n: 2 * x / n - 1,
}
CODES_2D = ("RA", "LA", "RP", "LP", "AR", "AL", "PR", "PL")


def axis_ruler(*, length_mm: float = 40.0) -> View:
    """A row of voxels with four rulers below it, one for each of `grid.Axes`, all read at one place.

    The row keeps its length whatever the number of voxels: its edges stay, its outer centers move.
    """
    half = length_mm / 2

    def render(state: State) -> Figure:
        n, place = state["voxels"], state["place_mm"]
        row = Grid.centered((n, 1), length_mm / n)
        marks: dict[Axes, Sequence[float]] = {Axes.VOXEL: range(n), Axes.WORLD: canvas.nice_ticks(-half, half, 6)}
        marks |= {Axes.CUBE: (-1, 0, 1), Axes.CUBE_CORNERS: (-1, 0, 1)}
        figure, panel = _board(5, (-1.02 * half, 1.02 * half))
        _boxes(panel, 4, row)
        for y, (axes, ticks) in zip((3, 2, 1, 0), marks.items(), strict=True):
            ends = _along(row, ticks, to=Axes.WORLD, from_=axes)
            panel.plot([-half, half], [y, y], color=canvas.INK, linewidth=1.2)
            panel.plot(ends, [y] * len(ends), "|", color=canvas.INK, markersize=14, markeredgewidth=2.2)
            for x, tick in zip(ends, ticks, strict=True):
                panel.text(x, y - 0.2, signed(tick), size=canvas.TEXT_SIZE, ha="center", va="top")
            unit = ", x in mm" if axes is Axes.WORLD else ""
            _beside(panel, y, axes + unit, signed(_along(row, [place], to=axes, from_=Axes.WORLD)[0], 2))
        for end in (-1, 1):
            for y, axes in ((1, Axes.CUBE), (0, Axes.CUBE_CORNERS)):
                (x,) = _along(row, [end], to=Axes.WORLD, from_=axes)
                panel.plot([x, x], [y, 4], color="#999999", linewidth=1.2, linestyle=":", zorder=0)
        for color, width in (("black", 5), (canvas.MARK_COLOR, 3)):
            panel.axvline(place, color=color, linewidth=width)
        return figure

    return render, {
        "place_mm": Slider(-half, half, half / 4, step=half / 40, unit="mm"),
        "voxels": Slider(2, 10, 5),
    }


def half_voxel() -> View:
    """Where `grid_sample` reads when asked for each voxel of a row: by formula to [-1, 1], and by `align_corners`."""

    def render(state: State) -> Figure:
        n = state["voxels"]
        asked = torch.arange(n, dtype=torch.float64)
        unit = NORMALIZED[state["formula"]](asked, n)
        read = (unit + 1) / 2 * (n - 1) if state["align_corners"] else ((unit + 1) * n - 1) / 2
        off = (read - asked).tolist()
        words = " to ".join(dict.fromkeys("+" * (x > 0) + signed(x, 2) for x in (off[0], off[-1])))
        right = max(map(abs, off)) < 1e-6
        figure, panel = _board(2, (-1.0, n), title="reads where you ask" if right else f"off by {words} voxels")
        _boxes(panel, 1, Grid((n, 1)))
        _boxes(panel, 0, Grid((n, 1)))
        for a, r in zip(asked.tolist(), read.tolist(), strict=True):
            look: dict[str, Any] = {"arrowstyle": "-|>", "color": canvas.INK, "mutation_scale": 16, "linewidth": 1.8}
            panel.add_patch(FancyArrowPatch((a, 0.95), (r, 0.05), **look))
        panel.plot(asked, [1] * n, "o", color=canvas.FIXED_COLOR, markersize=12)
        panel.plot(read, [0] * n, "D", color=canvas.MOVING_COLOR, markersize=11)
        _beside(panel, 1, "asked", "")
        _beside(panel, 0, "read", "")
        return figure

    return render, {
        "formula": Choice(tuple(NORMALIZED), "2x/(n-1) - 1"),
        "align_corners": Toggle(False),
        "voxels": Slider(2, 12, 6),
    }


def resize_ruler(*, voxels: int = 9, spacing: float = 4.0) -> View:
    """A row of voxels, what `Grid.resize` and `Grid.resample` make of it, and which centers stay where they were."""
    row = Grid((voxels, 2), torch.diag(torch.tensor([spacing, spacing, 1.0])))
    last = (voxels - 1) * spacing

    def render(state: State) -> Figure:
        rows = {
            "yours": row,
            f"resize, {state['voxels']} voxels": row.resize((state["voxels"], 2)),
            f"resample, {state['spacing_mm']:g} mm": row.resample((state["spacing_mm"], spacing)),
        }
        figure, panel = _board(3, (-0.3 * last, 1.32 * last))
        for y, (name, grid) in zip((2, 1, 0), rows.items(), strict=True):
            _boxes(panel, y, grid, numbers=False)
            _beside(panel, y, name, f"{grid.shape[0]} × {grid.spacing[0]:.3g} mm")
        for end in (0.0, last):
            panel.axvline(end, color=canvas.FIXED_COLOR, linewidth=2, linestyle=canvas.TRUTH_STYLE)
        return figure

    return render, {
        "voxels": Slider(3, 24, 5),
        "spacing_mm": Slider(1.5, 8.0, 5.0, step=0.5, unit="mm"),
    }


def storage_puzzle(image: Float[Tensor, "1 1 n n"], grid: Grid, files: Mapping[str, str]) -> View:
    """Files that hold one 2-D image in unknown orders, and a header to try: it fits if the world shows the truth.

    Args: files: the true orientation of each, for example {"A": "PL"}.
    """

    def render(state: State) -> Figure:
        stored, _ = reorient(image, grid, files[state["file"]])
        tried = grid.reorient(state["header"])
        pictures = {"the array": (stored, None), f"the world, if {state['header']}": (stored, tried)}
        return in_world(pictures, truth=(image, grid))

    return render, {"header": Choice(CODES_2D, CODES_2D[0]), "file": Choice(tuple(files), next(iter(files)))}


def in_world(
    pictures: Mapping[str, tuple[Float[Tensor, "1 1 n m"], Grid | None]],
    *,
    truth: tuple[Float[Tensor, "1 1 n m"], Grid] | None = None,
    arrows: bool = True,
) -> Figure:
    """2-D images voxel by voxel where their grids place them in the world, turned ones turned, on one scale.

    Args:
        pictures: for each title an image and its grid; without a grid the bare array: square voxels, the first index
            counts to the right, the second upward.
        truth: an image and its grid, the outline of whose nonzero voxels is drawn, dashed, on all that have a grid.
        arrows: draw both tensor axes, from voxel (0, 0).
    """
    for title, (image, grid) in pictures.items():
        require_on_grid(image, grid or Grid(image.shape[2:]), title)
    slots, grids = _world_slots(pictures)
    figure, panels = canvas.panels([slots])
    shown = Normalize(*plot.window(*(image for image, _ in pictures.values())))
    for panel, (image, own), grid in zip(panels, pictures.values(), grids, strict=True):
        panel.set_facecolor("#c8d0d8")
        low, high = panel.get_xlim()
        margin = 0.04 * (high - low)  # where numbers of neighbors would touch
        panel.set_xticks([x for x in panel.get_xticks() if own is not None and low + margin < x < high - margin])
        panel.pcolormesh(*_corners_of(grid).movedim(-1, 0).numpy(), image[0, 0].numpy(), cmap="gray", norm=shown)
        if truth is not None and own is not None:
            xy = truth[1].coordinates(Axes.WORLD).movedim(-1, 0).numpy()
            look: dict[str, Any] = {"linewidths": 3, "linestyles": [canvas.TRUTH_STYLE]}
            outline = (truth[0][0, 0] > 0).float().numpy()
            panel.contour(*xy, outline, levels=[0.5], colors=[canvas.WARPED_COLOR], **look)
        if arrows:
            _tensor_axes(panel, grid)
    return figure


def _world_slots(pictures: Mapping[str, tuple[Tensor, Grid | None]]) -> tuple[list[canvas.Slot], list[Grid]]:
    """A slot and a grid for each picture of `in_world`: all see the same part of the world, bare arrays as large."""
    placed = [_corners_of(grid).flatten(0, 1) for _, grid in pictures.values() if grid is not None]
    corners = torch.cat(placed) if placed else torch.tensor([[-50.0, -50.0], [50.0, 50.0]])
    (left, bottom), (right, top) = corners.amin(0).tolist(), corners.amax(0).tolist()
    names: dict[str, Any] = {"labels": ("x [mm]", "y [mm]"), "letters": ("L", "R", "P", "A")}
    slots, grids = [], []
    for title, (image, grid) in pictures.items():
        bare = Grid.centered(image.shape[2:], max(right - left, top - bottom) / max(image.shape[2:]))
        x, y = (extent / 2 for extent in bare.extent)
        world = canvas.Slot((left, right, bottom, top), title, **names)
        slots.append(canvas.Slot((-x, x, -y, y), title) if grid is None else world)
        grids.append(bare if grid is None else grid)
    return slots, grids


def _corners_of(grid: Grid) -> Tensor:
    """The world positions of all corners of all voxels of a 2-D grid, (n + 1, m + 1, 2)."""
    n, m = grid.shape
    return grid.points(Grid((n + 1, m + 1)).coordinates() - 0.5, to=Axes.WORLD, from_=Axes.VOXEL)


def _tensor_axes(panel: Panel, grid: Grid) -> None:
    """Arrows along the two tensor axes of a 2-D grid, a third of it long, from voxel (0, 0), with their names."""
    start, thirds = torch.tensor(grid.origin), torch.diag(torch.tensor(grid.shape) / 3)
    moves = grid.vectors(thirds, to=Axes.WORLD, from_=Axes.VOXEL)
    look: dict[str, Any] = {"size": canvas.TITLE_SIZE, "weight": "bold", "color": canvas.MARK_COLOR}
    look |= {"ha": "center", "va": "center", "path_effects": canvas.HALO, "zorder": 6}
    for name, along, across in zip("ij", moves, moves.flip(0), strict=True):
        canvas.arrow(panel, start.tolist(), along.tolist())
        x, y = (start + along + 0.2 * across).tolist()
        panel.text(x, y, name, **look)


def _board(rows: int, limits: tuple[float, float], title: str = "") -> tuple[Figure, Panel]:
    """A figure for rows of voxels along x, one unit high each, with room for words on both sides."""
    figure = Figure(figsize=(canvas.WIDTH_IN, 0.75 * rows + 0.6), dpi=canvas.DPI)
    panel = figure.add_axes((0.2, 0.02, 0.6, 0.84 if title else 0.96))
    panel.set(xlim=limits, ylim=(-0.6, rows - 0.4), autoscale_on=False)
    panel.set_axis_off()
    panel.set_title(title, fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")
    return figure, panel


def _boxes(panel: Panel, y: float, row: Grid, *, numbers: bool = True) -> None:
    """The voxels of a row, along the first axis of a grid, as boxes with their centers."""
    step, centers = row.spacing[0], _along(row, range(row.shape[0]), to=Axes.WORLD, from_=Axes.VOXEL)
    for k, x in enumerate(centers):
        fill = "#dfe6ee" if k % 2 else "#f4f6f9"
        look: dict[str, Any] = {"facecolor": fill, "edgecolor": canvas.INK, "linewidth": 1.5}
        panel.add_patch(Rectangle((x - step / 2, y - 0.33), step, 0.66, **look))
        if numbers:
            panel.text(x - 0.46 * step, y + 0.18, str(k), size=canvas.TEXT_SIZE, va="center", color="#555555")
    panel.plot(centers, [y] * len(centers), "o", color=canvas.INK, markersize=6)


def _beside(panel: Panel, y: float, name: str, value: str) -> None:
    """Words left and right of a row of `_board`."""
    look: dict[str, Any] = {"va": "center", "color": canvas.INK, "size": canvas.TITLE_SIZE}
    look["transform"] = panel.get_yaxis_transform()
    panel.text(-0.02, y, name, ha="right", **look)
    panel.text(1.02, y, value, ha="left", weight="bold", **look)


def _along(row: Grid, values: Sequence[float], *, to: str, from_: str) -> list[float]:
    """Convert positions along the first axis of a grid, on the middle line of the others."""
    middle = torch.zeros(row.dim, dtype=torch.float64)
    points = torch.stack([torch.cat([torch.tensor([float(v)], dtype=torch.float64), middle[1:]]) for v in values])
    return row.points(points, to=to, from_=from_)[:, 0].tolist()
