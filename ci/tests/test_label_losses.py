"""Losses on masks: against NumPy float64 formulas, DeepReg's written again, and MONAI where definitions agree."""

import inspect
import math

import numpy as np
import pytest
import torch
from helpers import SHAPE_CASES, SHAPES, SPACINGS, largest, quiet, sentence, smooth_image
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from torch.autograd import gradcheck

from reglib.losses import mse_loss, ncc_loss
from reglib.losses.label import (
    balanced_cross_entropy_loss,
    cross_entropy_loss,
    dice_loss,
    focal_loss,
    jaccard_loss,
    multiscale,
    one_hot,
    tversky_loss,
)

LOSSES = {
    "dice": dice_loss,
    "jaccard": jaccard_loss,
    "tversky": tversky_loss,
    "cross_entropy": cross_entropy_loss,
    "balanced": balanced_cross_entropy_loss,
    "focal": focal_loss,
}
VARIANTS = [
    ("dice", {}),
    ("dice", {"squared": True}),
    ("dice", {"background_weight": 0.3}),
    ("dice", {"background_weight": 1.0, "squared": True}),
    ("jaccard", {}),
    ("jaccard", {"squared": True}),
    ("jaccard", {"background_weight": 0.7}),
    ("tversky", {"alpha": 0.3, "beta": 0.9}),
    ("tversky", {"alpha": 0.7, "beta": 0.0, "gamma": 1.5}),
    ("cross_entropy", {}),
    ("cross_entropy", {"background_weight": 0.3}),
    ("cross_entropy", {"background_weight": 1.0, "label_smoothing": 0.1}),
    ("balanced", {}),
    ("balanced", {"label_smoothing": 0.2}),
    ("focal", {}),
    ("focal", {"alpha": 0.6, "gamma": 0.5}),
    ("focal", {"alpha": 0.6, "gamma": 0.0, "label_smoothing": 0.1}),
]
EPS = 1e-5  # DeepReg's
properties = settings(deadline=None, max_examples=60, derandomize=True, database=None)
losses = pytest.mark.parametrize("name", LOSSES)
variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda x: x if isinstance(x, str) else str(x))


def masks(shape, *, seed=0, batch=2, channels=2, dtype=torch.float32):
    """(b, c, *s) soft masks with zeros, ones and edges; every structure is there and of another size."""
    image = smooth_image(shape, seed=seed, sigma=1.5, batch=batch, channels=channels, dtype=dtype)
    shift = torch.linspace(-0.2, 0.6, batch * channels, dtype=dtype).reshape(batch, channels, *[1] * len(shape))
    return (image + shift).clamp(0, 1)


def pair(shape, **kwargs):
    """Two sets of masks that overlap in part."""
    return masks(shape, seed=1, **kwargs), masks(shape, seed=2, **kwargs)


def soft_weights(shape, batch=1):
    return smooth_image(shape, seed=9, sigma=1.5, batch=batch).clamp(-0.5, 0.5) + 0.5


def loss_and_gradient(loss, warped, fixed, **options):
    warped = warped.clone().requires_grad_()
    value = loss(warped, fixed, **options)
    value.backward()
    return float(value.detach()), warped.grad


# -- definitions, written again in NumPy -----------------------------------------
def numpy_overlap(w, f, m, index, squared=False, background_weight=0.0):
    """Numerator and denominator of foreground and background, mixed; `index` is "dice" or "jaccard"."""
    parts = []
    for a, b in ((w, f), (1 - w, 1 - f)):
        both = (m * a * b).sum()
        total = (m * (a**2 + b**2)).sum() if squared else (m * (a + b)).sum()
        parts.append((2 * both, total) if index == "dice" else (both, total - both))
    (part, whole), (part_out, whole_out) = parts
    w_out = background_weight
    return 1 - ((1 - w_out) * part + w_out * part_out) / ((1 - w_out) * whole + w_out * whole_out)


def numpy_tversky(w, f, m, alpha=0.5, beta=0.5, gamma=1.0):
    both = (m * w * f).sum()
    return (1 - both / (both + alpha * (m * w * (1 - f)).sum() + beta * (m * (1 - w) * f).sum())) ** gamma


