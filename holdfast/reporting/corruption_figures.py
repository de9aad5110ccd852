"""The charts of the corruption study: over severity, per family, and mCE beside published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from holdfast.evaluation.corruption_errors import non_monotone, of_rates
from holdfast.evaluation.curves import Profile
from holdfast.evaluation.published import ALEXNET_ERRORS, FAMILIES, Published, Study
from holdfast.evaluation.rows import full
from holdfast.records import Metric
from holdfast.reporting.figures import GREY, INK, MARKERS, PAGE, STYLE, Chart, colour, element, fractions, line, shape
from holdfast.reporting.wording import sentence

NOT_MONOTONE = non_monotone(ALEXNET_ERRORS)
_SMALL = {**STYLE, "font.size": 7.5, "axes.titlesize": 8, "axes.labelsize": 7.5}
_HATCH = "////"
_BANDS = 8


class Bar(NamedTuple):
    """One bar of mCE.

    Attributes:
        name: of the encoder.
        value: mCE, a fraction.
        low: lower end of the 95 % interval; None = none is known.
        high: upper end.
        place: of an encoder of this page; None = a published number, grey.
        other: whether it was not measured as the published figures of ImageNet-C are: hatched.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    place: int | None
    other: bool


def over_severity(profiles: Mapping[str, Mapping[str, Profile]], places: Mapping[str, int], *, title: str) -> Chart:
    """One small panel per corruption: an outcome over severities 0 to 5.

    Args:
        profiles: by encoder, then by corruption.
        places: of the encoders in the page, which decide colour and marker.
        title: of the outcome.
    """
    names = list(dict.fromkeys(name for by in profiles.values() for name in by))
    columns = 5 if len(names) > 4 else max(len(names), 3)
    rows = -(-len(names) // columns)
    alt = f"{title} over severity 0 to 5, one panel for each of {len(names)} corruptions; the table below has the data"
    banded = len(profiles) <= _BANDS
    with matplotlib.rc_context(_SMALL):
        figure = Figure(figsize=(9.2, 1.75 * rows + 0.3), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axis in axes[len(names) :]:
            axis.remove()
        for at, (name, axis) in enumerate(zip(names, axes)):
            for subject, by in profiles.items():
                if name in by:
                    found = by[name].severities
                    line(axis, list(found), list(found.values()), places[subject], small=True, band=banded)
            axis.set_title(name.replace("_", " ") + (" *" if name in NOT_MONOTONE else ""))
            axis.set_xticks(range(6))
            fractions(axis, [m for by in profiles.values() if name in by for m in by[name].severities.values()])
            if at >= len(names) - columns:
                axis.set_xlabel("severity")
                axis.tick_params(labelbottom=True)
        svg = element(figure, alt)
    table = tuple(
        (subject, name, str(severity), full(metric))
        for subject, by in profiles.items()
        for name, profile in by.items()
        for severity, metric in profile.severities.items()
    )
    bands = "with 95 % bands" if banded else "without the 95 % bands of so many encoders: they are in the table"
    caption = f"{sentence(title)} {bands}; severity 0 is the clean images."
    if any(name in NOT_MONOTONE for name in names):
        caption += (
            " * Not monotone by design: AlexNet too errs less at severity 3 than at 2 "
            "(Hendrycks and Dietterich 2019, ImageNet-C)."
        )
    return Chart(svg, alt, caption, ("encoder", "corruption", "severity", title), table)


def family_bars(means: Mapping[str, Mapping[str, Metric]], places: Mapping[str, int]) -> Chart:
    """Mean error of each family, one bar per encoder with its interval.

    Args:
        means: by encoder, then by family; absent with a reason.
        places: as in `over_severity`.
    """
    shown = [name for name in FAMILIES if any(by[name].value is not None for by in means.values())]
    alt = "Mean error per family of corruptions, lower is better: " + "; ".join(
        f"{name}: " + ", ".join(f"{who} {_percent(by[name])}" for who, by in means.items()) for name in shown
    )
    width = 0.8 / len(means)
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "y"}):
        figure = Figure(figsize=(9.2, 3.1), layout="constrained")
        axis = figure.subplots()
        for nth, (who, by) in enumerate(means.items()):
            for at, name in enumerate(shown):
                _column(axis, at - 0.4 + width * (nth + 0.5), by[name], places[who], width)
        axis.set_xticks(range(len(shown)), [f"{name} ({len(FAMILIES[name])})" for name in shown])
        axis.tick_params(axis="x", length=0)
        axis.set_ylabel("mean error")
        fractions(axis, [by[name] for by in means.values() for name in shown if by[name].value is not None])
        svg = element(figure, alt)
    table = tuple((who, name, full(metric)) for who, by in means.items() for name, metric in by.items())
    caption = (
        "Mean over the corruptions of a family (how many, in brackets) and severities 1 to 5, with 95 % intervals; a "
        "family of which a part is missing has no bar. Extra are the four validation corruptions."
    )
    return Chart(svg, alt, caption, ("encoder", "family", "mean error"), table)


