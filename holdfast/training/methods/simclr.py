"""SimCLR: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020.

Two views of an image attract each other, all other views of the batch repel (NT-Xent). Adversarial: the second view is
moved within the ball so that it is taken for another image than its clean self, and then takes part in the loss, after
Kim et al., Adversarial Self-Supervised Contrastive Learning, NeurIPS 2020 (arXiv 2006.07589).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from holdfast.data.batches import Rows
from holdfast.data.views import SIMCLR_CIFAR, Policy, view
from holdfast.models.encoder import Encoder
from holdfast.training.methods.method import Method, Views

FIRST, SECOND = "first", "second"


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy over both directions, in float32 (equation 1 of the paper).

    Args:
        first: [b, d], of any length; row i belongs with row i of `second`.
        second: [b, d].
        temperature: of the softmax over cosines.

    Returns:
        A scalar in nats: the mean over all 2b views of -log softmax at the partner, over the 2b - 1 other views.
    """
    z = normalize(torch.cat([first, second]).float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(first))
    return cross_entropy(logits, partner)


def projector(width: int, dim: int) -> nn.Sequential:
    """The MLP behind the encoder: width -> width -> dim, with BatchNorm and ReLU between."""
    return nn.Sequential(
        nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, dim)
    )


class SimCLR(Method):
    """NT-Xent between two views.

    Args:
        encoder: its pooled features are projected.
        dim: of the projection.
        temperature: of NT-Xent.
        policy: of both views.
        attacked: `("second",)` for adversarial training, `()` without.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 128,
        temperature: float = 0.5,
        policy: Policy = SIMCLR_CIFAR,
        attacked: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector(encoder.dim, dim)
        self.temperature = temperature
        self.policy = policy
        self.attacked = attacked

    def project(self, x: Tensor) -> Tensor:
        """Projections [b, dim] of pixels [b, 3, h, w]."""
        projected: Tensor = self.projector(self.encoder(x).pooled)
        return projected

    def objective(self) -> str:
        """NT-Xent, its temperature and its views."""
        p = self.policy
        attack = " The second view is perturbed so that NT-Xent with its clean self rises." if self.attacked else ""
        return (
            f"SimCLR: NT-Xent at temperature {self.temperature:g} between two views of each image, on a projection to "
            f"{self.projector[-1].out_features} values.{attack} A view is a crop of {p.scale[0]:g} to {p.scale[1]:g} "
            f"of the area, mirrored with probability {p.flip:g}, colours changed with {p.jitter:g} (brightness "
            f"{p.brightness:g}, contrast {p.contrast:g}, saturation {p.saturation:g}, hue {p.hue:g}), grey with "
            f"{p.grey:g}, blurred with {p.blur:g}."
        )

    def views(self, x: Tensor, rows: Rows) -> dict[str, Tensor]:
        """Two independent draws of the policy."""
        return {name: view(x, rows["key"], self.policy, name) for name in (FIRST, SECOND)}

    def truth(self, views: Views, rows: Rows) -> Rows:
        """Adds the projections of the clean views that are to be attacked, [b, dim], under their names."""
        with torch.no_grad():
            return {**rows, **{name: self.project(views[name]) for name in self.attacked}}

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """NT-Xent between each attacked view and its clean self: a scalar, since the batch is coupled."""
        terms = [nt_xent(truth[name], self.project(x), self.temperature) for name, x in adversarial.items()]
        return torch.stack(terms).sum()

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """NT-Xent of the two views, perturbed ones in place of the clean; both pass the encoder as one batch."""
        seen = {**views, **adversarial}
        both = self.project(torch.cat([seen[FIRST], seen[SECOND]]))
        first, second = both.chunk(2)
        return nt_xent(first, second, self.temperature)
