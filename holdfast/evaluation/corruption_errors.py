"""Mean errors under corruption, mCE and relative mCE (Hendrycks and Dietterich 2019, arXiv 1903.12261), NumPy alone.

With E the error rates, A those of AlexNet, c a corruption and s a severity:

    mean error     = mean_cs E_cs
    CE_c           = sum_s E_cs / sum_s A_cs                              mCE          = mean_c CE_c
    relative CE_c  = sum_s (E_cs - E_clean) / sum_s (A_cs - A_clean)      relative mCE = mean_c relative CE_c

over the 15 corruptions of the benchmark: ratios of sums, not means of ratios. Every one of them is a weighted sum of
error rates, so that one table of weights (`aggregates`) serves records and published tables alike, and resampling
images resamples all of them at once and exactly. Corruptions are keyed by name, never by position.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.errors import DataError
from holdfast.evaluation.published import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    CORRUPTIONS,
    FAMILIES,
    MCE_CORRUPTIONS,
)
from holdfast.evaluation.statistics import RESAMPLES, ends, resampled_means
from holdfast.records import Metric

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Condition = tuple[str, int]

SEVERITIES = (1, 2, 3, 4, 5)
NOT_MEASURED = "not measured"
_PAIRED = ("mean_error", "mean_error_15", "mean_error_19", "mce", "relative_mce")


class Aggregate(NamedTuple):
    """A weighted sum of error rates.

    Attributes:
        name: mean_error_15, mean_error_blur, mean_error_19_severity_3, ce_fog, mce, relative_mce...
        needs: the corruptions and severities, in words.
        weights: of each condition.
        clean: weight of the error rate on clean images; 0 = they are not needed.
        baseline: whether AlexNet's errors are in the weights.
    """

    name: str
    needs: str
    weights: Mapping[Condition, float]
    clean: float = 0.0
    baseline: bool = False


class CorruptionErrors(NamedTuple):
    """What corruptions at five severities amount to; every number is a fraction (AlexNet has mCE 1), or a reason.

    Attributes:
        metrics: every one of `aggregates()` by name, with n and bootstrap interval, or absent with a reason.
        plain: mean error over whatever is there: mean over corruptions of the mean over severities.
        parts: per-image parts [n] whose mean is the metric, for paired differences: of mean_error, mean_error_15,
            mean_error_19, mce and relative_mce, where they have a value.
        remark: in what the corruptions differ from those of the published figures; empty = in nothing known.
        deviates: whether that is more than fast arithmetic, which stays within one of 256 levels.
    """

    metrics: dict[str, Metric]
    plain: Metric
    parts: dict[str, Floats]
    remark: str = ""
    deviates: bool = False

    @property
    def mce(self) -> Metric:
        """Mean corruption error over the 15, relative to AlexNet."""
        return self.metrics["mce"]

    @property
    def relative(self) -> Metric:
        """The same of the rise over the clean error."""
        return self.metrics["relative_mce"]

    @property
    def values(self) -> Floats:
        """Per-image parts whose mean is the mCE, [n]; empty where it is absent."""
        return self.parts.get("mce", np.array([]))

    @property
    def families(self) -> dict[str, Metric]:
        """Mean error of noise, blur, weather, digital, and of the extra four."""
        return {name: self.metrics[f"mean_error_{name}"] for name in FAMILIES}

    @property
    def each(self) -> dict[str, Metric]:
        """CE of every corruption."""
        return {name: self.metrics[f"ce_{name}"] for name in CORRUPTIONS}

    @property
    def relative_each(self) -> dict[str, Metric]:
        """Relative CE of every corruption."""
        return {name: self.metrics[f"relative_ce_{name}"] for name in CORRUPTIONS}

    def severities(self, corruptions: int) -> dict[int, Metric]:
        """Mean error at each severity, over 15 or 19 corruptions."""
        return {s: self.metrics[f"mean_error_{corruptions}_severity_{s}"] for s in SEVERITIES}


@functools.cache
def aggregates() -> tuple[Aggregate, ...]:
    """Mean errors over 15 and 19, per family and severity; CE and relative CE of each corruption; mCE, relative mCE."""
    ces = {name: _ce(name) for name in CORRUPTIONS}
    rises = {name: _relative_ce(name) for name in CORRUPTIONS}
    sets = {"15": MCE_CORRUPTIONS, "19": CORRUPTIONS}
    fifteen = "15 corruptions at severities 1 to 5"
    return (
        *(
            _mean(f"mean_error_{count}", f"{count} corruptions at severities 1 to 5", _grid(members))
            for count, members in sets.items()
        ),
        *(
            _mean(f"mean_error_{name}", f"{' and '.join(members)} at severities 1 to 5", _grid(members))
            for name, members in FAMILIES.items()
        ),
        *(
            _mean(f"mean_error_{count}_severity_{s}", f"{count} corruptions at severity {s}", _grid(members, (s,)))
            for count, members in sets.items()
            for s in SEVERITIES
        ),
        *ces.values(),
        *rises.values(),
        _average("mce", fifteen, [ces[name] for name in MCE_CORRUPTIONS]),
        _average("relative_mce", fifteen, [rises[name] for name in MCE_CORRUPTIONS]),
    )


def of_rates(rates: Mapping[str, Sequence[float]], clean: float | None = None) -> dict[str, float]:
    """Every aggregate that a table of error rates allows.

    Args:
        rates: fractions at severities 1 to 5, by corruption, as papers print them.
        clean: error rate on clean images; None = not known.

    Returns:
        Fractions by name, as in `aggregates`; those that lack a corruption or the clean rate are left out.

    Raises:
        DataError: a corruption has not five rates.
    """
    short = [name for name, row in rates.items() if len(row) != len(SEVERITIES)]
    if short:
        raise DataError(f"{short[0]} has {len(rates[short[0]])} error rates.", next="Give one for each of 1 to 5.")
    held = {(name, s): float(rate) for name, row in rates.items() for s, rate in zip(SEVERITIES, row)}
    whole = [a for a in aggregates() if a.weights.keys() <= held.keys() and (clean is not None or not a.clean)]
    found = np.array([clean or 0.0, *held.values()]) @ _matrix(held, whole)
    return {a.name: float(value) for a, value in zip(whole, found)}


def non_monotone(rates: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Corruptions whose error falls from one severity to the next, in the order given."""
    return tuple(name for name, row in rates.items() if any(b < a for a, b in itertools.pairwise(row)))


