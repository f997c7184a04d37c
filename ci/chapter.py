"""A notebook file and what it holds: its checks, its exercises, the stamp of its source. Nothing here runs a cell."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@dataclass(frozen=True)
class Notebook:
    """A notebook file and the parts of it that rules ask for."""

    path: Path
    node: nbformat.NotebookNode

    @classmethod
    def read(cls, path: Path) -> Notebook:
        """Read a file of format 4."""
        return cls(path, nbformat.read(path, as_version=4))

    @property
    def code(self) -> list[tuple[int, nbformat.NotebookNode]]:
        """The code cells, each with its number, counted from 1 over all cells."""
        return [(i, cell) for i, cell in enumerate(self.node.cells, 1) if cell.cell_type == "code"]

    @property
    def prose(self) -> list[tuple[int, str]]:
        """The Markdown cells, numbered likewise."""
        return [(i, cell.source) for i, cell in enumerate(self.node.cells, 1) if cell.cell_type == "markdown"]

    @cached_property
    def trees(self) -> dict[int, ast.Module]:
        """The syntax tree of each code cell that parses."""
        trees = {}
        for i, cell in self.code:
            try:
                trees[i] = ast.parse(cell.source)
            except SyntaxError:
                continue
        return trees

    def calls(self, function: str) -> list[tuple[int, ast.Call]]:
        """Every call of `workbook.function`, with its cell's number."""
        found = []
        for i, tree in self.trees.items():
            found += [(i, node) for node in ast.walk(tree) if is_call(node, function)]
        return found


def is_call(node: ast.AST, function: str) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return node.func.attr == function and isinstance(node.func.value, ast.Name) and node.func.value.id == "workbook"


def tags(cell: nbformat.NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def stamp(node: nbformat.NotebookNode) -> str:
    """SHA-256 of the code cells and their tags: what outputs depend on. Prose may change without a refresh."""
    cells = [[tags(cell), cell.source] for cell in node.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def parameter(notebook: Notebook, name: str) -> Any:
    """The literal that the parameters cell gives a name; None if it does not."""
    for i, cell in notebook.code:
        for node in notebook.trees[i].body if "parameters" in tags(cell) and i in notebook.trees else []:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and node.value is not None:
                return ast.literal_eval(node.value)
    return None


def check_patterns(notebook: Notebook) -> list[str]:
    """A regular expression for the name of each check that runs on the bundled data.

    A check in the branch of an `if` that only the reader's own data take is not expected to run.
    """
    optional: set[ast.AST] = set()
    for tree in notebook.trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and (bundled := _when_bundled(node.test)) is not None:
                skipped = node.orelse if bundled else node.body
                optional |= {inner for statement in skipped for inner in ast.walk(statement)}
    names = [call.args[0] for _, call in notebook.calls("check") if call not in optional and call.args]
    return [pattern for pattern in map(name_pattern, names) if pattern]


def _when_bundled(test: ast.expr) -> bool | None:
    """What a condition is for the bundled pair, which has a truth; None if it does not ask for that."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _when_bundled(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.Compare) and ast.unparse(test.comparators[0]) == "None":
        inner = _when_bundled(test.left)
        return inner if isinstance(test.ops[0], ast.IsNot) or inner is None else not inner
    known = {"truth": True, "fixed_labels": True, "moving_labels": True}
    known |= {"own_data": False, "FIXED": False, "MOVING": False}
    return known.get(ast.unparse(test).removeprefix("run."))


def name_pattern(name: ast.expr) -> str:
    parts = name.values if isinstance(name, ast.JoinedStr) else [name]
    return "".join(re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".+" for p in parts)


@dataclass(frozen=True)
class Exercise:
    """A stub cell and the solution cell after it, by their numbers, with the name and hint of their call."""

    stub: int
    solution: int
    name: str
    hint: str


def exercises(notebook: Notebook) -> list[Exercise]:
    """The exercise pairs that are complete; `lint` says what is wrong with the others."""
    pairs = []
    for i, _ in notebook.code:
        if not list(exercise_faults(notebook, i)) and "exercise" in tags(notebook.node.cells[i - 1]):
            call = _exercise_call(notebook.trees[i])
            assert call is not None
            pairs.append(Exercise(i, i + 1, _argument(call, 0, "name"), _argument(call, 3, "hint")))
    return pairs


def _exercise_call(tree: ast.Module) -> ast.Call | None:
    calls = [node for node in ast.walk(tree) if is_call(node, "exercise")]
    return calls[0] if len(calls) == 1 else None


def _argument(call: ast.Call, position: int, keyword: str) -> Any:
    """The literal given for an argument; None if there is none."""
    values = call.args[position : position + 1] + [k.value for k in call.keywords if k.arg == keyword]
    try:
        return ast.literal_eval(values[0])
    except (IndexError, ValueError):
        return None


def exercise_faults(notebook: Notebook, number: int) -> Iterator[str]:
    """What keeps an exercise cell and the cell after it from being a stub and its solution."""
    cells = notebook.node.cells
    if "exercise" not in tags(cells[number - 1]):
        if "solution" in tags(cells[number - 1]) and (number < 2 or "exercise" not in tags(cells[number - 2])):
            yield "a solution must directly follow its exercise"
        return
    if number == len(cells) or "solution" not in tags(cells[number]):
        yield "an exercise must be followed directly by its solution (tag solution)"
        return
    if number not in notebook.trees or number + 1 not in notebook.trees:
        return
    stub, solution = notebook.trees[number], notebook.trees[number + 1]
    stub_call, solution_call = _exercise_call(stub), _exercise_call(solution)
    if stub_call is None or solution_call is None:
        yield "exercise and solution must each call workbook.exercise once"
        return
    if ast.dump(stub_call) != ast.dump(solution_call):
        yield "exercise and solution must make the same call of workbook.exercise"
    if not all(isinstance(_argument(stub_call, *argument), str) for argument in ((0, "name"), (3, "hint"))):
        yield "the name and the hint of an exercise must be written as strings"
    if not cells[number].metadata.get("jupyter", {}).get("source_hidden"):
        yield 'the solution must be folded: metadata {"jupyter": {"source_hidden": true}}'
    yield from _hole_faults(stub, solution)


def _hole_faults(stub: ast.Module, solution: ast.Module) -> Iterator[str]:
    """Prove that the stub is the solution with holes: same signature and docstring, statements left out."""
    found = [[n for n in tree.body if isinstance(n, ast.FunctionDef)] for tree in (stub, solution)]
    if len(found[0]) != 1 or len(found[1]) != 1:
        yield "exercise and solution must each define one function"
        return
    hole, whole = found[0][0], found[1][0]
    if hole.name != whole.name or ast.dump(hole.args) != ast.dump(whole.args):
        yield f"stub {hole.name} and solution {whole.name} must have the same name and arguments"
    if not ast.get_docstring(hole) or ast.get_docstring(hole) != ast.get_docstring(whole):
        yield f"stub and solution of {hole.name} must have the same docstring"
    *kept, last = [ast.dump(statement) for statement in hole.body[1:]] or [""]
    if "NotImplementedError" not in last or "Raise(" not in last:
        yield f"the stub {hole.name} must end with raise NotImplementedError"
    rest = iter([ast.dump(statement) for statement in whole.body[1:]])
    if not all(statement in rest for statement in kept):
        yield f"the stub {hole.name} holds statements that its solution does not"
    if "NotImplementedError" in ast.dump(whole):
        yield f"the solution of {whole.name} still raises NotImplementedError"
