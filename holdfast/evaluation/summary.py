"""One line per encoder: clean, corrupted, worst case, drift. One is called best only where paired intervals agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from holdfast.evaluation import statistics
from holdfast.evaluation.curves import (
    OUTCOMES,
    Curve,
    Outcome,
    Subject,
    corruption_errors,
    curve,
    mean_over_corruptions,
    norm_name,
    subjects,
)
from holdfast.evaluation.dense_summary import rows as dense_rows
from holdfast.evaluation.paired import Evidence, difference
from holdfast.evaluation.rows import interval, radius, value
from holdfast.evaluation.statistics import Difference, cross
from holdfast.evaluation.store import Run
from holdfast.records import Metric

Array = npt.NDArray[Any]
SHOWN_RADII = 4


_ERRORS = {
    "mean15": (
        "mean error (15)",
        "mean error over the 15 corruptions of the benchmark at severities 1 to 5, not divided; lower is better",
        "mean_error_15",
    ),
    "mean19": (
        "mean error (19)",
        "the same with the four validation corruptions; lower is better",
        "mean_error_19",
    ),
    "mce": ("mCE", "mean corruption error over 15 corruptions, AlexNet = 100; lower is better", "mce"),
}


class Column(NamedTuple):
    """One measurement of all encoders.

    Attributes:
        key: clean, corrupted, mean15, mean19, mce, worst, half, clean_depth..., worst_depth..., knn, quantile, flips.
        title: in words.
        about: what it is, for a tooltip or a footnote.
        cells: one per subject, in their order.
        best: place of the one that is better than every other with an interval that excludes 0; None = none is.
        against_first: each subject minus the first, paired; None where no image is common or a value is missing.
        eps: radius that the column belongs to; 0 = none.
        norm: of that radius.
    """

    key: str
    title: str
    about: str
    cells: tuple[Evidence, ...]
    best: int | None
    against_first: tuple[Difference | None, ...]
    eps: float = 0.0
    norm: str = ""


def summary(seen: Sequence[Subject]) -> list[Column]:
    """The columns that at least one encoder has a number for."""
    columns = [
        _column("clean", "clean accuracy", "of the images as they are", [(s, _clean(s, "correct")) for s in seen]),
        _column(
            "within",
            "clean accuracy, own classes",
            "largest logit among the classes of the set alone (ImageNet-A and -R: 200 of 1000)",
            [(s, _clean(s, "correct_within")) for s in seen],
        ),
        _column(
            "corrupted",
            "corrupted accuracy",
            "mean over corruptions of the mean over severities",
            [(s, _corrupted(s)) for s in seen],
        ),
        *(
            _column(key, title, about, [(s, _errors(s, name)) for s in seen])
            for key, (title, about, name) in _ERRORS.items()
        ),
    ]
    for norm in _norms(seen):
        columns += _attacked(seen, norm)
    for row in dense_rows(seen, lambda task, norm: radii(seen, task, norm)):
        each = list(zip(seen, row.cells))
        columns.append(_column(row.key, row.title, row.about, each, eps=row.eps, norm=row.norm))
    columns.append(
        _column(
            "knn",
            "kNN accuracy",
            "of clean embeddings, 20 neighbours",
            [(s, _clean(s, "knn_correct")) for s in seen],
        )
    )
    for norm in _norms(seen):
        columns += _drifted(seen, norm)
    return [c for c in columns if any(len(cell.ids) for cell in c.cells)]


def table(run: Run) -> Table:
    """The summary of a run as a rich table: measurements down, encoders across, failed cells below."""
    seen = subjects([run])
    failed = f"failed cells: {len(run.failed)}" if run.failed else None
    drawn = Table(title=run.name, caption=failed)
    drawn.add_column("")
    for subject in seen:
        drawn.add_column(Text(subject.name), justify="right")
    for column in summary(seen):
        drawn.add_row(column.title, *(_shown(cell, column, at) for at, cell in enumerate(column.cells)))
    return drawn


def _shown(cell: Evidence, column: Column, at: int) -> Text:
    number = Text(cell.text or value(cell.metric, column.norm), style="bold" if column.best == at else "")
    return (
        number.append(f"\n{interval(cell.metric, column.norm)} n = {cell.metric.n}", "dim") if cell.metric.n else number
    )


def radii(subjects: Sequence[Subject], task: str, norm: str, *, most: int = SHOWN_RADII) -> list[float]:
    """Radii that every attacked encoder has, the largest among them, at most `most`."""
    each = [{r.cell.attack.eps for r in s.attacked(task, norm) if r.cell.attack} for s in subjects]
    held = [eps for eps in each if eps]
    common = sorted(set.intersection(*held)) if held else []
    return common[-most:]


def _column(  # parameters: a column is its heading, its subjects, and the radius it belongs to
    key: str, title: str, about: str, each: Sequence[tuple[Subject, Evidence]], *, eps: float = 0.0, norm: str = ""
) -> Column:
    cells = tuple(cell._replace(images=subject.images) for subject, cell in each)
    return Column(key, title, about, cells, _best(cells), tuple(difference(c, cells[0]) for c in cells), eps, norm)


def _best(cells: Sequence[Evidence]) -> int | None:
    ranks = {at: cell.rank for at, cell in enumerate(cells)}
    known = {at: rank for at, rank in ranks.items() if rank is not None}
    if len(known) < 2:
        return None
    up = next(cells[at].metric.higher_is_better for at in known)
    best = max(known, key=lambda at: known[at] if up else -known[at])
    for other in known:
        if other == best:
            continue
        gap = difference(cells[best], cells[other])
        if gap is None or not (gap.low > 0 if up else gap.high < 0):
            return None
    return best


def _clean(subject: Subject, name: str) -> Evidence:
    outcome = OUTCOMES[name]
    result = subject.clean(outcome.task)
    held = subject.run.outcomes(result.id) if result is not None else {}
    if name not in held:
        return _nothing(outcome, f"no clean cell with {outcome.title}")
    return Evidence(statistics.mean(outcome.metric, held[name]), held["id"], held[name])


def _corrupted(subject: Subject) -> Evidence:
    ids, values = mean_over_corruptions(subject, OUTCOMES["correct"])
    if len(ids) == 0:
        return _nothing(OUTCOMES["correct"], "no corruption was judged by classification")
    return Evidence(statistics.mean("corrupted_accuracy", values), ids, values)


def _errors(subject: Subject, name: str) -> Evidence:
    ids, found = corruption_errors(subject)
    return Evidence(found.metrics[name], *((ids, found.parts[name]) if name in found.parts else ()))


def _attacked(subjects: Sequence[Subject], norm: str) -> list[Column]:
    outcome = OUTCOMES["correct"]
    curves = [curve(s, outcome, norm) for s in subjects]
    columns = [
        _column(
            "worst",
            f"worst-case accuracy at {ball_name(eps, norm)}",
            f"accuracy left after every attack of radius up to {ball_name(eps, norm)}, per image",
            [(s, _at(c, eps)) for s, c in zip(subjects, curves)],
            eps=eps,
            norm=norm,
        )
        for eps in radii(subjects, "classification", norm)
    ]
    half = _column(
        "half",
        f"half-accuracy radius ({norm_name(norm)})",
        "radius at which the worst case falls to half of clean accuracy, interpolated; further is better",
        [(s, _half(c)) for s, c in zip(subjects, curves)],
        norm=norm,
    )
    return [*columns, half]


def _drifted(subjects: Sequence[Subject], norm: str) -> list[Column]:
    shown = radii(subjects, "embedding", norm, most=1)
    return [
        _column(
            key,
            f"{OUTCOMES[name].title} at {ball_name(eps, norm)}",
            f"worst case over attacks of radius up to {ball_name(eps, norm)}; lower is better",
            [(s, _at(curve(s, OUTCOMES[name], norm), eps)) for s in subjects],
            eps=eps,
            norm=norm,
        )
        for eps in shown
        for key, name in (("quantile", "quantile"), ("flips", "flip"))
    ]


def _at(found: Curve, eps: float) -> Evidence:
    if found.reason:
        return _nothing(found.outcome, found.reason)
    point = next((p for p in found.points if p.eps == eps), None)
    if point is None:
        return _nothing(found.outcome, "this radius was not measured")
    return Evidence(point.worst, found.ids, found.running[eps])


def _half(found: Curve) -> Evidence:
    if found.reason:
        return Evidence(Metric(name="half_radius", reason=found.reason))
    crossing = statistics.crossing(found.running)
    eps = np.array(sorted(found.running))
    values = np.stack([found.running[float(e)] for e in eps]).astype(np.float64)
    largest = float(eps[-1])
    text = ""
    metric = Metric(name="half_radius", n=crossing.n, unit="pixel units", reason=crossing.reason or "beyond the grid")
    if crossing.value is not None and crossing.low is not None:
        ends = f"bootstrap {statistics.RESAMPLES}" + (", cut at the largest radius" if crossing.high is None else "")
        metric = Metric(
            name="half_radius",
            value=crossing.value,
            n=crossing.n,
            low=crossing.low,
            high=largest if crossing.high is None else crossing.high,
            unit="pixel units",
            interval=ends,
        )
    elif values[0].any():
        above = values[-1].mean() > values[0].mean() / 2
        text = f"above {radius(largest, found.norm)}" if above else f"below {radius(float(eps[1]), found.norm)}"
    return Evidence(
        metric, found.ids, values, lambda means: np.array([min(cross(eps, m), largest) for m in means]), text
    )


def _nothing(outcome: Outcome, reason: str) -> Evidence:
    return Evidence(
        Metric(name=outcome.metric, reason=reason, higher_is_better=outcome.worse == "lower", unit=outcome.unit)
    )


def _norms(subjects: Sequence[Subject]) -> list[str]:
    return [norm for norm in ("linf", "l2", "l1") if any(norm in s.norms() for s in subjects)]


def ball_name(eps: float, norm: str) -> str:
    """4/255 for Linf, which is the usual one; L2 0.5."""
    return radius(eps, norm) if norm == "linf" else f"{norm_name(norm)} {radius(eps, norm)}"
