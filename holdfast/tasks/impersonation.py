"""Attacks towards something: another image's embedding, or a wrong class, drawn for each image.

An image that looks like itself and is taken for another one is what a face or a copy detector has to fear. After the
targeted attacks and the impersonation of Petrov and Kwiatkowska 2022 (arXiv 2210.04076): of a pair (x, x'),

    delta* = argmin d(f(x + delta), f(x')),      relative quantile = d(f(x + delta*), f(x')) / d(f(x), f(x'))

where x' is here an image of the bank, of another class where there are labels. Which one, or which wrong class,
depends on the image's key and the seed alone. Both tasks wrap the one whose outputs they move: the same head, the same
outcomes, and a few more. (The paper's overlap risk compares attacks on both images of a pair and is not given here.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from holdfast import draws
from holdfast.attacks.harm import Out, Push, Rows, See
from holdfast.attacks.scores import margin
from holdfast.errors import ConfigError, DataError, TrustError
from holdfast.models.encoder import Encoder
from holdfast.tasks.classification import Classification
from holdfast.tasks.distances import DISTANCES, Distance, l2
from holdfast.tasks.embedding import Bank, Embedding
from holdfast.tasks.neighbours import knn_predict, nearest_neighbours
from holdfast.tasks.task import Measure, Member, Task

AIMS = ("goal", "target")
"""The rows, int64 [b], that say what an image was to pass for: the key of another image, a class."""
_AIMED = "_target"

T = TypeVar("T", bound=Task)


def towards(task: Task) -> Task:
    """The targeted form of a task.

    Args:
        task: classification, or an embedding with a bank.

    Raises:
        ConfigError: any other task, or an embedding without a bank.
    """
    if isinstance(task, Classification):
        return Targeted(task)
    if isinstance(task, Embedding):
        return Impersonation(task)
    raise ConfigError(
        f"nothing can be aimed at through {type(task).__name__}.", next="Attack through classification or embedding."
    )


@dataclass(frozen=True)
class _Aimed(ABC, Generic[T]):
    """What both have in common: all that the task has, but for its harms, score and aims.

    Attributes:
        task: the one whose outputs are moved.
    """

    task: T

    @property
    def level(self) -> str:
        """That of the task."""
        return self.task.level

    @property
    @abstractmethod
    def pushes(self) -> Mapping[str, Push]:
        """Harms towards the aim, under the names of the task's own."""

    @property
    def ensemble(self) -> tuple[Member, ...]:
        """That of the task: its harms have the same names here."""
        return self.task.ensemble

    @property
    def stop(self) -> bool:
        """A score above 0 says that the image passes for what it was aimed at."""
        return True

    @property
    def classes(self) -> int:
        """As many as the task tells apart."""
        return self.task.classes

    @abstractmethod
    def aims(self, out: Out, rows: Rows, *, seed: int) -> Rows:
        """What each image is to pass for."""

    def modules(self) -> tuple[nn.Module, ...]:
        """The heads of the task."""
        return self.task.modules()

    def read(self, encoder: Encoder, vector: Tensor) -> Out:
        """The outputs of the task."""
        return self.task.read(encoder, vector)

    @abstractmethod
    def score(self, out: Out, rows: Rows) -> Tensor:
        """[b]; above 0 = the image passes for what it was aimed at."""

    def truth(self, pixels: Tensor, rows: Rows, see: See) -> Rows:
        """That of the task; what is aimed at, `aims` adds."""
        return self.task.truth(pixels, rows, see)

    def absent(self) -> dict[str, str]:
        """What the task cannot give."""
        return self.task.absent()


