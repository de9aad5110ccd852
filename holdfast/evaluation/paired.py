"""A number with the per-image values behind it, so that two of them can be compared image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.evaluation import statistics
from holdfast.evaluation.statistics import Difference, match, paired_difference
from holdfast.records import Metric

Array = npt.NDArray[Any]


class Evidence(NamedTuple):
    """A number with the per-image values behind it.

    Attributes:
        metric: the number; absent with a reason.
        ids: of the images, [n].
        values: [n] or [m, n].
        of: from means over images, [r, m], to the number of each row, [r]; None = the mean of everything.
        text: what to show in place of a value that lies beyond the grid.
        images: which set the ids belong to; ids of different sets are different images.
    """

    metric: Metric
    ids: Array = np.array([])
    values: Array = np.array([])
    of: Callable[[Array], Array] | None = None
    text: str = ""
    images: str = ""

    @property
    def rank(self) -> float | None:
        """What encoders are ordered by; None where there is nothing."""
        if len(self.ids) == 0:
            return None
        if self.of is None:
            return float(self.values.mean(dtype=np.float64))
        return float(self.of(self.values.mean(-1, dtype=np.float64)[None])[0])


def difference(a: Evidence, b: Evidence, *, seed: int = 0) -> Difference | None:
    """a minus b over their common images, with a paired interval; None where there is none."""
    if len(a.ids) == 0 or len(b.ids) == 0 or a.images != b.images:
        return None
    first, second = match(a.ids, b.ids)
    if len(first) == 0:
        return None
    x, y = a.values[..., first], b.values[..., second]
    if a.of is None or b.of is None:
        return paired_difference(x, y, seed=seed)
    # One draw of images serves both: they are resampled in pairs.
    drawn = [of(statistics.resampled_means(part.T, seed=seed)) for of, part in ((a.of, x), (b.of, y))]
    low, high = statistics.ends(drawn[0] - drawn[1])
    whole = [of(part.mean(-1, dtype=np.float64)[None])[0] for of, part in ((a.of, x), (b.of, y))]
    return Difference(float(whole[0] - whole[1]), float(low), float(high), len(first))
