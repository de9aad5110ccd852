"""Miniature dense sets with the official names, encodings and file kinds, and the truth that was written into them.

A picture shows its mask: red is 20 times the place of the class in `PLACES`, so that a mask that has slipped by a pixel
is seen. Depth is shown likewise, as grey: in decimetres.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

H, W = 12, 16
# 256 colours, as the official palette has: with fewer, Pillow stores fewer bits per pixel.
VOC_PALETTE = [(37 * i) % 256 for i in range(3 * 256)]


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def mask(seed: int, values: Sequence[int], *, h: int = H, w: int = W) -> np.ndarray:
    """uint8 [h, w]: blocks of three pixels, each one of the values; all values occur."""
    rows, columns = -(-h // 3), -(-w // 3)
    rng = np.random.default_rng(seed)
    blocks = np.concatenate([np.asarray(values), rng.choice(values, rows * columns - len(values))])
    blocks = rng.permutation(blocks).reshape(rows, columns)
    return np.repeat(np.repeat(blocks, 3, 0), 3, 1)[:h, :w].astype(np.uint8)


def shown(truth: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """The picture of a mask: uint8 [h, w, 3]."""
    places = np.zeros(256, np.uint8)
    places[list(values)] = 20 * np.arange(len(values))
    return np.stack([places[truth], 255 - places[truth], np.full_like(truth, 90)], -1)


def distances(seed: int, *, h: int = H, w: int = W) -> np.ndarray:
    """Depth in decimetres, 0 to 99, uint16 [h, w], in blocks; 0 = not measured."""
    return (mask(seed, range(20), h=h, w=w).astype(np.uint16) * 5) % 100


def seen(depth: np.ndarray) -> np.ndarray:
    """The picture of `distances`: uint8 [h, w, 3], grey, since JPEG keeps half the resolution of colours alone."""
    return np.repeat(depth.astype(np.uint8)[..., None], 3, -1)


Masks = dict[str, np.ndarray]


def pair(image: Path, truth: Path, seed: int, values: Sequence[int], palette: Sequence[int] = ()) -> np.ndarray:
    """Write an image and its mask; returns the numbers of the mask."""
    numbers = mask(seed, values)
    image.parent.mkdir(parents=True, exist_ok=True)
    truth.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if image.suffix == ".jpg" else {}
    Image.fromarray(shown(numbers, values)).save(image, **options)
    stored = Image.fromarray(numbers)
    if palette:
        stored.putpalette(list(palette))
    stored.save(truth)
    return numbers


# -- masks -------------------------------------------------------------------------------------------------------------


def voc(root: Path) -> Masks:
    """Four images, three of them train; palette masks; returns the numbers by image id."""
    home = root / "VOCdevkit" / "VOC2012"
    names = ["2007_000032", "2007_000039", "2007_000063", "2008_000002"]
    found = {
        f"JPEGImages/{name}.jpg": pair(
            home / "JPEGImages" / f"{name}.jpg", home / "SegmentationClass" / f"{name}.png", i, (0, 1, 15, 20, 255),
            VOC_PALETTE,
        )
        for i, name in enumerate(names)
    }  # fmt: skip
    lists = home / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, chosen in (("train", names[:3]), ("val", names[3:]), ("trainval", names)):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in chosen))
    return found


def ade20k(root: Path, *, info: bool = True) -> Masks:
    """Three validation images and one training image; returns the numbers by image id."""
    home, found = root / "ADEChallengeData2016", {}
    for i, name in enumerate(["training/ADE_train_00000001", *(f"validation/ADE_val_0000000{k}" for k in (1, 2, 3))]):
        image, truth = home / "images" / f"{name}.jpg", home / "annotations" / f"{name}.png"
        found[f"images/{name}.jpg"] = pair(image, truth, i, (0, 1, 2, 150))
    if info:
        words = ["wall", "building, edifice", "screen, silver screen", "screen, CRT screen"]
        words += [f"thing{i}, object{i}" for i in range(5, 151)]
        rows = [f"{i}\t0.1\t1\t1\t{word}\n" for i, word in enumerate(words, 1)]
        (home / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "".join(rows))
    return found


def cityscapes(root: Path, *, kinds: Sequence[str] = ("labelIds",)) -> Masks:
    """One city in train, two in val; returns the label ids by image id. -TrainIds are made by the published table."""
    found = {}
    for i, place in enumerate(("train/ulm/ulm_000000", "val/lindau/lindau_000000", "val/lindau/lindau_000001",
                               "val/munster/munster_000000")):  # fmt: skip
        image = root / "leftImg8bit" / f"{place}_000019_leftImg8bit.png"
        stem = f"{place}_000019_gtFine"
        ids = pair(image, root / "gtFine" / f"{stem}_labelIds.png", i, (0, 4, 7, 11, 23, 30, 33))
        found[f"leftImg8bit/{place}_000019_leftImg8bit.png"] = ids
        table = np.full(256, 255, np.uint8)
        table[[7, 11, 23, 33]] = (0, 2, 10, 18)
        if "labelTrainIds" in kinds:
            save(root / "gtFine" / f"{stem}_labelTrainIds.png", table[ids])
        if "labelIds" not in kinds:
            (root / "gtFine" / f"{stem}_labelIds.png").unlink()
    return found


def camvid(root: Path) -> Masks:
    """Three test images, one of train and val each."""
    found = {}
    for i, (split, name) in enumerate([("train", "0001TP_006690"), ("val", "0016E5_07959"),
                                       *(("test", f"Seq05VD_f0000{k}") for k in range(3))]):  # fmt: skip
        image = root / "CamVid" / split / f"{name}.png"
        found[f"{split}/{name}.png"] = pair(image, root / "CamVid" / f"{split}annot" / f"{name}.png", i, (0, 4, 10, 11))
    return found


def foodseg103(root: Path) -> Masks:
    """One image of train, three of test, and category_id.txt."""
    home, found = root / "FoodSeg103", {}
    for i, (split, name) in enumerate([("train", "00000000"), *(("test", f"0000004{k}") for k in range(3))]):
        image, truth = (home / "Images" / kind / split / name for kind in ("img_dir", "ann_dir"))
        numbers = pair(image.with_suffix(".jpg"), truth.with_suffix(".png"), i, (0, 1, 50, 103))
        found[f"Images/img_dir/{split}/{name}.jpg"] = numbers
    names = ["background", "candy", "egg tart", *(f"food {i}" for i in range(3, 104))]
    (home / "category_id.txt").write_text("".join(f"{i}\t{name}\n" for i, name in enumerate(names)))
    return found


def coco_stuff(root: Path, folder: str = "annotations") -> Masks:
    """Three images of val2017, one of train2017, and labels.txt as it is published: from "0: unlabeled"."""
    found = {}
    for i, name in enumerate(["train2017/000000000009", *(f"val2017/00000000013{k}" for k in range(3))]):
        image, truth = root / "images" / f"{name}.jpg", root / folder / f"{name}.png"
        found[f"images/{name}.jpg"] = pair(image, truth, i, (0, 91, 181, 255))
    names = ["unlabeled", "person", *(f"category {i}" for i in range(2, 183))]
    (root / "labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(names)))
    return found


def masks_folder(root: Path, *, form: str = "{kind}/{split}", splits: Sequence[str] = ("train", "test")) -> Masks:
    """Three images per split with the classes 0 to 3; `form` says where images and masks lie."""
    found = {}
    for i, (split, k) in enumerate((split, k) for split in splits for k in range(3)):
        image, truth = (f"{form.format(kind=kind, split=split)}/{k:02d}" for kind in ("images", "masks"))
        numbers = pair(root / f"{image}.jpg", root / f"{truth}.png", i, (0, 1, 2, 3, 255))
        found[f"{image}.jpg"] = numbers
    return found


# -- depth -------------------------------------------------------------------------------------------------------------


def nyu(root: Path, n: int = 7, *, splits: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The .mat as HDF5 with MATLAB's axes, and splits.mat; returns images [n, h, w, 3] and metres [n, h, w]."""
    h5py = pytest.importorskip("h5py", reason="needs h5py: pip install -e '.[datasets]'")
    root.mkdir(parents=True, exist_ok=True)
    depth = np.stack([distances(i) for i in range(n)])
    images = np.stack([seen(each) for each in depth])
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = (depth / 10).astype(np.float32).transpose(0, 2, 1)
    if splits:
        train, test = np.arange(1, n, 2), np.array([n, *range(2, n, 2)])
        savemat(
            root / "splits.mat",
            {"trainNdxs": train[:, None].astype(np.uint16), "testNdxs": test[:, None].astype(np.uint16)},
        )
    return images, (depth / 10).astype(np.float32)


