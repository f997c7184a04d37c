"""From two photographs to the map between them, or to an honest "failed"."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .homography import Fit, Method, Quadratic, apply_homography, estimate_homography, estimate_quadratic
from .photos import Photo, field_of_view, full_from_working, preprocess
from .points import Extractor, Keypoints, match, sift

# A match by chance agrees with a wrong map now and then: so many must agree, and so large a share of those in sight.
LEAST_INLIERS, SHARE = 8.0, 0.3
GROWTH = (0.2, 5.0)  # of areas, from one photograph of an eye to another
BENT = 2.5  # how unlike the growth at the corners may be
ENOUGH = 30  # inliers for a quadratic map, which fewer would bend at will
Model = Literal["homography", "quadratic"]
MODELS: tuple[Model, ...] = ("homography", "quadratic")


@dataclass(frozen=True)
class Alignment:
    """What `align` found.

    Attributes:
        accepted: whether it is to be believed.
        reason: why not; empty if it is.
        homography: takes (x, y) pixels of the query to the reference, both in full size; None if not accepted.
        query_points, reference_points: of the matches of the last pass, (n, 2) in full size.
        inliers: which of them agree with the map.
        passes: the number of inliers of each pass.
        quadratic: the quadratic map, if one was asked for and enough matches agree.
    """

    accepted: bool
    reason: str
    homography: Float[np.ndarray, "3 3"] | None
    query_points: Float[np.ndarray, "n 2"] = dataclasses.field(default_factory=lambda: np.zeros((0, 2)))
    reference_points: Float[np.ndarray, "n 2"] = dataclasses.field(default_factory=lambda: np.zeros((0, 2)))
    inliers: Bool[np.ndarray, " n"] = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=bool))
    passes: tuple[int, ...] = ()
    quadratic: Quadratic | None = None

    def to_reference(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Where places (x, y) of the query are in the reference, in full size, by the best map there is.

        Raises: ValueError if there is none.
        """
        if self.quadratic is not None:
            return self.quadratic.points(points)
        if self.homography is None:
            raise ValueError(f"the photographs are not aligned: {self.reason}")
        return apply_homography(self.homography, points)


def align(
    query: Photo,
    reference: Photo,
    *,
    extract: Extractor | None = None,
    size: int | tuple[int, int] = 768,
    ratio: float = 0.8,
    mutual: bool = False,
    method: Method = "ransac",
    threshold: float = 5.0,
    refine: bool = True,
    model: Model = "homography",
) -> Alignment:
    """The map from one photograph of an eye to another.

    Args:
        extract: finds keypoints and describes them: `sift()`, the default, or `learned(network)`.
        size: as for `preprocess`.
        ratio, mutual: as for `match`.
        method, threshold: as for `estimate_homography`, in pixels of the small images.
        refine: lay the query onto the reference, find and match once more, and go on from there.
        model: "quadratic" also fits a quadratic map to the matches, which follows the curved back of an eye.

    Keypoints along the rim of a round field of view are left out: they belong to the camera. The map is accepted if
    enough matches of the last pass agree, and it is one that two photographs of one eye can have: neither mirrored, nor
    much larger or smaller, nor bent over.

    Source: SuperRetina's `Predictor`; the count that is enough, Brown and Lowe 2007, doi:10.1007/s11263-006-0002-3.
    """
    if model not in MODELS:
        raise ValueError(f"model must be {' or '.join(MODELS)}; got {model!r}.")
    small = [preprocess(photo, size=size) for photo in (query, reference)]
    fields = [field_of_view(photo, image.shape) for photo, image in zip((query, reference), small, strict=True)]
    pair = _Pair(small[1], fields[1], extract or sift(), ratio, mutual, method, threshold)
    try:
        found = pair.fitted(small[0], fields[0], np.eye(3))
        passes = [int(found.fit.inliers.sum())]
        if refine and _doubt(found, small) == "":
            shape = small[1].shape[-1], small[1].shape[-2]
            laid, seen = (
                cv2.warpPerspective(x, found.fit.matrix, shape)
                for x in (small[0][0, 0].numpy(), fields[0].astype(np.uint8))
            )
            found = pair.fitted(torch.from_numpy(laid)[None, None], seen > 0, found.fit.matrix)
            passes.append(int(found.fit.inliers.sum()))
    except ValueError as error:
        return Alignment(False, str(error), None)
    doubt = _doubt(found, small)
    full = [full_from_working(photo, image) for photo, image in zip((query, reference), small, strict=True)]
    matrix = full[1] @ found.fit.matrix @ np.linalg.inv(full[0])
    places = [apply_homography(m, points) for m, points in zip(full, (found.query, found.reference), strict=True)]
    told = None if doubt else matrix / matrix[2, 2]
    aligned = Alignment(not doubt, doubt, told, places[0], places[1], found.fit.inliers, tuple(passes))
    return _bent(aligned, threshold * full[1][0, 0]) if model == "quadratic" and not doubt else aligned


