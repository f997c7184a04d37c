"""RESECT, as EASY-RESECT prepared it: MR (fixed) and ultrasound (moving) of brains in surgery, with landmarks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from reglib import phantoms
from reglib.data import Place

from .arranging import found, splits_of, write_scan
from .script import SEED, Source, run
from .standins import StandIn, write_pairs

COUNTS = {"train": 3, "valid": 1, "test": 1}
GRID: dict[str, Any] = {"shape": (64, 72, 64), "spacing": 2.8}


def make(out: Path, source: Source) -> None:
    """Brains from MNI152, the moving one as ultrasound shows it."""
    standin = StandIn(out, labels=0, points=True)
    pairs = []
    for k in range(sum(COUNTS.values())):
        cohort = phantoms.brain_cohort(2, seed=SEED + 10 + k, strength_mm=2.5, noise=0.0, bias=0.0, **GRID)
        mr, seen = cohort.subjects
        shown = phantoms.ultrasound(np.random.default_rng([SEED, k]), seen.image, seen.grid)
        moving = phantoms.Subject(shown, seen.labels, seen.grid, seen.template_from_subject)
        pairs.append((f"Case{k + 1}", phantoms.Cohort((mr, moving), SEED).pair(0, 1)))
    write_pairs(standin, pairs, COUNTS)
    standin.note(source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """MR is fixed, ultrasound moving; files that cannot be read are an error, not left out."""
    scans = [p for p in found(unpacked, "Case*/*T1*.nii*") if "Tag" not in p.name]
    split = splits_of([p.parent.name for p in scans], (0.65, 0.1, 0.25))
    for fixed in scans:
        name = fixed.parent.name
        (moving,) = (p for p in found(fixed.parent, "*US*.nii*"))
        write_scan(out, split[name], name, Place(fixed), role="fixed_")
        write_scan(out, split[name], name, Place(moving), role="moving_")


if __name__ == "__main__":
    sys.exit(run("resect", make, arrange))
