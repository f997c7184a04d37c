"""Derivatives of fields: volume, rotation, divergence.

Central differences, one-sided at the faces. Without `spacing` a derivative is per voxel; with it, mm per mm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .. import filters
from ..grid import per_axis
from .sampling import check_ddf, working_dtype

Spacing = float | Sequence[float] | None


def jacobian(ddf: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d d *s"]:
    """I + grad u:  J[k, j] = delta_kj + d u_k / d p_j, central differences, one-sided at the faces."""
    check_ddf(ddf, ddf.ndim - 2)
    return _jacobian(ddf.to(working_dtype(ddf))).to(ddf.dtype)


def _jacobian(ddf: Tensor) -> Tensor:
    d = ddf.shape[1]
    columns = [filters.finite_difference(ddf, j + 2) for j in range(d)]
    identity = torch.eye(d, dtype=ddf.dtype, device=ddf.device).reshape(1, d, d, *[1] * d)
    return torch.stack(columns, dim=2) + identity


def jacobian_determinant(ddf: Float[Tensor, "b d *s"]) -> Float[Tensor, "b 1 *s"]:
    """det(I + grad u): local change of volume from fixed to moving; at or below 0 the map folds."""
    check_ddf(ddf, ddf.ndim - 2)
    j = _jacobian(ddf.to(working_dtype(ddf)))
    if ddf.shape[1] == 2:
        return (j[:, 0, 0] * j[:, 1, 1] - j[:, 0, 1] * j[:, 1, 0]).unsqueeze(1).to(ddf.dtype)
    total = sum(
        j[:, 0, a] * (j[:, 1, b] * j[:, 2, c] - j[:, 1, c] * j[:, 2, b])
        for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    )
    return torch.as_tensor(total).unsqueeze(1).to(ddf.dtype)


def divergence(ddf: Float[Tensor, "b d *s"], *, spacing: Spacing = None) -> Float[Tensor, "b 1 *s"]:
    """sum_k d u_k / d x_k : how much a field spreads; of a velocity, the rate at which volume grows."""
    check_ddf(ddf, ddf.ndim - 2)
    _steps(spacing, ddf.shape[1])  # checked; it cancels
    return torch.stack([filters.finite_difference(ddf[:, k : k + 1], k + 2) for k in range(ddf.shape[1])]).sum(0)


def curl(ddf: Float[Tensor, "b d *s"], *, spacing: Spacing = None) -> Float[Tensor, "b c *s"]:
    """How a field turns about a point, twice the rotation vector of small motion: one channel in 2-D, three in 3-D.

    Convention: in 2-D  d u_1 / d x_0 - d u_0 / d x_1 ; in 3-D component k is the turn about tensor axis k, which for a
        grid whose axes are left-handed is the negative of the turn in the world.
    """
    d = ddf.ndim - 2
    check_ddf(ddf, d)
    steps = _steps(spacing, d)

    def slope(k: int, j: int) -> Tensor:
        return filters.finite_difference(ddf[:, k : k + 1], j + 2, spacing=steps[j]) * steps[k]

    if d == 2:
        return slope(1, 0) - slope(0, 1)
    return torch.cat([slope(2, 1) - slope(1, 2), slope(0, 2) - slope(2, 0), slope(1, 0) - slope(0, 1)], dim=1)


def divergence_free(potential: Float[Tensor, "b c *s"], *, spacing: Spacing = None) -> Float[Tensor, "b d *s"]:
    """A field whose `divergence` is zero everywhere: the curl of a potential. Its flow keeps every volume.

    Args: potential: one channel in 2-D, three in 3-D, voxels (mm with `spacing`) times voxels.
    """
    d = potential.ndim - 2
    if potential.shape[1] != (1 if d == 2 else 3):
        raise ValueError(f"potential must have {1 if d == 2 else 3} channels in {d}-D; got {tuple(potential.shape)}.")
    steps = _steps(spacing, d)

    def slope(k: int, j: int) -> Tensor:
        return filters.finite_difference(potential[:, k : k + 1], j + 2, spacing=steps[j])

    if d == 2:
        parts = [slope(0, 1), -slope(0, 0)]
    else:
        parts = [slope(2, 1) - slope(1, 2), slope(0, 2) - slope(2, 0), slope(1, 0) - slope(0, 1)]
    return torch.cat([part / step for part, step in zip(parts, steps, strict=True)], dim=1)


def _steps(spacing: Spacing, d: int) -> tuple[float, ...]:
    steps = (1.0,) * d if spacing is None else per_axis(spacing, d, "spacing")
    if not min(steps) > 0:
        raise ValueError(f"spacing must be above 0 mm; got {steps}.")
    return steps
