"""Learn2Reg abdomen CT: patients with thirteen organs."""

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
    """Abdomens in HU."""
    standin = StandIn(out, labels=len(phantoms.ORGANS))
    cohort = phantoms.organ_cohort(sum(COUNTS.values()), seed=SEED)
    write_scans(standin, [(f"img{k + 1:04}", subject) for k, subject in enumerate(cohort.subjects)], COUNTS)
    standin.note(source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """Files of one number in images and labels; three quarters are for training."""
    images = found(unpacked, "dataset/images/*.nii.gz")
    split = splits_of([image.name for image in images], (0.75, 0.1, 0.15))
    for image in images:
        label = image.parents[1] / "labels" / image.name
        name = image.name.removesuffix(".nii.gz")
        write_scan(out, split[image.name], name, Place(image), Place(label), structures=range(1, 14))


if __name__ == "__main__":
    sys.exit(run("abdomen_ct", make, arrange))
