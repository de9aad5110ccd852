"""Digital corruptions (Hendrycks and Dietterich 2019, arXiv 1903.12261)."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# (what is added to the value of HSV, in units of [0, 1],)
BRIGHTNESS: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    "cifar32": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
}

# (quality,)
JPEG_COMPRESSION: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((25,), (18,), (15,), (10,), (7,)),
    "cifar32": ((80,), (65,), (58,), (50,), (40,)),
}


def brightness(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """Raise the value V of HSV by c, at most to 1, and keep hue and saturation: rgb becomes rgb * min(V + c, 1) / V.

    Black has neither hue nor saturation and becomes the grey c.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (c,).
        mode: reference goes to HSV and back in float64; fast looks up the closed form, made in float64, by (V, level).
            They differ by one level in the middle channel of a pixel, where the exact value is a whole level.

    Returns:
        Levels [b, h, w, 3]: uint8 in the fast mode, float64 in the other.
    """
    (raised,) = parameters
    if mode == "reference":
        hue, saturation, value = _to_hsv(images.double() / 255)
        return _from_hsv(hue, saturation, (value + raised).clamp(0, 1)) * 255
    largest = torch.maximum(torch.maximum(images[..., 0], images[..., 1]), images[..., 2])
    place = (largest.to(torch.int32) * 256)[..., None] + images
    return _brighter(raised).to(images.device).index_select(0, place.reshape(-1)).reshape(images.shape)


def jpeg_compression(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """Through a JPEG file in memory: the given quality, chroma at half resolution (4:2:0), as the published sets.

    Done on the CPU by Pillow, image by image: the published sets are Pillow's, and other encoders, those of GPUs
    included, give other pixels.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (quality,).
        mode: no difference here.

    Returns:
        uint8 [b, h, w, 3].
    """
    return through_jpeg(images, quality=int(parameters[0]))


def through_jpeg(images: Tensor, *, quality: int) -> Tensor:
    """To a JPEG file in memory (4:2:0) and back, on the CPU, image by image.

    Args:
        images: uint8 [b, h, w, 3].
        quality: of Pillow, 1 to 95.

    Returns:
        uint8 [b, h, w, 3] on the device of `images`.
    """
    decoded = []
    for image in images.cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        decoded.append(np.asarray(Image.open(file, formats=("JPEG",))))
    return torch.from_numpy(np.stack(decoded)).to(images.device) if decoded else images


@lru_cache(maxsize=64)
def _brighter(raised: float) -> Tensor:
    """The closed form for every (V, level <= V): uint8 [256 * 256]; entries above V are never read."""
    level = np.arange(256) / 255
    value, channel = level[:, None], np.minimum(level[None, :], level[:, None])
    saturation = np.divide(value - channel, value, out=np.zeros((256, 256)), where=value > 0)
    result = np.minimum(value + raised, 1) * (1 - saturation) * 255
    return torch.from_numpy(result.astype(np.uint8).reshape(-1))


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
