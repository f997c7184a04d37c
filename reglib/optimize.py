"""Pairwise registration by optimization, coarse to fine, for every transform and every differentiable objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from . import field, filters
from .grid import Grid, apply_affine, require_on_grid
from .transforms import Dense, Diffeomorphism, Linear, Sequential, Transform

Loss = Callable[..., Tensor]
WHOLE = 0.99  # share of the fixed grid from which on the moving image counts as seen everywhere
SMALLEST_LEVEL = 8  # voxels along an axis that a level never goes below


@dataclass(frozen=True)
class Options:
    """How `register` descends; the defaults serve brains and prostates alike.

    Args:
        lr: how far one step moves the image (root mean square), in voxels of the level, for every model.
        gradient_sigma: the gradient of a dense field is smoothed by this many voxels before each step.
        decay: the share of `lr` that a level loses, evenly, from its first to its last step.
        tolerance: a level ends when `patience` steps lowered the loss by less than this share of it.
        progress: show a progress bar with the terms of the objective.
    """

    lr: float = 0.2
    gradient_sigma: float = 1.5
    decay: float = 0.0
    tolerance: float = 1e-4
    patience: int = 10
    progress: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be from 0 (steps of one length) to 1; got {self.decay}.")


@dataclass(frozen=True)
class Registration:
    """What `register` found.

    Attributes:
        transform: the fitted model; a dense one keeps the grid of the last level, a `Diffeomorphism` has the fixed one.
        ddf: (1, d, *fixed) voxels of the fixed grid.
        warped: (1, c, *fixed), the moving image under the map; 0 outside its field of view.
        history: one record a step: level, step, loss, similarity, regularizer (unweighted).
    """

    transform: Transform
    ddf: Tensor
    warped: Tensor
    history: list[dict[str, float]] = dataclass_field(default_factory=list)


@dataclass(frozen=True)
class _Level:
    """Everything one level needs, made once."""

    factor: float
    grid: Grid
    fixed: Tensor
    moving: Tensor
    moving_grid: Grid
    fixed_mask: Tensor | None
    moving_mask: Tensor | None


def register(
    fixed: Float[Tensor, "1 c *s"],
    moving: Float[Tensor, "1 c *t"],
    transform: Transform,
    *,
    similarity: Loss,
    regularizer: Loss | None = None,
    weight: float = 1.0,
    levels: Sequence[float] = (4, 2, 1),
    steps: Sequence[int] = (100, 50, 20),
    moving_grid: Grid | None = None,
    fixed_mask: Shaped[Tensor, "1 1 *s"] | None = None,
    moving_mask: Shaped[Tensor, "1 1 *t"] | None = None,
    options: Options = Options(),
) -> Registration:
    """Bend `moving` onto `fixed`: minimize  similarity(warped, fixed) + weight * regularizer(field).

    Args:
        fixed: on `transform.grid`.   moving: on `moving_grid`, or on the same grid.
        transform: the model to fit; it is not changed, the fitted copy is in the result. Frozen linear maps at the head
            of a Sequential are applied once, onto the fixed grid: what lies beyond it is then out of sight.
        similarity: called as (warped, fixed), with `mask=` (b, 1, *s) where masks or the field of view cut.
        regularizer: called as (field, spacing=mm) for each of `transform.deformations()`.
        levels: factors by which the grid is coarsened, in order; coarse levels find large motion at small cost.
        steps: the most steps of each level.
        fixed_mask, moving_mask: where to compare, values 0 to 1; both must hold for a voxel to count.

    Raises: ValueError or GridMismatchError before any work for bad input; FloatingPointError if the loss diverges.
    """
    moving_grid = moving_grid or transform.grid
    _check_inputs(fixed, moving, transform, moving_grid, fixed_mask, moving_mask)
    if len(levels) != len(steps) or not levels:
        raise ValueError(f"levels and steps must be of one length; got {tuple(levels)} and {tuple(steps)}.")
    if not any(p.requires_grad for p in transform.parameters()):
        raise ValueError("every parameter of the transform is frozen; there is nothing to optimize.")
    frozen, current = _split(transform)
    images, masks, source = (fixed, moving), (fixed_mask, moving_mask), moving_grid
    if frozen is not None:
        mode: field.Mode = "cubic" if min(levels) <= 1 else "bilinear"
        images, masks = _warp_once(frozen, fixed, moving, fixed_mask, moving_mask, moving_grid, mode)
        source = transform.grid
    history: list[dict[str, float]] = []
    with tqdm(total=sum(steps), desc="register", disable=not options.progress, leave=False) as bar:
        for factor, count in zip(levels, steps, strict=True):
            level = _prepare(factor, transform.grid, *images, source, *masks)
            current = current.at(level.grid).to(fixed.device)
            history += _descend(current, level, count, similarity, regularizer, weight, options, bar)
    with torch.no_grad():
        current = _mended(current, transform.grid)
        if frozen is not None:
            current = Sequential(*frozen, *(current if isinstance(current, Sequential) else [current]))
        ddf = current.ddf(transform.grid).clone()
        warped = field.warp(moving, ddf, padding="zeros", moving_grid=moving_grid, fixed_grid=transform.grid)
    return Registration(current, ddf, warped, history)


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


@torch.no_grad()
def _warp_once(
    frozen: Transform,
    fixed: Tensor,
    moving: Tensor,
    fixed_mask: Tensor | None,
    moving_mask: Tensor | None,
    moving_grid: Grid,
    mode: field.Mode,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """The moving image and its mask on the fixed grid; where it was not seen, the mask says so.

    A level of full resolution needs it read by cubic splines: it is read again there, and linear twice would blur.
    """
    ddf = frozen.to(fixed.device).ddf().to(fixed.dtype)
    grids: field.Grids = {"moving_grid": moving_grid, "fixed_grid": frozen.grid}
    seen = field.valid_mask(ddf, **grids).to(fixed.dtype)
    if moving_mask is not None:
        seen = seen * field.warp(moving_mask.to(fixed.dtype), ddf, padding="zeros", **grids)
    whole = moving_mask is None and float(seen.mean()) >= WHOLE
    warped = field.warp(moving, ddf, mode=mode, **grids).clamp_(float(moving.min()), float(moving.max()))
    return (fixed, warped), (fixed_mask, None if whole else seen)


def _mended(transform: Transform, grid: Grid) -> Transform:
    """Diffeomorphisms on the fixed grid, without the odd fold that interpolation left."""
    if isinstance(transform, Diffeomorphism):
        transform.displacement.copy_(field.unfold(transform.displacement)[0])  # most folds, where it is cheap
        fine = transform.at(grid)
        assert isinstance(fine, Diffeomorphism)
        fine.displacement.copy_(field.unfold(fine.displacement)[0])
        return fine
    if type(transform) is Sequential:
        return Sequential(*(_mended(part, grid) for part in transform))
    return transform


def _prepare(
    factor: float,
    grid: Grid,
    fixed: Tensor,
    moving: Tensor,
    moving_grid: Grid,
    fixed_mask: Tensor | None,
    moving_mask: Tensor | None,
) -> _Level:
    """Both images and masks at one level: the moving image as coarse as the fixed one, on its own axes."""
    fixed_level = grid.downsample(factor, min_size=SMALLEST_LEVEL)
    coarsest = max(fixed_level.spacing) if factor > 1 else 0.0
    ratios = [max(1.0, coarsest / s) for s in moving_grid.spacing]
    same = moving_grid == grid
    moving_level = fixed_level if same else moving_grid.downsample(ratios, min_size=SMALLEST_LEVEL)

    fixed_small, fixed_mask = _shrink(fixed, fixed_mask, fixed_level)
    moving_small, moving_mask = _shrink(moving, moving_mask, moving_level)
    return _Level(factor, fixed_level, fixed_small, moving_small, moving_level, fixed_mask, moving_mask)


def _shrink(image: Tensor, mask: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Image and mask on a coarser grid; what the mask leaves out does not leak into its neighbors."""
    weight = None if mask is None else mask.to(image.dtype)
    if tuple(image.shape[2:]) == grid.shape:
        return image, weight
    if weight is None:
        return filters.downsample(image, grid.shape), None
    small = filters.downsample(weight, grid.shape)
    return filters.downsample(image * weight, grid.shape) / small.clamp(min=1e-6), small


