"""Demons on images drawn by a formula: the truth, SciPy's gaussian and SimpleITK's demons are the references."""

import math
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import largest, oblique, sentence
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from test_optimize import SMALL, curved_pair, draw, error, fixed_grid, scene, true_ddf, waves

from reglib import field
from reglib.grid import Grid
from reglib.optimize import DemonsOptions, Level, demons, graph_diffusion
from reglib.phantoms import circle, cshape
from reglib.transforms import DenseDisplacement, Diffeomorphism, Sequential, Translation

QUIET = DemonsOptions(progress=False)
long_run = pytest.mark.usefixtures("no_jaxtyping")


def small_pair(size=1.5):
    picture = scene(SMALL)
    return draw(picture, SMALL, waves(SMALL, size)), draw(picture, SMALL)


# -- accuracy -----------------------------------------------------------------------------------------------------
@long_run
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("update", ["diffeomorphic", "additive"])
@pytest.mark.parametrize("forces", ["symmetric", "fixed", "moving"])
def test_demons_find_a_known_deformation(dim, update, forces):
    fixed, moving, truth = curved_pair(dim)
    options = DemonsOptions(progress=False, forces=forces)
    result = demons(fixed, moving, fixed_grid(dim), update=update, options=options)
    assert error(0 * truth, truth) > 2
    assert error(result.ddf, truth) < 0.5
    assert isinstance(result.transform, Diffeomorphism if update == "diffeomorphic" else DenseDisplacement)
    assert largest(result.warped, field.warp(moving, result.ddf, padding="zeros")) < 1e-6
    assert not result.interrupted


@long_run
@pytest.mark.parametrize("dim", [2, 3])
def test_demons_with_graph_diffusion_find_it_too(dim):
    fixed, moving, truth = curved_pair(dim)
    smooth = partial(graph_diffusion, fixed=fixed, sigma=2.0, contrast=0.5)
    assert error(demons(fixed, moving, fixed_grid(dim), smoothing=smooth, options=QUIET).ddf, truth) < 0.6


@long_run
def test_no_less_exact_than_simpleitk():
    """The same pair, levels of the same factors, as many steps, sigma 1.5 voxels."""
    fixed, moving, truth = curved_pair(3)
    filtered = sitk.DiffeomorphicDemonsRegistrationFilter()
    filtered.SetNumberOfIterations(60)
    filtered.SetSmoothDisplacementField(True)
    filtered.SetStandardDeviations(1.5)
    images = [sitk.GetImageFromArray(x[0, 0].numpy()) for x in (fixed, moving)]
    start = None
    for factor in (2, 1):
        small = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(x, factor / 2), [factor] * 3) for x in images]
        if start is None:
            start = filtered.Execute(*small)
        else:
            start = sitk.Resample(start, small[0], sitk.Transform(), sitk.sitkLinear, 0.0, start.GetPixelID())
            start = filtered.Execute(*small, start)
    theirs = torch.from_numpy(np.moveaxis(sitk.GetArrayFromImage(start), -1, 0)[::-1].copy())[None]
    ours = demons(fixed, moving, Grid(tuple(fixed.shape[2:])), levels=(2, 1), steps=(60, 60), options=QUIET).ddf
    assert error(theirs, truth) < 1.5
    assert error(ours, truth) < 1.2 * error(theirs, truth)


@long_run
def test_composed_pushes_do_not_fold_where_added_ones_do():
    fixed, moving = cshape((64, 64)), circle((64, 64))
    grid = Grid((64, 64))
    folds = {}
    for update in ("additive", "diffeomorphic"):
        result = demons(fixed, moving, grid, update=update, smoothing=1.0, steps=(200, 200, 200), options=QUIET)
        folds[update] = int((field.jacobian_determinant(result.ddf) <= 0).sum())
        assert float((result.warped - fixed).square().mean()) < 0.2 * float((moving - fixed).square().mean())
    assert folds["diffeomorphic"] == 0
    assert folds["additive"] > 10


def test_equal_images_stay():
    fixed, _ = small_pair()
    assert largest(demons(fixed, fixed, SMALL, options=QUIET).ddf) < 1e-6


@long_run
def test_a_moving_image_on_another_grid_and_a_start():
    grid = fixed_grid(2)
    other = Grid((70, 50), oblique(2, spacing=(0.9, 1.2)))
    picture, move = scene(grid), waves(grid, 3.0)
    shifted = Translation(grid)
    shifted.translation_mm.data += torch.tensor([6.0, -4.0])
    fixed = draw(picture, grid, lambda x: move(x) + np.array([6.0, -4.0]))
    result = demons(fixed, draw(picture, other), grid, moving_grid=other, start=shifted, options=QUIET)
    assert isinstance(result.transform, Sequential)
    truth = true_ddf(grid, lambda x: move(x) + np.array([6.0, -4.0]))
    assert error(result.ddf, truth, margin=12) < 0.6