@dataclass(frozen=True)
class Targeted(_Aimed[Classification]):
    """Classification towards one wrong class of each image."""

    @property
    def pushes(self) -> Mapping[str, Push]:
        """The task's harms that aim at `rows["target"]`, also under their plain names.

        `ce`: minus the target's cross-entropy; `margin`: its logit minus the best other one, which is the score.
        """
        aimed = {name: push for name, push in self.task.pushes.items() if name.endswith(_AIMED)}
        plain = {name.removesuffix(_AIMED): push for name, push in aimed.items()}
        return {**plain, "margin": lambda out, rows, t: -margin(out["logits"], rows["target"]), **aimed}

    def aims(self, out: Out, rows: Rows, *, seed: int) -> Rows:
        """`target` int64 [b]: drawn evenly among the wrong classes, of those that can occur.

        Also `ranked` int64 [b, k - 1], that class at every rank: whichever a stage takes, it aims at this one.

        Raises:
            DataError: there is one class.
        """
        label, k = rows["label"], out["logits"].shape[1]
        known = torch.tensor(self.task.within or tuple(range(k)), device=label.device)
        if len(known) < 2:
            raise DataError("There is one class, and no wrong one to aim at.", next="Measure more classes.")
        place = draws.integers(rows["key"], len(known) - 1, "target class", seed)
        own = (known == label[:, None]).int().argmax(1)
        target = known[place + (place >= own)]
        return {"target": target, "ranked": target[:, None].expand(-1, k - 1)}

    def score(self, out: Out, rows: Rows) -> Tensor:
        """Logit of the target minus the best other one: above 0 = the target is predicted."""
        return -margin(out["logits"], rows["target"])

    def outcome(self, out: Out, rows: Rows) -> dict[str, Tensor]:
        """Those of the task, with `target` and `target_reached`: whether it is the prediction."""
        reached = out["logits"].argmax(1) == rows["target"]
        return {**self.task.outcome(out, rows), "target": rows["target"], "target_reached": reached}

    def measures(self) -> tuple[Measure, ...]:
        """Those of the task, with the share of images that are taken for their target."""
        return (*self.task.measures(), Measure("target_reached", "target_reached", higher_is_better=False))


