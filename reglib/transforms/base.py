"""What every model of a map answers: ddf, points, inverse, another grid, and parameters that come from elsewhere."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import field
from ..grid import Axes, Grid, require_on_grid


class Transform(nn.Module):
    """A map from fixed to moving with parameters to optimize; the base of every model here.

    Attributes:
        given: names of the parameters that `with_values` replaced; they are buffers, so not optimized.
        batched: whether `with_values` takes a batch of values.
    """

    batched = False

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.given: tuple[str, ...] = ()

    @abstractmethod
    def ddf(self, grid: Grid | None = None) -> Float[Tensor, "b d *s"]:
        """The map as a ddf in voxels of `grid` (default: the model's own)."""

    @abstractmethod
    def points(self, points: Float[Tensor, "#b k d"]) -> Float[Tensor, "b k d"]:
        """Where fixed world points (mm) lie in the moving image's world."""

    # -- the way back --------------------------------------------------------------------------------------------
    def inverse(self, *, linked: bool = False) -> Transform:
        """The map from moving to fixed, exact for linear models and flows, else by fixed point (`inverse_residual`).

        Args:
            linked: False gives a model with parameters of its own. True gives an `Inverse`, which shares the parameters
                of this model: it moves when this one is optimized, and its gradient flows to them.
        """
        if linked:
            return Inverse(self)
        with torch.no_grad():
            return self._inverted()._own()

    @abstractmethod
    def _inverted(self) -> Transform:
        """The inverse as a model of the moment, its values connected to these parameters by autograd."""

    @torch.no_grad()
    def inverse_residual(self) -> Float[Tensor, "b 1 *s"]:
        """What is left of each voxel after the way back and forth, |u(q + w(q)) + w(q)| in voxels of the own grid."""
        voxels = self.grid.coordinates(dtype=torch.float64).flatten(0, -2)[None]  # (1, n, d)
        back = self._inverted().points(self.grid.points(voxels, to=Axes.WORLD, from_=Axes.VOXEL))
        forth = self.grid.points(self.points(back), to=Axes.VOXEL, from_=Axes.WORLD)
        return (forth - voxels).norm(dim=-1).reshape(-1, 1, *self.grid.shape)

    # -- another grid --------------------------------------------------------------------------------------------
    def at(self, grid: Grid) -> Transform:
        """The same map as a new model whose parameters fit `grid`; this one stays as it is."""
        return self._at(grid)._own(like=self)

    @abstractmethod
    def _at(self, grid: Grid) -> Transform: ...

    # -- optimization --------------------------------------------------------------------------------------------
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

    # -- fit -----------------------------------------------------------------------------------------------------
    def fit(self, ddf: Float[Tensor, "1 d *s"]) -> Transform:
        """The model of this kind that comes closest to a ddf on its grid, as a new one; see `fit_residual`.

        Raises: TypeError for models made of several, GridMismatchError for a ddf on another grid.
        """
        raise TypeError(f"{type(self).__name__} cannot be fitted to a ddf; fit one of its parts.")

    @torch.no_grad()
    def fit_residual(self, ddf: Float[Tensor, "1 d *s"]) -> Float[Tensor, "b 1 *s"]:
        """How far this map is from a ddf on its grid, voxels."""
        require_field(ddf, self.grid)
        return field.magnitude(self.ddf() - ddf)

    # -- parameters from elsewhere -------------------------------------------------------------------------------
    def with_values(self, **values: Tensor) -> Transform:
        """A copy in which tensors, such as a network's output, stand for parameters; their gradient flows through.

        Args:
            values: by the names of `named_parameters()`; parts of a Sequential as `**{"transforms.0.velocity": v}`.
                Dense models take a batch (b, d, *s) and then give a ddf (b, d, *s); linear ones take one set.

        Parameters that are not named are shared with this model. Limits of a linear model hold for these values too.
        Raises: ValueError for names or shapes that do not fit, TypeError for values that are not floating point.
        """
        known = self._values()
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"{type(self).__name__} has no parameter {name}; it has {', '.join(known)}.")
            if not isinstance(value, Tensor) or not value.is_floating_point():
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{name} must be a floating point tensor; got {got}.")
            _check_shape(name, value, known[name], batched=self._owner(name).batched)
        return self._with(values)

    def _values(self) -> dict[str, Tensor]:
        """Every parameter, and what was given in its place, by name."""
        found: dict[str, Tensor] = dict(self.named_parameters())
        for path, module in self.named_modules():
            if isinstance(module, Transform):
                found |= {f"{path}.{name}".lstrip("."): getattr(module, name) for name in module.given}
        return found

    def _owner(self, name: str) -> Transform:
        owner = self.get_submodule(name.rpartition(".")[0])
        assert isinstance(owner, Transform)
        return owner

    def _with(self, values: Mapping[str, Tensor]) -> Any:
        """A copy that shares every tensor but these, which become buffers and may be of another size."""
        shared: dict[int, Any] = {id(t): t for t in (*self.parameters(), *self.buffers())}
        twin = copy.deepcopy(self, shared)
        for path, value in values.items():
            owner, name = twin._owner(path), path.rpartition(".")[2]
            owner._parameters.pop(name, None)
            owner.register_buffer(name, value)
            owner.given = (*(n for n in owner.given if n != name), name)
        return twin

    def _own(self, *, like: Transform | None = None) -> Any:
        """Make given values parameters, in place; as in `like`, where that is a model with the same names."""
        trained = None if like is None else {name: p.requires_grad for name, p in like.named_parameters()}
        for path in [path for path in self._values() if path not in dict(self.named_parameters())]:
            if trained is not None and path not in trained:
                continue
            owner, name = self._owner(path), path.rpartition(".")[2]
            value = owner._buffers.pop(name)
            assert value is not None
            owner.given = tuple(n for n in owner.given if n != name)
            gradient = trained is None or trained[path]
            owner.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=gradient))
        return self


