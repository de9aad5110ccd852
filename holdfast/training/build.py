"""From a config to what a step works on: device, method, adversary, optimizer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import torch
from lightning_fabric import Fabric
from timm.optim import Lars
from torch import nn

from holdfast import draws
from holdfast.attacks.balls import ball
from holdfast.devices import device_of
from holdfast.errors import ConfigError, nearest
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder
from holdfast.records import Model
from holdfast.train_config import TrainConfig
from holdfast.training import batchnorm, events
from holdfast.training.adversary import PGD, Adversary, Free, NoAdversary, SummedPGD
from holdfast.training.methods.method import Method
from holdfast.training.methods.table import HARDENING, HEADED, METHODS, READS
from holdfast.training.ranks import world
from holdfast.training.schedule import Pace

_FROM_ZERO = ("ramp", "warmup", "weight_decay", "alpha", "knn_every", "save_every", "seed")
_OF_METHODS = (
    "temperature", "dim", "hidden", "momentum", "prototypes", "queue", "crops", "small_crops", "small_size", "beta",
)  # fmt: skip
FALLS = (0.6, 0.8)
"""Where the stepped schedule falls: epochs 15 and 20 of 25 in DeACL's fine-tuning."""
_ATTACK = {"none": (), "pgd": ("eps", "steps"), "pgd_summed": ("eps", "steps"), "free": ("eps", "replays")}


def settled(config: TrainConfig) -> TrainConfig:
    """The config with the method's own adversary, steps and BatchNorm in place of what was left open."""
    hardens = config.method in HARDENING
    fields: dict[str, str | int | float] = {}
    if not config.adversary:
        fields["adversary"] = "pgd" if hardens else "none"
    if not config.batchnorm:
        fields["batchnorm"] = "frozen" if hardens or config.trained == "head" else "train"
    if not config.steps:
        fields["steps"] = 10 if config.method == "fare" else 5
    if hardens and not config.alpha:
        fields["alpha"] = config.eps / 4
    return msgspec.structs.replace(config, **fields)


def check(config: TrainConfig) -> None:
    """Refuse what cannot be trained, before anything is read.

    Raises:
        ConfigError: a field is impossible.
    """
    config = settled(config)
    if config.method not in METHODS:
        raise ConfigError(f'no method is called "{config.method}".', next=nearest(config.method, METHODS))
    if not config.out:
        raise ConfigError("there is no folder for the run.", next="Add --out runs/a.")
    positive = {name: getattr(config, name) for name in ("epochs", "lr")}
    attacked = {name: getattr(config, name) for name in _ATTACK[config.adversary]}
    for name, value in {**positive, **attacked}.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}.", next=f"--{name} must be positive.")
    if attacked and config.norm == "linf" and config.eps > 1:
        raise ConfigError(
            f"eps {config.eps:g} is more than the whole range of a pixel, which spans [0, 1].",
            asked=f"An adversary within {config.eps:g} of every pixel (Linf) was asked for.",
            next=f"Did you mean {config.eps:g}/255?",
        )
    for name in (*_FROM_ZERO, *_OF_METHODS):
        if (getattr(config, name) or 0) < 0:
            raise ConfigError(f"{name} is {getattr(config, name)}.", next=f"--{name.replace('_', '-')} starts at 0.")
    if config.batch < 2:
        raise ConfigError(f"batch is {config.batch}.", next="Contrast needs a --batch of 2 or more.")
    if config.crops == 1:
        raise ConfigError("one crop has none to be compared with.", next="Give --crops 2 or more.")
    _check_reads(config)
    if config.tensorboard:
        events.require()


def _check_reads(config: TrainConfig) -> None:
    """Refuse a field that the method would pass over."""
    plain = TrainConfig()
    running = config.batchnorm in ("frozen", "fixed")
    if config.method in HARDENING and (config.adversary == "none" or not running):
        raise ConfigError(
            f"{config.method} hardens against an adversary that sees running statistics.",
            asked=f"--adversary {config.adversary} --batchnorm {config.batchnorm} was asked for.",
            next="Leave both out, or give --adversary pgd or free.",
        )
    for name in (*_OF_METHODS, "trained", "levels", "mix"):
        if getattr(config, name) != getattr(plain, name) and name not in READS[config.method]:
            readers = ", ".join(method for method in METHODS if name in READS[method])
            raise ConfigError(
                f"{config.method} has no {name.replace('_', ' ')}.",
                asked=f"--{name.replace('_', '-')} {getattr(config, name)} was asked for.",
                next=f"Leave it out, or train {readers}.",
            )
    if config.method == "trades" and config.adversary == "none":
        raise ConfigError("trades needs an adversary.", next="Add --adversary pgd, or train supervised.")
    if config.ramp and not config.adversary.startswith("pgd"):
        raise ConfigError(
            f"the radius of the adversary {config.adversary} does not grow.",
            asked=f"--ramp {config.ramp:g} was asked for.",
            next="Leave it out, or give --adversary pgd.",
        )
    if not running and config.trained == "head":
        raise ConfigError(
            "the BatchNorms of an encoder that stays as it is keep their running statistics.",
            asked=f"--trained head --batchnorm {config.batchnorm} was asked for.",
            next="Leave --batchnorm out.",
        )
    if config.batchnorm == "dual" and config.adversary == "none":
        raise ConfigError(
            "a second set of BatchNorm is for perturbed views.", next="Add --adversary pgd, or leave --batchnorm out."
        )


