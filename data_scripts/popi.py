"""POPI: chests in ten phases of a breath, with landmarks, grouped by case."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from reglib import phantoms

from .script import SEED, Source, run
from .standins import StandIn, write_groups

COUNTS = {"train": 1, "test": 1}
PHASES = 10


def make(out: Path, source: Source) -> None:
    """Chests through a whole breath, from full and back."""
    standin = StandIn(out, labels=1, points=True)
    phases = [math.sin(math.pi * k / PHASES) ** 2 for k in range(PHASES)]
    cohorts = phantoms.thorax_cohorts(
        sum(COUNTS.values()), phases=phases, seed=SEED + 3, shape=(56, 44, 46), spacing=6.0
    )
    groups = [
        (f"case{k + 1}", [(f"phase{10 * p:02}", subject) for p, subject in enumerate(cohort.subjects)])
        for k, cohort in enumerate(cohorts)
    ]
    write_groups(standin, groups, COUNTS)
    standin.note(source.name)


if __name__ == "__main__":
    sys.exit(run("popi", make))
