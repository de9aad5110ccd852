"""Several attacks one after the other: what one of them loses, the next need not attack. AutoAttack is such a cascade.

Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, ICML
2020 (arXiv 2003.01690).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.executor import Attack, Found, Keep, Seen, Stage, Stop, pursue
from holdfast.attacks.harm import Harm, Push, Rows
from holdfast.errors import ConfigError, nearest

NOBODY = -1


class Member(NamedTuple):
    """One attack of a cascade.

    Attributes:
        name: of it, unique within the cascade.
        attack: start, step, finish.
        push: name of the harm that it raises.
        stages: restarts, targets or radii.
        exact: whether it sees in float32, whatever the harm sees in.
    """

    name: str
    attack: Attack
    push: str
    stages: tuple[Stage, ...] = (Stage(),)
    exact: bool = False


def cascade(
    members: Sequence[Member],
    harm: Harm,
    pushes: Mapping[str, Push],
    x: Tensor,
    rows: Rows,
    *,
    slots: int = 64,
    stop: Stop = "lost",
    watch: Callable[[Seen], None] | None = None,
    keep: Keep | None = None,
) -> Found:  # parameters: those of `pursue`, for several attacks
    """Run attacks over rows, one after the other; the worst over all of them is kept.

    Args:
        members: in their order; each begins where the attack says, with `rows["begin"]` the worst iterate so far.
        harm: gives `see` and `score`; its own push is not read.
        pushes: harms by name.
        x: clean pixels, float32 [n, 3, h, w] in [0, 1].
        rows: as `pursue` takes them.
        slots: rows per pass.
        stop: "lost" = a row that a member loses is not attacked by the later ones; "never", "nearest" = all attack all.
        watch: called with what every step saw.
        keep: where to keep what is done; each member has its own name there.

    Returns:
        As `pursue`. `trace` of a row is that of the member whose iterate was kept, with `member`: its place in
        `members`, -1 = none was worse than the clean image; `looks` and shares of gradients are over all members.

    Raises:
        ConfigError: a member raises a harm that is not among `pushes`; the others as `pursue`.
    """
    unknown = [member.push for member in members if member.push not in pushes]
    if unknown or not members:
        hint = nearest(unknown[0], pushes) if unknown else "Name an attack."
        raise ConfigError(f'no harm is called "{unknown[0]}".' if unknown else "no attack to run.", next=hint)
    total: Found | None = None
    for place, member in enumerate(members):
        see = harm.exact if member.exact and harm.exact is not None else harm.see
        seen = dataclasses.replace(harm, see=see, push=pushes[member.push], exact=None if member.exact else harm.exact)
        at = torch.arange(len(x), device=x.device)
        if total is not None and stop == "lost":
            at = (total.score <= 0).nonzero().squeeze(1)
        if not len(at):
            break
        part = {name: row[at] for name, row in rows.items()}
        if total is not None:
            part["begin"] = total.pixels[at]
        name = f"{place} {member.name}"
        watched = _among(watch, at)
        found = pursue(
            member.attack, seen, x[at], part, member.stages, slots=slots, stop=stop, watch=watched, keep=keep, name=name
        )
        total = _joined(total, found, at, place, stop, member.attack, x)
    assert total is not None, "there is a member, and x is not empty"
    return total


def _among(watch: Callable[[Seen], None] | None, at: Tensor) -> Callable[[Seen], None] | None:
    """A watch over some rows that names them by their positions among all."""
    return None if watch is None else lambda seen: watch(seen._replace(at=at[seen.at]))


def _joined(
    total: Found | None, found: Found, at: Tensor, place: int, stop: Stop, attack: Attack, x: Tensor
) -> Found:  # parameters: what two outcomes are compared by
    """The worse of two outcomes for every row."""
    moved = (found.pixels != x[at]).flatten(1).any(1)
    if total is None:
        member = torch.full_like(at, NOBODY).where(~moved, place)
        return found._replace(trace={**found.trace, "member": member})
    old, new = Found(total.pixels[at], total.score[at], {k: v[at] for k, v in total.trace.items()}), found
    if stop == "nearest":
        worse = _distance(attack, new, x[at]) < _distance(attack, old, x[at])
    else:
        worse = moved & (new.score > old.score)
    trace = {name: torch.where(worse, new.trace[name], part) for name, part in old.trace.items() if name != "member"}
    if getattr(attack, "begin", "") == "given":
        # It began where the ones before ended: its start is no random one, and what it found late is late.
        trace |= {name: old.trace[name] for name in ("start_score", "early_score")}
    looks = old.trace["looks"] + new.trace["looks"]
    for name in ("zero_gradients", "broken_gradients"):
        both = old.trace[name] * old.trace["looks"] + new.trace[name] * new.trace["looks"]
        trace[name] = both / looks.clamp_min(1)
    trace |= {"looks": looks, "member": torch.where(worse, place, old.trace["member"])}
    return Found(
        total.pixels.index_copy(0, at, torch.where(worse.view(-1, 1, 1, 1), new.pixels, old.pixels)),
        total.score.index_copy(0, at, torch.where(worse, new.score, old.score)),
        {name: part.index_copy(0, at, trace[name].to(part)) for name, part in total.trace.items()},
    )


def _distance(attack: Attack, found: Found, x: Tensor) -> Tensor:
    return attack.ball.norm(found.pixels - x).where(found.score > 0, torch.inf)
