"""Views of families of maps: every state draws, drawing is pure, and what is drawn is what transforms say."""

import math

import numpy as np
import pytest
import torch
from helpers import smooth_ddf
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.quiver import Quiver
from viewing import draw, draw_every_state, require_pure, start

from reglib import field, metrics, phantoms, plot, transforms, widgets
from reglib.grid import Axes, Grid, GridMismatchError
from reglib.plot import planes
from reglib.transforms import FreeFormDeformation, VelocityFreeForm

PAPER = Grid.centered((24, 18), 1.5)
TURNED = Grid((16, 13), np.array([[0.0, -1.2, 8.0], [0.9, 0.0, -6.0], [0.0, 0.0, 1.0]]))
VIEWS = (
    "family_dials",
    "two_orders",
    "turn_about",
    "bounded_turn",
    "one_control_point",
    "control_spacing",
    "families_on_truth",
    "in_a_row",
    "there_and_back",
)


def truth_on(grid):
    return smooth_ddf(grid.shape, largest=1.5, seed=0)


def landmarks(grid, ddf):
    voxels = grid.coordinates(dtype=torch.float64)[4:9:2, 4:9:2].reshape(1, -1, 2)
    ends = (voxels, field.warp_points(voxels, ddf.double()))
    names = ("fixed_points", "moving_points")
    return {k: grid.points(v, to=Axes.WORLD, from_=Axes.VOXEL) for k, v in zip(names, ends, strict=True)}


def fits_on(grid):
    ddf = truth_on(grid)
    families = {
        "affine": transforms.Affine(grid),
        "lattice": FreeFormDeformation(grid, control_spacing_mm=8.0),
        "kernels": transforms.KernelDisplacement(grid, control_spacing_mm=8.0),
        "flow": VelocityFreeForm(grid, control_spacing_mm=8.0),
        "dense": transforms.DenseDisplacement(grid),
    }
    given = {"exact": ddf, "doubled": 2 * ddf}
    return {k: widgets.fit_families(families, each, grid, **landmarks(grid, ddf)) for k, each in given.items()}


