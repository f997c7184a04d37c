"""Learn2Reg lung CT: expiration (moving) and inspiration (fixed), with masks of the lungs."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms
from reglib.data import Place

from .arranging import found, splits_of, write_scan
from .script import SEED, Source, run
from .standins import StandIn, write_pairs

COUNTS = {"train": 3, "valid": 1, "test": 1}


def make(out: Path, source: Source) -> None:
    """Chests breathed in and out."""
    standin = StandIn(out, labels=1)
    cohorts = phantoms.thorax_cohorts(sum(COUNTS.values()), seed=SEED)
    pairs = [(f"case_{k + 1:03}", cohort.pair(0, 1)) for k, cohort in enumerate(cohorts)]
    write_pairs(standin, pairs, COUNTS)
    standin.note(source.name)


BROKEN = "case_020"  # DeepReg leaves it out: it did not load correctly


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """Breathed in is fixed, out is moving."""
    scans = [p for p in found(unpacked, "scans/*_insp.nii.gz") if not p.name.startswith(BROKEN)]
    names = [p.name.removesuffix("_insp.nii.gz") for p in scans]
    split = splits_of(names, (0.6, 0.2, 0.2))
    for name, scan in zip(names, scans, strict=True):
        for role, breath in (("fixed_", "insp"), ("moving_", "exp")):
            image = scan.with_name(f"{name}_{breath}.nii.gz")
            mask = scan.parents[1] / "lungMasks" / image.name
            write_scan(out, split[name], name, Place(image), Place(mask), role=role, structures=(1,))


if __name__ == "__main__":
    sys.exit(run("lung_ct", make, arrange))
