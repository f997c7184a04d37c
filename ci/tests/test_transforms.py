"""Parametric models: matrices by SciPy, splines by SciPy, and every view of a map against the others."""

import numpy as np
import pytest
import torch
from helpers import (
    SHAPE_CASES,
    SHAPES,
    affine,
    apply,
    inner,
    largest,
    oblique,
    rotation,
    sentence,
    smooth_ddf,
    targets,
    voxels,
)
from scipy.interpolate import BSpline

from reglib import field
from reglib.grid import Grid, GridMismatchError
from reglib.transforms import (
    Affine,
    Dense,
    DenseDisplacement,
    Diffeomorphism,
    FreeFormDeformation,
    Inverse,
    KernelDisplacement,
    MultiLevel,
    QuaternionRigid,
    Rigid,
    Sequential,
    Similarity,
    StationaryVelocity,
    SymmetricDiffeomorphism,
    Translation,
    VelocityFreeForm,
)

LINEAR = [Translation, Rigid, Similarity, Affine]
SIZES = {2: (32, 26), 3: (18, 23, 14)}


def oblique_grid(dim, shape=None):
    """The usual oblique header on a grid of twice the usual size, which dense maps need to be smooth on."""
    return Grid(shape or SIZES[dim], oblique(dim))


def fill(transform, seed=0):
    """Random changes of all parameters: mm for translations, radians and logarithms for the rest."""
    rng = np.random.default_rng(seed)
    for name, parameter in transform.named_parameters():
        size = 3.0 if name.endswith("_mm") else 0.12
        parameter.data += torch.from_numpy(rng.normal(0, size, parameter.shape)).to(parameter)
    return transform


def expected_matrix(transform, base, center):
    """base C P C^-1 with P = R diag(exp s) (I + U), by NumPy and SciPy, from the documented parameters."""
    value = {name: p.detach().double().numpy() for name, p in transform.named_parameters()}
    d = transform.grid.dim
    linear = np.eye(d)
    if "angle_rad" in value:
        linear = rotation(np.rad2deg(value["angle_rad"]))
    if "log_scale" in value:
        linear = linear @ np.diag(np.broadcast_to(np.exp(value["log_scale"]), d))
    if "shear" in value:
        upper = np.eye(d)
        upper[np.triu_indices(d, 1)] = value["shear"]
        linear = linear @ upper
    move = affine(linear, value["translation_mm"])
    return base @ affine(np.eye(d), center) @ move @ affine(np.eye(d), -np.asarray(center))


def dense_models(dim, largest=2.5):
    """One of each dense model with a smooth, invertible map on an oblique grid."""
    grid = oblique_grid(dim)
    smooth = smooth_ddf(grid.shape, largest=largest, sigma=5.0, seed=1)
    spacing = (5.0, 9.0, 8.0)[:dim]
    return {
        "dense": DenseDisplacement(grid, ddf=smooth),
        "composed": Diffeomorphism(grid, ddf=smooth),
        "symmetric": SymmetricDiffeomorphism(grid).with_values(to_fixed=-smooth / 2, to_moving=smooth / 2)._own(),
        "velocity": StationaryVelocity(grid, velocity=smooth),
        "free form": scatter(FreeFormDeformation(grid, control_spacing_mm=spacing)),
        "velocity free form": scatter(VelocityFreeForm(grid, control_spacing_mm=spacing)),
        "kernel": scatter(KernelDisplacement(grid, control_spacing_mm=11.0), 1.2),
        "kernel velocity": scatter(KernelDisplacement(grid, control_spacing_mm=11.0, velocity=True)),
    }


def scatter(transform, most=1.5):
    """Random coefficients of up to `most` voxels on the lattice of a model."""
    control = np.random.default_rng(2).uniform(-most, most, transform.coefficients.shape)
    transform.coefficients.data = torch.from_numpy(control).float()
    return transform


def every_model(dim):
    grid = oblique_grid(dim)
    dense = dense_models(dim)
    models = {c.__name__: fill(c(grid), seed=k) for k, c in enumerate(LINEAR)} | dense
    if dim == 3:
        models["QuaternionRigid"] = fill(QuaternionRigid(grid), seed=5)
    models["limited"] = fill(Affine(grid, limits={"angle_rad": 0.2, "translation_mm": 5.0, "shear": 0.3}), seed=3)
    pieces = [fill(Rigid(grid), seed=7), dense_models(dim)["velocity"]]
    models["sequential"] = Sequential(*pieces)
    models["multi-level"] = MultiLevel(fill(Affine(grid), seed=8), dense_models(dim, 1.5)["dense"])
    return models | {"linked inverse": Inverse(dense_models(dim)["velocity"])}


