"""What the tests of views share: their start, their pixels, and what must hold of every one of them."""

import copy

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg


def start(controls, **changed):
    """The state a view opens with."""
    return {name: control.value for name, control in controls.items()} | changed


def draw(figure):
    """The figure's pixels."""
    drawing = FigureCanvasAgg(figure)
    drawing.draw()
    return np.asarray(drawing.buffer_rgba()).copy()


def draw_every_state(render, controls):
    """Draw each state of each control, the others at their start; returns the sizes of the pictures, normally one."""
    return {
        draw(render(start(controls, **{name: value}))).shape
        for name, control in controls.items()
        for value in control.states()
    }


def require_every_control_matters(render, controls, *, but=()):
    """Each control but those named changes the picture that a view opens with."""
    for name in set(controls) - set(but):
        pictures = [draw(render(start(controls, **{name: value}))) for value in controls[name].states()]
        assert any((picture != pictures[0]).any() for picture in pictures), name


def require_pure(render, controls):
    """Drawing changes no state and depends on nothing drawn before."""
    state = start(controls)
    kept, first = copy.deepcopy(state), draw(render(state))
    for name, control in controls.items():
        render(state | {name: control.states()[0]})
    assert state == kept
    np.testing.assert_array_equal(draw(render(state)), first)
