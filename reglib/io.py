"""Files to tensors with their grids, and back.

Convention:
    Voxels come as stored, never reordered; `grid.reorient` is explicit. Worlds are RAS+ mm.
    NIfTI: tensor axis k is file axis k. A file of (X, Y) or (X, Y, 1) is 2-D; 2-D images are written as (X, Y).
    PNG and JPEG: the first axis runs down the rows, the second along the columns, 1 mm and identity; so x in a
    point file is the row and y the column.
    DICOM folders, NRRD and MHA: SimpleITK's axis order (x fastest), where it is installed.
    A ddf file is (X, Y, Z, 3) voxels of its own grid, in 2-D (X, Y, 1, 2). ITK's is (X, Y, Z, 1, 3) LPS mm.

Every error is one sentence: what, expected, got, how to mend it. `doctor(path)` lists them all.
"""

from __future__ import annotations

import csv
import json
import math
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from isal import igzip
from jaxtyping import Float, Float32, Float64, Int64, Shaped
from torch import Tensor

from . import field
from .doctor import (
    NIFTI,
    SAME_PLACE_VOXELS,
    Finding,
    HeaderWarning,
    Kind,
    PathLike,
    Report,
    doctor,
    read,
    right_angles,
)
from .grid import Axes, Grid, GridMismatchError, require_on_grid

INTENT_DISPLACEMENT = 1006  # NIfTI: vectors along RAS axes
INTENT_VECTOR = 1007  # what ITK writes: vectors along LPS axes


class LoadedImage(NamedTuple):
    """An image (1, c, *s) float32 and its grid."""

    image: Float32[Tensor, "1 c *s"]
    grid: Grid


class LoadedLabels(NamedTuple):
    """A label map (1, 1, *s) or structures (1, c, *s), int64, and their grid."""

    labels: Int64[Tensor, "1 c *s"]
    grid: Grid


class LoadedMask(NamedTuple):
    """A mask (1, 1, *s) float32 of 0 and 1 and its grid."""

    mask: Float32[Tensor, "1 1 *s"]
    grid: Grid


class LoadedField(NamedTuple):
    """A ddf (1, d, *s) float32, voxels of its grid, and the grid."""

    ddf: Float32[Tensor, "1 d *s"]
    grid: Grid


# -- images -----------------------------------------------------------------------------------------------------
def load_image(path: PathLike, *, allow_4d: bool = False) -> LoadedImage:
    """Read an image: NIfTI, PNG, JPEG, a DICOM folder, NRRD or MHA.

    Args:
        path: the file, or a folder with one DICOM series.
        allow_4d: keep the volumes of a 4-D file as channels, (1, c, *s), instead of refusing it.

    Returns: image (1, 1, *s) float32, voxels as stored with the header's slope and intercept; its grid.
    Raises: FileNotFoundError; ValueError for any file that is damaged, not a gray image or not placed in the world.
    """
    values, grid, _ = _open(path, "channels" if allow_4d else "image")
    return LoadedImage(_to_tensor(values, np.float32), grid)


def load_labels(path: PathLike, *, grid: Grid | None = None) -> LoadedLabels:
    """Read labels: whole numbers of at least 0, or a 4-D file with one structure a channel.

    Args: grid: of the image that they belong to; labels within a tenth of a voxel of it get this very grid.
    Returns: labels (1, 1, *s), or (1, c, *s) of a 4-D file, int64; their grid.
    Raises: FileNotFoundError, ValueError; GridMismatchError if they are not on `grid`.
    """
    values, own, _ = _open(path, "channels")
    own = _same_grid(path, own, grid, "labels")
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        bad = values[values != np.rint(values)]
        raise ValueError(
            f"{path}: labels must be whole numbers; {bad.size} of {values.size} are not, such as {float(bad[0]):g}; "
            "resample them by nearest neighbor instead of linearly, or is this an image?"
        )
    if values.dtype.kind in "if" and values.min() < 0:
        raise ValueError(
            f"{path}: labels must be at least 0; the smallest is {int(values.min())}; "
            "give the background 0, or is this an image?"
        )
    return LoadedLabels(_to_tensor(values, np.int64), own)


