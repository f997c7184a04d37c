"""Convolutions in two and three dimensions, and the steps between the levels of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUP = 8  # channels that are normalized together
MODES = {2: "bilinear", 3: "trilinear"}
LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}  # in memory; convolutions are fastest in it


def layer(name: str, dim: int) -> Any:
    """A layer of torch by its name without the dimension: `layer("Conv", 3)` is `nn.Conv3d`."""
    return getattr(nn, f"{name}{dim}d")


def convolution(dim: int, channels: int, out: int, *, kernel: int = 3, stride: int = 1, bias: bool = True) -> nn.Module:
    """A convolution that keeps the size, or divides it by its stride."""
    made: nn.Module = layer("Conv", dim)(channels, out, kernel, stride, kernel // 2, bias=bias)
    return made


class Block(nn.Sequential):
    """Convolution, normalization, ReLU.

    Differs: from DeepReg, which normalizes over the batch. Groups of channels are normalized, so that a batch of one is
        no exception, training and prediction are one function, and several processes need not talk about it.
    """

    def __init__(self, dim: int, channels: int, out: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            convolution(dim, channels, out, kernel=kernel, stride=stride, bias=False), norm(out), nn.ReLU(inplace=True)
        )


def norm(channels: int) -> nn.GroupNorm:
    """Over groups of about `GROUP` channels."""
    groups = max(1, channels // GROUP)
    return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)


class Residual(nn.Module):
    """Two convolutions beside a straight way, added before the last ReLU."""

    def __init__(self, dim: int, channels: int, *, kernel: int = 3) -> None:
        super().__init__()
        self.first = Block(dim, channels, channels, kernel=kernel)
        self.second = nn.Sequential(convolution(dim, channels, channels, kernel=kernel, bias=False), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


class Up(nn.Module):
    """Twice as many voxels along each axis, half as many channels, by a transposed convolution.

    With `additive`, the linearly enlarged input is added, its two halves of channels summed.

    Source: Hu et al. 2018, doi:10.1016/j.media.2018.07.002.
    """

    def __init__(self, dim: int, channels: int, *, additive: bool) -> None:
        super().__init__()
        out = channels // 2
        transposed = layer("ConvTranspose", dim)(channels, out, 3, 2, 1, output_padding=1, bias=False)
        self.transposed = nn.Sequential(transposed, norm(out), nn.ReLU(inplace=True))
        self.additive = additive

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.transposed(x)
        if not self.additive:
            return up
        enlarged = enlarge(x, up.shape[2:])
        half = up.shape[1]
        return up + enlarged[:, :half] + enlarged[:, half : 2 * half]


def enlarge(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Linear interpolation to more voxels, each coarse voxel in the middle of the fine ones that it was pooled from."""
    if tuple(x.shape[2:]) == tuple(shape):
        return x
    enlarged: Tensor = functional.interpolate(x, list(shape), mode=MODES[x.ndim - 2], align_corners=False)
    return enlarged


def after_enlargement(convolution: Any, x: Tensor, skip: Tensor) -> Tensor:
    """A convolution of kernel 3 of  cat([x, each voxel twice along each axis], skip),  which is never made.

    Of voxels that are all there twice, three neighbors are two voxels: as a transposed convolution of kernel 4 it takes
    8 products where there were 27, and gives the same numbers.
    """
    d, n = x.ndim - 2, x.shape[1]
    conv = functional.conv2d if d == 2 else functional.conv3d
    transposed = functional.conv_transpose2d if d == 2 else functional.conv_transpose3d
    weight = convolution.weight
    of_pairs = weight[:, :n].transpose(0, 1)
    for axis in range(2, 2 + d):
        before, at, after = of_pairs.unbind(axis)
        of_pairs = torch.stack([after, at + after, before + at, before], axis)
    beside = conv(skip, weight[:, n:], convolution.bias, padding=1)
    return beside + transposed(x, of_pairs, stride=2, padding=1)


def padded(x: Tensor, multiple: int) -> Tensor:
    """Zeros at the end of each axis up to a multiple; `x[..., :n]` undoes it."""
    widths = [w for n in reversed(x.shape[2:]) for w in (0, -n % multiple)]
    return functional.pad(x, widths) if any(widths) else x


def cropped(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The first voxels along each axis."""
    for axis, n in enumerate(shape, start=2):
        x = x.narrow(axis, 0, n)
    return x
