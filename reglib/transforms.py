"""Parametric models of a map from fixed to moving, each a `torch.nn.Module` that lives on a grid.

Convention:
    Linear models hold mm and radians and act on world points: x -> base C P C^-1 x, about the center C of their grid.
    Dense models hold voxels of their grid. `ddf(grid)` gives the map on any grid, `points(x)` takes fixed world
    points to moving world points, `inverse()` the way back, `at(grid)` the same map with parameters for another grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import field, filters
from .grid import Axes, Grid, apply_affine, per_axis


class Transform(nn.Module):
    """A map from fixed to moving with parameters to optimize; the base of every model here."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    @abstractmethod
    def ddf(self, grid: Grid | None = None) -> Float[Tensor, "1 d *s"]:
        """The map as a ddf in voxels of `grid` (default: the model's own)."""

    @abstractmethod
    def points(self, points: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
        """Where fixed world points (mm) lie in the moving image's world."""

    @abstractmethod
    def inverse(self) -> Transform:
        """The map from moving to fixed."""

    def at(self, grid: Grid) -> Transform:
        """The same map as a new model whose parameters fit `grid`; this one stays as it is."""
        moved = self._at(grid)
        for mine, other in zip(moved.parameters(), self.parameters(), strict=True):
            mine.requires_grad_(other.requires_grad)
        return moved

    @abstractmethod
    def _at(self, grid: Grid) -> Transform: ...

    @abstractmethod
    def deformations(self) -> list[Tensor]:
        """The fields on the model's grid that a regularizer judges; none for a linear map."""

    def parameter_groups(self, step: float) -> list[dict[str, Any]]:
        """Groups for a torch optimizer; one unit of its step moves the image by about `step` voxels."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": step}]

    def freeze(self) -> Transform:
        """Exclude the parameters from optimization, in place; returns itself."""
        self.requires_grad_(False)
        return self


# -- linear -------------------------------------------------------------------------------------------------------
class Linear(Transform):
    """Base of the linear models: a world matrix `moving_from_fixed` from a few parameters.

    Args:
        grid: of the fixed image; its center is the center of rotation and scaling.
        matrix: (d + 1, d + 1) to start from, applied after the parametrized part; identity if not given.
        center_mm: another center, world mm.
    """

    base: Tensor
    center_mm: Tensor

    def __init__(self, grid: Grid, *, matrix: Tensor | None = None, center_mm: Sequence[float] | None = None) -> None:
        super().__init__(grid)
        d = grid.dim
        start = torch.eye(d + 1, dtype=torch.float64) if matrix is None else matrix.detach().double().clone()
        if start.shape != (d + 1, d + 1):
            raise ValueError(f"matrix must be ({d + 1}, {d + 1}) for a {d}-D grid; got {tuple(start.shape)}.")
        if center_mm is not None and len(center_mm) != d:
            raise ValueError(f"center_mm must be {d} numbers, world mm; got {tuple(center_mm)}.")
        self.register_buffer("base", start)
        self.register_buffer("center_mm", torch.tensor(center_mm or grid.center, dtype=torch.float64))
        self.translation_mm = nn.Parameter(torch.zeros(d, dtype=torch.float64))

    def linear(self) -> Tensor:
        """(d, d) part of the parametrized map; subclasses say which."""
        return torch.eye(self.grid.dim, dtype=torch.float64, device=self.translation_mm.device)

    def matrix(self) -> Float[Tensor, "m m"]:
        """The world matrix `moving_from_fixed`, float64, with its gradient."""
        d = self.grid.dim
        linear = self.linear()
        shift = self.center_mm - linear @ self.center_mm + self.translation_mm
        last = torch.tensor([[0.0] * d + [1.0]]).to(linear)
        return self.base @ torch.cat([torch.cat([linear, shift[:, None]], dim=1), last])

    def ddf(self, grid: Grid | None = None) -> Float[Tensor, "1 d *s"]:
        return field.affine_ddf(self.matrix(), grid or self.grid)

    def points(self, points: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
        return apply_affine(self.matrix(), points)

    def inverse(self) -> Affine:
        inverse = torch.linalg.inv(self.matrix())
        return Affine(self.grid, matrix=inverse, center_mm=apply_affine(self.matrix(), self.center_mm).tolist())

    def _at(self, grid: Grid) -> Linear:
        moved = type(self)(grid, matrix=self.base, center_mm=self.center_mm.tolist())
        moved.load_state_dict(self.state_dict())
        return moved.to(self.translation_mm.device)

    def deformations(self) -> list[Tensor]:
        return []

    def parameter_groups(self, step: float) -> list[dict[str, Any]]:
        step_mm = step * sum(self.grid.spacing) / self.grid.dim
        radius_mm = sum(self.grid.extent) / self.grid.dim / 3
        groups = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.append({"params": [parameter], "lr": step_mm if name.endswith("_mm") else step_mm / radius_mm})
        return groups


class Translation(Linear):
    """x -> x + t, t in mm."""


class Rigid(Linear):
    """Rotation about the center and translation; `angle_rad` is one angle in 2-D, a rotation vector in 3-D."""

    def __init__(self, grid: Grid, **start: Any) -> None:
        super().__init__(grid, **start)
        self.angle_rad = nn.Parameter(torch.zeros(1 if grid.dim == 2 else 3, dtype=torch.float64))

    def linear(self) -> Tensor:
        return rotation(self.angle_rad)


class Similarity(Rigid):
    """Rigid and one scale for all axes; `log_scale` is its natural logarithm."""

    def __init__(self, grid: Grid, **start: Any) -> None:
        super().__init__(grid, **start)
        self.log_scale = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def linear(self) -> Tensor:
        return rotation(self.angle_rad) * self.log_scale.exp()


class Affine(Rigid):
    """Rotation, a scale for each axis and shears:  R diag(exp s) (I + upper triangle of h)."""

    def __init__(self, grid: Grid, **start: Any) -> None:
        super().__init__(grid, **start)
        d = grid.dim
        self.log_scale = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        self.shear = nn.Parameter(torch.zeros(d * (d - 1) // 2, dtype=torch.float64))

    def linear(self) -> Tensor:
        d = self.grid.dim
        rows, columns = torch.triu_indices(d, d, offset=1, device=self.shear.device)
        upper = torch.eye(d).to(self.shear).index_put((rows, columns), self.shear)
        return rotation(self.angle_rad) @ torch.diag(self.log_scale.exp()) @ upper


def rotation(angle_rad: Float[Tensor, " a"]) -> Float[Tensor, "d d"]:
    """Rotation matrix of one angle (2-D, counterclockwise) or of a rotation vector (3-D), smooth at zero."""
    zero = torch.zeros_like(angle_rad[0])
    if len(angle_rad) == 1:
        entries = [zero, -angle_rad[0], angle_rad[0], zero]
    else:
        x, y, z = angle_rad
        entries = [zero, -z, y, z, zero, -x, -y, x, zero]
    d = 2 if len(angle_rad) == 1 else 3
    return torch.linalg.matrix_exp(torch.stack(entries).reshape(d, d))


# -- dense --------------------------------------------------------------------------------------------------------
class Dense(Transform):
    """Base of the models that give a ddf on their own grid; elsewhere it is read through the world."""

    @abstractmethod
    def own_ddf(self) -> Tensor:
        """The ddf in voxels of the model's grid."""

    def ddf(self, grid: Grid | None = None) -> Float[Tensor, "1 d *s"]:
        own = self.own_ddf()
        return own if grid is None or grid == self.grid else _on_grid(own, self.grid, grid)

    def points(self, points: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
        voxels = self.grid.points(points, to=Axes.VOXEL, from_=Axes.WORLD)
        return self.grid.points(field.warp_points(voxels, self.own_ddf()), to=Axes.WORLD, from_=Axes.VOXEL)

    def inverse(self) -> Transform:
        """The inverse by fixed point; `field.inverse` gives its residual, large where the map folds."""
        return DenseDisplacement(self.grid, ddf=field.inverse(self.own_ddf().detach()).ddf)

    def deformations(self) -> list[Tensor]:
        return [self.own_ddf()]


class DenseDisplacement(Dense):
    """One free displacement a voxel; `displacement` (1, d, *s) voxels."""

    def __init__(self, grid: Grid, *, ddf: Tensor | None = None) -> None:
        super().__init__(grid)
        self.displacement = nn.Parameter(_start_field(grid, ddf))

    def own_ddf(self) -> Tensor:
        return self.displacement

    def _at(self, grid: Grid) -> DenseDisplacement:
        return type(self)(grid, ddf=_on_grid(self.displacement.detach(), self.grid, grid))


class StationaryVelocity(Dense):
    """The flow of a velocity that does not change in time, exp(v): smooth and invertible; `velocity` (1, d, *s) voxels.

    Args: steps: squarings of `field.exponential`; default as many as the velocity needs.
    """

    def __init__(self, grid: Grid, *, velocity: Tensor | None = None, steps: int | None = None) -> None:
        super().__init__(grid)
        self.steps = steps
        self.velocity = nn.Parameter(_start_field(grid, velocity))

    def own_ddf(self) -> Tensor:
        return field.exponential(self.velocity, steps=self.steps)

    def inverse(self) -> StationaryVelocity:
        """exp(-v), exact up to interpolation."""
        return StationaryVelocity(self.grid, velocity=-self.velocity.detach(), steps=self.steps)

    def _at(self, grid: Grid) -> StationaryVelocity:
        velocity = _on_grid(self.velocity.detach(), self.grid, grid)
        return type(self)(grid, velocity=velocity, steps=self.steps)

    def deformations(self) -> list[Tensor]:
        return [self.velocity]


class FreeFormDeformation(Dense):
    """Cubic B-splines on a coarse lattice of control points; `coefficients` (1, d, *control) voxels of the grid.

    Args:
        control_spacing_mm: wanted distance of control points; rounded so that a whole number spans each axis.
        coefficients: to start from.

    Source: Rueckert et al. 1999, doi:10.1109/42.796284.
    """

    def __init__(
        self, grid: Grid, *, control_spacing_mm: float | Sequence[float] = 20.0, coefficients: Tensor | None = None
    ) -> None:
        super().__init__(grid)
        wanted = per_axis(control_spacing_mm, grid.dim, "control_spacing_mm")
        if min(wanted) <= 0:
            raise ValueError(f"control_spacing_mm must be above 0 mm; got {control_spacing_mm}.")
        self.control_spacing_mm = control_spacing_mm
        lengths = [(n - 1) * s for n, s in zip(grid.shape, grid.spacing, strict=True)]
        self.spans = [max(1, round(length / w)) for length, w in zip(lengths, wanted, strict=True)]
        control = Grid([span + 3 for span in self.spans])  # one control point beyond each end, and the ends
        self.coefficients = nn.Parameter(_start_field(control, coefficients))

    def own_ddf(self) -> Tensor:
        matrices = []
        for n, span in zip(self.grid.shape, self.spans, strict=True):
            step = (n - 1) / span if n > 1 else 1.0
            matrices.append(filters.bspline_matrix(n, step, span + 3))
        return filters.separable(self.coefficients, matrices)

    def _at(self, grid: Grid) -> FreeFormDeformation:
        """Exact on a grid with the same first and last voxel centers, as `Grid.downsample` makes them."""
        if self.grid.dim != grid.dim or not _same_ends(self.grid, grid):
            raise ValueError(
                f"a free-form deformation moves only to a grid with the same first and last voxel centers; got {grid} "
                f"for {self.grid}. Use grid.downsample() or resize()."
            )
        scale = [(m - 1) / (n - 1) if n > 1 else 1.0 for n, m in zip(self.grid.shape, grid.shape, strict=True)]
        factors = torch.tensor(scale).to(self.coefficients).reshape(1, -1, *[1] * grid.dim)
        moved = type(self)(self.grid, control_spacing_mm=self.control_spacing_mm)
        moved.grid = grid
        moved.coefficients = nn.Parameter(self.coefficients.detach() * factors)
        return moved


def _same_ends(a: Grid, b: Grid) -> bool:
    """Whether two grids share their corner voxel centers, to a hundredth of a voxel."""
    return bool((a.corners() - b.corners()).norm(dim=-1).max() < 0.01 * min(*a.spacing, *b.spacing))


def _start_field(grid: Grid, start: Tensor | None) -> Tensor:
    expected = (1, grid.dim, *grid.shape)
    if start is None:
        return torch.zeros(expected)
    if tuple(start.shape) != expected:
        raise ValueError(f"the field to start from must be {expected}; got {tuple(start.shape)}.")
    return start.detach().clone()


def _on_grid(ddf: Tensor, own: Grid, grid: Grid) -> Tensor:
    """A field in voxels of `own`, read at the voxels of `grid` and expressed in them; borders are repeated."""
    if grid == own:
        return ddf
    read = field.resample(ddf, own, grid, padding="border")
    world = own.vectors(read.movedim(1, -1), to=Axes.WORLD, from_=Axes.VOXEL)
    return grid.vectors(world, to=Axes.VOXEL, from_=Axes.WORLD).movedim(-1, 1).contiguous()


# -- in sequence --------------------------------------------------------------------------------------------------
class Sequential(Transform):
    """Several maps as one: the moving image is warped by the first, the result by the second, and so on.

    Convention: ddf = compose(compose(first, second), third), so that only one interpolation of the image is needed.
        Points take the other way: the last map first.
    """

    def __init__(self, *transforms: Transform) -> None:
        if not transforms:
            raise ValueError("Sequential needs at least one transform; got none.")
        super().__init__(transforms[-1].grid)
        self.transforms = nn.ModuleList(transforms)

    def __iter__(self) -> Iterator[Transform]:
        return (cast(Transform, transform) for transform in self.transforms)

    def ddf(self, grid: Grid | None = None) -> Float[Tensor, "1 d *s"]:
        grid = grid or self.grid
        *earlier, last = self
        total = last.ddf(grid)
        for transform in reversed(earlier):
            if isinstance(transform, Dense) and transform.grid == grid:
                total = field.compose(transform.ddf(grid), total)
            else:  # exact, and right where `total` leads beyond `grid`
                voxels = grid.coordinates(device=total.device, dtype=total.dtype).flatten(0, -2)
                reached = voxels + total.flatten(2).movedim(1, -1)  # (1, n, d)
                world = transform.points(grid.points(reached, to=Axes.WORLD, from_=Axes.VOXEL))
                moved = grid.points(world, to=Axes.VOXEL, from_=Axes.WORLD) - voxels
                total = moved.movedim(-1, 1).reshape(total.shape)
        return total

    def points(self, points: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
        for transform in reversed(list(self)):
            points = transform.points(points)
        return points

    def inverse(self) -> Sequential:
        return Sequential(*[transform.inverse() for transform in reversed(list(self))])

    def _at(self, grid: Grid) -> Sequential:
        return type(self)(*[transform.at(grid) for transform in self])

    def deformations(self) -> list[Tensor]:
        return [deformation for transform in self for deformation in transform.deformations()]

    def parameter_groups(self, step: float) -> list[dict[str, Any]]:
        groups = [group for transform in self for group in transform.parameter_groups(step)]
        return [group for group in groups if group["params"]]
