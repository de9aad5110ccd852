"""Corrupted sets: what is there, what is said of a wrong folder, and that pixels are those that were stored."""

from __future__ import annotations

import os
import re
import shutil
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import data_trees as trees
import msgspec
import numpy as np
import pytest
from timm.data import ImageNetInfo

from holdfast.configs import BenchConfig
from holdfast.corruptions import table
from holdfast.data import conditions as rooms
from holdfast.data.batches import batches, read_all
from holdfast.data.corrupted import KINDS, VARIANTS, check, conditions, kind_of
from holdfast.data.sources import images, images_for, layouts, open_source, parse, splits
from holdfast.errors import DataError

OFFICIAL = ImageNetInfo().label_names()
FIVE = (1, 2, 3, 4, 5)


class Expected(NamedTuple):
    """Of an encoder: sides that a stored image must not be brought to."""

    size: int = 20
    resize: int = 24
    interpolation: str = "bicubic"


# -- what is there -----------------------------------------------------------------------------------------------------


def test_conditions_stand_in_the_published_order_and_others_after_them(tmp_path: Path) -> None:
    names = ["spatter", "zebra", "fog", "gaussian_noise", "ants", "jpeg_compression"]
    trees.corrupted(tmp_path, names, (5, 1, 3), count=1)
    ordered = ["gaussian_noise", "fog", "jpeg_compression", "spatter", "ants", "zebra"]
    expected = tuple((name, severity) for name in ordered for severity in (1, 3, 5))
    assert conditions("imagenet_c", tmp_path) == expected
    assert splits(f"imagenet_c:{tmp_path}") == tuple(f"{name}/{severity}" for name, severity in expected)


def test_the_order_is_that_of_the_corruptions_that_are_made_here() -> None:
    assert len(rooms.PUBLISHED) == len(set(rooms.PUBLISHED)) == 19
    assert [name for name in rooms.PUBLISHED if name in table.names()] == list(table.names())
    assert set(VARIANTS.values()) <= set(table.variants())
    assert set(KINDS) == set(VARIANTS) < set(layouts())


def test_the_classes_of_cifar_100_are_in_label_order() -> None:
    assert len(rooms.CIFAR100) == 100
    assert list(rooms.CIFAR100) == sorted(set(rooms.CIFAR100))
    assert (rooms.CIFAR100[0], rooms.CIFAR100[41], rooms.CIFAR100[99]) == ("apple", "lawn_mower", "worm")


def test_families_may_be_folders_or_not_or_mixed(tmp_path: Path) -> None:
    trees.corrupted(tmp_path, ["noise/shot_noise", "weather/fog", "contrast", "extra/saturate"], FIVE, count=2)
    assert parse(str(tmp_path)) == ("imagenet_c", str(tmp_path))
    found = conditions("imagenet_c", tmp_path)
    assert dict.fromkeys(name for name, _ in found) == dict.fromkeys(["shot_noise", "fog", "contrast", "saturate"])
    assert len(found) == 20
    flat = open_source(images(str(tmp_path), split="contrast/2"))
    deep = open_source(images(str(tmp_path), split="fog/2"))
    # A name does not depend on the grouping of the archives.
    assert [name.replace("fog", "contrast") for name in deep.ids] == flat.ids
    assert flat.ids[0] == f"contrast/2/{trees.WNIDS[0]}/ILSVRC2012_val_00000000.JPEG"


def test_no_image_folder_is_listed_to_say_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.corrupted(tmp_path, ["weather/fog", "snow"], FIVE, count=1)
    seen: list[str] = []
    real = os.scandir

    def watched(path: str | Path) -> object:
        seen.append(str(Path(path).relative_to(tmp_path)))
        return real(path)

    monkeypatch.setattr(os, "scandir", watched)
    there = splits(f"imagenet_c:{tmp_path}")
    assert len(there) == 10
    assert len(conditions("imagenet_c", tmp_path)) == 10
    assert not [path for path in seen if re.search(r"(fog|snow)/\d", path)]
    seen.clear()
    with pytest.raises(DataError, match="No condition test"):
        open_source(images(f"imagenet_c:{tmp_path}"))
    assert not [path for path in seen if re.search(r"(fog|snow)/\d", path)]
    seen.clear()
    open_source(images(f"imagenet_c:{tmp_path}", split="fog/4"))
    assert {path for path in seen if re.search(r"(fog|snow)/\d/", path)} == {
        f"weather/fog/4/{wnid}" for wnid in trees.WNIDS[:2]
    }


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["fog"], "imagenet_c"),
        (["extra/speckle_noise"], "imagenet_c"),
        (["sparkles"], "imagenet_c_bar"),
        (["xy_motion_blur", "fog_3d"], "imagenet_3dcc"),
    ],
)
def test_a_tree_is_recognised_by_its_corruptions(tmp_path: Path, names: Sequence[str], kind: str) -> None:
    assert kind_of(trees.corrupted(tmp_path, names, count=1)) == kind


