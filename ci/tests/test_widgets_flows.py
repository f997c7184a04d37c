"""Views of flows: every state draws, drawing is pure, and what is drawn is what field computes for that state."""

import math

import numpy as np
import pytest
import torch
from helpers import smooth_ddf
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.quiver import Quiver
from viewing import draw_every_state, require_pure, start

from reglib import field, plot, widgets
from reglib.grid import Axes, Grid, GridMismatchError
from reglib.plot import canvas, planes
from reglib.widgets import Slider

PAPER = Grid.centered((24, 18), 1.5)
PLACES = PAPER.coordinates(Axes.WORLD)
TURNED = Grid((16, 13), np.array([[0.0, -1.2, 8.0], [0.9, 0.0, -6.0], [0.0, 0.0, 1.0]]))


def bump(radius_mm=5.0):
    return torch.exp(-PLACES.square().sum(-1) / (2 * radius_mm**2))


def on_paper(arrows_mm):
    return PAPER.vectors(arrows_mm, to=Axes.VOXEL, from_=Axes.WORLD).movedim(-1, 0)[None].float()


def push(move_mm):
    return on_paper(bump()[..., None] * torch.tensor(move_mm))


def whirl(turn_deg):
    """The exact map whose points turn on circles."""
    angle, (x, y) = math.radians(turn_deg) * bump(4.0), PLACES.unbind(-1)
    turned = torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], dim=-1)
    return on_paper(turned - PLACES)


def build(view, grid=PAPER):
    v, w = (smooth_ddf(grid.shape, largest=1.5, seed=seed) for seed in (0, 1))
    points = grid.coordinates(Axes.WORLD)[4:8:2, 4:8:2].reshape(-1, 2)
    turn = Slider(0.0, 150.0, 60.0, step=30.0, unit="deg")
    return {
        "added_or_flowed": lambda: widgets.added_or_flowed(v, grid),
        "walk_along": lambda: widgets.walk_along(v, grid, points),
        "squaring_race": lambda: widgets.squaring_race(v, grid, points, points + 0.1, most=3),
        "inverse_steps": lambda: widgets.inverse_steps({"one": v, "other": 3 * w}, grid, most=4),
        "logarithm_test": lambda: widgets.logarithm_test(lambda angle: v * (angle / 90), grid, turn),
        "linear_flow": lambda: widgets.linear_flow(),
        "velocities_in_a_row": lambda: widgets.velocities_in_a_row(v, w, grid),
        "half_resolution": lambda: widgets.half_resolution(v, grid),
    }[view]()


VIEWS = (
    "added_or_flowed",
    "walk_along",
    "squaring_race",
    "inverse_steps",
    "logarithm_test",
    "linear_flow",
    "velocities_in_a_row",
    "half_resolution",
)


def values(figure, panel):
    return np.asarray(figure.axes[panel].images[0].get_array())


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def fills(panel):
    return [c for c in panel.collections if isinstance(c, PolyCollection) and not isinstance(c, Quiver)]


def length_mm(ddf):
    return ddf.norm(dim=1, keepdim=True) * 1.5


def folds(ddf):
    return int((field.jacobian_determinant(ddf) <= 0).sum())


# -- all of them -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grid", [PAPER, TURNED], ids=["upright", "turned"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_state_of_every_control_draws_at_one_size(view, grid):
    assert len(draw_every_state(*build(view, grid))) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure(view):
    require_pure(*build(view))


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "linear_flow"])
def test_fields_must_be_on_a_plane_grid(view, no_jaxtyping):
    solid = Grid((6, 7, 5))
    with pytest.raises(ValueError, match="2-D grid; got 3-D"):
        build(view, solid)


def test_fields_must_be_on_the_grid(no_jaxtyping):
    with pytest.raises(GridMismatchError, match="velocity must be"):
        widgets.added_or_flowed(torch.zeros(1, 2, 9, 9), PAPER)
    with pytest.raises(GridMismatchError, match="w must be"):
        widgets.velocities_in_a_row(push((1.0, 0.0)), torch.zeros(1, 2, 9, 9), PAPER)


# -- from arrows to flows --------------------------------------------------------------------------------------
def test_adding_folds_where_flowing_does_not():
    render, _ = widgets.added_or_flowed(push((14.0, 0.0)), PAPER)
    for strength, folded in ((0.3, False), (1.0, True)):
        figure = render({"strength": strength})
        jumped, drifted = figure.axes
        assert bool(fills(jumped)) == folded
        assert (to_hex(jumped.title.get_color()) == plot.FOLD_COLOR) == folded
        assert not fills(drifted)
        assert drifted.get_title() == "drifted: no fold"
    assert jumped.get_title() == f"jumped: {folds(push((14.0, 0.0)))} folded"


