"""Prostates in MR (moving) and ultrasound (fixed), on grids of their own, with structures that both show."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms
from reglib.data import Place

from .arranging import found, splits_of, write_scan
from .script import SEED, Source, run
from .standins import StandIn, write_pairs

COUNTS = {"train": 4, "valid": 1, "test": 2}


def make(out: Path, source: Source) -> None:
    """One gland each, seen by two scanners."""
    standin = StandIn(out, labels=len(phantoms.PROSTATE_LABELS))
    pairs = phantoms.prostate_pairs(sum(COUNTS.values()), seed=SEED)
    write_pairs(standin, [(f"case{k:06}", pair) for k, pair in enumerate(pairs)], COUNTS)
    standin.note(source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """They are in DeepReg's layout already; eight of eleven are for training, two for testing."""
    images = found(unpacked, "moving_images/*.nii.gz")
    split = splits_of([image.name for image in images], (8 / 11, 1 / 11, 2 / 11))
    for image in images:
        name = image.name.removesuffix(".nii.gz")
        for role in ("moving_", "fixed_"):
            theirs = image.parents[1] / f"{role}images" / image.name
            label = image.parents[1] / f"{role}labels" / image.name
            write_scan(out, split[image.name], name, Place(theirs), Place(label), role=role)


if __name__ == "__main__":
    sys.exit(run("prostate_mrus", make, arrange))
