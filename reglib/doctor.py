"""What a file says about itself, and what is wrong with it.

`read` opens an image once and collects every fault that it finds; `io` raises the first of them, `doctor` lists
them all, with the warnings and notes that a loader keeps to itself. So `doctor(path).ok` is true exactly where
`io.load_image(path)` works.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from nibabel.spatialimages import HeaderDataError

from .grid import Grid, apply_affine

PathLike = str | os.PathLike[str]
Kind = Literal["image", "channels", "ddf", "itk"]
NIFTI = (".nii", ".nii.gz")
READERS = {".nrrd": "Nrrd", ".nhdr": "Nrrd", ".mha": "Meta", ".mhd": "Meta", ".dcm": "GDCM"}  # of ITK
ITK = tuple(READERS)
PICTURES = (".png", ".jpg", ".jpeg")
SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".jpeg": b"\xff\xd8\xff"}
SIGNATURES |= {".nrrd": b"NRRD", ".nhdr": b"NRRD", ".mha": b"NDims", ".mhd": b"NDims"}  # decoders guess, some print
NOT_COMPRESSED = "it is not compressed"
SAME_PLACE_VOXELS = 0.1  # headers that agree to this are one grid: the rest is rounding


class HeaderWarning(UserWarning):
    """A header that contradicts itself; the text names what is used."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or unusual: what, expected and got in `sentence`, the way to mend it in `cure`."""

    severity: Literal["error", "warning", "note"]
    sentence: str
    cure: str

    def __str__(self) -> str:
        return f"{self.sentence}; {self.cure}."


@dataclass(frozen=True)
class Report:
    """What `doctor` found.

    Attributes:
        path: the file or DICOM folder.
        facts: as far as they could be read: shape, spacing (mm per voxel), size_mm, orientation, oblique_degrees,
            dtype, range, sform_code, qform_code, units.
        findings: every fault, errors first.
    """

    path: Path
    facts: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The faults with which the file cannot be loaded as an image."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def ok(self) -> bool:
        """Whether `io.load_image` takes the file."""
        return not self.errors

    def __str__(self) -> str:
        lines = [str(self.path)]
        lines += [f"  {name:<16}{_show_fact(name, value)}" for name, value in self.facts.items()]
        for found in self.findings:
            lines += [f"  {found.severity.upper():<8}{found.sentence}", f"          -> {found.cure}"]
        return "\n".join(lines if self.findings else [*lines, "  nothing wrong"])


