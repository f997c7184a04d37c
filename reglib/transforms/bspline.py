"""Cubic B-splines on a lattice of control points, as a displacement or as a velocity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import filters
from ..grid import Grid, per_axis
from .dense import Lattice, start_field


class Splines(Lattice):
    """Base of the two models of cubic B-splines:  f(x) = sum_j c_j B(x / h - j), one factor B an axis.

    Args:
        control_spacing_mm: wanted distance of control points; rounded so that a whole number spans each axis.
        coefficients: (1, d, *control) voxels of the grid, to start from.
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
        self.coefficients = nn.Parameter(start_field(control, coefficients))

    def own_field(self) -> Float[Tensor, "b d *s"]:
        return filters.separable(self.coefficients, self._matrices())

    def _matrices(self) -> list[Tensor]:
        """(n, control) B-spline values along each axis."""
        steps = [(n - 1) / span if n > 1 else 1.0 for n, span in zip(self.grid.shape, self.spans, strict=True)]
        return [
            filters.bspline_matrix(n, step, span + 3)
            for n, step, span in zip(self.grid.shape, steps, self.spans, strict=True)
        ]

    def _closest(self, target: Tensor) -> dict[str, Tensor]:
        """Least squares is separable, as the splines are: a pseudo-inverse along each axis."""
        return {"coefficients": filters.separable(target, [torch.linalg.pinv(m) for m in self._matrices()])}

    def subdivide(self) -> Splines:
        """The same map, exactly, by twice as many control points along each axis, as a new model.

        Source: the two-scale relation of cubic B-splines, weights (1, 4, 6, 4, 1) / 8; Unser 1999,
            doi:10.1109/79.799930, equation 9.
        """
        refined = filters.separable(self.coefficients, [_two_scale(span) for span in self.spans])
        finer = self._with({"coefficients": refined})
        finer.spans = [2 * span for span in self.spans]
        wanted = per_axis(self.control_spacing_mm, self.grid.dim, "control_spacing_mm")
        finer.control_spacing_mm = tuple(w / 2 for w in wanted)
        return finer._own(like=self)


class FreeFormDeformation(Splines):
    """Cubic B-splines on a coarse lattice of control points; `coefficients` (1, d, *control) voxels of the grid.

    Args:
        control_spacing_mm: wanted distance of control points; rounded so that a whole number spans each axis.
        coefficients: to start from.

    Source: Rueckert et al. 1999, doi:10.1109/42.796284.
    """

    title = "a free-form deformation"


class VelocityFreeForm(Splines):
    """The flow of a velocity of cubic B-splines: smooth, invertible, and few parameters.

    Args:
        control_spacing_mm: wanted distance of control points; rounded so that a whole number spans each axis.
        coefficients: (1, d, *control) voxels of the grid, to start from.
        steps: squarings of `field.exponential`; default as many as the velocity needs.

    Source: Modat et al. 2012, doi:10.1109/MMBIA.2012.6164745.
    """

    title = "a free-form velocity"
    flows = True

    def __init__(
        self,
        grid: Grid,
        *,
        control_spacing_mm: float | Sequence[float] = 20.0,
        coefficients: Tensor | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__(grid, control_spacing_mm=control_spacing_mm, coefficients=coefficients)
        self.steps = steps


def _two_scale(span: int) -> Tensor:
    """(2 span + 3, span + 3): coefficients at half the distance, both lattices one point beyond each end."""
    fine = torch.arange(2 * span + 3, dtype=torch.float64)[:, None] - 1
    coarse = torch.arange(span + 3, dtype=torch.float64) - 1
    weights = torch.tensor([6.0, 4.0, 1.0, 0.0], dtype=torch.float64) / 8
    return weights[(fine - 2 * coarse).abs().clamp(max=3).long()]