@long_run
def test_each_pair_of_a_batch_is_as_alone():
    fixed, moving = small_pair()
    other, _ = small_pair(-1.0)
    options = DemonsOptions(progress=False, tolerance=-math.inf)
    both = demons(torch.cat([fixed, other]), moving.repeat(2, 1, 1, 1), SMALL, steps=(9, 9, 9), options=options).ddf
    for k, image in enumerate((fixed, other)):
        alone = demons(image, moving, SMALL, steps=(9, 9, 9), options=options).ddf
        assert largest(both[k : k + 1], alone) < 0.05


def test_only_what_the_mask_shows_pushes():
    fixed, moving = small_pair()
    mask = torch.zeros_like(fixed)
    mask[:, :, :8] = 1
    spoiled = torch.where(mask > 0, fixed, torch.rand(fixed.shape, generator=torch.Generator().manual_seed(0)))
    given = {"update": "additive", "smoothing": 0.0, "levels": (1,), "steps": (1,), "fixed_mask": mask}
    found = [demons(image, moving, SMALL, options=QUIET, **given).ddf for image in (fixed, spoiled)]
    assert largest(found[0][:, :, 8:]) == 0
    assert largest(found[0][:, :, :6]) > 0.1
    assert largest(found[0][:, :, :6], found[1][:, :, :6]) < 1e-3  # the range of the image differs


