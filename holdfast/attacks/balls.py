"""Balls around an image: start, steepest step, projection (with the box [0, 1]) and norm, with one epsilon per row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from holdfast import draws
from holdfast.attacks.harm import Rows
from holdfast.errors import ConfigError, nearest

Begin = Literal["random", "zero", "given"]


class Ball(Protocol):
    """The set that a perturbed image may not leave. Pixels and radii are in units of [0, 1]; `eps` is [b]."""

    def start(self, x: Tensor, eps: Tensor, keys: Tensor, *parts: str | int) -> Tensor:
        """Pixels [b, c, h, w] at a random point of the ball and the box, keyed by `keys` [b] and `parts`."""
        ...

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of norm one, [b, c, h, w], along which a linear function with this gradient rises fastest."""
        ...

    def project(self, x: Tensor, adversarial: Tensor, eps: Tensor) -> Tensor:
        """Pixels in the ball around `x` and in the box."""
        ...

    def norm(self, delta: Tensor) -> Tensor:
        """The norm of each row, [b]."""
        ...


def _wide(rows: Tensor, like: Tensor) -> Tensor:
    return rows.to(like).view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Linf:
    """Every value moves by at most epsilon."""

    def start(self, x: Tensor, eps: Tensor, keys: Tensor, *parts: str | int) -> Tensor:
        """Uniform in the cube of half-side epsilon, then clamped to [0, 1] (Madry et al. 2018)."""
        noise = draws.uniform(keys, x.shape[1:], "linf", *parts).to(x)
        return (x + (2 * noise - 1) * _wide(eps, x)).clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign of the gradient."""
        return gradient.sign()

    def project(self, x: Tensor, adversarial: Tensor, eps: Tensor) -> Tensor:
        """The exact projection onto cube and box, which are separable."""
        radius = _wide(eps, x)
        return (x + (adversarial - x).clamp(-radius, radius)).clamp(0, 1)

    def norm(self, delta: Tensor) -> Tensor:
        """The largest absolute value of each row."""
        return delta.flatten(1).abs().amax(1)


@dataclass(frozen=True)
class L2:
    """The Euclidean length of the perturbation, over all channels and pixels, is at most epsilon."""

    def start(self, x: Tensor, eps: Tensor, keys: Tensor, *parts: str | int) -> Tensor:
        """Uniform in the ball, then clamped to [0, 1], which only shortens."""
        direction = self.steepest(draws.normal(keys, x.shape[1:], "l2", *parts).to(x))
        length = draws.uniform(keys, (), "l2 radius", *parts).to(x) ** (1 / math.prod(x.shape[1:]))
        return (x + direction * _wide(length * eps.to(x), x)).clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient at length one; scaled by its largest value first, so that tiny ones do not underflow."""
        largest = gradient.flatten(1).abs().amax(1)
        scaled = gradient / _wide(largest.where(largest > 0, 1), gradient)
        length = self.norm(scaled)
        return scaled / _wide(length.where(length > 0, 1), scaled)

    def project(self, x: Tensor, adversarial: Tensor, eps: Tensor) -> Tensor:
        """Shrunk to the ball, then clamped to the box: inside both, though not the nearest such point.

        The length is summed in float64: over a photograph's values float32 is off by more than it may leave the ball.
        """
        delta = adversarial - x
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1, dtype=torch.float64)
        shrink = (eps.to(x) * (1 - 1e-7) / length.clamp_min(1e-30)).clamp_max(1).to(x)
        return (x + delta * _wide(shrink, x)).clamp(0, 1)

    def norm(self, delta: Tensor) -> Tensor:
        """The Euclidean length of each row."""
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length


BALLS: dict[str, Ball] = {"linf": Linf(), "l2": L2()}


def ball(name: str) -> Ball:
    """The ball of that name; `ConfigError` names the nearest where there is none."""
    if name not in BALLS:
        raise ConfigError(f'no ball is called "{name}".', next=nearest(name, BALLS))
    return BALLS[name]


def begun(ball: Ball, begin: Begin, x: Tensor, rows: Rows, eps: Tensor, *parts: str | int) -> Tensor:
    """Where an attack begins, inside ball and box.

    Args:
        ball: that may not be left.
        begin: random = drawn by `rows["key"]` and `parts`; zero = the clean image; given = `rows["begin"]`, projected.
        x: clean pixels [b, 3, h, w].
        rows: `key`, and `begin` [b, 3, h, w] where it is given.
        eps: radius of each row, [b].
        parts: what the draw is for.

    Raises:
        ConfigError: a start was to be given and was not.
    """
    if begin == "random":
        return ball.start(x, eps, rows["key"], *parts)
    if begin == "zero":
        return x.clone()
    if "begin" not in rows:
        raise ConfigError("An attack was to begin at given pixels, and none were.", next='Give rows["begin"].')
    return ball.project(x, rows["begin"], eps)
