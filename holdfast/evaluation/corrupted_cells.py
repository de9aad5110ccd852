"""Corrupted cells read as mean corruption errors: which may be averaged, against AlexNet, beside published figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from holdfast.corruptions.table import SIDES
from holdfast.evaluation.corruption_errors import SEVERITIES, Condition, CorruptionErrors, mean_corruption_error
from holdfast.evaluation.published import CORRUPTIONS
from holdfast.evaluation.rows import last_line
from holdfast.evaluation.statistics import aligned
from holdfast.records import Cell, Corruption, Result

Array = npt.NDArray[Any]
Outcome = tuple[Array, Array]

# AlexNet's errors are those of the 1000 classes: corrupted here, or read from the set itself.
_IMAGENET = ("imagenet", "imagenet_c")
_CIFAR = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "cifar10_c": "CIFAR-10-C", "cifar100_c": "CIFAR-100-C"}
# The official files of CIFAR are arrays; those of the other sets are JPEG of quality 85.
_STORAGE = {"cifar32": "none"}


def errors(
    measured: Sequence[tuple[Cell, Outcome]], clean: Outcome | None, failed: Sequence[Result]
) -> tuple[Array, CorruptionErrors]:
    """Mean errors, mCE and relative mCE of one encoder, over the images that all its cells have.

    Seeds of one corruption and severity are averaged per image. Several ways of making it (another storage, from a
    folder) are not: the condition then counts as missing, and says so.

    Args:
        measured: corrupted cells, each with ids [n] and `correct` [n].
        clean: the same of the clean images; None = there are none.
        failed: failed cells of the same encoder and task, whose errors say why a corruption is missing.

    Returns:
        Ids of the images, and the numbers; absent with a reason.
    """
    absent = _failures(failed)
    flat: list[tuple[Condition, Outcome]] = []
    ways = _ways([cell for cell, _ in measured])
    for condition, outcome in ((_condition(cell), outcome) for cell, outcome in measured):
        if len(ways[condition]) > 1:
            absent[condition] = f"measured in {len(ways[condition])} ways, which are not averaged"
        elif condition[1] in SEVERITIES:
            flat.append((condition, outcome))
    if not flat:
        reason = "" if absent else "no corruption was judged by classification"
        return np.array([]), mean_corruption_error({}, None, reason=reason, absent=absent)
    ids, columns, base, no_clean = _matched([outcome for _, outcome in flat], clean)
    if len(ids) == 0:
        absent |= dict.fromkeys((key for key, _ in flat), "the corrupted cells have no image in common")
        return ids, mean_corruption_error({}, None, absent=absent)
    cells = [cell for cell, _ in measured]
    found = mean_corruption_error(
        _grouped([key for key, _ in flat], columns),
        base,
        reason=not_alexnet(cells),
        no_clean=no_clean,
        absent=absent,
        remark=remark(cells),
    )
    return ids, found._replace(deviates=bool(deviations(cells)))


def not_alexnet(cells: Sequence[Cell]) -> str:
    """Why AlexNet's errors on ImageNet-C say nothing about these corrupted cells; empty where they do."""
    sources = sorted({cell.data.source for cell in cells} - {*_IMAGENET})
    if len(sources) == 1 and sources[0] in _CIFAR:
        return f"{_CIFAR[sources[0]]} has no AlexNet baseline; the mean error over 15 is what AugMix tables call mCE"
    subset = max((len(cell.data.classes) for cell in cells), default=0)
    if sources or subset:
        what = ", ".join(sources) if sources else f"a subset of {subset} classes"
        return f"AlexNet's errors belong to the 1000 classes of ImageNet; these images are {what}"
    there = min(cell.data.classes_there for cell in cells)
    if there not in (0, 1000):
        return f"AlexNet's errors belong to the 1000 classes of ImageNet; these images are of {there}"
    variants = {stage.variant for cell in cells for stage in [cell.corruption] if stage}
    if variants - {"imagenet224"}:
        return f"AlexNet's errors belong to the severities of imagenet224; these are {', '.join(sorted(variants))}"
    return ""


