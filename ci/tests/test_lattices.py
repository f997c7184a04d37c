"""Models of a coarse lattice: splines by SimpleITK, round kernels by brute force, fits by NumPy."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import LPS, SPACINGS, apply, inner, largest, oblique, sentence, smooth_ddf, voxels
from hypothesis import given, settings
from hypothesis import strategies as st

from reglib import field
from reglib.grid import Grid
from reglib.transforms import (
    DenseDisplacement,
    FreeFormDeformation,
    KernelDisplacement,
    StationaryVelocity,
    VelocityFreeForm,
)

SIZES = {2: (32, 26), 3: (12, 16, 9)}
SPLINES = [FreeFormDeformation, VelocityFreeForm]


def oblique_grid(dim):
    return Grid(SIZES[dim], oblique(dim))


def scatter(transform, most=1.0, seed=0):
    """Random coefficients of up to `most` voxels, float64."""
    values = np.random.default_rng(seed).uniform(-most, most, transform.coefficients.shape)
    transform.coefficients.data = torch.from_numpy(values)
    return transform


def splines(model, dim, **options):
    return scatter(model(oblique_grid(dim), control_spacing_mm=(6.0, 9.0, 8.0)[:dim], **options))


# -- splines -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
def test_velocity_free_form_flows_along_its_splines(dim):
    transform = splines(VelocityFreeForm, dim, steps=5)
    velocity = splines(FreeFormDeformation, dim).ddf()
    assert largest(transform.deformations()[0], velocity) == 0
    assert largest(transform.ddf(), field.exponential(velocity, steps=5)) == 0
    assert largest(transform.ddf(), velocity) > 0.005
    assert largest(transform.inverse().coefficients, -transform.coefficients) == 0
    assert transform.inverse().steps == transform.at(transform.grid.downsample(2)).steps == 5


@pytest.mark.parametrize("dim", [2, 3])
def test_free_form_deformation_agrees_with_simpleitk(dim):
    """The same lattice in ITK's order, in LPS mm, on an oblique grid."""
    transform = splines(FreeFormDeformation, dim)
    grid, coefficients = transform.grid, transform.coefficients[0].detach().numpy()
    lps = LPS[dim] @ grid.world_from_voxel.numpy()[:dim, :dim]
    other = sitk.BSplineTransform(dim, 3)
    other.SetTransformDomainOrigin((LPS[dim] @ grid.world_from_voxel.numpy()[:dim, dim]).tolist())
    other.SetTransformDomainDirection((lps / SPACINGS[dim]).ravel().tolist())
    other.SetTransformDomainPhysicalDimensions([(n - 1) * s for n, s in zip(grid.shape, grid.spacing, strict=True)])
    other.SetTransformDomainMeshSize([m - 3 for m in coefficients.shape[1:]])
    other.SetParameters(np.concatenate([c.ravel(order="F") for c in np.tensordot(lps, coefficients, 1)]).tolist())

    inside = np.random.default_rng(1).integers(1, np.array(grid.shape) - 1, (60, dim))  # at voxels: no interpolation
    points = apply(grid.world_from_voxel.numpy(), inside)
    expected = np.array([other.TransformPoint(p.tolist()) for p in points @ LPS[dim]]) @ LPS[dim]
    found = transform.points(torch.from_numpy(points)[None])[0].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected - points).max() > 0.3


@pytest.mark.parametrize("model", SPLINES)
@pytest.mark.parametrize("dim", [2, 3])
def test_subdivision_is_the_same_map_with_half_the_control_spacing(dim, model):
    transform = splines(model, dim)
    finer = transform.subdivide()
    assert type(finer) is model
    assert finer.spans == [2 * span for span in transform.spans]
    assert finer.coefficients.shape[2:] == tuple(2 * span + 3 for span in transform.spans)
    assert largest(finer.ddf(), transform.ddf()) < 1e-12
    assert largest(finer.subdivide().ddf(), transform.ddf()) < 1e-12
    smaller = transform.grid.downsample(2)  # a subdivided model moves on through the levels
    assert largest(finer.at(smaller).ddf(), transform.at(smaller).ddf()) < 1e-12


def test_subdivision_keeps_what_is_frozen():
    assert not splines(FreeFormDeformation, 2).freeze().subdivide().coefficients.requires_grad
    assert splines(FreeFormDeformation, 2).subdivide().coefficients.requires_grad


