"""Pairwise registration by optimization.

`register` descends from a given start, coarse to fine; `align` finds a linear one from headers, moments and turns;
`demons` pushes and smooths; `coupled_convex` searches.
"""

from .demons import DemonsOptions, demons, graph_diffusion
from .descent import Options, Registration, register
from .discrete import ConvexOptions, CostVolume, cost_volume, coupled_convex
from .levels import Level
from .objective import Landmarks, Loss, Term
from .optimizers import Lbfgs, Momentum, ScaledAdam
from .start import align, align_moments

__all__ = [
    "ConvexOptions",
    "CostVolume",
    "DemonsOptions",
    "Landmarks",
    "Lbfgs",
    "Level",
    "Loss",
    "Momentum",
    "Options",
    "Registration",
    "ScaledAdam",
    "Term",
    "align",
    "align_moments",
    "cost_volume",
    "coupled_convex",
    "demons",
    "graph_diffusion",
    "register",
]
