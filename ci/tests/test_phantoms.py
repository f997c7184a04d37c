"""Subjects whose truth is known: the truth against SciPy, its parts against each other, the images against it."""

import itertools
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers import SHAPE_CASES, affine, apply, largest, voxels
from scipy.integrate import solve_ivp
from scipy.ndimage import map_coordinates

from reglib import field, phantoms
from reglib.grid import Grid
from reglib.phantoms import LABEL_NAMES, brain_cohort, circle, cshape, grid_lines, letter_f, maps

KINDS = {
    "plain": {"shape": (30, 36, 32), "spacing": 5.5, "seed": 3},
    "oblique": {"shape": (30, 36, 32), "spacing": 5.5, "seed": 5, "oblique": True},
    "slice": {"shape": (56, 64), "spacing": 3.2, "seed": 4},
    "oblique slice": {"shape": (56, 64), "spacing": 3.2, "seed": 6, "oblique": True},
}


@pytest.fixture(scope="module", params=KINDS)
def cohort(request):
    return brain_cohort(2, **KINDS[request.param])


@pytest.fixture(scope="module")
def pair(cohort):
    return cohort.pair(0, 1)


@pytest.fixture(scope="module")
def plain():
    return brain_cohort(2, **KINDS["plain"])


def world(grid, points):
    return apply(grid.world_from_voxel.numpy(), points)


def voxel(grid, points):
    return apply(np.linalg.inv(grid.world_from_voxel.numpy()), points)


def brain(subject_labels):
    return subject_labels[0, 0].numpy() > 0


# -- the exact map ---------------------------------------------------------------
def velocity(coefficients, center, x):
    """The documented cosine velocity at (n, d) mm, written again in NumPy."""
    d, modes = x.shape[1], coefficients.shape[1]
    t = np.pi * (x - np.array(center) + 100.0) / 200.0
    cosines = [np.cos(t[:, k : k + 1] * np.arange(modes)) for k in range(d)]
    indices = "abc"[:d]
    return np.einsum(f"k{indices},{','.join('n' + i for i in indices)}->nk", coefficients, *cosines)


