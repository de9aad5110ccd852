"""What the tables on attacks say: one radius of each norm and their union, the members of AutoAttack, distances.

The union of norms is that of Tramer and Boneh 2019 (arXiv 1904.13000): an image counts as lost if it is lost in any of
the balls. AutoAttack: Croce and Hein 2020 (arXiv 2003.01690). Everything is per image, matched by id.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.attacks.autoattack import STEPS
from holdfast.evaluation import statistics
from holdfast.evaluation.curves import OUTCOMES, Outcome, Subject, curve, distances, families, norm_name
from holdfast.evaluation.statistics import Indices, aligned, worst_case
from holdfast.evaluation.suites import SMALL, paper_radius
from holdfast.records import Attack, Metric, Norm

Array = npt.NDArray[Any]

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
MEMBERS = {"apgd-ce": "APGD-CE", "apgd-t": "+ APGD-T", "fab-t": "+ FAB-T", "square": "+ Square"}
"""The members of AutoAttack in their order, as a column of a running table is headed."""
NEIGHBOURS = (
    Outcome("breakaway", "embedding", "breakaway", "higher", "breakaway risk"),
    Outcome("kept", "embedding", "neighbours_kept", "lower", "nearest neighbours kept"),
)
"""Outcomes of an embedding that older records do not have."""


class Ball(NamedTuple):
    """What one encoder is left with in one ball.

    Attributes:
        norm: of it.
        eps: its radius; 0 = none was measured.
        paper: whether papers report at this radius, for images of this size.
        left: accuracy, worst case over all attacks of that norm up to the radius; absent with a reason.
        ids: of the images, [n].
        right: whether each is still right, bool [n].
    """

    norm: Norm
    eps: float
    paper: bool
    left: Metric
    ids: Array = np.array([])
    right: Array = np.array([])


class Balls(NamedTuple):
    """One encoder in the balls of all norms.

    Attributes:
        subject: name of the encoder.
        each: one per norm, absent ones with their reason.
        union: accuracy over the images that are right in every measured ball; absent with a reason.
        over: norms that the union is over.
    """

    subject: str
    each: tuple[Ball, ...]
    union: Metric
    over: tuple[Norm, ...]


class Ensemble(NamedTuple):
    """AutoAttack at one radius, member by member.

    Attributes:
        subject: name of the encoder.
        norm: of the ball.
        eps: its radius.
        left: accuracy without attack, then after each of `MEMBERS` and those before it; empty with a reason.
        broken: how many images each member was the one to break.
        note: why this is not the standard version; empty where it is.
        reason: why there are no numbers.
    """

    subject: str
    norm: str
    eps: float
    left: tuple[Metric, ...]
    broken: tuple[int, ...]
    note: str = ""
    reason: str = ""


class Nearest(NamedTuple):
    """The distances that a minimal-norm attack found.

    Attributes:
        subject: name of the encoder.
        attack: in words.
        norm: of the distances.
        median: over all images, 0 = wrong already, in pixel units; None = half of them or more were never fooled.
        low: lower end of its 95 % bootstrap interval; None as above.
        high: upper end; None as above.
        n: images.
        wrong: of them wrong without an attack.
        never: of them never fooled.
    """

    subject: str
    attack: str
    norm: str
    median: float | None
    low: float | None
    high: float | None
    n: int
    wrong: int
    never: int


def across_norms(seen: Sequence[Subject]) -> list[Balls]:
    """Every encoder in one ball of each norm, and in their union.

    The radius is the one that papers report where all encoders that were attacked in that norm have it; else the
    largest that they share; else the largest of each.
    """
    shared = {norm: _shared(seen, norm) for norm in NORMS}
    found = []
    for subject in seen:
        each = tuple(_ball(subject, norm, shared[norm]) for norm in NORMS)
        union, over = _union(each)
        found.append(Balls(subject.name, each, union, over))
    return found


def ensembles(subject: Subject) -> list[Ensemble]:
    """AutoAttack through the head that judges, on the encoder itself: Linf first, radii ascending."""
    found = []
    for result in subject.attacked("classification"):
        attack = result.cell.attack
        if attack is None or attack.method != "autoattack" or attack.surrogate is not None:
            continue
        made = Ensemble(subject.name, attack.norm, attack.eps, (), (), _departure(attack))
        held: dict[str, Array] = dict(subject.run.outcomes(result.id))
        missing = [name for name in ("attack_member", "attack_clean_score", "attack_score") if name not in held]
        if missing or not len(held["id"]):
            reason = f"its record has no {missing[0]}" if missing else "its record has no image"
            found.append(made._replace(reason=reason))
            continue
        clean = np.asarray(held["attack_clean_score"] <= 0)
        lost = clean & np.asarray(held["attack_score"] > 0)
        member = np.asarray(held["attack_member"])
        # What bf16 leaves is attacked once more in float32: that counts with the last member.
        member = np.minimum(member, len(MEMBERS) - 1)
        left = [clean] + [clean & ~(lost & (member <= place)) for place in range(len(MEMBERS))]
        broken = tuple(int((a & ~b).sum()) for a, b in itertools.pairwise(left))
        found.append(made._replace(left=tuple(statistics.mean("accuracy", k) for k in left), broken=broken))
    return sorted(found, key=lambda e: (NORMS.index(e.norm), e.eps))


def nearest_distances(subject: Subject) -> list[Nearest]:
    """The median distance of every minimal-norm attack on an encoder's classification, Linf first."""
    found = []
    for norm in NORMS:
        for name, results in families(subject.nearest("classification", norm)).items():
            for result in results:
                _, apart = distances(subject, result)
                if len(apart):
                    found.append(_nearest(subject.name, name, norm, apart))
    return found


