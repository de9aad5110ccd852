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
