"""Regularizers: against NumPy float64 stencils, DeepReg's, VoxelMorph's and MONAI's formulas, and one energy a map."""

import math

import numpy as np
import pytest
import torch
from helpers import SHAPE_CASES, SHAPES, SPACINGS, inner, largest, quiet, sentence, smooth_ddf, smooth_image, voxels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from reglib import field
from reglib.grid import Axes, Grid
from reglib.losses import (
    Material,
    bending_loss,
    bspline_bending_loss,
    curvature_loss,
    diffusion_loss,
    divergence_loss,
    elastic_loss,
    folding_loss,
    gradient_inverse_consistency_loss,
    gradient_loss,
    inverse_consistency_loss,
    log_jacobian_loss,
    sparsity_loss,
    total_variation_loss,
)
from reglib.transforms import FreeFormDeformation

RUBBER = Material.from_young(1.0, 0.45)


def with_its_inverse(loss):
    """A loss of two fields as a loss of one: the second is half its opposite, so that something is left."""
    return lambda ddf, **k: loss(ddf, -0.5 * ddf, **k)


ENERGIES = {
    "diffusion": diffusion_loss,
    "gradient": gradient_loss,
    "gradient l1": lambda u, **k: gradient_loss(u, norm="l1", **k),
    "total variation": total_variation_loss,
    "isotropic tv": lambda u, **k: total_variation_loss(u, isotropic=True, **k),
    "bending": bending_loss,
    "nested bending": lambda u, **k: bending_loss(u, stencil="nested", **k),
    "curvature": curvature_loss,
    "divergence": divergence_loss,
    "elastic": elastic_loss,
    "rubber": lambda u, **k: elastic_loss(u, material=RUBBER, **k),
    "folding": lambda u, **k: folding_loss(u, margin=0.9, **k),
    "log jacobian": log_jacobian_loss,
    "sparsity": sparsity_loss,
    "inverse consistency": with_its_inverse(inverse_consistency_loss),
    "gradicon": with_its_inverse(gradient_inverse_consistency_loss),
}
energies = pytest.mark.parametrize("name", ENERGIES)
SMOOTH = sorted(ENERGIES.keys() - {"gradient l1", "total variation", "sparsity", "folding", "isotropic tv"})


# -- definitions, written again in NumPy ----------------------------------------------------------------------------
def taken(u, axis, offset, low, high):
    """u moved by an offset along a spatial axis, where p - low and p + high exist."""
    n = u.shape[axis + 1]
    return np.take(u, np.arange(low + offset, n - high + offset), axis + 1)


def forward(u, axis, h):
    return np.diff(u, axis=axis + 1) / h


def central(u, axis, h):
    return (taken(u, axis, 1, 1, 1) - taken(u, axis, -1, 1, 1)) / (2 * h)


def second(u, axis, h):
    return (taken(u, axis, 1, 1, 1) - 2 * taken(u, axis, 0, 1, 1) + taken(u, axis, -1, 1, 1)) / h**2


def numpy_energy(name, ddf, h):
    """The mean over the batch of the named energy; h = mm along each axis."""
    return np.mean([numpy_single(name, u * np.reshape(h, (-1, *[1] * len(h))), h) for u in ddf.numpy()])


