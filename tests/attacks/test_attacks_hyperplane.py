"""The nearest point of a hyperplane in the box: against linear and quadratic programs, then against full sorting."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.optimize import linprog, minimize

from holdfast import draws
from holdfast.attacks.balls import BALLS
from holdfast.attacks.hyperplane import FIRST_SORTED, plane, shift_l1, shift_l2, shift_linf
from holdfast.errors import ConfigError

Shift = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
SHIFTS: dict[str, Shift] = {"linf": shift_linf, "l2": shift_l2, "l1": shift_l1}
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}
N = 12


def length(shift: torch.Tensor, norm: str) -> torch.Tensor:
    return torch.linalg.vector_norm(shift.flatten(1).double(), ORDER[norm], dim=1)


def reach(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """How far the box lets <weight, .> rise."""
    return (weight * ((weight > 0).to(x) - x)).flatten(1).sum(1)


def oracle(x: torch.Tensor, weight: torch.Tensor, rise: float, norm: str) -> float:
    """The smallest norm by a solver: a linear program for Linf and L1, a quadratic one for L2."""
    point, normal = x.double().numpy(), weight.double().numpy()
    n = len(point)
    box = [(-p, 1 - p) for p in point]
    if norm == "l2":
        found = minimize(
            lambda d: d @ d,
            normal * rise / (normal @ normal),
            jac=lambda d: 2 * d,
            bounds=box,
            constraints={"type": "eq", "fun": lambda d: normal @ d - rise, "jac": lambda d: normal},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )
        assert found.success
        return float(found.fun**0.5)
    bounds = torch.cat([torch.eye(n), -torch.eye(n)])
    if norm == "linf":  # variables d and s, |d_i| <= s
        cost = [0.0] * n + [1.0]
        above = torch.cat([bounds, -torch.ones(2 * n, 1)], 1).numpy()
        more = [(0, None)]
    else:  # variables d and e, |d_i| <= e_i
        cost = [0.0] * n + [1.0] * n
        above = torch.cat([bounds, -torch.eye(n).repeat(2, 1)], 1).numpy()
        more = [(0, None)] * n
    equal = [[*normal, *[0.0] * len(more)]]
    found = linprog(cost, A_ub=above, b_ub=[0.0] * 2 * n, A_eq=equal, b_eq=[rise], bounds=box + more)
    assert found.success
    return float(found.fun)


def points(b: int = 30, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of which a third of the values lie at an end of the box, and weights with some zeros."""
    generator = draws.generator("hyperplane", n)
    x = (torch.rand(b, n, generator=generator) * 3 - 1).clamp(0, 1)
    weight = torch.randn(b, n, generator=generator)
    return x, weight.where(torch.rand(b, n, generator=generator) > 0.1, 0)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.8, 0.97])
@pytest.mark.parametrize("norm", SHIFTS)
def test_as_short_as_a_solver_finds(norm: str, share: float) -> None:
    x, weight = points()
    rise = share * reach(x, weight)
    shift = SHIFTS[norm](x, weight, rise)
    best = torch.tensor([oracle(*row, norm) for row in zip(x, weight, rise.tolist())])
    assert torch.allclose(length(shift, norm), best.double(), rtol=2e-5, atol=2e-6)
    assert torch.allclose((weight * shift).sum(1), rise, atol=1e-5)
    assert float((x + shift).min()) >= -1e-6 and float((x + shift).max()) <= 1 + 1e-6
    free = length(SHIFTS[norm](torch.full_like(x, 0.5), weight, 1e-3 * rise), norm)
    closed = (1e-3 * rise / plane(BALLS[norm]).dual(weight)).double()
    assert torch.allclose(free, closed, rtol=1e-4), "without the box: rise over the dual norm"


@pytest.mark.parametrize("norm", SHIFTS)
def test_downwards_is_upwards_mirrored(norm: str) -> None:
    x, weight = points()
    rise = 0.5 * reach(x, weight)
    up = SHIFTS[norm](x, weight, rise)
    assert torch.allclose(SHIFTS[norm](1 - x, weight, -rise), -up, atol=1e-5)
    assert torch.allclose(SHIFTS[norm](x, -weight, -rise), up)


