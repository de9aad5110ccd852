"""Hardening an encoder that is there: a frozen copy says what clean images should give, a student learns to give it.

Under attack the student is to answer as the teacher does without one. DeACL: Zhang et al., Decoupled Adversarial
Contrastive Learning for Self-Supervised Adversarial Robustness, ECCV 2022 (cosine, the perturbed image beside the
student's own clean answer). FARE: Schlarmann et al., Robust CLIP, ICML 2024 (arXiv 2402.12336; squared distance, the
perturbed image alone). Over several levels of features the same with all of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from holdfast import draws
from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder
from holdfast.training.methods.method import Method, Views, said
from holdfast.training.ranks import gathered
from holdfast.views import Policy

IMAGE = "image"
Distance = Literal["cosine", "squared"]
Mix = Literal["mean", "max", "drawn"]


@dataclass(frozen=True)
class Terms:
    """The loss: clean * d(student(x), teacher(x)) + robust * d(student(x'), anchor), d averaged over the levels.

    Attributes:
        distance: cosine = 1 - cos; squared = of the Euclidean length. Of a map, averaged over its places.
        clean: weight of the clean image.
        robust: weight of the perturbed image.
        anchor: what the perturbed image is compared with: the teacher's answer to the clean one, or the student's.
    """

    distance: Distance
    clean: float
    robust: float
    anchor: Literal["teacher", "student"]


DEACL = Terms("cosine", 1.0, 2.0, "student")
FARE = Terms("squared", 0.0, 1.0, "teacher")


class Hardening(Method):
    """A student and its frozen teacher.

    Args:
        encoder: becomes the student; the teacher is a copy of it as it is now, in evaluation mode for good. A
            classification head of its own stays as it is.
        policy: of the one view, which both see.
        terms: the loss.
        levels: of the features that are compared: `pooled`, `patch`, `stageN`...
        mix: what the attack raises of several levels, in units of their clean size: their mean, the largest of each
            image, or one drawn for each image and epoch.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        policy: Policy,
        terms: Terms = DEACL,
        levels: tuple[str, ...] = ("pooled",),
        mix: Mix = "mean",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        if encoder.head is not None:
            encoder.head.requires_grad_(False)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.policies = {IMAGE: policy}
        self.attacked = (IMAGE,)
        self.terms, self.levels, self.mix = terms, levels, mix

    @property
    def passes(self) -> int:
        """The perturbed image, and the clean one where the loss reads the student's answer to it."""
        return 1 + self._reads_clean

    @property
    def _reads_clean(self) -> bool:
        return bool(self.terms.clean) or self.terms.anchor == "student"

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self

    def objective(self) -> str:
        """The loss, its levels and the view."""
        t = self.terms
        anchor = "the teacher's answer to" if t.anchor == "teacher" else "its own to"
        parts = [
            f"{t.robust:g} times the {t.distance} distance of its answer under attack from {anchor} the clean image"
        ]
        if t.clean:
            parts.append(f"{t.clean:g} times that of its answer to the clean image from the teacher's")
        several = f", averaged over the levels {', '.join(self.levels)}" if len(self.levels) > 1 else ""
        chosen = {"mean": "on average", "max": "at the farthest level", "drawn": "at a level drawn for each image"}
        raised = f", {chosen[self.mix]}" if several else f" at the level {self.levels[0]}"
        return (
            f"Hardening: a student learns from a frozen copy of what it was. It lowers {' and '.join(parts)}{several}. "
            f"The image is perturbed away from the teacher's clean answer{raised}. A view is "
            f"{said(self.policies[IMAGE])}."
        )

    @torch.no_grad()
    def truth(self, views: Views, rows: Rows) -> Rows:
        """Adds the teacher's answers to the clean images, and which level each image is attacked at, where drawn."""
        found = {**rows, **{f"teacher {level}": z for level, z in self._seen(self.teacher, views[IMAGE]).items()}}
        if self.mix == "drawn":
            found["level"] = draws.integers(rows["key"], len(self.levels), "hardening").to(views[IMAGE].device)
        return found

    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """Distance from the teacher's clean answer, per image, [b]."""
        expected = _expected(truth, self.levels)
        apart = self._apart(self._seen(self.encoder, adversarial[IMAGE]), expected)
        if len(self.levels) > 1 and self.terms.distance == "squared":
            apart = apart / torch.stack([_size(expected[level]) for level in self.levels])
        if self.mix == "max":
            return apart.amax(0)
        if self.mix == "drawn":
            return apart.gather(0, truth["level"][None])[0]
        return apart.mean(0)

    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """The loss; clean and perturbed images pass the student together, as published."""
        x, moved = views[IMAGE], adversarial[IMAGE]
        clean, hard = self._both(x, moved)
        expected = _expected(truth, self.levels)
        anchor = expected if self.terms.anchor == "teacher" else clean
        loss = self.terms.robust * self._apart(hard, anchor).mean(0)
        if self.terms.clean:
            loss = loss + self.terms.clean * self._apart(clean, expected).mean(0)
        return gathered(loss).mean()

    def _both(self, x: Tensor, moved: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The student's answers to clean and perturbed images; the clean ones only where the loss reads them."""
        if not self._reads_clean:
            return {}, self._seen(self.encoder, moved)
        seen = self._seen(self.encoder, torch.cat([x, moved]))
        return {n: z[: len(x)] for n, z in seen.items()}, {n: z[len(x) :] for n, z in seen.items()}

    def _seen(self, encoder: Encoder, x: Tensor) -> dict[str, Tensor]:
        """Features by level: `pooled` [b, 1, d], a map [b, places, c]."""
        maps = tuple(level for level in self.levels if level != "pooled")
        found = encoder(x, levels=maps, precision=self.precision, engine=self.engine)
        return {
            level: found.pooled[:, None] if level == "pooled" else found.maps[level].flatten(2).mT
            for level in self.levels
        }

    def _apart(self, one: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
        """Distances by level and image, [levels, b], in float32."""
        return torch.stack([_distance(self.terms.distance, one[n].float(), other[n].float()) for n in self.levels])


def _expected(truth: Rows, levels: tuple[str, ...]) -> dict[str, Tensor]:
    return {level: truth[f"teacher {level}"] for level in levels}


def _distance(kind: Distance, one: Tensor, other: Tensor) -> Tensor:
    """[b, places, d] twice -> [b]."""
    if kind == "cosine":
        return 1 - cosine_similarity(one, other, dim=2).mean(1)
    return (one - other).square().sum(2).mean(1)


def _size(z: Tensor) -> Tensor:
    """Mean squared length over the places, [b, places, d] -> [b]."""
    return z.float().square().sum(2).mean(1).clamp_min(torch.finfo(torch.float32).tiny)
