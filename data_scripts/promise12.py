"""PROMISE12: prostates in MR."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms
from reglib.data import Place

from .arranging import found, splits_of, write_scan
from .script import SEED, Source, run
from .standins import StandIn, write_scans

COUNTS = {"train": 4, "valid": 2, "test": 2}


def make(out: Path, source: Source) -> None:
    """Prostates in MR; the gland is the one label."""
    standin = StandIn(out, labels=1)
    cohort = phantoms.prostate_cohort(sum(COUNTS.values()), seed=SEED)
    write_scans(standin, [(f"Case{k:02}", subject) for k, subject in enumerate(cohort.subjects)], COUNTS)
    standin.note(source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """The training part, whose glands are outlined."""
    labels = found(unpacked, "Case*_segmentation.mhd")
    names = [label.name.removesuffix("_segmentation.mhd") for label in labels]
    split = splits_of(names)
    for name, label in zip(names, labels, strict=True):
        image = label.with_name(f"{name}.mhd")
        write_scan(out, split[name], name, Place(image), Place(label), structures=(1,))


if __name__ == "__main__":
    sys.exit(run("promise12", make, arrange))
