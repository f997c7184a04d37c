"""Runs, checks and renews the chapters in notebooks/.

python ci/notebooks.py check      lint, papermill, scan, nbval and exercises; a table at the end
python ci/notebooks.py zoo        every bug of ci/bugs.py must turn a check red
python ci/notebooks.py refresh    write the stored outputs anew, from the lite profile
python ci/notebooks.py gallery    build/html/index.html
python ci/notebooks.py lint       the rules alone; runs nothing
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nbformat

import chapter
import gallery
import notebook_lint
from bugs import BUGS
from refresh import PROGRESS, refresh
from runner import (
    BUDGET_S,
    CELL_LIMIT_S,
    OUTER_LIMIT_S,
    ROOT,
    Execution,
    UsageError,
    Workplace,
    execute,
    in_parallel,
    streams,
    write_atomically,
)

APPLY_BUG = 'import os, runpy\nrunpy.run_path({path!r})["apply"](os.environ["REGLIB_BUG"])'
STUB_TEST = """\
try:
    exec({source!r})
except AssertionError as error:
    assert {hint!r} in str(error), f"the stub failed without its hint: {{error}}"
    print("PASS stub " + {name!r})
else:
    raise AssertionError("the stub of " + {name!r} + " did not fail")"""


# -- check ------------------------------------------------------------------------------------------------------
@dataclass
class Row:
    """What is known of a notebook so far."""

    notebook: str
    seconds: float = 0.0
    checks: list[str] = field(default_factory=list)
    exercises: int = 0
    golden: int = 0
    cells: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> int:
        """Everything that held: checks, exercises (solution and stub), cells of nbval."""
        return len(self.checks) + 2 * self.exercises + self.cells


def check(place: Workplace, paths: list[Path]) -> list[Row]:
    """Steps 1 to 5 of NOTEBOOKS.md for every notebook."""
    before = set(_files(paths))
    rows = {path: Row(path.stem, faults=[f"lint: {fault}" for fault in notebook_lint.lint(path)]) for path in paths}
    readable = [path for path in paths if not rows[path].faults or "cannot be read" not in rows[path].faults[0]]
    jobs: list[Callable[[int], None]] = []
    for path in readable:
        jobs.append(lambda at_once, path=path: run_and_scan(place, path, rows[path], at_once))
        jobs.append(lambda at_once, path=path: run_exercises(place, path, rows[path], at_once))
    in_parallel(place, jobs)
    run_nbval(place, {path: rows[path] for path in readable})
    for file in sorted(set(_files(paths)) - before):
        rows[paths[0]].faults.append(f"a notebook wrote outside OUT_DIR: {file.name}")
    for row in rows.values():
        write_atomically(gallery.record(place.build, place.profile, row.notebook), json.dumps(asdict(row)))
    return list(rows.values())


def _files(paths: list[Path]) -> Iterator[Path]:
    for folder in {path.parent for path in paths}:
        for file in folder.rglob("*"):
            if not re.search(r"(^|[/\\])(\.|__pycache__)", str(file.relative_to(folder))):
                yield file


def run_and_scan(place: Workplace, path: Path, row: Row, at_once: int = 1) -> None:
    """Run as a reader's Run All would, every control swept, then look for what papermill does not see."""
    execution = execute(place, place.profile, path, at_once=at_once, REGLIB_WIDGETS="sweep")
    row.seconds = round(execution.seconds, 1)
    records = place.out(place.profile, path) / "checks.json"
    checks = json.loads(records.read_text()) if records.exists() else []
    row.checks = [record["name"] for record in checks if record["passed"]]
    row.faults += [f"{place.profile}: {fault}" for fault in scan(execution, chapter.Notebook.read(path), checks)]
    took = min(execution.seconds, execution.cpu_seconds)  # a busy machine is no fault of the notebook
    if took > BUDGET_S[place.profile]:
        row.faults.append(f"{place.profile}: took {took:.0f} s; at most {BUDGET_S[place.profile]} s")


