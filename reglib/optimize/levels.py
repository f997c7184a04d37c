"""The images of a registration at one resolution: made once a level, then only read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any

import torch
from torch import Tensor

from .. import field, filters
from ..grid import Grid, require_on_grid
from ..transforms import Transform

WHOLE = 0.99  # share of the fixed grid from which on the moving image counts as seen everywhere
EVEN = 0.01  # of an image's range: faces that differ by less are one background
FAINT = 0.05  # weight of a mask below which a voxel is only the blur of others
SMALLEST_LEVEL = 8  # voxels along an axis that a level never goes below


@dataclass(frozen=True)
class Level:
    """One resolution of a coarse-to-fine registration; what is None is as for the other levels.

    Args:
        factor: by which the grid is coarsened, 1 for full resolution; or one number an axis.
        steps: the most steps here.
        lr: as in `Options`.
        smoothing_mm: both images are smoothed by a gaussian of this sigma, beyond what coarsening needs.
        similarity, regularizer, weight: as for `register`, on this level.
    """

    factor: float | Sequence[float]
    steps: int = 50
    lr: float | None = None
    smoothing_mm: float = 0.0
    similarity: Any = None
    regularizer: Any = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if min(self.factors(1)) < 1 or self.steps < 0 or self.smoothing_mm < 0:
            raise ValueError(
                "a level needs a factor of at least 1, and steps and smoothing_mm of at least 0; got "
                f"factor={self.factor}, steps={self.steps}, smoothing_mm={self.smoothing_mm}."
            )

    def factors(self, d: int) -> tuple[float, ...]:
        """One number an axis."""
        return tuple(self.factor) if isinstance(self.factor, Sequence) else (float(self.factor),) * d


@dataclass(frozen=True)
class Images:
    """A fixed and a moving image (b, c, *s) that a similarity compares, each on its grid."""

    fixed: Tensor
    moving: Tensor


@dataclass(frozen=True)
class Scene:
    """Everything there is to see at one resolution.

    Attributes:
        images: a pair for each similarity; terms without images of their own share one.
        fixed_mask, moving_mask: where to compare, (b, 1, *s) values 0 to 1.
        crop: whether the moving image ends inside the fixed grid, so that what lies beyond must not count.
        oversampling: images are warped from copies that are so many times finer; see `Options`.
    """

    grid: Grid
    moving_grid: Grid
    images: tuple[Images, ...]
    fixed_mask: Tensor | None = None
    moving_mask: Tensor | None = None
    crop: bool = False
    oversampling: int = 1
    _finer: dict[int, tuple[Tensor, Tensor]] = dataclass_field(default_factory=dict, repr=False)  # image, finer copy

    @property
    def grids(self) -> field.Grids:
        return {"moving_grid": self.moving_grid, "fixed_grid": self.grid}

    def warp(self, images: Images, ddf: Tensor) -> Tensor:
        """The moving image under a field of this level."""
        return self._read(images.moving, self.moving_grid, ddf)

    def warp_fixed(self, images: Images, ddf: Tensor) -> Tensor:
        """The fixed image under a field of this level."""
        return self._read(images.fixed, self.grid, ddf)

    def _read(self, image: Tensor, own_grid: Grid, ddf: Tensor) -> Tensor:
        """From the image, or from a finer copy of it, which is made once."""
        if self.oversampling > 1:
            own_grid = own_grid.resize([self.oversampling * (n - 1) + 1 for n in own_grid.shape])
            if id(image) not in self._finer:
                self._finer[id(image)] = image, _upsampled(image, own_grid)
            image = self._finer[id(image)][1]
        return field.warp(image, ddf, moving_grid=own_grid, fixed_grid=self.grid)

    def mask(self, ddf: Tensor) -> Tensor | None:
        """Where to compare under this field; None is everywhere."""
        mask = self.fixed_mask
        if self.moving_mask is not None or self.crop:
            inside = field.valid_mask(ddf, **self.grids).to(ddf.dtype)
            if self.moving_mask is not None:
                inside = inside * field.warp(self.moving_mask, ddf, padding="zeros", **self.grids)
            mask = inside if mask is None else mask * inside
        return mask

    @torch.no_grad()
    def compared(self, ddf: Tensor, similarity: Callable[..., Tensor]) -> tuple[float, float]:
        """A loss of the one pair where both images are, infinite if nowhere, and which share of the grid it is."""
        scene = replace(self, crop=True)
        (images,), mask = scene.images, scene.mask(ddf)
        assert mask is not None  # a scene with `crop` has one
        seen = float(mask.mean())
        return float(similarity(scene.warp(images, ddf), images.fixed, mask=mask)) if seen > 0 else math.inf, seen

    def at(self, level: Level) -> Scene:
        """The scene at one level: the moving images as coarse as the fixed ones, on their own axes."""
        factors = level.factors(self.grid.dim)
        grid = self.grid.downsample(factors, min_size=SMALLEST_LEVEL)
        coarsest = max(grid.spacing) if max(factors) > 1 else 0.0
        ratios = [max(1.0, coarsest / s) for s in self.moving_grid.spacing]
        same = self.moving_grid == self.grid
        moving_grid = grid if same else self.moving_grid.downsample(ratios, min_size=SMALLEST_LEVEL)
        return self._shrunk(grid, moving_grid, level.smoothing_mm)

    def _shrunk(self, grid: Grid, moving_grid: Grid, smoothing_mm: float) -> Scene:
        made: dict[tuple[int, bool], Tensor] = {}  # an image that several terms share is made once

        def small(image: Tensor, mask: Tensor | None, target: Grid) -> Tensor:
            key = (id(image), target is moving_grid)
            if key not in made:
                made[key] = _smooth(shrink(image, mask, target), mask, target, smoothing_mm)
            return made[key]

        images = tuple(
            Images(small(pair.fixed, self.fixed_mask, grid), small(pair.moving, self.moving_mask, moving_grid))
            for pair in self.images
        )
        fixed_mask = None if self.fixed_mask is None else shrink(self.fixed_mask, None, grid)
        moving_mask = None if self.moving_mask is None else shrink(self.moving_mask, None, moving_grid)
        return Scene(grid, moving_grid, images, fixed_mask, moving_mask, oversampling=self.oversampling)

    def seen_by(self, ddf: Tensor) -> Scene:
        """The same, knowing whether the moving image fills the fixed grid under the field it starts from.

        Raises: ValueError if nothing would be compared.
        """
        if not self.overlaps(ddf):
            masked = "" if self.fixed_mask is None and self.moving_mask is None else " within their masks"
            raise ValueError(
                f"the images do not overlap{masked} where the registration starts; begin with optimize.align or check "
                "the headers."
            )
        inside = field.valid_mask(ddf, **self.grids)
        return replace(self, crop=float(inside.float().mean()) < WHOLE and not self._surrounded())

    def overlaps(self, ddf: Tensor) -> bool:
        """Whether anything would be compared under a field, in every pair of a batch."""
        mask = replace(self, crop=True).mask(ddf)
        return mask is not None and bool((mask > FAINT).flatten(1).any(1).all())

    def _surrounded(self) -> bool:
        """Whether the moving images end in an even background: then it is known what lies beyond them."""
        return all(_even_faces(image) for image in {id(pair.moving): pair.moving for pair in self.images}.values())

    @torch.no_grad()
    def warped_once(self, frozen: Transform, mode: field.Mode) -> Scene:
        """The moving images and their mask on the fixed grid; where they were not seen, the mask says so.

        A level of full resolution needs them read by cubic splines: they are read again there, and linear twice blurs.
        """
        like = self.images[0].moving
        ddf = frozen.to(like.device).ddf(self.grid).to(like.dtype)
        seen = field.valid_mask(ddf, **self.grids).to(like.dtype)
        if self.moving_mask is not None:
            seen = seen * field.warp(self.moving_mask, ddf, padding="zeros", **self.grids)
        whole = self.moving_mask is None and (float(seen.mean()) >= WHOLE or self._surrounded())
        made: dict[int, Tensor] = {}
        for image in {id(pair.moving): pair.moving for pair in self.images}.values():
            warped = field.warp(image, ddf, mode=mode, **self.grids)
            made[id(image)] = warped.clamp_(float(image.min()), float(image.max()))
        images = tuple(Images(pair.fixed, made[id(pair.moving)]) for pair in self.images)
        mask = None if whole else seen
        return Scene(self.grid, self.grid, images, self.fixed_mask, mask, oversampling=self.oversampling)


@torch.no_grad()
def _upsampled(image: Tensor, grid: Grid) -> Tensor:
    """By cubic splines, which may not leave the image's own range."""
    return filters.upsample(image, grid.shape).clamp_(float(image.min()), float(image.max()))


