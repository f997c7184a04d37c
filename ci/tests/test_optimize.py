"""Registration of images drawn by a formula, so that the true map is known to the last digit."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import affine, apply, inner, largest, oblique, rotation, sentence, smooth_image, voxels
from scipy.ndimage import gaussian_filter

from reglib import field, filters
from reglib.grid import Grid, GridMismatchError
from reglib.losses import bending_loss, diffusion_loss, lncc_loss, mi_loss, mse_loss, ncc_loss
from reglib.optimize import (
    Landmarks,
    Lbfgs,
    Level,
    Momentum,
    Options,
    Term,
    align,
    align_moments,
    register,
)
from reglib.optimize.levels import Images, Scene
from reglib.phantoms import circle, cshape
from reglib.transforms import (
    Affine,
    DenseDisplacement,
    Diffeomorphism,
    FreeFormDeformation,
    Rigid,
    Sequential,
    Similarity,
    StationaryVelocity,
    SymmetricDiffeomorphism,
    Translation,
)

SHAPES = {2: (64, 56), 3: (28, 32, 24)}
SPACING = {2: (0.8, 1.1), 3: (0.8, 1.0, 1.3)}
SIZE_MM = {2: 3.0, 3: 3.6}
QUIET = Options(progress=False)
# Checking the types of ten thousand calls takes five times as long as the calls; small_run() below checks them.
long_run = pytest.mark.usefixtures("no_jaxtyping")


def fixed_grid(dim):
    return Grid(SHAPES[dim], oblique(dim, spacing=SPACING[dim]))


def scene(grid, *, seed=0):
    """A picture as a function of world points: blobs of about five voxels, all over and around the grid."""
    rng, d = np.random.default_rng(seed), grid.dim
    n = np.array(grid.shape)
    count = {2: 160, 3: 260}[d]
    centers = apply(grid.world_from_voxel.numpy(), rng.uniform(-0.2 * n, 1.2 * n, (count, d)))
    widths, heights = rng.uniform(2.0, 4.0, count), rng.uniform(0.3, 1.0, count)

    def picture(points):
        flat = points.reshape(-1, d)
        square = (flat**2).sum(1)[:, None] + (centers**2).sum(1) - 2 * flat @ centers.T
        return (np.exp(-square / (2 * widths**2)) @ heights).reshape(points.shape[:-1])

    return picture


def waves(grid, size_mm):
    """A smooth displacement of world points, mm, about `size_mm` long on average."""
    d, n, s = grid.dim, np.array(grid.shape), np.array(grid.spacing)
    inverse = np.linalg.inv(grid.world_from_voxel.numpy())

    def displacement(points):
        t = np.pi * apply(inverse, points) / (n - 1)
        parts = [np.cos(1.1 * t[..., k] + 0.4 * k) * np.cos(0.9 * t[..., (k + 1) % d] - 0.5) for k in range(d)]
        return 1.45 * size_mm / math.sqrt(d) * np.stack(parts, axis=-1) * s / s.mean()

    return displacement


def draw(picture, grid, displacement=None):
    """(1, 1, *s) the picture at x + u(x) for every voxel center x."""
    x = apply(grid.world_from_voxel.numpy(), voxels(grid.shape))
    moved = x if displacement is None else x + displacement(x)
    return torch.from_numpy(picture(moved)).float()[None, None]


def true_ddf(grid, displacement):
    """(1, d, *s) voxels of the grid."""
    x = apply(grid.world_from_voxel.numpy(), voxels(grid.shape))
    moves = displacement(x) @ np.linalg.inv(grid.world_from_voxel.numpy()[:-1, :-1]).T
    return torch.from_numpy(np.moveaxis(moves, -1, 0)[None])


def error(ddf, truth, margin=4):
    """Mean distance from the truth in voxels, away from the border."""
    return float(inner(ddf.detach().double() - truth, margin).norm(dim=1).mean())


def curved_pair(dim, *, moving_grid=None, seed=0):
    """Fixed, moving and the true ddf between them."""
    grid = fixed_grid(dim)
    picture, move = scene(grid, seed=seed), waves(grid, SIZE_MM[dim])
    return draw(picture, grid, move), draw(picture, moving_grid or grid), true_ddf(grid, move)


MODELS = {
    "velocity": StationaryVelocity,
    "free form": lambda grid: FreeFormDeformation(grid, control_spacing_mm=5.5),
    "dense": DenseDisplacement,
    "composed": Diffeomorphism,
    "symmetric": SymmetricDiffeomorphism,
}


# -- accuracy --------------------------------------------------------------------
@long_run
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dim", [2, 3])
def test_register_finds_a_known_deformation(dim, model):
    fixed, moving, truth = curved_pair(dim)
    result = register(
        fixed,
        moving,
        MODELS[model](fixed_grid(dim)),
        similarity=lncc_loss,
        regularizer=bending_loss,
        weight=0.1,
        options=QUIET,
    )
    assert error(0 * truth, truth) > 2
    assert error(result.ddf, truth) < 0.5
    if model in ("velocity", "composed", "symmetric"):
        assert field.jacobian_determinant(result.ddf).min() > 0


@long_run
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("similarity", [partial(lncc_loss, window=5, flat=0.02), mse_loss])
def test_a_symmetric_registration_does_not_care_which_image_is_fixed(similarity, times):
    """There and back ends where it began; without a middle it ends elsewhere, also under a loss like this lncc."""
    fixed, moving, truth = curved_pair(2)
    arguments = {"similarity": similarity, "regularizer": bending_loss, "weight": 0.1, "levels": (4, 2)}
    apart = {}
    for model in (SymmetricDiffeomorphism, Diffeomorphism):
        there, back = (
            register(first, second, model(fixed_grid(2)), options=replace(QUIET, oversampling=times), **arguments)
            for first, second in ((fixed, moving), (moving, fixed))
        )
        apart[model] = largest(inner(field.compose(there.ddf, back.ddf), 8))
        assert error(there.ddf, truth) < 1
    assert apart[SymmetricDiffeomorphism] < 0.1
    assert apart[Diffeomorphism] > 3 * apart[SymmetricDiffeomorphism]


@long_run
@pytest.mark.parametrize("dim", [2, 3])
def test_finer_copies_leave_less_of_the_blur_between_voxels(dim):
    """Fine grain, moved: linear interpolation blurs it by how far between two voxels it is read, splines hardly."""
    grid, rng = fixed_grid(dim), np.random.default_rng(4)
    grain = torch.from_numpy(gaussian_filter(rng.standard_normal(grid.shape), 0.8)).float()[None, None]
    truth = true_ddf(grid, waves(grid, 0.8 * SIZE_MM[dim]))
    moved = field.warp(grain, field.inverse(truth).ddf, mode="cubic")
    fixed = field.warp(moved, truth, mode="cubic")
    errors = [
        error(
            register(
                fixed,
                moved,
                StationaryVelocity(grid),
                similarity=lncc_loss,
                regularizer=bending_loss,
                weight=0.1,
                options=replace(QUIET, oversampling=times),
            ).ddf,
            truth,
        )
        for times in (1, 2)
    ]
    assert errors[1] < 0.8 * errors[0] < 0.3, errors


@long_run
@pytest.mark.parametrize("model", MODELS)
def test_stopping_at_a_coarse_level_still_gives_the_field_on_the_fixed_grid(model):
    fixed, moving, truth = curved_pair(2)
    transform = MODELS[model](fixed_grid(2))
    arguments = {"similarity": mse_loss, "regularizer": bending_loss, "weight": 0.1, "options": QUIET}
    result = register(fixed, moving, transform, levels=(4, 2), steps=(100, 60), **arguments)
    assert error(result.ddf, truth) < 0.5
    assert largest(result.warped, field.warp(moving, result.ddf, padding="zeros")) < 1e-6


@long_run
@pytest.mark.parametrize("similarity", [mse_loss, ncc_loss, mi_loss])
def test_every_similarity_finds_it(similarity):
    fixed, moving, truth = curved_pair(2)
    result = register(
        fixed,
        moving,
        StationaryVelocity(fixed_grid(2)),
        similarity=similarity,
        regularizer=bending_loss,
        weight=1.0 if similarity is mi_loss else 0.1,
        steps=(60, 40, 15),
        options=QUIET,
    )
    assert error(0 * truth, truth) > 2
    assert error(result.ddf, truth) < 0.5


@long_run
@pytest.mark.parametrize("dim", [2, 3])
def test_moving_image_on_another_grid(dim):
    """Other shape, spacing, axis order and rotation: only the world connects the two."""
    grid = fixed_grid(dim)
    shape = {2: (60, 96), 3: (44, 34, 40)}[dim]
    header = oblique(
        dim, angles={2: (-31.0,), 3: (-8.0, 15.0, 12.0)}[dim], spacing=(1.2, 0.7, 0.9)[:dim], flips=(-1, 1, -1)[:dim]
    )
    header[:-1, -1] += np.array(grid.center) - apply(header, (np.array(shape) - 1) / 2)
    moving_grid = Grid(shape, header)
    fixed, moving, truth = curved_pair(dim, moving_grid=moving_grid)
    result = register(
        fixed,
        moving,
        StationaryVelocity(grid),
        similarity=lncc_loss,
        regularizer=bending_loss,
        weight=0.1,
        steps=(80, 40, 15),
        moving_grid=moving_grid,
        options=QUIET,
    )
    assert error(0 * truth, truth) > 2
    assert error(result.ddf, truth, margin=5) < 0.5
    expected = field.warp(moving, result.ddf, padding="zeros", moving_grid=moving_grid, fixed_grid=grid)
    assert largest(result.warped, expected) < 1e-6


@long_run
@pytest.mark.parametrize(("model", "kind"), [(Translation, 0), (Rigid, 1), (Similarity, 2), (Affine, 3)])
@pytest.mark.parametrize("dim", [2, 3])
def test_linear_models_find_their_matrix(dim, model, kind):
    grid = fixed_grid(dim)
    linear = np.eye(dim)
    if kind > 0:
        linear = rotation({2: (7.0,), 3: (4.0, -5.0, 6.0)}[dim])
    if kind == 2:
        linear = linear * 1.08
    if kind == 3:
        linear = linear @ np.diag((1.1, 0.93, 1.05)[:dim]) @ (np.eye(dim) + np.triu(np.full((dim, dim), 0.06), 1))
    center = np.array(grid.center)
    truth = affine(linear, center - linear @ center + np.array((1.6, -1.9, 1.2)[:dim]))
    picture = scene(grid, seed=3)
    fixed, moving = draw(picture, grid, lambda x: apply(truth, x) - x), draw(picture, grid)
    result = register(
        fixed, moving, model(grid), similarity=ncc_loss, levels=(4, 2, 1), steps=(80, 40, 25), options=QUIET
    )
    expected = true_ddf(grid, lambda x: apply(truth, x) - x)
    assert error(0 * expected, expected) > 2
    assert error(result.ddf, expected) < 0.3
    np.testing.assert_allclose(result.transform.matrix().detach().numpy()[:-1, :-1], linear, atol=0.03)


@long_run
def test_affine_and_velocity_are_fitted_together():
    grid = fixed_grid(2)
    picture, bend = scene(grid), waves(grid, 1.6)
    turn = rotation((9.0,))
    center = np.array(grid.center)
    matrix = affine(turn, center - turn @ center + np.array((2.0, -1.5)))

    def move(x):
        return apply(matrix, x + bend(x)) - x

    fixed, moving, truth = draw(picture, grid, move), draw(picture, grid), true_ddf(grid, move)
    result = register(
        fixed,
        moving,
        Sequential(Affine(grid), StationaryVelocity(grid)),
        similarity=lncc_loss,
        regularizer=bending_loss,
        weight=0.05,
        options=QUIET,
    )
    assert error(0 * truth, truth) > 2
    assert error(result.ddf, truth) < 0.5


@long_run
@pytest.mark.parametrize("model", [*MODELS, "affine"])
def test_no_motion_is_left_alone(model):
    """The loss starts at its least: an optimizer that walks on regardless invents a deformation."""
    grid = fixed_grid(2)
    image = draw(scene(grid), grid)
    transform = MODELS[model](grid) if model in MODELS else Affine(grid)
    result = register(image, image, transform, similarity=lncc_loss, regularizer=bending_loss, options=QUIET)
    assert result.ddf.detach().norm(dim=1).mean() < 0.05
    assert result.ddf.detach().norm(dim=1).max() < 0.5


# -- masks and fields of view ----------------------------------------------------
@long_run
@pytest.mark.parametrize("levels", [(1,), (4, 2, 1)], ids=["one level", "pyramid"])
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_mask_excludes_a_planted_artefact(side, levels):
    """A bright bar that only one image has: masked out, the result is as good as without it.

    In a pyramid the coarse images must not have smeared it over the edge of the mask.
    """
    fixed, moving, truth = curved_pair(2)
    bar = torch.zeros(1, 1, *SHAPES[2])
    bar[:, :, 22:34, 12:44] = 1
    grown = torch.nn.functional.max_pool2d(bar, 7, stride=1, padding=3)
    planted = {"fixed": fixed, "moving": moving}
    planted[side] = planted[side] * (1 - bar) + 6 * bar
    arguments = {"similarity": mse_loss, "regularizer": bending_loss, "weight": 1.0}
    if len(levels) == 1:
        arguments = {"similarity": lncc_loss, "regularizer": bending_loss, "weight": 0.2}

    def run(**masks):
        model = StationaryVelocity(fixed_grid(2))
        steps = {1: (150,), 3: (100, 50, 20)}[len(levels)]
        arguments.update(masks, levels=levels, steps=steps, options=QUIET)
        return error(register(planted["fixed"], planted["moving"], model, **arguments).ddf, truth)

    without = run()
    with_mask = run(**{f"{side}_mask": 1 - grown})
    assert with_mask < 0.5
    assert without > 1.5 * with_mask


@long_run
def test_a_cut_field_of_view_does_not_pull():
    """Half of the moving image is missing: what lies outside must not count as a match or a mismatch."""
    grid = fixed_grid(2)
    moving_grid = grid.crop((0, 0), (40, 56))
    fixed, moving, truth = curved_pair(2, moving_grid=moving_grid)
    result = register(
        fixed,
        moving,
        StationaryVelocity(grid),
        similarity=mse_loss,
        regularizer=bending_loss,
        weight=0.05,
        moving_grid=moving_grid,
        options=QUIET,
    )
    seen = field.valid_mask(truth.float(), moving_grid=moving_grid, fixed_grid=grid)
    seen[:, :, 30:] = False
    gap = (result.ddf.detach().double() - truth).norm(dim=1, keepdim=True)
    assert float(truth.norm(dim=1, keepdim=True)[seen].mean()) > 2
    assert float(gap[seen].mean()) < 0.7


# -- the record ------------------------------------------------------------------
SMALL = Grid((24, 20), oblique(2, spacing=SPACING[2]))


def small_run(transform=None, **changes):
    grid = SMALL
    picture = scene(grid)
    arguments = {
        "similarity": mse_loss,
        "regularizer": diffusion_loss,
        "weight": 0.3,
        "levels": (2, 1),
        "steps": (6, 4),
        "options": QUIET,
    }
    arguments |= changes
    return register(
        draw(picture, grid, waves(grid, 1.5)), draw(picture, grid), transform or StationaryVelocity(grid), **arguments
    )


def test_history_records_every_step_and_term():
    history = small_run().history
    assert [(r["level"], r["step"]) for r in history] == [(2, k) for k in range(6)] + [(1, k) for k in range(4)]
    for record in history:
        assert set(record) == {"level", "step", "loss", "similarity", "regularizer"}
        assert abs(record["loss"] - record["similarity"] - 0.3 * record["regularizer"]) < 1e-6
    assert history[0]["regularizer"] == 0
    assert history[-1]["regularizer"] > 0
    assert history[5]["similarity"] < history[0]["similarity"]


def test_first_record_is_the_similarity_of_the_untouched_images():
    grid = SMALL
    picture = scene(grid)
    fixed, moving = draw(picture, grid, waves(grid, 1.5)), draw(picture, grid)
    first = small_run(levels=(1,), steps=(1,)).history[0]
    assert abs(first["similarity"] - float(((fixed - moving) ** 2).mean())) < 1e-6


def test_without_regularizer_the_loss_is_the_similarity():
    assert all(r["loss"] == r["similarity"] and r["regularizer"] == 0 for r in small_run(regularizer=None).history)


def test_a_level_ends_early_when_nothing_improves():
    impatient = Options(progress=False, tolerance=0.9, patience=3)
    history = small_run(steps=(40, 30), options=impatient).history
    counts = [sum(r["level"] == level for r in history) for level in (2, 1)]
    assert counts == [6, 6]  # twice the patience, then the comparison
    assert len(small_run(steps=(40, 30), options=Options(progress=False, tolerance=-math.inf)).history) == 70


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_steps_shrink_evenly_by_their_decay(decay):
    """On a ramp the gradient is the same everywhere, so that the loss tells how long each step was."""
    grid = Grid((64, 16))
    ramp = (torch.arange(64.0)[:, None] * torch.ones(16))[None, None]
    history = register(
        ramp,
        ramp,
        Translation(grid),
        similarity=lambda warped, fixed, mask=None: warped[:, :, 16:48].mean(),
        levels=(1,),
        steps=(20,),
        options=Options(progress=False, decay=decay, tolerance=-math.inf),
    ).history
    lengths = -np.diff([record["loss"] for record in history])
    np.testing.assert_allclose(lengths / lengths[0], 1 - decay * np.arange(19) / 20, atol=1e-3)


@pytest.mark.parametrize("oversampling", [0, -2])
def test_oversampling_is_at_least_one(oversampling):
    with pytest.raises(ValueError, match="oversampling") as raised:
        Options(oversampling=oversampling)
    sentence(raised, "oversampling", str(oversampling))


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_decay_is_a_share(decay):
    with pytest.raises(ValueError, match="decay") as raised:
        Options(decay=decay)
    sentence(raised, "decay", str(decay))


def test_the_best_state_of_a_level_is_kept():
    """A rate far too high: the loss jumps about, and the result is no worse than where it began."""
    wild = Options(progress=False, lr=20.0, tolerance=-math.inf)
    result = small_run(DenseDisplacement(SMALL), levels=(1,), steps=(12,), options=wild)
    losses = [r["loss"] for r in result.history]
    assert max(losses) > 2 * losses[0]
    found = mse_loss(field.warp(draw(scene(SMALL), SMALL), result.ddf), draw(scene(SMALL), SMALL, waves(SMALL, 1.5)))
    assert float(found + 0.3 * diffusion_loss(result.ddf, spacing=SMALL.spacing)) <= min(losses) + 1e-6


@long_run
def test_the_given_transform_is_not_changed():
    grid = SMALL
    for transform in (
        StationaryVelocity(grid),
        DenseDisplacement(grid),
        FreeFormDeformation(grid, control_spacing_mm=6.0),
        Affine(grid),
        Sequential(Rigid(grid), StationaryVelocity(grid)),
    ):
        for levels in ((1,), (2, 1)):
            result = small_run(transform, levels=levels, steps=(5,) * len(levels))
            assert result.transform is not transform
            assert all(largest(p) == 0 for p in transform.parameters())
            assert all(p.grad is None for p in transform.parameters())
            assert largest(result.ddf) > 0.1


def test_an_image_with_a_gradient_of_its_own_is_only_read():
    picture = scene(SMALL)
    gain = torch.ones((), requires_grad=True)
    fixed, moving = gain * draw(picture, SMALL, waves(SMALL, 1.5)), gain * draw(picture, SMALL)
    found = register(
        fixed, moving, StationaryVelocity(SMALL), similarity=mse_loss, steps=(3, 3), levels=(2, 1), options=QUIET
    )
    assert len(found.history) == 6
    assert gain.grad is None


def test_frozen_parts_stay_as_they_are():
    grid = SMALL
    rigid = Rigid(grid)
    rigid.translation_mm.data += 0.5
    result = small_run(Sequential(rigid.freeze(), StationaryVelocity(grid)))
    fitted = list(result.transform)
    assert largest(fitted[0].matrix(), rigid.matrix()) < 1e-12
    assert largest(fitted[1].ddf()) > 0.1


@long_run
@pytest.mark.parametrize("masked", [False, True])
def test_a_frozen_start_is_applied_once_and_the_image_still_read_once(masked):
    """The moving image lies turned on a grid of its own; the frozen map turns it back."""
    grid = fixed_grid(2)
    picture, bend = scene(grid), waves(grid, 1.6)
    turn = rotation((35.0,))
    center = np.array(grid.center)
    matrix = affine(turn, center - turn @ center + np.array((4.0, -3.0)))
    moving_grid = Grid((80, 84), matrix @ oblique(2, spacing=(0.9, 0.7)))

    def turned(points):
        return picture(apply(np.linalg.inv(matrix), points))

    fixed, moving = draw(picture, grid, bend), draw(turned, moving_grid)
    truth = true_ddf(grid, lambda x: apply(matrix, x + bend(x)) - x)
    start = Affine(grid, matrix=torch.from_numpy(matrix)).freeze()
    mask = torch.ones_like(moving) if masked else None
    result = register(
        fixed,
        moving,
        Sequential(start, Diffeomorphism(grid)),
        similarity=lncc_loss,
        regularizer=bending_loss,
        weight=0.1,
        moving_grid=moving_grid,
        moving_mask=mask,
        options=QUIET,
    )
    assert error(start.ddf().detach(), truth) > 1
    assert error(result.ddf, truth) < 0.5
    assert largest(result.transform.ddf(grid), result.ddf) < 1e-4
    expected = field.warp(moving, result.ddf, padding="zeros", moving_grid=moving_grid, fixed_grid=grid)
    assert largest(result.warped, expected) < 1e-6


@long_run
def test_composed_steps_do_not_fold_where_added_ones_do():
    """Weakly regularized and far: a disc becomes a thin C."""
    fixed, moving = (shape((64, 64)) for shape in (cshape, circle))
    folds = {}
    for model in (Diffeomorphism, DenseDisplacement):
        result = register(
            fixed,
            moving,
            model(Grid((64, 64))),
            similarity=mse_loss,
            regularizer=bending_loss,
            weight=1e-4,
            options=Options(progress=False, lr=0.4),
        )
        folds[model] = int((field.jacobian_determinant(result.ddf) <= 0).sum())
        assert mse_loss(result.warped, fixed) < mse_loss(moving, fixed) / 4
    assert folds[Diffeomorphism] == 0
    assert folds[DenseDisplacement] > 0


def test_a_transform_without_anything_to_fit_is_refused():
    with pytest.raises(ValueError, match="frozen") as raised:
        small_run(Rigid(SMALL).freeze())
    sentence(raised, "frozen")


@pytest.mark.parametrize("model", [*MODELS, "affine"])
def test_result_is_plain_data_that_agrees_with_its_parts(model):
    grid = SMALL
    result = small_run(MODELS[model](grid) if model in MODELS else Affine(grid))
    assert result.ddf.shape == (1, 2, 24, 20)
    assert not result.ddf.requires_grad
    assert not result.warped.requires_grad
    assert largest(result.transform.ddf(grid), result.ddf) < 1e-5
    moving = draw(scene(grid), grid)
    assert largest(result.warped, field.warp(moving, result.ddf, padding="zeros")) < 1e-6


def test_two_runs_give_the_same_result_and_print_nothing(capsys):
    first, second = small_run(), small_run()
    assert torch.equal(first.ddf, second.ddf)
    assert first.history == second.history
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_unless_switched_off(capsys):
    small_run(options=Options())
    assert "register" in capsys.readouterr().err


# -- where to start --------------------------------------------------------------
def lopsided(grid, *, turn_deg, shift, stretch=1.0):
    """A bean with unequal axes, turned and shifted about the grid's center, as a picture."""
    d, center = grid.dim, np.array(grid.center)
    turn = rotation(turn_deg)
    sizes = np.array((6.0, 3.0, 4.2)[:d])

    def picture(points):
        local = (points - center - np.array(shift)) @ turn
        return np.exp(-0.5 * (local / sizes) ** 2).prod(-1) * (1 + 0.3 * np.tanh(local[..., 0] / 4)) * stretch + 0.2

    return picture


