"""How unlike two images are.

Every loss takes `(warped, fixed)` of one shape (b, c, *s) and an optional `mask` (b, 1, *s) of weights from 0 to 1;
what lies outside the mask changes neither value nor gradient. Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .. import filters
from ..filters import LocalWindow, window_sum
from ..grid import per_axis
from ._information import mi_loss, nmi_loss
from ._local import LocalSums, WindowLike, as_window, lcc_loss, lncc_loss, lncc_sums
from ._shared import check_pair, in_float32, masked_mean, standardized, value_range, weighted_mean, weights

__all__ = [
    "LocalSums",
    "LocalWindow",
    "huber_loss",
    "lcc_loss",
    "lncc_loss",
    "lncc_sums",
    "mae_loss",
    "mi_loss",
    "mind_features",
    "mind_loss",
    "mse_loss",
    "ncc_loss",
    "ngf_loss",
    "nmi_loss",
    "ssim_loss",
    "tukey_loss",
]


SSIM_WINDOW = LocalWindow("gaussian", size=11, sigma=1.5)


# -- voxel by voxel ---------------------------------------------------------------------------------------------
def mse_loss(
    warped: Float[Tensor, "b c *s"], fixed: Float[Tensor, "b c *s"], *, mask: Shaped[Tensor, "#b 1 *s"] | None = None
) -> Float[Tensor, ""]:
    """Mean squared difference  mean (W - F)^2  over the mask; the field's SSD, which is a mean in DeepReg too."""
    return masked_mean(_difference(warped, fixed, mask).square(), mask).to(warped.dtype)


def mae_loss(
    warped: Float[Tensor, "b c *s"], fixed: Float[Tensor, "b c *s"], *, mask: Shaped[Tensor, "#b 1 *s"] | None = None
) -> Float[Tensor, ""]:
    """Mean absolute difference  mean |W - F|  over the mask; an outlier pulls no harder than any other voxel."""
    return masked_mean(_difference(warped, fixed, mask).abs(), mask).to(warped.dtype)


def huber_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    delta: float = 1.0,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """Squared below delta, absolute above:  e^2 / 2  or  delta (|e| - delta / 2), mean over the mask.

    Args: delta: intensity difference where one turns into the other.
    Source: Huber 1964, doi:10.1214/aoms/1177703732; as `torch.nn.HuberLoss`.
    """
    _require_positive(delta=delta)
    size = _difference(warped, fixed, mask).abs()
    near = size.clamp(max=delta)
    return masked_mean(near * (size - near / 2), mask).to(warped.dtype)


def tukey_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    c: float = 0.5,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """Tukey's biweight  c^2 / 6 (1 - (1 - (e / c)^2)^3), c^2 / 6 beyond c: outliers do not pull at all.

    Args: c: intensity difference from which a voxel has no influence.
    Source: Beaton and Tukey 1974, doi:10.1080/00401706.1974.10489171.
    Differs: e^2 / 2 near 0 as in the paper; VoxelMorph's is three times as large.
    """
    _require_positive(c=c)
    share = (_difference(warped, fixed, mask) / c).clamp(-1, 1).square()
    return masked_mean((1 - (1 - share) ** 3) * (c * c / 6), mask).to(warped.dtype)


