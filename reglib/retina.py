"""Photographs of eyes, from files to files: what `reglib retina` does, for scripts too."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm.auto import tqdm

from . import io, keypoints
from .keypoints import Alignment, Photo

SHOWN = 1200  # pixels along the longer side of pictures that are for looking
WRITTEN = ("homography.txt", "warped.png", "result.png", "checkerboard.png", "match_result.png")
PAIRS = "pair_index.txt"  # of VARIA: query, reference, 1 for one eye and 0 for two, a line each
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
