"""Numbers and findings in words. Nothing is computed here: what is said was decided in `evaluation`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from holdfast.evaluation.curves import Subject, norm_name
from holdfast.evaluation.paired import Evidence
from holdfast.evaluation.rows import RADII, TIMES_100, full, interval, value
from holdfast.evaluation.statistics import Difference
from holdfast.evaluation.summary import Column
from holdfast.records import Metric


def gap(difference: Difference | None, metric: Metric, norm: str = "linf") -> str:
    """A paired difference with interval and n."""
    if difference is None:
        return "no image or no number in common"
    if metric.name in RADII:
        scale, unit = (255.0, "/255") if norm == "linf" else (1.0, "")
    elif metric.name in TIMES_100:
        scale, unit = 100.0, ""
    else:
        scale, unit = (100.0, " points") if metric.unit == "fraction" else (1.0, "")
    shown = [f"{scale * end:+.2f}" if unit == "/255" else f"{scale * end:+.1f}" for end in difference[:3]]
    return f"{shown[0]}{unit} [{shown[1]}, {shown[2]}], n = {difference.n}"


def headline(subjects: Sequence[Subject], columns: Sequence[Column]) -> list[str]:
    """Who is most robust to what, at which clean cost: a few sentences, each with its numbers."""
    if not subjects:
        return ["No cell of these runs is done."]
    names = [s.name for s in subjects]
    clean = next((c for c in columns if c.key == "clean"), None)
    said = []
    if len({s.images for s in subjects}) > 1:
        said.append("These encoders were measured on different images; across those, their numbers are no ranking.")
        columns = [c for c in columns if len({cell.images for cell in c.cells if len(cell.ids)}) == 1]
    for column in columns:
        if column.key == "half":
            said.append(_attacked(names, column))
            said += _cost(names, column, clean)
    if not any(c.key == "half" for c in columns):
        said += [_ranked(names, c, "Under attack") for c in columns if c.key == "quantile"]
    said += [_ranked(names, c, "Under corruptions") for c in columns if c.key == "corrupted"]
    if not said and clean is not None:
        said.append(_ranked(names, clean, "On clean images"))
    return [text for text in said if text] or ["These runs hold nothing that encoders could be ranked by."]


def leader(column: Column) -> int | None:
    """Place of the first by rank, clear or not; None where there is no number."""
    ranks = {at: rank for at, cell in enumerate(column.cells) if (rank := cell.rank) is not None}
    if not ranks:
        return None
    up = column.cells[next(iter(ranks))].metric.higher_is_better
    return max(ranks, key=lambda at: ranks[at] if up else -ranks[at])


def cell_text(cell: Evidence, norm: str = "linf") -> str:
    """What stands in a table: the number, or where it lies beyond the grid."""
    return cell.text or value(cell.metric, norm)


def sentence(text: str) -> str:
    """With a capital first letter; the rest as it is."""
    return text[:1].upper() + text[1:]


def span(numbers: Sequence[int]) -> str:
    """Smallest to largest, once where they are equal."""
    if not numbers:
        return "none"
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def listed(parts: Iterable[object]) -> str:
    """One, two and three."""
    said = [str(part) for part in parts]
    return " and ".join([", ".join(said[:-1]), said[-1]]) if len(said) > 1 else "".join(said)


def named(names: Sequence[str], total: int) -> str:
    """Encoders by name; all of them together where they are many."""
    names = list(dict.fromkeys(names))
    return f"all {total} encoders" if len(names) == total > 3 else listed(names)


def severities(found: Sequence[int]) -> str:
    """severity 3; severities 1 to 5; severities 1, 2 and 4."""
    if len(found) == 1:
        return f"severity {found[0]}"
    whole = len(found) > 2 and list(found) == list(range(found[0], found[-1] + 1))
    return "severities " + (f"{found[0]} to {found[-1]}" if whole else listed(found))


def complement(share: Metric, name: str) -> Metric:
    """A share turned round, under another name: accuracy from error, error from accuracy; an absent one as it is."""
    if share.value is None or share.low is None or share.high is None:
        return share
    up = not share.higher_is_better
    return msgspec.structs.replace(
        share, name=name, value=1 - share.value, low=1 - share.high, high=1 - share.low, higher_is_better=up
    )


def _attacked(names: Sequence[str], column: Column) -> str:
    top = leader(column)
    if top is None:
        return ""
    cell, kind = column.cells[top], norm_name(column.norm)
    if cell.metric.value is not None:
        reach = f"loses half of its clean accuracy at {_evident(cell, column.norm)}"
    elif cell.text:
        reach = f"loses half of its clean accuracy {cell.text} (n = {cell.metric.n})"
    else:
        reach = f"has no half-accuracy radius: {cell.metric.reason}"
    if len(names) == 1:
        return f"{names[0]} {reach} under {kind} attacks."
    rest = _runner_up(names, column, top)
    if column.best is not None:
        return f"{names[column.best]} is the most robust to {kind} attacks: it {reach}{rest}."
    opening = f"No encoder is clearly the most robust to {kind} attacks; first by number is"
    return f"{opening} {names[top]}, which {reach}{rest}."


def _runner_up(names: Sequence[str], column: Column, top: int) -> str:
    """The second by rank, with its evidence."""
    others = {at: rank for at, cell in enumerate(column.cells) if at != top and (rank := cell.rank) is not None}
    if not others:
        return ""
    second = max(others, key=lambda at: others[at])
    cell = column.cells[second]
    if cell.metric.value is None:
        return f"; the next is {names[second]} ({cell.text or cell.metric.reason})"
    return f"; the next is {names[second]} at {_evident(cell, column.norm)}"


def _cost(names: Sequence[str], column: Column, clean: Column | None) -> list[str]:
    """The clean accuracy of the most robust one against that of the most accurate one."""
    top = column.best
    if top is None or clean is None or clean.cells[top].metric.value is None:
        return []
    accurate = leader(clean)
    own = full(clean.cells[top].metric)
    if accurate is None or accurate == top:
        return [f"It is also the most accurate on clean images by number: {own}."]
    return [f"Its clean accuracy is {own}; that of {names[accurate]} is {full(clean.cells[accurate].metric)}."]


def _ranked(names: Sequence[str], column: Column, opening: str) -> str:
    top = leader(column)
    if top is None:
        return ""
    number = full(column.cells[top].metric, column.norm)
    if len(names) == 1:
        return f"{opening}, {names[0]}: {column.title} {number}."
    if column.best is not None:
        return f"{opening}, {names[top]} is best: {column.title} {number}."
    return f"{opening}, no encoder is clearly best; first by number is {names[top]}: {column.title} {number}."


def _evident(cell: Evidence, norm: str) -> str:
    return f"{value(cell.metric, norm)} {interval(cell.metric, norm)} (n = {cell.metric.n})"