def load_mask(path: PathLike, *, grid: Grid | None = None) -> LoadedMask:
    """Read a mask: 1 where the file is above 0, else 0.

    Args: grid: of the image that it belongs to, as in `load_labels`.
    Raises: FileNotFoundError, ValueError if no voxel is above 0; GridMismatchError if it is not on `grid`.
    """
    values, own, _ = _open(path, "image")
    own = _same_grid(path, own, grid, "mask")
    if not bool((values > 0).any()):
        raise ValueError(f"{path}: a mask must have voxels above 0; it is empty; is it the right file?")
    return LoadedMask(_to_tensor(values > 0, np.float32), own)


def save_image(path: PathLike, image: Shaped[Tensor, "1 c *s"], grid: Grid) -> None:
    """Write an image on its grid: .nii or .nii.gz as float32 (channels as a fourth axis), .png as whole numbers.

    Args: image: finite; for .png 2-D, one channel, 0 to 255 (8 bits) or to 65535 (16 bits), rounded.
    Raises: ValueError, GridMismatchError.
    """
    require_on_grid(image, grid, "image")
    values = image.detach().cpu().to(torch.float32)
    _require_finite(values, "image")
    if Path(path).suffix.lower() == ".png":
        _save_png(path, values)
    else:
        _save_nifti(path, _to_array(values), grid, "image")


def save_labels(path: PathLike, labels: Shaped[Tensor, "1 c *s"], grid: Grid) -> None:
    """Write labels as the smallest of uint8, int16 and int32 that holds them.

    Args: labels: whole numbers of at least 0, an integer or boolean dtype; several channels make a 4-D file.
    Raises: TypeError for floating point, ValueError, GridMismatchError.
    """
    require_on_grid(labels, grid, "labels")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must have an integer dtype; got {labels.dtype}; use labels.round().long().")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 2**31:
        raise ValueError(f"labels must be from 0 to 2147483647; got {low} to {high}; renumber them.")
    dtype = np.uint8 if high < 2**8 else np.int16 if high < 2**15 else np.int32
    _save_nifti(path, _to_array(labels.detach().cpu()).astype(dtype), grid, "labels")


# -- fields -----------------------------------------------------------------------------------------------------
def load_ddf(path: PathLike) -> LoadedField:
    """Read a ddf in voxels of its own grid, (X, Y, Z, 3) or in 2-D (X, Y, 1, 2).

    Raises: FileNotFoundError, ValueError, for ITK's layout too (`import_itk` reads that).
    """
    values, grid, _ = _open(path, "ddf")
    return LoadedField(_to_tensor(values, np.float32), grid)


def save_ddf(path: PathLike, ddf: Float[Tensor, "1 d *s"], grid: Grid) -> None:
    """Write a ddf (voxels of `grid`) as DeepReg and Learn2Reg do: (X, Y, Z, 3), the grid's header, float32.

    Raises: ValueError, GridMismatchError.
    """
    _save_nifti(path, _field_array(ddf, grid), grid, "ddf, voxels, fixed to moving")


def export_itk(path: PathLike, ddf: Float[Tensor, "1 d *s"], grid: Grid, *, moving_grid: Grid | None = None) -> None:
    """Write a ddf as the displacement field of ITK, ANTs and Slicer: (X, Y, Z, 1, 3), LPS mm, vector intent.

    Convention: sitk.DisplacementFieldTransform of it takes a world point of the fixed image to the moving image, so
        sitk.Resample(moving_file, fixed_file, transform) does what field.warp does with both grids.

    Args:
        ddf: voxels of `grid`, the fixed one.
        moving_grid: the map does not depend on it, the two images meet in the world; if given, it is checked that
            ITK can hold it too.

    Raises: ValueError if axes are not at right angles, which ITK cannot hold; GridMismatchError.
    """
    for name, each in (("fixed", grid), ("moving", moving_grid)):
        if each is not None and not right_angles(each):
            raise ValueError(
                f"ITK holds only axes at right angles; those of the {name} grid are sheared; resample that image first."
            )
    if moving_grid is not None and moving_grid.dim != grid.dim:
        raise ValueError(f"both grids must have one dimension; got {grid.dim}-D and {moving_grid.dim}-D.")
    _field_array(ddf, grid)
    world = field.convert_ddf(ddf.detach().cpu(), grid, to=Axes.WORLD, from_=Axes.VOXEL)
    array = _field_array(_flip_lps(world), grid)  # (X, Y, Z, d)
    array = array[:, :, :, None]  # (X, Y, Z, 1, d)
    _save_nifti(path, array, grid, "displacement, mm, LPS", intent=INTENT_VECTOR)