MODELS = [(dim, name) for dim in (2, 3) for name in every_model(dim)]
EXACT = {"Translation", "Rigid", "Similarity", "Affine", "QuaternionRigid", "limited"}  # linear ones


def world_of(ddf, grid):
    """Where a ddf leads the voxel centers of its grid, world mm (*s, d), by NumPy."""
    moved = voxels(grid.shape) + np.moveaxis(ddf[0].detach().double().numpy(), 0, -1)
    return apply(grid.world_from_voxel.numpy(), moved)


def inside_points(grid, count=200, margin=0.25, seed=0):
    """World points in the middle of a grid, (1, k, d) float64."""
    n = np.array(grid.shape) - 1
    points = np.random.default_rng(seed).uniform(margin * n, (1 - margin) * n, (1, count, grid.dim))
    return torch.from_numpy(apply(grid.world_from_voxel.numpy(), points))


# -- linear ----------------------------------------------------------------------
@pytest.mark.parametrize("model", LINEAR)
@pytest.mark.parametrize("dim", [2, 3])
def test_matrix_follows_the_documented_parameters(dim, model):
    grid, base = oblique_grid(dim), affine(rotation({2: 5.0, 3: (3.0, 4.0, -5.0)}[dim]), (4.0, -2.0, 1.0)[:dim])
    for start, center in (({}, grid.center), ({"center_mm": (3.0, 1.0, -2.0)[:dim]}, (3.0, 1.0, -2.0)[:dim])):
        for first in (np.eye(dim + 1), base):
            transform = fill(model(grid, matrix=torch.from_numpy(first), **start))
            np.testing.assert_allclose(
                transform.matrix().detach().numpy(), expected_matrix(transform, first, center), atol=1e-10
            )


@pytest.mark.parametrize("model", LINEAR)
@pytest.mark.parametrize("dim", [2, 3])
def test_linear_models_start_at_the_identity(dim, model):
    transform = model(oblique_grid(dim))
    assert largest(transform.matrix(), np.eye(dim + 1)) < 1e-12
    assert largest(transform.ddf()) < 1e-6


def test_zero_center_is_a_center():
    """(0, 0, 0) is a place, not a missing argument."""
    transform = Rigid(oblique_grid(3), center_mm=(0.0, 0.0, 0.0))
    transform.angle_rad.data += 0.3
    assert largest(transform.matrix()[:3, 3]) < 1e-12


@pytest.mark.parametrize("model", [Rigid, Similarity, Affine])
def test_rotation_is_smooth_at_zero(model):
    transform = model(oblique_grid(3))
    transform.matrix()[:3].sum().backward()
    assert transform.angle_rad.grad.isfinite().all()
    assert transform.angle_rad.grad.abs().max() > 0


# -- every view of a map ---------------------------------------------------------
@pytest.mark.parametrize(("dim", "name"), MODELS)
def test_ddf_and_points_agree_at_the_voxels_of_an_oblique_grid(dim, name):
    transform = every_model(dim)[name]
    grid = transform.grid
    centers = torch.from_numpy(apply(grid.world_from_voxel.numpy(), voxels(grid.shape)).reshape(1, -1, dim))
    moved = transform.points(centers)[0].detach().numpy().reshape(*grid.shape, dim)
    ddf = transform.ddf()
    assert ddf.shape == (1, dim, *grid.shape)
    assert ddf.dtype == torch.float32
    bound = 0.25 if name == "sequential" else 1e-4  # it reads the field between voxels and near the border
    assert np.abs(moved - world_of(ddf, grid)).max() < bound
    assert np.linalg.norm(moved - centers[0].reshape(moved.shape).numpy(), axis=-1).max() > 0.5


@pytest.mark.parametrize(("dim", "name"), MODELS)
def test_ddf_on_another_grid_is_the_same_physical_map(dim, name):
    """Finer, turned and inside: points and ddf must still say the same, in mm."""
    transform = every_model(dim)[name]
    own = transform.grid
    other = Grid.centered(
        {2: (14, 21), 3: (8, 11, 13)}[dim],
        (0.7, 0.9, 0.6)[:dim],
        center=own.center,
        direction=rotation({2: (-40.0,), 3: (20.0, -5.0, 15.0)}[dim]),
    )
    centers = torch.from_numpy(apply(other.world_from_voxel.numpy(), voxels(other.shape)).reshape(1, -1, dim))
    moved = transform.points(centers)[0].detach().numpy().reshape(*other.shape, dim)
    assert np.abs(moved - world_of(transform.ddf(other), other)).max() < 0.02


