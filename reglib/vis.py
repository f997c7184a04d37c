"""`reglib vis`: moving pictures and tiles of slices, as DeepReg's `deepreg_vis` makes them.

    mode 0   a GIF through the slices of each image
    mode 1   a GIF of each image bending, the ddf growing from nothing to all of it
    mode 2   one picture: chosen slices down, images across
    mode 3   one GIF through the slices of several images, tiled

Slices are along the last axis of the file, as it is stored; each image has the window of its whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from . import field, io, plot
from .explorer import draw
from .grid import Grid

TILE_IN, TITLE_SIZE = 2.6, 13  # of a tile and its title
Stack = list[np.ndarray]  # pictures (h, w) in [0, 1]


def slices_gifs(images: Sequence[Path], out: Path, *, interval_ms: int = 50) -> list[Path]:
    """Mode 0: OUT/NAME.gif for each image."""
    paths = []
    for path, name in zip(images, _names(images), strict=True):
        image, _ = io.load_image(path)
        paths.append(_save_gif(out / f"{name}.gif", [draw(_tiles([[s]], [name])) for s in _stack(image)], interval_ms))
    return paths


def warp_gifs(
    images: Sequence[Path],
    ddf: Path,
    out: Path,
    *,
    slice_indices: Sequence[int] = (),
    count: int = 100,
    interval_ms: int = 50,
) -> list[Path]:
    """Mode 1: OUT/NAME_slice_K.gif of each image and slice, warped by 0 to all of a ddf in `count` steps.

    Args: slice_indices: of the fixed grid; by default the middle one.
    """
    if count < 2:
        raise ValueError(f"num_interval must be at least 2 pictures; got {count}.")
    u, grid = io.load_ddf(ddf)
    paths = []
    for path, name in zip(images, _names(images), strict=True):
        image, own = io.load_image(path)
        shown = plot.window(image)
        for k in _chosen(slice_indices, grid):
            thin, fixed = _slab(u, grid, k)
            frames = []
            for share in np.linspace(0, 1, count):
                warped = field.warp(image, float(share) * thin, padding="zeros", moving_grid=own, fixed_grid=fixed)
                frames.append(draw(_tiles([[_stack(warped, shown)[0]]], [f"{name}, {share:.0%}"])))
            paths.append(_save_gif(out / f"{name}_slice_{k}.gif", frames, interval_ms))
    return paths


def tiles(
    images: Sequence[Path], out: Path, *, slice_indices: Sequence[int] = (), titles: Sequence[str] = (), name: str = ""
) -> Path:
    """Mode 2: OUT/NAME, a column an image and a row a slice.

    Args:
        slice_indices: by default the middle one.
        titles: of the columns; by default the files' names.
        name: of the file; by default visualisation.png.
    """
    titles = _titled(titles, images)
    stacks, grids = _read(images)
    chosen = _chosen(slice_indices, grids[0])
    rows = [[_at(stack, k, path) for stack, path in zip(stacks, images, strict=True)] for k in chosen]
    path = out / (name or "visualisation.png")
    with io.write_atomically(path) as temporary:
        draw(_tiles(rows, titles, [f"slice {k}" for k in chosen])).save(temporary, format="PNG")
    return path


def tiled_gif(
    images: Sequence[Path],
    out: Path,
    *,
    size: tuple[int, int] | None = None,
    titles: Sequence[str] = (),
    name: str = "",
    interval_ms: int = 50,
) -> Path:
    """Mode 3: OUT/NAME, a GIF of all images in so many rows and columns, as many as the shortest has slices.

    Args: size: rows and columns; by default one row.
    """
    titles = _titled(titles, images)
    stacks, _ = _read(images)
    rows, columns = size or (1, len(images))
    if rows * columns < len(images) or min(rows, columns) < 1:
        raise ValueError(f"size must have room for {len(images)} images; got {rows} x {columns}.")
    frames = []
    for k in range(min(map(len, stacks))):
        flat = [stack[k] for stack in stacks]
        grid = [flat[r * columns : (r + 1) * columns] for r in range(rows) if flat[r * columns :]]
        frames.append(draw(_tiles(grid, titles)))
    return _save_gif(out / (name or "visualisation.gif"), frames, interval_ms)


# -- what they share ----------------------------------------------------------------------------------------------
def _read(images: Sequence[Path]) -> tuple[list[Stack], list[Grid]]:
    loaded = [io.load_image(path) for path in images]
    return [_stack(image) for image, _ in loaded], [grid for _, grid in loaded]


def _stack(image: Tensor, shown: Any = None) -> Stack:
    """The slices along the last axis, first axis across and second one up, in [0, 1]."""
    low, high = plot.window(image) if shown is None else shown
    scaled = ((image[0, 0] - low) / max(high - low, 1e-12)).clamp(0, 1).float()
    return [plane.T.flip(0).numpy() for plane in (scaled.unbind(-1) if scaled.ndim == 3 else [scaled])]


def _slab(u: Tensor, grid: Grid, k: int) -> tuple[Tensor, Grid]:
    """One slice of a field and of its grid."""
    if grid.dim == 2:
        return u, grid
    start, stop = [0, 0, k], [*grid.shape[:2], k + 1]
    return u[..., k : k + 1], grid.crop(start, stop)


def _chosen(indices: Sequence[int], grid: Grid) -> list[int]:
    """Slices that there are.

    Raises: ValueError for another.
    """
    count = grid.shape[2] if grid.dim == 3 else 1
    chosen = list(indices) or [count // 2 if count > 1 else 0]
    outside = [k for k in chosen if not 0 <= k < count]
    if outside:
        raise ValueError(f"slice_inds must be from 0 to {count - 1}; got {outside[0]}.")
    return chosen


def _at(stack: Stack, k: int, path: Path) -> np.ndarray:
    if k >= len(stack):
        raise ValueError(f"{path} has {len(stack)} slices; there is no slice {k}.")
    return stack[k]


def _names(images: Sequence[Path]) -> list[str]:
    return [path.name.split(".")[0] for path in images]


def _titled(titles: Sequence[str], images: Sequence[Path]) -> list[str]:
    """Titles of the columns.

    Raises: ValueError if there are not as many as images, or no image.
    """
    if not images:
        raise ValueError("give at least one image.")
    if titles and len(titles) != len(images):
        raise ValueError(f"col_titles must be as many as images, {len(images)}; got {len(titles)}.")
    return list(titles) or _names(images)


def _tiles(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], sides: Sequence[str] = ()) -> Figure:
    """Pictures in rows and columns: titles above each, or above the first row if `sides` name the rows."""
    columns = max(map(len, rows))
    tall = max(picture.shape[0] / picture.shape[1] for row in rows for picture in row)
    figure = Figure(figsize=(TILE_IN * columns, (TILE_IN * min(tall, 3.0) + 0.3) * len(rows)), dpi=100, layout="tight")
    panels = np.atleast_2d(np.array(figure.subplots(len(rows), columns, squeeze=False)))
    for panel in panels.flat:
        panel.axis("off")
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            panels[r, c].imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            number = c if sides else r * columns + c
            words = titles[number] if not sides or r == 0 else ""
            words = f"{words}\n{sides[r]}".strip() if sides and c == 0 else words
            panels[r, c].set_title(words, fontsize=TITLE_SIZE)
    return figure


def _save_gif(path: Path, frames: Sequence[Any], interval_ms: int) -> Path:
    if interval_ms < 1:
        raise ValueError(f"interval must be at least 1 ms; got {interval_ms}.")
    first, *rest = frames
    ticks = max(10, 10 * math.ceil(interval_ms / 10))  # GIFs count in hundredths of a second
    with io.write_atomically(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=ticks, loop=0)
    return path


__all__ = ["slices_gifs", "tiled_gif", "tiles", "warp_gifs"]
