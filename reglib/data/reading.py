"""A record's files as tensors: read, checked, and brought to the grid that a network wants.

What a scan goes through, in this order: axes in the wanted order, resampled to a spacing or a shape, intensities
scaled, padded to a multiple. Its label and its points go along. `Scan.back` undoes it for a field or an image.

Source: DeepReg's `file_loader` and `preprocess.resize_inputs`.   Differs: the header counts, so that a ddf means
millimeters; the order in which things are done is written here; labels by nearest neighbor unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from .. import field, filters, io
from ..doctor import SAME_PLACE_VOXELS
from ..doctor import read as read_file
from ..grid import Grid, GridMismatchError, reorient
from .records import HDF5, Place, Record

MATRIX = "world_from_voxel"  # attribute of our HDF5 data sets; without it 1 mm and identity
PERCENTILES = (0.5, 99.5)
DIMENSIONS = (2, 3)
SAME_LATTICE = 1e-6  # voxels a voxel
Scale = Literal["minmax", "percentiles", "none"]


class Array(NamedTuple):
    """An image (c, *s) as it is in its file, and its grid."""

    values: Tensor
    grid: Grid


@dataclass(frozen=True)
class Scan:
    """One scan in memory.

    Attributes:
        image: (1, *s) float32.
        label: (k, *s) float32 in [0, 1], one structure a channel; None where there is none.
        points: (n, d) float64, RAS+ mm; None where there are none.
        stored: the grid of its file.
    """

    name: str
    image: Float32[Tensor, "1 *s"]
    grid: Grid
    stored: Grid
    label: Float32[Tensor, "k *s"] | None = None
    points: Float64[Tensor, "n d"] | None = None

    def back(self, image: Float[Tensor, "c *s"], *, mode: Any = "bilinear") -> Float[Tensor, "c *t"]:
        """Something on this scan's grid at the voxels of its file again: exact where only padded or reoriented."""
        steps = self.grid.voxel_from_world @ self.stored.world_from_voxel
        if float((steps - steps.round()).abs().max()) < SAME_LATTICE:
            mode = "nearest"  # every voxel of the file is one of this grid's: nothing to interpolate, nothing to round
        return field.resample(image[None], self.grid, self.stored, mode=mode)[0]


@dataclass(frozen=True)
class Reading:
    """How scans become tensors. The default keeps their voxels and scales each image to [0, 1].

    Args:
        orientation: axes are listed in this order, such as "RAS".
        spacing: mm per voxel, one number or one an axis. An image is smoothed before its voxels become fewer.
        shape: voxels along each axis, between the same first and last voxel centers; not with `spacing`.
        multiple: zeros are added at the end of each axis up to a multiple of it, 2**n for a network of n halvings.
        window: intensities to clamp to before scaling, such as (-1000, 400) HU for a lung.
        scale: "minmax" to [0, 1], a constant image to 0, as DeepReg does; "percentiles" to the range of its middle 99 %
            (clamped, so that one bright voxel does not darken the rest); "none".
        structures: the labels of a label map, each of which becomes a channel; None for masks with values in [0, 1].
        label_mode: "nearest", or "bilinear" as DeepReg does.
    """

    orientation: str | None = None
    spacing: float | Sequence[float] | None = None
    shape: Sequence[int] | None = None
    multiple: int | None = None
    window: tuple[float, float] | None = None
    scale: Scale = "minmax"
    structures: tuple[int, ...] | None = None
    label_mode: Literal["nearest", "bilinear"] = "nearest"

    def __post_init__(self) -> None:
        if self.spacing is not None and self.shape is not None:
            raise ValueError("give a spacing or a shape, not both; each follows from the other and the field of view.")
        if self.multiple is not None and self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, such as 16; got {self.multiple}.")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window must be a low and a higher intensity; got {self.window}.")
        if self.scale not in ("minmax", "percentiles", "none"):
            raise ValueError(f'scale must be "minmax", "percentiles" or "none"; got "{self.scale}".')
        if self.structures is not None and (not self.structures or min(self.structures) < 1):
            raise ValueError(f"structures must be labels of at least 1, the background is 0; got {self.structures}.")

    def __call__(self, record: Record) -> Scan:
        """Read a scan.

        Raises: FileNotFoundError, ValueError, GridMismatchError: one sentence that names the file.
        """
        image, grid = read_image(record.image)
        label = None if record.label is None else read_label(record.label, grid, structures=self.structures)
        points = None if record.points is None else read_points(record.points, grid.dim)
        return self.apply(Scan(record.name, image, grid, grid, label, points))

    def apply(self, scan: Scan) -> Scan:
        """The same with a scan that is in memory."""
        scan = self._resampled(self._turned(replace(scan, stored=scan.grid)))
        return self._padded(replace(scan, image=self._scaled(scan.image)))

    def _scaled(self, image: Tensor) -> Tensor:
        if self.window is not None:
            image = image.clamp(*self.window)
        if self.scale == "none":
            return image
        low, high = image.min(), image.max()
        if self.scale == "percentiles":
            low, high = (_percentile(image, q) for q in PERCENTILES)
        if not high > low:
            return torch.zeros_like(image)
        return ((image - low) / (high - low)).clamp_(0, 1)

    def _turned(self, scan: Scan) -> Scan:
        if self.orientation is None or scan.grid.orientation == self.orientation:
            return scan
        turned = scan.grid.reorient(self.orientation)
        return _on(scan, turned, lambda x, _: reorient(x, scan.grid, self.orientation or "")[0].contiguous())

    def _resampled(self, scan: Scan) -> Scan:
        if self.spacing is None and self.shape is None:
            return scan
        target = scan.grid.resample(self.spacing) if self.spacing is not None else scan.grid.resize(self.shape or ())
        if target == scan.grid:
            return scan
        return _on(scan, target, lambda x, soft: resampled(x, scan.grid, target, soft, self.label_mode))

    def _padded(self, scan: Scan) -> Scan:
        m = self.multiple or 1
        after = [-n % m for n in scan.grid.shape]
        if not any(after):
            return scan
        widths = [w for n in reversed(after) for w in (0, n)]
        target = scan.grid.pad([0] * len(after), after)
        return _on(scan, target, lambda x, _: torch.nn.functional.pad(x, widths))


