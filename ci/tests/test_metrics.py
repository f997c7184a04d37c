"""Numbers for people: against MONAI, SimpleITK, NumPy and values known by hand."""

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import (
    SHAPES,
    SPACINGS,
    affine,
    apply,
    oblique,
    quiet,
    rotation,
    sentence,
    smooth_ddf,
    smooth_image,
    voxels,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate

from reglib import field, metrics
from reglib.grid import Grid, GridMismatchError

properties = settings(deadline=None, max_examples=25, derandomize=True, database=None)
DIMS = [2, 3]


def blobs(dim, *, seed=0, labels=3, margin=0):
    """(1, 1, *s) int64 label map of smooth random regions, 0 to `labels`."""
    image = smooth_image(SHAPES[dim], seed=seed, sigma=1.2)[0, 0]
    regions = torch.bucketize(image, torch.linspace(-0.3, 1.2, labels)).long()
    if margin:
        frame = torch.zeros_like(regions)
        cut = tuple(slice(margin, -margin) for _ in range(dim))
        frame[cut] = regions[cut]
        regions = frame
    return regions[None, None]


def box(dim, start, stop):
    """(1, 1, *s) int64 map with label 1 in a box."""
    mask = torch.zeros(SHAPES[dim], dtype=torch.int64)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = 1
    return mask[None, None]


def one_hot(labels, values):
    return torch.cat([(labels == k).float() for k in values], dim=1)


# -- overlap ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", DIMS)
def test_overlap_agrees_with_monai(dim):
    monai = quiet(__import__, "monai.metrics", fromlist=["metrics"])
    a, b = blobs(dim, seed=1), blobs(dim, seed=2)
    values = [1, 2, 3]
    pair = one_hot(a, values), one_hot(b, values)
    for ours, theirs in ((metrics.dice, monai.compute_dice), (metrics.jaccard, monai.compute_iou)):
        expected = quiet(theirs, *pair, include_background=True)[0].tolist()
        assert list(ours(a, b)) == values
        assert list(ours(a, b).values()) == pytest.approx(expected, rel=1e-6)
        assert 0 < min(expected) < max(expected) < 0.9


def test_overlap_by_hand():
    a, b = box(2, (2, 3), (8, 9)), box(2, (5, 3), (8, 11))  # 36 and 24 voxels, 18 in both
    assert metrics.dice(a, b) == {1: 2 * 18 / 60}
    assert metrics.jaccard(a, b) == {1: 18 / 42}


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x * 100_000, lambda x: -x, lambda x: x.byte()])
def test_labels_of_any_type_and_size_are_counted_alike(change):
    a, b = blobs(3, seed=1), blobs(3, seed=2)
    found, expected = metrics.dice(change(a), change(b)), metrics.dice(a, b)
    assert len(expected) > 1
    assert sorted(found.values()) == sorted(expected.values())


def test_labels_in_one_image_only_are_left_out_unless_asked_for():
    a, b = box(3, (1, 2, 1), (5, 9, 4)), box(3, (1, 2, 1), (5, 9, 4))
    a[..., -1] = 7
    assert metrics.dice(a, b) == {1: 1.0}
    asked = metrics.dice(a, b, labels=[1, 7, 9])
    assert asked[1] == 1
    assert asked[7] == 0
    assert math.isnan(asked[9])


def test_channels_are_structures_that_may_overlap():
    labels = blobs(3, seed=3)
    other = blobs(3, seed=4)
    stacked, other_stacked = (torch.cat([x == 1, (x == 1) | (x == 3)], dim=1).long() for x in (labels, other))
    expected = {1: metrics.dice((labels == 1).long(), (other == 1).long())[1]}
    expected[2] = metrics.dice(stacked[:, 1:], other_stacked[:, 1:])[1]
    assert metrics.dice(stacked, other_stacked) == expected
    single = metrics.surface_distance(stacked[:, 1:], other_stacked[:, 1:], spacing=SPACINGS[3])[1]
    assert metrics.surface_distance(stacked, other_stacked, spacing=SPACINGS[3])[2] == single


