"""Views of label and point losses: what overlaps, where a loss has a slope, and what labels and surfaces do not see."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes as Panel
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .. import filters, metrics, plot
from ..field import identity_ddf, warp, warp_labels
from ..grid import Axes, Grid, require_on_grid
from ..plot import canvas
from ..plot.planes import plane_of, signed
from .controls import Choice, Control, Slider
from .views import State, View

Mask = Float[Tensor, "1 c n m"]
DdfAt = Callable[[Tensor], Tensor]  # how far the map is off, a number, to a ddf; differentiable
Objective = Callable[..., Tensor]  # a ddf, and a value for each knob by name, to a scalar
FLAT = 1e-5  # of the steepest slope: less is none
RISE = 1e-6  # of the whole range: less is flat, and may be rounding
CURVE_COLORS = ("#222222", "#0080ff", "#ff8000", "#00795a", "#ff5c9a", "#a98bff")
PLOT_IN = 5.9  # inches right of a picture, for curves


# -- slopes -----------------------------------------------------------------------------------------------------
def slopes(objective: Callable[[Tensor], Tensor], ddf_at: DdfAt, amounts: Sequence[float]) -> list[tuple[float, float]]:
    """The objective and its derivative at each amount, by autograd; 0 where no gradient reaches the amount."""
    return [_value_and_slope(objective, ddf_at, amount) for amount in amounts]


def _value_and_slope(objective: Callable[[Tensor], Tensor], ddf_at: DdfAt, amount: float) -> tuple[float, float]:
    moved = torch.tensor(float(amount), requires_grad=True)
    value = objective(ddf_at(moved))
    slope = torch.autograd.grad(value, moved, allow_unused=True)[0] if value.requires_grad else None
    return float(value.detach()), 0.0 if slope is None else float(slope)


def reach(amounts: Sequence[float], values: Sequence[float], *, home: float = 0.0) -> float:
    """How far from home a loss rises without a break, on every side that was walked: up to the first flat or fall.

    Args: amounts: rising, with home among them or at an end.   values: the loss at each.
    """
    if len(amounts) != len(values) or home not in amounts:
        raise ValueError(f"amounts must hold home, {home:g}, and one value each; got {len(amounts)} and {len(values)}.")
    start, least = list(amounts).index(home), RISE * (max(values) - min(values))
    reached = []
    for side in (range(start + 1, len(amounts)), range(start - 1, -1, -1)):
        last = start
        for k in side:
            if not values[k] - values[last] > least:
                break
            last = k
        if len(side):
            reached.append(abs(amounts[last] - home))
    return min(reached, default=0.0)


# -- overlap ----------------------------------------------------------------------------------------------------
def overlap_dial(
    fixed: Mask,
    moving: Mask,
    grid: Grid,
    ddf_at: DdfAt,
    objective: Objective,
    amounts: Sequence[float],
    *,
    start: float,
    home: float = 0.0,
    name: str = "off_mm",
    label: str = "off by [mm]",
    read: Callable[..., Tensor] | None = None,
    seen: Callable[..., Tensor] | None = None,
    knobs: Mapping[str, Control] | None = None,
) -> View:
    """Move a structure along one way, and see what overlaps, the loss, and whether its slope points home.

    Only fixed is its color (missed), only warped its own (too much), both are gray. A gray curve is the objective
    with all knobs where they start.

    Args:
        ddf_at: the map at each amount; the exact one at `home`.
        objective: (ddf, **knobs) to a scalar.
        amounts: evenly spaced; where the curves are drawn and between which ends the slider runs.
        name: of the slider; one in "_mm" is in mm.   label: below the curves.
        read: (ddf, **knobs) to the warped mask, for the picture; default the moving mask, read linearly.
        seen: (mask, **knobs) to the mask that the objective compares, for the picture; default the mask itself.
        knobs: what else may be moved.
    """
    knobs = dict(knobs or {})
    for role, mask in (("fixed", fixed), ("moving", moving)):
        require_on_grid(mask, grid, role)
    if grid.dim != 2:
        raise ValueError(f"overlaps are drawn of 2-D masks; got a {grid.dim}-D grid. Take a slice first.")
    if home not in amounts:
        raise ValueError(f"amounts must hold home, {home:g}, where the map is exact.")
    defaults = {key: control.value for key, control in knobs.items()}
    at, unit = plane_of(fixed, grid), "mm" if name.endswith("_mm") else ""

    @lru_cache(maxsize=64)
    def curve(*chosen: Any) -> list[tuple[float, float]]:
        setting = dict(zip(knobs, chosen, strict=True))
        return slopes(lambda ddf: objective(ddf, **setting), ddf_at, amounts)

    def render(state: State) -> Figure:
        setting = {key: state[key] for key in knobs}
        here = _value_and_slope(lambda ddf: objective(ddf, **setting), ddf_at, state[name])
        figure, (panel,) = canvas.panels([[canvas.slot(at, "overlap", right=PLOT_IN)]])
        ddf = ddf_at(torch.tensor(float(state[name])))
        masks = [fixed, warp(moving, ddf, padding="zeros") if read is None else read(ddf, **setting)]
        if seen is not None:
            masks = [seen(mask, **setting) for mask in masks]
        canvas.blended(panel, at, *(at.cut(mask.amax(1, keepdim=True)) for mask in masks))
        canvas.name_both(panel, "fixed", "warped")
        top, bottom = _stacked(figure, panel)
        reference = curve(*defaults.values()) if setting != defaults else None
        found = curve(*setting.values())
        _draw_curves((top, bottom), amounts, found, reference)
        steepest = max(abs(slope) for _, slope in found)
        _mark((top, bottom), state[name], here, home, steepest, label)
        return figure

    slider = Slider(amounts[0], amounts[-1], start, step=amounts[1] - amounts[0], unit=unit)
    return render, {name: slider, **knobs}


def _stacked(figure: Figure, panel: Panel) -> tuple[Panel, Panel]:
    """Two axes, one above the other, in the room right of a picture."""
    box, (width, height) = panel.get_position(), figure.get_size_inches()
    left, wide, gap = box.x1 + 1.2 / width, 4.5 / width, 0.5 / height
    tall = (box.height - gap) / 2
    top = figure.add_axes((left, box.y0 + tall + gap, wide, tall))
    return top, figure.add_axes((left, box.y0, wide, tall), sharex=top)


def _draw_curves(
    panels: tuple[Panel, Panel],
    amounts: Sequence[float],
    found: Sequence[tuple[float, float]],
    reference: Sequence[tuple[float, float]] | None,
) -> None:
    for k, panel in enumerate(panels):
        if reference is not None:
            panel.plot(amounts, [pair[k] for pair in reference], color="#b8bec6", linewidth=3)
        panel.plot(amounts, [pair[k] for pair in found], color=canvas.WARPED_COLOR, linewidth=3)
        panel.tick_params(labelsize=canvas.TEXT_SIZE)
        panel.locator_params(axis="y", nbins=4)
        panel.margins(x=0.02, y=0.12)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].tick_params(labelbottom=False)
    panels[1].axhline(0, color="#888888", linewidth=0.8, zorder=0)
    panels[1].text(
        1.0,
        0.05,
        "gray: knobs as they began",
        transform=panels[1].transAxes,
        ha="right",
        color="#7b828b",
        size=canvas.TEXT_SIZE,
    ).set_visible(reference is not None)


def _mark(
    panels: tuple[Panel, Panel], amount: float, here: tuple[float, float], home: float, steepest: float, label: str
) -> None:
    """A dot where we are, a dashed line at home, and in words what the slope says; loud where it does not lead home."""
    toward = here[1] * (amount - home)
    words = "home" if toward > 0 else "away from home"
    if abs(here[1]) <= FLAT * steepest:
        words = "no slope"
    if amount == home:
        words = "we are home"
    color = canvas.FOLD_COLOR if words in ("no slope", "away from home") else canvas.INK
    titles = f"loss {signed(here[0], 3)}", words if words[0] in "nw" else f"downhill: {words}"
    for panel, y, title, ink, name in zip(panels, here, titles, (canvas.INK, color), ("loss", "slope"), strict=True):
        panel.axvline(home, color=canvas.INK, linewidth=1.8, linestyle=canvas.TRUTH_STYLE, zorder=1)
        panel.plot([amount], [y], "o", markersize=11, color=color, markeredgecolor="black", zorder=4)
        panel.set_title(title, fontsize=canvas.TITLE_SIZE, color=ink, fontweight="bold")
        panel.set_ylabel(name, fontsize=canvas.TEXT_SIZE, color=canvas.INK)
    panels[1].set_xlabel(label, fontsize=canvas.TEXT_SIZE, color=canvas.INK, labelpad=2)


def blurred_overlaps(
    fixed: Mask,
    moving: Mask,
    grid: Grid,
    ddf_at: DdfAt,
    loss_at: Callable[[float], Callable[[Tensor, Tensor], Tensor]],
    sigmas_mm: Sequence[float],
    *,
    farthest_mm: float,
) -> View:
    """What a loss of several scales compares: both masks, blurred by each sigma, and what the loss says of them.

    Args:
        loss_at: the loss of (warped, fixed) at one sigma in mm.
        farthest_mm: where the slider ends, and starts.
    """
    require_on_grid(fixed, grid, "fixed")
    require_on_grid(moving, grid, "moving")
    at = plane_of(fixed, grid)

    def render(state: State) -> Figure:
        warped = warp(moving, ddf_at(torch.tensor(float(state["off_mm"]))), padding="zeros")
        slots = []
        for sigma in sigmas_mm:
            value = float(loss_at(sigma)(warped, fixed))
            slots.append(canvas.slot(at, f"σ {sigma:g} mm: {value:.2f}", color=canvas.INK))
        figure, axes = canvas.panels([slots])
        for panel, sigma in zip(axes, sigmas_mm, strict=True):
            blur = [sigma / step for step in grid.spacing]
            pictures = [at.cut(filters.gaussian(mask, sigma=blur) if sigma > 0 else mask) for mask in (fixed, warped)]
            top = max(float(picture.max()) for picture in pictures)
            canvas.blended(panel, at, *(picture / top for picture in pictures))
        canvas.name_both(axes[0], "fixed", "warped")
        return figure

    return render, {"off_mm": Slider(0.0, farthest_mm, farthest_mm, step=2.0, unit="mm")}


# -- size -------------------------------------------------------------------------------------------------------
def disc_mm(grid: Grid, radius_mm: float, center_mm: Sequence[float] = (0.0, 0.0)) -> Float[Tensor, "1 1 n m"]:
    """A disc whose edge is one voxel soft, so that its area changes smoothly."""
    away = (grid.coordinates(Axes.WORLD) - torch.tensor(center_mm)).norm(dim=-1)
    return (0.5 + (radius_mm - away) / max(grid.spacing)).clamp(0, 1)[None, None]


def disc_dice(radius_mm: float, shift_mm: float) -> float:
    """The exact Dice of two equal discs: their lens over the area of one."""
    half = min(shift_mm / (2 * radius_mm), 1.0)
    return 2 / math.pi * (math.acos(half) - half * math.sqrt(1 - half * half))


def price_of_a_shift(losses: Mapping[str, Callable[[Tensor, Tensor], Tensor]], radii_mm: Sequence[float]) -> View:
    """What one and the same shift costs discs of many sizes; dashed the exact Dice of two discs."""

    @lru_cache(maxsize=32)
    def curves(shift: float) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in losses}
        for radius in radii_mm:
            step = radius / 20  # hard masks, fine enough for a round edge
            half = math.ceil((radius + shift / 2) / step) + 2
            grid = Grid.centered((2 * half + 1, 2 * half + 1), step)
            fixed, warped = (disc_mm(grid, radius, (x, 0.0)).round() for x in (-shift / 2, shift / 2))
            for name, loss in losses.items():
                found[name].append(float(loss(warped, fixed)))
        return found

    def render(state: State) -> Figure:
        shift = state["shift_mm"]
        figure = Figure(figsize=(canvas.WIDTH_IN, 4.0), dpi=canvas.DPI)
        panel = figure.subplots()
        figure.subplots_adjust(left=0.08, right=0.8, bottom=0.17, top=0.89)
        for (name, values), color in zip(curves(shift).items(), CURVE_COLORS[1:], strict=False):
            panel.plot(radii_mm, values, "o-", color=color, linewidth=3, markersize=7, label=name)
        fine = np.geomspace(radii_mm[0], radii_mm[-1], 100)
        exact = [1 - disc_dice(float(r), shift) for r in fine]
        panel.plot(fine, exact, color=canvas.INK, linewidth=2, linestyle=canvas.TRUTH_STYLE, label="Dice, exact")
        panel.set(xscale="log", ylim=(-0.03, 1.05))
        panel.set_xticks(list(radii_mm), [f"{r:g}" for r in radii_mm])
        panel.minorticks_off()
        _name(panel, f"every structure is off by {shift:g} mm", "radius of the structure [mm]", "loss")
        panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=canvas.TEXT_SIZE, frameon=False)
        return figure

    return render, {"shift_mm": Slider(0.0, 8.0, 2.0, step=0.5, unit="mm")}


def _name(panel: Panel, title: str, across: str, up: str) -> None:
    panel.set_title(title, fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")
    panel.set_xlabel(across, fontsize=canvas.TEXT_SIZE, color=canvas.INK)
    panel.set_ylabel(up, fontsize=canvas.TEXT_SIZE, color=canvas.INK)
    panel.tick_params(labelsize=canvas.TEXT_SIZE)
    panel.spines[["top", "right"]].set_visible(False)


# -- surfaces without names ---------------------------------------------------------------------------------------
def closest_trap(
    outlines_mm: Mapping[str, Float[Tensor, "1 k 2"]],
    losses: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    *,
    step_deg: float = 5.0,
) -> View:
    """Turn an outline against itself: what a loss of named pairs sees, and what one of closest points does not.

    Lines lead from each turned point to its closest one, and from one of them, dashed, to its true partner.

    Args: losses: of (turned points, points), each in mm; drawn against the angle.
    """
    if not outlines_mm:
        raise ValueError("outlines_mm must name at least one outline; got none.")
    angles = np.arange(-180.0, 180.0 + step_deg / 2, step_deg).tolist()

    @lru_cache(maxsize=16)
    def curves(name: str) -> dict[str, list[float]]:
        turned = [turn_points(outlines_mm[name], angle) for angle in angles]
        return {key: [float(loss(points, outlines_mm[name])) for points in turned] for key, loss in losses.items()}

    def render(state: State) -> Figure:
        angle, points = state["off_deg"], outlines_mm[state["outline"]]
        figure = Figure(figsize=(canvas.WIDTH_IN, 4.2), dpi=canvas.DPI)
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1.35)})
        figure.subplots_adjust(left=0.02, right=0.985, bottom=0.16, top=0.9, wspace=0.14)
        limit = max(float(outline.norm(dim=-1).max()) for outline in outlines_mm.values()) * 1.12
        _draw_closest(left, turn_points(points, angle)[0], points[0], limit)
        for (name, values), color in zip(curves(state["outline"]).items(), CURVE_COLORS[1:], strict=False):
            now = float(losses[name](turn_points(points, angle), points))
            right.plot(angles, values, color=color, linewidth=3, label=f"{name}: {now:.1f} mm")
            right.plot([angle], [now], "o", markersize=11, color=color, markeredgecolor="black", zorder=4)
        right.axvline(0, color=canvas.INK, linewidth=1.8, linestyle=canvas.TRUTH_STYLE, zorder=1)
        right.set_xticks((-180, -90, 0, 90, 180))
        _name(right, "loss [mm]", "turned by [deg]", "")
        right.legend(loc="upper center", fontsize=canvas.TEXT_SIZE, framealpha=0.9)
        right.set_ylim(top=1.45 * max(max(values) for values in curves(state["outline"]).values()))
        return figure

    controls: dict[str, Control] = {
        "off_deg": Slider(-180.0, 180.0, 30.0, step=step_deg, unit="deg"),
        "outline": Choice(tuple(outlines_mm), next(iter(outlines_mm))),
    }
    return render, controls


def turn_points(points: Float[Tensor, "1 k 2"], angle_deg: float) -> Float[Tensor, "1 k 2"]:
    """Points turned about the origin."""
    a = math.radians(angle_deg)
    matrix = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=points.dtype)
    return points @ matrix.T


def _draw_closest(panel: Panel, turned: Tensor, points: Tensor, limit: float) -> None:
    closed = torch.cat([points, points[:1]])
    panel.plot(*closed.T.numpy(), color=canvas.MOVING_COLOR, linewidth=3)
    closest = points[torch.cdist(turned, points).argmin(1)]
    panel.add_collection(
        LineCollection(torch.stack([turned, closest], dim=1).tolist(), colors=canvas.INK, linewidths=1)
    )
    panel.plot(*turned.T.numpy(), "o", markersize=5, color=canvas.WARPED_COLOR, zorder=3)
    pair = torch.stack([turned[0], points[0]]).T.numpy()
    panel.plot(*pair, color=canvas.FIXED_COLOR, linewidth=3, linestyle=canvas.TRUTH_STYLE, zorder=4)
    panel.plot(*pair, "o", markersize=10, color=canvas.FIXED_COLOR, markeredgecolor="black", zorder=4)
    panel.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    panel.set_title("who is closest to whom", fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")


# -- what lies between --------------------------------------------------------------------------------------------
def swirl_ddf(grid: Grid, *, center_mm: Sequence[float], radius_mm: float, turn_deg: float) -> Float[Tensor, "1 2 n m"]:
    """A turn about a center that fades to nothing at a radius, (1 - (r/R)^2)^2; beyond it nothing moves."""
    offset = grid.coordinates(Axes.WORLD, dtype=torch.float64) - torch.tensor(center_mm, dtype=torch.float64)
    share = (1 - offset.square().sum(-1) / radius_mm**2).clamp(min=0).square()
    angle = math.radians(turn_deg) * share
    cos, sin = angle.cos(), angle.sin()
    x, y = offset.unbind(-1)
    moves = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1) - offset
    return grid.vectors(moves, to=Axes.VOXEL, from_=Axes.WORLD).movedim(-1, 0).unsqueeze(0).float()


def error_mm(ddf: Float[Tensor, "1 d *s"], truth: Float[Tensor, "1 d *s"], grid: Grid) -> Float[Tensor, "1 1 *s"]:
    """How far each voxel is read from where it should be, mm."""
    off = grid.vectors((ddf - truth).movedim(1, -1), to=Axes.WORLD, from_=Axes.VOXEL)
    return off.norm(dim=-1).unsqueeze(1)


def hidden_swirl(
    image: Float[Tensor, "1 1 n m"],
    labels: Shaped[Tensor, "1 1 n m"],
    grid: Grid,
    *,
    center_mm: Sequence[float],
    radius_mm: float,
) -> View:
    """A swirl inside a structure, where nothing should move: the labels stay perfect, the millimeters do not.

    Args: labels: whole numbers on the image's grid; the circle should lie within one of them.
    """
    require_on_grid(image, grid, "image")
    require_on_grid(labels, grid, "labels")
    at, shown, nothing = plane_of(image, grid), plot.window(image), identity_ddf(grid)
    widest = swirl_ddf(grid, center_mm=center_mm, radius_mm=radius_mm, turn_deg=180.0)
    largest = float(error_mm(widest, nothing, grid).max())

    def render(state: State) -> Figure:
        ddf = swirl_ddf(grid, center_mm=center_mm, radius_mm=radius_mm, turn_deg=state["turn_deg"])
        warped = warp_labels(labels, ddf, method="nearest")
        scores, error = metrics.dice(warped, labels), error_mm(ddf, nothing, grid)
        dice = sum(scores.values()) / len(scores)
        slots = [
            canvas.slot(at, f"Dice {dice:.3f}", color=canvas.WARPED_COLOR),
            canvas.slot(at, "warped grid"),
            canvas.slot(at, f"error up to {float(error.max()):.0f} mm", right=canvas.BAR_IN),
        ]
        figure, axes = canvas.panels([slots])
        canvas.gray(axes[0], at, at.cut(warp(image, ddf)), shown)
        canvas.outlines(axes[0], at, warped)
        plot.draw_warped_grid(axes[1], at, ddf, image=image)
        canvas.color_bar(axes[2], canvas.amounts(axes[2], at, at.cut(error), largest), "error [mm]")
        return figure

    return render, {"turn_deg": Slider(-180.0, 180.0, 90.0, step=10.0, unit="deg")}


def across_and_along(
    ddf: Float[Tensor, "1 2 n m"],
    truth: Float[Tensor, "1 2 n m"],
    distance_mm: Float[Tensor, "1 1 n m"],
    grid: Grid,
) -> tuple[float, float]:
    """The mean error at an outline in mm, split: across the outline, and along it.

    Args: distance_mm: signed distance from the outline, which runs where it is 0.
    """
    smooth = filters.gaussian(distance_mm, sigma=1.5)
    slope = [filters.finite_difference(smooth, k + 2, spacing=step) for k, step in enumerate(grid.spacing)]
    normal = torch.cat(slope, dim=1)
    normal = normal / normal.norm(dim=1, keepdim=True).clamp(min=1e-6)
    off = (ddf - truth) * torch.tensor(grid.spacing).to(ddf).reshape(1, 2, 1, 1)  # mm along the tensor's axes
    across = (off * normal).sum(1, keepdim=True)
    along = off[:, :1] * normal[:, 1:] - off[:, 1:] * normal[:, :1]
    outline = distance_mm == 0
    return float(across[outline].abs().mean()), float(along[outline].abs().mean())


def paired_bars(values: Mapping[str, tuple[float, float]], names: tuple[str, str], label: str) -> Figure:
    """Two horizontal bars for each named pair of numbers."""
    if not values:
        raise ValueError("paired_bars needs at least one pair of numbers; got none.")
    figure = Figure(figsize=(canvas.WIDTH_IN, 1.3 + 0.72 * len(values)), dpi=canvas.DPI, layout="constrained")
    panel = figure.subplots()
    rows = np.arange(len(values))
    for k, (name, color) in enumerate(zip(names, (canvas.FIXED_COLOR, canvas.WARPED_COLOR), strict=True)):
        numbers = [pair[k] for pair in values.values()]
        drawn = panel.barh(rows + 0.38 * (k - 0.5), numbers, height=0.36, color=color, label=name)
        panel.bar_label(drawn, [signed(n, 1) for n in numbers], padding=4, fontsize=canvas.TEXT_SIZE)
    panel.set_yticks(rows, list(values))
    panel.invert_yaxis()
    _name(panel, "", label, "")
    panel.legend(loc="lower right", fontsize=canvas.TEXT_SIZE, frameon=False)
    return figure


def cost_table(costs: Mapping[str, Mapping[str, float]]) -> Figure:
    """What mistakes cost, a row for each loss, in units of the last column; loud where free, or dearer than two."""
    if not costs or not all(costs.values()):
        raise ValueError("cost_table needs at least one row and one column of numbers.")
    columns = list(next(iter(costs.values())))
    figure = Figure(figsize=(canvas.WIDTH_IN, 0.7 + 0.5 * len(costs)), dpi=canvas.DPI)
    panel = figure.subplots()
    figure.subplots_adjust(left=0.21, right=0.99, bottom=0.02, top=1 - 0.55 / (0.7 + 0.5 * len(costs)))
    for row, line in enumerate(costs.values()):
        for column, name in enumerate(columns):
            value = line[name]
            loud = not 0.05 <= value <= 2.0
            ground, ink = (canvas.FOLD_COLOR, "white") if loud else ("#e7eef6", canvas.INK)
            panel.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ground, edgecolor="white", linewidth=3)
            )
            words = signed(value, 2 if value < 10 else 0)
            panel.text(column, row, words, ha="center", va="center", size=canvas.TITLE_SIZE, color=ink, weight="bold")
    panel.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(costs) - 0.5, -0.5))
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(costs)), list(costs))
    panel.tick_params(labelsize=canvas.TEXT_SIZE + 1, length=0, labeltop=True, labelbottom=False)
    panel.spines[:].set_visible(False)
    return figure


def bars_mm(values: Mapping[str, float], label: str) -> Figure:
    """One horizontal bar for each named number, with the number beside it."""
    if not values:
        raise ValueError("bars_mm needs at least one number; got none.")
    figure = Figure(figsize=(canvas.WIDTH_IN, 0.9 + 0.48 * len(values)), dpi=canvas.DPI, layout="constrained")
    panel = figure.subplots()
    drawn = panel.barh(list(values), list(values.values()), color=canvas.WARPED_COLOR)
    words = [signed(value, 2) for value in values.values()]
    panel.bar_label(drawn, words, padding=4, fontsize=canvas.TEXT_SIZE)
    panel.invert_yaxis()
    _name(panel, "", label, "")
    return figure
