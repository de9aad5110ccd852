"""Which mask or depth belongs to which image: by stem in two folders, or as a list file says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from holdfast.data import decode, folders
from holdfast.errors import DataError

Pair = tuple[str, str]


def twin_folders(root: Path, image: str, truths: Sequence[str]) -> dict[str, Pair]:
    """Two folders side by side, with splits in them or above them.

    `images/*` and `masks/*` are one split called "all"; `images/train/*` and `masks/train/*`, or `train/images/*` and
    `train/masks/*`, a split for each. Where images lie beside folders, all of them are one split.

    Args:
        root: an existing folder.
        image: name of the images' folder.
        truths: names that the other may have, the first that is there counts.

    Returns:
        Per split both folders, relative to the root; empty where there are none.
    """
    here = _twins(root, "", image, truths)
    if here is None:
        above = ((name, _twins(root, f"{name}/", image, truths)) for name in folders.subfolders(root))
        return {name: pair for name, pair in above if pair is not None}
    if any(entry.suffix.lower() in decode.EXTENSIONS for entry in (root / here[0]).iterdir()):
        return {"all": here}
    within = folders.subfolders(root / here[1])
    splits = [name for name in folders.subfolders(root / here[0]) if name in within]
    return {name: (f"{here[0]}/{name}", f"{here[1]}/{name}") for name in splits} or {"all": here}


def _twins(root: Path, above: str, image: str, truths: Sequence[str]) -> Pair | None:
    truth = next((name for name in truths if (root / f"{above}{name}").is_dir()), None)
    if truth is None or not (root / f"{above}{image}").is_dir():
        return None
    return f"{above}{image}", f"{above}{truth}"


def by_stem(root: Path, images: str, truths: str) -> list[Pair]:
    """Every image of a folder, at any depth, with the file of the other folder that has the same path and stem.

    Args:
        root: that the paths are relative to.
        images: folder of the images.
        truths: folder of masks or depth.

    Returns:
        Pairs in the order of the images' paths; where there is no truth, the name that it should have (.png).

    Raises:
        DataError: two files of the other folder have one stem.
    """
    there: dict[str, str] = {}
    for file in _files(root / truths):
        stem = str(PurePosixPath(file).with_suffix(""))
        if stem in there:
            raise DataError(
                f"{root / truths} holds {there[stem]} and {file}.",
                asked="An image has one truth.",
                next="Remove one of the two.",
            )
        there[stem] = file
    found = []
    for file in _files(root / images):
        stem = str(PurePosixPath(file).with_suffix(""))
        found.append((f"{images}/{file}", f"{truths}/{there.get(stem, f'{stem}.png')}"))
    return found


def _files(folder: Path) -> Sequence[str]:
    return folders.flat(folder)["all"]().ids


def beneath(root: Path, folder: str) -> list[str]:
    """Sorted paths of the images in a folder and beneath it, relative to the folder, with forward slashes."""
    return list(_files(root / folder))


def listed(path: Path) -> Iterator[list[str]]:
    """The words of every line of a list file that is not empty.

    Raises:
        DataError: a line stands there twice.
    """
    seen: set[str] = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] in seen:
            raise DataError(f"{path} names {words[0]} twice.", next="Remove one of the two lines.")
        seen.add(words[0])
        yield words


def located(root: Path, places: Sequence[str], file: str) -> str:
    """A listed file where it is: relative to the first of the places that holds it (the first, where none does)."""
    file = file.lstrip("/")
    options = [f"{place}/{file}" if place else file for place in places]
    return next((option for option in options if (root / option).is_file()), options[0])


def numbered_names(path: Path, count: int, *, first: int = 0) -> tuple[str, ...]:
    """Names of classes from a set's own file, or their numbers where the file is not there.

    Args:
        path: of a file whose lines are a number and a name ("1: person", "0 background"); lines of a number below
            `first` ("0: unlabeled") are left out.
        count: how many classes there are.
        first: number of the first class.

    Raises:
        DataError: not the names of `first` to `first + count - 1`, in this order.
    """
    wanted = [str(number) for number in range(first, first + count)]
    if not path.is_file():
        return tuple(wanted)
    words = [line.replace(":", " ", 1).split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines()]
    words = [word for word in words if word and not (word[0].isdigit() and int(word[0]) < first)]
    if [word[0] for word in words] != wanted or any(len(word) < 2 for word in words):
        raise DataError(
            f"{path} has {len(words)} other lines.",
            asked=f"The names of the classes {first} to {first + count - 1} were asked for, one numbered line each.",
            next="Restore the file, or remove it: the classes then go by their numbers.",
        )
    return tuple(word[1].strip() for word in words)


def one_of(root: Path, places: Sequence[str], mark: str) -> Path | None:
    """The first of the places beneath a root ("" = itself) that has `mark` in it; None where none has."""
    return next((root / place for place in places if (root / place / mark).exists()), None)
