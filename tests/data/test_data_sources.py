"""What people type, what lies on disk, and what they are told."""

from __future__ import annotations

import re
from pathlib import Path

import data_trees as trees
import msgspec
import numpy as np
import pytest

from holdfast.data import listings
from holdfast.data.batches import batches, require_labels
from holdfast.data.sources import images, layouts, open_source, parse
from holdfast.errors import DataError
from holdfast.records import Data

TREE = {"train/cat": 4, "train/dog": 3, "test/cat": 2, "test/dog": 2}


# -- what is typed -----------------------------------------------------------------------------------------------------


def test_scenes_need_no_folder() -> None:
    assert parse("scenes") == ("scenes", "")


@pytest.mark.parametrize("kind", trees.TREES)
def test_a_kind_and_a_folder(tmp_path: Path, kind: str) -> None:
    assert parse(f"{kind}:{tmp_path}/") == (kind, str(tmp_path))


@pytest.mark.parametrize("kind", [k for k in trees.TREES if k not in ("imagenet", "flat")])
def test_a_folder_is_recognised(tmp_path: Path, kind: str) -> None:
    trees.TREES[kind][0](tmp_path)
    assert parse(str(tmp_path)) == (kind, str(tmp_path))


def test_a_flat_folder_is_recognised(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"": 2})
    assert parse(str(tmp_path)) == ("flat", str(tmp_path))


def test_a_folder_with_an_official_name_but_class_folders(tmp_path: Path) -> None:
    trees.folders(tmp_path / "MNIST", {"train/0": 1, "test/0": 1})
    assert parse(str(tmp_path / "MNIST"))[0] == "folder"


def test_two_sets_in_one_folder(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    trees.mnist(tmp_path)
    with pytest.raises(DataError, match=r"holds cifar10 and mnist.*--data cifar10:"):
        parse(str(tmp_path))
    assert parse(f"mnist:{tmp_path}") == ("mnist", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cifar01:x", r"no source 'cifar01'.*Perhaps you meant \"cifar10\""),
        ("imagnet:x", r"Perhaps you meant \"imagenet\""),
        ("scene", r"No folder scene.*Perhaps you meant \"scenes\""),
        ("cifar10", r"'cifar10' needs a folder.*--data cifar10:folder"),
        ("cifar10:", r"Images of kind cifar10.*--data cifar10:path"),
        ("", r"No folder \(none given\)"),
    ],
)
def test_typos(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=told):
        parse(text)


def test_a_missing_folder_names_its_neighbours(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"photographs/cat": 1, "other/cat": 1})
    with pytest.raises(DataError, match=r'holds: other, photographs\..*Perhaps you meant "photographs"'):
        parse(str(tmp_path / "photograph"))


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    path = trees.save(tmp_path / "a.png", trees.noise(4, 4, 3))
    with pytest.raises(DataError, match=r"a\.png is a file\..*--data " + re.escape(str(tmp_path))):
        parse(str(path))


def test_the_kind_of_a_record_is_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no source 'foldr'.*\"folder\""):
        open_source(Data(source="foldr", root=str(tmp_path)))


def test_layouts_describe_every_kind() -> None:
    assert set(layouts()) == {*trees.TREES, "scenes"}
    assert all(text and "\n" not in text for text in layouts().values())


def test_the_record_holds_what_was_asked(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    record = images(
        str(tmp_path), split="train", limit=3, subset="first", classes="dog, cat", seed=5, size=6, resize=7,
        interpolation="bicubic",
    )  # fmt: skip
    assert record == Data(
        source="folder", root=str(tmp_path), split="train", limit=3, subset="first", classes=("dog", "cat"), seed=5,
        size=6, resize=7, interpolation="bicubic",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "wanted", "chosen"),
    [
        (TREE, "test", "test"),
        (TREE, "train", "train"),
        ({"train/cat": 1, "val/cat": 1}, "test", "val"),
        ({"cat": 1, "dog": 1}, "test", "all"),
        ({"": 2}, "train", "all"),
    ],
)
def test_an_empty_split_is_the_verbs_own(tmp_path: Path, tree: dict[str, int], wanted: str, chosen: str) -> None:
    trees.folders(tmp_path, tree)
    assert images(str(tmp_path), default_split=wanted).split == chosen


