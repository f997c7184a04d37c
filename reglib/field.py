"""Displacement algebra: warp, compose, exponentiate, invert and measure dense fields.

Convention:
    warped[p] = moving[p + ddf[p]], p over the voxels of the fixed grid. A ddf is (b, d, *s): component k moves
    along tensor axis k + 2, in voxels of the fixed grid, from fixed to moving. A velocity has the same layout.
    Points are voxel coordinates, components last; `warp_points` takes fixed points to moving points.
    Every coordinate means `align_corners=True`; this module alone calls `torch.nn.functional.grid_sample`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import product
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from . import filters
from .grid import Axes, Grid, GridMismatchError, require_on_grid

Mode = Literal["bilinear", "nearest", "cubic"]


class Grids(TypedDict):
    """Both grids of a pair, to pass on as `**grids`."""

    moving_grid: Grid
    fixed_grid: Grid


class Inverse(NamedTuple):
    """An approximate inverse and what is left: |u(q + w(q)) + w(q)| in voxels, (b, 1, *s)."""

    ddf: Tensor
    residual: Tensor


# -- sampling -------------------------------------------------------------------------------------------------
def warp(
    moving: Float[Tensor, "b c *s"],
    ddf: Float[Tensor, "#b d *t"],
    *,
    mode: Mode = "bilinear",
    padding: str | float = "border",
    moving_grid: Grid | None = None,
    fixed_grid: Grid | None = None,
) -> Float[Tensor, "b c *t"]:
    """Warp an image by a displacement field:  warped[p] = moving[p + ddf[p]].

    Args:
        moving: image. Half precision is computed in float32 and returned as it came.
        ddf: voxels of the fixed grid; one field serves a whole batch.
        mode: "bilinear" (trilinear in 3-D), "nearest", or "cubic", the interpolating cubic B-spline.
        padding: outside the image: "border" repeats it, "zeros", or a number.
        moving_grid, fixed_grid: give both when the image is on another grid than the field; they meet in the world.

    Raises: ValueError for shapes that do not fit, GridMismatchError for tensors not on their grids.
    """
    _check_ddf(ddf, moving.ndim - 2)
    if moving_grid is None and fixed_grid is None and moving.shape[2:] != ddf.shape[2:]:
        raise GridMismatchError(
            f"moving {tuple(moving.shape[2:])} and ddf {tuple(ddf.shape[2:])} have different shapes; pass moving_grid "
            "and fixed_grid so that they meet in the world."
        )
    if moving_grid is not None:
        require_on_grid(moving, moving_grid, "moving")
    return _sample(moving, _targets(ddf, moving, moving_grid, fixed_grid), mode, padding)


def warp_labels(
    labels: Shaped[Tensor, "b 1 *s"],
    ddf: Float[Tensor, "#b d *t"],
    *,
    method: Literal["nearest", "linear"],
    moving_grid: Grid | None = None,
    fixed_grid: Grid | None = None,
) -> Shaped[Tensor, "b 1 *t"]:
    """Warp a label map; outside is background, 0.

    Args:
        labels: whole numbers of any dtype, one channel.
        method: "nearest" takes the closest voxel's label; "linear" warps every label's mask linearly and takes the
            largest (smoother edges). Neither has a gradient: warp one-hot masks with `warp` for that.
    """
    grids: Any = {"moving_grid": moving_grid, "fixed_grid": fixed_grid}
    if method == "nearest":
        wide = labels.double() if labels.dtype.itemsize > 2 and _beyond_float32(labels) else labels.float()
        return warp(wide, ddf.to(wide.dtype), mode="nearest", padding="zeros", **grids).to(labels.dtype)
    if method != "linear":
        raise ValueError(f'method must be "nearest" or "linear"; got "{method}".')
    best, result = None, None
    for label in sorted({0, *labels.unique().tolist()}):
        outside = 1.0 if label == 0 else 0.0
        score = warp((labels == label).to(ddf.dtype), ddf, padding=outside, **grids)
        better = torch.ones_like(score, dtype=torch.bool) if best is None else score > best
        best = score if best is None else torch.maximum(best, score)
        value = torch.full_like(score, label, dtype=labels.dtype)
        result = value if result is None else torch.where(better, value, result)
    assert result is not None
    return result


def valid_mask(
    ddf: Float[Tensor, "b d *t"], *, moving_grid: Grid | None = None, fixed_grid: Grid | None = None
) -> Bool[Tensor, "b 1 *t"]:
    """True where p + ddf[p] falls inside the moving image (within half a voxel of its outer voxel centers)."""
    _check_ddf(ddf, ddf.ndim - 2)
    shape = moving_grid.shape if moving_grid else tuple(ddf.shape[2:])
    inside = torch.ones_like(ddf[:, :1], dtype=torch.bool)
    for k, target in enumerate(_targets(ddf, ddf, moving_grid, fixed_grid)):
        inside &= ((target >= -0.5) & (target <= shape[k] - 0.5)).unsqueeze(1)
    return inside


def sample(
    image: Float[Tensor, "b c *s"],
    points: Float[Tensor, "#b k d"],
    *,
    mode: Mode = "bilinear",
    padding: str | float = "border",
) -> Float[Tensor, "b c k"]:
    """Read an image at voxel coordinates. Args as for `warp`."""
    d = image.ndim - 2
    if points.shape[-1] != d:
        raise ValueError(f"points must be (b, k, {d}) voxel coordinates for a {d}-D image; got {tuple(points.shape)}.")
    lines = points.reshape(points.shape[0], points.shape[1], *[1] * (d - 1), d)  # (b, k, 1[, 1], d)
    return _sample(image, list(lines.unbind(-1)), mode, padding).flatten(2)


def warp_points(points: Float[Tensor, "b k d"], ddf: Float[Tensor, "#b d *s"]) -> Float[Tensor, "b k d"]:
    """Take fixed points to moving points:  x + ddf(x), in voxels of the fixed grid.

    Convention: an image is pulled from moving to fixed, so its points go the other way, fixed to moving. To bring
        moving points to the fixed image, use the inverse field.
    """
    _check_ddf(ddf, points.shape[-1])
    moves = sample(ddf.to(points).expand(points.shape[0], *ddf.shape[1:]), points)  # (b, d, k)
    return points + moves.movedim(1, -1)


def resample(
    image: Float[Tensor, "b c *s"],
    image_grid: Grid,
    grid: Grid,
    *,
    mode: Mode = "bilinear",
    padding: str | float = "zeros",
) -> Float[Tensor, "b c *t"]:
    """Read an image at the voxels of another grid, through the world; no smoothing (see `filters.downsample`)."""
    require_on_grid(image, image_grid, "image")
    return warp(
        image,
        identity_ddf(grid).to(_working(image)),
        mode=mode,
        padding=padding,
        moving_grid=image_grid,
        fixed_grid=grid,
    )


def _beyond_float32(labels: Tensor) -> bool:
    return labels.numel() > 0 and bool(labels.abs().max() >= 2**24)


def _working(image: Tensor) -> torch.dtype:
    """float32 at least: half precision has too few digits for coordinates."""
    return torch.float64 if image.dtype == torch.float64 else torch.float32


def _check_ddf(ddf: Tensor, d: int) -> None:
    if ddf.ndim != d + 2 or ddf.shape[1] != d:
        hint = " Channels last? use ddf.movedim(-1, 1)." if ddf.shape[-1] == d else ""
        raise ValueError(f"ddf must be (b, {d}, *{d} sizes) in voxels for {d}-D data; got {tuple(ddf.shape)}.{hint}")


def _targets(ddf: Tensor, image: Tensor, moving_grid: Grid | None, fixed_grid: Grid | None) -> list[Tensor]:
    """p + ddf[p] for each axis, (b, *t), in voxels of the moving image; one tensor an axis, so no copies."""
    if (moving_grid is None) != (fixed_grid is None):
        raise ValueError("pass both moving_grid and fixed_grid, or neither when both images share one grid.")
    d, dtype = ddf.shape[1], _working(ddf if ddf.dtype == torch.float64 else image)
    moved = []
    for k in range(d):
        index = torch.arange(ddf.shape[k + 2], device=ddf.device, dtype=dtype)
        moved.append(ddf[:, k].to(dtype) + index.reshape([-1 if j == k else 1 for j in range(d)]))
    if moving_grid is None or fixed_grid is None:
        return moved
    require_on_grid(ddf, fixed_grid, "ddf")
    if moving_grid == fixed_grid:
        return moved
    matrix = moving_grid.voxel_from_world @ fixed_grid.world_from_voxel
    return [_combine(moved, matrix[k].tolist()) for k in range(d)]


def _combine(moved: list[Tensor], row: list[float]) -> Tensor:
    """Sum of row[j] * moved[j], plus the last entry; terms that are zero to rounding cost nothing."""
    used = [(weight, axis) for weight, axis in zip(row[:-1], moved, strict=True) if abs(weight) > 1e-9]
    total = torch.zeros_like(moved[0]) + row[-1]
    for weight, axis in used:
        total = torch.add(total, axis, alpha=weight)
    return total


def _sample(image: Tensor, targets: list[Tensor], mode: str, padding: str | float) -> Tensor:
    """Read (b, c, *s) at voxel positions, a (b, *t) tensor for each axis, with any mode and padding."""
    if mode not in ("bilinear", "nearest", "cubic"):
        raise ValueError(f'mode must be "bilinear", "nearest" or "cubic"; got "{mode}".')
    if isinstance(padding, str) and padding not in ("border", "zeros"):
        raise ValueError(f'padding must be "border", "zeros" or a number; got "{padding}".')
    if not image.is_floating_point():
        raise TypeError(f"image must be floating point; got {image.dtype}. For labels use field.warp_labels.")
    working = image.to(torch.float64 if image.dtype == torch.float64 else _working(targets[0]))
    targets = [x.to(working.dtype) for x in targets]
    if not isinstance(padding, str) and padding != 0:
        return (_sample(working - padding, targets, mode, "zeros") + padding).to(image.dtype)
    border = padding == "border"
    if mode == "cubic":
        result = _cubic(working, targets)
        if not border:
            result = result * _inside(image, targets)
        return result.to(image.dtype)
    if not border and 1 in image.shape[2:]:  # grid_sample takes an axis of one voxel as endless
        working, targets = _pad_singletons(working, targets)
    return _grid_sample(working, targets, mode, "border" if border else "zeros").to(image.dtype)


def _grid_sample(image: Tensor, targets: list[Tensor], mode: str, padding: str) -> Tensor:
    scaled = [2 / max(n - 1, 1) * x - 1 for x, n in zip(targets, image.shape[2:], strict=True)]
    grid = torch.stack(scaled[::-1], dim=-1)  # (b, *t, d) ij -> xyz
    if grid.requires_grad and not bool(grid.detach().sum().isfinite()):  # torch's backward would crash the process
        raise ValueError("the field must be finite; it holds NaN or infinity. Did the optimization diverge?")
    if grid.shape[0] != image.shape[0]:
        batch = max(grid.shape[0], image.shape[0])
        grid, image = grid.expand(batch, *grid.shape[1:]), image.expand(batch, *image.shape[1:])
    return torch.nn.functional.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)


def _pad_singletons(image: Tensor, targets: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A zero voxel on both sides of every axis that has one voxel only."""
    for k, n in enumerate(image.shape[2:]):
        if n == 1:
            pad = [0, 0] * (image.ndim - 3 - k) + [1, 1]
            image = torch.nn.functional.pad(image, pad)
            targets = [x + 1 if j == k else x for j, x in enumerate(targets)]
    return image, targets


