"""Where a registration starts: headers, centers, principal axes, many turns, then linear maps, coarse to fine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .. import field
from ..grid import Grid, apply_affine, require_on_grid
from ..transforms import Affine, Linear, Rigid, Translation
from .descent import Options, register
from .levels import FAINT, Images, Level, Scene, checked_scene
from .objective import Loss

CLEARLY = 0.25  # of the range of scores, by which a turned start must beat the straight ones: heads look alike turned
TRIED = 3  # starts that are followed a little before one is chosen
LARGEST_GROWTH = 2.5  # in volume, between two scans of one body part; a fit beyond it has zoomed into a detail
SAME = 0.05  # of the grid's diagonal: starts whose corners end closer than this have come to one place
JUDGED = 32  # voxels along the longest axis at which starts are compared


def align(
    fixed: Float[Tensor, "1 c *s"],
    moving: Float[Tensor, "1 c *t"],
    grid: Grid,
    *,
    similarity: Loss,
    refine: Loss | None = None,
    models: Sequence[type[Linear]] = (Rigid, Affine),
    moving_grid: Grid | None = None,
    masks: tuple[Shaped[Tensor, "1 1 *s"] | None, Shaped[Tensor, "1 1 *t"] | None] = (None, None),
    turn_deg: float = 0.0,
    levels: Sequence[float] = (8, 4),
    steps: Sequence[int] = (60, 40),
    options: Options | None = None,
) -> Linear:
    """A linear map on `grid` that lays `moving` onto `fixed`, from wherever the headers leave them.

    The headers, the grids' centers, the centers of mass and every way to lay the principal axes on each other are
    compared on coarse images, and the best few followed for a while; from there each model is fitted in turn. Headers
    are believed unless a turn ends clearly better. A model that ends less alike than it began, or multiplies the volume
    by more than 2.5, is left out, so that the result is never less alike than the headers.

    Args:
        fixed, moving: on `grid` and `moving_grid` (default the same), in one range of intensities, such as 0 to 1.
        similarity: called as (warped, fixed), with `mask=`; mutual information suits most pairs.
        refine: another similarity, by which the last model then descends at the last level: local correlation ends
            closer on images of one kind, and finds its way only from close by.
        models: from few freedoms to many; the last one descends through all `levels`, the others the first alone. With
            none, the headers, centers or centers of mass are taken as they are, whichever fits best.
        masks: of the fixed and of the moving image, where to compare.
        turn_deg: also start from turns by this much and its multiples about every axis, as for a patient who lies the
            other way round; 45 or 60 are sensible.

    Raises: ValueError or GridMismatchError before any work; FloatingPointError if the similarity diverges.
    """
    if not 0 <= turn_deg <= 180:
        raise ValueError(f"turn_deg must be from 0 (no turns) to 180; got {turn_deg}.")
    if len(levels) != len(steps) or not levels:
        raise ValueError(f"levels and steps must be of one length; got {tuple(levels)} and {tuple(steps)}.")
    whole = checked_scene([Images(fixed, moving)], grid, moving_grid or grid, *masks)
    scene = whole.at(Level(min(levels)))
    quiet = replace(options or Options(), callback=None)  # a callback counts the steps of one descent, not of many
    search = _Search(scene, similarity, quiet)
    plan = [(factor / min(levels), count) for factor, count in zip(levels, steps, strict=True)]
    shifts, turns = ([m for m in of if search.sees(m)] for of in (_shifts(scene), _turned(scene, turn_deg)))
    if not shifts:
        raise ValueError("the masks leave nothing to compare, wherever the images' centers meet; widen them.")
    if not models:
        return Translation(grid, matrix=min(shifts, key=search.score))
    chosen = search.chosen(shifts, turns, grid, models, plan[0])
    if plan[1:]:
        chosen = search.step(chosen, models[-1], plan[1:])
    if refine is not None:
        chosen = _Search(scene, refine, quiet).step(chosen, models[-1], plan[-1:])
    return chosen


class _Reached(NamedTuple):
    """Where a group of starts led, its score, and the worst score among them."""

    linear: Linear
    score: float
    worst: float


class _Search:
    """Scores and follows world matrices on one coarse scene."""

    def __init__(self, scene: Scene, similarity: Loss, options: Options) -> None:
        self.scene, self.similarity, self.options = scene, similarity, options
        self.judged = scene.at(Level(max(1.0, max(scene.grid.shape) / JUDGED)))

    @torch.no_grad()
    def score(self, matrix: Tensor) -> float:
        """The similarity under a matrix, on coarse images; what lies beyond the moving image counts as 0."""
        (images,) = self.judged.images
        warped = field.warp(images.moving, self._ddf(matrix, self.judged), padding="zeros", **self.judged.grids)
        return float(self.similarity(warped, images.fixed))

    def sees(self, matrix: Tensor) -> bool:
        """Whether any voxel would be compared."""
        mask = replace(self.judged, crop=True).mask(self._ddf(matrix, self.judged))
        return mask is not None and bool((mask > FAINT).any())

    def _ddf(self, matrix: Tensor, scene: Scene) -> Tensor:
        (images,) = scene.images
        return field.affine_ddf(matrix, scene.grid, dtype=images.fixed.dtype).to(images.fixed.device)

    @torch.no_grad()
    def compared(self, matrix: Tensor, factor: float) -> tuple[float, float]:
        """The similarity as `register` sees it, where both images are, and the share of the fixed grid that this is."""
        scene = self.scene.at(Level(factor))
        return scene.compared(self._ddf(matrix, scene), self.similarity)

    def chosen(
        self,
        shifts: Sequence[Tensor],
        turns: Sequence[Tensor],
        grid: Grid,
        models: Sequence[type[Linear]],
        at: tuple[float, int],
    ) -> Linear:
        """Where the shifts lead, unless a turn leads to a clearly better place."""
        straight = self.furthest(shifts, grid, models, at)
        if not turns:
            return straight.linear
        turned = self.furthest(turns, grid, models, at, known=straight)
        clearly = CLEARLY * (max(straight.worst, turned.worst) - straight.score)
        return turned.linear if turned.score < straight.score - clearly else straight.linear

    def furthest(
        self,
        matrices: Sequence[Tensor],
        grid: Grid,
        models: Sequence[type[Linear]],
        at: tuple[float, int],
        known: _Reached | None = None,
    ) -> _Reached:
        """Every model in turn, from the best of the matrices and of where the first model leads from them.

        That best is left as it is if it came to the place that is `known`, or is so much worse that it is hopeless.
        """
        ranked = sorted((self.score(matrix), k) for k, matrix in enumerate(matrices))
        near: list[Tensor] = []
        for _, k in ranked[:TRIED]:
            if not any(torch.equal(matrices[k], other) for other in near):
                near.append(matrices[k])
        led = [*near, *(self.follow(matrix, models[0], [(at[0], at[1] // 2)]) for matrix in near)]
        score, best = min(((self.score(matrix), k) for k, matrix in enumerate(led)))
        linear: Linear = Translation(grid, matrix=led[best])
        worst = ranked[-1][0]
        if known is not None:
            hopeless = score > known.score + CLEARLY * (max(known.worst, worst) - known.score)
            if hopeless or _apart(linear, known.linear) < SAME:
                return _Reached(linear, score, worst)
        for model in models:
            linear = self.step(linear, model, [at])
        return _Reached(linear, self.score(linear.matrix().detach().cpu()), worst)

    def step(self, linear: Linear, model: type[Linear], plan: Sequence[tuple[float, int]]) -> Linear:
        """The model fitted from a linear map, or that map if the images are less alike after it, or one collapses."""
        start = linear.matrix().detach().cpu()
        reached = self.follow(start, model, plan)
        growth = float(torch.linalg.det(reached[:-1, :-1]) / torch.linalg.det(start[:-1, :-1]))
        (before, seen), (after, still_seen) = (self.compared(matrix, plan[-1][0]) for matrix in (start, reached))
        plausible = 1 / LARGEST_GROWTH < growth < LARGEST_GROWTH and still_seen > seen / 2
        return model(linear.grid, matrix=reached) if plausible and after <= before else linear

    def follow(self, matrix: Tensor, model: type[Linear], plan: Sequence[tuple[float, int]]) -> Tensor:
        """Where a model descends to from a matrix."""
        scene, (images,) = self.scene, self.scene.images
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a start that loses sight of the image is one that failed
            found = register(
                images.fixed,
                images.moving,
                model(scene.grid, matrix=matrix),
                similarity=self.similarity,
                levels=[factor for factor, _ in plan],
                steps=[count for _, count in plan],
                moving_grid=scene.moving_grid,
                fixed_mask=scene.fixed_mask,
                moving_mask=scene.moving_mask,
                options=self.options,
            )
        if found.interrupted:
            raise KeyboardInterrupt  # there is no best of a search that has not ended
        assert isinstance(found.transform, Linear)
        return found.transform.matrix().detach().cpu()


@torch.no_grad()
def _apart(a: Linear, b: Linear) -> float:
    """How far two maps on one grid lead its corners apart, on average, as a share of its diagonal."""
    first, second = (linear.points(linear.grid.corners()[None]) for linear in (a, b))
    return float((first - second).norm(dim=-1).mean()) / math.hypot(*a.grid.extent)


def _shifts(scene: Scene) -> list[Tensor]:
    """World matrices to begin from: headers alone, centers of the grids, centers of mass."""
    (images,) = scene.images
    headers = torch.eye(scene.grid.dim + 1, dtype=torch.float64)
    centers = headers.clone()
    centers[:-1, -1] = torch.tensor(scene.moving_grid.center) - torch.tensor(scene.grid.center)
    moments = align_moments(images.fixed, images.moving, fixed_grid=scene.grid, moving_grid=scene.moving_grid)
    return [headers, centers, moments]


def _turned(scene: Scene, turn_deg: float) -> list[Tensor]:
    """About the centers of mass: principal axes on each other, and turns by multiples of an angle."""
    (images,) = scene.images
    fixed_mean, fixed_axes = _moments(images.fixed, scene.grid)
    moving_mean, moving_axes = _moments(images.moving, scene.moving_grid)
    linears = [*_laid_on(fixed_axes, moving_axes), *_turns(turn_deg, scene.grid.dim)]
    return [_about(linear, fixed_mean, moving_mean) for linear in linears]


def _laid_on(fixed_axes: Tensor, moving_axes: Tensor) -> list[Tensor]:
    """Every rotation that takes principal axes to principal axes: they have no direction, so there are several."""
    d = len(fixed_axes)
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * d)
    turns = [moving_axes @ torch.diag(sign) @ fixed_axes.T for sign in signs]
    return [turn for turn in turns if torch.linalg.det(turn) > 0]


def _turns(turn_deg: float, d: int) -> list[Tensor]:
    """Rotations by multiples of an angle, about one axis in 2-D and about all three in 3-D."""
    if turn_deg == 0:
        return []
    angles = [math.radians(turn_deg * k) for k in range(round(360 / turn_deg))]
    if d == 2:
        return [_plane_turn(a, 0, 1, 2) for a in angles]
    tilts = [a for a in angles if math.cos(a) > -1e-6]
    return [
        _plane_turn(a, 0, 1, 3) @ _plane_turn(b, 0, 2, 3) @ _plane_turn(c, 1, 2, 3)
        for a, b, c in product(angles, tilts, angles)
    ]


def _plane_turn(angle_rad: float, i: int, j: int, d: int) -> Tensor:
    turn = torch.eye(d, dtype=torch.float64)
    turn[i, i] = turn[j, j] = math.cos(angle_rad)
    turn[i, j], turn[j, i] = -math.sin(angle_rad), math.sin(angle_rad)
    return turn


def _about(linear: Tensor, fixed_mean: Tensor, moving_mean: Tensor) -> Tensor:
    """The world matrix with this linear part that takes one point to the other."""
    matrix = torch.eye(len(linear) + 1, dtype=torch.float64)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = moving_mean - linear @ fixed_mean
    return matrix


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
    linear = torch.eye(fixed_grid.dim, dtype=torch.float64)
    if rotate:
        linear = max(_laid_on(fixed_axes, moving_axes), key=lambda turn: float(turn.trace()))
    return _about(linear, fixed_mean, moving_mean)


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