@pytest.mark.parametrize(("dim", "name"), MODELS)
def test_inverse_leads_back(dim, name):
    transform = every_model(dim)[name]
    points = inside_points(transform.grid)
    moved = transform.points(points)
    assert (moved - points).norm(dim=-1).max() > 0.5
    bound = 1e-8 if name in EXACT else 0.15
    error = (transform.inverse().points(moved) - points).norm(dim=-1)
    assert error.max() < bound
    error = (transform.points(transform.inverse().points(points)) - points).norm(dim=-1)
    assert error.max() < bound


@pytest.mark.parametrize(("dim", "name"), MODELS)
def test_at_another_grid_keeps_the_physical_map(dim, name):
    transform = every_model(dim)[name]
    before = [p.detach().clone() for p in transform.parameters()]
    points = inside_points(transform.grid)
    for grid, bound in (
        (transform.grid.downsample(1.5), 0.2),
        (transform.grid.resize([2 * n - 1 for n in transform.grid.shape]), 0.1),
    ):
        moved = transform.at(grid)
        assert type(moved) is type(transform)
        assert moved.grid == grid
        assert moved.ddf().shape[2:] == grid.shape
        limit = 1e-8 if name in EXACT else bound
        assert (moved.points(points) - transform.points(points)).norm(dim=-1).max() < limit
    for mine, old in zip(transform.parameters(), before, strict=True):
        assert largest(mine, old) == 0


@pytest.mark.parametrize(("dim", "name"), MODELS)
def test_gradient_reaches_every_parameter(dim, name):
    transform = every_model(dim)[name]
    (transform.ddf() * smooth_ddf(transform.grid.shape, largest=1.0, seed=9)).sum().backward()
    for label, parameter in transform.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize(("dim", "name"), MODELS)
def test_frozen_parameters_stay_frozen_at_another_grid(dim, name):
    transform = every_model(dim)[name]
    assert all(p.requires_grad for p in transform.at(transform.grid.downsample(2)).parameters())
    assert transform.freeze() is transform
    moved = transform.at(transform.grid.downsample(2))
    assert not any(p.requires_grad for p in moved.parameters())
    assert not any(group["params"] for group in moved.parameter_groups(0.1))


@pytest.mark.parametrize(("dim", "name"), MODELS)
def test_one_optimizer_step_moves_the_image_by_about_its_length(dim, name):
    """Adam moves each parameter by its rate: no model may then jump or crawl."""
    transform = every_model(dim)[name]
    before = transform.ddf().detach().clone()
    for group in transform.parameter_groups(0.5):
        for parameter in group["params"]:
            away = -1 if parameter is getattr(transform, "to_fixed", None) else 1  # halves that part
            parameter.data += away * group["lr"]
    moved = (transform.ddf().detach() - before).norm(dim=1).mean()
    assert 0.1 < moved < 3


# -- parameters from elsewhere ---------------------------------------------------
def tiny_models(dim):
    """Every model on a grid of a few voxels, float64, with values at which no sample falls on a voxel."""
    grid = Grid({2: (6, 5), 3: (4, 5, 3)}[dim], oblique(dim))
    lattice = {"control_spacing_mm": (3.0, 6.0, 4.0)[:dim]}
    models = {
        "dense": DenseDisplacement(grid),
        "composed": Diffeomorphism(grid),
        "symmetric": SymmetricDiffeomorphism(grid),
        "velocity": StationaryVelocity(grid, steps=2),
        "free form": FreeFormDeformation(grid, **lattice),
        "velocity free form": VelocityFreeForm(grid, **lattice, steps=2),
        "kernel": KernelDisplacement(grid, **lattice),
        "kernel velocity": KernelDisplacement(grid, **lattice, velocity=True, steps=2),
        "limited": Affine(grid, limits={"angle_rad": 0.2}),
        "sequential": Sequential(Rigid(grid), StationaryVelocity(grid, steps=2)),
        "multi-level": MultiLevel(Affine(grid), DenseDisplacement(grid)),
    }
    models |= {"QuaternionRigid": QuaternionRigid(grid)} if dim == 3 else {}
    rng = np.random.default_rng(4)
    for transform in models.values():
        transform.double()
        for parameter in transform.parameters():
            parameter.data += torch.from_numpy(rng.uniform(0.02, 0.25, parameter.shape))
    return models


TINY = [(dim, name) for dim in (2, 3) for name in tiny_models(dim)]


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(("dim", "name"), TINY)
def test_gradient_of_the_map_with_respect_to_its_parameters(dim, name, back):
    """Both ways, by finite differences in float64; a way back by fixed point has the implicit function's gradient."""
    transform = tiny_models(dim)[name]
    names = [label for label, _ in transform.named_parameters()]
    grid = transform.grid
    centers = torch.from_numpy(apply(grid.world_from_voxel.numpy(), voxels(grid.shape)).reshape(1, -1, dim))

    def ddf(*values):
        model = transform.with_values(**dict(zip(names, values, strict=True)))
        model = model.inverse(linked=True) if back else model
        return model.ddf() if name in tiny_dense(dim) else model.points(centers)  # a linear ddf is float32

    values = [p.detach().clone().requires_grad_() for p in transform.parameters()]
    assert torch.autograd.gradcheck(ddf, values, fast_mode=True, eps=1e-6, atol=1e-6, rtol=1e-4)


