"""What a record says against the outcomes of its images: all of them, kept or not, and without any model.

Images that were not kept cannot be judged anew. Their numbers can be held against each other: a metric is a function of
the outcomes' means, an image is right where it is seen as what it is, and no attack leaves its ball. Like the verifier,
this file uses nothing of `holdfast.attacks` or `holdfast.tasks`: what belongs to what is written down here again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.evaluation.statistics import wilson
from holdfast.records import Cell, Metric, Result

Arrays = Mapping[str, npt.NDArray[np.generic]]
Doubles = npt.NDArray[np.float64]

IN_BALL = 1e-6
EXACT = 1e-9
"""A mean of the same numbers differs by less; a function of such means, by less than `ROUNDED`."""
ROUNDED = 1e-6

MEANS = {
    "accuracy": "correct",
    "accuracy_within": "correct_within",
    "loss": "loss",
    "cosine_drift": "cosine",
    "l2_drift": "l2",
    "quantile": "quantile",
    "neighbour_flips": "flip",
    "breakaway": "breakaway",
    "neighbours_kept": "kept",
    "knn_accuracy": "knn_correct",
    "target_reached": "target_reached",
    "goal_reached": "goal_reached",
    "goal_distance": "goal_distance",
    "goal_quantile": "goal_quantile",
    "goal_ratio": "goal_ratio",
    "cam_drift": "cam_drift",
    "ssim": "ssim",
    "psnr": "psnr",
}
"""Metrics that are means, with the outcomes that they are means of."""
DEPTHS = ("rmse", "abs_rel", "sq_rel", "log10", "rmse_log", "silog", "delta1", "delta2", "delta3")
_FORMS = {
    "_pooled_scaled": ("scaled", True),
    "_pooled": ("errors", True),
    "_scaled": ("scaled_values", False),
    "": ("values", False),
}


class _Again(NamedTuple):
    """A metric made again: of which outcomes, its value (NaN = there is none), and how far a right one may be off."""

    column: str
    value: float
    within: float


def contradictions(result: Result, outcomes: Arrays) -> list[str]:
    """Where the record of a cell and its outcomes, or two of its outcomes, cannot both be true.

    Metrics that this version does not know are passed over.

    Args:
        result: of a cell that is done.
        outcomes: of all of its images, arrays [n, ...] under their names.

    Returns:
        One sentence each, which names the column; empty = nothing contradicts.
    """
    bad = malformed(outcomes)
    if bad:
        return bad
    return [*_of_metrics(result, outcomes), *_of_verdicts(outcomes), *_of_reach(result.cell, outcomes)]


def malformed(outcomes: Arrays) -> list[str]:
    """What keeps arrays from being outcomes: other lengths, no ids, no numbers. One sentence each; empty = nothing.

    Args:
        outcomes: of a cell, under their names.
    """
    if "id" not in outcomes or outcomes["id"].ndim != 1:
        return ["its outcomes do not name their images"]
    n = len(outcomes["id"])
    ragged = [name for name, part in outcomes.items() if part.ndim == 0 or len(part) != n]
    odd = [name for name, part in outcomes.items() if name != "id" and part.dtype.kind not in "biuf"]
    return [f"{name} is not one number or more for each of {n} images" for name in dict.fromkeys(ragged + odd)]


# -- metrics -----------------------------------------------------------------------------------------------------------


def _of_metrics(result: Result, outcomes: Arrays) -> Iterator[str]:
    classes = [metric.name for metric in result.metrics if metric.name.startswith("iou/")]
    for metric in result.metrics:
        if metric.value is None:
            continue
        place = classes.index(metric.name) if metric.name in classes else -1
        again = _again(metric.name, place, len(classes), result.cell.judge.task, outcomes)
        if again is not None:
            yield from _of_metric(metric, again, outcomes)


def _of_metric(metric: Metric, again: _Again, outcomes: Arrays) -> Iterator[str]:
    """One metric with a value; it is compared so that a number that is none contradicts everything."""
    assert metric.value is not None, "the caller looked"
    if again.column not in outcomes:
        yield f"{metric.name} is {metric.value:.9g} in the record, and {again.column} is not among the outcomes"
        return
    if not abs(metric.value - again.value) <= again.within * max(1.0, abs(again.value)):
        yield f"{metric.name} is {metric.value:.9g} in the record, and {again.value:.9g} by {again.column}"
    values = outcomes[again.column]
    if metric.n != len(values):
        yield f"{metric.name} is of {metric.n} images in the record, and {again.column} of {len(values)}"
    elif metric.interval == "wilson":
        ends = wilson(int(values.astype(bool).sum()), len(values))
        for name, known, end in zip(("low", "high"), (metric.low, metric.high), ends):
            if known is None or not abs(known - end) <= EXACT:
                yield f"the {name} end of {metric.name} is {known} in the record, and {end:.9g} by {again.column}"


def _again(name: str, place: int, classes: int, task: str, outcomes: Arrays) -> _Again | None:
    """The metric made again; None where it is not known how.

    Args:
        name: of the metric.
        place: of an `iou/...` among its like; -1 for all others.
        classes: how many of these there are.
        task: of the judge.
        outcomes: of all images.
    """
    if task == "segmentation":
        return _of_counts(name, place, classes, outcomes)
    if task == "depth":
        return _of_depth(name, outcomes)
    column = MEANS.get(name)
    if column is None:
        return None
    value = float(outcomes[column].astype(np.float64).mean()) if column in outcomes else math.nan
    return _Again(column, value, EXACT)


def _of_counts(name: str, place: int, classes: int, outcomes: Arrays) -> _Again | None:
    """Metrics of segmentation from counts [n, K, 3]: pixels right, answered and labelled, of each class."""
    counts = outcomes.get("counts")
    if counts is None or counts.ndim != 3 or counts.shape[2] != 3:
        return _Again("counts", math.nan, ROUNDED)
    right, answered, labelled = counts.astype(np.float64).sum(axis=0).T
    iou, recall = _shares(right, answered + labelled - right), _shares(right, labelled)
    if place >= 0:
        return _Again("counts", float(iou[place]), ROUNDED) if classes == len(iou) else None
    known = {
        "miou": _mean(iou),
        "mean_class_recall": _mean(recall),
        "pixel_accuracy": float(right.sum() / labelled.sum()) if labelled.sum() > 0 else math.nan,
    }
    return _Again("counts", known[name], ROUNDED) if name in known else None


def _of_depth(name: str, outcomes: Arrays) -> _Again | None:
    """Metrics of depth: means over images of their own values [n, 10], or of all pixels' errors [n, 10] together."""
    end = next(end for end in _FORMS if name.endswith(end))
    column, pooled = _FORMS[end]
    quantity = name.removesuffix(end)
    if quantity not in DEPTHS:
        return None
    held = outcomes.get(column)
    if held is None or held.shape[1:] != (len(DEPTHS) + 1,):
        return _Again(column, math.nan, ROUNDED)
    sums = held.astype(np.float64).sum(axis=0)
    count = sums[0] if pooled else sums[-1]
    if not count > 0:
        return _Again(column, math.nan, ROUNDED)
    value = _pooled(sums[1:] / count)[quantity] if pooled else float(sums[DEPTHS.index(quantity)] / count)
    return _Again(column, value, ROUNDED)


