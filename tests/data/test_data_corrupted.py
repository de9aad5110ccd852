"""Corrupted sets: what is there, which image belongs to which, and that pixels are those that were stored."""

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
from PIL import Image
from timm.data import ImageNetInfo

from holdfast.configs import BenchConfig
from holdfast.corruptions import table
from holdfast.data import conditions as rooms
from holdfast.data import listings
from holdfast.data.batches import batches, read_all
from holdfast.data.corrupted import KINDS, VARIANTS, check, conditions, kind_of, partner
from holdfast.data.sources import images, images_for, layouts, open_source, parse, splits
from holdfast.errors import DataError
from holdfast.records import Data

OFFICIAL = ImageNetInfo().label_names()
FIVE = (1, 2, 3, 4, 5)


class Expected(NamedTuple):
    """Of an encoder: sides that a stored image must not be brought to."""

    size: int = 20
    resize: int = 24
    interpolation: str = "bicubic"


def clean_imagenet(root: Path, count: int = 3, size: int = 16) -> Path:
    """The clean images of `trees.corrupted`: val/wnid/ILSVRC2012_val_00000001.JPEG."""
    for i, (wnid, _) in enumerate((wnid, k) for wnid in trees.WNIDS[:2] for k in range(count)):
        trees.save(root / "val" / wnid / f"ILSVRC2012_val_{i:08d}.JPEG", trees.noise(size, size, 3, seed=i))
    return root


