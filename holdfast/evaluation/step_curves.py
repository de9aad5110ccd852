"""Metrics over the steps of an attack, from the outcomes of its iterates that were judged on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from holdfast.attacks.methods import traced_steps
from holdfast.evaluation.attack_names import attack_name
from holdfast.evaluation.curves import OUTCOMES, Subject
from holdfast.evaluation.dense_curves import TASKS
from holdfast.evaluation.measuring import measured
from holdfast.evaluation.steps import TRACED
from holdfast.records import Metric
from holdfast.tasks.task import Measure

SHOWN: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "embedding": ("cosine_drift",),
    "segmentation": ("miou", "pixel_accuracy"),
    "depth": ("rmse",),
}
"""The metrics of each judge that the page draws over steps."""


class StepCurve(NamedTuple):
    """A metric over the steps of one attack.

    Attributes:
        subject: name of the encoder.
        task: that judges.
        metric: one of its own.
        attack: in words, without the radius.
        through: task whose head the attack differentiates through.
        norm: of the ball.
        eps: its radius in pixel units.
        steps: from 0: how many steps the iterate had behind it.
        metrics: of the iterates at these steps, and of no other.
    """

    subject: str
    task: str
    metric: str
    attack: str
    through: str
    norm: str
    eps: float
    steps: tuple[int, ...]
    metrics: tuple[Metric, ...]


def step_curves(subject: Subject, task: str, metric: str) -> list[StepCurve]:
    """A metric over the steps of every attack that was traced, on clean images; empty where none was.

    Args:
        subject: the encoder.
        task: that judges, whatever head the attack goes through.
        metric: one of the task's.
    """
    m, found = measure_of(task, metric), []
    for result in subject.attacked(task):
        attack = result.cell.attack
        outcomes = subject.run.outcomes(result.id)
        name = f"{TRACED}{m.outcome}"
        if attack is None or not attack.traced or name not in outcomes:
            continue
        steps = traced_steps(attack)
        each = outcomes[name]
        metrics = tuple(measured((m,), {m.outcome: each[:, at]})[0] for at in range(len(steps)))
        words = attack_name(attack), attack.through, attack.norm, attack.eps
        found.append(StepCurve(subject.name, task, metric, *words, steps, metrics))
    return found


def measure_of(task: str, metric: str) -> Measure:
    """How a metric of any task is read from per-image outcomes."""
    known: Sequence[Measure] = TASKS.get(task, ()) or [
        Measure(o.metric, o.name, o.worse == "lower", o.unit) for o in OUTCOMES.values() if o.task == task
    ]
    return next(m for m in known if m.name == metric)
