"""Metrics from outcomes: what may be left out, and what may not."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.evaluation.measuring import LEFT_OUT, measured, of_each
from holdfast.tasks.task import Measure


def test_an_outcome_is_left_out_with_its_reason_or_not_at_all() -> None:
    within = Measure("accuracy_within", "correct_within", higher_is_better=True)
    (absent,) = measured((within,), {})
    assert absent.value is None and absent.reason == LEFT_OUT["correct_within"]
    (known,) = measured((within,), {"correct_within": np.array([True, False, True, True])})
    assert known.value == 0.75
    with pytest.raises(KeyError, match="correct"):
        measured((Measure("accuracy", "correct", higher_is_better=True),), {})


def test_a_function_of_means_has_the_interval_of_its_resamples() -> None:
    root = Measure("rms", "square", higher_is_better=False, unit="m", of=lambda mean: np.sqrt(mean[..., 0]))
    (found,) = measured((root,), {"square": np.array([[1.0], [9.0], [4.0], [16.0]])})
    assert found.value == pytest.approx(np.sqrt(7.5)) and found.n == 4 and found.unit == "m"
    assert 1.0 <= found.low < found.value < found.high <= 4.0


def test_what_an_image_has_not_is_left_out_of_its_own_metrics() -> None:
    root = Measure("rms", "square", higher_is_better=False, of=lambda mean: np.where(mean > 0, mean, np.nan) ** 0.5)
    right = Measure("accuracy", "correct", higher_is_better=True)
    nowhere = Measure("other", "missing", higher_is_better=True)
    found = of_each((root, right, nowhere), {"square": np.array([4.0, 0.0]), "correct": np.array([False, True])})
    assert found == [{"rms": 2.0, "accuracy": 0.0}, {"accuracy": 1.0}]
