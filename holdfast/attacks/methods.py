"""From a record to an attack: one line per method."""

from __future__ import annotations

from collections.abc import Callable

from holdfast import records
from holdfast.attacks.balls import ball
from holdfast.attacks.executor import Attack, Stage
from holdfast.attacks.pgd import PGD
from holdfast.errors import ConfigError, nearest

MADRY_STEP = 2.5
# Measured on a plain CIFAR-10 ResNet at 1/255, 20 steps: a quarter fools more images than an eighth, and sooner.
SHORTEST_STEP = 0.25


def step_size(eps: float, alpha: float, steps: int) -> float:
    """A step in pixel units: `alpha`, or where it is 0, 2.5 * eps / steps (Madry et al. 2018), at least eps / 4.

    The worst iterate is kept, so that a step too long to settle costs nothing, and one too short to arrive does.
    """
    return alpha or eps * max(MADRY_STEP / steps, SHORTEST_STEP)


def _pgd(record: records.Attack) -> PGD:
    relative = step_size(record.eps, record.alpha, record.steps) / record.eps
    return PGD(ball(record.norm), record.steps, relative, begin=record.start, seed=record.seed)


METHODS: dict[str, Callable[[records.Attack], Attack]] = {"pgd": _pgd}


def build(record: records.Attack) -> tuple[Attack, tuple[Stage, ...]]:
    """The attack that a record names, with its stages.

    Args:
        record: method, norm, eps, alpha (0 = see `step_size`), steps, restarts, start, seed.

    Raises:
        ConfigError: no such method or norm, a radius or a count that cannot be, or a start without a gradient.
    """
    if record.method not in METHODS:
        raise ConfigError(f'no attack is called "{record.method}".', next=nearest(record.method, METHODS))
    if not record.eps > 0 or record.steps < 1 or record.restarts < 1 or record.alpha < 0:
        raise ConfigError(
            f"an attack with eps {record.eps:g}, alpha {record.alpha:g}, {record.steps} steps, "
            f"{record.restarts} restarts.",
            next="eps must be above 0 (pixels span [0, 1]; write 8/255), steps and restarts at least 1.",
        )
    if record.norm == "linf" and record.eps > 1:
        raise ConfigError(
            f"eps {record.eps:g} is more than the whole range of a pixel.", next=f"Write {record.eps:g}/255."
        )
    if record.start == "zero" and record.through == "embedding":
        raise ConfigError(
            "An embedding attack from the clean image: its gradient is exactly zero there.", next='Use start "random".'
        )
    return METHODS[record.method](record), tuple(Stage(restart=i) for i in range(record.restarts))
