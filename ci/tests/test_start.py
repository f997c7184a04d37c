"""The two commands, without installing anything: fakes stand for venv, pip, papermill and the disk."""

import ast
import errno
import importlib.util
import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import environment
import start
from environment import (
    CommandError,
    Environment,
    explain_pip_failure,
    explain_venv_failure,
    run_logged,
    run_main,
)

CI = Path(environment.__file__).parent


@pytest.fixture(scope="module")
def check():
    """ci/test.py under another name, because the standard library has a package `test`."""
    spec = importlib.util.spec_from_file_location("test_command", CI / "test.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeEnvironment(Environment):
    """An Environment whose venv and pip only write the files that the real ones leave behind."""

    def __init__(self, root):
        super().__init__(root)
        self.calls = []
        self.interrupt = False

    def _create(self):
        self.calls.append("create")
        self.python.parent.mkdir(parents=True, exist_ok=True)
        self.python.touch()
        config = f"version = {platform.python_version()}\ncommand = python -m venv --clear {self.folder}\n"
        (self.folder / "pyvenv.cfg").write_text(config)
        self.add_package("pip-1.0")

    def _install(self):
        self.calls.append("install")
        if self.interrupt:
            raise KeyboardInterrupt

    def add_package(self, name, installer="pip\n"):
        info = self.site_packages / f"{name}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").touch()
        if installer:
            (info / "INSTALLER").write_text(installer)
        return info


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "constraints.txt").write_text("torch==1.0\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return FakeEnvironment(tmp_path)


@pytest.fixture
def interrupted(fake):
    """An environment whose installation was stopped half-way."""
    fake.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        fake.prepare()
    fake.interrupt = False
    fake.calls.clear()
    return fake


# -- an old Python ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["environment.py", "start.py", "test.py"])
def test_parses_on_python_3_6(name):
    source = (CI / name).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__" not in source


@pytest.mark.parametrize("name", ["start.py", "test.py"])
def test_an_old_python_gets_one_sentence(name):
    pretend = "import runpy, sys; sys.version_info = (3, 10, 4, 'final', 0); sys.path.insert(0, sys.argv[1])"
    code = f"{pretend}; runpy.run_path(sys.argv[1] + '/{name}', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, str(CI)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Python 3.11 or newer is needed; this is Python 3.10 (")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


# -- making, reusing and healing .venv -----------------------------------------------------------------
def test_a_second_run_installs_nothing(fake):
    fake.prepare()
    assert fake.calls == ["create", "install"]
    fake.prepare()
    assert fake.calls == ["create", "install"]


def test_an_interrupted_install_is_continued(interrupted):
    assert not interrupted.is_ready()
    interrupted.prepare()
    assert interrupted.calls == ["install"]
    assert interrupted.is_ready()


@pytest.mark.parametrize("name", ["pyproject.toml", "ci/constraints.txt"])
def test_a_changed_dependency_is_installed(fake, name):
    fake.prepare()
    (fake.root / name).write_text("changed")
    fake.prepare()
    assert fake.calls == ["create", "install", "install"]


def test_an_old_stamp_does_not_outlive_an_interrupted_update(fake):
    pins = fake.root / "ci" / "constraints.txt"
    before = pins.read_text()
    fake.prepare()
    pins.write_text("torch==2.0\n")
    fake.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        fake.prepare()
    pins.write_text(before)
    assert not fake.is_ready()


def test_a_half_written_package_is_installed_again(interrupted):
    half = interrupted.add_package("half-1.0", installer="")
    whole = interrupted.add_package("whole-1.0")
    interrupted.prepare()
    assert not half.exists()
    assert whole.exists()


def break_python(env):
    env.python.unlink()


def break_pip(env):
    (env.site_packages / "pip-1.0.dist-info" / "INSTALLER").unlink()


def break_version(env):
    config = env.folder / "pyvenv.cfg"
    config.write_text(config.read_text().replace(platform.python_version(), "3.11.0rc1"))


def break_place(env):
    config = env.folder / "pyvenv.cfg"
    config.write_text(config.read_text().replace(str(env.folder), "elsewhere"))


def break_config(env):
    (env.folder / "pyvenv.cfg").unlink()


@pytest.mark.parametrize("damage", [break_python, break_pip, break_version, break_place, break_config])
def test_a_broken_venv_is_made_again(fake, damage):
    fake.prepare()
    damage(fake)
    fake.prepare()
    assert fake.calls == ["create", "install", "create", "install"]


def test_a_real_venv_is_usable(fake):
    pytest.importorskip("ensurepip")
    Environment._create(fake)
    assert fake.is_usable()
    assert not fake.is_ready()


def test_variables_leave_other_pythons_out(fake, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    variables = fake.variables(EXTRA="1")
    assert "PYTHONPATH" not in variables
    assert variables["EXTRA"] == "1"
    assert variables["PATH"].startswith(str(fake.scripts))


# -- disk and network -----------------------------------------------------------------------------------
def test_a_full_disk_is_refused_before_any_work(fake, monkeypatch):
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: SimpleNamespace(free=1.2e9))
    with pytest.raises(CommandError, match=r"needs 6 GB free at .*; found 1\.2 GB\. Free some space") as caught:
        fake.prepare()
    assert caught.value.status == 2
    assert fake.calls == []


