"""Views of linear registration: every state draws, drawing is pure, and what is drawn is how far off a matrix is."""

import math

import numpy as np
import pytest
import torch
from helpers import SHAPES, affine
from matplotlib.colors import to_hex
from test_plot import GRIDS
from viewing import draw, draw_every_state, require_pure, start

from reglib import field, losses, widgets
from reglib.grid import Axes, Grid, GridMismatchError, apply_affine
from reglib.plot import canvas
from reglib.widgets import Attempt, Slider, Valley

FLAT = {name: grid for name, grid in GRIDS.items() if grid.dim == 2}
WAYS = ("one", "two")


def egg(grid, *, share=0.5):
    """An ellipsoid about the middle of a grid, brighter at one end."""
    away = (grid.coordinates() + 0.5) / torch.tensor([float(n) for n in grid.shape]) - 0.5
    inside = (away / (0.5 * share)).square().sum(-1) < 1
    return (inside * (0.6 + 0.4 * away[..., 0]))[None, None]


def turned(grid, degrees, shift_mm=(0.0, 0.0)):
    """A turn about the middle of a 2-D grid, then a shift, as a world matrix; written apart from the library's."""
    a, (x, y) = math.radians(degrees), grid.center
    c, s = math.cos(a), math.sin(a)
    rows = [[c, -s, x - c * x + s * y + shift_mm[0]], [s, c, y - s * x - c * y + shift_mm[1]], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, dtype=torch.float64)


def attempts(grid, names=(-60, 0, 60)):
    """Turned eggs; the first way finds each, the second never moves."""
    made = []
    for k, name in enumerate(names):
        truth = turned(grid, 60.0 * (k - 1))
        moving = field.warp(egg(grid), field.affine_ddf(torch.linalg.inv(truth), grid), padding="zeros")
        made.append(Attempt(name, moving, truth, {"one": truth, "two": torch.eye(3, dtype=torch.float64)}))
    return made


def valley():
    losses_at = np.arange(20.0).reshape(4, 5)
    return Valley([-10.0, 0.0, 10.0, 20.0, 30.0], [-20.0, 0.0, 20.0, 40.0], losses_at, (10.0, 20.0))


def build(name, grid):
    image, truth, eye = egg(grid), turned(grid, 10.0), torch.eye(3, dtype=torch.float64)
    more = {"center_mm": torch.tensor(grid.center).double(), "axes": eye[:2, :2], "similarity": losses.mse_loss}
    paths = {"1 mm": [(0.0, 0.0), (1.0, 2.0)], "60 mm": [(0.0, 0.0), (10.0, 20.0)]}
    return {
        "pose_dial": lambda: widgets.pose_dial(image, image, grid, truth, reach_mm=4.0),
        "start_dial": lambda: widgets.start_dial(image, grid, attempts(grid)),
        "freedom_dial": lambda: widgets.freedom_dial(image, grid, attempts(grid, ("a", "b", "c"))),
        "flip_dial": lambda: widgets.flip_dial(image, image, grid, {"a": eye, "b": truth}, **more, length_mm=4.0),
        "cut_dial": lambda: widgets.cut_dial(image, image, grid, truth, most_mm=3.0),
        "step_dial": lambda: widgets.step_dial(valley(), paths),
    }[name]()


VIEWS = ("pose_dial", "start_dial", "freedom_dial", "flip_dial", "cut_dial", "step_dial")


@pytest.mark.parametrize("grid", FLAT)
@pytest.mark.parametrize("view", VIEWS)
def test_every_state_of_every_control_draws_at_one_size(view, grid):
    assert len(draw_every_state(*build(view, FLAT[grid]))) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure_and_lengths_say_so(view):
    render, controls = build(view, FLAT["oblique 2-D"])
    require_pure(render, controls)
    for name, control in controls.items():
        if isinstance(control, Slider):
            assert name.endswith("_mm") == (control.unit == "mm")


# -- how far off -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GRIDS)
def test_corners_are_those_of_the_box_around_what_is_bright(name):
    grid = GRIDS[name]
    image = torch.zeros(1, 1, *grid.shape)
    low, high = [2] * grid.dim, [n - 3 for n in grid.shape]
    image[(0, 0, *low)] = image[(0, 0, *high)] = 1.0
    found = grid.points(widgets.box_corners(image, grid), to=Axes.VOXEL, from_=Axes.WORLD)
    assert len(found) == 2**grid.dim
    np.testing.assert_allclose(found.amin(0).numpy(), low, atol=1e-9)
    np.testing.assert_allclose(found.amax(0).numpy(), high, atol=1e-9)
    with pytest.raises(ValueError, match=r"no voxel above 0.05"):
        widgets.box_corners(0 * image, grid)


def test_the_corner_error_of_a_shift_is_its_length_and_of_a_turn_its_chord():
    corners = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0]], dtype=torch.float64)
    eye, around = torch.eye(3, dtype=torch.float64), Grid((5, 5), affine(np.eye(2), (-2.0, -2.0)))
    assert widgets.corner_error_mm(turned(around, 0.0, (3.0, 4.0)), eye, corners) == pytest.approx(5.0)
    assert widgets.corner_error_mm(turned(around, 180.0), eye, corners) == pytest.approx(6.0)
    assert widgets.corner_error_mm(turned(around, 60.0), eye, corners) == pytest.approx(3.0)


