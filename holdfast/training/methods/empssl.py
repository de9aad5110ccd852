"""EMP-SSL: Tong et al., Towards Self-Supervised Learning in One Training Epoch, 2023 (arXiv 2304.03977).

Many crops of an image are pulled to their mean, while the coding rate of each crop's batch is raised, so that features
span the space. With crops of any size, trained free-adversarially, it is CF-AMC-SSL (Ghofrani and Jamshidi 2024).
Adversarial: all crops are moved together so that this loss rises.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder
from holdfast.training.methods.method import Method, Policies, Views, mlp, said
from holdfast.training.ranks import gathered

EPSILON = 0.2
"""The square of the distortion, as published code has it: the rate is 1/2 logdet(I + d / (b * 0.2) Z^T Z)."""
SIMILARITY = 200.0


def coding_rate(z: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Total coding rate 1/2 logdet(I + s Z^T Z), s = d / (b epsilon), of each batch of rows, in float32.

    By det(I + A B) = det(I + B A) the smaller of the two Gram matrices is factored (Cholesky), and the gradient is
    s Z (I + s Z^T Z)^-1 in closed form: nothing is differentiated through the factorisation.

    Args:
        z: [..., b, d]; rows of length one in EMP-SSL.
        epsilon: see `EPSILON`.

    Returns:
        [...] in nats, at least 0.
    """
    rate: Tensor = _CodingRate.apply(z.float(), z.shape[-1] / (z.shape[-2] * epsilon))
    return rate


class _CodingRate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: float) -> Tensor:
        b, d = z.shape[-2:]
        with torch.autocast(z.device.type, enabled=False):
            gram = z @ z.mT if b <= d else z.mT @ z
            gram = (gram * scale).diagonal_scatter(1 + scale * gram.diagonal(dim1=-2, dim2=-1), dim1=-2, dim2=-1)
            factor = torch.linalg.cholesky_ex(gram).L
        ctx.save_for_backward(z, factor)
        ctx.scale = scale
        rate: Tensor = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return rate

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        z, factor = ctx.saved_tensors
        # The smaller matrix is inverted and multiplied: on a CPU batched triangular solves are several times as slow.
        inverse = torch.cholesky_inverse(factor)
        solved = inverse @ z if z.shape[-2] <= z.shape[-1] else z @ inverse
        return gradients[0][..., None, None] * ctx.scale * solved, None


def emp_loss(z: Tensor, similarity: float = SIMILARITY, epsilon: float = EPSILON) -> Tensor:
    """-similarity * mean cos(z_v, mean_v z) - mean_v coding_rate(z_v), in float32.

    The mean of the crops is neither detached nor scaled to length one, as published.

    Args:
        z: [v, b, d]: crops, images, dimensions; rows of length one.
        similarity: weight of the cosine.
        epsilon: see `EPSILON`.

    Returns:
        A scalar.
    """
    z = z.float()
    alike = cosine_similarity(z, z.mean(0, keepdim=True), dim=2)
    return -similarity * alike.mean() - coding_rate(z, epsilon).mean()


class EMPSSL(Method):
    """The loss of n crops of all ranks' images.

    Args:
        encoder: its pooled features are widened ("pre-feature"), then projected.
        dim: of the projection.
        hidden: width of the pre-feature and of the projector's hidden layer.
        similarity: weight of the cosine.
        policies: of the crops.
        attacked: all of them for adversarial training, `()` without.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        policies: Policies,
        dim: int = 1024,
        hidden: int = 4096,
        similarity: float = SIMILARITY,
        attacked: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pre_feature = nn.Sequential(nn.Linear(encoder.dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.projector = mlp((hidden, hidden, dim))
        self.similarity = similarity
        self.policies = policies
        self.attacked = attacked

    @property
    def neck(self) -> nn.Sequential:
        """The pre-feature, which published evaluation reads."""
        return self.pre_feature

    def project(self, x: Tensor) -> Tensor:
        """Projections of length one [b, dim] of pixels [b, 3, h, w]."""
        return normalize(self.projector(self.pre_feature(self.pooled(x))).float(), dim=1)

    def objective(self) -> str:
        """The loss and its crops."""
        attack = " All crops are perturbed together so that the loss rises." if self.attacked else ""
        policy = next(iter(self.policies.values()))
        return (
            f"EMP-SSL: {len(self.policies)} crops of each image are pulled to their mean (cosine, weight "
            f"{self.similarity:g}) while the total coding rate of each crop's batch is raised (epsilon {EPSILON:g}), "
            f"on a projection to {self.projector[-1].out_features} values behind a pre-feature of "
            f"{self.projector[0].in_features}.{attack} A view is {said(policy)}."
        )

    def truth(self, views: Views, rows: Rows) -> Rows:
        """Nothing: the crops are compared with each other."""
        return rows

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """The loss itself over all perturbed crops: a scalar, since the batch is coupled."""
        return self._loss(adversarial, adversarial)

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """The loss, perturbed crops in place of the clean."""
        return self._loss({**views, **adversarial}, adversarial)

    def _loss(self, views: Views, moved: Views) -> Tensor:
        z = self.each(self.project, views, moved)
        return emp_loss(torch.stack([gathered(rows) for rows in z.values()]), self.similarity)
