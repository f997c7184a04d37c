"""Separable filters and derivatives: each is a small matrix applied along an axis.

A matrix says everything about a one-dimensional linear filter, its borders included, so smoothing, windowed
sums, B-splines and resizing share one function, `apply_along`. On CPUs and GPUs a product with a banded matrix
is faster than a convolution, and its time hardly depends on the filter's width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .grid import per_axis

TILE = 24  # rows of a matrix that are multiplied at once: enough for the processor, few enough to skip its zeros


def apply_along(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply every line of `image` along `axis` by `matrix` (m, n): size n becomes m along that axis.

    The matrix is a constant: no gradient flows to it. Blocks of it that are zero cost nothing.
    """
    axis = axis % image.ndim
    if image.requires_grad and torch.is_grad_enabled():
        result: Tensor = _Along.apply(image, matrix, axis)
        return result
    return _multiply(image, _tiles(matrix, image), matrix.shape[0], axis)


class _Along(torch.autograd.Function):
    """`apply_along` with the transposed matrix as its backward, so that nothing of the image is kept."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, matrix: Tensor, axis: int) -> Tensor:
        ctx.matrix, ctx.axis = matrix, axis
        return _multiply(image, _tiles(matrix, image), matrix.shape[0], axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return apply_along(gradients[0], _transposed(ctx.matrix), ctx.axis), None, None


class _Tile(NamedTuple):
    """Rows a:b of a matrix and their columns low:high, beyond which these rows are zero."""

    a: int
    b: int
    low: int
    high: int
    block: Tensor


def _multiply(image: Tensor, tiles: Sequence[_Tile], m: int, axis: int) -> Tensor:
    result = image.new_empty((*image.shape[:axis], m, *image.shape[axis + 1 :]))
    lead, n = image.shape[:axis].numel(), image.shape[axis]
    if axis == image.ndim - 1:
        source, target = image.reshape(lead, n), result.view(lead, m)
        for a, b, low, high, block in tiles:
            torch.mm(source[:, low:high], block.T, out=target[:, a:b])
        return result
    source = image.reshape(lead, n, -1)
    target = result.view(lead, m, source.shape[-1])
    if lead == 1:  # many small products are faster than a long one
        parts = image.shape[axis + 1]
        source, target = (x.view(x.shape[1], parts, -1).transpose(0, 1) for x in (source, target))
    for a, b, low, high, block in tiles:
        target[:, a:b] = torch.matmul(block, source[:, low:high])
    return result


_tiled: WeakIdKeyDictionary = WeakIdKeyDictionary()  # matrix -> {(dtype, device): its tiles}, or its transpose


def _tiles(matrix: Tensor, like: Tensor) -> list[_Tile]:
    """The matrix cut into bands of TILE rows, each without the columns that are zero in it; cached."""
    known = _tiled.setdefault(matrix, {})
    key = (like.dtype, like.device)
    if key not in known:
        known[key] = []
        for a in range(0, matrix.shape[0], TILE):
            rows = matrix[a : a + TILE]
            used = (rows != 0).any(0).nonzero().flatten().tolist() or [0]
            low, high = used[0], used[-1] + 1
            known[key].append(_Tile(a, a + len(rows), low, high, rows[:, low:high].to(like).contiguous()))
    tiles: list[_Tile] = known[key]
    return tiles


def _transposed(matrix: Tensor) -> Tensor:
    known = _tiled.setdefault(matrix, {})
    if "transposed" not in known:
        known["transposed"] = matrix.T.contiguous()
    transposed: Tensor = known["transposed"]
    return transposed


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


def local_contrast(
    image: Float[Tensor, "b c *s"],
    *,
    sigma: float | Sequence[float],
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
    flat: float = 0.1,
) -> Float[Tensor, "b c *s"]:
    """How far each voxel is from the mean around it, in standard deviations around it: shading and gain cancel.

    What is left of an image is nearly the same under any smooth bias field, and changes its sign where the contrast is
    inverted; it lets one histogram describe the whole image.

    Args:
        sigma: of the gaussian that says what around means, as in `gaussian`.
        mask: where the image counts; elsewhere the result is 0.
        flat: share of the average deviation that is added to the deviation, so that noise in flat places stays small.
    """
    inside = torch.ones_like(image) if mask is None else (mask > 0).to(image).expand_as(image)
    count = gaussian(inside, sigma=sigma).clamp(min=1e-6)
    apart = (image - gaussian(image * inside, sigma=sigma) / count) * inside
    deviation = (gaussian(apart.square(), sigma=sigma) / count).sqrt()
    total = inside.flatten(1).sum(1).clamp(min=1)
    typical = ((deviation * inside).flatten(1).sum(1) / total).reshape(-1, *[1] * (image.ndim - 1))
    rounding = 32 * torch.finfo(image.dtype).eps * (image * inside).flatten(1).abs().amax(1).reshape_as(typical)
    return torch.where(typical > rounding, apart / (deviation + flat * typical + rounding), 0.0)


def box(image: Float[Tensor, "b c *s"], *, window: int | Sequence[int]) -> Float[Tensor, "b c *s"]:
    """Sum over a window of odd size centered at each voxel, of the voxels that exist."""
    return window_sum(image, LocalWindow(size=window))


@dataclass(frozen=True)
class LocalWindow:
    """The neighborhood of a voxel and how its voxels are weighted; the center weighs most and each axis alike.

    Args:
        kernel: "box" weighs all alike, "triangular" falls off linearly, "gaussian" by sigma.
        size: odd edge length in voxels, one number or one an axis.
        sigma: of a gaussian, voxels; default size / 3. Given without a size, the window ends at 3 sigma.

    Source: kernels as in DeepReg's LNCC, there unnormalized as here; only ratios of window sums matter.
    """

    kernel: Literal["box", "triangular", "gaussian"] = "box"
    size: int | Sequence[int] | None = None
    sigma: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.kernel not in ("box", "triangular", "gaussian"):
            raise ValueError(f'kernel must be "box", "triangular" or "gaussian"; got "{self.kernel}".')
        if (self.sigma is not None) and self.kernel != "gaussian":
            raise ValueError(f'sigma belongs to kernel "gaussian"; got sigma={self.sigma} for "{self.kernel}".')
        if self.size is None and self.sigma is None:
            raise ValueError("a window needs a size in voxels, or for a gaussian a sigma; got neither.")

    @classmethod
    def of_mm(
        cls,
        *,
        spacing: Sequence[float],
        size_mm: float | Sequence[float] | None = None,
        sigma_mm: float | Sequence[float] | None = None,
        kernel: Literal["box", "triangular", "gaussian"] = "box",
    ) -> LocalWindow:
        """A window of about one physical size: the odd number of voxels closest to `size_mm` along each axis."""
        d = len(tuple(spacing))
        steps = per_axis(spacing, d, "spacing")
        if min(steps) <= 0:
            raise ValueError(f"spacing must be above 0 mm; got {steps}.")
        sizes = sigmas = None
        if size_mm is not None:
            sizes = tuple(
                max(1, 2 * round((mm / step - 1) / 2) + 1)
                for mm, step in zip(per_axis(size_mm, d, "size_mm"), steps, strict=True)
            )
        if sigma_mm is not None:
            sigmas = tuple(mm / step for mm, step in zip(per_axis(sigma_mm, d, "sigma_mm"), steps, strict=True))
        return cls(kernel, sizes, sigmas)

    def matrices(self, shape: Sequence[int]) -> list[Tensor]:
        """One symmetric matrix for each axis of an image of this shape."""
        d = len(shape)
        sigmas = None if self.sigma is None else per_axis(self.sigma, d, "sigma")
        if sigmas is not None and min(sigmas) <= 0:
            raise ValueError(f"sigma of a window must be above 0 voxels; got {sigmas}.")
        size = self.size if self.size is not None else [2 * math.ceil(3 * s) + 1 for s in sigmas or ()]
        sizes = per_axis(size, d, "window")
        if any(w < 1 or w % 2 != 1 for w in sizes):
            raise ValueError(
                f"window must be an odd number of voxels of at least 1, so that it has a center; got {self.size}."
            )
        if self.kernel == "gaussian":
            spreads = sigmas or [w / 3 for w in sizes]
            return [window_matrix(n, int(w), s) for n, w, s in zip(shape, sizes, spreads, strict=True)]
        make = box_matrix if self.kernel == "box" else triangle_matrix
        return [make(n, int(w)) for n, w in zip(shape, sizes, strict=True)]


def window_sum(image: Float[Tensor, "b c *s"], window: LocalWindow) -> Float[Tensor, "b c *s"]:
    """Weighted sum over the window centered at each voxel, of the voxels that exist."""
    return separable(image, window.matrices(image.shape[2:]))


def finite_difference(image: Tensor, axis: int, *, spacing: float = 1.0) -> Tensor:
    """Central first difference along a tensor axis, one-sided at the two faces; 0 where there is one voxel.

    Args: spacing: distance between neighbors; the result is per that unit.
    """
    difference: Tensor = _Difference.apply(image, axis % image.ndim, 1 / spacing)
    return difference


class _Difference(torch.autograd.Function):
    """Nothing is kept for the backward, which is the transposed difference."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, axis: int, scale: float) -> Tensor:
        ctx.axis, ctx.scale = axis, scale
        n, result = image.shape[axis], torch.empty_like(image)
        if n == 1:
            return result.zero_()
        for row, low, high in ((0, 0, 1), (n - 1, n - 2, n - 1)):
            torch.sub(image.narrow(axis, high, 1), image.narrow(axis, low, 1), out=result.narrow(axis, row, 1))
        if n > 2:
            middle = result.narrow(axis, 1, n - 2)
            torch.sub(image.narrow(axis, 2, n - 2), image.narrow(axis, 0, n - 2), out=middle).div_(2)
        return result if scale == 1 else result.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return _TransposedDifference.apply(outer[0], ctx.axis, ctx.scale), None, None


