"""Derivatives of fields: volume, rotation, divergence.

Central differences, one-sided at the faces. Without `spacing` a derivative is per voxel; with it, mm per mm.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import filters
from ..grid import per_axis
from .sampling import check_ddf, working_dtype

Spacing = float | Sequence[float] | None


def jacobian(ddf: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d d *s"]:
    """I + grad u:  J[k, j] = delta_kj + d u_k / d p_j, central differences, one-sided at the faces."""
    check_ddf(ddf, ddf.ndim - 2)
    rows = _jacobian_rows(ddf.to(working_dtype(ddf)), 0, ddf.shape[2])
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1).to(ddf.dtype)


def jacobian_determinant(ddf: Float[Tensor, "b d *s"]) -> Float[Tensor, "b 1 *s"]:
    """det(I + grad u): local change of volume from fixed to moving; at or below 0 the map folds.

    The gradient is in closed form, by cofactors, and cannot be differentiated again.
    """
    check_ddf(ddf, ddf.ndim - 2)
    determinant: Tensor = _Determinant.apply(ddf.to(working_dtype(ddf)))
    return determinant.to(ddf.dtype)


SLAB = 1 << 18  # voxels whose Jacobians are held at once: what they need stays in the processor's cache


class _Determinant(torch.autograd.Function):
    """The determinant slab by slab: a field of Jacobians would be nine volumes of memory, moved a dozen times."""

    @staticmethod
    def forward(ctx: Any, ddf: Tensor) -> Tensor:
        ctx.save_for_backward(ddf)
        result = torch.empty_like(ddf[:, :1])
        for a, b in _slabs(ddf):
            j = _jacobian_rows(ddf, a, b)
            terms = (entry * cofactor for entry, cofactor in zip(j[0], _cofactors(j, row=0), strict=True))
            result[:, 0, a:b] = functools.reduce(torch.Tensor.add_, terms)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        (ddf,) = ctx.saved_tensors
        (factor,) = outer
        result = torch.zeros_like(ddf)
        for a, b in _slabs(ddf):
            j = _jacobian_rows(ddf, a, b)
            for k in range(ddf.shape[1]):
                first, *others = (c * factor[:, 0, a:b] for c in _cofactors(j, row=k))
                filters.add_transposed_difference(result[:, k], first, 1, start=a)
                for axis, slope in enumerate(others, start=2):
                    filters.add_transposed_difference(result[:, k, a:b], slope, axis)
        return result


def _slabs(ddf: Tensor) -> list[tuple[int, int]]:
    """Rows a:b along the first spatial axis."""
    n, slab = ddf.shape[2], max(1, SLAB // max(ddf[:, 0, 0].numel(), 1))
    return [(a, min(a + slab, n)) for a in range(0, n, slab)]


def _jacobian_rows(ddf: Tensor, a: int, b: int) -> list[list[Tensor]]:
    """J[k][j] of rows a:b, (b, rows, ...) each."""
    n, rows = ddf.shape[2], []
    low, high = max(a - 1, 0), min(b + 1, n)
    for k in range(ddf.shape[1]):
        first = filters.finite_difference(ddf[:, k, low:high], 1).narrow(1, a - low, b - a)
        others = [filters.finite_difference(ddf[:, k, a:b], axis) for axis in range(2, ddf.ndim - 1)]
        rows.append([first, *others])
        rows[k][k] = rows[k][k] + 1
    return rows


def _cofactors(j: list[list[Tensor]], *, row: int) -> list[Tensor]:
    """Derivatives of the determinant to the entries of one row."""
    if len(j) == 2:
        other = j[1 - row]
        return [other[1], -other[0]] if row == 0 else [-other[1], other[0]]
    p, q = j[(row + 1) % 3], j[(row + 2) % 3]
    return [p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]]


def magnitude(ddf: Float[Tensor, "b d *s"]) -> Float[Tensor, "b 1 *s"]:
    """|u| at each voxel, in the field's own unit; its gradient is 0 where the field is."""
    if ddf.requires_grad and torch.is_grad_enabled():
        return ddf.norm(dim=1, keepdim=True)
    return ddf.square().sum(1, keepdim=True).sqrt_()  # a dozen times faster than the norm over a middle axis


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
