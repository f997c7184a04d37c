"""Where a registration starts: centers of mass, principal axes, many turns, then linear maps, coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .. import field
from ..grid import Grid, apply_affine, require_on_grid
from .levels import Images, Level, Scene
from .objective import Loss


def choose_start(
    fixed: Float[Tensor, "1 c *s"],
    moving: Float[Tensor, "1 c *t"],
    matrices: Sequence[Float[Tensor, "m m"]],
    *,
    similarity: Loss,
    fixed_grid: Grid,
    moving_grid: Grid,
) -> Float[Tensor, "m m"]:
    """The world matrix `moving_from_fixed` of several under which the images are most alike, seen coarsely."""
    scene = Scene(fixed_grid, moving_grid, (Images(fixed, moving),)).at(Level(max(1.0, max(fixed_grid.shape) / 32)))
    (images,) = scene.images

    def score(matrix: Tensor) -> float:
        ddf = field.affine_ddf(matrix, scene.grid, dtype=fixed.dtype).to(fixed.device)
        return float(similarity(field.warp(images.moving, ddf, padding="zeros", **scene.grids), images.fixed))

    return min(matrices, key=score)


def align_moments(
    fixed: Float[Tensor, "1 c *s"],
    moving: Float[Tensor, "1 c *t"],
    *,
    fixed_grid: Grid,
    moving_grid: Grid,
    rotate: bool = False,
) -> Float[Tensor, "m m"]:
    """A world matrix `moving_from_fixed` that lays the images' centers of mass on each other.

    Args:
        rotate: also turn the principal axes onto each other, by the smallest of the rotations that do so.
    Intensities are counted from each image's smallest value.
    """
    fixed_mean, fixed_axes = _moments(fixed, fixed_grid)
    moving_mean, moving_axes = _moments(moving, moving_grid)
    d = fixed_grid.dim
    linear = torch.eye(d, dtype=torch.float64)
    if rotate:
        signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * d)
        turns = [moving_axes @ torch.diag(sign) @ fixed_axes.T for sign in signs]
        linear = max((turn for turn in turns if torch.linalg.det(turn) > 0), key=lambda turn: float(turn.trace()))
    matrix = torch.eye(d + 1, dtype=torch.float64)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = moving_mean - linear @ fixed_mean
    return matrix


def _moments(image: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Center of mass (d,) mm and principal axes as columns (d, d) in the world, from sums along the other axes."""
    require_on_grid(image, grid, "image")
    mass = (image - image.min()).sum(1)[0].double().cpu()
    total, d = mass.sum().clamp(min=1e-12), grid.dim
    lines = [torch.arange(n, dtype=torch.float64) for n in grid.shape]
    mean = torch.stack([_seen_along(mass, (k,)) @ lines[k] for k in range(d)]) / total
    covariance = torch.zeros(d, d, dtype=torch.float64)
    for k in range(d):
        for j in range(k, d):
            off, other = lines[k] - mean[k], lines[j] - mean[j]
            moment = _seen_along(mass, (k,)) @ off**2 if j == k else off @ _seen_along(mass, (k, j)) @ other
            covariance[k, j] = covariance[j, k] = moment / total
    to_world = grid.world_from_voxel[:-1, :-1]
    return apply_affine(grid.world_from_voxel, mean), torch.linalg.eigh(to_world @ covariance @ to_world.T)[1]


def _seen_along(mass: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The sum over all other axes."""
    others = [axis for axis in range(mass.ndim) if axis not in axes]
    return mass.sum(others) if others else mass
