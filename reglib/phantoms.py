"""Subjects whose truth is known: brains bent by an exact map, and shapes drawn by rule.

A cohort's subjects are all made from one template by smooth maps that are known in closed form: a velocity that is a
sum of cosines, followed from point to point by a Runge-Kutta integrator, and an affine map. Nothing here uses
`field.exponential` or `field.inverse`, so the truth is independent of what it judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from . import field, filters
from .grid import Axes, Grid, apply_affine

LABEL_NAMES: dict[int, str] = {
    side * 3 + k + 1: f"{('left', 'right')[side]} {tissue}"
    for side in (0, 1)
    for k, tissue in enumerate(("CSF", "gray matter", "white matter"))
}
BRAIN_CENTER_MM = (0.0, -17.0, 6.0)  # middle of the template's brain, MNI152 world
SLICE_MM = 8.0  # height of the axial slice that 2-D cohorts show
HALF_PERIOD_MM = 200.0  # of the slowest cosine; the brain spans about 180 mm
MODES = 5  # cosines along each axis, the fastest with a wavelength of 2 * 200 / 4 = 100 mm
RK4_STEPS = 4
CHUNK = 1 << 13  # points integrated at once: what they need stays in the processor's cache


class Template(NamedTuple):
    """MNI152 T1 in [0, 1] and its tissue-by-hemisphere labels, (1, 1, *s), on one grid."""

    image: Tensor
    labels: Tensor
    grid: Grid


@lru_cache(maxsize=1)
def mni152() -> Template:
    """The MNI152 T1 template with six labels (`LABEL_NAMES`) at 1 mm, from the files inside nilearn's wheel.

    Source: Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033 (2009a nonlinear symmetric, skull-stripped).
    """
    import nibabel

    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise ImportError(
            "the bundled brain comes from the package nilearn, which is not installed: pip install nilearn"
        )
    folder = Path(spec.origin).parent / "datasets" / "data"
    images: dict[str, Any] = {}
    for name in ("t1", "gm", "wm"):
        images[name] = nibabel.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    t1, gray, white = (np.asarray(images[k].dataobj, dtype=np.float32) for k in ("t1", "gm", "wm"))
    t1, gray, white = t1 / t1.max(), gray / gray.max(), white / white.max()
    fluid = 1 - gray - white
    tissue = np.where((white > gray) & (white > fluid), np.uint8(3), np.where(gray > fluid, np.uint8(2), np.uint8(1)))
    grid = Grid.from_nifti(images["t1"])
    matrix = grid.world_from_voxel.numpy()[0]
    i, j, k = np.ogrid[tuple(slice(n) for n in grid.shape)]
    right = matrix[0] * i + matrix[1] * j + matrix[2] * k + matrix[3] > 0
    labels = (tissue + np.uint8(3) * right) * (t1 > 0)
    return Template(torch.from_numpy(t1)[None, None], torch.from_numpy(labels)[None, None].long(), grid)


@lru_cache(maxsize=2)
def _blurred(sigma: float) -> Tensor:
    """The template's image smoothed against aliasing; sigma in its voxels, which are 1 mm."""
    return filters.gaussian(mni152().image, sigma=sigma)


