"""Reading images and fields between voxels: warp, resample, labels, points.

This module alone calls `torch.nn.functional.grid_sample`; every coordinate means `align_corners=True`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import product
from typing import Any, Literal, TypedDict

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import filters
from ..grid import Grid, GridMismatchError, require_on_grid

Mode = Literal["bilinear", "nearest", "cubic"]


class Grids(TypedDict):
    """Both grids of a pair, to pass on as `**grids`."""

    moving_grid: Grid
    fixed_grid: Grid


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
    check_ddf(ddf, moving.ndim - 2)
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
    check_ddf(ddf, ddf.ndim - 2)
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
    check_ddf(ddf, points.shape[-1])
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
        torch.zeros(1, grid.dim, *grid.shape, device=image.device, dtype=working_dtype(image)),
        mode=mode,
        padding=padding,
        moving_grid=image_grid,
        fixed_grid=grid,
    )


def _beyond_float32(labels: Tensor) -> bool:
    return labels.numel() > 0 and bool(labels.abs().max() >= 2**24)


def working_dtype(image: Tensor) -> torch.dtype:
    """float32 at least: half precision has too few digits for coordinates."""
    return torch.float64 if image.dtype == torch.float64 else torch.float32


def check_ddf(ddf: Tensor, d: int) -> None:
    if ddf.ndim != d + 2 or ddf.shape[1] != d:
        hint = " Channels last? use ddf.movedim(-1, 1)." if ddf.shape[-1] == d else ""
        raise ValueError(f"ddf must be (b, {d}, *{d} sizes) in voxels for {d}-D data; got {tuple(ddf.shape)}.{hint}")


def _targets(ddf: Tensor, image: Tensor, moving_grid: Grid | None, fixed_grid: Grid | None) -> list[Tensor]:
    """p + ddf[p] for each axis, (b, *t), in voxels of the moving image; one tensor an axis, so no copies."""
    if (moving_grid is None) != (fixed_grid is None):
        raise ValueError("pass both moving_grid and fixed_grid, or neither when both images share one grid.")
    d, dtype = ddf.shape[1], working_dtype(ddf if ddf.dtype == torch.float64 else image)
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
    working = image.to(torch.float64 if image.dtype == torch.float64 else working_dtype(targets[0]))
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
    """Read (b, c, *s) at positions in voxels; the only place that calls torch's `grid_sample`."""
    result: Tensor = _Read.apply(image, mode, padding, *targets)
    return result


class _Read(torch.autograd.Function):
    """`grid_sample` on every core: torch reads the images of a batch in parallel, but a single image on one core.

    A single image is therefore read as several that share its memory, each at its share of the positions.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, mode: str, padding: str, *targets: Tensor) -> Tensor:
        shape = targets[0].shape
        batch = max(shape[0], len(image))
        parts = _parts(image, batch, targets[0][0].numel())
        grid = _normalized(image, targets, batch, parts)
        if any(ctx.needs_input_grad) and not bool(grid.sum().isfinite()):  # torch's backward would crash the process
            raise ValueError("the field must be finite; it holds NaN or infinity. Did the optimization diverge?")
        read = torch.nn.functional.grid_sample(
            image.expand(len(grid), *image.shape[1:]), grid, mode=mode, padding_mode=padding, align_corners=True
        )
        ctx.save_for_backward(image, grid)
        ctx.modes, ctx.shape, ctx.parts = (int(mode == "nearest"), int(padding == "border")), shape, parts
        return _joined(read, batch, parts, shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        image, grid = ctx.saved_tensors
        d, wanted = image.ndim - 2, ctx.needs_input_grad
        backward = torch.ops.aten.grid_sampler_3d_backward if d == 3 else torch.ops.aten.grid_sampler_2d_backward
        to_image, to_grid = backward(
            _cut(outer[0], grid), image.expand(len(grid), *image.shape[1:]), grid, *ctx.modes, True,
            [wanted[0], any(wanted[3:])],
        )  # fmt: skip
        if wanted[0]:
            to_image = to_image.sum(0, keepdim=True) if len(image) == 1 else to_image
        to_targets: list[Tensor | None] = [None] * d
        if any(wanted[3:]):
            batch = outer[0].shape[0]
            for k, n in enumerate(image.shape[2:]):
                moved = to_grid[..., d - 1 - k].reshape(batch, -1)[:, : math.prod(ctx.shape[1:])] * (2 / max(n - 1, 1))
                moved = moved.reshape(batch, *ctx.shape[1:])
                to_targets[k] = moved.sum(0, keepdim=True) if ctx.shape[0] < batch else moved
        return to_image if wanted[0] else None, None, None, *to_targets


def _parts(image: Tensor, batch: int, count: int) -> int:
    """Into how many shares the positions of a single image are cut."""
    return torch.get_num_threads() if batch == 1 and image.device.type == "cpu" and count > 4096 else 1


def _normalized(image: Tensor, targets: Sequence[Tensor], batch: int, parts: int) -> Tensor:
    """Positions in [-1, 1], x first, (batch * parts, *t, d); with parts, (parts, 1[, 1], m, d) padded with zeros."""
    d, shape = len(targets), targets[0].shape
    count = math.prod(shape[1:])
    share = -(-count // parts)
    grid = targets[0].new_empty(shape[0], parts * share, d)
    grid[:, count:] = 0
    for k, (x, n) in enumerate(zip(targets, image.shape[2:], strict=True)):
        torch.mul(x.reshape(shape[0], -1), 2 / max(n - 1, 1), out=grid[:, :count, d - 1 - k])
    grid.sub_(1)
    if parts > 1:
        return grid.view(parts, *[1] * (d - 1), share, d)
    return grid.view(*shape, d).expand(batch, *shape[1:], d)


def _joined(read: Tensor, batch: int, parts: int, shape: Sequence[int]) -> Tensor:
    """What the parts read, (batch, c, *shape)."""
    if parts == 1:
        return read
    return (
        read.flatten(2)
        .transpose(0, 1)
        .reshape(1, read.shape[1], -1)[..., : math.prod(shape)]
        .reshape(batch, read.shape[1], *shape)
    )


def _cut(gradient: Tensor, grid: Tensor) -> Tensor:
    """A gradient (b, c, *t) laid out as the parts of `grid`."""
    if len(grid) == len(gradient):
        return gradient.contiguous()
    lines = gradient.flatten(2)[0]  # (c, n)
    padded = torch.nn.functional.pad(lines, (0, len(grid) * grid.shape[-2] - lines.shape[1]))
    return padded.view(len(lines), len(grid), -1).transpose(0, 1).reshape(len(grid), len(lines), *grid.shape[1:-1])


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
