"""OASIS brains as Learn2Reg and neurite prepared them, in 3-D."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms
from reglib.data import Place

from .arranging import found, splits_of, write_scan
from .script import SEED, Source, run
from .standins import StandIn, tissues, write_scans

COUNTS = {"train": 4, "valid": 2, "test": 2}


def make(out: Path, source: Source) -> None:
    """Brains from MNI152."""
    standin = StandIn(out, labels=len(source.labels))
    cohort = phantoms.brain_cohort(sum(COUNTS.values()), seed=SEED, shape=(64, 72, 64), spacing=2.8)
    write_scans(standin, [(f"OASIS_{k + 1:04}", tissues(subject)) for k, subject in enumerate(cohort.subjects)], COUNTS)
    standin.note(source.name)


JOINED = {"CSF": (4,), "gray matter": (1, 2), "white matter": (3,)}  # neurite's four labels, two of them gray


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """Brains that neurite aligned, with their tissues."""
    brains = found(unpacked, "aligned_norm.nii.gz")
    split = splits_of([path.parent.name for path in brains])
    for path in brains:
        label = path.with_name("aligned_seg4.nii.gz")
        name = path.parent.name
        write_scan(out, split[name], name, Place(path), Place(label), structures=JOINED)


if __name__ == "__main__":
    sys.exit(run("oasis_3d", make, arrange))