# -- what is drawn -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FLAT)
def test_the_right_pose_is_no_millimeter_off_and_its_boxes_meet(name):
    grid = FLAT[name]
    truth = turned(grid, 30.0, (2.0, -4.0))
    render, controls = widgets.pose_dial(egg(grid), egg(grid), grid, truth)
    figure = render(start(controls, turn_deg=30.0, x_mm=2.0, y_mm=-4.0))
    assert figure.axes[0].get_title() == "corners: 0 mm off"
    *_, mine, true = [line.get_xydata() for line in figure.axes[0].lines]
    np.testing.assert_allclose(mine, true, atol=1e-6)
    away = render(start(controls, x_mm=8.0))
    assert away.axes[0].get_title() != "corners: 0 mm off"


def test_the_start_dial_shows_what_each_way_found():
    grid = FLAT["aligned 2-D"]
    render, controls = widgets.start_dial(egg(grid), grid, attempts(grid), found_mm=1.0)
    titles = {way: render(start(controls, turn_deg=60, way=way)).axes[1] for way in WAYS}
    assert titles["one"].get_title() == "end: 0 mm off"
    assert to_hex(titles["two"].title.get_color()) == canvas.FOLD_COLOR
    assert (controls["turn_deg"].low, controls["turn_deg"].high, controls["turn_deg"].step) == (-60, 60, 60)


def test_the_capture_map_is_loud_where_a_way_is_lost():
    grid = FLAT["aligned 2-D"]
    corners = widgets.box_corners(egg(grid), grid)
    figure = widgets.capture_map(attempts(grid), grid, corners, found_mm=1.0)
    colors = [to_hex(cell.get_facecolor()) == canvas.FOLD_COLOR for cell in figure.axes[0].patches]
    assert colors == [False, True, False, False, False, True]  # column by column: one, two
    draw(figure)


def test_overlays_need_a_matrix_and_take_another_grid():
    grid = FLAT["aligned 2-D"]
    there = Grid(grid.shape, grid.world_from_voxel + torch.tensor([[0.0, 0, 50], [0, 0, 0], [0, 0, 0]]))
    home = turned(grid, 0.0, (50.0, 0.0))
    image = egg(grid)
    figure = widgets.overlays(image, image, grid, {"home": home}, moving_grid=there)
    light = np.asarray(figure.axes[0].images[0].get_array())
    assert light[..., 0].max() > 0.9  # orange light: the moving image is there
    np.testing.assert_allclose(
        light,
        np.asarray(widgets.overlays(image, image, grid, {"same": torch.eye(3).double()}).axes[0].images[0].get_array()),
        atol=1e-3,
    )
    with pytest.raises(ValueError, match="at least one matrix"):
        widgets.overlays(image, image, grid, {})


def test_a_cut_field_of_view_moves_the_center_of_mass():
    grid = Grid(SHAPES[2], affine(np.diag([0.8, 1.0]), (3.0, -9.0)))
    truth = turned(grid, 0.0)
    render, controls = widgets.cut_dial(egg(grid, share=0.9), egg(grid, share=0.9), grid, truth, most_mm=5.0)
    assert render(start(controls)).axes[2].get_title() == "start: 0 mm off"
    assert render(start(controls, cut_mm=5.0)).axes[2].get_title() != "start: 0 mm off"


def test_flips_are_carried_by_their_matrix():
    grid = FLAT["aligned 2-D"]
    render, controls = build("flip_dial", grid)
    arrows = render(start(controls, candidate="b")).axes[1].lines
    center = apply_affine(turned(grid, 10.0), torch.tensor([grid.center], dtype=torch.float64))[0]
    np.testing.assert_allclose(arrows[0].get_xydata()[0], center.numpy(), atol=1e-5)


# -- bad input ---------------------------------------------------------------------------------------------------
def test_bad_input_gets_a_clear_sentence(no_jaxtyping):
    grid, solid = FLAT["aligned 2-D"], GRIDS["oblique 3-D"]
    image, truth = egg(grid), turned(grid, 10.0)
    with pytest.raises(ValueError, match="2-D images; got a 3-D grid"):
        widgets.pose_dial(egg(solid), egg(solid), solid, torch.eye(4).double())
    with pytest.raises(GridMismatchError, match="moving must be"):
        widgets.pose_dial(image, torch.rand(1, 1, 4, 5), grid, truth)
    uneven = [*attempts(grid), Attempt(90, image, truth, {"one": truth})]
    for some in ([], uneven):
        with pytest.raises(ValueError, match="each with the same ways"):
            widgets.start_dial(image, grid, some)
    with pytest.raises(ValueError, match="turns by shifts"):
        widgets.step_dial(Valley([0.0], [0.0, 1.0], np.zeros((1, 2)), (0.0, 0.0)), {"a": [(0.0, 0.0)]})
