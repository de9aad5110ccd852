"""A result in words and as flat rows, one per metric, for a terminal, a CSV file or any dataframe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from holdfast.records import Cell, Result


def last_line(error: str) -> str:
    """The last line of a traceback: the error itself."""
    return error.strip().splitlines()[-1] if error.strip() else ""


def radius(eps: float, norm: str) -> str:
    """An epsilon as it is typed: 4/255 for Linf, 0.5 for L2."""
    return f"{eps * 255:.4g}/255" if norm == "linf" else f"{eps:.4g}"


def table(title: str, results: Sequence[Result]) -> Table:
    """Results as a rich table: one line per metric that has a value, one per failed cell."""
    table = Table(title=title)
    for heading in ("encoder", "judge", "condition", "metric"):
        table.add_column(heading)
    for heading in ("value", "95 % interval", "n"):
        table.add_column(heading, justify="right")
    for result in results:
        who = (called(result.cell), result.cell.judge.task, condition(result.cell))
        for m in result.metrics:
            if m.value is not None and m.low is not None and m.high is not None:
                table.add_row(*who, m.name, f"{m.value:.4g}", f"{m.low:.4g} to {m.high:.4g}", str(m.n))
        if result.status == "failed":
            table.add_row(*who, "failed", last_line(result.error), "", "")
    return table


def called(cell: Cell) -> str:
    """The encoder's name."""
    return cell.encoder.name or cell.encoder.spec


def condition(cell: Cell) -> str:
    """Stages in words: clean; fog 3; pgd-20 ce linf 8/255; joined by arrows."""
    parts = [f"{c.name} {c.severity}" for c in [cell.corruption] if c]
    parts += [f"{a.method}-{a.steps} {a.push} {a.norm} {radius(a.eps, a.norm)}" for a in [cell.attack] if a]
    return " -> ".join(parts) or "clean"


def order(result: Result, places: Mapping[str, int]) -> tuple[Any, ...]:
    """Sorts results by encoder (`places`: name -> position), then clean, corrupted, attacked."""
    cell, name = result.cell, called(result.cell)
    c, a = cell.corruption, cell.attack
    return (
        (places.get(name, len(places)), name, cell.encoder.digest_of_weights, a is not None, c is not None)
        + ((c.name, c.severity) if c else ("", 0))
        + ((a.through, a.push, a.norm, a.steps, a.eps) if a else ("", "", "", 0, 0.0))
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
        "attack_seed": a.seed if a else 0,
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
