"""Tasks that answer for every pixel, read over epsilon: mIoU, accuracies and depth errors, clean and worst case.

A metric that is a mean over images has its worst case image by image. mIoU is a ratio of sums over all images, so that
the image's own worst attack need not be the set's: it has a selection of its own (`dense_worst`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.evaluation.attack_names import radius
from holdfast.evaluation.curves import Subject, families, norm_name
from holdfast.evaluation.dense_worst import worst_miou
from holdfast.evaluation.measuring import measured
from holdfast.evaluation.statistics import aligned
from holdfast.records import Metric, Result
from holdfast.tasks.depth_errors import MEASURES as DEPTH
from holdfast.tasks.segmentation import MEASURES as SEGMENTATION
from holdfast.tasks.segmentation import iou_measures
from holdfast.tasks.task import Measure

Array = npt.NDArray[Any]
TASKS: dict[str, tuple[Measure, ...]] = {"segmentation": SEGMENTATION, "depth": DEPTH}
LEADING: dict[str, str] = {"segmentation": "miou", "depth": "rmse"}
"""The metric that a task is known by."""
TITLES = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_class_recall": "mean class recall",
    "rmse": "depth RMSE",
    "abs_rel": "depth AbsRel",
    "delta1": "depth delta 1",
}


class Point(NamedTuple):
    """One epsilon: what the attacks at this radius alone left, and what all up to it left."""

    eps: float
    raw: Metric
    worst: Metric


class Curve(NamedTuple):
    """A metric over epsilon.

    Attributes:
        subject: name of the encoder.
        task: segmentation or depth.
        metric: one of the task's.
        attack: in words.
        norm: of the ball.
        ids: of the images that all cells have in common.
        points: radii ascending, 0 = clean.
        chosen: outcomes of the worst case, [n, ...] by epsilon.
        reason: why there is no curve.
    """

    subject: str
    task: str
    metric: str
    attack: str
    norm: str
    ids: Array = np.array([])
    points: tuple[Point, ...] = ()
    chosen: Mapping[float, Array] = {}
    reason: str = ""


def measure_of(task: str, metric: str) -> Measure:
    """What a task says of one of its metrics."""
    return next(m for m in TASKS[task] if m.name == metric)


def through(subject: Subject, task: str, norm: str, head: str = "") -> list[Result]:
    """Attacked cells of a dense task on clean images, of one norm; `head` = through that head alone."""
    found = subject.attacked(task, norm)
    return [r for r in found if r.cell.attack is not None and head in ("", r.cell.attack.through)]


def curve(subject: Subject, task: str, metric: str, norm: str, *, attack: str = "", head: str = "") -> Curve:
    """A dense metric over epsilon.

    Args:
        subject: the encoder.
        task: segmentation or depth.
        metric: one of the task's measures.
        norm: of the balls.
        attack: as `curves.families` names it; empty = the worst case over all.
        head: attacks through this head alone (embedding, segmentation, depth); empty = all.
    """
    m = measure_of(task, metric)
    results = through(subject, task, norm, head)
    if attack:
        results = families(results).get(attack, [])
    nothing = Curve(subject.name, task, metric, attack or "worst case over all attacks", norm)
    clean = subject.clean(task)
    if clean is None or not results:
        return nothing._replace(reason=f"no {'attack on' if results == [] else 'clean image of'} {subject.name}")
    each = [(0.0, clean), *((r.cell.attack.eps, r) for r in results if r.cell.attack is not None)]
    held = [(eps, subject.run.outcomes(r.id)) for eps, r in each]
    ids, columns = aligned([(part["id"], part[m.outcome]) for _, part in held])
    if len(ids) == 0:
        return nothing._replace(reason=f"clean and attacked cells of {subject.name} have no image in common")
    by_eps: dict[float, list[Array]] = {}
    for (eps, _), values in zip(held, columns):
        by_eps.setdefault(eps, []).append(values)
    points, chosen = [], {}
    before: list[Array] = []
    for eps in sorted(by_eps):
        alone, up_to = worst(m, by_eps[eps]), worst(m, [*before, *by_eps[eps]])
        before, chosen[eps] = [up_to], up_to
        points.append(Point(eps, _metric(m, alone), _metric(m, up_to)))
    return nothing._replace(ids=ids, points=tuple(points), chosen=chosen)


def worst(m: Measure, outcomes: Sequence[Array]) -> Array:
    """Per image, which of several outcomes [n, ...] of the same images makes this metric worst: [n, ...].

    Args:
        m: the metric; mIoU is chosen by its own selection, others image by image.
        outcomes: of some attacks.
    """
    if len(outcomes) == 1:
        return outcomes[0]
    stacked = np.stack(list(outcomes))
    if m.name == "miou":
        at = worst_miou(stacked)
    else:
        assert m.of is not None, "every dense metric is a function of sums"
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.asarray(m.of(stacked.astype(np.float64)))
        lowest: Literal[1, -1] = 1 if m.higher_is_better else -1
        at = np.argmin(np.where(np.isnan(each), np.inf, lowest * each), axis=0)
    picked: Array = stacked[at, np.arange(stacked.shape[1])]
    return picked


def _metric(m: Measure, outcomes: Array) -> Metric:
    return measured((m,), {m.outcome: outcomes})[0]


class Joint(NamedTuple):
    """One condition of a dense task: what it is, and the metrics that the page shows, None = not measured."""

    condition: str
    metrics: tuple[Metric | None, ...]


def joint(subject: Subject, task: str, metrics: Sequence[str]) -> list[Joint]:
    """Clean, corrupted (each corruption over its severities), and attacked through every head at each radius.

    Args:
        subject: the encoder.
        task: segmentation or depth.
        metrics: of the task.
    """
    clean = subject.clean(task)
    found = [Joint("clean", tuple(clean.metric(m) for m in metrics))] if clean is not None else []
    corrupted = subject.corrupted(task)
    for name in dict.fromkeys(r.cell.corruption.name for r in corrupted if r.cell.corruption):
        results = [r for r in corrupted if r.cell.corruption and r.cell.corruption.name == name]
        found.append(Joint(f"{name}, severities pooled", tuple(_pooled(subject, task, m, results) for m in metrics)))
    for norm in subject.norms():
        for head in ("embedding", "segmentation", "depth", "classification"):
            drawn = [curve(subject, task, m, norm, head=head) for m in metrics]
            for eps in dict.fromkeys(p.eps for c in drawn for p in c.points if p.eps):
                at = tuple(next((p.worst for p in c.points if p.eps == eps), None) for c in drawn)
                found.append(Joint(f"through {head}, {norm_name(norm)} {radius(eps, norm)}", at))
    return found


def per_class(subject: Subject) -> dict[str, tuple[Metric, Metric]]:
    """IoU by class: clean, and in the worst case for mIoU at the largest radius; empty without attacks.

    A class that never occurs is left out.
    """
    clean = subject.clean("segmentation")
    drawn = [curve(subject, "segmentation", "miou", norm) for norm in subject.norms()]
    known = [c for c in drawn if not c.reason]
    if clean is None or not known:
        return {}
    counts = known[0].chosen[max(known[0].chosen)]
    names = [m.name.removeprefix("iou/") for m in clean.metrics if m.name.startswith("iou/")]
    before = measured(iou_measures(names), {"counts": known[0].chosen[0.0]})
    after = measured(iou_measures(names), {"counts": counts})
    return {n: (a, b) for n, a, b in zip(names, before, after, strict=True) if a.value is not None}


def _pooled(subject: Subject, task: str, metric: str, results: Sequence[Result]) -> Metric:
    """A metric over the images of several cells together, each image's outcomes averaged over them."""
    m = measure_of(task, metric)
    held = [subject.run.outcomes(r.id) for r in results]
    _, columns = aligned([(part["id"], part[m.outcome]) for part in held])
    return _metric(m, np.stack(columns).mean(0, dtype=np.float64))
