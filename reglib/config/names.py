"""What the names in a file mean. Users add theirs with `register`, in a module that they name on the command line."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import nn

from .. import networks
from . import deepreg

T = TypeVar("T", bound=Callable[..., Any])
TABLE: dict[str, dict[str, Callable[..., Any]]] = {
    "image loss": {"ssd": deepreg.ssd, "lncc": deepreg.lncc, "gncc": deepreg.gncc, "gmi": deepreg.gmi},
    "label loss": {
        "dice": deepreg.dice,
        "jaccard": deepreg.jaccard,
        "cross-entropy": deepreg.cross_entropy,
        "ssd": deepreg.ssd,
    },
    "regularization loss": {"gradient": deepreg.gradient, "bending": deepreg.bending},
    "backbone": {},
    "optimizer": {},
}


def register(kind: str, name: str) -> Callable[[T], T]:
    """Give a function a name in files.

    Args: kind: "image loss" or "label loss", called as (warped, fixed, **options); "regularization loss", as (ddf,
        **options); "backbone", as (dim, **options) -> network; "optimizer", as (parameters, **options).

    Raises: ValueError for another kind, or a name that is taken.
    """
    if kind not in TABLE:
        raise ValueError(f"kind must be one of {', '.join(TABLE)}; got {kind!r}.")
    if name in TABLE[kind]:
        raise ValueError(f"there is a {kind} called {name!r} already; choose another name.")

    def add(function: T) -> T:
        TABLE[kind][name] = function
        return function

    return add


def named(kind: str, name: str) -> Callable[..., Any]:
    """What a name means.

    Raises: ValueError with the nearest name that there is.
    """
    known = TABLE[kind]
    if name in known:
        return known[name]
    raise ValueError(f"{kind} must be one of {', '.join(sorted(known))}; got {name!r}{nearest(name, known)}.")


def nearest(name: str, known: Any) -> str:
    """What may have been meant, as the end of a sentence."""
    close = get_close_matches(str(name).lower(), {str(k).lower(): k for k in known}, n=1, cutoff=0.5)
    found = [str(k) for k in known if close and str(k).lower() == close[0]]
    return f"; do you mean {found[0]!r}?" if found else ""


def load_modules(modules: list[str]) -> None:
    """Import modules that register names, as a user gave them on the command line.

    Raises: ValueError if there is no such module.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise ValueError(f"{module} cannot be imported: {error}; is it in this folder or on PYTHONPATH?") from None


# -- DeepReg's backbones ------------------------------------------------------------------------------------------
@register("backbone", "unet")
def _unet(
    dim: int,
    *,
    num_channel_initial: int,
    depth: int = 3,
    extract_levels: tuple[int, ...] = (0,),
    pooling: bool = True,
    concat_skip: bool = False,
    **more: Any,
) -> nn.Module:
    shape: dict[str, Any] = {"initial": num_channel_initial, "depth": depth, "levels": extract_levels}
    return networks.unet(dim, pooling=pooling, concat_skip=concat_skip, **shape, **more)


@register("backbone", "local")
def _local(
    dim: int, *, num_channel_initial: int, extract_levels: tuple[int, ...], depth: int | None = None, **more: Any
) -> nn.Module:
    if depth is not None and depth < max(extract_levels):
        raise ValueError(f"depth must be at least the largest of extract_levels; got {depth} and {extract_levels}.")
    return networks.localnet(dim, initial=num_channel_initial, levels=extract_levels, depth=depth, **more)


@register("backbone", "global")
def _global(
    dim: int,
    *,
    num_channel_initial: int,
    depth: int | None = None,
    extract_levels: tuple[int, ...] | None = None,
    output: str = "ddf",
    **more: Any,
) -> nn.Module:
    if output != "ddf":
        raise ValueError('the backbone "global" predicts an affine map; it goes with the methods ddf and affine.')
    deep = depth if depth is not None else max(extract_levels or (4,))
    return networks.globalnet(dim, initial=num_channel_initial, depth=deep)


@register("backbone", "voxelmorph")
def _voxelmorph(dim: int, *, num_channel_initial: int = 16, **more: Any) -> nn.Module:
    c = num_channel_initial
    shape: dict[str, Any] = {"encoder": (c, 2 * c, 2 * c, 2 * c), "decoder": (2 * c,) * 4, "final": (2 * c, c, c)}
    return networks.voxelmorph(dim, **shape, **more)


# -- Keras's optimizers, as torch has them ------------------------------------------------------------------------
def _optimizer(name: str, kind: Any) -> None:
    def make(parameters: Any, *, learning_rate: float = 1e-3, lr: float | None = None, **more: Any) -> Any:
        renamed = {"beta_1": "beta1", "beta_2": "beta2", "epsilon": "eps"}
        more = {renamed.get(key, key): value for key, value in more.items()}
        if "beta1" in more or "beta2" in more:
            more["betas"] = (more.pop("beta1", 0.9), more.pop("beta2", 0.999))
        try:
            return kind(parameters, lr=learning_rate if lr is None else lr, **more)
        except TypeError as error:
            raise ValueError(f"the optimizer {name} does not take these options: {error}.") from None

    register("optimizer", name)(make)


for _name, _kind in {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
}.items():
    _optimizer(_name, _kind)
