"""How methods are scored: FIRE by errors at control points, VARIA by telling eyes apart.

Source: Hernandez-Matas et al. 2017, doi:10.35119/maio.v1i4.42; Ortega et al. 2009, doi:10.1155/2009/235746; both as
SuperRetina reports them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from .alignment import Alignment, align
from .photos import Photo, load_photo

if TYPE_CHECKING:
    import pandas as pd

CATEGORIES = ("S", "P", "A")  # hardly apart, little overlap, changed by disease
LEFT_OUT = ("P37_1_2",)  # whose control points are wrong
THRESHOLDS = range(1, 26)  # pixels, of the curve of successes
FAILED_ERROR = 1e6  # pixels: never a success
MOST_MEDIAN, MOST_MAX = 20.0, 50.0  # pixels, beyond which a pair is inaccurate
NAME = re.compile(r"control_points_(?P<pair>(?P<category>[A-Z])\w*)_(?P<reference>\d+)_(?P<query>\d+)\.txt")


class Control(NamedTuple):
    """A pair of FIRE: its name, category, pictures, and control points (n, 2) as (x, y) of both."""

    pair: str
    category: str
    query: Path
    reference: Path
    query_points: Float[np.ndarray, "n 2"]
    reference_points: Float[np.ndarray, "n 2"]


@dataclass(frozen=True)
class PairScore:
    """What became of a pair: failed, inaccurate or acceptable, and its errors in full-size pixels."""

    pair: str
    category: str
    outcome: str
    mean_px: float
    median_px: float
    max_px: float
    inliers: int


@dataclass(frozen=True)
class FireScores:
    """Shares of outcomes in percent, areas under the curve by category, and their plain mean."""

    failed: float
    inaccurate: float
    acceptable: float
    auc: dict[str, float]
    mauc: float
    pairs: tuple[PairScore, ...]

    @property
    def table(self) -> pd.DataFrame:
        """A row a pair."""
        import pandas as pd

        return pd.DataFrame([asdict(pair) for pair in self.pairs])


Aligner = Callable[[Photo, Photo], Alignment]


def fire_scores(folder: str | os.PathLike[str], aligner: Aligner = align, *, progress: bool = True) -> FireScores:
    """Align every pair of a folder in FIRE's layout, and score it by FIRE's protocol.

    Args:
        folder: with `Images/` and `Ground Truth/control_points_PAIR_REFERENCE_QUERY.txt`, whose columns are x and y of
            the reference, then of the query. Pair P37_1_2 is left out, as everywhere.
        aligner: called with the photographs (query, reference).

    Raises: FileNotFoundError or ValueError, before any work, if files are missing or cannot be read.
    """
    pairs = list(fire_pairs(folder))
    scored = []
    for pair in tqdm(pairs, unit="pair", disable=not progress):
        found = aligner(load_photo(pair.query), load_photo(pair.reference))
        scored.append(score_pair(pair, found))
    return summarized(scored)


def fire_pairs(folder: str | os.PathLike[str]) -> Iterator[Control]:
    """The pairs of a folder in FIRE's layout.

    Raises: as `fire_scores`.
    """
    folder = Path(folder)
    truths = sorted(folder.glob("Ground Truth/control_points_*.txt"))
    if not truths:
        raise FileNotFoundError(
            f'{folder} holds no "Ground Truth/control_points_*.txt"; give the folder that holds FIRE\'s Images and '
            "Ground Truth."
        )
    for path in truths:
        name = NAME.fullmatch(path.name)
        if name is None:
            raise ValueError(
                f"{path.name} must be named control_points_PAIR_REFERENCE_QUERY.txt, such as ..._S01_1_2.txt."
            )
        pair = f"{name['pair']}_{name['reference']}_{name['query']}"
        if pair in LEFT_OUT:
            continue
        pictures = [_picture(folder / "Images", f"{name['pair']}_{name[role]}") for role in ("query", "reference")]
        points = _control_points(path)
        yield Control(pair, name["category"], pictures[0], pictures[1], points[:, 2:], points[:, :2])


def _picture(folder: Path, stem: str) -> Path:
    found = sorted(path for path in folder.glob(f"{stem}.*") if path.suffix.lower() != ".txt")
    if not found:
        raise FileNotFoundError(
            f"no such picture: {folder / stem}.jpg, whose control points are there. Copy it there too."
        )
    return found[0]


def _control_points(path: Path) -> Float[np.ndarray, "n 4"]:
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        points = np.array([[float(word) for word in line] for line in lines if len(line) == 4])
    except ValueError:
        points = np.empty((0, 4))
    if len(points) == 0 or len(points) < len(lines) or not np.isfinite(points).all():
        raise ValueError(
            f"{path} must hold four numbers a line, x and y of the reference and of the query; it has {len(lines)} "
            "lines, not all of which are such."
        )
    return points


def score_pair(pair: Control, found: Alignment) -> PairScore:
    """The errors at the control points, and what they make of a pair."""
    inliers = int(found.inliers.sum())
    if found.homography is None:
        return PairScore(pair.pair, pair.category, "failed", FAILED_ERROR, FAILED_ERROR, FAILED_ERROR, inliers)
    moved = found.to_reference(pair.query_points)
    errors = np.linalg.norm(moved - pair.reference_points, axis=1)
    errors = np.where(np.isfinite(errors), errors, FAILED_ERROR)
    middle, largest = float(np.median(errors)), float(errors.max())
    outcome = "inaccurate" if largest > MOST_MAX or middle > MOST_MEDIAN else "acceptable"
    return PairScore(pair.pair, pair.category, outcome, float(errors.mean()), middle, largest, inliers)


def summarized(pairs: Sequence[PairScore]) -> FireScores:
    """The scores of all pairs; a category without pairs has no area, and the mean is of those that have."""
    if not pairs:
        raise ValueError("there is no pair to score.")
    shares = {
        name: 100 * sum(p.outcome == name for p in pairs) / len(pairs)
        for name in ("failed", "inaccurate", "acceptable")
    }
    areas = {}
    for category in (*CATEGORIES, *sorted({p.category for p in pairs} - set(CATEGORIES))):
        errors = np.array([p.mean_px for p in pairs if p.category == category])
        areas[category] = float(np.mean([(errors < t).mean() for t in THRESHOLDS])) if len(errors) else math.nan
    mauc = float(np.nanmean(list(areas.values())))
    return FireScores(shares["failed"], shares["inaccurate"], shares["acceptable"], areas, mauc, tuple(pairs))


# -- telling eyes apart -------------------------------------------------------------------------------------------
def varia_pairs(folder: str | os.PathLike[str]) -> list[tuple[Path, Path, bool]]:
    """Query, reference, and whether both are of one eye, of a folder in VARIA's layout: Images/ and pair_index.txt.

    Raises: FileNotFoundError or ValueError, before any work, for a picture that is not there or a line of another form.
    """
    folder, pairs = Path(folder), []
    for number, line in enumerate((folder / "pair_index.txt").read_text(encoding="utf-8").splitlines(), start=1):
        words = [word.strip() for word in line.split(",")]
        if words == [""]:
            continue
        if len(words) != 3 or words[2] not in ("0", "1"):
            raise ValueError(
                f"pair_index.txt, line {number}, must be: query, reference, 1 for one eye or 0 for two; got {line!r}."
            )
        query, reference = (folder / "Images" / word for word in words[:2])
        missing = [path for path in (query, reference) if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"pair_index.txt, line {number}, names {missing[0]}, which is not there.")
        pairs.append((query, reference, words[2] == "1"))
    return pairs


class Verification(NamedTuple):
    """The equal error rate, from 0 to 1, and the number of inliers from which two photographs are held for one eye."""

    eer: float
    threshold: float


def varia_eer(genuine: Sequence[int], impostor: Sequence[int]) -> Verification:
    """Where as many pairs of one eye are refused as pairs of two eyes are taken for one, by counts of inliers.

    Args: genuine, impostor: inliers of pairs of one eye and of two eyes.
    """
    if not len(genuine) or not len(impostor):
        raise ValueError(
            f"both kinds of pairs are needed; got {len(genuine)} genuine and {len(impostor)} impostor ones."
        )
    own, other = np.asarray(genuine, dtype=float), np.asarray(impostor, dtype=float)
    levels = np.unique(np.concatenate([own, other]))
    steps = np.append(levels, levels[-1] + 1)
    refused = np.array([(own < t).mean() for t in steps])
    taken = np.array([(other >= t).mean() for t in steps])
    k = int(np.argmax(refused >= taken))  # the first; refused rises from 0, taken falls to 0
    if k == 0 or refused[k] == taken[k]:
        return Verification(float(refused[k]), float(steps[k]))
    before, after = refused[k - 1] - taken[k - 1], refused[k] - taken[k]
    share = before / (before - after)
    crossing = refused[k - 1] + share * (refused[k] - refused[k - 1])
    return Verification(float(crossing), float(steps[k]))
