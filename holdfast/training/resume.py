"""What makes a killed run continue as if nothing had happened: its config, its state and its metrics on disk."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from holdfast import disk
from holdfast.codec import Record, to_yaml
from holdfast.errors import CheckpointError, ConflictError
from holdfast.training.events import Events

CONFIG, STATE, METRICS = "run.yaml", "state.pt", "metrics.jsonl"
_FREE = ("out", "device", "threads", "replace", "save_every", "tensorboard")


def refuse_other(out: Path, config: Record, *, replace: bool) -> None:
    """See that a folder holds no run with another config; nothing is written.

    Args:
        out: the folder, which may be missing.
        config: `out`, `device`, `threads`, `save_every`, `tensorboard` and `replace` may differ from one start to the
            next; a field that an older version did not know counts as its default.
        replace: whether another run may be replaced.

    Raises:
        ConflictError: the folder was made with another config; each difference is named.
    """
    different = _different(out, config)
    if different and not replace:
        raise ConflictError(
            f"{out} was made with another config: {'; '.join(different)}.",
            next="Choose another --out, or give --replace to start anew.",
        )


def claim(out: Path, config: Record, products: tuple[str, ...]) -> None:
    """Make a folder this run's own, once everything that could refuse has not.

    Args:
        out: the folder; made where it is missing.
        config: written as `run.yaml`.
        products: files of a run, removed where they are another config's.
    """
    if _different(out, config):
        for name in products:
            (out / name).unlink(missing_ok=True)
    disk.write(out / CONFIG, to_yaml(config))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields that matter to a result and differ, in words: `lr was 0.001, is 0.01`."""
    names = [name for name in sorted({*before, *now}) if name not in _FREE]
    plain = json.loads(json.dumps([dict(before), dict(now)]))
    return [
        f"{name} was {_word(plain[0], name)}, is {_word(plain[1], name)}"
        for name in names
        if plain[0].get(name) != plain[1].get(name)
    ]


def save_state(out: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run, whole or not at all."""
    disk.write(out / STATE, lambda file: torch.save(dict(state), file))


def load_state(out: Path, images: str) -> dict[str, Any] | None:
    """The state of a run, on the CPU.

    Args:
        out: its folder.
        images: digest of the images that it is trained on now.

    Returns:
        None where nothing was saved yet.

    Raises:
        ConflictError: it was trained on other images.
        CheckpointError: the file cannot be read.
    """
    path = out / STATE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", next="Delete it to start anew, or give another --out."
        ) from None
    if state["images"] != images:
        raise ConflictError(
            f"{out} was trained on other images: digest {state['images'][:12]}, now {images[:12]}.",
            next="Choose another --out, or give back the images.",
        )
    return state


class Metrics:
    """Lines of JSON, one per step and one per check, that never run ahead of the state.

    Args:
        out: the run's folder.
        step: steps that the state holds; later lines, and one that a killed process left unfinished, are dropped.
        writes: whether this process does; of several that train together one does.
        events: told the same lines.
    """

    def __init__(self, out: Path, step: int, *, writes: bool = True, events: Events | None = None) -> None:
        self.path, self.writes, self.events = out / METRICS, writes, events
        if writes and self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
            disk.write(self.path, "".join(line + "\n" for line in kept))

    def append(self, *lines: Mapping[str, float | int]) -> None:
        """Add lines; each has a `step`. They are with the operating system when this returns."""
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        if self.events is not None:
            self.events.append(*lines)

    def last(self, name: str) -> float | None:
        """The latest value of that name, or None."""
        return next((float(line[name]) for line in reversed(self.read()) if name in line), None)

    def first(self, name: str) -> float | None:
        """The earliest value of that name, or None."""
        return next((float(line[name]) for line in self.read() if name in line), None)

    def read(self) -> list[dict[str, float]]:
        """All lines in order."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def _different(out: Path, config: Record) -> list[str]:
    path = out / CONFIG
    if not path.exists():
        return []
    return differences({**msgspec.to_builtins(type(config)()), **_read(path)}, msgspec.to_builtins(config))


def _read(path: Path) -> dict[str, Any]:
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{path} is no config: {error}.", next="Give another --out.") from None


def _word(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name]) if name in fields else "absent"


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
