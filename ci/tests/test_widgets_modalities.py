"""Views of other contrasts: every state draws, drawing is pure, and what is drawn is what was chosen."""

import numpy as np
import pytest
import torch
from helpers import smooth_ddf
from test_widgets_bending import FLAT, bend
from test_widgets_capture import egg
from viewing import draw_every_state, require_every_control_matters, require_pure, start

from reglib import widgets
from reglib.grid import GridMismatchError

GRID = next(iter(FLAT.values()))


def build(name, grid):
    image = egg(grid)
    movings = {"same": image, "dark": (1 - image) * (image > 0)}
    found = {
        look: {loss: bend(grid, 1.0 + k + m, error_mm=1.0 + k + 10 * m) for k, loss in enumerate(("mse", "ngf"))}
        for m, look in enumerate(movings)
    }
    labels, truth = (image > 0).long(), smooth_ddf(grid.shape, largest=1.0)
    return {
        "contrast_dial": lambda: widgets.contrast_dial(image, movings, grid),
        "loss_race": lambda: widgets.loss_race(movings, found, grid, labels=labels, truth=truth),
    }[name]()


VIEWS = ("contrast_dial", "loss_race")


@pytest.mark.parametrize("grid", FLAT)
@pytest.mark.parametrize("view", VIEWS)
def test_every_state_draws_on_a_figure_of_one_size(view, grid):
    assert len(draw_every_state(*build(view, FLAT[grid]))) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_drawing_is_pure(view):
    require_pure(*build(view, GRID))


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_changes_the_picture(view):
    require_every_control_matters(*build(view, GRID))


def test_the_joint_histogram_counts_the_head_of_the_chosen_contrast():
    image = egg(GRID)
    render, controls = widgets.contrast_dial(image, {"same": image, "dark": 1 - image}, GRID)
    head = int((image > 0.02).sum())
    for contrast, slope in (("same", 1), ("dark", -1)):
        (mesh,) = render(start(controls, contrast=contrast)).axes[-1].collections
        counts = np.expm1(np.asarray(mesh.get_array()))
        assert round(float(counts.sum())) == head
        rows, columns = np.nonzero(counts)
        assert np.sign(np.corrcoef(rows, columns)[0, 1]) == slope


def test_the_title_is_the_error_of_the_chosen_pair():
    render, controls = build("loss_race", GRID)
    assert render(start(controls, contrast="dark", loss="ngf")).axes[1].get_title() == "12.0 mm off"


def test_bad_input_is_one_sentence():
    image, truth = egg(GRID), smooth_ddf(GRID.shape, largest=1.0)
    with pytest.raises(ValueError, match="at least one contrast"):
        widgets.contrast_dial(image, {}, GRID)
    uneven = {"a": {"mse": bend(GRID, 1.0)}, "b": {}}
    with pytest.raises(ValueError, match="the same losses"):
        widgets.loss_race({"a": image, "b": image}, uneven, GRID, labels=(image > 0).long(), truth=truth)
    with pytest.raises(GridMismatchError, match="fixed"):
        widgets.contrast_dial(torch.zeros(1, 1, 9, 9), {"a": torch.zeros(1, 1, 9, 9)}, GRID)
