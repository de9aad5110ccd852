"""Auto-PGD: Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks, ICML 2020 (arXiv 2003.01690).

    z = project(x_t + alpha * steepest(gradient at x_t))
    x_{t+1} = project(x_t + 3/4 (z - x_t) + 1/4 (x_t - x_{t-1}))                    alpha = 2 eps at the beginning

At checkpoints alpha is halved, and the iterate of the largest value is gone back to, where fewer than 3/4 of the steps
since the last one rose, or where neither alpha nor the largest value changed since. The first comes after 22 % of the
steps, every next one 3 % sooner than the one before, down to 6 %.

How alpha goes is a `Pace`; L1 has its own (`apgd_l1.py`). "Best" is here by what is raised; the outcome is the worst
iterate by score, which the executor keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from holdfast.attacks.balls import Ball, Begin, begun
from holdfast.attacks.executor import Stage, State
from holdfast.attacks.harm import Harm, Rows, ascent


class Pace(Protocol):
    """How long the steps are, and when to go back. What it keeps is a tensor per name, with leading dimension b."""

    def start(self, x: Tensor, pixels: Tensor, eps: Tensor, steps: int, begin: Begin) -> dict[str, Tensor]:
        """What it keeps, before the first look.

        Args:
            x: clean pixels [b, 3, h, w].
            pixels: the first iterate.
            eps: radius [b].
            steps: looks of this pass.
            begin: where the first iterate is from.
        """
        ...

    def check(self, x: Tensor, state: State, value: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What it keeps after a look, and which rows go back to their best iterate, bool [b].

        Args:
            x: clean pixels [b, 3, h, w].
            state: of APGD, `best` and `top` as they are after the look; `looks` [b] counts those before it.
            value: what was raised at the pending iterate, [b].
        """
        ...

    def move(self, ball: Ball, x: Tensor, here: Tensor, gradient: Tensor, state: State) -> Tensor:
        """The next iterate, [b, 3, h, w], from `here` with the gradient there."""
        ...