def hands(grid, size):
    model = FreeFormDeformation(grid, control_spacing_mm=8.0)
    coefficients = torch.zeros_like(model.coefficients)
    coefficients[0, 0, coefficients.shape[2] // 2, coefficients.shape[3] // 2] = size
    return coefficients


def build(view, grid=PAPER):
    letter, truth = phantoms.letter_f(grid.shape), truth_on(grid)
    bend = FreeFormDeformation(grid, control_spacing_mm=8.0, coefficients=hands(grid, 3.0))
    maps = {
        "splines": lambda s: FreeFormDeformation(grid, control_spacing_mm=8.0, coefficients=s * hands(grid, 12.0)),
        "flow": lambda s: VelocityFreeForm(grid, control_spacing_mm=8.0, coefficients=s * hands(grid, 12.0)),
    }
    return {
        "family_dials": lambda: widgets.family_dials(letter, grid),
        "two_orders": lambda: widgets.two_orders(letter, grid),
        "turn_about": lambda: widgets.turn_about(letter, grid),
        "bounded_turn": lambda: widgets.bounded_turn(letter, grid),
        "one_control_point": lambda: widgets.one_control_point(grid),
        "control_spacing": lambda: widgets.control_spacing(truth, grid),
        "families_on_truth": lambda: widgets.families_on_truth(fits_on(grid), truth, grid),
        "in_a_row": lambda: widgets.in_a_row(letter, bend, grid),
        "there_and_back": lambda: widgets.there_and_back(maps, grid),
    }[view]()


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def values(figure, panel):
    return np.asarray(figure.axes[panel].images[0].get_array())


def fills(panel):
    return [c for c in panel.collections if isinstance(c, PolyCollection) and not isinstance(c, Quiver)]


def at_start(view, **state):
    render, controls = build(view)
    return render(start(controls) | state)


# -- all of them -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grid", [PAPER, TURNED], ids=["upright", "turned"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_state_of_every_control_draws_at_one_size(view, grid):
    assert len(draw_every_state(*build(view, grid))) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure(view):
    require_pure(*build(view))


# -- matrices --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("family", "count"), [("translation", 2), ("rigid", 3), ("similarity", 4), ("affine", 6)])
def test_family_dials_count_their_numbers_and_ignore_the_dials_they_lack(family, count):
    assert f"{family}: {count} numbers" in titles(at_start("family_dials", family=family))
    plain = draw(at_start("family_dials", family=family))
    sheared = draw(at_start("family_dials", family=family, shear=0.4))
    assert np.array_equal(plain, sheared) == (family != "affine")


def test_family_dials_warp_by_the_model_they_name():
    letter = phantoms.letter_f(PAPER.shape)
    turn = transforms.Rigid(PAPER).with_values(angle_rad=torch.tensor([math.radians(30)], dtype=torch.float64))
    warped = field.warp(letter, turn.ddf().detach(), padding="zeros")
    found = values(at_start("family_dials", family="rigid", turn_deg=30.0), 0)
    assert np.allclose(found, planes.plane_of(letter, PAPER).cut(warped), atol=1e-5)


def test_two_orders_keep_the_corners_in_one_order_and_agree_for_an_even_stretch():
    first, second = titles(at_start("two_orders", turn_deg=35.0, stretch=1.5))
    assert first.endswith("90°")
    assert not second.endswith(" 90°")
    assert all(title.endswith("90°") for title in titles(at_start("two_orders", both_axes=True)))


def test_turn_about_says_how_far_the_middle_goes():
    middle = planes.frame_of(PAPER).mm([11.5, 8.5])
    about = (middle[0] + 6.0, middle[1] + 8.0)  # 10 mm away; a quarter turn leads sqrt(2) * 10 mm
    assert "the middle moves 14.1 mm" in titles(at_start("turn_about", center=about, turn_deg=90.0))
    assert "the middle moves 0.0 mm" in titles(at_start("turn_about", center=tuple(middle), turn_deg=90.0))


def test_bounded_turn_never_leaves_its_limit():
    assert "asked 180°, used 20°" in titles(at_start("bounded_turn", parameter_deg=180.0, limit_deg=20.0))
    assert "asked 5°, used 5°" in titles(at_start("bounded_turn", parameter_deg=5.0, limit_deg=80.0))


def test_map_gallery_counts_numbers_that_were_given_too():
    letter = phantoms.letter_f(PAPER.shape)
    rigid = transforms.Rigid(PAPER)
    given = rigid.with_values(angle_rad=torch.tensor([0.5], dtype=torch.float64))
    figure = widgets.map_gallery(letter, {"own": rigid, "given": given}, PAPER, columns=1)
    assert titles(figure) == ["own: 3", "given: 3"]


# -- control points ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernel", ["B-spline", "C2", "C4", "C6"])
def test_one_control_point_pushes_as_far_as_it_says_and_not_beyond_its_reach(kernel):
    figure = at_start("one_control_point", kernel=kernel, spacing_mm=6.0, radius=2.0)
    chart = next(axes for axes in figure.axes if axes.get_title().startswith("reaches"))
    away, push = (np.asarray(line) for line in chart.lines[0].get_data())
    assert chart.get_title() == "reaches 12 mm"
    assert push.max() == pytest.approx(8.0, abs=1e-3)
    assert abs(away[push.argmax()]) < 0.75 + 1e-6  # the nearest voxel, at most half of one away
    assert abs(push[abs(away) > 12.0 + 0.75]).max() < 1e-3
    assert push[abs(away) < 6.0].min() > 0.01


def test_control_spacing_draws_what_the_closest_lattice_misses():
    truth = truth_on(PAPER)
    model = FreeFormDeformation(PAPER, control_spacing_mm=10.0).fit(truth)
    missed = (model.ddf().detach() - truth).norm(dim=1, keepdim=True) * 1.5
    figure = at_start("control_spacing", spacing_mm=10.0)
    assert np.allclose(values(figure, 1), planes.plane_of(truth, PAPER).cut(missed), atol=1e-4)
    assert f"off by {float(missed.mean()):.2f} mm" in titles(figure)
    assert f"{model.coefficients.numel()} numbers" in titles(figure)


# -- one truth --------------------------------------------------------------------------------------------------
def test_fit_families_measures_the_error_at_landmarks():
    ddf = truth_on(PAPER)
    fits, marks = fits_on(PAPER)["exact"], landmarks(PAPER, ddf)
    affine = fits["affine"]
    expected = metrics.tre(affine.transform.ddf().detach(), **marks, fixed_grid=PAPER).mean()
    assert affine.error_mm == pytest.approx(float(expected))
    assert fits["dense"].error_mm < 1e-4 < fits["lattice"].error_mm < affine.error_mm
    assert [fit.kind for fit in fits.values()] == ["matrix", "B-splines", "kernels", "flow", "voxels"]
    assert affine.numbers == 6


def test_families_on_truth_names_the_error_of_the_family_chosen():
    fits = fits_on(PAPER)
    title = titles(at_start("families_on_truth", family="affine", given="doubled"))[-1]
    assert title == f"{fits['doubled']['affine'].error_mm:.2f} mm, 6 numbers"


def test_families_on_truth_wants_the_same_families_for_every_field():
    fits = fits_on(PAPER)
    del fits["doubled"]["dense"]
    with pytest.raises(ValueError, match="same families"):
        widgets.families_on_truth(fits, truth_on(PAPER), PAPER)


# -- several as one ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bend_first", [False, True])
def test_in_a_row_sequential_is_warping_twice_and_the_sum_is_not(bend_first):
    figure = at_start("in_a_row", turn_deg=90.0, bend_first=bend_first)  # voxels onto voxels: no blur
    assert "Sequential: 0.0 mm off" in titles(figure)
    assert "MultiLevel: 0.0 mm off" not in titles(figure)
    twice, row, total = (values(figure, k) for k in range(3))
    assert abs(row - twice).mean() < 0.5 * abs(total - twice).mean()


def test_in_a_row_without_a_turn_all_agree():
    assert {"Sequential: 0.0 mm off", "MultiLevel: 0.0 mm off"} < set(titles(at_start("in_a_row", turn_deg=0.0)))


def test_there_and_back_shows_folds_and_what_is_left():
    calm, torn = (at_start("there_and_back", strength=s) for s in (0.0, 2.0))
    assert "splines: no fold" in titles(calm)
    assert "folded" in titles(torn)[0]
    assert {to_hex(c.get_facecolor()[0]) for c in fills(torn.axes[0])} == {plot.FOLD_COLOR}
    assert values(calm, 1).max() < 1e-6
    assert 1e-4 < values(torn, 1).max() < 1.0  # a fold does not show here
    assert "flow: no fold" in titles(at_start("there_and_back", family="flow", strength=2.0))


# -- the table --------------------------------------------------------------------------------------------------
def test_family_table_writes_words_and_yes_and_no():
    figure = widgets.family_table(
        {"rigid": {"numbers": "3", "lengths": True}, "dense": {"numbers": "9", "lengths": False}}
    )
    (panel,) = figure.axes
    assert [text.get_text() for text in panel.texts] == ["3", "yes", "9", "no"]
    draw(figure)


@pytest.mark.parametrize("rows", [{}, {"a": {"x": "1"}, "b": {"y": "1"}}])
def test_family_table_wants_the_same_columns(rows):
    with pytest.raises(ValueError, match="same columns"):
        widgets.family_table(rows)


# -- bad input --------------------------------------------------------------------------------------------------
def test_a_solid_grid_is_refused():
    solid = Grid((5, 4, 3))
    with pytest.raises(ValueError, match="2-D grid; got 3-D"):
        widgets.one_control_point(solid)


def test_an_image_on_another_grid_is_refused():
    with pytest.raises(GridMismatchError, match="image"):
        widgets.family_dials(phantoms.letter_f((9, 7)), PAPER)
    with pytest.raises(GridMismatchError, match="truth"):
        widgets.control_spacing(truth_on(TURNED), PAPER)
