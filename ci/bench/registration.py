"""Registers pairs of brains with `reglib register` and with the established tools, and compares what they found.

python ci/bench/registration.py                        8 pairs of the strongly deformed 3-D cohort, whose map is known
python ci/bench/registration.py --quick                2 small pairs, within ten minutes on two cores
python ci/bench/registration.py --fixed A.nii.gz --moving B.nii.gz --fixed-labels AL.nii.gz --moving-labels BL.nii.gz
python ci/bench/registration.py --only fast ants --peer-path ants=FOLDER

Every method runs in a process of its own with equal threads and its package's documented settings, untuned. Times are
of whole processes, start and files included, and where a tool can be asked of its registration alone. A tool that does
not import, fails or takes too long is a row that says so. Writes build/bench/registration.{md,json,png}.

Folders with packages that are not in this environment are named by --peer-path, for all tools or for NAME=FOLDER, or
by REGLIB_PEERS, the same separated as in PATH. The site-packages of any virtual environment is one. (`pip install -t`
makes one too, but not of itk-elastix, whose wheels share a folder: the last one written wins.)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reglib import field, io, metrics, phantoms
from reglib.grid import Axes
from reglib.pipeline import Case, load_case

if __package__:
    from . import peers
else:
    import peers

ROOT = Path(__file__).resolve().parents[2]
PEERS_FILE = Path(__file__).with_name("peers.py")
COMMAND_LINE = "import sys; from reglib.cli import main; sys.exit(main())"
THREADS = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
STRONG_MM = 8.0  # how far the smooth part of a subject's map moves its brain on average
MEASURES = {  # of a row, with the heads of their columns and how to print them
    "dice": ("Dice", ".3f"),
    "hd95_mm": ("HD95 mm", ".2f"),
    "tre_mm": ("TRE mm", ".2f"),
    "folded_percent": ("folded %", ".3g"),
    "std_log_jacobian": ("SD log J", ".2f"),
    "whole_s": ("s whole", ".1f"),
    "alone_s": ("s alone", ".1f"),
    "peak_mb": ("peak MB", ".0f"),
}


@dataclass(frozen=True)
class Method:
    """One way to register: a command for (inputs, out), and how to read what it left in `out`.

    Args:
        command: the words of a command that registers the files in the first folder and writes into the second.
        read: gives the ddf on the case's fixed grid and the seconds of the registration alone, if it is known.
        absent: why it cannot be run here, or nothing.
    """

    name: str
    title: str
    settings: str
    command: Callable[[Path, Path], list[str]]
    read: Callable[[Path, Case], tuple[Tensor, float | None]]
    folders: tuple[str, ...] = ()
    version: str = ""
    absent: str = ""


@dataclass(frozen=True)
class Row:
    """What one method did on one pair; a note says why there are no figures."""

    method: str
    pair: str
    dice: float | None = None
    hd95_mm: float | None = None
    tre_mm: float | None = None
    folded_percent: float | None = None
    std_log_jacobian: float | None = None
    whole_s: float | None = None
    alone_s: float | None = None
    peak_mb: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Limits:
    """How a method may run."""

    timeout_s: float = 1800.0
    threads: int = 2


# -- the pairs -----------------------------------------------------------------------------------------------------
def cohort_cases(count: int, *, shape: Sequence[int], spacing: float, seed: int = 0) -> Iterator[tuple[str, Case]]:
    """Pairs of neighbors in a ring of brains, with labels and landmarks."""
    cohort = phantoms.brain_cohort(max(count, 2), seed=seed, shape=shape, spacing=spacing, strength_mm=STRONG_MM)
    for k in range(count):
        pair = cohort.pair(k, (k + 1) % max(count, 2))
        truth = pair.truth
        case = Case(
            pair.fixed, pair.moving, pair.fixed_grid, pair.moving_grid, pair.fixed_labels, pair.moving_labels,
            truth.fixed_points, truth.moving_points, None, None, (),
        )  # fmt: skip
        yield f"brains {k}-{(k + 1) % max(count, 2)}", case


def file_cases(
    fixed: Sequence[Path], moving: Sequence[Path], fixed_labels: Sequence[Path], moving_labels: Sequence[Path]
) -> Iterator[tuple[str, Case]]:
    """Pairs from files; labels for all of them or for none.

    Raises: ValueError if there are not as many of each, or if an image is not 3-D.
    """
    lengths = {len(fixed), len(moving), *(len(labels) for labels in (fixed_labels, moving_labels) if labels)}
    if len(lengths) != 1 or bool(fixed_labels) != bool(moving_labels):
        raise ValueError(
            "give as many files after --fixed, --moving and, for all pairs or none, --fixed-labels and "
            f"--moving-labels; got {len(fixed)}, {len(moving)}, {len(fixed_labels)} and {len(moving_labels)}."
        )
    for k, (f, m) in enumerate(zip(fixed, moving, strict=True)):
        known = {"fixed_labels": fixed_labels[k], "moving_labels": moving_labels[k]} if fixed_labels else {}
        case = load_case(f, m, **known)
        if case.fixed_grid.dim != 3:
            raise ValueError(f"the tools compared here register volumes; {f} is {case.fixed_grid.dim}-D.")
        yield f"{f.name} {m.name}", case


def write_inputs(case: Case, folder: Path) -> Path:
    """The images of a case as files, the moving one also on the fixed grid, through the headers."""
    folder.mkdir(parents=True)
    io.save_image(folder / peers.FIXED, case.fixed, case.fixed_grid)
    io.save_image(folder / peers.MOVING, case.moving, case.moving_grid)
    resampled = field.resample(case.moving, case.moving_grid, case.fixed_grid)
    io.save_image(folder / peers.MOVING_ON_FIXED, resampled, case.fixed_grid)
    return folder


# -- the methods ---------------------------------------------------------------------------------------------------
def own_method(quality: str, threads: int) -> Method:
    """`reglib register` as anybody would call it."""

    def command(inputs: Path, out: Path) -> list[str]:
        files = [str(inputs / name) for name in (peers.FIXED, peers.MOVING)]
        options = ["--quality", quality, "--device", "cpu", "--threads", str(threads)]
        return [sys.executable, "-c", COMMAND_LINE, "register", *files, "-o", str(out / "result"), *options]

    settings = f"reglib register --quality {quality}; s alone holds the writing of its files"
    return Method(quality, f"reglib {quality}", settings, command, read_own, version=_version("reglib"))


def read_own(out: Path, case: Case) -> tuple[Tensor, float | None]:
    ddf, grid = io.load_ddf(out / "result" / "ddf.nii.gz")
    if grid != case.fixed_grid:
        raise ValueError(f"the ddf is on {grid}, not on the fixed grid {case.fixed_grid}.")
    seconds = json.loads((out / "result" / "metrics.json").read_text(encoding="utf-8"))["seconds"]
    return ddf, float(seconds)


def peer_method(name: str, folders: Sequence[str]) -> Method:
    """A tool of `peers.py`, after a look at whether it can be imported."""
    peer = peers.PEERS[name]
    words = [sys.executable, "-P", str(PEERS_FILE)]
    done = subprocess.run(
        [*words, "probe", name], env=environment(folders, 1), capture_output=True, text=True, check=False
    )
    found: dict[str, str] = {"reason": _last_line(done.stderr) or f"exit status {done.returncode}"}
    if done.returncode == 0 and done.stdout.strip():
        found = json.loads(done.stdout.splitlines()[-1])
    return Method(
        name,
        peer.title,
        peer.settings,
        lambda inputs, out: [*words, "run", name, str(inputs), str(out)],
        read_peer,
        folders=tuple(folders),
        version=found.get("version", ""),
        absent=f"not installed: {found['reason']}" if "reason" in found else "",
    )


def read_peer(out: Path, case: Case) -> tuple[Tensor, float | None]:
    outcome = json.loads((out / "outcome.json").read_text(encoding="utf-8"))
    return convert(np.load(out / "field.npy"), outcome["unit"], case), float(outcome["seconds"])


def convert(array: np.ndarray, unit: str, case: Case) -> Tensor:
    """A peer's field (X, Y, Z, 3) as a ddf of this library, (1, 3, X, Y, Z) voxels of the fixed grid.

    Args: unit: lps_mm as ITK has it, ras_mm, or voxel.
    Raises: ValueError for another shape or unit, or values that are not finite.
    """
    grid = case.fixed_grid
    if array.shape != (*grid.shape, 3):
        raise ValueError(f"the field must be {(*grid.shape, 3)}; got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError("the field holds NaN or infinity.")
    ddf = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)).movedim(-1, 0)[None]
    if unit == "voxel":
        return ddf.float()
    if unit == "lps_mm":
        ddf = ddf * torch.tensor([-1.0, -1.0, 1.0], dtype=ddf.dtype).reshape(1, 3, 1, 1, 1)
    elif unit != "ras_mm":
        raise ValueError(f"a field is in lps_mm, ras_mm or voxel; got {unit}.")
    return field.convert_ddf(ddf, grid, to=Axes.VOXEL, from_=Axes.WORLD).float()


def environment(folders: Sequence[str], threads: int) -> dict[str, str]:
    """The environment of a method's process: its own packages and so many threads."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    paths = {"PYTHONPATH": os.pathsep.join(folders)} if folders else {}
    return own | paths | dict.fromkeys(THREADS, str(threads))