def _inside(image: Tensor, targets: list[Tensor]) -> Tensor:
    inside = [((x >= -0.5) & (x <= n - 0.5)) for x, n in zip(targets, image.shape[2:], strict=True)]
    return torch.stack(inside).all(0).unsqueeze(1).to(image.dtype)


def _cubic(image: Tensor, targets: list[Tensor]) -> Tensor:
    """Cubic B-spline from 2^d linear reads at shifted positions.

    Source: Sigg and Hadwiger, GPU Gems 2 (2005), chapter 20: two neighboring cubic weights are one linear read.
    """
    sizes = image.shape[2:]
    coefficients = filters.bspline(image)
    mirrored = filters.separable(coefficients, [_mirror_matrix(n) for n in sizes])
    reads = []  # for each axis: two (position, weight)
    for x, n in zip(targets, sizes, strict=True):
        x = x.clamp(0, n - 1)
        base = x.floor()
        f = x - base
        w0, w1 = (1 - f) ** 3 / 6, 2 / 3 - f**2 + f**3 / 2
        w2, w3 = 2 / 3 - (1 - f) ** 2 + (1 - f) ** 3 / 2, f**3 / 6
        left, right = w0 + w1, w2 + w3
        reads.append(((base + 1 + w1 / left, left), (base + 3 + w3 / right, right)))  # two voxels of padding
    total = torch.zeros((), dtype=image.dtype, device=image.device)
    for corner in product(*reads):
        weight = reduce(torch.mul, (w for _, w in corner))
        total = total + _grid_sample(mirrored, [x for x, _ in corner], "bilinear", "border") * weight.unsqueeze(1)
    return total


