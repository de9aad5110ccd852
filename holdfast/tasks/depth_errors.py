"""How far predicted depth is from measured depth: sums over pixels, and the metrics that are made of them.

With p the predicted and d the measured depth of a pixel in metres, g = ln p - ln d, and means over pixels that count:

    rmse       sqrt(mean (p - d)^2)                  metres
    abs_rel    mean |p - d| / d
    sq_rel     mean (p - d)^2 / d                    metres
    log10      mean |g| / ln 10
    rmse_log   sqrt(mean g^2)
    silog      100 sqrt(mean g^2 - (mean g)^2)       as KITTI's depth benchmark has it: all of the scale is taken off
                                                     (lambda = 1 of Eigen et al. 2014, arXiv 1406.2283), in nats / 100
    delta1..3  share with max(p / d, d / p) < 1.25, 1.25^2, 1.25^3

Pixels that count have 0 < d <= far and lie inside the crop; p is clamped to [near, far]. Clean and attacked images are
read alike: everything that decides which pixels count comes from the truth.

Two forms are named. `rmse` is the mean over images of each image's own value, images without a pixel that counts left
out; `rmse_pooled` is that of all pixels of all images together, so that an image weighs as many pixels as it has. Both
also exist `_scaled`: each image's prediction is first multiplied by median(d) / median(p) over the pixels that count
(Zhou et al. 2017, arXiv 1704.07813), and clamped to the range after that. A median of an even number of values is the
mean of the two in the middle, as NumPy's. With `eigen`, those pixels lie inside the crop of Eigen et al. for NYU Depth
v2; with `garg`, in that of Garg et al. 2016 (arXiv 1603.04992) for KITTI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdfast.tasks.task import Floats, Measure

Crop = Literal["none", "eigen", "eigen_kitti", "garg"]
CROPS: dict[str, tuple[Fraction, Fraction, Fraction, Fraction]] = {
    "none": (Fraction(0), Fraction(1), Fraction(0), Fraction(1)),
    "eigen": (Fraction(45, 480), Fraction(471, 480), Fraction(41, 640), Fraction(601, 640)),
    "eigen_kitti": (Fraction("0.3324324"), Fraction("0.91351351"), Fraction("0.0359477"), Fraction("0.96405229")),
    "garg": (Fraction("0.40810811"), Fraction("0.99189189"), Fraction("0.03594771"), Fraction("0.96405229")),
}
"""Top, bottom, left and right in shares of height and width. `eigen`: rows 45 to 471 and columns 41 to 601 of 480 x 640
pixels, in proportion at other sizes; edges are rounded down, as in the code that KITTI's crops come from. That code
takes shares of KITTI's frames as they are, later code of their 352 x 1216 cut: here, of the images that are read."""
_FRAMES = {
    "eigen": ("NYU Depth v2, 480 x 640", 1.31, 1.36),
    "eigen_kitti": ("KITTI, 375 x 1242 or cut to 352 x 1216", 3.2, 3.6),
    "garg": ("KITTI, 375 x 1242 or cut to 352 x 1216", 3.2, 3.6),
}


class Range(NamedTuple):
    """Which pixels count, and where predictions are clamped to.

    Attributes:
        near: smallest prediction in metres, above 0.
        far: largest prediction and largest measured depth in metres.
        crop: of the pixels that count.
    """

    near: float
    far: float
    crop: Crop = "none"

    def counts(self, truth: Tensor) -> Tensor:
        """Which pixels of measured depth [b, h, w] count: bool [b, h, w]."""
        inside = torch.zeros(truth.shape[1:], dtype=torch.bool, device=truth.device)
        inside[box(self.crop, *truth.shape[1:])] = True
        return (truth > 0) & (truth <= self.far) & inside


class Pixels(NamedTuple):
    """Predicted and measured depth, both 1 where a pixel does not count, so that it is no error in any form.

    Attributes:
        predicted: floats [b, h, w] in metres.
        measured: the same.
        counts: bool [b, h, w].
    """

    predicted: Tensor
    measured: Tensor
    counts: Tensor

    def total(self, values: Tensor) -> Tensor:
        """The sum of values [b, h, w] over the pixels that count: [b]."""
        return values.where(self.counts, 0).flatten(1).sum(1)

    @property
    def number(self) -> Tensor:
        """How many pixels count, int64 [b]."""
        return self.counts.flatten(1).sum(1)


class Terms(NamedTuple):
    """What is summed over the pixels of an image that count, in this order; or their means, with the count as 1.

    Attributes:
        count: 1.
        squared: (p - d)^2.
        relative: |p - d| / d.
        squared_relative: (p - d)^2 / d.
        log10: |g| / ln 10.
        log_squared: g^2.
        log: g.
        delta1: whether max(p / d, d / p) < 1.25.
        delta2: the same below 1.25^2.
        delta3: the same below 1.25^3.
    """

    count: Any
    squared: Any
    relative: Any
    squared_relative: Any
    log10: Any
    log_squared: Any
    log: Any
    delta1: Any
    delta2: Any
    delta3: Any


class Quantity(NamedTuple):
    """A metric as a function of means over pixels, tensors or arrays of any one shape."""

    name: str
    of: Callable[[Terms], Any]
    unit: str
    higher_is_better: bool = False


