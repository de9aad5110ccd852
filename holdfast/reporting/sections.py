"""The sections with charts: accuracy under attack, corruptions, mCE, embedding. What is absent says why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.evaluation.curves import OUTCOMES, Curve, Profile, Subject, curve, families, norm_name, profiles
from holdfast.evaluation.curves import corruption_errors as errors_of
from holdfast.evaluation.published import ALEXNET_SOURCE, Published, published
from holdfast.evaluation.rows import full, interval, value
from holdfast.reporting import figures
from holdfast.reporting.figures import Chart, Panel
from holdfast.reporting.wording import sentence, span


class Cell(NamedTuple):
    """One cell of a table: main text, small text, bold, tooltip, background 0 to 1 (None = none)."""

    text: str
    small: str = ""
    bold: bool = False
    hint: str = ""
    shade: float | None = None
    place: int | None = None


@dataclass
class Section:
    """A section of the page.

    Attributes:
        title: of it.
        key: anchor.
        lead: sentences before the charts.
        charts: each with its data.
        table: rows of cells, the first row the headings; drawn before the charts.
        absent: why something is not there.
        notes: after everything.
        numbers: published numbers, folded.
    """

    title: str
    key: str
    lead: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    table: list[list[Cell]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: list[Published] = field(default_factory=list)


def accuracy(seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    """Curves over epsilon: worst case over all attacks, then each attack; one pair of charts per norm."""
    section = Section("Accuracy under attack", "accuracy")
    outcome = OUTCOMES["correct"]
    sources = {r.cell.data.source for s in seen for r in s.results}
    for norm in _norms(seen):
        worst = [curve(s, outcome, norm) for s in seen]
        section.absent += [c.reason for c in worst if c.reason]
        if all(c.reason for c in worst):
            continue
        names = list(dict.fromkeys(name for s in seen for name in families(s.attacked("classification", norm))))
        kind = norm_name(norm)
        caption = (
            f"Share of images still classified correctly after every {kind} attack up to the radius, with 95 % bands "
            f"({_images(worst)}). An image counts as lost from the first radius at which any attack found an error."
        )
        section.charts.append(
            figures.over_radius(
                [Panel(f"Worst case over {len(names)} attack{'s' if len(names) > 1 else ''}, {kind}", worst)],
                places,
                alt=f"Accuracy over the radius of {kind} attacks, worst case per image; the table below has the data",
                caption=caption,
                marks=_marks(sources),
            )
        )
        if len(names) > 1:
            panels = [Panel(name, _found(curve(s, outcome, norm, attack=name) for s in seen)) for name in names]
            alt = f"Accuracy over the radius of each {kind} attack; the table below has the data"
            caption = f"Each {kind} attack by itself, worst up to the radius, judged by the classification head."
            section.charts.append(figures.over_radius(panels, places, alt=alt, caption=caption, columns=2))
    if not section.charts:
        section.absent = section.absent[:1] or ["no attack was judged by classification"]
    section.numbers = [p for source in sorted(sources) for p in published("robust_accuracy", source)]
    return section


def corruption(seen: Sequence[Subject], places: Mapping[str, int]) -> list[Section]:
    """The heat map and the panels per severity, for the first outcome that was recorded under corruptions."""
    heat, panels = Section("Corruptions", "corruptions"), Section("Corruptions by severity", "severities")
    found: dict[str, dict[str, Profile]] = {}
    outcome = OUTCOMES["correct"]
    for name in ("correct", "knn_correct", "cosine"):
        outcome = OUTCOMES[name]
        found = {s.name: profile for s in seen if (profile := profiles(s, outcome))}
        if found:
            break
    if not found:
        heat.absent = panels.absent = ["no corruption was measured"]
        return [heat, panels]
    strong = "better" if outcome.worse == "lower" else "worse"
    heat.lead = [f"{sentence(outcome.title)}, mean over severities; stronger colour is {strong}."]
    heat.table = _heat(found, places)
    panels.charts = [figures.over_severity(found, places, title=outcome.title)]
    return [heat, panels]


def _heat(found: Mapping[str, Mapping[str, Profile]], places: Mapping[str, int]) -> list[list[Cell]]:
    names = list(dict.fromkeys(name for by in found.values() for name in by))
    all_profiles = [p for by in found.values() for p in by.values()]
    top = max((p.mean.value or 0.0 for p in all_profiles), default=1.0)
    scale = 1.0 if all(p.mean.unit == "fraction" for p in all_profiles) else top or 1.0
    table = [[Cell("family"), Cell("corruption")] + [Cell(name, place=places[name]) for name in found]]
    last = ""
    for name in names:
        group = next(by[name].family for by in found.values() if name in by)
        row = [Cell(group if group != last else ""), Cell(name.replace("_", " "))]
        for by in found.values():
            metric = by[name].mean if name in by else None
            if metric is None:
                row.append(Cell("\u2013", hint="not measured"))
            else:
                shade = min(max((metric.value or 0.0) / scale, 0.0), 1.0)
                row.append(Cell(value(metric), f"{interval(metric)} n = {metric.n}", shade=shade))
        table.append(row)
        last = group
    return table


def mce(seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    """mCE beside published numbers where AlexNet's errors apply, and the plain mean error always."""
    section = Section("Mean corruption error", "mce")
    found = {s.name: errors_of(s)[1] for s in seen}
    ours = {name: e.mce for name, e in found.items() if e.mce.value is not None}
    reasons: dict[str, list[str]] = {}
    for name, e in found.items():
        if e.mce.value is None:
            reasons.setdefault(e.mce.reason, []).append(name)
    section.absent = [f"mCE of {', '.join(names)}. {sentence(reason)}." for reason, names in reasons.items()]
    if ours:
        chart = figures.corruption_errors(ours, published("mce", "imagenet"), places, source=ALEXNET_SOURCE)
        section.charts.append(chart)
        section.notes.append(
            "Ours: corrupted here in memory. The published sets were stored as JPEG of quality 85, which adds error."
        )
    rows = [
        [Cell(name, place=places[name]), Cell(full(e.plain)), *([Cell(full(e.relative))] if ours else [])]
        for name, e in found.items()
        if e.plain.value is not None
    ]
    if rows:
        titles = ["encoder", "plain mean error (not divided by AlexNet's)", *(["relative mCE"] if ours else [])]
        section.table = [[Cell(t) for t in titles], *rows]
    return section