def numpy_cross_entropy(w, f, m, background_weight=0.0, label_smoothing=0.0):
    f = f + label_smoothing * (1 - 2 * f)
    inside, outside = -f * np.log(w + EPS), -(1 - f) * np.log(1 - w + EPS)
    return np.average((1 - background_weight) * inside + background_weight * outside, weights=m)


def numpy_balanced(w, f, m, label_smoothing=0.0):
    share = np.average(f + label_smoothing * (1 - 2 * f), weights=m)
    return numpy_cross_entropy(w, f, m, share, label_smoothing)


def numpy_focal(w, f, m, alpha=0.25, gamma=2.0, label_smoothing=0.0):
    f = f + label_smoothing * (1 - 2 * f)
    inside = -alpha * (1 - w) ** gamma * f * np.log(w + EPS)
    return np.average(inside - (1 - alpha) * w**gamma * (1 - f) * np.log(1 - w + EPS), weights=m)


def numpy_loss(name, warped, fixed, mask=None, **options):
    """Each structure of each case by itself, then the mean."""
    formula = {
        "dice": lambda *a, **k: numpy_overlap(*a, "dice", **k),
        "jaccard": lambda *a, **k: numpy_overlap(*a, "jaccard", **k),
        "tversky": numpy_tversky,
        "cross_entropy": numpy_cross_entropy,
        "balanced": numpy_balanced,
        "focal": numpy_focal,
    }[name]
    w, f = warped.detach().double().numpy(), fixed.detach().double().numpy()
    m = np.ones_like(f[:, :1]) if mask is None else np.broadcast_to(mask.double().numpy(), f[:, :1].shape)
    return np.mean([formula(w[i, c], f[i, c], m[i, 0], **options) for i in range(len(f)) for c in range(f.shape[1])])


@variants
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_loss_follows_its_definition(name, options, shape):
    warped, fixed = pair(shape)
    expected = numpy_loss(name, warped, fixed, **options)
    assert 0.01 < expected < 5
    assert abs(float(LOSSES[name](warped, fixed, **options)) - expected) < 1e-5
    assert abs(float(LOSSES[name](warped.double(), fixed.double(), **options)) - expected) < 1e-6


@variants
@pytest.mark.parametrize("batch", [1, 2])
def test_masked_loss_follows_its_definition(name, options, batch):
    warped, fixed = pair(SHAPES[3], dtype=torch.float64)
    mask = soft_weights(SHAPES[3], batch)
    expected = numpy_loss(name, warped, fixed, mask, **options)
    assert abs(float(LOSSES[name](warped, fixed, mask=mask, **options)) - expected) < 1e-6
    assert abs(expected - numpy_loss(name, warped, fixed, **options)) > 1e-4


@losses
def test_a_mask_of_bools_counts_its_voxels_only(name):
    warped, fixed = pair(SHAPES[3], batch=1)
    mask = torch.zeros(1, 1, *SHAPES[3], dtype=torch.bool)
    mask[..., 2:7, 3:9, 1:6] = True
    inside = LOSSES[name](warped[..., 2:7, 3:9, 1:6], fixed[..., 2:7, 3:9, 1:6])
    torch.testing.assert_close(LOSSES[name](warped, fixed, mask=mask), inside, atol=1e-6, rtol=1e-5)
    assert abs(float(inside) - float(LOSSES[name](warped, fixed))) > 1e-4
    planted = torch.where(mask, warped, 1 - fixed)
    torch.testing.assert_close(LOSSES[name](planted, fixed, mask=mask), inside, atol=1e-6, rtol=1e-5)


# -- DeepReg, its source's formulas over all voxels of one structure ---------------
def deepreg_dice(y_true, y_pred, w=0.0):
    product, total, voxels = (y_true * y_pred).sum(), (y_true + y_pred).sum(), y_true.size
    return (2 * (product - w * total + w * voxels) + EPS) / ((1 - 2 * w) * total + 2 * w * voxels + EPS)


