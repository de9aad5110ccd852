"""Mean corruption errors: AlexNet itself, plain loops over the definition, and every reason for an absence."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.corruptions import table
from holdfast.errors import DataError
from holdfast.evaluation import statistics as st
from holdfast.evaluation.corruption_errors import (
    SEVERITIES,
    aggregates,
    mean_corruption_error,
    non_monotone,
    of_rates,
)
from holdfast.evaluation.published import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    CORRUPTIONS,
    FAMILIES,
    MCE_CORRUPTIONS,
    PUBLISHED,
    family,
    published,
)

Errors = dict[str, dict[int, np.ndarray]]


def alexnet(corruptions: tuple[str, ...] = CORRUPTIONS, n: int = 3) -> Errors:
    return {c: {s: np.full(n, e) for s, e in zip(SEVERITIES, ALEXNET_ERRORS[c])} for c in corruptions}


def drawn(n: int = 60, corruptions: tuple[str, ...] = CORRUPTIONS, seed: int = 4) -> Errors:
    rng = np.random.default_rng(seed)
    return {c: {s: rng.random(n) < 0.1 + 0.15 * s for s in SEVERITIES} for c in corruptions}


def test_alexnet_has_an_mce_of_100() -> None:
    found = mean_corruption_error(alexnet(), np.full(3, ALEXNET_CLEAN_ERROR))
    assert found.mce.value == pytest.approx(1.0)
    assert found.relative.value == pytest.approx(1.0)
    assert all(m.value == pytest.approx(1.0) for m in (*found.each.values(), *found.relative_each.values()))
    assert found.metrics["mean_error_15"].value == pytest.approx(0.7890, abs=5e-5)
    of_table = of_rates(ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR)
    assert of_table["mce"] == pytest.approx(1.0) and of_table["relative_mce"] == pytest.approx(1.0)
    assert non_monotone(ALEXNET_ERRORS) == ("snow", "elastic_transform", "saturate")


def test_mce_is_the_mean_of_ratios_of_sums() -> None:
    errors = drawn()
    clean = np.random.default_rng(5).random(60) < 0.2
    found = mean_corruption_error(errors, clean)
    ratios, rises = {}, {}
    for c in CORRUPTIONS:
        ours = [errors[c][s].mean() for s in SEVERITIES]
        ratios[c] = sum(ours) / sum(ALEXNET_ERRORS[c])
        rises[c] = sum(e - clean.mean() for e in ours) / sum(e - ALEXNET_CLEAN_ERROR for e in ALEXNET_ERRORS[c])
    assert {c: m.value for c, m in found.each.items()} == pytest.approx(ratios)
    assert {c: m.value for c, m in found.relative_each.items()} == pytest.approx(rises)
    assert found.mce.value == pytest.approx(np.mean([ratios[c] for c in MCE_CORRUPTIONS]))
    assert found.relative.value == pytest.approx(np.mean([rises[c] for c in MCE_CORRUPTIONS]))
    assert all(m.n == 60 and m.interval and not m.higher_is_better for m in found.metrics.values())


def test_mean_errors_are_means_over_what_their_names_say() -> None:
    errors = drawn()
    found = mean_corruption_error(errors, None)
    rate = {c: np.array([errors[c][s].mean() for s in SEVERITIES]) for c in CORRUPTIONS}
    for count, members in ((15, MCE_CORRUPTIONS), (19, CORRUPTIONS)):
        over = np.stack([rate[c] for c in members])
        assert found.metrics[f"mean_error_{count}"].value == pytest.approx(over.mean())
        each = [m.value for m in found.severities(count).values()]
        assert each == pytest.approx(over.mean(0).tolist())
    for name, members in FAMILIES.items():
        assert found.families[name].value == pytest.approx(np.mean([rate[c] for c in members]))


def test_intervals_are_those_of_the_images() -> None:
    """Resampling all rates at once gives what resampling the per-image parts of one number gives."""
    found = mean_corruption_error(drawn(), np.random.default_rng(5).random(60) < 0.2)
    assert set(found.parts) == {"mean_error", "mean_error_15", "mean_error_19", "mce", "relative_mce"}
    for name, values in found.parts.items():
        metric = found.plain if name == "mean_error" else found.metrics[name]
        assert metric.value == pytest.approx(values.mean())
        assert (metric.low, metric.high) == pytest.approx(st.bootstrap(values), abs=1e-12)
        assert metric.low is not None and metric.value is not None and metric.high is not None
        assert metric.low < metric.value < metric.high
    assert found.values is found.parts["mce"]


def test_tables_and_images_take_the_same_way() -> None:
    errors, clean = drawn(), np.random.default_rng(5).random(60) < 0.2
    found = mean_corruption_error(errors, clean)
    rates = {c: [float(errors[c][s].mean()) for s in SEVERITIES] for c in reversed(CORRUPTIONS)}
    assert of_rates(rates, float(clean.mean())) == pytest.approx({n: m.value for n, m in found.metrics.items()})


def test_corruptions_are_keyed_by_name_and_severity() -> None:
    errors, clean = drawn(), np.zeros(60, bool)
    turned = {c: dict(reversed(errors[c].items())) for c in reversed(CORRUPTIONS)}
    one, other = mean_corruption_error(errors, clean), mean_corruption_error(turned, clean)
    assert {n: m.value for n, m in one.metrics.items()} == pytest.approx({n: m.value for n, m in other.metrics.items()})


def test_validation_corruptions_never_enter_the_mce() -> None:
    errors = alexnet() | {name: {s: np.ones(3) for s in SEVERITIES} for name in FAMILIES["extra"]}
    found = mean_corruption_error(errors, np.full(3, ALEXNET_CLEAN_ERROR))
    assert found.mce.value == pytest.approx(1.0) and found.relative.value == pytest.approx(1.0)
    assert found.metrics["mean_error_15"].value == pytest.approx(0.7890, abs=5e-5)
    assert found.families["extra"].value == pytest.approx(1.0)


def test_an_absence_names_what_is_missing_and_why() -> None:
    errors = alexnet(tuple(c for c in CORRUPTIONS if c != "spatter"))
    del errors["fog"][3]
    absent = {("spatter", s): "ExtraError: spatter needs OpenCV." for s in SEVERITIES}
    found = mean_corruption_error(errors, np.full(3, 0.4), absent=absent)
    assert found.mce.value is None and found.relative.value is None and len(found.values) == 0
    assert found.mce.reason == (
        "needs 15 corruptions at severities 1 to 5; 1 is missing: fog at severity 3 (not measured)"
    )
    nineteen = found.metrics["mean_error_19"].reason
    assert "2 are missing" in nineteen and "spatter (ExtraError: spatter needs OpenCV.)" in nineteen
    assert "spatter (ExtraError" in found.families["extra"].reason
    assert "fog" in found.families["weather"].reason and found.families["noise"].value is not None
    assert found.severities(15)[3].value is None and found.severities(15)[4].value is not None
    assert all(m.value is None for m in found.severities(19).values())
    assert found.each["fog"].value is None and found.each["snow"].value == pytest.approx(1.0)
    assert found.plain.value is not None


def test_many_absences_are_counted_and_not_listed() -> None:
    reason = mean_corruption_error(alexnet(("fog",)), None).metrics["mean_error_15"].reason
    assert "14 are missing" in reason and reason.endswith("impulse_noise (not measured), ...")


def test_without_alexnet_the_mean_errors_stay() -> None:
    found = mean_corruption_error(alexnet(), np.full(3, 0.4), reason="other images")
    assert {m.reason for m in (found.mce, found.relative, *found.each.values())} == {"other images"}
    assert found.metrics["mean_error_15"].value == pytest.approx(0.7890, abs=5e-5)
    assert found.metrics["mean_error_19"].value is not None and found.plain.value is not None


def test_without_clean_images_only_what_is_relative_is_absent() -> None:
    found = mean_corruption_error(alexnet(), None, no_clean="no clean cell")
    assert {m.reason for m in (found.relative, *found.relative_each.values())} == {"no clean cell"}
    assert found.mce.value == pytest.approx(1.0)
    assert "relative_mce" not in of_rates(ALEXNET_ERRORS)


def test_nothing_measured_is_absent_everywhere() -> None:
    for errors in ({}, {"fog": {0: np.ones(4)}}, {"fog": {1: np.ones(0)}}):
        found = mean_corruption_error(errors, None)
        assert found.plain.reason == "no corruption was measured"
        assert set(found.metrics) == {a.name for a in aggregates()}
        assert all(m.value is None and m.reason for m in found.metrics.values())


def test_the_plain_mean_takes_whatever_is_there() -> None:
    errors = {"fog": {1: np.array([1, 0]), 5: np.array([1, 1])}, "a_new_one": {2: np.array([0, 0])}}
    assert mean_corruption_error(errors, None).plain.value == pytest.approx((0.75 + 0.0) / 2)


def test_images_that_do_not_match_are_refused() -> None:
    with pytest.raises(DataError, match="3 and 4 images"):
        mean_corruption_error(alexnet(), np.zeros(4))
    with pytest.raises(DataError, match="4 error rates"):
        of_rates({"fog": [0.1, 0.2, 0.3, 0.4]})


def test_the_alexnet_table_has_the_published_averages() -> None:
    averages = {
        "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
        "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
        "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
        "pixelate": 0.717840, "jpeg_compression": 0.606500, "speckle_noise": 0.845388, "gaussian_blur": 0.787108,
        "spatter": 0.717512, "saturate": 0.658248,
    }  # fmt: skip
    assert {c: np.mean(e) for c, e in ALEXNET_ERRORS.items()} == pytest.approx(averages, abs=2e-6)


def test_the_families_are_the_official_ones() -> None:
    assert [len(members) for members in FAMILIES.values()] == [3, 4, 4, 4, 4]
    assert len(MCE_CORRUPTIONS) == 15 and len(CORRUPTIONS) == 19 and set(CORRUPTIONS) == set(ALEXNET_ERRORS)
    assert family("brightness") == "weather" and family("spatter") == "extra" and family("rain") == "other"
    for name, members in table.families().items():
        assert [c for c in FAMILIES[name] if c in members] == list(members)


def test_every_published_number_has_protocol_and_source() -> None:
    assert all(p.protocol and p.source and 0 <= p.value <= 1 for p in PUBLISHED)
    assert {p.model for p in published("mce", "imagenet")} >= {"ResNet-50"}
    assert published("mce", "cifar10") == []