def onto(scan: Scan, grid: Grid, *, label_mode: Literal["nearest", "bilinear"] = "nearest") -> Scan:
    """A scan resampled onto another's grid, through the world; 0 where it was not seen."""
    return _on(scan, grid, lambda x, soft: resampled(x, scan.grid, grid, soft, label_mode, padding="zeros"))


def resampled(x: Tensor, grid: Grid, target: Grid, soft: bool, label_mode: str, *, padding: str = "border") -> Tensor:
    """(b, c, *s) at the voxels of another grid; images (`soft`) are smoothed before their voxels become fewer."""
    if not soft:
        return field.resample(
            x, grid, target, mode="nearest" if label_mode == "nearest" else "bilinear", padding=padding
        )
    steps = _steps(grid, target)
    sigmas = [step / 2 if step > 1.01 else 0.0 for step in steps]
    smooth = filters.gaussian(x, sigma=sigmas) if any(sigmas) else x
    return field.resample(smooth, grid, target, padding=padding)


def _steps(grid: Grid, target: Grid) -> list[float]:
    """How many voxels of `grid` lie between neighbors of `target`, along each axis of `grid`."""
    moves = grid.voxel_from_world[:-1, :-1] @ target.world_from_voxel[:-1, :-1]
    return [float(step) for step in moves.abs().amax(1)]


def _on(scan: Scan, grid: Grid, change: Callable[[Tensor, bool], Tensor]) -> Scan:
    """The scan with its image and label changed, (1, c, *s) each, onto a grid; points are in the world and stay."""
    label = None if scan.label is None else change(scan.label[None], False)[0]
    return replace(scan, image=change(scan.image[None], True)[0], label=label, grid=grid)


def _percentile(image: Tensor, q: float) -> Tensor:
    """Of the voxels above the smallest, which is background in most scans; of all of them if none is."""
    values = image[image > image.min()]
    values = values if values.numel() else image.flatten()
    return torch.as_tensor(np.percentile(values.numpy(), q), dtype=image.dtype)


# -- from disk ----------------------------------------------------------------------------------------------------
def read_image(place: Place) -> Array:
    """An image (1, *s) float32 and its grid.

    Raises: FileNotFoundError, ValueError.
    """
    values, grid = _array(place, "image", None)
    if values.shape[0] != 1:
        raise ValueError(f"{place}: an image has one value a voxel; it has {values.shape[0]}; take one channel.")
    return Array(values, grid)


