"""How far from truth each quality of `reglib register` ends, on brains like those of the benchmark."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from reglib import metrics, phantoms, pipeline, transforms
from reglib.pipeline import Case, Settings, register_pair

pytestmark = pytest.mark.usefixtures("no_jaxtyping")


@pytest.fixture(scope="module")
def brains():
    """The first pair of the benchmark, as `ci/bench/registration.py` has it."""
    return phantoms.brain_cohort(2, seed=0, shape=(96, 112, 96), spacing=2.0, strength_mm=8.0).pair(0, 1)


def error_mm(pair, **settings):
    moving = (
        pair.moving if settings.get("similarity", "lncc") == "lncc" else (1.05 - pair.moving) * (pair.moving > 0.02)
    )
    case = Case(pair.fixed, moving, pair.fixed_grid, pair.moving_grid, None, None, None, None, None, None, ())
    ddf = register_pair(case, Settings(progress=False, **settings)).ddf
    assert metrics.jacobian_statistics(ddf)["folding_fraction"] == 0
    return float(metrics.tre(ddf, pair.truth.fixed_points, pair.truth.moving_points, fixed_grid=pair.fixed_grid).mean())


@pytest.mark.parametrize(("quality", "most_mm"), [("accurate", 0.22), ("fast", 0.35)])
def test_a_brain_with_the_same_contrast(brains, quality, most_mm):
    assert error_mm(brains, quality=quality) < most_mm


@pytest.mark.parametrize(("similarity", "most_mm"), [("ngf", 0.3), ("nmi", 0.3)])
def test_a_brain_with_the_contrast_inverted(brains, similarity, most_mm):
    assert error_mm(brains, similarity=similarity) < most_mm


@pytest.mark.parametrize("seed", [3, 4])
def test_slices_are_aligned_at_enough_voxels(seed):
    """At 28 voxels a histogram has so few of them that the second pair was turned by 27 degrees, and stayed so."""
    pair = phantoms.brain_cohort(2, seed=seed, shape=(96, 112), spacing=2.0, strength_mm=6.0).pair(0, 1)
    assert error_mm(pair) < 1


# -- rims ---------------------------------------------------------------------------------------------------------
def test_rims_count_where_contrasts_agree_and_not_where_they_are_turned_over():
    pair = phantoms.brain_cohort(2, shape=(32, 36, 32), spacing=5.5, noise=0.0).pair()
    still = transforms.Rigid(pair.fixed_grid)
    for moving, rim in ((pair.moving, False), (torch.where(pair.moving > 0, 1.0 - pair.moving, 0.0), True)):
        known = (None, None, None, None, None, None, ())
        case = pipeline.Case(pair.fixed, moving, pair.fixed_grid, pair.moving_grid, *known)
        masks = pipeline._without_rims(case, pair.fixed, moving, still)
        if not rim:
            assert masks == (None, None)
            continue
        inner = ndimage.binary_erosion(moving[0, 0].numpy() != 0, np.ones((3, 3, 3)))
        found = masks[1][0, 0].numpy() > 0
        assert (found[2:-2, 2:-2, 2:-2] == inner[2:-2, 2:-2, 2:-2]).all()
        half = torch.zeros_like(pair.fixed)
        half[:, :, :16] = 1
        masked = pipeline._without_rims(replace(case, fixed_mask=half), pair.fixed, moving, still)[0]
        assert torch.equal(masked, masks[0] * half)
