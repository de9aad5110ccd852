"""What a section of the page holds; and those of attacks: accuracy, embedding. What is absent says why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.evaluation import dense_curves
from holdfast.evaluation.attack_tables import NEIGHBOURS
from holdfast.evaluation.curves import OUTCOMES, Curve, Subject, curve, families, norm_name
from holdfast.evaluation.published import Published, published
from holdfast.reporting import figures
from holdfast.reporting.figures import Chart, Panel
from holdfast.reporting.maps import PairWall
from holdfast.reporting.wording import sentence, span


class Cell(NamedTuple):
    """One cell of a table: main text, small text, bold, tooltip, background 0 to 1 (None = none)."""

    text: str
    small: str = ""
    bold: bool = False
    hint: str = ""
    shade: float | None = None
    place: int | None = None


class Folded(NamedTuple):
    """A table that opens on a click: its title, headings, rows as text, and how many of the last rows are grey."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    grey: int = 0


class Titled(NamedTuple):
    """A table under its own title: rows of cells, the first row the headings; then notes."""

    title: str
    rows: list[list[Cell]]
    notes: list[str]


@dataclass
class Section:
    """A section of the page.

    Attributes:
        title: of it.
        key: anchor.
        lead: sentences before the charts.
        charts: each with its data.
        tables: each of rows of cells, the first row the headings; drawn before the charts.
        titled: tables under their own titles; drawn after the charts.
        absent: why something is not there.
        folded: tables after the charts.
        notes: after those.
        numbers: published numbers, folded.
        pairs: images with their maps, by encoder.
        left_out: how many pairs were left out.
    """

    title: str
    key: str
    lead: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[list[list[Cell]]] = field(default_factory=list)
    titled: list[Titled] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    folded: list[Folded] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: list[Published] = field(default_factory=list)
    pairs: list[PairWall] = field(default_factory=list)
    left_out: int = 0

    @property
    def empty(self) -> bool:
        """Whether all that it says is why it shows nothing."""
        return bool(self.absent) and not (self.charts or self.tables or self.titled or self.folded or self.pairs)


def accuracy(seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    """Curves over epsilon: worst case over all attacks, then each attack; one pair of charts per norm."""
    section = Section("Accuracy under attack", "accuracy")
    outcome = OUTCOMES["correct"]
    sources = {r.cell.data.source for s in seen for r in s.results}
    for norm in _norms(seen):
        worst = [curve(s, outcome, norm) for s in seen]
        section.absent += [c.reason for c in worst if c.reason]
        if all(c.reason for c in worst):
            continue
        each = [s.attacked("classification", norm) + s.nearest("classification", norm) for s in seen]
        names = list(dict.fromkeys(name for results in each for name in families(results)))
        kind = norm_name(norm)
        caption = (
            f"Share of images still classified correctly after every {kind} attack up to the radius, with 95 % bands "
            f"({_images(worst)}). An image counts as lost from the first radius at which any attack found an error."
        )
        section.charts.append(
            figures.over_radius(
                [Panel(f"Worst case over {len(names)} attack{'s' if len(names) > 1 else ''}, {kind}", worst)],
                places,
                alt=f"Accuracy over the radius of {kind} attacks, worst case per image; the table below has the data",
                caption=caption,
                marks=_marks(sources),
            )
        )
        if len(names) > 1:
            panels = [Panel(name, _found(curve(s, outcome, norm, attack=name) for s in seen)) for name in names]
            alt = f"Accuracy over the radius of each {kind} attack; the table below has the data"
            caption = f"Each {kind} attack by itself, worst up to the radius, judged by the classification head."
            section.charts.append(figures.over_radius(panels, places, alt=alt, caption=caption, columns=2))
    if not section.charts:
        section.absent = section.absent[:1] or ["no attack was judged by classification"]
    section.numbers = [p for source in sorted(sources) for p in published("robust_accuracy", source)]
    return section


def embedding(seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    """Drift, flips, quantile, kNN accuracy and what became of neighbours over epsilon, worst case per image."""
    section = Section("Embedding under attack", "embedding")
    for norm in _norms(seen):
        panels, reasons = [], []
        measured = [OUTCOMES[name] for name in ("cosine", "flip", "quantile", "knn_correct")]
        for outcome in (*measured, *NEIGHBOURS):
            curves = [curve(s, outcome, norm) for s in seen]
            if found := _found(curves):
                panels.append(Panel(sentence(outcome.title), found))
            # Records from before the neighbours were counted are whole without them.
            reasons += [c.reason for c in curves if c.reason and outcome in measured]
        section.absent += list(dict.fromkeys(reasons))
        if not panels:
            continue
        kind = norm_name(norm)
        caption = (
            f"Worst case per image over every {kind} attack up to the radius, with 95 % bands "
            f"({_images(panels[0].curves)}). Drift is measured from the clean embedding. Raw distances cannot be "
            "compared across encoders; the quantile can: it is the share of random pairs of clean images that lie "
            "nearer to each other than the attacked image to its clean self."
        )
        alt = f"Embedding drift over the radius of {kind} attacks; the table below has the data"
        section.charts.append(figures.over_radius(panels, places, alt=alt, caption=caption, columns=2))
    if not section.charts:
        section.absent = section.absent[:1] or ["no attack was judged by the embedding"]
    return section


def _images(curves: Sequence[Curve] | Sequence[dense_curves.Curve]) -> str:
    counts = [len(c.ids) for c in curves if not c.reason]
    return f"n = {span(counts)} images"


def _found(curves: Iterable[Curve]) -> list[Curve]:
    return [c for c in curves if not c.reason]


def _norms(seen: Sequence[Subject]) -> list[str]:
    held = {norm for s in seen for norm in s.norms()}
    return [norm for norm in ("linf", "l2", "l1") if norm in held]


def _marks(sources: set[str]) -> dict[float, str]:
    """Radii at which papers report, for the images at hand."""
    usual = {"cifar10": (8 / 255, "RobustBench, CIFAR-10"), "imagenet": (4 / 255, "RobustBench, ImageNet")}
    return dict(usual[source] for source in sorted(sources) if source in usual)
