"""Parametric models of a map from fixed to moving, each a `torch.nn.Module` that lives on a grid.

Convention:
    Linear models hold mm and radians and act on world points: x -> base C P C^-1 x, about the center C of their grid.
    Dense models hold voxels of their grid. `ddf(grid)` gives the map on any grid, `points(x)` takes fixed world
    points to moving world points, `inverse()` the way back, `at(grid)` the same map with parameters for another grid.

`linear` are matrices, `dense` fields of one vector a voxel, `bspline` and `kernel` fields of a coarse lattice,
`combine` several models as one, `fit` the numerics of `transform.fit(ddf)` and `fit_points`.
"""

from .base import Inverse, Transform
from .bspline import FreeFormDeformation, VelocityFreeForm
from .combine import MultiLevel, Sequential
from .dense import Dense, DenseDisplacement, Diffeomorphism, StationaryVelocity, SymmetricDiffeomorphism
from .kernel import KernelDisplacement
from .linear import (
    Affine,
    Linear,
    QuaternionRigid,
    Rigid,
    Similarity,
    Translation,
    fit_points,
    quaternion_rotation,
    rotation,
)

__all__ = [
    "Affine",
    "Dense",
    "DenseDisplacement",
    "Diffeomorphism",
    "FreeFormDeformation",
    "Inverse",
    "KernelDisplacement",
    "Linear",
    "MultiLevel",
    "QuaternionRigid",
    "Rigid",
    "Sequential",
    "Similarity",
    "StationaryVelocity",
    "SymmetricDiffeomorphism",
    "Transform",
    "Translation",
    "VelocityFreeForm",
    "fit_points",
    "quaternion_rotation",
    "rotation",
]
