"""How badly two sets of structures overlap.

Every loss takes `(warped, fixed)` soft masks (b, c, *s) in [0, 1], one structure a channel (`one_hot` makes them from
a label map and leaves the background out), and an optional `mask` (b, 1, *s) of weights from 0 to 1 on the fixed grid.
The result is a mean over channels and batch. Half precision is computed in float32 and returned as it came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .. import filters
from ..grid import per_axis
from ._shared import check_pair, in_float32, masked_mean, weighted_mean

Masks = Float[Tensor, "b c *s"]
Weights = Shaped[Tensor, "#b 1 *s"]

SMOOTH = 1e-5  # inside every logarithm, as in DeepReg
ROUNDING = 1e-3  # how far outside [0, 1] interpolation in half precision may round a mask
TAILS = {"gaussian": 3, "cauchy": 5}  # sigmas on each side, as in DeepReg


class _Pair(NamedTuple):
    """Checked masks in float32 or float64, (b, c, *s), and weights (1 or b, 1, *s)."""

    warped: Tensor
    fixed: Tensor
    weight: Tensor | None


# -- overlap ----------------------------------------------------------------------------------------------------
def dice_loss(
    warped: Masks,
    fixed: Masks,
    *,
    squared: bool = False,
    background_weight: float = 0.0,
    threshold: float | None = None,
    mask: Weights | None = None,
) -> Float[Tensor, ""]:
    """One minus the mean Dice overlap  2 sum(W F) / (sum W + sum F)  over channels and batch.

    A structure that is empty in both counts as perfect, 0.

    Args:
        warped, fixed: soft masks in [0, 1], one structure a channel; leave the background out.
        squared: divide by  sum W^2 + sum F^2  instead, so that equal soft masks are perfect.
        background_weight: w from 0 to 1:  2 [(1-w) sum(W F) + w sum((1-W) (1-F))]  over the sums of the same mixture;
            0 counts the structure alone.
        threshold: compare the hard masks  W >= threshold  and  F >= threshold. A score to report: no gradient.
        mask: weights of the voxels, from 0 to 1.

    Raises: ValueError, TypeError for anything but such masks.

    Source: Milletari et al. 2016, arXiv:1606.04797, which squares.
    Differs: plain by default, as DeepReg and VoxelMorph (deepali squares); 1 - score where they have -score;
        1e-6 voxels of smoothing (1e-4 in half precision) where DeepReg has 1e-5.
    """
    pair = _prepare(warped, fixed, mask, threshold)
    both, total = _overlap(pair, squared, background_weight)
    return (1 - _ratio(2 * both, total, warped.dtype).mean()).to(warped.dtype)


def jaccard_loss(
    warped: Masks,
    fixed: Masks,
    *,
    squared: bool = False,
    background_weight: float = 0.0,
    threshold: float | None = None,
    mask: Weights | None = None,
) -> Float[Tensor, ""]:
    """One minus the mean Jaccard overlap  sum(W F) / (sum W + sum F - sum(W F))  over channels and batch.

    Args, Raises: as for `dice_loss`; `background_weight` mixes numerator and denominator in the same way.

    Source: Rahman and Wang 2016, doi:10.1007/978-3-319-50835-1_22.
    Differs: 1 - score where DeepReg has -score; smoothing as in `dice_loss`.
    """
    pair = _prepare(warped, fixed, mask, threshold)
    both, total = _overlap(pair, squared, background_weight)
    return (1 - _ratio(both, total - both, warped.dtype).mean()).to(warped.dtype)


def tversky_loss(
    warped: Masks,
    fixed: Masks,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    mask: Weights | None = None,
) -> Float[Tensor, ""]:
    """Mean of  (1 - T)^gamma  with  T = sum(W F) / (sum(W F) + alpha sum(W (1-F)) + beta sum((1-W) F)).

    Args:
        alpha, beta: cost of voxels that only `warped`, only `fixed` has; 0.5 each is Dice, 1 each Jaccard.
        gamma: focal exponent, at least 1 (below, the gradient of a perfect overlap is infinite).
        warped, fixed, mask: as for `dice_loss`.

    Raises: as `dice_loss`, and ValueError for alpha, beta or gamma out of range.

    Source: Salehi et al. 2017, arXiv:1706.05721; Abraham and Khan 2019, arXiv:1810.07842.
    Differs: gamma is the exponent itself, as in deepali, where the focal paper takes 1 / gamma.
    """
    if not (0 <= alpha < math.inf and 0 <= beta < math.inf and alpha + beta > 0):
        raise ValueError(f"alpha and beta must be at least 0 and not both 0; got {alpha} and {beta}.")
    if not 1 <= gamma < math.inf:
        raise ValueError(f"gamma must be at least 1, for a finite gradient; got {gamma}.")
    w, f, weight = _prepare(warped, fixed, mask)
    both = _voxel_sum(w * f, weight)
    missed = alpha * _voxel_sum(w * (1 - f), weight) + beta * _voxel_sum((1 - w) * f, weight)
    loss = 1 - _ratio(both, both + missed, warped.dtype)
    return (loss if gamma == 1 else loss**gamma).mean().to(warped.dtype)


def _overlap(pair: _Pair, squared: bool, background_weight: float) -> tuple[Tensor, Tensor]:
    """What both masks share and what they hold together, (b, c) each, foreground and background mixed."""
    _check_fraction("background_weight", background_weight)
    both, total = _shared_and_total(pair, squared)
    if background_weight == 0:
        return both, total
    background = _Pair(1 - pair.warped, 1 - pair.fixed, pair.weight)
    background_both, background_total = _shared_and_total(background, squared)
    return (
        (1 - background_weight) * both + background_weight * background_both,
        (1 - background_weight) * total + background_weight * background_total,
    )


def _shared_and_total(pair: _Pair, squared: bool) -> tuple[Tensor, Tensor]:
    w, f, weight = pair
    both = _voxel_sum(w * f, weight)
    if squared:
        return both, _voxel_sum(w * w, weight) + _voxel_sum(f * f, weight)
    return both, _voxel_sum(w, weight) + _voxel_sum(f, weight)


def _voxel_sum(values: Tensor, weight: Tensor | None) -> Tensor:
    """(b, c) sum over voxels."""
    return (values if weight is None else values * weight).sum(tuple(range(2, values.ndim)))


def _ratio(part: Tensor, whole: Tensor, dtype: torch.dtype) -> Tensor:
    """Part over whole, 1 where both are 0."""
    tiny = 1e-4 if dtype.itemsize == 2 else 1e-6  # the gradient, at most 1 / tiny, must fit into the masks' precision
    return (part + tiny) / (whole + tiny)


# -- logarithms -------------------------------------------------------------------------------------------------
def cross_entropy_loss(
    warped: Masks,
    fixed: Masks,
    *,
    background_weight: float = 0.0,
    label_smoothing: float = 0.0,
    threshold: float | None = None,
    mask: Weights | None = None,
) -> Float[Tensor, ""]:
    """Weighted cross-entropy  -mean[(1-w) F log(W + eps) + w (1-F) log(1 - W + eps)]  over voxels, eps = 1e-5.

    Args:
        background_weight: w from 0 to 1. The default 0 counts the structure alone, so that a mask of ones is best
            too; 0.5 is half the usual binary cross-entropy.
        label_smoothing: a from 0 to 1 that moves `fixed` towards doubt,  (1-a) F + a (1-F).
        warped, fixed, threshold, mask: as for `dice_loss`.

    Raises: as `dice_loss`.

    Source: DeepReg, `cross-entropy`, Fu et al. 2020, doi:10.21105/joss.02705; smoothing as in deepali with two
        classes, structure or not.
    Differs: a mean over channels too. Perfect masks score -1e-5 at the least, because of eps.
    """
    _check_fraction("background_weight", background_weight)
    pair = _prepare(warped, fixed, mask, threshold)
    inside, outside = _log_terms(pair, label_smoothing)
    loss = (1 - background_weight) * inside
    if background_weight > 0:
        loss = loss + background_weight * outside
    return masked_mean(loss, pair.weight).to(warped.dtype)


def balanced_cross_entropy_loss(
    warped: Masks, fixed: Masks, *, label_smoothing: float = 0.0, mask: Weights | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy  -mean[(1-r) F log(W + eps) + r (1-F) log(1 - W + eps)]  with r the mean of F, eps = 1e-5.

    r is taken for each structure and image, over the mask: a small structure weighs as much as what surrounds it.
    One that is absent from `fixed` has r = 0 and costs nothing, whatever `warped` holds.

    Args, Raises: as for `cross_entropy_loss`; r is the mean of `fixed` after label smoothing.

    Source: Xie and Tu 2015, arXiv:1504.06375, equation 2; Jadon 2020, arXiv:2006.14822.
    Differs: on probabilities, where deepali takes logits and a single channel.
    """
    pair = _prepare(warped, fixed, mask)
    inside, outside = _log_terms(pair, label_smoothing)
    share = weighted_mean(_soften(pair.fixed, label_smoothing), pair.weight)  # (b, c, 1, ..)
    return masked_mean((1 - share) * inside + share * outside, pair.weight).to(warped.dtype)


