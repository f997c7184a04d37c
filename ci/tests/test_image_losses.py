"""What single losses on images promise beyond what test_losses.py asks of all: windows, Parzen kernels, inputs."""

import math

import numpy as np
import pytest
import torch
from definitions import numpy_lncc, numpy_mi
from helpers import SHAPE_CASES, SHAPES, largest, quiet, sentence, smooth_image
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve
from torch.autograd import gradcheck

from reglib.losses import (
    LocalWindow,
    huber_loss,
    lcc_loss,
    lncc_loss,
    lncc_sums,
    mae_loss,
    mi_loss,
    mind_features,
    mind_loss,
    mse_loss,
    ncc_loss,
    ngf_loss,
    nmi_loss,
    ssim_loss,
    tukey_loss,
)

LOSSES = {
    "mse": mse_loss,
    "mae": mae_loss,
    "huber": huber_loss,
    "tukey": tukey_loss,
    "ncc": ncc_loss,
    "lncc": lncc_loss,
    "lcc": lcc_loss,
    "mi": mi_loss,
    "nmi": nmi_loss,
    "ngf": ngf_loss,
    "mind": mind_loss,
    "ssim": ssim_loss,
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def pair(shape, *, dtype=torch.float64, batch=1):
    """Two images that are alike but not the same."""
    first, other = (smooth_image(shape, seed=s, sigma=1.0, batch=batch, dtype=dtype) for s in (0, 50))
    return 0.8 * first + 0.4 * other, first


def numpy_windowed(w, f, kernel, *, half=0.0, floor=0.0):
    """Mean squared local correlation under any kernel, borders cut, by SciPy's convolution.

    Where the fixed image's variance is `half`, a window counts half; `floor` is added to the product of variances.
    """
    count = convolve(np.ones_like(w), kernel, mode="constant")

    def mean(x):
        return convolve(x, kernel, mode="constant") / count

    cov, vw, vf = mean(w * f) - mean(w) * mean(f), mean(w * w) - mean(w) ** 2, mean(f * f) - mean(f) ** 2
    return 1 - np.mean(cov**2 / (vw * (vf + half**2 / vf) + floor))


# -- windows -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize(
    ("window", "line"),
    [
        (LocalWindow("triangular", size=5), [1, 2, 3, 2, 1]),
        (LocalWindow("gaussian", size=5), np.exp(-0.5 * (np.arange(-2, 3) / (5 / 3)) ** 2)),
        (LocalWindow("gaussian", sigma=0.8), np.exp(-0.5 * (np.arange(-3, 4) / 0.8) ** 2)),
        (LocalWindow("gaussian", size=3, sigma=2.0), np.exp(-0.5 * (np.arange(-1, 2) / 2.0) ** 2)),
    ],
    ids=["triangular", "gaussian of a size", "gaussian of a sigma", "gaussian cut"],
)
def test_lncc_under_every_kernel(shape, window, line):
    warped, fixed = pair(shape)
    kernel = np.ones(())
    for _ in shape:
        kernel = np.multiply.outer(kernel, np.asarray(line, float))
    expected = numpy_windowed(warped[0, 0].numpy(), fixed[0, 0].numpy(), kernel)
    assert abs(float(lncc_loss(warped, fixed, window=window)) - expected) < 1e-6


def test_a_window_may_differ_between_axes():
    warped, fixed = pair(SHAPES[3])
    expected = numpy_windowed(warped[0, 0].numpy(), fixed[0, 0].numpy(), np.ones((3, 5, 1)))
    assert abs(float(lncc_loss(warped, fixed, window=(3, 5, 1))) - expected) < 1e-6


