"""Prepares .venv, then runs everything that CI checks; the last line counts it all."""

import argparse
import json
import subprocess
import sys
import time
import xml.etree.ElementTree
from functools import partial
from pathlib import Path
from typing import NamedTuple

from environment import ROOT, Environment, run_main

JUNIT = ROOT / "build" / "pytest.xml"
NOTEBOOKS = ROOT / "build" / "notebooks.json"
ZOO = ROOT / "build" / "zoo.json"
# Two processes share two cores, so each of them computes on one thread.
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
ONE_THREAD = dict.fromkeys(THREADS, "1")


class Counts(NamedTuple):
    """What one step found; details are lines to repeat at the end."""

    passed: int
    failed: int
    skipped: int = 0
    details: tuple = ()


class Result(NamedTuple):
    """One step as it stands in the closing table."""

    name: str
    seconds: float
    counts: Counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="leave out the notebooks and the browser")
    options = parser.parse_args()
    environment = Environment()
    environment.prepare()
    variables = environment.variables(MPLBACKEND="agg", **ONE_THREAD)
    results = []
    for name, arguments, count in steps(options.fast):
        print(f"\n== {name}: python {' '.join(arguments)}", flush=True)
        started = time.monotonic()
        status = subprocess.run([environment.python, *arguments], cwd=ROOT, env=variables).returncode
        results.append(Result(name, time.monotonic() - started, count(status)))
        print(f"== {name} took {results[-1].seconds:.1f} s", flush=True)
    print("\n".join(["", *closing_lines(results)]))
    return 1 if any(result.counts.failed for result in results) else 0


def steps(fast: bool) -> list:
    """(name, arguments of .venv's python, function from the exit status to Counts) in their order."""
    for stale in (JUNIT, ZOO, NOTEBOOKS):
        stale.unlink(missing_ok=True)
    pytest = ["-m", "pytest", "-n", "2", "--durations=10", f"--junitxml={JUNIT.relative_to(ROOT)}"]
    if fast:
        pytest += ["-m", "not browser"]
    chosen = [
        ("ruff check", ["-m", "ruff", "check", "."], count_status),
        ("ruff format", ["-m", "ruff", "format", "--check", "."], count_status),
        ("mypy", ["-m", "mypy", "reglib", "data_scripts"], count_status),
        ("pytest", pytest, partial(count_junit, JUNIT)),
    ]
    if not fast:
        for name, verb, path in (("bug zoo", "zoo", ZOO), ("notebooks", "check", NOTEBOOKS)):
            arguments = ["ci/notebooks.py", verb, "--json", str(path.relative_to(ROOT))]
            chosen.append((name, arguments, partial(count_notebooks, path)))
    return chosen


def count_status(status: int) -> Counts:
    return Counts(passed=int(status == 0), failed=int(status != 0))


def count_junit(path: Path, status: int) -> Counts:
    """Counts pytest's cases; a failed run without a failed case (a crash, no tests) counts as one."""
    if not path.exists():
        return Counts(0, 1, details=(f"pytest ended with status {status} and wrote no {path.name}",))
    failed, skips = 0, []
    cases = list(xml.etree.ElementTree.parse(path).iter("testcase"))
    for case in cases:
        failed += case.find("failure") is not None or case.find("error") is not None
        skip = case.find("skipped")
        if skip is not None:
            skips.append(f"skipped {case.get('classname')}::{case.get('name')}: {skip.get('message')}")
    passed = len(cases) - failed - len(skips)
    return Counts(passed, failed or int(status != 0), len(skips), tuple(skips))


def count_notebooks(path: Path, status: int) -> Counts:
    """Reads what ci/notebooks.py wrote; a failed run without a failed check counts as one."""
    if not path.exists():
        return Counts(0, 1, details=(f"ci/notebooks.py ended with status {status} and wrote no {path.name}",))
    found = json.loads(path.read_text(encoding="utf-8"))
    failed = found["failed"] or int(status != 0)
    return Counts(found["passed"], failed, found["skipped"], tuple(found["table"].splitlines()))


def closing_lines(results: list) -> list:
    """The table of steps, their details, and last the line of sums."""
    lines = [f"{'step':<14}{'seconds':>9}{'passed':>9}{'failed':>9}{'skipped':>9}"]
    for name, seconds, counts in results:
        lines.append(f"{name:<14}{seconds:>9.1f}{counts.passed:>9}{counts.failed:>9}{counts.skipped:>9}")
    for result in results:
        if result.counts.details:
            lines += ["", f"{result.name}:", *result.counts.details]
    passed, failed, skipped = (sum(result.counts[i] for result in results) for i in range(3))
    return [*lines, "", f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else "")]


if __name__ == "__main__":
    sys.exit(run_main(main))
