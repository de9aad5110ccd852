"""The nearest point of a hyperplane inside the box [0, 1], exactly, for Linf, L2 and L1 and a batch of rows.

    shift = argmin |d|_p  with  <w, d> = rise  and  0 <= x + d <= 1            (Croce and Hein 2020, arXiv 1907.02044)

Only a shift along the sign of `rise * w` helps: value i moves by m_i in [0, room_i] and gains |w_i| m_i. The optimum is

    Linf: m_i = min(s, room_i)      L2: m_i = min(s |w_i|, room_i)      L1: the largest |w_i| move as far as they can

The paper sorts all values. Here the total gain, concave and piecewise linear in s, is solved by Newton's method, which
from s = 0 rises to the root and stops there exactly: a handful of passes. L1 sorts the few values that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.balls import Ball
from holdfast.errors import ConfigError

FIRST_SORTED = 64
GROWTH = 8


class Plane(NamedTuple):
    """What a norm needs to know of hyperplanes.

    Attributes:
        dual: of gradients [b, ...] -> [b]: the distance of a hyperplane without the box is its rise over this.
        shift: (x, w, rise [b]) -> the shortest shift into the hyperplane and the box, as `shift_l2`.
        reach: a radius for random starts where none is given, in pixel units (the default of the authors' program).
    """

    dual: Callable[[Tensor], Tensor]
    shift: Callable[[Tensor, Tensor, Tensor], Tensor]
    reach: float


def shift_linf(x: Tensor, weight: Tensor, rise: Tensor) -> Tensor:
    """The shift of smallest largest value; arguments and result as `shift_l2`. Where the weight is 0, nothing moves."""
    sign, gain, room, goal = _one_sided(x, weight, rise)
    return (sign * _filled(gain, room, torch.ones_like(gain), goal)).view_as(x)


def shift_l2(x: Tensor, weight: Tensor, rise: Tensor) -> Tensor:
    """The shortest shift that raises a linear function as far as it should, inside the box.

    Args:
        x: points in [0, 1], [b, ...].
        weight: gradient of the function, like `x`; its scale does not matter. What is below 1e-19 of its largest value
            may count as zero.
        rise: wanted change of the function in units of `weight` times pixels, [b]; may be negative or zero.

    Returns:
        The shift d, like `x`: `x + d` is in the box (to rounding) and <weight, d> = rise. Where the box does not allow
        so much, the corner that comes nearest to it, as in the paper; zero where the weight is zero.
    """
    sign, gain, room, goal = _one_sided(x, weight, rise)
    return (sign * _filled(gain, room, gain, goal)).view_as(x)


def shift_l1(x: Tensor, weight: Tensor, rise: Tensor) -> Tensor:
    """The shift of smallest sum of absolute values; arguments and result as `shift_l2`. Equal weights share alike."""
    sign, gain, room, goal = _one_sided(x, weight, rise)
    worth = gain * room
    wanted = goal.clamp_max(worth.sum(1))
    last = _last_needed(gain, worth, wanted)
    above, at = gain > last[:, None], gain == last[:, None]
    left = wanted - worth.where(above, 0).sum(1)
    held = worth.where(at, 0).sum(1)
    share = (left / held.where(held > 0, 1)).clamp(0, 1)
    move = torch.where(above, room, torch.where(at, share[:, None] * room, 0))
    return (sign * move.where((goal < worth.sum(1))[:, None], room)).view_as(x)


PLANES: dict[str, Plane] = {
    "Linf": Plane(lambda gradient: gradient.flatten(1).abs().sum(1), shift_linf, 0.3),
    "L2": Plane(lambda gradient: torch.linalg.vector_norm(gradient.flatten(1), dim=1), shift_l2, 1.0),
    "L1": Plane(lambda gradient: gradient.flatten(1).abs().amax(1), shift_l1, 5.0),
}
"""By the class of the ball."""


def plane(ball: Ball) -> Plane:
    """Dual norm and projection that belong to a ball; `ConfigError` where none are known."""
    name = type(ball).__name__
    if name not in PLANES:
        raise ConfigError(f"no projection onto hyperplanes is known for {name}.", next=f"Take {', '.join(PLANES)}.")
    return PLANES[name]


def _one_sided(x: Tensor, weight: Tensor, rise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Signs of the shift, |weight| (largest 1), room until the box ends (0 where the weight is 0), and what to gain."""
    point, flat = x.flatten(1), weight.flatten(1)
    gain = flat.abs()
    largest = gain.amax(1)
    # Tiny gradients must not underflow when they are squared.
    scale = largest.where(largest > 0, 1)
    gain = gain / scale[:, None]
    sign = flat.sign() * torch.where(rise < 0, -1, 1)[:, None].to(flat)
    room = torch.where(sign > 0, 1 - point, point).where(sign != 0, 0).clamp_min(0)
    return sign, gain, room, rise.abs() / scale


def _filled(gain: Tensor, room: Tensor, slope: Tensor, goal: Tensor) -> Tensor:
    """min(s * slope, room), [b, n], with the s of each row at which sum(gain * that) = goal; room where none is."""
    worth, rate = gain * room, gain * slope
    reachable = goal < worth.sum(1)
    full = room <= 0
    level = torch.zeros_like(goal)
    # Concave: the tangent's root never passes the true one. Values that are full stay so, hence an end.
    while True:
        missing = goal - worth.where(full, 0).sum(1)
        speed = rate.where(~full, 0).sum(1)
        better = torch.maximum(level, missing / speed.where(speed > 0, torch.inf))
        if not bool((better > level).any()):
            break
        level = better.clamp_max(torch.finfo(better.dtype).max)
        full = full | (level[:, None] * slope >= room)
    return torch.minimum(level[:, None] * slope, room).where(reachable[:, None], room)


def _last_needed(gain: Tensor, worth: Tensor, wanted: Tensor) -> Tensor:
    """The largest gain [b] such that all values with at least this gain are worth what is wanted."""
    count, n = min(FIRST_SORTED, gain.shape[1]), gain.shape[1]
    while True:
        top, order = gain.topk(count, dim=1)
        total = worth.gather(1, order).cumsum(1)
        if count == n or bool((total[:, -1] >= wanted).all()):
            break
        count = min(count * GROWTH, n)
    first = (total < wanted[:, None]).sum(1).clamp_max(count - 1)
    return top.gather(1, first[:, None]).squeeze(1)
