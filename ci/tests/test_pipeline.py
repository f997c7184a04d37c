"""How far from truth each quality of `reglib register` ends, on brains like those of the benchmark."""

import pytest

from reglib import metrics, phantoms
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


@pytest.mark.parametrize(("similarity", "most_mm"), [("ngf", 0.55), ("nmi", 0.6)])
def test_a_brain_with_the_contrast_inverted(brains, similarity, most_mm):
    assert error_mm(brains, similarity=similarity) < most_mm


@pytest.mark.parametrize("seed", [3, 4])
def test_slices_are_aligned_at_enough_voxels(seed):
    """At 28 voxels a histogram has so few of them that the second pair was turned by 27 degrees, and stayed so."""
    pair = phantoms.brain_cohort(2, seed=seed, shape=(96, 112), spacing=2.0, strength_mm=6.0).pair(0, 1)
    assert error_mm(pair) < 1
