"""The heat map with numbers: corruptions down, family by family, encoders across, shaded by the number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from holdfast.evaluation.curves import Profile
from holdfast.evaluation.published import CORRUPTIONS, family
from holdfast.evaluation.rows import interval, value
from holdfast.records import Metric
from holdfast.reporting.sections import Cell
from holdfast.reporting.wording import severities, span

Found = Mapping[str, Mapping[str, Profile]]
Means = Mapping[str, Mapping[str, Metric]]
Missing = Mapping[tuple[str, str], Mapping[int, str]]

ACROSS = 8
_MEANS = {"15": "mean of 15", "19": "mean of 19"}


class _Look(NamedTuple):
    """How numbers are shown: the one of the strongest colour, the n and the severities that all have (0 = no n)."""

    largest: float
    n: int
    severities: list[int]

    def cell(self, metric: Metric) -> Cell:
        """With its n where that is not the common one."""
        shade = None if metric.value is None else min(max(metric.value / self.largest, 0.0), 1.0)
        return number(metric, shade=shade, small=interval(metric) if metric.n == self.n else "")

    def profile(self, profile: Profile | None, failed: str) -> Cell:
        """The mean over severities, with those that it has where some are missing."""
        if profile is None:
            return Cell("\u2013", "failed" if failed else "not measured", hint=failed or "not measured")
        cell, held = self.cell(profile.mean), _severities([profile])
        if held == self.severities:
            return cell
        return cell._replace(small=f"{cell.small}; {severities(held)} alone", hint=failed or "not measured")


def heat_tables(
    found: Found, places: Mapping[str, int], *, means: Means | None = None, missing: Missing | None = None
) -> list[list[list[Cell]]]:
    """Tables of at most eight encoders each, in rows of cells, the first row the headings.

    Args:
        found: profiles by encoder, then by corruption.
        places: of the encoders in the page.
        means: by family, 15 and 19, then by encoder: a row each after the corruptions that they belong to.
        missing: errors of failed cells by encoder and corruption, then by severity.
    """
    every = [p for by in found.values() for p in by.values()]
    top = max((p.mean.value or 0.0 for p in every), default=1.0)
    largest = 1.0 if all(p.mean.unit == "fraction" for p in every) else top or 1.0
    n = every[0].mean.n if len({p.mean.n for p in every}) == 1 else 0
    look = _Look(largest, n, _severities(every))
    names = {p.corruption for p in every} | {name for who, name in missing or {} if who in found}
    ordered = [*(c for c in CORRUPTIONS if c in names), *sorted(names - {*CORRUPTIONS})]
    tables, encoders = [], list(found)
    for first in range(0, len(encoders), ACROSS):
        few = encoders[first : first + ACROSS]
        head = [Cell("family"), Cell("corruption"), *(Cell(who, place=places[who]) for who in few)]
        part = {who: found[who] for who in few}
        tables.append([head, *_rows(part, ordered, look, means=means or {}, missing=missing or {})])
    return tables


def number(metric: Metric, *, shade: float | None = None, small: str = "") -> Cell:
    """A metric with interval and n, or other small text; or a dash with the reason behind it."""
    if metric.value is None:
        return Cell("\u2013", "absent", hint=metric.reason)
    return Cell(value(metric), small or f"{interval(metric)} n = {metric.n}", shade=shade)


def over(found: Found) -> str:
    """What a mean is taken over, in words: every severity that a corruption of an encoder has."""
    held = _severities(p for by in found.values() for p in by.values())
    return f"at {severities(held)}" if len(held) == 1 else f"mean over {severities(held)}"


def images(found: Found) -> str:
    """How many images are behind the numbers."""
    return f"n = {span([p.mean.n for by in found.values() for p in by.values()])} images"


def _rows(found: Found, ordered: Sequence[str], look: _Look, *, means: Means, missing: Missing) -> Iterator[list[Cell]]:
    for group in dict.fromkeys(family(name) for name in ordered):
        members = [name for name in ordered if family(name) == group]
        for name in members:
            failed = {who: "; ".join(dict.fromkeys(missing.get((who, name), {}).values())) for who in found}
            cells = [look.profile(by.get(name), failed[who]) for who, by in found.items()]
            yield [Cell(group if name == members[0] else ""), Cell(name.replace("_", " ")), *cells]
        yield from _mean_row(f"mean of {group}", means.get(group, {}), found, look)
    for key, title in _MEANS.items():
        yield from _mean_row(title, means.get(key, {}), found, look)


def _mean_row(title: str, means: Mapping[str, Metric], found: Found, look: _Look) -> Iterator[list[Cell]]:
    """A row, or none where no encoder has the number."""
    if any(m.value is not None for m in means.values()):
        cells = [look.cell(means[who])._replace(bold=means[who].value is not None) for who in found]
        yield [Cell(""), Cell(title, bold=True), *cells]


def _severities(profiles: Iterable[Profile]) -> list[int]:
    return sorted({severity for profile in profiles for severity in profile.severities if severity > 0})
