"""Search over displacements, against the same written again as plain loops, and on images whose motion is known."""

import itertools

import numpy as np
import pytest
import torch
from helpers import SHAPE_CASES, affine, apply, blob, largest, oblique, rotation, sentence, smooth_ddf, smooth_image
from test_optimize import QUIET, SPACING, draw, error, scene, true_ddf, waves

from reglib import field, filters
from reglib.grid import Grid, GridMismatchError
from reglib.losses import bending_loss, mind_features, mind_loss
from reglib.optimize import ConvexOptions, cost_volume, coupled_convex, register
from reglib.transforms import Affine, DenseDisplacement, FreeFormDeformation, Sequential

FAST = ConvexOptions(progress=False)
SHAPES = {2: (96, 84), 3: (48, 52, 44)}
SIZE_MM = {2: 6.0, 3: 6.5}
# Checking the types of ten thousand calls takes five times as long as the calls; the small cases check them.
long_run = pytest.mark.usefixtures("no_jaxtyping")


def itself(image):
    return image


def moved_pair(dim, *, size_mm=None, shift=None, moving_grid=None, shape=None):
    """Fixed, moving, their grid and the true ddf: waves of a size in mm and a shift in voxels."""
    grid = Grid(shape or SHAPES[dim], oblique(dim, spacing=SPACING[dim]))
    bend = waves(grid, SIZE_MM[dim] if size_mm is None else size_mm)
    step = grid.world_from_voxel.numpy()[:-1, :-1] @ np.array(shift or (0.0,) * dim)

    def move(x):
        return bend(x) + step

    picture = scene(grid)
    return draw(picture, grid, move), draw(picture, moving_grid or grid), grid, true_ddf(grid, move)


def refined(fixed, moving, transform, **changes):
    """One level at full resolution: it finds what is near, and nothing else."""
    arguments = {"similarity": mind_loss, "regularizer": bending_loss, "weight": 0.2, "levels": (1,), "steps": (40,)}
    return register(fixed, moving, transform, **arguments | changes, options=QUIET)


# -- accuracy ------------------------------------------------------------------------------------------------------
@long_run
@pytest.mark.parametrize("contrast", ["same", "inverted"])
@pytest.mark.parametrize("dim", [2, 3])
def test_search_then_descent_find_a_known_deformation(dim, contrast):
    fixed, moving, grid, truth = moved_pair(dim)
    moving = moving if contrast == "same" else 3 - moving
    found = coupled_convex(fixed, moving, grid, features=mind_features, options=FAST)
    assert error(0 * truth, truth) > 4
    assert error(found.ddf, truth) < 1.5
    assert field.jacobian_determinant(found.ddf).min() > 0
    assert isinstance(found.transform, DenseDisplacement)
    assert error(refined(fixed, moving, found.transform).ddf, truth) < 0.5


@long_run
def test_a_free_form_deformation_takes_the_search_up():
    fixed, moving, grid, truth = moved_pair(3)
    found = coupled_convex(fixed, moving, grid, features=mind_features, options=FAST)
    model = FreeFormDeformation(grid, control_spacing_mm=5.5).fit(found.ddf)
    assert error(model.ddf().detach(), truth) < 1.5
    assert error(refined(fixed, moving, model).ddf, truth) < 0.5


@long_run
def test_motion_too_far_for_descent_is_found():
    """Over 8 voxels: descent at full resolution stays with the nearest wrong match."""
    fixed, moving, grid, truth = moved_pair(2, size_mm=4.0, shift=(7.0, -6.0), shape=(112, 100))
    found = coupled_convex(fixed, moving, grid, features=mind_features, options=FAST)
    assert error(0 * truth, truth) > 8
    assert error(found.ddf, truth) < 1.5
    assert error(refined(fixed, moving, found.transform, steps=(80,)).ddf, truth) < 0.5
    assert error(refined(fixed, moving, DenseDisplacement(grid), steps=(80,)).ddf, truth) > 4


@long_run
def test_search_reaches_far_in_3d():
    fixed, moving, grid, truth = moved_pair(3, size_mm=3.5, shift=(6.0, -5.0, 5.0), shape=(52, 56, 48))
    found = coupled_convex(fixed, moving, grid, features=mind_features, options=FAST)
    assert error(0 * truth, truth) > 8
    assert error(found.ddf, truth) < 1.5


