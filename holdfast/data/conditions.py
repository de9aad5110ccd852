"""Which corruptions and severities a folder of corrupted images holds, and what is said where it holds none.

ImageNet-C, Tiny-ImageNet-C, CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019), ImageNet-C-bar (Mintun et al.
2021), ImageNet-3DCC (Kar et al. 2022), and what `holdfast corrupt` writes. Folders are corruption/severity/class/image,
or family/corruption/severity/... as the archives of ImageNet-C are grouped. Arrays are one corruption.npy per
corruption, uint8 [5 n, h, w, 3], severity s in rows (s - 1) n to s n. ImageNet-C has 4.75 million files: two or three
levels of folders are listed here, and no image is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from holdfast.data import decode, folders
from holdfast.data.batches import Pixels8
from holdfast.data.shifts import CIFAR10, contents, mapped, mapped_images
from holdfast.errors import DataError, nearest
from holdfast.records import Variant

_PUBLISHED = (
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness "
    "contrast elastic_transform pixelate jpeg_compression speckle_noise gaussian_blur spatter saturate"
)
_C_BAR = (
    "blue_noise_sample brownish_noise caustic_refraction checkerboard_cutout cocentric_sine_waves inverse_sparkles "
    "perlin_noise plasma_noise single_frequency_greyscale sparkles"
)
_THREE_D = (
    "near_focus far_focus fog_3d flash color_quant iso_noise low_light bit_error h265_abr h265_crf xy_motion_blur "
    "z_motion_blur"
)
FAMILIES = ("noise", "blur", "weather", "digital", "extra")
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)

PUBLISHED = tuple(_PUBLISHED.split())
C_BAR, THREE_D = tuple(_C_BAR.split()), tuple(_THREE_D.split())
CIFAR100 = tuple(_CIFAR100.split())

# The severity table that each set was made by; of sets with corruptions of their own, the images that they are made of.
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "imagenet_c": "imagenet224",
        "imagenet_c_bar": "imagenet224",
        "imagenet_3dcc": "imagenet224",
        "tiny_imagenet_c": "tiny64",
        "cifar10_c": "cifar32",
        "cifar100_c": "cifar32",
    }
)
KINDS = tuple(VARIANTS)

# Sets of arrays, and the names of their classes.
ARRAYS: Mapping[str, tuple[str, ...]] = MappingProxyType({"cifar10_c": CIFAR10, "cifar100_c": CIFAR100})

_SEVERITIES = (1, 2, 3, 4, 5)
_KNOWN = frozenset((*PUBLISHED, *C_BAR, *THREE_D))
_WNID = re.compile(r"n\d{8}")
# Of a folder with more sub-folders than this, only the first are searched for a set that lies one level deeper.
_SEARCHED = 50


def conditions(kind: str, root: str | Path) -> tuple[tuple[str, int], ...]:
    """The corruptions and severities that a folder holds; two or three levels of folders are listed, and no image.

    Args:
        kind: one of `KINDS`.
        root: the folder.

    Returns:
        (corruption, severity): the published 19 in their order, others after them by name; severities rising.

    Raises:
        DataError: an unknown kind; no such set there (with what is there instead); a severity other than 1 to 5; a
            corruption without severities, or without those that others have; arrays of different lengths.
    """
    there = held(kind, Path(root))
    most = max(there.values(), key=len)
    for name, severities in there.items():
        if severities != most:
            raise DataError(
                f"{name} has the severities {_spoken(severities)}, others have {_spoken(most)}.",
                asked=f"The conditions of {root} were asked for.",
                next=f"Unpack {name} again, or move it out of the folder.",
            )
    return tuple((name, severity) for name, severities in there.items() for severity in severities)


def kind_of(root: str | Path) -> str | None:
    """Which corrupted set a folder holds, by its names; None = none. Trees of 64-pixel images of wnids are Tiny's.

    Args:
        root: an existing folder.
    """
    root = Path(root)
    if any((root / f"{name}.npy").is_file() for name in PUBLISHED):
        labels = root / "labels.npy"
        stored = mapped(labels) if labels.is_file() else np.zeros(0, np.int64)
        whole = np.issubdtype(stored.dtype, np.integer)  # others are refused, by name, when they are read
        return "cifar100_c" if whole and int(stored.max(initial=0)) >= len(CIFAR10) else "cifar10_c"
    found = {path.name: path for path in _candidates(root) if path.name in _KNOWN and _has_severity(path)}
    if found.keys() & set(PUBLISHED):
        first = next(iter(found.values()))
        severity = next(severity for severity in _SEVERITIES if (first / str(severity)).is_dir())
        return "tiny_imagenet_c" if _is_tiny(first / str(severity)) else "imagenet_c"
    if found:
        return "imagenet_c_bar" if found.keys() & set(C_BAR) else "imagenet_3dcc"
    return None


def check(split: str, there: Iterable[str], root: str | Path) -> None:
    """Refuse a condition that is not there, without counting what is.

    Args:
        split: "fog/3".
        there: all splits.
        root: of the set, for the message.

    Raises:
        DataError: it is not there.
    """
    known = list(there)
    if split in known:
        return
    names = sorted({one.split("/")[0] for one in known})
    name = split.partition("/")[0]
    own = [one for one in known if one.split("/")[0] == name]
    hint = f"{name} has the severities {', '.join(one.split('/')[1] for one in own)}." if own else nearest(name, names)
    raise DataError(
        f"{root} holds {len(known)} conditions of {len(names)} corruptions.",
        asked=f"No condition {split or '(none named)'}.",
        next=f"{hint} A condition is corruption/severity: --split {(own or known)[0]}.",
    )


# -- what is there -----------------------------------------------------------------------------------------------------


def held(kind: str, root: Path) -> dict[str, tuple[int, ...]]:
    """Severities per corruption, in the order of `conditions`, whether or not all have the same.

    Args:
        kind: one of `KINDS`.
        root: of the set.

    Raises:
        DataError: as `conditions`, but for severities that only some have.
    """
    if kind not in KINDS:
        raise DataError(f"{kind} is no corrupted set.", asked=f"Conditions of {root}.", next=nearest(kind, KINDS))
    if not root.is_dir():
        raise DataError(f"No folder {root}.", asked=f"Images of kind {kind}.", next="Give a folder that exists.")
    found: dict[str, tuple[int, ...]]
    if kind in ARRAYS:
        found = dict.fromkeys(_arrays(root), _SEVERITIES)
    else:
        found = {name: _severities(path) for name, path in places(root).items()}
    if not found:
        raise _nothing(kind, root)
    return {name: found[name] for name in sorted(found, key=_place)}


def _spoken(severities: tuple[int, ...]) -> str:
    return ", ".join(map(str, severities))


def _place(name: str) -> tuple[int, str]:
    return (PUBLISHED.index(name), "") if name in PUBLISHED else (len(PUBLISHED), name)


def _candidates(root: Path) -> list[Path]:
    """Folders that may be corruptions: those in the root, and those in its family folders."""
    here = folders.subfolders(root)
    families = [root / family for family in FAMILIES if family in here]
    inside = [family / name for family in families for name in folders.subfolders(family)]
    return [root / name for name in here] + inside


def places(root: Path) -> dict[str, Path]:
    """The folder of each corruption. What has a known name must be one; of others, only what has a severity is.

    Raises:
        DataError: a corruption without severities, with others than 1 to 5, or in two places.
    """
    found: dict[str, Path] = {}
    for path in _candidates(root):
        if path.name not in _KNOWN and not _has_severity(path):
            continue
        if path.name in found:
            raise DataError(
                f"{path.name} lies in {found[path.name].parent} and in {path.parent}.", next="Keep one of the two."
            )
        if not _severities(path):
            raise DataError(
                f"{path} {contents(path)}.", asked="A corruption is folders 1 to 5.", next="Unpack it again."
            )
        found[path.name] = path
    return found


def _has_severity(path: Path) -> bool:
    return any((path / str(severity)).is_dir() for severity in _SEVERITIES)


def _severities(path: Path) -> tuple[int, ...]:
    names = folders.subfolders(path)
    numbers = [name for name in names if re.fullmatch(r"-?\d+([.,]\d+)?", name)]
    strange = [name for name in numbers if name not in map(str, _SEVERITIES)]
    if strange and len(strange) < len(numbers):
        raise DataError(
            f"{path} has the folder {strange[0]}.", asked="Severities are folders 1 to 5.", next="Move it away."
        )
    return () if strange else tuple(sorted(int(name) for name in numbers))


def _is_tiny(folder: Path) -> bool:
    classes = folders.subfolders(folder)
    if not classes or not all(_WNID.fullmatch(name) for name in classes):
        return False
    file = next((p for p in sorted((folder / classes[0]).iterdir()) if p.suffix.lower() in decode.EXTENSIONS), None)
    try:
        return file is not None and decode.header(str(file)) == (64, 64)
    except DataError:
        return False  # it is named when the set is opened


def _nothing(kind: str, root: Path) -> DataError:
    """No such set in this folder: what is there instead, and where it may be."""
    layout = "corruption.npy and labels.npy" if kind in ARRAYS else "corruption/severity/class/image"
    asked = f"{kind} is {layout}."
    other = kind_of(root)
    if other is not None:
        return DataError(f"{root} holds {other}.", asked=asked, next=f"Give {other}:{root}.")
    inside = [name for name in folders.subfolders(root) if not _WNID.fullmatch(name)][:_SEARCHED]
    deeper = {name: found for name in inside if (found := kind_of(root / name)) is not None}
    if deeper:
        name = next((name for name, found in deeper.items() if found == kind), next(iter(deeper)))
        return DataError(
            f"{root} is a folder above: {name} holds {deeper[name]}.",
            asked=asked,
            next=f"Give {deeper[name]}:{root / name}.",
        )
    if root.absolute().name in map(str, _SEVERITIES) or _has_severity(root):
        for above in root.absolute().parents[:2]:
            other = kind_of(above)
            if other is not None:
                return DataError(f"{root} is a part of {above}.", asked=asked, next=f"Give {other}:{above}.")
    wnid = next((n for n in folders.subfolders(root) if _WNID.fullmatch(n)), "")
    split = next((n for n in inside if any(map(_WNID.fullmatch, folders.subfolders(root / n)))), "")
    if wnid or split:
        clean = f"imagenet:{root}" if split else f"imagenet:{root.absolute().parent}"
        return DataError(
            f"{root} holds class folders ({f'{split}/n...' if split else wnid}) and no corruption: clean images.",
            asked=asked,
            next=f"Give the corrupted set; clean images are read with --data {clean}.",
        )
    return DataError(f"{root} {contents(root)}.", asked=asked, next=f"Unpack the archives of {kind} there.")


# -- arrays ------------------------------------------------------------------------------------------------------------


def _arrays(root: Path) -> list[str]:
    """Corruptions that have an array; only headers are read."""
    names = sorted(path.stem for path in root.glob("*.npy") if path.stem != "labels" and not path.name.startswith("."))
    counts = {name: len(five(root, name)) for name in names}
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise DataError(
            f"{few}.npy holds {counts[few]:,} rows, {many}.npy {counts[many]:,}.",
            asked=f"All arrays of {root} hold the same images.",
            next="Replace the shorter one.",
        )
    return names


def five(root: Path, name: str) -> Pixels8:
    """All rows of a corruption, uint8 [5 n, h, w, 3], on disk.

    Args:
        root: of the set.
        name: of the corruption.

    Raises:
        DataError: no images, or not five times as many as there are.
    """
    path = root / f"{name}.npy"
    array = mapped_images(path)
    if not len(array) or len(array) % 5:
        raise DataError(
            f"{path} holds {len(array):,} images.", asked="Five severities of n images each.", next="Replace the file."
        )
    return array
