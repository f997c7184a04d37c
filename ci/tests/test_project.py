"""The project itself: what it declares, what may import what, and that its documents say what is there."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(lines):
    """{canonical name: version bounds} of requirement strings."""
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(item.name): str(item.specifier) for item in parsed}


BASE = requirements(PROJECT["dependencies"])
TEST = requirements(EXTRAS["test"])


# -- dependencies ----------------------------------------------------------------------------------------
CONDA_NAMES = {
    "torch": "pytorch",
    "playwright": "playwright-python",
    "isal": "python-isal",
    "opencv-python-headless": "opencv",
}


def test_environment_yml_says_what_pyproject_says():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    found = requirements(line for line in listed if isinstance(line, str))
    expected = {CONDA_NAMES.get(name, name): bounds for name, bounds in (BASE | TEST).items()}
    assert found == expected | {"python": PROJECT["requires-python"], "pip": ""}


def test_constraints_pin_everything_that_is_declared():
    lines = (ROOT / "ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = requirements(line for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"==[\w.]+", bounds) for bounds in pins.values())
    declared = BASE | TEST | requirements(EXTRAS["cluster"])
    assert sorted(declared.keys() - pins.keys()) == []
    outside = [name for name, bounds in declared.items() if pins[name][2:] not in Requirement(name + bounds).specifier]
    assert outside == []


OPTIONAL = {"simpleitk", "onnxruntime", "onnxscript"}  # DICOM, NRRD and MHA; networks as ONNX; where installed
ALLOWED_PACKAGES = {"reglib": BASE.keys() | OPTIONAL, "ci": BASE.keys() | TEST.keys() | OPTIONAL}
ALLOWED_PACKAGES["data_scripts"] = BASE.keys()


@pytest.mark.parametrize("folder", ALLOWED_PACKAGES)
def test_what_is_imported_is_declared(folder):
    own = {"reglib", "data_scripts", *(path.stem for path in (ROOT / "ci").rglob("*.py")), "bench"}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in (ROOT / folder).rglob("*.py"):
        for name in {imported.split(".")[0] for imported in imports(path) if not imported.startswith(".")}:
            owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
            if name not in sys.stdlib_module_names | own and not owners & ALLOWED_PACKAGES[folder]:
                undeclared.add(f"{path.relative_to(ROOT)}: {name}")
    assert sorted(undeclared) == []


# -- imports -----------------------------------------------------------------------------------------------
def imports(path):
    """The modules that a file imports anywhere in it, relative ones with their leading dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add("." * node.level + node.module)
            found |= {"." * node.level + f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {"." * node.level + alias.name for alias in node.names}
    return found


# Which room may import which: arrows run one way, from the geometry at the top to what notebooks use.
GEOMETRY = {"grid", "filters", "field"}
ROOMS = {
    "grid": set(),
    "filters": {"grid"},
    "field": {"grid", "filters"},
    "transforms": GEOMETRY,
    "losses": GEOMETRY,
    "phantoms": GEOMETRY,
    "metrics": {"grid", "field"},
    "doctor": {"grid"},
    "io": {"grid", "field", "doctor"},
    "data": GEOMETRY | {"doctor", "io", "transforms"},
    "optimize": GEOMETRY | {"transforms"},
    "networks": GEOMETRY,
    "train": GEOMETRY | {"data", "io", "metrics", "networks"},
    "keypoints": {"filters", "field", "io", "train"},
    "plot": GEOMETRY | {"transforms", "metrics", "optimize"},
    "widgets": GEOMETRY | {"transforms", "metrics", "optimize", "plot"},
    "explorer": {"widgets", "plot"},
    "workbook": GEOMETRY
    | {"transforms", "metrics", "optimize", "plot", "widgets", "explorer", "phantoms", "doctor", "io"},
}
ROOMS["pipeline"] = set(ROOMS)  # what the command line does, as functions
ROOMS["preparation"] = GEOMETRY | {"data", "io", "pipeline", "transforms"}
ROOMS["monai_transforms"] = {"grid", "field", "optimize", "pipeline"}
ROOMS["vis"] = GEOMETRY | {"explorer", "io", "plot"}  # moving pictures of files
ROOMS["retina"] = {"io", "keypoints"}  # photographs of eyes, from files to files
ROOMS["config"] = {"data", "losses", "networks", "train"}
ROOMS["cli"] = set(ROOMS)


def room_of(path):
    """The room of a file: field.py and losses/image.py belong to field and losses."""
    return path.relative_to(ROOT / "reglib").parts[0].removesuffix(".py")


def imported_rooms(path):
    """The rooms that a file imports, its own left out."""
    package = ("reglib", *path.relative_to(ROOT / "reglib").parts[:-1])
    rooms = set()
    for name in imports(path):
        level = len(name) - len(name.lstrip("."))
        base = package[: len(package) - level + 1] if level else ()
        parts = (*base, *name.lstrip(".").split("."))
        if parts[0] == "reglib" and len(parts) > 1:
            rooms.add(parts[1])
    return rooms - {room_of(path)}


def sources():
    return [path for path in (ROOT / "reglib").rglob("*.py") if path != ROOT / "reglib" / "__init__.py"]


def test_the_table_of_rooms_has_no_circle_and_no_stale_row():
    list(TopologicalSorter(ROOMS).static_order())
    assert {room_of(path) for path in sources()} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_table(room):
    found = set().union(*(imported_rooms(path) for path in sources() if room_of(path) == room))
    assert sorted(found - ROOMS[room]) == []


def test_nothing_heavy_is_imported_before_it_is_used():
    python("import sys, reglib; reglib.__version__; print(*sys.modules)", unwanted=["torch", "monai", "nilearn"])


def test_help_imports_neither_torch_nor_monai():
    code = """
        import sys
        from reglib.cli import main
        sys.argv = ["reglib", "--help"]
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        assert not status, status
        print(*sys.modules)
    """
    python(code, unwanted=["torch", "monai"])


def python(code, unwanted):
    """Runs code that ends by printing sys.modules, and asserts that the unwanted ones are not among them."""
    lines = code.replace("\n        ", "\n").strip()
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(set(unwanted) & set(done.stdout.split())) == []


def test_submodules_load_when_first_used():
    import reglib

    assert set(reglib.__all__) <= {room_of(path) for path in sources()}
    assert set(reglib.__all__) <= set(dir(reglib))
    assert reglib.grid.Grid is not None
    with pytest.raises(AttributeError, match="has no attribute 'gird'; it has cli, data, field"):
        reglib.gird  # noqa: B018


# -- files ---------------------------------------------------------------------------------------------------
TOP_LEVEL = {
    "notebooks",
    "reglib",
    "data_scripts",
    "ci",
    ".ci",
    ".github",
    ".gitignore",
    ".pre-commit-config.yaml",
}
TOP_LEVEL |= {"README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "environment.yml", "pyproject.toml"}
# The look-behind keeps base64 pictures, addresses and relative paths out.
ABSOLUTE_PATH = re.compile(r"(?<![\w+/.~$}-])/(?:home|root|Users|work|tmp|opt|mnt)/\w|[A-Z]:\\\\?Users")
REGISTRY = re.compile(r"pypi[.]org|python[h]osted|npmjs[.]|anaconda[.]org|download[.]pytorch")


@pytest.fixture(scope="module")
def project_files():
    """Every file of the project that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if (ROOT / name).is_file()]


def test_the_top_level_holds_only_what_the_design_names(project_files):
    entries = {path.relative_to(ROOT).parts[0] for path in project_files}
    assert sorted(entries - TOP_LEVEL) == []


@pytest.mark.parametrize("pattern", [ABSOLUTE_PATH, REGISTRY], ids=["absolute path", "registry"])
def test_no_file_names_a_machine(project_files, pattern):
    found = []
    for path in project_files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []


# "|" stands for the separator, so that this file does not name a machine itself.
@pytest.mark.parametrize("text", ['"|home|ada|x"', "open(|tmp|x)"])
def test_absolute_paths_are_recognized(text):
    assert ABSOLUTE_PATH.search(text.replace("|", "/"))


def test_windows_paths_are_recognized():
    assert ABSOLUTE_PATH.search("C:|Users|x".replace("|", "\\"))


@pytest.mark.parametrize("text", ["build/tmp/x", "https://example.org/home/x", "AAA/tmp/BBB", "../shared/tmp/x"])
def test_other_paths_are_not(text):
    assert not ABSOLUTE_PATH.search(text)


# -- documents -----------------------------------------------------------------------------------------------
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(set(re.findall(r"python3 (ci/\w+\.py)", README)))
COMMANDS = sorted(set(re.findall(r"^reglib (\w+)", README, re.MULTILINE)))


def test_the_readme_names_both_commands_and_the_command_line():
    assert SCRIPTS == ["ci/start.py", "ci/test.py"]
    assert len(COMMANDS) == 9


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_readme_commands_take_the_options_it_names(script):
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in README.splitlines() if script in line]
    for option in re.findall(r"--[a-z-]+", " ".join(lines)):
        assert option in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_subcommands_exist(command):
    code = "import sys; from reglib.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, command, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


# -- what the tests stand on -----------------------------------------------------------------------------
def test_jaxtyping_checks_reglib_and_can_be_switched_off(request):
    import jaxtyping
    import torch

    import reglib

    ddf = torch.zeros(1, 8, 9, 2)  # channels last
    with pytest.raises(jaxtyping.TypeCheckError):
        reglib.field.warp("not an image", ddf)
    request.getfixturevalue("no_jaxtyping")
    with pytest.raises(ValueError, match="Channels last"):
        reglib.field.warp(torch.zeros(1, 1, 8, 9), ddf)


def test_torch_computes_on_one_thread():
    import torch

    assert torch.get_num_threads() == 1
