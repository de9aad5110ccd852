"""Sets of images with a mask of classes: the official layouts, and any two folders of images and masks.

PASCAL VOC 2012 (Everingham et al. 2012), ADE20K's scene parsing benchmark (Zhou et al. 2017; SceneParse150), Cityscapes
(Cordts et al. 2016), CamVid (Brostow et al. 2009) as SegNet lays it out (Badrinarayanan et al. 2017), FoodSeg103 (Wu et
al. 2021), COCO-Stuff (Caesar et al. 2018; stuffthingmaps of 2017). The folder is the set's or its parent. Classes are
numbered from 0 in the order of the set's benchmark; 255 is ignored everywhere, beside what a set itself ignores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from holdfast.data import pairs
from holdfast.data.batches import IGNORE
from holdfast.data.listings import Listing, Splits
from holdfast.data.masks import Encoding, coded, encoding, masked, numbers
from holdfast.errors import DataError

_VOC = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
_CITYSCAPES = (
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
    "bus,train,motorcycle,bicycle"
)
# labels.py of cityscapesScripts: the ids of the 19 classes that are evaluated, in the order of their trainIds.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES_VOID = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30)
_CAMVID = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist"
_ADE, _FOOD, _COCO_STUFF = 150, 104, 182
_VOC_HOMES = ("VOCdevkit/VOC2012", "VOC2012", "")
_MASKS = ("masks", "annotations", "labels")


def voc(root: Path) -> Splits:
    """`VOCdevkit/VOC2012`: JPEGImages, SegmentationClass (palette PNG; 255, the outlines, is ignored), 21 classes.

    Splits are the lists in ImageSets/Segmentation; trainaug reads SegmentationClassAug, as it is published.
    """
    home = pairs.one_of(root, _VOC_HOMES, "ImageSets/Segmentation")
    if home is None:
        return {}
    lists = {path.stem: path for path in sorted((home / "ImageSets" / "Segmentation").glob("*.txt"))}
    order = [name for name in ("train", "val", "trainval") if name in lists]
    return {name: functools.partial(_voc, home, lists[name]) for name in dict.fromkeys([*order, *lists])}


def _voc(home: Path, path: Path) -> Listing:
    folder = "SegmentationClassAug" if path.stem == "trainaug" else "SegmentationClass"
    found = [(f"JPEGImages/{words[0]}.jpg", f"{folder}/{words[0]}.png") for words in pairs.listed(path)]
    return masked(home, found, encoding(_VOC.split(",")))


def ade20k(root: Path) -> Splits:
    """`ADEChallengeData2016`: images and annotations, training and validation; 0 is ignored, 1 to 150 are the classes.

    Names are the first words of objectInfo150.txt, or numbers where it is not there.
    """
    home = pairs.one_of(root, ("ADEChallengeData2016", ""), "annotations")
    if home is None:
        return {}
    splits = {"train": "training", "val": "validation"}
    there = {name: folder for name, folder in splits.items() if (home / "images" / folder).is_dir()}
    return {name: functools.partial(_ade20k, home, folder) for name, folder in there.items()}


def _ade20k(home: Path, split: str) -> Listing:
    info = home / "objectInfo150.txt"
    code = encoding(_ade_names(info), first=1, ignored=(0,))
    return _twin(home, f"images/{split}", f"annotations/{split}", code)


def _ade_names(info: Path) -> Sequence[str]:
    if not info.is_file():
        return [str(number) for number in range(1, _ADE + 1)]
    rows = [line.split("\t") for line in info.read_text(encoding="utf-8").splitlines() if line.strip()]
    words = [row[-1].strip() for row in rows if row[0].strip().isdigit()]
    if len(words) != _ADE:
        raise DataError(f"{info} names {len(words)} classes.", next=f"Restore it ({_ADE} classes), or remove it.")
    first = [word.split(",")[0].strip() for word in words]
    # Two classes begin with "screen": they keep all their words.
    return [short if first.count(short) == 1 else whole for short, whole in zip(first, words)]


def cityscapes(root: Path) -> Splits:
    """`leftImg8bit` and `gtFine`: labelTrainIds where every image has them, else labelIds, mapped to the 19 trainIds.

    Splits are train, and val, which is what is measured: the labels of its test were never published.
    """
    home = pairs.one_of(root, ("", "cityscapes"), "leftImg8bit")
    if home is None or not (home / "gtFine").is_dir():
        return {}
    there = [split for split in ("train", "val") if (home / "leftImg8bit" / split).is_dir()]
    return {split: functools.partial(_cityscapes, home, split) for split in there}


def _cityscapes(home: Path, split: str) -> Listing:
    images = pairs.beneath(home, f"leftImg8bit/{split}")
    stems = [f"gtFine/{split}/{file.removesuffix('.png').removesuffix('_leftImg8bit')}_gtFine_" for file in images]
    names = _CITYSCAPES.split(",")
    if all((home / f"{stem}labelTrainIds.png").is_file() for stem in stems):
        kind, code = "labelTrainIds", encoding(names)
    else:
        classes = {number: place for place, number in enumerate(_CITYSCAPES_IDS)}
        kind, code = "labelIds", coded(names, classes, ignored=_CITYSCAPES_VOID)
    found = [(f"leftImg8bit/{split}/{file}", f"{stem}{kind}.png") for file, stem in zip(images, stems)]
    return masked(home, found, code)


def camvid(root: Path) -> Splits:
    """SegNet's `CamVid`: train and trainannot, val and valannot, test and testannot; 11 classes, 11 is ignored."""
    home = pairs.one_of(root, ("CamVid", ""), "trainannot")
    if home is None:
        return {}
    code = encoding(_CAMVID.split(","), ignored=(11,))
    there = [split for split in ("train", "val", "test") if (home / f"{split}annot").is_dir()]
    return {split: functools.partial(_twin, home, split, f"{split}annot", code) for split in there}