def deepreg_jaccard(y_true, y_pred, w=0.0):
    product, total, voxels = (y_true * y_pred).sum(), (y_true + y_pred).sum(), y_true.size
    return (product - w * total + w * voxels + EPS) / ((1 - w) * total - product + w * voxels + EPS)


def deepreg_cross_entropy(y_true, y_pred, w=0.0):
    inside = (y_true * np.log(y_pred + EPS)).mean()
    return -(1 - w) * inside - w * ((1 - y_true) * np.log(1 - y_pred + EPS)).mean()


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_overlaps_and_cross_entropy_agree_with_deepreg(shape, weight):
    warped, fixed = pair(shape, channels=1, dtype=torch.float64)
    both = list(zip(fixed.numpy(), warped.numpy(), strict=True))
    dice = np.mean([1 - deepreg_dice(f, w, weight) for f, w in both])
    jaccard = np.mean([1 - deepreg_jaccard(f, w, weight) for f, w in both])
    entropy = np.mean([deepreg_cross_entropy(f, w, weight) for f, w in both])
    assert abs(float(dice_loss(warped, fixed, background_weight=weight)) - dice) < 2e-6
    assert abs(float(jaccard_loss(warped, fixed, background_weight=weight)) - jaccard) < 2e-6
    assert abs(float(cross_entropy_loss(warped, fixed, background_weight=weight)) - entropy) < 1e-9


@pytest.mark.parametrize("loss", [dice_loss, jaccard_loss, cross_entropy_loss])
def test_threshold_is_deepregs_binary(loss):
    warped, fixed = pair(SHAPES[3])
    warped[0, 0, 0, 0, 0] = fixed[0, 0, 0, 1, 0] = 0.5  # counts as the structure
    hard = [(x >= 0.5).float() for x in (warped, fixed)]
    found = loss(warped.requires_grad_(), fixed, threshold=0.5)
    assert not found.requires_grad
    assert float(found) == float(loss(*hard))
    assert abs(float(found) - float(loss(warped.detach(), fixed))) > 1e-3


# -- MONAI, where definitions agree ----------------------------------------------
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("jaccard", [False, True])
def test_overlaps_agree_with_monai(jaccard, squared):
    from monai.losses import DiceLoss

    warped, fixed = pair(SHAPES[3])
    reference = quiet(DiceLoss, jaccard=jaccard, squared_pred=squared, smooth_nr=1e-9, smooth_dr=1e-9)
    found = (jaccard_loss if jaccard else dice_loss)(warped, fixed, squared=squared)
    assert abs(float(found) - float(quiet(reference, warped, fixed))) < 1e-6


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.2, 1.3)])
def test_tversky_agrees_with_monai(alpha, beta):
    from monai.losses import TverskyLoss

    warped, fixed = pair(SHAPES[3])
    fixed = (fixed > 0.5).float()
    reference = quiet(TverskyLoss, alpha=alpha, beta=beta, smooth_nr=1e-9, smooth_dr=1e-9)
    expected = float(quiet(reference, warped, fixed))
    assert abs(float(tversky_loss(warped, fixed, alpha=alpha, beta=beta)) - expected) < 1e-6


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.8, 3.5), (0.5, 0.0)])
def test_focal_agrees_with_monai_on_hard_masks(alpha, gamma):
    """Away from 0 and 1, where the smoothing inside our logarithm is nothing."""
    from monai.losses import FocalLoss

    warped, fixed = pair(SHAPES[3])
    warped, fixed = warped * 0.8 + 0.1, (fixed > 0.5).float()
    expected = float(quiet(quiet(FocalLoss, alpha=alpha, gamma=gamma), warped.logit(), fixed))
    assert abs(float(focal_loss(warped, fixed, alpha=alpha, gamma=gamma)) - expected) < 1e-4 * expected


def test_cross_entropy_of_equal_weights_is_half_of_torchs():
    warped, fixed = pair(SHAPES[3], dtype=torch.float64)
    warped = warped * 0.8 + 0.1
    expected = float(torch.nn.functional.binary_cross_entropy(warped, fixed)) / 2
    assert abs(float(cross_entropy_loss(warped, fixed, background_weight=0.5)) - expected) < 1e-4


