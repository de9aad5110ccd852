"""BYOL: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020 (arXiv 2006.07733).

The student's prediction from one view is turned towards a momentum teacher's projection of the other. Adversarial: the
second view is moved within the ball so that its prediction misses the teacher's view of the first; the teacher sees
clean views alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder
from holdfast.training.methods.method import FIRST, SECOND, Method, Policies, Views, mlp, said
from holdfast.training.methods.simsiam import apart
from holdfast.training.methods.teacher import follow, follower, rising
from holdfast.views import SIMCLR_CIFAR


class BYOL(Method):
    """Squared distances of unit vectors, 2 - 2 cos, summed over both directions (equation 2 of the paper).

    Args:
        encoder: its pooled features are projected.
        dim: of the projection.
        hidden: width of the projector's and of the predictor's hidden layer.
        momentum: of the teacher at the start; it rises to 1.
        policies: of the two views.
        attacked: `("second",)` for adversarial training, `()` without.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 256,
        hidden: int = 4096,
        momentum: float = 0.996,
        policies: Policies | None = None,
        attacked: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp((encoder.dim, hidden, dim))
        self.predictor = mlp((dim, hidden, dim))
        self.teacher = nn.ModuleList([follower(encoder), follower(self.projector)])
        self.momentum = momentum
        self.policies = policies or {FIRST: SIMCLR_CIFAR, SECOND: SIMCLR_CIFAR}
        self.attacked = attacked

    def predict(self, x: Tensor) -> Tensor:
        """The student's predictions [b, dim] of pixels [b, 3, h, w]."""
        predicted: Tensor = self.predictor(self.projector(self.pooled(x)))
        return predicted

    def objective(self) -> str:
        """The distance, the teacher and the views."""
        attack = " The second view is perturbed so that its prediction misses the first." if self.attacked else ""
        return (
            "BYOL: the squared distance between the student's prediction from one view and a momentum teacher's "
            f"projection of the other, unit vectors of {self.projector[-1].out_features} values, both ways (momentum "
            f"{self.momentum:g}, rising to 1).{attack} A view is {said(self.policies[FIRST])}."
        )

    @torch.no_grad()
    def truth(self, views: Views, rows: Rows) -> Rows:
        """Adds the teacher's projections of the clean views, [b, dim], under their names."""
        encoder, projector = self.teacher

        def project(x: Tensor) -> Tensor:
            return torch.as_tensor(projector(encoder(x, precision=self.precision, engine=self.engine).pooled))

        return {**rows, **self.each(project, views)}

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """How far the perturbed view's prediction is from the teacher's first view, [b]."""
        return 2 + 2 * apart(self.each(self.predict, adversarial, self.attacked)[SECOND], truth[FIRST])

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """Both directions, the mean over images; the student sees perturbed views in place of the clean."""
        p = self.each(self.predict, {**views, **adversarial}, adversarial)
        return (4 + 2 * apart(p[FIRST], truth[SECOND]) + 2 * apart(p[SECOND], truth[FIRST])).mean()

    def update(self) -> None:
        """The teacher follows the student."""
        momentum = rising(self.momentum, self.done)
        for teacher, student in zip(self.teacher, (self.encoder, self.projector)):
            follow(teacher, student, momentum)
