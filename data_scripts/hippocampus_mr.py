"""Hippocampus MR of the Medical Segmentation Decathlon: head and body."""

from __future__ import annotations

import sys
from pathlib import Path

from reglib import phantoms
from reglib.data import Place

from .arranging import found, write_scan
from .script import SEED, Source, run
from .standins import StandIn, write_scans

COUNTS = {"train": 4, "valid": 2, "test": 2}


def make(out: Path, source: Source) -> None:
    """Surroundings of a hippocampus."""
    standin = StandIn(out, labels=2)
    cohort = phantoms.hippocampus_cohort(sum(COUNTS.values()), seed=SEED)
    write_scans(standin, [(f"hippocampus_{k + 1:03}", subject) for k, subject in enumerate(cohort.subjects)], COUNTS)
    standin.note(source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """The Decathlon's imagesTr and labelsTr; DeepReg trains on subjects below 311 and tests on the others."""
    for image in found(unpacked, "imagesTr/hippocampus_*.nii.gz"):
        name = image.name.removesuffix(".nii.gz")
        split = "train" if int(name.rpartition("_")[2]) < 311 else "test"
        label = image.parents[1] / "labelsTr" / image.name
        write_scan(out, split, name, Place(image), Place(label), structures=(1, 2))


if __name__ == "__main__":
    sys.exit(run("hippocampus_mr", make, arrange))
