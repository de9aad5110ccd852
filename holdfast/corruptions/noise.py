"""Noise corruptions (Hendrycks and Dietterich 2019, arXiv 1903.12261): each value of each channel on its own."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast import draws

# (standard deviation of the noise, in units of [0, 1],)
GAUSSIAN_NOISE: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    "cifar32": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
}


def draw_normals(
    keys: Tensor, shape: tuple[int, int], *, parameters: tuple[float, ...], parts: tuple[str | int, ...]
) -> Tensor:
    """Standard normal numbers, one per value.

    Args:
        keys: the row `key`, int64 [b].
        shape: height and width of the images.
        parameters: of the severity; the field does not depend on them.
        parts: seed, name and severity: what the draw is for.

    Returns:
        float32 [b, h, w, 3].
    """
    return draws.normal(keys, (*shape, 3), *parts)


def gaussian_noise(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Add c * N(0, 1) to every value, pixels in [0, 1].

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (c,).
        field: standard normal [b, h, w, 3].
        mode: reference works in float64, fast in float32.

    Returns:
        Levels [b, h, w, 3], not clipped.
    """
    (scale,) = parameters
    if mode == "reference":
        return (images.double() / 255 + scale * field.double()).clamp(0, 1) * 255
    # Two operations, not one fused one, whose last bit would depend on a value's place in the tile.
    return (field.to(torch.float32) * (255 * scale)).add_(images)
