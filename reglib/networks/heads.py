"""From features to a prediction: a displacement, a velocity, a matrix or a label.

A head is called with the features of a backbone, the size of the padded image that they are of, and the fixed image's
own size, which is its first voxels. It knows no millimeters: its matrices are of voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import field, filters
from ..grid import Grid, per_axis
from .backbones import Features
from .blocks import convolution, cropped, enlarge
from .prediction import Prediction

SMALL = 1e-5  # spread of a field's first weights: nearly nothing moves
ANTIALIAS = 0.44  # sigma of the smoothing before control points are read, in their distances
GAIN = (
    40.0  # of the mean that an affine head reads; Adam's first step of 1e-3 moves the rim by a twentieth of the image
)
LATTICE = 4  # cells along each axis in which an affine head looks where features are


class Reading(nn.Module):
    """Maps of a few channels from the features of one level, or the mean over several, each enlarged.

    Args:
        channels: of the features, by level.
        out: channels of the maps.
        spread: standard deviation of the first weights; None for those of torch.
    """

    def __init__(self, dim: int, channels: Mapping[int, int], out: int, *, spread: float | None) -> None:
        super().__init__()
        self.levels = nn.ModuleDict({str(k): convolution(dim, n, out) for k, n in channels.items()})
        if spread is not None:
            for name, weight in self.named_parameters():
                nn.init.normal_(weight, 0.0, spread if name.endswith("weight") else 0.0)

    def forward(self, features: Features, shape: Sequence[int]) -> Tensor:
        maps = [enlarge(each(features[int(k)]), shape) for k, each in self.levels.items()]
        return maps[0] if len(maps) == 1 else torch.stack(maps).mean(0)


class Displacement(nn.Module):
    """A ddf as it is read, or of cubic B-splines.

    Args: control_points: distance of control points in voxels, one number or one an axis; None for every voxel.
    """

    def __init__(
        self, dim: int, channels: Mapping[int, int], *, control_points: int | Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if control_points is not None and min(per_axis(control_points, dim, "control_points")) < 1:
            raise ValueError(f"control_points must be at least 1 voxel apart; got {control_points}.")
        self.reading = Reading(dim, channels, dim, spread=SMALL)
        self.control_points = control_points

    def forward(self, features: Features, shape: Sequence[int], size: Sequence[int]) -> Prediction:
        return Prediction(ddf=self.read(features, shape, size))

    def read(self, features: Features, shape: Sequence[int], size: Sequence[int]) -> Tensor:
        u = cropped(self.reading(features, shape), size)
        if self.control_points is None:
            return u
        spacing = per_axis(self.control_points, len(size), "control_points")
        spans = [max(1, round((n - 1) / c)) for n, c in zip(size, spacing, strict=True)]
        smooth = filters.gaussian(u, sigma=[ANTIALIAS * c for c in spacing])
        coefficients = filters.resize(smooth, [span + 3 for span in spans])
        steps = [(n - 1) / span if n > 1 else 1.0 for n, span in zip(size, spans, strict=True)]
        matrices = [filters.bspline_matrix(n, step, span + 3) for n, step, span in zip(size, steps, spans, strict=True)]
        return filters.separable(coefficients, matrices)


class Velocity(Displacement):
    """A stationary velocity, on a grid that is `downsampling` times coarser, and its flow.

    Args:
        steps: squarings; None for as many as the velocity needs.
        downsampling: of the velocity's grid; 1 keeps the fixed one.
        published: resize by exactly 1 / `downsampling` and integrate as VoxelMorph's published code does.

    Differs: VoxelMorph multiplies by 1/2 and 2 when it resizes, where (m - 1) / (n - 1) is exact for grids that share
        their corners, starts with v / 2**n and reads zeros outside; `published` does so, for weights that were trained
        like that.
    """

    def __init__(
        self,
        dim: int,
        channels: Mapping[int, int],
        *,
        control_points: int | Sequence[int] | None = None,
        steps: int | None = 7,
        downsampling: int = 1,
        published: bool = False,
    ) -> None:
        super().__init__(dim, channels, control_points=control_points)
        if downsampling < 1 or (steps is not None and steps < 0):
            raise ValueError(
                f"downsampling must be at least 1 and steps at least 0; got downsampling={downsampling}, steps={steps}."
            )
        self.steps, self.downsampling, self.published = steps, downsampling, published

    def forward(self, features: Features, shape: Sequence[int], size: Sequence[int]) -> Prediction:
        velocity = self.read(features, shape, size)
        if self.published:
            return self._as_published(velocity)
        small = [-(-n // self.downsampling) for n in size]
        velocity = field.resize_ddf(velocity, small)
        flow = field.exponential(velocity, steps=self.steps)
        return Prediction(ddf=field.resize_ddf(flow, size), velocity=velocity)

    def _as_published(self, velocity: Tensor) -> Prediction:
        shape, factor = list(velocity.shape[2:]), 1.0 / self.downsampling
        velocity = filters.resize(velocity, [int(n * factor) for n in shape]) * factor
        steps = 7 if self.steps is None else self.steps
        flow = velocity * 0.5**steps
        for _ in range(steps):
            flow = flow + field.warp(flow, flow, padding="zeros")
        return Prediction(ddf=filters.resize(flow / factor, shape), velocity=velocity)


class AffineHead(nn.Module):
    """A matrix, the identity at first, and its ddf.

    The features are averaged in `LATTICE` cells along each axis, so that any size will do and what is where still
    counts. The numbers are read in coordinates from -1 to 1 about the middle of the image, as means over the features,
    not sums: a step of Adam, which changes all weights alike, would else push the image out of sight or turn it inside
    out, the further the more features there are.

    Differs: DeepReg reads all voxels of the last level, and so is made for one size; and it sums.
    """

    def __init__(self, dim: int, channels: Mapping[int, int]) -> None:
        super().__init__()
        (self.level,) = channels
        read = channels[self.level] * LATTICE**dim
        self.linear, self.gain = nn.Linear(read, dim * (dim + 1)), GAIN / read
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features, shape: Sequence[int], size: Sequence[int]) -> Prediction:
        d, x = len(size), features[self.level]
        pool = functional.adaptive_avg_pool2d if d == 2 else functional.adaptive_avg_pool3d
        moves = self.linear(self.gain * pool(x, LATTICE).flatten(1)).reshape(-1, d, d + 1)
        whole = functional.pad(moves.double(), (0, 0, 0, 1)) + torch.eye(d + 1, dtype=torch.float64, device=x.device)
        return _affine_prediction(whole, size, x)


class KeypointHead(nn.Module):
    """An affine map that takes keypoints of the fixed image to those of the moving one.

    A keypoint is the center of mass of a map that is read from the features of its own image, so that it moves with
    what it is on. The map is fitted by weighted least squares: a keypoint counts by how much of it both images have,
    and the linear part stays at the identity as far as the keypoints leave it open.

    Args:
        channels: of the features, those of the moving image first, then as many of the fixed one.
        points: keypoints of each image.
        calm: how strongly the identity holds, in squared coordinates from -1 to 1.

    Source: Wang et al. 2023, doi:10.1016/j.media.2023.102962.   Differs: an encoder for each kind of image.
    """

    def __init__(self, dim: int, channels: Mapping[int, int], *, points: int, calm: float = 0.025) -> None:
        super().__init__()
        if points < 1:
            raise ValueError(f"points must be at least 1; got {points}.")
        (self.level,) = channels
        self.reading = nn.ModuleList(convolution(dim, channels[self.level] // 2, points) for _ in range(2))
        self.calm = calm

    def forward(self, features: Features, shape: Sequence[int], size: Sequence[int]) -> Prediction:
        x, d = features[self.level], len(size)
        halves = zip(self.reading, x.chunk(2, dim=1), strict=True)
        maps = [functional.softplus(cropped(read(half), size).double()).square() for read, half in halves]
        (moving, moving_mass), (fixed, fixed_mass) = (_centers_of_mass(each) for each in maps)
        weights = moving_mass / moving_mass.sum(1, keepdim=True) * fixed_mass / fixed_mass.sum(1, keepdim=True)
        weights = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1)  # (b, points, 1)
        middles = [(weights * each).sum(1, keepdim=True) for each in (moving, fixed)]
        target, source = moving - middles[0], fixed - middles[1]
        calm = self.calm * torch.eye(d, dtype=x.dtype, device=x.device).double()
        weighted = (weights * source).mT
        linear = torch.linalg.solve(weighted @ source + calm, weighted @ target + calm).mT
        shift = middles[0].mT - linear @ middles[1].mT
        whole = functional.pad(torch.cat([linear, shift], dim=2), (0, 0, 0, 1))
        whole[:, d, d] = 1.0
        return _affine_prediction(whole, size, x)


def _centers_of_mass(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Of maps (b, k, *s): centers (b, k, d) in coordinates from -1 to 1, and masses (b, k)."""
    mass = maps.flatten(2).sum(2)
    centers = []
    for axis, n in enumerate(maps.shape[2:], start=2):
        line = torch.linspace(-1, 1, n).to(maps) if n > 1 else torch.zeros(1).to(maps)
        others = [k for k in range(2, maps.ndim) if k != axis]
        centers.append((maps.sum(others) if others else maps) @ line / mass)
    return torch.stack(centers, dim=-1), mass


