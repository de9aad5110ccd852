"""Margins, cross-entropies and ratios of logits by hand, and what the ratios do not change with."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from holdfast import draws
from holdfast.attacks.scores import cross_entropy, difference, dlr, dlr_target, margin

LOGITS = torch.tensor([[7.0, 1.0, 4.0, 3.0, 0.0]])


def towards(logits: Tensor, label: Tensor) -> Tensor:
    """The targeted ratio, at the class after the true one."""
    return dlr_target(logits, label, (label + 1) % logits.shape[1])


def drawn(n: int, classes: int) -> tuple[Tensor, Tensor]:
    logits = 3 * torch.randn(n, classes, generator=draws.generator("logits", classes))
    return logits, torch.arange(n) % classes


def test_margin_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [2.0, 2.0, 0.0]])
    assert margin(logits, torch.tensor([1, 0, 0])).tolist() == [-1.0, 2.0, 0.0]


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])
    assert torch.allclose(cross_entropy(logits, torch.tensor([0])), torch.tensor([math.log(4)]))


@pytest.mark.parametrize(("label", "value"), [(0, (4 - 7) / (7 - 3)), (1, (7 - 1) / (7 - 3)), (2, (7 - 4) / (7 - 3))])
def test_dlr_by_hand(label: int, value: float) -> None:
    assert float(dlr(LOGITS, torch.tensor([label]))) == pytest.approx(value)


@pytest.mark.parametrize(("label", "target", "value"), [(0, 2, (4 - 7) / 5), (0, 4, (0 - 7) / 5), (1, 0, (7 - 1) / 5)])
def test_targeted_dlr_by_hand(label: int, target: int, value: float) -> None:
    """Below the line: 7 - (3 + 1) / 2."""
    assert float(dlr_target(LOGITS, torch.tensor([label]), torch.tensor([target]))) == pytest.approx(value)


def test_few_classes_by_hand() -> None:
    three, two, label, target = LOGITS[:, :3], LOGITS[:, :2], torch.tensor([0]), torch.tensor([1])
    assert float(dlr(three, label)) == pytest.approx((4 - 7) / (7 - 1))
    assert float(dlr_target(three, label, target)) == pytest.approx((1 - 7) / (7 - 1))
    assert torch.equal(dlr(two, label), margin(two, label))
    assert torch.equal(dlr_target(two, label, target), difference(two, label, target))


@pytest.mark.parametrize("ratio", [dlr, towards])
@pytest.mark.parametrize("classes", [3, 4, 5, 10])
def test_neither_shift_nor_scale_matters(ratio: Callable[[Tensor, Tensor], Tensor], classes: int) -> None:
    logits, label = drawn(50, classes)
    value = ratio(logits, label)
    assert torch.allclose(ratio(logits + 5, label), value, atol=1e-5)
    for scale in (1e-3, 2000.0):
        assert torch.allclose(ratio(scale * logits, label), value, rtol=1e-4, atol=1e-5)
    assert float(value.std()) > 0.1


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_their_sign_is_that_of_the_margin(classes: int) -> None:
    logits, label = drawn(200, classes)
    assert torch.equal(dlr(logits, label) > 0, margin(logits, label) > 0)
    target = (label + 1) % classes
    assert torch.equal(dlr_target(logits, label, target) > 0, difference(logits, label, target) > 0)


@pytest.mark.parametrize("ratio", [dlr, towards])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("outlier", [0.0, -30.0])
def test_ties_have_finite_values_and_gradients(
    ratio: Callable[[Tensor, Tensor], Tensor], classes: int, outlier: float
) -> None:
    """All logits equal, or all but the true one: nothing is left below the line but its smallest value."""
    logits = torch.zeros(2, classes)
    logits[:, 0] = outlier
    logits.requires_grad_()
    value = ratio(logits, torch.zeros(2, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())
    assert outlier or float(gradient.abs().max()) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equal_to_the_official_ratios() -> None:
    peer = pytest.importorskip("pyautoattack.autopgd_base")
    logits, label = drawn(100, 10)
    target = (label + 3) % 10
    theirs = peer.APGDAttack_targeted(None, eps=0.1, device="cpu")
    theirs.y_target = target
    assert torch.equal(dlr(logits, label), theirs.dlr_loss(logits, label))
    assert torch.allclose(dlr_target(logits, label, target), theirs.dlr_loss_targeted(logits, label), atol=1e-6)