@dataclass(frozen=True)
class Impersonation(_Aimed[Embedding]):
    """An embedding towards the clean one of another image of the bank.

    Raises:
        ConfigError: the task has no bank; or its score reads the goal's label, and the bank has none.
    """

    def __post_init__(self) -> None:
        if self.task.bank is None:
            raise ConfigError(
                "There is no bank of clean images to aim at one of.", next="Fit one: Embedding(bank(...))."
            )
        if self.task.scored != "drift" and self.task.bank.labels is None:
            raise ConfigError(
                f"{self.task.bank.reason}.".capitalize(),
                asked=f'The score "{self.task.scored}" asks for the class of the goal.',
                next='Use the score "drift".',
            )

    @property
    def bank(self) -> Bank:
        """Where goals come from."""
        assert self.task.bank is not None, "checked when it was made"
        return self.task.bank

    @property
    def pushes(self) -> Mapping[str, Push]:
        """Minus every distance of `distances.py` to the goal, `rows["goal_vector"]`; not flat at the clean image."""
        return {name: _to_goal(distance) for name, distance in DISTANCES.items()}

    def aims(self, out: Out, rows: Rows, *, seed: int) -> Rows:
        """`goal` int64 [b], the key of an image of the bank; `goal_vector` [b, d]; with labels `target`, its class.

        Drawn evenly among the other images, of other classes where both bank and rows have labels.

        Raises:
            DataError: the bank holds no such image.
        """
        bank, z = self.bank, out["embedding"]
        other = ~bank.own(rows["key"])
        labels = None if bank.labels is None else bank.labels.to(z.device)
        if labels is not None and "label" in rows:
            other &= labels[None] != rows["label"][:, None]
        places = _drawn(other, rows["key"], seed)
        found = {"goal": bank.keys.to(z.device)[places], "goal_vector": bank.vectors.to(z)[places]}
        return found if labels is None else {**found, "target": labels[places]}

    def score(self, out: Out, rows: Rows) -> Tensor:
        """Above 0 = the image passes for its goal; by what, the task's `scored` says.

        `drift`: its cosine to the goal minus that to the nearest other image of the bank (itself left out): the goal is
        its nearest neighbour. `knn`: the goal's class has the largest vote. `probe`: it has the largest logit.
        """
        z = out["embedding"]
        if self.task.scored == "drift":
            return self._standing(z, rows["goal_vector"], rows)
        return -self.task.against(z, rows, rows["target"])

    def outcome(self, out: Out, rows: Rows) -> dict[str, Tensor]:
        """Those of the task, with what became of the aim; reads `rows["goal"]`, and looks it up in this bank.

        `goal_reached`: the nearest neighbour in the bank is the goal. `goal_distance`: L2 to it. `goal_quantile`: the
        share of random pairs of clean embeddings that are nearer. `goal_ratio`: that distance over the clean image's.
        With labels `target_reached`: the neighbours vote for the goal's class.

        Raises:
            TrustError: the bank does not hold the goal.
        """
        z, clean, bank = out["embedding"], rows["clean"], self.bank
        held = bank.own(rows["goal"])
        if not bool(held.any(1).all()):
            raise TrustError(
                "An image was aimed at one that this bank does not hold.",
                next="Fit the banks of attack and judge on the same images.",
            )
        goal = bank.vectors.to(z)[held.int().argmax(1)]
        apart, before = l2(z, goal), l2(clean, goal)
        found = {
            **self.task.outcome(out, rows),
            "goal_reached": self._standing(z, goal, rows) > 0,
            "goal_distance": apart,
            "goal_quantile": bank.quantile(apart),
            "goal_ratio": torch.where(before > 0, apart / before, 1.0),
        }
        if bank.labels is not None:
            similarity, near = bank.near(z, rows["key"])
            labels = bank.labels.to(z.device)
            voted = knn_predict(similarity, labels[near], classes=bank.classes)
            found["target_reached"] = voted == labels[held.int().argmax(1)]
        return found

    def measures(self) -> tuple[Measure, ...]:
        """Those of the task; share of images that reached their goal, and how near to it the others came."""
        voted = (
            (Measure("target_reached", "target_reached", higher_is_better=False),)
            if self.bank.labels is not None
            else ()
        )
        return (
            *self.task.measures(),
            Measure("goal_reached", "goal_reached", higher_is_better=False),
            Measure("goal_distance", "goal_distance", higher_is_better=True, unit="distance"),
            Measure("goal_quantile", "goal_quantile", higher_is_better=True),
            Measure("goal_ratio", "goal_ratio", higher_is_better=True, unit="ratio"),
            *voted,
        )

    def _standing(self, z: Tensor, goal: Tensor, rows: Rows) -> Tensor:
        """Cosine to the goal minus the largest cosine to any other image of the bank but the image itself: [b]."""
        taken = self.bank.own(rows["key"]) | self.bank.own(rows["goal"])
        rival, _ = nearest_neighbours(z, self.bank.vectors.to(z), 1, exclude=taken)
        return cosine_similarity(z, goal, dim=1) - rival[:, 0]


def _to_goal(distance: Distance) -> Callable[[Out, Rows, Tensor], Tensor]:
    return lambda out, rows, t: -distance(out["embedding"], rows["goal_vector"])


def _drawn(other: Tensor, keys: Tensor, seed: int) -> Tensor:
    """One of the allowed places of each row, bool [b, n] -> int64 [b]."""
    if not bool(other.any(1).all()):
        raise DataError(
            "The bank holds no other image to aim at, of another class where there are labels.", next="Fit it on more."
        )
    count = other.sum(1)
    drawn = [draws.integers(keys[i : i + 1], int(n), "goal", seed) for i, n in enumerate(count.tolist())]
    # The place whose running count of allowed ones is the first to pass the number that was drawn.
    return (other.cumsum(1) <= torch.cat(drawn)[:, None]).sum(1)
