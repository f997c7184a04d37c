"""Exponential, logarithm and the algebra of velocities, against Runge-Kutta, matrix functions and each other."""

import math

import numpy as np
import pytest
import torch
from helpers import SHAPES, SPACINGS, inner, largest, sentence, smooth_ddf, smooth_image, voxels
from scipy.integrate import solve_ivp
from scipy.linalg import expm, logm
from scipy.ndimage import map_coordinates
from torch.autograd import gradcheck

from reglib import field
from reglib.grid import GridMismatchError

SIZES = [(48, 39), (27, 36, 31)]


def faded(shape, largest_voxels, *, seed=0, sigma=5.0):
    """A smooth velocity that is zero on the faces, where flows would leave the grid."""
    fade = np.prod(np.sin(np.pi * voxels(shape) / (np.array(shape) - 1)), axis=-1)
    velocity = smooth_ddf(shape, largest=1.0, sigma=sigma, seed=seed, dtype=torch.float64) * torch.from_numpy(fade)
    return (velocity * (largest_voxels / velocity.norm(dim=1).max())).float()


def linear_field(matrix, shape):
    """(1, d, *s) the field M (x - center)."""
    x = voxels(shape) - (np.array(shape) - 1) / 2
    return torch.from_numpy(np.moveaxis(x @ np.asarray(matrix).T, -1, 0)[None]).float()


def mean(ddf):
    return float(ddf.norm(dim=1).mean())


# -- exponential -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SIZES)
def test_the_flow_follows_its_velocity(shape):
    """Points followed by an adaptive integrator through the linearly interpolated velocity."""
    velocity = faded(shape, 4.0)
    components = velocity[0].double().numpy()
    starts = np.random.default_rng(0).uniform(6, np.array(shape) - 7, (40, len(shape))).round()

    def speed(_, x):
        points = x.reshape(len(shape), -1)
        return np.stack([map_coordinates(c, points, order=1, mode="nearest") for c in components]).ravel()

    ends = solve_ivp(speed, (0, 1), starts.T.ravel(), rtol=1e-6, atol=1e-6).y[:, -1].reshape(len(shape), -1)
    moved = field.exponential(velocity)[0][(slice(None), *starts.T.astype(int))].numpy()
    error = np.linalg.norm(starts.T + moved - ends, axis=0)
    assert np.linalg.norm(moved, axis=0).max() > 2
    assert error.max() < 0.06
    assert error.mean() < 0.02


def test_a_midpoint_start_does_with_three_squarings_what_euler_does_with_seven():
    velocity = faded((48, 44, 40), 8.0, sigma=6.0)
    exact = field.exponential(velocity, steps=10, start="euler")
    off = {(start, n): mean(field.exponential(velocity, steps=n, start=start) - exact)
           for start, n in (("euler", 3), ("euler", 7), ("midpoint", 3))}  # fmt: skip
    assert off["midpoint", 3] < off["euler", 7] < 0.1 * off["euler", 3]


def test_there_and_back_on_a_strong_field():
    """Twelve voxels in 64 cubed."""
    velocity = faded((64, 64, 64), 12.0, sigma=8.0)
    there, back = field.exponential(velocity), field.exponential(-velocity)
    assert there.norm(dim=1).max() > 8
    for both in (field.compose(there, back), field.compose(back, there)):
        assert mean(both) < 0.05
    assert field.jacobian_determinant(there).min() > 0


def test_default_steps_keep_a_rough_velocity_from_folding():
    """Noise is no smooth velocity, but its flow by too few squarings would fold far more often."""
    rough = smooth_ddf((32, 29), largest=6.0, sigma=1.5)
    folds = {n: int((field.jacobian_determinant(field.exponential(rough, steps=n)) <= 0).sum()) for n in (0, None)}
    assert folds[0] > 20
    assert folds[None] == 0


@pytest.mark.parametrize("shape", [(5, 4), (4, 5, 3)])
@pytest.mark.parametrize("start", ["midpoint", "euler"])
def test_exponential_has_exact_gradients(shape, start):
    velocity = smooth_ddf(shape, largest=0.7, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda v: field.exponential(v, steps=2, start=start), (velocity,))


