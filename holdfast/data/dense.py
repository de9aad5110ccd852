"""Sources whose images have a mask or depth: all of them in one table, how they look on disk, how one is recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from holdfast.data import depth_sets, nyu, segmentation_sets
from holdfast.data.listings import Splits

READERS: Mapping[str, Callable[[Path], Splits]] = {
    **segmentation_sets.READERS,
    **nyu.READERS,
    **depth_sets.READERS,
}

LAYOUTS = {
    "voc": "VOCdevkit/VOC2012 with JPEGImages, SegmentationClass (palette), ImageSets/Segmentation; 255 ignored",
    "ade20k": "ADEChallengeData2016 with images and annotations, training and validation; 150 classes, 0 ignored",
    "cityscapes": "leftImg8bit and gtFine (labelTrainIds or labelIds), train and val; the 19 evaluated classes",
    "camvid": "CamVid/train and trainannot, val and valannot, test and testannot (SegNet's); 11 classes, 11 ignored",
    "foodseg103": "FoodSeg103/Images/img_dir and ann_dir, train and test; category_id.txt; 104 with the background",
    "coco_stuff": "images/train2017 and annotations/ or stuffthingmaps/train2017, val2017; 182 numbers, 255 ignored",
    "masks_folder": "images/ and masks/ with the same stems, splits in them or above; classes.txt; 255 ignored",
    "nyu": "nyu_depth_v2_labeled.mat and splits.mat; splits train, test, all; needs the extra datasets",
    "nyu_parquet": "train-*.parquet, validation-*.parquet with columns image and depth_map; needs the extra datasets",
    "nyu_png": "nyudepthv2_train_files_with_gt.txt and _test_ (of BTS), sync/, official_splits/test/; 16-bit mm",
    "kitti_eigen": "eigen_train_files_with_gt.txt and _test_, raw frames, data_depth_annotated; 352x1216, 80 m",
    "seven_scenes": "frame-*.color.png and .depth.png (mm); of a path 60 % are train, the next 20 % val, the last test",
    "depth_folder": "images/ and depth/ (16 bits), the same stems; depth.yaml: scale (units per metre), max_depth",
}


def kinds_of(root: Path) -> list[str]:
    """Which dense sets a folder holds, for `sources.parse`.

    Args:
        root: an existing folder.

    Returns:
        The official ones; else masks_folder, depth_folder, or both, where their two folders are there.
    """
    masks = segmentation_sets.kinds_of(root)
    named = [kind for kind in masks if kind in segmentation_sets.SPECIFIC]
    named += [kind for kind in ("nyu_png", "kitti_eigen", "seven_scenes") if depth_sets.READERS[kind](root)]
    named += ["nyu"] if nyu.nyu(root) else []
    named += ["nyu_parquet"] if _has_parquet(root) else []
    if named:
        return named
    return [*masks, *(["depth_folder"] if depth_sets.depth_folder(root) else [])]


def _has_parquet(root: Path) -> bool:
    """In the folder or in its `data`: a deeper look would read every folder of a large set."""
    return any(next(folder.glob("*.parquet"), None) is not None for folder in (root, root / "data") if folder.is_dir())
