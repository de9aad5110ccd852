"""One block of a job: its pixels decoded, corrupted and attacked once, then judged by every cell of the job.

Everything goes through the encoder in chunks padded to one size, so that a verdict does not depend on the block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from holdfast.attacks.board import laid
from holdfast.attacks.executor import Keep
from holdfast.attacks.harm import Rows, See
from holdfast.corruptions.table import corrupt
from holdfast.data.batches import Batch, Source, batches, to_pixels
from holdfast.data.conditions import KINDS
from holdfast.errors import TrustError
from holdfast.evaluation.adversarial import candidates
from holdfast.evaluation.attacking import attacked
from holdfast.evaluation.evidence import evidence
from holdfast.evaluation.plan import Job
from holdfast.evaluation.steps import Keeping, Tracer
from holdfast.models.encoder import Encoder, Engine
from holdfast.records import Attack, Cell, Corruption, Data, Model
from holdfast.tasks.impersonation import towards
from holdfast.tasks.task import DENSE, PIXELS, Task, at_level, seer, still

Outcomes = dict[str, npt.NDArray[np.generic]]
KEPT_BYTES = 512 << 20
KEPT_VECTORS = 128 << 20


@dataclass
class Bench:
    """Where a job finds its images, encoders and tasks, and what it has cost so far.

    Attributes:
        source: opens images.
        encoder: loads an encoder, on the device, once.
        task: the judge of a cell with its head, once.
        partner: opens the corrupted versions of images that a folder holds.
        device: where pixels go.
        shown: classes that galleries show besides those chosen by rule.
        engine: of the passes under attack.
        recompute: whether attacks on the tokens of windows compute these twice and keep none, as dense heads then do.
        check: called before each chunk; raises `Interrupted` to stop.
        forwards: images forwarded so far.
        backwards: images back-propagated so far.
        clean: vectors of clean chunks, the latest up to `KEPT_VECTORS` bytes.
        truths: what tasks at `PIXELS` found in clean chunks, as many bytes again.
    """

    source: Callable[[Data], Source]
    encoder: Callable[[Model], Encoder]
    task: Callable[[Cell], Task]
    partner: Callable[[Data, Corruption], Source]
    device: torch.device
    shown: tuple[str, ...] = ()
    engine: Engine = "eager"
    recompute: bool = False
    check: Callable[[], None] = lambda: None
    forwards: int = 0
    backwards: int = 0
    clean: OrderedDict[tuple[object, ...], Tensor] = field(default_factory=OrderedDict)
    truths: OrderedDict[tuple[object, ...], Rows] = field(default_factory=OrderedDict)
    _decoded: OrderedDict[tuple[str, int, int, int], list[Batch]] = field(default_factory=OrderedDict)

    def batches(self, data: Data, indices: range, chunk: int) -> list[Batch]:
        """The decoded block in chunks; the latest blocks are kept, up to `KEPT_BYTES`."""
        key = (data.digest(), indices.start, indices.stop, chunk)
        if key not in self._decoded:
            self._decoded[key] = list(batches(self.source(data), size=chunk, indices=indices))
            while len(self._decoded) > 1 and sum(_bytes(block) for block in self._decoded.values()) > KEPT_BYTES:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(key)
        return self._decoded[key]

    def judge(self, cell: Cell) -> Task:
        """The judge of a cell; where its attack aims at something, one that also says whether that was reached."""
        task, attack = self.task(cell), cell.attack
        return towards(task) if attack is not None and attack.aim == "towards" and _direct(cell) else task

    def counting(self, see: See) -> See:
        """`see`, counted."""

        def counted(pixels: Tensor) -> Mapping[str, Tensor]:
            self.forwards += len(pixels)
            self.backwards += len(pixels) * torch.is_grad_enabled()
            return see(pixels)

        return counted


def _bytes(block: Sequence[Batch]) -> int:
    return sum(batch.pixels.nbytes for batch in block)


class Made(NamedTuple):
    """Pixels of a chunk, padded.

    Attributes:
        clean: as decoded.
        before: the attack: corrupted or clean.
        after: all stages: what is judged.
        rounded: `after` in steps of 1/255, as an 8-bit file would hold it.
        trace: of the attack, [n] each; None where there is none.
    """

    clean: Tensor
    before: Tensor
    after: Tensor
    rounded: Tensor
    trace: dict[str, Tensor] | None


class Chunk(NamedTuple):
    """A pass of images: ids, padded pixels as decoded and after any corruption, padded rows."""

    ids: list[str]
    clean: Tensor
    before: Tensor
    rows: Rows


class Block(NamedTuple):
    """What a block gives.

    Attributes:
        outcomes: by cell id: "id" and the outcomes of the cell's task, arrays [n] each; attacked cells also hold
            `attack_*` and `rounded_*`, those judged by the attacked head `check_*`, and where steps are traced
            `step_*`, arrays [n, steps, ...].
        shown: by cell id: candidates for the gallery of an attacked cell.
    """

    outcomes: dict[str, Outcomes]
    shown: dict[str, Outcomes]


def outcomes(job: Job, indices: range, chunk: int, bench: Bench, *, keep: Keep | None = None) -> Block:
    """Measure one block.

    Args:
        job: what is measured.
        indices: of the images in the job's source.
        chunk: images per pass, at least 8; the last pass is padded.
        bench: images, encoders, tasks.
        keep: where an attack keeps what it has under way.

    Raises:
        TrustError: an outcome is not finite, or an attack left its ball.
    """
    parts: dict[str, list[Outcomes]] = {cell.id: [] for cell in job.cells}
    attack = next((stage for stage in job.stages if isinstance(stage, Attack)), None)
    chunks: Iterable[Chunk] = _chunks(job, indices, chunk, bench)
    found, tracer = None, None
    if attack is not None:
        held = list(chunks)  # an attack lets rows of the whole block share its passes
        if attack.traced:
            tracer = Tracer(job, attack, held, bench)
            keep = None if keep is None else Keeping(keep, tracer)
        found, chunks = attacked(job, attack, held, bench, watch=tracer, keep=keep), held
    at = 0
    for part in chunks:
        n, after, trace = len(part.ids), part.before, None
        if found is not None:
            places = at + torch.arange(chunk, device=bench.device) % n
            after, trace = laid(found.pixels[places]), {name: row[places] for name, row in found.trace.items()}
        made = Made(part.clean, part.before, after, (after * 255).round() / 255 if trace else after, trace)
        views = Views(bench, (tuple(part.ids), chunk), made.clean)
        for cell in job.cells:
            judged = _judged(cell, made, part.rows, views)
            parts[cell.id].append({"id": np.array(part.ids), **_arrays(judged, n)})
        at += n
    whole = {name: joined(found) for name, found in parts.items()}
    if tracer is not None:
        for cell in job.cells:
            last = {name: torch.from_numpy(part) for name, part in whole[cell.id].items() if part.dtype.kind != "U"}
            whole[cell.id] |= _arrays(tracer.outcomes(cell, last), len(whole[cell.id]["id"]))
    if found is None:
        return Block(whole, {})
    shown = {c.id: candidates(c, whole[c.id], held, found.pixels) for c in job.cells if _direct(c)}
    return Block(whole, shown)


def _chunks(job: Job, indices: range, chunk: int, bench: Bench) -> Iterator[Chunk]:
    for at, batch in enumerate(bench.batches(job.data, indices, chunk)):
        bench.check()
        clean, rows = padded(batch, chunk, bench.device)
        held = given(job, indices[at * chunk :][: len(batch.ids)], chunk, bench)
        yield Chunk(batch.ids, clean, conditioned(job, clean, rows, held), rows)


class Views:
    """Vectors of one chunk's images, computed once for all tasks that read the same level of the same encoder.

    Args:
        bench: counts, and keeps the vectors of clean images for the next condition.
        name: of the clean chunk.
        clean: its pixels.
    """

    def __init__(self, bench: Bench, name: tuple[tuple[str, ...], int], clean: Tensor) -> None:
        self.bench, self.name, self.clean = bench, name, clean
        self._vectors: dict[tuple[str, str, int], Tensor] = {}

    def see(self, encoder: Encoder, digest: str, task: Task) -> See:
        """As `tasks.task.seer`, from what was computed before."""
        if task.level in (PIXELS, DENSE):
            return self.bench.counting(seer(encoder, task))
        return lambda pixels: task.read(encoder, self._vector(encoder, digest, task.level, pixels))

    def truth(self, cell: Cell, task: Task, rows: Rows, see: See) -> Rows:
        """The task's truth of the clean chunk; a task at `PIXELS` pays a pass for it, so that it is kept."""
        if task.level != PIXELS:
            return task.truth(self.clean, rows, see)
        kept, key = self.bench.truths, (cell.judge.digest(), cell.encoder.digest_of_weights, *self.name)
        if key not in kept:
            kept[key] = {name: row for name, row in task.truth(self.clean, rows, see).items() if row is not self.clean}
            while sum(row.nbytes for found in kept.values() for row in found.values()) > KEPT_VECTORS and len(kept) > 1:
                kept.popitem(last=False)
        return {**kept[key], "clean_pixels": self.clean}

    def _vector(self, encoder: Encoder, digest: str, level: str, pixels: Tensor) -> Tensor:
        if pixels is self.clean:
            kept, key = self.bench.clean, (digest, level, *self.name)
            if key not in kept:
                kept[key] = self._computed(encoder, level, pixels)
                while sum(vector.nbytes for vector in kept.values()) > KEPT_VECTORS:
                    kept.popitem(last=False)
            return kept[key]
        place = (digest, level, id(pixels))
        if place not in self._vectors:
            self._vectors[place] = self._computed(encoder, level, pixels)
        return self._vectors[place]

    def _computed(self, encoder: Encoder, level: str, pixels: Tensor) -> Tensor:
        self.bench.forwards += len(pixels)
        return at_level(encoder, pixels, level)


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of consecutive images in one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def padded(batch: Batch, chunk: int, device: torch.device) -> tuple[Tensor, Rows]:
    """Pixels and rows of a batch on the device, repeated up to `chunk` rows."""
    at = torch.arange(chunk) % len(batch.ids)
    return laid(batch.pixels[at].to(device)), {name: row[at].to(device) for name, row in batch.rows.items()}


