"""ConvNeXt-3D as its description reads, layer by layer: what ours is measured and tested against.

Maps stay (B, C, T, H, W); every convolution is `Conv3d`; a norm between stages is its formula, over the second axis,
and a block moves the channels to the end and back, as ConvNeXt's authors publish theirs. It takes the tensors of
`ConvNeXt3D` under the same names.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class ChannelNorm(nn.Module):
    """LayerNorm over the second axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        centred = maps - maps.mean(1, keepdim=True)
        normed = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-6)
        return normed * self.weight.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)


class LiteralBlock(nn.Module):
    """Depthwise convolution, norm, pointwise network, scale, residual."""

    def __init__(self, channels: int, times: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(channels, channels, (times, 7, 7), padding=(times // 2, 3, 3), groups=channels)
        self.norm = nn.LayerNorm(channels, 1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        inner = self.dwconv(maps).permute(0, 2, 3, 4, 1)
        inner = self.gamma * self.pwconv2(nn.functional.gelu(self.pwconv1(self.norm(inner))))
        out: Tensor = maps + inner.permute(0, 4, 1, 2, 3)
        return out


class LiteralConvNeXt3D(nn.Module):
    """Arguments as `ConvNeXt3D`."""

    def __init__(self, depths: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv3d(3, dims[0], (2, 4, 4), (2, 4, 4)), ChannelNorm(dims[0]))
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in pairwise(dims):
            halve = nn.Conv3d(before, after, (1, 2, 2), (1, 2, 2))
            self.downsample_layers.append(nn.Sequential(ChannelNorm(before), halve))
        self.stages = nn.ModuleList(
            nn.Sequential(*(LiteralBlock(channels, (1, 3, 1)[place % 3]) for place in range(depth)))
            for depth, channels in zip(depths, dims, strict=True)
        )
        self.norm = ChannelNorm(dims[-1])

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, C, T / 2, H / 32, W / 32)."""
        maps = frames
        for down, blocks in zip(self.downsample_layers, self.stages, strict=True):
            maps = blocks(down(maps))
        out: Tensor = self.norm(maps)
        return out
