"""Exact maps, and subjects that are made from one template by them.

A velocity that is a sum of cosines is followed from point to point by a Runge-Kutta integrator; then comes an affine
map. Nothing here uses `field.exponential` or `field.inverse`, so the truth is independent of what it judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..grid import Axes, Grid, apply_affine

HALF_PERIOD_MM = 200.0  # of the slowest cosine by default; a brain spans about 180 mm
MODES = 5  # cosines along each axis, the fastest with a wavelength of a half of this period: 100 mm
RK4_STEPS = 4
CHUNK = 1 << 13  # points integrated at once: what they need stays in the processor's cache


@dataclass(frozen=True)
class SmoothMap:
    """x -> A flow(x): the flow of a cosine velocity for unit time, then a world matrix; known at every point.

    Args:
        coefficients: (d, m[, m], m) mm, of v_k(x) = sum_abc c_kabc cos(a t_x) cos(b t_y) cos(c t_z),
            t = pi (x - center + h / 2) / h with h = half_period_mm.
        matrix: (d + 1, d + 1) world matrix applied after the flow.
        center: mm.
    """

    coefficients: Tensor
    matrix: Tensor
    center: tuple[float, ...]
    half_period_mm: float = HALF_PERIOD_MM

    def points(self, points: Tensor) -> Tensor:
        """Where world points (n, d) go, float64 mm; error far below a micrometer."""
        return apply_affine(self.matrix, self._flow(points.double(), 1.0)[0])

    def inverse_points(self, points: Tensor) -> Tensor:
        """The points that `points` would bring here: the same path walked backward."""
        return self._flow(apply_affine(torch.linalg.inv(self.matrix), points.double()), -1.0)[0]

    def log_determinant(self, points: Tensor) -> Tensor:
        """log det of the map's Jacobian at points (n, d): the divergence summed along each path."""
        log_det = self._flow(points.double(), 1.0, with_divergence=True)[1]
        return log_det + torch.linalg.det(self.matrix[:-1, :-1]).log()

    def _flow(self, points: Tensor, sign: float, *, with_divergence: bool = False) -> tuple[Tensor, Tensor]:
        chunks = [chunk.T.contiguous() for chunk in points.split(CHUNK)]  # (d, n): each coordinate in one piece
        parts = [self._runge_kutta(x, sign, with_divergence) for x in chunks]
        return torch.cat([x for x, _ in parts], dim=1).T.contiguous(), torch.cat([growth for _, growth in parts])

    def _runge_kutta(self, x: Tensor, sign: float, with_divergence: bool) -> tuple[Tensor, Tensor]:
        h = sign / RK4_STEPS
        growth = x.new_zeros(x.shape[1])
        for _ in range(RK4_STEPS):
            k1, g1 = self._velocity(x, with_divergence)
            k2, g2 = self._velocity(x + h / 2 * k1, with_divergence)
            k3, g3 = self._velocity(x + h / 2 * k2, with_divergence)
            k4, g4 = self._velocity(x + h * k3, with_divergence)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            growth = growth + h / 6 * (g1 + 2 * g2 + 2 * g3 + g4)
        return x, growth

    def _velocity(self, x: Tensor, with_divergence: bool) -> tuple[Tensor, Tensor]:
        """v (d, n) at x (d, n) and, if asked, its divergence (n,)."""
        center = torch.tensor(self.center, dtype=x.dtype)[:, None]
        angle = math.pi * ((x - center) / self.half_period_mm + 0.5)
        tables = list(_cosines(angle).unbind(1))
        velocity = _series(tables, self.coefficients)
        if not with_divergence:
            return velocity, x.new_zeros(())
        divergence = x.new_zeros(x.shape[1])
        order = torch.arange(MODES)[:, None]
        for k in range(len(x)):
            slope = -torch.sin(angle[k] * order) * order * (math.pi / self.half_period_mm)
            divergence += _series([*tables[:k], slope, *tables[k + 1 :]], self.coefficients[k : k + 1])[0]
        return velocity, divergence