def given(job: Job, indices: Sequence[int], chunk: int, bench: Bench) -> Tensor | None:
    """The corrupted images of a chunk, padded, where a folder holds them; None where they are made here."""
    stage = next((s for s in job.stages if isinstance(s, Corruption) and s.root), None)
    if stage is None or _is_itself(job.data, stage):
        return None
    (batch,) = batches(bench.partner(job.data, stage), size=len(indices), indices=indices)
    return padded(batch, chunk, bench.device)[0]


def conditioned(job: Job, clean: Tensor, rows: Rows, given: Tensor | None) -> Tensor:
    """The pixels of a chunk before any attack: corrupted where the job has such a stage.

    Args:
        job: what is measured.
        clean: pixels of the chunk, padded; the corrupted ones where the job's data is a corrupted set itself.
        rows: of the chunk.
        given: as the function `given` found it.
    """
    pixels = clean
    for stage in job.stages:
        if isinstance(stage, Corruption):
            pixels = _under(job, stage, pixels, rows, given)
    return pixels


def _is_itself(data: Data, stage: Corruption) -> bool:
    """Whether the images are that condition of a corrupted set themselves."""
    return data.source in KINDS and data.split == f"{stage.name}/{stage.severity}"


def _under(job: Job, stage: Corruption, pixels: Tensor, rows: Rows, given: Tensor | None) -> Tensor:
    if not stage.root:
        return corrupted(pixels, stage, rows)
    if given is None and not _is_itself(job.data, stage):
        raise TrustError(
            f"{stage.name} of {stage.root} was to be read from there and was not.",
            next="Please report it with the cell's config.",
        )
    return pixels if given is None else given


