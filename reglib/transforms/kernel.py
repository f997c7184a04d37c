"""Radial kernels of compact support on a lattice of control points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..grid import Grid, per_axis
from .dense import Lattice, start_field
from .fit import least_squares

Smoothness = Literal["C2", "C4", "C6"]
RANK: dict[str, int] = {"C2": 16, "C4": 12, "C6": 10}  # leaves 4e-6, 7e-7 and 4e-7 of the kernel's height


class KernelDisplacement(Lattice):
    """Wendland's kernels at control points:  u(x) = sum_j c_j phi(|x - x_j| / (radius h)) / S, or the flow of such a u.

    h is `control_spacing_mm` and S the sum of phi over the lattice at a control point, so that equal `coefficients`
    (1, d, *control) move the image by about that many voxels. Unlike B-splines the kernel is round, in mm.

    Args:
        control_spacing_mm: h, the most that control points are apart, mm; they are spread so that a whole number spans
            each axis. Numbers that differ between axes make the kernel an ellipsoid.
        smoothness: how often phi is differentiable, 2, 4 or 6 times.
        radius: of the kernel's support, in h; at least 1, or points between control points would not move.
        velocity: whether the field is a velocity, so that the map is its flow, smooth and invertible.
        coefficients: to start from.
        steps: squarings of `field.exponential`; default as many as the velocity needs.

    Convention: distances count along the grid's axes, as if these were at right angles.
    Source: Wendland 1995, doi:10.1007/BF02123482; kernels in registration, Jud, Moeri and Cattin 2016, Sparse kernel
        machines for discontinuous registration, CVPR workshops; AirLab, Sandkuehler et al. 2018, arXiv:1806.09907.
    Differs: divided by S; control points need not fall on voxels; computed to about 1e-6 of the kernel's height.
    """

    title = "a kernel displacement"

    def __init__(
        self,
        grid: Grid,
        *,
        control_spacing_mm: float | Sequence[float] = 20.0,
        smoothness: Smoothness = "C4",
        radius: float = 2.0,
        velocity: bool = False,
        coefficients: Tensor | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__(grid)
        wanted = per_axis(control_spacing_mm, grid.dim, "control_spacing_mm")
        if min(wanted) <= 0:
            raise ValueError(f"control_spacing_mm must be above 0 mm; got {control_spacing_mm}.")
        if smoothness not in get_args(Smoothness):
            raise ValueError(f'smoothness must be "C2", "C4" or "C6"; got "{smoothness}".')
        if not radius >= 1:
            raise ValueError(f"radius must be at least 1 control spacing, or the support has gaps; got {radius}.")
        self.smoothness, self.flows, self.steps = smoothness, velocity, steps
        self.control_spacing_mm = control_spacing_mm
        self.reach_mm = tuple(radius * w for w in wanted)
        lengths = [(n - 1) * s for n, s in zip(grid.shape, grid.spacing, strict=True)]
        self.spans = tuple(math.ceil(length / w - 1e-6) for length, w in zip(lengths, wanted, strict=True))
        axes = zip(self.spans, lengths, self.reach_mm, strict=True)
        control = Grid([len(_control_mm(span, length, reach)) for span, length, reach in axes])
        self.coefficients = nn.Parameter(start_field(control, coefficients))

    def own_field(self) -> Float[Tensor, "b d *s"]:
        lengths = tuple((n - 1) * s for n, s in zip(self.grid.shape, self.grid.spacing, strict=True))
        train = _kernel_train(self.grid.shape, lengths, self.spans, self.reach_mm, self.smoothness)
        lead, control = self.coefficients.shape[:2], self.coefficients.shape[2:]
        state = self.coefficients.reshape(lead.numel(), 1, -1)
        for core, count in zip(train, control, strict=True):
            lines = state.reshape(*state.shape[:2], count, -1)  # (done, rank, control, still to do)
            state = torch.einsum("abnm,lamr->lnbr", core.to(lines), lines).flatten(0, 1)
        return state.reshape(*lead, *self.grid.shape)

    def _closest(self, target: Tensor) -> dict[str, Tensor]:
        """Least squares by conjugate gradients, as kernels overlap in all directions."""
        like = self.coefficients.detach().to(target)[:1]
        return {"coefficients": least_squares(lambda c: self._with({"coefficients": c}).own_field(), target, like)}


def wendland(r: Tensor, smoothness: Smoothness) -> Tensor:
    """Wendland's function phi(r) of three variables, 1 at 0 and 0 from r = 1 on.

    Source: Wendland 1995, doi:10.1007/BF02123482, table 1, divided by phi(0).
    """
    rest = (1 - r).clamp(min=0)
    if smoothness == "C2":
        return rest**4 * (4 * r + 1)
    if smoothness == "C4":
        return rest**6 * (35 * r**2 + 18 * r + 3) / 3
    return rest**8 * (32 * r**3 + 25 * r**2 + 8 * r + 1)


def _beyond(span: int, length: float, reach: float) -> int:
    """How many control points beyond each end still reach the grid."""
    return math.ceil(reach * span / length - 1e-6) - 1 if span else 0


def _control_mm(span: int, length: float, reach: float) -> Tensor:
    """Positions of the control points along an axis, mm from the first voxel center."""
    beyond = _beyond(span, length, reach)
    return (torch.arange(span + 1 + 2 * beyond, dtype=torch.float64) - beyond) * (length / max(span, 1))


@lru_cache(maxsize=32)
def _kernel_train(
    shape: tuple[int, ...],
    lengths: tuple[float, ...],
    spans: tuple[int, ...],
    reach_mm: tuple[float, ...],
    smoothness: Smoothness,
) -> list[Tensor]:
    """The kernel at all voxels for all control points as a tensor train, one core (rank, rank, n, control) an axis.

    Along any axis phi(sqrt(x^2 + s)) = sum_r P_r(x) phi(sqrt(X_r^2 + s)) for every s >= 0, with a few nodes X_r and
    functions P_r that are found by least squares over s. Taken along the first and last axis, this leaves small
    matrices to multiply by, as for a separable kernel.
    """
    nodes = 0.5 - 0.5 * torch.cos(
        (torch.arange(RANK[smoothness], dtype=torch.float64) + 0.5) * (math.pi / RANK[smoothness])
    )
    offsets = []
    for n, length, span, reach in zip(shape, lengths, spans, reach_mm, strict=True):
        voxels_mm = torch.arange(n, dtype=torch.float64) * (length / max(n - 1, 1))
        offsets.append((voxels_mm[:, None] - _control_mm(span, length, reach)).abs() / reach)  # (n, control)
    first, second, *third = [offset**2 for offset in offsets]
    last = nodes**2 if third else torch.zeros(1, dtype=torch.float64)
    squares = nodes[:, None, None, None] ** 2 + last[:, None, None] + second
    middle = wendland(squares.sqrt(), smoothness) / _sum_at_control_point(lengths, spans, reach_mm, smoothness)
    train = [_interpolation(first, nodes, smoothness)[None], middle]
    return [*train, *(_interpolation(x, nodes, smoothness)[:, None] for x in third)]


def _interpolation(squares: Tensor, nodes: Tensor, smoothness: Smoothness) -> Tensor:
    """P_r at offsets of these squares (n, control), as (rank, n, control)."""
    samples = torch.linspace(0, 1, 200, dtype=torch.float64)[:, None] ** 2
    at_nodes = wendland((nodes**2 + samples).sqrt(), smoothness)
    at_offsets = wendland((squares.flatten() + samples).sqrt(), smoothness)
    return (torch.linalg.pinv(at_nodes, rtol=1e-8) @ at_offsets).reshape(-1, *squares.shape)


def _sum_at_control_point(
    lengths: tuple[float, ...], spans: tuple[int, ...], reach_mm: tuple[float, ...], smoothness: Smoothness
) -> float:
    """What the kernels of a lattice without end sum to at one of its points."""
    axes = []
    for length, span, reach in zip(lengths, spans, reach_mm, strict=True):
        beyond = _beyond(span, length, reach)
        axes.append(torch.arange(-beyond, beyond + 1, dtype=torch.float64) * (length / max(span, 1) / reach))
    offsets = torch.meshgrid(*axes, indexing="ij")
    return float(wendland(torch.stack(offsets).norm(dim=0), smoothness).sum())