@pytest.mark.parametrize("dim", [2, 3])
def test_a_velocity_at_half_resolution_keeps_its_flow(dim):
    """VoxelMorph's half-resolution integration: values are halved going down and doubled going up."""
    shape = {2: (49, 37), 3: (25, 33, 21)}[dim]
    half = [(n + 1) // 2 for n in shape]
    velocity = faded(shape, 4.0, sigma=6.0)
    assert largest(field.resize_ddf(torch.ones(1, dim, *shape), half), torch.full((1, dim, *half), 0.5)) < 1e-6
    small = field.exponential(field.resize_ddf(velocity, half))
    back = field.resize_ddf(small, shape)
    full = field.exponential(velocity)
    assert mean(back - full) < {2: 0.05, 3: 0.1}[dim] * mean(full)
    assert torch.equal(back, field.resize_ddf(field.exponential(velocity, shape=half), shape))


def test_start_and_steps_are_checked(no_jaxtyping):
    with sentence(ValueError, "start", "midpoint", "heun"):
        field.exponential(torch.zeros(1, 2, 4, 5), start="heun")
    with sentence(ValueError, "steps", "-1"):
        field.exponential(torch.zeros(1, 2, 4, 5), steps=-1)


# -- logarithm ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SIZES)
def test_the_logarithm_undoes_the_exponential(shape):
    velocity = faded(shape, 4.0, sigma=6.0)
    found = field.logarithm(field.exponential(velocity))
    assert mean(found - velocity) < 0.02 * mean(velocity)
    assert mean(field.exponential(velocity) - velocity) > 0.05 * mean(velocity)  # so that it had something to do


def test_the_logarithm_on_a_strong_field():
    velocity = faded((64, 64, 64), 12.0, sigma=8.0)
    assert mean(field.logarithm(field.exponential(velocity)) - velocity) < 0.02 * mean(velocity)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_logarithm_of_a_linear_map_is_the_matrix_logarithm(dim):
    shape = {2: (32, 27), 3: (18, 23, 20)}[dim]
    matrix = np.eye(dim) + {2: [[0.1, -0.3], [0.25, -0.05]], 3: [[0.1, -0.2, 0], [0.2, 0, 0.1], [0.05, -0.1, 0]]}[dim]
    found = field.logarithm(linear_field(matrix - np.eye(dim), shape))
    expected = linear_field(logm(matrix).real, shape)
    margin = min(shape) // 4
    assert largest(inner(found, margin), inner(expected, margin)) < 0.03 * largest(inner(expected, margin))


def test_the_logarithm_of_a_folded_map_is_finite_and_does_not_return_it():
    folded = smooth_ddf((32, 29), largest=8.0, sigma=2.0)
    assert (field.jacobian_determinant(folded) <= 0).any()
    velocity = field.logarithm(folded)
    assert velocity.isfinite().all()
    assert mean(field.exponential(velocity) - folded) > 0.1


def test_zero_has_logarithm_zero():
    zero = torch.zeros(2, 3, 5, 6, 4)
    assert torch.equal(field.logarithm(zero), zero)


# -- brackets ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
def test_the_bracket_of_linear_velocities_is_the_commutator(dim):
    a, b = np.random.default_rng(0).standard_normal((2, dim, dim))
    shape = SHAPES[dim]
    found = field.lie_bracket(linear_field(a, shape), linear_field(b, shape))
    assert largest(found, linear_field(a @ b - b @ a, shape)) < 1e-3


@pytest.mark.parametrize("shape", SIZES)
def test_the_bracket_is_antisymmetric_and_obeys_jacobi(shape):
    u, v, w = (faded(shape, 1.0, seed=s, sigma=6.0).double() for s in range(3))
    bracket = field.lie_bracket
    assert largest(bracket(u, v), -bracket(v, u)) < 1e-12
    assert largest(bracket(u, 3 * u)) < 1e-12
    cycle = bracket(u, bracket(v, w)) + bracket(v, bracket(w, u)) + bracket(w, bracket(u, v))
    assert mean(inner(cycle, 4)) < 0.1 * mean(inner(bracket(u, bracket(v, w)), 4))  # exact but for discretization


@pytest.mark.parametrize("shape", SIZES)
def test_every_order_of_the_series_comes_closer_to_the_composed_flow(shape):
    v, w = (faded(shape, 3.0, seed=s, sigma=6.0) for s in (1, 2))
    exact = field.compose(field.exponential(v), field.exponential(w))
    off = [mean(field.exponential(field.compose_velocities(v, w, order=order)) - exact) for order in (1, 2, 3)]
    assert off[1] < 0.5 * off[0]
    assert off[2] < off[1]


def test_the_series_of_linear_velocities_follows_the_matrices():
    a, b = 0.15 * np.random.default_rng(1).standard_normal((2, 2, 2))
    shape = SHAPES[2]
    exact = linear_field(logm(expm(a) @ expm(b)).real, shape)
    off = [largest(field.compose_velocities(linear_field(a, shape), linear_field(b, shape), order=n), exact)
           for n in (1, 2, 3)]  # fmt: skip
    assert off[2] < 0.2 * off[1] < 0.2 * off[0]


def test_velocities_must_share_a_grid_and_an_order_exists(no_jaxtyping):
    v, w = torch.zeros(1, 2, 5, 6), torch.zeros(1, 2, 6, 5)
    with sentence(GridMismatchError, "share one grid", "(1, 2, 5, 6)", "(1, 2, 6, 5)"):
        field.compose_velocities(v, w, order=1)
    with sentence(GridMismatchError, "share one grid"):
        field.lie_bracket(v, w)
    with sentence(ValueError, "order must be 1, 2 or 3", "4"):
        field.compose_velocities(v, v, order=4)


# -- curl and divergence -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
def test_curl_and_divergence_of_a_linear_field(dim):
    m, shape, h = np.random.default_rng(2).standard_normal((dim, dim)), SHAPES[dim], SPACINGS[dim]
    ddf = linear_field(m, shape)
    assert largest(field.divergence(ddf), torch.tensor(np.trace(m))) < 1e-4
    mm = m * np.array(h)[:, None] / np.array(h)[None]
    for spacing, slopes in ((None, m), (h, mm)):
        spin = slopes - slopes.T
        expected = [spin[1, 0]] if dim == 2 else [spin[2, 1], spin[0, 2], spin[1, 0]]
        found = field.curl(ddf, spacing=spacing)
        assert found.shape == (1, len(expected), *shape)
        assert largest(found, torch.tensor(expected).reshape(1, -1, *[1] * dim)) < 1e-4


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("spaced", [False, True])
def test_the_curl_of_a_potential_neither_spreads_nor_changes_volume(dim, spaced):
    shape = {2: (40, 33), 3: (24, 27, 22)}[dim]
    potential = smooth_image(shape, channels=1 if dim == 2 else 3, sigma=4.0)
    velocity = field.divergence_free(potential, spacing=SPACINGS[dim] if spaced else None)
    velocity = velocity * (2.0 / velocity.norm(dim=1).max())
    assert field.divergence(velocity).abs().max() < 1e-5
    volume = inner(field.jacobian_determinant(field.exponential(velocity)), 6)
    assert field.exponential(velocity).norm(dim=1).max() > 1.5
    assert (volume - 1).abs().mean() < 0.02
    assert mean(field.curl(velocity)) > 0.01


def test_a_potential_has_the_right_channels(no_jaxtyping):
    with sentence(ValueError, "potential must have 3 channels", "(1, 1, 4, 5, 6)"):
        field.divergence_free(torch.zeros(1, 1, 4, 5, 6))
    for verb in (field.curl, field.divergence):
        with sentence(ValueError, "spacing must be above 0 mm"):
            verb(torch.zeros(1, 2, 4, 5), spacing=-1.0)


def test_a_velocity_that_diverged_is_refused():
    velocity = torch.full((1, 3, 4, 5, 6), math.nan)
    with sentence(ValueError, "velocity must be finite"):
        field.exponential(velocity)


# -- reading on several cores --------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", [(70, 61), (17, 19, 23)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_threads_change_neither_a_warp_nor_its_gradient(threads, shape, mode, padding):
    image, ddf = smooth_image(shape, channels=2), smooth_ddf(shape, largest=3.0)
    results = []
    before = torch.get_num_threads()
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            moving, moved = image.clone().requires_grad_(), ddf.clone().requires_grad_()
            warped = field.warp(moving, moved, mode=mode, padding=padding)
            (warped * smooth_image(shape, seed=5)).sum().backward()
            results.append((warped.detach(), moving.grad, moved.grad))
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(many, one, atol=2e-5, rtol=1e-5)
    assert largest(results[0][1]) > 0.1


# -- mending folds -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(48, 40), (24, 26, 22)])
def test_unfold_mends_a_fold_and_leaves_the_rest(shape):
    smooth = smooth_ddf(shape, largest=2.0, sigma=6.0)
    torn = smooth.clone()
    middle = tuple(slice(n // 2 - 1, n // 2 + 1) for n in shape)
    torn[(slice(None), slice(None), *middle)] += 4.0
    assert (field.jacobian_determinant(torn) <= 0).any()
    mended, left = field.unfold(torn)
    assert left == 0
    assert field.jacobian_determinant(mended).min() >= 0.01
    far = torch.ones(shape, dtype=torch.bool)
    far[tuple(slice(max(0, n // 2 - 10), n // 2 + 10) for n in shape)] = False
    assert torch.equal(mended[:, :, far], torn[:, :, far])


def test_unfold_returns_a_fair_field_untouched_and_counts_what_it_cannot_mend():
    fair = smooth_ddf((32, 30), largest=2.0)
    assert torch.equal(field.unfold(fair)[0], fair)
    mirror = torch.zeros(1, 2, 32, 30)
    mirror[:, 0] = -2.0 * torch.arange(32.0)[:, None]
    _, left = field.unfold(mirror, iterations=3)
    assert left > 0


def test_an_inverse_takes_the_step_that_suits_each_voxel():
    """A stretch to four times along one axis: fixed steps of 1 and of 0.5 run away from it."""
    ddf = linear_field([[3.0, 0.0], [0.0, -0.4]], (33, 25))
    expected = linear_field([[-0.75, 0.0], [0.0, 2 / 3]], (33, 25))
    found = field.inverse(ddf)
    assert float(found.residual.max()) < 2e-3
    middle = (slice(None), slice(None), slice(None), slice(9, 16))  # beyond, the inverse leads out of the grid
    assert largest(found.ddf[middle] - expected[middle]) < 1e-2
    for step in (1.0, 0.5):
        assert float(field.inverse(ddf, step=step).residual[middle].max()) > 1


def test_an_inverse_of_a_field_that_is_laid_out_otherwise():
    """A permuted field, as a picture's axes are, is inverted as its copy is."""
    ddf = smooth_ddf((14, 12), largest=1.5).permute(0, 1, 3, 2)
    assert not ddf.is_contiguous()
    found = field.inverse(ddf)
    assert torch.equal(found.ddf, field.inverse(ddf.contiguous()).ddf)
    assert largest(found.residual) < 1e-2
