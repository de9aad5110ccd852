"""A head for segmentation or depth on a frozen encoder: `holdfast probe ENCODER --task segmentation --data camvid/`.

Fitted on training images, chosen by validation images, and measured on test images that nothing was read of before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple, cast

import msgspec
import numpy as np
import torch

from holdfast import disk
from holdfast.configs import ProbeConfig
from holdfast.data.batches import IGNORE
from holdfast.devices import device_of
from holdfast.errors import ConfigError, ConflictError
from holdfast.models.checkpoint import load
from holdfast.models.dense_files import digest_of, save_head
from holdfast.models.dense_heads import build_head, spec_for
from holdfast.models.encoder import Encoder, frozen
from holdfast.progress import Say, say
from holdfast.records import DenseSpec, Model
from holdfast.tasks.depth import Depth
from holdfast.tasks.features import check_unchanged
from holdfast.tasks.segmentation import Segmentation
from holdfast.tasks.windows import Windows, checked
from holdfast.training import build, resume
from holdfast.training.dense_feed import KEPT, DenseTask, Fresh, Kept, Seer, feed_for
from holdfast.training.dense_fit import Fit, Plan, foreign, run
from holdfast.training.dense_scores import CHOOSING, Scores, Tally
from holdfast.training.dense_splits import Part, Parts, check_truth, parts_for
from holdfast.training.dense_views import STILL, Views
from holdfast.training.probing import HEAD, REPORT, check_fields, folder_for

PRODUCTS = (HEAD, REPORT, resume.STATE, resume.METRICS)
LR, BATCH = 1e-3, 16
"""Of a dense head, where the config has the values that a linear head of classification starts from."""
BINS = 256
"""Of depth, as DINOv2's and AdaBins' heads have."""


class Fitted(NamedTuple):
    """A head that was fitted.

    Attributes:
        task: has the head, in evaluation mode and without gradient.
        step: after which validation chose it.
        kept: whether features of the training images were kept in memory.
        val: what it is worth on the images that chose it.
        plan: of the fit, in numbers.
        identity: digests of the encoder and of the images.
        sizes: pixels of each class in the training images; empty for depth.
    """

    task: DenseTask
    step: int
    kept: bool
    val: Tally
    plan: Plan
    identity: dict[str, str]
    sizes: list[int]


def probe(config: ProbeConfig, *, say: Say = say) -> Path:
    """Fit a head for every pixel on a frozen encoder and measure it; or continue, where that was stopped.

    Args:
        config: encoder, images, task.
        say: is told what happens, a line at a time.

    Returns:
        The folder: `head.safetensors` (read by `models.dense_files.read_dense_head`), `probe.json`, `metrics.jsonl`,
        `run.yaml`.

    Raises:
        ConfigError, DataError, CheckpointError: what was typed does not fit.
        ConflictError: the folder was made with another config, encoder or images.
        TrustError: a weight or buffer of the encoder changed, or a loss is not finite; no head is written.
        Interrupted: Ctrl-C or SIGTERM; the state is on disk, and the same command continues it.
    """
    check(config)
    out = folder_for(config)
    resume.refuse_other(out, config, replace=config.replace)
    device = device_of(config.device)
    record = Model(spec=config.encoder, arch=config.arch, options=config.options, mean=config.mean, std=config.std)
    encoder = load(record, device=device)
    parts = parts_for(config, encoder.geometry)
    identity = {"encoder": encoder.digest(), "images": parts.digest}
    if _standing(out, config, identity):
        say(f"done: {out / REPORT}")
        return out
    fitted = fit_dense(encoder, parts, config, out=out, say=say)
    test = measured(encoder, fitted.task, parts.test, fitted.plan.batch)
    check_unchanged(encoder, identity["encoder"])
    _write(out, config, parts, fitted, {"val": fitted.val, "test": test})
    name = CHOOSING[fitted.task.head.spec.task]
    value, constant = test.metrics().get(name), test.constant().get(name)
    if value is None or constant is None:
        say(f"done, and no test pixel counts: {out / REPORT}")
    else:
        say(f"{name} {value:.4g} of {test.images:,} images, a constant's {constant:.4g}: {out / REPORT}")
    return out


def check(config: ProbeConfig) -> None:
    """Refuse what no dense head can be fitted with, before anything is read.

    Raises:
        ConfigError: a number out of its range, or a field that only a linear head of classification reads.
    """
    check_fields(config)
    if config.task == "classification":
        raise ConfigError("a dense head answers for every pixel.", next="Give --task segmentation or --task depth.")
    for name in ("iterations", "crop_size"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} is {getattr(config, name)}.", next=f"--{name.replace('_', '-')} starts at 0.")
    if config.crop_size and config.augment != "crop":
        raise ConfigError(f"crop_size {config.crop_size}, and nothing is cropped.", next="Add --augment crop.")
    if config.width < 1:
        raise ConfigError(f"width is {config.width}.", next="--width must be positive.")
    if not 0 < config.val_share < 1:
        raise ConfigError(f"val_share is {config.val_share:g}.", next="Give a share between 0 and 1: --val-share 0.1.")
    checked(Windows(window=config.window, stride=config.stride))


def fit_dense(
    encoder: Encoder, parts: Parts, config: ProbeConfig, *, out: Path | None = None, say: Say = say
) -> Fitted:
    """Fit a head; test images are not read, and the encoder is left as it was.

    Args:
        encoder: on the device where all is computed.
        parts: the images.
        config: task, kind of head, views, optimiser; `encoder` and `out` are not read.
        out: folder where the state is kept, and from which it is continued; None = nowhere.
        say: is told what happens.

    Raises:
        ConfigError: a head that this encoder cannot have.
        TrustError, ConflictError, Interrupted: as `dense_fit.run`.
    """
    check_truth(parts.train.source, config)
    digest = encoder.digest()
    task = _task(encoder, parts, config)
    plan = plan_for(config, parts)
    views = Views(config.augment, config.crop_size, config.seed)
    seer = Seer(encoder, task, plan.batch)
    identity = {"encoder": digest, "images": parts.digest}
    say(f"fitting a {task.head.spec.kind} head on {', '.join(task.head.spec.levels)}: {parts.spoken()}")
    with frozen(encoder, norm="eval"):
        train = feed_for(seer, parts.train, views, most=KEPT)
        val = feed_for(seer, parts.val, STILL, most=KEPT - train.held)
        scores = Scores(task, val, len(parts.val.indices))
        if out is not None:
            resume.claim(out, config, PRODUCTS)
        fit = Fit(plan, task, train, scores, identity, out)
        run(fit, say)
        tally = scores.tally()
    check_unchanged(encoder, digest)
    sizes = class_sizes(parts.train, task.classes) if isinstance(task, Segmentation) else []
    return Fitted(task, fit.best.step, isinstance(train, Kept), tally, plan, identity, sizes)


def measured(encoder: Encoder, task: DenseTask, part: Part, batch: int) -> Tally:
    """What a head is worth on a set of images, as they are.

    Args:
        encoder: left as it was.
        task: with the head.
        part: the images.
        batch: images per pass.
    """
    with frozen(encoder, norm="eval"), frozen(task.head, norm="eval"):
        feed = Fresh(Seer(encoder, task, batch), part, STILL)
        return Scores(task, feed, len(part.indices), f"measuring on {part.name}").tally()


def class_sizes(part: Part, classes: int) -> list[int]:
    """Pixels of each class in the masks of a part, those that are ignored left out: what `balanced` weighs by."""
    total = np.zeros(classes, dtype=np.int64)
    for place in part.indices:
        mask = np.asarray(part.source.read(place).truth["mask"])
        total += np.bincount(mask[mask != IGNORE].ravel(), minlength=classes)
    return [int(size) for size in total]


def plan_for(config: ProbeConfig, parts: Parts) -> Plan:
    """The numbers of a fit: `lr` and `batch` are 1e-3 and 16 where left open; a batch is never more than all images."""
    images = len(parts.train.indices)
    batch = min(config.batch or BATCH, images)
    return Plan(
        images=images,
        batch=batch,
        total=config.iterations or config.epochs * (images // batch),
        lr=config.lr or LR,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        seed=config.seed,
    )


def _task(encoder: Encoder, parts: Parts, config: ProbeConfig) -> DenseTask:
    """The task with a new head, whose weights are drawn by the seed, on the device of the encoder."""
    source = parts.train.source
    if not encoder.mapped:
        raise ConfigError(
            f"{encoder.name} shows vectors alone and no map.", next="A dense head needs a ViT or a CNN of timm's."
        )
    task = cast(Literal["segmentation", "depth"], config.task)
    far = {"far": source.max_depth} if task == "depth" else {}
    outputs = len(source.parts) if task == "segmentation" else BINS
    spec = spec_for(encoder, task, config.kind, config.levels, outputs=outputs, width=config.width, **far)
    windows = Windows(window=config.window, stride=config.stride)
    with build.seeded(torch.device("cpu"), config.seed, "dense head"):
        head = build_head(_with_cls(spec, encoder, config)).to(encoder.mean.device)
    if task == "segmentation":
        return Segmentation(head, source.parts, windows)
    return Depth(head, windows, source.max_depth, spec.near)


def _with_cls(spec: DenseSpec, encoder: Encoder, config: ProbeConfig) -> DenseSpec:
    if config.cls == "auto":
        return spec
    if config.cls == "yes" and "cls1" not in encoder.levels:
        raise ConfigError(f"{encoder.name} has no class token.", next="Leave out --cls.")
    return msgspec.structs.replace(spec, cls=config.cls == "yes")


def _standing(out: Path, config: ProbeConfig, identity: dict[str, str]) -> bool:
    """Whether this very probe is done already; what `replace` gives up is removed.

    A head that was fitted on other weights or images is never taken for it, whatever the command was (defect D1.15).

    Raises:
        ConflictError: the folder is of the same command, and of another encoder or other images.
    """
    try:
        resume.refuse_other(out, config, replace=False)
    except ConflictError:
        return False  # with --replace, which `probe` has seen: `resume.claim` removes it
    changed = _foreign(out, identity)
    if changed and not config.replace:
        raise ConflictError(changed, next="Choose another --out, or give --replace to start anew.")
    if changed:
        for name in PRODUCTS:
            (out / name).unlink(missing_ok=True)
    return (out / REPORT).exists() and (out / HEAD).exists()


def _foreign(out: Path, identity: dict[str, str]) -> str:
    """How what is in a folder was made from something else: in words, or empty."""
    if not (out / REPORT).exists():
        return foreign(out, identity)
    report = json.loads((out / REPORT).read_text())
    before = {name: str(report[f"digest_of_{name}"]) for name in identity}
    changed = [f"{name} {before[name][:12]}, now {now[:12]}" for name, now in identity.items() if before[name] != now]
    return f"{out} was made by the same command from something else: {'; '.join(changed)}." if changed else ""


def _write(out: Path, config: ProbeConfig, parts: Parts, fitted: Fitted, found: dict[str, Tally]) -> None:
    """The head, and then the report, which says by being there that the probe is complete."""
    head = fitted.task.head
    names = parts.train.source.parts if config.task == "segmentation" else ()
    extra, sizes = {"digest_of_encoder": fitted.identity["encoder"]}, tuple(fitted.sizes)
    save_head(head, out / HEAD, parts=names, sizes=sizes, extra=extra)
    plan = fitted.plan
    report = {
        "encoder": config.encoder,
        "digest_of_encoder": fitted.identity["encoder"],
        "digest_of_images": fitted.identity["images"],
        "digest_of_head": digest_of(head, sizes),
        **msgspec.to_builtins(head.spec),
        **({"classes": names} if names else {}),
        "fit": {**plan._asdict(), "augment": config.augment, "chosen_at_step": fitted.step, "kept": fitted.kept},
        "train": {"images": plan.images, "split": parts.train.name, "digest": parts.train.digest},
    }
    for name, part in (("val", parts.val), ("test", parts.test)):
        tally = found[name]
        about = {"images": tally.images, "split": part.name, "digest": part.digest}
        report[name] = {**about, **tally.metrics(), "constant": tally.constant()}
    disk.write(out / REPORT, json.dumps(report, indent=1) + "\n")
    (out / resume.STATE).unlink(missing_ok=True)
