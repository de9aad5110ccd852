"""The learning rate: a linear warm-up, then half a cosine to zero (Loshchilov and Hutter, ICLR 2017), or steps."""

from __future__ import annotations

import math
from dataclasses import dataclass


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


@dataclass(frozen=True)
class Pace:
    """The rate of every optimizer step of a run, replays counted.

    Attributes:
        total: optimizer steps of the run.
        warmup: optimizer steps until the peak.
        peak: the largest rate.
        half: optimizer steps after which the cosine has come to zero; 0 = at the end. A smaller number lets the rate
            rise and fall again, as in published code whose schedule counts batches and is moved on by every replay.
        falls: shares of the run after which the rate is a tenth of what it was, in place of the cosine.
    """

    total: int
    warmup: int
    peak: float
    half: int = 0
    falls: tuple[float, ...] = ()

    def rate(self, step: int) -> float:
        """Of one optimizer step, 0 for the first."""
        if self.falls and step >= self.warmup:
            return self.peak * 0.1 ** sum(self.done(step) >= share for share in self.falls)
        return learning_rate(step, total=self.half or self.total, warmup=self.warmup, peak=self.peak)

    def done(self, step: int) -> float:
        """Share of the run that lies behind before a step, in [0, 1)."""
        return step / self.total
