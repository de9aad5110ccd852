"""The pace of Auto-PGD in an L1 ball: Croce and Hein, Mind the box: l1-APGD for sparse adversarial attacks on image
classifiers, ICML 2021 (arXiv 2103.01208).

    x_{t+1} = project(x_t + alpha * sign(g) / |sign(g)|_1),    g = the share k of the gradient that is largest in size

Every 4 % of the steps, k becomes 2/3 of the share of values that the best iterate changes. Where these are fewer than
before, by more than 5 %, the row goes back to that iterate, with alpha = eps again; elsewhere alpha is divided by 1.5,
down to eps / 10. The projection is onto the intersection of ball and box, which is the point of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.balls import Ball, Begin
from holdfast.attacks.executor import State


@dataclass(frozen=True)
class Sparse:
    """Steps along the largest gradients, as many as the best iterate so far suggests.

    Attributes:
        every: looks between checkpoints, as a share of all.
        share: of the gradient that the first steps follow, where the start is not given.
        shrink: divides alpha, and the sparsity of the best iterate.
        shortest: alpha, in units of eps.
        fewer: values changed, in units of those at the last checkpoint, below which a row goes back.
    """

    every: float = 0.04
    share: float = 0.2
    shrink: float = 1.5
    shortest: float = 0.1
    fewer: float = 0.95

    def start(self, x: Tensor, pixels: Tensor, eps: Tensor, steps: int, begin: Begin) -> dict[str, Tensor]:
        """`alpha`; `wait` and `since` (looks up to the next checkpoint, since the last); `changed` (values of the best
        iterate) and `followed` (share of the gradient)."""
        none = torch.zeros_like(eps, dtype=torch.int64)
        changed = _changed(x, pixels) if begin == "given" else torch.full_like(eps, x[0].numel())
        followed = self._followed(changed, x) if begin == "given" else torch.full_like(eps, self.share)
        return {
            "alpha": eps,
            "wait": none + max(int(self.every * steps), 1),
            "since": none,
            "changed": changed,
            "followed": followed,
        }

    def check(self, x: Tensor, state: State, value: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """A row goes back where its best iterate has become sparser."""
        since = state["since"] + (state["looks"] > 0)
        due = since == state["wait"]
        changed = _changed(x, state["best"])
        back = due & (changed < self.fewer * state["changed"])
        shorter = torch.maximum(state["alpha"] / self.shrink, self.shortest * state["eps"])
        return {
            "alpha": torch.where(back, state["eps"], torch.where(due, shorter, state["alpha"])),
            "wait": state["wait"],
            "since": since.where(~due, 0),
            "changed": torch.where(due, changed, state["changed"]),
            "followed": torch.where(due, self._followed(changed, x), state["followed"]),
        }, back

    def move(self, ball: Ball, x: Tensor, here: Tensor, gradient: Tensor, state: State) -> Tensor:
        """A projected step of length alpha, the same in each of the values that it changes."""
        signs = torch.where(gradient.abs() >= _threshold(gradient, state["followed"]), gradient.sign(), 0)
        length = ball.norm(signs).clamp_min(1)
        return ball.project(x, here + (state["alpha"] / length).view(-1, 1, 1, 1) * signs, state["eps"])

    def _followed(self, changed: Tensor, x: Tensor) -> Tensor:
        return changed / x[0].numel() / self.shrink


def _changed(x: Tensor, pixels: Tensor) -> Tensor:
    """How many values of each image differ, [b]."""
    return (pixels != x).flatten(1).sum(1).to(x)


def _threshold(gradient: Tensor, share: Tensor) -> Tensor:
    """The size of which a share of each row's values is at least, [b, 1, 1, 1]; one value at the least."""
    sizes = gradient.flatten(1).abs()
    n = sizes.shape[1]
    count = n - ((1 - share) * n).clamp(0, n - 1).long()
    # Only as many are sorted as the least sparse row needs.
    largest = sizes.topk(int(count.max()), dim=1).values
    return largest.gather(1, count.view(-1, 1) - 1).view(-1, 1, 1, 1)
