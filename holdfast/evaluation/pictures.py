"""Images for the gallery, chosen by rule and not by taste, and made again from their keys."""

from __future__ import annotations

import numpy as np
import torch

from holdfast.attacks.executor import SMALLEST
from holdfast.data.batches import batches
from holdfast.evaluation.blocks import Bench, Outcomes, make, padded
from holdfast.evaluation.plan import Job
from holdfast.records import Cell
from holdfast.tasks.task import observe, seer, still

EACH = 2


def chosen(score: np.ndarray, lost_before: np.ndarray, *, each: int = EACH) -> list[tuple[int, str]]:
    """Which images to show: places with the rule that chose them, at most `3 * each`.

    Args:
        score: of the attacked images, [n]; higher = worse for the defender.
        lost_before: bool [n], True where the clean image was lost already; those are not shown.
        each: images per rule.

    Returns:
        The worst by score, those nearest to the median, and the ones that survived best, without repeats.
    """
    order = [int(i) for i in np.argsort(-score, kind="stable") if not lost_before[i]]
    middle = max(len(order) // 2 - each // 2, 0)
    picked: dict[int, str] = {}
    for rule, places in (
        ("worst", order[:each]),
        ("median", order[middle : middle + each]),
        ("surviving", order[::-1][:each]),
    ):
        for place in places:
            picked.setdefault(place, rule)
    return list(picked.items())


def pictures(job: Job, cell: Cell, whole: Outcomes, chunk: int, bench: Bench) -> Outcomes:
    """The gallery of an attacked cell: the chosen images attacked once more, which gives the same pixels.

    Args:
        job: that the cell belongs to.
        cell: whose outcomes choose.
        whole: its per-image outcomes.
        chunk: images per pass.
        bench: images, encoders, tasks.

    Returns:
        `id`, `rule`, `clean` uint8 and `delta` float16 [k, h, w, 3], `label`, `clean_prediction`, `prediction` (-1
        where there are none), `confidence` (0 where there is none), `score`; `classes` names the labels, [classes].
    """
    task, encoder = bench.task(cell), bench.encoder(cell.encoder)
    lost = whole["attack_clean_score"].astype(np.float64) > 0 if task.stop else np.zeros(len(whole["id"]), dtype=bool)
    places = chosen(whole["attack_score"], lost)[:chunk]
    if not places:
        return {}
    # Few images need no full pass; verdicts do not depend on its size.
    k, chunk = len(places), min(chunk, SMALLEST)
    (batch,) = batches(bench.source(job.data), size=k, indices=[place for place, _ in places])
    pixels, rows = padded(batch, chunk, bench.device)
    made = make(job, pixels, rows, bench)
    with still(encoder, task):
        truth = task.truth(pixels, rows, seer(encoder, task))
        shown = (("clean", made.before), ("now", made.after))
        seen = {name: observe(task, encoder, image, truth) for name, image in shown}
    none = torch.full((k,), -1)
    return {
        "id": np.array(batch.ids),
        "rule": np.array([rule for _, rule in places]),
        "clean": _hwc((made.before[:k] * 255).round().to(torch.uint8)),
        "delta": _hwc((made.after - made.before)[:k].half()),
        "label": rows.get("label", none)[:k].cpu().numpy(),
        "clean_prediction": seen["clean"].get("prediction", none)[:k].cpu().numpy(),
        "prediction": seen["now"].get("prediction", none)[:k].cpu().numpy(),
        "confidence": seen["now"].get("confidence", torch.zeros(k))[:k].cpu().numpy(),
        "score": whole["attack_score"][[place for place, _ in places]],
        "classes": np.array(bench.source(job.data).classes, dtype=np.str_),
    }


def _hwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
