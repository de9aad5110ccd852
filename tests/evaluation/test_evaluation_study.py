"""The published study of self-supervised encoders: every aggregate is computed from its 760 errors, none is copied."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.evaluation.corruption_errors import SEVERITIES, mean_corruption_error, non_monotone, of_rates
from holdfast.evaluation.published import (
    ALEXNET_ERRORS,
    CORRUPTIONS,
    FAMILIES,
    MCE_CORRUPTIONS,
    Study,
    published_corruption_studies,
)

STUDIES = {study.title: study for study in published_corruption_studies()}
# In per cent, from the results of the study: the mean error over 19 as stored there; the others computed by hand.
MODELS = (
    "SwAV (ResNet-50)",
    "DINO (ResNet-50)",
    "BYOL (ResNet-50)",
    "Barlow Twins (ResNet-50)",
    "SimSiam (ResNet-50)",
    "SimCLR (ResNet-50)",
    "DINO (ViT-S/8)",
    "supervised (ResNet-50)",
)
MEAN_19 = (70.46, 71.51, 73.77, 73.80, 75.77, 75.99, 57.28, 53.69)
MEAN_15 = (72.75, 74.07, 76.05, 76.26, 78.08, 78.05, 60.15, 54.76)
MCE = (92.40, 93.89, 96.62, 96.83, 99.32, 99.31, 76.19, 69.27)
RELATIVE_AT_43_45 = (126.4, 144.8, 141.2, 141.4, 136.9, 132.5, 115.8, 88.5)
# Means as the study gives them, before its errors were rounded to 0.1.
MEANS = {
    "gaussian_noise": (70.71, 74.05, 73.41, 73.04, 74.4, 76.34, 55.22, 59.95),
    "shot_noise": (72.7, 75.09, 75.53, 75.04, 76.13, 79.05, 57.14, 61.82),
    "impulse_noise": (82.45, 83.75, 81.23, 82.98, 80.84, 85.2, 60.93, 62.79),
    "defocus_blur": (77.45, 76.46, 77.78, 78.7, 82.08, 82.61, 69.91, 67.64),
    "glass_blur": (84.87, 85.48, 86.49, 88.04, 88.57, 87.79, 73.97, 67.39),
    "motion_blur": (76.66, 75.92, 80.22, 79.67, 83.96, 82.02, 63.93, 57.41),
    "zoom_blur": (82.9, 81.95, 85.92, 85.84, 88.02, 87.72, 75.46, 56.25),
    "snow": (79.59, 83.47, 84.63, 84.13, 85.15, 84.82, 59.46, 58.85),
    "frost": (72.83, 75.15, 77.88, 78.03, 80.49, 78.17, 56.02, 58.62),
    "fog": (79.35, 81.92, 86.43, 86.76, 89.86, 89.12, 69.74, 47.21),
    "brightness": (41.61, 41.01, 46.12, 46.14, 49.97, 48.21, 29.7, 33.22),
    "contrast": (72.5, 79.23, 84.09, 85.48, 87.64, 79.79, 74.71, 56.09),
    "elastic_transform": (70.63, 70.46, 72.64, 71.85, 75.44, 74.67, 51.22, 45.91),
    "pixelate": (66.87, 67.54, 65.66, 66.44, 65.31, 67.04, 54.32, 42.62),
    "jpeg_compression": (60.13, 59.58, 62.67, 61.72, 63.35, 68.2, 50.54, 45.61),
    "speckle_noise": (68.3, 68.4, 71.13, 70.35, 71.47, 76.18, 49.54, 54.4),
    "gaussian_blur": (70.03, 69.83, 72.57, 72.92, 74.47, 76.64, 62.97, 63.53),
    "spatter": (65.1, 65.24, 69.61, 68.55, 72.67, 70.55, 41.32, 45.89),
    "saturate": (44.1, 44.21, 47.64, 46.61, 49.74, 49.75, 32.32, 34.91),
    "noise": (75.29, 77.63, 76.73, 77.02, 77.12, 80.19, 57.76, 61.52),
    "blur": (80.47, 79.95, 82.6, 83.06, 85.66, 85.04, 70.82, 62.17),
    "weather": (68.34, 70.39, 73.76, 73.76, 76.37, 75.08, 53.73, 49.48),
    "digital": (67.54, 69.2, 71.26, 71.37, 72.94, 72.42, 57.7, 47.56),
    "extra": (61.88, 61.92, 65.24, 64.61, 67.09, 68.28, 46.54, 49.68),
    "severity 1": (52.41, 52.47, 55.43, 55.21, 58.84, 59.29, 36.81, 36.93),
    "severity 2": (62.4, 63.45, 66.11, 66.1, 68.95, 69.63, 46.85, 45.08),
    "severity 3": (70.81, 72.35, 75.05, 75.23, 77.13, 77.12, 56.63, 52.51),
    "severity 4": (79.73, 81.25, 83.14, 83.28, 84.27, 84.29, 67.59, 62.13),
    "severity 5": (86.96, 88.03, 89.12, 89.21, 89.64, 89.63, 78.55, 71.8),
}


def relative_mce(study: Study, alexnet_clean: float) -> float:
    """Relative mCE by plain loops, against any clean error of AlexNet."""
    rises = []
    for name in MCE_CORRUPTIONS:
        ours = sum(rate - study.clean for rate in study.errors[name])
        rises.append(ours / sum(rate - alexnet_clean for rate in ALEXNET_ERRORS[name]))
    return 100 * sum(rises) / 15


def of_study(study: Study) -> dict[str, float]:
    return {name: 100 * value for name, value in of_rates(study.errors, study.clean).items()}


def test_the_study_is_whole() -> None:
    assert tuple(STUDIES) == MODELS
    assert sum(len(rates) for s in STUDIES.values() for rates in s.errors.values()) == 760
    for study in STUDIES.values():
        assert tuple(study.errors) == CORRUPTIONS
        assert all(0 < rate < 1 and round(1000 * rate, 6).is_integer() for by in study.errors.values() for rate in by)


def test_nothing_of_it_is_comparable_and_each_model_says_why() -> None:
    for study in STUDIES.values():
        assert not study.comparable
        assert "not normalised" in study.protocol and "arXiv 2308.02525" in study.source
        assert any("not measured" in defect for defect in study.defects)
    assert any("76.13" in defect for defect in STUDIES["supervised (ResNet-50)"].defects)
    assert [s.epochs for s in STUDIES.values()] == [200, None, 200, 300, 100, 200, None, None]


@pytest.mark.parametrize("at", range(8), ids=MODELS)
def test_the_aggregates_follow_from_the_errors(at: int) -> None:
    study = STUDIES[MODELS[at]]
    found = of_study(study)
    assert found["mean_error_19"] == pytest.approx(MEAN_19[at], abs=0.02)
    assert found["mean_error_15"] == pytest.approx(MEAN_15[at], abs=0.02)
    assert found["mce"] == pytest.approx(MCE[at], abs=0.02)
    # The table was made with 43.45 % for AlexNet; ours is 43.5 %, as published.
    assert relative_mce(study, 0.4345) == pytest.approx(RELATIVE_AT_43_45[at], abs=0.1)
    assert found["relative_mce"] == pytest.approx(relative_mce(study, 0.435), abs=1e-9)
    assert found["relative_mce"] == pytest.approx(RELATIVE_AT_43_45[at], abs=0.3)


@pytest.mark.parametrize("name", MEANS)
def test_the_means_are_those_of_the_study(name: str) -> None:
    for title, published in zip(MODELS, MEANS[name]):
        if name in CORRUPTIONS:
            found = 100 * float(np.mean(STUDIES[title].errors[name]))
        else:
            key = f"mean_error_{name}" if name in FAMILIES else f"mean_error_19_{name.replace(' ', '_')}"
            found = of_study(STUDIES[title])[key]
        assert found == pytest.approx(published, abs=0.035)


@pytest.mark.parametrize("title", MODELS)
def test_a_study_fed_as_images_gives_the_same(title: str) -> None:
    """The way that records go: errors of images, here of one image whose error is the rate."""
    study = STUDIES[title]
    errors = {c: {s: np.array([rate]) for s, rate in zip(SEVERITIES, rates)} for c, rates in study.errors.items()}
    found = mean_corruption_error(errors, np.array([study.clean]))
    assert {n: m.value for n, m in found.metrics.items()} == pytest.approx(of_rates(study.errors, study.clean))


@pytest.mark.parametrize("title", MODELS)
def test_what_the_study_claims(title: str) -> None:
    """Three corruptions are not monotone and blur is the worst family: for every model, so a property of the sets."""
    study = STUDIES[title]
    assert non_monotone(study.errors) == ("snow", "elastic_transform", "saturate")
    assert all(study.errors[c][1] > study.errors[c][2] for c in non_monotone(study.errors))
    found = of_study(study)
    assert max(FAMILIES, key=lambda name: found[f"mean_error_{name}"]) == "blur"
    each = [found[f"mean_error_19_severity_{s}"] for s in SEVERITIES]
    assert each == sorted(each)


def test_true_mce_ranks_as_the_mean_error_but_for_a_tie() -> None:
    found = {title: of_study(study) for title, study in STUDIES.items()}
    self_supervised = MODELS[:6]
    by_mean = sorted(self_supervised, key=lambda t: found[t]["mean_error_19"])
    assert by_mean == list(self_supervised)
    tied = found["SimSiam (ResNet-50)"]["mce"] - found["SimCLR (ResNet-50)"]["mce"]
    assert abs(tied) < 0.02
    by_mce = sorted(self_supervised, key=lambda t: round(found[t]["mce"], 1))
    assert by_mce == list(self_supervised)
