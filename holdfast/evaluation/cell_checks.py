"""What one attacked cell shows about its own believability: the flags that need no other cell. NumPy alone.

A verdict that compares single answers is not given where the victim's answers change from pass to pass, or with the
company of an image: whatever such a comparison says, it says of the victim and not of the attack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.attacks.methods import AIMED, METHODS, WIDER
from holdfast.evaluation import evidence
from holdfast.evaluation import flags as limits
from holdfast.evaluation.attack_names import attack_name, radius
from holdfast.evaluation.statistics import Difference, paired_difference
from holdfast.records import DENSE_TASKS, Attack, Cell

Array = npt.NDArray[Any]
Held = Mapping[str, Array]
Status = Literal["passed", "failed", "not measured"]


class Verdict(NamedTuple):
    """What was found.

    Attributes:
        status: passed, failed, or not measured.
        text: the numbers, or what is missing.
        size: how large the fault is, in units of its threshold; orders the verdicts of several cells.
    """

    status: Status
    text: str
    size: float = 0.0


@dataclass(frozen=True)
class Attacked:
    """An attacked cell with its per-image outcomes.

    Attributes:
        cell: what was measured.
        attack: its attack.
        held: outcomes [n] by name.
    """

    cell: Cell
    attack: Attack
    held: Held

    @property
    def words(self) -> str:
        """The attack with its radius."""
        reach = radius(self.attack.eps, self.attack.norm) if self.attack.eps else "any distance"
        return f"{attack_name(self.attack)} at {reach}"

    @property
    def n(self) -> int:
        """Images."""
        return len(self.held["id"])

    @property
    def direct(self) -> bool:
        """Whether the head that was attacked judges."""
        return self.attack.through == self.cell.judge.task

    @property
    def by_label(self) -> bool:
        """Whether an image can be lost."""
        return self.attack.through == "classification"

    @property
    def can_be_lost(self) -> bool:
        """Whether a score above 0 means that something is reached: a wrong label, another neighbour, a target."""
        drifts = self.attack.scored == "drift" and self.attack.aim == "away"
        return self.by_label or (self.attack.through == "embedding" and not drifts)

    @property
    def rival(self) -> bool:
        """Whether it is a white box that accuracy can be compared with: one that takes any wrong class."""
        return self.white_box and self.by_label and self.attack.aim == "away" and "correct" in self.held

    @property
    def dense(self) -> bool:
        """Whether every pixel is answered for, so that an image is never lost as a whole."""
        return self.attack.through in DENSE_TASKS

    @property
    def white_box(self) -> bool:
        """Whether the attack saw the gradient of the victim itself."""
        return self.direct and self.attack.surrogate is None and not _blind(self.attack)

    @property
    def black_box(self) -> bool:
        """Whether it was looked for without the victim's gradient: by Square, or on another encoder."""
        return self.direct and self.by_label and not self.noise and not self.white_box

    @property
    def noise(self) -> bool:
        """Whether it is the control."""
        return self.attack.method == "noise"

    @property
    def passes(self) -> bool:
        """Whether it goes over an image several times: restarts, targets, an ensemble."""
        return self.attack.restarts > 1 or self.attack.targets > 0 or self.attack.method in AIMED

    @property
    def at_stake(self) -> Array:
        """The images that are not lost when clean, bool [n]; all of them where nothing can be lost."""
        clean = self.held.get("attack_clean_score")
        if clean is None or not self.can_be_lost:
            return np.ones(self.n, dtype=bool)
        return np.asarray(clean <= 0)

    @property
    def pursued(self) -> bool:
        """Whether there was an image to attack."""
        return bool(self.at_stake.any())


def _blind(attack: Attack) -> bool:
    """Whether the method needs no gradient."""
    known = METHODS.get(attack.method)
    return known is not None and not known.gradient


def unsteady(c: Attacked) -> str:
    """Why single answers of this cell's victim are no verdicts; empty where they are, or where nobody looked."""
    if randomised(c).status == "failed":
        return "the victim answers differently from pass to pass"
    return "the victim's answer depends on the rest of the batch" if coupled(c).status == "failed" else ""


def _comparing(check: Callable[[Attacked], Verdict]) -> Callable[[Attacked], Verdict]:
    """A check that compares single answers, and is not made where they change by themselves."""

    def steady(c: Attacked) -> Verdict:
        if not (c.direct and c.pursued):
            return Verdict("not measured", "there was no image to attack")
        why = unsteady(c)
        return Verdict("not measured", why) if why else check(c)

    return steady


