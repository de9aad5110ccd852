"""The one training step: theta = descend( loss(theta; views, views + delta*) ). Every recipe passes through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.data.batches import Rows
from holdfast.models.encoder import frozen
from holdfast.training.adversary import Adversary
from holdfast.training.methods.method import Method


@dataclass(frozen=True)
class Trainee:
    """What a step works on.

    Attributes:
        method: the bare module, on which the adversary ascends.
        wrapped: the same as a distributed wrapper sees it, on which the weights descend.
        optimizer: of the weights.
        adversary: where the perturbation comes from.
        backward: back-propagates a loss.
    """

    method: Method
    wrapped: Callable[..., Tensor]
    optimizer: torch.optim.Optimizer
    adversary: Adversary
    backward: Callable[[Tensor], object]


def train_step(trainee: Trainee, x: Tensor, rows: Rows) -> Tensor:
    """Draw views, let the adversary move them, descend; once per replay.

    Args:
        trainee: what is trained; its parameters, buffers and optimizer change.
        x: float32 [b, 3, h, w] in [0, 1].
        rows: "key" int64 [b] and whatever the method needs, on the device of `x` (the key on the CPU).

    Returns:
        The loss before the last descent: a detached scalar, not yet waited for.
    """
    method, adversary = trainee.method, trainee.adversary
    with torch.no_grad():
        views = method.views(x, rows)
        with frozen(method, norm=adversary.norm):
            truth = method.truth(views, rows)
    loss = x.new_zeros(())
    for _ in range(adversary.replays):
        adversarial = adversary.propose(method, views, truth)
        trainee.optimizer.zero_grad(set_to_none=True)
        loss = trainee.wrapped(views, adversarial, truth)
        trainee.backward(loss)
        trainee.optimizer.step()
        adversary.learn()
        method.update()
    return loss.detach()
