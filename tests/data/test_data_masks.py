"""Masks: aligned with their pixels after every resize and crop, mapped as each set says, named where they are odd."""

from __future__ import annotations

from pathlib import Path

import dense_trees as trees
import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.configs import ProbeConfig
from holdfast.data import segmentation_sets
from holdfast.data.batches import IGNORE, Source, batches, require_labels
from holdfast.data.decode import fit_truth, fitted_shape
from holdfast.data.masks import encoding
from holdfast.data.sources import images, images_for, open_source, parse, splits
from holdfast.errors import DataError
from holdfast.models.encoder import Geometry
from holdfast.records import Data


def opened(kind: str, root: Path, split: str, **fields: object) -> Source:
    return open_source(Data(source=kind, root=str(root), split=split, **fields))


def masks_of(source: Source) -> dict[str, np.ndarray]:
    return {name: np.asarray(source.read(i).truth["mask"]) for i, name in enumerate(source.ids)}


# -- geometry ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (64, 64), (48, 36), (33, 100)])
@pytest.mark.parametrize(("resize", "size"), [(32, 32), (40, 32), (33, 20), (0, 31), (64, 0), (96, 90), (0, 0)])
def test_truth_is_fitted_as_pillow_takes_the_nearest(shape: tuple[int, int], resize: int, size: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    h, w = fitted_shape(shape, resize=resize, size=0)
    expected = np.asarray(Image.fromarray(values).resize((w, h), Image.Resampling.NEAREST))
    # A centre on the border of two pixels belongs to neither: Pillow's sums of fractions fall to either side there.
    rows, columns = ((2 * np.arange(n) + 1) * there % (2 * n) != 0 for n, there in zip((h, w), shape))
    clear = (rows | (h == shape[0]))[:, None] & (columns | (w == shape[1]))
    if size:
        top, left = round((h - size) / 2), round((w - size) / 2)
        expected, clear = (a[top : top + size, left : left + size] for a in (expected, clear))
    found = fit_truth(values, resize=resize, size=size)
    assert found.shape == expected.shape
    assert clear.mean() > 0.4 or 2 * h == shape[0], "halving has borders alone; it is tested on depth, by hand"
    assert np.array_equal(found[clear], expected[clear])
    depth = values.astype(np.float32) / 7
    assert np.array_equal(fit_truth(depth, resize=resize, size=size), found.astype(np.float32) / 7)


@pytest.mark.parametrize(("resize", "size"), [(0, 0), (0, 20), (45, 0), (60, 41), (150, 140), (23, 0)])
def test_colours_stay_with_their_classes(tmp_path: Path, resize: int, size: int) -> None:
    """A picture whose red is 60 times its class: after resize and crop, inside of every block, it still is."""
    blocks = np.random.default_rng(1).integers(0, 4, (6, 7))
    mask = np.kron(blocks, np.ones((7, 9), dtype=int)).astype(np.uint8)[:40, 1:60]
    picture = np.stack([60 * mask, mask, mask], -1).astype(np.uint8)
    trees.save(tmp_path / "images" / "a.png", picture)
    trees.save(tmp_path / "masks" / "a.png", mask)
    pixels, truth = opened("masks_folder", tmp_path, "all", resize=resize, size=size).read(0)
    found = np.asarray(truth["mask"])
    assert found.shape == pixels.shape[:2]
    assert found.flags.writeable
    red = pixels[..., 0].astype(int)
    # A resize mixes colours within a pixel of the source, or of the result, of an edge; half of either is never missed.
    reach = 0 if not resize else -(-max(resize, 40) // 40)
    windows = np.lib.stride_tricks.sliding_window_view(found, (2 * reach + 1,) * 2)
    inside = windows.max((2, 3)) == windows.min((2, 3))
    middle = tuple(slice(reach, n - reach) for n in found.shape)
    assert inside.mean() > 0.1
    assert np.abs(red - 60 * found)[middle][inside].max() <= 1
    nearest = np.rint(red / 60).astype(int)
    slipped = [np.mean(nearest[1:-1, 1:-1] == np.roll(found, (y, x), (0, 1))[1:-1, 1:-1])
               for y, x in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))]  # fmt: skip
    assert slipped[0] == max(slipped) > max(slipped[1:]) + 0.005, "moved by a pixel, fewer would agree"