def tiny_dense(dim):
    return {name for name, model in tiny_models(dim).items() if isinstance(model, Dense)}


@pytest.mark.parametrize(("dim", "name"), [(d, n) for d, n in MODELS if isinstance(every_model(d)[n], Dense)])
def test_a_network_supplies_a_batch_of_values(dim, name):
    """Each of the batch as if it were alone, there, back, elsewhere and for points, with its own gradient."""
    transform = every_model(dim)[name]
    transform.steps = 4  # else the fastest of the batch sets it for all
    own = dict(transform.named_parameters())
    values = {label: torch.cat([p, -0.5 * p, 0 * p]).detach().requires_grad_() for label, p in own.items()}
    batch = transform.with_values(**values)
    assert type(batch) is type(transform)
    assert list(batch.parameters()) == []
    points, other = inside_points(transform.grid).float(), transform.grid.downsample(1.7)
    singles = [transform.with_values(**{label: v[k : k + 1].detach() for label, v in values.items()}) for k in range(3)]
    for view in (
        lambda model: model.ddf(),
        lambda model: model.ddf(other),
        lambda model: model.points(points),
        lambda model: model.inverse().ddf(),
        lambda model: model.at(other).ddf(),
        lambda model: model.inverse_residual(),
        lambda model: Sequential(Rigid(model.grid), model).ddf(),
        lambda model: Sequential(model, StationaryVelocity(model.grid, velocity=0.3 + 0 * model.ddf()[:1])).ddf(),
        lambda model: MultiLevel(model, fill(Rigid(model.grid))).points(points),
    ):
        found = view(batch)
        assert len(found) == 3
        assert largest(found, torch.cat([view(single) for single in singles])) < 2e-3  # inverses stop together
    batch.ddf()[1].square().sum().backward()
    for label, value in values.items():
        assert [bool((g != 0).any()) for g in value.grad] == [False, True, False]
        assert own[label].grad is None


@pytest.mark.parametrize(("dim", "name"), MODELS)
def test_values_replace_parameters_and_leave_the_model_alone(dim, name):
    transform = every_model(dim)[name]
    before = {label: p.detach().clone() for label, p in transform.named_parameters()}
    values = {label: (0.5 * p.detach()).requires_grad_() for label, p in before.items()}
    other = transform.with_values(**values)
    (other.ddf() * smooth_ddf(transform.grid.shape, largest=1.0, seed=9)).sum().backward()
    for label, value in values.items():
        assert value.grad.abs().max() > 0, label
    for label, parameter in transform.named_parameters():
        assert parameter.grad is None, label
        assert largest(parameter, before[label]) == 0
        parameter.data *= 0.5
    assert largest(other.ddf(), transform.ddf()) < 1e-6
    again = other.with_values(**before)
    for parameter in transform.parameters():
        parameter.data *= 2
    assert largest(again.ddf(), transform.ddf()) < 1e-6
    moved = other.at(transform.grid.downsample(2))
    assert list(moved.parameters()) == []
    for value in values.values():
        value.grad = None
    moved.ddf().square().sum().backward()
    assert all(value.grad is not None for value in values.values())


def test_parameters_that_are_not_given_stay_shared():
    transform = fill(Rigid(oblique_grid(2)))
    other = transform.with_values(angle_rad=torch.zeros(1, dtype=torch.float64))
    assert other.translation_mm is transform.translation_mm
    assert [name for name, _ in other.named_parameters()] == ["translation_mm"]
    transform.translation_mm.data += 2.0
    assert largest(other.matrix()[:2, 2], transform.translation_mm) < 1e-12
    assert set(other.state_dict()) == set(transform.state_dict())


