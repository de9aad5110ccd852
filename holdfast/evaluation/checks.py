"""Is the attack believable? Checks computed from the records of one encoder; none is green unless it was measured.

After Carlini et al. 2019 (arXiv 1902.06705), the flags of AutoAttack (Croce and Hein 2020) and the indicators of Pintor
et al. 2022. An attack that fails one may have met masked gradients rather than robustness.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.evaluation.curves import OUTCOMES, Subject, attack_name, families
from holdfast.evaluation.rows import radius
from holdfast.evaluation.statistics import Difference, match, paired_difference, wilson
from holdfast.records import Attack, Result

Array = npt.NDArray[Any]
Status = Literal["passed", "failed", "not measured"]

# Thresholds: a difference counts as a failure only where it is larger than this and its paired interval excludes 0.
ZERO_GRADIENTS = 0.01
RISE = 0.02
STILL_RISING = 0.03
STILL_DRIFTING = 0.10
ROUNDING = 0.05
DISAGREEMENT = 0.10
RAISED = 0.5
FEW = 5
TOLERANCE = 1e-6
WHOLE_RANGE = 0.5


class Check(NamedTuple):
    """One item of the list.

    Attributes:
        name: what was asked.
        subject: the encoder.
        status: passed, failed, or not measured.
        text: the numbers, or what is missing.
    """

    name: str
    subject: str
    status: Status
    text: str


class Verdict(NamedTuple):
    """Status and text of one check, before it has a name."""

    status: Status
    text: str


class _Attacked(NamedTuple):
    """One attacked cell, judged by the head that was attacked, with its per-image outcomes."""

    result: Result
    attack: Attack
    held: dict[str, Array]

    @property
    def words(self) -> str:
        return f"{attack_name(self.attack)} at {radius(self.attack.eps, self.attack.norm)}"


def checks(subject: Subject) -> list[Check]:
    """Every check of one encoder, in a fixed order, those that cannot be made included."""
    cells = _white_box(subject)
    made: list[tuple[str, Callable[[], Verdict]]] = [
        ("Clean accuracy is known for the attacked images", lambda: _clean(subject)),
        ("The gradient finds what noise does not", lambda: _noise(cells)),
        ("Gradients are not zero", lambda: _gradients(cells)),
        ("A larger radius never helps the defender", lambda: _monotone(subject)),
        ("A large radius brings accuracy down to chance", lambda: _chance(subject)),
        ("The attack has converged", lambda: _converged(cells)),
        ("Cross-entropy and margin agree", lambda: _agree(subject)),
        ("No attack through another head beats the direct one", lambda: _transfer(subject)),
        ("The attack survives rounding to 8 bits", lambda: _rounding(cells)),
        ("Ball and box are respected", lambda: _ball(cells)),
        ("No black-box attack beats the gradient", lambda: Verdict("not measured", "no black-box attack was run")),
        ("The same input gives the same answer", lambda: Verdict("not measured", "images were judged once")),
    ]
    return [Check(name, subject.name, *check()) for name, check in made]


def _white_box(subject: Subject) -> list[_Attacked]:
    found = []
    for result in subject.results:
        attack = result.cell.attack
        if attack is not None and attack.through == result.cell.judge.task and result.cell.corruption is None:
            cell = _Attacked(result, attack, subject.run.outcomes(result.id))
            found += [cell] if _pursued(cell) else []
    return found


def _pursued(cell: _Attacked) -> bool:
    """Whether there was an image to attack: one that is lost when clean is left alone."""
    clean = cell.held.get("attack_clean_score")
    return clean is None or cell.attack.through != "classification" or bool((clean <= 0).any())


def _clean(subject: Subject) -> Verdict:
    attacked = subject.attacked("classification")
    if not attacked:
        return Verdict("not measured", "no attack was judged by classification")
    clean = subject.clean("classification")
    if clean is None:
        return Verdict("failed", "there is no clean cell, so that no fall in accuracy can be stated")
    ids = subject.run.outcomes(clean.id)["id"]
    missing = [r for r in attacked if len(match(subject.run.outcomes(r.id)["id"], ids)[0]) < _count(subject, r)]
    if missing:
        return Verdict("failed", f"{len(missing)} of {len(attacked)} attacked cells hold images without a clean answer")
    n = _count(subject, attacked[0])
    return Verdict("passed", f"all {len(attacked)} attacked cells (n = {n}) are among the {len(ids)} clean images")


def _count(subject: Subject, result: Result) -> int:
    """Images of a result."""
    return len(subject.run.outcomes(result.id)["id"])


def _noise(cells: Sequence[_Attacked]) -> Verdict:
    drawn = [c for c in cells if c.attack.start == "random"]
    measured = [c for c in drawn if {"attack_score", "attack_start_score"} <= set(c.held)]
    if not measured:
        return Verdict("not measured", "no attack recorded the score of a random start")
    weaker = [c for c in measured if (c.held["attack_score"] < c.held["attack_start_score"] - TOLERANCE).any()]
    if weaker:
        return Verdict("failed", f"for {weaker[0].words} some images do worse under noise than under the attack")
    shares = [(_raised(c), c) for c in measured]
    known = [(share, c) for share, c in shares if share is not None]
    beaten = [c for c in measured if c.attack.through == "classification" and _no_better_than_noise(c)]
    if beaten:
        lost = int((beaten[0].held["attack_start_score"] > 0).sum())
        n = len(beaten[0].held["id"])
        return Verdict("failed", f"{beaten[0].words}: noise loses {lost} of {n} images, and the gradient no other")
    if not known:
        return Verdict("not measured", "noise alone loses every image")
    share, worst = min(known, key=lambda pair: pair[0])
    text = f"the attack raises the score of {share:.0%} of the images that survive noise, at least ({worst.words})"
    return Verdict("failed" if share < RAISED else "passed", text)


def _raised(cell: _Attacked) -> float | None:
    """Share of the images that survive their random start whose score the attack raised above it."""
    start, score = cell.held["attack_start_score"], cell.held["attack_score"]
    rows = start <= 0 if cell.attack.through == "classification" else np.ones(len(start), dtype=bool)
    return float((score > start)[rows].mean()) if rows.any() else None


def _no_better_than_noise(cell: _Attacked) -> bool:
    """Whether noise loses more than a few images that were right, others survive, and the gradient loses no more."""
    clean = cell.held.get("attack_clean_score", np.full(len(cell.held["id"]), -1.0)) <= 0
    noise = int(((cell.held["attack_start_score"] > 0) & clean).sum())
    lost = int(((cell.held["attack_score"] > 0) & clean).sum())
    return FEW <= noise == lost < int(clean.sum())


def _gradients(cells: Sequence[_Attacked]) -> Verdict:
    measured = [c for c in cells if "attack_zero_gradients" in c.held]
    if not measured:
        return Verdict("not measured", "no attack recorded its gradients")
    zero, worst = max(((_zeros(c), c) for c in measured), key=lambda pair: float(pair[0].mean()))
    share, images = float(zero.mean()), int((zero > 0).sum())
    if share == 0:
        return Verdict("passed", f"none of the gradients of {len(measured)} attacked cells was 0 everywhere")
    text = f"{share:.1%} of the gradients of {worst.words} were exactly 0 everywhere ({images} of {len(zero)} images)"
    return Verdict("failed" if share > ZERO_GRADIENTS else "passed", text)


def _zeros(cell: _Attacked) -> Array:
    """Share of zero gradients of every image that was attacked at all."""
    zero = cell.held["attack_zero_gradients"]
    clean = cell.held.get("attack_clean_score")
    rows = clean <= 0 if clean is not None and cell.attack.through == "classification" else np.ones(len(zero), bool)
    return zero[rows] if rows.any() else np.zeros(1)


def _monotone(subject: Subject) -> Verdict:
    rises: list[tuple[Difference, str]] = []
    pairs = 0
    for outcome in (OUTCOMES["correct"], OUTCOMES["cosine"]):
        for norm in subject.norms():
            for name, members in families(subject.attacked(outcome.task, norm)).items():
                for small, large in itertools.pairwise(members):
                    gap = _gap(subject, large, small, outcome.name)
                    if gap is None:
                        continue
                    pairs += 1
                    better = gap if outcome.worse == "lower" else Difference(-gap.value, -gap.high, -gap.low, gap.n)
                    radii = " to ".join(radius(r.cell.attack.eps, norm) for r in (small, large) if r.cell.attack)
                    rises.append((better, f"{name}, {outcome.title} from {radii}"))
    if not pairs:
        return Verdict("not measured", "no attack was run at two radii")
    clear = [rise for rise in rises if rise[0].low > 0 and rise[0].value > RISE]
    if clear:
        worst, words = max(clear, key=lambda rise: rise[0].value)
        return Verdict("failed", f"{words}: better by {_interval(worst)}")
    return Verdict("passed", f"none of {pairs} steps to a larger radius helps (each attack alone, paired intervals)")


def _chance(subject: Subject) -> Verdict:
    attacked = subject.attacked("classification")
    direct = [r for r in attacked if r.cell.attack and r.cell.attack.through == "classification"]
    if not direct:
        return Verdict("not measured", "no attack through the classification head")
    largest = max(direct, key=lambda r: r.cell.attack.eps if r.cell.attack else 0.0)
    attack, held = largest.cell.attack, subject.run.outcomes(largest.id)
    assert attack is not None, "filtered above"
    classes = len(largest.cell.data.classes) or len(np.unique(held.get("label", np.array([]))))
    if classes < 2:
        return Verdict("not measured", "the number of classes is unknown")
    k, n = int(held["correct"].sum()), len(held["id"])
    low, high = wilson(k, n)
    where = radius(attack.eps, attack.norm)
    text = f"{k / n:.0%} [{low:.0%}, {high:.0%}] at {where}, n = {n}; chance is {1 / classes:.1%}"
    if k / n <= 1 / classes:
        return Verdict("passed", f"{text} (a weak check: many broken attacks pass it)")
    if attack.norm == "linf" and attack.eps >= WHOLE_RANGE and low > 1 / classes:
        return Verdict("failed", f"{text}, although every image can be made grey")
    return Verdict("not measured", f"{text}: the grid ends too early")


def _converged(cells: Sequence[_Attacked]) -> Verdict:
    measured = [c for c in cells if {"attack_score", "attack_early_score"} <= set(c.held)]
    if not measured:
        return Verdict("not measured", "no attack recorded its score before the last quarter of its steps")
    gains = [(_gain(c), c) for c in measured]
    excess = max(gains, key=lambda g: g[0] / _allowed(g[1]))
    gain, worst = excess
    kind = "of the images fall" if worst.attack.through == "classification" else "of the drift comes"
    text = f"{gain:.1%} {kind} in the last quarter of the {worst.attack.steps} steps, at most ({worst.words})"
    failed = gain > _allowed(worst)
    more = "; more steps would find more" if failed else ""
    return Verdict("failed" if failed else "passed", text + more)


def _gain(cell: _Attacked) -> float:
    """Share of images lost, or of drift made, in the last quarter of the steps."""
    early, score = cell.held["attack_early_score"], cell.held["attack_score"]
    if cell.attack.through == "classification":
        return float(((score > 0) & (early <= 0)).mean())
    total = float(score.mean(dtype=np.float64))
    return (total - float(early.mean(dtype=np.float64))) / total if total > 0 else 0.0


def _allowed(cell: _Attacked) -> float:
    return STILL_RISING if cell.attack.through == "classification" else STILL_DRIFTING


def _agree(subject: Subject) -> Verdict:
    found: list[tuple[Difference, str]] = []
    direct = [r for r in subject.attacked("classification") if r.cell.attack and r.cell.attack.push == "ce"]
    for result in direct:
        other = next((r for r in subject.attacked("classification") if _same_but(r, result, push="margin")), None)
        gap = _gap(subject, result, other, "correct") if other is not None else None
        if gap is not None and result.cell.attack is not None:
            found.append((gap, radius(result.cell.attack.eps, result.cell.attack.norm)))
    if not found:
        return Verdict("not measured", "only one of the two harms was raised")
    gap, where = max(found, key=lambda pair: abs(pair[0].value))
    failed = abs(gap.value) > DISAGREEMENT and gap.clear
    weaker = "cross-entropy" if gap.value > 0 else "margin"
    text = f"accuracy differs by {_points(gap)} at most (at {where})"
    return Verdict("failed" if failed else "passed", text + (f"; {weaker} meets masked gradients" if failed else ""))


def _transfer(subject: Subject) -> Verdict:
    found: list[tuple[Difference, str]] = []
    attacked = subject.attacked("classification")
    for result in attacked:
        if result.cell.attack is None or result.cell.attack.through == "classification":
            continue
        stage = result.cell.attack
        direct = [r for r in attacked if _same_ball(r, stage)]
        gaps = [g for r in direct if (g := _gap(subject, r, result, "correct")) is not None]
        if gaps:
            found.append((min(gaps, key=lambda g: g.value), f"{attack_name(stage)} at {radius(stage.eps, stage.norm)}"))
    if not found:
        return Verdict(
            "not measured", "needs an embedding attack and a direct one at one radius, both judged by the head"
        )
    gap, words = max(found, key=lambda pair: pair[0].low)
    if gap.low > 0:
        return Verdict(
            "failed",
            f"{words}, through the embedding, leaves less accuracy than the direct attack, by {_points(gap)}",
        )
    return Verdict("passed", f"compared at {len(found)} radii; the direct attack is never clearly weaker")


def _rounding(cells: Sequence[_Attacked]) -> Verdict:
    direct = [c for c in cells if {"correct", "rounded_correct"} <= set(c.held)]
    whole = [c for c in direct if c.attack.norm != "linf" or c.attack.eps >= 1 / 255 - TOLERANCE]
    if not whole:
        missing = (
            "every radius is below one level of 8 bits" if direct else "no attacked image was judged after rounding"
        )
        return Verdict("not measured", missing)
    gaps = [(paired_difference(c.held["rounded_correct"], c.held["correct"]), c) for c in whole]
    gap, worst = max(gaps, key=lambda pair: pair[0].value)
    below = len(direct) - len(whole)
    note = f"; {below} cells with radii below 1/255 cannot be stored in 8 bits and are left out" if below else ""
    text = f"accuracy returns by {_points(gap)} at most ({worst.words}){note}"
    return Verdict("failed" if gap.value > ROUNDING and gap.low > 0 else "passed", text)


def _ball(cells: Sequence[_Attacked]) -> Verdict:
    measured = [c for c in cells if "attack_norm" in c.held]
    if not measured:
        return Verdict("not measured", "no attack recorded the norm of its perturbation")
    excess, worst = max(
        ((float((c.held["attack_norm"] - c.attack.eps).max()), c) for c in measured), key=lambda e: e[0]
    )
    n = sum(len(c.held["id"]) for c in measured)
    if excess > TOLERANCE * max(1.0, worst.attack.eps):
        return Verdict("failed", f"a perturbation of {worst.words} exceeds its radius by {excess:.2g}")
    return Verdict(
        "passed", f"{n} perturbations lie within radius + 1e-6; pixels outside [0, 1] are refused before recording"
    )


def _gap(subject: Subject, a: Result, b: Result, name: str) -> Difference | None:
    """Outcome of a minus that of b over their common images; None where there are none."""
    left, right = subject.run.outcomes(a.id), subject.run.outcomes(b.id)
    if name not in left or name not in right:
        return None
    first, second = match(left["id"], right["id"])
    return paired_difference(left[name][first], right[name][second]) if len(first) else None


def _same_but(result: Result, other: Result, *, push: str) -> bool:
    a, b = result.cell.attack, other.cell.attack
    same = ("through", "norm", "eps", "steps", "restarts")
    return a is not None and b is not None and a.push == push and all(getattr(a, k) == getattr(b, k) for k in same)


def _same_ball(result: Result, stage: Attack) -> bool:
    a = result.cell.attack
    return a is not None and a.through == "classification" and (a.norm, a.eps) == (stage.norm, stage.eps)


def _interval(gap: Difference) -> str:
    """A difference with interval and n."""
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], n = {gap.n}"


def _points(gap: Difference) -> str:
    """A difference of two shares in percentage points, with interval and n."""
    return f"{100 * gap.value:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}], n = {gap.n}"
