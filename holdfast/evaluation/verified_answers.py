"""Answers for every pixel judged anew, from disk and apart from tasks and attacks: the verifier's own arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
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
# Top, bottom, left, right. Eigen et al. 2014: of 480 x 640; Garg et al. 2016: in shares, as their code has them.
_CROPS: dict[str, tuple[Fraction, ...]] = {
    "none": (Fraction(0), Fraction(1), Fraction(0), Fraction(1)),
    "eigen": (Fraction(45, 480), Fraction(471, 480), Fraction(41, 640), Fraction(601, 640)),
    "eigen_kitti": tuple(Fraction(part) for part in ("0.3324324", "0.91351351", "0.0359477", "0.96405229")),
    "garg": tuple(Fraction(part) for part in ("0.40810811", "0.99189189", "0.03594771", "0.96405229")),
}


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
    return "" if isinstance(head, DenseHead) else "its dense head was not found"


def answered(cell: Cell, ids: Sequence[str], encoder: Encoder, head: DenseHead, pixels: Tensor) -> Answered:
    """Judge images against the truth that lies beside them, in float64 on answers in float32.

    Args:
        cell: judged by segmentation or depth.
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
    out = _through_windows(cell, encoder, head, pixels)
    if cell.judge.task == "segmentation":
        return _classes(out, np.stack([np.asarray(t["mask"]) for t in truths]))
    depth = np.stack([np.asarray(t["depth"], dtype=np.float64) for t in truths])
    top, bottom, left, right = _CROPS[cell.judge.crop]
    h, w = depth.shape[1:]
    inside = np.s_[:, h * top // 1 : h * bottom // 1, w * left // 1 : w * right // 1]
    return _metres(out[inside].clip(NEAREST, source.max_depth), depth[inside], source.max_depth)


def _through_windows(cell: Cell, encoder: Encoder, head: DenseHead, pixels: Tensor) -> Doubles:
    """Answers in float64, window after window: the mean of probabilities (as their logarithm), or of metres."""
    side, height, width = cell.judge.window, *pixels.shape[2:]
    tall, wide = (min(side, height), min(side, width)) if side else (height, width)
    stride = cell.judge.stride or max(1, side * 2 // 3)
    places = [(top, left) for top in _starts(height, tall, stride) for left in _starts(width, wide, stride)]
    total: Doubles = np.zeros(())
    times = np.zeros((height, width))
    for top, left in places:
        features, frame = look(encoder, head.spec, pixels[:, :, top : top + tall, left : left + wide])
        out = frame.undone(head(features, frame.size)).double()
        if cell.judge.task == "segmentation" and len(places) > 1:
            out = out.softmax(1)
        answer = out.cpu().numpy()
        if not total.shape:
            total = np.zeros((*answer.shape[:-2], height, width))
        total[..., top : top + tall, left : left + wide] += answer
        times[top : top + tall, left : left + wide] += 1
    mean: Doubles = total / times
    return np.log(mean) if cell.judge.task == "segmentation" and len(places) > 1 else mean


def _starts(size: int, side: int, stride: int) -> list[int]:
    """Where windows begin along one direction: every stride, the last one moved back to the edge."""
    return sorted({min(at, size - side) for at in range(0, max(size - side + stride, 1), stride)})


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
