"""From files to files: what `reglib register`, `warp`, `invert` and `evaluate` do, for scripts too.

Everything is read and checked before any work; a file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import field, filters, io, losses, metrics, transforms
from .grid import Axes, Grid, GridMismatchError
from .optimize import Lbfgs, Level, Options, Registration, Term, align, register
from .optimize.levels import Images, checked_scene

UNIT = (-0.01, 1.01)  # a range that images in [0, 1] keep under interpolation; one taken anew from each warped image
# would reward zooming into a flat patch until its noise fills the histogram
MUTUAL_INFORMATION = partial(losses.mi_loss, warped_range=UNIT, fixed_range=UNIT)
HISTOGRAM: dict[str, Any] = {"warped_range": UNIT, "fixed_range": UNIT, "bins": 64}  # to bend by
NOISY = 8.0  # last_sigma of the noisiest gradients


@dataclass(frozen=True)
class Tuned:
    """A loss, the weight of SMOOTH beside it, and how smooth its gradient must end at full resolution, in voxels.

    What is computed from the whole image at once, such as a histogram, or from differences of neighbors has a gradient
    that is noise from voxel to voxel; what sums over windows is smooth by itself.

    With `local`, their local contrast is compared too, and counts for more: in one histogram of a whole image a bias
    field looks like other tissue. With `rimless`, the rims of both subjects do not count where their contrasts
    disagree: a voxel that is half air is dark in one scan and may be anything in the other.
    """

    loss: Callable[..., Tensor]
    weight: float
    last_sigma: float
    local: bool = False
    rimless: bool = False


SIMILARITIES = {
    "lncc": Tuned(partial(losses.lncc_loss, window=5, flat=0.02), 0.2, 6.0),
    "ncc": Tuned(losses.ncc_loss, 1.0, NOISY),
    "mse": Tuned(losses.mse_loss, 0.2, NOISY),
    "mi": Tuned(partial(losses.mi_loss, **HISTOGRAM), 0.5, 7.0, local=True, rimless=True),
    "nmi": Tuned(partial(losses.nmi_loss, **HISTOGRAM), 0.25, 7.0, local=True, rimless=True),
    "ngf": Tuned(partial(losses.ngf_loss, epsilon=0.02), 0.25, NOISY, local=True),
    "mind": Tuned(partial(losses.mind_loss, radius=0), 0.05, 7.0, rimless=True),
}
SMOOTH = (Term(losses.diffusion_loss, 0.05), Term(losses.log_jacobian_loss, 0.2))  # of a ddf
SMOOTH_SPLINES = (Term(losses.bending_loss, 60.0), Term(losses.log_jacobian_loss, 0.3))  # followed to the bottom
SMOOTH_VELOCITY = (Term(losses.diffusion_loss, 0.5),)  # which has no volumes of its own to keep
REGULARIZERS = {"svf": SMOOTH_VELOCITY, "ffd": SMOOTH_SPLINES}  # and SMOOTH for every other model
FINEST = 128  # voxels along the longest axis above which the full resolution is left out
COARSEST = {2: 45, 3: 20}  # voxels along the longest axis to align at: a histogram of fewer than 2000 is misled
AGREE = 0.3  # correlation within both subjects from which their contrasts are taken for alike
JUDGED = 64  # voxels along the longest axis at which a result is compared with the headers
PACKAGES = ("reglib", "torch", "numpy", "nibabel")


@dataclass(frozen=True)
class Pace:
    """How long the deformable part may take: the most steps of each level, coarse to fine, and how they are taken.

    `align_patience` is of the linear alignment before it, which a bend that follows need not wait for long.
    """

    steps: tuple[int, int, int]
    lr: float
    first_sigma: float
    oversampling: int = 1
    align_patience: int = 10


PACES = {
    "fast": Pace((20, 30, 10), lr=0.5, first_sigma=3.0, align_patience=5),
    "accurate": Pace((30, 40, 60), lr=0.2, first_sigma=8.0, oversampling=2),
}
AROUND = 50  # local contrast looks this share of the longest side around a voxel: 4 mm in a head
BESIDE_LOCAL = 0.2  # weight of the images themselves beside their local contrast
FINEST_SIGMA = 0.8  # voxels of a level
ALIGN_TOLERANCE = 1e-3  # the linear alignment ends when `align_patience` steps gain less than this share of the loss
SPLINES: dict[str, Any] = {"optimizer": Lbfgs, "lr": 2.0, "tolerance": 1e-3}  # few parameters: to search lines pays


@dataclass(frozen=True)
class Case:
    """Two images with what is known of them, on their own grids; images in the files' own intensities."""

    fixed: Tensor
    moving: Tensor
    fixed_grid: Grid
    moving_grid: Grid
    fixed_labels: Tensor | None
    moving_labels: Tensor | None
    fixed_points: Tensor | None
    moving_points: Tensor | None
    fixed_mask: Tensor | None
    moving_mask: Tensor | None
    files: tuple[Path, ...]

    def to(self, device: torch.device) -> Case:
        """The same case with its tensors on a device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class Settings:
    """How to register: names as on the command line."""

    transform: str = "diffeo"
    similarity: str = "lncc"
    quality: str = "accurate"
    affine_first: bool = True
    progress: bool = True


def load_case(
    fixed: Path,
    moving: Path,
    *,
    fixed_labels: Path | None = None,
    moving_labels: Path | None = None,
    fixed_points: Path | None = None,
    moving_points: Path | None = None,
    fixed_mask: Path | None = None,
    moving_mask: Path | None = None,
) -> Case:
    """Read and check everything; raises one sentence for the first fault."""
    for first, second, name in ((fixed_labels, moving_labels, "labels"), (fixed_points, moving_points, "points")):
        if (first is None) != (second is None):
            raise ValueError(f"give --fixed-{name} and --moving-{name} together, or neither; only one was given.")
    with ThreadPoolExecutor(max_workers=2) as readers:  # most of reading is to uncompress, on one core a file
        images = list(readers.map(io.load_image, (fixed, moving)))
    grids = [grid for _, grid in images]
    if grids[0].dim != grids[1].dim:
        raise ValueError(
            f"fixed and moving must have one dimension; {fixed} is {grids[0].dim}-D and {moving} is {grids[1].dim}-D. "
            "Take a slice of the larger one first."
        )
    for path, (image, _) in zip((fixed, moving), images, strict=True):
        if float(image.min()) == float(image.max()):
            raise ValueError(
                f"{path} is constant ({float(image.min()):g}); there is nothing to align. Is it the right file?"
            )
    with ThreadPoolExecutor(max_workers=2) as readers:
        read = readers.map(
            lambda p, g: io.load_labels(p, grid=g)[0] if p else None, (fixed_labels, moving_labels), grids
        )
        labels = list(read)
    masks = [io.load_mask(p, grid=g)[0] if p else None for p, g in zip((fixed_mask, moving_mask), grids, strict=True)]
    points = [io.load_points(p) if p else None for p in (fixed_points, moving_points)]
    _check_points(points, grids[0].dim)
    everything = (fixed, moving, fixed_labels, moving_labels, fixed_points, moving_points, fixed_mask, moving_mask)
    files = tuple(path for path in everything if path is not None)
    (f, f_grid), (m, m_grid) = images
    known: Any = (*labels, *points, *masks, files)
    return Case(f, m, f_grid, m_grid, *known)


def _check_points(points: list[Tensor | None], d: int) -> None:
    first, second = points
    if first is None or second is None:
        return
    if first.shape != second.shape or first.shape[-1] != d:
        raise ValueError(
            f"fixed and moving points must be the same number of {d}-D landmarks in one order; got "
            f"{tuple(first.shape[1:])} and {tuple(second.shape[1:])}."
        )


# -- register -----------------------------------------------------------------------------------------------------
def register_case(case: Case, settings: Settings, out: Path, *, device: torch.device) -> dict[str, Any]:
    """Register, write all of `out`'s files, and return what metrics.json holds."""
    start = time.perf_counter()
    io.require_writable(out)
    case = case.to(device)
    result = register_pair(case, settings)
    warped = _in_own_intensities(result, case)
    with ThreadPoolExecutor(max_workers=1) as writer:  # compresses on one core while another computes what is next
        jobs = _write_map(case, result, warped, out, writer)
        measured = _measure(case, result.ddf, warped=warped)
        for job in jobs:
            job.result()  # raises what went wrong
    warnings = _doubts(case, result, settings, measured)
    summary = {"seconds": time.perf_counter() - start, "peak_mb": peak_mb(), **measured}
    summary |= {"warnings": warnings, "interrupted": result.interrupted}
    io.save_json(out / "metrics.json", summary)
    io.save_json(out / "provenance.json", provenance(case.files))
    return summary


