"""Projected gradient descent: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.

    x_0 = random point of the ball, x_{t+1} = project(x_t + alpha * steepest(gradient of the push at x_t))

Here with the worst iterate by score kept. FGSM (Goodfellow et al. 2015) is one step of it with alpha = eps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from holdfast.attacks.balls import Ball, Begin, begun
from holdfast.attacks.executor import Stage, State
from holdfast.attacks.harm import Harm, Rows, ascent, judged


@dataclass(frozen=True)
class PGD:
    """Start, step, finish of PGD.

    Attributes:
        ball: where the perturbation may go.
        steps: gradient steps.
        relative_step: alpha in units of each row's epsilon.
        begin: random in the ball, at the clean image, or at `rows["begin"]`.
        seed: of the random start, which is keyed by image and restart.
    """

    ball: Ball
    steps: int
    relative_step: float
    begin: Begin = "random"
    seed: int = 0

    def start(self, harm: Harm, x: Tensor, rows: Rows, stage: Stage) -> State:
        """State at the start: `pixels` [b, 3, h, w] and `eps` [b] of this stage."""
        eps = rows["eps"] * stage.radius
        begin: Begin = "given" if stage.carry else self.begin
        return {"pixels": begun(self.ball, begin, x, rows, eps, "pgd", self.seed, stage.restart), "eps": eps}

    def step(self, harm: Harm, x: Tensor, rows: Rows, state: State, t: Tensor) -> State:
        """One ascent: the new pixels, and as `seen`, `value`, `score`, `flat`, `broken` what was looked at."""
        look = ascent(harm, state["pixels"], rows, t)
        alpha = (self.relative_step * state["eps"]).view(-1, 1, 1, 1)
        moved = state["pixels"] + alpha * self.ball.steepest(look.gradient)
        return {
            "pixels": self.ball.project(x, moved, state["eps"]),
            "eps": state["eps"],
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