def _nearest(subject: str, attack: str, norm: str, apart: Array) -> Nearest:
    values = apart.astype(np.float64)

    def median(drawn: Indices) -> float:
        return float(np.median(values[drawn]))

    everyone: Indices = np.arange(len(values), dtype=np.int64)
    ends = (median(everyone), *statistics.bootstrap(median, len(values)))
    middle, low, high = (end if np.isfinite(end) else None for end in ends)
    wrong, never = int((values == 0).sum()), int(np.isinf(values).sum())
    return Nearest(subject, attack, norm, middle, low, high, len(values), wrong, never)


def _departure(attack: Attack) -> str:
    """In what an AutoAttack is not the standard version."""
    told = [f"{attack.steps} steps instead of {STEPS}"] if attack.steps != STEPS else []
    told += [f"{attack.restarts} restarts"] if attack.restarts > 1 else []
    told += [f"the mean of {attack.samples} passes"] if attack.samples > 1 else []
    told += [f"{attack.precision}, its survivors once more in float32"] if attack.precision != "fp32" else []
    return f"{' and '.join(told)}: not the standard version" if told else ""


def _shared(seen: Sequence[Subject], norm: Norm) -> float | None:
    """The radius at which encoders are shown together; None = they share none."""
    grids = [grid for subject in seen if (grid := _grid(subject, norm))]
    papers = {
        _paper(subject, norm) for subject in seen if _grid(subject, norm) or subject.nearest("classification", norm)
    }
    common = sorted(set.intersection(*grids)) if grids else sorted(papers)
    reported = [eps for eps in common if any(_same(eps, paper) for paper in papers)]
    return max(reported or common, default=None)


def _ball(subject: Subject, norm: Norm, shared: float | None) -> Ball:
    outcome = OUTCOMES["correct"]
    drawn = curve(subject, outcome, norm)
    if drawn.reason:
        return Ball(norm, 0.0, False, _absent(drawn.reason))
    grid = _grid(subject, norm)
    eps = max(grid, default=_paper(subject, norm)) if shared is None else shared
    # Distances alone were measured at every radius; the radii of their curve are only where it was drawn.
    right = drawn.running[eps] if eps in drawn.running else _further(subject, norm, eps, drawn.ids, drawn.running[0.0])
    paper = _same(eps, _paper(subject, norm))
    return Ball(norm, eps, paper, statistics.mean(outcome.metric, right), drawn.ids, right)


def _further(subject: Subject, norm: Norm, eps: float, ids: Array, clean: Array) -> Array:
    """Right without an attack, and further than a radius from every adversarial image, bool [n]."""
    columns = [(ids, clean)]
    for result in subject.nearest("classification", norm):
        names, apart = distances(subject, result)
        columns.append((names, apart > eps))
    _, found = aligned(columns)
    return worst_case(found)


def _union(each: Sequence[Ball]) -> tuple[Metric, tuple[Norm, ...]]:
    known = [ball for ball in each if ball.left.value is not None]
    over: tuple[Norm, ...] = tuple(ball.norm for ball in known)
    if len(known) < 2:
        told = f"{norm_name(over[0])} alone" if over else "no norm"
        return _absent(f"needs attacks of two norms; {told} was measured"), over
    ids, columns = aligned([(ball.ids, ball.right) for ball in known])
    if not len(ids):
        return _absent("the attacks of different norms have no image in common"), over
    return statistics.mean("accuracy", worst_case(columns)), over


def _grid(subject: Subject, norm: Norm) -> set[float]:
    """Radii of the attacks in a ball."""
    stages = [r.cell.attack for r in subject.attacked("classification", norm)]
    return {attack.eps for attack in stages if attack is not None}


def _paper(subject: Subject, norm: Norm) -> float:
    """The radius that papers report for images of this size; images as they are stored count as small."""
    sizes = {r.cell.data.size for r in subject.results if r.cell.attack is not None}
    return paper_radius(norm, max(sizes, default=0) or SMALL)


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(a, b)


def _absent(reason: str) -> Metric:
    return Metric(name="accuracy", reason=reason)