@properties
@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), dim=st.sampled_from(DIMS))
def test_metrics_are_symmetric_and_zero_only_for_the_same(seeds, dim):
    a, b = (blobs(dim, seed=seed) for seed in seeds)
    spacing = SPACINGS[dim]
    assert metrics.dice(a, b) == metrics.dice(b, a)
    for name in ("surface_distance", "hausdorff", "centroid_distance"):
        metric = getattr(metrics, name)
        there = metric(a, b, spacing=spacing)
        assert there == pytest.approx(metric(b, a, spacing=spacing))
        assert set(metric(a, a, spacing=spacing).values()) == {0.0}
        if name != "centroid_distance" and seeds[0] != seeds[1]:
            assert min(there.values()) > 0 or torch.equal(a, b)


# -- surfaces --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("margin", [0, 2])
@pytest.mark.parametrize("dim", DIMS)
def test_surface_metrics_agree_with_monai_in_mm(dim, margin):
    monai = quiet(__import__, "monai.metrics", fromlist=["metrics"])
    a, b = blobs(dim, seed=5, margin=margin), blobs(dim, seed=6, margin=margin)
    values, spacing = [1, 2, 3], SPACINGS[dim]
    pair = one_hot(a, values), one_hot(b, values)
    shared = {"include_background": True, "spacing": list(spacing)}
    for percentile in (95, 100):
        expected = quiet(monai.compute_hausdorff_distance, *pair, percentile=percentile, **shared)[0].tolist()
        found = metrics.hausdorff(a, b, spacing=spacing, percentile=percentile)
        assert list(found.values()) == pytest.approx(expected, rel=1e-5)
    expected = quiet(monai.compute_average_surface_distance, *pair, symmetric=True, **shared)[0].tolist()
    assert list(metrics.surface_distance(a, b, spacing=spacing).values()) == pytest.approx(expected, rel=1e-5)
    assert max(expected) > 0.5


@pytest.mark.parametrize("dim", DIMS)
def test_hausdorff_agrees_with_simpleitk_on_surfaces(dim):
    a, b = (blobs(dim, seed=seed, margin=1) for seed in (7, 8))
    spacing = SPACINGS[dim]
    found = metrics.hausdorff(a, b, spacing=spacing, percentile=100)
    for label, distance in found.items():
        surfaces = []
        for each in (a, b):
            image = sitk.GetImageFromArray((each[0, 0] == label).numpy().astype(np.uint8).T)
            image.SetSpacing(spacing)
            surfaces.append(sitk.LabelContour(image, fullyConnected=False))
        judge = sitk.HausdorffDistanceImageFilter()
        judge.Execute(*surfaces)
        assert distance == pytest.approx(judge.GetHausdorffDistance(), rel=1e-5)


def test_distances_by_hand():
    a, b = box(3, (2, 2, 1), (5, 8, 3)), box(3, (2, 2, 4), (5, 8, 6))  # 3 voxels of 2.5 mm apart along z
    for spacing, factor in (((0.8, 1.0, 2.5), 1), ((1.6, 2.0, 5.0), 2)):
        assert metrics.hausdorff(a, b, spacing=spacing, percentile=100) == {1: 7.5 * factor}
        assert metrics.centroid_distance(a, b, spacing=spacing)[1] == pytest.approx(7.5 * factor)
        assert metrics.surface_distance(a, b, spacing=spacing)[1] == pytest.approx(6.25 * factor)  # mean of 5 and 7.5


def test_a_structure_missing_in_one_has_no_distance():
    a, b = box(2, (2, 3), (8, 9)), box(2, (5, 3), (8, 11))
    for metric in (metrics.surface_distance, metrics.hausdorff, metrics.centroid_distance):
        assert list(metric(a, b, spacing=1)) == [1]
        assert math.isnan(metric(a, b, spacing=1, labels=[4])[4])
        assert metric(a, torch.zeros_like(b), spacing=1) == {}