QUANTITIES = (
    Quantity("rmse", lambda m: m.squared**0.5, "metres"),
    Quantity("abs_rel", lambda m: m.relative, "fraction"),
    Quantity("sq_rel", lambda m: m.squared_relative, "metres"),
    Quantity("log10", lambda m: m.log10, "decades"),
    Quantity("rmse_log", lambda m: m.log_squared**0.5, "nats"),
    Quantity("silog", lambda m: 100 * (m.log_squared - m.log**2).clip(min=0) ** 0.5, "nats / 100"),
    Quantity("delta1", lambda m: m.delta1, "fraction", higher_is_better=True),
    Quantity("delta2", lambda m: m.delta2, "fraction", higher_is_better=True),
    Quantity("delta3", lambda m: m.delta3, "fraction", higher_is_better=True),
)
"""All metrics; per-image values are in this order."""


def box(crop: Crop, h: int, w: int) -> tuple[slice, slice]:
    """Rows and columns of a crop of images of h x w pixels."""
    top, bottom, left, right = CROPS[crop]
    return slice(math.floor(top * h), math.floor(bottom * h)), slice(math.floor(left * w), math.floor(right * w))


def foreign_frame(crop: Crop, h: int, w: int) -> str:
    """What to say of a crop of images of h x w pixels, another shape than it was made for; empty where it fits."""
    made_for, narrow, wide = _FRAMES.get(crop, ("", 0.0, math.inf))
    if narrow <= w / h <= wide:
        return ""
    return f"the crop {crop} was made for {made_for}; of {h} x {w} it is compared with no published number."


def pixels(predicted: Tensor, truth: Tensor, within: Range) -> Pixels:
    """Predictions [b, h, w] beside measured depth [b, h, w], both in float64 and clamped, for what is reported."""
    counts = within.counts(truth)
    clamped = predicted.double().clamp(within.near, within.far)
    return Pixels(clamped.where(counts, 1), truth.double().where(counts, 1), counts)


def median_scaled(predicted: Tensor, truth: Tensor, within: Range) -> Tensor:
    """Predictions times median(truth) / median(prediction) of each image: [b, h, w] twice -> float64 [b, h, w].

    Predictions are raised to `near` first; an image without a pixel that counts is left as it is.
    """
    counts = within.counts(truth)
    positive = predicted.double().clamp_min(within.near)
    ratio = _median(truth.double(), counts) / _median(positive, counts)
    return positive * ratio[:, None, None]


def sums(read: Pixels) -> Tensor:
    """`Terms` of each image, summed over the pixels that count: [b, 10], zeros where none does."""
    p, d = read.predicted, read.measured
    apart, g = p - d, p.log() - d.log()
    ratio = torch.maximum(p / d, d / p)
    total = read.total
    terms = Terms(
        count=read.number.to(p),
        squared=total(apart**2),
        relative=total(apart.abs() / d),
        squared_relative=total(apart**2 / d),
        log10=total(g.abs()) / math.log(10),
        log_squared=total(g**2),
        log=total(g),
        delta1=total((ratio < 1.25).to(p)),
        delta2=total((ratio < 1.25**2).to(p)),
        delta3=total((ratio < 1.25**3).to(p)),
    )
    return torch.stack(terms, dim=1)


def values(summed: Tensor) -> Tensor:
    """Each image's own metrics, in the order of `QUANTITIES`, and last whether it has any: [b, 10] -> [b, 10].

    Metrics and the last column are 0 where no pixel counts, so that a mean over images is the ratio of two means.
    """
    means = Terms(*(summed / summed[:, :1].clamp_min(1)).unbind(1))
    there = (summed[:, 0] > 0).to(summed)
    return torch.stack([*(quantity.of(means) * there for quantity in QUANTITIES), there], dim=1)


def rmse(read: Pixels) -> Tensor:
    """Root of the mean squared error of each image in metres: float32 [b], 0 where no pixel counts."""
    squared = read.total((read.predicted - read.measured) ** 2)
    return (squared / read.number.clamp_min(1)).sqrt().float()


def _median(depth: Tensor, counts: Tensor) -> Tensor:
    """The median of each image's pixels that count, [b]; 1 where none does."""
    ordered = depth.where(counts, torch.inf).flatten(1).sort(1).values
    number = counts.flatten(1).sum(1, keepdim=True)
    middle = torch.cat([(number - 1).clamp_min(0) // 2, number // 2], dim=1)
    return ordered.gather(1, middle).mean(1).where(number[:, 0] > 0, 1)


def _there(count: Floats) -> Floats:
    """A divisor: NaN, which says that there is no metric, in place of 0."""
    return np.where(count > 0, count, np.nan)


def _mean_over_images(place: int) -> Callable[[Floats], Floats]:
    return lambda mean: mean[..., place] / _there(mean[..., -1])


def _pooled(quantity: Quantity) -> Callable[[Floats], Floats]:
    def of(mean: Floats) -> Floats:
        count = _there(mean[..., 0])
        found: Floats = np.asarray(quantity.of(Terms(*(mean[..., i] / count for i in range(len(Terms._fields))))))
        return found

    return of


def _measures() -> tuple[Measure, ...]:
    found = []
    for each, summed, end in (("values", "errors", ""), ("scaled_values", "scaled", "_scaled")):
        for place, (name, _, unit, higher) in enumerate(QUANTITIES):
            found.append(Measure(f"{name}{end}", each, higher, unit, _mean_over_images(place)))
        for quantity in QUANTITIES:
            name, _, unit, higher = quantity
            found.append(Measure(f"{name}_pooled{end}", summed, higher, unit, _pooled(quantity)))
    return tuple(found)


MEASURES = _measures()
"""Every metric in its four forms: `rmse`, `rmse_pooled`, `rmse_scaled`, `rmse_pooled_scaled`..."""
