"""The windows of the Square attack: how large they are at a step, where they lie, and how they are cut and pasted.

A window of row i covers `side[i]` x `side[i]` pixels. Rows are at different steps, so windows of one batch differ in
size: they are cut as large as the largest, and places past the end of a smaller one repeat its last row or column.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast import draws

# The share p of the image that a window covers is halved after each of these looks, out of 10,000 (published code).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCHEDULED = 10_000


def halvings(count: Tensor, steps: int) -> Tensor:
    """How often p was halved before proposal `count` int64 [b] of `steps`: int64 [b] in 0 to 9."""
    scaled = torch.div(count * SCHEDULED, steps, rounding_mode="floor")
    return torch.bucketize(scaled, _thresholds(count.device))


@functools.cache
def _thresholds(device: torch.device) -> Tensor:
    return torch.tensor(HALVINGS, device=device)


@functools.lru_cache(maxsize=64)
def sides(p: float, h: int, w: int, *, odd: bool) -> tuple[int, ...]:
    """The side of a window, in pixels, after 0 to 9 halvings of p.

    Args:
        p: share of the image at first.
        h: of the image.
        w: of the image.
        odd: whether windows have a middle: sides are then odd and at least 3, where the image is as large.
    """
    found = []
    for halved in range(len(HALVINGS) + 1):
        side = max(round(math.sqrt(p / 2**halved * h * w)), 1)
        if odd:
            side = max(side, 3) // 2 * 2 + 1
        found.append(min(side, h, w))
    return tuple(found)


class Window(NamedTuple):
    """One window of every row.

    Attributes:
        top: first row of pixels, int64 [b, 1, 1].
        left: first column, int64 [b, 1, 1].
        down: row within the window, int64 [b, s, 1], at most its side minus one; s = the largest side of the batch.
        across: column within the window, int64 [b, 1, s].
        inside: False where a place repeats another: bool [b, s, s].
    """

    top: Tensor
    left: Tensor
    down: Tensor
    across: Tensor
    inside: Tensor

    def cut(self, pixels: Tensor) -> Tensor:
        """What pixels [b, c, h, w] show there: [b, s, s, c]."""
        cut: Tensor = pixels[self._rows(), :, self.top + self.down, self.left + self.across]
        return cut

    def paste(self, pixels: Tensor, content: Tensor) -> None:
        """Write content [b, s, s, c] into pixels [b, c, h, w], in place; repeated places must repeat their content."""
        pixels[self._rows(), :, self.top + self.down, self.left + self.across] = content

    def holds(self, other: Window) -> Tensor:
        """Whether places of another window of the same size lie in this one: bool [b, s, s]."""
        side = self.down[:, -1:] + 1
        down, across = other.top + other.down - self.top, other.left + other.across - self.left
        return (down >= 0) & (down < side) & (across >= 0) & (across < side)

    def _rows(self) -> Tensor:
        return torch.arange(len(self.top), device=self.top.device).view(-1, 1, 1)


def windows(words: Tensor, side: Tensor, largest: int, h: int, w: int) -> list[Window]:
    """Windows at uniform places of the image, the last row and column included.

    Args:
        words: of `draws.words`, [b, 2 k]: top and left of k windows.
        side: int64 [b], at least 1.
        largest: of the sides.
        h: of the image.
        w: of the image.
    """
    place = torch.arange(largest, device=side.device)
    folded = torch.minimum(place, side[:, None] - 1)
    whole = place < side[:, None]
    inside = whole[:, :, None] & whole[:, None, :]
    room = torch.stack((h + 1 - side, w + 1 - side), 1).repeat(1, words.shape[1] // 2)
    corner = draws.below(words, room)[:, :, None, None]
    pairs = zip(corner[:, ::2].unbind(1), corner[:, 1::2].unbind(1), strict=True)
    return [Window(top, left, folded[:, :, None], folded[:, None, :], inside) for top, left in pairs]


def signs(words: Tensor, n: int) -> Tensor:
    """The n lowest bits of int64 [...] as -1 or +1: float32 [..., n]."""
    bits = (words[..., None] >> torch.arange(n, device=words.device)) & 1
    return (2 * bits - 1).to(torch.float32)
