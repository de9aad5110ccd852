"""Every method by its name, built from a config. A field that is 0 there has the value of the paper here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from holdfast.errors import ConfigError
from holdfast.models.encoder import Encoder
from holdfast.train_config import TrainConfig
from holdfast.training.methods.barlow import BarlowTwins
from holdfast.training.methods.byol import BYOL
from holdfast.training.methods.dino import DINO
from holdfast.training.methods.empssl import EMPSSL
from holdfast.training.methods.hardening import DEACL, FARE, Hardening, Terms
from holdfast.training.methods.method import FIRST, SECOND, Method
from holdfast.training.methods.simclr import SimCLR
from holdfast.training.methods.simsiam import SimSiam
from holdfast.training.methods.supervised import IMAGE, TRADES, Supervised
from holdfast.training.methods.swav import SwAV
from holdfast.views import EMP, SIMCLR_CIFAR, SIMCLR_IMAGENET, Policy

Build = Callable[[Encoder, TrainConfig, int], Method]

SMALL = 96
"""Below so many pixels views are those of CIFAR: without a blur, and without small crops unless asked for."""
CROPS = 16

BYOL_IMAGENET = (
    Policy(saturation=0.2, blur=1.0),
    Policy(saturation=0.2, blur=0.1, solarise=0.2),
)
LARGE = {"swav": 0.14, "dino": 0.25}
"""Share of the area from which on a crop is large, where there are small ones, which end there."""
CROPS_OF = {"swav": 6, "dino": 8}

READS = {
    "barlow": ("dim",),
    "byol": ("dim", "hidden", "momentum"),
    "deacl": ("levels", "mix"),
    "dino": ("temperature", "dim", "hidden", "momentum", "small_crops", "small_size"),
    "empssl": ("dim", "hidden", "crops"),
    "fare": ("levels", "mix"),
    "harden": ("levels", "mix"),
    "simclr": ("temperature", "dim", "hidden"),
    "simsiam": ("dim", "hidden"),
    "supervised": ("trained",),
    "supcon": ("temperature", "dim", "hidden"),
    "swav": ("temperature", "dim", "hidden", "prototypes", "queue", "small_crops", "small_size"),
    "trades": ("beta", "trained"),
}
"""Fields of a config that a method reads, of those that not all do."""


def simclr(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """SimCLR, or SupCon by that name."""
    return SimCLR(
        encoder,
        dim=config.dim or 128,
        hidden=config.hidden,
        temperature=config.temperature or 0.5,
        labelled=config.method == "supcon",
        policies=_pair(config, side),
        attacked=_second(config),
    )


def simsiam(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """SimSiam."""
    dim = config.dim or 2048
    return SimSiam(encoder, dim=dim, hidden=config.hidden, policies=_pair(config, side), attacked=_second(config))


def byol(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """BYOL."""
    return BYOL(
        encoder,
        dim=config.dim or 256,
        hidden=config.hidden or 4096,
        momentum=config.momentum or 0.996,
        policies=_pair(config, side, BYOL_IMAGENET),
        attacked=_second(config),
    )


def barlow(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """Barlow Twins."""
    dim = config.dim or 2048
    return BarlowTwins(encoder, dim=dim, policies=_pair(config, side, BYOL_IMAGENET), attacked=_second(config))


def swav(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """SwAV."""
    return SwAV(
        encoder,
        dim=config.dim or 128,
        hidden=config.hidden or 2048,
        prototypes=config.prototypes or (3000 if side >= SMALL else 100),
        queue=config.queue,
        temperature=config.temperature or 0.1,
        policies=_multi(config, side),
        attacked=_second(config),
    )


def dino(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """DINO."""
    return DINO(
        encoder,
        dim=config.dim or (65_536 if side >= SMALL else 4096),
        hidden=config.hidden or 2048,
        momentum=config.momentum or 0.996,
        temperature=config.temperature or 0.1,
        norm=side < SMALL,
        still=min(1 / config.epochs, 0.01),
        policies=_multi(config, side),
        attacked=_second(config),
    )


def empssl(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """EMP-SSL; all crops are attacked together."""
    policy = changed(replace(EMP, size=side), config)
    policies = {f"crop{i}": policy for i in range(config.crops or CROPS)}
    return EMPSSL(
        encoder,
        policies=policies,
        dim=config.dim or 1024,
        hidden=config.hidden or 4096,
        attacked=() if config.adversary == "none" else tuple(policies),
    )


def supervised(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """Cross-entropy through the encoder's own head."""
    still = config.trained == "head"
    return Supervised(encoder, policy=_weak(config, side), still=still, attacked=_image(config))


