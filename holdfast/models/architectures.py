"""Architectures by name, with random weights or with those of the hub; what each expects of its images."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from timm.models import PretrainedCfg
from torch import nn

from holdfast import draws
from holdfast.errors import CheckpointError, ConfigError, nearest
from holdfast.models import cifar, containers
from holdfast.models.encoder import Geometry

Triple = tuple[float, float, float]
IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Manners(NamedTuple):
    """What an architecture expects: mean and std per channel (None = it does not say), and its images."""

    mean: Triple | None
    std: Triple | None
    geometry: Geometry


def parse(options: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from `("pad_type=same", "width=32")`: Python literals, or else text.

    Raises:
        ConfigError: an option without `=`.
    """
    found: dict[str, Any] = {}
    for option in options:
        name, sign, text = option.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f'option "{option}" is no name=value.', next='Write "pad_type=same".')
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def build(arch: str, options: dict[str, Any], *, seed: int = 0) -> nn.Module:
    """An architecture with random weights, keyed by name and seed; the global generator is left as it is.

    Args:
        arch: one of `models.cifar`, a timm name, or `package.module:factory`.
        options: its keyword arguments.
        seed: of the weights.

    Raises:
        ConfigError: the name or an option is unknown.
    """
    with _drawn("weights", arch, seed):
        if ":" in arch:
            return factory(arch, options)
        if arch in cifar.ARCHITECTURES:
            return cifar.build(arch, **options)
        known_to_timm(arch)
        return _timm(arch, options)


def known_to_timm(arch: str) -> None:
    """Raise `ConfigError` where neither timm nor `models.cifar` has the name; the nearest is named."""
    if not timm.is_model(arch):
        known = [*cifar.ARCHITECTURES, *timm.list_models()]
        hint = nearest(arch.partition(".")[0], known)
        short = hint if hint.startswith("Perhaps") else "holdfast ls models lists them."
        raise ConfigError(f'"{arch}" is no architecture.', next=short)


