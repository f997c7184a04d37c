"""Linear models that are fitted, limited or turned by quaternions: against SciPy's and NumPy's own solutions."""

import numpy as np
import pytest
import torch
from helpers import affine, apply, largest, oblique, rotation, sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from reglib.grid import Grid
from reglib.transforms import Affine, Linear, QuaternionRigid, Rigid, Similarity, Translation, fit_points

SIZES = {2: (16, 13), 3: (9, 12, 7)}
FITTED = [(d, m) for d in (2, 3) for m in (Translation, Rigid, Similarity, Affine)] + [(3, QuaternionRigid)]
ANGLES = {2: (31.0,), 3: (15.0, -40.0, 22.0)}


def oblique_grid(dim):
    return Grid(SIZES[dim], oblique(dim))


def landmarks(dim, count=12, seed=0):
    """(1, k, d) float64 world mm in and around the grid."""
    points = np.random.default_rng(seed).normal(0, (30.0, 20.0, 12.0)[:dim], (1, count, dim))
    return torch.from_numpy(points + oblique_grid(dim).center)


def true_matrix(dim, model):
    """A map of the model's own kind, by NumPy."""
    turn = np.eye(dim) if model is Translation else rotation(ANGLES[dim])
    linear = {
        Similarity: 1.3 * turn,
        Affine: turn @ np.diag((1.2, 0.8, 1.1)[:dim]) @ (np.eye(dim) + 0.2 * np.eye(dim, k=1)),
    }
    return affine(linear.get(model, turn), (4.0, -7.0, 12.0)[:dim])


def moved(matrix, points):
    return torch.from_numpy(apply(matrix, points.numpy()))


# -- fit to points -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("dim", "model"), FITTED)
def test_a_map_of_the_models_own_kind_is_found_exactly(dim, model):
    points, matrix = landmarks(dim), true_matrix(dim, model)
    fitted = fit_points(model, points, moved(matrix, points), grid=oblique_grid(dim))
    assert type(fitted) is model
    np.testing.assert_allclose(fitted.matrix().detach().numpy(), matrix, atol=1e-9)
    assert largest(fitted.base, torch.eye(dim + 1)) == 0  # in its parameters, from where an optimizer goes on
    assert all(p.requires_grad and p.is_leaf for p in fitted.parameters())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dim", "model"), FITTED)
def test_no_other_parameters_come_closer(dim, model, weighted):
    """Of noisy landmarks: SciPy's optimizer, started elsewhere, must end at the same matrix."""
    rng = np.random.default_rng(1)
    points = landmarks(dim)
    target = moved(true_matrix(dim, Affine), points) + torch.from_numpy(rng.normal(0, 2.0, points.shape))
    weights = torch.from_numpy(rng.uniform(0.1, 3.0, points.shape[1])) if weighted else None
    fitted = fit_points(model, points, target, grid=oblique_grid(dim), weights=weights)
    root = 1.0 if weights is None else weights.sqrt().numpy()[:, None]
    other = model(oblique_grid(dim))
    sizes = [p.numel() for p in other.parameters()]

    def errors(x):
        for parameter, values in zip(other.parameters(), np.split(x, np.cumsum(sizes)[:-1]), strict=True):
            parameter.data = torch.from_numpy(values.copy())
        return (root * (other.points(points) - target)[0].detach().numpy()).ravel()

    start = np.concatenate([p.detach().numpy() for p in model(oblique_grid(dim)).parameters()])
    found = least_squares(errors, start + 0.05, xtol=1e-14, ftol=1e-14, gtol=1e-12)
    errors(found.x)
    assert largest(fitted.matrix(), other.matrix()) < 2e-4
    assert largest(fitted.points(points), other.points(points)) < 1e-3


