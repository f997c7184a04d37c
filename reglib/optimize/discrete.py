"""`coupled_convex`: every displacement of a coarse lattice is tried at once, then the choices are made to agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .. import field, filters
from ..grid import Grid, per_axis
from ..transforms import Affine, DenseDisplacement, Sequential, Transform
from .descent import Record, Registration
from .levels import Images, Level, Scene, checked_scene, shrink

COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the papers
HIDDEN = 0.03  # what a displacement out of the moving mask costs, from the best within it, 0, to their average, 1
CHUNK = 512  # control points whose costs are compared at once: they stay in the processor's cache


@dataclass(frozen=True)
class ConvexOptions:
    """How `coupled_convex` searches.

    Args:
        couplings: how firmly the choice at a point is tied to its neighbors', one round each, growing. In units of the
            costs' own spread, so that they serve features of any scale.
        consistency: iterations that make the maps of both directions each other's inverse; 0 searches one way only,
            in half the time, and folds sooner.
        factor: features are taken from both images coarsened by this factor.
        progress: show a progress bar over displacements.
    """

    couplings: Sequence[float] = COUPLINGS
    consistency: int = 5
    factor: float = 2.0
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.couplings or not min(self.couplings) > 0:
            raise ValueError(f"couplings must be one or more numbers above 0; got {tuple(self.couplings)}.")
        if self.consistency < 0 or not self.factor >= 1:
            raise ValueError(
                "consistency must be at least 0 iterations and factor at least 1; got "
                f"consistency={self.consistency}, factor={self.factor}."
            )


class CostVolume(NamedTuple):
    """What each displacement costs at each control point.

    Attributes:
        costs: (b, n, *control).
        displacements: (n, d) whole steps of the control lattice, the last axis changing fastest.
    """

    costs: Tensor
    displacements: Tensor


class _Seen(NamedTuple):
    """Features (b, k, *control) of one image, and how far its mask lets them count, (b, 1, *control)."""

    features: Tensor
    mask: Tensor | None

    def of(self, k: int) -> _Seen:
        """Those of one image of the batch."""
        return _Seen(self.features[k : k + 1], None if self.mask is None else self.mask[k : k + 1])


@torch.no_grad()
def coupled_convex(
    fixed: Float[Tensor, "b c *s"],
    moving: Float[Tensor, "b c *t"],
    grid: Grid,
    *,
    features: Callable[[Tensor], Tensor],
    stride: float | Sequence[float] = 4,
    radius: int | Sequence[int] = 4,
    moving_grid: Grid | None = None,
    fixed_mask: Shaped[Tensor, "b 1 *s"] | None = None,
    moving_mask: Shaped[Tensor, "b 1 *t"] | None = None,
    start: Transform | None = None,
    options: ConvexOptions = ConvexOptions(),
) -> Registration:
    """Find large displacements by search:  minimize  sum_p cost(p, v_p) + coupling |v_p - u_p|^2, u smooth.

    The cost is the squared difference of features. In turn each point p takes the best of all its displacements v_p,
    and u becomes the average of v over neighbors, while the coupling grows until both agree. Nothing is descended, so
    no wrong match nearby is an obstacle; what is left of the motion, `register` finds from `result.transform`.

    Args:
        fixed: on `grid`.   moving: on `moving_grid`, or on the same grid; it is seen within the fixed grid.
        features: gives (b, k, *s) for an image (b, c, *s), such as `losses.mind_features`; an image is its own feature
            with `lambda image: image`.
        stride: distance of control points, voxels of the fixed grid; rounded so that both ends have one.
        radius: how far to search, control points each way; memory grows with (2 radius + 1)^d / stride^d.
        fixed_mask, moving_mask: where to compare, values 0 to 1. What leads out of the moving one costs a
            little more than the best within; what lies outside the fixed one follows its neighbors.
        start: a map, normally linear, that is applied once before the search and kept as it is.

    Returns: a `DenseDisplacement` on the fixed grid, after `start` if given. The history has one record a coupling;
        its loss, similarity + coupling * regularizer, is in units of the costs' spread.

    Raises: ValueError or GridMismatchError before any work for bad input.

    Source: Heinrich et al. 2014, doi:10.1007/978-3-319-08554-8_6; Siebert et al. 2022,
        doi:10.1007/978-3-030-97281-3_25.
    Differs: minima lie between control points, by a parabola along each axis; the first round is coupled too, to no
        motion, so that points without contrast stay; couplings are relative to the costs.
    """
    radii = _checked_search(stride, radius, grid.dim)
    scene = checked_scene([Images(fixed, moving)], grid, moving_grid or grid, fixed_mask, moving_mask)
    frozen = None if start is None else start.at(grid).freeze()
    if frozen is not None or scene.moving_grid != grid:
        scene = scene.warped_once(frozen or Affine(grid), "cubic" if options.factor <= 1 else "bilinear")
    seen = _both_seen(scene.at(Level(options.factor)), features, _control(grid.shape, stride))
    found, history = _search_batch(*seen, radii, options)
    transform: Transform = DenseDisplacement(grid)
    transform = transform.with_values(displacement=field.resize_ddf(found, grid.shape))._own(like=transform)
    if frozen is not None:
        transform = Sequential(frozen, transform)
    ddf = transform.ddf(grid).clone()
    warped = field.warp(moving, ddf, padding="zeros", moving_grid=moving_grid or grid, fixed_grid=grid)
    return Registration(transform, ddf, warped, history)


@torch.no_grad()
def cost_volume(
    fixed_features: Float[Tensor, "b k *s"],
    moving_features: Float[Tensor, "b k *s"],
    *,
    stride: float | Sequence[float] = 4,
    radius: int | Sequence[int] = 4,
    fixed_mask: Shaped[Tensor, "b 1 *s"] | None = None,
    moving_mask: Shaped[Tensor, "b 1 *s"] | None = None,
) -> CostVolume:
    """What each displacement d costs at each control point p:  sum_k (F_k(p) - M_k(p + d))^2.

    Args: as for `coupled_convex`; both images' features on one grid, which are first coarsened to the control lattice.

    Beyond its border the moving image is repeated. The step of the lattice is (n - 1) / (m - 1) voxels for m control
    points along n voxels.
    """
    shape = fixed_features.shape
    for values, name in (
        (moving_features, "moving_features"),
        (fixed_mask, "fixed_mask"),
        (moving_mask, "moving_mask"),
    ):
        expected = shape if values is moving_features else (shape[0], 1, *shape[2:])
        if values is not None and values.shape != expected:
            raise ValueError(
                f"{name} must be {tuple(expected)}, on the grid of fixed_features; got {tuple(values.shape)}."
            )
    radii = _checked_search(stride, radius, fixed_features.ndim - 2)
    control = _control(shape[2:], stride)
    a, b = (
        _coarse(values, mask, control)
        for values, mask in ((fixed_features, fixed_mask), (moving_features, moving_mask))
    )
    return CostVolume(_costs(a, b, radii, tqdm(disable=True)), _table(radii).to(fixed_features.device))


# -- features on the control lattice --------------------------------------------------------------------------------
def _checked_search(stride: float | Sequence[float], radius: int | Sequence[int], d: int) -> tuple[int, ...]:
    """One radius an axis, or one sentence."""
    strides, radii = per_axis(stride, d, "stride"), per_axis(radius, d, "radius")
    if not min(strides) >= 1:
        raise ValueError(f"stride must be at least 1 voxel; got {stride}.")
    if not min(radii) >= 1 or any(r != int(r) for r in radii):
        raise ValueError(f"radius must be a whole number of control points of at least 1; got {radius}.")
    return tuple(int(r) for r in radii)


def _control(shape: Sequence[int], stride: float | Sequence[float]) -> tuple[int, ...]:
    """How many control points along each axis."""
    return Grid(shape).downsample(stride, min_size=2).shape


def _both_seen(scene: Scene, features: Callable[[Tensor], Tensor], control: Sequence[int]) -> tuple[_Seen, _Seen]:
    """Both images' features, one after the other: at full resolution they are the largest tensors here."""
    (images,) = scene.images
    fixed = _coarse(_checked_features(features, images.fixed, "fixed"), scene.fixed_mask, control)
    moving = _coarse(_checked_features(features, images.moving, "moving"), scene.moving_mask, control)
    if fixed.features.shape != moving.features.shape:
        raise ValueError(
            f"features must be as many for both images; got {fixed.features.shape[1]} for fixed and "
            f"{moving.features.shape[1]} for moving. Have both images the same channels?"
        )
    return fixed, moving


