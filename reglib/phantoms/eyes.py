"""The backs of eyes: vessel trees grown by rule, photographed twice by maps that are known.

A photograph is (height, width, 3), RGB, 8 bits; places are (x, y) in its pixels. Everything of an eye is drawn once, on
a canvas of unit width, and each photograph reads it through a map of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Shaped

Points = Float[np.ndarray, "_n 2"]
CANVAS = 2048  # pixels along each side of what is drawn
ARCADES = (-52.0, 52.0, -148.0, 148.0)  # degrees in which the four main vessels leave the disc; 0 is toward the fovea
THICKEST, THINNEST = 0.0080, 0.0011  # radii, in widths of the canvas
STEP = 0.004  # widths of the canvas from one place of a path to the next
CELLS = 160  # along each side, in which vessels notice each other
TIP = 0.05  # length over which a vessel that ends grows thin
FOVEA = np.array([0.26, 0.02])  # from the disc
MOTTLE = ((0.05, 5), (0.025, 20), (0.007, 90), (0.003, 300))  # of the ground: its spread, and how many cells wide
FIELD = 0.47  # radius of what a camera sees, in widths of its photograph


class Vessel(NamedTuple):
    """A path (n, 2) on the canvas from 0 to 1, the radius at each place, and whether it is a vein."""

    path: Points
    radius: Float[np.ndarray, " n"]
    vein: bool


@dataclass(frozen=True)
class Eye:
    """A drawn eye: its canvas, and where vessels branch, (n, 2) in [0, 1]."""

    canvas: Shaped[np.ndarray, "side side 3"]
    branchings: Points
    vessels: tuple[Vessel, ...]


class View(NamedTuple):
    """Where a photograph reads the canvas: a homography from its unit square, then a quadratic bulge."""

    matrix: Float[np.ndarray, "3 3"]
    bulge: Float[np.ndarray, "3 2"]

    def to_canvas(self, points: Points) -> Points:
        """From (x, y) in [0, 1] of the photograph."""
        moved = np.column_stack([points, np.ones(len(points))]) @ self.matrix.T
        flat = moved[:, :2] / moved[:, 2:]
        x, y = (flat - 0.5).T
        return flat + np.column_stack([x * x, x * y, y * y]) @ self.bulge

    def from_canvas(self, points: Points) -> Points:
        """Back, by fixed point; the bulge is slight."""
        flat = points.copy()
        for _ in range(30):
            x, y = (flat - 0.5).T
            flat = points - np.column_stack([x * x, x * y, y * y]) @ self.bulge
        moved = np.column_stack([flat, np.ones(len(flat))]) @ np.linalg.inv(self.matrix).T
        return moved[:, :2] / moved[:, 2:]


@dataclass(frozen=True)
class EyePair:
    """Two photographs of one eye and the exact map from query to reference, in pixels."""

    query: Shaped[np.ndarray, "h w 3"]
    reference: Shaped[np.ndarray, "h w 3"]
    to_reference: Callable[[Points], Points]
    query_branchings: Points
    reference_branchings: Points


# -- an eye -------------------------------------------------------------------------------------------------------
def eye(seed: int, *, texture: Shaped[np.ndarray, "h w 3"] | None = None) -> Eye:
    """An eye of its own for each seed; with the colors and shades of a photograph if one is given as `texture`."""
    rng = np.random.default_rng([seed, 80])
    disc = np.array([0.5 - rng.uniform(0.13, 0.17), 0.5 + rng.uniform(-0.02, 0.02)])
    vessels, branchings = _grown(rng, disc)
    canvas = _fundus(rng, disc) if texture is None else _without_vessels(texture)
    canvas = _with_disc(canvas, disc, rng)
    for vessel in vessels:
        canvas = _with_vessel(canvas, vessel)
    return Eye(np.clip(canvas, 0, 255).astype(np.uint8), np.array(branchings).reshape(-1, 2), tuple(vessels))


def _grown(rng: np.random.Generator, disc: np.ndarray) -> tuple[list[Vessel], list[np.ndarray]]:
    """Arteries and veins that leave the disc, bend around the fovea, and branch by Murray's law.

    The thickest grow first. One of a kind ends where another of its kind is, and no vessel enters the fovea.
    """
    vessels: list[Vessel] = []
    branchings: list[np.ndarray] = []
    taken = {vein: np.zeros((CELLS, CELLS), int) for vein in (False, True)}
    sprouts: list[_Sprout] = []
    for vein in (False, True):
        for angle in ARCADES:
            heading = math.radians(angle + rng.normal(0, 8) + (8 if vein else -8) * np.sign(angle))
            thick = THICKEST * (1.0 if vein else 0.75) * rng.uniform(0.85, 1.0) * (1.0 if abs(angle) < 90 else 0.65)
            bend = -np.sign(angle) * (2.6 if abs(angle) < 90 else 0.5) * rng.uniform(0.8, 1.2)
            start = disc + 0.012 * np.array([math.cos(heading), math.sin(heading)])
            sprouts.append(_Sprout(start, heading, thick, vein, float(bend)))
    while sprouts:
        sprout = sprouts.pop(max(range(len(sprouts)), key=lambda k: sprouts[k].thick))
        path, radii, forks = _followed(rng, sprout, disc + FOVEA, taken[sprout.vein], len(vessels) + 1)
        if len(path) * STEP < 0.02:
            continue  # it ended where it began
        left = STEP * np.arange(len(path))[::-1]  # of its way: it ends in a tip
        vessels.append(Vessel(np.array(path), np.array(radii) * np.minimum(left / TIP, 1.0), sprout.vein))
        if sprout.bend == 0:
            branchings.append(path[0])
        sprouts += forks
    return vessels, [b for b in branchings if np.linalg.norm(b - disc) > 0.06]


class _Sprout(NamedTuple):
    """Where a vessel begins, its heading in radians, its radius, and how it bends; main ones alone bend on purpose."""

    start: np.ndarray
    heading: float
    thick: float
    vein: bool
    bend: float = 0.0


def _followed(
    rng: np.random.Generator, sprout: _Sprout, fovea: np.ndarray, taken: np.ndarray, number: int
) -> tuple[list[np.ndarray], list[float], list[_Sprout]]:
    """The path of a vessel, its radii, and what branches off it; `taken` notes which vessel is where."""
    at, heading, thick, vein, bend = sprout
    path, radii, forks = [at], [thick], []
    length, drift, until, side = 0.0, 0.0, rng.uniform(0.03, 0.08), rng.choice([-1.0, 1.0])
    while thick > THINNEST and np.all((at > 0.0) & (at < 1.0)) and np.linalg.norm(at - fovea) > 0.05:
        drift = 0.93 * drift + rng.normal(0, 0.9 + 0.9 * (1 - thick / THICKEST))
        heading += STEP * (bend * math.exp(-2.0 * length) + drift + _shy(at - fovea, heading))
        at = at + STEP * np.array([math.cos(heading), math.sin(heading)])
        length += STEP
        thick *= 1 - STEP * (0.3 + 1.5 * (1 - thick / THICKEST))
        row, column = (at[::-1] * CELLS).astype(int).clip(0, CELLS - 1)
        if length > 0.03 and taken[row, column] not in (0, number):
            break
        taken[row, column] = number
        path.append(at)
        radii.append(thick)
        if length > until:
            until = length + rng.uniform(0.03, 0.11)
            side = -side if rng.random() < 0.75 else side
            share = rng.uniform(0.1, 0.5)  # of the flow, which goes as the cube of the radius
            small, large = thick * share ** (1 / 3), thick * (1 - share) ** (1 / 3)
            if small > 1.3 * THINNEST:
                fork = math.radians(rng.uniform(35, 65))
                forks.append(_Sprout(at, heading + side * fork, small, vein))
                heading -= side * math.radians(rng.uniform(3, 12)) * (small / thick)
                thick = large
    return path, radii, forks


def _shy(from_fovea: np.ndarray, heading: float) -> float:
    """How fast a vessel turns away from the fovea, in radians a width of the canvas."""
    apart = float(np.linalg.norm(from_fovea))
    side = math.cos(heading) * from_fovea[1] - math.sin(heading) * from_fovea[0]  # whether it lies to the right
    return math.copysign(25.0, side) * math.exp(-((apart / 0.11) ** 2))


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise of a spread of 1, so many cells wide."""
    small = rng.normal(size=(cells, cells)).astype(np.float32)
    return cv2.resize(small, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)


