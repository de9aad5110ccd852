"""What a run measures of its encoder on the images that it holds out, so that collapse is seen early."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast import draws
from holdfast.models.encoder import Encoder, frozen
from holdfast.tasks.neighbours import knn_accuracy
from holdfast.tasks.spectrum import effective_rank
from holdfast.training.batchnorm import routed
from holdfast.training.pool import Pool

_BANK = 10_000
_CHUNK = 256


def held_out(encoder: Encoder, pool: Pool, *, seed: int, perturbed: bool = False) -> dict[str, float]:
    """kNN accuracy and effective rank of the held-out images' features, and the accuracy of the encoder's head.

    Args:
        encoder: as it is; modes and buffers are restored.
        pool: neighbours are at most 10,000 of its training images.
        seed: of their choice.
        perturbed: whether a dual BatchNorm uses its set for perturbed images.

    Returns:
        "knn_accuracy" and "accuracy" (where there is a head) in [0, 1], "effective_rank" in [1, d], "width" d; empty
        where nothing is held out.
    """
    if not len(pool.held) or pool.labels is None:
        return {}
    bank = pool.train[torch.tensor(draws.subset(len(pool.train), _BANK, seed, "neighbours"))]
    with frozen(encoder), torch.no_grad(), routed(encoder, perturbed=perturbed):
        vectors, queries = _embedded(encoder, pool, bank), _embedded(encoder, pool, pool.held)
        truth = pool.labels[pool.held]
        found = {
            "knn_accuracy": knn_accuracy(queries, truth, vectors, pool.labels[bank]),
            "effective_rank": effective_rank(queries),
            "width": float(queries.shape[1]),
        }
        if encoder.head is not None:
            right = encoder.head(queries).argmax(1).cpu() == truth
            found["accuracy"] = float(right.float().mean())
    return found


def _embedded(encoder: Encoder, pool: Pool, numbers: Tensor) -> Tensor:
    return torch.cat([encoder(pool.pixels(part)).pooled for part in torch.split(numbers, _CHUNK)])
