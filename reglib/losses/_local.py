"""Local correlation, written for speed: window sums as banded products, and its gradient in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..filters import LocalWindow, window_sum
from ._shared import check_pair, in_float32, masked_mean, standardized, weighted_mean, weights

FLAT = 1e-5  # share of an image's own variance below which a window is flat; what only keeps rounding out
BOTH = 0.1  # share of a larger `flat` below which windows of both images are flat
TINY = 1e-12  # variance of values in [-1, 1] that is divided by at least
WindowLike = int | Sequence[int] | LocalWindow


class LocalSums(NamedTuple):
    """What `lncc_loss` needs of the fixed image, made once a level by `lncc_sums`; each (b, c, *s) or smaller."""

    window: LocalWindow
    share: Tensor  # one over the sum of weights in each window
    values: Tensor  # the image, centered and scaled to [-1, 1], times its weight
    mean: Tensor
    power: Tensor  # the variance, and what makes a window with little of it count less
    floor: Tensor  # a variance below this counts as flat
    flat: float  # the share of its own variance at which a window of the fixed image counts half


def as_window(window: WindowLike) -> LocalWindow:
    """A plain size is a box."""
    return window if isinstance(window, LocalWindow) else LocalWindow(size=window)


def lncc_sums(
    fixed: Float[Tensor, "b c *s"],
    window: WindowLike,
    *,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
    flat: float = FLAT,
) -> LocalSums:
    """Local count, mean and variance of the fixed image, to hand to `lncc_loss(fixed_sums=...)` in a loop."""
    check_pair(fixed, fixed, mask)
    (fixed,) = in_float32(fixed)
    return _sums(fixed, as_window(window), None if mask is None else weights(fixed, mask), flat)


def _sums(
    image: Tensor, window: LocalWindow, weight: Tensor | None, flat: float, *, half: float | None = None
) -> LocalSums:
    if not 0 <= flat < 1:
        raise ValueError(f"flat must be a share of the image's variance, from 0 to below 1; got {flat}.")
    count = torch.ones_like(image[:1, :1]) if weight is None else weight
    share = window_sum(count, window).clamp_(min=1e-6).reciprocal_()
    own = _moments(image, window, share, weight, least=_least(flat), half=_half(flat) if half is None else half)
    power = own.variance if own.half is None else own.half.square().div(own.variance.clamp(min=TINY)).add_(own.variance)
    return LocalSums(window, share, own.weighted, own.mean, power, own.floor, flat)


class _Moments(NamedTuple):
    """Local moments of an image's values in [-1, 1]; `half` is the variance at which a window counts half, or none."""

    weighted: Tensor
    mean: Tensor
    variance: Tensor
    floor: Tensor
    half: Tensor | None
    values: Tensor
    scale: Tensor


def _least(flat: float) -> float:
    """The share of their own variance below which windows of both images are flat."""
    return flat if flat <= FLAT else max(FLAT, BOTH * flat)


def _half(flat: float) -> float:
    """The share of its own variance at which a window of the fixed image alone counts half, or 0."""
    return flat if flat > FLAT else 0.0


def _moments(
    image: Tensor, window: LocalWindow, share: Tensor, weight: Tensor | None, *, least: float, half: float
) -> _Moments:
    values, _, scale = standardized(image, weight)
    weighted = values if weight is None else weight * values
    squares = values * weighted
    mean = window_sum(weighted, window).mul_(share)
    variance = window_sum(squares, window).mul_(share)
    spread = weighted_mean(squares if weight is None else values * values, weight)
    square = mean * mean
    variance.sub_(square).clamp_(min=0)
    rounding = 32 * torch.finfo(values.dtype).eps  # of a variance found as mean of squares minus square of the mean
    floor = square.mul_(rounding).add_(least * spread + 1e-18)
    return _Moments(weighted, mean, variance, floor, half * spread if half else None, values, scale)


