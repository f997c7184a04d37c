"""What a training can go on from: network, optimizer, schedule, history and random states, in one file."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import io
from .history import Record

VERSION = 1
NAME = "epoch-{:06}.pt"  # sorts by epoch


@dataclass(frozen=True)
class Checkpoint:
    """A training after some epochs.

    Attributes:
        network, optimizer, scheduler: their state dicts; a network that is only to predict has the first alone.
        epoch: how many are done.
        history: a record for each.
    """

    network: Mapping[str, Tensor]
    epoch: int = 0
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Record, ...] = ()
    random: Mapping[str, Any] = field(default_factory=dict)

    def restore(self, network: nn.Module) -> None:
        """Put its weights into a network.

        Raises: ValueError if it is of another network.
        """
        own = network.state_dict()
        absent, foreign = sorted(own.keys() - self.network.keys()), sorted(self.network.keys() - own.keys())
        other = [k for k in own.keys() & self.network.keys() if own[k].shape != self.network[k].shape]
        if absent or foreign or other:
            name = (absent or foreign or sorted(other))[0]
            sizes = [tuple(x[name].shape) if name in x else None for x in (own, self.network)]
            raise ValueError(
                f"the checkpoint is of another network: {name} is {sizes[0]} in this one and {sizes[1]} in the file; "
                "make the network with the settings that it was trained with."
            )
        network.load_state_dict(dict(self.network))


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write it, whole or not at all."""
    content = {"version": VERSION, **{name: _plain(value) for name, value in vars(checkpoint).items()}}
    with io.write_atomically(path) as temporary:
        torch.save(content, temporary)


def _plain(value: Any) -> Any:
    """Containers that a loader which runs no code accepts."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.detach().cpu() if isinstance(value, Tensor) else value


def load_checkpoint(path: str | os.PathLike[str], network: nn.Module | None = None) -> Checkpoint:
    """Read a checkpoint, and put its weights into `network` if one is given. No code in the file is run.

    Raises: FileNotFoundError; ValueError for a file that is truncated, holds more than weights and numbers, or is of
        another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint; check the spelling and the folder.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged, or holds more than weights, which may be code: {reason}") from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"{path} must be a checkpoint of this library, version {VERSION}; it is not.")
    del content["version"]
    found = Checkpoint(**{**content, "history": tuple(content["history"])})
    if network is not None:
        try:
            found.restore(network)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return found


def all_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Those of a folder, after few epochs first."""
    return sorted(Path(folder).glob("epoch-*.pt"))


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The one after most epochs in a folder of them; None if there is none."""
    return next(reversed(all_checkpoints(folder)), None)


# -- random states ------------------------------------------------------------------------------------------------
def random_states() -> dict[str, Any]:
    """Of python, numpy and torch, as plain numbers and tensors."""
    version, state, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - for what still draws from numpy's global generator
    states: dict[str, Any] = {"python": [version, list(state), gauss], "torch": torch.get_rng_state()}
    states["numpy"] = [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest]
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Go on drawing where a training stopped."""
    if not states:
        return
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
