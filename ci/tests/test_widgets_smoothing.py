"""Views of demons: every state draws, drawing is pure, and the pushes that are drawn are those of the library."""

import numpy as np
import pytest
import torch
from test_plot import GRIDS
from test_widgets_bending import FLAT, bend
from test_widgets_capture import egg
from viewing import draw_every_state, require_every_control_matters, require_pure, start

from reglib import field, widgets
from reglib.grid import Grid, GridMismatchError
from reglib.optimize import DemonsOptions, Level, demons


def moved(grid):
    """An egg, and the same two voxels further along the first axis."""
    image = egg(grid)
    shift = field.identity_ddf(grid)
    shift[:, 0] = 2.0
    return image, field.warp(image, shift, padding="zeros")


def build(name, grid):
    fixed, moving = moved(grid)
    found = {
        what: {s: bend(grid, s, error_mm=s + k) for s in (0.5, 1.0, 2.0)} for k, what in enumerate(("field", "push"))
    }
    return {
        "edge_push": widgets.edge_push,
        "push_dial": lambda: widgets.push_dial(fixed, moving, grid),
        "sigma_curves": lambda: widgets.sigma_curves(found, grid, truth=0 * bend(grid, 1.0).ddf, before_mm=4.0),
    }[name]()


VIEWS = ("edge_push", "push_dial", "sigma_curves")


@pytest.mark.parametrize("grid", FLAT)
@pytest.mark.parametrize("view", VIEWS)
def test_every_state_draws_on_a_figure_of_one_size(view, grid):
    assert len(draw_every_state(*build(view, FLAT[grid]))) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure(view):
    require_pure(*build(view, next(iter(FLAT.values()))))


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_changes_the_picture(view):
    require_every_control_matters(*build(view, next(iter(FLAT.values()))))


def arrows_of(chart):
    """(from, to) of each arrow, voxels."""
    return np.array([(text.xyann[0], text.xy[0]) for text in chart.texts])


@pytest.mark.parametrize("apart", [3.0, -3.0])
def test_arrows_at_an_edge_point_to_where_the_moving_image_has_it(apart):
    render, controls = widgets.edge_push()
    ends = arrows_of(render(start(controls, apart=apart)).axes[0])
    push = ends[:, 1] - ends[:, 0]
    assert (np.sign(push) == np.sign(apart)).all()
    assert 0.5 < np.abs(push).max() <= controls["max_step"].value + 1e-9


def test_equal_edges_push_nothing():
    render, controls = widgets.edge_push()
    assert len(arrows_of(render(start(controls, apart=0.0)).axes[0])) == 0


def test_an_edge_is_pushed_as_demons_push_it():
    """The chart's formula against the library on the same edge, drawn as a strip."""
    render, controls = widgets.edge_push()
    ends = arrows_of(render(start(controls, apart=2.0)).axes[0])
    x = torch.arange(-12.0, 13.0)
    fixed, moving = (torch.sigmoid((x - at) / 1.2).expand(1, 1, 9, 25) for at in (0.0, 2.0))
    seen = []
    options = DemonsOptions(max_step=2.0, callback=lambda _, u: seen.append(u), progress=False)
    demons(fixed, moving, Grid((9, 25)), update="additive", smoothing=0.0, levels=[Level(1, steps=2)], options=options)
    library = seen[-1][0, 1, 4].numpy()
    middle = np.abs(ends[:, 0]) <= 4
    expected = library[np.round(ends[middle, 0]).astype(int) + 12]
    np.testing.assert_allclose(ends[middle, 1] - ends[middle, 0], expected, atol=0.15)  # its slopes are differences


def test_the_first_push_is_drawn_on_its_gap():
    grid = next(iter(FLAT.values()))
    render, controls = widgets.push_dial(*moved(grid), grid)
    rough, calm = (render(start(controls, sigma=sigma)).axes for sigma in (0.0, 6.0))
    assert "blue" in rough[0].get_title()
    longest = [max(float(np.ma.max(c.get_array())) for c in axes[1].collections) for axes in (rough, calm)]
    assert longest[1] < 0.6 * longest[0]


def test_images_must_lie_on_the_one_2d_grid():
    grid = next(iter(FLAT.values()))
    with pytest.raises(GridMismatchError, match="fixed"):
        widgets.push_dial(torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9), grid)
    solid = next(each for each in GRIDS.values() if each.dim == 3)
    with pytest.raises(ValueError, match="2-D grid"):
        widgets.push_dial(torch.zeros(1, 1, *solid.shape), torch.zeros(1, 1, *solid.shape), solid)