def mean_corruption_error(  # parameters: each reason for an absence comes from another place
    errors: Mapping[str, Mapping[int, Array]],
    clean: Array | None,
    *,
    reason: str = "",
    no_clean: str = "needs the error on clean images, which was not measured",
    absent: Mapping[Condition, str] | None = None,
    remark: str = "",
    seed: int = 0,
) -> CorruptionErrors:
    """All aggregates of per-image errors, with intervals.

    Args:
        errors: per-image errors (0 or 1, or any number) [n] by corruption and severity, of the same images.
        clean: errors of the clean images, [n]; None = there are none.
        reason: why AlexNet's errors do not apply to these images; empty = they do.
        no_clean: why there is no clean error.
        absent: why a corruption and severity is not there; "not measured" where nothing is said.
        remark: in what these corruptions deviate from those of the published figures.
        seed: of the bootstrap.

    Raises:
        DataError: arrays of different lengths.
    """
    held = {(name, s): e for name, by in errors.items() for s, e in by.items() if s in SEVERITIES and len(e)}
    lengths = {len(e) for e in held.values()} | ({len(clean)} if clean is not None else set())
    if len(lengths) > 1:
        raise DataError(
            f"Errors of {min(lengths)} and {max(lengths)} images cannot be averaged as the same images.",
            next="Match them by id first: statistics.aligned.",
        )
    whys = {a.name: _why(a, held, clean, (reason, no_clean, absent or {})) for a in aggregates()}
    metrics = {name: Metric(name=name, reason=why, higher_is_better=False) for name, why in whys.items() if why}
    if not held:
        plain = Metric(name="mean_error", reason="no corruption was measured", higher_is_better=False)
        return CorruptionErrors({a.name: metrics[a.name] for a in aggregates()}, plain, {}, remark)
    whole = [_plain(held), *(a for a in aggregates() if not whys[a.name])]
    base = np.zeros(max(lengths)) if clean is None else clean
    rates = np.stack([base, *held.values()], axis=1, dtype=np.float64)
    weights = _matrix(held, whole)
    low, high = ends(resampled_means(rates, seed=seed) @ weights)
    for at, (a, value) in enumerate(zip(whole, rates.mean(0) @ weights)):
        metrics[a.name] = Metric(
            name=a.name,
            value=float(value),
            n=len(rates),
            low=float(low[at]),
            high=float(high[at]),
            higher_is_better=False,
            interval=f"bootstrap {RESAMPLES}",
        )
    parts = {a.name: rates @ weights[:, at] for at, a in enumerate(whole) if a.name in _PAIRED}
    plain = metrics.pop("mean_error")
    return CorruptionErrors({a.name: metrics[a.name] for a in aggregates()}, plain, parts, remark)


