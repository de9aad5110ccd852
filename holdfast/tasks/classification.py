"""Classification through a linear head: the checkpoint's own, or one fitted on frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast.attacks.harm import Out, Push, Rows, See
from holdfast.attacks.scores import cross_entropy, difference, dlr, dlr_target, margin
from holdfast.models.encoder import Encoder
from holdfast.models.features import Features
from holdfast.tasks.task import Measure, Member


@dataclass(frozen=True)
class Classification:
    """Labels from logits.

    Attributes:
        head: maps the vector of `level` [b, d] to logits [b, k]; None = the encoder's own head.
        level: features that the head reads.
        within: the labels that can occur, where the images are of fewer classes than the head knows (ImageNet-A and -R:
            200 of 1000); empty = all. Accuracy is then given twice: among all classes, and among these.
        known: how many classes the head tells apart; 0 = not said, which no targeted attack accepts.
    """

    head: nn.Module | None = None
    level: str = "pooled"
    within: tuple[int, ...] = ()
    known: int = 0

    @property
    def pushes(self) -> Mapping[str, Push]:
        """`ce`: cross-entropy in nats; `margin`: best other logit minus the true one (Carlini and Wagner 2017); `dlr`:
        the margin in units of the spread of the largest logits (Croce and Hein 2020).

        Those that end in `_target` raise the class `rows["target"]`: minus its cross-entropy; its logit minus the true,
        as it is or in those units.
        """
        return {
            "ce": lambda out, rows, t: cross_entropy(out["logits"], rows["label"]),
            "margin": lambda out, rows, t: margin(out["logits"], rows["label"]),
            "dlr": lambda out, rows, t: dlr(out["logits"], rows["label"]),
            "ce_target": lambda out, rows, t: -cross_entropy(out["logits"], rows["target"]),
            "margin_target": lambda out, rows, t: difference(out["logits"], rows["label"], rows["target"]),
            "dlr_target": lambda out, rows, t: dlr_target(out["logits"], rows["label"], rows["target"]),
        }

    @property
    def ensemble(self) -> tuple[Member, ...]:
        """PGD on both harms: where one masks its gradient, the other need not."""
        return (Member("ce", "pgd"), Member("margin", "pgd"))

    @property
    def stop(self) -> bool:
        """A margin above 0 is a wrong label."""
        return True

    @property
    def classes(self) -> int:
        """How many logits there are."""
        return self.known

    def aims(self, out: Out, rows: Rows, *, seed: int) -> Rows:
        """`ranked`: the wrong classes of each image, the likeliest first, int64 [b, k - 1]."""
        others = out["logits"].scatter(1, rows["label"][:, None], -torch.inf)
        return {"ranked": others.argsort(dim=1, descending=True, stable=True)[:, :-1]}

    def modules(self) -> tuple[nn.Module, ...]:
        """The fitted head; an own head belongs to the encoder."""
        return () if self.head is None else (self.head,)

    def read(self, encoder: Encoder, vector: Tensor) -> Out:
        """`logits` [b, k]."""
        if self.head is None:
            return {"logits": encoder.classify(Features(vector, {}, {}))}
        return {"logits": self.head(vector)}

    def score(self, out: Out, rows: Rows) -> Tensor:
        """The margin: above 0 = misclassified."""
        return margin(out["logits"], rows["label"])

    def truth(self, pixels: Tensor, rows: Rows, see: See) -> Rows:
        """The label is there already."""
        return rows

    def outcome(self, out: Out, rows: Rows) -> dict[str, Tensor]:
        """`correct`, `prediction`, `label`, `confidence` (softmax of the prediction), `margin`, `loss` (nats).

        With `within` also `correct_within`: whether the label has the largest logit among those that can occur.
        """
        logits, label = out["logits"], rows["label"]
        lost = margin(logits, label)
        prediction = logits.argmax(1)
        confidence = logits.softmax(1).gather(1, prediction[:, None]).squeeze(1)
        among = {}
        if self.within:
            known = torch.tensor(self.within, device=logits.device)
            among = {"correct_within": known[logits[:, known].argmax(1)] == label}
        return {
            **among,
            "correct": prediction == label,
            "prediction": prediction,
            "label": label,
            "confidence": confidence,
            "margin": lost,
            "loss": cross_entropy(logits, label),
        }

    def measures(self) -> tuple[Measure, ...]:
        """Top-1 accuracy, that among the classes that can occur where they are fewer, and mean cross-entropy."""
        among = (Measure("accuracy_within", "correct_within", higher_is_better=True),) if self.within else ()
        return (
            Measure("accuracy", "correct", higher_is_better=True),
            *among,
            Measure("loss", "loss", higher_is_better=False, unit="nats"),
        )

    def absent(self) -> dict[str, str]:
        """Nothing: every metric follows from the labels."""
        return {}