def trades(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """TRADES through the encoder's own head."""
    still, beta = config.trained == "head", config.beta or 6.0
    return TRADES(encoder, policy=_weak(config, side), beta=beta, still=still, attacked=_image(config))


def hardening(encoder: Encoder, config: TrainConfig, side: int) -> Method:
    """DeACL, FARE, or DeACL's loss at several levels."""
    terms: Terms = FARE if config.method == "fare" else DEACL
    levels = config.levels or (("pooled", "patch") if config.method == "harden" else ("pooled",))
    for level in levels:
        if level != "pooled" and level not in encoder.mapped:
            raise ConfigError(
                f'"{level}" has no features to compare.', next=f"These have: pooled, {', '.join(encoder.mapped)}."
            )
    return Hardening(encoder, policy=_weak(config, side), terms=terms, levels=levels, mix=config.mix)


METHODS: dict[str, Build] = {
    "barlow": barlow,
    "byol": byol,
    "deacl": hardening,
    "dino": dino,
    "empssl": empssl,
    "fare": hardening,
    "harden": hardening,
    "simclr": simclr,
    "simsiam": simsiam,
    "supcon": simclr,
    "supervised": supervised,
    "swav": swav,
    "trades": trades,
}
LABELLED = {
    "supcon": "takes images of one class as partners",
    "supervised": "learns the labels",
    "trades": "learns the labels",
}
"""Methods that read labels, and for what."""
HARDENING = ("deacl", "fare", "harden")
"""Methods that start from an encoder worth keeping, and keep a head that it has."""
HEADED = ("supervised", "trades")
"""Methods that train a classification head of the encoder's own."""


def changed(policy: Policy, config: TrainConfig) -> Policy:
    """A policy with what the config changes in it.

    Raises:
        ConfigError: a change that is no distribution.
    """
    if config.policy == "patches":
        policy = replace(policy, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    if config.colours is not None:
        policy = replace(policy, brightness=config.colours, contrast=config.colours, saturation=config.colours)
    low = policy.scale[0] if config.crop is None else config.crop
    return replace(
        policy,
        scale=(low, low if config.policy == "patches" else policy.scale[1]),
        hue=policy.hue if config.hue is None else config.hue,
        grey=policy.grey if config.grey is None else config.grey,
    )


def _pair(config: TrainConfig, side: int, large: tuple[Policy, Policy] = (SIMCLR_IMAGENET,) * 2) -> dict[str, Policy]:
    """Two views: as for CIFAR below 96 pixels, else those of the method."""
    pair = large if side >= SMALL else (SIMCLR_CIFAR,) * 2
    return {name: changed(replace(p, size=side), config) for name, p in zip((FIRST, SECOND), pair)}


def _multi(config: TrainConfig, side: int) -> dict[str, Policy]:
    """Two large views, and small crops: as many as the paper has, below 96 pixels none unless they are asked for."""
    name, big = config.method, side >= SMALL
    policies = _pair(config, side, BYOL_IMAGENET if name == "dino" else (SIMCLR_IMAGENET,) * 2)
    small = config.small_crops if config.small_crops is not None else CROPS_OF[name] * big
    if not small:
        return policies
    smallest = LARGE[name] if config.crop is None else config.crop
    policies = {key: replace(p, scale=(smallest, 1.0)) for key, p in policies.items()}
    size = config.small_size or max(8, round(side * 96 / 224))
    little = replace(policies[FIRST], scale=(0.05, LARGE[name]), size=size, blur=0.5 * big)
    return {**policies, **{f"small{i}": little for i in range(small)}}


def _second(config: TrainConfig) -> tuple[str, ...]:
    return () if config.adversary == "none" else (SECOND,)


def _image(config: TrainConfig) -> tuple[str, ...]:
    return () if config.adversary == "none" else (IMAGE,)


def _weak(config: TrainConfig, side: int) -> Policy:
    """Padded crops below 96 pixels, crops of any size from there on; mirror images; no change of colour."""
    plain = Policy(size=side, jitter=0.0, grey=0.0)
    shifted = side < SMALL and config.crop is None and config.policy == "crops"
    return changed(replace(plain, pad=side // 8, scale=(1.0, 1.0)) if shifted else plain, config)