def beside_published(
    bars: Sequence[Bar], *, caption: str, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], grey: int
) -> Chart:
    """mCE as bars, the best on top: ours in the encoders' colours, published ones in grey, AlexNet a line at 100.

    Args:
        bars: in any order.
        caption: below the chart.
        headings: of the table of the data.
        rows: of that table; the last `grey` of them are published ones.
        grey: how many.
    """
    ordered = sorted(bars, key=lambda bar: -bar.value)
    alt = "mCE, lower is better, AlexNet is 100: " + ", ".join(f"{b.name} {100 * b.value:.1f}" for b in ordered)
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(9.2, 0.27 * len(bars) + 0.8), layout="constrained")
        axis = figure.subplots()
        for at, bar in enumerate(ordered):
            edge = GREY if bar.place is None else colour(bar.place)
            look: dict[str, Any] = {"facecolor": "none", "edgecolor": edge, "hatch": _HATCH} if bar.other else {}
            axis.barh(at, 100 * bar.value, height=0.66, linewidth=0.8, **(look or {"color": edge}))
            if bar.low is not None and bar.high is not None:
                axis.plot([100 * bar.low, 100 * bar.high], [at, at], color=INK, linewidth=1.1)
            end = 100 * (bar.value if bar.high is None else bar.high)
            behind = {"facecolor": PAGE, "edgecolor": "none", "pad": 1.2}
            axis.text(end + 1.2, at, f"{100 * bar.value:.1f}", va="center", bbox=behind)
        axis.axvline(100, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axis.text(100, len(bars) - 0.35, "AlexNet", ha="center", va="bottom", fontsize=8)
        axis.set_yticks(range(len(bars)), [bar.name for bar in ordered])
        axis.set_ylim(-0.6, len(bars) - 0.4)
        axis.set_xlabel("mCE (AlexNet = 100; lower is better)")
        axis.set_xlim(0, max(100.0, *(100 * (bar.value if bar.high is None else bar.high) for bar in bars)) * 1.09)
        svg = element(figure, alt)
    return Chart(svg, alt, caption, headings, tuple(rows), grey)


def published_bars(numbers: Sequence[Published], studies: Sequence[Study]) -> list[Bar]:
    """Grey bars of published mCE, and of the mCE that follows from published errors; hatched = not comparable."""
    found = [Bar(number.model, number.value, None, None, None, False) for number in numbers]
    return found + [
        Bar(study.title, of_rates(study.errors)["mce"], None, None, None, not study.comparable) for study in studies
    ]


def _column(axis: Any, x: float, metric: Metric, place: int, width: float) -> None:
    if metric.value is None:
        return
    axis.bar(x, metric.value, width=0.92 * width, color=colour(place), alpha=0.75, linewidth=0)
    if metric.low is not None and metric.high is not None:
        axis.plot([x, x], [metric.low, metric.high], color=INK, linewidth=1.1)
    axis.plot([x], [metric.value], color=INK, marker=MARKERS[shape(place)], markersize=4.2, linewidth=0)


def _percent(metric: Metric) -> str:
    return "absent" if metric.value is None else f"{100 * metric.value:.1f} %"
