"""Keypoints: where they are, what is around them, and which belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from .. import field
from .network import STRIDE, SuperRetina

BORDER = 4  # pixels along the edges in which nothing is looked for


@dataclass(frozen=True)
class Keypoints:
    """Places (n, 2), (x, y) in pixels, how sure each is (n,), and its descriptor (n, d) of length 1."""

    points: Float[Tensor, "n 2"]
    scores: Float[Tensor, " n"]
    descriptors: Float[Tensor, "n d"]

    def __len__(self) -> int:
        return len(self.points)


Extractor = Callable[[Float[Tensor, "1 1 h w"]], Keypoints]  # of what `preprocess` gives


# -- where --------------------------------------------------------------------------------------------------------
def suppress(probability: Float[Tensor, "b 1 h w"], radius: int, threshold: float) -> Bool[Tensor, "b 1 h w"]:
    """Which pixels above `threshold` are the largest within `radius` along both axes; of equal ones, the first."""
    waiting = (_largest(probability, radius) == probability) & (probability > threshold)
    kept = torch.zeros_like(waiting)
    count = probability.shape[-1] * probability.shape[-2]
    first = torch.arange(count, 0, -1, dtype=torch.float64, device=probability.device)
    while bool(waiting.any()):  # once, unless equal ones are so many that they hide each other
        order = torch.where(waiting, first.view(1, 1, *probability.shape[-2:]), 0.0)
        chosen = waiting & (_largest(order, radius) == order)
        kept |= chosen
        waiting &= _largest(chosen.double(), radius) == 0
    return kept


def _largest(values: Float[Tensor, "b 1 h w"], radius: int) -> Float[Tensor, "b 1 h w"]:
    """The largest value within a radius of each pixel, along one axis and then along the other."""
    along = functional.max_pool2d(values, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return functional.max_pool2d(along, (2 * radius + 1, 1), stride=1, padding=(radius, 0))


def detect(
    probability: Float[Tensor, "1 1 h w"],
    *,
    radius: int = 10,
    threshold: float = 0.01,
    border: int = BORDER,
    subpixel: bool = False,
    most: int | None = None,
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """The local maxima of a map of probabilities, line by line: places (x, y) in pixels and their values.

    Args:
        radius: no two keypoints are closer than this along both axes.
        threshold: a keypoint is above it.
        border: pixels along the edges in which there is none.
        subpixel: move each to the top of a parabola through its neighbors along each axis, by half a pixel at most.
        most: keep so many, the surest.

    Source: SuperRetina's `simple_nms`.   Differs: draws no lot between equal neighbors.
    """
    if radius < 0 or border < 0 or (most is not None and most < 1):
        raise ValueError(
            f"radius and border must be at least 0 and most at least 1; got {radius}, {border} and {most}."
        )
    height, width = probability.shape[-2:]
    kept = suppress(probability, radius, threshold)
    inner = torch.zeros_like(kept)
    inner[..., border : height - border, border : width - border] = True
    rows, columns = (kept & inner)[0, 0].nonzero().unbind(1)
    scores = probability[0, 0, rows, columns]
    if most is not None and len(scores) > most:
        best = scores.argsort(descending=True, stable=True)[:most].sort().values
        rows, columns, scores = rows[best], columns[best], scores[best]
    points = torch.stack([columns, rows], dim=1).to(probability)
    if subpixel:
        points = points + torch.stack([_top(probability, rows, columns, axis) for axis in (1, 0)], dim=1)
    return points, scores


def _top(probability: Tensor, rows: Tensor, columns: Tensor, axis: int) -> Tensor:
    """How far from the pixel the top of a parabola through it and its two neighbors lies."""
    height, width = probability.shape[-2:]
    step = (1, 0) if axis == 0 else (0, 1)
    values = []
    for sign in (-1, 0, 1):
        near = (rows + sign * step[0]).clamp(0, height - 1), (columns + sign * step[1]).clamp(0, width - 1)
        values.append(probability[0, 0, near[0], near[1]])
    before, here, after = values
    bend = before - 2 * here + after
    return torch.where(bend < 0, 0.5 * (before - after) / bend.clamp(max=-1e-12), 0.0).clamp(-0.5, 0.5)


# -- what ---------------------------------------------------------------------------------------------------------
def describe(descriptors: Float[Tensor, "1 d i j"], points: Float[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
    """The descriptors of places (x, y) in pixels of the image, of length 1.

    The map of i x j descriptors spans pixels 0 to 8 i - 1 and 0 to 8 j - 1, its corners at the middle of these pixels;
    beyond, the nearest are taken.

    Source: SuperRetina's `sample_keypoint_desc`.   Differs: it aligns corners by torch's version; here it always does.
    """
    sizes = torch.tensor(descriptors.shape[:1:-1]).to(points)  # (j, i)
    at = points * (sizes - 1) / (STRIDE * sizes - 1)
    read = field.sample(descriptors, at.flip(1)[None])[0].T
    return functional.normalize(read, dim=1)


# -- together -----------------------------------------------------------------------------------------------------
def match(
    query: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], *, ratio: float = 0.9, mutual: bool = False
) -> Int[Tensor, "k 2"]:
    """Pairs of rows that belong together: (index in query, index in reference).

    Args:
        ratio: the nearest must be closer than this share of the distance to the second nearest.
        mutual: each must also be the nearest to the other.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be above 0 and at most 1; got {ratio}.")
    if len(query) == 0 or len(reference) < 2:
        return torch.zeros(0, 2, dtype=torch.long, device=query.device)
    apart = torch.cdist(query, reference)
    nearest = apart.topk(2, dim=1, largest=False)
    kept = nearest.values[:, 0] < ratio * nearest.values[:, 1]
    found = nearest.indices[:, 0]
    if mutual:
        kept &= apart.argmin(0)[found] == torch.arange(len(query), device=query.device)
    return torch.stack([kept.nonzero().flatten(), found[kept]], dim=1)


