"""What a scanner makes of tissue: contrast, bias field, noise, speckle, shadows."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .. import filters
from ..grid import Axes, Grid

AIR_HU = -1000.0


def mri(rng: np.random.Generator, image: Tensor, grid: Grid, *, noise: float, bias: float, contrast: float) -> Tensor:
    """MR of an image (1, 1, *s) in [0, 1]: another contrast, a bias field and noise; the background stays 0."""
    brain = (image > 0.02).float()
    image = image.clamp(min=0) ** math.exp(rng.normal(0, contrast))
    position = grid.points(grid.coordinates(), to=Axes.CUBE, from_=Axes.VOXEL)
    waves = sum(torch.cos(2.2 * position[..., k] + rng.uniform(0, 6.3)) * rng.normal(0, bias) for k in range(grid.dim))
    noisy = image * torch.as_tensor(waves).exp() + torch.from_numpy(rng.normal(0, noise, grid.shape)).float()
    return (noisy * brain).clamp(0, 1)


def ct(rng: np.random.Generator, image: Tensor, *, noise_hu: float = 12.0) -> Tensor:
    """CT of an image (1, 1, *s) in HU: noise, whole numbers, nothing below air."""
    noisy = image + torch.from_numpy(rng.normal(0, noise_hu, tuple(image.shape))).float()
    return noisy.round().clamp(min=AIR_HU - 24)


def ultrasound(
    rng: np.random.Generator,
    image: Tensor,
    grid: Grid,
    *,
    speckle: float = 0.35,
    shadows: int = 2,
    cone: bool = True,
) -> Tensor:
    """Ultrasound of an image (1, 1, *s) in [0, 1], seen along the second axis from its far end.

    Edges across the beam shine, tissue is speckle that grows coarser along the beam, shadows darken wedges, and outside
    the fan there is nothing.
    """
    d = grid.dim
    slope = filters.finite_difference(image, axis=3).abs()
    echo = 0.55 * image + 1.2 * slope
    grain = torch.from_numpy(np.abs(rng.normal(0, 1, grid.shape) + 1j * rng.normal(0, 1, grid.shape))).float()
    grain = filters.gaussian(grain[None, None], sigma=0.6)
    echo = echo * (1 + speckle * (grain / grain.mean() - 1) * 1.6)
    unit = grid.points(grid.coordinates(), to=Axes.CUBE, from_=Axes.VOXEL)  # (*s, d)
    depth = (1 - unit[..., 1]) / 2  # 0 at the probe
    across = unit[..., 0] / (0.25 + 0.9 * depth)
    echo = echo * (1 - 0.35 * depth)
    for _ in range(shadows):
        where, width = rng.uniform(-0.8, 0.8), rng.uniform(0.03, 0.09)
        start = rng.uniform(0.35, 0.7)
        dark = torch.exp(-((across - where) ** 2) / (2 * width**2)) * torch.sigmoid((depth - start) * 40)
        echo = echo * (1 - 0.75 * dark)
    if cone:
        echo = echo * (across.abs() < 1).float()
    assert echo.ndim == d + 2
    return echo.clamp(0, 1)
