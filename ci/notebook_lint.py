"""What a chapter must look like, read from its file alone: `lint(path)` returns a sentence for each fault."""

from __future__ import annotations

import ast
import difflib
import io
import json
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat

from chapter import Notebook, exercise_faults, exercises, name_pattern, stamp, tags

TAGS = ("parameters", "golden", "exercise", "solution", "lesson")
NBVAL_MARKERS = ("NBVAL_CHECK_OUTPUT", "NBVAL_IGNORE_OUTPUT", "NBVAL_SKIP", "NBVAL_RAISES_EXCEPTION")
REQUIRED_PARAMETERS = ("PROFILE", "SEED", "DEVICE", "OUT_DIR")
CELL_LINES, LESSON_LINES, FUNCTION_LINES = 15, 25, 12
LARGEST_BYTES = 700_000
CHECKS, EXERCISES = 3, 2
OPENING = {"Goals": "Goals", "You need": "You need", "Time": "Time"}
OPENING |= {"Data and license": "Data and licen[cs]e", "What you can touch": "What you can touch"}
CLOSING = {"Summary": "Summary", "Questions": "(?:Three )?questions", "Next": "Next", "References": "References"}
FORBIDDEN = {
    r"\bsys\s*\.\s*path\b": "sys.path: reglib is installed, nothing needs adding",
    r"\bclear_output\b": "clear_output: let outputs stand, or use workbook.explore",
    r"^\s*%": "a magic: notebooks hold Python only (%matplotlib is not needed, workbook.show draws)",
    r"^\s*!": "a shell line: the environment is made by ci/start.py",
}
FOLDERS = "home|Users|root|tmp|usr|var|opt|mnt|media|srv|etc|work|private|data|content"
ABSOLUTE_PATH = re.compile(rf"(?<![\w.~:/-])/(?:{FOLDERS})/[\w.-]|\b[A-Za-z]:\\\\?\w")
REFERENCE = re.compile(r"\b10\.\d{4,9}/\S+|arxiv[:./]|https://", re.IGNORECASE)
FORMULA = re.compile(r"\$\$|(?<![\\$\w])\$(?![\s$])[^$\n]+(?<![\s\\])\$(?!\d)")
LIST_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+\S", re.MULTILINE)


