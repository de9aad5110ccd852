"""Records read as subjects, curves over epsilon, and corruption profiles. Everything is per image, matched by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from holdfast.evaluation import corrupted_cells, statistics
from holdfast.evaluation.attack_names import attack_name as attack_name
from holdfast.evaluation.corruption_errors import SEVERITIES, CorruptionErrors
from holdfast.evaluation.published import FAMILIES, family
from holdfast.evaluation.statistics import aligned, running_worst
from holdfast.evaluation.store import Run
from holdfast.records import Attack, Data, Metric, Model, Result

Array = npt.NDArray[Any]


class Outcome(NamedTuple):
    """A per-image outcome and how it is read.

    Attributes:
        name: in `images/<id>.npz`.
        task: that judges it.
        metric: its mean.
        worse: direction in which it is worse for the owner of the encoder.
        title: in words.
        unit: of the metric.
    """

    name: str
    task: str
    metric: str
    worse: Literal["lower", "higher"]
    title: str
    unit: str = "fraction"


OUTCOMES = {
    o.name: o
    for o in (
        Outcome("correct", "classification", "accuracy", "lower", "accuracy"),
        Outcome("correct_within", "classification", "accuracy_within", "lower", "accuracy among the set's own classes"),
        Outcome("knn_correct", "embedding", "knn_accuracy", "lower", "kNN accuracy"),
        Outcome("cosine", "embedding", "cosine_drift", "higher", "cosine drift", "1 - cosine"),
        Outcome("quantile", "embedding", "quantile", "higher", "drift as a quantile of random pairs"),
        Outcome("wrong", "segmentation", "pixel_error", "higher", "share of wrong pixels"),
        Outcome("rmse", "depth", "rmse", "higher", "depth RMSE", "m"),
        Outcome("flip", "embedding", "neighbour_flips", "higher", "nearest neighbour changed"),
    )
}


@dataclass(frozen=True)
class Subject:
    """One encoder of one run, with everything that was measured on it.

    Attributes:
        name: as the page calls it, different for every subject.
        run: that it belongs to.
        model: the encoder.
        results: of its cells that are done.
    """

    name: str
    run: Run
    model: Model
    results: tuple[Result, ...]
    _curves: dict[tuple[str, str, str], Curve] = field(default_factory=dict, repr=False, compare=False)
    _errors: list[tuple[Array, CorruptionErrors]] = field(default_factory=list, repr=False, compare=False)

    @property
    def images(self) -> str:
        """Names the set that image ids belong to: two subjects share images only where this is equal."""
        sets = {(d.source, d.root, d.split, d.seed if d.source == "scenes" else 0) for d in self._data()}
        return repr(sorted(sets))

    def _data(self) -> list[Data]:
        return [r.cell.data for r in self.results]

    @property
    def failed(self) -> list[Result]:
        """Its cells that failed."""
        own = (_called(self.model), self.model.digest_of_weights)
        return [r for r in self.run.failed if (_called(r.cell.encoder), r.cell.encoder.digest_of_weights) == own]

    def clean(self, task: str) -> Result | None:
        """The cell without stages, over the most images where there are several."""
        found = [r for r in self.results if r.cell.judge.task == task and not r.cell.stages]
        return max(found, key=lambda r: len(self.run.outcomes(r.id)["id"]), default=None)

    def corrupted(self, task: str) -> list[Result]:
        """Cells with a corruption and no attack."""
        found = [r for r in self.results if r.cell.judge.task == task and r.cell.attack is None]
        return [r for r in found if r.cell.corruption is not None]

    def attacked(self, task: str, norm: str = "") -> list[Result]:
        """Cells with an attack of some radius on clean images, of one norm or of all."""
        return [r for r in self._attacked(task, norm) if _eps(r) > 0]

    def nearest(self, task: str, norm: str) -> list[Result]:
        """Cells whose attack, on the encoder itself, looked for the nearest adversarial image through this head."""
        found = [(r, r.cell.attack) for r in self._attacked(task, norm) if _eps(r) == 0]
        return [r for r, a in found if a is not None and a.through == task and a.surrogate is None]

    def _attacked(self, task: str, norm: str) -> list[Result]:
        found = [r for r in self.results if r.cell.judge.task == task and r.cell.corruption is None]
        return [r for r in found if r.cell.attack is not None and norm in ("", r.cell.attack.norm)]

    def norms(self) -> list[str]:
        """Norms of the attacks, Linf first."""
        found = {r.cell.attack.norm for r in self.results if r.cell.attack is not None}
        return [norm for norm in ("linf", "l2", "l1") if norm in found]


class Point(NamedTuple):
    """One epsilon of a curve: what the attack at this radius alone left, and what all smaller ones left too."""

    eps: float
    raw: Metric
    worst: Metric


class Curve(NamedTuple):
    """An outcome over epsilon.

    Attributes:
        subject: name of the encoder.
        attack: in words.
        norm: of the ball.
        outcome: what is drawn.
        ids: of the images that clean and attacked cells have in common.
        running: worst so far per image, [n] by epsilon, 0 = clean among them.
        points: the same with intervals.
        reason: why there is no curve.
    """

    subject: str
    attack: str
    norm: str
    outcome: Outcome
    ids: Array
    running: dict[float, Array]
    points: tuple[Point, ...]
    reason: str = ""


class Profile(NamedTuple):
    """One corruption of one encoder: mean over severities, and each severity (0 = clean)."""

    corruption: str
    family: str
    mean: Metric
    severities: dict[int, Metric]


def subjects(runs: Sequence[Run]) -> list[Subject]:
    """The encoders of some runs in the order of their records, under names that differ."""
    found: list[Subject] = []
    for run in runs:
        grouped: dict[tuple[str, str], list[Result]] = {}
        for result in run.results:
            model = result.cell.encoder
            key = (_called(model), model.digest_of_weights)
            grouped.setdefault(key, []).append(result)
        for (name, _), results in grouped.items():
            done = tuple(r for r in results if r.status == "done")
            found.append(Subject(name, run, results[0].cell.encoder, done))
    return _distinct(found)


def families(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Attacked results by attack without its radius, radii ascending."""
    grouped: dict[Attack, list[Result]] = {}
    for result in results:
        attack = result.cell.attack
        if attack is not None:
            grouped.setdefault(msgspec.structs.replace(attack, eps=0.0), []).append(result)
    named: dict[str, list[Result]] = {}
    for attack, members in grouped.items():
        name, count = attack_name(attack), 2
        while name in named:
            name, count = f"{attack_name(attack)} ({count})", count + 1
        named[name] = sorted(members, key=_eps)
    return named


