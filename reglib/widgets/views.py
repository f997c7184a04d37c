"""Views of images, fields and registrations: slices, blends, bending by hand, where a voxel comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from torch import Tensor

from .. import plot
from ..field import exponential, inverse, jacobian_determinant, valid_mask, warp, warp_points
from ..grid import Axes, Grid, require_on_grid
from ..plot import canvas
from ..plot.planes import PLANE_NAMES, WORLD_AXES, Frame, Plane, frame_of, middle, plane_of, signed
from .controls import Choice, Click, Control, Slider, Toggle

State = Mapping[str, Any]
View = tuple[Callable[[State], Figure], dict[str, Control]]
Image = Float[Tensor, "1 1 *s"]
PUSHED = {"holes": canvas.LABEL_COLORS[3], "overlaps": canvas.LABEL_COLORS[1]}  # of pull_push


def _require(grid: Grid, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            require_on_grid(tensor, grid, name)


def slice_viewer(image: Image, grid: Grid, labels: Shaped[Tensor, "1 c *s"] | None = None) -> View:
    """The three planes through a point that x, y and z move in mm along the grid's axes; labels as contours."""
    _require(grid, image=image, labels=labels)
    frame, shown = frame_of(grid), plot.window(image)
    start = frame.mm(middle(image))
    controls: dict[str, Control] = {f"{'xyz'[k]}_mm": _position(frame, k, start[k]) for k in range(grid.dim)}

    def render(state: State) -> Figure:
        world = frame.world([state[name] for name in controls])
        return plot.slices(image, grid, labels=labels, world=world, shown=shown)

    return render, controls


def _position(frame: Frame, world_axis: int, value: float) -> Slider:
    """From the first to the last voxel center along one axis, a voxel a step."""
    low, high = frame.range(world_axis)
    return Slider(low, high, min(max(value, low), high), step=frame.spacing[frame.axes[world_axis]], unit="mm")


def through(at: Plane) -> dict[str, Control]:
    """A slider in mm through the slices parallel to this one; none in 2-D."""
    if at.frame.grid.dim == 2:
        return {}
    world = WORLD_AXES[at.name][2]
    return {f"{'xyz'[world]}_mm": _position(at.frame, world, at.position_mm)}


def moved(at: Plane, state: State) -> Plane:
    """The slice that the slider of `through` asks for."""
    for name in through(at):
        return at.moved(state[name])
    return at


# -- before and after
def blend(
    fixed: Image, warped: Image, grid: Grid, before: Image | None = None, *, plane: plot.PlaneName = "axial"
) -> View:
    """Fade from the fixed image (0) to the warped one (1), in color or gray; or show tiles, or their difference.

    Args: before: the moving image on `grid`, not yet warped; a toggle shows it instead, in the same window.
    """
    _require(grid, fixed=fixed, warped=warped, before=before)
    at, windows = plane_of(fixed, grid, name=plane), (plot.window(fixed), plot.window(warped))
    controls: dict[str, Control] = {"fade": Slider(0.0, 1.0, 0.5, step=0.05), "mode": Choice(tuple(BLENDS), "overlay")}
    if before is not None:
        controls["before"] = Toggle()
    controls |= through(at)

    def render(state: State) -> Figure:
        here, early = moved(at, state), bool(state.get("before", False))
        other = before if early and before is not None else warped
        f, w = (canvas.scaled(here.cut(x), shown) for x, shown in zip((fixed, other), windows, strict=True))
        right = canvas.BAR_IN if state["mode"] == "difference" else canvas.EDGE_IN
        title = canvas.titled("before" if early else "after", here)
        figure, (panel,) = canvas.panels([[canvas.slot(here, title, right=right)]])
        BLENDS[state["mode"]](panel, here, f, w, state["fade"])
        canvas.name_both(panel, "fixed", "moving" if early else "warped")
        return figure

    return render, controls


def _fade_color(panel: Panel, at: Plane, fixed: np.ndarray, warped: np.ndarray, fade: float) -> None:
    canvas.blended(panel, at, fixed * min(1.0, 2 - 2 * fade), warped * min(1.0, 2 * fade))


def _fade_gray(panel: Panel, at: Plane, fixed: np.ndarray, warped: np.ndarray, fade: float) -> None:
    canvas.gray(panel, at, (1 - fade) * fixed + fade * warped, (0.0, 1.0))


def _tiles(panel: Panel, at: Plane, fixed: np.ndarray, warped: np.ndarray, fade: float) -> None:
    canvas.checkers(panel, at, fixed, warped, tiles=8)


