"""Weather corruptions (Hendrycks and Dietterich 2019, arXiv 1903.12261)."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast import draws
from holdfast.records import Corruption

# (thickness, decay of the swells from one level of the map to the next, side of the map in pixels)
FOG: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((1.5, 2, 256), (2, 2, 256), (2.5, 1.7, 256), (2.5, 1.5, 256), (3, 1.4, 256)),
    "cifar32": ((0.2, 3, 32), (0.5, 3, 32), (0.75, 2.5, 32), (1, 2, 32), (1.5, 1.75, 32)),
    "tiny64": ((0.4, 3, 64), (0.7, 3, 64), (1, 2.5, 64), (1.5, 2, 64), (2, 1.75, 64)),
    "inception299": ((1.5, 2, 512), (2, 2, 512), (2.5, 1.8, 512), (2.5, 1.6, 512), (3, 1.5, 512)),
}


def draw_fog(
    keys: Tensor, shape: tuple[int, int], *, parameters: tuple[float, ...], parts: tuple[str | int, ...]
) -> Tensor:
    """The numbers that a map is made of.

    Args:
        keys: the row `key`, int64 [b].
        shape: height and width of the images.
        parameters: (thickness, decay, side).
        parts: seed, name and severity: what the draw is for.

    Returns:
        Uniform in [0, 1), float32 [b, n * n - 1], n the side of the map, in the order in which `swells` uses them.
    """
    n = _map_side(int(parameters[2]), *shape)
    return draws.uniform(keys, (n * n - 1,), *parts)


def fog(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Lay a map of swells over the image: (x + c * swells) * m / (m + c), m the image's largest value.

    An all-black image stays black. The top left corner of the map is used. An image larger than the map of its variant
    gets one whose side is the next power of two; `remark_on_fog` says so.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (c, decay, side).
        field: as `draw_fog` gives it.
        mode: reference works in float64, fast in float32.

    Returns:
        Levels [b, h, w, 3], not clipped.
    """
    thickness, decay, side = parameters
    dtype = torch.float64 if mode == "reference" else torch.float32
    height, width = images.shape[1:3]
    n = _map_side(int(side), height, width)
    layer = swells(field.to(dtype), side=n, decay=decay)[:, :height, :width, None]
    brightest = images.amax((1, 2, 3), keepdim=True).to(dtype) / 255
    if mode == "reference":
        return ((images.double() / 255 + thickness * layer) * brightest / (brightest + thickness)).clamp(0, 1) * 255
    return (layer * (255 * thickness) + images).mul_(brightest / (brightest + thickness))


def swells(field: Tensor, *, side: int, decay: float) -> Tensor:
    """A periodic map by the diamond-square algorithm, scaled to [0, 1].

    From one corner at 0 the grid is halved until it is full. Each halving first sets the centres of the squares, then
    the middles of their upper sides, then those of their left sides: each the mean of its four neighbours, around the
    torus, plus w * w * U(-1, 1). w is 100 at first and divided by `decay` after each halving; it is squared in the
    published sets, so also here.

    Args:
        field: uniform in [0, 1), [b, side * side - 1]: per halving the centres, the upper sides, the left sides, each
            row by row.
        side: a power of two.
        decay: see above.

    Returns:
        [b, side, side] in the precision of `field`.
    """
    b = field.shape[0]
    grid = field.new_zeros((b, 1, 1))
    signed = field * 2 - 1
    wibble, used = 100.0, 0
    while (k := grid.shape[1]) < side:
        noise = (signed[:, used : used + 3 * k * k] * (wibble * wibble)).reshape(b, 3, k, k)
        ends = grid.roll(-1, 1).add_(grid)  # of every left side
        centres = ends.roll(-1, 2).add_(ends).div_(4).add_(noise[:, 0])
        uppers = grid.roll(-1, 2).add_(grid).add_(centres).add_(centres.roll(1, 1)).div_(4).add_(noise[:, 1])
        lefts = ends.add_(centres).add_(centres.roll(1, 2)).div_(4).add_(noise[:, 2])
        finer = field.new_empty((b, 2 * k, 2 * k))
        finer[:, ::2, ::2], finer[:, ::2, 1::2] = grid, uppers
        finer[:, 1::2, ::2], finer[:, 1::2, 1::2] = lefts, centres
        grid, used, wibble = finer, used + 3 * k * k, wibble / decay
    grid = grid - grid.amin((1, 2), keepdim=True)
    return grid.div_(grid.amax((1, 2), keepdim=True))


def remark_on_fog(corruption: Corruption, parameters: tuple[float, ...], height: int, width: int) -> str:
    """Say where the map is larger than the variant's; empty where it is not."""
    side = int(parameters[2])
    n = _map_side(side, height, width)
    if n == side:
        return ""
    return (
        f"the map of this variant is {side} px wide and these images are larger, so a map of {n} px was drawn, "
        f"whose swells are {n // side} times as wide."
    )


def _map_side(side: int, height: int, width: int) -> int:
    """Side of the map: the variant's, or the next power of two that covers the image."""
    return max(side, 1 << (max(height, width) - 1).bit_length())
