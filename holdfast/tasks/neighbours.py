"""Cosine neighbours and their vote: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
Discrimination, CVPR 2018.

The k nearest of a bank vote with the weight exp(cosine / 0.07), as in DINO (Caron et al., ICCV 2021, k = 20), or with
equal weights. Nothing is fitted, so that the accuracy has no protocol but k and the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from holdfast.errors import DataError, TrustError

K = 20
TEMPERATURE = 0.07


def nearest_neighbours(
    queries: Tensor, bank: Tensor, k: int, *, exclude: Tensor | None = None, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """The k rows of a bank with the largest cosine to each query.

    Args:
        queries: [q, d], of any length.
        bank: [n, d], of any length.
        k: how many.
        exclude: bool [q, n]: rows of the bank that are no neighbours of a query (itself, where the bank holds it).
        chunk: queries whose cosines are in memory together; changes the speed alone.

    Returns:
        Cosines float32 [q, k], descending, and indices into the bank, int64 [q, k].

    Raises:
        DataError: the bank holds fewer than k others.
        TrustError: features that are not finite.
    """
    others = len(bank) if exclude is None or not len(queries) else int((~exclude).sum(1).min())
    if not 1 <= k <= others:
        raise DataError(f"{k} neighbours of {others} images.", next=f"Take k from 1 to {others}, or more images.")
    unit = _unit(bank)
    cosines, indices = [], []
    for start in range(0, len(queries), chunk):
        close = _unit(queries[start : start + chunk]) @ unit.T
        if exclude is not None:
            close = close.masked_fill_(exclude[start : start + chunk].to(close.device), -torch.inf)
        best = close.topk(k, dim=1)
        cosines.append(best.values)
        indices.append(best.indices)
    if not cosines:
        return unit.new_empty((0, k)), torch.empty((0, k), dtype=torch.int64, device=unit.device)
    return torch.cat(cosines), torch.cat(indices)


def votes(similarity: Tensor, labels: Tensor, *, classes: int, temperature: float | None = TEMPERATURE) -> Tensor:
    """The votes of neighbours.

    Args:
        similarity: their cosines, [q, k].
        labels: their labels, int64 [q, k] in 0..classes-1.
        classes: how many there are.
        temperature: the weight is exp(cosine / temperature), relative to the nearest neighbour's; None = one vote each,
            and the sum of cosines decides a draw.

    Returns:
        float64 [q, classes], not negative; the largest wins.
    """
    near = similarity.double()
    if temperature is None:
        weight = 1 + (1 + near) / (2 * near.shape[1] + 1)
    else:
        weight = ((near - near.amax(1, keepdim=True)) / temperature).exp()
    return weight.new_zeros(len(near), classes).scatter_add_(1, labels, weight)


def knn_predict(similarity: Tensor, labels: Tensor, *, classes: int, temperature: float | None = TEMPERATURE) -> Tensor:
    """The class that the neighbours vote for, int64 [q]; arguments as `votes`."""
    return votes(similarity, labels, classes=classes, temperature=temperature).argmax(1)


def knn_accuracy(queries: Tensor, truth: Tensor, bank: Tensor, labels: Tensor, *, k: int = K) -> float:
    """Share of queries whose class the weighted vote of their k nearest finds, in [0, 1].

    Args:
        queries: [q, d], q > 0.
        truth: their labels, int64 [q].
        bank: [n, d].
        labels: of the bank, int64 [n].
        k: neighbours that vote.

    Raises:
        DataError: as `nearest_neighbours`.
    """
    similarity, index = nearest_neighbours(queries, bank, k)
    predicted = knn_predict(similarity, labels.to(index.device)[index], classes=int(labels.max()) + 1)
    return int((predicted == truth.to(predicted.device)).sum()) / len(truth)


def _unit(features: Tensor) -> Tensor:
    unit = normalize(features.detach().float(), dim=1)
    if not bool(torch.isfinite(unit).all()):
        raise TrustError("Features are not finite: they have no neighbours.", next="Look for NaN in the encoder.")
    return unit