# -- the exact maps ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SmoothMap:
    """x -> A flow(x): the flow of a cosine velocity for unit time, then a world matrix; known at every point.

    Args:
        coefficients: (d, m[, m], m) mm, of v_k(x) = sum_abc c_kabc cos(a t_x) cos(b t_y) cos(c t_z),
            t = pi (x - center + h / 2) / h with h = HALF_PERIOD_MM.
        matrix: (d + 1, d + 1) world matrix applied after the flow.
        center: mm.
    """

    coefficients: Tensor
    matrix: Tensor
    center: tuple[float, ...]

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
        parts = [self._runge_kutta(chunk, sign, with_divergence) for chunk in points.split(CHUNK)]
        return torch.cat([p for p, _ in parts]), torch.cat([g for _, g in parts])

    def _runge_kutta(self, x: Tensor, sign: float, with_divergence: bool) -> tuple[Tensor, Tensor]:
        h = sign / RK4_STEPS
        growth = x.new_zeros(len(x))
        for _ in range(RK4_STEPS):
            k1, g1 = self._velocity(x, with_divergence)
            k2, g2 = self._velocity(x + h / 2 * k1, with_divergence)
            k3, g3 = self._velocity(x + h / 2 * k2, with_divergence)
            k4, g4 = self._velocity(x + h * k3, with_divergence)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            growth = growth + h / 6 * (g1 + 2 * g2 + 2 * g3 + g4)
        return x, growth

    def _velocity(self, x: Tensor, with_divergence: bool) -> tuple[Tensor, Tensor]:
        """v (n, d) and, if asked, its divergence (n,)."""
        d = x.shape[1]
        angle = math.pi * ((x - torch.tensor(self.center)) / HALF_PERIOD_MM + 0.5)
        tables = [_cosines(angle[:, k]) for k in range(d)]  # (n, m) each
        velocity = _series(tables, self.coefficients)
        if not with_divergence:
            return velocity, x.new_zeros(())
        divergence = x.new_zeros(len(x))
        order = torch.arange(MODES)
        for k in range(d):
            slope = -torch.sin(angle[:, k : k + 1] * order) * order * (math.pi / HALF_PERIOD_MM)
            divergence += _series([*tables[:k], slope, *tables[k + 1 :]], self.coefficients[k : k + 1])[:, 0]
        return velocity, divergence


def _cosines(angle: Tensor) -> Tensor:
    """cos(a t) for a = 0, 1, .. by the recurrence of Chebyshev: (n,) to (n, m)."""
    columns = [torch.ones_like(angle), angle.cos()]
    while len(columns) < MODES:
        columns.append(2 * columns[1] * columns[-1] - columns[-2])
    return torch.stack(columns, dim=1)


def _series(tables: list[Tensor], coefficients: Tensor) -> Tensor:
    """sum over modes of c_k,ab.. X_a Y_b ..: (n, m) tables and (k, m, ..) coefficients to (n, k)."""
    head = tables[0]
    for table in tables[1:-1]:
        head = (head[:, :, None] * table[:, None, :]).flatten(1)  # (n, m^(d-1))
    count = coefficients.shape[0]
    mixed = head @ coefficients.flatten(1, -2).movedim(0, 1).flatten(1)  # (n, k * m)
    return (mixed.reshape(len(head), count, MODES) * tables[-1][:, None, :]).sum(-1)


def _random_map(rng: np.random.Generator, d: int, strength_mm: float) -> SmoothMap:
    """A random subject-to-template map whose smooth part moves the brain by `strength_mm` on average."""
    center = BRAIN_CENTER_MM[:d]
    order = np.stack(np.meshgrid(*[np.arange(MODES)] * d, indexing="ij"))
    decay = np.exp(-(order**2).sum(0) / (2 * 2.0**2))
    decay[(0,) * d] = 0  # a shift of everything belongs to the affine part
    raw = torch.from_numpy(rng.standard_normal((d, *decay.shape)) * decay)
    smooth = SmoothMap(raw, torch.eye(d + 1, dtype=torch.float64), center)
    radii = torch.from_numpy(rng.uniform(-70, 70, (2000, d)))
    speed = smooth._velocity(radii + torch.tensor(center), False)[0].norm(dim=1).mean()
    relative = strength_mm / 5
    matrix = _random_affine(rng, d, relative)
    return SmoothMap(raw * (strength_mm / speed), matrix, center)


def _random_affine(rng: np.random.Generator, d: int, relative: float) -> Tensor:
    """Rotation of a few degrees, scaling of a few percent and a shift of a few mm about the brain's center."""
    linear = _rotation(rng.normal(0, math.radians(2.5) * relative, 3 if d == 3 else 1))
    linear = linear @ torch.diag(torch.from_numpy(np.exp(rng.normal(0, 0.03 * relative, d))))
    center = torch.tensor(BRAIN_CENTER_MM[:d], dtype=torch.float64)
    matrix = torch.eye(d + 1, dtype=torch.float64)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = center - linear @ center + torch.from_numpy(rng.normal(0, 1.5 * relative, d))
    return matrix