def test_label_metrics_refuse_what_does_not_fit(no_jaxtyping):
    a = blobs(2)
    with sentence(GridMismatchError, "one grid", "(1, 1, 16, 13)", "(1, 1, 13, 16)", "warp"):
        metrics.dice(a, a.transpose(2, 3))
    with sentence(ValueError, "one case", "(2, 1, 16, 13)"):
        metrics.dice(a.repeat(2, 1, 1, 1), a.repeat(2, 1, 1, 1))
    with sentence(ValueError, "spacing", "above 0"):
        metrics.hausdorff(a, a, spacing=(0, 1))
    with sentence(ValueError, "spacing", "2 numbers"):
        metrics.surface_distance(a, a, spacing=(1, 1, 1))
    with sentence(ValueError, "percentile", "0 to 100"):
        metrics.hausdorff(a, a, spacing=1, percentile=101)


# -- landmarks -------------------------------------------------------------------------------------------------
def grid_of(dim):
    return Grid(SHAPES[dim], oblique(dim))


def some_points(dim, seed=0, count=20):
    """(1, k, d) world points inside the grid."""
    inner = np.random.default_rng(seed).uniform(1, np.array(SHAPES[dim]) - 2, (count, dim))
    return torch.from_numpy(apply(oblique(dim), inner))[None]


@pytest.mark.parametrize("dim", DIMS)
def test_tre_of_a_known_map(dim):
    matrix = affine(rotation([4.0] * (1 if dim == 2 else 3)) * 1.05, [1.5, -2.0, 0.5][:dim])
    fixed = some_points(dim)
    moving = torch.from_numpy(apply(matrix, fixed))
    grid = grid_of(dim)
    ddf = field.affine_ddf(torch.from_numpy(matrix), grid, dtype=torch.float64)
    assert float(metrics.tre(ddf, fixed, moving, fixed_grid=grid).max()) < 1e-9
    off = torch.tensor([3.0, 0.0, 4.0][:dim], dtype=torch.float64)
    found = metrics.tre(ddf, fixed, moving + off, fixed_grid=grid)
    assert found.shape == (20,)
    assert torch.allclose(found, off.norm().expand(20))
    before = metrics.tre(torch.zeros_like(ddf), fixed, moving, fixed_grid=grid)
    assert torch.allclose(before, (fixed - moving).norm(dim=-1)[0])


def test_tre_is_in_mm_along_each_axis():
    grid = Grid((9, 12, 7), np.diag([0.8, 1.0, 2.5, 1.0]))
    ddf = torch.zeros(1, 3, 9, 12, 7)
    ddf[:, 2] = 2
    point = torch.tensor([[[3.2, 4.0, 5.0]]], dtype=torch.float64)
    assert metrics.tre(ddf, point, point, fixed_grid=grid).tolist() == pytest.approx([5.0])


def test_tre_refuses_points_that_are_no_pairs(no_jaxtyping):
    grid, points = grid_of(3), some_points(3)
    ddf = field.identity_ddf(grid)
    with sentence(ValueError, "as many of both", "(1, 20, 3)", "(1, 19, 3)"):
        metrics.tre(ddf, points, points[:, 1:], fixed_grid=grid)
    with sentence(ValueError, "(1, k, 3)", "(1, 20, 2)"):
        metrics.tre(ddf, points[..., :2], points[..., :2], fixed_grid=grid)
    with sentence(GridMismatchError, "ddf", "9, 12, 7"):
        metrics.tre(ddf.transpose(2, 3), points, points, fixed_grid=grid)


# -- Jacobian --------------------------------------------------------------------------------------------------
def numpy_determinant(ddf):
    """det(I + grad u) by numpy.gradient and numpy.linalg.det, (*s)."""
    u = ddf[0].double().numpy()
    d = len(u)
    gradient = np.stack([np.stack(np.gradient(u[k]), axis=-1) for k in range(d)], axis=-2)
    return np.linalg.det(np.eye(d) + gradient)