def test_batches_hold_masks(tmp_path: Path) -> None:
    numbers = trees.masks_folder(tmp_path)
    source = opened("masks_folder", tmp_path, "train")
    (batch,) = batches(source, size=3)
    assert source.labels is None
    assert "label" not in batch.rows
    assert batch.rows["mask"].dtype == torch.int64
    assert batch.rows["mask"].shape == (3, trees.H, trees.W)
    for name, found in zip(batch.ids, batch.rows["mask"]):
        assert np.array_equal(found.numpy(), numbers[name])
    with pytest.raises(DataError, match=r"holds 3 images and no class folders"):
        require_labels(source)


def test_scenes_name_their_parts() -> None:
    source = open_source(Data(source="scenes", limit=3, classes=("star", "ring")))
    assert source.parts == ("background", "star", "ring")
    assert source.max_depth == 10.0
    assert all(np.asarray(source.read(i).truth["mask"]).max() == source.labels[i] + 1 for i in range(3))  # type: ignore[index]


def test_dense_images_are_taken_as_stored(tmp_path: Path) -> None:
    trees.masks_folder(tmp_path / "dense")
    trees.save(tmp_path / "plain" / "a.png", np.zeros((9, 9, 3), np.uint8))
    sides = Geometry(size=224, resize=256, interpolation="bicubic")

    def sizes(**fields: object) -> tuple[int, int]:
        config = ProbeConfig(encoder="random:resnet18", out="x", **fields)
        data = images_for(config, sides, split="", default="train")
        return data.resize, data.size

    dense = str(tmp_path / "dense")
    assert sizes(data=dense) == (0, 0)
    assert sizes(data=dense, size=8) == (0, 8)
    assert sizes(data=dense, resize=10) == (10, 0)
    assert sizes(data=dense, size=8, resize=10) == (10, 8)
    assert sizes(data=str(tmp_path / "plain")) == (256, 224)
    assert sizes(data="scenes") == (0, 224)


# -- the sets ----------------------------------------------------------------------------------------------------------


def test_voc(tmp_path: Path) -> None:
    numbers = trees.voc(tmp_path)
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        source = opened("voc", root, "train")
        assert masks_of(source).keys() == set(list(numbers)[:3])
        for name, found in masks_of(source).items():
            assert np.array_equal(found, numbers[name]), "indices of the palette, 255 as it is"
    assert len(source.parts) == 21
    assert (source.parts[0], source.parts[15], source.parts[20]) == ("background", "person", "tvmonitor")
    assert splits(f"voc:{tmp_path}") == ("train", "val", "trainval")
    assert images(str(tmp_path)).split == "val", "test has no masks"
    assert len(opened("voc", tmp_path, "trainval")) == 4


@pytest.mark.parametrize("info", [True, False])
def test_ade20k(tmp_path: Path, info: bool) -> None:
    numbers = trees.ade20k(tmp_path, info=info)
    source = opened("ade20k", tmp_path, "val")
    for name, found in masks_of(source).items():
        expected = np.where(numbers[name] == 0, IGNORE, numbers[name].astype(int) - 1)
        assert np.array_equal(found, expected)
    assert len(source) == 3
    assert len(source.parts) == 150
    first = ("wall", "building", "screen, silver screen", "screen, CRT screen", "thing5")
    assert source.parts[:5] == (first if info else ("1", "2", "3", "4", "5"))