def read_label(
    place: Place, grid: Grid | None = None, *, structures: Sequence[int] | None = None, masks: bool = True
) -> Float32[Tensor, "k *s"]:
    """A label as masks (k, *s) with values in [0, 1], one structure a channel.

    Args:
        grid: of the image that it belongs to.
        structures: the labels of a label map that become channels; None if the file has masks.
        masks: whether values must be in [0, 1]; otherwise a label map is given as it is.

    Raises: FileNotFoundError, ValueError; GridMismatchError if it is not on `grid`.
    """
    values, own = _array(place, "label", None if grid is None else grid.dim)
    if grid is not None:
        _require_same(place, own, grid)
    if structures is not None:
        if values.shape[0] != 1:
            raise ValueError(f"{place}: structures are of a label map; this file has {values.shape[0]} channels.")
        return torch.cat([(values == s).float() for s in structures])
    low, high = float(values.min()), float(values.max())
    if masks and (low < 0 or high > 1):
        raise ValueError(
            f"{place}: label values must be in [0, 1]; they are {low:g} to {high:g}; for a label map name the "
            "structures, Reading(structures=(1, 2)), for masks of 0 and 255 divide by 255."
        )
    return values


def read_points(place: Place, d: int) -> Float64[Tensor, "n d"]:
    """Points (n, d), RAS+ mm.

    Raises: FileNotFoundError, ValueError.
    """
    points = io.load_points(place.path)[0]
    if points.shape[1] != d:
        raise ValueError(f"{place}: points must be {d}-D as their image; they are {points.shape[1]}-D.")
    return points


def _require_same(place: Place, own: Grid, grid: Grid) -> None:
    if own.shape != grid.shape or not own.is_close(grid, tolerance=SAME_PLACE_VOXELS * min(grid.spacing)):
        why = "another header" if own.shape == grid.shape else f"{own.shape} voxels, not {grid.shape}"
        raise GridMismatchError(
            f"{place}: a label must be on its image's grid; it has {why}; resample it by nearest neighbor."
        )


def _array(place: Place, what: str, d: int | None) -> Array:
    """(c, *s) float32 and the grid; `d` where it is known, because an array alone does not say."""
    if not place.path.exists():
        raise FileNotFoundError(f"{place.path}: there is no such file; check the spelling and the folder.")
    if place.path.suffix in HDF5 or place.path.suffix in (".npz", ".npy"):
        return _checked(place, *_raw(place), what, d)
    if place.path.name.lower().endswith(".mgz"):
        return _checked(place, *_mgz(place.path), what, d)
    scan = read_file(place.path, kind="image" if what == "image" else "channels")
    for finding in scan.findings:
        if finding.severity == "error":
            raise ValueError(f"{place}: {finding}")
    assert scan.values is not None
    assert scan.grid is not None
    values = np.ascontiguousarray(np.moveaxis(scan.values, -1, 0), dtype=np.float32)
    return Array(torch.from_numpy(values), scan.grid)


def _checked(place: Place, values: np.ndarray, matrix: np.ndarray | None, what: str, d: int | None) -> Array:
    """An array without a header of its own: (X, Y, Z) or (X, Y), of a label with a last axis of structures."""
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{place}: voxels must be numbers; they are {values.dtype}; is it the right array?")
    if what == "image" or d is None:
        while values.ndim > 2 and values.shape[-1] == 1:  # as DeepReg: a last axis of one is no axis
            values = values[..., 0]
        d = values.ndim if what == "image" else min(values.ndim, 3)
    elif values.ndim > d + 1 and values.shape[d] == 1:
        values = values.reshape(*values.shape[:d], -1)
    if d not in DIMENSIONS or values.ndim not in (d, d + 1) or 0 in values.shape:
        raise ValueError(f"{place}: a scan has two or three axes of at least 1 voxel; it is {values.shape}.")
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"{place}: voxels must be finite; {count} of {values.size} are NaN or infinite; mend them.")
    grid = Grid(values.shape[:d], None if matrix is None else torch.as_tensor(matrix[: d + 1, : d + 1]))
    channels = values[None] if values.ndim == d else np.moveaxis(values, -1, 0)
    return Array(torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32)), grid)


def _raw(place: Place) -> tuple[np.ndarray, np.ndarray | None]:
    """An array of an HDF5, npz or npy file, and its matrix where it has one."""
    try:
        if place.path.suffix in HDF5:
            import h5py

            with h5py.File(place.path) as file:
                data = file[place.key]
                return np.asarray(data), data.attrs.get(MATRIX)
        loaded = np.load(place.path, allow_pickle=False)
        if place.path.suffix == ".npy":
            return loaded, None
        with loaded as arrays:
            return arrays[place.key], None
    except KeyError:
        raise ValueError(f"{place.path} has no array {place.key!r}; is it the right file?") from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{place} cannot be read: {error}; copy or make it again.") from None


def _mgz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """FreeSurfer's own format."""
    import nibabel

    try:
        image = nibabel.load(path)
        return np.asarray(image.dataobj), image.affine  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{path} cannot be read: {error}; copy it again.") from None
