"""Networks that register: a pair of images in, one type of `Prediction` out.

    network = networks.voxelmorph(dim=3)
    prediction = network(fixed, moving)          # .ddf, .velocity; absent ones are None
    warped = field.warp(moving, prediction.ddf)

`backbones` look, `heads` say, `registration` puts them together and holds the networks by name; weights of
VoxelMorph's published code are read by `checkpoints`.
"""

from .checkpoints import load_voxelmorph
from .prediction import Prediction
from .registration import RegistrationNetwork, conditional, globalnet, keymorph, localnet, unet, voxelmorph

__all__ = [
    "Prediction",
    "RegistrationNetwork",
    "conditional",
    "globalnet",
    "keymorph",
    "load_voxelmorph",
    "localnet",
    "unet",
    "voxelmorph",
]
