"""Intervals, paired differences, worst cases and crossings: arithmetic on per-image outcomes, NumPy alone.

Every interval is at 95 %. Resampling is keyed, so that the same outcomes give the same interval on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast import draws
from holdfast.errors import DataError
from holdfast.records import Metric

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

Z = 1.959963984540054
RESAMPLES = 1000
_BYTES = 1 << 26


class Difference(NamedTuple):
    """Mean of a minus b over the same images, its 95 % interval, and how many images were common."""

    value: float
    low: float
    high: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


class Crossing(NamedTuple):
    """The radius at which accuracy falls to half of its clean value.

    Attributes:
        value: in pixel units; None where `reason` says why.
        low: lower end of the 95 % interval; None = beyond the largest radius.
        high: upper end; None = beyond the largest radius.
        n: images.
        reason: why there is no value.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's score interval for k of n (Wilson 1927): inside [0, 1], and never of width 0.

    Raises:
        DataError: there are no images, or k is not in 0..n.
    """
    if n < 1 or not 0 <= k <= n:
        raise DataError(f"An interval for {k} of {n} images was asked for.")
    share, z2 = k / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return (0.0 if k == 0 else low), (1.0 if k == n else high)


def bootstrap(
    values: Array | Callable[[Indices], float], n: int = 0, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap (Efron 1979) over images.

    Args:
        values: [n], for the interval of their mean; or a function from n drawn indices to the statistic.
        n: images, where `values` is a function.
        seed: of the resampling, which is keyed by it and by n: equal n, equal draws.
        resamples: how many.

    Raises:
        DataError: there are no images.
    """
    if not callable(values):
        array = np.asarray(values, dtype=np.float64)
        n = len(array)
        statistic: Callable[[Indices], Floats] = lambda drawn: array[drawn].mean(1)  # noqa: E731 - closes over the array
    else:
        single = values
        statistic = lambda drawn: np.array([single(row) for row in drawn])  # noqa: E731
    low, high = ends(np.concatenate([statistic(drawn) for drawn in _resamples(n, seed, resamples)]))
    return float(low), float(high)


def resampled_means(values: Array, *, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Means of columns over the images that `bootstrap` draws: what is linear in them has its interval in `ends`.

    Args:
        values: [n, k], of the same images.
        seed: as in `bootstrap`.
        resamples: how many.

    Returns:
        [resamples, k].

    Raises:
        DataError: there are no images.
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    counts = (
        np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)
        for drawn in _resamples(n, seed, resamples)
    )
    return np.concatenate([count @ array for count in counts]) / n


def ends(resampled: Floats) -> tuple[Floats, Floats]:
    """Both ends of the 95 % percentile interval of resampled statistics [resamples, ...]."""
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0, method="inverted_cdf")
    return low, high


def mean(name: str, values: Array, *, higher_is_better: bool = True, unit: str = "fraction") -> Metric:
    """The mean of per-image outcomes [n] with its interval: Wilson's for yes or no, bootstrap otherwise."""
    n = len(values)
    if values.dtype == np.bool_:
        (low, high), interval = wilson(int(values.sum()), n), "wilson"
    else:
        (low, high), interval = bootstrap(values), f"bootstrap {RESAMPLES}"
    return Metric(
        name=name,
        value=float(np.mean(values, dtype=np.float64)),
        n=n,
        low=low,
        high=high,
        higher_is_better=higher_is_better,
        unit=unit,
        interval=interval,
    )


def match(ids_a: Array, ids_b: Array) -> tuple[Indices, Indices]:
    """Places of the common images in both lists, in the order of the first.

    Raises:
        DataError: an image is twice in one list.
    """
    for ids in (ids_a, ids_b):
        if len(np.unique(ids)) != len(ids):
            raise DataError("An image id stands twice in one list of outcomes; they cannot be paired.")
    if _same(ids_a, ids_b):
        same = np.arange(len(ids_a), dtype=np.int64)
        return same, same
    place = {name: at for at, name in enumerate(ids_b.tolist())}
    pairs = [(at, place[name]) for at, name in enumerate(ids_a.tolist()) if name in place]
    first, second = (np.array(side, dtype=np.int64) for side in (zip(*pairs) if pairs else ((), ())))
    return first, second


def aligned(columns: Sequence[tuple[Array, Array]]) -> tuple[Array, list[Array]]:
    """The images that all columns have, in the order of the shortest, and the columns on them.

    Args:
        columns: ids [n] and outcomes [n] of each; n may differ.

    Raises:
        DataError: an image is twice in one column.
    """
    ids = min((ids for ids, _ in columns), key=len)
    match(ids, ids)
    for other, _ in columns:
        if not _same(ids, other):
            ids = ids[match(ids, other)[0]]
    return ids, [values if _same(ids, other) else values[match(ids, other)[1]] for other, values in columns]


