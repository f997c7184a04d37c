"""What a trained network says of each pair of a data set, in files, and how good it is, in tables.

    OUT/pair_I/                       I is the pair's index; of unpaired scans moving_fixed, of groups also the groups
        moving_image.nii.gz  fixed_image.nii.gz  pred_fixed_image.nii.gz
        ddf.nii.gz  dvf.nii.gz  affine.txt
        label_K/moving_label.nii.gz  fixed_label.nii.gz  pred_fixed_label.nii.gz
    OUT/metrics.csv  metrics_stats_per_label.csv  metrics_stats_overall.csv

Source: DeepReg's manual, "Predict".   Differs: files have the grids' headers, `affine.txt` is the world matrix
moving_from_fixed, 4 x 4; label_tre is in mm, a distance of centers of gravity; label_hd95, point_tre and
folding_fraction are columns more.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import field, io, metrics
from ..data import PairDataset
from ..grid import Grid
from ..networks import Prediction
from .batches import Batch, ask, warped

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
THRESHOLD = 0.5  # of a mask
METRICS = ("image_ssd", "label_binary_dice", "label_tre", "label_hd95", "point_tre", "folding_fraction")


@torch.no_grad()
def predict(
    network: nn.Module,
    pairs: PairDataset,
    out: str | os.PathLike[str],
    *,
    labels: Literal["linear", "nearest"] = "linear",
    nifti: bool = True,
    png: bool = False,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Predict every pair of a data set, write what is said above, and return metrics.csv.

    Args:
        pairs: with labels="all", for a line for each structure.
        labels: how masks are read where the map leads.
        nifti, png: which files are written for each pair; PNGs are slices along the last axis.
        batch_size: pairs that are predicted at once, if they are of one size.

    Raises: ValueError for a folder that cannot be written, or as the network.
    """
    import pandas as pd

    folder = io.require_writable(Path(out))
    was = network.training
    network.to(device).eval()
    lines: list[dict[str, Any]] = []
    with tqdm(total=len(pairs), unit="pair", disable=not progress) as bar:
        for items, numbers in _together(pairs, batch_size):
            predictions = _asked(network, items, torch.device(device))
            for item, number, prediction in zip(items, numbers, predictions, strict=True):
                lines += _one(item, _index(pairs, number), prediction, folder, labels, nifti, png)
                logger.info("%s onto %s", item["moving_name"], item["fixed_name"])
                bar.update()
    network.train(was)
    table = pd.DataFrame(lines)
    _write_tables(table, folder)
    return table


def _together(pairs: PairDataset, batch_size: int) -> Iterator[tuple[list[Any], list[int]]]:
    """Runs of pairs of one size."""
    items: list[Any] = []
    numbers: list[int] = []
    for k in range(len(pairs)):
        item = pairs[k]
        if items and (len(items) == batch_size or _shapes(item) != _shapes(items[0])):
            yield items, numbers
            items, numbers = [], []
        items.append(item)
        numbers.append(k)
    if items:
        yield items, numbers


def _shapes(item: Any) -> tuple[Any, ...]:
    return item["moving"].shape, item["fixed"].shape, "moving_label" in item and item["moving_label"].shape


def _asked(network: nn.Module, items: Sequence[Any], device: torch.device) -> list[Prediction]:
    """The prediction of each pair, as batches of one; of a network that moves labels, of all its labels."""
    images = {key: torch.stack([item[key] for item in items]) for key in ("moving", "fixed")}
    grids = {key: [item[key] for item in items] for key in ("moving_grid", "fixed_grid")}
    batch = Batch(images | grids).to(device)
    if not getattr(network, "takes_label", False):
        return _apart(ask(network, batch), len(items))
    if "moving_label" not in items[0]:
        raise ValueError("this network moves labels, and the data set has none; does its `labels` ask for them?")
    masks = torch.stack([item["moving_label"] for item in items]).to(device)
    found = [ask(network, Batch(batch, moving_label=masks[:, k : k + 1])).label for k in range(masks.shape[1])]
    return _apart(Prediction(label=torch.cat([label for label in found if label is not None], dim=1)), len(items))


