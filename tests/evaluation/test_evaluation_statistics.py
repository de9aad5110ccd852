"""Statistics against closed forms and published worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.errors import DataError
from holdfast.evaluation import statistics as st
from holdfast.evaluation.published import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    FAMILIES,
    MCE_CORRUPTIONS,
    PUBLISHED,
    family,
    published,
)


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


def alexnet(n: int = 3) -> dict[str, dict[int, np.ndarray]]:
    return {c: {s + 1: np.full(n, e) for s, e in enumerate(ALEXNET_ERRORS[c])} for c in MCE_CORRUPTIONS}


def test_alexnet_has_an_mce_of_100() -> None:
    found = st.mean_corruption_error(alexnet(), np.full(3, ALEXNET_CLEAN_ERROR))
    assert found.mce.value == pytest.approx(1.0)
    assert found.relative.value == pytest.approx(1.0)
    assert all(ce == pytest.approx(1.0) for ce in found.each.values())
    assert found.plain.value == pytest.approx(0.7890, abs=5e-5)


def test_mce_is_the_mean_of_ratios_of_sums() -> None:
    rng = np.random.default_rng(4)
    errors = {c: {s: rng.random(50) < 0.4 for s in range(1, 6)} for c in MCE_CORRUPTIONS}
    clean = rng.random(50) < 0.2
    found = st.mean_corruption_error(errors, clean)
    ratios, rises = [], []
    for c in MCE_CORRUPTIONS:
        ours = [errors[c][s].mean() for s in range(1, 6)]
        ratios.append(sum(ours) / sum(ALEXNET_ERRORS[c]))
        rises.append(sum(e - clean.mean() for e in ours) / sum(e - ALEXNET_CLEAN_ERROR for e in ALEXNET_ERRORS[c]))
    assert found.mce.value == pytest.approx(np.mean(ratios))
    assert found.relative.value == pytest.approx(np.mean(rises))
    assert found.mce.low is not None and found.mce.high is not None
    assert found.mce.low < np.mean(ratios) < found.mce.high
    assert found.values.mean() == pytest.approx(np.mean(ratios))


def test_validation_corruptions_never_enter_the_mce() -> None:
    errors = alexnet() | {"spatter": {s: np.ones(3) for s in range(1, 6)}}
    assert st.mean_corruption_error(errors, np.full(3, ALEXNET_CLEAN_ERROR)).mce.value == pytest.approx(1.0)


def test_mce_is_absent_with_a_reason_where_a_severity_is_missing() -> None:
    errors = alexnet()
    del errors["fog"][3]
    found = st.mean_corruption_error(errors, np.full(3, 0.4))
    assert found.mce.value is None and "fog" in found.mce.reason
    assert found.relative.value is None
    assert found.plain.value is not None
    assert "fog" not in found.each and "snow" in found.each


def test_mce_is_absent_where_alexnet_does_not_apply() -> None:
    found = st.mean_corruption_error(alexnet(), np.full(3, 0.4), reason="other images")
    assert found.mce.reason == "other images" and found.each == {} and found.plain.value is not None


def test_the_alexnet_table_has_the_published_averages() -> None:
    averages = {
        "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
        "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
        "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
        "pixelate": 0.717840, "jpeg_compression": 0.606500, "speckle_noise": 0.845388, "gaussian_blur": 0.787108,
        "spatter": 0.717512, "saturate": 0.658248,
    }  # fmt: skip
    assert {c: np.mean(e) for c, e in ALEXNET_ERRORS.items()} == pytest.approx(averages, abs=2e-6)
    assert len(MCE_CORRUPTIONS) == 15
    assert {c for members in FAMILIES.values() for c in members} == set(ALEXNET_ERRORS)
    assert family("fog") == "weather" and family("rain") == "other"


def test_every_published_number_has_protocol_and_source() -> None:
    assert all(p.protocol and p.source and 0 <= p.value <= 1 for p in PUBLISHED)
    assert {p.model for p in published("mce", "imagenet")} >= {"ResNet-50"}
    assert published("mce", "cifar10") == []
