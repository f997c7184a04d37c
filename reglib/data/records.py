"""Which scans there are: folders and HDF5 files in DeepReg's layouts as records.

    paired     moving_images/  fixed_images/  [moving_labels/  fixed_labels/]    the same names in each
    unpaired   images/  [labels/]
    grouped    images/GROUP/  [labels/GROUP/]                                    scans of one subject in a folder

Each folder may be one HDF5 file instead, `images.h5`, with a data set a scan; keys of grouped scans are `group-i-j`.
Beside labels there may be points (`points/`, `moving_points/`, `fixed_points/`), CSV files as `io.load_points` reads.

Source: the manual of DeepReg, "Dataset loader".   Differs: names are in natural order, 2 before 10; `order="string"`
gives DeepReg's, where group-1-10 comes before group-1-2.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..doctor import ITK, NIFTI, PICTURES

PathLike = str | os.PathLike[str]
Kind = Literal["paired", "unpaired", "grouped"]
Order = Literal["natural", "string"]
SPLITS = ("train", "valid", "test")
SCANS = (*NIFTI, ".mgz", *ITK, *PICTURES)
POINTS = (".csv",)
HDF5 = (".h5", ".hdf5")
GROUP_KEY = re.compile(r"(group-\d+)-(\d+)")
SHOWN = 3  # names that a sentence lists


@dataclass(frozen=True)
class Place:
    """Where an array is: a file, or with `key` a data set in an HDF5 or npz file."""

    path: Path
    key: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.key}" if self.key else str(self.path)


@dataclass(frozen=True)
class Record:
    """One scan: where its image is and, where they are known, its label and its points.

    Attributes:
        name: what it is called in its data set, without an ending; in groups GROUP/NAME.
        group: of grouped scans.
    """

    name: str
    image: Place
    label: Place | None = None
    points: Place | None = None
    group: str = ""


@dataclass(frozen=True)
class Found:
    """What is in a split.

    Attributes:
        records: every scan; of pairs the moving ones, in the order of `fixed`.
        faults: one sentence for each folder with names without a partner, and for each name that is there twice.
        notes: one sentence for each file that is no scan.
    """

    kind: Kind
    records: tuple[Record, ...]
    fixed: tuple[Record, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def labeled(self) -> bool:
        """Whether every scan has a label."""
        return all(record.label is not None for record in (*self.records, *self.fixed))

    @property
    def groups(self) -> list[list[int]]:
        """The indices of each group's records, in their order."""
        members: dict[str, list[int]] = {}
        for index, record in enumerate(self.records):
            members.setdefault(record.group, []).append(index)
        return list(members.values())


def find(
    folders: PathLike | Sequence[PathLike],
    *,
    kind: Kind | None = None,
    labeled: bool | None = None,
    order: Order = "natural",
    strict: bool = True,
) -> Found:
    """The scans of a split, in one folder or in several that count as one.

    Args:
        kind: of layout; by default what the folders' names say.
        labeled: whether labels are wanted; by default they are taken where there are any.
        order: of names: 2 before 10 ("natural") or as strings.
        strict: raise if names have no partner; otherwise they are left out and told in `faults`.

    Raises: FileNotFoundError; ValueError for a folder given twice, an empty one, or names that do not match.
    """
    paths = _folders(folders)
    kinds = {kind or kind_of(path) for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"folders that count as one need one layout; got {', '.join(sorted(kinds))}; load them apart.")
    (one,) = kinds
    parts = [_find_one(path, one, labeled, order) for path in paths]
    lists = ("records", "fixed", "faults", "notes")
    joined = {name: tuple(one for part in parts for one in getattr(part, name)) for name in lists}
    found = Found(one, **joined)
    if strict and found.faults:
        others = len(found.faults) - 1
        more = f" {others} more fault{'s' if others > 1 else ''}: data.inspect lists all." if others else ""
        raise ValueError(found.faults[0] + more)
    if not found.records and strict:
        raise ValueError(
            f"{paths[0]} has no scan; it needs {_layout(one)} with files of {', '.join(SCANS[:2])} or .h5."
        )
    return found


