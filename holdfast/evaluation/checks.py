"""Is the attack believable? Checks computed from the records of one encoder; none is green unless it was measured.

After Carlini et al. 2019 (arXiv 1902.06705), the flags of AutoAttack (Croce and Hein 2020) and the indicators of Pintor
et al. 2022. An attack that fails one may have met masked gradients rather than robustness. Names and thresholds stand
in `evaluation.flags`, what one cell shows by itself in `evaluation.cell_checks`; here cells are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from holdfast.attacks.methods import build
from holdfast.evaluation import flags as limits
from holdfast.evaluation.attack_names import attack_name, radius
from holdfast.evaluation.cell_checks import CELL_CHECKS, Attacked, Status, Verdict, flags, points, unsteady
from holdfast.evaluation.curves import OUTCOMES, Subject, families
from holdfast.evaluation.flags import FLAGS
from holdfast.evaluation.statistics import Difference, aligned, match, paired_difference, wilson
from holdfast.records import Result

__all__ = ["FLAGS", "Check", "Status", "checks", "checks_record", "flags"]

Array = npt.NDArray[Any]
_RANK = {"not measured": 0, "passed": 1, "failed": 2}


class Check(NamedTuple):
    """One item of the list.

    Attributes:
        name: what was asked.
        subject: the encoder.
        status: passed, failed, or not measured.
        text: the numbers, or what is missing.
        flag: its id in `flags.FLAGS`: raised where the status is failed.
    """

    name: str
    subject: str
    status: Status
    text: str
    flag: str


def checks(subject: Subject) -> list[Check]:
    """Every check of one encoder, in the order of `flags.FLAGS`, those that cannot be made included."""
    cells = _attacked(subject)
    across: dict[str, Callable[[], Verdict]] = {
        "clean-unknown": lambda: _clean(subject),
        "noise-as-good": lambda: _control(cells),
        "not-monotone": lambda: _monotone(subject),
        "above-chance": lambda: _chance(cells),
        "ce-margin-gap": lambda: _agree(cells),
        "black-box-better": lambda: _black_box(cells),
        "other-head-better": lambda: _transfer(subject),
    }
    why = next((why for cell in cells if (why := unsteady(cell))), "")
    found = []
    for flag in FLAGS.values():
        verdicts = [CELL_CHECKS[flag.id](cell) for cell in cells] if flag.id in CELL_CHECKS else []
        if flag.id in across:
            compared = why and flag.id != "clean-unknown"
            verdicts.append(Verdict("not measured", why) if compared else across[flag.id]())
        found.append(Check(flag.name, subject.name, *_worst(verdicts), flag.id))
    return found


def checks_record(subject: Subject) -> list[dict[str, str]]:
    """The checks as plain dictionaries, with the threshold and the meaning of each flag."""
    return [
        {
            "flag": check.flag,
            "subject": check.subject,
            "status": check.status,
            "name": check.name,
            "text": check.text,
            "threshold": FLAGS[check.flag].threshold,
            "about": FLAGS[check.flag].about,
        }
        for check in checks(subject)
    ]


def _worst(verdicts: Sequence[Verdict]) -> tuple[Status, str]:
    """One verdict for several cells: failed before passed before not measured, of them the largest fault."""
    if not verdicts:
        return "not measured", "no attack was judged by the head that it went through"
    worst = max(verdicts, key=lambda v: (_RANK[v.status], v.size))
    measured = [v for v in verdicts if v.status != "not measured"]
    if len(measured) < 2:
        return worst.status, worst.text
    if worst.status == "passed":
        return worst.status, f"{worst.text}: the largest of {len(measured)}"
    failed = sum(v.status == "failed" for v in measured)
    return worst.status, worst.text + (f"; {failed} of {len(measured)} fail" if len(measured) > 1 else "")


def _attacked(subject: Subject) -> list[Attacked]:
    """The cells that judge an attack on clean images by the head that was attacked."""
    found = []
    for result in subject.results:
        attack = result.cell.attack
        if attack is not None and attack.through == result.cell.judge.task and result.cell.corruption is None:
            found.append(Attacked(result.cell, attack, subject.run.outcomes(result.id)))
    return [cell for cell in found if cell.pursued]


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


def _rivals(cells: Sequence[Attacked], wanted: Callable[[Attacked], bool]) -> Iterator[tuple[Attacked, list[Attacked]]]:
    """Classification cells of a kind, each with the white-box cells of its norm and radius; none = left out."""
    for cell in cells:
        if not (wanted(cell) and cell.by_label and "correct" in cell.held):
            continue
        ball = (cell.attack.norm, cell.attack.eps)
        white = [c for c in cells if c.rival and (c.attack.norm, c.attack.eps) == ball]
        if white:
            yield cell, white


def _control(cells: Sequence[Attacked]) -> Verdict:
    """Noise of the same radius against every white-box attack by itself."""
    found = []
    for noise, white in _rivals(cells, lambda c: c.noise):
        for cell in white:
            _, (left, right, clean) = aligned([_column(noise), _column(cell), (cell.held["id"], cell.at_stake)])
            if not len(left):
                continue
            lost = int((~left & clean).sum())
            gap = paired_difference(left, right)
            text = f"noise loses {lost} of {int(clean.sum())} images, {cell.words} leaves {points(gap)} less"
            failed = lost >= limits.FEW and bool((right & clean).any()) and gap.low <= 0
            found.append(Verdict("failed" if failed else "passed", text, -gap.low))
    return max(found, key=_order, default=Verdict("not measured", "no noise of the same radius as a control"))


def _order(verdict: Verdict) -> tuple[int, float]:
    return _RANK[verdict.status], verdict.size


def _column(cell: Attacked) -> tuple[Array, Array]:
    return cell.held["id"], cell.held["correct"]


def _black_box(cells: Sequence[Attacked]) -> Verdict:
    """Images that are lost without the victim's gradient and survive with it: image by image, not on average."""
    found = []
    for cell, white in _rivals(cells, lambda c: c.black_box or _last_resort(c) is not None):
        columns = [(c.held["id"], c.held["correct"] | _by_square(c)) for c in white]
        _, (lost, *left) = aligned([(cell.held["id"], ~cell.held["correct"]), *columns])
        if not len(lost):
            continue
        count = int((lost & np.logical_and.reduce(left)).sum())
        text = f"{cell.words} loses {count} of {len(lost)} images that no white-box attack loses ({len(white)} made)"
        found.append(Verdict("failed" if count > limits.BETTER else "passed", text, count))
    return max(found, key=_order, default=Verdict("not measured", "no black-box attack of a white-box one's radius"))


