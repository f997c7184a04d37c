"""Photographs of eyes, from files to files: what `reglib retina` does, for scripts too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import io, keypoints
from .keypoints import Alignment, Photo

SHOWN = 1200  # pixels along the longer side of pictures that are for looking
WRITTEN = ("homography.txt", "warped.png", "result.png", "checkerboard.png", "match_result.png")
PAIRS = "pair_index.txt"  # of VARIA: query, reference, 1 for one eye and 0 for two, a line each
TOLD, ADDED = (255, 225, 0), (25, 195, 255)
INLIER, OUTLIER = (90, 230, 90), (240, 80, 80)


class NotAligned(ValueError):
    """Two photographs that could not be laid on each other, with the reason."""


def aligner(network: Path | None = None, **how: Any) -> Callable[[Photo, Photo], Alignment]:
    """`keypoints.align` by SIFT, or by a network from a checkpoint; `how` as there."""
    if network is not None:
        how["extract"] = keypoints.learned(keypoints.load_superretina(network))
    return partial(keypoints.align, **how)


# -- a pair -------------------------------------------------------------------------------------------------------
def align_files(query: Path, reference: Path, out: Path, find: Callable[[Photo, Photo], Alignment]) -> dict[str, Any]:
    """Lay one photograph on another, write `out`'s files, and return what metrics.json holds.

    Raises: NotAligned if that fails; metrics.json then says so, and there are no other files.
    """
    start = time.perf_counter()
    photos = keypoints.load_photo(query), keypoints.load_photo(reference)
    io.require_writable(out)
    found = find(*photos)
    told = {"accepted": found.accepted, "reason": found.reason, "inliers": int(found.inliers.sum())}
    told |= {"matches": len(found.inliers), "inliers_per_pass": list(found.passes)}
    if found.homography is None:
        for name in WRITTEN:
            (out / name).unlink(missing_ok=True)  # of an earlier pair
        io.save_json(out / "metrics.json", told | {"seconds": time.perf_counter() - start})
        raise NotAligned(f"{query} and {reference} are not aligned: {found.reason}")
    warped = keypoints.warp_photo(photos[0], found.homography, photos[1].shape)
    with io.write_atomically(out / "homography.txt") as temporary:
        np.savetxt(temporary, found.homography, fmt="%.17g")
    _write(out / "warped.png", warped)
    fixed, moved = _shown(photos[1]), _shown(warped)
    _write(out / "result.png", _blended(moved, fixed))
    _write(out / "checkerboard.png", keypoints.checkered(moved, fixed))
    _write(out / "match_result.png", _matches(photos, found))
    told["seconds"] = time.perf_counter() - start
    io.save_json(out / "metrics.json", told)
    return told


def _write(path: Path, picture: np.ndarray) -> None:
    with io.write_atomically(path) as temporary:
        done, coded = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        assert done
        temporary.write_bytes(coded.tobytes())


def _shown(photo: Photo) -> np.ndarray:
    """In 8 bits, small enough to look at."""
    shrink = min(1.0, SHOWN / max(photo.shape[:2]))
    size = [max(round(n * shrink), 1) for n in photo.shape[1::-1]]
    small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    return small if small.dtype == np.uint8 else (small / (float(small.max()) or 1.0) * 255).astype(np.uint8)


def _blended(moved: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Both at once, half and half where both are, alone elsewhere."""
    seen = [(x.max(2, keepdims=True) > 8).astype(np.float32) for x in (moved, fixed)]
    total = np.maximum(seen[0] + seen[1], 1)
    return ((moved * seen[0] + fixed * seen[1]) / total).astype(np.uint8)


def _matches(photos: tuple[Photo, Photo], found: Alignment) -> np.ndarray:
    """The photographs side by side, with a line for every match: green if it agrees with the map, else red."""
    left, right = (_shown(photo) for photo in photos)
    height = max(left.shape[0], right.shape[0])
    canvas = np.zeros((height, left.shape[1] + right.shape[1], 3), np.uint8)
    canvas[: left.shape[0], : left.shape[1]] = left
    canvas[: right.shape[0], left.shape[1] :] = right
    starts = found.query_points * (left.shape[1] / photos[0].shape[1])
    ends = found.reference_points * (right.shape[1] / photos[1].shape[1]) + [left.shape[1], 0]
    for agrees in (False, True):
        for a, b in zip(starts[found.inliers == agrees], ends[found.inliers == agrees], strict=True):
            at, to = a.round().astype(int).tolist(), b.round().astype(int).tolist()
            cv2.line(canvas, at, to, INLIER if agrees else OUTLIER, 1, cv2.LINE_AA)
    return canvas