@pytest.mark.parametrize("wrong", [{"limit": -1}, {"size": -2}, {"size": 224, "resize": 200}])
def test_impossible_numbers(tmp_path: Path, wrong: dict[str, int]) -> None:
    trees.folders(tmp_path, TREE)
    with pytest.raises(DataError):
        images(str(tmp_path), **wrong)  # type: ignore[arg-type]


# -- splits and classes ------------------------------------------------------------------------------------------------


def test_class_folders_under_splits(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    source = open_source(images(str(tmp_path), split="test"))
    assert source.classes == ("cat", "dog")
    assert source.ids == ["test/cat/0000.png", "test/cat/0001.png", "test/dog/0000.png", "test/dog/0001.png"]
    assert source.labels == [0, 0, 1, 1]
    assert np.array_equal(source.read(3).pixels, trees.noise(8, 8, 3, seed=301))
    assert source.read(3).truth == {"label": 1}


def test_class_folders_without_splits(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"dog": 1, "cat": 2})
    for split in ("", "all"):
        source = open_source(Data(source="folder", root=str(tmp_path), split=split))
        assert source.ids == ["cat/0000.png", "cat/0001.png", "dog/0000.png"]
    with pytest.raises(DataError, match=r"No split test in .*Found: all \(2 classes, 3 images\).*--split all"):
        open_source(images(str(tmp_path), split="test"))


def test_a_class_that_is_called_train(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"bus": 1, "car": 1, "train": 1})
    assert open_source(images(str(tmp_path))).classes == ("bus", "car", "train")


def test_a_split_of_an_unusual_name(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"train/cat": 1, "train/dog": 1, "matched-frequency/dog": 1})
    source = open_source(images(str(tmp_path), split="matched-frequency"))
    assert (source.classes, source.labels) == (("cat", "dog"), [1])


def test_a_missing_split_lists_what_is_there(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    told = r"No split val in .*Found: test \(2 classes, 4 images\), train \(2 classes, 7 images\)\. Use --split test\."
    with pytest.raises(DataError, match=told):
        open_source(images(str(tmp_path), split="val"))


def test_no_split_where_there_are_several(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    with pytest.raises(DataError, match=r"has several splits"):
        open_source(Data(source="folder", root=str(tmp_path), split=""))


def test_a_class_that_training_has_not(tmp_path: Path) -> None:
    trees.folders(tmp_path, {**TREE, "test/zebra": 1})
    with pytest.raises(DataError, match=r'test/ has class "zebra", train/ has not\.'):
        open_source(images(str(tmp_path), split="test"))


def test_a_class_that_the_test_split_lacks_keeps_the_labels(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"train/ant": 1, "train/bee": 1, "train/cow": 1, "test/ant": 1, "test/cow": 1})
    source = open_source(images(str(tmp_path), split="test"))
    assert source.classes == ("ant", "bee", "cow")
    assert source.labels == [0, 2]


def test_an_empty_class_folder_is_named_not_dropped(tmp_path: Path) -> None:
    trees.folders(tmp_path, {**TREE, "train/bee": 0})
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r'Class folder "bee" .*holds no image'):
        open_source(images(str(tmp_path), split="train"))
    assert open_source(images(str(tmp_path), split="train", classes="dog,cat")).labels == [1] * 4 + [0] * 3


def test_images_beside_class_folders(tmp_path: Path) -> None:
    trees.folders(tmp_path, {**TREE, "test": 1})
    with pytest.raises(DataError, match=r"2 class folders and 1 images beside them \(0000\.png"):
        open_source(images(str(tmp_path), split="test"))