@pytest.mark.parametrize("dim", [2, 3])
def test_moments_align_centers_and_axes(dim):
    grid = Grid({2: (70, 60), 3: (44, 40, 36)}[dim], oblique(dim, spacing=(0.9, 1.0, 1.1)[:dim]))
    other = Grid.centered({2: (66, 72), 3: (42, 46, 40)}[dim], 0.95, center=grid.center)
    angle = {2: (28.0,), 3: (0.0, 18.0, 20.0)}[dim]
    shift = np.array((3.0, -2.0, 1.5)[:dim])
    fixed = draw(lopsided(grid, turn_deg=np.zeros(len(angle)), shift=np.zeros(dim)), grid)
    moving = draw(lopsided(grid, turn_deg=angle, shift=shift, stretch=3.0), other)
    turn, center = rotation(angle), np.array(grid.center)
    expected = affine(turn, center + shift - turn @ center)
    arguments = {"fixed_grid": grid, "moving_grid": other}
    found = align_moments(fixed, moving, **arguments, rotate=True).numpy()
    np.testing.assert_allclose(found[:-1, :-1], turn, atol=0.02)
    np.testing.assert_allclose(apply(found, center), apply(expected, center), atol=0.15)
    shift_only = align_moments(fixed, moving, **arguments).numpy()
    np.testing.assert_allclose(shift_only[:-1, :-1], np.eye(dim))
    mean = apply(grid.world_from_voxel.numpy(), voxels(grid.shape))
    weight = (fixed - fixed.min())[0, 0].double().numpy()
    mean = (mean * weight[..., None]).reshape(-1, dim).sum(0) / weight.sum()
    np.testing.assert_allclose(apply(shift_only, mean), apply(found, mean), atol=1e-6)