@pytest.mark.parametrize(
    ("error", "call", "words"),
    [
        (
            ValueError,
            lambda g: Rigid(g).with_values(angle=torch.zeros(1)),
            ("Rigid", "angle", "translation_mm, angle_rad"),
        ),
        (ValueError, lambda g: Rigid(g).with_values(angle_rad=torch.zeros(4, 1)), ("(1,)", "(4, 1)", "loop")),
        (
            ValueError,
            lambda g: StationaryVelocity(g).with_values(velocity=torch.zeros(4, 2, 13, 16)),
            ("velocity", "(b, 2, 16, 13)", "(4, 2, 13, 16)"),
        ),
        (
            ValueError,
            lambda g: Sequential(Rigid(g), StationaryVelocity(g)).with_values(velocity=torch.zeros(1, 2, 16, 13)),
            ("Sequential", "transforms.1.velocity"),
        ),
        (TypeError, lambda g: Rigid(g).with_values(angle_rad=0.3), ("angle_rad", "tensor", "float")),
        (TypeError, lambda g: Rigid(g).with_values(angle_rad=torch.zeros(1).int()), ("floating point", "int32")),
        (TypeError, lambda g: Sequential(Rigid(g)).fit(torch.zeros(1, 2, 16, 13)), ("Sequential", "parts")),
        (TypeError, lambda g: MultiLevel(Rigid(g)).fit(torch.zeros(1, 2, 16, 13)), ("MultiLevel", "parts")),
        (GridMismatchError, lambda g: Affine(g).fit(torch.zeros(1, 2, 13, 16)), ("ddf", "16, 13", "13, 16")),
        (ValueError, lambda g: DenseDisplacement(g).fit(torch.zeros(3, 2, 16, 13)), ("(1, 2, *s)", "(3, 2, 16, 13)")),
        (ValueError, lambda g: Affine(g).fit(torch.full((1, 2, 16, 13), float("nan"))), ("ddf", "finite")),
        (ValueError, lambda g: MultiLevel(), ("MultiLevel", "at least one")),
        (ValueError, lambda g: MultiLevel(Rigid(g), Rigid(Grid((3, 4, 5)))), ("MultiLevel", "one dimension", "[2, 3]")),
    ],
)
def test_wrong_values_and_fields_are_one_sentence(error, call, words, no_jaxtyping):
    with sentence(error, *words):
        call(Grid(SHAPES[2], oblique(2)))


# -- the way back ----------------------------------------------------------------
@pytest.mark.parametrize(("dim", "name"), MODELS)
def test_linked_inverse_shares_the_parameters_and_follows_them(dim, name):
    transform = every_model(dim)[name]
    linked, own = transform.inverse(linked=True), transform.inverse()
    points = inside_points(transform.grid)
    if name != "linked inverse":
        assert linked.inverse(linked=True) is transform
        assert [id(p) for p in linked.parameters()] == [id(p) for p in transform.parameters()]
        assert not {id(p) for p in own.parameters()} & {id(p) for p in transform.parameters()}
        assert all(p.requires_grad and p.is_leaf for p in own.parameters())
    assert largest(linked.ddf(), own.ddf()) < 1e-5
    assert largest(linked.points(points), own.points(points)) < 1e-5
    (linked.ddf() * smooth_ddf(transform.grid.shape, largest=1.0, seed=9)).sum().backward()
    for label, parameter in transform.named_parameters():
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().max() > 0, label
        parameter.data *= 0.6
    bound = 1e-8 if name in EXACT else 0.15
    assert (linked.points(transform.points(points)) - points).norm(dim=-1).max() < bound
    assert largest(linked.ddf(), own.ddf()) > 0.05


