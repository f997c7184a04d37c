"""Views of deformable registrations: every state draws, drawing is pure, and what is drawn is what was found."""

import math

import numpy as np
import pytest
import torch
from helpers import sentence, smooth_ddf
from test_plot import GRIDS
from test_widgets_capture import egg
from viewing import draw_every_state, require_every_control_matters, require_pure, start

from reglib import field, losses, widgets
from reglib.grid import GridMismatchError
from reglib.widgets import Bend

FLAT = {name: grid for name, grid in GRIDS.items() if grid.dim == 2}
WEIGHTS = (0.1, 1.0, 10.0)


def bend(grid, size, **known):
    return Bend(smooth_ddf(grid.shape, largest=size), **known)


def tried(grid):
    """Two models at three weights; the second folds at the smallest."""
    sizes = {"calm": (1.0, 0.8, 0.5), "wild": (60.0, 2.0, 0.5)}
    return {
        name: {
            w: bend(grid, s, error_mm=abs(math.log10(w)) + 1, overlap=0.5 + 0.1 * k) for k, (w, s) in enumerate(each)
        }
        for name, each in ((name, list(zip(WEIGHTS, s, strict=True))) for name, s in sizes.items())
    }


def build(name, grid):
    image, truth, found = egg(grid), smooth_ddf(grid.shape, largest=2.0), tried(grid)
    still = torch.zeros_like(truth)
    trails = {"a": [still, truth / 2, truth], "b": [still, still, still]}
    return {
        "bend_gallery": lambda: widgets.bend_gallery(image, image, grid, {"a": bend(grid, 1.0), "b": bend(grid, 60.0)}),
        "weight_curves": lambda: widgets.weight_curves(found, grid, truth=truth, before_mm=4.0),
        "spacing_curve": lambda: widgets.spacing_curve(found["wild"], grid, truth=truth, before_mm=4.0),
        "ridge_walk": lambda: widgets.ridge_walk(
            image, image, grid, truth, still, loss=losses.mse_loss, factors=(1, 2), points=5
        ),
        "steps_dial": lambda: widgets.steps_dial(trails, image, grid, every=10, fixed=image),
        "volume_dial": lambda: widgets.volume_dial(found, (image > 0).long(), grid),
    }[name]()


VIEWS = ("bend_gallery", "weight_curves", "spacing_curve", "ridge_walk", "steps_dial", "volume_dial")


@pytest.mark.parametrize("grid", FLAT)
@pytest.mark.parametrize("view", VIEWS)
def test_every_state_draws_on_a_figure_of_one_size(view, grid):
    assert len(draw_every_state(*build(view, FLAT[grid]))) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure(view):
    require_pure(*build(view, next(iter(FLAT.values()))))


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_changes_the_picture(view):
    # of an egg against itself, coarse and fine look alike where the walk begins
    require_every_control_matters(*build(view, next(iter(FLAT.values()))), but=("factor",))


def test_folds_are_counted_and_named():
    grid = next(iter(FLAT.values()))
    wild = bend(grid, 60.0, error_mm=3.21)
    assert wild.folds == int((field.jacobian_determinant(wild.ddf) <= 0).sum()) > 0
    figure = widgets.bends_in_a_row({"calm": bend(grid, 0.5, error_mm=1.0), "wild": wild}, grid)
    written = [[text.get_text() for text in panel.texts] for panel in figure.axes]
    assert "no fold" in written[0]
    assert f"{wild.folds} folded" in written[1]
    assert "3.2 mm off" in written[1]


def test_a_curve_shows_each_error_and_rings_the_chosen_one():
    grid = next(iter(FLAT.values()))
    found = tried(grid)
    render, controls = widgets.weight_curves(found, grid, truth=smooth_ddf(grid.shape, largest=2.0), before_mm=4.0)
    assert controls["log10_weight"].value == 0.0  # where the errors are least together
    chart = render(start(controls, model="wild", log10_weight=-1.0)).axes[-1]
    lines = [line for line in chart.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 2
    for line in lines:
        np.testing.assert_allclose(line.get_xdata(), WEIGHTS)
        np.testing.assert_allclose(line.get_ydata(), [2.0, 1.0, 2.0])
    assert chart.get_title() == "2.00 mm off"
    folded = [line.get_xdata() for line in chart.lines if line.get_marker() == "s"]
    assert [list(x) for x in folded] == [[0.1]]


def test_the_loss_on_the_way_is_the_loss_there():
    grid = next(iter(FLAT.values()))
    image, truth = egg(grid), smooth_ddf(grid.shape, largest=3.0)
    render, controls = widgets.ridge_walk(
        image, image, grid, truth, 0 * truth, loss=losses.mse_loss, factors=(1,), points=3
    )
    figure = render(start(controls))
    (way,) = [line for line in figure.axes[-1].lines if len(line.get_xdata()) == 3]
    expected = [float(losses.mse_loss(field.warp(image, (1 - t) * truth), image)) for t in (0, 0.5, 1)]
    np.testing.assert_allclose(way.get_ydata(), expected, rtol=1e-4, atol=1e-9)
    assert figure.axes[-1].get_title() == "downhill all the way"


def test_the_spread_of_a_body_is_that_of_its_log_determinants():
    ddf = smooth_ddf((20, 18), largest=1.0)
    body = torch.zeros(1, 1, 20, 18)
    body[..., 4:12, 4:12] = 1
    inside = field.jacobian_determinant(ddf)[..., 4:12, 4:12].flatten().double().numpy()
    assert abs(widgets.spread_of(ddf, body) - np.log(inside).std(ddof=1)) < 1e-5
    assert widgets.spread_of(0 * ddf, body) == 0


def test_bad_input_is_named(no_jaxtyping):
    grid = next(iter(FLAT.values()))
    truth, found = smooth_ddf(grid.shape, largest=2.0), tried(grid)
    with sentence(ValueError, "at least one registration"):
        widgets.bends_in_a_row({}, grid)
    with sentence(ValueError, "at least two weights above 0"):
        widgets.weight_curves({"a": {1.0: found["calm"][1.0]}}, grid, truth=truth, before_mm=4.0)
    with sentence(ValueError, "at the same settings"):
        widgets.weight_curves({"a": found["calm"], "b": {1.0: found["calm"][1.0]}}, grid, truth=truth, before_mm=4.0)
    with sentence(ValueError, "needs its error_mm"):
        widgets.spacing_curve({1.0: bend(grid, 1.0)}, grid, truth=truth, before_mm=4.0)
    with sentence(ValueError, "trails must hold as many fields each"):
        widgets.steps_dial({"a": [truth], "b": [truth, truth]}, egg(grid), grid, every=10, fixed=egg(grid))
    with sentence(ValueError, "needs its overlap"):
        widgets.volume_dial({"a": {1.0: bend(grid, 1.0)}}, (egg(grid) > 0).long(), grid)
    with pytest.raises(GridMismatchError):
        widgets.bends_in_a_row({"small": Bend(truth[..., :-1])}, grid)