def kind_of(folder: PathLike) -> Kind:
    """The layout that a split's folder has.

    Raises: FileNotFoundError; ValueError where there is none.
    """
    folder = Path(folder)
    _require_folder(folder)
    if _there(folder, "moving_images") or _there(folder, "fixed_images"):
        return "paired"
    images = _there(folder, "images")
    if images is None:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{folder} must have moving_images and fixed_images, or images (folders, or .h5 files); it has {inside}; "
            "is it the folder of a split, such as train?"
        )
    if images.is_dir():
        return "grouped" if any(path.is_dir() for path in images.iterdir()) else "unpaired"
    names = _keys(images)
    return "grouped" if names and all(GROUP_KEY.fullmatch(name) for name in names) else "unpaired"


def splits(root: PathLike) -> dict[str, Path]:
    """The split folders train, valid and test of a data set that there are; a folder that is itself a split as "".

    Raises: FileNotFoundError; ValueError where there is neither.
    """
    root = Path(root)
    _require_folder(root)
    inside = {name: root / name for name in SPLITS if (root / name).is_dir()}
    if inside:
        return inside
    kind_of(root)
    return {"": root}


def split_by_subject(
    records: Sequence[Record], shares: Sequence[float], *, seed: int = 0, subject: str = r"^(.*)$"
) -> list[list[Record]]:
    """Parts of a list of records in which no subject is in two parts.

    Args:
        shares: how much each part gets, summing to 1; of the subjects, to the nearest whole number.
        subject: a pattern whose first group is the subject in a record's name; grouped records have their group.

    Raises: ValueError if the shares do not sum to 1 or a name does not match.
    """
    import numpy as np

    if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
        raise ValueError(f"shares must be at least 0 and sum to 1; got {tuple(shares)}, sum {sum(shares):g}.")
    owners = [record.group or _subject(record.name, subject) for record in records]
    names = sorted(set(owners), key=natural)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    ends = [round(sum(shares[: k + 1]) * len(names)) for k in range(len(shares))]
    parts = [set(shuffled[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    return [[r for r, owner in zip(records, owners, strict=True) if owner in part] for part in parts]


def _subject(name: str, pattern: str) -> str:
    match = re.search(pattern, name)
    if match is None or not match.groups():
        raise ValueError(f"the pattern {pattern!r} must have a group that finds the subject in {name!r}; it has none.")
    return match.group(1)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key by which 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts if p)


def stem(name: str) -> str:
    """A file's name without the ending of a scan."""
    for ending in (*sorted(SCANS, key=len, reverse=True), *POINTS):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def shortened(names: Iterable[str]) -> str:
    """The first few names, and how many more."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# -- one folder ---------------------------------------------------------------------------------------------------
def _folders(folders: PathLike | Sequence[PathLike]) -> list[Path]:
    paths = [Path(p) for p in ([folders] if isinstance(folders, str | os.PathLike) else folders)]
    if not paths:
        raise ValueError("give at least one folder; got none.")
    for path in paths:
        _require_folder(path)
    twice = [str(path) for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if twice:
        raise ValueError(f"each folder counts once; {shortened(twice)} is given more than once; remove it.")
    return paths


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; is the path right?")
    if not path.is_dir():
        raise ValueError(f"{path} must be a folder; it is a file.")


def _layout(kind: Kind) -> str:
    return "moving_images and fixed_images" if kind == "paired" else "images"


def _find_one(folder: Path, kind: Kind, labeled: bool | None, order: Order) -> Found:
    if kind == "paired":
        sides = [_side(folder, f"{role}_", labeled, order) for role in ("moving", "fixed")]
        faults, notes = ([text for side in sides for text in getattr(side, name)] for name in ("faults", "notes"))
        moving, fixed = ({record.name: record for record in side.records} for side in sides)
        faults += _alone(moving, fixed, folder / "moving_images", folder / "fixed_images")
        faults += _alone(fixed, moving, folder / "fixed_images", folder / "moving_images")
        both = [name for name in moving if name in fixed]
        return Found(kind, tuple(moving[n] for n in both), tuple(fixed[n] for n in both), tuple(faults), tuple(notes))
    return _side(folder, "", labeled, order, kind=kind)


def _side(folder: Path, role: str, labeled: bool | None, order: Order, *, kind: Kind = "unpaired") -> Found:
    """One side of a split."""
    images_at = _there(folder, f"{role}images")
    if images_at is None:
        raise FileNotFoundError(f"{folder} must have {role}images, a folder or an .h5 file; it has none.")
    faults: list[str] = []
    notes: list[str] = []
    images = _places(images_at, SCANS, faults, notes)
    others: dict[str, dict[str, Place]] = {"labels": {}, "points": {}}
    for what, endings in (("labels", SCANS), ("points", POINTS)):
        at = _there(folder, f"{role}{what}")
        if what == "labels" and at is None and labeled:
            raise FileNotFoundError(f"{folder} must have {role}labels, a folder or an .h5 file; it has none.")
        if at is not None and not (what == "labels" and labeled is False):
            others[what] = _places(at, endings, faults, notes)
            faults += _alone(images, others[what], images_at, at)
            faults += _alone(others[what], images, at, images_at)
    names = sorted(images, key=natural) if order == "natural" else sorted(images)
    wanted = [n for n in names if not others["labels"] or n in others["labels"]]
    grouped = kind == "grouped"
    records = [
        Record(n, images[n], others["labels"].get(n), others["points"].get(n), _group(n) if grouped else "")
        for n in wanted
    ]
    return Found(kind, tuple(records), (), tuple(faults), tuple(notes))


def _there(folder: Path, name: str) -> Path | None:
    """The folder or the HDF5 file of this name."""
    candidates = [folder / name, *(folder / f"{name}{ending}" for ending in HDF5)]
    return next((path for path in candidates if path.exists()), None)


def _places(at: Path, endings: Sequence[str], faults: list[str], notes: list[str]) -> dict[str, Place]:
    """Name to place of each scan below a folder or in an HDF5 file; what is wrong is added to the lists."""
    if at.is_file():
        return {_named(key): Place(at, key) for key in _keys(at)}
    places: dict[str, Place] = {}
    for path in _below(at):
        if not path.name.lower().endswith(tuple(endings)):
            notes.append(f"{path} is no file of {', '.join(endings[:3])} and is left out; move it or convert it.")
            continue
        name = stem(str(path.relative_to(at).as_posix()))
        if name in places:
            faults.append(f"{name} is in {at} twice, as {places[name].path.name} and {path.name}; keep one of them.")
            continue
        places[name] = Place(path)
    return places


def _below(folder: Path) -> Iterator[Path]:
    """The files below a folder, hidden ones left out; in one order everywhere."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _below(path)
        else:
            yield path


def _keys(path: Path) -> list[str]:
    import h5py

    try:
        with h5py.File(path) as file:
            names = list(file)
    except OSError as error:
        raise ValueError(f"{path} must be an HDF5 file; it cannot be read: {error}; make it again.") from None
    return names


def _named(key: str) -> str:
    """GROUP/NAME of a key such as group-1-2, which is the second scan of group-1; other keys are names of files."""
    match = GROUP_KEY.fullmatch(key)
    return f"{match.group(1)}/{match.group(2)}" if match else stem(key)


def _group(name: str) -> str:
    return name.rpartition("/")[0]


def _alone(here: Iterable[str], there: Iterable[str], here_at: Path, there_at: Path) -> list[str]:
    others = set(there)
    names = [name for name in here if name not in others]
    if not names:
        return []
    return [
        f"{len(names)} of the names in {here_at} {'has' if len(names) == 1 else 'have'} no partner in {there_at}: "
        f"{shortened(names)}; add or rename the missing files."
    ]
