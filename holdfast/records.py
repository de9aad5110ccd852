"""Cells and results: frozen structs, the same in Python, in YAML and on disk. No torch here.

A number that has no value is absent with a reason; NaN cannot be stored.
"""

from __future__ import annotations

import math
from typing import Literal

from holdfast.codec import Record

SCHEMA = 1

Norm = Literal["linf", "l2", "l1"]
Variant = Literal["imagenet224", "cifar32", "tiny64", "inception299"]


# -- parts of a cell ---------------------------------------------------------------------------------------------------


class Data(Record, frozen=True, kw_only=True):
    """Which images, and how a file becomes the pixels of a batch.

    Attributes:
        source: what is read, and how: `holdfast ls layouts` lists all (scenes, folder, cifar10, imagenet_c...).
        root: folder that holds it (empty for scenes).
        split: train, val, test, or what the layout calls it.
        limit: how many images at most; 0 = all (scenes: how many are drawn).
        subset: which ones where there are more: drawn by `seed`, or the first.
        classes: keep these classes alone, labelled in this order; empty = all.
        seed: of the subset, and of drawn scenes.
        resize: length in pixels of the shorter side after resizing, before the centre crop; 0 = not resized.
        size: side of the centre crop in pixels, and so of the batch; 0 = as stored (scenes: 32).
        interpolation: of the resize.
        digest_of_images: SHA-256 over ids and labels in order, filled in when the source is opened.
        classes_there: how many classes have an image before the limit, filled in as well; 0 = no labels, or not known.
    """

    source: str
    root: str = ""
    split: str = "test"
    limit: int = 0
    subset: Literal["random", "first"] = "random"
    classes: tuple[str, ...] = ()
    seed: int = 0
    resize: int = 0
    size: int = 0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    digest_of_images: str = ""
    classes_there: int = 0


class Model(Record, frozen=True, kw_only=True):
    """Which encoder.

    Attributes:
        spec: timm name, `hf-hub:owner/name`, a weights file or a run folder, `package.module:factory`, `random:ARCH`,
            or `module:NAME` for an `nn.Module` that was handed over in Python.
        arch: architecture for a bare weights file: a timm name or one of `models.cifar`.
        options: keyword arguments of the architecture, `("pad_type=same",)`.
        weights: branch of a training state to read (`teacher`, `student`, `state_dict`); empty = the recognised one.
        mean: per channel, of pixels in [0, 1]; None = what the checkpoint or timm says.
        std: per channel; None as above.
        head: file of a linear head, or a probe's folder; empty = the checkpoint's own, if any.
        head_level: features that this head reads; empty = what its file says, or pooled.
        name: how the page calls it; empty = from `spec`.
        digest_of_weights: SHA-256 over names, shapes and bytes of parameters and buffers, filled in when loaded.
    """

    spec: str
    arch: str = ""
    options: tuple[str, ...] = ()
    weights: str = ""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    head: str = ""
    head_level: str = ""
    name: str = ""
    digest_of_weights: str = ""


class Corruption(Record, frozen=True, kw_only=True, tag="corruption", tag_field="stage"):
    """A corruption stage, on uint8 pixels before any attack.

    Attributes:
        name: as in `corruptions.names()`, or a folder of an official set.
        severity: 1 to 5; 0 = the identity.
        variant: which severity table.
        seed: of its random field, keyed by image.
        mode: reference (float64, operations in the published order), or fast (within one level of it).
        storage: jpeg85 = once through the JPEG file (quality 85) that the official sets are stored in.
        textures: of frost: drawn, or published (the files of ImageNet-C). No other corruption has any.
        root: folder that the images are read from; empty = made here. The other fields say how it was made.
    """

    name: str
    severity: int
    variant: Variant
    seed: int = 0
    mode: Literal["fast", "reference"] = "fast"
    storage: Literal["none", "jpeg85"] = "none"
    textures: Literal["drawn", "published"] = "drawn"
    root: str = ""


DENSE_TASKS = ("segmentation", "depth")
"""Tasks that answer for every pixel, through a dense head."""