def decoded(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


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
    root = clean_imagenet(tmp_path / "clean")
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
    clean_imagenet(tmp_path / "clean")
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


# -- partners in folders -----------------------------------------------------------------------------------------------


def test_every_image_gets_its_own_corrupted_version(tmp_path: Path) -> None:
    """By class and stem, in the order of the clean images, whatever the extension, grouping and subset."""
    root = trees.corrupted(tmp_path / "c", ["weather/fog"], FIVE, suffix=".png")
    clean = open_source(images(f"imagenet:{clean_imagenet(tmp_path / 'clean')}", limit=4, seed=3))
    assert clean.ids != sorted(clean.ids) or len(clean) == 4
    for severity in (1, 4):
        found = partner(clean, "imagenet_c", root, "fog", severity)
        assert (found.ids, found.labels, found.classes) == (clean.ids, clean.labels, clean.classes)
        assert found.data.digest_of_images == clean.data.digest_of_images
        assert (found.data.source, found.data.split, found.data.root) == ("imagenet_c", f"fog/{severity}", str(root))
        for i, name in enumerate(clean.ids):
            number = int(name[-13:-5])
            assert np.array_equal(found.read(i).pixels, trees.noise(16, 16, 3, seed=100 * (severity - 1) + number))
            assert found.read(i).truth == clean.read(i).truth


def test_partners_make_batches_in_any_order(tmp_path: Path) -> None:
    root = trees.corrupted(tmp_path / "c", ["fog"], (3,))
    clean = open_source(images(f"imagenet:{clean_imagenet(tmp_path / 'clean')}"))
    found = partner(clean, "imagenet_c", str(root), "fog", 3)
    (whole,) = batches(found, size=6, indices=[5, 0, 3])
    parts = list(batches(found, size=1, indices=[5, 0, 3], workers=2))
    assert all(np.array_equal(part.pixels[0], whole.pixels[i]) for i, part in enumerate(parts))
    (before,) = batches(clean, size=6, indices=[5, 0, 3])
    assert (whole.ids, whole.rows["key"].tolist()) == (before.ids, before.rows["key"].tolist())


def test_trees_of_other_folders(tmp_path: Path) -> None:
    """Split folders or none, sub-folders of classes, chosen classes, no labels: a path without its extension."""
    trees.folders(tmp_path / "a", {"train/cat": 1, "train/dog": 1, "test/cat": 2, "test/cat/indoors": 1, "test/dog": 1})
    trees.folders(tmp_path / "a-c/fog/2", {"cat": 2, "cat/indoors": 1, "dog": 1}, size=8)
    for classes in ("", "dog,cat"):
        clean = open_source(images(str(tmp_path / "a"), split="test", classes=classes))
        found = partner(clean, "imagenet_c", tmp_path / "a-c", "fog", 2)
        assert (found.labels, len(found)) == (clean.labels, 4)
        indoors = found.ids.index("test/cat/indoors/0000.png")
        assert np.array_equal(found.read(indoors).pixels, decoded(tmp_path / "a-c/fog/2/cat/indoors/0000.png"))
    trees.folders(tmp_path / "b", {"": 2, "more": 1})
    trees.folders(tmp_path / "b-c/fog/2", {"": 2, "more": 1})
    clean = open_source(images(f"flat:{tmp_path / 'b'}"))
    found = partner(clean, "imagenet_c", tmp_path / "b-c", "fog", 2)
    assert (found.labels, found.read(2).truth) == (None, {})
    assert np.array_equal(found.read(2).pixels, decoded(tmp_path / "b-c/fog/2/more/0000.png"))


def test_images_that_lie_in_other_folders_than_their_class(tmp_path: Path) -> None:
    home = trees.tiny_imagenet(tmp_path / "clean")
    clean = open_source(images(str(home)))
    for i, label in enumerate(clean.labels or ()):
        path = tmp_path / "c" / "fog" / "1" / trees.WNIDS[label] / f"val_{i}.png"
        trees.save(path, trees.noise(64, 64, 3, seed=i))
    found = partner(clean, "tiny_imagenet_c", tmp_path / "c", "fog", 1)
    assert all(np.array_equal(found.read(i).pixels, trees.noise(64, 64, 3, seed=i)) for i in range(3))
    official = trees.corrupted(tmp_path / "official", ["fog"], (1,), classes=trees.WNIDS, count=1, size=64)
    with pytest.raises(
        DataError, match=r"3 of 3 are missing, 0 are there\. The val images of tiny-imagenet-200 are not"
    ):
        partner(clean, "tiny_imagenet_c", official, "fog", 1)


def test_masks_are_those_of_the_clean_images(tmp_path: Path) -> None:
    clean = open_source(Data(source="scenes", limit=3))
    for i, name in enumerate(clean.ids):
        trees.save(tmp_path / "fog" / "1" / f"{name.removeprefix('test/')}.png", 255 - clean.read(i).pixels)
    found = partner(clean, "imagenet_c", tmp_path, "fog", 1)
    for i in range(3):
        assert np.array_equal(found.read(i).pixels, 255 - clean.read(i).pixels)
        assert found.read(i).truth.keys() == clean.read(i).truth.keys() > {"label"}
        assert np.array_equal(found.read(i).truth["mask"], clean.read(i).truth["mask"])


def test_the_200_classes_of_a_shifted_set_stay_known(tmp_path: Path) -> None:
    home = trees.shifted(tmp_path / "imagenet-r", "imagenet_r")
    clean = open_source(images(str(home), limit=2))
    for name in clean.ids:
        trees.save(tmp_path / "c" / "fog" / "1" / Path(name).with_suffix(".png"), trees.noise(8, 8, 3))
    assert partner(clean, "imagenet_c", tmp_path / "c", "fog", 1).within == clean.within != ()


def test_missing_partners_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    root = trees.corrupted(tmp_path / "c", ["fog"], (3,))
    clean = open_source(images(f"imagenet:{clean_imagenet(tmp_path / 'clean')}"))
    home = root / "fog" / "3"
    (home / trees.WNIDS[0] / "ILSVRC2012_val_00000001.JPEG").unlink()
    told = rf"fog/3 has no {trees.WNIDS[0]}/ILSVRC2012_val_00000001\.\* of val/.*: 1 of 6 are missing, 5 are there\."
    with pytest.raises(DataError, match=told):
        partner(clean, "imagenet_c", root, "fog", 3)
    shutil.rmtree(home / trees.WNIDS[1])
    with pytest.raises(DataError, match=r"4 of 6 are missing, 2 are there\. Unpack it again"):
        partner(clean, "imagenet_c", root, "fog", 3)
    shutil.rmtree(home / trees.WNIDS[0])
    with pytest.raises(DataError, match=r"6 of 6 are missing, 0 are there\. Give the set that was made of these"):
        partner(clean, "imagenet_c", root, "fog", 3)
    with pytest.raises(DataError, match="No condition fog/4"):
        partner(clean, "imagenet_c", root, "fog", 4)
    with pytest.raises(DataError, match="folder is no corrupted set"):
        partner(clean, "folder", root, "fog", 3)


def test_one_stem_for_two_files(tmp_path: Path) -> None:
    root = trees.corrupted(tmp_path / "c", ["fog"], (3,))
    home = clean_imagenet(tmp_path / "clean")
    stem = f"{trees.WNIDS[0]}/ILSVRC2012_val_00000001"
    path = trees.save(root / "fog" / "3" / f"{stem}.png", trees.noise(16, 16, 3))
    with pytest.raises(DataError, match=r"00000001\.JPEG and .*00000001\.png have one stem"):
        partner(open_source(images(f"imagenet:{home}")), "imagenet_c", root, "fog", 3)
    path.unlink()
    trees.save(home / "val" / f"{stem}.png", trees.noise(16, 16, 3))
    with pytest.raises(DataError, match=r"would belong to val/.*00000001\.JPEG and to val/.*00000001\.png"):
        partner(open_source(images(f"imagenet:{home}")), "imagenet_c", root, "fog", 3)


def test_another_geometry_is_refused_and_never_mended(tmp_path: Path) -> None:
    """Resize and crop of images that were cropped before would compare other parts of the picture."""
    root = trees.corrupted(tmp_path / "c", ["fog"], (3,), size=16)
    home = clean_imagenet(tmp_path / "clean", size=20)
    clean = open_source(images(f"imagenet:{home}"))
    told = r"00000000\.JPEG is 16x16 pixels; the clean images are 20x20\. Read the clean images .*--size 16"
    with pytest.raises(DataError, match=told):
        partner(clean, "imagenet_c", root, "fog", 3)
    cropped = open_source(images(f"imagenet:{home}", size=16))
    assert np.array_equal(
        partner(cropped, "imagenet_c", root, "fog", 3).read(0).pixels,
        decoded(root / "fog" / "3" / trees.WNIDS[0] / "ILSVRC2012_val_00000000.JPEG"),
    )


def test_imagenet_c_says_how_it_was_cut(tmp_path: Path) -> None:
    root = trees.corrupted(tmp_path / "c", ["fog"], (3,), size=224, count=1)
    clean = open_source(images(f"imagenet:{clean_imagenet(tmp_path / 'clean', count=1, size=260)}", size=256))
    with pytest.raises(DataError, match=r"is 224x224 pixels; .* are 256x256\..*--resize 256 --size 224, as ImageNet-C"):
        partner(clean, "imagenet_c", root, "fog", 3)


def test_stored_images_are_resized_where_that_is_asked_for(tmp_path: Path) -> None:
    root = trees.corrupted(tmp_path / "c", ["fog"], (3,), size=16)
    clean = open_source(images(f"imagenet:{clean_imagenet(tmp_path / 'clean', size=24)}", interpolation="bicubic"))
    found = partner(clean, "imagenet_c", root, "fog", 3, size=24)
    stored = root / "fog" / "3" / trees.WNIDS[0] / "ILSVRC2012_val_00000000.JPEG"
    with Image.open(stored) as image:
        expected = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(found.read(0).pixels, expected)
    assert (found.data.resize, found.data.size) == (24, 0)
    with pytest.raises(DataError, match=r"is 16x16 pixels, 32x32 when resized; the clean images are 24x24"):
        partner(clean, "imagenet_c", root, "fog", 3, size=32)


@pytest.mark.parametrize("checked", [True, False])
def test_one_image_of_another_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool) -> None:
    root = trees.corrupted(tmp_path / "c", ["fog"], (3,), size=16)
    trees.save(root / "fog" / "3" / trees.WNIDS[1] / "ILSVRC2012_val_00000004.JPEG", trees.noise(5, 5, 3))
    clean = open_source(images(f"imagenet:{clean_imagenet(tmp_path / 'clean')}"))
    if checked:
        with pytest.raises(DataError, match=r"00000004\.JPEG is 5x5 pixels"):
            partner(clean, "imagenet_c", root, "fog", 3)
        return
    monkeypatch.setattr(listings, "CHECKED_FILES", 3)
    found = partner(clean, "imagenet_c", root, "fog", 3)
    with pytest.raises(DataError, match=r"00000004\.JPEG is 5x5 pixels"):
        list(batches(found, size=2))


