"""Views of label and point losses: every state draws, drawing is pure, and what is drawn is what the losses say."""

from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from test_plot import GRIDS
from viewing import draw_every_state, require_pure, start

from reglib import field, losses, widgets
from reglib.grid import Axes, Grid, GridMismatchError
from reglib.plot import canvas
from reglib.widgets import Choice, Slider

GRID = Grid.centered((31, 18), (2.0, 2.5))
FIXED, MOVING = (widgets.disc_mm(GRID, 6.0, (x, 0.0)).round() for x in (-12.0, 12.0))
AMOUNTS = [2.0 * k for k in range(13)]
LOSSES = {"Dice": losses.dice_loss, "scales": losses.multiscale(losses.dice_loss, (0.0, 2.0, 4.0))}
POINTS = {"TRE": losses.tre_loss, "closest point": partial(losses.closest_point_loss, symmetric=True)}


def off_by(amount):
    arrow = torch.stack([(24.0 - amount) / 2.0, torch.zeros(())])
    return arrow.reshape(1, 2, 1, 1).expand(1, 2, *GRID.shape)


def objective(ddf, loss="Dice"):
    return LOSSES[loss](field.warp(MOVING, ddf, padding="zeros"), FIXED)


def outline(a, b, count=36):
    angle = torch.arange(count) * (2 * torch.pi / count)
    return torch.stack([a * angle.cos(), b * angle.sin()], dim=-1)[None].double()


def dial(**options):
    knobs = {"loss": Choice(tuple(LOSSES), "Dice")}
    return widgets.overlap_dial(FIXED, MOVING, GRID, off_by, objective, AMOUNTS, start=20.0, knobs=knobs, **options)


def blurs():
    at = partial(lambda sigma: losses.multiscale(losses.dice_loss, (sigma,), spacing=GRID.spacing))
    return widgets.blurred_overlaps(FIXED, MOVING, GRID, off_by, at, (0.0, 4.0, 8.0), farthest_mm=24.0)


def swirls():
    labels = widgets.disc_mm(GRID, 18.0).round().long()
    return widgets.hidden_swirl(labels.float(), labels, GRID, center_mm=(0.0, 0.0), radius_mm=14.0)


VIEWS = {
    "overlap_dial": dial,
    "blurred_overlaps": blurs,
    "price_of_a_shift": lambda: widgets.price_of_a_shift({"Dice": losses.dice_loss}, (2.0, 8.0)),
    "closest_trap": lambda: widgets.closest_trap({"circle": outline(9, 9), "ellipse": outline(12, 6)}, POINTS),
    "hidden_swirl": swirls,
}


@pytest.mark.parametrize("view", VIEWS)
def test_every_state_of_every_control_draws_at_one_size(view):
    assert len(draw_every_state(*VIEWS[view]())) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_lengths_say_so_in_name_and_unit(view):
    _, controls = VIEWS[view]()
    for name, control in controls.items():
        if isinstance(control, Slider):
            assert name.endswith("_mm") == (control.unit == "mm")


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure(view):
    require_pure(*VIEWS[view]())


# -- slopes -----------------------------------------------------------------------------------------------------
def test_slopes_are_the_derivative_and_zero_where_none_arrives():
    found = widgets.slopes(lambda ddf: ddf.square().sum(), off_by, [20.0, 22.0])
    voxels = np.prod(GRID.shape)
    np.testing.assert_allclose(found, [[4 * voxels, -2 * voxels], [voxels, -voxels]], rtol=1e-5)
    cut = widgets.slopes(lambda ddf: objective(ddf.detach()), off_by, [4.0])
    assert cut[0][0] > 0
    assert cut[0][1] == 0


@pytest.mark.parametrize(
    ("values", "home", "reach"),
    [
        ([0, 1, 2, 2, 3], 0.0, 4.0),  # flat from 4
        ([0, 1, 2, 3, 4], 0.0, 8.0),  # to the end of a walk on one side
        ([3, 1, 0, 1, 0], 4.0, 2.0),  # two sides: the shorter one
        ([1, 1, 1, 1, 1], 0.0, 0.0),
        ([0, 1, np.nan, 3, 4], 0.0, 2.0),
    ],
)
def test_reach_ends_at_the_first_step_that_does_not_pay(values, home, reach):
    assert widgets.reach([0.0, 2.0, 4.0, 6.0, 8.0], values, home=home) == reach


