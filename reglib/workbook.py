"""What every notebook needs: a start, checks, exercises, controls to move, figures to keep.

`start` comes first: it makes the run that `check` and `show` write to. `REGLIB_EXERCISES=strict` makes an
exercise that is not solved yet an error; for `REGLIB_WIDGETS` see `explorer`.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .explorer import PALETTE, display_picture, draw, encode, explore
from .widgets import Number

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor

    from .grid import Grid
    from .phantoms import Truth

__all__ = ["CheckFailed", "ImagePair", "Run", "check", "exercise", "expect", "explore", "show", "start"]

PROFILES = ("smoke", "lite", "full")
DEVICES = ("auto", "cpu", "cuda")
BUNDLED = {"brain": {"smoke": ((32,) * 3, 6.0), "lite": ((80, 96, 80), 2.25), "full": ((160, 192, 160), 1.125)}}
PACKAGES = ("torch", "numpy", "scipy", "matplotlib", "monai", "nibabel", "nilearn", "ipywidgets")
T = TypeVar("T")

_runs: list[Run] = []  # the run that `start` made last


class CheckFailed(AssertionError):
    """A check or exercise that does not hold; its message says what was found and wanted, and a hint."""


# -- start ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ImagePair:
    """Two images to register and what is known of them: for the reader's own, no labels and no truth."""

    fixed: Tensor
    moving: Tensor
    grid: Grid
    moving_grid: Grid
    fixed_labels: Tensor | None = None
    moving_labels: Tensor | None = None
    truth: Truth | None = None


def _of_pair(name: str, meaning: str) -> Any:
    return property(lambda run: getattr(run.pair, name), doc=meaning)


@dataclass
class Run:
    """What `start` derives from the parameters. The images are made when they are first asked for.

    Attributes: folder: the reader's own data set, if one was named.
    """

    profile: str
    seed: int
    device: torch.device
    out: Path
    data: str
    own: ImagePair | None
    folder: Path | None = None

    fixed = _of_pair("fixed", "The fixed image, (1, 1, *s) in [0, 1], on `grid`.")
    moving = _of_pair("moving", "The moving image, (1, 1, *t) in [0, 1], on `moving_grid`.")
    grid = _of_pair("grid", "Where the fixed image's voxels are.")
    moving_grid = _of_pair("moving_grid", "Where the moving image's voxels are.")
    fixed_labels = _of_pair("fixed_labels", "Labels on `grid`; None for the reader's own images.")
    moving_labels = _of_pair("moving_labels", "Labels on `moving_grid`; None for the reader's own images.")
    truth = _of_pair("truth", "The exact map between the two; None for the reader's own images.")

    @property
    def own_data(self) -> bool:
        """Whether the reader named two files of their own."""
        return self.own is not None

    def scale(self, *, smoke: T, lite: T, full: T) -> T:
        """The number that this profile uses."""
        return {"smoke": smoke, "lite": lite, "full": full}[self.profile]

    @cached_property
    def pair(self) -> ImagePair:
        """Both images and what is known of them, on this run's device."""
        from . import phantoms

        if self.own is not None:
            return replace(self.own, fixed=self.own.fixed.to(self.device), moving=self.own.moving.to(self.device))
        shape, spacing = BUNDLED[self.data][self.profile]
        pair = phantoms.brain_cohort(2, seed=self.seed, shape=shape, spacing=spacing).pair()
        images = (pair.fixed, pair.moving, pair.fixed_labels, pair.moving_labels)
        fixed, moving, fixed_labels, moving_labels = (image.to(self.device) for image in images)
        return ImagePair(fixed, moving, pair.fixed_grid, pair.moving_grid, fixed_labels, moving_labels, pair.truth)

    def versions(self) -> None:
        """Print the versions that this notebook ran with."""
        from importlib.metadata import version

        print(f"python {sys.version.split()[0]}")
        for name in PACKAGES:
            print(name, version(name))


