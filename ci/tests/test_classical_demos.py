"""DeepReg's classical demo and AirLab's examples: their losses, models, levels and iterations, on images with truth.

A step's length is in voxels here, where theirs is in each parameter's own unit; that alone is not as in the original.
AirLab's diffeomorphic B-spline is in chapter 31, its kernels with graph diffusion in chapter 32.
"""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import affine, rotation

from reglib import field, metrics, phantoms
from reglib.grid import Grid, apply_affine
from reglib.losses import diffusion_loss, mse_loss
from reglib.optimize import Level, Options, Term, demons, register
from reglib.transforms import Affine, FreeFormDeformation, KernelDisplacement, Rigid, Similarity, VelocityFreeForm

pytestmark = pytest.mark.usefixtures("no_jaxtyping")


def brain(shape, spacing):
    subject = phantoms.brain_cohort(1, seed=3, shape=shape, spacing=spacing, strength_mm=0.0).subjects[0]
    return subject.image, subject.grid


def about_center(linear, shift_mm, grid):
    """The world matrix with this linear part about the middle of the grid."""
    center, d = np.asarray(grid.center), grid.dim
    return torch.from_numpy(
        affine(np.eye(d), center + shift_mm) @ affine(linear, [0.0] * d) @ affine(np.eye(d), -center)
    )


def corner_errors(found, truth, grid):
    corners = grid.corners()
    return (apply_affine(found.matrix().detach(), corners) - apply_affine(truth, corners)).norm(dim=-1)


def adam(lr, **how):
    return Options(lr=lr, optimizer=partial(torch.optim.Adam, **how), progress=False)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_deepregs_head_and_neck(seed):
    """classical_ct_headneck_affine: the image under a random affine map of scale 0.2, mse, Adam, 1000 iterations."""
    fixed, grid = brain((48, 56, 48), 4.0)
    rng = np.random.default_rng(seed)
    truth = about_center(np.eye(3) + 0.2 * rng.uniform(-0.5, 0.5, (3, 3)), 0.1 * rng.uniform(-100, 100, 3), grid)
    moving = field.warp(fixed, field.affine_ddf(torch.linalg.inv(truth), grid), padding="zeros")
    result = register(fixed, moving, Affine(grid), similarity=mse_loss, levels=(1,), steps=(1000,), options=adam(0.1))
    assert corner_errors(Affine(grid), truth, grid).mean() > 10
    assert corner_errors(result.transform, truth, grid).mean() < 1


@pytest.mark.parametrize(
    ("model", "shape", "spacing", "steps"),
    [(Similarity, (128, 144), 1.5, 1000), (Rigid, (48, 56, 48), 4.0, 500)],
    ids=["affine_registration_2d", "affine_registration_3d"],
)
def test_airlabs_linear_examples(model, shape, spacing, steps):
    """A similarity by mse and amsgrad, a rigid map by mse and Adam."""
    fixed, grid = brain(shape, spacing)
    scale = 1.1 if model is Similarity else 1.0
    angles = 12.0 if grid.dim == 2 else (8.0, -6.0, 10.0)
    truth = about_center(scale * rotation(angles), np.array([9.0, -7.0, 6.0])[: grid.dim], grid)
    moving = field.warp(fixed, field.affine_ddf(torch.linalg.inv(truth), grid), padding="zeros")
    options = adam(0.1, amsgrad=model is Similarity)
    result = register(fixed, moving, model(grid), similarity=mse_loss, levels=(1,), steps=(steps,), options=options)
    assert corner_errors(model(grid), truth, grid).mean() > 10
    assert corner_errors(result.transform, truth, grid).mean() < 0.5


def test_airlabs_demons():
    """demons_registration_2d: a disc becomes a C on 256 x 256, gaussian of 2 voxels, 1000 iterations, no folds.

    In four levels: at one alone the pushes have reached a Dice of 0.7 by then, here as in any demons.
    """
    c, disc = (shape((256, 256)) for shape in (phantoms.cshape, phantoms.circle))
    found = demons(c, disc, Grid((256, 256)), smoothing=2.0, levels=(8, 4, 2, 1), steps=(250,) * 4)
    before, after = (float(metrics.dice((x > 0.5).long(), c.long())[1]) for x in (disc, found.warped))
    assert before < 0.6
    assert after > 0.94
    assert field.jacobian_determinant(found.ddf).min() > 0


@pytest.mark.parametrize("model", [FreeFormDeformation, VelocityFreeForm])
def test_airlabs_b_splines(model):
    """bspline_registration_2d: three levels with weights of their own, Adam; on two brains whose map is known."""
    pair = phantoms.brain_cohort(2, seed=1, shape=(96, 112), spacing=2.0, noise=0.01, bias=0.0, contrast=0.0).pair(0, 1)
    truth, grid = pair.truth, pair.fixed_grid
    levels = [Level(f, 500, regularizer=diffusion_loss, weight=w) for f, w in ((4, 1e-3), (2, 1e-3), (1, 1e-3))]
    transform = model(grid, control_spacing_mm=14.0)
    result = register(pair.fixed, pair.moving, transform, similarity=mse_loss, levels=levels, options=adam(0.05))
    errors = [
        metrics.tre(u, truth.fixed_points, truth.moving_points, fixed_grid=grid).mean()
        for u in (0 * result.ddf, result.ddf)
    ]
    assert errors[1] < 0.25 * errors[0]


def test_airlabs_kernels():
    """kernel_registration_3d: four levels of 300 to 50 iterations, stiffer as they get finer, amsgrad."""
    pair = phantoms.brain_cohort(2, seed=1, shape=(48, 56, 48), spacing=4.0, noise=0.01, bias=0.0, contrast=0.0).pair(
        0, 1
    )
    truth, grid = pair.truth, pair.fixed_grid
    plan = ((4, 200, 1e-4), (2, 100, 3e-4), (1, 50, 1e-3))  # of 48 voxels, the eighth is left out
    result = register(
        pair.fixed,
        pair.moving,
        KernelDisplacement(grid, control_spacing_mm=16.0),
        similarity=mse_loss,
        regularizer=Term(diffusion_loss),
        levels=[Level(factor, steps, weight=weight) for factor, steps, weight in plan],
        options=adam(0.05, amsgrad=True),
    )
    errors = [
        metrics.tre(u, truth.fixed_points, truth.moving_points, fixed_grid=grid).mean()
        for u in (0 * result.ddf, result.ddf)
    ]
    assert errors[1] < 0.4 * errors[0]