@long_run
def test_an_image_is_its_own_feature_in_any_unit():
    """Couplings are relative to the costs: Hounsfield units and unit intervals give one field."""
    fixed, moving, grid, truth = moved_pair(2)
    found = coupled_convex(fixed, moving, grid, features=itself, options=FAST)
    scaled = coupled_convex(900 * fixed, 900 * moving, grid, features=itself, options=FAST)
    assert error(0 * truth, truth) > 4
    assert error(found.ddf, truth) < 2
    assert largest(scaled.ddf, found.ddf) < 1e-3


@long_run
@pytest.mark.parametrize("dim", [2, 3])
def test_moving_image_on_another_grid(dim):
    """Other shape, spacing, axis order and rotation: only the world connects the two."""
    grid = Grid(SHAPES[dim], oblique(dim, spacing=SPACING[dim]))
    shape = {2: (104, 150), 3: (68, 92, 84)}[dim]
    header = oblique(
        dim, angles={2: (-31.0,), 3: (-8.0, 15.0, 12.0)}[dim], spacing=(1.2, 0.7, 0.9)[:dim], flips=(-1, 1, -1)[:dim]
    )
    header[:-1, -1] += np.array(grid.center) - apply(header, (np.array(shape) - 1) / 2)
    moving_grid = Grid(shape, header)
    fixed, moving, grid, truth = moved_pair(dim, moving_grid=moving_grid)
    found = coupled_convex(fixed, moving, grid, features=mind_features, moving_grid=moving_grid, options=FAST)
    assert error(0 * truth, truth) > 4
    assert error(found.ddf, truth, margin=8) < 1.5
    expected = field.warp(moving, found.ddf, padding="zeros", moving_grid=moving_grid, fixed_grid=grid)
    assert largest(found.warped, expected) < 1e-6


@long_run
def test_a_start_is_applied_once_and_kept():
    """The moving image lies turned on a grid of its own, further than the search reaches; the start turns it back."""
    grid = Grid(SHAPES[2], oblique(2, spacing=SPACING[2]))
    picture, bend = scene(grid), waves(grid, 4.0)
    turn, center = rotation((65.0,)), np.array(grid.center)
    matrix = affine(turn, center - turn @ center + np.array((9.0, -8.0)))
    moving_grid = Grid((130, 132), matrix @ oblique(2, spacing=(0.9, 0.7)))
    fixed = draw(picture, grid, bend)
    moving = draw(lambda points: picture(apply(np.linalg.inv(matrix), points)), moving_grid)
    truth = true_ddf(grid, lambda x: apply(matrix, x + bend(x)) - x)
    start = Affine(grid, matrix=torch.from_numpy(matrix))
    found = coupled_convex(
        fixed, moving, grid, features=mind_features, moving_grid=moving_grid, start=start, options=FAST
    )
    assert all(parameter.requires_grad for parameter in start.parameters())
    assert error(start.ddf(), truth) > 2
    assert error(found.ddf, truth) < 1.5
    first, second = found.transform
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert isinstance(second, DenseDisplacement)
    assert largest(found.transform.ddf(grid), found.ddf) < 1e-4
    result = refined(fixed, moving, found.transform, moving_grid=moving_grid)
    assert error(result.ddf, truth) < 0.5


@long_run
def test_no_motion_is_left_alone():
    fixed, _, grid, _ = moved_pair(2)
    found = coupled_convex(fixed, fixed, grid, features=mind_features, options=FAST)
    assert field.magnitude(found.ddf).mean() < 0.1
    assert field.magnitude(found.ddf).max() < 1


def test_points_without_contrast_stay():
    """Where everything costs the same, the first of all displacements would lead to a corner of the search range."""
    shape = (72, 60)
    found = coupled_convex(
        blob(shape, (20, 20), 4.0), blob(shape, (24, 23), 4.0), Grid(shape), features=itself, options=FAST
    )
    np.testing.assert_allclose(found.ddf[0, :, 20, 20], (4, 3), atol=1.0)
    assert field.magnitude(found.ddf)[:, :, 56:, 44:].max() < 0.2


# -- masks -----------------------------------------------------------------------------------------------------------
@long_run
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_mask_excludes_a_planted_artefact(side):
    fixed, moving, grid, truth = moved_pair(2)
    bar = torch.zeros(1, 1, *SHAPES[2])
    bar[:, :, 30:50, 20:64] = 1
    grown = torch.nn.functional.max_pool2d(bar, 9, stride=1, padding=4)
    planted = {"fixed": fixed, "moving": moving}
    planted[side] = planted[side] * (1 - bar) + 6 * bar

    def run(**masks):
        found = coupled_convex(planted["fixed"], planted["moving"], grid, features=mind_features, options=FAST, **masks)
        off = field.magnitude(found.ddf - truth)
        return [float(off[where].mean()) for where in (grown > 0, grown == 0)]

    (behind, beside), (behind_without, beside_without) = run(**{f"{side}_mask": 1 - grown}), run()
    assert behind < behind_without / 2
    assert beside < beside_without