def test_rigid_agrees_with_scipys_alignment_of_vectors():
    points = landmarks(3)
    target = moved(true_matrix(3, Rigid), points) + torch.from_numpy(
        np.random.default_rng(2).normal(0, 3, points.shape)
    )
    weights = torch.linspace(0.2, 2.0, points.shape[1], dtype=torch.float64)
    for model in (Rigid, QuaternionRigid):
        fitted = fit_points(model, points, target, grid=oblique_grid(3), weights=weights)
        means = [np.average(p[0].numpy(), axis=0, weights=weights) for p in (points, target)]
        expected, _ = Rotation.align_vectors(
            target[0].numpy() - means[1], points[0].numpy() - means[0], weights=weights.numpy()
        )
        np.testing.assert_allclose(fitted.matrix().detach().numpy()[:3, :3], expected.as_matrix(), atol=1e-8)


@pytest.mark.parametrize("model", [Rigid, Similarity, QuaternionRigid])
def test_mirrored_points_still_give_a_rotation(model):
    points = landmarks(3)
    fitted = fit_points(model, points, points * torch.tensor([-1.0, 1.0, 1.0]), grid=oblique_grid(3))
    assert torch.linalg.det(fitted.matrix()) > 0


def test_points_of_weight_zero_do_not_count():
    points, matrix = landmarks(2), true_matrix(2, Rigid)
    target = moved(matrix, points)
    target[0, 3] += 50.0
    weights = torch.ones(points.shape[1], dtype=torch.float64)
    weights[3] = 0
    fitted = fit_points(Rigid, points, target, grid=oblique_grid(2), weights=weights)
    np.testing.assert_allclose(fitted.matrix().detach().numpy(), matrix, atol=1e-9)
    assert largest(fit_points(Rigid, points, target, grid=oblique_grid(2)).matrix(), torch.from_numpy(matrix)) > 0.1


def test_float32_points_and_a_half_turn_are_fine():
    points = landmarks(3)
    half_turn = affine(rotation((180.0, 0.0, 0.0)), (1.0, 2.0, 3.0))
    fitted = fit_points(Rigid, points.float(), moved(half_turn, points).float(), grid=oblique_grid(3))
    np.testing.assert_allclose(fitted.matrix().detach().numpy(), half_turn, atol=1e-3)


@pytest.mark.parametrize("model", [Rigid, Affine])
def test_a_model_keeps_its_base_center_and_limits(model):
    points, base = landmarks(2), affine(rotation((10.0,)), (3.0, 1.0))
    start = model(oblique_grid(2), matrix=torch.from_numpy(base), center_mm=(5.0, 5.0), limits={"angle_rad": 1.0})
    start.angle_rad.requires_grad_(False)
    matrix = true_matrix(2, model)
    fitted = fit_points(start, points, moved(matrix, points))
    np.testing.assert_allclose(fitted.matrix().detach().numpy(), matrix, atol=1e-9)
    np.testing.assert_allclose(fitted.base.numpy(), base)
    assert fitted.center_mm.tolist() == [5.0, 5.0]
    assert fitted.limits == {"angle_rad": 1.0}
    assert fitted.limited("angle_rad").item() == pytest.approx(np.deg2rad(21.0))
    assert [p.requires_grad for p in fitted.parameters()] == [p.requires_grad for p in start.parameters()]
    assert largest(start.matrix(), torch.from_numpy(base)) < 1e-12


