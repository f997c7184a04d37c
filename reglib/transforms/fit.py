"""The numerics of fitting: the closest linear map of two point sets, its parameters, and linear least squares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Freedom = Literal["translation", "rigid", "similarity", "affine"]


def closest_map(fixed: Tensor, moving: Tensor, weights: Tensor, freedom: Freedom) -> tuple[Tensor, Tensor]:
    """The linear part A (d, d) and shift t (d,) that minimize  sum w |A x + t - y|^2  within a family of maps.

    Args: fixed: x, moving: y, both (k, d) float64.   weights: w (k,), not negative.
    Raises: ValueError for too few points, or points that lie in too few dimensions.
    Source: Umeyama 1991, doi:10.1109/34.88573, equations 34 to 42; a rigid map is the same with scale 1.
    """
    weights = weights / weights.sum()
    fixed_mean, moving_mean = weights @ fixed, weights @ moving
    _require_spread("fixed_points", (fixed - fixed_mean)[weights > 0], fixed_mean, freedom)
    if freedom != "affine":  # which may flatten
        _require_spread("moving_points", (moving - moving_mean)[weights > 0], moving_mean, freedom)
    root = weights.sqrt()[:, None]
    x, y = root * (fixed - fixed_mean), root * (moving - moving_mean)
    if freedom == "translation":
        linear = torch.eye(x.shape[1]).to(x)
    elif freedom == "affine":
        linear = torch.linalg.lstsq(x, y).solution.T
    else:
        u, s, vt = torch.linalg.svd(y.T @ x)
        signs = torch.ones_like(s)
        signs[-1] = torch.linalg.det(u @ vt).sign()  # a rotation, never a reflection
        linear = u @ torch.diag(signs) @ vt
        if freedom == "similarity":
            linear = linear * ((s * signs).sum() / x.square().sum())
    return linear, moving_mean - linear @ fixed_mean


def _require_spread(name: str, points: Tensor, mean: Tensor, freedom: Freedom) -> None:
    """Raise unless points, their mean subtracted, are enough and span the dimensions that the map needs."""
    count, d = points.shape
    needed = {"translation": 0, "rigid": d - 1, "similarity": d - 1, "affine": d}[freedom]
    if count < needed + 1:
        raise ValueError(f"a {freedom} map in {d}-D needs at least {needed + 1} points; got {count} of weight above 0.")
    if not needed:
        return
    lengths = torch.linalg.svdvals(points)
    if float(lengths[needed - 1]) <= max(1e-6 * float(lengths[0]), 1e-9 * float(mean.norm())):
        place = {1: "one place", 2: "one line", 3: "one plane"}[needed]
        raise ValueError(
            f"{name} must not lie in {place}: that leaves a {freedom} map in {d}-D undetermined. Add points, or fit a "
            "simpler model."
        )


def parameters_of(linear: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The parameters of these names and sizes whose model gives `linear`:  R diag(exp s) (I + upper triangle of h).

    Raises: ValueError for a reflection or a singular matrix, which no parameters give.
    """
    from scipy.spatial.transform import Rotation

    d = len(linear)
    if float(torch.linalg.det(linear)) <= 0:
        raise ValueError(
            "the closest map is a reflection or flat, which this model cannot be; are left and right, or points and "
            "world, mixed up?"
        )
    q, r = torch.linalg.qr(linear)
    signs = r.diagonal().sign()
    q, r = q * signs, signs[:, None] * r
    scale = r.diagonal()
    rows, columns = torch.triu_indices(d, d, offset=1)
    log_scale = scale.log() if sizes.get("log_scale") != 1 else scale.log().mean(0, keepdim=True)
    found = {"log_scale": log_scale, "shear": (r / scale[:, None])[rows, columns]}
    if d == 2:
        found["angle_rad"] = torch.atan2(q[1, 0], q[0, 0])[None]
    else:
        turn = Rotation.from_matrix(q.cpu().numpy())
        found["angle_rad"] = torch.from_numpy(turn.as_rotvec()).to(q)
        found["quaternion"] = torch.from_numpy(turn.as_quat(canonical=True)).to(q).roll(1)  # x y z w -> w x y z
    return {name: found[name] for name in sizes if name in found}


def least_squares(
    spread: Callable[[Tensor], Tensor], target: Tensor, like: Tensor, *, iterations: int = 200, tolerance: float = 1e-6
) -> Tensor:
    """The c of the size of `like` that minimizes |spread(c) - target|^2, for a `spread` that is linear in c.

    Conjugate gradients on the normal equations, from 0; the adjoint of `spread` is taken by autograd.

    Args: tolerance: ends when the gradient is this share of the first.
    Source: Hestenes and Stiefel 1952, doi:10.6028/jres.049.044, section 10.
    """

    def adjoint(residual: Tensor) -> Tensor:
        with torch.enable_grad():
            probe = torch.zeros_like(like, requires_grad=True)
            return torch.autograd.grad(spread(probe), probe, residual)[0]

    solution, residual = torch.zeros_like(like), target
    gradient = adjoint(residual)
    direction, power = gradient, gradient.square().sum()
    first = float(power)
    for _ in range(iterations):
        if float(power) <= tolerance**2 * first:
            break
        moved = spread(direction)
        step = power / moved.square().sum()
        solution = solution + step * direction
        residual = residual - step * moved
        gradient = adjoint(residual)
        power, before = gradient.square().sum(), power
        direction = gradient + (power / before) * direction
    return solution
