"""Displacement algebra: against slices, closed forms, SciPy, MONAI and SimpleITK."""

import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import (
    SHAPE_CASES,
    SHAPES,
    affine,
    apply,
    blob,
    center_of_mass,
    inner,
    largest,
    oblique,
    quiet,
    rotation,
    sentence,
    sitk_warp,
    smooth_ddf,
    smooth_image,
    targets,
    voxels,
)
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.ndimage import map_coordinates
from torch.autograd import gradcheck

from reglib import field
from reglib.grid import Axes, Grid, GridMismatchError

MODES = ["bilinear", "nearest", "cubic"]
VERBS = {
    "warp": lambda image, ddf: field.warp(image, ddf),
    "cubic warp": lambda image, ddf: field.warp(image, ddf, mode="cubic"),
    "warp with a number": lambda image, ddf: field.warp(image, ddf, padding=-0.7),
    "sample": lambda image, ddf: field.sample(image, ddf.flatten(2).movedim(1, -1).abs()),
    "compose": lambda image, ddf: field.compose(ddf, ddf),
    "exponential": lambda image, ddf: field.exponential(ddf),
    "inverse": lambda image, ddf: field.inverse(ddf * 0.3).ddf,
    "resize_ddf": lambda image, ddf: field.resize_ddf(ddf, [n + 3 for n in ddf.shape[2:]]),
    "jacobian_determinant": lambda image, ddf: field.jacobian_determinant(ddf),
}


def constant(shape, vector, batch=1):
    """A field that moves every voxel by the same number of voxels."""
    return torch.tensor(vector, dtype=torch.float32).reshape(1, -1, *[1] * len(shape)).repeat(batch, 1, *shape)


def matrix_field(linear, shift, shape):
    """(1, d, *s) float64 field u(p) = linear p + shift."""
    return torch.from_numpy(np.moveaxis(voxels(shape) @ np.transpose(linear) + shift, -1, 0)[None])


def world_map(dim):
    """A world matrix that turns, stretches and shifts a little about the origin of the grids used here."""
    turn = rotation({2: (7.0,), 3: (4.0, -6.0, 5.0)}[dim]) @ np.diag((1.06, 0.95, 1.03)[:dim])
    center = np.array({2: (-25.0, 0.0), 3: (-28.0, 12.0, 46.0)}[dim])
    return affine(turn, center - turn @ center + np.array((0.9, -0.6, 0.5)[:dim]))


def scipy_warp(image, ddf, **kwargs):
    """warped[p] = image[p + ddf[p]] for (b, c, *s) by map_coordinates in float64."""
    where = targets(ddf)
    where = np.broadcast_to(where, (image.shape[0], *where.shape[1:]))
    values = image.double().numpy()
    return np.stack([[map_coordinates(c, w, **kwargs) for c in b] for b, w in zip(values, where, strict=True)])


def inside(ddf, shape):
    """(b, *t) whether p + ddf[p] lies between the outer voxel centers."""
    where = targets(ddf)
    top = np.array(shape).reshape(1, -1, *[1] * len(shape)) - 1
    return ((where >= 0) & (where <= top)).all(axis=1)


def wave(x, shape):
    """A curved velocity at (k, 2), zero at the border, voxels per unit time."""
    t = np.pi * x / (np.array(shape) - 1)
    bump = np.sin(t[:, :1]) * np.sin(t[:, 1:])
    return 7.0 * bump * np.stack([np.cos(1.5 * t[:, 1]), -np.sin(t[:, 0] + 0.5)], axis=1)


# -- warp ------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", ["border", "zeros", 0.5])
def test_identity_returns_the_image(shape, mode, padding):
    image = smooth_image(shape, batch=2, channels=3, sigma=0.7)
    warped = field.warp(image, field.identity_ddf(Grid(shape)), mode=mode, padding=padding)
    tolerance = {"nearest": 0 if padding != 0.5 else 1e-6, "bilinear": 5e-6, "cubic": 2e-5}[mode]
    assert largest(warped, image) <= tolerance


@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", ["border", "zeros", -2.5])
def test_integer_shift_equals_a_slice(shape, mode, padding):
    image = smooth_image(shape, sigma=0.7)
    shift = (2, -3, 1)[: len(shape)]
    warped = field.warp(image, constant(shape, shift), mode=mode, padding=padding)
    width = [(max(-s, 0), max(s, 0)) for s in shift]
    rule = {"mode": "edge"} if padding == "border" else {"constant_values": 0 if padding == "zeros" else padding}
    padded = np.pad(image[0, 0].numpy(), width, **rule)
    expected = padded[tuple(slice(max(s, 0), max(s, 0) + n) for s, n in zip(shift, shape, strict=True))]
    assert largest(warped[0, 0], expected) < 3e-5


