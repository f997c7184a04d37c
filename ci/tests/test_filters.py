"""Separable filters and derivatives: against SciPy, NumPy and torch."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from helpers import SHAPE_CASES, SHAPES, inner, largest, oblique, sentence, smooth_image
from scipy.fft import dct
from scipy.interpolate import BSpline
from scipy.ndimage import correlate1d, gaussian_filter, map_coordinates, spline_filter
from torch.autograd import gradcheck, gradgradcheck

from reglib import filters
from reglib.grid import Grid

SIGMAS = {2: (0.9, 1.4), 3: (0.9, 0.6, 1.2)}


def noise(shape, batch=2, channels=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, channels, *shape))).float()


# -- gaussian --------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
def test_gaussian_agrees_with_scipy_away_from_the_border(dim):
    """Both cut the weights at 4 sigma; SciPy rounds that radius, so it is given."""
    shape, sigma = {2: (22, 27), 3: (15, 13, 18)}[dim], SIGMAS[dim]
    image = noise(shape)
    radius = [int(4 * s) for s in sigma]
    expected = gaussian_filter(image.double().numpy(), (0, 0, *sigma), radius=(0, 0, *radius))
    margin = max(radius)
    assert largest(inner(filters.gaussian(image, sigma=sigma), margin), inner(expected, margin)) < 1e-6


@pytest.mark.parametrize("sigma", [0.2, 0.9, 3.0, 40.0])
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_gaussian_keeps_a_constant_up_to_the_border(shape, sigma):
    image = torch.full((1, 2, *shape), 7.25)
    assert largest(filters.gaussian(image, sigma=sigma), image) < 5e-6


def test_gaussian_gives_back_the_weights_that_fall_outside():
    """At the border it is the ratio of two filters that see zeros outside."""
    image, radius = noise((16, 13)), (4, 6)
    rule = {"radius": (0, 0, *radius), "mode": "constant"}
    sums = gaussian_filter(image.double().numpy(), (0, 0, 1.0, 1.5), **rule)
    weights = gaussian_filter(np.ones(image.shape), (0, 0, 1.0, 1.5), **rule)
    assert largest(filters.gaussian(image, sigma=(1.0, 1.5)), sums / weights) < 1e-6


def test_gaussian_of_sigma_zero_leaves_an_axis_alone():
    image = noise(SHAPES[3])
    assert largest(filters.gaussian(image, sigma=0.0), image) == 0
    one_axis = filters.gaussian(image, sigma=(0.0, 1.1, 0.0))
    slices = [filters.gaussian(image[..., i, :, k : k + 1], sigma=(1.1, 0.0)) for i in range(9) for k in range(7)]
    stacked = torch.stack([s.squeeze(-1) for s in slices], 2).unflatten(2, (9, 7)).movedim(3, -1)
    torch.testing.assert_close(one_axis, stacked)


def test_smoothing_an_axis_of_one_voxel_does_nothing():
    flat = noise((16, 13))
    torch.testing.assert_close(
        filters.gaussian(flat.unsqueeze(-1), sigma=1.3).squeeze(-1), filters.gaussian(flat, sigma=1.3)
    )


@pytest.mark.parametrize("n", [1, 2, 7, 30])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_gaussian_rows_sum_to_one(n, sigma):
    matrix = filters.gaussian_matrix(n, sigma).numpy()
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-14)
    assert (matrix >= 0).all()


# -- local contrast --------------------------------------------------------------
@pytest.mark.parametrize("shape", [(24, 20), (14, 12, 13)])
def test_local_contrast_agrees_with_scipy_away_from_the_border(shape):
    image = torch.rand(2, 1, *shape, dtype=torch.float64)
    ours = filters.local_contrast(image, sigma=1.5, flat=0.25)
    for k in range(2):
        x = image[k, 0].numpy()
        smooth = partial(gaussian_filter, sigma=1.5, truncate=8)
        apart = image[k, 0] - filters.gaussian(image, sigma=1.5)[k, 0]
        deviation = np.sqrt(smooth(apart.numpy() ** 2))
        expected = (x - smooth(x)) / (deviation + 0.25 * deviation.mean())
        inner = tuple(slice(5, -5) for _ in shape)
        np.testing.assert_allclose(ours[k, 0].numpy()[inner], expected[inner], rtol=0.02, atol=0.02)


def test_local_contrast_cancels_gain_and_changes_sign_with_the_contrast():
    image = torch.rand(1, 1, 20, 21)
    mask = torch.zeros(1, 1, 20, 21)
    mask[..., 3:-3, 2:-4] = 1
    ours = filters.local_contrast(image, sigma=2, mask=mask)
    assert bool((ours[mask == 0] == 0).all())
    torch.testing.assert_close(filters.local_contrast(5 - 3 * image, sigma=2, mask=mask), -ours, atol=1e-4, rtol=1e-4)
    other = torch.where(mask > 0, image, 99.0)
    torch.testing.assert_close(filters.local_contrast(other, sigma=2, mask=mask), ours, atol=1e-4, rtol=1e-4)


def test_local_contrast_of_a_constant_is_zero():
    ours = filters.local_contrast(torch.full((1, 2, 9, 8), 0.3), sigma=1)
    torch.testing.assert_close(ours, torch.zeros_like(ours), atol=1e-3, rtol=0)


# -- box -------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize("window", [1, 3, (5, 3, 7), 31])
def test_box_adds_the_voxels_of_each_window(shape, window):
    image = noise(shape, channels=1)
    window = window[: len(shape)] if isinstance(window, tuple) else window
    sizes = np.broadcast_to(window, len(shape))
    expected = np.zeros(image.shape)
    for index in itertools.product(*[range(n) for n in shape]):
        cut = tuple(slice(max(i - w // 2, 0), i + w // 2 + 1) for i, w in zip(index, sizes, strict=True))
        expected[(..., *index)] = image.double().numpy()[(..., *cut)].sum(axis=tuple(range(2, image.ndim)))
    assert largest(filters.box(image, window=window), expected) < 1e-4


# -- differences, splines, resizing ----------------------------------------------
@pytest.mark.parametrize("shape", [*SHAPE_CASES, (2, 5), (3, 2, 4)])
def test_finite_difference_agrees_with_numpy(shape):
    image = noise(shape)
    for axis, spacing in zip(range(2, image.ndim), (0.8, 1.0, 2.5), strict=False):
        expected = np.gradient(image.double().numpy(), spacing, axis=axis)
        assert largest(filters.finite_difference(image, axis, spacing=spacing), expected) < 1e-5


@pytest.mark.parametrize("shape", [(6, 4), (1, 3), (2, 2)])
def test_finite_difference_has_exact_gradients_twice(shape):
    image = noise(shape).double().requires_grad_()
    for axis in (2, -1):
        assert gradcheck(lambda x, a=axis: filters.finite_difference(x, a, spacing=1.3), (image,))
        assert gradgradcheck(lambda x, a=axis: filters.finite_difference(x, a, spacing=1.3), (image,))


def test_finite_difference_of_one_voxel_is_zero():
    assert largest(filters.finite_difference(noise((5, 1)), 3)) == 0


@pytest.mark.parametrize("shape", [*SHAPE_CASES, (2, 5), (1, 9, 3)])
def test_spline_coefficients_agree_with_scipy(shape):
    image = noise(shape, channels=2)
    expected = [[spline_filter(c, order=3, mode="mirror") for c in b] for b in image.double().numpy()]
    assert largest(filters.bspline(image), np.array(expected)) < 1e-4


def test_cubic_weight_is_the_cubic_spline():
    x = np.linspace(-2.5, 2.5, 41)
    expected = np.nan_to_num(BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)(x))
    np.testing.assert_allclose(filters.cubic_weight(torch.from_numpy(x)).numpy(), expected, atol=1e-14)


@pytest.mark.parametrize(("shape", "other"), [((16, 13), (7, 25)), ((9, 12, 7), (5, 12, 16)), ((9, 12, 7), (20, 2, 3))])
def test_resize_agrees_with_torch(shape, other):
    image = noise(shape)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    expected = torch.nn.functional.interpolate(image, size=other, mode=mode, align_corners=True)
    assert largest(filters.resize(image, other), expected) < 1e-5


def test_resize_to_one_voxel_takes_the_middle_and_from_one_repeats_it():
    image = noise((5, 4))
    torch.testing.assert_close(filters.resize(image, (5, 1))[..., 0], (image[..., 1] + image[..., 2]) / 2)
    torch.testing.assert_close(filters.resize(image[..., :1], (5, 3)), image[..., :1].expand(2, 3, 5, 3))


@pytest.mark.parametrize("dim", [2, 3])
def test_downsample_keeps_a_linear_function_in_place(dim):
    """The image of a world coordinate, coarsened, is the coordinate of the coarse grid."""
    grid = Grid({2: (40, 33), 3: (24, 29, 20)}[dim], oblique(dim))
    small = grid.downsample(2.5)
    coarse = filters.downsample(grid.coordinates("world").movedim(-1, 0)[None], small.shape)
    expected = small.coordinates("world").movedim(-1, 0)[None]
    assert largest(inner(coarse, 2), inner(expected, 2)) < 2e-3


def test_downsample_suppresses_what_the_coarse_grid_cannot_hold():
    stripes = torch.zeros(1, 1, 48, 37)
    stripes[:, :, ::2] = 1.0
    coarse = filters.downsample(stripes, (12, 10))
    assert float((inner(coarse, 1) - 0.5).abs().max()) < 0.05
    assert float((filters.resize(stripes, (12, 10)) - 0.5).abs().max()) > 0.4
    torch.testing.assert_close(filters.downsample(stripes, (48, 37)), stripes)


@pytest.mark.parametrize(("shape", "finer"), [((9, 12), (17, 30)), ((6, 5, 8), (11, 5, 15)), ((7, 1), (13, 4))])
def test_upsample_is_scipys_interpolating_cubic_spline(shape, finer):
    image = noise(shape)
    lines = [np.linspace(0, n - 1, m) for n, m in zip(shape, finer, strict=True)]
    points = np.stack(np.meshgrid(*lines, indexing="ij"))
    expected = [[map_coordinates(x, points, order=3, mode="mirror") for x in one] for one in image.double().numpy()]
    assert largest(filters.upsample(image, finer), torch.from_numpy(np.array(expected))) < 1e-5


@pytest.mark.parametrize("shape", [(9, 11), (10,), (8, 12)])
def test_upsample_refuses_fewer_voxels(shape):
    with pytest.raises(ValueError, match="upsample") as raised:
        filters.upsample(noise((9, 12)), shape)
    sentence(raised, "(9, 12)", str(shape))


def test_pyramid_makes_each_level_from_the_original():
    image = smooth_image((40, 33), batch=2)
    shapes = [(10, 9), (20, 17), (40, 33)]
    levels = filters.gaussian_pyramid(image, shapes)
    assert [tuple(level.shape[2:]) for level in levels] == shapes
    torch.testing.assert_close(levels[0], filters.downsample(image, (10, 9)))
    assert largest(levels[2], image) == 0


@pytest.mark.parametrize("axis", [2, 3, 4, -1, -2, -3])
def test_apply_along_multiplies_lines(axis):
    image = noise(SHAPES[3])
    matrix = torch.from_numpy(np.random.default_rng(1).standard_normal((4, image.shape[axis])))
    expected = np.moveaxis(np.tensordot(matrix.numpy(), image.double().numpy(), axes=(1, axis)), 0, axis)
    assert largest(filters.apply_along(image, matrix, axis), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_filters_keep_the_type(dtype):
    image = smooth_image(SHAPES[3]).to(dtype)
    for found in (
        filters.gaussian(image, sigma=1.0),
        filters.box(image, window=3),
        filters.bspline(image),
        filters.resize(image, (5, 6, 4)),
        filters.finite_difference(image, 2),
    ):
        assert found.dtype == dtype


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: filters.gaussian(x, sigma=-1.0), ("sigma", "at least 0", "-1")),
        (lambda x: filters.gaussian(x, sigma=(1.0, 1.0, 1.0)), ("sigma", "2 numbers")),
        (lambda x: filters.box(x, window=4), ("window", "odd", "4")),
        (lambda x: filters.box(x, window=0), ("window", "at least 1", "0")),
        (lambda x: filters.resize(x, (4, 4, 4)), ("shape", "(4, 4, 4)")),
    ],
)
def test_errors_are_one_sentence(call, words, no_jaxtyping):
    with sentence(ValueError, *words):
        call(noise(SHAPES[2]))


# -- sobolev ---------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_sobolev_solves_its_equation_with_mirrored_borders(shape):
    image, alphas = noise(shape).double(), [0.7, 2.0, 1.3][: len(shape)]
    found = filters.sobolev(image, alpha=alphas)
    bent = [
        correlate1d(found.numpy(), [1, -2, 1], axis=k + 2, mode="reflect") * alpha for k, alpha in enumerate(alphas)
    ]
    np.testing.assert_allclose(found.numpy() - sum(bent), image.numpy(), atol=1e-12)
    torch.testing.assert_close(filters.sobolev(image, alpha=0), image)


def test_cosine_matrix_is_the_orthonormal_dct():
    np.testing.assert_allclose(filters.cosine_matrix(11).numpy(), dct(np.eye(11), axis=0, norm="ortho"), atol=1e-14)


def test_sobolev_refuses_to_sharpen(no_jaxtyping):
    with sentence(ValueError, "alpha", "-1"):
        filters.sobolev(noise((6, 7)), alpha=-1.0)