def encoded(values: np.ndarray, kind: str) -> bytes:
    """A file of an array: PNG or TIFF."""
    held = io.BytesIO()
    Image.fromarray(values).save(held, kind)
    return held.getvalue()


def nyu_parquet(root: Path, *, stored: str = "tiff", bare: bool = False) -> np.ndarray:
    """Two files of validation with row groups of two rows, one of train; returns the depth of validation in metres."""
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e '.[datasets]'")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install -e '.[datasets]'")
    (root / "data").mkdir(parents=True, exist_ok=True)
    depth = np.stack([distances(i) for i in range(6)])

    def cell(content: bytes) -> object:
        return content if bare else {"bytes": content, "path": None}

    def written(each: np.ndarray) -> bytes:
        if stored == "tiff":
            return encoded((each / 10).astype(np.float32), "TIFF")
        return encoded(each * np.uint16(100), "PNG")

    for name, part in (("train-00000-of-00001", depth[:1]), ("validation-00000-of-00002", depth[:4]),
                       ("validation-00001-of-00002", depth[4:])):  # fmt: skip
        rows = {
            "image": [cell(encoded(seen(each), "PNG")) for each in part],
            "depth_map": [cell(written(each)) for each in part],
        }
        parquet.write_table(arrow.table(rows), root / "data" / f"{name}.parquet", row_group_size=2)
    return (depth / 10).astype(np.float32)


