"""Prostates in MR (moving) and ultrasound (fixed), on grids of their own, with structures that both show."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms

from .script import SEED, Source, run
from .standins import StandIn, write_pairs

COUNTS = {"train": 4, "valid": 1, "test": 2}


def make(out: Path, source: Source) -> None:
    """One gland each, seen by two scanners."""
    standin = StandIn(out, labels=len(phantoms.PROSTATE_LABELS))
    pairs = phantoms.prostate_pairs(sum(COUNTS.values()), seed=SEED)
    write_pairs(standin, [(f"case{k:06}", pair) for k, pair in enumerate(pairs)], COUNTS)
    standin.note(source.name)


if __name__ == "__main__":
    sys.exit(run("prostate_mrus", make))
