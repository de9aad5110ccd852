"""Shifted sets: official labels, 200 of 1,000 classes, folders in number order, and what is said of a wrong folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
from timm.data import ImageNetInfo

from holdfast.data.batches import read_all
from holdfast.data.sources import images, open_source, parse, splits
from holdfast.errors import DataError
from holdfast.records import Data

OFFICIAL = ImageNetInfo().label_names()


# -- ImageNet-A and -R -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["imagenet_a", "imagenet_r"])
def test_two_hundred_classes_with_their_official_labels(tmp_path: Path, kind: str) -> None:
    home = trees.shifted(tmp_path / "anything", kind)
    assert parse(str(home)) == (kind, str(home))
    source = open_source(images(str(home)))
    assert source.data.split == "test"
    assert source.classes == tuple(OFFICIAL)
    assert source.labels is not None
    assert [OFFICIAL[label] for label in source.labels] == [name.split("/")[0] for name in source.ids]
    assert source.within == tuple(sorted(OFFICIAL.index(wnid) for wnid in trees.two_hundred(kind)))
    assert (len(source.within), set(source.labels)) == (200, set(source.within))


def test_the_two_lists_are_different_and_known_classes_are_in_them(tmp_path: Path) -> None:
    """By the lists that were published: no tench (0) in either, a stingray (6) in both, a lady's slipper (986) in
    ImageNet-A alone, a goldfish (1) in ImageNet-R alone."""
    found = {}
    for kind in ("imagenet_a", "imagenet_r"):
        found[kind] = set(open_source(images(f"{kind}:{trees.shifted(tmp_path / kind, kind)}")).within)
    assert 0 not in found["imagenet_a"] | found["imagenet_r"]
    assert 1 in found["imagenet_r"] - found["imagenet_a"]
    assert 6 in found["imagenet_a"] & found["imagenet_r"]
    assert 986 in found["imagenet_a"] - found["imagenet_r"]
    assert len(found["imagenet_a"] & found["imagenet_r"]) not in (0, 200)


def test_within_follows_the_classes_that_are_chosen(tmp_path: Path) -> None:
    home = trees.shifted(tmp_path / "imagenet-r", "imagenet_r")
    # A tench cannot occur, a goldfish can: two classes, of which label 1 alone is possible.
    source = open_source(images(f"imagenet_r:{home}", classes="tench,goldfish"))
    assert (source.labels, source.within) == ([1], (1,))
    assert open_source(images(f"imagenet_r:{home}", classes="goldfish,hammerhead")).within == ()


def test_every_label_can_occur_elsewhere(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"val/n01440764": 2})
    assert open_source(images(f"imagenet:{tmp_path}")).within == ()
    assert open_source(Data(source="scenes", limit=2)).within == ()


def test_a_folder_too_few_and_a_folder_too_many(tmp_path: Path) -> None:
    home = trees.shifted(tmp_path / "imagenet-a", "imagenet_a")
    shutil.rmtree(home / "n01498041")
    told = r"200 folders, from n01498041.*holds 199 folders: it lacks n01498041\. .*--data folder:"
    with pytest.raises(DataError, match=told):
        open_source(images(f"imagenet_a:{tmp_path}"))
    trees.save(home / "n01440764" / "a.jpg", trees.noise(8, 8, 3))
    with pytest.raises(DataError, match=r"holds 200 folders: it lacks n01498041 and has n01440764"):
        open_source(images(f"imagenet_a:{tmp_path}"))


def test_the_other_set_an_archive_and_an_empty_folder(tmp_path: Path) -> None:
    home = trees.shifted(tmp_path / "r", "imagenet_r")
    with pytest.raises(DataError, match=r"holds those of imagenet_r\. Type --data imagenet_r:"):
        open_source(images(f"imagenet_a:{home}"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is empty"):
        open_source(images(f"imagenet_r:{tmp_path / 'empty'}"))
    (tmp_path / "empty" / "imagenet-r.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds imagenet-r\.tar, not unpacked"):
        open_source(images(f"imagenet_r:{tmp_path / 'empty'}"))


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    home = trees.shifted(tmp_path / "imagenet-a", "imagenet_a")
    for path in (home / "n01498041").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r'Class folder "n01498041".*holds no image'):
        open_source(images(str(home)))


# -- ImageNet-V2, -Sketch ----------------------------------------------------------------------------------------------


def test_the_folder_is_the_label_though_text_sorts_otherwise(tmp_path: Path) -> None:
    labels = [0, 1, 2, 9, 10, 11, 100, 999]
    assert sorted(map(str, labels)) != [str(label) for label in labels]
    home = trees.imagenet_v2(tmp_path, labels)
    source = open_source(images(str(home)))
    assert (source.data.source, source.data.split) == ("imagenet_v2", "test")
    assert source.labels == labels
    assert source.classes == tuple(OFFICIAL)
    assert [name.split("/")[0] for name in source.ids] == [str(label) for label in labels]
    assert open_source(images(str(home), classes="goldfish")).ids == [f"1/{1:040x}.jpeg"]


def test_each_version_is_a_split_of_their_parent(tmp_path: Path) -> None:
    for version in ("threshold0.7", "matched-frequency", "top-images"):
        trees.imagenet_v2(tmp_path, [0, len(version)], version)
    assert splits(str(tmp_path)) == ("matched-frequency", "threshold0.7", "top-images")
    assert images(str(tmp_path)).split == "matched-frequency"
    assert open_source(images(str(tmp_path), split="top-images")).labels == [0, 10]


def test_digits_are_classes_of_many_sets(tmp_path: Path) -> None:
    trees.folders(tmp_path, {str(digit): 1 for digit in range(10)})
    assert parse(str(tmp_path))[0] == "folder"
    assert open_source(images(f"imagenet_v2:{tmp_path}")).labels == list(range(10))


def test_a_folder_of_imagenet_v2_that_is_no_number(tmp_path: Path) -> None:
    home = trees.imagenet_v2(tmp_path)
    trees.folders(home, {"007": 1})
    with pytest.raises(DataError, match=r"has the folder 007\. Folders named by wnid"):
        open_source(images(f"imagenet_v2:{home}"))
    for path in (home / "007", home / "1"):
        shutil.rmtree(path)
    (home / "2" / f"{2:040x}.jpeg").unlink()
    with pytest.raises(DataError, match=r'Class folder "n01484850".*holds no image'):
        open_source(images(f"imagenet_v2:{home}"))


def test_sketches_are_grey_and_their_labels_official(tmp_path: Path) -> None:
    home = trees.imagenet_sketch(tmp_path)
    for text in (str(tmp_path), str(home)):
        source = open_source(images(text))
        assert source.data.source == "imagenet_sketch"
        assert source.labels == [OFFICIAL.index(wnid) for wnid in trees.WNIDS for _ in range(2)]
        assert source.ids[0] == f"{trees.WNIDS[0]}/sketch_0.JPEG"
    pixels = source.read(0).pixels
    assert np.array_equal(pixels, np.repeat(pixels[..., :1], 3, axis=2))
    trees.folders(home, {"fox": 1})
    with pytest.raises(DataError, match='"fox", which is not one of them'):
        open_source(images(f"imagenet_sketch:{home}"))


# -- CIFAR-10.1, Tiny-ImageNet -----------------------------------------------------------------------------------------


def test_cifar10_1_has_two_versions_and_v6_is_meant(tmp_path: Path) -> None:
    stored = trees.cifar10_1(tmp_path / "CIFAR-10.1" / "datasets")
    assert splits(str(tmp_path / "CIFAR-10.1")) == ("v6", "v4")
    for split, version in (("", "v6"), ("v6", "v6"), ("v4", "v4")):
        source = open_source(images(str(tmp_path / "CIFAR-10.1"), split=split))
        pixels, labels = read_all(source)
        assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), stored[version])
        assert labels is not None
        assert labels.tolist() == [(3 * i + (version == "v4")) % 10 for i in range(len(stored[version]))]
    assert source.classes == tuple(trees.CIFAR10)
    assert source.ids[1] == "v4/00001"


def test_cifar10_1_with_the_old_version_alone(tmp_path: Path) -> None:
    trees.cifar10_1(tmp_path, ["v4"])
    assert images(str(tmp_path)).split == "v4"
    with pytest.raises(DataError, match=r"No split v6 in .*Found: v4 \(10 classes, 5 images\)"):
        open_source(images(str(tmp_path), split="v6"))


def test_cifar10_1_that_is_not_there_or_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No file .*cifar10\.1_v6_data\.npy"):
        open_source(images(f"cifar10_1:{tmp_path}"))
    trees.cifar10_1(tmp_path, ["v6"])
    path = tmp_path / "cifar10.1_v6_labels.npy"
    np.save(path, np.arange(3))
    with pytest.raises(DataError, match="5 images, 3 labels"):
        open_source(images(str(tmp_path)))
    np.save(path, np.array([{"code": 1}] * 5), allow_pickle=True)
    with pytest.raises(DataError, match=r"v6_labels\.npy cannot be read as a \.npy array"):
        open_source(images(str(tmp_path)))
    np.save(tmp_path / "cifar10.1_v6_data.npy", np.zeros((5, 32, 32, 3), np.float32))
    with pytest.raises(DataError, match=r"uint8 \[n, h, w, 3\].*v6_data\.npy holds float32 \[5, 32, 32, 3\]"):
        open_source(images(str(tmp_path)))


def test_tiny_imagenet_labels_are_sorted_wnids(tmp_path: Path) -> None:
    home = trees.tiny_imagenet(tmp_path)
    for text in (str(tmp_path), str(home)):
        train, val = (open_source(images(text, default_split=split)) for split in ("train", "test"))
        assert (train.data.split, val.data.split) == ("train", "val")
        assert train.classes == val.classes == tuple(sorted(trees.WNIDS))
        assert train.labels == [0, 1, 2, 2]
        assert val.labels == [2, 0, 1]
        assert val.ids == [f"val/images/val_{i}.JPEG" for i in range(3)]
        assert train.ids[0] == f"train/{trees.WNIDS[0]}/images/{trees.WNIDS[0]}_0.JPEG"


def test_tiny_imagenet_with_strange_lists(tmp_path: Path) -> None:
    home = trees.tiny_imagenet(tmp_path)
    path = home / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + "val_9.JPEG\tn99999999\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt has the line 'val_9\.JPEG n99999999"):
        open_source(images(str(home)))
    path.unlink()
    with pytest.raises(DataError, match=r"No file .*val_annotations\.txt"):
        open_source(images(str(home)))
    trees.folders(home / "train", {"n01440764": 1})
    with pytest.raises(DataError, match=r"train has n01440764, wnids\.txt has not"):
        open_source(images(str(home), split="train"))


# -- splits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["imagenet_a", "imagenet_v2", "imagenet_sketch", "cifar10_1"])
def test_a_test_set_is_never_trained_on_by_default(tmp_path: Path, kind: str) -> None:
    trees.TREES[kind][0](tmp_path)
    with pytest.raises(DataError, match=r"No split train in " + re.escape(str(tmp_path))):
        open_source(images(f"{kind}:{tmp_path}", default_split="train"))
    assert len(open_source(images(f"{kind}:{tmp_path}"))) > 2


def test_a_hyphen_in_a_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no source 'imagenet-a'.*Perhaps you meant \"imagenet_a\""):
        parse(f"imagenet-a:{tmp_path}")
