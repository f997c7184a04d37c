"""Trains VoxelMorph's network on brains whose true map is known, and says how far it comes beside descent.

python ci/bench/learning.py                    64 x 64 x 64, five minutes of training on two CPU cores
python ci/bench/learning.py --epochs 400       writes build/bench/learning.{md,json}
python ci/bench/learning.py --check            exit status 1 if a bar is missed
python ci/bench/learning.py --pairs FOLDER --roles mr us --fold 0
                                               writes build/bench/learning_pairs.{md,json}

Scans are aligned to one of them by an affine map first, as VoxelMorph's users do, and the test brains are in no
training. The rows, on the test pairs: that alignment alone; what the network says, and what it says when it looks at
what it has warped once more; `optimize.register`, which knows nothing of the network; and the same descent from where
the network left off.

With `--pairs`, FOLDER/{train,test}/{ROLE}_{images,labels} are pairs of two kinds of image, moving and fixed, whose
first label is the same organ. KeyMorph's network learns from the labels alone, and is asked about the test pairs beside
both images centered on each other, and beside the best that a shift can do, which needs the labels. `--fold K` takes
every N-th pair of all (`--folds N`), from K on, as test pairs instead.
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

from reglib import data, field, filters, io, losses, metrics, networks, optimize, phantoms, pipeline, train, transforms
from reglib.grid import Grid

ROOT = Path(__file__).resolve().parents[2]
HALFWAY, MOST_FOLDS, NEAR = 0.5, 0.005, 0.01  # the bars: of the way to descent; folded share; Dice behind descent
BEYOND = 0.15  # the bar of pairs with labels: Dice beyond that of centered images
MARGIN, COARSER, PAIR_EPOCHS = 4, 3, 1200  # voxels; times; of pairs with labels
SIDE_MM = 192.0
RATE, EPOCHS = 1e-3, 105
LOW_FROM = 64  # voxels a side; of 2 x 2 x 2 features oneDNN's gradient in bfloat16 is NaN now and then


@dataclass(frozen=True)
class Row:
    """Means over the test pairs."""

    what: str
    dice: float
    folding_fraction: float
    seconds: float | None = None  # a pair, where it was measured


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
    network = learned(folder, options.epochs or EPOCHS, options.size, options.seed)
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


# -- pairs with labels --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Labelled:
    """A pair on its own grids, with the mask of one organ in each."""

    name: str
    images: tuple[Tensor, Tensor]  # moving, fixed
    masks: tuple[Tensor, Tensor]
    grids: tuple[Grid, Grid]

    def centered(self) -> Tensor:
        """The world matrix moving_from_fixed that lays the centers of both grids on each other."""
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, 3] = torch.tensor(self.grids[0].center) - torch.tensor(self.grids[1].center)
        return matrix

    def dice(self, matrix: Tensor) -> float:
        """Of the organ under a world matrix, on the fixed grid."""
        ddf = field.affine_ddf(matrix, self.grids[1])
        grids = field.Grids(moving_grid=self.grids[0], fixed_grid=self.grids[1])
        warped = field.warp_labels(self.masks[0], ddf, method="nearest", **grids)
        return metrics.dice(warped, self.masks[1])[1]


def read_pairs(folder: Path, roles: Sequence[str]) -> list[Labelled]:
    """Every pair of a split."""
    found = []
    for path in sorted((folder / f"{roles[0]}_images").iterdir()):
        read = [io.load_image(folder / f"{role}_images" / path.name) for role in roles]
        masks = [(io.load_labels(folder / f"{role}_labels" / path.name)[0][:, :1] > 0).long() for role in roles]
        (moving, moving_grid), (fixed, fixed_grid) = read
        found.append(Labelled(path.name, (moving, fixed), (masks[0], masks[1]), (moving_grid, fixed_grid)))
    return found


def write_small(pairs: Sequence[Labelled], folder: Path) -> None:
    """Pairs centered on each other, on the fixed grid with a margin, three times coarser."""
    for pair in pairs:
        own = pair.grids[1]
        grid = own.pad([MARGIN] * 3, [MARGIN] * 3).downsample(COARSER)
        for k, role in enumerate(("moving", "fixed")):
            matrix = pair.centered() if k == 0 else torch.eye(4, dtype=torch.float64)
            grids = field.Grids(moving_grid=pair.grids[k], fixed_grid=grid)
            ddf = field.affine_ddf(matrix, grid)
            calm = [filters.gaussian(x.float(), sigma=0.4 * COARSER) for x in (pair.images[k], pair.masks[k])]
            image, mask = (field.warp(x, ddf, padding="zeros", **grids) for x in calm)
            io.save_image(folder / f"{role}_images" / pair.name, image, grid)
            io.save_labels(folder / f"{role}_labels" / pair.name, (mask > 0.5).long(), grid)


def by_labels(batch: train.Batch, prediction: networks.Prediction) -> dict[str, Tensor]:
    """The organs on each other, at several scales; the images are not compared."""
    alike = losses.multiscale(losses.dice_loss, scales=(0, 1, 2, 4))
    return {"labels": alike(train.warped(batch, prediction, "moving_label"), batch["fixed_label"])}


def taught(folder: Path, epochs: int, seed: int) -> networks.RegistrationNetwork:
    """A network after `epochs` of all pairs, each bent, turned and shaded anew each time."""
    torch.manual_seed(seed)
    network = networks.keymorph(3)
    bent = {"angle_deg": 12.0, "scale": 0.15, "shift_mm": 3.0, "field_mm": 0.5}
    augment = data.Augmentation(**bent, bias=0.1, gamma=0.2, noise=0.03)
    how: dict[str, Any] = {"reading": data.Reading(scale="minmax"), "augment": augment, "cache": "memory"}
    pairs = data.PairedDataset(data.find(folder), labels="sample", seed=seed, **how)

    def schedule(made: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(made, 2 * RATE, total_steps=epochs + 1, pct_start=0.1)

    batches = data.loader(pairs, batch_size=len(pairs))
    train.fit(network, batches, by_labels, epochs=epochs, scheduler=schedule, clip=1.0, device="cpu", progress=False)
    return network.eval()


@torch.no_grad()
def asked(network: networks.RegistrationNetwork, folder: Path, pairs: Sequence[Labelled]) -> list[Tensor]:
    """For each pair the world matrix moving_from_fixed that the network says."""
    small = data.PairedDataset(data.find(folder), split="test", reading=data.Reading(scale="minmax"))
    matrices = []
    for pair, batch in zip(pairs, data.loader(small), strict=True):
        grids = {f"{role}_grid": batch[f"{role}_grid"] for role in ("fixed", "moving")}
        found = network(batch["fixed"], batch["moving"], **grids).affine
        assert found is not None
        matrices.append(pair.centered() @ found[0])
    return matrices


def best_shift(pair: Labelled) -> Tensor:
    """The world matrix that lays the centers of both organs on each other."""
    places = [(mask[0, 0] > 0).nonzero().double().mean(0)[None] for mask in pair.masks]
    moving, fixed = (grid.points(at, to="world", from_="voxel")[0] for grid, at in zip(pair.grids, places, strict=True))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = moving - fixed
    return matrix


def measure_pairs(folder: Path, options: argparse.Namespace) -> tuple[list[Row], float, str]:
    """The rows, the seconds of training, and of how many pairs."""
    learn, test = (read_pairs(options.pairs / split, options.roles) for split in ("train", "test"))
    if options.fold is not None:
        every = [*learn, *test]
        test = every[options.fold :: options.folds]
        learn = [pair for pair in every if all(pair is not other for other in test)]
    write_small(learn, folder / "train")
    write_small(test, folder / "test")
    start = time.perf_counter()
    network = taught(folder / "train", options.epochs or PAIR_EPOCHS, options.seed)
    seconds = time.perf_counter() - start
    ways = {
        "centered": [pair.centered() for pair in test],
        "network": asked(network, folder / "test", test),
        "best shift": [best_shift(pair) for pair in test],
    }
    rows = []
    for what, matrices in ways.items():
        each = [pair.dice(matrix) for pair, matrix in zip(test, matrices, strict=True)]
        print(f"{what:12}" + "  ".join(f"{value:.3f}" for value in each))
        folds = np.mean([float(torch.linalg.det(matrix) <= 0) for matrix in matrices])
        rows.append(Row(what, float(np.mean(each)), float(folds)))
    return rows, seconds, f"{len(learn)} pairs to learn from by their labels, {len(test)} others to test on"


# -- write --------------------------------------------------------------------------------------------------------
def write(folder: Path, name: str, rows: list[Row], seconds: float, what: str, options: argparse.Namespace) -> None:
    """A table and JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}"
    report = {"machine": machine, "what": what, "seconds": seconds, "rows": [asdict(row) for row in rows]}
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = ["# Learning, measured", "", f"{machine}.", "", f"{what}.", ""]
    lines += ["| answer | Dice | folded % | s a pair |", "|---|---|---|---|"]
    for row in rows:
        took = "" if row.seconds is None else f"{row.seconds:.2f}"
        lines.append(f"| {row.what} | {row.dice:.3f} | {100 * row.folding_fraction:.3g} | {took} |")
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="voxels along each side")
    parser.add_argument("--learn", type=int, default=60, help="brains to learn from")
    parser.add_argument("--test", type=int, default=8, help="brains to test on")
    parser.add_argument("--epochs", type=int, help=f"default {EPOCHS}, of pairs {PAIR_EPOCHS}")
    parser.add_argument("--pairs", type=Path, metavar="FOLDER", help="pairs with labels instead of brains")
    parser.add_argument("--roles", nargs=2, default=["moving", "fixed"], help="how the folders of --pairs begin")
    parser.add_argument("--fold", type=int, help="which pairs to test on instead of the folder's own")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a bar is missed")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.pairs is not None:
            rows, seconds, pairs = measure_pairs(Path(folder), options)
            what = f"{pairs}; {options.epochs or PAIR_EPOCHS} epochs, {seconds:.0f} s of training"
            write(options.out, "learning_pairs", rows, seconds, what, options)
            gain = rows[1].dice - rows[0].dice
            print(f"{seconds:.0f} s of training; Dice {gain:+.3f} beyond centered images")
            return int(options.check and gain < BEYOND)
        rows, seconds = measure(Path(folder), options)
    shape = " x ".join([str(options.size)] * 3)
    brains = f"{options.learn} brains to learn from, {options.test} others to test on"
    what = f"{shape}, {brains}; {options.epochs or EPOCHS} epochs, {seconds:.0f} s of training"
    write(options.out, "learning", rows, seconds, what, options)
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