# -- extractors ---------------------------------------------------------------------------------------------------
def sift(*, contrast: float = 0.01, radius: int = 0, most: int = 4000) -> Extractor:
    """OpenCV's SIFT, which needs no training.

    Args:
        contrast: weaker extrema are left out.
        radius: of those that are closer than this along both axes the strongest stays; 0 keeps all.
        most: keep so many, the strongest.

    Descriptors are square roots of histograms (RootSIFT), whose distances tell better what belongs together.

    Source: Lowe 2004, doi:10.1023/B:VISI.0000029664.99615.94; Arandjelović and Zisserman 2012,
    doi:10.1109/CVPR.2012.6248018.
    """
    made = cv2.SIFT.create(nfeatures=most, contrastThreshold=contrast)

    def extract(image: Tensor) -> Keypoints:
        pixels = (image[0, 0].clamp(0, 1) * 255).round().byte().cpu().numpy()
        found, descriptors = made.detectAndCompute(pixels, None)
        if descriptors is None:
            return Keypoints(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, 128))
        points = torch.tensor(np.array([each.pt for each in found]), dtype=torch.float32)
        scores = torch.tensor([each.response for each in found])
        shares = torch.from_numpy(descriptors).clamp(min=0)
        kept = _apart(points, scores, image.shape[-2:], radius) if radius else torch.arange(len(points))
        return Keypoints(points[kept], scores[kept], functional.normalize(shares[kept], p=1, dim=1).sqrt())

    return extract


def _apart(points: Tensor, scores: Tensor, shape: Sequence[int], radius: int) -> Tensor:
    """Which places stay so that no two are closer than a radius, the strongest first."""
    at = points.round().long()
    at = torch.minimum(at.clamp(min=0), torch.tensor([shape[1], shape[0]]) - 1)
    order = scores.argsort(stable=True)  # the strongest is written last, and stays where two share a pixel
    owner = torch.full(tuple(shape), -1, dtype=torch.long)
    owner[at[order, 1], at[order, 0]] = order
    strength = torch.zeros(tuple(shape))
    strength[at[order, 1], at[order, 0]] = scores[order]
    return owner[suppress(strength[None, None], radius, 0.0)[0, 0]]


def learned(
    network: SuperRetina,
    *,
    radius: int = 10,
    threshold: float = 0.01,
    border: int = BORDER,
    subpixel: bool = False,
    most: int | None = None,
) -> Extractor:
    """A trained network; args as for `detect`."""

    @torch.no_grad()
    def extract(image: Tensor) -> Keypoints:
        weight = next(network.parameters())
        seen = network.eval()(image.to(weight))
        how: dict[str, Any] = {
            "radius": radius,
            "threshold": threshold,
            "border": border,
            "subpixel": subpixel,
            "most": most,
        }
        points, scores = detect(seen.probability, **how)
        return Keypoints(points, scores, describe(seen.descriptors, points))

    return extract