def test_moments_of_equal_images_are_the_identity():
    grid = fixed_grid(3)
    image = draw(scene(grid), grid)
    found = align_moments(image, image, fixed_grid=grid, moving_grid=grid, rotate=True)
    np.testing.assert_allclose(found.numpy(), np.eye(4), atol=1e-9)


@long_run
@pytest.mark.parametrize("dim", [2, 3])
def test_align_finds_a_turn_and_a_stretch_from_afar(dim):
    grid = Grid(SHAPES[dim], oblique(dim, spacing=SPACING[dim]))
    center = np.array(grid.center)
    linear = rotation({2: (25.0,), 3: (15.0, -12.0, 20.0)}[dim]) @ np.diag((1.15, 0.9, 1.05)[:dim])
    truth = affine(linear, center - linear @ center + np.array((5.0, -6.0, 4.0)[:dim]))
    body, texture = lopsided(grid, turn_deg=np.zeros({2: 1, 3: 3}[dim]), shift=np.zeros(dim)), scene(grid)

    def picture(points):
        return (body(points) - 0.2) * (0.4 + texture(points))

    moving_grid = Grid.centered([n + 20 for n in grid.shape], 0.9, center=grid.center)
    fixed, moving = draw(picture, grid, lambda x: apply(truth, x) - x), draw(picture, moving_grid)
    found = align(
        fixed,
        moving,
        grid,
        similarity=ncc_loss,
        models=(Rigid, Affine),
        moving_grid=moving_grid,
        levels=(2, 1),
        steps=(60, 120),
        options=QUIET,
    )
    expected = true_ddf(grid, lambda x: apply(truth, x) - x)
    assert error(0 * expected, expected) > 4
    assert error(found.ddf(), expected) < 0.6


