"""Displacement algebra: warp, compose, exponentiate, invert and measure dense fields.

Convention:
    warped[p] = moving[p + ddf[p]], p over the voxels of the fixed grid. A ddf is (b, d, *s): component k moves
    along tensor axis k + 2, in voxels of the fixed grid, from fixed to moving. A velocity has the same layout.
    Points are voxel coordinates, components last; `warp_points` takes fixed points to moving points.
    Every coordinate means `align_corners=True`.

`sampling` reads images and fields, `algebra` combines maps, `calculus` differentiates them.
"""

from .algebra import (
    Inverse,
    affine_ddf,
    compose,
    compose_velocities,
    convert_ddf,
    exponential,
    identity_ddf,
    inverse,
    lie_bracket,
    logarithm,
    resize_ddf,
    squarings,
    unfold,
)
from .calculus import curl, divergence, divergence_free, jacobian, jacobian_determinant, magnitude
from .sampling import Grids, Mode, resample, sample, valid_mask, warp, warp_labels, warp_points

__all__ = [
    "Grids",
    "Inverse",
    "Mode",
    "affine_ddf",
    "compose",
    "compose_velocities",
    "convert_ddf",
    "curl",
    "divergence",
    "divergence_free",
    "exponential",
    "identity_ddf",
    "inverse",
    "jacobian",
    "jacobian_determinant",
    "lie_bracket",
    "logarithm",
    "magnitude",
    "resample",
    "resize_ddf",
    "sample",
    "squarings",
    "unfold",
    "valid_mask",
    "warp",
    "warp_labels",
    "warp_points",
]
