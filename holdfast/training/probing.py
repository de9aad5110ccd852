"""What all probes share: where a head is written, and fields that cannot be."""

from __future__ import annotations

from pathlib import Path

from holdfast.configs import ProbeConfig
from holdfast.errors import ConfigError

HEAD, REPORT = "head.safetensors", "probe.json"
_DENSE = ("kind", "levels", "width", "cls", "window", "stride", "augment", "crop_size", "schedule", "iterations")


def check_fields(config: ProbeConfig) -> None:
    """Refuse what no head can be fitted with, before anything is read.

    Raises:
        ConfigError: no encoder, a number out of its range, or a field that the task would pass over.
    """
    if not config.encoder:
        raise ConfigError("no encoder was named.", next="holdfast probe runs/a --data imgs/")
    if config.epochs < 1:
        raise ConfigError(f"epochs is {config.epochs}.", next="--epochs must be positive.")
    for name in ("lr", "batch", "weight_decay"):
        if not getattr(config, name) >= 0:
            flag = name.replace("_", "-")
            raise ConfigError(f"{name} is {getattr(config, name)}.", next=f"--{flag} must not be below 0.")
    plain, classifies = ProbeConfig(), config.task == "classification"
    for name in _DENSE if classifies else ("level",):
        value = getattr(config, name)
        if value != getattr(plain, name):
            raise ConfigError(
                f"{name} {value if isinstance(value, str | int) else ' '.join(value)} says nothing for {config.task}.",
                next="Add --task segmentation, or --task depth." if classifies else f"Name it with --levels {value}.",
            )


def folder_for(config: ProbeConfig) -> Path:
    """`out`, or `probe` beside the encoder's file.

    Raises:
        ConfigError: neither is there.
    """
    if config.out:
        return Path(config.out)
    path = Path(config.encoder)
    if not path.exists():
        raise ConfigError(
            f"{config.encoder} is no file, so that the head has no place beside it.", next="Add --out runs/probe."
        )
    return (path if path.is_dir() else path.parent) / "probe"