def upside_down(grid):
    """A pear whose two ends differ, and the same turned by 180 degrees."""
    picture = lopsided(grid, turn_deg=(0.0,), shift=(0.0, 0.0))
    center = np.array(grid.center)

    def marked(points):
        return picture(points) + np.exp(-0.5 * ((points - center - np.array((9.0, 4.0))) ** 2).sum(-1) / 4)

    return draw(marked, grid), draw(lambda points: marked(2 * center - points), grid)


@long_run
@pytest.mark.parametrize("turn_deg", [0.0, 60.0])
def test_align_resolves_which_way_an_axis_points(turn_deg):
    grid = Grid((64, 60), oblique(2, spacing=(1.0, 0.9)))
    fixed, moving = upside_down(grid)
    found = align(
        fixed,
        moving,
        grid,
        similarity=mse_loss,
        models=(Rigid,),
        turn_deg=turn_deg,
        levels=(2,),
        steps=(60,),
        options=QUIET,
    )
    np.testing.assert_allclose(found.matrix().detach().numpy()[:-1, :-1], -np.eye(2), atol=0.03)


@long_run
def test_align_never_ends_less_alike_than_the_headers():
    """Two unrelated noises: whatever a model reaches, the headers are as good."""
    grid = Grid((40, 36))
    fixed, moving = smooth_image((40, 36), seed=1), smooth_image((40, 36), seed=2)
    found = align(fixed, moving, grid, similarity=ncc_loss, levels=(2,), steps=(5,), options=QUIET)
    warped = field.warp(moving, found.ddf().detach(), padding="zeros")
    assert float(ncc_loss(warped, fixed)) <= float(ncc_loss(moving, fixed)) + 1e-3


