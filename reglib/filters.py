"""Separable filters and derivatives: each is a small matrix applied along an axis.

A matrix says everything about a one-dimensional linear filter, its borders included, so smoothing, windowed
sums, B-splines and resizing share one function, `apply_along`. On CPUs and GPUs a product with an (n, n) matrix
is faster than a convolution and its time does not depend on the filter's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from .grid import per_axis


def apply_along(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply every line of `image` along `axis` by `matrix` (m, n): size n becomes m along that axis."""
    matrix = matrix.to(image)
    if axis % image.ndim == image.ndim - 1:
        return image @ matrix.T
    lead = image.shape[:axis]
    lines = image.reshape(lead.numel(), image.shape[axis], -1)  # (lead, n, rest)
    return torch.matmul(matrix, lines).reshape(*lead, matrix.shape[0], *image.shape[axis + 1 :])


def separable(image: Float[Tensor, "b c *s"], matrices: Sequence[Tensor | None]) -> Tensor:
    """Apply one matrix along each spatial axis; None leaves an axis alone."""
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            image = apply_along(image, matrix, axis + 2)
    return image


def gaussian(image: Float[Tensor, "b c *s"], *, sigma: float | Sequence[float]) -> Float[Tensor, "b c *s"]:
    """Gaussian smoothing; at the borders the weights that fall outside are given back to those inside.

    Args: sigma: standard deviation in voxels, one number or one an axis (`sigma_mm / spacing`); 0 leaves an axis.
    """
    sigmas = per_axis(sigma, image.ndim - 2, "sigma")
    if min(sigmas) < 0:
        raise ValueError(f"sigma must be at least 0 voxels; got {sigmas}.")
    sizes = image.shape[2:]
    return separable(
        image, [gaussian_matrix(n, s) if s > 0 and n > 1 else None for n, s in zip(sizes, sigmas, strict=True)]
    )


def box(image: Float[Tensor, "b c *s"], *, window: int | Sequence[int]) -> Float[Tensor, "b c *s"]:
    """Sum over a window of odd size centered at each voxel, of the voxels that exist."""
    windows = [int(w) for w in per_axis(window, image.ndim - 2, "window")]
    if any(w < 1 or w % 2 == 0 for w in windows):
        raise ValueError(
            f"window must be an odd number of voxels of at least 1, so that it has a center; got {window}."
        )
    return separable(image, [box_matrix(n, w) for n, w in zip(image.shape[2:], windows, strict=True)])


def finite_difference(image: Tensor, axis: int, *, spacing: float = 1.0) -> Tensor:
    """Central first difference along a tensor axis, one-sided at the two faces; 0 where there is one voxel.

    Args: spacing: distance between neighbors; the result is per that unit.
    """
    n = image.shape[axis]
    if n == 1:
        return torch.zeros_like(image)
    first = image.narrow(axis, 1, 1) - image.narrow(axis, 0, 1)
    last = image.narrow(axis, n - 1, 1) - image.narrow(axis, n - 2, 1)
    middle = (image.narrow(axis, 2, n - 2) - image.narrow(axis, 0, n - 2)) / 2 if n > 2 else first[:0]
    parts = [first, middle, last] if n > 2 else [first, last]
    return torch.cat(parts, dim=axis) / spacing


def bspline(image: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
    """Cubic B-spline coefficients that interpolate the image at its voxels (mirrored at the borders).

    Source: Unser, Aldroubi and Eden 1993, doi:10.1109/78.193220; the recursive filter as an inverse matrix.
    """
    return separable(image, [bspline_prefilter(n) if n > 1 else None for n in image.shape[2:]])


def resize(image: Float[Tensor, "b c *s"], shape: Sequence[int]) -> Float[Tensor, "b c *t"]:
    """Linear interpolation to another shape that keeps the first and last voxel centers; no smoothing."""
    if len(shape) != image.ndim - 2:
        raise ValueError(f"shape must have {image.ndim - 2} sizes, one a spatial axis; got {tuple(shape)}.")
    return separable(
        image, [linear_matrix(m, n) if m != n else None for n, m in zip(image.shape[2:], shape, strict=True)]
    )


def downsample(image: Float[Tensor, "b c *s"], shape: Sequence[int]) -> Float[Tensor, "b c *t"]:
    """Smooth against aliasing (sigma half the ratio of steps, in voxels), then `resize`. Fits `Grid.downsample`."""
    steps = [(n - 1) / max(m - 1, 1) for n, m in zip(image.shape[2:], shape, strict=True)]
    return resize(gaussian(image, sigma=[step / 2 if step > 1 else 0.0 for step in steps]), shape)


def gaussian_pyramid(image: Float[Tensor, "b c *s"], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The image at each of these shapes (`grid.pyramid(...)` gives them), each made from the original."""
    return [downsample(image, shape) if tuple(shape) != tuple(image.shape[2:]) else image for shape in shapes]


# -- the matrices: float64, made once for each size -----------------------------------------------------------
@lru_cache(maxsize=128)
def gaussian_matrix(n: int, sigma: float) -> Tensor:
    """(n, n) gaussian weights; each row sums to one."""
    i = torch.arange(n, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((i[:, None] - i) / sigma) ** 2)
    weights = weights * ((i[:, None] - i).abs() <= max(4 * sigma, 1))
    return weights / weights.sum(dim=1, keepdim=True)


@lru_cache(maxsize=128)
def box_matrix(n: int, window: int) -> Tensor:
    """(n, n) ones where two voxels are in one window."""
    i = torch.arange(n, dtype=torch.float64)
    return ((i[:, None] - i).abs() <= window // 2).double()


@lru_cache(maxsize=128)
def linear_matrix(m: int, n: int) -> Tensor:
    """(m, n) linear interpolation with the end points kept (`align_corners=True`); m = 1 takes the middle."""
    if n == 1:
        return torch.ones(m, 1, dtype=torch.float64)
    if m == 1:
        position = torch.tensor([(n - 1) / 2], dtype=torch.float64)
    else:
        position = torch.arange(m, dtype=torch.float64) * ((n - 1) / (m - 1))
    return (1 - (position[:, None] - torch.arange(n, dtype=torch.float64)).abs()).clamp(min=0)


def cubic_weight(x: Tensor) -> Tensor:
    """The centered cubic B-spline, support (-2, 2), in units of knots."""
    x = x.abs()
    inner = 2 / 3 - x**2 + x**3 / 2
    outer = (2 - x).clamp(min=0) ** 3 / 6
    return torch.where(x < 1, inner, outer)


@lru_cache(maxsize=128)
def bspline_matrix(n: int, step: float, count: int) -> Tensor:
    """(n, count) cubic B-spline values: voxel i at knot position i / step, the first knot at -1."""
    position = torch.arange(n, dtype=torch.float64) / step
    return cubic_weight(position[:, None] - (torch.arange(count, dtype=torch.float64) - 1))


@lru_cache(maxsize=128)
def bspline_prefilter(n: int) -> Tensor:
    """(n, n) inverse of sampling a cubic B-spline at its knots, coefficients mirrored at the ends."""
    sampling = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for offset, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
            j = abs(i + offset)
            sampling[i, 2 * (n - 1) - j if j > n - 1 else j] += weight
    return torch.linalg.inv(sampling)
