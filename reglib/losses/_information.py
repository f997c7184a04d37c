"""Mutual information from a smoothed joint histogram, a chunk of voxels at a time, with its gradient in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._shared import check_pair, in_float32, value_range, weights

Parzen = Literal["bspline", "gaussian"]
Range = tuple[float, float]
CHUNK = 1 << 16  # voxels binned at once: what they need stays in the processor's cache
SIGMA = 0.5  # of the gaussian, in bins
# The four cubic B-splines and the two linear ones that reach a point f in a cell: rows are bins, columns powers of f.
CUBIC = torch.tensor([[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]], dtype=torch.float64) / 6
LINEAR = torch.tensor([[1, -1], [0, 1]], dtype=torch.float64)


def mi_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    bins: int = 32,
    parzen: Parzen = "bspline",
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
    warped_range: Range | None = None,
    fixed_range: Range | None = None,
    fraction: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Minus the mutual information  sum p log(p / (p_W p_F))  in nats, from a smoothed joint histogram.

    Args:
        bins: intensity bins of each image.
        parzen: how an intensity spreads over bins: "bspline", cubic for the image that moves and linear for the one
            that does not; "gaussian" with sigma of half a bin for both, normalized over the bins (DeepReg's).
        mask: weights of voxels.
        warped_range, fixed_range: intensities of the first and last bin; default the image's own smallest and largest
            under the mask.
        fraction: share of the voxels that is used, one drawn at random from each run of neighbors.
        generator: where that draw comes from; on the CPU.

    The gradient is in closed form and cannot be differentiated again; memory does not grow with voxels times bins.

    Raises: ValueError for intensities outside a given range; they are never clamped silently.

    Source: Mattes et al. 2003, doi:10.1109/TMI.2002.803111.   Differs: natural logarithm; range given or taken from
        the data (DeepReg and MONAI clamp to [0, 1]).
    """
    entropies = _entropies(warped, fixed, bins, parzen, mask, (warped_range, fixed_range), _Draw(fraction, generator))
    return -torch.stack([w + f - joint for w, f, joint in entropies]).mean().to(warped.dtype)


