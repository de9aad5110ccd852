"""Every source, drawn or stored, keeps the same promises; a new one is enrolled by one line in `data_trees.TREES`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from holdfast import draws
from holdfast.data.batches import Source, batches, fingerprint, read_all
from holdfast.data.sources import images, layouts, open_source
from holdfast.records import Data

sys.path.append(str(Path(__file__).parents[1] / "data"))

import data_trees as trees


@pytest.fixture(scope="module", params=sorted(layouts()))
def record(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    if request.param == "scenes":
        yield Data(source="scenes", limit=9)
        return
    root = tmp_path_factory.mktemp(request.param)
    write, split = trees.TREES[request.param]
    write(root)
    yield images(f"{request.param}:{root}", split=split)


@pytest.fixture(scope="module")
def source(record: Data) -> Source:
    return open_source(record)


def test_it_has_images_ids_and_labels_that_fit(source: Source) -> None:
    assert len(source) == len(source.ids) == len(set(source.ids)) > 2
    if source.labels is None:
        assert source.classes == ()
    else:
        assert len(source.labels) == len(source)
        assert set(source.labels) <= set(range(len(source.classes)))
        assert len(set(source.classes)) == len(source.classes)


def test_it_reads_bytes_in_height_width_channel(source: Source) -> None:
    for i in range(len(source)):
        image = source.read(i)
        assert image.pixels.dtype == np.uint8
        assert image.pixels.ndim == 3
        assert image.pixels.shape[2] == 3
        if source.labels is not None and "label" in image.truth:
            assert image.truth["label"] == source.labels[i]


def test_it_reads_the_same_again_and_gives_it_away(record: Data, source: Source) -> None:
    again = open_source(record)
    assert again.ids == source.ids
    for i in (0, len(source) - 1, 0):
        first = source.read(i).pixels
        kept = first.copy()
        assert np.array_equal(kept, again.read(i).pixels)
        first[:] = 255 - first
        assert np.array_equal(kept, source.read(i).pixels)


def test_the_digest_is_of_ids_and_labels(source: Source) -> None:
    digest = source.data.digest_of_images
    assert digest == fingerprint(source.ids, source.labels)
    assert msgspec.structs.replace(source.data, digest_of_images="") != source.data
    other = None if source.labels is None else [*source.labels[:-1], source.labels[-1] + 1]
    assert fingerprint(source.ids, [0] * len(source) if other is None else other) != digest


def test_batches_do_not_depend_on_size_and_workers(source: Source) -> None:
    order = draws.permutation(len(source), "order").tolist()
    whole = next(batches(source, size=len(source), indices=order))
    assert whole.pixels.dtype == torch.float32
    assert 0 <= float(whole.pixels.min()) <= float(whole.pixels.max()) <= 1
    for size, workers in ((1, 0), (2, 2), (3, 0), (len(source), 3)):
        parts = list(batches(source, size=size, indices=order, workers=workers))
        assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
        assert [name for part in parts for name in part.ids] == whole.ids == [source.ids[i] for i in order]
        for name, row in whole.rows.items():
            assert torch.equal(torch.cat([part.rows[name] for part in parts]), row), name


def test_read_all_is_the_batches(source: Source) -> None:
    pixels, labels = read_all(source)
    (batch,) = batches(source, size=len(source))
    assert torch.equal(pixels, (batch.pixels * 255).round().to(torch.uint8))
    assert labels is None if source.labels is None else torch.equal(labels, batch.rows["label"])  # type: ignore[arg-type]


def test_smaller_subsets_lie_in_larger_ones(record: Data, source: Source) -> None:
    chosen = [set(open_source(msgspec.structs.replace(record, limit=n)).ids) for n in range(1, len(source) + 1)]
    assert [len(ids) for ids in chosen] == list(range(1, len(source) + 1))
    assert all(small < large for small, large in itertools.pairwise(chosen))


def test_the_first_and_the_seed_choose(record: Data, source: Source) -> None:
    if record.source == "scenes":
        pytest.skip("scenes are drawn by the seed, not chosen")
    first = open_source(msgspec.structs.replace(record, limit=2, subset="first"))
    assert first.ids == source.ids[:2]
    drawn = {tuple(open_source(msgspec.structs.replace(record, limit=2, seed=seed)).ids) for seed in range(8)}
    assert len(drawn) > 1


def test_labels_stay_with_their_images_in_a_subset(record: Data, source: Source) -> None:
    subset = open_source(msgspec.structs.replace(record, limit=2))
    for i, name in enumerate(subset.ids):
        full = source.ids.index(name)
        assert np.array_equal(subset.read(i).pixels, source.read(full).pixels)
        if subset.labels is not None and source.labels is not None:
            assert subset.labels[i] == source.labels[full]


def test_resize_and_crop_give_one_size(record: Data) -> None:
    if record.source == "scenes":
        pytest.skip("scenes are drawn in their size")
    small = open_source(msgspec.structs.replace(record, resize=7, size=5))
    (batch,) = batches(small, size=len(small))
    assert batch.pixels.shape[1:] == (3, 5, 5)
