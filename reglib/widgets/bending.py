"""Views of deformable registrations: what each model found, how it came there, and what its dials do to the error.

All of them draw 2-D grids, as graph paper whose points p stand where the map takes them, p + ddf[p].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from torch import Tensor

from .. import filters, plot
from ..field import jacobian_determinant, resize_ddf, warp
from ..grid import Grid
from ..plot import canvas
from ..plot.planes import Plane
from .controls import Choice, Control, Slider
from .paper import CHART_IN, chart_beside, draw_paper, plane, ring
from .views import State, View

Image = Float[Tensor, "1 1 *s"]
Ddf = Float[Tensor, "1 2 *s"]
ROOM_IN = 7.3  # for a wide chart right of a picture, inches
LARGEST = 3.0  # change of volume that pictures tell apart


@dataclass(frozen=True)
class Bend:
    """What one registration found.

    Args:
        ddf: (1, 2, *s) voxels.
        error_mm: against the truth; None where there is none.
        seconds: that it took.
        overlap: of labels, 0 to 1.
    """

    ddf: Tensor
    error_mm: float | None = None
    seconds: float = 0.0
    overlap: float | None = None

    @cached_property
    def folds(self) -> int:
        """Voxels at which the map folds."""
        return int((jacobian_determinant(self.ddf) <= 0).sum())


def _words(bend: Bend) -> str:
    """Its error, or else its overlap."""
    if bend.error_mm is not None:
        return f"{bend.error_mm:.1f} mm off"
    return "" if bend.overlap is None else f"overlap {bend.overlap:.0%}"


def _note_folds(panel: Panel, bend: Bend) -> None:
    words = f"{bend.folds} folded" if bend.folds else "no fold"
    canvas.note(panel, words, color=canvas.FOLD_COLOR if bend.folds else "white")


def _paper_slot(at: Plane, title: str = "", *, color: str = canvas.INK, right: float = canvas.EDGE_IN) -> canvas.Slot:
    """Room for graph paper, without letters: its corners hold words."""
    return replace(canvas.slot(at, title, color=color, right=right), letters=())


def _wide_chart(figure: Figure, panel: Panel, title: str, across: str, up: str) -> Panel:
    """A chart that fills ROOM_IN."""
    chart = chart_beside(figure, panel, title, across, up)
    box, width = chart.get_position(), figure.get_size_inches()[0]
    chart.set_position((box.x0, box.y0, (ROOM_IN - 1.15) / width, box.height))
    return chart


def _require(bends: Mapping[Any, Bend], grid: Grid, **images: Tensor) -> Plane:
    """The slice that holds all of these."""
    if not bends:
        raise ValueError("give at least one registration to draw; got none.")
    return plane(grid, **images, **{f"the ddf of {name}": bend.ddf for name, bend in bends.items()})


# -- models side by side ----------------------------------------------------------------------------------------
def bends_in_a_row(bends: Mapping[str, Bend], grid: Grid) -> Figure:
    """The warped grids of several registrations side by side: one slice, one scale, one color; folds are loud."""
    at = _require(bends, grid)
    figure, panels = canvas.panels([[_paper_slot(at, name) for name in bends]])
    for panel, bend in zip(panels, bends.values(), strict=True):
        draw_paper(panel, at, bend.ddf)
        _note_folds(panel, bend)
        if words := _words(bend):
            canvas.write(panel, 0.5, 0.06, words, size=canvas.TEXT_SIZE, weight="bold")
    return figure


def bend_gallery(
    fixed: Image, moving: Image, grid: Grid, bends: Mapping[str, Bend], *, truth: Ddf | None = None, name: str = "model"
) -> View:
    """Choose one registration: overlay, graph paper, and change of area, on one scale for all.

    Args:
        truth: the field that should have come out, dashed.
        name: of the choice.
    """
    images = {"fixed": fixed, "moving": moving} | ({} if truth is None else {"truth": truth})
    at = _require(bends, grid, **images)
    light, shown = canvas.scaled(at.cut(fixed), plot.window(fixed)), plot.window(moving)
    determinants = {each: at.determinant(bend.ddf) for each, bend in bends.items()}
    limit = min(LARGEST, max(canvas.ratio_limit(each) for each in determinants.values()))

    def render(state: State) -> Figure:
        bend = bends[state[name]]
        slots = [canvas.slot(at, _words(bend)), _paper_slot(at, "warped grid")]
        figure, panels = canvas.panels([[*slots, canvas.slot(at, "Jacobian", right=canvas.BAR_IN)]])
        warped = warp(moving, bend.ddf, padding="zeros")
        canvas.blended(panels[0], at, light, canvas.scaled(at.cut(warped), shown))
        canvas.name_both(panels[0], "fixed", "warped")
        draw_paper(panels[1], at, bend.ddf, truth=truth)
        _note_folds(panels[1], bend)
        canvas.ratio_bar(panels[2], canvas.ratios(panels[2], at, determinants[state[name]], limit))
        return figure

    return render, {name: Choice((*bends,), next(iter(bends)))}


# -- dials against the error ------------------------------------------------------------------------------------
def weight_curves(found: Mapping[str, Mapping[float, Bend]], grid: Grid, *, truth: Ddf, before_mm: float) -> View:
    """Choose a model and a weight: its graph paper on the truth, and the error of all weights.

    Args:
        found: of each model, of each weight above 0, what was found.
        before_mm: the error without registration, dotted.
    """
    weights = _same_keys(found)
    if weights[0] <= 0 or len(weights) < 2:
        raise ValueError(f"found must hold at least two weights above 0 for each model; got {weights}.")
    logs = np.log10(weights)
    total = [sum(each[w].error_mm or 0.0 for each in found.values()) for w in weights]

    def chosen(state: State) -> float:
        return weights[int(np.abs(logs - state["log10_weight"]).argmin())]

    step = float(np.diff(logs).min())
    dial = Slider(float(logs[0]), float(logs[-1]), float(logs[int(np.argmin(total))]), step=step)
    words = ("weight", "weight of the regularizer", "")
    controls: dict[str, Control] = {"model": Choice((*found,), next(iter(found))), "log10_weight": dial}
    return _error_view(found, grid, truth, before_mm, chosen, words), controls


def spacing_curve(found: Mapping[float, Bend], grid: Grid, *, truth: Ddf, before_mm: float) -> View:
    """Choose a distance of control points, mm: the graph paper on the truth, and the error of all distances."""
    known = {"free-form": found}
    apart = _same_keys(known)

    def chosen(state: State) -> float:
        return float(state["spacing_mm"])

    first = apart[len(apart) // 2]
    words = ("control points", "distance of control points [mm]", " mm")
    return _error_view(known, grid, truth, before_mm, chosen, words), {"spacing_mm": Choice((*apart,), first)}


def sigma_curves(found: Mapping[str, Mapping[float, Bend]], grid: Grid, *, truth: Ddf, before_mm: float) -> View:
    """Choose what was smoothed and by how much: the graph paper on the truth, and the error of all sigmas.

    Args: found: of what was smoothed, of each sigma in voxels above 0, what was found.
    """
    sigmas = _same_keys(found)

    def chosen(state: State) -> float:
        return float(state["sigma"])

    words = ("sigma", "sigma of the gaussian [voxels]", " voxels")
    controls: dict[str, Control] = {
        "smoothed": Choice((*found,), next(iter(found))),
        "sigma": Choice((*sigmas,), sigmas[len(sigmas) // 2]),
    }
    return _error_view(found, grid, truth, before_mm, chosen, words), controls


def _same_keys(found: Mapping[str, Mapping[float, Bend]]) -> list[float]:
    keys = sorted(next(iter(found.values()))) if found else []
    if not keys or any(sorted(each) != keys for each in found.values()):
        raise ValueError("every model must have been fitted at the same settings, at least one.")
    if any(bend.error_mm is None for each in found.values() for bend in each.values()):
        raise ValueError("every registration needs its error_mm to be drawn against the setting.")
    return keys


def _error_view(
    found: Mapping[str, Mapping[float, Bend]],
    grid: Grid,
    truth: Tensor,
    before_mm: float,
    chosen: Callable[[State], float],
    words: tuple[str, str, str],
) -> Callable[[State], Figure]:
    at = _require({f"{k} at {x:g}": b for k, each in found.items() for x, b in each.items()}, grid, truth=truth)
    settings = _same_keys(found)
    title, across, unit = words

    def render(state: State) -> Figure:
        model, setting = state.get("model", state.get("smoothed", next(iter(found)))), chosen(state)
        bend = found[model][setting]
        slot = _paper_slot(at, f"{title} {setting:g}{unit}", right=ROOM_IN)
        figure, (panel,) = canvas.panels([[slot]])
        draw_paper(panel, at, bend.ddf, truth=truth)
        _note_folds(panel, bend)
        chart = _wide_chart(figure, panel, f"{bend.error_mm:.2f} mm off", across, "error [mm]")
        chart.axhline(before_mm, color=canvas.MOVING_COLOR, linewidth=2, linestyle=":")
        for name, each in found.items():
            look = {"color": canvas.WARPED_COLOR, "lw": 3.5, "zorder": 3} if name == model else {"color": "#aaaaaa"}
            chart.plot(settings, [float(each[x].error_mm or 0) for x in settings], "o-", markersize=5, **look)
        folded = [x for x in settings if found[model][x].folds]
        errors = [float(found[model][x].error_mm or 0) for x in folded]
        chart.plot(folded, errors, "s", color=canvas.FOLD_COLOR, markersize=9, zorder=4)
        ring(chart, setting, float(bend.error_mm or 0.0))
        chart.set(
            xscale="log", ylim=(0, 1.1 * max(before_mm, *(float(found[model][x].error_mm or 0) for x in settings)))
        )
        chart.minorticks_off()
        if unit:
            chart.set_xticks(settings, [f"{x:g}" for x in settings])
        return figure

    return render


# -- coarse to fine ---------------------------------------------------------------------------------------------
def ridge_walk(
    fixed: Image,
    moving: Image,
    grid: Grid,
    start: Ddf,
    truth: Ddf,
    *,
    loss: Callable[..., Tensor],
    factors: Sequence[int] = (1, 2, 4),
    points: int = 25,
) -> View:
    """Walk from where a descent stopped to the truth: the overlay on the way, and the loss seen at each coarseness.

    Args:
        start: where it stopped, voxels.
        loss: (warped, fixed) to a scalar.
        factors: by which both images are coarsened.
    """
    at = plane(grid, fixed=fixed, moving=moving, start=start, truth=truth)
    shares = np.linspace(0, 1, points)
    seen = {
        k: [float(loss(*_seen(fixed, moving, grid, _between(start, truth, t), k))) for t in shares] for k in factors
    }

    def render(state: State) -> Figure:
        losses, share = seen[state["factor"]], state["share"]
        pair = _seen(fixed, moving, grid, _between(start, truth, share), state["factor"])
        title = "full resolution" if state["factor"] == 1 else f"coarsened by {state['factor']}"
        warped, still = (filters.resize(image, grid.shape) for image in pair)
        figure, (panel,) = canvas.panels([[canvas.slot(at, title, right=ROOM_IN)]])
        shown = canvas.scaled(at.cut(still), plot.window(still)), canvas.scaled(at.cut(warped), plot.window(warped))
        canvas.blended(panel, at, *shown)
        canvas.name_both(panel, "fixed", "warped")
        chart = _wide_chart(figure, panel, _slope_words(losses), "from where it stopped to the truth", "loss")
        chart.plot(shares, losses, color=canvas.WARPED_COLOR, linewidth=3.5)
        chart.axvline(1, color=canvas.INK, linewidth=2, linestyle=canvas.TRUTH_STYLE)
        here = float(np.interp(share, shares, losses))
        ring(chart, share, here)
        chart.set_xticks([0, 1], ["stopped", "truth"])
        chart.locator_params(axis="y", nbins=5)
        return figure

    controls: dict[str, Control] = {
        "share": Slider(0.0, 1.0, 0.0, step=0.05),
        "factor": Choice((*factors,), factors[0]),
    }
    return render, controls


def _between(start: Tensor, end: Tensor, share: float) -> Tensor:
    return (1 - share) * start + share * end


def _seen(fixed: Tensor, moving: Tensor, grid: Grid, ddf: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Warped and fixed as a level of this factor sees them."""
    shape = grid.downsample(factor).shape
    small = filters.downsample(fixed, shape), filters.downsample(moving, shape)
    return warp(small[1], resize_ddf(ddf, shape)), small[0]