def register_pair(case: Case, settings: Settings) -> Registration:
    """The registration alone: a linear alignment, then the deformation, as `settings` say."""
    fixed, moving = _unit_range(case.fixed), _unit_range(case.moving)
    options = Options(progress=settings.progress)
    linear = _align(fixed, moving, case, settings, options)
    if settings.transform in ("affine", "rigid"):
        return _still(linear, case, fixed, moving)
    levels, pace = _levels(case.fixed_grid, 16)[-3:], PACES[settings.quality]
    similarity = SIMILARITIES[settings.similarity]
    masks = _without_rims(case, fixed, moving, linear) if similarity.rimless else (case.fixed_mask, case.moving_mask)
    compared = [Term(similarity.loss)]
    if similarity.local:
        local = (_local(fixed, case.fixed_grid), _local(moving, case.moving_grid))
        compared = [Term(similarity.loss, BESIDE_LOCAL), Term(similarity.loss, 1.0, "local contrast", *local)]
    # The image's own noise is in its own voxels, and levels that are coarser have less of it.
    last = max(similarity.last_sigma / min(levels) ** case.fixed_grid.dim, FINEST_SIGMA)
    sigmas = (max(pace.first_sigma, 2 * last), last)
    descent = replace(options, lr=pace.lr, gradient_sigma=sigmas, oversampling=pace.oversampling)
    return register(
        fixed,
        moving,
        transforms.Sequential(linear.freeze(), _deformable(settings.transform, case.fixed_grid)),
        similarity=compared,
        regularizer=REGULARIZERS.get(settings.transform, SMOOTH),
        weight=similarity.weight,
        levels=levels,
        steps=pace.steps[-len(levels) :],
        moving_grid=case.moving_grid,
        fixed_mask=masks[0],
        moving_mask=masks[1],
        options=_descent(settings.transform, descent),
    )