@dataclass
class Scan:
    """A file as read. `values` is (X, Y[, Z], c), voxels as stored; it and `grid` are None where they cannot be had."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    values: np.ndarray | None = None
    grid: Grid | None = None
    header: Any = None  # of a NIfTI file
    missing: bool = False
    conflict: Finding | None = None  # qform and sform differ

    def error(self, sentence: str, cure: str) -> None:
        """Note a fault with which the file cannot be used."""
        self.findings.append(Finding("error", sentence, cure))

    def say(self, severity: Literal["warning", "note"], sentence: str, cure: str) -> None:
        """Note something that the file can be used with."""
        self.findings.append(Finding(severity, sentence, cure))


def doctor(path: PathLike) -> Report:
    """Examine an image file or a DICOM folder; lists all faults it finds and never raises for a bad file.

    Args: path: one file or DICOM folder; for several, call it for each.
    """
    scan = read(path)
    with np.errstate(all="ignore"):
        if scan.header is not None:
            _judge_header(scan)
        if scan.grid is not None:
            _judge_grid(scan)
        if scan.values is not None:
            _judge_values(scan)
    rank = {"error": 0, "warning": 1, "note": 2}
    return Report(scan.path, scan.facts, tuple(sorted(scan.findings, key=lambda f: rank[f.severity])))


def read(path: PathLike, *, kind: Kind = "image") -> Scan:
    """Read a file and note every error in it.

    Args: kind: what its axes must be: "image" one value a voxel; "channels" also a 4-D file; "ddf" (X, Y, Z, 3) or
        (X, Y, 1, 2); "itk" the same as ITK stores vectors, with an axis of one voxel before the last.
    """
    scan = Scan(Path(path))
    reader = _reader(scan)
    if reader is not None:
        with np.errstate(all="ignore"):
            reader(scan, kind)
    if scan.values is not None:
        _check_finite(scan)
    return scan


def _reader(scan: Scan) -> Callable[[Scan, Kind], None] | None:
    """The function that reads this kind of file, or None with the reason noted."""
    path, name = scan.path, scan.path.name.lower()
    if not os.path.exists(path):
        scan.missing = True
        scan.error("there is no such file", "check the spelling and the folder")
    elif path.is_dir():
        return _read_dicom
    elif not name.endswith(NIFTI + PICTURES + ITK):
        known = " ".join(NIFTI + PICTURES + ITK)
        got = f'"{path.suffix}"' if path.suffix else "no extension"
        scan.error(f"its extension must be one of {known}; got {got}", "rename the file, or convert it to .nii.gz")
    elif path.stat().st_size == 0:
        scan.error("it is empty (0 bytes)", "copy or download it again")
    elif (start := _start(scan)) is None:
        pass
    elif name.endswith(NIFTI):
        return _read_nifti
    elif SIGNATURES.get(path.suffix.lower(), b"") not in start:
        scan.error(f"a {path.suffix} file is expected; its content is not of this kind", "rename it to what it is")
    else:
        return _read_picture if name.endswith(PICTURES) else _read_itk
    return None


def _start(scan: Scan) -> bytes | None:
    """The first bytes, or None with the reason noted."""
    try:
        with scan.path.open("rb") as stream:
            return stream.read(2000)
    except OSError as error:
        scan.error(f"it cannot be opened ({error.strerror or type(error).__name__})", "check its permissions")
        return None


# -- what every kind of file is asked ---------------------------------------------------------------------------
def _layout(scan: Scan, shape: tuple[int, ...], kind: Kind) -> tuple[int, ...] | None:
    """The spatial sizes of a file of this shape, or None if it has no image axes; notes what does not fit `kind`."""
    scan.facts["shape"] = shape
    if len(shape) < 2 or min(shape) < 1:
        got = " x ".join(map(str, shape)) or "no axes"
        scan.error(
            f"an image needs two or three axes of at least 1 voxel; got {got}", "export it again from its source"
        )
        return None
    spatial = shape[:2] if shape[2:3] == (1,) else shape[:3]
    count, last = math.prod(shape[3:]), shape[-1]
    vector = len(shape) == 5 and shape[3] == 1 and last > 1
    if kind == "itk":
        _check_itk_layout(scan, shape, spatial, vector)
    elif kind == "ddf":
        _check_ddf_layout(scan, shape, spatial, vector)
    elif vector:
        scan.error(
            f"each voxel must hold one gray value; got {last} values (colors or vectors, shape {_show(shape)})",
            "convert colors to gray, or read a displacement field with io.import_itk",
        )
    elif count > 1 and (kind == "image" or count != shape[3]):
        _note_volumes(scan, shape, spatial)
    return spatial


def _note_volumes(scan: Scan, shape: tuple[int, ...], spatial: tuple[int, ...]) -> None:
    volumes = f"{math.prod(shape[3:])} volumes, shape {_show(shape)}"
    scan.error(
        f"one {len(spatial)}-D image is expected; got {len(shape)}-D ({volumes})",
        "split it, for example with nibabel.four_to_three(image), or read it as what it is: labels, one structure a "
        "volume, with io.load_labels, a displacement field with io.load_ddf, channels with allow_4d=True",
    )


def _check_ddf_layout(scan: Scan, shape: tuple[int, ...], spatial: tuple[int, ...], vector: bool) -> None:
    d = len(spatial)
    if len(shape) == 4 and shape[3] == d:
        return
    wanted = "(X, Y, Z, 3) or, in 2-D, (X, Y, 1, 2)"
    if vector:
        cure = "this looks like a field as ITK and ANTs write it, read it with io.import_itk"
    elif len(shape) == 4 and shape[0] in (2, 3):
        cure = "components first? move them last with numpy.moveaxis(field, 0, -1)"
    else:
        cure = "check that it is a displacement field and not an image"
    scan.error(f"a ddf must have shape {wanted}, a component for each of its axes; got {_show(shape)}", cure)


def _check_itk_layout(scan: Scan, shape: tuple[int, ...], spatial: tuple[int, ...], vector: bool) -> None:
    d = len(spatial)
    if vector and shape[4] == d:
        return
    cure = "check that it is a displacement field and not an image"
    if len(shape) == 4 and shape[3] == d:
        cure = "this looks like a ddf in voxels, read it with io.load_ddf"
    scan.error(
        f"an ITK displacement field must have shape (X, Y, Z, 1, 3) or, in 2-D, (X, Y, 1, 1, 2); got {_show(shape)}",
        cure,
    )


def _check_dtype(scan: Scan, dtype: np.dtype) -> bool:
    """Whether voxels of this type are numbers; notes RGB, complex and others."""
    scan.facts["dtype"] = "RGB" if dtype.names else dtype.name
    if dtype.names:
        sentence, cure = "each voxel must hold one gray value; got RGB colors", "convert it to gray first"
    elif dtype.kind == "c":
        sentence = f"voxels must be real numbers; got {dtype.name}"
        cure = "save its magnitude, numpy.abs(values), as an image of its own"
    elif dtype.kind not in "biuf":
        sentence, cure = f"voxels must be numbers; got {dtype.name}", "save it again as float32"
    else:
        return True
    scan.error(sentence, cure)
    return False


def _check_finite(scan: Scan) -> None:
    values = scan.values
    if values is None or values.dtype.kind != "f":
        return
    limit = float(np.finfo(np.float32).max)
    bad = ~(np.abs(values) <= limit)
    if not bad.any():
        return
    first = tuple(int(i) for i in np.unravel_index(int(bad.reshape(-1).argmax()), values.shape))
    if values.shape[-1] == 1:
        first = first[:-1]
    what = "NaN or infinite" if not np.isfinite(values[bad]).all() else "beyond the range of float32"
    scan.error(
        f"all voxels must be finite; {int(bad.sum())} of {values.size} are {what}, the first at voxel {first}",
        "replace them, for example with numpy.nan_to_num",
    )


# -- NIfTI ------------------------------------------------------------------------------------------------------
def _read_nifti(scan: Scan, kind: Kind) -> None:
    content, damage = _content(scan.path)
    header = _header(scan, content, damage)
    if header is None:
        return
    scan.header = header
    shape = _shape(header)
    spatial = _layout(scan, shape, kind)
    if spatial is not None:
        scan.grid = _nifti_grid(scan, header, spatial)
        scan.conflict = _conflict(header, spatial)
    try:
        dtype = header.get_data_dtype()
    except (KeyError, HeaderDataError):
        scan.error(
            f"its data type must be one of NIfTI's; got code {int(header['datatype'])}", "save it again as float32"
        )
        return
    if _check_dtype(scan, dtype) and spatial is not None:
        stored = _voxels(scan, content, damage, shape, dtype)
        scan.values = None if stored is None else stored.reshape(*spatial, -1, order="F")


def _content(path: Path) -> tuple[bytearray, str]:
    """All bytes, decompressed, as far as they can be had, and why not all ("" if all)."""
    content = bytearray()
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            while chunk := stream.read1(1 << 20):
                content += chunk
    except EOFError:
        return content, "its compressed stream breaks off"
    except gzip.BadGzipFile:
        return content, "its compressed stream is damaged" if content else NOT_COMPRESSED
    except zlib.error:
        return content, "its compressed stream is damaged"
    except OSError as error:
        return content, f"it cannot be read ({error.strerror or type(error).__name__})"
    return content, ""


def _header(scan: Scan, content: bytearray, damage: str) -> Any:
    """The header as it stands in the file (nibabel mends some faults when it loads), or None with the reason noted."""
    if bytes(content[344:348]) == b"n+1\0":
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
    elif bytes(content[4:8]) == b"n+2\0" and len(content) >= 540:
        header = nib.Nifti2Header(bytes(content[:540]), check=False)
    else:
        _note_no_header(scan, content, damage)
        return None
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1  # the standard reads 0 as 1
    return header


def _note_no_header(scan: Scan, content: bytearray, damage: str) -> None:
    again = "copy or download it again"
    if damage == NOT_COMPRESSED:
        scan.error("a .nii.gz must be compressed by gzip; it is not", "if it is a NIfTI file, rename it to end in .nii")
    elif damage:
        scan.error(f"no header could be read: {damage}, after {len(content)} bytes of at least 352", again)
    elif bytes(content[:2]) == b"\x1f\x8b":
        scan.error("a .nii must not be compressed; it is, by gzip", "rename it to end in .nii.gz")
    elif len(content) < 348:
        scan.error(f"a NIfTI file has a header of at least 348 bytes; got {len(content)} bytes in all", again)
    else:
        what = "text" if _is_text(content) else "other data"
        scan.error(
            f'a NIfTI header is expected (with "n+1" at byte 344); got {what}', "check that it is the right file"
        )


def _is_text(content: bytearray) -> bool:
    return all(32 <= byte < 127 or byte in (9, 10, 13) for byte in content[:348])


def _shape(header: Any) -> tuple[int, ...]:
    dim = [int(n) for n in header["dim"]]
    return tuple(dim[1 : 1 + dim[0]]) if 1 <= dim[0] <= 7 else ()


def _nifti_grid(scan: Scan, header: Any, spatial: tuple[int, ...]) -> Grid | None:
    """The grid by the header, or None with the fault noted."""
    d = len(spatial)
    zooms = tuple(float(z) for z in header["pixdim"][1 : 1 + d])
    source = "sform" if header["sform_code"] > 0 else "qform" if header["qform_code"] > 0 else "voxel size"
    mend = "copy the header of the original scan, or set it with nibabel's set_sform and set_zooms"
    if not all(math.isfinite(z) and z != 0 for z in zooms):
        scan.error(f"the voxel size (pixdim) must be above 0 mm along every axis; got {_show(zooms)}", mend)
    reduced = header.copy()
    reduced.set_data_shape(spatial)
    try:
        affine = header.get_best_affine()
        grid = Grid.from_nifti(reduced)
    except (ValueError, HeaderDataError):
        scan.error(f"the affine by the {source} must be finite and invertible; got {_matrix(header, source, d)}", mend)
        return None
    if not np.isfinite(affine).all():  # a 2-D grid does not use all of it
        scan.error(f"the affine by the {source} must be finite; got NaN or infinity in it", mend)
    return grid


def _matrix(header: Any, source: str, d: int) -> str:
    """The part of the matrix at fault, on one line."""
    try:
        affine = header.get_best_affine()
    except (ValueError, HeaderDataError) as error:
        return " ".join(str(error).split())
    rows = ["[" + ", ".join(f"{v:.4g}" for v in row[:d]) + "]" for row in affine[:3]]
    return f"[{', '.join(rows)}]"


def _conflict(header: Any, spatial: tuple[int, ...]) -> Finding | None:
    """A warning if both matrices are in use and put a corner more than `SAME_PLACE_VOXELS` apart."""
    if header["qform_code"] <= 0 or header["sform_code"] <= 0:
        return None
    cure = "keep the right one, for example with nibabel's set_qform(image.affine, code=1)"
    try:
        qform = torch.from_numpy(np.array(header.get_qform(), dtype=float))
    except (ValueError, HeaderDataError):
        return Finding("warning", "the qform is not a rotation; the sform is used, as in nibabel", cure)
    sform = torch.from_numpy(np.array(header.get_sform(), dtype=float))
    ends = [torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in spatial]
    corners = torch.cartesian_prod(*ends)
    corners = torch.cat([corners, torch.zeros(len(corners), 3 - len(spatial), dtype=torch.float64)], dim=1)
    apart = float((apply_affine(sform, corners) - apply_affine(qform, corners)).norm(dim=1).max())
    finest = float(sform[:3, : len(spatial)].norm(dim=0).min())
    if apart <= SAME_PLACE_VOXELS * finest:
        return None
    return Finding(
        "warning",
        f"the qform and the sform place a corner {apart:.3g} mm apart; the sform is used, as in nibabel",
        cure,
    )


def _voxels(scan: Scan, content: bytearray, damage: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The voxels, scaled as the header says, in the file's shape; None with the fault noted."""
    header = scan.header
    offset, first = float(header["vox_offset"]), int(header.single_vox_offset)
    if not first <= offset < math.inf:
        scan.error(
            f"its voxels must begin at byte {first} or later (vox_offset); got {offset:g}",
            "export it again from its source",
        )
        return None
    start = int(offset)
    wanted, got = math.prod(shape) * dtype.itemsize, max(len(content) - start, 0)
    if got < wanted or damage:
        why = damage or "the file ends early"
        scan.error(
            f"its {_show(shape)} voxels of {dtype.name} take {wanted} bytes; got {got}, {why}",
            "copy or download it again",
        )
        return None
    if got > wanted:
        scan.say(
            "warning",
            f"its {_show(shape)} voxels of {dtype.name} take {wanted} bytes; the file holds {got}",
            "check that shape and data type are those of its source",
        )
    return _scaled(scan, np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape, order="F"))


