"""Shifted test sets: other photographs, renditions and sketches of known classes; and Tiny-ImageNet.

ImageNet-A (Hendrycks et al. 2021, natural adversarial examples), ImageNet-R (Hendrycks et al. 2021, the many faces of
robustness), ImageNet-V2 (Recht et al. 2019), ImageNet-Sketch (Wang et al. 2019), CIFAR-10.1 (Recht et al. 2018),
Tiny-ImageNet (Stanford CS231n). Labels of the ImageNet sets are the official indices, so that a head of 1,000 classes
is measured as it is; ImageNet-A and -R hold 200 of them, which `Listing.within` names. The folder is the set's or its
parent.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from holdfast.data import folders, official
from holdfast.data.batches import Pixels8
from holdfast.data.listings import Listing, Splits
from holdfast.errors import DataError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_HOMES = {
    "imagenet_a": "imagenet-a",
    "imagenet_r": "imagenet-r",
    "imagenet_sketch": "sketch",
    "cifar10_1": "datasets",
    "tiny_imagenet": "tiny-imagenet-200",
}
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_V2_FOLDER, _V2_SUFFIX = "imagenetv2-", "-format-val"


def imagenet_a(root: Path) -> Splits:
    """`imagenet-a/wnid/*.jpg`: 200 classes, official labels."""
    return {"test": functools.partial(_two_hundred, _home(root, "imagenet_a"), "imagenet_a")}


def imagenet_r(root: Path) -> Splits:
    """`imagenet-r/wnid/*.jpg`: 200 classes, official labels."""
    return {"test": functools.partial(_two_hundred, _home(root, "imagenet_r"), "imagenet_r")}


def imagenet_v2(root: Path) -> Splits:
    """Folders 0 to 999, whose names are the official labels; a folder of several such sets has a split for each."""
    several = [name for name in folders.subfolders(root) if name.startswith(_V2_FOLDER)]
    if not several:
        return {"test": functools.partial(_numbered, root)}
    # Matched frequency first: it is what "ImageNet-V2" means where nothing else is said.
    several.sort(key=lambda name: ("matched" not in name, name))
    short = {name.removeprefix(_V2_FOLDER).removesuffix(_V2_SUFFIX): name for name in several}
    return {split: functools.partial(_numbered, root / name) for split, name in short.items()}


def imagenet_sketch(root: Path) -> Splits:
    """`sketch/wnid/*.JPEG`, official labels."""
    return {"test": functools.partial(_sketches, _home(root, "imagenet_sketch"))}


def cifar10_1(root: Path) -> Splits:
    """`cifar10.1_v6_data.npy` and `_labels.npy`; the older v4 is a split of its own."""
    home = _home(root, "cifar10_1")
    there = [version for version in ("v6", "v4") if (home / f"cifar10.1_{version}_data.npy").is_file()]
    return {version: functools.partial(_cifar10_1, home, version) for version in there or ["v6"]}


def tiny_imagenet(root: Path) -> Splits:
    """`tiny-imagenet-200`: train, and val, which is what is measured: the labels of its test were never published."""
    home = _home(root, "tiny_imagenet")
    readers = {"train": _tiny_train, "val": _tiny_val}
    return {split: functools.partial(read, home) for split, read in readers.items() if (home / split).is_dir()}


READERS: Mapping[str, Callable[[Path], Splits]] = {
    "imagenet_a": imagenet_a,
    "imagenet_r": imagenet_r,
    "imagenet_v2": imagenet_v2,
    "imagenet_sketch": imagenet_sketch,
    "cifar10_1": cifar10_1,
    "tiny_imagenet": tiny_imagenet,
}


def kind_of(root: Path) -> str | None:
    """Which of these sets a folder holds, by its names alone; None = none of them.

    Args:
        root: an existing folder.
    """
    here, name = folders.subfolders(root), root.absolute().name
    for kind in ("imagenet_a", "imagenet_r"):
        inside = folders.subfolders(root / _HOMES[kind]) if _HOMES[kind] in here else here
        if tuple(inside) == _wnids_of(kind):
            return kind
    if _is_v2(here, name) or any(_is_v2(folders.subfolders(root / n), n) for n in here if n.startswith(_V2_FOLDER)):
        return "imagenet_v2"
    home = _home(root, "imagenet_sketch")
    if home.absolute().name == _HOMES["imagenet_sketch"] and set(folders.subfolders(home)[:1]) & set(_wnids()):
        return "imagenet_sketch"
    if any((_home(root, "cifar10_1") / f"cifar10.1_{version}_data.npy").is_file() for version in ("v6", "v4")):
        return "cifar10_1"
    home = _home(root, "tiny_imagenet")
    return "tiny_imagenet" if (home / "wnids.txt").is_file() and (home / "train").is_dir() else None


def contents(folder: Path) -> str:
    """What a folder holds, as an error says it: `is empty`, `holds noise.tar, which is not unpacked`, `holds a, b`."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    packed = [name for name in names if name.endswith(_ARCHIVES)]
    if packed:
        return f"holds {_listed(packed)}, not unpacked"
    return f"holds {_listed(names)}" if names else "is empty"