def _difference(panel: Panel, at: Plane, fixed: np.ndarray, warped: np.ndarray, fade: float) -> None:
    drawn = canvas.differences(panel, at, warped - fixed, 0.5)
    canvas.color_bar(panel, drawn, "brighter by [share of window]")


BLENDS = {"overlay": _fade_color, "fade": _fade_gray, "checkerboard": _tiles, "difference": _difference}


# -- bending
def warp_amount(
    moving: Image,
    ddf: Float[Tensor, "1 d *s"],
    grid: Grid,
    fixed: Image | None = None,
    *,
    velocity: bool = False,
) -> View:
    """Bend an image by a share of a field: 0 leaves it, 1 is the whole field, beyond that it may fold.

    Args:
        moving, fixed: both on `grid`; with `fixed` an overlay is drawn too.
        velocity: whether `ddf` is a velocity; then its flow for so much time is used.
    """
    _require(grid, moving=moving, ddf=ddf, fixed=fixed)
    names = PLANE_NAMES[: 1 if grid.dim == 2 else 3]
    planes: dict[str, Plane] = {name: plane_of(moving, grid, name=name) for name in names}
    windows = plot.window(moving), plot.window(moving if fixed is None else fixed)
    controls: dict[str, Control] = {"amount": Slider(0.0, 1.5, 1.0, step=0.25 if velocity else 0.05)}
    if grid.dim == 3:
        controls["plane"] = Choice(names, "axial")

    @lru_cache(maxsize=32)  # a velocity takes long to follow
    def bent(amount: float, name: str) -> Tensor:
        return _slab(exponential(ddf * amount), planes[name]) if velocity else _slab(ddf, planes[name]) * amount

    def render(state: State) -> Figure:
        name, amount = state.get("plane", "axial"), state["amount"]
        return _draw_bent(moving, fixed, bent(amount, name), planes[name], windows, title=f"warped ×{amount:.2f}")

    return render, controls


def _draw_bent(
    moving: Tensor,
    fixed: Tensor | None,
    slab: Tensor,
    at: Plane,
    windows: tuple[plot.Window, plot.Window],
    *,
    title: str,
) -> Figure:
    slots = [canvas.slot(at, title, color=canvas.WARPED_COLOR), canvas.slot(at, "warped grid")]
    figure, axes = canvas.panels([slots if fixed is None else [*slots, canvas.slot(at, "overlay")]])
    warped = _warped_slice(moving, slab, at)
    canvas.gray(axes[0], at, warped, windows[0])
    canvas.gray(axes[1], at, at.cut(moving), windows[0], dim=True)
    plot.draw_warped_grid(axes[1], _in_slab(at), slab)
    if fixed is not None:
        light = canvas.scaled(at.cut(fixed), windows[1])
        canvas.blended(axes[2], at, light, canvas.scaled(warped, windows[0]))
        canvas.name_both(axes[2], "fixed", "warped")
    return figure


def _slab(ddf: Tensor, at: Plane) -> Tensor:
    """The slice of a field and its neighbors: all that its picture and its Jacobian read."""
    if len(at.axes) == 2:
        return ddf
    axis, first = at.axes[2] + 2, max(at.index - 1, 0)
    return ddf.narrow(axis, first, min(at.index + 2, ddf.shape[axis]) - first)


def _in_slab(at: Plane) -> Plane:
    """The same slice, counted within `_slab`."""
    return Plane(at.frame, at.name, min(at.index, 1))


def _warped_slice(moving: Tensor, slab: Tensor, at: Plane) -> np.ndarray:
    """The slice (h, w) of the warped image; no other slice is computed."""
    grid = at.frame.grid
    if grid.dim == 2:
        return at.cut(warp(moving, slab))
    axis = at.axes[2]
    start = [at.index if k == axis else 0 for k in range(3)]
    stop = [at.index + 1 if k == axis else n for k, n in enumerate(grid.shape)]
    thin = slab.narrow(axis + 2, _in_slab(at).index, 1)
    warped = warp(moving, thin, moving_grid=grid, fixed_grid=grid.crop(start, stop))
    return Plane(at.frame, at.name, 0).cut(warped)