# -- the costs -------------------------------------------------------------------------------------------------------
def displacements(radii):
    return list(itertools.product(*[range(-r, r + 1) for r in radii]))


def numpy_costs(fixed, moving, radii):
    """(n, *s) float64, voxel by voxel, of features (k, *s); the border of the moving ones repeats."""
    shape = fixed.shape[1:]
    costs = np.zeros((len(displacements(radii)), *shape))
    for row, displacement in enumerate(displacements(radii)):
        for p in np.ndindex(shape):
            q = tuple(min(max(a + b, 0), n - 1) for a, b, n in zip(p, displacement, shape, strict=True))
            costs[(row, *p)] = sum((fixed[(k, *p)] - moving[(k, *q)]) ** 2 for k in range(len(fixed)))
    return costs


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_costs_agree_with_a_loop_over_points_and_displacements(shape):
    radii = (2, 1, 3)[: len(shape)]
    a, b = (smooth_image(shape, seed=seed, batch=2, channels=3) for seed in (1, 2))
    costs, table = cost_volume(a, b, stride=1, radius=radii)
    np.testing.assert_array_equal(table, displacements(radii))
    expected = [numpy_costs(*(x[k].double().numpy() for x in (a, b)), radii) for k in range(2)]
    np.testing.assert_allclose(costs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_masks_in_the_costs(shape):
    """A displacement out of the moving mask costs little more than the best within; outside the fixed mask, nothing."""
    radii = (2, 1, 1)[: len(shape)]
    a, b = (smooth_image(shape, seed=seed, channels=2) for seed in (1, 2))
    rng = np.random.default_rng(3)
    fixed_mask, moving_mask = (torch.from_numpy(rng.random((1, 1, *shape)) < 0.7) for _ in range(2))
    costs, table = cost_volume(a, b, stride=1, radius=radii, fixed_mask=fixed_mask, moving_mask=moving_mask)
    plain = numpy_costs(a[0].double().numpy(), b[0].double().numpy(), radii)
    for p in np.ndindex(shape):
        ends = [tuple(np.clip(np.add(p, d), 0, np.array(shape) - 1)) for d in table.tolist()]
        seen = np.array([bool(moving_mask[(0, 0, *q)]) for q in ends])
        line = plain[(slice(None), *p)]
        hidden = 0.97 * line[seen].min() + 0.03 * line[seen].mean() if seen.any() else 0
        expected = np.where(seen, line, hidden) * float(fixed_mask[(0, 0, *p)])
        np.testing.assert_allclose(costs[(0, slice(None), *p)], expected, rtol=1e-4, atol=1e-5)


def test_a_stride_coarsens_the_features_first():
    shape = (21, 33, 14)
    a, b = (smooth_image(shape, seed=seed, sigma=3, channels=2) for seed in (1, 2))
    costs, _ = cost_volume(a, b, stride=(4, 3, 2), radius=1)
    assert costs.shape == (1, 27, 6, 11, 7)
    coarse = [filters.downsample(x, (6, 11, 7)) for x in (a, b)]
    assert largest(costs, cost_volume(*coarse, stride=1, radius=1).costs) < 1e-5


def test_costs_are_least_at_the_true_shift():
    """Eight voxels along the first axis are two steps of the lattice, whatever the batch."""
    image = smooth_image((49, 41), sigma=3, batch=2, channels=2)
    moving = image.roll(8, dims=2)
    costs, table = cost_volume(image, moving, stride=4, radius=3)
    inner = costs[:, :, 1:-4, 2:-2]
    assert (table[inner.argmin(1)] == torch.tensor([2, 0])).all(-1).float().mean() > 0.95


# -- the coupling ------------------------------------------------------------------------------------------------------
def numpy_search(fixed, moving, radii, couplings):
    """The field (d, *s) and the records, by comparing all displacements at each point."""
    costs = numpy_costs(fixed, moving, radii)
    costs /= (costs.mean(0) - costs.min(0)).mean()
    table, shape = displacements(radii), fixed.shape[1:]
    smooth, records = np.zeros((len(shape), *shape)), []
    for coupling in couplings:
        chosen, cost = np.zeros_like(smooth), 0.0
        for p in np.ndindex(shape):
            u = smooth[(slice(None), *p)]
            total = {d: costs[(k, *p)] + coupling * ((np.array(d) - u) ** 2).sum() for k, d in enumerate(table)}
            best = min(total, key=total.get)
            chosen[(slice(None), *p)] = [best[k] + vertex(total, best, k, radii[k]) for k in range(len(shape))]
            cost += costs[(table.index(best), *p)]
        records.append((cost / np.prod(shape), ((chosen - smooth) ** 2).sum(0).mean()))
        for p in np.ndindex(shape):
            window = tuple(slice(max(i - 1, 0), i + 2) for i in p)
            smooth[(slice(None), *p)] = chosen[(slice(None), *window)].reshape(len(shape), -1).mean(1)
    return smooth, records


def vertex(total, best, axis, radius):
    """Where the parabola through three neighbors is least, at most half a step away; 0 at the end of the range."""
    if abs(best[axis]) == radius:
        return 0.0
    low, high = (total[(*best[:axis], best[axis] + side, *best[axis + 1 :])] for side in (-1, 1))
    second, _, _ = np.polyfit((-1, 0, 1), (low, total[best], high), 2)
    first = (high - low) / 2
    return float(np.clip(-first / (2 * second), -0.5, 0.5))


@pytest.mark.parametrize("shape", SHAPE_CASES)
def test_every_round_agrees_with_brute_force(shape):
    radii, couplings = (2, 1, 1)[: len(shape)], (0.01, 0.2, 1.0)
    fixed, moving = (smooth_image(shape, seed=seed, sigma=2.0, dtype=torch.float64) for seed in (4, 5))
    options = ConvexOptions(couplings=couplings, consistency=0, factor=1, progress=False)
    found = coupled_convex(fixed, moving, Grid(shape), features=itself, stride=1, radius=radii, options=options)
    expected, records = numpy_search(fixed[0].numpy(), moving[0].numpy(), radii, couplings)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found.ddf[0], expected, atol=1e-8)
    for k, (record, (cost, apart)) in enumerate(zip(found.history, records, strict=True)):
        assert set(record) == {"step", "coupling", "loss", "similarity", "regularizer"}
        assert (record["step"], record["coupling"]) == (k, couplings[k])
        np.testing.assert_allclose([record["similarity"], record["regularizer"]], [cost, apart], rtol=1e-8)
        np.testing.assert_allclose(record["loss"], cost + couplings[k] * apart, rtol=1e-8)


