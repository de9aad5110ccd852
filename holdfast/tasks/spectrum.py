"""How many directions features fill: Roy and Vetterli, The Effective Rank, EUSIPCO 2007.

Features that have collapsed have a rank near 1, whatever the loss says (Garrido et al., RankMe, ICML 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(vectors: Tensor) -> float:
    """How many directions a set of vectors fills: the exponential of the entropy of its covariance's spectrum.

    Of the centred vectors, in float64.

    Args:
        vectors: [n, d].

    Returns:
        From 1 to min(n - 1, d); 0 where all vectors are equal.
    """
    spectrum = torch.linalg.svdvals((vectors - vectors.mean(0)).double()).square()
    total = spectrum.sum()
    if not float(total) > 0:
        return 0.0
    share = spectrum / total
    return float(torch.special.entr(share).sum().exp())
