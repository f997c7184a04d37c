"""How unlike two images are.

Every loss takes `(warped, fixed)` of one shape (b, c, *s) and an optional `mask` (b, 1, *s) of weights from 0 to 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .. import filters

FLAT = 1e-6  # a window with less than this share of the image's own variance counts as flat


class LocalSums(NamedTuple):
    """What `lncc_loss` needs of the fixed image, made once a level by `lncc_sums`; each (b, c, *s) or smaller."""

    voxels: Tensor
    center: Tensor
    scale: Tensor
    mean: Tensor
    variance: Tensor
    flat: Tensor


def mse_loss(
    warped: Float[Tensor, "b c *s"], fixed: Float[Tensor, "b c *s"], *, mask: Shaped[Tensor, "#b 1 *s"] | None = None
) -> Float[Tensor, ""]:
    """Mean squared difference  mean (W - F)^2  over the mask."""
    _check_pair(warped, fixed, mask)
    return _masked_mean((warped - fixed) ** 2, mask)


def ncc_loss(
    warped: Float[Tensor, "b c *s"], fixed: Float[Tensor, "b c *s"], *, mask: Shaped[Tensor, "#b 1 *s"] | None = None
) -> Float[Tensor, ""]:
    """One minus the global correlation  r = cov(W, F) / sqrt(var W var F), from 0 to 2; a constant image scores r = 0.

    Differs: signed, so that inverted contrast is worse than none (DeepReg and AirLab square or negate it).
    """
    _check_pair(warped, fixed, mask)
    weight = _weights(fixed, mask)
    (w_mean, _), (f_mean, _) = _moments(warped, weight), _moments(fixed, weight)
    w, f = warped - w_mean, fixed - f_mean
    covariance = _weighted_mean(weight * w * f, weight)
    w_power = _weighted_mean(weight * w * w, weight) + _rounding_square(w_mean)
    f_power = _weighted_mean(weight * f * f, weight) + _rounding_square(f_mean)
    return 1 - (covariance / (w_power.sqrt() * f_power.sqrt())).mean()


def lncc_sums(
    fixed: Float[Tensor, "b c *s"], window: int, *, mask: Shaped[Tensor, "#b 1 *s"] | None = None
) -> LocalSums:
    """Local count, mean and variance of the fixed image, to hand to `lncc_loss(fixed_sums=...)` in a loop."""
    weight = _weights(fixed, mask)
    voxels = filters.box(weight, window=window).clamp(min=1e-6)
    center, scale, spread = _standard(fixed, weight)
    f = (fixed - center) * scale
    mean = filters.box(weight * f, window=window) / voxels
    variance = (filters.box(weight * f * f, window=window) / voxels - mean * mean).clamp(min=0)
    return LocalSums(voxels, center, scale, mean, variance, FLAT * spread + _rounding(mean))


def lncc_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    window: int = 9,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
    fixed_sums: LocalSums | None = None,
) -> Float[Tensor, ""]:
    """One minus the mean squared local correlation  cc = cov^2 / (var W var F)  over windows, from 0 to 1.

    Args:
        window: odd edge length in voxels. At the borders only voxels that exist are counted.
        mask: weights; a window counts by the weight at its center, voxels outside do not enter.
        fixed_sums: `lncc_sums(fixed, window, mask=mask)`, if you have them already.

    Source: Avants et al. 2008, doi:10.1016/j.media.2007.06.004, equation 5, over windows that exist.
    Differs: a flat window scores 0 (DeepReg's 1), and nothing scores above 1 (MONAI is unbounded).
    """
    _check_pair(warped, fixed, mask)
    sums = fixed_sums or lncc_sums(fixed, window, mask=mask)
    weight = _weights(fixed, mask)
    center, scale, spread = _standard(warped, weight)
    standard = (warped - center) * scale
    w = weight * standard
    mean = filters.box(w, window=window) / sums.voxels
    variance = (filters.box(w * standard, window=window) / sums.voxels - mean * mean).clamp(min=0)
    covariance = filters.box(w * (fixed - sums.center) * sums.scale, window=window) / sums.voxels - mean * sums.mean
    flat = (FLAT * spread + _rounding(mean)) * sums.flat
    correlation = covariance * covariance / (variance * sums.variance + flat)
    return 1 - _masked_mean(correlation.clamp(max=1), mask)


def mi_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    bins: int = 32,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
    warped_range: tuple[float, float] | None = None,
    fixed_range: tuple[float, float] | None = None,
) -> Float[Tensor, ""]:
    """Minus the mutual information  sum p log(p / (p_W p_F))  in nats, from a smoothed joint histogram.

    Args:
        bins: intensity bins of each image.
        warped_range, fixed_range: intensities of the first and last bin; default the image's own smallest and largest.

    Raises: ValueError for intensities outside a given range; they are never clamped silently.

    Source: Mattes et al. 2003, doi:10.1109/TMI.2002.803111: cubic B-spline Parzen window for the image that moves,
        linear for the one that does not. Memory does not grow with voxels times bins.
    """
    _check_pair(warped, fixed, mask)
    if bins < 4:
        raise ValueError(f"bins must be at least 4; got {bins}. 32 is usual.")
    weight = _weights(fixed, mask).expand_as(fixed).flatten(1)
    a = _bin_position(warped.flatten(1), weight, warped_range, bins, "warped")
    b = _bin_position(fixed.flatten(1), weight, fixed_range, bins, "fixed")
    terms = [_information(a[i], b[i], weight[i], bins) for i in range(len(fixed))]
    return -torch.stack(terms).mean()


def _information(a: Tensor, b: Tensor, weight: Tensor, bins: int) -> Tensor:
    """Mutual information of bin positions a, b in [0, bins - 1]; one bin of padding on each side."""
    side = bins + 3
    joint = a.new_zeros(side * side)
    a0, b0 = a.detach().floor(), b.detach().floor()
    for j in (0, 1):
        b_weight = weight * (1 - (b - b0 - j).abs())
        row = (b0 + j + 1).long()
        for i in (-1, 0, 1, 2):
            column = (a0 + i + 1).long()
            joint = joint.index_add(0, row * side + column, b_weight * filters.cubic_weight(a - a0 - i))
    joint = (joint / joint.sum().clamp(min=1e-12)).reshape(side, side)
    independent = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    present = joint > 0
    return (joint[present] * (joint[present] / independent[present].clamp(min=1e-30)).log()).sum()


def _bin_position(values: Tensor, weight: Tensor, limits: tuple[float, float] | None, bins: int, name: str) -> Tensor:
    """(b, n) intensities as positions from 0 to bins - 1; where the weight is 0, position 0."""
    counts = weight > 0
    seen = values.detach()
    low = torch.where(counts, seen, torch.inf).amin(1, keepdim=True)
    high = torch.where(counts, seen, -torch.inf).amax(1, keepdim=True)
    if limits is not None:
        if bool((low < limits[0]).any() | (high > limits[1]).any()):
            raise ValueError(
                f"{name} must lie in {name}_range = {limits}; it spans {float(low.min()):.4g} to "
                f"{float(high.max()):.4g}."
            )
        low, high = torch.full_like(low, limits[0]), torch.full_like(high, limits[1])
    inside = torch.where(counts, values, low.nan_to_num(posinf=0.0))
    return (inside - low.nan_to_num(posinf=0.0)) / (high - low).clamp(min=1e-12) * (bins - 1)


# -- shared -----------------------------------------------------------------------------------------------------
def _check_pair(warped: Tensor, fixed: Tensor, mask: Tensor | None) -> None:
    if warped.shape != fixed.shape:
        raise ValueError(f"warped and fixed must have one shape; got {tuple(warped.shape)} and {tuple(fixed.shape)}.")
    if mask is not None and mask.shape[1:] != (1, *fixed.shape[2:]):
        raise ValueError(f"mask must be (b, 1, {', '.join(map(str, fixed.shape[2:]))}); got {tuple(mask.shape)}.")


def _weights(image: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(image[:, :1]) if mask is None else mask.to(image.dtype).expand_as(image[:, :1])


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Weighted mean over the voxels of each image, then over the batch; an empty mask gives 0 with gradient 0."""
    if mask is None:
        return values.mean()
    weight = mask.to(values.dtype).expand_as(values)
    axes = tuple(range(1, values.ndim))
    return ((values * weight).sum(axes) / weight.sum(axes).clamp(min=1e-12)).mean()


def _weighted_mean(weighted: Tensor, weight: Tensor) -> Tensor:
    """Sum over the weight's sum for each image and channel, (b, c, 1, ..); 0 where there is no weight."""
    axes = tuple(range(2, weighted.ndim))
    return weighted.sum(axes, keepdim=True) / weight.sum(axes, keepdim=True).clamp(min=1e-12)


def _moments(image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each image and channel where it counts, without gradient, (b, c, 1, ..)."""
    x = image.detach()
    mean = _weighted_mean(weight * x, weight)
    return mean, _weighted_mean(weight * (x - mean).square(), weight)


def _standard(image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Center, scale and variance of (x - center) * scale, which lies in [-1, 1], each (b, c, 1, ..), no gradient.

    Sums of squares of values far from 0 lose their digits, and of values far above 1 overflow.
    """
    x = image.detach()
    center = _weighted_mean(weight * x, weight)
    offset = weight * (x - center)
    scale = 1 / offset.abs().amax(tuple(range(2, x.ndim)), keepdim=True).clamp(min=1e-18)
    return center, scale, _weighted_mean((offset * scale).square(), weight)


def _rounding(mean: Tensor) -> Tensor:
    """What rounding alone can make of a variance found as mean of squares minus square of the mean."""
    return 32 * torch.finfo(mean.dtype).eps * mean.detach().square() + 1e-18


def _rounding_square(mean: Tensor) -> Tensor:
    """What rounding alone can make of the variance of values that were centered before squaring."""
    return (32 * torch.finfo(mean.dtype).eps * mean.detach()).square() + 1e-18
