"""Objectives: against NumPy float64 formulas written from their definitions, and MONAI where definitions agree."""

import itertools
import math

import numpy as np
import pytest
import torch
from definitions import numpy_lncc, numpy_loss, numpy_mi
from helpers import SHAPE_CASES, SHAPES, SPACINGS, largest, quiet, sentence, smooth_ddf, smooth_image, voxels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from reglib.losses import (
    bending_loss,
    dice_loss,
    diffusion_loss,
    huber_loss,
    lcc_loss,
    lncc_loss,
    lncc_sums,
    mae_loss,
    mi_loss,
    mind_loss,
    mse_loss,
    ncc_loss,
    ngf_loss,
    nmi_loss,
    ssim_loss,
    tre_loss,
    tukey_loss,
)

IMAGE_LOSSES = {
    "mse": mse_loss,
    "mae": mae_loss,
    "huber": huber_loss,
    "tukey": tukey_loss,
    "ncc": ncc_loss,
    "lncc": lncc_loss,
    "lcc": lambda warped, fixed, mask=None, **k: lcc_loss(warped, fixed, mask=mask, warped_mask=mask, **k),
    "mi": mi_loss,
    "nmi": nmi_loss,
    "ngf": ngf_loss,
    "mind": mind_loss,
    "ssim": ssim_loss,
}
HISTOGRAMS = ("mi", "nmi")
FIELD_LOSSES = {"diffusion": diffusion_loss, "bending": bending_loss}
properties = settings(deadline=None, max_examples=60, derandomize=True, database=None)
image_losses = pytest.mark.parametrize("name", IMAGE_LOSSES)


def pair(shape, *, batch=1, channels=1, dtype=torch.float32, seed=0):
    """Two images that are alike but not the same, (b, c, *s)."""
    first = smooth_image(shape, seed=seed, sigma=1.0, batch=batch, channels=channels, dtype=dtype)
    other = smooth_image(shape, seed=seed + 50, sigma=1.0, batch=batch, channels=channels, dtype=dtype)
    return 0.8 * first + 0.4 * other, first


def soft_mask(shape, seed=3, batch=1):
    """(b, 1, *s) weights from 0 to 1, with zeros and ones."""
    return smooth_image(shape, seed=seed, sigma=1.5, batch=batch).clamp(-0.5, 0.5) + 0.5


