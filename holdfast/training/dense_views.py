"""Views of images together with their masks or depth: mirrored, enlarged and cut, always by one and the same geometry.

Pixels are resized bilinearly, truth by the nearest neighbour of every pixel's centre: classes have no mean, and the
mean of depths across an edge is a surface that is not there. Where an image is enlarged, its depth is divided by the
same factor (Eigen et al. 2014, arXiv 1406.2283), as if the camera had come closer.

What is drawn for an image depends on its key, the seed and the epoch alone. Nothing is drawn where a head is measured.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from holdfast import draws
from holdfast.attacks.harm import Rows
from holdfast.errors import ConfigError
from holdfast.views import resized_crop

ENLARGED = 2.0
"""Images are enlarged up to so many times before they are cut."""
TRUTH = ("mask", "depth")
"""Rows that belong to every pixel."""
_MIRROR, _ENLARGE, _DOWN, _ACROSS = range(4)


class Views(NamedTuple):
    """What is drawn.

    Attributes:
        augment: none; flip = the mirror image of every other one; crop = also a square of an enlarged image.
        side: of that square in pixels; 0 = the shorter side of the image.
        seed: of the draws.
    """

    augment: Literal["none", "flip", "crop"] = "none"
    side: int = 0
    seed: int = 0


STILL = Views()
"""Nothing is drawn."""


def check(views: Views, size: tuple[int, int]) -> None:
    """Refuse a crop that images of this height and width cannot be enlarged to.

    Raises:
        ConfigError: it is larger than twice their shorter side, or negative.
    """
    if views.augment == "crop" and not 0 <= views.side <= ENLARGED * min(size):
        raise ConfigError(
            f"crops of {views.side} pixels from images of {size[0]}x{size[1]}, which are enlarged by {ENLARGED:g} "
            "at most.",
            next=f"Give --crop-size {min(size)} or less.",
        )


def view(pixels: Tensor, rows: Rows, views: Views, epoch: int) -> tuple[Tensor, Rows]:
    """One view of each image.

    Args:
        pixels: float32 [b, 3, h, w] in [0, 1].
        rows: "key" int64 [b]; "mask" int64, "depth" float32 [b, h, w], where there are any.
        views: what is drawn; checked for this size.
        epoch: from 0; another one draws other views.

    Returns:
        Pixels [b, 3, h, w], or [b, 3, side, side] for crops, and the rows that belong to them.
    """
    if views.augment == "none":
        return pixels, rows
    drawn = _drawn(rows["key"], views, epoch)
    flipped = drawn[:, _MIRROR] < 0.5
    if views.augment == "flip":
        return mirrored(pixels, flipped), with_truth(rows, {n: mirrored(rows[n], flipped) for n in TRUTH if n in rows})
    size = (pixels.shape[2], pixels.shape[3])
    side = views.side or min(size)
    boxes = _boxes(drawn, size, side)
    cut = {name: _nearest(rows[name], boxes, side, flipped) for name in TRUTH if name in rows}
    if "depth" in cut:
        cut["depth"] = cut["depth"] * (boxes[:, 2] / side).to(cut["depth"])[:, None, None]
    return resized_crop(pixels, boxes, (side, side), mirrored=flipped), with_truth(rows, cut)


def flips(keys: Tensor, views: Views, epoch: int) -> Tensor:
    """Which images `view` mirrors: bool [b] on the CPU, from their keys int64 [b]."""
    if views.augment == "none":
        return torch.zeros(len(keys), dtype=torch.bool)
    return _drawn(keys, views, epoch)[:, _MIRROR] < 0.5


def mirrored(x: Tensor, chosen: Tensor) -> Tensor:
    """[b, ..., w] with the chosen rows, bool [b], turned from left to right."""
    there = chosen.to(x.device).view(-1, *[1] * (x.ndim - 1))
    return x.flip(-1).where(there, x)


def with_truth(rows: Rows, truth: Rows) -> Rows:
    """Rows with some of them exchanged."""
    return {**rows, **truth}


def _drawn(keys: Tensor, views: Views, epoch: int) -> Tensor:
    """float64 [b, 4] in [0, 1) on the CPU."""
    return draws.uniform(keys.cpu(), (4,), "dense view", views.seed, epoch).double()


def _boxes(drawn: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """What is cut out of the images, before it is enlarged to `side`: int64 [b, 4], top, left, height, width."""
    least = max(1.0, side / min(size))
    factor = least + drawn[:, _ENLARGE] * (ENLARGED - least)
    box = (side / factor).round().clamp(1, min(size))
    top, left = ((drawn[:, at] * (n - box + 1)).floor() for at, n in ((_DOWN, size[0]), (_ACROSS, size[1])))
    return torch.stack([top, left, box, box], 1).long()


def _nearest(x: Tensor, boxes: Tensor, side: int, flipped: Tensor) -> Tensor:
    """The boxes of [b, h, w], each resized to [side, side] by the nearest neighbour of every pixel's centre."""
    top, left, box, _ = boxes.unbind(1)
    at = ((torch.arange(side).double() + 0.5) * (box.double() / side)[:, None]).floor().long()
    rows, columns = top[:, None] + at, left[:, None] + at
    columns = columns.flip(1).where(flipped[:, None], columns)
    image = torch.arange(len(x))[:, None, None]
    places = (index.to(x.device) for index in (image, rows[:, :, None], columns[:, None, :]))
    return x[tuple(places)]
