"""Projected gradient descent: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.

    x_0 = random point of the ball, x_{t+1} = project(x_t + alpha * steepest(gradient of the push at x_t))

Here with the worst iterate by score kept. FGSM (Goodfellow et al. 2015) is one step of it with alpha = eps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from holdfast.attacks.balls import Ball
from holdfast.attacks.executor import Stage, State
from holdfast.attacks.harm import Harm, Rows, ascent, judged


@dataclass(frozen=True)
class PGD:
    """Start, step, finish of PGD.

    Attributes:
        ball: where the perturbation may go.
        steps: gradient steps.
        relative_step: alpha in units of each row's epsilon.
        begin: random in the ball, or at the clean image.
        seed: of the random start, which is keyed by image and restart.
    """

    ball: Ball
    steps: int
    relative_step: float
    begin: Literal["random", "zero"] = "random"
    seed: int = 0

    def start(self, harm: Harm, x: Tensor, rows: Rows, stage: Stage) -> State:
        """State at the start: `pixels` [b, 3, h, w] and `eps` [b] of this stage."""
        eps = rows["eps"] * stage.radius
        if self.begin == "random":
            pixels = self.ball.start(x, eps, rows["key"], "pgd", self.seed, stage.restart)
        else:
            pixels = x.clone()
        return {"pixels": pixels, "eps": eps}

    def step(self, harm: Harm, x: Tensor, rows: Rows, state: State, t: Tensor) -> State:
        """One ascent: the new pixels, and as `seen`, `value`, `score`, `flat` what was looked at."""
        look = ascent(harm, state["pixels"], rows, t)
        alpha = (self.relative_step * state["eps"]).view(-1, 1, 1, 1)
        moved = state["pixels"] + alpha * self.ball.steepest(look.gradient)
        return {
            "pixels": self.ball.project(x, moved, state["eps"]),
            "eps": state["eps"],
            "seen": state["pixels"],
            "value": look.value.expand(len(x)),
            "score": look.score,
            "flat": look.gradient.flatten(1).abs().amax(1) == 0,
        }

    def finish(self, harm: Harm, x: Tensor, rows: Rows, state: State) -> State:
        """The last iterate, judged without gradient: `seen` and `score`."""
        return {**state, "seen": state["pixels"], "score": judged(harm, state["pixels"], rows)}