def test_hidden_files_and_other_files_are_not_looked_at(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    (tmp_path / "test" / "cat" / "._0000.png").write_bytes(b"junk of an archive")
    (tmp_path / "test" / "cat" / "Thumbs.db").write_bytes(b"junk")
    trees.folders(tmp_path, {"test/.cache": 1, "__MACOSX/cat": 1})
    trees.save(tmp_path / "test" / "cat" / "DEEP.PNG", trees.noise(8, 8, 3))
    source = open_source(images(str(tmp_path), split="test"))
    assert source.classes == ("cat", "dog")
    assert source.ids[:3] == ["test/cat/0000.png", "test/cat/0001.png", "test/cat/DEEP.PNG"]


def test_folders_inside_a_class_belong_to_it(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"cat/indoors": 1, "cat": 1, "dog/outdoors/far": 2})
    source = open_source(images(str(tmp_path), split="all"))
    assert source.ids == [
        "cat/0000.png",
        "cat/indoors/0000.png",
        "dog/outdoors/far/0000.png",
        "dog/outdoors/far/0001.png",
    ]
    assert source.labels == [0, 0, 1, 1]


def test_flat_images_have_no_labels(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"": 3})
    source = open_source(images(str(tmp_path)))
    assert source.labels is None
    assert source.data.source == "flat"
    with pytest.raises(DataError, match=r"holds 3 images and no class folders.*holdfast ls layouts"):
        require_labels(source)
    with pytest.raises(DataError, match="has no labels"):
        open_source(images(str(tmp_path), classes="cat"))


def test_a_split_folder_without_class_folders(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"train": 2, "test": 1})
    source = open_source(images(str(tmp_path), split="train"))
    assert (source.labels, source.ids) == (None, ["train/0000.png", "train/0001.png"])


def test_flat_reads_class_folders_without_their_labels(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    assert len(open_source(images(f"flat:{tmp_path}", split="all"))) == 11
    assert len(open_source(images(f"flat:{tmp_path}", split="train"))) == 7


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"It holds none \(\.jpg"):
        open_source(images(str(tmp_path)))


def test_the_wrong_kind_for_a_folder(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    with pytest.raises(DataError, match="nothing that looks like cifar10"):
        open_source(images(f"cifar10:{tmp_path}", split="test"))


def test_classes_are_labelled_in_the_order_given(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"ant": 1, "bee": 2, "cow": 1})
    (tmp_path / "names.txt").write_text("cow\n\nant\n")
    for classes in ("cow,ant", str(tmp_path / "names.txt"), ("cow", "ant")):
        source = open_source(images(str(tmp_path), split="all", classes=classes))
        assert source.classes == ("cow", "ant")
        assert source.ids == ["ant/0000.png", "cow/0000.png"]
        assert source.labels == [1, 0]


def test_a_typo_in_a_class(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"airplane": 1, "bee": 1})
    with pytest.raises(DataError, match=r'no class "aeroplane"\. Perhaps you meant "airplane"'):
        open_source(images(str(tmp_path), classes="aeroplane"))
    with pytest.raises(DataError, match=r'Class "bee" is named twice'):
        images(str(tmp_path), classes="bee,bee")


# -- ImageNet ----------------------------------------------------------------------------------------------------------


def test_imagenet_labels_are_official_even_of_few_classes(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"val/n15075141": 1, "val/n01440764": 1, "val/n01530575": 1})
    source = open_source(images(f"imagenet:{tmp_path}"))
    assert source.labels == [0, 10, 999]
    assert len(source.classes) == 1000
    assert open_source(images(str(tmp_path))).labels == [0, 1, 2]


