"""A result in words and as flat rows, one per metric, for a terminal, a CSV file or any dataframe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast.evaluation.attack_names import radius, short_name
from holdfast.evaluation.published import CORRUPTIONS
from holdfast.records import Cell, Metric, Result

__all__ = ["called", "condition", "full", "interval", "last_line", "order", "radius", "rows", "value"]

RADII = ("half_radius",)
TIMES_100 = ("mce", "relative_mce", *(f"{kind}_{name}" for kind in ("ce", "relative_ce") for name in CORRUPTIONS))


def last_line(error: str) -> str:
    """The last line of a traceback: the error itself."""
    return error.strip().splitlines()[-1] if error.strip() else ""


def value(metric: Metric, norm: str = "linf") -> str:
    """The number alone: 84.0 %, 5.2/255, 31.4 dB, 0.314; an en dash where there is none."""
    return "\u2013" if metric.value is None else _number(metric, metric.value, norm)


def interval(metric: Metric, norm: str = "linf") -> str:
    """`[79.1, 88.0]`, in the unit of `value`; empty where there is none."""
    if metric.low is None or metric.high is None:
        return ""
    ends = [_number(metric, end, norm) for end in (metric.low, metric.high)]
    low, high = (end.removesuffix("/255").removesuffix(" %").removesuffix(" dB") for end in ends)
    return f"[{low}, {high}]"


def full(metric: Metric, norm: str = "linf") -> str:
    """Value, interval and n; or the reason why there is none."""
    if metric.value is None:
        return metric.reason
    return f"{value(metric, norm)} {interval(metric, norm)}, n = {metric.n}"


def called(cell: Cell) -> str:
    """The encoder's name."""
    return cell.encoder.name or cell.encoder.spec


def condition(cell: Cell) -> str:
    """Stages in words: clean; fog 3; pgd-20 ce linf 8/255; joined by arrows."""
    parts = [f"{c.name} {c.severity}" for c in [cell.corruption] if c]
    parts += [short_name(a) for a in [cell.attack] if a]
    return " -> ".join(parts) or "clean"


def order(result: Result, places: Mapping[str, int]) -> tuple[Any, ...]:
    """Sorts results by encoder (`places`: name -> position), then clean, corrupted, attacked."""
    cell, name = result.cell, called(result.cell)
    c, a = cell.corruption, cell.attack
    return (
        (places.get(name, len(places)), name, cell.encoder.digest_of_weights, a is not None, c is not None)
        + ((c.name, c.severity) if c else ("", 0))
        + ((a.through, a.method, a.push, a.norm, a.steps, a.eps) if a else ("", "", "", "", 0, 0.0))
        + (cell.judge.task, result.id)
    )


def rows(run: str, result: Result) -> list[dict[str, Any]]:
    """One dictionary per metric; one with the error as reason for a failed cell."""
    cell = result.cell
    c, a = cell.corruption, cell.attack
    shared = {
        "run": run,
        "cell": result.id,
        "status": result.status,
        "model": called(cell),
        "weights": cell.encoder.digest_of_weights[:12],
        "data": cell.data.source,
        "split": cell.data.split,
        "task": cell.judge.task,
        "head": cell.judge.head,
        "level": cell.judge.level,
        "condition": condition(cell),
        "corruption": c.name if c else "",
        "severity": c.severity if c else 0,
        "variant": c.variant if c else "",
        "attack": a.method if a else "",
        "through": a.through if a else "",
        "push": a.push if a else "",
        "norm": a.norm if a else "",
        "eps": a.eps if a else 0.0,
        "steps": a.steps if a else 0,
        "restarts": a.restarts if a else 0,
        "targets": a.targets if a else 0,
        "aim": a.aim if a else "",
        "attack_level": a.level if a else "",
        "samples": a.samples if a else 0,
        "precision": a.precision if a else "",
        "surrogate": (a.surrogate.encoder.name or a.surrogate.encoder.spec) if a and a.surrogate else "",
        "attack_seed": a.seed if a else 0,
        "flags": " ".join(result.flags),
    }
    if result.status == "failed":
        none = {"value": None, "low": None, "high": None, "n": 0, "interval": "", "unit": "", "higher_is_better": None}
        return [{**shared, "metric": "", **none, "reason": last_line(result.error)}]
    return [
        {
            **shared,
            "metric": m.name,
            "value": m.value,
            "low": m.low,
            "high": m.high,
            "n": m.n,
            "interval": m.interval,
            "unit": m.unit,
            "higher_is_better": m.higher_is_better,
            "reason": m.reason,
        }
        for m in result.metrics
    ]


def _number(metric: Metric, number: float, norm: str) -> str:
    if metric.name in RADII:
        return f"{number * 255:.2f}/255" if norm == "linf" else f"{number:.3f}"
    if metric.name in TIMES_100:
        return f"{100 * number:.1f}"
    if metric.unit == "dB":
        return f"{number:.1f} dB"
    return f"{100 * number:.1f} %" if metric.unit == "fraction" else f"{number:.3f}"