class _TransposedDifference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, axis: int, scale: float) -> Tensor:
        ctx.axis, ctx.scale = axis, scale
        result = torch.zeros_like(values, memory_format=torch.contiguous_format)
        add_transposed_difference(result, values, axis)
        return result if scale == 1 else result.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return _Difference.apply(outer[0], ctx.axis, ctx.scale), None, None


def add_transposed_difference(target: Tensor, values: Tensor, axis: int, *, start: int = 0) -> None:
    """Add the transpose of `finite_difference` along an axis; `values` may be rows from `start` on alone."""
    n, end = target.shape[axis], start + values.shape[axis]
    if n == 1:
        return
    low, high = max(start, 1), min(end, n - 1)  # the central differences
    if high > low:
        half = values.narrow(axis, low - start, high - low) / 2
        target.narrow(axis, low + 1, high - low).add_(half)
        target.narrow(axis, low - 1, high - low).sub_(half)
    for row in {0, n - 1} & {start, end - 1}:  # the one-sided ones at the faces
        value, left = values.narrow(axis, row - start, 1), min(row, n - 2)
        target.narrow(axis, left + 1, 1).add_(value)
        target.narrow(axis, left, 1).sub_(value)


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


def sobolev(image: Float[Tensor, "b c *s"], *, alpha: float | Sequence[float]) -> Float[Tensor, "b c *s"]:
    """The solution s of  s - div(alpha grad s) = image  with mirrored borders; it reaches further than a gaussian.

    Applied to a gradient it gives the steepest direction where the length of a step counts its slopes too.

    Args: alpha: voxels squared, one number or one an axis; 0 leaves the image as it is.
    Source: Neuberger 1997, doi:10.1007/BFb0092831; solved by cosine transforms, each a matrix along an axis.
    """
    alphas = per_axis(alpha, image.ndim - 2, "alpha")
    if min(alphas) < 0:
        raise ValueError(f"alpha must be at least 0 voxels squared; got {alphas}.")
    shape, bases = image.shape[2:], [cosine_matrix(n) for n in image.shape[2:]]
    stiffness = torch.ones(1, dtype=torch.float64)
    for axis, (n, a) in enumerate(zip(shape, alphas, strict=True)):
        waves = 2 - 2 * torch.cos(torch.arange(n, dtype=torch.float64) * (math.pi / n))
        stiffness = stiffness + a * waves.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return separable(separable(image, bases) / stiffness.to(image), [_transposed(basis) for basis in bases])