# -- a detector ---------------------------------------------------------------------------------------------------
def train_folder(
    folder: Path,
    out: Path,
    network: keypoints.SuperRetina,
    plan: keypoints.Plan,
    *,
    epochs: int,
    auxiliary: Path | None = None,
    size: int = 768,
    squares: int = 0,
    square: int = 256,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
) -> dict[str, float]:
    """Teach a network the labelled photographs of a folder; writes detector.pt, history.csv and growth.png.

    Args: squares: how many to cut out of each photograph, `square` pixels wide; 0 learns from whole ones.

    Returns: the last epoch's losses and labels.
    """
    split = "train.txt" if (folder / "ImageSets" / "train.txt").is_file() else None
    lessons = keypoints.load_lessons(folder, split=split, auxiliary=auxiliary, size=(size, size))
    if squares:
        lessons = keypoints.cut_lessons(lessons, size=square, count=squares, seed=seed)
    shown = max((lesson for lesson in lessons if lesson.points is not None), key=_labels, default=lessons[0])
    stages: list[tuple[int, Tensor]] = []  # of this run

    def watch(epoch: int, labels: Mapping[str, Tensor]) -> None:
        stages.append((epoch, labels[shown.name].cpu()))
        _write(out / "growth.png", np.hstack([_ringed(shown, *stages[k]) for k in _spread(len(stages))]))

    how: dict[str, Any] = {"seed": seed, "resume": resume, "progress": progress, "watch": watch}
    history = keypoints.train_keypoints(network, lessons, epochs=epochs, plan=plan, out=out, **how)
    return dict(history.records[-1])


def _labels(lesson: keypoints.Lesson) -> int:
    return 0 if lesson.points is None else len(lesson.points)


def _spread(count: int) -> list[int]:
    """Up to four of so many stages, the first and the last among them."""
    return sorted({round(k) for k in np.linspace(0, count - 1, 4)})


def _ringed(lesson: keypoints.Lesson, epoch: int, now: Tensor) -> np.ndarray:
    """A photograph with what its keypoints were after an epoch: those that were told, and the others."""
    gray = (lesson.image[0].clamp(0, 1) * 150).byte().cpu().numpy()
    picture = np.ascontiguousarray(np.repeat(gray[..., None], 3, axis=2))
    told = lesson.points if lesson.points is not None else torch.zeros(0, 2)
    apart = torch.cdist(now, told).amin(1) if len(told) and len(now) else torch.full((len(now),), math.inf)
    for points, color in ((now[apart > 1.0], ADDED), (told, TOLD)):
        for x, y in points.round().int().tolist():
            cv2.circle(picture, (x, y), 5, color, 1, cv2.LINE_AA)
    cv2.putText(picture, f"{epoch}", (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


# -- a test set ---------------------------------------------------------------------------------------------------
def evaluate_folder(
    folder: Path, out: Path, find: Callable[[Photo, Photo], Alignment], *, progress: bool = True
) -> dict[str, Any]:
    """Score a folder in FIRE's or VARIA's layout; writes pairs.csv and metrics.json, and returns what that holds."""
    io.require_writable(out)
    start = time.perf_counter()
    if (folder / PAIRS).is_file():
        table, told = _told_apart(folder, find, progress)
    else:
        scores = keypoints.fire_scores(folder, find, progress=progress)
        shares = {"failed": scores.failed, "inaccurate": scores.inaccurate, "acceptable": scores.acceptable}
        told = {f"{name}_percent": share for name, share in shares.items()}
        told |= {f"auc_{category}": area for category, area in scores.auc.items()} | {"mauc": scores.mauc}
        table = scores.table
    with io.write_atomically(out / "pairs.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    told |= {"pairs": len(table), "seconds": time.perf_counter() - start}
    io.save_json(out / "metrics.json", told)
    return told


def _told_apart(folder: Path, find: Callable[[Photo, Photo], Alignment], progress: bool) -> tuple[Any, dict[str, Any]]:
    """VARIA: are inliers of one eye more than of two?"""
    import pandas as pd

    pairs = keypoints.varia_pairs(folder)
    rows = []
    for query, reference, same in tqdm(pairs, unit="pair", disable=not progress):
        found = find(keypoints.load_photo(query), keypoints.load_photo(reference))
        row = {"query": query.name, "reference": reference.name, "same": same, "inliers": int(found.inliers.sum())}
        rows.append(row | {"accepted": found.accepted})
    table = pd.DataFrame(rows)
    own, other = (table.inliers[table.same == same].tolist() for same in (True, False))
    verified = keypoints.varia_eer(own, other)
    return table, {"eer_percent": 100 * verified.eer, "threshold_inliers": verified.threshold}
