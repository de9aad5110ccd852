"""The one loop of every attack: lost rows leave and waiting ones take their place, so that every pass is full.

What becomes of a row depends on the row alone: a row that is lost keeps its first losing iterate (where `stop` is
"lost"), everything random is keyed by its image, and passes have a few fixed sizes, at least eight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from holdfast.attacks.balls import Ball
from holdfast.attacks.board import SMALLEST, Board, Ledger, fitting, laid
from holdfast.attacks.harm import Harm, Rows, check_pixels, judged
from holdfast.errors import ConfigError, TrustError

__all__ = ["SMALLEST", "Attack", "Found", "Keep", "Seen", "Stage", "State", "Stop", "pursue", "scored"]

State = Mapping[str, Tensor]
Stop = Literal["lost", "never", "nearest"]


class Stage(NamedTuple):
    """One pass of an attack over a row.

    Attributes:
        restart: which random start.
        radius: epsilon of this pass in units of the row's (a schedule may begin wider; what is found there is a start
            for the next pass and never an outcome).
        target: rank of the wrong class that is aimed at, 0 = the likeliest; -1 = untargeted. The executor gives it to
            the harm as `rows["target"]`, read from `rows["ranked"]` int64 [n, r].
        carry: begin where the pass before ended (`state["carry"]`, given as `rows["begin"]`).
        share: of the attack's steps that this pass takes; see `looks`.
    """

    restart: int = 0
    radius: float = 1.0
    target: int = -1
    carry: bool = False
    share: float = 1.0

    def looks(self, steps: int) -> int:
        """Steps of this pass, where a whole one has so many: at least one."""
        return max(1, round(self.share * steps))


class Seen(NamedTuple):
    """What one step looked at.

    Attributes:
        at: positions of the rows, [b].
        stage: place in `stages`, [b].
        step: of that stage, [b].
        pixels: [b, 3, h, w].
        value: what was raised, [b].
        score: [b].
    """

    at: Tensor
    stage: Tensor
    step: Tensor
    pixels: Tensor
    value: Tensor
    score: Tensor


class Found(NamedTuple):
    """What became of every row, in the order of the rows.

    Attributes:
        pixels: the worst iterate by score, float32 [n, 3, h, w]; the clean image where nothing was worse. With `stop`
            "nearest": the lost iterate of smallest norm.
        score: of it, [n].
        trace: [n] each: `clean_score`, `start_score` (the worst random start), `early_score` (the worst before
            the last quarter of the last pass), `zero_gradients` and `broken_gradients` (shares of looks whose gradient
            was zero everywhere, was not finite), `looks` (how many there were before the row left).
    """

    pixels: Tensor
    score: Tensor
    trace: dict[str, Tensor]


class Attack(Protocol):
    """An optimiser over pixels.

    States are mappings of tensors with leading dimension b: rows at different steps, stages and targets share a batch,
    so that whatever changes over a pass is a tensor of the state.
    """

    @property
    def ball(self) -> Ball:
        """Where the perturbation may go."""
        ...

    @property
    def steps(self) -> int:
        """Looks of one stage, the last one (`finish`) not counted."""
        ...

    def start(self, harm: Harm, x: Tensor, rows: Rows, stage: Stage) -> State:
        """The state before the first step; looks at nothing: b may be any number here."""
        ...

    def step(self, harm: Harm, x: Tensor, rows: Rows, state: State, t: Tensor) -> State:
        """The state after one step: `seen`, `value`, `score`, `flat` and `broken` say what the step looked at."""
        ...

    def finish(self, harm: Harm, x: Tensor, rows: Rows, state: State) -> State:
        """The state with the last iterate as `seen` and its `score`."""
        ...


class Keep(Protocol):
    """Where a pursuit is kept, so that a killed one goes on from there."""

    def load(self, name: str) -> Mapping[str, Tensor] | None:
        """What was kept under a name; None = nothing."""
        ...

    def offer(self, name: str, held: Callable[[], Mapping[str, Tensor]]) -> None:
        """Called after every step: keep what is held if it is time to; raise to stop, after having kept it.

        What is held is written over by the next step: store it or copy it before returning.
        """
        ...


def pursue(
    attack: Attack,
    harm: Harm,
    x: Tensor,
    rows: Rows,
    stages: Sequence[Stage] = (Stage(),),
    *,
    slots: int = 64,
    stop: Stop = "lost",
    watch: Callable[[Seen], None] | None = None,
    keep: Keep | None = None,
    name: str = "pursuit",
) -> Found:  # parameters: the contract of every attack; a record would only rename it
    """Run an attack over rows.

    Args:
        attack: start, step, finish.
        harm: what is raised, on a frozen victim.
        x: clean pixels, float32 [n, 3, h, w] in [0, 1].
        rows: leading dimension n: `key` int64, `eps` in pixel units, and what the harm reads.
        stages: restarts, targets or radii, one after the other; the worst over all of them is kept.
        slots: rows per pass, at least 8; passes that are not full are padded.
        stop: "lost" = a row leaves as soon as its score is above 0, and another takes its place; "never" = the worst
            iterate of the whole run; "nearest" = the lost iterate of smallest norm (minimal-norm attacks).
        watch: called with what every step saw.
        keep: where to keep what is done and what is under way; what it holds is taken up again.
        name: of this pursuit there.

    Returns:
        The outcome of every row.

    Raises:
        PixelError: `x` is no image batch in [0, 1].
        ConfigError: fewer than 8 slots, or no stage.
        TrustError: a score or what is raised is not finite, or called inside `torch.inference_mode`.
    """
    check_pixels(x)
    if slots < SMALLEST or not stages:
        raise ConfigError(f"slots = {slots}, {len(stages)} stages.", next=f"At least {SMALLEST} slots and one stage.")
    if torch.is_inference_mode_enabled():
        raise TrustError(
            "An attack needs gradients and was called inside torch.inference_mode().",
            next="Use torch.no_grad() around it, or nothing.",
        )
    held = keep.load(name) if keep is not None else None
    if held is None or not torch.equal(held["key"], rows["key"].cpu()):
        ledger = Ledger(x, scored(harm, x, rows, slots), stop, attack.ball)
        board = Board(attack, harm, rows, stages, ledger, slots)
    else:
        ledger = Ledger.restored(x, held, stop, attack.ball)
        board = Board(attack, harm, rows, stages, ledger, slots)
        board.restore(held)
    while board.fill():
        state = board.advance()
        if watch is not None:
            watch(_seen(board, state))
        board.settle(state)
        if keep is not None:
            keep.offer(name, lambda: {"key": rows["key"], **ledger.held(), **board.held()})
    return Found(ledger.pixels, ledger.score, ledger.trace())


def scored(harm: Harm, x: Tensor, rows: Rows, slots: int) -> Tensor:
    """The scores of images in float32, [n], in passes of at most `slots`; arguments and errors as `pursue`."""
    scores = []
    for first in range(0, len(x), slots):
        at = torch.arange(first, min(first + slots, len(x)), device=x.device)
        padded = at[torch.arange(fitting(len(at), slots), device=x.device) % len(at)]
        scores.append(judged(harm, laid(x[padded]), {k: v[padded] for k, v in rows.items()}, exact=True)[: len(at)])
    return torch.cat(scores)


def _seen(board: Board, state: State) -> Seen:
    live = board.live()
    return Seen(
        board.at[live],
        board.stage[live],
        board.step[live],
        state["seen"][live],
        state["value"][live],
        state["score"][live],
    )