def _apart(prediction: Prediction, count: int) -> list[Prediction]:
    return [Prediction(*(None if x is None else x[k : k + 1].cpu() for x in prediction)) for k in range(count)]


def _index(pairs: PairDataset, number: int) -> str:
    """What DeepReg calls a pair: its number, or moving and fixed ones, each after its group's if there are groups."""
    draw = pairs.draws(0)[number]
    if pairs.found.kind == "paired":
        return str(draw.moving)
    if pairs.found.kind == "unpaired":
        return f"{draw.moving}_{draw.fixed}"
    place = {index: (g, k) for g, group in enumerate(pairs.found.groups) for k, index in enumerate(group)}
    return "_".join(str(n) for index in (draw.moving, draw.fixed) for n in place[index])


# -- one pair -----------------------------------------------------------------------------------------------------
def _one(
    item: Any, index: str, prediction: Prediction, out: Path, labels: str, nifti: bool, png: bool
) -> list[dict[str, Any]]:
    """Write a pair; returns its lines, one for each label, or one."""
    batch = Batch(
        {key: x[None] if isinstance(x, Tensor) and not key.endswith("points") else [x] for key, x in item.items()}
    )
    moved = None if prediction.ddf is None else warped(batch, prediction)
    masks = _moved_labels(batch, prediction, labels)
    folder = out / f"pair_{index}"
    if nifti:
        _write_nifti(folder, batch, prediction, moved, masks)
    if png:
        _write_png(folder, batch, prediction, moved, masks)
    line: dict[str, Any] = {"pair_index": index}
    if moved is not None:
        line["image_ssd"] = float((moved - batch["fixed"]).square().mean())
    if prediction.ddf is not None:
        line["folding_fraction"] = float((field.jacobian_determinant(prediction.ddf) <= 0).float().mean())
        if "fixed_points" in batch:
            points = {f"{role}_points": batch[f"{role}_points"][0][None] for role in ("fixed", "moving")}
            line["point_tre"] = float(metrics.tre(prediction.ddf, fixed_grid=batch["fixed_grid"][0], **points).mean())
    if masks is None:
        return [line | {"label_index": -1}]
    fixed, grid = batch["fixed_label"], batch["fixed_grid"][0]
    return [
        line | _of_label(masks[:, k : k + 1], fixed[:, k : k + 1], grid) | {"label_index": k}
        for k in range(masks.shape[1])
    ]


def _moved_labels(batch: Batch, prediction: Prediction, labels: str) -> Tensor | None:
    if "fixed_label" not in batch:
        return None
    if prediction.label is not None:
        return prediction.label
    return warped(batch, prediction, "moving_label", mode="nearest" if labels == "nearest" else "bilinear")


def _of_label(moved: Tensor, fixed: Tensor, grid: Grid) -> dict[str, float]:
    """Overlap and distances of one structure; NaN where a distance has no meaning."""
    a, b = ((x >= THRESHOLD).long() for x in (moved, fixed))
    both, total = int((a & b).sum()), int(a.sum() + b.sum())
    found = {"label_binary_dice": (2 * both + 1e-5) / (total + 1e-5)}
    seen = bool(a.any()) and bool(b.any())
    measure: dict[str, Any] = {"spacing": grid.spacing, "labels": [1]}
    found["label_tre"] = metrics.centroid_distance(a, b, **measure)[1] if seen else float("nan")
    found["label_hd95"] = metrics.hausdorff(a, b, percentile=95, **measure)[1] if seen else float("nan")
    return found


