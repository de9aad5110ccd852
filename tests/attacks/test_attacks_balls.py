"""L1 with the box against an independent oracle, then what every ball promises of layout, precision and rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize

from holdfast import draws
from holdfast.attacks.balls import BALLS, L1, L2, ball
from holdfast.errors import ConfigError


def drawn(n: int, size: int, spread: float, *parts: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that reach both walls, and points around them."""
    generator = draws.generator("balls", *parts)
    x = (torch.rand(n, 3, size, size, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    return x, x + torch.randn(x.shape, generator=generator) * spread


def length(x: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    return (moved.double() - x.double()).flatten(1).abs().sum(1)


def oracle(x: torch.Tensor, y: torch.Tensor, eps: float) -> np.ndarray:
    """One row, by the multiplier of the constraint: each value minimises (z - y)^2 / 2 + m |z - x| within [0, 1]."""
    before, target = x.double().numpy().ravel(), y.double().numpy().ravel()

    def best(m: float) -> np.ndarray:
        moved = target - before
        return np.clip(before + np.sign(moved) * np.maximum(np.abs(moved) - m, 0), 0, 1)

    def over(m: float) -> float:
        return math.fsum(np.abs(best(m) - before)) - eps

    return best(0.0 if over(0.0) <= 0 else brentq(over, 0.0, float(np.abs(target - before).max()), xtol=1e-15))


@pytest.mark.parametrize("spread", [0.05, 0.5, 3.0])
def test_l1_is_the_exact_projection(spread: float) -> None:
    x, y = drawn(24, 6, spread, "oracle")
    eps = torch.logspace(-2, 2, 24)
    moved = L1().project(x, y, eps)
    for i in range(24):
        truth = oracle(x[i], y[i], float(eps[i]))
        assert np.abs(moved[i].numpy().ravel() - truth).max() < 2e-7, i
    assert bool((length(x, moved) <= eps.double() * (1 + 1e-9)).all())
    assert bool((length(x, moved) > eps.double() * (1 - 1e-3)).any())


def test_l1_agrees_with_a_general_solver() -> None:
    """SLSQP on the twelve values split into rise and fall, where ball and box are linear: it knows no threshold."""
    x, y = drawn(6, 2, 0.6, "solver")
    eps = torch.linspace(0.2, 1.5, 6)
    moved = L1().project(x, y, eps)
    for i in range(6):
        before, delta = x[i].double().numpy().ravel(), (y[i].double() - x[i].double()).numpy().ravel()
        d = len(before)
        found = minimize(
            lambda v, d=d, delta=delta: ((v[:d] - v[d:] - delta) ** 2).sum(),
            np.zeros(2 * d),
            jac=lambda v, d=d, delta=delta: 2 * np.concatenate([v[:d] - v[d:] - delta, delta - v[:d] + v[d:]]),
            bounds=[*((0, 1 - b) for b in before), *((0, b) for b in before)],
            constraints={
                "type": "ineq",
                "fun": lambda v, i=i: float(eps[i]) - v.sum(),
                "jac": lambda v: -np.ones(len(v)),
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found.success
        assert np.abs(moved[i].double().numpy().ravel() - (before + found.x[:d] - found.x[d:])).max() < 1e-5


def test_clipping_first_is_not_the_projection() -> None:
    """The trap that the paper names: a value beyond the wall gives up its excess before any other value."""
    x, y = torch.tensor([0.5, 0.5, 0.5]).view(1, 3, 1, 1), torch.tensor([2.0, 0.9, 0.5]).view(1, 3, 1, 1)
    moved = L1().project(x, y, torch.tensor([0.6]))
    assert torch.allclose(moved, torch.tensor([1.0, 0.6, 0.5]).view(1, 3, 1, 1), atol=1e-6)
    shrunk = L1().project(x, y.clamp(0, 1), torch.tensor([0.6]))
    assert float((shrunk - moved).abs().max()) > 0.04


def test_l1_leaves_alone_what_is_inside() -> None:
    x, y = drawn(8, 5, 0.01, "inside")
    y = y.clamp(0, 1)
    eps = length(x, y).float() * 1.01
    assert torch.equal(L1().project(x, y, eps), y)
    eps[::2] = 0.1
    once = L1().project(x, y, eps)
    assert torch.equal(once[1::2], y[1::2]) and not torch.equal(once[::2], y[::2])
    assert torch.equal(L1().project(x, once, eps), once)
    assert torch.equal(L1().project(x, y, torch.zeros(8)), x)


@pytest.mark.parametrize("eps", [0.5, 12.0, 255.0])
def test_l1_stays_in_its_ball_on_photographs(eps: float) -> None:
    """150,528 values, each rounded to float32: rounded to the nearest they may leave the ball by 1e-5."""
    x, y = drawn(2, 224, 0.2, "photo")
    for moved in (L1().project(x, y, torch.full((2,), eps)), L1().start(x, torch.full((2,), eps), draws.keys("ab"))):
        assert float((length(x, moved) - eps).max()) <= 1e-6
        assert float(length(x, moved).min()) > 0.4 * eps
    # A step of the kind that an attack takes: dense but small.
    near = L1().project(x, x + (y - x) * 1e-4, torch.full((2,), eps))
    assert float((length(x, near) - eps).max()) <= 1e-6


def test_l1_start_fills_the_ball_uniformly() -> None:
    """Uniform: u = |delta| / eps has u^d uniform, mean 1/2; a value is 0 in the mean, with E|value| = eps / (d + 1)."""
    n, d = 4000, 3
    x = torch.full((n, 3, 1, 1), 0.5)
    delta = (L1().start(x, torch.full((n,), 0.4), draws.keys([str(i) for i in range(n)]), 0) - x).flatten(1)
    share = (delta.abs().sum(1) / 0.4) ** d
    assert float(share.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * n))
    assert delta.mean(0).numpy() == pytest.approx(np.zeros(d), abs=4 * 0.15 / math.sqrt(n))
    assert delta.abs().mean(0).numpy() == pytest.approx(np.full(d, 0.4 / (d + 1)), rel=0.05)


def test_l1_step_moves_its_share() -> None:
    gradient = torch.randn(5, 3, 20, 20, generator=draws.generator("gradient"))
    for share, count in ((0.01, 12), (0.5, 600), (0.0, 1), (1e-9, 1)):
        direction = L1(share).steepest(gradient)
        moved = direction.flatten(1) != 0
        assert moved.sum(1).tolist() == [count] * 5
        assert direction.flatten(1).abs().sum(1).numpy() == pytest.approx(np.ones(5), rel=1e-6)
        chosen, others = gradient.flatten(1).abs().where(moved, torch.inf), gradient.flatten(1).abs()
        assert bool((chosen.amin(1) >= others.where(~moved, -torch.inf).amax(1)).all())
        assert torch.equal(direction.sign()[direction != 0], gradient.sign()[direction != 0])
    steepest = (L1(0.0).steepest(gradient) * gradient).flatten(1).sum(1)
    assert torch.equal(steepest, gradient.flatten(1).abs().amax(1)), "the dual norm of L1 is the largest value"
    sparse = torch.zeros(1, 3, 20, 20)
    sparse[0, 0, 0, :3] = torch.tensor([1.0, -2.0, 0.5])
    assert L1(0.01).steepest(sparse)[0, 0, 0, :4] == pytest.approx(torch.tensor([1, -1, 1, 0]) / 3)


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_a_row_knows_nothing_of_its_company_or_layout(norm: str) -> None:
    chosen, eps = BALLS[norm], torch.linspace(0.01, 3, 12)
    x, y = drawn(12, 8, 0.4, "company")
    keys, last = draws.keys([str(i) for i in range(12)]), {"memory_format": torch.channels_last}
    whole, start = chosen.project(x, y, eps), chosen.start(x, eps, keys, "a")
    lying = chosen.project(x.contiguous(**last), y.contiguous(**last), eps)
    assert lying.is_contiguous(**last) and torch.allclose(lying, whole, atol=1e-7)
    assert chosen.steepest(y.contiguous(**last)).is_contiguous(**last)
    assert chosen.start(x.contiguous(**last), eps, keys, "a").is_contiguous(**last)
    for i in range(0, 12, 5):
        one = slice(i, i + 1)
        assert torch.allclose(chosen.project(x[one], y[one], eps[one]), whole[one], atol=1e-7)
        assert torch.allclose(chosen.start(x[one], eps[one], keys[one], "a"), start[one], atol=1e-7)


def test_l2_is_shrunk_then_clamped_and_not_the_nearest_point() -> None:
    x, y = torch.tensor([0.9, 0.5, 0.5]).view(1, 3, 1, 1), torch.tensor([1.7, 1.1, 0.5]).view(1, 3, 1, 1)
    moved = L2().project(x, y, torch.tensor([0.5]))
    assert moved.flatten().numpy() == pytest.approx([1.0, 0.8, 0.5], abs=1e-6)
    nearer = torch.tensor([1.0, 0.5 + math.sqrt(0.25 - 0.01), 0.5]).view(1, 3, 1, 1)
    assert float((nearer - y).norm()) < float((moved - y).norm())


def test_a_ball_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match='"l1"'):
        ball("l11")
