"""Square: Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via random search, ECCV
2020 (arXiv 1912.00049).

    x_0 = vertical stripes;  z = x_t with one square window changed;  x_{t+1} = z if score(z) > score(x_t) else x_t

No gradient. A proposal moves every channel of its window to one of the two walls of the ball (Linf), or moves mass
between two windows (L2, L1: `square_l2`); the window shrinks as published, on a schedule scaled to the number of steps.
As in the published code, signs that would change nothing are drawn again, so that no look is wasted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast import draws
from holdfast.attacks.balls import L1, L2, Ball, Linf
from holdfast.attacks.executor import Stage, State
from holdfast.attacks.harm import Harm, Rows, judged
from holdfast.attacks.square_l2 import MASS_WORDS, moved_l1, moved_l2, tiled_l1, tiled_l2
from holdfast.attacks.square_windows import halvings, sides, signs, windows
from holdfast.errors import ConfigError


class Search(NamedTuple):
    """What a norm needs to know of the search.

    Attributes:
        first: (clean pixels [b, c, h, w], eps [b], streams int64 [b]) -> where the search begins, in ball and box.
        lanes: words that a proposal draws.
        odd: whether windows have a middle.
        move: (x, best, eps, words [b, lanes], halvings [b], sides) -> the proposal, in ball and box.
    """

    first: Callable[[Tensor, Tensor, Tensor], Tensor]
    lanes: int
    odd: bool
    move: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[int, ...]], Tensor]


def stripes(x: Tensor, eps: Tensor, streams: Tensor) -> Tensor:
    """Every column of every channel at one wall of the cube, drawn at step 0 of the streams: like `x`."""
    b, c, _, w = x.shape
    sign = signs(draws.words(streams, torch.zeros_like(streams), c * w), 1).view(b, c, 1, w)
    return (x + sign * eps.to(x).view(-1, 1, 1, 1)).clamp(0, 1)


def moved_linf(
    x: Tensor, best: Tensor, eps: Tensor, words: Tensor, halved: Tensor, side: tuple[int, ...]
) -> Tensor:  # parameters: those of `Search.move`
    """Every channel of one window to a wall of the cube.

    Where the signs drawn would change nothing, others are drawn among those that do.

    Args:
        x: clean pixels [b, c, h, w].
        best: the best iterate, like `x`.
        eps: radius [b].
        words: of `draws.words`, [b, 4].
        halved: how often the window was halved, [b].
        side: of a window, by that.
    """
    c, h, w = x.shape[1:]
    own = _sides(halved, side)
    (window,) = windows(words[:, :2], own, int(own.max()), h, w)
    clean, radius = window.cut(x), eps.to(x).view(-1, 1, 1, 1)
    sign = signs(words[:, 2], c).to(x)[:, None, None, :]
    same = ((clean + sign * radius).clamp(0, 1) == window.cut(best)).flatten(1).all(1)
    others = signs(1 + draws.below(words[:, 3], 2**c - 1), c).to(x)[:, None, None, :]
    sign = torch.where(same.view(-1, 1, 1, 1), -sign * others, sign)
    proposal = best.clone()
    window.paste(proposal, (clean + sign * radius).clamp(0, 1))
    return proposal


SEARCHES: dict[type, Search] = {
    Linf: Search(stripes, 4, False, moved_linf),
    L2: Search(tiled_l2, MASS_WORDS, True, moved_l2),
    L1: Search(tiled_l1, MASS_WORDS, True, moved_l1),
}


def _sides(halved: Tensor, side: tuple[int, ...]) -> Tensor:
    return torch.tensor(side, device=halved.device)[halved]


@dataclass(frozen=True)
class Square:
    """Start, step, finish of Square.

    It raises the score itself and reads neither push nor target, so that it attacks whatever can be judged.

    Attributes:
        ball: Linf, L2 or L1.
        steps: proposals; together with the start, `steps` + 1 looks.
        seed: of everything drawn, which is keyed by image, restart and step.
        p: share of the image that a window covers at first.
        schedule: proposals over which windows shrink as published; 0 = `steps`, whatever they are. AutoAttack keeps to
            10,000 and so, of 5,000 queries, sees the first half of it.
    """

    ball: Ball
    steps: int = 5000
    seed: int = 0
    p: float = 0.8
    schedule: int = 0

    def start(self, harm: Harm, x: Tensor, rows: Rows, stage: Stage) -> State:
        """State at the start: `pixels` to be looked at next, `best` with its score `most`, and what draws depend on."""
        eps = rows["eps"] * stage.radius
        streams = draws.streams(rows["key"], "square", self.seed, stage.restart)
        given = stage.carry and "begin" in rows
        first = self.ball.project(x, rows["begin"], eps) if given else self._search().first(x, eps, streams)
        return {
            "pixels": first,
            "best": x.clone(),
            "most": torch.full_like(eps, -torch.inf),
            "count": torch.zeros_like(streams),
            "stream": streams,
            "eps": eps,
        }

    def step(self, harm: Harm, x: Tensor, rows: Rows, state: State, t: Tensor) -> State:
        """One look at the pending proposal, which is taken if it scores more than the best, and the next proposal."""
        score = judged(harm, state["pixels"], rows)
        better = score > state["most"]
        best = torch.where(better.view(-1, 1, 1, 1), state["pixels"], state["best"])
        count, search = state["count"], self._search()
        words = draws.words(state["stream"], count + 1, search.lanes)
        side = sides(self.p, x.shape[2], x.shape[3], odd=search.odd)
        no = torch.zeros_like(better)
        return {
            **state,
            "pixels": search.move(x, best, state["eps"], words, halvings(count, self.schedule or self.steps), side),
            "best": best,
            "most": torch.where(better, score.to(state["most"]), state["most"]),
            "count": count + 1,
            "seen": state["pixels"],
            "value": score,
            "score": score,
            "flat": no,
            "broken": no,
        }

    def finish(self, harm: Harm, x: Tensor, rows: Rows, state: State) -> State:
        """The last proposal, judged: `seen` and `score`; a later stage may `carry` on from the best of all."""
        last = state["pixels"]
        score = judged(harm, last, rows)
        carry = torch.where((score > state["most"]).view(-1, 1, 1, 1), last, state["best"])
        return {**state, "seen": last, "score": score, "carry": carry}

    def _search(self) -> Search:
        found = SEARCHES.get(type(self.ball))
        if found is None:
            known = ", ".join(ball.__name__ for ball in SEARCHES)
            raise ConfigError(f"Square knows no ball {type(self.ball).__name__}.", next=f"It knows {known}.")
        return found