def foodseg103(root: Path) -> Splits:
    """`FoodSeg103`: Images/img_dir and Images/ann_dir, train and test; 104 classes with the background.

    Names are those of category_id.txt, or numbers where it is not there. A mask that lies across its photograph is
    named, not turned.
    """
    home = pairs.one_of(root, ("FoodSeg103", ""), "Images/ann_dir")
    if home is None:
        return {}
    there = [split for split in ("train", "test") if (home / "Images" / "img_dir" / split).is_dir()]
    return {split: functools.partial(_foodseg103, home, split) for split in there}


def _foodseg103(home: Path, split: str) -> Listing:
    code = encoding(pairs.numbered_names(home / "category_id.txt", _FOOD))
    return _twin(home, f"Images/img_dir/{split}", f"Images/ann_dir/{split}", code)


def coco_stuff(root: Path) -> Splits:
    """`images/train2017`, and `annotations/train2017` or `stuffthingmaps/train2017`; val2017 likewise.

    The masks hold the category less one, 0 to 181, of which eleven never occur; 255 is unlabelled. Names are those of
    labels.txt ("1: person"), or numbers where it is not there.
    """
    found = {name: _coco_masks(root, name) for name in ("train2017", "val2017")}
    return {
        name.removesuffix("2017"): functools.partial(_coco_stuff, root, name, masks)
        for name, masks in found.items()
        if masks is not None and (root / "images" / name).is_dir()
    }


def _coco_masks(root: Path, split: str) -> str | None:
    return next((m for m in (f"annotations/{split}", f"stuffthingmaps/{split}") if (root / m).is_dir()), None)


def _coco_stuff(root: Path, split: str, masks: str) -> Listing:
    code = encoding(pairs.numbered_names(root / "labels.txt", _COCO_STUFF, first=1))
    return _twin(root, f"images/{split}", masks, code)


def masks_folder(root: Path) -> Splits:
    """`images` and `masks` (or annotations, or labels), with splits in them or above them; 255 is ignored.

    A mask has the path and stem of its image. Classes are the lines of classes.txt, from 0; without it they are
    numbers up to the largest in any mask of any split, for which all of them are read.
    """
    there = pairs.twin_folders(root, "images", _MASKS)
    return {split: functools.partial(_masks_folder, root, pair, there) for split, pair in there.items()}


def _masks_folder(root: Path, pair: pairs.Pair, there: Mapping[str, pairs.Pair]) -> Listing:
    path = root / "classes.txt"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        code = encoding([line.strip() for line in lines if line.strip()])
    else:
        code = _counted(root, [masks for _, masks in there.values()])
    return _twin(root, *pair, code)


def _counted(root: Path, masks: Sequence[str]) -> Encoding:
    """As many classes as the largest number in any mask says."""
    largest = -1
    for file in (f"{root}/{folder}/{name}" for folder in masks for name in pairs.beneath(root, folder)):
        found = numbers(file)
        labelled = found[found != IGNORE]
        largest = max(largest, int(labelled.max()) if labelled.size else -1)
    if not 1 <= largest < IGNORE:
        raise DataError(
            f"The largest number in the masks of {root} is {largest if largest >= 0 else 'missing'} ({IGNORE} aside, "
            "which means ignored).",
            asked="Classes are numbered from 0; there must be two at least.",
            next="Number them so (0 and 255 become 0 and 1), or name them in classes.txt, one per line.",
        )
    return encoding([str(number) for number in range(largest + 1)])


def _twin(root: Path, images: str, masks: str, code: Encoding) -> Listing:
    missing = next((name for name in (images, masks) if not (root / name).is_dir()), None)
    if missing is not None:
        raise DataError(f"No folder {root / missing}.", asked="Images and their masks were asked for.", next="Add it.")
    return masked(root, pairs.by_stem(root, images, masks), code)


READERS: Mapping[str, Callable[[Path], Splits]] = {
    "voc": voc,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "camvid": camvid,
    "foodseg103": foodseg103,
    "coco_stuff": coco_stuff,
    "masks_folder": masks_folder,
}

# What a folder looks like that `parse` reads as one of these sets; the reader decides.
SPECIFIC = ("voc", "cityscapes", "camvid", "foodseg103", "ade20k", "coco_stuff")


def kinds_of(root: Path) -> list[str]:
    """Which of these sets a folder holds: an official one, else `masks_folder` where the two folders are there."""
    named = [kind for kind in SPECIFIC if READERS[kind](root)]
    return named or (["masks_folder"] if masks_folder(root) else [])
