"""NLST lung CT of Learn2Reg: pairs with keypoints and masks of the lungs."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms

from .script import SEED, Source, run
from .standins import StandIn, write_pairs

COUNTS = {"train": 3, "valid": 1, "test": 1}


def make(out: Path, source: Source) -> None:
    """Chests breathed in and out."""
    standin = StandIn(out, labels=1, points=True)
    cohorts = phantoms.thorax_cohorts(sum(COUNTS.values()), seed=SEED + 1)
    pairs = [(f"NLST_{k + 1:04}", cohort.pair(0, 1)) for k, cohort in enumerate(cohorts)]
    write_pairs(standin, pairs, COUNTS)
    standin.note(source.name)


if __name__ == "__main__":
    sys.exit(run("nlst", make))
