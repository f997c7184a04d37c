"""How controls reach a reader: moved live, swept in CI, or drawn as a strip in the stored notebook.

The environment variable `REGLIB_WIDGETS` chooses: `live` (default); `sweep` moves every control in the cell, so
that an error stops the notebook (an error in a widget's callback reaches no runner); `static` draws the strip.
Pictures are drawn on a canvas of exactly the figure's size times its dpi, so that clicks map to data.
"""

from __future__ import annotations

import html
import io
import math
import os
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .widgets import Choice, Click, Control, Number, Slider

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from PIL.Image import Image, Quantize

MODES = ("live", "sweep", "static")
PALETTE = 128  # colors of a stored picture: a third of the bytes
COLORED = 0.6  # share of them that is not gray, if anything is
PHOTOGRAPH = 0.25  # share of colored pixels that makes one
OFTEN, RARE = 0.4, 0.15  # shares of its colors: for what is often in it, and for what is rare
GRAY = 6  # channels that differ by no more are gray
STRIP_PIXELS = 1100  # widest stored strip
LABEL_PIXELS = 30  # above each picture of a strip

State = dict[str, Any]
Render = Callable[[State], "Figure"]


# -- pictures ------------------------------------------------------------------------------------------------
def draw(figure: Figure) -> Image:
    """The figure's pixels, its size times its dpi; a figure that pyplot made is closed."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def encode(image: Image, *, colors: int | None = None) -> bytes:
    """PNG bytes, in a palette of so many colors if given."""
    if colors is not None:
        image = _few_colors(image, colors)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=colors is not None)
    return buffer.getvalue()


def _few_colors(image: Image, colors: int) -> Image:
    """The image in a palette of so many colors, in which gray stays gray and a thin line keeps its color.

    A palette by the median cut is after the many pixels of one color and mixes what is rare into gray. A photograph,
    colored for the most part, needs such a palette all the same, or it falls into bands.
    """
    import numpy as np
    from PIL import Image

    red, green, blue = np.moveaxis(np.asarray(image, dtype=np.int64), -1, 0)
    codes, where = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    own = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)  # each color once
    colored = np.ptp(own, axis=1) > GRAY
    pixels = own[where.ravel()]
    bright = pixels[colored[where.ravel()]]
    photograph = len(bright) > PHOTOGRAPH * len(pixels)
    found = _chosen(own[colored], int((RARE if photograph else COLORED) * colors), Image.Quantize.MAXCOVERAGE)
    if photograph:
        found = np.concatenate([found, _chosen(bright, int(OFTEN * colors), Image.Quantize.MEDIANCUT)])
    grays = colors - len(found)
    palette = np.concatenate([np.repeat(np.linspace(0, 255, grays).round()[:, None], 3, axis=1), found])
    index = (own.mean(1) * (grays - 1) / 255).round().astype(np.uint8)
    for some in np.array_split(np.flatnonzero(colored), 1 + len(own) // 4096):
        index[some] = np.square(own[some, None] - palette).sum(-1).argmin(1)
    result = Image.fromarray(index[where].reshape(image.size[::-1]))
    result.putpalette(palette.astype(np.uint8).tobytes())
    return result


def _chosen(pixels: np.ndarray, colors: int, method: Quantize) -> np.ndarray:
    """So many colors (n, 3) of pixels (m, 3)."""
    import numpy as np
    from PIL import Image

    if not len(pixels):
        return np.zeros((0, 3))
    palette = Image.fromarray(pixels[None].astype(np.uint8)).quantize(colors=colors, method=method).getpalette()
    return np.reshape(palette or [], (-1, 3))[:colors]


def display_picture(picture: bytes, caption: str) -> None:
    """Display a PNG with its caption as alternative text, and again as a line below for everyone."""
    from IPython.display import Markdown, display

    data = {"image/png": b64encode(picture).decode(), "text/plain": caption}
    display(data, raw=True, metadata={"image/png": {"alt": caption}})
    display(Markdown(f"*{caption}*"))


# -- explore -------------------------------------------------------------------------------------------------
def explore(
    render: Render,
    controls: Mapping[str, Control],
    static: Sequence[Mapping[str, Any]] | None = None,
    *,
    caption: str = "",
) -> None:
    """Let the reader move controls and see the picture change.

    Args:
        render: pure function of a state (a value for each control) that returns a new Figure.
        static: partial states for the strip of pictures; default: the first control's low, value and high.
        caption: stands below the picture, and is the alternative text of the strip; there it names the controls if
            not given.

    Raises: ValueError for a state that names no control; in a sweep, whatever `render` raises.
    """
    mode = os.environ.get("REGLIB_WIDGETS", "live")
    if mode not in MODES:
        raise ValueError(f"REGLIB_WIDGETS must be {', '.join(MODES[:-1])} or {MODES[-1]}; got {mode!r}.")
    states = _static_states(controls, static)
    if mode == "live":
        Explorer(render, controls, caption).display()
        return
    if mode == "sweep":
        swept = sweep_states(controls)
        for state in swept:
            _render(render, state)
        print(f"PASS explored {len(swept)} states")
    names = ", ".join(describe(name, controls[name]) for name in controls)
    display_picture(_strip(render, controls, states), caption or f"What to move: {names}")


def _static_states(controls: Mapping[str, Control], static: Sequence[Mapping[str, Any]] | None) -> list[State]:
    if not controls:
        raise ValueError("explore needs a control; got none. For a picture that does not move use show.")
    if not static:
        name, control = next(iter(controls.items()))
        return [{name: value} for value in control.states()[:3]]
    for state in static:
        if unknown := set(state) - set(controls):
            raise ValueError(f"static names {sorted(unknown)}, but the controls are {sorted(controls)}.")
    return [dict(state) for state in static]


def _defaults(controls: Mapping[str, Control]) -> State:
    return {name: control.value for name, control in controls.items()}


def sweep_states(controls: Mapping[str, Control]) -> list[State]:
    """The start, then each control at each of its other states while the rest stay where they start."""
    start = _defaults(controls)
    moves = [(name, value) for name, control in controls.items() for value in control.states()]
    return [start, *(start | {name: value} for name, value in moves if value != start[name])]


def _render(render: Render, state: State) -> tuple[Figure, Image]:
    from matplotlib.figure import Figure

    try:
        figure = render(dict(state))
        if not isinstance(figure, Figure):
            raise TypeError(f"render must return a matplotlib Figure; got {type(figure).__name__}.")
        return figure, draw(figure)
    except Exception as error:
        error.add_note(f"while drawing the state {state}")
        raise


def _strip(render: Render, controls: Mapping[str, Control], states: Sequence[State]) -> bytes:
    """Pictures of a few states, side by side if they are not wide, each under the values that make it."""
    import numpy as np
    from matplotlib.figure import Figure
    from PIL.Image import Resampling

    pictures = [_render(render, _defaults(controls) | state)[1] for state in states]
    across = len(pictures) if pictures[0].width <= 1.4 * pictures[0].height else 1
    scale = min(1.0, STRIP_PIXELS / (across * max(p.width for p in pictures)))
    sizes = [(round(p.width * scale), round(p.height * scale)) for p in pictures]
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes) + LABEL_PIXELS
    total = across * width, math.ceil(len(pictures) / across) * height
    sheet = Figure(figsize=(total[0] / 100, total[1] / 100), dpi=100)
    for index, (picture, size, state) in enumerate(zip(pictures, sizes, states, strict=True)):
        left, top = index % across * width, total[1] - index // across * height
        pixels = np.asarray(picture.resize(size, Resampling.LANCZOS))
        sheet.figimage(pixels, left, top - LABEL_PIXELS - size[1], origin="upper")
        words = ",   ".join(_words(name, controls[name], value) for name, value in state.items())
        sheet.text((left + 8) / total[0], (top - LABEL_PIXELS + 8) / total[1], words, fontsize=11)
    return encode(draw(sheet), colors=PALETTE)


def describe(name: str, control: Control) -> str:
    """The control's name as a reader reads it, with its unit: `tilt_rad` in rad is "tilt [rad]"."""
    title, unit = _title_and_unit(name, control)
    return f"{title} [{unit}]" if unit else title


