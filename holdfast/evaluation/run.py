"""Works a grid off, job by job and block by block; what is finished is on disk, and the same call continues."""

from __future__ import annotations

import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from holdfast import disk
from holdfast.attacks.executor import SMALLEST
from holdfast.attacks.methods import budget
from holdfast.corruptions.table import check as check_corruption
from holdfast.corruptions.table import moves, notes
from holdfast.data.copies import read_copy
from holdfast.environment import environment
from holdfast.errors import CellsFailed, Interrupted, MemoryShortage, UserError
from holdfast.evaluation.adversarial import merged
from holdfast.evaluation.blocks import Bench, Block, Outcomes, joined, outcomes, spans
from holdfast.evaluation.cell_checks import flags
from holdfast.evaluation.dense_pictures import answered
from holdfast.evaluation.keeping import Kept
from holdfast.evaluation.measuring import measured
from holdfast.evaluation.pictures import looks
from holdfast.evaluation.plan import Job
from holdfast.evaluation.rows import called, condition
from holdfast.evaluation.store import Store
from holdfast.progress import Bar, say
from holdfast.records import DENSE_TASKS, Cell, Corruption, Cost, Metric, Result
from holdfast.signals import Stopping
from holdfast.tasks.depth_errors import foreign_frame
from holdfast.tasks.task import Task

T = TypeVar("T")
MOVED = {
    True: "it displaces what is seen; masks and depth stay where they were.",
    None: "it is not known whether it displaces what is seen; masks and depth stay where they were.",
}


@dataclass
class Run:
    """A grid being worked off.

    Attributes:
        bench: images, encoders, tasks.
        store: where records and blocks go.
        chunk: images per pass; halved when memory is short.
        block: images per block.
        cells: how many there are.
        done: how many of them are on disk.
        failed: how many failed in this run.
        warnings: for every record from here on.
    """

    bench: Bench
    store: Store
    chunk: int
    block: int
    cells: int = 0
    done: int = 0
    failed: int = 0
    warnings: tuple[str, ...] = ()


def work(todo: Sequence[Job], run: Run) -> None:
    """Work jobs off; finished ones are passed over, those that another process holds are left to it.

    Args:
        todo: as `plan.jobs` returns them.
        run: where to find and to put things; counts are kept in it.

    Raises:
        Interrupted: a signal came; cells and blocks that were finished are on disk.
        CellsFailed: some cells failed; the others are done.
    """
    run.cells = sum(len(job.cells) for job in todo)
    run.done = sum(run.store.has(cell) for job in todo for cell in job.cells)
    disk.sweep(run.store.folder)
    todo = _possible(todo, run)
    passes = [_passes(job, len(run.bench.source(job.data))) for job in todo]
    with Bar("bench", sum(passes)) as bar, Stopping(bar.say, ends="this batch") as stopping:
        held: list[Path] = []

        def check() -> None:
            stopping.check(f"{run.done} of {run.cells} cells done")
            bar.alive(f"{run.done} of {run.cells} cells done")
            for lease in held:
                disk.renew(lease)

        run.bench.check = check
        for job, work_left in zip(todo, passes, strict=True):
            if all(run.store.has(cell) for cell in job.cells):
                bar.skip(work_left)
                continue
            held[:] = [run.store.folder / "leases" / job.key]
            with disk.lease(held[0]) as mine:
                # Another process may have finished it between the first look and the lease.
                if mine and not all(run.store.has(cell) for cell in job.cells):
                    _attempt(job, run, bar)
            bar.advance(work_left, note=f"{run.done} of {run.cells} cells, {condition(job.cells[0])}")
    if run.failed:
        raise CellsFailed(
            f"{run.failed} of {run.cells} cells failed; {run.done} are done.",
            next=f"holdfast ls {run.store.folder} --failed says why; the same command tries them again.",
        )


def _possible(todo: Sequence[Job], run: Run) -> list[Job]:
    """The jobs that can be done here; the cells of the others are recorded as failed before anything begins."""
    possible = []
    for job in todo:
        stage = job.cells[0].corruption
        missing = [cell for cell in job.cells if not run.store.has(cell)]
        try:
            if stage is not None and missing:
                check_corruption(stage)
            possible.append(job)
        except UserError as error:
            for cell in missing:
                run.store.put(_failed(cell, run), {})
            run.failed += len(missing)
            say(f"failed: {condition(missing[0])} of {called(missing[0])}: {error}")
    return possible


def _attempt(job: Job, run: Run, bar: Bar) -> None:
    """One job; a failure is recorded with its traceback, and the rest goes on."""
    missing = [cell for cell in job.cells if not run.store.has(cell)]
    try:
        _measure(job, run, bar)
        run.done += len(missing)
    except Interrupted:
        raise
    except Exception as error:
        # A signal may kill what the work had started, a compiler for one: that is no failure of the cell.
        run.bench.check()
        for cell in missing:
            run.store.put(_failed(cell, run), {})
        run.failed += len(missing)
        bar.say(f"failed: {condition(missing[0])} of {called(missing[0])}: {error}")


def _passes(job: Job, images: int) -> int:
    """What a job costs in forward passes, a gradient counting as three."""
    attack = job.cells[0].attack
    if attack is None:
        return images * len(job.cells)
    cost = budget(attack)
    return images * (len(job.cells) + 3 * cost.gradients + cost.forwards)


