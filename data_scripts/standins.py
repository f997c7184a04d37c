"""Stand-ins: phantoms in the layout, under the names and with the labels of a public data set, and their truth.

    OUT/{train,valid,test}/...             as `reglib.data` reads it
    OUT/truth/{train,valid,test}/NAME_*    what is true of each, and nowhere else known

Of a pair: `NAME_ddf`, voxels of the fixed grid, fixed to moving, and `NAME_inverse_ddf`, voxels of the moving grid. Of
a scan: `NAME_template_from_scan` and `NAME_scan_from_template`, both voxels of the scan's grid; a scan's map to another
is its map to the template and then that one's map back. Landmarks are `NAME_fixed_points` and `NAME_moving_points` of a
pair, `NAME_points` of a scan, the same places of the template in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reglib import io
from reglib.grid import Axes, Grid
from reglib.phantoms import Pair, Subject
from reglib.phantoms.maps import ddf_of

POINTS = 40  # landmarks of a scan
NOTE = """This is a stand-in: made on the spot by reglib.phantoms, it has the layout, the names and the labels of the
data set {name}, and none of its data.{truth}
"""


def note(out: Path, name: str, truth: str = "") -> None:
    """Say in a folder what it is."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "STANDIN.txt").write_text(NOTE.format(name=name, truth=truth), encoding="utf-8")


class StandIn:
    """A data set that is being written.

    Args:
        out: its folder.
        labels: the number of structures; each becomes a channel. 0 for scans without labels.
        points: whether landmarks lie beside the scans, as in data sets that have them.
        ending: of images, ".nii.gz" or ".png".
    """

    def __init__(self, out: Path, *, labels: int, points: bool = False, ending: str = ".nii.gz") -> None:
        self.out, self.labels, self.points, self.ending = out, labels, points, ending

    def pair(self, split: str, name: str, pair: Pair) -> None:
        """A pair of scans and the truth between them."""
        truth = pair.truth
        sides = {
            "moving": (pair.moving, pair.moving_labels, pair.moving_grid, truth.moving_points),
            "fixed": (pair.fixed, pair.fixed_labels, pair.fixed_grid, truth.fixed_points),
        }
        for role, (image, labels, grid, points) in sides.items():
            self._scan(split, f"{role}_", name, image, labels, grid, points[:, :POINTS])
            io.save_points(self._truth(split, name, f"{role}_points.csv"), points)
        io.save_ddf(self._truth(split, name, "ddf.nii.gz"), truth.ddf, pair.fixed_grid)
        io.save_ddf(self._truth(split, name, "inverse_ddf.nii.gz"), truth.inverse_ddf, pair.moving_grid)

    def scan(self, split: str, name: str, subject: Subject, landmarks: Tensor) -> None:
        """A scan, its maps to and from the template, and where the template's landmarks (n, d), mm, are in it."""
        seen, grid = subject.template_from_subject, subject.grid
        points = seen.inverse_points(landmarks)[None]
        self._scan(split, "", name, subject.image, subject.labels, grid, points)
        for what, world_map in (("template_from_scan", seen.points), ("scan_from_template", seen.inverse_points)):
            io.save_ddf(self._truth(split, name, f"{what}.nii.gz"), ddf_of(world_map, grid), grid)
        io.save_points(self._truth(split, name, "points.csv"), points)

    def note(self, name: str) -> None:
        """Say in the folder what it is."""
        note(self.out, name, " What is true of it is in the folder truth.")

    def _scan(
        self, split: str, role: str, name: str, image: Tensor, labels: Tensor, grid: Grid, points: Tensor
    ) -> None:
        where = self.out / split
        if self.ending == ".png":
            image = (255 * image).round()
        io.save_image(where / f"{role}images" / f"{name}{self.ending}", image, grid)
        if self.labels:
            masks = torch.cat([labels == k + 1 for k in range(self.labels)], dim=1)
            io.save_labels(where / f"{role}labels" / f"{name}.nii.gz", masks.long(), grid)
        if self.points:
            io.save_points(where / f"{role}points" / f"{name}.csv", points)

    def _truth(self, split: str, name: str, what: str) -> Path:
        return self.out / "truth" / split / f"{name}_{what}"


def landmarks_of(subject: Subject, *, seed: int = 0) -> Tensor:
    """Places of the template (n, d), mm, that lie in the subject's structures."""
    inside = subject.labels[0, 0].nonzero().double()
    chosen = inside[torch.from_numpy(np.random.default_rng(seed).choice(len(inside), POINTS))]
    world = subject.grid.points(chosen, to=Axes.WORLD, from_=Axes.VOXEL)
    return subject.template_from_subject.points(world)


def tissues(subject: Subject) -> Subject:
    """A brain with one label a tissue, fluid, gray and white matter, instead of one a tissue and side."""
    labels = torch.where(subject.labels > 0, (subject.labels - 1) % 3 + 1, 0)
    return Subject(subject.image, labels, subject.grid, subject.template_from_subject)


def write_scans(standin: StandIn, named: Iterable[tuple[str, Subject]], counts: Mapping[str, int]) -> None:
    """Scans one after another into the splits, as many as each wants; all share the first one's landmarks."""
    named = list(named)
    landmarks = landmarks_of(named[0][1])
    splits = [split for split, count in counts.items() for _ in range(count)]
    for split, (name, subject) in zip(splits, named, strict=True):
        standin.scan(split, name, subject, landmarks)


def write_groups(
    standin: StandIn, groups: Sequence[tuple[str, Sequence[tuple[str, Subject]]]], counts: Mapping[str, int]
) -> None:
    """Groups one after another into the splits, whole."""
    landmarks = landmarks_of(groups[0][1][0][1])
    splits = [split for split, count in counts.items() for _ in range(count)]
    for split, (group, members) in zip(splits, groups, strict=True):
        for name, subject in members:
            standin.scan(split, f"{group}/{name}", subject, landmarks)


def write_pairs(standin: StandIn, named: Iterable[tuple[str, Pair]], counts: Mapping[str, int]) -> None:
    """Pairs one after another into the splits."""
    splits = [split for split, count in counts.items() for _ in range(count)]
    for split, (name, pair) in zip(splits, list(named), strict=True):
        standin.pair(split, name, pair)