def _bent(aligned: Alignment, threshold: float) -> Alignment:
    """With a quadratic map as well, if enough matches agree with it."""
    assert aligned.homography is not None
    try:
        fitted, inliers = estimate_quadratic(
            aligned.query_points, aligned.reference_points, aligned.homography, threshold=threshold
        )
    except ValueError:
        return aligned
    if int(inliers.sum()) < max(ENOUGH, 0.9 * int(aligned.inliers.sum())):
        return aligned
    return replace(aligned, quadratic=fitted, inliers=inliers)


@dataclass(frozen=True)
class _Found:
    """A map between small images, the matches that it rests on, and how many keypoints could have matched."""

    fit: Fit
    query: np.ndarray
    reference: np.ndarray


@dataclass
class _Pair:
    """A reference that queries are matched to."""

    reference: Tensor
    field: np.ndarray
    extract: Extractor
    ratio: float
    mutual: bool
    method: Method
    threshold: float
    _known: Keypoints | None = None

    def fitted(self, query: Tensor, field: np.ndarray, before: np.ndarray) -> _Found:
        """The map of a query that was laid there by `before`; together with it. What is looked at lies in its field.

        Raises: ValueError if there is none.
        """
        if self._known is None:
            self._known = _inside(self.extract(self.reference), self.field)
        seen = _inside(self.extract(query), field)
        pairs = match(seen.descriptors, self._known.descriptors, ratio=self.ratio, mutual=self.mutual)
        own, other = (x.points[pairs[:, k]].cpu().numpy() for k, x in enumerate((seen, self._known)))
        fit = estimate_homography(own, other, method=self.method, threshold=self.threshold)
        back = apply_homography(np.linalg.inv(before), own)
        return _Found(Fit(fit.matrix @ before, fit.inliers), back, other.astype(float))


def _inside(found: Keypoints, field: np.ndarray) -> Keypoints:
    """Those in the field of view."""
    at = found.points.round().long()
    last = torch.tensor([field.shape[1], field.shape[0]]) - 1
    x, y = torch.minimum(at.cpu().clamp(min=0), last).unbind(1)
    kept = torch.from_numpy(field)[y, x].to(found.points.device)
    return Keypoints(found.points[kept], found.scores[kept], found.descriptors[kept])


def _doubt(found: _Found, small: list[Tensor]) -> str:
    """Why a map is not to be believed, or nothing."""
    matrix, inliers = found.fit
    height, width = small[0].shape[-2:]
    agree, seen = int(inliers.sum()), _in_sight(found, small[1])
    needed = LEAST_INLIERS + SHARE * seen
    if agree < needed:
        return f"{agree} of {seen} matches agree, and by chance {needed:.0f} might; are the photographs of one eye?"
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=float)
    growth = np.array([_growth(matrix, corner) for corner in corners])
    if not (growth > 0).all():
        return "the map turns part of the photograph over; too few places match, or they lie too close together."
    if not (GROWTH[0] < growth.mean() < GROWTH[1] and growth.max() < BENT**2 * growth.min()):
        return f"the map enlarges areas {growth.min():.2g} to {growth.max():.2g} times, as no second photograph would."
    return ""


def _in_sight(found: _Found, reference: Tensor) -> int:
    """How many matches begin where the map sees the reference."""
    height, width = reference.shape[-2:]
    x, y = apply_homography(found.fit.matrix, found.query).T
    return int(((x >= 0) & (x < width) & (y >= 0) & (y < height)).sum())


def _growth(matrix: np.ndarray, at: np.ndarray) -> float:
    """The Jacobian determinant of a homography."""
    weight = float(matrix[2] @ [*at, 1.0])
    return float(np.linalg.det(matrix)) / weight**3 if abs(weight) > 1e-9 else -1.0
