"""Times a training step and a prediction of VoxelMorph's network, and says how much memory they take.

python ci/bench/training.py                        96 x 96 x 96 on the CPU; writes build/bench/training.{md,json}
python ci/bench/training.py --device cuda --size 160 192 224 --precision bf16-mixed
python ci/bench/training.py --check                exit status 1 if a bar is missed

A step is forward, local correlation of window 9, the squared slope of the velocity, backward and Adam, of one pair.
Each package runs in a process of its own with equal threads: reglib; VoxelMorph's published PyTorch code 0.2, written
down here from its formulas; MONAI. Memory is what the process grows by, on a GPU what is allocated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if __package__:
    from .losses import voxelmorph_grad, voxelmorph_ncc
else:
    from losses import voxelmorph_grad, voxelmorph_ncc

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
WEIGHT = 0.01
FASTER, SMALLER = 2.0, 0.7  # the bars, against VoxelMorph
KILOBYTES = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss


@dataclass(frozen=True)
class Row:
    """What one package took."""

    package: str
    step_s: float
    predict_s: float
    step_mb: float
    predict_mb: float


Step = Callable[[Tensor, Tensor], Tensor]  # (fixed, moving) -> loss
Ask = Callable[[Tensor, Tensor], Any]


# -- the packages -------------------------------------------------------------------------------------------------
def of_reglib(shape: Sequence[int]) -> tuple[nn.Module, Step, Ask]:
    """This library."""
    from reglib import field, losses, networks

    network = networks.voxelmorph(3)

    def loss(fixed: Tensor, moving: Tensor) -> Tensor:
        found = network(fixed, moving)
        warped = field.warp(moving, found.ddf, padding="zeros")
        return losses.lncc_loss(warped, fixed) + WEIGHT * losses.diffusion_loss(found.velocity)

    return network, loss, lambda fixed, moving: field.warp(moving, network(fixed, moving).ddf, padding="zeros")


class Transformer(nn.Module):
    """VoxelMorph's spatial transformer."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        lines = [torch.arange(n) for n in shape]
        self.register_buffer("grid", torch.stack(torch.meshgrid(*lines, indexing="ij"))[None].float())

    def forward(self, image: Tensor, flow: Tensor) -> Tensor:
        at = self.grid + flow
        for k, n in enumerate(flow.shape[2:]):
            at[:, k] = 2 * (at[:, k] / (n - 1) - 0.5)
        return functional.grid_sample(image, at.permute(0, 2, 3, 4, 1)[..., [2, 1, 0]], align_corners=True)


class VoxelMorph(nn.Module):
    """VxmDense with its default settings, layer by layer; the names of its weights are the published ones."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        encoder, decoder, remaining = [16, 32, 32, 32], [32, 32, 32, 32], [32, 16, 16]
        blocks: dict[str, list[nn.Module]] = {"encoder": [], "decoder": [], "remaining": []}
        before = 2
        for n in encoder:
            blocks["encoder"].append(nn.ModuleList([_block(before, n)]))
            before = n
        for n, skip in zip(decoder, reversed(encoder), strict=True):
            blocks["decoder"].append(nn.ModuleList([_block(before, n)]))
            before = n + skip
        for n in remaining:
            blocks["remaining"].append(_block(before, n))
            before = n
        self.unet_model = nn.ModuleDict({name: nn.ModuleList(each) for name, each in blocks.items()})
        self.flow = nn.Conv3d(before, 3, 3, padding=1)
        nn.init.normal_(self.flow.weight, 0, 1e-5)
        nn.init.zeros_(self.flow.bias)
        self.pool, self.up = nn.MaxPool3d(2), nn.Upsample(scale_factor=2, mode="nearest")
        self.transformer, self.integrate = Transformer(shape), Transformer([n // 2 for n in shape])

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The warped source, the velocity and the ddf."""
        x, skips = torch.cat([source, target], dim=1), []
        for level in self.unet_model["encoder"]:
            x = level[0](x)
            skips.append(x)
            x = self.pool(x)
        for level in self.unet_model["decoder"]:
            x = torch.cat([self.up(level[0](x)), skips.pop()], dim=1)
        for each in self.unet_model["remaining"]:
            x = each(x)
        velocity = 0.5 * functional.interpolate(self.flow(x), scale_factor=0.5, mode="trilinear", align_corners=True)
        flow = velocity / 2**7
        for _ in range(7):
            flow = flow + self.integrate(flow, flow)
        flow = functional.interpolate(2 * flow, scale_factor=2, mode="trilinear", align_corners=True)
        return self.transformer(source, flow), velocity, flow


def _block(channels: int, out: int) -> nn.Module:
    block = nn.Module()
    block.main, block.activation = nn.Conv3d(channels, out, 3, padding=1), nn.LeakyReLU(0.2)
    block.forward = lambda x: block.activation(block.main(x))  # type: ignore[method-assign]
    return block


