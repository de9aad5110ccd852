"""What every judge says of an attack's iterates on the way: metrics and embedding distances over its steps.

Iterates are judged while the attack is under way, as they come, so that none is kept. The judged image of a cell is the
worst iterate; these are the ones that the attack passed through, whatever became of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.attacks.board import fitting, laid
from holdfast.attacks.executor import Keep, Seen
from holdfast.attacks.harm import Rows, See
from holdfast.attacks.methods import traced_steps
from holdfast.errors import TrustError
from holdfast.evaluation.plan import Job
from holdfast.records import Attack, Cell
from holdfast.tasks.task import seer, still

if TYPE_CHECKING:
    from holdfast.evaluation.blocks import Bench, Chunk

TRACED = "step_"
"""Begins the names of outcomes over steps, [n, steps, ...]."""
LOOKED = "steps/looked"


class Tracer:
    """A watch that has iterates judged by every cell of a job.

    Args:
        job: its cells judge.
        attack: says which steps.
        chunks: the images of the block.
        bench: encoders and tasks; passes are counted there.

    Attributes:
        steps: from 0, ascending.
        found: by cell id and outcome, [n, steps, ...]; empty before the first look.
        looked: which iterates there were, bool [n, steps]: a row that is lost leaves.
    """

    def __init__(self, job: Job, attack: Attack, chunks: Sequence[Chunk], bench: Bench) -> None:
        self.cells, self.bench = job.cells, bench
        self.steps = torch.tensor(traced_steps(attack), device=bench.device)
        self.slots = len(chunks[0].before)
        self.truths = {cell.id: _truths(cell, chunks, bench) for cell in job.cells}
        images = sum(len(part.ids) for part in chunks)
        self.looked = torch.zeros(images, len(self.steps), dtype=torch.bool, device=bench.device)
        self.found: dict[str, dict[str, Tensor]] = {cell.id: {} for cell in job.cells}

    def __call__(self, seen: Seen) -> None:
        """Judge those of the iterates that are to be."""
        places = torch.isin(seen.step, self.steps).nonzero().squeeze(1)
        if not len(places):
            return
        at, column = seen.at[places], torch.searchsorted(self.steps, seen.step[places])
        k = len(places)
        padded = torch.arange(fitting(k, self.slots), device=at.device) % k
        pixels, rows = laid(seen.pixels[places[padded]]), at[padded]
        for cell in self.cells:
            truth = {name: row[rows] for name, row in self.truths[cell.id].items()}
            for name, part in self._judged(cell, pixels, truth).items():
                if part.is_floating_point() and not bool(torch.isfinite(part[:k]).all()):
                    raise TrustError(f"{name} of an iterate is not finite.", next="Look for overflow in the encoder.")
                held = self.found[cell.id].setdefault(name, part.new_zeros(*self.looked.shape, *part.shape[1:]))
                held[at, column] = part[:k]
        self.looked[at, column] = True

    def outcomes(self, cell: Cell, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outcomes of a cell over the steps, `step_*` [n, steps, ...].

        Args:
            cell: that judges.
            last: its outcomes of what was found, [n, ...]: what a row shows after it has left.
        """
        filled = {}
        for name in [name for name in self.found[cell.id] if name in last]:  # some an attacked cell does not keep
            part = self.found[cell.id][name]
            wide = (*self.looked.shape, *[1] * (part.ndim - 2))
            end = last[name].to(part).unsqueeze(1).expand_as(part)
            filled[f"{TRACED}{name}"] = torch.where(self.looked.view(wide), part, end)
        return filled

    def held(self) -> dict[str, Tensor]:
        """Everything, for keeping."""
        flat = {f"steps/{cell}/{name}": part for cell, named in self.found.items() for name, part in named.items()}
        return {LOOKED: self.looked, **flat}

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """As it was when `held` was taken."""
        self.looked = held[LOOKED].to(self.looked.device, copy=True)
        for cell, named in self.found.items():
            prefix = f"steps/{cell}/"
            for name in [name for name in held if name.startswith(prefix)]:
                named[name.removeprefix(prefix)] = held[name].to(self.looked.device, copy=True)

    def _judged(self, cell: Cell, pixels: Tensor, truth: Rows) -> dict[str, Tensor]:
        encoder, task = self.bench.encoder(cell.encoder), self.bench.judge(cell)
        with still(encoder, task), torch.no_grad():
            return task.outcome(self.bench.counting(seer(encoder, task))(pixels), truth)


class Keeping:
    """A `Keep` that keeps what was traced beside what the attack keeps.

    Args:
        keep: where.
        tracer: whose outcomes are kept.
    """

    def __init__(self, keep: Keep, tracer: Tracer) -> None:
        self.keep, self.tracer = keep, tracer

    def load(self, name: str) -> Mapping[str, Tensor] | None:
        """What was kept; the tracer's part goes back to it."""
        held = self.keep.load(name)
        if held is None or LOOKED not in held:
            return None
        self.tracer.restore(held)
        return {name: part for name, part in held.items() if not name.startswith("steps/")}

    def offer(self, name: str, held: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep both, if it is time to."""
        self.keep.offer(name, lambda: {**held(), **self.tracer.held()})


def _truths(cell: Cell, chunks: Sequence[Chunk], bench: Bench) -> dict[str, Tensor]:
    """What the judge of a cell compares every image of a block with, leading dimension n."""
    encoder, task = bench.encoder(cell.encoder), bench.judge(cell)
    parts = []
    with still(encoder, task), torch.no_grad():
        see: See = bench.counting(seer(encoder, task))
        for part in chunks:
            truth = dict(task.truth(part.clean, part.rows, see))
            attack = cell.attack
            if attack is not None and attack.aim == "towards" and attack.through == cell.judge.task:
                truth |= task.aims(see(part.clean), truth, seed=attack.seed)
            parts.append({name: row[: len(part.ids)] for name, row in truth.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
