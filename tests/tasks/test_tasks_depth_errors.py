"""Depth metrics: closed forms, each by hand, masks, the two forms and median scaling."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from holdfast import draws
from holdfast.tasks.depth_errors import (
    MEASURES,
    QUANTITIES,
    Crop,
    Range,
    Terms,
    box,
    foreign_frame,
    median_scaled,
    pixels,
    rmse,
    sums,
    values,
)

WIDE = Range(0.001, 80.0)
NAMES = [quantity.name for quantity in QUANTITIES]
OF = {measure.name: measure for measure in MEASURES}


def drawn(*shape: int, low: float = 0.5, high: float = 10.0, seed: str = "depth") -> torch.Tensor:
    return low + (high - low) * torch.rand(*shape, generator=draws.generator(seed))


def outcomes(predicted: torch.Tensor, truth: torch.Tensor, within: Range = WIDE) -> dict[str, Any]:
    plain = sums(pixels(predicted, truth, within))
    scaled = sums(pixels(median_scaled(predicted, truth, within), truth, within))
    found = {"errors": plain, "values": values(plain), "scaled": scaled, "scaled_values": values(scaled)}
    return {name: part.numpy() for name, part in found.items()}


def read(predicted: torch.Tensor, truth: torch.Tensor, within: Range = WIDE) -> dict[str, float]:
    """Every metric of a set of images."""
    found = outcomes(predicted, truth, within)
    return {m.name: float(m.of(found[m.outcome].mean(0))) for m in MEASURES if m.of is not None}


@pytest.mark.parametrize("c", [0.5, 0.79, 0.81, 1.0, 1.2, 1.3, 1.5, 1.6, 1.9, 2.0])
@pytest.mark.parametrize("plane", ["constant", "drawn"])
def test_a_prediction_that_is_the_truth_times_a_constant(c: float, plane: str) -> None:
    truth = torch.full((2, 5, 7), 4.0) if plane == "constant" else drawn(2, 5, 7)
    found = read(c * truth, truth)
    for form in ("", "_pooled"):
        assert found[f"abs_rel{form}"] == pytest.approx(abs(c - 1), abs=1e-6)
        assert found[f"log10{form}"] == pytest.approx(abs(math.log10(c)), abs=1e-6)
        assert found[f"rmse_log{form}"] == pytest.approx(abs(math.log(c)), abs=1e-6)
        assert found[f"silog{form}"] == pytest.approx(0, abs=2e-4)
        for k in (1, 2, 3):
            assert found[f"delta{k}{form}"] == float(max(c, 1 / c) < 1.25**k)
    assert found["rmse_pooled"] == pytest.approx(abs(c - 1) * float(truth.square().mean().sqrt()), abs=1e-5)
    assert found["sq_rel_pooled"] == pytest.approx((c - 1) ** 2 * float(truth.mean()), abs=1e-5)
    for form in ("_scaled", "_pooled_scaled"):
        assert found[f"rmse{form}"] == pytest.approx(0, abs=1e-6)
        assert found[f"abs_rel{form}"] == pytest.approx(0, abs=1e-6)
        assert found[f"delta1{form}"] == 1


def test_a_constant_plane_read_as_another_one() -> None:
    found = read(torch.full((1, 4, 4), 3.0), torch.full((1, 4, 4), 2.0))
    assert (found["rmse"], found["abs_rel"], found["sq_rel"]) == (1.0, 0.5, 0.5)
    assert found["silog"] == pytest.approx(0, abs=1e-5)
    edge = read(torch.tensor([[[5.0, 4.0, 6.25, 4.0]]]), torch.tensor([[[4.0, 5.0, 4.0, 4.0]]]))
    assert (edge["delta1"], edge["delta2"], edge["delta3"]) == (0.25, 0.75, 1.0)


def test_every_metric_by_hand_on_two_images_of_one_and_three_pixels_that_count() -> None:
    """Image 0 counts d = 2 alone; image 1 counts 1, 4, 5. A mean over images and over pixels are then not the same."""
    truth = torch.tensor([[[2.0, 0.0], [90.0, 0.0]], [[1.0, 4.0], [0.0, 5.0]]])
    predicted = torch.tensor([[[3.0, 9.0], [1.0, 2.0]], [[1.0, 2.0], [7.0, 8.0]]])
    found = read(predicted, truth)
    first, second = [(3, 2)], [(1, 1), (2, 4), (8, 5)]

    def mean(pairs: list[tuple[int, int]], of: Any) -> float:
        return sum(of(p, d) for p, d in pairs) / len(pairs)

    def each(pairs: list[tuple[int, int]]) -> dict[str, float]:
        def log(p: float, d: float) -> float:
            return math.log(p / d)

        logs = [log(p, d) for p, d in pairs]
        return {
            "rmse": math.sqrt(mean(pairs, lambda p, d: (p - d) ** 2)),
            "abs_rel": mean(pairs, lambda p, d: abs(p - d) / d),
            "sq_rel": mean(pairs, lambda p, d: (p - d) ** 2 / d),
            "log10": mean(pairs, lambda p, d: abs(math.log10(p / d))),
            "rmse_log": math.sqrt(mean(pairs, lambda p, d: log(p, d) ** 2)),
            "silog": 100 * float(np.std(logs)),
            **{f"delta{k}": mean(pairs, lambda p, d, k=k: max(p / d, d / p) < 1.25**k) for k in (1, 2, 3)},
        }

    for name in NAMES:
        assert found[name] == pytest.approx((each(first)[name] + each(second)[name]) / 2, abs=2e-6), name
        assert found[f"{name}_pooled"] == pytest.approx(each(first + second)[name], abs=2e-6), name
    assert found["rmse"] == pytest.approx((1 + math.sqrt(13 / 3)) / 2) != found["rmse_pooled"]
    assert found["rmse_pooled"] == pytest.approx(math.sqrt(14 / 4))
    # Medians: 2 / 3 for the first image, 4 / 2 for the second, whose prediction becomes 2, 4, 16.
    assert found["rmse_scaled"] == pytest.approx(math.sqrt((1 + 0 + 121) / 3) / 2)
    assert found["rmse_pooled_scaled"] == pytest.approx(math.sqrt((0 + 1 + 0 + 121) / 4))


def test_a_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle() -> None:
    truth, predicted = torch.tensor([[[1.0, 2.0, 4.0, 9.0, 0.0]]]), torch.tensor([[[8.0, 2.0, 1.0, 1.0, 70.0]]])
    scaled = median_scaled(predicted, truth, WIDE)
    assert torch.equal(scaled, 2 * predicted.double())
    for n in range(1, 8):
        truth, predicted = drawn(3, 1, n, seed=f"t{n}"), drawn(3, 1, n, seed=f"p{n}")
        ratio = np.median(truth.double().numpy(), 2) / np.median(predicted.double().numpy(), 2)
        assert np.allclose(median_scaled(predicted, truth, WIDE).numpy(), predicted.numpy() * ratio[..., None])


def test_scaling_is_done_before_predictions_are_clamped() -> None:
    truth = drawn(1, 6, 6, high=9.5)
    within = Range(0.001, 10.0)
    found = read(20 * truth, truth, within)
    assert found["rmse_scaled"] == pytest.approx(0, abs=1e-5)
    assert found["rmse"] == pytest.approx(float((10 - truth).square().mean().sqrt()), abs=1e-5)


def test_only_pixels_with_a_measurement_in_the_range_count_and_predictions_are_clamped() -> None:
    truth = torch.tensor([[[0.0, 10.0, 10.01, 5.0]]])
    read_ = pixels(torch.tensor([[[3.0, 12.0, 1.0, -1.0]]]), truth, Range(0.1, 10.0))
    assert read_.counts.tolist() == [[[False, True, False, True]]]
    assert read_.predicted[0, 0, [1, 3]].tolist() == pytest.approx([10.0, 0.1])
    assert rmse(read_).item() == pytest.approx(math.sqrt(4.9**2 / 2))


def test_what_is_predicted_where_nothing_was_measured_changes_nothing() -> None:
    truth = drawn(2, 6, 6)
    truth[:, ::2] = 0
    predicted = drawn(2, 6, 6, seed="other")
    before = outcomes(predicted, truth)
    predicted[:, ::2] = torch.nan
    after = outcomes(predicted, truth)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert np.isfinite(after["errors"]).all()


def test_images_without_a_pixel_that_counts_add_nothing_to_either_form() -> None:
    truth, predicted = drawn(3, 4, 4), drawn(3, 4, 4, seed="other")
    alone = read(predicted[:2], truth[:2])
    truth[2] = 0
    found = outcomes(predicted, truth)
    assert not any(part[2].any() for part in found.values())
    assert read(predicted, truth) == pytest.approx(alone)
    assert rmse(pixels(predicted, truth, WIDE))[2] == 0


def test_a_set_without_a_pixel_that_counts_has_no_metric() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read(drawn(2, 3, 3), torch.zeros(2, 3, 3))
    assert len(found) == 36 and all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_metric_of_resamples_is_that_of_each(measure: Any) -> None:
    truth = drawn(5, 4, 4)
    truth[3] = 0
    each = outcomes(drawn(5, 4, 4, seed="other"), truth)[measure.outcome]
    picks = torch.randint(5, (2, 3, 5), generator=draws.generator("resamples")).numpy()
    picks[1, 2] = 3
    found = measure.of(each[picks].mean(2))
    assert found.shape == (2, 3) and math.isnan(found[1, 2])
    for i, j in ((0, 0), (0, 2), (1, 1)):
        assert found[i, j] == pytest.approx(float(measure.of(each[picks[i, j]].mean(0))), rel=1e-12)


def test_a_metric_of_each_image_is_its_own_value() -> None:
    found = outcomes(drawn(4, 5, 5, seed="other"), drawn(4, 5, 5))
    for place, name in enumerate(NAMES):
        for form, outcome in (("", "values"), ("_pooled", "errors")):
            assert np.allclose(OF[name + form].of(found[outcome]), found["values"][:, place], rtol=1e-9, atol=1e-6)


def test_an_image_is_read_from_its_own_pixels() -> None:
    truth, predicted = drawn(6, 5, 7), drawn(6, 5, 7, seed="other")
    truth[truth < 2] = 0
    whole = outcomes(predicted, truth)
    for i in range(6):
        alone = outcomes(predicted[i : i + 1], truth[i : i + 1])
        assert all(np.allclose(whole[name][i], alone[name][0], rtol=1e-13, atol=1e-13) for name in whole)


def test_silog_is_the_standard_deviation_of_the_log_ratio_and_blind_to_scale() -> None:
    truth, predicted = drawn(1, 9, 9), drawn(1, 9, 9, seed="other")
    g = predicted.double().log() - truth.double().log()
    found = read(predicted, truth)["silog"]
    assert found == pytest.approx(100 * float(g.std(correction=0)))
    assert read(3 * predicted, truth)["silog"] == pytest.approx(found)


@pytest.mark.parametrize(
    ("crop", "size", "expected"),
    [
        ("none", (480, 640), (0, 480, 0, 640)),
        ("eigen", (480, 640), (45, 471, 41, 601)),
        ("eigen", (240, 320), (22, 235, 20, 300)),
        ("eigen", (32, 32), (3, 31, 2, 30)),
        ("garg", (375, 1242), (153, 371, 44, 1197)),
        ("garg", (352, 1216), (143, 349, 43, 1172)),
        ("eigen_kitti", (375, 1242), (124, 342, 44, 1197)),
    ],
)
def test_crops(crop: Crop, size: tuple[int, int], expected: tuple[int, ...]) -> None:
    rows, columns = box(crop, *size)
    assert (rows.start, rows.stop, columns.start, columns.stop) == expected
    counts = Range(0.001, 10.0, crop).counts(torch.ones(1, *size))
    assert int(counts.sum()) == (expected[1] - expected[0]) * (expected[3] - expected[2])
    assert bool(counts[0, rows, columns].all())


@pytest.mark.parametrize("crop", ["none", "eigen", "eigen_kitti", "garg"])
def test_a_crop_of_other_frames_than_its_own_is_said(crop: Crop) -> None:
    frames = {"eigen": ((480, 640), (240, 320)), "eigen_kitti": ((375, 1242), (352, 1216)), "garg": ((370, 1226),)}
    for size in ((480, 640), (240, 320), (375, 1242), (352, 1216), (370, 1226), (32, 32)):
        kitti = crop != "eigen" and size in (*frames["eigen_kitti"], *frames["garg"])
        fits = crop == "none" or kitti or size in frames[crop]
        assert (foreign_frame(crop, *size) == "") is fits, size


def test_names_units_and_places() -> None:
    assert len({m.name for m in MEASURES}) == 36
    assert {m.outcome for m in MEASURES} == {"errors", "values", "scaled", "scaled_values"}
    assert {m.name for m in MEASURES if m.higher_is_better} == {
        f"delta{k}{form}" for k in (1, 2, 3) for form in ("", "_pooled", "_scaled", "_pooled_scaled")
    }
    assert len(Terms._fields) == sums(pixels(drawn(1, 2, 2), drawn(1, 2, 2), WIDE)).shape[1]
    assert OF["rmse"].unit == OF["rmse_pooled_scaled"].unit == "metres"