@pytest.mark.parametrize(("dim", "model"), FITTED)
def test_fit_to_a_ddf_is_the_fit_to_all_voxels(dim, model):
    grid = oblique_grid(dim)
    truth = Affine(grid, matrix=torch.from_numpy(true_matrix(dim, model)))
    fitted = model(grid).fit(truth.ddf().detach())
    assert largest(fitted.matrix()[:dim, :dim], truth.matrix()[:dim, :dim]) < 1e-5
    assert fitted.fit_residual(truth.ddf().detach()).max() < 1e-3
    other = Affine(grid, matrix=torch.from_numpy(true_matrix(dim, Affine))).ddf().detach()
    if model is not Affine:
        assert model(grid).fit(other).fit_residual(other).max() > 0.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: fit_points(Rigid, p[:, :1], p[:, :1], grid=oblique_grid(2)), ("rigid", "2-D", "at least 2", "1")),
        (lambda p: fit_points(Affine, p[:, :2], p[:, :2], grid=oblique_grid(2)), ("affine", "at least 3", "got 2")),
        (lambda p: fit_points(Rigid, p * 0 + 7.3, p, grid=oblique_grid(2)), ("fixed_points", "one place", "simpler")),
        (lambda p: fit_points(Rigid, p, p * 0 + 7.3, grid=oblique_grid(2)), ("moving_points", "one place")),
        (lambda p: fit_points(Affine, p[..., :1].expand(-1, -1, 2), p, grid=oblique_grid(2)), ("one line", "affine")),
        (lambda p: fit_points(Affine, p, p.flip(-1), grid=oblique_grid(2)), ("reflection", "left and right")),
        (lambda p: fit_points(Affine, p, p[..., :1].expand(-1, -1, 2), grid=oblique_grid(2)), ("flat",)),
        (lambda p: fit_points(Rigid, p, p), ("class and its grid", "grid=grid")),
        (lambda p: fit_points(Rigid(oblique_grid(2)), p, p, grid=oblique_grid(2)), ("a model alone",)),
        (lambda p: fit_points(Rigid, p, p[:, :5], grid=oblique_grid(2)), ("moving_points", "(1, 12, 2)", "(1, 5, 2)")),
        (lambda p: fit_points(Rigid, p, p, grid=oblique_grid(3)), ("fixed_points", "(1, 12, 3)", "(1, 12, 2)")),
        (lambda p: fit_points(Rigid, p, p * float("nan"), grid=oblique_grid(2)), ("moving_points", "finite")),
        (lambda p: fit_points(Rigid, p, p, grid=oblique_grid(2), weights=-torch.ones(12)), ("weights", "12 numbers")),
        (lambda p: fit_points(Rigid, p, p, grid=oblique_grid(2), weights=torch.zeros(12)), ("weights", "not all 0")),
        (lambda p: fit_points(Rigid, p, p, grid=oblique_grid(2), weights=torch.ones(3)), ("weights", "12 numbers")),
        (
            lambda p: fit_points(Translation(oblique_grid(2), limits={"translation_mm": 2.0}), p, p + 5),
            ("translation_mm", "5", "beyond its limit of 2"),
        ),
    ],
)
def test_points_that_do_not_fix_a_map_are_one_sentence(call, words, no_jaxtyping):
    with sentence(ValueError, *words):
        call(landmarks(2))


def test_points_on_a_line_or_in_a_plane_in_3d():
    line = torch.linspace(0, 1, 8, dtype=torch.float64)[None, :, None] * torch.tensor([30.0, 10.0, -5.0]).double() + 40
    plane = landmarks(3) * torch.tensor([1.0, 1.0, 0.0])
    with sentence(ValueError, "fixed_points", "one line", "rigid"):
        fit_points(Rigid, line, line, grid=oblique_grid(3))
    with sentence(ValueError, "fixed_points", "one plane", "affine"):
        fit_points(Affine, plane, plane, grid=oblique_grid(3))
    assert largest(fit_points(Rigid, plane, plane, grid=oblique_grid(3)).matrix(), torch.eye(4)) < 1e-9
    assert largest(fit_points(Translation, line[:, :1], line[:, :1] + 2, grid=oblique_grid(3)).translation_mm, 2) < 1e-9


# -- limits --------------------------------------------------------------------------------------------------------
LIMITS = {"angle_rad": 0.5, "translation_mm": 20.0, "log_scale": 0.2, "shear": 0.1}


@pytest.mark.parametrize("dim", [2, 3])
def test_limits_start_at_the_identity_with_slope_one(dim):
    limited, free = Affine(oblique_grid(dim), limits=LIMITS), Affine(oblique_grid(dim))
    slopes = []
    for transform in (limited, free):
        transform.matrix().mul(torch.arange((dim + 1) ** 2).reshape(dim + 1, dim + 1)).sum().backward()
        slopes.append(torch.cat([p.grad for p in transform.parameters()]))
    assert largest(limited.matrix(), torch.eye(dim + 1)) < 1e-12
    torch.testing.assert_close(*slopes)


