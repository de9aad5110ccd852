"""The section on the steps of attacks: what the judges say of the iterates on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from holdfast.evaluation.curves import OUTCOMES, Subject, norm_name
from holdfast.evaluation.dense_curves import TITLES
from holdfast.evaluation.rows import full, radius
from holdfast.evaluation.step_curves import SHOWN, StepCurve, step_curves
from holdfast.reporting.figures import STYLE, Chart, element, fractions, line
from holdfast.reporting.sections import Section

CAPTION = (
    "Each point is an iterate that the attack passed through, at the largest radius that was traced ({n}), with its "
    "95 % band over resampled images; the table has every radius. All other numbers on this page are of the worst "
    "iterate of each image, so that no line here need end on them. A line that still moves at its end asks for more "
    "steps."
)
HEADINGS = ("encoder", "attack", "radius", "judged by", "step", "value")


def steps(seen: Sequence[Subject], places: Mapping[str, int]) -> list[Section]:
    """One section where attacks were traced, none where not."""
    panels = _panels(seen)
    if not panels:
        return []
    section = Section("Over the steps of an attack", "steps")
    section.charts.append(_chart(panels, seen, places))
    return [section]


def _panels(seen: Sequence[Subject]) -> dict[tuple[str, str, str], list[StepCurve]]:
    """By attack, judge and metric: the judge that the attack goes through, and the embedding's."""
    found: dict[tuple[str, str, str], list[StepCurve]] = {}
    for task, metrics in SHOWN.items():
        for metric in metrics:
            for curve in (c for s in seen for c in step_curves(s, task, metric)):
                if task in (curve.through, "embedding"):
                    found.setdefault((f"{curve.attack}, {norm_name(curve.norm)}", task, metric), []).append(curve)
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def _chart(
    panels: Mapping[tuple[str, str, str], list[StepCurve]], seen: Sequence[Subject], places: Mapping[str, int]
) -> Chart:
    columns, alt = 2, "metrics over the steps of attacks; the table below has the data"
    with matplotlib.rc_context(STYLE):
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(9.2, 2.6 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.remove()
        for ((attack, _, metric), curves), axis in zip(panels.items(), axes):
            largest = max(c.eps for c in curves)
            _draw(axis, [c for c in curves if c.eps == largest], places)
            axis.set_title(f"{_title(metric)}: {attack} {radius(largest, curves[0].norm)}", loc="left", fontsize=8.5)
        svg = element(figure, alt)
    table = tuple(
        (c.subject, c.attack, radius(c.eps, c.norm), f"{c.task}: {_title(c.metric)}", str(at), full(m))
        for curves in panels.values()
        for c in curves
        for at, m in zip(c.steps, c.metrics)
    )
    n = max(m.n for curves in panels.values() for c in curves for m in c.metrics)
    return Chart(svg, alt, CAPTION.format(n=f"n = {n} images"), HEADINGS, table)


def _draw(axis: Any, curves: Sequence[StepCurve], places: Mapping[str, int]) -> None:
    for c in curves:
        line(axis, c.steps, c.metrics, places[c.subject])
    fractions(axis, [m for c in curves for m in c.metrics])
    axis.set_xlabel("steps behind it")


def _title(metric: str) -> str:
    return TITLES.get(metric) or next(o.title for o in OUTCOMES.values() if o.metric == metric)