def _last_resort(cell: Attacked) -> int | None:
    """The place of Square among the attacks of an ensemble that records which of them an image was lost to."""
    if not cell.white_box or not cell.by_label or "attack_member" not in cell.held:
        return None
    names = [member.name for member in build(cell.attack, classes=max(_classes(cell), 2))]
    return names.index("square") if "square" in names and len(names) > 1 else None


def _by_square(cell: Attacked) -> Array:
    """The images that an ensemble lost to its black-box member alone, bool [n]."""
    place = _last_resort(cell)
    if place is None:
        return np.zeros(cell.n, dtype=bool)
    return np.asarray((cell.held["attack_member"] == place) & ~cell.held["correct"])


def _monotone(subject: Subject) -> Verdict:
    rises: list[tuple[Difference, str]] = []
    for outcome in (OUTCOMES["correct"], OUTCOMES["cosine"]):
        for norm in subject.norms():
            for words, small, large in _harder(subject.attacked(outcome.task, norm)):
                gap = _gap(subject, large, small, outcome.name)
                if gap is not None:
                    better = gap if outcome.worse == "lower" else Difference(-gap.value, -gap.high, -gap.low, gap.n)
                    rises.append((better, f"{words.replace('*', outcome.title)}"))
    if not rises:
        return Verdict("not measured", "no attack was run at two radii or with two numbers of steps")
    clear = [rise for rise in rises if rise[0].low > 0 and rise[0].value > limits.RISE]
    if clear:
        worst, words = max(clear, key=lambda rise: rise[0].value)
        return Verdict("failed", f"{words}: better by {_interval(worst)}", worst.value / limits.RISE)
    return Verdict("passed", f"none of {len(rises)} steps to a larger radius, or to more steps, helps (paired)")


def _harder(results: Sequence[Result]) -> Iterator[tuple[str, Result, Result]]:
    """Pairs of results of which the second gave the attack more, with words in which * stands for the outcome."""
    for name, members in families(results).items():
        for small, large in itertools.pairwise([m for m in members if m.cell.attack and m.cell.attack.eps]):
            radii = [radius(r.cell.attack.eps, r.cell.attack.norm) for r in (small, large) if r.cell.attack]
            yield f"{name}, * from {' to '.join(radii)}", small, large
    alike: dict[bytes, list[Result]] = {}
    for result in results:
        attack = result.cell.attack
        if attack is not None and attack.eps:
            key = msgspec.json.encode(msgspec.structs.replace(attack, steps=0), order="deterministic")
            alike.setdefault(key, []).append(result)
    for group in alike.values():
        ordered = sorted(group, key=lambda r: r.cell.attack.steps if r.cell.attack else 0)
        for small, large in itertools.pairwise(ordered):
            if small.cell.attack and large.cell.attack:
                where = radius(large.cell.attack.eps, large.cell.attack.norm)
                told = f"{attack_name(small.cell.attack)} at {where}, * from {small.cell.attack.steps} steps"
                yield f"{told} to {large.cell.attack.steps}", small, large