def embedding(seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    """Drift, flips, quantile and kNN accuracy over epsilon, worst case per image."""
    section = Section("Embedding under attack", "embedding")
    for norm in _norms(seen):
        panels, reasons = [], []
        for name in ("cosine", "flip", "quantile", "knn_correct"):
            curves = [curve(s, OUTCOMES[name], norm) for s in seen]
            if found := _found(curves):
                panels.append(Panel(sentence(OUTCOMES[name].title), found))
            reasons += [c.reason for c in curves if c.reason]
        section.absent += list(dict.fromkeys(reasons))
        if not panels:
            continue
        kind = norm_name(norm)
        caption = (
            f"Worst case per image over every {kind} attack up to the radius, with 95 % bands "
            f"({_images(panels[0].curves)}). Drift is measured from the clean embedding. Raw distances cannot be "
            "compared across encoders; the quantile can: it is the share of random pairs of clean images that lie "
            "nearer to each other than the attacked image to its clean self."
        )
        alt = f"Embedding drift over the radius of {kind} attacks; the table below has the data"
        section.charts.append(figures.over_radius(panels, places, alt=alt, caption=caption, columns=2))
    if not section.charts:
        section.absent = section.absent[:1] or ["no attack was judged by the embedding"]
    return section


def _images(curves: Sequence[Curve]) -> str:
    counts = [len(c.ids) for c in curves if not c.reason]
    return f"n = {span(counts)} images"


def _found(curves: Iterable[Curve]) -> list[Curve]:
    return [c for c in curves if not c.reason]


def _norms(seen: Sequence[Subject]) -> list[str]:
    held = {norm for s in seen for norm in s.norms()}
    return [norm for norm in ("linf", "l2") if norm in held]


def _marks(sources: set[str]) -> dict[float, str]:
    """Radii at which papers report, for the images at hand."""
    usual = {"cifar10": (8 / 255, "RobustBench, CIFAR-10"), "imagenet": (4 / 255, "RobustBench, ImageNet")}
    return dict(usual[source] for source in sorted(sources) if source in usual)