@torch.no_grad()
def _without_rims(
    case: Case, fixed: Tensor, moving: Tensor, linear: transforms.Linear
) -> tuple[Tensor | None, Tensor | None]:
    """The masks of a case, less the outermost voxels of both subjects if their contrasts disagree once aligned."""
    masks = (case.fixed_mask, case.moving_mask)
    subjects = [(image != _background(image)).any(1, keepdim=True).to(image) for image in (fixed, moving)]
    ddf = linear.ddf().to(fixed)
    seen = field.warp(subjects[1], ddf, mode="nearest", padding="zeros", **_grids(case)) * subjects[0] > 0.5
    if int(seen.sum()) < 2:
        return masks
    pair = [x[:, :1][seen] for x in (fixed, field.warp(moving, ddf, **_grids(case)))]
    centered = [x - x.mean() for x in pair]
    alike = float((centered[0] * centered[1]).mean() / (pair[0].std() * pair[1].std()).clamp(min=1e-9))
    if alike > AGREE:
        return masks
    whole = 3**case.fixed_grid.dim - 0.5
    inner = [(filters.box(subject, window=3) > whole).to(subject) for subject in subjects]
    kept = [x if mask is None else x * (mask > 0) for x, mask in zip(inner, masks, strict=True)]
    return (kept[0], kept[1]) if all(bool(x.any()) for x in kept) else masks


def _descent(transform: str, options: Options) -> Options:
    """How to go down: a composed field by ever shorter steps, splines by L-BFGS."""
    if transform == "ffd":
        return replace(options, **SPLINES)
    return replace(options, decay=0.9, tolerance=0.0)


