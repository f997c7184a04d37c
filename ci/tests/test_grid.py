"""Where voxels are: against NumPy formulas, nibabel and SimpleITK."""

import itertools
import math
import pickle

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import LPS, SHAPES, affine, apply, oblique, rotation, sentence, voxels
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reglib.grid import Axes, Grid, GridMismatchError, apply_affine, common_grid, reorient, require_on_grid

ALL_AXES = list(Axes)
properties = settings(deadline=None, max_examples=30, derandomize=True, database=None)


@st.composite
def headers(draw, dims=(2, 3), least=1, tilt_deg=180.0, mirror=True):
    """Shape and matrix of a Grid: any rotation up to `tilt_deg`, spacing, mirroring and place."""
    d = draw(st.sampled_from(dims))
    shape = [draw(st.integers(least, 11)) for _ in range(d)]
    spacing = [draw(st.floats(0.3, 4.0)) for _ in range(d)]
    signs = [draw(st.sampled_from([1, -1] if mirror else [1])) for _ in range(d)]
    angles = [draw(st.floats(-1, 1)) for _ in range(1 if d == 2 else 3)]
    angles = np.multiply(angles, tilt_deg / max(np.linalg.norm(angles), 1.0))
    shuffle = np.eye(d)[:, draw(st.permutations(range(d)))]
    origin = [draw(st.floats(-200, 200)) for _ in range(d)]
    return shape, affine(rotation(angles) @ shuffle @ np.diag(np.multiply(spacing, signs)), origin)


def some_points(grid, seed=0, count=20):
    """Points in and around the grid, voxels, float64."""
    points = np.random.default_rng(seed).uniform(-3, 14, (count, grid.dim))
    return torch.from_numpy(points)


def truth(grid, points, axes):
    """Voxel coordinates in other axes, by NumPy."""
    points, n = points.numpy(), np.array(grid.shape, float)
    if axes is Axes.VOXEL:
        return points
    if axes is Axes.WORLD:
        return apply(grid.world_from_voxel.numpy(), points)
    cube = 2 * (points + 0.5) / n - 1
    if axes is Axes.CUBE:
        return cube
    return np.where(n > 1, 2 * points / np.maximum(n - 1, 1) - 1, cube)


def positions(grid):
    """World position of every voxel, (*s, d), by NumPy."""
    return apply(grid.world_from_voxel.numpy(), voxels(grid.shape))


# -- coordinates --------------------------------------------
@properties
@given(headers())
def test_points_match_formulas_and_round_trip_between_all_axes(header):
    grid = Grid(*header)
    points = some_points(grid)
    for a, b in itertools.product(ALL_AXES, ALL_AXES):
        start = torch.from_numpy(truth(grid, points, a))
        found = grid.points(start, to=b, from_=a)
        np.testing.assert_allclose(found.numpy(), truth(grid, points, b), atol=1e-8)
        back = grid.points(found, to=a, from_=b)
        np.testing.assert_allclose(back.numpy(), start.numpy(), atol=1e-8)