def _scaled(scan: Scan, values: np.ndarray) -> np.ndarray | None:
    """The voxels times slope plus intercept, None with the fault noted."""
    try:
        slope, inter = scan.header.get_slope_inter()
    except HeaderDataError:
        got = float(scan.header["scl_inter"])
        scan.error(f"its intensity offset (scl_inter) must be finite; got {got}", "set it to 0 in the header")
        return None
    return values if slope is None or (slope, inter) == (1, 0) else values.astype(np.float64) * slope + inter


# -- pictures and what SimpleITK reads --------------------------------------------------------------------------
def _read_picture(scan: Scan, kind: Kind) -> None:
    """PNG or JPEG: rows are the first axis; 1 mm, identity."""
    import skimage.io

    try:
        values = np.asarray(skimage.io.imread(scan.path))
    except Exception as error:  # each decoder has its own
        scan.error(f"it must be a picture; the decoder says {_brief(error)}", "copy it again, or save it as .png")
        return
    _take_picture(scan, values, kind)


def _take_picture(scan: Scan, values: np.ndarray, kind: Kind) -> None:
    if values.ndim == 3 and values.shape[2] in (2, 4) and bool((values[..., -1] == values[..., -1].max()).all()):
        values = values[..., :-1]  # the same opacity everywhere says nothing
    if values.ndim == 3 and all(bool((values[..., 0] == values[..., c]).all()) for c in range(values.shape[2])):
        values = values[..., 0]  # gray stored as colors
    if not _check_dtype(scan, values.dtype):
        return
    if values.ndim == 3:
        scan.facts["shape"] = values.shape
        scan.error(
            f"a gray picture is expected; got colors (RGB, {values.shape[2]} channels)",
            "convert it, for example with skimage.color.rgb2gray, or take its green channel",
        )
        return
    if _layout(scan, values.shape, kind) is not None:
        scan.grid, scan.values = Grid(values.shape), values[..., None]


