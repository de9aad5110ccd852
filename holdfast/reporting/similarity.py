"""How far pixels, embeddings and Grad-CAM maps move under corruption. What is absent says why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from holdfast.corruptions.table import moves
from holdfast.evaluation.corruption_errors import SEVERITIES
from holdfast.evaluation.curves import OUTCOMES, Outcome, Profile, Subject, mean_over_corruptions, profiles
from holdfast.evaluation.published import FAMILIES, family
from holdfast.evaluation.rows import full, interval
from holdfast.evaluation.statistics import mean
from holdfast.records import Metric
from holdfast.reporting.corruptions import gaps, reasons, told
from holdfast.reporting.heat import heat_tables, images, number, over
from holdfast.reporting.sections import Cell, Folded, Section
from holdfast.reporting.wording import listed, span

SSIM = Outcome("ssim", "saliency", "ssim", "lower", "SSIM", "SSIM")
PSNR = Outcome("psnr", "saliency", "psnr", "lower", "PSNR", "dB")
DRIFT = Outcome("cam_drift", "saliency", "cam_drift", "higher", "CAM drift", "1 - cosine")
NOTHING = "no image was looked at under a corruption (bench with --saliency)"

_EMBEDDING = ("knn_correct", "flip", "cosine", "quantile")
_NOT_RECORDED = "not recorded"
_TARGETS = {
    "predicted": "the class predicted on the clean image",
    "true": "the true class",
    "similarity": "the similarity to the clean embedding",
}


def pixels(seen: Sequence[Subject]) -> Section:
    """SSIM and PSNR of the corrupted images: those of the first encoder, since pixels are the same for all."""
    section = Section("How far the pixels change", "pixels")
    looked = [s for s in seen if s.corrupted("saliency")]
    if not looked:
        section.absent = told(gaps(seen, "saliency"), len(seen)) or [NOTHING]
        return section
    first = looked[0]
    ssim, psnr = profiles(first, SSIM), profiles(first, PSNR)
    if not ssim:
        section.absent = reasons([("SSIM", first.name, _absent(first, "ssim"))], len(seen))
    if ssim:
        n = span([p.mean.n for p in ssim.values()])
        section.lead = [
            f"SSIM between corrupted and clean images (1 = identical), over {n} images: those that {first.name} was "
            "shown; pixels do not depend on the encoder. Stronger colour is more similar."
        ]
        section.tables = [_severity_table(ssim)]
    rows = [
        (name, str(severity), full(ssim[name].severities[severity]) if name in ssim else "absent", full(metric))
        for name, profile in psnr.items()
        for severity, metric in profile.severities.items()
        if severity
    ]
    if rows:
        title = "SSIM and PSNR, severity by severity (100 dB = identical)"
        section.folded = [Folded(title, ("corruption", "severity", "mean SSIM", "mean PSNR"), tuple(rows))]
    moved = [name for name in psnr if moves(name)]
    if moved:
        section.notes = [
            f"Both compare pixel with pixel: they say little for {listed(moved)}, which displace what is seen: "
            "what has moved counts as destroyed."
        ]
    return section


def embeddings(seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    """kNN accuracy, neighbour flips and drift of the embedding under corruption, per encoder and family."""
    section = Section("Embedding under corruption", "embedding-corrupted")
    held = [s for s in seen if s.corrupted("embedding")]
    if not held:
        section.absent = told(gaps(seen, "embedding"), len(seen)) or ["no corruption was judged by the embedding"]
        return section
    groups = [name for name in FAMILIES if any(_of_family(s, name).results for s in held)]
    table = [[Cell("measurement"), Cell("encoder"), Cell("clean"), *(Cell(name) for name in groups)]]
    counts: set[int] = set()
    for name in _EMBEDDING:
        outcome, rows = OUTCOMES[name], []
        for subject in held:
            means = {group: _family_mean(_of_family(subject, group), outcome) for group in groups}
            if all(m.value is None for m in means.values()):
                continue
            counts |= {m.n for m in means.values() if m.n}
            cells = [_family_cell(subject, group, metric) for group, metric in means.items()]
            rows.append([Cell(""), Cell(subject.name, place=places[subject.name]), _clean(subject, outcome), *cells])
        if rows:
            rows[0][0] = Cell(outcome.title, f"{'higher' if outcome.worse == 'lower' else 'lower'} is better")
            table += rows
    section.tables, n = [table], span(sorted(counts))
    section.lead = [
        f"Mean over the corruptions of a family and their severities, with 95 % intervals, n = {n} images; drift and "
        "neighbours are compared with those of the clean image."
    ]
    section.absent = told(gaps(seen, "embedding"), len(seen))
    return section


def saliency(seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    """Drift of the Grad-CAM maps per corruption; the page adds the pairs of images."""
    section = Section("Where the encoder looks", "saliency")
    looked = [s for s in seen if s.corrupted("saliency")]
    if not looked:
        section.absent = told(gaps(seen, "saliency"), len(seen)) or [NOTHING]
        return section
    found = {s.name: profile for s in looked if (profile := profiles(s, DRIFT))}
    missing = [("CAM drift", s.name, _absent(s, "cam_drift")) for s in looked if s.name not in found]
    section.absent = [*reasons(missing, len(seen)), *told(gaps(seen, "saliency"), len(seen))]
    if not found:
        return section
    section.lead = [
        f"Drift of Grad-CAM maps from those of the clean images (1 - cosine; 0 = the same map, 1 = no overlap), "
        f"{over(found)}, {images(found)}; stronger colour is more drift. {_targets(looked)}"
    ]
    section.tables = heat_tables(found, places, missing=gaps(seen, "saliency"))
    rows = [
        (who, name, str(severity), full(metric))
        for who, by in found.items()
        for name, profile in by.items()
        for severity, metric in profile.severities.items()
        if severity
    ]
    section.folded = [
        Folded("CAM drift, severity by severity", ("encoder", "corruption", "severity", "CAM drift"), tuple(rows))
    ]
    return section


def _severity_table(found: Mapping[str, Profile]) -> list[list[Cell]]:
    """Corruptions down, severities across, and their mean."""
    table = [[Cell("family"), Cell("corruption"), *(Cell(f"severity {s}") for s in SEVERITIES), Cell("mean")]]
    last = ""
    for name, profile in found.items():
        row = [Cell(profile.family if profile.family != last else ""), Cell(name.replace("_", " "))]
        for metric in [*(profile.severities.get(s) for s in SEVERITIES), profile.mean]:
            if metric is None or metric.value is None:
                row.append(Cell("\u2013", "not measured"))
            else:
                row.append(number(metric, shade=min(max(metric.value, 0.0), 1.0), small=interval(metric)))
        table.append(row)
        last = profile.family
    return table


def _of_family(subject: Subject, group: str) -> Subject:
    """The encoder with the corrupted cells of one family alone, judged by the embedding."""
    own = [r for r in subject.corrupted("embedding") if r.cell.corruption and family(r.cell.corruption.name) == group]
    return dataclasses.replace(subject, results=tuple(own), _curves={}, _errors=[])


def _family_mean(part: Subject, outcome: Outcome) -> Metric:
    """Mean over what is there of a family; absent where nothing is."""
    ids, values = mean_over_corruptions(part, outcome)
    if len(ids) == 0:
        return Metric(name=outcome.metric, reason=_NOT_RECORDED if part.results else "not measured")
    return mean(outcome.metric, values, higher_is_better=outcome.worse == "lower", unit=outcome.unit)


def _family_cell(subject: Subject, group: str, metric: Metric) -> Cell:
    """The mean; where conditions are missing from it, how many it has."""
    cell = number(metric, small=interval(metric))
    held = [r.cell.corruption for r in subject.corrupted("embedding") if r.cell.corruption]
    severities = {stage.severity for stage in held}
    own = {(stage.name, stage.severity) for stage in held if family(stage.name) == group}
    whole = len(FAMILIES[group]) * len(severities)
    if metric.value is None or len(own) == whole:
        return cell
    names = sorted({name for name, _ in own})
    return cell._replace(small=f"{cell.small}; {len(own)} of {whole}", hint=f"{listed(names)}: {len(own)} of {whole}")


def _clean(subject: Subject, outcome: Outcome) -> Cell:
    result = subject.clean("embedding")
    metric = result.metric(outcome.metric) if result is not None else None
    if metric is None:
        metric = Metric(name=outcome.metric, reason="no clean image was judged by the embedding")
    return number(metric, small=interval(metric))


def _absent(subject: Subject, name: str) -> Metric:
    """The metric of a looked-at cell, which says why it has no value."""
    found = [m for r in subject.corrupted("saliency") for m in [r.metric(name)] if m is not None and m.value is None]
    return found[0] if found else Metric(name=name, reason=_NOT_RECORDED)


def _targets(looked: Sequence[Subject]) -> str:
    """What the maps explain, of which encoders."""
    alike: dict[str, list[str]] = {}
    for subject in looked:
        for target in dict.fromkeys(r.cell.judge.target for r in subject.corrupted("saliency")):
            alike.setdefault(_TARGETS.get(target, target), []).append(subject.name)
    if len(alike) == 1:
        return f"The maps explain {next(iter(alike))}."
    return " ".join(f"The maps of {listed(names)} explain {what}." for what, names in alike.items())