def hard_mask(shape):
    """(1, 1, *s) a box in the middle."""
    mask = torch.zeros(1, 1, *shape)
    mask[(0, 0, *[slice(n // 4, n - n // 5) for n in shape])] = 1
    return mask


def loss_and_gradient(loss, warped, fixed, **kwargs):
    warped = warped.clone().requires_grad_()
    value = loss(warped, fixed, **kwargs)
    value.backward()
    return float(value.detach()), warped.grad


@image_losses
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_loss_follows_its_definition(name, shape):
    warped, fixed = pair(shape, batch=2, channels=1 if name in HISTOGRAMS else 2)
    if name in HISTOGRAMS:  # every image of the batch spans the same range
        for x in (warped, fixed):
            x[:, 0].flatten(1)[:, :2] = torch.tensor([-4.0, 4.0])
    expected = numpy_loss(name, warped, fixed)
    assert abs(float(IMAGE_LOSSES[name](warped, fixed)) - expected) < 1e-4
    assert abs(float(IMAGE_LOSSES[name](warped.double(), fixed.double())) - expected) < 1e-6


@image_losses
@pytest.mark.parametrize("kind", ["soft", "hard", "bool"])
def test_masked_loss_follows_its_definition(name, kind):
    shape = SHAPES[3]
    warped, fixed = pair(shape, dtype=torch.float64)
    mask = soft_mask(shape) if kind == "soft" else hard_mask(shape)
    if name in HISTOGRAMS:  # the range of intensities comes from the whole image or from the mask: here they agree
        inside = (mask > 0.9).nonzero()[:2]
        for x in (warped, fixed):
            x[tuple(inside.T)] = torch.tensor([-4.0, 4.0], dtype=torch.float64)
    expected = numpy_loss(name, warped, fixed, mask)
    mask = mask.bool() if kind == "bool" else mask
    assert abs(float(IMAGE_LOSSES[name](warped, fixed, mask=mask)) - expected) < 1e-6


@pytest.mark.parametrize("window", [1, 3, 5, 21])
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_lncc_follows_its_definition_for_every_window(shape, window):
    warped, fixed = pair(shape, dtype=torch.float64)
    expected = numpy_lncc(warped.numpy(), fixed.numpy(), np.ones((1, 1, *shape)), window)
    assert abs(float(lncc_loss(warped, fixed, window=window)) - expected) < 1e-6


@pytest.mark.parametrize("bins", [4, 16, 48])
def test_mi_follows_its_definition_for_every_binning(bins):
    warped, fixed = pair(SHAPES[2], dtype=torch.float64)
    ones = np.ones((1, 1, *SHAPES[2]))
    ranges = {"warped_range": (-6.0, 5.0), "fixed_range": (-5.0, 7.0)}
    for limits in ({}, ranges):
        expected = numpy_mi(warped.numpy(), fixed.numpy(), ones, bins, **limits)
        assert abs(float(mi_loss(warped, fixed, bins=bins, **limits)) - expected) < 1e-9


# -- MONAI, where definitions agree ----------------------------------------------
@pytest.mark.parametrize("shape", [(36, 31), (22, 24, 20)])
def test_lncc_agrees_with_monai_inside_a_dark_margin(shape):
    """Two windows wide: MONAI's zero padding, an error elsewhere, then adds only voxels that are zero anyway."""
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    warped, fixed = pair(shape, dtype=torch.float64)
    content = torch.zeros(shape, dtype=torch.float64)
    content[tuple(slice(5, n - 5) for n in shape)] = 1
    warped, fixed = warped * content, fixed * content
    reference = quiet(LocalNormalizedCrossCorrelationLoss, spatial_dims=len(shape), kernel_size=5, smooth_dr=1e-9)
    expected = 1 + float(quiet(reference, warped, fixed))
    assert abs(float(lncc_loss(warped, fixed, window=5)) - expected) < 1e-6
    assert 0.1 < expected < 0.9


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_dice_agrees_with_monai(shape):
    from monai.losses import DiceLoss

    warped, fixed = soft_mask(shape, batch=2, seed=1), soft_mask(shape, batch=2, seed=2)
    reference = quiet(DiceLoss, smooth_nr=1e-6, smooth_dr=1e-6)
    assert abs(float(dice_loss(warped, fixed)) - float(quiet(reference, warped, fixed))) < 1e-6


@pytest.mark.parametrize("dim", [2, 3])
def test_field_losses_agree_with_monai_where_derivatives_are_constant(dim):
    """MONAI averages over components, this library adds them: a factor d. Elsewhere the borders differ."""
    from monai.losses import BendingEnergyLoss, DiffusionLoss

    x, rng = voxels(SHAPES[dim]), np.random.default_rng(0)
    linear = np.einsum("kj,...j->k...", rng.standard_normal((dim, dim)), x)[None]
    curved = np.einsum("kij,...i,...j->k...", rng.standard_normal((dim, dim, dim)) / 10, x, x)[None]
    linear, curved = torch.from_numpy(linear), torch.from_numpy(curved)
    reference = dim * float(quiet(quiet(DiffusionLoss), linear))
    assert abs(float(diffusion_loss(linear)) - reference) < 1e-9 * reference
    reference = dim * float(quiet(quiet(BendingEnergyLoss), curved))
    assert abs(float(bending_loss(curved)) - reference) < 1e-9 * reference


# -- images: constants, extremes, invariances ------------------------------------
OFFSETS = st.sampled_from([0.0, 1.0, 100.3, 51.2, -1000.0])
AMPLITUDES = st.sampled_from([0.0, 1e-20, 1e-12, 1e-6, 1e-3, 1.0, 1e4, 1e8, 1e12])
RANGES = {
    "mse": (0, math.inf),
    "mae": (0, math.inf),
    "huber": (0, math.inf),
    "tukey": (0, 0.25 / 6 + 1e-6),
    "ncc": (-1e-4, 2 + 1e-4),
    "lncc": (-1e-5, 1 + 1e-5),
    "lcc": (-1e-5, 1 + 1e-5),
    "mi": (-5.0, 1e-4),
    "nmi": (-1e-5, 1 + 1e-4),
    "ngf": (0, 1),
    "mind": (0, 1),
    "ssim": (-1e-4, 2 + 1e-4),
}


@image_losses
@properties
@given(OFFSETS, AMPLITUDES, OFFSETS, AMPLITUDES, st.sampled_from(["none", "box", "soft", "one voxel"]))
def test_value_and_gradient_are_finite_for_every_finite_input(name, offset_w, size_w, offset_f, size_f, masking):
    shape = SHAPES[2]
    warped, fixed = pair(shape)
    one = torch.zeros(1, 1, *shape)
    one[0, 0, 4, 5] = 1
    mask = {"none": None, "box": hard_mask(shape), "soft": soft_mask(shape), "one voxel": one}[masking]
    value, gradient = loss_and_gradient(
        IMAGE_LOSSES[name], warped * size_w + offset_w, fixed * size_f + offset_f, mask=mask
    )
    low, high = RANGES[name]
    assert low <= value <= high
    assert gradient.isfinite().all()


@image_losses
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_empty_mask_gives_a_finite_value_and_no_gradient(name, shape):
    warped, fixed = pair(shape)
    value, gradient = loss_and_gradient(IMAGE_LOSSES[name], warped, fixed, mask=torch.zeros(1, 1, *shape))
    assert math.isfinite(value)
    assert largest(gradient) == 0


@pytest.mark.parametrize("constant", [0.0, 1.0, 100.3, -1000.0])
@pytest.mark.parametrize("where", ["warped", "fixed", "both"])
@pytest.mark.parametrize(("name", "score"), [("ncc", 1.0), ("lncc", 1.0), ("mi", 0.0)])
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_a_constant_image_matches_nothing(name, score, where, constant, shape):
    warped, fixed = pair(shape)
    flat = torch.full_like(fixed, constant)
    warped = flat if where != "fixed" else warped
    fixed = flat if where != "warped" else fixed
    assert float(IMAGE_LOSSES[name](warped, fixed)) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["ncc", "lncc", "lcc"])
def test_two_constant_images_do_not_correlate_and_do_not_pull(name, masked):
    """Whatever the constants: the mean of many equal numbers is not quite that number."""
    generator = torch.Generator().manual_seed(0)
    for first, second in (torch.rand(40, 2, generator=generator) * 600 - 300).tolist():
        warped, fixed = torch.full((1, 1, 24, 20, 16), first), torch.full((1, 1, 24, 20, 16), second)
        mask = torch.rand(fixed.shape, generator=generator) if masked else None
        value, gradient = loss_and_gradient(IMAGE_LOSSES[name], warped, fixed, mask=mask)
        assert value == 1
        assert largest(gradient) == 0


@pytest.mark.parametrize("background", [0.0, 100.3, 1000.0])
def test_flat_windows_in_a_textured_image_score_zero(background):
    """The dark surroundings of a brain must not count as a match, at any intensity."""
    shape = (40, 33)
    warped, fixed = pair(shape)
    content = torch.zeros(1, 1, *shape)
    content[:, :, 14:27, 12:22] = 1
    exact = numpy_loss("lncc", warped * content, fixed * content)
    found = float(lncc_loss(warped * content + background, fixed * content + background))
    assert abs(found - exact) < 5e-3


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_scores_of_equal_and_inverted_images(shape):
    image = smooth_image(shape, sigma=1.0)
    assert float(mse_loss(image, image)) == 0
    assert abs(float(ncc_loss(image, image))) < 1e-5
    assert abs(float(ncc_loss(-image, image)) - 2) < 1e-5
    assert abs(float(lncc_loss(image, image))) < 1e-4
    assert abs(float(lncc_loss(-image, image))) < 1e-4
    assert float(mi_loss(-image, image)) < -1
    for name in ("mse", "ncc", "lncc", "mi"):
        other = smooth_image(shape, sigma=1.0, seed=5)
        assert float(IMAGE_LOSSES[name](other, image)) > float(IMAGE_LOSSES[name](image, image)) + 0.1


@pytest.mark.parametrize("name", ["ncc", "lncc", "mi"])
@pytest.mark.parametrize(("gain", "offset"), [(3.0, 0.0), (0.01, 5.0), (1.0, 100.3), (1000.0, -4e4), (1.0, 1000.0)])
def test_brightness_and_contrast_do_not_matter(name, gain, offset):
    """Also in float32 and far from zero, for the warped image and for the fixed one."""
    warped, fixed = pair(SHAPES[3])
    expected = float(IMAGE_LOSSES[name](warped.double(), fixed.double()))
    assert abs(float(IMAGE_LOSSES[name](gain * warped + offset, fixed)) - expected) < 2e-3
    assert abs(float(IMAGE_LOSSES[name](warped, gain * fixed + offset)) - expected) < 2e-3


@image_losses
def test_loss_is_a_mean_over_the_batch(name):
    """Each image counts as if it came alone, whatever intensities its neighbors have."""
    warped, fixed = pair(SHAPES[2], batch=2)
    warped[1] *= 7
    alone = [float(IMAGE_LOSSES[name](warped[i : i + 1], fixed[i : i + 1])) for i in range(2)]
    assert abs(float(IMAGE_LOSSES[name](warped, fixed)) - np.mean(alone)) < 1e-4 * max(1, np.mean(alone))


@pytest.mark.parametrize("name", sorted(IMAGE_LOSSES.keys() - {"mind"}))  # MIND has other neighbors in 3-D
def test_two_dimensions_equal_flat_three(name):
    warped, fixed = pair(SHAPES[2], batch=2)
    mask = soft_mask(SHAPES[2])
    flat = IMAGE_LOSSES[name](warped, fixed, mask=mask)
    for axis in (2, 3, 4):
        thick = IMAGE_LOSSES[name](warped.unsqueeze(axis), fixed.unsqueeze(axis), mask=mask.unsqueeze(axis))
        torch.testing.assert_close(thick, flat, atol=1e-5, rtol=1e-5)


@image_losses
@pytest.mark.parametrize("outside", [2.0, -30.0, 1e4])
@pytest.mark.parametrize("which", ["warped", "fixed"])
def test_voxels_outside_the_mask_do_not_matter(name, outside, which):
    """A metal artefact or a bed that was masked out must not change value or gradient."""
    warped, fixed = pair(SHAPES[2])
    mask = hard_mask(SHAPES[2])
    value, gradient = loss_and_gradient(IMAGE_LOSSES[name], warped, fixed, mask=mask)
    planted = torch.full_like(fixed, outside)
    if which == "warped":
        warped = torch.where(mask > 0, warped, planted)
    else:
        fixed = torch.where(mask > 0, fixed, planted)
    other, other_gradient = loss_and_gradient(IMAGE_LOSSES[name], warped, fixed, mask=mask)
    assert abs(other - value) < 1e-3
    assert largest(gradient * (1 - mask)) == 0
    assert largest(other_gradient, gradient) < 0.02 * largest(gradient)


@image_losses
def test_full_mask_equals_no_mask_and_one_serves_a_batch(name):
    warped, fixed = pair(SHAPES[3], batch=2)
    ones = torch.ones(1, 1, *SHAPES[3])
    torch.testing.assert_close(IMAGE_LOSSES[name](warped, fixed, mask=ones), IMAGE_LOSSES[name](warped, fixed))
    mask = soft_mask(SHAPES[3])
    torch.testing.assert_close(
        IMAGE_LOSSES[name](warped, fixed, mask=mask), IMAGE_LOSSES[name](warped, fixed, mask=mask.repeat(2, 1, 1, 1, 1))
    )


@pytest.mark.parametrize("mask", [None, soft_mask(SHAPES[3])], ids=["whole", "masked"])
def test_sums_made_before_change_nothing(mask):
    warped, fixed = pair(SHAPES[3], batch=2, channels=2)
    sums = lncc_sums(fixed, 5, mask=mask)
    assert torch.equal(
        lncc_loss(warped, fixed, window=5, mask=mask, fixed_sums=sums), lncc_loss(warped, fixed, window=5, mask=mask)
    )


@image_losses
@pytest.mark.parametrize("masked", [False, True])
def test_image_losses_have_exact_gradients(name, masked):
    shape = (5, 4, 3)
    warped, fixed = pair(shape, dtype=torch.float64)
    mask = soft_mask(shape) if masked else None
    ranges = {"warped_range": (-6.0, 6.0), "fixed_range": (-6.0, 6.0)} if name in HISTOGRAMS else {}
    window = {"window": 3} if name in ("lncc", "lcc") else {}
    if name == "ngf":  # its own epsilon is a statistic of the image that counts as a constant
        window = {"epsilon": 0.4}
    loss = IMAGE_LOSSES[name]
    arguments = (warped.requires_grad_(), fixed)
    assert gradcheck(lambda w, f: loss(w, f, mask=mask, **ranges, **window), arguments)


# -- labels and points -----------------------------------------------------------
def test_dice_follows_its_definition():
    warped, fixed = soft_mask(SHAPES[3], batch=2, seed=1), soft_mask(SHAPES[3], batch=2, seed=2)
    w, f = warped.double().numpy(), fixed.double().numpy()
    scores = [
        2 * (a * b).sum() / (a.sum() + b.sum()) for x, y in zip(w, f, strict=True) for a, b in zip(x, y, strict=True)
    ]
    assert abs(float(dice_loss(warped, fixed)) - (1 - np.mean(scores))) < 1e-6


def test_dice_of_equal_apart_and_empty_structures():
    mask = hard_mask(SHAPES[2])
    empty = torch.zeros_like(mask)
    assert float(dice_loss(mask, mask)) < 1e-6
    assert abs(float(dice_loss(mask, 1 - mask)) - 1) < 1e-6
    assert abs(float(dice_loss(mask, empty)) - 1) < 1e-6
    value, gradient = loss_and_gradient(dice_loss, empty, empty)
    assert value == 0
    assert gradient.isfinite().all()


def test_dice_has_exact_gradients():
    warped = torch.rand(2, 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert gradcheck(dice_loss, (warped, warped.detach().flip(2)))


@pytest.mark.parametrize("dim", [2, 3])
def test_tre_is_the_mean_distance(dim):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 2, 9, dim))
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    assert abs(float(tre_loss(first, second)) - np.linalg.norm(a - b, axis=-1).mean()) < 1e-12
    spacing = SPACINGS[dim]
    expected = np.linalg.norm((a - b) * np.array(spacing), axis=-1).mean()
    assert abs(float(tre_loss(first, second, spacing=spacing)) - expected) < 1e-6 * expected
    assert gradcheck(lambda x: tre_loss(x, second, spacing=spacing), (first.requires_grad_(),))


def test_tre_at_distance_zero_has_gradient_zero():
    points = torch.rand(1, 4, 3).requires_grad_()
    loss = tre_loss(points, points.detach().clone())
    loss.backward()
    assert float(loss.detach()) == 0
    assert largest(points.grad) == 0


# -- fields ----------------------------------------------------------------------
def polynomial(dim, *, linear=None, quadratic=None):
    """(1, d, *s) float64 field u_k = sum_j A_kj x_j + sum_ij H_kij x_i x_j of voxel coordinates."""
    x = voxels(SHAPES[dim])
    field = np.zeros((dim, *SHAPES[dim]))
    if linear is not None:
        field += np.einsum("kj,...j->k...", linear, x)
    if quadratic is not None:
        field += np.einsum("kij,...i,...j->k...", quadratic, x, x)
    return torch.from_numpy(field[None])


@pytest.mark.parametrize("name", FIELD_LOSSES)
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_a_constant_field_costs_nothing(name, shape):
    constant = torch.full((2, len(shape), *shape), 3.7).requires_grad_()
    loss = FIELD_LOSSES[name](constant, spacing=SPACINGS[len(shape)])
    loss.backward()
    assert float(loss.detach()) < 1e-10
    assert constant.grad.isfinite().all()


@pytest.mark.parametrize("dim", [2, 3])
def test_diffusion_of_a_linear_field_is_the_sum_of_its_squared_slopes(dim):
    slopes = np.random.default_rng(0).standard_normal((dim, dim))
    ddf, h = polynomial(dim, linear=slopes), np.array(SPACINGS[dim])
    assert abs(float(diffusion_loss(ddf)) - (slopes**2).sum()) < 1e-9
    physical = slopes * h[:, None] / h[None, :]  # mm of displacement for each mm of distance
    assert abs(float(diffusion_loss(ddf, spacing=tuple(h))) - (physical**2).sum()) < 1e-6


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_diffusion_follows_its_definition(shape):
    ddf, h = smooth_ddf(shape, largest=2.0, batch=2, dtype=torch.float64), SPACINGS[len(shape)]
    u = ddf.numpy() * np.array(h).reshape(1, -1, *[1] * len(shape))
    expected = sum((np.diff(u, axis=k + 2) / step).__pow__(2).sum(1).mean() for k, step in enumerate(h))
    assert abs(float(diffusion_loss(ddf, spacing=h)) - expected) < 1e-6 * expected


@pytest.mark.parametrize("dim", [2, 3])
def test_bending_of_an_affine_field_is_zero(dim):
    slopes = np.random.default_rng(0).standard_normal((dim, dim))
    assert float(bending_loss(polynomial(dim, linear=slopes), spacing=SPACINGS[dim])) < 1e-20


@pytest.mark.parametrize("dim", [2, 3])
def test_bending_of_a_parabola_and_a_saddle(dim):
    h = np.array(SPACINGS[dim])
    for component, i, j in itertools.product(range(dim), repeat=3):
        quadratic = np.zeros((dim, dim, dim))
        quadratic[component, i, j] = 0.5
        ddf = polynomial(dim, quadratic=quadratic)
        in_voxels = 1.0 if i == j else 2 * 0.25  # x^2/2 has 1 twice derived; xy/2 has 1/2 in two mixed places
        assert abs(float(bending_loss(ddf)) - in_voxels) < 1e-9
        in_mm = in_voxels * (h[component] / (h[i] * h[j])) ** 2
        assert abs(float(bending_loss(ddf, spacing=tuple(h))) - in_mm) < 1e-6 * max(1, in_mm)


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_bending_follows_its_definition(shape):
    d, h = len(shape), SPACINGS[len(shape)]
    ddf = smooth_ddf(shape, largest=2.0, batch=2, dtype=torch.float64)
    u = ddf.numpy() * np.array(h).reshape(1, -1, *[1] * d)
    expected = 0.0
    for i, j in itertools.product(range(d), repeat=2):
        if i == j:
            second = np.diff(u, n=2, axis=i + 2) / h[i] ** 2
        else:
            second = np.gradient(np.gradient(u, h[i], axis=i + 2), h[j], axis=j + 2)
            cut = [slice(None)] * u.ndim
            cut[i + 2] = cut[j + 2] = slice(1, -1)
            second = second[tuple(cut)]
        expected += (second**2).sum(1).mean()
    assert abs(float(bending_loss(ddf, spacing=h)) - expected) < 1e-6 * expected


@pytest.mark.parametrize("name", FIELD_LOSSES)
@pytest.mark.parametrize("dim", [2, 3])
def test_one_physical_deformation_costs_the_same_on_two_grids(name, dim):
    """Refine or coarsen the grid, turn its spacing: with spacing the energy stays, without it does not."""
    rng = np.random.default_rng(1)
    linear, quadratic = rng.standard_normal((dim, dim)), rng.standard_normal((dim, dim, dim))
    energies, plain = [], []
    for spacing in (SPACINGS[dim], (1.7, 0.6, 1.1)[:dim]):
        h = np.array(spacing)
        x = voxels(SHAPES[dim]) * h
        mm = np.einsum("kj,...j->k...", linear, x)
        if name == "bending":
            mm = mm + np.einsum("kij,...i,...j->k...", quadratic, x, x)
        ddf = torch.from_numpy((mm / h.reshape(-1, *[1] * dim))[None])
        energies.append(float(FIELD_LOSSES[name](ddf, spacing=spacing)))
        plain.append(float(FIELD_LOSSES[name](ddf)))
    assert abs(energies[0] - energies[1]) < 1e-6 * energies[0]
    assert abs(plain[0] - plain[1]) > 0.1 * plain[0]


@pytest.mark.parametrize("name", FIELD_LOSSES)
def test_field_losses_of_two_dimensions_equal_flat_three(name):
    ddf = smooth_ddf(SHAPES[2], largest=2.0, batch=2)
    flat = FIELD_LOSSES[name](ddf, spacing=(0.8, 1.3))
    thick = torch.cat([ddf, torch.zeros_like(ddf[:, :1])], dim=1).unsqueeze(-1)
    torch.testing.assert_close(FIELD_LOSSES[name](thick, spacing=(0.8, 1.3, 2.5)), flat)
    front = torch.cat([torch.zeros_like(ddf[:, :1]), ddf], dim=1).unsqueeze(2)
    torch.testing.assert_close(FIELD_LOSSES[name](front, spacing=(2.5, 0.8, 1.3)), flat)


@pytest.mark.parametrize("name", FIELD_LOSSES)
def test_spacing_may_be_one_number(name):
    ddf = smooth_ddf(SHAPES[3], largest=2.0)
    torch.testing.assert_close(FIELD_LOSSES[name](ddf, spacing=2.0), FIELD_LOSSES[name](ddf, spacing=(2.0, 2.0, 2.0)))
    torch.testing.assert_close(FIELD_LOSSES[name](ddf, spacing=1.0), FIELD_LOSSES[name](ddf))


@pytest.mark.parametrize("name", FIELD_LOSSES)
@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 5), (2, 5), (1, 4, 3)])
def test_field_losses_have_exact_gradients(name, shape):
    ddf = smooth_ddf(shape, largest=1.0, sigma=0.7, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda u: FIELD_LOSSES[name](u, spacing=SPACINGS[len(shape)]), (ddf,))


