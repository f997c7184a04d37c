"""Prepares .venv, runs the first notebook on the bundled brain, and opens JupyterLab on it."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from environment import SHARED_CORES, CommandError, Environment, run_logged, run_main

NOTEBOOK = "notebooks/00_start_here.ipynb"
OUT = "build/start"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-lab", action="store_true", help="do not open JupyterLab at the end")
    options = parser.parse_args()
    environment = Environment()
    environment.prepare()
    run_notebook(environment)
    report(environment)
    return 0 if options.no_lab else open_lab(environment)


def run_notebook(environment: Environment) -> None:
    """Executes the notebook with papermill; raises CommandError with the failing cell's own message."""
    if not (environment.root / NOTEBOOK).exists():
        raise CommandError(
            f"{NOTEBOOK} is missing: expected in {environment.root}. "
            "Is this checkout complete? Clone it again, or restore the file."
        )
    out = environment.root / OUT
    shutil.rmtree(out, ignore_errors=True)  # an older run's figure and checks must not pass for this run's
    out.mkdir(parents=True)
    executed = out / os.path.basename(NOTEBOOK)
    command = [environment.python, "-m", "papermill", NOTEBOOK, executed, "--cwd", environment.root]
    command += ["-p", "PROFILE", "lite", "-p", "OUT_DIR", OUT, "--progress-bar", "--execution-timeout", "300"]
    variables = environment.variables(REGLIB_WIDGETS="static", **SHARED_CORES)
    log = out / "papermill.log"
    status, tail = run_logged("Running " + NOTEBOOK, command, log, cwd=environment.root, env=variables)
    if status:
        reason = failing_cell(executed) or "papermill stopped:\n" + "".join(tail.splitlines(True)[-5:])
        raise CommandError(f"{NOTEBOOK} failed. {reason}\nThe whole run: {executed} and {log}", status=1)


def failing_cell(executed: Path) -> str:
    """The number, source and error of an executed notebook's first failed cell; empty if none failed."""
    if not os.path.exists(executed):
        return ""
    with open(executed, encoding="utf-8") as file:
        cells = json.load(file)["cells"]
    for cell in cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                source = "".join(cell["source"]).strip().replace("\n", "\n    ")
                reason = ESCAPES.sub("", f"{output['ename']}: {output['evalue']}")
                return f"Cell [{cell['execution_count']}]:\n\n    {source}\n\n{reason}"
    return ""


def report(environment: Environment) -> None:
    """Prints the error before and after in mm, the figure, and how to open the notebook."""
    out = environment.root / OUT
    before, after = (recorded(out / "checks.json", name) for name in ("tre_before_mm", "tre_after_mm"))
    figure = out / "overview.png"
    if not figure.exists():
        raise CommandError(f"{NOTEBOOK} ran, but wrote no {OUT}/overview.png; restore it.", status=1)
    python = os.path.relpath(environment.python, environment.root)
    print()
    print("Distance between known landmarks (TRE), averaged:")
    print(f"  before registration  {before:7.3f} mm")
    print(f"  after registration   {after:7.3f} mm")
    print(f"Figure: {figure}")
    print(f"Open the notebook: {python} -m jupyter lab {NOTEBOOK}   (then Run > Run All Cells)")


def recorded(path: Path, name: str) -> float:
    """The value that the notebook's check of this name recorded."""
    checks = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            checks = json.load(file)
    values = [check["value"] for check in checks if check["name"] == name]
    if not values:
        found = ", ".join(check["name"] for check in checks) or "none"
        raise CommandError(f"{NOTEBOOK} ran, but {path} holds no check {name}; it has {found}.", status=1)
    return float(values[-1])


def open_lab(environment: Environment) -> int:
    """Opens JupyterLab and waits until it ends."""
    command = [str(environment.python), "-m", "jupyter", "lab", NOTEBOOK, "--ServerApp.root_dir=."]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # in a container one is root, and Jupyter would refuse
    print("Opening JupyterLab; Ctrl-C here ends it.")
    variables = environment.variables(REGLIB_WIDGETS="live", **SHARED_CORES)
    process = subprocess.Popen(command, cwd=environment.root, env=variables)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # JupyterLab got it too and asks whether to stop


if __name__ == "__main__":
    sys.exit(run_main(main))
