"""The tools that lint, run, check and renew chapters, tried on chapters of a few lines with planted faults."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import tiny
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import bugs
import chapter
import gallery
import notebook_lint
import notebooks
import refresh
import runner

PARAMETERS, START, RENDER, FORMULA, CHECKS, STUB, SOLUTION = 1, 2, 3, 4, 5, 6, 7
CLOSING, VERSIONS = -2, -1


def as_if_refreshed(node):
    """Gives a notebook what refresh would: counts, a stamp, an output for the golden cell."""
    number = 0
    for cell in node.cells:
        if cell.cell_type == "code":
            number += 1
            cell.execution_count = number
    golden = [cell for cell in node.cells if "golden" in chapter.tags(cell)]
    for cell in golden:
        cell.outputs = [new_output("stream", name="stdout", text="PASS numbers\n")]
    node.metadata = nbformat.from_dict({**chapter.METADATA, "reglib": {"source_sha256": chapter.stamp(node)}})
    return node


def faults_of(tmp_path, edit, *, refreshed=True):
    """What lint says of the tiny chapter after an edit."""
    node = tiny.chapter()
    if refreshed:
        edit(node)
        as_if_refreshed(node)
    else:
        as_if_refreshed(node)
        edit(node)
    return notebook_lint.lint(tiny.write(tmp_path, node))


def replace_in(number, old, new):
    """An edit that replaces text of a cell."""

    def edit(node):
        assert old in node.cells[number].source
        node.cells[number].source = node.cells[number].source.replace(old, new)

    return edit


def append_to(number, text):
    def edit(node):
        node.cells[number].source += text

    return edit


def retag(number, *tags):
    def edit(node):
        node.cells[number].metadata["tags"] = list(tags)

    return edit


def drop(number):
    def edit(node):
        del node.cells[number]

    return edit


def insert(number, cell):
    def edit(node):
        node.cells.insert(number, cell)

    return edit


def long_code(lines):
    return "\n".join(f"number_{k} = {k}" for k in range(lines))


def long_function(lines):
    return "def long():\n" + "\n".join(f"    number_{k} = {k}" for k in range(lines - 1))


# -- lint -----------------------------------------------------------------------------------------------------
def test_the_tiny_chapter_has_no_fault(tmp_path):
    assert faults_of(tmp_path, lambda node: None) == []


SOURCE_FAULTS = {
    "no title": (replace_in(0, "# A tiny", "A tiny"), "must start with a title"),
    "no question": (replace_in(0, "form?", "form."), "one question; found 0"),
    "two questions": (replace_in(0, "# A tiny chapter", "# A tiny chapter?"), "one question; found 2"),
    "two goals": (replace_in(0, "  - draw a line\n", ""), "3 to 5, each a verb; found 2"),
    "no need": (replace_in(0, "**You need** nothing", "**Bring** nothing"), "no part named 'You need'"),
    "no lite time": (replace_in(0, "lite 5 s, ", ""), "how long smoke, lite and full take"),
    "no license": (replace_in(0, "Data and license", "Data"), "no part named 'Data and license'"),
    "no touch": (replace_in(0, "What you can touch", "Touch"), "no part named 'What you can touch'"),
    "no summary": (replace_in(CLOSING, "## Summary", "## End"), "no heading 'Summary'"),
    "two questions asked": (replace_in(CLOSING, "3. What else?", ""), "three questions, as a list; found 2"),
    "no next": (replace_in(CLOSING, "## Next", "## Then"), "no heading 'Next'"),
    "no references": (replace_in(CLOSING, "## References\n- Author", "## Thanks\n- Author"), "no heading 'References'"),
    "no doi": (replace_in(CLOSING, "doi:10.1000/182", "a book"), "without DOI, arXiv number or link"),
    "no list of references": (replace_in(CLOSING, "- Author", "Author"), "References must be a list"),
    "no versions": (replace_in(VERSIONS, "run.versions()", "print(1)"), "last code cell must call run.versions()"),
    "misspelt tag": (retag(CHECKS, "goldn"), "unknown tag 'goldn', did you mean 'golden'?"),
    "foreign tag": (retag(CHECKS, "golden", "raises-exception"), "unknown tag 'raises-exception'"),
    "tag on prose": (retag(FORMULA, "lesson"), "on a cell that is not code"),
    "nothing golden": (retag(CHECKS), "no cell is tagged golden"),
    "no parameters": (retag(PARAMETERS), "the first code cell, and no other, must be tagged parameters"),
    "parameters twice": (retag(START, "parameters"), "the first code cell, and no other"),
    "untyped": (replace_in(PARAMETERS, "SEED: int = 0", "SEED = 0"), "not a typed literal"),
    "wrong type": (replace_in(PARAMETERS, "SEED: int = 0", "SEED: str = 0"), "not a typed literal"),
    "derived": (replace_in(PARAMETERS, "SEED: int = 0", "SEED: int = 1 + len('a')"), "not a typed literal"),
    "no comment": (replace_in(PARAMETERS, "  # seeds python, numpy, torch", ""), "SEED needs a comment"),
    "two equal signs": (
        replace_in(PARAMETERS, "seeds python, numpy, torch", "0 = the same each time"),
        "papermill does not see SEED",
    ),
    "no device": (replace_in(PARAMETERS, "DEVICE: str", "DEVICES: str"), "parameters: DEVICE is missing"),
    "fixed alone": (
        replace_in(PARAMETERS, "SEED: int", 'FIXED: str = ""  # yours\nSEED: int'),
        "FIXED and MOVING come together",
    ),
    "full by default": (replace_in(PARAMETERS, '"lite"', '"full"'), 'PROFILE must be "lite"'),
    "start without seed": (replace_in(START, "seed=SEED", "seed=0"), "not used: ['SEED']"),
    "no start": (replace_in(START, "workbook.start(", "dict("), "not used: ['workbook.start(']"),
    "long cell": (insert(FORMULA, new_code_cell(long_code(16))), "16 code lines; at most 15"),
    "long lesson": (
        insert(FORMULA, new_code_cell(long_code(26), metadata={"tags": ["lesson"]})),
        "26 code lines; at most 25 in a lesson",
    ),
    "long function": (insert(FORMULA, new_code_cell(long_function(13))), "function long has 13 lines; at most 12"),
    "empty cell": (insert(FORMULA, new_code_cell("  ")), "an empty code cell"),
    "does not parse": (insert(FORMULA, new_code_cell("a b")), "does not parse"),
    "sys.path": (append_to(START, "\nimport sys\nsys.path.append('x')"), "sys.path"),
    "pip": (append_to(START, "\n!pip install x"), "a shell line"),
    "magic": (append_to(START, "\n%matplotlib inline"), "a magic"),
    "clear_output": (append_to(START, "\nclear_output()"), "clear_output"),
    "semicolon": (append_to(RENDER, ";"), "a trailing ';' (line 8)"),
    "semicolon and comment": (append_to(START, ";  # quiet"), "a trailing ';'"),
    "nbval marker after code": (append_to(VERSIONS, "  # NBVAL_CHECK_OUTPUT"), "nearly an nbval marker"),
    "nbval marker misspelt": (append_to(VERSIONS, "\n# NBVAL_CHECK_OUTPUTS"), "nearly an nbval marker"),
    "formula first": (insert(1, new_markdown_cell("$$y = x$$")), "a formula before the first figure"),
    "two checks": (replace_in(CHECKS, 'workbook.check("scale"', 'print("scale"'), "at least 3 calls of workbook.check"),
    "same name": (replace_in(CHECKS, '"scale"', '"numbers"'), "overwrite each other: ['numbers']"),
    "one exercise": (lambda node: node.cells.__delitem__(slice(STUB, STUB + 2)), "at least 2 exercises"),
    "no control": (replace_in(RENDER, "workbook.explore(", "print("), "at least one workbook.explore"),
    "image without words": (append_to(FORMULA, "\n![](https://x.org/a.png)"), "without alternative text"),
    "dead link": (append_to(FORMULA, "\n[next](99_nowhere.ipynb)"), "a link to 99_nowhere.ipynb"),
    "absolute path": (append_to(START, '\nprint("/' + 'home/me/scan.nii")'), "an absolute path in its source"),
    "windows path": (append_to(FORMULA, "\nC:\\scans"), "an absolute path in its source"),
    "stub without solution": (drop(SOLUTION), "must be followed directly by its solution"),
    "solution without stub": (drop(STUB), "must directly follow its exercise"),
    "solution in view": (lambda node: node.cells[SOLUTION].metadata.pop("jupyter"), "must be folded"),
    "other call": (replace_in(SOLUTION, "how many", "How many"), "must make the same call"),
    "no call": (replace_in(STUB, "workbook.exercise(", "print("), "must each call workbook.exercise once"),
    "hint of an expression": (
        lambda node: [replace_in(k, 'hint="how', 'hint=str() + "how')(node) for k in (STUB, SOLUTION)],
        "must be written as strings",
    ),
    "other name": (
        lambda node: [replace_in(STUB, "def double(", "def twice(")(node)],
        "must have the same name and arguments",
    ),
    "other arguments": (replace_in(STUB, "double(x)", "double(y)"), "must have the same name and arguments"),
    "other docstring": (replace_in(STUB, "Return 2", "Give 2"), "must have the same docstring"),
    "stub that returns": (replace_in(STUB, "raise NotImplementedError", "return 0"), "must end with raise"),
    "stub with other code": (
        replace_in(STUB, "    raise Not", "    x = x + 1\n    raise Not"),
        "holds statements that its solution does not",
    ),
    "solution still a stub": (
        replace_in(SOLUTION, "return 2 * x", "raise NotImplementedError"),
        "still raises NotImplementedError",
    ),
    "two functions": (append_to(STUB, "\n\n\ndef other():\n    pass"), "must each define one function"),
}


@pytest.mark.parametrize("name", SOURCE_FAULTS)
def test_lint_finds_a_fault_of_the_source(tmp_path, name):
    edit, expected = SOURCE_FAULTS[name]
    faults = faults_of(tmp_path, edit)
    assert any(expected in fault for fault in faults), faults


def test_lint_finds_the_wrong_order(tmp_path):
    order = "## Next\nA.\n\n## Summary\nB.\n\n## Questions\n1. a\n2. b\n3. c\n\n## References\n- C, doi:10.1000/182"
    faults = faults_of(tmp_path, lambda node: node.cells[CLOSING].update(source=order))
    assert faults == ["closing: the order is Summary, Questions, Next, References"]


def test_lint_accepts_what_is_allowed(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").touch()
    edits = [
        insert(FORMULA, new_code_cell(long_code(25), metadata={"tags": ["lesson"]})),
        insert(FORMULA, new_code_cell(long_code(15) + "\n# a comment\n\n# another")),
        insert(FORMULA, new_code_cell("# NBVAL_IGNORE_OUTPUT\nwords = 'a; b;'  # semicolons; in words;")),
        insert(FORMULA, new_code_cell(long_function(20), metadata={"tags": ["lesson"]})),
        append_to(FORMULA, "\n[link](00_tiny.ipynb#top) [out](https://x.org/home/a) ![seen](figures/a.png)"),
        append_to(FORMULA, "\nIt costs 5$ or 6$ and `$x$` is code."),
        replace_in(STUB, "    raise Not", "    y = x\n    raise Not"),
        replace_in(SOLUTION, "    return 2 * x", "    y = x\n    return 2 * y"),
    ]
    node_edits = reversed(edits)  # the last first, so that the numbers of earlier cells hold
    assert faults_of(tmp_path, lambda node: [edit(node) for edit in node_edits]) == []


def test_lint_says_when_a_file_is_no_notebook(tmp_path):
    path = tmp_path / "00.ipynb"
    path.write_text("{")
    (fault,) = notebook_lint.lint(path)
    assert fault.startswith("cannot be read as a notebook: ")


def add_output(output):
    def edit(node):
        node.cells[RENDER].outputs = [output]

    return edit


PNG = {"image/png": "aGVsbG8="}
OUTPUT_FAULTS = {
    "stale": (append_to(RENDER, "\nprint(1)"), "are older than the code: run python ci/notebooks.py refresh --only 00"),
    "stale tag": (retag(RENDER, "lesson"), "are older than the code"),
    "no stamp": (lambda node: node.metadata.pop("reglib"), "were not written by refresh"),
    "counts": (lambda node: node.cells[RENDER].update(execution_count=7), "execution counts are not 1, 2, 3"),
    "stripped": (lambda node: node.cells[CHECKS].update(execution_count=None), "execution counts are not 1, 2, 3"),
    "widget state": (lambda node: node.metadata.update(widgets={}), "holds widget state"),
    "widget": (
        add_output(new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}})),
        "a widget in its output",
    ),
    "error": (add_output(new_output("error", ename="E", evalue="bad", traceback=[])), "an error in its output: E: bad"),
    "stderr": (add_output(new_output("stream", name="stderr", text="careful")), "a warning in its output: careful"),
    "no words": (add_output(new_output("display_data", PNG)), "a figure without alternative text"),
    "path": (
        add_output(new_output("stream", name="stdout", text="saved " + "/" + "tmp/x/figure.png")),
        "an absolute path in its output",
    ),
    "large": (
        add_output(new_output("display_data", {"image/png": "A" * 700_000}, metadata={"image/png": {"alt": "a"}})),
        "kB; at most 700 kB",
    ),
    "silent": (lambda node: node.cells[CHECKS].update(outputs=[]), "tagged golden, but prints nothing"),
    "format 4.4": (
        lambda node: [node.update(nbformat_minor=4), *(cell.pop("id") for cell in node.cells)],
        "write it as 4.5",
    ),
}


@pytest.mark.parametrize("name", OUTPUT_FAULTS)
def test_lint_finds_a_fault_of_the_outputs(tmp_path, name):
    edit, expected = OUTPUT_FAULTS[name]
    faults = faults_of(tmp_path, edit, refreshed=False)
    assert [expected in fault for fault in faults] == [True], faults


def test_prose_may_change_without_a_refresh():
    node = tiny.chapter()
    before = chapter.stamp(node)
    node.cells[0].source += "\nMore words."
    assert chapter.stamp(node) == before
    node.cells[START].source += "\n"
    assert chapter.stamp(node) != before


# -- facts ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("test", "runs"),
    [
        ("run.own_data", "no"),
        ("not run.own_data", "yes"),
        ("run.truth", "yes"),
        ("run.truth is None", "no"),
        ("run.truth is not None", "yes"),
        ("not FIXED", "yes"),
        ("number > 3", "yes no"),
        ("not number", "yes no"),
    ],
)
def test_checks_for_the_readers_own_data_are_not_expected(tmp_path, test, runs):
    source = f'if {test}:\n    workbook.check("yes", 1, above=0)\nelse:\n    workbook.check("no", 1, above=0)'
    path = tiny.write(tmp_path, new_notebook(cells=[new_code_cell(source)]))
    assert chapter.check_patterns(chapter.Notebook.read(path)) == runs.split()


def test_a_check_in_a_loop_has_a_pattern(tmp_path):
    source = 'for name in names:\n    workbook.check(f"dice_{name}", 1, above=0)'
    path = tiny.write(tmp_path, new_notebook(cells=[new_code_cell(source)]))
    assert chapter.check_patterns(chapter.Notebook.read(path)) == ["dice_.+"]


def test_the_tiny_chapter_has_two_exercises(tmp_path):
    found = chapter.exercises(chapter.Notebook.read(tiny.write(tmp_path)))
    assert [(e.stub, e.solution, e.name, e.hint) for e in found] == [
        (7, 8, "double", "how many are 2 of them?"),
        (9, 10, "triple", "how many are 3 of them?"),
    ]


# -- scan -----------------------------------------------------------------------------------------------------
def execution(*outputs, widgets=None, trouble=""):
    node = new_notebook(cells=[new_code_cell("1", outputs=list(outputs))])
    if widgets is not None:
        node.metadata["widgets"] = widgets
    return runner.Execution(node, 1.0, trouble)


def scan(tmp_path, run, checks=()):
    return list(notebooks.scan(run, chapter.Notebook.read(tiny.write(tmp_path, new_notebook())), list(checks)))


def widget_state(outputs):
    model = {"model_name": "OutputModel", "state": {"outputs": outputs}}
    return {"application/vnd.jupyter.widget-state+json": {"state": {"a1": model}}}


def test_scan_finds_an_error_that_only_a_widget_holds(tmp_path):
    hidden = {"output_type": "error", "ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": []}
    assert scan(tmp_path, execution(widgets=widget_state([hidden]))) == [
        "an error inside a widget: ZeroDivisionError: division by zero"
    ]
    assert scan(tmp_path, execution(widgets=widget_state([]))) == []


def test_scan_finds_warnings_but_not_progress_bars(tmp_path):
    bar = (
        " 50%|█████     | 5/10 [00:01<00:01,  4.9it/s]\r100%|██████████| 10/10 [00:02<00:00,  5.0it/s]\n12it [00:01]\n"
    )
    stderr = [new_output("stream", name="stderr", text=text) for text in (bar, bar + "UserWarning: careful\n")]
    assert scan(tmp_path, execution(stderr[0])) == []
    assert scan(tmp_path, execution(stderr[1])) == ["cell 1: printed to stderr: UserWarning: careful"]


def test_scan_reports_the_first_error_and_what_stopped_the_run(tmp_path):
    error = new_output("error", ename="ValueError", evalue="no", traceback=[])
    assert scan(tmp_path, execution(error)) == ["cell 1: ValueError: no"]
    assert scan(tmp_path, execution(trouble="stopped after 300 s")) == ["stopped after 300 s"]


def test_scan_misses_no_check_and_no_exercise(tmp_path):
    notebook = chapter.Notebook.read(tiny.write(tmp_path))
    text = "TODO double: how many\nPASS exercise double\nTODO triple: how many\n"
    run = execution(new_output("stream", name="stdout", text=text))
    checks = [{"name": "numbers", "passed": True}, {"name": "scale", "passed": False}]
    assert list(notebooks.scan(run, notebook, checks)) == [
        "the check direction did not run",
        "the check scale failed",
        "the solution of triple did not pass",
    ]
    silent = list(notebooks.scan(execution(), notebook, [*checks, {"name": "direction", "passed": True}]))
    assert "the stub of double did not print its TODO" in silent


# -- running --------------------------------------------------------------------------------------------------
def command(*arguments):
    """ci/notebooks.py as a user types it; returns (status, output)."""
    done = subprocess.run(
        [sys.executable, str(runner.ROOT / "ci" / "notebooks.py"), *map(str, arguments)], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def folders(tmp_path):
    return ("--notebooks", tmp_path / "notebooks", "--build", tmp_path / "build")


def test_refresh_lint_check_and_gallery_of_a_tiny_chapter(tmp_path):
    path = tiny.write(tmp_path / "notebooks")
    status, printed = command("refresh", *folders(tmp_path))
    assert (status, printed) == (0, "refreshed 00_tiny.ipynb\n")
    assert command("lint", *folders(tmp_path))[0] == 0
    stored = nbformat.read(path, as_version=4)
    assert [p.name for p in path.parent.iterdir()] == ["00_tiny.ipynb"]
    assert stored.metadata.reglib.profile == "lite"
    pictures = [o for o in stored.cells[RENDER].outputs if "image/png" in o.get("data", {})]
    assert [o.metadata["image/png"]["alt"] for o in pictures] == [
        "A line that rises to 1 mm.",
        "What to move: height [mm]",
    ]
    result = tmp_path / "result.json"
    status, printed = command("check", *folders(tmp_path), "--json", result)
    assert status == 0, printed
    table = json.loads(result.read_text())["table"].splitlines()
    assert [column.strip() for column in table[0].split("|")][1:] == [
        "smoke s",
        "checks passed",
        "exercises",
        "nbval",
        "verdict",
    ]
    assert [column.strip() for column in table[1].split("|")][2:] == ["3", "2", "10 cells, 1 golden", "ok"]
    assert {k: json.loads(result.read_text())[k] for k in ("passed", "failed", "skipped")} == {
        "passed": 17,
        "failed": 0,
        "skipped": 0,
    }
    executed = nbformat.read(tmp_path / "build" / "notebooks" / "smoke" / path.name, as_version=4)
    assert "PASS explored 3 states" in json.dumps(executed)
    status, printed = command("gallery", *folders(tmp_path))
    assert status == 0, printed
    index = (tmp_path / "build" / "html" / "index.html").read_text(encoding="utf-8")
    for piece in (
        "A tiny chapter",
        'alt="A line that rises to 1 mm."',
        "3 checks passed",
        "00_tiny.html",
        " s (smoke)",
    ):
        assert piece in index
    page = (tmp_path / "build" / "html" / "00_tiny.html").read_text(encoding="utf-8")
    assert 'alt="What to move: height [mm]"' in page
    assert gallery.NO_WORDS not in page


def test_check_sees_wrong_solutions_lame_stubs_and_changed_golden_outputs(tmp_path):
    node = tiny.chapter()
    replace_in(SOLUTION, "return 2 * x", "return 3 * x")(node)
    as_if_refreshed(node)  # with an output that the golden cell does not print
    path = tiny.write(tmp_path / "notebooks", node)
    row = notebooks.Row(path.stem)
    place = runner.Workplace(tmp_path / "build")
    notebooks.run_exercises(place, path, row)
    (fault,) = row.faults
    assert fault == (
        "exercises: CheckFailed: exercise double: the result is not right yet. Hint: how many are 2 of them?"
    )
    notebooks.run_nbval(place, {path: row})
    golden = [fault for fault in row.faults if "Cell outputs differ" in fault]
    assert len(golden) == 1
    assert "PASS scale" in golden[0]
    assert row.golden == 1


def test_a_stub_that_does_not_fail_is_a_fault(tmp_path):
    cells = tiny.chapter().cells
    lame = cells[STUB].source.replace("lambda f: f(2) == 2 * 2", "lambda f: True")
    cells[STUB].source = lame
    cells[SOLUTION].source = cells[SOLUTION].source.replace("lambda f: f(2) == 2 * 2", "lambda f: True")
    path = tiny.write(tmp_path / "notebooks", new_notebook(cells=cells))
    row = notebooks.Row(path.stem)
    notebooks.run_exercises(runner.Workplace(tmp_path / "build"), path, row)
    assert row.faults == ["exercises: AssertionError: the stub of double did not fail"]


def test_an_error_inside_a_control_stops_the_sweep(tmp_path):
    node = tiny.chapter()
    replace_in(RENDER, "    figure.sub", "    1 / (4 - state['height_mm'])\n    figure.sub")(node)
    path = tiny.write(tmp_path / "notebooks", node)
    row = notebooks.Row(path.stem)
    notebooks.run_and_scan(runner.Workplace(tmp_path / "build"), path, row)
    assert row.faults == ["smoke: cell 4: ZeroDivisionError: division by zero"]
    assert row.seconds > 0


def test_time_spent_waiting_for_a_busy_machine_does_not_count(tmp_path, monkeypatch):
    node = new_notebook(cells=[new_code_cell(tiny.PARAMETERS, metadata={"tags": ["parameters"]})])
    path = tiny.write(tmp_path / "notebooks", node)
    for cpu_seconds, faults in ((20.0, []), (31.0, ["smoke: took 31 s; at most 30 s"])):
        done = runner.Execution(node, 40.0, "", cpu_seconds)
        monkeypatch.setattr(notebooks, "execute", lambda *_, done=done, **__: done)
        row = notebooks.Row(path.stem)
        notebooks.run_and_scan(runner.Workplace(tmp_path / "build"), path, row)
        assert row.faults == faults


def test_the_kernels_computing_is_counted(tmp_path):
    busy = "import time\nwhile time.process_time() < 3:\n    pass"
    cells = [new_code_cell(tiny.PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(busy)]
    path = tiny.write(tmp_path / "notebooks", new_notebook(cells=cells))
    execution = runner.execute(runner.Workplace(tmp_path / "build"), "smoke", path)
    assert 3 <= execution.cpu_seconds < 10


def test_a_notebook_over_its_time_is_stopped_or_reported(tmp_path, monkeypatch):
    cells = [new_code_cell(tiny.PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell("while True:\n    pass")]
    path = tiny.write(tmp_path / "notebooks", new_notebook(cells=cells))
    place = runner.Workplace(tmp_path / "build")
    monkeypatch.setitem(runner.OUTER_LIMIT_S, "smoke", 6)
    monkeypatch.setitem(notebooks.BUDGET_S, "smoke", 1)
    row = notebooks.Row(path.stem)
    notebooks.run_and_scan(place, path, row)
    assert row.faults[0] == "smoke: stopped after 6 s"  # by then killed, so that its computing time is not known
    assert row.faults[-1].startswith("smoke: took ")


def test_refresh_writes_nothing_when_something_is_wrong(tmp_path):
    node = tiny.chapter()
    append_to(VERSIONS, "\nprint('/' + 'opt/scan.nii')")(node)
    path = tiny.write(tmp_path / "notebooks", node)
    before = path.read_bytes()
    place = runner.Workplace(tmp_path / "build", "lite")
    (fault,) = refresh.refresh(place, path)
    assert "an absolute path in its output" in fault
    append_to(VERSIONS, "\n1 / 0")(node)
    tiny.write(tmp_path / "notebooks", node)
    assert refresh.refresh(place, path) == ["cell 12: ZeroDivisionError: division by zero"]
    replace_in(VERSIONS, "\n1 / 0", "")(node)
    tiny.write(tmp_path / "notebooks", node)
    assert path.read_bytes() == before


def test_refresh_does_not_overwrite_an_edit_made_while_it_ran(tmp_path, monkeypatch):
    path = tiny.write(tmp_path / "notebooks")

    def run_and_edit(*_, **__):
        path.write_text(path.read_text().replace("A tiny chapter", "A small chapter"))
        return runner.Execution(tiny.chapter(), 1.0)

    monkeypatch.setattr(refresh, "execute", run_and_edit)
    faults = refresh.refresh(runner.Workplace(tmp_path / "build", "lite"), path)
    assert faults == ["was edited while it ran: refresh it again"]
    assert "A small chapter" in path.read_text()


def test_stored_outputs_name_the_folder_of_the_notebook(tmp_path):
    node = tiny.chapter()
    append_to(VERSIONS, "\nprint(run.out / 'a.txt')")(node)
    path = tiny.write(tmp_path / "notebooks", node)
    assert refresh.refresh(runner.Workplace(tmp_path / "build", "lite"), path) == []
    stored = nbformat.read(path, as_version=4)
    assert stored.cells[VERSIONS].outputs[0].text.splitlines()[-1] == "build/out/tiny/a.txt"


def test_stored_outputs_name_the_folder_as_seen_from_the_notebook(tmp_path):
    out, path = runner.ROOT / "build" / "notebooks" / "refresh" / "00_tiny", runner.ROOT / "notebooks" / "00_tiny.ipynb"
    text = f"saved ../build/notebooks/refresh/00_tiny/a.txt, {out}/b.txt and {runner.ROOT}/c.txt"
    stored = tiny.write(tmp_path)
    assert refresh.without_folders(text, out, path, chapter.Notebook.read(stored)) == (
        "saved ../build/out/tiny/a.txt, build/out/tiny/b.txt and ./c.txt"
    )


def test_stored_outputs_hold_no_progress_and_no_widget():
    bar = "  0%|          | 0/2\r100%|██████████| 2/2 [00:00<00:00, 9.1it/s]\n"
    outputs = [
        new_output("stream", name="stdout", text="one\n"),
        new_output("stream", name="stdout", text="two\n"),
        new_output("stream", name="stderr", text=bar),
        new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "HBox()"}),
        new_output("execute_result", {"text/plain": "3"}, execution_count=9),
        new_output("stream", name="stdout", text="last"),
    ]
    stored = list(refresh.stored_outputs(outputs, 4))
    assert [o.get("text") for o in stored] == ["one\ntwo\n", None, "last"]
    assert stored[1].execution_count == 4


def test_a_parameter_that_a_notebook_does_not_have_is_refused(tmp_path):
    tiny.write(tmp_path / "notebooks")
    status, printed = command("check", *folders(tmp_path), "-p", "SEDE", "3")
    assert status == 2
    assert printed == "Error: 00_tiny.ipynb has no parameter SEDE; did you mean SEED?\n"
    assert not list((tmp_path / "build").rglob("checks.json"))


def test_parameters_reach_the_notebook_with_their_type(tmp_path):
    path = tiny.write(tmp_path / "notebooks")
    overrides = {name: notebooks.number_or_text(text) for name, text in (("SEED", "3"), ("DEVICE", "cpu"))}
    _, given = runner.Workplace(tmp_path / "build", overrides=overrides).prepare("smoke", path)
    assert given == {
        "PROFILE": "smoke",
        "OUT_DIR": str(tmp_path / "build" / "smoke" / "00_tiny"),
        "SEED": 3,
        "DEVICE": "cpu",
    }


def test_start_here_runs_on_two_files_of_the_reader(tmp_path):
    from reglib import io, phantoms

    cohort = phantoms.brain_cohort(2, shape=(24, 26, 22), spacing=8.0, oblique=True)
    files = {"FIXED": tmp_path / "fixed.nii.gz", "MOVING": tmp_path / "moving.nii.gz"}
    for path, subject in zip(files.values(), cohort.subjects, strict=True):
        io.save_image(path, subject.image, subject.grid)
    place = runner.Workplace(tmp_path / "build", overrides={name: str(path) for name, path in files.items()})
    path = runner.ROOT / "notebooks" / "00_start_here.ipynb"
    done = runner.execute(place, "own", path, at_once=2, REGLIB_WIDGETS="static")
    assert (done.trouble, done.errors) == ("", [])
    assert "fixed.nii.gz" in done.printed  # the doctor's report
    assert "PASS round_trip" in done.printed


def test_a_name_that_no_notebook_starts_with_is_refused(tmp_path, capsys):
    tiny.write(tmp_path / "notebooks")
    arguments = ["lint", "--only", "77", *map(str, folders(tmp_path))]
    assert notebooks.main(arguments) == 2
    assert "starts with '77'" in capsys.readouterr().err


def test_two_notebooks_at_once_share_the_cores(tmp_path):
    place = runner.Workplace(tmp_path, cores=4)
    assert place.environment(2)["OMP_NUM_THREADS"] == "2"
    assert place.environment(8)["OMP_NUM_THREADS"] == "1"
    assert "REGLIB_BUG" not in place.environment(1)


def test_the_kernel_is_the_interpreter_that_runs_the_tools(tmp_path):
    runner.Workplace(tmp_path).environment(1)
    spec = json.loads((tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json").read_text())
    assert spec["argv"][0] == sys.executable


# -- zoo ------------------------------------------------------------------------------------------------------
def test_the_zoo_catches_only_what_a_check_catches(tmp_path, monkeypatch):
    path = tiny.write(tmp_path / "notebooks")
    here = {name: bugs.BUGS[name] for name in ("points_with_image_direction", "linear_labels")}
    here = {name: bugs.Bug(bug.description, "00", bug.apply) for name, bug in here.items()}
    monkeypatch.setattr(notebooks, "BUGS", here)
    clean, direction, labels = notebooks.zoo(runner.Workplace(tmp_path / "build"), [path])
    assert (clean.bug, clean.red, clean.fault) == ("(none)", [], "")
    assert (direction.red, direction.fault) == (["direction"], "")
    assert (labels.red, labels.fault) == ([], "no check went red")


def test_another_error_does_not_count_as_caught(tmp_path):
    node = tiny.chapter()
    replace_in(CHECKS, 'workbook.check("numbers"', '1 / int(points)\nworkbook.check("numbers"')(node)
    node.cells[CHECKS].source = "points = 0\n" + node.cells[CHECKS].source
    path = tiny.write(tmp_path / "notebooks", node)
    caught = notebooks.meet(runner.Workplace(tmp_path / "build"), "points_with_image_direction", path)
    assert caught.fault == "cell 6 stopped before any check: ZeroDivisionError: division by zero"


def test_the_zoo_needs_the_chapter_that_catches(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "BUGS", {"half_voxel": bugs.Bug("", "77", lambda: None)})
    with pytest.raises(runner.UsageError, match="half_voxel is to be caught by notebook 77"):
        notebooks.zoo(runner.Workplace(tmp_path), [Path("00_a.ipynb")])


def test_an_unknown_bug_is_refused():
    with pytest.raises(ValueError, match=r"REGLIB_BUG must be one of half_voxel, .*; got 'half_voxle'"):
        bugs.apply("half_voxle")


BUG_TEST = """
import sys, torch
sys.path.insert(0, {ci!r})
import tempfile
from pathlib import Path
import bugs
from reglib import field, keypoints, transforms
from reglib.field import warp_points
from reglib.grid import Grid
right = {{name: getattr(field, name) for name in field.__all__}}
torch.manual_seed(0)
ddf = torch.randn(1, 2, 9, 7)
grid = Grid((9, 7), torch.diag(torch.tensor([2.0, 3.0, 1.0])))
labels = torch.randint(0, 5, (1, 1, 9, 7))
calls = {{
    "warp": (torch.rand(1, 1, 9, 7), ddf),
    "resize_ddf": (ddf, (5, 4)),
    "warp_points": (torch.rand(1, 3, 2), ddf),
    "jacobian": (ddf,),
    "jacobian_determinant": (ddf,),
}}
def results():
    torch.manual_seed(1)
    found = {{name: getattr(field, name)(*arguments) for name, arguments in calls.items()}}
    found["convert_ddf"] = field.convert_ddf(ddf, grid, to="world", from_="voxel")
    found["warp_labels"] = field.warp_labels(labels, ddf, method="nearest")
    tilt = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.01, 0, 1]]).double().numpy()
    places = torch.rand(3, 2).double().numpy() + 5
    found["apply_homography"] = torch.from_numpy(keypoints.apply_homography(tilt, places))
    (pair,) = keypoints.fire_pairs(fire)
    found["fire_pairs"] = torch.from_numpy(pair.query_points)
    return found
