"""Glass blur (Hendrycks and Dietterich 2019, arXiv 1903.12261): blurred, pixels copied about, blurred again."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from holdfast import draws
from holdfast.corruptions.blur import gaussian_blur

# (standard deviation of both Gaussians in pixels, reach of a copy in pixels, passes over the image)
GLASS_BLUR: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "cifar32": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "tiny64": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "inception299": ((0.8, 1, 3), (1, 3, 1), (1.1, 2, 4), (1.2, 4, 2), (1.6, 5, 2)),
}


def draw_copies(
    keys: Tensor, shape: tuple[int, int], *, parameters: tuple[float, ...], parts: tuple[str | int, ...]
) -> Tensor:
    """Where each pixel is copied from, pass by pass in the order of the visits: bottom right to top left.

    Args:
        keys: the row `key`, int64 [b].
        shape: height and width of the images.
        parameters: (standard deviation, reach d, passes).
        parts: seed, name and severity: what the draw is for.

    Returns:
        uint8 [b, passes, max(0, h - 2 * d), max(0, w - 2 * d)], uniform in 0 ... 4 * d^2 - 1: the number
        2 * d * (dx + d) + (dy + d) of the step (dx, dy), each in -d ... d - 1.
    """
    _, reach, passes = (int(p) for p in parameters)
    size = (passes, *(max(0, n - 2 * reach) for n in shape))
    rows = [_codes(draws.counter(*parts, k), 4 * reach**2, size) for k in keys.tolist()]
    return torch.from_numpy(np.stack(rows) if rows else np.empty((0, *size), np.uint8)).to(keys.device)


def _codes(source: np.random.Generator, high: int, size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Uniform in 0 ... high - 1: bytes, where these divide evenly, which is several times faster."""
    if 256 % high:
        return source.integers(0, high, size, dtype=np.uint8)
    return np.frombuffer(source.bytes(math.prod(size)), np.uint8).reshape(size) & np.uint8(high - 1)


def glass_blur(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Blur, truncate to levels, copy pixels from neighbours as `sources` says, blur.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (standard deviation, reach, passes).
        field: as `draw_copies` gives it.
        mode: of both Gaussians, see `blur.gaussian_blur`; the copies are the same in both.

    Returns:
        Levels [b, h, w, 3].
    """
    sigma, reach, _ = parameters
    blurred = gaussian_blur(images, (sigma,), mode=mode).to(torch.uint8)
    origin = sources(field, images.shape[1:3], int(reach))
    stirred = blurred.reshape(-1, 3).index_select(0, origin).reshape(images.shape)
    return gaussian_blur(stirred, (sigma,), mode=mode)


def sources(field: Tensor, shape: tuple[int, ...], reach: int) -> Tensor:
    """Which pixel each pixel ends as, after all passes.

    The published code means to swap two pixels, but swaps views of one array, so that the second assignment undoes
    nothing: it copies. Pixel after pixel, from row h - d and column w - d back to row and column d + 1, takes what its
    neighbour holds at that moment: the neighbour's new value if that was visited before, else its old one. So each
    pixel follows one other, and all chains are resolved at once by pointer jumping, to the bit.

    Args:
        field: uint8 [b, passes, h - 2 * d, w - 2 * d], as `draw_copies` gives it.
        shape: height and width of the images.
        reach: d.

    Returns:
        int32 [b * h * w]: places in all pixels of the batch.
    """
    (b, passes), (height, width) = field.shape[:2], shape[:2]
    own = torch.arange(b * height * width, dtype=torch.int32, device=field.device)
    step, is_later = (t.to(field.device) for t in _steps(reach, width))
    origin = own
    for i in range(passes):
        code = field[:, i].flip(1, 2).to(torch.int32)
        follows = own.clone().view(b, height, width)
        inside = follows[:, reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
        inside += step.index_select(0, code.reshape(-1)).view(code.shape)
        # The complement marks a pixel that takes a new value. Where its neighbour lies outside what is visited, one
        # jump more finds that it holds its own.
        inside ^= is_later.index_select(0, code.reshape(-1)).view(code.shape)
        origin = origin.index_select(0, _resolved(follows.view(-1)))
    return origin


def _resolved(follows: Tensor) -> Tensor:
    """Follow every complement to an entry that is none, in place; a round doubles the length of what is followed."""
    waiting = (follows < 0).nonzero().squeeze(1)
    while waiting.numel():
        found = follows.index_select(0, ~follows.index_select(0, waiting))
        follows[waiting] = found
        waiting = waiting[found < 0]
    return follows


@lru_cache(maxsize=64)
def _steps(reach: int, width: int) -> tuple[Tensor, Tensor]:
    """Per number of a step how far it leads through the pixels of an image, and -1 where that is to a later one, which
    is visited before: int32 [4 * reach^2] each."""
    dx, dy = np.divmod(np.arange(4 * reach**2, dtype=np.int32), 2 * reach)
    step = (dy - reach) * width + dx - reach
    return torch.from_numpy(step), torch.from_numpy(-(step > 0).astype(np.int32))
