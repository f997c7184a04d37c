"""FIRE: pairs of fundus photographs with control points, by which retinal registration is scored."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np

from reglib import phantoms

from .arranging import found
from .script import SEED, Source, run
from .standins import note

COUNTS = {"S": 3, "P": 2, "A": 2}
SIZE = 1456  # pixels, half of FIRE's: errors in pixels are half as large
POINTS = 10  # control points of a pair, at branchings that both photographs show


def make(out: Path, source: Source) -> None:
    """Eyes grown by rule; each pair is of an eye of its own."""
    seed = SEED
    for category, count in COUNTS.items():
        for number in range(1, count + 1):
            pair = phantoms.retina_pair(seed, size=SIZE, category=category)
            write_pair(out, f"{category}{number:02}", pair, seed)
            seed += 1
    note(out, source.name)


def write_pair(out: Path, name: str, pair: phantoms.EyePair, seed: int) -> None:
    """The reference as NAME_1, the query as NAME_2, and their control points."""
    for folder in ("Images", "Ground Truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number, photo in ((1, pair.reference), (2, pair.query)):
        cv2.imwrite(str(out / "Images" / f"{name}_{number}.jpg"), photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    moved = pair.to_reference(pair.query_branchings)
    size = pair.reference.shape[0]
    both = np.hypot(*((moved + 0.5) / size - 0.5).T) < 0.45
    chosen = np.random.default_rng([seed, 83]).permutation(np.flatnonzero(both))[:POINTS]
    lines = np.column_stack([moved, pair.query_branchings])[chosen]
    np.savetxt(out / "Ground Truth" / f"control_points_{name}_1_2.txt", lines, fmt="%.3f")


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """As it comes: Images and Ground Truth."""
    for pattern, folder in (("*.jpg", "Images"), ("control_points_*.txt", "Ground Truth")):
        (out / folder).mkdir()
        for path in found(unpacked, pattern):
            if path.parent.name == folder:
                shutil.copy(path, out / folder / path.name)


if __name__ == "__main__":
    sys.exit(run("fire", make, arrange))
