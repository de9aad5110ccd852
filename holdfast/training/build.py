"""From a config to what a step works on: device, method, adversary, optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from holdfast import draws
from holdfast.attacks.balls import ball
from holdfast.configs import TrainConfig
from holdfast.data.views import SIMCLR_CIFAR, SIMCLR_IMAGENET, Policy
from holdfast.devices import device_of
from holdfast.errors import ConfigError, nearest
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder
from holdfast.training.adversary import PGD, Adversary, NoAdversary
from holdfast.training.methods.method import Method
from holdfast.training.methods.simclr import SECOND, SimCLR

SMALL = 96


def _simclr(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    return SimCLR(
        encoder,
        dim=config.dim,
        temperature=config.temperature,
        policy=policy_for(side, config),
        attacked=() if config.adversary == "none" else (SECOND,),
    )


METHODS: dict[str, Callable[[Encoder, TrainConfig, int], Method]] = {"simclr": _simclr}


def check(config: TrainConfig) -> None:
    """Refuse what cannot be trained, before anything is read.

    Raises:
        ConfigError: a field is impossible.
    """
    if config.method not in METHODS:
        raise ConfigError(f'no method is called "{config.method}".', next=nearest(config.method, METHODS))
    if not config.out:
        raise ConfigError("there is no folder for the run.", next="Add --out runs/a.")
    positive = {name: getattr(config, name) for name in ("epochs", "lr", "temperature", "dim")}
    attacked = {name: getattr(config, name) for name in ("eps", "steps")} if config.adversary != "none" else {}
    for name, value in {**positive, **attacked}.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}.", next=f"--{name} must be positive.")
    if attacked and config.norm == "linf" and config.eps > 1:
        raise ConfigError(
            f"eps {config.eps:g} is more than the whole range of a pixel, which spans [0, 1].",
            asked=f"An adversary within {config.eps:g} of every pixel (Linf) was asked for.",
            next=f"Did you mean {config.eps:g}/255?",
        )
    for name in ("warmup", "weight_decay", "alpha", "knn_every", "save_every", "seed"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} is {getattr(config, name)}.", next=f"--{name.replace('_', '-')} starts at 0.")
    if config.batch < 2:
        raise ConfigError(f"batch is {config.batch}.", next="Contrast needs a --batch of 2 or more.")


def encoder_for(config: TrainConfig) -> Encoder:
    """The encoder that training starts from, without a classification head; it expects the size asked for.

    A plain name is an architecture with random weights, drawn by the seed. What says where its weights are is loaded: a
    path, `kind:...`, or a timm name with a tag (`resnet18.a1_in1k`).

    Raises:
        ConfigError, CheckpointError: as `models.checkpoint.load`.
    """
    name = config.model
    said = Path(name).exists() or any(sign in name for sign in "/:.")
    encoder = load(name if said else f"random:{name}:{config.seed}")
    if encoder.head is not None:
        encoder.trunk.reset_classifier(0)  # type: ignore[operator]
    if config.size:
        encoder.geometry = encoder.geometry._replace(size=config.size, resize=config.resize)
    return encoder


def policy_for(side: int, config: TrainConfig) -> Policy:
    """The views of SimCLR: its policy for CIFAR below 96 pixels, else for ImageNet; with what the config changes.

    Raises:
        ConfigError: a change that is no distribution.
    """
    policy = SIMCLR_CIFAR if side < SMALL else replace(SIMCLR_IMAGENET, size=side)
    if config.colours is not None:
        policy = replace(policy, brightness=config.colours, contrast=config.colours, saturation=config.colours)
    return replace(
        policy,
        scale=policy.scale if config.crop is None else (config.crop, policy.scale[1]),
        hue=policy.hue if config.hue is None else config.hue,
        grey=policy.grey if config.grey is None else config.grey,
    )


def adversary_for(config: TrainConfig) -> Adversary:
    """The adversary that the config asks for."""
    if config.adversary == "none":
        return NoAdversary()
    alpha = config.alpha or 2.5 * config.eps / config.steps
    return PGD(ball(config.norm), config.eps, alpha, config.steps)


def fabric_on(device: str) -> Fabric:
    """Fabric on one device, always at full precision: an encoder's autocast is its own.

    Raises:
        ConfigError: the device is unknown, or absent here.
    """
    found = device_of(device)
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
    """AdamW (Loshchilov and Hutter, ICLR 2019); biases and gains of normalisation do not decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)
