"""The sections of the corruption study: heat map, severities and families. What is absent says why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from holdfast.evaluation.curves import OUTCOMES, Outcome, Profile, Subject, profiles
from holdfast.evaluation.curves import corruption_errors as errors_of
from holdfast.evaluation.published import CORRUPTIONS, FAMILIES, family
from holdfast.evaluation.rows import interval, last_line, value
from holdfast.records import Metric
from holdfast.reporting import corruption_figures as figures
from holdfast.reporting.sections import Cell, Section
from holdfast.reporting.wording import complement, listed, sentence, severities, span

Found = Mapping[str, Mapping[str, Profile]]
Means = Mapping[str, Mapping[str, Metric]]

_MEANS = {"15": "mean of 15", "19": "mean of 19"}


def corruption(seen: Sequence[Subject], places: Mapping[str, int]) -> list[Section]:
    """The heat map, the panels per severity and the bars per family.

    The first two show the first outcome that was recorded under corruptions.
    """
    heat, panels = Section("Corruptions", "corruptions"), Section("Corruptions by severity", "severities")
    outcome, found = _first(seen)
    missing = gaps(seen, outcome.task)
    if not found:
        heat.absent = ["no corruption was measured", *told(missing)]
        panels.absent = ["no corruption was measured"]
        return [heat, panels, families(seen, places)]
    strong = "better" if outcome.worse == "lower" else "worse"
    means = _rights(seen) if outcome.name == "correct" else {}
    heat.lead = [f"{sentence(outcome.title)}, {over(found)}, {images(found)}; stronger colour is {strong}."]
    if means:
        heat.lead[0] += (
            " Means are 1 - mean error, over the images that all cells of an encoder share; 15 = without extra."
        )
    heat.table = heat_table(found, places, means=means, missing=missing)
    without = [s.name for s in seen if s.name not in found]
    heat.absent = [f"{listed(without)}: {outcome.title} under corruption was not recorded"] if without else []
    heat.absent += told(missing)
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
    section.absent = reasons((name, who, by[name]) for name in FAMILIES for who, by in means.items())
    if shown:
        section.charts = [figures.family_bars(shown, places)]
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


def told(missing: Mapping[tuple[str, str], Mapping[int, str]]) -> list[str]:
    """Failed cells in sentences: those of one corruption that failed alike in one."""
    alike: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for (who, name), by in missing.items():
        for error in dict.fromkeys(by.values()):
            held = tuple(sorted(s for s, other in by.items() if other == error))
            alike.setdefault((name, error, held), []).append(who)
    return [
        f"{name} at {severities(held)} of {listed(who)}; failed with: {error}"
        for (name, error, held), who in alike.items()
    ]


def reasons(metrics: Iterable[tuple[str, str, Metric]]) -> list[str]:
    """Why numbers are absent, in sentences: title, encoder and metric of each; those of one reason in one."""
    alike: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for title, who, metric in metrics:
        if metric.value is None:
            titles, names = alike.setdefault(metric.reason, ({}, {}))
            titles[title], names[who] = None, None
    return [f"{listed(titles)} of {listed(names)}: {reason}" for reason, (titles, names) in alike.items()]


def over(found: Found) -> str:
    """What a mean is taken over, in words: every severity that a corruption of an encoder has."""
    held = _severities(p for by in found.values() for p in by.values())
    return f"at {severities(held)}" if len(held) == 1 else f"mean over {severities(held)}"


def images(found: Found) -> str:
    """How many images are behind the numbers."""
    return f"n = {span([p.mean.n for by in found.values() for p in by.values()])} images"


def heat_table(
    found: Found,
    places: Mapping[str, int],
    *,
    means: Means | None = None,
    missing: Mapping[tuple[str, str], Mapping[int, str]] | None = None,
) -> list[list[Cell]]:
    """Corruptions down, family by family, and encoders across; shaded by the number.

    Args:
        found: profiles by encoder, then by corruption.
        places: of the encoders in the page.
        means: by family, 15 and 19, then by encoder: a row each after the corruptions that they belong to.
        missing: as `gaps` gives it.
    """
    means, missing = means or {}, missing or {}
    names = {name for by in found.values() for name in by} | {name for who, name in missing if who in found}
    ordered = [*(c for c in CORRUPTIONS if c in names), *sorted(names - {*CORRUPTIONS})]
    every = [p.mean for by in found.values() for p in by.values()]
    top = max((m.value or 0.0 for m in every), default=1.0)
    largest = 1.0 if all(m.unit == "fraction" for m in every) else top or 1.0
    whole = _severities(p for by in found.values() for p in by.values())
    look = _Look(largest, every[0].n if len({m.n for m in every}) == 1 else 0)
    table = [[Cell("family"), Cell("corruption")] + [Cell(who, place=places[who]) for who in found]]
    for group in dict.fromkeys(family(name) for name in ordered):
        members = [name for name in ordered if family(name) == group]
        for name in members:
            row = [Cell(group if name == members[0] else ""), Cell(name.replace("_", " "))]
            for who, by in found.items():
                failed = "; ".join(dict.fromkeys(missing.get((who, name), {}).values()))
                row.append(_profile(by.get(name), failed, whole, look))
            table.append(row)
        table += _mean_row(f"mean of {group}", means.get(group, {}), found, look)
    for key, title in _MEANS.items():
        table += _mean_row(title, means.get(key, {}), found, look)
    return table


def number(metric: Metric, *, shade: float | None = None, small: str = "") -> Cell:
    """A metric with interval and n, or other small text; or a dash with the reason behind it."""
    if metric.value is None:
        return Cell("\u2013", "absent", hint=metric.reason)
    return Cell(value(metric), small or f"{interval(metric)} n = {metric.n}", shade=shade)


class _Look(NamedTuple):
    """How the numbers of a heat map are shown: the one of the strongest colour, and the n that all have (0 = none)."""

    largest: float
    n: int

    def cell(self, metric: Metric) -> Cell:
        """With its n where that is not the common one."""
        shade = None if metric.value is None else min(max(metric.value / self.largest, 0.0), 1.0)
        return number(metric, shade=shade, small=interval(metric) if metric.n == self.n else "")


def _profile(profile: Profile | None, failed: str, whole: Sequence[int], look: _Look) -> Cell:
    if profile is None:
        return Cell("\u2013", "failed" if failed else "not measured", hint=failed or "not measured")
    cell = look.cell(profile.mean)
    held = _severities([profile])
    if held == whole:
        return cell
    return cell._replace(small=f"{cell.small}; {severities(held)} alone", hint=failed or "not measured")


def _mean_row(title: str, means: Mapping[str, Metric], found: Found, look: _Look) -> list[list[Cell]]:
    """A row, or none where no encoder has the number."""
    if all(m.value is None for m in means.values()):
        return []
    cells = [look.cell(means[who])._replace(bold=means[who].value is not None) for who in found]
    return [[Cell(""), Cell(title, bold=True), *cells]]


def _severities(profiles: Iterable[Profile]) -> list[int]:
    return sorted({severity for profile in profiles for severity in profile.severities if severity > 0})


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
    return groups | {
        key: {who: complement(e.metrics[f"mean_error_{key}"], "accuracy") for who, e in every.items()} for key in _MEANS
    }