@settings(max_examples=30, deadline=None)
@given(raw=st.floats(-1e12, 1e12), limit=st.floats(1e-3, 1e3))
def test_nothing_leaves_its_limit(raw, limit):
    transform = Affine(oblique_grid(3), limits=dict.fromkeys(LIMITS, limit))
    for name in LIMITS:
        getattr(transform, name).data += raw
        value = transform.limited(name)
        assert value.abs().max() <= limit
        assert largest(value, limit * np.tanh(raw / limit)) <= 1e-9 * limit


def test_limits_are_kept_at_another_grid_and_hold_for_given_values():
    transform = Affine(oblique_grid(2), limits=LIMITS)
    transform.translation_mm.data += 1000.0
    moved_model = transform.at(transform.grid.downsample(2))
    assert moved_model.limits == LIMITS
    assert largest(moved_model.matrix(), transform.matrix()) == 0
    assert largest(transform.matrix()[:2, 2], 20.0) < 1e-6
    assert largest(transform.inverse().matrix() @ transform.matrix(), torch.eye(3)) < 1e-12
    given_values = Affine(oblique_grid(2), limits=LIMITS).with_values(angle_rad=torch.full((1,), 99.0))
    np.testing.assert_allclose(given_values.matrix()[:2, :2].detach().numpy(), rotation(np.rad2deg(0.5)), atol=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g: Rigid(g, limits={"log_scale": 0.2}), ("Rigid", "translation_mm, angle_rad", "log_scale")),
        (lambda g: Affine(g, limits={"shear": 0.0}), ("shear", "above 0", "0.0")),
        (lambda g: Affine(g, limits={"shear": float("nan")}), ("shear", "above 0", "nan")),
        (lambda g: QuaternionRigid(g, limits={"quaternion": 0.2}), ("QuaternionRigid", "translation_mm", "quaternion")),
        (lambda g: QuaternionRigid(Grid((9, 7))), ("3-D", "2-D", "Rigid")),
        (lambda g: QuaternionRigid(g).with_values(quaternion=torch.zeros(4)).ddf(), ("quaternion", "not be 0")),
    ],
)
def test_bad_models_are_one_sentence(call, words, no_jaxtyping):
    with sentence(ValueError, *words):
        call(oblique_grid(3))


def test_a_model_that_does_not_say_its_freedom_is_not_fitted():
    with sentence(TypeError, "Linear", "freedom"):
        fit_points(Linear, landmarks(2), landmarks(2), grid=oblique_grid(2))


# -- quaternions ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
def test_quaternions_turn_as_scipys_do_whatever_their_length(seed):
    quaternion = np.random.default_rng(seed).normal(0, 1, 4)
    transform = QuaternionRigid(oblique_grid(3), center_mm=(0.0, 0.0, 0.0))
    for length in (1.0, 1e-6, 1e6):
        transform.quaternion.data = torch.from_numpy(length * quaternion)
        expected = Rotation.from_quat(quaternion, scalar_first=True).as_matrix()
        np.testing.assert_allclose(transform.matrix().detach().numpy()[:3, :3], expected, atol=1e-12)


def test_a_quaternion_starts_at_the_identity_with_a_gradient_for_every_axis():
    transform = QuaternionRigid(oblique_grid(3))
    assert largest(transform.matrix(), torch.eye(4)) < 1e-12
    for row, column in ((2, 1), (0, 2), (1, 0)):
        transform.quaternion.grad = None
        transform.matrix()[row, column].backward()
        assert transform.quaternion.grad.abs().max() == pytest.approx(2.0)


def test_a_rigid_model_and_its_quaternion_step_alike():
    """One unit of the optimizer's step turns both by about the same angle."""
    angles = []
    for model, name in ((Rigid, "angle_rad"), (QuaternionRigid, "quaternion")):
        transform = model(oblique_grid(3))
        [group] = [g for g in transform.parameter_groups(0.5) if g["params"][0] is getattr(transform, name)]
        group["params"][0].data[-3:] += group["lr"]
        angles.append(Rotation.from_matrix(transform.matrix()[:3, :3].detach().numpy()).magnitude())
    assert angles[0] == pytest.approx(angles[1], rel=0.01)
    assert angles[0] > 0.01