def start(
    *,
    profile: str,
    seed: int,
    device: str,
    out: str | Path,
    fixed: str | Path = "",
    moving: str | Path = "",
    data: str = "brain",
    folder: str | Path = "",
) -> Run:
    """Seed everything, choose the device, make the output folder, and derive the rest from the parameters.

    Args:
        out, fixed, moving, folder: relative paths start at the folder that holds pyproject.toml.
        data: the bundled pair, made when it is first asked for; `fixed` and `moving` replace it.
        folder: the reader's own data set, for chapters that are about many scans.

    Raises: ValueError in one sentence for a parameter that is not known or a pair that does not fit.
    """
    import numpy as np
    import torch

    _one_of("PROFILE", profile, PROFILES)
    _one_of("DEVICE", device, DEVICES)
    _one_of("data", data, tuple(BUNDLED))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError('DEVICE is "cuda", but torch finds no GPU here. Use "auto" or "cpu".')
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for what still draws from numpy's global generator
    torch.manual_seed(seed)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    root = repository_root()
    written = _as_seen_from_here(root / Path(out).expanduser(), root)
    try:
        _write_atomically(written / "checks.json", b"[]\n")
    except OSError as error:
        raise ValueError(f"OUT_DIR must be a folder that can be written; got {out}: {error.strerror}.") from error
    own = _own_pair(root, fixed, moving)
    run = Run(profile, seed, torch.device(chosen), written, data, own, _own_folder(root, folder))
    _runs[:] = [run]
    print(f"workbook ready: profile {profile}, seed {seed}, {chosen}")
    return run


def _as_seen_from_here(folder: Path, root: Path) -> Path:
    """A folder of the repository as a relative path, so that printed paths name no machine."""
    return Path(os.path.relpath(folder)) if folder.is_relative_to(root) else folder


def repository_root() -> Path:
    """The nearest folder upwards that holds a pyproject.toml; the current one if there is none."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "pyproject.toml").is_file()), here)


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(
            f"{name} must be {', '.join(known[:-1])}{' or ' * (len(known) > 1)}{known[-1]}; got {value!r}."
        )


def _own_pair(root: Path, fixed: str | Path, moving: str | Path) -> ImagePair | None:
    if not str(fixed) and not str(moving):
        return None
    if not str(fixed) or not str(moving):
        given, absent = ("FIXED", "MOVING") if str(fixed) else ("MOVING", "FIXED")
        raise ValueError(f"{given} is given but {absent} is empty. Name both images, or neither for the bundled pair.")
    (f, f_grid), (m, m_grid) = (_own_image(root / Path(path).expanduser()) for path in (fixed, moving))
    if f.ndim != m.ndim:
        raise ValueError(
            f"FIXED and MOVING must have the same rank; got {f.ndim - 2}-D {tuple(f.shape[2:])} and "
            f"{m.ndim - 2}-D {tuple(m.shape[2:])}. Take a slice of the larger one first."
        )
    return ImagePair(f, m, f_grid, m_grid)


def _own_folder(root: Path, folder: str | Path) -> Path | None:
    if not str(folder):
        return None
    path = root / Path(folder).expanduser()
    if not path.is_dir():
        what = "a file" if path.exists() else "not there"
        raise ValueError(f"FOLDER must be the folder of a data set, or empty for a stand-in; {folder} is {what}.")
    return _as_seen_from_here(path, root)


def _own_image(path: Path) -> tuple[Tensor, Grid]:
    """Print the doctor's report, then the image, scaled to [0, 1], and its grid."""
    from . import io as files

    print(files.doctor(path))
    image, grid = files.load_image(path)
    if image.shape[1] != 1:
        raise ValueError(
            f"{path.name} must hold one gray channel; it holds {image.shape[1]}. Choose one of them first."
        )
    finite = image[image.isfinite()]
    low, high = finite.min(), finite.max()
    return (image - low) / (high - low).clamp_min(1e-12), grid


def _current_run() -> Run:
    if not _runs:
        raise RuntimeError("call run = workbook.start(...) first; it says where checks and figures are written.")
    return _runs[0]


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


