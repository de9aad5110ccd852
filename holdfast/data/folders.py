"""Images in folders: one folder per class, with or without split folders above, ImageNet's wnids, or no classes at all.

Classes are the sorted names of the training split, where there is one: one which lacks a class keeps its labels.
Files and folders whose name begins with a dot are not looked at; sub-folders of a class belong to the class.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from holdfast.data import decode
from holdfast.data.listings import Listing, Splits
from holdfast.errors import DataError

_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
_TRAINING = ("train", "training")


def class_folders(root: Path) -> Splits:
    """`root/split/class/*.jpg`, or `root/class/*.jpg`, which is one split called "all".

    A split folder that holds images and no class folders gives a listing without labels.

    Args:
        root: an existing folder.

    Returns:
        Per split a function that reads its listing; it raises `DataError` where a class is missing from the training
        split or images lie beside the class folders.
    """
    folders = subfolders(root)
    named = [name for name in folders if name.lower() in _SPLITS]
    # A class may be called "train": it is a split only with folders in it, or among split names alone.
    split_names = folders if len(named) == len(folders) else [name for name in named if subfolders(root / name)]
    if split_names:
        training = next((name for name in folders if name.lower() in _TRAINING), None)
        return {name: _lazily(root, name, training) for name in folders}
    deeper = {name: _lazily(root, name, None) for name in folders if subfolders(root / name)}
    return {"all": _lazily(root, "", None), **deeper}


def wnid_folders(root: Path) -> Splits:
    """ImageNet-1k: `root/split/wnid/*.JPEG`. The label is the official index, whichever classes are there.

    Args:
        root: an existing folder.

    Returns:
        Per split a function that reads its listing; it raises `DataError` where a folder is no wnid of ImageNet-1k.
    """
    return {name: functools.partial(imagenet, root, name) for name in subfolders(root)}


def flat(root: Path) -> Splits:
    """Images without labels: all beneath `root` is the split "all", all beneath a sub-folder a split of its name.

    Args:
        root: an existing folder.

    Returns:
        Per split a function that reads its listing.
    """
    return {name or "all": functools.partial(_unlabelled, root, name) for name in ("", *subfolders(root))}


def from_files(
    root: Path, files: Sequence[str], *, labels: Sequence[int] | None = None, classes: tuple[str, ...] = ()
) -> Listing:
    """A listing whose images are files.

    Args:
        root: that the paths are relative to.
        files: relative paths with forward slashes; they are the ids.
        labels: one per file; None = unlabelled.
        classes: names in label order.
    """
    paths = [f"{root}/{file}" for file in files]
    return Listing(files, labels, classes, lambda i: decode.decode(paths[i]), paths)


def _lazily(root: Path, split: str, training: str | None) -> Callable[[], Listing]:
    return functools.partial(by_class, root, split, training)


def by_class(root: Path, split: str, training: str | None) -> Listing:
    """The class folders of a split (empty = the root itself), labelled by those of the training split.

    Raises:
        DataError: a class is missing from the training split, or images lie beside the class folders.
    """
    here = subfolders(root / split)
    if not here:
        return _unlabelled(root, split)
    classes = tuple(subfolders(root / training)) if training and training != split else tuple(here)
    foreign = sorted(set(here) - set(classes))
    if foreign:
        raise DataError(
            f'{split}/ has class "{foreign[0]}", {training}/ has not.',
            asked=f"Labels of {root} were asked for.",
            next=f"Classes come from {training}/: add the folder there, or remove it here.",
        )
    return labelled(root, split, here, classes)


def labelled(
    root: Path,
    split: str,
    here: Sequence[str],
    classes: tuple[str, ...],
    aliases: Mapping[str, tuple[str, ...]] | None = None,
) -> Listing:
    """The images of the folders `here`, each labelled by its place in `classes`.

    Args:
        root: that the ids are relative to.
        split: folder below it; empty = the root itself.
        here: class folders that are there.
        classes: all names in label order.
        aliases: other names of classes.

    Raises:
        DataError: images lie beside the class folders.
    """
    stray = _images(root / split, deep=False)
    if stray:
        raise DataError(
            f"{root / split} holds {len(here):,} class folders and {len(stray):,} images beside them ({stray[0]}...).",
            asked="Labels were asked for.",
            next=f"Move them into class folders, or read all without labels: flat:{root}.",
        )
    files: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for name in here:
        found = [f"{_joined(split, name)}/{file}" for file in _images(root / split / name)]
        files += found
        labels += [classes.index(name)] * len(found)
        if not found:
            empty.append(name)
    listing = from_files(root, files, labels=labels, classes=classes)
    return replace(listing, empty=tuple(empty), aliases=aliases or {})


def _unlabelled(root: Path, split: str) -> Listing:
    files = [_joined(split, file) for file in _images(root / split)]
    return from_files(root, files)


def imagenet(root: Path, split: str) -> Listing:
    """The wnid folders of a split with the official labels of ImageNet-1k.

    Raises:
        DataError: a folder is no wnid of ImageNet-1k, or there is none.
    """
    wnids, aliases = imagenet_names()
    here = subfolders(root / split)
    foreign = [name for name in here if name not in wnids]
    if foreign or not here:
        found = f'"{foreign[0]}", which is not one of them' if foreign else "no folder"
        raise DataError(
            f"{root / split} has {found}.",
            asked="ImageNet-1k is one folder per wnid (n01440764...) in each split.",
            next=f"Sort the images into them, or read the folder for what it is: --data {root}.",
        )
    return labelled(root, split, here, wnids, aliases)


@functools.cache
def imagenet_names() -> tuple[tuple[str, ...], Mapping[str, tuple[str, ...]]]:
    """The wnids in official order (which is their sorted order), and which wnids a word stands for."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    wnids = tuple(info.label_names())
    aliases: dict[str, tuple[str, ...]] = {}
    for wnid, description in zip(wnids, info.label_descriptions()):
        for word in dict.fromkeys(part.strip().lower() for part in description.split(",")):
            aliases[word] = (*aliases.get(word, ()), wnid)
    return wnids, aliases


def _joined(split: str, name: str) -> str:
    return f"{split}/{name}" if split else name


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder that are not hidden."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not _hidden(entry.name) and entry.is_dir())


def _images(folder: Path, *, deep: bool = True) -> list[str]:
    """Sorted relative paths, with forward slashes, of the image files in a folder (and beneath it, where `deep`)."""
    found: list[str] = []
    waiting = [""]
    while waiting:
        beneath = waiting.pop()
        with os.scandir(folder / beneath) as entries:
            for entry in entries:
                if _hidden(entry.name):
                    continue
                if entry.name.lower().endswith(decode.EXTENSIONS):
                    found.append(_joined(beneath, entry.name))
                elif deep and entry.is_dir():
                    waiting.append(_joined(beneath, entry.name))
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
