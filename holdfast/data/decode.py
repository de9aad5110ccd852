"""A file becomes RGB bytes, and bytes are fitted to the size of the batch.

Grey is replicated, palettes are looked up, an alpha channel is dropped (as torchvision drops it), CMYK is converted by
Pillow, 16-bit grey keeps its high byte (as Pillow keeps it of 16-bit colour). EXIF orientation is not applied;
torchvision's `ImageFolder` does not apply it either.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal

import numpy as np
from PIL import Image as Pillow

from holdfast.data.batches import Pixels8
from holdfast.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Pillow.DecompressionBombError)
_FILTERS = {"bilinear": Pillow.Resampling.BILINEAR, "bicubic": Pillow.Resampling.BICUBIC}


def header(file: str) -> tuple[int, int]:
    """Height and width in pixels from the first bytes of a file; nothing is decoded.

    Raises:
        DataError: it is no image.
    """
    try:
        with Pillow.open(file) as image:
            return image.height, image.width
    except _BROKEN as error:
        raise _unreadable(file, error) from None


def decode(file: str) -> Pixels8:
    """The pixels of a file: uint8 [h, w, 3].

    Raises:
        DataError: it is no image, is cut short, or holds numbers that are not 8 or 16 bit.
    """
    try:
        with Pillow.open(file) as image:
            return np.asarray(_rgb(image))
    except _BROKEN as error:
        raise _unreadable(file, error) from None


def fitted_shape(shape: tuple[int, int], *, resize: int, size: int) -> tuple[int, int]:
    """Height and width after `fit`, which need not be square where `size` is 0."""
    height, width = _resized(shape, resize)
    return (size, size) if size else (height, width)


def fit(
    pixels: Pixels8, *, resize: int, size: int, interpolation: Literal["bilinear", "bicubic"], name: str = ""
) -> Pixels8:
    """Resize the shorter side, then cut the centre: torchvision's `Resize` and `CenterCrop` on Pillow images.

    Args:
        pixels: uint8 [h, w, 3].
        resize: length of the shorter side in pixels; 0 = not resized.
        size: side of the square that is cut out; 0 = not cut.
        interpolation: of the resize, antialiased.
        name: of the image, for the message.

    Returns:
        uint8 [h, w, 3]; the argument itself where nothing is to be done.

    Raises:
        DataError: the image is smaller than the crop; nothing is padded.
    """
    shape = pixels.shape[0], pixels.shape[1]
    height, width = _resized(shape, resize)
    if (height, width) != shape:
        image = Pillow.fromarray(pixels).resize((width, height), _FILTERS[interpolation])
        pixels = np.asarray(image)
    if not size:
        return pixels
    check_crop((height, width), size=size, name=name)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]


def check_crop(shape: tuple[int, int], *, size: int, name: str) -> None:
    """Refuse a crop that is larger than the (resized) image.

    Raises:
        DataError: it is.
    """
    if size > min(shape):
        raise DataError(
            f"{name or 'An image'} is {shape[0]}x{shape[1]} pixels.",
            asked=f"A centre crop of {size} pixels was asked for.",
            next=f"Enlarge them first: --resize {size}, or a smaller --size.",
        )


def _resized(shape: tuple[int, int], resize: int) -> tuple[int, int]:
    """Torchvision's rounding: the longer side is cut down to an integer."""
    height, width = shape
    if not resize:
        return shape
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize


def _rgb(image: Pillow.Image) -> Pillow.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"it holds numbers of Pillow mode {image.mode}, not 8- or 16-bit intensities")
        image = Pillow.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8))
    # By way of RGBA, since Pillow warns where a palette has transparency in bytes.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _unreadable(file: str, error: BaseException) -> DataError:
    reason = str(error).replace(f"'{file}'", "").replace(repr(file), "").strip() or type(error).__name__
    return DataError(f"{file} cannot be read as an image: {reason}.", next="Replace the file, or remove it.")
