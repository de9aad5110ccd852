"""From per-image outcomes and what a task says of them to metrics with their evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from holdfast.evaluation import statistics
from holdfast.records import Metric
from holdfast.tasks.task import Measure

Array = npt.NDArray[Any]
LEFT_OUT = {"correct_within": "the attack stops at any wrong class, and was not made among these alone"}
"""Outcomes that an attacked cell does not keep, with the reason; any other that is missing is a fault of ours."""
NOT_THERE = "it does not occur in these images, neither in truth nor in what was answered"


def measured(measures: Sequence[Measure], whole: Mapping[str, Array]) -> tuple[Metric, ...]:
    """The metrics of a cell: means of outcomes, or functions of such means.

    Args:
        measures: of its task.
        whole: per-image outcomes, arrays [n, ...].

    Returns:
        One metric per measure, with a percentile-bootstrap interval over images (Wilson's for yes or no); without a
        value, with a reason, where the function has none. A resample in which it has none is left out of the interval.
    """
    resampled: dict[str, tuple[Array, Array]] = {}
    found = []
    for m in measures:
        if m.outcome in LEFT_OUT and m.outcome not in whole:
            found.append(_absent(m, LEFT_OUT[m.outcome]))
            continue
        if m.of is None:
            found.append(statistics.mean(m.name, whole[m.outcome], higher_is_better=m.higher_is_better, unit=m.unit))
            continue
        if m.outcome not in resampled:
            resampled[m.outcome] = means(whole[m.outcome])
        found.append(_of(m, *resampled[m.outcome], n=len(whole[m.outcome])))
    return tuple(found)


def of_each(measures: Sequence[Measure], whole: Mapping[str, Array]) -> list[dict[str, float]]:
    """The metrics of every image by itself: what a metric is of that one image, and no part of what it is of all.

    Args:
        measures: of a task.
        whole: per-image outcomes, arrays [n, ...].

    Returns:
        One dictionary per image; a metric that an image has not (the IoU of a class that occurs nowhere in it) is left
        out, and so are outcomes that are not there.
    """
    found: list[dict[str, float]] = [{} for _ in range(len(next(iter(whole.values()))))]
    for m in measures:
        if m.outcome not in whole:
            continue
        values = whole[m.outcome].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.asarray(values if m.of is None else m.of(values))
        for image, value in zip(found, each.tolist(), strict=True):
            if not np.isnan(value):
                image[m.name] = value
    return found


def means(values: Array) -> tuple[Array, Array]:
    """The mean over images of outcomes [n, *shape], and the means over resampled images [resamples, *shape]."""
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    drawn = statistics.resampled_means(flat)
    return flat.mean(0).reshape(values.shape[1:]), drawn.reshape(len(drawn), *values.shape[1:])


def _of(m: Measure, mean: Array, drawn: Array, *, n: int) -> Metric:
    assert m.of is not None, "the caller looked"
    with np.errstate(divide="ignore", invalid="ignore"):
        value, each = float(m.of(mean)), np.asarray(m.of(drawn))
    each = each[~np.isnan(each)]
    if np.isnan(value) or len(each) == 0:
        return _absent(m, NOT_THERE)
    low, high = statistics.ends(each.astype(np.float64))
    return Metric(
        name=m.name,
        n=n,
        higher_is_better=m.higher_is_better,
        unit=m.unit,
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        interval=f"bootstrap {statistics.RESAMPLES}",
    )


def _absent(m: Measure, reason: str) -> Metric:
    return Metric(name=m.name, reason=reason, higher_is_better=m.higher_is_better, unit=m.unit)
