"""DINO: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021 (arXiv 2104.14294).

A momentum teacher's softmax of the large views, centred and sharpened, is matched by the student from every other view,
small crops included. Adversarial: the second view is moved within the ball so that the student's answer to it misses
the teacher's answer to the clean first; the teacher sees clean views alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder
from holdfast.training.methods.method import FIRST, SECOND, Method, Policies, Views, said
from holdfast.training.methods.teacher import follow, follower, rising
from holdfast.training.ranks import gathered
from holdfast.views import SIMCLR_CIFAR

STUDENT, TEACHER = 0.1, 0.04
"""Temperatures; the teacher's is sharper."""
CENTRE = 0.9
GLOBAL = (FIRST, SECOND)


def missed(student: Tensor, target: Tensor, temperature: float = STUDENT) -> Tensor:
    """Cross-entropy of the student's softmax to the teacher's, in float32.

    Args:
        student: logits [b, k].
        target: probabilities [b, k].
        temperature: of the student.

    Returns:
        [b] in nats.
    """
    return -(target * (student.float() / temperature).log_softmax(1)).sum(1)


class Head(nn.Module):
    """Three linear layers with GELU to a bottleneck of unit length, then prototypes of unit length, without a bias.

    Args:
        width: of the features.
        hidden: of the first two layers.
        bottleneck: of the third.
        dim: how many prototypes.
        norm: whether a BatchNorm stands before each GELU.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, dim: int, *, norm: bool = False) -> None:
        super().__init__()
        first, second = (
            [nn.Linear(c_in, hidden), *([nn.BatchNorm1d(hidden)] if norm else []), nn.GELU()]
            for c_in in (width, hidden)
        )
        self.layers = nn.Sequential(*first, *second, nn.Linear(hidden, bottleneck))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.randn(dim, bottleneck))

    def forward(self, x: Tensor, *, learn: bool = True) -> Tensor:
        """Logits [b, dim] of features [b, width]; without `learn` the prototypes' gradient is zero."""
        still = self.prototypes.detach() + 0 * self.prototypes  # a distributed wrapper waits for every gradient
        return linear(normalize(self.layers(x), dim=1), normalize(self.prototypes if learn else still, dim=1))


class DINO(Method):
    """The student's and the teacher's answers over `dim` prototypes.

    Args:
        encoder: its pooled features go into the head.
        dim: how many prototypes; 65,536 in the paper.
        hidden: width of the head's hidden layers.
        bottleneck: width before the prototypes.
        momentum: of the teacher at the start; it rises to 1.
        temperature: of the student.
        norm: whether the head has BatchNorm. The average of a small convolutional net differs little between images;
            without it the head's answers are almost one, their centred difference nothing, and uniform is learned.
        still: share of the run in which the prototypes stay as they are (one epoch of 100 in the paper).
        policies: the teacher sees `first` and `second`, the student all.
        attacked: `("second",)` for adversarial training, `()` without.
    """

    centre: Tensor

    def __init__(  # parameters: those of the paper
        self,
        encoder: Encoder,
        *,
        dim: int = 65_536,
        hidden: int = 2048,
        bottleneck: int = 256,
        momentum: float = 0.996,
        temperature: float = STUDENT,
        norm: bool = False,
        still: float = 0.01,
        policies: Policies | None = None,
        attacked: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = Head(encoder.dim, hidden, bottleneck, dim, norm=norm)
        self.teacher = nn.ModuleList([follower(encoder), follower(self.head)])
        self.register_buffer("centre", torch.zeros(dim))
        self.momentum, self.temperature, self.still = momentum, temperature, still
        self.policies = policies or {FIRST: SIMCLR_CIFAR, SECOND: SIMCLR_CIFAR}
        self.attacked = attacked
        self._answered: Tensor | None = None

    def answer(self, x: Tensor) -> Tensor:
        """The student's logits [b, dim] for pixels [b, 3, h, w]."""
        found: Tensor = self.head(self.pooled(x), learn=self.done >= self.still)
        return found

    def objective(self) -> str:
        """The two answers, the teacher and the views."""
        attack = " The second view is perturbed so that the student misses the first." if self.attacked else ""
        small = len(self.policies) - len(GLOBAL)
        crops = f" The student sees {small} small crops too: {said(list(self.policies.values())[-1])}." if small else ""
        return (
            f"DINO: the student's softmax over {len(self.centre):,} prototypes (temperature {self.temperature:g}) is "
            f"matched to a momentum teacher's of the other view (centred, temperature {TEACHER:g}; momentum "
            f"{self.momentum:g}, rising to 1).{attack} A view is {said(self.policies[FIRST])}.{crops}"
        )

    @torch.no_grad()
    def truth(self, views: Views, rows: Rows) -> Rows:
        """Adds the teacher's answers to the two large clean views, probabilities [b, dim], under their names."""
        encoder, head = self.teacher

        def answer(x: Tensor) -> Tensor:
            return torch.as_tensor(head(encoder(x, precision=self.precision, engine=self.engine).pooled)).float()

        logits = self.each(answer, {name: views[name] for name in GLOBAL})
        self._answered = torch.stack([gathered(rows_).mean(0) for rows_ in logits.values()]).mean(0)
        return {**rows, **{name: ((z - self.centre) / TEACHER).softmax(1) for name, z in logits.items()}}

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """How far the student's answer to the perturbed view is from the teacher's to the first, [b]."""
        return missed(self.each(self.answer, adversarial, self.attacked)[SECOND], truth[FIRST], self.temperature)

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """The mean over pairs of a teacher's view and another of the student's, and over images."""
        z = self.each(self.answer, {**views, **adversarial}, adversarial)
        lost = [
            missed(z[other], truth[name], self.temperature).mean() for name in GLOBAL for other in z if other != name
        ]
        return torch.stack(lost).mean()

    def update(self) -> None:
        """The teacher follows the student; the centre follows the teacher's answers, once per batch."""
        momentum = rising(self.momentum, self.done)
        for teacher, student in zip(self.teacher, (self.encoder, self.head)):
            follow(teacher, student, momentum)
        if self._answered is not None:
            self.centre.lerp_(self._answered, 1 - CENTRE)
            self._answered = None
