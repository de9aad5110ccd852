"""Charts as inline SVG, by matplotlib without a window: legible in light and dark, the same bytes for the same numbers.

Colours are named by sentinels while matplotlib draws and become CSS variables afterwards: the page decides them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from holdfast.evaluation.curves import Curve, Profile, norm_name
from holdfast.evaluation.published import Published
from holdfast.evaluation.rows import full, radius
from holdfast.records import Metric
from holdfast.reporting.wording import sentence

# Okabe and Ito 2008, black left out: it has no counterpart on a dark page. Second value: on a dark page.
PALETTE = (
    ("#0072b2", "#4aa8e0"),
    ("#d55e00", "#f0803c"),
    ("#009e73", "#2fc79b"),
    ("#cc79a7", "#df9cc2"),
    ("#e69f00", "#e69f00"),
    ("#56b4e9", "#8fd0f5"),
    ("#a08a00", "#f0e442"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GLYPHS = ("\u25cf", "\u25a0", "\u25b2", "\u25c6", "\u25bc", "\u271a", "\u2716")
DASHES = ("-", "--", ":", "-.")

_INK, _FAINT, _GREY = "#fd0001", "#fd0002", "#fd0003"
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.minor.visible": False,
    "legend.frameon": False,
}


def shape(at: int) -> int:
    """Which marker and glyph the encoder at that place has; shifted each time that the colours begin again."""
    return (at + at // len(PALETTE)) % len(MARKERS)


class Chart(NamedTuple):
    """A chart with its data.

    Attributes:
        svg: one `<svg>` element, safe to put into a page.
        alt: what it shows, for who cannot see it.
        caption: below it.
        headings: of the table of its data.
        rows: of that table, as text.
    """

    svg: str
    alt: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Panel(NamedTuple):
    """Curves under one title; at most one per encoder."""

    title: str
    curves: Sequence[Curve]


def colour(at: int) -> str:
    """The sentinel of the encoder at that place: becomes `var(--m0)`, `var(--m1)`..."""
    return f"#fe00{at % len(PALETTE):02x}"


def over_radius(
    panels: Sequence[Panel],
    places: Mapping[str, int],
    *,
    alt: str,
    caption: str,
    columns: int = 1,
    marks: Mapping[float, str] | None = None,
) -> Chart:
    """Outcomes over epsilon with 95 % bands, one panel per title.

    Args:
        panels: what to draw.
        places: of the encoders in the page, which decide colour and marker.
        alt: in words.
        caption: below the chart.
        columns: panels in a row.
        marks: radii to mark in Linf panels, with what stands there.
    """
    with matplotlib.rc_context(_STYLE):
        rows = -(-len(panels) // columns)
        size = (9.2, 3.5) if columns == 1 else (9.2, 2.6 * rows)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.remove()
        for panel, axis in zip(panels, axes):
            _curves(axis, panel, places, marks or {})
        svg = _svg(figure, alt)
    table = tuple(_point_rows(panels))
    headings = ("encoder", "attack", "radius", "this attack and radius alone", "worst up to this radius")
    return Chart(svg, alt, caption, headings, table)


def over_severity(profiles: Mapping[str, Mapping[str, Profile]], places: Mapping[str, int], *, title: str) -> Chart:
    """One small panel per corruption: an outcome over severities 0 to 5.

    Args:
        profiles: by encoder, then by corruption.
        places: as in `over_radius`.
        title: of the outcome.
    """
    names = list(dict.fromkeys(name for by in profiles.values() for name in by))
    columns = 5 if len(names) > 4 else max(len(names), 3)
    rows = -(-len(names) // columns)
    alt = f"{title} over severity 0 to 5, one panel for each of {len(names)} corruptions; the table below has the data"
    with matplotlib.rc_context({**_STYLE, "font.size": 7.5, "axes.titlesize": 8, "axes.labelsize": 7.5}):
        figure = Figure(figsize=(9.2, 1.75 * rows + 0.3), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axis in axes[len(names) :]:
            axis.remove()
        for at, (name, axis) in enumerate(zip(names, axes)):
            for subject, by in profiles.items():
                if name in by:
                    found = by[name].severities
                    _line(axis, list(found), list(found.values()), places[subject], small=True)
            axis.set_title(name.replace("_", " "))
            axis.set_xticks(range(6))
            _fractions(axis, [m for by in profiles.values() if name in by for m in by[name].severities.values()])
            if at >= len(names) - columns:
                axis.set_xlabel("severity")
                axis.tick_params(labelbottom=True)
        svg = _svg(figure, alt)
    table = tuple(
        (subject, name, str(severity), full(metric))
        for subject, by in profiles.items()
        for name, profile in by.items()
        for severity, metric in profile.severities.items()
    )
    caption = f"{sentence(title)} with 95 % bands; severity 0 is the clean images."
    return Chart(svg, alt, caption, ("encoder", "corruption", "severity", title), table)


def corruption_errors(
    ours: Mapping[str, Metric], theirs: Sequence[Published], places: Mapping[str, int], *, source: str
) -> Chart:
    """mCE as bars, ours in the encoders' colours, published ones hatched in grey.

    Args:
        ours: mCE by encoder, with values.
        theirs: from papers.
        places: as in `over_radius`.
        source: of the errors that mCE divides by.
    """
    bars = [(name, metric.value or 0.0, colour(places[name])) for name, metric in ours.items()]
    bars += [(number.model, number.value, "") for number in theirs]
    bars.sort(key=lambda bar: -bar[1])
    alt = "mCE, lower is better: " + ", ".join(f"{name} {100 * v:.1f}" for name, v, _ in bars)
    with matplotlib.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(9.2, 0.27 * len(bars) + 0.6), layout="constrained")
        axis = figure.subplots()
        for at, (name, v, own) in enumerate(bars):
            look: dict[str, Any] = {"color": own} if own else {"facecolor": "none", "edgecolor": _GREY, "hatch": "////"}
            axis.barh(at, 100 * v, height=0.66, linewidth=0.8, **look)
            metric = ours.get(name) if own else None
            if metric is not None and metric.low is not None and metric.high is not None:
                axis.plot([100 * metric.low, 100 * metric.high], [at, at], color=_INK, linewidth=1.1)
            end = metric.high if metric is not None and metric.high is not None else v
            axis.text(100 * end + 1.5, at, f"{100 * v:.1f}", va="center")
        axis.set_yticks(range(len(bars)), [name for name, _, _ in bars])
        axis.set_xlabel("mCE (AlexNet = 100; lower is better)")
        axis.set_xlim(0, max([100 * v for _, v, _ in bars] + [100 * (m.high or 0) for m in ours.values()]) * 1.12)
        svg = _svg(figure, alt)
    rows = [(name, full(metric), "this run", source) for name, metric in ours.items()]
    rows += [(p.model, f"{100 * p.value:.1f}, no interval given", p.protocol, p.source) for p in theirs]
    caption = "Coloured: this run, with 95 % interval. Hatched grey: from papers, under the protocol in the table."
    return Chart(svg, alt, caption, ("encoder", "mCE", "protocol", "source"), tuple(rows))


def _curves(axis: Any, panel: Panel, places: Mapping[str, int], marks: Mapping[float, str]) -> None:
    drawn = [c for c in panel.curves if not c.reason]
    norm = drawn[0].norm if drawn else "linf"
    scale = 255.0 if norm == "linf" else 1.0
    radii = sorted({p.eps * scale for c in drawn for p in c.points})
    positive = [r for r in radii if r > 0]
    wide = bool(positive) and positive[-1] > 8 * positive[0] * 0.99
    if wide:
        first = positive[0]
        forth, back = lambda x: np.log2(1 + np.maximum(x, 0) / first), lambda y: first * (2.0**y - 1)
        axis.set_xscale("function", functions=(forth, back))
    for c in drawn:
        _line(axis, [p.eps * scale for p in c.points], [p.worst for p in c.points], places[c.subject])
    _fractions(axis, [p.worst for c in drawn for p in c.points])
    axis.set_title(panel.title, loc="left")
    axis.set_xticks(radii, [f"{r:.3g}" for r in radii])
    axis.set_xlabel(
        f"radius, {norm_name(norm)}" + (", in /255" if norm == "linf" else "") + (" (logarithmic)" if wide else "")
    )
    for eps, text in marks.items() if norm == "linf" else ():
        if positive and eps * 255 <= positive[-1] + 1e-9:
            axis.axvline(eps * 255, color=_GREY, linewidth=0.9, linestyle=(0, (1, 2)))
            axis.annotate(
                text, (eps * 255, 1), xycoords=("data", "axes fraction"), ha="right", va="top", rotation=90, fontsize=7
            )


def _line(axis: Any, x: Sequence[float], metrics: Sequence[Metric], place: int, *, small: bool = False) -> None:
    known = [(at, m) for at, m in zip(x, metrics) if m.value is not None and m.low is not None and m.high is not None]
    if not known:
        return
    at, found = [k[0] for k in known], [k[1] for k in known]
    style = DASHES[place // len(PALETTE) % len(DASHES)]
    axis.fill_between(at, [m.low for m in found], [m.high for m in found], color=colour(place), alpha=0.16, linewidth=0)
    axis.plot(
        at,
        [m.value for m in found],
        color=colour(place),
        marker=MARKERS[shape(place)],
        markersize=2.6 if small else 4.2,
        linewidth=1.1 if small else 1.6,
        linestyle=style,
    )


def _fractions(axis: Any, metrics: Sequence[Metric]) -> None:
    """The y axis from 0; shares in per cent up to 100."""
    if all(m.unit == "fraction" for m in metrics):
        axis.set_ylim(0, 1.02)
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    else:
        axis.set_ylim(bottom=0)


def _point_rows(panels: Sequence[Panel]) -> list[tuple[str, ...]]:
    return [
        (c.subject, c.attack, radius(p.eps, c.norm) if p.eps else "clean", full(p.raw), full(p.worst))
        for panel in panels
        for c in panel.curves
        for p in c.points
    ]


def _svg(figure: Figure, alt: str) -> str:
    """The figure as an element of a page: no ids of groups, no metadata, colours as CSS variables."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": alt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    view = re.search(r'viewBox="([^"]*)"', text)
    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="{view[1] if view else "0 0 1 1"}">'
    text = re.sub(r"^<svg[^>]*>", head.replace("\\", "\\\\"), text)
    text = re.sub(r"#fe00([0-9a-f]{2})", lambda found: f"var(--m{int(found[1], 16)})", text)
    for sentinel, name in ((_INK, "--ink"), (_FAINT, "--rule"), (_GREY, "--grey")):
        text = text.replace(sentinel, f"var({name})")
    return text