def _fundus(rng: np.random.Generator, disc: np.ndarray) -> np.ndarray:
    """A ground of orange with the mottling of the choroid, and a dark fovea."""
    tint = (np.array([190.0, 95.0, 45.0]) * rng.uniform(0.85, 1.1, 3)).astype(np.float32)
    mottled = np.ones((CANVAS, CANVAS), np.float32)
    for weight, cells in MOTTLE:
        mottled += weight * _noise(rng, cells)
    ground = tint * mottled[..., None]
    line = np.linspace(0, 1, CANVAS)
    across, down = (np.exp(-((line - at) ** 2) / (2 * 0.045**2)) for at in disc + FOVEA)
    return ground * (1 - 0.35 * np.outer(down, across)).astype(np.float32)[..., None]


def _without_vessels(photo: np.ndarray) -> np.ndarray:
    """The ground of a photograph, its own vessels taken out, on a canvas."""
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    inner = round(0.17 * side)  # what is seen in its round field's middle
    square = photo[top + inner : top + side - inner, left + inner : left + side - inner]
    ground = cv2.resize(square, (256, 256), interpolation=cv2.INTER_AREA)
    ground = cv2.medianBlur(ground, 31)
    fine = cv2.resize(square, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    grain = fine - cv2.GaussianBlur(fine, (0, 0), 4)
    return cv2.resize(ground, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC).astype(np.float32) + 0.5 * grain.clip(
        -6, 6
    )


def _with_disc(canvas: np.ndarray, disc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    radius = rng.uniform(0.040, 0.050)
    corner, end = (((disc + sign * 2.5 * radius) * CANVAS).astype(int).clip(0, CANVAS) for sign in (-1, 1))
    x, y = np.meshgrid(*(np.arange(a, b, dtype=np.float32) / (CANVAS - 1) for a, b in zip(corner, end, strict=True)))
    apart = np.hypot((x - disc[0]) / radius, (y - disc[1]) / (1.12 * radius))
    bright = 1 / (1 + np.exp((apart - 1) * 14))
    cup = np.exp(-((apart / 0.5) ** 2))
    color = np.array([235.0, 190.0, 120.0]) + cup[..., None] * np.array([15.0, 35.0, 45.0])
    part = canvas[corner[1] : end[1], corner[0] : end[0]]
    part += bright[..., None] * 0.85 * (color - part)
    return canvas


def _with_vessel(canvas: np.ndarray, vessel: Vessel) -> np.ndarray:
    """A vessel drawn over the canvas: veins dark and wide, arteries with a bright line along their middle."""
    corner = np.floor((vessel.path.min(0) - 0.02) * CANVAS).astype(int).clip(0, CANVAS - 2)
    end = np.ceil((vessel.path.max(0) + 0.02) * CANVAS).astype(int).clip(1, CANVAS - 1)
    if (end - corner < 2).any():
        return canvas
    mask = _stroke(vessel.path, vessel.radius, corner, end)
    part = canvas[corner[1] : end[1], corner[0] : end[0]]
    color = np.array([0.76, 0.60, 0.66]) if vessel.vein else np.array([0.86, 0.71, 0.74])
    part *= 1 - mask[..., None] * (1 - color.astype(np.float32))
    if not vessel.vein:
        gleam = _stroke(vessel.path, 0.3 * vessel.radius, corner, end)
        part += gleam[..., None] * np.array([14.0, 11.0, 6.0], np.float32)
    return canvas


def _stroke(path: np.ndarray, radius: np.ndarray, corner: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How much of each pixel a line covers whose width changes along it."""
    fine, bits = 2, 4
    width, height = (end - corner) * fine
    drawn = np.zeros((height, width), np.uint8)
    places = ((path * CANVAS - corner) * fine * (1 << bits)).astype(int)
    for a, b, r in zip(places[:-1], places[1:], radius[:-1], strict=True):
        wide = max(round(2 * float(r) * CANVAS * fine), 1)
        depth = round(255 * min(1.0, 0.3 + float(r) / (0.5 * THICKEST)))  # thin ones hide less of the ground
        cv2.line(drawn, a.tolist(), b.tolist(), depth, wide, cv2.LINE_AA, bits)
    covered = cv2.resize(drawn, (width // fine, height // fine), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(covered, (0, 0), 1.0).astype(np.float32) / 255


# -- photographs --------------------------------------------------------------------------------------------------
def view(
    rng: np.random.Generator,
    *,
    turn_deg: float = 8.0,
    scale: float = 0.06,
    shift: float = 0.06,
    perspective: float = 0.03,
    bulge: float = 0.01,
) -> View:
    """A random view of the middle of a canvas; each number is the most that may happen."""
    angle, grown = math.radians(rng.uniform(-turn_deg, turn_deg)), math.exp(rng.uniform(-scale, scale))
    cos, sin = math.cos(angle) * grown * 0.72, math.sin(angle) * grown * 0.72
    to_middle = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-perspective, perspective, 2) * 2
    back = np.eye(3)
    back[:2, 2] = 0.5 + rng.uniform(-shift, shift, 2)
    return View(back @ turn @ tilt @ to_middle, rng.uniform(-bulge, bulge, (3, 2)) * 2)


def photograph(
    subject: Eye,
    through: View,
    rng: np.random.Generator,
    *,
    size: int = 768,
    light: float = 0.25,
    blur: float = 0.0,
    noise: float = 2.0,
) -> Shaped[np.ndarray, "side side 3"]:
    """What a camera with a round field sees of an eye.

    Args:
        size: pixels along each side.
        light: how uneven the flash is, and how far its color is off.
        blur: sigma in pixels of the photograph, out of focus.
        noise: spread of what the sensor adds, of 255.
    """
    unit = (np.stack(np.meshgrid(*2 * [np.arange(size)]), axis=-1).reshape(-1, 2) + 0.5) / size
    at = (through.to_canvas(unit) * CANVAS - 0.5).astype(np.float32).reshape(size, size, 2)
    shrink = CANVAS * 0.72 / size
    canvas = cv2.GaussianBlur(subject.canvas, (0, 0), max(0.4 * shrink, 0.3)).astype(np.float32)
    seen = cv2.remap(canvas, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    x, y = unit.astype(np.float32).T.reshape(2, size, size)
    middle = rng.uniform(0.3, 0.7, 2)
    fall = 1 - np.float32(light * 2.2) * ((x - middle[0]) ** 2 + (y - middle[1]) ** 2)
    lit: np.ndarray = seen * fall[..., None]
    lit *= rng.uniform(1 - 0.6 * light, 1 + 0.4 * light, 3).astype(np.float32)
    if blur > 0:
        lit = cv2.GaussianBlur(lit, (0, 0), blur)
    lit += np.float32(noise) * rng.standard_normal(lit.shape, dtype=np.float32)
    inside = np.hypot(x - 0.5, y - 0.5) < FIELD
    return np.where(inside[..., None], lit.clip(3, 255), 0).astype(np.uint8)


def retina_pair(
    seed: int,
    *,
    size: int = 768,
    category: str = "S",
    subject: Eye | None = None,
    texture: Shaped[np.ndarray, "h w 3"] | None = None,
) -> EyePair:
    """Two photographs of the eye of a seed.

    Args:
        category: as in FIRE, "S": nearly the same view; "P": little overlap; "A": another day, with other light, blur
            and new spots.
        subject: an eye, instead of the one of this seed.
        texture: as for `eye`.
    """
    kinds = {
        "S": {"shift": 0.05},
        "P": {"shift": 0.17, "turn_deg": 15.0, "perspective": 0.05, "bulge": 0.015},
        "A": {"shift": 0.07},
    }
    if category not in kinds:
        raise ValueError(f"category must be S, P or A; got {category!r}.")
    owner = subject or eye(seed, texture=texture)
    rng = np.random.default_rng([seed, 81, ord(category)])
    views = [view(rng, **kinds[category]) for _ in range(2)]
    looks = [{}, {"light": 0.45, "blur": 1.2 * size / 768, "noise": 4.0}] if category == "A" else [{}, {}]
    shown = [owner, _changed(owner, rng) if category == "A" else owner]
    query, reference = (
        photograph(each, through, rng, size=size, **look)
        for each, through, look in zip(shown, views, looks, strict=True)
    )

    def to_reference(points: Points) -> Points:
        return views[1].from_canvas(views[0].to_canvas((points + 0.5) / size)) * size - 0.5

    seen = [_seen(through.from_canvas(owner.branchings) * size - 0.5, size) for through in views]
    return EyePair(query, reference, to_reference, *seen)


def _seen(points: Points, size: int) -> Points:
    """Those in the round field, not at its edge."""
    return points[np.hypot(*((points + 0.5) / size - 0.5).T) < FIELD - 0.02]


def _changed(subject: Eye, rng: np.random.Generator) -> Eye:
    """The eye after some years: bleedings, dark, and deposits, bright."""
    canvas = subject.canvas.astype(np.float32)
    for _ in range(rng.integers(15, 40)):
        at, radius = rng.uniform(0.15, 0.85, 2) * CANVAS, rng.uniform(0.002, 0.008) * CANVAS
        spot = np.zeros(canvas.shape[:2], np.uint8)
        axes = (int(radius), max(int(radius * rng.uniform(0.5, 1)), 1))
        cv2.ellipse(spot, at.astype(int).tolist(), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
        amount = cv2.GaussianBlur(spot, (0, 0), 2.5).astype(np.float32)[..., None] / 255
        bright = rng.random() < 0.5
        color = np.array([235.0, 215.0, 150.0]) if bright else np.array([110.0, 30.0, 20.0])
        canvas += 0.8 * amount * (color - canvas)
    return Eye(np.clip(canvas, 0, 255).astype(np.uint8), subject.branchings, subject.vessels)
