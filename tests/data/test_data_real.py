"""Real images, where they are: the batches and the folders of the same CIFAR-10 images, photographs of ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from holdfast.data.batches import read_all
from holdfast.data.sources import images, open_source

Real = Callable[[str], Path]


def test_cifar10_batches_and_folders_hold_the_same_images(real: Real) -> None:
    stored = open_source(images(str(real("cifar10_lossless")), split="test"))
    files = open_source(images(str(real("cifar10_folders")), split="test"))
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


def test_one_photograph_per_class_of_imagenet(real: Real) -> None:
    source = open_source(images(f"imagenet:{real('imagenet_1000')}", resize=256, size=224))
    assert (source.data.split, len(source)) == ("val", 1000)
    assert source.labels == list(range(1000))
    pixels, _ = read_all(source, range(0, 1000, 100), workers=2)
    assert pixels.shape == (10, 3, 224, 224)
