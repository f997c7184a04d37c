"""Weights of VoxelMorph's published PyTorch code, as a network of ours."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .registration import RegistrationNetwork, voxelmorph

PARTS = {"encoder": "encoder", "decoder": "decoder", "remaining": "final"}  # theirs and ours
THEIRS = re.compile(r"unet_model\.(encoder|decoder|remaining)\.(\d+)\.(?:0\.)?main\.(weight|bias)$")


def load_voxelmorph(path: str | os.PathLike[str]) -> RegistrationNetwork:
    """The network of a `.pt` file of VoxelMorph 0.2, with its weights, resizing and integrating as it does.

    Only tensors and plain numbers are read from it: a file that would run code is refused.

    Raises: FileNotFoundError; ValueError if it is no such file, or of a model that is not supported: several
        convolutions a level, features at half the resolution, or uncertainty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; check the spelling and the folder.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles by hand, which are refused in the next moment
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged, or holds more than weights, which may be code: {reason}") from None
    config, state = _parts(path, saved)
    weights, widths = _translated(path, state)
    steps, downsampling = int(config.get("int_steps", 7)), int(config.get("int_downsize", 2))
    flow: Any = {"steps": steps, "downsampling": downsampling, "published": True} if steps else {"output": "ddf"}
    channels = int(config.get("src_feats", 1))
    network = voxelmorph(state["flow.weight"].ndim - 2, channels=channels, **flow, **widths)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} is of another network: {' '.join(str(error).split())[:200]}") from None
    return network


def _parts(path: Path, saved: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their settings and weights."""
    if not isinstance(saved, dict) or not isinstance(saved.get("model_state"), dict):
        raise ValueError(f"{path} must hold config and model_state, as VoxelMorph saves them; it does not.")
    config, state = saved.get("config") or {}, saved["model_state"]
    unsupported = {"nb_unet_conv_per_level": 1, "unet_half_res": False, "use_probs": False}
    for name, value in unsupported.items():
        if config.get(name, value) != value:
            raise ValueError(f"{path} is of a model with {name}={config[name]!r}; only {value!r} is supported.")
    if "flow.weight" not in state:
        raise ValueError(f"{path} has no flow.weight; is it a VxmDense of VoxelMorph's PyTorch code?")
    return config, state


def _translated(path: Path, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights under our names, and the channels of each part."""
    weights = {f"head.reading.levels.0.{kind}": state[f"flow.{kind}"] for kind in ("weight", "bias")}
    widths: dict[str, dict[int, int]] = {ours: {} for ours in PARTS.values()}
    for name, value in state.items():
        match = THEIRS.match(name)
        if match is None:
            if not name.startswith("flow.") and not name.endswith(".grid"):
                raise ValueError(f"{path} has {name}, which no model of VoxelMorph 0.2 that is supported has.")
            continue
        part, index, kind = PARTS[match.group(1)], int(match.group(2)), match.group(3)
        weights[f"backbone.{part}.{index}.{kind}"] = value
        widths[part][index] = len(value)
    return weights, {part: [found[k] for k in sorted(found)] for part, found in widths.items()}