# -- what the losses mean ---------------------------------------------------------
@losses
def test_better_overlap_costs_less(name):
    fixed = (masks(SHAPES[3]) > 0.5).float()
    other = (masks(SHAPES[3], seed=7) > 0.5).float()
    worse, better, best = (float(LOSSES[name](fixed + t * (other - fixed), fixed)) for t in (0.9, 0.4, 0.0))
    assert worse > better + 0.02
    assert better > best + 0.01
    assert abs(best) < 1e-4


@pytest.mark.parametrize(("name", "options"), [v for v in VARIANTS if v[0] in ("dice", "jaccard")], ids=str)
def test_equal_apart_and_empty_structures(name, options):
    full = torch.ones(1, 1, *SHAPES[2])
    hard = (masks(SHAPES[2], batch=1, channels=1) > 0.5).float()
    empty = torch.zeros_like(hard)
    loss = LOSSES[name]
    for same in (hard, empty, full):
        assert abs(float(loss(same, same, **options))) < 1e-6
    assert abs(float(loss(hard, 1 - hard, **options)) - 1) < 1e-6
    if not options.get("background_weight"):
        assert abs(float(loss(hard, empty, **options)) - 1) < 1e-6


def test_squaring_makes_equal_soft_masks_perfect():
    soft = masks(SHAPES[3])
    assert float(dice_loss(soft, soft)) > 0.05
    assert float(jaccard_loss(soft, soft)) > 0.05
    assert abs(float(dice_loss(soft, soft, squared=True))) < 1e-6
    assert abs(float(jaccard_loss(soft, soft, squared=True))) < 1e-6


def test_tversky_tells_too_much_from_too_little():
    fixed = torch.zeros(1, 1, *SHAPES[2])
    fixed[..., 4:10, 4:10] = 1
    large, small = torch.zeros_like(fixed), torch.zeros_like(fixed)
    large[..., 3:11, 3:11], small[..., 5:9, 5:9] = 1, 1
    spilled, missed = 64 - 36, 36 - 16
    for alpha, beta in ((1.0, 0.2), (0.2, 1.0)):
        found = [float(tversky_loss(x, fixed, alpha=alpha, beta=beta)) for x in (large, small)]
        assert abs(found[0] - (1 - 36 / (36 + alpha * spilled))) < 1e-6
        assert abs(found[1] - (1 - 16 / (16 + beta * missed))) < 1e-6


def test_balancing_makes_a_small_structure_count():
    """A structure of 1 voxel in 208 and its surroundings, both wrong by as much, cost as much."""
    fixed = torch.zeros(1, 1, *SHAPES[2])
    fixed[..., 5, 6] = 1
    missed = torch.full_like(fixed, EPS)
    missed[..., 5, 6] = 0.3
    spilled = torch.where(fixed > 0, 1 - EPS, 0.7)
    a, b = (float(balanced_cross_entropy_loss(x, fixed)) for x in (missed, spilled))
    assert abs(a - b) < 0.01 * a
    plain = [float(cross_entropy_loss(x, fixed, background_weight=0.5)) for x in (missed, spilled)]
    assert plain[1] > 50 * plain[0]


@losses
def test_loss_is_a_mean_over_batch_and_channels(name):
    warped, fixed = pair(SHAPES[2])
    alone = [
        float(LOSSES[name](warped[i : i + 1, c : c + 1], fixed[i : i + 1, c : c + 1])) for i in range(2) for c in (0, 1)
    ]
    assert max(alone) - min(alone) > 0.01
    assert abs(float(LOSSES[name](warped, fixed)) - np.mean(alone)) < 1e-5


@losses
def test_two_dimensions_equal_flat_three(name):
    warped, fixed = pair(SHAPES[2])
    mask = soft_weights(SHAPES[2])
    for loss in (LOSSES[name], multiscale(LOSSES[name], scales=(0, 1.5))):
        flat = loss(warped, fixed, mask=mask)
        for axis in (2, 3, 4):
            thick = loss(warped.unsqueeze(axis), fixed.unsqueeze(axis), mask=mask.unsqueeze(axis))
            torch.testing.assert_close(thick, flat, atol=1e-6, rtol=1e-5)


