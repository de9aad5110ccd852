"""A file becomes RGB bytes, and bytes are fitted to the size of the batch.

Grey is replicated, palettes are looked up, an alpha channel is dropped (as torchvision drops it), CMYK is converted by
Pillow, 16-bit grey keeps its high byte (as Pillow keeps it of 16-bit colour). EXIF orientation is not applied;
torchvision's `ImageFolder` does not apply it either. What belongs to every pixel (a mask, depth) is fitted by
`fit_truth` with the geometry of the image, which is computed once, in `_window`.
"""

from __future__ import annotations

import difflib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from holdfast.data.batches import Pixels8
from holdfast.errors import DataError

T = TypeVar("T")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Pillow.DecompressionBombError)
_FILTERS = {"bilinear": Pillow.Resampling.BILINEAR, "bicubic": Pillow.Resampling.BICUBIC}


def header(file: str) -> tuple[int, int]:
    """Height and width in pixels from the first bytes of a file; nothing is decoded.

    Raises:
        DataError: it is no image.
    """
    return opened(file, lambda image: (image.height, image.width))


def decode(file: str | IO[bytes], name: str = "") -> Pixels8:
    """The pixels of a file: uint8 [h, w, 3].

    Args:
        file: its path, or an open file.
        name: for the message; empty = the path.

    Raises:
        DataError: it is no image, is cut short, or holds numbers that are not 8 or 16 bit.
    """
    return opened(file, lambda image: np.asarray(_rgb(image)), name)


def opened(file: str | IO[bytes], read: Callable[[Pillow.Image], T], name: str = "") -> T:
    """What `read` makes of an image as Pillow opens it, with nothing converted.

    Args:
        file: its path, or an open file.
        read: is called while the file is open.
        name: for the message; empty = the path.

    Raises:
        DataError: it is not there, is a folder, is no image, is cut short, or `read` raised `ValueError`.
    """
    try:
        with Pillow.open(file) as image:
            return read(image)
    except _BROKEN as error:
        raise _unreadable(name or str(file), error) from None


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
    window = _window(shape, resize=resize, size=size, name=name)
    if (window.height, window.width) != shape:
        image = Pillow.fromarray(pixels).resize((window.width, window.height), _FILTERS[interpolation])
        pixels = np.asarray(image)
    return window.cut(pixels)


def fit_truth(values: npt.NDArray[Any], *, resize: int, size: int) -> npt.NDArray[Any]:
    """Fit a mask or depth as `fit` fits its image: the nearest neighbour of every pixel's centre, then the same crop.

    Nothing is averaged: classes have no mean, and the mean of depths across an edge is a surface that is not there.

    Args:
        values: numbers of any type, [h, w]; h and w are those of the image before `fit`.
        resize: as in `fit`.
        size: as in `fit`.

    Returns:
        The same type, with height and width as `fit` gives them; the argument itself where nothing is to be done.

    Raises:
        DataError: as `fit`.
    """
    shape = values.shape[0], values.shape[1]
    window = _window(shape, resize=resize, size=size, name="")
    if (window.height, window.width) != shape:
        rows, columns = _nearest(shape[0], window.height), _nearest(shape[1], window.width)
        values = values[rows[:, None], columns]
    return window.cut(values)


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


class _Window(NamedTuple):
    """Height and width after the resize, and what is cut out of it; `size` 0 = everything."""

    height: int
    width: int
    top: int
    left: int
    size: int

    def cut(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if not self.size:
            return values
        return values[self.top : self.top + self.size, self.left : self.left + self.size]


def _window(shape: tuple[int, int], *, resize: int, size: int, name: str) -> _Window:
    """The geometry of an image and of all that belongs to its pixels."""
    height, width = _resized(shape, resize)
    if not size:
        return _Window(height, width, 0, 0, 0)
    check_crop((height, width), size=size, name=name)
    return _Window(height, width, round((height - size) / 2), round((width - size) / 2), size)


def _nearest(there: int, wanted: int) -> npt.NDArray[np.intp]:
    """For each of `wanted` pixels the one of `there` whose square holds its centre."""
    return ((2 * np.arange(wanted, dtype=np.intp) + 1) * there) // (2 * wanted)


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
    """What is said of a file that gave no image: one that is missing and a folder are told from a broken one."""
    if isinstance(error, FileNotFoundError):
        beside = difflib.get_close_matches(Path(file).name, _images_in(Path(file).parent), n=1)
        hint = f'Perhaps you meant "{Path(file).with_name(beside[0])}".' if beside else "Check the path."
        return DataError(f"{file} does not exist.", next=hint)
    if isinstance(error, IsADirectoryError):
        return DataError(f"{file} is a folder, not an image.", next=f"Name the images of a folder by --data {file}.")
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = said.replace(f"'{file}'", "").replace(repr(file), "").strip() or type(error).__name__
    return DataError(f"{file} cannot be read as an image: {reason}.", next="Replace the file, or remove it.")


def _images_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
