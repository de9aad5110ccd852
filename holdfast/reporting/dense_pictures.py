"""Answers for every pixel as pictures: classes in colours, depth and its errors on one scale for all of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from holdfast.data.batches import IGNORE

Pixels = npt.NDArray[np.uint8]
Gallery = Mapping[str, npt.NDArray[Any]]
NOTHING = np.array([128, 128, 128], np.uint8)
"""The grey of an error or a depth where there is no truth; among classes that is the colour of one of them."""
SCALE = "viridis"


def pictures(gallery: Gallery, at: int) -> tuple[tuple[str, Pixels], ...]:
    """Truth, answer on the clean image, answer under attack, and where the last two are wrong.

    Args:
        gallery: as `evaluation.dense_pictures.answered` gives it.
        at: which image.

    Returns:
        Names with pictures uint8 [h, w, 3]; none where the gallery is not that of a dense task. Depth runs from the
        smallest to the largest measured value, its error from 0 to half of the largest measured value.
    """
    if "truth" not in gallery:
        return ()
    truth, clean, attacked = (gallery[name][at] for name in ("truth", "clean_answer", "answer"))
    if truth.dtype == np.uint8:
        known = truth != IGNORE
        wrong = [_painted(np.where(known & (answer != truth), 1.0, 0.0), known) for answer in (clean, attacked)]
        shown = [coloured(part) for part in (truth, clean, attacked)]
    else:
        known = truth > 0
        low, high = (float(truth[known].min()), float(truth[known].max())) if known.any() else (0.0, 1.0)
        width = max(high - low, 1e-6)
        everywhere = np.ones_like(known)
        shown = [
            _painted((part - low) / width, known if part is truth else everywhere) for part in (truth, clean, attacked)
        ]
        wrong = [_painted(np.abs(answer - truth) / (0.5 * max(high, 1e-6)), known) for answer in (clean, attacked)]
    names = ("truth", "answer, clean", "answer, attacked", "error, clean", "error, attacked")
    return tuple(zip(names, (*shown, *wrong)))


def legend(gallery: Gallery) -> tuple[tuple[str, str], ...]:
    """The classes that occur in truth or answers, each with its colour as CSS writes it; none of depth.

    Args:
        gallery: as `evaluation.dense_pictures.answered` gives it.
    """
    if gallery["truth"].dtype != np.uint8:
        return ()
    names = {**dict(enumerate(gallery["parts"].tolist())), IGNORE: "no label"}
    there = np.unique(np.concatenate([gallery[part].ravel() for part in ("truth", "clean_answer", "answer")]))
    colours = coloured(there[None])[0].tolist()
    return tuple((names[k], f"rgb({' '.join(map(str, colour))})") for k, colour in zip(there.tolist(), colours))


def coloured(classes: npt.NDArray[np.uint8]) -> Pixels:
    """Classes [h, w] in the colours of PASCAL VOC: bit i of a class goes to bit 7 - i // 3 of channel i % 3.

    What has no label (`IGNORE`) is pale there: (224, 224, 192).
    """
    number = np.arange(256)
    table = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        table[:, bit % 3] |= (((number >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    painted: Pixels = table[classes]
    return painted


def _painted(values: npt.NDArray[Any], known: npt.NDArray[np.bool_]) -> Pixels:
    """Values [h, w] from 0 to 1 in the colours of a scale; grey where nothing is known."""
    colours = matplotlib.colormaps[SCALE](np.clip(values, 0, 1))[..., :3]
    painted: Pixels = np.where(known[..., None], np.round(colours * 255).astype(np.uint8), NOTHING)
    return painted
