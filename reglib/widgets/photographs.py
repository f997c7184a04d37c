"""Views of photographs: what was found on them, and what was matched with what.

Places are (x, y) in pixels, x to the right and y down, as in `reglib.keypoints`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from matplotlib.axes import Axes as Panel
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..plot import canvas
from .controls import Choice, Control, Slider
from .views import State, View

Picture = Shaped[np.ndarray, "_h _w *_c"]  # gray or RGB, 8 bits or from 0 to 1
Places = Float[np.ndarray, "_n 2"]
RIGHT, WRONG = "#37e05a", "#ff4d4d"  # told apart by width and dashes too
LABELLED, NEW = "#ffe100", "#19c3ff"


class Matches(NamedTuple):
    """Places of a query and of a reference that were taken for one, and which of them are."""

    query: Places
    reference: Places
    right: Bool[np.ndarray, " _n"]


def _slot(picture: np.ndarray, title: str = "") -> canvas.Slot:
    height, width = picture.shape[:2]
    return canvas.Slot((0.0, float(width), 0.0, float(height)), title)


def _draw(panel: Panel, picture: np.ndarray, *, dim: bool = False) -> None:
    height, width = picture.shape[:2]
    values = picture / 255 if picture.dtype == np.uint8 else np.asarray(picture)
    values = np.clip(values * (0.6 if dim else 1.0), 0, 1)
    look: dict[str, Any] = {"cmap": "gray", "norm": Normalize(0, 1)} if values.ndim == 2 else {}
    drawn = AxesImage(panel, extent=(0, width, 0, height), origin="upper", interpolation="antialiased", **look)
    drawn.set_data(values)
    drawn.set_clip_path(panel.patch)
    panel.add_image(drawn)


def _on_panel(points: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return np.column_stack([points[:, 0] + 0.5, picture.shape[0] - 0.5 - points[:, 1]])


def _dots(panel: Panel, picture: np.ndarray, points: np.ndarray, color: str, size: float = 22.0) -> None:
    x, y = _on_panel(points, picture).T
    panel.scatter(x, y, s=size, facecolors="none", edgecolors=color, linewidths=1.3, zorder=4)


def photographs(
    pictures: Mapping[str, Picture], *, points: Mapping[str, Places] | None = None, columns: int = 3
) -> Figure:
    """Pictures in rows, their names above, with rings at places of some of them."""
    if not pictures:
        raise ValueError("give at least one picture; got none.")
    names = list(pictures)
    rows = [names[k : k + columns] for k in range(0, len(names), columns)]
    figure, panels = canvas.panels([[_slot(pictures[name], name) for name in row] for row in rows])
    for panel, name in zip(panels, names, strict=True):
        _draw(panel, pictures[name])
        if points is not None and name in points:
            _dots(panel, pictures[name], points[name], LABELLED)
    return figure


def places_dial(
    picture: Picture, find: Callable[..., Places], controls: Mapping[str, Control], *, known: Places | None = None
) -> View:
    """Move what a detector goes by: where it finds something.

    Args:
        find: called with the values of the controls by name.
        known: places that should be found, as rings of another color.
    """

    def render(state: State) -> Figure:
        found = find(**state)
        figure, (panel,) = canvas.panels([[_slot(picture, f"{len(found)} keypoints")]])
        _draw(panel, picture, dim=True)
        if known is not None:
            _dots(panel, picture, known, LABELLED, size=60.0)
        _dots(panel, picture, found, NEW)
        return figure

    return render, dict(controls)


def match_dial(
    query: Picture, reference: Picture, find: Callable[..., Matches], controls: Mapping[str, Control]
) -> View:
    """Move what a matcher goes by: a line for each match, green if it is right and dashed red if it is not.

    Args: find: called with the values of the controls by name.
    """

    def render(state: State) -> Figure:
        found = find(**state)
        share = f", {100 * found.right.mean():.0f} % right" if len(found.right) else ""
        return matches_figure(query, reference, found, title=f"{len(found.right)} matches{share}")

    return render, dict(controls)


def matches_figure(query: Picture, reference: Picture, found: Matches, *, title: str = "") -> Figure:
    """Both photographs and a line for every match."""
    height = max(query.shape[0], reference.shape[0])
    wide = query.shape[1] + reference.shape[1]
    both = np.zeros((height, wide, *query.shape[2:]), query.dtype)
    both[: query.shape[0], : query.shape[1]] = query
    both[: reference.shape[0], query.shape[1] :] = reference
    figure, (panel,) = canvas.panels([[_slot(both, title)]])
    _draw(panel, both, dim=True)
    starts = _on_panel(found.query, both)
    ends = _on_panel(found.reference + np.array([query.shape[1], 0.0]), both)
    for right, color, look in ((False, WRONG, canvas.TRUTH_STYLE), (True, RIGHT, "-")):
        lines = np.stack([starts, ends], axis=1)[found.right == right]
        panel.add_collection(LineCollection(lines, colors=color, linestyles=[look], linewidths=0.9, zorder=4))
    return figure


def checker_dial(lay: Callable[[str, int], Picture], maps: Sequence[str]) -> View:
    """Choose a map and how many tiles: two photographs as a checkerboard.

    Args:
        lay: called with the name of a map and a number of tiles.
        maps: their names; the last is shown first.
    """
    if not maps:
        raise ValueError("give the name of at least one map; got none.")

    def render(state: State) -> Figure:
        return photographs({state["map"]: lay(state["map"], state["tiles"])})

    return render, {"map": Choice(tuple(maps), maps[-1]), "tiles": Slider(2, 24, 8)}


def growth_dial(picture: Picture, labelled: Places, grown: Sequence[Places]) -> View:
    """Choose an epoch: the labelled keypoints, and those that the network has added by then.

    Args: grown: of each epoch all keypoints, labelled ones among them.
    """
    if not grown:
        raise ValueError("give the keypoints of at least one epoch; got none.")

    def render(state: State) -> Figure:
        now = grown[state["epoch"] - 1]
        apart = np.linalg.norm(now[:, None] - labelled[None], axis=-1).min(1) if len(labelled) else np.ones(len(now))
        added = now[apart > 1.0]
        title = f"{len(labelled)} labelled, {len(added)} added"
        figure, (panel,) = canvas.panels([[_slot(picture, title)]])
        _draw(panel, picture, dim=True)
        _dots(panel, picture, labelled, LABELLED, size=40.0)
        _dots(panel, picture, added, NEW)
        return figure

    return render, {"epoch": Slider(1, len(grown), len(grown))}


__all__ = ["Matches", "checker_dial", "growth_dial", "match_dial", "matches_figure", "photographs", "places_dial"]
