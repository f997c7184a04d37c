"""Shapes drawn by rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..grid import Grid


def _unit_coordinates(shape: Sequence[int]) -> Float[Tensor, "*s d"]:
    """Voxel centers in [0, 1] along each axis, outer edges at 0 and 1."""
    return (Grid(shape).coordinates() + 0.5) / torch.tensor([float(n) for n in shape])


def circle(
    shape: Sequence[int], *, radius: float | None = None, center: Sequence[float] | None = None, sigma: float = 0.0
) -> Float[Tensor, "1 1 *s"]:
    """A disc (2-D) or ball (3-D) of ones. Radius, center and the edge's softness sigma in voxels."""
    middle = torch.tensor(center if center is not None else [(n - 1) / 2 for n in shape], dtype=torch.float32)
    size = radius if radius is not None else min(shape) * 0.3
    distance = (Grid(shape).coordinates() - middle).norm(dim=-1)
    image = torch.sigmoid((size - distance) / (sigma / 1.7)) if sigma > 0 else (distance <= size).float()
    return image[None, None]


def cshape(
    shape: Sequence[int], *, radius: float | None = None, width: float | None = None, opening: float = 0.5
) -> Float[Tensor, "1 1 *s"]:
    """A ring (2-D) or shell (3-D) cut open toward the far end of axis 0: the letter C.

    Args: radius, width: outer radius and thickness, voxels. opening: half-width of the gap, in outer radii.
    """
    outer = radius if radius is not None else min(shape) * 0.4
    thick = width if width is not None else outer * 0.4
    offset = Grid(shape).coordinates() - torch.tensor([(n - 1) / 2 for n in shape])
    distance = offset.norm(dim=-1)
    gap = (offset[..., 0] > 0) & (offset[..., 1].abs() < opening * outer)
    return ((distance <= outer) & (distance >= outer - thick) & ~gap).float()[None, None]


def grid_lines(shape: Sequence[int], *, stride: int = 4) -> Float[Tensor, "1 1 *s"]:
    """Ones on every `stride`-th plane of voxels along each axis: graph paper to warp."""
    voxels = Grid(shape).coordinates()
    return (voxels % stride == 0).any(dim=-1).float()[None, None]


def letter_f(shape: Sequence[int]) -> Float[Tensor, "1 1 *s"]:
    """The letter F, which no flip or swap of axes leaves unchanged; in 3-D its short arm reaches half as deep.

    The stem runs along axis 1, the arms point along axis 0; voxels of the arms are brighter than the stem's.
    """
    x = _unit_coordinates(shape)
    depth = (0.2, 0.8)
    boxes = [  # value, then (low, high) along each axis
        (0.7, (0.25, 0.40), (0.15, 0.85), depth),
        (1.0, (0.25, 0.78), (0.70, 0.85), depth),
        (1.0, (0.25, 0.62), (0.42, 0.56), (0.2, 0.5)),
    ]
    image = torch.zeros(tuple(shape))
    for value, *ranges in boxes:
        inside = [(x[..., k] >= low) & (x[..., k] < high) for k, (low, high) in enumerate(ranges[: len(shape)])]
        image[torch.stack(inside).all(0)] = value
    return image[None, None]