def nyu_png(root: Path) -> Mapping[str, np.ndarray]:
    """Lists as BTS published them, sync/ and official_splits/test/; returns depth in metres by image id."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    found = {}
    for i, (split, scene, k) in enumerate(
        [("train", "kitchen_0028b", 45), *(("test", "bathroom", k) for k in (45, 46, 508))]
    ):
        home = "sync" if split == "train" else "official_splits/test"
        depth = distances(i)
        image, truth = f"{scene}/rgb_{k:05d}.jpg", f"{scene}/sync_depth_{k:05d}.png"
        save(root / home / image, seen(depth), quality=95)
        save(root / home / truth, depth * np.uint16(100))
        slash = "/" if split == "train" else ""
        lines[split].append(f"{slash}{image} {slash}{truth} 518.8579\n")
        found[f"{home}/{image}"] = (depth / 10).astype(np.float32)
    (root / "train_test_inputs").mkdir()
    for split, of in lines.items():
        (root / "train_test_inputs" / f"nyudepthv2_{split}_files_with_gt.txt").write_text("".join(of))
    return found


def kitti(root: Path) -> Mapping[str, np.ndarray]:
    """Three test frames of two sizes and one without depth, one of train; returns depth in metres by image id."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    found = {}
    sizes = ((375, 1242), (370, 1224), (376, 1241), (375, 1242))
    for i, (h, w) in enumerate(sizes):
        split, drive = ("train", "2011_09_26_drive_0057_sync") if i == 3 else ("test", "2011_09_26_drive_0002_sync")
        depth = np.kron(distances(i, h=h // 15 + 1, w=w // 15 + 1), np.ones((15, 15), np.uint16))[:h, :w]
        image = f"2011_09_26/{drive}/image_02/data/{i:010d}.png"
        truth = f"{drive}/proj_depth/groundtruth/image_02/{i:010d}.png"
        save(root / image, seen(depth))
        save(root / "data_depth_annotated" / ("train" if split == "train" else "val") / truth, depth * np.uint16(256))
        lines[split].append(f"{image} {truth} 721.5377\n")
        found[image] = depth.astype(np.float32)
    lines["test"].insert(1, "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000099.png None 721.5377\n")
    for split, of in lines.items():
        (root / f"eigen_{split}_files_with_gt.txt").write_text("".join(of))
    return found


def depth_folder(root: Path, text: str = "scale: 100\nmax_depth: 8\n", *, suffix: str = ".png") -> np.ndarray:
    """Four images; centimetres; returns depth in metres."""
    depth = np.stack([distances(i) for i in range(4)])
    for i, each in enumerate(depth):
        save(root / "images" / f"{i:02d}.jpg", seen(each), quality=95)
        stored = each * np.uint16(10)
        save(root / "depth" / f"{i:02d}{suffix}", stored if suffix == ".png" else stored.astype(np.float32))
    if text:
        (root / "depth.yaml").write_text(text)
    return (depth / 10).astype(np.float32)


def seven_scenes(root: Path, n: int = 17, sequences: Sequence[str] = ("",), suffix: str = "jpg") -> np.ndarray:
    """`n` frames per sequence; returns depth in metres of one; a frame's first two pixels are invalid."""
    depth = np.stack([distances(i) for i in range(n)])
    for sequence in sequences:
        for i, each in enumerate(depth):
            stored = each * np.uint16(100)
            stored[0, :2] = 65535, 0
            save(root / sequence / f"frame-{10 * i:06d}.color.{suffix}", seen(each), quality=95)
            save(root / sequence / f"frame-{10 * i:06d}.depth.png", stored)
            (root / sequence / f"frame-{10 * i:06d}.pose.txt").write_text("1 0 0 0\n")
    depth[:, 0, :2] = 0
    return (depth / 10).astype(np.float32)


# kind -> (what writes the tree, a split of it)
TREES: dict[str, tuple[Callable[[Path], object], str]] = {
    "voc": (voc, "train"),
    "ade20k": (ade20k, "val"),
    "cityscapes": (cityscapes, "val"),
    "camvid": (camvid, "test"),
    "foodseg103": (foodseg103, "test"),
    "coco_stuff": (coco_stuff, "val"),
    "masks_folder": (masks_folder, "test"),
    "nyu": (nyu, "test"),
    "nyu_parquet": (nyu_parquet, "val"),
    "nyu_png": (nyu_png, "test"),
    "kitti_eigen": (kitti, "test"),
    "seven_scenes": (seven_scenes, "test"),
    "depth_folder": (depth_folder, "all"),
}