@long_run
def test_growing_couplings_make_neighbors_agree():
    fixed, moving, grid, _ = moved_pair(2)
    history = coupled_convex(fixed, moving, grid, features=mind_features, options=FAST).history
    apart, cost = ([record[name] for record in history] for name in ("regularizer", "similarity"))
    assert [record["coupling"] for record in history] == [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
    assert (np.diff(apart) < 0).all()
    assert (np.diff(cost) > 0).all()


@long_run
def test_both_directions_become_inverse_to_each_other():
    fixed, moving, grid, _ = moved_pair(2)
    left = {}
    for iterations in (0, 5):
        options = ConvexOptions(consistency=iterations, progress=False)
        u = coupled_convex(fixed, moving, grid, features=mind_features, options=options).ddf
        back = coupled_convex(moving, fixed, grid, features=mind_features, options=options).ddf
        left[iterations] = float(field.magnitude(field.compose(u, back)).mean())
    assert left[0] > 0.5
    assert left[5] < left[0] / 5


# -- the result --------------------------------------------------------------------------------------------------------
SMALL = Grid((40, 33), oblique(2, spacing=SPACING[2]))


def small_run(**changes):
    picture = scene(SMALL)
    fixed, moving = draw(picture, SMALL, waves(SMALL, 2.5)), draw(picture, SMALL)
    arguments = {"features": mind_features, "options": FAST} | changes
    return coupled_convex(fixed, moving, SMALL, **arguments), moving


def test_result_is_plain_data_that_agrees_with_its_parts():
    found, moving = small_run()
    assert found.ddf.shape == (1, 2, 40, 33)
    assert not found.ddf.requires_grad
    assert not found.warped.requires_grad
    assert all(parameter.requires_grad for parameter in found.transform.parameters())
    assert largest(found.transform.ddf(SMALL), found.ddf) == 0
    assert largest(found.warped, field.warp(moving, found.ddf, padding="zeros")) < 1e-6
    assert not found.interrupted


def test_an_identity_to_start_from_changes_nothing():
    started, _ = small_run(start=Affine(SMALL))
    assert isinstance(started.transform, Sequential)
    assert largest(started.ddf, small_run()[0].ddf) < 1e-3


def test_two_runs_give_the_same_result_and_print_nothing(capsys):
    (first, _), (second, _) = small_run(), small_run()
    assert torch.equal(first.ddf, second.ddf)
    assert first.history == second.history
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_unless_switched_off(capsys):
    small_run(options=ConvexOptions())
    assert "coupled_convex" in capsys.readouterr().err


def test_a_batch_is_searched_as_each_pair_alone():
    shape = (20, 24, 18)
    fixed = smooth_image(shape, sigma=2.0, batch=2)
    moving = field.warp(fixed, smooth_ddf(shape, largest=2.5, sigma=5.0, batch=2))
    both = coupled_convex(fixed, moving, Grid(shape), features=mind_features, options=FAST)
    alone = [
        coupled_convex(fixed[k : k + 1], moving[k : k + 1], Grid(shape), features=mind_features, options=FAST)
        for k in range(2)
    ]
    assert both.ddf.shape == (2, 3, *shape)
    for k in range(2):
        assert largest(both.ddf[k], alone[k].ddf[0]) < 1e-4
    means = [np.mean(losses) for losses in zip(*[[r["loss"] for r in one.history] for one in alone], strict=True)]
    np.testing.assert_allclose([record["loss"] for record in both.history], means, rtol=1e-4)


# -- errors ------------------------------------------------------------------------------------------------------------
IMAGE = smooth_image((24, 20))


@pytest.mark.parametrize(
    ("moving", "changes", "error", "words"),
    [
        (IMAGE, {"stride": 0.5}, ValueError, ("stride", "at least 1", "0.5")),
        (IMAGE, {"stride": (2, 2, 2)}, ValueError, ("stride", "2 numbers")),
        (IMAGE, {"radius": 0}, ValueError, ("radius", "at least 1", "got 0")),
        (IMAGE, {"radius": 1.5}, ValueError, ("radius", "whole", "1.5")),
        (IMAGE[:, :, :9], {}, GridMismatchError, ("moving", "24, 20", "(1, 1, 9, 20)")),
        (IMAGE, {"moving_grid": Grid((20, 24))}, GridMismatchError, ("moving", "20, 24")),
        (IMAGE * torch.nan, {}, ValueError, ("moving", "finite")),
        (IMAGE * 0, {}, ValueError, ("moving", "constant")),
        (IMAGE, {"fixed_mask": IMAGE * 0}, ValueError, ("fixed_mask", "empty")),
        (IMAGE, {"moving_mask": IMAGE[:, :, :9]}, GridMismatchError, ("moving_mask", "24, 20")),
    ],
)
def test_bad_input_is_one_sentence(moving, changes, error, words, no_jaxtyping):
    def never(image):
        raise AssertionError("the check must come before any work")

    with sentence(error, *words):
        coupled_convex(IMAGE, moving, Grid((24, 20)), features=never, **changes, options=FAST)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (lambda image: image[:, :, :3], ("features", "(b, k, *s)", "fixed", "(1, 1, 3, 10)", "(1, 1, 12, 10)")),
        (lambda image: image[0], ("features", "(b, k, *s)", "(1, 12, 10)")),
        (lambda image: image / 0, ("features", "finite", "fixed")),
        (lambda image: image.expand(-1, 2 if image.min() < 0 else 3, -1, -1), ("features", "2", "3", "channels")),
        (torch.ones_like, ("features", "same for every displacement")),
    ],
)
def test_features_that_do_not_fit_are_one_sentence(features, words, no_jaxtyping):
    with sentence(ValueError, *words):
        coupled_convex(IMAGE, IMAGE - IMAGE.min() + 1, Grid((24, 20)), features=features, options=FAST)


def test_costs_of_features_on_different_grids_are_refused(no_jaxtyping):
    with sentence(ValueError, "moving_features", "(1, 1, 24, 20)", "(1, 1, 24, 19)"):
        cost_volume(IMAGE, IMAGE[..., :19])
    with sentence(ValueError, "fixed_mask", "(1, 1, 24, 20)", "(1, 1, 9, 20)"):
        cost_volume(IMAGE, IMAGE, fixed_mask=IMAGE[:, :, :9])
    with sentence(ValueError, "stride", "at least 1"):
        cost_volume(IMAGE, IMAGE, stride=0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"couplings": ()}, ("couplings", "above 0")),
        ({"couplings": (0.1, -1.0)}, ("couplings", "-1.0")),
        ({"consistency": -1}, ("consistency", "-1")),
        ({"factor": 0.5}, ("factor", "0.5")),
    ],
)
def test_options_that_make_no_sense_are_one_sentence(values, words):
    with sentence(ValueError, *words):
        ConvexOptions(**values)
