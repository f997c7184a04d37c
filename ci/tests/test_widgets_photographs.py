"""Views of photographs: every state draws, drawing is pure, and a ring is where its place is."""

import numpy as np
import pytest
from viewing import draw_every_state, require_every_control_matters, require_pure, start

from reglib import explorer, widgets

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 255, (60, 80, 3)).astype(np.uint8)
GRAY = np.linspace(0, 1, 50 * 70).reshape(50, 70)
PLACES = np.array([[10.0, 5.0], [40.0, 30.0], [70.0, 55.0]])


def found(ratio):
    count = round(3 * ratio)
    return widgets.Matches(PLACES[:count], PLACES[:count] / 2, np.array([True, False, True])[:count])


def checkered(name, tiles):
    rows, columns = np.indices(COLOR.shape[:2]) // (60 // tiles)
    return np.where(((rows + columns) % 2 == 0)[..., None], COLOR[:, ::-1] if name == "mirrored" else 0 * COLOR, COLOR)


def build(name):
    grown = [PLACES[:1], PLACES[:2], PLACES]
    return {
        "places": lambda: widgets.places_dial(
            COLOR, lambda least: PLACES[round(least) :], {"least": widgets.Slider(0, 2, 1)}, known=PLACES[:2]
        ),
        "match": lambda: widgets.match_dial(COLOR, COLOR[:40], found, {"ratio": widgets.Slider(0.0, 1.0, 0.7)}),
        "checkers": lambda: widgets.checker_dial(checkered, ["still", "mirrored"]),
        "verification": lambda: widgets.verification_dial([30, 12, 25], [3, 14, 8, 2]),
        "growth": lambda: widgets.growth_dial(GRAY, PLACES[:1], grown),
    }[name]()


VIEWS = ("places", "match", "checkers", "verification", "growth")


@pytest.mark.parametrize("view", VIEWS)
def test_every_state_draws_on_a_figure_of_one_size(view):
    assert len(draw_every_state(*build(view))) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure(view):
    require_pure(*build(view))


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_changes_the_picture(view):
    require_every_control_matters(*build(view))


def test_a_ring_is_drawn_around_its_pixel():
    """A bright pixel, and the place of the ring in the picture that is drawn."""
    dark = np.zeros((60, 80), np.uint8)
    dark[12, 33] = 255
    figure = widgets.photographs({"dot": dark}, points={"dot": np.array([[33.0, 12.0]])})
    (panel,) = figure.axes
    (ring,) = panel.collections
    drawn = np.asarray(explorer.draw(figure)).astype(int)
    x, y = panel.transData.transform(np.asarray(ring.get_offsets())[0])
    white = np.argwhere((drawn.min(-1) > 200) & (np.indices(drawn.shape[:2])[0] > 60))
    inside = [p for p in white if abs(p[1] - x) < 12 and abs(drawn.shape[0] - p[0] - y) < 12]
    assert np.allclose(np.mean(inside, axis=0), [drawn.shape[0] - y, x], atol=1.5)


def test_added_keypoints_are_those_that_are_not_labelled():
    render, controls = build("growth")
    titles = [render(start(controls, epoch=k)).axes[0].get_title() for k in (1, 2, 3)]
    assert titles == ["1 labelled, 0 added", "1 labelled, 1 added", "1 labelled, 2 added"]


def test_who_is_refused_and_who_is_taken():
    render, controls = build("verification")
    titles = {k: render(start(controls, needed=k)).axes[0].get_title() for k in (0, 13, 31)}
    assert titles[0] == "0 of 3 refused wrongly, 4 of 4 taken wrongly"
    assert titles[13] == "1 of 3 refused wrongly, 1 of 4 taken wrongly"
    assert titles[31] == "3 of 3 refused wrongly, 0 of 4 taken wrongly"


def test_curves_of_success_are_drawn_from_one_pixel_on():
    figure = widgets.success_curves({"S": [0.0, 0.5, 1.0], "P": [0.0, 0.0, 0.25]})
    (line,) = figure.axes[0].lines
    assert [panel.get_title() for panel in figure.axes] == ["S", "P"]
    assert np.array_equal(line.get_xdata(), [1, 2, 3])
    assert np.array_equal(line.get_ydata(), [0, 50, 100])


def test_nothing_to_show_is_said():
    with pytest.raises(ValueError, match="at least one picture"):
        widgets.photographs({})
    with pytest.raises(ValueError, match="at least one epoch"):
        widgets.growth_dial(GRAY, PLACES, [])
    with pytest.raises(ValueError, match="at least one curve"):
        widgets.success_curves({})
    with pytest.raises(ValueError, match="both kinds"):
        widgets.verification_dial([3], [])
    with pytest.raises(ValueError, match="at least one map"):
        widgets.checker_dial(checkered, [])