def field_editor(image: Image, grid: Grid) -> View:
    """Edit a displacement: ddf is (dx, dy) at a clicked point and fades around it as a gaussian.

    At the arrow's foot the warped picture shows what the image holds at its tip, so it moves against the arrow; the
    paper p + ddf[p] moves with it, and folds where the arrow is longer than 1.65 radii. In 3-D, an axial slice.
    """
    _require(grid, image=image)
    flat, at = _flat(image, grid)
    shown, (low, high) = plot.window(image), _corners(at)
    reach = float(max(1, round(0.2 * min(b - a for a, b in zip(low, high, strict=True)))))
    millimeters = partial(Slider, step=0.5, unit="mm")
    controls: dict[str, Control] = {
        "dx_mm": millimeters(-reach, reach, reach / 2),
        "dy_mm": millimeters(-reach, reach, reach / 4),
        "radius_mm": millimeters(0.25 * reach, 1.5 * reach, 0.75 * reach),
        "point": Click(low, high, ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2)),
    }

    def render(state: State) -> Figure:
        push = state["dx_mm"], state["dy_mm"]
        return _draw_edited(
            flat, at, _push_ddf(at, state["point"], push, state["radius_mm"]), shown, state["point"], push
        )

    return render, controls


def _push_ddf(at: Plane, point: Sequence[float], push: Sequence[float], radius_mm: float) -> Tensor:
    """(1, 2, w, h) voxels: a push in mm at a point in mm, around it a gaussian of this radius."""
    mm = at.frame.grid.coordinates(Axes.WORLD)  # (w, h, 2)
    apart = (mm - torch.tensor(point)).square().sum(-1)
    share = torch.exp(-apart / (2 * radius_mm**2))
    return torch.stack([share * (p / s) for p, s in zip(push, at.spacing, strict=True)]).unsqueeze(0)


def _draw_edited(
    flat: Tensor, at: Plane, ddf: Tensor, shown: plot.Window, point: Sequence[float], push: Sequence[float]
) -> Figure:
    smallest = float(jacobian_determinant(ddf).min())
    color = canvas.FOLD_COLOR if smallest <= 0 else canvas.INK
    found = canvas.slot(at, f"Jacobian ≥ {signed(smallest, 2)}", color=color)
    figure, (left, right) = canvas.panels([[canvas.slot(at, "warped", color=canvas.WARPED_COLOR), found]])
    canvas.gray(left, at, at.cut(warp(flat, ddf)), shown)
    canvas.gray(right, at, at.cut(flat), shown, dim=True)
    plot.draw_warped_grid(right, at, ddf)
    for panel in (left, right):
        canvas.arrow(panel, point, push)
    return figure


def _flat(image: Tensor, grid: Grid) -> tuple[Tensor, Plane]:
    """The axial slice as a 2-D image on a grid of its own, upright, in the slice's millimeters."""
    at = plane_of(image, grid)
    (x, y), (dx, dy) = at.centers, at.spacing
    values = torch.from_numpy(at.cut(image).T.copy())[None, None]
    matrix = torch.tensor([[dx, 0.0, x[0]], [0.0, dy, y[0]], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return values, plane_of(values, Grid(values.shape[2:], matrix))


def _corners(at: Plane) -> tuple[tuple[float, float], tuple[float, float]]:
    """The centers of the first and last voxel of a slice, (x, y) mm."""
    x, y = at.centers
    return (float(x[0]), float(y[0])), (float(x[-1]), float(y[-1]))


# -- where a voxel comes from
def pull_push(image: Image, ddf: Float[Tensor, "1 d *s"], grid: Grid) -> View:
    """One map, two ways to move an image by it.

    Pull-back: each voxel p of the fixed grid is read at p + ddf[p] (the arrow from the clicked point). Push-forward:
    each voxel of the moving image is thrown to where the inverse map takes it, and rounded to a voxel: some get none,
    some several. In 3-D an axial slice, displacements within it.

    Args: image: the moving image, on `grid`.
    """
    _require(grid, image=image, ddf=ddf)
    flat, at = _flat(image, grid)
    shown, (low, high) = plot.window(image), _corners(at)
    moves = plane_of(image, grid).vectors(ddf) / np.array(at.spacing)[:, None, None]
    u = torch.from_numpy(moves).mT.unsqueeze(0).float()  # (1, 2, w, h)
    pulled, (pushed, count) = warp(flat, u), _scatter(flat, inverse(u).ddf)
    found = {"holes": (count == 0) & valid_mask(u), "overlaps": (count > 1) & valid_mask(u)}
    pictures = {"pull-back": at.cut(pulled), "moving": at.cut(flat), "push-forward": at.cut(pushed)}
    flags = {f"{name} {float(mask.float().mean()):.0%}": (at.cut(mask), PUSHED[name]) for name, mask in found.items()}

    def render(state: State) -> Figure:
        x, y = at.frame.voxel(state["point"])
        voxel = torch.tensor([[[x, y]]], dtype=torch.float32)
        move = (warp_points(voxel, u) - voxel).flatten().numpy() * at.spacing
        return _draw_pull_push(at, pictures, flags, shown, state["point"], move.tolist())

    return render, {"point": Click(low, high, _farthest(u, flat * pulled, at))}


def _draw_pull_push(
    at: Plane,
    pictures: Mapping[str, np.ndarray],
    flags: Mapping[str, tuple[np.ndarray, str]],
    shown: plot.Window,
    point: Sequence[float],
    move: Sequence[float],
) -> Figure:
    colors = canvas.WARPED_COLOR, canvas.MOVING_COLOR, canvas.INK
    slots = [canvas.slot(at, name, color=color) for name, color in zip(pictures, colors, strict=True)]
    figure, axes = canvas.panels([slots])
    for panel, values in zip(axes, pictures.values(), strict=True):
        canvas.gray(panel, at, values, shown)
    canvas.ring(axes[0], point)
    canvas.arrow(axes[1], point, move)
    canvas.ring(axes[2], point)
    for (words, (mask, color)), right in zip(flags.items(), (False, True), strict=True):
        canvas.flagged(axes[2], at, mask, color)
        canvas.note(axes[2], words, color=color, right=right)
    return figure


def _scatter(image: Tensor, ddf: Tensor) -> tuple[Tensor, Tensor]:
    """Throw each voxel q of a 2-D image to q + ddf[q], rounded: mean of what arrives, and how many did."""
    w, h = image.shape[2:]
    index = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="ij"))
    x, y = (index + ddf[0]).round().long()
    kept = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    place = (x * h + y)[kept]
    total, count = torch.zeros(w * h), torch.zeros(w * h)
    total.index_add_(0, place, image[0, 0][kept].float())
    count.index_add_(0, place, torch.ones_like(place, dtype=torch.float32))
    return (total / count.clamp(min=1)).reshape(1, 1, w, h), count.reshape(1, 1, w, h)