def paired_difference(a: Array, b: Array, *, seed: int = 0) -> Difference:
    """Mean of a minus mean of b over the same images [n].

    For yes-or-no outcomes the interval is that of Agresti and Min 2005 (Wald after one half is added to each cell of
    the 2 x 2 table: near-nominal, and never of width 0); otherwise percentile bootstrap over per-image differences.

    Raises:
        DataError: lengths differ, or there are no images.
    """
    n = len(a)
    if n != len(b) or n == 0:
        raise DataError(f"Outcomes of {n} and {len(b)} images cannot be paired.")
    value = float(np.mean(a, dtype=np.float64) - np.mean(b, dtype=np.float64))
    if a.dtype == np.bool_ and b.dtype == np.bool_:
        only_a, only_b = float((a & ~b).sum()) + 0.5, float((b & ~a).sum()) + 0.5
        centre = (only_a - only_b) / (n + 2)
        half = Z * math.sqrt(only_a + only_b - (only_a - only_b) ** 2 / (n + 2)) / (n + 2)
        return Difference(value, max(centre - half, -1.0), min(centre + half, 1.0), n)
    low, high = bootstrap(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), seed=seed)
    return Difference(value, low, high, n)


def worst_case(outcomes: Sequence[Array], worse: Literal["lower", "higher"] = "lower") -> Array:
    """Per image, the worst over attacks.

    Args:
        outcomes: arrays [n] of the same images in the same order.
        worse: lower for `correct`; higher for drift, flips and margins.
    """
    stacked = np.stack(list(outcomes))
    worst: Array = stacked.min(0) if worse == "lower" else stacked.max(0)
    return worst


def running_worst(curve: Mapping[float, Array], worse: Literal["lower", "higher"] = "lower") -> dict[float, Array]:
    """Per image, the worst up to each radius: what was found in a smaller ball lies in every larger one.

    Args:
        curve: outcomes [n] of the same images by epsilon, 0 = clean among them.
        worse: as in `worst_case`.
    """
    running: dict[float, Array] = {}
    for eps in sorted(curve):
        running[eps] = worst_case([*list(running.values())[-1:], curve[eps]], worse)
    return running


def crossing(curve: Mapping[float, Array], *, share: float = 0.5, seed: int = 0) -> Crossing:
    """The radius at which accuracy falls to `share` of its clean value, interpolated linearly between radii.

    Before the smallest radius there is nothing to interpolate with but the clean images: that is said, not estimated.

    Args:
        curve: `correct` [n] by epsilon, falling (as `running_worst` gives it), with 0 = clean.
        share: of the clean accuracy.
        seed: of the bootstrap over images; a resample that does not cross counts as beyond the largest radius.
    """
    radii = np.array(sorted(curve))
    n = len(next(iter(curve.values()), ()))
    if n == 0 or len(radii) < 2 or radii[0] != 0:
        return Crossing(None, None, None, n, "needs clean images and at least one radius")
    correct = np.stack([np.asarray(curve[float(eps)], dtype=np.float64) for eps in radii])
    value = cross(radii, correct.mean(1), share)
    if correct[0].mean() == 0:
        return Crossing(None, None, None, n, "no clean image is classified correctly")
    low, high = bootstrap(lambda drawn: cross(radii, correct[:, drawn].mean(1), share), n, seed=seed)
    ends = [end if math.isfinite(end) else None for end in (low, high)]
    if math.isinf(value):
        return Crossing(None, ends[0], None, n, f"still above {share:.0%} of clean accuracy at the largest radius")
    if value < radii[1]:
        return Crossing(
            None, ends[0], ends[1], n, f"below {share:.0%} of clean accuracy at the smallest radius already"
        )
    return Crossing(value, ends[0], ends[1], n)


def cross(radii: Floats, accuracy: Floats, share: float = 0.5) -> float:
    """Where a falling curve meets `share` of its first value, by linear interpolation; infinity where it does not."""
    goal = share * float(accuracy[0])
    below = np.flatnonzero(accuracy <= goal)
    if len(below) == 0:
        return math.inf
    at = int(below[0])
    if at == 0:
        return 0.0
    high, low = float(accuracy[at - 1]), float(accuracy[at])
    along = (high - goal) / (high - low)
    return float(radii[at - 1] + along * (radii[at] - radii[at - 1]))


def _resamples(n: int, seed: int, resamples: int) -> Iterator[Indices]:
    """Drawn indices [some, n], in all `resamples` rows of them, as many at a time as fit into a little memory."""
    if n < 1:
        raise DataError("An interval over no images was asked for.")
    generator = draws.numpy_generator("bootstrap", seed, n)
    rows = max(1, _BYTES // (8 * n))
    for first in range(0, resamples, rows):
        yield generator.integers(n, size=(min(rows, resamples - first), n))


def _same(ids_a: Array, ids_b: Array) -> bool:
    return ids_a is ids_b or (len(ids_a) == len(ids_b) and bool((ids_a == ids_b).all()))
