"""How far apart landmarks are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def tre_loss(
    warped_points: Float[Tensor, "b k d"],
    moving_points: Float[Tensor, "b k d"],
    *,
    spacing: float | Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """Target registration error: mean distance  |x' - y|  of mapped fixed points from their moving partners.

    Args: spacing: mm per voxel along each axis, for points in voxels; leave out for points in mm.
    The gradient at distance 0 is 0.
    """
    if warped_points.shape != moving_points.shape:
        raise ValueError(
            "both point sets must be (b, k, d) of one shape; "
            f"got {tuple(warped_points.shape)} and {tuple(moving_points.shape)}."
        )
    gap = warped_points - moving_points
    if spacing is not None:
        gap = gap * torch.as_tensor(spacing).to(gap)
    squared = gap.square().sum(-1)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, torch.ones_like(squared)).sqrt(), squared).mean()