def _cosines(angle: Tensor) -> Tensor:
    """cos(a t) for a = 0, 1, .. by the recurrence of Chebyshev: (d, n) to (m, d, n)."""
    rows = angle.new_empty(MODES, *angle.shape)
    rows[0] = 1
    torch.cos(angle, out=rows[1])
    for a in range(2, MODES):
        torch.mul(rows[1], 2, out=rows[a]).mul_(rows[a - 1]).sub_(rows[a - 2])
    return rows


def _series(tables: list[Tensor], coefficients: Tensor) -> Tensor:
    """sum over modes of c_k,ab.. X_a Y_b ..: (m, n) tables and (k, m, ..) coefficients to (k, n)."""
    tail = tables[1]
    for table in tables[2:]:
        tail = (tail[:, None] * table).flatten(0, 1)  # (m^(d-1), n)
    count = coefficients.shape[0]
    mixed = coefficients.reshape(count * MODES, -1) @ tail  # (k * m, n)
    return (mixed.reshape(count, MODES, -1) * tables[0]).sum(1)


def random_map(
    rng: np.random.Generator,
    center: tuple[float, ...],
    strength_mm: float,
    *,
    half_period_mm: float = HALF_PERIOD_MM,
    relative: float | None = None,
) -> SmoothMap:
    """A random subject-to-template map whose smooth part moves what is around `center` by `strength_mm` on average.

    Args:
        half_period_mm: somewhat more than the size of the subject.
        relative: how large its affine part is, 1 for a turn of 2.5 degrees; by default `strength_mm` / 5.
    """
    d = len(center)
    order = np.stack(np.meshgrid(*[np.arange(MODES)] * d, indexing="ij"))
    decay = np.exp(-(order**2).sum(0) / (2 * 2.0**2))
    decay[(0,) * d] = 0  # a shift of everything belongs to the affine part
    raw = torch.from_numpy(rng.standard_normal((d, *decay.shape)) * decay)
    smooth = SmoothMap(raw, torch.eye(d + 1, dtype=torch.float64), center, half_period_mm)
    reach = 0.35 * half_period_mm
    around = torch.from_numpy(rng.uniform(-reach, reach, (2000, d))) + torch.tensor(center)
    speed = smooth._velocity(around.T.contiguous(), False)[0].norm(dim=0).mean()
    relative = strength_mm / 5 if relative is None else relative
    matrix = random_affine(rng, center, relative)
    return SmoothMap(raw * (strength_mm / speed), matrix, center, half_period_mm)


def random_affine(rng: np.random.Generator, center: tuple[float, ...], relative: float) -> Tensor:
    """Rotation of a few degrees, scaling of a few percent and a shift of a few mm about `center`."""
    d = len(center)
    linear = rotation(rng.normal(0, math.radians(2.5) * relative, 3 if d == 3 else 1))
    linear = linear @ torch.diag(torch.from_numpy(np.exp(rng.normal(0, 0.03 * relative, d))))
    middle = torch.tensor(center, dtype=torch.float64)
    matrix = torch.eye(d + 1, dtype=torch.float64)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = middle - linear @ middle + torch.from_numpy(rng.normal(0, 1.5 * relative, d))
    return matrix


def rotation(angles: np.ndarray) -> Tensor:
    """(d, d) rotation by one angle in 2-D or three (about x, y, z in turn) in 3-D, radians."""
    planes = [(0, 1)] if len(angles) == 1 else [(1, 2), (2, 0), (0, 1)]
    d = 2 if len(angles) == 1 else 3
    result = torch.eye(d, dtype=torch.float64)
    for angle, (i, j) in zip(angles, planes, strict=True):
        turn = torch.eye(d, dtype=torch.float64)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        result = turn @ result
    return result


# -- subjects -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Subject:
    """One subject: image (1, 1, *s) in [0, 1], labels (1, 1, *s) int64, its grid, and its map to the template."""

    image: Tensor
    labels: Tensor
    grid: Grid
    template_from_subject: SmoothMap


