"""A batch of pairs, what a network says of it, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import field, metrics
from ..grid import Grid
from ..networks import Prediction


class Batch(dict[str, Any]):
    """What `reglib.data.collate` gives, on a device; asked for what it has not, it says what it has."""

    def __missing__(self, key: str) -> Any:
        label = " Does the data set have labels, and does its `labels` ask for them?" if key.endswith("_label") else ""
        raise ValueError(f"the objective asks for {key!r}, and a batch has {', '.join(map(repr, self))}.{label}")

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors there."""
        return Batch({key: x.to(device) if isinstance(x, Tensor) else x for key, x in self.items()})

    @property
    def names(self) -> str:
        """Whom it holds, for sentences."""
        pairs = zip(self.get("moving_name", ()), self.get("fixed_name", ()), strict=False)
        return ", ".join(f"{moving} -> {fixed}" for moving, fixed in pairs) or "a batch without names"

    @property
    def grids(self) -> dict[str, list[Grid]]:
        """Where its voxels are, one grid a pair; nothing where that is not known."""
        return {key: self[key] for key in ("fixed_grid", "moving_grid") if key in self}


def ask(network: nn.Module, batch: Batch) -> Prediction:
    """What a network says of a batch.

    Raises: ValueError where the network needs a label and the batch has none, or as the network.
    """
    more: dict[str, Any] = dict(batch.grids)
    if getattr(network, "takes_label", False):
        more["moving_label"] = batch["moving_label"]
    prediction: Prediction = network(batch["fixed"], batch["moving"], **more)
    return prediction


def warped(
    batch: Batch, prediction: Prediction, name: str = "moving", *, mode: field.Mode = "bilinear", padding: str = "zeros"
) -> Tensor:
    """Something of the moving side, its image or "moving_label", under the predicted map, on the fixed grid."""
    ddf = _ddf(prediction)
    pairs = _pairs_of_grids(batch)
    if pairs is None:
        return field.warp(batch[name], ddf, mode=mode, padding=padding)
    moved = [
        field.warp(image[None], u[None], mode=mode, padding=padding, fixed_grid=fixed, moving_grid=moving)
        for image, u, (fixed, moving) in zip(batch[name], ddf, pairs, strict=True)
    ]
    return torch.cat(moved)


def _ddf(prediction: Prediction) -> Tensor:
    if prediction.ddf is None:
        raise ValueError("this network predicts a label and no map; compare prediction.label with the fixed label.")
    return prediction.ddf


def _pairs_of_grids(batch: Batch) -> Sequence[tuple[Grid, Grid]] | None:
    """The fixed and the moving grid of each pair; None where every pair shares one."""
    grids = batch.grids
    if len(grids) < 2 or grids["fixed_grid"] == grids["moving_grid"]:
        return None
    return list(zip(grids["fixed_grid"], grids["moving_grid"], strict=True))


@torch.no_grad()
def scores(batch: Batch, prediction: Prediction) -> list[dict[str, float]]:
    """How good each pair is, as far as it is known: dice (mean over structures), tre_mm, folding_fraction."""
    found: list[dict[str, float]] = [{} for _ in batch["fixed"]]
    if "fixed_label" in batch:
        moved = prediction.label if prediction.label is not None else warped(batch, prediction, "moving_label")
        for each, a, b in zip(found, moved, batch["fixed_label"], strict=True):
            each["dice"] = _dice(a > 0.5, b > 0.5)
    if prediction.ddf is None:
        return found
    grids = batch.grids.get("fixed_grid")
    for k, (each, ddf) in enumerate(zip(found, prediction.ddf.detach().float(), strict=True)):
        if "fixed_points" in batch and grids is not None:
            points = {f"{role}_points": batch[f"{role}_points"][k][None].to(ddf.device) for role in ("fixed", "moving")}
            each["tre_mm"] = float(metrics.tre(ddf[None], fixed_grid=grids[k], **points).mean())
        each["folding_fraction"] = float((field.jacobian_determinant(ddf[None]) <= 0).float().mean())
    return found


def _dice(a: Tensor, b: Tensor) -> float:
    """Mean over the structures (k, *s) that either has."""
    both, sizes = ((x.flatten(1).sum(1)) for x in (a & b, a.int() + b.int()))
    seen = sizes > 0
    return float((2 * both[seen] / sizes[seen]).mean()) if bool(seen.any()) else float("nan")
