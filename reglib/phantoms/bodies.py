"""Organs drawn by rule and bent by exact maps: abdomen, head and neck, prostate, heart, chest, hippocampus, digits.

A scene is a function of points of its own space, mm, to what a scanner would measure there and to labels. A subject
sees the scene through a map of its own (`maps.SmoothMap`), so between any two of them the truth is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..grid import Axes, Grid
from .maps import Cohort, Pair, SmoothMap, Subject, random_map
from .scanners import AIR_HU, ct, mri, ultrasound

Vector = Sequence[float]
Scene = Callable[[Tensor], tuple[Tensor, Tensor]]  # (n, d) mm to values (n,) and labels (n,)
EDGE_MM = 1.0  # over which one tissue becomes another
CHUNK = 1 << 16


@dataclass(frozen=True)
class Ellipsoid:
    """What is inside it: a value and, above 0, a label. Radii along its axes, mm; `turn_deg` about the last axis."""

    center: Vector
    radii: Vector
    value: float
    label: int = 0
    turn_deg: float = 0.0

    def depth(self, points: Tensor) -> Tensor:
        """About how deep points (n, d) lie inside, mm; below 0 outside."""
        x = points - torch.tensor(self.center, dtype=points.dtype)
        if self.turn_deg:
            c, s = math.cos(math.radians(self.turn_deg)), math.sin(math.radians(self.turn_deg))
            turned = torch.stack([c * x[:, 0] + s * x[:, 1], -s * x[:, 0] + c * x[:, 1]], dim=1)
            x = torch.cat([turned, x[:, 2:]], dim=1)
        radii = torch.tensor(self.radii, dtype=points.dtype)
        r = (x / radii).norm(dim=1)
        gradient = (x / radii**2).norm(dim=1).clamp(min=1e-9)
        return (1 - r) * r.clamp(min=1e-9) / gradient


@dataclass(frozen=True)
class Tubes:
    """Vessels: what lies within a radius of segments (m, 2, d), mm."""

    segments: np.ndarray
    radii: np.ndarray
    value: float
    label: int = 0

    def depth(self, points: Tensor) -> Tensor:
        start, end = (torch.from_numpy(self.segments[:, k]).to(points) for k in (0, 1))
        along, radii = end - start, torch.from_numpy(self.radii).to(points)
        length = (along**2).sum(1)
        deepest = points.new_full((len(points),), -math.inf)
        for s, a, n, r in zip(start, along, length, radii, strict=True):
            offset = points - s
            t = ((offset @ a) / n).clamp(0, 1)
            deepest = torch.maximum(deepest, r - (offset - t[:, None] * a).norm(dim=1))
        return deepest


Shape = Ellipsoid | Tubes


def painted(shapes: Sequence[Shape], background: float, *, edge_mm: float = EDGE_MM) -> Scene:
    """Shapes laid over each other, the last on top, with soft edges; labels are hard."""

    def scene(points: Tensor) -> tuple[Tensor, Tensor]:
        value = points.new_full((len(points),), background)
        label = torch.zeros(len(points), dtype=torch.int64)
        for shape in shapes:
            depth = shape.depth(points)
            share = torch.sigmoid(4 * depth / edge_mm)
            value = value + share * (shape.value - value)
            if shape.label:
                label[depth > 0] = shape.label
            elif isinstance(shape, Ellipsoid):
                label[depth > 0] = 0
        return value, label

    return scene


def drawn(scene: Scene, seen_by: SmoothMap, grid: Grid) -> tuple[Tensor, Tensor]:
    """A scene through a map, (1, 1, *s) float32 and int64."""
    x = grid.coordinates(Axes.WORLD, dtype=torch.float64).flatten(0, -2)
    parts = [scene(seen_by.points(chunk).float()) for chunk in x.split(CHUNK)]
    value, label = (torch.cat([part[k] for part in parts]) for k in (0, 1))
    return value.float().reshape(1, 1, *grid.shape), label.reshape(1, 1, *grid.shape)


def _grid(shape: Vector, spacing: float | Vector) -> Grid:
    return Grid.centered([int(n) for n in shape], spacing)


def _cohort(
    scene: Scene,
    grid: Grid,
    n: int,
    seed: int,
    strength_mm: float,
    half_period_mm: float,
    scan: Callable[[np.random.Generator, Tensor], Tensor],
) -> Cohort:
    subjects = []
    for index in range(n):
        rng = np.random.default_rng([seed, index, 11])
        seen_by = random_map(rng, (0.0,) * grid.dim, strength_mm, half_period_mm=half_period_mm, relative=1.0)
        value, label = drawn(scene, seen_by, grid)
        subjects.append(Subject(scan(rng, value), label, grid, seen_by))
    return Cohort(tuple(subjects), seed)


# -- abdomen ------------------------------------------------------------------------------------------------------
ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal vein", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
ABDOMEN: tuple[Shape, ...] = (
    Ellipsoid((0, 0, 0), (165, 115, 900), -100),  # fat, then muscle, then what is inside
    Ellipsoid((0, 0, 0), (152, 103, 900), 55),
    Ellipsoid((0, 8, 0), (138, 86, 900), -90),
    Ellipsoid((0, -68, 0), (22, 22, 900), 320),  # spine
    Ellipsoid((62, 14, 28), (66, 58, 72), 105, 6),  # liver
    Ellipsoid((-60, 24, 38), (42, 34, 48), 40, 7, 20),  # stomach
    Ellipsoid((-92, -22, 34), (26, 36, 44), 110, 1, -15),  # spleen
    Ellipsoid((62, -46, -40), (25, 22, 48), 170, 2, 15),
    Ellipsoid((-62, -46, -28), (25, 22, 48), 170, 3, -15),
    Ellipsoid((42, 50, -14), (15, 14, 24), 12, 4),  # gallbladder
    Ellipsoid((-10, -22, 88), (10, 9, 40), 45, 5),  # esophagus
    Ellipsoid((-6, -38, 0), (11, 11, 900), 180, 8),  # aorta
    Ellipsoid((18, -34, 0), (13, 11, 900), 150, 9),  # vena cava
    Ellipsoid((16, 0, 6), (34, 9, 10), 160, 10, 25),  # portal vein
    Ellipsoid((-18, 6, -16), (46, 12, 14), 90, 11, 12),  # pancreas
    Ellipsoid((42, -44, 22), (13, 7, 12), 75, 12, 25),
    Ellipsoid((-42, -44, 28), (13, 7, 12), 75, 13, -25),
)


def organ_cohort(
    n: int, *, seed: int = 0, shape: Vector = (72, 56, 56), spacing: float = 5.0, strength_mm: float = 8.0
) -> Cohort:
    """Abdominal CT in HU with 13 organs, `ORGANS`."""
    scene = painted(ABDOMEN, AIR_HU, edge_mm=spacing)
    return _cohort(scene, _grid(shape, spacing), n, seed, strength_mm, 380.0, ct)


# -- head and neck ------------------------------------------------------------------------------------------------
HEAD_AND_NECK = ("brain", "mandible", "spinal cord", "left parotid gland", "right parotid gland")
HEAD: tuple[Shape, ...] = (
    Ellipsoid((0, -10, -110), (58, 62, 120), 40),  # neck
    Ellipsoid((0, 0, 30), (78, 96, 92), 35),
    Ellipsoid((0, 0, 34), (72, 90, 84), 950),  # skull
    Ellipsoid((0, 0, 36), (65, 83, 77), 38, 1),
    Ellipsoid((0, 62, -14), (17, 24, 17), -850),  # sinuses
    Ellipsoid((0, 44, -58), (46, 46, 13), 900, 2),  # mandible, a ring
    Ellipsoid((0, 34, -58), (33, 38, 15), 45),
    Ellipsoid((0, 14, -80), (11, 11, 60), -950),  # airway
    Ellipsoid((0, -32, -90), (19, 19, 70), 420),  # spine and cord
    Ellipsoid((0, -36, -80), (8, 8, 90), 35, 3),
    Ellipsoid((-54, -2, -46), (13, 18, 22), -10, 4),
    Ellipsoid((54, -2, -46), (13, 18, 22), -10, 5),
)


def head_cohort(
    n: int, *, seed: int = 0, shape: Vector = (56, 64, 64), spacing: float = 4.0, strength_mm: float = 5.0
) -> Cohort:
    """CT of head and neck in HU with the structures `HEAD_AND_NECK`."""
    scene = painted(HEAD, AIR_HU, edge_mm=spacing)
    return _cohort(scene, _grid(shape, spacing), n, seed, strength_mm, 320.0, ct)


# -- hippocampus --------------------------------------------------------------------------------------------------
HIPPOCAMPUS: tuple[Shape, ...] = (
    Ellipsoid((0, 0, 0), (40, 50, 36), 0.55),
    Ellipsoid((8, -10, 12), (26, 34, 12), 0.75),  # white matter above
    Ellipsoid((-12, 2, -2), (5, 24, 6), 0.22),  # ventricle beside
    Ellipsoid((1, 9, -2), (8, 10, 7), 0.46, 1, 10),  # head
    Ellipsoid((3, -10, 0), (6, 15, 5), 0.42, 2, -12),  # body
)


def hippocampus_cohort(
    n: int, *, seed: int = 0, shape: Vector = (40, 56, 40), spacing: float = 1.0, strength_mm: float = 1.5
) -> Cohort:
    """MR around a hippocampus, its head (label 1) and body (label 2)."""
    grid = _grid(shape, spacing)

    def scan(rng: np.random.Generator, image: Tensor) -> Tensor:
        return mri(rng, image, grid, noise=0.02, bias=0.1, contrast=0.15)

    return _cohort(painted(HIPPOCAMPUS, 0.5), grid, n, seed, strength_mm, 60.0, scan)


# -- prostate -----------------------------------------------------------------------------------------------------
PROSTATE_LABELS = ("gland", "urethra", "cyst")
PROSTATE: tuple[Shape, ...] = (
    Ellipsoid((0, -26, 0), (11, 9, 60), 0.08),  # rectum
    Ellipsoid((0, 24, 22), (22, 16, 14), 0.95),  # bladder
    Ellipsoid((0, 0, 0), (24, 17, 20), 0.78, 1),  # gland: peripheral zone, then the zone inside
    Ellipsoid((0, 3, 2), (16, 11, 14), 0.48, 1),
    Ellipsoid((0, 1, 0), (2.6, 2.6, 17), 0.85, 2),
    Ellipsoid((10, -7, -5), (3.4, 3.2, 3.4), 0.25, 3),
)


def prostate_pairs(
    n: int,
    *,
    seed: int = 0,
    shape: Vector = (48, 48, 44),
    spacing: float = 1.4,
    us_shape: Vector = (44, 40, 40),
    us_spacing: float = 1.3,
    strength_mm: float = 3.0,
) -> list[Pair]:
    """MR (moving) and ultrasound (fixed, pressed by its probe) of one prostate each; labels `PROSTATE_LABELS`."""
    mr_grid, us_grid = _grid(shape, spacing), _grid(us_shape, us_spacing)
    scene, pairs = painted(PROSTATE, 0.38), []
    for index in range(n):
        rng = np.random.default_rng([seed, index, 12])
        seen = [random_map(rng, (0.0,) * 3, strength_mm, half_period_mm=75.0, relative=0.8) for _ in range(2)]
        value, label = drawn(scene, seen[0], mr_grid)
        moving = Subject(mri(rng, value, mr_grid, noise=0.02, bias=0.15, contrast=0.2), label, mr_grid, seen[0])
        value, label = drawn(scene, seen[1], us_grid)
        fixed = Subject(ultrasound(rng, value, us_grid), label, us_grid, seen[1])
        pairs.append(Cohort((fixed, moving), seed).pair(0, 1))
    return pairs


def prostate_cohort(
    n: int,
    *,
    seed: int = 0,
    modality: str = "mr",
    shape: Vector = (48, 48, 44),
    spacing: float = 1.4,
    strength_mm: float = 3.0,
) -> Cohort:
    """Different prostates under one scanner, "mr" or "us"; the gland is label 1."""
    grid, scene = _grid(shape, spacing), painted(PROSTATE, 0.38)

    def scan(rng: np.random.Generator, image: Tensor) -> Tensor:
        if modality == "us":
            return ultrasound(rng, image, grid)
        return mri(rng, image, grid, noise=0.02, bias=0.15, contrast=0.2)

    return _cohort(scene, grid, n, seed, strength_mm, 75.0, scan)


def longitudinal_masks(
    subjects: int, visits: int, *, seed: int = 0, shape: Vector = (44, 44, 40), spacing: float = 1.4
) -> list[Cohort]:
    """Masks of the gland at several visits of each subject: it grows a little from one to the next."""
    grid, scene, cohorts = _grid(shape, spacing), painted(PROSTATE, 0.38), []
    for index in range(subjects):
        rng = np.random.default_rng([seed, index, 13])
        own = random_map(rng, (0.0,) * 3, 3.0, half_period_mm=75.0, relative=1.0)
        change = random_map(rng, (0.0,) * 3, 1.0, half_period_mm=75.0, relative=0.0)
        seen = []
        for visit in range(visits):
            coefficients = own.coefficients + visit * change.coefficients
            shrunk = own.matrix @ torch.diag(torch.tensor([*[1 / (1 + 0.04 * visit)] * 3, 1.0], dtype=torch.float64))
            seen.append(SmoothMap(coefficients, shrunk, own.center, own.half_period_mm))
        drawings = [(drawn(scene, each, grid)[1] > 0, each) for each in seen]
        cohorts.append(Cohort(tuple(Subject(m.float(), m.long(), grid, each) for m, each in drawings), seed))
    return cohorts


# -- heart --------------------------------------------------------------------------------------------------------
HEART_LABELS = ("left ventricle", "myocardium", "right ventricle")
SEQUENCES = ("bssfp", "lge", "t2")
HEART_VALUES = {  # lungs, chest wall, blood, muscle, scar
    "bssfp": (0.08, 0.45, 0.9, 0.32, 0.34),
    "lge": (0.05, 0.5, 0.55, 0.12, 0.9),
    "t2": (0.06, 0.6, 0.2, 0.45, 0.8),
}


def heart(sequence: str) -> Scene:
    """A short axis: rings of blood and muscle, with a scar, in a sequence's contrast."""
    lung, wall, blood, muscle, scar = HEART_VALUES[sequence]
    return painted(
        (
            Ellipsoid((0, 0, 0), (85, 70, 200), wall),
            Ellipsoid((0, 4, 0), (72, 56, 200), lung),
            Ellipsoid((-18, 2, 0), (26, 32, 62), blood, 3, 12),
            Ellipsoid((12, 0, 0), (31, 31, 66), muscle, 2),
            Ellipsoid((30, 14, 0), (9, 9, 22), scar, 2),
            Ellipsoid((12, 0, 4), (21, 21, 60), blood, 1),
        ),
        0.02,
        edge_mm=1.5,
    )


