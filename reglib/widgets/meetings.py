"""Who meets whom: the pairs of an epoch as arrows, and how often each two have met by then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..plot import canvas
from .controls import Choice, Control, Slider
from .views import State, View

Pairs = Sequence[tuple[int, int]]  # moving and fixed, indices of scans
Meet = Callable[[int], Pairs]  # an epoch's pairs
HEIGHT_IN = 5.4
GAP = 1.6  # between groups on the circle, in scans
MOST_NAMES = 24  # scans that have a name each on the circle


def meeting_dial(rules: dict[str, Meet], groups: Sequence[Sequence[int]], names: Sequence[str], *, epochs: int) -> View:
    """Scans on a circle, group by group; an arrow goes from the moving to the fixed one of each pair of an epoch.

    Beside it, how often each two have met from the first epoch on: rows move, columns stay.

    Args:
        rules: by name, what gives the pairs of an epoch, such as `lambda e: [(d.moving, d.fixed) for d in s.draws(e)]`.
        groups: the indices of each group's scans; one group for scans that have none.
        names: of the scans.
        epochs: how many may be looked at.
    """
    if sorted(index for group in groups for index in group) != list(range(len(names))):
        raise ValueError(f"groups must hold each of the {len(names)} scans once; got {[list(g) for g in groups]}.")
    pairs = {rule: [list(meet(epoch)) for epoch in range(epochs)] for rule, meet in rules.items()}
    order = [index for group in groups for index in group]
    places = _circle(groups)
    owner = {index: k for k, group in enumerate(groups) for index in group}

    def render(state: State) -> Figure:
        epoch = int(state["epoch"]) - 1
        now, until = pairs[state["rule"]][epoch], pairs[state["rule"]][: epoch + 1]
        figure = Figure(figsize=(canvas.WIDTH_IN, HEIGHT_IN), dpi=canvas.DPI)
        circle = figure.add_axes((0.02, 0.03, 0.47, 0.86))
        _draw_circle(circle, places, owner, now, names)
        sitting = len(names) - len({index for pair in now for index in pair})
        out = f", {sitting} sit out" if sitting else ""
        circle.set_title(f"epoch {epoch + 1}: {len(now)} pairs{out}", **_title())
        table = figure.add_axes((0.6, 0.14, 0.36, 0.73))
        _draw_table(table, figure, _counts(until, order), len(until), [len(group) for group in groups])
        return figure

    controls: dict[str, Control] = {"epoch": Slider(1, epochs, 1)}
    controls["rule"] = Choice(tuple(rules), next(iter(rules)))
    return render, controls


def _title() -> dict[str, Any]:
    return {"fontsize": canvas.TITLE_SIZE, "color": canvas.INK, "fontweight": "bold"}


def _circle(groups: Sequence[Sequence[int]]) -> dict[int, tuple[float, float]]:
    """Where each scan stands, clockwise from the top, with a gap between groups."""
    count = sum(map(len, groups)) + GAP * len(groups)
    places: dict[int, tuple[float, float]] = {}
    turn = GAP / 2
    for group in groups:
        for index in group:
            angle = np.pi / 2 - 2 * np.pi * (turn + 0.5) / count
            places[index] = (float(np.cos(angle)), float(np.sin(angle)))
            turn += 1
        turn += GAP
    return places


def _draw_circle(
    panel: Panel, places: dict[int, tuple[float, float]], owner: dict[int, int], pairs: Pairs, names: Sequence[str]
) -> None:
    for moving, fixed in pairs:
        if moving == fixed:
            panel.plot(*places[moving], "o", markersize=30, mfc="none", mec=canvas.INK, mew=2.5, zorder=2)
            continue
        curved: dict[str, Any] = {
            "arrowstyle": "-|>,head_length=0.7,head_width=0.35",
            "color": canvas.INK,
            "linewidth": 2.2,
        }
        curved |= {"connectionstyle": "arc3,rad=0.18", "shrinkA": 11, "shrinkB": 11}
        panel.annotate("", places[fixed], places[moving], arrowprops=curved, zorder=2)
    for index, place in places.items():
        color = canvas.LABEL_COLORS[owner[index] % len(canvas.LABEL_COLORS)]
        panel.plot(*place, "o", markersize=18, color=color, markeredgecolor=canvas.INK, zorder=3)
        if len(places) <= MOST_NAMES:
            side = "left" if place[0] > 0.1 else "right" if place[0] < -0.1 else "center"
            words: dict[str, Any] = {"fontsize": canvas.TEXT_SIZE - 2, "ha": side, "va": "center"}
            panel.text(1.13 * place[0], 1.13 * place[1], names[index].rpartition("/")[2], **words)
    panel.set(xlim=(-1.6, 1.6), ylim=(-1.3, 1.3), aspect="equal")
    panel.axis("off")


def _counts(epochs: Sequence[Pairs], order: Sequence[int]) -> np.ndarray:
    """How often each scan moved (rows) to each (columns), in the circle's order."""
    row = {index: k for k, index in enumerate(order)}
    counts = np.zeros((len(order), len(order)))
    for pairs in epochs:
        for moving, fixed in pairs:
            counts[row[moving], row[fixed]] += 1
    return counts


def _draw_table(panel: Panel, figure: Figure, counts: np.ndarray, epochs: int, sizes: Sequence[int]) -> None:
    picture = panel.imshow(counts, cmap="Blues", vmin=0, vmax=max(counts.max(), 1), interpolation="nearest")
    for edge in np.cumsum(sizes)[:-1]:
        panel.axhline(edge - 0.5, color=canvas.INK, linewidth=1)
        panel.axvline(edge - 0.5, color=canvas.INK, linewidth=1)
    panel.set_title(f"met in {epochs} epoch{'s' if epochs > 1 else ''}", **_title())
    panel.set_xlabel("fixed", fontsize=canvas.TEXT_SIZE, color=canvas.FIXED_COLOR, fontweight="bold")
    panel.set_ylabel("moving", fontsize=canvas.TEXT_SIZE, color=canvas.MOVING_COLOR, fontweight="bold")
    panel.set(xticks=[], yticks=[])
    bar = figure.colorbar(picture, ax=panel, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=canvas.TEXT_SIZE - 2)
    bar.locator = MaxNLocator(integer=True, nbins=5)
    bar.update_ticks()


__all__ = ["meeting_dial"]
