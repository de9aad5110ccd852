"""`results.csv`, one row per metric, and `table.tex`, the summary for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from holdfast.evaluation.curves import Subject, corruption_errors
from holdfast.evaluation.rows import interval
from holdfast.evaluation.store import Run
from holdfast.evaluation.summary import Column
from holdfast.reporting.wording import cell_text

_TEX = {c: "\\" + c for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {"\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}", "\u2013": "--"}


def results_csv(runs: Sequence[Run], subjects: Sequence[Subject] = ()) -> str:
    """All records as comma-separated values, one row per metric, failed cells with their error as reason.

    Args:
        runs: whose records are written.
        subjects: encoders whose mean errors and mCE follow, each belonging to many cells and so to none.
    """
    rows = [row for run in runs for row in run.rows()]
    names = list(rows[0]) if rows else ["run"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    writer.writerows(row for subject in subjects for row in _aggregates(subject))
    return buffer.getvalue()


def table_tex(subjects: Sequence[Subject], columns: Sequence[Column]) -> str:
    """The summary as a LaTeX table (booktabs): value, 95 % interval and n; bold as on the page."""
    shown = [c for c in columns if any(cell.metric.value is not None or cell.text for cell in c.cells)]
    lines = [
        "% Made by holdfast report. Needs \\usepackage{booktabs}. Brackets: 95 % interval; n: images.",
        "% Bold: better than every other encoder, paired 95 % interval excludes 0.",
        f"\\begin{{tabular}}{{l{'c' * len(shown)}}}",
        "\\toprule",
        " & ".join(["encoder", *(tex(c.title) for c in shown)]) + r" \\",
        "\\midrule",
    ]
    for at, subject in enumerate(subjects):
        lines.append(" & ".join([tex(subject.name), *(_cell(c, at) for c in shown)]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def tex(text: str) -> str:
    """Text with the special characters of LaTeX escaped."""
    return "".join(_TEX.get(c, c) for c in text)


def _cell(column: Column, at: int) -> str:
    cell = column.cells[at]
    text = tex(cell_text(cell, column.norm))
    bold = f"\\textbf{{{text}}}" if column.best == at else text
    if not cell.metric.n:
        return bold
    evidence = f"{tex(interval(cell.metric, column.norm))} $n$={cell.metric.n}".strip()
    return f"{bold} {{\\scriptsize {evidence}}}"


def _aggregates(subject: Subject) -> Iterator[dict[str, Any]]:
    """Mean errors, mCE and its parts, one row each, absent ones with their reason; none without a corruption."""
    _, found = corruption_errors(subject)
    if found.plain.value is None:
        return
    cell = subject.corrupted("classification")[0].cell
    shared = {
        "run": subject.run.name,
        "status": "done",
        "model": subject.name,
        "weights": subject.model.digest_of_weights[:12],
        "data": cell.data.source,
        "task": "classification",
        "head": cell.judge.head,
        "level": cell.judge.level,
        "condition": "corruptions together",
        "variant": cell.corruption.variant if cell.corruption else "",
    }
    for metric in (found.plain, *found.metrics.values()):
        yield {
            **shared,
            "metric": metric.name,
            "value": metric.value,
            "low": metric.low,
            "high": metric.high,
            "n": metric.n,
            "interval": metric.interval,
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
            "reason": metric.reason,
        }
