"""What lies on disk, before it is read: listings, how classes and subsets are chosen from them, and the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import msgspec
import numpy as np
import numpy.typing as npt

from holdfast import draws
from holdfast.data import decode
from holdfast.data.batches import Image, Pixels8, Source, fingerprint
from holdfast.errors import DataError, nearest
from holdfast.records import Data

# The headers of more files than this are not looked at beforehand: nobody waits so long for a first batch.
CHECKED_FILES = 20_000
_LISTED_CLASSES = 100


@dataclass(frozen=True)
class PerPixel:
    """What a listing knows of every pixel of its images: masks, or depth.

    Attributes:
        load: of image number i, before resize and crop: "mask" uint8 [h, w], or "depth" float32 [h, w].
        check: looks at image number i without decoding it, and raises `DataError` where its truth is missing, of
            another size, or of a kind that cannot be one.
        parts: names of the masks' classes.
        max_depth: metres up to which depth is measured.
    """

    load: Callable[[int], Mapping[str, npt.NDArray[Any]]]
    check: Callable[[int], None]
    parts: tuple[str, ...] = ()
    max_depth: float = 0.0


@dataclass(frozen=True)
class Listing:
    """One split of a data set.

    Attributes:
        ids: one unique name per image, in order.
        labels: one index into `classes` per image; None = unlabelled.
        classes: names in label order.
        load: image number i as uint8 [h, w, 3], before resize and crop.
        files: path per image where each has its own file; empty otherwise.
        empty: class folders without an image.
        aliases: other names of classes (ImageNet: words for wnids), in lower case.
        within: labels that can occur at all, sorted, where `classes` are more than the set has; empty = all.
        truth: masks or depth; None = there are none.
        shape: height and width of a file as `load` gives it, without decoding.
    """

    ids: Sequence[str]
    labels: Sequence[int] | None
    classes: tuple[str, ...]
    load: Callable[[int], Pixels8]
    files: Sequence[str] = ()
    empty: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    within: tuple[int, ...] = ()
    truth: PerPixel | None = None
    shape: Callable[[str], tuple[int, int]] = decode.header

    def spoken(self) -> str:
        """`10 classes, 9,469 images`."""
        images = f"{len(self.ids):,} image{'' if len(self.ids) == 1 else 's'}"
        return f"{len(self.classes):,} classes, {images}" if self.labels is not None else images


Splits = Mapping[str, Callable[[], Listing]]


@final
class Stored(Source):
    """Images of a listing that were chosen by a `Data` record."""

    def __init__(self, data: Data, listing: Listing, indices: Sequence[int], labels: Sequence[int] | None) -> None:
        self._listing, self._indices = listing, list(indices)
        self.ids = [listing.ids[i] for i in indices]
        self.labels = None if labels is None else list(labels)
        self.classes, self.within = listing.classes, listing.within
        if listing.truth is not None:
            self.parts, self.max_depth = listing.truth.parts, listing.truth.max_depth
        digest = fingerprint(self.ids, self.labels)
        if data.digest_of_images not in ("", digest):
            raise DataError(
                f"{data.root} holds other images or labels today (digest {digest[:12]}).",
                asked=f"The record names the images {data.digest_of_images[:12]} of {data.source}, split {data.split}.",
                next="Restore the folder, or start anew in another --out.",
            )
        there = len(set(listing.labels)) if listing.labels is not None else 0
        self.data = msgspec.structs.replace(data, digest_of_images=digest, classes_there=there)

    def read(self, i: int) -> Image:
        """Image number i, resized and cropped as `data` says; its mask or depth with the same geometry."""
        stored = self._listing.load(self._indices[i])
        resize, size = self.data.resize, self.data.size
        pixels = decode.fit(stored, resize=resize, size=size, interpolation=self.data.interpolation, name=self.ids[i])
        truth: dict[str, npt.NDArray[Any] | int] = {} if self.labels is None else {"label": self.labels[i]}
        if self._listing.truth is not None:
            for name, values in self._listing.truth.load(self._indices[i]).items():
                check_aligned(stored.shape[:2], values.shape, self.ids[i], f"its {name}")
                truth[name] = np.array(decode.fit_truth(values, resize=resize, size=size), order="C")
        return Image(np.array(pixels, order="C"), truth)


def stored(data: Data, splits: Splits) -> Stored:
    """Choose split, classes and subset, and check what can be checked before the first batch.

    Args:
        data: what was asked for.
        splits: what there is.

    Returns:
        The source.

    Raises:
        DataError: no such split or class, an empty class folder, no image at all, an unreadable file, images of
            different sizes although no crop makes them equal.
    """
    listing = _split(data, splits)
    listing, kept, labels = _of_classes(data, listing)
    if not kept:
        raise DataError(
            f"It holds none ({', '.join(decode.EXTENSIONS)}).",
            asked=f"Images of {_where(data)} were asked for.",
            next="See holdfast ls layouts.",
        )
    chosen = _subset(len(kept), data)
    indices = [kept[i] for i in chosen]
    if len(indices) <= CHECKED_FILES:
        if listing.truth is not None:
            for i in indices:
                listing.truth.check(i)
        if listing.files:
            _check_headers(data, listing, [listing.files[i] for i in indices])
    return Stored(data, listing, indices, None if labels is None else [labels[i] for i in chosen])


def check_aligned(image: tuple[int, ...], truth: tuple[int, ...], name: str, what: str) -> None:
    """Refuse a mask or depth whose pixels are not those of its image.

    Args:
        image: height and width.
        truth: height and width.
        name: of the image.
        what: how the message calls the truth: its file, or "its mask".

    Raises:
        DataError: they differ; a transposed one is called so.
    """
    if image == truth:
        return
    found = f"{name} is {image[0]}x{image[1]} pixels, {what} {truth[0]}x{truth[1]}"
    if image == truth[::-1]:
        raise DataError(
            f"{found}: it is transposed.",
            asked="Every pixel of an image needs its truth.",
            next="Turn one of them, as the picture shows; nothing is turned here.",
        )
    raise DataError(
        f"{found}.",
        asked="Every pixel of an image needs its truth.",
        next="Store both in one size (masks and depth by nearest neighbour), or remove the pair.",
    )


def named_classes(text: str) -> tuple[str, ...]:
    """Classes as people give them.

    Args:
        text: a file with one class per line, or names with commas between them; empty = none were named.

    Raises:
        DataError: a name stands there twice.
    """
    path = Path(text).expanduser()
    from_file = bool(text) and path.is_file()
    words = path.read_text(encoding="utf-8").splitlines() if from_file else text.split(",")
    names = tuple(word.strip() for word in words if word.strip())
    _refuse_twice(names)
    return names


def _refuse_twice(names: Sequence[str]) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f'Class "{twice}" is named twice.', next="Name every class once: its place is its label.")


def _split(data: Data, splits: Splits) -> Listing:
    name = data.split or "all"
    if name in splits:
        return splits[name]()
    found = ", ".join(f"{split} ({_counted(load)})" for split, load in splits.items())
    others = list(splits)
    likely = next((split for split in ("test", "val") if split in others), others[0] if others else "")
    hint = f"Use --split {likely}." if likely else "See holdfast ls layouts."
    raise DataError(
        f"Found: {found or f'nothing that looks like {data.source}'}.",
        asked=f"No split {data.split} in {data.root}." if data.split else f"{data.root} has several splits.",
        next=hint,
    )


def _counted(load: Callable[[], Listing]) -> str:
    try:
        return load().spoken()
    except DataError:
        return "not readable"


def _of_classes(data: Data, listing: Listing) -> tuple[Listing, list[int], list[int] | None]:
    """The listing with the classes asked for, the images that belong to them, and their new labels."""
    everything = list(range(len(listing.ids)))
    if listing.labels is None:
        if data.classes:
            raise DataError(f"{_where(data)} has no labels.", asked="Classes were chosen.", next="Leave out --classes.")
        return listing, everything, None
    wanted = [_canonical(name, listing) for name in data.classes] or list(listing.classes)
    _refuse_twice(wanted)
    empty = [name for name in listing.empty if name in wanted]
    if empty:
        raise DataError(
            f'Class folder "{empty[0]}" of {_where(data)} holds no image ({", ".join(decode.EXTENSIONS)}).',
            next="Fill it, remove it, or name the other classes: --classes a,b.",
        )
    place = {listing.classes.index(name): label for label, name in enumerate(wanted)}
    kept = [i for i, label in enumerate(listing.labels) if label in place]
    labels = [place[listing.labels[i]] for i in kept]
    within = tuple(sorted(place[label] for label in listing.within if label in place))
    # Where every class that is left can occur, nothing is to be said.
    within = within if len(within) < len(wanted) else ()
    return replace(listing, classes=tuple(wanted), within=within), kept, labels


def _canonical(name: str, listing: Listing) -> str:
    if name in listing.classes:
        return name
    meant = listing.aliases.get(name.lower(), ())
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise DataError(f'"{name}" names {" and ".join(meant)}.', next="Use the folder name that you mean.")
    hint = nearest(name, [*listing.classes, *listing.aliases])
    if not hint.startswith("Perhaps") and len(listing.classes) > _LISTED_CLASSES:
        hint = f"There are {len(listing.classes):,}, from {listing.classes[0]} to {listing.classes[-1]}."
    raise DataError(f'There is no class "{name}".', next=hint)


def _subset(n: int, data: Data) -> list[int]:
    if data.subset == "first":
        return list(range(min(n, data.limit) if data.limit > 0 else n))
    return draws.subset(n, data.limit, data.seed, "subset")


def _check_headers(data: Data, listing: Listing, files: Sequence[str]) -> None:
    """Look at the size of every image, so that a long run does not end at the last one."""
    first: tuple[str, tuple[int, int]] | None = None
    for file in files:
        whole = decode.fitted_shape(listing.shape(file), resize=data.resize, size=0)
        if data.size:
            decode.check_crop(whole, size=data.size, name=file)
            continue
        first = first or (file, whole)
        if whole != first[1]:
            raise DataError(
                f"{first[0]} is {first[1][0]}x{first[1][1]} and {file} is {whole[0]}x{whole[1]} pixels.",
                asked="A batch holds images of one size.",
                next="Crop them to one: --size 224 (and --resize 256 to shrink them first)."
                + (" What is cut off is not measured." if listing.truth is not None else ""),
            )


def _where(data: Data) -> str:
    return f"{data.root} (split {data.split})" if data.split else data.root