class Judge(Record, frozen=True, kw_only=True):
    """A task with its head.

    Attributes:
        task: embedding, classification, segmentation, depth, or saliency (where the encoder looks, and how far the
            pixels have changed).
        head: own (the checkpoint's), given (a file), linear (fitted on `fit`), bank (clean embeddings of `fit`), none.
        target: of saliency: predicted, true, similarity; empty for other tasks.
        level: of the features that the head reads: pooled, patch, stage3, block11, cls4...
        fit: images that the head was fitted on; None for an own head.
        digest_of_head: SHA-256 of a head that was given; empty where encoder, `fit` and level determine it.
        window: side in pixels of the windows that a dense head slides over an image, and an attack on patch tokens with
            it; 0 = the whole image.
        stride: of the windows; 0 = two thirds of one.
        crop: of the pixels that depth is measured on: none, eigen and eigen_kitti (Eigen et al. 2014), garg
            (Garg et al. 2016).
    """

    task: Literal["embedding", "classification", "segmentation", "depth", "saliency"]
    head: Literal["own", "given", "linear", "bank", "none"]
    target: Literal["", "predicted", "true", "similarity"] = ""
    level: str = "pooled"
    fit: Data | None = None
    digest_of_head: str = ""
    window: int = 0
    stride: int = 0
    crop: Literal["none", "eigen", "eigen_kitti", "garg"] = "none"


class DenseSpec(Record, frozen=True, kw_only=True):
    """A head that answers for every pixel, as its file describes it.

    Attributes:
        task: what it answers.
        kind: linear, upernet or dpt (segmentation); bins or dpt (depth).
        levels: of the encoder that it reads, from shallow to deep.
        channels: of each of them.
        outputs: classes, or bins of depth.
        cls: whether the class token stands beside every patch token (DINOv2's depth head).
        width: channels of a decoder.
        near: smallest depth in metres.
        far: largest.
    """

    task: Literal["segmentation", "depth"]
    kind: str
    levels: tuple[str, ...]
    channels: tuple[int, ...]
    outputs: int
    cls: bool = False
    width: int = 64
    near: float = 0.001
    far: float = 10.0


class Surrogate(Record, frozen=True, kw_only=True):
    """Another encoder that an attack is made on, with the head that it differentiates through there."""

    encoder: Model
    judge: Judge


class Attack(Record, frozen=True, kw_only=True, tag="attack", tag_field="stage"):
    """An attack stage.

    Attributes:
        method: `holdfast ls attacks` lists them: pgd, fgsm, mpgd, apgd, sea, fab, square, noise, autoattack.
        through: task whose head the attack differentiates through: embedding, classification, segmentation or depth.
        push: the harm that is raised: mse, l2, cosine... (embedding); ce, margin, dlr... (classification); ce, segpgd,
            js... (segmentation); silog_gradient, l1_log... (depth). Methods that bring their own harms (fab, square,
            autoattack) ignore it, and it is then empty.
        norm: of the ball.
        eps: radius in pixel units of [0, 1]; 0 = none: the nearest adversarial image is looked for (fab).
        alpha: step size in pixel units; 0 = the method's own (pgd: 2.5 * eps / steps, at least eps / 4).
        steps: gradient steps, or queries; 0 = the method's own.
        restarts: independent starts; the worst by score is kept.
        start: random in the ball, the clean image (refused where its gradient is zero), or given (in Python alone).
        seed: of everything that is drawn, keyed by image, restart and step.
        targets: so many wrong classes are aimed at, one after the other, the likeliest first; 0 = none.
        aim: away from what the image is, or towards another class, or another image's embedding, drawn by `seed`.
        level: of the features that an embedding attack raises the harm of; empty = those that the judge reads; tokens =
            every patch token, window by window.
        scored: what compares the iterates of an embedding attack: drift, the neighbours' vote, or a head's margin.
        samples: forward passes averaged in every look (expectation over transformation), for randomised encoders.
        precision: of the encoder under attack; verdicts are float32, and what survives bf16 is attacked once more.
        surrogate: the encoder that the attack is made on, where it is not the one that is judged.
        traced: so many of its iterates, evenly spaced, are judged as well: curves over its steps.
    """

    method: str = "pgd"
    through: Literal["embedding", "classification", "segmentation", "depth"] = "classification"
    push: str = "ce"
    norm: Norm = "linf"
    eps: float = 8 / 255
    alpha: float = 0.0
    steps: int = 0
    restarts: int = 1
    start: Literal["random", "zero", "given"] = "random"
    seed: int = 0
    targets: int = 0
    aim: Literal["away", "towards"] = "away"
    level: str = ""
    scored: Literal["drift", "knn", "probe"] = "drift"
    samples: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    surrogate: Surrogate | None = None
    traced: int = 0


