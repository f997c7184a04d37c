"""MNIST: digits, grouped by which digit it is; pictures of 28 x 28."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from reglib import io, phantoms
from reglib.grid import Grid

from .script import SEED, Source, run
from .standins import StandIn, landmarks_of

COUNTS = {"train": 8, "valid": 2, "test": 4}  # of each digit


def make(out: Path, source: Source) -> None:
    """Digits of strokes. Each digit is a template of its own, so only scans of one group have a truth between them."""
    standin = StandIn(out, labels=0, ending=".png")
    for number in range(10):
        subjects = iter(phantoms.digit_cohort(sum(COUNTS.values()), number, seed=SEED).subjects)
        landmarks = None
        for split, count in COUNTS.items():
            for k in range(count):
                subject = next(subjects)
                landmarks = landmarks_of(subject) if landmarks is None else landmarks
                standin.scan(split, f"digit{number}/{split}{k + 1:02}", subject, landmarks)
    standin.note(source.name)


MOST = 600  # of each digit
HEADER = 4  # big-endian numbers before the data: magic, count, rows, columns


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """The first of each digit as pictures; two thirds are for training."""
    images = np.frombuffer((unpacked / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=4 * HEADER)
    labels = np.frombuffer((unpacked / "train-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    images = images.reshape(len(labels), 28, 28)
    for number in range(10):
        chosen = np.flatnonzero(labels == number)[:MOST]
        for k, index in enumerate(chosen):
            split = "train" if k < 2 * len(chosen) // 3 else "valid" if k < 5 * len(chosen) // 6 else "test"
            picture = torch.from_numpy(images[index].astype(np.float32))[None, None]
            io.save_image(out / split / "images" / f"digit{number}" / f"{index:05}.png", picture, Grid((28, 28)))


if __name__ == "__main__":
    sys.exit(run("mnist", make, arrange))
