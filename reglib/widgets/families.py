"""Views of families of maps: their dials, their control points, their fits to one truth, their sums and inverses.

All of them draw 2-D grids. Graph paper shows each point p where the map takes it, p + ddf[p].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from torch import Tensor

from .. import plot
from ..field import jacobian_determinant, warp
from ..grid import Axes, Grid
from ..metrics import tre
from ..plot import canvas
from ..plot.planes import Plane, signed
from ..transforms import (
    Affine,
    FreeFormDeformation,
    KernelDisplacement,
    Linear,
    MultiLevel,
    Rigid,
    Sequential,
    Similarity,
    Transform,
    Translation,
)
from .controls import Choice, Click, Control, Slider, Toggle
from .paper import CHART_IN, chart_beside, draw_paper, length_mm, plane, ring
from .views import Image, State, View

Ddf = Float[Tensor, "1 2 *s"]
Points = Float[Tensor, "1 k 2"]
MATRICES: dict[str, type[Linear]] = {
    "translation": Translation,
    "rigid": Rigid,
    "similarity": Similarity,
    "affine": Affine,
}
KERNELS = ("B-spline", "C2", "C4", "C6")
KINDS = {"matrix": "o", "B-splines": "s", "kernels": "P", "voxels": "D", "flow": "^"}  # of families_on_truth: marks
KIND_COLORS = {"matrix": canvas.FIXED_COLOR, "voxels": canvas.INK, "flow": canvas.MOVING_COLOR}
YES, NO = "#d7efe6", "#f6dfd5"  # of family_table


# -- parts ------------------------------------------------------------------------------------------------------
def _numbers(transform: Transform) -> int:
    """How many numbers describe a map, those given by `with_values` among them."""
    parts = [part for part in transform.modules() if isinstance(part, Transform)]
    given = [getattr(part, name) for part in parts for name in part.given]
    return sum(each.numel() for each in (*transform.parameters(), *given))


def _counted(count: int) -> str:
    return f"{count:,} numbers".replace(",", "\u2009")


# -- matrices ---------------------------------------------------------------------------------------------------
def family_dials(image: Image, grid: Grid) -> View:
    """One slider for each number of the linear families; the sliders that a family does not have do nothing.

    Left the warped image, right the paper over the moving image, where each of its points is read.
    """
    at, shown = plane(grid, image=image), plot.window(image)
    reach = float(round(min(grid.extent) / 4))
    move, factor = partial(Slider, -reach, reach, 0.0, step=0.5, unit="mm"), partial(Slider, 0.6, 1.6, 1.0, step=0.02)
    controls: dict[str, Control] = {
        "family": Choice(tuple(MATRICES), "affine"),
        "x_mm": move(),
        "y_mm": move(),
        "turn_deg": Slider(-90.0, 90.0, 0.0, step=1.0, unit="deg"),
        "scale": factor(),
        "second_scale": factor(),
        "shear": Slider(-0.8, 0.8, 0.0, step=0.02),
    }

    def render(state: State) -> Figure:
        family = state["family"]
        scales = [state["scale"]] if family == "similarity" else [state["scale"], state["second_scale"]]
        values = {
            "translation_mm": [state["x_mm"], state["y_mm"]],
            "angle_rad": [math.radians(state["turn_deg"])],
            "log_scale": [math.log(scale) for scale in scales],
            "shear": [state["shear"]],
        }
        model = _with_numbers(MATRICES[family](grid), values)
        ddf = model.ddf().detach()
        paper = canvas.slot(at, f"{family}: {_numbers(MATRICES[family](grid))} numbers")
        figure, (left, right) = canvas.panels([[canvas.slot(at, "warped", color=canvas.WARPED_COLOR), paper]])
        canvas.gray(left, at, at.cut(warp(image, ddf, padding="zeros")), shown)
        draw_paper(right, at, ddf, image=image)
        return figure

    return render, controls


def _with_numbers(model: Linear, values: Mapping[str, Sequence[float]]) -> Transform:
    """The model with those of the values that it has."""
    given = {name: torch.tensor(values[name], dtype=torch.float64) for name in model.sizes()}
    return model.with_values(**given)


def map_gallery(image: Image, maps: Mapping[str, Transform], grid: Grid, *, columns: int = 5) -> Figure:
    """What each of several maps makes of one image, titled with its name and how many numbers it has."""
    at, shown = plane(grid, image=image), plot.window(image)
    slots = [canvas.Slot(at.extent, f"{name}: {_numbers(each)}") for name, each in maps.items()]
    figure, panels = canvas.panels([slots[k : k + columns] for k in range(0, len(slots), columns)])
    for panel, each in zip(panels, maps.values(), strict=True):
        canvas.gray(panel, at, at.cut(warp(image, each.ddf(grid).detach().to(image), padding="zeros")), shown)
    return figure


def two_orders(image: Image, grid: Grid) -> View:
    """A stretch along x and a turn, in both orders, as paper over the image; titled with the angle of its corners."""
    at = plane(grid, image=image)

    def render(state: State) -> Figure:
        turn = _with_numbers(Rigid(grid), {"translation_mm": [0, 0], "angle_rad": [math.radians(state["turn_deg"])]})
        scales = [state["stretch"], state["stretch"] if state["both_axes"] else 1.0]
        none = {"translation_mm": [0, 0], "angle_rad": [0], "shear": [0]}
        stretch = _with_numbers(Affine(grid), {**none, "log_scale": [math.log(s) for s in scales]})
        maps = {"stretch, then turn": (turn, stretch), "turn, then stretch": (stretch, turn)}
        ddfs = {name: Sequential(*parts).ddf().detach() for name, parts in maps.items()}
        slots = [canvas.slot(at, f"{name}: {_corner_deg(ddf, grid):.0f}°") for name, ddf in ddfs.items()]
        figure, panels = canvas.panels([slots])
        for panel, ddf in zip(panels, ddfs.values(), strict=True):
            draw_paper(panel, at, ddf, image=image)
        first, second = ddfs.values()
        apart = float(length_mm(first - second, grid).mean())
        canvas.note(panels[1], f"{apart:.1f} mm apart", right=True)
        return figure

    return render, {
        "turn_deg": Slider(0.0, 90.0, 35.0, step=1.0, unit="deg"),
        "stretch": Slider(0.6, 1.6, 1.5, step=0.02),
        "both_axes": Toggle(),
    }


def _corner_deg(ddf: Tensor, grid: Grid) -> float:
    """The angle between the paper's two sets of lines, in the middle of the grid, degrees."""
    voxels = grid.coordinates() + ddf[0].movedim(0, -1)
    world = grid.points(voxels.double(), to=Axes.WORLD, from_=Axes.VOXEL)
    i, j = (n // 2 for n in grid.shape)
    across, up = world[i + 1, j] - world[i, j], world[i, j + 1] - world[i, j]
    return math.degrees(math.acos(float((across @ up / across.norm() / up.norm()).clamp(-1, 1))))


def turn_about(image: Image, grid: Grid) -> View:
    """Turn about a clicked center: the paper over the image, how far its middle goes, and the warped image."""
    at, shown = plane(grid, image=image), plot.window(image)
    middle = [(n - 1) / 2 for n in grid.shape]
    x, y = at.frame.mm(middle)
    across, up = (math.floor(line[-1] - start) for line, start in zip(at.centers, (x, y), strict=True))  # mm

    def render(state: State) -> Figure:
        world = at.frame.world(state["center"])
        about = Rigid(grid, center_mm=world)
        model = _with_numbers(about, {"translation_mm": [0, 0], "angle_rad": [math.radians(state["turn_deg"])]})
        ddf = model.ddf().detach()
        reached = model.points(torch.tensor([[grid.center]], dtype=torch.float64)).detach()[0, 0]
        voxel = grid.points(reached, to=Axes.VOXEL, from_=Axes.WORLD).tolist()
        moved = np.subtract(at.frame.mm(voxel), at.frame.mm(middle))
        slots = [canvas.slot(at, f"the middle moves {np.hypot(*moved):.1f} mm")]
        slots.append(canvas.slot(at, "warped", color=canvas.WARPED_COLOR))
        figure, (left, right) = canvas.panels([slots])
        draw_paper(left, at, ddf, image=image)
        canvas.gray(right, at, at.cut(warp(image, ddf, padding="zeros")), shown)
        if np.hypot(*moved) > 0.5:
            canvas.arrow(left, at.frame.mm(middle), moved.tolist())
        canvas.ring(left, state["center"])
        return figure

    ends = (x - across, y - up), (x + across, y + up)  # whole mm away, so that the middle is a step of the sliders
    controls: dict[str, Control] = {"center": Click(*ends, (x, y))}
    return render, {"turn_deg": Slider(-90.0, 90.0, 30.0, step=1.0, unit="deg"), **controls}


def bounded_turn(image: Image, grid: Grid) -> View:
    """A rotation whose angle has a limit: the parameter may be anything, what the matrix uses stays within."""
    at, shown = plane(grid, image=image), plot.window(image)
    asked = np.linspace(-180, 180, 181)

    def render(state: State) -> Figure:
        limit, parameter = state["limit_deg"], state["parameter_deg"]
        free = Rigid(grid, limits={"angle_rad": math.radians(limit)})
        model = free.with_values(angle_rad=torch.tensor([math.radians(parameter)], dtype=torch.float64))
        assert isinstance(model, Rigid)
        used = math.degrees(float(model.limited("angle_rad")))
        title = f"asked {signed(parameter)}°, used {signed(used)}°"
        figure, (panel,) = canvas.panels([[canvas.slot(at, "warped", color=canvas.WARPED_COLOR, right=CHART_IN)]])
        canvas.gray(panel, at, at.cut(warp(image, model.ddf().detach(), padding="zeros")), shown)
        chart = chart_beside(figure, panel, title, "parameter [deg]", "angle used [deg]")
        chart.axhspan(-limit, limit, color="#dfe6ee", zorder=0)
        chart.plot(asked, asked, color="#888888", linewidth=1.5, linestyle=":")
        chart.plot(asked, limit * np.tanh(asked / limit), color=canvas.WARPED_COLOR, linewidth=3)
        chart.set(xlim=(-180, 180), ylim=(-90, 90), xticks=(-90, 0, 90), yticks=(-90, -45, 0, 45, 90))
        ring(chart, parameter, used)
        return figure

    angle = partial(Slider, step=1.0, unit="deg")
    return render, {"parameter_deg": angle(-180.0, 180.0, 60.0), "limit_deg": angle(10.0, 80.0, 40.0)}


# -- control points ---------------------------------------------------------------------------------------------
def one_control_point(grid: Grid, *, push_mm: float = 8.0) -> View:
    """What one control point moves, by `push_mm` at its own place: the paper, and the push along a line through it.

    The reach of a B-spline is two spacings, that of a kernel its radius in spacings.
    """
    at = plane(grid)
    longest = max(grid.extent)

    def render(state: State) -> Figure:
        spacing = state["spacing_mm"]
        ddf, place = _one_push(grid, state["kernel"], spacing, state["radius"], push_mm)
        reach = spacing * (2.0 if state["kernel"] == "B-spline" else state["radius"])
        figure, (panel,) = canvas.panels([[canvas.slot(at, f"{state['kernel']}, {spacing:g} mm", right=CHART_IN)]])
        draw_paper(panel, at, ddf)
        _ball(panel, at.frame.mm(place), reach, square=state["kernel"] == "B-spline")
        chart = chart_beside(figure, panel, f"reaches {reach:.0f} mm", "from the point [mm]", "push [mm]")
        row = at.vectors(ddf)[0, round(place[at.axes[1]])]
        away = at.centers[0] - at.frame.mm(place)[0]
        chart.axvspan(-reach, reach, color="#dfe6ee", zorder=0)
        chart.plot(away, row, color=canvas.WARPED_COLOR, linewidth=3)
        chart.set(xlim=(-longest / 2, longest / 2), ylim=(-0.05 * push_mm, 1.1 * push_mm))
        return figure

    return render, {
        "kernel": Choice(KERNELS, "C4"),
        "radius": Slider(1.0, 4.0, 2.0, step=0.25),
        "spacing_mm": Slider(6.0, 20.0, 12.0, step=1.0, unit="mm"),
    }


def _one_push(grid: Grid, kernel: str, spacing: float, radius: float, push_mm: float) -> tuple[Tensor, list[float]]:
    """The ddf of the control point nearest the middle, and where it is, voxels."""
    model: FreeFormDeformation | KernelDisplacement
    if kernel == "B-spline":
        model = FreeFormDeformation(grid, control_spacing_mm=spacing)
    else:
        model = KernelDisplacement(grid, control_spacing_mm=spacing, smoothness=kernel, radius=radius)  # type: ignore[arg-type]
    coefficients = torch.zeros_like(model.coefficients)
    control = coefficients.shape[2:]
    coefficients[(0, 0, *(n // 2 for n in control))] = 1.0
    ddf = model.with_values(coefficients=coefficients).ddf()
    steps = [(n - 1) / span for n, span in zip(grid.shape, model.spans, strict=True)]
    beyond = [(n - span - 1) // 2 for n, span in zip(control, model.spans, strict=True)]
    place = [(n // 2 - b) * step for n, b, step in zip(control, beyond, steps, strict=True)]
    return ddf * (push_mm / grid.spacing[0] / float(ddf.max())), place


def _ball(panel: Panel, center: Sequence[float], reach: float, *, square: bool) -> None:
    """The edge of what a control point reaches."""
    angle = np.linspace(0, 2 * np.pi, 181)
    x, y = np.cos(angle), np.sin(angle)
    if square:
        x, y = (v / np.maximum(abs(np.cos(angle)), abs(np.sin(angle))) for v in (x, y))
    panel.plot(center[0] + reach * x, center[1] + reach * y, color=canvas.MARK_COLOR, linewidth=2.0, zorder=4)
    panel.plot(center[:1], center[1:2], "o", color=canvas.MARK_COLOR, markeredgecolor="black", markersize=9, zorder=5)


def control_spacing(truth: Ddf, grid: Grid, *, low_mm: float = 5.0, high_mm: float = 40.0) -> View:
    """A free-form deformation fitted to a known field at each spacing of control points, and what it misses."""
    at = plane(grid, truth=truth)
    largest = float(length_mm(truth, grid).max())

    def render(state: State) -> Figure:
        model = FreeFormDeformation(grid, control_spacing_mm=state["spacing_mm"])
        ddf = model.fit(truth).ddf().detach()
        missed = length_mm(ddf - truth, grid)
        slots = [canvas.slot(at, _counted(_numbers(model)))]
        slots.append(canvas.slot(at, f"off by {float(missed.mean()):.2f} mm", right=canvas.BAR_IN))
        figure, (left, right) = canvas.panels([slots])
        draw_paper(left, at, ddf, truth=truth)
        canvas.color_bar(right, canvas.amounts(right, at, at.cut(missed), largest / 2), "missed [mm]")
        dots = _control_points_mm(model, at)
        right.plot(*dots, "o", color=canvas.MARK_COLOR, markeredgecolor="black", markersize=6, zorder=5)
        return figure

    return render, {"spacing_mm": Slider(low_mm, high_mm, high_mm / 2, step=1.0, unit="mm")}


def _control_points_mm(model: FreeFormDeformation, at: Plane) -> np.ndarray:
    """The control points within the grid, (2, k) mm."""
    lines = []
    for axis, centers, step in zip(at.axes[:2], at.centers, at.spacing, strict=True):
        n, span = model.grid.shape[axis], model.spans[axis]
        lines.append(centers[0] + step * np.arange(span + 1) * (n - 1) / span)
    return np.stack([part.ravel() for part in np.meshgrid(*lines)])


# -- one truth, many families -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Fitted:
    """A family fitted to a field: the map and its ddf, how many numbers it has, and its TRE at landmarks, mm."""

    kind: str
    transform: Transform
    ddf: Tensor
    numbers: int
    error_mm: float


def fit_families(
    families: Mapping[str, Transform], ddf: Ddf, grid: Grid, *, fixed_points: Points, moving_points: Points
) -> dict[str, Fitted]:
    """Each family's map closest to a field on `grid`, and its error at landmarks that know the truth, world mm."""
    found = {}
    for name, family in families.items():
        fitted = family.fit(ddf)
        ends = {"fixed_points": fixed_points, "moving_points": moving_points, "fixed_grid": grid}
        found_ddf = fitted.ddf().detach()
        error = float(tre(found_ddf, **ends).mean())  # type: ignore[arg-type]
        found[name] = Fitted(_kind(family), fitted, found_ddf, _numbers(family), error)
    return found


def _kind(family: Transform) -> str:
    if isinstance(family, Linear):
        return "matrix"
    if getattr(family, "flows", False):
        return "flow"
    if isinstance(family, KernelDisplacement):
        return "kernels"
    return "B-splines" if isinstance(family, FreeFormDeformation) else "voxels"


def families_on_truth(fits: Mapping[str, Mapping[str, Fitted]], truth: Ddf, grid: Grid) -> View:
    """Choose a family: its paper against the truth, and its error among those of all, against how many numbers it has.

    Args: fits: of each field that was given, for example "exact" and "noisy", the results of `fit_families`.
    """
    at = plane(grid, truth=truth)
    names = list(next(iter(fits.values())))
    if any(list(each) != names for each in fits.values()):
        raise ValueError(f"every field must be fitted by the same families, here {', '.join(names)}.")
    lowest = max(min(f.error_mm for each in fits.values() for f in each.values()), 0.005)

    def render(state: State) -> Figure:
        found = fits[state["given"]]
        one = found[state["family"]]
        figure, (panel,) = canvas.panels([[canvas.slot(at, state["family"], right=CHART_IN)]])
        draw_paper(panel, at, one.ddf.to(truth), truth=truth)
        title = f"{one.error_mm:.2f} mm, {_counted(one.numbers)}"
        chart = chart_beside(figure, panel, title, "numbers in the family", "TRE [mm]")
        for kind, mark in KINDS.items():
            some = [f for f in found.values() if f.kind == kind]
            look: dict[str, Any] = {"color": KIND_COLORS.get(kind, canvas.WARPED_COLOR), "label": kind}
            look |= {"markersize": 11, "markeredgecolor": "white"}
            chart.plot([f.numbers for f in some], [f.error_mm for f in some], mark, zorder=4, **look)
        ring(chart, one.numbers, max(one.error_mm, lowest))
        most = max(f.numbers for f in found.values())
        chart.set(xscale="log", yscale="log", xlim=(1.3, 4 * most), ylim=(0.6 * lowest, 30))
        chart.set_xticks([10**k for k in range(1, 6) if 10**k < 4 * most])
        chart.set_yticks([10.0**k for k in range(-2, 2) if 10.0**k > 0.6 * lowest])
        chart.xaxis.set_major_formatter("{x:g}")
        chart.yaxis.set_major_formatter("{x:g}")
        chart.legend(fontsize=canvas.TEXT_SIZE, frameon=False, loc="lower left")
        return figure

    given = tuple(fits)
    return render, {"family": Choice(tuple(names), names[len(names) // 2]), "given": Choice(given, given[0])}


# -- several maps as one ----------------------------------------------------------------------------------------
def in_a_row(image: Image, bend: Transform, grid: Grid) -> View:
    """A turn and a bend as one map, by `Sequential` and by `MultiLevel`, beside the image warped twice.

    Titled with how far each is, on average, from where the two maps take a point one after the other, mm.
    """
    at, shown = plane(grid, image=image), plot.window(image)
    voxels = grid.coordinates(dtype=torch.float64).flatten(0, -2)[None]
    places = grid.points(voxels, to=Axes.WORLD, from_=Axes.VOXEL)

    def render(state: State) -> Figure:
        angle = math.radians(state["turn_deg"])
        turn = _with_numbers(Rigid(grid), {"translation_mm": [0, 0], "angle_rad": [angle]})
        first, second = (bend, turn) if state["bend_first"] else (turn, bend)
        twice = image
        for each in (first, second):
            twice = warp(twice, each.ddf(grid).detach().to(image), padding="zeros")
        truth = first.points(second.points(places)).detach()
        pictures = {"warped twice": twice}
        for whole in (Sequential(first, second), MultiLevel(first, second)):
            off = (whole.points(places).detach() - truth).norm(dim=-1)
            name = f"{type(whole).__name__}: {float(off.mean()):.1f} mm off"
            pictures[name] = warp(image, whole.ddf(grid).detach().to(image), padding="zeros")
        figure, panels = canvas.panels([[canvas.slot(at, name) for name in pictures]])
        for panel, picture in zip(panels, pictures.values(), strict=True):
            canvas.gray(panel, at, at.cut(picture), shown)
        return figure

    return render, {"turn_deg": Slider(0.0, 90.0, 40.0, step=1.0, unit="deg"), "bend_first": Toggle()}


def there_and_back(maps: Mapping[str, Callable[[float], Transform]], grid: Grid, *, most: float = 2.0) -> View:
    """A family at a strength: its paper, and what is left of each voxel after the way back and forth, mm.

    Args: maps: from a strength, 1 is as given, to a map.
    """
    at = plane(grid)
    step_mm = sum(grid.spacing) / grid.dim

    @lru_cache(maxsize=64)
    def of(name: str, strength: float) -> tuple[Tensor, Tensor]:
        model = maps[name](strength)
        return model.ddf(grid).detach(), model.inverse_residual() * step_mm

    def render(state: State) -> Figure:
        ddf, left_mm = of(state["family"], state["strength"])
        folds = int((jacobian_determinant(ddf) <= 0).sum())
        title = f"{state['family']}: {folds} folded" if folds else f"{state['family']}: no fold"
        slots = [canvas.slot(at, title, color=canvas.FOLD_COLOR if folds else canvas.INK)]
        largest = float(left_mm.max())
        words = f"left over: up to {largest:.1g} mm" if largest < 1 else f"left over: up to {largest:.0f} mm"
        slots.append(canvas.slot(at, words, right=canvas.BAR_IN))
        figure, (left, right) = canvas.panels([slots])
        draw_paper(left, at, ddf)
        canvas.color_bar(right, canvas.amounts(right, at, at.cut(left_mm), 2.0), "left over [mm]")
        return figure

    names = tuple(maps)
    return render, {"strength": Slider(0.0, most, most / 2, step=0.1), "family": Choice(names, names[0])}


# -- the table --------------------------------------------------------------------------------------------------
def family_table(rows: Mapping[str, Mapping[str, str | bool]]) -> Figure:
    """A row for each family, a column for each property: words, or yes and no in color."""
    columns = list(next(iter(rows.values()))) if rows else []
    if not columns or any(list(row) != columns for row in rows.values()):
        raise ValueError(f"every family must have the same columns, here {', '.join(columns) or 'none'}.")
    height = 0.75 + 0.42 * len(rows)
    figure = Figure(figsize=(canvas.WIDTH_IN, height), dpi=canvas.DPI)
    panel = figure.add_axes((0.21, 0.01, 0.785, 1 - 0.75 / height))
    for y, row in enumerate(rows.values()):
        for x, value in enumerate(row.values()):
            words = ("yes" if value else "no") if isinstance(value, bool) else value
            color = (YES if value else NO) if isinstance(value, bool) else "#f1f3f6"
            panel.fill_between([x - 0.48, x + 0.48], y - 0.45, y + 0.45, color=color, linewidth=0)
            panel.text(x, y, words, ha="center", va="center", size=canvas.TEXT_SIZE, color=canvas.INK)
    panel.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(rows)), list(rows))
    panel.xaxis.tick_top()
    panel.tick_params(length=0, labelsize=canvas.TEXT_SIZE, labelcolor=canvas.INK)
    panel.spines[:].set_visible(False)
    return figure
