"""Maps in a row, their inverses, exponentials and logarithms; fields on other grids and in other units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .. import filters
from ..grid import Axes, Grid, GridMismatchError, require_on_grid
from .calculus import jacobian_determinant, magnitude
from .sampling import check_ddf, sample, warp, working_dtype

LARGE = 1 << 17  # voxels above which `inverse` starts from half the resolution
POLISH = 12  # iterations that are then left for the full one
CLOSE = 0.01  # voxels off with which it is then content: most voxels are closer at once
SLAB = 1 << 20  # voxels that are inverted together, so that what is between takes little memory
SHARES = (0.2, 1.2)  # of what is left over, that an iteration of `inverse` takes off at least and at most
REACH = 9  # voxels beyond a fold that the smoothing of `unfold` and its own borders touch


class Inverse(NamedTuple):
    """An approximate inverse and what is left: |u(q + w(q)) + w(q)| in voxels, (b, 1, *s)."""

    ddf: Tensor
    residual: Tensor


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
    velocity: Float[Tensor, "b d *s"],
    *,
    steps: int | None = None,
    shape: Sequence[int] | None = None,
    start: Literal["midpoint", "euler"] = "midpoint",
) -> Float[Tensor, "b d *t"]:
    """Flow of a stationary velocity for unit time, by scaling and squaring:  exp(v) = exp(v / 2^n)^(2^n).

    Args:
        velocity: voxels per unit time.
        steps: number of squarings n; default `squarings(velocity, start=start)`, as many as the velocity needs.
        shape: integrate on a grid of this shape instead (both ends at the same centers) and return the ddf there;
            `resize_ddf` brings it back.
        start: how the first small step w = v / 2^n is made: "midpoint" w(p + w(p) / 2), or "euler" w(p).

    Source: Arsigny et al. 2006, doi:10.1007/11866565_113.
    Differs: the midpoint start is exact to second order, so that two or three squarings do what seven do elsewhere.
    """
    check_ddf(velocity, velocity.ndim - 2)
    if steps is not None and steps < 0:
        raise ValueError(f"steps must be at least 0 squarings; got {steps}.")
    if start not in ("midpoint", "euler"):
        raise ValueError(f'start must be "midpoint" or "euler"; got "{start}".')
    kind = velocity.dtype
    velocity = velocity.to(working_dtype(velocity))
    if shape is not None:
        velocity = resize_ddf(velocity, shape)
    if steps is None:
        steps = squarings(velocity, start=start)
    small = velocity * 0.5**steps
    ddf = warp(small, small / 2) if start == "midpoint" else small
    for _ in range(steps):
        ddf = compose(ddf, ddf)
    return ddf.to(kind)


def squarings(velocity: Tensor, *, start: Literal["midpoint", "euler"] = "midpoint") -> int:
    """How often to halve a velocity before its flow is a single step; at most 16.

    Euler: until no voxel moves by more than a quarter. Midpoint: until none moves by more than two and neighbors move
    apart by less than a voxel in all components together, so that the small map cannot fold.
    """
    v = velocity.detach()
    fastest = float(v.square().sum(1).amax().sqrt())
    if not math.isfinite(fastest):
        raise ValueError("velocity must be finite; it holds NaN or infinity. Did the optimization diverge?")
    halvings = math.log2(max(fastest, 1e-12) / (0.25 if start == "euler" else 2.0))
    if start == "midpoint":
        halvings = max(halvings, math.log2(max(_steepest(v), 1e-12)))
    return min(max(math.ceil(halvings), 0), 16)


def _steepest(v: Tensor) -> float:
    """A bound on |grad v|: the root of the sum, over components and axes, of the largest squared difference."""
    squared = v.new_zeros(())
    for axis, n in enumerate(v.shape[2:], start=2):
        for k in range(v.shape[1]) if n > 1 else ():
            low, high = v[:, k].diff(dim=axis - 1).aminmax()
            squared = squared + torch.maximum(-low, high).square()
    return float(squared.sqrt())


def logarithm(
    ddf: Float[Tensor, "b d *s"], *, iterations: int = 20, tolerance: float = 1e-4
) -> Float[Tensor, "b d *s"]:
    """The stationary velocity whose flow is this map:  exponential(logarithm(u)) = u, as far as there is one.

    Args:
        iterations: at most so many corrections  v <- BCH(v, r)  with r what exp(-v) leaves of the map.
        tolerance: voxels; corrections end when r is below it on average, or no longer halves: from then on they
            would only add noise that interpolation hides.

    A map that folds, or turns by half a turn, has no logarithm: compare `exponential` of the result with the ddf.

    Source: Bossa et al. 2007, doi:10.1007/978-3-540-75757-3_81; Arsigny et al. 2006, doi:10.1007/11866565_113.
    """
    check_ddf(ddf, ddf.ndim - 2)
    velocity = best = ddf
    before = math.inf
    for _ in range(iterations):
        rest = compose(exponential(-velocity), ddf)
        off = float(magnitude(rest.detach()).mean())
        if off < before:
            best = velocity
        if off <= tolerance or off > before / 2:
            break
        velocity, before = compose_velocities(velocity, rest, order=2), off
    return best


def lie_bracket(v: Float[Tensor, "b d *s"], w: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d *s"]:
    """[v, w] = Dv w - Dw v : what two flows differ by when their order is changed, to second order.

    Central differences, one-sided at the faces; zero for velocities that commute, such as v and 2 v.
    Source: Vercauteren et al. 2008, doi:10.1007/978-3-540-85988-8_90.
    """
    _require_shared(v, w)
    return _along(v, w) - _along(w, v)


def _require_shared(v: Tensor, w: Tensor) -> None:
    if v.shape != w.shape:
        raise GridMismatchError(f"both velocities must share one grid; got {tuple(v.shape)} and {tuple(w.shape)}.")
    check_ddf(v, v.ndim - 2)


def _along(v: Tensor, w: Tensor) -> Tensor:
    """Dv w: how v changes along w."""
    total = filters.finite_difference(v, 2) * w[:, :1]
    for j in range(1, v.shape[1]):
        total = torch.addcmul(total, filters.finite_difference(v, j + 2), w[:, j : j + 1])
    return total


def compose_velocities(
    v: Float[Tensor, "b d *s"], w: Float[Tensor, "b d *s"], *, order: int = 3
) -> Float[Tensor, "b d *s"]:
    """The velocity of two flows in a row, compose(exp(v), exp(w)), by the series of Baker, Campbell and Hausdorff.

    v + w + 1/2 [v, w] + 1/12 ([v, [v, w]] + [w, [w, v]])

    Args: order: 1 adds; 2 takes the first bracket, 3 the second ones too. Noise grows with every derivative.

    Source: Vercauteren et al. 2008, doi:10.1007/978-3-540-85988-8_90, equation 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3; got {order}.")
    _require_shared(v, w)
    if order == 1:
        return v + w
    bracket = lie_bracket(v, w)
    total = v + w + bracket / 2
    return total if order == 2 else total + (lie_bracket(v, bracket) - lie_bracket(w, bracket)) / 12


