"""Barlow Twins: Zbontar et al., Self-Supervised Learning via Redundancy Reduction, ICML 2021 (arXiv 2103.03230).

The cross-correlation of two views' projections over the batch is pulled to the identity. Adversarial: the second view
is moved within the ball so that its correlation with the clean first leaves it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder
from holdfast.training.methods.method import FIRST, SECOND, Method, Policies, Views, mlp, said
from holdfast.training.ranks import gathered
from holdfast.views import SIMCLR_CIFAR

TARGET = "clean_first"
LAMBDA = 0.005
_EPS = 1e-5


def barlow_loss(first: Tensor, second: Tensor, weight: float = LAMBDA) -> Tensor:
    """Distance of the cross-correlation from the identity, in float32 (equations 1 and 2 of the paper).

    Each dimension is standardised over the batch (population variance, 1e-5 added), as the published BatchNorm does.

    Args:
        first: [b, d].
        second: [b, d].
        weight: of the squares off the diagonal.

    Returns:
        sum (1 - C_ii)^2 + weight * sum C_ij^2, a scalar.
    """
    c = _standard(first.float()).T @ _standard(second.float()) / len(first)
    on = c.diagonal()
    return (1 - on).square().sum() + weight * (c.square().sum() - on.square().sum())


def _standard(z: Tensor) -> Tensor:
    centred = z - z.mean(0)
    return centred * (centred.square().mean(0) + _EPS).rsqrt()


class BarlowTwins(Method):
    """The loss of two views of all ranks' images.

    Args:
        encoder: its pooled features are projected.
        dim: of the projection and of the projector's two hidden layers.
        weight: of redundancy, lambda of the paper.
        policies: of the two views.
        attacked: `("second",)` for adversarial training, `()` without.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 2048,
        weight: float = LAMBDA,
        policies: Policies | None = None,
        attacked: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp((encoder.dim, dim, dim, dim))
        self.weight = weight
        self.policies = policies or {FIRST: SIMCLR_CIFAR, SECOND: SIMCLR_CIFAR}
        self.attacked = attacked

    def project(self, x: Tensor) -> Tensor:
        """Projections [b, dim] of pixels [b, 3, h, w]."""
        projected: Tensor = self.projector(self.pooled(x))
        return projected

    def objective(self) -> str:
        """The correlation and its views."""
        attack = " The second view is perturbed so that the loss with the clean first rises." if self.attacked else ""
        return (
            "Barlow Twins: the cross-correlation between two views, over the batch, is pulled to the identity (squares "
            f"off the diagonal weigh {self.weight:g}), on a projection to {self.projector[-1].out_features} "
            f"values.{attack} A view is {said(self.policies[FIRST])}."
        )

    @torch.no_grad()
    def truth(self, views: Views, rows: Rows) -> Rows:
        """Adds the projection of the clean first view, where the second is to be attacked."""
        return {**rows, TARGET: self.project(views[FIRST])} if self.attacked else rows

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """The loss between the clean first view and the perturbed second: a scalar, since the batch is coupled."""
        z = self.each(self.project, adversarial, self.attacked)
        return barlow_loss(gathered(truth[TARGET]), gathered(z[SECOND]), self.weight)

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """The loss of the two views, perturbed ones in place of the clean."""
        z = self.each(self.project, {**views, **adversarial}, adversarial)
        return barlow_loss(gathered(z[FIRST]), gathered(z[SECOND]), self.weight)