def _chance(cells: Sequence[Attacked]) -> Verdict:
    direct = [c for c in cells if c.rival]
    direct = [c for c in direct if c.attack.norm == "linf"] or direct
    if not direct:
        return Verdict("not measured", "no attack through the classification head")
    attack = max(direct, key=lambda c: c.attack.eps).attack
    largest = [c for c in direct if (c.attack.norm, c.attack.eps) == (attack.norm, attack.eps)]
    _, columns = aligned([_column(c) for c in largest])
    classes = _classes(largest[0])
    if classes < 2 or not len(columns[0]):
        return Verdict("not measured", "the number of classes is unknown")
    correct = np.logical_and.reduce(columns)
    k, n = int(correct.sum()), len(correct)
    low, high = wilson(k, n)
    text = f"{k / n:.0%} [{low:.0%}, {high:.0%}] at {radius(attack.eps, attack.norm)}, n = {n}; "
    text += f"chance is {1 / classes:.1%}"
    if k / n <= 1 / classes:
        return Verdict("passed", f"{text} (no evidence by itself: broken models pass it too)")
    if attack.norm == "linf" and attack.eps >= limits.WHOLE_RANGE and low > 1 / classes:
        return Verdict("failed", f"{text}, although every image can be made grey")
    return Verdict("not measured", f"{text}: the grid ends too early")


def _classes(cell: Attacked) -> int:
    """How many classes there are, as far as the record tells."""
    named = len(cell.cell.data.classes) or cell.cell.data.classes_there
    return named or len(np.unique(cell.held.get("label", np.array([]))))


def _agree(cells: Sequence[Attacked]) -> Verdict:
    found: list[tuple[Difference, str]] = []
    white = [c for c in cells if c.rival]
    for cell, other in itertools.product(white, white):
        same = msgspec.structs.replace(other.attack, push="ce") == cell.attack
        if cell.attack.push != "ce" or other.attack.push not in ("margin", "dlr") or not same:
            continue
        _, (left, right) = aligned([_column(cell), _column(other)])
        if len(left):
            reach = radius(cell.attack.eps, cell.attack.norm)
            found.append((paired_difference(left, right), f"{other.attack.push}, {reach}"))
    if not found:
        return Verdict("not measured", "only one of the two harms was raised")
    # Of gaps that are clear the largest; a larger one that may be chance does not hide it.
    gap, where = max(found, key=lambda pair: (pair[0].clear, abs(pair[0].value)))
    failed = abs(gap.value) > limits.DISAGREEMENT and gap.clear
    weaker = "cross-entropy" if gap.value > 0 else "margin"
    text = f"accuracy differs by {points(gap)} at most ({where})"
    return Verdict("failed" if failed else "passed", text + (f"; {weaker} meets masked gradients" if failed else ""))


def _transfer(subject: Subject) -> Verdict:
    found: list[tuple[Difference, str]] = []
    attacked = subject.attacked("classification")
    for result in attacked:
        if result.cell.attack is None or result.cell.attack.through == "classification":
            continue
        stage = result.cell.attack
        direct = [r for r in attacked if (a := r.cell.attack) is not None and a.through == "classification"]
        direct = [r for r in direct if (a := r.cell.attack) and (a.norm, a.eps) == (stage.norm, stage.eps)]
        direct = [r for r in direct if (a := r.cell.attack) and a.aim == "away" and Attacked(r.cell, a, {}).white_box]
        gaps = [g for r in direct if (g := _gap(subject, r, result, "correct")) is not None]
        if gaps:
            found.append((min(gaps, key=lambda g: g.value), f"{attack_name(stage)} at {radius(stage.eps, stage.norm)}"))
    if not found:
        return Verdict(
            "not measured", "needs an embedding attack and a direct one at one radius, both judged by the head"
        )
    gap, words = max(found, key=lambda pair: pair[0].low)
    if gap.low > 0:
        text = f"{words}, through the embedding, leaves less accuracy than the direct attack, by {points(gap)}"
        return Verdict("failed", text)
    return Verdict("passed", f"compared at {len(found)} radii; the direct attack is never clearly weaker")


def _gap(subject: Subject, a: Result, b: Result, name: str) -> Difference | None:
    """Outcome of a minus that of b over their common images; None where there are none."""
    left, right = subject.run.outcomes(a.id), subject.run.outcomes(b.id)
    if name not in left or name not in right:
        return None
    first, second = match(left["id"], right["id"])
    return paired_difference(left[name][first], right[name][second]) if len(first) else None


def _interval(gap: Difference) -> str:
    """A difference with interval and n."""
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], n = {gap.n}"