def curve(subject: Subject, outcome: Outcome, norm: str, *, attack: str = "") -> Curve:
    """An outcome over epsilon, running worst per image.

    Args:
        subject: the encoder.
        outcome: one of `OUTCOMES`.
        norm: of the balls.
        attack: as `families` names it; empty = the worst case over all attacks of that norm.
    """
    key = (outcome.name, norm, attack)
    if key not in subject._curves:
        subject._curves[key] = _curve(subject, outcome, norm, attack)
    return subject._curves[key]


def norm_name(norm: str) -> str:
    """Linf, L2 or L1."""
    return {"linf": "Linf", "l2": "L2", "l1": "L1"}.get(norm, norm)


def _curve(subject: Subject, outcome: Outcome, norm: str, attack: str) -> Curve:
    results = subject.attacked(outcome.task, norm)
    nearest = subject.nearest(outcome.task, norm) if outcome.name == "correct" else []
    if attack:
        results, nearest = (families(found).get(attack, []) for found in (results, nearest))
    name = attack or "worst case over all attacks"
    nothing = Curve(subject.name, name, norm, outcome, np.array([]), {}, ())
    clean = subject.clean(outcome.task)
    if clean is None or not (results or nearest):
        missing = "no clean image of" if clean is None else f"no {norm_name(norm)} attack on"
        return nothing._replace(reason=f"{missing} {subject.name} was judged by {outcome.task}")
    columns = [(0.0, *_column(subject, clean, outcome))] + [(_eps(r), *_column(subject, r, outcome)) for r in results]
    columns += _by_distance(subject, nearest, sorted({_eps(r) for r in results}))
    if any(values is None for _, _, values in columns):
        return nothing._replace(reason=f"{outcome.title} of {subject.name} was not recorded (no labels?)")
    ids, common = aligned([(who, values) for _, who, values in columns if values is not None])
    if len(ids) == 0:
        return nothing._replace(reason=f"clean and attacked cells of {subject.name} have no image in common")
    raw: dict[float, list[Array]] = {}
    for (eps, _, _), values in zip(columns, common):
        raw.setdefault(eps, []).append(values)
    alone = {eps: statistics.worst_case(found, outcome.worse) for eps, found in raw.items()}
    running = running_worst(alone, outcome.worse)
    points = tuple(Point(eps, _mean(alone[eps], outcome), _mean(running[eps], outcome)) for eps in sorted(running))
    return Curve(subject.name, name, norm, outcome, ids, running, points)