def _checked_features(features: Callable[[Tensor], Tensor], image: Tensor, name: str) -> Tensor:
    values = features(image)
    if values.ndim != image.ndim or len(values) != len(image) or values.shape[2:] != image.shape[2:]:
        raise ValueError(
            f"features must give (b, k, *s) for an image (b, c, *s); got {tuple(values.shape)} for the {name} image "
            f"{tuple(image.shape)}."
        )
    if not bool(values.isfinite().all()):
        raise ValueError(f"features must be finite; those of the {name} image hold NaN or infinity.")
    return values


def _coarse(values: Tensor, mask: Tensor | None, control: Sequence[int]) -> _Seen:
    grid = Grid(control)
    weight = None if mask is None else mask.to(values.dtype)
    return _Seen(shrink(values, weight, grid), None if weight is None else shrink(weight, None, grid))


# -- the costs of all displacements ---------------------------------------------------------------------------------
def _costs(fixed: _Seen, moving: _Seen, radii: Sequence[int], bar: tqdm) -> Tensor:
    """(b, n, *control), one displacement after another, each a shifted view of the moving features."""
    a, shape = fixed.features, fixed.features.shape[2:]
    costs = a.new_empty(len(a), math.prod(2 * r + 1 for r in radii), *shape)
    difference = torch.empty_like(a)
    for k, shifted in enumerate(_shifts(moving.features, radii)):
        torch.sub(a, shifted, out=difference)
        torch.sum(difference.square_(), 1, out=costs[:, k])
        bar.update()
    if moving.mask is not None:
        _discount(costs, moving.mask, radii)
    return costs if fixed.mask is None else costs.mul_(fixed.mask)


