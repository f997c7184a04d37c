"""Several models as one: in a row, or with their displacements added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import field
from ..grid import Axes, Grid
from .base import Transform
from .dense import Dense, DenseDisplacement, inverse_field
from .linear import Affine, Linear


class Combined(Transform):
    """Base of the models made of others, the `transforms`; its grid is the last one's."""

    transforms: nn.ModuleList

    def __init__(self, *transforms: Transform) -> None:
        name = type(self).__name__
        if not transforms:
            raise ValueError(f"{name} needs at least one transform; got none.")
        super().__init__(transforms[-1].grid)
        if len({transform.grid.dim for transform in transforms}) > 1:
            raise ValueError(
                f"the transforms of a {name} must be of one dimension; got {[t.grid.dim for t in transforms]}."
            )
        self.transforms = nn.ModuleList(transforms)

    def __iter__(self) -> Iterator[Transform]:
        return (cast(Transform, transform) for transform in self.transforms)

    def _at(self, grid: Grid) -> Combined:
        return type(self)(*[transform.at(grid) for transform in self])

    def deformations(self) -> list[Tensor]:
        return [deformation for transform in self for deformation in transform.deformations()]

    def parameter_groups(self, step: float) -> list[dict[str, Any]]:
        groups = [group for transform in self for group in transform.parameter_groups(step)]
        return [group for group in groups if group["params"]]


class Sequential(Combined):
    """Several maps as one: the moving image is warped by the first, the result by the second, and so on.

    Convention: ddf = compose(compose(first, second), third), so that only one interpolation of the image is needed.
        Points take the other way: the last map first.
    """

    def ddf(self, grid: Grid | None = None) -> Float[Tensor, "b d *s"]:
        grid = grid or self.grid
        *earlier, last = self
        total = last.ddf(grid)
        for transform in reversed(earlier):
            if isinstance(transform, Dense) and transform.grid == grid:
                total = field.compose(*_of_one_batch(transform.ddf(grid), total))
            elif isinstance(transform, Linear):
                total = _after(transform.matrix(), total, grid)
            elif isinstance(transform, Dense):
                total = _dense_after(transform, total, grid)
            else:  # exact, and right where `total` leads beyond `grid`
                voxels = grid.coordinates(device=total.device, dtype=total.dtype).flatten(0, -2)
                reached = voxels + total.flatten(2).movedim(1, -1)  # (b, n, d)
                world = transform.points(grid.points(reached, to=Axes.WORLD, from_=Axes.VOXEL))
                moved = grid.points(world, to=Axes.VOXEL, from_=Axes.WORLD) - voxels
                total = moved.movedim(-1, 1).reshape(-1, *total.shape[1:])
        return total

    def points(self, points: Float[Tensor, "#b k d"]) -> Float[Tensor, "b k d"]:
        for transform in reversed(list(self)):
            points = transform.points(points)
        return points

    def _inverted(self) -> Sequential:
        return Sequential(*[transform._inverted() for transform in reversed(list(self))])


def _after(matrix: Tensor, ddf: Tensor, grid: Grid) -> Tensor:
    """The field of a ddf followed by a world matrix:  A (p + u) + t - p  in voxels of the grid."""
    linear = (grid.voxel_from_world.to(matrix) @ matrix @ grid.world_from_voxel.to(matrix))[:-1, :-1].to(ddf)
    moved = (linear @ ddf.flatten(2)).reshape(ddf.shape)
    return moved + field.affine_ddf(matrix, grid, dtype=ddf.dtype).to(ddf.device)


def _dense_after(transform: Dense, ddf: Tensor, grid: Grid) -> Tensor:
    """The field of a ddf on `grid` followed by a model with a field on a grid of its own."""
    own, total = _of_one_batch(transform.own_ddf(), ddf)
    read = field.warp(own, total, moving_grid=transform.grid, fixed_grid=grid)
    turned = (grid.voxel_from_world @ transform.grid.world_from_voxel)[:-1, :-1].to(read)
    return total + (turned @ read.flatten(2)).reshape(read.shape)


class MultiLevel(Combined):
    """Several maps as one by adding what they move:  x -> x + sum_i (f_i(x) - x), for levels from coarse to fine.

    Convention: each part reads the fixed image's own points, where in `Sequential` it reads what the others reached.
    Differs: from deepali's MultiLevelTransform in the parts' order only, which does not matter for a sum.
    """

    def ddf(self, grid: Grid | None = None) -> Float[Tensor, "b d *s"]:
        grid = grid or self.grid
        first, *others = self
        total = first.ddf(grid)
        for transform in others:
            total = total + transform.ddf(grid)
        return total

    def points(self, points: Float[Tensor, "#b k d"]) -> Float[Tensor, "b k d"]:
        total = points
        for transform in self:
            total = total + (transform.points(points) - points)
        return total

    def _inverted(self) -> Sequential:
        """The linear parts together as a matrix, the rest by fixed point:  A x + u(x) = A (x + A^-1 u(x))."""
        eye = torch.eye(self.grid.dim + 1, dtype=torch.float64)
        matrix, total = eye, None
        for transform in self:
            if isinstance(transform, Linear):
                matrix = matrix.to(transform.matrix().device) + transform.matrix() - eye.to(transform.matrix())
            else:
                total = transform.ddf(self.grid) if total is None else total + transform.ddf(self.grid)
        whole = Affine(self.grid).to(matrix.device)
        whole.base = matrix
        if total is None:
            return Sequential(whole._inverted())
        to_voxel, to_world = self.grid.voxel_from_world.to(matrix), self.grid.world_from_voxel.to(matrix)
        back = torch.linalg.inv((to_voxel @ matrix @ to_world)[:-1, :-1]).to(total)
        straight = torch.einsum("ij,bj...->bi...", back, total)
        warped = DenseDisplacement(self.grid)._with({"displacement": inverse_field(straight)})
        return Sequential(warped, whole._inverted())


def _of_one_batch(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Two fields, one of which may serve the other's whole batch."""
    if len(u) != len(v):
        batch = max(len(u), len(v))
        return u.expand(batch, *u.shape[1:]), v.expand(batch, *v.shape[1:])
    return u, v