@pytest.mark.parametrize("dim", DIMS)
def test_jacobian_statistics_agree_with_numpy(dim):
    ddf = smooth_ddf(SHAPES[dim], largest=3.0, seed=1, sigma=1.5, dtype=torch.float64)
    mask = blobs(dim, seed=2) > 0
    for used, inside in ((None, np.ones(SHAPES[dim], bool)), (mask, mask[0, 0].numpy())):
        values = numpy_determinant(ddf)[inside]
        found = metrics.jacobian_statistics(ddf, mask=used)
        assert 0.01 < (values <= 0).mean() < 0.5
        assert found["folding_fraction"] == pytest.approx((values <= 0).mean())
        assert found["std_log_jacobian"] == pytest.approx(np.log(values[values > 0]).std())
        assert (found["min"], found["max"]) == pytest.approx((values.min(), values.max()))


def test_jacobian_of_known_maps():
    identity = metrics.jacobian_statistics(torch.zeros(1, 3, 9, 12, 7))
    assert identity == {"folding_fraction": 0, "std_log_jacobian": 0, "min": 1, "max": 1}
    matrix = torch.from_numpy(affine(np.diag([1.2, 0.9]), [0.0, 0.0]))
    linear = metrics.jacobian_statistics(field.affine_ddf(matrix, Grid((16, 13)), dtype=torch.float64))
    assert (linear["min"], linear["max"]) == pytest.approx((1.08, 1.08))
    collapsed = -Grid((16, 13)).coordinates().movedim(-1, 0)[None]  # every voxel to voxel 0
    flat = metrics.jacobian_statistics(collapsed)
    assert flat["folding_fraction"] == 1  # a determinant of exactly 0 folds
    assert math.isnan(flat["std_log_jacobian"])


@pytest.mark.parametrize("masked", [False, True])
def test_learn2reg_variant_is_its_script(masked):
    ddf = smooth_ddf((9, 12, 7), largest=3.0, seed=1, sigma=1.5, dtype=torch.float64)
    mask = blobs(3, seed=2) > 0
    kernels = [np.array([-0.5, 0, 0.5]).reshape(np.roll([3, 1, 1], axis)) for axis in range(3)]
    u = ddf[0].numpy()
    gradient = np.stack([np.stack([correlate(c, k, mode="constant") for k in kernels], -1) for c in u], -2)
    determinant = np.linalg.det(gradient + np.eye(3))[2:-2, 2:-2, 2:-2]
    shifted = (determinant + 3).clip(0.000000001, 1000000000)
    inside = mask[0, 0].numpy()[2:-2, 2:-2, 2:-2] if masked else np.ones(determinant.shape, bool)
    found = metrics.learn2reg_jacobian_statistics(ddf, mask=mask if masked else None)
    assert found["std_log_jacobian"] == pytest.approx(np.log(shifted[inside]).std())
    assert found["folding_fraction"] == 0
    assert metrics.jacobian_statistics(ddf)["folding_fraction"] > 0.01


def test_jacobian_refuses_masks_that_do_not_fit(no_jaxtyping):
    ddf = torch.zeros(1, 2, 16, 13)
    for statistics in (metrics.jacobian_statistics, metrics.learn2reg_jacobian_statistics):
        with sentence(ValueError, "mask", "empty"):
            statistics(ddf, mask=torch.zeros(1, 1, 16, 13))
        with sentence(GridMismatchError, "mask", "(1, 1, 16, 13)", "(1, 1, 13, 16)"):
            statistics(ddf, mask=torch.ones(1, 1, 13, 16))
    with sentence(ValueError, "5", "(16, 4)"):
        metrics.learn2reg_jacobian_statistics(torch.zeros(1, 2, 16, 4))
    border = torch.zeros(1, 1, 16, 13)
    border[..., 0] = 1
    with sentence(ValueError, "mask", "border"):
        metrics.learn2reg_jacobian_statistics(ddf, mask=border)


# -- inverse ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", DIMS)
def test_inverse_error(dim):
    grid = grid_of(dim)
    angle = affine(rotation([3.0] * (1 if dim == 2 else 3)), [0.0] * dim)
    move = affine(np.eye(dim), grid.center) @ angle @ affine(np.eye(dim), [-c for c in grid.center])
    ddf, back = (field.affine_ddf(torch.from_numpy(m), grid, dtype=torch.float64) for m in (move, np.linalg.inv(move)))
    inside = tuple(slice(2, -2) for _ in range(dim))
    error = metrics.inverse_error(ddf, back, grid=grid)
    assert error.shape == (1, 1, *grid.shape)
    assert float(error[0, 0][inside].max()) < 1e-9
    shift = torch.zeros(1, dim, *grid.shape)
    shift[:, dim - 1] = 2
    alone = metrics.inverse_error(shift, torch.zeros_like(shift), grid=grid)
    assert torch.allclose(alone, torch.tensor(2 * grid.spacing[-1], dtype=torch.float32))