def _mirror_matrix(n: int) -> Tensor:
    """(n + 4, n) that repeats a line mirrored about its end voxels, two voxels on each side."""
    matrix = torch.zeros(n + 4, n, dtype=torch.float64)
    for row in range(n + 4):
        j = abs(row - 2) % max(2 * (n - 1), 1)
        matrix[row, min(j, 2 * (n - 1) - j) if n > 1 else 0] = 1
    return matrix


# -- algebra --------------------------------------------------------------------------------------------------
def identity_ddf(grid: Grid, *, batch: int = 1, device: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The field that moves nothing, (batch, d, *s)."""
    return torch.zeros(batch, grid.dim, *grid.shape, device=device, dtype=dtype)


def compose(u: Float[Tensor, "b d *s"], v: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d *s"]:
    """The field of two warps in a row:  compose(u, v)[p] = v[p] + u[p + v[p]].

    Convention: warp(warp(m, u), v) = warp(m, compose(u, v)) up to interpolation; beyond its grid u keeps the
        displacement of its border.
    """
    if u.shape != v.shape:
        raise GridMismatchError(
            f"both fields must share one grid; got {tuple(u.shape)} and {tuple(v.shape)}. Use resize_ddf first."
        )
    return v + warp(u, v)


def exponential(
    velocity: Float[Tensor, "b d *s"], *, steps: int | None = None, shape: Sequence[int] | None = None
) -> Float[Tensor, "b d *t"]:
    """Flow of a stationary velocity for unit time, by scaling and squaring:  exp(v) = exp(v / 2^n)^(2^n).

    Args:
        velocity: voxels per unit time.
        steps: number of squarings n; default: so many that v / 2^n moves no voxel by more than a quarter.
        shape: integrate on a grid of this shape instead (both ends at the same centers) and return the ddf there;
            `resize_ddf` brings it back.

    Source: Arsigny et al. 2006, doi:10.1007/11866565_113.
    """
    _check_ddf(velocity, velocity.ndim - 2)
    if steps is not None and steps < 0:
        raise ValueError(f"steps must be at least 0 squarings; got {steps}.")
    if shape is not None:
        velocity = resize_ddf(velocity, shape)
    if steps is None:
        steps = squarings(velocity)
    ddf = velocity * 0.5**steps
    for _ in range(steps):
        ddf = compose(ddf, ddf)
    return ddf


def squarings(velocity: Tensor, *, largest_voxels: float = 0.25) -> int:
    """How often to halve a velocity until it moves no voxel by more than `largest_voxels`; at most 16."""
    fastest = float(velocity.detach().norm(dim=1).amax())
    if not math.isfinite(fastest):
        raise ValueError("velocity must be finite; it holds NaN or infinity. Did the optimization diverge?")
    return min(max(math.ceil(math.log2(max(fastest, 1e-12) / largest_voxels)), 0), 16)


def inverse(ddf: Float[Tensor, "b d *s"], *, iterations: int = 50, tolerance: float = 1e-3) -> Inverse:
    """The field w with u(q + w(q)) + w(q) = 0, by fixed point iteration  w <- -u(q + w).

    Args: tolerance: voxels; iteration ends when no voxel is further off, or after `iterations`.
    Returns: the field and its residual in voxels. A folded ddf has no inverse: look at the residual.
    Source: Chen et al. 2008, doi:10.1118/1.2816107.
    """
    _check_ddf(ddf, ddf.ndim - 2)
    guess = -ddf
    for _ in range(iterations):
        update = -warp(ddf, guess)
        change = (update - guess).norm(dim=1).amax()
        guess = update
        if change <= tolerance:
            break
    return Inverse(guess, compose(ddf, guess).norm(dim=1, keepdim=True))


def resize_ddf(ddf: Float[Tensor, "b d *s"], shape: Sequence[int]) -> Float[Tensor, "b d *t"]:
    """The same physical field on a grid of another shape: resized, values times (n_out - 1) / (n_in - 1).

    Convention: both grids share their first and last voxel centers, as `Grid.resize` makes them.
    """
    _check_ddf(ddf, len(tuple(shape)))
    factors = [(m - 1) / (n - 1) if m > 1 else 1 / n for n, m in zip(ddf.shape[2:], shape, strict=True)]
    scale = torch.tensor(factors, dtype=ddf.dtype, device=ddf.device).reshape(1, -1, *[1] * len(factors))
    return filters.resize(ddf, shape) * scale


def affine_ddf(
    matrix: Float[Tensor, "m m"], grid: Grid, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "1 d *s"]:
    """The ddf of a world matrix `moving_from_fixed`:  u[p] = voxel(M world(p)) - p, in voxels of `grid`.

    Differentiable in the matrix, which is combined with the grid's in its own precision (use float64).
    """
    d = grid.dim
    if matrix.shape != (d + 1, d + 1):
        raise ValueError(f"matrix must be ({d + 1}, {d + 1}) for a {d}-D grid; got {tuple(matrix.shape)}.")
    voxel, world = grid.voxel_from_world.to(matrix), grid.world_from_voxel.to(matrix)
    moves = (voxel @ matrix @ world - torch.eye(d + 1).to(matrix)).to(dtype)
    rows = []
    for k in range(d):
        row = moves[k, -1].expand(grid.shape)
        for j, n in enumerate(grid.shape):
            line = moves[k, j] * torch.arange(n).to(moves)
            row = row + line.reshape([-1 if i == j else 1 for i in range(d)])
        rows.append(row)
    return torch.stack(rows).unsqueeze(0)


def convert_ddf(ddf: Float[Tensor, "b d *s"], grid: Grid, *, to: str, from_: str) -> Float[Tensor, "b d *s"]:
    """Express displacements in other units: voxel, world (mm along RAS axes), cube or cube_corners.

    The layout stays (b, d, *s); only what a component measures changes. Every other function wants voxels.
    """
    require_on_grid(ddf, grid, "ddf")
    return grid.vectors(ddf.movedim(1, -1), to=Axes(to), from_=Axes(from_)).movedim(-1, 1)


def jacobian(ddf: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d d *s"]:
    """I + grad u:  J[k, j] = delta_kj + d u_k / d p_j, central differences, one-sided at the faces."""
    _check_ddf(ddf, ddf.ndim - 2)
    return _jacobian(ddf.to(_working(ddf))).to(ddf.dtype)


def _jacobian(ddf: Tensor) -> Tensor:
    d = ddf.shape[1]
    columns = [filters.finite_difference(ddf, j + 2) for j in range(d)]
    identity = torch.eye(d, dtype=ddf.dtype, device=ddf.device).reshape(1, d, d, *[1] * d)
    return torch.stack(columns, dim=2) + identity


def jacobian_determinant(ddf: Float[Tensor, "b d *s"]) -> Float[Tensor, "b 1 *s"]:
    """det(I + grad u): local change of volume from fixed to moving; at or below 0 the map folds."""
    _check_ddf(ddf, ddf.ndim - 2)
    j = _jacobian(ddf.to(_working(ddf)))
    if ddf.shape[1] == 2:
        return (j[:, 0, 0] * j[:, 1, 1] - j[:, 0, 1] * j[:, 1, 0]).unsqueeze(1).to(ddf.dtype)
    total = sum(
        j[:, 0, a] * (j[:, 1, b] * j[:, 2, c] - j[:, 1, c] * j[:, 2, b])
        for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    )
    return torch.as_tensor(total).unsqueeze(1).to(ddf.dtype)


__all__ = [
    "Grids",
    "Inverse",
    "affine_ddf",
    "compose",
    "convert_ddf",
    "exponential",
    "identity_ddf",
    "inverse",
    "jacobian",
    "jacobian_determinant",
    "resample",
    "resize_ddf",
    "sample",
    "valid_mask",
    "warp",
    "warp_labels",
    "warp_points",
]
