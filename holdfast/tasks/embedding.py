"""The embedding itself as the task: how far it drifts, whether its neighbours change. Needs no label.

The attack is EmbedAttack of Kowalczuk et al. 2024 (arXiv 2407.12588): raise the distance between the embedding of the
perturbed image and that of the clean one. Raw distances cannot be compared across encoders (scale, dimension,
anisotropy), so that drift is also given as a quantile among random pairs of clean embeddings and as a change of the
nearest neighbour (after Petrov and Kwiatkowska 2022, arXiv 2210.04076).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from holdfast import draws
from holdfast.attacks.harm import Out, Push, Rows, See
from holdfast.models.encoder import Encoder
from holdfast.tasks.neighbours import knn_predict, nearest_neighbours
from holdfast.tasks.task import Measure, Member

NEIGHBOURS = 20
PAIRS = 4096


class Bank(NamedTuple):
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
        bank: fitted on clean images; None where drift alone is asked for.
        level: pooled, or any level that `Encoder.vector` takes.
    """

    bank: Bank | None = None
    level: str = "pooled"

    @property
    def pushes(self) -> Mapping[str, Push]:
        """`mse`: mean over the d values of the squared difference; `l2`: its length; `cosine`: 1 - cosine."""
        return {
            "mse": lambda out, rows, t: (out["embedding"] - rows["clean"]).square().mean(1),
            "l2": lambda out, rows, t: _l2(out["embedding"], rows["clean"]),
            "cosine": lambda out, rows, t: 1 - cosine_similarity(out["embedding"], rows["clean"], dim=1),
        }

    @property
    def ensemble(self) -> tuple[Member, ...]:
        """PGD on length and on angle."""
        return (Member("mse", "pgd"), Member("cosine", "pgd"))

    @property
    def stop(self) -> bool:
        """A distance is never lost or won: the whole run counts."""
        return False

    @property
    def classes(self) -> int:
        """No logits."""
        return 0

    def aims(self, out: Out, rows: Rows, *, seed: int) -> Rows:
        """Nothing yet."""
        return {}

    def modules(self) -> tuple[nn.Module, ...]:
        """No head with parameters."""
        return ()

    def read(self, encoder: Encoder, vector: Tensor) -> Out:
        """`embedding` [b, d]: the vector itself."""
        return {"embedding": vector}

    def score(self, out: Out, rows: Rows) -> Tensor:
        """L2 distance to the clean embedding."""
        return _l2(out["embedding"], rows["clean"])

    def truth(self, pixels: Tensor, rows: Rows, see: See) -> Rows:
        """Adds `clean`: the embedding of the clean pixels, [b, d]."""
        with torch.no_grad():
            return {**rows, "clean": see(pixels)["embedding"]}

    def outcome(self, out: Out, rows: Rows) -> dict[str, Tensor]:
        """`cosine` (1 - cosine), `l2`, `quantile`, `flip`, and with labels `knn_correct`.

        `quantile` is the share of random pairs of clean embeddings that are nearer to each other than this image is to
        its clean self; `flip` says that the nearest neighbour in the bank is another one.
        """
        z, clean = out["embedding"], rows["clean"]
        apart = _l2(z, clean)
        found = {"cosine": (1 - cosine_similarity(z, clean, dim=1)).clamp_min(0), "l2": apart}
        return found if self.bank is None else found | _compared(self.bank, z, clean, apart, rows)

    def measures(self) -> tuple[Measure, ...]:
        """Mean drift (cosine, L2, quantile), share of flipped neighbours, kNN accuracy."""
        measures = [
            Measure("cosine_drift", "cosine", higher_is_better=False, unit="1 - cosine"),
            Measure("l2_drift", "l2", higher_is_better=False, unit="distance"),
        ]
        if self.bank is not None:
            measures.append(Measure("quantile", "quantile", higher_is_better=False))
            measures.append(Measure("neighbour_flips", "flip", higher_is_better=False))
        if self.bank is not None and self.bank.labels is not None:
            measures.append(Measure("knn_accuracy", "knn_correct", higher_is_better=True))
        return tuple(measures)

    def absent(self) -> dict[str, str]:
        """What needs a bank, without one; kNN accuracy, where the bank has no labels."""
        if self.bank is None:
            return dict.fromkeys(("quantile", "neighbour_flips", "knn_accuracy"), "there is no bank of clean images")
        return {} if self.bank.labels is not None else {"knn_accuracy": self.bank.reason}


def _compared(bank: Bank, z: Tensor, clean: Tensor, apart: Tensor, rows: Rows) -> dict[str, Tensor]:
    """Outcomes that need the bank."""
    vectors, own = bank.vectors.to(z), rows["key"][:, None] == bank.keys.to(z.device)[None]
    distances = bank.distances.to(z)
    k = min(NEIGHBOURS, len(vectors) - 1)
    similarity, near = nearest_neighbours(z, vectors, k, exclude=own)
    _, before = nearest_neighbours(clean, vectors, 1, exclude=own)
    found = {"quantile": torch.searchsorted(distances, apart) / len(distances), "flip": near[:, 0] != before[:, 0]}
    if bank.labels is not None and "label" in rows:
        labels = bank.labels.to(z.device)
        predicted = knn_predict(similarity, labels[near], classes=int(labels.max()) + 1)
        found["knn_correct"] = predicted == rows["label"]
    return found


def _l2(z: Tensor, clean: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(z - clean, dim=1)
    return length
