"""Grad-CAM pairs, chosen by rule when they were measured: clean and corrupted image, each with its map on one scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from holdfast.evaluation.curves import Subject
from holdfast.evaluation.published import CORRUPTIONS, family
from holdfast.records import Corruption, Result
from holdfast.reporting.gallery import Pixels, class_name, data_uri

BUDGET = 3_600_000
MOST = 60
RULES = {"worst": "worst drift", "median": "median drift", "all correct": "right clean and corrupted", "class": "class"}
COLOURS = "viridis"
_MISSES = 8
_LARGE = 160
_MIDDLE = 3


class Pair(NamedTuple):
    """One image before and after a corruption.

    Attributes:
        condition: corruption and severity.
        rule: that chose the image, in words.
        id: of the image.
        truth: the true class; empty where there is none.
        verdicts: (clean or corrupted, predicted class, whether it is right; None = not known).
        numbers: drift of the maps, and SSIM where there is one.
        images: (what it is, data URI) four times.
        small: whether its pixels are to be shown enlarged and unsmoothed.
    """

    condition: str
    rule: str
    id: str
    truth: str
    verdicts: tuple[tuple[str, str, bool | None], ...]
    numbers: str
    images: tuple[tuple[str, str], ...]
    small: bool


class PairWall(NamedTuple):
    """The pairs of one encoder (by its place in the page)."""

    subject: str
    place: int
    pairs: tuple[Pair, ...]


class _Turn(NamedTuple):
    """One pair that could be shown, and when its turn is: sorted by these fields, in their order."""

    tier: int
    rule: int
    corruption: int
    severity: int
    encoder: int
    at: int
    cell: str


def pair_walls(subjects: Sequence[Subject], *, budget: int = BUDGET, most: int = MOST) -> tuple[list[PairWall], int]:
    """Pairs of every encoder that was looked at.

    First come, at severity 3 or the nearest that is there, the first corruption of each family: of all encoders the
    image with the worst drift, then the other rules. Then the other corruptions, then the other severities.

    Args:
        subjects: the encoders.
        budget: bytes of the page for all pairs together.
        most: pairs at most.

    Returns:
        The walls that have pairs, and how many pairs were left out to keep the page small.
    """
    turns = sorted(turn for at, subject in enumerate(subjects) for turn in _turns(subject, at))
    made: dict[int, list[Pair]] = {}
    misses = shown = 0
    for turn in turns:
        if shown == most or misses == _MISSES:
            break
        subject = subjects[turn.encoder]
        pair = _pair(subject, turn)
        cost = sum(len(uri) for _, uri in pair.images)
        if cost > budget:
            misses += 1
            continue
        budget -= cost
        shown += 1
        made.setdefault(turn.encoder, []).append(pair)
    found = [PairWall(s.name, at, tuple(made[at])) for at, s in enumerate(subjects) if at in made]
    return found, len(turns) - shown


def overlaid(image: Pixels, heat: npt.NDArray[Any]) -> Pixels:
    """A map over its image: half the image in grey, half the map in colour, 0 dark violet and 1 yellow.

    Args:
        image: uint8 [h, w, 3].
        heat: [gh, gw] in [0, 1], enlarged bilinearly.

    Returns:
        uint8 [h, w, 3].
    """
    under = Image.fromarray(image).convert("L")
    wide = Image.fromarray(np.asarray(heat, dtype=np.float32)).resize(under.size, Image.Resampling.BILINEAR)
    grey = np.asarray(under, dtype=np.float64)[..., None] / 255
    levels: Pixels = np.round((0.5 * grey + 0.5 * _coloured(np.asarray(wide))) * 255).astype(np.uint8)
    return levels


def reduced(image: Pixels) -> Pixels:
    """An image larger than 160 px at half its size, by means of 2 x 2 pixels; a smaller one as it is."""
    return np.asarray(Image.fromarray(image).reduce(2)) if max(image.shape[:2]) > _LARGE else image


def scale() -> str:
    """The colours of the maps from 0 to 1, as they are over black, as a data URI."""
    return data_uri(np.round(_coloured(np.linspace(0, 1, 128)[None].repeat(8, 0)) * 255).astype(np.uint8))


def _coloured(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    rgba: npt.NDArray[np.float64] = matplotlib.colormaps[COLOURS](np.clip(values, 0, 1))
    return rgba[..., :3]


def _turns(subject: Subject, encoder: int) -> Iterator[_Turn]:
    """Every pair of an encoder that a record has."""
    held = [(result, subject.run.gallery(result.id).get("rule")) for result in subject.corrupted("saliency")]
    stages = {result.id: stage for result, rules in held if rules is not None for stage in [result.cell.corruption]}
    middle = _middles([stage for stage in stages.values() if stage is not None])
    first: dict[str, str] = {}
    for name in sorted(middle, key=_order):
        first.setdefault(family(name), name)
    for result, rules in held:
        stage = result.cell.corruption
        if rules is None or stage is None:
            continue
        tier = 2 if stage.severity != middle[stage.name] else 0 if stage.name in first.values() else 1
        seen: dict[str, int] = {}
        for at, rule in enumerate(rules.tolist()):
            turn = list(RULES).index(rule) if rule in RULES else len(RULES)
            seen[rule] = seen.get(rule, -1) + 1
            later = turn + len(RULES) * seen[rule]
            away = 2 * abs(stage.severity - _MIDDLE) + (stage.severity > _MIDDLE)
            yield _Turn(tier, later, _order(stage.name)[0], away, encoder, at, result.id)


def _middles(stages: Sequence[Corruption]) -> dict[str, int]:
    """Of each corruption, severity 3 or the nearest that is there, the milder of two."""
    found: dict[str, list[int]] = {}
    for stage in stages:
        found.setdefault(stage.name, []).append(stage.severity)
    return {name: min(held, key=lambda s: (abs(s - _MIDDLE), s)) for name, held in found.items()}


def _order(name: str) -> tuple[int, str]:
    return (CORRUPTIONS.index(name) if name in CORRUPTIONS else len(CORRUPTIONS)), name


def _pair(subject: Subject, turn: _Turn) -> Pair:
    result = next(r for r in subject.results if r.id == turn.cell)
    gallery, at = subject.run.gallery(turn.cell), turn.at
    clean, changed = reduced(gallery["clean"][at]), reduced(gallery["changed"][at])
    pictures = (
        ("clean", clean),
        ("Grad-CAM of the clean image", overlaid(clean, gallery["clean_map"][at])),
        ("corrupted", changed),
        ("Grad-CAM of the corrupted image", overlaid(changed, gallery["map"][at])),
    )
    rule, ssim = str(gallery["rule"][at]), float(gallery["ssim"][at])
    names = gallery["classes"].tolist() if "classes" in gallery else []
    label = int(gallery["label"][at])
    drift = f"CAM drift {float(gallery['cam_drift'][at]):.3f}"
    return Pair(
        condition=_condition(result),
        rule=RULES.get(rule, rule),
        id=str(gallery["id"][at]),
        truth=class_name(label, names) if label >= 0 else "",
        verdicts=tuple(_verdicts(gallery, at, names)),
        numbers=f"{drift}, SSIM {ssim:.3f}" if ssim >= 0 else drift,
        images=tuple((name, data_uri(image)) for name, image in pictures),
        small=max(clean.shape[:2]) <= 96,
    )


def _verdicts(
    gallery: Mapping[str, npt.NDArray[Any]], at: int, names: Sequence[str]
) -> Iterator[tuple[str, str, bool | None]]:
    label = int(gallery["label"][at])
    for when, key in (("clean", "clean_prediction"), ("corrupted", "prediction")):
        found = int(gallery[key][at])
        if found >= 0:
            yield when, class_name(found, names), found == label if label >= 0 else None


def _condition(result: Result) -> str:
    stage = result.cell.corruption
    return f"{stage.name.replace('_', ' ')}, severity {stage.severity}" if stage is not None else ""
