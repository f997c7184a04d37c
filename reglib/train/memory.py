"""How much memory a training will take, before it takes it."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ..grid import Grid
from .batches import Batch, ask
from .fitting import Objective, total

PROBES = {2: (96, 160), 3: (32, 48)}  # voxels along an axis if all were equal; a step at either takes a second
MB = 2**20


class Memory(NamedTuple):
    """Megabytes (2^20 bytes) of tensors at the fullest moment; `weights` are parameters, gradients and Adam's moments.

    The process itself comes on top, some 400 MB on a CPU, and what its allocator keeps of freed blocks, some 20 %.
    """

    step: float
    predict: float
    weights: float


def estimate_memory(
    network: nn.Module,
    objective: Objective,
    shape: Sequence[int],
    *,
    batch_size: int = 1,
    labels: int = 0,
) -> Memory:
    """What a training step and a prediction on images of a size will take, found by trying two small ones.

    Tensors of a step grow with the number of voxels, so two small steps say what a large one takes, whatever the
    network and the objective do. The network stays as it is.

    Args:
        objective: as for `fit`; it gets images of noise, with labels and grids, and no points.
        shape: voxels of the fixed and of the moving image along each axis.
        labels: how many structures a batch has.

    Raises: ValueError for a shape that is not of the network's dimension.
    """
    dim, channels = getattr(network, "dim", len(shape)), getattr(network, "channels", 1)
    if len(shape) != dim or min(shape, default=0) < 1 or batch_size < 1:
        raise ValueError(
            f"shape must be {dim} sizes of at least 1 and batch_size at least 1; got {tuple(shape)} and {batch_size}."
        )
    trial = copy.deepcopy(network).cpu()
    own = sum(x.numel() * x.element_size() for x in (*trial.parameters(), *trial.buffers()))
    wanted = math.prod(_padded(shape, trial)) * batch_size
    probes = [_probe(size, shape, trial) for size in PROBES[dim]]
    if probes[0] == probes[1]:  # both as small as a deep network takes them
        probes[1][0] *= 2
    voxels = [math.prod(_padded(probe, trial)) for probe in probes]
    found = []
    for with_step in (True, False):
        small, large = (_measured(trial, objective, probe, channels, labels, with_step) for probe in probes)
        slope = (large - small) / (voxels[1] - voxels[0])
        found.append((small + slope * (wanted - voxels[0])) / MB)
    moments = 2 * own / MB
    return Memory(step=found[0] + own / MB + moments, predict=found[1] + own / MB, weights=2 * own / MB + moments)


def _probe(size: int, shape: Sequence[int], network: nn.Module) -> list[int]:
    """A small shape in about the proportions of a large one, of sizes that need no padding."""
    multiple = getattr(getattr(network, "backbone", None), "multiple", 1)
    mean = math.prod(shape) ** (1 / len(shape))
    return [max(1, round(size * n / mean / multiple)) * multiple for n in shape]


def _padded(shape: Sequence[int], network: nn.Module) -> list[int]:
    multiple = getattr(getattr(network, "backbone", None), "multiple", 1)
    return [-(-n // multiple) * multiple for n in shape]


def _measured(
    network: nn.Module, objective: Objective, shape: Sequence[int], channels: int, labels: int, with_step: bool
) -> float:
    """Bytes of what a step, or a prediction, makes at the fullest moment; two, as the first makes what then stays."""
    batch = _noise(shape, channels, labels)

    def step() -> None:
        with torch.set_grad_enabled(with_step):
            prediction = ask(network, batch)
            if with_step:
                total(objective(batch, prediction)).backward()

    step()
    network.zero_grad()
    known = [*network.parameters(), *network.buffers(), *(x for x in batch.values() if isinstance(x, Tensor))]
    with _Live(known) as live:
        step()
    network.zero_grad()
    return live.most + sum(x.numel() * x.element_size() for x in batch.values() if isinstance(x, Tensor))


def _noise(shape: Sequence[int], channels: int, labels: int) -> Batch:
    batch: dict[str, Any] = {}
    for role in ("fixed", "moving"):
        batch[role] = torch.rand(1, channels, *shape)
        batch[f"{role}_grid"], batch[f"{role}_name"] = [Grid(shape)], ["noise"]
        if labels:
            batch[f"{role}_label"] = torch.rand(1, labels, *shape)
    return Batch(batch)


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in it and not yet gone."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary({x.untyped_storage(): True for x in known})

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = True
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size
