"""The images of a block under attack: whom it is made on, what it compares with, whether it kept its word."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor, nn

from holdfast.attacks.balls import ball
from holdfast.attacks.board import laid
from holdfast.attacks.cascade import cascade
from holdfast.attacks.executor import Found, Keep, scored
from holdfast.attacks.harm import Rows, See
from holdfast.attacks.methods import AIMED, build, stop_of
from holdfast.errors import ConfigError, TrustError
from holdfast.evaluation.plan import Job
from holdfast.models.encoder import Encoder
from holdfast.records import Attack, Cell
from holdfast.tasks.classification import Classification
from holdfast.tasks.embedding import Embedding
from holdfast.tasks.impersonation import towards
from holdfast.tasks.task import Task, victim

if TYPE_CHECKING:
    from holdfast.evaluation.blocks import Bench, Chunk

TOLERANCE = 1e-6


def attacked(job: Job, attack: Attack, chunks: Sequence[Chunk], bench: Bench, *, keep: Keep | None = None) -> Found:
    """The images of some chunks attacked through the head that the stage names.

    Returns:
        One row per image, in their order; `trace` also holds `norm` (of the perturbation) and `score`.

    Raises:
        TrustError: the result is outside its ball or the box, checked here in float64 and apart from the attack.
    """
    encoder, task = whom(job, attack, bench)
    members = build(attack, classes=task.classes)
    push, precision, engine = members[0].push, attack.precision, bench.engine
    with victim(encoder, task, push, precision=precision, engine=engine, samples=attack.samples) as harm:
        see = bench.counting(harm.see)
        exact = None if harm.exact is None else bench.counting(harm.exact)
        counted = dataclasses.replace(harm, see=see, exact=exact)
        truths = [_truth(task, attack, part, exact or see) for part in chunks]
        truth = {name: torch.cat([t[name] for t in truths]) for name in truths[0]}
        before = laid(torch.cat([part.before[: len(part.ids)] for part in chunks]))
        truth["eps"] = torch.full((len(before),), attack.eps or torch.inf, device=before.device)
        # What fools a surrogate by a hair need not fool another encoder: there the whole run counts.
        stop = stop_of(attack, lost=task.stop and attack.surrogate is None)
        slots = len(chunks[0].before)
        found = cascade(members, counted, task.pushes, before, truth, slots=slots, stop=stop, keep=keep)
        if exact is not None:
            found = found._replace(score=scored(counted, found.pixels, truth, slots))
    norm = _checked(attack, found.pixels, before)
    return found._replace(trace={**found.trace, "norm": norm, "score": found.score})


def whom(job: Job, attack: Attack, bench: Bench) -> tuple[Encoder, Task]:
    """The encoder that an attack is made on, and its task there: the job's own or a surrogate's, in the attack's form.

    Raises:
        ConfigError: a score by a head that is not measured here.
    """
    if attack.surrogate is not None:
        cell = Cell(data=job.data, encoder=attack.surrogate.encoder, judge=attack.surrogate.judge)
    else:
        cell = next(cell for cell in job.cells if cell.judge.task == attack.through)
    encoder, task = bench.encoder(cell.encoder), bench.task(_at_level(cell, attack))
    if isinstance(task, Embedding):
        if attack.level and attack.scored == "drift" and attack.aim == "away":
            task = Embedding(level=attack.level)  # drift needs no bank, and one of all tokens would be large
        elif attack.scored != "drift":
            head = _probe(job, attack, bench, encoder) if attack.scored == "probe" else None
            task = dataclasses.replace(task, scored=attack.scored, head=head)
    return encoder, towards(task) if attack.aim == "towards" else task


def _at_level(cell: Cell, attack: Attack) -> Cell:
    """The cell with its judge at the attack's level, where its bank is needed there."""
    if attack.through != "embedding" or not attack.level or (attack.scored == "drift" and attack.aim == "away"):
        return cell
    return msgspec.structs.replace(cell, judge=msgspec.structs.replace(cell.judge, level=attack.level))


def _probe(job: Job, attack: Attack, bench: Bench, encoder: Encoder) -> nn.Module:
    cell = next((cell for cell in job.cells if cell.judge.task == "classification"), None)
    task = bench.task(cell) if cell is not None else None
    head = (task.head or encoder.head) if isinstance(task, Classification) else None
    if head is None:
        raise ConfigError(
            'The score "probe" needs a head, and none is measured here.', next="Add --tasks classification."
        )
    return head


def _truth(task: Task, attack: Attack, part: Chunk, see: See) -> Rows:
    """What the harm compares a chunk's images with, padding left out."""
    rows = task.truth(part.clean, part.rows, see)
    if attack.targets or attack.aim == "towards" or attack.method in AIMED:
        with torch.no_grad():
            rows = {**rows, **task.aims(see(part.clean), rows, seed=attack.seed)}
    return {name: row[: len(part.ids)] for name, row in rows.items()}


def _checked(attack: Attack, pixels: Tensor, before: Tensor) -> Tensor:
    """The norm of each perturbation, [n]; refused where it is too large."""
    norm = ball(attack.norm).norm(pixels.double() - before.double())
    furthest, low, high = float(norm.max()), float(pixels.min()), float(pixels.max())
    allowed = attack.eps or torch.inf
    if not (furthest <= allowed + TOLERANCE * max(1.0, attack.eps) and low >= 0 and high <= 1):
        raise TrustError(
            f"An image left its ball: norm {furthest:.9g} for eps {attack.eps:.9g}, pixels in [{low:g}, {high:g}].",
            next="Please report it with the cell's config.",
        )
    return norm
