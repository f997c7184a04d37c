"""How unlike two images are.

Every loss takes `(warped, fixed)` of one shape (b, c, *s) and an optional `mask` (b, 1, *s) of weights from 0 to 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .. import filters

TINY = 1e-5  # below this share of the image's own variance a window counts as flat


class LocalSums(NamedTuple):
    """What `lncc_loss` needs of the fixed image; made once a level by `lncc_sums`."""

    voxels: Tensor
    mean: Tensor
    variance: Tensor


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
    axes = tuple(range(2, fixed.ndim))
    total = weight.sum(axes, keepdim=True).clamp(min=1e-12)
    w = warped - (weight * warped).sum(axes, keepdim=True) / total
    f = fixed - (weight * fixed).sum(axes, keepdim=True) / total
    cross = (weight * w * f).sum(axes)
    power_w = (weight * w * w).sum(axes) + total.flatten(1) * _rounding(warped)
    power_f = (weight * f * f).sum(axes) + total.flatten(1) * _rounding(fixed)
    correlation = cross / (power_w * power_f).sqrt()
    return 1 - correlation.mean()


def lncc_sums(
    fixed: Float[Tensor, "b c *s"], window: int, *, mask: Shaped[Tensor, "#b 1 *s"] | None = None
) -> LocalSums:
    """Local count, mean and variance of the fixed image, to hand to `lncc_loss(fixed_sums=...)` in a loop."""
    weight = _weights(fixed[:, :1], mask)
    count = filters.box(weight, window=window).clamp(min=1e-6)
    mean = filters.box(weight * fixed, window=window) / count
    variance = (filters.box(weight * fixed * fixed, window=window) / count - mean * mean).clamp(min=0)
    return LocalSums(count, mean, variance)


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
        mask: weights; windows count by their share of weight, voxels outside do not enter.
        fixed_sums: `lncc_sums(fixed, window, mask=mask)`, if you have them already.

    Source: Avants et al. 2008, doi:10.1016/j.media.2007.06.004, equation 5, over windows that exist.
    Differs: a flat window scores 0 (DeepReg's 1), and nothing scores above 1 (MONAI is unbounded).
    """
    _check_pair(warped, fixed, mask)
    sums = fixed_sums or lncc_sums(fixed, window, mask=mask)
    weight = _weights(fixed[:, :1], mask)
    shift = _center(warped)  # keeps float32 sums of squares exact for images far from 0
    w = weight * (warped - shift)
    mean = filters.box(w, window=window) / sums.voxels
    variance = (filters.box(w * (warped - shift), window=window) / sums.voxels - mean * mean).clamp(min=0)
    cross = filters.box(w * fixed, window=window) / sums.voxels - mean * sums.mean
    flat = TINY * _spread(warped) * TINY * _spread(fixed)
    correlation = cross * cross / (variance * sums.variance + flat)
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
    a, b = _bin_position(warped, warped_range, bins, "warped"), _bin_position(fixed, fixed_range, bins, "fixed")
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


def _bin_position(image: Tensor, limits: tuple[float, float] | None, bins: int, name: str) -> Tensor:
    low, high = (float(image.detach().min()), float(image.detach().max())) if limits is None else limits
    if limits is not None and (image.detach().min() < low or image.detach().max() > high):
        raise ValueError(
            f"{name} must lie in {name}_range = {limits}; it spans {float(image.min()):.4g} to {float(image.max()):.4g}"
        )
    return ((image - low) / max(high - low, 1e-12) * (bins - 1)).flatten(1)


# -- shared -----------------------------------------------------------------------------------------------------
def _check_pair(warped: Tensor, fixed: Tensor, mask: Tensor | None) -> None:
    if warped.shape != fixed.shape:
        raise ValueError(f"warped and fixed must have one shape; got {tuple(warped.shape)} and {tuple(fixed.shape)}.")
    if mask is not None and mask.shape[1:] != (1, *fixed.shape[2:]):
        raise ValueError(f"mask must be (b, 1, {', '.join(map(str, fixed.shape[2:]))}); got {tuple(mask.shape)}.")


def _weights(image: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(image[:1, :1]) if mask is None else mask.to(image.dtype)


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Weighted mean over the voxels of each image, then over the batch; an empty mask gives 0 with gradient 0."""
    if mask is None:
        return values.mean()
    weight = mask.to(values.dtype).expand_as(values)
    axes = tuple(range(1, values.ndim))
    return ((values * weight).sum(axes) / weight.sum(axes).clamp(min=1e-12)).mean()


def _center(image: Tensor) -> Tensor:
    return image.detach().mean(dim=tuple(range(2, image.ndim)), keepdim=True)


def _spread(image: Tensor) -> Tensor:
    """Variance of each image, never below what its precision can tell from flat: (b, c, 1, ..)."""
    x = image.detach()
    variance = x.var(tuple(range(2, x.ndim)), correction=0, keepdim=True)
    return variance + _rounding(x).reshape(variance.shape)


def _rounding(image: Tensor) -> Tensor:
    """Variance that rounding alone can make in an image of this size and precision, (b, c)."""
    x = image.detach()
    digits = 8 * torch.finfo(x.dtype).eps
    return (digits**2 * x.square().mean(tuple(range(2, x.ndim)))).clamp(min=1e-20)
