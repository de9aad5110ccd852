"""Cosine neighbours and their vote: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
Discrimination, CVPR 2018.

The k nearest of a bank vote with the weight exp(cosine / 0.07), as in DINO (Caron et al., ICCV 2021, k = 20), or with
equal weights. Nothing is fitted, so that the accuracy has no protocol but k and the weight. How far a changed image has
left its place among others: `breakaway` (Petrov and Kwiatkowska 2022, arXiv 2210.04076) and `neighbours_kept` (Lin and
Smith 2019, arXiv 1909.10724).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from holdfast.errors import DataError, TrustError

K = 20
TEMPERATURE = 0.07
TIED = 1e-12
"""Squared distances that differ by less, in units of the squared lengths, are equal."""


def nearest_neighbours(
    queries: Tensor, bank: Tensor, k: int, *, exclude: Tensor | None = None, chunk: int = 1024, scaled: bool = False
) -> tuple[Tensor, Tensor]:  # parameters: two sets, and how they are compared
    """The k rows of a bank with the largest cosine to each query.

    Args:
        queries: [q, d], of any length.
        bank: [n, d], of any length.
        k: how many.
        exclude: bool [q, n]: rows of the bank that are no neighbours of a query (itself, where the bank holds it).
        chunk: queries whose cosines are in memory together; changes the speed alone.
        scaled: whether the rows of the bank have length 1 already.

    Returns:
        Cosines float32 [q, k], descending, and indices into the bank, int64 [q, k].

    Raises:
        DataError: the bank holds fewer than k others.
        TrustError: features that are not finite.
    """
    others = len(bank) if exclude is None or not len(queries) else int((~exclude).sum(1).min())
    if not 1 <= k <= others:
        raise DataError(f"{k} neighbours of {others} images.", next=f"Take k from 1 to {others}, or more images.")
    known = bank if scaled else unit(bank)
    cosines, indices = [], []
    for start in range(0, len(queries), chunk):
        close = unit(queries[start : start + chunk]) @ known.T
        if exclude is not None:
            close = close.masked_fill_(exclude[start : start + chunk].to(close.device), -torch.inf)
        best = close.topk(k, dim=1)
        cosines.append(best.values)
        indices.append(best.indices)
    if not cosines:
        return known.new_empty((0, k)), torch.empty((0, k), dtype=torch.int64, device=known.device)
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


def vote_margin(
    similarity: Tensor, labels: Tensor, label: Tensor, *, classes: int, temperature: float | None = TEMPERATURE
) -> Tensor:
    """Share of the votes of the best other class minus that of `label`: above 0 = the vote is for another one.

    Args:
        similarity: as `votes`.
        labels: as `votes`.
        label: int64 [q]; one that the bank does not hold has no votes.
        classes: as `votes`.
        temperature: as `votes`.

    Returns:
        float32 [q] in [-1, 1]; a draw is 0, and lost by nobody. It rests at -1 while all neighbours are of one class.
    """
    cast = votes(similarity, labels, classes=classes, temperature=temperature)
    own = torch.arange(classes, device=cast.device) == label[:, None]
    others = cast.masked_fill(own, 0).amax(1)
    return ((others - (cast * own).sum(1)) / cast.sum(1)).float()


def breakaway(changed: Tensor, clean: Tensor, bank: Tensor, *, exclude: Tensor) -> Tensor:
    """Share of a bank that is nearer to a changed image than its own clean embedding is, by L2 distance.

    Its mean is the breakaway risk of Petrov and Kwiatkowska 2022: how likely another image is the better match. (Their
    published script divides the count of its last batch by the number of all images.)

    Args:
        changed: [q, d].
        clean: [q, d].
        bank: clean embeddings [n, d].
        exclude: bool [q, n]: rows of the bank that are the image itself.

    Returns:
        float32 [q] in [0, 1]; 0 = the image is still its own nearest match.
    """
    # The matrix product loses digits of short distances; in float64 those that are left are more than float32 had.
    z, known = changed.double(), bank.double()
    lengths = z.square().sum(1, keepdim=True) + known.square().sum(1)
    own = (z - clean.double()).square().sum(1, keepdim=True)
    others = ~exclude
    # As far as the own one is not nearer, whatever the last digits say.
    nearer: Tensor = ((lengths - 2 * z @ known.T < own - TIED * lengths) & others).sum(1)
    return nearer.float() / others.sum(1).clamp_min(1)


def neighbours_kept(after: Tensor, before: Tensor) -> Tensor:
    """Share of the k neighbours of the clean image that are among those of the changed one.

    Nearest-neighbour overlap (Lin and Smith 2019), here of one encoder before and after.

    Args:
        after: indices into a bank, int64 [q, k], no index twice in a row.
        before: as `after`.

    Returns:
        float32 [q] in [0, 1].
    """
    return (after[:, :, None] == before[:, None]).any(2).float().mean(1)


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


def unit(features: Tensor) -> Tensor:
    """Features [n, d] at length 1, float32.

    Raises:
        TrustError: one is not finite.
    """
    scaled = normalize(features.detach().float(), dim=1)
    if not bool(torch.isfinite(scaled).all()):
        raise TrustError("Features are not finite: they have no neighbours.", next="Look for NaN in the encoder.")
    return scaled
