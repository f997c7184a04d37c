"""A CT of head and neck with structures at risk, as in DeepReg's affine demo."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms
from reglib.data import Place

from .arranging import found, write_scan
from .script import SEED, Source, run
from .standins import StandIn, write_scans

COUNTS = {"train": 4, "valid": 2, "test": 2}


def make(out: Path, source: Source) -> None:
    """Heads in HU."""
    standin = StandIn(out, labels=len(phantoms.HEAD_AND_NECK))
    cohort = phantoms.head_cohort(sum(COUNTS.values()), seed=SEED)
    write_scans(standin, [(f"head{k + 1}", subject) for k, subject in enumerate(cohort.subjects)], COUNTS)
    standin.note(source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """One image and its structures, from an HDF5 file without a header."""
    (file,) = found(unpacked, "demo.h5")
    write_scan(out, "train", "head1", Place(file, "image"), Place(file, "label"))


if __name__ == "__main__":
    sys.exit(run("head_neck_ct", make, arrange))