@pytest.mark.parametrize("dim", [2, 3])
def test_splines_are_fitted_by_exact_least_squares(dim):
    """Against NumPy's least squares on the whole tensor product."""
    grid = Grid((9, 8, 7)[:dim], oblique(dim))
    transform = FreeFormDeformation(grid, control_spacing_mm=(4.0, 6.0, 9.0)[:dim])
    target = smooth_ddf(grid.shape, largest=2.0, sigma=1.0, seed=3, dtype=torch.float64)
    basis = np.eye(int(np.prod(transform.coefficients.shape[2:]))).reshape(-1, *transform.coefficients.shape[2:])
    columns = []
    for start in range(0, len(basis), dim):  # a component each, as many as there are
        block = np.zeros((1, dim, *basis.shape[1:]))
        block[0, : len(basis[start : start + dim])] = basis[start : start + dim]
        values = torch.from_numpy(block)
        columns += list(transform.with_values(coefficients=values).ddf()[0].reshape(dim, -1).numpy())
    design = np.stack(columns[: len(basis)], axis=1)
    expected = np.linalg.lstsq(design, target[0].reshape(dim, -1).numpy().T, rcond=None)[0].T
    fitted = transform.fit(target)
    assert largest(fitted.coefficients.reshape(dim, -1), torch.from_numpy(expected)) < 1e-9
    assert 0.01 < fitted.fit_residual(target).max() < 2.5


@pytest.mark.parametrize("dim", [2, 3])
def test_splines_get_back_the_coefficients_of_their_own_field(dim):
    transform = splines(FreeFormDeformation, dim)
    fitted = FreeFormDeformation(transform.grid, control_spacing_mm=(6.0, 9.0, 8.0)[:dim]).fit(transform.ddf().detach())
    assert largest(fitted.coefficients, transform.coefficients) < 1e-9
    assert fitted.fit_residual(transform.ddf().detach()).max() < 1e-9


@pytest.mark.parametrize("dim", [2, 3])
def test_a_flow_is_fitted_to_its_velocity(dim):
    """Each kind of flow gets back the map of a velocity of its own kind, and that map from its ddf alone."""
    grid = oblique_grid(dim)
    for transform in (
        splines(VelocityFreeForm, dim),
        scatter(KernelDisplacement(grid, control_spacing_mm=9.0, velocity=True)),
        StationaryVelocity(grid, velocity=smooth_ddf(grid.shape, largest=1.0)),
    ):
        velocity = transform.deformations()[0].detach()
        fitted = transform.with_values(**{n: 0 * p for n, p in transform.named_parameters()}).fit_field(velocity)
        assert largest(fitted.ddf(), transform.ddf()) < 2e-3
        assert largest(transform.ddf()) > 0.3
        ddf = transform.ddf().detach()
        assert transform.fit(ddf).fit_residual(ddf).mean() < 0.1 * ddf.norm(dim=1).mean()


@pytest.mark.parametrize("dim", [2, 3])
def test_a_free_displacement_is_fitted_exactly(dim):
    grid = oblique_grid(dim)
    ddf = smooth_ddf(grid.shape, largest=2.0)
    start = DenseDisplacement(grid)
    fitted = start.fit(ddf)
    assert largest(fitted.ddf(), ddf) == largest(start.ddf()) == 0
    fitted.displacement.data += 1  # on its own copy
    assert largest(start.fit(ddf).fit_residual(ddf)) == 0


# -- kernels -------------------------------------------------------------------------------------------------------
def wendland(r, smoothness):
    """Wendland's functions as in Fasshauer's table 11.1, by NumPy."""
    p = np.maximum(1 - r, 0)
    return {
        "C2": p**4 * (4 * r + 1),
        "C4": p**6 * (35 * r**2 + 18 * r + 3) / 3,
        "C6": p**8 * (32 * r**3 + 25 * r**2 + 8 * r + 1),
    }[smoothness]