def numpy_single(name, u, h):
    d = len(h)
    axes, pairs = range(d), [(i, j) for i in range(d) for j in range(i)]
    if name == "diffusion":
        return sum((forward(u, i, h[i]) ** 2).sum(0).mean() for i in axes)
    if name == "total variation":
        return sum(np.abs(forward(u, i, h[i])).sum(0).mean() for i in axes)
    if name == "isotropic tv":
        ends = [np.concatenate([forward(u, i, h[i]), 0 * taken(u, i, 0, 0, u.shape[i + 1] - 1)], i + 1) for i in axes]
        return np.sqrt(sum(e**2 for e in ends)).sum(0).mean()
    if name == "gradient":
        return sum((central(u, i, h[i]) ** 2).sum(0).mean() for i in axes)
    if name == "gradient l1":
        return sum(np.abs(central(u, i, h[i])).sum(0).mean() for i in axes)
    if name in ("bending", "nested bending"):
        pure = second if name == "bending" else lambda x, i, s: central(central(x, i, s), i, s)
        own = sum((pure(u, i, h[i]) ** 2).sum(0).mean() for i in axes)
        return own + 2 * sum((central(central(u, i, h[i]), j, h[j]) ** 2).sum(0).mean() for i, j in pairs)
    core = (slice(None), *[slice(1, -1)] * d)
    slopes = np.stack([np.stack(np.gradient(u[k], *h)) for k in axes])  # (k, j, *s): d u_k / d x_j
    if name == "curvature":
        laplacian = sum(second(u, i, h[i])[tuple(np.delete([slice(None), *[slice(1, -1)] * d], i + 1).tolist()[:i + 1]
                    + [slice(None)] + [slice(1, -1)] * (d - 1 - i))] for i in axes)  # fmt: skip
        return (laplacian**2).sum(0).mean()
    if name == "divergence":
        return (sum(slopes[k, k] for k in axes)[core[1:]] ** 2).mean()
    material = {"elastic": Material(1.0, 1.0), "rubber": RUBBER}[name]
    div = sum(slopes[k, k] for k in axes)[core[1:]]
    total = material.first / 2 * (div**2).mean()
    for k in axes:
        total += material.shear * (central(u[k : k + 1], k, h[k]) ** 2).mean()
    for i, j in pairs:
        crop = tuple(slice(1, -1) if axis in (i, j) else slice(None) for axis in axes)
        total += material.shear / 2 * ((slopes[i, j] + slopes[j, i])[crop] ** 2).mean()
    return total


DEFINED = ["diffusion", "total variation", "isotropic tv", "gradient", "gradient l1", "bending", "nested bending"]
DEFINED += ["curvature", "divergence", "elastic", "rubber"]


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize("spaced", [False, True])
def test_energy_follows_its_definition(name, shape, spaced):
    ddf = smooth_ddf(shape, largest=2.0, sigma=1.5, batch=2, dtype=torch.float64)
    h = SPACINGS[len(shape)] if spaced else (1.0,) * len(shape)
    found = ENERGIES[name](ddf, spacing=SPACINGS[len(shape)] if spaced else None)
    assert abs(float(found) - numpy_energy(name, ddf, h)) < 1e-9 * max(1, float(found))


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_folding_is_how_far_determinants_fall_below_the_margin(shape):
    ddf = smooth_ddf(shape, largest=6.0, sigma=1.0, dtype=torch.float64)
    slopes = np.stack([np.stack(np.gradient(u)) for u in ddf[0].numpy()])
    jacobian = np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(len(shape))
    determinant = np.linalg.det(jacobian)
    for margin in (0.0, 0.3):
        expected = np.maximum(margin - determinant, 0).mean()
        assert abs(float(folding_loss(ddf, margin=margin)) - expected) < 1e-9
        assert expected > 0.01
    assert float(folding_loss(0.01 * ddf)) == 0


@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize("largest", [1.0, 6.0])
def test_log_jacobian_is_the_mean_square_of_the_logarithm_and_a_line_below(shape, largest):
    ddf = smooth_ddf(shape, largest=largest, sigma=1.0, dtype=torch.float64)
    slopes = np.stack([np.stack(np.gradient(u)) for u in ddf[0].numpy()])
    determinant = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(len(shape)))
    least = 0.2
    line = np.log(least) ** 2 + 2 * np.log(least) / least * (determinant - least)
    expected = np.where(determinant > least, np.log(np.maximum(determinant, least)) ** 2, line).mean()
    assert (determinant < least).any() == (largest > 1)
    assert abs(float(log_jacobian_loss(ddf, least=least)) - expected) < 1e-9 * max(1, expected)


def test_log_jacobian_counts_growth_like_shrinking_and_leaves_shear_alone():
    p = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(13.0), indexing="ij"))[None].double()
    doubled, halved = log_jacobian_loss(p), log_jacobian_loss(-p / 2)
    assert abs(float(doubled) - math.log(4) ** 2) < 1e-9
    assert abs(float(doubled - halved)) < 1e-9
    assert float(log_jacobian_loss(torch.cat([0 * p[:, :1], p[:, :1]], dim=1))) < 1e-12
    with pytest.raises(ValueError, match="least") as raised:
        log_jacobian_loss(p, least=0.0)
    sentence(raised, "least", "0")