def test_a_full_disk_does_not_matter_once_installed(fake, monkeypatch):
    fake.prepare()
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    fake.prepare()


PIP_FAILURES = {
    "disk": (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        "disk filled up",
    ),
    "offline": (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)'\n"
        "ERROR: Could not find a version that satisfies the requirement torch (from versions: none)",
        "The network is off",
    ),
    "other": ("Collecting torch\nERROR: ResolutionImpossible", "ERROR: ResolutionImpossible"),
    "silent": ("", "no error line"),
}


@pytest.mark.parametrize(("tail", "sentence"), PIP_FAILURES.values(), ids=PIP_FAILURES)
def test_pip_failures_are_explained(fake, monkeypatch, tail, sentence):
    monkeypatch.setattr(environment, "run_logged", lambda *args, **options: (1, tail))
    fake._create()
    with pytest.raises(CommandError, match=sentence) as caught:
        Environment._install(fake)
    assert str(fake.log) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_venv_failures_are_explained(tmp_path):
    assert "python3-venv" in explain_venv_failure("ensurepip is not available", tmp_path)
    assert "disk filled up" in explain_venv_failure("[Errno 28] No space left on device", tmp_path)
    assert "Permission denied. Delete" in explain_venv_failure("Error: Permission denied.", tmp_path)


def test_offline_is_not_guessed_from_an_unrelated_error(tmp_path):
    assert "network" not in explain_pip_failure("ERROR: No matching distribution found for x==1", tmp_path)


# -- running and logging ---------------------------------------------------------------------------------
def test_run_logged_keeps_the_output_and_the_status(tmp_path):
    code = "import sys; print('one'); sys.stderr.write('10%\\r20%\\r'); sys.exit(3)"
    log = tmp_path / "new" / "run.log"
    status, tail = run_logged("Working", [sys.executable, "-c", code], log)
    assert status == 3
    assert sorted(tail.split()) == ["10%", "20%", "one"]
    assert log.read_text() == tail


def test_a_log_that_cannot_be_written_loses_no_line_of_the_tail():
    def write(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    tail = []
    environment._drain(["one\n", "two\n"], SimpleNamespace(write=write), tail)
    assert tail == ["one\n", "two\n"]


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (CommandError("no brain."), 2, "Error: no brain."),
        (CommandError("cell failed.", status=1), 1, "Error: cell failed."),
        (KeyboardInterrupt(), 130, "Stopped. Run the same command again"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "Error: The disk is full."),
    ],
)
def test_expected_failures_become_a_sentence_and_a_status(capsys, raised, status, message):
    def main():
        raise raised

    assert run_main(main) == status
    assert message in capsys.readouterr().err


def test_unexpected_failures_keep_their_traceback():
    def main():
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        run_main(main)


# -- start.py --------------------------------------------------------------------------------------------
def write_executed(path, outputs=()):
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {
            "cell_type": "code",
            "source": ["a = 1\n", "check(a)"],
            "execution_count": 4,
            "outputs": list(outputs),
        },
    ]
    path.write_text(json.dumps({"cells": cells}))


FAILED = {
    "output_type": "error",
    "ename": "CheckFailed",
    "evalue": "\x1b[31mtre_after_mm is 3.0\x1b[0m",
    "traceback": [],
}


def test_a_missing_notebook_is_named(fake):
    with pytest.raises(CommandError, match=r"notebooks/00_start_here\.ipynb is missing"):
        start.run_notebook(fake)


@pytest.fixture
def papermill(fake, monkeypatch):
    """A papermill that records its command, writes an executed notebook and ends with `status`."""
    (fake.root / "notebooks").mkdir()
    (fake.root / start.NOTEBOOK).touch()
    record = SimpleNamespace(status=0, outputs=[], command=[], tail="")

    def run(label, command, log, **options):
        record.command = [str(part) for part in command]
        write_executed(Path(record.command[4]), record.outputs)
        return record.status, record.tail

    monkeypatch.setattr(start, "run_logged", run)
    return record


def test_the_notebook_runs_in_its_lite_profile(fake, papermill):
    stale = fake.root / start.OUT / "checks.json"
    stale.parent.mkdir(parents=True)
    stale.touch()
    start.run_notebook(fake)
    command = " ".join(papermill.command)
    assert "-p PROFILE lite -p OUT_DIR build/start" in command
    assert "--execution-timeout 300" in command
    assert not stale.exists()


def test_a_failing_cell_is_shown_readably(fake, papermill):
    papermill.status, papermill.outputs = 1, [FAILED]
    with pytest.raises(CommandError) as caught:
        start.run_notebook(fake)
    assert "Cell [4]:\n\n    a = 1\n    check(a)\n\nCheckFailed: tre_after_mm is 3.0\n" in str(caught.value)
    assert caught.value.status == 1


