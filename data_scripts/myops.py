"""MyoPS 2020: hearts in three sequences each, grouped by patient."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from reglib import phantoms
from reglib.data import Place

from .arranging import found, splits_of, write_scan
from .script import SEED, Source, run
from .standins import StandIn, write_groups

COUNTS = {"train": 4, "valid": 1, "test": 2}


def make(out: Path, source: Source) -> None:
    """Rings of blood and muscle."""
    standin = StandIn(out, labels=len(phantoms.HEART_LABELS))
    cohorts = phantoms.cardiac_cohort(sum(COUNTS.values()), seed=SEED)
    groups = [
        (f"patient{k + 101}", list(zip(phantoms.SEQUENCES, cohort.subjects, strict=True)))
        for k, cohort in enumerate(cohorts)
    ]
    write_groups(standin, groups, COUNTS)
    standin.note(source.name)


THEIRS = {"C0": "bssfp", "DE": "lge", "T2": "t2"}
STRUCTURES = {"left ventricle": (500,), "myocardium": (200, 1220, 2221), "right ventricle": (600,)}  # 1220 is edema
NAME = re.compile(r"(\d+)_(C0|DE|T2)\.nii\.gz$")


def arrange(unpacked: Path, out: Path, source: Source) -> None:
    """Three sequences of each patient; their one label, where there is one, is of all three."""
    images = {m.groups(): p for p in found(unpacked, "*.nii.gz") if (m := NAME.search(p.name))}
    split = splits_of(sorted({number for number, _ in images}), (0.85, 0.05, 0.1))
    labels = {m.group(1): p for p in unpacked.rglob("*_gd.nii.gz") if (m := re.search(r"(\d+)_gd", p.name))}
    for (number, sequence), image in images.items():
        label = Place(labels[number]) if number in labels else None
        name = f"patient{number}/{THEIRS[sequence]}"
        write_scan(out, split[number], name, Place(image), label, structures=STRUCTURES)


if __name__ == "__main__":
    sys.exit(run("myops", make, arrange))
