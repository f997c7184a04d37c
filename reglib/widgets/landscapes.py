"""Views of similarity: what losses say of a pose, how far from home they still point there, and what they look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .. import filters, plot
from ..field import affine_ddf, warp
from ..filters import LocalWindow, window_sum
from ..grid import Grid, per_axis, require_on_grid
from ..plot import canvas
from ..plot.planes import Plane, plane_of, signed
from .controls import Choice, Control, Slider
from .paper import draw_joint
from .views import State, View

Image = Float[Tensor, "1 1 n m"]
Loss = Callable[..., Tensor]  # (warped, fixed) to a scalar, lower is better
DIAGONAL = math.sqrt(0.5)
WALKS: dict[str, tuple[float, float, float]] = {  # x mm, y mm, degrees for each unit of the way
    "x": (1.0, 0.0, 0.0),
    "y": (0.0, 1.0, 0.0),
    "rising": (DIAGONAL, DIAGONAL, 0.0),
    "falling": (DIAGONAL, -DIAGONAL, 0.0),
    "turn": (0.0, 0.0, 1.0),
}
BORDERS = ("voxels that exist", "zeros")
MARKS = 9  # poses on each walk, the truth in the middle, that say how high and low a loss can be
CURVE_COLORS = ("#222222", "#0080ff", "#ff8000", "#00795a", "#ff5c9a", "#a98bff")


# -- poses and walks --------------------------------------------------------------------------------------------
def pose_ddf(grid: Grid, *, x_mm: float = 0.0, y_mm: float = 0.0, turn_deg: float = 0.0) -> Float[Tensor, "1 2 n m"]:
    """A turn about the middle of a 2-D grid and a shift, as a ddf: where each voxel is read."""
    angle, middle = math.radians(turn_deg), torch.tensor(grid.center, dtype=torch.float64)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    matrix[:2, 2] = middle - matrix[:2, :2] @ middle + torch.tensor([x_mm, y_mm], dtype=torch.float64)
    return affine_ddf(matrix, grid)


def walk(
    loss: Loss, fixed: Image, moving: Image, grid: Grid, offsets: Sequence[float], *, along: str = "x"
) -> list[float]:
    """The loss at each offset from the identity, mm or degrees along one of WALKS; the border repeats."""
    return _walks({"": loss}, fixed, moving, grid, offsets, along=along)[""]


def _walks(
    losses: Mapping[str, Loss], fixed: Tensor, moving: Tensor, grid: Grid, offsets: Sequence[float], *, along: str
) -> dict[str, list[float]]:
    """The same for several losses; each pose is warped once."""
    if along not in WALKS:
        raise ValueError(f"along must be one of {', '.join(WALKS)}; got {along!r}.")
    _require(grid, fixed=fixed, moving=moving)
    x, y, turn = WALKS[along]
    poses = (pose_ddf(grid, x_mm=x * t, y_mm=y * t, turn_deg=turn * t) for t in offsets)
    with torch.no_grad():
        warped = [warp(moving, ddf.to(moving)) for ddf in poses]
        return {name: [float(loss(image, fixed)) for image in warped] for name, loss in losses.items()}


def capture_range(offsets: Sequence[float], values: Sequence[float]) -> float:
    """How far from offset 0, both ways, a landscape rises without a break: from there all slopes point home.

    Args: offsets: rising, 0 among them.   values: the loss at each.
    """
    if len(offsets) != len(values) or 0 not in offsets:
        raise ValueError(f"offsets must hold 0 and as many numbers as values; got {len(offsets)} and {len(values)}.")
    home = list(offsets).index(0)
    reached = []
    for side in (range(home, len(values)), range(home, -1, -1)):
        last = home
        for k in side[1:]:
            if not values[k] > values[last]:
                break
            last = k
        reached.append(abs(float(offsets[last])))
    return min(reached)


def _require(grid: Grid, **images: Tensor) -> None:
    if grid.dim != 2:
        raise ValueError(f"landscapes are drawn of 2-D images; got a {grid.dim}-D grid. Take a slice first.")
    for name, image in images.items():
        require_on_grid(image, grid, name)


def _require_all(grid: Grid, fixed: Tensor, movings: Mapping[str, Tensor]) -> None:
    if not movings:
        raise ValueError("movings must name at least one image; got none.")
    _require(grid, fixed=fixed, **movings)


def _one_of(movings: Mapping[str, Tensor]) -> Choice:
    return Choice(tuple(movings), next(iter(movings)))


# -- a pose and what every loss says of it ----------------------------------------------------------------------
def similarity_dial(
    fixed: Image,
    movings: Mapping[str, Image],
    grid: Grid,
    losses: Mapping[str, Loss],
    *,
    reach_mm: float = 30.0,
    reach_deg: float = 30.0,
) -> View:
    """Shift and turn an image that fits where it is, and see what each loss says: a bar from its lowest to its highest.

    A dashed mark is the loss at the truth; a bar that is shorter is loud, for this loss prefers a wrong pose.

    Args: movings: images to choose from, each in place at the identity.
    """
    _require_all(grid, fixed, movings)
    at, shown = plane_of(fixed, grid), plot.window(fixed)

    @lru_cache(maxsize=16)
    def scale(name: str) -> dict[str, tuple[float, float, float]]:
        return _scales(losses, fixed, movings[name], grid, reach_mm, reach_deg)

    def render(state: State) -> Figure:
        pose = {name: state[name] for name in ("x_mm", "y_mm", "turn_deg")}
        moving, ranges = movings[state["moving"]], scale(state["moving"])
        warped = warp(moving, pose_ddf(grid, **pose).to(moving))
        shares = {}
        for name, loss in losses.items():
            low, high, true = ranges[name]
            unit = high - low or 1.0
            shares[name] = ((float(loss(warped, fixed)) - low) / unit, (true - low) / unit)
        figure, (panel,) = canvas.panels([[canvas.slot(at, "overlay", right=5.9)]])
        light = canvas.scaled(at.cut(fixed), shown), canvas.scaled(at.cut(warped), plot.window(moving))
        canvas.blended(panel, at, *light)
        canvas.name_both(panel, "fixed", "moving")
        _bars(_beside(figure, panel, 1.05, 4.6), shares)
        return figure

    controls: dict[str, Control] = {
        "x_mm": Slider(-reach_mm, reach_mm, 0.0, step=1.0, unit="mm"),
        "y_mm": Slider(-reach_mm, reach_mm, 0.0, step=1.0, unit="mm"),
        "turn_deg": Slider(-reach_deg, reach_deg, 0.0, step=1.0, unit="deg"),
        "moving": _one_of(movings),
    }
    return render, controls


def _scales(
    losses: Mapping[str, Loss], fixed: Tensor, moving: Tensor, grid: Grid, reach_mm: float, reach_deg: float
) -> dict[str, tuple[float, float, float]]:
    """Of each loss the lowest and the highest value on three walks, and the value at the truth."""
    reaches = {"x": reach_mm, "y": reach_mm, "turn": reach_deg}
    walks = []
    for along, reach in reaches.items():
        offsets = np.linspace(-reach, reach, MARKS).tolist()
        walks.append(_walks(losses, fixed, moving, grid, offsets, along=along))
    found = {name: [value for values in walks for value in values[name]] for name in losses}
    return {name: (min(values), max(values), walks[0][name][MARKS // 2]) for name, values in found.items()}


def _beside(figure: Figure, panel: Panel, gap_in: float, width_in: float) -> Panel:
    """Axes right of a panel, as high, in the room that `Slot.right` keeps."""
    box, (width, _) = panel.get_position(), figure.get_size_inches()
    return figure.add_axes((box.x1 + gap_in / width, box.y0, width_in / width, box.height))


def _bars(panel: Panel, shares: Mapping[str, tuple[float, float]]) -> None:
    """A bar a loss from 0 to 1, with a dashed mark where the truth is; loud where it says less than at the truth."""
    for row, (now, true) in enumerate(shares.values()):
        color = canvas.FOLD_COLOR if now < true - 0.01 else canvas.WARPED_COLOR
        panel.barh(row, min(max(now, 0.0), 1.04), height=0.62, color=color)
        panel.plot([true, true], [row - 0.42, row + 0.42], color=canvas.INK, linewidth=3, linestyle=(0, (1.6, 0.8)))
    panel.set(xlim=(-0.02, 1.05), ylim=(len(shares) - 0.4, -0.6), xticks=(0, 1), xticklabels=("lowest", "highest"))
    panel.set_yticks(range(len(shares)), list(shares))
    panel.tick_params(labelsize=canvas.TEXT_SIZE, length=0, labelcolor=canvas.INK)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.set_title("loss (dashed: at the truth)", fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")


# -- landscapes -------------------------------------------------------------------------------------------------
def landscape_walker(
    fixed: Image,
    movings: Mapping[str, Image],
    grid: Grid,
    losses: Mapping[str, Loss],
    *,
    reach_mm: float = 60.0,
    step_mm: float | None = None,
) -> View:
    """The landscape of each loss along a shift or a turn, after smoothing both images; shaded is its capture range.

    Args:
        reach_mm: how far the walk goes, both ways; a turn goes as many degrees.
        step_mm: default the grid's spacing.
    """
    _require_all(grid, fixed, movings)
    count = max(1, round(reach_mm / (step_mm or grid.spacing[0])))
    offsets = [reach_mm * k / count for k in range(-count, count + 1)]

    @lru_cache(maxsize=64)
    def values(name: str, along: str, smooth_mm: float) -> dict[str, list[float]]:
        f, m = (smoothed(image, grid, smooth_mm) for image in (fixed, movings[name]))
        return _walks(losses, f, m, grid, offsets, along=along)

    def render(state: State) -> Figure:
        curves = values(state["moving"], state["along"], state["smooth_mm"])
        ranges = {name: capture_range(offsets, curve) for name, curve in curves.items()}
        return plot.landscape(curves, offsets, unit="deg" if state["along"] == "turn" else "mm", captured=ranges)

    controls: dict[str, Control] = {
        "along": Choice(("x", "y", "turn"), "x"),
        "smooth_mm": Slider(0.0, 12.0, 0.0, step=2.0, unit="mm"),
        "moving": _one_of(movings),
    }
    return render, controls


def smoothed(image: Image, grid: Grid, sigma_mm: float) -> Image:
    """Gaussian smoothing by millimeters."""
    return filters.gaussian(image, sigma=[sigma_mm / step for step in grid.spacing])


# -- the joint histogram ----------------------------------------------------------------------------------------
def joint_histogram(fixed: Image, movings: Mapping[str, Image], grid: Grid, information: Callable[..., Tensor]) -> View:
    """How often each pair of intensities meets, while the moving image is shifted.

    Args: information: (warped, fixed, bins=) to minus the mutual information in nats.
    """
    _require_all(grid, fixed, movings)
    at, shown = plane_of(fixed, grid), plot.window(fixed)

    def render(state: State) -> Figure:
        moving, bins = movings[state["moving"]], state["bins"]
        warped = warp(moving, pose_ddf(grid, x_mm=state["x_mm"]).to(moving))
        score = -float(information(warped, fixed, bins=bins))
        figure, (panel,) = canvas.panels([[canvas.slot(at, "overlay", right=5.6)]])
        canvas.blended(
            panel, at, canvas.scaled(at.cut(fixed), shown), canvas.scaled(at.cut(warped), plot.window(moving))
        )
        canvas.name_both(panel, "fixed", "moving")
        draw_joint(_beside(figure, panel, 1.15, 4.3), fixed, warped, bins, f"mutual information {score:.2f} nats")
        return figure

    controls: dict[str, Control] = {
        "bins": Slider(4, 64, 32, step=4),
        "x_mm": Slider(-30.0, 30.0, 0.0, step=1.0, unit="mm"),
        "moving": _one_of(movings),
    }
    return render, controls


# -- local correlation ------------------------------------------------------------------------------------------
def correlation_map(
    warped: Image, fixed: Image, *, window: int, zeros: bool = False, flat: float = 0.0
) -> Float[Tensor, "1 1 n m"]:
    """cov^2 / (var var) of the window around each voxel, float64.

    Args:
        zeros: fill windows up with zeros beyond the border, instead of counting the voxels that exist.
        flat: score of a window in which either image is flat.
    """
    around = LocalWindow(size=window)
    w, f = (image.double() - (0 if zeros else image.double().mean()) for image in (warped, fixed))
    sizes = per_axis(window, 2, "window")
    n = torch.tensor(float(math.prod(sizes))) if zeros else window_sum(torch.ones_like(f), around)
    w_mean, f_mean = (window_sum(x, around) / n for x in (w, f))
    covariance = window_sum(w * f, around) / n - w_mean * f_mean
    powers = [window_sum(x * x, around) / n - m * m for x, m in ((w, w_mean), (f, f_mean))]
    floors = [1e-6 * float((x - x.mean()).square().mean()) + 1e-18 for x in (w, f)]
    full = (powers[0] > floors[0]) & (powers[1] > floors[1])
    score = covariance.square() / (powers[0] * powers[1]).clamp(min=1e-36)
    return torch.where(full, score.clamp(max=1), torch.as_tensor(flat, dtype=score.dtype))


def local_correlation(fixed: Image, movings: Mapping[str, Image], grid: Grid) -> View:
    """What LNCC averages: the squared correlation of the window around each voxel, drawn as a map.

    Controls: the window's edge in voxels, how much a flat window scores, and what fills a window at the border.
    """
    _require_all(grid, fixed, movings)
    at = plane_of(fixed, grid)

    def render(state: State) -> Figure:
        moving, window = movings[state["moving"]], state["window"]
        choice: dict[str, Any] = {"zeros": state["border"] == "zeros", "flat": float(state["flat"])}
        score = correlation_map(moving, fixed, window=window, **choice)
        title = f"1 − mean = {1 - float(score.mean()):.2f}"
        slots = [
            canvas.slot(at, "fixed", color=canvas.FIXED_COLOR),
            canvas.slot(at, "moving", color=canvas.MOVING_COLOR),
        ]
        figure, axes = canvas.panels([[*slots, canvas.slot(at, title, right=canvas.BAR_IN)]])
        for panel, image in zip(axes, (fixed, moving), strict=False):
            canvas.gray(panel, at, at.cut(image), plot.window(image))
            _frame(panel, at, window)
        canvas.color_bar(axes[2], canvas.amounts(axes[2], at, at.cut(score), 1.0), "local correlation²")
        return figure

    controls: dict[str, Control] = {
        "window": Slider(3, 31, 9, step=2),
        "flat": Choice((0, 1), 0),
        "border": Choice(BORDERS, BORDERS[0]),
        "moving": _one_of(movings),
    }
    return render, controls


def _frame(panel: Panel, at: Plane, window: int) -> None:
    """The window around the middle voxel."""
    left, right, bottom, top = at.extent
    size = [window * step for step in at.spacing]
    corner = (left + right - size[0]) / 2, (bottom + top - size[1]) / 2
    panel.add_patch(Rectangle(corner, *size, fill=False, edgecolor=canvas.MARK_COLOR, linewidth=3))


# -- outliers ---------------------------------------------------------------------------------------------------
def penalties(losses_at: Callable[[float], Mapping[str, Loss]], *, largest: float = 1.0) -> View:
    """What one voxel costs against its difference, and how hard it pulls: the slope.

    Args: losses_at: the losses for a threshold in units of intensity.
    """
    e = torch.linspace(-largest, largest, 201)

    def render(state: State) -> Figure:
        threshold = state["threshold"]
        figure = Figure(figsize=(canvas.WIDTH_IN, 4.0), dpi=canvas.DPI)
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.06, right=0.84, bottom=0.17, top=0.89, wspace=0.22)
        for (name, loss), color in zip(losses_at(threshold).items(), CURVE_COLORS, strict=False):
            cost, pull = _penalty(loss, e)
            left.plot(e, cost, color=color, linewidth=3)
            right.plot(e, pull, color=color, linewidth=3, label=name)
        for panel, title in ((left, "cost of one voxel"), (right, "its pull (slope)")):
            panel.set_title(title, fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")
            panel.set_xlabel("difference of intensity", fontsize=canvas.TEXT_SIZE)
            panel.axvspan(-threshold, threshold, color="#dfe6ee", zorder=0)
            panel.tick_params(labelsize=canvas.TEXT_SIZE)
        right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=canvas.TEXT_SIZE, frameon=False)
        return figure

    return render, {"threshold": Slider(0.05, 0.9, 0.3, step=0.05)}


def _penalty(loss: Loss, e: Tensor) -> tuple[list[float], Tensor]:
    """The loss of one voxel for each difference, and its derivative."""
    voxels = e.reshape(-1, 1, 1, 1)
    cost = [float(loss(v[None], torch.zeros_like(v[None]))) for v in voxels]
    moving = voxels.clone().requires_grad_()
    loss(moving, torch.zeros_like(moving)).backward()
    assert moving.grad is not None
    return cost, moving.grad.flatten() * len(e)


# -- tables -----------------------------------------------------------------------------------------------------
def score_table(
    scores: Mapping[str, Mapping[str, float]],
    *,
    title: str = "",
    loud: Callable[[float], bool] = lambda _: False,
    high_is_good: bool = False,
) -> Figure:
    """Numbers in a colored table, a row for each outer name; the paler the better, loud where `loud` says so."""
    if not scores or not all(scores.values()):
        raise ValueError("score_table needs at least one row and one column of numbers.")
    columns = list(next(iter(scores.values())))
    values = np.array([[row[name] for name in columns] for row in scores.values()])
    figure = Figure(figsize=(canvas.WIDTH_IN, 0.9 + 0.42 * len(scores)), dpi=canvas.DPI)
    panel = figure.subplots()
    left = max(0.11, 0.012 * max(map(len, scores)))
    figure.subplots_adjust(left=left, right=0.99, bottom=0.02, top=1 - 0.85 / (0.9 + 0.42 * len(scores)))
    size = np.log1p(values.clip(min=0))  # a loss below 0 is as pale as can be
    share = size / max(float(size.max()), 1e-12)
    panel.imshow(1 - share if high_is_good else share, cmap="Blues", vmin=0, vmax=1.5, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        flagged = loud(float(value))
        look: dict[str, Any] = {"color": "white" if flagged else canvas.INK, "weight": "bold" if flagged else "normal"}
        if flagged:
            panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=canvas.FOLD_COLOR, edgecolor="white"))
        words = signed(float(value), 1)
        panel.text(column, row, words, ha="center", va="center", size=canvas.TITLE_SIZE - 1, zorder=3, **look)
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(scores)), list(scores))
    panel.tick_params(labelsize=canvas.TEXT_SIZE + 1, length=0, labeltop=True, labelbottom=False)
    panel.spines[:].set_visible(False)
    panel.set_title(title, fontsize=canvas.TITLE_SIZE, color=canvas.INK, fontweight="bold")
    return figure