def lncc_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    window: WindowLike = 9,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
    warped_mask: Shaped[Tensor, "#b 1 *s"] | None = None,
    flat: float = FLAT,
    fixed_sums: LocalSums | None = None,
) -> Float[Tensor, ""]:
    """One minus the mean squared local correlation  cc = cov^2 / (var W var F)  over windows, from 0 to 1.

    Args:
        window: odd edge length in voxels of a box, or a `LocalWindow` (triangular, gaussian, in mm). At the borders
            only voxels that exist are counted.
        mask: weights; a window counts by the weight at its center, voxels outside do not enter.
        warped_mask: weights of the warped image, multiplied with `mask`; no gradient flows to either.
        flat: share of the fixed image's own variance at which a window of it counts half, and below it ever less.
            The default only keeps rounding out; 0.02 keeps the noise of air and of even tissue from pulling. It
            does not ask the warped image, which would gain by gathering structure wherever it has too little.
        fixed_sums: `lncc_sums(fixed, window, mask=mask, flat=flat)`, if you have them; then its window and flat count.

    The gradient is in closed form, found with the value, and cannot be differentiated again.

    Source: Avants et al. 2008, doi:10.1016/j.media.2007.06.004, equation 5, over windows that exist.
    Differs: a flat window scores 0 (DeepReg's and VoxelMorph's 1), nothing scores above 1 (MONAI is unbounded),
        windows at the border are not filled up with zeros; the loss is 1 - cc^2, not -cc^2.
    """
    check_pair(warped, fixed, mask)
    check_pair(warped, fixed, warped_mask, mask_name="warped_mask")
    kind = warped.dtype
    warped, fixed = in_float32(warped, fixed)
    if warped_mask is not None:
        if fixed_sums is not None:
            raise ValueError("fixed_sums hold for one mask; with a warped_mask, which moves, leave them out.")
        mask = weights(fixed, warped_mask) * weights(fixed, mask)
    weight = None if mask is None else weights(fixed, mask)
    if fixed_sums is not None and fixed_sums.values.shape != fixed.shape:
        raise ValueError(
            f"fixed_sums must be of the fixed image {tuple(fixed.shape)}; got sums of {tuple(fixed_sums.values.shape)}."
        )
    chosen = as_window(window) if fixed_sums is None else fixed_sums.window
    sums = fixed_sums or _sums(fixed, chosen, weight, flat)
    loss: Tensor = _Lncc.apply(warped, fixed, sums, weight)
    return loss.to(kind)


def _prepare(
    fixed: Tensor, *, mask: Tensor | None = None, window: WindowLike = 9, flat: float = FLAT, **given: Any
) -> dict[str, LocalSums]:
    """What `lncc_loss` takes in a loop over one fixed image; nothing where a keyword already moves the weights."""
    if given.get("warped_mask") is not None or given.get("fixed_sums") is not None:
        return {}
    return {"fixed_sums": lncc_sums(fixed, window, mask=mask, flat=flat)}


vars(lncc_loss)["prepare"] = _prepare  # `optimize.register` asks any similarity for it, once a level


class _Lncc(torch.autograd.Function):
    """The loss, and in the same pass its gradient: one volume is kept for the backward instead of a dozen."""

    @staticmethod
    def forward(ctx: Any, warped: Tensor, fixed: Tensor, sums: LocalSums, weight: Tensor | None) -> Tensor:
        wanted = ctx.needs_input_grad
        if wanted[1]:
            other = _sums(warped, sums.window, weight, sums.flat, half=0.0)
            loss, to_fixed = _value_and_gradient(fixed, other, weight, half=_half(sums.flat), gradient=True)
        else:
            loss, to_fixed = None, None
        if wanted[0] or loss is None:
            loss, to_warped = _value_and_gradient(warped, sums, weight, half=0.0, gradient=wanted[0])
        else:
            to_warped = None
        ctx.gradients = (to_warped, to_fixed)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = outer
        return *(None if g is None else g * factor for g in ctx.gradients), None, None