# -- other systems, where definitions agree --------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_deepregs_gradient_on_a_field_that_rests_at_the_faces(shape):
    """DeepReg crops every axis, ours only the one it differentiates: the sums agree, the counts differ by the rims."""
    d, shape = len(shape), tuple(n + 8 for n in shape)
    calm = np.pad(np.ones([n - 12 for n in shape]), 6)
    ddf = smooth_ddf(shape, largest=2.0, sigma=1.0, dtype=torch.float64) * torch.from_numpy(calm)
    first = []
    for axis in range(d):
        crop = tuple(slice(None) if k == axis else slice(1, -1) for k in range(d))
        first.append(central(ddf[0].numpy(), axis, 1.0)[(slice(None), *crop)])
    for norm, size in (("l1", np.abs), ("l2", np.square)):
        counts = [math.prod(shape) / n * (n - 2) for n in shape]
        expected = sum(size(x).sum() / count for x, count in zip(first, counts, strict=True))
        assert abs(float(gradient_loss(ddf, norm=norm)) - expected) < 1e-9 * expected


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_voxelmorphs_grad_is_ours_divided_by_axes_and_components(shape):
    """Its mean over components and axes of forward differences; ours is the sum."""
    ddf = smooth_ddf(shape, largest=2.0, sigma=1.5, batch=2, dtype=torch.float64)
    d = len(shape)
    steps = [ddf.diff(dim=k + 2) for k in range(d)]
    assert abs(float(diffusion_loss(ddf)) / d**2 - float(sum((s**2).mean() for s in steps)) / d) < 1e-12
    l1 = gradient_loss(ddf, norm="l1", stencil="forward")
    assert abs(float(l1) / d**2 - float(sum(s.abs().mean() for s in steps)) / d) < 1e-12


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_monais_bending_and_diffusion_on_a_field_that_rests_at_the_faces(shape):
    """The same stencils, MONAI's cropped on every side and averaged over components."""
    from monai.losses import BendingEnergyLoss, DiffusionLoss

    shape = tuple(n + 40 for n in shape)
    calm = torch.from_numpy(np.pad(np.ones([n - 12 for n in shape]), 6))
    ddf = smooth_ddf(shape, largest=2.0, sigma=1.0, dtype=torch.float64) * calm
    d = len(shape)
    for ours, theirs in ((bending_loss, BendingEnergyLoss), (gradient_loss, DiffusionLoss)):
        expected = d * float(quiet(quiet(theirs), ddf))
        assert abs(float(ours(ddf)) - expected) < 0.12 * expected  # the rims of their means
    # without rims: every stencil rescaled to MONAI's count of voxels
    u = ddf[0].numpy()
    cropped = sum((central(u, i, 1.0) ** 2).sum() for i in range(d)) / math.prod(n - 2 for n in shape)
    assert abs(cropped - d * float(quiet(quiet(DiffusionLoss), ddf))) < 1e-6


# -- one deformation, one energy -----------------------------------------------------------------------------------
def physical_field(grid):
    """Slow waves of up to 3 mm all over the world, as a brain cohort's maps have them, in voxels of any grid."""
    x = grid.coordinates(Axes.WORLD, dtype=torch.float64) / 1.3
    waves = [
        2.0 * torch.sin(x[..., 0] / 9.0 + 0.3) * torch.cos(x[..., 1] / 11.0) + torch.sin(x[..., -1] / 8.0 + 1.0),
        1.5 * torch.cos(x[..., 0] / 10.0 - 0.5) + 1.5 * torch.sin(x[..., 1] / 9.0 + 2.0),
        1.5 * torch.sin(x[..., 1] / 12.0 + x[..., -1] / 10.0),
    ]
    mm = torch.stack(waves[: grid.dim], -1)
    return grid.vectors(mm, to=Axes.VOXEL, from_=Axes.WORLD).movedim(-1, 0)[None]


