"""Batches: exact pixels, the order of the indices, one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from holdfast import draws
from holdfast.data.batches import Image, Source, batches, fingerprint, read_all, require_labels, to_pixels
from holdfast.errors import DataError
from holdfast.records import Data


class Memory(Source):
    """Image i is filled with the byte i; every truth that a source may have."""

    def __init__(self, n: int, *, labels: bool = True, sizes: Sequence[int] = ()) -> None:
        self.data = Data(source="memory", root="nowhere")
        self.ids = [f"test/{i:05d}" for i in range(n)]
        self.labels = [i % 3 for i in range(n)] if labels else None
        self.classes = ("a", "b", "c") if labels else ()
        self.sizes = sizes or [4] * n

    def read(self, i: int) -> Image:
        side = self.sizes[i]
        truth: dict[str, np.ndarray | int] = {
            "mask": np.full((side, side), 255 - i, dtype=np.uint8),
            "depth": np.full((side, side), i / 2, dtype=np.float64),
        }
        if self.labels is not None:
            truth["label"] = self.labels[i]
        pixels = np.full((side, side, 3), i, dtype=np.uint8)
        pixels[0, -1] = (10, 20, 30)
        return Image(pixels, truth)


def test_every_byte_divided_by_255_and_rounded_once() -> None:
    exact = torch.tensor([k / 255 for k in range(256)], dtype=torch.float64).to(torch.float32)
    assert torch.equal(to_pixels(torch.arange(256, dtype=torch.uint8)), exact)


def test_a_batch_has_pixels_rows_and_ids() -> None:
    (batch,) = batches(Memory(3), size=8)
    assert batch.pixels.shape == (3, 3, 4, 4)
    assert batch.pixels.dtype == torch.float32
    assert batch.pixels.is_contiguous()
    assert torch.equal(batch.pixels[2, :, 0, 3] * 255, torch.tensor([10.0, 20.0, 30.0]))
    assert torch.equal(batch.pixels[2, :, 3, 0] * 255, torch.tensor([2.0, 2.0, 2.0]))
    assert {name: row.dtype for name, row in batch.rows.items()} == {
        "key": torch.int64,
        "label": torch.int64,
        "mask": torch.int64,
        "depth": torch.float32,
    }
    assert torch.equal(batch.rows["key"], draws.keys(batch.ids))
    assert batch.rows["label"].tolist() == [0, 1, 2]
    assert batch.rows["mask"][:, 0, 0].tolist() == [255, 254, 253]
    assert batch.rows["depth"][:, 1, 1].tolist() == [0.0, 0.5, 1.0]


def test_a_source_without_labels_gives_no_label_row() -> None:
    (batch,) = batches(Memory(2, labels=False), size=2)
    assert "label" not in batch.rows
    assert read_all(Memory(2, labels=False))[1] is None


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_order_is_the_order_of_the_indices(size: int, workers: int) -> None:
    order = [7, 0, 3, 3, 9, 1, 2]
    made = list(batches(Memory(10), size=size, indices=order, workers=workers))
    assert [len(batch.ids) for batch in made] == [size] * (7 // size) + ([7 % size] if 7 % size else [])
    assert torch.cat([batch.pixels[:, 0, 3, 0] * 255 for batch in made]).tolist() == order
    assert [i for batch in made for i in batch.ids] == [f"test/{i:05d}" for i in order]
    assert torch.cat([batch.rows["label"] for batch in made]).tolist() == [i % 3 for i in order]


def test_no_indices_no_batch() -> None:
    assert list(batches(Memory(3), size=2, indices=[])) == []


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(batches(Memory(3), size=0))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_other_sizes_are_named_whatever_the_batch(size: int, workers: int) -> None:
    source = Memory(4, sizes=[4, 4, 6, 4])
    with pytest.raises(DataError, match=r"test/00000 is 4x4 and test/00002 is 6x6 pixels.*--size"):
        list(batches(source, size=size, workers=workers))
    with pytest.raises(DataError, match=r"test/00002 is 6x6.*--size"):
        read_all(source, workers=workers)


def test_a_generator_that_is_left_early_leaves_no_thread() -> None:
    import threading

    before = threading.active_count()
    stream = batches(Memory(50), size=2, workers=2)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_read_all_is_the_batches_before_division() -> None:
    source = Memory(300)
    source.read = lambda i: Image(np.full((2, 2, 3), i % 256, np.uint8), {})  # type: ignore[method-assign]
    order = list(range(299, -1, -1))
    pixels, labels = read_all(source, order, workers=2)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (300, 3, 2, 2)
    assert pixels[:, 2, 1, 1].tolist() == [i % 256 for i in order]
    assert labels is not None
    assert labels.tolist() == [i % 3 for i in order]


def test_read_all_of_nothing() -> None:
    with pytest.raises(DataError, match="No image"):
        read_all(Memory(3), [])


def test_fingerprint_by_hand_and_its_sensitivity() -> None:
    import hashlib

    assert fingerprint(["a", "b"], [1, 0]) == hashlib.sha256(b"a\x001\nb\x000\n").hexdigest()
    assert fingerprint(["a", "b"], None) == hashlib.sha256(b"a\x00-\nb\x00-\n").hexdigest()
    assert len({fingerprint(i, y) for i in (["a", "b"], ["b", "a"]) for y in ([0, 1], [1, 0], None)}) == 6


def test_labels_are_required_in_words() -> None:
    assert require_labels(Memory(3)) == [0, 1, 2]
    with pytest.raises(
        DataError, match=r"nowhere holds 5,000 images and no class folders\. Embedding attacks need none"
    ):
        require_labels(Memory(5000, labels=False))
