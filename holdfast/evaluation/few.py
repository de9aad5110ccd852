"""An attack on a few images, outside of a run: what is asked for is checked, completed, and done.

Everything that cannot be attacked is refused before the first step: pixels that are no images, labels that do not fit,
probabilities where logits are wanted, an encoder that gives no gradient to a method that follows one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from holdfast import draws
from holdfast.attacks.board import laid
from holdfast.attacks.cascade import cascade
from holdfast.attacks.executor import SMALLEST, Found, scored
from holdfast.attacks.harm import Out, Rows, check_pixels
from holdfast.attacks.methods import build, settled, stop_of
from holdfast.configs import AttackConfig
from holdfast.errors import ConfigError, DataError, TrustError, nearest
from holdfast.evaluation.attacking import checked, compared, refuse_blindness
from holdfast.evaluation.few_heads import decided, dense_head, truth_of
from holdfast.evaluation.starts import Delta, read_delta
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder, frozen
from holdfast.records import DENSE_TASKS, Attack, Model
from holdfast.tasks.classification import Classification
from holdfast.tasks.embedding import Embedding, bank
from holdfast.tasks.impersonation import towards
from holdfast.tasks.task import Dense, Task, seer, still, victim

SLOTS = 64
WHOLE = 1e-3
"""Rows that sum to one within this, and have no negative number, are probabilities."""
FEWEST = 3
"""So many images it takes to see whose neighbour one becomes: itself, its goal, another."""
LINF_EPS = 4 / 255
"""The radius where none is given, of a Linf ball alone."""
USUAL = {"l2": "0.5", "l1": "12"}
"""Radii that are usual for small images in the other balls."""


class Aim(NamedTuple):
    """Everything that an attack on a few images needs.

    Attributes:
        encoder: that is judged.
        task: what it is used for.
        made_on: encoder and task that the attack is made on; the same two where there is no surrogate.
        record: of the attack, with nothing left open.
        pixels: float32 [b, 3, h, w] on the device.
        rows: `key`, `eps`, and where they are known `label`, `mask`, `depth`, `target`, `begin`.
    """

    encoder: Encoder
    task: Task
    made_on: tuple[Encoder, Task]
    record: Attack
    pixels: Tensor
    rows: dict[str, Tensor]

    @property
    def slots(self) -> int:
        """Images per pass."""
        return max(SMALLEST, min(len(self.pixels), SLOTS))


def aimed(
    encoder: Encoder,
    images: Tensor | Sequence[Tensor],
    labels: Tensor | None,
    config: AttackConfig,
    *,
    ids: Sequence[str] = (),
    classes: Sequence[str] = (),
    delta: Delta | None = None,
    surrogate: Encoder | None = None,
    task: Task | None = None,
) -> Aim:  # parameters: images with what belongs to them; a record would only rename it
    """Check what is asked for, and complete it.

    Args:
        encoder: left as it was.
        images: float32 [b, 3, h, w] in [0, 1], or b images [3, h, w] of one size.
        labels: int64 [b]; for classification without them, the clean predictions. Through a dense head masks, int64
            [b, h, w], or depth in metres, float32 [b, h, w].
        config: method, eps, norm, steps, push...
        ids: names that key the random start; empty = their positions.
        classes: names of the labels, so that a target can be named.
        delta: where to begin: perturbations [b, 3, h, w], or one [3, h, w] for all; or a file of them (`read_delta`).
        surrogate: the encoder that the attack is made on, where it is not `encoder`; None = as the config says.
        task: what is attacked, where that is known already; None = as the config says.

    Raises:
        PixelError: images outside [0, 1].
        DataError: images of different sizes, labels or a delta that do not fit.
        CheckpointError: a dense head that cannot be read.
        ConfigError: an unknown harm, an eps that is no radius, no head to attack through, or probabilities for logits.
        TrustError: outputs that are not finite.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "attack needs gradients and was called inside torch.inference_mode().", next="Call it outside."
        )
    config, pixels = decided(config), stacked(images)
    if surrogate is None and config.surrogate:
        named = Model(spec=config.surrogate, arch=config.arch, options=config.options)
        surrogate = load(named, device=encoder.mean.device)
    models = [encoder] if surrogate is None or surrogate is encoder else [encoder, surrogate]
    dense = config.through in DENSE_TASKS
    tasks = [task or task_of(model, config, pixels) for model in models]
    _check_classes(models, tasks)
    known, device = 0 if dense else tasks[0].classes, encoder.mean.device
    record = record_of(config, tasks[0])
    if labels is not None and known:
        _check_labels(labels, len(pixels), known)
    rows = {
        "key": draws.keys(ids or [str(i) for i in range(len(pixels))]).to(device),
        "eps": torch.full((len(pixels),), record.eps or torch.inf, device=device),
    }
    if dense:
        rows |= {name: row.to(device) for name, row in truth_of(labels, config.through, len(pixels)).items()}
    if delta is not None:
        rows["begin"] = read_delta(delta, pixels).to(device)
        record = msgspec.structs.replace(record, start="given")
    aim = Aim(encoder, tasks[0], (models[-1], tasks[-1]), record, laid(pixels.to(device)), rows)
    outs = [_outputs(aim, model, task) for model, task in zip(models, tasks)]
    if known:
        rows["label"] = outs[0]["logits"].argmax(1) if labels is None else labels.to(device)
    if config.target:
        rows["target"] = torch.full_like(rows["key"], target_of(config, known, classes))
        rows["ranked"] = rows["target"][:, None].expand(-1, known - 1)
    if record.aim == "towards":
        tasks = [_towards(task, out, rows) for task, out in zip(tasks, outs)]
    return aim._replace(task=tasks[0], made_on=(models[-1], tasks[-1]))