def import_itk(path: PathLike) -> LoadedField:
    """Read a displacement field of ITK (LPS mm, NIfTI or by SimpleITK MHA and NRRD) as a ddf in voxels.

    NIfTI files of intent 1006 (displacement) hold RAS mm, as ITK reads them too.
    Raises: FileNotFoundError, ValueError.
    """
    values, grid, intent = _open(path, "itk")
    world = _to_tensor(values, np.float64)
    world = world if intent == INTENT_DISPLACEMENT else _flip_lps(world)
    return LoadedField(field.convert_ddf(world, grid, to=Axes.VOXEL, from_=Axes.WORLD).float(), grid)


def _flip_lps(vectors: Tensor) -> Tensor:
    """Between RAS and LPS: the first two components change sign."""
    signs = torch.tensor([-1.0, -1.0, 1.0][: vectors.shape[1]], dtype=vectors.dtype)
    return vectors * signs.reshape(1, -1, *[1] * (vectors.ndim - 2))


def _field_array(ddf: Tensor, grid: Grid) -> np.ndarray:
    """(X, Y, Z, 3) or (X, Y, 1, 2) float32 of a checked ddf."""
    d = grid.dim
    if ddf.ndim != d + 2 or tuple(ddf.shape[:2]) != (1, d):
        hint = "; channels last? use ddf.movedim(-1, 1)" if ddf.shape[-1] == d else ""
        raise ValueError(f"ddf must be (1, {d}, *{d} sizes) on a {d}-D grid; got {tuple(ddf.shape)}{hint}.")
    require_on_grid(ddf, grid, "ddf")
    values = ddf.detach().cpu().float()
    _require_finite(values, "ddf")
    array = values[0].movedim(0, -1).numpy()
    return array[:, :, None] if d == 2 else array


