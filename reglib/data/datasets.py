"""Data sets of pairs: map-style, for `torch.utils.data.DataLoader`, and an epoch of meetings at a time.

An index is (epoch, k): the k-th meeting of an epoch, which depends on the seed and the epoch alone. So any number of
workers, processes and restarts see the same pairs, and workers that live on see the next epoch's. A plain k is of epoch
0, for samplers of torch or MONAI that weigh or share out the meetings themselves.

Source: DeepReg's paired, unpaired and grouped loaders; VoxelMorph's scan-to-scan and scan-to-atlas generators.
Differs: as in `records` and `sampling`. In training one label is drawn for each meeting; in validation and test all are
given and every epoch has the same pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from . import sampling
from .reading import Reading, Scan, onto
from .records import Found, Record
from .sampling import Draw, IntraOption

Split = Literal["train", "valid", "test"]
Labels = Literal["sample", "all", "none"]
Cache = Literal["memory"] | str | os.PathLike[str] | None
Item = dict[str, Any]
Augment = Callable[[Item, np.random.Generator], Item]
DRAWING, AUGMENTING = 0, 1  # streams of random numbers


@runtime_checkable
class Scans(Protocol):
    """Scans by number."""

    def __getitem__(self, index: int) -> Scan: ...


class Uncached:
    """Scans that are read each time."""

    def __init__(self, records: Sequence[Record], reading: Reading) -> None:
        self._records, self._reading = records, reading

    def __getitem__(self, index: int) -> Scan:
        return self._reading(self._records[index])


def _scans(records: Sequence[Record], reading: Reading, cache: Cache) -> Scans:
    if cache is None:
        return Uncached(records, reading)
    from .caching import Cached

    return Cached(records, reading, None if cache == "memory" else Path(cache))


class PairDataset(Dataset[Item]):
    """Base of the data sets below: what a pair is; a subclass says who meets whom.

    An item has, as far as they are known,

        moving, fixed                (1, *s) float32, each on its own grid
        moving_label, fixed_label    (k, *s) float32 in [0, 1]; k is 1 where one label is drawn
        moving_points, fixed_points  (n, d) float64, RAS+ mm
        moving_grid, fixed_grid, moving_name, fixed_name
        label_index                  which label was drawn; -1 for all of them or none

    Args:
        found: from `find`, `from_table` or `from_list`.
        split: "train", or "valid" and "test", in which pairs and their order are the same in every epoch.
        reading: how scans become tensors.
        moving_reading: how moving ones do, if otherwise.
        onto_fixed: resample each moving scan onto the grid of its fixed one, for networks that want one grid.
        labels: "sample" one of the labels, "all", or "none"; by default one in training, all otherwise.
        augment: called with an item and a generator of its own.
        cache: "memory" reads every scan once, before the first; a folder keeps them on disk; None reads each time.
        seed: of the pairs and the augmentation in training; validation and test have 0.
    """

    kinds: tuple[str, ...] = ("paired", "unpaired", "grouped")

    def __init__(
        self,
        found: Found,
        *,
        split: Split = "train",
        reading: Reading | None = None,
        moving_reading: Reading | None = None,
        onto_fixed: bool = False,
        labels: Labels | None = None,
        augment: Augment | None = None,
        cache: Cache = None,
        seed: int = 0,
    ) -> None:
        if split not in ("train", "valid", "test"):
            raise ValueError(f'split must be "train", "valid" or "test"; got "{split}".')
        if labels not in (None, "sample", "all", "none"):
            raise ValueError(f'labels must be "sample", "all" or "none"; got "{labels}".')
        if found.kind not in self.kinds:
            raise ValueError(f"{type(self).__name__} takes {' or '.join(self.kinds)} scans; these are {found.kind}.")
        self.found, self.split, self.seed = found, split, seed if split == "train" else 0
        self.labels: Labels = labels or ("sample" if split == "train" else "all")
        self.onto_fixed, self.augment = onto_fixed, augment
        self.reading = reading or Reading()
        self._drawn: tuple[int, list[Draw]] = (-1, [])
        fixed = self._fixed_records()
        self._moving = _scans(self._read(found.records), moving_reading or self.reading, cache)
        same = fixed is found.records and (moving_reading is None or moving_reading == self.reading)
        self._fixed = self._moving if same else _scans(self._read(fixed), self.reading, cache)

    def _fixed_records(self) -> Sequence[Record]:
        return self.found.records

    def _read(self, records: Sequence[Record]) -> list[Record]:
        """The records, without labels where none are wanted."""
        if self.labels != "none":
            return list(records)
        return [Record(r.name, r.image, None, r.points, r.group) for r in records]

    # -- who meets whom ----------------------------------------------------------------------------------------
    def draws(self, epoch: int) -> list[Draw]:
        """The meetings of an epoch; those of the last one asked for are kept."""
        if self._drawn[0] != epoch:
            self._drawn = epoch, self._meet(self._generator(DRAWING, epoch))
        return self._drawn[1]

    def _meet(self, rng: np.random.Generator) -> list[Draw]:
        raise NotImplementedError

    def _generator(self, stream: int, epoch: int, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, epoch if self.split == "train" else 0, *more])

    def __len__(self) -> int:
        return len(self.draws(0))

    # -- one pair ----------------------------------------------------------------------------------------------
    def __getitem__(self, index: int | tuple[int, int]) -> Item:
        epoch, k = index if isinstance(index, tuple) else (0, index)
        draws = self.draws(epoch)
        if not -len(draws) <= k < len(draws):
            raise IndexError(f"epoch {epoch} has {len(draws)} pairs; there is no {k}.")
        k %= len(draws)
        moving, fixed = self._moving[draws[k].moving], self._fixed[draws[k].fixed]
        if self.onto_fixed and moving.grid != fixed.grid:
            moving = onto(moving, fixed.grid, label_mode=self.reading.label_mode)
        item = self._item(moving, fixed, draws[k])
        return item if self.augment is None else self.augment(item, self._generator(AUGMENTING, epoch, k))

    def _item(self, moving: Scan, fixed: Scan, draw: Draw) -> Item:
        item: Item = {"label_index": -1}
        for role, scan in (("moving", moving), ("fixed", fixed)):
            item |= {role: scan.image.clone(), f"{role}_grid": scan.grid, f"{role}_name": scan.name}
        if moving.points is not None and fixed.points is not None:
            item |= {"moving_points": moving.points.clone(), "fixed_points": fixed.points.clone()}
        if moving.label is None or fixed.label is None:
            return item
        count = len(moving.label)
        if count != len(fixed.label):
            raise ValueError(
                f"both scans of a pair need as many labels; {moving.name} has {count} and {fixed.name} "
                f"{len(fixed.label)}; an empty mask stands for a structure that is not seen."
            )
        kept = slice(None)
        if self.labels == "sample":
            item["label_index"] = draw.label_of(count)
            kept = slice(item["label_index"], item["label_index"] + 1)
        return item | {"moving_label": moving.label[kept].clone(), "fixed_label": fixed.label[kept].clone()}


class PairedDataset(PairDataset):
    """Scans that belong together: each pair once an epoch."""

    kinds = ("paired",)

    def _fixed_records(self) -> Sequence[Record]:
        return self.found.fixed

    def _meet(self, rng: np.random.Generator) -> list[Draw]:
        return sampling.pairs(len(self.found.records), rng, shuffle=self.split == "train")


class UnpairedDataset(PairDataset):
    """Scans of different subjects: floor(N / 2) disjoint pairs an epoch, drawn anew in training."""

    kinds = ("unpaired", "grouped")

    def _meet(self, rng: np.random.Generator) -> list[Draw]:
        if len(self.found.records) < 2:
            raise ValueError(f"a pair needs two scans; there is {len(self.found.records)}.")
        return sampling.disjoint(len(self.found.records), rng)


class GroupedDataset(PairDataset):
    """Several scans of each subject: pairs within groups, between groups, or both.

    Args:
        intra_group_prob: how often a pair is of one group.
        intra_group_option: in it the moving scan comes "forward", before the fixed one, "backward", or either way.
        sample_image_in_group: one pair a group and epoch; False goes through all pairs; `intra_group_prob` is 0 or 1.
        more: as for `PairDataset`.
    """

    kinds = ("grouped",)

    def __init__(
        self,
        found: Found,
        *,
        intra_group_prob: float = 1.0,
        intra_group_option: IntraOption = "unconstrained",
        sample_image_in_group: bool = True,
        **more: Any,
    ) -> None:
        self.intra_group_prob, self.intra_group_option = intra_group_prob, intra_group_option
        self.sample_image_in_group = sample_image_in_group
        super().__init__(found, **more)
        self.draws(0)  # what cannot be drawn is said now

    def _meet(self, rng: np.random.Generator) -> list[Draw]:
        rules: Any = {"intra_group_prob": self.intra_group_prob, "intra_group_option": self.intra_group_option}
        if self.sample_image_in_group:
            return sampling.groups_sampled(self.found.groups, rng, **rules)
        return sampling.groups_enumerated(self.found.groups, rng, shuffle=self.split == "train", **rules)


class ScanToScanDataset(PairDataset):
    """Two scans drawn independently for each pair, which may be one scan, as in VoxelMorph.

    Args:
        count: pairs an epoch; by default as many as there are scans.
        more: as for `PairDataset`.
    """

    kinds = ("unpaired", "grouped")

    def __init__(self, found: Found, *, count: int | None = None, **more: Any) -> None:
        self.count = len(found.records) if count is None else count
        super().__init__(found, **more)

    def _meet(self, rng: np.random.Generator) -> list[Draw]:
        return sampling.scan_to_scan(len(self.found.records), self.count, rng)


class ScanToAtlasDataset(ScanToScanDataset):
    """A scan drawn for each pair, and one atlas that every one of them is registered to.

    Args:
        atlas: the fixed scan.
        more: as for `ScanToScanDataset`.
    """

    def __init__(self, found: Found, atlas: Record, **more: Any) -> None:
        self.atlas = atlas
        super().__init__(found, **more)

    def _fixed_records(self) -> Sequence[Record]:
        return [self.atlas]

    def _meet(self, rng: np.random.Generator) -> list[Draw]:
        return sampling.scan_to_atlas(len(self.found.records), self.count, rng)


# -- batches ------------------------------------------------------------------------------------------------------
class EpochSampler(Sampler[tuple[int, int]]):
    """The meetings of one epoch after another, as indices (epoch, k); each iteration is the next epoch.

    Args:
        dataset: one of the above.
        rank, replicas: which share of each epoch this process takes, of how many.

    Attributes: epoch: of the next iteration; set it to go on where a run ended.
    """

    def __init__(self, dataset: PairDataset, *, rank: int = 0, replicas: int = 1) -> None:
        if not 0 <= rank < replicas:
            raise ValueError(f"rank must be from 0 to replicas - 1; got {rank} of {replicas}.")
        self.dataset, self.rank, self.replicas, self.epoch = dataset, rank, replicas, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        count = self._share(len(self.dataset.draws(epoch)))
        return iter([(epoch, self.rank + k * self.replicas) for k in range(count)])

    def __len__(self) -> int:
        return self._share(len(self.dataset.draws(self.epoch)))

    def _share(self, count: int) -> int:
        """Every process has as many, so that none waits for another; what is left over sits out."""
        return count // self.replicas if self.replicas > 1 else count


def loader(
    dataset: PairDataset,
    *,
    batch_size: int = 1,
    workers: int = 0,
    sampler: Sampler[Any] | None = None,
    drop_last: bool | None = None,
    **more: Any,
) -> DataLoader[Item]:
    """Batches of pairs. Each iteration is the next epoch; the number of workers does not change what comes.

    Args:
        workers: processes that read ahead.
        sampler: by default an `EpochSampler`; another, such as torch's `WeightedRandomSampler` or MONAI's
            `DistributedWeightedRandomSampler`, chooses among the pairs of epoch 0.
        drop_last: leave out an incomplete last batch; by default in training, if there is a complete one.
        more: for torch's `DataLoader`, such as `prefetch_factor` and `pin_memory`.
    """
    sampler = sampler or EpochSampler(dataset)
    if drop_last is None:
        length = len(sampler) if isinstance(sampler, Sized) else len(dataset)
        drop_last = dataset.split == "train" and length >= batch_size
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=more.pop("persistent_workers", workers > 0),
        collate_fn=collate,
        drop_last=drop_last,
        **more,
    )


def collate(items: Sequence[Item]) -> Item:
    """A batch: tensors stacked, everything else in lists.

    Where some pairs have labels and others none, those get empty masks, as of structures that are not seen.
    Raises: ValueError if tensors differ in shape.
    """
    items = _with_empty_labels(items)
    keys = [key for key in items[0] if all(key in item for item in items)]
    batch: Item = {}
    for key in keys:
        values = [item[key] for item in items]
        if key == "label_index":
            batch[key] = torch.tensor(values)
        elif isinstance(values[0], Tensor) and not key.endswith("_points"):
            batch[key] = _stacked(key, values)
        else:
            batch[key] = values
    return batch


def _stacked(key: str, values: Sequence[Tensor]) -> Tensor:
    shapes = [tuple(value.shape) for value in values]
    if len(set(shapes)) > 1:
        cure = "Reading(shape=...) or spacing and multiple bring them to one, or use batch_size=1."
        if shapes[0][1:] == shapes[1][1:]:
            cure = 'they differ in how many labels they have; labels="sample" draws one, or use batch_size=1.'
        raise ValueError(f"a batch needs scans of one shape; {key} has {sorted(set(shapes))}; {cure}")
    return torch.stack(list(values))


def _with_empty_labels(items: Sequence[Item]) -> list[Item]:
    known = next((item for item in items if "fixed_label" in item), None)
    if known is None:
        return list(items)
    filled = []
    for item in items:
        if "fixed_label" not in item:
            empty = {
                f"{role}_label": item[role].new_zeros(len(known[f"{role}_label"]), *item[role].shape[1:])
                for role in ("moving", "fixed")
            }
            item = item | empty
        filled.append(item)
    return filled
