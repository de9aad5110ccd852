"""Two light decoders: from maps of several levels of an encoder to one map, four times finer than a ViT's tokens.

`Upernet` is the decoder of Xiao et al. 2018 (arXiv 1807.10221): the deepest map pooled at four scales (Zhao et al.
2017, arXiv 1612.01105), then a pyramid from deep to shallow (Lin et al. 2017, arXiv 1612.03144), all of it fused.
`Dpt` is that of Ranftl et al. 2021 (arXiv 2103.13413): residual units that fuse one level after the other.

Both are light: every map is first brought to `width` channels by a 1x1 convolution, and there is no auxiliary head.
They normalise by groups of channels within one image (Wu and He 2018, arXiv 1803.08494), so that an image's answer
depends neither on its batch nor on whether the decoder is being fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

FINER = (4.0, 2.0, 1.0, 0.5)
"""By how much the maps of a ViT, all of one grid, are resized from shallow to deep, so that they are a pyramid."""
POOLED = (1, 2, 3, 6)
"""Sides of the grids that the deepest map is averaged to."""
GROUPS = 8


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map [b, c, h, w] -> [b, c, *size], bilinear by pixel centres (align_corners=False); as it is where it fits.

    On a CPU channels lie together: 256 of them are resized 12 times as fast so (16 x 16 to 32 x 32, one thread, AVX2).
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if x.device.type == "cpu":
        x = x.contiguous(memory_format=torch.channels_last)
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """Maps of several levels, each with `width` channels and coarser than the one before.

    Args:
        channels: of each level, from shallow to deep; tokens of a ViT have at most four.
        width: of all maps that leave.
        tokens: whether all levels have one grid (a ViT); they are then made 4, 2, 1 and 1/2 times as fine.
    """

    def __init__(self, channels: Sequence[int], width: int, *, tokens: bool) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        factors = FINER[: len(channels)] if tokens else (1.0,) * len(channels)
        self.resize = nn.ModuleList(_resizing(width, factor) for factor in factors)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [b, c_i, h_i, w_i] -> maps [b, width, h'_i, w'_i]."""
        parts = zip(self.project, self.resize, maps, strict=True)
        return [resize(project(x)) for project, resize, x in parts]


class Upernet(nn.Module):
    """Pooled context, a pyramid from deep to shallow, and everything fused at the finest map.

    Args:
        channels: as `Pyramid`.
        width: channels of everything within, a multiple of 8.
        tokens: as `Pyramid`.
    """

    def __init__(self, channels: Sequence[int], width: int, *, tokens: bool) -> None:
        super().__init__()
        self.pyramid = Pyramid(channels, width, tokens=tokens)
        # A grid of one position has nothing to normalise.
        self.pooled = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU()) for _ in POOLED)
        self.context = _block(width * (1 + len(POOLED)), width)
        self.smooth = nn.ModuleList(_block(width, width) for _ in channels[1:])
        self.fuse = _block(width * len(channels), width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [b, c_i, h_i, w_i] from shallow to deep -> [b, width, h, w] on the finest grid."""
        levels = self.pyramid(maps)
        deepest = levels[-1]
        grids = (functional.adaptive_avg_pool2d(deepest, side) for side in POOLED)
        around = [resized(branch(x), deepest.shape[-2:]) for branch, x in zip(self.pooled, grids, strict=True)]
        levels[-1] = self.context(torch.cat([deepest, *around], 1))
        for fine, deep in pairwise(reversed(range(len(levels)))):
            levels[deep] = levels[deep] + resized(levels[fine], levels[deep].shape[-2:])
        smoothed = [smooth(x) for smooth, x in zip(self.smooth, levels[:-1], strict=True)]
        finest = levels[0].shape[-2:]
        return cast(Tensor, self.fuse(torch.cat([resized(x, finest) for x in (*smoothed, levels[-1])], 1)))


class Dpt(nn.Module):
    """Residual units that fuse level after level, from deep to shallow.

    Args:
        channels: as `Pyramid`.
        width: channels of everything within, a multiple of 8.
        tokens: as `Pyramid`.
    """

    def __init__(self, channels: Sequence[int], width: int, *, tokens: bool) -> None:
        super().__init__()
        self.pyramid = Pyramid(channels, width, tokens=tokens)
        self.side = nn.ModuleList(Residual(width) for _ in channels[1:])
        self.fused = nn.ModuleList(Residual(width) for _ in channels)
        self.leave = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in channels)
        self.last = _block(width, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [b, c_i, h_i, w_i] from shallow to deep -> [b, width, h, w] on the finest grid."""
        levels = self.pyramid(maps)
        x = levels[-1]
        for i in reversed(range(len(levels))):
            if i < len(levels) - 1:
                x = resized(x, levels[i].shape[-2:]) + self.side[i](levels[i])
            x = self.leave[i](self.fused[i](x))
        return cast(Tensor, self.last(x))


class Residual(nn.Module):
    """Two 3x3 convolutions, each behind a ReLU, added to what came in (Ranftl et al. 2021, figure 1).

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups(width), width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, width, h, w] -> the same shape."""
        y = functional.relu(self.norm(self.first(functional.relu(x))))
        return cast(Tensor, x + self.second(y))


def groups(width: int) -> int:
    """Into how many groups the channels of a decoder fall: 8, or the most below that divide them."""
    return next(n for n in range(min(GROUPS, width), 0, -1) if width % n == 0)


def _block(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.GroupNorm(groups(c_out), c_out), nn.ReLU()
    )


def _resizing(width: int, factor: float) -> nn.Module:
    if factor == 1:
        return nn.Identity()
    if factor < 1:
        return nn.Conv2d(width, width, 3, stride=2, padding=1)
    return nn.ConvTranspose2d(width, width, int(factor), stride=int(factor))