def scan(execution: Execution, notebook: chapter.Notebook, checks: list[dict[str, Any]]) -> Iterator[str]:
    """Faults of an executed notebook: errors, also those hidden in widgets, warnings, checks that did not run."""
    if execution.trouble:
        yield execution.trouble
    for number, name, message in execution.errors[:1]:
        yield f"cell {number}: {name}: {message}"
    yield from widget_errors(execution.node)
    for number, cell in enumerate(execution.node.cells, 1):
        if warning := PROGRESS.sub("", "".join(streams(cell, "stderr"))).strip():
            yield f"cell {number}: printed to stderr: {warning[:160]}"
    if execution.errors or execution.trouble:
        return
    names = [record["name"] for record in checks]
    for pattern in chapter.check_patterns(notebook):
        if not any(re.fullmatch(pattern, name) for name in names):
            yield f"the check {pattern} did not run"
    yield from (f"the check {record['name']} failed" for record in checks if not record["passed"])
    for exercise in chapter.exercises(notebook):
        if f"TODO {exercise.name}: " not in execution.printed:
            yield f"the stub of {exercise.name} did not print its TODO"
        if f"PASS exercise {exercise.name}\n" not in execution.printed:
            yield f"the solution of {exercise.name} did not pass"


def widget_errors(node: nbformat.NotebookNode) -> Iterator[str]:
    """Errors that a callback printed into an Output widget: they stand only in the state of the widgets."""
    for states in node.metadata.get("widgets", {}).values():
        for model in states.get("state", {}).values():
            for output in model.get("state", {}).get("outputs", []):
                if output.get("output_type") == "error":
                    yield f"an error inside a widget: {output.get('ename')}: {output.get('evalue')}"


def run_exercises(place: Workplace, path: Path, row: Row, at_once: int = 1) -> None:
    """Run the solutions in strict mode, then, in the same kernel, see every stub fail with its hint."""
    notebook = chapter.Notebook.read(path)
    pairs = chapter.exercises(notebook)
    if not pairs:
        return
    node = notebook.node
    tests = [
        STUB_TEST.format(source=node.cells[pair.stub - 1].source, hint=pair.hint, name=pair.name) for pair in pairs
    ]
    stubs = {pair.stub for pair in pairs}
    node.cells = [cell for i, cell in enumerate(node.cells, 1) if i not in stubs]
    node.cells += [nbformat.v4.new_code_cell(test) for test in tests]
    strict = {"REGLIB_WIDGETS": "static", "REGLIB_EXERCISES": "strict"}
    execution = execute(place, f"{place.profile}-exercises", path, node=node, at_once=at_once, **strict)
    for pair in pairs:
        lines = {f"PASS exercise {pair.name}", f"PASS stub {pair.name}"}
        row.exercises += lines <= set(execution.printed.splitlines())
    trouble = [execution.trouble] * bool(execution.trouble)
    trouble += [f"{name}: {message}" for _, name, message in execution.errors[:1]]
    if row.exercises < len(pairs):
        trouble = trouble or ["a solution or a stub did not run"]
    row.faults += [f"exercises: {sentence}" for sentence in trouble]


def run_nbval(place: Workplace, rows: dict[Path, Row]) -> None:
    """Compare the cells tagged golden with their stored outputs."""
    import papermill

    if not rows:
        return
    folder = place.build / f"{place.profile}-nbval"
    for path in rows:
        copy, given = place.prepare(f"{folder.name}-source", path)
        node = papermill.execute_notebook(str(copy), None, given, prepare_only=True, kernel_name="python3")
        for cell in node.cells:
            cell.metadata["tags"] = [{"golden": "nbval-check-output"}.get(tag, tag) for tag in chapter.tags(cell)]
        write_atomically(folder / path.name, nbformat.writes(node))
    write_atomically(folder / "pytest.ini", "[pytest]\n")
    at_once = min(place.cores, len(rows))
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    options = ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_LIMIT_S[place.profile]}"]
    options += ["-p", "no:python", "-p", "no:cacheprovider", "-n", str(at_once), "--dist", "loadscope"]
    files = [str(folder / path.name) for path in rows]
    command = [sys.executable, "-m", "pytest", "-c", str(folder / "pytest.ini"), *options, f"--junitxml={report}"]
    variables = place.environment(at_once, REGLIB_WIDGETS="static")
    limit = OUTER_LIMIT_S[place.profile] * len(rows)
    try:
        done = subprocess.run(
            [*command, *files], env=variables, timeout=limit, cwd=folder, capture_output=True, text=True
        )
        printed = done.stdout
    except subprocess.TimeoutExpired:
        printed = f"stopped after {limit} s"
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase")) if report.exists() else []
    for path, row in rows.items():
        _count_nbval(row, path, [case for case in cases if path.stem in case.get("classname", "")], printed)


