"""Digital corruptions (Hendrycks and Dietterich 2019, arXiv 1903.12261): fewer pixels, and JPEG.

Both are Pillow's, as the published sets are, image by image on the CPU: other encoders, those of GPUs included, and
other ways to take means of boxes give other pixels. Pillow is also the fastest exact form of either.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

# (share of the width and of the height that is kept,)
PIXELATE: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    "cifar32": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    "tiny64": ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)),
    "inception299": ((0.5,), (0.4,), (0.3,), (0.25,), (0.2,)),
}

# Of the files of ImageNet-C and Tiny-ImageNet-C.
STORED_QUALITY = 85

# (quality,)
JPEG_COMPRESSION: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((25,), (18,), (15,), (10,), (7,)),
    "cifar32": ((80,), (65,), (58,), (50,), (40,)),
    "tiny64": ((65,), (58,), (50,), (40,), (25,)),
    "inception299": ((23,), (16,), (13,), (8,), (5,)),
}


def pixelate(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """Shrink by means of boxes to int(c * width) x int(c * height) pixels, at least one, and enlarge again likewise.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (c,).
        mode: no difference here.

    Returns:
        uint8 [b, h, w, 3].
    """
    (share,) = parameters
    size = images.shape[2], images.shape[1]
    small = max(1, int(size[0] * share)), max(1, int(size[1] * share))
    enlarge = Image.Resampling.NEAREST if _copies(small, size) else Image.Resampling.BOX
    result = torch.empty(images.shape, dtype=torch.uint8)
    for row, image in zip(result.numpy(), images.cpu().numpy(), strict=True):
        shrunk = Image.fromarray(image).resize(small, Image.Resampling.BOX)
        row[:] = np.asarray(shrunk.resize(size, enlarge))
    return result.to(images.device)


def jpeg_compression(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """Through a JPEG file in memory: the given quality, chroma at half resolution (4:2:0), as the published sets.

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
    result = torch.empty(images.shape, dtype=torch.uint8)
    for row, image in zip(result.numpy(), images.cpu().numpy(), strict=True):
        row[:] = np.asarray(Image.open(io.BytesIO(to_jpeg(image, quality=quality)), formats=("JPEG",)))
    return result.to(images.device)


def to_jpeg(image: npt.NDArray[np.uint8], *, quality: int, optimize: bool = False) -> bytes:
    """The JPEG file (4:2:0) of one image.

    Args:
        image: uint8 [h, w, 3].
        quality: of Pillow, 1 to 95.
        optimize: a smaller file of the same pixels.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=optimize)
    return file.getvalue()


@lru_cache(maxsize=64)
def _copies(small: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether enlarging by boxes copies the nearest pixel, which Pillow does ten times faster; almost always so. Tried
    on numbered pixels: where a box takes in two of them, its mean is the number of neither."""
    numbered = Image.fromarray(np.arange(small[0] * small[1], dtype=np.float32).reshape(small[::-1]))
    by_box, nearest = (np.asarray(numbered.resize(size, m)) for m in (Image.Resampling.BOX, Image.Resampling.NEAREST))
    return bool(np.array_equal(by_box, nearest))
