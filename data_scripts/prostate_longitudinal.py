"""Masks of prostates at several visits, grouped by patient, as in DeepReg's longitudinal demo."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py

from reglib import filters, io, phantoms
from reglib.data import Place
from reglib.data.reading import read_image
from reglib.data.records import GROUP_KEY

from .arranging import found, splits_of
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


SMOOTH = 3.0  # voxels


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """Masks of one HDF5 file; the image of each is itself, smoothed, as in DeepReg's demo."""
    (file,) = found(unpacked, "data.h5")
    with h5py.File(file) as scans:
        keys = [match for match in map(GROUP_KEY.fullmatch, scans) if match]
    split = splits_of(sorted({match.group(1) for match in keys}))
    for match in keys:
        values, grid = read_image(Place(file, match.group()))
        mask = (values > 0.5)[None]
        name = f"{match.group(1)}/{match.group(2)}.nii.gz"
        folder = out / split[match.group(1)]
        io.save_image(folder / "images" / name, filters.gaussian(mask.float(), sigma=SMOOTH), grid)
        io.save_labels(folder / "labels" / name, mask.long(), grid)


if __name__ == "__main__":
    sys.exit(run("prostate_longitudinal", make, arrange))
