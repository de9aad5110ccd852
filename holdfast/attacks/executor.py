"""The one loop of every attack: rows come in chunks of fixed size, the worst by score is kept, lost ones rest.

A row's result depends on the row alone: a row that is lost keeps its first losing iterate (where `stop` is "lost"),
its random start is keyed by its image, and chunks are padded to `slots`, so that the arithmetic is the same whatever
comes along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from holdfast.attacks.harm import Harm, Rows, check_pixels, judged
from holdfast.errors import ConfigError, TrustError

State = Mapping[str, Tensor]
SMALLEST = 8


class Stage(NamedTuple):
    """One pass of an attack over a row.

    Attributes:
        restart: which random start.
        radius: epsilon of this pass in units of the row's (a schedule may begin wider).
        target: rank of the wrong class that is aimed at; -1 = untargeted.
    """

    restart: int = 0
    radius: float = 1.0
    target: int = -1


class Seen(NamedTuple):
    """What one step looked at: positions of the rows [b], stage, step, pixels, what was raised [b], score [b]."""

    at: Tensor
    stage: Stage
    step: int
    pixels: Tensor
    value: Tensor
    score: Tensor


class Found(NamedTuple):
    """The outcome of some rows.

    Attributes:
        at: positions in `x`, int64 [k].
        pixels: the worst iterate by score, float32 [k, 3, h, w]; the clean image where nothing was worse.
        score: of it, [k].
        trace: [k] each: `clean_score`, `start_score` (the worst random start), `early_score` (the worst before
            the last quarter of the last pass), `zero_gradients` (share of steps whose gradient was zero everywhere).
    """

    at: Tensor
    pixels: Tensor
    score: Tensor
    trace: dict[str, Tensor]


class Attack(Protocol):
    """An optimiser over pixels. States are mappings of tensors with leading dimension b."""

    @property
    def steps(self) -> int:
        """Steps of one stage."""
        ...

    def start(self, harm: Harm, x: Tensor, rows: Rows, stage: Stage) -> State:
        """The state before the first step."""
        ...

    def step(self, harm: Harm, x: Tensor, rows: Rows, state: State, t: Tensor) -> State:
        """The state after one step: `seen`, `value`, `score` and `flat` (zero gradient) say what the step looked at."""
        ...

    def finish(self, harm: Harm, x: Tensor, rows: Rows, state: State) -> State:
        """The state with the last iterate as `seen` and its `score`."""
        ...


def pursue(
    attack: Attack,
    harm: Harm,
    x: Tensor,
    rows: Rows,
    stages: Sequence[Stage] = (Stage(),),
    *,
    slots: int = 64,
    stop: Literal["lost", "never"] = "lost",
    watch: Callable[[Seen], None] | None = None,
) -> Iterator[Found]:  # parameters: the contract of every attack; a record would only rename it
    """Run an attack over rows and yield what it found.

    Args:
        attack: start, step, finish.
        harm: what is raised, on a frozen victim.
        x: clean pixels, float32 [n, 3, h, w] in [0, 1].
        rows: leading dimension n: `key` int64, `eps` in pixel units, and what the harm reads.
        stages: restarts, targets or radii, one after the other; the worst over all of them is kept.
        slots: rows per pass, at least 8; the last pass is padded.
        stop: "lost" = a row rests as soon as its score is above 0; "never" = the worst iterate of the whole run.
        watch: called with what every step saw.

    Yields:
        Found rows, each exactly once.

    Raises:
        PixelError: `x` is no image batch in [0, 1].
        ConfigError: fewer than 8 slots, or no stage.
        TrustError: a score or a gradient is not finite, or called inside `torch.inference_mode`.
    """
    check_pixels(x)
    if slots < SMALLEST or not stages:
        raise ConfigError(f"slots = {slots}, {len(stages)} stages.", next=f"At least {SMALLEST} slots and one stage.")
    if torch.is_inference_mode_enabled():
        raise TrustError(
            "An attack needs gradients and was called inside torch.inference_mode().",
            next="Use torch.no_grad() around it, or nothing.",
        )
    for first in range(0, len(x), slots):
        at = torch.arange(first, min(first + slots, len(x)))
        padded = at[torch.arange(slots) % len(at)].to(x.device)
        chunk = {name: part[padded] for name, part in rows.items()}
        yield _chunk(attack, harm, x[padded], chunk, stages, _Loop(at, stop == "lost", watch))


class _Loop(NamedTuple):
    """What a chunk's loop needs beside the attack: real positions, whether lost rows rest, who watches."""

    at: Tensor
    rests: bool
    watch: Callable[[Seen], None] | None


class _Best:
    """The worst iterate of each row so far; ties go to the later one."""

    def __init__(self, pixels: Tensor, score: Tensor, *, rests: bool) -> None:
        self._check(score)
        self.pixels, self.score, self.rests = pixels.clone(), score.clone(), rests

    def take(self, pixels: Tensor, score: Tensor) -> None:
        self._check(score)
        worse = (score >= self.score) & self.active()
        self.pixels = torch.where(worse.view(-1, 1, 1, 1), pixels, self.pixels)
        self.score = torch.where(worse, score, self.score)

    def _check(self, score: Tensor) -> None:
        """A score that is no number would rest as if it were lost."""
        if not bool(torch.isfinite(score).all()):
            raise TrustError("The score of an image is not finite.", next="Look for overflow in the encoder.")

    def active(self) -> Tensor:
        return self.score <= 0 if self.rests else torch.ones_like(self.score, dtype=torch.bool)


def _chunk(attack: Attack, harm: Harm, x: Tensor, rows: Rows, stages: Sequence[Stage], loop: _Loop) -> Found:
    clean = judged(harm, x, rows)
    best = _Best(x, clean, rests=loop.rests)
    start, early = torch.full_like(clean, -torch.inf), clean.clone()
    zero, looked = torch.zeros_like(clean), torch.zeros_like(clean)
    for stage in stages:
        state = attack.start(harm, x, rows, stage)
        for step in range(attack.steps):
            active = best.active()
            if not bool(active.any()):
                break
            state = attack.step(harm, x, rows, state, torch.full_like(clean, step / attack.steps))
            if loop.watch is not None:
                loop.watch(_seen(loop.at, stage, step, state))
            if step == 0:
                start = torch.where(active, torch.maximum(start, state["score"]), start)
            zero, looked = zero + (active & state["flat"]), looked + active
            best.take(state["seen"], state["score"])
            if 4 * (step + 1) <= 3 * attack.steps:
                early = torch.where(active, best.score, early)
        else:
            state = attack.finish(harm, x, rows, state)
            best.take(state["seen"], state["score"])
    start, zero = start.where(torch.isfinite(start), clean), zero / looked.clamp_min(1)
    k = len(loop.at)
    trace = {"clean_score": clean, "start_score": start, "early_score": early, "zero_gradients": zero}
    return Found(loop.at, best.pixels[:k], best.score[:k], {name: part[:k] for name, part in trace.items()})


def _seen(at: Tensor, stage: Stage, step: int, state: State) -> Seen:
    k = len(at)
    return Seen(at, stage, step, state["seen"][:k], state["value"][:k], state["score"][:k])
