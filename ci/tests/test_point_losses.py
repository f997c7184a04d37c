"""Losses on points and surfaces: against brute force in NumPy, SciPy's KD-tree and the geometry of boxes and balls."""

import math

import numpy as np
import pytest
import torch
from helpers import SHAPE_CASES, SHAPES, SPACINGS, largest, sentence, smooth_image, voxels
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree
from torch.autograd import gradcheck

from reglib import field
from reglib.losses.point import closest_point_loss, distance_map, distance_transform_loss, surface_points, tre_loss

properties = settings(deadline=None, max_examples=60, derandomize=True, database=None)
dims = pytest.mark.parametrize("dim", [2, 3])


def clouds(dim, *, k=9, m=9, batch=2, seed=0):
    """Two random point sets (b, k, d) and (b, m, d), float64."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(5 * rng.standard_normal((batch, n, dim))) for n in (k, m)]


def ball(shape, center, radius_mm, spacing):
    """(1, 1, *s) float32 mask of a ball in mm."""
    distance = np.linalg.norm((voxels(shape) - np.asarray(center)) * np.asarray(spacing), axis=-1)
    return torch.from_numpy((distance <= radius_mm).astype(np.float32))[None, None]


def structures(shape, *, batch=2, channels=2):
    """(b, c, *s) hard masks of irregular form that touch the borders in places."""
    return (smooth_image(shape, seed=4, sigma=1.5, batch=batch, channels=channels) > 0.2).float()


def gradient(loss, points, *args, **kwargs):
    points = points.clone().requires_grad_()
    value = loss(points, *args, **kwargs)
    value.backward()
    return float(value.detach()), points.grad


# -- pairs -------------------------------------------------------------------------
@dims
def test_weighted_tre_follows_its_definition(dim):
    a, b = clouds(dim)
    weights = torch.from_numpy(np.random.default_rng(3).random((2, 9)))
    weights[1] *= 100  # the mean over cases is plain
    spacing = SPACINGS[dim]
    lengths = np.linalg.norm((a - b).numpy() * np.array(spacing), axis=-1)
    expected = np.mean([np.average(x, weights=w) for x, w in zip(lengths, weights.numpy(), strict=True)])
    assert abs(float(tre_loss(a, b, spacing=spacing, weights=weights)) - expected) < 1e-9
    one = np.mean([np.average(x, weights=weights[0].numpy()) for x in lengths])
    assert abs(float(tre_loss(a, b, spacing=spacing, weights=weights[:1])) - one) < 1e-9
    assert gradcheck(lambda x: tre_loss(x, b, spacing=spacing, weights=weights), (a.requires_grad_(),))


def test_weights_of_one_change_nothing_and_weights_of_zero_leave_points_out():
    a, b = clouds(3)
    ones = torch.ones(2, 9)
    torch.testing.assert_close(tre_loss(a, b, weights=ones), tre_loss(a, b))
    some = ones.clone()
    some[:, 5:] = 0
    torch.testing.assert_close(tre_loss(a, b, weights=some), tre_loss(a[:, :5], b[:, :5]))
    value, slope = gradient(tre_loss, a, b, weights=torch.zeros(2, 9))
    assert value == 0
    assert largest(slope) == 0


# -- closest points ----------------------------------------------------------------
def numpy_closest(a, b, spacing):
    """Mean over cases of the mean distance to the nearest, by a KD-tree, float64."""
    scale = np.array(spacing)
    return np.mean([KDTree(y * scale).query(x * scale)[0].mean() for x, y in zip(a.numpy(), b.numpy(), strict=True)])


@dims
@pytest.mark.parametrize(("k", "m"), [(1, 1), (40, 7), (7, 40), (700, 1300)])
def test_closest_point_agrees_with_a_kd_tree(dim, k, m):
    a, b = clouds(dim, k=k, m=m)
    spacing = SPACINGS[dim]
    there, back = numpy_closest(a, b, spacing), numpy_closest(b, a, spacing)
    assert abs(float(closest_point_loss(a, b, spacing=spacing)) - there) < 1e-9
    assert abs(float(closest_point_loss(a, b, spacing=spacing, symmetric=True)) - (there + back) / 2) < 1e-9
    assert abs(float(closest_point_loss(a.float(), b.float(), spacing=spacing)) - there) < 1e-5
    assert abs(float(closest_point_loss(a, b)) - numpy_closest(a, b, (1,) * dim)) < 1e-9


@pytest.mark.parametrize("symmetric", [False, True])
def test_closest_point_has_exact_gradients_for_both_sets(symmetric):
    a, b = clouds(3, k=6, m=11)

    def loss(x, y):
        return closest_point_loss(x, y, spacing=SPACINGS[3], symmetric=symmetric)

    assert gradcheck(loss, (a.requires_grad_(), b.requires_grad_()))


def test_one_direction_forgives_what_the_other_does_not():
    """Half a contour lies on the whole one, but not the other way round."""
    angle = torch.linspace(0, 2 * math.pi, 60)[None, :-1]
    contour = 10 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    half = contour[:, :30]
    assert float(closest_point_loss(half, contour)) == 0
    assert float(closest_point_loss(half, contour, symmetric=True)) > 1.5


def test_order_of_the_points_does_not_matter():
    a, b = clouds(3, k=30, m=20)
    shuffled = b[:, torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(closest_point_loss(a, shuffled), closest_point_loss(a, b))


def test_five_thousand_points_keep_no_square_of_them():
    """A 5000 x 5000 matrix in float32 would be 100 MB; backward keeps a few numbers for each point."""
    a, b = [x.float() for x in clouds(3, k=5000, m=5000, batch=1)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        closest_point_loss(a.requires_grad_(), b, symmetric=True).backward()
    assert max(kept) <= 5000 * 3
    assert len(kept) < 20


@pytest.mark.parametrize("loss", [tre_loss, closest_point_loss])
def test_points_that_meet_have_no_gradient(loss):
    a, _ = clouds(3)
    value, slope = gradient(loss, a, a.clone())
    assert value == 0
    assert largest(slope) == 0


SIZES = st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 300.0, 1e12])


@properties
@given(SIZES, SIZES, st.sampled_from([1e-3, 1.0, 50.0]), st.booleans(), st.booleans())
def test_point_losses_are_finite_for_every_size(size_a, size_b, spacing, half, same):
    a, b = [x.float() for x in clouds(3)]
    a, b = a * size_a, (a if same else b) * size_b
    if half:
        a, b = a.clamp(-6e4, 6e4).half(), b.clamp(-6e4, 6e4).half()
        spacing = min(spacing, 0.1 if max(size_a, size_b) > 300 else 1.0)  # so that the distance fits float16
    for loss in (tre_loss, closest_point_loss, lambda *p, **o: closest_point_loss(*p, symmetric=True, **o)):
        value, slope = gradient(loss, a, b, spacing=spacing)
        assert 0 <= value < math.inf
        assert slope.isfinite().all()


@pytest.mark.parametrize("loss", [tre_loss, closest_point_loss])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_points_far_apart(loss, dtype, tolerance):
    """Squares of 300 voxels are beyond float16."""
    a, b = clouds(3)
    b = b + 400
    found = loss(a.to(dtype), b.to(dtype))
    assert found.dtype == dtype
    assert abs(float(found) - float(loss(a, b))) < tolerance * float(loss(a, b))


@pytest.mark.parametrize("loss", [tre_loss, closest_point_loss])
def test_two_dimensions_equal_flat_three(loss):
    a, b = clouds(2)
    thick = [torch.cat([x, torch.zeros_like(x[..., :1])], dim=-1) for x in (a, b)]
    torch.testing.assert_close(loss(*thick, spacing=(0.8, 2.5, 7.0)), loss(a, b, spacing=(0.8, 2.5)))


# -- distance maps -----------------------------------------------------------------
def numpy_surface(mask):
    """(n, d) voxels of a mask (*s) with a face neighbor that is not in it, in NumPy."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(mask)
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[(slice(1, -1),) * mask.ndim]
    return np.argwhere(mask & ~inner)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_distance_map_agrees_with_brute_force(shape, signed):
    masks, spacing = structures(shape), SPACINGS[len(shape)]
    assert (masks.flatten(2).sum(-1) > 5).all()
    found = distance_map(masks, spacing=spacing, signed=signed)
    for i in range(2):
        for c in range(2):
            mask = masks[i, c].numpy() > 0
            gaps = (voxels(shape)[..., None, :] - numpy_surface(mask)) * np.array(spacing)
            expected = np.linalg.norm(gaps, axis=-1).min(-1)
            expected = np.where(mask & signed, -expected, expected)
            assert np.abs(found[i, c].numpy() - expected).max() < 1e-5
    assert found.dtype == torch.float32


