"""Medical image registration in one convention:  warped[p] = moving[p + ddf[p]].

Convention: p runs over the voxels of the fixed grid. A ddf is (b, d, *spatial): channels first, component k
along tensor axis k + 2, in voxels of the fixed grid, pull-back (fixed to moving). Worlds are RAS+ in mm.

Rooms: grid (where voxels are), filters, field (displacement algebra), transforms, losses, optimize
(registration), phantoms (known truth), metrics (mm, for people), io (files), plot, widgets, workbook (what
notebooks need), cli. Each loads when it is first used.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "cli",
    "data",
    "field",
    "filters",
    "grid",
    "io",
    "losses",
    "metrics",
    "monai_transforms",
    "optimize",
    "phantoms",
    "plot",
    "transforms",
    "widgets",
    "workbook",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    if name == "__version__":
        return import_module("importlib.metadata").version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
