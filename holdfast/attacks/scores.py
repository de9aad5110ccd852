"""Functions of logits that attacks raise or are judged by; all per image, higher = worse for the defender."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12
"""Keeps a ratio of logits finite where they are all equal, as published."""


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy in nats: logits [b, k], label int64 [b] -> [b]."""
    return torch.nn.functional.cross_entropy(logits, label, reduction="none")


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """Best other logit minus the true one (Carlini and Wagner 2017): [b, k], [b] -> [b]; above 0 = misclassified.

    A tie counts against the attack: at 0 the image is not lost.
    """
    true = logits.gather(1, label[:, None]).squeeze(1)
    others = logits.scatter(1, label[:, None], -torch.inf)
    return others.amax(1) - true


def difference(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """Logit of `target` minus that of `label`: [b, k], int64 [b] twice -> [b]; above 0 = the target is preferred."""
    return logits.gather(1, target[:, None]).squeeze(1) - logits.gather(1, label[:, None]).squeeze(1)


def dlr(logits: Tensor, label: Tensor) -> Tensor:
    """Difference of logits ratio: [b, k], int64 [b] -> [b]; above 0 = misclassified.

        (best other logit - true logit) / (z_1 - z_3 + 1e-12),    z_1 >= z_2 >= ... the sorted logits

    It changes neither when a constant is added to the logits nor when they are scaled, so that no scale hides the
    gradient (Croce and Hein 2020, arXiv 2003.01690). With 2 classes there is no z_3: the plain margin, not scale free.
    """
    if logits.shape[1] < 3:
        return margin(logits, label)
    top = logits.topk(3, dim=1).values
    return margin(logits, label) / (top[:, 0] - top[:, 2] + TINY)


def dlr_target(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio towards a class: [b, k], int64 [b] twice -> [b]; above 0 = the target is preferred.

        (target logit - true logit) / (z_1 - (z_3 + z_4) / 2 + 1e-12),    z_1 >= z_2 >= ... the sorted logits

    Croce and Hein 2020 (arXiv 2003.01690). With 3 classes there is no z_4 and z_1 - z_3 is below the line; with 2 there
    is none: the plain difference, which is not scale free.
    """
    raised = difference(logits, label, target)
    if logits.shape[1] < 3:
        return raised
    top = logits.topk(min(logits.shape[1], 4), dim=1).values
    return raised / (top[:, 0] - top[:, 2:].mean(1) + TINY)