def remark(cells: Sequence[Cell]) -> str:
    """In what corruptions differ from the published sets, arithmetic included; empty = in nothing known."""
    stages = [stage for cell in cells for stage in [cell.corruption] if stage]
    fast = {stage.name for stage in stages if stage.mode == "fast"}
    all_names = {stage.name for stage in stages}
    said = f"{_listed(fast, all_names)} in fast arithmetic (within one of 256 levels of the reference)"
    return "; ".join([*deviations(cells), *([said] if fast else [])])


def deviations(cells: Sequence[Cell]) -> list[str]:
    """In what corruptions deviate from the published sets by more than arithmetic.

    Those of a folder are judged by what its stage says: the published way for an official set, else as it was made.
    """
    made = [(cell, stage) for cell in cells for stage in [cell.corruption] if stage]
    names = {stage.name for _, stage in made}
    said = []
    if any(stage.name == "frost" and stage.textures == "drawn" for _, stage in made):
        said.append("frost has drawn textures, not the published ones")
    for storage, words in (
        ("none", "not stored as JPEG of quality 85 (storage none), as the official files are"),
        ("jpeg85", "stored as JPEG of quality 85, which the official files are not"),
    ):
        other = {s.name for _, s in made if s.storage == storage != _STORAGE.get(s.variant, "jpeg85")}
        said += [f"{_listed(other, names)} {words}"] if other else []
    cuts = {(c.data.resize, c.data.interpolation) for c, s in made if s.variant == "imagenet224" and c.data.resize}
    said += [
        f"images resized to {resize} px ({weights}), where those of ImageNet-C were to 256 (bilinear)"
        for resize, weights in sorted(cuts - {(256, "bilinear")})
    ]
    sizes = sorted({c.data.size for c, s in made if c.data.size not in (0, SIDES[s.variant])})
    said += [f"images of {sizes[0]} pixels, for which the severities were not made"] if sizes else []
    return said


def _matched(columns: Sequence[Outcome], clean: Outcome | None) -> tuple[Array, list[Array], Array | None, str]:
    """Common ids, `correct` of each column, errors of the clean images, and why there are none."""
    ids, common = aligned(columns)
    if clean is None:
        return ids, common, None, "no clean image was judged by classification"
    shared, both = aligned([*columns, clean])
    if len(shared) == 0:
        return ids, common, None, "clean and corrupted cells have no image in common"
    return shared, both[:-1], 1.0 - both[-1], ""


def _grouped(conditions: Sequence[Condition], columns: Sequence[Array]) -> dict[str, dict[int, Array]]:
    """Errors by corruption and severity, the mean over seeds."""
    seeds: dict[Condition, list[Array]] = {}
    for condition, correct in zip(conditions, columns):
        seeds.setdefault(condition, []).append(1.0 - correct)
    found: dict[str, dict[int, Array]] = {}
    for (name, severity), each in seeds.items():
        found.setdefault(name, {})[severity] = np.stack(each).mean(0)
    return found


def _failures(failed: Iterable[Result]) -> dict[Condition, str]:
    """The errors of failed cells in one line each."""
    return {
        _condition(result.cell): last_line(result.error).removeprefix("holdfast.errors.")
        for result in failed
        if result.cell.corruption is not None
    }


def _ways(cells: Iterable[Cell]) -> dict[Condition, set[Corruption]]:
    """How each condition was made, whatever the seed."""
    ways: dict[Condition, set[Corruption]] = {}
    for cell in cells:
        if cell.corruption is not None:
            ways.setdefault(_condition(cell), set()).add(msgspec.structs.replace(cell.corruption, seed=0))
    return ways


def _condition(cell: Cell) -> Condition:
    stage = cell.corruption
    return (stage.name, stage.severity) if stage is not None else ("", 0)


def _listed(some: set[str], names: set[str]) -> str:
    """Which corruptions: all, or their names in the published order."""
    if some == names:
        return "all corruptions"
    known = [name for name in CORRUPTIONS if name in some]
    return ", ".join([*known, *sorted(some - {*known})])
