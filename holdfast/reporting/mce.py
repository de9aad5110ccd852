"""Mean errors and mCE, beside published numbers where AlexNet's errors apply. The protocol is always said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.evaluation.corruption_errors import SEVERITIES, CorruptionErrors, of_rates
from holdfast.evaluation.curves import Subject
from holdfast.evaluation.curves import corruption_errors as errors_of
from holdfast.evaluation.published import ALEXNET_SOURCE, Published, Study, published, published_corruption_studies
from holdfast.evaluation.rows import full
from holdfast.records import Metric
from holdfast.reporting.corruption_figures import Bar, beside_published, published_bars
from holdfast.reporting.corruptions import reasons
from holdfast.reporting.figures import Chart
from holdfast.reporting.heat import number
from holdfast.reporting.sections import Cell, Folded, Section
from holdfast.reporting.wording import complement, listed, named, sentence

_CLEAN = "clean error"
_TITLES = {
    "mean_error_15": "mean error (15)",
    "mean_error_19": "mean error (19)",
    "mce": "mCE",
    "relative_mce": "relative mCE",
}
_PLAIN = "mean error over what was measured"

Numbers = dict[str, Metric]


def mce(seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    """Five numbers of each encoder; mCE beside published ones where there is one, the mean error alone elsewhere."""
    section = Section("Mean corruption error", "mce")
    every = {s.name: errors_of(s)[1] for s in seen}
    if all(e.plain.value is None for e in every.values()):
        section.absent = list(dict.fromkeys(e.plain.reason for e in every.values()))
        return section
    table = {s.name: _numbers(s, every[s.name]) for s in seen if every[s.name].plain.value is not None}
    titles = [_CLEAN, _PLAIN, *_TITLES.values()]
    if all(by[_TITLES["mean_error_15"]].value is not None for by in table.values()):
        titles.remove(_PLAIN)
    titles = [title for title in titles if any(by[title].value is not None for by in table.values())]
    rows = [[Cell(who, place=places[who]), *(number(by[title]) for title in titles)] for who, by in table.items()]
    section.tables = [[[Cell("encoder"), *(Cell(title) for title in titles)], *rows]]
    section.absent = reasons(((title, who, m) for who, by in table.items() for title, m in by.items()), len(seen))
    ways = made(seen)
    ours = {name: e for name, e in every.items() if e.mce.value is not None}
    if ours:
        section.lead = [
            "mCE divides the errors of each of 15 corruptions by AlexNet\u2019s (AlexNet = 100); mean errors are not "
            "divided. The clean error is that of the same pipeline."
        ]
        section.charts = [_chart(ours, table, ways, places)]
        section.folded.append(_defects(published_corruption_studies()))
    else:
        section.lead = ["Mean errors are not divided by anything; lower is better."]
        section.notes = list(ways)
    section.folded[:0] = _by_severity(every)
    return section


def made(seen: Sequence[Subject]) -> dict[str, list[str]]:
    """How the corrupted images were made, in sentences, each with the encoders that it is true of."""
    alike: dict[str, list[str]] = {}
    for subject in seen:
        stages = [r.cell.corruption for r in subject.corrupted("classification")]
        roots = list(dict.fromkeys(stage.root for stage in stages if stage is not None))
        if roots:
            where = listed("made here" if not root else f"read from {root}" for root in roots)
            remark = errors_of(subject)[1].remark or "nothing is known in which they differ from the published sets"
            alike.setdefault(f"{where}; {remark}", []).append(subject.name)
    if len(alike) == 1:
        return {f"Corrupted images: {how}.": names for how, names in alike.items()}
    return {f"Corrupted images of {named(names, len(seen))}: {how}.": names for how, names in alike.items()}


def _numbers(subject: Subject, found: CorruptionErrors) -> Numbers:
    """Clean error, the mean error of what is there, those over 15 and 19, mCE and relative mCE, by title."""
    result = subject.clean("classification")
    accuracy = result.metric("accuracy") if result is not None else None
    clean = accuracy or Metric(name="error", reason="no clean image was judged by classification")
    numbers = {_CLEAN: complement(clean, "error"), _PLAIN: found.plain}
    return numbers | {title: found.metrics[name] for name, title in _TITLES.items()}


def _chart(
    ours: Mapping[str, CorruptionErrors],
    table: Mapping[str, Numbers],
    ways: Mapping[str, Sequence[str]],
    places: Mapping[str, int],
) -> Chart:
    """Bars of ours and of published mCE, with all of their numbers."""
    numbers, studies = published("mce", "imagenet"), published_corruption_studies()
    bars = [
        Bar(name, e.mce.value, e.mce.low, e.mce.high, places[name], e.deviates)
        for name, e in ours.items()
        if e.mce.value is not None
    ]
    how = {name: way for way, names in ways.items() for name in names}
    rows = [
        (
            name,
            *(full(table[name][_TITLES[key]]) for key in ("mean_error_15", "mean_error_19", "mce")),
            f"this run. {how[name]}",
            ALEXNET_SOURCE,
        )
        for name in ours
    ]
    theirs = [*_published_rows(numbers), *_study_rows(studies)]
    caption = (
        "Coloured: this run, with 95 % intervals. Grey: published, under the protocol in the table. Hatched: not "
        f"measured as the published figures of ImageNet-C are. {' '.join(ways)}"
    )
    headings = ("encoder", "mean error (15)", "mean error (19)", "mCE", "protocol", "source")
    return beside_published(
        [*bars, *published_bars(numbers, studies)],
        caption=caption,
        headings=headings,
        rows=[*rows, *theirs],
        grey=len(theirs),
    )


def _published_rows(numbers: Sequence[Published]) -> list[tuple[str, ...]]:
    return [
        (p.model, "not published", "not published", f"{100 * p.value:.1f}, no interval given", p.protocol, p.source)
        for p in numbers
    ]


def _study_rows(studies: Sequence[Study]) -> list[tuple[str, ...]]:
    rows = []
    for study in studies:
        rates = of_rates(study.errors)
        means = [f"{100 * rates[name]:.1f} %" for name in ("mean_error_15", "mean_error_19")]
        shown = [*means, f"{100 * rates['mce']:.1f}, from its published errors"]
        rows.append((study.title, *shown, study.protocol, study.source))
    return rows


def _defects(studies: Sequence[Study]) -> Folded:
    """What contaminates published errors, once where it is true of every model."""
    shared = [text for text in studies[0].defects if all(text in study.defects for study in studies)]
    rows = [("every model of the study", text) for text in shared]
    rows += [(study.title, text) for study in studies for text in study.defects if text not in shared]
    return Folded("Why the hatched published figures rank nothing", ("encoder", "what is known"), tuple(rows))


def _by_severity(every: Mapping[str, CorruptionErrors]) -> list[Folded]:
    """Mean error at each severity over 15 corruptions, where there is one."""
    found = {who: e.severities(15) for who, e in every.items()}
    rows = [(who, *(full(by[s]) for s in SEVERITIES)) for who, by in found.items() if _any(by)]
    if not rows:
        return []
    headings = ("encoder", *(sentence(f"severity {s}") for s in SEVERITIES))
    return [Folded("Mean error over the 15 corruptions, severity by severity", headings, tuple(rows))]


def _any(metrics: Mapping[int, Metric]) -> bool:
    return any(m.value is not None for m in metrics.values())
