"""Functions of logits that attacks raise or are judged by; all per image, higher = worse for the defender."""

from __future__ import annotations

import torch
from torch import Tensor


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