def focal_loss(
    warped: Masks,
    fixed: Masks,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    mask: Weights | None = None,
) -> Float[Tensor, ""]:
    """Focal loss  -mean[alpha (1-W)^gamma F log(W + eps) + (1-alpha) W^gamma (1-F) log(1 - W + eps)], eps = 1e-5.

    Args:
        alpha: weight of the structure against the background, from 0 to 1.
        gamma: at least 0; the larger, the less do voxels count that are nearly right. 0 is weighted cross-entropy.
        warped, fixed, label_smoothing, mask: as for `cross_entropy_loss`.

    Raises: as `dice_loss`, and ValueError for alpha or gamma out of range.

    Source: Lin et al. 2017, arXiv:1708.02002, equation 5.
    Differs: on probabilities, where MONAI and deepali take logits; linear in a soft F, where they mix F into the power.
    """
    _check_fraction("alpha", alpha)
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be at least 0; got {gamma}. 2 is usual.")
    pair = _prepare(warped, fixed, mask)
    inside, outside = _log_terms(pair, label_smoothing)
    w, rest = pair.warped.clamp(min=SMOOTH), (1 - pair.warped).clamp(min=SMOOTH)  # gamma < 1: infinite slope at 0
    loss = alpha * rest**gamma * inside + (1 - alpha) * w**gamma * outside
    return masked_mean(loss, pair.weight).to(warped.dtype)