def _value_and_gradient(
    image: Tensor, other: LocalSums, weight: Tensor | None, *, half: float, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss and its gradient to one image W, given the sums of the other, F, and at which share W counts half.

    With local mean m, variance v and covariance c of weighted windows, D = p_W p_F + floor, p = v + half^2 / v and K
    the window sum:
        d loss / d W = w (F K(A) + W (K(B) + C) - K(A m_F + B m_W)),
        A = -2 g c / (D n),  B = 2 g c^2 p_F / (D^2 n) dp_W / dv_W,
    where g is the share of a window in the mean, n the sum of weights in it, and K is its own transpose. C is the share
    of `floor` and `half`, which follow the variance of the whole image W.
    """
    least = _least(other.flat)
    own = _moments(image, other.window, other.share, weight, least=least, half=half)
    covariance = window_sum(own.values * other.values, other.window).mul_(other.share).sub_(own.mean * other.mean)
    raised = None if own.half is None else own.half / own.variance.clamp(min=TINY)
    power = own.variance if raised is None or own.half is None else torch.addcmul(own.variance, own.half, raised)
    divisor = own.floor.mul_(other.floor).addcmul_(power, other.power)
    ratio = divisor.reciprocal_().mul_(covariance)
    loss = 1 - masked_mean((ratio * covariance).clamp_(max=1), weight)
    if not gradient:
        return loss, None
    spatial = tuple(range(2, ratio.ndim))
    count = ratio.new_tensor(ratio[0, 0].numel()) if weight is None else weight.sum((1, *spatial), keepdim=True)
    count = count.clamp(min=1e-12)
    each = (1.0 if weight is None else weight) / (count * ratio.shape[1] * len(ratio))
    squared = ratio.square().mul_(each)
    through = (squared * other.floor).sum(spatial, keepdim=True) * (2 * least / count)
    if raised is not None:
        through += squared.mul_(other.power).mul_(raised).sum(spatial, keepdim=True) * (4 * half / count)
    a = (ratio * other.share).mul_(each).mul_(-2)
    b = ratio.mul_(a).mul_(other.power).neg_()
    if raised is not None:
        b.mul_(1 - raised.square_())
    rest = own.mean.mul_(b).addcmul_(a, other.mean)
    result = window_sum(b, other.window).add_(through).mul_(own.weighted)
    del b
    result.addcmul_(window_sum(a, other.window), other.values).sub_(
        window_sum(rest, other.window) if weight is None else window_sum(rest, other.window).mul_(weight)
    )
    return loss, result.mul_(own.scale)


def lcc_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    window: WindowLike = 7,
    warped_mask: Shaped[Tensor, "#b 1 *s"] | None = None,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """One minus the mean squared local correlation of two masked images, each with local means of its own mask.

    Args:
        window: as for `lncc_loss`.
        warped_mask, mask: weights of the warped and of the fixed image; both count where a product is formed.

    With equal masks it is `lncc_loss`. It suits sparse slices and cut fields of view, where `lncc_loss` would center
    an image by the few voxels that both see.

    Source: Lewis et al. 2020, arXiv:1812.06932, weighted local correlation; deepali's WLCC.
    Differs: variances and covariance share their weights, so that a score never exceeds 1; flat windows score 0.
    """
    check_pair(warped, fixed, mask)
    check_pair(warped, fixed, warped_mask, mask_name="warped_mask")
    kind, around = warped.dtype, as_window(window)
    warped, fixed = in_float32(warped, fixed)
    w_weight, f_weight = weights(warped, warped_mask), weights(fixed, mask)
    both = w_weight * f_weight
    (w, w_mean), (f, f_mean) = (_centered(x, m, around) for x, m in ((warped, w_weight), (fixed, f_weight)))
    count = window_sum(both, around).clamp(min=1e-6)
    w_sum, f_sum = (window_sum(both * x, around) / count for x in (w, f))
    covariance = window_sum(both * w * f, around) / count - w_mean * f_sum - f_mean * w_sum + w_mean * f_mean
    power = []
    for x, mean, total in ((w, w_mean, w_sum), (f, f_mean, f_sum)):
        variance = window_sum(both * x * x, around) / count - 2 * mean * total + mean * mean
        rounding = 32 * torch.finfo(x.dtype).eps * (mean.abs() + total.abs()).square().detach()
        power.append((variance.clamp(min=0), rounding + FLAT * weighted_mean((x * x).detach(), both) + 1e-18))
    (w_power, w_floor), (f_power, f_floor) = power
    correlation = covariance.square() / (w_power * f_power + w_floor * f_floor)
    return (1 - masked_mean(correlation.clamp(max=1), both)).to(kind)


def _centered(image: Tensor, weight: Tensor, window: LocalWindow) -> tuple[Tensor, Tensor]:
    """The image centered and scaled to [-1, 1], and its local mean over its own mask."""
    values, _, _ = standardized(image, weight)
    return values, window_sum(weight * values, window) / window_sum(weight, window).clamp(min=1e-6)