def _noise(c: Attacked) -> Verdict:
    drawn = c.white_box and c.attack.start == "random" and c.attack.method not in (*AIMED, *WIDER)
    if not (drawn and {"attack_score", "attack_start_score"} <= set(c.held)):
        return Verdict("not measured", "no attack recorded the score of a random start")
    start, score, rows = c.held["attack_start_score"], c.held["attack_score"], c.at_stake
    # Starts may have been seen by another engine or precision than the verdict.
    if (score < start - limits.CLOSE * np.maximum(1, np.abs(start))).any():
        return Verdict("failed", f"for {c.words} some images do worse under noise than under the attack", np.inf)
    noise, lost, n = int(((start > 0) & rows).sum()), int(((score > 0) & rows).sum()), int(rows.sum())
    if c.by_label and limits.FEW <= noise == lost < n:
        return Verdict("failed", f"{c.words}: noise loses {noise} of {n} images, and the gradient no other", np.inf)
    survive = rows & (start <= 0) if c.by_label else rows
    if not survive.any():
        return Verdict("not measured", "noise alone loses every image")
    limit = limits.OVER_NOISE if c.by_label or c.dense else limits.OVER_NOISE_DRIFT
    # A clean embedding has not drifted; every other score has a value on the clean image.
    drifts = c.attack.through == "embedding" and c.attack.scored == "drift" and c.attack.aim == "away"
    clean = np.zeros_like(start) if drifts else c.held.get("attack_clean_score", start)
    gain = score - np.maximum(start, clean)
    raised = (gain > 0) & (gain > limit * np.abs(start - clean)) | (c.by_label & (score > 0))
    share = float(raised[survive].mean())
    text = f"the attack moves {share:.0%} of the images that survive noise {limit:g} times as far as noise ({c.words})"
    return Verdict("failed" if share < limits.RAISED else "passed", text, limits.RAISED / max(share, 1e-9))


def _gradients(c: Attacked) -> Verdict:
    if not (c.white_box and c.pursued and "attack_zero_gradients" in c.held):
        return Verdict("not measured", "no attack recorded its gradients")
    zero = c.held["attack_zero_gradients"][c.at_stake]
    broken = c.held.get("attack_broken_gradients", np.zeros(c.n))[c.at_stake]
    share, images = float(zero.mean()), int((zero > 0).sum())
    text = f"{share:.1%} of the gradients of {c.words} were 0 everywhere or not finite ({images} of {len(zero)} images)"
    text += f", {float(broken.mean()):.1%} not finite" if broken.any() else ""
    failed = share > limits.ZERO_GRADIENTS
    return Verdict("failed" if failed else "passed", text, share / limits.ZERO_GRADIENTS)


def _gaining(c: Attacked) -> Verdict:
    if not (c.white_box and c.attack.eps > 0 and {"attack_score", "attack_early_score"} <= set(c.held)):
        return Verdict("not measured", "no attack recorded its score before the last quarter of its steps")
    if c.attack.steps == 1:
        return Verdict("not measured", "one step converges to nothing")
    early, score = c.held["attack_early_score"], c.held["attack_score"]
    if c.can_be_lost:
        gain, allowed = float(((score > 0) & (early <= 0)).mean()), limits.STILL_RISING
        what = "of the images fall"
    else:
        # What is wrong with an answer for every pixel is counted from the clean answer on; a clean embedding is at 0.
        clean = c.held.get("attack_clean_score", np.zeros_like(score)) if c.dense else np.zeros_like(score)
        total, before = (float((part - clean).mean(dtype=np.float64)) for part in (score, early))
        gain, allowed = (total - before) / total if total > 0 else 0.0, limits.STILL_DRIFTING
        what = "of the rise comes" if c.dense else "of the drift comes"
    text = f"{gain:.1%} {what} in the last quarter of the {c.attack.steps} steps ({c.words})"
    if gain > allowed and c.passes:
        # What falls late in one pass may fall in the next ones as well: only an upper limit is known.
        return Verdict("not measured", f"{text}, or of another pass over the image")
    text += "; more steps would find more" if gain > allowed else ""
    return Verdict("failed" if gain > allowed else "passed", text, gain / allowed)