def _align(fixed: Tensor, moving: Tensor, case: Case, settings: Settings, options: Options) -> transforms.Linear:
    """By mutual information, which knows no contrast, then by what the images are to be compared with."""
    models: tuple[type[transforms.Linear], ...] = (transforms.Rigid, transforms.Affine)
    if settings.transform == "rigid":
        models = (transforms.Rigid,)
    elif settings.transform != "affine" and not settings.affine_first:
        models = ()
    levels = _levels(case.fixed_grid, COARSEST[case.fixed_grid.dim])[:2]
    return align(
        fixed,
        moving,
        case.fixed_grid,
        similarity=MUTUAL_INFORMATION,
        refine=SIMILARITIES[settings.similarity].loss if models and settings.similarity != "mi" else None,
        models=models,
        moving_grid=case.moving_grid,
        masks=(case.fixed_mask, case.moving_mask),
        levels=levels,
        steps=(60, 40)[: len(levels)],
        options=replace(options, tolerance=ALIGN_TOLERANCE, patience=PACES[settings.quality].align_patience),
    )


def _still(transform: transforms.Linear, case: Case, fixed: Tensor, moving: Tensor) -> Registration:
    """A linear map as it is, in the form of a result."""
    with torch.no_grad():
        ddf = transform.ddf().to(fixed.device)
    return Registration(transform, ddf, _warped(moving, ddf, case))


@torch.no_grad()
def _warped(moving: Tensor, ddf: Tensor, case: Case) -> Tensor:
    """The moving image at the fixed image's voxels, 0 outside its field of view."""
    return field.warp(moving, ddf, padding="zeros", **_grids(case))


def _levels(grid: Grid, coarsest: float) -> list[int]:
    """Factors from the coarsest, with so many voxels along the longest axis, to the finest that is worth its time."""
    longest = max(grid.shape)
    factors = [f for f in (8, 4, 2, 1) if longest / f >= coarsest and (f > 1 or longest <= FINEST)]
    return factors or [1]


def _doubts(case: Case, result: Registration, settings: Settings, measured: dict[str, Any]) -> list[str]:
    """One sentence for each reason not to trust a result as it is."""
    doubts = []
    if result.interrupted:
        last = result.history[-1]
        doubts.append(f"interrupted at level {last['level']:g}, step {last['step']:g}; this is the best until then.")
    for factor in result.left_out:
        doubts.append(f"level {factor:g} lost sight of the moving image and is left out.")
    before, after = _losses(case, result.ddf, SIMILARITIES[settings.similarity].loss)
    if not after <= before:
        losses_are = f"{settings.similarity} {before:.4g} before, {after:.4g} after"
        doubts.append(f"less alike than under the headers: {losses_are}.")
    for name, sign in (("dice", -1), ("tre_mm", 1)):
        was, now = (measured.get(f"{name}_{when}", 0.0) for when in ("before", "after"))
        if sign * now > sign * was:
            doubts.append(f"{name} is worse than under the headers: {was:.4g} before, {now:.4g} after.")
    if measured["folding_fraction"] > 0:
        doubts.append(f"the map folds in {100 * measured['folding_fraction']:.2g} % of the image.")
    return doubts


@torch.no_grad()
def _losses(case: Case, ddf: Tensor, similarity: Callable[..., Tensor]) -> list[float]:
    """The similarity loss under the headers and under a map, on coarse images, where both are."""
    images = Images(_unit_range(case.fixed), _unit_range(case.moving))
    scene = checked_scene([images], case.fixed_grid, case.moving_grid, case.fixed_mask, case.moving_mask)
    small = scene.at(Level(max(1.0, max(case.fixed_grid.shape) / JUDGED)))
    coarse = (field.resize_ddf(each, small.grid.shape) for each in (torch.zeros_like(ddf), ddf))
    return [small.compared(each, similarity)[0] for each in coarse]


def _grids(case: Case) -> field.Grids:
    return {"moving_grid": case.moving_grid, "fixed_grid": case.fixed_grid}