def test_windows_in_millimeters_are_the_closest_odd_number_of_voxels():
    assert LocalWindow.of_mm(size_mm=9.0, spacing=(1.0, 2.0, 3.0)).size == (9, 5, 3)
    assert LocalWindow.of_mm(size_mm=4.0, spacing=(5.0, 1.3)).size == (1, 3)
    window = LocalWindow.of_mm(sigma_mm=3.0, spacing=(1.5, 3.0), kernel="gaussian")
    assert window.sigma == (2.0, 1.0)
    assert [m.shape for m in window.matrices((9, 7))] == [(9, 9), (7, 7)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LocalWindow("box", size=4).matrices((9, 9)), ("window must be an odd number", "4")),
        (lambda: LocalWindow("box", size=(3, 0)).matrices((9, 9)), ("odd number", "at least 1")),
        (lambda: LocalWindow("round", size=3), ('"box", "triangular" or "gaussian"', "round")),
        (lambda: LocalWindow("box", size=3, sigma=1.0), ('sigma belongs to kernel "gaussian"', "box")),
        (lambda: LocalWindow("gaussian"), ("needs a size", "neither")),
        (lambda: LocalWindow("gaussian", sigma=0.0).matrices((9, 9)), ("sigma of a window must be above 0",)),
        (lambda: LocalWindow.of_mm(size_mm=4.0, spacing=(1.0, -1.0)), ("spacing must be above 0 mm",)),
    ],
)
def test_impossible_windows_are_refused(make, words, no_jaxtyping):
    with sentence(ValueError, *words):
        make()


# -- local correlation --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("masked", [False, True])
def test_lncc_has_gradients_to_both_images(masked):
    warped, fixed = pair((5, 4, 3))
    mask = (smooth_image((5, 4, 3), seed=3).double().clamp(-0.5, 0.5) + 0.5) if masked else None
    warped.requires_grad_()
    fixed.requires_grad_()
    window = LocalWindow("triangular", size=3)
    assert gradcheck(lambda w, f: lncc_loss(w, f, window=window, mask=mask), (warped, fixed))
    if not masked:
        assert gradcheck(lambda f: lncc_loss(warped.detach(), f, window=window), (fixed,))