def _even_faces(image: Tensor) -> bool:
    """Whether an image has one value on all its faces, to `EVEN` of its range."""
    faces = [image.select(axis, end) for axis in range(2, image.ndim) for end in (0, -1)]
    values = torch.cat([face.flatten(2) for face in faces], dim=2)
    spread, whole = (x.amax(2) - x.amin(2) for x in (values, image.flatten(2)))
    return bool((spread <= EVEN * whole).all())


def shrink(image: Tensor, weight: Tensor | None, grid: Grid) -> Tensor:
    """An image on a coarser grid; what the mask leaves out does not leak into its neighbors."""
    if tuple(image.shape[2:]) == grid.shape:
        return image
    if weight is None:
        return filters.downsample(image, grid.shape)
    share = filters.downsample(weight, grid.shape).clamp(min=1e-6)
    return filters.downsample(image * weight, grid.shape) / share


def _smooth(image: Tensor, weight: Tensor | None, grid: Grid, sigma_mm: float) -> Tensor:
    if sigma_mm == 0:
        return image
    sigma = [sigma_mm / s for s in grid.spacing]
    if weight is None:
        return filters.gaussian(image, sigma=sigma)
    small = shrink(weight, None, grid)
    return filters.gaussian(image * small, sigma=sigma) / filters.gaussian(small, sigma=sigma).clamp(min=1e-6)


