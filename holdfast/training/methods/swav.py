"""SwAV: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020.

The code of one view (its soft assignment to prototypes, balanced over the batch by Sinkhorn-Knopp) is predicted from
every other view; small crops predict only. Adversarial: the second view is moved within the ball so that it no longer
predicts the code of the clean first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder
from holdfast.training.methods.method import FIRST, SECOND, Method, Policies, Views, mlp, said
from holdfast.training.ranks import gathered, rank
from holdfast.views import SIMCLR_CIFAR

SHARPNESS = 0.05
ROUNDS = 3
CODE = "code_"
GLOBAL = (FIRST, SECOND)


@torch.no_grad()
def codes(scores: Tensor, sharpness: float = SHARPNESS, rounds: int = ROUNDS) -> Tensor:
    """Assignments of rows to prototypes, each prototype used equally often (algorithm 1 of the paper), in float32.

    In logarithms, so that scores of any size have a code.

    Args:
        scores: [b, k], cosines of rows and prototypes.
        sharpness: epsilon of the paper.
        rounds: of Sinkhorn-Knopp.

    Returns:
        [b, k]; rows sum to 1.
    """
    log_q = scores.float() / sharpness
    for _ in range(rounds):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


def swapped(scores: Tensor, code: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each row's softmax to a code, in float32.

    Args:
        scores: [b, k], cosines of rows and prototypes.
        code: [b, k], rows sum to 1.
        temperature: of the softmax.

    Returns:
        [b] in nats.
    """
    return -(code * (scores.float() / temperature).log_softmax(1)).sum(1)


class SwAV(Method):
    """Two views with codes, and any number of small crops without.

    Args:
        encoder: its pooled features are projected.
        dim: of the projection.
        hidden: width of the projector's hidden layer.
        prototypes: how many.
        queue: earlier projections per view that help to balance the codes, once it is full; 0 = none.
        temperature: of the predictions.
        policies: `first` and `second` get codes, all others predict only.
        attacked: `("second",)` for adversarial training, `()` without.
    """

    def __init__(  # parameters: those of the paper
        self,
        encoder: Encoder,
        *,
        dim: int = 128,
        hidden: int = 2048,
        prototypes: int = 3000,
        queue: int = 0,
        temperature: float = 0.1,
        policies: Policies | None = None,
        attacked: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp((encoder.dim, hidden, dim))
        self.prototypes = nn.Parameter(normalize(torch.randn(prototypes, dim), dim=1))
        self.register_buffer("queue", torch.zeros(len(GLOBAL), queue, dim))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self.temperature = temperature
        self.policies = policies or {FIRST: SIMCLR_CIFAR, SECOND: SIMCLR_CIFAR}
        self.attacked = attacked
        self._projected: dict[str, Tensor] = {}

    queue: Tensor
    queued: Tensor

    def project(self, x: Tensor) -> Tensor:
        """Projections of length one [b, dim] of pixels [b, 3, h, w]."""
        return normalize(self.projector(self.pooled(x)).float(), dim=1)

    def objective(self) -> str:
        """The swapped prediction, its prototypes and its views."""
        attack = " The second view is perturbed so that it misses the code of the clean first." if self.attacked else ""
        small = len(self.policies) - len(GLOBAL)
        crops = f" {small} small crops predict too: {said(list(self.policies.values())[-1])}." if small else ""
        queue = f", with a queue of {self.queue.shape[1]:,}" if self.queue.shape[1] else ""
        return (
            f"SwAV: the code of one view over {len(self.prototypes):,} prototypes (Sinkhorn-Knopp, epsilon "
            f"{SHARPNESS:g}, {ROUNDS} rounds{queue}) is predicted from the others at temperature "
            f"{self.temperature:g}.{attack} A view is {said(self.policies[FIRST])}.{crops}"
        )

    @torch.no_grad()
    def truth(self, views: Views, rows: Rows) -> Rows:
        """Adds the codes of the clean views, [b, prototypes], where one is to be attacked."""
        if not self.attacked:
            return rows
        clean = self.each(self.project, {name: views[name] for name in GLOBAL})
        return {**rows, **{CODE + name: code for name, code in self._codes(clean).items()}}

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """How badly the perturbed view predicts the code of the clean first, [b]."""
        z = self.each(self.project, adversarial, self.attacked)[SECOND]
        return swapped(z @ self.prototypes.T, truth[CODE + FIRST], self.temperature)

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """The mean over codes, over the views that predict them, and over images; codes are those of clean views."""
        z = self.each(self.project, {**views, **adversarial}, adversarial)
        self._projected = {name: z[name].detach() for name in GLOBAL}
        known = {name: truth[CODE + name] for name in GLOBAL} if self.attacked else self._codes(self._projected)
        lost = [
            swapped(z[other] @ self.prototypes.T, code, self.temperature).mean()
            for name, code in known.items()
            for other in z
            if other != name
        ]
        return torch.stack(lost).mean()

    def update(self) -> None:
        """Prototypes go back to length one, the queue takes in the batch."""
        with torch.no_grad():
            self.prototypes.copy_(normalize(self.prototypes, dim=1))
            for place, name in enumerate(GLOBAL) if self.queue.shape[1] and self._projected else ():
                new = gathered(self._projected[name])[: self.queue.shape[1]]
                self.queue[place] = torch.cat([new, self.queue[place, : self.queue.shape[1] - len(new)]])
                self.queued += len(new) if not place else 0
        self._projected = {}

    @torch.no_grad()
    def _codes(self, z: Views) -> dict[str, Tensor]:
        """Codes of this rank's rows, balanced over those of all ranks and the queue."""
        full = bool(self.queue.shape[1]) and int(self.queued) >= self.queue.shape[1]
        found = {}
        for place, name in enumerate(GLOBAL):
            rows, b = gathered(z[name]), len(z[name])
            known = torch.cat([rows, self.queue[place]]) if full else rows
            found[name] = codes(known @ self.prototypes.T)[rank() * b : (rank() + 1) * b]
        return found
