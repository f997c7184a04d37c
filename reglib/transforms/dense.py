"""Models that give a field on their own grid: free displacements, flows of a velocity, and what lattices share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import field
from ..grid import Axes, Grid
from .base import Transform, require_field


class Dense(Transform):
    """Base of the models that give a ddf on their own grid; elsewhere it is read through the world.

    Attributes:
        flows: whether the model's field is a velocity, whose flow exp(v) is the map, or the ddf itself.
        steps: squarings of `field.exponential`; default as many as the velocity needs.
    """

    batched = True
    flows: bool = False
    steps: int | None = None

    @abstractmethod
    def own_field(self) -> Float[Tensor, "b d *s"]:
        """What the parameters say, on the model's grid: the velocity if the model flows, else the ddf."""

    def own_ddf(self) -> Float[Tensor, "b d *s"]:
        """The ddf in voxels of the model's grid."""
        return field.exponential(self.own_field(), steps=self.steps) if self.flows else self.own_field()

    def ddf(self, grid: Grid | None = None) -> Float[Tensor, "b d *s"]:
        own = self.own_ddf()
        return own if grid is None or grid == self.grid else on_grid(own, self.grid, grid)

    def points(self, points: Float[Tensor, "#b k d"]) -> Float[Tensor, "b k d"]:
        own = self.own_ddf()
        voxels = self.grid.points(points, to=Axes.VOXEL, from_=Axes.WORLD)
        voxels = voxels.expand(max(len(own), len(voxels)), -1, -1)
        return self.grid.points(field.warp_points(voxels, own), to=Axes.WORLD, from_=Axes.VOXEL)

    def _inverted(self) -> Dense:
        """exp(-v), exact up to interpolation; without a velocity by fixed point, its residual large where it folds."""
        if self.flows:
            return self._with({name: -value for name, value in self._values().items()})
        return DenseDisplacement(self.grid)._with({"displacement": inverse_field(self.own_ddf())})

    def deformations(self) -> list[Tensor]:
        return [self.own_field()]

    def fit(self, ddf: Float[Tensor, "1 d *s"]) -> Dense:
        """The model of this kind closest to a ddf on its grid, least squares in voxels.

        A displacement a voxel is the ddf itself and splines are fitted exactly; kernels by conjugate gradients. A flow
        is fitted to the ddf's `field.logarithm`, least squares of the velocity: `fit_residual` says what is lost.
        """
        return self.fit_field(field.logarithm(ddf) if self.flows else ddf)

    @torch.no_grad()
    def fit_field(self, target: Float[Tensor, "1 d *s"]) -> Dense:
        """The model of this kind whose own field, a flow's velocity or else the ddf, is closest to `target`, voxels."""
        require_field(target, self.grid)
        return self._with(self._closest(target))._own(like=self)

    @abstractmethod
    def _closest(self, target: Tensor) -> dict[str, Tensor]:
        """The parameters whose field is closest to `target` (1, d, *s)."""


class DenseDisplacement(Dense):
    """One free displacement a voxel; `displacement` (1, d, *s) voxels."""

    displacement: nn.Parameter

    def __init__(self, grid: Grid, *, ddf: Tensor | None = None) -> None:
        super().__init__(grid)
        self.displacement = nn.Parameter(start_field(grid, ddf))

    def own_field(self) -> Float[Tensor, "b d *s"]:
        return self.displacement

    def _closest(self, target: Tensor) -> dict[str, Tensor]:
        return {"displacement": target}

    def _at(self, grid: Grid) -> DenseDisplacement:
        moved = self._with({"displacement": on_grid(self.displacement, self.grid, grid)})
        moved.grid = grid
        return moved


class Diffeomorphism(DenseDisplacement):
    """A displacement that `register` changes by composing small smooth steps, u <- compose(u, step), not by adding.

    A row of maps that do not fold does not fold, so the field reaches far and stays invertible, without the cost of
    integrating a velocity in every step. Fitted, `register` also mends what interpolation left (`field.unfold`).

    Source: Christensen et al. 1996, doi:10.1109/83.536892; greedy steps as in Avants et al. 2008,
        doi:10.1016/j.media.2007.06.004, and Jena et al. 2024, arXiv:2404.01249.
    """

    def parameter_groups(self, step: float) -> list[dict[str, Any]]:
        return _composed(super().parameter_groups(step))