def test_nobody_has_left_at_time_zero_and_many_steps_end_where_the_flow_does():
    velocity = push((6.0, 3.0))
    places = PAPER.coordinates(Axes.WORLD)[6:18:4, 6:12:3].reshape(-1, 2)
    render, controls = widgets.walk_along(velocity, PAPER, places)
    assert controls["time"].states() == [0.0, 1.0]

    def walkers(**state):
        return np.asarray(render(state).axes[0].collections[-1].get_offsets())

    np.testing.assert_allclose(walkers(time=0.0, steps=4), places, atol=1e-4)
    voxels = PAPER.points(places, to=Axes.VOXEL, from_=Axes.WORLD)[None]
    jumped = PAPER.points(field.warp_points(voxels, velocity), to=Axes.WORLD, from_=Axes.VOXEL)[0]
    flowed = PAPER.points(field.warp_points(voxels, field.exponential(velocity)), to=Axes.WORLD, from_=Axes.VOXEL)[0]
    np.testing.assert_allclose(walkers(time=1.0, steps=1), jumped, atol=1e-4)
    off = {n: np.abs(walkers(time=1.0, steps=n) - flowed.numpy()).max() for n in (1, 4, 16)}
    assert off[16] < 0.2 < 0.5 * off[1]
    assert off[16] < off[4] < off[1]


def test_truth_is_dashed_along_the_walk():
    render, controls = build("walk_along")
    panel = render(start(controls)).axes[0]
    dashed = [c for c in panel.collections if isinstance(c, LineCollection) and c.get_linestyle()[0][1] is not None]
    (truth,) = [c for c in dashed if to_hex(c.get_color()[0]) == canvas.TRUTH_COLOR]
    assert len(truth.get_segments()[0]) == 65


def test_the_race_shows_the_error_against_the_given_ends():
    velocity = push((6.0, 0.0))
    starts = PLACES[6:18:4, 6:12:3].reshape(-1, 2)
    voxels = PAPER.points(starts, to=Axes.VOXEL, from_=Axes.WORLD)[None]
    arrived = field.warp_points(voxels, field.exponential(velocity, steps=2, start="euler"))
    ends = PAPER.points(arrived, to=Axes.WORLD, from_=Axes.VOXEL)[0]
    render, controls = widgets.squaring_race(velocity, PAPER, starts, ends, most=4)
    assert controls["squarings"].states() == [0, 4]
    assert titles(render({"squarings": 2, "start": "euler"}))[1] == "off by 0.00 voxels"
    figure = render({"squarings": 1, "start": "euler"})
    moved = field.warp_points(voxels, field.exponential(velocity, steps=1, start="euler"))
    expected = float((moved - arrived).norm(dim=-1).mean())
    assert expected > 0.05
    assert titles(figure)[1] == f"off by {expected:.2f} voxels"
    assert figure.axes[1].get_yscale() == "log"


def test_the_race_marks_what_folds():
    velocity = push((14.0, 0.0))
    render, _ = widgets.squaring_race(velocity, PAPER, torch.zeros(1, 2), torch.zeros(1, 2), most=5)
    chart = render({"squarings": 5, "start": "midpoint"}).axes[1]
    loud = [line for line in chart.lines if to_hex(line.get_color()) == plot.FOLD_COLOR]
    marked = [sorted(int(x) for x in line.get_xdata()) for line in loud]
    expected = [
        [n for n in range(6) if folds(field.exponential(velocity, steps=n, start=s))] for s in ("euler", "midpoint")
    ]
    assert marked == expected
    assert 0 in expected[0]
    assert 5 not in expected[0]


def test_starts_and_ends_are_pairs(no_jaxtyping):
    with pytest.raises(ValueError, match=r"pairs; got \(3, 2\) and \(4, 2\)"):
        widgets.squaring_race(push((1.0, 0.0)), PAPER, torch.zeros(3, 2), torch.zeros(4, 2))