def cardiac_cohort(
    n: int,
    *,
    seed: int = 0,
    shape: Vector = (72, 72, 16),
    spacing: Vector = (2.0, 2.0, 8.0),
    strength_mm: float = 3.0,
    motion_mm: float = 2.0,
) -> list[Cohort]:
    """For each of n subjects its heart in three `SEQUENCES`, which lie apart by `motion_mm`: a breath, a beat."""
    grid, cohorts = _grid(shape, spacing), []
    for index in range(n):
        rng = np.random.default_rng([seed, index, 14])
        own = random_map(rng, (0.0,) * 3, strength_mm, half_period_mm=170.0, relative=1.0)
        subjects = []
        for sequence in SEQUENCES:
            moved = random_map(rng, (0.0,) * 3, motion_mm, half_period_mm=170.0, relative=0.3)
            seen = SmoothMap(own.coefficients + moved.coefficients, own.matrix @ moved.matrix, own.center, 170.0)
            value, label = drawn(heart(sequence), seen, grid)
            scanned = mri(rng, value, grid, noise=0.02, bias=0.15, contrast=0.1)
            subjects.append(Subject(scanned, label, grid, seen))
        cohorts.append(Cohort(tuple(subjects), seed))
    return cohorts


# -- chest --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def chest() -> Scene:
    """A chest in HU: ribs as rings, spine, heart, two lungs with a tree of vessels each."""
    rng = np.random.default_rng(15)
    ribs = [Ellipsoid((0, 0, z), (146, 100, 5), 450) for z in range(-100, 101, 28)]
    trees = [_tree(rng, side) for side in (-1, 1)]
    segments = np.concatenate([tree[0] for tree in trees])
    radii = np.concatenate([tree[1] for tree in trees])
    return painted(
        (
            Ellipsoid((0, 0, 0), (158, 112, 900), -95),
            Ellipsoid((0, 0, 0), (148, 102, 900), 50),
            *ribs,
            Ellipsoid((0, 0, 0), (138, 92, 900), 45),
            Ellipsoid((0, -74, 0), (20, 18, 900), 380),
            Ellipsoid((-68, -4, 6), (54, 74, 118), -860, 1),
            Ellipsoid((68, -4, 6), (54, 74, 118), -860, 1),
            Ellipsoid((-12, 26, -44), (48, 42, 52), 45),
            Tubes(segments, radii, 40.0, 0),
        ),
        AIR_HU,
        edge_mm=2.0,
    )