Stage = Corruption | Attack


class Cell(Record, frozen=True, kw_only=True):
    """One point of the grid: data x stages x encoder x judge. Its digest names its record."""

    data: Data
    stages: tuple[Stage, ...] = ()
    encoder: Model
    judge: Judge

    @property
    def id(self) -> str:
        """The first twelve digits of the digest."""
        return self.digest()[:12]

    @property
    def corruption(self) -> Corruption | None:
        """The corruption stage, if there is one."""
        return next((s for s in self.stages if isinstance(s, Corruption)), None)

    @property
    def attack(self) -> Attack | None:
        """The attack stage, if there is one."""
        return next((s for s in self.stages if isinstance(s, Attack)), None)


# -- results -----------------------------------------------------------------------------------------------------------


class Metric(Record, frozen=True, kw_only=True):
    """A number with its evidence, or the reason for its absence.

    Attributes:
        name: accuracy, loss, cosine_drift, quantile, neighbour_flips, knn_accuracy...
        value: in the unit named; None where `reason` says why.
        n: images behind it.
        low: lower end of the 95 % interval.
        high: upper end.
        higher_is_better: for the owner of the encoder.
        unit: fraction, distance, nats...
        interval: how the interval was made: wilson, or bootstrap with its count.
        reason: why there is no value.
    """

    name: str
    value: float | None = None
    n: int = 0
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = True
    unit: str = "fraction"
    interval: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        numbers = [v for v in (self.value, self.low, self.high) if v is not None]
        if not all(math.isfinite(v) for v in numbers):
            raise ValueError(f"metric {self.name}: {numbers} is not finite; leave it out and give a reason")
        if self.value is None and not self.reason:
            raise ValueError(f"metric {self.name} has neither a value nor a reason for its absence")


class Cost(Record, frozen=True, kw_only=True):
    """What a cell took: wall seconds, images forwarded and back-propagated (counted per image), peak memory in MB."""

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    peak_mb: float = 0.0


class Environment(Record, frozen=True, kw_only=True):
    """Where a number was made.

    `libraries` are those that decide pixels (numpy, pillow with its libjpeg, opencv); `engine` that of attack passes.
    """

    holdfast: str
    commit: str
    python: str
    torch: str
    device: str
    threads: int
    platform: str
    libraries: str = ""
    engine: str = "eager"


class Result(Record, frozen=True, kw_only=True):
    """The record of one cell: `cells/<id>.json`; its per-image outcomes lie in `images/<id>.npz` under their names.

    Attributes:
        id: of the cell.
        cell: what was measured.
        status: done, or failed with `error`.
        metrics: numbers with evidence.
        cost: of this cell (a job's shared work is divided equally among its cells).
        environment: versions and hardware.
        chunk: images per forward pass (padded to it): last digits depend on it.
        asked: images that were asked for; metrics say how many were used.
        warnings: in words.
        flags: of an attacked cell: names of the believability checks that it fails by itself (`holdfast ls flags`).
        error: the traceback of a failed cell.
    """

    schema: int = SCHEMA
    id: str
    cell: Cell
    status: Literal["done", "failed"]
    metrics: tuple[Metric, ...] = ()
    cost: Cost = Cost()
    environment: Environment
    chunk: int = 0
    asked: int = 0
    warnings: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    error: str = ""

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, or None where the cell has none."""
        return next((m for m in self.metrics if m.name == name), None)