@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize(
    ("padding", "rule"), [("border", {"mode": "nearest"}), ("zeros", {"mode": "grid-constant"}), (0.7, None)]
)
def test_linear_warp_agrees_with_scipy(shape, padding, rule):
    image, ddf = smooth_image(shape, sigma=0.7, batch=2), smooth_ddf(shape, largest=4.0, batch=2)
    rule = rule or {"mode": "grid-constant", "cval": padding}
    warped = field.warp(image, ddf, padding=padding)
    assert largest(warped, scipy_warp(image, ddf, order=1, **rule)) < 2e-5


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_cubic_warp_agrees_with_scipy_between_the_outer_centers(shape):
    image, ddf = smooth_image(shape, sigma=0.7, channels=2), smooth_ddf(shape, largest=3.0)
    warped = field.warp(image, ddf, mode="cubic").numpy()
    expected = scipy_warp(image, ddf, order=3, mode="mirror")
    valid = inside(ddf, shape)[0]
    assert 0.3 < valid.mean() < 1
    assert np.abs(warped - expected)[:, :, valid].max() < 3e-5


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_nearest_warp_takes_the_closest_voxel(shape):
    image, ddf = smooth_image(shape, sigma=0.5), smooth_ddf(shape, largest=3.0)
    closest = [np.clip(np.rint(x), 0, n - 1).astype(int) for x, n in zip(targets(ddf)[0], shape, strict=True)]
    torch.testing.assert_close(
        field.warp(image, ddf, mode="nearest")[0, 0], image[0, 0][tuple(closest)], rtol=0, atol=0
    )


@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_warp_agrees_with_monai(shape, padding, mode):
    from monai.networks.blocks import Warp

    image, ddf = smooth_image(shape, sigma=0.7, batch=2, channels=2), smooth_ddf(shape, largest=4.0, batch=2)
    expected = quiet(quiet(Warp, mode=mode, padding_mode=padding), image, ddf)
    assert largest(field.warp(image, ddf, mode=mode, padding=padding), expected) < 1e-5


@pytest.mark.parametrize("mode", ["bilinear", "cubic"])
@pytest.mark.parametrize("dim", [2, 3])
def test_warp_between_oblique_grids_agrees_with_simpleitk(dim, mode):
    """The moving image has its own shape, spacing, axes and rotation; only its well-covered part is compared."""
    fixed = Grid(SHAPES[dim], oblique(dim))
    turned = oblique(
        dim, angles={2: (-15.0,), 3: (8.0, 14.0, -22.0)}[dim], spacing=(0.9, 0.7, 1.3)[:dim], flips=(-1, 1, 1)[:dim]
    )
    shape = {2: (44, 60), 3: (26, 38, 30)}[dim]
    middle = apply(turned, (np.array(shape) - 1) / 2)
    turned[:-1, -1] += np.array(fixed.center) - middle
    moving = smooth_image(shape, sigma=2.0, seed=3)
    ddf = smooth_ddf(SHAPES[dim], largest=1.5, seed=4)
    interpolator = {"bilinear": sitk.sitkLinear, "cubic": sitk.sitkBSpline}[mode]
    expected = sitk_warp(
        moving[0, 0].double().numpy(), turned, ddf[0].double().numpy(), fixed.world_from_voxel.numpy(), interpolator
    )
    warped = field.warp(moving, ddf, mode=mode, moving_grid=Grid(shape, turned), fixed_grid=fixed)
    where = apply(np.linalg.inv(turned) @ fixed.world_from_voxel.numpy(), np.moveaxis(targets(ddf)[0], 0, -1))
    covered = ((where > 2) & (where < np.array(shape) - 3)).all(-1)
    assert covered.mean() > 0.5
    assert warped[0, 0].std() > 0.3
    assert np.abs(warped[0, 0].numpy() - expected)[covered].max() < 1e-3


@pytest.mark.parametrize("mode", ["bilinear", "cubic"])
@pytest.mark.parametrize("dim", [2, 3])
def test_resample_reads_a_linear_function_of_the_world_exactly(dim, mode):
    slope = np.array((0.3, -0.2, 0.5)[:dim])
    source = Grid.centered((24, 29, 21)[:dim], (0.9, 1.1, 1.4)[:dim], center=(1.0, 2.0, 3.0)[:dim])
    target = Grid.centered(
        SHAPES[dim], 0.9, center=source.center, direction=rotation({2: (33.0,), 3: (9.0, 20.0, -30.0)}[dim])
    )
    values = apply(source.world_from_voxel.numpy(), voxels(source.shape)) @ slope
    image = torch.from_numpy(values).float()[None, None]
    found = field.resample(image, source, target, mode=mode)[0, 0].numpy()
    expected = apply(target.world_from_voxel.numpy(), voxels(target.shape)) @ slope
    margin = 6 if mode == "cubic" else 0  # the mirrored border bends a spline there
    where = apply(
        np.linalg.inv(source.world_from_voxel.numpy()) @ target.world_from_voxel.numpy(), voxels(target.shape)
    )
    covered = ((where >= margin) & (where <= np.array(source.shape) - 1 - margin)).all(-1)
    assert covered.mean() > 0.3
    assert np.abs(found - expected)[covered].max() < (1e-2 if mode == "cubic" else 1e-5)


def test_grids_that_are_equal_change_nothing():
    grid = Grid(SHAPES[3], oblique(3))
    image, ddf = smooth_image(SHAPES[3]), smooth_ddf(SHAPES[3], largest=2.0)
    assert largest(field.warp(image, ddf, moving_grid=grid, fixed_grid=grid), field.warp(image, ddf)) == 0


def test_warp_through_the_world_undoes_a_crop():
    """The same anatomy, cropped: the header alone brings it back, also far from the axes' origin."""
    grid = Grid(SHAPES[3], oblique(3))
    image = smooth_image(SHAPES[3])
    warped = field.warp(
        image[:, :, 2:8, 3:11, 1:6],
        field.identity_ddf(grid),
        padding="zeros",
        moving_grid=grid.crop((2, 3, 1), (8, 11, 6)),
        fixed_grid=grid,
    )
    expected = torch.zeros_like(image)
    expected[:, :, 2:8, 3:11, 1:6] = image[:, :, 2:8, 3:11, 1:6]
    assert largest(warped, expected) < 1e-4