def test_imagenet_classes_by_wnid_or_word(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"val/n01440764": 1, "val/n01530575": 2})
    source = open_source(images(f"imagenet:{tmp_path}", classes="brambling,n01440764"))
    assert source.classes == ("n01530575", "n01440764")
    assert source.labels == [1, 0, 0]
    with pytest.raises(DataError, match='"crane" names n02012849 and n03126707'):
        open_source(images(f"imagenet:{tmp_path}", classes="crane"))
    with pytest.raises(DataError, match=r'Perhaps you meant "tench"'):
        open_source(images(f"imagenet:{tmp_path}", classes="tensh"))
    with pytest.raises(DataError, match="There are 1,000, from n01440764"):
        open_source(images(f"imagenet:{tmp_path}", classes="qqqqq"))
    with pytest.raises(DataError, match="named twice"):
        open_source(images(f"imagenet:{tmp_path}", classes="tench,n01440764"))


def test_imagenet_folders_must_be_wnids(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"val/n01440764": 1, "val/tench": 1})
    with pytest.raises(DataError, match=r'"tench", which is not one of them'):
        open_source(images(f"imagenet:{tmp_path}", split="val"))
    trees.folders(tmp_path, {"flat": 1})
    with pytest.raises(DataError, match=r"flat has no folder"):
        open_source(images(f"imagenet:{tmp_path}", split="flat"))


# -- files that are not what they should be ----------------------------------------------------------------------------


def test_an_unreadable_file_is_named_before_the_first_batch(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    (tmp_path / "test" / "dog" / "0001.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"test/dog/0001\.png cannot be read as an image"):
        open_source(images(str(tmp_path), split="test"))


def test_a_file_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE, size=64)
    path = tmp_path / "test" / "dog" / "0001.png"
    path.write_bytes(path.read_bytes()[:2000])
    source = open_source(images(str(tmp_path), split="test"))
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"test/dog/0001\.png cannot be read as an image"):
            list(batches(source, size=2, workers=workers))


def test_different_sizes_are_named_before_the_first_batch(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    trees.save(tmp_path / "test" / "dog" / "0001.png", trees.noise(9, 12, 3))
    told = r"test/cat/0000\.png is 8x8 and .*test/dog/0001\.png is 9x12 pixels.*--size"
    with pytest.raises(DataError, match=told):
        open_source(images(str(tmp_path), split="test"))
    with pytest.raises(DataError, match=r"is 8x8 and .*0001\.png is 8x10 pixels"):
        open_source(images(str(tmp_path), split="test", resize=8))
    (batch,) = batches(open_source(images(str(tmp_path), split="test", resize=8, size=6)), size=9)
    assert batch.pixels.shape == (4, 3, 6, 6)


def test_different_sizes_of_many_files_are_found_in_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "CHECKED_FILES", 3)
    trees.folders(tmp_path, TREE)
    trees.save(tmp_path / "test" / "dog" / "0001.png", trees.noise(9, 12, 3))
    source = open_source(images(str(tmp_path), split="test"))
    with pytest.raises(DataError, match=r"test/cat/0000\.png is 8x8 and test/dog/0001\.png is 9x12 pixels.*--size"):
        list(batches(source, size=1))


def test_a_crop_larger_than_an_image(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    with pytest.raises(DataError, match=r"crop of 10 pixels.*test/cat/0000\.png is 8x8.*--resize 10"):
        open_source(images(str(tmp_path), split="test", size=10))


def test_only_the_chosen_files_are_checked(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    (tmp_path / "test" / "dog" / "0001.png").write_bytes(b"<html>")
    assert len(open_source(images(str(tmp_path), split="test", limit=2, subset="first"))) == 2


def test_a_record_whose_images_have_changed(tmp_path: Path) -> None:
    trees.folders(tmp_path, TREE)
    record = open_source(images(str(tmp_path), split="test")).data
    assert open_source(record).data == record
    trees.folders(tmp_path, {"test/cat": 3})
    with pytest.raises(DataError, match=r"other images or labels today"):
        open_source(record)
    assert open_source(msgspec.structs.replace(record, digest_of_images="")).data != record