def _words(name: str, control: Control, value: Any) -> str:
    title, unit = _title_and_unit(name, control)
    return f"{title}: {_text(value)} {unit}".rstrip()


def _title_and_unit(name: str, control: Control) -> tuple[str, str]:
    unit = control.unit if isinstance(control, Slider) else ""
    return name.removesuffix(f"_{unit}").replace("_", " "), unit


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- live ----------------------------------------------------------------------------------------------------
class Explorer:
    """The live widget: controls, a picture drawn anew when one moves, and a line for what went wrong.

    A browser sends a slider's next value only after the last one was handled, so updates cannot pile up.
    """

    def __init__(self, render: Render, controls: Mapping[str, Control], caption: str) -> None:
        import ipywidgets

        self._render, self._controls = render, controls
        self.inputs = {name: _inputs(describe(name, control), control) for name, control in controls.items()}
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.message = ipywidgets.HTML()
        words = ipywidgets.HTML(f"<em>{html.escape(caption)}</em>")
        self._draw()
        rows = [ipywidgets.HBox(parts) if len(parts) > 1 else parts[0] for parts in self.inputs.values()]
        self.box = ipywidgets.VBox([*rows, self.picture, self.message, words]).add_class("reglib-explore")
        for part in (part for parts in self.inputs.values() for part in parts):
            part.observe(self.update, "value")
        if any(isinstance(control, Click) for control in controls.values()):
            from ipyevents import Event

            self._event = Event(source=self.picture, watched_events=["click"])
            self._event.on_dom_event(self.clicked)

    def display(self) -> None:
        """Show the widget; the same output holds its first picture, for pages that have no kernel."""
        from IPython.display import display

        picture = b64encode(encode(self._image, colors=PALETTE)).decode()
        display({**self.box._repr_mimebundle_(), "image/png": picture}, raw=True)

    def _draw(self) -> None:
        values = {name: tuple(part.value for part in parts) for name, parts in self.inputs.items()}
        points = {name for name, control in self._controls.items() if isinstance(control, Click)}
        state = {name: value if name in points else value[0] for name, value in values.items()}
        self._figure, self._image = _render(self._render, state)
        self.picture.value = encode(self._image)

    def update(self, _change: Any = None) -> None:
        """Draw the present state; an error becomes a sentence under the picture, not a hidden log line."""
        try:
            self._draw()
            self.message.value = ""
        except Exception as error:
            words = html.escape(f"{type(error).__name__}: {error}")
            self.message.value = f'<p role="alert" style="color: #b00020; margin: 0">{words}</p>'

    def clicked(self, event: dict[str, Any]) -> None:
        """Move the Click controls to the clicked point; clicks beside the first axes do nothing."""
        point = data_point(self._figure, event["dataX"], event["dataY"])
        if point is None:
            return
        for name, control in self._controls.items():
            if isinstance(control, Click):
                for part, value, low, high in zip(self.inputs[name], point, control.low, control.high, strict=True):
                    part.unobserve(self.update, "value")  # both numbers first, then one picture
                    part.value = min(max(value, low), high)
                    part.observe(self.update, "value")
        self.update()