def _rounding(c: Attacked) -> Verdict:
    if not {"correct", "rounded_correct"} <= set(c.held):
        return Verdict("not measured", "no attacked image was judged after rounding")
    if c.attack.eps == 0 or c.attack.method == "fab":
        return Verdict("not measured", "the nearest adversarial images lie on the boundary, where rounding decides")
    if c.attack.norm == "linf" and c.attack.eps < 1 / 255 - limits.TOLERANCE:
        return Verdict("not measured", "every radius is below one level of 8 bits")
    gap = paired_difference(c.held["rounded_correct"], c.held["correct"])
    failed = gap.value > limits.ROUNDING and gap.low > 0
    text = f"accuracy returns by {points(gap)} ({c.words})"
    return Verdict("failed" if failed else "passed", text, gap.value / limits.ROUNDING)


def _ball(c: Attacked) -> Verdict:
    if not (c.attack.eps > 0 and c.pursued and "attack_norm" in c.held):
        return Verdict("not measured", "no attack recorded the norm of its perturbation")
    excess, allowed = float((c.held["attack_norm"] - c.attack.eps).max()), limits.TOLERANCE * max(1.0, c.attack.eps)
    if excess > allowed:
        text = f"a perturbation of {c.words} exceeds its radius by {excess:.2g}"
        return Verdict("failed", text, excess / allowed)
    return Verdict("passed", f"{c.n} perturbations of {c.words} lie within the radius + 1e-6", excess / allowed)


def _range(c: Attacked) -> Verdict:
    if evidence.OUTSIDE not in c.held:
        return Verdict("not measured", "nobody looked at the range of attacked pixels")
    furthest = float(c.held[evidence.OUTSIDE].max())
    if furthest > 0:
        return Verdict("failed", f"a pixel of {c.words} is {furthest:.2g} outside [0, 1]", furthest)
    return Verdict("passed", f"every pixel of {c.n} images is in [0, 1]")


def randomised(c: Attacked) -> Verdict:
    """Whether the same pixels give the same logits twice."""
    return _gaps(c, evidence.REPEATED, limits.REPEATED, "in a second pass")


def coupled(c: Attacked) -> Verdict:
    """Whether an image has the same logits in other company."""
    if randomised(c).status == "failed":
        return Verdict("not measured", "the victim answers differently from pass to pass, in whatever company")
    return _gaps(c, evidence.COMPANY, limits.COMPANY, "in other company")


def _gaps(c: Attacked, name: str, limit: float, how: str) -> Verdict:
    if name not in c.held:
        return Verdict("not measured", "images were judged once")
    gap = c.held[name]
    largest, images = float(gap.max()), int((gap > limit).sum())
    text = f"logits move by {largest:.2g} of their spread at most {how}"
    text += f" ({images} of {c.n} images by more than {limit:g}; {c.words})" if images else f", {c.n} images"
    return Verdict("failed" if images else "passed", text, largest / limit)


def _probabilities(c: Attacked) -> Verdict:
    if evidence.PROBABILITIES not in c.held:
        return Verdict("not measured", "nobody looked at the outputs")
    share = float(c.held[evidence.PROBABILITIES].mean())
    text = f"the outputs of {share:.0%} of {c.n} images are not negative and add up to 1"
    return Verdict(
        "failed" if share > limits.PROBABILITIES else "passed",
        text + ("; the model returns probabilities" if share > limits.PROBABILITIES else ""),
        share / limits.PROBABILITIES,
    )


CELL_CHECKS: dict[str, Callable[[Attacked], Verdict]] = {
    "noise-as-good": _comparing(_noise),
    "zero-gradients": _gradients,
    "still-gaining": _comparing(_gaining),
    "lost-in-rounding": _comparing(_rounding),
    "out-of-ball": _ball,
    "out-of-range": _range,
    "randomised": randomised,
    "coupled-batch": coupled,
    "probabilities": _probabilities,
}
"""By flag: the checks that one attacked cell decides, judged by the head that was attacked."""


def flags(cell: Cell, outcomes: Held) -> tuple[str, ...]:
    """The flags that a cell raises by itself, for its record.

    Args:
        cell: any; one without attack, or judged by another head than the attacked one, raises none.
        outcomes: per image, arrays [n] with their "id", as they are stored.
    """
    if cell.attack is None or cell.attack.through != cell.judge.task:
        return ()
    attacked = Attacked(cell, cell.attack, outcomes)
    return tuple(name for name, check in CELL_CHECKS.items() if check(attacked).status == "failed")


def points(gap: Difference) -> str:
    """A difference of two shares in percentage points, with interval and n."""
    return f"{100 * gap.value:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}], n = {gap.n}"
