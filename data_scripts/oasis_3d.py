"""OASIS brains as Learn2Reg and neurite prepared them, in 3-D."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms

from .arranging import write_oasis
from .script import SEED, Source, run
from .standins import StandIn, tissues, write_scans

COUNTS = {"train": 4, "valid": 2, "test": 2}


def make(out: Path, source: Source) -> None:
    """Brains from MNI152."""
    standin = StandIn(out, labels=len(source.labels))
    cohort = phantoms.brain_cohort(sum(COUNTS.values()), seed=SEED, shape=(64, 72, 64), spacing=2.8)
    write_scans(standin, [(f"OASIS_{k + 1:04}", tissues(subject)) for k, subject in enumerate(cohort.subjects)], COUNTS)
    standin.note(source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """Brains that neurite aligned, with their tissues."""
    write_oasis(unpacked, out, "aligned")


if __name__ == "__main__":
    sys.exit(run("oasis_3d", make, arrange))
