"""PGD with momentum, MI-FGSM: Dong et al., Boosting Adversarial Attacks with Momentum, CVPR 2018 (arXiv 1710.06081).

    g_{t+1} = decay * g_t + gradient / |gradient|_1,    x_{t+1} = project(x_t + alpha * steepest(g_{t+1}))

The paper starts at the clean image and steps by the sign. The L1 norm is taken per image as the mean of the absolute
values, as its implementations do: this scales g by a constant, which the steepest direction does not see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.balls import Ball, Begin, begun
from holdfast.attacks.executor import Stage, State
from holdfast.attacks.harm import Harm, Rows, ascent, judged


@dataclass(frozen=True)
class MomentumPGD:
    """Start, step, finish of PGD with momentum.

    Attributes:
        ball: where the perturbation may go.
        steps: gradient steps.
        relative_step: alpha in units of each row's epsilon; the paper's is 1 / steps.
        decay: share of the momentum that the next step keeps; 0 = PGD.
        begin: random in the ball, at the clean image, or at `rows["begin"]`.
        seed: of the random start, which is keyed by image and restart.
    """

    ball: Ball
    steps: int
    relative_step: float
    decay: float = 1.0
    begin: Begin = "random"
    seed: int = 0

    def start(self, harm: Harm, x: Tensor, rows: Rows, stage: Stage) -> State:
        """State at the start: `pixels` [b, 3, h, w], `eps` [b] of this stage and `momentum` [b, 3, h, w] = 0."""
        eps = rows["eps"] * stage.radius
        begin: Begin = "given" if stage.carry else self.begin
        pixels = begun(self.ball, begin, x, rows, eps, "momentum", self.seed, stage.restart)
        return {"pixels": pixels, "eps": eps, "momentum": torch.zeros_like(x)}

    def step(self, harm: Harm, x: Tensor, rows: Rows, state: State, t: Tensor) -> State:
        """One ascent: the new pixels, and as `seen`, `value`, `score`, `flat`, `broken` what was looked at."""
        look = ascent(harm, state["pixels"], rows, t)
        size = look.gradient.abs().mean((1, 2, 3), keepdim=True)
        momentum = look.gradient / size.where(size > 0, 1) + self.decay * state["momentum"]
        alpha = (self.relative_step * state["eps"]).view(-1, 1, 1, 1)
        moved = state["pixels"] + alpha * self.ball.steepest(momentum)
        return {
            "pixels": self.ball.project(x, moved, state["eps"]),
            "eps": state["eps"],
            "momentum": momentum,
            "seen": state["pixels"],
            "value": look.value.expand(len(x)),
            "score": look.score,
            "flat": look.flat,
            "broken": look.broken,
        }

    def finish(self, harm: Harm, x: Tensor, rows: Rows, state: State) -> State:
        """The last iterate, judged without gradient: `seen` and `score`; the next stage may `carry` on from it."""
        last = state["pixels"]
        return {**state, "seen": last, "score": judged(harm, last, rows), "carry": last}
