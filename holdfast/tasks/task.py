"""What every task offers, and the one place where a task becomes a harm."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from holdfast.attacks.harm import Harm, Out, Push, Rows, See
from holdfast.errors import ConfigError, nearest
from holdfast.models.encoder import Encoder, frozen
from holdfast.models.precision import Engine, Precision

PIXELS = "pixels"
"""The level of a task that reads the images themselves."""
DENSE = "dense"
"""The level of a task that answers for every pixel: its own `passes` say how images are seen."""
TOKENS = "-tokens"
"""Ends the name of a level that is read whole: `block11-tokens` is every patch token, where `block11` is their mean."""


Floats = npt.NDArray[np.floating[Any]]


class Measure(NamedTuple):
    """How a task's number is read.

    Attributes:
        name: of the metric.
        outcome: per-image outcome that it is the mean of, or a function of that mean.
        higher_is_better: for the owner of the encoder.
        unit: fraction (of a yes-or-no outcome), nats, distance...
        of: from the mean of the outcome over images, float64 [..., *shape], to the metric [...], the leading dimensions
            being resamples of the images (mIoU of mean counts, a root of mean squares); NaN = there is none, and
            nothing else is NaN. None = the mean itself.
    """

    name: str
    outcome: str
    higher_is_better: bool
    unit: str = "fraction"
    of: Callable[[Floats], Floats] | None = None


class Member(NamedTuple):
    """One attack of a task's own ensemble: the harm that is raised and the method that raises it."""

    push: str
    method: str


class Task(Protocol):
    """An encoder's use, with its head. Everything is per image; rows and outputs have leading dimension b."""

    @property
    def level(self) -> str:
        """The level of the encoder that is read."""
        ...

    @property
    def pushes(self) -> Mapping[str, Push]:
        """Harms by name; the first is the default."""
        ...

    @property
    def ensemble(self) -> tuple[Member, ...]:
        """The attacks that a claim of robustness on this task must survive."""
        ...

    @property
    def stop(self) -> bool:
        """True where a score above 0 means lost, so that an attack may rest."""
        ...

    def modules(self) -> tuple[nn.Module, ...]:
        """The heads, to be frozen with the encoder."""
        ...

    @property
    def classes(self) -> int:
        """How many classes its logits tell apart; 0 where it has none."""
        ...

    def aims(self, out: Out, rows: Rows, *, seed: int) -> Rows:
        """What a targeted attack reads, from the outputs of the clean pixels."""
        ...

    def read(self, encoder: Encoder, vector: Tensor) -> Out:
        """This task's outputs from its level's vector [b, d] (images [b, 3, h, w] at `PIXELS`); differentiable."""
        ...

    def score(self, out: Out, rows: Rows) -> Tensor:
        """Fixed, [b]: compares iterates and attacks."""
        ...

    def truth(self, pixels: Tensor, rows: Rows, see: See) -> Rows:
        """`rows` with what this task compares against, made once from the clean pixels."""
        ...

    def outcome(self, out: Out, rows: Rows) -> dict[str, Tensor]:
        """Per-image outcomes by name, [b] each."""
        ...

    def measures(self) -> tuple[Measure, ...]:
        """The metrics: each the mean of an outcome over any set or resampling of images."""
        ...

    def absent(self) -> dict[str, str]:
        """Metrics that cannot be given here, with the reason."""
        ...


@runtime_checkable
class Dense(Protocol):
    """A task at the level `DENSE`."""

    def passes(self, encoder: Encoder, precision: Precision, engine: Engine) -> See:
        """From pixels [b, 3, h, w] to its outputs for every pixel."""
        ...


def seer(encoder: Encoder, task: Task, precision: Precision = "fp32", engine: Engine = "eager") -> See:
    """The function from pixels to a task's outputs, closed over encoder and head."""
    if isinstance(task, Dense):
        return task.passes(encoder, precision, engine)
    if task.level == PIXELS:
        return lambda pixels: task.read(encoder, pixels)
    return lambda pixels: task.read(encoder, at_level(encoder, pixels, task.level, precision=precision, engine=engine))


def at_level(
    encoder: Encoder, pixels: Tensor, level: str, *, precision: Precision = "fp32", engine: Engine = "eager"
) -> Tensor:
    """What a task reads of images: one vector each, differentiable.

    Args:
        encoder: gives it.
        pixels: float32 [b, 3, h, w] in [0, 1].
        level: as `Encoder.vector` takes it -> [b, d]; one that ends in `TOKENS` is the whole map, all of its positions
            end to end -> [b, positions * channels], so that a distance is over every patch token.
        precision: as `Encoder.vector` takes it.
        engine: as `Encoder.vector` takes it.

    Raises:
        ConfigError: the encoder has no such level, or one without positions was to be read whole.
    """
    if level.endswith(TOKENS):
        return encoder.tokens(pixels, level.removesuffix(TOKENS), precision=precision, engine=engine).flatten(1)
    return encoder.vector(pixels, level, precision=precision, engine=engine)


def check_level(encoder: Encoder, level: str) -> None:
    """Refuse a level that `at_level` cannot read.

    Raises:
        ConfigError: with the nearest one that it can.
    """
    known = (*encoder.levels, *(f"{name}{TOKENS}" for name in encoder.mapped))
    if level not in known:
        raise ConfigError(f'{encoder.name} has no level "{level}".', next=nearest(level, known))


@contextlib.contextmanager
def victim(
    encoder: Encoder,
    task: Task,
    push: str,
    *,
    precision: Precision = "fp32",
    engine: Engine = "eager",
    samples: int = 1,
) -> Iterator[Harm]:  # parameters: a harm, and how its victim is computed
    """A harm on the frozen encoder and head; module modes, flags, gradients and buffers are restored on leaving, and so
    is the global random state, of which a randomised encoder may draw.

    Args:
        encoder: what is attacked.
        task: what it is used for.
        push: name of the harm in `task.pushes`.
        precision: that the attack sees in; whether a row is lost is always judged in float32.
        engine: that the attack sees with.
        samples: passes averaged in every look.

    Yields:
        The harm, valid inside the block.

    Raises:
        ConfigError: the task has no such harm.
    """
    if push not in task.pushes:
        raise ConfigError(f'{type(task).__name__} has no harm "{push}".', next=nearest(push, task.pushes))
    exact = seer(encoder, task)
    see = exact if precision == "fp32" and engine == "eager" else seer(encoder, task, precision, engine)
    with still(encoder, task):
        yield Harm(
            see=see,
            push=task.pushes[push],
            score=task.score,
            exact=None if see is exact else exact,
            samples=samples,
        )


@contextlib.contextmanager
def still(encoder: Encoder, task: Task) -> Iterator[None]:
    """Encoder and heads frozen in evaluation mode for the length of the block, and restored exactly.

    So is the global random state, of which a randomised encoder draws.
    """
    devices = [encoder.mean.device] if encoder.mean.device.type == "cuda" else []
    with contextlib.ExitStack() as stack, torch.random.fork_rng(devices=devices):
        for module in (encoder, *task.modules()):
            stack.enter_context(frozen(module, norm="eval"))
        yield


def observe(task: Task, encoder: Encoder, pixels: Tensor, rows: Rows) -> dict[str, Tensor]:
    """Per-image outcomes of pixels, judged in float32 without gradient; `rows` hold the truth already."""
    with torch.no_grad():
        return task.outcome(seer(encoder, task)(pixels), rows)