# -- one run -------------------------------------------------------------------------------------------------------
def run_method(method: Method, case: Case, inputs: Path, *, pair: str, limits: Limits) -> Row:
    """Run a method on a pair and measure what it found; never raises for what a method does."""
    row = Row(method.name, pair)
    if method.absent:
        return replace(row, note=method.absent)
    out = inputs / method.name
    out.mkdir()
    watcher = [sys.executable, "-P", str(PEERS_FILE), "watch", str(out), str(limits.timeout_s)]
    own = environment(method.folders, limits.threads)
    subprocess.run([*watcher, *method.command(inputs, out)], env=own, cwd=ROOT, check=True)
    watched = json.loads((out / "watched.json").read_text(encoding="utf-8"))
    if watched["status"] is None:
        return replace(row, note=f"timed out after {limits.timeout_s:g} s")
    row = replace(row, whole_s=watched["seconds"], peak_mb=watched["peak_mb"])
    if watched["status"] != 0:
        log = (out / "log.txt").read_text(encoding="utf-8", errors="replace")
        return replace(row, note=f"failed: {_last_line(log) or 'no word'} (exit status {watched['status']})")
    try:
        ddf, alone = method.read(out, case)
        return replace(row, alone_s=alone, **measure(case, ddf))
    except (OSError, ValueError, KeyError) as error:
        return replace(row, note=f"failed: its result cannot be used: {error}".splitlines()[0])


