"""From a record to an attack: one line per method."""

from __future__ import annotations

from collections.abc import Callable

from holdfast import records
from holdfast.attacks.balls import ball
from holdfast.attacks.executor import Attack, Stage
from holdfast.attacks.pgd import PGD
from holdfast.errors import ConfigError, nearest

MADRY_STEP = 2.5


def _pgd(record: records.Attack) -> PGD:
    relative = record.alpha / record.eps if record.alpha else MADRY_STEP / record.steps
    return PGD(ball(record.norm), record.steps, relative, begin=record.start, seed=record.seed)


METHODS: dict[str, Callable[[records.Attack], Attack]] = {"pgd": _pgd}


def build(record: records.Attack) -> tuple[Attack, tuple[Stage, ...]]:
    """The attack that a record names, with its stages.

    Args:
        record: method, norm, eps, alpha, steps, restarts, start, seed. alpha = 0 means 2.5 * eps / steps (Madry et al.
            2018), which crosses the ball two and a half times.

    Raises:
        ConfigError: no such method.
    """
    if record.method not in METHODS:
        raise ConfigError(f'no attack is called "{record.method}".', next=nearest(record.method, METHODS))
    return METHODS[record.method](record), tuple(Stage(restart=i) for i in range(record.restarts))
