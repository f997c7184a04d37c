"""Times an epoch of pairs: read from files each time, from MONAI's caches, and copied alone.

python ci/bench/data.py                        64 pairs of 64 x 64 x 64; writes build/bench/data.{md,json}
python ci/bench/data.py --pairs 16 --size 48
python ci/bench/data.py --check                exit status 1 if a cached epoch is not 5 times as fast

Files are .nii.gz with two structures each. Every row is the median of a few epochs after one that is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from reglib import data, io
from reglib.grid import Grid

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 5
BAR = 5.0  # times faster that a cached epoch must be


@dataclass(frozen=True)
class Row:
    """A way to go through an epoch: seconds, and how often it fits into the time of the uncached one."""

    what: str
    seconds: float
    faster: float


def make_pairs(folder: Path, count: int, size: int) -> None:
    """Smooth noise as it compresses in a scan, with two structures."""
    rng, grid = np.random.default_rng(0), Grid((size,) * 3)
    for role in ("moving", "fixed"):
        for k in range(count):
            noise = gaussian_filter(rng.standard_normal(grid.shape), 2.0) + 0.02 * rng.standard_normal(grid.shape)
            image = torch.from_numpy(noise).float()[None, None]
            masks = torch.cat([image > 0.1, image < -0.1], dim=1).long()
            io.save_image(folder / f"{role}_images" / f"{k:03}.nii.gz", image, grid)
            io.save_labels(folder / f"{role}_labels" / f"{k:03}.nii.gz", masks, grid)


def epoch(dataset: data.PairDataset, batch_size: int, workers: int) -> Callable[[], None]:
    """A call that goes through the next epoch."""
    batches = data.loader(dataset, batch_size=batch_size, workers=workers)

    def run() -> None:
        for batch in batches:
            assert len(batch["moving"]) > 0

    return run


def copy_alone(dataset: data.PairDataset, batch_size: int) -> Callable[[], None]:
    """A call that stacks what a batch holds from tensors in memory and does nothing else."""
    items = [dataset[k] for k in range(len(dataset))]
    keys = [key for key, value in items[0].items() if isinstance(value, torch.Tensor)]

    def run() -> None:
        for start in range(0, len(items), batch_size):
            for key in keys:
                torch.stack([item[key].clone() for item in items[start : start + batch_size]])

    return run


def timed(run: Callable[[], None]) -> float:
    """Median seconds of some epochs after the first."""
    run()
    seconds = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(count: int, size: int, batch_size: int, workers: int) -> list[Row]:
    """Every way to go through an epoch of so many pairs."""
    with tempfile.TemporaryDirectory() as work:
        make_pairs(Path(work) / "data", count, size)
        found = data.find(Path(work) / "data")
        plain = data.PairedDataset(found)
        memory = data.PairedDataset(found, cache="memory")
        disk = data.PairedDataset(found, cache=Path(work) / "cache")
        calls = {
            "files, each time": epoch(plain, batch_size, 0),
            f"files, {workers} workers": epoch(plain, batch_size, workers),
            "cached on disk": epoch(disk, batch_size, 0),
            "cached in memory": epoch(memory, batch_size, 0),
            "the copy alone": copy_alone(memory, batch_size),
        }
        seconds = {what: timed(run) for what, run in calls.items()}
    slowest = seconds["files, each time"]
    return [Row(what, s, slowest / s) for what, s in seconds.items()]


def write(folder: Path, rows: list[Row], machine: dict[str, str], title: str) -> None:
    """A table and JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, "what": title, "rows": [asdict(row) for row in rows]}, indent=1)
    (folder / "data.json").write_text(text + "\n", encoding="utf-8")
    lines = ["# Loaders, measured", "", ", ".join(f"{k} {v}" for k, v in machine.items()) + ".", "", f"{title}.", ""]
    lines += ["| an epoch | seconds | times faster than files |", "|---|---|---|"]
    lines += [f"| {row.what} | {row.seconds:.3f} | {row.faster:.1f} |" for row in rows]
    (folder / "data.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--check", action="store_true", help="exit status 1 if the bar is missed")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    rows = measure(options.pairs, options.size, options.batch_size, options.workers)
    machine = {"processor": platform.machine(), "cores": str(os.cpu_count()), "threads": str(options.threads)}
    machine |= {"torch": torch.__version__, "python": platform.python_version()}
    title = f"{options.pairs} pairs of {options.size} x {options.size} x {options.size} with two structures each"
    write(options.out, rows, machine, f"{title}, batches of {options.batch_size}, medians of {EPOCHS} epochs")
    for row in rows:
        print(f"{row.what:22}{row.seconds:8.3f} s {row.faster:8.1f} times")
    print(f"written to {os.path.relpath(options.out)}")
    faster = next(row.faster for row in rows if row.what == "cached in memory")
    return int(options.check and faster < BAR)


if __name__ == "__main__":
    sys.exit(main())
