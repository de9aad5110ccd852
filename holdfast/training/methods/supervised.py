"""Classification through the encoder's own head: cross-entropy, against PGD (Madry) or TRADES; head alone, or all.

Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018; Zhang et al., Theoretically
Principled Trade-off between Robustness and Accuracy (TRADES), ICML 2019. On a pre-trained encoder these are the three
protocols of robust self-supervision (Jiang et al., NeurIPS 2020; Zhang et al., Decoupled Adversarial Contrastive
Learning, ECCV 2022): SLF (head alone, clean), ALF (head alone, TRADES) and AFF (all of it, TRADES).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder
from holdfast.training.methods.method import Method, Views, said
from holdfast.training.ranks import gathered
from holdfast.views import Policy

IMAGE = "image"


class Supervised(Method):
    """Cross-entropy of one view; with an adversary, of the perturbed view alone.

    Args:
        encoder: with a classification head of its own.
        policy: of the view.
        still: whether the encoder stays as it is, and the head alone is trained; its BatchNorms then keep their
            running statistics throughout.
        attacked: `("image",)` for adversarial training, `()` without.
    """

    def __init__(
        self, encoder: Encoder, *, policy: Policy, still: bool = False, attacked: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.policies = {IMAGE: policy}
        self.still = still
        self.attacked = attacked
        if still:
            self.encoder.requires_grad_(False)
            assert encoder.head is not None, "the builder gives it one"
            encoder.head.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for an encoder that stays as it is."""
        super().train(mode)
        if self.still:
            self.encoder.eval()
        return self

    def logits(self, x: Tensor) -> Tensor:
        """Logits [b, classes] of pixels [b, 3, h, w]."""
        return self.encoder.classify(self.encoder(x, precision=self.precision, engine=self.engine))

    def objective(self) -> str:
        """The loss, what is trained, and the view."""
        attack = ", of the image perturbed so that it rises" if self.attacked else ""
        return f"Cross-entropy of the labels{attack}; {self._trained()} A view is {said(self.policies[IMAGE])}."

    def truth(self, views: Views, rows: Rows) -> Rows:
        """Nothing beside the labels."""
        return rows

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """Cross-entropy per image, [b]."""
        return cross_entropy(self._seen(adversarial[IMAGE], moved=True), truth["label"], reduction="none")

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """Mean cross-entropy, of the perturbed image where there is one."""
        seen = adversarial.get(IMAGE, views[IMAGE])
        loss = cross_entropy(self._seen(seen, moved=bool(adversarial)), truth["label"], reduction="none")
        return gathered(loss).mean()

    def _seen(self, x: Tensor, *, moved: bool) -> Tensor:
        return self.each(self.logits, {IMAGE: x}, (IMAGE,) if moved else ())[IMAGE]

    def _trained(self) -> str:
        return "the head alone was trained, the encoder stayed as it was." if self.still else "everything was trained."


class TRADES(Supervised):
    """Cross-entropy of the clean image, and `beta` times KL(clean || perturbed) of the two predictions.

    The attack raises the same divergence from the prediction that the clean image had before the step.

    Args:
        encoder: with a classification head of its own.
        policy: of the view.
        beta: weight of the divergence; 6 in the paper.
        still: see `Supervised`.
        attacked: `("image",)`; without an adversary what is left is cross-entropy.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        policy: Policy,
        beta: float = 6.0,
        still: bool = False,
        attacked: tuple[str, ...] = (),
    ) -> None:
        super().__init__(encoder, policy=policy, still=still, attacked=attacked)
        self.beta = beta

    @property
    def passes(self) -> int:
        """The clean image, and the perturbed one where there is one."""
        return 1 + len(self.attacked)

    def objective(self) -> str:
        """The two terms, what is trained, and the view."""
        return (
            f"TRADES: cross-entropy of the clean image and {self.beta:g} times the divergence of the prediction for "
            f"the perturbed image from it{'' if self.attacked else ' (no adversary: nothing is perturbed)'}; "
            f"{self._trained()} A view is {said(self.policies[IMAGE])}."
        )

    @torch.no_grad()
    def truth(self, views: Views, rows: Rows) -> Rows:
        """Adds the prediction for the clean image, "clean" [b, classes]."""
        if not self.attacked:
            return rows
        return {**rows, "clean": softmax(self._seen(views[IMAGE], moved=False), 1)}

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """KL(clean || perturbed) per image, [b]."""
        return divergence(truth["clean"], self._seen(adversarial[IMAGE], moved=True))

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """Both terms; clean and perturbed images pass apart, each with BatchNorm statistics of their own."""
        clean = self._seen(views[IMAGE], moved=False)
        loss = cross_entropy(clean, truth["label"], reduction="none")
        if adversarial:
            loss = loss + self.beta * divergence(softmax(clean, 1), self._seen(adversarial[IMAGE], moved=True))
        return gathered(loss).mean()


def divergence(expected: Tensor, logits: Tensor) -> Tensor:
    """KL(expected || softmax(logits)) per image, in nats.

    Args:
        expected: probabilities [b, k].
        logits: [b, k].

    Returns:
        [b], at least 0.
    """
    return kl_div(log_softmax(logits, 1), expected, reduction="none").sum(1)