def data_point(figure: Figure, column: Number, row: Number) -> tuple[float, float] | None:
    """Where a pixel, counted from the picture's top left, lies in the first axes' data; None outside."""
    axes = figure.axes[0]
    pixel = (column + 0.5, int(figure.bbox.height) - row - 0.5)
    if not axes.bbox.contains(*pixel):
        return None
    x, y = axes.transData.inverted().transform(pixel)
    return float(x), float(y)


def _inputs(description: str, control: Control) -> list[Any]:
    """The ipywidgets of a control: one, or for a point two sliders, so that the keyboard reaches it."""
    import ipywidgets

    look: dict[str, Any] = {"description": description, "style": {"description_width": "initial"}}
    if isinstance(control, Slider):
        return [_slider(control, look)]
    if isinstance(control, Click):
        parts = []
        for axis, low, high, value in zip("xy", control.low, control.high, control.value, strict=True):
            slider = Slider(float(low), float(high), float(value))
            parts.append(_slider(slider, look | {"description": f"{description} {axis}"}))
        return parts
    if isinstance(control, Choice):
        kind = ipywidgets.ToggleButtons if len(control.options) <= 4 else ipywidgets.Dropdown
        options = [(str(option), option) for option in control.options]
        return [kind(options=options, value=control.value, **look)]
    return [ipywidgets.Checkbox(value=control.value, indent=False, **look)]


def _slider(control: Slider, look: dict[str, Any]) -> Any:
    import ipywidgets

    ends = {"min": control.low, "max": control.high, "value": control.value, "layout": {"width": "28em"}}
    if all(isinstance(x, int) for x in (control.low, control.high, control.value, control.step or 1)):
        return ipywidgets.IntSlider(step=control.step or 1, **ends, **look)
    step = control.step or _round_step((control.high - control.low) / 100)
    digits = min(6, max(0, math.ceil(-math.log10(step) - 1e-9)))
    return ipywidgets.FloatSlider(step=step, readout_format=f".{digits}f", **ends, **look)


def _round_step(step: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `step`: round values stay on the slider's grid."""
    if step <= 0:
        return 0.01
    power = 10.0 ** math.floor(math.log10(step) + 1e-9)
    return max(factor for factor in (1, 2, 5) if factor * power <= step * (1 + 1e-9)) * power