def _composed(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups whose steps are composed; their scale forgets as fast as their direction."""
    return [{**group, "compose": True, "betas": (0.9, 0.9)} for group in groups if group["params"]]


class SymmetricDiffeomorphism(Dense):
    """Two displacements from a middle, which `register` composes with small smooth steps until both images meet there.

    `to_fixed` and `to_moving` (1, d, *s) voxels lead from the middle to either image; the map goes to the middle and
    on, compose(to_moving, inverse(to_fixed)). No image is preferred: exchanged images give the inverse map, which is
    this one with its halves exchanged.

    Source: Avants et al. 2008, doi:10.1016/j.media.2007.06.004 (SyN).
    Differs: gradients of any similarity to both images; the fields need not be halves of one geodesic.
    """

    to_fixed: nn.Parameter
    to_moving: nn.Parameter

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.to_fixed = nn.Parameter(start_field(grid, None))
        self.to_moving = nn.Parameter(start_field(grid, None))

    def own_field(self) -> Float[Tensor, "b d *s"]:
        return field.compose(self.to_moving, inverse_field(self.to_fixed))

    def _inverted(self) -> SymmetricDiffeomorphism:
        exchanged: SymmetricDiffeomorphism = self._with({"to_fixed": self.to_moving, "to_moving": self.to_fixed})
        return exchanged

    def deformations(self) -> list[Tensor]:
        return [self.to_fixed, self.to_moving]

    def _closest(self, target: Tensor) -> dict[str, Tensor]:
        return {"to_fixed": torch.zeros_like(target), "to_moving": target}

    def _at(self, grid: Grid) -> SymmetricDiffeomorphism:
        halves = {"to_fixed": self.to_fixed, "to_moving": self.to_moving}
        moved: SymmetricDiffeomorphism = self._with({name: on_grid(u, self.grid, grid) for name, u in halves.items()})
        moved.grid = grid
        return moved

    def parameter_groups(self, step: float) -> list[dict[str, Any]]:
        return _composed(super().parameter_groups(step / 2))  # both halves move


class StationaryVelocity(Dense):
    """The flow of a velocity that does not change in time, exp(v): smooth and invertible; `velocity` (1, d, *s) voxels.

    Args: steps: squarings of `field.exponential`; default as many as the velocity needs.
    """

    flows = True
    velocity: nn.Parameter

    def __init__(self, grid: Grid, *, velocity: Tensor | None = None, steps: int | None = None) -> None:
        super().__init__(grid)
        self.steps = steps
        self.velocity = nn.Parameter(start_field(grid, velocity))

    def own_field(self) -> Float[Tensor, "b d *s"]:
        return self.velocity

    def _closest(self, target: Tensor) -> dict[str, Tensor]:
        return {"velocity": target}

    def _at(self, grid: Grid) -> StationaryVelocity:
        moved = self._with({"velocity": on_grid(self.velocity, self.grid, grid)})
        moved.grid = grid
        return moved


class Lattice(Dense):
    """Base of the models with a vector at each point of a coarse lattice; `coefficients` (1, d, *control) voxels."""

    title: ClassVar[str]
    coefficients: nn.Parameter

    def _at(self, grid: Grid) -> Lattice:
        """Exact on a grid with the same first and last voxel centers, as `Grid.downsample` makes them."""
        if self.grid.dim != grid.dim or not _same_ends(self.grid, grid):
            raise ValueError(
                f"{self.title} moves only to a grid with the same first and last voxel centers; got {grid} "
                f"for {self.grid}. Use grid.downsample() or resize()."
            )
        scale = [(m - 1) / (n - 1) if n > 1 else 1.0 for n, m in zip(self.grid.shape, grid.shape, strict=True)]
        factors = torch.tensor(scale).to(self.coefficients).reshape(1, -1, *[1] * grid.dim)
        moved = self._with({"coefficients": self.coefficients * factors})
        moved.grid = grid
        return moved


def inverse_field(ddf: Tensor) -> Tensor:
    """The inverse w of a ddf u by fixed point, with the gradient of the implicit function theorem.

    From w(q) = -u(q + w(q)):  dw(q) = -(I + grad u)^-1 du, both at q + w(q); not finite where I + grad u is singular.
    """
    found = field.inverse(ddf.detach(), tolerance=1e-9 if ddf.dtype == torch.float64 else 1e-3).ddf
    if not (torch.is_grad_enabled() and ddf.requires_grad):
        return found
    d = ddf.shape[1]
    probe = found.clone().requires_grad_()
    read = field.warp(ddf.detach(), probe)
    rows = [torch.autograd.grad(read[:, k].sum(), probe, retain_graph=True)[0] for k in range(d)]
    jacobian = torch.stack(rows, dim=1).movedim((1, 2), (-2, -1)) + torch.eye(d).to(ddf)  # (b, *s, d, d)
    change = field.warp(ddf, found)
    change = (change - change.detach()).movedim(1, -1).unsqueeze(-1)  # 0, but with the gradient of u
    return found - torch.linalg.solve_ex(jacobian, change).result.squeeze(-1).movedim(-1, 1)


def start_field(grid: Grid, start: Tensor | None) -> Tensor:
    """A copy of the (1, d, *s) field to start from, or zeros."""
    expected = (1, grid.dim, *grid.shape)
    if start is None:
        return torch.zeros(expected)
    if tuple(start.shape) != expected:
        raise ValueError(f"the field to start from must be {expected}; got {tuple(start.shape)}.")
    return start.detach().clone()


def on_grid(ddf: Tensor, own: Grid, grid: Grid) -> Tensor:
    """A field in voxels of `own`, read at the voxels of `grid` and expressed in them; borders are repeated."""
    if grid == own:
        return ddf
    if grid.dim == own.dim and _same_ends(own, grid):
        return field.resize_ddf(ddf, grid.shape)
    read = field.resample(ddf, own, grid, padding="border")
    turned = (grid.voxel_from_world @ own.world_from_voxel)[:-1, :-1].to(read)
    return (turned @ read.flatten(2)).reshape(read.shape)


def _same_ends(a: Grid, b: Grid) -> bool:
    """Whether two grids share their corner voxel centers, to a hundredth of a voxel."""
    return bool((a.corners() - b.corners()).norm(dim=-1).max() < 0.01 * min(*a.spacing, *b.spacing))
