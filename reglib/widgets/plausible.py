"""Views of regularizers: what a field costs, what a regularizer repairs, and what a weight does to a registration.

Losses are handed in by name, as callables of a ddf (1, 2, *s) in voxels; all views are 2-D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes as Panel
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from .. import plot
from ..field import jacobian_determinant
from ..filters import resize
from ..grid import Grid, require_on_grid
from ..plot import canvas
from ..plot.planes import Plane, plane_of, signed
from .controls import Choice, Slider, Toggle
from .views import State, View

Loss = Callable[[Tensor], Tensor]
Ddf = Float[Tensor, "1 2 *s"]
FREE = 1e-5  # share of the dearest price that still counts as nothing: rounding
CHEAP_DEAR = LinearSegmentedColormap.from_list("price", ["#fff4e6", "#ffb266", canvas.WARPED_COLOR])
FREE_COLOR = "#d7efe6"
GROUND = "#444444"
LINES = 8  # of graph paper under a small field
STEPS_MM = (0.75, 1.0, 1.5, 2.0, 3.0)  # each divides 72 and 60 mm
CHART_IN = 5.9  # right of a picture, for a chart
LABEL_PAD = 5.0  # points between short numbers up an axis and its name


# -- what a field costs -----------------------------------------------------------------------------------------
def zoo(fields: Mapping[str, Ddf], grid: Grid, *, columns: int = 5) -> Figure:
    """Graph paper under each of several fields on one 2-D grid, folds in the loud color."""
    slots = []
    for name, ddf in fields.items():
        require_on_grid(ddf, grid, name)
        slots.append(canvas.Slot(plane_of(ddf, grid).extent, name))
    figure, panels = canvas.panels([slots[k : k + columns] for k in range(0, len(slots), columns)])
    for panel, ddf in zip(panels, fields.values(), strict=True):
        plot.draw_warped_grid(panel, plane_of(ddf, grid), ddf, lines=LINES)
    return figure


def price_table(prices: Mapping[str, Mapping[str, float]]) -> Figure:
    """A row for each regularizer, a column for each field: the price as a share of the dearest of its row.

    Args: prices: of each regularizer, of each field, its energy; a share below `FREE` is written "free".
    """
    columns = list(next(iter(prices.values())))
    if any(list(row) != columns for row in prices.values()):
        raise ValueError(f"every regularizer must price the same fields, here {columns}.")
    figure = Figure(figsize=(canvas.WIDTH_IN, 0.95 + 0.5 * len(prices)), dpi=canvas.DPI)
    panel = figure.add_axes((0.21, 0.01, 0.785, 1 - 0.95 / (0.95 + 0.5 * len(prices))))
    for y, row in enumerate(prices.values()):
        dearest = max(row.values())
        for x, price in enumerate(row.values()):
            _price(panel, x, y, price / dearest if dearest > 0 else 0.0)
    panel.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(prices) - 0.5, -0.5))
    panel.set_xticks(range(len(columns)), columns, rotation=28, ha="left", rotation_mode="anchor")
    panel.set_yticks(range(len(prices)), list(prices))
    panel.xaxis.tick_top()
    panel.tick_params(length=0, labelsize=canvas.TEXT_SIZE, labelcolor=canvas.INK)
    panel.spines[:].set_visible(False)
    return figure


def _price(panel: Panel, x: int, y: int, share: float) -> None:
    free = share < FREE
    color = FREE_COLOR if free else CHEAP_DEAR(share**0.3)
    panel.fill_between([x - 0.48, x + 0.48], y - 0.46, y + 0.46, color=color, linewidth=0)
    words = "free" if free else _percent(share)
    look: dict[str, Any] = {"ha": "center", "va": "center", "size": canvas.TEXT_SIZE, "color": canvas.INK}
    panel.text(x, y, words, weight="bold" if free else "normal", **look)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}" if share >= 0.0005 else "< 0.1%"


def price_tag(fields: Callable[[float], Mapping[str, Ddf]], grid: Grid, losses: Mapping[str, Loss]) -> View:
    """Choose a field and how much of it: its graph paper, and what each regularizer asks for it.

    Args:
        fields: from an amount (1 is the whole) to fields by name, on `grid`.
        losses: each bar is a share of the dearest of all whole fields, which is dashed.
    """
    whole = fields(1.0)
    for name, ddf in whole.items():
        require_on_grid(ddf, grid, name)
    dearest = {name: max(float(loss(ddf)) for ddf in whole.values()) for name, loss in losses.items()}

    def render(state: State) -> Figure:
        here = fields(state["amount"])
        ddf = here[state["field"]]
        figure, panel, chart = _picture_and_chart(
            plane_of(ddf, grid), f"{state['field']} ×{state['amount']:.1f}", names=True
        )
        plot.draw_warped_grid(panel, plane_of(ddf, grid), ddf, lines=LINES)
        prices = {name: float(loss(ddf)) for name, loss in losses.items()}
        free = [prices[name] <= FREE * max(float(loss(u)) for u in here.values()) for name, loss in losses.items()]
        shares = [0.0 if none else prices[name] / dearest[name] for name, none in zip(losses, free, strict=True)]
        _price_bars(chart, list(losses), shares)
        return figure

    return render, {
        "field": Choice(tuple(whole), next(iter(whole))),
        "amount": Slider(0.0, 1.5, 1.0, step=0.1),
    }


def _price_bars(chart: Panel, names: Sequence[str], shares: Sequence[float]) -> None:
    """Horizontal bars on a log scale, so that a thousandth is still seen; dashed the dearest of all whole fields.

    A share of 0 is free.
    """
    white: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    chart.barh(names, [max(share, FREE) - FREE for share in shares], left=FREE, color=canvas.WARPED_COLOR, height=0.66)
    for y, share in enumerate(shares):
        words, color = (_percent(share), canvas.INK) if share > 0 else ("free", canvas.MOVING_COLOR)
        x = max(share, FREE) * 1.25
        chart.text(x, y, words, va="center", size=canvas.TEXT_SIZE, color=color, bbox=white)
    chart.axvline(1, color=canvas.INK, linewidth=2, linestyle=canvas.TRUTH_STYLE, zorder=0)
    chart.set(xscale="log", xlim=(FREE, 1e3))
    chart.set_xticks([1e-4, 1e-2, 1], ["0.01%", "1%", "100%"])
    chart.minorticks_off()
    chart.invert_yaxis()
    _dress(chart, "price (dashed: the dearest)")


# -- what a stencil sees ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Eye:
    """A loss that squares one derivative by finite differences.

    Args:
        loss: of a ddf in voxels.
        order: of the derivative, 1 or 2.
        reads: offsets of the voxels along the axis that it compares.
    """

    loss: Loss
    order: int
    reads: tuple[int, ...]


def stencil_eye(eyes: Mapping[str, Eye]) -> View:
    """Waves of every length: the voxels that a stencil compares, and the share of the true energy that it sees."""
    lengths = np.concatenate([np.arange(2.0, 4.0, 0.1), np.arange(4.0, 12.25, 0.25)])
    seen = {name: [_share_seen(eye, float(wave)) for wave in lengths] for name, eye in eyes.items()}

    def render(state: State) -> Figure:
        eye, wave = eyes[state["stencil"]], state["wave"]
        figure = Figure(figsize=(canvas.WIDTH_IN, 4.0), dpi=canvas.DPI)
        row, chart = figure.add_axes((0.03, 0.15, 0.46, 0.73)), figure.add_axes((0.59, 0.18, 0.39, 0.7))
        _draw_wave(row, wave, eye.reads)
        share = _share_seen(eye, wave)
        chart.plot(lengths, np.ones_like(lengths), color=canvas.INK, linestyle=canvas.TRUTH_STYLE, linewidth=2)
        chart.plot(lengths, seen[state["stencil"]], color=canvas.WARPED_COLOR, linewidth=3)
        chart.plot([wave], [share], "o", color=canvas.FOLD_COLOR if share < 0.01 else canvas.INK, markersize=12)
        chart.set(ylim=(-0.05, 1.12), xlim=(1.8, 12.2), xlabel="wave length [voxels]", ylabel="share of true energy")
        _dress(chart, f"sees {share:.0%}")
        return figure

    return render, {
        "stencil": Choice(tuple(eyes), next(iter(eyes))),
        "wave": Slider(2.0, 12.0, 8.0, step=0.5, unit="voxels"),
    }


def _share_seen(eye: Eye, wave: float) -> float:
    """A wave whose two components are a quarter of its length apart has the same energy at every voxel."""
    phase = 2 * np.pi / wave * torch.arange(24, dtype=torch.float64)
    ddf = torch.stack([phase.cos(), phase.sin()]).unsqueeze(-1).expand(2, 24, 8)[None].contiguous()
    return float(eye.loss(ddf)) / (2 * np.pi / wave) ** (2 * eye.order)


def _draw_wave(panel: Panel, wave: float, reads: Sequence[int]) -> None:
    """Voxels on a wave, and the voxels that the stencil compares around the middle one, joined."""
    fine, voxels, middle = np.linspace(-0.5, 12.5, 500), np.arange(13), 6
    height = np.cos(2 * np.pi / wave * (voxels - middle - min(wave, 8) / 8))
    panel.plot(fine, np.cos(2 * np.pi / wave * (fine - middle - min(wave, 8) / 8)), color="#9aa4ae", linewidth=1.5)
    panel.plot(voxels, height, "o", color=canvas.INK, markersize=7)
    at = np.array([middle + offset for offset in reads])
    panel.plot(at, height[at], "o-", color=canvas.WARPED_COLOR, linewidth=4, markersize=12, zorder=4)
    panel.set(xlim=(-0.6, 12.6), ylim=(-1.35, 1.35), yticks=[], xlabel="voxel")
    _dress(panel, "displacement, and what is compared")
    panel.spines["left"].set_visible(False)


# -- what a regularizer repairs ---------------------------------------------------------------------------------
def repair(truth: Ddf, noises: Mapping[str, Ddf], grid: Grid, losses: Mapping[str, Loss]) -> View:
    """A noisy field, mended by one regularizer: what moves along y, in color, and on the row through the middle.

    The mended field is that of `mend`.

    Args:
        truth: the field without noise, voxels of `grid`; dashed.
        noises: what was added to it, by name.
        losses: the regularizers E.
    """
    require_on_grid(truth, grid, "truth")
    for name, noise in noises.items():
        require_on_grid(noise, grid, name)
    at = plane_of(truth, grid)
    reach = 1.6 * float(np.abs(at.vectors(truth)[1]).max())

    @lru_cache(maxsize=64)
    def mended(regularizer: str, noise: str, strength: float) -> Tensor:
        return mend(truth + noises[noise], noises[noise], losses[regularizer], strength)

    def render(state: State) -> Figure:
        u = mended(state["regularizer"], state["noise"], state["strength"])
        figure, panel, chart = _picture_and_chart(at, f"mended by {state['regularizer']}", bar=True)
        drawn = canvas.differences(panel, at, at.vectors(u)[1], reach)
        drawn.set_interpolation("nearest")
        canvas.color_bar(panel, drawn, "moves along y [mm]")
        _profiles(chart, at, truth, truth + noises[state["noise"]], u)
        return figure

    return render, {
        "regularizer": Choice(tuple(losses), next(iter(losses))),
        "strength": Slider(0.0, 8.0, 4.0, step=0.5),
        "noise": Choice(tuple(noises), next(iter(noises))),
    }


def mend(noisy: Tensor, noise: Tensor, loss: Loss, strength: float) -> Tensor:
    """The field u that minimizes  |u - noisy|^2 / |noise|^2 + strength * E(u) / E(noisy), by L-BFGS in float64.

    Both terms are counted in what they are at the start, so that one strength serves every regularizer E.
    """
    if strength == 0:
        return noisy
    start = noisy.double()
    unit, price = noise.double().square().mean(), float(loss(start))
    u = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([u], max_iter=120, history_size=20, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        total = (u - start).square().mean() / unit + strength * loss(u) / max(price, 1e-12)
        total.backward()
        return total

    solver.step(objective)
    return u.detach().to(noisy.dtype)


def _profiles(chart: Panel, at: Plane, truth: Tensor, noisy: Tensor, mended: Tensor) -> None:
    """The displacement along y on the middle row, mm: noisy, mended, and the truth dashed."""
    x, row = at.centers[0], len(at.centers[1]) // 2
    lines = [at.vectors(ddf)[1, row] for ddf in (noisy, mended, truth)]
    chart.plot(x, lines[0], color="#9aa4ae", linewidth=1.5, marker=".", label="noisy")
    chart.plot(x, lines[1], color=canvas.WARPED_COLOR, linewidth=3, label="mended")
    chart.plot(x, lines[2], color=canvas.INK, linewidth=2, linestyle=canvas.TRUTH_STYLE, label="truth")
    reach = 1.6 * np.abs(lines[2]).max()
    off = float(np.sqrt(((at.vectors(mended) - at.vectors(truth)) ** 2).sum(0).mean()))
    chart.set(ylim=(-reach, reach), xlabel="x [mm]", ylabel="moves along y [mm]")
    chart.legend(fontsize=canvas.TEXT_SIZE, frameon=False, loc="lower right")
    _dress(chart, f"off the truth by {off:.2f} mm")


# -- materials --------------------------------------------------------------------------------------------------
def squeeze(elastic: Callable[[Tensor, float], Tensor], grid: Grid, *, amount: float = 0.2) -> View:
    """A block between smooth plates, shortened by `amount`: the field of least elastic energy at each Poisson ratio.

    Dashed: how wide theory says it becomes, nu / (1 - nu) times as much as it was shortened (plane strain).

    Args: elastic: energy of a ddf in voxels and a Poisson ratio.
    """

    @lru_cache(maxsize=32)
    def pressed(poisson: float) -> Tensor:
        return press(lambda u: elastic(u, poisson), grid, amount=amount)

    def render(state: State) -> Figure:
        u = pressed(state["poisson"])
        at = plane_of(u, grid)
        left, right, bottom, top = at.extent
        wide, high = 0.3 * (right - left), 0.06 * (top - bottom)
        slot = canvas.Slot(
            (left - wide, right + wide, bottom - high, top + high),
            f"Poisson's ratio {signed(state['poisson'], 2)}",
            labels=at.labels,
        )
        figure, (panel,) = canvas.panels([[slot]])
        panel.yaxis.labelpad = LABEL_PAD
        _draw_pressed(panel, at, u, amount * state["poisson"] / (1 - state["poisson"]))
        return figure

    return render, {"poisson": Slider(-0.4, 0.48, 0.3, step=0.02)}


def press(energy: Loss, grid: Grid, *, amount: float) -> Ddf:
    """The ddf of least energy that shortens a 2-D grid along its second axis and is free along the first, float64.

    The second component is given on the first and last row. The rest lives on every second voxel: central differences
    do not hold neighbors together, and would leave every second row unattached to the plates.
    """
    n, m = grid.shape
    start = torch.zeros(1, 2, n, m, dtype=torch.float64)
    start[:, 1] = -amount * (torch.arange(m, dtype=torch.float64) - (m - 1) / 2)
    free = torch.ones_like(start)
    free[:, 1, :, [0, m - 1]] = 0
    change = torch.zeros(1, 2, (n + 1) // 2, (m + 1) // 2, dtype=torch.float64, requires_grad=True)
    tight: dict[str, Any] = {"max_iter": 300, "history_size": 40, "tolerance_grad": 1e-12, "tolerance_change": 1e-15}
    solver = torch.optim.LBFGS([change], line_search_fn="strong_wolfe", **tight)

    def objective() -> Tensor:
        solver.zero_grad()
        total = energy(start + free * resize(change, grid.shape))
        total.backward()
        return total

    solver.step(objective)
    return (start + free * resize(change, grid.shape)).detach()


def _draw_pressed(panel: Panel, at: Plane, u: Tensor, wider: float) -> None:
    """The block before (gray) and after, the plates, and where theory puts its sides, dashed."""
    (x0, x1), (y0, y1) = ((line[0], line[-1]) for line in at.centers)
    panel.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="#9aa4ae", linewidth=2)
    nodes = at.nodes(u)
    canvas.lattice(panel, nodes, lines=14)
    for y in (nodes[1, 0, 0], nodes[1, -1, 0]):
        panel.axhline(y, color=canvas.INK, linewidth=6)
    for side in (-1, 1):
        x = (x0 + x1) / 2 + side * (1 + wider) * (x1 - x0) / 2
        panel.axvline(x, color=canvas.INK, linewidth=2, linestyle=canvas.TRUTH_STYLE)


# -- folds ------------------------------------------------------------------------------------------------------
def unfold(ddf: Ddf, grid: Grid, folding: Callable[[Tensor, float], Tensor], *, steps: int = 150) -> View:
    """A folded field, after steps down the folding loss alone: graph paper, and which voxels were touched.

    Args: folding: the loss of a ddf and a margin.
    """
    require_on_grid(ddf, grid, "ddf")
    at = plane_of(ddf, grid)

    @lru_cache(maxsize=32)
    def mended(margin: float) -> Tensor:
        return descend(ddf, lambda u: folding(u, margin), steps=steps)

    def render(state: State) -> Figure:
        u = mended(state["margin"])
        smallest = float(jacobian_determinant(u).min())
        titles = ("folded", f"Jacobian ≥ {signed(smallest, 2)}", "moved by the repair")
        slots = [replace(canvas.slot(at, title), letters=()) for title in titles]
        slots[2] = replace(slots[2], right=canvas.BAR_IN)
        figure, panels = canvas.panels([slots])
        panels[0].yaxis.labelpad = LABEL_PAD
        plot.draw_warped_grid(panels[0], at, ddf, lines=16)
        plot.draw_warped_grid(panels[1], at, u, lines=16)
        moved = np.linalg.norm(at.vectors(u) - at.vectors(ddf), axis=0)
        canvas.color_bar(panels[2], canvas.amounts(panels[2], at, moved, float(moved.max())), "moved [mm]")
        canvas.note(panels[2], f"{float((moved > 0.01).mean()):.0%} touched")
        return figure

    return render, {"margin": Slider(0.0, 0.6, 0.0, step=0.1)}


def descend(ddf: Ddf, loss: Loss, *, steps: int, lr: float = 0.05) -> Ddf:
    """A field after so many steps down a loss, each moving the voxel that moves most by at most `lr` voxels."""
    u = ddf.double().clone()
    for step in range(steps):
        u.requires_grad_()
        (slope,) = torch.autograd.grad(loss(u), u)
        largest = float(slope.norm(dim=1).max())
        if largest == 0:
            break
        u = (u - slope * (lr * (1 - step / steps) / largest)).detach()
    return u.detach().to(ddf.dtype)


# -- grids ------------------------------------------------------------------------------------------------------
def grid_prices(
    ddf_on: Callable[[Grid], Ddf], home: Grid, losses: Mapping[str, Callable[[Tensor, Sequence[float] | None], Tensor]]
) -> View:
    """One deformation on grids of other spacing: how far each voxel moves, and each energy as a multiple of home's.

    Args:
        ddf_on: the deformation on any 2-D grid, voxels.
        home: the grid whose energies are 1; the others cover as many millimeters.
        losses: of a ddf, and of mm per voxel or None.
    """
    frame = plane_of(ddf_on(home), home)
    farthest = float(np.linalg.norm(frame.vectors(ddf_on(home)), axis=0).max())
    at_home = {name: float(loss(ddf_on(home), home.spacing)) for name, loss in losses.items()}
    at_home_voxels = {name: float(loss(ddf_on(home), None)) for name, loss in losses.items()}

    def render(state: State) -> Figure:
        wanted = state["x_mm"], state["y_mm"]
        shape = [round(extent / step) for extent, step in zip(home.extent, wanted, strict=True)]
        grid = Grid.centered(shape, wanted, center=home.center)
        ddf = ddf_on(grid)
        known, spacing = (at_home, grid.spacing) if state["spacing"] else (at_home_voxels, None)
        ratios = [float(loss(ddf, spacing)) / known[name] for name, loss in losses.items()]
        at = plane_of(ddf, grid)
        title = f"{shape[0]} × {shape[1]} voxels of {wanted[0]:g} × {wanted[1]:g} mm"
        figure, panel, chart = _picture_and_chart(frame, title, names=True)
        length = np.linalg.norm(at.vectors(ddf), axis=0)
        canvas.amounts(panel, at, length, farthest)
        _ratio_bars(chart, list(losses), ratios)
        return figure

    return render, {
        "x_mm": Choice(STEPS_MM, 2.0),
        "y_mm": Choice(STEPS_MM, 1.0),
        "spacing": Toggle(False),
    }


def _ratio_bars(chart: Panel, names: Sequence[str], ratios: Sequence[float]) -> None:
    """Bars on a log scale from 1; within 3 percent of 1 they agree."""
    same = [abs(ratio - 1) <= 0.03 for ratio in ratios]
    colors = [canvas.MOVING_COLOR if ok else canvas.WARPED_COLOR for ok in same]
    chart.barh(names, np.array(ratios) - 1, left=1, color=colors, height=0.66)
    for y, ratio in enumerate(ratios):
        chart.text(max(ratio, 1.0) * 1.06, y, f"×{ratio:.2f}", va="center", size=canvas.TEXT_SIZE, color=canvas.INK)
    chart.axvline(1, color=canvas.INK, linewidth=2, linestyle=canvas.TRUTH_STYLE)
    chart.set(xscale="log", xlim=(0.08, 150))
    chart.set_xticks([0.1, 1, 10], ["×0.1", "×1", "×10"])
    chart.minorticks_off()
    chart.invert_yaxis()
    _dress(chart, "energy, multiple of home")


# -- the weight -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trial:
    """What one weight of a sweep gave.

    Args:
        ddf: the map found, voxels.
        tre_mm: its error against known landmarks.
        folding_fraction: share of folded voxels.
        alike: the similarity loss that is left, lower is better.
    """

    ddf: Ddf
    tre_mm: float
    folding_fraction: float
    alike: float


def weight_dial(
    trials: Mapping[float, Trial], body: Shaped[Tensor, "1 1 *s"], grid: Grid, truth: Ddf, *, before_mm: float
) -> View:
    """Turn the weight of a regularizer: the map found beside the true one (dashed), and three curves over all weights.

    Args:
        trials: by weight, above 0, at least two; the dial stops at each.
        body: where the moving image shows something, drawn as an outline.
        truth: the exact map, voxels.
        before_mm: error of no map at all, dotted.
    """
    weights = sorted(trials)
    if len(weights) < 2 or weights[0] <= 0:
        raise ValueError(f"trials must hold at least two weights above 0; got {weights}.")
    for name, image in {"body": body, "truth": truth, **{f"{w:g}": trials[w].ddf for w in weights}}.items():
        require_on_grid(image, grid, name)
    logs = np.log10(weights)
    best = int(np.argmin([trials[w].tre_mm for w in weights]))
    at = plane_of(body, grid)

    def render(state: State) -> Figure:
        chosen = int(np.abs(logs - state["log10_weight"]).argmin())
        trial = trials[weights[chosen]]
        color = canvas.FOLD_COLOR if trial.folding_fraction > 0 else canvas.INK
        figure, panel, chart = _picture_and_chart(at, f"weight {weights[chosen]:.3g}", brain=True)
        panel.set_facecolor(GROUND)
        canvas.outlines(panel, at, body)
        plot.draw_warped_grid(panel, at, trial.ddf, lines=10)
        canvas.lattice(panel, at.nodes(truth), truth=True, lines=10)
        canvas.note(panel, f"folds: {trial.folding_fraction:.1%}", color="white" if color == canvas.INK else color)
        canvas.note(panel, "dashed: truth", right=True)
        box = chart.get_position()
        chart.set_position((box.x0, box.y0 + 0.56 * box.height, box.width, 0.44 * box.height))
        below = figure.add_axes((box.x0, box.y0, box.width, 0.38 * box.height))
        _errors(chart, weights, [trials[w].tre_mm for w in weights], chosen, before_mm)
        _folds_and_alike(below, weights, [trials[w] for w in weights], chosen)
        return figure

    step = float(np.diff(logs).min())
    return render, {"log10_weight": Slider(float(logs[0]), float(logs[-1]), float(logs[best]), step=step)}


def _errors(chart: Panel, weights: Sequence[float], errors: Sequence[float], chosen: int, before_mm: float) -> None:
    chart.axhline(before_mm, color=canvas.MOVING_COLOR, linewidth=2, linestyle=":")
    chart.plot(weights, errors, "o-", color=canvas.WARPED_COLOR, linewidth=3, markersize=5)
    chart.plot([weights[chosen]], [errors[chosen]], "o", color=canvas.INK, markersize=12)
    chart.set(xscale="log", ylim=(0, 1.15 * max(before_mm, *errors)), ylabel="TRE [mm]")
    chart.set_xticklabels([])
    _dress(chart, f"off the truth by {errors[chosen]:.2f} mm")


def _folds_and_alike(chart: Panel, weights: Sequence[float], trials: Sequence[Trial], chosen: int) -> None:
    """Both against the weight, each as a share of its largest."""
    for values, color, name in (
        ([t.folding_fraction for t in trials], canvas.FOLD_COLOR, "folds"),
        ([t.alike for t in trials], canvas.FIXED_COLOR, "images still differ"),
    ):
        shares = np.array(values) / max(max(values), 1e-12)
        chart.plot(weights, shares, color=color, linewidth=3)
        chart.plot([weights[chosen]], [shares[chosen]], "o", color=color, markersize=10)
        end = -1 if name != "folds" else 0
        where: dict[str, Any] = {"ha": "right" if end else "left", "va": "bottom"}
        chart.text(weights[end], 1.06, name, size=canvas.TEXT_SIZE, color=color, weight="bold", **where)
    chart.set(xscale="log", ylim=(-0.08, 1.3), xlabel="weight of the regularizer", yticks=[])
    _dress(chart, "")


# -- shared -----------------------------------------------------------------------------------------------------
def _picture_and_chart(
    at: Plane, title: str, *, brain: bool = False, names: bool = False, bar: bool = False
) -> tuple[Figure, Panel, Panel]:
    """A slice, with orientation letters if it is a brain's, and a chart; between them room for names or a color bar."""
    slot = canvas.slot(at, title, right=CHART_IN if names or bar else CHART_IN - 0.6)
    figure, (panel,) = canvas.panels([[slot if brain else replace(slot, letters=())]])
    panel.yaxis.labelpad = LABEL_PAD
    (width, height), box = figure.get_size_inches(), panel.get_position()
    left, bottom = box.x1 * width + (1.95 if names or bar else 1.1), 0.72
    area = (left / width, bottom / height, (width - left - 0.2) / width, (box.y1 * height - bottom) / height)
    chart = figure.add_axes(area)
    _dress(chart, "")
    return figure, panel, chart


def _dress(chart: Panel, title: str) -> None:
    """Large words, no box."""
    chart.spines[["top", "right"]].set_visible(False)
    chart.tick_params(labelsize=canvas.TEXT_SIZE, color=canvas.INK, labelcolor=canvas.INK)
    chart.xaxis.label.set(size=canvas.TEXT_SIZE, color=canvas.INK)
    chart.yaxis.label.set(size=canvas.TEXT_SIZE, color=canvas.INK)
    chart.title.set(size=canvas.TITLE_SIZE, color=canvas.INK, weight="bold")
    if title:
        chart.set_title(title, fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")


__all__ = [
    "Eye",
    "Trial",
    "descend",
    "grid_prices",
    "mend",
    "press",
    "price_table",
    "price_tag",
    "repair",
    "squeeze",
    "stencil_eye",
    "unfold",
    "weight_dial",
    "zoo",
]