class Inverse(Transform):
    """The inverse of a model, by that model's own parameters, which stay where they are; `inverse()` is the model.

    A linear model is inverted as a matrix and a flow by its negative velocity. Any other is inverted anew by fixed
    point whenever a field or points are asked for; the gradient is that of the implicit function theorem.
    """

    def __init__(self, of: Transform) -> None:
        super().__init__(of.grid)
        self.of = of

    def ddf(self, grid: Grid | None = None) -> Float[Tensor, "b d *s"]:
        return self.of._inverted().ddf(grid)

    def points(self, points: Float[Tensor, "#b k d"]) -> Float[Tensor, "b k d"]:
        return self.of._inverted().points(points)

    def inverse(self, *, linked: bool = False) -> Transform:
        """The model itself if `linked`, else a copy with parameters of its own."""
        return self.of if linked else self._inverted()._own()

    def _inverted(self) -> Transform:
        return self.of._with(self.of._values())

    def _at(self, grid: Grid) -> Inverse:
        return Inverse(self.of.at(grid))

    def deformations(self) -> list[Tensor]:
        return self.of._inverted().deformations()

    def parameter_groups(self, step: float) -> list[dict[str, Any]]:
        return self.of.parameter_groups(step)


def require_field(ddf: Tensor, grid: Grid) -> None:
    """Raise unless `ddf` is a finite (1, d, *grid.shape)."""
    require_on_grid(ddf, grid, "ddf")
    if ddf.shape[:2] != (1, grid.dim):
        raise ValueError(f"ddf must be (1, {grid.dim}, *s), one field; got {tuple(ddf.shape)}.")
    if not bool(ddf.isfinite().all()):
        raise ValueError("ddf must be finite; it holds NaN or infinity. Did the optimization diverge?")


def _check_shape(name: str, value: Tensor, known: Tensor, *, batched: bool) -> None:
    got, expected = tuple(value.shape), tuple(known.shape)
    if got == expected or (batched and len(got) == len(expected) and got[0] > 0 and got[1:] == expected[1:]):
        return
    if batched:
        raise ValueError(f"{name} must be (b, {', '.join(map(str, expected[1:]))}) for any batch b; got {got}.")
    raise ValueError(
        f"{name} must be {expected}; got {got}. A linear model takes one set of values: loop over a batch."
    )
