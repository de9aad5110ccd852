"""Masks: a file becomes one class per pixel, and what cannot be one is named with its file.

A mask holds numbers: 8-bit grey, a palette's indices (as PASCAL VOC stores them), one bit, or 16-bit grey. An
`Encoding` says what each number means; 255 is always ignored. Nothing is guessed: colours, JPEG, a number that means
nothing and a mask of another size than its image are errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from holdfast.data import decode, folders
from holdfast.data.batches import IGNORE, Pixels8
from holdfast.data.listings import Listing, PerPixel, check_aligned
from holdfast.errors import DataError

_NOTHING = -1


@dataclass(frozen=True)
class Encoding:
    """What the numbers in the masks of a set mean.

    Attributes:
        parts: names of the classes 0 to K - 1.
        table: int16 [256]: the class of a number, `IGNORE`, or -1 where it means nothing.
        spoken: the same in words, "0 to 20, and 255 = ignored".
    """

    parts: tuple[str, ...]
    table: npt.NDArray[np.int16]
    spoken: str


def encoding(parts: Sequence[str], *, first: int = 0, ignored: Sequence[int] = ()) -> Encoding:
    """Classes that are numbered one after the other.

    Args:
        parts: names, at most 255, none twice.
        first: number of the first class.
        ignored: numbers that belong to no class, beside 255.

    Raises:
        DataError: too many names, or one stands there twice.
    """
    return coded(parts, {first + place: place for place in range(len(parts))}, ignored=ignored)


def coded(parts: Sequence[str], classes: Mapping[int, int], *, ignored: Sequence[int] = ()) -> Encoding:
    """Classes whose numbers are given one by one.

    Args:
        parts: as `encoding`.
        classes: number in the file to class.
        ignored: as `encoding`.

    Raises:
        DataError: as `encoding`.
    """
    twice = next((name for i, name in enumerate(parts) if name in parts[:i]), None)
    if len(parts) > IGNORE or twice is not None:
        raise DataError(
            f"{len(parts)} classes." if twice is None else f'Class "{twice}" is named twice.',
            asked="Classes of masks were named.",
            next=f"Name each once, and at most {IGNORE}: {IGNORE} is the number of ignored pixels.",
        )
    table = np.full(256, _NOTHING, np.int16)
    table[[*ignored, IGNORE]] = IGNORE
    for number, label in classes.items():
        table[number] = label
    valid = sorted(classes)
    return Encoding(tuple(parts), table, f"{_ranges(valid)}, and {_ranges(sorted({*ignored, IGNORE}))} = ignored")


def read_mask(file: str | IO[bytes], code: Encoding, name: str = "") -> Pixels8:
    """The classes of a mask: uint8 [h, w], 0 to K - 1 or `IGNORE`.

    Args:
        file: its path, or an open file.
        code: what the numbers mean.
        name: for the message; empty = the path.

    Raises:
        DataError: no mask of classes (see `numbers`), or a number that means nothing.
    """
    name = name or str(file)
    found = numbers(file, name)
    classes = code.table[np.minimum(found, 255).astype(np.uint8)]
    wrong = (classes == _NOTHING) | (found > 255)
    if wrong.any():
        row, column = (int(at) for at in np.argwhere(wrong)[0])
        raise DataError(
            f"{name} holds {int(found[row, column])} (row {row}, column {column}; {int(wrong.sum()):,} such pixels).",
            asked=f"Masks of {len(code.parts)} classes: {code.spoken}.",
            next="Replace the file, or write 255 where a pixel belongs to no class.",
        )
    return classes.astype(np.uint8)


def numbers(file: str | IO[bytes], name: str = "") -> npt.NDArray[np.int64]:
    """What a mask holds, [h, w], >= 0, not yet looked up.

    Raises:
        DataError: no image; colours (a lost palette), or JPEG, which changes numbers.
    """

    def read(image: Pillow.Image) -> npt.NDArray[np.int64]:
        _check_kind(image, name or str(file))
        return np.asarray(image).astype(np.int64)

    return decode.opened(file, read, name)


def masked(root: Path, pairs: Sequence[tuple[str, str]], code: Encoding) -> Listing:
    """A listing of images with masks.

    Args:
        root: that the paths are relative to.
        pairs: image and mask, with forward slashes; the images' paths are the ids.
        code: what the numbers mean.
    """
    images, masks = ([f"{root}/{pair[side]}" for pair in pairs] for side in (0, 1))
    truth = PerPixel(
        load=lambda i: {"mask": read_mask(masks[i], code)},
        check=lambda i: check_mask(masks[i], images[i]),
        parts=code.parts,
    )
    return replace(folders.from_files(root, [image for image, _ in pairs]), truth=truth)


def check_mask(mask: str, image: str) -> None:
    """Look at the headers of a mask and its image; no pixel is decoded.

    Raises:
        DataError: there is no mask, it holds no numbers, or its size is another one.
    """
    if not Path(mask).is_file():
        raise DataError(
            f"No file {mask}.", asked=f"The mask of {image} was asked for.", next="Add it, or remove the image."
        )

    def shape(opened: Pillow.Image) -> tuple[int, int]:
        _check_kind(opened, mask)
        return opened.height, opened.width

    there = decode.opened(mask, shape)
    check_aligned(decode.header(image), there, image, mask)


def _check_kind(image: Pillow.Image, name: str) -> None:
    asked = "A mask is one number per pixel."
    if image.format == "JPEG":
        raise DataError(f"{name} is JPEG, which changes numbers.", asked=asked, next="Store masks as PNG.")
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise DataError(
            f"{name} holds colours (mode {image.mode}): its palette was lost, or it is a picture of a mask.",
            asked=asked,
            next="Take the original file, or look the colours up in the palette and store their indices as 8-bit PNG.",
        )


def _ranges(sorted_numbers: Sequence[int]) -> str:
    """`0, 7 to 9`."""
    runs: list[list[int]] = []
    for number in sorted_numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in runs)