def test_a_dead_kernel_shows_the_last_lines(fake, papermill):
    papermill.status, papermill.tail = 1, "Executing: 10%\nDeadKernelError: Kernel died\n"
    with pytest.raises(CommandError, match="DeadKernelError: Kernel died"):
        start.run_notebook(fake)


def write_results(fake, **values):
    out = fake.root / start.OUT
    out.mkdir(parents=True)
    checks = [{"name": name, "value": value, "bound": "below 1", "passed": True} for name, value in values.items()]
    (out / "checks.json").write_text(json.dumps(checks))
    (out / "overview.png").touch()
    return out


def test_the_report_names_errors_figure_and_next_step(fake, capsys):
    out = write_results(fake, tre_before_mm=6.5432, tre_after_mm=0.612)
    start.report(fake)
    printed = capsys.readouterr().out
    assert "before registration    6.543 mm" in printed
    assert "after registration     0.612 mm" in printed
    assert str(out / "overview.png") in printed
    assert "-m jupyter lab notebooks/00_start_here.ipynb" in printed


def test_a_missing_check_or_figure_is_a_failure(fake):
    out = write_results(fake, tre_before_mm=6.5)
    with pytest.raises(CommandError, match=r"holds no check tre_after_mm; it has tre_before_mm") as caught:
        start.report(fake)
    assert caught.value.status == 1
    (out / "overview.png").unlink()
    write_checks = [{"name": name, "value": 1.0} for name in ("tre_before_mm", "tre_after_mm")]
    (out / "checks.json").write_text(json.dumps(write_checks))
    with pytest.raises(CommandError, match=r"wrote no build/start/overview\.png"):
        start.report(fake)


# -- test.py ---------------------------------------------------------------------------------------------
JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message="x"/></testcase>
<testcase classname="a" name="broken"><error message="x"/></testcase>
<testcase classname="a" name="left"><skipped message="no scans here"/></testcase>
</testsuite></testsuites>"""


def test_pytest_is_counted_case_by_case(check, tmp_path):
    path = tmp_path / "pytest.xml"
    path.write_text(JUNIT)
    counts = check.count_junit(path, 1)
    assert counts[:3] == (1, 2, 1)
    assert counts.details == ("skipped a::left: no scans here",)


def test_a_crash_counts_as_a_failure(check, tmp_path):
    path = tmp_path / "pytest.xml"
    assert check.count_junit(path, 3)[:3] == (0, 1, 0)
    path.write_text("<testsuites><testsuite/></testsuites>")
    assert check.count_junit(path, 5).failed == 1
    assert check.count_notebooks(tmp_path / "notebooks.json", 1).failed == 1


def test_notebooks_are_counted(check, tmp_path):
    path = tmp_path / "notebooks.json"
    path.write_text(json.dumps({"passed": 7, "failed": 0, "skipped": 1, "table": "00  3 s\n10  4 s"}))
    assert check.count_notebooks(path, 0) == (7, 0, 1, ("00  3 s", "10  4 s"))
    assert check.count_notebooks(path, 1).failed == 1


def test_the_last_line_sums_up(check):
    results = [
        check.Result("ruff check", 0.3, check.Counts(1, 0)),
        check.Result("pytest", 9.0, check.Counts(40, 0, 2, ("skipped a::b: why",))),
    ]
    lines = check.closing_lines(results)
    assert lines[-1] == "41 passed, 0 failed, 2 skipped"
    assert "skipped a::b: why" in lines
    assert check.closing_lines(results[:1])[-1] == "1 passed, 0 failed"


def test_every_step_runs_and_one_failure_fails_the_command(check, monkeypatch, capfd):
    steps = [
        ("first", ["-c", "raise SystemExit(1)"], check.count_status),
        ("second", ["-c", "print('second ran')"], check.count_status),
    ]
    quiet = SimpleNamespace(prepare=lambda: None, python=sys.executable, variables=lambda **extra: dict(extra))
    monkeypatch.setattr(check, "Environment", lambda: quiet)
    monkeypatch.setattr(check, "steps", lambda fast: steps)
    monkeypatch.setattr(sys, "argv", ["test.py"])
    assert check.main() == 1
    printed = capfd.readouterr().out
    assert "second ran" in printed
    assert printed.splitlines()[-1] == "1 passed, 1 failed"


def test_fast_leaves_out_notebooks_and_browser(check, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "JUNIT", check.ROOT / "build" / "no-such.xml")
    monkeypatch.setattr(check, "NOTEBOOKS", check.ROOT / "build" / "no-such.json")
    monkeypatch.setattr(check, "ZOO", check.ROOT / "build" / "no-zoo.json")
    fast = {name: arguments for name, arguments, count in check.steps(fast=True)}
    full = {name: arguments for name, arguments, count in check.steps(fast=False)}
    assert set(full) - set(fast) == {"bug zoo", "notebooks"}
    assert fast["pytest"][-2:] == ["-m", "not browser"]
    assert "not browser" not in full["pytest"]
