"""Networks from images to features. Each takes any number of channels and sizes that are multiples of `multiple`.

A backbone returns features by level, 0 at full size and l at 1 / 2**l of it, and says in `channels` how many they have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import Block, Residual, Up, after_enlargement, convolution, layer

Features = dict[int, Tensor]
SLOPE = 0.2  # of LeakyReLU below 0, in VoxelMorph


class Backbone(nn.Module):
    """Base: what a backbone says of itself.

    Attributes:
        multiple: that each size must be of.
        channels: of the features, by level.
    """

    multiple: int
    channels: dict[int, int]


class VoxelMorphUNet(Backbone):
    """The U-Net of VoxelMorph: one convolution a level, each before its pooling or its enlargement.

    Args:
        encoder, decoder: channels of each level; as many of both.
        final: channels of the convolutions at full size.
        half: leave out the last enlargement; `final` is at half the size, and so are the features.

    Source: Balakrishnan et al. 2019, doi:10.1109/TMI.2019.2897538, in the form of the published PyTorch code 0.2, where
    `half` is `unet_half_res`.
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        *,
        encoder: Sequence[int],
        decoder: Sequence[int],
        final: Sequence[int],
        half: bool = False,
    ) -> None:
        super().__init__()
        if len(encoder) != len(decoder) or not encoder or not final:
            raise ValueError(
                f"encoder and decoder must have as many levels, at least one, and final a convolution; got "
                f"{tuple(encoder)}, {tuple(decoder)} and {tuple(final)}."
            )
        ins = [channels, *encoder]
        self.encoder = nn.ModuleList(convolution(dim, a, b) for a, b in zip(ins, encoder, strict=False))
        self.decoder, self.final = nn.ModuleList(), nn.ModuleList()
        before = encoder[-1]
        for out, skip in zip(decoder, reversed(encoder), strict=True):
            self.decoder.append(convolution(dim, before, out))
            before = out + skip
        if half:
            before = decoder[-1]
        for out in final:
            self.final.append(convolution(dim, before, out))
            before = out
        self.pool = layer("MaxPool", dim)(2)
        self.level = int(half)
        self.multiple, self.channels = 2 ** len(encoder), {self.level: before}

    def forward(self, x: Tensor) -> Features:
        skips = []
        for each in self.encoder:
            x = functional.leaky_relu(each(x), SLOPE, inplace=True)
            skips.append(x)
            x = self.pool(x)
        first, *later = self.decoder
        x = functional.leaky_relu(first(x), SLOPE, inplace=True)
        enlarged = (*later, *self.final[: 1 - self.level])
        for each in enlarged:
            x = functional.leaky_relu(after_enlargement(each, x, skips.pop()), SLOPE, inplace=True)
        for each in self.final[1 - self.level :]:
            x = functional.leaky_relu(each(x), SLOPE, inplace=True)
        return {self.level: x}


class UNet(Backbone):
    """DeepReg's U-Net, of residual blocks; with large first kernels and additive enlargement its LocalNet.

    Args:
        initial: channels at full size; they double with each level.
        depth: levels below full size.
        levels: whose features are wanted, from 0 to `depth`.
        pooling: halve by max-pooling, otherwise by a strided convolution.
        concat_skip: concatenate what comes from the encoder, otherwise add it.
        first_kernel: size of the kernels at full size, on the way down.
        additive: enlarge as LocalNet does.

    Source: DeepReg's manual and `model/backbone/{u_net,local_net}.py`; Hu et al. 2018, doi:10.1016/j.media.2018.07.002.
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        *,
        initial: int,
        depth: int,
        levels: Sequence[int] = (0,),
        pooling: bool = True,
        concat_skip: bool = False,
        first_kernel: int = 3,
        additive: bool = False,
    ) -> None:
        super().__init__()
        if initial < 1 or depth < 0 or not levels or not 0 <= min(levels) <= max(levels) <= depth:
            raise ValueError(
                f"initial must be at least 1, depth at least 0 and levels between 0 and depth; got initial={initial}, "
                f"depth={depth}, levels={tuple(levels)}."
            )
        self.levels, self.concat_skip = sorted(set(levels)), concat_skip
        self.multiple = 2**depth
        widths = [initial * 2**level for level in range(depth + 1)]
        self.channels = {level: widths[level] for level in self.levels}
        kernels = [first_kernel] + [3] * depth
        ins = [channels, *widths]
        self.down = nn.ModuleList(
            nn.Sequential(Block(dim, ins[k], widths[k], kernel=kernels[k]), Residual(dim, widths[k], kernel=kernels[k]))
            for k in range(depth)
        )
        halve = [
            layer("MaxPool", dim)(2) if pooling else Block(dim, widths[k], widths[k], stride=2) for k in range(depth)
        ]
        self.halve = nn.ModuleList(halve)
        self.bottom = nn.Sequential(
            Block(dim, ins[depth], widths[depth], kernel=kernels[depth] if depth else first_kernel),
            Residual(dim, widths[depth]),
        )
        upward = range(depth - 1, self.levels[0] - 1, -1)  # no further up than is wanted
        self.up = nn.ModuleDict({str(k): Up(dim, widths[k + 1], additive=additive) for k in upward})
        skips = {k: widths[k] * (2 if concat_skip else 1) for k in upward}
        self.merge = nn.ModuleDict(
            {str(k): nn.Sequential(Block(dim, skips[k], widths[k]), Residual(dim, widths[k])) for k in upward}
        )

    def forward(self, x: Tensor) -> Features:
        skips, found = [], {}
        for down, halve in zip(self.down, self.halve, strict=True):
            x = down(x)
            skips.append(x)
            x = halve(x)
        x = self.bottom(x)
        level = len(skips)
        if level in self.levels:
            found[level] = x
        while level > self.levels[0]:
            level -= 1
            x = self.up[str(level)](x)
            x = torch.cat([x, skips[level]], dim=1) if self.concat_skip else x + skips[level]
            x = self.merge[str(level)](x)
            if level in self.levels:
                found[level] = x
        return found


class Encoder(Backbone):
    """The way down of a U-Net alone: the features of its last level.

    Args: initial, depth: as for `UNet`.
    """

    def __init__(self, dim: int, channels: int, *, initial: int, depth: int) -> None:
        super().__init__()
        self.unet = UNet(dim, channels, initial=initial, depth=depth, levels=(depth,))
        self.multiple, self.channels = self.unet.multiple, self.unet.channels

    def forward(self, x: Tensor) -> Features:
        features: Features = self.unet(x)
        return features


class Twins(Backbone):
    """Two U-Nets that know nothing of each other, one for the moving image and one for the fixed one.

    Args:
        channels: of both images together.
        initial, depth: as for `UNet`.
    """

    def __init__(self, dim: int, channels: int, *, initial: int, depth: int) -> None:
        super().__init__()
        self.moving, self.fixed = (UNet(dim, channels // 2, initial=initial, depth=depth) for _ in range(2))
        self.multiple, self.channels = self.fixed.multiple, {0: 2 * initial}

    def forward(self, x: Tensor) -> Features:
        moving, fixed = x.chunk(2, dim=1)
        return {0: torch.cat([self.moving(moving)[0], self.fixed(fixed)[0]], dim=1)}