def _matrix(held: Iterable[Condition], chosen: Sequence[Aggregate]) -> Floats:
    """Weights [1 + conditions, aggregates]: the clean rate first, then the conditions in their order."""
    return np.array([[a.clean for a in chosen], *([a.weights.get(key, 0.0) for a in chosen] for key in held)])


def _why(
    aggregate: Aggregate,
    held: Mapping[Condition, Array],
    clean: Array | None,
    said: tuple[str, str, Mapping[Condition, str]],
) -> str:
    """Why an aggregate has no value; empty where it has one."""
    reason, no_clean, absent = said
    if aggregate.baseline and reason:
        return reason
    missing: dict[str, list[int]] = {}
    for name, severity in aggregate.weights:
        if (name, severity) not in held:
            missing.setdefault(name, []).append(severity)
    if missing:
        shown = ", ".join(_missing(name, s, aggregate, absent) for name, s in list(missing.items())[:3])
        count = f"{len(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        return f"needs {aggregate.needs}; {count}: {shown}" + (", ..." if len(missing) > 3 else "")
    return no_clean if aggregate.clean and clean is None else ""


def _missing(name: str, severities: Sequence[int], aggregate: Aggregate, absent: Mapping[Condition, str]) -> str:
    whys = dict.fromkeys(absent.get((name, s), NOT_MEASURED) for s in severities)
    some = len(severities) < sum(key[0] == name for key in aggregate.weights)
    at = f" at severity {', '.join(str(s) for s in severities)}" if some else ""
    return f"{name}{at} ({'; '.join(whys)})"


def _grid(members: Iterable[str], severities: Sequence[int] = SEVERITIES) -> tuple[Condition, ...]:
    return tuple((name, s) for name in members for s in severities)


def _mean(name: str, needs: str, conditions: Sequence[Condition]) -> Aggregate:
    return Aggregate(name, needs, dict.fromkeys(conditions, 1 / len(conditions)))


def _ce(name: str) -> Aggregate:
    theirs = sum(ALEXNET_ERRORS[name])
    return Aggregate(f"ce_{name}", f"{name} at severities 1 to 5", dict.fromkeys(_grid([name]), 1 / theirs), 0.0, True)


def _relative_ce(name: str) -> Aggregate:
    rise = sum(rate - ALEXNET_CLEAN_ERROR for rate in ALEXNET_ERRORS[name])
    weights = dict.fromkeys(_grid([name]), 1 / rise)
    return Aggregate(f"relative_ce_{name}", f"{name} at severities 1 to 5", weights, -len(weights) / rise, True)


def _average(name: str, needs: str, members: Sequence[Aggregate]) -> Aggregate:
    weights = {key: weight / len(members) for member in members for key, weight in member.weights.items()}
    return Aggregate(name, needs, weights, sum(member.clean for member in members) / len(members), True)


def _plain(held: Iterable[Condition]) -> Aggregate:
    severities: dict[str, list[int]] = {}
    for name, severity in held:
        severities.setdefault(name, []).append(severity)
    weights = {(name, s): 1 / len(by) / len(severities) for name, by in severities.items() for s in by}
    return Aggregate("mean_error", "a corruption", weights)
