"""Pairs bent and shaded at random, with the maps that did it, so that what is true of a pair stays known.

Convention: an item gains `moving_map` and `fixed_map`, (d, *s) voxels of each image's own grid:
    augmented[p] = image[p + map[p]]. Points go the other way, by its inverse.

Source: DeepReg's `RandomAffineTransform3D` and `RandomDDFTransform3D`.   Differs: corners are pulled about the middle
of the image instead of its first voxel, and fields are cubic splines, composed, so that they do not fold.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import field, filters
from ..grid import Axes, Grid, apply_affine
from ..transforms import Affine

BIAS_POINTS = 4  # knots of a bias field along each axis
ROLES = ("moving", "fixed")


class Map(NamedTuple):
    """x -> matrix (x + smooth(x)): a smooth ddf (1, d, *s) in voxels of a grid, then a world matrix, mm."""

    smooth: Tensor
    matrix: Tensor
    grid: Grid

    def ddf(self) -> Tensor:
        """(1, d, *s) voxels: the whole map."""
        d = self.grid.dim
        at = self.grid.coordinates("voxel", dtype=torch.float64)  # (*s, d)
        moved = at + self.smooth[0].movedim(0, -1).double()
        linear = self.grid.voxel_from_world @ self.matrix @ self.grid.world_from_voxel
        return (apply_affine(linear, moved.reshape(-1, d)).reshape(at.shape) - at).movedim(-1, 0)[None].float()

    def back(self, points: Tensor) -> Tensor:
        """Where world points (n, d), mm, are in the augmented image."""
        before = apply_affine(torch.linalg.inv(self.matrix), points.double())
        voxels = self.grid.points(before, to=Axes.VOXEL, from_=Axes.WORLD)[None]
        found = field.warp_points(voxels, field.inverse(self.smooth).ddf.double())[0]
        return self.grid.points(found, to=Axes.WORLD, from_=Axes.VOXEL)


@dataclass(frozen=True)
class Augmentation:
    """What happens to a pair; everything is off until it is given a size. Call it with an item and a generator.

    Args:
        corners: corners of the image are pulled to its middle by up to this share, as in DeepReg, where it is 0.1.
        angle_deg: turns of up to this about each axis, about the middle of the image.
        scale: each axis is stretched by up to exp(scale).
        shift_mm: up to this along each axis.
        field_mm: a smooth field moves voxels by up to this on average.
        field_points: knots of that field along each axis; 1 is one shift for all, as DeepReg's default.
        bias: spread of the log of a smooth factor.
        gamma: spread of the log of the power that intensities are raised to.
        noise: spread of what is added to each voxel.
        invert: how often the contrast is turned over.
        same: one map and one contrast for both images; otherwise each has its own. Bias and noise are always their own.

    Intensities must be in [0, 1] if any of the last four is used; they stay there.
    """

    corners: float = 0.0
    angle_deg: float = 0.0
    scale: float = 0.0
    shift_mm: float = 0.0
    field_mm: float = 0.0
    field_points: int = 5
    bias: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    invert: float = 0.0
    same: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name != "same" and getattr(self, each.name) < 0:
                raise ValueError(f"{each.name} must be at least 0; got {getattr(self, each.name)}.")
        if self.corners >= 1 or self.invert > 1 or self.field_points < 1:
            raise ValueError(
                "corners must be below 1, invert a share of at most 1 and field_points at least 1; got "
                f"corners={self.corners}, invert={self.invert}, field_points={self.field_points}."
            )

    def __call__(self, item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A new item, the given one as it was."""
        changed = dict(item)
        seeds = rng.integers(2**31, size=2)
        shared = self.draw_map(item["fixed_grid"], np.random.default_rng(seeds[0])) if self.same else None
        for k, role in enumerate(ROLES):
            own = np.random.default_rng(seeds[0 if self.same else k])
            grid = item[f"{role}_grid"]
            found = self.draw_map(grid, own) if shared is None else carried(shared, grid)
            changed |= _moved(item, role, found)
            changed[role] = self.shaded(changed[role], own, np.random.default_rng([*seeds, k]))
        return changed

    def draw_map(self, grid: Grid, rng: np.random.Generator) -> Map:
        """A random map of a grid."""
        return Map(self._smooth(grid, rng), self._linear(grid, rng), grid)

    def _smooth(self, grid: Grid, rng: np.random.Generator) -> Tensor:
        d = grid.dim
        if not self.field_mm:
            return torch.zeros(1, d, *grid.shape)
        knots = torch.from_numpy(rng.standard_normal((1, d, *[self.field_points] * d))).float()
        size_mm = rng.uniform(0, self.field_mm)
        world = _spread(knots, grid)  # (1, d, *s)
        world = world * (size_mm / world.square().sum(1).sqrt().mean())
        return field.exponential(field.convert_ddf(world, grid, to=Axes.VOXEL, from_=Axes.WORLD))

    def _linear(self, grid: Grid, rng: np.random.Generator) -> Tensor:
        d = grid.dim
        model = Affine(grid).with_values(
            angle_rad=torch.from_numpy(np.deg2rad(rng.uniform(-1, 1, 1 if d == 2 else 3) * self.angle_deg)),
            log_scale=torch.from_numpy(rng.uniform(-1, 1, d) * self.scale),
            translation_mm=torch.from_numpy(rng.uniform(-1, 1, d) * self.shift_mm),
        )
        assert isinstance(model, Affine)
        matrix = model.matrix().detach().double()
        corners = corner_matrix(self.corners, rng, d)
        cube = grid.matrix(to=Axes.CUBE_CORNERS, from_=Axes.WORLD)
        return matrix @ torch.linalg.inv(cube) @ corners @ cube

    def shaded(self, image: Tensor, rng: np.random.Generator, own: np.random.Generator) -> Tensor:
        """An image (1, *s) in [0, 1] with another contrast, drawn by `rng`, bias field and noise, drawn by `own`."""
        if not (self.bias or self.gamma or self.noise or self.invert):
            return image
        if float(image.min()) < 0 or float(image.max()) > 1 + 1e-4:
            raise ValueError(
                f"intensities must be in [0, 1] to be shaded; they are {float(image.min()):g} to "
                f"{float(image.max()):g}; Reading(scale='minmax') brings them there."
            )
        if rng.random() < self.invert:
            image = torch.where(image > 0, 1 - image, 0.0)  # air stays dark
        image = image.clamp(min=0) ** float(np.exp(rng.normal(0, self.gamma)))
        if self.bias:
            knots = torch.from_numpy(own.normal(0, self.bias, (1, 1, *[BIAS_POINTS] * (image.ndim - 1)))).float()
            image = image * _spread_to(knots, image.shape[1:])[0].exp()
        if self.noise:
            image = image + torch.from_numpy(own.normal(0, self.noise, tuple(image.shape))).to(image.dtype)
        return image.clamp(0, 1)