def pursued(aim: Aim) -> Found:
    """Run the attack.

    Returns:
        The worst iterates in the order of the images, scored on the encoder that is judged. With a target, a score
        above 0 says that the image is taken for it.

    Raises:
        ConfigError: an encoder without gradients for a method that follows them.
    """
    (model, task), record = aim.made_on, aim.record
    members = build(record, classes=task.classes)
    if "begin" in aim.rows and not any(getattr(member.attack, "begin", "") == "given" for member in members):
        raise ConfigError(
            f"{record.method} begins where it chooses.",
            asked="An attack from a given delta was asked for.",
            next="Take pgd, mpgd or apgd.",
        )
    with victim(model, task, members[0].push, precision=record.precision, samples=record.samples) as harm:
        see = harm.exact or harm.see
        truth = by_chunks(aim, lambda x, rows: compared(task, record, x, rows, see))
        refuse_blindness(record, model.name, aim.pixels, harm.see)
        # What fools a surrogate by a hair need not fool another encoder: there the whole run counts.
        stop = stop_of(record, lost=task.stop and model is aim.encoder)
        found = cascade(members, harm, task.pushes, aim.pixels, truth, slots=aim.slots, stop=stop)
        if harm.exact is not None:
            found = found._replace(score=scored(harm, found.pixels, truth, aim.slots))
    checked(record, found.pixels, aim.pixels)
    if model is aim.encoder:
        return found
    trace = {**found.trace, "surrogate_score": found.score}
    return Found(found.pixels, outcomes(aim, found.pixels)["score"], trace)


def outcomes(aim: Aim, pixels: Tensor) -> dict[str, Tensor]:
    """What the encoder makes of other pixels in the place of the images: outcomes of its task, and `score`; [b] each.

    Args:
        aim: as `aimed` returns it.
        pixels: float32 [b, 3, h, w].
    """
    see, task = seer(aim.encoder, aim.task), aim.task

    def judged(clean: Tensor, rows: Rows) -> Rows:
        truth, out = compared(task, aim.record, clean, rows, see), see(laid(rows["now"]))
        return {**task.outcome(out, truth), "score": task.score(out, truth)}

    with still(aim.encoder, task), torch.no_grad():
        return by_chunks(aim._replace(rows={**aim.rows, "now": pixels.to(aim.pixels)}), judged)