def _rotation(angles: np.ndarray) -> Tensor:
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


# -- the cohort ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Subject:
    """One brain: image (1, 1, *s) in [0, 1], labels (1, 1, *s) int64, its grid, and its map to the template."""

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
        return _ddf_of(self.points, self._fixed.grid)

    @cached_property
    def inverse_ddf(self) -> Tensor:
        return _ddf_of(self.inverse_points, self._moving.grid)

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


def _ddf_of(world_map: Callable[[Tensor], Tensor], grid: Grid) -> Tensor:
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


def brain_cohort(
    n: int,
    *,
    seed: int = 0,
    shape: Sequence[int] = (64, 64, 64),
    spacing: float | Sequence[float] = 3.0,
    strength_mm: float = 5.0,
    oblique: bool = False,
    noise: float = 0.02,
    bias: float = 0.15,
    contrast: float = 0.2,
) -> Cohort:
    """`n` different brains made from MNI152 by random diffeomorphisms that are known exactly.

    Args:
        shape, spacing: of each subject's grid; two sizes give an axial slice.
        strength_mm: how far the smooth part of a subject's map moves the brain on average; 0 = the template itself.
        oblique: give each subject its own header: turned by up to 20 degrees, unequal spacing, another axis order.
        noise, bias, contrast: spread of the added noise, of the log of the bias field, and of the log of gamma.

    Same seed, same bytes on one machine and thread count; 1e-4 elsewhere.
    """
    d = len(tuple(shape))
    grid = Grid.centered(shape, spacing, center=BRAIN_CENTER_MM[:d])
    subjects = []
    for index in range(n):
        rng = np.random.default_rng([seed, index, 1])
        template_from_subject = _random_map(rng, d, strength_mm)
        subject_grid = _oblique_grid(rng, grid) if oblique else grid
        image, labels = _draw_brain(template_from_subject, subject_grid)
        image = _scan(rng, image, subject_grid, noise=noise, bias=bias, contrast=contrast)
        subjects.append(Subject(image, labels, subject_grid, template_from_subject))
    return Cohort(tuple(subjects), seed)


def _draw_brain(template_from_subject: SmoothMap, grid: Grid) -> tuple[Tensor, Tensor]:
    """The template's image (linear) and labels (nearest) read where each voxel of `grid` comes from."""
    template = mni152()
    x = grid.coordinates(Axes.WORLD, dtype=torch.float64).flatten(0, -2)
    y = template_from_subject.points(x)
    if grid.dim == 2:
        y = torch.cat([y, torch.full_like(y[:, :1], SLICE_MM)], dim=1)
    voxels = template.grid.points(y, to=Axes.VOXEL, from_=Axes.WORLD).float().unsqueeze(0)
    mean_spacing = float(np.mean(grid.spacing))
    smooth = _blurred(0.5 * mean_spacing if mean_spacing > 1.2 else 0.0)
    image = field.sample(smooth, voxels, padding="zeros")
    labels = field.sample(template.labels.float(), voxels, mode="nearest", padding="zeros").long()
    return image.reshape(1, 1, *grid.shape), labels.reshape(1, 1, *grid.shape)


def _scan(rng: np.random.Generator, image: Tensor, grid: Grid, *, noise: float, bias: float, contrast: float) -> Tensor:
    """What a scanner adds: another contrast, a bias field and noise; the background stays 0."""
    brain = (image > 0.02).float()
    image = image.clamp(min=0) ** math.exp(rng.normal(0, contrast))
    position = grid.points(grid.coordinates(), to=Axes.CUBE, from_=Axes.VOXEL)
    waves = sum(torch.cos(2.2 * position[..., k] + rng.uniform(0, 6.3)) * rng.normal(0, bias) for k in range(grid.dim))
    noisy = image * torch.as_tensor(waves).exp() + torch.from_numpy(rng.normal(0, noise, grid.shape)).float()
    return (noisy * brain).clamp(0, 1)


