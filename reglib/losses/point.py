"""How far apart landmarks and surfaces are.

Points are (b, k, d) voxel coordinates of one grid, or mm. Where `spacing`, mm per voxel along each axis, is given,
points are voxels and distances mm. Losses of half precision are computed in float32 and returned as they came; maps
and points made here are float32, or float64 of a float64 mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .. import field
from ..grid import per_axis
from .label import checked_masks

CHUNK = 512  # points whose distances to all others are held at once


def tre_loss(
    warped_points: Float[Tensor, "b k d"],
    moving_points: Float[Tensor, "b k d"],
    *,
    spacing: float | Sequence[float] | None = None,
    weights: Shaped[Tensor, "#b k"] | None = None,
) -> Float[Tensor, ""]:
    """Target registration error: mean distance  |x' - y|  of mapped fixed points from their moving partners.

    The gradient at distance 0 is 0.

    Args:
        spacing: mm per voxel along each axis, for points in voxels; leave out for points in mm.
        weights: of each pair, at least 0; the mean over the points of each case becomes a weighted one.

    Raises: ValueError for points that are no pairs, a spacing not above 0, negative weights; TypeError for integers.
    """
    if warped_points.shape != moving_points.shape:
        raise ValueError(
            "both point sets must be (b, k, d) of one shape; "
            f"got {tuple(warped_points.shape)} and {tuple(moving_points.shape)}."
        )
    warped, moving = _physical(warped_points, moving_points, spacing)
    distance = torch.linalg.vector_norm(warped - moving, dim=-1)  # (b, k)
    if weights is None:
        return distance.mean().to(warped_points.dtype)
    if weights.shape[0] not in (1, len(distance)) or weights.shape[1:] != distance.shape[1:]:
        raise ValueError(f"weights must be {tuple(distance.shape)}, one a point; got {tuple(weights.shape)}.")
    if not bool((weights >= 0).all()):
        raise ValueError(f"weights must be at least 0; got {float(weights.min()):.4g}.")
    share = weights.to(distance).expand_as(distance)
    return ((share * distance).sum(1) / share.sum(1).clamp(min=1e-12)).mean().to(warped_points.dtype)


def closest_point_loss(
    warped_points: Float[Tensor, "b k d"],
    moving_points: Float[Tensor, "b m d"],
    *,
    spacing: float | Sequence[float] | None = None,
    symmetric: bool = False,
) -> Float[Tensor, ""]:
    """Mean distance  |x' - y(x')|  of mapped fixed points from the closest of the moving points.

    No pairs are needed: the sets may differ in number. The gradient at distance 0 is 0. Memory grows with the number
    of points, not with its square.

    Args:
        spacing: as for `tre_loss`.
        symmetric: the mean of this and the same from the moving points to the mapped ones, so that no part of either
            set is left alone.

    Raises: ValueError for sets that do not fit or are empty, a spacing not above 0; TypeError for integers.

    Source: Besl and McKay 1992, doi:10.1109/34.121791.
    Differs: the distance, in mm with spacing; deepali multiplies it by 10, and its distance_matrix is squared.
    """
    a, b = warped_points.shape, moving_points.shape
    if len(a) != 3 or len(b) != 3 or (a[0], a[2]) != (b[0], b[2]):
        raise ValueError(f"point sets must be (b, k, d) and (b, m, d) of one b and d; got {tuple(a)} and {tuple(b)}.")
    warped, moving = _physical(warped_points, moving_points, spacing)
    loss = _to_closest(warped, moving)
    if symmetric:
        loss = (loss + _to_closest(moving, warped)) / 2
    return loss.to(warped_points.dtype)


def distance_transform_loss(
    warped_points: Float[Tensor, "b k d"], moving_distance: Float[Tensor, "b 1 *s"], *, squared: bool = True
) -> Float[Tensor, ""]:
    """Mean squared distance  D(x')^2  of a mapped fixed surface's points from the moving surface.

    Args:
        warped_points: voxels of the moving grid, from `surface_points` of the fixed mask through the map.
        moving_distance: `distance_map` of the moving mask; outside the image it continues with its border.
        squared: False for  |D(x')|, in the map's own unit.

    Raises: ValueError for points that do not fit the map or none at all; TypeError for integers.

    Source: Dalca et al. 2019, doi:10.1016/j.media.2019.07.006: VoxelMorph's loss for surfaces.
    Differs: without its factor 1 / (4 sigma^2), which is the caller's weight; in mm^2 for a map in mm. For both
        directions add the same loss of the inverse map.
    """
    d = moving_distance.ndim - 2
    if moving_distance.shape[1] != 1 or warped_points.ndim != 3 or len(warped_points) != len(moving_distance):
        raise ValueError(
            f"warped_points must be (b, k, {d}) and moving_distance (b, 1, *{d} sizes), one structure a call; "
            f"got {tuple(warped_points.shape)} and {tuple(moving_distance.shape)}."
        )
    _require_points(warped_points, "warped_points")
    wide = moving_distance.to(torch.promote_types(moving_distance.dtype, torch.float32))
    distance = field.sample(wide, warped_points)  # (b, 1, k)
    loss = (distance.square() if squared else distance.abs()).mean()
    return loss.to(torch.promote_types(warped_points.dtype, moving_distance.dtype))


def distance_map(
    mask: Shaped[Tensor, "b c *s"], *, spacing: float | Sequence[float] | None = None, signed: bool = False
) -> Float[Tensor, "b c *s"]:
    """Exact Euclidean distance of every voxel from the surface of each structure; no gradient.

    The surface is the voxels above 0.5 with a face neighbor that is not, as in `metrics`; beyond the image is
    outside, but for an axis of one voxel, which does not count.

    Args:
        mask: bool, or floating point in [0, 1]; one structure a channel.
        spacing: mm per voxel along each axis; with it the distance is in mm, else in voxels.
        signed: negative inside.

    Raises: ValueError for an empty structure, values that are no mask, a spacing not above 0.

    Source: Maurer et al. 2003, doi:10.1109/TPAMI.2003.1177156, as SciPy has it.
    Differs: 0 on the surface's voxels; VoxelMorph's map has its surface between voxels and is 1 on both sides.
    """
    from scipy import ndimage

    steps = _steps(spacing, mask.ndim - 2)
    inside = _inside(mask)
    result = torch.empty(mask.shape, dtype=torch.promote_types(mask.dtype, torch.float32))
    for index in product(range(mask.shape[0]), range(mask.shape[1])):
        structure = inside[index].cpu().numpy()
        distance = ndimage.distance_transform_edt(~_surface(structure), sampling=steps)
        if signed:
            distance[structure] *= -1
        result[index] = torch.from_numpy(distance)
    return result.to(mask.device)


def surface_points(
    mask: Shaped[Tensor, "b 1 *s"], count: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "b k d"]:
    """Voxel coordinates of `count` random surface voxels of a mask; none twice before all have been taken.

    Args:
        mask: as for `distance_map`, one structure.
        count: points of each case; VoxelMorph takes 5000.
        generator: on the CPU.

    Raises: ValueError for an empty structure, values that are no mask, or a count below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1 point; got {count}.")
    if mask.shape[1] != 1:
        raise ValueError(f"mask must be (b, 1, *s), one structure; got {tuple(mask.shape)}.")
    points = []
    for structure in _inside(mask)[:, 0].cpu().numpy():
        surface = torch.from_numpy(_surface(structure)).nonzero()  # (n, d)
        order = torch.randperm(len(surface), generator=generator)
        points.append(surface[order[torch.arange(count) % len(surface)]])
    return torch.stack(points).to(mask.device, torch.promote_types(mask.dtype, torch.float32))


# -- shared -----------------------------------------------------------------------------------------------------
def _to_closest(points: Tensor, others: Tensor) -> Tensor:
    """Mean distance of points (b, k, d) from the closest of others (b, m, d)."""
    with torch.no_grad():
        closest = [
            torch.cdist(chunk, others, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)  # (b, chunk)
            for chunk in points.split(CHUNK, dim=1)
        ]
    index = torch.cat(closest, dim=1).unsqueeze(-1).expand_as(points)
    return torch.linalg.vector_norm(points - others.gather(1, index), dim=-1).mean()


def _physical(a: Tensor, b: Tensor, spacing: float | Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """Both point sets in float32 or float64, in mm if a spacing is given."""
    steps = _steps(spacing, a.shape[-1])
    both = []
    for points, name in ((a, "warped_points"), (b, "moving_points")):
        _require_points(points, name)
        wide = points.to(torch.promote_types(points.dtype, torch.float32))
        both.append(wide if spacing is None else wide * torch.tensor(steps, dtype=torch.float64).to(wide))
    return both[0], both[1]


def _require_points(points: Tensor, name: str) -> None:
    if not points.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {points.dtype}: use .float().")
    if points.ndim != 3 or points.shape[1] == 0:
        raise ValueError(f"{name} must be (b, k, d) with at least one point; got {tuple(points.shape)}.")


def _steps(spacing: float | Sequence[float] | None, d: int) -> tuple[float, ...]:
    steps = per_axis(1.0 if spacing is None else spacing, d, "spacing")
    if not all(0 < step < math.inf for step in steps):
        raise ValueError(f"spacing must be above 0 mm; got {steps}.")
    return steps


def _surface(structure: np.ndarray) -> np.ndarray:
    """(*s) bool: voxels of the structure with a face neighbor outside it."""
    from scipy import ndimage

    axes = structure.squeeze() if structure.size > 1 else structure
    surface: np.ndarray = axes & ~ndimage.binary_erosion(axes)
    return surface.reshape(structure.shape)


def _inside(mask: Tensor) -> Tensor:
    """(b, c, *s) bool: where each structure is; an error for one that is nowhere."""
    if mask.ndim not in (4, 5):
        raise ValueError(f"mask must be (b, c, *s) in 2-D or 3-D; got {tuple(mask.shape)}.")
    inside = checked_masks(mask.detach(), "mask") > 0.5
    empty = (~inside.flatten(2).any(2)).nonzero()
    if len(empty):
        where = " and ".join(f"{axis} {i}" for axis, i in zip(("case", "channel"), empty[0].tolist(), strict=True))
        raise ValueError(f"mask must hold a voxel above 0.5 in every structure, to have a surface; {where} has none.")
    return inside