def test_reach_needs_home_among_the_amounts():
    with pytest.raises(ValueError, match=r"must hold home, 1.*got 2 and 2"):
        widgets.reach([0.0, 2.0], [0.0, 1.0], home=1.0)
    with pytest.raises(ValueError, match="got 2 and 1"):
        widgets.reach([0.0, 2.0], [0.0])


# -- overlap ----------------------------------------------------------------------------------------------------
def titles(figure):
    return [panel.get_title() for panel in figure.axes]


def test_the_dial_is_loud_where_there_is_no_slope():
    render, controls = dial()
    apart, near, home = (render(start(controls, off_mm=x)) for x in (20.0, 6.0, 0.0))
    assert titles(apart) == ["overlap", "loss 1.000", "no slope"]
    assert to_hex(apart.axes[2].title.get_color()) == canvas.FOLD_COLOR
    assert titles(near)[2] == "downhill: home"
    assert titles(home)[1:] == ["loss 0.000", "we are home"]
    assert titles(render(start(controls, loss="scales")))[2] == "downhill: home"


def test_the_dial_says_when_downhill_leads_away():
    view = widgets.overlap_dial(FIXED, MOVING, GRID, off_by, lambda ddf: -objective(ddf), AMOUNTS, start=6.0)
    figure = view[0](start(view[1]))
    assert titles(figure)[2] == "downhill: away from home"
    assert to_hex(figure.axes[2].title.get_color()) == canvas.FOLD_COLOR


def test_the_dial_draws_the_curve_the_start_in_gray_and_where_we_are():
    render, controls = dial()
    plain, changed = render(start(controls)), render(start(controls, loss="scales"))
    values = [float(objective(off_by(torch.tensor(a)))) for a in AMOUNTS]
    np.testing.assert_allclose(plain.axes[1].lines[0].get_ydata(), values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        changed.axes[1].lines[0].get_ydata(), values, rtol=1e-5, atol=1e-6
    )  # gray, below the new curve
    many = [float(objective(off_by(torch.tensor(a)), loss="scales")) for a in AMOUNTS]
    np.testing.assert_allclose(changed.axes[1].lines[1].get_ydata(), many, rtol=1e-5)
    (x,), (y,) = plain.axes[1].lines[-1].get_data()
    assert (x, y) == (20.0, pytest.approx(1.0))


def test_the_dial_draws_masks_as_the_objective_sees_them():
    render, controls = dial(seen=lambda mask, loss: 0 * mask if loss == "scales" else mask)
    shown, hidden = (np.asarray(render(start(controls, loss=x)).axes[0].images[0].get_array()) for x in LOSSES)
    assert shown.max() == 1
    assert hidden.max() == 0


def test_the_dial_draws_the_mask_as_it_is_read():
    def read(ddf, loss):
        warped = field.warp(MOVING, ddf, mode="nearest" if loss == "scales" else "bilinear", padding="zeros")
        assert not warped.requires_grad
        return warped

    render, controls = dial(read=read)
    figures = (render(start(controls, loss=loss, off_mm=3.0)) for loss in LOSSES)
    soft, nearest = (np.asarray(figure.axes[0].images[0].get_array()) for figure in figures)
    assert len(np.unique(soft[..., 0])) > len(np.unique(nearest[..., 0])) == 2


def test_the_dial_refuses_what_it_cannot_draw(no_jaxtyping):
    small = torch.ones(1, 1, 5, 6)
    with pytest.raises(GridMismatchError, match="as its grid"):
        widgets.overlap_dial(small, MOVING, GRID, off_by, objective, AMOUNTS, start=0.0)
    with pytest.raises(ValueError, match="must hold home, 1, where the map is exact"):
        widgets.overlap_dial(FIXED, MOVING, GRID, off_by, objective, AMOUNTS, start=0.0, home=1.0)
    solid = GRIDS["aligned 3-D"]
    cube = torch.ones(1, 1, *solid.shape)
    with pytest.raises(ValueError, match="2-D masks; got a 3-D grid"):
        widgets.overlap_dial(cube, cube, solid, off_by, objective, AMOUNTS, start=0.0)