def inverse(
    ddf: Float[Tensor, "b d *s"], *, iterations: int = 50, tolerance: float = 1e-3, step: float | None = None
) -> Inverse:
    """The field w with u(q + w(q)) + w(q) = 0, by iteration  w <- w - step (u(q + w) + w).

    Args:
        tolerance: voxels; a voxel is found when it is no further off, or after `iterations`.
        step: share of what is left over that an iteration takes off, above 0 and at most 1. With 1, the plain fixed
            point  w <- -u(q + w), the search fails where the map stretches to more than double; with 0.5 beyond four
            times. By default each voxel begins with 1 and then takes the step that would have served it best.

    Returns: the field and its residual in voxels. A folded ddf has no inverse: look at the residual.

    Where there are more than `LARGE` voxels the search starts from the inverse at half the resolution, takes at most
    `POLISH` iterations more, and is content with `CLOSE`.

    Source: Chen et al. 2008, doi:10.1118/1.2816107; steps of Barzilai and Borwein 1988, doi:10.1093/imanum/8.1.141.
    """
    check_ddf(ddf, ddf.ndim - 2)
    if step is not None and not 0 < step <= 1:
        raise ValueError(f"step must be above 0 and at most 1; got {step}.")
    kind, ddf = ddf.dtype, ddf.to(working_dtype(ddf))
    shape, found = ddf.shape[2:], -ddf
    if shape.numel() > LARGE:
        half = resize_ddf(ddf, [(n + 1) // 2 for n in shape])
        coarse = inverse(half, iterations=iterations, tolerance=tolerance, step=step)
        found, iterations, tolerance = resize_ddf(coarse.ddf, shape), min(iterations, POLISH), max(tolerance, CLOSE)
        del half, coarse
    found, left = found.contiguous(), ddf.new_empty(len(ddf), 1, *shape)
    rows = max(1, SLAB // max(shape[1:].numel(), 1))
    for k, each in enumerate(ddf):
        for row in range(0, shape[0] if shape.numel() else 0, rows):
            slab = slice(row, row + rows)
            _search(each[None], row, found[k, :, slab], left[k, 0, slab], iterations, tolerance, step)
    return Inverse(found.to(kind), left.to(kind))


def _search(
    ddf: Tensor, row: int, found: Tensor, left: Tensor, iterations: int, tolerance: float, step: float | None
) -> None:
    """Improve rows of an inverse (d, *s) from `row` on, in place, and say what is left; as long as a voxel needs."""
    d, sizes = len(found), found.shape[1:]
    lines = [torch.arange(n).to(found) for n in sizes]
    voxels = torch.stack(torch.meshgrid(lines[0] + row, *lines[1:], indexing="ij")).view(d, -1)
    w, total, size = found.reshape(d, -1), torch.empty_like(voxels), torch.empty_like(voxels[0])
    open_, share = torch.arange(w.shape[1], device=w.device), torch.full_like(size, 1.0 if step is None else step)
    rest = w + sample(ddf, (voxels + w).T[None])[0]
    for count in range(iterations + 1):
        off = rest.square().sum(0)
        far = off > tolerance**2
        still = int(far.sum()) if count < iterations else 0
        if still < 0.7 * len(far):  # put away what is found
            total[:, open_], size[open_] = w, off.sqrt_()
            if not still:
                break
            kept = far.nonzero().flatten()
            open_, voxels, w, rest, share = (x.index_select(-1, kept) for x in (open_, voxels, w, rest, share))
        move = rest * share
        w = w - move
        before, rest = rest, w + sample(ddf, (voxels + w).T[None])[0]
        if step is None:
            change = before.sub_(rest)  # what the move did: it would have been right for `move` = change * share
            share = (move.mul_(change).sum(0) / change.square_().sum(0).clamp_(min=1e-30)).clamp_(*SHARES)
    found.copy_(total.view_as(found))
    left.copy_(size.view_as(left))


def unfold(
    ddf: Float[Tensor, "b d *s"], *, least: float = 0.01, iterations: int = 100
) -> tuple[Float[Tensor, "b d *s"], int]:
    """The field smoothed where it folds, and nowhere else, until no Jacobian determinant is below `least`.

    Each pass blends the field with its gaussian (sigma 1 voxel) around the voxels that fold, a little wider each time.
    It is meant for the odd fold that interpolation leaves; a map that folds widely ends as a smooth, different one.

    Returns: the field, and how many voxels still fold after `iterations`, normally 0.
    """
    check_ddf(ddf, ddf.ndim - 2)
    bad = jacobian_determinant(ddf) < least
    result = ddf
    for count in range(iterations):
        if not bool(bad.any()):
            break
        grow = 3 + 2 * min(count // 4, 4)
        part = _around(bad, margin=grow + REACH)
        if result is ddf:
            result = ddf.clone()
        blend = filters.gaussian(filters.box(bad[part].to(ddf), window=grow).clamp(max=1), sigma=1.0)
        here = torch.lerp(result[part], filters.gaussian(result[part], sigma=1.0), blend)
        result[part] = here
        touched = filters.box(blend, window=3) > 0  # the part's own borders are not
        bad[part] = (jacobian_determinant(here) < least) & touched
    return result, int(bad.sum())


def _around(mask: Tensor, *, margin: int) -> tuple[slice, ...]:
    """The smallest box that holds every true voxel, and `margin` voxels more on each side."""
    box = [slice(None), slice(None)]
    for axis, n in enumerate(mask.shape[2:], start=2):
        used = mask.amax([k for k in range(mask.ndim) if k != axis]).nonzero()
        box.append(slice(max(int(used[0]) - margin, 0), min(int(used[-1]) + 1 + margin, n)))
    return tuple(box)


def resize_ddf(ddf: Float[Tensor, "b d *s"], shape: Sequence[int]) -> Float[Tensor, "b d *t"]:
    """The same physical field on a grid of another shape: resized, values times (n_out - 1) / (n_in - 1).

    Convention: both grids share their first and last voxel centers, as `Grid.resize` makes them.
    """
    check_ddf(ddf, len(tuple(shape)))
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
    turn = grid.vectors(torch.eye(grid.dim, dtype=torch.float64), to=Axes(to), from_=Axes(from_)).T.to(ddf)
    return (turn @ ddf.flatten(2)).reshape(ddf.shape)
