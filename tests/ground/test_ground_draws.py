"""Keyed draws: they depend on their key alone, they are what they say, and they leave the global generators alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast import draws

IDS = [f"image/{i}" for i in range(300)]


def test_keys_are_what_they_were() -> None:
    """Yesterday's random starts must come again."""
    assert draws.key(0, "pgd", "a") == 8528976884891444042
    assert draws.uniform(draws.keys(["a"]), (3,), 0)[0].tolist() == pytest.approx([0.5860013, 0.1911674, 0.3224893])


def test_parts_do_not_run_together() -> None:
    assert len({draws.key("ab", "c"), draws.key("a", "bc"), draws.key("abc"), draws.key(1), draws.key("1")}) == 5
    assert all(0 <= draws.key(i) < 2**63 for i in range(100))


@pytest.mark.parametrize("draw", [draws.uniform, draws.normal])
def test_a_row_depends_on_its_key_alone(draw) -> None:  # type: ignore[no-untyped-def]
    rows = draws.keys(IDS)
    whole = draw(rows, (2, 3), "purpose", 7)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(rows[order], (2, 3), "purpose", 7), whole[order])
    assert torch.equal(draw(rows[5:6], (2, 3), "purpose", 7), whole[5:6])
    assert not torch.equal(draw(rows, (2, 3), "purpose", 8), whole)
    assert draw(rows[:0], (2, 3), "purpose").shape == (0, 2, 3)


def test_distributions() -> None:
    rows = draws.keys(IDS)
    uniform, normal = draws.uniform(rows, (200,), "u"), draws.normal(rows, (200,), "n")
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.006)
    assert 0 <= float(uniform.min()) <= float(uniform.max()) < 1
    assert float(normal.mean()) == pytest.approx(0, abs=0.02) and float(normal.std()) == pytest.approx(1, abs=0.02)
    # First numbers of neighbouring generators must not be related.
    assert abs(float(np.corrcoef(uniform[:-1, 0], uniform[1:, 0])[0, 1])) < 0.2
    counts = torch.bincount(draws.integers(rows, 3, "i"), minlength=3)
    assert int(counts.min()) > 70 and len(counts) == 3


def test_subsets_are_nested_and_seeded() -> None:
    small, large = draws.subset(100, 10, 0), draws.subset(100, 30, 0)
    assert set(small) < set(large) and small == sorted(small) and len(small) == 10
    assert draws.subset(100, 10, 1) != small
    assert draws.subset(5, 10, 0) == draws.subset(5, 0, 0) == [0, 1, 2, 3, 4]


def test_global_generators_are_left_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    draws.uniform(draws.keys(IDS[:3]), (4,), 0)
    draws.permutation(10, 0)
    draws.numpy_generator(0).random(4)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def split_mix(state: int) -> int:
    """The finaliser of SplitMix64 in Python's own integers."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_words_are_split_mix() -> None:
    """The published generator seeded with 1234567 gives these two numbers first; `words` nests it, modulo 2^64."""
    golden = 0x9E3779B97F4A7C15
    assert split_mix(1234567 + golden) == 6457827717110365317
    assert split_mix(1234567 + 2 * golden) == 3203168211198807973
    streams, steps = draws.streams(draws.keys(IDS[:40]), "square", 0), torch.arange(40) * 123
    expected = [
        [split_mix(split_mix(int(s) + (int(t) + 1) * golden) + (lane + 1) * golden) >> 33 for lane in range(5)]
        for s, t in zip(streams, steps, strict=True)
    ]
    assert draws.words(streams, steps, 5).tolist() == expected
    assert draws.words(torch.tensor([1]), torch.tensor([0]), 2).tolist() == [[790680964, 2026288756]]
    assert draws.streams(draws.keys(["a"]), 0).tolist() == [draws.key(0, draws.key("a"))]


def test_words_depend_on_stream_step_and_lane_alone() -> None:
    streams, steps = draws.streams(draws.keys(IDS), "a"), torch.arange(300) % 7
    whole = draws.words(streams, steps, 4)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draws.words(streams[order], steps[order], 4), whole[order])
    assert torch.equal(draws.words(streams[5:6], steps[5:6], 2), whole[5:6, :2])
    assert draws.words(streams[:0], steps[:0], 3).shape == (0, 3)
    assert not bool((draws.streams(draws.keys(IDS), "b") == streams).any())


def test_words_are_uniform() -> None:
    """Chi-square over 64 bins of every lane, over runs of steps, streams that follow each other and the lowest bits."""
    many, bins = 6400, 64
    high = 63 + 5 * np.sqrt(2 * 63)

    def chi_square(numbers: torch.Tensor) -> float:
        counts = torch.bincount(numbers, minlength=bins).double()
        assert len(counts) == bins
        expected = len(numbers) / bins
        return float(((counts - expected) ** 2 / expected).sum())

    by_step = draws.words(torch.full((many,), 7), torch.arange(many), 3)
    by_stream = draws.words(torch.arange(many), torch.full((many,), 2), 3)
    by_lane = draws.words(torch.tensor([99]), torch.tensor([0]), many).T
    found = []
    for table in (by_step, by_stream, by_lane):
        assert int(table.min()) >= 0 and int(table.max()) < 2**31
        for lane in table.T:
            found += [chi_square(draws.below(lane, bins)), chi_square(lane % bins)]
            # Neighbours together: the pair is uniform over 8 x 8 cells if they are independent.
            found.append(chi_square(draws.below(lane[:-1], 8) * 8 + draws.below(lane[1:], 8)))
    pairs = [draws.below(by_step[:, i], 8) * 8 + draws.below(by_step[:, j], 8) for i, j in ((0, 1), (0, 2), (1, 2))]
    found += [chi_square(pair) for pair in pairs]
    assert max(found) < high and np.mean(found) == pytest.approx(63, abs=6), found
    assert draws.below(torch.tensor([0, 2**31 - 1]), torch.tensor([5, 224])).tolist() == [0, 223]
    assert draws.below(torch.tensor([2**31 - 1]), 2**31).tolist() == [2**31 - 1]