@dataclass(frozen=True)
class Halving:
    """The pace of the paper, for Linf and L2.

    Attributes:
        rho: share of steps that must have risen between two checkpoints.
        inertia: share of the new step; the rest is that of the step before.
        first: looks before the first checkpoint, as a share of all.
        sooner: by how much a gap between checkpoints is shorter than the one before.
        shortest: gap.
    """

    rho: float = 0.75
    inertia: float = 0.75
    first: float = 0.22
    sooner: float = 0.03
    shortest: float = 0.06

    def start(self, x: Tensor, pixels: Tensor, eps: Tensor, steps: int, begin: Begin) -> dict[str, Tensor]:
        """`alpha`; `wait`, `since` and `rises` (looks up to the next checkpoint, since the last, which rose); `mark`
        (largest value) and `halved`, both at the last checkpoint; the `last` value."""
        none = torch.zeros_like(eps, dtype=torch.int64)
        gaps = {"wait": self.first, "least": self.shortest, "less": self.sooner}
        return {
            **{name: none + max(int(share * steps), 1) for name, share in gaps.items()},
            "alpha": 2 * eps,
            "since": none,
            "rises": none,
            "mark": torch.zeros_like(eps),
            "last": torch.zeros_like(eps),
            # The first checkpoint knows no earlier one, so that only the count of rises halves there.
            "halved": torch.ones_like(none, dtype=torch.bool),
        }

    def check(self, x: Tensor, state: State, value: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """A row goes back where its alpha is halved. A share of exactly `rho` halves too, as in the official code."""
        later = state["looks"] > 0
        since, rises = state["since"] + later, state["rises"] + (later & (value > state["last"]))
        due = since == state["wait"]
        stuck = ~state["halved"] & (state["top"] <= state["mark"])
        back = due & (stuck | (rises <= self.rho * state["wait"]))
        return {
            "wait": torch.where(due, torch.maximum(state["wait"] - state["less"], state["least"]), state["wait"]),
            "least": state["least"],
            "less": state["less"],
            "alpha": torch.where(back, state["alpha"] / 2, state["alpha"]),
            "since": since.where(~due, 0),
            "rises": rises.where(~due, 0),
            "mark": torch.where(due, state["top"], state["mark"]),
            # Of the iterate that was looked at, also where the row goes back, as in the official code.
            "last": value.to(state["last"]),
            "halved": torch.where(due, back, state["halved"]),
        }, back

    def move(self, ball: Ball, x: Tensor, here: Tensor, gradient: Tensor, state: State) -> Tensor:
        """A projected step, averaged with the one before; the first has none before it."""
        ahead = ball.project(x, here + _wide(state["alpha"]) * ball.steepest(gradient), state["eps"])
        inertia = _wide(torch.where(state["looks"] > 0, self.inertia, 1.0))
        mixed = here + inertia * (ahead - here) + (1 - inertia) * (here - state["before"])
        return ball.project(x, mixed, state["eps"])


@dataclass(frozen=True)
class APGD:
    """Start, step, finish of APGD: `steps` gradients and one look without.

    A schedule of radii (arXiv 2103.01208, for L1) is one of stages: 3, 2 and 1 times the radius for 30, 30 and 40 % of
    the steps, the later ones carrying on from the best iterate.

    Attributes:
        ball: where the perturbation may go.
        steps: gradient steps.
        begin: random in the ball, at the clean image, or at `rows["begin"]`.
        seed: of the random start, which is keyed by image, restart and target.
        pace: how alpha goes; `apgd_l1.Sparse` for L1.
    """

    ball: Ball
    steps: int
    begin: Begin = "random"
    seed: int = 0
    pace: Pace = field(default_factory=Halving)

    def start(self, harm: Harm, x: Tensor, rows: Rows, stage: Stage) -> State:
        """The pending iterate `pixels` and the one `before` it, the `best` one so far with its value `top` and gradient
        `slope`, `eps` of this stage, `looks` so far, and what the pace keeps."""
        eps = rows["eps"].to(x) * stage.radius
        begin: Begin = "given" if stage.carry else self.begin
        pixels = begun(self.ball, begin, x, rows, eps, "apgd", self.seed, stage.restart, stage.target)
        return {
            **self.pace.start(x, pixels, eps, stage.looks(self.steps), begin),
            "pixels": pixels,
            "before": pixels,
            "best": pixels,
            "slope": torch.zeros_like(pixels),
            "top": torch.full_like(eps, -torch.inf),
            "eps": eps,
            "looks": torch.zeros_like(eps, dtype=torch.int64),
        }

    def step(self, harm: Harm, x: Tensor, rows: Rows, state: State, t: Tensor) -> State:
        """One look and one move; `seen`, `value`, `score`, `flat` and `broken` say what was looked at."""
        look = ascent(harm, state["pixels"], rows, t)
        value = look.value.expand(len(x))
        better = _better(state, value)
        best = {
            "best": torch.where(_wide(better), state["pixels"], state["best"]),
            "slope": torch.where(_wide(better), look.gradient, state["slope"]),
            "top": torch.where(better, value.to(state["top"]), state["top"]),
        }
        paced, back = self.pace.check(x, {**state, **best}, value)
        here = torch.where(_wide(back), best["best"], state["pixels"])
        gradient = torch.where(_wide(back), best["slope"], look.gradient)
        moved = self.pace.move(self.ball, x, here, gradient, {**state, **paced})
        return {
            **paced,
            **best,
            "pixels": moved,
            "before": here,
            "eps": state["eps"],
            "looks": state["looks"] + 1,
            "seen": state["pixels"],
            "value": value,
            "score": look.score,
            "flat": look.flat,
            "broken": look.broken,
        }

    def finish(self, harm: Harm, x: Tensor, rows: Rows, state: State) -> State:
        """The last iterate as `seen` with its `score`; a later stage may `carry` on from the best one by value."""
        last = state["pixels"]
        value, score = _looked(harm, last, rows)
        carry = torch.where(_wide(_better(state, value.expand(len(x)))), last, state["best"])
        return {**state, "seen": last, "score": score, "carry": carry}


def _better(state: Mapping[str, Tensor], value: Tensor) -> Tensor:
    """Whether an iterate is better than all before."""
    return value > state["top"]


def _looked(harm: Harm, pixels: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """What is raised at the end of a pass, and the score, both without gradient."""
    with torch.no_grad():
        ended = torch.ones_like(rows["eps"])
        passes = [harm.see(pixels) for _ in range(harm.samples)]
        value = torch.stack([harm.push(out, rows, ended) for out in passes]).mean(0)
        score = torch.stack([harm.score(out, rows) for out in passes]).mean(0)
    return value, score


def _wide(rows: Tensor) -> Tensor:
    return rows.view(-1, 1, 1, 1)
