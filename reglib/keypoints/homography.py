"""Maps between two photographs: homographies and quadratic maps, from matches some of which are wrong.

Convention: a map takes places (x, y) of the query to the reference, in pixels; `moving_from_fixed` is its inverse, the
    query being the moving image.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float

Method = Literal["ransac", "lmeds", "magsac"]
METHODS = {"ransac": cv2.RANSAC, "lmeds": cv2.LMEDS, "magsac": cv2.USAC_MAGSAC}
LEAST = 4  # matches
FLAT = 1e-3  # the spread of places across their main direction, as a share of that along it
ROUNDS = 5  # of fitting a quadratic map and choosing whom it fits


class Fit(NamedTuple):
    """A map and the matches that agree with it."""

    matrix: Float[np.ndarray, "3 3"]
    inliers: Bool[np.ndarray, " n"]


def estimate_homography(
    query: Float[np.ndarray, "n 2"],
    reference: Float[np.ndarray, "n 2"],
    *,
    method: Method = "ransac",
    threshold: float = 5.0,
) -> Fit:
    """The homography that most matches agree with.

    Args:
        method: "ransac"; "lmeds", least median of squares, which needs no threshold and more than half of the matches
            right; "magsac", RANSAC with soft thresholds.
        threshold: pixels of the reference within which a match agrees.

    Raises: ValueError for fewer than four matches, matches on one line, or none that agree on anything.
    """
    if method not in METHODS:
        raise ValueError(f"method must be {', '.join(METHODS)}; got {method!r}.")
    if query.shape != reference.shape:
        raise ValueError(f"both must be (n, 2) places, in one order; got {query.shape} and {reference.shape}.")
    if len(query) < LEAST:
        raise ValueError(f"a homography needs at least {LEAST} matches; there are {len(query)}.")
    if min(_spread(query), _spread(reference)) < FLAT:
        raise ValueError("the matches lie on one line, along which a homography is free; more of the image must match.")
    found, agree = cv2.findHomography(
        query.astype(np.float64),
        reference.astype(np.float64),
        METHODS[method],
        threshold,
        maxIters=10000,
        confidence=0.999,
    )
    if found is None or not np.isfinite(found).all():
        raise ValueError(f"no homography fits {LEAST} of the {len(query)} matches; are the photographs of one eye?")
    return Fit(found / found[2, 2], agree[:, 0].astype(bool))


def _spread(points: np.ndarray) -> float:
    """How wide a cloud of places is across its main direction, as a share of its length."""
    long, short = np.linalg.svd(points - points.mean(0), compute_uv=False)
    return float(short / max(long, 1e-12))


def apply_homography(matrix: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Places (x, y) under a homography; NaN for those that it takes to infinity."""
    moved = np.column_stack([points, np.ones(len(points))]) @ np.asarray(matrix, dtype=np.float64).T
    weight = np.where(np.abs(moved[:, 2]) < 1e-12, np.nan, moved[:, 2])
    return moved[:, :2] / weight[:, None]


# -- quadratic ----------------------------------------------------------------------------------------------------
class Quadratic(NamedTuple):
    """A map whose two coordinates are polynomials of degree 2, as the curved back of an eye needs.

    Attributes:
        weights: (6, 2), of x^2, x y, y^2, x, y and 1, of places that were shifted and scaled first.
        shift, scale: of the query's places.
    """

    weights: Float[np.ndarray, "6 2"]
    shift: Float[np.ndarray, "2"]
    scale: float

    def points(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Where places (x, y) of the query are in the reference."""
        return _monomials((points - self.shift) / self.scale) @ self.weights


def estimate_quadratic(
    query: Float[np.ndarray, "n 2"],
    reference: Float[np.ndarray, "n 2"],
    start: Float[np.ndarray, "3 3"],
    *,
    threshold: float = 5.0,
) -> tuple[Quadratic, Bool[np.ndarray, " n"]]:
    """A quadratic map by least squares from the matches that agree with it, beginning with those of a homography.

    Raises: ValueError if fewer than 12 agree: six numbers for each coordinate need as many matches twice.

    Source: Can et al. 2002, doi:10.1109/34.990136.
    """
    inliers = _off(apply_homography(start, query), reference) < 2 * threshold
    shift, scale = query.mean(0), max(float(query.std()), 1.0)
    for _ in range(ROUNDS):
        if inliers.sum() < 12:
            raise ValueError(f"a quadratic map needs 12 matches that agree; there are {int(inliers.sum())}.")
        lines = _monomials((query - shift) / scale)
        weights = np.linalg.lstsq(lines[inliers], reference[inliers], rcond=None)[0]
        fitted = Quadratic(weights, shift, scale)
        before, inliers = inliers, _off(fitted.points(query), reference) < threshold
        if (before == inliers).all():
            break
    return fitted, inliers


def _monomials(points: np.ndarray) -> np.ndarray:
    x, y = points.T
    return np.column_stack([x * x, x * y, y * y, x, y, np.ones_like(x)])


def _off(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - reference, axis=1)
