"""Runs one notebook, in a process of its own, with a folder, a profile and a share of the cores."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

import chapter
from environment import SHARED_CORES

ROOT = Path(__file__).resolve().parent.parent
BUDGET_S = {"smoke": 30, "lite": 300}
CELL_LIMIT_S = {"smoke": 120, "lite": 600}
OUTER_LIMIT_S = {"smoke": 300, "lite": 1500}  # a notebook that takes longer is stopped, whatever it does
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
ADDED = {"injected-parameters", "injected-bug", "papermill-error-cell-tag"}
PAPERMILL = """\
import json, sys, papermill
try:
    papermill.execute_notebook(**json.loads(sys.argv[1]))
finally:
    try:
        import resource  # not on Windows
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print("cpu seconds", used.ru_utime + used.ru_stime)
    except ImportError:
        pass"""


class UsageError(Exception):
    """What was asked for cannot be done; the message says why in a sentence."""


@dataclass(frozen=True)
class Workplace:
    """Where notebooks are run: a profile, a folder to write to, and how many run at once."""

    build: Path
    profile: str = "smoke"
    overrides: dict[str, Any] = field(default_factory=dict)
    cores: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def environment(self, at_once: int, **variables: str) -> dict[str, str]:
        """Variables for a run: this interpreter as the kernel python3, and a fair share of the cores."""
        kernel = self.build / "jupyter" / "kernels" / "python3" / "kernel.json"
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": [*command, "--HistoryManager.enabled=False"], "display_name": "Python 3", "language": "python"}
        write_atomically(kernel, json.dumps(spec))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("REGLIB_")}
        paths = {
            "PYTHONPATH": [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])],
            "JUPYTER_PATH": [str(self.build / "jupyter"), *filter(None, [os.environ.get("JUPYTER_PATH")])],
        }
        threads = str(max(1, self.cores // at_once))
        fixed = {"IPYTHONDIR": str(self.build / "ipython"), "MPLBACKEND": "agg", **SHARED_CORES}
        joined = {key: os.pathsep.join(folders) for key, folders in paths.items()}
        return inherited | joined | dict.fromkeys(THREADS, threads) | fixed | variables

    def out(self, step: str, path: Path) -> Path:
        """The OUT_DIR of a notebook in a step."""
        return self.build / step / path.stem

    def prepare(self, step: str, path: Path, node: nbformat.NotebookNode | None = None) -> tuple[Path, dict[str, Any]]:
        """Write a copy of a notebook, or of an edited `node`, that the kernel python3 can run.

        Returns: the copy and the parameters to inject. A name that the notebook does not have is refused: papermill
        would take it without a word.
        """
        import papermill

        node = node or nbformat.read(path, as_version=4)
        node.metadata.update(nbformat.from_dict(chapter.METADATA))
        copy = self.build / step / f"{path.stem}.source.ipynb"
        write_atomically(copy, nbformat.writes(node))
        given = {"PROFILE": self.profile, "OUT_DIR": str(self.out(step, path)), **self.overrides}
        known = list(papermill.inspect_notebook(str(copy)))
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}."
                raise UsageError(f"{path.name} has no parameter {name}; {hint}")
        return copy, given


@dataclass
class Execution:
    """A notebook as it came back.

    Args:
        seconds: that it took, by the clock.
        trouble: why it did not end, if it did not.
        cpu_seconds: that its kernel computed, on all threads: what it would take on a machine that is not busy.
    """

    node: nbformat.NotebookNode
    seconds: float
    trouble: str = ""
    cpu_seconds: float = float("inf")

    @property
    def errors(self) -> list[tuple[int, str, str]]:
        """(cell number, name, message) of each error among the outputs."""
        cells = enumerate(self.node.cells, 1)
        pairs = [(i, output) for i, cell in cells for output in cell.get("outputs", [])]
        return [(i, o.ename, o.evalue) for i, o in pairs if o.output_type == "error"]

    @property
    def printed(self) -> str:
        """All that was printed to standard output."""
        return "".join(text for cell in self.node.cells for text in streams(cell, "stdout"))


def streams(cell: nbformat.NotebookNode, name: str) -> list[str]:
    """What a cell printed to stdout or stderr, in pieces."""
    return [o.text for o in cell.get("outputs", []) if o.output_type == "stream" and o.name == name]


def execute(
    place: Workplace,
    step: str,
    path: Path,
    *,
    node: nbformat.NotebookNode | None = None,
    at_once: int = 1,
    allow_errors: bool = False,
    **variables: str,
) -> Execution:
    """Run a notebook, or an edited copy `node` of it, by papermill in a process of its own."""
    source, parameters = place.prepare(step, path, node)
    result = place.build / step / path.name
    result.unlink(missing_ok=True)
    call = {
        "input_path": str(source),
        "output_path": str(result),
        "parameters": parameters,
        "kernel_name": "python3",
        "execution_timeout": CELL_LIMIT_S[place.profile],
        "cwd": str(path.parent),
        "progress_bar": False,
        "allow_errors": allow_errors,
    }
    started = time.monotonic()
    trouble, printed = "", ""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PAPERMILL, json.dumps(call)],
            env=place.environment(at_once, **variables),
            timeout=OUTER_LIMIT_S[place.profile],
            capture_output=True,
            text=True,
        )
        printed = done.stdout
        if done.returncode and "PapermillExecutionError" not in done.stderr:
            named = re.findall(r"^[\w.]*(?:Error|Exception): .*$", done.stderr, re.MULTILINE)
            trouble = named[-1] if named else f"papermill ended with status {done.returncode}"
    except subprocess.TimeoutExpired:
        trouble = f"stopped after {OUTER_LIMIT_S[place.profile]} s"
    executed = nbformat.read(result, as_version=4) if result.exists() else nbformat.v4.new_notebook()
    # Cells that papermill or the zoo added would shift the numbers of the others.
    executed.cells = [cell for cell in executed.cells if not ADDED & set(chapter.tags(cell))]
    seconds = executed.metadata.get("papermill", {}).get("duration") or time.monotonic() - started
    cpu = re.search(r"^cpu seconds ([0-9.]+)$", printed, re.MULTILINE)
    return Execution(executed, seconds, trouble, float(cpu[1]) if cpu else float("inf"))


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def in_parallel(place: Workplace, jobs: list[Callable[[int], Any]]) -> list[Any]:
    """Call each job with the number of jobs that run at once; results in order."""
    at_once = max(1, min(place.cores, len(jobs)))
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda job: job(at_once), jobs))