@pytest.mark.parametrize("kinds", [("labelIds",), ("labelTrainIds",), ("labelIds", "labelTrainIds")])
def test_cityscapes(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    numbers = trees.cityscapes(tmp_path, kinds=kinds)
    source = opened("cityscapes", tmp_path, "val")
    meant = {0: 255, 4: 255, 7: 0, 11: 2, 23: 10, 30: 255, 33: 18}
    for name, found in masks_of(source).items():
        assert np.array_equal(found, np.vectorize(meant.get)(numbers[name]))
    assert len(source.parts) == 19
    assert (source.parts[0], source.parts[2], source.parts[10], source.parts[18]) == (
        "road", "building", "sky", "bicycle",
    )  # fmt: skip
    assert splits(str(tmp_path)) == ("train", "val")


def test_cityscapes_knows_all_its_ids(tmp_path: Path) -> None:
    """19 are evaluated and 15 are not; 34 does not exist."""
    trees.cityscapes(tmp_path)
    path = tmp_path / "gtFine" / "val" / "lindau" / "lindau_000000_000019_gtFine_labelIds.png"
    everything = np.arange(34, dtype=np.uint8).repeat(6)[: trees.H * trees.W]
    trees.save(path, np.pad(everything, (0, trees.H * trees.W - len(everything))).reshape(trees.H, trees.W))
    found = np.asarray(opened("cityscapes", tmp_path, "val").read(0).truth["mask"])
    assert set(np.unique(found)) == {*range(19), IGNORE} - {18, 17}, "32 * 6 pixels end before 32 and 33"
    trees.save(path, np.full((trees.H, trees.W), 34, np.uint8))
    with pytest.raises(DataError, match=r"0 to 6, 9 to 10.*labelIds\.png holds 34 \(row 0, column 0; 192 "):
        opened("cityscapes", tmp_path, "val").read(0)


def test_camvid(tmp_path: Path) -> None:
    numbers = trees.camvid(tmp_path)
    source = opened("camvid", tmp_path, "test")
    for name, found in masks_of(source).items():
        assert np.array_equal(found, np.where(numbers[name] == 11, IGNORE, numbers[name]))
    assert len(source.parts) == 11
    assert (source.parts[0], source.parts[10]) == ("sky", "bicyclist")
    assert splits(str(tmp_path / "CamVid")) == ("train", "val", "test")


def test_foodseg103(tmp_path: Path) -> None:
    numbers = trees.foodseg103(tmp_path)
    source = opened("foodseg103", tmp_path, "test")
    assert len(source) == 3
    assert all(np.array_equal(found, numbers[name]) for name, found in masks_of(source).items())
    assert len(source.parts) == 104
    assert source.parts[:3] == ("background", "candy", "egg tart")
    (tmp_path / "FoodSeg103" / "category_id.txt").write_text("0\tbackground\n2\tegg tart\n")
    with pytest.raises(DataError, match=r"category_id\.txt has 2 other lines"):
        opened("foodseg103", tmp_path, "test")
    (tmp_path / "FoodSeg103" / "category_id.txt").unlink()
    assert opened("foodseg103", tmp_path, "test").parts[103] == "103"


@pytest.mark.parametrize("folder", ["annotations", "stuffthingmaps"])
def test_coco_stuff(tmp_path: Path, folder: str) -> None:
    numbers = trees.coco_stuff(tmp_path, folder)
    assert parse(str(tmp_path))[0] == "coco_stuff"
    source = opened("coco_stuff", tmp_path, "val")
    assert all(np.array_equal(found, numbers[name]) for name, found in masks_of(source).items())
    assert len(source.parts) == 182
    assert (source.parts[0], source.parts[181]) == ("person", "category 182"), "the pixels hold the category less one"


@pytest.mark.parametrize(
    ("form", "names"),
    [("{kind}/{split}", ("test", "train")), ("{split}/{kind}", ("test", "train")), ("{kind}", ("all",))],
)
def test_any_images_and_masks(tmp_path: Path, form: str, names: tuple[str, ...]) -> None:
    numbers = trees.masks_folder(tmp_path, form=form)
    assert parse(str(tmp_path))[0] == "masks_folder"
    assert splits(str(tmp_path)) == names
    source = opened("masks_folder", tmp_path, names[0])
    assert len(source) == 3
    assert all(np.array_equal(found, numbers[name]) for name, found in masks_of(source).items())
    assert source.parts == ("0", "1", "2", "3")
    (tmp_path / "classes.txt").write_text("road\n2 wheelers\nwall: high\nsky\npedestrian\n")
    assert opened("masks_folder", tmp_path, names[0]).parts == ("road", "2 wheelers", "wall: high", "sky", "pedestrian")


def test_classes_are_counted_over_all_splits(tmp_path: Path) -> None:
    trees.masks_folder(tmp_path)
    trees.save(tmp_path / "masks" / "train" / "00.png", np.full((trees.H, trees.W), 6, np.uint8))
    assert len(opened("masks_folder", tmp_path, "test").parts) == 7


def test_a_folder_with_masks_and_depth_is_asked_about(tmp_path: Path) -> None:
    trees.masks_folder(tmp_path)
    trees.depth_folder(tmp_path)
    with pytest.raises(DataError, match=r"holds masks_folder and depth_folder.*--data masks_folder:"):
        parse(str(tmp_path))


def test_images_beside_folders_are_one_split(tmp_path: Path) -> None:
    trees.masks_folder(tmp_path)
    trees.pair(tmp_path / "images" / "x.png", tmp_path / "masks" / "x.png", 9, (0, 1))
    assert splits(str(tmp_path)) == ("all",)
    assert len(opened("masks_folder", tmp_path, "all")) == 7


# -- what is odd -------------------------------------------------------------------------------------------------------


def changed(root: Path, values: np.ndarray, name: str = "00.png", **options: object) -> None:
    """A tree in which one mask of the test split is another one."""
    trees.masks_folder(root)
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    (root / "masks" / "test" / "00.png").unlink()
    trees.save(root / "masks" / "test" / name, values, **options)


def test_a_lost_palette_is_named(tmp_path: Path) -> None:
    trees.voc(tmp_path)
    path = tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000039.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(DataError, match=r"000039\.png holds colours \(mode RGB\): its palette was lost.*8-bit PNG"):
        opened("voc", tmp_path, "train")


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    trees.camvid(tmp_path)
    (tmp_path / "CamVid" / "testannot" / "Seq05VD_f00001.png").unlink()
    with pytest.raises(DataError, match=r"mask of .*test/Seq05VD_f00001\.png was.*No file .*testannot/Seq05VD"):
        opened("camvid", tmp_path, "test")
    assert len(opened("camvid", tmp_path, "val")) == 1, "only what was chosen is looked at"


def test_a_transposed_mask_is_named_not_turned(tmp_path: Path) -> None:
    numbers = trees.foodseg103(tmp_path)
    path = tmp_path / "FoodSeg103" / "Images" / "ann_dir" / "test" / "00000041.png"
    trees.save(path, numbers["Images/img_dir/test/00000041.jpg"].T)
    with pytest.raises(DataError, match=r"0041\.jpg is 12x16 pixels, .*0041\.png 16x12: it is transposed.*Turn"):
        opened("foodseg103", tmp_path, "test")


def test_another_size_is_named(tmp_path: Path) -> None:
    changed(tmp_path, np.zeros((trees.H + 1, trees.W), np.uint8))
    with pytest.raises(DataError, match=r"00\.jpg is 12x16 pixels, .*00\.png 13x16\..*one size"):
        opened("masks_folder", tmp_path, "test")


@pytest.mark.parametrize("number", [4, 254, 256, 511])
def test_a_number_without_a_class_is_named(tmp_path: Path, number: int) -> None:
    values = np.zeros((trees.H, trees.W), np.uint16 if number > 255 else np.uint8)
    values[3, 5] = values[4, 0] = number
    changed(tmp_path, values)
    source = opened("masks_folder", tmp_path, "test")
    with pytest.raises(DataError, match=rf"00\.png holds {number} \(row 3, column 5; 2 such pixels\).*write 255"):
        source.read(0)
    source.read(1)


def test_masks_of_sixteen_bits_and_of_one(tmp_path: Path) -> None:
    values = trees.mask(0, (0, 1, 3, 255)).astype(np.uint16)
    changed(tmp_path / "deep", values)
    assert np.array_equal(opened("masks_folder", tmp_path / "deep", "test").read(0).truth["mask"], values)
    changed(tmp_path / "bit", values == 1)
    assert np.array_equal(opened("masks_folder", tmp_path / "bit", "test").read(0).truth["mask"], values == 1)


def test_jpeg_is_no_mask(tmp_path: Path) -> None:
    changed(tmp_path, np.zeros((trees.H, trees.W), np.uint8), "00.jpg")
    with pytest.raises(DataError, match=r"00\.jpg is JPEG, which changes numbers.*Store masks as PNG"):
        opened("masks_folder", tmp_path, "test")


def test_two_masks_of_one_image(tmp_path: Path) -> None:
    trees.masks_folder(tmp_path)
    trees.save(tmp_path / "masks" / "test" / "00.bmp", np.zeros((trees.H, trees.W), np.uint8))
    with pytest.raises(DataError, match=r"holds 00\.bmp and 00\.png"):
        opened("masks_folder", tmp_path, "test")


def test_black_and_white_is_no_numbering(tmp_path: Path) -> None:
    trees.save(tmp_path / "images" / "a.png", np.zeros((8, 8, 3), np.uint8))
    trees.save(tmp_path / "masks" / "a.png", np.eye(8, dtype=np.uint8) * 255)
    with pytest.raises(DataError, match=r"largest number .* is 0 \(255 aside.*0 and 255 become 0 and 1"):
        opened("masks_folder", tmp_path, "all")


def test_images_of_many_sizes_are_to_be_cropped(tmp_path: Path) -> None:
    trees.masks_folder(tmp_path, splits=("test",))
    trees.save(tmp_path / "images" / "test" / "01.jpg", np.zeros((20, 20, 3), np.uint8))
    trees.save(tmp_path / "masks" / "test" / "01.png", np.ones((20, 20), np.uint8))
    with pytest.raises(DataError, match=r"12x16 and .* is 20x20 pixels.*What is cut off is not measured"):
        opened("masks_folder", tmp_path, "test")
    (batch,) = batches(opened("masks_folder", tmp_path, "test", resize=10, size=9), size=3)
    assert batch.rows["mask"].shape == (3, 9, 9)


@pytest.mark.parametrize(
    ("parts", "told"), [(["a", "b", "a"], '"a" is named twice'), ([f"{i}" for i in range(256)], "256 classes")]
)
def test_classes_that_cannot_be_numbered(parts: list[str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        encoding(parts)


def test_a_list_with_a_line_twice(tmp_path: Path) -> None:
    trees.voc(tmp_path)
    path = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt"
    path.write_text(path.read_text() * 2)
    with pytest.raises(DataError, match=r"val\.txt names 2008_000002 twice"):
        opened("voc", tmp_path, "val")


def test_a_folder_without_the_set(tmp_path: Path) -> None:
    trees.save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    for kind in segmentation_sets.READERS:
        with pytest.raises(DataError, match=rf"nothing that looks like {kind}.*ls layouts"):
            opened(kind, tmp_path, "train")


def test_classes_cannot_be_chosen_of_masks(tmp_path: Path) -> None:
    trees.masks_folder(tmp_path)
    with pytest.raises(DataError, match=r"has no labels.*Leave out --classes"):
        opened("masks_folder", tmp_path, "test", classes=("0",))