def factory(spec: str, options: dict[str, Any]) -> nn.Module:
    """Call `package.module:factory` with the options.

    Raises:
        ConfigError: no such module or name, or it gives no module.
    """
    where, _, name = spec.partition(":")
    try:
        made = getattr(importlib.import_module(where), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{spec}: {error}.", next="Is the package installed, or on PYTHONPATH?") from None
    module = made(**options)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{spec} gives a {type(module).__name__}.", next="It must return a torch.nn.Module.")
    return module


def pretrained(name: str, options: dict[str, Any]) -> nn.Module:
    """A timm model with the weights that timm names, from the cache or else the hub.

    Raises:
        ConfigError: an unknown name or tag.
        CheckpointError: there are no weights, or they cannot be had here.
    """
    known_to_timm(name)
    base, _, tag = name.partition(".")
    tags = [m for m in timm.list_models(f"{base}*", pretrained=True) if m.partition(".")[0] == base]
    if tag and name not in tags:
        raise ConfigError(f'{base} has no weights tagged "{tag}".', next=nearest(name, tags))
    cfg = timm.get_pretrained_cfg(name)
    if not cfg or not cfg.hf_hub_id:
        advice = (
            f"Download {cfg.url} and say arch {name}."
            if cfg and cfg.url
            else f'For random weights say "random:{name}".'
        )
        raise CheckpointError(f"timm has no weights on the hub for {name}.", next=advice)
    _whole(name, cfg.num_classes, options)
    return _timm(name, options, {"state_dict": _hub_weights(cfg.hf_hub_id)})


def hub(repository: str, options: dict[str, Any]) -> nn.Module:
    """A timm model from `owner/name` on the hub: its `config.json` says the architecture; errors as `pretrained`."""
    config = json.loads(_hub_file(repository, "config.json").read_text())
    if "architecture" not in config:
        raise CheckpointError(
            f"{repository} is no timm repository: config.json names no architecture.", next="Say arch and a file."
        )
    fields = {f.name for f in dataclasses.fields(PretrainedCfg)}
    classes = config.get("num_classes", config.get("pretrained_cfg", {}).get("num_classes", 0))
    _whole(repository, classes, options)
    known = {k: v for k, v in config.get("pretrained_cfg", {}).items() if k in fields}
    cfg = {**known, "source": None, "num_classes": classes}
    arguments = {**config.get("model_args", {}), **options, "num_classes": classes}
    known_to_timm(config["architecture"])
    return _timm(config["architecture"], arguments, {**cfg, "state_dict": _hub_weights(repository)})


def _whole(name: str, classes: int, options: dict[str, Any]) -> None:
    """timm would give another number of classes a random head, and load the rest in part without a word."""
    if options.get("num_classes", classes) != classes:
        raise ConfigError(f"the published weights of {name} have {classes} classes.", next="Leave num_classes out.")


def manners(trunk: nn.Module, arch: str, *, fresh: bool) -> Manners:
    """What a trunk expects of its images.

    The published CIFAR-10 weights of the nets of He et al. take ImageNet's mean and std; a fresh small net takes 0.5
    and 0.25. timm's other interpolations than bicubic count as bilinear.

    Args:
        trunk: as built.
        arch: its name.
        fresh: with random weights.
    """
    if arch in cifar.ARCHITECTURES:
        mean, std = SMALL if fresh else IMAGENET if arch in cifar.PUBLISHED else (None, None)
        return Manners(mean, std, Geometry(32, 32, "bilinear"))
    cfg = getattr(trunk, "pretrained_cfg", None) or {}
    if "mean" not in cfg or "std" not in cfg:
        return Manners(None, None, Geometry())
    size = int((cfg.get("input_size") or (3, 0, 0))[-1])
    kind: Literal["bilinear", "bicubic"] = "bicubic" if cfg.get("interpolation") == "bicubic" else "bilinear"
    resize = int(size / float(cfg.get("crop_pct") or 1))
    return Manners(tuple(cfg["mean"]), tuple(cfg["std"]), Geometry(size, resize, kind))


@contextlib.contextmanager
def _drawn(*parts: str | int) -> Iterator[None]:
    """The global CPU generator seeded by a key inside the block, and as it was after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draws.key(*parts))
        yield


def _timm(arch: str, options: dict[str, Any], weights: dict[str, Any] | None = None) -> nn.Module:
    """`timm.create_model`, ViTs for images of any size; options that it refuses become a `ConfigError`."""
    arguments = {"pretrained": weights is not None, "pretrained_cfg_overlay": weights, **options}
    try:
        try:
            trunk = timm.create_model(arch, **{"dynamic_img_size": True, **arguments})
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            trunk = timm.create_model(arch, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if weights is not None:
            raise CheckpointError(
                f"{arch}: {str(error)[:300]}. Nothing was loaded.", next="Check the options."
            ) from None
        raise ConfigError(f"{arch} cannot be built with {options}: {error}.", next="Check the options.") from None
    trunk.pretrained_cfg = {k: v for k, v in trunk.pretrained_cfg.items() if k != "state_dict"}
    return cast(nn.Module, trunk)


def _hub_weights(repository: str) -> dict[str, torch.Tensor]:
    """The weights of a repository as safetensors, or else as a torch file that holds tensors alone."""
    names = ("model.safetensors", "pytorch_model.bin")
    cached = next((n for n in names if _cached(repository, n)), names[0])
    try:
        return containers.read(_hub_file(repository, cached)).tensors
    except FileNotFoundError:
        return containers.read(_hub_file(repository, names[1])).tensors


def _cached(repository: str, name: str) -> Path | None:
    where, _, revision = repository.partition("@")
    found = try_to_load_from_cache(where, name, cache_dir=constants.HF_HUB_CACHE, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def _hub_file(repository: str, name: str) -> Path:
    """A file of the hub: from the cache, or downloaded where the hub answers within three seconds."""
    found = _cached(repository, name)
    if found:
        return found
    if not _reachable():
        raise CheckpointError(
            f"{repository} is not in the cache ({constants.HF_HUB_CACHE}) and this machine is offline.",
            next="Load it once on a machine with network and copy its cache, or give a weights file with arch.",
        )
    where, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(where, name, revision=revision or None, cache_dir=constants.HF_HUB_CACHE))
    except FileNotFoundError:
        raise
    except Exception as error:
        if "not found" in str(error).lower() and "404" in str(error) and name == "model.safetensors":
            raise FileNotFoundError(name) from None
        raise CheckpointError(
            f"{repository} cannot be downloaded: {str(error)[:200]}.", next="Check its name."
        ) from None


def _reachable() -> bool:
    """Does the hub answer? huggingface_hub alone would try for most of a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=3).close()
    except OSError:
        return False
    return True