# -- and back --------------------------------------------------------------------------------------------------
def test_what_is_left_over_shrinks_for_a_gentle_map_and_stays_for_a_fold():
    maps = {"gentle": push((4.0, 0.0)), "folded": push((14.0, 0.0))}
    render, controls = widgets.inverse_steps(maps, PAPER, most=15)
    left = {
        (name, k): values(render({"map": name, "rounds": k}), 1).max()
        for name in maps
        for k in (0, controls["rounds"].high)
    }
    assert left["gentle", 15] < 0.01 * left["gentle", 0]
    assert left["folded", 15] > 2.0
    at = planes.plane_of(maps["gentle"], PAPER)
    none = length_mm(field.compose(maps["gentle"], -maps["gentle"]))
    np.testing.assert_allclose(values(render({"map": "gentle", "rounds": 0}), 1), at.cut(none), atol=1e-5)


def test_one_color_scale_for_all_rounds():
    render, _ = widgets.inverse_steps({"only": push((5.0, 1.0))}, PAPER)
    ends = {render({"map": "only", "rounds": k}).axes[1].images[0].get_clim() for k in (0, 3, 20)}
    assert len(ends) == 1


def test_the_logarithm_is_judged_by_its_flow():
    render, _ = widgets.logarithm_test(whirl, PAPER, Slider(0.0, 240.0, 60.0, step=15.0, unit="deg"))
    for angle, good in ((60.0, True), (225.0, False)):
        ddf = whirl(angle)
        velocity = field.logarithm(ddf)
        off = float(length_mm(field.exponential(velocity) - ddf).max())
        assert (off < 0.3) == good
        left, right = render({"turn_deg": angle}).axes
        assert right.get_title() == f"its flow, off by up to {off:.1f} mm"
        (arrows,) = (c for c in left.collections if isinstance(c, Quiver))
        assert arrows.get_array().max() <= float(length_mm(velocity).max()) + 1e-4
        truth = right.collections[-1]
        assert to_hex(truth.get_color()[0]) == canvas.TRUTH_COLOR
        nodes = planes.plane_of(ddf, PAPER).nodes(ddf).reshape(2, -1).T
        assert np.abs(nodes - truth.get_segments()[0][3]).sum(1).min() < 1e-4


# -- areas, and flows in a row ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "value", "area"), [("divergence", 0.8, "2.23"), ("curl", 2.0, "1.00"), ("strain", 0.5, "1.00")]
)
def test_only_divergence_changes_the_area(name, value, area):
    render, controls = widgets.linear_flow()
    figure = render(start(controls) | {name: value})
    assert titles(figure)[1] == f"area ×{area}"
    lines = figure.axes[1].collections[-1].get_segments()
    corners = [np.array(line) for line in (lines[0][0], lines[0][-1], lines[8][0])]
    one, other = corners[1] - corners[0], corners[2] - corners[0]
    found = abs(one[0] * other[1] - one[1] * other[0]) / 32.0**2
    assert found == pytest.approx(float(area), abs=0.01)


def test_curl_turns_by_half_of_it_counterclockwise():
    render, controls = widgets.linear_flow()
    lines = render(start(controls) | {"curl": 1.0, "time": 0.6}).axes[1].collections[-1].get_segments()
    across = np.array(lines[9][-1]) - np.array(lines[9][0])  # was along x
    assert math.atan2(across[1], across[0]) == pytest.approx(0.3, abs=1e-4)


def test_orders_are_judged_by_the_flows_in_a_row():
    v, w = push((5.0, 0.0)), push((0.0, 5.0))
    render, controls = widgets.velocities_in_a_row(v, w, PAPER)
    both = field.compose(field.exponential(v), field.exponential(w))
    for order in controls["order"].options:
        figure = render({"unlike": 1.0, "order": order})
        off = length_mm(field.exponential(field.compose_velocities(v, w, order=order)) - both)
        np.testing.assert_allclose(values(figure, 0), planes.plane_of(off, PAPER).cut(off), atol=1e-5)
    assert values(render({"unlike": 0.0, "order": 1}), 0).max() < 0.05
    sums, brackets = (values(render({"unlike": 1.0, "order": k}), 0).mean() for k in (1, 2))
    assert brackets < 0.5 * sums


def test_the_right_factor_going_down_is_the_best():
    velocity = push((10.0, 4.0))
    render, controls = widgets.half_resolution(velocity, PAPER)
    off = {
        down: values(render({"factor_down": down, "strength": 1.0}), 1).mean()
        for down in controls["factor_down"].options
    }
    assert off[0.5] < 0.5 * min(off[1.0], off[2.0])
    gentle = {down: values(render({"factor_down": down, "strength": 0.05}), 1).mean() for down in (0.5, 2.0)}
    assert max(gentle.values()) < 0.02 * off[2.0]
