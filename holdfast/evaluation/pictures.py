"""Images for the gallery of saliency, chosen by rule and not by taste, and made again from their keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from holdfast.attacks.executor import SMALLEST
from holdfast.data.batches import batches
from holdfast.evaluation.blocks import Bench, Outcomes, conditioned, given, joined, padded, spans
from holdfast.evaluation.plan import Job
from holdfast.records import Cell
from holdfast.tasks.saliency import Saliency
from holdfast.tasks.task import seer, still


def looked_at(whole: Outcomes, wanted: Sequence[int] = (), *, each: int = 1) -> list[tuple[int, str]]:
    """Which images of a saliency cell to show: places with the rule that chose them, without repeats.

    Args:
        whole: per-image outcomes of the cell: `cam_drift`, and with a head `correct`, `clean_correct`, `label`.
        wanted: labels whose images are shown as well, the first `each` of every label.
        each: images per rule.

    Returns:
        Those whose maps drifted most, those nearest to the median, those that are right both clean and corrupted and
        drifted most among these ("all correct"), and those of the wanted classes.
    """
    order = [int(i) for i in np.argsort(-whole["cam_drift"].astype(np.float64), kind="stable")]
    middle = max(len(order) // 2 - each // 2, 0)
    rules = [("worst", order[:each]), ("median", order[middle : middle + each])]
    if "correct" in whole and "clean_correct" in whole:
        right = whole["correct"].astype(bool) & whole["clean_correct"].astype(bool)
        rules.append(("all correct", [i for i in order if right[i]][:each]))
    if "label" in whole:
        rules += [("class", np.flatnonzero(whole["label"] == label)[:each].tolist()) for label in wanted]
    picked: dict[int, str] = {}
    for rule, places in rules:
        for place in places:
            picked.setdefault(place, rule)
    return list(picked.items())


def looks(job: Job, cell: Cell, whole: Outcomes, chunk: int, bench: Bench) -> Outcomes:
    """The gallery of a saliency cell: clean and corrupted images with their maps.

    Labels, predictions and whether they are right are those of the cell's record: from the same pixels, through the
    same encoder, as the maps.

    Args:
        job: that the cell belongs to.
        cell: judged by saliency.
        whole: its per-image outcomes.
        chunk: images per pass.
        bench: images, encoders, tasks.

    Returns:
        `id`, `rule`, `clean` and `changed` uint8 [k, h, w, 3], `clean_map` and `map` float16 [k, gh, gw] in [0, 1],
        `cam_drift`, `ssim`; `label`, `clean_prediction`, `prediction` (-1 where there are none); `classes`.
    """
    task, encoder, source = bench.task(cell), bench.encoder(cell.encoder), bench.source(job.data)
    assert isinstance(task, Saliency), "plan gives galleries of maps to saliency cells"
    wanted = [source.classes.index(name) for name in bench.shown if name in source.classes]
    places = looked_at(whole, wanted)
    at = [place for place, _ in places]
    parts: list[Outcomes] = []
    for batch, span in zip(batches(source, size=chunk, indices=at), spans(len(at), chunk)):
        pixels, rows = padded(batch, max(SMALLEST, len(span)), bench.device)
        changed = conditioned(job, pixels, rows, given(job, at[span.start : span.stop], len(pixels), bench))
        with still(encoder, task):
            truth = task.truth(pixels, rows, seer(encoder, task))
            maps = {"clean_map": task.maps(pixels, truth), "map": task.maps(changed, truth)}
        k = len(span)
        shown = {"clean": pixels, "changed": changed}
        parts.append(
            {name: _hwc((image[:k] * 255).round().to(torch.uint8)) for name, image in shown.items()}
            | {name: found[:k].half().cpu().numpy() for name, found in maps.items()}
        )
    none = np.full(len(at), -1)
    named = {name: whole[name][at] if name in whole else none for name in ("label", "clean_prediction", "prediction")}
    return {
        "id": whole["id"][at],
        "rule": np.array([rule for _, rule in places]),
        **joined(parts),
        "cam_drift": whole["cam_drift"][at],
        "ssim": whole["ssim"][at] if "ssim" in whole else np.full(len(at), -1.0),
        **named,
        "classes": np.array(source.classes, dtype=np.str_),
    }


def _hwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
