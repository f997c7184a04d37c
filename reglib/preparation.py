"""Whole folders of scans made ready: what `reglib data prepare` does, for scripts too.

A scan is read, freed of its bed, laid on a reference or turned and resampled, cut to a size, scaled and written under
its own name, with its label and its points. What is done stays done: a run that was stopped goes on where it was, and
ends with the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from . import io
from .data.reading import Array, Reading, Scan, read_image, read_label, read_points
from .data.records import Place, Record, find, shortened, splits
from .field import warp
from .grid import Grid, apply_affine

VERSION = 1  # of what the steps do: a higher one makes every scan anew
AIR_HU, BODY_HU = -1000.0, -500.0
LOOSE_MM = 4.0  # what is thinner than twice this, such as a sheet, does not hold the bed to the body
MANIFEST, STATE = "manifest.json", ".prepared"


@dataclass(frozen=True)
class Preparation:
    """What is done to each scan, in this order.

    Args:
        remove_bed: of a CT: all that is not the body becomes air (see `without_bed`).
        reference: an image that each scan is laid on by `model`, resampled to its grid; labels by nearest neighbor.
        model: "rigid" or "affine".
        reading: axes, spacing or shape (without a reference), multiple, window, scale, structures of a label map.
        size: voxels along each axis; what is more is cut, what is less is filled with the lowest intensity, both from
            the middle.
    """

    remove_bed: bool = False
    reference: Path | None = None
    model: Literal["rigid", "affine"] = "affine"
    reading: Reading = field(default_factory=lambda: Reading(scale="none"))
    size: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.model not in ("rigid", "affine"):
            raise ValueError(f'model must be "rigid" or "affine"; got "{self.model}".')
        if self.size is not None and (not self.size or min(self.size) < 1):
            raise ValueError(f"size must be voxels of at least 1 along each axis; got {tuple(self.size)}.")
        if self.reference is not None and (self.reading.spacing is not None or self.reading.shape is not None):
            raise ValueError("a reference has a spacing and a shape; give it, or a spacing or shape, not both.")

    def __call__(self, record: Record) -> tuple[Scan, Tensor | None]:
        """A scan made ready, and the world matrix scan_from_reference if there is a reference.

        Raises: FileNotFoundError, ValueError: one sentence that names the file.
        """
        image, grid = read_image(record.image)
        structures = self.reading.structures
        label = None
        if record.label is not None:
            label = read_label(record.label, grid, structures=structures, masks=False)
        points = None if record.points is None else read_points(record.points, grid.dim)
        scan = Scan(record.name, image, grid, grid, label, points)
        if self.remove_bed:
            scan = replace(scan, image=without_bed(scan.image, grid))
        matrix = None
        if self.reference is not None:
            scan, matrix = on_reference(scan, *read_image(Place(self.reference)), model=self.model)
        scan = replace(self.reading, multiple=None).apply(scan)
        if self.size is not None:
            scan = resized(scan, self.size)
        return Reading(multiple=self.reading.multiple, scale="none").apply(scan), matrix


def prepare(
    folder: str | Path,
    out: str | Path,
    preparation: Preparation,
    *,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """Prepare every scan of a split, or of the splits train, valid and test, and write them to `out` in its layout.

    Args:
        workers: processes that share the scans. Each computes on one thread, so that their number changes no byte.
        progress: show how far it is.

    Returns: what manifest.json holds: the settings, and for each scan where it came from, what it was, what it is.
    Raises: ValueError before any work for a faulty folder or an `out` that holds something else; at the end, with the
        first reason, if scans could not be prepared, and the others are kept.
    """
    folder, out = Path(folder), Path(out)
    jobs = list(_jobs(folder, out, preparation))
    _check_out(folder, out)
    io.require_writable(out)
    if preparation.reference is not None:
        read_image(Place(preparation.reference))
    (out / STATE).mkdir(parents=True, exist_ok=True)  # a run that is killed from here on is known as one
    _clear_partial(out)
    done = _done(out)
    todo = [job for job in jobs if not job.is_done(done.get(job.key))]
    faults = []
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="scan", disable=not progress) as bar:
        for job, result in _run(todo, workers):
            if isinstance(result, str):
                faults.append(f"{job.record.name}: {result}")
            else:
                done[job.key] = result
            bar.update()
    if faults:
        rest = "the others are" if len(faults) < len(jobs) else "nothing is written"
        raise ValueError(f"{len(faults)} of {len(jobs)} scans could not be prepared; {rest}. {faults[0]}")
    manifest = {"settings": _settings(preparation), "scans": {job.key: done[job.key] for job in jobs}}
    io.save_json(out / MANIFEST, manifest)
    shutil.rmtree(out / STATE, ignore_errors=True)
    return manifest


# -- steps --------------------------------------------------------------------------------------------------------
def without_bed(image: Float[Tensor, "1 *s"], grid: Grid) -> Float[Tensor, "1 *s"]:
    """A CT in HU in which everything but the body is air, -1000.

    The body is the largest thing above -500 HU once what is thin is opened, grown back to its own edge, with what it
    encloses in each axial slice.
    Raises: ValueError if nothing, or everything, is above -500 HU.
    """
    from scipy import ndimage

    dense = image[0].numpy() > BODY_HU
    if dense.all() or not dense.any():
        low, high = float(image.min()), float(image.max())
        raise ValueError(
            f"a CT has air below {BODY_HU:g} HU and a body above; this image is {low:g} to {high:g}; is it in "
            "Hounsfield units?"
        )
    sizes = [max(1, round(LOOSE_MM / s)) for s in grid.spacing]
    ball = _ball(sizes)
    core = ndimage.binary_erosion(dense, ball, border_value=1)
    if not core.any():
        core = dense
    pieces, count = ndimage.label(core)
    largest = 1 + int(np.argmax(ndimage.sum_labels(core, pieces, range(1, count + 1))))
    body = ndimage.binary_dilation(pieces == largest, ball) & dense
    if grid.dim == 2:
        body = ndimage.binary_fill_holes(body)
    else:
        axial = next(axis for axis, letter in enumerate(grid.orientation) if letter in "SI")
        slices = [ndimage.binary_fill_holes(body.take(k, axial)) for k in range(body.shape[axial])]
        body = np.stack(slices, axis=axial)
    return torch.where(torch.from_numpy(body)[None], image, AIR_HU)


def _ball(radii: Sequence[int]) -> np.ndarray:
    axes = np.meshgrid(*[np.arange(-r, r + 1) / r for r in radii], indexing="ij")
    return np.asarray(sum(a**2 for a in axes) <= 1.0001)


def on_reference(
    scan: Scan, reference: Float[Tensor, "1 *s"], grid: Grid, *, model: Literal["rigid", "affine"]
) -> tuple[Scan, Tensor]:
    """A scan laid on a reference by mutual information and local correlation; its label and points go along.

    Returns: the scan on the reference's grid, and the world matrix scan_from_reference.
    """
    from .pipeline import Case, Settings, register_pair
    from .transforms import Linear

    for name, image in (("reference", reference), (scan.name, scan.image)):
        if float(image.min()) == float(image.max()):
            raise ValueError(f"{name} is constant; there is nothing to lay on anything.")
    case = Case(reference[None], scan.image[None], grid, scan.grid, None, None, None, None, None, None, ())
    result = register_pair(case, Settings(transform=model, similarity="mi", progress=False))
    assert isinstance(result.transform, Linear)
    matrix = result.transform.matrix().detach().double()
    grids: Any = {"moving_grid": scan.grid, "fixed_grid": grid}
    lowest = float(scan.image.min())
    image = warp(scan.image[None], result.ddf, padding=lowest, **grids)[0]
    label = scan.label
    if label is not None:
        label = warp(label[None], result.ddf, mode="nearest", padding="zeros", **grids)[0]
    points = None if scan.points is None else apply_affine(torch.linalg.inv(matrix), scan.points)
    return replace(scan, image=image, label=label, points=points, grid=grid), matrix


def resized(scan: Scan, size: Sequence[int]) -> Scan:
    """Cut or filled to a size from the middle, without interpolation."""
    if len(size) != scan.grid.dim:
        raise ValueError(f"size must have {scan.grid.dim} numbers, one an axis; got {tuple(size)}.")
    excess = [n - m for n, m in zip(scan.grid.shape, size, strict=True)]
    start = [max(e, 0) // 2 for e in excess]
    stop = [s + min(n, m) for s, n, m in zip(start, scan.grid.shape, size, strict=True)]
    before = [max(-e, 0) // 2 for e in excess]
    after = [max(-e, 0) - b for e, b in zip(excess, before, strict=True)]
    grid = scan.grid.crop(start, stop).pad(before, after)
    window = (slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))
    widths = [w for b, a in zip(reversed(before), reversed(after), strict=True) for w in (b, a)]
    lowest = float(scan.image.min())
    image = torch.nn.functional.pad(scan.image[window], widths, value=lowest)
    label = None if scan.label is None else torch.nn.functional.pad(scan.label[window], widths)
    return replace(scan, image=image, label=label, grid=grid)


# -- one scan from files to files ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Job:
    """A record, where it goes, and the settings."""

    key: str  # SPLIT/ROLEimages/NAME, as its image in `out`
    record: Record
    out: Path
    preparation: Preparation

    @property
    def targets(self) -> dict[str, Path]:
        """Where the image, the label and the points are written."""
        of = {"image": "images", "label": "labels", "points": "points"}
        found = {}
        for what, folder in of.items():
            if getattr(self.record, what) is not None:
                ending = ".csv" if what == "points" else ".nii.gz"
                found[what] = self.out / f"{self.key.replace('images', folder, 1)}{ending}"
        return found

    def fingerprint(self) -> str:
        """Of the files that are read and of the settings."""
        digest = hashlib.sha256(json.dumps([VERSION, _settings(self.preparation)], sort_keys=True).encode())
        for what in self.targets:
            place = getattr(self.record, what)
            digest.update(f"{place.key} {_digest(place.path)}".encode())
        if self.preparation.reference is not None:
            digest.update(_digest(self.preparation.reference).encode())
        return digest.hexdigest()

    def is_done(self, entry: dict[str, Any] | None) -> bool:
        """Whether an entry is of these files and settings and what it wrote is there."""
        if entry is None or not all(path.is_file() for path in self.targets.values()):
            return False
        return bool(entry["fingerprint"] == self.fingerprint())

    def run(self) -> dict[str, Any]:
        """Prepare, write, and note that it is done; returns the note."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums on several threads differ in their last digit from sums on one
        try:
            scan, matrix = self.preparation(self.record)
        finally:
            torch.set_num_threads(threads)
        targets = self.targets
        io.save_image(targets["image"], scan.image[None], scan.grid)
        if scan.label is not None:
            _save_label(targets["label"], scan.label, scan.grid)
        if scan.points is not None:
            io.save_points(targets["points"], scan.points[None])
        entry = {
            "fingerprint": self.fingerprint(),
            "image": str(self.record.image),
            "stored": _described(read_image(self.record.image)),
            "prepared": _described(Array(scan.image, scan.grid)),
            "scan_from_reference": None if matrix is None else matrix.tolist(),
        }
        io.save_json(self.out / STATE / f"{self.key}.json", entry)
        return entry


