"""`attack`: look at what an attack does to a few images, without measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from holdfast import draws
from holdfast.attacks.executor import SMALLEST, Found, pursue
from holdfast.attacks.harm import check_pixels
from holdfast.attacks.methods import build
from holdfast.configs import AttackConfig
from holdfast.errors import ConfigError
from holdfast.models.encoder import Encoder
from holdfast.records import Attack
from holdfast.tasks.classification import Classification
from holdfast.tasks.embedding import Embedding
from holdfast.tasks.task import Task, victim


def attacked(
    encoder: Encoder, images: Tensor, labels: Tensor | None, config: AttackConfig, *, ids: Sequence[str] = ()
) -> Found:
    """Attack images through the embedding, or through the encoder's own head.

    Args:
        encoder: left as it was.
        images: float32 [b, 3, h, w] in [0, 1].
        labels: int64 [b]; for classification without them, the clean predictions.
        config: eps, norm, steps, push...
        ids: names that key the random start; empty = their positions.

    Returns:
        The worst iterates in the order of the images.

    Raises:
        PixelError: images outside [0, 1].
        ConfigError: an unknown harm, an eps that is no radius, or no head to attack through.
    """
    check_pixels(images)
    task: Task = Embedding() if config.through == "embedding" else Classification()
    record = Attack(
        through=config.through,
        push=config.push or next(iter(task.pushes)),
        norm=config.norm,
        eps=config.eps,
        alpha=config.alpha,
        steps=config.steps,
        restarts=config.restarts,
        seed=config.seed,
    )
    if config.through == "classification" and encoder.head is None:
        raise ConfigError(f"{encoder.name} has no head to attack through.", next="Attack --through embedding.")
    method, stages = build(record)
    device = encoder.mean.device
    pixels = images.to(device)
    rows = {
        "key": draws.keys(ids or [str(i) for i in range(len(images))]).to(device),
        "eps": torch.full((len(images),), config.eps, device=device),
    }
    with victim(encoder, task, record.push) as harm:
        if config.through == "classification":
            with torch.no_grad():
                rows["label"] = harm.see(pixels)["logits"].argmax(1) if labels is None else labels.to(device)
        truth = task.truth(pixels, rows, harm.see)
        slots = max(SMALLEST, min(len(images), 64))
        stop: Literal["lost", "never"] = "lost" if task.stop else "never"
        found = list(pursue(method, harm, pixels, truth, stages, slots=slots, stop=stop))
    trace = {name: torch.cat([part.trace[name] for part in found]) for name in found[0].trace}
    return Found(
        torch.cat([part.at for part in found]),
        torch.cat([part.pixels for part in found]),
        torch.cat([part.score for part in found]),
        trace,
    )
