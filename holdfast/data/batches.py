"""Images as arrays, and arrays as batches: what every source gives and every consumer takes.

An image is uint8 [h, w, 3] as decoded (EXIF orientation is not applied), a batch is float32 [b, 3, h, w] in [0, 1]: the
bytes divided by 255 and nothing else. Order is the order of the indices, whatever the batch size or the workers.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from holdfast import draws
from holdfast.errors import DataError
from holdfast.records import Data

Rows = Mapping[str, Tensor]
Pixels8 = npt.NDArray[np.uint8]

# A pixel of a mask that belongs to no class: it is neither right nor wrong, and counted as ignored alone.
IGNORE = 255


class Image(NamedTuple):
    """One image with its truth.

    Attributes:
        pixels: uint8 [h, w, 3], after resize and crop; the caller may write into it.
        truth: "label" (int); "mask" (integers [h, w]: a class, or `IGNORE`); "depth" (float32 [h, w] in metres, 0 = not
            measured); whatever the source has. Masks and depth were resized and cropped as the pixels were.
    """

    pixels: Pixels8
    truth: Mapping[str, npt.NDArray[np.generic] | int]


class Batch(NamedTuple):
    """Images of one size.

    Attributes:
        pixels: float32 [b, 3, h, w] in [0, 1].
        rows: "key" int64 [b], the hash of the id; "label" int64 [b], "mask" int64 [b, h, w] (0 to K - 1, or `IGNORE`),
            "depth" float32 [b, h, w] in metres (0 = not measured), where the source has them.
        ids: b names, unique in their source.
    """

    pixels: Tensor
    rows: Rows
    ids: list[str]


class Source(ABC):
    """Images that can be read by index, always the same.

    Attributes:
        data: the record that it was made from, with `digest_of_images` filled in.
        ids: one name per image, unique ("test/cat/0001.png", "test/00042").
        labels: one index into `classes` per image; None where the images have no labels.
        classes: names; empty where the images have no labels.
        within: labels that can occur at all, sorted, where `classes` are more than the set has (ImageNet-A and -R hold
            200 of 1,000); empty = all.
        parts: names of the masks' classes 0 to K - 1; empty where there are no masks.
        max_depth: metres up to which depth is measured; 0 where there is no depth.
    """

    data: Data
    ids: list[str]
    labels: list[int] | None
    classes: tuple[str, ...]
    within: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()
    max_depth: float = 0.0

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, i: int) -> Image:
        """Image number i; safe to call from several threads.

        Raises:
            DataError: the file cannot be decoded; its name is in the message.
        """


def fingerprint(ids: Sequence[str], labels: Sequence[int] | None) -> str:
    """SHA-256 over ids and labels in order, 64 hexadecimal digits: `Data.digest_of_images`."""
    digest = hashlib.sha256()
    for name, label in zip(ids, itertools.repeat("-") if labels is None else labels):
        digest.update(f"{name}\0{label}\n".encode())
    return digest.hexdigest()


def require_labels(source: Source) -> list[int]:
    """The labels of a source, for those who cannot do without.

    Raises:
        DataError: it has none.
    """
    if source.labels is None:
        raise DataError(
            f"{source.data.root or source.data.source} holds {len(source):,} images and no class folders.",
            asked="Labels were asked for.",
            next="Embedding attacks need none (holdfast attack --data ...); accuracy does: see holdfast ls layouts.",
        )
    return source.labels


def batches(source: Source, *, size: int, indices: Sequence[int] | None = None, workers: int = 0) -> Iterator[Batch]:
    """Read images batch by batch.

    Args:
        source: where they come from.
        size: images per batch; the last batch may be smaller.
        indices: which images, in this order; None = all of them in order.
        workers: threads that decode ahead, one batch early; 0 = decode when asked. Changes the speed alone: faster for
            photographs, slower for images of 32 pixels.

    Yields:
        Batches; all of them have the height and width of the first image.

    Raises:
        DataError: an image of another size (two files are named), or one that cannot be decoded.
        ValueError: `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"a batch of {size} images; the size must be at least 1")
    order = list(range(len(source))) if indices is None else [int(i) for i in indices]
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    first: tuple[str, tuple[int, ...]] | None = None
    for chunk, images in zip(chunks, _decoded(source, chunks, workers)):
        first = first or (source.ids[chunk[0]], images[0].pixels.shape)
        _same_size(source, chunk, images, first)
        yield _collated(source, chunk, images)


def read_all(source: Source, indices: Sequence[int] | None = None, *, workers: int = 0) -> tuple[Tensor, Tensor | None]:
    """Read all images into memory, for training on data that fit there.

    Args:
        source: where they come from.
        indices: which images, in this order; None = all of them in order.
        workers: threads that decode.

    Returns:
        uint8 [n, 3, h, w], and the labels int64 [n] (None where the source has none).

    Raises:
        DataError: images of different sizes, one that cannot be decoded, or no image at all.
    """
    order = list(range(len(source))) if indices is None else [int(i) for i in indices]
    if not order:
        raise DataError(f"No image of {source.data.root or source.data.source} was asked for.")
    first = source.read(order[0]).pixels
    stored = torch.empty((len(order), 3, *first.shape[:2]), dtype=torch.uint8)
    chunks = [order[start : start + 256] for start in range(0, len(order), 256)]
    done = 0
    for chunk, images in zip(chunks, _decoded(source, chunks, workers)):
        _same_size(source, chunk, images, (source.ids[order[0]], first.shape))
        stored[done : done + len(chunk)] = _stacked(images).permute(0, 3, 1, 2)
        done += len(chunk)
    labels = None if source.labels is None else torch.tensor([source.labels[i] for i in order], dtype=torch.int64)
    return stored, labels


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [b, 3, h, w] to float32 in [0, 1], each byte divided by 255 and rounded once."""
    # A tensor, not a number: CUDA multiplies by the reciprocal of a number, which is one bit off for some bytes.
    return images.to(torch.float32).div_(torch.tensor(255.0, device=images.device))


def _decoded(source: Source, chunks: Sequence[Sequence[int]], workers: int) -> Iterator[list[Image]]:
    if workers <= 0:
        yield from ([source.read(i) for i in chunk] for chunk in chunks)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[Iterator[Image]] = deque()
    try:
        for chunk in chunks:
            ahead.append(pool.map(source.read, chunk))
            if len(ahead) > 1:
                yield list(ahead.popleft())
        yield from (list(images) for images in ahead)
    finally:
        pool.shutdown(cancel_futures=True)


def _same_size(
    source: Source, chunk: Sequence[int], images: Sequence[Image], first: tuple[str, tuple[int, ...]]
) -> None:
    for i, image in zip(chunk, images):
        if image.pixels.shape != first[1]:
            raise DataError(
                f"{first[0]} is {_spoken(first[1])} and {source.ids[i]} is {_spoken(image.pixels.shape)} pixels.",
                asked="A batch holds images of one size.",
                next="Crop them to one: --size 224 (and --resize 256 to shrink them first).",
            )


def _spoken(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _collated(source: Source, chunk: Sequence[int], images: Sequence[Image]) -> Batch:
    ids = [source.ids[i] for i in chunk]
    rows = {"key": draws.keys(ids)}
    if source.labels is not None:
        rows["label"] = torch.tensor([source.labels[i] for i in chunk], dtype=torch.int64)
    for name in images[0].truth:
        if name != "label":
            values = np.stack([np.asarray(image.truth[name]) for image in images])
            floating = np.issubdtype(values.dtype, np.floating)
            rows[name] = torch.from_numpy(values.astype(np.float32 if floating else np.int64))
    return Batch(to_pixels(_stacked(images).permute(0, 3, 1, 2).contiguous()), rows, ids)


def _stacked(images: Sequence[Image]) -> Tensor:
    return torch.from_numpy(np.stack([image.pixels for image in images]))