# -- one push -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("forces", ["symmetric", "fixed", "moving"])
def test_one_push_follows_its_formula(forces):
    """Written again in NumPy, in mm, and turned into voxels at the end."""
    fixed, moving = small_pair()
    options = DemonsOptions(progress=False, forces=forces, max_step=0.7)
    seen = []
    watching = DemonsOptions(progress=False, forces=forces, max_step=0.7, callback=lambda record, u: seen.append(u))
    demons(fixed, moving, SMALL, update="additive", smoothing=0.0, levels=(1,), steps=(2,), options=watching)
    f, m = fixed[0, 0].double().numpy(), moving[0, 0].double().numpy()
    image = {"symmetric": (f + m) / 2, "fixed": f, "moving": m}[forces]
    spacing = np.array(SMALL.spacing)
    slope = np.stack([g / s for g, s in zip(np.gradient(image), spacing, strict=True)])
    gap = f - m
    longest = options.max_step * math.sqrt((spacing**2).mean())
    push = gap * slope / ((slope**2).sum(0) + gap**2 / (4 * longest**2)) / spacing[:, None, None]
    inside = (slice(None), slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(seen[1][0].numpy()[inside], push[inside], atol=2e-3)
    lengths = np.sqrt(((push * spacing[:, None, None]) ** 2).sum(0))
    assert lengths.max() <= longest * (1 + 1e-9)


def test_what_smooths_the_field_and_what_the_push():
    fixed, moving = small_pair()
    seen = {}
    for name, smoothing, fluid in (("raw", 0.0, 0.0), ("elastic", 2.0, 0.0), ("fluid", 0.0, 2.0)):
        last = []
        options = DemonsOptions(progress=False, fluid_sigma=fluid, callback=lambda record, u, last=last: last.append(u))
        demons(fixed, moving, SMALL, update="additive", smoothing=smoothing, levels=(1,), steps=(3,), options=options)
        seen[name] = last
    blurred = np.stack([gaussian_filter(c, 2.0, mode="nearest", truncate=4) for c in seen["raw"][1][0].numpy()])
    for name in ("elastic", "fluid"):
        np.testing.assert_allclose(seen[name][1][0].numpy()[:, 8:-8, 8:-8], blurred[:, 8:-8, 8:-8], atol=2e-3)
    assert largest(seen["elastic"][2], seen["fluid"][2]) > 0.01


# -- graph diffusion ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_graph_diffusion_in_an_even_region_is_a_gaussian(dim, sigma):
    shape = (25, 23, 21)[:dim]
    ddf = torch.randn(1, dim, *shape, generator=torch.Generator().manual_seed(0))
    found = graph_diffusion(ddf, torch.ones(1, 1, *shape), sigma=sigma)[0].numpy()
    expected = ddf[0].numpy()
    for axis in range(1, dim + 1):
        expected = gaussian_filter1d(expected, sigma, axis, mode="reflect", truncate=8)
    assert np.abs(found - expected).max() < 0.15 * np.abs(expected).max()
    np.testing.assert_allclose(found.mean(), ddf.mean(), atol=1e-6)  # heat is neither made nor lost


def test_graph_diffusion_stops_at_an_edge():
    image = torch.zeros(1, 1, 20, 16)
    image[:, :, 10:] = 1
    ddf = torch.zeros(1, 2, 20, 16)
    ddf[:, :, 10:] = 3
    held = graph_diffusion(ddf, image, sigma=3.0, contrast=0.05)
    assert largest(held, ddf) < 1e-3
    assert largest(graph_diffusion(ddf, 0 * image, sigma=3.0), ddf) > 1
    assert largest(graph_diffusion(ddf, image, sigma=0.0), ddf) == 0
    small = torch.nn.functional.avg_pool2d(ddf, 2)
    assert largest(graph_diffusion(small, image, sigma=1.5, contrast=0.05), small) < 0.1


# -- its course ---------------------------------------------------------------------------------------------------
def test_history_levels_and_the_best_field():
    fixed, moving = small_pair()
    result = demons(fixed, moving, SMALL, levels=(Level(2, 7), Level(1, 5, smoothing_mm=0.5)), options=QUIET)
    assert [(r["level"], r["step"]) for r in result.history] == [(2, k) for k in range(7)] + [(1, k) for k in range(5)]
    assert result.history[6]["loss"] < result.history[0]["loss"]
    one = demons(fixed, moving, SMALL, levels=(1,), steps=(30,), options=QUIET)
    found = float((field.warp(moving, one.ddf) - fixed).square().mean())
    assert found <= min(r["loss"] for r in one.history) + 1e-6


def test_a_callback_may_end_a_level_and_an_interrupt_keeps_the_best():
    fixed, moving = small_pair()
    ends = DemonsOptions(progress=False, callback=lambda record, u: record["step"] == 2)
    assert len(demons(fixed, moving, SMALL, options=ends).history) == 9

    def interrupt(record, u):
        if record["step"] == 4:
            raise KeyboardInterrupt

    result = demons(fixed, moving, SMALL, levels=(2, 1), options=DemonsOptions(progress=False, callback=interrupt))
    assert result.interrupted
    assert len(result.history) == 5
    assert float((field.warp(moving, result.ddf) - fixed).square().mean()) < float((moving - fixed).square().mean())


def test_a_level_ends_when_nothing_is_gained():
    fixed, moving = small_pair()
    impatient = DemonsOptions(progress=False, tolerance=0.9, patience=3)
    assert len(demons(fixed, moving, SMALL, levels=(2, 1), options=impatient).history) == 12


# -- bad input ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"update": "both"}, ('update must be "diffeomorphic" or "additive"', "both")),
        ({"smoothing": -1.0}, ("smoothing must be a sigma of at least 0", "-1.0")),
        ({"levels": (2, 1), "steps": (3,)}, ("levels and steps must be of one length",)),
        ({"fixed_mask": torch.zeros(1, 1, *SMALL.shape)}, ("fixed_mask is empty",)),
    ],
)
def test_bad_arguments_are_named(given, words, no_jaxtyping):
    with sentence(ValueError, *words):
        demons(*small_pair(), SMALL, options=QUIET, **given)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DemonsOptions(forces="all"), ("forces must be", "all")),
        (lambda: DemonsOptions(max_step=0.0), ("max_step must be above 0 voxels", "max_step=0.0")),
        (lambda: DemonsOptions(fluid_sigma=-1.0), ("fluid_sigma at least 0", "-1.0")),
        (lambda: DemonsOptions(patience=0), ("patience at least 1", "patience=0")),
        (
            lambda: graph_diffusion(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4), sigma=-1.0),
            ("sigma must be", "-1.0"),
        ),
        (
            lambda: graph_diffusion(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4), contrast=0.0),
            ("contrast above 0",),
        ),
    ],
)
def test_impossible_options_are_refused(make, words, no_jaxtyping):
    with sentence(ValueError, *words):
        make()


def test_constant_images_and_images_elsewhere_are_refused(no_jaxtyping):
    fixed, moving = small_pair()
    with sentence(ValueError, "moving is constant"):
        demons(fixed, 0 * moving, SMALL, options=QUIET)
    far = Grid(SMALL.shape, np.diag([1.0, 1.0, 1.0]) + np.array([[0, 0, 900.0], [0, 0, 0], [0, 0, 0]]))
    with sentence(ValueError, "do not overlap"):
        demons(fixed, moving, SMALL, moving_grid=far, options=QUIET)