def measure(case: Case, ddf: Tensor) -> dict[str, float | None]:
    """Every measure of a map; None where the case has no labels or landmarks."""
    grids = field.Grids(moving_grid=case.moving_grid, fixed_grid=case.fixed_grid)
    inside = (case.fixed > 0).any(dim=1, keepdim=True)
    jacobian = metrics.jacobian_statistics(ddf, mask=inside if bool(inside.any()) else None)
    found: dict[str, float | None] = {
        "folded_percent": 100 * jacobian["folding_fraction"],
        "std_log_jacobian": jacobian["std_log_jacobian"],
    }
    if case.fixed_labels is not None and case.moving_labels is not None:
        warped = field.warp_labels(case.moving_labels, ddf, method="nearest", **grids)
        wanted = metrics.present_labels(case.fixed_labels, case.moving_labels)
        dice = metrics.dice(warped, case.fixed_labels, labels=wanted)
        hd95 = metrics.hausdorff(warped, case.fixed_labels, spacing=case.fixed_grid.spacing, labels=wanted)
        found |= {"dice": _mean(dice.values()), "hd95_mm": _mean(hd95.values())}
    if case.fixed_points is not None and case.moving_points is not None:
        errors = metrics.tre(ddf, case.fixed_points, case.moving_points, fixed_grid=case.fixed_grid)
        found["tre_mm"] = float(errors.mean())
    return found


def run_all(
    cases: Iterator[tuple[str, Case]], methods: Sequence[Method], limits: Limits, *, work: Path
) -> Iterator[Row]:
    """A row for each pair and method, after one for the headers alone; one timeout of a method is enough."""
    slow: set[str] = set()
    for k, (pair, case) in enumerate(cases):
        inputs = write_inputs(case, work / f"pair{k}")
        still = torch.zeros(1, case.fixed_grid.dim, *case.fixed_grid.shape)
        yield Row("headers", pair, **measure(case, still))
        for method in methods:
            if method.name in slow:
                yield Row(method.name, pair, note="not tried: timed out on an earlier pair")
                continue
            row = run_method(method, case, inputs, pair=pair, limits=limits)
            if row.note.startswith("timed out"):
                slow.add(method.name)
            yield row


# -- the table -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Summary:
    """Medians over the pairs on which a method worked."""

    method: str
    title: str
    worked: int
    pairs: int
    medians: Mapping[str, float | None]
    note: str


def kept(folder: Path, only: Sequence[str], pairs: str) -> tuple[list[Row], list[Method]]:
    """Rows and methods of an earlier run of the same pairs, but for those that run anew.

    Raises: FileNotFoundError or ValueError if there is none.
    """
    path = folder / "registration.json"
    if not path.is_file():
        raise FileNotFoundError(f"--renew keeps the other rows of {path}, which is not there.")
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["machine"]["pairs"] != pairs:
        raise ValueError(f"--renew needs the pairs of {path}, {data['machine']['pairs']}; these are {pairs}.")
    rows = [Row(**row) for row in data["rows"] if row["method"] not in ("headers", *only)]
    methods = [
        Method(name, peers.PEERS[name].title if name in peers.PEERS else f"reglib {name}", settings, _none, _none)
        for name, settings in data["settings"].items()
        if name not in only
    ]
    return rows, [replace(method, version=data["versions"].get(method.name, "")) for method in methods]