@properties
@given(headers())
def test_vectors_are_differences_of_points(header):
    grid = Grid(*header)
    first, second = some_points(grid, seed=1), some_points(grid, seed=2)
    for a, b in itertools.product(ALL_AXES, ALL_AXES):
        start = [torch.from_numpy(truth(grid, x, a)) for x in (first, second)]
        expected = truth(grid, second, b) - truth(grid, first, b)
        np.testing.assert_allclose(grid.vectors(start[1] - start[0], to=b, from_=a).numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("axes", ALL_AXES)
def test_coordinates_list_every_voxel_center(dim, axes):
    grid = Grid(SHAPES[dim], oblique(dim))
    found = grid.coordinates(axes, dtype=torch.float64)
    expected = truth(grid, torch.from_numpy(voxels(grid.shape)), axes)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
    assert grid.coordinates(axes).dtype == torch.float32


def test_cubes_have_their_edges_and_corners_at_one():
    grid = Grid((16, 13))
    ends = torch.tensor([[-0.5, -0.5], [15.5, 12.5], [0.0, 0.0], [15.0, 12.0]])
    cube = grid.points(ends, to="cube", from_="voxel")
    corners = grid.points(ends, to="cube_corners", from_="voxel")
    torch.testing.assert_close(cube[:2], torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    torch.testing.assert_close(corners[2:], torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_keep_their_type(dtype):
    grid = Grid(SHAPES[3], oblique(3))
    points = some_points(grid).to(dtype)
    assert grid.points(points, to="world", from_="voxel").dtype == dtype
    assert grid.vectors(points, to="world", from_="voxel").dtype == dtype


def test_whole_number_points_are_not_cut(no_jaxtyping):
    """Tensor.nonzero() gives int64: the result must be right or refused, never rounded in silence."""
    grid = Grid((16, 13), np.diag([0.8, 2.5, 1.0]))
    try:
        found = grid.points(torch.tensor([[1, 2]]), to="world", from_="voxel")
    except (TypeError, ValueError):
        return
    np.testing.assert_allclose(found.numpy(), [[0.8, 5.0]], rtol=1e-6)


def test_apply_affine_matches_numpy():
    matrix = oblique(3)
    points = some_points(Grid(SHAPES[3]))
    np.testing.assert_allclose(
        apply_affine(torch.from_numpy(matrix), points).numpy(), apply(matrix, points.numpy()), atol=1e-12
    )


# -- facts --------------------------------------------
@properties
@given(headers())
def test_facts_follow_from_the_matrix(header):
    grid = Grid(*header)
    matrix, n = grid.world_from_voxel.numpy(), np.array(grid.shape)
    spacing = np.sqrt((matrix[:-1, :-1] ** 2).sum(0))
    np.testing.assert_allclose(grid.spacing, spacing, rtol=1e-12)
    np.testing.assert_allclose(grid.origin, apply(matrix, np.zeros(grid.dim)), atol=1e-12)
    np.testing.assert_allclose(grid.center, apply(matrix, (n - 1) / 2), atol=1e-9)
    np.testing.assert_allclose(grid.extent, n * spacing, rtol=1e-12)
    np.testing.assert_allclose(grid.direction.numpy() * spacing, matrix[:-1, :-1], atol=1e-12)
    np.testing.assert_allclose((grid.voxel_from_world @ grid.world_from_voxel).numpy(), np.eye(grid.dim + 1), atol=1e-9)


@properties
@given(headers(dims=(3,), tilt_deg=40.0))
def test_orientation_agrees_with_nibabel(header):
    grid = Grid(*header)
    assert grid.orientation == "".join(nibabel.aff2axcodes(grid.world_from_voxel.numpy()))


@pytest.mark.parametrize(
    ("matrix", "letters"),
    [
        (np.eye(3), "RA"),
        (np.diag([-1.0, 1.0, 1.0]), "LA"),
        (np.array([[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), "PR"),
        (np.array([[-1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]]), "LIA"),
    ],
)
def test_orientation_letters(matrix, letters):
    assert Grid(SHAPES[len(matrix) - 1], matrix).orientation == letters


def test_grid_without_matrix_has_voxels_of_one_mm_at_the_origin():
    grid = Grid((16, 13))
    assert (grid.spacing, grid.origin, grid.orientation, grid.dim) == ((1.0, 1.0), (0.0, 0.0), "RA", 2)


@pytest.mark.parametrize("dim", [2, 3])
def test_centered_puts_the_middle_where_asked(dim):
    turned = rotation({2: (30.0,), 3: (10.0, -25.0, 5.0)}[dim])
    center = (4.0, -7.5, 11.0)[:dim]
    grid = Grid.centered(SHAPES[dim], (0.8, 1.0, 2.5)[:dim], center=center, direction=turned)
    np.testing.assert_allclose(positions(grid).reshape(-1, dim).mean(0), center, atol=1e-9)
    np.testing.assert_allclose(grid.spacing, (0.8, 1.0, 2.5)[:dim])
    np.testing.assert_allclose(grid.direction.numpy(), turned, atol=1e-12)
    np.testing.assert_allclose(Grid.centered(SHAPES[dim], 2.0).center, np.zeros(dim), atol=1e-12)


# -- equality and safety --------------------------------------------
def test_grids_are_equal_within_a_thousandth_of_a_millimeter():
    matrix = oblique(3)
    grid, near, far = Grid(SHAPES[3], matrix), matrix.copy(), matrix.copy()
    near[0, 3] += 5e-4
    far[0, 3] += 2e-3
    assert grid == Grid(SHAPES[3], near)
    assert hash(grid) == hash(Grid(SHAPES[3], near))
    assert grid != Grid(SHAPES[3], far)
    assert grid.is_close(Grid(SHAPES[3], far), tolerance=0.01)
    assert grid != Grid((9, 12, 8), matrix)
    assert grid != "grid"


def test_equality_looks_at_all_corners_not_only_the_origin():
    matrix = oblique(3)
    turned = matrix.copy()
    turned[:3, :3] = rotation((0.0, 0.0, 0.05)) @ matrix[:3, :3]
    assert Grid(SHAPES[3], matrix) != Grid(SHAPES[3], turned)


def test_a_grid_cannot_be_changed():
    matrix = torch.from_numpy(oblique(2))
    grid = Grid((16, 13), matrix)
    matrix[0, 2] += 5
    np.testing.assert_allclose(grid.world_from_voxel.numpy(), oblique(2))
    with pytest.raises(AttributeError, match="cannot be changed"):
        grid.shape = (3, 4)


def test_a_grid_survives_pickling():
    grid = Grid(SHAPES[3], oblique(3))
    assert pickle.loads(pickle.dumps(grid)) == grid


# -- derived grids --------------------------------------------
@properties
@given(headers(least=2), st.data())
def test_crop_keeps_the_place_of_every_voxel(header, data):
    grid = Grid(*header)
    start = [data.draw(st.integers(0, n - 1)) for n in grid.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, grid.shape, strict=True)]
    cut = positions(grid)[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    np.testing.assert_allclose(positions(grid.crop(start, stop)), cut, atol=1e-9)


@properties
@given(headers(), st.data())
def test_crop_undoes_pad(header, data):
    grid = Grid(*header)
    before = [data.draw(st.integers(0, 4)) for _ in grid.shape]
    after = [data.draw(st.integers(0, 4)) for _ in grid.shape]
    padded = grid.pad(before, after)
    assert padded.shape == tuple(n + a + b for n, a, b in zip(grid.shape, before, after, strict=True))
    inside = tuple(slice(a, a + n) for a, n in zip(before, grid.shape, strict=True))
    np.testing.assert_allclose(positions(padded)[inside], positions(grid), atol=1e-9)
    stop = [a + n for a, n in zip(before, grid.shape, strict=True)]
    np.testing.assert_allclose(positions(padded.crop(before, stop)), positions(grid), atol=1e-9)


@properties
@given(headers(least=2), st.data())
def test_resize_keeps_first_and_last_centers(header, data):
    grid = Grid(*header)
    shape = [data.draw(st.integers(2, 15)) for _ in grid.shape]
    resized = grid.resize(shape)
    assert resized.shape == tuple(shape)
    expected = [s * (n - 1) / (m - 1) for s, n, m in zip(grid.spacing, grid.shape, shape, strict=True)]
    np.testing.assert_allclose(resized.spacing, expected)
    for corner in itertools.product((0, -1), repeat=grid.dim):
        np.testing.assert_allclose(positions(resized)[corner], positions(grid)[corner], atol=1e-9)


def test_resize_to_one_voxel_takes_the_middle_and_the_whole_extent():
    grid = Grid(SHAPES[3], oblique(3))
    one = grid.resize((9, 12, 1))
    np.testing.assert_allclose(one.center, grid.center, atol=1e-9)
    np.testing.assert_allclose(one.extent, grid.extent)


@properties
@given(headers(), st.data())
def test_resample_keeps_the_origin_and_rounds_the_extent_up(header, data):
    grid = Grid(*header)
    spacing = [data.draw(st.floats(0.3, 5.0)) for _ in grid.shape]
    resampled = grid.resample(spacing)
    np.testing.assert_allclose(resampled.spacing, spacing)
    np.testing.assert_allclose(resampled.origin, grid.origin, atol=1e-9)
    np.testing.assert_allclose(resampled.direction.numpy(), grid.direction.numpy(), atol=1e-9)
    for n, m, old, new in zip(grid.shape, resampled.shape, grid.spacing, spacing, strict=True):
        beyond = (m - 1) * new - (n - 1) * old
        assert -1e-5 * new <= beyond < new * (1 + 1e-6)


def test_resample_to_a_number_and_to_its_own_spacing():
    grid = Grid(SHAPES[3], oblique(3))
    assert grid.resample(grid.spacing) == grid
    np.testing.assert_allclose(grid.resample(1.5).spacing, (1.5, 1.5, 1.5))
    assert grid.resample(1.5).shape == (6, 9, 11)  # lengths 6.4, 11 and 15 mm


@properties
@given(headers(least=2), st.floats(1.0, 4.0), st.integers(1, 8))
def test_downsample_keeps_first_and_last_centers(header, factor, min_size):
    grid = Grid(*header)
    small = grid.downsample(factor, min_size=min_size)
    for n, m in zip(grid.shape, small.shape, strict=True):
        assert m == max(math.ceil(n / factor), min(n, min_size))
    assume(min(small.shape) > 1)
    for corner in itertools.product((0, -1), repeat=grid.dim):
        np.testing.assert_allclose(positions(small)[corner], positions(grid)[corner], atol=1e-9)


def test_downsample_takes_a_factor_an_axis():
    grid = Grid((16, 13, 7), oblique(3))
    assert grid.downsample((4, 2, 1)).shape == (4, 7, 7)


def test_pyramid_lists_a_grid_for_each_factor():
    grid = Grid((16, 13), oblique(2))
    coarse, middle, fine = grid.pyramid((4, 2, 1), min_size=5)
    assert (coarse.shape, middle.shape, fine.shape) == ((5, 5), (8, 7), (16, 13))
    assert fine == grid
    np.testing.assert_allclose(coarse.spacing, (0.8 * 15 / 4, 2.5 * 12 / 4))
    np.testing.assert_allclose(positions(middle)[-1, -1], positions(grid)[-1, -1], atol=1e-9)


# -- reorient --------------------------------------------
@properties
@given(headers(dims=(3,), tilt_deg=40.0))
def test_reorient_to_ras_agrees_with_nibabel(header):
    grid = Grid(*header)
    values = np.arange(math.prod(grid.shape), dtype=np.int32).reshape(grid.shape)
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, grid.world_from_voxel.numpy()))
    image, turned = reorient(torch.from_numpy(values).float()[None, None], grid, "RAS")
    assert turned.orientation == "RAS"
    assert turned.shape == canonical.shape
    np.testing.assert_array_equal(image[0, 0].numpy(), np.asarray(canonical.dataobj))
    np.testing.assert_allclose(turned.world_from_voxel.numpy(), canonical.affine, atol=1e-4)


@properties
@given(headers(), st.data())
def test_reorient_keeps_the_place_of_every_voxel(header, data):
    grid = Grid(*header)
    order = data.draw(st.permutations(range(grid.dim)))
    letters = "".join(data.draw(st.sampled_from(["RL", "AP", "SI"][k])) for k in order)
    places = torch.from_numpy(np.moveaxis(positions(grid), -1, 0)[None])
    image, turned = reorient(places, grid, letters)
    assert turned.orientation == letters
    assert tuple(image.shape[2:]) == turned.shape
    np.testing.assert_allclose(np.moveaxis(image[0].numpy(), 0, -1), positions(turned), atol=1e-8)
    back, original = reorient(image, turned, grid.orientation)
    assert original == grid
    np.testing.assert_array_equal(back.numpy(), places.numpy())


def test_reorient_agrees_with_nibabel_for_every_code():
    grid = Grid(SHAPES[3], oblique(3))
    matrix, values = grid.world_from_voxel.numpy(), np.arange(9 * 12 * 7).reshape(SHAPES[3])
    start = nibabel.io_orientation(matrix)
    for order in itertools.permutations(("RL", "AP", "SI")):
        for letters in itertools.product(*order):
            change = nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(letters))
            image, turned = reorient(torch.from_numpy(values).float()[None, None], grid, "".join(letters))
            expected = matrix @ nibabel.orientations.inv_ornt_aff(change, grid.shape)
            np.testing.assert_array_equal(image[0, 0].numpy(), nibabel.orientations.apply_orientation(values, change))
            np.testing.assert_allclose(turned.world_from_voxel.numpy(), expected, atol=1e-9)


# -- common grid --------------------------------------------
@properties
@given(st.lists(headers(dims=(3,)), min_size=3, max_size=3), st.sampled_from([None, 1.7, (2.0, 3.0, 2.5)]))
def test_common_grid_holds_every_center_and_is_the_smallest(several, spacing):
    several = [Grid(shape, affine(matrix[:3, :3], matrix[:3, 3] / 20)) for shape, matrix in several]
    common = common_grid(several, spacing=spacing)
    np.testing.assert_allclose(common.direction.numpy(), several[0].direction.numpy(), atol=1e-9)
    inside = np.concatenate([positions(g).reshape(-1, 3) for g in several])
    inside = apply(np.linalg.inv(common.world_from_voxel.numpy()), inside)
    top = np.array(common.shape) - 1
    assert (inside > -1e-4).all()
    assert (inside < top + 1e-4).all()
    assert (inside.min(0) < 1 + 1e-4).all()  # one plane fewer at either end would lose a center
    assert (inside.max(0) > top - 1 - 1e-4).all()
    if spacing is not None:
        np.testing.assert_allclose(common.spacing, np.broadcast_to(spacing, 3))


def test_common_grid_takes_the_finest_spacing_along_each_axis_of_the_first():
    first = Grid.centered((9, 12, 7), (2.0, 1.0, 3.0))
    swapped = Grid.centered((12, 9, 7), (1.5, 1.2, 4.0), direction=np.eye(3)[:, [1, 0, 2]])
    np.testing.assert_allclose(common_grid([first, swapped]).spacing, (1.2, 1.0, 3.0))


def test_common_grid_of_one_is_itself_and_of_neighbors_their_union():
    grid = Grid((16, 13), oblique(2))
    assert common_grid([grid]) == grid
    assert common_grid([grid.crop((0, 2), (9, 13)), grid.crop((5, 0), (16, 8))]) == grid


# -- other libraries --------------------------------------------
@pytest.mark.parametrize("whole", [True, False], ids=["image", "header"])
def test_from_nifti_reads_the_affine_that_nibabel_takes(whole):
    matrix = oblique(3)
    image = nibabel.Nifti1Image(np.zeros(SHAPES[3], np.float32), matrix)
    grid = Grid.from_nifti(image if whole else image.header)
    assert grid.shape == SHAPES[3]
    np.testing.assert_allclose(positions(grid), apply(image.affine, voxels(SHAPES[3])), atol=1e-4)


def test_from_nifti_prefers_sform_and_falls_back_on_qform():
    image = nibabel.Nifti1Image(np.zeros(SHAPES[3], np.float32), None)
    qform = oblique(3, angles=(0.0, 0.0, 10.0))
    image.set_qform(qform, code=1)
    image.set_sform(None, code=0)
    np.testing.assert_allclose(Grid.from_nifti(image).world_from_voxel.numpy(), qform, atol=1e-5)
    image.set_sform(oblique(3), code=2)
    np.testing.assert_allclose(Grid.from_nifti(image).world_from_voxel.numpy(), oblique(3), atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 13), (16, 13, 1)])