def distances(subject: Subject, result: Result) -> tuple[Array, Array]:
    """Ids, and how far the nearest adversarial image is that a minimal-norm attack found, in pixel units, [n].

    It is 0 where the clean image is wrong, and infinite where none was found.
    """
    held: dict[str, Array] = dict(subject.run.outcomes(result.id))
    found = np.where(held["attack_score"] > 0, held["attack_norm"], np.inf)
    return _ids(result, held["id"]), np.where(held["attack_clean_score"] > 0, 0.0, found)


def _by_distance(
    subject: Subject, nearest: Sequence[Result], grid: Sequence[float]
) -> list[tuple[float, Array, Array | None]]:
    """The columns of minimal-norm attacks: at every radius of the grid, what lies further than it is right.

    Without a grid, its radii are the deciles of the distances.
    """
    columns: list[tuple[float, Array, Array | None]] = []
    for result in nearest:
        ids, apart = distances(subject, result)
        known = apart[np.isfinite(apart) & (apart > 0)]
        radii = list(grid) or (np.unique(np.quantile(known, np.linspace(0.1, 1, 10))).tolist() if len(known) else [])
        columns += [(float(eps), ids, apart > eps) for eps in radii]
    return columns


def profiles(subject: Subject, outcome: Outcome) -> dict[str, Profile]:
    """Every corruption of an encoder, family by family in the order of the published sets.

    Severity 0, the clean images, is there where a clean cell is; it is not in the mean. Where a severity was measured
    several times (several seeds), its outcome is the mean per image.
    """
    clean = subject.clean(outcome.task)
    start = _column(subject, clean, outcome)[1] if clean is not None else None
    by_name: dict[str, dict[int, tuple[Array, Array]]] = {}
    for (name, severity), columns in _conditions(subject, outcome).items():
        by_name.setdefault(name, {})[severity] = _averaged(columns)
    found = {}
    for name in sorted(by_name, key=_place):
        severities = {s: _mean(values, outcome) for s, (_, values) in sorted(by_name[name].items())}
        if start is not None:
            severities = {0: _mean(start, outcome), **severities}
        _, common = aligned(list(by_name[name].values()))
        overall = _mean(np.stack(common).mean(0, dtype=np.float64), outcome)
        found[name] = Profile(name, family(name), overall, severities)
    return found