def _slope_words(losses: Sequence[float]) -> str:
    """Whether the way to the truth first goes up."""
    low, high = min(losses), max(losses)
    climbs = max(losses[: len(losses) // 2]) - losses[0] > 0.02 * (high - low)
    return "a ridge in the way" if climbs else "downhill all the way"


# -- steps ------------------------------------------------------------------------------------------------------
def steps_dial(trails: Mapping[str, Sequence[Ddf]], moving: Image, grid: Grid, *, every: int, fixed: Image) -> View:
    """Several descents step by step: warped images with the fixed outline dashed, and their graph paper.

    Args: trails: of each descent, the field after every `every` steps.
    """
    counts = {len(trail) for trail in trails.values()}
    if len(counts) != 1 or not min(counts, default=0):
        raise ValueError(f"trails must hold as many fields each, at least one; got {sorted(counts)}.")
    most = counts.pop() - 1
    ends = {name: trail[-1] for name, trail in trails.items()}
    at = plane(grid, moving=moving, fixed=fixed, **{f"trail {name}": ddf for name, ddf in ends.items()})
    outline, shown = (fixed > 0.5).long(), plot.window(moving)

    def render(state: State) -> Figure:
        fields = [trail[min(round(state["step"] / every), most)] for trail in trails.values()]
        slots = [
            [_paper_slot(at, name, color=canvas.WARPED_COLOR) for name in trails],
            [_paper_slot(at) for _ in trails],
        ]
        figure, panels = canvas.panels(slots)
        for above, below, ddf in zip(panels, panels[len(fields) :], fields, strict=False):
            canvas.gray(above, at, at.cut(warp(moving, ddf)), shown, dim=True)
            canvas.outlines(above, at, outline, truth=True)
            draw_paper(below, at, ddf)
            _note_folds(below, Bend(ddf))
        return figure

    return render, {"step": Slider(0, every * most, every * most, step=every)}


# -- volumes ----------------------------------------------------------------------------------------------------
def volume_dial(trials: Mapping[str, Mapping[float, Bend]], body: Shaped[Tensor, "1 1 *s"], grid: Grid) -> View:
    """Two regularizers at one weight: their changes of area, and overlap against the spread of log det of all weights.

    Args:
        trials: of each regularizer, of each weight, what was found, with its overlap.
        body: where volumes count, above 0.
    """
    names, weights = list(trials), sorted(next(iter(trials.values())))
    if any(sorted(each) != weights or any(b.overlap is None for b in each.values()) for each in trials.values()):
        raise ValueError(
            "every regularizer must have been tried at the same weights, and each trial needs its overlap."
        )
    every = {f"{name} at {w:g}": bend for name, each in trials.items() for w, bend in each.items()}
    at = _require(every, grid, body=body)
    limit = min(LARGEST, max(canvas.ratio_limit(at.determinant(bend.ddf)) for bend in every.values()))
    spread = {name: [spread_of(each[w].ddf, body) for w in weights] for name, each in trials.items()}
    colors = dict(zip(names, ("#888888", canvas.WARPED_COLOR, canvas.FIXED_COLOR), strict=False))

    def render(state: State) -> Figure:
        k = int(np.abs(np.log10(weights) - state["log10_weight"]).argmin())
        last = len(names) - 1
        slots = [_paper_slot(at, n, color=colors[n], right=CHART_IN if n == names[last] else 0.05) for n in names]
        figure, panels = canvas.panels([slots])
        for panel, name in zip(panels, names, strict=True):
            canvas.ratios(panel, at, at.determinant(trials[name][weights[k]].ddf), limit)
            canvas.note(panel, f"spread {spread[name][k]:.2f}")
        chart = chart_beside(figure, panels[-1], f"weight {weights[k]:.3g}", "spread of log det", "overlap (Dice)")
        for name in names:
            overlaps = [float(trials[name][w].overlap or 0.0) for w in weights]
            chart.plot(spread[name], overlaps, "o-", color=colors[name], linewidth=3.5, markersize=6)
            ring(chart, spread[name][k], overlaps[k])
        chart.locator_params(nbins=5)
        return figure

    logs = np.log10(weights)
    step = float(np.diff(logs).min()) if len(logs) > 1 else 1.0
    return render, {"log10_weight": Slider(float(logs[0]), float(logs[-1]), float(logs[len(logs) // 2]), step=step)}


def spread_of(ddf: Ddf, body: Shaped[Tensor, "1 1 *s"]) -> float:
    """Standard deviation of log det(I + grad u) within a body; folds count as a thousandth."""
    determinant = jacobian_determinant(ddf)[body > 0]
    return float(torch.log(determinant.clamp(min=1e-3)).std())


__all__ = [
    "Bend",
    "bend_gallery",
    "bends_in_a_row",
    "ridge_walk",
    "sigma_curves",
    "spacing_curve",
    "spread_of",
    "steps_dial",
    "volume_dial",
    "weight_curves",
]
