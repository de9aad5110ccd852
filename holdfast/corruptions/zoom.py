"""Zoom blur (Hendrycks and Dietterich 2019, arXiv 1903.12261), and the magnification that snow uses too."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from holdfast.corruptions.blur import TIE, as_rows, weighted_rows

# (end, step) of the magnifications np.arange(1, end, step): the rounding of that call decides whether `end` is one
_OF_PHOTOS = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
_OF_THUMBNAILS = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
ZOOM_BLUR: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": _OF_PHOTOS,
    "cifar32": _OF_THUMBNAILS,
    "tiny64": _OF_THUMBNAILS,
    "inception299": _OF_PHOTOS,
}

# Above the error of the sums, float64 or float32 (3e-5 levels): a flat region, whose exact value is a whole level,
# comes out the same on every machine instead of one level lower here and there.
_TIE = {"reference": TIE, "fast": 1e-4}
# Magnifications at once. More would leave the cache; measured, 1 to 3 cost about the same and 10 four times as much.
_AT_ONCE = 3


def zoom_blur(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """The mean of the image and its magnifications, of which the first is the image once more.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (end, step) of the magnifications, see `magnifications`.
        mode: reference adds one magnification after the other in float64; fast adds in float32, over rows, then over
            columns, each sum in a fixed order: exact to 3e-5 levels, so that a processor that rounds otherwise (without
            fused multiply-add) could change one value in 30,000 by one level.

    Returns:
        Levels [b, h, w, 3]: float64, in the fast mode uint8.
    """
    zooms = magnifications(*parameters)
    b, height, width = images.shape[:3]
    if mode == "reference":
        total = torch.zeros(images.shape, dtype=torch.float64, device=images.device)
        for zoom in zooms:
            part = stretched(images.double().narrow(1, *middle(height, zoom)), height, zoom, dim=1)
            total += stretched(part.narrow(2, *middle(width, zoom)), width, zoom, dim=2)
        return (images + total) / (len(zooms) + 1) + _TIE[mode]
    table = as_rows(images)
    turned = images.permute(2, 0, 1, 3).reshape(width, -1)
    sums = turned.to(torch.float32).mul_(2)
    for taps in _taps(height, width, zooms[1:]):
        rows, row_weights, columns, column_weights = (t.to(images.device) for t in taps)
        tall = weighted_rows(table, rows, row_weights).reshape(-1, height, b, width, 3)
        sums.add_(weighted_rows(tall.transpose(1, 3).reshape(-1, b * height * 3), columns, column_weights))
    levels = sums.div_(len(zooms) + 1).add_(_TIE[mode]).to(torch.int32).to(torch.uint8)
    return levels.reshape(width, b, height, 3).permute(1, 2, 0, 3)


def magnifications(end: float, step: float) -> tuple[float, ...]:
    """The published magnifications: np.arange(1, end, step), to the last bit.

    Args:
        end: of the range; whether it is reached is decided by float64, as published.
        step: from one magnification to the next.
    """
    return tuple(np.arange(1, end, step).tolist())


def middle(n: int, zoom: float) -> tuple[int, int]:
    """The pixels of a line that a magnification shows.

    Args:
        n: length of the line in pixels.
        zoom: magnification, at least 1.

    Returns:
        The first pixel, and how many, which is ceil(n / zoom).
    """
    used = int(np.ceil(n / zoom))
    return (n - used) // 2, used


def stretched(planes: Tensor, n: int, zoom: float, *, dim: int) -> Tensor:
    """Stretch one dimension, the `middle` of a line of n, to that line's length again, linearly.

    Args:
        planes: floating, any shape; `dim` has ceil(n / zoom) pixels.
        n: length of the line.
        zoom: magnification, at least 1.
        dim: which dimension.

    Returns:
        n pixels in `dim`, in the precision of `planes`.
    """
    low, high, part = (t.to(planes.device) for t in places(n, zoom))
    part = part.to(planes.dtype).reshape([-1 if d == dim else 1 for d in range(planes.ndim)])
    return planes.index_select(dim, low) * (1 - part) + planes.index_select(dim, high) * part


@lru_cache(maxsize=256)
def places(n: int, zoom: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where the pixels of a stretched line come from.

    The k = ceil(n / zoom) pixels of the middle become round(k * zoom), the outermost on the outermost; of these the
    middle n are kept.

    Args:
        n: length of the line.
        zoom: magnification, at least 1.

    Returns:
        Two neighbours in the middle (int64 [n]), and how far the pixel is on the way to the second (float64 [n]).
    """
    _, used = middle(n, zoom)
    made = round(used * zoom)
    place = (np.arange(n) + (made - n) // 2) * ((used - 1) / max(1, made - 1))
    low = np.floor(place).clip(0, used - 1).astype(np.int64)
    high = np.minimum(low + 1, used - 1)
    return torch.from_numpy(low), torch.from_numpy(high), torch.from_numpy((place - low).clip(0, 1))


@lru_cache(maxsize=64)
def _taps(height: int, width: int, zooms: tuple[float, ...]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per group of magnifications the rows and their weights, [magnifications * h, 2], and the columns and theirs,
    [w, 2 * magnifications], in a table in which the magnifications stand one below the other."""
    groups = []
    for start in range(0, len(zooms), _AT_ONCE):
        group = zooms[start : start + _AT_ONCE]
        rows, row_weights = zip(*(_pair(height, z) for z in group), strict=True)
        columns, column_weights = zip(*(_pair(width, z) for z in group), strict=True)
        below = torch.cat([c + width * i for i, c in enumerate(columns)], 1)
        groups.append((torch.cat(rows), torch.cat(row_weights), below, torch.cat(column_weights, 1)))
    return groups


def _pair(n: int, zoom: float) -> tuple[Tensor, Tensor]:
    """Two neighbours in the whole line, [n, 2], and their weights."""
    low, high, part = places(n, zoom)
    return torch.stack((low, high), 1) + middle(n, zoom)[0], torch.stack((1 - part, part), 1).to(torch.float32)