def encoder_for(config: TrainConfig) -> Encoder:
    """The encoder that training starts from; it expects the size asked for. It has no head but for methods that train
    one (`headed`) or keep one.

    A plain name is an architecture with random weights, drawn by the seed; where a method hardens, a timm name with its
    published weights. What says where its weights are is loaded: a path, `kind:...`, or a timm name with a tag
    (`resnet18.a1_in1k`).

    Raises:
        ConfigError, CheckpointError: as `models.checkpoint.load`.
    """
    name = config.model
    said = config.method in HARDENING or Path(name).exists() or any(sign in name for sign in "/:.")
    spec = name if said else f"random:{name}:{config.seed}"
    encoder = load(Model(spec=spec, arch=config.arch, options=config.options, mean=config.mean, std=config.std))
    if batchnorm.folded(encoder) and config.batchnorm != "fixed" and not spec.startswith("random:"):
        raise ConfigError(
            f"the BatchNorms of {name} are folded into its convolutions: their mean is 0 and their variance 1.",
            asked="Training was to see statistics of the batch, which would make another net of it at the first step.",
            next="Give --batchnorm fixed.",
        )
    if encoder.head is not None and config.method not in (*HEADED, *HARDENING):
        encoder.trunk.reset_classifier(0)  # type: ignore[operator]
    encoder.neck = None
    if config.size:
        encoder.geometry = encoder.geometry._replace(size=config.size, resize=config.resize)
    return encoder


def headed(encoder: Encoder, config: TrainConfig, classes: int) -> Encoder:
    """The encoder with the head that its method trains, where it trains one.

    The checkpoint's own head stays where it tells as many classes apart; otherwise a new one is drawn by the seed.

    Args:
        encoder: changed in place.
        config: names the method.
        classes: of the images.

    Raises:
        ConfigError: the module cannot be given a head.
    """
    if config.method not in HEADED or encoder.classes == classes:
        return encoder
    reset = getattr(encoder.trunk, "reset_classifier", None)
    if reset is None:
        raise ConfigError(
            f"{config.model} cannot be given a head for {classes} classes.",
            asked=f"{config.method} trains a head of the encoder's own.",
            next="Its module needs reset_classifier(n) and get_classifier(), as timm's models have them.",
        )
    with seeded(torch.device("cpu"), config.seed, "head"):
        reset(classes)
    return encoder


def method_for(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """The method with its heads, drawn from torch's global generator; channels last, BatchNorm as the config says.

    Args:
        encoder: is trained.
        config: which method, and how.
        side: of the images, in pixels.

    Raises:
        ConfigError: as `methods.table`, or a BatchNorm that cannot be shared by several processes.
    """
    config = settled(config)
    method = METHODS[config.method](encoder, config, side)
    method.precision, method.engine = config.precision, config.engine
    method.fixed = config.batchnorm == "fixed"
    if world() > 1:
        batchnorm.synced(method)
    if config.batchnorm == "dual":
        batchnorm.dual(method)
        method.dual = True
    return method.to(memory_format=torch.channels_last)


def adversary_for(config: TrainConfig) -> Adversary:
    """The adversary that the config asks for."""
    config = settled(config)
    if config.adversary == "none":
        return NoAdversary()
    norm: Literal["eval", "batch"] = "eval" if config.batchnorm in ("frozen", "fixed") else "batch"
    if config.adversary == "free":
        return Free(ball(config.norm), config.eps, config.alpha or config.eps, config.replays, norm)
    alpha = config.alpha or 2.5 * config.eps / config.steps
    kind = PGD if config.adversary == "pgd" else SummedPGD
    return kind(
        ball(config.norm), config.eps, alpha, config.steps, norm, config.start, min(config.ramp / config.epochs, 1.0)
    )


def pace_for(config: TrainConfig, adversary: Adversary, per_epoch: int) -> Pace:
    """The learning rate over all optimizer steps, replays counted."""
    batches = per_epoch * config.epochs
    warmup = round(config.warmup * per_epoch * adversary.replays)
    half = batches if config.schedule == "rewarmed" else 0
    falls = FALLS if config.schedule == "stepped" else ()
    return Pace(batches * adversary.replays, warmup, config.lr, half, falls)


def fabric_on(device: str) -> Fabric:
    """Fabric on one device, or on one per process under `torchrun`; always float32: autocast is the encoder's.

    Raises:
        ConfigError: the device is unknown, or absent here.
    """
    found = device_of(device)
    together = int(os.environ.get("WORLD_SIZE", "1"))
    if together > 1:
        nodes = together // int(os.environ.get("LOCAL_WORLD_SIZE", together))
        fabric = Fabric(
            accelerator=found.type, devices=together // nodes, num_nodes=nodes, strategy="ddp", precision="32-true"
        )
        fabric.launch()
        return fabric
    devices: int | list[int] = [found.index or 0] if found.type == "cuda" else 1
    return Fabric(accelerator=found.type, devices=devices, precision="32-true")


@contextlib.contextmanager
def seeded(device: torch.device, *parts: str | int) -> Iterator[None]:
    """Layers that draw for themselves (initial weights, dropout) draw by key; the global generators are restored."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(draws.key(*parts))
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(draws.key(*parts))
        yield


def optimizer_for(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that the config asks for; biases and gains of normalisation neither decay nor are scaled.

    AdamW (Loshchilov and Hutter, ICLR 2019); SGD with Nesterov momentum 0.9; or the same with every layer's step scaled
    by 0.005 times the ratio of its norms, at most 1 (You et al., Large Batch Training of Convolutional Networks, 2017).
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    if config.optimizer == "sgd_plain":
        return torch.optim.SGD(groups, lr=config.lr)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    optimizer: torch.optim.Optimizer = Lars(
        groups, lr=config.lr, momentum=0.9, nesterov=True, trust_coeff=0.005, trust_clip=True
    )
    return optimizer