def mapped(path: Path) -> npt.NDArray[Any]:
    """A .npy file that stays on disk: what is read of it is what is looked at.

    Raises:
        DataError: no file, no array, one that holds Python objects, or one that is cut short.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of arrays")
        return array
    except FileNotFoundError:
        raise DataError(f"No file {path}.", next="See holdfast ls layouts for what a set looks like on disk.") from None
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).rstrip(".")
        raise DataError(f"{path} cannot be read as a .npy array: {reason}.", next="Replace the file.") from None


def mapped_images(path: Path) -> Pixels8:
    """A .npy file of images, uint8 [n, h, w, 3], that stays on disk.

    Raises:
        DataError: as `mapped`, or another type or shape.
    """
    array = mapped(path)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise DataError(
            f"{path} holds {array.dtype} {list(array.shape)}.",
            asked="Images are uint8 [n, h, w, 3].",
            next="Replace the file.",
        )
    return array


# -- ImageNet-A, -R, -V2, -Sketch --------------------------------------------------------------------------------------


def _two_hundred(home: Path, kind: str) -> Listing:
    wanted, here = _wnids_of(kind), folders.subfolders(home)
    if tuple(here) != wanted:
        raise _not_the_two_hundred(home, kind, here)
    wnids, aliases = folders.imagenet_names()
    listing = folders.labelled(home, "", here, wnids, aliases)
    return replace(listing, within=tuple(wnids.index(wnid) for wnid in wanted))


def _not_the_two_hundred(home: Path, kind: str, here: list[str]) -> DataError:
    wanted = _wnids_of(kind)
    asked = f"{kind} is 200 folders, from {wanted[0]} to {wanted[-1]}, each with its images."
    other = "imagenet_r" if kind == "imagenet_a" else "imagenet_a"
    if tuple(here) == _wnids_of(other):
        return DataError(f"{home} holds those of {other}.", asked=asked, next=f"Type --data {other}:{home}.")
    missing, foreign = sorted(set(wanted) - set(here)), sorted(set(here) - set(wanted))
    if len(missing) == len(wanted):
        return DataError(f"{home} {contents(home)}.", asked=asked, next="Give the folder that holds them.")
    parts = [f"lacks {_listed(missing, 3)}"] * bool(missing) + [f"has {_listed(foreign, 3)}"] * bool(foreign)
    return DataError(
        f"{home} holds {len(here):,} folders: it {' and '.join(parts)}.",
        asked=asked,
        next=f"Unpack the set again; images of other classes are read as they are with --data folder:{home}.",
    )


def _numbered(home: Path) -> Listing:
    here = folders.subfolders(home)
    strange = [name for name in here if name not in _NUMBERS]
    if strange or not here:
        raise DataError(
            f"{home} has the folder {strange[0]}." if strange else f"{home} {contents(home)}.",
            asked="ImageNet-V2 is folders 0 to 999, whose names are the labels.",
            next=f"Folders named by wnid are read with --data imagenet:{home.parent} --split {home.name}.",
        )
    wnids, aliases = folders.imagenet_names()
    # By number: sorted as text, folder 10 would come before folder 2, which is the classic mistake with this set.
    listing = folders.labelled(home, "", sorted(here, key=int), _NUMBERS, aliases)
    return replace(listing, classes=wnids, empty=tuple(wnids[int(name)] for name in listing.empty))


_NUMBERS = tuple(str(number) for number in range(1000))


def _is_v2(here: list[str], name: str) -> bool:
    """Digits are class folders of many sets: it takes all thousand of them, or the official name."""
    return set(here) == set(_NUMBERS) or (name.startswith(_V2_FOLDER) and bool(here) and set(here) <= set(_NUMBERS))


def _sketches(home: Path) -> Listing:
    return folders.imagenet(home, "")


def _wnids() -> tuple[str, ...]:
    return folders.imagenet_names()[0]


@functools.cache
def _wnids_of(kind: str) -> tuple[str, ...]:
    """The 200 wnids of ImageNet-A or -R, sorted, as timm lists them."""
    text = importlib.resources.files("timm.data").joinpath("_info", f"{kind}_synsets.txt").read_text(encoding="utf-8")
    return tuple(sorted(text.split()))


# -- CIFAR-10.1, Tiny-ImageNet -----------------------------------------------------------------------------------------


def _cifar10_1(home: Path, version: str) -> Listing:
    pixels = mapped_images(home / f"cifar10.1_{version}_data.npy")
    labels = mapped(home / f"cifar10.1_{version}_labels.npy")
    return official.from_array(version, pixels, [int(label) for label in labels.ravel()], CIFAR10)


def _tiny_train(home: Path) -> Listing:
    classes, here = _tiny_classes(home), folders.subfolders(home / "train")
    foreign = sorted(set(here) - set(classes))
    if foreign:
        raise DataError(f"{home}/train has {foreign[0]}, wnids.txt has not.", next="Unpack the set again.")
    return folders.labelled(home, "train", here, classes)


def _tiny_val(home: Path) -> Listing:
    classes = _tiny_classes(home)
    path = home / "val" / "val_annotations.txt"
    rows = [line.split("\t") for line in _text(path).splitlines() if line.strip()]
    strange = next((row for row in rows if len(row) < 2 or row[1] not in classes), None)
    if strange is not None:
        raise DataError(f"{path} has the line {' '.join(strange)[:60]!r}.", next="Unpack the set again.")
    labels = {wnid: label for label, wnid in enumerate(classes)}
    files = [f"val/images/{row[0]}" for row in rows]
    return folders.from_files(home, files, labels=[labels[row[1]] for row in rows], classes=classes)


def _tiny_classes(home: Path) -> tuple[str, ...]:
    return tuple(sorted(_text(home / "wnids.txt").split()))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"No file {path}.", next="See holdfast ls layouts for what a set looks like on disk.") from None


# -- folders -----------------------------------------------------------------------------------------------------------


def _home(root: Path, kind: str) -> Path:
    inside = root / _HOMES[kind]
    return inside if inside.is_dir() else root


def _listed(names: list[str], most: int = 6) -> str:
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