# -- extremes ----------------------------------------------------------------------
LEVELS = st.sampled_from([0.0, 1e-38, 1e-20, 1e-7, 1e-4, 0.5, 1 - 1e-7, 1.0, 1 + 1e-6, 1 + 9e-4, -1e-7, -9e-4])
KINDS = st.sampled_from(["constant", "one voxel", "edge"])
OPTIONS = {
    "dice": [{}, {"squared": True}, {"background_weight": 1.0}],
    "jaccard": [{}, {"squared": True, "background_weight": 0.5}],
    "tversky": [{}, {"alpha": 0.0, "beta": 2.0, "gamma": 1.3}],
    "cross_entropy": [{}, {"background_weight": 0.5, "label_smoothing": 0.1}],
    "balanced": [{}, {"label_smoothing": 1.0}],
    "focal": [{}, {"gamma": 0.3}, {"gamma": 0.0}],
}


def planted(kind, level, rest):
    image = torch.full((1, 1, *SHAPES[2]), rest)
    region = {"constant": (...,), "one voxel": (..., 4, 5), "edge": (..., slice(3, None), slice(None))}[kind]
    image[region] = level
    return image


@losses
@properties
@given(KINDS, LEVELS, LEVELS, LEVELS, st.sampled_from(["none", "empty", "one voxel"]), st.booleans(), st.data())
def test_value_and_gradient_are_finite_for_every_mask(name, kind, level, rest, fixed_level, masking, half, data):
    warped, fixed = planted(kind, level, rest), planted("edge", fixed_level, 0.0)
    mask = None if masking == "none" else planted("one voxel", float(masking == "one voxel"), 0.0)
    if half:
        warped, fixed = warped.half(), fixed.half()
    options = data.draw(st.sampled_from(OPTIONS[name]))
    value, gradient = loss_and_gradient(LOSSES[name], warped, fixed, mask=mask, **options)
    assert -1e-4 <= value <= 13
    assert gradient.isfinite().all()


@losses
def test_what_rounding_left_outside_counts_as_the_end_and_keeps_its_gradient(name):
    """Also where the sum of the masks is exactly -1e-6, which the smoothing of 1e-6 would cancel."""
    inside, fixed = pair(SHAPES[2], batch=1, channels=1, dtype=torch.float64)
    beyond = torch.where(inside == 1, 1 + 1e-6, torch.where(inside == 0, -1e-6, inside))
    assert largest(beyond, inside) > 0
    for a, b, f in ((beyond, inside, fixed), (planted("one voxel", -1e-6, 0.0), planted("constant", 0.0, 0.0), None)):
        f = torch.zeros_like(a) if f is None else f
        found, expected = loss_and_gradient(LOSSES[name], a, f), loss_and_gradient(LOSSES[name], b, f)
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])


@losses
def test_an_empty_mask_gives_nothing(name):
    warped, fixed = pair(SHAPES[2])
    value, gradient = loss_and_gradient(LOSSES[name], warped, fixed, mask=torch.zeros(1, 1, *SHAPES[2]))
    assert abs(value) < 1e-6
    assert largest(gradient) == 0


@losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_a_whole_volume(name, dtype):
    """A quarter of a million voxels: their sum would be infinite in float16 and stop at 256 in bfloat16."""
    fixed = torch.zeros(1, 1, 64, 56, 72, dtype=dtype)
    fixed[..., 6:58, 4:50, 5:67] = 1
    warped = fixed.roll(3, 2) * 0.75
    for loss in (LOSSES[name], multiscale(LOSSES[name], scales=(0, 2))):
        found = loss(warped, fixed)
        assert found.dtype == dtype
        expected = float(loss(warped.double(), fixed.double()))
        assert abs(float(found) - expected) < 0.01 * max(expected, 0.1)
    _, gradient = loss_and_gradient(LOSSES[name], warped, fixed)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@variants
