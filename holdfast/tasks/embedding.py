"""The embedding itself as the task: how far it drifts, whether its neighbours change. Needs no label.

The attack is EmbedAttack of Kowalczuk et al. 2024 (arXiv 2407.12588): raise the distance between the embedding of the
perturbed image and that of the clean one (`distances.py`), at the vector or at the patch tokens of any level. Raw
distances cannot be compared across encoders (scale, dimension, anisotropy), so that drift is also given as a quantile
among random pairs of clean embeddings, as the share of other images that have come nearer than the clean self
(breakaway) and as a change of the nearest neighbours (after Petrov and Kwiatkowska 2022, arXiv 2210.04076).

What compares the iterates of an attack is fixed beside what is raised: the drift itself, which is never lost or won;
or, where there are labels, the margin of the neighbours' vote or of a linear head on the same level, above 0 where that
judge is wrong, so that an attack that raises no label's loss can rest when it has fooled one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from holdfast import draws
from holdfast.attacks.harm import Out, Push, Rows, See
from holdfast.attacks.scores import margin
from holdfast.errors import ConfigError, DataError, nearest
from holdfast.models.encoder import Encoder
from holdfast.tasks.distances import DISTANCES, Distance, cosine, l2
from holdfast.tasks.neighbours import breakaway, knn_predict, nearest_neighbours, neighbours_kept, unit, vote_margin
from holdfast.tasks.task import Measure, Member

NEIGHBOURS = 20
PAIRS = 4096
Scored = Literal["drift", "knn", "probe"]


@dataclass(frozen=True, eq=False)
class Bank:
    """Clean embeddings that an embedding is compared with.

    Attributes:
        vectors: float32 [n, d].
        keys: int64 [n], of their images: an image is never its own neighbour.
        labels: int64 [n], or None.
        distances: L2 distances of random pairs, ascending, float32 [m].
        reason: why there is no kNN accuracy, where there is none.
    """

    vectors: Tensor
    keys: Tensor
    labels: Tensor | None
    distances: Tensor
    reason: str = ""

    @property
    def classes(self) -> int:
        """How many classes its labels tell apart: the largest one and 1; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def own(self, keys: Tensor) -> Tensor:
        """Which rows of the bank are the images of these keys [b] themselves: bool [b, n]."""
        return keys[:, None] == self.keys.to(keys.device)[None]

    @functools.cached_property
    def unit(self) -> Tensor:
        """Its vectors at length 1, float32 [n, d]."""
        return unit(self.vectors)

    def near(self, z: Tensor, keys: Tensor, k: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
        """The k nearest other images, or as many as there are: cosines float32 [b, k], descending, and places in it."""
        known = self.unit.to(z)
        return nearest_neighbours(z, known, min(k, len(known) - 1), exclude=self.own(keys), scaled=True)

    def quantile(self, apart: Tensor) -> Tensor:
        """The share of random pairs that are nearer to each other than these distances [b]: [b] in [0, 1]."""
        distances = self.distances.to(apart)
        return torch.searchsorted(distances, apart) / len(distances)


def bank(vectors: Tensor, keys: Tensor, labels: Tensor | None, *, seed: int = 0) -> Bank:
    """Fit the bank: draw random pairs and keep their distances.

    Args:
        vectors: clean embeddings, float32 [n, d], n >= 2.
        keys: of their images, int64 [n].
        labels: int64 [n], or None where there are none.
        seed: of the pairs.
    """
    n = len(vectors)
    generator = draws.generator("random pairs", seed)
    first = torch.randint(n, (PAIRS,), generator=generator)
    second = (first + 1 + torch.randint(n - 1, (PAIRS,), generator=generator)) % n
    apart = torch.linalg.vector_norm(vectors[first] - vectors[second], dim=1).sort().values
    reason = "" if labels is not None else "the images have no labels"
    if labels is not None and int(labels.bincount().max()) < 2:
        labels, reason = None, "no class has two images in the bank"
    return Bank(vectors, keys, labels, apart, reason)


@dataclass(frozen=True)
class Embedding:
    """Drift of a level's vector.

    Attributes:
        bank: fitted on clean images at this level, on the device of the encoder; None where drift alone is asked for.
        level: pooled, any level that `Encoder.vector` takes, or one of its maps read whole: `block11-tokens` is all
            patch tokens end to end, [b, tokens * channels], so that a distance is over every one of them.
        scored: what compares iterates: `drift` (L2 distance to the clean embedding; never lost), `knn` (the margin of
            the neighbours' vote), `probe` (the margin of `head`); the latter two are lost above 0.
        head: maps the embedding [b, d] to logits [b, k]; for `probe` alone.

    Raises:
        ConfigError: no such score, or one that lacks its head or a bank with labels.
    """

    bank: Bank | None = None
    level: str = "pooled"
    scored: Scored = "drift"
    head: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.scored not in get_args(Scored):
            raise ConfigError(f'no score is called "{self.scored}".', next=nearest(self.scored, get_args(Scored)))
        if self.scored == "probe" and self.head is None:
            raise ConfigError('The score "probe" needs a head, and there is none.', next="Fit one on the same level.")
        if self.scored == "knn" and (self.bank is None or self.bank.labels is None):
            reason = "there is no bank of clean images" if self.bank is None else self.bank.reason
            raise ConfigError(
                f"{reason}.".capitalize(), asked='The score "knn" is a vote of labels.', next='Use the score "drift".'
            )

    @property
    def pushes(self) -> Mapping[str, Push]:
        """Every distance of `distances.py` to the clean embedding, `rows["clean"]`; the first is the default."""
        return {name: _from_clean(distance) for name, distance in DISTANCES.items()}

    @property
    def ensemble(self) -> tuple[Member, ...]:
        """PGD on length and on angle."""
        return (Member("mse", "pgd"), Member("cosine", "pgd"))

    @property
    def stop(self) -> bool:
        """A distance is never lost or won, so that the whole run counts; a vote or a head is wrong, or is not."""
        return self.scored != "drift"

    @property
    def classes(self) -> int:
        """No logits."""
        return 0

    def aims(self, out: Out, rows: Rows, *, seed: int) -> Rows:
        """Nothing: `impersonation.Impersonation` aims."""
        return {}

    def modules(self) -> tuple[nn.Module, ...]:
        """The head, where there is one."""
        return () if self.head is None else (self.head,)

    def read(self, encoder: Encoder, vector: Tensor) -> Out:
        """`embedding` [b, d]: the vector itself."""
        return {"embedding": vector}

    def score(self, out: Out, rows: Rows) -> Tensor:
        """L2 distance to the clean embedding; or the margin of the vote, a share in [-1, 1]; or that of the head."""
        z = out["embedding"]
        if self.scored == "drift":
            return l2(z, rows["clean"])
        return self.against(z, rows, rows["label"])

    def against(self, z: Tensor, rows: Rows, label: Tensor) -> Tensor:
        """How far the vote, or the head, is from a label: above 0 = it names another one.

        Args:
            z: embeddings [b, d].
            rows: `key` [b].
            label: int64 [b].
        """
        if self.scored == "probe":
            assert self.head is not None, "checked when it was made"
            return margin(self.head(z), label)
        assert self.bank is not None and self.bank.labels is not None, "checked when it was made"
        similarity, near = self.bank.near(z, rows["key"])
        labels = self.bank.labels.to(z.device)
        return vote_margin(similarity, labels[near], label, classes=self.bank.classes)

    def truth(self, pixels: Tensor, rows: Rows, see: See) -> Rows:
        """Adds `clean`: the embedding of the clean pixels, [b, d].

        Raises:
            DataError: the score reads labels, and the images have none.
        """
        if self.scored != "drift" and "label" not in rows:
            raise DataError(
                "The images have no labels.", asked=f'The score "{self.scored}" needs them.', next='Use "drift".'
            )
        with torch.no_grad():
            return {**rows, "clean": see(pixels)["embedding"]}

    def outcome(self, out: Out, rows: Rows) -> dict[str, Tensor]:
        """`cosine` (1 - cosine), `l2`; with a bank `quantile`, `breakaway`, `flip`, `kept`; with labels `knn_correct`.

        `quantile` is the share of random pairs of clean embeddings that are nearer to each other than this image is to
        its clean self; `breakaway` the share of other images that are nearer to it than its clean self is; `flip` says
        that the nearest neighbour in the bank is another one; `kept` is the share of the 20 nearest that stayed.
        """
        z, clean = out["embedding"], rows["clean"]
        apart = l2(z, clean)
        found = {"cosine": cosine(z, clean).clamp_min(0), "l2": apart}
        return found if self.bank is None else found | _compared(self.bank, z, clean, apart, rows)

    def measures(self) -> tuple[Measure, ...]:
        """Mean drift (cosine, L2, quantile), breakaway risk, flipped and kept neighbours, kNN accuracy."""
        measures = [
            Measure("cosine_drift", "cosine", higher_is_better=False, unit="1 - cosine"),
            Measure("l2_drift", "l2", higher_is_better=False, unit="distance"),
        ]
        if self.bank is not None:
            measures.append(Measure("quantile", "quantile", higher_is_better=False))
            measures.append(Measure("neighbour_flips", "flip", higher_is_better=False))
            measures.append(Measure("breakaway", "breakaway", higher_is_better=False))
            measures.append(Measure("neighbours_kept", "kept", higher_is_better=True))
        if self.bank is not None and self.bank.labels is not None:
            measures.append(Measure("knn_accuracy", "knn_correct", higher_is_better=True))
        return tuple(measures)

    def absent(self) -> dict[str, str]:
        """What needs a bank, without one; kNN accuracy, where the bank has no labels."""
        if self.bank is None:
            named = ("quantile", "neighbour_flips", "breakaway", "neighbours_kept", "knn_accuracy")
            return dict.fromkeys(named, "there is no bank of clean images")
        return {} if self.bank.labels is not None else {"knn_accuracy": self.bank.reason}


def _from_clean(distance: Distance) -> Callable[[Out, Rows, Tensor], Tensor]:
    return lambda out, rows, t: distance(out["embedding"], rows["clean"])


def _compared(bank: Bank, z: Tensor, clean: Tensor, apart: Tensor, rows: Rows) -> dict[str, Tensor]:
    """Outcomes that need the bank."""
    similarity, near = bank.near(z, rows["key"])
    _, before = bank.near(clean, rows["key"])
    found = {
        "quantile": bank.quantile(apart),
        "breakaway": breakaway(z, clean, bank.vectors.to(z), exclude=bank.own(rows["key"])),
        "flip": near[:, 0] != before[:, 0],
        "kept": neighbours_kept(near, before),
    }
    if bank.labels is not None and "label" in rows:
        predicted = knn_predict(similarity, bank.labels.to(z.device)[near], classes=bank.classes)
        found["knn_correct"] = predicted == rows["label"]
    return found
