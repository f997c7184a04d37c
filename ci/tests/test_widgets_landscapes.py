"""Views of similarity: every state draws, drawing is pure, and what is drawn is what the losses say."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import SHAPES, oblique, smooth_image
from matplotlib.colors import to_hex
from test_plot import GRIDS
from viewing import draw_every_state, require_pure, start

from reglib import field, losses, plot, widgets
from reglib.grid import Axes, Grid, GridMismatchError
from reglib.plot import canvas
from reglib.widgets import Slider

FLAT = {name: grid for name, grid in GRIDS.items() if grid.dim == 2}
LOSSES = {"MSE": losses.mse_loss, "NCC²": partial(losses.ncc_loss, squared=True)}
OFFSETS = [-4.0, -2.0, 0.0, 2.0, 4.0]
ROBUST = {"MSE": losses.mse_loss, "MAE": losses.mae_loss}


def blob(grid, *, sigma_mm=4.0):
    """A gaussian about the middle of a 2-D grid."""
    away = grid.coordinates(Axes.WORLD) - torch.tensor(grid.center)
    return torch.exp(-away.square().sum(-1) / (2 * sigma_mm**2))[None, None]


def build(name, grid):
    fixed, movings = blob(grid), {"same": blob(grid), "negative": 1 - blob(grid)}
    return {
        "similarity_dial": lambda: widgets.similarity_dial(fixed, movings, grid, LOSSES, reach_mm=4, reach_deg=10),
        "landscape_walker": lambda: widgets.landscape_walker(fixed, movings, grid, LOSSES, reach_mm=4, step_mm=2),
        "joint_histogram": lambda: widgets.joint_histogram(fixed, movings, grid, losses.mi_loss),
        "local_correlation": lambda: widgets.local_correlation(fixed, movings, grid),
        "penalties": lambda: widgets.penalties(lambda t: ROBUST | {"Tukey": partial(losses.tukey_loss, c=t)}),
    }[name]()


VIEWS = ("similarity_dial", "landscape_walker", "joint_histogram", "local_correlation", "penalties")
IMAGES = VIEWS[:-1]


@pytest.mark.parametrize("grid", FLAT)
@pytest.mark.parametrize("view", VIEWS)
def test_every_state_of_every_control_draws_at_one_size(view, grid):
    assert len(draw_every_state(*build(view, FLAT[grid]))) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_lengths_say_so_in_name_and_unit(view):
    _, controls = build(view, FLAT["oblique 2-D"])
    for name, control in controls.items():
        if isinstance(control, Slider):
            assert name.endswith("_mm") == (control.unit == "mm")


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure(view):
    require_pure(*build(view, FLAT["oblique 2-D"]))


@pytest.mark.parametrize("view", IMAGES)
def test_images_must_be_flat_on_the_grid_and_named(view, no_jaxtyping):
    grid, solid = FLAT["oblique 2-D"], GRIDS["oblique 3-D"]
    image, small, cube = blob(grid), torch.rand(1, 1, 5, 6), torch.rand(1, 1, *solid.shape)
    more = {"joint_histogram": (losses.mi_loss,), "local_correlation": ()}.get(view, (LOSSES,))
    make = getattr(widgets, view)
    with pytest.raises(GridMismatchError, match="as its grid"):
        make(image, {"small": small}, grid, *more)
    with pytest.raises(ValueError, match="2-D images; got a 3-D grid"):
        make(cube, {"cube": cube}, solid, *more)
    with pytest.raises(ValueError, match="at least one image"):
        make(image, {}, grid, *more)


# -- poses and walks -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FLAT)
def test_a_pose_turns_about_the_middle_and_shifts_in_the_world(name):
    grid = FLAT[name]
    ddf = widgets.pose_ddf(grid, x_mm=1.5, y_mm=-2.0, turn_deg=30.0)
    middle = torch.tensor(grid.center, dtype=torch.float64)
    points = middle + torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    voxels = grid.points(points, to=Axes.VOXEL, from_=Axes.WORLD)
    found = grid.points(field.warp_points(voxels[None], ddf.double())[0], to=Axes.WORLD, from_=Axes.VOXEL)
    turned = [2 * np.cos(np.pi / 6), 2 * np.sin(np.pi / 6)]
    expected = middle.numpy() + np.array([1.5, -2.0]) + np.array([[0.0, 0.0], turned])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_a_walk_is_the_loss_of_each_pose():
    grid = Grid(SHAPES[2], oblique(2))
    fixed, moving = smooth_image(grid.shape), smooth_image(grid.shape, seed=1)
    for along, (x, y, turn) in widgets.WALKS.items():
        values = widgets.walk(losses.mse_loss, fixed, moving, grid, OFFSETS, along=along)
        poses = [widgets.pose_ddf(grid, x_mm=x * t, y_mm=y * t, turn_deg=turn * t) for t in OFFSETS]
        expected = [float((field.warp(moving, ddf) - fixed).square().mean()) for ddf in poses]
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"along must be one of x, y.*got 'z'"):
        widgets.walk(losses.mse_loss, fixed, moving, grid, OFFSETS, along="z")


@pytest.mark.parametrize(
    ("values", "reach"),
    [
        ([9, 4, 1, 4, 9], 4),  # a valley
        ([9, 4, 1, 4, 3], 2),  # a fold on one side
        ([3, 4, 1, 1, 9], 0),  # no slope at all on one side
        ([0, 1, 2, 1, 0], 0),  # a hill
        ([9, np.nan, 1, 4, 9], 0),
    ],
)
def test_capture_range_ends_at_the_first_slope_that_leads_away(values, reach):
    assert widgets.capture_range(OFFSETS, values) == reach


def test_capture_range_needs_the_truth_among_the_offsets():
    with pytest.raises(ValueError, match="must hold 0 and as many"):
        widgets.capture_range([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="must hold 0 and as many"):
        widgets.capture_range(OFFSETS, [1.0, 2.0])


# -- what is drawn ---------------------------------------------------------------------------------------------
def bar_colors(figure):
    return [to_hex(bar.get_facecolor()) for bar in figure.axes[1].patches]


def test_the_dial_is_loud_where_a_loss_prefers_a_wrong_pose():
    render, controls = build("similarity_dial", FLAT["aligned 2-D"])
    right = render(start(controls))
    wrong = render(start(controls, x_mm=4.0))
    inverted = render(start(controls, x_mm=4.0, moving="negative"))
    assert bar_colors(right) == bar_colors(wrong) == [canvas.WARPED_COLOR] * 2
    assert bar_colors(inverted) == [canvas.FOLD_COLOR, canvas.WARPED_COLOR]  # MSE flees, r² does not
    widths = [[bar.get_width() for bar in figure.axes[1].patches] for figure in (right, wrong)]
    np.testing.assert_allclose(widths[0], 0, atol=1e-4)
    assert min(widths[1]) > 0.3


def test_the_walker_writes_and_shades_the_capture_range():
    render, controls = build("landscape_walker", FLAT["aligned 2-D"])
    titles = [panel.get_title() for panel in render(start(controls)).axes[:2]]
    assert titles == ["MSE: 4 mm", "NCC²: 4 mm"]
    turned = render(start(controls, along="turn", moving="negative"))
    assert turned.axes[0].get_title() == "MSE: 0 deg"
    assert to_hex(turned.axes[0].title.get_color()) == canvas.FOLD_COLOR


def test_landscape_draws_the_curves_it_is_given():
    curves = {name: [float(k * j * j) for j in range(-2, 3)] for k, name in enumerate("abcde", 1)}
    figure = plot.landscape(curves, OFFSETS, captured=dict.fromkeys("abcde", 2.0))
    shown = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in shown] == [f"{name}: 2 mm" for name in "abcde"]
    for panel, values in zip(shown, curves.values(), strict=True):
        truth, line = panel.lines
        assert list(truth.get_xdata()) == [0, 0]
        assert truth.get_linestyle() == "--"
        np.testing.assert_array_equal(line.get_xydata(), np.transpose([OFFSETS, values]))
        (band,) = panel.patches
        assert (band.get_x(), band.get_x() + band.get_width()) == (-2, 2)
    with pytest.raises(ValueError, match="5 values each"):
        plot.landscape({"a": [1.0]}, OFFSETS)
    with pytest.raises(ValueError, match="not be empty"):
        plot.landscape({}, OFFSETS)


def test_the_joint_histogram_counts_every_voxel_and_says_the_information():
    grid = FLAT["aligned 2-D"]
    render, controls = build("joint_histogram", grid)
    panel = render(start(controls, bins=8)).axes[1]
    counts = np.expm1(np.asarray(panel.collections[0].get_array()))
    assert counts.shape == (8, 8)
    assert counts.sum() == pytest.approx(np.prod(grid.shape))
    assert counts[~np.eye(8, dtype=bool)].sum() == pytest.approx(0)  # equal images: the diagonal
    score = -float(losses.mi_loss(blob(grid), blob(grid), bins=8))
    assert panel.get_title() == f"mutual information {score:.2f} nats"


def test_local_correlation_is_what_the_loss_averages():
    fixed, warped = (smooth_image((16, 13), seed=k).double() for k in (0, 1))
    for window in (3, 7):
        score = widgets.correlation_map(warped, fixed, window=window)
        assert 1 - float(score.mean()) == pytest.approx(float(losses.lncc_loss(warped, fixed, window=window)), abs=1e-4)


def test_flat_windows_and_zeros_beyond_the_border_score_as_asked():
    flat = torch.full((1, 1, 16, 13), 0.5)
    assert (widgets.correlation_map(flat, flat, window=3) == 0).all()
    assert (widgets.correlation_map(flat, flat, window=3, flat=1.0) == 1).all()
    filled = widgets.correlation_map(flat, flat, window=3, zeros=True)
    assert (filled[..., 1:-1, 1:-1] == 0).all()
    torch.testing.assert_close(filled[..., 0, :], torch.ones(1, 1, 13, dtype=torch.float64))  # an edge nobody drew


def test_penalties_are_the_losses_of_one_voxel_and_their_slopes():
    render, controls = build("penalties", FLAT["aligned 2-D"])
    left, right = render(start(controls, threshold=0.5)).axes
    e, cost = left.lines[0].get_data()
    np.testing.assert_allclose(cost, np.square(e), rtol=1e-5)
    np.testing.assert_allclose(right.lines[0].get_ydata(), 2 * np.asarray(e), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.abs(right.lines[1].get_ydata())[e != 0], 1, rtol=1e-4)
    assert np.abs(np.asarray(right.lines[2].get_ydata())[np.abs(e) > 0.51]).max() == 0  # Tukey has let go


def test_the_score_table_writes_all_numbers_and_is_loud_where_asked():
    scores = {"a": {"x": 1.0, "y": 12.25}, "b": {"x": 0.0, "y": 3.0}}
    panel = widgets.score_table(scores, title="mm", loud=lambda v: v > 10).axes[0]
    assert [text.get_text() for text in panel.texts] == ["1.0", "12.2", "0.0", "3.0"]
    assert [to_hex(patch.get_facecolor()) for patch in panel.patches] == [canvas.FOLD_COLOR]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["x", "y"]
    with pytest.raises(ValueError, match="at least one row"):
        widgets.score_table({})
    assert widgets.score_table({"a": {"nearer by %": -20.0}, "b": {"nearer by %": 5.0}}).axes[0].texts


def test_smoothing_is_by_millimeters():
    grid = Grid((41, 41), np.diag([0.5, 2.0, 1.0]))
    spike = torch.zeros(1, 1, 41, 41)
    spike[..., 20, 20] = 1
    spread = widgets.smoothed(spike, grid, 2.0)[0, 0].double()
    away = (torch.arange(41, dtype=torch.float64) - 20).square()
    for axis, step in ((0, 0.5), (1, 2.0)):
        width_mm = float((spread.sum(1 - axis) * away).sum().sqrt()) * step
        assert width_mm == pytest.approx(2.0, rel=0.05)