# -- partners in arrays ------------------------------------------------------------------------------------------------


def _cifar(tmp_path: Path, n: int = 4) -> tuple[np.ndarray, Path]:
    """A clean CIFAR-10 test batch and a CIFAR-10-C of its images; returns fog [5, n, 32, 32, 3] and the folder."""
    _, labels = trees.cifar10(tmp_path / "clean", n)
    arrays, _ = trees.cifar_c(tmp_path / "c", n=n)
    np.save(tmp_path / "c" / "labels.npy", np.tile(labels, 5))
    return arrays["fog"].reshape(5, n, 32, 32, 3), tmp_path / "c"


@pytest.mark.parametrize("chosen", [{}, {"limit": 3, "seed": 1}, {"classes": "horse,ship,frog"}])
def test_the_number_in_the_name_is_the_row(tmp_path: Path, chosen: dict[str, object]) -> None:
    fog, root = _cifar(tmp_path)
    clean = open_source(images(f"cifar10:{tmp_path / 'clean'}", **chosen))  # type: ignore[arg-type]
    found = partner(clean, "cifar10_c", root, "fog", 2)
    assert len(found) >= 3
    for i, name in enumerate(clean.ids):
        assert np.array_equal(found.read(i).pixels, fog[1, int(name[-5:])])
        assert found.read(i).truth == {"label": (clean.labels or [])[i]}


