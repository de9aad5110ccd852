"""Corruptions of brightness, contrast and saturation (Hendrycks and Dietterich 2019, arXiv 1903.12261).

Brightness and saturation are defined in HSV: V the largest channel, S = (V - smallest) / V, the hue kept. The reference
mode goes there and back in float64; the fast one uses the closed forms, made in float64. The two differ by one level
where the exact value is a whole level, which the way through the hue misses by a last bit. Contrast is exact.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# (what is added to the value of HSV, in units of [0, 1],)
BRIGHTNESS: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    "cifar32": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    "tiny64": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    "inception299": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
}

# (factor of the distance from the mean,)
CONTRAST: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    "cifar32": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    "tiny64": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    "inception299": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
}

# (factor of the saturation of HSV, what is added to it then)
SATURATE: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    "cifar32": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    "tiny64": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    "inception299": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}


def brightness(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """Raise the value V of HSV by c, at most to 1, and keep hue and saturation: rgb becomes rgb * min(V + c, 1) / V.

    Black has neither hue nor saturation and becomes the grey c.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (c,).
        mode: reference goes to HSV and back; fast looks up the closed form by (V, level).

    Returns:
        Levels [b, h, w, 3]: uint8 in the fast mode, float64 in the other.
    """
    (raised,) = parameters
    if mode == "reference":
        hue, saturation, value = _to_hsv(images.double() / 255)
        return _from_hsv(hue, saturation, (value + raised).clamp(0, 1)) * 255
    planes = _planes(images)
    largest = _largest(planes)
    place = largest.to(torch.int32).mul_(256).add(planes)
    found = _brighter(raised).to(images.device).index_select(0, place.reshape(-1))
    return torch.stack(found.view(planes.shape).unbind(), -1)


def contrast(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """Move every value towards the mean of its channel over the image: (x - mean) * c + mean.

    The mean comes from a sum of whole levels, so that it is exact, whatever the size and the order.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (c,).
        mode: no difference here: float64, worked out once per image, channel and level.

    Returns:
        uint8 [b, h, w, 3].
    """
    (gain,) = parameters
    count, height, width, _ = images.shape
    lines = images.reshape(count, height, width * 3)
    sums = lines.sum(1, dtype=torch.int32).view(count, width, 3).sum(1)
    # On the CPU: a GPU divides by multiplying with a rounded inverse.
    mean = (sums.cpu().double() / (255 * height * width))[..., None]
    levels = torch.arange(256, dtype=torch.float64) / 255
    table = ((levels - mean) * gain + mean).clamp_(0, 1).mul_(255).to(torch.uint8)
    starts = torch.arange(count * 3, dtype=torch.int32, device=images.device).view(count, 1, 3) * 256
    place = lines.to(torch.int32).add_(starts.repeat(1, 1, width))
    return table.to(images.device).view(-1).index_select(0, place.view(-1)).view(count, height, width, 3)


def saturate(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """Replace the saturation S of HSV by S' = min(a * S + b, 1): a value x becomes V - (V - x) * S' / S.

    Grey has the hue 0 by convention, which is red: where b > 0, the grey V becomes (V, V - V * b, V - V * b), as in the
    published sets.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (a, b).
        mode: reference goes to HSV and back; fast is the closed form, looked up by V and the smallest channel: S' / S,
            for the middle channel, and the new smallest one.

    Returns:
        Levels [b, h, w, 3]: uint8 in the fast mode, float64 in the other.
    """
    factor, added = parameters
    if mode == "reference":
        hue, saturation, value = _to_hsv(images.double() / 255)
        return _from_hsv(hue, (saturation * factor + added).clamp(0, 1), value) * 255
    planes = _planes(images)
    value, least = _largest(planes), torch.minimum(torch.minimum(planes[0], planes[1]), planes[2])
    place = value.to(torch.int32).mul_(256).add_(least).view(-1)
    gain, lower = (t.to(images.device).index_select(0, place).view(value.shape) for t in _stretch(factor, added))
    # Nothing to clip: at least -1e-4, of which the cast makes 0, and at most V.
    result = (value - (value - planes) * gain).to(torch.uint8)
    lowest = planes == least
    lowest[0] &= value > least  # the red of grey
    return torch.stack(torch.where(lowest, lower, result).unbind(), -1)


def _planes(images: Tensor) -> Tensor:
    """Channel by channel: uint8 [3, b, h, w], contiguous, which is several times faster to work on."""
    return images.permute(3, 0, 1, 2).contiguous()


def _largest(planes: Tensor) -> Tensor:
    return torch.maximum(torch.maximum(planes[0], planes[1]), planes[2])


@lru_cache(maxsize=32)
def _brighter(raised: float) -> Tensor:
    """The closed form for every (V, level <= V): uint8 [256 * 256]; entries above V are never read."""
    level = np.arange(256) / 255
    value, channel = level[:, None], np.minimum(level[None, :], level[:, None])
    saturation = np.divide(value - channel, value, out=np.zeros((256, 256)), where=value > 0)
    result = np.minimum(value + raised, 1) * (1 - saturation) * 255
    return torch.from_numpy(result.astype(np.uint8).reshape(-1))


@lru_cache(maxsize=32)
def _stretch(factor: float, added: float) -> tuple[Tensor, Tensor]:
    """For every (V, smallest channel): S' / S, float32, and what becomes of the smallest channel, uint8; [256 * 256]
    each. Most exact whole levels are in that channel. Entries above V are never read."""
    level = np.arange(256) / 255
    value, least = level[:, None], np.minimum(level[None, :], level[:, None])
    saturation = np.divide(value - least, value, out=np.zeros((256, 256)), where=value > 0)
    stretched = np.clip(saturation * factor + added, 0, 1)
    gain = np.divide(stretched, saturation, out=np.zeros((256, 256)), where=saturation > 0)
    lower = value * (1 - stretched) * 255
    return torch.from_numpy(gain.astype(np.float32).reshape(-1)), torch.from_numpy(lower.astype(np.uint8).reshape(-1))


def _to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in [0, 6), saturation and value in [0, 1], each [b, h, w]; grey has hue 0 and saturation 0."""
    red, green, blue = rgb.unbind(-1)
    value, least = rgb.amax(-1), rgb.amin(-1)
    spread = value - least
    safe = torch.where(spread > 0, spread, 1.0)
    hue = torch.where(value == red, (green - blue) / safe, 0.0)
    hue = torch.where(value == green, 2 + (blue - red) / safe, hue)
    hue = torch.where(value == blue, 4 + (red - green) / safe, hue)
    hue = torch.where(spread > 0, hue.remainder(6), 0.0)
    return hue, spread / torch.where(value > 0, value, 1.0), value


def _from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """rgb in [0, 1], [b, h, w, 3], from what `_to_hsv` gives."""
    sector = hue.floor()
    part = hue - sector
    low = value * (1 - saturation)
    falling = value * (1 - part * saturation)
    rising = value * (1 - (1 - part) * saturation)
    choices = torch.stack((value, rising, low, falling), -1)
    # In each sixth of the circle: which of (value, rising, low, falling) is red, green, blue.
    order = torch.tensor([[0, 1, 2], [3, 0, 2], [2, 0, 1], [2, 3, 0], [1, 2, 0], [0, 2, 3]], device=hue.device)
    return choices.gather(-1, order[sector.long().remainder(6)])