def downsample(image: Float[Tensor, "b c *s"], shape: Sequence[int]) -> Float[Tensor, "b c *t"]:
    """Smooth against aliasing (sigma half the ratio of steps, in voxels), then `resize`. Fits `Grid.downsample`."""
    if len(shape) != image.ndim - 2:
        raise ValueError(f"shape must have {image.ndim - 2} sizes, one a spatial axis; got {tuple(shape)}.")
    return separable(
        image, [downsample_matrix(m, n) if m != n else None for n, m in zip(image.shape[2:], shape, strict=True)]
    )


def upsample(image: Float[Tensor, "b c *s"], shape: Sequence[int]) -> Float[Tensor, "b c *t"]:
    """Interpolating cubic B-splines at the voxels of a finer grid with the same first and last voxel centers."""
    if len(shape) != image.ndim - 2 or any(m < n for n, m in zip(image.shape[2:], shape, strict=True)):
        raise ValueError(
            f"upsample takes {image.ndim - 2} sizes of at least those of the image, {tuple(image.shape[2:])}; got "
            f"{tuple(shape)}. For fewer voxels, downsample()."
        )
    return separable(
        image, [upsample_matrix(m, n) if m != n else None for n, m in zip(image.shape[2:], shape, strict=True)]
    )


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
def cosine_matrix(n: int) -> Tensor:
    """(n, n) orthonormal cosine transform (DCT-II), one wave a row."""
    k = torch.arange(n, dtype=torch.float64)
    waves = torch.cos(math.pi / n * k[:, None] * (k + 0.5)) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves


@lru_cache(maxsize=128)
def box_matrix(n: int, window: int) -> Tensor:
    """(n, n) ones where two voxels are in one window."""
    i = torch.arange(n, dtype=torch.float64)
    return ((i[:, None] - i).abs() <= window // 2).double()


@lru_cache(maxsize=128)
def triangle_matrix(n: int, window: int) -> Tensor:
    """(n, n) weights that fall linearly from the center, 1 2 3 2 1 for a window of 5; not normalized."""
    i = torch.arange(n, dtype=torch.float64)
    return ((window + 1) / 2 - (i[:, None] - i).abs()).clamp(min=0)


@lru_cache(maxsize=128)
def window_matrix(n: int, window: int, sigma: float) -> Tensor:
    """(n, n) gaussian weights inside a window, 1 at the center; not normalized."""
    i = torch.arange(n, dtype=torch.float64)
    distance = (i[:, None] - i).abs()
    return torch.exp(-0.5 * (distance / sigma) ** 2) * (distance <= window // 2)


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


@lru_cache(maxsize=128)
def downsample_matrix(m: int, n: int) -> Tensor:
    """(m, n) gaussian smoothing and linear interpolation in one, so that only what is kept is computed."""
    step = (n - 1) / max(m - 1, 1)
    linear = linear_matrix(m, n)
    return linear @ gaussian_matrix(n, step / 2) if step > 1 else linear


@lru_cache(maxsize=128)
def upsample_matrix(m: int, n: int) -> Tensor:
    """(m, n) interpolating cubic B-spline, mirrored at the ends; weights below float32's digits are left out."""
    if n == 1:
        return torch.ones(m, 1, dtype=torch.float64)
    position = torch.arange(m, dtype=torch.float64) * ((n - 1) / (m - 1))
    weights = cubic_weight(position[:, None] - torch.arange(-1, n + 1, dtype=torch.float64))
    weights[:, 2] += weights[:, 0]  # the knots beyond the ends mirror the second and the last but one
    weights[:, -3] += weights[:, -1]
    matrix = weights[:, 1:-1] @ bspline_prefilter(n)
    return torch.where(matrix.abs() > 1e-8, matrix, 0.0)


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
