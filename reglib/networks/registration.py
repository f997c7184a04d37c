"""Registration networks: a pair of images in, a `Prediction` out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import field, filters
from ..grid import Grid, require_on_grid
from .backbones import Backbone, Encoder, Twins, UNet, VoxelMorphUNet
from .blocks import LAYOUT, padded
from .heads import AffineHead, Displacement, KeypointHead, Label, Output, Velocity
from .prediction import Prediction

Grids = Grid | Sequence[Grid] | None  # one for a batch, or one for each of its pairs


class RegistrationNetwork(nn.Module):
    """A backbone and a head. Images may have any size from one voxel up, and the moving one another than the fixed one.

    The moving image is laid on the fixed grid, through the world where grids are given, else so that first and last
    voxels meet; both are padded to what the backbone can halve; the prediction is on the fixed grid.

    Args:
        channels: of the fixed and of the moving image.
        takes_label: whether the moving label is an input too.
    """

    def __init__(
        self, dim: int, backbone: Backbone, head: nn.Module, *, channels: int = 1, takes_label: bool = False
    ) -> None:
        super().__init__()
        self.dim, self.channels, self.takes_label = dim, channels, takes_label
        self.backbone, self.head = backbone, head
        self.to(memory_format=LAYOUT[dim])  # type: ignore[call-overload]

    def forward(
        self,
        fixed: Float[Tensor, "b c *s"],
        moving: Float[Tensor, "_b _c *t"],
        *,
        moving_label: Float[Tensor, "_b _k *t"] | None = None,
        fixed_grid: Grids = None,
        moving_grid: Grids = None,
    ) -> Prediction:
        """Predict.

        Args:
            moving: as many images as fixed ones, of as many channels.
            moving_label: one mask each, (b, 1, *t), for a network that predicts a label.
            fixed_grid, moving_grid: where the voxels are, as a batch of `reglib.data` says; both or neither.

        Raises: ValueError, GridMismatchError for what does not fit.
        """
        self._check(fixed, moving, moving_label)
        where = _shared(fixed_grid, len(fixed), "fixed_grid"), _shared(moving_grid, len(fixed), "moving_grid")
        laid = [_laid(x, fixed, *where) for x in (moving, moving_label) if x is not None]
        images = torch.cat([laid[0], fixed, *laid[1:]], dim=1)
        x = padded(images, self.backbone.multiple).contiguous(memory_format=LAYOUT[self.dim])
        prediction: Prediction = self.head(self.backbone(x), x.shape[2:], fixed.shape[2:])
        if prediction.affine is None or not where[0]:
            return prediction
        return prediction._replace(affine=_in_the_world(prediction.affine, where[0]))

    def _check(self, fixed: Tensor, moving: Tensor, label: Tensor | None) -> None:
        for image, name in ((fixed, "fixed"), (moving, "moving")):
            if image.ndim != self.dim + 2 or image.shape[1] != self.channels or 0 in image.shape:
                raise ValueError(
                    f"{name} must be (b, {self.channels}, *{self.dim} sizes) for this network; got "
                    f"{tuple(image.shape)}."
                )
        if len(fixed) != len(moving):
            raise ValueError(f"fixed and moving must be as many; got {len(fixed)} and {len(moving)}.")
        if self.takes_label and label is None:
            raise ValueError("this network moves a label; give moving_label, (b, 1, *sizes) of the moving image.")
        if not self.takes_label and label is not None:
            raise ValueError("this network predicts a map and takes no label; warp the label by its ddf.")
        if label is not None and (label.shape[:2] != (len(moving), 1) or label.shape[2:] != moving.shape[2:]):
            raise ValueError(
                f"moving_label must be one mask on the moving image's grid, {(len(moving), 1, *moving.shape[2:])}; got "
                f"{tuple(label.shape)}; draw one structure, or pass them one after another."
            )


def _shared(grids: Grids, batch: int, name: str) -> tuple[Grid, ...]:
    """One grid of a batch as one, several as they are; none for None.

    Raises: ValueError if there is not one for each pair.
    """
    if grids is None:
        return ()
    if isinstance(grids, Grid):
        return (grids,)
    if len(grids) != batch:
        raise ValueError(f"{name} must be one grid, or one for each of {batch} pairs; got {len(grids)}.")
    return (grids[0],) if all(grid == grids[0] for grid in grids) else tuple(grids)


def _laid(image: Tensor, fixed: Tensor, fixed_grids: Sequence[Grid], moving_grids: Sequence[Grid]) -> Tensor:
    """The moving image, or its label, at the fixed image's voxels."""
    if bool(fixed_grids) != bool(moving_grids):
        raise ValueError("give fixed_grid and moving_grid together, or neither; only one was given.")
    if not fixed_grids:
        return image if image.shape[2:] == fixed.shape[2:] else filters.resize(image, fixed.shape[2:])
    if fixed_grids == moving_grids:
        require_on_grid(image, moving_grids[0], "moving")
        return image
    count = len(image)
    pairs = zip(_each(moving_grids, count), _each(fixed_grids, count), image, strict=True)
    return torch.cat([field.resample(one[None], own, grid) for own, grid, one in pairs])


def _each(grids: Sequence[Grid], count: int) -> Sequence[Grid]:
    return list(grids) * count if len(grids) == 1 else grids