def _tensors(batch: Batch, prediction: Prediction, moved: Tensor | None) -> dict[str, tuple[Tensor, Grid]]:
    """The images of a pair by the names of their files."""
    fixed, moving = batch["fixed_grid"][0], batch["moving_grid"][0]
    found = {"moving_image": (batch["moving"], moving), "fixed_image": (batch["fixed"], fixed)}
    return found if moved is None else found | {"pred_fixed_image": (moved, fixed)}


def _labels(batch: Batch, masks: Tensor | None) -> Iterator[tuple[str, Tensor, Grid]]:
    """label_K/NAME, a mask and its grid."""
    if masks is None:
        return
    sides = {"moving": batch["moving_label"], "fixed": batch["fixed_label"], "pred_fixed": masks}
    for k in range(masks.shape[1]):
        for role, all_of in sides.items():
            grid = batch["moving_grid" if role == "moving" else "fixed_grid"][0]
            yield f"label_{k}/{role}_label", all_of[:, k : k + 1], grid


def _write_nifti(
    folder: Path, batch: Batch, prediction: Prediction, moved: Tensor | None, masks: Tensor | None
) -> None:
    for name, (image, grid) in _tensors(batch, prediction, moved).items():
        io.save_image(folder / f"{name}.nii.gz", image, grid)
    for name, mask, grid in _labels(batch, masks):
        io.save_image(folder / f"{name}.nii.gz", mask, grid)
    fixed = batch["fixed_grid"][0]
    if prediction.ddf is not None:
        io.save_ddf(folder / "ddf.nii.gz", prediction.ddf, fixed)
    if prediction.velocity is not None:
        io.save_ddf(folder / "dvf.nii.gz", prediction.velocity, fixed.resize(prediction.velocity.shape[2:]))
    if prediction.affine is not None:
        io.save_matrix(folder / "affine.txt", prediction.affine[0])


def _write_png(folder: Path, batch: Batch, prediction: Prediction, moved: Tensor | None, masks: Tensor | None) -> None:
    """Slices along the last axis: images and fields from their lowest to their highest value, masks from 0 to 1."""
    images = {name: _unit(image) for name, (image, _) in _tensors(batch, prediction, moved).items()}
    images |= {name: mask for name, mask, _ in _labels(batch, masks)}
    for name, vectors in (("ddf", prediction.ddf), ("dvf", prediction.velocity)):
        if vectors is not None:
            images[name] = _unit(vectors)
    for name, image in images.items():
        last = name.rpartition("/")[2]
        for depth, slab in enumerate(image[0].unbind(-1) if image.ndim == 5 else [image[0]]):
            _write_slice(folder / name / f"depth{depth}_{last}.png", slab)


def _unit(image: Tensor) -> Tensor:
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp(min=1e-12)


def _write_slice(path: Path, slab: Tensor) -> None:
    """(c, h, w) in [0, 1]: gray, or the components of a vector as red, green and blue."""
    from PIL import Image

    values = (255 * slab.clamp(0, 1)).round().to(torch.uint8).numpy()
    if len(values) == 2:
        values = np.concatenate([values, np.zeros_like(values[:1])])
    picture = Image.fromarray(values[0] if len(values) == 1 else np.moveaxis(values, 0, -1))
    with io.write_atomically(path) as temporary:
        picture.save(temporary, format="PNG")


# -- tables -------------------------------------------------------------------------------------------------------
def _write_tables(table: pd.DataFrame, out: Path) -> None:
    """metrics.csv, by label, and over all."""
    columns = [name for name in METRICS if name in table]
    table = table[[*columns, "pair_index", "label_index"]]
    by_label = table.groupby("label_index")[columns].agg(["mean", "median", "std"])
    by_label.columns = [f"{name}_{statistic}" for name, statistic in by_label.columns]
    for name, each, index in (
        ("metrics.csv", table, False),
        ("metrics_stats_per_label.csv", by_label, True),
        ("metrics_stats_overall.csv", table[columns].describe(), True),
    ):
        with io.write_atomically(out / name) as temporary:
            each.to_csv(temporary, index=index)
