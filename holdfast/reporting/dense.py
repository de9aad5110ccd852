"""The sections on segmentation and depth under attack: curves, the joint picture of all tasks, classes, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.corruptions.table import moves
from holdfast.evaluation.curves import Subject, families, norm_name
from holdfast.evaluation.dense_curves import LEADING, TASKS, TITLES, Curve, curve, joint, per_class
from holdfast.evaluation.rows import interval, value
from holdfast.records import Metric
from holdfast.reporting import figures
from holdfast.reporting.figures import Panel
from holdfast.reporting.sections import Cell, Section, Titled

MARKS = {
    "\u2020": (True, "The corruption displaces what is seen; masks and depth stay where they were."),
    "\u2021": (
        None,
        "It is not known whether the corruption displaces what is seen; masks and depth stay where they were.",
    ),
}
"""Mark, what `moves` says of the corruption, and what that means."""
SHOWN = {"segmentation": ("miou", "pixel_accuracy", "mean_class_recall"), "depth": ("rmse", "abs_rel", "delta1")}
CAPTIONS = {
    "segmentation": (
        "Worst case over every {kind} attack up to the radius, 95 % bands over resampled images ({n}). "
        "Which attack counts for an image is chosen for the metric that is drawn; mIoU, a ratio of sums over all "
        "images, has a selection of its own. Ignored pixels count nowhere."
    ),
    "depth": (
        "Worst case per image and metric over every {kind} attack up to the radius, with 95 % bands ({n}). Clean and "
        "attacked images are read on the same pixels: those with a measured depth. Means over images."
    ),
}


def dense(seen: Sequence[Subject], places: Mapping[str, int]) -> list[Section]:
    """One section per dense task that was measured."""
    asked = [task for task in TASKS if any(s.clean(task) is not None or s.attacked(task) for s in seen)]
    return [_section(task, seen, places) for task in asked]


def _section(task: str, seen: Sequence[Subject], places: Mapping[str, int]) -> Section:
    section = Section(f"{task.capitalize()} under attack", task)
    for norm in dict.fromkeys(norm for s in seen for norm in s.norms()):
        kind = norm_name(norm)
        panels, count = [], ""
        for metric in SHOWN[task]:
            curves = [c for c in (curve(s, task, metric, norm) for s in seen) if not c.reason]
            if curves:
                panels.append(Panel(f"{TITLES[metric]}, worst case", curves))
                count = f"n = {len(curves[0].ids)} images"
        if not panels:
            section.absent.append(f"no {kind} attack was judged by {task}")
            continue
        caption = CAPTIONS[task].format(kind=kind, n=count)
        alt = f"{task} over the radius of {kind} attacks; the table below has the data"
        section.charts.append(figures.over_radius(panels, places, alt=alt, caption=caption, columns=2))
        if each := _each(task, seen, norm):
            caption = f"Each {kind} attack by itself, worst up to the radius, by the head that it goes through."
            section.charts.append(figures.over_radius(each, places, alt=alt, caption=caption, columns=2))
    section.titled += [table for table in (_joint(task, seen, places), _classes(task, seen, places)) if table]
    return section


def _each(task: str, seen: Sequence[Subject], norm: str) -> list[Panel]:
    """The leading metric under each attack, where there are several."""
    found: dict[str, list[Curve]] = {}
    for s in seen:
        for name in families(s.attacked(task, norm)):
            drawn = curve(s, task, LEADING[task], norm, attack=name)
            if not drawn.reason:
                found.setdefault(name, []).append(drawn)
    title = TITLES[LEADING[task]]
    return [Panel(f"{title}: {name}", curves) for name, curves in found.items()] if len(found) > 1 else []


def _joint(task: str, seen: Sequence[Subject], places: Mapping[str, int]) -> Titled | None:
    """Clean, corrupted, and attacked through every head, at each radius: the task's leading metric."""
    rows: list[list[Cell]] = []
    for s in seen:
        who = Cell(s.name, place=places[s.name])
        marks = {
            name: mark for name in _corruptions(s, task) for mark, (moved, _) in MARKS.items() if moves(name) is moved
        }
        for j in joint(s, task, SHOWN[task]):
            condition = " ".join(filter(None, (j.condition, marks.get(j.condition.partition(",")[0]))))
            rows.append([who, Cell(condition), *(_metric(m) for m in j.metrics)])
    if not rows:
        return None
    head = [Cell("encoder"), Cell("condition"), *(Cell(TITLES[m]) for m in SHOWN[task])]
    about = ["An attack through another head than the one that judges is a transfer. Worst case up to the radius."]
    shown = {moves(name) for s in seen for name in _corruptions(s, task)}
    about += [f"{mark} {says}" for mark, (moved, says) in MARKS.items() if moved in shown]
    return Titled("Every condition", [head, *rows], about)


def _corruptions(s: Subject, task: str) -> set[str]:
    return {r.cell.corruption.name for r in s.corrupted(task) if r.cell.corruption is not None}


def _classes(task: str, seen: Sequence[Subject], places: Mapping[str, int]) -> Titled | None:
    """IoU class by class, clean and under the worst attack of the largest radius."""
    if task != "segmentation":
        return None
    found = [per_class(s) for s in seen]
    names = list(dict.fromkeys(name for table in found for name in table))
    if not names:
        return None
    heads = [Cell("class"), *(Cell(s.name, place=places[s.name]) for s in seen)]
    rows = [[Cell(name), *(_drop(table.get(name)) for table in found)] for name in names]
    about = "IoU clean and in the worst case at the largest radius; a class that never occurs has none."
    return Titled("IoU class by class", [heads, *rows], [about])


def _drop(pair: tuple[Metric, Metric] | None) -> Cell:
    if pair is None:
        return Cell("\u2013")
    clean, attacked = pair
    return Cell(f"{value(clean)} \u2192 {value(attacked)}", f"{interval(clean)} \u2192 {interval(attacked)}")


def _metric(metric: Metric | None) -> Cell:
    if metric is None or metric.value is None:
        return Cell("\u2013", hint=metric.reason if metric else "")
    return Cell(value(metric), f"{interval(metric)} n = {metric.n}")