def _none(*_: Any) -> Any:
    raise NotImplementedError("a method of an earlier run does not run.")


def summarize(rows: Sequence[Row], titles: Mapping[str, str]) -> list[Summary]:
    """One line a method, in the order of the rows; its note says why pairs are missing."""
    found = []
    for name in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == name]
        good = [row for row in mine if not row.note]
        medians = {key: _median([getattr(row, key) for row in good]) for key in MEASURES}
        notes = list(dict.fromkeys(row.note for row in mine if row.note))
        found.append(Summary(name, titles.get(name, name), len(good), len(mine), medians, "; ".join(notes)))
    return found


def table(summaries: Sequence[Summary]) -> list[str]:
    """Markdown; measures that no method has are left out."""
    known = [key for key in MEASURES if any(each.medians[key] is not None for each in summaries)]
    heads = ["method", "pairs", *(MEASURES[key][0] for key in known), "note"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for each in summaries:
        cells = [_printed(each.medians[key], MEASURES[key][1]) for key in known]
        pairs = f"{each.worked} of {each.pairs}"
        lines.append("| " + " | ".join([each.title, pairs, *cells, each.note.replace("|", "/")]) + " |")
    return lines


def report(summaries: Sequence[Summary], methods: Sequence[Method], machine: Mapping[str, str]) -> list[str]:
    """The Markdown file: what ran where, the table, and each method's settings."""
    lines = ["# Registration, measured", "", ", ".join(f"{k} {v}" for k, v in machine.items()) + ".", ""]
    lines += [
        "Medians over the pairs on which a method worked. Folded and SD log J are of the whole map where the fixed",
        "image is above 0; peak MB is of the method's process. Every method has the settings that its package's",
        "documentation shows; none was tuned.",
    ]
    lines += ["", *table(summaries), "", "Settings:", ""]
    lines += [f"- {m.title}{f' {m.version}' if m.version else ''}: {m.settings}" for m in methods]
    return lines


def write(folder: Path, rows: Sequence[Row], methods: Sequence[Method], machine: Mapping[str, str]) -> list[Summary]:
    """registration.md, .json and .png."""
    titles = {"headers": "headers alone"} | {method.name: method.title for method in methods}
    summaries = summarize(rows, titles)
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"machine": dict(machine), "versions": {m.name: m.version for m in methods if m.version}}
    data |= {"settings": {m.name: m.settings for m in methods}, "rows": [asdict(row) for row in rows]}
    data["medians"] = {each.method: dict(each.medians) for each in summaries}
    (folder / "registration.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(report(summaries, methods, machine)) + "\n"
    (folder / "registration.md").write_text(text, encoding="utf-8")
    picture(folder / "registration.png", summaries, machine)
    return summaries


def picture(path: Path, summaries: Sequence[Summary], machine: Mapping[str, str]) -> None:
    """Accuracy against seconds of the whole process on a log axis; what headers alone give is a line."""
    from matplotlib.figure import Figure

    wanted = {"dice": "Dice, higher is better", "tre_mm": "TRE in mm, lower is better"}
    shown = [key for key in wanted if any(each.medians[key] is not None for each in summaries)] or ["dice"]
    figure = Figure(figsize=(5.6 * len(shown), 4.4), dpi=100, layout="constrained")
    for panel, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for k, each in enumerate(summaries):
            value, seconds = each.medians[key], each.medians["whole_s"]
            if value is None:
                continue
            if seconds is None:
                panel.axhline(value, color="#999999", linewidth=1, linestyle="--", label=each.title)
                continue
            own = each.title.startswith("reglib")
            panel.scatter(seconds, value, s=60 if own else 36, color="#0072b2" if own else "#d55e00", zorder=3)
            place = {"xytext": (-7, -3), "ha": "right"} if k % 2 else {"xytext": (7, -3), "ha": "left"}
            panel.annotate(each.title, (seconds, value), textcoords="offset points", fontsize=8, **place)
        panel.set(xscale="log", xlabel="seconds, whole process", title=wanted[key])
        panel.margins(x=0.4, y=0.15)
        panel.grid(color="#dddddd", zorder=0)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    figure.suptitle(f"{machine.get('pairs', '')}, {machine.get('threads', '')} threads", fontsize=10)
    figure.savefig(path)


def _printed(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.median(known) if known else None


def _mean(values: Any) -> float | None:
    """Of those that are numbers: a structure that vanished has no distance."""
    known = [value for value in values if math.isfinite(value)]
    return statistics.fmean(known) if known else None


def _last_line(text: str) -> str:
    lines = [re.sub(r"\(0x[0-9a-f]+\)", "", line.strip()) for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""  # without addresses, which differ from run to run


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


# -- the program ---------------------------------------------------------------------------------------------------
def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["fast", "accurate", *peers.PEERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="2 pairs of 48 x 56 x 48 voxels of 4 mm, 100 s at most")
    parser.add_argument("--pairs", type=int, help="how many pairs of the cohort; default 8")
    parser.add_argument("--shape", type=int, nargs=3, help="voxels of the cohort; default 96 112 96")
    parser.add_argument("--spacing", type=float, help="mm per voxel of the cohort; default 2")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("fixed", "moving", "fixed-labels", "moving-labels"):
        parser.add_argument(f"--{name}", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--timeout", type=float, help="seconds a method may take for one pair; default 1800")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-path", nargs="+", default=[], metavar="[NAME=]FOLDER")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--renew", action="store_true", help="keep what OUT has of the methods that --only leaves out")
    options = parser.parse_args(words)
    defaults = {"pairs": 2, "shape": (48, 56, 48), "spacing": 4.0, "timeout": 100.0}
    if not options.quick:
        defaults = {"pairs": 8, "shape": (96, 112, 96), "spacing": 2.0, "timeout": 1800.0}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def peer_folders(given: Sequence[str], name: str) -> list[str]:
    """The folders that hold a tool's packages, those named for it alone first."""
    entries = [*given, *filter(None, os.environ.get("REGLIB_PEERS", "").split(os.pathsep))]
    pairs = [entry.split("=", 1) if entry.split("=", 1)[0] in peers.PEERS else ["", entry] for entry in entries]
    return [folder for owner in (name, "") for who, folder in pairs if who == owner]


def cases_of(options: argparse.Namespace) -> tuple[str, Iterator[tuple[str, Case]]]:
    """What is registered, in words, and the pairs."""
    if options.fixed or options.moving or options.fixed_labels or options.moving_labels:
        files = options.fixed, options.moving, options.fixed_labels, options.moving_labels
        return f"{len(options.fixed)} pairs of files", iter(list(file_cases(*files)))
    size = " x ".join(map(str, options.shape))
    words = f"{options.pairs} pairs of brain_cohort(seed={options.seed}), {size} voxels of {options.spacing:g} mm"
    return words, cohort_cases(options.pairs, shape=options.shape, spacing=options.spacing, seed=options.seed)


def methods_of(options: argparse.Namespace) -> list[Method]:
    own = [own_method(name, options.threads) for name in options.only if name not in peers.PEERS]
    names = [name for name in options.only if name in peers.PEERS]
    return own + [peer_method(name, peer_folders(options.peer_path, name)) for name in names]


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    torch.set_num_threads(options.threads)
    try:
        pairs, cases = cases_of(options)
        earlier, others = kept(options.out, options.only, pairs) if options.renew else ([], [])
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    methods = methods_of(options)
    machine = {"pairs": pairs, "processor": platform.machine(), "cores": str(os.cpu_count())}
    machine |= {"threads": str(options.threads), "torch": torch.__version__, "python": platform.python_version()}
    if options.renew:
        machine["renewed"] = f"on {time.strftime('%Y-%m-%d')}: {' '.join(options.only)}"
    order = ["headers", "fast", "accurate", *peers.PEERS]
    methods = sorted([*methods, *others], key=lambda method: order.index(method.name))
    running = [method for method in methods if method.name in options.only]
    rows: list[Row] = []
    summaries: list[Summary] = []
    with tempfile.TemporaryDirectory() as work:
        for row in run_all(cases, running, Limits(options.timeout, options.threads), work=Path(work)):
            rows.append(row)
            figures = [f"{head} {_printed(getattr(row, key), form)}" for key, (head, form) in MEASURES.items()]
            print(f"{row.pair:14}{row.method:14}{row.note or '  '.join(figures)}", file=sys.stderr, flush=True)
            every = sorted([*rows, *earlier], key=lambda each: order.index(each.method)) if earlier else rows
            summaries = write(options.out, every, methods, machine)  # so that a run that is ended keeps its rows
    print("\n".join([*table(summaries), "", f"written to {os.path.relpath(options.out)}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