def test_folders_of_cifar_may_be_numbered_too(tmp_path: Path) -> None:
    fog, root = _cifar(tmp_path)
    labels = np.load(root / "labels.npy")
    for i in range(4):
        name = trees.CIFAR10[labels[i]]
        trees.save(tmp_path / "files" / "test" / name / f"{name}-{i:05d}.png", trees.noise(32, 32, 3, seed=i))
    clean = open_source(images(str(tmp_path / "files"), split="test"))
    found = partner(clean, "cifar10_c", root, "fog", 5)
    for i, name in enumerate(clean.ids):
        assert np.array_equal(found.read(i).pixels, fog[4, int(name[-9:-4])])


def test_a_copy_of_a_subset_names_its_rows(tmp_path: Path) -> None:
    fog, root = _cifar(tmp_path)
    clean = open_source(images(f"cifar10:{tmp_path / 'clean'}"))
    (root / "ids.txt").write_text("".join(f"{name}\n" for name in reversed(clean.ids)))
    np.save(root / "labels.npy", np.tile(list(reversed(clean.labels or [])), 5))
    found = partner(clean, "cifar10_c", root, "fog", 3)
    assert np.array_equal(found.read(0).pixels, fog[2, 3])
    (root / "ids.txt").write_text("test/00009\n" * 4)
    with pytest.raises(DataError, match=r"none for test/00000: 4 of 4 are missing"):
        partner(clean, "cifar10_c", root, "fog", 3)


def test_rows_of_another_split_order_or_set_are_refused(tmp_path: Path) -> None:
    _, root = _cifar(tmp_path)
    train = open_source(images(f"cifar10:{tmp_path / 'clean'}", split="train"))
    told = r"fog\.npy holds 4 images per severity, and none for train/00004: 16 of 20 are missing.*of the split"
    with pytest.raises(DataError, match=told):
        partner(train, "cifar10_c", root, "fog", 1)
    few = open_source(images(f"cifar10:{tmp_path / 'clean'}", split="train", limit=3, subset="first"))
    with pytest.raises(DataError, match=r"train/00000 is of class airplane; row 0 of .*fog\.npy is of dog"):
        partner(few, "cifar10_c", root, "fog", 1)
    trees.folders(tmp_path / "two", {"cat": 2, "dog": 2}, size=32)
    with pytest.raises(DataError, match=r"do not number the rows of .*fog\.npy.*ids\.txt"):
        partner(open_source(images(str(tmp_path / "two"))), "cifar10_c", root, "fog", 1)


def test_arrays_of_other_images_have_partners_too(tmp_path: Path) -> None:
    _, labels = trees.stl10(tmp_path / "clean")
    stored = trees.noise(15, 96, 96, 3)
    (tmp_path / "c").mkdir()
    np.save(tmp_path / "c" / "fog.npy", stored)
    unlabelled = open_source(images(f"stl10:{tmp_path / 'clean'}", split="unlabeled"))
    assert np.array_equal(partner(unlabelled, "cifar10_c", tmp_path / "c", "fog", 2).read(1).pixels, stored[4])
    labelled = open_source(images(f"stl10:{tmp_path / 'clean'}", split="test"))
    with pytest.raises(DataError, match=r"No file .*labels\.npy"):
        partner(labelled, "cifar10_c", tmp_path / "c", "fog", 2)
    np.save(tmp_path / "c" / "labels.npy", labels)
    assert np.array_equal(partner(labelled, "cifar10_c", tmp_path / "c", "fog", 5).read(0).pixels, stored[12])
    small = open_source(images(f"stl10:{tmp_path / 'clean'}", split="test", size=32))
    with pytest.raises(DataError, match=r"fog\.npy \(row 0 of severity 5\) is 96x96 pixels; .* are 32x32"):
        partner(small, "cifar10_c", tmp_path / "c", "fog", 5)


def test_a_partner_of_ten_thousand_rows_reads_one(tmp_path: Path) -> None:
    _cifar(tmp_path)
    shape = (50_000, 32, 32, 3)
    for name in ("fog", "snow"):
        np.lib.format.open_memmap(tmp_path / "c" / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape).flush()
    np.save(tmp_path / "c" / "labels.npy", np.resize(np.load(tmp_path / "c" / "labels.npy")[:4], 10_000))
    clean = open_source(images(f"cifar10:{tmp_path / 'clean'}"))
    tracemalloc.start()
    partner(clean, "cifar10_c", tmp_path / "c", "fog", 5).read(3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
