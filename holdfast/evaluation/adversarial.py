"""The adversarial images that a run keeps: the very ones that were judged, chosen by rule and not by taste.

Every block of a job keeps a few candidates; when all blocks are done, those of the cell are chosen among them by the
same rules over all of its images. The worst and the best surviving images of a cell are among those of their blocks, so
that these two rules are exact; the median image need not be, and the candidates nearest to it stand for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from holdfast.data.batches import to_pixels
from holdfast.records import DENSE_TASKS, Cell

Outcomes = dict[str, npt.NDArray[np.generic]]
Given = Mapping[str, npt.NDArray[np.generic]]

EACH = 2
HEIGHTS = {"classification": "margin", "embedding": "l2", "segmentation": "wrong", "depth": "rmse"}
"""What a task's harm is measured by where the attack's own score is another encoder's."""


class Pass(Protocol):
    """Images of one pass of a block, padded at the end: `blocks.Chunk`."""

    @property
    def ids(self) -> list[str]:
        """One per image; the padding has none."""
        ...

    @property
    def clean(self) -> Tensor:
        """As decoded, float32 [b, 3, h, w]."""
        ...

    @property
    def before(self) -> Tensor:
        """Before the attack: corrupted or clean, float32 [b, 3, h, w]."""
        ...


def chosen(harm: npt.NDArray[np.generic], lost_before: npt.NDArray[np.bool_], *, each: int = EACH) -> dict[int, str]:
    """Which images to show: places with the rule that chose them, at most `3 * each`.

    Args:
        harm: of the attacked images, [n]; higher = worse for the defender.
        lost_before: bool [n], True where the clean image was lost already; those are not shown.
        each: images per rule.

    Returns:
        The worst, those at the median, and the ones that survived best, without repeats.
    """
    order = _order(harm, lost_before)
    middle = max(len(order) // 2 - each // 2, 0)
    picked: dict[int, str] = {}
    for rule, places in (
        ("worst", order[:each]),
        ("median", order[middle : middle + each]),
        ("surviving", order[::-1][:each]),
    ):
        for place in places:
            picked.setdefault(place, rule)
    return picked


def candidates(cell: Cell, block: Given, passes: Sequence[Pass], adversarial: Tensor) -> Outcomes:
    """What a block keeps for the gallery of an attacked cell.

    Args:
        cell: whose outcomes choose.
        block: its per-image outcomes in this block, arrays [n].
        passes: the images of the block, in the order of the outcomes.
        adversarial: what was judged, float32 [n, 3, h, w], in the same order.

    Returns:
        Arrays of up to `3 * EACH` images: `id`; `clean` uint8 [k, h, w, 3] as decoded; `before` the attack, uint8 where
        bytes say it exactly, else float32; `adversarial` float32, to the bit what was judged.
    """
    places = list(chosen(harm(cell, block), lost_before(cell, block)))
    if not places:
        return {}
    found = dict(_images(passes, places))
    shown = [found[place] for place in places]
    return {
        "id": np.array([name for name, _, _ in shown]),
        "clean": exact8(torch.stack([clean for _, clean, _ in shown])),
        "before": exact8(torch.stack([before for _, _, before in shown])),
        "adversarial": _hwc(adversarial[places]),
    }


def merged(cell: Cell, whole: Given, kept: Sequence[Given], *, classes: Sequence[str] = ()) -> Outcomes:
    """The gallery of a cell, from the candidates of its blocks.

    Args:
        cell: whose outcomes choose.
        whole: its per-image outcomes, arrays [n].
        kept: what `candidates` returned for each block.
        classes: names of the labels.

    Returns:
        The arrays of `candidates` for the images chosen among all, worst first, with `rule`, `label`,
        `clean_prediction`, `prediction` (-1 where there are none), `confidence` (0 where there is none), `score` (of
        the attack), `norm` and `rounded_correct` (whether still right as an 8-bit file), and `classes`.
    """
    held = [part for part in kept if part]
    if not held:
        return {}
    images = _together(held)
    row_of = {str(name): row for row, name in enumerate(whole["id"].tolist())}
    place_of = {row_of[str(name)]: place for place, name in enumerate(images["id"].tolist())}
    rules = _final(harm(cell, whole), lost_before(cell, whole), set(place_of))
    at = [place_of[row] for row in rules]
    return {
        **{name: part[at] for name, part in images.items()},
        "rule": np.array(list(rules.values())),
        **_said(cell, whole, list(rules)),
        "classes": np.array(classes, dtype=np.str_),
    }


def harm(cell: Cell, outcomes: Given) -> npt.NDArray[np.float64]:
    """What images are ordered by, [n]; higher = worse for the defender.

    The attack's own score; of an attack made on another encoder, what the judged one made of it; without a radius, how
    near the adversarial image is.
    """
    attack = cell.attack
    assert attack is not None, "only attacked cells keep adversarial images"
    if attack.eps == 0:
        found = outcomes["attack_score"].astype(np.float64) > 0
        return np.where(found, -outcomes["attack_norm"].astype(np.float64), -np.inf)
    name = "attack_score" if attack.surrogate is None else HEIGHTS[cell.judge.task]
    return outcomes[name].astype(np.float64)


def lost_before(cell: Cell, outcomes: Given) -> npt.NDArray[np.bool_]:
    """Whether the image was lost before the attack, bool [n]; never where the attack knows no loss."""
    attack = cell.attack
    assert attack is not None, "only attacked cells keep adversarial images"
    if "clean_correct" in outcomes:
        return ~outcomes["clean_correct"].astype(bool)
    drifts = attack.through == "embedding" and attack.scored == "drift" and attack.aim == "away"
    if drifts or attack.through in DENSE_TASKS:
        return np.zeros(len(outcomes["id"]), dtype=bool)
    return outcomes["attack_clean_score"].astype(np.float64) > 0


def exact8(pixels: Tensor) -> npt.NDArray[np.generic]:
    """Images [b, 3, h, w] in [0, 1] as arrays [b, h, w, 3]: uint8 where bytes over 255 are these very pixels."""
    levels = (pixels * 255).round().to(torch.uint8)
    return _hwc(levels if torch.equal(to_pixels(levels), pixels) else pixels)


def _final(score: npt.NDArray[np.float64], lost: npt.NDArray[np.bool_], there: set[int]) -> dict[int, str]:
    """The rules over all images; in the place of the median those of `there` that are nearest to it in the order."""
    exact = chosen(score, lost)
    order = _order(score, lost)
    ends = {row: rule for row, rule in exact.items() if rule != "median"}
    missing = len(exact) - len(ends)
    middle = (len(order) - 1) / 2
    near = sorted((abs(at - middle), at, row) for at, row in enumerate(order) if row in there and row not in ends)
    medians = {row: "median" for _, _, row in near[:missing]}
    first = {row: rule for row, rule in ends.items() if rule == "worst"}
    return first | medians | ends


def _order(harm: npt.NDArray[np.generic], lost: npt.NDArray[np.bool_]) -> list[int]:
    return [int(i) for i in np.argsort(-harm.astype(np.float64), kind="stable") if not lost[i]]


def _images(passes: Sequence[Pass], places: Sequence[int]) -> Iterator[tuple[int, tuple[str, Tensor, Tensor]]]:
    first = 0
    for part in passes:
        for place in places:
            if first <= place < first + len(part.ids):
                at = place - first
                yield place, (part.ids[at], part.clean[at], part.before[at])
        first += len(part.ids)


def _together(held: Sequence[Given]) -> Outcomes:
    """Candidates of all blocks; bytes become pixels where another block has pixels."""
    found: Outcomes = {}
    for name in held[0]:
        parts = [part[name] for part in held]
        if name == "before" and any(part.dtype != np.uint8 for part in parts):
            parts = [p.astype(np.float32) / np.float32(255) if p.dtype == np.uint8 else p for p in parts]
        found[name] = np.concatenate(parts)
    return found


def _said(cell: Cell, whole: Given, rows: Sequence[int]) -> Outcomes:
    """What the outcomes say of some images."""
    none, attack = np.full(len(rows), -1), cell.attack
    label = whole["label"][rows] if "label" in whole else none
    own = attack is not None and attack.surrogate is None and attack.aim == "away"
    found: Outcomes = {
        "label": label,
        # An image that the attack did not find lost was seen as what it is; a surrogate's scores do not say so.
        "clean_prediction": whole["clean_prediction"][rows] if "clean_prediction" in whole else label if own else none,
        "prediction": whole["prediction"][rows] if "prediction" in whole else none,
        "confidence": whole["confidence"][rows] if "confidence" in whole else np.zeros(len(rows)),
        "score": whole["attack_score"][rows],
    }
    for name, source in (("norm", "attack_norm"), ("rounded_correct", "rounded_correct")):
        if source in whole:
            found[name] = whole[source][rows]
    return found


def _hwc(images: Tensor) -> npt.NDArray[np.generic]:
    found: npt.NDArray[np.generic] = images.detach().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return found
