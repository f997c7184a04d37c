"""The HTML gallery: each executed notebook as a page, and an index with a picture, the time and the checks."""

from __future__ import annotations

import html
import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import nbformat

from chapter import tags
from runner import ADDED

PROFILES = ("smoke", "lite")
NO_WORDS = "No description has been provided for this image"  # what nbconvert writes where it finds no words
STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem; }
article { border: 1px solid #ccc; border-radius: .5rem; padding: 1rem; }
article img { width: 100%; height: 12rem; object-fit: contain; background: #fff; }
.fault { color: #b00020; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } a { color: #8ab4f8; } }"""


def record(build: Path, profile: str, stem: str) -> Path:
    """Where `check` leaves what it found for a notebook; the executed notebook lies beside it."""
    return build / profile / f"{stem}.json"


def newest(build: Path, stem: str) -> Path | None:
    """The executed notebook that was checked last, if there is one."""
    records = [record(build, profile, stem) for profile in PROFILES]
    done = [path for path in records if path.exists() and path.with_suffix(".ipynb").exists()]
    return max(done, key=lambda path: path.stat().st_mtime).with_suffix(".ipynb") if done else None


def write(build: Path, folder: Path, stems: list[str]) -> Path:
    """Write a page for each notebook and the index; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    cards = []
    for stem in stems:
        path = newest(build, stem)
        if path is None:
            cards.append(f'<article><h2>{stem}</h2><p class="fault">was not run</p></article>')
            continue
        node = nbformat.read(path, as_version=4)
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        (folder / f"{stem}.html").write_text(_page(node), encoding="utf-8")
        cards.append(_card(folder, stem, node, found, path.parent.name))
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    index = folder / "index.html"
    index.write_text(
        f"{head}<title>Registration workbook</title><style>{STYLE}</style>"
        f"<h1>Registration workbook</h1><main>{''.join(cards)}</main></html>\n",
        encoding="utf-8",
    )
    return index


def _figures(node: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """(base64 PNG, alternative text) of each picture among the outputs."""
    outputs = [output for cell in node.cells for output in cell.get("outputs", [])]
    pictures = [(o.data, o.metadata.get("image/png", {})) for o in outputs if "image/png" in o.get("data", {})]
    return [(data["image/png"], words.get("alt", "")) for data, words in pictures]


def _page(node: nbformat.NotebookNode) -> str:
    from nbconvert import HTMLExporter

    node.metadata.pop("widgets", None)
    node.cells = [cell for cell in node.cells if not ADDED & set(tags(cell))]
    page, _ = HTMLExporter().from_notebook_node(node)
    for _, words in _figures(node):
        page = page.replace(NO_WORDS, html.escape(words or "figure", quote=True), 1)
    return page


def _card(folder: Path, stem: str, node: nbformat.NotebookNode, found: dict[str, Any], profile: str) -> str:
    title = re.search(r"^# (.+)$", "\n".join(c.source for c in node.cells if c.cell_type == "markdown"), re.MULTILINE)
    picture = ""
    if figures := _figures(node):
        (folder / f"{stem}.png").write_bytes(b64decode(figures[0][0]))
        picture = f'<img src="{stem}.png" alt="{html.escape(figures[0][1], quote=True)}">'
    checks = "".join(f"<li>{html.escape(name)}</li>" for name in found["checks"])
    faults = "".join(f'<p class="fault">{html.escape(fault)}</p>' for fault in found["faults"])
    return (
        f'<article><h2><a href="{stem}.html">{html.escape(title[1] if title else stem)}</a></h2>{picture}'
        f"<p>{stem}: {found['seconds']:.1f} s ({profile})</p>{faults}"
        f"<details><summary>{len(found['checks'])} checks passed</summary><ul>{checks}</ul></details></article>"
    )
