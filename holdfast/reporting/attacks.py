"""The tables on attacks: one radius of each norm and their union, AutoAttack member by member, distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.evaluation.attack_tables import MEMBERS, Ball, Balls, Nearest, across_norms, ensembles, nearest_distances
from holdfast.evaluation.curves import Subject, norm_name
from holdfast.evaluation.rows import interval, radius, value
from holdfast.evaluation.summary import ball_name
from holdfast.records import Metric
from holdfast.reporting.sections import Cell, Titled
from holdfast.reporting.wording import listed


def tables(seen: Sequence[Subject], places: Mapping[str, int]) -> list[Titled]:
    """The tables of the section on accuracy under attack, those that there is something for."""
    found = [norms(seen, places), autoattack(seen, places), distances(seen, places)]
    return [table for table in found if table is not None]


def norms(seen: Sequence[Subject], places: Mapping[str, int]) -> Titled | None:
    """Accuracy in one ball of each norm and in their union; none where no two norms were attacked."""
    balls = across_norms(seen)
    shown = [at for at in range(len(balls[0].each)) if any(b.each[at].eps for b in balls)] if balls else []
    if len(shown) < 2:
        return None
    rows = [[Cell("encoder"), *(Cell(norm_name(balls[0].each[at].norm)) for at in shown), Cell("worst over norms")]]
    notes = [
        "Accuracy left, worst case per image over every attack of the norm up to the radius in the cell. Worst over "
        "norms: an image counts as lost if it is lost in any of these balls."
    ]
    for found in balls:
        own = [found.each[at] for at in shown]
        rows.append([_who(found.subject, places), *(_in_ball(ball) for ball in own), _worst(found, len(shown))])
        absent = [ball.left.reason for ball in own if ball.left.reason]
        notes += absent + ([f"{found.subject}: {found.union.reason}"] if found.union.reason else [])
    other = {ball_name(ball.eps, ball.norm) for b in balls for ball in b.each if ball.eps and not ball.paper}
    if other:
        notes.append(f"Not the radius that papers report for images of this size: {listed(sorted(other))}")
    return Titled("Across norms", rows, _sentences(notes))


def autoattack(seen: Sequence[Subject], places: Mapping[str, int]) -> Titled | None:
    """Images left after each member of AutoAttack; none where it was not run."""
    made = [found for subject in seen for found in ensembles(subject)]
    if not made:
        return None
    heads = ("encoder", "radius", "clean", *MEMBERS.values())
    rows = [[Cell(text) for text in heads]]
    notes = ["Images left after each member and all before it; in brackets, how many images that member broke."]
    for found in made:
        ball = f"{norm_name(found.norm)} {radius(found.eps, found.norm)}"
        begin = [_who(found.subject, places), Cell(ball, "not standard" if found.note else "")]
        told = [f"{found.subject} at {ball}: {text}" for text in (found.note, found.reason) if text]
        notes += told
        if found.reason:
            rows.append([*begin, *(Cell("\u2013", hint=found.reason) for _ in heads[2:])])
            continue
        counts = ["", *(f" (\u2212{count})" for count in found.broken)]
        rows.append([*begin, *(_share(metric, count) for metric, count in zip(found.left, counts))])
    return Titled("AutoAttack, member by member", rows, _sentences(notes))


def distances(seen: Sequence[Subject], places: Mapping[str, int]) -> Titled | None:
    """The median distance to the nearest adversarial image; none where no attack looked for it."""
    made = [found for subject in seen for found in nearest_distances(subject)]
    if not made:
        return None
    heads = ("encoder", "attack", "norm", "median distance", "wrong without attack", "out of reach")
    rows = [[Cell(text) for text in heads]]
    rows += [_distance(found, places) for found in made]
    about = (
        "Distance to the nearest adversarial image that the attack found, in the norm's own unit (Linf: /255). The "
        "median is over all images: 0 where the clean image is wrong, beyond every radius where none was found."
    )
    return Titled("Nearest adversarial images", rows, [about])


def _distance(found: Nearest, places: Mapping[str, int]) -> list[Cell]:
    never = Cell(f"{found.never} of {found.n} never fooled")
    wrong = Cell(f"{found.wrong} of {found.n}")
    return [_who(found.subject, places), Cell(found.attack), Cell(norm_name(found.norm)), _median(found), wrong, never]


def _who(subject: str, places: Mapping[str, int]) -> Cell:
    return Cell(subject, place=places[subject])


def _share(metric: Metric, more: str = "") -> Cell:
    return Cell(value(metric) + more, f"{interval(metric)} n = {metric.n}")


def _in_ball(ball: Ball) -> Cell:
    if ball.left.value is None:
        return Cell("\u2013", hint=ball.left.reason)
    return _share(ball.left)._replace(text=f"{value(ball.left)} at {radius(ball.eps, ball.norm)}")


def _worst(found: Balls, shown: int) -> Cell:
    if found.union.value is None:
        return Cell("\u2013", hint=found.union.reason)
    cell = _share(found.union)
    partly = f" over {listed(norm_name(norm) for norm in found.over)}" if len(found.over) < shown else ""
    return cell._replace(text=cell.text + partly)


def _median(found: Nearest) -> Cell:
    ends = ["beyond" if end is None else _length(end, found.norm) for end in (found.low, found.high)]
    low, high = (end.removesuffix("/255") for end in ends)
    text = "half or more never fooled" if found.median is None else _length(found.median, found.norm)
    return Cell(text, f"[{low}, {high}] n = {found.n}")


def _length(distance: float, norm: str) -> str:
    return f"{distance * 255:#.3g}/255" if norm == "linf" else f"{distance:#.3g}"


def _sentences(notes: Sequence[str]) -> list[str]:
    return [note if note.endswith(".") else f"{note}." for note in dict.fromkeys(notes)]