@pytest.mark.parametrize("masked", [False, True])
def test_losses_have_exact_gradients(name, options, masked):
    shape = (4, 3, 2)
    warped, fixed = pair(shape, dtype=torch.float64)
    warped, fixed = warped * 0.8 + 0.1, fixed * 0.8 + 0.1
    mask = soft_weights(shape) if masked else None
    inputs = (warped.requires_grad_(), fixed.requires_grad_())
    assert gradcheck(lambda w, f: LOSSES[name](w, f, mask=mask, **options), inputs)


# -- scales ------------------------------------------------------------------------
def numpy_kernel(sigma, kernel):
    """DeepReg's kernels, as its source writes them."""
    tail = int(sigma * (3 if kernel == "gaussian" else 5))
    x = np.arange(-tail, tail + 1)
    weights = np.exp(-0.5 * x**2 / sigma**2) if kernel == "gaussian" else 1 / ((x / sigma) ** 2 + 1)
    return weights / weights.sum()


def deepreg_smooth(image, sigmas, kernel):
    """Zero-padded convolution along each spatial axis, NumPy float64."""
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            image = correlate1d(image, numpy_kernel(sigma, kernel), axis=axis + 2, mode="constant")
    return image


def inside_margin(shape, margin, **kwargs):
    """Two masks that are zero near the borders, so that zero padding adds nothing."""
    content = torch.zeros(shape, dtype=torch.float64)
    content[tuple(slice(margin, n - margin) for n in shape)] = 1
    return [x * content for x in pair(shape, dtype=torch.float64, **kwargs)]


@pytest.mark.parametrize("kernel", ["gaussian", "cauchy"])
@pytest.mark.parametrize(("loss", "reference"), [(dice_loss, deepreg_dice), (jaccard_loss, deepreg_jaccard)])
@pytest.mark.parametrize("shape", [(48, 41), (27, 31, 26)])
def test_multiscale_agrees_with_deepreg_far_from_the_borders(shape, loss, reference, kernel):
    """The masks keep two tails of distance, so that what is smoothed never meets a border."""
    scales = (0, 0.7, 1) if kernel == "cauchy" else (0, 1, 1.5)
    warped, fixed = inside_margin(shape, 10, channels=1)
    expected = np.mean(
        [
            1 - reference(*[deepreg_smooth(x.numpy(), [s] * len(shape), kernel)[i] for x in (fixed, warped)])
            for s in scales
            for i in range(2)
        ]
    )
    found = float(multiscale(loss, scales, kernel=kernel)(warped, fixed))
    assert abs(found - expected) < 2e-6
    assert abs(found - float(loss(warped, fixed))) > 0.01


@pytest.mark.parametrize("kernel", ["gaussian", "cauchy"])
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_smoothing_gives_the_weights_outside_back(shape, kernel):
    """The zero-padded filter, divided by what it makes of ones; sigmas wider than the image too."""
    warped, fixed = pair(shape, dtype=torch.float64)
    ones = np.ones_like(fixed.numpy())
    for sigma in (0.3, 1.0, 2.5, 16.0):
        sigmas = [sigma] * len(shape)
        smooth = [
            deepreg_smooth(x.numpy(), sigmas, kernel) / deepreg_smooth(ones, sigmas, kernel) for x in (warped, fixed)
        ]
        expected = np.mean((smooth[0] - smooth[1]) ** 2)
        found = float(multiscale(mse_loss, (sigma,), kernel=kernel)(warped, fixed))
        assert abs(found - expected) < 1e-12


@pytest.mark.parametrize("kernel", ["gaussian", "cauchy"])
def test_a_constant_stays_at_every_scale(kernel):
    seen = []

    def loss(warped, fixed):
        seen.append(largest(warped, 0.7) + largest(fixed, 1.0))
        return warped.mean()

    constant = torch.full((1, 1, *SHAPES[3]), 0.7)
    multiscale(loss, kernel=kernel)(constant, torch.ones_like(constant))
    assert len(seen) == 6  # the default scales
    assert max(seen) < 1e-5


