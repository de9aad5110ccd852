"""How far an embedding is from another one: what EmbedAttack raises (Kowalczuk et al. 2024, arXiv 2407.12588).

With z the embedding of the perturbed image, c that of the clean one (or of the image that is aimed at), d values each:

    mse         mean_j (z_j - c_j)^2                        the paper's "L2", and its default
    l2          ||z - c||                                   its length
    cosine      1 - <z, c> / (||z|| ||c||)                  the paper raises -cosine
    ce          -sum_j softmax(c / s(c))_j log softmax(z / s(z))_j,    s(v) = max(1, max_j v_j), a constant
    mse_std     mse((z - m) / sd, (c - m) / sd)             m and sd over the d values of c, sd with d - 1
    l2_std      l2((z - m) / sd, (c - m) / sd)
    cosine_std  cosine(z - m, c - m)
    ce_raw      -sum_j c_j log softmax(z)_j                 as the published code has it

`ce` reads embeddings as logits, with the rescaling that the paper gives to the logits of a head: a temperature, without
which the softmax of an embedding with one large value has no gradient left. The published cross-entropy of embeddings
(`ce_raw`) has no such rescaling, and its target is the clean embedding itself, negative values included, which is no
distribution: it is not smallest at z = c, and so no distance. It is here for comparison with published numbers alone.

All others are smallest at z = c, where their gradient is zero: an attack on them cannot begin at the clean image.
`mse_std` and `l2_std` are `mse` and `l2` times a constant of the image: the same attack for a step rule that knows
directions alone, another unit for a threshold or a mix.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity

Distance = Callable[[Tensor, Tensor], Tensor]


def mse(z: Tensor, clean: Tensor) -> Tensor:
    """Mean squared difference over the d values: [b, d] twice -> [b], in squared units of the encoder."""
    return (z - clean).square().mean(1)


def l2(z: Tensor, clean: Tensor) -> Tensor:
    """Euclidean distance: [b, d] twice -> [b], in units of the encoder; its gradient at 0 is 0, not NaN."""
    length: Tensor = vector_norm(z - clean, dim=1)
    return length


def cosine(z: Tensor, clean: Tensor) -> Tensor:
    """1 - cosine similarity: [b, d] twice -> [b] in [0, 2] up to rounding; 1 where one of them is zero."""
    return 1 - cosine_similarity(z, clean, dim=1)


def ce(z: Tensor, clean: Tensor) -> Tensor:
    """Cross-entropy of softmax(z) against softmax(clean), both rescaled: [b, d] twice -> [b] in nats.

    At least the entropy of softmax(clean / s), which it has at z = clean.
    """
    target = (clean / _largest(clean)).softmax(1)
    return -(target * (z / _largest(z)).log_softmax(1)).sum(1)


def ce_raw(z: Tensor, clean: Tensor) -> Tensor:
    """The published cross-entropy, its target the clean embedding as it is: [b, d] twice -> [b], of any sign."""
    return -(clean * z.log_softmax(1)).sum(1)


def mse_std(z: Tensor, clean: Tensor) -> Tensor:
    """`mse` in units of the variance of the clean embedding's values: [b, d] twice -> [b], without unit."""
    _, spread = _standard(clean)
    return mse(z, clean) / spread.squeeze(1).square()


def l2_std(z: Tensor, clean: Tensor) -> Tensor:
    """`l2` in units of the standard deviation of the clean embedding's values: [b, d] twice -> [b], without unit."""
    _, spread = _standard(clean)
    return l2(z, clean) / spread.squeeze(1)


def cosine_std(z: Tensor, clean: Tensor) -> Tensor:
    """`cosine` after the mean of the clean embedding's values is taken off both: [b, d] twice -> [b] in [0, 2].

    What all values have in common, which dominates the cosine of features after a ReLU, no longer counts.
    """
    mean, _ = _standard(clean)
    return cosine(z - mean, clean - mean)


DISTANCES: dict[str, Distance] = {
    function.__name__: function for function in (mse, l2, cosine, ce, mse_std, l2_std, cosine_std, ce_raw)
}
"""All of them by name; the first is the default."""


def _largest(logits: Tensor) -> Tensor:
    """The published temperature of each row, [b, 1]: its largest value, at least 1; a constant to the gradient."""
    return logits.detach().amax(1, keepdim=True).clamp_min(1)


def _standard(clean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d - 1) of each row's values, [b, 1] each; 1 where there is no deviation."""
    if clean.shape[1] < 2:
        return clean.mean(1, keepdim=True), clean.new_ones(len(clean), 1)
    mean, spread = clean.mean(1, keepdim=True), clean.std(1, keepdim=True)
    return mean, spread.where(spread > 0, 1)