def _shifts(image: Tensor, radii: Sequence[int]) -> Iterator[Tensor]:
    """image[p + d] for every displacement d, as views; the border repeats."""
    shape = image.shape[2:]
    for axis, (n, r) in enumerate(zip(shape, radii, strict=True), start=2):
        image = image.index_select(axis, torch.arange(-r, n + r, device=image.device).clamp_(0, n - 1))
    for first in product(*[range(2 * r + 1) for r in radii]):
        yield image[(slice(None), slice(None), *[slice(k, k + n) for k, n in zip(first, shape, strict=True)])]


def _table(radii: Sequence[int]) -> Tensor:
    """(n, d) every displacement, in the order of `_shifts`."""
    return torch.tensor(list(product(*[range(-r, r + 1) for r in radii])))


def _discount(costs: Tensor, mask: Tensor, radii: Sequence[int]) -> None:
    """Let a displacement that leads out of the mask cost, in place, a little more than the best within it.

    Were it average, points whose match is hidden would flee to wrong matches; so it is the neighbors who decide.
    """
    total, count = torch.zeros_like(costs[:, 0]), torch.zeros_like(costs[:, 0])
    least = torch.full_like(total, math.inf)
    for k, weight in enumerate(_shifts(mask, radii)):
        total.addcmul_(costs[:, k], weight[:, 0])
        count.add_(weight[:, 0])
        torch.minimum(least, torch.where(weight[:, 0] > 0.5, costs[:, k], math.inf), out=least)
    mean = total.div_(count.clamp_(min=1e-6))
    hidden = torch.where(least.isfinite(), torch.lerp(least, mean, HIDDEN), mean)
    for k, weight in enumerate(_shifts(mask, radii)):
        torch.lerp(hidden, costs[:, k], weight[:, 0], out=costs[:, k])


# -- the choice among them ------------------------------------------------------------------------------------------
def _search_batch(
    fixed: _Seen, moving: _Seen, radii: Sequence[int], options: ConvexOptions
) -> tuple[Tensor, list[Record]]:
    """The fields (b, d, *control) of all pairs, one after the other to save memory, and the mean of their records."""
    fields, histories = [], []
    batch, directions = len(fixed.features), 2 if options.consistency else 1
    total = batch * directions * math.prod(2 * r + 1 for r in radii)
    with tqdm(total=total, desc="coupled_convex", disable=not options.progress, leave=False) as bar:
        for k in range(batch):
            u, records = _search(fixed.of(k), moving.of(k), radii, options.couplings, bar)
            if options.consistency:
                back, _ = _search(moving.of(k), fixed.of(k), radii, options.couplings, bar)
                u = _consistent(u, back, options.consistency)
            fields.append(u)
            histories.append(records)
    mean = [{name: sum(r[name] for r in twins) / batch for name in twins[0]} for twins in zip(*histories, strict=True)]
    return torch.cat(fields), mean


