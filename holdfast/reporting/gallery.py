"""Attacked images, chosen by rule when they were measured: before, after, and the amplified difference on grey."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from holdfast.evaluation.curves import Subject, attack_name, families, norm_name
from holdfast.evaluation.rows import radius
from holdfast.evaluation.summary import radii
from holdfast.records import Data, Result
from holdfast.reporting.dense_pictures import pictures as answers

Pixels = npt.NDArray[np.uint8]
BUDGET = 3_200_000
AMPLIFIED = 10
FACTORS = (500, 200, 100, 50, 20, 10, 5, 2)
FULL = 0.5
RULES = {"worst": "worst", "median": "median harm", "surviving": "least harmed"}


class Tile(NamedTuple):
    """One image under attack.

    Attributes:
        rule: that chose it, in words.
        id: of the image.
        verdict: label and predictions in words; empty where there are none.
        score: of the attack, in words.
        images: (what it is, data URI): clean, adversarial, difference, which says how far it is amplified; of a dense
            head also truth, answers and errors.
        small: whether its pixels are to be shown enlarged and unsmoothed.
    """

    rule: str
    id: str
    verdict: str
    score: str
    images: tuple[tuple[str, str], ...]
    small: bool


class Wall(NamedTuple):
    """The tiles of one encoder (by its place in the page) under one attack."""

    subject: str
    place: int
    attack: str
    tiles: tuple[Tile, ...]


def walls(subjects: Sequence[Subject], *, budget: int = BUDGET) -> tuple[list[Wall], int]:
    """Tiles of every encoder: the first attack on each head, at the largest radius that all encoders have.

    Tiles are taken in turns, so that no encoder is left out when the budget ends.

    Args:
        subjects: the encoders.
        budget: bytes of the page for all images together.

    Returns:
        The walls that have tiles, and how many tiles were left out to keep the page small.
    """
    waiting = [(subject, result) for subject in subjects for result in _chosen(subject, subjects)]
    held = [subject.run.gallery(result.id) for subject, result in waiting]
    factors = [
        factor_of(max((float(np.abs(_delta(g, at)).max()) for at in range(len(g.get("id", ())))), default=0.0))
        for g in held
    ]
    made: list[list[Tile]] = [[] for _ in waiting]
    left_out = 0
    for turn in range(max((len(g.get("id", ())) for g in held), default=0)):
        for (_, result), gallery, factor, tiles in zip(waiting, held, factors, made):
            order = _in_turns(gallery.get("rule", np.array([])))
            if turn >= len(order):
                continue
            tile = _tile(gallery, order[turn], result.cell.data, factor)
            cost = sum(len(uri) for _, uri in tile.images)
            if cost > budget:
                left_out += 1
                continue
            budget -= cost
            tiles.append(tile)
    places = {s.name: at for at, s in enumerate(subjects)}
    named = [(s.name, places[s.name], _title(r), tuple(t)) for (s, r), t in zip(waiting, made) if t]
    return [Wall(*parts) for parts in named], left_out


def amplified(delta: npt.NDArray[Any], factor: int = AMPLIFIED) -> Pixels:
    """A perturbation in pixel units as an image: 0.5 + factor * delta, cut at black and white."""
    return _bytes(0.5 + factor * delta.astype(np.float64))


def factor_of(largest: float) -> int:
    """How far perturbations are amplified: the largest round number that cuts none of them at black or white.

    Args:
        largest: absolute value of all that are shown together, in pixel units.
    """
    return next((factor for factor in FACTORS if factor * largest <= FULL), 1) if largest else AMPLIFIED


def data_uri(image: Pixels) -> str:
    """An image [h, w, 3] as lossless WebP inside a URI. (JPEG would move pixels as far as an attack does.)"""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WEBP", lossless=True, quality=60, method=4, exact=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _chosen(subject: Subject, subjects: Sequence[Subject]) -> list[Result]:
    """One cell per head that was attacked directly: the first attack of the records, at the largest common radius."""
    found = []
    for task in ("classification", "embedding", "segmentation", "depth"):
        for norm in subject.norms():
            largest = radii(subjects, task, norm, most=1)
            direct = [r for r in subject.attacked(task, norm) if r.cell.attack and r.cell.attack.through == task]
            first = next(iter(families(direct).values()), [])
            found += [r for r in first if r.cell.attack and r.cell.attack.eps in largest]
    return found


def _in_turns(rules: npt.NDArray[Any]) -> list[int]:
    """Places ordered so that each rule is served once before any is served twice."""
    seen: dict[str, int] = {}
    turns = []
    for at, rule in enumerate(rules.tolist()):
        turns.append((seen.get(rule, 0), list(RULES).index(rule) if rule in RULES else len(RULES), at))
        seen[rule] = seen.get(rule, 0) + 1
    return [at for _, _, at in sorted(turns)]


def _tile(gallery: dict[str, npt.NDArray[Any]], at: int, data: Data, factor: int) -> Tile:
    before, delta = _unit(gallery.get("before", gallery["clean"])[at]), _delta(gallery, at)
    difference = f"difference \N{MULTIPLICATION SIGN} {factor}"
    pictures = (
        ("clean", _bytes(before)),
        ("adversarial", _bytes(before + delta)),
        (difference, amplified(delta, factor)),
    )
    rule = str(gallery["rule"][at])
    return Tile(
        rule=RULES.get(rule, rule),
        id=str(gallery["id"][at]),
        verdict=_verdict(gallery, at, data),
        score=f"score {float(gallery['score'][at]):.3g}, {difference}",
        images=tuple((name, data_uri(image)) for name, image in (*pictures, *answers(gallery, at))),
        small=max(before.shape[:2]) <= 96,
    )


def _delta(gallery: dict[str, npt.NDArray[Any]], at: int) -> npt.NDArray[np.float64]:
    """The perturbation of one image in pixel units; runs of the first versions hold nothing else of it."""
    if "adversarial" not in gallery:
        return gallery["delta"][at].astype(np.float64)  # type: ignore[no-any-return]
    return gallery["adversarial"][at].astype(np.float64) - _unit(gallery["before"][at])  # type: ignore[no-any-return]


def _unit(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    exact = image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image
    return exact.astype(np.float64)


def _verdict(gallery: dict[str, npt.NDArray[Any]], at: int, data: Data) -> str:
    label, before, now = (int(gallery[k][at]) for k in ("label", "clean_prediction", "prediction"))
    if now < 0:
        return ""
    sure = f"{float(gallery['confidence'][at]):.0%}"
    names = gallery["classes"].tolist() if "classes" in gallery else list(data.classes)
    truth, clean, attacked = (class_name(number, names) for number in (label, before, now))
    seen = f"predicted {clean}, " if before >= 0 else ""
    return f"label {truth}: {seen}attacked {attacked} ({sure})"


def class_name(number: int, names: Sequence[str]) -> str:
    """The class of that number; the number itself where it has no name."""
    return names[number] if 0 <= number < len(names) else str(number)


def _title(result: Result) -> str:
    attack = result.cell.attack
    assert attack is not None, "only attacked cells are chosen"
    return f"{attack_name(attack)}, {radius(attack.eps, attack.norm)} {norm_name(attack.norm)}"


def _bytes(values: npt.NDArray[Any]) -> Pixels:
    levels: Pixels = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return levels
