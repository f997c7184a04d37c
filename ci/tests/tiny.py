"""A chapter as small as the rules allow, for the tests of the tools that lint and run chapters."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

OPENING = """\
# A tiny chapter

What is left when a chapter holds nothing but its form?

- **Goals**
  - double a number
  - draw a line
  - move a control
- **You need** nothing
- **Time** smoke 5 s, lite 5 s, full 5 s
- **Data and license** none
- **What you can touch** every cell"""

PARAMETERS = """\
PROFILE: str = "lite"  # smoke | lite | full
SEED: int = 0  # seeds python, numpy, torch
DEVICE: str = "auto"  # auto | cpu | cuda
OUT_DIR: str = "build/out/tiny"  # the only place this notebook writes to"""

START = """\
from matplotlib.figure import Figure

from reglib import field, workbook
from reglib.widgets import Slider

run = workbook.start(profile=PROFILE, seed=SEED, device=DEVICE, out=OUT_DIR)"""

RENDER = """\
def line(state):
    figure = Figure(figsize=(3, 3))
    figure.subplots().plot([0, state["height_mm"]])
    return figure


workbook.show(line({"height_mm": 1}), "A line that rises to 1 mm.")
workbook.explore(line, {"height_mm": Slider(0, 4, 1, unit="mm")})"""

CHECKS = """\
import torch

ddf = torch.ones(1, 2, 9, 7)
workbook.check("numbers", [1, 2], equals=[1, 2], hint="count again")
workbook.check("scale", run.scale(smoke=1, lite=2, full=3), within=(1, 3), hint="")
points = field.warp_points(torch.zeros(1, 1, 2), ddf)
workbook.check("direction", points.mean(), equals=1.0, hint="fixed to moving: x + ddf(x)")"""

DOUBLE = '''\
def {name}(x):
    """Return {times} times x."""
    {body}


workbook.exercise("{name}", {name}, lambda f: f(2) == {times} * 2, hint="how many are {times} of them?")'''

CLOSING = """\
## Summary
Form is what is left.

## Questions
1. Why?
2. Why not?
3. What else?

## Next
Nothing.

## References
- Author 2020, doi:10.1000/182"""


def exercise(name, times):
    """The stub cell and the solution cell of one exercise."""
    stub = DOUBLE.format(name=name, times=times, body="raise NotImplementedError")
    solution = DOUBLE.format(name=name, times=times, body=f"return {times} * x")
    folded = {"tags": ["solution"], "jupyter": {"source_hidden": True}}
    return [new_code_cell(stub, metadata={"tags": ["exercise"]}), new_code_cell(solution, metadata=folded)]


def chapter():
    """The notebook, without outputs."""
    cells = [
        new_markdown_cell(OPENING),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(START),
        new_code_cell(RENDER),
        new_markdown_cell("Now the formula: $y = 2x$."),
        new_code_cell(CHECKS, metadata={"tags": ["golden"]}),
        *exercise("double", 2),
        *exercise("triple", 3),
        new_markdown_cell(CLOSING),
        new_code_cell("run.versions()"),
    ]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:02d}"
    return new_notebook(cells=cells)


def write(folder, node=None, name="00_tiny"):
    """Write the notebook, or an edited one; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(chapter() if node is None else node, path)
    return path
