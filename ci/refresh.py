"""Writes the stored outputs of a notebook anew, from the lite profile, as pages without a kernel show them."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

import chapter
import notebook_lint
from runner import ROOT, Workplace, execute, write_atomically

PROGRESS = re.compile(r"^.*(?:\d+%\|.*\||\d+it \[).*$\n?", re.MULTILINE)  # a line that tqdm drew


def refresh(place: Workplace, path: Path, at_once: int = 1) -> list[str]:
    """Run a notebook and write its outputs into its own file; leaves the file alone if something is wrong."""
    before = path.read_bytes()
    node = nbformat.reads(before.decode("utf-8"), as_version=4)
    execution = execute(place, "refresh", path, at_once=at_once, REGLIB_WIDGETS="static")
    faults = [execution.trouble] * bool(execution.trouble)
    faults += [f"cell {i}: {name}: {message}" for i, name, message in execution.errors[:1]]
    if faults:
        return faults
    number = 0
    for cell, run in zip(node.cells, execution.node.cells, strict=True):
        if cell.cell_type == "code":
            number += 1
            cell.execution_count = number
            cell.outputs = list(stored_outputs(run.outputs, number))
            faults += [fault for output in cell.outputs for fault in notebook_lint.output_faults(output)]
        cell.metadata.pop("execution", None)
    stamp = {"profile": place.profile, "source_sha256": chapter.stamp(node)}
    node.metadata = nbformat.from_dict({**chapter.METADATA, "reglib": stamp})
    written = chapter.Notebook(path, node)
    text = without_folders(nbformat.writes(node) + "\n", place.out("refresh", path), path, written)
    node = nbformat.reads(text, as_version=4)
    if (size := len(text.encode())) > notebook_lint.LARGEST_BYTES:
        faults.append(f"would take {size // 1000} kB; at most {notebook_lint.LARGEST_BYTES // 1000} kB")
    faults += notebook_lint.absolute_paths(chapter.Notebook(path, node))
    if path.read_bytes() != before:
        faults.append("was edited while it ran: refresh it again")
    if not faults:
        write_atomically(path, text)
    return faults


def without_folders(text: str, out: Path, path: Path, notebook: chapter.Notebook) -> str:
    """A notebook's JSON in which the OUT_DIR of this run reads as the one of the notebook."""
    stored = str(chapter.parameter(notebook, "OUT_DIR"))
    seen = {folder: os.path.relpath(folder, path.parent) for folder in (out, ROOT / stored)}
    for folder, name in ((str(out), stored), (seen[out], seen[ROOT / stored]), (str(ROOT), ".")):
        text = text.replace(json.dumps(folder)[1:-1], json.dumps(name)[1:-1])
    return text


def stored_outputs(outputs: list[nbformat.NotebookNode], number: int) -> Iterator[nbformat.NotebookNode]:
    """Outputs without progress bars (they tell the time) and widgets, the pieces of one stream joined."""
    for name, group in itertools.groupby(outputs, lambda output: output.get("name")):
        if name is not None:
            text = _without_progress("".join(output.text for output in group))
            if text.strip():
                yield nbformat.v4.new_output("stream", name=name, text=text)
            continue
        for output in group:
            if "execution_count" in output:
                output.execution_count = number
            if not any("widget" in kind for kind in output.get("data", {})):
                yield output


def _without_progress(text: str) -> str:
    text = re.sub(r"^.*\r(?=[^\n])", "", text.replace("\r\n", "\n"), flags=re.MULTILINE)
    return PROGRESS.sub("", text).replace("\r", "")