def by_chunks(aim: Aim, work: Callable[[Tensor, Rows], Rows]) -> dict[str, Tensor]:
    """What `work` gives for images and rows, in passes padded to one size."""
    parts: list[Rows] = []
    for first in range(0, len(aim.pixels), aim.slots):
        at = torch.arange(first, min(first + aim.slots, len(aim.pixels)), device=aim.pixels.device)
        padded = at[torch.arange(aim.slots, device=at.device) % len(at)]
        found = work(laid(aim.pixels[padded]), {name: row[padded] for name, row in aim.rows.items()})
        parts.append({name: row[: len(at)] for name, row in found.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


# -- what was asked for ------------------------------------------------------------------------------------------------


def stacked(images: Tensor | Sequence[Tensor]) -> Tensor:
    """Images in one tensor, checked.

    Raises:
        DataError: they have different sizes.
        PixelError: they are no images in [0, 1].
    """
    if not isinstance(images, Tensor):
        sizes = sorted({tuple(image.shape) for image in images})
        if len(sizes) > 1:
            raise DataError(
                f"Images of {' and '.join('x'.join(map(str, size[1:])) for size in sizes)} pixels.",
                asked="A batch holds images of one size.",
                next="Cut them to one: --size 224, or torchvision's CenterCrop.",
            )
        images = torch.stack(list(images)) if len(images) else torch.empty(0, 3, 0, 0)
    check_pixels(images)
    return images


def task_of(encoder: Encoder, config: AttackConfig, pixels: Tensor) -> Task:
    """What is attacked: a level of the embedding, or a head.

    Raises:
        ConfigError: there is no head, or it does not fit.
    """
    if (head := dense_head(config, encoder)) is not None:
        return head.task
    if config.through == "embedding":
        if config.target:
            raise ConfigError(
                "an embedding has no classes.",
                asked=f'Class "{config.target}" was to be aimed at through the embedding:',
                next="Add --through classification.",
            )
        return Embedding(level=config.level or "pooled")
    if encoder.head is not None:
        return Classification(known=encoder.classes)
    if hasattr(encoder.trunk, "get_classifier"):
        raise ConfigError(f"{encoder.name} has no head to attack through.", next="Attack --through embedding.")
    # A module that does not tell trunk from head may be a classifier: what it returns is taken for logits.
    devices = [encoder.mean.device] if encoder.mean.device.type == "cuda" else []
    with frozen(encoder), torch.random.fork_rng(devices=devices), torch.no_grad():
        known = encoder(pixels[:1].to(encoder.mean.device)).pooled.shape[1]
    return Classification(nn.Identity(), known=known)


def record_of(config: AttackConfig, task: Task) -> Attack:
    """The record of an attack, with everything that was left to method and task written out.

    Args:
        config: of the verb.
        task: what is attacked; its first harm is the default.

    Raises:
        ConfigError: whatever `methods.settled` refuses.
    """
    if config.eps is None and config.norm != "linf":
        raise ConfigError(
            f"an attack in an {config.norm} ball without a radius.",
            next=f"Add --eps {USUAL[config.norm]}: radii of one norm mean nothing in another.",
        )
    return settled(
        Attack(
            method=config.method,
            through=config.through or "embedding",
            push=config.push or next(iter(task.pushes)),
            norm=config.norm,
            eps=LINF_EPS if config.eps is None else config.eps,
            alpha=config.alpha,
            steps=config.steps,
            restarts=config.restarts,
            seed=config.seed,
            targets=config.targets,
            aim="towards" if config.target else config.aim,
            level=config.level,
            samples=config.samples,
            precision=config.precision,
        )
    )


def target_of(config: AttackConfig, known: int, names: Sequence[str]) -> int:
    """The number of the class that is aimed at.

    Args:
        config: names it, or says its number.
        known: how many classes there are.
        names: of them, where the images have names for them.

    Raises:
        ConfigError: no such class.
    """
    if config.target in names:
        return list(names).index(config.target)
    if config.target.isdigit() and int(config.target) < known:
        return int(config.target)
    hint = nearest(config.target, names) if names and not config.target.isdigit() else ""
    raise ConfigError(
        f"there is no such class; the encoder tells {known} apart.",
        asked=f'Class "{config.target}" was to be aimed at:',
        next=hint or f"Give its number, 0 to {known - 1}.",
    )


# -- what is refused ---------------------------------------------------------------------------------------------------


def _outputs(aim: Aim, encoder: Encoder, task: Task) -> dict[str, Tensor]:
    """The outputs of the clean images, refused where nothing could be attacked with them."""
    with still(encoder, task), torch.no_grad():
        out = by_chunks(aim, lambda x, rows: seer(encoder, task)(x))
    for name, part in out.items():
        bad = (~torch.isfinite(part).flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            raise TrustError(
                f"the {name} of image {bad[0]} (and {len(bad) - 1} more) are not finite.",
                asked=f"{encoder.name} was to be attacked:",
                next="Look for overflow or a division by zero in the encoder.",
            )
    logits = out.get("logits")
    if logits is not None and bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < WHOLE).all()):
        raise ConfigError(
            "its outputs are probabilities: none is negative, and each row sums to 1. Their gradient vanishes where "
            "the encoder is sure.",
            asked=f"{encoder.name} was to be attacked by its logits:",
            next="Drop the softmax at its end.",
        )
    return out


def _towards(task: Task, out: Out, rows: Rows) -> Task:
    """The targeted form of a task; an embedding is moved towards that of another of the images."""
    if not isinstance(task, Embedding):
        return towards(task)
    if len(rows["key"]) < FEWEST:
        raise ConfigError(
            f"There are {len(rows['key'])} images; whose neighbour one becomes needs itself, its goal and another.",
            next="Name at least three images, or aim away.",
        )
    return towards(dataclasses.replace(task, bank=bank(out["embedding"], rows["key"], None)))


def _check_classes(models: Sequence[Encoder], tasks: Sequence[Task]) -> None:
    """Refuse encoders that tell other numbers of classes apart, or one class alone, or that share no head."""
    known = tasks[0].classes
    if isinstance(tasks[0], Dense) and len(models) > 1:
        raise ConfigError(
            f"a dense head was fitted on {models[0].name}, and {models[-1].name} has features of its own.",
            asked="An attack made on one encoder and judged on another was asked for.",
            next="Attack them --through embedding, or leave the surrogate out.",
        )
    if tasks[-1].classes != known:
        raise ConfigError(
            f"{models[-1].name} tells {tasks[-1].classes} classes apart, {models[0].name} {known}.",
            asked="An attack made on one encoder and judged on another was asked for.",
            next="Attack them --through embedding, which needs no common classes.",
        )
    if isinstance(tasks[0], Classification) and known < 2:
        raise ConfigError(
            f"{models[0].name} tells {known} class apart: nothing can be confused.", next="Attack --through embedding."
        )


def _check_labels(labels: Tensor, images: int, classes: int) -> None:
    fits = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == (images,)
    if not fits or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        shown = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        span = f" in {int(labels.min())}..{int(labels.max())}" if fits else ""
        raise DataError(
            f"these labels are {shown}{span}.",
            asked=f"{images} images and a victim that tells {classes} classes apart were given.",
            next=f"Give int64 of shape [{images}], from 0 to {classes - 1}.",
        )
