"""Numbers for people: per case, in mm, without gradients.

Labels are (1, 1, *s) whole numbers, 0 the background, or (1, c, *s) with one structure a channel, where structure k
(counted from 1) is channel k - 1 above 0. Results are plain floats, keyed by label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from . import field
from .grid import Axes, Grid, GridMismatchError, per_axis, require_on_grid

if TYPE_CHECKING:
    import pandas as pd

Labels = Shaped[Tensor, "1 c *s"]
MANY = 1 << 16  # values of labels that are still counted in one table


# -- overlap ----------------------------------------------------------------------------------------------------
def dice(a: Labels, b: Labels, *, labels: Sequence[int] | None = None) -> dict[int, float]:
    """Overlap  2 |A and B| / (|A| + |B|)  of each structure, 0 to 1.

    Args:
        a, b: on one grid.
        labels: which to measure; default those present in both. One that is missing in one scores 0, in both NaN.

    Raises: ValueError, GridMismatchError.
    """
    return {k: _ratio(2 * both, na + nb) for k, (both, na, nb) in _counts(a, b, labels).items()}


def jaccard(a: Labels, b: Labels, *, labels: Sequence[int] | None = None) -> dict[int, float]:
    """Overlap  |A and B| / |A or B|  of each structure, 0 to 1. Args and Raises as for `dice`."""
    return {k: _ratio(both, na + nb - both) for k, (both, na, nb) in _counts(a, b, labels).items()}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _counts(a: Tensor, b: Tensor, labels: Sequence[int] | None) -> dict[int, tuple[int, int, int]]:
    """For each structure the voxels in both, in a, in b."""
    _check_labels(a, b)
    in_a, in_b = _sizes(a), _sizes(b)
    same = a == b if a.shape[1] == 1 else (a > 0) & (b > 0)
    both = _sizes(torch.where(same, a, torch.zeros_like(a)))
    wanted = sorted(in_a.keys() & in_b.keys()) if labels is None else [int(k) for k in labels]
    return {k: (both.get(k, 0), in_a.get(k, 0), in_b.get(k, 0)) for k in wanted}


def _sizes(labels: Tensor) -> dict[int, int]:
    """Number of voxels of each structure that is there."""
    if labels.shape[1] > 1:
        counts = (labels > 0).flatten(2).sum(-1)[0]
        return {k: n for k, n in enumerate(counts.tolist(), start=1) if n}
    if not labels.is_floating_point() and int(labels.min()) >= 0 and int(labels.max()) < MANY:
        counts = labels.flatten().long().bincount()  # ten times faster than to sort them
        return {k: n for k, n in enumerate(counts.tolist()) if n and k != 0}
    values, counts = labels.unique(return_counts=True)
    return {int(k): n for k, n in zip(values.tolist(), counts.tolist(), strict=True) if k != 0}


def present_labels(a: Labels, b: Shaped[Tensor, "1 c *t"]) -> list[int]:
    """The structures that are in both, which need not share a grid."""
    return sorted(_sizes(a).keys() & _sizes(b).keys())


def _check_labels(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise GridMismatchError(
            f"both label maps must be on one grid with the same channels; got {tuple(a.shape)} and {tuple(b.shape)}; "
            "warp or resample one onto the other's grid."
        )
    if a.ndim not in (4, 5) or a.shape[0] != 1:
        raise ValueError(f"labels must be (1, c, *s) in 2-D or 3-D, one case; got {tuple(a.shape)}.")


# -- distances between surfaces ---------------------------------------------------------------------------------
def surface_distance(
    a: Labels, b: Labels, *, spacing: float | Sequence[float], labels: Sequence[int] | None = None
) -> dict[int, float]:
    """Mean distance between the surfaces of each structure, mm: the mean over all surface voxels of both.

    A surface voxel is one of the structure with a neighbor outside it across a face; beyond the image is outside
    (as `monai.metrics`, whose symmetric average surface distance this is).

    Args:
        a, b: on one grid.
        spacing: mm per voxel along each axis.
        labels: as for `dice`; NaN where a structure is missing in one.

    Raises: ValueError, GridMismatchError.
    """
    found = _all_surface_distances(a, b, spacing, labels)
    return {k: float(np.concatenate(pair).mean()) if pair else math.nan for k, pair in found}


def hausdorff(
    a: Labels,
    b: Labels,
    *,
    spacing: float | Sequence[float],
    percentile: float = 95,
    labels: Sequence[int] | None = None,
) -> dict[int, float]:
    """Hausdorff distance of each structure, mm: the larger of the percentiles of the two directed surface distances.

    Args: percentile: 100 for the largest distance. Others, surface and Raises as for `surface_distance`.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be from 0 to 100; got {percentile}.")
    found = _all_surface_distances(a, b, spacing, labels)
    return {k: max(float(np.percentile(each, percentile)) for each in pair) if pair else math.nan for k, pair in found}