def _descend(
    transform: Transform,
    level: _Level,
    count: int,
    similarity: Loss,
    regularizer: Loss | None,
    weight: float,
    options: Options,
    bar: tqdm,
) -> list[dict[str, float]]:
    """Optimize `transform` in place on one level, to the best state seen; returns its history."""
    history: list[dict[str, float]] = []
    optimizer = ScaledAdam(transform.parameter_groups(options.lr))
    rates = [group["lr"] for group in optimizer.param_groups]
    moving_parameters: list[Tensor] = [p for p in transform.parameters() if p.requires_grad]
    lowest, best = math.inf, _copy(moving_parameters)
    dense = [m for m in transform.modules() if isinstance(m, Dense)]
    with torch.no_grad():
        crop = bool(field.valid_mask(transform.ddf(level.grid), **_grids(level)).float().mean() < WHOLE)
    for step in range(count):
        optimizer.zero_grad()
        terms = _objective(transform, level, similarity, regularizer, crop)
        loss = terms["similarity"] + weight * terms["regularizer"]
        record = {name: float(term.detach()) for name, term in terms.items()}
        record = {"level": float(level.factor), "step": float(step), "loss": float(loss.detach()), **record}
        if not math.isfinite(record["loss"]):
            raise FloatingPointError(
                f"the loss became {record['loss']} at level {level.factor:g}, step {step}; "
                f"lower Options(lr={options.lr}) or raise the weight of the regularizer."
            )
        if record["loss"] < lowest:
            lowest, best = record["loss"], _copy(moving_parameters)
        loss.backward()
        _require_finite_gradient(moving_parameters, level.factor, step)
        _smooth_gradients(dense, options.gradient_sigma)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - options.decay * step / count)
        optimizer.step()
        history.append(record)
        bar.update()
        bar.set_postfix({"level": f"{level.factor:g}", "loss": f"{record['loss']:.4f}"}, refresh=False)
        if _converged(history, options):
            bar.update(count - step - 1)
            break
    with torch.no_grad():
        for moved, value in zip(moving_parameters, best, strict=True):
            moved.copy_(value)
    return history


