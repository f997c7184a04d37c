"""NLST lung CT of Learn2Reg: pairs with keypoints and masks of the lungs."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reglib import phantoms
from reglib.data import Place
from reglib.grid import Axes, Grid

from .arranging import found, splits_of, write_scan
from .script import SEED, Source, run
from .standins import StandIn, write_pairs

COUNTS = {"train": 3, "valid": 1, "test": 1}


def make(out: Path, source: Source) -> None:
    """Chests breathed in and out."""
    standin = StandIn(out, labels=1, points=True)
    cohorts = phantoms.thorax_cohorts(sum(COUNTS.values()), seed=SEED + 1)
    pairs = [(f"NLST_{k + 1:04}", cohort.pair(0, 1)) for k, cohort in enumerate(cohorts)]
    write_pairs(standin, pairs, COUNTS)
    standin.note(source.name)


ROLES = {"fixed_": "0000", "moving_": "0001"}  # breathed in, breathed out


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """Pairs of the training part, with their masks and keypoints."""
    names = [p.name.removesuffix("_0000.nii.gz") for p in found(unpacked, "imagesTr/*_0000.nii.gz")]
    split = splits_of(names)
    for name in names:
        for role, number in ROLES.items():
            (image,) = found(unpacked, f"imagesTr/{name}_{number}.nii.gz")
            mask = image.parents[1] / "masksTr" / image.name
            points = partial(keypoints, image.parents[1] / "keypointsTr" / f"{name}_{number}.csv")
            write_scan(out, split[name], name, Place(image), Place(mask), role=role, structures=(1,), points=points)


def keypoints(path: Path, grid: Grid) -> Tensor:
    """World points (n, 3), mm, of a file that counts voxels."""
    voxels = torch.from_numpy(np.loadtxt(path, delimiter=",", ndmin=2))
    return grid.points(voxels, to=Axes.WORLD, from_=Axes.VOXEL)


if __name__ == "__main__":
    sys.exit(run("nlst", make, arrange))