def _all_surface_distances(
    a: Tensor, b: Tensor, spacing: float | Sequence[float], labels: Sequence[int] | None
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray] | None]]:
    """For each structure the distances from a's surface voxels to b's surface and back; None if one is missing."""
    _check_labels(a, b)
    mm = per_axis(spacing, a.ndim - 2, "spacing")
    if min(mm) <= 0:
        raise ValueError(f"spacing must be above 0 mm; got {mm}.")
    first, second = a[0].cpu().numpy(), b[0].cpu().numpy()
    for k in present_labels(a, b) if labels is None else [int(k) for k in labels]:
        masks = _structure(first, k), _structure(second, k)
        yield k, _surface_distances(*masks, mm) if all(mask.any() for mask in masks) else None


def _structure(labels: np.ndarray, k: int) -> np.ndarray:
    """(*s) mask of one structure."""
    if labels.shape[0] == 1:
        return labels[0] == k
    return labels[k - 1] > 0 if 1 <= k <= labels.shape[0] else np.zeros(labels.shape[1:], dtype=bool)


def _surface_distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    from scipy import ndimage

    box = ndimage.find_objects((a | b).astype(np.uint8))[0]  # nothing outside it can matter
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (a, b)]
    to_a, to_b = (ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    return to_b[surfaces[0]], to_a[surfaces[1]]


def centroid_distance(
    a: Labels, b: Labels, *, spacing: float | Sequence[float], labels: Sequence[int] | None = None
) -> dict[int, float]:
    """Distance between the centers of each structure's voxels, mm. Args and Raises as for `surface_distance`."""
    _check_labels(a, b)
    mm = np.array(per_axis(spacing, a.ndim - 2, "spacing"))
    first, second = a[0].cpu().numpy(), b[0].cpu().numpy()
    result = {}
    for k in present_labels(a, b) if labels is None else [int(k) for k in labels]:
        centers = [np.argwhere(_structure(each, k)) for each in (first, second)]
        there = all(len(each) for each in centers)
        gap = (centers[0].mean(0) - centers[1].mean(0)) * mm if there else math.nan
        result[k] = float(np.linalg.norm(gap))
    return result


# -- maps -------------------------------------------------------------------------------------------------------
@torch.no_grad()
def tre(
    ddf: Float[Tensor, "1 d *s"],
    fixed_points: Float[Tensor, "1 k d"],
    moving_points: Float[Tensor, "1 k d"],
    *,
    fixed_grid: Grid,
) -> Float64[Tensor, " k"]:
    """Target registration error of each landmark, mm:  |map(fixed point) - moving point|.

    Args:
        ddf: voxels of `fixed_grid`; beyond its border it continues with the border's displacement.
        fixed_points, moving_points: pairs of landmarks, world RAS+ mm.

    Raises: ValueError for points that are no pairs, GridMismatchError.
    """
    require_on_grid(ddf, fixed_grid, "ddf")
    d = fixed_grid.dim
    if fixed_points.shape != moving_points.shape or fixed_points.ndim != 3 or fixed_points.shape[-1] != d:
        raise ValueError(
            f"fixed_points and moving_points must be (1, k, {d}) mm, as many of both; got "
            f"{tuple(fixed_points.shape)} and {tuple(moving_points.shape)}."
        )
    fixed, moving = fixed_points.double().cpu(), moving_points.double().cpu()
    voxels = fixed_grid.points(fixed, to=Axes.VOXEL, from_=Axes.WORLD)
    mapped = field.warp_points(voxels, ddf.double().cpu())
    return (fixed_grid.points(mapped, to=Axes.WORLD, from_=Axes.VOXEL) - moving).norm(dim=-1)[0]


@torch.no_grad()
def jacobian_statistics(
    ddf: Float[Tensor, "1 d *s"], *, mask: Shaped[Tensor, "1 1 *s"] | None = None
) -> dict[str, float]:
    """What a map does to volumes, from  det(I + grad u)  by central differences, one-sided at the faces.

    Args: mask: voxels above 0 count; default all.

    Returns:
        folding_fraction: share of the voxels with det <= 0, where the map folds.
        std_log_jacobian: standard deviation of log det over those with det > 0 (NaN if there are none).
        min, max: of det.

    Raises: ValueError for an empty mask, GridMismatchError.
    """
    determinant = field.jacobian_determinant(ddf.detach())
    values = determinant[_inside(mask, determinant)].double()
    growing = values[values > 0]
    return {
        "folding_fraction": float((values <= 0).double().mean()),
        "std_log_jacobian": float(growing.log().std(correction=0)) if len(growing) else math.nan,
        "min": float(values.min()),
        "max": float(values.max()),
    }


@torch.no_grad()
def learn2reg_jacobian_statistics(
    ddf: Float[Tensor, "1 d *s"], *, mask: Shaped[Tensor, "1 1 *s"] | None = None
) -> dict[str, float]:
    """The figures as the Learn2Reg evaluator prints them, to compare with its tables and for nothing else.

    It adds 3 to the determinant and clips it above 0 before the logarithm and before counting folds, so that
    std_log_jacobian is that of det + 3 and folding_fraction is always 0; two voxels at each border are left out.

    Args, Raises: as for `jacobian_statistics`; no axis may have fewer than 5 voxels.
    Source: Hering et al. 2023, doi:10.1109/TMI.2022.3213983, SDlogJ, and the challenge's evaluation script.
    """
    determinant = field.jacobian_determinant(ddf.detach())
    if min(determinant.shape[2:]) < 5:
        raise ValueError(
            f"Learn2Reg leaves out two voxels at each border, so every axis needs 5; got {tuple(ddf.shape[2:])}."
        )
    inner = (slice(None), slice(None), *[slice(2, -2)] * (ddf.ndim - 2))
    inside = _inside(mask, determinant)[inner]
    if not bool(inside.any()):
        raise ValueError("mask must hold voxels further than two from the border; it has none there.")
    shifted = (determinant[inner][inside].double() + 3).clamp(1e-9, 1e9)
    return {
        "folding_fraction": float((shifted <= 0).double().mean()),
        "std_log_jacobian": float(shifted.log().std(correction=0)),
    }


def _inside(mask: Tensor | None, like: Tensor) -> Tensor:
    """The mask as booleans of the shape of `like`, (1, 1, *s)."""
    if mask is None:
        return torch.ones_like(like, dtype=torch.bool)
    if mask.shape != like.shape:
        raise GridMismatchError(f"mask must be {tuple(like.shape)}, on the fixed grid; got {tuple(mask.shape)}.")
    if not bool((mask > 0).any()):
        raise ValueError("mask must have voxels above 0; it is empty.")
    return mask > 0


@torch.no_grad()
def inverse_error(
    ddf: Float[Tensor, "b d *s"], inverse_ddf: Float[Tensor, "b d *s"], *, grid: Grid
) -> Float[Tensor, "b 1 *s"]:
    """How far each voxel lands from where it started after the map and its inverse, mm:  |u(p) + w(p + u(p))|.

    Args: ddf, inverse_ddf: voxels, both on `grid`; beyond it the inverse continues with its border.
    Raises: ValueError, GridMismatchError.
    """
    for name, each in (("ddf", ddf), ("inverse_ddf", inverse_ddf)):
        require_on_grid(each, grid, name)
    there_and_back = field.compose(inverse_ddf, ddf)
    return field.magnitude(field.convert_ddf(there_and_back, grid, to=Axes.WORLD, from_=Axes.VOXEL))


# -- a whole case -----------------------------------------------------------------------------------------------
@torch.no_grad()
def evaluate_pair(
    fixed: Float[Tensor, "1 c *s"],
    moving: Float[Tensor, "1 c *t"],
    ddf: Float[Tensor, "1 d *s"],
    *,
    fixed_grid: Grid,
    moving_grid: Grid,
    fixed_labels: Shaped[Tensor, "1 e *s"] | None = None,
    moving_labels: Shaped[Tensor, "1 e *t"] | None = None,
    fixed_points: Float[Tensor, "1 k d"] | None = None,
    moving_points: Float[Tensor, "1 k d"] | None = None,
    mask: Shaped[Tensor, "1 1 *s"] | None = None,
    similarity: Callable[..., Tensor] | None = None,
    warped: Float[Tensor, "1 c *s"] | None = None,
) -> dict[str, Any]:
    """All that can be said of one registration, before (headers alone) and after; the keys of metrics.json.

    Args:
        fixed, moving, ddf: on `fixed_grid`, `moving_grid` and `fixed_grid`.
        fixed_labels, moving_labels: both or neither; on the grids of their images.
        fixed_points, moving_points: both or neither; world RAS+ mm.
        mask: where to measure similarity and Jacobian; default where the moving image reaches for the one, where
            fixed > 0 for the other.
        similarity: called as (warped, fixed, mask=); default `correlation`, higher is better.
        warped: the moving image under the ddf, if you have it already.

    Returns:
        similarity_before/after, folding_fraction, std_log_jacobian; with labels dice_before/after (mean over those in
        both images) and dice_per_label (after, 0 for one that vanished); with points tre_mm_before/after (mean).

    Raises: ValueError, GridMismatchError, before any work.
    """
    require_on_grid(fixed, fixed_grid, "fixed")
    require_on_grid(moving, moving_grid, "moving")
    _check_case(ddf, fixed_grid, moving_grid, mask)
    grids = {"fixed_grid": fixed_grid, "moving_grid": moving_grid}
    maps = {"before": torch.zeros_like(ddf), "after": ddf}
    result: dict[str, Any] = {}
    unmoved = moving if moving_grid == fixed_grid else None
    for when, known, each in (("before", unmoved, maps["before"]), ("after", warped, ddf)):
        result[f"similarity_{when}"] = _similarity(fixed, moving, each, mask, similarity, grids, known)
    inside = mask if mask is not None else (fixed > 0).any(dim=1, keepdim=True)
    statistics = jacobian_statistics(ddf, mask=inside if bool((inside > 0).any()) else None)
    result |= {key: statistics[key] for key in ("folding_fraction", "std_log_jacobian")}
    if _both("labels", fixed_labels, moving_labels):
        assert fixed_labels is not None and moving_labels is not None  # noqa: PT018
        result |= _label_results(fixed_labels, moving_labels, maps, grids)
    if _both("points", fixed_points, moving_points):
        assert fixed_points is not None and moving_points is not None  # noqa: PT018
        for when, each in maps.items():
            errors = tre(each, fixed_points, moving_points, fixed_grid=fixed_grid)
            result[f"tre_mm_{when}"] = float(errors.mean())
    return result


def _check_case(ddf: Tensor, fixed_grid: Grid, moving_grid: Grid, mask: Tensor | None) -> None:
    d = fixed_grid.dim
    if moving_grid.dim != d:
        raise ValueError(f"fixed is {d}-D and moving is {moving_grid.dim}-D; both must have one dimension.")
    if ddf.ndim != d + 2 or ddf.shape[1] != d:
        raise ValueError(f"ddf must be (1, {d}, *{d} sizes) in voxels; got {tuple(ddf.shape)}.")
    require_on_grid(ddf, fixed_grid, "ddf")
    if not bool(ddf.isfinite().all()):
        raise ValueError("ddf must be finite; it holds NaN or infinity; did the registration diverge?")
    _inside(mask, ddf[:, :1])


def _both(name: str, fixed: Tensor | None, moving: Tensor | None) -> bool:
    if (fixed is None) != (moving is None):
        raise ValueError(f"give fixed_{name} and moving_{name}, or neither; only one was given.")
    return fixed is not None


def _similarity(
    fixed: Tensor,
    moving: Tensor,
    ddf: Tensor,
    mask: Tensor | None,
    similarity: Callable[..., Tensor] | None,
    grids: Mapping[str, Any],
    warped: Tensor | None,
) -> float:
    if warped is None:
        warped = field.warp(moving, ddf, **grids)
    inside = field.valid_mask(ddf, **grids)
    if mask is not None:
        inside = inside & (mask > 0)
    if similarity is None:
        return correlation(warped, fixed, mask=inside)
    return float(similarity(warped, fixed, mask=inside.to(fixed.dtype)))


@torch.no_grad()
def correlation(
    a: Float[Tensor, "1 c *s"], b: Float[Tensor, "1 c *s"], *, mask: Shaped[Tensor, "1 1 *s"] | None = None
) -> float:
    """Correlation coefficient of two images over the mask, -1 to 1; NaN if one is constant there."""
    weight = torch.ones_like(a[:, :1]) if mask is None else (mask > 0).to(a.dtype)
    count = float(weight.sum(dtype=torch.float64)) * a.shape[1]
    if not count:
        return math.nan
    (x, x_power), (y, y_power) = (_centered(z, weight, count) for z in (a, b))
    product = float((x * y).sum(dtype=torch.float64))
    return product / math.sqrt(x_power * y_power) if min(x_power, y_power) > 0 else math.nan


def _centered(image: Tensor, weight: Tensor, count: float) -> tuple[Tensor, float]:
    """The image less its mean, 0 outside, and its sum of squares, 0 if that is rounding alone."""
    mean = float((image * weight).sum(dtype=torch.float64)) / count
    rest = (image - mean).mul_(weight)
    power = float(rest.square().sum(dtype=torch.float64))
    return rest, power if power > count * (4 * torch.finfo(image.dtype).eps * mean) ** 2 else 0.0


def _label_results(
    fixed: Tensor, moving: Tensor, maps: Mapping[str, Tensor], grids: Mapping[str, Any]
) -> dict[str, Any]:
    require_on_grid(fixed, grids["fixed_grid"], "fixed_labels")
    require_on_grid(moving, grids["moving_grid"], "moving_labels")
    if fixed.shape[1] != moving.shape[1]:
        raise ValueError(
            f"fixed_labels and moving_labels must have as many channels; got {fixed.shape[1]} and {moving.shape[1]}."
        )
    wanted = present_labels(fixed, moving)
    if not wanted:
        raise ValueError("fixed_labels and moving_labels must share a label above 0; they have none in common.")
    result: dict[str, Any] = {}
    for when, ddf in maps.items():
        channels = moving.split(1, dim=1)
        warped = torch.cat([field.warp_labels(each, ddf, method="nearest", **grids) for each in channels], dim=1)
        scores = dice(warped, fixed, labels=wanted)
        result[f"dice_{when}"] = sum(scores.values()) / len(scores)
    return result | {"dice_per_label": scores}


def summarize(cases: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A table of many cases: a row for each metric, columns mean, std (n - 1), median, min, max.

    Args: cases: dicts as of `evaluate_pair`; `dice_per_label` gives rows `dice_per_label[1]` and so on. A metric counts
        in the cases that have it; None and NaN are left out, text is ignored.
    """
    import pandas as pd

    table = pd.DataFrame([_flat(case) for case in cases])
    rows = {"mean": table.mean(), "std": table.std(), "median": table.median(), "min": table.min(), "max": table.max()}
    return pd.DataFrame(rows, dtype=float)


def _flat(case: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in case.items():
        if isinstance(value, Mapping):
            flat |= {
                f"{key}[{label}]": number for label, number in _flat({str(k): v for k, v in value.items()}).items()
            }
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            flat[key] = math.nan if value is None else float(value)
    return flat


__all__ = [
    "centroid_distance",
    "correlation",
    "dice",
    "evaluate_pair",
    "hausdorff",
    "inverse_error",
    "jaccard",
    "jacobian_statistics",
    "learn2reg_jacobian_statistics",
    "present_labels",
    "summarize",
    "surface_distance",
    "tre",
]
