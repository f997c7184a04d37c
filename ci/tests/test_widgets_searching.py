"""The cost volume's view: the cheapest move is marked where it is, in any orientation, and the truth beside it."""

import pytest
import torch
from test_widgets_bending import FLAT
from viewing import draw_every_state, require_every_control_matters, require_pure, start

from reglib import field, filters, widgets
from reglib.grid import GridMismatchError
from reglib.optimize import CostVolume, cost_volume

MOVE = (2, -1)  # voxels along each tensor axis


def scene(grid):
    """A texture, and the same moved by whole voxels: where each fixed voxel is to be read."""
    texture = torch.randn(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0))
    moving = filters.gaussian(texture, sigma=0.6)
    truth = torch.tensor(MOVE).reshape(1, 2, 1, 1).expand(1, 2, *grid.shape).float()
    return field.warp(moving, truth), moving, truth


def build(grid):
    fixed, moving, truth = scene(grid)
    return widgets.cost_dial(fixed, grid, cost_volume(fixed, moving, stride=1, radius=3), truth=truth)


@pytest.mark.parametrize("grid", FLAT)
def test_every_state_draws_on_a_figure_of_one_size(grid):
    assert len(draw_every_state(*build(FLAT[grid]))) == 1


def test_drawing_is_pure():
    require_pure(*build(next(iter(FLAT.values()))))


def test_a_click_changes_the_picture():
    require_every_control_matters(*build(next(iter(FLAT.values()))))


@pytest.mark.parametrize("grid", FLAT)
def test_the_cheapest_move_is_the_true_one_and_stands_on_the_palest_square(grid):
    render, controls = build(FLAT[grid])
    chart = render(start(controls)).axes[-1]
    cross, ring = ((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in chart.lines)
    assert cross == pytest.approx(ring, abs=1e-3)
    assert chart.get_title() == "0.0 mm apart"
    (picture,) = chart.images
    left, right, bottom, top = picture.get_extent()
    costs = picture.get_array()
    row = int((cross[1] - bottom) / (top - bottom) * costs.shape[0])
    column = int((cross[0] - left) / (right - left) * costs.shape[1])
    assert costs[row, column] == costs.min()


@pytest.mark.parametrize("grid", FLAT)
def test_a_click_looks_at_the_control_point_under_it(grid):
    grid = FLAT[grid]
    fixed, _, truth = scene(grid)
    costs = torch.ones(1, 9, *grid.shape)
    costs[0, 4, 3, 5] = 0  # at this one voxel alone, staying is cheapest
    table = cost_volume(fixed, fixed, stride=1, radius=1).displacements
    render, controls = widgets.cost_dial(fixed, grid, CostVolume(costs, table), truth=truth)
    at = widgets.paper.plane(grid)
    here = tuple(at.frame.mm((3, 5))[:2])
    assert float(render(start(controls, point=here)).axes[-1].images[0].get_array().min()) == 0
    assert (
        float(render(start(controls, point=tuple(at.frame.mm((9, 9))[:2]))).axes[-1].images[0].get_array().min()) == 1
    )


def test_bad_input_is_one_sentence():
    grid = next(iter(FLAT.values()))
    fixed, moving, truth = scene(grid)
    volume = cost_volume(fixed, moving, stride=2, radius=2)
    with pytest.raises(ValueError, match="a cost for each displacement"):
        widgets.cost_dial(fixed, grid, volume._replace(displacements=volume.displacements[1:]), truth=truth)
    with pytest.raises(GridMismatchError, match="fixed"):
        widgets.cost_dial(torch.zeros(1, 1, 9, 9), grid, volume, truth=torch.zeros(1, 2, 9, 9))