def _count_nbval(row: Row, path: Path, cases: list[xml.etree.ElementTree.Element], printed: str) -> None:
    node = nbformat.read(path, as_version=4)
    row.golden = sum("golden" in chapter.tags(cell) and cell.execution_count is not None for cell in node.cells)
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    row.cells = len(cases) - len(failed)
    for case in failed[:1]:
        found = case.find("failure") if case.find("failure") is not None else case.find("error")
        text = re.sub(r"\x1b\[[0-9;]*m|#x1B\[[0-9;]*m", "", (found.text if found is not None else "") or "")
        row.faults.append(f"nbval: {case.get('name')}: " + " ".join(text.split())[:600])
    if not cases:
        row.faults.append("nbval: no cell ran: " + " ".join(printed.split())[-300:])


# -- zoo --------------------------------------------------------------------------------------------------------
@dataclass
class Caught:
    """What a bug did to the chapter that must notice it."""

    bug: str
    notebook: str
    red: list[str]
    fault: str = ""


def zoo(place: Workplace, paths: list[Path]) -> list[Caught]:
    """Run each bug's chapter with the bug in it, and every such chapter without."""
    homes = {name: [p for p in paths if p.stem.startswith(bug.caught_by)] for name, bug in BUGS.items()}
    for name, home in homes.items():
        if not home:
            raise UsageError(f"the bug {name} is to be caught by notebook {BUGS[name].caught_by}, which is not there")
    runs = [("", path) for path in dict.fromkeys(home[0] for home in homes.values())]
    runs += [(name, home[0]) for name, home in homes.items()]
    return in_parallel(place, [lambda at_once, run=run: meet(place, *run, at_once) for run in runs])


