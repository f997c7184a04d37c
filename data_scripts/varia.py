"""VARIA: photographs of the optic disc, several of some people, for telling people apart by their vessels."""

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

EYES, SIZE = 6, 512


def make(out: Path, source: Source) -> None:
    """Two photographs of each of a few eyes, in gray; every pair of them is in the list."""
    (out / "Images").mkdir(parents=True)
    owners = []
    for k in range(EYES):
        pair = phantoms.retina_pair(SEED + 50 + k, size=SIZE)
        for photo in (pair.query, pair.reference):
            owners.append(k)
            cv2.imwrite(str(out / "Images" / f"R{len(owners):03}.pgm"), photo[..., 1])
    rows, columns = np.triu_indices(len(owners), 1)
    lines = [
        f"R{a + 1:03}.pgm, R{b + 1:03}.pgm, {int(owners[a] == owners[b])}" for a, b in zip(rows, columns, strict=True)
    ]
    (out / "pair_index.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    note(out, source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """The pictures, and the list of pairs, which comes with SuperRetina."""
    (out / "Images").mkdir()
    for path in found(unpacked, "*.pgm"):
        shutil.copy(path, out / "Images" / path.name)
    shutil.copy(found(unpacked, "pair_index.txt")[0], out / "pair_index.txt")


if __name__ == "__main__":
    sys.exit(run("varia", make, arrange))
