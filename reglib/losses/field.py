"""What makes a displacement field implausible."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from ..grid import per_axis


def diffusion_loss(
    ddf: Float[Tensor, "b d *s"], *, spacing: float | Sequence[float] | None = None
) -> Float[Tensor, ""]:
    """Diffusion energy  mean |grad u|^2 , the mean over voxels of the sum over components and axes.

    Args:
        ddf: voxels of its grid.
        spacing: mm per voxel along each axis; with it displacements and distances are in mm (dimensionless energy).

    Forward differences, over the neighbors that exist.
    Source: Balakrishnan et al. 2019, arXiv:1809.05231, L_smooth.   Differs: sum over axes; optional mm.
    """
    u, steps = _physical(ddf, spacing)
    energy = ddf.new_zeros(())
    for axis, step in enumerate(steps):
        if u.shape[axis + 2] > 1:
            energy = energy + (u.diff(dim=axis + 2) / step).square().sum(1).mean()
    return energy


def bending_loss(ddf: Float[Tensor, "b d *s"], *, spacing: float | Sequence[float] | None = None) -> Float[Tensor, ""]:
    """Bending energy  mean sum_ij |d2 u / dx_i dx_j|^2 , zero for every affine map.

    Args: as `diffusion_loss`; with `spacing` the energy is per mm^2.

    Compact stencils, [1, -2, 1] along an axis and the four diagonal neighbors across two, where they exist.
    Source: Rueckert et al. 1999, doi:10.1109/42.796284, equation 5.
    """
    u, steps = _physical(ddf, spacing)
    energy = ddf.new_zeros(())
    for axis, step in enumerate(steps):
        if u.shape[axis + 2] > 2:
            energy = energy + (u.diff(n=2, dim=axis + 2) / step**2).square().sum(1).mean()
    for i, j in combinations(range(len(steps)), 2):
        if min(u.shape[i + 2], u.shape[j + 2]) > 2:
            mixed = _central(_central(u, i + 2), j + 2) / (steps[i] * steps[j])
            energy = energy + 2 * mixed.square().sum(1).mean()
    return energy


def _central(u: Tensor, axis: int) -> Tensor:
    n = u.shape[axis]
    return (u.narrow(axis, 2, n - 2) - u.narrow(axis, 0, n - 2)) / 2


def _physical(ddf: Tensor, spacing: float | Sequence[float] | None) -> tuple[Tensor, tuple[float, ...]]:
    """The field in mm and the distance between voxels; in voxels and 1 if no spacing is given."""
    d = ddf.ndim - 2
    if ddf.shape[1] != d:
        raise ValueError(f"ddf must be (b, {d}, *{d} sizes) in voxels; got {tuple(ddf.shape)}.")
    if spacing is None:
        return ddf, (1.0,) * d
    steps = per_axis(spacing, d, "spacing")
    if min(steps) <= 0:
        raise ValueError(f"spacing must be above 0 mm; got {steps}.")
    return ddf * torch.tensor(steps).to(ddf).reshape(1, d, *[1] * d), steps
