"""What is in a folder of scans and what is wrong with it, before anything is trained on it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from .reading import read_image, read_label, read_points
from .records import Found, Kind, PathLike, Place, Record, find, natural, shortened, splits

if TYPE_CHECKING:
    import pandas as pd

ALIKE = 1.5  # voxels that differ by more than this factor in size along an axis are worth a note
READERS = 4  # threads that read


@dataclass(frozen=True)
class Row:
    """One scan of the table; what could not be read is None."""

    split: str
    role: str  # moving, fixed or ""
    name: str
    group: str
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    orientation: str | None = None
    low: float | None = None
    high: float | None = None
    labels: int | None = None
    points: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        kinds: the layout of each split.
        rows: a line for each scan.
        faults: one sentence each, with its cure; with one of them a data set cannot be used as it is.
        notes: what is unusual, and may be meant.
    """

    folder: Path
    kinds: dict[str, Kind]
    rows: tuple[Row, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    @property
    def table(self) -> pd.DataFrame:
        """A line for each scan."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self.rows], columns=list(Row.__dataclass_fields__))

    def __str__(self) -> str:
        lines = [_line(split, kind, [r for r in self.rows if r.split == split]) for split, kind in self.kinds.items()]
        lines += [_table(self.rows), ""]
        for title, texts in (("fault", self.faults), ("note", self.notes)):
            if texts:
                lines += [f"{len(texts)} {title}{'s' if len(texts) > 1 else ''}"]
                lines += [f"  {k}. {text}" for k, text in enumerate(texts, start=1)]
        return "\n".join(lines if self.faults or self.notes else [*lines, "nothing wrong"])


@dataclass
class _Facts:
    """A scan while it is looked at: its line, what is wrong with it, and what only all together show.

    Attributes:
        content: of its voxels, the same for the same image.
        overlap: share of the voxels that have two structures.
    """

    record: Record
    row: Row
    content: str = ""
    overlap: float = 0.0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inspect(folder: PathLike, *, kind: Kind | None = None, progress: bool = False) -> Inspection:
    """Look at every scan of a split, or of the splits train, valid and test of a data set.

    Every fault is listed, not the first alone: names without a partner, names that are there twice, groups of one scan,
    files that cannot be read or have NaNs, constant images, labels off their image's grid, outside [0, 1] or of two
    structures at once, pairs with different numbers of labels, axes in different orders, subjects in two splits.

    Args:
        kind: of layout; by default what the folders' names say.
        progress: show how far it is.

    Raises: FileNotFoundError; ValueError if the folder has no such layout.
    """
    kinds: dict[str, Kind] = {}
    rows: list[Row] = []
    faults: list[str] = []
    notes: list[str] = []
    everyone: dict[str, list[_Facts]] = {}
    for split, path in splits(folder).items():
        found = find(path, kind=kind, strict=False)
        sides = _sides(found, split, progress)
        kinds[split] = found.kind
        everyone[split] = [facts for side in sides for facts in side]
        where = f"{split}: " if split else ""
        texts = [*found.faults, *_empty(found, path), *_groups_of_one(found)]
        texts += [text for side in sides for facts in side for text in facts.faults]
        texts += _across(found, sides)
        faults += [where + text for text in texts]
        remarks = [*found.notes, *(text for side in sides for facts in side for text in facts.notes), *_spacings(sides)]
        notes += [where + text for text in remarks]
        rows += [facts.row for side in sides for facts in side]
    faults += _leaks(everyone)
    notes += _shared_groups(everyone)
    short = [[text.replace(f"{folder}{os.sep}", "") for text in texts] for texts in (faults, notes)]
    return Inspection(Path(folder), kinds, tuple(rows), *map(tuple, short))


# -- one scan -----------------------------------------------------------------------------------------------------
def _sides(found: Found, split: str, progress: bool) -> list[list[_Facts]]:
    """The facts of the moving and the fixed scans, or of all scans."""
    roles = (("moving", found.records), ("fixed", found.fixed)) if found.kind == "paired" else (("", found.records),)
    count = sum(len(records) for _, records in roles)
    with ThreadPoolExecutor(READERS) as readers, tqdm(total=count, unit="scan", disable=not progress) as bar:
        sides: list[list[_Facts]] = []
        for role, records in roles:
            sides.append([])
            for facts in readers.map(partial(_look, split=split, role=role), records):
                sides[-1].append(facts)
                bar.update()
    return sides


def _look(record: Record, split: str, role: str) -> _Facts:
    facts = _Facts(record, Row(split, role, record.name, record.group))
    values: dict[str, Any] = {}
    image = _tried(facts, lambda: read_image(record.image))
    if image is not None:
        low, high = float(image.values.min()), float(image.values.max())
        grid = image.grid
        values |= {"shape": grid.shape, "spacing": grid.spacing, "orientation": grid.orientation}
        values |= {"low": low, "high": high}
        facts.content = hashlib.sha256(image.values.numpy().tobytes()).hexdigest()
        if low == high:
            facts.faults.append(f"{record.image} is constant, {low:g} everywhere; is it the right file?")
    if record.label is not None:
        values["labels"] = _look_at_label(facts, record.label, None if image is None else image.grid)
    if record.points is not None and image is not None:
        points = _tried(facts, partial(read_points, record.points, image.grid.dim))
        values["points"] = None if points is None else len(points)
    facts.row = Row(**{**vars(facts.row), **values})
    return facts


def _look_at_label(facts: _Facts, place: Place, grid: Any) -> int | None:
    """How many structures a label has; notes what is wrong with it."""
    label = _tried(facts, lambda: read_label(place, grid))
    if label is None:
        return None
    facts.overlap = float((label.sum(0) > 1 + 1e-4).float().mean())
    empty = [k for k in range(len(label)) if not bool((label[k] > 0).any())]
    if empty:
        which, rest = shortened(map(str, empty)), "empty, not seen in this scan."
        facts.notes.append(f"{place}: channel{f's {which} are' if empty[1:] else f' {which} is'} {rest}")
    return len(label)


def _tried(facts: _Facts, read: Callable[[], Any]) -> Any:
    """What `read` returns, or None with its sentence noted."""
    try:
        return read()
    except (OSError, ValueError) as error:
        facts.faults.append(" ".join(str(error).split()))
        return None


# -- scans together -----------------------------------------------------------------------------------------------
def _empty(found: Found, path: Path) -> list[str]:
    if found.records:
        return []
    return [f"{path} has no scan that can be used; add files, or mend the names above."]


def _groups_of_one(found: Found) -> list[str]:
    if found.kind != "grouped":
        return []
    alone = [found.records[group[0]].name for group in found.groups if len(group) == 1]
    if not alone:
        return []
    return [
        f"{len(alone)} group{'s have' if len(alone) > 1 else ' has'} one scan only: {shortened(alone)}; it cannot meet "
        "another of its group; add one, or set intra_group_prob to 0."
    ]


def _across(found: Found, sides: Sequence[Sequence[_Facts]]) -> Iterator[str]:
    """Faults of scans that are each right."""
    if found.kind == "paired":
        pairs = [(m.row, f.row) for m, f in zip(*sides, strict=True)]
        differ = [m for m, f in pairs if None not in (m.labels, f.labels) and m.labels != f.labels]
        if differ:
            counts = [f"{m.name} ({m.labels} and {f.labels})" for m, f in pairs if m in differ]
            yield _counts_differ("pairs", counts)
    else:
        by_count: dict[int, list[str]] = defaultdict(list)
        for facts in sides[0]:
            if facts.row.labels is not None:
                by_count[facts.row.labels].append(facts.row.name)
        if len(by_count) > 1:
            yield _counts_differ("scans", [f"{shortened(n)} ({count})" for count, n in sorted(by_count.items())])
    yield from _overlaps([facts for side in sides for facts in side])
    rows = [facts.row for side in sides for facts in side]
    yield from _mixed("orientation", rows, "list the axes of all in one order", "Reading(orientation='RAS')")
    dims = Counter(len(row.shape) for row in rows if row.shape)
    if len(dims) > 1:
        yield f"2-D and 3-D images are mixed, {dims[2]} and {dims[3]} of them; put them into folders of their own."


def _overlaps(scans: Sequence[_Facts]) -> Iterator[str]:
    several = [facts for facts in scans if facts.overlap > 0]
    if several:
        worst = max(several, key=lambda facts: facts.overlap)
        yield (
            f"{len(several)} label{'s are' if len(several) > 1 else ' is'} not one-hot: "
            f"{shortened(str(facts.record.label) for facts in several)}; in the worst, {100 * worst.overlap:.2g} % of "
            "the voxels have two structures at once; take from one what the other has, or draw one at a time."
        )


def _counts_differ(what: str, counts: Sequence[str]) -> str:
    listed = "; ".join(counts[:4]) + (" ..." if len(counts) > 4 else "")
    return (
        f"{what} have different numbers of labels: {listed}; both of a pair need as many; an empty mask stands for a "
        "structure that is not seen."
    )


def _mixed(what: str, rows: Iterable[Row], cure: str, code: str) -> Iterator[str]:
    owners: dict[Any, list[str]] = defaultdict(list)
    for row in rows:
        value = getattr(row, what)
        if value is not None:
            owners[len(value), value].append(row.name)
    by_value = {value: names for (_, value), names in sorted(owners.items(), key=lambda pair: -len(pair[1]))}
    if any(len(a) == len(b) and a != b for a, b in combinations(by_value, 2)):
        listed = ", ".join(f"{value} ({len(names)}, such as {names[0]})" for value, names in by_value.items())
        yield f"mixed {what}s: {listed}; {cure}, {code}, or reglib data prepare."


def _spacings(sides: Sequence[Sequence[_Facts]]) -> list[str]:
    spacings = [facts.row.spacing for side in sides for facts in side if facts.row.spacing]
    ratios = [max(along) / min(along) for along in zip(*spacings, strict=False)]
    if not ratios or max(ratios) < ALIKE:
        return []
    listed = " and ".join(" x ".join(f"{s:.3g}" for s in each) for each in (min(spacings), max(spacings)))
    return [
        f"spacings differ, such as {listed} mm; a ddf counts voxels of the fixed grid; Reading(spacing=...) brings all "
        "to one."
    ]


def _leaks(everyone: dict[str, list[_Facts]]) -> Iterator[str]:
    """Scans that are in two splits, by name or by content."""
    for first, second in combinations(everyone, 2):
        names = {facts.record.name for facts in everyone[second]}
        contents = {facts.content for facts in everyone[second]} - {""}
        both = [f.record.name for f in everyone[first] if f.record.name in names or f.content in contents]
        if both:
            yield (
                f"{first} and {second} share {shortened(dict.fromkeys(both))}; a scan that was trained on tests "
                "nothing; move it to one of them (data.split_by_subject)."
            )


def _shared_groups(everyone: dict[str, list[_Facts]]) -> Iterator[str]:
    for first, second in combinations(everyone, 2):
        groups = [{facts.record.group for facts in everyone[split]} - {""} for split in (first, second)]
        both = sorted(groups[0] & groups[1], key=natural)
        if both:
            where = f"{first} and {second} both have a group {shortened(both)}"
            yield f"{where}; if it is one subject, move it to one of them."


# -- as text ------------------------------------------------------------------------------------------------------
def _line(split: str, kind: Kind, rows: Sequence[Row]) -> str:
    labeled = sum(row.labels is not None for row in rows)
    groups = len({row.group for row in rows})
    number, thing = (len(rows) // 2, "pair") if kind == "paired" else (len(rows), "scan")
    count = f"{number} {thing}{'' if number == 1 else 's'}"
    more = f" in {groups} group{'s' if groups > 1 else ''}" if kind == "grouped" else ""
    return f"{split + ': ' if split else ''}{kind}, {count}{more}, {labeled} of {len(rows)} with labels"


def _table(rows: Sequence[Row]) -> str:
    heads = ("split", "role", "name", "shape", "spacing mm", "axes", "range", "labels", "points")
    cells = [heads, *(_cells(row) for row in rows)]
    used = [k for k in range(len(heads)) if any(line[k] for line in cells[1:])]
    widths = {k: max(len(line[k]) for line in cells) for k in used}
    return "\n".join("  ".join(line[k].ljust(widths[k]) for k in used).rstrip() for line in cells)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.split,
        row.role,
        row.name,
        " x ".join(map(str, row.shape)) if row.shape else "unreadable",
        " x ".join(f"{s:.3g}" for s in row.spacing) if row.spacing else "",
        row.orientation or "",
        _range(row.low, row.high),
        str(row.labels) if row.labels is not None else "",
        str(row.points) if row.points is not None else "",
    )


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{low + 0.0:.4g} to {high + 0.0:.4g}"  # no minus before zero
