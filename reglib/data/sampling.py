"""Who meets whom in an epoch: pure functions from a random generator to draws.

Source: DeepReg's loaders (`dataset/loader/*.py`) and VoxelMorph's generators.   Differs: a generator is passed in; the
source seeds validation by 0 in each epoch, and so do the data sets of `datasets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Literal

import numpy as np

IntraOption = Literal["forward", "backward", "unconstrained"]
INTRA_OPTIONS = ("forward", "backward", "unconstrained")


@dataclass(frozen=True)
class Draw:
    """One meeting: the indices of two records.

    Attributes: chance: from 0 to 1, which of the labels of the pair is taken where one is: floor(chance * count).
    """

    moving: int
    fixed: int
    chance: float = 0.0

    def label_of(self, count: int) -> int:
        """Which of `count` labels."""
        return min(int(self.chance * count), count - 1)


def pairs(n: int, rng: np.random.Generator, *, shuffle: bool = True) -> list[Draw]:
    """Each of n pairs once."""
    order = rng.permutation(n).tolist() if shuffle else range(n)
    return _with_chances([(i, i) for i in order], rng)


def disjoint(n: int, rng: np.random.Generator) -> list[Draw]:
    """floor(n / 2) pairs of n scans, none in two of them; of an odd number one sits out."""
    order = rng.permutation(n).tolist()
    return _with_chances([(order[2 * k], order[2 * k + 1]) for k in range(n // 2)], rng)


def scan_to_scan(n: int, count: int, rng: np.random.Generator) -> list[Draw]:
    """Two independent draws each, which may be one scan, as in VoxelMorph."""
    return _with_chances(rng.integers(n, size=(count, 2)).tolist(), rng)


def scan_to_atlas(n: int, count: int, rng: np.random.Generator) -> list[Draw]:
    """An independent draw each; the fixed image is the atlas, index 0 of its own list."""
    return _with_chances([(i, 0) for i in rng.integers(n, size=count).tolist()], rng)


def groups_sampled(
    groups: Sequence[Sequence[int]],
    rng: np.random.Generator,
    *,
    intra_group_prob: float,
    intra_group_option: IntraOption,
) -> list[Draw]:
    """One meeting a group: with probability p of two scans of it, else of one with a scan of another group.

    A group of one scan cannot meet itself and is left out where the first happens.
    """
    check_groups(groups, intra_group_prob, intra_group_option)
    met = []
    for g in rng.permutation(len(groups)).tolist():
        if rng.random() < intra_group_prob:
            if len(groups[g]) < 2:
                continue
            first, second = sorted(rng.choice(len(groups[g]), size=2, replace=False).tolist())
            swap = intra_group_option == "backward" or (intra_group_option == "unconstrained" and rng.random() < 0.5)
            first, second = (second, first) if swap else (first, second)
            met.append((groups[g][first], groups[g][second]))
        else:
            other = int(rng.integers(len(groups) - 1))
            other += other >= g
            met.append((_one(groups[g], rng), _one(groups[other], rng)))
    return _with_chances(met, rng)


def groups_enumerated(
    groups: Sequence[Sequence[int]],
    rng: np.random.Generator,
    *,
    intra_group_prob: float,
    intra_group_option: IntraOption,
    shuffle: bool = True,
) -> list[Draw]:
    """Every meeting once: within groups if p is 1, between groups if it is 0.

    n (n - 1) / 2 of a group's n scans, forward or backward, n (n - 1) unconstrained; between groups in both directions.

    Raises: ValueError if p is neither.
    """
    check_groups(groups, intra_group_prob, intra_group_option)
    if intra_group_prob not in (0, 1):
        raise ValueError(
            "to go through all pairs, intra_group_prob must be 1, pairs within groups, or 0, between them; got "
            f"{intra_group_prob}; or sample_image_in_group=True."
        )
    if intra_group_prob == 0:
        met = [(i, j) for a, b in permutations(groups, 2) for i in a for j in b]
    elif intra_group_option == "unconstrained":
        met = [pair for group in groups for pair in permutations(group, 2)]
    else:
        met = [pair for group in groups for pair in combinations(group, 2)]
        met = [pair[::-1] for pair in met] if intra_group_option == "backward" else met
    order = rng.permutation(len(met)).tolist() if shuffle else range(len(met))
    return _with_chances([met[k] for k in order], rng)


def check_groups(groups: Sequence[Sequence[int]], intra_group_prob: float, intra_group_option: str) -> None:
    """Raise ValueError for groups with which these rules cannot be kept."""
    if not 0 <= intra_group_prob <= 1:
        raise ValueError(f"intra_group_prob must be from 0 to 1; got {intra_group_prob}.")
    if intra_group_option not in INTRA_OPTIONS:
        raise ValueError(f"intra_group_option must be one of {', '.join(INTRA_OPTIONS)}; got {intra_group_option!r}.")
    if intra_group_prob < 1 and len(groups) < 2:
        raise ValueError(
            f"pairs between groups need two groups; there is {len(groups)}; set intra_group_prob to 1 or add a group."
        )
    if intra_group_prob > 0 and all(len(group) < 2 for group in groups):
        raise ValueError("pairs within groups need a group of two scans; each has one; set intra_group_prob to 0.")


def _one(group: Sequence[int], rng: np.random.Generator) -> int:
    return group[int(rng.integers(len(group)))]


def _with_chances(met: Sequence[Sequence[int]], rng: np.random.Generator) -> list[Draw]:
    return [Draw(i, j, c) for (i, j), c in zip(met, rng.random(len(met)).tolist(), strict=True)]
