"""`ls`: what exists, what a run holds, and what failed in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.configs import LsConfig
from holdfast.errors import ConfigError, nearest


def lines(config: LsConfig) -> list[str]:
    """The lines to print.

    Raises:
        ConfigError: neither a known list, nor a run, nor a weights file.
    """
    if config.what in _LISTS:
        return _LISTS[config.what]()
    path = Path(config.what)
    if (path / "cells").is_dir():
        return _run(path, failed=config.failed)
    if (path / "metrics.jsonl").is_file():
        return _training(path)
    if path.is_file():
        return _weights(path)
    raise ConfigError(f'"{config.what}" is no list, run folder or weights file.', next=nearest(config.what, _LISTS))


def _table(rows: dict[str, str]) -> list[str]:
    width = max(len(name) for name in rows)
    return [f"{name:<{width}}  {about}".rstrip() for name, about in rows.items()]


def _models() -> list[str]:
    from holdfast.models.cifar import ARCHITECTURES

    timm = {"NAME": "any timm model whose weights are cached or reachable", "random:NAME": "untrained, seeded"}
    return _table({**dict.fromkeys(ARCHITECTURES, "for small images, see holdfast.models.cifar"), **timm})


def _attacks() -> list[str]:
    from holdfast.attacks.balls import BALLS
    from holdfast.attacks.methods import METHODS

    return [*_table({name: method.about for name, method in METHODS.items()}), f"balls: {', '.join(BALLS)}"]


def _flags() -> list[str]:
    from holdfast.evaluation.flags import FLAGS

    return _table({flag.id: f"{flag.name}. Raised where {flag.threshold}" for flag in FLAGS.values()})


def _corruptions() -> list[str]:
    from holdfast.corruptions.frost import find_published
    from holdfast.corruptions.table import families, variants

    textures = find_published()
    return _table(
        {
            **{family: ", ".join(names) for family, names in families().items()},
            "variants": ", ".join(variants()),
            "frost": f"published textures in {textures}" if textures else "drawn; HOLDFAST_FROST=folder names others",
            "spatter": 'needs OpenCV: pip install "holdfast[opencv]"',
        }
    )


def _suites() -> list[str]:
    from holdfast.evaluation.suites import SUITES

    return _table({f"{suite.name} (version {suite.version})": suite.about for suite in SUITES.values()})


def _tasks() -> list[str]:
    from holdfast.tasks.classification import Classification
    from holdfast.tasks.depth_errors import Range
    from holdfast.tasks.depth_pushes import pushes
    from holdfast.tasks.embedding import Embedding
    from holdfast.tasks.segmentation_pushes import PUSHES
    from holdfast.tasks.task import Task

    found: dict[str, Task] = {"classification": Classification(), "embedding": Embedding()}
    named = {name: tuple(task.pushes) for name, task in found.items()}
    named |= {"segmentation": tuple(PUSHES), "depth": tuple(pushes(Range(near=0.001, far=10.0)))}
    return _table({name: f"harms: {', '.join(harms)}" for name, harms in named.items()})


def _methods() -> list[str]:
    from holdfast.training.methods.table import METHODS, READS

    own = {name: ", ".join(f"--{field.replace('_', '-')}" for field in READS[name]) for name in METHODS}
    table = _table({name: f"{METHODS[name].__doc__}  reads {flags}" for name, flags in own.items()})
    return [*table, "adversaries: none, pgd, free (pgd_summed: as published code runs pgd)"]


def _recipes() -> list[str]:
    from holdfast.recipe import names

    return _table(names())


def _layouts() -> list[str]:
    from holdfast.data.sources import layouts

    return _table(layouts())


_LISTS: dict[str, Callable[[], list[str]]] = {
    "models": _models,
    "attacks": _attacks,
    "flags": _flags,
    "corruptions": _corruptions,
    "suites": _suites,
    "tasks": _tasks,
    "methods": _methods,
    "recipes": _recipes,
    "layouts": _layouts,
}


def _run(path: Path, *, failed: bool) -> list[str]:
    from holdfast.evaluation.rows import called, condition, last_line
    from holdfast.evaluation.store import read

    found: list[str] = []
    for result in read(path).results:
        cell = result.cell
        head = f"{result.id}  {called(cell)}  {cell.judge.task}  {condition(cell)}"
        if result.status == "failed":
            found.append(f"{head}  FAILED: {last_line(result.error)}")
            found += result.error.rstrip().splitlines() if failed else []
        elif not failed:
            metric = next((m for m in result.metrics if m.value is not None), None)
            value = f"{metric.name} {metric.value:.4g} (n {metric.n})" if metric else ""
            found.append(f"{head}  {value}")
    return found or (["no cell failed"] if failed else ["no cell is done"])


def _training(path: Path) -> list[str]:
    last = (path / "metrics.jsonl").read_text().rstrip().splitlines()[-1:]
    done = (path / "encoder.safetensors").exists()
    return [f"{path}: training {'finished' if done else 'not finished; the same command continues it'}", *last]


def _weights(path: Path) -> list[str]:
    from holdfast.models.containers import read

    tensors = read(path).tensors
    total = sum(tensor.numel() for tensor in tensors.values())
    shown = [f"{name}  {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:12]]
    more = [f"... and {len(tensors) - 12} more"] if len(tensors) > 12 else []
    return [f"{path}: {len(tensors)} tensors, {total:,} numbers", *shown, *more]