@pytest.mark.parametrize("dim", [2, 3])
def test_optimizing_a_linked_inverse_moves_the_model(dim):
    """The motion of the one is the opposite motion of the other: a step on the way back must be seen on the way."""
    transform = Translation(oblique_grid(dim))
    optimizer = torch.optim.SGD(transform.inverse(linked=True).parameters(), lr=1.0)
    transform.inverse(linked=True).points(torch.zeros(1, 1, dim, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert largest(transform.translation_mm, 1.0) < 1e-12


@pytest.mark.parametrize(("dim", "name"), MODELS)
def test_residual_of_the_inverse_is_small_in_voxels(dim, name):
    transform = every_model(dim)[name]
    residual = transform.inverse_residual()
    assert residual.shape == (1, 1, *transform.grid.shape)
    last = np.reshape(transform.grid.shape, (1, dim, *[1] * dim)) - 1
    back = targets(transform.inverse().ddf())
    stays = torch.from_numpy(
        ((back > 2) & (back < last - 2)).all(1, keepdims=True)
    )  # beyond, a field repeats its border
    assert stays.double().mean() > 0.15
    assert residual[stays].max() < (1e-8 if name in EXACT else 0.15)
    assert residual[stays].mean() < 0.02


def test_residual_of_the_inverse_is_that_of_the_fixed_point_and_large_where_a_map_stretches_too_far():
    transform = dense_models(2)["dense"]
    expected = field.inverse(transform.displacement.detach()).residual
    assert largest(transform.inverse_residual(), expected) < 1e-4
    transform.displacement.data *= 30
    assert transform.inverse_residual().max() > 0.5


# -- dense -----------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
def test_velocity_gives_its_exponential_and_the_inverse_that_of_its_negative(dim):
    transform = dense_models(dim)["velocity"]
    assert largest(transform.ddf(), field.exponential(transform.velocity)) == 0
    assert largest(transform.inverse().ddf(), field.exponential(-transform.velocity)) == 0
    fixed_steps = StationaryVelocity(transform.grid, velocity=transform.velocity, steps=2)
    assert largest(fixed_steps.ddf(), field.exponential(transform.velocity, steps=2)) == 0
    assert fixed_steps.at(transform.grid.downsample(2)).steps == fixed_steps.inverse().steps == 2


def spline(coefficients, positions):
    """Tensor product of cubic B-splines: coefficients (*m), knots at -1, 0, 1, .. along each axis, by SciPy."""
    for axis, position in enumerate(positions):
        m = coefficients.shape[axis]
        knots = np.arange(-3.0, m + 1.0)  # control point j is centered at j - 1, its support is j - 3 to j + 1
        inside = np.clip(position, 0, m - 3 - 1e-12)
        design = BSpline.design_matrix(inside, knots, 3).toarray()
        coefficients = np.moveaxis(np.tensordot(design, coefficients, axes=(1, axis)), 0, axis)
    return coefficients


@pytest.mark.parametrize("dim", [2, 3])
def test_free_form_deformation_agrees_with_scipy(dim):
    transform = dense_models(dim)["free form"]
    grid = transform.grid
    lengths = [(n - 1) * s for n, s in zip(grid.shape, grid.spacing, strict=True)]
    spans = [round(length / w) for length, w in zip(lengths, (5.0, 9.0, 8.0), strict=False)]
    assert transform.coefficients.shape == (1, dim, *[span + 3 for span in spans])
    positions = [np.arange(n) * span / (n - 1) for n, span in zip(grid.shape, spans, strict=True)]
    expected = [spline(c, positions) for c in transform.coefficients[0].detach().double().numpy()]
    assert largest(transform.ddf()[0], np.stack(expected)) < 1e-5


@pytest.mark.parametrize("dim", [2, 3])
def test_free_form_deformation_moves_exactly_to_a_coarser_grid(dim):
    """The same spline, read at other places and in other voxels: no interpolation error."""
    transform = dense_models(dim)["free form"]
    grid, small = transform.grid, transform.grid.downsample(2.3)
    spans = [m - 3 for m in transform.coefficients.shape[2:]]
    positions = [np.arange(n) * span / (n - 1) for n, span in zip(small.shape, spans, strict=True)]
    fine = np.stack([spline(c, positions) for c in transform.coefficients[0].detach().double().numpy()])
    scale = (np.array(small.shape) - 1) / (np.array(grid.shape) - 1)
    coarse = transform.at(small)
    assert largest(coarse.ddf()[0], fine * scale.reshape(-1, *[1] * dim)) < 1e-5
    torch.testing.assert_close(coarse.at(grid).ddf(), transform.ddf(), atol=1e-5, rtol=0)


def test_free_form_deformation_of_an_affine_lattice_is_affine():
    """Control points that move linearly make a linear map: splines reproduce straight lines."""
    transform = FreeFormDeformation(oblique_grid(2), control_spacing_mm=6.0)
    lattice = torch.from_numpy(np.moveaxis(voxels(transform.coefficients.shape[2:]), -1, 0)).float()
    transform.coefficients.data = (lattice * torch.tensor([0.3, -0.2]).reshape(2, 1, 1))[None]
    second = (
        transform.ddf().detach().diff(n=2, dim=2).abs().max() + transform.ddf().detach().diff(n=2, dim=3).abs().max()
    )
    assert second < 1e-5
    assert transform.ddf().abs().max() > 1


@pytest.mark.parametrize("name", ["dense", "velocity", "free form"])
def test_at_a_grid_with_other_ends_keeps_the_map_or_says_no(name):
    """A crop does not share the first and last centers: the map must hold there too, or be refused aloud."""
    transform = dense_models(2)[name]
    crop = transform.grid.crop((8, 6), (26, 21))
    try:
        moved = transform.at(crop)
    except ValueError:
        return
    error = inner(moved.ddf() - transform.ddf()[:, :, 8:26, 6:21], 4)
    assert largest(error) < 0.15


# -- in sequence -----------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
def test_sequential_takes_points_through_the_last_map_first(dim):
    grid = oblique_grid(dim)
    first, second = fill(Affine(grid), seed=1), fill(Rigid(grid), seed=2)
    both = Sequential(first, second)
    points = inside_points(grid)
    expected = apply(first.matrix().detach().numpy() @ second.matrix().detach().numpy(), points.numpy())
    np.testing.assert_allclose(both.points(points).detach().numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(
        world_of(both.ddf(), grid),
        apply(first.matrix().detach().numpy() @ second.matrix().detach().numpy(), world_of(0 * both.ddf(), grid)),
        atol=1e-3,
    )
    assert (both.points(points) - Sequential(second, first).points(points)).norm(dim=-1).min() > 0.01


@pytest.mark.parametrize("order", ["affine first", "velocity first", "three"])
def test_sequential_warps_like_its_maps_in_a_row(order):
    """warp(warp(m, first), second) = warp(m, both): exact in the middle for an image that is linear."""
    grid = oblique_grid(2)
    rigid, velocity = fill(Rigid(grid), seed=3), dense_models(2, largest=1.5)["velocity"]
    rigid.translation_mm.data *= 0.3
    pieces = {
        "affine first": [rigid, velocity],
        "velocity first": [velocity, rigid],
        "three": [rigid, velocity, dense_models(2)["free form"]],
    }[order]
    image = torch.from_numpy(voxels(grid.shape) @ np.array([0.5, -1.0])).float()[None, None]
    warped = image
    for piece in pieces:
        warped = field.warp(warped, piece.ddf())
    found = field.warp(image, Sequential(*pieces).ddf())
    assert largest(inner(warped, 7), inner(found, 7)) < 2e-3
    assert largest(inner(warped, 7), inner(image, 7)) > 0.5


@pytest.mark.parametrize("dim", [2, 3])
def test_sequential_inverse_reverses_the_order(dim):
    grid = oblique_grid(dim)
    both = Sequential(fill(Affine(grid), seed=1), dense_models(dim)["velocity"])
    back = both.inverse()
    assert [type(t).__name__ for t in back] == ["StationaryVelocity", "Affine"]
    points = inside_points(grid)
    assert (back.points(both.points(points)) - points).norm(dim=-1).max() < 0.1


def test_sequential_with_a_large_shift_stays_exact():
    """The linear part is not read from a grid: also beyond it the sum of two shifts is their sum."""
    grid = oblique_grid(3)
    first, second = Translation(grid), Rigid(grid)
    first.translation_mm.data += 300.0
    second.angle_rad.data += 1.0
    ddf = Sequential(first, second).ddf()
    matrix = first.matrix().detach().numpy() @ second.matrix().detach().numpy()
    np.testing.assert_allclose(world_of(ddf, grid), apply(matrix, world_of(0 * ddf, grid)), atol=5e-3)


@pytest.mark.parametrize("shift_mm", [4.0, 120.0])
def test_sequential_reads_a_dense_map_where_it_lives(shift_mm):
    """The way back from a moving image whose header puts it elsewhere in the world, as scanners do.

    inverse() is (velocity, then affine): voxels of the moving grid reach the velocity only through the affine map,
    so the velocity must be read on its own grid, not on what the moving grid happens to cover.
    """
    grid = oblique_grid(2)
    shift = Translation(grid)
    shift.translation_mm.data += shift_mm
    back = Sequential(shift, dense_models(2)["velocity"]).inverse()
    moving = Grid(grid.shape, affine(grid.world_from_voxel[:2, :2].numpy(), np.array(grid.origin) + shift_mm))
    centers = torch.from_numpy(apply(moving.world_from_voxel.numpy(), voxels(moving.shape)).reshape(1, -1, 2))
    expected = back.points(centers)[0].detach().numpy().reshape(*moving.shape, 2)
    assert np.abs(expected - world_of(back.ddf(moving), moving)).max() < 0.1


def test_sequential_freezes_its_parts_one_by_one():
    grid = oblique_grid(2)
    both = Sequential(Rigid(grid).freeze(), StationaryVelocity(grid))
    moved = both.at(grid.downsample(2))
    assert [p.requires_grad for p in moved.parameters()] == [p.requires_grad for p in both.parameters()]
    assert sum(len(group["params"]) for group in moved.parameter_groups(0.1)) == 1
    assert [tuple(f.shape) for f in moved.deformations()] == [(1, 2, 16, 13)]


# -- added -----------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
def test_multi_level_adds_what_its_parts_move(dim):
    """In mm, on any grid; a sequence of the same parts is another map."""
    parts = [fill(Affine(oblique_grid(dim)), seed=1), dense_models(dim)["free form"], dense_models(dim)["kernel"]]
    both, points = MultiLevel(*parts), inside_points(oblique_grid(dim))
    expected = points + sum(part.points(points) - points for part in parts)
    assert largest(both.points(points), expected) < 1e-9
    still = voxels(both.grid.shape)
    added = sum(np.moveaxis(part.ddf()[0].detach().double().numpy(), 0, -1) for part in parts)
    np.testing.assert_allclose(
        world_of(both.ddf(), both.grid), apply(both.grid.world_from_voxel.numpy(), still + added), atol=1e-4
    )
    assert largest(Sequential(*parts).points(points), expected) > 0.1
    assert [tuple(f.shape[2:]) for f in both.deformations()] == 2 * [both.grid.shape]
    assert len([p for group in both.parameter_groups(0.1) for p in group["params"]]) == 6


@pytest.mark.parametrize("dim", [2, 3])
def test_multi_level_of_linear_maps_adds_and_inverts_matrices(dim):
    grid = oblique_grid(dim)
    parts = [fill(Affine(grid), seed=1), fill(Rigid(grid), seed=2)]
    matrix = sum(part.matrix().detach().numpy() for part in parts) - np.eye(dim + 1)
    points = inside_points(grid)
    np.testing.assert_allclose(MultiLevel(*parts).points(points).detach(), apply(matrix, points), atol=1e-9)
    back = MultiLevel(*parts).inverse().points(points).detach()
    np.testing.assert_allclose(back, apply(np.linalg.inv(matrix), points), atol=1e-9)


def test_multi_level_with_a_large_shift_is_inverted_where_it_lives():
    """The linear part is not read from a grid, which the way back would leave at once."""
    grid = oblique_grid(2)
    shift = fill(Affine(grid), seed=1)
    shift.translation_mm.data += 300.0
    both = MultiLevel(shift, dense_models(2, 1.5)["dense"])
    points = inside_points(grid)
    assert (both.inverse().points(both.points(points)) - points).norm(dim=-1).max() < 0.15


def test_multi_level_reads_parts_of_other_grids_through_the_world():
    coarse, fine = oblique_grid(2).downsample(2), oblique_grid(2)
    both = MultiLevel(
        DenseDisplacement(coarse, ddf=smooth_ddf(coarse.shape, largest=1.0)), dense_models(2)["free form"]
    )
    assert both.grid is not coarse
    assert both.ddf().shape == (1, 2, *fine.shape)
    centers = torch.from_numpy(apply(fine.world_from_voxel.numpy(), voxels(fine.shape)).reshape(1, -1, 2))
    moved = both.points(centers)[0].detach().numpy().reshape(*fine.shape, 2)
    assert np.abs(moved - world_of(both.ddf(), fine)).max() < 1e-4


def test_sequential_of_fits_and_values_by_their_path():
    grid = oblique_grid(2)
    both = Sequential(Rigid(grid), StationaryVelocity(grid))
    velocity = smooth_ddf(grid.shape, largest=2.0, sigma=5.0, batch=3).requires_grad_()
    ddf = both.with_values(**{"transforms.1.velocity": velocity}).ddf()
    assert largest(ddf, field.exponential(velocity)) < 1e-4
    ddf.sum().backward()
    assert velocity.grad.abs().max() > 0


def test_deformations_are_what_a_regularizer_judges():
    models = dense_models(2)
    assert largest(models["dense"].deformations()[0], models["dense"].ddf()) == 0
    assert largest(models["velocity"].deformations()[0], models["velocity"].velocity) == 0
    assert largest(models["free form"].deformations()[0], models["free form"].ddf()) == 0
    assert Affine(oblique_grid(2)).deformations() == []


def test_a_model_saves_and_loads_its_state(tmp_path):
    for name, transform in every_model(2).items():
        torch.save(transform.state_dict(), tmp_path / "state.pt")
        other = every_model(2)[name]
        for parameter in other.parameters():
            parameter.data.zero_()
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert largest(other.ddf(), transform.ddf()) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g: Affine(g, matrix=torch.eye(4)), ("matrix", "(3, 3)", "(4, 4)")),
        (lambda g: Rigid(g, center_mm=(1.0, 2.0, 3.0)), ("center_mm", "2")),
        (lambda g: DenseDisplacement(g, ddf=torch.zeros(1, 2, 13, 16)), ("(1, 2, 16, 13)", "(1, 2, 13, 16)")),
        (lambda g: StationaryVelocity(g, velocity=torch.zeros(1, 3, 16, 13)), ("(1, 2, 16, 13)", "(1, 3, 16, 13)")),
        (lambda g: FreeFormDeformation(g, control_spacing_mm=0.0), ("control_spacing_mm", "above 0")),
        (lambda g: FreeFormDeformation(g, control_spacing_mm=(4.0,) * 3), ("control_spacing_mm", "2 numbers")),
        (lambda g: FreeFormDeformation(g, coefficients=torch.zeros(1, 2, 3, 3)), ("(1, 2, 3, 3)",)),
        (lambda g: Sequential(), ("Sequential", "at least one")),
    ],
)
def test_errors_are_one_sentence(call, words, no_jaxtyping):
    with sentence(ValueError, *words):
        call(Grid(SHAPES[2], oblique(2)))


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_dense_models_start_at_the_identity(shape):
    for model in (DenseDisplacement, StationaryVelocity, FreeFormDeformation):
        assert largest(model(Grid(shape)).ddf()) == 0
