"""Where the perturbation of a training step comes from: nowhere, or projected gradient ascent.

Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from holdfast.attacks.balls import Ball
from holdfast.data.batches import Rows
from holdfast.models.encoder import frozen
from holdfast.training.methods.method import Method, Views

BatchNorm = Literal["eval", "batch"]


class Adversary(Protocol):
    """What perturbs the views of a batch.

    Attributes:
        replays: optimizer steps per batch.
        norm: BatchNorm of the clean branch and of the ascent: `batch` = statistics of the batch, `eval` = running ones.
            Running statistics never change through either.
    """

    @property
    def replays(self) -> int: ...

    @property
    def norm(self) -> BatchNorm: ...

    def propose(self, method: Method, views: Views, truth: Rows) -> dict[str, Tensor]:
        """The attacked views of `method`, perturbed: inside the ball, inside [0, 1], detached."""
        ...

    def learn(self) -> None:
        """Called after each backward pass, with the gradients of the loss in place."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


@dataclass(frozen=True)
class Stateless:
    """An adversary that carries nothing from one batch to the next."""

    @property
    def replays(self) -> int:
        """One optimizer step per batch."""
        return 1

    def learn(self) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


@dataclass(frozen=True)
class NoAdversary(Stateless):
    """Standard training."""

    @property
    def norm(self) -> BatchNorm:
        """Of a clean branch, for methods that have one all the same."""
        return "batch"

    def propose(self, method: Method, views: Views, truth: Rows) -> dict[str, Tensor]:
        """No perturbed view."""
        return {}


@dataclass(frozen=True)
class PGD(Stateless):
    """A fixed number of ascent steps on `method.harm` from a random start, which is keyed by image and epoch.

    The ascent sees the bare method with its parameters frozen, so that no gradient of it reaches the weights; its modes
    and buffers are restored. The last iterate is taken, as in training always.

    Attributes:
        ball: where the perturbation may go.
        eps: radius in pixel units.
        alpha: step in pixel units.
        steps: gradient steps.
        norm: BatchNorm during the ascent, see `Adversary`.
    """

    ball: Ball
    eps: float
    alpha: float
    steps: int
    norm: BatchNorm = "batch"

    def propose(self, method: Method, views: Views, truth: Rows) -> dict[str, Tensor]:
        """The last iterate of the ascent, one perturbation per attacked view, all raised together."""
        clean = {name: views[name].detach() for name in method.attacked}
        keys = truth["key"]
        radius = torch.full((len(keys),), self.eps, device=next(iter(clean.values())).device)
        moved = {name: self.ball.start(x, radius, keys, "adversary", name) for name, x in clean.items()}
        with frozen(method, norm=self.norm), torch.enable_grad():
            for step in range(self.steps):
                seen = {name: x.requires_grad_() for name, x in moved.items()}
                harm = method.harm(seen, truth, torch.full_like(radius, step / self.steps)).sum()
                gradients = torch.autograd.grad(harm, list(seen.values()))
                moved = {
                    name: self.ball.project(
                        clean[name], (x + self.alpha * self.ball.steepest(gradient)).detach(), radius
                    )
                    for (name, x), gradient in zip(seen.items(), gradients)
                }
        return moved
