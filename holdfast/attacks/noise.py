"""Random noise: the control that every attack has to beat. It looks at random points of the ball, and at no gradient.

    x_t = random point of ball and box, t = 0 .. steps, each drawn by (seed, image, restart, t)

The worst of them by score is kept. An encoder on which it finds as much as an attack by gradient hides its
gradients (Athalye et al. 2018, arXiv 1802.00420; Carlini et al. 2019, arXiv 1902.06705).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast import draws
from holdfast.attacks.balls import Ball
from holdfast.attacks.executor import Stage, State
from holdfast.attacks.harm import Harm, Rows, judged


@dataclass(frozen=True)
class Noise:
    """Start, step, finish of random noise.

    Attributes:
        ball: whose `start` says how a point is drawn.
        steps: points that are looked at, one more with the last.
        seed: of the draws.
    """

    ball: Ball
    steps: int
    seed: int = 0

    def start(self, harm: Harm, x: Tensor, rows: Rows, stage: Stage) -> State:
        """State at the start: `pixels` [b, 3, h, w], `eps` [b] and `restart` [b] of this stage, `drawn` [b] = 0."""
        eps = rows["eps"] * stage.radius
        drawn = torch.zeros_like(rows["key"])
        restart = torch.full_like(drawn, stage.restart)
        return {"pixels": self._point(x, rows, eps, restart, drawn), "eps": eps, "restart": restart, "drawn": drawn}

    def step(self, harm: Harm, x: Tensor, rows: Rows, state: State, t: Tensor) -> State:
        """The next point, and what the one before was worth; nothing is raised, so that `value` is the score."""
        score = judged(harm, state["pixels"], rows)
        drawn, none = state["drawn"] + 1, torch.zeros_like(score, dtype=torch.bool)
        return {
            **state,
            "pixels": self._point(x, rows, state["eps"], state["restart"], drawn),
            "drawn": drawn,
            "seen": state["pixels"],
            "value": score,
            "score": score,
            "flat": none,
            "broken": none,
        }

    def finish(self, harm: Harm, x: Tensor, rows: Rows, state: State) -> State:
        """The last point as `seen` and `carry`, and its `score`."""
        last = state["pixels"]
        return {**state, "seen": last, "score": judged(harm, last, rows), "carry": last}

    def _point(self, x: Tensor, rows: Rows, eps: Tensor, restart: Tensor, drawn: Tensor) -> Tensor:
        """A point for every row. Rows of one batch are at different steps: each draw has a key of its own."""
        each = zip(rows["key"].tolist(), restart.tolist(), drawn.tolist(), strict=True)
        keys = torch.tensor([draws.key(*parts) for parts in each], dtype=torch.int64, device=x.device)
        return self.ball.start(x, eps, keys, "noise", self.seed)