def _save_label(path: Path, label: Tensor, grid: Grid) -> None:
    whole = bool((label == label.round()).all())
    if whole:
        io.save_labels(path, label[None].long(), grid)
    else:
        io.save_image(path, label[None], grid)


def _described(array: Array) -> dict[str, Any]:
    image, grid = array
    return {
        "shape": list(grid.shape),
        "spacing": [round(s, 6) for s in grid.spacing],
        "orientation": grid.orientation,
        "range": [round(float(end), 6) + 0.0 for end in (image.min(), image.max())],  # no minus before zero
    }


def _jobs(folder: Path, out: Path, preparation: Preparation) -> Iterator[_Job]:
    """Every scan of every split; raises for the first faulty split."""
    for split, path in splits(folder).items():
        found = find(path)
        roles = (("moving_", found.records), ("fixed_", found.fixed)) if found.fixed else (("", found.records),)
        for role, records in roles:
            for record in records:
                key = "/".join(filter(None, (split, f"{role}images", record.name)))
                yield _Job(key, record, out, preparation)


def _settings(preparation: Preparation) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(asdict(preparation), default=str))
    return settings


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# -- many scans ---------------------------------------------------------------------------------------------------
def _run(jobs: Sequence[_Job], workers: int) -> Iterator[tuple[_Job, dict[str, Any] | str]]:
    """Each job with its note, or with what went wrong."""
    if workers <= 1 or len(jobs) < 2:
        for job in jobs:
            yield job, _tried(job)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process whose torch has threads may hang
    count = min(workers, len(jobs))
    with ProcessPoolExecutor(count, mp_context=context, initializer=_die_with_parent) as pool:
        futures = {pool.submit(_tried, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _tried(job: _Job) -> dict[str, Any] | str:
    try:
        return job.run()
    except (OSError, ValueError, FloatingPointError) as error:
        return " ".join(str(error).split())


def _die_with_parent() -> None:
    """A worker whose parent was killed ends too, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _done(out: Path) -> dict[str, dict[str, Any]]:
    """What earlier runs noted."""
    done: dict[str, dict[str, Any]] = {}
    if (out / MANIFEST).is_file():
        done |= json.loads((out / MANIFEST).read_text(encoding="utf-8"))["scans"]
    for path in sorted((out / STATE).rglob("*.json")):
        key = path.relative_to(out / STATE).as_posix().removesuffix(".json")
        done[key] = json.loads(path.read_text(encoding="utf-8"))
    return done


def _check_out(folder: Path, out: Path) -> None:
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} must be another folder than the scans'; nothing is overwritten.")
    if out.is_dir() and not (out / MANIFEST).exists() and not (out / STATE).exists():
        others = [path.name for path in out.iterdir() if ".partial" not in path.name]
        if others:
            raise ValueError(
                f"{out} must be empty, or from an earlier run of this; it has {shortened(sorted(others))}; choose "
                "another."
            )


def _clear_partial(out: Path) -> None:
    """Remove what a run that was killed had not finished writing."""
    for path in out.rglob(".*.partial*"):
        path.unlink(missing_ok=True)
