"""`register`: pairwise registration by descent, coarse to fine, for every transform and differentiable objective."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .. import field, filters
from ..grid import Grid
from ..transforms import Dense, Diffeomorphism, Linear, Sequential, SymmetricDiffeomorphism, Transform
from .levels import Images, Level, Scene, checked_scene
from .objective import Landmarks, Objective, Term, Terms, as_terms, checked_landmarks
from .optimizers import ScaledAdam

Record = dict[str, float]
STEPS = (100, 50, 20)  # coarse to fine, where none are given


@dataclass(frozen=True)
class Options:
    """How `register` descends; the defaults serve brains and prostates alike.

    Args:
        lr: how far one step moves the image (root mean square), in voxels of the level, for every model.
        gradient_sigma: the gradient of a dense field is smoothed by this many voxels before each step; of two numbers,
            by the first at the first step of a level, falling to the second at the last: large parts move first.
        precondition: another smoothing of that gradient, such as `partial(filters.sobolev, alpha=2.0)`.
        decay: the share of `lr` that a level loses, evenly, from its first to its last step.
        tolerance: a level ends when `patience` steps lowered the loss by less than this share of it.
        oversampling: images are warped from copies that are so many times finer, made by cubic splines. Between the
            voxels of an image linear interpolation blurs, and a similarity takes blur for motion; 2 helps much.
        optimizer: makes one from `transform.parameter_groups(lr)`: `ScaledAdam`, `Momentum`, `Lbfgs`, or torch's own.
        callback: called after each step with its record and the transform; what it returns, if true, ends the level.
        progress: show a progress bar with the terms of the objective.
    """

    lr: float = 0.2
    gradient_sigma: float | tuple[float, float] = 1.5
    precondition: Callable[[Tensor], Tensor] | None = None
    decay: float = 0.0
    tolerance: float = 1e-4
    patience: int = 10
    oversampling: int = 1
    optimizer: Callable[[list[dict[str, Any]]], Any] = ScaledAdam
    callback: Callable[[Record, Transform], object] | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be from 0 (steps of one length) to 1; got {self.decay}.")
        if self.oversampling < 1:
            raise ValueError(f"oversampling must be a whole number of at least 1; got {self.oversampling}.")
        first, last = self.gradient_sigmas
        smooths = first == last >= 0 or min(first, last) > 0
        if not self.lr > 0 or not smooths or self.patience < 1:
            raise ValueError(
                "lr must be above 0, gradient_sigma at least 0 (two: above 0) and patience at least 1; got "
                f"lr={self.lr}, gradient_sigma={self.gradient_sigma}, patience={self.patience}."
            )

    @property
    def gradient_sigmas(self) -> tuple[float, float]:
        """Of the first and the last step of a level."""
        sigma = self.gradient_sigma
        return sigma if isinstance(sigma, tuple) else (sigma, sigma)


@dataclass(frozen=True)
class Registration:
    """What `register` found.

    Attributes:
        transform: the fitted model; a dense one keeps the grid of the last level, a `Diffeomorphism` has the fixed one.
        ddf: (b, d, *fixed) voxels of the fixed grid.
        warped: (b, c, *fixed), the moving image under the map; 0 outside its field of view.
        history: one record a step: level, step, loss, similarity (weighted sum), regularizer (before the common
            weight), landmarks if given, and each term by its name, unweighted, where there are several of a kind.
        interrupted: whether a keyboard interrupt ended it; everything else is then the best so far.
        left_out: factors of levels that lost sight of the moving image, and whose result is therefore not used.
    """

    transform: Transform
    ddf: Tensor
    warped: Tensor
    history: list[Record] = dataclass_field(default_factory=list)
    interrupted: bool = False
    left_out: list[float] = dataclass_field(default_factory=list)


def register(
    fixed: Float[Tensor, "b c *s"],
    moving: Float[Tensor, "b c *t"],
    transform: Transform,
    *,
    similarity: Terms,
    regularizer: Terms | None = None,
    weight: float = 1.0,
    levels: Sequence[float | Level] = (4, 2, 1),
    steps: Sequence[int] | None = None,
    moving_grid: Grid | None = None,
    fixed_mask: Shaped[Tensor, "b 1 *s"] | None = None,
    moving_mask: Shaped[Tensor, "b 1 *t"] | None = None,
    landmarks: Landmarks | None = None,
    options: Options = Options(),
) -> Registration:
    """Bend `moving` onto `fixed`: minimize  similarity(warped, fixed) + weight * regularizer(field).

    Args:
        fixed: on `transform.grid`.   moving: on `moving_grid`, or on the same grid.   A batch of pairs is registered at
            once by a dense model, each pair as it would be alone but for when a level ends.
        transform: the model to fit; it is not changed, the fitted copy is in the result. Frozen linear maps at the head
            of a Sequential are applied once, onto the fixed grid: what lies beyond it is then out of sight.
        similarity: a loss called as (warped, fixed), with `mask=` (b, 1, *s) where masks or the field of view cut; or a
            `Term` with its weight, or several.
        regularizer: a loss called as (field, spacing=mm) for each of `transform.deformations()`; or terms.
        levels: factors by which the grid is coarsened, in order, or `Level` records; coarse levels find large motion
            at small cost.
        steps: the most steps of each level; default 100, 50, 20 for three factors, the last of them for fewer.
        fixed_mask, moving_mask: where to compare, values 0 to 1; both must hold for a voxel to count.
        landmarks: points that belong together, as one more term.

    A keyboard interrupt ends it with the best state so far.

    Raises: ValueError or GridMismatchError before any work for bad input; FloatingPointError if the loss diverges.
    """
    plan = planned(levels, steps)
    terms = [as_terms(similarity if level.similarity is None else level.similarity) for level in plan]
    shared = Images(fixed, moving)
    pairs = [[_images(term, shared) for term in of_level] for of_level in terms]
    scene = checked_scene([*chain(*pairs)], transform.grid, moving_grid or transform.grid, fixed_mask, moving_mask)
    scene = replace(scene, oversampling=options.oversampling)
    landmarks = checked_landmarks(landmarks, fixed)
    if not any(p.requires_grad for p in transform.parameters()):
        raise ValueError("every parameter of the transform is frozen; there is nothing to optimize.")
    frozen, current = _split(_batched(transform, len(fixed)))
    seen = scene if frozen is None else warped_once(scene, frozen, plan)
    history: list[Record] = []
    left_out: list[float] = []
    start = current
    with tqdm(total=sum(x.steps for x in plan), desc="register", disable=not options.progress, leave=False) as bar:
        for k, level in enumerate(plan):
            first = sum(map(len, pairs[:k]))
            small = replace(seen, images=seen.images[first : first + len(pairs[k])]).at(level)
            if k > 0 and not _in_sight(current, small):
                current = start
                left_out.append(max(plan[k - 1].factors(1)))
            start = current = current.at(small.grid).to(fixed.device)
            with torch.no_grad():
                small = small.seen_by(current.ddf(small.grid))
            current = current.at(small.grid)
            objective = Objective(
                small,
                terms[k],
                as_terms(regularizer if level.regularizer is None else level.regularizer),
                weight if level.weight is None else level.weight,
                landmarks,
                frozen,
            )
            records, interrupted = _descend(current, objective, level, options, bar)
            history += records
            if interrupted:
                break
    with torch.no_grad():
        if not _in_sight(current, small):
            current = start
            left_out.append(max(level.factors(1)))
        current = mended(current, transform.grid)
        if frozen is not None:
            current = Sequential(*frozen, *(current if isinstance(current, Sequential) else [current]))
        ddf = current.ddf(transform.grid).clone()
        warped = field.warp(moving, ddf, padding="zeros", **scene.grids)
    return Registration(current, ddf, warped, history, interrupted, left_out)


@torch.no_grad()
def _in_sight(transform: Transform, scene: Scene) -> bool:
    """Whether under a fitted model anything is left to compare; if not, it warns."""
    if scene.overlaps(transform.to(scene.images[0].fixed.device).ddf(scene.grid)):
        return True
    warnings.warn(
        "a level of the registration lost sight of the moving image, and is left out; lower Options(lr=...), or begin "
        "with optimize.align.",
        RuntimeWarning,
        stacklevel=4,
    )
    return False


def planned(levels: Sequence[float | Level], steps: Sequence[int] | None) -> list[Level]:
    """Every level as a record."""
    plain = [level for level in levels if not isinstance(level, Level)]
    counts = list(STEPS[-len(plain) :] if steps is None and plain else steps or ())
    if not levels or len(counts) != len(plain):
        raise ValueError(
            f"levels and steps must be of one length, a Level counting as both; got {tuple(levels)} and {steps}."
        )
    return [level if isinstance(level, Level) else Level(level, counts.pop(0)) for level in levels]


def _images(term: Term, shared: Images) -> Images:
    """What a similarity compares: the pair, or images of its own."""
    if (term.fixed is None) != (term.moving is None):
        raise ValueError(f"give the term {term.name} both a fixed and a moving image of its own, or neither.")
    return shared if term.fixed is None or term.moving is None else Images(term.fixed, term.moving)


def _batched(transform: Transform, batch: int) -> Transform:
    """A model with parameters for each pair of a batch."""
    if batch == 1:
        return transform
    values = {}
    for name, parameter in transform.named_parameters():
        owner = transform.get_submodule(name.rpartition(".")[0])
        if getattr(owner, "batched", False):
            values[name] = parameter.detach().expand(batch, *parameter.shape[1:]).clone()
        elif parameter.requires_grad:
            raise ValueError(
                f"{type(owner).__name__} fits one pair at a time, and {batch} were given; loop over the pairs."
            )
    copied: Transform = transform.with_values(**values)._own(like=transform)
    return copied


def warped_once(scene: Scene, frozen: Transform, plan: Sequence[Level]) -> Scene:
    finest = min(min(level.factors(scene.grid.dim)) for level in plan)
    return scene.warped_once(frozen, "cubic" if finest <= 1 else "bilinear")


def _split(transform: Transform) -> tuple[Sequential | None, Transform]:
    """The frozen linear maps at the head of a sequence, which need to be applied only once, and the rest."""
    parts = list(transform) if type(transform) is Sequential else []
    head = 0
    while head < len(parts) - 1 and isinstance(parts[head], Linear) and not _is_trained(parts[head]):
        head += 1
    if head == 0:
        return None, transform
    frozen = Sequential(*(part.at(transform.grid) for part in parts[:head]))
    return frozen, parts[head] if head == len(parts) - 1 else Sequential(*parts[head:])


def _is_trained(transform: Transform) -> bool:
    return any(p.requires_grad for p in transform.parameters())


def mended(transform: Transform, grid: Grid) -> Transform:
    """Diffeomorphisms on the fixed grid, without the odd fold that interpolation left."""
    if isinstance(transform, Diffeomorphism | SymmetricDiffeomorphism):
        fine = _unfolded(transform).at(grid)  # most folds are mended where it is cheap
        assert isinstance(fine, Diffeomorphism | SymmetricDiffeomorphism)
        return _unfolded(fine)
    if type(transform) is Sequential:
        return Sequential(*(mended(part, grid) for part in transform))
    return transform


def _unfolded(transform: Diffeomorphism | SymmetricDiffeomorphism) -> Transform:
    for u in transform.parameters():
        u.copy_(field.unfold(u)[0])
    return transform


# -- one level ----------------------------------------------------------------------------------------------------
def _descend(
    transform: Transform, objective: Objective, level: Level, options: Options, bar: tqdm
) -> tuple[list[Record], bool]:
    """Optimize `transform` in place on one level, to the best state seen; returns its history, and if interrupted."""
    lr = options.lr if level.lr is None else level.lr
    optimizer = options.optimizer(transform.parameter_groups(lr))
    rates = [group["lr"] for group in optimizer.param_groups]
    state = _State(transform, max(level.factors(1)), lr)
    smooth = _smoothing(transform, options) if getattr(optimizer, "smooths", True) else lambda _: None

    def closure() -> float:
        optimizer.zero_grad()
        record = objective.descend(transform)
        state.note(record)
        smooth(state.step / max(level.steps - 1, 1))
        return record["loss"]

    try:
        for step in range(level.steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - options.decay * step / level.steps)
            state.begin(step)
            optimizer.step(closure)
            bar.update()
            bar.set_postfix(_shown(state.history[-1]), refresh=False)
            ends = options.callback is not None and options.callback(state.history[-1], transform)
            if ends or converged(state.history, options.patience, options.tolerance):
                bar.update(level.steps - step - 1)
                break
    except KeyboardInterrupt:
        return state.restored(), True
    return state.restored(), False


class _State:
    """The history of a level, and the best parameters seen."""

    def __init__(self, transform: Transform, factor: float, lr: float) -> None:
        self.factor, self.lr, self.step = factor, lr, 0
        self.history: list[Record] = []
        self._moving: list[Tensor] = [p for p in transform.parameters() if p.requires_grad]
        self._lowest = math.inf
        self._best: list[Tensor] = []

    def begin(self, step: int) -> None:
        self.step = step

    def note(self, record: Record) -> None:
        """Keep the record of the first evaluation of a step, and the state if it is the best; raise if it diverged."""
        where = f"at level {self.factor:g}, step {self.step}"
        if not math.isfinite(record["loss"]):
            raise FloatingPointError(
                f"the loss became {record['loss']} {where}; lower Options(lr={self.lr}) or raise the weight of the "
                "regularizer."
            )
        if record["loss"] < self._lowest:
            self._lowest = record["loss"]
            self._best = [p.detach().clone() for p in self._moving]
        for parameter in self._moving:
            if parameter.grad is not None and not bool(parameter.grad.sum().isfinite()):
                raise FloatingPointError(
                    f"the gradient became NaN or infinite {where}; does the loss divide by zero or take the root of "
                    "zero?"
                )
        if len(self.history) <= self.step:
            self.history.append({"level": self.factor, "step": float(self.step), **record})

    @torch.no_grad()
    def restored(self) -> list[Record]:
        """Put the best parameters back; returns the history."""
        for moved, value in zip(self._moving, self._best, strict=False):
            moved.copy_(value)
        return self.history


def _smoothing(transform: Transform, options: Options) -> Callable[[float], None]:
    """What smooths the gradients of dense fields in place, given the share of the level's steps that is done."""
    first, last = options.gradient_sigmas
    parameters = [p for m in transform.modules() if isinstance(m, Dense) for p in m.parameters()]

    def smoothed(gradient: Tensor, done: float) -> Tensor:
        if options.precondition is not None:
            return options.precondition(gradient)
        sigma = first if first == last else first * (last / first) ** done
        return filters.gaussian(gradient, sigma=sigma) if sigma > 0 else gradient

    def apply(done: float) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = smoothed(parameter.grad, done)

    return apply


def _shown(record: Record) -> dict[str, str]:
    """What the progress bar says."""
    return {name: f"{value:.4g}" for name, value in record.items() if name != "step"}


def converged(history: list[Record], patience: int, tolerance: float) -> bool:
    """Whether the mean loss of the last `patience` steps is hardly below that of the `patience` before."""
    n = patience
    if len(history) < 2 * n:
        return False
    losses = [record["loss"] for record in history]
    before, after = sum(losses[-2 * n : -n]) / n, sum(losses[-n:]) / n
    return before - after < tolerance * max(abs(before), 1e-12)