def _search(
    fixed: _Seen, moving: _Seen, radii: Sequence[int], couplings: Sequence[float], bar: tqdm
) -> tuple[Tensor, list[Record]]:
    """The smooth field (1, d, *control) of one pair, steps of the lattice, and a record a coupling."""
    costs = _costs(fixed, moving, radii, bar)
    spread = float((costs.mean(1) - costs.amin(1)).mean())
    rounding = (32 * torch.finfo(costs.dtype).eps) ** 2 * float(fixed.features.square().sum(1).mean())
    if not spread > rounding:
        raise ValueError(
            "the features cost the same for every displacement, so there is nothing to choose. Do the images and masks "
            "overlap?"
        )
    costs.div_(spread if fixed.mask is None else spread / float(fixed.mask.mean()))
    smooth = costs.new_zeros(1, len(radii), *costs.shape[2:])
    votes = torch.ones_like(smooth[:, :1]) if fixed.mask is None else fixed.mask.clamp(min=1e-3)
    records = []
    for step, coupling in enumerate(couplings):
        chosen, cost = _choose(costs, smooth, coupling, radii)
        apart = float((chosen - smooth).square().sum(1).mean())
        records.append(
            {
                "step": float(step),
                "coupling": coupling,
                "loss": cost + coupling * apart,
                "similarity": cost,
                "regularizer": apart,
            }
        )
        smooth = filters.box(votes * chosen, window=3) / filters.box(votes, window=3)
    return smooth, records


def _choose(costs: Tensor, smooth: Tensor, coupling: float, radii: Sequence[int]) -> tuple[Tensor, float]:
    """The best displacement of each point under  cost + coupling |d - u|^2, and what it costs on average.

    Convention: |u|^2 is the same for all d and left out, so that one product with (-2 d, |d|^2) couples all of them.
    """
    table = _table(radii).to(costs)
    coupled = coupling * torch.cat([-2 * table, table.square().sum(1, keepdim=True)], 1)  # (n, d + 1)
    cost, u = costs[0].flatten(1), smooth[0].flatten(1)  # (n, p), (d, p)
    lines = torch.cat([u, torch.ones_like(u[:1])])
    best = torch.cat(
        [
            torch.addmm(cost[:, k : k + CHUNK], coupled, lines[:, k : k + CHUNK]).argmin(0)
            for k in range(0, cost.shape[1], CHUNK)
        ]
    )
    chosen = table[best].T + _between(cost, best, u - table[best].T, coupling, radii)
    return chosen.reshape(smooth.shape), float(cost.gather(0, best[None]).mean())


def _between(cost: Tensor, best: Tensor, pull: Tensor, coupling: float, radii: Sequence[int]) -> Tensor:
    """(d, p) how far the minimum lies from the best displacement: along each axis that of the parabola through it and
    its two neighbors, at most half a step; 0 at the end of the search range."""
    result = torch.zeros_like(pull)
    middle = cost.gather(0, best[None])[0]
    step = cost.shape[0]
    for k, r in enumerate(radii):
        step //= 2 * r + 1  # rows of the table from one displacement to the next along this axis
        place = best // step % (2 * r + 1)
        inside = (place > 0) & (place < 2 * r)
        low, high = (cost.gather(0, (best + side * step * inside)[None])[0] for side in (-1, 1))
        slope = (high - low) / 2 - 2 * coupling * pull[k]
        curvature = high + low - 2 * middle + 2 * coupling
        result[k] = torch.where(inside, -slope / curvature.clamp(min=1e-12), 0.0).clamp_(-0.5, 0.5)
    return result


def _consistent(u: Tensor, back: Tensor, iterations: int) -> Tensor:
    """The map u of both directions after each has given up half of what is left of the way there and back.

    Source: Siebert et al. 2022, doi:10.1007/978-3-030-97281-3_25:  u <- (u - back o u) / 2, and back alike, at once.
    """
    for _ in range(iterations):
        u, back = u - field.compose(back, u) / 2, back - field.compose(u, back) / 2
    return u
