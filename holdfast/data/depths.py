"""Depth: a file becomes metres per pixel, and what cannot be depth is named with its file.

A file holds whole numbers of 16 bits (or 32), or floating-point numbers, and a `Scale` says how many of them are one
metre. 0 means that a pixel was not measured; so do the numbers that the scale calls invalid, and what is not finite.
Distances beyond `max_depth` stay as they are: what is measured on is the task's to say, for clean and attacked alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from holdfast.codec import Record
from holdfast.data import decode, folders
from holdfast.data.batches import Pixels8
from holdfast.data.listings import Listing, PerPixel, check_aligned
from holdfast.errors import DataError

Depth = npt.NDArray[np.float32]
Shape = tuple[int, int]
Cut = Callable[[Shape, str], tuple[slice, slice]]


class Scale(Record, frozen=True, kw_only=True):
    """How numbers become metres; the content of a `depth.yaml`.

    Attributes:
        scale: so many units are one metre: 1000 where the files hold millimetres, 256 for KITTI, 1 for metres.
        max_depth: metres up to which depth is measured.
        invalid: numbers that mean "not measured", beside 0.
    """

    scale: float
    max_depth: float
    invalid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (0 < self.scale < float("inf") and 0 < self.max_depth < float("inf")):
            raise ValueError(f"scale {self.scale} and max_depth {self.max_depth} must be above 0")


def metres(stored: npt.NDArray[Any], scale: Scale, name: str) -> Depth:
    """Depth from the numbers of a file.

    Args:
        stored: whole or floating-point numbers, [h, w].
        scale: what they mean.
        name: of the file, for the message.

    Returns:
        float32 [h, w] in metres, >= 0; 0 where nothing was measured.

    Raises:
        DataError: a number below 0, or not two dimensions.
    """
    if stored.ndim != 2:
        raise DataError(
            f"{name} holds {stored.ndim} dimensions.", asked="Depth is one number per pixel.", next="Replace the file."
        )
    measured = np.isfinite(stored) & ~np.isin(stored, (0.0, *scale.invalid))
    if (stored[measured] < 0).any():
        raise DataError(
            f"{name} holds {float(stored[measured].min()):g}.",
            asked="Depth is a distance, 0 where nothing was measured.",
            next="Write 0 there; a folder with a depth.yaml can name the number under invalid.",
        )
    found: Depth = np.where(measured, stored, 0).astype(np.float32) / np.float32(scale.scale)
    return found


def read_numbers(file: str | IO[bytes], name: str = "") -> npt.NDArray[Any]:
    """What a depth file holds: uint16, int32 or float32 [h, w].

    Raises:
        DataError: no image, or one of 8 bits or of colours: a picture of depth.
    """

    def read(image: Pillow.Image) -> npt.NDArray[Any]:
        _check_kind(image, name or str(file))
        return np.asarray(image)

    return decode.opened(file, read, name)


def measured(root: Path, pairs: Sequence[tuple[str, str]], scale: Scale, cut: Cut | None = None) -> Listing:
    """A listing of images with depth.

    Args:
        root: that the paths are relative to.
        pairs: image and depth, with forward slashes; the images' paths are the ids.
        scale: what the numbers mean.
        cut: the part of image and depth that belongs to the set, from height and width and the image's name; None =
            all of it.
    """
    images, depths = ([f"{root}/{pair[side]}" for pair in pairs] for side in (0, 1))
    part = cut or (lambda shape, name: (slice(0, shape[0]), slice(0, shape[1])))

    def load(i: int) -> Pixels8:
        pixels = decode.decode(images[i])
        return pixels[part((pixels.shape[0], pixels.shape[1]), images[i])]

    def depth(i: int) -> dict[str, Depth]:
        found = metres(read_numbers(depths[i]), scale, depths[i])
        return {"depth": found[part((found.shape[0], found.shape[1]), depths[i])]}

    def shape(file: str) -> Shape:
        whole = decode.header(file)
        rows, columns = part(whole, file)
        return len(range(whole[0])[rows]), len(range(whole[1])[columns])

    truth = PerPixel(load=depth, check=lambda i: check_depth(depths[i], images[i]), max_depth=scale.max_depth)
    listing = folders.from_files(root, [image for image, _ in pairs])
    return replace(listing, load=load, shape=shape, truth=truth)


def check_depth(depth: str, image: str) -> None:
    """Look at the headers of a depth file and its image; no pixel is decoded.

    Raises:
        DataError: there is no depth, it cannot be depth, or its size is another one.
    """
    if not Path(depth).is_file():
        raise DataError(
            f"No file {depth}.", asked=f"The depth of {image} was asked for.", next="Add it, or remove the image."
        )

    def shape(opened: Pillow.Image) -> Shape:
        _check_kind(opened, depth)
        return opened.height, opened.width

    there = decode.opened(depth, shape)
    check_aligned(decode.header(image), there, image, depth)


def _check_kind(image: Pillow.Image, name: str) -> None:
    if not image.mode.startswith(("I", "F")):
        raise DataError(
            f"{name} holds 8 bits or colours (mode {image.mode}): it is a picture of depth.",
            asked="Depth is one number of 16 or 32 bits per pixel.",
            next="Export the depth itself: 16-bit PNG, or TIFF.",
        )
