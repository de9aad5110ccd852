"""Official layouts: what was written is what is read, whatever wrote it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import STL10, Flowers102, Food101

from holdfast.data import matlab
from holdfast.data.batches import read_all
from holdfast.data.sources import images, open_source
from holdfast.errors import DataError


def _arrays(text: str, split: str = "test") -> tuple[np.ndarray, list[int]]:
    pixels, labels = read_all(open_source(images(text, split=split)))
    assert labels is not None
    return pixels.permute(0, 2, 3, 1).numpy(), labels.tolist()


@pytest.mark.parametrize("own_folder", [False, True])
def test_cifar10_test_batch(tmp_path: Path, own_folder: bool) -> None:
    pixels, labels = trees.cifar10(tmp_path)
    root = tmp_path / "cifar-10-batches-py" if own_folder else tmp_path
    read, truth = _arrays(str(root))
    assert np.array_equal(read, pixels)
    assert truth == labels.tolist()


def test_cifar10_train_is_five_batches_in_order(tmp_path: Path) -> None:
    trees.cifar10(tmp_path, per_batch=4)
    source = open_source(images(f"cifar10:{tmp_path}", split="train"))
    assert source.ids == [f"train/{i:05d}" for i in range(20)]
    assert source.labels == [(batch + i) % 10 for batch in range(5) for i in range(4)]
    assert source.classes == tuple(trees.CIFAR10)
    assert np.array_equal(source.read(13).pixels, trees.noise(4, 32, 32, 3, seed=3)[1])


def test_cifar100_as_python_2_pickled_it(tmp_path: Path) -> None:
    pixels, labels = trees.cifar100(tmp_path)
    read, truth = _arrays(f"cifar100:{tmp_path}")
    assert np.array_equal(read, pixels)
    assert truth == labels.tolist()


def test_a_pickle_with_code_is_not_opened(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    trees.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({"data": Code(), "labels": []}))
    with pytest.raises(DataError, match=r"test_batch is not a CIFAR file: it contains code \(pathlib"):
        open_source(images(str(tmp_path)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"<html>", b"", pickle.dumps([1, 2]), pickle.dumps({"data": np.zeros((1, 3072), np.uint8)})]
)
def test_a_file_that_is_no_batch_is_named(tmp_path: Path, content: bytes) -> None:
    trees.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch is not a CIFAR file"):
        open_source(images(str(tmp_path)))


def test_more_labels_than_images(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1, 2]}
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match="2 images, 3 labels"):
        open_source(images(str(tmp_path)))


def test_a_label_without_a_class(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match="labels up to 10, 10 classes"):
        open_source(images(str(tmp_path)))


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_grey_in_three_channels(tmp_path: Path, name: str, zipped: bool) -> None:
    pixels, labels = trees.mnist(tmp_path, name, zipped=zipped)
    read, truth = _arrays(str(tmp_path))
    assert np.array_equal(read, np.repeat(pixels[..., None], 3, axis=3))
    assert truth == labels.tolist()


def test_mnist_cut_short(tmp_path: Path) -> None:
    trees.mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=re.escape(str(path))):
        open_source(images(str(tmp_path)))


def test_mnist_without_labels(tmp_path: Path) -> None:
    trees.mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"No file .*t10k-labels-idx1-ubyte"):
        open_source(images(str(tmp_path)))


def test_stl10_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = trees.stl10(tmp_path)
    read, truth = _arrays(str(tmp_path))
    assert np.array_equal(read, pixels)
    assert truth == labels.tolist()
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    peer = STL10(str(tmp_path), split="test")
    assert np.array_equal(read, np.stack([np.asarray(image) for image, _ in peer]))
    assert truth == [label for _, label in peer]


def test_stl10_unlabeled(tmp_path: Path) -> None:
    trees.stl10(tmp_path)
    source = open_source(images(str(tmp_path), split="unlabeled"))
    assert source.labels is None
    assert source.classes == ()
    assert np.array_equal(source.read(2).pixels, trees.noise(3, 96, 96, 3, seed=0)[2])


@pytest.mark.parametrize("compressed", [False, True])
def test_flowers102_is_read_as_torchvision_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    labels = trees.flowers102(tmp_path, compressed=compressed)
    source = open_source(images(str(tmp_path), split="test"))
    assert source.labels == labels
    assert source.ids == [f"jpg/image_{n:05d}.jpg" for n in (3, 1, 2)]
    assert len(source.classes) == 102
    assert source.classes[76] == "passion flower"
    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    peer = Flowers102(tmp_path, split="test")
    assert [label for _, label in peer] == source.labels
    assert all(np.array_equal(np.asarray(image), source.read(i).pixels) for i, (image, _) in enumerate(peer))


def test_matlab_against_scipy_values(tmp_path: Path) -> None:
    values = {
        "whole": np.arange(6, dtype=np.uint16).reshape(2, 3),
        "tiny": np.array([[7]], dtype=np.uint8),
        "real": np.array([[0.5], [-1e300]]),
        "cube": np.arange(24, dtype=np.int32).reshape(2, 3, 4),
    }
    savemat(tmp_path / "x.mat", {**values, "text": "passed over"}, do_compression=True)
    read = matlab.read(tmp_path / "x.mat")
    assert set(read) == set(values)
    for name, value in values.items():
        assert np.array_equal(read[name], value), name


@pytest.mark.parametrize("content", [b"", b"<html>" * 50])
def test_matlab_of_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.mat cannot be read"):
        matlab.read(tmp_path / "x.mat")


def test_matlab_cut_short(tmp_path: Path) -> None:
    savemat(tmp_path / "x.mat", {"a": np.arange(1000.0)}, do_compression=True)
    path = tmp_path / "x.mat"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"x\.mat cannot be read"):
        matlab.read(path)


def test_food101_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    ids = trees.food101(tmp_path)
    source = open_source(images(str(tmp_path), split="test"))
    assert source.ids == ids
    assert source.classes == ("apple_pie", "waffles")
    peer = Food101(tmp_path, split="test")
    theirs = sorted((label, np.asarray(image).tobytes()) for image, label in peer)
    assert theirs == [(source.labels[i], source.read(i).pixels.tobytes()) for i in range(2)]  # type: ignore[index]


def test_food101_lists_an_image_that_is_not_there(tmp_path: Path) -> None:
    ids = trees.food101(tmp_path)
    (tmp_path / "food-101" / ids[1]).unlink()
    with pytest.raises(DataError, match=re.escape(ids[1])):
        open_source(images(str(tmp_path)))


def test_official_splits_are_listed_with_counts(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    with pytest.raises(DataError, match=r"train \(10 classes, 20 images\), test \(10 classes, 4 images\)"):
        open_source(images(str(tmp_path), split="val"))


def test_grey_jpeg_and_colour_jpeg_give_the_same_shape(tmp_path: Path) -> None:
    trees.food101(tmp_path)
    file = tmp_path / "food-101" / "images" / "waffles" / "1000.jpg"
    Image.new("L", (16, 16), 77).save(file)
    pixels, _ = read_all(open_source(images(str(tmp_path), split="train")))
    assert pixels.shape == (4, 3, 16, 16)
    assert torch.equal(pixels[2], torch.full((3, 16, 16), 77, dtype=torch.uint8))
