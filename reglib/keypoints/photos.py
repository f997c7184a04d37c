"""Photographs from files, and what is made of them before anything is looked for.

A photograph is an array (height, width, 3), RGB, of 8 or 16 bits. A place on it is (x, y) in pixels: x to the right, y
down, the middle of the first pixel at 0, as in OpenCV and in the field's files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Photo = Shaped[np.ndarray, "_h _w 3"]
SMALLEST = 64  # pixels along the shorter side
HOLE = 15  # pixels across, of a dark spot that is no surround
DARK = 0.12  # share of the bright parts' value that the surround is below


def load_photo(path: str | os.PathLike[str]) -> Photo:
    """Read a picture: gray becomes RGB, an alpha channel goes, 16 bits stay, and a camera's turn is undone.

    Raises: FileNotFoundError; ValueError if it is no picture, too small, or blank.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}. Check the path.")
    found = (
        cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if path.stat().st_size
        else None
    )
    if found is None:
        raise ValueError(f"{path} must be a picture, such as .jpg, .png, .tif or .pgm; it cannot be read as one.")
    if found.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path} must have 8 or 16 bits a channel; it has {found.dtype}; save it as PNG.")
    return checked_photo(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), str(path))


def checked_photo(photo: np.ndarray, name: str = "the photograph") -> Photo:
    """A photograph as it is.

    Raises: ValueError if it is none, too small, or blank.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{name} must be (height, width, 3) of 8 or 16 bits; got {photo.shape} of {photo.dtype}; load_photo reads "
            "such from a file."
        )
    if min(photo.shape[:2]) < SMALLEST:
        raise ValueError(
            f"{name} must be at least {SMALLEST} pixels wide and high; it is {photo.shape[1]} x {photo.shape[0]}."
        )
    if photo[..., 1].min() == photo[..., 1].max():
        raise ValueError(f"{name} is blank: every pixel has the same green. Is it the right file?")
    return photo


def preprocess(
    photo: Photo, *, size: int | tuple[int, int] = 768, clip: float = 2.0, tiles: int = 8, gamma: float = 1.2
) -> Float[Tensor, "1 1 h w"]:
    """The green channel, in which vessels stand out most, with even contrast, small, from 0 to 1.

    Args:
        size: of the longer side, or (height, width), in pixels.
        clip, tiles: of the adaptive histogram equalization (CLAHE).
        gamma: dark parts are lifted by the power 1 / gamma.

    Source: `pre_processing` of SuperRetina.   Differs: keeps the photograph's proportions unless both sides are given.
    """
    green = checked_photo(photo)[..., 1].astype(np.float32)
    green = (green - green.min()) * (255 / (green.max() - green.min()))
    even = cv2.createCLAHE(clipLimit=clip, tileGridSize=(tiles, tiles)).apply(green.astype(np.uint8))
    lifted = (np.linspace(0, 1, 256) ** (1 / gamma) * 255).astype(np.uint8)[even]
    height, width = working_size(photo, size)
    shrinks = height * width < lifted.size
    small = cv2.resize(lifted, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return torch.from_numpy(small).float().div(255)[None, None]


def field_of_view(photo: Photo, shape: Sequence[int], *, margin: int = 10) -> Bool[np.ndarray, "h w"]:
    """Where a camera with a dark surround sees the eye: pixels of a preprocessed image (h, w) that are well inside.

    What lies along the rim belongs to the camera, and would be at the same place of every photograph.

    Args: margin: pixels from the rim.
    """
    small = cv2.resize(photo.max(2), (shape[-1], shape[-2]), interpolation=cv2.INTER_AREA).astype(np.float32)
    bright = cv2.GaussianBlur(small, (0, 0), 1.0) > DARK * np.percentile(small, 95)
    framed = np.pad(bright.astype(np.uint8), HOLE)
    closed = cv2.morphologyEx(framed, cv2.MORPH_CLOSE, np.ones((HOLE, HOLE), np.uint8))[HOLE:-HOLE, HOLE:-HOLE]
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    inside = cv2.erode(closed, disc, borderValue=1)  # what leaves the picture has no rim there
    return inside.astype(bool)


def working_size(photo: Photo, size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width), multiples of 8."""
    if isinstance(size, tuple):
        return size
    height, width = photo.shape[:2]
    shrink = size / max(height, width)
    return max(8 * round(height * shrink / 8), 32), max(8 * round(width * shrink / 8), 32)


def full_from_working(photo: Photo, image: Tensor) -> Float[np.ndarray, "3 3"]:
    """The matrix from pixels of a preprocessed image to those of its photograph; both share their outer edges."""
    scales = [n / m for n, m in zip(photo.shape[1::-1], (image.shape[-1], image.shape[-2]), strict=True)]
    return np.array([[scales[0], 0, (scales[0] - 1) / 2], [0, scales[1], (scales[1] - 1) / 2], [0, 0, 1]])


# -- to look at ---------------------------------------------------------------------------------------------------
def warp_photo(photo: Photo, homography: Float[np.ndarray, "3 3"], shape: Sequence[int]) -> Photo:
    """A query laid on a reference of `shape` (height, width, ...), by the map of its pixels to those; 0 outside."""
    return cv2.warpPerspective(photo, homography, (shape[1], shape[0]), flags=cv2.INTER_LINEAR)


def checkered(warped: Photo, reference: Photo, *, tiles: int = 8) -> Photo:
    """Squares of one and of the other in turn, so many along the shorter side: vessels must go on across borders."""
    if warped.shape != reference.shape:
        raise ValueError(
            f"both must be of one shape; got {warped.shape} and {reference.shape}; warp_photo lays one on the other."
        )
    tile = max(min(reference.shape[:2]) // tiles, 1)
    rows, columns = np.indices(reference.shape[:2]) // tile
    return np.where(((rows + columns) % 2 == 0)[..., None], warped, reference)
