"""Charts as inline SVG, by matplotlib without a window: legible in light and dark, the same bytes for the same numbers.

Colours are named by sentinels while matplotlib draws and become CSS variables afterwards: the page decides them.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from holdfast.evaluation import dense_curves
from holdfast.evaluation.curves import Curve, norm_name
from holdfast.evaluation.rows import full, radius
from holdfast.records import Metric

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
MOST_TICKS = 9
TITLE_WIDTH = 120
"""Characters of a title that is as wide as the page."""

INK, FAINT, GREY, PAGE = "#fd0001", "#fd0002", "#fd0003", "#fd0004"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
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
        grey: how many of the last rows are published numbers, drawn in grey.
    """

    svg: str
    alt: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    grey: int = 0


class Panel(NamedTuple):
    """Curves under one title; at most one per encoder."""

    title: str
    curves: Sequence[Curve] | Sequence[dense_curves.Curve]


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
    with matplotlib.rc_context(STYLE):
        rows = -(-len(panels) // columns)
        size = (9.2, 3.5) if columns == 1 else (9.2, 2.6 * rows)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.remove()
        room = TITLE_WIDTH // columns
        for panel, axis in zip(panels, axes):
            # Broken by hand: the page's own font may be wider than the one that matplotlib measures with.
            title = textwrap.fill(panel.title, room)
            _curves(axis, panel._replace(title=title), places, marks or {})
        svg = element(figure, alt)
    table = tuple(_point_rows(panels))
    headings = ("encoder", "attack", "radius", "this attack and radius alone", "worst up to this radius")
    return Chart(svg, alt, caption, headings, table)


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
        line(axis, [p.eps * scale for p in c.points], [p.worst for p in c.points], places[c.subject])
    fractions(axis, [p.worst for c in drawn for p in c.points])
    axis.set_title(panel.title, loc="left")
    ticks = radii[:: max(1, -(-len(radii) // MOST_TICKS))]
    axis.set_xticks(ticks, [f"{r:.3g}" for r in ticks])
    axis.set_xlabel(
        f"radius, {norm_name(norm)}" + (", in /255" if norm == "linf" else "") + (" (logarithmic)" if wide else "")
    )
    for eps, text in marks.items() if norm == "linf" else ():
        if positive and eps * 255 <= positive[-1] + 1e-9:
            axis.axvline(eps * 255, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
            axis.annotate(
                text, (eps * 255, 1), xycoords=("data", "axes fraction"), ha="right", va="top", rotation=90, fontsize=7
            )


def line(
    axis: Any, x: Sequence[float], metrics: Sequence[Metric], place: int, *, small: bool = False, band: bool = True
) -> None:
    """One encoder's line, with its 95 % band where asked for, in the colour, marker and dashes of its place.

    Points without a number are left out.
    """
    known = [(at, m) for at, m in zip(x, metrics) if m.value is not None and m.low is not None and m.high is not None]
    if not known:
        return
    at, found = [k[0] for k in known], [k[1] for k in known]
    style = DASHES[place // len(PALETTE) % len(DASHES)]
    if band:
        ends = [m.low for m in found], [m.high for m in found]
        axis.fill_between(at, *ends, color=colour(place), alpha=0.16, linewidth=0)
    axis.plot(
        at,
        [m.value for m in found],
        color=colour(place),
        marker=MARKERS[shape(place)],
        markersize=2.6 if small else 4.2,
        linewidth=1.1 if small else 1.6,
        linestyle=style,
    )


def fractions(axis: Any, metrics: Sequence[Metric]) -> None:
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


def element(figure: Figure, alt: str) -> str:
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
    for sentinel, name in ((INK, "--ink"), (FAINT, "--rule"), (GREY, "--grey"), (PAGE, "--page")):
        text = text.replace(sentinel, f"var({name})")
    return text