def checked_scene(
    pairs: Sequence[Images], grid: Grid, moving_grid: Grid, fixed_mask: Tensor | None, moving_mask: Tensor | None
) -> Scene:
    """A scene at full resolution, or one sentence about what is wrong with it."""
    if moving_grid.dim != grid.dim:
        raise ValueError(
            f"fixed and moving must have one dimension; fixed is {grid.dim}-D, moving {moving_grid.dim}-D. "
            "Take a slice of the larger one."
        )
    for pair in pairs:
        for image, own, name in ((pair.fixed, grid, "fixed"), (pair.moving, moving_grid, "moving")):
            _check_image(image, own, name)
        if len(pair.fixed) != len(pair.moving):
            raise ValueError(
                f"fixed and moving must be of one batch size; got {len(pair.fixed)} and {len(pair.moving)}."
            )
    for mask, own, name in ((fixed_mask, grid, "fixed_mask"), (moving_mask, moving_grid, "moving_mask")):
        if mask is not None:
            require_on_grid(mask, own, name)
            if not bool((mask > 0).flatten(1).any(1).all()):
                raise ValueError(f"{name} is empty: it has no voxel above 0, so nothing would be compared.")
    dtype = pairs[0].fixed.dtype
    fixed_mask, moving_mask = (None if mask is None else mask.to(dtype) for mask in (fixed_mask, moving_mask))
    data = tuple(Images(pair.fixed.detach(), pair.moving.detach()) for pair in pairs)  # no gradient goes into them
    return Scene(grid, moving_grid, data, fixed_mask, moving_mask)


def _check_image(image: Tensor, grid: Grid, name: str) -> None:
    require_on_grid(image, grid, name)
    if not bool(image.isfinite().all()):
        raise ValueError(f"{name} must be finite; it holds NaN or infinity. Replace them, for example by 0.")
    flat = image.flatten(1)
    if bool((flat.amin(1) == flat.amax(1)).any()):
        raise ValueError(
            f"{name} is constant ({float(image.min()):g}); there is nothing to align. Is it the right file?"
        )
