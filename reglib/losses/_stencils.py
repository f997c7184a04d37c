"""Energies that are means of squared or absolute finite differences, evaluated by slices with their exact gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 18  # voxels evaluated at once on a CPU: they stay in its cache


class Point(NamedTuple):
    """One entry of a stencil: coefficient * u[component, p + offset]."""

    component: int
    offset: tuple[int, ...]
    coefficient: float


@dataclass(frozen=True)
class Stencil:
    """A finite difference as a sum over points; it counts `weight` in the energy."""

    points: tuple[Point, ...]
    weight: float = 1.0

    def __add__(self, other: Stencil) -> Stencil:
        """The sum of both differences, not of their energies; points in one place become one."""
        merged: dict[tuple[int, tuple[int, ...]], float] = {}
        for component, offset, coefficient in (*self.points, *other.points):
            merged[component, offset] = merged.get((component, offset), 0.0) + coefficient
        return Stencil(tuple(Point(*place, value) for place, value in merged.items()), self.weight)

    def weighing(self, weight: float) -> Stencil:
        """The same difference with another weight in the energy."""
        return Stencil(self.points, weight)

    def domain(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """First and one past the last voxel along each axis at which every point exists."""
        offsets = list(zip(*(point.offset for point in self.points), strict=True))
        return [(max(0, -min(o)), min(n, n - max(o))) for n, o in zip(shape, offsets, strict=True)]


FORWARD = {1: 1.0, 0: -1.0}
CENTRAL = {1: 0.5, -1: -0.5}
SECOND = {1: 1.0, 0: -2.0, -1: 1.0}
NESTED_SECOND = {2: 0.25, 0: -0.5, -2: 0.25}  # the central difference applied twice


def difference(component: int, factor: float, lines: dict[int, dict[int, float]], d: int) -> Stencil:
    """A separable difference: `lines` gives the 1-D stencil (offset to coefficient) along each axis that has one."""
    points = []
    for entries in product(*(lines[axis].items() for axis in lines)):
        offset = [0] * d
        for axis, (step, _) in zip(lines, entries, strict=True):
            offset[axis] = step
        points.append(Point(component, tuple(offset), factor * math.prod(c for _, c in entries)))
    return Stencil(tuple(points))


def energy(u: Tensor, stencils: Sequence[Stencil], *, power: int = 2, mask: Tensor | None = None) -> Tensor:
    """Sum over stencils of weight times the mean of |difference|^power, then the mean over the batch.

    Args:
        u: (b, d, *s).
        power: 1 or 2.
        mask: (b, 1, *s); a difference counts by the smallest weight among the voxels it touches.

    The gradient is found with the value and cannot be differentiated again. Stencils too wide for u count 0.
    """
    kind = u.dtype
    u = u if kind == torch.float64 else u.float()
    fitting = [s for s in stencils if all(low < high for low, high in s.domain(u.shape[2:]))]
    weight = None if mask is None else mask.to(u.dtype).expand(len(u), *mask.shape[1:])
    result: Tensor = _Energy.apply(u, tuple(fitting), power, weight)
    return result.to(kind)


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, stencils: tuple[Stencil, ...], power: int, mask: Tensor | None) -> Tensor:
        gradient = torch.zeros_like(u) if ctx.needs_input_grad[0] else None
        total = u.new_zeros((), dtype=torch.float64)
        for stencil in stencils:
            total += _add(u, stencil, power, mask, gradient)
        ctx.gradient = gradient
        return total.to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.gradient * outer[0], None, None, None


def _add(u: Tensor, stencil: Stencil, power: int, mask: Tensor | None, gradient: Tensor | None) -> Tensor:
    """The energy of one stencil, float64; adds its gradient in place."""
    domain = stencil.domain(u.shape[2:])
    share: Tensor | float = stencil.weight / (len(u) * math.prod(high - low for low, high in domain))
    if mask is not None:
        touched = [mask[:, 0][_slices(domain, point.offset)] for point in stencil.points]
        smallest = torch.stack(touched).amin(0)  # (b, *domain)
        count = smallest.sum(tuple(range(1, smallest.ndim)), keepdim=True, dtype=torch.float64)
        share = smallest * (stencil.weight / (len(u) * count.clamp(min=1e-12))).to(u.dtype)
    total = u.new_zeros((), dtype=torch.float64)
    first = stencil.points[0].coefficient
    for part in _parts(domain, math.prod(u.shape[3:]) * len(u), whole=u.is_cuda):
        views = [u[:, point.component][_slices(part, point.offset)] for point in stencil.points]
        e = (
            views[0].clone()
            if len(views) == 1
            else torch.add(views[0], views[1], alpha=stencil.points[1].coefficient / first)
        )
        for view, point in zip(views[2:], stencil.points[2:], strict=True):
            e.add_(view, alpha=point.coefficient / first)  # e is the difference over its first coefficient
        here = share if isinstance(share, float) else share[:, part[0][0] - domain[0][0] : part[0][1] - domain[0][0]]
        slope = e.sign() if power == 1 else e
        weighted = slope if isinstance(here, float) else slope * here
        factor = abs(first) ** power * (here if isinstance(here, float) else 1.0)
        total += torch.dot(e.flatten(), weighted.flatten()).double() * factor
        if gradient is not None:
            for point in stencil.points:
                target = gradient[:, point.component][_slices(part, point.offset)]
                target.add_(weighted, alpha=power * factor * point.coefficient / first)
    return total


def _parts(domain: list[tuple[int, int]], per_plane: int, *, whole: bool) -> Iterator[list[tuple[int, int]]]:
    """The domain in slabs of whole planes of about CHUNK voxels; all at once on a GPU."""
    (low, high), rest = domain[0], domain[1:]
    step = high - low if whole else max(1, CHUNK // max(per_plane, 1))
    for start in range(low, high, step):
        yield [(start, min(start + step, high)), *rest]


def _slices(part: Sequence[tuple[int, int]], offset: Sequence[int]) -> tuple[slice, ...]:
    """Batch and spatial slices of a part of the domain, moved by an offset."""
    return (slice(None), *(slice(low + o, high + o) for (low, high), o in zip(part, offset, strict=True)))
