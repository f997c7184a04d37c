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


# -- scores -------------------------------------------------------------------------------------------------------
def success_curves(curves: Mapping[str, Sequence[float]]) -> Figure:
    """The share of pairs that succeed against the error that is allowed, from 1 pixel on; the area below is shaded.

    Args: curves: by name, a share from 0 to 1 for each whole number of pixels.
    """
    if not curves or not all(len(shares) for shares in curves.values()):
        raise ValueError("give at least one curve of at least one share.")
    figure = Figure(figsize=(canvas.WIDTH_IN, 3.6), dpi=canvas.DPI)
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.2, top=0.88, wspace=0.12)
    for panel, (name, shares) in zip(panels, curves.items(), strict=True):
        allowed = np.arange(1, len(shares) + 1)
        percent = 100 * np.asarray(shares, dtype=float)
        panel.fill_between(allowed, percent, step="mid", color=canvas.WARPED_COLOR, alpha=0.25)
        panel.step(allowed, percent, where="mid", color=canvas.WARPED_COLOR, linewidth=2.5)
        panel.set_title(name, fontsize=canvas.TITLE_SIZE, fontweight="bold")
        panel.set_xlabel("allowed error (px)", fontsize=canvas.TEXT_SIZE)
        panel.set(ylim=(-3, 103), xlim=(0.5, len(shares) + 0.5))
        panel.tick_params(labelsize=canvas.TEXT_SIZE)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("% of pairs", fontsize=canvas.TEXT_SIZE)
    return figure


def verification_dial(own: Sequence[int], other: Sequence[int]) -> View:
    """Move the count of inliers from which two photographs are held for one eye: who is refused, who is taken.

    Args: own, other: counts of pairs of one eye and of two eyes.
    """
    if not len(own) or not len(other):
        raise ValueError(f"give counts of both kinds; got {len(own)} and {len(other)}.")
    counts = {"one eye": np.asarray(own), "two eyes": np.asarray(other)}
    most = int(max(values.max() for values in counts.values()))

    def render(state: State) -> Figure:
        needed = state["needed"]
        figure = Figure(figsize=(canvas.WIDTH_IN, 2.8), dpi=canvas.DPI)
        panel = figure.subplots()
        figure.subplots_adjust(left=0.13, right=0.98, bottom=0.25, top=0.86)
        for row, (values, right) in enumerate(zip(counts.values(), (True, False), strict=True)):
            taken = values >= needed
            spread = row + 0.5 * (np.arange(len(values)) * 0.618 % 1 - 0.5)  # side by side, the same each time
            for ok, color, mark in ((True, RIGHT, "o"), (False, WRONG, "X")):
                chosen = (taken == right) == ok
                panel.scatter(values[chosen], spread[chosen], color=color, marker=mark, s=42, edgecolors="black")
        panel.axvline(needed - 0.5, color=canvas.INK, linewidth=2)
        refused, mistaken = int((counts["one eye"] < needed).sum()), int((counts["two eyes"] >= needed).sum())
        words = f"{refused} of {len(own)} refused wrongly, {mistaken} of {len(other)} taken wrongly"
        panel.set_title(words, fontsize=canvas.TITLE_SIZE, fontweight="bold")
        panel.set_yticks([0, 1], list(counts))
        panel.set_xlabel("inliers", fontsize=canvas.TEXT_SIZE)
        panel.set(xlim=(-0.02 * most - 1, 1.02 * most + 1), ylim=(1.5, -0.5))
        panel.tick_params(labelsize=canvas.TEXT_SIZE)
        panel.spines[["top", "right"]].set_visible(False)
        return figure

    return render, {"needed": Slider(0, most + 1, most // 2)}


__all__ = [
    "Matches",
    "checker_dial",
    "growth_dial",
    "match_dial",
    "matches_figure",
    "photographs",
    "places_dial",
    "success_curves",
    "verification_dial",
]