class Truth:
    """The exact map between two subjects, fixed to moving, and what follows from it; computed when first read.

    `ddf` and `inverse_ddf` are (1, d, *s) float32 voxels of the fixed and of the moving grid; `jacobian_determinant`
    is (1, 1, *s), det(I + grad u) on the fixed grid; `fixed_points`, `moving_points` are (1, 100, d) float64, mm.
    """

    def __init__(self, fixed: Subject, moving: Subject, *, seed: int) -> None:
        self._fixed, self._moving, self._seed = fixed, moving, seed

    def points(self, points: Tensor) -> Tensor:
        """Take fixed world points (n, d) mm to moving world points."""
        to_template = self._fixed.template_from_subject
        return self._moving.template_from_subject.inverse_points(to_template.points(points))

    def inverse_points(self, points: Tensor) -> Tensor:
        """Take moving world points (n, d) mm to fixed world points."""
        to_template = self._moving.template_from_subject
        return self._fixed.template_from_subject.inverse_points(to_template.points(points))

    @cached_property
    def ddf(self) -> Tensor:
        return ddf_of(self.points, self._fixed.grid)

    @cached_property
    def inverse_ddf(self) -> Tensor:
        return ddf_of(self.inverse_points, self._moving.grid)

    @cached_property
    def jacobian_determinant(self) -> Tensor:
        x = self._fixed.grid.coordinates(Axes.WORLD, dtype=torch.float64).flatten(0, -2)
        y = self.points(x)
        log_det = self._fixed.template_from_subject.log_determinant(x)
        log_det = log_det - self._moving.template_from_subject.log_determinant(y)
        return log_det.exp().reshape(1, 1, *self._fixed.grid.shape).float()

    @cached_property
    def fixed_points(self) -> Tensor:
        inside = self._fixed.labels[0, 0].nonzero().double()  # (k, d) voxels
        rng = np.random.default_rng([self._seed, 2])
        chosen = inside[torch.from_numpy(rng.choice(len(inside), 100, replace=len(inside) < 100))]
        jittered = chosen + torch.from_numpy(rng.uniform(-0.5, 0.5, chosen.shape))
        return self._fixed.grid.points(jittered, to=Axes.WORLD, from_=Axes.VOXEL).unsqueeze(0)

    @cached_property
    def moving_points(self) -> Tensor:
        return self.points(self.fixed_points[0]).unsqueeze(0)


def ddf_of(world_map: Callable[[Tensor], Tensor], grid: Grid) -> Tensor:
    """A world map sampled at every voxel, as a ddf (1, d, *s) in voxels of `grid`."""
    x = grid.coordinates(Axes.WORLD, dtype=torch.float64).flatten(0, -2)
    moves = grid.vectors(world_map(x) - x, to=Axes.VOXEL, from_=Axes.WORLD)
    return moves.reshape(1, *grid.shape, grid.dim).movedim(-1, 1).float().contiguous()


@dataclass(frozen=True)
class Pair:
    """Two subjects to register and the truth between them; see `Subject` for shapes."""

    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor
    moving_labels: Tensor
    fixed_grid: Grid
    moving_grid: Grid
    truth: Truth


@dataclass(frozen=True)
class Cohort:
    """Subjects made from one template; `pair` gives any two of them with the exact map between."""

    subjects: tuple[Subject, ...]
    seed: int

    def pair(self, fixed: int = 0, moving: int = 1) -> Pair:
        """Two subjects by index and their truth."""
        f, m = self.subjects[fixed], self.subjects[moving]
        truth = Truth(f, m, seed=self.seed)
        return Pair(f.image, m.image, f.labels, m.labels, f.grid, m.grid, truth)


def oblique_grid(rng: np.random.Generator, grid: Grid) -> Grid:
    """Another header over the same place: turned, anisotropic, axes in another order and direction."""
    d = grid.dim
    spacing = [s * r for s, r in zip(grid.spacing, rng.permutation([0.8, 1.0, 1.4])[:d], strict=True)]
    shape = [math.ceil(e / s) for e, s in zip(grid.extent, spacing, strict=True)]
    turned = rotation(rng.uniform(-1, 1, 3 if d == 3 else 1) * math.radians(20))
    letters = rng.permutation(d)
    order = "".join(("RAS" if rng.random() < 0.5 else "LPI")[k] for k in letters)
    return Grid.centered(shape, spacing, center=grid.center, direction=turned).reorient(order)
