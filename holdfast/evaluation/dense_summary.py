"""What the summary says of tasks that answer for every pixel: their leading metric, clean and in the worst case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.evaluation.attack_names import radius
from holdfast.evaluation.curves import Subject, norm_name
from holdfast.evaluation.dense_curves import LEADING, TITLES, curve, measure_of
from holdfast.evaluation.paired import Evidence
from holdfast.records import Metric
from holdfast.tasks.task import Measure

Array = npt.NDArray[Any]


class Row(NamedTuple):
    """One measurement of all encoders: its key, title, explanation, cells, and the ball that it belongs to."""

    key: str
    title: str
    about: str
    cells: tuple[Evidence, ...]
    eps: float = 0.0
    norm: str = ""


def rows(seen: Sequence[Subject], shown: Callable[[str, str], Sequence[float]]) -> list[Row]:
    """The leading metric of every dense task: clean, and in the worst case at some radii of each norm.

    Args:
        seen: the encoders.
        shown: radii of a task and a norm.
    """
    found = []
    for task, name in LEADING.items():
        if not any(s.clean(task) for s in seen):
            continue
        m, title = measure_of(task, name), TITLES[name]
        clean = tuple(_clean(s, task, m) for s in seen)
        found.append(Row(f"clean_{task}", f"clean {title}", f"{title} of {task}", clean))
        for norm in dict.fromkeys(norm for s in seen for norm in s.norms()):
            for eps in shown(task, norm):
                ball = radius(eps, norm) if norm == "linf" else f"{norm_name(norm)} {radius(eps, norm)}"
                about = f"{title} of {task} left by every attack of radius up to {ball}, chosen for this metric"
                cells = tuple(_worst(s, task, m, norm, eps) for s in seen)
                found.append(Row(f"worst_{task}", f"worst-case {title} at {ball}", about, cells, eps, norm))
    return found


def _clean(subject: Subject, task: str, m: Measure) -> Evidence:
    result = subject.clean(task)
    metric = result.metric(m.name) if result is not None else None
    if result is None or metric is None or metric.value is None:
        return _nothing(m, metric.reason if metric else f"no clean cell of {subject.name}")
    held = subject.run.outcomes(result.id)
    return _found(m, metric, held["id"], held[m.outcome])


def _worst(subject: Subject, task: str, m: Measure, norm: str, eps: float) -> Evidence:
    drawn = curve(subject, task, m.name, norm)
    point = next((p for p in drawn.points if p.eps == eps), None)
    if point is None or point.worst.value is None:
        return _nothing(m, drawn.reason or (point.worst.reason if point else "this radius was not measured"))
    return _found(m, point.worst, drawn.ids, drawn.chosen[eps])


def _found(m: Measure, metric: Metric, ids: Array, outcomes: Array) -> Evidence:
    shape = outcomes.shape[1:]

    def of(means: Array) -> Array:
        assert m.of is not None, "every dense metric is a function of sums"
        with np.errstate(divide="ignore", invalid="ignore"):
            return m.of(means.reshape(-1, *shape))

    return Evidence(metric, ids, np.moveaxis(outcomes.reshape(len(outcomes), -1), 0, -1), of)


def _nothing(m: Measure, reason: str) -> Evidence:
    absent = Metric(name=m.name, reason=reason, higher_is_better=m.higher_is_better, unit=m.unit)
    return Evidence(absent)