def _simpleitk(scan: Scan) -> Any:
    """The module, or None with its absence noted."""
    try:
        import SimpleITK
    except ImportError:
        what = "a DICOM folder" if scan.path.is_dir() else f"{scan.path.suffix} files"
        scan.error(
            f"reading {what} needs SimpleITK; it is not installed", "pip install SimpleITK, or convert it to .nii.gz"
        )
        return None
    return SimpleITK


def _read_itk(scan: Scan, kind: Kind) -> None:
    sitk = _simpleitk(scan)
    if sitk is None:
        return
    try:
        reader = READERS[scan.path.suffix.lower()] + "ImageIO"
        image = sitk.ReadImage(str(scan.path), imageIO=reader)
    except RuntimeError as error:
        scan.error(f"it must be a {scan.path.suffix} image; SimpleITK says {_brief(error)}", "copy or export it again")
        return
    _take_sitk(scan, sitk, image, kind)


def _read_dicom(scan: Scan, kind: Kind) -> None:
    sitk = _simpleitk(scan)
    if sitk is None:
        return
    warn = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it prints where there is no series; the finding says so
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(scan.path))
    sitk.ProcessObject.SetGlobalWarningDisplay(warn)
    if len(series) != 1:
        cure = "give the file, or the folder that holds the DICOM slices"
        if series:
            cure = "move each series into a folder of its own"
        scan.error(f"a folder must hold one DICOM series; it holds {len(series) or 'none'}", cure)
        return
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(scan.path), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except RuntimeError as error:
        scan.error(f"it must be a DICOM series; SimpleITK says {_brief(error)}", "copy or export it again")
        return
    _check_slices(scan, reader, len(reader.GetFileNames()))
    _take_sitk(scan, sitk, image, kind)