def _tree(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A branching tree from the middle of the chest into one lung: segments (m, 2, 3) and radii (m,), mm."""
    segments, radii = [], []
    ends = [(np.array([side * 26.0, -8.0, 4.0]), np.array([side * 1.0, 0.0, 0.0]), 5.0, 30.0)]
    while ends:
        start, way, radius, length = ends.pop()
        end = start + length * way
        segments.append(np.stack([start, end]))
        radii.append(radius)
        if radius > 1.6:
            for sign in (-1, 1):
                turn = rng.normal(0, 0.35, 3) + sign * _across(way, rng) * 0.75
                ends.append((end, (way + turn) / np.linalg.norm(way + turn), radius * 0.76, length * 0.82))
    return np.array(segments), np.array(radii)


def _across(way: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    other = np.cross(way, rng.standard_normal(3))
    return np.asarray(other / np.linalg.norm(other))


def breath(rng: np.random.Generator, depth_mm: float) -> SmoothMap:
    """What breathing out does, fixed to moving: the base of the lungs rises by about `depth_mm`, the top little."""
    smooth = random_map(rng, (0.0,) * 3, 0.12 * depth_mm, half_period_mm=340.0, relative=0.05)
    coefficients = smooth.coefficients.clone()
    coefficients[2, 0, 0, 0] -= depth_mm / 2  # v_z = -depth (1 + cos t_z) / 2, t_z from 0 below to pi above
    coefficients[2, 0, 0, 1] -= depth_mm / 2
    coefficients[1, 0, 0, 0] -= depth_mm / 8  # and the chest sinks
    coefficients[1, 0, 1, 0] += depth_mm / 8
    return SmoothMap(coefficients, smooth.matrix, smooth.center, 340.0)


def thorax_cohorts(
    n: int,
    *,
    phases: Sequence[float] = (0.0, 1.0),
    seed: int = 0,
    shape: Vector = (64, 48, 52),
    spacing: float = 5.0,
    depth_mm: float = 22.0,
) -> list[Cohort]:
    """For each of n subjects its chest in phases of a breath, from 0, full, to 1, empty; CT in HU, lungs label 1."""
    grid, cohorts = _grid(shape, spacing), []
    for index in range(n):
        rng = np.random.default_rng([seed, index, 15])
        own = random_map(rng, (0.0,) * 3, 4.0, half_period_mm=340.0, relative=1.0)
        out = breath(rng, depth_mm * rng.uniform(0.8, 1.2))
        subjects = []
        for phase in phases:
            coefficients = own.coefficients + phase * out.coefficients
            seen = SmoothMap(coefficients, own.matrix, own.center, 340.0)
            value, label = drawn(chest(), seen, grid)
            subjects.append(Subject(ct(rng, value), label, grid, seen))
        cohorts.append(Cohort(tuple(subjects), seed))
    return cohorts


def thorax_pair(seed: int = 0, **more: Any) -> Pair:
    """A chest breathed in (fixed) and out (moving); arguments as for `thorax_cohorts`."""
    return thorax_cohorts(1, seed=seed, **more)[0].pair(0, 1)


# -- digits -------------------------------------------------------------------------------------------------------
DIGITS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {  # strokes, x to the right and y up, in [-1, 1]
    0: (((0, 1), (-0.6, 0.6), (-0.6, -0.6), (0, -1), (0.6, -0.6), (0.6, 0.6), (0, 1)),),
    1: (((-0.3, 0.6), (0.1, 1), (0.1, -1)),),
    2: (((-0.6, 0.6), (0, 1), (0.6, 0.6), (0.4, 0), (-0.6, -1), (0.7, -1)),),
    3: (((-0.5, 0.9), (0.4, 0.9), (0.5, 0.4), (-0.1, 0.05), (0.6, -0.4), (0.3, -0.95), (-0.6, -0.9)),),
    4: (((0.3, -1), (0.3, 1), (-0.7, -0.2), (0.7, -0.2)),),
    5: (((0.6, 1), (-0.5, 1), (-0.5, 0.2), (0.3, 0.2), (0.6, -0.4), (0.2, -1), (-0.6, -0.9)),),
    6: (((0.5, 0.95), (-0.4, 0.4), (-0.6, -0.4), (0, -1), (0.6, -0.5), (0.1, 0), (-0.55, -0.3)),),
    7: (((-0.6, 1), (0.6, 1), (-0.1, -1)),),
    8: (((0, 0.05), (-0.5, 0.5), (0, 1), (0.5, 0.5), (0, 0.05), (-0.6, -0.5), (0, -1), (0.6, -0.5), (0, 0.05)),),
    9: (((0.55, 0.4), (0, 0), (-0.5, 0.5), (0, 1), (0.55, 0.5), (0.5, -0.2), (0.2, -1)),),
}


def digit(number: int, *, half_mm: float = 9.0, radius_mm: float = 1.5) -> Scene:
    """A digit of strokes, 2-D, upright in a picture whose first axis runs down; what is inked is label 1."""
    strokes = [np.array(stroke)[:, ::-1] * [-half_mm, 0.8 * half_mm] for stroke in DIGITS[number]]
    segments = np.concatenate([np.stack([stroke[:-1], stroke[1:]], axis=1) for stroke in strokes])
    return painted((Tubes(segments, np.full(len(segments), radius_mm), 1.0, 1),), 0.0)


def digit_cohort(n: int, number: int, *, seed: int = 0, size: int = 28, strength_mm: float = 1.2) -> Cohort:
    """One digit written n times, `size` x `size` pixels of 1 mm."""
    grid = _grid((size, size), 1.0)
    return _cohort(digit(number), grid, n, seed + 1000 * number, strength_mm, 34.0, lambda _, image: image.clamp(0, 1))
