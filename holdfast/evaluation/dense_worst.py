"""Which attack is the worst for an image of a segmented set, where the metric is that of all images together.

Pixel accuracy is lowest where every image has its lowest: the mask alone says how many pixels an image has. mIoU is a
mean of ratios of sums, and the choice for one image changes what the others are worth: to find the lowest is a
combinatorial problem. Croce, Singh and Hein (arXiv 2306.12941) descend from the attack of lowest mIoU, image by image
in shuffled rounds, until nothing changes. Here likewise, but from the better of that attack and of the choice for pixel
accuracy, and in each round the image that gains most goes first, so that nothing is drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from holdfast.tasks.segmentation import INTERSECTION, LABELLED, mean_iou

Counts = npt.NDArray[np.generic]
Chosen = npt.NDArray[np.intp]
Array = npt.NDArray[np.float64]
LEAST = 1e-12
"""A fall of mIoU that is less than this is rounding."""


def worst_pixel_accuracy(by_attack: Counts) -> Chosen:
    """For each image the attack with the smallest share of right pixels, the first of equal ones.

    Args:
        by_attack: counts of the same images under each attack [attacks, n, K, 3], as `segmentation.counts` has them.

    Returns:
        int [n], places among the attacks.
    """
    counted = _checked(by_attack)
    labelled = counted[..., LABELLED].sum(-1)
    share = counted[..., INTERSECTION].sum(-1) / np.where(labelled > 0, labelled, 1)
    lowest: Chosen = share.argmin(0)
    return lowest


def worst_miou(by_attack: Counts) -> Chosen:
    """For each image an attack, so that the mIoU of all images together is low.

    A local minimum: no other attack for any one image makes it lower. It is never above the mIoU of one attack for all
    images, nor above that of `worst_pixel_accuracy`.

    Args:
        by_attack: counts of the same images under each attack [attacks, n, K, 3].

    Returns:
        int [n], places among the attacks.
    """
    counted = _checked(by_attack)
    attacks, n = counted.shape[:2]
    starts = [*(np.full(n, attack) for attack in range(attacks)), worst_pixel_accuracy(by_attack)]
    chosen = min(starts, key=lambda start: _miou(_total(counted, start)))
    total = _total(counted, chosen)
    while True:
        at = np.arange(n)
        others = _miou(total - counted[chosen, at] + counted)
        falls = _miou(total) - others.min(0)
        gaining = np.argsort(-falls, kind="stable")[: int((falls > LEAST).sum())]
        if not len(gaining):
            return chosen
        for i in gaining:
            # What came before in this round has changed the sums, so that it is asked again.
            rest = total - counted[chosen[i], i]
            tried = _miou(rest + counted[:, i])
            if tried.min() < _miou(total) - LEAST:
                chosen[i] = tried.argmin()
                total = rest + counted[chosen[i], i]


def _checked(by_attack: Counts) -> Array:
    """In float64, where sums of pixels are exact up to 2^53.

    Raises:
        ValueError: not the counts of several attacks, or of masks that differ from one attack to another.
    """
    if by_attack.ndim != 4 or by_attack.shape[-1] != LABELLED + 1 or 0 in by_attack.shape:
        raise ValueError(f"counts of shape {by_attack.shape}; they are [attacks, n, K, 3], none of them 0")
    labelled = by_attack[..., LABELLED]
    if not (labelled == labelled[:1]).all():
        raise ValueError("the attacks were not judged on the same masks")
    return by_attack.astype(np.float64)


def _total(counted: Array, chosen: Chosen) -> Array:
    total: Array = counted[chosen, np.arange(len(chosen))].sum(0)
    return total


def _miou(sums: Array) -> Any:
    """mIoU of [..., K, 3]; 2, more than any, where no class occurs, so that it is never chosen."""
    found = mean_iou(sums)
    return np.where(np.isnan(found), 2.0, found)