def test_map_solves_its_differential_equation(cohort):
    """flow of the velocity for unit time, then the matrix; and the same path back."""
    subject = cohort.subjects[0]
    smooth = subject.template_from_subject
    d = subject.grid.dim
    coefficients = smooth.coefficients.numpy()
    start = np.array(smooth.center) + np.random.default_rng(0).uniform(-60, 60, (40, d))
    path = solve_ivp(
        lambda _, x: velocity(coefficients, smooth.center, x.reshape(-1, d)).ravel(),
        (0, 1),
        start.ravel(),
        rtol=1e-10,
        atol=1e-10,
    )
    expected = apply(smooth.matrix.numpy(), path.y[:, -1].reshape(-1, d))
    assert np.linalg.norm(expected - start, axis=1).mean() > 1
    found = smooth.points(torch.from_numpy(start)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(smooth.inverse_points(torch.from_numpy(expected)).numpy(), start, atol=1e-3)


def test_many_more_integration_steps_change_nothing(cohort, monkeypatch):
    subject = cohort.subjects[1]
    points = torch.from_numpy(world(subject.grid, np.argwhere(brain(subject.labels))[::7]))
    coarse = subject.template_from_subject.points(points)
    growth = subject.template_from_subject.log_determinant(points)
    monkeypatch.setattr(maps, "RK4_STEPS", 8 * maps.RK4_STEPS)
    assert largest(subject.template_from_subject.points(points), coarse) < 1e-3
    assert largest(subject.template_from_subject.log_determinant(points), growth) < 1e-4


def test_strength_is_the_mean_move_of_the_smooth_part():
    for strength in (2.0, 6.0):
        for subject in brain_cohort(1, shape=(16, 13), spacing=10.0, strength_mm=strength, seed=1).subjects:
            smooth = subject.template_from_subject
            points = np.array(smooth.center) + np.random.default_rng(0).uniform(-70, 70, (500, 2))
            moved = apply(np.linalg.inv(smooth.matrix.numpy()), smooth.points(torch.from_numpy(points)).numpy())
            assert 0.6 * strength < np.linalg.norm(moved - points, axis=1).mean() < 1.4 * strength


# -- the truth of a pair ---------------------------------------------------------
def test_truth_has_the_documented_shapes(pair):
    d = pair.fixed_grid.dim
    truth = pair.truth
    assert truth.ddf.shape == (1, d, *pair.fixed_grid.shape)
    assert truth.inverse_ddf.shape == (1, d, *pair.moving_grid.shape)
    assert truth.jacobian_determinant.shape == (1, 1, *pair.fixed_grid.shape)
    assert truth.fixed_points.shape == truth.moving_points.shape == (1, 100, d)
    assert truth.ddf.dtype == torch.float32
    assert truth.fixed_points.dtype == torch.float64


def test_ddf_leads_every_voxel_where_the_exact_map_does(pair):
    p = voxels(pair.fixed_grid.shape)
    through_ddf = world(pair.fixed_grid, p + np.moveaxis(pair.truth.ddf[0].double().numpy(), 0, -1))
    start = torch.from_numpy(world(pair.fixed_grid, p).reshape(-1, p.shape[-1]))
    np.testing.assert_allclose(through_ddf.reshape(start.shape), pair.truth.points(start).numpy(), atol=1e-3)
    q = voxels(pair.moving_grid.shape)
    through_ddf = world(pair.moving_grid, q + np.moveaxis(pair.truth.inverse_ddf[0].double().numpy(), 0, -1))
    start = torch.from_numpy(world(pair.moving_grid, q).reshape(-1, q.shape[-1]))
    np.testing.assert_allclose(through_ddf.reshape(start.shape), pair.truth.inverse_points(start).numpy(), atol=1e-3)


def test_map_and_inverse_map_cancel_inside_the_brain(pair):
    """Both fields as a user reads them, linearly and through the world: below 0.05 voxel."""
    inside = brain(pair.fixed_labels)
    p = voxels(pair.fixed_grid.shape)
    moved = world(pair.fixed_grid, p + np.moveaxis(pair.truth.ddf[0].double().numpy(), 0, -1))[inside]
    q = voxel(pair.moving_grid, moved)
    back = np.stack(
        [map_coordinates(u, q.T, order=1, mode="nearest") for u in pair.truth.inverse_ddf[0].double().numpy()], -1
    )
    returned = voxel(pair.fixed_grid, world(pair.moving_grid, q + back))
    covered = ((q >= 0) & (q <= np.array(pair.moving_grid.shape) - 1)).all(-1)
    assert covered.mean() > 0.97
    assert np.linalg.norm(returned - p[inside], axis=1)[covered].max() < 0.05


def test_composed_fields_cancel_inside_the_brain(plain):
    pair = plain.pair()
    both = field.compose(pair.truth.inverse_ddf, pair.truth.ddf).norm(dim=1)[0].numpy()
    assert both[brain(pair.fixed_labels)].max() < 0.05


def test_jacobian_agrees_with_differences_of_the_exact_map(pair):
    d, step = pair.fixed_grid.dim, 1e-3
    inside = np.argwhere(brain(pair.fixed_labels))[::29]
    x = torch.from_numpy(world(pair.fixed_grid, inside))
    columns = [
        (pair.truth.points(x + step * axis) - pair.truth.points(x - step * axis)) / (2 * step)
        for axis in torch.eye(d, dtype=torch.float64)
    ]
    expected = np.linalg.det(torch.stack(columns, dim=-1).numpy())
    found = pair.truth.jacobian_determinant[0, 0].numpy()[tuple(inside.T)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert expected.std() > 0.01


def test_jacobian_is_positive_and_that_of_the_ddf(pair):
    truth = pair.truth.jacobian_determinant[0, 0].numpy()
    inside = brain(pair.fixed_labels)
    assert truth[inside].min() > 0.1
    from_field = field.jacobian_determinant(pair.truth.ddf)[0, 0].numpy()
    assert np.abs(from_field - truth)[inside].max() < 0.05


def test_landmarks_lie_in_the_brain_and_agree_with_the_ddf(pair):
    start = voxel(pair.fixed_grid, pair.truth.fixed_points[0].numpy())
    near = np.rint(start).astype(int)
    assert brain(pair.fixed_labels)[tuple(near.T)].all()
    assert len(np.unique(np.round(start, 6), axis=0)) == 100
    expected = voxel(pair.fixed_grid, pair.truth.moving_points[0].numpy())
    for order, bound in ((1, 0.1), (3, 0.05)):  # between voxels a straight line misses part of the curve
        moves = [map_coordinates(u, start.T, order=order, mode="mirror") for u in pair.truth.ddf[0].double().numpy()]
        assert np.linalg.norm(start + np.stack(moves, axis=-1) - expected, axis=1).max() < bound
    assert np.linalg.norm(expected - start, axis=1).max() > 0.5
    np.testing.assert_allclose(
        pair.truth.points(pair.truth.fixed_points[0]).numpy(), pair.truth.moving_points[0].numpy(), atol=1e-9
    )


def test_truth_brings_the_labels_into_agreement(pair):
    """Thin gyri at coarse voxels never agree fully, but far better than before and than the other way round."""
    grids = {"moving_grid": pair.moving_grid, "fixed_grid": pair.fixed_grid}
    fixed = pair.fixed_labels[0, 0].numpy()

    def overlap(ddf):
        warped = field.warp_labels(pair.moving_labels, ddf, method="nearest", **grids)[0, 0].numpy()
        either = (fixed > 0) | (warped > 0)
        dice = 2 * ((fixed > 0) & (warped > 0)).sum() / ((fixed > 0).sum() + (warped > 0).sum())
        return (warped == fixed)[either].mean(), dice

    agreement, dice = overlap(pair.truth.ddf)
    before, _ = overlap(0 * pair.truth.ddf)
    wrong_way, _ = overlap(-pair.truth.ddf)
    assert dice > 0.95
    assert agreement > 0.7
    assert agreement > before + 0.15
    assert agreement > wrong_way + 0.15


def test_truth_brings_the_images_into_agreement(plain):
    clean = brain_cohort(2, **KINDS["plain"], noise=0.0, bias=0.0, contrast=0.0).pair()
    warped = field.warp(clean.moving, clean.truth.ddf)
    inside = clean.fixed_labels > 0

    def correlation(image):
        return np.corrcoef(image[inside].numpy(), clean.fixed[inside].numpy())[0, 1]

    assert correlation(warped) > 0.95
    assert correlation(clean.moving) < correlation(warped) - 0.1


def test_pair_the_other_way_round_is_the_inverse(plain):
    forth, back = plain.pair(0, 1), plain.pair(1, 0)
    assert largest(forth.truth.inverse_ddf, back.truth.ddf) < 1e-6
    assert largest(forth.fixed, back.moving) == 0


# -- subjects --------------------------------------------------------------------
def test_subjects_are_images_and_labels_on_their_grid(cohort):
    first, second = cohort.subjects
    for subject in cohort.subjects:
        assert subject.image.shape == subject.labels.shape == (1, 1, *subject.grid.shape)
        assert subject.image.dtype == torch.float32
        assert subject.labels.dtype == torch.int64
        assert float(subject.image.min()) >= 0
        assert float(subject.image.max()) <= 1
        assert set(subject.labels.unique().tolist()) == {0, *LABEL_NAMES}
        assert (subject.image[subject.labels == 0] == 0).float().mean() > 0.8
        assert 0.05 < (subject.labels > 0).float().mean() < 0.6
    if first.image.shape == second.image.shape:
        assert largest(first.image, second.image) > 0.2


def test_left_labels_lie_on_the_left_of_the_world(cohort):
    for subject in cohort.subjects:
        x = world(subject.grid, voxels(subject.grid.shape))[..., 0]
        labels = subject.labels[0, 0].numpy()
        left = [v for v, name in LABEL_NAMES.items() if name.startswith("left")]
        right = [v for v, name in LABEL_NAMES.items() if name.startswith("right")]
        assert len(left) == len(right) == 3
        assert x[np.isin(labels, left)].mean() < -10
        assert x[np.isin(labels, right)].mean() > 10


def test_white_matter_is_brighter_than_gray_and_fluid(plain):
    subject = plain.subjects[0]
    means = {v: float(subject.image[subject.labels == v].mean()) for v in LABEL_NAMES}
    for side in ("left", "right"):
        fluid, gray, white = [
            next(means[v] for v, name in LABEL_NAMES.items() if name == f"{side} {tissue}")
            for tissue in ("CSF", "gray matter", "white matter")
        ]
        assert white > gray > fluid


def test_strength_zero_is_the_template():
    """At 1 mm and without what a scanner adds, each voxel is the file's own, as nibabel reads it."""
    cohort = brain_cohort(1, shape=(41, 35, 29), spacing=1.0, strength_mm=0.0, noise=0.0, bias=0.0, contrast=0.0)
    subject = cohort.subjects[0]
    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    file = nibabel.load(folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    values = np.asarray(file.dataobj, dtype=np.float64)
    where = apply(np.linalg.inv(file.affine), world(subject.grid, voxels(subject.grid.shape)))
    expected = map_coordinates(values / values.max(), np.moveaxis(where, -1, 0), order=1)
    expected[expected <= 0.02] = 0
    assert expected.std() > 0.1
    np.testing.assert_allclose(subject.image[0, 0].numpy(), expected, atol=1e-4)
    pair = brain_cohort(2, shape=(16, 13), spacing=10.0, strength_mm=0.0).pair()
    assert largest(pair.truth.ddf) < 1e-6
    assert largest(pair.truth.jacobian_determinant, 1.0) < 1e-6


def bytes_of(cohort):
    parts = [t for s in cohort.subjects for t in (s.image, s.labels, s.grid.world_from_voxel)]
    truth = cohort.pair(0, 1).truth
    parts += [truth.ddf, truth.fixed_points, truth.moving_points]
    return b"".join(part.numpy().tobytes() for part in parts)


def test_same_seed_same_bytes_and_another_seed_another_cohort():
    kind = {"shape": (20, 17, 18), "spacing": 9.0, "oblique": True}
    first = bytes_of(brain_cohort(2, seed=7, **kind))
    assert first == bytes_of(brain_cohort(2, seed=7, **kind))
    assert first != bytes_of(brain_cohort(2, seed=8, **kind))


def test_global_random_state_neither_matters_nor_changes():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = brain_cohort(1, shape=(16, 13), spacing=10.0).subjects[0].image
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    torch.manual_seed(1)
    assert torch.equal(brain_cohort(1, shape=(16, 13), spacing=10.0).subjects[0].image, first)


def test_a_subject_does_not_depend_on_how_many_follow():
    small, large = (brain_cohort(n, shape=(16, 13), spacing=10.0) for n in (1, 2))
    assert torch.equal(small.subjects[0].image, large.subjects[0].image)
    assert largest(large.subjects[0].image, large.subjects[1].image) > 0.1


def test_oblique_subjects_have_headers_of_their_own():
    subjects = brain_cohort(3, shape=(20, 24, 22), spacing=8.0, oblique=True, seed=2).subjects
    for subject in subjects:
        grid = subject.grid
        assert max(grid.spacing) / min(grid.spacing) > 1.2
        tilt = np.abs(grid.direction.numpy()).max(0)
        assert (tilt < 0.9999).any()
        centers = np.argwhere(brain(subject.labels)).mean(0)
        assert np.linalg.norm(world(grid, centers) - np.array(phantoms.BRAIN_CENTER_MM)) < 25
    assert len({s.grid.orientation for s in subjects}) > 1


def test_noise_bias_and_contrast_can_be_switched_off():
    kind = {"shape": (56, 64), "spacing": 3.2, "seed": 4}
    clean = brain_cohort(1, **kind, noise=0.0, bias=0.0, contrast=0.0).subjects[0]
    for switch in ({"noise": 0.05}, {"bias": 0.3}, {"contrast": 0.5}):
        other = brain_cohort(1, **kind, **({"noise": 0.0, "bias": 0.0, "contrast": 0.0} | switch)).subjects[0]
        assert largest(other.image, clean.image) > 0.05
        assert torch.equal(other.labels, clean.labels)
    noisy = brain_cohort(1, **kind, noise=0.05, bias=0.0, contrast=0.0).subjects[0]
    inside = (clean.image > 0.3) & (clean.image < 0.7)
    assert abs(float((noisy.image - clean.image)[inside].std()) - 0.05) < 0.01


# -- shapes ----------------------------------------------------------------------
DRAWN = {"circle": circle, "cshape": cshape, "grid_lines": grid_lines, "letter_f": letter_f}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_shapes_are_images_in_the_unit_range(name, shape):
    image = DRAWN[name](shape)
    assert image.shape == (1, 1, *shape)
    assert image.dtype == torch.float32
    assert float(image.min()) >= 0
    assert float(image.max()) == 1
    assert 0.02 < float(image.mean()) < 0.9


@pytest.mark.parametrize("shape", [(64, 48), (40, 36, 44)])
def test_circle_has_its_size_and_place(shape):
    center = [n / 2 + 1.5 for n in shape]
    radius = 9.0
    volume = {2: np.pi * radius**2, 3: 4 / 3 * np.pi * radius**3}[len(shape)]
    for sigma in (0.0, 1.0):
        image = circle(shape, radius=radius, center=center, sigma=sigma)[0, 0].double().numpy()
        assert abs(image.sum() / volume - 1) < 0.08
        mean = (image[..., None] * voxels(shape)).reshape(-1, len(shape)).sum(0) / image.sum()
        np.testing.assert_allclose(mean, center, atol=0.05)
    soft = circle(shape, radius=radius, center=center, sigma=1.0)
    assert 0.05 < float(((soft > 0.1) & (soft < 0.9)).float().sum() / (soft > 0.5).float().sum()) < 1


@pytest.mark.parametrize("shape", [(32, 27), (24, 27, 22)])
def test_c_opens_toward_the_far_end_of_axis_0(shape):
    image = cshape(shape)
    middle = tuple(n // 2 for n in shape[1:])
    line = image[(0, 0, slice(None), *middle)]
    assert line[: shape[0] // 2].max() == 1
    assert line[shape[0] // 2 :].max() == 0
    assert largest(image, image.flip(2)) == 1
    for axis in range(3, image.ndim):
        assert largest(image, image.flip(axis)) == 0


def test_grid_lines_lie_on_every_fourth_voxel():
    image = grid_lines((9, 12, 7), stride=4)[0, 0].numpy()
    expected = np.array([any(k % 4 == 0 for k in index) for index in itertools.product(range(9), range(12), range(7))])
    np.testing.assert_array_equal(image.ravel() > 0, expected)


@pytest.mark.parametrize("shape", [*SHAPE_CASES, (40, 48), (24, 30, 22)])
def test_no_flip_or_swap_of_axes_leaves_the_letter_f_unchanged(shape):
    d = len(shape)
    seen = []
    for order in itertools.permutations(range(d)):
        image = letter_f([shape[list(order).index(k)] for k in range(d)])[0, 0].permute(*order)
        for flips in itertools.product((False, True), repeat=d):
            seen.append(image.flip([k for k, flip in enumerate(flips) if flip]))
    assert all(tuple(image.shape) == tuple(shape) for image in seen)
    for a, b in itertools.combinations(seen, 2):
        assert not torch.equal(a, b)


def test_letter_f_stands_on_axis_1_with_arms_along_axis_0():
    image = letter_f((40, 48))[0, 0]
    stem, arm = image[13, :], image[:, 37]
    assert (stem > 0).sum() > 30
    assert (arm == 1).sum() > 15
    assert image[28, 23] == 0  # the short arm has ended, the long one has not
    assert image[28, 37] == 1


def test_shapes_draw_on_any_grid_without_a_header():
    """Shapes are voxels only; the reader puts them into a world."""
    image = letter_f((16, 13))
    grid = Grid((16, 13), affine(np.diag([0.8, 2.5]), (3.0, 4.0)))
    assert tuple(image.shape[2:]) == grid.shape


# -- bodies ----------------------------------------------------------------------
def test_a_breath_moves_the_base_of_the_lungs_and_leaves_their_tops():
    """From full to empty the diaphragm rises, so that less of the lungs is left."""
    pair = phantoms.thorax_pair(seed=2, depth_mm=22.0)
    x = pair.truth.fixed_points[0]
    move = (pair.truth.moving_points[0] - x)[:, 2].abs()  # up or down
    height = x[:, 2]
    base, top = move[height < height.quantile(0.2)].mean(), move[height > height.quantile(0.8)].mean()
    assert base > 15
    assert base > 2 * top
    assert (pair.moving_labels > 0).sum() < 0.95 * (pair.fixed_labels > 0).sum()
    assert float(pair.truth.jacobian_determinant.min()) > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_gland_grows_from_visit_to_visit(seed):
    (cohort,) = phantoms.longitudinal_masks(1, 3, seed=seed)
    sizes = [int(subject.labels.sum()) for subject in cohort.subjects]
    assert sizes[0] < sizes[1] < sizes[2]
