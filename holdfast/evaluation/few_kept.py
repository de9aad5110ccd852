"""What is kept of an attack on a few images: the images to the bit, what was said of them, and the cell they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from holdfast.attacks.executor import SMALLEST
from holdfast.codec import canonical
from holdfast.data.batches import Pixels8, Source
from holdfast.evaluation import few
from holdfast.evaluation.dense_pictures import answered
from holdfast.evaluation.few_heads import Head
from holdfast.evaluation.measuring import of_each
from holdfast.records import Attack, Cell, Data, Judge, Surrogate

Arrays = dict[str, npt.NDArray[np.generic]]
Numbers = Mapping[str, dict[str, float]]
ANSWERS = ("truth", "clean_answer", "answer")
POOLED = "_pooled"
"""Marks metrics that pool the pixels of several images: of one image they are what they are without it."""


class Shown(NamedTuple):
    """The images that are looked at.

    Attributes:
        data: their record; the source of images that were named one by one is `files`, their ids are their paths.
        ids: one name each.
        pixels: uint8 [h, w, 3] each, of one size.
        truth: labels int64 [b], masks int64 [b, h, w], or depth float32 [b, h, w], as the attack needs; or None.
        classes: names of the labels; empty where there are none.
        source: that they were read from; None for files.
    """

    data: Data
    ids: list[str]
    pixels: list[Pixels8]
    truth: Tensor | None
    classes: tuple[str, ...]
    source: Source | None = None


class Kept(NamedTuple):
    """What is kept.

    Attributes:
        arrays: for `adversarial.npz`, [b, ...] each, and what belongs to all of them.
        numbers: per image the task's metrics of that image alone, by view: clean, attacked, rounded.
        cell: that these images would be of, were they measured.
    """

    arrays: Arrays
    numbers: list[Numbers]
    cell: Cell


def kept(aim: few.Aim, shown: Shown, adversarial: Tensor, head: Head | None) -> Kept:
    """Judge clean, attacked and rounded images, and gather what is to be written of them.

    Args:
        aim: of the attack.
        shown: its images.
        adversarial: what it made of them, float32 [b, 3, h, w].
        head: that answers for every pixel; None where the attack goes through none such.

    Returns:
        What a folder keeps; with a dense head also `truth`, `clean_answer` and `answer` (`dense_pictures.answered`).
    """
    views = {"clean": aim.pixels, "attacked": adversarial, "rounded": (adversarial * 255).round() / 255}
    seen = {name: _numpy(few.outcomes(aim, view)) for name, view in views.items()}
    none, labelled = np.full(len(shown.ids), -1), aim.record.through == "classification"
    norm = (adversarial.double() - aim.pixels.double()).flatten(1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[aim.record.norm]
    cell = _cell(aim, shown, head)
    arrays: Arrays = {
        "id": np.array(shown.ids),
        "clean": np.stack(shown.pixels),
        "before": np.stack(shown.pixels),
        "adversarial": adversarial.permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        "label": aim.rows["label"].cpu().numpy() if labelled else none,
        "clean_prediction": seen["clean"].get("prediction", none),
        "clean_score": seen["clean"]["score"],
        **seen["attacked"],
        "rounded_score": seen["rounded"]["score"],
        "attack_norm": torch.linalg.vector_norm(norm, order, dim=1).cpu().numpy(),
        "eps": np.array(aim.record.eps),
        "norm": np.array(aim.record.norm),
        "attack": np.array(canonical(aim.record).decode()),
        "encoder": np.array(aim.encoder.digest()),
        "cell": np.array(canonical(cell).decode()),
        "classes": np.array(shown.classes, dtype=np.str_),
    }
    if labelled:
        arrays["rounded_correct"] = seen["rounded"]["correct"]
    if head is not None and shown.source is not None:
        arrays |= _answers(arrays, cell, aim, shown.source)
    return Kept(arrays, _numbers(aim, seen), cell)


def record(found: Kept, pictures: Sequence[str]) -> dict[str, Any]:
    """What `attack.json` holds: the cell, and of each image its name, its picture, how far it was moved, its numbers.

    Args:
        found: what is kept.
        pictures: file names of the images in 8 bits.
    """
    rows = zip(found.arrays["id"].tolist(), pictures, found.arrays["attack_norm"].tolist(), found.numbers, strict=True)
    images = [{"id": name, "picture": file, "norm": norm, **each} for name, file, norm, each in rows]
    return {"cell": msgspec.to_builtins(found.cell), "images": images}


def _numbers(aim: few.Aim, seen: Mapping[str, Arrays]) -> list[Numbers]:
    measures = [m for m in aim.task.measures() if POOLED not in m.name]
    by_view = {view: of_each(measures, outcomes) for view, outcomes in seen.items()}
    return [{view: each[at] for view, each in by_view.items()} for at in range(len(aim.pixels))]


def _answers(arrays: Arrays, cell: Cell, aim: few.Aim, source: Source) -> Arrays:
    """Truth and answers of all images, a pass at a time."""
    parts: list[Arrays] = []
    for first in range(0, len(arrays["id"]), SMALLEST):
        part = {name: arrays[name][first : first + SMALLEST] for name in ("id", "before", "adversarial")}
        parts.append(answered(cell, part, source, aim.encoder, aim.task))
    found = {name: np.concatenate([part[name] for part in parts]) for name in ANSWERS}
    return {**found, "parts": parts[0]["parts"]}


def _cell(aim: few.Aim, shown: Shown, head: Head | None) -> Cell:
    """The cell that these images would be of, were they measured."""
    through, (other, _) = aim.record.through, aim.made_on
    judge = Judge(task=through, head="own" if through == "classification" else "none", level=aim.task.level)
    attack: Attack = aim.record
    if other is not aim.encoder:
        attack = msgspec.structs.replace(attack, surrogate=Surrogate(encoder=other.model, judge=judge))
    model = msgspec.structs.replace(aim.encoder.model, name=aim.encoder.name)
    if head is not None:
        judge, model = head.judge, msgspec.structs.replace(model, head=head.file)
    return Cell(data=shown.data, stages=(attack,), encoder=model, judge=judge)


def _numpy(found: Mapping[str, Tensor]) -> Arrays:
    return {name: part.cpu().numpy() for name, part in found.items()}
