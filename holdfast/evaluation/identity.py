"""Which run is this? What `run.yaml` holds, and whether a second command asks for the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from holdfast.codec import Record
from holdfast.configs import BenchConfig
from holdfast.errors import ConflictError
from holdfast.evaluation.rows import radius
from holdfast.records import SCHEMA, Attack, Environment

# Fields that change where and how fast, not what: a run continues whatever they are.
IGNORED = ("out", "device", "threads", "chunk", "block", "shard", "dry_run", "replace", "recompute")
SHOWN_DIFFERENCES = 4


class RunRecord(Record, frozen=True, kw_only=True):
    """What `run.yaml` holds.

    Attributes:
        config: with everything that was left to the suite written out.
        command: the command line that began the run.
        environment: where it began; every result names its own.
        models: digest of the weights by name.
        images: digests of the image lists, sorted.
        cells: how many cells the whole grid has; 0 = unknown.
        made: digest over the judges and stages of the grid: another head in the same file, or another copy in the same
            folder, is another run; empty = unknown.
    """

    schema: int = SCHEMA
    config: BenchConfig
    command: str = ""
    environment: Environment | None = None
    models: dict[str, str] = msgspec.field(default_factory=dict)
    images: tuple[str, ...] = ()
    cells: int = 0
    made: str = ""


def differences(old: RunRecord, new: RunRecord) -> list[tuple[str, str, str]]:
    """What differs between two runs in what they measure: (field, old, new) in words."""
    before, after = _view(old.config), _view(new.config)
    changes = [(name, before[name], after[name]) for name in before if before[name] != after[name]]
    if not changes and old.config.attacks != new.config.attacks:
        # Words are rounded and tell templates and radii apart; what decides is the attacks themselves.
        changes = [("attacks", _exact(old.config.attacks), _exact(new.config.attacks))]
    if changes or not (old.models and new.models):
        return changes
    for name in {*old.models, *new.models}:
        was, now = old.models.get(name, "no such encoder"), new.models.get(name, "no such encoder")
        if was != now:
            changes.append((f"weights of {name}", was[:16], now[:16]))
    if old.images != new.images:
        changes.append(("images", " ".join(d[:16] for d in old.images), " ".join(d[:16] for d in new.images)))
    if not changes and old.made and new.made and old.made != new.made:
        changes.append(("heads or corrupted images", old.made[:16], new.made[:16]))
    return sorted(changes)


def conflict(folder: Path, changes: list[tuple[str, str, str]]) -> ConflictError:
    """The error that shows the differing fields, old and new."""
    shown = "; ".join(f"{name} {old} (you ask {new})" for name, old, new in changes[:SHOWN_DIFFERENCES])
    more = len(changes) - SHOWN_DIFFERENCES
    if len(changes) == 1:
        name, old, new = changes[0]
        text = f"{folder} was made with {name} {old}; you ask {new}."
    else:
        text = f"{folder} was made with {shown}{f'; and {more} more' if more > 0 else ''}."
    return ConflictError(text, next="Choose another --out, or --replace.")


def _view(config: BenchConfig) -> dict[str, str]:
    """The fields that decide what is measured, in words; radii apart from the attacks that they belong to."""
    plain = {name: getattr(config, name) for name in config.__struct_fields__ if name not in IGNORED}
    attacks: tuple[Attack, ...] = plain.pop("attacks")
    if config.eps is None:
        plain["eps"] = sorted({(a.norm, a.eps) for a in attacks})
    else:
        plain["eps"] = [(config.norm or "linf", e) for e in config.eps]
    words = {name: _words(value) for name, value in plain.items() if name != "eps"}
    words["eps"] = ", ".join(radius(e, norm) for norm, e in plain["eps"]) or "none"
    templates = dict.fromkeys(msgspec.structs.replace(a, eps=0.0) for a in attacks)
    words["attacks"] = " | ".join(_attack(a) for a in templates) or "none"
    words["pairs of attack and eps"] = str(len(attacks))
    return words


def _exact(attacks: tuple[Attack, ...]) -> str:
    return " | ".join(f"{_attack(a)} eps={a.eps!r}" for a in attacks) or "none"


def _attack(attack: Attack) -> str:
    told = {k: v for k, v in msgspec.to_builtins(attack).items() if k not in ("eps", "stage")}
    return " ".join(f"{k}={v}" for k, v in told.items())


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_words(v) for v in value) or "none"
    if isinstance(value, Record):
        return msgspec.json.encode(value).decode()
    return '""' if value == "" else str(value)