# -- checks and exercises ------------------------------------------------------------------------------------
def check(
    name: str,
    value: Any,
    *,
    below: Number | None = None,
    above: Number | None = None,
    within: tuple[Number, Number] | None = None,
    equals: Any = None,
    hint: str = "",
) -> None:
    """Print `PASS name` if the value keeps its one bound, else raise CheckFailed; both go to checks.json.

    `equals` takes numbers, words and sequences of them; floats may differ by a millionth. NaN keeps no bound.
    """
    bounds = {"below": below, "above": above, "within": within, "equals": equals}
    given = {kind: bound for kind, bound in bounds.items() if bound is not None}
    if len(given) != 1:
        raise TypeError(f"check {name!r} needs one of below, above, within, equals; got {', '.join(given) or 'none'}.")
    ((kind, bound),) = given.items()
    value, bound = _plain(value), _plain(bound)
    if kind != "equals" and not isinstance(value, int | float):
        raise TypeError(f"check {name!r} needs one number for {kind}; got {value!r}. Take its mean or maximum first.")
    passed = _holds(kind, value, bound)
    _record({"name": name, "value": value, "bound": f"{kind} {bound}", "passed": passed})
    if not passed:
        raise _failure(f"{name} is {_short(value)}, but should be {_WORDS[kind]} {bound}.", hint)
    print(f"PASS {name}")


_WORDS = {"below": "below", "above": "above", "within": "within", "equals": "equal to"}


def _holds(kind: str, value: Any, bound: Any) -> bool:
    if kind == "equals":
        return _same(value, bound)
    if kind == "within":
        return bool(bound[0] <= value <= bound[1])
    return bool(value < bound if kind == "below" else value > bound)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        numbers = isinstance(a, int | float) and isinstance(b, int | float)
        return numbers and math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6)
    return bool(a == b)


def _plain(value: Any) -> Any:
    """Tensors, arrays and tuples as numbers and lists, for comparison and for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def _record(entry: dict[str, Any]) -> None:
    """Add a check to checks.json; one that was run again replaces its earlier self."""
    path = _current_run().out / "checks.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    entries = [e for e in entries if e["name"] != entry["name"]] + [entry]
    _write_atomically(path, (json.dumps(entries, indent=1, default=str) + "\n").encode())


def expect(call: Callable[[], Any], error: type[BaseException], *, hint: str = "") -> None:
    """Assert that the call raises this error, and print the error's sentence."""
    try:
        call()
    except error as raised:
        print(f"{type(raised).__name__}: {raised}")
    except Exception as other:
        raise _failure(f"expected {error.__name__}, got {type(other).__name__}: {other}", hint) from other
    else:
        raise _failure(f"expected {error.__name__}, but nothing was raised.", hint)


def _failure(sentence: str, hint: str) -> CheckFailed:
    return CheckFailed(f"{sentence} Hint: {hint}" if hint else sentence)


def exercise(name: str, function: Callable[..., Any], check: Callable[[Any], Any], hint: str) -> None:
    """Grade a function that the reader writes.

    Prints `PASS exercise name` if `check(function)` is not false and raises nothing; `TODO name: hint` while the
    function is still a stub (an error if REGLIB_EXERCISES=strict).

    Raises: CheckFailed with the hint for a wrong solution.
    """
    try:
        passed = check(function)
    except Exception as error:
        if not _is_stub(function, error):
            raise _failure(f"exercise {name}: {type(error).__name__}: {error}", hint) from error
        if os.environ.get("REGLIB_EXERCISES") == "strict":
            raise _failure(f"exercise {name} is not solved yet.", hint) from error
        print(f"TODO {name}: {hint}")
        return
    if passed is not None and not passed:
        raise _failure(f"exercise {name}: the result is not right yet.", hint)
    print(f"PASS exercise {name}")


def _is_stub(function: Callable[..., Any], error: Exception) -> bool:
    # torch raises NotImplementedError too, for dtypes it cannot handle: the function itself must name it.
    code = getattr(function, "__code__", None)
    return isinstance(error, NotImplementedError) and "NotImplementedError" in getattr(code, "co_names", ())


# -- figures -------------------------------------------------------------------------------------------------
def show(figure: Figure, caption: str) -> None:
    """Display a figure with its caption, which is its alternative text too; save it in OUT_DIR/figures."""
    folder = _current_run().out / "figures"
    picture = encode(draw(figure), colors=PALETTE)
    words = re.sub(r"[^a-z0-9]+", "_", caption.lower()).strip("_")
    _write_atomically(folder / f"{words[:60] or 'figure'}.png", picture)
    display_picture(picture, caption)
