"""Brains and an atlas to register each of them to, as VoxelMorph does; `OUT/atlas` has the atlas."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from reglib import phantoms

from .arranging import write_oasis
from .script import SEED, Source, run
from .standins import StandIn, tissues, write_scans

COUNTS = {"train": 4, "valid": 1, "test": 2}
ATLAS = "OASIS_OAS1_0001_MR1"
GRID: dict[str, Any] = {"shape": (64, 72, 64), "spacing": 2.8}


def make(out: Path, source: Source) -> None:
    """Brains from MNI152, and MNI152 as the atlas."""
    standin = StandIn(out, labels=len(source.labels))
    cohort = phantoms.brain_cohort(sum(COUNTS.values()), seed=SEED + 2, **GRID)
    write_scans(standin, [(f"brain{k + 1:02}", tissues(subject)) for k, subject in enumerate(cohort.subjects)], COUNTS)
    atlas = phantoms.brain_cohort(1, seed=SEED, strength_mm=0.0, noise=0.0, bias=0.0, contrast=0.0, **GRID)
    write_scans(standin, [("atlas", tissues(atlas.subjects[0]))], {"atlas": 1})
    standin.note(source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """Brains that neurite aligned; one of them is the atlas."""
    write_oasis(unpacked, out, "aligned", atlas=ATLAS)


if __name__ == "__main__":
    sys.exit(run("brain_atlas", make, arrange))