def test_tiny_is_recognised_by_its_pixels(tmp_path: Path) -> None:
    assert kind_of(trees.corrupted(tmp_path / "tiny", size=64, count=1)) == "tiny_imagenet_c"
    assert kind_of(trees.corrupted(tmp_path / "own", classes=["cat"], size=64, count=1)) == "imagenet_c"
    broken = trees.corrupted(tmp_path / "broken", size=64, count=1)
    for path in broken.rglob("*.JPEG"):
        path.write_bytes(b"<html>")
    assert kind_of(broken) == "imagenet_c"


def test_arrays_are_recognised_by_their_labels(tmp_path: Path) -> None:
    trees.cifar_c(tmp_path / "ten", classes=10)
    trees.cifar_c(tmp_path / "hundred", classes=100)
    assert [kind_of(tmp_path / name) for name in ("ten", "hundred")] == ["cifar10_c", "cifar100_c"]


def test_weather_photographs_are_no_corrupted_set(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"fog": 2, "snow": 2, "frost/near": 1})
    assert kind_of(tmp_path) is None
    assert open_source(images(str(tmp_path))).classes == ("fog", "frost", "snow")


def test_an_incomplete_set_is_said_and_its_splits_can_be_opened(tmp_path: Path) -> None:
    trees.corrupted(tmp_path, ["fog", "snow"], FIVE, count=1)
    shutil.rmtree(tmp_path / "snow" / "5")
    with pytest.raises(DataError, match=r"snow has the severities 1, 2, 3, 4, others have 1, 2, 3, 4, 5\. Unpack snow"):
        conditions("imagenet_c", tmp_path)
    assert len(open_source(images(str(tmp_path), split="fog/5"))) == 2


def test_severities_are_one_to_five(tmp_path: Path) -> None:
    trees.corrupted(tmp_path, ["fog"], (1, 6), count=1)
    with pytest.raises(DataError, match=r"1 to 5.*fog has the folder 6"):
        conditions("imagenet_c", tmp_path)
    shutil.rmtree(tmp_path / "fog" / "1")
    with pytest.raises(DataError, match=r"A corruption is folders 1 to 5.*fog holds 6"):
        conditions("imagenet_c", tmp_path)


def test_a_corruption_in_two_places(tmp_path: Path) -> None:
    trees.corrupted(tmp_path, ["fog", "weather/fog"], count=1)
    with pytest.raises(DataError, match=r"fog lies in .* and in .*weather\. Keep one"):
        conditions("imagenet_c", tmp_path)


# -- the wrong folder --------------------------------------------------------------------------------------------------


def test_the_folder_above_the_part_below_and_another_set(tmp_path: Path) -> None:
    home = trees.corrupted(tmp_path / "deep" / "ImageNet-C", ["weather/fog"], count=1)
    trees.cifar_c(tmp_path / "deep" / "CIFAR-10-C")
    for kind, name in (("imagenet_c", "ImageNet-C"), ("cifar10_c", "CIFAR-10-C"), ("cifar100_c", "CIFAR-10-C")):
        told = rf"deep is a folder above: {name} holds.*Give (imagenet_c|cifar10_c):.*{name}\."
        with pytest.raises(DataError, match=told):
            conditions(kind, tmp_path / "deep")
    for part in ("weather/fog", "weather/fog/3"):
        with pytest.raises(DataError, match=r"is a part of .*Give imagenet_c:" + re.escape(str(home))):
            conditions("imagenet_c", home / part)
    with pytest.raises(DataError, match=r"CIFAR-10-C holds cifar10_c\. Give cifar10_c:"):
        conditions("imagenet_c", tmp_path / "deep" / "CIFAR-10-C")
    with pytest.raises(DataError, match=r"ImageNet-C holds imagenet_c\. Give imagenet_c:"):
        conditions("cifar10_c", home)


def test_clean_images_by_mistake(tmp_path: Path) -> None:
    root = trees.clean_imagenet(tmp_path / "clean")
    told = r"clean holds class folders \(val/n\.\.\.\) and no corruption: clean images.*--data imagenet:.*clean\."
    with pytest.raises(DataError, match=told):
        conditions("imagenet_c", root)
    with pytest.raises(DataError, match=rf"val holds class folders \({trees.WNIDS[0]}\)"):
        conditions("imagenet_c", root / "val")


