"""SimCLR: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020; with labels
SupCon: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020.

Two views of an image attract each other, all other views of the batch repel (NT-Xent). Adversarial: the second view is
moved within the ball so that it is taken for another image than its clean self, and then takes part in the loss, after
Kim et al., Adversarial Self-Supervised Contrastive Learning, NeurIPS 2020 (arXiv 2006.07589).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder
from holdfast.training.methods.method import FIRST, SECOND, Method, Policies, Views, mlp, said
from holdfast.training.ranks import gathered
from holdfast.views import SIMCLR_CIFAR


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy over both directions, in float32 (equation 1 of the paper).

    Args:
        first: [b, d], of any length; row i belongs with row i of `second`.
        second: [b, d].
        temperature: of the softmax over cosines.

    Returns:
        A scalar in nats: the mean over all 2b views of -log softmax at the partner, over the 2b - 1 other views.
    """
    logits = _cosines(first, second, temperature)
    partner = torch.arange(len(logits), device=logits.device).roll(len(first))
    return cross_entropy(logits, partner)


def sup_con(first: Tensor, second: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The same with labels: every other view of the same class is a partner (equation 2, L_out, of SupCon), in float32.

    Args:
        first: [b, d], of any length; row i belongs with row i of `second`.
        second: [b, d].
        labels: int64 [b]; all different, they make it `nt_xent`.
        temperature: of the softmax over cosines.

    Returns:
        A scalar in nats: the mean over all 2b views of the mean over their partners of -log softmax, over the 2b - 1
        other views.
    """
    logits = _cosines(first, second, temperature)
    both = torch.cat([labels, labels])
    alike = (both.unsqueeze(0) == both.unsqueeze(1)).fill_diagonal_(False)
    lost = -logits.log_softmax(1).masked_fill(~alike, 0.0)
    return (lost.sum(1) / alike.sum(1)).mean()


def _cosines(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cosines of all views by temperature [2b, 2b], those with themselves at -inf."""
    z = normalize(torch.cat([first, second]).float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return (z @ z.T / temperature).masked_fill(itself, -torch.inf)


class SimCLR(Method):
    """NT-Xent between two views of all ranks' images.

    Args:
        encoder: its pooled features are projected.
        dim: of the projection.
        hidden: width of the projector's hidden layer; 0 = that of the features.
        temperature: of the softmax.
        labelled: SupCon: images of one class are partners too, and the row "label" is read.
        policies: of the two views.
        attacked: `("second",)` for adversarial training, `()` without.
    """

    def __init__(  # parameters: those of the paper
        self,
        encoder: Encoder,
        *,
        dim: int = 128,
        hidden: int = 0,
        temperature: float = 0.5,
        labelled: bool = False,
        policies: Policies | None = None,
        attacked: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp((encoder.dim, hidden or encoder.dim, dim))
        self.temperature = temperature
        self.labelled = labelled
        self.policies = policies or {FIRST: SIMCLR_CIFAR, SECOND: SIMCLR_CIFAR}
        self.attacked = attacked

    def project(self, x: Tensor) -> Tensor:
        """Projections [b, dim] of pixels [b, 3, h, w]."""
        projected: Tensor = self.projector(self.pooled(x))
        return projected

    def objective(self) -> str:
        """NT-Xent, its temperature and its views."""
        attack = " The second view is perturbed so that the loss with its clean self rises." if self.attacked else ""
        name = "SupCon: NT-Xent with the images of one class as partners" if self.labelled else "SimCLR: NT-Xent"
        return (
            f"{name} at temperature {self.temperature:g} between two views of each image, on a projection to "
            f"{self.projector[-1].out_features} values.{attack} A view is {said(self.policies[FIRST])}."
        )

    @torch.no_grad()
    def truth(self, views: Views, rows: Rows) -> Rows:
        """Adds the projections of the clean views that are to be attacked, [b, dim], under their names."""
        clean = {name: views[name] for name in self.attacked}
        return {**rows, **self.each(self.project, clean)}

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """The loss between each attacked view and its clean self: a scalar, since the batch is coupled."""
        seen = self.each(self.project, adversarial, self.attacked)
        return torch.stack([self._loss(truth[name], z, truth) for name, z in seen.items()]).sum()

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """The loss of the two views, perturbed ones in place of the clean."""
        z = self.each(self.project, {**views, **adversarial}, adversarial)
        return self._loss(z[FIRST], z[SECOND], truth)

    def _loss(self, first: Tensor, second: Tensor, truth: Rows) -> Tensor:
        first, second = gathered(first), gathered(second)
        if self.labelled:
            return sup_con(first, second, gathered(truth["label"]), self.temperature)
        return nt_xent(first, second, self.temperature)
