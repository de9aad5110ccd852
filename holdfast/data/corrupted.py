"""Corrupted sets on disk, read as they are stored: the official ones, and what `holdfast corrupt` writes.

`conditions` says what a folder holds, `READERS` open one condition as a split ("fog/3"), `partner` opens the corrupted
versions of given clean images. An image is never resized or cropped a second time: those of ImageNet-C were cropped
before they were corrupted. Arrays have a labels.npy (5 n labels, or n) and, where they are of a subset, an ids.txt (n
lines); their pixels stay on disk and are mapped.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple, final

import msgspec
import numpy as np

from holdfast.data import decode, folders, listings, official
from holdfast.data.batches import Image, Pixels8, Source
from holdfast.data.conditions import ARRAYS, KINDS, VARIANTS, check, conditions, five, held, kind_of, places
from holdfast.data.copies import read_copy
from holdfast.data.listings import Listing, Splits
from holdfast.data.shifts import mapped
from holdfast.errors import DataError
from holdfast.records import Data

__all__ = ["KINDS", "READERS", "VARIANTS", "check", "conditions", "kind_of", "partner"]


def partner(clean: Source, kind: str, root: str | Path, name: str, severity: int, *, size: int = 0) -> Source:
    """The corrupted versions of the images of a source: the same ids, labels, classes and order.

    Files are found by class folder and stem (the id without the split's folder and without its extension, or, where
    the id has other folders, the class and the stem); rows of an array by ids.txt where it is there, else by the number
    that the id ends with, and their labels must agree. Pixels are read as stored.

    Args:
        clean: the images.
        kind: one of `KINDS`.
        root: the corrupted set.
        name: of the corruption.
        severity: 1 to 5.
        size: shorter side that stored images are resized to, in pixels; never cropped. 0 = not resized.

    Returns:
        The source; its `data` names the folder, and its digest is that of the clean images.

    Raises:
        DataError: no such condition, an image without its partner, labels that differ, or another size in pixels than
            the clean images have.
    """
    root = Path(root)
    check(f"{name}/{severity}", [f"{n}/{s}" for n, of in held(kind, root).items() for s in of], root)
    stored = (_rows if kind in ARRAYS else _files)(clean, kind, root, name, severity)
    data = msgspec.structs.replace(
        clean.data, source=kind, root=str(root), split=f"{name}/{severity}", resize=size, size=0
    )
    return _Partner(clean, data, stored)


# -- arrays ------------------------------------------------------------------------------------------------------------


def _severity(root: Path, name: str, severity: int) -> Pixels8:
    """The rows of one severity, uint8 [n, h, w, 3], on disk."""
    array = five(root, name)
    n = len(array) // 5
    return array[(severity - 1) * n : severity * n]


def _classes(kind: str, root: Path) -> tuple[str, ...]:
    """Names of the labels: those of a copy of other images are its own."""
    copy = read_copy(root)
    return copy.classes if copy is not None and copy.classes else ARRAYS[kind]


def _labels(kind: str, root: Path, severity: int, n: int) -> list[int]:
    path = root / "labels.npy"
    stored = mapped(path)
    if stored.ndim != 1 or len(stored) not in (n, 5 * n) or not np.issubdtype(stored.dtype, np.integer):
        raise DataError(
            f"{path} holds {stored.dtype} {list(stored.shape)}.",
            asked=f"Labels are {5 * n:,} integers, those of {n:,} images five times over, or {n:,}.",
            next="Replace the file.",
        )
    labels = [int(label) for label in (stored if len(stored) == n else stored[(severity - 1) * n : severity * n])]
    if not 0 <= min(labels) <= max(labels) < len(_classes(kind, root)):
        raise DataError(
            f"{path} holds labels from {min(labels)} to {max(labels)}.",
            asked=f"{kind} has {len(_classes(kind, root))} classes.",
            next=f"Type cifar100_c:{root}, or replace the file." if kind == "cifar10_c" else "Replace the file.",
        )
    return labels


def _listed_array(kind: str, root: Path, name: str, severity: int) -> Listing:
    pixels = _severity(root, name, severity)
    if pixels.shape[1:3] != (32, 32):
        raise DataError(
            f"{root / name}.npy holds images of {pixels.shape[1]}x{pixels.shape[2]} pixels.",
            asked=f"Those of {kind} are 32x32.",
            next=f"Read copies of other images beside these: --data CLEAN --corrupted {root}.",
        )
    labels = _labels(kind, root, severity, len(pixels))
    return official.from_array(f"{name}/{severity}", pixels, labels, _classes(kind, root))


def _rows(clean: Source, kind: str, root: Path, name: str, severity: int) -> _Images:
    pixels = _severity(root, name, severity)
    path = root / f"{name}.npy"
    names = root / "ids.txt"
    place = {line: row for row, line in enumerate(names.read_text().splitlines())} if names.is_file() else None
    if place is None and clean.labels is None:
        raise DataError(
            f"{root} has no ids.txt, and the images have no labels to check their order by.",
            asked=f"The corrupted version of every image of {clean.data.root or clean.data.source} was asked for.",
            next=f"Name the image of each row in {names}, one per line; or use folders, which have names.",
        )
    numbers = [place.get(one, -1) if place is not None else _number(one) for one in clean.ids]
    missing = [one for one, row in zip(clean.ids, numbers) if not 0 <= row < len(pixels)]
    if missing:
        found = f"{path} holds {len(pixels):,} images per severity, and none for {missing[0]}"
        raise _missing(found, clean, len(missing), "Rows belong to the images of the split that was corrupted.")
    if len(set(numbers)) < len(numbers):
        raise DataError(
            f"The names of the images ({clean.ids[0]}...) do not number the rows of {path}.",
            asked=f"The corrupted version of every image of {clean.data.root or clean.data.source} was asked for.",
            next=f"Name the image of each row in {names}, one per line; or use folders, which have names.",
        )
    if clean.labels is not None:
        _same_labels(clean, _labels(kind, root, severity, len(pixels)), numbers, (path, _classes(kind, root)))
    return _Images(lambda i: pixels[numbers[i]], lambda i: f"{path} (row {numbers[i]} of severity {severity})", ())


def _number(name: str) -> int:
    """The number that an id ends with: test/00017 is row 17."""
    found = re.search(r"(\d{1,9})$", PurePosixPath(name).stem)
    return int(found[1]) if found else -1


def _same_labels(
    clean: Source, labels: Sequence[int], rows: Sequence[int], stored: tuple[Path, tuple[str, ...]]
) -> None:
    assert clean.labels is not None, "asked for by the caller"
    path, names = stored
    for one, label, row in zip(clean.ids, clean.labels, rows):
        # Equal as numbers is enough: a copy of chosen classes is labelled by their order.
        if label != labels[row] and clean.classes[label] != names[labels[row]]:
            raise DataError(
                f"{one} is of class {clean.classes[label]}; row {row} of {path} is of {names[labels[row]]}.",
                asked=f"The corrupted version of {one} was asked for.",
                next="The array was made of other images, or in another order.",
            )


# -- folders -----------------------------------------------------------------------------------------------------------


def _listed_tree(kind: str, root: Path, name: str, severity: int) -> Listing:
    home = places(root)[name].parent
    split = f"{name}/{severity}"
    classes = folders.subfolders(home / split)
    # Tiny-ImageNet's heads count its own 200 classes.
    if kind != "tiny_imagenet_c" and classes and set(classes) <= set(folders.imagenet_names()[0]):
        return folders.imagenet(home, split)
    return folders.by_class(home, split, None)


def _files(clean: Source, kind: str, root: Path, name: str, severity: int) -> _Images:
    home = places(root)[name] / str(severity)
    stems = functools.cache(functools.partial(_stems, home))
    files: list[str] = []
    missing: list[str] = []
    for i, one in enumerate(clean.ids):
        keys = _keys(clean, i)
        found = next((f for f in (stems(key.rpartition("/")[0]).get(key.rpartition("/")[2]) for key in keys) if f), "")
        if found:
            files.append(found)
        else:
            missing.append(f"{keys[-1]}.* of {one}")
    if missing:
        tiny = "The val images of tiny-imagenet-200 are not those that Tiny-ImageNet-C was made of. "
        hint = tiny if kind == "tiny_imagenet_c" else ""
        raise _missing(f"{home} has no {missing[0]}", clean, len(missing), hint)
    if len(set(files)) < len(files):
        twice, _ = Counter(files).most_common(1)[0]
        both = [one for one, file in zip(clean.ids, files) if file == twice]
        raise DataError(f"{twice} would belong to {both[0]} and to {both[1]}.", next="Rename one of the clean files.")
    return _Images(lambda i: decode.decode(files[i]), lambda i: files[i], files)


def _keys(clean: Source, i: int) -> tuple[str, ...]:
    """Where the image may lie, without its extension: as its id says, and by its class."""
    path = PurePosixPath(clean.ids[i].removeprefix(f"{clean.data.split}/")).with_suffix("")
    if clean.labels is None:
        return (str(path),)
    label = clean.classes[clean.labels[i]]
    return (str(path),) if path.parts[0] == label else (str(path), f"{label}/{path.name}")


def _stems(home: Path, folder: str) -> dict[str, str]:
    """Stem to path of the images of one folder, which need not be there."""
    found: dict[str, str] = {}
    inside = home / folder
    for path in sorted(inside.iterdir()) if inside.is_dir() else ():
        if path.name.startswith(".") or path.suffix.lower() not in decode.EXTENSIONS:
            continue
        if path.stem in found:
            raise DataError(f"{found[path.stem]} and {path} have one stem.", next="Keep one of the two.")
        found[path.stem] = str(path)
    return found


def _missing(found: str, clean: Source, missing: int, hint: str) -> DataError:
    n = len(clean)
    rest = "Give the set that was made of these images." if missing == n else "Unpack it again, or take fewer images."
    return DataError(
        f"{found}: {missing:,} of {n:,} are missing, {n - missing:,} are there.",
        asked=f"The corrupted version of every image of {clean.data.root or clean.data.source} was asked for.",
        next=f"{hint.strip()} {rest}".strip(),
    )


# -- sources -----------------------------------------------------------------------------------------------------------


class _Images(NamedTuple):
    """Stored images in the order of the clean ones: pixels by number, what they are called, their files."""

    load: Callable[[int], Pixels8]
    name: Callable[[int], str]
    files: Sequence[str]


@final
class _Partner(Source):
    """The corrupted images that belong to clean ones."""

    def __init__(self, clean: Source, data: Data, stored: _Images) -> None:
        first = clean.read(0)
        self.data, self._clean, self._stored = data, clean, stored
        self.ids, self.labels, self.classes, self.within = clean.ids, clean.labels, clean.classes, clean.within
        self._shape = first.pixels.shape[0], first.pixels.shape[1]
        # Masks and depth are those of the clean image: they are read only where there are any.
        self._dense = bool(set(first.truth) - {"label"})
        if stored.files and len(stored.files) <= listings.CHECKED_FILES:
            for i, file in enumerate(stored.files):
                self._check(i, decode.header(file))
        else:
            self._check(0, stored.load(0).shape[:2])

    def read(self, i: int) -> Image:
        """Image number i as stored, resized only where that was asked for."""
        stored = self._stored.load(i)
        self._check(i, stored.shape[:2])
        pixels = decode.fit(stored, resize=self.data.resize, size=0, interpolation=self.data.interpolation)
        label = {} if self.labels is None else {"label": self.labels[i]}
        return Image(np.array(pixels, order="C"), self._clean.read(i).truth if self._dense else label)

    def _check(self, i: int, stored: tuple[int, ...]) -> None:
        shape = decode.fitted_shape((stored[0], stored[1]), resize=self.data.resize, size=0)
        if shape == self._shape:
            return
        side = min(stored)
        made = "--resize 256 --size 224, as ImageNet-C was made" if side == 224 else f"--size {side}"
        resized = f", {shape[0]}x{shape[1]} when resized" if shape != tuple(stored) else ""
        raise DataError(
            f"{self._stored.name(i)} is {stored[0]}x{stored[1]} pixels{resized}; "
            f"the clean images are {self._shape[0]}x{self._shape[1]}.",
            asked="A corrupted image is compared with its clean one, as stored.",
            next=f"Read the clean images in the stored geometry: {made}.",
        )


def _reader(kind: str) -> Callable[[Path], Splits]:
    listed = _listed_array if kind in ARRAYS else _listed_tree

    def read(root: Path) -> Splits:
        return {
            f"{name}/{severity}": functools.partial(listed, kind, root, name, severity)
            for name, severities in held(kind, root).items()
            for severity in severities
        }

    return read


READERS: Mapping[str, Callable[[Path], Splits]] = MappingProxyType({kind: _reader(kind) for kind in KINDS})
