"""Linear maps: world matrices of a few parameters in mm and radians, and their fit to points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import field
from ..grid import Axes, Grid, apply_affine
from .base import Transform, require_field
from .fit import Freedom, closest_map, parameters_of


class Linear(Transform):
    """Base of the linear models: a world matrix `moving_from_fixed` from a few parameters.

    Args:
        grid: of the fixed image; its center is the center of rotation and scaling.
        matrix: (d + 1, d + 1) to start from, applied after the parametrized part; identity if not given.
        center_mm: another center, world mm.
        limits: for parameters named, the most that each of their entries may be, in their unit. The matrix then uses
            limit * tanh(parameter / limit), which is the parameter near 0 and never beyond the limit. Towards it the
            gradient fades, so set it well beyond what is expected.
    """

    freedom: ClassVar[Freedom | None] = None  # which family `fit` takes the closest of
    unlimited: ClassVar[tuple[str, ...]] = ()
    base: Tensor
    center_mm: Tensor
    translation_mm: nn.Parameter

    def __init__(
        self,
        grid: Grid,
        *,
        matrix: Tensor | None = None,
        center_mm: Sequence[float] | None = None,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(grid)
        d = grid.dim
        start = torch.eye(d + 1, dtype=torch.float64) if matrix is None else matrix.detach().double().clone()
        if start.shape != (d + 1, d + 1):
            raise ValueError(f"matrix must be ({d + 1}, {d + 1}) for a {d}-D grid; got {tuple(start.shape)}.")
        if center_mm is not None and len(center_mm) != d:
            raise ValueError(f"center_mm must be {d} numbers, world mm; got {tuple(center_mm)}.")
        self.register_buffer("base", start)
        self.register_buffer("center_mm", torch.tensor(center_mm or grid.center, dtype=torch.float64))
        for name, size in self.sizes().items():
            self.register_parameter(name, nn.Parameter(torch.zeros(size, dtype=torch.float64)))
        self.limits = self._checked(limits or {})

    def sizes(self) -> dict[str, int]:
        """How many numbers each parameter has, by name; subclasses add theirs."""
        return {"translation_mm": self.grid.dim}

    def _checked(self, limits: Mapping[str, float]) -> dict[str, float]:
        known = [name for name in self.sizes() if name not in self.unlimited]
        for name, limit in limits.items():
            if name not in known:
                raise ValueError(f"limits of {type(self).__name__} may name {', '.join(known)}; got {name}.")
            if not limit > 0:
                raise ValueError(
                    f"the limit of {name} must be above 0; got {limit}. To hold it at 0, take another model."
                )
        return dict(limits)

    def limited(self, name: str) -> Tensor:
        """A parameter as the matrix uses it: float64, and within its limit where it has one."""
        value, limit = getattr(self, name).to(self.center_mm), self.limits.get(name)
        return value if limit is None else limit * torch.tanh(value / limit)

    def linear(self) -> Tensor:
        """(d, d) part of the parametrized map; subclasses say which."""
        return torch.eye(self.grid.dim, dtype=torch.float64, device=self.translation_mm.device)

    def matrix(self) -> Float[Tensor, "m m"]:
        """The world matrix `moving_from_fixed`, float64, with its gradient."""
        d = self.grid.dim
        linear = self.linear()
        shift = self.center_mm - linear @ self.center_mm + self.limited("translation_mm")
        last = torch.tensor([[0.0] * d + [1.0]]).to(linear)
        return self.base @ torch.cat([torch.cat([linear, shift[:, None]], dim=1), last])

    def ddf(self, grid: Grid | None = None) -> Float[Tensor, "1 d *s"]:
        return field.affine_ddf(self.matrix(), grid or self.grid)

    def points(self, points: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
        return apply_affine(self.matrix(), points)

    def _inverted(self) -> Affine:
        matrix = self.matrix()
        center = apply_affine(matrix.detach(), self.center_mm).tolist()
        back = Affine(self.grid, center_mm=center).to(matrix.device)
        back.base = torch.linalg.inv(matrix)
        return back

    def _at(self, grid: Grid) -> Linear:
        moved = self._with(self._values())
        moved.grid, moved.base, moved.center_mm = grid, self.base.clone(), self.center_mm.clone()
        return moved

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

    def fit(self, ddf: Float[Tensor, "1 d *s"]) -> Linear:
        """The linear map of this kind closest to a ddf on its grid: least squares over all voxels, mm."""
        require_field(ddf, self.grid)
        voxels = self.grid.coordinates(dtype=torch.float64, device=ddf.device).flatten(0, -2)
        moved = voxels + ddf[0].flatten(1).T
        world = [self.grid.points(each, to=Axes.WORLD, from_=Axes.VOXEL) for each in (voxels, moved)]
        return self._closest(world[0], world[1], torch.ones_like(world[0][:, 0]))

    @torch.no_grad()
    def _closest(self, fixed: Tensor, moving: Tensor, weights: Tensor) -> Linear:
        """This model, base and center and limits kept, with the parameters that take fixed to moving (k, d) best."""
        if self.freedom is None:
            raise TypeError(f"{type(self).__name__} cannot be fitted; it does not say its freedom.")
        center = self.center_mm.to(fixed)
        moving = apply_affine(torch.linalg.inv(self.base), moving)
        linear, shift = closest_map(fixed, moving, weights, self.freedom)
        values = {"translation_mm": linear @ center + shift - center, **parameters_of(linear, self.sizes())}
        raw = {name: self._unlimited_value(name, values[name]).to(getattr(self, name)) for name in self.sizes()}
        return self._at(self.grid)._with(raw)._own(like=self)

    def _unlimited_value(self, name: str, value: Tensor) -> Tensor:
        """The parameter that `limited` takes to `value`."""
        limit = self.limits.get(name)
        if limit is None:
            return value
        if float(value.abs().max()) >= limit:
            raise ValueError(
                f"the closest map has a {name} of {float(value.abs().max()):.4g}, beyond its limit of {limit:g}; "
                "raise the limit."
            )
        return limit * torch.atanh(value / limit)


class Translation(Linear):
    """x -> x + t, t in mm."""

    freedom: ClassVar[Freedom | None] = "translation"


class Rigid(Linear):
    """Rotation about the center and translation; `angle_rad` is one angle in 2-D, a rotation vector in 3-D."""

    freedom: ClassVar[Freedom | None] = "rigid"
    angle_rad: nn.Parameter

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "angle_rad": 1 if self.grid.dim == 2 else 3}

    def linear(self) -> Tensor:
        return rotation(self.limited("angle_rad"))


class QuaternionRigid(Linear):
    """Rotation about the center by a quaternion, and translation; 3-D only, no angle at which a gradient is lost.

    `quaternion` is (w, x, y, z); the matrix uses it divided by its length, so it may be any but 0.

    Source: Hamilton's rule, as in Horn 1987, doi:10.1364/JOSAA.4.000629.
    """

    freedom: ClassVar[Freedom | None] = "rigid"
    unlimited = ("quaternion",)
    quaternion: nn.Parameter

    def __init__(self, grid: Grid, **start: Any) -> None:
        if grid.dim != 3:
            raise ValueError(
                f"QuaternionRigid needs a 3-D grid; got {grid.dim}-D. Use Rigid, whose angle is one number."
            )
        super().__init__(grid, **start)
        self.quaternion.data[0] = 1.0

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "quaternion": 4}

    def linear(self) -> Tensor:
        return quaternion_rotation(self.limited("quaternion"))

    def parameter_groups(self, step: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(step)
        for group in groups:
            if group["params"][0] is self.quaternion:  # a quaternion turns by twice the angle it moves
                group["lr"] /= 2
        return groups


class Similarity(Rigid):
    """Rigid and one scale for all axes; `log_scale` is its natural logarithm."""

    freedom: ClassVar[Freedom | None] = "similarity"
    log_scale: nn.Parameter

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "log_scale": 1}

    def linear(self) -> Tensor:
        return super().linear() * self.limited("log_scale").exp()


class Affine(Rigid):
    """Rotation, a scale for each axis and shears:  R diag(exp s) (I + upper triangle of h)."""

    freedom: ClassVar[Freedom | None] = "affine"
    log_scale: nn.Parameter
    shear: nn.Parameter

    def sizes(self) -> dict[str, int]:
        d = self.grid.dim
        return {**super().sizes(), "log_scale": d, "shear": d * (d - 1) // 2}

    def linear(self) -> Tensor:
        d, shear = self.grid.dim, self.limited("shear")
        rows, columns = torch.triu_indices(d, d, offset=1, device=shear.device)
        upper = torch.eye(d).to(shear).index_put((rows, columns), shear)
        return super().linear() @ torch.diag(self.limited("log_scale").exp()) @ upper


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


def quaternion_rotation(quaternion: Float[Tensor, " 4"]) -> Float[Tensor, "3 3"]:
    """Rotation matrix of a quaternion (w, x, y, z) of any length but 0."""
    length = quaternion.norm()
    if not float(length.detach()) > 0:
        raise ValueError("a quaternion must not be 0, which is no rotation; start from (1, 0, 0, 0).")
    w, x, y, z = quaternion / length
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row) for row in rows])


def fit_points(
    model: type[Linear] | Linear,
    fixed_points: Float[Tensor, "1 k d"],
    moving_points: Float[Tensor, "1 k d"],
    *,
    grid: Grid | None = None,
    weights: Float[Tensor, " k"] | None = None,
) -> Linear:
    """The linear model that takes fixed points closest to moving points: least squares, Procrustes for rigid ones.

    Args:
        model: a class, for which `grid` says where it lives, or a model, whose base, center and limits are kept.
        fixed_points, moving_points: world mm, the same landmarks in the same order.
        weights: how much each landmark counts, not negative.

    A model's base other than a rigid one weighs the errors as they are before the base. What is left is
    `fitted.points(fixed_points) - moving_points`, mm.
    Raises: ValueError for too few points, points in a line or a plane that leave the map open, and reflections.
    Source: Umeyama 1991, doi:10.1109/34.88573.
    """
    if isinstance(model, type) == (grid is None):
        raise ValueError(
            "fit_points takes a class and its grid, or a model alone; for example fit_points(Rigid, .., grid=grid)."
        )
    start = model(grid) if isinstance(model, type) and grid is not None else model
    assert isinstance(start, Linear)
    expected = (1, *fixed_points.shape[-2:-1], start.grid.dim)
    for name, points in (("fixed_points", fixed_points), ("moving_points", moving_points)):
        if tuple(points.shape) != expected:
            raise ValueError(
                f"{name} must be {expected}, world mm, as many fixed as moving; got {tuple(points.shape)}."
            )
        if not bool(points.isfinite().all()):
            raise ValueError(f"{name} must be finite; they hold NaN or infinity. Leave such landmarks out of both.")
    used = torch.ones_like(fixed_points[0, :, 0]) if weights is None else weights
    if used.shape != fixed_points.shape[1:2] or bool((used < 0).any()) or not 0 < float(used.sum()) < float("inf"):
        raise ValueError(
            f"weights must be {expected[1]} numbers of at least 0, one a point, not all 0; got {used.tolist()}."
        )
    return start._closest(fixed_points[0].double(), moving_points[0].double(), used.double())
