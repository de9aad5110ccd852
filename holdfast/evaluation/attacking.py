"""The images of a block under attack: whom it is made on, what it compares with, whether it kept its word."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import torch
from torch import Tensor, nn

from holdfast.attacks.balls import ball
from holdfast.attacks.board import laid
from holdfast.attacks.cascade import cascade
from holdfast.attacks.executor import SMALLEST, Found, Keep, Seen, scored
from holdfast.attacks.harm import Rows, See
from holdfast.attacks.methods import AIMED, METHODS, build, method, stop_of
from holdfast.errors import ConfigError, TrustError
from holdfast.evaluation.plan import Job
from holdfast.models.encoder import Encoder
from holdfast.records import Attack, Cell
from holdfast.tasks.classification import Classification
from holdfast.tasks.embedding import Embedding
from holdfast.tasks.impersonation import towards
from holdfast.tasks.task import Task, victim
from holdfast.tasks.token_drift import TokenDrift, reads_tokens
from holdfast.tasks.windows import Windows

if TYPE_CHECKING:
    from holdfast.evaluation.blocks import Bench, Chunk

TOLERANCE = 1e-6


def attacked(
    job: Job,
    attack: Attack,
    chunks: Sequence[Chunk],
    bench: Bench,
    *,
    watch: Callable[[Seen], None] | None = None,
    keep: Keep | None = None,
) -> Found:
    """The images of some chunks attacked through the head that the stage names.

    Args:
        job: the attack's.
        attack: its stage.
        chunks: the images, padded.
        bench: encoders, tasks, and what they cost.
        watch: called with what every step saw.
        keep: where the attack keeps what it has under way.

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
        truths = [_compared(task, attack, part, exact or see) for part in chunks]
        truth = {name: torch.cat([t[name] for t in truths]) for name in truths[0]}
        before = laid(torch.cat([part.before[: len(part.ids)] for part in chunks]))
        truth["eps"] = torch.full((len(before),), attack.eps or torch.inf, device=before.device)
        refuse_blindness(attack, encoder.name, before, harm.see)
        # What fools a surrogate by a hair need not fool another encoder: there the whole run counts.
        stop = stop_of(attack, lost=task.stop and attack.surrogate is None)
        slots = len(chunks[0].before)
        found = cascade(members, counted, task.pushes, before, truth, slots=slots, stop=stop, watch=watch, keep=keep)
        if exact is not None:
            found = found._replace(score=scored(counted, found.pixels, truth, slots))
    norm = checked(attack, found.pixels, before)
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
            # Drift needs no bank, and one of all tokens would be large.
            memory: Literal["keep", "recompute"] = "recompute" if bench.recompute else "keep"
            windows = Windows(cell.judge.window, cell.judge.stride, memory=memory)
            tokens = reads_tokens(attack.level)
            task = TokenDrift(level=attack.level, windows=windows) if tokens else Embedding(level=attack.level)
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


def _compared(task: Task, attack: Attack, part: Chunk, see: See) -> Rows:
    rows = compared(task, attack, part.clean, part.rows, see, before=part.before)
    return {name: row[: len(part.ids)] for name, row in rows.items()}


def compared(
    task: Task, attack: Attack, clean: Tensor, rows: Rows, see: See, *, before: Tensor | None = None
) -> Rows:  # parameters: an attack with its images
    """What an attack's harm compares images with.

    Args:
        task: whose harm it is.
        attack: says what it aims at.
        clean: pixels of the truth, [b, 3, h, w].
        rows: of the images; a target among them wins over one that is drawn.
        see: in float32.
        before: pixels that the attack begins at, whose likeliest wrong classes are aimed at; None = the clean ones.

    Returns:
        `rows` with the task's truth and, where the attack aims at something, what that is; leading dimension b.

    Raises:
        DataError: whatever `task.truth` refuses.
    """
    truth: Rows = task.truth(clean, rows, see)
    if attack.targets or attack.aim == "towards" or attack.method in AIMED:
        # Where the attack goes towards something, the judge asks the clean image what that is.
        begin = clean if before is None or attack.aim == "towards" else before
        with torch.no_grad():
            aims = task.aims(see(begin), truth, seed=attack.seed)
        truth = {**truth, **{name: row for name, row in aims.items() if name not in rows}}
    return truth


def refuse_blindness(attack: Attack, name: str, pixels: Tensor, see: See) -> None:
    """Refuse to follow gradients that are not there.

    Args:
        attack: says whether it follows any.
        name: of the encoder.
        pixels: images that it has answered for without gradient, [b, 3, h, w].
        see: from pixels to its outputs.

    Raises:
        ConfigError: the outputs do not depend on the pixels, or the encoder cannot be differentiated.
    """
    if not method(attack.method).gradient:
        return
    few = pixels[torch.arange(SMALLEST, device=pixels.device) % len(pixels)]
    try:
        with torch.enable_grad():
            out = see(laid(few).detach().requires_grad_())
        if any(part.requires_grad for part in out.values()):
            return
        reason = "its outputs do not depend on the pixels"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
    free = [known for known, m in METHODS.items() if not m.gradient and attack.through in m.through]
    raise ConfigError(
        f"{name} is not differentiable: {reason}.",
        asked=f"{attack.method} follows the gradient of the encoder.",
        next=f"Attack it without one: method {'square' if 'square' in free or not free else free[0]}"
        + ("." if free else ", through classification."),
    )


def checked(attack: Attack, pixels: Tensor, before: Tensor) -> Tensor:
    """How far an attack went, apart from the attack.

    Args:
        attack: its norm, and its radius in pixel units; 0 = none.
        pixels: what it found, float32 [n, 3, h, w].
        before: where it began, like `pixels`.

    Returns:
        The norm of each perturbation in float64, [n], in pixel units.

    Raises:
        TrustError: one is longer than the attack's radius, or a pixel lies outside [0, 1].
    """
    norm = ball(attack.norm).norm(pixels.double() - before.double())
    furthest, low, high = float(norm.max()), float(pixels.min()), float(pixels.max())
    allowed = attack.eps or torch.inf
    if not (furthest <= allowed + TOLERANCE * max(1.0, attack.eps) and low >= 0 and high <= 1):
        raise TrustError(
            f"An image left its ball: norm {furthest:.9g} for eps {attack.eps:.9g}, pixels in [{low:g}, {high:g}].",
            next="Please report it with the cell's config.",
        )
    return norm
