"""Transrectal ultrasound of prostates, without labels."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms

from .script import SEED, Source, run
from .standins import StandIn, write_scans

COUNTS = {"train": 4, "valid": 2, "test": 2}


def make(out: Path, source: Source) -> None:
    """Prostates in ultrasound."""
    standin = StandIn(out, labels=0)
    cohort = phantoms.prostate_cohort(sum(COUNTS.values()), seed=SEED, modality="us")
    write_scans(standin, [(f"trus{k + 1:02}", subject) for k, subject in enumerate(cohort.subjects)], COUNTS)
    standin.note(source.name)


if __name__ == "__main__":
    sys.exit(run("prostate_us", make))