# -- points, matrices and JSON ----------------------------------------------------------------------------------
def load_points(path: PathLike) -> Float64[Tensor, "1 k d"]:
    """Read landmarks, RAS+ mm, from a CSV file with header x,y,z (x,y in 2-D), one point a line.

    Raises: FileNotFoundError, ValueError.
    """
    _require_file(path)
    try:
        lines = list(csv.reader(Path(path).read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"{path}: points must be CSV text; got other data; export them as CSV.") from None
    lines = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    if not lines:
        raise ValueError(f"{path}: points must have a header x,y,z and a line a point; it is empty; export them again.")
    header = [cell.lower() for cell in lines[0]]
    if header not in (["x", "y"], ["x", "y", "z"]):
        raise ValueError(
            f"{path}: the first line must be the header x,y,z (in 2-D x,y); got {','.join(lines[0])[:60]}; add it, and "
            "check that the points are RAS+ mm."
        )
    if len(lines) == 1:
        raise ValueError(f"{path}: at least one point is expected; got none below the header; export them again.")
    points = [_parse_point(path, number, cells, header) for number, cells in enumerate(lines[1:], start=1)]
    return torch.tensor([points], dtype=torch.float64)


def _parse_point(path: PathLike, number: int, cells: list[str], header: list[str]) -> list[float]:
    if len(cells) != len(header):
        raise ValueError(
            f"{path}: each point must have {len(header)} columns, {','.join(header)}; point {number} has {len(cells)}; "
            "use a point for decimals and a comma between columns."
        )
    try:
        point = [float(cell) for cell in cells]
    except ValueError:
        raise ValueError(
            f"{path}: coordinates must be numbers; point {number} is {','.join(cells)[:60]}; mend or remove it."
        ) from None
    if not all(math.isfinite(x) for x in point):
        raise ValueError(
            f"{path}: coordinates must be finite; point {number} is {','.join(cells)}; "
            "remove it from both files of the pair."
        )
    return point


def save_points(path: PathLike, points: Float[Tensor, "1 k d"]) -> None:
    """Write landmarks (RAS+ mm) as `load_points` reads them, in full precision.

    Raises: ValueError if they are not (1, k, 2) or (1, k, 3) finite numbers.
    """
    if points.ndim != 3 or points.shape[0] != 1 or points.shape[-1] not in (2, 3):
        raise ValueError(f"points must be (1, k, 2) or (1, k, 3) mm; got {tuple(points.shape)}; save one case a file.")
    _require_finite(points, "points")
    lines = [",".join("xyz"[: points.shape[-1]])]
    lines += [",".join(repr(x) for x in point) for point in points[0].detach().double().tolist()]
    _write_text(path, "\n".join(lines) + "\n")


def load_matrix(path: PathLike) -> Float64[Tensor, "m m"]:
    """Read a world matrix `moving_from_fixed`, RAS mm: text, 4 lines of 4 numbers (in 2-D 3 of 3).

    Raises: FileNotFoundError, ValueError.
    """
    _require_file(path)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows = [[float(x) for x in line.split()] for line in lines if line.strip()]
    except ValueError:  # UnicodeDecodeError is one
        raise ValueError(f"{path}: a matrix must be lines of numbers; got other text; is it the right file?") from None
    d = len(rows) - 1
    if d not in (2, 3) or any(len(row) != d + 1 for row in rows):
        raise ValueError(
            f"{path}: a matrix must be 4 lines of 4 numbers (in 2-D 3 of 3); got lines of "
            f"{[len(row) for row in rows][:8]} numbers; is it the right file?"
        )
    matrix = torch.tensor(rows, dtype=torch.float64)
    _check_matrix(f"{path}: ", matrix)
    return matrix


def save_matrix(path: PathLike, matrix: Float[Tensor, "m m"]) -> None:
    """Write a world matrix `moving_from_fixed`, RAS mm, as text in full precision.

    Raises: ValueError if it is not a finite, invertible (3, 3) or (4, 4) matrix with last row 0 ... 0 1.
    """
    matrix = matrix.detach().cpu().double()
    if tuple(matrix.shape) not in ((3, 3), (4, 4)):
        raise ValueError(f"matrix must be (4, 4), in 2-D (3, 3); got {tuple(matrix.shape)}.")
    _check_matrix("", matrix)
    _write_text(path, "\n".join(" ".join(repr(x) for x in row) for row in matrix.tolist()) + "\n")


def _check_matrix(where: str, matrix: Tensor) -> None:
    last = [0.0] * (len(matrix) - 1) + [1.0]
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{where}a matrix must be finite; got NaN or infinity in it; compute it again.")
    if matrix[-1].tolist() != last:
        raise ValueError(
            f"{where}the last row of a matrix must be {last}; got {matrix[-1].tolist()}; is it transposed?"
        )
    if abs(float(torch.linalg.det(matrix))) < 1e-9:
        raise ValueError(f"{where}a matrix must be invertible; its determinant is 0; compute it again.")


def save_json(path: PathLike, data: Any) -> None:
    """Write JSON; NaN and infinity, which JSON has not, become null; NumPy and torch scalars become numbers."""
    _write_text(path, json.dumps(_plain(data), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return _plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- writing so that nothing is lost ----------------------------------------------------------------------------
@contextmanager
def write_atomically(path: PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`, with its extension; on success it takes the place of `path`.

    The folder is made if need be. If the block raises, nothing is left and an older `path` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(folder: PathLike) -> Path:
    """Check before long work that files can be written to `folder`, without making it; returns it.

    Raises: ValueError if it, or the closest folder above it that exists, cannot be written to.
    """
    folder = Path(folder)
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    mend = "choose another output folder, or change its permissions"
    if not existing.is_dir():
        raise ValueError(f"{folder} must be a folder for the output; {existing} is a file; {mend}.")
    probe = existing / f".{secrets.token_hex(8)}.partial"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{folder} must be a folder that can be written to; got: {error.strerror}; {mend}.") from None
    return folder


def _write_text(path: PathLike, text: str) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _save_nifti(path: PathLike, array: np.ndarray, grid: Grid, description: str, *, intent: int = 0) -> None:
    """An array whose first axes are the grid's, with sform and qform (code 1) and mm."""
    if not Path(path).name.lower().endswith(NIFTI):
        raise ValueError(f"{path}: the extension must be .nii.gz or .nii (images also .png); rename the output.")
    affine = np.eye(4)
    d = grid.dim
    affine[:d, :d] = grid.world_from_voxel[:d, :d].numpy()
    affine[:d, 3] = grid.world_from_voxel[:d, d].numpy()
    nifti = nib.Nifti1Image(array, affine)
    nifti.set_sform(affine, code=1)
    nifti.set_qform(affine, code=1 if right_angles(grid) else 0)  # a qform cannot say shear
    nifti.header.set_xyzt_units("mm")
    nifti.header["descrip"] = description
    if intent:
        nifti.header.set_intent(intent)
    with write_atomically(path) as temporary:
        if temporary.suffix.lower() != ".gz":
            nib.save(nifti, temporary)
            return
        with temporary.open("wb") as file, igzip.IGzipFile("", "wb", 1, file, mtime=0) as stream:  # gzip, but 8 times
            nifti.to_stream(stream)  # as fast; without name and time, so that the same image gives the same bytes


def _save_png(path: PathLike, image: Tensor) -> None:
    import skimage.io

    if image.ndim != 4 or image.shape[1] != 1:
        raise ValueError(
            f"{path}: a PNG holds one 2-D gray image; got shape {tuple(image.shape)}; use .nii.gz, or a slice."
        )
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"{path}: a PNG holds numbers from 0 to 65535; got {low:g} to {high:g}; scale it, or use .nii.gz."
        )
    if high <= 1 and not bool((image == image.round()).all()):
        raise ValueError(
            f"{path}: a PNG holds whole numbers; got {low:g} to {high:g}; multiply the image by 255, or use .nii.gz."
        )
    dtype = np.uint8 if round(high) <= 255 else np.uint16
    with write_atomically(path) as temporary:
        skimage.io.imsave(temporary, image[0, 0].round().numpy().astype(dtype), check_contrast=False)


# -- what they share --------------------------------------------------------------------------------------------
def _open(path: PathLike, kind: Kind) -> tuple[np.ndarray, Grid, int]:
    """Voxels (X, Y[, Z], c), grid and NIfTI intent of a file without errors; warns of a qform unlike the sform."""
    scan = read(path, kind=kind)
    for finding in scan.findings:
        if finding.severity == "error":
            raise (FileNotFoundError if scan.missing else ValueError)(_name(path, finding))
    if scan.conflict is not None:
        warnings.warn(_name(path, scan.conflict), HeaderWarning, stacklevel=3)
    assert scan.values is not None
    assert scan.grid is not None
    intent = int(scan.header["intent_code"]) if scan.header is not None else INTENT_VECTOR
    return scan.values, scan.grid, intent


def _name(path: PathLike, finding: Finding) -> str:
    return f"{os.fspath(path)}: {finding}"


def _require_file(path: PathLike) -> None:
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: there is no such file; check the spelling and the folder.")
    if os.path.isdir(path):
        raise ValueError(f"{path}: a file is expected; it is a folder; give the file in it.")


def _require_finite(values: Tensor, name: str) -> None:
    if not values.is_floating_point() or bool(values.sum().isfinite()):
        return  # a sum is finite only of what is; the other way round it may have run over
    bad = int((~values.isfinite()).sum())
    if bad:
        raise ValueError(f"{name} must be finite; {bad} of {values.numel()} are NaN or infinite; nothing was written.")


def _same_grid(path: PathLike, own: Grid, grid: Grid | None, name: str) -> Grid:
    if grid is None:
        return own
    if own.shape == grid.shape and own.is_close(grid, tolerance=SAME_PLACE_VOXELS * min(grid.spacing)):
        return grid
    raise GridMismatchError(
        f"{path}: {name} must be on the grid of their image, {grid} at {_place(grid)}; got {own} at {_place(own)}; "
        "resample them, for example with nibabel.processing.resample_from_to(labels, image, order=0)."
    )


def _place(grid: Grid) -> str:
    return "(" + ", ".join(f"{x:.4g}" for x in grid.origin) + ")"


def _to_tensor(values: np.ndarray, dtype: Any) -> Tensor:
    """(X, Y[, Z], c) array to (1, c, X, Y[, Z]) tensor."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=dtype))[None]


def _to_array(image: Tensor) -> np.ndarray:
    """(1, c, *s) tensor to an array (*s), or with several channels (X, Y, Z, c)."""
    array = image[0].movedim(0, -1).numpy()
    if array.shape[-1] == 1:
        return array[..., 0]
    return array[:, :, None] if array.ndim == 3 else array


__all__ = [
    "HeaderWarning",
    "LoadedField",
    "LoadedImage",
    "LoadedLabels",
    "LoadedMask",
    "Report",
    "doctor",
    "export_itk",
    "import_itk",
    "load_ddf",
    "load_image",
    "load_labels",
    "load_mask",
    "load_matrix",
    "load_points",
    "require_writable",
    "save_ddf",
    "save_image",
    "save_json",
    "save_labels",
    "save_matrix",
    "save_points",
    "write_atomically",
]