def corner_matrix(scale: float, rng: np.random.Generator, d: int) -> Float[Tensor, "m m"]:
    """Of coordinates in [-1, 1]: what takes d + 1 corners of the cube to where each is pulled, by up to `scale`."""
    corners = np.full((d + 1, d), -1.0)
    corners[np.arange(d), np.arange(d)] = 1.0  # one corner along each axis, and the first
    pulled = corners * rng.uniform(1 - scale, 1, corners.shape)
    rows = np.linalg.solve(np.hstack([corners, np.ones((d + 1, 1))]), pulled)  # [x 1] @ rows
    matrix = np.eye(d + 1)
    matrix[:-1] = rows.T
    return torch.from_numpy(matrix)


def carried(found: Map, grid: Grid) -> Map:
    """The same map of the world on another grid."""
    if grid == found.grid:
        return found
    world = field.convert_ddf(found.smooth, found.grid, to=Axes.WORLD, from_=Axes.VOXEL)
    there = field.resample(world, found.grid, grid, padding="border")
    return Map(field.convert_ddf(there, grid, to=Axes.VOXEL, from_=Axes.WORLD), found.matrix, grid)


def true_ddf_after(ddf: Float[Tensor, "1 d *s"], item: dict[str, Any]) -> Float[Tensor, "1 d *s"]:
    """The true map of a pair once it is augmented, from the true map of the pair as it was.

    A voxel of the new fixed image came from one of the old; that one's partner is where the truth says; and in the new
    moving image it is where the moving image's map was undone.

    Args:
        ddf: voxels of the fixed grid, fixed to moving.
        item: what an `Augmentation` returned.
    """
    fixed, moving = item["fixed_grid"], item["moving_grid"]
    at = fixed.coordinates("voxel", dtype=torch.float64)[None].flatten(1, -2)  # (1, n, d)
    old = field.warp_points(at, item["fixed_map"][None].double())
    there = field.warp_points(old, ddf.double())
    voxels = moving.points(fixed.points(there, to=Axes.WORLD, from_=Axes.VOXEL), to=Axes.VOXEL, from_=Axes.WORLD)
    undone = field.inverse(item["moving_map"][None]).ddf.double()
    new = moving.points(field.warp_points(voxels, undone), to=Axes.WORLD, from_=Axes.VOXEL)
    moved = fixed.points(new, to=Axes.VOXEL, from_=Axes.WORLD) - at
    return moved.movedim(-1, 1).reshape(1, fixed.dim, *fixed.shape).to(ddf)


def _moved(item: dict[str, Any], role: str, found: Map) -> dict[str, Any]:
    """Image, label and points of one side under a map, and the map."""
    ddf = found.ddf()
    moved = {role: field.warp(item[role][None], ddf, padding="zeros")[0], f"{role}_map": ddf[0]}
    if f"{role}_label" in item:
        masks = item[f"{role}_label"][None]
        hard = bool(((masks == 0) | (masks == 1)).all())
        mode: Any = "nearest" if hard else "bilinear"
        moved[f"{role}_label"] = field.warp(masks, ddf, mode=mode, padding="zeros")[0]
    if f"{role}_points" in item:
        moved[f"{role}_points"] = found.back(item[f"{role}_points"])
    return moved


def _spread(knots: Tensor, grid: Grid) -> Tensor:
    return _spread_to(knots, grid.shape)


def _spread_to(knots: Tensor, shape: Any) -> Tensor:
    """Values on a coarse lattice over an image as a cubic spline at its voxels."""
    if knots.shape[-1] == 1:
        return knots.expand(*knots.shape[:2], *shape).clone()
    fine = [max(n, m) for n, m in zip(shape, knots.shape[2:], strict=True)]
    spread = filters.upsample(knots, fine)
    return spread if fine == list(shape) else filters.resize(spread, list(shape))