# -- errors ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda i: mse_loss(i, i[:, :, :8]), ("warped", "fixed", "(1, 1, 16, 13)", "(1, 1, 8, 13)")),
        (lambda i: ncc_loss(i, i[:, :, :8]), ("one shape", "(1, 1, 8, 13)")),
        (lambda i: lncc_loss(i, i, mask=i[:, :, :8]), ("mask", "16, 13", "(1, 1, 8, 13)")),
        (lambda i: lncc_loss(i, i, window=4), ("window", "odd", "4")),
        (lambda i: mi_loss(i, i, bins=3), ("bins", "at least 4", "3")),
        (lambda i: mi_loss(i, i, warped_range=(0.0, 0.5)), ("warped", "warped_range", "(0.0, 0.5)")),
        (lambda i: mi_loss(i, i, fixed_range=(0.0, 0.5)), ("fixed", "fixed_range", "(0.0, 0.5)")),
        (lambda i: mi_loss(i.requires_grad_(), i.detach(), warped_range=(0.0, 0.5)), ("warped", "warped_range")),
        (lambda i: dice_loss(i, i[:, :, :8]), ("one shape", "(1, 1, 8, 13)")),
        (lambda i: tre_loss(torch.zeros(1, 4, 2), torch.zeros(1, 5, 2)), ("point", "(1, 4, 2)", "(1, 5, 2)")),
        (lambda i: bending_loss(i), ("ddf", "(1, 1, 16, 13)")),
        (lambda i: diffusion_loss(i.repeat(1, 2, 1, 1), spacing=0.0), ("spacing", "above 0")),
        (lambda i: diffusion_loss(i.repeat(1, 2, 1, 1), spacing=(1.0,) * 3), ("spacing", "2 numbers")),
    ],
)
def test_errors_are_one_sentence(call, words, no_jaxtyping):
    with sentence(ValueError, *words):
        call(smooth_image(SHAPES[2]))
