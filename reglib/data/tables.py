"""Records from a table or from lists of files, for data that no folder layout fits.

Source: deepali's data sets read tables with path templates; VoxelMorph's scripts read lists of files, where an npz file
holds an image under `vol` and its label under `seg`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .records import Found, Place, Record, natural, shortened, stem

if TYPE_CHECKING:
    import pandas as pd

ARRAYS = (".npz", ".npy")


def from_table(
    table: str | Path | pd.DataFrame,
    *,
    image: str,
    label: str | None = None,
    points: str | None = None,
    name: str = "{name}",
    group: str | None = None,
    join: str | Path | pd.DataFrame | None = None,
    on: str | None = None,
    root: str | Path | None = None,
) -> Found:
    """A record for each line of a table.

    Args:
        table: a CSV file (a column for each word), or a data frame.
        image, label, points: templates of paths, such as "{site}/sub-{subject:03}/t1.nii.gz", filled in from columns;
            `points` where they are known.
        name: a template of the record's name.
        group: the column that says which scans belong together.
        join, on: another table, and the column by which its lines are added to the first's.
        root: where relative paths begin; by default the folder of the CSV file.

    Returns: of kind "grouped" if `group` is given, else "unpaired".
    Raises: FileNotFoundError for files that are not there; ValueError for a column that is not there or a name that
        comes twice.
    """
    import pandas as pd

    frame = _frame(table)
    if join is not None:
        if on is None:
            raise ValueError("join needs on=, the column that both tables have.")
        other = _frame(join)
        for which, one in (("first", frame), ("other", other)):
            if on not in one:
                raise ValueError(f"the {which} table must have a column {on!r} to join on; it has {_columns(one)}.")
        frame = frame.merge(other, on=on, how="left", validate="many_to_one")
        unmatched = frame[frame.isna().any(axis=1)]
        if len(unmatched):
            raise ValueError(
                f"{len(unmatched)} lines have no partner or an empty cell after joining on {on}: "
                f"{shortened(str(v) for v in unmatched[on])}; add them to the other table."
            )
    if root is None:
        root = Path() if isinstance(table, pd.DataFrame) else Path(table).parent
    records = [_record(dict(row), image, label, points, name, group, Path(root)) for _, row in frame.iterrows()]
    _require_unique(records)
    _require_there(records)
    return Found("grouped" if group else "unpaired", tuple(records))


def from_list(
    images: str | Path | Sequence[str | Path],
    labels: str | Path | Sequence[str | Path] | None = None,
    *,
    prefix: str = "",
    suffix: str = "",
) -> Found:
    """A record for each file of a list, as VoxelMorph's scripts take them.

    Args:
        images: paths, or a text file with a path a line. An npz file holds its image as `vol` and, if `labels` is
            None and it has one, its label as `seg`.
        labels: as many, in the same order.
        prefix, suffix: put before and after each line, as `--img-prefix` and `--img-suffix`.

    Raises: FileNotFoundError; ValueError if the lists differ in length.
    """
    paths = _listed(images, prefix, suffix)
    segments = None if labels is None else _listed(labels, prefix, suffix)
    if segments is not None and len(segments) != len(paths):
        raise ValueError(f"images and labels must be as many; got {len(paths)} and {len(segments)}.")
    records = []
    for index, path in enumerate(paths):
        label = None if segments is None else _array(segments[index], "seg")
        if label is None and path.suffix == ".npz" and path.is_file() and "seg" in _npz_keys(path):
            label = Place(path, "seg")
        records.append(Record(_short(path, paths), _array(path, "vol"), label))
    _require_unique(records)
    _require_there(records)
    return Found("unpaired", tuple(records))


def paired(moving: Found, fixed: Found) -> Found:
    """Pairs of two lists or tables by name.

    Raises: ValueError for names that are in one only.
    """
    sides = [{record.name: record for record in found.records} for found in (moving, fixed)]
    alone = sorted(set(sides[0]) ^ set(sides[1]), key=natural)
    if alone:
        raise ValueError(f"{len(alone)} names are in one of the two only: {shortened(alone)}; add or rename them.")
    names = list(sides[0])
    return Found("paired", tuple(sides[0][n] for n in names), tuple(sides[1][n] for n in names))


def _frame(table: str | Path | pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        frame = table
    elif not Path(table).is_file():
        raise FileNotFoundError(f"{table} does not exist; is the path right?")
    else:
        try:
            frame = pd.read_csv(table)
        except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            raise ValueError(f"{table} must be a CSV file with a header; {error}; export it again.") from None
    if frame.empty:
        raise ValueError(f"a table needs a line for each scan; {_named(table)} has none.")
    return frame


def _named(table: object) -> str:
    return str(table) if isinstance(table, str | Path) else "the data frame"


def _columns(frame: pd.DataFrame) -> str:
    return ", ".join(map(str, frame.columns))


def _record(
    row: dict[str, object], image: str, label: str | None, points: str | None, name: str, group: str | None, root: Path
) -> Record:
    def place(template: str | None, key: str) -> Place | None:
        return None if template is None else _array(root / _filled(template, row), key)

    found = place(image, "vol")
    assert found is not None
    called = _filled(name, row) if name != "{name}" or "name" in row else stem(_filled(image, row))
    owner = "" if group is None else _filled(f"{{{group}}}", row)
    return Record(called, found, place(label, "seg"), place(points, ""), owner)


def _filled(template: str, row: dict[str, object]) -> str:
    try:
        return template.format(**row)
    except KeyError as error:
        raise ValueError(f"{template!r} wants a column {error}; the table has {', '.join(map(str, row))}.") from None
    except (ValueError, IndexError) as error:
        raise ValueError(f"{template!r} cannot be filled from {row}: {error}.") from None


def _listed(paths: str | Path | Sequence[str | Path], prefix: str, suffix: str) -> list[Path]:
    if isinstance(paths, str | Path):
        file = Path(paths)
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; a list is a text file with a path a line.")
        paths = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    listed = [Path(f"{prefix}{path}{suffix}") for path in paths]
    if not listed:
        raise ValueError("a list needs at least one path; it is empty.")
    return listed


def _short(path: Path, paths: Sequence[Path]) -> str:
    """The file's name, with its folder where the name alone comes more than once."""
    alone = sum(p.name == path.name for p in paths) == 1
    return stem(path.name if alone else path.as_posix()).removesuffix(".npz").removesuffix(".npy")


def _array(path: Path, key: str) -> Place:
    return Place(path, key if path.suffix == ".npz" else "")


def _npz_keys(path: Path) -> list[str]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return list(arrays)


def _require_unique(records: Sequence[Record]) -> None:
    names = [record.name for record in records]
    twice = sorted({name for name in names if names.count(name) > 1}, key=natural)
    if twice:
        raise ValueError(f"each scan needs a name of its own; {shortened(twice)} comes more than once; use name=.")


def _require_there(records: Sequence[Record]) -> None:
    places = [p for record in records for p in (record.image, record.label, record.points) if p is not None]
    missing = [str(place.path) for place in places if not place.path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} files do not exist: {shortened(missing)}; are root and templates right?"
        )