def test_an_archive_an_empty_folder_none_and_a_typo(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"imagenet_c is corruption/severity/class/image\. .* is empty\."):
        conditions("imagenet_c", tmp_path)
    (tmp_path / "noise.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds noise\.tar, not unpacked\. Unpack the archives of imagenet_c there"):
        images(f"imagenet_c:{tmp_path}")
    with pytest.raises(DataError, match="No folder"):
        conditions("cifar10_c", tmp_path / "none")
    with pytest.raises(DataError, match='Perhaps you meant "cifar10_c"'):
        conditions("cifar_c", tmp_path)


def test_a_condition_that_is_not_there(tmp_path: Path) -> None:
    trees.corrupted(tmp_path, ["fog", "snow"], count=1)
    with pytest.raises(
        DataError, match=r"No condition fgo/3\. .*4 conditions of 2 corruptions.*Perhaps you meant \"fog"
    ):
        open_source(images(str(tmp_path), split="fgo/3"))
    with pytest.raises(DataError, match=r"No condition fog/2\. .*fog has the severities 1, 3\. .*--split fog/1"):
        open_source(images(str(tmp_path), split="fog/2"))
    with pytest.raises(DataError, match=r"\(none named\)"):
        check("", ["fog/1"], tmp_path)


# -- one condition, opened by itself -----------------------------------------------------------------------------------


def test_labels_are_official_where_all_folders_are_of_imagenet(tmp_path: Path) -> None:
    trees.corrupted(tmp_path / "wnids", ["fog"], (3,), count=2)
    source = open_source(images(str(tmp_path / "wnids"), split="fog/3"))
    assert source.labels == [OFFICIAL.index(wnid) for wnid in trees.WNIDS[:2] for _ in range(2)]
    assert source.classes == tuple(OFFICIAL)
    trees.corrupted(tmp_path / "own", ["fog"], (3,), classes=["dog", "cat"], count=2, suffix=".png")
    source = open_source(images(str(tmp_path / "own"), split="fog/3"))
    assert (source.labels, source.classes) == ([0, 0, 1, 1], ("cat", "dog"))
    assert np.array_equal(source.read(3).pixels, trees.noise(16, 16, 3, seed=1))


def test_tiny_counts_its_own_classes(tmp_path: Path) -> None:
    trees.corrupted(tmp_path, ["fog"], (3,), classes=trees.WNIDS, count=1, size=64)
    source = open_source(images(str(tmp_path), split="fog/3"))
    assert (source.data.source, source.labels, source.classes) == ("tiny_imagenet_c", [0, 1, 2], trees.WNIDS)


def test_images_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    trees.folders(tmp_path, {"fog/3": 3})
    source = open_source(images(str(tmp_path), split="fog/3"))
    assert (source.labels, source.ids[0]) == (None, "fog/3/0000.png")


@pytest.mark.parametrize("repeated", [True, False])
def test_a_severity_is_a_fifth_of_the_rows(tmp_path: Path, repeated: bool) -> None:
    arrays, truth = trees.cifar_c(tmp_path, n=4, repeated=repeated)
    assert conditions("cifar10_c", tmp_path) == tuple((name, s) for name in ("snow", "fog") for s in FIVE)
    for severity in FIVE:
        source = open_source(images(str(tmp_path), split=f"fog/{severity}"))
        pixels, labels = read_all(source)
        stored = arrays["fog"].reshape(5, 4, 32, 32, 3)[severity - 1]
        assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), stored)
        assert labels is not None
        assert labels.tolist() == truth.tolist()
        assert source.ids == [f"fog/{severity}/{i:05d}" for i in range(4)]
    assert source.classes == tuple(trees.CIFAR10)


