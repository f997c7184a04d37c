"""`demons`: the gap between two images pushes each voxel along their slope, and the pushes are made smooth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .. import field, filters
from ..grid import Grid
from ..transforms import DenseDisplacement, Diffeomorphism, Sequential, Transform
from .descent import Record, Registration, converged, mended, planned, warped_once
from .levels import Images, Level, Scene, checked_scene

Forces = Literal["symmetric", "fixed", "moving"]
Update = Literal["diffeomorphic", "additive"]
Smoothing = float | Sequence[float] | Callable[[Tensor], Tensor]
FLAT = 1e-4  # share of the fixed image's range: slopes well below it, a voxel, are rounding and push nothing


@dataclass(frozen=True)
class DemonsOptions:
    """How `demons` pushes.

    Args:
        forces: along whose slope: of the mean of both images, of the fixed or of the warped moving image alone.
        max_step: no voxel is pushed further at once, in voxels of the level (of their mean size where axes differ).
        fluid_sigma: each push is smoothed by this many voxels, as a viscous fluid would; 0 leaves it as it is.
        tolerance: a level ends when `patience` steps lowered the loss by less than this share of it.
        callback: called after each step with its record and the field (b, d, *s) of the level; what it returns, if
            true, ends the level.
        progress: show a progress bar with the loss.
    """

    forces: Forces = "symmetric"
    max_step: float = 2.0
    fluid_sigma: float = 0.0
    tolerance: float = 1e-4
    patience: int = 10
    callback: Callable[[Record, Tensor], object] | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.forces not in get_args(Forces):
            raise ValueError(f'forces must be "symmetric", "fixed" or "moving"; got "{self.forces}".')
        if not self.max_step > 0 or not self.fluid_sigma >= 0 or self.patience < 1:
            raise ValueError(
                "max_step must be above 0 voxels, fluid_sigma at least 0 and patience at least 1; got "
                f"max_step={self.max_step}, fluid_sigma={self.fluid_sigma}, patience={self.patience}."
            )


@torch.no_grad()
def demons(
    fixed: Float[Tensor, "b c *s"],
    moving: Float[Tensor, "b c *t"],
    grid: Grid,
    *,
    update: Update = "diffeomorphic",
    smoothing: Smoothing = 1.5,
    levels: Sequence[float | Level] = (4, 2, 1),
    steps: Sequence[int] | None = None,
    moving_grid: Grid | None = None,
    fixed_mask: Shaped[Tensor, "b 1 *s"] | None = None,
    moving_mask: Shaped[Tensor, "b 1 *t"] | None = None,
    start: Transform | None = None,
    options: DemonsOptions = DemonsOptions(),
) -> Registration:
    """Push each voxel by  s = g J / (|J|^2 + g^2 / (4 L^2)),  g = fixed - warped, then smooth the field; repeat.

    J is the slope of the images and L the longest step. No objective is written down and nothing is differentiated
    but the images, so a step costs little. The gap g is taken at face value: the same tissue must have the same
    intensity in both images. Where it has not, normalize them first, or use `register` with `lncc_loss`.

    Args:
        fixed: on `grid`.   moving: on `moving_grid`, or on the same grid. A batch of pairs is registered at once, each
            pair as it would be alone but for when a level ends and how finely exp is taken.
        update: "diffeomorphic" composes, u <- compose(u, exp(s)), and does not fold; "additive" adds, u <- u + s.
        smoothing: of the whole field after each step, as of a spring: sigma of a gaussian, voxels of the level, one
            number or one an axis; or a function from field to field, such as `partial(graph_diffusion, fixed=fixed)`.
        levels: factors by which the grid is coarsened, in order, or `Level` records (factor, steps, smoothing_mm).
        steps: the most steps of each level; default 100, 50, 20 for three factors, the last of them for fewer.
        fixed_mask, moving_mask: where to push, values 0 to 1; elsewhere the field follows its surroundings.
        start: a map, normally linear, that is applied once before and kept as it is.

    Returns: a `Diffeomorphism` or, of additive steps, a `DenseDisplacement` on the fixed grid, after `start` if given.
        The loss in the history is the mean of g^2. A keyboard interrupt ends it with the best state so far.

    Raises: ValueError or GridMismatchError before any work for bad input; FloatingPointError if the field diverges.

    Source: Thirion 1998, doi:10.1016/S1361-8415(98)80022-4, forces "fixed"; Vercauteren et al. 2009,
        doi:10.1016/j.neuroimage.2008.10.040, the others and both updates.
    Differs: lengths are in mm, as multiples of the mean voxel; channels are summed; exp takes as many squarings as keep
        a step from folding, often none; a fold that smoothing or interpolation left is mended (`field.unfold`).
    """
    if update not in get_args(Update):
        raise ValueError(f'update must be "diffeomorphic" or "additive"; got "{update}".')
    plan, smooth = planned(levels, steps), _smoother(smoothing)
    scene = checked_scene([Images(fixed, moving)], grid, moving_grid or grid, fixed_mask, moving_mask)
    frozen = None if start is None else start.at(grid).freeze()
    seen = scene if frozen is None else warped_once(scene, frozen, plan)
    kind = torch.promote_types(fixed.dtype, torch.float32)
    u = field.identity_ddf(grid, batch=len(fixed), device=fixed.device, dtype=kind)
    history: list[Record] = []
    interrupted = False
    with tqdm(total=sum(x.steps for x in plan), desc="demons", disable=not options.progress, leave=False) as bar:
        for level in plan:
            small = seen.at(level)
            u = field.resize_ddf(u, small.grid.shape)
            push = _Push(small.seen_by(u), smooth, update, options)
            u, records, interrupted = _repeat(push, u, level, bar)
            history += records
            if interrupted:
                break
    model: Transform = Diffeomorphism(small.grid) if update == "diffeomorphic" else DenseDisplacement(small.grid)
    model = mended(model.with_values(displacement=u)._own(like=model), grid).at(grid)
    transform = model if frozen is None else Sequential(frozen, model)
    ddf = transform.ddf(grid).clone()
    warped = field.warp(moving, ddf, padding="zeros", **scene.grids)
    return Registration(transform, ddf, warped, history, interrupted)


def _smoother(smoothing: Smoothing) -> Callable[[Tensor], Tensor]:
    if callable(smoothing):
        return smoothing
    sigmas = [smoothing] if isinstance(smoothing, int | float) else list(smoothing)
    if not min(sigmas) >= 0:
        raise ValueError(
            f"smoothing must be a sigma of at least 0 voxels, or a function of the field; got {smoothing}."
        )
    return partial(filters.gaussian, sigma=smoothing) if max(sigmas) > 0 else lambda u: u


class _Push:
    """The forces and updates of one level."""

    def __init__(
        self, scene: Scene, smooth: Callable[[Tensor], Tensor], update: Update, options: DemonsOptions
    ) -> None:
        self.scene, self.smooth, self.update, self.options = scene, smooth, update, options
        (self.images,) = scene.images
        flat = self.images.fixed.flatten(1)
        span = (flat.amax(1) - flat.amin(1)).reshape(-1, *[1] * (self.images.fixed.ndim - 1))
        self.floor = (FLAT * span).square()
        size = scene.grid.spacing
        self.shares = [sum(s * s for s in size) / len(size) / each**2 for each in size]  # mm to voxels, twice

    def look(self, u: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """The warped image, where to compare, and the mean square of the gap there."""
        warped, mask = self.scene.warp(self.images, u), self.scene.mask(u)
        square = (self.images.fixed - warped).square_()
        if mask is None:
            return warped, None, float(square.mean())
        total = mask.expand(len(square), *mask.shape[1:]).sum() * square.shape[1]
        return warped, mask, float(square.mul_(mask).sum() / total.clamp(min=1e-6))

    def step(self, u: Tensor, warped: Tensor, mask: Tensor | None) -> Tensor:
        """The field after one push."""
        s = self.force(warped)
        if mask is not None:
            s.mul_(mask)
        if self.options.fluid_sigma > 0:
            s = filters.gaussian(s, sigma=self.options.fluid_sigma)
        if self.update == "additive":
            return self.smooth(s.add_(u))
        return self.smooth(field.compose(u, field.exponential(s, start="euler")))

    def force(self, warped: Tensor) -> Tensor:
        """(b, d, *s) voxels."""
        fixed, forces = self.images.fixed, self.options.forces
        gap = fixed - warped
        image = fixed if forces == "fixed" else warped if forces == "moving" else torch.add(fixed, warped).div_(2)
        total = gap.square().sum(1, keepdim=True).div_(4 * self.options.max_step**2).add_(self.floor)
        s = gap.new_empty(len(gap), gap.ndim - 2, *gap.shape[2:])
        for k, share in enumerate(self.shares):
            slope = filters.finite_difference(image, k + 2)
            torch.sum(slope * gap, 1, out=s[:, k]).mul_(share)
            total.add_(slope.square_().sum(1, keepdim=True), alpha=share)
        return s.div_(total)


def _repeat(push: _Push, u: Tensor, level: Level, bar: tqdm) -> tuple[Tensor, list[Record], bool]:
    """Push until nothing is gained; returns the best field, the records, and whether it was interrupted."""
    best, lowest, history = u, math.inf, list[Record]()
    options, factor = push.options, max(level.factors(1))
    try:
        for step in range(level.steps + 1):
            warped, mask, loss = push.look(u)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss became {loss} at level {factor:g}, step {step}; lower DemonsOptions(max_step="
                    f"{options.max_step}) or raise smoothing."
                )
            if loss < lowest:
                best, lowest = u, loss
            if step == level.steps:
                break
            history.append({"level": factor, "step": float(step), "loss": loss, "similarity": loss})
            bar.update()
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            ends = options.callback is not None and options.callback(history[-1], u)
            if ends or converged(history, options.patience, options.tolerance):
                bar.update(level.steps - step - 1)
                break
            u = push.step(u, warped, mask)
    except KeyboardInterrupt:
        return best, history, True
    return best, history, False


def graph_diffusion(
    ddf: Float[Tensor, "b d *s"],
    fixed: Float[Tensor, "#b c *t"],
    *,
    sigma: float = 1.5,
    contrast: float = 0.1,
) -> Float[Tensor, "b d *s"]:
    """A field smoothed within regions of an image, and little across its edges: organs may slide on each other.

    Heat flows between neighboring voxels with the conductance  exp(-|I_p - I_q| / (contrast * range of I)).

    Args:
        fixed: the image whose edges hold the flow back; it is coarsened to the field's shape where that is smaller.
        sigma: in an even region, as wide as a gaussian of so many voxels.
        contrast: the difference, as a share of the image's range, at which the flow falls to 1 / e.

    Source: Sandkuehler et al. 2018, arXiv:1806.09907, AirLab's graph diffusion.
    Differs: explicit steps along each axis in turn, each stable by itself, in place of a Krylov exponential; 3-D too.
    """
    if not sigma >= 0 or not contrast > 0:
        raise ValueError(
            f"sigma must be at least 0 voxels and contrast above 0; got sigma={sigma}, contrast={contrast}."
        )
    if tuple(fixed.shape[2:]) != tuple(ddf.shape[2:]):
        fixed = filters.downsample(fixed, ddf.shape[2:])
    flat = fixed.flatten(1)
    reach = (flat.amax(1) - flat.amin(1)).mul(contrast).clamp(min=1e-30).reshape(-1, *[1] * (fixed.ndim - 1))
    steps = max(1, math.ceil(2 * sigma**2))  # heat of time t is a gaussian of variance 2 t; steps of 1/4 do not swing
    edges = []
    for axis in range(2, ddf.ndim):
        gap = fixed.diff(dim=axis).square_().sum(1, keepdim=True).sqrt_()
        edges.append(gap.div_(-reach).exp_().mul_(sigma**2 / 2 / steps))
    result = ddf.clone()
    for _ in range(steps):
        for axis, conductance in enumerate(edges, start=2):
            flow = result.diff(dim=axis).mul_(conductance)
            result.narrow(axis, 0, result.shape[axis] - 1).add_(flow)
            result.narrow(axis, 1, result.shape[axis] - 1).sub_(flow)
    return result
