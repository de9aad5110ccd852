"""Statistics against closed forms and published worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.errors import DataError
from holdfast.evaluation import statistics as st


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(k: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert st.wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_inside() -> None:
    for k in range(11):
        low, high = st.wilson(k, 10)
        assert 0 <= low <= k / 10 <= high <= 1
        assert low < high
        assert (1 - high, 1 - low) == pytest.approx(st.wilson(10 - k, 10))


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_count(k: int, n: int) -> None:
    with pytest.raises(DataError):
        st.wilson(k, n)


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 2000)
    half = 1.96 * values.std() / math.sqrt(2000)
    low, high = st.bootstrap(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_bootstrap_is_keyed_and_leaves_the_global_generator_alone() -> None:
    values = np.arange(50.0)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    assert st.bootstrap(values, seed=1) == st.bootstrap(values, seed=1)
    assert st.bootstrap(values, seed=1) != st.bootstrap(values, seed=2)
    assert (np.random.get_state()[1] == before).all()


def test_bootstrap_of_a_function_equals_that_of_the_values() -> None:
    values = np.random.default_rng(1).random(40)
    assert st.bootstrap(lambda drawn: float(values[drawn].mean()), 40) == pytest.approx(st.bootstrap(values))


def test_bootstrap_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).random(300)
    whole = st.bootstrap(values)
    monkeypatch.setattr(st, "_BYTES", 8 * 300 * 7)
    assert st.bootstrap(values) == whole


def test_bootstrap_refuses_nothing() -> None:
    with pytest.raises(DataError):
        st.bootstrap(np.array([]))


def test_match_pairs_by_id_in_the_order_of_the_first() -> None:
    first, second = st.match(np.array(["c", "a", "x"]), np.array(["a", "b", "c"]))
    assert (first.tolist(), second.tolist()) == ([0, 1], [2, 0])
    nothing = st.match(np.array(["a"]), np.array(["b"]))
    assert [len(side) for side in nothing] == [0, 0]


def test_match_refuses_an_id_that_stands_twice() -> None:
    with pytest.raises(DataError, match="twice"):
        st.match(np.array(["a", "a"]), np.array(["a"]))


def test_paired_difference_of_shares_is_agresti_and_min() -> None:
    a = np.array([True] * 30 + [True] * 10 + [False] * 4 + [False] * 6)
    b = np.array([True] * 30 + [False] * 10 + [True] * 4 + [False] * 6)
    found = st.paired_difference(a, b)
    centre = (10.5 - 4.5) / 52
    half = 1.959964 * math.sqrt(15 - 36 / 52) / 52
    assert found.value == pytest.approx(6 / 50)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert found.n == 50
    assert not found.clear


def test_paired_difference_knows_that_pairs_are_pairs() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(0, 10, 400)
    shifted = st.paired_difference(a + 0.1, a)
    assert (shifted.low, shifted.high) == pytest.approx((0.1, 0.1))
    assert shifted.clear
    same = st.paired_difference(a > 0, a > 0)
    assert same.value == 0 and same.low < 0 < same.high


def test_paired_difference_refuses_other_lengths() -> None:
    with pytest.raises(DataError):
        st.paired_difference(np.zeros(3), np.zeros(4))


def test_worst_case_is_per_image_and_not_per_attack() -> None:
    one, two = np.array([True, False, True, True]), np.array([False, True, True, True])
    assert st.worst_case([one, two]).tolist() == [False, False, True, True]
    drift = st.worst_case([np.array([0.1, 0.5]), np.array([0.3, 0.2])], "higher")
    assert drift.tolist() == [0.3, 0.5]


def test_running_worst_carries_what_was_lost_to_larger_radii() -> None:
    curve = {4.0: np.array([True, False, False]), 0.0: np.array([True, True, True]), 2.0: np.array([True, True, False])}
    curve[8.0] = np.array([True, True, True])
    running = st.running_worst(curve)
    assert list(running) == [0.0, 2.0, 4.0, 8.0]
    assert running[8.0].tolist() == [True, False, False]
    assert [int(v.sum()) for v in running.values()] == [3, 2, 1, 1]


def test_crossing_is_interpolated() -> None:
    n = 100
    curve = {e: np.arange(n) < k for e, k in [(0.0, 80), (1.0, 60), (3.0, 20)]}
    found = st.crossing(curve)
    assert found.value == pytest.approx(2.0)
    assert found.low is not None and found.high is not None
    assert found.low < 2.0 < found.high
    assert found.n == n


def test_crossing_beyond_the_grid_has_a_reason_and_a_lower_end() -> None:
    curve = {e: np.arange(100) < k for e, k in [(0.0, 80), (1.0, 78), (2.0, 75)]}
    found = st.crossing(curve)
    assert found.value is None and found.low is None and found.high is None
    assert "largest radius" in found.reason


def test_crossing_before_the_first_radius_is_not_invented() -> None:
    curve = {e: np.arange(100) < k for e, k in [(0.0, 80), (1.0, 3)]}
    found = st.crossing(curve)
    assert found.value is None
    assert "smallest radius" in found.reason


@pytest.mark.parametrize("curve", [{}, {0.0: np.ones(3)}, {1.0: np.ones(3), 2.0: np.zeros(3)}])
def test_crossing_says_what_it_lacks(curve: dict[float, np.ndarray]) -> None:
    assert st.crossing(curve).reason


def test_crossing_of_a_model_that_knows_nothing() -> None:
    found = st.crossing({0.0: np.zeros(5, bool), 1.0: np.zeros(5, bool)})
    assert found.value is None and "no clean image" in found.reason


def test_columns_resampled_together_have_the_interval_that_each_has_alone() -> None:
    rng = np.random.default_rng(8)
    columns = np.stack([rng.random(300) < 0.3, rng.random(300) < 0.9], axis=1).astype(float)
    low, high = st.ends(st.resampled_means(columns))
    for at in range(2):
        assert (low[at], high[at]) == pytest.approx(st.bootstrap(columns[:, at]), abs=1e-12)
    mixed = columns @ [2.0, -0.5]
    both = st.ends(st.resampled_means(columns) @ np.array([[2.0], [-0.5]]))
    assert [float(end[0]) for end in both] == pytest.approx(list(st.bootstrap(mixed)), abs=1e-12)


def test_resampling_in_parts_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(1).random((64, 2))
    whole = st.resampled_means(columns, resamples=40)
    assert whole.shape == (40, 2)
    monkeypatch.setattr(st, "_BYTES", 8 * 64 * 7)
    assert st.resampled_means(columns, resamples=40) == pytest.approx(whole)
    with pytest.raises(DataError, match="no images"):
        st.resampled_means(np.zeros((0, 2)))


def test_aligned_keeps_the_images_that_all_have() -> None:
    a, b = np.array(["x", "y", "z"]), np.array(["z", "q", "x"])
    ids, (first, second) = st.aligned([(a, np.array([1, 2, 3])), (b, np.array([30, 0, 10]))])
    assert ids.tolist() == ["x", "z"]
    assert first.tolist() == [1, 3] and second.tolist() == [10, 30]
    same, (only,) = st.aligned([(a, np.array([1, 2, 3]))])
    assert same.tolist() == a.tolist() and only.tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="twice"):
        st.aligned([(np.array(["x", "x"]), np.zeros(2))])
