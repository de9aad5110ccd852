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


@dataclass(frozen=True)
class L1:
    """The absolute values of the perturbation, over all channels and pixels, add up to at most epsilon.

    Attributes:
        share: of the coordinates that a step moves, at least one: SLIDE (Tramer and Boneh 2019, arXiv 1904.13000). The
            exact steepest step moves one, `share` = 0, and one coordinate is soon at its wall: on a plain CIFAR-10
            ResNet-20 PGD-20 leaves 62 of 100 images at epsilon 2 by it, and 28 by one in a hundred.
    """

    share: float = 0.01

    def start(self, x: Tensor, eps: Tensor, keys: Tensor, *parts: str | int) -> Tensor:
        """Uniform in the ball (a Laplace direction of length eps * u^(1/d)), then projected, which clamps to [0, 1]."""
        unit = 2 * draws.uniform(keys, x.shape[1:], "l1", *parts).to(x) - 1
        laplace = unit.sign() * -torch.log1p(-unit.abs().clamp_max(1 - 2**-24))
        length = draws.uniform(keys, (), "l1 radius", *parts).to(x) ** (1 / math.prod(x.shape[1:]))
        return self.project(x, x + laplace * _wide(length * eps.to(x) / self.norm(laplace), x), eps)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The signs of the largest `share` of the gradient (ties with the last of them too), at equal weights."""
        size = gradient.abs()
        flat = size.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1]
        signs = gradient.sign() * (size >= _wide(least, size))
        return signs / _wide(self.norm(signs).clamp_min(1), signs)

    def project(self, x: Tensor, adversarial: Tensor, eps: Tensor) -> Tensor:
        """The nearest point of ball and box together (Croce and Hein 2021, Mind the box, arXiv 2103.01208).

        It is `x + sign(d) * min(max(|d| - m, 0), room)` with `d` the perturbation, `room` what a value has left to the
        wall in its direction, and `m` >= 0 the number that makes the length epsilon. In float64, and rounded to float32
        towards `x`, so that no number of values carries the length over epsilon.
        """
        # In place wherever it can be: fresh memory for every line costs four times the arithmetic.
        before = x.double()
        delta = adversarial.double().sub_(before)
        room = torch.where(delta > 0, 1 - before, before)
        size = delta.abs()
        clamped, spare = adversarial.clamp(0, 1), torch.minimum(size, room)
        outside = _sum(spare) > eps.double()
        if not bool(outside.any()):
            return clamped
        threshold = _threshold(size, room, eps.double(), spare)
        exact = torch.minimum(size.sub_(_wide(threshold, size)).clamp_min_(0), room, out=room)
        nearest = (before + exact.copysign(delta)).to(x.dtype)
        longer = delta.copy_(nearest).sub_(before).abs_() > exact
        inward = torch.where(longer, torch.nextafter(nearest, x), nearest)
        return torch.where(outside.view(-1, *[1] * (x.ndim - 1)), inward, clamped)

    def norm(self, delta: Tensor) -> Tensor:
        """The sum of the absolute values of each row."""
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), 1, dim=1, dtype=torch.float64)
        return length.to(delta.dtype)


def _sum(values: Tensor) -> Tensor:
    return values.sum(tuple(range(1, values.ndim)))


def _threshold(size: Tensor, room: Tensor, eps: Tensor, spare: Tensor) -> Tensor:
    """The m >= 0 for which `min(max(size - m, 0), room)` sums to eps, to 1e-12 of it; 0 where it sums to less at m = 0.

    The sum falls with m and is linear between the sizes at which a value leaves its wall or reaches zero. Newton's step
    is therefore exact once it lands on the right piece; every third step, and one that leaves the bracket, is a
    bisection. Sorting these sizes would give the same at several times the cost.

    Args:
        size: float64 [b, ...], at least 0.
        room: the same.
        eps: float64 [b].
        spare: of the shape of `size`; written over.
    """
    low, high = torch.zeros_like(eps), size.flatten(1).amax(1)
    threshold, left = high.where(eps <= 0, 0), torch.empty_like(size)
    off = torch.ones_like(eps, dtype=torch.bool)
    for count in range(1, 200):
        torch.sub(size, _wide(threshold, size), out=left)
        falling = _sum((left > 0) & (left <= room))
        over = _sum(torch.minimum(left.clamp_min_(0), room, out=spare)) - eps
        low, high = torch.where(over > 0, threshold, low), torch.where(over > 0, high, threshold)
        # A row that is inside at the threshold 0 is done, and stays so.
        off = off & ((over if count == 1 else over.abs()) > 1e-12 * eps.clamp_min(1e-3))
        if not bool(off.any()):
            break
        newton = threshold + over / falling.clamp_min(1)
        inside = (newton > low) & (newton < high) & (count % 3 > 0)
        threshold = torch.where(off, torch.where(inside, newton, (low + high) / 2), threshold)
    return threshold


BALLS: dict[str, Ball] = {"linf": Linf(), "l2": L2(), "l1": L1()}


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
