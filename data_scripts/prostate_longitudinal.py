"""Masks of prostates at several visits, grouped by patient, as in DeepReg's longitudinal demo."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms

from .script import SEED, Source, run
from .standins import StandIn, write_groups

COUNTS = {"train": 4, "valid": 1, "test": 2}
VISITS = 3


def make(out: Path, source: Source) -> None:
    """Glands that grow."""
    standin = StandIn(out, labels=1)
    cohorts = phantoms.longitudinal_masks(sum(COUNTS.values()), VISITS, seed=SEED)
    groups = [
        (f"patient{k + 1:02}", [(f"visit{v + 1}", subject) for v, subject in enumerate(cohort.subjects)])
        for k, cohort in enumerate(cohorts)
    ]
    write_groups(standin, groups, COUNTS)
    standin.note(source.name)


if __name__ == "__main__":
    sys.exit(run("prostate_longitudinal", make))
