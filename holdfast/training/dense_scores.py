"""What a dense head is worth on a set of images, and what one constant answer would be worth on the same ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from holdfast.attacks.harm import Out, Rows
from holdfast.progress import Bar
from holdfast.tasks.depth import Depth
from holdfast.tasks.segmentation import LABELLED, Segmentation
from holdfast.tasks.task import Floats, Measure
from holdfast.training.dense_feed import DenseTask, Feed

CHOOSING = {"segmentation": "miou", "depth": "rmse"}
"""The metric that chooses among heads, by task."""
_CUTS = 200


class Tally:
    """Outcomes of images, summed.

    Args:
        task: says which outcomes, and which metrics they make.
    """

    def __init__(self, task: DenseTask) -> None:
        self._task, self.images = task, 0
        self._names = {measure.outcome for measure in task.measures()}
        self._sums: dict[str, Floats] = {}
        self._depths: list[Floats] = []

    def add(self, out: Out, rows: Rows) -> None:
        """Count images in: outputs of the head, and their truth."""
        found = self._task.outcome(out, rows)
        for name in self._names:
            summed = found[name].double().sum(0).cpu().numpy()
            self._sums[name] = self._sums.get(name, 0.0) + summed
        if isinstance(self._task, Depth):
            self._depths.append(_moments(self._task, rows).cpu().numpy())
        self.images += len(rows["key"])

    def metrics(self) -> dict[str, float]:
        """Every metric that there is; one that no image allows (a class that never occurs) is left out."""
        means = {name: summed / self.images for name, summed in self._sums.items()}
        values = {m.name: float(m.of(means[m.outcome]) if m.of else means[m.outcome]) for m in self._task.measures()}
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def constant(self) -> dict[str, Any]:
        """The best answer that is the same for every pixel of every image, chosen in hindsight, and what it is worth.

        Returns:
            `class` and `miou`, or `metres` and `rmse`; empty where no pixel counts.
        """
        if isinstance(self._task, Segmentation):
            return best_class(self._sums["counts"][:, LABELLED], self._task.parts)
        return best_depth(np.concatenate(self._depths))


@dataclass(frozen=True)
class Scores:
    """A set of images, the same ones whenever a head is tried.

    Attributes:
        task: has the head, in evaluation mode.
        feed: of the images; nothing is drawn.
        images: how many.
        title: of the bar that shows how far it has come; empty = none.
    """

    task: DenseTask
    feed: Feed
    images: int
    title: str = ""

    @property
    def metric(self) -> Measure:
        """What chooses: mIoU, or the mean over images of their RMSE."""
        name = CHOOSING[self.task.head.spec.task]
        return next(measure for measure in self.task.measures() if measure.name == name)

    def chosen_by(self) -> float:
        """The value of `metric`; NaN where there is none."""
        return self.tally().metrics().get(self.metric.name, math.nan)

    @torch.no_grad()
    def tally(self) -> Tally:
        """All images, counted in."""
        found = Tally(self.task)
        if not self.title:
            for sight in self.feed.sights(torch.arange(self.images), 0):
                found.add(sight.out(), sight.rows)
            return found
        with Bar(self.title, self.images) as bar:
            for sight in self.feed.sights(torch.arange(self.images), 0):
                found.add(sight.out(), sight.rows)
                bar.advance(len(sight.rows["key"]))
        return found


def best_class(labelled: Floats, parts: tuple[str, ...]) -> dict[str, Any]:
    """The class that gives the best mIoU where every pixel is said to be of it.

    Its own IoU is its share of the labelled pixels, that of every other class that occurs is 0.

    Args:
        labelled: pixels of each class, [K].
        parts: their names.
    """
    total, there = labelled.sum(), int((labelled > 0).sum())
    if not there:
        return {}
    best = int(labelled.argmax())
    return {"class": parts[best], "miou": float(labelled[best] / total / there)}


def best_depth(moments: Floats) -> dict[str, Any]:
    """The depth that gives the smallest mean over images of an image's RMSE.

    That mean is convex in the depth: of two thirds of the range, the worse end is given up, again and again.

    Args:
        moments: of each image the mean and variance of its measured depth, and whether it has any: [n, 3].
    """
    mean, variance, _ = moments[moments[:, 2] > 0].T
    if not len(mean):
        return {}

    def worth(depth: float) -> float:
        return float(np.sqrt(variance + (depth - mean) ** 2).mean())

    low, high = float(mean.min()), float(mean.max())
    for _ in range(_CUTS):
        third = (high - low) / 3
        low, high = (low, high - third) if worth(low + third) < worth(high - third) else (low + third, high)
    return {"metres": (low + high) / 2, "rmse": worth((low + high) / 2)}


def _moments(task: Depth, rows: Rows) -> torch.Tensor:
    """Mean and variance of each image's measured depth, and whether it has any: float64 [b, 3]."""
    counts, depth = task.within.counts(rows["depth"]), rows["depth"].double()
    number = counts.flatten(1).sum(1)
    mean = depth.where(counts, 0).flatten(1).sum(1) / number.clamp_min(1)
    apart = (depth - mean[:, None, None]).square().where(counts, 0).flatten(1).sum(1)
    return torch.stack([mean, apart / number.clamp_min(1), (number > 0).double()], 1)
