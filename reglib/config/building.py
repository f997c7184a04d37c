"""Settings to what they describe: networks, data sets, an objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data, losses, networks, train
from .names import named
from .schema import Dataset, Options, Settings, Split

OUTPUTS = {"ddf": "ddf", "dvf": "velocity", "conditional": "label", "affine": "ddf"}  # of a method
DATASETS = {"paired": data.PairedDataset, "unpaired": data.UnpairedDataset, "grouped": data.GroupedDataset}
AUGMENTATIONS = ("affine", "ddf")


@dataclass(frozen=True)
class Training:
    """What a file describes, ready for `train.fit`."""

    settings: Settings
    network: nn.Module
    objective: Callable[[train.Batch, networks.Prediction], dict[str, Tensor]]
    optimizer: Callable[[Any], torch.optim.Optimizer]

    def dataset(self, split: str, *, whole: bool = False) -> data.PairDataset | None:
        """The pairs of train, valid or test; None if the file has none.

        Args: whole: with all labels, in one order and not augmented, to be predicted.

        Raises: FileNotFoundError, ValueError as `data.find`.
        """
        return dataset_of(self.settings, split, whole=whole)

    def batches(self, split: str, *, workers: int = 0, batch_size: int | None = None) -> Any:
        """Their batches; one pair at a time but in training."""
        pairs = self.dataset(split)
        if pairs is None:
            return None
        size = batch_size or (self.settings.train.preprocess.batch_size if split == "train" else 1)
        return data.loader(pairs, batch_size=size, workers=workers)


def build(settings: Settings) -> Training:
    """Make what settings describe.

    Raises: ValueError for a name that is not known, options that do not fit, or no loss at all.
    """
    plan = settings.train
    dim = len(settings.dataset.fixed_image_shape or settings.dataset.image_shape or ())
    options = {key: _plain(value) for key, value in plan.backbone.items() if key != "name"}
    make = named("backbone", plan.backbone["name"])
    if plan.method == "affine" and plan.backbone["name"] != "global":
        raise ValueError(f"the method affine needs the backbone global; got {plan.backbone['name']!r}.")
    try:
        network = make(dim, output=OUTPUTS[plan.method], **options)
    except TypeError as error:
        raise ValueError(f"the backbone {plan.backbone['name']} does not take these options: {error}.") from None
    name = plan.optimizer["name"].lower()
    rates = {**{k: v for k, v in plan.optimizer.items() if k not in ("name", name)}, **plan.optimizer.get(name, {})}
    optimizer = partial(named("optimizer", name), **rates)
    return Training(settings, network, objective_of(settings), optimizer)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# -- data ---------------------------------------------------------------------------------------------------------
def dataset_of(settings: Settings, split: str, *, whole: bool = False) -> data.PairDataset | None:
    """The pairs of a split; None if it has no folder."""
    learns = split == "train" and not whole
    plan = settings.dataset
    where: Split | None = getattr(plan, split)
    if where is None or not where.dir:
        return None
    folders: Any = where.dir if isinstance(where.dir, list) else [where.dir]
    found = data.find([Path(folder) for folder in folders], kind=plan.type, labeled=where.labeled)
    moving = plan.moving_image_shape or plan.image_shape
    fixed = plan.fixed_image_shape or plan.image_shape
    one_label = learns or (settings.train.method == "conditional" and not whole)
    labels: Any = "none" if not where.labeled else "sample" if one_label else "all"
    if where.labeled and learns and plan.sample_label == "all" and settings.train.method != "conditional":
        labels = "all"
    more: dict[str, Any] = {
        "split": split,
        "labels": labels,
        "augment": _augment(settings) if split == "train" else None,
    }
    more["reading"] = data.Reading(shape=fixed, label_mode="bilinear")
    more["moving_reading"] = data.Reading(shape=moving, label_mode="bilinear")
    if plan.type == "grouped":
        more |= _meeting(plan)
    return DATASETS[plan.type](found, **more)


def _meeting(plan: Dataset) -> dict[str, Any]:
    return {
        "intra_group_prob": plan.intra_group_prob,
        "intra_group_option": plan.intra_group_option,
        "sample_image_in_group": plan.sample_image_in_group,
    }


def _augment(settings: Settings) -> data.Augmentation | None:
    """DeepReg's augmentations as ours.

    Differs: `field_strength` is DeepReg's largest shift in voxels of the network's grid, ours the mean shift in mm of
        a smooth field on as many knots; corners are pulled about the middle of the image.
    """
    given: Options = {}
    for each in settings.train.preprocess.data_augmentation:
        options = {key: value for key, value in each.items() if key != "name"}
        if each.get("name") == "affine":
            given["corners"] = float(options.pop("scale", 0.1))
        elif each.get("name") == "ddf":
            given["field_mm"] = float(options.pop("field_strength", 1))
            given["field_points"] = max(_listed(options.pop("low_res_size", (1, 1, 1))))
        else:
            raise ValueError(f"data_augmentation must be one of {', '.join(AUGMENTATIONS)}; got {each.get('name')!r}.")
        options.pop("batch_size", None)
        if options:
            raise ValueError(f"the augmentation {each['name']} does not take {', '.join(options)}.")
    return data.Augmentation(**given) if given else None


def _listed(value: Any) -> list[int]:
    return [int(n) for n in (value if isinstance(value, list | tuple) else [value])]


# -- losses -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Term:
    """A weighted loss of a category."""

    name: str
    weight: float
    loss: Callable[..., Tensor]


def objective_of(settings: Settings) -> Callable[[train.Batch, networks.Prediction], dict[str, Tensor]]:
    """The weighted losses of a file, as `train.fit` asks for them; those that do not apply are left out.

    Raises: ValueError if none is left.
    """
    plan = settings.train
    given = {"image": plan.loss.image, "label": plan.loss.label, "regularization": plan.loss.regularization}
    if plan.method == "conditional":
        given = {"label": plan.loss.label}
    if settings.dataset.train is not None and not settings.dataset.train.labeled:
        given.pop("label", None)
    terms = {
        kind: [term for each in several if (term := _term(kind, each)).weight != 0] for kind, several in given.items()
    }
    if not any(terms.values()):
        raise ValueError(
            f"the method {plan.method} needs a loss that applies, with a weight; image losses need a map, label losses "
            "labeled data."
        )

    def objective(batch: train.Batch, prediction: networks.Prediction) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if terms.get("image"):
            warped = train.warped(batch, prediction)
            found |= {f"image/{t.name}": t.weight * t.loss(warped, batch["fixed"]) for t in terms["image"]}
        if terms.get("label"):
            moved = (
                prediction.label if prediction.label is not None else train.warped(batch, prediction, "moving_label")
            )
            found |= {f"label/{t.name}": t.weight * t.loss(moved, batch["fixed_label"]) for t in terms["label"]}
        for t in terms.get("regularization", ()):
            found[f"regularization/{t.name}"] = t.weight * t.loss(prediction.ddf)
        return found

    return objective


def _term(kind: str, given: Mapping[str, Any]) -> _Term:
    """One loss of a file, multi-scale if it has scales."""
    options = {key: value for key, value in given.items() if key not in ("name", "weight")}
    function = named(f"{kind} loss", given["name"])
    scales, kernel = options.pop("scales", None), options.pop("kernel", "gaussian")
    loss, weight = partial(function, **options), float(given.get("weight", 1.0))
    if scales is not None:
        return _Term(given["name"], weight, _checked(given["name"], losses.multiscale(loss, scales, kernel=kernel)))
    return _Term(given["name"], weight, _checked(given["name"], loss))


def _checked(name: str, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*tensors: Tensor) -> Tensor:
        try:
            return loss(*tensors)
        except TypeError as error:
            raise ValueError(f"the loss {name} does not take these options: {error}.") from None

    return call