def _smooth_gradients(models: list[Dense], sigma: float) -> None:
    """Smooth in place; of a model that is composed with its step, first take the gradient to that step.

    For u_new = compose(u, s) at s = 0:  dL/ds = (I + grad u)^T dL/du.
    """
    for model in models:
        for parameter in model.parameters():
            if parameter.grad is None:
                continue
            if isinstance(model, Diffeomorphism):
                columns = [filters.finite_difference(parameter.detach(), j + 2) for j in range(parameter.shape[1])]
                turned = [(column * parameter.grad).sum(1, keepdim=True) for column in columns]
                parameter.grad = parameter.grad + torch.cat(turned, dim=1)
            if sigma > 0:
                parameter.grad = filters.gaussian(parameter.grad, sigma=sigma)


def _copy(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _require_finite_gradient(parameters: list[Tensor], factor: float, step: int) -> None:
    for parameter in parameters:
        if parameter.grad is not None and not bool(parameter.grad.sum().isfinite()):
            raise FloatingPointError(
                f"the gradient became NaN or infinite at level {factor:g}, step {step}; does the loss divide by zero "
                "or take the root of zero?"
            )


class ScaledAdam:
    """Adam with one second moment for each tensor instead of one for each entry.

    A step keeps the shape of the smoothed gradient: Adam's own would move a voxel of empty background as far as an
    edge, which fills a field with noise. `lr` of a group is the root mean square of a steady step.

    A group with `compose` holds ddfs, which are composed with their step; no voxel of it moves by more than `FARTHEST`.

    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; a scalar scale as in Jena et al. 2024, arXiv:2404.01249.
    Differs: the scale is the gradient's root mean square over voxels, not its largest value.
    """

    FARTHEST = 0.5  # voxels

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        """Groups as for `torch.optim`, whose base class is left out because it takes more than a second to import."""
        self.param_groups = [{"betas": betas, "compose": False, **group} for group in groups]
        self._state: dict[Tensor, dict[str, Any]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step down."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        state = self._state.setdefault(parameter, {})
        if not state:
            state.update(count=0, momentum=torch.zeros_like(parameter), power=gradient.new_zeros(()))
        state["count"] += 1
        state["momentum"].lerp_(gradient, 1 - first)
        components = gradient.shape[1] if gradient.ndim > 1 else 1  # of a vector at each voxel
        state["power"].lerp_(components * gradient.square().mean(), 1 - second)
        scale = (state["power"] / (1 - second ** state["count"])).sqrt() * (1 - first ** state["count"])
        change = state["momentum"] * (-group["lr"] / scale.clamp(min=1e-30))
        if group["compose"]:
            change.div_((change.square().sum(1, keepdim=True) / self.FARTHEST**2).add_(1).sqrt_())
            parameter.copy_(field.compose(parameter, change))
        else:
            parameter.add_(change)


def _objective(
    transform: Transform, level: _Level, similarity: Loss, regularizer: Loss | None, crop: bool
) -> dict[str, Tensor]:
    ddf = transform.ddf(level.grid)
    grids = _grids(level)
    warped = field.warp(level.moving, ddf, **grids)
    mask = level.fixed_mask
    if level.moving_mask is not None or crop:
        inside = field.valid_mask(ddf.detach(), **grids).to(warped.dtype)
        if level.moving_mask is not None:
            inside = inside * field.warp(level.moving_mask, ddf.detach(), padding="zeros", **grids)
        mask = inside if mask is None else mask * inside
    masked = {} if mask is None else {"mask": mask}
    terms = {"similarity": similarity(warped, level.fixed, **masked), "regularizer": warped.new_zeros(())}
    if regularizer is not None:
        for deformation in transform.deformations():
            terms["regularizer"] = terms["regularizer"] + regularizer(deformation, spacing=level.grid.spacing)
    return terms


def _grids(level: _Level) -> field.Grids:
    return {"moving_grid": level.moving_grid, "fixed_grid": level.grid}


def _converged(history: list[dict[str, float]], options: Options) -> bool:
    """Whether the mean loss of the last `patience` steps is hardly below that of the `patience` before."""
    n = options.patience
    if len(history) < 2 * n:
        return False
    losses = [record["loss"] for record in history]
    before, after = sum(losses[-2 * n : -n]) / n, sum(losses[-n:]) / n
    return before - after < options.tolerance * max(abs(before), 1e-12)


def _check_inputs(
    fixed: Tensor,
    moving: Tensor,
    transform: Transform,
    moving_grid: Grid,
    fixed_mask: Tensor | None,
    moving_mask: Tensor | None,
) -> None:
    if moving_grid.dim != transform.grid.dim:
        raise ValueError(
            f"fixed and moving must have one dimension; fixed is {transform.grid.dim}-D, moving {moving_grid.dim}-D. "
            "Take a slice of the larger one."
        )
    for image, mask, grid, name in (
        (fixed, fixed_mask, transform.grid, "fixed"),
        (moving, moving_mask, moving_grid, "moving"),
    ):
        require_on_grid(image, grid, name)
        if not bool(image.isfinite().all()):
            raise ValueError(f"{name} must be finite; it holds NaN or infinity. Replace them, for example by 0.")
        if float(image.min()) == float(image.max()):
            raise ValueError(
                f"{name} is constant ({float(image.min()):g}); there is nothing to align. Is it the right file?"
            )
        if mask is not None:
            require_on_grid(mask, grid, f"{name}_mask")
            if not bool((mask > 0).any()):
                raise ValueError(f"{name}_mask is empty: it has no voxel above 0, so nothing would be compared.")


def choose_start(
    fixed: Float[Tensor, "1 c *s"],
    moving: Float[Tensor, "1 c *t"],
    matrices: Sequence[Float[Tensor, "m m"]],
    *,
    similarity: Loss,
    fixed_grid: Grid,
    moving_grid: Grid,
) -> Float[Tensor, "m m"]:
    """The world matrix `moving_from_fixed` of several under which the images are most alike, seen coarsely."""
    level = _prepare(max(1.0, max(fixed_grid.shape) / 32), fixed_grid, fixed, moving, moving_grid, None, None)

    def score(matrix: Tensor) -> float:
        ddf = field.affine_ddf(matrix, level.grid, dtype=level.fixed.dtype).to(level.fixed.device)
        return float(similarity(field.warp(level.moving, ddf, padding="zeros", **_grids(level)), level.fixed))

    return min(matrices, key=score)


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
    d = fixed_grid.dim
    linear = torch.eye(d, dtype=torch.float64)
    if rotate:
        signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * d)
        turns = [moving_axes @ torch.diag(sign) @ fixed_axes.T for sign in signs]
        linear = max((turn for turn in turns if torch.linalg.det(turn) > 0), key=lambda turn: float(turn.trace()))
    matrix = torch.eye(d + 1, dtype=torch.float64)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = moving_mean - linear @ fixed_mean
    return matrix


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