def _affine_prediction(whole: Tensor, size: Sequence[int], like: Tensor) -> Prediction:
    """A prediction from matrices (b, d + 1, d + 1) of coordinates from -1 to 1."""
    cube = _cube_from_voxel(size).to(like.device)
    affine = torch.linalg.inv(cube) @ whole @ cube
    ddf = torch.cat([field.affine_ddf(matrix, Grid(size), dtype=like.dtype) for matrix in affine])
    return Prediction(ddf=ddf, affine=affine)


def _cube_from_voxel(size: Sequence[int]) -> Tensor:
    """(d + 1, d + 1): the first and last voxel centers at -1 and 1; an axis of one voxel is as if it had two."""
    half = torch.tensor([max(n - 1, 1) / 2 for n in size], dtype=torch.float64)
    cube = torch.diag(torch.cat([1 / half, torch.ones(1, dtype=torch.float64)]))
    cube[:-1, -1] = -1.0
    return cube


class Label(nn.Module):
    """The moving label as it would lie on the fixed image, without a field."""

    def __init__(self, dim: int, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.reading = Reading(dim, channels, 1, spread=None)

    def forward(self, features: Features, shape: Sequence[int], size: Sequence[int]) -> Prediction:
        return Prediction(label=torch.sigmoid(cropped(self.reading(features, shape), size)))


Output = Literal["ddf", "velocity", "label"]
