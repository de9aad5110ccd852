"""What a dense head answers for the images that a gallery keeps, clean and under attack, beside the truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from holdfast.attacks.board import laid
from holdfast.data.batches import Source
from holdfast.models.encoder import Encoder
from holdfast.records import Cell
from holdfast.tasks.task import Task, seer, still

Outcomes = dict[str, npt.NDArray[np.generic]]
TRUTHS = {"segmentation": "mask", "depth": "depth"}


def answered(
    cell: Cell,
    gallery: Mapping[str, npt.NDArray[np.generic]],
    source: Source,
    encoder: Encoder,
    task: Task,
) -> Outcomes:
    """A gallery with what the dense head of its cell answers.

    Args:
        cell: attacked, judged by segmentation or depth.
        gallery: as `adversarial.merged` gives it, k images; empty = nothing was kept.
        source: of the cell's images.
        encoder: of the cell.
        task: its judge.

    Returns:
        The gallery with `truth`, `clean_answer`, `answer` [k, h, w]: uint8 classes (255 = ignored), or float32 metres
        (0 = not measured), and `parts`, the names of the classes.
    """
    if not gallery:
        return dict(gallery)
    place = {name: at for at, name in enumerate(source.ids)}
    images = [source.read(place[str(name)]) for name in gallery["id"].tolist()]
    truth = np.stack([np.asarray(image.truth[TRUTHS[cell.judge.task]]) for image in images])
    dense = np.uint8 if cell.judge.task == "segmentation" else np.float32
    with still(encoder, task), torch.no_grad():
        see = seer(encoder, task)
        answers = {
            name: _answer(see(_pixels(gallery[given], encoder.mean.device))).astype(dense)
            for name, given in (("clean_answer", "before"), ("answer", "adversarial"))
        }
    return {**gallery, "truth": truth.astype(dense), **answers, "parts": np.array(source.parts, dtype=np.str_)}


def _answer(out: Mapping[str, Tensor]) -> npt.NDArray[np.generic]:
    found = out["logits"].argmax(1) if "logits" in out else out["depth"]
    return found.cpu().numpy()


def _pixels(images: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    exact = torch.from_numpy(np.array(images))
    if exact.dtype == torch.uint8:
        exact = exact.float() / torch.tensor(255.0)
    return laid(exact.permute(0, 3, 1, 2).to(device))