def test_inverse_error_goes_there_first_and_then_back():
    grid = grid_of(3)
    about = affine(np.eye(3), grid.center)
    there = about @ affine(rotation([8.0, 0.0, 0.0]), [0.0] * 3) @ np.linalg.inv(about)
    back = about @ affine(np.diag([1.1, 0.9, 1.0]), [0.3, 0.0, 0.2]) @ np.linalg.inv(about)
    fields = (field.affine_ddf(torch.from_numpy(m), grid, dtype=torch.float64) for m in (there, back))
    world = apply(oblique(3), voxels(SHAPES[3]))
    expected = np.linalg.norm(apply(back @ there, world) - world, axis=-1)
    inside = tuple(slice(2, -2) for _ in range(3))
    assert np.allclose(metrics.inverse_error(*fields, grid=grid)[0, 0][inside], expected[inside])


def test_inverse_error_refuses_another_grid(no_jaxtyping):
    grid = grid_of(2)
    with sentence(GridMismatchError, "inverse_ddf", "16, 13"):
        metrics.inverse_error(field.identity_ddf(grid), torch.zeros(1, 2, 13, 16), grid=grid)


# -- a whole case ----------------------------------------------------------------------------------------------
def case(dim, seed=0):
    """A moving image on another grid, and a fixed one made from it by a known affine map."""
    fixed_grid = grid_of(dim)
    shape, spacing = [n + 6 - k for k, n in enumerate(SHAPES[dim])], [s * 0.9 for s in SPACINGS[dim]]
    moving_grid = Grid.centered(shape, spacing, center=fixed_grid.center, direction=rotation([31.0] * (2 * dim - 3)))
    linear = affine(rotation([5.0] * (2 * dim - 3)), [0.7] * dim)
    move = affine(np.eye(dim), fixed_grid.center) @ linear @ affine(np.eye(dim), [-c for c in fixed_grid.center])
    ddf = field.affine_ddf(torch.from_numpy(move), fixed_grid)
    moving = smooth_image(shape, seed=seed, sigma=2.0) + 3
    moving_labels = torch.bucketize(moving, torch.tensor([2.8, 3.6])).long()
    grids = {"fixed_grid": fixed_grid, "moving_grid": moving_grid}
    fixed = field.warp(moving, ddf, **grids)
    fixed_labels = field.warp_labels(moving_labels, ddf, method="nearest", **grids)
    fixed_points = some_points(dim)
    moving_points = torch.from_numpy(apply(move, fixed_points))
    known = {"fixed_labels": fixed_labels, "moving_labels": moving_labels}
    known |= {"fixed_points": fixed_points, "moving_points": moving_points}
    return fixed, moving, ddf, grids, known


@pytest.mark.parametrize("dim", DIMS)
def test_evaluate_pair_of_a_true_map(dim):
    fixed, moving, ddf, grids, known = case(dim)
    found = metrics.evaluate_pair(fixed, moving, ddf, **grids, **known)
    assert list(found) == [
        "similarity_before", "similarity_after", "folding_fraction", "std_log_jacobian",
        "dice_before", "dice_after", "dice_per_label", "tre_mm_before", "tre_mm_after",
    ]  # fmt: skip
    assert found["similarity_after"] == pytest.approx(1, abs=1e-4)
    assert found["similarity_before"] < 0.97
    assert found["dice_per_label"] == {1: 1.0, 2: 1.0}
    assert found["dice_before"] < 0.97 < found["dice_after"]
    assert found["tre_mm_before"] > 0.5 > 1e-3 > found["tre_mm_after"]
    assert found["folding_fraction"] == 0
    assert found["std_log_jacobian"] < 1e-4
    json.dumps(found, allow_nan=False)


