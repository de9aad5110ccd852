"""Adversarial images judged anew, from disk and apart from the attack: does each do what its record says?

An attack that overrules its ball, a score of the wrong class or a picture of another image would make every number of a
run wrong in the same way. So nothing of `holdfast.attacks` or `holdfast.tasks` is used here: norms, margins and drifts
are written again, in float64, on features in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from holdfast import draws
from holdfast.corruptions.table import corrupt
from holdfast.data.decode import decode, fit
from holdfast.data.sources import open_source
from holdfast.errors import DataError, HoldfastError
from holdfast.evaluation.rows import called, condition
from holdfast.evaluation.verified_answers import HEIGHTS, answered, why_not
from holdfast.evaluation.verified_files import FILES, Arrays, Stored, stored
from holdfast.evaluation.verified_records import IN_BALL, contradictions
from holdfast.models.checkpoint import load
from holdfast.models.dense_heads import DenseHead
from holdfast.models.encoder import Encoder, frozen
from holdfast.records import Cell

Doubles = npt.NDArray[np.float64]
HeadOf = Callable[[Cell, Encoder], nn.Module | None]

CLOSE = 1e-4
NORMS: dict[str, Callable[[Doubles], Doubles]] = {
    "linf": lambda d: np.abs(d).max(axis=1),
    "l2": lambda d: np.sqrt(np.square(d).sum(axis=1)),
    "l1": lambda d: np.abs(d).sum(axis=1),
}


class Verdict(NamedTuple):
    """What became of one cell.

    Attributes:
        file: of its adversarial images.
        about: encoder and condition in words.
        of: how many images it has.
        images: how many of them were kept and judged anew.
        lost: of these lost, judged anew; None where the task knows no loss.
        lost_rounded: of these lost when rounded to 8 bits.
        excess: how far the furthest is outside its ball, in pixel units; below 0 = inside; None without a radius.
        off: the largest difference between a score and its record.
        problems: what disagrees about the images that were judged anew, in words.
        contradictions: what cannot be true of record and outcomes, those of all images, in words.
        compared: whether these were compared.
        why: images that should be judged were not; empty = they were, or none should be.
        handed: whether that is since the encoder was handed over in Python, and lies on no disk.
    """

    file: Path
    about: str
    of: int
    images: int = 0
    lost: int | None = None
    lost_rounded: int | None = None
    excess: float | None = None
    off: float = 0.0
    problems: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()
    compared: bool = False
    why: str = ""
    handed: bool = False

    @property
    def wrong(self) -> tuple[str, ...]:
        """Everything that disagrees."""
        return self.problems + self.contradictions


class Judged(NamedTuple):
    """Outcomes judged anew, [k]: `height` (margin, L2 drift, share of wrong pixels, RMSE), `prediction` (-1 = none).

    `slack` says how far `height` may be off by the last digit alone.
    """

    height: Doubles
    prediction: npt.NDArray[np.int64]
    cosine: Doubles
    slack: Doubles


def verified(folder: str | Path, head_of: HeadOf, *, device: torch.device) -> list[Verdict]:
    """Judge every adversarial image of a folder anew, and hold every record of it against its outcomes.

    Args:
        folder: of a `bench`, or of an `attack`.
        head_of: finds the head of a cell that was judged by classification; None = the checkpoint's own.
        device: where the encoders go.

    Returns:
        One verdict per cell that is done. What cannot be read is named there, and the rest is judged.

    Raises:
        DataError: the folder holds none; or the record of the run, or the file of an `attack`, is not whole.
    """
    encoders: dict[str, Encoder] = {}
    verdicts = []
    for part in stored(Path(folder)):
        verdict = Verdict(part.file, f"{called(part.cell)}, {condition(part.cell)}", len(part.whole.get("id", ())))
        if part.why:
            verdict = verdict._replace(why=part.why)
        elif part.arrays:
            verdict = _attempt(part, verdict, encoders, head_of, device)
        if part.result is not None and part.whole:
            verdict = verdict._replace(contradictions=tuple(contradictions(part.result, part.whole)), compared=True)
        verdicts.append(verdict)
    if not verdicts:
        raise DataError(
            f"{folder} holds no adversarial images.", next="Give the --out of a `holdfast bench` or `holdfast attack`."
        )
    return verdicts


def _attempt(
    part: Stored, verdict: Verdict, encoders: dict[str, Encoder], head_of: HeadOf, device: torch.device
) -> Verdict:
    """Judge the images of a cell, or say why they cannot be; one encoder is in memory at a time."""
    model = part.cell.encoder
    if model.spec.startswith("module:"):
        why = f"{model.spec} was handed over in Python and lies on no disk"
        return verdict._replace(why=why, handed=True)
    try:
        if model.digest_of_weights not in encoders:
            encoders.clear()
            encoders[model.digest_of_weights] = load(model, device=device)
        encoder = encoders[model.digest_of_weights]
        return judge(part, verdict, encoder, head_of(part.cell, encoder))
    except HoldfastError as error:
        return verdict._replace(why=str(error))


def judge(part: Stored, verdict: Verdict, encoder: Encoder, head: nn.Module | None) -> Verdict:
    """Judge the images of one cell.

    Args:
        part: the images with their record.
        verdict: to be completed.
        encoder: that the cell names.
        head: of the judge; None = the encoder's own.

    Returns:
        What was found.
    """
    arrays, attack, task = part.arrays, part.cell.attack, part.cell.judge.task
    assert attack is not None, "`stored` gives images of attacked cells alone"
    if "adversarial" not in arrays or arrays["adversarial"].dtype != np.float32:
        return verdict._replace(why="the images were not stored exactly; measure again with this version")
    if not part.recorded:
        return verdict._replace(why="images that the record does not know")
    if task in HEIGHTS and (why := why_not(part.cell, head)):
        return verdict._replace(why=why)
    adversarial, before = _unit(arrays["adversarial"]), _unit(arrays["before"])
    problems = [*_of_pixels(adversarial, before), *_of_source(part)]
    norm = NORMS[attack.norm]((adversarial - before).reshape(len(before), -1))
    excess = float((norm - attack.eps).max()) if attack.eps else None
    if excess is not None and excess > IN_BALL * max(1.0, attack.eps):
        problems.append(f"{excess:.3g} outside the {attack.norm} ball of {attack.eps:.6g}")
    problems += _differing("attack_norm", norm, part.recorded, within=IN_BALL)
    pixels = torch.from_numpy(np.ascontiguousarray(arrays["adversarial"]))
    with _exactly(encoder, head):
        seen = _seen(part, encoder, head, pixels)
        rounded = _seen(part, encoder, head, (pixels * 255).round().div(255))
    problems += _of_record(part, seen, rounded)
    if task == "classification":
        verdict = verdict._replace(lost=int((seen.height > 0).sum()), lost_rounded=int((rounded.height > 0).sum()))
    name = _height(part.cell)
    off = float(np.abs(seen.height - part.recorded[name].astype(np.float64)).max()) if name in part.recorded else 0.0
    return verdict._replace(images=len(norm), excess=excess, off=off, problems=tuple(problems))


# -- what is compared --------------------------------------------------------------------------------------------------


def _of_pixels(adversarial: Doubles, before: Doubles) -> Iterator[str]:
    if adversarial.shape != before.shape or adversarial.ndim != 4 or adversarial.shape[3] != 3:
        raise DataError(f"images of shape {adversarial.shape} beside originals of {before.shape}.")
    if not (np.isfinite(adversarial).all() and adversarial.min() >= 0 and adversarial.max() <= 1):
        yield f"pixels span [{adversarial.min():g}, {adversarial.max():g}]"


def _of_source(part: Stored) -> Iterator[str]:
    """The originals against the images that they are said to be, read again."""
    cell, arrays = part.cell, part.arrays
    ids = [str(name) for name in arrays["id"].tolist()]
    for at, (name, (pixels, label)) in enumerate(zip(ids, _read(cell, ids))):
        if not np.array_equal(pixels, arrays["clean"][at]):
            yield f"{name} is not the image of that name"
        known = {int(held["label"][at]) for held in (arrays, part.recorded) if "label" in held}
        if label is not None and known - {label, -1}:
            yield f"{name} has label {label}, recorded {known}"
    stage = cell.corruption
    if stage is None:
        expected = _unit(arrays["clean"])
    elif stage.root:
        return
    else:
        changed = corrupt(torch.from_numpy(np.array(arrays["clean"])), stage, draws.keys(ids))
        expected = _unit(changed.cpu().numpy())
    if not np.array_equal(expected.astype(np.float32), _unit(arrays["before"]).astype(np.float32)):
        yield "the attack did not begin at these images"


def _of_record(part: Stored, seen: Judged, rounded: Judged) -> Iterator[str]:
    """What was judged anew against what stands in the record."""
    recorded, names = part.recorded, [str(name) for name in part.arrays["id"].tolist()]
    height = _height(part.cell)
    if height not in recorded:
        yield f"the record has no {height}"
    near = CLOSE + float(seen.slack.max())
    yield from _differing(height, seen.height, recorded, within=near)
    if _scores_the_same(part):
        yield from _differing("attack_score", seen.height, recorded, within=near)
    if part.cell.judge.task in HEIGHTS:
        return
    if part.cell.judge.task != "classification":
        yield from _differing("cosine", seen.cosine, recorded)
        return
    sure = np.abs(seen.height) > CLOSE
    for verdict, again in (("correct", seen), ("rounded_correct", rounded)):
        wrong = (again.height > 0) == recorded[verdict].astype(bool) if verdict in recorded else np.zeros_like(sure)
        # On the boundary a verdict may turn with the last digit.
        for at in np.flatnonzero(wrong & (np.abs(again.height) > CLOSE)):
            was, now = ("right", "lost") if recorded[verdict][at] else ("lost", "right")
            yield f"{names[at]}{', rounded,' if again is rounded else ''} is recorded as {was} and is {now}"
    if "target_reached" in recorded:
        reached = (seen.prediction == recorded["target"]) == recorded["target_reached"]
        yield from (
            f"{names[at]} is recorded to pass for its target, or not to" for at in np.flatnonzero(~reached & sure)
        )
    for held in (recorded, part.arrays):
        if "prediction" in held:
            for at in np.flatnonzero((seen.prediction != held["prediction"]) & sure):
                yield f"{names[at]} is seen as {seen.prediction[at]}, recorded {held['prediction'][at]}"


def _scores_the_same(part: Stored) -> bool:
    """Whether the attack compared its iterates by the very number that the judge gives."""
    attack, judge = part.cell.attack, part.cell.judge
    if attack is None or attack.surrogate is not None or attack.samples > 1 or attack.precision != "fp32":
        return False
    if attack.aim == "towards" or judge.task == "classification":
        return attack.aim == "away"
    return attack.scored == "drift" and attack.level in ("", judge.level)


def _differing(name: str, found: Doubles, recorded: Arrays, *, within: float = CLOSE) -> list[str]:
    """Numbers that differ from their record by more than `within`, of itself where it is above 1."""
    if name not in recorded:
        return []
    known = recorded[name].astype(np.float64)
    off = np.abs(found - known)
    if bool((off <= within * np.maximum(1.0, np.abs(known))).all()):
        return []
    at = int(np.nan_to_num(off, nan=np.inf).argmax())
    return [f"{name} is {found[at]:.6g}, recorded {known[at]:.6g}"]


def _height(cell: Cell) -> str:
    return {"classification": "margin", **HEIGHTS}.get(cell.judge.task, "l2")


# -- what is judged ----------------------------------------------------------------------------------------------------


def _seen(part: Stored, encoder: Encoder, head: nn.Module | None, images: Tensor) -> Judged:
    """Outcomes of images float32 [k, h, w, 3], each judged by formulas of this file alone."""
    device, level = encoder.mean.device, part.cell.judge.level
    pixels = images.permute(0, 3, 1, 2).contiguous().to(device)
    k, rows = len(images), np.arange(len(images))
    if isinstance(head, DenseHead):
        found = answered(part.cell, [str(name) for name in part.arrays["id"].tolist()], encoder, head, pixels)
        return Judged(found.height, np.full(k, -1), np.zeros(k), found.slack)
    if part.cell.judge.task == "classification":
        logits = encoder.logits(pixels) if head is None else head(encoder.vector(pixels, level))
        values = logits.double().cpu().numpy()
        labels = part.arrays["label"].astype(np.int64)
        others = values.copy()
        others[rows, labels] = -np.inf
        return Judged(others.max(axis=1) - values[rows, labels], values.argmax(axis=1), np.zeros(k), np.zeros(k))
    clean = torch.from_numpy(_unit(part.arrays["clean"]).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    z, origin = (encoder.vector(p, level).double().cpu().numpy() for p in (pixels, clean.to(device)))
    lengths = np.maximum(np.linalg.norm(z, axis=1) * np.linalg.norm(origin, axis=1), 1e-16)
    cosine = np.maximum(1 - (z * origin).sum(axis=1) / lengths, 0)
    return Judged(np.sqrt(np.square(z - origin).sum(axis=1)), np.full(k, -1), cosine, np.zeros(k))


@contextlib.contextmanager
def _exactly(encoder: Encoder, head: nn.Module | None) -> Iterator[None]:
    """Frozen, without gradient, in true float32, and without a trace in the global random state."""
    device = encoder.mean.device
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(torch.no_grad())
        for module in (encoder, *([head] if head is not None else [])):
            stack.enter_context(frozen(module, norm="eval"))
        yield


def _read(cell: Cell, ids: Sequence[str]) -> Iterator[tuple[npt.NDArray[np.uint8], int | None]]:
    """The images of these ids from where they lie, with their labels."""
    data = cell.data
    if data.source == FILES:
        for name in ids:
            cut = fit(decode(name), resize=data.resize, size=data.size, interpolation=data.interpolation, name=name)
            yield cut, None
        return
    source = open_source(data)
    place_of = {name: place for place, name in enumerate(source.ids)}
    for name in ids:
        if name not in place_of:
            raise DataError(f"{data.root or data.source} has no image {name}.", next="Put the images back.")
        place = place_of[name]
        yield source.read(place).pixels, None if source.labels is None else source.labels[place]


def _unit(images: npt.NDArray[np.generic]) -> Doubles:
    """Images as float64 in [0, 1]; a byte is what float32 makes of it over 255."""
    exact = images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images
    return exact.astype(np.float64)
