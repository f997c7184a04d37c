"""Pairwise registration by optimization.

`register` descends from a given start, coarse to fine; `align_moments` and `choose_start` find one.
"""

from .descent import Options, Registration, register
from .discrete import ConvexOptions, CostVolume, cost_volume, coupled_convex
from .levels import Level
from .objective import Landmarks, Loss, Term
from .optimizers import Lbfgs, Momentum, ScaledAdam
from .start import align_moments, choose_start

__all__ = [
    "ConvexOptions",
    "CostVolume",
    "Landmarks",
    "Lbfgs",
    "Level",
    "Loss",
    "Momentum",
    "Options",
    "Registration",
    "ScaledAdam",
    "Term",
    "align_moments",
    "choose_start",
    "cost_volume",
    "coupled_convex",
    "register",
]
