"""A dense head is fitted: AdamW on frozen features, best by validation, and continued where it was stopped.

The loss of segmentation is pixel cross-entropy over everything that is labelled in a batch; that of depth is DINOv2's
(Oquab et al. 2023, arXiv 2304.07193): SILog over all pixels of a batch, which sees scales that differ between images,
plus half of a gradient term within each image. Published code took that term between neighbouring images of the batch
(defect D1.3), and its warm-up and decay were none (D1.11).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from holdfast import draws
from holdfast.attacks.harm import Out, Rows
from holdfast.data.batches import IGNORE
from holdfast.errors import ConflictError, Interrupted, TrustError
from holdfast.models.dense_heads import DenseHead
from holdfast.progress import Bar, Say
from holdfast.signals import Stopping
from holdfast.tasks.depth_errors import Pixels
from holdfast.tasks.depth_pushes import GRADIENT_WEIGHT, gradient, silog
from holdfast.tasks.segmentation import Segmentation
from holdfast.training import resume
from holdfast.training.dense_feed import DenseTask, Feed
from holdfast.training.dense_scores import Scores
from holdfast.training.schedule import learning_rate

WARMUP = 0.05
POWER = 0.9
CHECKS = 20
"""Times that a head is tried on the validation images, at most, evenly spread and always after a whole epoch."""
_LINE = 20


class Plan(NamedTuple):
    """What a fit does, in numbers.

    Attributes:
        images: to fit on.
        batch: of them per step; what does not fill one is left out, another part each epoch.
        total: steps.
        lr: peak learning rate.
        weight_decay: of weights with more than one dimension, decoupled.
        schedule: after a warm-up of 5 %.
        seed: of the order.
    """

    images: int
    batch: int
    total: int
    lr: float
    weight_decay: float
    schedule: Literal["poly", "cosine"]
    seed: int

    @property
    def per_epoch(self) -> int:
        """Steps of one pass over the images."""
        return self.images // self.batch

    @property
    def epochs(self) -> int:
        """Passes, the last one perhaps not whole."""
        return -(-self.total // self.per_epoch)

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0: up in a line, then down by (1 - t)^0.9, or by half a cosine."""
        warmup = round(WARMUP * self.total)
        if self.schedule == "cosine" or step < warmup:
            return learning_rate(step, total=self.total, warmup=warmup, peak=self.lr)
        done = (step - warmup) / max(self.total - warmup, 1)
        return self.lr * float((1 - done) ** POWER)

    def due(self, step: int) -> bool:
        """Whether the head is tried after so many steps."""
        epoch, rest = divmod(step, self.per_epoch)
        return step == self.total or (not rest and not epoch % -(-self.epochs // CHECKS))


class Best(NamedTuple):
    """The head that validation chose.

    Attributes:
        step: after which it was tried; 0 = none was yet.
        value: of the metric that chooses.
        weights: of the head, buffers among them.
    """

    step: int
    value: float
    weights: dict[str, Tensor]


NONE = Best(0, math.nan, {})


@dataclass
class Fit:
    """One head being fitted.

    Attributes:
        plan: in numbers.
        task: has the head, which is changed.
        train: gives images to fit on.
        val: those that choose.
        identity: of everything that the state on disk depends on beside the config: digests by name.
        out: where the state is kept; None = nowhere.
        step: steps done.
        best: so far.
        optimizer: AdamW; biases and gains of normalisation do not decay.
    """

    plan: Plan
    task: DenseTask
    train: Feed
    val: Scores
    identity: dict[str, str]
    out: Path | None = None
    step: int = 0
    best: Best = NONE
    optimizer: torch.optim.Optimizer = field(init=False)
    _unread: list[tuple[int, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        weights = [p for p in self.head.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": self.plan.weight_decay},
            {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.plan.lr, fused=True)

    @property
    def head(self) -> DenseHead:
        """What is fitted."""
        return self.task.head


def run(fit: Fit, say: Say) -> None:
    """Fit a head, from where its state on disk is; it ends as the best by validation, in evaluation mode.

    On one CPU thread a fit that was stopped and continued gives the same weights, bit for bit, as one that was not.

    Raises:
        ConflictError: the state on disk is of other images, or of another encoder.
        TrustError: the loss is not finite, or no validation image has a pixel that counts.
        Interrupted: Ctrl-C or SIGTERM; the state is on disk.
    """
    metrics = _continued(fit, say)
    left = fit.plan.total - fit.step
    with torch.enable_grad(), Stopping(say, ends="this step") as stopping, Bar("fit", max(left, 1)) as bar:
        for loss in _steps(fit):
            bar.advance(note=f"epoch {-(-fit.step // fit.plan.per_epoch)}/{fit.plan.epochs}")
            fit._unread.append((fit.step, loss))
            if fit.plan.due(fit.step):
                _check(fit, metrics, bar.say)
            elif len(fit._unread) >= _LINE:
                _read_losses(fit)
            _stop_if_asked(fit, stopping)
    fit.head.load_state_dict(fit.best.weights)
    fit.head.eval().requires_grad_(False)


def loss(task: DenseTask, out: Out, rows: Rows) -> Tensor:
    """What a step lowers.

    Args:
        task: says which it is.
        out: `logits` [b, K, h, w], or `depth` [b, h, w] in metres.
        rows: `mask` int64 [b, h, w], or `depth` float32 [b, h, w].

    Returns:
        Mean cross-entropy of all labelled pixels in nats, or SILog + gradient / 2; 0 where no pixel counts.
    """
    if isinstance(task, Segmentation):
        summed = functional.cross_entropy(out["logits"], rows["mask"], ignore_index=IGNORE, reduction="sum")
        return summed / (rows["mask"] != IGNORE).sum().clamp_min(1)
    counts = task.within.counts(rows["depth"])
    read = Pixels(out["depth"].where(counts, 1), rows["depth"].where(counts, 1), counts)
    together = Pixels(*(x.flatten(0, 1)[None] for x in read))
    return silog(together)[0] + GRADIENT_WEIGHT * gradient(read).mean()


def _steps(fit: Fit) -> Iterator[Tensor]:
    """Take the steps that are left; each loss is yielded as it is, so that no device is waited for."""
    plan = fit.plan
    while fit.step < plan.total:
        epoch, place = divmod(fit.step, plan.per_epoch)
        order = draws.permutation(plan.images, plan.seed, "dense order", epoch)
        left = order[place * plan.batch : min(plan.per_epoch, place + plan.total - fit.step) * plan.batch]
        fit.head.train()
        for sight in fit.train.sights(left, epoch):
            for group in fit.optimizer.param_groups:
                group["lr"] = plan.rate(fit.step)
            fit.optimizer.zero_grad(set_to_none=True)
            found = loss(fit.task, sight.out(), sight.rows)
            torch.autograd.backward(found)
            fit.optimizer.step()
            fit.step += 1
            yield found.detach()


def _check(fit: Fit, metrics: resume.Metrics | None, say: Say) -> None:
    """Try the head on the validation images, keep it where it is the best so far, and save the state."""
    mean = _read_losses(fit)
    fit.head.eval()
    with torch.no_grad():
        value = fit.val.chosen_by()
    fit.head.train()
    name, sign = fit.val.metric.name, 1 if fit.val.metric.higher_is_better else -1
    if math.isnan(value):
        raise TrustError(
            f"No pixel of the validation images counts: there is no {name} to choose a head by.",
            next="Raise --val-share, or look at the masks and the depth.",
        )
    better = not fit.best.step or sign * value > sign * fit.best.value
    if better:
        weights = {n: t.detach().clone() for n, t in fit.head.state_dict().items()}
        fit.best = Best(fit.step, value, weights)
    say(f"step {fit.step:,}: loss {mean:.4g}, {name} of validation {value:.4g}{', the best so far' if better else ''}")
    if metrics is not None:
        metrics.append({"step": fit.step, "loss": mean, "lr": fit.plan.rate(fit.step - 1), name: value})
    _save(fit)


def _read_losses(fit: Fit) -> float:
    """The mean of the losses since they were last read, which are then forgotten; NaN where there are none.

    Raises:
        TrustError: one is not finite; the state on disk is from before.
    """
    values = [float(value) for _, value in fit._unread]
    for (step, _), value in zip(fit._unread, values):
        if not math.isfinite(value):
            raise TrustError(
                f"The loss is not finite after step {step}.",
                next=f"Lower --lr (now {fit.plan.lr:g}), or look for NaN in the encoder's features.",
            )
    fit._unread.clear()
    return sum(values) / len(values) if values else math.nan


def foreign(out: Path, identity: Mapping[str, str]) -> str:
    """Whether a state in this folder is of other images or another encoder: in words, or empty.

    Raises:
        CheckpointError: the state cannot be read.
    """
    try:
        state = resume.load_state(out, identity["images"])
    except ConflictError as error:
        return error.found
    if state is None or state["encoder"] == identity["encoder"]:
        return ""
    return f"{out} was begun on another encoder: digest {state['encoder'][:12]}, now {identity['encoder'][:12]}."


def _continued(fit: Fit, say: Say) -> resume.Metrics | None:
    """Move to where the state on disk was."""
    if fit.out is None:
        return None
    state = resume.load_state(fit.out, fit.identity["images"])
    if state is not None:
        fit.head.load_state_dict(state["head"])
        fit.optimizer.load_state_dict(state["optimizer"])
        fit.step, fit.best = state["step"], Best(**state["best"])
        if fit.step < fit.plan.total:
            say(f"continuing {fit.out} at step {fit.step:,} of {fit.plan.total:,}")
    return resume.Metrics(fit.out, fit.step if state else -1)


def _save(fit: Fit) -> None:
    if fit.out is not None:
        state: dict[str, Any] = {
            **fit.identity,
            "step": fit.step,
            "head": fit.head.state_dict(),
            "optimizer": fit.optimizer.state_dict(),
            "best": fit.best._asdict(),
        }
        resume.save_state(fit.out, state)


def _stop_if_asked(fit: Fit, stopping: Stopping) -> None:
    try:
        stopping.check(f"step {fit.step:,} of {fit.plan.total:,} done")
    except Interrupted:
        _read_losses(fit)
        _save(fit)
        raise