def _measure(job: Job, run: Run, bar: Bar) -> None:
    """Every block of a job, then its records."""
    source = run.bench.source(job.data)
    name = f"{job.key}-{run.block}"
    known = run.store.blocks(name)
    for at, indices in enumerate(spans(len(source), run.block)):
        if at not in known:
            known[at] = _block(job, indices, run, bar)
            run.store.put_block(name, at, known[at])
    cost, chunk = _cost(known.values(), len(job.cells)), min(int(part["chunk"]) for part in known.values())
    for cell in job.cells:
        whole = joined([_part(known[at], f"{cell.id}/") for at in sorted(known)])
        if cell.attack is not None and cell.judge.task == cell.attack.through:
            kept = [_part(known[at], f"shown/{cell.id}/") for at in sorted(known)]
            gallery = merged(cell, whole, kept, classes=source.classes)
            if cell.judge.task in DENSE_TASKS:
                gallery = answered(cell, gallery, source, run.bench.encoder(cell.encoder), run.bench.judge(cell))
            run.store.put_gallery(cell.id, gallery)
        if cell.corruption is not None and cell.judge.task == "saliency" and "cam_drift" in whole:
            look = partial(looks, job, cell, whole, bench=run.bench)
            run.store.put_gallery(cell.id, _fitting(look, run, bar))
        run.store.put(_result(cell, whole, cost, chunk, run), whole)
    run.store.drop_blocks(name)


def _part(block: Outcomes, prefix: str) -> Outcomes:
    return {name.removeprefix(prefix): part for name, part in block.items() if name.startswith(prefix)}


def _block(job: Job, indices: range, run: Run, bar: Bar) -> Outcomes:
    """One block: outcomes as `cell/outcome`, what it cost, and the chunk that it was made with."""
    bench, began = run.bench, time.monotonic()
    before = bench.forwards, bench.backwards
    # A small set is not padded to more than its own size.
    most = max(SMALLEST, len(bench.source(job.data)))
    under_way = run.store.folder / "blocks" / f"{job.key}-{run.block}" / f"{indices.start}-{indices.stop}"

    def work(chunk: int) -> Block:
        keep = Kept(under_way / str(chunk), bench.check)
        return outcomes(job, indices, min(chunk, most), bench, keep=keep)

    found = _fitting(work, run, bar)
    shutil.rmtree(under_way, ignore_errors=True)
    flat = {f"{cell}/{name}": part for cell, named in found.outcomes.items() for name, part in named.items()}
    flat |= {f"shown/{cell}/{name}": part for cell, named in found.shown.items() for name, part in named.items()}
    seconds = time.monotonic() - began
    cost = np.array([seconds, bench.forwards - before[0], bench.backwards - before[1]])
    return {**flat, "cost": cost, "chunk": np.array(min(run.chunk, most))}


def _fitting(work: Callable[[int], T], run: Run, bar: Bar) -> T:
    """Do something with chunks of images, halved for the rest of the run whenever memory is short."""
    while True:
        try:
            return work(run.chunk)
        except torch.OutOfMemoryError:
            if run.chunk // 2 < SMALLEST:
                raise MemoryShortage(
                    f"{run.chunk} images do not fit into the memory of {run.bench.device}.",
                    next="Try a smaller --size, or a smaller encoder.",
                ) from None
            run.chunk //= 2
            torch.cuda.empty_cache()
            run.warnings = (*run.warnings, f"memory was short: chunks of {run.chunk} images from here on")
            bar.say(run.warnings[-1])


def _cost(blocks: Iterable[Outcomes], cells: int) -> Cost:
    """A cell's share of a job: the job's cost over its cells."""
    seconds, forwards, backwards = np.sum([part["cost"] for part in blocks], axis=0) / cells
    return Cost(seconds=round(float(seconds), 3), forwards=int(forwards), backwards=int(backwards), peak_mb=_peak_mb())


def _peak_mb() -> float:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _result(cell: Cell, whole: Outcomes, cost: Cost, chunk: int, run: Run) -> Result:
    task, source = run.bench.judge(cell), run.bench.source(cell.data)
    high, wide = source.read(0).pixels.shape[:2]
    remarks = tuple(filter(None, (foreign_frame(cell.judge.crop, high, wide),)))
    if cell.corruption is not None:
        remarks += notes(cell.corruption, high, wide) or _remarks_of_copy(cell.corruption)
        if cell.judge.task in DENSE_TASKS and moves(cell.corruption.name) in MOVED:
            remarks += (f"{cell.corruption.name}: {MOVED[moves(cell.corruption.name)]}",)
    return Result(
        id=cell.id,
        cell=cell,
        status="done",
        metrics=metrics(task, whole),
        cost=cost,
        environment=environment(run.bench.device, run.bench.engine),
        chunk=chunk,
        asked=cell.data.limit or len(source),
        warnings=(*run.warnings, *remarks),
        flags=flags(cell, whole),
    )


def _remarks_of_copy(corruption: Corruption) -> tuple[str, ...]:
    """What `holdfast corrupt` had to say about images that are read from its folder."""
    copy = read_copy(corruption.root) if corruption.root else None
    return tuple(text for text in copy.warnings if text.startswith(f"{corruption.name}:")) if copy else ()


def metrics(task: Task, whole: Outcomes) -> tuple[Metric, ...]:
    """The metrics of a cell with their evidence.

    Args:
        task: says which outcome is which metric.
        whole: per-image outcomes, arrays [n, ...].

    Returns:
        One metric per measure, and one without value per measure that is absent.
    """
    absent = tuple(Metric(name=name, reason=reason) for name, reason in task.absent().items())
    return measured(task.measures(), whole) + absent


def _failed(cell: Cell, run: Run) -> Result:
    return Result(
        id=cell.id,
        cell=cell,
        status="failed",
        environment=environment(run.bench.device),
        chunk=run.chunk,
        warnings=run.warnings,
        error=traceback.format_exc(),
    )