# -- rules ------------------------------------------------------------------------------------------------------
Rule = Callable[[Notebook], Iterator[str]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Add a rule to those that `lint` applies."""
    RULES.append(function)
    return function


def lint(path: Path) -> list[str]:
    """Every fault of a notebook file, a sentence each."""
    try:
        notebook = Notebook.read(path)
    except Exception as error:
        return [f"cannot be read as a notebook: {type(error).__name__}: {error}"]
    return [fault for apply in RULES for fault in apply(notebook)]


@rule
def opening(notebook: Notebook) -> Iterator[str]:
    """Title with one question, and the five parts of the opening, before the first code cell."""
    first_code = notebook.code[0][0] if notebook.code else 0
    text = "\n\n".join(source for i, source in notebook.prose if i < first_code)
    if not text.startswith("# "):
        yield "opening: the first cell must start with a title, '# ...'"
    sections = _sections(text, OPENING, prefix=r"[ \t#>*|+-]*")
    for name in OPENING:
        if name not in sections:
            yield f"opening: no part named {name!r}"
    head = sections.get("", text)
    if head.count("?") != 1:
        yield f"opening: title and lead must hold one question; found {head.count('?')} question marks"
    goals = len(LIST_ITEM.findall(sections.get("Goals", "")))
    if "Goals" in sections and not 3 <= goals <= 5:
        yield f"opening: Goals must be a list of 3 to 5, each a verb; found {goals}"
    if "Time" in sections and any(profile not in sections["Time"] for profile in ("smoke", "lite", "full")):
        yield "opening: Time must say how long smoke, lite and full take"


@rule
def closing(notebook: Notebook) -> Iterator[str]:
    """Summary, three questions, Next, References under headings, and the versions last."""
    text = "\n\n".join(source for _, source in notebook.prose)
    sections = _sections(text, CLOSING, prefix=r"#{1,6}[ \t]+")
    for name in CLOSING:
        if name not in sections:
            yield f"closing: no heading {name!r}"
    found = [name for name in sections if name]
    if found != [name for name in CLOSING if name in found]:
        yield f"closing: the order is {', '.join(CLOSING)}"
    questions = len(LIST_ITEM.findall(sections.get("Questions", "")))
    if "Questions" in sections and questions != 3:
        yield f"closing: three questions, as a list; found {questions}"
    references = [line for line in sections.get("References", "").splitlines() if LIST_ITEM.match(line)]
    if "References" in sections and not references:
        yield "closing: References must be a list"
    for line in references:
        if not REFERENCE.search(line):
            yield f"closing: a reference without DOI, arXiv number or link: {line.strip()[:60]}"
    if not notebook.code or "run.versions()" not in notebook.code[-1][1].source:
        yield "closing: the last code cell must call run.versions()"


def _sections(text: str, names: dict[str, str], *, prefix: str) -> dict[str, str]:
    """Text by the named part it stands in, "" before the first; where a name comes twice, the last counts."""
    sections = {"": ""}
    current = ""
    for line in text.splitlines():
        for name, pattern in names.items():
            if heading := re.match(rf"{prefix}{pattern}\b", line, re.IGNORECASE):
                sections.pop(name, None)
                sections[name], current, line = "", name, line[heading.end() :]
        sections[current] += line + "\n"
    return sections


@rule
def known_tags(notebook: Notebook) -> Iterator[str]:
    """Only tags that mean something, each on the right kind of cell."""
    for i, cell in enumerate(notebook.node.cells, 1):
        for tag in tags(cell):
            if tag not in TAGS:
                near = difflib.get_close_matches(tag, TAGS, n=1)
                yield f"cell {i}: unknown tag {tag!r}" + (
                    f", did you mean {near[0]!r}?" if near else f"; known: {TAGS}"
                )
            elif cell.cell_type != "code":
                yield f"cell {i}: tag {tag!r} on a cell that is not code"
    if not any("golden" in tags(cell) for _, cell in notebook.code):
        yield "no cell is tagged golden: tag those that print only what no profile changes"


@rule
def parameters(notebook: Notebook) -> Iterator[str]:
    """The first code cell: typed literals with a comment each; the second: workbook.start."""
    tagged = [i for i, cell in notebook.code if "parameters" in tags(cell)]
    if not notebook.code or tagged != [notebook.code[0][0]]:
        yield "the first code cell, and no other, must be tagged parameters"
        return
    cell = notebook.code[0][1]
    tree = notebook.trees.get(tagged[0], ast.Module([], []))
    names = [_parameter_name(node) for node in tree.body]
    for node, name in zip(tree.body, names, strict=True):
        line = cell.source.splitlines()[node.lineno - 1]
        if name is None:
            yield f"parameters: not a typed literal, NAME: type = value: {line}"
        elif node.lineno != node.end_lineno or not re.search(r"#\s*\S", line[node.end_col_offset or 0 :]):
            yield f"parameters: {name} needs a comment at the end of its line"
        elif line.count("=") > 1:
            yield f"parameters: papermill does not see {name}: no second '=' on its line, nor in its comment"
    for name in REQUIRED_PARAMETERS:
        if name not in names:
            yield f"parameters: {name} is missing"
    if ("FIXED" in names) != ("MOVING" in names):
        yield "parameters: FIXED and MOVING come together"
    if 'PROFILE: str = "lite"' not in cell.source:
        yield 'parameters: PROFILE must be "lite", what a reader runs'
    following = notebook.code[1][1].source if len(notebook.code) > 1 else ""
    missing = [name for name in ("workbook.start(", *names) if name and name not in following]
    if missing:
        yield f"the cell after the parameters must derive everything: run = workbook.start(...); not used: {missing}"


def _parameter_name(node: ast.stmt) -> str | None:
    """The name, if the statement is an upper-case name with a type and a literal of that type."""
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
        return None
    try:
        value = ast.literal_eval(node.value)
    except ValueError:
        return None
    typed = type(value).__name__ == ast.unparse(node.annotation).split("[")[0]
    return node.target.id if typed and re.fullmatch(r"[A-Z][A-Z0-9_]*", node.target.id) else None


@rule
def cell_sizes(notebook: Notebook) -> Iterator[str]:
    """Few lines a cell and a function, more where the tag lesson says that the cell is the lesson."""
    for i, cell in notebook.code:
        if not cell.source.strip():
            yield f"cell {i}: an empty code cell"
            continue
        if i not in notebook.trees:
            yield f"cell {i}: does not parse as Python"
            continue
        lines = _code_lines(cell.source)
        lesson = "lesson" in tags(cell)
        if len(lines) > (LESSON_LINES if lesson else CELL_LINES):
            limit = f"{LESSON_LINES} in a lesson" if lesson else f"{CELL_LINES} ({LESSON_LINES} when tagged lesson)"
            yield f"cell {i}: {len(lines)} code lines; at most {limit}"
        for node in ast.walk(notebook.trees[i]):
            if isinstance(node, ast.FunctionDef) and not lesson:
                length = sum(node.lineno <= line <= (node.end_lineno or 0) for line in lines)
                if length > FUNCTION_LINES:
                    limit = f"at most {FUNCTION_LINES} outside a lesson"
                    yield f"cell {i}: function {node.name} has {length} lines; {limit}"


def _tokens(source: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(source).readline))


def _code_lines(source: str) -> set[int]:
    """The numbers of lines that hold code, without blank lines and comments."""
    layout = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    spans = [(t.start[0], t.end[0]) for t in _tokens(source) if t.type not in layout]
    return {line for start, end in spans for line in range(start, end + 1)}


@rule
def forbidden(notebook: Notebook) -> Iterator[str]:
    """No sys.path, shell lines, magics, clear_output or trailing semicolons; nbval markers on their own line."""
    for i, cell in notebook.code:
        for pattern, reason in FORBIDDEN.items():
            if re.search(pattern, cell.source, re.MULTILINE):
                yield f"cell {i}: {reason}"
        if i not in notebook.trees:
            continue
        tokens = [t for t in _tokens(cell.source) if t.type not in (tokenize.NL, tokenize.NEWLINE)]
        for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
            if token.string == ";" and (
                after is None or after.start[0] > token.start[0] or after.type == tokenize.COMMENT
            ):
                yield f"cell {i}: a trailing ';' (line {token.start[0]})"
            if token.type == tokenize.COMMENT and "nbval" in token.string.lower():
                alone = before is None or before.end[0] < token.start[0]
                if not alone or token.string.lstrip("#").strip() not in NBVAL_MARKERS:
                    yield (
                        f"cell {i}: {token.string!r} is nearly an nbval marker, and has no effect: a marker is a "
                        "comment line of its own. Use the tag golden instead."
                    )


@rule
def teaching(notebook: Notebook) -> Iterator[str]:
    """A figure before the first formula, and enough checks, exercises and controls."""
    figures = [i for name in ("show", "explore") for i, _ in notebook.calls(name)]
    figures += [i for i, text in notebook.prose if re.search(r"!\[[^\]]+\]\(", text)]
    formulas = [i for i, text in notebook.prose if FORMULA.search(re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S))]
    if formulas and (not figures or min(figures) > formulas[0]):
        yield f"cell {formulas[0]}: a formula before the first figure (workbook.show, workbook.explore or an image)"
    names = [name_pattern(call.args[0]) if call.args else "" for _, call in notebook.calls("check")]
    if len(names) < CHECKS:
        yield f"at least {CHECKS} calls of workbook.check; found {len(names)}"
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        yield f"checks of the same name overwrite each other: {repeated}"
    if len(exercises(notebook)) < EXERCISES:
        yield f"at least {EXERCISES} exercises with solutions; found {len(exercises(notebook))} complete"
    if not notebook.calls("explore"):
        yield "at least one workbook.explore"
    for i, text in notebook.prose:
        if re.search(r"!\[\s*\]\(", text):
            yield f"cell {i}: an image without alternative text"


@rule
def exercise_pairs(notebook: Notebook) -> Iterator[str]:
    """Stub, solution, and the proof that one is the other with holes."""
    for i, _ in notebook.code:
        for fault in exercise_faults(notebook, i):
            yield f"cell {i}: {fault}"


@rule
def links(notebook: Notebook) -> Iterator[str]:
    """Every relative link leads to a file."""
    for i, text in notebook.prose:
        for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
            file = target.split("#")[0]
            if file and not re.match(r"[a-z]+:", file) and not (notebook.path.parent / file).exists():
                yield f"cell {i}: a link to {file}, which does not exist"


@rule
def absolute_paths(notebook: Notebook) -> Iterator[str]:
    """No path of one machine, neither in what is written nor in what was printed."""
    for i, cell in enumerate(notebook.node.cells, 1):
        for place, text in (("source", cell.source), ("output", _printed(cell))):
            if found := ABSOLUTE_PATH.search(text):
                yield f"cell {i}: an absolute path in its {place}: {text[found.start() : found.start() + 40]!r}"


def _printed(cell: nbformat.NotebookNode) -> str:
    """All text among a cell's outputs, without pictures."""
    pieces = []
    for output in cell.get("outputs", []):
        data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
        pieces += [output.get("text", ""), json.dumps(data), "\n".join(output.get("traceback", []))]
    return "\n".join(pieces)


@rule
def format_version(notebook: Notebook) -> Iterator[str]:
    """Format 4.5 or later, in which cells have an id, so that differences between versions stay small."""
    if (notebook.node.nbformat, notebook.node.nbformat_minor) < (4, 5):
        yield f"format 4.{notebook.node.nbformat_minor}: write it as 4.5, with an id for each cell"


@rule
def stored_outputs(notebook: Notebook) -> Iterator[str]:
    """Outputs as `refresh` writes them, and of this source."""
    node = notebook.node
    written = node.metadata.get("reglib", {}).get("source_sha256")
    if written != stamp(node):
        state = "are older than the code" if written else "were not written by refresh"
        yield f"the stored outputs {state}: run python ci/notebooks.py refresh --only {notebook.path.stem[:2]}"
    size = notebook.path.stat().st_size
    if size > LARGEST_BYTES:
        yield f"{size // 1000} kB; at most {LARGEST_BYTES // 1000} kB: fewer or smaller figures"
    if "widgets" in node.metadata:
        yield "holds widget state, which GitHub refuses to show: run refresh"
    if [cell.execution_count for _, cell in notebook.code] != list(range(1, len(notebook.code) + 1)):
        yield "execution counts are not 1, 2, 3, ...: run refresh"
    for i, cell in notebook.code:
        yield from (f"cell {i}: {fault}" for output in cell.outputs for fault in output_faults(output))
        if "golden" in tags(cell) and not cell.outputs:
            yield f"cell {i}: tagged golden, but prints nothing"


def output_faults(output: nbformat.NotebookNode) -> Iterator[str]:
    """What must not be stored: errors, warnings, widgets, figures without alternative text."""
    if output.output_type == "error":
        yield f"an error in its output: {output.ename}: {output.evalue[:80]}"
    if output.output_type == "stream" and output.name == "stderr":
        yield f"a warning in its output: {output.text.strip()[:80]}"
    data = output.get("data", {})
    if any("widget" in kind for kind in data):
        yield "a widget in its output: run refresh"
    if "image/png" in data and not output.metadata.get("image/png", {}).get("alt"):
        yield "a figure without alternative text: use workbook.show(figure, caption)"
