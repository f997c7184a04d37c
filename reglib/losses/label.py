"""How badly two sets of structures overlap."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def dice_loss(warped: Float[Tensor, "b c *s"], fixed: Float[Tensor, "b c *s"]) -> Float[Tensor, ""]:
    """One minus the mean Dice overlap  2 sum(W F) / (sum W + sum F)  over channels and batch.

    Args: warped, fixed: soft masks in [0, 1], one structure a channel; leave the background out.
    A structure that is empty in both counts as perfect, 0.
    Source: Milletari et al. 2016, arXiv:1606.04797.   Differs: plain, not squared, denominator.
    """
    if warped.shape != fixed.shape:
        raise ValueError(f"warped and fixed must have one shape; got {tuple(warped.shape)} and {tuple(fixed.shape)}.")
    axes = tuple(range(2, fixed.ndim))
    both = (warped * fixed).sum(axes)
    total = warped.sum(axes) + fixed.sum(axes)
    tiny = 1e-6
    return 1 - ((2 * both + tiny) / (total + tiny)).mean()