def test_evaluate_pair_without_labels_and_points():
    fixed, moving, ddf, grids, _ = case(2)
    found = metrics.evaluate_pair(fixed, moving, ddf, **grids)
    assert set(found) == {"similarity_before", "similarity_after", "folding_fraction", "std_log_jacobian"}


def test_evaluate_pair_measures_inside_the_mask_else_where_fixed_is_above_zero():
    shape = SHAPES[2]
    grids = {"fixed_grid": Grid(shape), "moving_grid": Grid(shape)}
    ddf = torch.zeros(1, 2, *shape)
    ddf[:, 0, 8] = 5  # folds about row 8 only
    image = smooth_image(shape)
    upper = torch.zeros(1, 1, *shape)
    upper[:, :, :5] = 1
    folded = metrics.jacobian_statistics(ddf)["folding_fraction"]
    assert folded > 0
    masked = metrics.evaluate_pair(image, image, ddf, mask=upper, **grids)
    assert masked["folding_fraction"] == 0
    assert metrics.evaluate_pair(image * upper + upper * 9, image, ddf, **grids)["folding_fraction"] == 0
    lower = image * 0 + 9 * (1 - upper)
    expected = metrics.jacobian_statistics(ddf, mask=1 - upper)["folding_fraction"]
    assert metrics.evaluate_pair(lower, image, ddf, **grids)["folding_fraction"] == expected > folded
    assert metrics.evaluate_pair(-lower, image, ddf, **grids)["folding_fraction"] == folded  # never above 0: everywhere


def test_evaluate_pair_compares_images_inside_the_mask():
    shape = SHAPES[3]
    grids = {"fixed_grid": Grid(shape), "moving_grid": Grid(shape)}
    mask = (blobs(3) > 0).float()
    fixed = smooth_image(shape, seed=1)
    moving = fixed * mask - fixed * (1 - mask)
    still = field.identity_ddf(grids["fixed_grid"])
    assert metrics.evaluate_pair(fixed, moving, still, mask=mask, **grids)["similarity_after"] == pytest.approx(1)
    assert metrics.evaluate_pair(fixed, moving, still, **grids)["similarity_after"] < 0.7


def test_evaluate_pair_counts_a_label_that_vanishes():
    labels = box(2, (2, 3), (5, 6)) + 2 * box(2, (10, 3), (15, 12))
    image = labels.float()
    ddf = torch.zeros(1, 2, *SHAPES[2])
    ddf[:, 0, :8] = 100  # pushes label 1 out of the image
    grids = {"fixed_grid": Grid(SHAPES[2]), "moving_grid": Grid(SHAPES[2])}
    found = metrics.evaluate_pair(image, image, ddf, fixed_labels=labels, moving_labels=labels, **grids)
    assert found["dice_per_label"] == {1: 0.0, 2: 1.0}
    assert (found["dice_before"], found["dice_after"]) == (1.0, 0.5)


def test_evaluate_pair_takes_structures_as_channels_and_another_similarity():
    fixed, moving, ddf, grids, known = case(3)
    stacks = {k: torch.cat([known[k] == 1, known[k] == 2], dim=1).long() for k in ("fixed_labels", "moving_labels")}
    calls = []

    def similarity(warped, fixed, *, mask):
        calls.append((warped.shape, mask.dtype))
        return ((warped - fixed).abs() * mask).sum() / mask.sum()

    found = metrics.evaluate_pair(fixed, moving, ddf, similarity=similarity, **stacks, **grids)
    assert found["dice_per_label"] == {1: 1.0, 2: 1.0}
    assert found["similarity_after"] < 1e-4 < found["similarity_before"]
    assert calls == [(fixed.shape, torch.float32)] * 2


