"""The rows of a pursuit: those under attack lie in slots, those that are done in a ledger, the others wait."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.attacks.balls import Ball
from holdfast.attacks.harm import Harm, Rows, judged
from holdfast.errors import TrustError

if TYPE_CHECKING:
    from holdfast.attacks.executor import Attack, Stage, State, Stop

SMALLEST = 8
# Slots are filled again when this share of them is free; until then the live ones lie closer, in eighths of the slots.
REFILL = 0.25
SIZES = tuple(eighth / 8 for eighth in range(1, 8))
FREE = -1
SCALARS = ("score", "rank", "start", "early", "zero", "broken", "looks")


class Ledger:
    """What is known of every row, in the order of the rows.

    Args:
        x: clean pixels [n, 3, h, w].
        clean: scores of them, [n].
        stop: what ends a row, and which iterate is kept.
        ball: measures how far an iterate is, where the nearest is kept.

    Attributes:
        pixels: the best iterate so far, [n, 3, h, w].
        score: of it, [n].
        done: whether the row has left, bool [n].
    """

    def __init__(self, x: Tensor, clean: Tensor, stop: Stop, ball: Ball) -> None:
        check_scores(clean)
        self.x, self.stop, self.ball = x, stop, ball
        self.pixels, self.clean, self.score = x.clone(), clean, clean.clone()
        self.done = torch.zeros_like(clean, dtype=torch.bool) if stop == "never" else clean > 0
        rank = torch.full_like(clean, -torch.inf) if stop == "nearest" else clean.clone()
        self.rank = rank.where(~self.done, torch.inf)
        self.start, self.early = torch.full_like(clean, -torch.inf), clean.clone()
        self.zero, self.broken, self.looks = (torch.zeros_like(clean) for _ in range(3))

    @classmethod
    def restored(cls, x: Tensor, held: Mapping[str, Tensor], stop: Stop, ball: Ball) -> Ledger:
        """As it was when `held` was taken."""
        ledger = cls(x, held["ledger/clean"].to(x.device), stop, ball)
        for name in ("pixels", "done", *SCALARS):
            # A copy: the ledger is written in place, and what is held may be taken up more than once.
            setattr(ledger, name, held[f"ledger/{name}"].to(x.device, copy=True))
        return ledger

    def held(self) -> dict[str, Tensor]:
        """Everything, for keeping."""
        return {f"ledger/{name}": getattr(self, name) for name in ("pixels", "clean", "done", *SCALARS)}

    def rank_of(self, at: Tensor, pixels: Tensor, score: Tensor) -> Tensor:
        """What iterates are compared by: the score, or how near a lost one is."""
        if self.stop != "nearest":
            return score
        return torch.where(score > 0, -self.ball.norm(pixels - self.x[at]), -torch.inf)

    def trace(self) -> dict[str, Tensor]:
        """The trace of `executor.Found`."""
        looks = self.looks.clamp_min(1)
        return {
            "clean_score": self.clean,
            "start_score": self.start.where(torch.isfinite(self.start), self.clean),
            "early_score": self.early,
            "zero_gradients": self.zero / looks,
            "broken_gradients": self.broken / looks,
            "looks": self.looks,
        }


class Board:
    """The slots: every tensor has them as its leading dimension; `at` says which row lies there, -1 = none.

    Args:
        attack: start, step, finish.
        harm: what is raised.
        rows: of all n images.
        stages: passes over every row.
        ledger: of all n images.
        slots: at most so many.
    """

    def __init__(
        self, attack: Attack, harm: Harm, rows: Rows, stages: Sequence[Stage], ledger: Ledger, slots: int
    ) -> None:  # parameters: those of `pursue`
        self.attack, self.harm, self.rows, self.stages, self.ledger = attack, harm, rows, stages, ledger
        self.slots = slots
        self.count = 0  # slots that hold a row: known here, so that no step waits for the device to tell
        self.waiting = (~ledger.done).nonzero().squeeze(1)
        self.table: dict[str, Tensor] = {}
        self.state: dict[str, Tensor] = {}

    at = property(lambda self: self.table["at"])
    stage = property(lambda self: self.table["stage"])
    step = property(lambda self: self.table["step"])

    def live(self) -> Tensor:
        """Places of the slots that hold a row."""
        places: Tensor = (self.at >= 0).nonzero().squeeze(1)
        return places

    def fill(self) -> bool:
        """Let waiting rows in where enough slots are free, or lie closer where none waits; False = nothing is left."""
        size, count = len(self.table["at"]) if self.table else 0, self.count
        if not count and not len(self.waiting):
            return False
        free = self.slots - count
        if len(self.waiting) and (free >= REFILL * self.slots or not count):
            self._arrange(count, self.waiting[:free])
            self.waiting = self.waiting[free:]
        elif self._size(count) < size:
            self._arrange(count, self.waiting[:0])
        return True

    def advance(self) -> State:
        """One step of all slots."""
        part = self.table
        t = part["step"].to(part["score"].dtype) / part["looks_in_stage"]
        return self.attack.step(self.harm, part["x"], self._rows(), self.state, t)

    def settle(self, state: State) -> None:
        """Take what a step saw: the best are kept, lost rows leave, and those at the end of a pass begin the next."""
        part = self.table
        self.state = {name: laid(state[name]) for name in self.state}
        live, looks, score = part["at"] >= 0, part["looks_in_stage"], state["score"]
        # Asked together: every answer that the host waits for empties a GPU's queue.
        senseless, lost, ended = torch.stack(
            [~torch.isfinite(score.where(live, 0)).all(), ((score > 0) & live).any(), (part["step"] + 1 == looks).any()]
        ).tolist()
        if senseless:
            check_scores(score.where(live, 0))
        if lost:
            score = self._confirmed(state["seen"], score, live, None)
        first = (part["step"] == 0) & part["counts"]
        part["start"] = torch.where(first, torch.maximum(part["start"], score), part["start"])
        part["zero"], part["broken"] = part["zero"] + state["flat"], part["broken"] + state["broken"]
        part["looks"] = part["looks"] + 1
        self._take(state["seen"], score, None)
        part["step"] = part["step"] + 1
        early = 4 * part["step"] <= 3 * looks
        part["early"] = torch.where(early, part["score"], part["early"])
        if lost:
            self._leave(live & self._over())
        if ended:
            held = ((part["step"] == looks) & (part["at"] >= 0)).nonzero().squeeze(1)
            if len(held):
                self._finish(held)
            self._renew()

    def held(self) -> dict[str, Tensor]:
        """Everything, for keeping."""
        return {
            "waiting": self.waiting,
            **{f"slot/{name}": part for name, part in self.table.items()},
            **{f"state/{name}": part for name, part in self.state.items()},
        }

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """As it was when `held` was taken."""
        device = self.ledger.x.device
        self.waiting = held["waiting"].to(device)
        if len(held["slot/at"]) > self.slots:
            # Kept with more slots: what lay in them begins anew, which changes no outcome.
            under_way = held["slot/at"].to(device)
            self.waiting = torch.cat([under_way[under_way >= 0], self.waiting])
            return
        for into, prefix in ((self.table, "slot/"), (self.state, "state/")):
            into.update({k.removeprefix(prefix): laid(v.to(device)) for k, v in held.items() if k.startswith(prefix)})
        self.count = int((self.at >= 0).sum()) if self.table else 0

    def _rows(self) -> dict[str, Tensor]:
        return {name.removeprefix("row/"): part for name, part in self.table.items() if name.startswith("row/")}

    def _size(self, count: int) -> int:
        return fitting(count, self.slots)

    def _arrange(self, count: int, entering: Tensor) -> None:
        """Lay the live rows and those that enter side by side, and pad them to one of the sizes."""
        kept, state = self.table, self.state
        parts = [({k: v[self.live()] for k, v in kept.items()}, {k: v[self.live()] for k, v in state.items()})]
        if not count:
            parts = []
        if len(entering):
            parts.append(self._enter(entering))
        places = torch.arange(self._size(count + len(entering)), device=self.ledger.x.device)
        padding = places >= count + len(entering)
        places = places % (count + len(entering))
        self.table = {k: laid(torch.cat([p[k] for p, _ in parts])[places]) for k in parts[0][0]}
        self.state = {k: laid(torch.cat([s[k] for _, s in parts])[places]) for k in parts[0][1]}
        self.table["at"] = self.table["at"].where(~padding, FREE)
        self.count = count + len(entering)

    def _enter(self, at: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        ledger = self.ledger
        part = {f"row/{name}": row[at] for name, row in self.rows.items()}
        part |= {name: getattr(ledger, name)[at] for name in ("pixels", *SCALARS)}
        part |= {"at": at, "x": ledger.x[at], "stage": torch.zeros_like(at), "step": torch.zeros_like(at)}
        part["looks_in_stage"] = torch.zeros_like(at)
        if any(stage.carry for stage in self.stages):
            part["carry"] = part.get("row/begin", ledger.x[at])
        part["counts"] = torch.ones_like(at, dtype=torch.bool)
        places = torch.arange(len(at), device=at.device)
        return part, self._begun(part, places, 0)

    def _begun(self, part: dict[str, Tensor], places: Tensor, stage: int) -> dict[str, Tensor]:
        """The state of some slots at the beginning of a stage."""
        chosen = self.stages[stage]
        looks = chosen.looks(self.attack.steps)
        part["looks_in_stage"] = part["looks_in_stage"].index_fill(0, places, looks)
        if any(s.target >= 0 for s in self.stages):
            target = part["row/ranked"][places, max(chosen.target, 0)]
            part["row/target"] = part.get("row/target", torch.zeros_like(part["at"])).index_copy(0, places, target)
        counts = torch.full_like(places, chosen.radius <= 1, dtype=torch.bool)
        part["counts"] = part["counts"].index_copy(0, places, counts)
        rows = {name.removeprefix("row/"): v[places] for name, v in part.items() if name.startswith("row/")}
        if chosen.carry:
            rows["begin"] = part["carry"][places]
        return dict(self.attack.start(self.harm, part["x"][places], rows, chosen))

    def _confirmed(self, pixels: Tensor, score: Tensor, live: Tensor, among: Tensor | None) -> Tensor:
        """Scores, those above 0 judged in float32 where the harm sees in another precision.

        Args:
            pixels: of some slots.
            score: of them.
            live: whether they hold a row.
            among: places of these slots; None = all slots.
        """
        if self.harm.exact is None or self.ledger.stop == "never":
            return score
        lost = ((score > 0) & live).nonzero().squeeze(1)
        if not len(lost):
            return score
        at = lost if among is None else among[lost]
        padded = torch.arange(self._size(len(lost)), device=lost.device) % len(lost)
        rows = {name: row[at[padded]] for name, row in self._rows().items()}
        exact = judged(self.harm, laid(pixels[lost[padded]]), rows, exact=True)[: len(lost)]
        check_scores(exact)
        return score.index_copy(0, lost, exact)

    def _take(self, pixels: Tensor, score: Tensor, among: Tensor | None) -> None:
        """Keep iterates that are worse than all before; ties go to the later one."""
        part, ledger = self.table, self.ledger
        old = {k: part[k] if among is None else part[k][among] for k in ("at", "pixels", "score", "rank", "counts")}
        rank = ledger.rank_of(old["at"], pixels, score)
        worse = (rank >= old["rank"]) & old["counts"] & (rank > -torch.inf)
        new = {
            "pixels": torch.where(worse.view(-1, 1, 1, 1), pixels, old["pixels"]),
            "score": torch.where(worse, score, old["score"]),
            "rank": torch.where(worse, rank, old["rank"]),
        }
        for name, value in new.items():
            part[name] = value if among is None else part[name].index_copy(0, among, value)

    def _over(self) -> Tensor:
        """Slots whose row need not be attacked further."""
        score = self.table["score"]
        return score > 0 if self.ledger.stop == "lost" else torch.zeros_like(score, dtype=torch.bool)

    def _leave(self, leaving: Tensor) -> None:
        """Write rows to the ledger and free their slots."""
        places = leaving.nonzero().squeeze(1)
        if not len(places):
            return
        part, at = self.table, self.at[places]
        for name in ("pixels", *SCALARS):
            getattr(self.ledger, name)[at] = part[name][places]
        self.ledger.done[at] = True
        part["at"] = part["at"].where(~leaving, FREE)
        self.count -= len(places)

    def _finish(self, ended: Tensor) -> None:
        """Look at the last iterates of some slots; their rows leave, or begin the next stage."""
        part, k = self.table, len(ended)
        padded = ended[torch.arange(self._size(k), device=ended.device) % k]
        rows = {name: row[padded] for name, row in self._rows().items()}
        state = {name: laid(value[padded]) for name, value in self.state.items()}
        last = self.attack.finish(self.harm, laid(part["x"][padded]), rows, state)
        check_scores(last["score"][:k])
        score = self._confirmed(last["seen"][:k], last["score"][:k], torch.ones_like(ended, dtype=torch.bool), ended)
        self._take(last["seen"][:k], score, ended)
        stage = part["stage"][ended]
        through = self._over()[ended] | (stage + 1 == len(self.stages))
        leaving = torch.zeros_like(part["at"], dtype=torch.bool).index_copy(0, ended, through)
        self._leave(leaving)
        if "carry" in part:
            part["carry"] = part["carry"].index_copy(0, ended, last["carry"][:k])
        for number in sorted({int(s) for s in stage[~through]}):
            places = ended[~through & (stage == number)]
            part["stage"] = part["stage"].index_fill(0, places, number + 1)
            part["step"] = part["step"].index_fill(0, places, 0)
            begun = self._begun(part, places, number + 1)
            self.state = {name: laid(old.index_copy(0, places, begun[name])) for name, old in self.state.items()}

    def _renew(self) -> None:
        """Slots that came to the end of a pass without a row go on as a copy of one that has one.

        Until a row enters they are stepped with the others, and no attack need know what lies beyond its last step.
        """
        live = self.live()
        over = (self.at < 0) & (self.step == self.table["looks_in_stage"])
        if not len(live) or not bool(over.any()):
            return
        places = torch.where(over, live[0], torch.arange(len(over), device=over.device))
        self.table = {name: laid(part[places]) for name, part in self.table.items()}
        self.state = {name: laid(part[places]) for name, part in self.state.items()}
        self.table["at"] = self.table["at"].where(~over, FREE)


def fitting(count: int, slots: int) -> int:
    """The size of a pass over `count` rows, at most `slots`: an eighth of the slots or several, in eights."""
    sizes = {slots, *(math.ceil(slots * share / SMALLEST) * SMALLEST for share in SIZES)}
    return min(size for size in sizes if min(count, slots) <= size <= slots)


def laid(part: Tensor) -> Tensor:
    """Images in the one memory layout of their device: kernels differ in the last digit from layout to layout.

    On a CPU the channels of a pixel lie together, which makes convolutions up to three times faster.
    """
    if part.ndim != 4:
        return part
    on_cpu = part.device.type == "cpu"
    return part.contiguous(memory_format=torch.channels_last if on_cpu else torch.contiguous_format)


def check_scores(score: Tensor) -> None:
    """Refuse a score that is no number: it would rest as if it were lost."""
    if not bool(torch.isfinite(score).all()):
        raise TrustError("The score of an image is not finite.", next="Look for overflow in the encoder.")
