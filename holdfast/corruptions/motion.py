"""Motion blur (Hendrycks and Dietterich 2019, arXiv 1903.12261), and the streak that snow uses too."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from holdfast import draws
from holdfast.corruptions.blur import TIE, Array, whole_weights

# (radius: the streak has 2 * radius + 1 taps, standard deviation of their weights), in pixels
MOTION_BLUR: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "cifar32": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "tiny64": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    "inception299": ((12, 4), (17, 6), (17, 9), (17, 13), (22, 16)),
}

# Bits of weight of the fast mode. With the 8 of a pixel, 23 fill int32. A streak that fades, sigma below 8, would lose
# its far taps and is summed in int64: in a flat region they alone decide on which side of a whole level the mean is.
_FEW, _MANY = 23, 50


def draw_angle(
    keys: Tensor, shape: tuple[int, int], *, parameters: tuple[float, ...], parts: tuple[str | int, ...]
) -> Tensor:
    """The direction of the motion, where 0 stands for -45 degrees and 1 for 45.

    Args:
        keys: the row `key`, int64 [b].
        shape: of the images; the field does not depend on it.
        parameters: of the severity; the field does not depend on them.
        parts: seed, name and severity: what the draw is for.

    Returns:
        Uniform in [0, 1), float32 [b, 1].
    """
    return draws.uniform(keys, (1,), *parts)


def motion_blur(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Smear every pixel towards the left, with a slope between -45 and 45 degrees; see `streak`.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (radius, standard deviation), in pixels.
        field: as `draw_angle` gives it.
        mode: as in `streak`.

    Returns:
        uint8 [b, h, w, 3].
    """
    radius, sigma = parameters
    return streak(images, [90 * u - 45 for u in field[:, 0].tolist()], radius=radius, sigma=sigma, mode=mode)


def streak(images: Tensor, angles: list[float], *, radius: float, sigma: float, mode: str) -> Tensor:
    """ImageMagick's motion blur as the published code uses it: a weighted mean along a line that starts at the pixel.

    The image continues as its edge pixels; the mean is truncated to a level.

    Args:
        images: uint8 [b, h, w, c].
        angles: one per image, in degrees from the x axis towards the y axis, which points down.
        radius: see `taps`.
        sigma: see `taps`.
        mode: reference sums in float64; fast in whole numbers, within 1e-4 levels of it.

    Returns:
        uint8 [b, h, w, c].
    """
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    for image, angle, found in zip(images, angles, result, strict=True):
        steps, weights = taps(angle, radius=radius, sigma=sigma)
        if mode == "reference":
            levels = _weighted_sum(image.double(), steps, weights.tolist()).add_(TIE)
        else:
            bits = _FEW if sigma >= 8 else _MANY
            whole = image.to(torch.int32 if bits == _FEW else torch.int64)
            levels = _weighted_sum(whole, steps, whole_weights(weights, 2**bits)).add_(round(TIE * 2**bits))
            levels.bitwise_right_shift_(bits)
        found.copy_(levels)
    return result


def taps(angle: float, *, radius: float, sigma: float) -> tuple[list[tuple[int, int]], Array]:
    """The pixels that a streak is the mean of.

    Tap i = 0 ... 2 * radius is at ceil(i * cos - 0.5) columns and ceil(i * sin - 0.5) rows from the pixel and weighs
    exp(-i^2 / (2 * sigma^2)), normalised: half a Gaussian.

    Args:
        angle: in degrees.
        radius: in pixels.
        sigma: in pixels.

    Returns:
        Steps (rows down, columns to the right), each once, and their weights, float64, of sum 1.
    """
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    found: dict[tuple[int, int], float] = {}
    for i in range(2 * int(radius) + 1):
        step = (math.ceil(i * sine - 0.5), math.ceil(i * cosine - 0.5))
        found[step] = found.get(step, 0.0) + math.exp(-(i**2) / (2 * sigma**2))
    weights = np.array(list(found.values()))
    return list(found), weights / weights.sum()


def _weighted_sum(image: Tensor, steps: list[tuple[int, int]], weights: list[float] | list[int]) -> Tensor:
    """The sum over the steps of weight * image seen from there; [h, w, c] in the type of `image`."""
    height, width = image.shape[:2]
    (top, bottom), (left, right) = ((max(0, -min(s)), max(0, *s)) for s in zip(*steps, strict=True))
    wide = torch.cat((image[:, :1].expand(-1, left, -1), image, image[:, -1:].expand(-1, right, -1)), 1)
    wide = torch.cat((wide[:1].expand(top, -1, -1), wide, wide[-1:].expand(bottom, -1, -1)))
    total = torch.zeros_like(image, memory_format=torch.contiguous_format)
    for (down, along), weight in zip(steps, weights, strict=True):
        if weight:
            seen = wide[top + down : top + down + height, left + along : left + along + width]
            total.add_(seen, alpha=weight)
    return total