def _in_the_world(affine: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Matrices of voxels of the fixed grids as matrices of the world."""
    world = torch.stack([grid.world_from_voxel for grid in grids]).to(affine)
    voxel = torch.stack([grid.voxel_from_world for grid in grids]).to(affine)
    return world @ affine @ voxel


# -- the networks by name -----------------------------------------------------------------------------------------
def voxelmorph(
    dim: int = 3,
    *,
    encoder: Sequence[int] = (16, 32, 32, 32),
    decoder: Sequence[int] = (32, 32, 32, 32),
    final: Sequence[int] = (32, 16, 16),
    output: Output = "velocity",
    steps: int | None = 7,
    downsampling: int = 2,
    control_points: int | Sequence[int] | None = None,
    channels: int = 1,
    half: bool = False,
    published: bool = False,
) -> RegistrationNetwork:
    """VoxelMorph: a U-Net, and a velocity at half the resolution whose flow is the ddf.

    Args:
        encoder, decoder: channels of each level; sizes are padded to a multiple of 2**levels.
        final: channels of the convolutions at full size.
        output: "velocity", or "ddf" for a displacement without integration.
        steps, downsampling, published: see `heads.Velocity`.
        control_points: distance of B-spline control points, voxels; None for a field of every voxel.
        half: do not enlarge to full size for a velocity that lives at half of it; bfloat16 steps take half the time.

    Source: Balakrishnan et al. 2019, doi:10.1109/TMI.2019.2897538; Dalca et al. 2019, doi:10.1016/j.media.2019.07.006.
    """
    backbone = VoxelMorphUNet(dim, 2 * channels, encoder=encoder, decoder=decoder, final=final, half=half)
    flow = {"steps": steps, "downsampling": downsampling, "published": published}
    head = _head(dim, backbone, output, control_points, flow)
    return RegistrationNetwork(dim, backbone, head, channels=channels)


def unet(
    dim: int = 3,
    *,
    initial: int = 16,
    depth: int = 3,
    levels: Sequence[int] = (0,),
    pooling: bool = True,
    concat_skip: bool = False,
    output: Output = "ddf",
    steps: int | None = 7,
    control_points: int | Sequence[int] | None = None,
    channels: int = 1,
) -> RegistrationNetwork:
    """DeepReg's U-Net; see `backbones.UNet` and, for a velocity, `heads.Velocity`."""
    shape: dict[str, Any] = {"initial": initial, "depth": depth, "levels": levels}
    label = int(output == "label")
    backbone = UNet(dim, 2 * channels + label, pooling=pooling, concat_skip=concat_skip, **shape)
    head = _head(dim, backbone, output, control_points, {"steps": steps})
    return RegistrationNetwork(dim, backbone, head, channels=channels, takes_label=output == "label")


def localnet(
    dim: int = 3,
    *,
    initial: int = 16,
    levels: Sequence[int] = (0, 1, 2, 3),
    depth: int | None = None,
    output: Output = "ddf",
    steps: int | None = 7,
    control_points: int | Sequence[int] | None = None,
    channels: int = 1,
) -> RegistrationNetwork:
    """LocalNet: a U-Net whose field is the mean of what several levels say, with additive enlargement.

    Args:
        levels: whose features are read.
        depth: how deep it goes; by default to the largest of `levels`.

    Source: Hu et al. 2018, doi:10.1016/j.media.2018.07.002; DeepReg's `local`.
    """
    label = int(output == "label")
    how: dict[str, Any] = {"first_kernel": 7, "additive": True}
    backbone = UNet(
        dim, 2 * channels + label, initial=initial, depth=max(levels) if depth is None else depth, levels=levels, **how
    )
    head = _head(dim, backbone, output, control_points, {"steps": steps})
    return RegistrationNetwork(dim, backbone, head, channels=channels, takes_label=output == "label")


def globalnet(dim: int = 3, *, initial: int = 16, depth: int = 4, channels: int = 1) -> RegistrationNetwork:
    """GlobalNet: an affine map, the identity before it has learned anything; its matrix is `Prediction.affine`.

    Source: Hu et al. 2018, doi:10.1109/ISBI.2018.8363756; DeepReg's `global`.
    """
    backbone = Encoder(dim, 2 * channels, initial=initial, depth=depth)
    return RegistrationNetwork(dim, backbone, AffineHead(dim, backbone.channels), channels=channels)


def keymorph(
    dim: int = 3, *, initial: int = 8, depth: int = 2, points: int = 16, channels: int = 1
) -> RegistrationNetwork:
    """KeyMorph: an affine map from keypoints that it finds on both images; its matrix is `Prediction.affine`.

    Each image has a U-Net of its own, so they may be of different kinds. What is found moves with the image: few pairs
    teach it where a network that reads numbers off an encoder has to see every place. It is not the identity at first.

    Source: Wang et al. 2023, doi:10.1016/j.media.2023.102962.
    """
    backbone = Twins(dim, 2 * channels, initial=initial, depth=depth)
    return RegistrationNetwork(dim, backbone, KeypointHead(dim, backbone.channels, points=points), channels=channels)


def conditional(
    dim: int = 3, *, initial: int = 16, levels: Sequence[int] = (0, 1, 2, 3), channels: int = 1
) -> RegistrationNetwork:
    """A LocalNet that sees the moving label and says where it lies on the fixed image; there is no map.

    Source: Hu et al. 2019, doi:10.1007/978-3-030-32245-8_45; DeepReg's method `conditional`.
    """
    return localnet(dim, initial=initial, levels=levels, output="label", channels=channels)


def _head(
    dim: int,
    backbone: Backbone,
    output: Output,
    control_points: int | Sequence[int] | None,
    flow: dict[str, Any],
) -> nn.Module:
    if output == "label":
        return Label(dim, backbone.channels)
    if output == "ddf":
        return Displacement(dim, backbone.channels, control_points=control_points)
    if output != "velocity":
        raise ValueError(f'output must be "ddf", "velocity" or "label"; got "{output}".')
    return Velocity(dim, backbone.channels, control_points=control_points, **flow)