def test_evaluate_pair_refuses_what_does_not_fit(no_jaxtyping):
    fixed, moving, ddf, grids, known = case(2)
    labels = {k: known[k] for k in ("fixed_labels", "moving_labels")}
    points = {k: known[k] for k in ("fixed_points", "moving_points")}
    evaluate = metrics.evaluate_pair
    with sentence(GridMismatchError, "fixed", "16, 13"):
        evaluate(moving, moving, ddf, **grids)
    with sentence(GridMismatchError, "moving"):
        evaluate(fixed, fixed, ddf, **grids)
    with sentence(GridMismatchError, "ddf", "16, 13"):
        evaluate(fixed, moving, ddf.transpose(2, 3), **grids)
    with sentence(ValueError, "ddf", "(1, 3, 16, 13)"):
        evaluate(fixed, moving, torch.zeros(1, 3, 16, 13), **grids)
    with sentence(ValueError, "ddf", "finite"):
        evaluate(fixed, moving, ddf * math.nan, **grids)
    with sentence(ValueError, "fixed_labels", "moving_labels", "only one"):
        evaluate(fixed, moving, ddf, fixed_labels=known["fixed_labels"], **grids)
    with sentence(ValueError, "fixed_points", "moving_points", "only one"):
        evaluate(fixed, moving, ddf, moving_points=known["moving_points"], **grids)
    with sentence(GridMismatchError, "fixed_labels"):
        evaluate(fixed, moving, ddf, **labels | {"fixed_labels": known["moving_labels"]}, **grids)
    with sentence(ValueError, "channels", "2"):
        evaluate(fixed, moving, ddf, **labels | {"fixed_labels": known["fixed_labels"].repeat(1, 2, 1, 1)}, **grids)
    with sentence(ValueError, "none in common"):
        evaluate(fixed, moving, ddf, **labels | {"fixed_labels": known["fixed_labels"] * 10}, **grids)
    with sentence(ValueError, "as many of both"):
        evaluate(fixed, moving, ddf, **points | {"fixed_points": known["fixed_points"][:, 1:]}, **grids)
    with sentence(ValueError, "mask", "empty"):
        evaluate(fixed, moving, ddf, mask=torch.zeros(1, 1, 16, 13), **grids)
    with sentence(ValueError, "2-D", "3-D"):
        evaluate(fixed, case(3)[1], ddf, fixed_grid=grids["fixed_grid"], moving_grid=case(3)[3]["moving_grid"])


def test_correlation_agrees_with_numpy():
    a, b = smooth_image((9, 12, 7), seed=1), smooth_image((9, 12, 7), seed=1) * -2 + smooth_image((9, 12, 7), seed=2)
    mask = blobs(3) > 0
    expected = np.corrcoef(a[mask].numpy(), b[mask].numpy())[0, 1]
    assert metrics.correlation(a, b, mask=mask) == pytest.approx(expected, abs=1e-6)
    assert -0.99 < expected < -0.5
    assert math.isnan(metrics.correlation(a, torch.ones_like(a)))
    assert math.isnan(metrics.correlation(a, b, mask=torch.zeros_like(mask)))


def test_summarize():
    cases = [
        {"dice_after": 0.5, "dice_per_label": {1: 0.4, 2: 0.6}, "tre_mm_after": 2.0, "name": "a"},
        {"dice_after": 0.9, "dice_per_label": {1: 0.9}, "tre_mm_after": None, "name": "b"},
        {"dice_after": 0.7, "dice_per_label": {1: 0.8}, "tre_mm_after": math.nan, "name": "c"},
    ]
    table = metrics.summarize(cases)
    assert list(table.index) == ["dice_after", "dice_per_label[1]", "dice_per_label[2]", "tre_mm_after"]
    assert list(table.columns) == ["mean", "std", "median", "min", "max"]
    assert table.loc["dice_after"].tolist() == pytest.approx([0.7, 0.2, 0.7, 0.5, 0.9])
    assert table.loc["tre_mm_after", "mean"] == 2.0
    assert table.loc["dice_per_label[2]", "median"] == 0.6


def test_metrics_carry_no_gradient():
    ddf = torch.zeros(1, 2, 16, 13, requires_grad=True)
    grid, points = grid_of(2), some_points(2)
    assert not metrics.tre(ddf, points, points, fixed_grid=grid).requires_grad
    assert not metrics.inverse_error(ddf, ddf, grid=grid).requires_grad
    assert metrics.jacobian_statistics(ddf)["folding_fraction"] == 0