def nmi_loss(
    warped: Float[Tensor, "b c *s"],
    fixed: Float[Tensor, "b c *s"],
    *,
    bins: int = 32,
    parzen: Parzen = "bspline",
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
    warped_range: Range | None = None,
    fixed_range: Range | None = None,
    fraction: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Two minus the normalized mutual information  (H_W + H_F) / H_WF : 1 for unrelated images, 0 for a bijection.

    Args: as for `mi_loss`. Smoothing the histogram keeps the loss above 0 even for equal images.

    Source: Studholme, Hill and Hawkes 1999, doi:10.1016/S0031-3203(98)00091-0, equation 8.
    """
    entropies = _entropies(warped, fixed, bins, parzen, mask, (warped_range, fixed_range), _Draw(fraction, generator))
    ratios = [torch.where(joint > 0, (w + f) / joint.clamp(min=1e-12), torch.ones_like(w)) for w, f, joint in entropies]
    return 2 - torch.stack(ratios).mean().to(warped.dtype)


class _Draw(NamedTuple):
    """Which voxels are used: one from each run of 1 / fraction neighbors."""

    fraction: float
    generator: torch.Generator | None

    def indices(self, count: int) -> Tensor | None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1; got {self.fraction}.")
        if self.fraction == 1:
            return None
        kept = max(1, round(self.fraction * count))
        places = torch.arange(kept, dtype=torch.float64) + torch.rand(
            kept, generator=self.generator, dtype=torch.float64
        )
        return (places * (count / kept)).long().clamp_(max=count - 1)


def _entropies(
    warped: Tensor,
    fixed: Tensor,
    bins: int,
    parzen: Parzen,
    mask: Tensor | None,
    ranges: tuple[Range | None, Range | None],
    draw: _Draw,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Entropy of warped, of fixed, and of both together, for each image of the batch; float64 nats."""
    check_pair(warped, fixed, mask)
    if bins < 4:
        raise ValueError(f"bins must be at least 4; got {bins}. 32 is usual.")
    if parzen not in ("bspline", "gaussian"):
        raise ValueError(f'parzen must be "bspline" or "gaussian"; got "{parzen}".')
    warped, fixed = in_float32(warped, fixed)
    weight = None if mask is None else weights(fixed, mask).expand_as(fixed)
    scales = [
        _scales(image, mask, limits, bins, name)
        for image, limits, name in ((warped, ranges[0], "warped"), (fixed, ranges[1], "fixed"))
    ]
    joint_of = _BsplineJoint if parzen == "bspline" else _GaussianJoint
    indices = draw.indices(fixed[0].numel())
    for i in range(len(fixed)):
        parts = [warped[i].flatten(), fixed[i].flatten(), None if weight is None else weight[i].flatten()]
        if indices is not None:
            parts = [None if part is None else part[indices.to(part.device)] for part in parts]
        joint: Tensor = joint_of.apply(*parts, scales[0][i], scales[1][i], bins)
        joint = joint / joint.sum().clamp(min=1e-12)
        yield _entropy(joint.sum(0)), _entropy(joint.sum(1)), _entropy(joint)


def _entropy(p: Tensor) -> Tensor:
    """-sum p log p; where p is 0, neither value nor gradient."""
    present = p > 0
    return -torch.where(present, p * torch.where(present, p, torch.ones_like(p)).log(), 0.0).sum()


class _Scale(NamedTuple):
    """Bin position = (x - low) * per_unit."""

    low: float
    per_unit: float


def _scales(image: Tensor, mask: Tensor | None, limits: Range | None, bins: int, name: str) -> list[_Scale]:
    low, high = (side.tolist() for side in value_range(image, mask))
    if not all(abs(x) < float("inf") for x in (*low, *high)):
        raise ValueError(f"{name} must be finite; it holds NaN or infinity. Replace them, for example by 0.")
    if limits is not None:
        if not limits[0] < limits[1]:
            raise ValueError(f"{name}_range must be (smallest, largest); got {limits}.")
        if min(low) < limits[0] or max(high) > limits[1]:
            raise ValueError(
                f"{name} must lie in {name}_range = {limits}; it spans {min(low):.4g} to {max(high):.4g}. "
                "Widen the range or scale the image first."
            )
        low, high = [limits[0]] * len(low), [limits[1]] * len(high)
    smallest = torch.finfo(image.dtype).tiny * bins
    return [_Scale(a, (bins - 1) / (b - a) if b - a > smallest else 0.0) for a, b in zip(low, high, strict=True)]


def _chunks(a: Tensor, b: Tensor, weight: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
    for start in range(0, len(a), CHUNK):
        here = slice(start, start + CHUNK)
        yield here, a[here], b[here], None if weight is None else weight[here]


def _position(values: Tensor, scale: _Scale, weight: Tensor | None, bins: int) -> Tensor:
    """Bin positions from 0 to bins - 1; 0 where the weight is 0, whatever value stands there."""
    position = (values - scale.low).mul_(scale.per_unit)
    if weight is not None:
        position = torch.where(weight > 0, position, 0.0)
    return position.clamp_(0, bins - 1)  # only rounding reaches beyond


# -- B-splines --------------------------------------------------------------------------------------------------
class _BsplineJoint(torch.autograd.Function):
    """Joint histogram (fixed, warped), float64, from moments of where voxels lie within their cell of bins.

    A voxel at f, g in [0, 1) of its cell adds a polynomial in f and g to the 4 x 2 bins around: the sums of f^p g^q
    over the voxels of each cell say everything, and each voxel is looked up once.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, weight: Tensor | None, a_scale: _Scale, b_scale: _Scale, bins: int
    ) -> Tensor:
        ctx.save_for_backward(a, b, weight)
        ctx.scales, ctx.bins = (a_scale, b_scale), bins
        moments = a.new_zeros(2, 4, bins * bins, dtype=torch.float64)
        for _, x, y, w in _chunks(a, b, weight):
            cell, f, g = _cells(x, y, w, ctx.scales, bins)
            rows = [torch.ones_like(f) if w is None else w]
            rows.append(rows[0] * g)
            for q in (0, 1):
                power = rows[q]
                for p in range(4):
                    moments[q, p] += torch.bincount(cell, power, minlength=bins * bins)
                    power = power * f if p < 3 else power
        moments = moments.reshape(2, 4, bins, bins)
        spread = torch.einsum("jq,ip,qpyx->jiyx", LINEAR.to(a.device), CUBIC.to(a.device), moments)
        joint = a.new_zeros(bins + 1, bins + 3, dtype=torch.float64)  # bins beyond the ends take what spills over
        for j in range(2):
            for i in range(4):
                joint[j : j + bins, i : i + bins] += spread[j, i]
        return joint

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        a, b, weight = ctx.saved_tensors
        bins, (a_scale, b_scale) = ctx.bins, ctx.scales
        near = outer[0].unfold(0, 2, 1).unfold(1, 4, 1)  # (bins, bins, 2, 4)
        table = torch.einsum("jq,ip,yxji->yxqp", LINEAR.to(a.device), CUBIC.to(a.device), near).to(a.dtype)
        table = table.reshape(bins * bins, 8)  # of f^p g^q, q first
        wanted = ctx.needs_input_grad
        to_a, to_b = (torch.zeros_like(x) if want else None for x, want in zip((a, b), wanted[:2], strict=True))
        for here, x, y, w in _chunks(a, b, weight):
            cell, f, g = _cells(x, y, w, ctx.scales, bins)
            t = table.index_select(0, cell).T  # (8, n)
            if to_a is not None:
                slope = _at(t[1], t[5], g).addcmul_(_at(t[2], t[6], g), f, value=2)
                slope = slope.addcmul_(_at(t[3], t[7], g), f * f, value=3).mul_(a_scale.per_unit)
                to_a[here] = slope if w is None else slope.mul_(w)
            if to_b is not None:
                slope = t[4] + f * (t[5] + f * (t[6] + f * t[7]))
                to_b[here] = (slope if w is None else slope * w).mul_(b_scale.per_unit)
        return to_a, to_b, None, None, None, None


def _at(constant: Tensor, linear: Tensor, g: Tensor) -> Tensor:
    return torch.addcmul(constant, linear, g)


def _cells(
    x: Tensor, y: Tensor, w: Tensor | None, scales: tuple[_Scale, _Scale], bins: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The cell of each voxel, and where it lies in it along the warped and the fixed image's bins."""
    x, y = (_position(values, scale, w, bins) for values, scale in zip((x, y), scales, strict=True))
    column, row = x.floor(), y.floor()
    return row.mul(bins).add_(column).long(), x.sub_(column), y.sub_(row)


# -- gaussians --------------------------------------------------------------------------------------------------
class _GaussianJoint(torch.autograd.Function):
    """Joint histogram (fixed, warped), float64, of normalized gaussian weights; one chunk's matrices at a time."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, weight: Tensor | None, a_scale: _Scale, b_scale: _Scale, bins: int
    ) -> Tensor:
        ctx.save_for_backward(a, b, weight)
        ctx.scales, ctx.bins = (a_scale, b_scale), bins
        joint = a.new_zeros(bins, bins, dtype=torch.float64)
        for _, x, y, w in _chunks(a, b, weight):
            of_x, of_y = (_gaussians(v, s, w, bins) for v, s in zip((x, y), ctx.scales, strict=True))
            joint += of_y.mul_(1 if w is None else w) @ of_x.T
        return joint

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        a, b, weight = ctx.saved_tensors
        towards = outer[0].to(a.dtype)
        gradients = [
            torch.zeros_like(x) if want else None for x, want in zip((a, b), ctx.needs_input_grad, strict=False)
        ]
        for here, x, y, w in _chunks(a, b, weight):
            of_x, of_y = (_gaussians(v, s, w, ctx.bins) for v, s in zip((x, y), ctx.scales, strict=True))
            for gradient, own, pull, scale in (
                (gradients[0], of_x, towards.T @ of_y, ctx.scales[0]),
                (gradients[1], of_y, towards @ of_x, ctx.scales[1]),
            ):
                if gradient is not None:
                    slope = _softmax_slope(own, pull).mul_(scale.per_unit / SIGMA**2)
                    gradient[here] = slope if w is None else slope.mul_(w)
        return *gradients, None, None, None, None


def _gaussians(values: Tensor, scale: _Scale, weight: Tensor | None, bins: int) -> Tensor:
    """(bins, n) weights of each voxel, which sum to one over the bins."""
    position = _position(values, scale, weight, bins)
    centers = torch.arange(bins, dtype=values.dtype, device=values.device)[:, None]
    return ((position - centers).square_().mul_(-0.5 / SIGMA**2)).softmax(0)


def _softmax_slope(own: Tensor, pull: Tensor) -> Tensor:
    """sum_k pull_k d own_k / d position, times sigma^2:  own_k (k - mean of k under own)."""
    centers = torch.arange(len(own), dtype=own.dtype, device=own.device)[:, None]
    mean = (own * centers).sum(0)
    return (own * pull * (centers - mean)).sum(0)