def test_scales_in_mm_are_divided_by_the_spacing():
    warped, fixed = pair(SHAPES[3], dtype=torch.float64)
    ones = np.ones_like(fixed.numpy())
    sigmas = 2.0 / np.array(SPACINGS[3])
    smooth = [
        deepreg_smooth(x.numpy(), sigmas, "gaussian") / deepreg_smooth(ones, sigmas, "gaussian")
        for x in (warped, fixed)
    ]
    found = multiscale(mse_loss, (2.0,), spacing=SPACINGS[3])(warped, fixed)
    assert abs(float(found) - np.mean((smooth[0] - smooth[1]) ** 2)) < 1e-12
    torch.testing.assert_close(
        multiscale(dice_loss, (0, 2.0), spacing=2.0)(warped, fixed), multiscale(dice_loss, (0, 1.0))(warped, fixed)
    )


def test_one_scale_of_zero_is_the_loss_and_options_are_handed_on():
    warped, fixed = pair(SHAPES[2])
    mask = soft_weights(SHAPES[2])
    options = {"mask": mask, "background_weight": 0.3, "squared": True}
    assert torch.equal(multiscale(dice_loss, (0,))(warped, fixed, **options), dice_loss(warped, fixed, **options))
    several = [float(multiscale(dice_loss, (s,))(warped, fixed, **options)) for s in (0, 1, 4)]
    assert abs(float(multiscale(dice_loss, (0, 1, 4))(warped, fixed, **options)) - np.mean(several)) < 1e-6
    assert torch.equal(multiscale(ncc_loss, (0,))(warped, fixed, mask=mask), ncc_loss(warped, fixed, mask=mask))


def test_scales_feel_structures_that_do_not_touch():
    """Dice alone has the same value however far they are apart."""
    fixed = torch.zeros(1, 1, 40, 31)
    fixed[..., 4:10, 10:20] = 1
    near, far = fixed.roll(10, 2), fixed.roll(22, 2)
    assert float(dice_loss(near, fixed)) == float(dice_loss(far, fixed))
    loss = multiscale(dice_loss)
    assert float(loss(near, fixed)) < float(loss(far, fixed)) - 0.02


@pytest.mark.parametrize("kernel", ["gaussian", "cauchy"])
def test_multiscale_has_exact_gradients(kernel):
    warped, fixed = pair((4, 3, 2), dtype=torch.float64)
    loss = multiscale(dice_loss, (0, 0.8, 3), kernel=kernel)
    warped = (warped * 0.8 + 0.1).requires_grad_()  # finite differences must not leave [0, 1]
    assert gradcheck(lambda w: loss(w, fixed), (warped,))


# -- one-hot -----------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_one_hot_is_numpys(dtype):
    labels = np.random.default_rng(0).choice([0, 2, 3, 17], size=(2, 1, *SHAPES[3]))
    tensor = torch.from_numpy(labels).to(dtype)
    found = one_hot(tensor)
    assert found.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert np.array_equal(found.numpy(), labels == np.array([2, 3, 17]).reshape(1, 3, 1, 1, 1))
    chosen = one_hot(tensor, [17, 0, 5])
    assert np.array_equal(chosen.numpy(), labels == np.array([17, 0, 5]).reshape(1, 3, 1, 1, 1))


def test_one_hot_masks_go_into_every_loss():
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 4, (1, 1, *SHAPES[2])))
    same = one_hot(labels)
    for loss in LOSSES.values():
        assert abs(float(loss(same, same))) < 1e-4
    assert one_hot(labels > 2).shape == (1, 1, *SHAPES[2])