def test_blurred_masks_say_their_loss_and_touch():
    render, controls = blurs()
    figure = render(start(controls))
    said = [float(title.split(": ")[1]) for title in titles(figure)]
    assert said[0] == 1
    assert said[2] < said[1] < 1.001
    pictures = [np.asarray(panel.images[0].get_array()) for panel in figure.axes]
    middle = [picture[9, 15].sum() for picture in pictures]
    assert middle[0] == 0
    assert middle[2] > middle[1]


# -- size -------------------------------------------------------------------------------------------------------
def test_the_dice_of_two_discs_is_their_lens():
    assert widgets.disc_dice(5.0, 0.0) == pytest.approx(1)
    assert widgets.disc_dice(5.0, 10.0) == pytest.approx(0, abs=1e-12)
    assert widgets.disc_dice(5.0, 30.0) == pytest.approx(0, abs=1e-12)
    grid = Grid.centered((201, 161), (0.2, 0.2))
    pair = [widgets.disc_mm(grid, 8.0, (x, 0.0)) for x in (-3.0, 3.0)]
    assert 1 - float(losses.dice_loss(*pair)) == pytest.approx(widgets.disc_dice(8.0, 6.0), abs=2e-3)


def test_a_disc_has_its_area():
    grid = Grid.centered((61, 49), (1.0, 1.5))
    area = float(widgets.disc_mm(grid, 15.0, (2.0, -3.0)).sum()) * 1.5
    assert area == pytest.approx(np.pi * 225, rel=0.02)


def test_the_same_shift_is_dearer_for_the_small():
    render, controls = VIEWS["price_of_a_shift"]()
    drawn, exact = render(start(controls)).axes[0].lines
    small, large = drawn.get_ydata()
    assert small > 3 * large
    np.testing.assert_allclose([exact.get_ydata()[0], exact.get_ydata()[-1]], [small, large], atol=0.01)
    still, _ = render(start(controls, shift_mm=0.0)).axes[0].lines
    np.testing.assert_allclose(still.get_ydata(), 0, atol=1e-5)


# -- points -----------------------------------------------------------------------------------------------------
def test_points_turn_counterclockwise_about_the_origin():
    turned = widgets.turn_points(torch.tensor([[[2.0, 0.0]]]), 90.0)
    torch.testing.assert_close(turned, torch.tensor([[[0.0, 2.0]]]), atol=1e-6, rtol=0)


def test_closest_points_are_fooled_and_drawn_to_the_closest():
    render, controls = VIEWS["closest_trap"]()
    figure = render(start(controls, outline="ellipse", off_deg=180.0))
    pairs, closest = (line for line in figure.axes[1].lines if len(line.get_xdata()) > 2)
    assert pairs.get_ydata()[-1] == pytest.approx(float(2 * outline(12, 6).norm(dim=-1).mean()), rel=1e-5)
    assert closest.get_ydata()[-1] == pytest.approx(0, abs=1e-5)
    assert max(closest.get_ydata()) > 1
    figure = render(start(controls, outline="ellipse", off_deg=40.0))
    (drawn,) = (c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    ends = np.array(drawn.get_segments())
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    points = outline(12, 6)
    expected = torch.cdist(widgets.turn_points(points, 40.0)[0], points[0]).min(1).values
    np.testing.assert_allclose(lengths, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="at least one outline"):
        widgets.closest_trap({}, POINTS)


# -- what lies between --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name, grid in GRIDS.items() if grid.dim == 2])
def test_a_swirl_turns_its_center_in_the_world_and_leaves_the_rest(name):
    grid, turn = GRIDS[name], 60.0
    center = grid.points(torch.tensor([[8.0, 6.0]], dtype=torch.float64), to=Axes.WORLD, from_=Axes.VOXEL)[0]
    ddf = widgets.swirl_ddf(grid, center_mm=center.tolist(), radius_mm=6.0, turn_deg=turn)
    at = torch.tensor([[9.0, 6.0]], dtype=torch.float64)
    before = grid.points(at, to=Axes.WORLD, from_=Axes.VOXEL) - center
    after = grid.points(field.warp_points(at[None], ddf.double())[0], to=Axes.WORLD, from_=Axes.VOXEL) - center
    share = (1 - float(before.square().sum()) / 36) ** 2
    expected = widgets.turn_points(before[None], turn * share)[0]
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)
    away = (grid.coordinates(Axes.WORLD, dtype=torch.float64) - center).norm(dim=-1) >= 6.0
    assert float(ddf[0][:, away].abs().max()) < 1e-5
    assert float(ddf[0, :, 8, 6].abs().max()) < 1e-5