def _oblique_grid(rng: np.random.Generator, grid: Grid) -> Grid:
    """Another header over the same brain: turned, anisotropic, axes in another order and direction."""
    d = grid.dim
    spacing = [s * r for s, r in zip(grid.spacing, rng.permutation([0.8, 1.0, 1.4])[:d], strict=True)]
    shape = [math.ceil(e / s) for e, s in zip(grid.extent, spacing, strict=True)]
    turned = _rotation(rng.uniform(-1, 1, 3 if d == 3 else 1) * math.radians(20))
    letters = rng.permutation(d)
    order = "".join(("RAS" if rng.random() < 0.5 else "LPI")[k] for k in letters)
    return Grid.centered(shape, spacing, center=grid.center, direction=turned).reorient(order)


# -- shapes drawn by rule -----------------------------------------------------------------------------------------
def _unit_coordinates(shape: Sequence[int]) -> Float[Tensor, "*s d"]:
    """Voxel centers in [0, 1] along each axis, outer edges at 0 and 1."""
    return (Grid(shape).coordinates() + 0.5) / torch.tensor([float(n) for n in shape])


def circle(
    shape: Sequence[int], *, radius: float | None = None, center: Sequence[float] | None = None, sigma: float = 0.0
) -> Float[Tensor, "1 1 *s"]:
    """A disc (2-D) or ball (3-D) of ones. Radius, center and the edge's softness sigma in voxels."""
    middle = torch.tensor(center if center is not None else [(n - 1) / 2 for n in shape], dtype=torch.float32)
    size = radius if radius is not None else min(shape) * 0.3
    distance = (Grid(shape).coordinates() - middle).norm(dim=-1)
    image = torch.sigmoid((size - distance) / (sigma / 1.7)) if sigma > 0 else (distance <= size).float()
    return image[None, None]


def cshape(
    shape: Sequence[int], *, radius: float | None = None, width: float | None = None, opening: float = 0.5
) -> Float[Tensor, "1 1 *s"]:
    """A ring (2-D) or shell (3-D) cut open toward the far end of axis 0: the letter C.

    Args: radius, width: outer radius and thickness, voxels. opening: half-width of the gap, in outer radii.
    """
    outer = radius if radius is not None else min(shape) * 0.4
    thick = width if width is not None else outer * 0.4
    offset = Grid(shape).coordinates() - torch.tensor([(n - 1) / 2 for n in shape])
    distance = offset.norm(dim=-1)
    gap = (offset[..., 0] > 0) & (offset[..., 1].abs() < opening * outer)
    return ((distance <= outer) & (distance >= outer - thick) & ~gap).float()[None, None]


def grid_lines(shape: Sequence[int], *, stride: int = 4) -> Float[Tensor, "1 1 *s"]:
    """Ones on every `stride`-th plane of voxels along each axis: graph paper to warp."""
    voxels = Grid(shape).coordinates()
    return (voxels % stride == 0).any(dim=-1).float()[None, None]


def letter_f(shape: Sequence[int]) -> Float[Tensor, "1 1 *s"]:
    """The letter F, which no flip or swap of axes leaves unchanged; in 3-D its short arm reaches half as deep.

    The stem runs along axis 1, the arms point along axis 0; voxels of the arms are brighter than the stem's.
    """
    x = _unit_coordinates(shape)
    depth = (0.2, 0.8)
    boxes = [  # value, then (low, high) along each axis
        (0.7, (0.25, 0.40), (0.15, 0.85), depth),
        (1.0, (0.25, 0.78), (0.70, 0.85), depth),
        (1.0, (0.25, 0.62), (0.42, 0.56), (0.2, 0.5)),
    ]
    image = torch.zeros(tuple(shape))
    for value, *ranges in boxes:
        inside = [(x[..., k] >= low) & (x[..., k] < high) for k, (low, high) in enumerate(ranges[: len(shape)])]
        image[torch.stack(inside).all(0)] = value
    return image[None, None]


__all__ = [
    "LABEL_NAMES",
    "Cohort",
    "Pair",
    "SmoothMap",
    "Subject",
    "Template",
    "Truth",
    "brain_cohort",
    "circle",
    "cshape",
    "grid_lines",
    "letter_f",
    "mni152",
]
