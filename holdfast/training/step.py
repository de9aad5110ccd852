"""The one training step: theta = descend( loss(theta; views, views + delta*) ). Every recipe passes through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.data.batches import Rows
from holdfast.models.encoder import frozen
from holdfast.training.adversary import Adversary
from holdfast.training.methods.method import Method, Views
from holdfast.training.schedule import Pace


@dataclass(frozen=True)
class Trainee:
    """What a step works on.

    Attributes:
        method: the bare module, on which the adversary ascends.
        wrapped: the same as a distributed wrapper sees it, on which the weights descend.
        optimizer: of the weights.
        adversary: where the perturbation comes from.
        backward: back-propagates a loss.
        pace: the learning rate of every optimizer step; None = as the optimizer has it.
    """

    method: Method
    wrapped: Callable[..., Tensor]
    optimizer: torch.optim.Optimizer
    adversary: Adversary
    backward: Callable[[Tensor], object]
    pace: Pace | None = None


def train_step(trainee: Trainee, views: Views, rows: Rows, number: int = 0) -> Tensor:
    """Let the adversary move the views, descend; once per replay.

    Args:
        trainee: what is trained; its parameters, buffers and optimizer change.
        views: as `Method.views` drew them.
        rows: "key" int64 [b] and whatever the method needs, on the device of the views (the key on the CPU).
        number: of the batch, 0 for the run's first; the learning rate follows the optimizer steps before it.

    Returns:
        The loss before the last descent: a detached scalar, not yet waited for.
    """
    method, adversary = trainee.method, trainee.adversary
    with torch.no_grad(), frozen(method, norm=adversary.norm):
        truth = method.truth(views, rows)
    loss = torch.zeros(())
    for replay in range(adversary.replays):
        _pace(trainee, number * adversary.replays + replay)
        trainee.optimizer.zero_grad(set_to_none=True)
        adversarial = adversary.propose(method, views, truth)
        loss = trainee.wrapped(views, adversarial, truth)
        trainee.backward(loss)
        trainee.optimizer.step()
        adversary.learn()
        method.update()
    return loss.detach()


def _pace(trainee: Trainee, step: int) -> None:
    if trainee.pace is None:
        return
    rate = trainee.pace.rate(step)
    for group in trainee.optimizer.param_groups:
        group["lr"] = rate
    trainee.method.done = trainee.pace.done(step)