def test_from_nifti_of_a_slice_is_two_dimensional(shape):
    matrix = affine(np.diag([0.8, 2.5, 4.0]) @ rotation((0.0, 0.0, 20.0)), (3.0, -4.0, 9.0))
    grid = Grid.from_nifti(nibabel.Nifti1Image(np.zeros(shape, np.float32), matrix))
    assert grid.shape == (16, 13)
    expected = apply(matrix, np.concatenate([voxels((16, 13)), np.zeros((16, 13, 1))], axis=-1))[..., :2]
    np.testing.assert_allclose(positions(grid), expected, atol=1e-4)


def test_from_nifti_of_a_sagittal_slice_keeps_its_spacing():
    matrix = affine(np.array([[0.0, 0, 3.0], [0.8, 0, 0], [0, 2.5, 0]]), (3.0, -4.0, 9.0))
    grid = Grid.from_nifti(nibabel.Nifti1Image(np.zeros((16, 13, 1), np.float32), matrix))
    np.testing.assert_allclose(grid.spacing, (0.8, 2.5), rtol=1e-6)
    np.testing.assert_allclose(grid.direction.numpy(), np.eye(2), atol=1e-6)


@properties
@given(headers())
def test_sitk_puts_every_voxel_in_the_same_place(header):
    grid = Grid(*header)
    image = grid.to_sitk()
    assert image.GetSize() == grid.shape
    for index in itertools.islice(itertools.product(*[{0, n // 2, n - 1} for n in grid.shape]), 20):
        lps = np.array(image.TransformIndexToPhysicalPoint([int(k) for k in index]))
        np.testing.assert_allclose(LPS[grid.dim] @ lps, positions(grid)[index], atol=1e-5)
    assert Grid.from_sitk(image) == grid


@pytest.mark.parametrize("dim", [2, 3])
def test_sitk_image_holds_each_value_at_its_index(dim):
    grid = Grid(SHAPES[dim], oblique(dim))
    values = torch.arange(math.prod(grid.shape)).float().reshape(grid.shape)
    image = grid.to_sitk(values)
    for index in [(0,) * dim, (3, 5, 2)[:dim], tuple(n - 1 for n in grid.shape)]:
        assert image.GetPixel(index) == float(values[index])


def test_from_sitk_reads_an_image_made_there():
    image = sitk.Image([9, 12, 7], sitk.sitkFloat32)
    image.SetSpacing((0.8, 1.0, 2.5))
    image.SetOrigin((5.0, -6.0, 7.0))
    image.SetDirection(rotation((10.0, 20.0, -30.0)).ravel().tolist())
    grid = Grid.from_sitk(image)
    for index in [(0, 0, 0), (8, 0, 3), (2, 11, 6)]:
        lps = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(positions(grid)[index], LPS[3] @ np.array(lps), atol=1e-9)


# -- errors --------------------------------------------
def sheared():
    return Grid((16, 13), [[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g: Grid((4,)), ("shape", "two or three", "(4,)")),
        (lambda g: Grid((4, 0)), ("shape", "at least 1", "(4, 0)")),
        (lambda g: Grid((4.5, 3)), ("shape", "whole numbers", "4.5")),
        (lambda g: Grid((4, 5), np.eye(4)), ("world_from_voxel", "(3, 3)", "(4, 4)")),
        (lambda g: Grid((4, 5), np.ones((3, 3))), ("world_from_voxel", "last row")),
        (lambda g: Grid((4, 5), np.diag([np.nan, 1, 1])), ("world_from_voxel", "finite")),
        (lambda g: Grid((4, 5), np.diag([0.0, 1, 1])), ("world_from_voxel", "invertible", "zero")),
        (lambda g: Grid((4, 5), [[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]), ("world_from_voxel", "invertible")),
        (lambda g: g.crop((0, 0), (17, 5)), ("crop", "(16, 13)", "(17, 5)")),
        (lambda g: g.crop((3, 0), (3, 5)), ("crop", "start < stop")),
        (lambda g: g.crop((0, 0, 0), (3, 5, 2)), ("crop", "(0, 0, 0)")),
        (lambda g: g.pad((-1, 0), (0, 0)), ("pad", "at least 0", "crop")),
        (lambda g: g.pad((1, 0, 2), (0, 0, 2)), ("pad", "(1, 0, 2)")),
        (lambda g: g.resize((8, 7, 6)), ("shape", "(8, 7, 6)")),
        (lambda g: g.resize((0, 7)), ("shape", "at least 1")),
        (lambda g: g.crop((0, 0), (1, 5)).resize((3, 5)), ("one voxel", "pad")),
        (lambda g: g.resample(0.0), ("spacing", "above 0")),
        (lambda g: g.resample((1.0, 1.0, 1.0)), ("spacing", "2 numbers")),
        (lambda g: g.downsample(0.5), ("factor", "at least 1", "0.5")),
        (lambda g: g.reorient("RAS"), ("orientation", "R/L A/P", "RAS")),
        (lambda g: g.reorient("RL"), ("orientation", "once", "RL")),
        (lambda g: common_grid([]), ("common_grid", "at least one")),
        (lambda g: common_grid([g, Grid((3, 4, 5))]), ("common_grid", "one dimension", "[2, 3]")),
        (lambda g: sheared().to_sitk(), ("SimpleITK", "right angles", "sheared")),
        (lambda g: apply_affine(torch.eye(4), torch.zeros(5, 2)), ("matrix", "(3, 3)", "(4, 4)")),
    ],
)
def test_errors_are_one_sentence(call, words, no_jaxtyping):
    with sentence(ValueError, *words):
        call(Grid((16, 13)))


@pytest.mark.parametrize(
    "call",
    [
        lambda g: g.to_sitk(torch.zeros(13, 16)),
        lambda g: reorient(torch.zeros(1, 1, 13, 16), g, "LA"),
        lambda g: require_on_grid(torch.zeros(16, 13), g, "image"),
    ],
)
def test_images_off_their_grid_are_refused(call, no_jaxtyping):
    with sentence(GridMismatchError, "image", "16, 13"):
        call(Grid((16, 13)))


def test_unknown_axes_are_refused():
    with pytest.raises(ValueError, match="millimeter"):
        Grid((16, 13)).points(torch.zeros(1, 2), to="millimeter", from_="voxel")