# -- errors ------------------------------------------------------------------------
def refused(image, label):
    """Arguments that every loss of masks must refuse: (call arguments, error, words)."""
    nan = image.clone()
    nan[0, 0, 3, 4] = math.nan
    return [
        ((image, image[:, :, :8]), {}, ValueError, ("one shape", "(1, 1, 8, 13)")),
        ((label.float(), image), {}, ValueError, ("warped", "[0, 1]", "0 to 5", "one_hot(labels)")),
        ((image, label.float()), {}, ValueError, ("fixed", "[0, 1]", "0 to 5", "one_hot(labels)")),
        ((image - 0.2, image), {}, ValueError, ("warped", "-0.2", "clamp")),
        ((nan, image), {}, ValueError, ("warped", "nan")),
        ((image, nan), {}, ValueError, ("fixed", "nan")),
        ((label, image), {}, TypeError, ("warped", "int64", "one_hot(labels)")),
        ((image, label), {}, TypeError, ("fixed", "int64", "one_hot(labels)")),
        ((image[:, :0], image[:, :0]), {}, ValueError, ("at least one voxel", "(1, 0, 16, 13)")),
        ((image, image), {"mask": image[:, :, :8]}, ValueError, ("mask", "16, 13", "(1, 1, 8, 13)")),
        ((image, image), {"mask": 3 * torch.ones_like(image)}, ValueError, ("mask", "weights", "3 to 3")),
        ((image, image), {"mask": nan}, ValueError, ("mask", "nan")),
        ((image, image), {"background_weight": 1.5}, ValueError, ("background_weight", "0 to 1", "1.5")),
        ((image, image), {"background_weight": math.nan}, ValueError, ("background_weight", "nan")),
        ((image, image), {"label_smoothing": -0.1}, ValueError, ("label_smoothing", "0 to 1", "-0.1")),
        ((image, image), {"threshold": 0.0}, ValueError, ("threshold", "above 0", "0.0")),
    ]


@losses
def test_errors_of_every_loss_are_one_sentence(name, no_jaxtyping):
    image = masks(SHAPES[2], batch=1, channels=1)
    image[0, 0, 0, 0] = 0
    label = (torch.arange(16 * 13).reshape(1, 1, *SHAPES[2])) % 6
    accepted = inspect.signature(LOSSES[name]).parameters
    for arguments, options, error, words in refused(image, label):
        if options.keys() <= accepted.keys():
            with sentence(error, *words):
                LOSSES[name](*arguments, **options)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: tversky_loss(m, m, alpha=-1.0), ("alpha", "at least 0", "-1.0")),
        (lambda m: tversky_loss(m, m, alpha=0.0, beta=0.0), ("alpha", "beta", "both 0")),
        (lambda m: tversky_loss(m, m, gamma=0.75), ("gamma", "at least 1", "0.75")),
        (lambda m: focal_loss(m, m, gamma=-2.0), ("gamma", "at least 0", "-2.0")),
        (lambda m: focal_loss(m, m, alpha=2.0), ("alpha", "0 to 1", "2.0")),
        (lambda m: multiscale(dice_loss, ()), ("scales", "()")),
        (lambda m: multiscale(dice_loss, (1, -2)), ("scales", "at least 0", "-2.0")),
        (lambda m: multiscale(dice_loss, (1, math.nan)), ("scales", "nan")),
        (lambda m: multiscale(dice_loss, kernel="box"), ("kernel", "gaussian", "cauchy", "box")),
        (lambda m: multiscale(dice_loss, spacing=0.0)(m, m), ("spacing", "above 0")),
        (lambda m: multiscale(dice_loss, spacing=(1.0,) * 3)(m, m), ("spacing", "2 numbers")),
        (lambda m: one_hot(m), ("labels", "whole numbers", "0.", "warp_labels")),
        (lambda m: one_hot(torch.full_like(m, math.nan)), ("labels", "nan")),
        (lambda m: one_hot(torch.full_like(m, math.inf)), ("labels", "inf")),
        (lambda m: one_hot(m.repeat(1, 2, 1, 1)), ("labels", "(1, 2, 16, 13)")),
        (lambda m: one_hot(torch.zeros_like(m)), ("values", "background")),
        (lambda m: one_hot(torch.ones_like(m), [1, 2, 1]), ("values", "different", "[1, 2, 1]")),
        (lambda m: one_hot(torch.ones_like(m), [1, 0.5]), ("values", "whole", "0.5")),
    ],
)
def test_errors_are_one_sentence(call, words, no_jaxtyping):
    with sentence(ValueError, *words):
        call(masks(SHAPES[2], batch=1, channels=1) * 0.9)


def test_multiscale_leaves_integers_to_the_loss(no_jaxtyping):
    label = torch.ones(1, 1, *SHAPES[2], dtype=torch.int64)
    with sentence(TypeError, "int64", "one_hot(labels)"):
        multiscale(dice_loss)(label, label)