GRIDS = {  # of one extent each: 192 mm and 96 mm
    2: [((192, 192), 1.0), ((128, 128), 1.5), ((96, 128), (2.0, 1.5))],
    3: [((96, 96, 96), 1.0), ((64, 64, 64), 1.5), ((48, 64, 48), (2.0, 1.5, 2.0))],
}
UNITS = {"bending", "nested bending", "curvature", "sparsity", "inverse consistency"}  # per mm^2, mm, mm^2


@energies
@pytest.mark.parametrize("dim", [2, 3])
def test_one_deformation_has_one_energy_on_three_grids(name, dim):
    """On 1 mm, 1.5 mm, and an anisotropic grid of up to 2 mm, within 3 percent; in voxels they are far apart."""
    grids = [Grid.centered(shape, spacing) for shape, spacing in GRIDS[dim]]
    fields = [physical_field(grid) for grid in grids]
    found = [float(ENERGIES[name](u, spacing=g.spacing)) for u, g in zip(fields, grids, strict=True)]
    assert max(found) < 1.03 * min(found)
    assert min(found) > 1e-6
    if name in UNITS:
        bare = [float(ENERGIES[name](u)) for u in fields]
        assert max(bare) > 1.4 * min(bare)


@pytest.mark.parametrize("dim", [2, 3])
def test_turned_axes_do_not_change_an_energy(dim):
    shape = SHAPES[dim]
    ddf = smooth_ddf(shape, largest=2.0, sigma=1.5, dtype=torch.float64)
    order = list(range(dim))[::-1]
    turned = ddf[:, order].permute(0, 1, *[k + 2 for k in order])
    for name in SMOOTH:
        h = SPACINGS[dim]
        a, b = ENERGIES[name](ddf, spacing=h), ENERGIES[name](turned, spacing=[h[k] for k in order])
        assert abs(float(a) - float(b)) < 1e-9 * max(1, float(a))


# -- what is free of charge ----------------------------------------------------------------------------------------
def linear(matrix, shape):
    x = voxels(shape) - (np.array(shape) - 1) / 2
    return torch.from_numpy(np.moveaxis(x @ np.asarray(matrix, float).T, -1, 0)[None])


@pytest.mark.parametrize("dim", [2, 3])
def test_every_energy_knows_its_null_space(dim):
    shape, eye = SHAPES[dim], np.eye(dim)
    shift, stretch = torch.ones(1, dim, *shape).double(), linear(0.1 * eye, shape)
    spin, shear = np.zeros((2, dim, dim))
    spin[0, 1], spin[1, 0], shear[0, 1] = -0.1, 0.1, 0.1
    spin, shear = linear(spin, shape), linear(shear, shape)
    saddle = np.zeros((dim, dim))
    saddle[0, 0], saddle[1, 1] = 0.1, -0.1
    harmonic = torch.zeros_like(shift)
    x = torch.from_numpy(voxels(shape))
    harmonic[0, 0] = 0.01 * (x[..., 0] ** 2 - x[..., 1] ** 2)
    free = {
        "diffusion": [shift],
        "total variation": [shift],
        "bending": [shift, stretch, spin, shear],
        "curvature": [shift, stretch, spin, shear, harmonic],
        "divergence": [shift, spin, shear, linear(saddle, shape)],
        "elastic": [shift, spin],
        "folding": [shift, spin, shear, stretch],
        "sparsity": [],
    }
    charged = {
        "diffusion": [stretch, spin],
        "bending": [harmonic],
        "divergence": [stretch],
        "elastic": [stretch, shear],
        "sparsity": [shift],
    }
    for name, fields in free.items():
        assert all(float(ENERGIES[name](u)) < 1e-12 for u in fields), name
    for name, fields in charged.items():
        assert all(float(ENERGIES[name](u)) > 1e-4 for u in fields), name


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_central_differences_are_blind_to_a_checkerboard(shape):
    parity = torch.from_numpy(1.0 - 2 * (voxels(shape).sum(-1) % 2))
    ddf = parity.expand(1, len(shape), *shape)
    assert float(gradient_loss(ddf)) == float(bending_loss(ddf, stencil="nested")) == 0
    assert float(diffusion_loss(ddf)) > 1
    assert float(bending_loss(ddf)) > 1


