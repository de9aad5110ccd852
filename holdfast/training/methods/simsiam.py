"""SimSiam: Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021 (arXiv 2011.10566).

The prediction from one view is turned towards the projection of the other, through which no gradient flows; nothing
repels. Adversarial: the second view is moved within the ball so that its prediction misses the first, clean one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder
from holdfast.training.methods.method import FIRST, SECOND, Method, Policies, Views, mlp, said
from holdfast.views import SIMCLR_CIFAR

TARGET = "clean_first"


def apart(prediction: Tensor, target: Tensor) -> Tensor:
    """Negative cosine of each row to its target, which gets no gradient; in float32.

    Args:
        prediction: [b, d], of any length.
        target: [b, d], of any length.

    Returns:
        [b] in [-1, 1].
    """
    return -cosine_similarity(prediction.float(), target.detach().float(), dim=1)


class SimSiam(Method):
    """Half the sum of both directions (equation 4 of the paper).

    Args:
        encoder: its pooled features are projected.
        dim: of the projection, whose last BatchNorm has no gain and bias.
        hidden: width of the predictor's hidden layer; 0 = a quarter of `dim`.
        policies: of the two views.
        attacked: `("second",)` for adversarial training, `()` without.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 2048,
        hidden: int = 0,
        policies: Policies | None = None,
        attacked: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp((encoder.dim, dim, dim, dim), last=True)
        self.predictor = mlp((dim, hidden or max(dim // 4, 1), dim))
        self.policies = policies or {FIRST: SIMCLR_CIFAR, SECOND: SIMCLR_CIFAR}
        self.attacked = attacked

    def project(self, x: Tensor) -> Tensor:
        """Projections [b, dim] of pixels [b, 3, h, w]."""
        projected: Tensor = self.projector(self.pooled(x))
        return projected

    def objective(self) -> str:
        """The cosine and its views."""
        attack = " The second view is perturbed so that its prediction misses the clean first." if self.attacked else ""
        return (
            "SimSiam: the cosine between the prediction from one view and the projection of the other, both ways, "
            f"without gradient through the projection ({self.projector[-1].num_features} values).{attack} A view is "
            f"{said(self.policies[FIRST])}."
        )

    @torch.no_grad()
    def truth(self, views: Views, rows: Rows) -> Rows:
        """Adds the projection of the clean first view, where the second is to be attacked."""
        return {**rows, TARGET: self.project(views[FIRST])} if self.attacked else rows

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """How far the perturbed view's prediction is from the clean first view, [b]."""
        z = self.each(lambda x: self.predictor(self.project(x)), adversarial, self.attacked)
        return apart(z[SECOND], truth[TARGET])

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """The mean over images and both directions, perturbed views in place of the clean."""

        def both(x: Tensor) -> Tensor:
            z = self.project(x)
            return torch.stack([z, self.predictor(z)], 1)

        seen = self.each(both, {**views, **adversarial}, adversarial)
        (z1, p1), (z2, p2) = seen[FIRST].unbind(1), seen[SECOND].unbind(1)
        return (apart(p1, z2).mean() + apart(p2, z1).mean()) / 2