def _difference(warped: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
    check_pair(warped, fixed, mask)
    warped, fixed = in_float32(warped, fixed)
    difference = warped - fixed
    return difference if mask is None else torch.where(mask > 0, difference, 0.0)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0; got {value}.")


# -- correlation ------------------------------------------------------------------------------------------------
def ncc_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    squared: bool = False,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """One minus the global correlation  r = cov(W, F) / sqrt(var W var F), from 0 to 2; a constant image scores r = 0.

    Args: squared: 1 - r^2 instead, from 0 to 1: inverted contrast is then as good as equal contrast.
    Differs: DeepReg's is -r^2 and AirLab's -r; both are 1 smaller.
    """
    check_pair(warped, fixed, mask)
    kind = warped.dtype
    warped, fixed = in_float32(warped, fixed)
    weight = None if mask is None else weights(fixed, mask)
    parts = []
    for image in (warped, fixed):
        values, center, scale = standardized(image, weight)
        values = values - weighted_mean(values, weight)
        power = weighted_mean(values.square(), weight)
        # what rounding of the stored intensities alone can make of a variance
        rounding = (32 * torch.finfo(image.dtype).eps * center * scale).square()
        parts.append((values, power + rounding + 1e-18))
    (w, w_power), (f, f_power) = parts
    r = weighted_mean(w * f, weight) / (w_power.sqrt() * f_power.sqrt())
    return (1 - (r.square() if squared else r).mean()).to(kind)


# -- structure --------------------------------------------------------------------------------------------------
def ngf_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    epsilon: float | None = None,
    spacing: float | Sequence[float] | None = None,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """One minus the mean squared cosine between gradients,  <gW, gF>^2 / ((|gW|^2 + e^2)(|gF|^2 + e^2)), from 0 to 1.

    Edges should be parallel, whatever their contrast; where an image is flat nothing is compared.

    Args:
        epsilon: gradient, in intensity per voxel (per mm with `spacing`), below which it counts as noise; default the
            mean length of each image's own gradients.
        spacing: mm per voxel along each axis.
        mask: a voxel counts by the smallest weight among those that its differences touch.

    Source: Haber and Modersitzki 2006, doi:10.1007/11866763_89.   Differs: epsilon for each image (AirLab: 1e-5).
    """
    check_pair(warped, fixed, mask)
    kind, d = warped.dtype, warped.ndim - 2
    warped, fixed = in_float32(warped, fixed)
    steps = per_axis(1.0 if spacing is None else spacing, d, "spacing")
    _require_positive(spacing=min(steps), **({} if epsilon is None else {"epsilon": epsilon}))
    weight = None if mask is None else _eroded(weights(fixed, mask))
    (w, w_power), (f, f_power) = (_edges(x, weight, mask, steps, epsilon) for x in (warped, fixed))
    inner = sum(a * b for a, b in zip(w, f, strict=True))
    return (1 - masked_mean(torch.as_tensor(inner).square() / (w_power * f_power), weight)).to(kind)


def _edges(
    image: Tensor, weight: Tensor | None, mask: Tensor | None, steps: Sequence[float], epsilon: float | None
) -> tuple[list[Tensor], Tensor]:
    """The derivative along each axis, and the squared length of the gradient plus that of epsilon."""
    values, center, scale = standardized(image, None if mask is None else weights(image, mask))
    slopes = [filters.finite_difference(values, k + 2, spacing=step) for k, step in enumerate(steps)]
    power = torch.stack([slope.square() for slope in slopes]).sum(0)
    noise = weighted_mean(power.detach().sqrt(), weight) if epsilon is None else epsilon * scale
    # Sums of squares of a constant are rounding: nothing there may count as an edge.
    rounding = 32 * torch.finfo(image.dtype).eps * (1 + (center * scale).abs())
    return slopes, power + noise.square() + rounding.square() + 1e-18


def _eroded(weight: Tensor) -> Tensor:
    """The smallest weight among a voxel and its neighbors along each axis."""
    smallest = weight
    for axis in range(2, weight.ndim):
        n = weight.shape[axis]
        if n > 1:
            line = weight.narrow(axis, 0, n - 1).minimum(weight.narrow(axis, 1, n - 1))
            first, last = line.narrow(axis, 0, 1), line.narrow(axis, n - 2, 1)
            smallest = smallest.minimum(torch.cat([first, line], axis)).minimum(torch.cat([line, last], axis))
    return smallest


def mind_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    radius: int = 1,
    dilation: int = 2,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
    fixed_features: Float[Tensor, "b k *s"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared difference of self-similarity descriptors, `mind_features`: the same anatomy in any contrast.

    Args:
        radius, dilation: of `mind_features`.
        fixed_features: those of the fixed image, if you have them already.

    Source: Heinrich et al. 2013, doi:10.1007/978-3-642-40811-3_24.
    """
    check_pair(warped, fixed, mask)
    if fixed_features is None:
        fixed_features = mind_features(fixed, radius=radius, dilation=dilation, mask=mask)
    features = mind_features(warped, radius=radius, dilation=dilation, mask=mask)
    if features.shape != fixed_features.shape:
        raise ValueError(
            f"fixed_features must be {tuple(features.shape)} as mind_features makes them; "
            f"got {tuple(fixed_features.shape)}."
        )
    return masked_mean((features - fixed_features).square(), mask).to(warped.dtype)


def _prepare(
    fixed: Tensor, *, mask: Tensor | None = None, radius: int = 1, dilation: int = 2, **given: Any
) -> dict[str, Tensor]:
    """The descriptors of one fixed image, for a loop over it."""
    if given.get("fixed_features") is not None:
        return {}
    return {"fixed_features": mind_features(fixed, radius=radius, dilation=dilation, mask=mask)}


vars(mind_loss)["prepare"] = _prepare  # `optimize.register` asks any similarity for it, once a level


def mind_features(
    image: Float[Tensor, "b c *s"],
    *,
    radius: int = 1,
    dilation: int = 2,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, "b k *s"]:
    """Self-similarity context: how alike the patches around a voxel are to each other,  exp(-(D - min D) / mean D).

    Args:
        radius: of a patch, voxels; it is 2 radius + 1 wide.
        dilation: distance of the patches' centers from the voxel, voxels.

    Returns: 12 channels in 3-D, 4 in 2-D for each channel of the image, in (0, 1]: one for each pair of neighbors
        along two different axes.

    Source: Heinrich et al. 2013, doi:10.1007/978-3-642-40811-3_24 (MIND-SSC).
    Differs: patches at the border count only voxels that exist; the noise is kept above rounding.
    """
    check_pair(image, image, mask)
    if radius < 0 or dilation < 1:
        raise ValueError(f"radius must be at least 0 and dilation at least 1 voxel; got {radius} and {dilation}.")
    (image,) = in_float32(image)
    weight = None if mask is None else weights(image, mask)
    values, center, scale = standardized(image, weight)
    rounding = (32 * torch.finfo(values.dtype).eps * (1 + (center * scale).abs())).square() + 1e-18
    patch = LocalWindow(size=2 * radius + 1)
    count = window_sum(torch.ones_like(values[:1, :1]), patch)
    pairs = _neighbor_pairs(image.ndim - 2, dilation)
    near = {place: _shifted(values, *place) for pair in pairs for place in pair}
    distances = []
    for first, second in pairs:
        gap = (near[first] - near[second]).square()
        if weight is not None:
            both = _shifted(weight, *first) * _shifted(weight, *second)
            gap, count = gap * both, window_sum(both, patch).clamp(min=1e-6)
        distances.append(window_sum(gap, patch).div(count))
    apart = torch.stack(distances, 2)  # (b, c, pairs, *s)
    apart = apart - apart.amin(2, keepdim=True)
    noise = apart.mean(2, keepdim=True)
    typical = noise.detach().flatten(2).mean(2)[(..., *[None] * (image.ndim - 1))]
    noise = noise.maximum(1e-3 * typical).minimum(1e3 * typical) + rounding.unsqueeze(2)
    return (-apart / noise).exp().flatten(1, 2)


Offset = tuple[int, int]  # along which axis, how far


def _neighbor_pairs(d: int, dilation: int) -> list[tuple[Offset, Offset]]:
    """Pairs of the 2 d neighbors of a voxel that do not lie opposite each other."""
    around = [(axis, step) for axis in range(d) for step in (dilation, -dilation)]
    return [(a, b) for a, b in combinations(around, 2) if a[0] != b[0]]


def _shifted(image: Tensor, axis: int, step: int) -> Tensor:
    """image[p + step] along an axis; the border repeats."""
    n = image.shape[axis + 2]
    return image.index_select(axis + 2, torch.arange(step, n + step, device=image.device).clamp_(0, n - 1))


def ssim_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    window: WindowLike = SSIM_WINDOW,
    data_range: float | None = None,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """One minus the mean structural similarity: luminance times contrast times correlation of windows, from 0 to 2.

    Args:
        window: as for `lncc_loss`; default a gaussian of 1.5 voxels, cut at 11.
        data_range: largest minus smallest intensity that can occur; default that of the fixed image.

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, constants 0.01 and 0.03.
    Differs: windows at the border count only voxels that exist; 2-D and 3-D.
    """
    check_pair(warped, fixed, mask)
    kind, around = warped.dtype, as_window(window)
    warped, fixed = in_float32(warped, fixed)
    weight = weights(fixed, mask)
    low, high = value_range(fixed, mask)
    if data_range is not None:
        _require_positive(data_range=data_range)
        unit = torch.full_like(high, data_range)
    else:  # a constant image has no range: its own value serves, or 1
        unit = torch.where(high > low, high - low, high.abs())
        unit = torch.where(unit > 1e-18, unit, torch.ones_like(unit))
    unit = unit.reshape(-1, *[1] * (fixed.ndim - 1))
    center = weighted_mean(fixed, weight)
    share = 1 / window_sum(weight, around).clamp(min=1e-6)
    w, f = (torch.where(weight > 0, (x - center) / unit, 0.0) for x in (warped, fixed))
    w_mean, f_mean = (window_sum(weight * x, around) * share for x in (w, f))
    w_power = window_sum(weight * w * w, around) * share - w_mean.square()
    f_power = window_sum(weight * f * f, around) * share - f_mean.square()
    covariance = window_sum(weight * w * f, around) * share - w_mean * f_mean
    w_mean, f_mean = w_mean + center / unit, f_mean + center / unit
    luminance = (2 * w_mean * f_mean + 1e-4) / (w_mean.square() + f_mean.square() + 1e-4)
    structure = (2 * covariance + 9e-4) / (w_power.clamp(min=0) + f_power.clamp(min=0) + 9e-4)
    return (1 - masked_mean(luminance * structure, mask)).to(kind)
