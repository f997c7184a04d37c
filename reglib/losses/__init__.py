"""Scalars to minimize: plain functions, lower is better, prediction first, a mean over the batch.

`image` compares intensities, `label` overlaps, `point` landmarks, `field` says what a plausible field is.
"""

from .field import bending_loss, diffusion_loss
from .image import lncc_loss, lncc_sums, mi_loss, mse_loss, ncc_loss
from .label import dice_loss
from .point import tre_loss

__all__ = [
    "bending_loss",
    "dice_loss",
    "diffusion_loss",
    "lncc_loss",
    "lncc_sums",
    "mi_loss",
    "mse_loss",
    "ncc_loss",
    "tre_loss",
]