def _check_slices(scan: Scan, reader: Any, count: int) -> None:
    """Note slices that are missing or doubled: their distances must not differ by more than a tenth."""
    tag = "0020|0032"  # image position (patient)
    if count < 3 or not all(reader.HasMetaDataKey(i, tag) for i in range(count)):
        return
    places = np.array([[float(v) for v in reader.GetMetaData(i, tag).split("\\")] for i in range(count)])
    gaps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    if gaps.max() - gaps.min() > 0.1 * np.median(gaps):
        scan.error(
            f"slices must be evenly spaced; got distances from {gaps.min():.3g} to {gaps.max():.3g} mm",
            "look for missing or doubled slices and export the series again",
        )


def _take_sitk(scan: Scan, sitk: Any, image: Any, kind: Kind) -> None:
    components, d = image.GetNumberOfComponentsPerPixel(), image.GetDimension()
    shape = tuple(image.GetSize())
    if components > 1:
        shape = (*shape, *(1,) * (4 - d), components)  # as NIfTI stores them
    spatial = _layout(scan, shape, kind)
    values = sitk.GetArrayFromImage(image)
    if spatial is None or not _check_dtype(scan, values.dtype):
        return
    if d > 3:
        scan.error(f"a {scan.path.suffix} image must have two or three axes; got {d}", "save it as .nii.gz")
        return
    values = values.transpose(*reversed(range(d)), *range(d, values.ndim))
    scan.values = values.reshape(*spatial, -1)
    try:
        grid = Grid.from_sitk(image)
    except ValueError as error:
        scan.error(f"its geometry must be invertible; {_brief(error)}", "export it again from its source")
        return
    if len(spatial) < grid.dim:  # one slice: as Grid.from_nifti reads one
        header = nib.Nifti2Header()
        header.set_data_shape(spatial)
        header.set_sform(grid.world_from_voxel.numpy(), code=1)
        grid = Grid.from_nifti(header)
    scan.grid = grid