def test_an_array_stays_on_disk(tmp_path: Path) -> None:
    """A whole official array, 153 MB of zeros that take no room on disk: a look at one image costs next to nothing."""
    stored = np.lib.format.open_memmap(tmp_path / "fog.npy", mode="w+", dtype=np.uint8, shape=(50_000, 32, 32, 3))
    stored[40_017] = 7
    stored.flush()
    np.save(tmp_path / "labels.npy", np.zeros(50_000, np.int64))
    del stored
    tracemalloc.start()
    source = open_source(images(str(tmp_path), split="fog/5"))
    first, marked = source.read(0).pixels, source.read(17).pixels
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert (len(source), first.max(), marked.min()) == (10_000, 0, 7)


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [
        ("fog", np.zeros((9, 32, 32, 3), np.uint8), r"Five severities of n images each.*fog\.npy holds 9 images"),
        ("fog", np.zeros((0, 32, 32, 3), np.uint8), r"fog\.npy holds 0 images"),
        ("fog", np.zeros((20, 32, 32), np.uint8), r"fog\.npy holds uint8 \[20, 32, 32\]"),
        ("fog", np.zeros((20, 32, 32, 3), np.float32), r"fog\.npy holds float32"),
        (
            "fog",
            np.zeros((20, 96, 96, 3), np.uint8),
            r"Those of cifar10_c are 32x32.*holds images of 96x96.*--corrupted",
        ),
        ("snow", np.zeros((25, 32, 32, 3), np.uint8), r"fog\.npy holds 20 rows, snow\.npy 25"),
        ("labels", np.zeros(7, np.int64), r"20 integers.*or 4\..*holds int64 \[7\]"),
        ("labels", np.zeros(20, np.float32), r"labels\.npy holds float32"),
        ("labels", np.full(20, -1), r"labels from -1 to -1"),
        ("labels", np.full(20, 10), r"10 classes.*labels from 10 to 10\. Type cifar100_c:"),
    ],
)
def test_arrays_that_are_not_what_they_should_be(tmp_path: Path, name: str, array: np.ndarray, told: str) -> None:
    trees.cifar_c(tmp_path)
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(DataError, match=told):
        open_source(images(f"cifar10_c:{tmp_path}", split="fog/3"))


def test_an_array_that_is_cut_short_holds_code_or_lacks_labels(tmp_path: Path) -> None:
    trees.cifar_c(tmp_path)
    whole = (tmp_path / "fog.npy").read_bytes()
    for content in (whole[:5000], b"", b"<html>"):
        (tmp_path / "fog.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"fog\.npy cannot be read as a \.npy array"):
            open_source(images(f"cifar10_c:{tmp_path}", split="fog/3"))
    np.save(tmp_path / "fog.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"fog\.npy cannot be read as a .*Python objects"):
        open_source(images(f"cifar10_c:{tmp_path}", split="fog/3"))
    (tmp_path / "fog.npy").write_bytes(whole)
    (tmp_path / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"No file .*labels\.npy"):
        open_source(images(f"cifar10_c:{tmp_path}", split="fog/3"))


def test_stored_images_are_not_brought_to_the_encoders_size(tmp_path: Path) -> None:
    trees.corrupted(tmp_path / "c", ["fog"], (3,), count=1)
    trees.clean_imagenet(tmp_path / "clean")
    config = BenchConfig(data=f"imagenet_c:{tmp_path / 'c'}", encoders=("x",))
    data = images_for(config, Expected(), split="fog/3", default="test")
    assert (data.size, data.resize) == (0, 0)
    assert open_source(data).read(0).pixels.shape == (16, 16, 3)
    clean = images_for(
        msgspec.structs.replace(config, data=f"imagenet:{tmp_path / 'clean'}"), Expected(), split="val", default="test"
    )
    assert (clean.size, clean.resize) == (20, 24)
    asked = images_for(msgspec.structs.replace(config, size=8, resize=12), Expected(), split="fog/3", default="test")
    assert (asked.size, asked.resize) == (8, 12)


def test_an_image_of_another_size_a_broken_one_grey_and_transparent_ones(tmp_path: Path) -> None:
    root = trees.corrupted(tmp_path, ["fog"], (3,), count=3, suffix=".png")
    home = root / "fog" / "3" / trees.WNIDS[0]
    trees.save(home / "ILSVRC2012_val_00000000.png", trees.noise(16, 16, seed=5))
    trees.save(home / "ILSVRC2012_val_00000001.png", trees.noise(16, 16, 4, seed=6))
    source = open_source(images(str(root), split="fog/3"))
    assert np.array_equal(source.read(0).pixels, np.repeat(trees.noise(16, 16, seed=5)[..., None], 3, axis=2))
    assert np.array_equal(source.read(1).pixels, trees.noise(16, 16, 4, seed=6)[..., :3])
    path = trees.save(home / "ILSVRC2012_val_00000002.png", trees.noise(5, 5, 3))
    with pytest.raises(DataError, match=r"_00000000\.png is 16x16 and .*_00000002\.png is 5x5"):
        open_source(images(str(root), split="fog/3"))
    trees.save(path, trees.noise(16, 16, 3))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"00000002\.png cannot be read as an image"):
        list(batches(open_source(images(str(root), split="fog/3")), size=6))
