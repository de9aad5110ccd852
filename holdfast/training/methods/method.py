"""What every self-supervised method offers to the one training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder

Views = Mapping[str, Tensor]


class Method(nn.Module, ABC):
    """An encoder with a loss around it.

    The adversary ascends `harm` on this bare module; the weights descend `forward`, which is what a distributed wrapper
    sees. Nothing but `update` and the buffers of normalisation layers changes between two optimizer steps.

    Attributes:
        encoder: what is being trained.
        attacked: names of the views that an adversary perturbs; empty = none, and then no truth is needed for them.
    """

    encoder: Encoder
    attacked: tuple[str, ...]

    @abstractmethod
    def views(self, x: Tensor, rows: Rows) -> dict[str, Tensor]:
        """Random views by name.

        Args:
            x: float32 [b, 3, h, w] in [0, 1].
            rows: "key" int64 [b], another one for each image in each epoch.

        Returns:
            float32 [b, 3, s, s] in [0, 1] each; sizes may differ between views.
        """

    @abstractmethod
    def truth(self, views: Views, rows: Rows) -> Rows:
        """`rows` with what the perturbed views are compared against; made once per batch, without gradient."""

    @abstractmethod
    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """What the adversary raises.

        Args:
            adversarial: the attacked views by name.
            truth: as `truth` made it.
            t: progress of the ascent in [0, 1], [b].

        Returns:
            One number per image [b], or one for a batch whose images it couples [].
        """

    @abstractmethod
    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """The loss that the weights lower.

        Args:
            views: as `views` made them.
            adversarial: perturbed stand-ins for some of them; empty without an adversary.
            truth: as `truth` made it.

        Returns:
            A scalar.
        """

    @abstractmethod
    def objective(self) -> str:
        """The loss and its views in a sentence or two, for the model card."""

    def update(self) -> None:
        """What follows an optimizer step: a momentum teacher, a centre, a queue. Nothing here."""