def _brief(error: BaseException) -> str:
    """The last line of a library's message, without its full stop: it is the one with the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'"{lines[-1].rstrip(".").replace(". ", ", ")}"' if lines else type(error).__name__


# -- what only the doctor says ----------------------------------------------------------------------------------
def _judge_header(scan: Scan) -> None:
    header = scan.header
    scan.facts["sform_code"], scan.facts["qform_code"] = int(header["sform_code"]), int(header["qform_code"])
    units = {0: "not given", 1: "m", 2: "mm", 3: "micron"}.get(int(header["xyzt_units"]) & 7, "unknown")
    scan.facts["units"] = units
    if scan.conflict is not None:
        scan.findings.append(scan.conflict)
    zooms = [float(z) for z in header["pixdim"][1:4]]
    if scan.facts["sform_code"] <= 0 and scan.facts["qform_code"] <= 0:
        lost = ", and every spacing is exactly 1, as where a header was lost" if set(zooms) == {1.0} else ""
        scan.say(
            "warning",
            f"neither sform nor qform is in use (codes 0), so place and orientation are guesses{lost}",
            "copy the header of the original scan, or set it with nibabel's set_sform",
        )
    if min(zooms) < 0:
        scan.say("warning", f"a voxel size (pixdim) is below 0: {_show(zooms)}", "set it with nibabel's set_zooms")
    if units == "not given":
        scan.say("note", "its unit of length is not given; mm is assumed", "set it with nibabel's set_xyzt_units('mm')")
    elif units != "mm":
        scan.say(
            "warning",
            f"its unit of length is {units}; the numbers are read as mm, as nibabel does",
            "scale its affine to mm and set_xyzt_units('mm')",
        )
    shape = scan.facts.get("shape", ())
    if len(shape) > 3 and set(shape[3:]) == {1}:
        scan.say("note", f"it has axes of one voxel at the end (shape {_show(shape)})", "none needed, they are dropped")
    if len(shape) > 3 and shape[3] > 1 and int(header["xyzt_units"]) & 56:
        scan.say("note", f"its fourth axis is time, {shape[3]} points", "register one time point, or their mean")


def _judge_grid(scan: Scan) -> None:
    grid = scan.grid
    assert grid is not None
    cosines = grid.direction.abs().max(dim=0).values.clamp(max=1)
    oblique = float(torch.rad2deg(torch.acos(cosines)).max())
    scan.facts |= {
        "spacing": grid.spacing,
        "size_mm": grid.extent,
        "orientation": grid.orientation,
        "oblique_degrees": round(oblique, 2),
    }
    finest, coarsest = min(grid.spacing), max(grid.spacing)
    if coarsest > 3 * finest:
        scan.say(
            "warning",
            f"its voxels are {coarsest / finest:.1f} times as long as wide ({_show(grid.spacing)} mm)",
            "give losses and filters the spacing, and trust little along the long side",
        )
    if max(grid.extent) > 3000 or max(grid.extent) < 1:
        scan.say("warning", f"it is {_show(grid.extent)} mm large", "check its unit of length")
    if torch.linalg.det(grid.direction) < 0:
        scan.say(
            "note", f"its axes are left-handed ({grid.orientation})", "none needed, the header says so and is used"
        )
    if oblique > 1:
        scan.say(
            "note",
            f"its axes are {oblique:.1f} degrees off the world's",
            "none needed, but compare it with others in the world, not voxel by voxel",
        )
    if not right_angles(grid):
        scan.say("warning", "its axes are not at right angles (sheared)", "resample it before ITK or ANTs must read it")


def right_angles(grid: Grid) -> bool:
    """Whether ITK can store this grid."""
    products = grid.direction.T @ grid.direction
    return torch.allclose(products, torch.eye(grid.dim, dtype=torch.float64), atol=1e-4)


def _judge_values(scan: Scan) -> None:
    values = scan.values
    assert values is not None
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size == 0:
        return
    low, high = float(finite.min()), float(finite.max())
    scan.facts["range"] = (low, high)
    if low == high:
        scan.say("warning", f"every voxel is {low:g}", "check that it is the right file, there is nothing to align")
    elif low < -500 and high > 200:
        scan.say(
            "note",
            f"its values look like CT in Hounsfield units ({low:g} to {high:g})",
            "clip them to the window of interest before scaling to [0, 1]",
        )
    elif low >= 0 and 0 < high <= 1:
        scan.say("note", f"its values lie in [0, 1] already ({low:g} to {high:g})", "none needed")


def _show_fact(name: str, value: Any) -> str:
    return " to ".join(_show(v) for v in value) if name == "range" else _show(value)


def _show(value: Any) -> str:
    """A fact for people: sizes as 9 x 12 x 7, ranges and numbers in four digits."""
    if isinstance(value, tuple | list):
        return " x ".join(_show(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