def test_a_mask_of_each_image_counts_in_lncc():
    warped, fixed = pair(SHAPES[3])
    masks = [(smooth_image(SHAPES[3], seed=s).double() > -0.4).double() for s in (3, 4)]
    both = (masks[0] * masks[1]).numpy()
    expected = numpy_lncc(warped.numpy(), fixed.numpy(), both, 5)
    assert abs(float(lncc_loss(warped, fixed, window=5, mask=masks[0], warped_mask=masks[1])) - expected) < 1e-6


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_lcc_with_equal_hard_masks_is_lncc_and_else_uses_each_images_own_mean(shape):
    warped, fixed = pair(shape)
    mask = (smooth_image(shape, seed=3).double() > -0.6).double()
    same = lcc_loss(warped, fixed, window=5, mask=mask, warped_mask=mask)
    assert abs(float(same) - float(lncc_loss(warped, fixed, window=5, mask=mask))) < 1e-6
    cut = mask.clone()
    cut[:, :, : shape[0] // 2] = 0  # half of the moving image was not scanned
    other = float(lcc_loss(warped, fixed, window=5, mask=mask, warped_mask=cut))
    assert abs(other - float(lncc_loss(warped, fixed, window=5, mask=mask * cut))) > 1e-3
    assert 0 <= other <= 1


def test_wrong_sums_are_refused(no_jaxtyping):
    warped, fixed = pair(SHAPES[2])
    sums = lncc_sums(fixed, 5)
    with sentence(ValueError, "fixed_sums must be of the fixed image", "(1, 1, 16, 13)", "(1, 1, 16, 12)"):
        lncc_loss(warped[..., :-1], fixed[..., :-1], fixed_sums=sums)
    with sentence(ValueError, "fixed_sums", "warped_mask"):
        lncc_loss(warped, fixed, fixed_sums=sums, warped_mask=torch.ones_like(warped))
    assert float(lncc_loss(warped, fixed, fixed_sums=sums)) == float(lncc_loss(warped, fixed, window=5))


def flat_and_textured():
    """Two images that agree on strong texture in their lower half, and hold unrelated faint noise in the upper."""
    generator = torch.Generator().manual_seed(0)
    texture = smooth_image((24, 20), seed=0).double()
    noise = 0.05 * torch.randn(2, *texture.shape, generator=generator, dtype=torch.float64)
    lower = torch.arange(24)[:, None] < 12
    return torch.where(lower, texture, noise[0]), torch.where(lower, texture, noise[1])


def test_flat_keeps_faint_noise_from_counting():
    warped, fixed = flat_and_textured()
    gradients = []
    for flat in (1e-5, 0.02):
        moved = warped.clone().requires_grad_()
        lncc_loss(moved, fixed, window=5, flat=flat).backward()
        gradients.append(moved.grad[:, :, 15:].abs().mean())
    assert gradients[1] < 0.1 * gradients[0]
    assert float(lncc_loss(fixed[:, :, :10], fixed[:, :, :10], window=5, flat=1e-5)) < 1e-3


@pytest.mark.parametrize("flat", [0.0, 1e-5, 0.02, 0.5])
def test_flat_is_a_share_of_the_fixed_images_variance(flat):
    """Above the default, of the fixed image alone, and for both together a tenth of it."""
    warped, fixed = pair(SHAPES[2])
    own, other = (float(x.var(correction=0)) for x in (fixed, warped))
    both = flat if flat <= 1e-5 else flat / 10
    how = {"half": flat * own if flat > 1e-5 else 0.0, "floor": both**2 * own * other}
    expected = numpy_windowed(warped.numpy()[0, 0], fixed.numpy()[0, 0], np.ones((5, 5)), **how)
    assert abs(float(lncc_loss(warped, fixed, window=5, flat=flat)) - expected) < 1e-5


def test_a_warped_image_gains_nothing_by_stronger_contrast_in_weak_places():
    """Else a map is rewarded for gathering structure wherever the fixed image has little of it."""
    strong = smooth_image((40, 20), seed=0).double()
    gain = torch.where(torch.arange(40)[:, None] < 20, 1.0, 0.2)
    weak = strong * gain
    kept, raised = (
        float(lncc_loss(x, weak, window=5, flat=0.05)) for x in (weak, weak * torch.where(gain < 1, 3.0, 1.0))
    )
    assert kept > 0.1  # weak windows do count less
    assert abs(raised - kept) < 0.1 * kept


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_exact_where_flat_counts(masked):
    warped, fixed = pair((5, 4, 3), batch=2)
    mask = (smooth_image((5, 4, 3), seed=3).double().clamp(-0.5, 0.5) + 0.5) if masked else None
    arguments = (warped.requires_grad_(), fixed.requires_grad_())
    assert gradcheck(lambda w, f: lncc_loss(w, f, window=3, mask=mask, flat=0.3), arguments)


def test_sums_made_before_keep_their_flat():
    warped, fixed = pair(SHAPES[2])
    sums = lncc_sums(fixed, 5, flat=0.1)
    assert float(lncc_loss(warped, fixed, fixed_sums=sums)) == float(lncc_loss(warped, fixed, window=5, flat=0.1))
    prepared = lncc_loss.prepare(fixed, window=5, flat=0.1)["fixed_sums"]
    assert prepared.flat == 0.1


def test_descriptors_of_the_fixed_image_may_be_made_once():
    warped, fixed = (torch.rand(1, 1, 14, 11, 9, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    mask = (torch.rand(1, 1, 14, 11, 9, generator=torch.Generator().manual_seed(3)) > 0.3).float()
    for masked in ({}, {"mask": mask}):
        prepared = mind_loss.prepare(fixed, radius=2, dilation=1, **masked)
        once = mind_loss(warped, fixed, radius=2, dilation=1, **masked, **prepared)
        assert once == mind_loss(warped, fixed, radius=2, dilation=1, **masked)
        assert mind_loss.prepare(fixed, **masked, **prepared) == {}


@pytest.mark.parametrize("flat", [-0.1, 1.0])
def test_flat_must_be_a_share(flat):
    warped, fixed = pair(SHAPES[2])
    with sentence(ValueError, "flat must be a share", str(flat)):
        lncc_loss(warped, fixed, flat=flat)
    with sentence(ValueError, "flat must be a share", str(flat)):
        lncc_sums(fixed, 9, flat=flat)


def test_monai_and_this_library_differ_where_the_docstring_says():
    """A constant image: ours scores 1 (nothing alike); MONAI's zero padding makes the border look like an edge."""
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    flat = torch.full((1, 1, 12, 12, 12), 0.5)
    monai = float(quiet(quiet(LocalNormalizedCrossCorrelationLoss, spatial_dims=3, kernel_size=9), flat, flat))
    assert monai < -0.9
    assert abs(float(lncc_loss(flat, flat)) - 1) < 1e-6


# -- mutual information -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize("bins", [8, 23])
def test_gaussian_mi_follows_its_definition(shape, bins):
    warped, fixed = pair(shape)
    m = np.ones((1, 1, *shape))
    expected = numpy_mi(warped.numpy(), fixed.numpy(), m, bins, parzen="gaussian")
    assert abs(float(mi_loss(warped, fixed, bins=bins, parzen="gaussian")) - expected) < 1e-9


def test_gaussian_mi_is_deepregs_gmi_on_images_in_zero_to_one():
    """DeepReg's formula, written again: gaussian weights normalized over bins, sigma half a bin."""
    rng = np.random.default_rng(0)
    t, p = rng.random((2, 6, 7, 5))
    t.flat[:2] = p.flat[:2] = (0, 1)
    centers = np.linspace(0, 1, 23)
    preterm = 1 / (2 * (np.mean(np.diff(centers)) * 0.5) ** 2)
    a, b = (np.exp(-preterm * (x.reshape(-1, 1) - centers) ** 2) for x in (t, p))
    a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    joint = a.T @ b / len(a)
    independent = np.outer(a.mean(0), b.mean(0))
    deepreg = (joint * np.log((joint + 1e-9) / (independent + 1e-9) + 1e-9)).sum()
    found = mi_loss(*(torch.from_numpy(x)[None, None] for x in (p, t)), bins=23, parzen="gaussian")
    assert abs(float(found) + deepreg) < 1e-6


@pytest.mark.parametrize("parzen", ["bspline", "gaussian"])
@pytest.mark.parametrize("loss", [mi_loss, nmi_loss])
def test_information_has_gradients_to_both_images(loss, parzen):
    warped, fixed = pair((5, 4, 3))
    warped.requires_grad_()
    fixed.requires_grad_()
    options = {"bins": 6, "parzen": parzen, "warped_range": (-6.0, 6.0), "fixed_range": (-6.0, 6.0)}
    mask = smooth_image((5, 4, 3), seed=3).double().clamp(-0.5, 0.5) + 0.5
    assert gradcheck(lambda w, f: loss(w, f, mask=mask, **options), (warped, fixed))


def test_chunks_of_voxels_add_up():
    """More voxels than fit one chunk."""
    warped, fixed = (smooth_image((300, 281), seed=s, sigma=2.0) for s in (0, 1))
    expected = numpy_mi(warped.double().numpy(), fixed.double().numpy(), np.ones((1, 1, 300, 281)), 32)
    assert abs(float(mi_loss(warped, fixed)) - expected) < 1e-5
    assert warped.numel() > 2**16


def test_a_tenth_of_the_voxels_says_nearly_the_same():
    warped, fixed = pair((60, 52))
    whole = float(mi_loss(warped, fixed, bins=8))
    draws = [
        float(mi_loss(warped, fixed, bins=8, fraction=0.3, generator=torch.Generator().manual_seed(seed)))
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert all(abs(draw - whole) < 0.2 * abs(whole) for draw in draws)
    moved = warped.clone().requires_grad_()
    mi_loss(moved, fixed, fraction=0.1, generator=torch.Generator().manual_seed(0)).backward()
    assert 0.05 < float((moved.grad != 0).double().mean()) <= 0.1


def test_unrelated_and_equal_images():
    a, b = torch.rand(2, 1, 1, 64, 61, generator=torch.Generator().manual_seed(0))
    assert abs(float(nmi_loss(a, b)) - 1) < 0.05
    assert float(nmi_loss(a, a)) < 0.75
    assert float(mi_loss(a, a)) < -2
    assert abs(float(nmi_loss(1 - a, a)) - float(nmi_loss(a, a))) < 0.05


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bins": 3}, ("bins must be at least 4", "3")),
        ({"bins": 0}, ("bins must be at least 4", "0")),
        ({"parzen": "box"}, ("parzen", "bspline", "box")),
        ({"fraction": 0.0}, ("fraction must be above 0", "0.0")),
        ({"fraction": 1.5}, ("fraction", "1.5")),
        ({"warped_range": (0.0, 1.0)}, ("warped must lie in warped_range", "it spans")),
        ({"fixed_range": (1.0, 1.0)}, ("fixed_range must be (smallest, largest)",)),
    ],
)
@pytest.mark.parametrize("loss", [mi_loss, nmi_loss])
def test_impossible_histograms_are_refused(loss, options, words, no_jaxtyping):
    with sentence(ValueError, *words):
        loss(*pair(SHAPES[2]), **options)


# -- structure ---------------------------------------------------------------------------------------------------
def test_ssim_agrees_with_scikit_image_inside_a_flat_margin():
    """In a margin as wide as two windows both images are 0, so that borders, treated differently, do not matter."""
    from skimage.metrics import structural_similarity

    content = torch.zeros(48, 41, dtype=torch.float64)
    content[11:-11, 11:-11] = 1
    warped, fixed = (x * content for x in pair((48, 41)))
    _, picture = structural_similarity(
        warped[0, 0].numpy(),
        fixed[0, 0].numpy(),
        data_range=4.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    found = float(ssim_loss(warped, fixed, data_range=4.0))
    assert abs(found - (1 - picture.mean())) < 1e-6
    assert found > 0.05


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_contrast_does_not_matter_to_structure(shape):
    """NGF and MIND see the same in an inverted image; MIND also in one whose contrast is remapped piece by piece."""
    image = smooth_image(shape, sigma=1.0)
    for loss in (ngf_loss, mind_loss):
        other = float(loss(smooth_image(shape, seed=9, sigma=1.0), image))
        assert float(loss(-image, image)) < float(loss(image, image)) + 1e-4 < other
    assert float(mind_loss(-image, image)) < 1e-6
    assert float(mind_loss(3 * image + 7, image)) < 1e-6


def test_mind_has_twelve_channels_in_space_and_four_in_the_plane():
    for d, channels in ((2, 4), (3, 12)):
        features = mind_features(smooth_image(SHAPES[d], batch=2))
        assert features.shape == (2, channels, *SHAPES[d])
        assert float(features.amax(1).min()) == 1  # the closest pair of patches
        assert features.min() > 0


def test_features_made_before_change_nothing():
    warped, fixed = pair(SHAPES[3])
    features = mind_features(fixed, radius=2, dilation=1)
    kept = mind_loss(warped, fixed, radius=2, dilation=1, fixed_features=features)
    assert float(kept) == float(mind_loss(warped, fixed, radius=2, dilation=1))


def test_spacing_turns_edges_into_millimeters():
    """An oblique edge in the world has other voxel gradients on an anisotropic grid; scaled axes agree again."""
    warped, fixed = pair(SHAPES[2])
    assert float(ngf_loss(warped, fixed, spacing=2.0)) == pytest.approx(float(ngf_loss(warped, fixed)), abs=1e-9)
    assert abs(float(ngf_loss(warped, fixed, spacing=(1.0, 5.0))) - float(ngf_loss(warped, fixed))) > 1e-3


def test_ngf_with_a_large_epsilon_sees_nothing_and_with_a_tiny_one_only_direction():
    warped, fixed = pair(SHAPES[2])
    assert float(ngf_loss(warped, fixed, epsilon=1e4)) > 0.999
    assert float(ngf_loss(2 * fixed, fixed, epsilon=1e-6)) < 1e-6


# -- voxel by voxel ------------------------------------------------------------------------------------------------
def test_robust_losses_agree_with_torch_and_stop_pulling():
    warped, fixed = (10 * x for x in pair(SHAPES[2]))
    expected = torch.nn.functional.huber_loss(warped, fixed, delta=2.5)
    assert abs(float(huber_loss(warped, fixed, delta=2.5)) - float(expected)) < 1e-12
    assert abs(float(mae_loss(warped, fixed)) - float(torch.nn.functional.l1_loss(warped, fixed))) < 1e-12
    moved = (fixed + 3.0).requires_grad_()
    tukey_loss(moved, fixed, c=2.0).backward()
    assert largest(moved.grad) == 0
    near = torch.full_like(fixed, 1e-3)
    assert float(tukey_loss(fixed + near, fixed)) == pytest.approx(5e-7, rel=1e-4)  # e^2 / 2


# -- what all of them refuse and survive ---------------------------------------------------------------------------
@every_loss
def test_images_must_fit_each_other_and_their_mask(name, no_jaxtyping):
    loss, image = LOSSES[name], torch.rand(2, 1, 16, 13)
    with sentence(ValueError, "warped and fixed must have one shape", "(2, 1, 16, 13)", "(2, 1, 16, 12)"):
        loss(image, image[..., :-1])
    with sentence(ValueError, "mask must be (2, 1, 16, 13)", "(3, 1, 16, 13)"):
        loss(image, image, mask=torch.ones(3, 1, 16, 13))
    with sentence(ValueError, "mask must be", "(2, 2, 16, 13)"):
        loss(image, image, mask=torch.ones(2, 2, 16, 13))
    with sentence(ValueError, "(b, c, *s) in 2-D or 3-D", "(16, 13)"):
        loss(image[0, 0], image[0, 0])
    with sentence(TypeError, "floating point", "int64"):
        loss(image.long(), image)


@pytest.mark.parametrize(
    ("loss", "options", "words"),
    [
        (huber_loss, {"delta": 0.0}, ("delta must be above 0",)),
        (tukey_loss, {"c": -1.0}, ("c must be above 0", "-1.0")),
        (ngf_loss, {"epsilon": 0.0}, ("epsilon must be above 0",)),
        (ngf_loss, {"spacing": (1.0, 0.0)}, ("spacing must be above 0",)),
        (ssim_loss, {"data_range": 0.0}, ("data_range must be above 0",)),
        (ssim_loss, {"window": 4}, ("odd number",)),
        (lncc_loss, {"window": 4}, ("odd number",)),
        (lcc_loss, {"window": 0}, ("odd number",)),
        (mind_loss, {"radius": -1}, ("radius must be at least 0",)),
        (mind_loss, {"dilation": 0}, ("dilation at least 1",)),
    ],
)
def test_impossible_options_are_refused(loss, options, words, no_jaxtyping):
    with sentence(ValueError, *words):
        loss(*pair(SHAPES[2]), **options)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    warped, fixed = (100 * x.to(dtype) for x in pair(SHAPES[3]))  # squares of which overflow in half precision
    loss = LOSSES[name]
    moved = warped.clone().requires_grad_()
    value = loss(moved, fixed)
    value.backward()
    exact = float(loss(warped.float(), fixed.float()))
    assert value.dtype == moved.grad.dtype == dtype
    assert abs(float(value.detach()) - exact) <= torch.finfo(dtype).eps * abs(exact)
    assert moved.grad.isfinite().all()


@every_loss
@settings(deadline=None, max_examples=25, derandomize=True, database=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.sampled_from([0.0, 1e-30, 1.0, 3e4, 1e30]))
def test_tiny_and_flat_volumes_give_numbers(name, i, j, k, size):
    """Axes of one voxel, windows wider than the image, values at the ends of float32."""
    generator = torch.Generator().manual_seed(i + 10 * j + 100 * k)
    warped, fixed = size * torch.rand(2, 1, 1, i, j, k, generator=generator)
    warped.requires_grad_()
    value = LOSSES[name](warped, fixed)
    value.backward()
    assert not math.isnan(float(value.detach()))
    assert not warped.grad.isnan().any()