def _deformable(name: str, grid: Grid) -> transforms.Transform:
    if name == "ffd":
        return transforms.FreeFormDeformation(grid, control_spacing_mm=_control_spacing(grid))
    if name == "dense":
        return transforms.DenseDisplacement(grid)
    if name == "svf":
        return transforms.StationaryVelocity(grid)
    if name == "symmetric":
        return transforms.SymmetricDiffeomorphism(grid)
    return transforms.Diffeomorphism(grid)


def _control_spacing(grid: Grid) -> float:
    """A twelfth of the shortest side: about 15 mm in a brain, 2 mm in a prostate."""
    return min((n - 1) * s for n, s in zip(grid.shape, grid.spacing, strict=True) if n > 1) / 12


def _unit_range(image: Tensor) -> Tensor:
    """Linear to [0, 1]."""
    low, high = image.min(), image.max()
    return (image - low) / (high - low)


def _local(image: Tensor, grid: Grid) -> Tensor:
    """The local contrast of an image in [0, 1]: from 0.2 to 1, and 0 in an even background, dark or bright."""
    around_mm = max(grid.extent) / AROUND
    sigma = [around_mm / s for s in grid.spacing]
    subject = (image != _background(image)).any(1, keepdim=True)
    contrast = filters.local_contrast(image, sigma=sigma, mask=subject)
    return torch.where(subject, 0.6 + 0.16 * contrast.clamp(-2.5, 2.5), 0.0)


def _background(image: Tensor) -> Tensor:
    """The value in the middle of those on the faces, which an even background has all over."""
    faces = [image.select(axis, end).flatten() for axis in range(2, image.ndim) for end in (0, -1)]
    return torch.cat(faces).median()


def _measure(case: Case, ddf: Tensor, *, warped: Tensor | None = None) -> dict[str, Any]:
    return metrics.evaluate_pair(
        case.fixed,
        case.moving,
        ddf,
        fixed_grid=case.fixed_grid,
        moving_grid=case.moving_grid,
        fixed_labels=case.fixed_labels,
        moving_labels=case.moving_labels,
        fixed_points=case.fixed_points,
        moving_points=case.moving_points,
        mask=case.fixed_mask,
        warped=warped,
    )


# -- write --------------------------------------------------------------------------------------------------------
def _in_own_intensities(result: Registration, case: Case) -> Tensor:
    """The warped image in the moving file's intensities, 0 outside its field of view."""
    low, high = float(case.moving.min()), float(case.moving.max())
    if low == 0:
        return result.warped * high
    return _warped(case.moving, result.ddf, case)


def _write_map(
    case: Case, result: Registration, warped: Tensor, out: Path, writer: ThreadPoolExecutor
) -> list[Future[None]]:
    """Everything that follows from the map; files that are still being written are in the list."""
    jobs = [
        writer.submit(io.save_ddf, out / "ddf.nii.gz", result.ddf, case.fixed_grid),
        writer.submit(io.export_itk, out / "ddf_itk.nii.gz", result.ddf, case.fixed_grid),
        writer.submit(io.save_image, out / "warped.nii.gz", warped, case.fixed_grid),
        writer.submit(_write_picture, case, result.ddf, warped, out),
    ]
    if case.moving_labels is not None:
        labels = _warp_labels(case.moving_labels, result.ddf, _grids(case))
        jobs.append(writer.submit(io.save_labels, out / "warped_labels.nii.gz", labels, case.fixed_grid))
    with torch.no_grad():
        inverse = result.transform.inverse().ddf(case.moving_grid)
    jobs.append(writer.submit(io.save_ddf, out / "inverse_ddf.nii.gz", inverse, case.moving_grid))
    io.save_matrix(out / "affine.txt", _linear_part(result.transform))
    return jobs


def _linear_part(transform: transforms.Transform) -> Tensor:
    """(4, 4) matrix `moving_from_fixed` of a linear model, or of the linear first part of a sequence."""
    first = next(iter(transform)) if isinstance(transform, transforms.Sequential) else transform
    assert isinstance(first, transforms.Linear)
    matrix, whole = first.matrix().detach().cpu(), torch.eye(4, dtype=torch.float64)
    d = len(matrix) - 1
    whole[:d, :d], whole[:d, 3] = matrix[:d, :d], matrix[:d, d]  # a 2-D map leaves z alone
    return whole


