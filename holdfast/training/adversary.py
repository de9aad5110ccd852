"""Where the perturbation of a training step comes from: nowhere, projected gradient ascent, or the step's own gradient.

Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018; Shafahi et al., Adversarial
Training for Free!, NeurIPS 2019 (arXiv 1904.12843).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from holdfast import draws
from holdfast.attacks.balls import Ball
from holdfast.data.batches import Rows
from holdfast.errors import ConflictError
from holdfast.models.encoder import frozen
from holdfast.training.methods.method import Method, Views
from holdfast.training.ranks import gathered, rank, world

BatchNorm = Literal["eval", "batch"]


class Adversary(Protocol):
    """What perturbs the views of a batch.

    Attributes:
        replays: optimizer steps per batch.
        steps: passes of an ascent of its own, beside those that the weights learn from.
        norm: BatchNorm of the clean branch and of the ascent: `batch` = statistics of the batch, `eval` = running ones.
            Running statistics never change through either.
    """

    @property
    def replays(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def norm(self) -> BatchNorm: ...

    def propose(self, method: Method, views: Views, truth: Rows) -> dict[str, Tensor]:
        """The attacked views of `method`, perturbed: inside the ball, inside [0, 1], a leaf each."""
        ...

    def learn(self) -> None:
        """Called after each backward pass, with the gradients of the loss in place."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, of all ranks; every rank calls it."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


@dataclass(frozen=True)
class Stateless:
    """An adversary that carries nothing from one batch to the next."""

    @property
    def replays(self) -> int:
        """One optimizer step per batch."""
        return 1

    def learn(self) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


@dataclass(frozen=True)
class NoAdversary(Stateless):
    """Standard training."""

    @property
    def steps(self) -> int:
        """None."""
        return 0

    @property
    def norm(self) -> BatchNorm:
        """Of a clean branch, for methods that have one all the same."""
        return "batch"

    def propose(self, method: Method, views: Views, truth: Rows) -> dict[str, Tensor]:
        """No perturbed view."""
        return {}


@dataclass(frozen=True)
class PGD(Stateless):
    """A fixed number of ascent steps on `method.harm` from a start that is keyed by image and epoch.

    The ascent sees the bare method with its parameters frozen, so that no gradient of it reaches the weights; its modes
    and buffers are restored. The last iterate is taken, as in training always.

    Attributes:
        ball: where the perturbation may go.
        eps: radius in pixel units.
        alpha: step in pixel units.
        steps: gradient steps.
        norm: BatchNorm during the ascent, see `Adversary`.
        ramp: share of the run over which radius and step grow linearly from a hundredth to what they are.
        begin: random; zero, as some published code has it; or normal, 0.001 times a normal draw (TRADES).
    """

    ball: Ball
    eps: float
    alpha: float
    steps: int
    norm: BatchNorm = "batch"
    begin: Literal["random", "zero", "normal"] = "random"
    ramp: float = 0.0

    def propose(self, method: Method, views: Views, truth: Rows) -> dict[str, Tensor]:
        """The last iterate of the ascent, one perturbation per attacked view, all raised together."""
        clean = {name: views[name].detach() for name in method.attacked}
        part = self._part(method)
        moved, radius = self._begun(clean, truth["key"], part)
        with frozen(method, norm=self.norm), torch.enable_grad():
            for step in range(self.steps):
                seen = {name: x.requires_grad_() for name, x in moved.items()}
                harm = method.harm(seen, truth, torch.full_like(radius, step / self.steps)).sum()
                gradients = torch.autograd.grad(harm, list(seen.values()))
                moved = self._stepped(clean, seen, gradients, radius, part)
        return moved

    def _part(self, method: Method) -> float:
        """Share of radius and step that is reached."""
        return min(1.0, max(0.01, method.done / self.ramp)) if self.ramp else 1.0

    def _begun(self, clean: Views, keys: Tensor, part: float) -> tuple[dict[str, Tensor], Tensor]:
        radius = torch.full((len(keys),), self.eps * part, device=next(iter(clean.values())).device)
        if self.begin == "zero":
            return {name: x.clone() for name, x in clean.items()}, radius
        if self.begin == "normal":
            drawn = {name: draws.normal(keys, x.shape[1:], "adversary", name).to(x) for name, x in clean.items()}
            return {name: self.ball.project(x, x + 0.001 * drawn[name], radius) for name, x in clean.items()}, radius
        return {name: self.ball.start(x, radius, keys, "adversary", name) for name, x in clean.items()}, radius

    def _stepped(
        self, clean: Views, seen: Views, gradients: tuple[Tensor, ...], radius: Tensor, part: float
    ) -> dict[str, Tensor]:
        alpha = self.alpha * part
        return {
            name: self.ball.project(clean[name], (x + alpha * self.ball.steepest(gradient)).detach(), radius)
            for (name, x), gradient in zip(seen.items(), gradients)
        }