def test_one_field_serves_a_batch():
    image, ddf = smooth_image(SHAPES[2], batch=3, channels=2), smooth_ddf(SHAPES[2], largest=2.0)
    for mode in MODES:
        one_by_one = torch.cat([field.warp(image[i : i + 1], ddf, mode=mode) for i in range(3)])
        torch.testing.assert_close(field.warp(image, ddf, mode=mode), one_by_one)


def test_batches_do_not_mix():
    image, ddf = smooth_image(SHAPES[2], batch=3), smooth_ddf(SHAPES[2], largest=2.0, batch=3)
    for mode in MODES:
        one_by_one = torch.cat([field.warp(image[i : i + 1], ddf[i : i + 1], mode=mode) for i in range(3)])
        torch.testing.assert_close(field.warp(image, ddf, mode=mode), one_by_one)


# -- axes of one voxel -----------------------------------------------------------
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_of_one_voxel_changes_nothing(mode, axis):
    flat, ddf = smooth_image(SHAPES[2]), smooth_ddf(SHAPES[2], largest=2.0)
    thick = flat.unsqueeze(axis + 2)
    components = list(ddf.unsqueeze(axis + 2).unbind(1))
    components.insert(axis, torch.zeros_like(components[0]))
    warped = field.warp(thick, torch.stack(components, 1), mode=mode)
    torch.testing.assert_close(warped.squeeze(axis + 2), field.warp(flat, ddf, mode=mode), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_leaving_an_axis_of_one_voxel_reaches_the_padding(axis):
    shape = list(SHAPES[3])
    shape[axis] = 1
    image = smooth_image(shape).abs() + 1
    for move, share in ((0.0, 1.0), (0.5, 0.5), (-0.25, 0.75), (1.0, 0.0), (-3.0, 0.0)):
        vector = [0.0, 0.0, 0.0]
        vector[axis] = move
        zeros = field.warp(image, constant(shape, vector), padding="zeros")
        torch.testing.assert_close(zeros, image * share, atol=1e-5, rtol=0)
        torch.testing.assert_close(field.warp(image, constant(shape, vector)), image, atol=1e-5, rtol=0)


# -- labels ----------------------------------------------------------------------
def some_labels(shape, count=4):
    """(1, 1, *s) int64 regions of smooth noise, values 0, 3, 6, .."""
    image = smooth_image(shape, sigma=1.5)
    edges = torch.quantile(image, torch.linspace(0, 1, count + 1)[1:-1])
    return torch.bucketize(image, edges) * 3


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_nearest_labels_take_the_closest_voxel_and_background_outside(shape):
    labels, ddf = some_labels(shape) + 3, smooth_ddf(shape, largest=3.0)
    padded = np.pad(labels[0, 0].numpy(), 8)
    closest = tuple(np.rint(x).astype(int) + 8 for x in targets(ddf)[0])
    np.testing.assert_array_equal(field.warp_labels(labels, ddf, method="nearest")[0, 0].numpy(), padded[closest])


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_linear_labels_take_the_largest_interpolated_mask(shape):
    labels, ddf = some_labels(shape), smooth_ddf(shape, largest=3.0)
    values = np.array([0, 3, 6, 9])
    scores = [scipy_warp((labels == v).float(), ddf, order=1, mode="grid-constant", cval=float(v == 0)) for v in values]
    scores = np.stack(scores)
    order = np.sort(scores, axis=0)
    clear = order[-1] - order[-2] > 1e-4
    found = field.warp_labels(labels, ddf, method="linear").numpy()
    np.testing.assert_array_equal(found[clear], values[scores.argmax(0)][clear])
    assert (found != field.warp_labels(labels, ddf, method="nearest").numpy()).any()


@pytest.mark.parametrize("method", ["nearest", "linear"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32, torch.bool])
def test_labels_keep_their_type(method, dtype):
    labels = (some_labels(SHAPES[2]) > 4).to(dtype)
    shifted = field.warp_labels(labels, constant(SHAPES[2], (2.0, 0.0)), method=method)
    assert shifted.dtype == dtype
    torch.testing.assert_close(shifted[:, :, :-2], labels[:, :, 2:])
    assert not shifted[:, :, -2:].any()


@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_large_label_values_survive(method):
    labels = some_labels(SHAPES[2]) + 2**24 + 1
    warped = field.warp_labels(labels, constant(SHAPES[2], (1.0, 0.0)), method=method)
    torch.testing.assert_close(warped[:, :, :-1], labels[:, :, 1:])


@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_outside_is_background_even_if_the_labels_have_none(method):
    labels = torch.full((1, 1, 16, 13), 3)
    warped = field.warp_labels(labels, constant((16, 13), (10.0, 0.0)), method=method)
    assert (warped[:, :, :6] == 3).all()
    assert (warped[:, :, 6:] == 0).all()


@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_labels_on_another_grid_meet_in_the_world(method):
    grid = Grid(SHAPES[3], oblique(3))
    labels = some_labels(SHAPES[3]) + 3
    small = grid.crop((2, 3, 1), (8, 11, 6))
    warped = field.warp_labels(labels, field.identity_ddf(small), method=method, moving_grid=grid, fixed_grid=small)
    torch.testing.assert_close(warped, labels[:, :, 2:8, 3:11, 1:6])


# -- validity, points ------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_valid_mask_marks_targets_within_the_moving_voxels(shape):
    ddf = smooth_ddf(shape, largest=4.0, batch=2)
    where = targets(ddf)
    top = np.array(shape).reshape(1, -1, *[1] * len(shape)) - 0.5
    expected = ((where >= -0.5) & (where <= top)).all(1, keepdims=True)
    np.testing.assert_array_equal(field.valid_mask(ddf).numpy(), expected)
    assert 0.2 < expected.mean() < 1


@pytest.mark.parametrize("dim", [2, 3])
def test_valid_mask_follows_the_moving_header(dim):
    fixed = Grid(SHAPES[dim], oblique(dim))
    moving = fixed.crop((3,) * dim, [n - 1 for n in fixed.shape])
    expected = np.zeros(fixed.shape, bool)
    expected[tuple(slice(3, n - 1) for n in fixed.shape)] = True
    found = field.valid_mask(field.identity_ddf(fixed), moving_grid=moving, fixed_grid=fixed)
    np.testing.assert_array_equal(found[0, 0].numpy(), expected)


@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize("mode", ["bilinear", "cubic"])
def test_sample_agrees_with_scipy(shape, mode):
    image = smooth_image(shape, sigma=0.7, batch=2, channels=3)
    points = np.random.default_rng(0).uniform(0, np.array(shape) - 1, (2, 25, len(shape)))
    rule = {"order": 1} if mode == "bilinear" else {"order": 3, "mode": "mirror"}
    expected = [
        [map_coordinates(c, p.T, **rule) for c in b] for b, p in zip(image.double().numpy(), points, strict=True)
    ]
    found = field.sample(image, torch.from_numpy(points).float(), mode=mode)
    assert found.shape == (2, 3, 25)
    assert largest(found, np.array(expected)) < 3e-5


def test_sample_one_set_of_points_for_a_batch_and_outside():
    image = smooth_image(SHAPES[2], batch=2)
    points = torch.tensor([[[3.0, 4.0], [-5.0, 4.0]]])
    found = field.sample(image, points, padding="zeros")
    torch.testing.assert_close(found[:, 0, 0], image[:, 0, 3, 4])
    torch.testing.assert_close(found[:, 0, 1], torch.zeros(2))
    torch.testing.assert_close(field.sample(image, points)[:, 0, 1], image[:, 0, 0, 4])


def test_sample_takes_float64_images_at_float32_points_without_loss():
    image = smooth_image(SHAPES[2], dtype=torch.float64)
    found = field.sample(image, torch.tensor([[[3.0, 4.0]]]))
    assert abs(float(found) - float(image[0, 0, 3, 4])) < 1e-12


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_points_go_the_other_way_than_images(shape):
    """A blob of the moving image appears, in the warped one, where warp_points leads back to it."""
    middle = (np.array(shape) - 1) / 2
    shift = np.array((1.5, -2.0, 0.8)[: len(shape)])
    warped = field.warp(blob(shape, middle + shift, 0.7), constant(shape, shift.tolist()))
    np.testing.assert_allclose(center_of_mass(warped), middle, atol=0.05)
    moved = field.warp_points(torch.from_numpy(middle)[None, None].float(), constant(shape, shift.tolist()))
    np.testing.assert_allclose(moved[0, 0].numpy(), middle + shift, atol=1e-5)


def test_landmarks_follow_a_curved_field():
    shape = (40, 34)
    ddf = torch.from_numpy(0.6 * wave(voxels(shape).reshape(-1, 2), shape).T.reshape(1, 2, *shape)).float()
    landmarks = torch.tensor([[[12.0, 11.0], [20.0, 22.0], [28.5, 15.25]]])
    moved = field.warp_points(landmarks, ddf)
    assert (moved - landmarks).norm(dim=-1).min() > 2
    for landmark, place in zip(landmarks[0], moved[0], strict=True):
        warped = field.warp(blob(shape, place.numpy(), 1.0), ddf)
        np.testing.assert_allclose(center_of_mass(warped), landmark.numpy(), atol=0.15)


def test_warp_points_reads_the_field_between_voxels():
    ddf = smooth_ddf(SHAPES[3], largest=2.0)
    points = np.random.default_rng(1).uniform(0, np.array(SHAPES[3]) - 1, (1, 30, 3))
    expected = points[0] + np.stack([map_coordinates(c, points[0].T, order=1) for c in ddf[0].double().numpy()], -1)
    np.testing.assert_allclose(field.warp_points(torch.from_numpy(points), ddf)[0].numpy(), expected, atol=2e-6)


# -- compose, exponential, inverse -----------------------------------------------
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_compose_follows_its_definition(shape):
    u, v = smooth_ddf(shape, largest=2.0, seed=1, batch=2), smooth_ddf(shape, largest=2.0, seed=2, batch=2)
    expected = v.numpy() + scipy_warp(u, v, order=1, mode="nearest")
    assert largest(field.compose(u, v), expected) < 1e-5


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_composed_warp_equals_two_warps(shape):
    """Exactly so for a linear image, which interpolation does not change; nearly so for a smooth one."""
    u, v = smooth_ddf(shape, largest=1.0, seed=1), smooth_ddf(shape, largest=1.0, seed=2)
    slope = np.array((0.5, -1.0, 0.3)[: len(shape)])
    linear = torch.from_numpy(voxels(shape) @ slope).float()[None, None]
    both = field.compose(u, v)
    step_by_step = field.warp(field.warp(linear, u), v)
    assert largest(inner(step_by_step, 2), inner(field.warp(linear, both), 2)) < 2e-5
    assert largest(inner(field.warp(field.warp(linear, v), u), 2), inner(step_by_step, 2)) > 0.02  # order matters
    smooth = smooth_image(shape, sigma=3.0)
    error = inner(field.warp(field.warp(smooth, u), v) - field.warp(smooth, both), 2)
    assert error.abs().mean() < 0.02 < inner(field.warp(smooth, both) - smooth, 2).abs().mean()


def test_compose_with_the_identity_changes_nothing():
    ddf, nothing = smooth_ddf(SHAPES[3], largest=2.0), field.identity_ddf(Grid(SHAPES[3]))
    assert largest(field.compose(ddf, nothing), ddf) < 1e-5
    assert largest(field.compose(nothing, ddf), ddf) == 0


@pytest.mark.parametrize("shape", SHAPE_CASES)
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_exponential_agrees_with_monai(shape, steps):
    from monai.networks.blocks import DVF2DDF

    velocity = smooth_ddf(shape, largest=3.0, batch=2)
    block = quiet(DVF2DDF, num_steps=steps, mode="bilinear", padding_mode="border")
    assert largest(field.exponential(velocity, steps=steps, start="euler"), quiet(block, velocity)) < 1e-5


@pytest.mark.parametrize("dim", [2, 3])
def test_exponential_of_a_linear_velocity_is_the_matrix_exponential(dim):
    shape = {2: (32, 27), 3: (18, 23, 16)}[dim]
    rate = {2: [[0.1, -0.3], [0.25, -0.05]], 3: [[0.1, -0.2, 0.0], [0.2, 0.0, 0.1], [0.05, -0.1, -0.1]]}[dim]
    middle = (np.array(shape) - 1) / 2
    velocity = matrix_field(np.array(rate), -np.array(rate) @ middle, shape).float()
    expected = matrix_field(expm(np.array(rate)) - np.eye(dim), middle - expm(np.array(rate)) @ middle, shape)
    margin = min(shape) // 4
    found = field.exponential(velocity)
    assert expected.abs().max() > 2
    assert largest(inner(found, margin), inner(expected, margin)) < 0.03
    exact = field.exponential(velocity.double(), steps=14)
    assert largest(inner(exact, margin), inner(expected, margin)) < 1e-3


def test_exponential_agrees_with_a_differential_equation():
    shape = (72, 61)
    places = voxels(shape).reshape(-1, 2)
    velocity = torch.from_numpy(wave(places, shape).T.reshape(1, 2, *shape)).float()
    chosen = np.random.default_rng(0).choice(len(places), 60, replace=False)
    start = places[chosen]
    path = solve_ivp(lambda _, x: wave(x.reshape(-1, 2), shape).ravel(), (0, 1), start.ravel(), rtol=1e-9, atol=1e-9)
    expected = path.y[:, -1].reshape(-1, 2) - start
    assert np.linalg.norm(expected, axis=1).max() > 4
    for found, bound in (
        (field.exponential(velocity), 0.05),
        (field.exponential(velocity, steps=9), 0.03),
        (field.resize_ddf(field.exponential(velocity, shape=(36, 31)), shape), 0.15),
    ):
        error = np.linalg.norm(found[0].flatten(1).T.numpy()[chosen] - expected, axis=1)
        assert error.max() < bound


@pytest.mark.parametrize("shape", [(48, 39), (27, 36, 21)])
def test_forward_and_backward_flow_nearly_cancel(shape):
    fade = np.prod(np.sin(np.pi * voxels(shape) / (np.array(shape) - 1)), axis=-1)
    velocity = smooth_ddf(shape, largest=1.0, sigma=5.0) * torch.from_numpy(fade).float()
    velocity = velocity * (4 / velocity.abs().max())
    forth, back = field.exponential(velocity), field.exponential(-velocity)
    for both in (field.compose(forth, back), field.compose(back, forth)):
        assert both.norm(dim=1).max() < 0.2
        assert both.norm(dim=1).mean() < 0.03
    assert forth.norm(dim=1).max() > 3


def test_exponential_chooses_its_steps_from_the_largest_move_and_slope():
    small = constant(SHAPES[2], (0.1, 0.1))
    assert field.squarings(small) == 0
    assert field.squarings(small * 100) == math.ceil(math.log2(math.hypot(10, 10) / 2))
    assert field.squarings(small * 100, start="euler") == math.ceil(math.log2(math.hypot(10, 10) / 0.25))
    steep = small.clone()
    steep[:, 0, ::2] = 1.9  # no voxel moves by more than two, but neighbors part by 1.8
    assert field.squarings(steep) == 1
    assert largest(field.exponential(small * 100), constant(SHAPES[2], (10.0, 10.0))) < 1e-4


def test_exponential_at_a_reduced_grid_has_its_shape():
    velocity = smooth_ddf((32, 25), largest=3.0, sigma=6.0)
    small = field.exponential(velocity, shape=(16, 13))
    assert small.shape == (1, 2, 16, 13)
    full = field.exponential(velocity)
    assert largest(field.resize_ddf(small, (32, 25)), full) < 0.3 < float(full.abs().max())


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_inverse_undoes_the_field_and_reports_its_residual(shape):
    shape = [2 * n for n in shape]
    ddf = smooth_ddf(shape, largest=2.5, sigma=5.0, batch=2)
    back = field.inverse(ddf)
    left = back.ddf.numpy() + scipy_warp(ddf, back.ddf, order=1, mode="nearest")
    residual = np.linalg.norm(left, axis=1, keepdims=True)
    assert largest(back.residual, residual) < 1e-5
    assert back.residual.max() < 2e-3
    assert inner(field.compose(back.ddf, ddf), 4).norm(dim=1).max() < 0.15


def test_inverse_of_an_affine_field_is_the_inverse_affine():
    shape, linear = (30, 25), np.array([[1.1, 0.15], [-0.1, 0.95]])
    middle = (np.array(shape) - 1) / 2
    ddf = matrix_field(linear - np.eye(2), middle - linear @ middle + 0.7, shape).float()
    back = np.linalg.inv(linear)
    expected = matrix_field(back - np.eye(2), back @ (-0.7 - middle + linear @ middle), shape)
    found = field.inverse(ddf, tolerance=1e-5)
    covered = inside(expected, shape)
    assert covered.mean() > 0.7
    assert np.abs(found.ddf.numpy() - expected.numpy()).max(1)[covered].max() < 1e-3


def test_magnitude_is_the_norm_and_has_no_slope_where_nothing_moves():
    u = generic_field((5, 4))
    u[:, :, 2] = 0
    expected = np.linalg.norm(u.numpy(), axis=1, keepdims=True)
    assert largest(field.magnitude(u), expected) < 1e-12
    moving = u.clone().requires_grad_()
    assert largest(field.magnitude(moving), expected) < 1e-12
    field.magnitude(moving).sum().backward()
    assert moving.grad.isfinite().all()
    assert (moving.grad[:, :, 2] == 0).all()


def test_half_steps_invert_a_steep_map_where_full_steps_fail():
    u = field.exponential(smooth_ddf((64, 60), largest=14.0, sigma=6.0))
    assert field.jacobian_determinant(u).min() > 0
    assert field.jacobian_determinant(u).max() > 2.5
    assert field.inverse(u, step=1.0).residual.max() > 1.0
    assert field.inverse(u, iterations=200).residual.max() < 0.01


@pytest.mark.parametrize("step", [0.0, -0.5, 1.5])
def test_inverse_refuses_steps_that_lead_nowhere(step):
    with pytest.raises(ValueError, match="step") as raised:
        field.inverse(torch.zeros(1, 2, 8, 8), step=step)
    sentence(raised, "step", str(step))


def test_inverse_of_a_large_field_starts_from_half_the_resolution(monkeypatch):
    ddf = smooth_ddf((40, 36, 30), largest=4.0, sigma=5.0)
    whole = field.inverse(ddf)
    monkeypatch.setattr("reglib.field.algebra.LARGE", 1000)
    halved = field.inverse(ddf)
    assert halved.residual.max() < 0.1
    assert halved.residual.mean() < 0.01
    assert largest(inner(halved.ddf, 3), inner(whole.ddf, 3)) < 0.1


def test_inverse_of_a_folded_field_has_a_large_residual():
    ddf = smooth_ddf(SHAPES[2], largest=9.0, sigma=1.5)
    assert field.jacobian_determinant(ddf).min() < 0
    assert field.inverse(ddf).residual.max() > 0.5


# -- resize, affine, units -------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("shape", [(9, 25, 6), (31, 7, 13), (16, 13, 7)])
def test_resizing_keeps_a_linear_physical_field_exactly(dim, shape):
    grid = Grid(SHAPES[dim], oblique(dim))
    other = grid.resize(shape[:dim])
    move = world_map(dim) - np.eye(dim + 1)

    def world_field(g):  # a linear field of mm, in the voxels of g
        places = apply(g.world_from_voxel.numpy(), voxels(g.shape))
        mm = places @ move[:-1, :-1].T + move[:-1, -1]
        return np.moveaxis(mm @ np.linalg.inv(g.world_from_voxel.numpy()[:-1, :-1]).T, -1, 0)[None]

    resized = field.resize_ddf(torch.from_numpy(world_field(grid)).float(), shape[:dim])
    np.testing.assert_allclose(resized.numpy(), world_field(other), atol=2e-4)


def test_resizing_to_one_voxel_keeps_the_physical_field():
    """Grid.resize gives such an axis one voxel as long as all; a displacement of mm must stay what it was."""
    grid = Grid(SHAPES[2], oblique(2))
    one = grid.resize((16, 1))
    mm = field.convert_ddf(constant(SHAPES[2], (1.0, 2.0)), grid, to="world", from_="voxel")
    resized = field.convert_ddf(
        field.resize_ddf(constant(SHAPES[2], (1.0, 2.0)), (16, 1)), one, to="world", from_="voxel"
    )
    assert largest(resized[:, :, 3, 0], mm[:, :, 3, 0]) < 1e-4


def test_resizing_there_and_back_keeps_a_smooth_field():
    ddf = smooth_ddf((33, 29), largest=3.0, sigma=6.0)
    back = field.resize_ddf(field.resize_ddf(ddf, (17, 15)), (33, 29))
    assert largest(back, ddf) < 0.15
    assert largest(field.resize_ddf(ddf, (33, 29)), ddf) == 0


@pytest.mark.parametrize("dim", [2, 3])
def test_affine_ddf_leads_every_voxel_through_the_world(dim):
    matrix, moving_from_fixed = oblique(dim), world_map(dim)
    ddf = field.affine_ddf(torch.from_numpy(moving_from_fixed), Grid(SHAPES[dim], matrix))
    p = voxels(SHAPES[dim])
    expected = apply(np.linalg.inv(matrix), apply(moving_from_fixed, apply(matrix, p))) - p
    assert ddf.dtype == torch.float32
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(np.moveaxis(ddf[0].numpy(), 0, -1), expected, atol=2e-5)


def test_affine_ddf_of_the_identity_is_zero():
    assert largest(field.affine_ddf(torch.eye(4, dtype=torch.float64), Grid(SHAPES[3], oblique(3)))) < 1e-6


def test_affine_ddf_is_differentiable_in_the_matrix():
    matrix = torch.from_numpy(world_map(2)).requires_grad_()
    grid = Grid((4, 3), oblique(2))
    assert gradcheck(lambda m: field.affine_ddf(m, grid, dtype=torch.float64), (matrix,))


@pytest.mark.parametrize("dim", [2, 3])
def test_units_convert_as_differences_of_positions(dim):
    grid = Grid(SHAPES[dim], oblique(dim))
    ddf = smooth_ddf(SHAPES[dim], largest=3.0, batch=2)
    n = np.array(SHAPES[dim]).reshape(1, -1, *[1] * dim)
    world = np.moveaxis(np.moveaxis(ddf.numpy(), 1, -1) @ oblique(dim)[:-1, :-1].T, -1, 1)
    expected = {
        Axes.VOXEL: ddf.numpy(),
        Axes.WORLD: world,
        Axes.CUBE: ddf.numpy() * 2 / n,
        Axes.CUBE_CORNERS: ddf.numpy() * 2 / (n - 1),
    }
    for a, b in itertools.product(Axes, Axes):
        start = torch.from_numpy(expected[a]).float()
        np.testing.assert_allclose(field.convert_ddf(start, grid, to=b, from_=a).numpy(), expected[b], atol=1e-5)


# -- jacobian --------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
def test_affine_field_has_its_matrix_as_jacobian_everywhere(dim):
    matrix = oblique(dim)
    local = (np.linalg.inv(matrix) @ world_map(dim) @ matrix)[:-1, :-1]
    ddf = field.affine_ddf(torch.from_numpy(world_map(dim)), Grid(SHAPES[dim], matrix), dtype=torch.float64)
    found = np.moveaxis(field.jacobian(ddf)[0].numpy(), (0, 1), (-2, -1))
    np.testing.assert_allclose(found, np.broadcast_to(local, found.shape), atol=1e-9)
    determinant = field.jacobian_determinant(ddf)
    assert determinant.shape == (1, 1, *SHAPES[dim])
    np.testing.assert_allclose(determinant.numpy(), np.linalg.det(local), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_jacobian_agrees_with_numpy(shape):
    ddf = smooth_ddf(shape, largest=3.0, batch=2, dtype=torch.float64)
    d = len(shape)
    gradients = np.stack([np.stack(np.gradient(u, axis=range(1, d + 1)), 1) for u in ddf.numpy()])  # (b, k, j, *s)
    full = gradients + np.eye(d).reshape(1, d, d, *[1] * d)
    np.testing.assert_allclose(field.jacobian(ddf).numpy(), full, atol=1e-12)
    determinant = np.linalg.det(np.moveaxis(full, (1, 2), (-2, -1)))[:, None]
    np.testing.assert_allclose(field.jacobian_determinant(ddf).numpy(), determinant, atol=1e-12)


def test_a_mirrored_axis_folds_everywhere():
    ddf = matrix_field(np.diag([-2.0, 0.0]), (15.0, 0.0), SHAPES[2])
    torch.testing.assert_close(field.jacobian_determinant(ddf), torch.full((1, 1, 16, 13), -1.0, dtype=torch.float64))


# -- gradients and precision -----------------------------------------------------
def generic_field(shape, seed=0):
    """float64 displacements between 0.15 and 0.85 voxels: away from the corners of linear interpolation."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.15, 0.85, (1, len(shape), *shape)))


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2)])
@pytest.mark.parametrize("mode", ["bilinear", "cubic"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_warp_has_exact_gradients(shape, mode, padding):
    image = smooth_image(shape, sigma=0.5, dtype=torch.float64).requires_grad_()
    ddf = generic_field(shape).requires_grad_()
    assert gradcheck(lambda m, u: field.warp(m, u, mode=mode, padding=padding), (image, ddf))


def test_warp_between_grids_has_exact_gradients():
    fixed, moving = Grid((5, 4), oblique(2)), Grid((7, 6), oblique(2, angles=(40.0,), spacing=(1.1, 1.9)))
    image = smooth_image((7, 6), sigma=0.5, dtype=torch.float64).requires_grad_()
    ddf = generic_field((5, 4)).requires_grad_()
    assert gradcheck(lambda m, u: field.warp(m, u, moving_grid=moving, fixed_grid=fixed), (image, ddf))


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2)])
def test_algebra_has_exact_gradients(shape):
    u, v = generic_field(shape).requires_grad_(), generic_field(shape, seed=1).requires_grad_()
    assert gradcheck(field.compose, (u, v))
    assert gradcheck(lambda w: field.exponential(w, steps=2), (u,))
    assert gradcheck(lambda w: field.resize_ddf(w, [n + 1 for n in shape]), (u,))


@pytest.mark.parametrize("slab", [1, 20, 1 << 18])
@pytest.mark.parametrize("shape", [(7, 5, 6), (9, 4), (1, 5, 6), (2, 3, 2), (5, 1)])
def test_determinant_of_slabs_is_that_of_the_jacobian(shape, slab, monkeypatch):
    monkeypatch.setattr("reglib.field.calculus.SLAB", slab)
    u = torch.cat([generic_field(shape), generic_field(shape, seed=1)]).requires_grad_()
    expected = torch.linalg.det(field.jacobian(u).movedim((1, 2), (-2, -1))).unsqueeze(1)
    torch.testing.assert_close(field.jacobian_determinant(u), expected)
    assert gradcheck(field.jacobian_determinant, (u,))


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    """The result differs from the float32 one by rounding it once or twice, not by rounding at every step."""
    image = smooth_image(SHAPES[3]).to(dtype)
    ddf = smooth_ddf(SHAPES[3], largest=2.7).to(dtype)
    found, exact = VERBS[name](image, ddf), VERBS[name](image.float(), ddf.float())
    assert found.dtype == dtype
    assert largest(found, exact) <= 1.01 * torch.finfo(dtype).eps * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_far_padding_value_does_not_blur_the_image(dtype):
    """Air in CT is -1000: adding and subtracting it in the image's own precision would round the image away."""
    image = smooth_image(SHAPES[2]).to(dtype)
    warped = field.warp(image, constant(SHAPES[2], (2.0, 0.0)), padding=-1000.0)
    assert largest(warped[:, :, :-2], image[:, :, 2:]) < 2e-4
    assert (warped[:, :, -1] == -1000).all()


def test_half_image_with_a_float32_field_keeps_its_type():
    image, ddf = smooth_image(SHAPES[2]).half(), smooth_ddf(SHAPES[2], largest=2.0)
    expected = field.warp(image.float(), ddf).half()
    warped = field.warp(image, ddf)
    assert warped.dtype == torch.float16
    torch.testing.assert_close(warped, expected, rtol=0, atol=0)


# -- errors ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda m, u: field.warp(m, u.movedim(1, -1)),
            ValueError,
            ("ddf", "(1, 16, 13, 2)", "Channels last", "movedim"),
        ),
        (lambda m, u: field.warp(m, torch.zeros(1, 3, 4, 4, 4)), ValueError, ("ddf", "2-D", "(1, 3, 4, 4, 4)")),
        (lambda m, u: field.warp(m, torch.zeros(1, 3, 16, 13)), ValueError, ("ddf", "(1, 3, 16, 13)")),
        (lambda m, u: field.warp(m.long(), u), TypeError, ("floating point", "int64", "warp_labels")),
        (lambda m, u: field.warp(m, u, mode="linear"), ValueError, ("mode", '"bilinear"', '"linear"')),
        (lambda m, u: field.warp(m, u, padding="reflect"), ValueError, ("padding", '"border"', '"reflect"')),
        (lambda m, u: field.warp(m, u, moving_grid=Grid((16, 13))), ValueError, ("both", "moving_grid", "fixed_grid")),
        (lambda m, u: field.warp(m, u, fixed_grid=Grid((16, 13))), ValueError, ("both", "moving_grid", "fixed_grid")),
        (lambda m, u: field.valid_mask(u, fixed_grid=Grid((16, 13))), ValueError, ("both", "moving_grid")),
        (lambda m, u: field.warp_labels(m, u, method="cubic"), ValueError, ("method", '"nearest"', '"cubic"')),
        (lambda m, u: field.sample(m, torch.zeros(1, 5, 3)), ValueError, ("points", "2-D", "(1, 5, 3)")),
        (lambda m, u: field.warp_points(torch.zeros(1, 5, 3), u), ValueError, ("ddf", "3")),
        (lambda m, u: field.exponential(m), ValueError, ("(1, 1, 16, 13)",)),
        (lambda m, u: field.exponential(u * torch.nan), ValueError, ("velocity", "finite")),
        (lambda m, u: field.exponential(u, steps=-1), ValueError, ("steps", "-1")),
        (lambda m, u: field.resize_ddf(u, (8, 7, 6)), ValueError, ("ddf", "3-D")),
        (lambda m, u: field.jacobian(m), ValueError, ("ddf", "(1, 1, 16, 13)")),
        (lambda m, u: field.affine_ddf(torch.eye(4), Grid((16, 13))), ValueError, ("matrix", "(3, 3)", "(4, 4)")),
        (
            lambda m, u: field.compose(u, u[:, :, :8]),
            GridMismatchError,
            ("(1, 2, 16, 13)", "(1, 2, 8, 13)", "resize_ddf"),
        ),
        (lambda m, u: field.warp(m, u[:, :, :8]), GridMismatchError, ("(16, 13)", "(8, 13)", "moving_grid")),
        (
            lambda m, u: field.convert_ddf(u, Grid((13, 16)), to="world", from_="voxel"),
            GridMismatchError,
            ("ddf", "13, 16"),
        ),
        (lambda m, u: field.resample(m, Grid((13, 16)), Grid((4, 5))), GridMismatchError, ("image", "13, 16")),
    ],
)
def test_errors_are_one_sentence(call, error, words, no_jaxtyping):
    with sentence(error, *words):
        call(smooth_image(SHAPES[2]), smooth_ddf(SHAPES[2], largest=1.0))


@pytest.mark.parametrize("grids", [(Grid((16, 13)), Grid((16, 13))), (Grid((8, 7)), Grid((16, 13), oblique(2)))])
@pytest.mark.parametrize("wrong", ["image", "ddf"])
def test_tensors_off_the_grids_given_are_refused(grids, wrong, no_jaxtyping):
    """Also when both grids are equal: a header that does not fit its tensor must never be used in silence."""
    moving_grid, fixed_grid = grids
    image = torch.zeros(1, 1, *((10, 9) if wrong == "image" else moving_grid.shape))
    ddf = torch.zeros(1, 2, *((10, 9) if wrong == "ddf" else fixed_grid.shape))
    with sentence(GridMismatchError, "(1, "):
        field.warp(image, ddf, moving_grid=moving_grid, fixed_grid=fixed_grid)