def test_a_jump_costs_total_variation_its_height_and_diffusion_its_square():
    step = torch.zeros(1, 2, 20, 15)
    step[:, 0, 10:] = 3.0
    ramp = torch.zeros(1, 2, 20, 15)
    ramp[:, 0] = torch.linspace(0, 3, 20)[:, None]
    assert abs(float(total_variation_loss(step)) - float(total_variation_loss(ramp))) < 1e-6
    assert float(diffusion_loss(step)) > 10 * float(diffusion_loss(ramp))


def test_isotropic_total_variation_does_not_prefer_axes():
    x = torch.from_numpy(voxels((60, 61)) - 30)

    def disc(angle):
        along = x[..., 0] * math.cos(angle) + x[..., 1] * math.sin(angle)
        return (torch.sigmoid(2 * along) * (x.norm(dim=-1) < 25))[None, None].expand(1, 2, -1, -1)

    def cost(angle, kind):
        return float(total_variation_loss(inner(disc(angle), 15), isotropic=kind))

    ratios = {kind: cost(math.pi / 4, kind) / cost(0.0, kind) for kind in (False, True)}
    assert abs(ratios[True] - math.sqrt(2)) < 0.15  # the diagonal of the square window is longer
    assert ratios[False] > 1.25 * ratios[True]


# -- elasticity ----------------------------------------------------------------------------------------------------
def test_material_follows_the_textbook():
    young, poisson = 3.0, 0.3
    material = Material.from_young(young, poisson)
    bulk = young / (3 * (1 - 2 * poisson))
    assert abs(material.first + 2 / 3 * material.shear - bulk) < 1e-12
    assert abs(material.shear - young / (2 * (1 + poisson))) < 1e-12
    # pulled along one axis and free to shrink along the others, the energy is E / 2 strain^2
    strain = 0.01
    pulled = np.diag([strain, -poisson * strain, -poisson * strain])
    energy = float(elastic_loss(linear(pulled, SHAPES[3]), material=material))
    assert abs(energy - young / 2 * strain**2) < 1e-12


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Material(1.0, -1.0), ("shear must be at least 0", "-1.0")),
        (lambda: Material.from_young(0.0, 0.3), ("young must be above 0",)),
        (lambda: Material.from_young(1.0, 0.5), ("poisson", "0.5")),
    ],
)
def test_impossible_materials_are_refused(make, words):
    with sentence(ValueError, *words):
        make()


# -- splines -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
def test_the_bending_of_coefficients_is_the_bending_of_the_field(dim):
    """The dense field, read at the control points, has the same second derivatives; in mm on an anisotropic grid."""
    grid = Grid.centered({2: (121, 97), 3: (61, 65, 57)}[dim], SPACINGS[dim])
    spans = {2: (12, 8), 3: (6, 8, 7)}[dim]
    strides = [(n - 1) / s for n, s in zip(grid.shape, spans, strict=True)]
    control = [s * h for s, h in zip(strides, grid.spacing, strict=True)]
    transform = FreeFormDeformation(grid, control_spacing_mm=control)
    start = smooth_ddf([s + 3 for s in spans], largest=4.0, sigma=1.5)
    transform.coefficients.data = start
    u = transform.ddf().detach().double()[0].numpy() * np.reshape(grid.spacing, (-1, *[1] * dim))
    knots = [np.arange(0, n, round(stride)) for n, stride in zip(grid.shape, strides, strict=True)]
    total = 0.0
    for i in range(dim):
        for j in range(dim):
            curved = np.gradient(np.gradient(u, grid.spacing[i], axis=i + 1), grid.spacing[j], axis=j + 1)
            inside = [k[1:-1] for k in knots]  # np.gradient is one-sided at the faces
            total += (curved[np.ix_(range(dim), *inside)] ** 2).sum(0).mean()
    cut = start[(..., *[slice(1, -1)] * dim)]  # the control points beyond the first and last knots inside
    found = float(bspline_bending_loss(cut, stride=strides, spacing=grid.spacing))
    assert abs(found - total) < 0.1 * total  # differences flatten the kinks that the third derivative has at knots


