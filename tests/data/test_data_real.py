"""Real images, where they are: the batches and the folders of the same CIFAR-10 images, photographs of ImageNet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from holdfast.data.batches import read_all
from holdfast.data.sources import images, open_source

DATA = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not (DATA / "unpack.py").is_file(), reason=f"no real data in {DATA} (HOLDFAST_DATA)")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    names = ["cifar10_lossless", "cifar10_folders", "imagenet_1000"]
    subprocess.run([sys.executable, str(DATA / "unpack.py"), str(root), *names], check=True, capture_output=True)
    return root


def test_cifar10_batches_and_folders_hold_the_same_images(unpacked: Path) -> None:
    stored = open_source(images(str(unpacked / "cifar10_lossless"), split="test"))
    files = open_source(images(str(unpacked / "cifar10_folders"), split="test"))
    assert (stored.data.source, files.data.source) == ("cifar10", "folder")
    assert stored.classes == files.classes
    assert len(stored) == len(files) == 1017
    by_number = {name[-9:-4]: i for i, name in enumerate(files.ids)}
    order = [by_number[name[-5:]] for name in stored.ids]
    pixels, labels = read_all(stored)
    others, truth = read_all(files, order)
    assert torch.equal(pixels, others)
    assert labels is not None
    assert truth is not None
    assert torch.equal(labels, truth)
    assert labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]


def test_one_photograph_per_class_of_imagenet(unpacked: Path) -> None:
    source = open_source(images(f"imagenet:{unpacked / 'imagenet_1000'}", resize=256, size=224))
    assert (source.data.split, len(source)) == ("val", 1000)
    assert source.labels == list(range(1000))
    pixels, _ = read_all(source, range(0, 1000, 100), workers=2)
    assert pixels.shape == (10, 3, 224, 224)
