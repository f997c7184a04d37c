"""MyoPS 2020: hearts in three sequences each, grouped by patient."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms

from .script import SEED, Source, run
from .standins import StandIn, write_groups

COUNTS = {"train": 4, "valid": 1, "test": 2}


def make(out: Path, source: Source) -> None:
    """Rings of blood and muscle."""
    standin = StandIn(out, labels=len(phantoms.HEART_LABELS))
    cohorts = phantoms.cardiac_cohort(sum(COUNTS.values()), seed=SEED)
    groups = [
        (f"patient{k + 101}", list(zip(phantoms.SEQUENCES, cohort.subjects, strict=True)))
        for k, cohort in enumerate(cohorts)
    ]
    write_groups(standin, groups, COUNTS)
    standin.note(source.name)


if __name__ == "__main__":
    sys.exit(run("myops", make))