@pytest.mark.parametrize("dim", [2, 3])
def test_affine_coefficients_do_not_bend(dim):
    shape = SHAPES[dim]
    affine = linear(np.random.default_rng(0).standard_normal((dim, dim)), shape)
    assert float(bspline_bending_loss(affine, stride=4.0)) < 1e-20
    square = affine.clone()
    square[0, 0] += torch.from_numpy(0.5 * voxels(shape)[..., 0] ** 2)
    assert (
        abs(float(bspline_bending_loss(square, stride=2.0)) - 1 / 2**4) < 1e-9
    )  # its second derivative is 1 / stride^2


# -- pairs ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(40, 33), (24, 27, 22)])
def test_a_map_and_its_inverse_are_consistent(shape):
    fade = torch.from_numpy(np.prod(np.sin(np.pi * voxels(shape) / (np.array(shape) - 1)), axis=-1))
    velocity = (smooth_ddf(shape, largest=3.0, sigma=5.0) * fade).float()
    there, back = field.exponential(velocity), field.exponential(-velocity)
    for loss in (inverse_consistency_loss, gradient_inverse_consistency_loss):
        assert float(loss(there, back)) < 0.02 * float(loss(there, -0.3 * there))
    moved = back + 1.0  # a common shift: seen by the one, forgiven by the other
    shifted = torch.zeros_like(back) + 1.0
    assert float(inverse_consistency_loss(there, moved)) > 0.5
    assert float(gradient_inverse_consistency_loss(torch.zeros_like(back), shifted)) == 0


def test_inverse_consistency_is_in_square_millimeters():
    still, moved = torch.zeros(1, 3, 5, 6, 4), torch.ones(1, 3, 5, 6, 4)
    assert abs(float(inverse_consistency_loss(still, moved, spacing=(1.0, 2.0, 3.0))) - 14) < 1e-5
    assert abs(float(sparsity_loss(moved, spacing=(1.0, 2.0, 3.0))) - 6) < 1e-6


# -- masks, gradients, extremes, inputs ------------------------------------------------------------------------------
@energies
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_a_full_mask_changes_nothing_and_one_serves_a_batch(name, shape):
    ddf = smooth_ddf(shape, largest=2.0, batch=2, dtype=torch.float64)
    plain = ENERGIES[name](ddf)
    for ones in (torch.ones(1, 1, *shape), torch.ones(2, 1, *shape).bool()):
        assert abs(float(ENERGIES[name](ddf, mask=ones)) - float(plain)) < 1e-9 * max(1, float(plain))


@energies
def test_what_lies_outside_the_mask_does_not_count(name):
    """A difference that touches the outside is left out, so that a wild field there changes nothing."""
    shape = SHAPES[2]
    ddf = smooth_ddf(shape, largest=1.0, dtype=torch.float64)
    mask = torch.zeros(1, 1, *shape)
    mask[:, :, 3:12, 2:11] = 1
    wild = torch.where(mask > 0, ddf, ddf + 40 * smooth_ddf(shape, largest=1.0, seed=4, sigma=1.0).double())
    reach = {"inverse consistency", "gradicon", "folding", "log jacobian"}  # these read the field elsewhere too
    a, b = (float(ENERGIES[name](u, mask=mask)) for u in (ddf, wild))
    if name not in reach:
        assert abs(a - b) < 1e-9 * max(1, a)
    empty = torch.zeros(1, 1, *shape)
    assert float(ENERGIES[name](ddf, mask=empty)) == 0


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 7)])
@pytest.mark.parametrize("masked", [False, True])
@energies
def test_energies_have_exact_gradients(name, shape, masked):
    ddf = smooth_ddf(shape, largest=1.3, sigma=1.0, batch=2, dtype=torch.float64).requires_grad_()
    mask = smooth_image(shape, seed=3, batch=2).double().clamp(-0.5, 0.5) + 0.5 if masked else None
    spacing = SPACINGS[len(shape)]
    assert gradcheck(lambda u: ENERGIES[name](u, spacing=spacing, mask=mask), (ddf,), fast_mode=True)