def _warp_labels(labels: Tensor, ddf: Tensor, grids: field.Grids) -> Tensor:
    """Nearest labels; several structures a file are warped channel by channel."""
    channels = [field.warp_labels(labels[:, c : c + 1], ddf, method="nearest", **grids) for c in range(labels.shape[1])]
    return torch.cat(channels, dim=1)


def _write_picture(case: Case, ddf: Tensor, warped: Tensor, out: Path) -> None:
    from . import plot

    before = field.resample(case.moving, case.moving_grid, case.fixed_grid)
    figure = plot.registration(case.fixed, before, warped, ddf, case.fixed_grid)
    with io.write_atomically(out / "overview.png") as temporary:
        figure.savefig(temporary, format="png")


# -- the other commands -------------------------------------------------------------------------------------------
def evaluate_case(case: Case, ddf_path: Path, out: Path, *, device: torch.device) -> dict[str, Any]:
    """Measure a ddf from disk on a case and write metrics.json."""
    start = time.perf_counter()
    ddf, grid = io.load_ddf(ddf_path)
    if grid != case.fixed_grid:
        raise GridMismatchError(
            f"{ddf_path} must be on the fixed image's grid {case.fixed_grid}; it is on {grid}. Is it of another pair?"
        )
    io.require_writable(out.parent)
    measured = _measure(case.to(device), ddf.to(device))
    summary = {"seconds": time.perf_counter() - start, "peak_mb": peak_mb(), **measured}
    io.save_json(out, summary)
    return summary


def warp_file(
    image: Path, ddf_path: Path, out: Path, *, labels: bool, points: Path | None, device: torch.device
) -> None:
    """Warp an image, a label map or, with `points`, fixed landmarks (mm) by a ddf from disk."""
    ddf, grid = io.load_ddf(ddf_path)
    ddf = ddf.to(device)
    if points is not None:
        _warp_points_file(points, ddf, grid, out)
        return
    moving, moving_grid = io.load_labels(image) if labels else io.load_image(image)
    if moving_grid.dim != grid.dim:
        raise ValueError(f"{image} is {moving_grid.dim}-D and {ddf_path} moves {grid.dim}-D images; they must match.")
    io.require_writable(out.parent)
    grids = field.Grids(moving_grid=moving_grid, fixed_grid=grid)
    if labels:
        io.save_labels(out, _warp_labels(moving.to(device), ddf, grids), grid)
    else:
        io.save_image(out, field.warp(moving.to(device), ddf, padding="zeros", **grids), grid)


def _warp_points_file(points: Path, ddf: Tensor, grid: Grid, out: Path) -> None:
    fixed = io.load_points(points)
    _check_points([fixed, fixed], grid.dim)
    io.require_writable(out.parent)
    voxels = grid.points(fixed, to=Axes.VOXEL, from_=Axes.WORLD)
    moving = grid.points(field.warp_points(voxels, ddf.double()), to=Axes.WORLD, from_=Axes.VOXEL)
    io.save_points(out, moving)


def invert_file(ddf_path: Path, out: Path, *, device: torch.device) -> Tensor:
    """Write the inverse of a ddf on the same grid; returns the residual in voxels, (1, 1, *s)."""
    ddf, grid = io.load_ddf(ddf_path)
    io.require_writable(out.parent)
    result = field.inverse(ddf.to(device))
    io.save_ddf(out, result.ddf, grid)
    return result.residual


# -- what was done ------------------------------------------------------------------------------------------------
def provenance(files: tuple[Path, ...]) -> dict[str, Any]:
    """Command, versions, threads and the SHA-256 of every input."""
    return {
        "command": shlex.join(["reglib", *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "seed": torch.initial_seed(),
        "inputs": {str(path): _digest(path) for path in files},
    }


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files in the order of their names."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def peak_mb() -> float | None:
    """Largest memory of this process so far, MB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
