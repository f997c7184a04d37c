"""Times each loss and field verb against the established packages, in one process with equal threads.

python ci/bench/losses.py                      both sizes; writes build/bench/losses.{md,json,png}
python ci/bench/losses.py --sizes small --only lncc mi
python ci/bench/losses.py --check              exit status 1 if a bar is missed

Every call is warmed up, then repeated; the figures are medians of wall time and the peak of tensor memory beyond the
inputs. A peer that is not installed is a row that says so (`pip install hf-deepali` into the environment in use).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from reglib import field, losses
from reglib.transforms import FreeFormDeformation, StationaryVelocity

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"small": (96, 96, 96), "large": (160, 192, 224)}
SLOW_S = 8.0  # a call that takes longer is timed once
REPEATS, BUDGET_S = 15, 5.0
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One thing to compute: by this library, and by peers under their names; the input that takes the gradient."""

    name: str
    ours: Call
    peers: dict[str, Call | str]  # a sentence in place of a call says why there is none
    leaf: Tensor | None


@dataclass
class Row:
    """What one package took for one case; forward alone, then forward and backward."""

    case: str
    size: str
    package: str
    forward_s: float | None = None
    both_s: float | None = None
    peak_mb: float | None = None
    note: str = ""


# -- the formulas of others ----------------------------------------------------------------------------------------
def voxelmorph_ncc(warped: Tensor, fixed: Tensor) -> Tensor:
    """VoxelMorph's NCC as its PyTorch code writes it: five convolutions with a cube of 9^3 ones."""
    ones = torch.ones(1, 1, 9, 9, 9, device=fixed.device)

    def window(x: Tensor) -> Tensor:
        return torch.nn.functional.conv3d(x, ones, padding=4)

    i, j = fixed, warped
    i_sum, j_sum, i2_sum, j2_sum, ij_sum = (window(x) for x in (i, j, i * i, j * j, i * j))
    u_i, u_j, n = i_sum / 729, j_sum / 729, 729
    cross = ij_sum - u_j * i_sum - u_i * j_sum + u_i * u_j * n
    i_var = i2_sum - 2 * u_i * i_sum + u_i * u_i * n
    j_var = j2_sum - 2 * u_j * j_sum + u_j * u_j * n
    return -(cross * cross / (i_var * j_var + 1e-5)).mean()


def voxelmorph_grad(ddf: Tensor) -> Tensor:
    """VoxelMorph's Grad("l2")."""
    steps = [ddf.diff(dim=k) for k in (2, 3, 4)]
    return sum(((s * s).mean() for s in steps), torch.zeros((), device=ddf.device)) / 3


