"""What was unpacked, in our layout: files found, split by subject, converted and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from reglib import io
from reglib.data import Place, Record, split_by_subject
from reglib.data.reading import read_image, read_label
from reglib.grid import Grid

SPLITS = ("train", "valid", "test")
TISSUES = {"CSF": (4,), "gray matter": (1, 2), "white matter": (3,)}  # of neurite's four labels, two of them gray


def found(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder that match, in one order; names that begin with a point are left out.

    Raises: ValueError if there is none.
    """
    files = [path for path in sorted(folder.rglob(pattern)) if not path.name.startswith(".")]
    if not files:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:6])
        raise ValueError(f"{pattern} is not in what was unpacked, which has {inside}; has the publisher changed it?")
    return files


def splits_of(subjects: Sequence[str], shares: Sequence[float] = (0.7, 0.1, 0.2), *, seed: int = 0) -> dict[str, str]:
    """The split of each subject: whole subjects, drawn by a seed."""
    records = [Record(name, Place(Path(name))) for name in subjects]
    parts = split_by_subject(records, shares, seed=seed)
    return {record.name: split for split, part in zip(SPLITS, parts, strict=True) for record in part}


def write_scan(
    out: Path,
    split: str,
    name: str,
    image: Place,
    label: Place | None = None,
    *,
    role: str = "",
    structures: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    points: Callable[[Grid], Tensor] | None = None,
) -> None:
    """A scan in a split, its label one structure a channel.

    Args:
        structures: labels of a map that become channels; or, by its name, the labels that are joined in one.
        points: gives its landmarks (n, d), RAS+ mm, from its grid.
    """
    values, grid = read_image(image)
    io.save_image(out / split / f"{role}images" / f"{name}.nii.gz", values[None], grid)
    if points is not None:
        io.save_points(out / split / f"{role}points" / f"{name}.csv", points(grid)[None])
    if label is None:
        return
    if isinstance(structures, Mapping):
        whole = read_label(label, grid, masks=False)
        masks = torch.cat([torch.isin(whole, torch.tensor(list(those)).to(whole)) for those in structures.values()])
    elif structures is not None:
        masks = read_label(label, grid, structures=structures) > 0
    else:
        masks = read_label(label, grid) > 0.5
    io.save_labels(out / split / f"{role}labels" / f"{name}.nii.gz", masks[None].long(), grid)


def write_oasis(unpacked: Path, out: Path, kind: str, *, atlas: str | None = None) -> None:
    """The brains of neurite's OASIS with their tissues, `kind` "aligned" in 3-D or "slice"; one may be the atlas."""
    brains = found(unpacked, f"{kind}_norm.nii.gz")
    split = splits_of([path.parent.name for path in brains if path.parent.name != atlas])
    for path in brains:
        name, label = path.parent.name, path.with_name(f"{kind}_seg4.nii.gz")
        write_scan(out, split.get(name, "atlas"), name, Place(path), Place(label), structures=TISSUES)
