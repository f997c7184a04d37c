"""What reaches a network: the scans of a folder, the pairs of an epoch, headers that lie, pairs bent at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from .. import plot
from ..field import Grids, convert_ddf, magnitude, resample, warp
from ..grid import Grid
from ..plot import canvas
from ..plot.planes import Plane, plane_of
from .controls import Choice, Control, Slider, Toggle
from .paper import CHART_IN, chart_beside
from .views import State, View, moved, through

Item = Mapping[str, Any]  # a pair as `reglib.data` gives it
COLUMNS = 4  # scans side by side
BINS = 50  # of a histogram
DRAWS = 8  # of an augmentation, to choose from
LINES = (canvas.FIXED_COLOR, canvas.WARPED_COLOR, canvas.MOVING_COLOR, canvas.INK)


@runtime_checkable
class ScanLike(Protocol):
    """A scan as `reglib.data` reads it: (1, *s), where its voxels are, and (k, *s) masks or none."""

    @property
    def name(self) -> str: ...
    @property
    def image(self) -> Tensor: ...
    @property
    def grid(self) -> Grid: ...
    @property
    def label(self) -> Tensor | None: ...


def contact_sheet(scans: Sequence[ScanLike], *, headers: bool = True, columns: int = COLUMNS) -> Figure:
    """The middle axial slice of each scan with its structures outlined, all at one scale.

    Args:
        headers: draw each in its own mm; otherwise as a network sees it, an array whose axes count voxels.
        columns: scans side by side.
    """
    if not scans:
        raise ValueError("give at least one scan; got none.")
    grids = [scan.grid if headers else Grid(scan.image.shape[1:]) for scan in scans]
    planes = [plane_of(scan.image[None], grid) for scan, grid in zip(scans, grids, strict=True)]
    room = canvas.slot if headers else _by_index
    slots = [room(at, scan.name) for at, scan in zip(planes, scans, strict=True)]
    figure, panels = canvas.panels([slots[k : k + columns] for k in range(0, len(slots), columns)])
    for panel, at, scan in zip(panels, planes, scans, strict=True):
        canvas.gray(panel, at, at.cut(scan.image[None]), plot.window(scan.image[None]))
        if scan.label is not None:
            canvas.outlines(panel, at, _numbered(scan.label))
    return figure


def _by_index(at: Plane, title: str) -> canvas.Slot:
    """Room for an array without a header: no letters, and axes that count voxels."""
    labels = (f"axis {at.axes[0]} [voxel]", f"axis {at.axes[1]} [voxel]")
    return canvas.Slot(at.extent, title, labels=labels)


def _numbered(masks: Tensor, first: int = 1) -> Tensor:
    """Masks (k, *s) as a label map (1, 1, *s): the last one wins, the first has the number `first`."""
    labels = torch.zeros(1, 1, *masks.shape[1:], dtype=torch.int64)
    for k, mask in enumerate(masks):
        labels[0, 0][mask > 0.5] = first + k
    return labels


def pair_dial(draw: Callable[[int, int], Item], *, epochs: int, pairs: int, structures: Sequence[str] = ()) -> View:
    """Choose an epoch and one of its pairs: both scans, each in its own mm, with the labels that were drawn.

    Args:
        draw: gives the item of (epoch, k), both from 0, as `dataset[epoch, k]` does.
        structures: names of the labels, to be written where one is drawn.
    """

    def render(state: State) -> Figure:
        item = draw(int(state["epoch"]) - 1, int(state["pair"]) - 1)
        sides = [(role, _middle_of(item, role)) for role in ("moving", "fixed")]
        colors = {"moving": canvas.MOVING_COLOR, "fixed": canvas.FIXED_COLOR}
        slots = [canvas.slot(at, f"{role}: {item[f'{role}_name']}", color=colors[role]) for role, at in sides]
        figure, panels = canvas.panels([slots])
        index = item["label_index"]
        for panel, (role, at) in zip(panels, sides, strict=True):
            image = item[role][None]
            canvas.gray(panel, at, at.cut(image), plot.window(image))
            if f"{role}_label" in item:
                canvas.outlines(panel, at, _numbered(item[f"{role}_label"], first=max(index, 0) + 1))
            if index >= 0:
                canvas.note(panel, structures[index] if index < len(structures) else f"label {index + 1}")
        return figure

    return render, {"epoch": Slider(1, epochs, 1), "pair": Slider(1, pairs, 1)}


def _middle_of(item: Item, role: str) -> Plane:
    """The slice through the middle of the structure that was drawn, or of the scan."""
    masks = item.get(f"{role}_label")
    seen = item[role][None] if masks is None or not bool((masks > 0).any()) else masks[None]
    return plane_of(seen, item[f"{role}_grid"])


def header_dial(
    scans: Mapping[str, tuple[Float[Tensor, "1 1 *s"], Grid]], reference: Float[Tensor, "1 1 *s"], grid: Grid
) -> View:
    """Choose a scan: its array as it lies in memory, and where its header puts it, over a reference.

    Args: scans: of one subject, by name; `reference` on `grid` is where the subject truly is.
    """
    if not scans:
        raise ValueError("give at least one scan; got none.")
    first, shown = plane_of(reference, grid), plot.window(reference)
    width = first.extent[1] - first.extent[0]

    def render(state: State) -> Figure:
        at, (image, own) = moved(first, state), scans[state["scan"]]
        size = image.shape[2:]
        raw = plane_of(image, Grid.centered(size, width / max(size[:2])))  # as wide as the other picture
        slots = [canvas.Slot(raw.extent, "the array"), canvas.slot(at, canvas.titled("by its header", at))]
        figure, panels = canvas.panels([slots])
        panels[0].set(xticks=[])
        canvas.gray(panels[0], raw, raw.cut(image), plot.window(image), sharp=True)
        there = resample(image, own, grid, padding="zeros")
        light = canvas.scaled(at.cut(reference), shown), canvas.scaled(at.cut(there), plot.window(image))
        canvas.blended(panels[1], at, *light)
        canvas.name_both(panels[1], "subject", "as read")
        spacing = " x ".join(f"{s:.2g}" for s in own.spacing)
        canvas.note(panels[0], f"{' x '.join(map(str, size))} of {spacing} mm, {own.orientation}")
        return figure

    return render, {"scan": Choice((*scans,), next(iter(scans))), **through(first)}


def scale_dial(image: Float[Tensor, "1 1 *s"], grid: Grid, scaled: Mapping[str, Float[Tensor, "1 1 *s"]]) -> View:
    """Choose how intensities are brought to [0, 1]: the picture that a network gets, and where its values lie.

    Args: scaled: the image by each scaling; `image` itself says which slice is shown.
    """
    if not scaled:
        raise ValueError("give at least one scaling; got none.")
    at = plane_of(image, grid)

    def render(state: State) -> Figure:
        values = scaled[state["scaling"]]
        figure, (panel,) = canvas.panels([[canvas.slot(at, state["scaling"], right=CHART_IN)]])
        canvas.gray(panel, at, at.cut(values), (0.0, 1.0))
        chart = chart_beside(figure, panel, "values", "intensity, as the network gets it", "voxels")
        chart.hist(values.flatten().numpy(), bins=BINS, range=(0.0, 1.0), color=canvas.INK)
        chart.set(yscale="log", xlim=(0.0, 1.0))
        return figure

    return render, {"scaling": Choice((*scaled,), next(iter(scaled)))}


def augmentation_dial(
    augment: Callable[[dict[str, Any], int], Item], true_ddf: Callable[[Item], Float[Tensor, "1 d *s"]]
) -> View:
    """Bend and shade a pair at random by as much as the sliders say, and see that its truth went along.

    Right, the moving image as the true map of the changed pair warps it, under the fixed outlines.

    Args:
        augment: gives the item for settings of a `reglib.data.Augmentation` and the number of the draw.
        true_ddf: gives the true map of such an item.
    """
    controls: dict[str, Control] = {
        "angle_deg": Slider(0.0, 40.0, 15.0, step=5.0, unit="deg"),
        "field_mm": Slider(0.0, 8.0, 4.0, step=0.5, unit="mm"),
        "gamma": Slider(0.0, 1.0, 0.0, step=0.1),
        "bias": Slider(0.0, 1.0, 0.0, step=0.1),
        "noise": Slider(0.0, 0.3, 0.0, step=0.05),
        "invert": Toggle(),
        "same": Toggle(),
        "draw": Slider(1, DRAWS, 1),
    }

    def render(state: State) -> Figure:
        settings = {name: state[name] for name in controls if name != "draw"}
        settings["invert"] = float(state["invert"])
        item = augment(settings, int(state["draw"]))
        at = {role: plane_of(item[role][None], item[f"{role}_grid"]) for role in ("moving", "fixed")}
        moved = warp(item["moving"][None], true_ddf(item), padding="zeros", **_grids(item))
        slots = [
            canvas.slot(at["moving"], "moving", color=canvas.MOVING_COLOR),
            canvas.slot(at["fixed"], "fixed", color=canvas.FIXED_COLOR),
            canvas.slot(at["fixed"], "moving, true map", color=canvas.WARPED_COLOR),
        ]
        figure, panels = canvas.panels([slots])
        pictures = (item["moving"][None], item["fixed"][None], moved)
        for panel, role, image in zip(panels, ("moving", "fixed", "fixed"), pictures, strict=True):
            canvas.gray(panel, at[role], at[role].cut(image), (0.0, 1.0))
            if f"{role}_label" in item:
                canvas.outlines(panel, at[role], _numbered(item[f"{role}_label"]), truth=image is moved)
        return figure

    return render, controls


def _grids(item: Item) -> Grids:
    return {"moving_grid": item["moving_grid"], "fixed_grid": item["fixed_grid"]}


def answer_dial(
    item: Item,
    answers: Mapping[str, Float[Tensor, "1 d *s"]],
    *,
    truth: Float[Tensor, "1 d *s"] | None = None,
    name: str = "after",
) -> View:
    """Choose a map that was predicted for a pair: the warped image on the outlines of fixed, and how far off it is.

    Left, fixed with its outlines dashed and those of moving as the map warps them; right, the error in mm, or without
    `truth` how far voxels move.

    Args:
        item: a pair as `reglib.data` gives it, or a batch of one, on the grids that it has.
        answers: by name, fields in voxels of the fixed grid.
        name: of the choice.
    """
    if not answers:
        raise ValueError("give at least one map; got none.")
    pair = {key: value for key, value in item.items() if isinstance(value, Tensor)}
    images = {key: value if value.ndim == 2 + _grid(item, "fixed").dim else value[None] for key, value in pair.items()}
    grid = _grid(item, "fixed")
    grids: Grids = {"fixed_grid": grid, "moving_grid": _grid(item, "moving")}
    fixed, moving = images["fixed"], images["moving"]
    labeled = "fixed_label" in images and bool((images["fixed_label"] > 0).any())
    first = plane_of(images["fixed_label"] if labeled else fixed, grid)
    far = {key: _length_mm(ddf if truth is None else ddf - truth, grid) for key, ddf in answers.items()}
    most = max(float(each.max()) for each in far.values())

    def render(state: State) -> Figure:
        at, chosen = moved(first, state), state[name]
        ddf = answers[chosen]
        warped = warp(moving, ddf, padding="zeros", **grids)
        words = "mean shift" if truth is None else "mean error"
        slots = [
            canvas.slot(at, canvas.titled("fixed", at), color=canvas.FIXED_COLOR),
            canvas.slot(at, f"warped, {chosen}", color=canvas.WARPED_COLOR),
            canvas.slot(at, f"{words} {float(far[chosen].mean()):.1f} mm", right=canvas.BAR_IN),
        ]
        figure, panels = canvas.panels([slots])
        canvas.gray(panels[0], at, at.cut(fixed), plot.window(fixed))
        canvas.gray(panels[1], at, at.cut(warped), plot.window(moving))
        picture = canvas.amounts(panels[2], at, at.cut(far[chosen]), most)
        canvas.color_bar(panels[2], picture, "mm")
        if labeled:
            there = warp(images["moving_label"], ddf, padding="zeros", **grids)
            canvas.outlines(panels[0], at, _numbered(there[0]))
            for panel in panels:
                canvas.outlines(panel, at, _numbered(images["fixed_label"][0]), truth=True)
        return figure

    return render, {name: Choice((*answers,), next(iter(answers))), **through(first)}


def _grid(item: Item, role: str) -> Grid:
    """Of an item, or of the one pair of a batch."""
    grid = item[f"{role}_grid"]
    return grid if isinstance(grid, Grid) else grid[0]


def _length_mm(ddf: Tensor, grid: Grid) -> Tensor:
    return magnitude(convert_ddf(ddf, grid, to="world", from_="voxel"))


def learning_curves(
    curves: Mapping[str, Sequence[float]], *, up: str, levels: Mapping[str, float] | None = None
) -> Figure:
    """Lines against the epoch, and dotted ones to compare them with.

    Args:
        curves: by name, a value an epoch.
        up: what they are, with its unit.
        levels: by name, values that do not learn.
    """
    if not curves or not all(len(values) for values in curves.values()):
        raise ValueError("give at least one curve of at least one epoch.")
    figure = Figure(figsize=(canvas.WIDTH_IN, 3.8), dpi=canvas.DPI)
    panel = figure.subplots()
    figure.subplots_adjust(left=0.09, right=0.76, bottom=0.18, top=0.95)
    for k, (name, values) in enumerate(curves.items()):
        color = LINES[k % len(LINES)]
        panel.plot(range(1, len(values) + 1), values, color=color, linewidth=2.5, label=name)
    for name, value in (levels or {}).items():
        panel.axhline(value, color=canvas.INK, linewidth=1.5, linestyle=":")
        panel.annotate(name, (1.01, value), xycoords=("axes fraction", "data"), size=canvas.TEXT_SIZE, va="center")
    panel.set_xlabel("epoch", fontsize=canvas.TEXT_SIZE)
    panel.set_ylabel(up, fontsize=canvas.TEXT_SIZE)
    panel.tick_params(labelsize=canvas.TEXT_SIZE)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=canvas.TEXT_SIZE, frameon=False)
    panel.margins(x=0)
    return figure


__all__ = [
    "answer_dial",
    "augmentation_dial",
    "contact_sheet",
    "header_dial",
    "learning_curves",
    "pair_dial",
    "scale_dial",
]