def test_align_without_a_model_only_shifts():
    grid = fixed_grid(2)
    picture, shift = scene(grid), affine(np.eye(2), (60.0, -50.0))
    moving_grid = Grid(grid.shape, shift @ grid.world_from_voxel.numpy())
    image = draw(picture, grid)
    found = align(image, image, grid, similarity=ncc_loss, models=(), moving_grid=moving_grid, options=QUIET)
    np.testing.assert_allclose(found.matrix().detach().numpy(), shift, atol=0.1)


def test_align_checks_its_arguments():
    for changes, words in (({"turn_deg": -5.0}, ("turn_deg", "-5")), ({"levels": (2,)}, ("levels", "steps", "(2,)"))):
        with sentence(ValueError, *words):
            align(IMAGE, IMAGE + 1, SMALL, similarity=ncc_loss, options=QUIET, **changes)


def test_two_images_are_compared_where_both_are():
    """The loss of the overlap alone, with its share of the grid; infinite where there is none."""
    scene = Scene(SMALL, SMALL, (Images(IMAGE, IMAGE + 1),))
    moved = field.identity_ddf(SMALL)
    moved[:, 0] = 4.0
    loss, share = scene.compared(moved, mse_loss)
    both = SMALL.shape[0] - 4
    assert share == pytest.approx(both / SMALL.shape[0])
    assert loss == pytest.approx(float((IMAGE[:, :, 4:] + 1 - IMAGE[:, :, :both]).square().mean()), rel=1e-5)
    assert scene.compared(moved * 1000, mse_loss) == (math.inf, 0.0)


