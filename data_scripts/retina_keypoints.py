"""Fundus photographs with labelled keypoints, and others without, for training a detector."""

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

COUNTS, SIZE = {"train": 8, "valid": 2, "auxiliary": 4}, 768


def make(out: Path, source: Source) -> None:
    """Eyes grown by rule, labelled where their vessels branch; the auxiliary ones have no labels."""
    for name in ("Lab/ImageData", "Lab/Annotations", "Lab/ImageSets", "Auxiliary"):
        (out / name).mkdir(parents=True)
    seed = SEED + 100
    for split, count in COUNTS.items():
        names = []
        for _ in range(count):
            pair = phantoms.retina_pair(seed, size=SIZE)
            name = f"eye{seed:03}"
            where = out / ("Auxiliary" if split == "auxiliary" else "Lab/ImageData") / f"{name}.jpg"
            cv2.imwrite(str(where), pair.query[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
            if split != "auxiliary":
                shares = (pair.query_branchings + 0.5) / SIZE
                np.savetxt(out / "Lab" / "Annotations" / f"{name}.txt", shares, fmt="%.5f")
                names.append(f"{name}.jpg, {name}.txt")
            seed += 1
        if names:
            lines = "\n".join(names) + "\n"
            (out / "Lab" / "ImageSets" / f"{split}.txt").write_text(lines, encoding="utf-8", newline="\n")
    note(out, source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """As it comes: Lab with ImageData, Annotations and ImageSets, and Auxiliary if it is there."""
    for name in ("ImageData", "Annotations", "ImageSets"):
        folder = next(path for path in found(unpacked, name) if path.is_dir())
        shutil.copytree(folder, out / "Lab" / name)
    for folder in unpacked.rglob("Auxiliary"):
        shutil.copytree(folder, out / "Auxiliary")
        break


if __name__ == "__main__":
    sys.exit(run("retina_keypoints", make, arrange))