def test_a_hidden_swirl_keeps_the_dice_and_says_the_error():
    render, controls = swirls()
    still, swirled = (titles(render(start(controls, turn_deg=x))) for x in (0.0, 90.0))
    assert still == ["Dice 1.000", "warped grid", "error up to 0 mm", ""]
    assert swirled[0] == "Dice 1.000"
    assert int(swirled[2].split()[3]) >= 4


def test_errors_are_millimeters():
    grid = GRIDS["oblique 2-D"]
    truth = field.identity_ddf(grid)
    off = truth + torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1)
    expected = np.hypot(3.0 * grid.spacing[0], 2.0 * grid.spacing[1])
    np.testing.assert_allclose(widgets.error_mm(off, truth, grid), expected, rtol=1e-5)


def test_across_and_along_an_edge():
    grid = Grid.centered((20, 15), (2.0, 0.5))
    mask = torch.zeros(1, 1, 20, 15)
    mask[:, :, :10] = 1
    distance = losses.distance_map(mask, spacing=grid.spacing, signed=True)
    edge = torch.zeros_like(distance)
    edge[:, :, 9, 5:10] = 1
    distance = torch.where(edge.bool(), distance, distance + 10 * (distance == 0))  # the straight edge alone
    distance = torch.where(distance.abs() >= 10, (grid.coordinates()[..., 0] - 9) * 2.0, distance)
    distance[:, :, 9, :5] = distance[:, :, 9, 10:] = 1e-3
    off = field.identity_ddf(grid) + torch.tensor([1.5, 4.0]).reshape(1, 2, 1, 1)
    across, along = widgets.across_and_along(off, field.identity_ddf(grid), distance, grid)
    assert across == pytest.approx(3.0, abs=0.05)
    assert along == pytest.approx(2.0, abs=0.05)


# -- tables and bars ------------------------------------------------------------------------------------------------
def test_the_cost_table_is_loud_where_a_mistake_is_free_or_dear():
    panel = widgets.cost_table({"a": {"x": 0.0, "y": 1.0}, "b": {"x": 12.4, "y": 2.0}}).axes[0]
    assert [text.get_text() for text in panel.texts] == ["0.00", "1.00", "12", "2.00"]
    loud = [to_hex(patch.get_facecolor()) == canvas.FOLD_COLOR for patch in panel.patches]
    assert loud == [True, False, True, False]
    with pytest.raises(ValueError, match="at least one row"):
        widgets.cost_table({})


def test_bars_say_their_numbers():
    panel = widgets.bars_mm({"a": 1.234, "b": 5.0}, "TRE [mm]").axes[0]
    assert [text.get_text() for text in panel.texts] == ["1.23", "5.00"]
    both = widgets.paired_bars({"a": (1.0, 2.0), "b": (3.0, 4.0)}, ("across", "along"), "error [mm]").axes[0]
    assert [text.get_text() for text in both.texts] == ["1.0", "3.0", "2.0", "4.0"]
    for make in (lambda: widgets.bars_mm({}, ""), lambda: widgets.paired_bars({}, ("", ""), "")):
        with pytest.raises(ValueError, match="at least one"):
            make()