fire = Path(tempfile.mkdtemp())
for name in ("Images/S01_1.jpg", "Images/S01_2.jpg", "Ground Truth/control_points_S01_1_2.txt"):
    (fire / name).parent.mkdir(exist_ok=True)
    (fire / name).write_text("1 2 3 4")
before = results()
bugs.apply({name!r})
after = results()
print(sorted(name for name in before if not torch.equal(before[name], after[name])))
held = [m for k, m in sys.modules.items() if k.startswith("reglib.") for n, v in vars(m).items()
        if n in right and v is right[n] and getattr(field, n) is not v]
print(len(held))
"""
CHANGED = {
    "half_voxel": ["warp", "warp_labels"],
    "swapped_axes": ["warp", "warp_labels"],
    "wrong_direction": ["warp", "warp_labels"],
    "unscaled_resize": ["resize_ddf"],
    "mm_as_voxels": ["convert_ddf"],
    "points_with_image_direction": ["warp_points"],
    "linear_labels": ["warp_labels"],
    "missing_identity": ["jacobian", "jacobian_determinant"],
    "undivided_homography": ["apply_homography"],
    "exchanged_control_points": ["fire_pairs"],
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_bug_changes_what_it_says_in_every_module(name):
    source = BUG_TEST.format(ci=str(runner.ROOT / "ci"), name=name)
    done = subprocess.run([sys.executable, "-c", source], cwd=runner.ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [str(CHANGED[name]), "0"], done.stderr


def test_the_zoo_is_complete():
    assert list(bugs.BUGS) == list(CHANGED)
    assert all(bug.description and bug.caught_by for bug in bugs.BUGS.values())
