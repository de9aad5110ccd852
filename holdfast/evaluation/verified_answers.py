"""Answers for every pixel judged anew, from disk and apart from tasks and attacks: the verifier's own arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from holdfast.data.sources import open_source
from holdfast.errors import DataError
from holdfast.models.dense_heads import DenseHead
from holdfast.models.encoder import Encoder
from holdfast.models.padding import look
from holdfast.records import Cell

Doubles = npt.NDArray[np.float64]
HEIGHTS = {"segmentation": "wrong", "depth": "rmse"}
"""The outcome that a dense task is judged by."""
UNSURE = 1e-4
"""Logits nearer to each other than this may change places with the last digit."""
IGNORED, NEAREST = 255, 0.001


class Answered(NamedTuple):
    """What a dense head answers for k images.

    Attributes:
        height: share of wrong pixels, or RMSE in metres, float64 [k].
        slack: how far it may be off by the last digit alone, [k].
    """

    height: Doubles
    slack: Doubles


def why_not(cell: Cell, head: nn.Module | None) -> str:
    """Why the images of a dense cell are not judged anew; empty where they can be."""
    if cell.judge.window:
        return "answers through sliding windows are not judged anew by this version"
    if cell.judge.crop != "none":
        return "depth on a crop of the pixels is not judged anew by this version"
    return "" if isinstance(head, DenseHead) else "its dense head was not found"


def answered(cell: Cell, ids: Sequence[str], encoder: Encoder, head: DenseHead, pixels: Tensor) -> Answered:
    """Judge images against the truth that lies beside them, in float64 on answers in float32.

    Args:
        cell: judged by segmentation or depth, on whole images.
        ids: of the images, k.
        encoder: frozen.
        head: frozen.
        pixels: float32 [k, 3, h, w] in [0, 1].

    Returns:
        Shares of wrong pixels, or RMSE in metres, [k].

    Raises:
        DataError: an image is not where the record says.
    """
    source = open_source(cell.data)
    place = {name: at for at, name in enumerate(source.ids)}
    missing = next((name for name in ids if name not in place), None)
    if missing is not None:
        raise DataError(f"{cell.data.root or cell.data.source} has no image {missing}.", next="Put the images back.")
    truths = [source.read(place[name]).truth for name in ids]
    features, frame = look(encoder, head.spec, pixels)
    out = frame.undone(head(features, frame.size))
    if cell.judge.task == "segmentation":
        return _classes(out.double().cpu().numpy(), np.stack([np.asarray(t["mask"]) for t in truths]))
    metres = out.double().cpu().numpy().clip(NEAREST, source.max_depth)
    return _metres(metres, np.stack([np.asarray(t["depth"], dtype=np.float64) for t in truths]), source.max_depth)


def _classes(logits: Doubles, mask: npt.NDArray[np.generic]) -> Answered:
    known = mask != IGNORED
    top = np.sort(logits, axis=1)[:, -2:]
    total = np.maximum(known.sum((1, 2)), 1)
    wrong = (known & (logits.argmax(1) != mask)).sum((1, 2)) / total
    return Answered(wrong, (known & (top[:, 1] - top[:, 0] < UNSURE)).sum((1, 2)) / total)


def _metres(metres: Doubles, truth: Doubles, far: float) -> Answered:
    known = (truth > 0) & (truth <= far)
    squares = np.where(known, np.square(metres - truth), 0).sum((1, 2))
    rmse = np.sqrt(squares / np.maximum(known.sum((1, 2)), 1))
    return Answered(rmse, np.zeros(len(rmse)))