def _log_terms(pair: _Pair, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """-F log(W + eps) and -(1-F) log(1 - W + eps) of each voxel, (b, c, *s)."""
    _check_fraction("label_smoothing", label_smoothing)
    fixed = _soften(pair.fixed, label_smoothing)
    return -fixed * (pair.warped + SMOOTH).log(), (fixed - 1) * (1 - pair.warped + SMOOTH).log()


def _soften(fixed: Tensor, label_smoothing: float) -> Tensor:
    return fixed if label_smoothing == 0 else (1 - label_smoothing) * fixed + label_smoothing * (1 - fixed)


# -- scales -----------------------------------------------------------------------------------------------------
def multiscale(
    loss: Callable[..., Tensor],
    scales: Sequence[float] = (0, 1, 2, 4, 8, 16),
    *,
    kernel: Literal["gaussian", "cauchy"] = "gaussian",
    spacing: float | Sequence[float] | None = None,
) -> Callable[..., Tensor]:
    """A loss that smooths both inputs at each scale and takes the mean of `loss` over the scales.

    `multiscale(dice_loss)(warped, fixed, mask=mask)` feels overlap that is still far away. Works for images too.
    Options are handed on as they are: the mask does not keep smoothing from reaching across its border, and sums made
    of the unsmoothed fixed image do not fit.

    Args:
        loss: called as (warped, fixed, **options).
        scales: sigmas in voxels, in mm with `spacing`; 0 is no smoothing.
        kernel: "gaussian", cut at 3 sigma, or "cauchy",  1 / ((x / sigma)^2 + 1), cut at 5 sigma.
        spacing: mm per voxel along each axis.

    Raises: ValueError for no scale, a negative one, another kernel.

    Source: Hu et al. 2018, doi:10.1016/j.media.2018.07.002.
    Differs: at the borders the weights that fall outside are given back to those inside; DeepReg and MONAI pad with
        zeros there, and MONAI's gaussian weights sum to 0.998 along an axis. Inside it equals DeepReg.
    """
    sigmas = tuple(float(sigma) for sigma in scales)
    if not sigmas or not all(0 <= sigma < math.inf for sigma in sigmas):
        raise ValueError(f"scales must be one sigma or more of at least 0 (0 is no smoothing); got {sigmas}.")
    if kernel not in TAILS:
        raise ValueError(f'kernel must be "gaussian" or "cauchy"; got "{kernel}".')

    def mean_over_scales(warped: Tensor, fixed: Tensor, **options: object) -> Tensor:
        terms = [
            loss(_smooth(warped, sigma, kernel, spacing), _smooth(fixed, sigma, kernel, spacing), **options)
            for sigma in sigmas
        ]
        return torch.stack(terms).mean().to(warped.dtype)

    return mean_over_scales


def _smooth(image: Tensor, sigma: float, kernel: str, spacing: float | Sequence[float] | None) -> Tensor:
    steps = per_axis(1.0 if spacing is None else spacing, image.ndim - 2, "spacing")
    if not all(0 < step < math.inf for step in steps):
        raise ValueError(f"spacing must be above 0 mm; got {steps}.")
    if not image.is_floating_point():  # the loss says what is wrong with integers
        return image
    (image,) = in_float32(image)
    if sigma == 0:
        return image
    sizes = image.shape[2:]
    return filters.separable(
        image, [_smoothing_matrix(n, sigma / step, kernel) for n, step in zip(sizes, steps, strict=True)]
    )


@lru_cache(maxsize=128)
def _smoothing_matrix(n: int, sigma: float, kernel: str) -> Tensor:
    """(n, n) float64 weights; each row sums to one."""
    i = torch.arange(n, dtype=torch.float64)
    gap = (i[:, None] - i).abs()
    weights = torch.exp(-0.5 * (gap / sigma) ** 2) if kernel == "gaussian" else 1 / ((gap / sigma) ** 2 + 1)
    weights = weights * (gap <= int(TAILS[kernel] * sigma))
    return weights / weights.sum(dim=1, keepdim=True)


# -- masks ------------------------------------------------------------------------------------------------------
def one_hot(labels: Shaped[Tensor, "b 1 *s"], values: Sequence[int] | None = None) -> Float[Tensor, "b k *s"]:
    """Masks of a label map: channel k is 1 where the label is `values[k]`, else 0.

    Args:
        labels: whole numbers of any dtype.
        values: which labels, in this order; default all that occur in the batch except the background 0, ascending.

    Returns: masks, float32, or in the labels' own floating point.
    Raises: ValueError for labels that are not whole, values that repeat, or nothing but background.
    """
    if labels.ndim < 3 or labels.shape[1] != 1:
        raise ValueError(f"labels must be (b, 1, *s), whole numbers in one channel; got {tuple(labels.shape)}.")
    if labels.is_floating_point():
        broken = labels[~((labels == labels.round()) & labels.isfinite())]
        if broken.numel():
            raise ValueError(
                f"labels must be whole numbers; got {float(broken[0]):.6g}. Interpolated? Use field.warp_labels."
            )
    wanted = [k for k in labels.unique().tolist() if k != 0] if values is None else list(values)
    if not wanted:
        raise ValueError("values must name at least one label; got none, and labels hold only background, 0.")
    if len(set(wanted)) != len(wanted) or any(k != int(k) for k in wanted):
        raise ValueError(f"values must be different whole numbers; got {wanted}.")
    dtype = labels.dtype if labels.is_floating_point() else torch.float32
    return torch.cat([(labels == k).to(dtype) for k in wanted], dim=1)


def checked_masks(masks: Tensor, name: str) -> Tensor:
    """The masks, all in [0, 1]: what rounding left outside is set to its end and keeps its gradient.

    Raises: ValueError for values further outside, NaN among them, and for no voxels at all.
    """
    if masks.numel() == 0:
        raise ValueError(f"{name} must hold at least one voxel; got {tuple(masks.shape)}.")
    low, high = torch.stack(masks.detach().aminmax()).tolist()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(
            f"{name} labels must be soft masks in [0, 1], one structure a channel; got {low:.4g} to {high:.4g}: "
            "use one_hot(labels), or clamp(0, 1) where a cubic warp overshoots."
        )
    return masks if low >= 0 and high <= 1 else masks + (masks.clamp(0, 1) - masks).detach()


def _prepare(warped: Tensor, fixed: Tensor, mask: Tensor | None, threshold: float | None = None) -> _Pair:
    for name, masks in (("warped", warped), ("fixed", fixed)):
        if not masks.is_floating_point():
            raise TypeError(f"{name} must be soft masks in floating point; got {masks.dtype}: use one_hot(labels).")
    check_pair(warped, fixed, mask)
    w, f = in_float32(checked_masks(warped, "warped"), checked_masks(fixed, "fixed"))
    weight = None if mask is None else _checked_weight(mask).to(f.dtype)
    if threshold is not None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1; got {threshold}. 0.5 is usual.")
        w, f = (w >= threshold).to(w.dtype), (f >= threshold).to(f.dtype)
    return _Pair(w, f, weight)


def _checked_weight(mask: Tensor) -> Tensor:
    low, high = torch.stack(mask.aminmax()).tolist()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(f"mask must hold weights from 0 to 1; got {low:.4g} to {high:.4g}.")
    return mask


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1; got {value}.")
