"""The corrupted version of every clean image: found by name or row, read as stored, and refused where it is not it."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
from PIL import Image

from holdfast.data import listings
from holdfast.data.batches import batches
from holdfast.data.corrupted import partner
from holdfast.data.sources import images, open_source
from holdfast.errors import DataError
from holdfast.records import Data


def decoded(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# -- partners in folders -----------------------------------------------------------------------------------------------


def test_every_image_gets_its_own_corrupted_version(tmp_path: Path) -> None:
    """By class and stem, in the order of the clean images, whatever the extension, grouping and subset."""
    root = trees.corrupted(tmp_path / "c", ["weather/fog"], (1, 2, 3, 4, 5), suffix=".png")
    clean = open_source(images(f"imagenet:{trees.clean_imagenet(tmp_path / 'clean')}", limit=4, seed=3))
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
    clean = open_source(images(f"imagenet:{trees.clean_imagenet(tmp_path / 'clean')}"))
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
    clean = open_source(images(f"imagenet:{trees.clean_imagenet(tmp_path / 'clean')}"))
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
    home = trees.clean_imagenet(tmp_path / "clean")
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
    home = trees.clean_imagenet(tmp_path / "clean", size=20)
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
    clean = open_source(images(f"imagenet:{trees.clean_imagenet(tmp_path / 'clean', count=1, size=260)}", size=256))
    with pytest.raises(DataError, match=r"is 224x224 pixels; .* are 256x256\..*--resize 256 --size 224, as ImageNet-C"):
        partner(clean, "imagenet_c", root, "fog", 3)


def test_stored_images_are_resized_where_that_is_asked_for(tmp_path: Path) -> None:
    root = trees.corrupted(tmp_path / "c", ["fog"], (3,), size=16)
    clean = open_source(
        images(f"imagenet:{trees.clean_imagenet(tmp_path / 'clean', size=24)}", interpolation="bicubic")
    )
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
    clean = open_source(images(f"imagenet:{trees.clean_imagenet(tmp_path / 'clean')}"))
    if checked:
        with pytest.raises(DataError, match=r"00000004\.JPEG is 5x5 pixels; the clean images are 16x16"):
            partner(clean, "imagenet_c", root, "fog", 3)
        return
    monkeypatch.setattr(listings, "CHECKED_FILES", 3)
    found = partner(clean, "imagenet_c", root, "fog", 3)
    with pytest.raises(DataError, match=r"00000004\.JPEG is 5x5 pixels; the clean images are 16x16"):
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
    with pytest.raises(DataError, match=r"no ids\.txt, and the images have no labels"):
        partner(unlabelled, "cifar10_c", tmp_path / "c", "fog", 2)
    (tmp_path / "c" / "ids.txt").write_text("".join(f"{name}\n" for name in unlabelled.ids))
    assert np.array_equal(partner(unlabelled, "cifar10_c", tmp_path / "c", "fog", 2).read(1).pixels, stored[4])
    (tmp_path / "c" / "ids.txt").unlink()
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
