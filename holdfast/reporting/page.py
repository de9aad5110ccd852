"""The page: one HTML file that needs neither network nor script. It draws what `evaluation` has computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from holdfast import disk
from holdfast.codec import to_yaml
from holdfast.errors import DataError
from holdfast.evaluation.checks import Check, checks
from holdfast.evaluation.curves import Subject, subjects
from holdfast.evaluation.flags import FLAGS
from holdfast.evaluation.identity import differences
from holdfast.evaluation.rows import condition, interval, last_line
from holdfast.evaluation.store import Run
from holdfast.evaluation.summary import Column, summary
from holdfast.progress import spoken
from holdfast.reporting import attacks, gallery, maps, sections, similarity
from holdfast.reporting.corruptions import corruption
from holdfast.reporting.dense import dense
from holdfast.reporting.figures import GLYPHS, PALETTE, shape
from holdfast.reporting.gallery import Wall
from holdfast.reporting.maps import PairWall
from holdfast.reporting.mce import mce
from holdfast.reporting.sections import Cell, Section
from holdfast.reporting.steps import steps
from holdfast.reporting.tables import results_csv, table_tex
from holdfast.reporting.wording import cell_text, gap, headline, span

TRANSPOSED_FROM = 6
LARGEST = 4_750_000  # of 5 MB; the rest is for the captions of images
IMAGES = 3_900_000
SHARE = 0.45
_ORDER = {"failed": 0, "passed": 1, "not measured": 2}


def report(runs: Sequence[Run], out: Path, *, title: str = "") -> Path:
    """Draw runs as one HTML file, with `results.csv` and `table.tex` beside it.

    Args:
        runs: as `store.read` gives them; the encoders of several are compared.
        out: folder, or a file that ends in .html.
        title: of the page; empty = the names of the runs.

    Returns:
        The HTML file, under 5 MB.

    Raises:
        DataError: no run, or a run without a single record.
    """
    if not any(run.results for run in runs):
        where = ", ".join(str(run.folder) for run in runs) or "nothing"
        raise DataError(
            f"No cell is on disk in {where}.", next="Run `holdfast bench` first; the page is drawn from records."
        )
    page = out if out.suffix == ".html" else out / "report.html"
    seen = subjects(runs)
    columns = summary(seen)
    html = render(runs, seen, columns, title=title or " and ".join(run.name for run in runs))
    disk.write(page.parent / "results.csv", results_csv(runs, seen))
    disk.write(page.parent / "table.tex", table_tex(seen, columns))
    return disk.write(page, html)


def render(runs: Sequence[Run], seen: Sequence[Subject], columns: Sequence[Column], *, title: str) -> str:
    """The page as text. Images come last: they have what the rest leaves of its size."""
    places = {s.name: at for at, s in enumerate(seen)}
    verdicts = {s.name: checks(s) for s in seen}
    looked, listed = similarity.saliency(seen, places), _checks(seen, verdicts)
    parts = {
        "title": title,
        "headline": headline(seen, columns),
        "failed": [c for found in verdicts.values() for c in found if c.status == "failed"],
        "pending": _pending(runs),
        "subjects": _legend(seen),
        "palette": list(enumerate(PALETTE)),
        "summary": _summary(seen, columns),
        "against": _against(seen, columns),
        "definitions": [(c.title, c.about) for c in columns],
        "sections": [
            _accuracy(seen, places),
            *corruption(seen, places),
            mce(seen, places),
            similarity.pixels(seen),
            *dense(seen, places),
            *steps(seen, places),
            sections.embedding(seen, places),
            similarity.embeddings(seen, places),
        ],
        "saliency": looked,
        "scale": maps.scale(),
        "checks": listed,
        "numbers": sorted(
            ((row["name"], *found) for row in listed for found in row["found"]), key=lambda line: _ORDER[line[3].status]
        ),
        "flags": [(flag.id, flag.name, flag.threshold, flag.about) for flag in FLAGS.values()],
        "unmeasured": [row["name"] for row in listed if all(c.status == "not measured" for _, _, c in row["found"])],
        "made": [_made(run) for run in runs],
        "changed": [(run.name, differences(runs[0].record, run.record)) for run in runs[1:]],
        "base": runs[0].name,
    }
    template = _environment().get_template("page.html.jinja")
    bare = template.render(parts, walls=[], left_out=0)
    (walls, left_out), (pairs, others) = images(seen, budget=min(IMAGES, LARGEST - len(bare.encode())))
    looked.pairs, looked.left_out = pairs, others
    return template.render(parts, walls=walls, left_out=left_out)


def images(
    seen: Sequence[Subject], *, budget: int = IMAGES
) -> tuple[tuple[list[Wall], int], tuple[list[PairWall], int]]:
    """Attacked images, and pairs with maps, each with how many were left out; where a page has both, they share."""
    attacked = any(r.cell.attack is not None for s in seen for r in s.results)
    pairs = maps.pair_walls(seen, budget=int(budget * SHARE) if attacked else budget)
    used = sum(len(uri) for wall in pairs[0] for pair in wall.pairs for _, uri in pair.images)
    return gallery.walls(seen, budget=min(gallery.BUDGET, budget - used)), pairs


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("holdfast.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _legend(seen: Sequence[Subject]) -> list[dict[str, Any]]:
    return [
        {
            "name": s.name,
            "run": s.run.name,
            "spec": s.model.spec,
            "digest": s.model.digest_of_weights[:12],
            "place": at % len(PALETTE),
            "glyph": GLYPHS[shape(at)],
        }
        for at, s in enumerate(seen)
    ]


def _pending(runs: Sequence[Run]) -> list[str]:
    """What is missing from the runs, in words."""
    said = []
    for run in runs:
        missing = run.record.cells - len(run.results)
        if missing > 0:
            said.append(
                f"{run.name}: {missing} of {run.record.cells} cells are not done yet; the same command continues."
            )
        if run.failed:
            said.append(f"{run.name}: failed cells: {len(run.failed)}; they are listed under \u201cHow made\u201d.")
    return said


def _summary(seen: Sequence[Subject], columns: Sequence[Column]) -> list[list[Cell]]:
    """Measurements down and encoders across; the other way round where encoders are many."""
    body = [
        [Cell(c.title, hint=c.about)]
        + [
            Cell(
                cell_text(cell, c.norm),
                f"{interval(cell.metric, c.norm)} n = {cell.metric.n}".strip() if cell.metric.n else "",
                c.best == at,
                cell.metric.reason,
            )
            for at, cell in enumerate(c.cells)
        ]
        for c in columns
    ]
    table = [[Cell("")] + [Cell(s.name, place=at) for at, s in enumerate(seen)], *body]
    return [list(row) for row in zip(*table)] if len(seen) >= TRANSPOSED_FROM else table


def _against(seen: Sequence[Subject], columns: Sequence[Column]) -> list[list[Cell]]:
    """Every encoder minus the first, paired."""
    if len(seen) < 2:
        return []
    head = [Cell("")] + [Cell(s.name, place=at + 1) for at, s in enumerate(seen[1:])]
    rows = [
        [Cell(c.title)]
        + [
            Cell(gap(d, cell.metric, c.norm), bold=d is not None and d.clear)
            for d, cell in zip(c.against_first[1:], c.cells[1:])
        ]
        for c in columns
        if len(c.cells[0].ids)
    ]
    return [head, *rows]


def _accuracy(seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    """The section on accuracy under attack with its tables."""
    section = sections.accuracy(seen, places)
    section.titled = attacks.tables(seen, places)
    return section


def _checks(seen: Sequence[Subject], verdicts: Mapping[str, Sequence[Check]]) -> list[dict[str, Any]]:
    """One row per flag, those that any encoder fails first."""
    asked = verdicts[seen[0].name] if seen else []
    listed = [
        {
            "name": check.name,
            "flag": check.flag,
            "found": [(s.name, at, verdicts[s.name][row]) for at, s in enumerate(seen)],
        }
        for row, check in enumerate(asked)
    ]
    return sorted(listed, key=lambda row: min(_ORDER[c.status] for _, _, c in row["found"]))


def _made(run: Run) -> dict[str, Any]:
    """How a run came to be, as text."""
    environments = list(dict.fromkeys(r.environment for r in run.results))
    costs = [r.cost for r in run.results]
    forwards, backwards = sum(c.forwards for c in costs), sum(c.backwards for c in costs)
    images = sorted({(r.cell.data.source, r.cell.data.split, r.cell.data.limit) for r in run.results})
    kept = {"cells done": f"{len(run.results) - len(run.failed)} of {run.record.cells or len(run.results)}"}
    return {
        "name": run.name,
        "facts": kept
        | {
            "images": "; ".join(f"{source} {split}, {limit or 'all'}" for source, split, limit in images),
            "images used per cell": span([m.n for r in run.results for m in r.metrics if m.n]),
            "hardware": "; ".join(dict.fromkeys(f"{e.device}, {e.threads} threads" for e in environments)),
            "versions": "; ".join(
                dict.fromkeys(
                    f"holdfast {e.holdfast}{f' ({e.commit})' if e.commit else ''}, torch {e.torch}, Python {e.python}"
                    for e in environments
                )
            ),
            "platform": "; ".join(dict.fromkeys(e.platform for e in environments)),
            "time": f"{spoken(sum(c.seconds for c in costs))} in all cells",
            "passes": f"{forwards:,} images forward, {backwards:,} backward",
            "memory": f"{max((c.peak_mb for c in costs), default=0):,.0f} MB at most",
            "images per pass": span([r.chunk for r in run.results if r.chunk]),
            "command": run.record.command,
        },
        "config": to_yaml(run.config),
        "warnings": list(dict.fromkeys(w for r in run.results for w in r.warnings)),
        "failed": [
            (r.cell.encoder.name or r.cell.encoder.spec, condition(r.cell), last_line(r.error)) for r in run.failed
        ],
    }
