"""POPI: chests in ten phases of a breath, with landmarks, grouped by case."""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reglib import phantoms
from reglib.data import Place
from reglib.grid import Grid

from .arranging import found, splits_of, write_scan
from .script import SEED, Source, run
from .standins import StandIn, write_groups

COUNTS = {"train": 1, "test": 1}
PHASES = 10


def make(out: Path, source: Source) -> None:
    """Chests through a whole breath, from full and back."""
    standin = StandIn(out, labels=1, points=True)
    phases = [math.sin(math.pi * k / PHASES) ** 2 for k in range(PHASES)]
    cohorts = phantoms.thorax_cohorts(
        sum(COUNTS.values()), phases=phases, seed=SEED + 3, shape=(56, 44, 46), spacing=6.0
    )
    groups = [
        (f"case{k + 1}", [(f"phase{10 * p:02}", subject) for p, subject in enumerate(cohort.subjects)])
        for k, cohort in enumerate(cohorts)
    ]
    write_groups(standin, groups, COUNTS)
    standin.note(source.name)


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """Ten phases of each case, with their landmarks."""
    phases = found(unpacked, "*/*.mhd")
    split = splits_of(sorted({phase.parent.name for phase in phases}), (4 / 6, 1 / 6, 1 / 6))
    for phase in phases:
        case = phase.parent.name
        points = partial(landmarks, phase.with_suffix(".pts"))
        write_scan(out, split[case], f"{case}/phase{phase.stem}", Place(phase), points=points)


def landmarks(path: Path, grid: Grid) -> Tensor:
    """World points (n, 3), RAS+ mm, of a file in the coordinates of ITK, LPS+ mm."""
    return torch.from_numpy(np.loadtxt(path, ndmin=2)) * torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)


if __name__ == "__main__":
    sys.exit(run("popi", make, arrange))