@dataclass(frozen=True)
class SummedPGD(PGD):
    """PGD as published code runs it: on the training module itself, whose weights keep the gradients of the attack.

    The gradients of all ascents are added to those of the loss, and the attack's batches move the running statistics of
    BatchNorm. For comparison with numbers that were made so (CF-AMC-SSL's PGD rows), and for nothing else.
    """

    def propose(self, method: Method, views: Views, truth: Rows) -> dict[str, Tensor]:
        """As `PGD`, leaving gradients in the weights."""
        clean = {name: views[name].detach() for name in method.attacked}
        part = self._part(method)
        moved, radius = self._begun(clean, truth["key"], part)
        with torch.enable_grad():
            for step in range(self.steps):
                seen = {name: x.requires_grad_() for name, x in moved.items()}
                torch.autograd.backward(method.harm(seen, truth, torch.full_like(radius, step / self.steps)).sum())
                gradients = tuple(x.grad if x.grad is not None else torch.zeros_like(x) for x in seen.values())
                moved = self._stepped(clean, seen, gradients, radius, part)
        return moved


@dataclass
class Free:
    """Each batch is replayed; the perturbation takes one step up the gradient of each replay's own backward pass.

    It belongs to a view and a place in the batch, stays from one batch to the next, and is brought into the ball and
    the box of the images that come next before they are seen (published code leaves the box there).

    Attributes:
        ball: where the perturbation may go.
        eps: radius in pixel units.
        alpha: step in pixel units.
        replays: optimizer steps per batch.
        norm: BatchNorm of the clean branch, see `Adversary`.
        delta: the perturbations by view, [b, 3, h, w]; zero where there is none yet.
    """

    ball: Ball
    eps: float
    alpha: float
    replays: int
    norm: BatchNorm = "batch"
    delta: dict[str, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """None: it learns from the passes of the weights."""
        return 0

    def __post_init__(self) -> None:
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    def propose(self, method: Method, views: Views, truth: Rows) -> dict[str, Tensor]:
        """The perturbation as it is, on these images."""
        for name in method.attacked:
            x = views[name].detach()
            delta = self._of(name, x)
            moved = self.ball.project(x, x + delta, self._radius(x)).requires_grad_()
            self._seen[name] = (x, moved)
        return {name: moved for name, (_, moved) in self._seen.items()}

    def learn(self) -> None:
        """One step up the gradient that the backward pass left."""
        for name, (x, moved) in self._seen.items():
            if moved.grad is None:
                raise RuntimeError(f"the loss does not depend on the view {name}")
            risen = moved.detach() + self.alpha * self.ball.steepest(moved.grad)
            self.delta[name] = self.ball.project(x, risen, self._radius(x)) - x
        self._seen = {}

    def state_dict(self) -> dict[str, Any]:
        """The perturbations of all ranks, one tensor per view."""
        return {"delta": {name: gathered(delta).cpu() for name, delta in self.delta.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the perturbations of all ranks: this rank takes its part."""
        self.delta = {name: delta.chunk(world())[rank()] for name, delta in state["delta"].items()}

    def _of(self, name: str, x: Tensor) -> Tensor:
        delta = self.delta.get(name)
        if delta is None:
            return torch.zeros_like(x)
        if delta.shape != x.shape:
            raise ConflictError(
                f"The perturbation of the view {name} is {tuple(delta.shape)}, the batch {tuple(x.shape)}.",
                next="Continue with the same --batch, or start anew with --replace.",
            )
        return delta.to(x)

    def _radius(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.eps, device=x.device)