def test_distance_map_takes_bools_soft_masks_and_voxels():
    masks = structures(SHAPES[3])
    plain = distance_map(masks)
    assert torch.equal(plain, distance_map(masks.bool()))
    assert torch.equal(plain, distance_map(masks * 0.3 + 0.3))
    assert torch.equal(plain, distance_map(masks, spacing=1.0))
    assert distance_map(masks.double()).dtype == torch.float64
    assert torch.equal(plain, distance_map(masks.bfloat16()))


def test_distance_map_does_not_count_an_axis_of_one_voxel():
    masks = structures(SHAPES[2])
    flat = distance_map(masks, spacing=(0.8, 2.5), signed=True)
    assert float(flat.min()) < 0  # there is an inside
    for axis, spacing in ((2, (9.0, 0.8, 2.5)), (4, (0.8, 2.5, 9.0))):
        assert torch.equal(distance_map(masks.unsqueeze(axis), spacing=spacing, signed=True), flat.unsqueeze(axis))
    single = torch.ones(1, 1, 1, 1)
    assert float(distance_map(single)) == 0


# -- surfaces ----------------------------------------------------------------------
@dims
def test_surface_points_are_all_of_the_surface_before_any_comes_twice(dim):
    mask = structures(SHAPES[dim], channels=1)
    points = surface_points(mask, 900, generator=torch.Generator().manual_seed(0))
    assert points.shape == (2, 900, dim)
    for found, case in zip(points.numpy(), mask.numpy(), strict=True):
        expected = numpy_surface(case[0] > 0)
        unique, counts = np.unique(found, axis=0, return_counts=True)
        assert np.array_equal(unique, expected)
        assert counts.max() - counts.min() <= 1
    half = surface_points(mask.bfloat16(), 900, generator=torch.Generator().manual_seed(0))
    assert torch.equal(half, points)
    assert half.dtype == torch.float32
    few = surface_points(mask, 10, generator=torch.Generator().manual_seed(0))
    assert all(len(np.unique(x, axis=0)) == 10 for x in few.numpy())
    assert torch.equal(few, points[:, :10])
    assert not torch.equal(few, surface_points(mask, 10, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("squared", [True, False])
def test_distance_transform_reads_the_map_at_the_points(squared):
    shape, spacing = SHAPES[3], SPACINGS[3]
    distance = distance_map(structures(shape, channels=1), spacing=spacing, signed=True)
    index = np.random.default_rng(0).integers(0, shape, (2, 30, 3))
    values = np.stack([distance[i, 0].numpy()[tuple(x.T)] for i, x in enumerate(index)])
    expected = (values**2).mean() if squared else np.abs(values).mean()
    found = distance_transform_loss(torch.from_numpy(index).float(), distance, squared=squared)
    assert abs(float(found) - expected) < 1e-5


@dims
def test_a_surface_on_itself_costs_nothing_and_a_gap_its_square(dim):
    """The points of a slab's two faces moved along its normal, which is a distance in mm."""
    shape, spacing = SHAPES[dim], SPACINGS[dim]
    slab = torch.zeros(1, 1, *shape)
    slab[:, :, 2:6] = 1  # faces at 2 and 5, the other axes cut by the borders
    points = torch.from_numpy(np.argwhere(slab[0, 0].numpy())).float()[None]
    faces = points[:, (points[0, :, 0] == 5)]
    distance = distance_map(slab, spacing=spacing)
    assert float(distance_transform_loss(faces, distance)) == 0
    moved = faces + torch.eye(dim)[0] * 1.5
    assert abs(float(distance_transform_loss(moved, distance)) - (1.5 * spacing[0]) ** 2) < 1e-5
    assert abs(float(distance_transform_loss(moved, distance, squared=False)) - 1.5 * spacing[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_squared_in_float32(dtype):
    """Squares of single distances are beyond float16, their mean is not."""
    mask = structures(SHAPES[3], batch=1, channels=1)
    distance = distance_map(mask, spacing=90.0)
    far = (distance[0, 0] == distance.max()).nonzero()[:1].float()
    points = torch.cat([far, surface_points(mask, 4, generator=torch.Generator().manual_seed(0))[0]])[None]
    expected = float(distance_transform_loss(points, distance))
    assert float(distance.max()) ** 2 > 65504 > expected > 1e4
    found = distance_transform_loss(points.to(dtype), distance.to(dtype))
    assert found.dtype == dtype
    assert abs(float(found) - expected) < 0.02 * expected
    assert distance_transform_loss(points.to(dtype), distance).dtype == torch.float32


def test_distance_transform_has_exact_gradients():
    shape = SHAPES[3]
    distance = distance_map(structures(shape, channels=1).double(), spacing=SPACINGS[3], signed=True)
    points = torch.from_numpy(np.random.default_rng(0).uniform(0.2, 5.8, (2, 12, 3))).requires_grad_()
    for squared in (True, False):
        assert gradcheck(lambda x, q=squared: distance_transform_loss(x, distance, squared=q), (points,))


@properties
@given(st.sampled_from([-1e4, -3.0, 0.0, 2.0, 8.0, 1e4]), st.sampled_from([1e-3, 1.0, 100.0]), st.booleans())
def test_distance_transform_is_finite_everywhere(offset, spacing, squared):
    distance = distance_map(structures(SHAPES[3], batch=1, channels=1), spacing=spacing)
    points = surface_points(structures(SHAPES[3], batch=1, channels=1), 20, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        value, slope = gradient(distance_transform_loss, (points + offset).to(dtype), distance, squared=squared)
        assert 0 <= value < math.inf
        assert slope.isfinite().all()


def test_two_dimensions_equal_flat_three_for_surfaces():
    masks = structures(SHAPES[2], channels=1)
    points = torch.from_numpy(np.random.default_rng(0).uniform(0, 12, (2, 25, 2))).float()
    flat = distance_transform_loss(points, distance_map(masks, spacing=(0.8, 2.5)))
    thick = torch.cat([points, torch.zeros_like(points[..., :1])], dim=-1)
    found = distance_transform_loss(thick, distance_map(masks.unsqueeze(-1), spacing=(0.8, 2.5, 4.0)))
    torch.testing.assert_close(found, flat)
    assert float(flat) > 1


@pytest.mark.parametrize("which", ["distance map", "closest point"])
def test_surfaces_pull_a_ball_to_another(which):
    """From 3 voxels apart to less than 0.3, by the gradient alone, on an anisotropic grid."""
    shape, spacing = (25, 22, 14), (0.8, 1.0, 2.0)
    start, goal = np.array([9.0, 11.0, 7.0]), np.array([14.0, 9.0, 6.0])
    fixed, moving = ball(shape, start, 5.5, spacing), ball(shape, goal, 5.5, spacing)
    points = surface_points(fixed, 300, generator=torch.Generator().manual_seed(0))
    others = surface_points(moving, 250, generator=torch.Generator().manual_seed(1))
    distance = distance_map(moving, spacing=spacing)
    shift = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.3)
    truth = torch.from_numpy(goal - start).float()
    assert largest((shift - truth).norm()) > 3
    for _ in range(80):
        optimizer.zero_grad()
        if which == "distance map":
            loss = distance_transform_loss(points + shift, distance)
        else:
            loss = closest_point_loss(points + shift, others, spacing=spacing, symmetric=True)
        loss.backward()
        optimizer.step()
    assert largest((shift - truth).norm()) < 0.3


def test_points_go_through_a_field():
    """The gradient reaches the field that warps the points."""
    shape = SHAPES[3]
    mask = structures(shape, batch=1, channels=1)
    points = surface_points(mask, 50, generator=torch.Generator().manual_seed(0))
    ddf = torch.full((1, 3, *shape), 0.4, requires_grad=True)
    distance_transform_loss(field.warp_points(points, ddf), distance_map(mask)).backward()
    assert largest(ddf.grad) > 0
    assert ddf.grad.isfinite().all()


# -- errors ------------------------------------------------------------------------
P = torch.zeros(1, 4, 2)
M = torch.zeros(1, 1, *SHAPES[2])
M[..., 3:9, 4:8] = 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tre_loss(P, P[:, :3]), ("point", "(1, 4, 2)", "(1, 3, 2)")),
        (lambda: tre_loss(P, P, spacing=0.0), ("spacing", "above 0", "0.0")),
        (lambda: tre_loss(P, P, spacing=(1.0, -2.0)), ("spacing", "above 0", "-2.0")),
        (lambda: tre_loss(P, P, spacing=math.nan), ("spacing", "nan")),
        (lambda: tre_loss(P, P, spacing=(1.0,) * 3), ("spacing", "2 numbers")),
        (lambda: tre_loss(P[:, :0], P[:, :0]), ("warped_points", "at least one point", "(1, 0, 2)")),
        (lambda: tre_loss(P, P, weights=torch.ones(1, 5)), ("weights", "(1, 4)", "(1, 5)")),
        (lambda: tre_loss(P, P, weights=torch.ones(3, 4)), ("weights", "(1, 4)", "(3, 4)")),
        (lambda: tre_loss(P, P, weights=torch.full((1, 4), -0.5)), ("weights", "at least 0", "-0.5")),
        (lambda: tre_loss(P, P, weights=torch.full((1, 4), math.nan)), ("weights", "nan")),
        (lambda: closest_point_loss(P, torch.zeros(2, 4, 2)), ("(1, 4, 2)", "(2, 4, 2)")),
        (lambda: closest_point_loss(P, torch.zeros(1, 4, 3)), ("(1, 4, 2)", "(1, 4, 3)")),
        (lambda: closest_point_loss(P, P[0]), ("(1, 4, 2)", "(4, 2)")),
        (lambda: closest_point_loss(P, P[:, :0]), ("moving_points", "at least one point", "(1, 0, 2)")),
        (lambda: closest_point_loss(P, P, spacing=-1.0), ("spacing", "above 0", "-1.0")),
        (lambda: distance_transform_loss(P, M.repeat(1, 2, 1, 1)), ("moving_distance", "(1, 2, 16, 13)")),
        (lambda: distance_transform_loss(P, M.repeat(2, 1, 1, 1)), ("(1, 4, 2)", "(2, 1, 16, 13)")),
        (lambda: distance_transform_loss(P[:, :0], M), ("warped_points", "at least one point")),
        (lambda: distance_transform_loss(torch.zeros(1, 4, 3), M), ("points", "(1, 4, 3)")),
        (lambda: distance_map(torch.cat([M, 0 * M], dim=1)), ("mask", "case 0", "channel 1", "none")),
        (lambda: distance_map(3 * M), ("mask", "[0, 1]", "0 to 3", "one_hot(labels)")),
        (lambda: distance_map(M * math.nan), ("mask", "nan")),
        (lambda: distance_map(M, spacing=0.0), ("spacing", "above 0")),
        (lambda: distance_map(M[0]), ("mask", "(1, 16, 13)")),
        (lambda: surface_points(0 * M, 5), ("mask", "case 0", "none")),
        (lambda: surface_points(M, 0), ("count", "at least 1", "0")),
        (lambda: surface_points(M.repeat(1, 2, 1, 1), 5), ("mask", "(1, 2, 16, 13)")),
    ],
)
def test_errors_are_one_sentence(call, words, no_jaxtyping):
    with sentence(ValueError, *words):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: tre_loss(P.long(), P),
        lambda: closest_point_loss(P, P.long()),
        lambda: distance_transform_loss(P.long(), M),
    ],
)
def test_points_of_whole_numbers_are_refused(call, no_jaxtyping):
    with sentence(TypeError, "_points", "floating point", "int64"):
        call()
