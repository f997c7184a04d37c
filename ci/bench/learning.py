"""Trains VoxelMorph's network on brains whose true map is known, and says how far it comes beside descent.

python ci/bench/learning.py                    64 x 64 x 64, five minutes of training on two CPU cores
python ci/bench/learning.py --epochs 400       writes build/bench/learning.{md,json}
python ci/bench/learning.py --check            exit status 1 if a bar is missed

Scans are aligned to one of them by an affine map first, as VoxelMorph's users do, and the test brains are in no
training. The rows, on the test pairs: that alignment alone; what the network says, and what it says when it looks at
what it has warped once more; `optimize.register`, which knows nothing of the network; and the same descent from where
the network left off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reglib import data, field, io, losses, metrics, networks, optimize, phantoms, pipeline, train, transforms
from reglib.grid import Grid

ROOT = Path(__file__).resolve().parents[2]
HALFWAY, MOST_FOLDS, NEAR = 0.5, 0.005, 0.01  # the bars: of the way to descent; folded share; Dice behind descent
SIDE_MM = 192.0
RATE = 1e-3
LOW_FROM = 64  # voxels a side; of 2 x 2 x 2 features oneDNN's gradient in bfloat16 is NaN now and then


@dataclass(frozen=True)
class Row:
    """Means over the test pairs."""

    what: str
    dice: float
    folding_fraction: float
    seconds: float


Answer = Callable[[train.Batch], Tensor]  # the ddf of a batch of one


# -- data ---------------------------------------------------------------------------------------------------------
def prepare(folder: Path, learn: int, test: int, size: int, seed: int) -> Grid:
    """Brains and their labels, each on the first one by an affine map, in folders `train` and `test`."""
    shape = (size,) * 3
    subjects = phantoms.brain_cohort(learn + test, seed=seed, shape=shape, spacing=SIDE_MM / size).subjects
    grid, first = subjects[0].grid, subjects[0]
    calm = pipeline.Settings(transform="affine", progress=False)
    for k, subject in enumerate(subjects):
        nothing = (None,) * 6
        case = pipeline.Case(first.image, subject.image, grid, grid, *nothing, ())
        ddf = pipeline.register_pair(case, calm).ddf if k else field.identity_ddf(grid)
        labels = field.warp_labels(subject.labels, ddf, method="nearest")
        masks = torch.cat([labels == value for value in phantoms.LABEL_NAMES], dim=1)
        where = folder / ("train" if k < learn else "test")
        io.save_image(where / "images" / f"brain{k:03}.nii.gz", field.warp(subject.image, ddf, padding="zeros"), grid)
        io.save_labels(where / "labels" / f"brain{k:03}.nii.gz", masks.long(), grid)
    return grid


# -- learn and ask ------------------------------------------------------------------------------------------------
def objective(batch: train.Batch, prediction: networks.Prediction) -> dict[str, Tensor]:
    """Local correlation and smoothness."""
    assert prediction.velocity is not None
    alike = losses.lncc_loss(train.warped(batch, prediction), batch["fixed"], window=7, flat=0.02)
    return {"lncc": alike, "smooth": 0.05 * losses.diffusion_loss(prediction.velocity)}


def learned(folder: Path, epochs: int, size: int, seed: int) -> networks.RegistrationNetwork:
    """A network after `epochs`, in each of which every brain is in one pair."""
    torch.manual_seed(seed)
    network = networks.voxelmorph(3, half=True)
    pairs = data.UnpairedDataset(data.find(folder / "train"), labels="none", cache="memory", seed=seed)

    def schedule(made: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(made, RATE, total_steps=epochs + 1, pct_start=0.05)

    precision = "bf16-mixed" if size >= LOW_FROM else "32-true"
    how: dict[str, Any] = {"precision": precision, "clip": 1.0, "scheduler": schedule, "device": "cpu"}
    train.fit(network, data.loader(pairs), objective, epochs=epochs, **how)
    return network.eval()


@torch.no_grad()
def looked(network: networks.RegistrationNetwork, batch: train.Batch, looks: int) -> Tensor:
    """What the network says, and says again of what it has warped."""
    total = field.identity_ddf(batch["fixed_grid"][0])
    for _ in range(looks):
        with torch.autocast("cpu", torch.bfloat16):
            found = network(batch["fixed"], field.warp(batch["moving"], total, padding="zeros")).ddf
        assert found is not None
        total = field.compose(total, found.float())
    return total


def descended(batch: train.Batch, start: Tensor | None) -> Tensor:
    """`optimize.register`, from nothing or from a field."""
    fixed, moving, grid = batch["fixed"], batch["moving"], batch["fixed_grid"][0]
    model = transforms.Diffeomorphism(grid, ddf=start)
    levels, steps, sigma = ((4, 2, 1), (30, 40, 60), 8.0) if start is None else ((2, 1), (40, 60), 3.0)
    options = optimize.Options(
        lr=0.2, gradient_sigma=(sigma, 0.8), oversampling=2, decay=0.9, tolerance=0.0, progress=False
    )
    found = optimize.register(
        fixed,
        moving,
        model,
        similarity=pipeline.SIMILARITIES["lncc"].loss,
        regularizer=pipeline.SMOOTH,
        weight=pipeline.SIMILARITIES["lncc"].weight,
        levels=levels,
        steps=steps,
        options=options,
    )
    return found.ddf.detach()


def scored(what: str, answer: Answer, batches: Sequence[train.Batch]) -> Row:
    """Mean Dice over labels and pairs, folds, and seconds a pair."""
    overlaps, folds, seconds = [], [], []
    for batch in batches:
        start = time.perf_counter()
        ddf = answer(batch)
        seconds.append(time.perf_counter() - start)
        warped = field.warp(batch["moving_label"], ddf, mode="nearest", padding="zeros")
        overlaps.append(np.mean(list(metrics.dice(warped, batch["fixed_label"]).values())))
        folds.append(metrics.jacobian_statistics(ddf)["folding_fraction"])
    return Row(what, float(np.mean(overlaps)), float(np.mean(folds)), float(np.mean(seconds)))


def measure(folder: Path, options: argparse.Namespace) -> tuple[list[Row], float]:
    """The rows, and the seconds of training."""
    grid = prepare(folder, options.learn, options.test, options.size, options.seed)
    start = time.perf_counter()
    network = learned(folder, options.epochs, options.size, options.seed)
    seconds = time.perf_counter() - start
    pairs = data.UnpairedDataset(data.find(folder / "test"), split="test", labels="all", cache="memory")
    other = data.UnpairedDataset(data.find(folder / "test"), split="train", labels="all", cache="memory", seed=1)
    batches = [train.Batch(batch) for loader in (data.loader(pairs), data.loader(other)) for batch in loader]
    ways: dict[str, Answer] = {
        "affine": lambda _: field.identity_ddf(grid),
        "network": lambda batch: looked(network, batch, 1),
        "network, two looks": lambda batch: looked(network, batch, 2),
        "descent": lambda batch: descended(batch, None),
        "descent from two looks": lambda batch: descended(batch, looked(network, batch, 2)),
    }
    return [scored(what, answer, batches) for what, answer in ways.items()], seconds


# -- write --------------------------------------------------------------------------------------------------------
def write(folder: Path, rows: list[Row], seconds: float, options: argparse.Namespace) -> None:
    """A table and JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}"
    shape = " x ".join([str(options.size)] * 3)
    brains = f"{options.learn} brains to learn from, {options.test} others to test on"
    what = f"{shape}, {brains}; {options.epochs} epochs, {seconds:.0f} s of training"
    report = {"machine": machine, "what": what, "seconds": seconds, "rows": [asdict(row) for row in rows]}
    (folder / "learning.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = ["# Learning, measured", "", f"{machine}.", "", f"{what}.", ""]
    lines += ["| answer | Dice | folded % | s a pair |", "|---|---|---|---|"]
    lines += [f"| {r.what} | {r.dice:.3f} | {100 * r.folding_fraction:.3g} | {r.seconds:.2f} |" for r in rows]
    (folder / "learning.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="voxels along each side")
    parser.add_argument("--learn", type=int, default=60, help="brains to learn from")
    parser.add_argument("--test", type=int, default=8, help="brains to test on")
    parser.add_argument("--epochs", type=int, default=105)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a bar is missed")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows, seconds = measure(Path(folder), options)
    write(options.out, rows, seconds, options)
    for row in rows:
        folds = f"{100 * row.folding_fraction:.3f} % folded"
        print(f"{row.what:24}Dice {row.dice:.3f}   {folds}   {row.seconds:.2f} s a pair")
    affine, _, network, descent, refined = rows
    way = (network.dice - affine.dice) / (descent.dice - affine.dice)
    print(f"{seconds:.0f} s of training; {way:.2f} of the way from affine to descent, then {refined.dice:.3f}")
    met = way >= HALFWAY and network.folding_fraction < MOST_FOLDS and refined.dice > descent.dice - NEAR
    return int(options.check and not met)


if __name__ == "__main__":
    sys.exit(main())