def _farthest(u: Tensor, image: Tensor, at: Plane) -> tuple[float, float]:
    """The nonzero voxel that moves most, (x, y) mm: a good place to look first."""
    length = u.norm(dim=1) * (image[:, 0] != 0)
    x, y = at.frame.mm(divmod(int(length.argmax()), length.shape[-1]))
    return x, y


def voxel_finder(image: Image, grid: Grid) -> View:
    """Click a point: its voxel up close, and its coordinates in each of the four systems (`grid.Axes`)."""
    _require(grid, image=image)
    first, shown = plane_of(image, grid), plot.window(image)
    low, high = _corners(first)
    x, y = ((a + b) / 2 + 0.2 * min(s, b - a) for a, b, s in zip(low, high, first.spacing, strict=True))
    controls: dict[str, Control] = {"point": Click(low, high, (x, y)), **through(first)}

    def render(state: State) -> Figure:
        at = moved(first, state)
        through = () if grid.dim == 2 else (at.position_mm,)
        voxel = at.frame.voxel([*state["point"], *through])
        nearest = [min(max(round(v), 0), n - 1) for v, n in zip(voxel, grid.shape, strict=True)]
        figure, axes = canvas.panels([_finder_slots(at)])
        for panel in axes:
            canvas.gray(panel, at, at.cut(image), shown, sharp=True)
        canvas.ring(axes[0], state["point"])
        canvas.zoom(axes[1], at, at.frame.mm(nearest)[:2], state["point"])
        canvas.table(axes[1], _coordinates(grid, voxel, nearest, float(image[(0, 0, *nearest)])))
        return figure

    return render, controls


def _finder_slots(at: Plane) -> list[canvas.Slot]:
    """The slice, and its voxel up close with room for words beside it."""
    main = canvas.slot(at, at.position or "click")
    voxels = (f"axis {at.axes[0]} [voxel]", f"axis {at.axes[1]} [voxel]")
    return [main, replace(main, title="up close", labels=voxels, right=canvas.WORDS_IN)]


def _coordinates(grid: Grid, voxel: Sequence[float], nearest: Sequence[int], value: float) -> list[tuple[str, str]]:
    """What `voxel_finder` writes: the names of systems and the point's coordinates in each."""
    point = torch.tensor(voxel, dtype=torch.float64)
    lines = [("nearest voxel", str(tuple(nearest))), ("its value", f"{value:.4g}")]
    for axes, name, digits in (
        (Axes.VOXEL, "voxel", 2),
        (Axes.WORLD, f"world [mm], {'RAS'[: grid.dim]}", 1),
        (Axes.CUBE, "cube (edges at ±1)", 3),
        (Axes.CUBE_CORNERS, "cube_corners (centers at ±1)", 3),
    ):
        numbers = grid.points(point, to=axes, from_=Axes.VOXEL).tolist()
        lines.append((name, f"({', '.join(signed(x, digits) for x in numbers)})"))
    return lines