def quietly(make: Callable[[], Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """MONAI warns when it is built."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


# -- the cases ---------------------------------------------------------------------------------------------------
def image_cases(shape: tuple[int, ...], device: torch.device) -> Iterator[Case]:
    """Two textured images in [0, 1]."""
    from monai import losses as monai

    warped, fixed = _images(shape, device)
    sums = losses.lncc_sums(fixed, 9)
    deepali = _deepali("deepali.losses.functional")
    local = quietly(lambda: monai.LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=9))
    vxm: Call | str = "not run at this size: minutes"
    if shape == SIZES["small"] or device.type == "cuda":
        vxm = lambda: voxelmorph_ncc(warped, fixed)  # noqa: E731
    peers = {"MONAI": lambda: local(warped, fixed), "VoxelMorph's formula": vxm}
    peers["deepali"] = (deepali and (lambda: deepali.lcc_loss(warped, fixed, kernel_size=9))) or NO_DEEPALI
    peers["FireANTs"] = NO_FIREANTS
    yield Case("lncc, window 9", lambda: losses.lncc_loss(warped, fixed), peers, warped)
    yield Case("lncc, window 9, sums given", lambda: losses.lncc_loss(warped, fixed, fixed_sums=sums), {}, warped)
    for window in (5, 21):
        yield Case(f"lncc, window {window}", lambda w=window: losses.lncc_loss(warped, fixed, window=w), {}, warped)
    gaussian = losses.LocalWindow("gaussian", size=9)
    smooth = quietly(lambda: monai.LocalNormalizedCrossCorrelationLoss(kernel_size=9, kernel_type="gaussian"))
    peers = {"MONAI": lambda: smooth(warped, fixed)}
    yield Case("lncc, gaussian 9", lambda: losses.lncc_loss(warped, fixed, window=gaussian), peers, warped)
    information = quietly(lambda: monai.GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=32))
    peers = {"MONAI": lambda: information(warped, fixed)}
    peers["deepali"] = (deepali and (lambda: deepali.mi_loss(warped, fixed, num_bins=32))) or NO_DEEPALI
    yield Case("mi, 32 bins", lambda: losses.mi_loss(warped, fixed), peers, warped)
    yield Case("mi, gaussian", lambda: losses.mi_loss(warped, fixed, parzen="gaussian"), peers, warped)
    peers = {"deepali": (deepali and (lambda: deepali.nmi_loss(warped, fixed, num_bins=32))) or NO_DEEPALI}
    yield Case("nmi, 32 bins", lambda: losses.nmi_loss(warped, fixed), peers, warped)
    peers = {"deepali": (deepali and (lambda: deepali.ncc_loss(warped, fixed))) or NO_DEEPALI}
    yield Case("ncc", lambda: losses.ncc_loss(warped, fixed), peers, warped)
    yield Case(
        "mse", lambda: losses.mse_loss(warped, fixed), {"torch": lambda: torch.nn.MSELoss()(warped, fixed)}, warped
    )
    structure = quietly(lambda: monai.SSIMLoss(spatial_dims=3))
    peers = {"MONAI": lambda: structure(warped, fixed)}
    yield Case("ssim", lambda: losses.ssim_loss(warped, fixed, data_range=1.0), peers, warped)
    yield Case("ngf", lambda: losses.ngf_loss(warped, fixed), {}, warped)
    features = losses.mind_features(fixed)
    yield Case("mind", lambda: losses.mind_loss(warped, fixed, fixed_features=features), {}, warped)


def label_cases(shape: tuple[int, ...], device: torch.device) -> Iterator[Case]:
    """Three soft masks."""
    from monai import losses as monai

    masks, fixed = _images((3, *shape), device)
    deepali = _deepali("deepali.losses.functional")
    for name, ours, monais, deepalis in (
        ("dice", losses.dice_loss, monai.DiceLoss(), "dice_loss"),
        ("jaccard", losses.jaccard_loss, monai.DiceLoss(jaccard=True), None),
        ("tversky", losses.tversky_loss, monai.TverskyLoss(), "tversky_loss"),
        ("cross-entropy", losses.cross_entropy_loss, torch.nn.BCELoss(), None),
    ):
        peer = "torch" if name == "cross-entropy" else "MONAI"
        peers: dict[str, Call | str] = {peer: lambda f=monais: f(masks, fixed)}
        if deepalis:
            peers["deepali"] = (deepali and (lambda n=deepalis: getattr(deepali, n)(masks, fixed))) or NO_DEEPALI
        yield Case(name, lambda f=ours: f(masks, fixed), peers, masks)
    scales = [0.0, 1.0, 2.0, 4.0]
    monai_scales = monai.MultiScaleLoss(monai.DiceLoss(), scales=scales)
    ours = losses.multiscale(losses.dice_loss, scales=scales)
    peers = {"MONAI": lambda: monai_scales(masks, fixed)}
    yield Case("multi-scale dice", lambda: ours(masks, fixed), peers, masks)


def field_cases(shape: tuple[int, ...], device: torch.device) -> Iterator[Case]:
    """A smooth field of a few voxels."""
    from monai import losses as monai

    ddf = _field(shape, device)
    deepali = _deepali("deepali.losses.functional")
    diffusion, bending = quietly(monai.DiffusionLoss), quietly(monai.BendingEnergyLoss)
    known: dict[str, dict[str, Call | str]] = {
        "diffusion": {"MONAI": lambda: diffusion(ddf), "VoxelMorph's formula": lambda: voxelmorph_grad(ddf)},
        "bending": {"MONAI": lambda: bending(ddf)},
    }
    theirs = {"diffusion": "diffusion_loss", "bending": "bending_loss", "curvature": "curvature_loss"}
    theirs |= {"divergence": "divergence_loss", "elastic": "elasticity_loss", "total variation": "total_variation_loss"}
    options = {"elastic": {"material_name": "rubber"}}
    for name, ours in {
        "diffusion": losses.diffusion_loss,
        "gradient, central": losses.gradient_loss,
        "bending": losses.bending_loss,
        "curvature": losses.curvature_loss,
        "divergence": losses.divergence_loss,
        "elastic": losses.elastic_loss,
        "total variation": losses.total_variation_loss,
        "folding": losses.folding_loss,
    }.items():
        peers = known.get(name, {})
        if name in theirs:
            peers["deepali"] = (deepali and (
                lambda n=name: getattr(deepali, theirs[n])(ddf, mode="central", spacing=1, **options.get(n, {}))
            )) or NO_DEEPALI  # fmt: skip
        yield Case(name, lambda f=ours: f(ddf), peers, ddf)


def verb_cases(shape: tuple[int, ...], device: torch.device) -> Iterator[Case]:
    """Warps and flows; exponentials are also judged by how far they are from one of many small steps."""
    from monai.networks.blocks import DVF2DDF, Warp

    ddf, (moving, _) = _field(shape, device), _images(shape, device)
    image = moving.detach()
    flow = _deepali("deepali.core.flow")
    warp = quietly(lambda: Warp(mode="bilinear", padding_mode="border"))
    steps = quietly(lambda: DVF2DDF(num_steps=7, padding_mode="border"))
    peers: dict[str, Call | str] = {"MONAI": lambda: warp(image, ddf)}
    yield Case("warp", lambda: field.warp(image, ddf), peers, ddf)
    other = ddf.detach().flip(2)
    yield Case("compose", lambda: field.compose(ddf, other), {}, ddf)
    exact = field.exponential(ddf.detach(), steps=10, start="euler")
    cube = _cube(ddf)
    peers = {"MONAI": lambda: steps(ddf), "deepali": (flow and (lambda: flow.expv(cube, steps=7))) or NO_DEEPALI}
    yield Case("exponential", lambda: field.exponential(ddf), peers, ddf)
    with torch.no_grad():
        off = {"ours": field.exponential(ddf), "MONAI": steps(ddf)}
        errors = {name: float((u - exact).norm(dim=1).mean()) for name, u in off.items()}
    print(
        f"  exponential, mean error in voxels: {errors['ours']:.1e}; MONAI, 7 steps: {errors['MONAI']:.1e}", flush=True
    )
    yield Case("exponential, 7 squarings", lambda: field.exponential(ddf, steps=7, start="euler"), peers, ddf)
    peers = {"deepali": (flow and (lambda: flow.jacobian_det(cube, spacing=1))) or NO_DEEPALI}
    yield Case("Jacobian determinant", lambda: field.jacobian_determinant(ddf), peers, ddf)
    peers = {"deepali": (flow and (lambda: flow.curl(cube, spacing=1))) or NO_DEEPALI}
    yield Case("curl", lambda: field.curl(ddf), peers, ddf)
    yield Case("divergence of a field", lambda: field.divergence(ddf), {}, ddf)
    peers = {"deepali": (flow and (lambda: flow.lie_bracket(cube, cube.flip(2), spacing=1))) or NO_DEEPALI}
    yield Case("Lie bracket", lambda: field.lie_bracket(ddf, other), peers, ddf)
    peers = {"deepali": (flow and (lambda: flow.compose_svfs(cube, cube.flip(2), spacing=1))) or NO_DEEPALI}
    yield Case("compose velocities", lambda: field.compose_velocities(ddf, other), peers, ddf)
    yield Case("logarithm", lambda: field.logarithm(exact), {}, None)
    yield Case("inverse", lambda: field.inverse(exact).ddf, {}, None)
    yield Case("resize to half", lambda: field.resize_ddf(ddf, [n // 2 for n in shape]), {}, ddf)
    from reglib.grid import Grid

    grid = Grid(shape)
    spline = FreeFormDeformation(grid, control_spacing_mm=8.0).to(device)
    yield Case("free-form deformation", lambda: spline.ddf(), {}, spline.coefficients)
    velocity = StationaryVelocity(grid, velocity=ddf.detach().cpu()).to(device)
    yield Case("stationary velocity", lambda: velocity.ddf(), {}, velocity.velocity)


NO_DEEPALI = "not installed (pip install hf-deepali)"
NO_FIREANTS = "does not install beside the others (wants SimpleITK 2.2.1 exactly)"
GROUPS = (image_cases, label_cases, field_cases, verb_cases)


def _deepali(module: str):
    return importlib.import_module(module) if importlib.util.find_spec("deepali") else None


def _images(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    channels, sizes = (1, shape) if len(shape) == 3 else (shape[0], shape[1:])
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 1, channels, *sizes, generator=generator)
    smooth = torch.nn.functional.avg_pool3d(noise.flatten(0, 1), 3, stride=1, padding=1).reshape(noise.shape)
    first, second = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    warped = (0.7 * first + 0.3 * second).to(device).requires_grad_()
    return warped, first.to(device)


def _field(shape: tuple[int, ...], device: torch.device) -> Tensor:
    coarse = torch.randn(1, 3, *[max(3, n // 16) for n in shape], generator=torch.Generator().manual_seed(1))
    ddf = field.resize_ddf(coarse, shape)
    return (ddf * (5 / ddf.norm(dim=1).max())).to(device).requires_grad_()


def _cube(ddf: Tensor) -> Tensor:
    """The same field as deepali writes it: x first, in units of half the grid."""
    half = torch.tensor([2 / (n - 1) for n in ddf.shape[2:]], device=ddf.device).reshape(1, 3, 1, 1, 1)
    return (ddf.detach() * half).flip(1).requires_grad_()


# -- measuring -----------------------------------------------------------------------------------------------------
def measure(call: Call, leaf: Tensor | None, device: torch.device) -> tuple[float, float | None, float]:
    """Seconds forward, seconds forward and backward (None without a leaf), and peak MB of both."""

    def forward() -> None:
        with torch.no_grad():
            call()

    def both() -> None:
        if leaf is not None:
            leaf.grad = None
        result = call()
        if result.requires_grad:
            result.sum().backward()

    seconds = [_median(run, device) for run in ((forward, both) if leaf is not None else (forward,))]
    peak = peak_mb(both if leaf is not None else forward, device)
    if leaf is not None:
        leaf.grad = None
    return seconds[0], seconds[1] if leaf is not None else None, peak


def _median(run: Callable[[], None], device: torch.device) -> float:
    taken = [_once(run, device)]  # the warm-up, which counts only where one call is long
    if taken[0] < SLOW_S:
        taken = []
        while len(taken) < 3 or (len(taken) < REPEATS and sum(taken) < BUDGET_S):
            taken.append(_once(run, device))
    return statistics.median(taken)


def _once(run: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def peak_mb(run: Callable[[], None], device: torch.device) -> float:
    """The most tensor memory that is alive at once beyond what was there before, MB."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as seen:
        run()
    changes = [(e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        alive += size
        peak = max(peak, alive)
    return peak / 1e6


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler writes two lines a call to the process's own stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def run_all(sizes: list[str], only: list[str], device: torch.device) -> list[Row]:
    rows = []
    for size in sizes:
        for group in GROUPS:
            for case in group(SIZES[size], device):
                if only and not any(word in case.name for word in only):
                    continue
                for package, call in {"reglib": case.ours, **case.peers}.items():
                    row = Row(case.name, size, package)
                    if isinstance(call, str):
                        row.note = call
                    else:
                        leaf = case.leaf
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            try:
                                row.forward_s, row.both_s, row.peak_mb = measure(call, leaf, device)
                            except Exception as error:
                                row.note = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
                    rows.append(row)
                    print("  " + _line(row), flush=True)
    return rows


# -- bars ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bar:
    """At a size, `package` must take at least `times` what this library takes (seconds, or MB)."""

    case: str
    size: str
    package: str
    times: float
    quantity: str = "both_s"


BARS = [
    Bar("lncc, window 9", "large", "MONAI", 15),
    Bar("lncc, window 9", "large", "MONAI", 2, "peak_mb"),
    Bar("lncc, window 9", "small", "VoxelMorph's formula", 50),
    Bar("bending", "large", "MONAI", 3),
    Bar("diffusion", "large", "MONAI", 3),
    Bar("mi, 32 bins", "large", "MONAI", 8),
    Bar("mi, 32 bins", "large", "MONAI", 6, "peak_mb"),
    Bar("exponential", "large", "MONAI", 1.5),
]
WIDE = ("lncc, window 21", "lncc, window 5", 1.3)  # may take at most so many times as long


def bar_lines(rows: list[Row]) -> tuple[list[str], bool]:
    """A sentence for each bar whose figures were measured, and whether all of them hold."""
    known = {(row.case, row.size, row.package): row for row in rows}
    lines, held = [], True
    for bar in BARS:
        pair = [known.get((bar.case, bar.size, package)) for package in ("reglib", bar.package)]
        values = [getattr(row, bar.quantity) for row in pair if row is not None]
        if len(values) == 2 and all(values):
            ratio = values[1] / values[0]
            held &= ratio >= bar.times
            what = "memory" if bar.quantity == "peak_mb" else "time"
            lines.append(
                f"{'held' if ratio >= bar.times else 'MISSED'}: {bar.case}, {bar.size}: {bar.package} takes "
                f"{ratio:.1f} times the {what} (bar {bar.times:g})"
            )
    for size in SIZES:
        wide, narrow = (known.get((case, size, "reglib")) for case in WIDE[:2])
        if wide and narrow and wide.both_s and narrow.both_s:
            ratio = wide.both_s / narrow.both_s
            held &= ratio <= WIDE[2] or size == "small"
            state = "held" if ratio <= WIDE[2] else "MISSED" if size == "large" else "noted"
            lines.append(f"{state}: {WIDE[0]}, {size}: {ratio:.2f} times the time of window 5 (bar {WIDE[2]:g})")
    return lines, held


# -- writing -------------------------------------------------------------------------------------------------------
def _line(row: Row) -> str:
    if row.note:
        return f"{row.size:6}{row.case:28}{row.package:22}{row.note}"
    both = f"{row.both_s:9.4f}" if row.both_s is not None else "        -"
    return f"{row.size:6}{row.case:28}{row.package:22}{row.forward_s:9.4f}{both}{row.peak_mb:9.0f} MB"


def write(folder: Path, rows: list[Row], machine: dict[str, str], bars: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = "losses" if machine["device"] == "cpu" else "losses_" + machine["device"].lower().replace(" ", "_")
    text = json.dumps({"machine": machine, "rows": [asdict(row) for row in rows], "bars": bars}, indent=1)
    (folder / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
    ours = {(row.case, row.size): row for row in rows if row.package == "reglib"}
    lines = ["# Losses and field verbs, measured", ""]
    lines += [", ".join(f"{key} {value}" for key, value in machine.items()) + ".", ""]
    lines += [
        "Medians in seconds; peak tensor memory of forward and backward; times = how often the peer's time fits",
        "",
    ]
    lines += [
        "| size | what | package | forward | forward + backward | peak MB | times |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.note:
            lines.append(f"| {row.size} | {row.case} | {row.package} | {row.note} | | | |")
            continue
        base = ours[row.case, row.size]
        mine, theirs = (r.both_s if r.both_s is not None else r.forward_s for r in (base, row))
        times = "" if row.package == "reglib" else f"{theirs / mine:.1f}"  # type: ignore[operator]
        both = "" if row.both_s is None else f"{row.both_s:.4f}"
        lines.append(
            f"| {row.size} | {row.case} | {row.package} | {row.forward_s:.4f} | {both} | {row.peak_mb:.0f} | {times} |"
        )
    lines += ["", "Bars:", "", *[f"- {bar}" for bar in bars]]
    (folder / f"{stem}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    picture(folder / f"{stem}.png", rows, machine)


def picture(path: Path, rows: list[Row], machine: dict[str, str]) -> None:
    """A dot for each package and case: seconds forward and backward, on a log axis, one panel a size."""
    from matplotlib.figure import Figure

    packages = {"reglib": "#0072b2", "MONAI": "#d55e00", "VoxelMorph's formula": "#cc79a7", "deepali": "#009e73"}
    packages |= {"torch": "#999999"}
    sizes = list(dict.fromkeys(row.size for row in rows))
    cases = list(dict.fromkeys(row.case for row in rows))
    figure = Figure(figsize=(6.2 * len(sizes) + 2, 0.27 * len(cases) + 1.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for panel, size in zip(panels, sizes, strict=True):
        for package, color in packages.items():
            here = [r for r in rows if r.size == size and r.package == package and r.forward_s is not None]
            seconds = [r.both_s if r.both_s is not None else r.forward_s for r in here]
            places = [cases.index(r.case) for r in here]
            if not here:
                continue
            panel.scatter(seconds, places, s=44 if package == "reglib" else 30, color=color, label=package, zorder=3)
        panel.set(xscale="log", xlabel="seconds, forward and backward", title=" x ".join(map(str, SIZES[size])))
        panel.set_yticks(range(len(cases)), cases)
        panel.grid(axis="both", color="#dddddd", zorder=0)
        panel.invert_yaxis() if panel is panels[0] else None
    names = {name: dot for panel in panels for dot, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=len(names), fontsize=9)
    figure.suptitle(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}", fontsize=10)
    figure.savefig(path)


def machine_of(device: torch.device) -> dict[str, str]:
    from importlib.metadata import version

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found = {"device": name, "processor": platform.machine(), "cores": str(os.cpu_count())}
    found |= {"threads": str(torch.get_num_threads()), "torch": torch.__version__, "MONAI": version("monai")}
    return found | {"python": platform.python_version()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases whose name holds one of these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a bar is missed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print("size  what                        package                 forward  fwd+bwd     peak", flush=True)
    rows = run_all(options.sizes, options.only, device)
    bars, held = bar_lines(rows)
    write(options.out, rows, machine_of(device), bars)
    print("\n".join(["", *bars, f"written to {os.path.relpath(options.out)}"]))
    return int(options.check and not held)


if __name__ == "__main__":
    sys.exit(main())
