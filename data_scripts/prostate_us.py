"""Transrectal ultrasound of prostates, without labels."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms
from reglib.data import Place
from reglib.data.records import stem

from .arranging import found, splits_of, write_scan
from .script import SEED, Source, run
from .standins import StandIn, write_scans

COUNTS = {"train": 4, "valid": 2, "test": 2}


def make(out: Path, source: Source) -> None:
    """Prostates in ultrasound."""
    standin = StandIn(out, labels=0)
    cohort = phantoms.prostate_cohort(sum(COUNTS.values()), seed=SEED, modality="us")
    write_scans(standin, [(f"trus{k + 1:02}", subject) for k, subject in enumerate(cohort.subjects)], COUNTS)
    standin.note(source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """Every volume there is; they have no labels."""
    images = {stem(path.name): path for path in found(unpacked, "*.nii*")}
    split = splits_of(list(images))
    for name, image in images.items():
        write_scan(out, split[name], name, Place(image))


if __name__ == "__main__":
    sys.exit(run("prostate_us", make, arrange))