def _pooled(means: Doubles) -> dict[str, float]:
    """Metrics of depth from means over pixels: squared, relative, squared relative, log10, squared log, log, deltas."""
    squared, relative, squared_relative, log10, log_squared, log = means[:6].tolist()
    silog = 100 * math.sqrt(max(log_squared - log**2, 0.0))
    first = (math.sqrt(squared), relative, squared_relative, log10, math.sqrt(log_squared), silog)
    return dict(zip(DEPTHS, (*first, *means[6:].tolist()), strict=True))


def _shares(part: Doubles, whole: Doubles) -> Doubles:
    shares: Doubles = np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)
    return shares


def _mean(values: Doubles) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else math.nan


# -- outcomes ----------------------------------------------------------------------------------------------------------


def _of_verdicts(outcomes: Arrays) -> Iterator[str]:
    """Verdicts against what was seen and, except on the boundary, against margins."""
    for which in ("", "clean_"):
        correct, seen = f"{which}correct", f"{which}prediction"
        if {correct, seen, "label"} <= set(outcomes):
            right = outcomes[seen] == outcomes["label"]
            yield from _where(outcomes[correct].astype(bool) != right, outcomes, f"{correct} contradicts {seen}, label")
    if {"correct", "margin"} <= set(outcomes):
        margin = outcomes["margin"].astype(np.float64)
        wrong = (outcomes["correct"].astype(bool) != (margin <= 0)) & (margin != 0)
        yield from _where(wrong, outcomes, "correct contradicts margin")


def _of_reach(cell: Cell, outcomes: Arrays) -> Iterator[str]:
    attack = cell.attack
    if attack is None or not attack.eps or "attack_norm" not in outcomes:
        return
    inside = outcomes["attack_norm"].astype(np.float64) <= attack.eps + IN_BALL * max(1.0, attack.eps)
    yield from _where(~inside, outcomes, f"attack_norm is above the {attack.norm} radius {attack.eps:.6g}")


def _where(wrong: npt.NDArray[np.bool_], outcomes: Arrays, what: str) -> Iterator[str]:
    at = np.flatnonzero(wrong)
    if len(at):
        yield f"{what} of {len(at)} of {len(wrong)} images, the first {outcomes['id'][at[0]]}"