def brightness(warped, fixed, *, mask=None):
    """Mean brightness where both are, 0 where nothing is left: it drives the image out of sight."""
    weight = torch.ones_like(warped) if mask is None else mask
    return (warped * weight).sum() / weight.sum().clamp(min=1e-6)


@pytest.mark.parametrize(("steps", "lost"), [((60, 3), 2.0), ((3, 60), 1.0)], ids=["first level", "last level"])
def test_a_level_that_loses_sight_is_left_out(steps, lost):
    ramp = torch.linspace(1, 2, 32).reshape(1, 1, 32, 1).expand(1, 1, 32, 32)
    options = Options(lr=3.0, tolerance=-1.0, progress=False)
    model = Translation(Grid((32, 32)))
    with pytest.warns(RuntimeWarning, match="lost sight of the moving image"):
        found = register(ramp, ramp, model, similarity=brightness, levels=(2, 1), steps=steps, options=options)
    assert len(found.history) == sum(steps)
    assert found.left_out == [lost]
    assert bool(field.valid_mask(found.ddf).any())


def test_what_lies_beyond_an_even_background_is_known():
    """An image that ends in one value on all faces is not cut off there; another is, and only what both see counts."""
    grid = Grid((32, 32))
    blob = torch.zeros(1, 1, 32, 32)
    blob[..., 10:20, 8:18] = smooth_image((10, 10), seed=0).float() + 2
    shift = torch.full((1, 2, 32, 32), 4.0)
    cut = blob + torch.linspace(0, 1, 32)
    assert not Scene(grid, grid, (Images(blob, blob),)).seen_by(shift).crop
    assert Scene(grid, grid, (Images(blob, cut),)).seen_by(shift).crop
    with sentence(ValueError, "do not overlap"):
        Scene(grid, grid, (Images(blob, blob),)).seen_by(shift * 10)


def test_align_needs_something_to_compare():
    """A mask of one voxel is next to nothing on the coarse images that starts are compared on."""
    image = smooth_image((256, 256), seed=1)
    dot = torch.zeros_like(image)
    dot[..., 100, 90] = 1
    with sentence(ValueError, "the masks leave nothing to compare", "widen them"):
        align(image, image, Grid((256, 256)), similarity=ncc_loss, masks=(dot, dot), options=QUIET)


def test_align_without_turns_goes_where_the_shifts_lead():
    grid = fixed_grid(2)
    image = draw(scene(grid), grid)
    found = align(image, image, grid, similarity=ncc_loss, turn_deg=0.0, levels=(4,), steps=(10,), options=QUIET)
    np.testing.assert_allclose(found.matrix().detach().numpy(), np.eye(3), atol=0.05)


def test_an_interrupt_during_align_ends_it():
    """There is no best of a search that has not ended; only its descents differentiate the warped image."""

    def interrupted(warped, fixed, mask=None):
        if warped.requires_grad:
            raise KeyboardInterrupt
        return ncc_loss(warped, fixed, mask=mask)

    with pytest.raises(KeyboardInterrupt):
        align(IMAGE, IMAGE + 1, SMALL, similarity=interrupted, options=QUIET)


# -- objectives of several parts -------------------------------------------------
def test_terms_are_weighted_recorded_by_name_and_summed():
    terms = [Term(mse_loss, 2.0), Term(ncc_loss, 0.5, name="correlation")]
    smooth = [diffusion_loss, Term(bending_loss, 3.0), Term(bending_loss, 1.0)]
    for record in small_run(similarity=terms, regularizer=smooth).history:
        alike = 2 * record["mse_loss"] + 0.5 * record["correlation"]
        rough = record["diffusion_loss"] + 3 * record["bending_loss"] + record["bending_loss 2"]
        assert abs(record["similarity"] - alike) < 1e-5
        assert abs(record["regularizer"] - rough) < 1e-5
        assert abs(record["loss"] - alike - 0.3 * rough) < 1e-5


def test_a_level_has_its_own_steps_terms_and_smoothing():
    levels = [
        Level(2, 5, similarity=ncc_loss, weight=0.0),
        Level(1, 3, smoothing_mm=1.5, regularizer=bending_loss, lr=0.1),
    ]
    history = small_run(levels=levels, steps=None).history
    assert [(r["level"], r["step"]) for r in history] == [(2, k) for k in range(5)] + [(1, k) for k in range(3)]
    assert all(r["loss"] == r["similarity"] for r in history[:5])
    assert history[0]["similarity"] > 2 * history[5]["similarity"]  # 1 - r, then a mean square