@pytest.mark.parametrize("norm", SHIFTS)
def test_out_of_reach_it_is_the_nearest_corner(norm: str) -> None:
    x, weight = points()
    corner = torch.where(weight == 0, x, (weight > 0).float())
    for much in (1.01, 5.0, 1e30):
        shift = SHIFTS[norm](x, weight, much * reach(x, weight))
        assert torch.allclose(x + shift, corner, atol=1e-6)


@pytest.mark.parametrize("norm", SHIFTS)
def test_nothing_moves_without_weight_or_without_need(norm: str) -> None:
    x, weight = points()
    zero = torch.zeros_like(x)
    assert torch.equal(SHIFTS[norm](x, zero, torch.ones(len(x))), zero)
    assert torch.equal(SHIFTS[norm](x, weight, torch.zeros(len(x))).abs(), zero)
    some = SHIFTS[norm](x, weight, 0.5 * reach(x, weight))
    assert bool((some[weight == 0] == 0).all())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("norm", SHIFTS)
def test_the_scale_of_the_weight_does_not_matter(norm: str, scale: float) -> None:
    x, weight = points()
    rise = 0.3 * reach(x, weight)
    assert torch.allclose(SHIFTS[norm](x, weight * scale, rise * scale), SHIFTS[norm](x, weight, rise), atol=1e-5)


@pytest.mark.parametrize("norm", SHIFTS)
def test_a_row_does_not_depend_on_its_neighbours(norm: str) -> None:
    """Rows that need many passes, or many sorted values, beside rows that need few; and in any shape."""
    x, weight = points(24, 768)
    rise = torch.linspace(1e-3, 1.2, 24) * reach(x, weight)
    both = SHIFTS[norm](x, weight, rise)
    for row in range(24):
        alone = SHIFTS[norm](x[row : row + 1], weight[row : row + 1], rise[row : row + 1])
        assert torch.allclose(both[row], alone[0], atol=1e-6), row
    images = SHIFTS[norm](x.view(24, 3, 16, 16), weight.view(24, 3, 16, 16), rise)
    assert images.shape == (24, 3, 16, 16) and torch.equal(images.flatten(1), both)


def test_l1_beyond_the_values_sorted_first() -> None:
    """Against filling in the order of all weights, one value after the other."""
    x, weight = points(6, 900)
    rise = 0.9 * reach(x, weight)
    shift = shift_l1(x, weight, rise)
    assert int((shift[0] != 0).sum()) > 3 * FIRST_SORTED
    for row in range(6):
        left, plain = float(rise[row]), torch.zeros(900)
        for i in weight[row].abs().argsort(descending=True).tolist():
            gain = float(weight[row, i].abs())
            room = float(1 - x[row, i]) if weight[row, i] > 0 else float(x[row, i])
            plain[i] = weight[row, i].sign() * min(room, left / gain) if gain else 0
            left -= gain * min(room, left / gain) if gain else 0
        assert torch.allclose(shift[row], plain, atol=1e-3)


def test_l1_equal_weights_share_alike() -> None:
    x = torch.tensor([[0.5, 0.5, 0.8, 0.0]])
    shift = shift_l1(x, torch.tensor([[1.0, -1.0, 1.0, 0.5]]), torch.tensor([0.6]))
    assert torch.allclose(shift, torch.tensor([[0.25, -0.25, 0.1, 0.0]]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rooms_of_all_sizes_come_to_an_end(norm: str) -> None:
    """Each pass of Newton's method fills few values here."""
    n = 100
    room = 2.0 ** -torch.arange(n, dtype=torch.float32)
    weight = 1.2 ** torch.arange(n, dtype=torch.float32)[None]
    x = room[None]
    shift = SHIFTS[norm](x, weight, -0.999 * (weight * x).sum(1))
    assert bool(torch.isfinite(shift).all())
    assert float((weight * shift).sum()) == pytest.approx(-0.999 * float((weight * x).sum()), rel=1e-4)


def test_an_unknown_ball_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linf, L2, L1"):
        plane(object())  # type: ignore[arg-type]
