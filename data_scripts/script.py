"""The command line that every script shares."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent
SEED = 0


@dataclass(frozen=True)
class Source:
    """What the manifest says of a data set."""

    name: str
    title: str
    page: str
    licence: str
    citation: str
    kind: str
    labels: tuple[str, ...]
    files: tuple[dict[str, Any], ...] = ()
    manual: str = ""

    @property
    def bytes(self) -> int:
        """How much is downloaded."""
        return sum(10**6 * int(file["megabytes"]) for file in self.files)


def manifest() -> dict[str, Source]:
    """Every data set by name."""
    text = (ROOT / "manifest.yaml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {name: _source(name, entry) for name, entry in entries.items()}


def _source(name: str, entry: dict[str, Any]) -> Source:
    labels, files = (tuple(entry.pop(key, ())) for key in ("labels", "files"))
    each: dict[str, list[str]] = entry.pop("each", {})
    named = [dict(zip(each, values, strict=True)) for values in product(*each.values())]
    return Source(name=name, labels=labels, files=tuple(_filled(f, names) for names in named for f in files), **entry)


def _filled(file: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A file whose {name}s are what they stand for."""
    return {key: value.format(**names) if isinstance(value, str) and names else value for key, value in file.items()}


def run(
    name: str,
    make: Callable[[Path, Source], None],
    arrange: Callable[[Path, Path, Source], None] | None = None,
    words: Sequence[str] | None = None,
) -> int:
    """Get or make a data set; the exit status, 2 with one line on stderr where that cannot be done.

    Args:
        make: called with the folder to write a stand-in to.
        arrange: called with the folder of what was unpacked and the folder to write our layout to.
    """
    source = manifest()[name]
    options = _options(source, words)
    out = options.out or Path("build") / "data" / name
    try:
        _require_new(out)
        with _whole(out) as folder:
            start = time.perf_counter()
            if options.make:
                make(folder, source)
            else:
                _get(source, arrange, folder, options)
        seconds = time.perf_counter() - start
    except (OSError, ValueError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    what = "a stand-in, made here from phantoms" if options.make else source.title
    print(f"{out}: {what}, in {seconds:.0f} s")
    return 0


def _options(source: Source, words: Sequence[str] | None) -> argparse.Namespace:
    about = f"{source.title}. {source.licence}. Cite: {source.citation}"
    parser = argparse.ArgumentParser(prog=f"python -m data_scripts.{source.name}", description=about)
    parser.add_argument("--make", action="store_true", help="make a stand-in of the same layout, with its truth")
    parser.add_argument("-o", "--out", type=Path, help=f"default build/data/{source.name}")
    parser.add_argument("--archives", type=Path, help="folder of files that were downloaded by hand, or are kept")
    return parser.parse_args(words)


def _get(source: Source, arrange: Any, folder: Path, options: argparse.Namespace) -> None:
    from .fetch import fetch, gather

    if arrange is None or (source.manual and options.archives is None):
        how = source.manual or f"download it from {source.page}; putting it into our layout is left to you."
        then = " Then name their folder with --archives." if arrange else ""
        raise ValueError(
            f"{source.title} cannot be got by this script: {how}{then} --make makes a stand-in of its layout."
        )
    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        where = Path(unpacked)
        if source.manual:
            where = gather(options.archives, where)
        else:
            fetch(source, where, options.archives or folder.parent / "archives")
        arrange(where, folder, source)


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; remove it, or choose another with --out.")


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder that takes the place of `out` once all is in it; nothing is left of one that is not finished."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield folder
        if out.is_dir():
            out.rmdir()
        folder.chmod(0o755)
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
