"""What makes a displacement field implausible.

Every loss takes a ddf (b, d, *s) in voxels and two keywords: `spacing`, mm per voxel along each axis, with which
displacements and distances are in mm, so that one physical deformation has one energy on any grid; and `mask`
(b, 1, *s), weights from 0 to 1. Each is the mean over the voxels at which its differences exist, of a sum over
components and axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .. import field
from ..grid import per_axis
from ._shared import masked_mean
from ._stencils import CENTRAL, FORWARD, NESTED_SECOND, SECOND, Stencil, difference, energy

__all__ = [
    "Material",
    "bending_loss",
    "bspline_bending_loss",
    "curvature_loss",
    "diffusion_loss",
    "divergence_loss",
    "elastic_loss",
    "folding_loss",
    "gradient_inverse_consistency_loss",
    "gradient_loss",
    "inverse_consistency_loss",
    "log_jacobian_loss",
    "sparsity_loss",
    "total_variation_loss",
]

Spacing = float | Sequence[float] | None


# -- first derivatives ------------------------------------------------------------------------------------------
def gradient_loss(
    ddf: Float[Tensor, "b d *s"],
    *,
    spacing: Spacing = None,
    norm: Literal["l1", "l2"] = "l2",
    stencil: Literal["central", "forward"] = "central",
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """Size of the first derivatives,  mean sum_jk |d u_k / d x_j|^p  with p = 1 or 2; 0 for a translation.

    Args:
        norm: "l2" squares the derivatives, "l1" takes their absolute values.
        stencil: "central" (u[p+1] - u[p-1]) / 2, blind to a checkerboard; "forward" u[p+1] - u[p].

    Source: DeepReg's `gradient` (central); Balakrishnan et al. 2019, arXiv:1809.05231, L_smooth (forward).
    Differs: a sum over components and axes (MONAI and VoxelMorph average them); every difference that exists counts
        (DeepReg leaves out one voxel on every side).
    """
    if norm not in ("l1", "l2") or stencil not in ("central", "forward"):
        raise ValueError(
            f'norm must be "l1" or "l2", stencil "central" or "forward"; got norm="{norm}", stencil="{stencil}".'
        )
    steps = _steps(ddf, spacing, mask)
    line = CENTRAL if stencil == "central" else FORWARD
    return energy(ddf, _first(line, steps), power=2 if norm == "l2" else 1, mask=mask)


def diffusion_loss(
    ddf: Float[Tensor, "b d *s"], *, spacing: Spacing = None, mask: Shaped[Tensor, "#b 1 *s"] | None = None
) -> Float[Tensor, ""]:
    """Diffusion energy  mean |grad u|^2 , by forward differences; dimensionless with `spacing`.

    Source: Balakrishnan et al. 2019, arXiv:1809.05231, L_smooth.   Differs: sum over axes; optional mm; deepali's has
        a factor 1/2, MONAI's central differences.
    """
    return gradient_loss(ddf, spacing=spacing, norm="l2", stencil="forward", mask=mask)


def total_variation_loss(
    ddf: Float[Tensor, "b d *s"],
    *,
    spacing: Spacing = None,
    isotropic: bool = False,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """Total variation: lets a field jump, as along a sliding organ, where diffusion would smear the jump.

    Args:
        isotropic: mean sum_k |grad u_k|, which does not prefer jumps along an axis; else mean sum_jk |d u_k / d x_j|.

    The gradient of the isotropic form is 0 where the field is flat. Forward differences.

    Source: Rudin, Osher and Fatemi 1992, doi:10.1016/0167-2789(92)90242-F; AirLab's TV and IsotropicTV.
    Differs: AirLab multiplies squared differences by the spacing; here derivatives are divided by it.
    """
    if not isotropic:
        return gradient_loss(ddf, spacing=spacing, norm="l1", stencil="forward", mask=mask)
    steps = _steps(ddf, spacing, mask)
    u = (ddf if ddf.dtype == torch.float64 else ddf.float()) * ddf.new_tensor(steps).reshape(1, -1, *[1] * len(steps))
    squared, weight = u - u, None if mask is None else mask.to(u.dtype)
    for axis, step in enumerate(steps, start=2):
        n = u.shape[axis]
        if n > 1:
            slope = u.diff(dim=axis) / step
            squared = squared + torch.cat([slope, torch.zeros_like(slope.narrow(axis, 0, 1))], axis).square()
            if weight is not None and mask is not None:
                after = torch.cat([mask.narrow(axis, 1, n - 1), mask.narrow(axis, n - 1, 1)], axis)
                weight = weight.minimum(after.to(u.dtype))
    sloped = squared > 0
    length = torch.where(sloped, torch.where(sloped, squared, torch.ones_like(squared)).sqrt(), squared)
    return masked_mean(length.sum(1, keepdim=True), weight).to(ddf.dtype)


# -- second derivatives -----------------------------------------------------------------------------------------
def bending_loss(
    ddf: Float[Tensor, "b d *s"],
    *,
    spacing: Spacing = None,
    stencil: Literal["compact", "nested"] = "compact",
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """Bending energy  mean sum_ij |d2 u / dx_i dx_j|^2 , zero for every affine map; per mm^2 with `spacing`.

    Args:
        stencil: "compact" [1, -2, 1] along an axis; "nested", the central difference applied twice, is blind to a
            checkerboard. Across two axes both use the four diagonal neighbors.

    Source: Rueckert et al. 1999, doi:10.1109/42.796284, equation 5. Nested as in DeepReg, compact as in MONAI 1.6.
    Differs: a sum over components (MONAI averages); every difference that exists counts, also near the faces.
    """
    if stencil not in ("compact", "nested"):
        raise ValueError(f'stencil must be "compact" or "nested"; got "{stencil}".')
    steps = _steps(ddf, spacing, mask)
    d, line = len(steps), SECOND if stencil == "compact" else NESTED_SECOND
    stencils = []
    for k in range(d):
        stencils += [difference(k, steps[k] / steps[i] ** 2, {i: line}, d) for i in range(d)]
        for i, j in combinations(range(d), 2):
            mixed = difference(k, steps[k] / (steps[i] * steps[j]), {i: CENTRAL, j: CENTRAL}, d)
            stencils.append(mixed.weighing(2.0))
    return energy(ddf, stencils, mask=mask)


def bspline_bending_loss(
    coefficients: Float[Tensor, "b d *s"], *, stride: float | Sequence[float] = 1.0, spacing: Spacing = None
) -> Float[Tensor, ""]:
    """Bending energy of a cubic B-spline field at its control points, from the coefficients alone: no dense field.

    Args:
        coefficients: voxels of the image's grid, as `FreeFormDeformation` holds them.
        stride: voxels between control points along each axis.
        spacing: mm per voxel.

    Source: Rueckert et al. 1999, doi:10.1109/42.796284; derivatives of the basis at its knots.
    """
    steps = _steps(coefficients, spacing, None)
    d = len(steps)
    strides = per_axis(stride, d, "stride")
    if min(strides) <= 0:
        raise ValueError(f"stride must be above 0 voxels between control points; got {stride}.")
    knot, value = [s * h for s, h in zip(strides, steps, strict=True)], {1: 1 / 6, 0: 4 / 6, -1: 1 / 6}
    plain = dict.fromkeys(range(d), value)
    stencils = []
    for k in range(d):
        stencils += [difference(k, steps[k] / knot[i] ** 2, plain | {i: SECOND}, d) for i in range(d)]
        for i, j in combinations(range(d), 2):
            mixed = difference(k, steps[k] / (knot[i] * knot[j]), plain | {i: CENTRAL, j: CENTRAL}, d)
            stencils.append(mixed.weighing(2.0))
    return energy(coefficients, stencils)


def curvature_loss(
    ddf: Float[Tensor, "b d *s"], *, spacing: Spacing = None, mask: Shaped[Tensor, "#b 1 *s"] | None = None
) -> Float[Tensor, ""]:
    """Curvature energy  mean sum_k (Laplacian u_k)^2 ; zero for harmonic fields, affine ones among them.

    Source: Fischer and Modersitzki 2003, doi:10.1023/A:1021897212261.   Differs: deepali's has a factor 1/2.
    """
    steps = _steps(ddf, spacing, mask)
    d, axes = len(steps), [axis for axis, n in enumerate(ddf.shape[2:]) if n > 2]
    parts = [[difference(k, steps[k] / steps[i] ** 2, {i: SECOND}, d) for i in axes] for k in range(d)]
    return energy(ddf, [_total(part) for part in parts if part], mask=mask)


# -- volume and elasticity --------------------------------------------------------------------------------------
def divergence_loss(
    ddf: Float[Tensor, "b d *s"], *, spacing: Spacing = None, mask: Shaped[Tensor, "#b 1 *s"] | None = None
) -> Float[Tensor, ""]:
    """Squared divergence  mean (sum_k d u_k / d x_k)^2 : small motion that keeps volume costs nothing.

    Differs: deepali's has a factor 1/2. Central differences.
    """
    _steps(ddf, spacing, mask)  # the divergence has no unit, so that spacing cancels
    d = ddf.ndim - 2
    parts = [difference(k, 1.0, {k: CENTRAL}, d) for k in range(d) if ddf.shape[k + 2] > 2]
    return energy(ddf, [_total(parts)] if parts else [], mask=mask)


@dataclass(frozen=True)
class Material:
    """The two Lame constants of an elastic body, in any unit of pressure: only their ratio shapes the field.

    Args: first: lambda, resists change of volume.   shear: mu, resists change of shape.
    """

    first: float = 1.0
    shear: float = 1.0

    def __post_init__(self) -> None:
        if not self.shear >= 0 or not self.first + self.shear >= 0:
            raise ValueError(
                f"shear must be at least 0 and first + shear too, or stretching would gain energy; "
                f"got first={self.first}, shear={self.shear}."
            )

    @classmethod
    def from_young(cls, young: float, poisson: float) -> Material:
        """From Young's modulus E and Poisson's ratio nu:  lambda = E nu / ((1 + nu)(1 - 2 nu)), mu = E / (2 + 2 nu)."""
        if not young > 0 or not -1 < poisson < 0.5:
            raise ValueError(
                f"young must be above 0 and poisson between -1 and 0.5 (rubber is near 0.5); got {young}, {poisson}."
            )
        return cls(young * poisson / ((1 + poisson) * (1 - 2 * poisson)), young / (2 + 2 * poisson))


def elastic_loss(
    ddf: Float[Tensor, "b d *s"],
    *,
    spacing: Spacing = None,
    material: Material = Material(),
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """Linear elastic energy  mean  lambda / 2 (div u)^2 + mu / 4 sum_jk (d u_k / d x_j + d u_j / d x_k)^2 .

    Zero for translations and, to first order, rotations. Central differences.

    Source: Broit 1981; Modersitzki 2003, doi:10.1093/acprof:oso/9780198528418.001.0001, section 10.1.
    Differs: Lame constants from Young and Poisson by the textbook formulas (deepali's are mis-bracketed).
    """
    steps = _steps(ddf, spacing, mask)
    d, axes = len(steps), [axis for axis, n in enumerate(ddf.shape[2:]) if n > 2]

    def slope(k: int, j: int) -> Stencil:
        return difference(k, steps[k] / steps[j], {j: CENTRAL}, d)

    own = [slope(k, k) for k in axes]
    stencils = [part.weighing(material.shear) for part in own]
    if own:
        stencils.append(_total(own).weighing(material.first / 2))
    for j, k in combinations(range(d), 2):
        parts = [slope(a, b) for a, b in ((k, j), (j, k)) if b in axes]
        if parts:
            stencils.append(_total(parts).weighing(material.shear / 2))
    return energy(ddf, stencils, mask=mask)


def folding_loss(
    ddf: Float[Tensor, "b d *s"],
    *,
    spacing: Spacing = None,
    margin: float = 0.0,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """How far the Jacobian determinant falls below a margin,  mean max(0, margin - det(I + grad u)).

    Args:
        margin: 0 punishes folds alone; above 0 it acts before they form. Determinants have no unit, nor does `spacing`
            change them.

    Source: Mok and Chung 2020, arXiv:2003.09514, equation 6.
    """
    _steps(ddf, spacing, mask)
    determinant = field.jacobian_determinant(ddf if ddf.dtype == torch.float64 else ddf.float())
    return masked_mean((margin - determinant).clamp(min=0), mask).to(ddf.dtype)


def log_jacobian_loss(
    ddf: Float[Tensor, "b d *s"],
    *,
    spacing: Spacing = None,
    least: float = 0.05,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """How much a map grows or shrinks volumes,  mean log^2 det(I + grad u): doubling costs as much as halving.

    Unlike diffusion it leaves shear and rotation alone, which bend an anatomy without making it implausible.

    Args:
        least: below this determinant the loss continues as a straight line, so that a fold is pulled open again.
            Determinants have no unit, nor does `spacing` change them.

    Source: Ashburner et al. 1999, doi:10.1016/S1361-8415(99)80002-0, a log-normal prior on each volume change.
    Differs: not weighted by (1 + det), which would make it symmetric under exchange of the images.
    """
    _steps(ddf, spacing, mask)
    if not 0 < least < 1:
        raise ValueError(f"least must be a determinant above 0 and below 1; got {least}.")
    determinant = field.jacobian_determinant(ddf if ddf.dtype == torch.float64 else ddf.float())
    safe = determinant.clamp(min=least)
    slope = 2 * math.log(least) / least
    values = safe.log().square().add_(determinant - safe, alpha=slope)
    return masked_mean(values, mask).to(ddf.dtype)


# -- pairs of fields and parameters -----------------------------------------------------------------------------
def inverse_consistency_loss(
    ddf: Float[Tensor, "b d *s"],
    inverse_ddf: Float[Tensor, "b d *s"],
    *,
    spacing: Spacing = None,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared distance to where one started, going there and back:  mean |w(q) + u(q + w(q))|^2 , mm^2.

    Args: ddf, inverse_ddf: fixed to moving, and back, on one grid.   mask: on the grid of `inverse_ddf`.

    Source: Christensen and Johnson 2001, doi:10.1109/42.932742.   Differs: one direction; call it twice for both.
    """
    steps = _steps(ddf, spacing, mask)
    residual = field.compose(ddf, inverse_ddf) * ddf.new_tensor(steps).reshape(1, -1, *[1] * len(steps))
    return masked_mean(residual.square().sum(1, keepdim=True), mask)


def gradient_inverse_consistency_loss(
    ddf: Float[Tensor, "b d *s"],
    inverse_ddf: Float[Tensor, "b d *s"],
    *,
    spacing: Spacing = None,
    mask: Shaped[Tensor, "#b 1 *s"] | None = None,
) -> Float[Tensor, ""]:
    """Departure of going there and back from a translation:  mean |grad (u o w)|^2  of the composed displacement.

    It punishes what folds and stretches and forgives a common shift, which a similarity settles better.

    Args: as for `inverse_consistency_loss`.
    Source: Tian et al. 2023, arXiv:2206.05897 (GradICON), equation 4.
    """
    return diffusion_loss(field.compose(ddf, inverse_ddf), spacing=spacing, mask=mask)


def sparsity_loss(
    ddf: Float[Tensor, "b d *s"], *, spacing: Spacing = None, mask: Shaped[Tensor, "#b 1 *s"] | None = None
) -> Float[Tensor, ""]:
    """Mean length of a displacement in the city-block sense,  mean sum_k |u_k| , mm: most voxels should not move.

    Source: AirLab's Sparsity.   Differs: a sum over components; optional mm.
    """
    steps = _steps(ddf, spacing, mask)
    length = ddf.abs() * ddf.new_tensor(steps).reshape(1, -1, *[1] * len(steps))
    return masked_mean(length.sum(1, keepdim=True), mask)


# -- shared -----------------------------------------------------------------------------------------------------
def _first(line: dict[int, float], steps: Sequence[float]) -> list[Stencil]:
    d = len(steps)
    return [difference(k, steps[k] / steps[j], {j: line}, d) for k in range(d) for j in range(d)]


def _total(stencils: Sequence[Stencil]) -> Stencil:
    first, *rest = stencils
    for other in rest:
        first = first + other
    return first


def _steps(ddf: Tensor, spacing: Spacing, mask: Tensor | None) -> tuple[float, ...]:
    """mm between voxels, 1 if no spacing is given; checks the field and the mask too."""
    d = ddf.ndim - 2
    if d not in (2, 3) or ddf.shape[1] != d:
        hint = " Channels last? use ddf.movedim(-1, 1)." if ddf.shape[-1] == d else ""
        raise ValueError(f"ddf must be (b, {d}, *{d} sizes) in voxels; got {tuple(ddf.shape)}.{hint}")
    if not ddf.is_floating_point():
        raise TypeError(f"ddf must be floating point; got {ddf.dtype}. Use .float().")
    if mask is not None and (mask.shape[1:] != (1, *ddf.shape[2:]) or mask.shape[0] not in (1, len(ddf))):
        raise ValueError(
            f"mask must be ({len(ddf)}, 1, {', '.join(map(str, ddf.shape[2:]))}); got {tuple(mask.shape)}."
        )
    if spacing is None:
        return (1.0,) * d
    steps = per_axis(spacing, d, "spacing")
    if not min(steps) > 0:
        raise ValueError(f"spacing must be above 0 mm; got {steps}.")
    return steps
