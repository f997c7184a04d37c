"""What the losses on images and labels share: checks, weights, means and moments."""

from __future__ import annotations

import torch
from torch import Tensor


def check_pair(warped: Tensor, fixed: Tensor, mask: Tensor | None, *, mask_name: str = "mask") -> None:
    """Raise ValueError in a sentence unless both images share a shape and the mask is (b, 1, *s) of it."""
    if warped.shape != fixed.shape:
        raise ValueError(f"warped and fixed must have one shape; got {tuple(warped.shape)} and {tuple(fixed.shape)}.")
    if warped.ndim not in (4, 5):
        raise ValueError(f"warped and fixed must be (b, c, *s) in 2-D or 3-D; got {tuple(warped.shape)}.")
    if not warped.is_floating_point() or not fixed.is_floating_point():
        raise TypeError(f"warped and fixed must be floating point; got {warped.dtype} and {fixed.dtype}. Use .float().")
    if mask is not None and (mask.shape[1:] != (1, *fixed.shape[2:]) or mask.shape[0] not in (1, len(fixed))):
        raise ValueError(
            f"{mask_name} must be ({len(fixed)}, 1, {', '.join(map(str, fixed.shape[2:]))}); got {tuple(mask.shape)}."
        )


def in_float32(*images: Tensor) -> list[Tensor]:
    """Half precision as float32, in which sums over a volume neither overflow nor lose their digits."""
    return [image if image.dtype == torch.float64 else image.float() for image in images]


def weights(image: Tensor, mask: Tensor | None) -> Tensor:
    """(b, 1, *s) weights in the image's dtype; ones without a mask."""
    return torch.ones_like(image[:, :1]) if mask is None else mask.to(image.dtype).expand_as(image[:, :1])


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Weighted mean over the voxels of each image, then over the batch; an empty mask gives 0 with gradient 0."""
    if mask is None:
        return values.mean()
    weight = mask.to(values.dtype).expand_as(values)
    axes = tuple(range(1, values.ndim))
    return ((values * weight).sum(axes) / weight.sum(axes).clamp(min=1e-12)).mean()


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean of each image and channel, (b, c, 1, ..); 0 where there is no weight."""
    axes = tuple(range(2, values.ndim))
    if weight is None:
        return values.mean(axes, keepdim=True)
    total = (weight * values).sum(axes, keepdim=True, dtype=torch.float64)
    count = weight.sum(axes, keepdim=True, dtype=torch.float64)
    return (total / count.clamp(min=1e-12)).to(values.dtype)


def standard(image: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Center and scale of each image and channel, (b, c, 1, ..), no gradient: (x - center) * scale is in [-1, 1].

    Sums of squares of values far from 0 lose their digits, and of values far above 1 overflow. The scale of an image
    that varies by no more than rounding of its values is 0: a constant stays one.
    """
    x = image.detach()
    axes = tuple(range(2, x.ndim))
    center = weighted_mean(x, weight)
    noise = 8 * torch.finfo(x.dtype).eps * center.abs()
    if weight is None:
        reach = torch.maximum(x.amax(axes, keepdim=True) - center, center - x.amin(axes, keepdim=True))
    else:
        reach = (weight * (x - center)).abs().amax(axes, keepdim=True)
        noise = noise * weight.amax(axes, keepdim=True)
    return center, torch.where(reach > noise, 1 / reach.clamp(min=1e-18), 0.0)


def standardized(image: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(x - center) * scale, 0 where there is no weight, and the `standard` center and scale."""
    center, scale = standard(image, weight)
    values = (image - center) * scale
    return values if weight is None else torch.where(weight > 0, values, 0.0), center, scale


def value_range(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each image where the mask is above 0, (b,) each, no gradient; 0, 0 if nowhere."""
    x = image.detach().flatten(1)
    if mask is None:
        return x.amin(1), x.amax(1)
    counts = (mask > 0).expand_as(image).flatten(1)
    low = torch.where(counts, x, torch.inf).amin(1).nan_to_num(posinf=0.0)
    return low, torch.where(counts, x, -torch.inf).amax(1).nan_to_num(neginf=0.0)