@energies
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_two_dimensions_equal_flat_three(name, axis):
    """A field of two components on one sheet of voxels."""
    ddf = smooth_ddf(SHAPES[2], largest=2.0, sigma=1.5, dtype=torch.float64)
    parts = list(ddf.unsqueeze(axis + 2).unbind(1))
    parts.insert(axis, torch.zeros_like(parts[0]))
    assert abs(float(ENERGIES[name](torch.stack(parts, 1))) - float(ENERGIES[name](ddf))) < 1e-9


@energies
@settings(deadline=None, max_examples=25, derandomize=True, database=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.sampled_from([0.0, 1e-30, 1.0, 1e5]))
def test_tiny_and_huge_fields_give_numbers(name, i, j, k, size):
    generator = torch.Generator().manual_seed(i + 10 * j + 100 * k)
    ddf = (size * torch.randn(1, 3, i, j, k, generator=generator)).requires_grad_()
    value = ENERGIES[name](ddf)
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert ddf.grad.isfinite().all()


@energies
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(name, dtype):
    ddf = (40 * smooth_ddf(SHAPES[3], largest=1.0)).to(dtype)
    value, exact = ENERGIES[name](ddf), float(ENERGIES[name](ddf.float()))
    assert value.dtype == dtype
    assert abs(float(value) - exact) <= 4 * torch.finfo(dtype).eps * exact


@energies
def test_fields_that_do_not_fit_are_refused(name, no_jaxtyping):
    loss, ddf = ENERGIES[name], torch.zeros(1, 2, 6, 5)
    with sentence(ValueError, "spacing must be above 0 mm", "-2.0"):
        loss(ddf, spacing=(1.0, -2.0))
    with sentence(ValueError, "spacing must be one number or 2 numbers"):
        loss(ddf, spacing=(1.0, 1.0, 1.0))
    with sentence(ValueError, "mask must be (1, 1, 6, 5)", "(1, 1, 6, 4)"):
        loss(ddf, mask=torch.ones(1, 1, 6, 4))
    with sentence(ValueError, "ddf must be", "Channels last", "(1, 6, 5, 2)"):
        loss(torch.zeros(1, 6, 5, 2))
    with sentence(TypeError, "floating point", "int64"):
        loss(ddf.long())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda u: gradient_loss(u, norm="l3"), ('norm must be "l1" or "l2"', "l3")),
        (lambda u: gradient_loss(u, stencil="backward"), ("stencil", "backward")),
        (lambda u: bending_loss(u, stencil="wide"), ('"compact" or "nested"', "wide")),
        (lambda u: bspline_bending_loss(u, stride=0.0), ("stride must be above 0",)),
    ],
)
def test_impossible_options_are_refused(call, words, no_jaxtyping):
    with sentence(ValueError, *words):
        call(torch.zeros(1, 2, 6, 5))


def test_a_large_field_is_summed_in_parts():
    """More voxels than one part holds; the parts meet without a seam."""
    ddf = smooth_ddf((140, 130, 40), largest=2.0, sigma=3.0).requires_grad_()
    loss = bending_loss(ddf)
    loss.backward()
    exact = ddf.detach().double()
    assert abs(float(loss.detach()) - numpy_energy("bending", exact, (1.0, 1.0, 1.0))) < 1e-5 * float(loss.detach())
    again = exact.clone().requires_grad_()
    second_derivatives = [again.diff(n=2, dim=k + 2).square().sum(1).mean() for k in range(3)]
    mixed = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        both = again
        for k in (i, j):
            n = both.shape[k + 2]
            both = (both.narrow(k + 2, 2, n - 2) - both.narrow(k + 2, 0, n - 2)) / 2
        mixed.append(2 * both.square().sum(1).mean())
    sum(second_derivatives + mixed).backward()
    assert largest(ddf.grad.double(), again.grad) < 1e-5 * largest(again.grad)
