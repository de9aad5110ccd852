"""Which images: from what a person types to a source that can be read.

`parse` splits "cifar10:folder", "scenes" or a folder's path into kind and root, `images` makes the record,
`open_source` opens it and checks what can be checked before the first batch. `holdfast ls layouts` shows `layouts()`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from holdfast.configs import OnImages
from holdfast.data import corrupted, dense, folders, listings, official, shifts
from holdfast.data.batches import Source
from holdfast.data.stacked import Stacked
from holdfast.errors import DataError, nearest
from holdfast.records import Data
from holdfast.views import worded

_READERS: Mapping[str, Callable[[Path], listings.Splits]] = {
    **official.READERS,
    "folder": folders.class_folders,
    "flat": folders.flat,
    "imagenet": folders.wnid_folders,
    **shifts.READERS,
    **corrupted.READERS,
    **dense.READERS,
}

_LAYOUTS = {
    "scenes": "drawn shapes with class, mask and depth; no files: --data scenes",
    "folder": "split/class/*.jpg, or class/*.jpg (then --split all); classes are those of the training split, sorted",
    "flat": "*.jpg, at any depth, without labels: for embedding attacks; --split all, or the name of a sub-folder",
    "imagenet": "split/wnid/*.JPEG with the official labels of ImageNet-1k: --data imagenet:folder --split val",
    "cifar10": "cifar-10-batches-py/ with data_batch_1 to 5, test_batch, batches.meta: --data cifar10:folder",
    "cifar100": "cifar-100-python/ with train, test, meta; fine labels: --data cifar100:folder",
    "mnist": "MNIST/raw/*-ubyte or *-ubyte.gz; grey becomes RGB: --data mnist:folder",
    "fashion_mnist": "FashionMNIST/raw/*-ubyte or *-ubyte.gz; grey becomes RGB: --data fashion_mnist:folder",
    "stl10": "stl10_binary/*_X.bin and *_y.bin; splits train, test, unlabeled (no labels): --data stl10:folder",
    "flowers102": "flowers-102/jpg, imagelabels.mat, setid.mat; splits train, val, test: --data flowers102:folder",
    "food101": "food-101/images/class/*.jpg, meta/train.json, meta/test.json: --data food101:folder",
    "tiny_imagenet": "tiny-imagenet-200/ with wnids.txt, train/wnid/images, val/images, val/val_annotations.txt",
    "imagenet_a": "the 200 wnid folders of ImageNet-A; official labels of 1,000: --data imagenet_a:folder",
    "imagenet_r": "the 200 wnid folders of ImageNet-R; official labels of 1,000: --data imagenet_r:folder",
    "imagenet_v2": "folders 0 to 999, the labels; or their parent, a split for each: --data imagenet_v2:folder",
    "imagenet_sketch": "sketch/wnid/*.JPEG with the official labels of ImageNet-1k: --data imagenet_sketch:folder",
    "cifar10_1": "cifar10.1_v6_data.npy and _labels.npy; splits v6, v4: --data cifar10_1:folder",
    "imagenet_c": "corruption/severity/class/image, also below noise/, blur/...: --split fog/3; or --corrupted",
    "imagenet_c_bar": "as imagenet_c, with the ten corruptions of ImageNet-C-bar: --split sparkles/3; or --corrupted",
    "imagenet_3dcc": "as imagenet_c, with the twelve corruptions of ImageNet-3DCC: --split fog_3d/3; or --corrupted",
    "tiny_imagenet_c": "as imagenet_c, 64 pixels; of other photographs than the val images of tiny_imagenet",
    "cifar10_c": "corruption.npy uint8 [5 n, 32, 32, 3] and labels.npy (5 n, or n): --split fog/3; or --corrupted",
    "cifar100_c": "as cifar10_c, with the fine labels of CIFAR-100: --split fog/3; or --corrupted",
    **dense.LAYOUTS,
}


def layouts() -> dict[str, str]:
    """Kinds of source, and in one line each what it looks like on disk."""
    return dict(_LAYOUTS)


def parse(text: str) -> tuple[str, str]:
    """What a person types for images.

    Args:
        text: "scenes", "kind:folder", or a folder. A folder that holds an official set is read as that set; else as
            class folders where it has any folder, else as flat. "crops:16:" before it: the views that an encoder of n
            crops would cut of every image, one below the other (`stacked`).

    Returns:
        Kind (one of `layouts()`) and root ("" for scenes).

    Raises:
        DataError: an unknown kind, no folder there, or a folder with several official sets.
    """
    words, inner = worded(text)
    if words:
        return words + _whole(inner, words), parse(inner)[1]
    if text == "scenes":
        return "scenes", ""
    kind, colon, root = text.partition(":")
    if colon and kind in _READERS:
        return kind, str(_folder(root, kind))
    if colon and re.fullmatch(r"[\w-]{2,}", kind) and not Path(text).exists():
        raise DataError(f"There is no source {kind!r}.", asked=f"Images of {text!r}.", next=nearest(kind, _LAYOUTS))
    if text in _READERS and not Path(text).exists():
        raise DataError(f"{text!r} needs a folder.", next=f"Type --data {text}:folder.")
    path = _folder(text, "")
    named = [name for name, marker in official.MARKERS.items() if marker in (path.name, *folders.subfolders(path))]
    sets = [name for name in named if _READERS[name](path)]
    sets += [name for name in (shifts.kind_of(path), corrupted.kind_of(path)) if name is not None]
    sets += dense.kinds_of(path)
    if len(sets) > 1:
        raise DataError(f"{path} holds {' and '.join(sets)}.", next=f"Say which one: --data {sets[0]}:{path}.")
    if sets:
        return sets[0], str(path)
    return ("folder" if folders.subfolders(path) else "flat"), str(path)


def _whole(text: str, words: str) -> str:
    """The kind of images of which crops are wanted.

    Raises:
        DataError: crops of them would have no truth, or were asked for twice.
    """
    kind = parse(text)[0]
    if "apart" in words or worded(text)[0] or kind in corrupted.KINDS or kind in dense.READERS:
        raise DataError(
            f"{words}{text} cannot be read.",
            asked="The crops of every image, one below the other.",
            next="Give clean images with labels, or none: --data crops:16:cifar10:folder.",
        )
    return kind


def images(
    text: str,
    *,
    split: str = "",
    default_split: str = "test",
    limit: int = 0,
    subset: Literal["random", "first"] = "random",
    classes: str | Sequence[str] = "",
    seed: int = 0,
    size: int = 0,
    resize: int = 0,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Data:  # parameters: one per field of the record
    """The record of which images, from the fields of a verb (as many arguments as the record has fields).

    Args:
        text: as `parse`.
        split: as typed; empty = `default_split` where it exists, else "all" where there are no splits, else "val" for
            "test".
        default_split: the verb's own: train to learn, test to measure.
        limit: at most so many images; 0 = all.
        subset: drawn by `seed`, or the first.
        classes: a file with one per line, comma-separated names, or a sequence of names; empty = all.
        seed: of the subset.
        size: side of the centre crop in pixels; 0 = as stored.
        resize: shorter side in pixels before the crop; 0 = not resized.
        interpolation: of the resize.

    Returns:
        The record; nothing is opened yet.

    Raises:
        DataError: as `parse`; or numbers that contradict each other.
    """
    kind, root = parse(text)
    if min(limit, size, resize) < 0:
        raise DataError(
            f"limit {limit}, size {size}, resize {resize}.", asked="Counts of images and pixels.", next="Use 0 or more."
        )
    if 0 < resize < size:
        raise DataError(
            f"A shorter side of {resize} pixels cannot hold a crop of {size}.", next=f"Use --resize {size} or more."
        )
    return Data(
        source=kind,
        root=root,
        split=split or _own_split(kind, root, default_split),
        limit=limit,
        subset=subset,
        classes=listings.named_classes(classes) if isinstance(classes, str) else tuple(classes),
        seed=seed,
        resize=resize,
        size=size,
        interpolation=interpolation,
    )


class Sides(Protocol):
    """The images that an encoder expects (`models.encoder.Geometry`): sides in pixels, 0 = as stored."""

    @property
    def size(self) -> int: ...

    @property
    def resize(self) -> int: ...

    @property
    def interpolation(self) -> Literal["bilinear", "bicubic"]: ...


def images_for(config: OnImages, sides: Sides, *, split: str, default: str, limit: int | None = None) -> Data:
    """The record of a verb's images, in the size that the encoder expects where nothing else was asked for.

    Images of a corrupted set are taken as they are stored, whatever the encoder expects, unless a size was asked for.
    So are images with a mask or depth: what a crop cuts off would not be measured, and a resize changes what is
    measured. Only scenes, which are drawn in any size, follow the encoder.

    Args:
        config: of the verb.
        sides: what the encoder expects.
        split: as typed; empty = `default`.
        default: the verb's own.
        limit: images at most; None = as the config says.

    Raises:
        DataError: as `images`.
    """
    drawn = config.data == "scenes"
    # Corrupted images were resized and cropped before they were corrupted: they are read as they are stored.
    kind = parse(config.data)[0]
    stored = kind in corrupted.KINDS
    size, resize = (0, 0) if stored or kind in dense.READERS else (sides.size, sides.resize)
    return images(
        config.data,
        split=split,
        default_split=default,
        limit=config.limit if limit is None else limit,
        subset=config.subset,
        classes=config.classes,
        seed=config.seed,
        size=config.size or size,
        # One that was stored is enlarged or shrunk as a whole where a size was asked for, never cropped.
        resize=0 if drawn else config.resize or (config.size if stored else 0 if config.size else resize),
        interpolation=config.interpolation or sides.interpolation,
    )


def open_source(data: Data) -> Source:
    """Open what a record names.

    Args:
        data: which images; a digest in it must be met.

    Returns:
        The source; its `data` has `digest_of_images` filled in.

    Raises:
        DataError: an unknown kind, a missing folder, split or class, an empty class folder, classes that the training
            split has not, images beside class folders, an unreadable file, different sizes, another digest.
    """
    words, kind = worded(data.source)
    if words:
        inner = open_source(msgspec.structs.replace(data, source=kind, digest_of_images=""))
        return Stacked(inner, words, data)
    if data.source == "scenes":
        from holdfast.data.scenes import Scenes

        return Scenes(data)
    if data.source not in _READERS:
        raise DataError(f"There is no source {data.source!r}.", next=nearest(data.source, _LAYOUTS))
    there = _READERS[data.source](_folder(data.root, data.source))
    if data.source in corrupted.KINDS:
        # Before the listing says what every split holds: here that would be millions of files.
        corrupted.check(data.split, there, data.root)
    return listings.stored(data, there)


def splits(text: str) -> tuple[str, ...]:
    """The splits that a source has.

    Args:
        text: as `parse`.

    Raises:
        DataError: as `parse`.
    """
    kind, root = parse(text)
    return _splits(kind, root)


def _splits(kind: str, root: str) -> tuple[str, ...]:
    kind = worded(kind)[1]
    if kind == "scenes":
        from holdfast.data.scenes import SPLITS

        return SPLITS
    return tuple(_READERS[kind](Path(root)))


def _own_split(kind: str, root: str, wanted: str) -> str:
    there = _splits(kind, root)
    if wanted in there:
        return wanted
    if "all" in there:
        return "all"
    if wanted == "test" and "val" in there:
        return "val"
    return there[0] if wanted == "test" and kind in shifts.READERS else wanted


def _folder(text: str, kind: str) -> Path:
    path = Path(text).expanduser()
    if text and path.is_dir():
        return path
    asked = f"Images of {text!r} were asked for."
    if text and path.is_file():
        raise DataError(f"{path} is a file.", asked=asked, next=f"Give its folder: --data {path.parent}.")
    parent = path.parent
    beside = folders.subfolders(parent) if text and parent.is_dir() else []
    found = f" {parent} holds: {', '.join(beside[:8])}{'...' if len(beside) > 8 else ''}." if beside else ""
    hint = nearest(path.name, beside) if text else ""
    if not kind and not hint.startswith("Perhaps"):
        hint = nearest(text, _LAYOUTS)
    raise DataError(
        f"No folder {text or '(none given)'}.{found}",
        asked=asked if text else f"Images of kind {kind} were asked for.",
        next=hint if hint.startswith("Perhaps") else f"Type --data {kind or 'folder'}:path, or a folder that exists.",
    )
