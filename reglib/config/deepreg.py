"""DeepReg's losses as it defines them, for its files: -score, with 1e-5 inside, over whole voxels.

Each takes (warped, fixed), (b, c, *s), or a ddf, (b, d, *s) voxels, and is a mean over the batch. `reglib.losses` has
the same ideas with other borders, signs and units, and faster; `Differs:` there says how.

Source: DeepReg's manual, "Losses", and `loss/{image,label,deform}.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import losses

EPS = 1e-5


# -- images -------------------------------------------------------------------------------------------------------
def ssd(warped: Tensor, fixed: Tensor) -> Tensor:
    """The mean squared difference, whatever its name says."""
    return losses.mse_loss(warped, fixed)


def lncc(warped: Tensor, fixed: Tensor, *, kernel_size: int = 9, kernel_type: str = "rectangular") -> Tensor:
    """-mean (cross^2 + eps) / (var W var F + eps) over windows that are filled up with zeros at the border."""
    kernel = _kernel(kernel_size, kernel_type).to(fixed)
    volume = kernel.sum() ** (fixed.ndim - 2)
    w, f, ww, ff, wf = (_window(x, kernel) for x in (warped, fixed, warped**2, fixed**2, warped * fixed))
    cross = wf - w * f / volume
    variances = [(square - total**2 / volume).clamp(min=0) for square, total in ((ww, w), (ff, f))]
    return -((cross**2 + EPS) / (variances[0] * variances[1] + EPS)).mean()


def _kernel(size: int, kind: str) -> Tensor:
    if size < 3 or size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and at least 3; got {size}.")
    if kind == "rectangular":
        return torch.ones(size)
    if kind == "triangular":
        short = size - size // 2
        ramp = torch.arange(1, short + 1, dtype=torch.float32)
        return torch.cat([ramp, ramp[:-1].flip(0)])
    if kind == "gaussian":
        x = torch.arange(size, dtype=torch.float32) - size // 2
        return torch.exp(-(x**2) / (2 * (size / 3) ** 2))
    raise ValueError(f'kernel_type must be "rectangular", "triangular" or "gaussian"; got "{kind}".')


def _window(x: Tensor, kernel: Tensor) -> Tensor:
    """Sums along each axis in turn, zeros outside."""
    for axis in range(2, x.ndim):
        lines = x.movedim(axis, -1)
        flat = torch.nn.functional.conv1d(lines.reshape(-1, 1, lines.shape[-1]), kernel[None, None], padding="same")
        x = flat.reshape(lines.shape).movedim(-1, axis)
    return x


def gncc(warped: Tensor, fixed: Tensor) -> Tensor:
    """-(cov^2 + eps) / (var W var F + eps) of each pair."""
    w, f = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (warped, fixed))
    covariance = (w * f).mean(1)
    return -((covariance**2 + EPS) / ((w**2).mean(1) * (f**2).mean(1) + EPS)).mean()


def gmi(warped: Tensor, fixed: Tensor, *, num_bins: int = 23, sigma_ratio: float = 0.5) -> Tensor:
    """Minus the mutual information of intensities clamped to [0, 1], each spread by a gaussian over the bins."""
    centers = torch.linspace(0, 1, num_bins).to(fixed)
    sharp = 1 / (2 * (sigma_ratio / (num_bins - 1)) ** 2)
    shares = []
    for image in (warped, fixed):
        weight = torch.exp(-sharp * (image.clamp(0, 1).flatten(1)[..., None] - centers) ** 2)  # (b, n, bins)
        shares.append(weight / weight.sum(-1, keepdim=True))
    joint = shares[0].mT @ shares[1] / shares[0].shape[1]
    product = shares[0].mean(1)[:, :, None] * shares[1].mean(1)[:, None]
    return -(joint * torch.log((joint + EPS) / (product + EPS) + EPS)).sum((1, 2)).mean()


# -- labels -------------------------------------------------------------------------------------------------------
def dice(warped: Tensor, fixed: Tensor, **options: Any) -> Tensor:
    """Minus Dice, 2 sum(W F) / (sum W + sum F), of the structure and, by `background_weight`, of what is around it.

    Args: options: binary, background_weight, smooth_nr, smooth_dr, as of `jaccard`.
    """
    return _overlap(lambda both, total: (2 * both, total), warped, fixed, **options)


def jaccard(warped: Tensor, fixed: Tensor, **options: Any) -> Tensor:
    """Minus the overlap over the union.

    Args: options: binary, compare what is at least 0.5; background_weight, 0 to 1; smooth_nr and smooth_dr, added above
        and below.
    """
    return _overlap(lambda both, total: (both, total - both), warped, fixed, **options)


def _overlap(
    ratio: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    warped: Tensor,
    fixed: Tensor,
    *,
    binary: bool = False,
    background_weight: float = 0.0,
    smooth_nr: float = EPS,
    smooth_dr: float = EPS,
) -> Tensor:
    """Minus a ratio of overlap and sizes, each a mixture of the structure's and the background's."""
    both, total, volume = _sums(warped, fixed, binary)
    w = background_weight
    above, below = ratio(both - w * total + w * volume, (1 - 2 * w) * total + 2 * w * volume)
    return -((above + smooth_nr) / (below + smooth_dr)).mean()


def cross_entropy(
    warped: Tensor, fixed: Tensor, *, binary: bool = False, background_weight: float = 0.0, smooth: float = EPS
) -> Tensor:
    """-(1 - w) mean F log(W + eps) - w mean (1 - F) log(1 - W + eps)."""
    w, f = ((x >= 0.5).to(x) for x in (warped, fixed)) if binary else (warped, fixed)
    inside, outside = (f * torch.log(w + smooth)).mean(), ((1 - f) * torch.log(1 - w + smooth)).mean()
    return -(1 - background_weight) * inside - background_weight * outside


def _sums(warped: Tensor, fixed: Tensor, binary: bool) -> tuple[Tensor, Tensor, int]:
    """Of each pair the overlap, the sum of both, and the number of voxels."""
    w, f = ((x >= 0.5).to(x) for x in (warped, fixed)) if binary else (warped, fixed)
    w, f = w.flatten(1), f.flatten(1)
    return (w * f).sum(1), w.sum(1) + f.sum(1), w.shape[1]


# -- fields -------------------------------------------------------------------------------------------------------
def gradient(ddf: Tensor, *, l1: bool = False) -> Tensor:
    """The mean, over the inner voxels, of the summed size of the central differences."""
    return torch.stack([x.abs() if l1 else x**2 for x in _slopes(ddf)]).sum(0).mean()


def bending(ddf: Tensor) -> Tensor:
    """The mean, over the inner voxels, of the squared central differences of central differences, mixed ones twice."""
    seconds = []
    for j, slope in enumerate(_slopes(ddf)):
        seconds += [(1.0 if k == j else 2.0) * x**2 for k, x in enumerate(_slopes(slope)) if k >= j]
    return torch.stack(seconds).sum(0).mean()


def _slopes(u: Tensor) -> list[Tensor]:
    """Central differences along each axis, at the voxels that are inner along all."""
    if min(u.shape[2:]) < 3:
        raise ValueError(f"a slope needs 3 voxels along each axis, a bend 5; too few are left of {tuple(u.shape[2:])}.")
    slopes = []
    for axis in range(2, u.ndim):
        inner = u[tuple(slice(None) if k < 2 or k == axis else slice(1, -1) for k in range(u.ndim))]
        n = inner.shape[axis]
        slopes.append((inner.narrow(axis, 2, n - 2) - inner.narrow(axis, 0, n - 2)) / 2)
    return slopes