@long_run
def test_images_of_its_own_let_labels_drive():
    """The images say nothing, the masks of the organ everything: as in DeepReg's prostate demo."""
    fixed, moving = (shape((48, 48)) for shape in (cshape, circle))
    noise = smooth_image((48, 48), seed=5)
    organ = Term(mse_loss, fixed=fixed, moving=moving)
    result = register(
        noise,
        noise + 1e-3 * fixed,
        Diffeomorphism(Grid((48, 48))),
        similarity=[Term(mse_loss, 1e-6, name="image"), organ],
        regularizer=diffusion_loss,
        weight=1e-3,
        options=QUIET,
    )
    assert mse_loss(field.warp(moving, result.ddf), fixed) < mse_loss(moving, fixed) / 3


@long_run
@pytest.mark.parametrize("model", [*MODELS, "affine", "after a frozen start"])
def test_landmarks_pull(model):
    """Hardly any image, but points that say where it goes."""
    fixed, moving, _ = curved_pair(2)
    grid = fixed_grid(2)
    x = grid.points(
        torch.rand(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 40 + 8,
        to="world",
        from_="voxel",
    )
    y = x + torch.tensor([4.0, -3.0], dtype=torch.float64)
    if model == "affine":
        transform = Affine(grid)
    elif model == "after a frozen start":
        start = Translation(grid, matrix=torch.from_numpy(affine(np.eye(2), (2.0, 1.0)))).freeze()
        transform = Sequential(start, Diffeomorphism(grid))
    else:
        transform = MODELS[model](grid)
    result = register(
        fixed,
        moving,
        transform,
        similarity=Term(mse_loss, 1e-6),
        regularizer=bending_loss,
        weight=0.1,
        levels=(4, 2),
        landmarks=Landmarks(x, y),
        options=QUIET,
    )
    assert result.history[0]["landmarks"] > 4
    assert (result.transform.points(x[None]) - y).norm(dim=-1).mean() < 0.6


# -- batches, optimizers, callbacks, interrupts ----------------------------------
@long_run
@pytest.mark.parametrize("model", MODELS)
def test_a_batch_is_registered_pair_by_pair(model):
    pairs = [curved_pair(2, seed=seed)[:2] for seed in (0, 1)]
    arguments = {
        "similarity": mse_loss,
        "regularizer": bending_loss,
        "weight": 0.1,
        "levels": (4, 2),
        "steps": (20, 10),
    }
    arguments["options"] = Options(progress=False, tolerance=-math.inf)
    fixed, moving = (torch.cat(images) for images in zip(*pairs, strict=True))
    together = register(fixed, moving, MODELS[model](fixed_grid(2)), **arguments)
    for k, pair in enumerate(pairs):
        alone = register(*pair, MODELS[model](fixed_grid(2)), **arguments)
        assert error(together.ddf[k : k + 1], alone.ddf.double()) < 0.1  # the best step of both, not of each
        assert error(0 * alone.ddf, alone.ddf.double()) > 1


def test_a_linear_model_takes_one_pair_at_a_time():
    image = torch.cat([IMAGE, IMAGE + 1])
    with sentence(ValueError, "Affine", "one pair", "2"):
        register(image, image, Affine(SMALL), similarity=mse_loss, options=QUIET)


@long_run
@pytest.mark.parametrize("optimizer", [Momentum, Lbfgs, torch.optim.Adam], ids=["momentum", "lbfgs", "torch"])
@pytest.mark.parametrize("model", [StationaryVelocity, Affine])
def test_other_optimizers_reach_the_same_place(optimizer, model):
    fixed, moving, truth = curved_pair(2)
    if model is Affine:
        picture = scene(fixed_grid(2), seed=3)
        matrix = affine(rotation((5.0,)), (2.0, -1.0))
        fixed, moving = draw(picture, fixed_grid(2), lambda x: apply(matrix, x) - x), draw(picture, fixed_grid(2))
        truth = true_ddf(fixed_grid(2), lambda x: apply(matrix, x) - x)
    result = register(
        fixed,
        moving,
        model(fixed_grid(2)),
        similarity=mse_loss,
        regularizer=bending_loss,
        weight=0.1,
        steps=(150, 100, 40),
        options=Options(progress=False, optimizer=optimizer, lr=0.5 if optimizer is Momentum else 0.2),
    )
    assert error(0 * truth, truth) > 2
    assert error(result.ddf, truth) < 0.7


def test_lbfgs_does_not_compose():
    with sentence(ValueError, "Lbfgs", "Diffeomorphism", "StationaryVelocity"):
        small_run(Diffeomorphism(SMALL), options=Options(progress=False, optimizer=Lbfgs))


@long_run
@pytest.mark.parametrize(
    "how",
    [{"precondition": partial(filters.sobolev, alpha=4.0)}, {"gradient_sigma": 1.5}, {"gradient_sigma": (8.0, 0.8)}],
)
def test_a_smoothed_gradient_finds_a_known_deformation(how):
    fixed, moving, truth = curved_pair(2)
    model = Diffeomorphism(fixed_grid(2))
    plan = {"similarity": mse_loss, "regularizer": bending_loss, "weight": 0.1}
    assert error(register(fixed, moving, model, **plan, options=Options(progress=False, **how)).ddf, truth) < 0.5


def test_a_pair_of_sigmas_moves_large_parts_first(monkeypatch):
    """Geometrically from the first to the last within each level."""
    used = []
    blur = filters.gaussian

    def spy(image, *, sigma, **given):
        used.append(sigma)
        return blur(image, sigma=sigma, **given)

    monkeypatch.setattr("reglib.optimize.descent.filters.gaussian", spy)
    options = Options(progress=False, gradient_sigma=(8.0, 0.5), tolerance=-math.inf)
    small_run(DenseDisplacement(SMALL), levels=(2, 1), steps=(5, 3), options=options)
    expected = [8.0, 4.0, 2.0, 1.0, 0.5, 8.0, 2.0, 0.5]
    np.testing.assert_allclose([s for s in used if isinstance(s, float)], expected, rtol=1e-12)


@pytest.mark.parametrize("sigma", [-1.0, (2.0, -1.0), (2.0, 0.0), (0.0, 2.0)])
def test_sigmas_of_a_gradient_are_not_negative(sigma):
    with sentence(ValueError, "gradient_sigma at least 0 (two: above 0)", str(sigma)):
        Options(gradient_sigma=sigma)


def test_a_callback_sees_each_step_and_may_end_a_level():
    seen = []

    def watch(record, transform):
        seen.append((record["level"], record["step"], float(transform.velocity.detach().abs().max())))
        return record["step"] == 2

    history = small_run(options=Options(progress=False, callback=watch)).history
    assert [entry[:2] for entry in seen] == [(2, 0), (2, 1), (2, 2), (1, 0), (1, 1), (1, 2)]
    assert len(history) == 6
    assert seen[2][2] > 0


def test_an_interrupt_returns_the_best_so_far():
    def stop(record, transform):
        if record["level"] == 2 and record["step"] == 3:
            raise KeyboardInterrupt

    result = small_run(options=Options(progress=False, callback=stop))
    assert result.interrupted
    assert len(result.history) == 4
    assert result.ddf.shape == (1, 2, 24, 20)
    assert largest(result.ddf) > 0.1
    assert not small_run().interrupted


# -- errors ----------------------------------------------------------------------
IMAGE = smooth_image((24, 20))


@pytest.mark.parametrize(
    ("fixed", "moving", "changes", "error", "words"),
    [
        (IMAGE * torch.nan, IMAGE, {}, ValueError, ("fixed", "finite", "NaN")),
        (IMAGE, IMAGE / 0, {}, ValueError, ("moving", "finite")),
        (IMAGE * 0 + 100.3, IMAGE, {}, ValueError, ("fixed", "constant", "100.3")),
        (IMAGE, IMAGE * 0, {}, ValueError, ("moving", "constant")),
        (IMAGE, IMAGE, {"fixed_mask": IMAGE * 0}, ValueError, ("fixed_mask", "empty")),
        (IMAGE, IMAGE, {"moving_mask": IMAGE * 0}, ValueError, ("moving_mask", "empty")),
        (IMAGE, IMAGE, {"fixed_mask": IMAGE[:, :, :9]}, GridMismatchError, ("fixed_mask", "24, 20", "(1, 1, 9, 20)")),
        (IMAGE, IMAGE[:, :, :9], {}, GridMismatchError, ("moving", "24, 20", "(1, 1, 9, 20)")),
        (IMAGE[:, :, :9], IMAGE, {}, GridMismatchError, ("fixed", "24, 20", "(1, 1, 9, 20)")),
        (IMAGE, IMAGE, {"moving_grid": Grid((20, 24))}, GridMismatchError, ("moving", "20, 24")),
        (
            IMAGE,
            smooth_image((9, 12, 7)),
            {"moving_grid": Grid((9, 12, 7))},
            ValueError,
            ("2-D", "3-D", "fixed", "moving"),
        ),
        (IMAGE, IMAGE, {"levels": (2, 1), "steps": (5,)}, ValueError, ("levels", "steps", "(2, 1)", "(5,)")),
        (IMAGE, IMAGE, {"levels": (), "steps": ()}, ValueError, ("levels", "steps")),
        (IMAGE, IMAGE, {"levels": (2, Level(1, 5)), "steps": (5, 5)}, ValueError, ("levels", "steps")),
        (torch.cat([IMAGE, IMAGE]), IMAGE, {}, ValueError, ("batch", "2", "1")),
        (
            IMAGE,
            IMAGE,
            {"landmarks": Landmarks(torch.zeros(3, 2), torch.zeros(4, 2))},
            ValueError,
            ("landmarks", "(3, 2)"),
        ),
        (
            IMAGE,
            IMAGE,
            {"landmarks": Landmarks(*[torch.full((3, 2), torch.nan)] * 2)},
            ValueError,
            ("landmarks", "NaN"),
        ),
        (
            IMAGE,
            IMAGE,
            {"moving_grid": Grid((24, 20), affine(np.eye(2), (500.0, 0.0)))},
            ValueError,
            ("overlap", "align"),
        ),
        (
            IMAGE,
            IMAGE,
            {
                "fixed_mask": (torch.arange(24) < 4).expand(20, 24).T[None, None],
                "moving_mask": (torch.arange(24) > 18).expand(20, 24).T[None, None],
            },
            ValueError,
            ("overlap", "mask"),
        ),
    ],
)
def test_bad_input_is_one_sentence(fixed, moving, changes, error, words, no_jaxtyping):
    def never(*_, **__):
        raise AssertionError("the check must come before any work")

    with sentence(error, *words):
        register(fixed, moving, StationaryVelocity(SMALL), similarity=never, options=QUIET, **changes)


def test_divergence_is_reported():
    calls = []

    def explodes(warped, fixed):
        calls.append(1)
        return mse_loss(warped, fixed) * (math.inf if len(calls) == 4 else 1)

    with sentence(FloatingPointError, "loss", "inf", "level 2", "step 3", "lr=0.2"):
        small_run(similarity=explodes)


@pytest.mark.parametrize("model", [*MODELS, "affine"])
def test_a_gradient_that_is_not_a_number_is_reported(model):
    """sqrt of a difference that is 0 somewhere: the loss is finite, its gradient NaN, and so would be the field.

    One step only: torch's grid_sample ends the process when it differentiates at NaN coordinates.
    """
    grid = SMALL
    image = draw(scene(grid), grid)
    with pytest.raises((FloatingPointError, ValueError), match=r"diverge|gradient|NaN|nan"):
        register(
            image,
            image,
            MODELS[model](grid) if model in MODELS else Affine(grid),
            similarity=lambda warped, fixed: (warped * 0).sqrt().sum() + mse_loss(warped, fixed),
            levels=(1,),
            steps=(1,),
            options=QUIET,
        )
