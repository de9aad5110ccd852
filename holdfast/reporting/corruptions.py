"""The sections of the corruption study: heat map, severities and families. What is absent says why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from holdfast.evaluation.curves import OUTCOMES, Outcome, Subject, profiles
from holdfast.evaluation.curves import corruption_errors as errors_of
from holdfast.evaluation.published import FAMILIES
from holdfast.evaluation.rows import last_line
from holdfast.records import Metric
from holdfast.reporting import corruption_figures as figures
from holdfast.reporting.heat import Found, Means, Missing, heat_tables, images, over
from holdfast.reporting.sections import Section
from holdfast.reporting.wording import complement, listed, named, sentence, severities


def corruption(seen: Sequence[Subject], places: Mapping[str, int]) -> list[Section]:
    """The heat map, the panels per severity and the bars per family.

    The first two show the first outcome that was recorded under corruptions.
    """
    heat, panels = Section("Corruptions", "corruptions"), Section("Corruptions by severity", "severities")
    outcome, found = _first(seen)
    missing = gaps(seen, outcome.task)
    said = told(missing, len(seen))
    if not found:
        heat.absent = ["no corruption was measured", *said]
        panels.absent = ["no corruption was measured"]
        return [heat, panels, families(seen, places)]
    strong = "better" if outcome.worse == "lower" else "worse"
    means = _rights(seen) if outcome.name == "correct" else {}
    heat.lead = [f"{sentence(outcome.title)}, {over(found)}, {images(found)}; stronger colour is {strong}."]
    if any(m.value is not None for by in means.values() for m in by.values()):
        heat.lead[0] += (
            " Means are 1 - mean error, over the images that all cells of an encoder share; 15 = without extra."
        )
    heat.tables = heat_tables(found, places, means=means, missing=missing)
    without = [s.name for s in seen if s.name not in found]
    heat.absent = [f"{listed(without)}: {outcome.title} under corruption was not recorded"] if without else []
    heat.absent += said
    panels.charts = [figures.over_severity(found, places, title=outcome.title)]
    return [heat, panels, families(seen, places)]


def families(seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    """Bars of the mean error of each family."""
    section = Section("Corruptions by family", "families")
    means = {s.name: errors_of(s)[1].families for s in seen}
    if all(errors_of(s)[1].plain.value is None for s in seen):
        section.absent = ["no corruption was judged by classification"]
        return section
    shown = {who: by for who, by in means.items() if any(m.value is not None for m in by.values())}
    section.absent = reasons(((name, who, by[name]) for name in FAMILIES for who, by in means.items()), len(seen))
    if shown:
        section.charts = [figures.family_bars(shown, places)]
    else:
        section.absent = ["no family was measured whole: all of its corruptions at severities 1 to 5"]
    return section


def gaps(seen: Sequence[Subject], task: str) -> dict[tuple[str, str], dict[int, str]]:
    """The errors of failed cells: by encoder and corruption, then by severity."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for subject in seen:
        for result in subject.failed:
            stage = result.cell.corruption
            if stage is not None and result.cell.judge.task == task:
                error = last_line(result.error).removeprefix("holdfast.errors.")
                found.setdefault((subject.name, stage.name), {})[stage.severity] = error
    return found


def told(missing: Missing, total: int) -> list[str]:
    """Failed cells of `total` encoders in sentences: those of one corruption that failed alike in one."""
    alike: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for (who, name), by in missing.items():
        for error in dict.fromkeys(by.values()):
            held = tuple(sorted(s for s, other in by.items() if other == error))
            alike.setdefault((name, error, held), []).append(who)
    return [
        f"{name} at {severities(held)} of {named(who, total)}; failed with: {error}"
        for (name, error, held), who in alike.items()
    ]


def reasons(metrics: Iterable[tuple[str, str, Metric]], total: int) -> list[str]:
    """Why numbers of `total` encoders are absent: title, encoder and metric of each; a sentence per reason."""
    alike: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for title, who, metric in metrics:
        if metric.value is None:
            titles, names = alike.setdefault(metric.reason, ({}, {}))
            titles[title], names[who] = None, None
    return [f"{listed(titles)} of {named([*names], total)}: {reason}" for reason, (titles, names) in alike.items()]


def _first(seen: Sequence[Subject]) -> tuple[Outcome, Found]:
    """The first outcome that was recorded under corruptions, and its profiles by encoder."""
    for name in ("correct", "knn_correct", "cosine"):
        if found := {s.name: profile for s in seen if (profile := profiles(s, OUTCOMES[name]))}:
            return OUTCOMES[name], found
    return OUTCOMES["correct"], {}


def _rights(seen: Sequence[Subject]) -> Means:
    """Mean accuracies by family, 15 and 19, then by encoder."""
    every = {s.name: errors_of(s)[1] for s in seen}
    groups = {name: {who: complement(e.families[name], "accuracy") for who, e in every.items()} for name in FAMILIES}
    both = {
        key: {who: complement(e.metrics[f"mean_error_{key}"], "accuracy") for who, e in every.items()}
        for key in ("15", "19")
    }
    return groups | both