def meet(place: Workplace, bug: str, path: Path, at_once: int = 1) -> Caught:
    """Run a chapter with a bug ("" for none) to its end; a check must go red, and nothing else break before it."""
    node = nbformat.read(path, as_version=4)
    variables = {"REGLIB_WIDGETS": "static"}
    if bug:
        source = APPLY_BUG.format(path=str(ROOT / "ci" / "bugs.py"))
        node.cells.insert(0, nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-bug"]}))
        variables["REGLIB_BUG"] = bug
    step = f"zoo-{bug or 'clean'}"
    execution = execute(place, step, path, node=node, at_once=at_once, allow_errors=True, **variables)
    records = place.out(step, path) / "checks.json"
    checks = json.loads(records.read_text()) if records.exists() else []
    red = [record["name"] for record in checks if not record["passed"]]
    red += [f"assertion in cell {i}" for i, name, _ in execution.errors if name == "AssertionError"]
    first = execution.errors[0] if execution.errors else None
    fault = execution.trouble
    if bug and first and first[1] not in ("CheckFailed", "AssertionError"):
        fault = f"cell {first[0]} stopped before any check: {first[1]}: {first[2]}"
    elif bug and not red:
        fault = "no check went red"
    elif not bug and first:
        fault = f"red without a bug: {first[1]}: {first[2]}"
    return Caught(bug or "(none)", path.stem, red, fault)


# -- command line -----------------------------------------------------------------------------------------------
def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest entry."""
    widths = [max(len(line[k]) for line in [header, *rows]) for k in range(len(header))]
    return "\n".join(
        " | ".join(f"{x:<{w}}" for x, w in zip(line, widths, strict=True)).rstrip() for line in [header, *rows]
    )


def check_table(profile: str, rows: list[Row]) -> str:
    """The table that `check` ends with."""
    header = ["notebook", f"{profile} s", "checks passed", "exercises", "nbval", "verdict"]
    lines = []
    for row in rows:
        nbval = f"{row.cells} cells, {row.golden} golden"
        verdict = f"{len(row.faults)} faults" if row.faults else "ok"
        lines.append([row.notebook, f"{row.seconds:.1f}", str(len(row.checks)), str(row.exercises), nbval, verdict])
    return table(header, lines)


def run_check(place: Workplace, paths: list[Path], options: argparse.Namespace) -> int:
    rows = check(place, paths)
    return report(
        options,
        faults=[f"{row.notebook}: {fault}" for row in rows for fault in row.faults],
        passed=sum(row.passed for row in rows),
        text=check_table(place.profile, rows),
    )


def run_zoo(place: Workplace, paths: list[Path], options: argparse.Namespace) -> int:
    met = zoo(place, paths)
    lines = [[c.bug, c.notebook, ", ".join(c.red) or "-"] for c in met]
    return report(
        options,
        faults=[f"{c.bug}: {c.fault}" for c in met if c.fault],
        passed=sum(not c.fault for c in met),
        text=table(["bug", "notebook", "checks that went red"], lines),
    )


def run_refresh(place: Workplace, paths: list[Path], options: argparse.Namespace) -> int:
    found = in_parallel(place, [lambda at_once, path=path: refresh(place, path, at_once) for path in paths])
    faults = [f"{path.name}: not written: {fault}" for path, list_ in zip(paths, found, strict=True) for fault in list_]
    written = [path.name for path, list_ in zip(paths, found, strict=True) if not list_]
    return report(options, faults=faults, passed=len(written), text="\n".join(f"refreshed {name}" for name in written))


def run_lint(place: Workplace, paths: list[Path], options: argparse.Namespace) -> int:
    faults = [f"{path.name}: {fault}" for path in paths for fault in notebook_lint.lint(path)]
    return report(options, faults=faults, passed=len(paths), text=f"{len(paths)} notebooks linted")


def run_gallery(place: Workplace, paths: list[Path], options: argparse.Namespace) -> int:
    missing = [path for path in paths if gallery.newest(place.build, path.stem) is None]
    faults = [f"{row.notebook}: {fault}" for row in check(place, missing) for fault in row.faults] if missing else []
    index = gallery.write(place.build, options.build.resolve() / "html", [path.stem for path in paths])
    return report(options, faults=faults, passed=len(paths), text=f"gallery of {len(paths)} notebooks: {index}")


def report(options: argparse.Namespace, *, faults: list[str], passed: int, text: str) -> int:
    """Print faults and table, write them as JSON where asked, and give the exit status."""
    print("\n".join([*faults, text]))
    if options.json:
        result = {"passed": passed, "failed": len(faults), "skipped": 0, "table": text, "faults": faults}
        write_atomically(options.json, json.dumps(result, indent=1))
    return 1 if faults else 0


COMMANDS = {
    "check": (run_check, "smoke"),
    "zoo": (run_zoo, "smoke"),
    "refresh": (run_refresh, "lite"),
    "gallery": (run_gallery, "smoke"),
    "lint": (run_lint, "smoke"),
}


def number_or_text(text: str) -> Any:
    """What was typed, as the number or truth value it spells, else as it stands."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float) else text


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the command; 2 if it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--profile", choices=BUDGET_S, help="default: smoke; refresh: lite")
    parser.add_argument("--only", default="", metavar="00", help="notebooks whose name starts so")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", metavar="DIR")
    parser.add_argument("--build", type=Path, default=ROOT / "build", metavar="DIR")
    options = parser.parse_args(arguments)
    run, profile = COMMANDS[options.command]
    try:
        paths = sorted(p for p in options.notebooks.resolve().glob("*.ipynb") if p.stem.startswith(options.only))
        if not paths:
            raise UsageError(f"no notebook in {options.notebooks} starts with {options.only!r}")
        overrides = {name: number_or_text(text) for name, text in options.p}
        place = Workplace(options.build.resolve() / "notebooks", options.profile or profile, overrides)
        return run(place, paths, options)
    except UsageError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