def brute_force(transform, spacing_mm, radius, smoothness):
    """The sum over all control points at every voxel, distances in mm along the axes."""
    grid, coefficients = transform.grid, transform.coefficients[0].detach().numpy()
    d, lengths = grid.dim, [(n - 1) * s for n, s in zip(grid.shape, grid.spacing, strict=True)]
    steps = [length / np.ceil(length / w - 1e-9) for length, w in zip(lengths, spacing_mm, strict=True)]
    beyond = [
        (m - 1 - round(length / h)) // 2 for m, length, h in zip(coefficients.shape[1:], lengths, steps, strict=True)
    ]
    control = (voxels(coefficients.shape[1:]) - beyond) * steps  # (*m, d) mm
    positions = voxels(grid.shape) * grid.spacing
    offsets = (positions.reshape(-1, 1, d) - control.reshape(1, -1, d)) / (radius * np.asarray(spacing_mm))
    kernel = wendland(np.linalg.norm(offsets, axis=-1), smoothness)
    around = voxels([9] * d) - 4
    total = wendland(np.linalg.norm(around * steps / (radius * np.asarray(spacing_mm)), axis=-1), smoothness).sum()
    return (kernel @ coefficients.reshape(d, -1).T / total).T.reshape(1, d, *grid.shape)


@pytest.mark.parametrize("smoothness", ["C2", "C4", "C6"])
@pytest.mark.parametrize(
    ("dim", "spacing_mm", "radius"), [(2, (8.0, 8.0), 2.0), (2, (5.0, 11.0), 1.3), (3, (6.0, 6.0, 6.0), 2.0)]
)
def test_kernels_agree_with_the_sum_over_control_points(dim, spacing_mm, radius, smoothness):
    grid = oblique_grid(dim)
    transform = KernelDisplacement(grid, control_spacing_mm=spacing_mm, smoothness=smoothness, radius=radius)
    scatter(transform, most=2.0)
    expected = brute_force(transform, spacing_mm, radius, smoothness)
    assert np.abs(expected).max() > 0.5
    assert largest(transform.ddf(), torch.from_numpy(expected)) < 2e-5


