"""The learning rate: a linear warm-up, then half a cosine to zero (Loshchilov and Hutter, SGDR, ICLR 2017)."""

from __future__ import annotations

import math


def learning_rate(step: int, *, total: int, warmup: int, peak: float) -> float:
    """The rate of one step.

    Args:
        step: 0 for the first, up to total - 1.
        total: steps of the run.
        warmup: steps until the peak; the first step takes peak / warmup.
        peak: the largest rate.

    Returns:
        A positive number, at most `peak`: peak at step `warmup`, near zero at the last step.
    """
    if step < warmup:
        return peak * ((step + 1) / warmup)
    done = (step - warmup) / max(total - warmup, 1)
    return peak * (1 + math.cos(math.pi * done)) / 2
