"""The model card of a run: what it was trained on, for what, and what is not known of it. Plain text, no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.records import Data, Environment
from holdfast.train_config import TrainConfig
from holdfast.training.methods.table import LABELLED


@dataclass(frozen=True)
class Facts:
    """What the card says beside the config.

    Attributes:
        data: the images.
        trained: how many of them were trained on.
        held: how many were held out.
        side: of the images, in pixels.
        objective: the loss and its views, in a sentence.
        steps: optimizer steps.
        passes: of the encoder, forward and backward, one image each.
        seconds: wall time of all processes that worked on it.
        hardware: where the last of them ran.
        knn: kNN accuracy of the random weights and of the trained ones; None where there is none.
    """

    data: Data
    trained: int
    held: int
    side: tuple[int, int]
    objective: str
    steps: int
    passes: int
    seconds: float
    hardware: Environment
    knn: tuple[float | None, float | None]


def model_card(config: TrainConfig, facts: Facts) -> str:
    """The card, Markdown.

    Args:
        config: of the run.
        facts: what came of it.
    """
    root = f" in `{facts.data.root}`" if facts.data.root else ""
    return f"""# {config.model}, {config.method}, {_against(config)}

An encoder trained with Holdfast {_labels(config)}. Load it with `holdfast.load("{config.out}")`; it takes float pixels
in [0, 1] and normalises inside.

## Data

`{facts.data.source}`{root}, split `{facts.data.split}`: {facts.trained:,} images of
{facts.side[0]}x{facts.side[1]} pixels (SHA-256 of ids and labels: `{facts.data.digest_of_images}`). {_held(facts)}

## Objective

{facts.objective}

| | |
|---|---|
| adversary | {_adversary(config)} |
| epochs, batch, optimizer steps | {config.epochs}, {config.batch}, {facts.steps:,} |
| optimizer | {_OPTIMIZERS[config.optimizer]}, weight decay {config.weight_decay:g} |
| learning rate | {config.lr:g} after {config.warmup:g} epochs, then {_SCHEDULES[config.schedule]} |
| BatchNorm | {_BATCHNORMS[config.batchnorm]} |
| precision | {config.precision} |
| cost | {facts.passes:,} forward-backward passes of one view; {_duration(facts.seconds)} on {_hardware(facts)} |
| seed | {config.seed} |

## kNN accuracy

{_knn(config, facts)}

## Limits

- {_limit(config)}
- It saw the images above and nothing else; elsewhere its features may be worth little.
- Training measures no robustness. `holdfast bench {config.out} --data {config.data}` does, and adds its numbers here.
"""


def _duration(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _hardware(facts: Facts) -> str:
    found = facts.hardware
    return f"{found.device}, {found.threads} threads, torch {found.torch}"


def _against(config: TrainConfig) -> str:
    return "standard" if config.adversary == "none" else f"adversarial, {config.norm} {_radius(config.eps)}"


def _radius(eps: float) -> str:
    return f"{eps * 255:.3g}/255"


def _adversary(config: TrainConfig) -> str:
    if config.adversary == "none":
        return "none"
    ball = f"{config.norm} ball of radius {_radius(config.eps)}"
    if config.adversary == "free":
        return f"free, {ball}, {config.replays} replays of every batch, steps of {_radius(config.alpha or config.eps)}"
    alpha = config.alpha or 2.5 * config.eps / config.steps
    kept = ", its gradients added to the weights' as in published code" if config.adversary == "pgd_summed" else ""
    return f"PGD, {ball}, {config.steps} steps of {_radius(alpha)}, {config.start} start{_ramp(config)}{kept}"


def _ramp(config: TrainConfig) -> str:
    return f", radius and step growing over {config.ramp:g} epochs" if config.ramp else ""


def _labels(config: TrainConfig) -> str:
    return "with labels" if config.method in LABELLED else "without labels"


def _held(facts: Facts) -> str:
    if not facts.held:
        return "None was held out."
    return f"{facts.held:,} more were held out for the kNN check and never trained on."


def _knn(config: TrainConfig, facts: Facts) -> str:
    before, after = facts.knn
    if before is None or after is None:
        return "Not measured: there are no labels, or too few images."
    alone = "" if config.method in LABELLED else " Labels served this check alone."
    return (
        f"{after:.1%} (random weights: {before:.1%}) of {facts.held:,} held-out images, by the 20 nearest training "
        "images in cosine with weights exp(cosine / 0.07)." + alone
    )


def _limit(config: TrainConfig) -> str:
    if config.adversary == "none":
        return "It was not trained against an adversary: expect small perturbations to move its features far."
    ball = f"{config.norm}, {_radius(config.eps)}"
    return f"The adversary knew one ball ({ball}): other norms and larger radii are untrained."


_OPTIMIZERS = {
    "adamw": "AdamW",
    "sgd_plain": "SGD without momentum",
    "sgd": "SGD with Nesterov momentum 0.9",
    "lars": "LARS (trust 0.005, clipped) on SGD with Nesterov momentum 0.9",
}
_SCHEDULES = {
    "stepped": "a tenth after 60 % of the steps and a hundredth after 80 %",
    "cosine": "a cosine to zero at the last optimizer step",
    "rewarmed": "a cosine that is zero after as many optimizer steps as there are batches, and rises again",
}
_BATCHNORMS = {
    "train": "the attack sees statistics of the batch",
    "frozen": "the attack sees running statistics",
    "fixed": "running statistics throughout, which did not change",
    "dual": "perturbed views have a set of their own, which this encoder holds",
}
ROBUSTNESS = "## Robustness"


def with_robustness(card: str, rows: Mapping[str, str], *, origin: str) -> str:
    """A card with measured numbers in it, in place of those that it held before.

    Args:
        card: Markdown, as `model_card` makes it or with numbers already.
        rows: what was measured and what came out, in words.
        origin: of the numbers.

    Returns:
        The card with a section before its limits, or at its end where it has none.
    """
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {found} |" for name, found in rows.items())])
    section = f"{ROBUSTNESS}\n\nMeasured by `holdfast bench`: {origin}.\n\n{table}\n\n"
    before, _, old = card.partition(f"{ROBUSTNESS}\n")
    if old:
        _, heading, after = old.partition("\n## ")
        return before + section + (heading.lstrip("\n") + after)
    head, limits, tail = card.partition("## Limits")
    return f"{head.rstrip()}\n\n{section}{limits}{tail}"