@pytest.mark.parametrize("smoothness", ["C2", "C4", "C6"])
def test_a_kernel_is_round_in_mm_and_ends_at_its_radius(smoothness):
    """Of one control point: equal at equal distances on voxels of unequal size, 0 beyond radius times spacing."""
    grid = Grid.centered((81, 33), (0.5, 1.25))
    transform = KernelDisplacement(grid, control_spacing_mm=10.0, smoothness=smoothness).double()
    middle = [m // 2 for m in transform.coefficients.shape[2:]]
    transform.coefficients.data[0, 0, middle[0], middle[1]] = 1.0
    ddf = transform.ddf()[0, 0].detach()
    assert abs(float(ddf[40 + 10, 16] - ddf[40, 16 + 4])) < 1e-6  # both 5 mm away
    assert abs(float(ddf[40 + 15, 16 + 8] - ddf[40 + 25, 16])) < 1e-6  # 7.5 and 10 mm, and 12.5 mm
    assert ddf[40, 16] > 3 * ddf[40 + 20, 16] > 0
    distance = np.linalg.norm((voxels(grid.shape) - (40, 16)) * grid.spacing, axis=-1)
    assert ddf.numpy()[distance >= 20].size > 50
    assert np.abs(ddf.numpy()[distance >= 20]).max() < 1e-5


@pytest.mark.parametrize("dim", [2, 3])
def test_equal_kernel_coefficients_move_by_about_as_many_voxels(dim):
    transform = KernelDisplacement(oblique_grid(dim), control_spacing_mm=6.0)
    transform.coefficients.data += 2.0
    assert largest(inner(transform.ddf(), 0), 2.0) < 0.2


@pytest.mark.parametrize("dim", [2, 3])
def test_kernel_velocity_flows(dim):
    grid = oblique_grid(dim)
    velocity = scatter(KernelDisplacement(grid, control_spacing_mm=9.0))
    flow = KernelDisplacement(grid, control_spacing_mm=9.0, velocity=True, steps=4)
    flow.coefficients.data = velocity.coefficients.detach().clone()
    assert largest(flow.deformations()[0], velocity.ddf()) == 0
    assert largest(flow.ddf(), field.exponential(velocity.ddf(), steps=4)) == 0
    assert largest(flow.inverse().ddf(), field.exponential(-velocity.ddf(), steps=4)) == 0
    assert flow.inverse_residual().max() < 0.1 < flow.ddf().abs().max()


@pytest.mark.parametrize("dim", [2, 3])
def test_kernels_move_exactly_to_a_coarser_grid(dim):
    """The voxels that both grids share must move alike: kernels are evaluated anew, not interpolated."""
    grid = Grid((33, 25, 9)[:dim], oblique(dim))
    transform = scatter(KernelDisplacement(grid, control_spacing_mm=9.0))
    coarse = transform.at(grid.resize([(n + 1) // 2 for n in grid.shape]))
    every_second = transform.ddf()[(slice(None), slice(None), *[slice(None, None, 2)] * dim)]
    assert largest(2 * coarse.ddf(), every_second) < 1e-5


@pytest.mark.parametrize("smoothness", ["C2", "C4", "C6"])
def test_kernels_are_fitted_by_least_squares(smoothness):
    """A field of such kernels is found again; of another field what is left is orthogonal to every kernel."""
    grid = oblique_grid(2)
    empty = KernelDisplacement(grid, control_spacing_mm=9.0, smoothness=smoothness)
    own = scatter(KernelDisplacement(grid, control_spacing_mm=9.0, smoothness=smoothness)).ddf().detach()
    assert empty.fit(own).fit_residual(own).max() < 1e-3
    target = smooth_ddf(grid.shape, largest=2.0, sigma=2.5, seed=4, dtype=torch.float64)
    fitted = empty.fit(target)
    left = (fitted.ddf() - target).detach()
    assert 0.05 < fitted.fit_residual(target).max() < 1.5
    slopes = []
    for rest in (left, target):
        probe = torch.zeros_like(fitted.coefficients, requires_grad=True)
        (empty.with_values(coefficients=probe).ddf() * rest).sum().backward()
        slopes.append(largest(probe.grad))
    assert slopes[0] < 1e-4 * slopes[1]
    assert largest(empty.fit(0 * target).ddf()) == 0


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (2, 3), (1, 1, 4), (5, 1, 2), (3, 3, 3)])
def test_thin_grids_have_lattices_too(shape):
    for model in (FreeFormDeformation, VelocityFreeForm, KernelDisplacement):
        transform = scatter(model(Grid(shape), control_spacing_mm=1.5))
        assert transform.ddf().shape == (1, len(shape), *shape)
        assert transform.ddf().isfinite().all()
        if model is not KernelDisplacement:
            assert largest(transform.subdivide().ddf(), transform.ddf()) < 1e-12


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    spacing_mm=st.floats(0.3, 40.0),
    radius=st.floats(1.0, 3.0),
    smoothness=st.sampled_from(["C2", "C4", "C6"]),
    size=st.sampled_from([0.0, 1e-20, 1.0, 1e6]),
)
def test_kernels_are_finite_and_bounded(shape, spacing_mm, radius, smoothness, size):
    """Whatever the lattice: no kernel exceeds its coefficients, as S counts its neighbors too."""
    transform = KernelDisplacement(
        Grid(shape), control_spacing_mm=spacing_mm, radius=radius, smoothness=smoothness, coefficients=None
    )
    transform.coefficients.data += size
    ddf = transform.ddf()
    assert ddf.isfinite().all()
    assert ddf.abs().max() <= 2 * size + 1e-30


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g: KernelDisplacement(g, control_spacing_mm=-1.0), ("control_spacing_mm", "above 0")),
        (lambda g: KernelDisplacement(g, smoothness="C3"), ("smoothness", '"C2"', '"C3"')),
        (lambda g: KernelDisplacement(g, radius=0.5), ("radius", "at least 1", "0.5")),
        (lambda g: KernelDisplacement(g, coefficients=torch.zeros(1, 2, 1, 1)), ("(1, 2, 1, 1)",)),
        (lambda g: KernelDisplacement(g).at(Grid((5, 5))), ("kernel", "same first and last", "resize")),
        (lambda g: VelocityFreeForm(g).at(g.crop((1, 1), (9, 9))), ("velocity", "same first and last")),
        (lambda g: VelocityFreeForm(g, control_spacing_mm=0), ("control_spacing_mm", "above 0")),
    ],
)
def test_errors_are_one_sentence(call, words, no_jaxtyping):
    with sentence(ValueError, *words):
        call(Grid((16, 13), oblique(2)))