def corrupted(pixels: Tensor, corruption: Corruption, rows: Rows) -> Tensor:
    """A corruption of pixels in [0, 1]: to bytes, which is exact for decoded images, and back."""
    images = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    changed = corrupt(images, corruption, rows["key"])
    return laid(to_pixels(changed.permute(0, 3, 1, 2)))


def _judged(cell: Cell, made: Made, rows: Rows, views: Views) -> dict[str, Tensor]:
    encoder, task = views.bench.encoder(cell.encoder), views.bench.judge(cell)
    with still(encoder, task), torch.no_grad():
        see = views.see(encoder, cell.encoder.digest_of_weights, task)
        truth = views.truth(cell, task, rows, see)
        if cell.attack is not None and cell.attack.aim == "towards" and _direct(cell):
            truth = {**truth, **task.aims(see(made.clean), truth, seed=cell.attack.seed)}
        out = see(made.after)
        found = task.outcome(out, truth)
        if made.trace is not None:
            rounded = task.outcome(see(made.rounded), truth)
            found |= {f"rounded_{name}": part for name, part in rounded.items() if part.dtype == torch.bool}
            found |= {f"attack_{name}": part for name, part in made.trace.items()}
            if cell.attack is not None and (cell.attack.surrogate is not None or cell.attack.aim == "towards"):
                # The attack's own clean score is another encoder's there, or another question's.
                clean = task.outcome(see(made.clean), truth)
                found |= {f"clean_{name}": clean[name] for name in ("correct", "prediction") if name in clean}
        if cell.judge.task == "classification" and _direct(cell):
            # An attack stops at any wrong class: what the set's own classes alone would lose was not looked for.
            for name in ("correct_within", "rounded_correct_within"):
                found.pop(name, None)
            found |= evidence(views.bench.counting(seer(encoder, task)), made.after, out)
    for name, part in found.items():
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            raise TrustError(f"{name} of {cell.encoder.spec} is not finite.", next="Look for overflow in the encoder.")
    return found


def _direct(cell: Cell) -> bool:
    """Whether a cell is attacked, and judged by the head that the attack goes through."""
    return cell.attack is not None and cell.attack.through == cell.judge.task


def _arrays(found: Mapping[str, Tensor], n: int) -> Outcomes:
    return {name: part[:n].detach().cpu().numpy() for name, part in found.items()}


def spans(n: int, block: int) -> Iterator[range]:
    """The blocks of n images."""
    for first in range(0, n, block):
        yield range(first, min(first + block, n))