def corruption_errors(subject: Subject) -> tuple[Array, CorruptionErrors]:
    """Ids, and mean errors, mCE and relative mCE of an encoder's classification; each absent with a reason."""
    if not subject._errors:
        clean = subject.clean("classification")
        start = _column(subject, clean, OUTCOMES["correct"]) if clean is not None else None
        columns = [(r.cell, _column(subject, r, OUTCOMES["correct"])) for r in subject.corrupted("classification")]
        measured = [(cell, (ids, values)) for cell, (ids, values) in columns if values is not None]
        failed = [r for r in subject.failed if r.cell.judge.task == "classification"]
        base = (start[0], start[1]) if start is not None and start[1] is not None else None
        subject._errors.append(corrupted_cells.errors(measured, base, failed))
    return subject._errors[0]


def mean_over_corruptions(subject: Subject, outcome: Outcome) -> tuple[Array, Array]:
    """Ids, and per image the mean over corruptions of the mean over severities; empty arrays where there are none."""
    columns = _conditions(subject, outcome)
    flat = [(name, pair) for (name, _), pairs in columns.items() for pair in pairs]
    if not flat:
        return np.array([]), np.array([])
    ids, common = aligned([pair for _, pair in flat])
    grouped: dict[str, list[Array]] = {}
    for (name, _), values in zip(flat, common):
        grouped.setdefault(name, []).append(values)
    return ids, np.stack([np.stack(v).mean(0, dtype=np.float64) for v in grouped.values()]).mean(0)


def _conditions(subject: Subject, outcome: Outcome) -> dict[tuple[str, int], list[tuple[Array, Array]]]:
    """Ids and outcomes of every corruption and severity above 0, in as many columns as it was measured."""
    found: dict[tuple[str, int], list[tuple[Array, Array]]] = {}
    for result in subject.corrupted(outcome.task):
        stage = result.cell.corruption
        ids, values = _column(subject, result, outcome)
        if stage is not None and stage.severity in SEVERITIES and values is not None:
            found.setdefault((stage.name, stage.severity), []).append((ids, values))
    return found


def _averaged(columns: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The only column, or the mean of several on their common images."""
    if len(columns) == 1:
        return columns[0]
    ids, common = aligned(columns)
    return ids, np.stack(common).mean(0, dtype=np.float64)


def _called(model: Model) -> str:
    return model.name or model.spec


def _distinct(found: list[Subject]) -> list[Subject]:
    names = [s.name for s in found]
    runs = [s.run.name for s in found]
    renamed: list[Subject] = []
    for subject in found:
        name = subject.name
        if names.count(name) > 1:
            twice = sum(n == name and r == subject.run.name for n, r in zip(names, runs)) > 1
            mark = subject.model.digest_of_weights[:8] if twice else subject.run.name
            name = f"{name} ({mark})"
        taken, count, free = {s.name for s in renamed}, 2, name
        while free in taken:
            free, count = f"{name} #{count}", count + 1
        renamed.append(Subject(free, subject.run, subject.model, subject.results))
    return renamed


def _column(subject: Subject, result: Result, outcome: Outcome) -> tuple[Array, Array | None]:
    held = subject.run.outcomes(result.id)
    return _ids(result, held["id"]), held.get(outcome.name)


def _ids(result: Result, ids: Array) -> Array:
    """Ids without the folder of the condition where a corrupted set is read by itself: fog/3/a.png is snow/1/a.png."""
    stage = result.cell.corruption
    if stage is None or result.cell.data.split != f"{stage.name}/{stage.severity}":
        return ids
    return np.array([name.removeprefix(f"{result.cell.data.split}/") for name in ids.tolist()])


def _mean(values: Array, outcome: Outcome) -> Metric:
    return statistics.mean(outcome.metric, values, higher_is_better=outcome.worse == "lower", unit=outcome.unit)


def _eps(result: Result) -> float:
    return result.cell.attack.eps if result.cell.attack is not None else 0.0


def _place(name: str) -> tuple[int, int, str]:
    members = FAMILIES.get(family(name), ())
    groups = list(FAMILIES)
    group = groups.index(family(name)) if members else len(groups)
    return group, members.index(name) if name in members else 0, name