def of_voxelmorph(shape: Sequence[int]) -> tuple[nn.Module, Step, Ask]:
    """VoxelMorph's published code; its slope counts double, for the half resolution."""
    network = VoxelMorph(shape)

    def loss(fixed: Tensor, moving: Tensor) -> Tensor:
        warped, velocity, _ = network(moving, fixed)
        return voxelmorph_ncc(warped, fixed) + WEIGHT * 2 * voxelmorph_grad(velocity)

    return network, loss, lambda fixed, moving: network(moving, fixed)[0]


def of_monai(shape: Sequence[int]) -> tuple[nn.Module, Step, Ask]:
    """MONAI's network and losses."""
    from monai import losses as monai
    from monai.networks.nets import VoxelMorph as Network

    network = Network(integration_steps=7, half_res=True)
    alike = monai.LocalNormalizedCrossCorrelationLoss(kernel_size=9)
    smooth = monai.DiffusionLoss()

    def loss(fixed: Tensor, moving: Tensor) -> Tensor:
        warped, ddf = network(moving, fixed)
        return alike(warped, fixed) + WEIGHT * smooth(ddf)

    return network, loss, lambda fixed, moving: network(moving, fixed)[0]


PACKAGES = {"reglib": of_reglib, "VoxelMorph's formula": of_voxelmorph, "MONAI": of_monai}


# -- one package, in this process ---------------------------------------------------------------------------------
def measure(package: str, shape: Sequence[int], device: torch.device, precision: str) -> Row:
    """Medians of some steps and predictions after the first, and what they took."""
    torch.manual_seed(0)
    fixed, moving = (torch.rand(1, 1, *shape, device=device) for _ in range(2))
    warnings.simplefilter("ignore")  # MONAI's
    network, loss, ask = PACKAGES[package](shape)
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    low = {"device_type": device.type, "dtype": torch.bfloat16, "enabled": precision == "bf16-mixed"}

    def predict() -> None:
        with torch.no_grad(), torch.autocast(**low):
            ask(fixed, moving)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(**low):
            value = loss(fixed, moving)
        value.backward()
        optimizer.step()

    before = held(device)
    predict_s = timed(predict, device)
    predict_mb = peak(device) - before
    step_s = timed(step, device)
    return Row(package, step_s, predict_s, peak(device) - before, predict_mb)


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Median seconds of some runs after the first."""
    run()
    seconds = []
    for _ in range(STEPS):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def held(device: torch.device) -> float:
    """Megabytes in use before anything is computed."""
    return torch.cuda.memory_allocated() / 1e6 if device.type == "cuda" else peak(device)


def peak(device: torch.device) -> float:
    """The most megabytes in use until now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTES / 1e6


# -- all of them --------------------------------------------------------------------------------------------------
def rows_of(options: argparse.Namespace) -> list[Row]:
    """Each package in a process of its own."""
    rows = []
    for package in PACKAGES:
        shape = [str(n) for n in options.size]
        words = ["--one", package, "--device", options.device, "--precision", options.precision]
        words += ["--threads", str(options.threads), "--size", *shape]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(options.threads)}
        call = [sys.executable, str(Path(__file__).resolve()), *words]
        done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(f"{package} failed: {done.stderr.strip().splitlines()[-1]}")
        rows.append(Row(**json.loads(done.stdout.strip().splitlines()[-1])))
    return rows


def write(folder: Path, rows: list[Row], machine: dict[str, str], title: str) -> None:
    """A table and JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, "what": title, "rows": [asdict(row) for row in rows]}, indent=1)
    (folder / "training.json").write_text(text + "\n", encoding="utf-8")
    lines = ["# Training, measured", "", ", ".join(f"{k} {v}" for k, v in machine.items()) + ".", "", f"{title}.", ""]
    lines += ["| package | step s | predict s | step MB | predict MB |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.package} | {row.step_s:.3g} | {row.predict_s:.3g} | {row.step_mb:.0f} | {row.predict_mb:.0f} |"
        for row in rows
    ]
    (folder / "training.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=PACKAGES, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a bar is missed")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    if options.one:
        row = measure(options.one, options.size, torch.device(options.device), options.precision)
        print(json.dumps(asdict(row)))
        return 0
    rows = rows_of(options)
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    machine = {"device": name, "cores": str(os.cpu_count()), "threads": str(options.threads)}
    machine |= {"torch": torch.__version__, "python": platform.python_version()}
    shape = " x ".join(map(str, options.size))
    write(options.out, rows, machine, f"{shape}, {options.precision}, medians of {STEPS} after the first")
    for row in rows:
        print(f"{row.package:22}{row.step_s:8.3f} s a step {row.predict_s:8.3f} s a prediction {row.step_mb:8.0f} MB")
    ours, theirs = rows[0], rows[1]
    faster = theirs.step_s / ours.step_s
    smaller = ours.step_mb / theirs.step_mb if theirs.step_mb else math.nan  # nothing grows on the smallest grids
    print(f"{faster:.2f} times as fast as VoxelMorph, in {smaller:.2f} of its memory")
    return int(options.check and (faster < FASTER or smaller > SMALLER))


if __name__ == "__main__":
    sys.exit(main())
