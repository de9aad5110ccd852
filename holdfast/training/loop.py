"""The loop around the one step: data, schedule, checks, and the state on disk from which a killed run continues."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from holdfast import disk, draws
from holdfast.data.sources import images_for, open_source
from holdfast.environment import environment
from holdfast.errors import ConfigError, DataError, Interrupted, TrustError
from holdfast.models.checkpoint import save
from holdfast.models.encoder import Encoder
from holdfast.progress import Bar, Say, say
from holdfast.signals import Stopping
from holdfast.train_config import TrainConfig
from holdfast.training import build, resume
from holdfast.training.adversary import Adversary
from holdfast.training.batchnorm import single
from holdfast.training.card import Facts, model_card
from holdfast.training.events import Events
from holdfast.training.feed import Chosen, feed
from holdfast.training.methods.method import Method
from holdfast.training.methods.table import LABELLED
from holdfast.training.monitoring import held_out
from holdfast.training.pool import Pool
from holdfast.training.ranks import anyone, gathered, rank, wait, world
from holdfast.training.step import Trainee, train_step

ENCODER, CARD = "encoder.safetensors", "README.md"
PRODUCTS = (resume.STATE, resume.METRICS, ENCODER, CARD)
_UNREAD = 20


@dataclass
class Run:
    """One training run: what it works on, and how far it has come.

    Attributes:
        config: what was asked for.
        pool: the images.
        trainee: method, optimizer, adversary.
        out: the run's folder.
        per_epoch: steps per epoch; what does not fill a batch is left out, another part each epoch.
        step: steps done.
        metrics: lines beside the state.
        unread: losses that the device may still be working on, by step.
        spent: seconds of earlier processes, up to the state that this one began from.
        began: when this one was ready to take steps.
    """

    config: TrainConfig
    pool: Pool
    trainee: Trainee
    out: Path
    per_epoch: int
    step: int
    metrics: resume.Metrics
    unread: list[tuple[int, float, Tensor]] = field(default_factory=list)
    spent: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.per_epoch * self.config.epochs

    @property
    def seconds(self) -> float:
        """Seconds of the run, all processes one after the other, what was lost between them left out."""
        return self.spent + time.monotonic() - self.began

    @property
    def encoder(self) -> Encoder:
        """What is being trained."""
        return self.trainee.method.encoder


def train(config: TrainConfig, *, say: Say = say) -> Path:
    """Pre-train an encoder, or continue a run that was stopped.

    On one CPU thread a run that was killed and continued gives the same weights, bit for bit, as one that was not.
    Elsewhere kernels may sum in another order.

    Args:
        config: what to train; `out` holds the run.
        say: is told what happens, a line at a time.

    Returns:
        The run's folder: `encoder.safetensors`, `README.md` (the model card), `metrics.jsonl`, `run.yaml`, `state.pt`.

    Raises:
        ConfigError: an impossible field.
        DataError: images that cannot be read, or fewer than a batch.
        ConflictError: `out` holds a run with another config, or with other images.
        TrustError: the loss is not finite; the last state before it is on disk.
        Interrupted: Ctrl-C or SIGTERM; the state is on disk.
    """
    config = build.settled(config)
    build.check(config)
    resume.refuse_other(Path(config.out), config, replace=config.replace)
    run = _prepared(config)
    say = _silent if rank() else say
    if run.step:
        say(f"continuing {run.out} at step {run.step:,} of {run.total:,}")
    else:
        say(f"training {config.model} with {config.method} on {len(run.pool.train):,} images (in {run.pool.kept})")
    with Stopping(say, ends="this step") as stopping, Bar("train", run.total - run.step) as bar:
        if not run.step:
            _check_held_out(run, bar.say)
        for loss in _steps(run, bar.say):
            bar.advance(note=f"epoch {-(-run.step // run.per_epoch)}/{config.epochs} {loss}")
            _stop_if_asked(run, stopping)
    if not (rank() or (run.out / ENCODER).exists()):
        _export(run)
    wait()
    say(f"done: {run.out / ENCODER}")
    return run.out


def _prepared(config: TrainConfig) -> Run:
    """Everything in place for the next step: built anew, then moved to where the state on disk was."""
    fabric = build.fabric_on(config.device)
    encoder = build.encoder_for(config)
    data = images_for(config, encoder.geometry, split=config.split, default="train")
    pool = Pool(open_source(data), seed=config.seed, device=fabric.device)
    per_epoch = len(pool.train) // config.batch
    if not per_epoch:
        raise DataError(f"{len(pool.train)} images do not fill a batch of {config.batch}.", next="Lower --batch.")
    _check_batch(config, pool)
    build.headed(encoder, config, len(pool.source.classes))
    with build.seeded(torch.device("cpu"), config.seed, "method"):
        method = build.method_for(encoder, config, max(pool.size))
    wrapped, optimizer = fabric.setup(method, build.optimizer_for(method, config))
    adversary = build.adversary_for(config)
    pace = build.pace_for(config, adversary, per_epoch)
    trainee = Trainee(method, wrapped, optimizer, adversary, fabric.backward, pace)
    out = Path(config.out)
    if not rank():
        resume.claim(out, config, PRODUCTS)
    wait()
    state = resume.load_state(out, pool.source.data.digest_of_images)
    step = int(state["step"]) if state else 0
    if state:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        trainee.adversary.load_state_dict(state["adversary"])
    kept = step if state else -1
    events = Events(out, kept) if config.tensorboard and not rank() else None
    metrics = resume.Metrics(out, kept, writes=not rank(), events=events)
    spent = float(state.get("seconds", 0.0)) if state else 0.0
    return Run(config, pool, trainee, out, per_epoch, step, metrics, spent=spent)


def _check_batch(config: TrainConfig, pool: Pool) -> None:
    """Refuse a batch that cannot be divided, or images without what the method reads.

    Raises:
        ConfigError, DataError: what is missing.
    """
    if config.method in LABELLED and pool.labels is None:
        raise DataError(
            f"{pool.source.data.root or pool.source.data.source} has no labels.",
            asked=f"{config.method} {LABELLED[config.method]}.",
            next="holdfast train simclr needs none.",
        )
    if config.batch % world():
        raise ConfigError(
            f"a batch of {config.batch} cannot be divided among {world()} processes.",
            next=f"Give --batch {config.batch // world() * world() or world()}.",
        )


def _steps(run: Run, say: Say) -> Iterator[str]:
    """Take the steps that are left; after each, and after what was due with it, yields the last known loss in words."""
    config = run.config
    run.trainee.method.train()
    orders: dict[int, Tensor] = {}

    def chosen(step: int) -> Chosen:
        epoch, place = divmod(step, run.per_epoch)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = _order(run, epoch)
        whole = orders[epoch][place * config.batch : (place + 1) * config.batch]
        numbers = whole.chunk(world())[rank()]
        rows = {"key": _keys(run, numbers, epoch)}
        if run.pool.labels is not None:
            rows["label"] = run.pool.labels[numbers].to(run.pool.device)
        return Chosen(numbers, rows)

    shown = ""
    fed = feed(run.pool, run.trainee.method, run.total, chosen, first=run.step)
    with contextlib.closing(fed):
        for views, rows in fed:
            with build.seeded(run.pool.device, config.seed, "step", run.step):
                loss = train_step(run.trainee, views, rows, run.step)
            run.unread.append((run.step + 1, run.trainee.optimizer.param_groups[0]["lr"], loss))
            run.step += 1
            shown = _after(run, say) or shown
            yield shown


def _after(run: Run, say: Say) -> str:
    """What is due after a step: read losses, check the held-out images, save. Returns the loss where it was read."""
    epoch, rest = divmod(run.step, run.per_epoch)
    last = run.step == run.total
    checks = last or (run.config.knn_every and not rest and not epoch % run.config.knn_every)
    saves = last or not (run.step % run.config.save_every if run.config.save_every else rest)
    shown = ""
    if checks or saves or len(run.unread) >= _UNREAD or run.unread[-1][2].device.type == "cpu":
        shown = _read_losses(run)
    if checks:
        _check_held_out(run, say)
    if saves:
        _save(run)
    return shown


def _read_losses(run: Run) -> str:
    """Wait for the losses and write them down.

    Raises:
        TrustError: one is not finite.
    """
    waiting, run.unread = run.unread, []
    losses = gathered(torch.stack([loss for *_, loss in waiting])[None]).mean(0).tolist() if waiting else []
    for (step, _, _), loss in zip(waiting, losses):
        if not math.isfinite(loss):
            raise TrustError(
                f"The loss of step {step} is {loss}.",
                next=f"Lower --lr (now {run.config.lr:g}) or lengthen --warmup, and give --replace.",
            )
    lines = [{"step": step, "lr": rate, "loss": loss} for (step, rate, _), loss in zip(waiting, losses)]
    run.metrics.append(*lines)
    return f"loss {losses[-1]:.4f}" if losses else ""


def _save(run: Run) -> None:
    """Write the state; the losses up to it have been read.

    Raises:
        TrustError: a weight or a statistic is not finite; the last state before it is on disk.
    """
    for name, tensor in run.trainee.method.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrustError(
                f"{name} is not finite after step {run.step}.",
                next=f"Lower --lr (now {run.config.lr:g}) or lengthen --warmup, and give --replace.",
            )
    adversary = run.trainee.adversary.state_dict()
    if rank():
        return
    resume.save_state(
        run.out,
        {
            "step": run.step,
            "seconds": run.seconds,
            "images": run.pool.source.data.digest_of_images,
            "method": run.trainee.method.state_dict(),
            "optimizer": run.trainee.optimizer.state_dict(),
            "adversary": adversary,
        },
    )


def _silent(line: str) -> None:
    """What every rank but the first says."""


def _stop_if_asked(run: Run, stopping: Stopping) -> None:
    try:
        stopping.check(f"step {run.step:,} of {run.total:,} done", asked=anyone(stopping.asked))
    except Interrupted:
        _read_losses(run)
        _save(run)
        raise


def _check_held_out(run: Run, say: Say) -> None:
    """Measure the encoder as it is on the held-out images, where there are any."""
    if rank():
        return
    method = run.trainee.method
    found = held_out(run.encoder, run.pool, seed=run.config.seed, perturbed=method.dual)
    if not found:
        return
    width = int(found.pop("width"))
    run.metrics.append({"step": run.step, **found})
    head = f"accuracy {found['accuracy']:.1%}, " if "accuracy" in found else ""
    say(
        f"step {run.step:,}: {head}kNN accuracy {found['knn_accuracy']:.1%} of {len(run.pool.held):,} held-out images, "
        f"effective rank {found['effective_rank']:.1f} of {width}"
    )


def _export(run: Run) -> None:
    """Write the card and the encoder, which says by being there that the run is complete."""
    config, method = run.config, run.trainee.method
    first, last = run.metrics.first("knn_accuracy"), run.metrics.last("knn_accuracy")
    facts = Facts(
        data=run.pool.source.data,
        trained=len(run.pool.train),
        held=len(run.pool.held),
        side=run.pool.size,
        objective=run.trainee.method.objective(),
        steps=run.total * run.trainee.adversary.replays,
        passes=run.total * config.batch * _passes(method, run.trainee.adversary),
        seconds=run.seconds,
        hardware=environment(run.pool.device),
        knn=(first, last),
    )
    disk.write(run.out / CARD, model_card(config, facts))
    run.encoder.neck = method.neck
    save(single(run.encoder, perturbed=True) if method.dual else run.encoder, run.out / ENCODER)


def _passes(method: Method, adversary: Adversary) -> int:
    """Forward-backward passes of the encoder per image and batch: those of every replay, and of attacked views in every
    step of the ascent; what is looked at without a gradient is not counted.
    """
    return adversary.replays * method.passes + adversary.steps * len(method.attacked)


def _order(run: Run, epoch: int) -> Tensor:
    return run.pool.train[draws.permutation(len(run.pool.train), run.config.seed, "order", epoch)]


def _keys(run: Run, numbers: Tensor, epoch: int) -> Tensor:
    """What each image draws from in this epoch, int64 [b]."""
    keys = run.pool.keys[numbers].tolist()
    return torch.tensor([draws.key(run.config.seed, "epoch", epoch, k) for k in keys], dtype=torch.int64)
