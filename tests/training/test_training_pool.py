"""The images of a run: the same from memory and from files, and a held-out part that is never trained on."""

import os

import pytest
import torch

from holdfast.data.batches import batches
from holdfast.data.sources import images, open_source
from holdfast.training.pool import Pool

CPU = torch.device("cpu")


def _source(limit):
    return open_source(images("scenes", split="train", size=16, limit=limit))


def test_pixels_are_those_of_the_source_in_the_order_asked_for():
    source, numbers = _source(50), torch.tensor([7, 3, 3, 49])
    pool = Pool(source, seed=0, device=CPU)
    expected = next(batches(source, size=4, indices=numbers.tolist()))
    assert pool.kept == "memory" and pool.size == (16, 16)
    assert torch.equal(pool.pixels(numbers), expected.pixels)
    assert torch.equal(pool.keys[numbers], expected.rows["key"])


def test_images_that_do_not_fit_are_read_again_and_are_the_same(monkeypatch):
    source, numbers = _source(50), torch.tensor([7, 3, 49])
    kept = Pool(source, seed=0, device=CPU).pixels(numbers)
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    pool = Pool(source, seed=0, device=CPU)
    assert pool.kept == "files"
    assert torch.equal(pool.pixels(numbers), kept)


@pytest.mark.parametrize(("limit", "held"), [(50, 5), (39, 0), (200, 20)])
def test_a_tenth_is_held_out_where_there_are_enough(limit, held):
    pool = Pool(_source(limit), seed=0, device=CPU)
    assert len(pool.held) == held
    assert sorted([*pool.train.tolist(), *pool.held.tolist()]) == list(range(limit))


def test_the_held_part_is_drawn_by_the_seed():
    source = _source(100)
    first, again, other = (Pool(source, seed=seed, device=CPU).held.tolist() for seed in (0, 0, 1))
    assert first == again != other
