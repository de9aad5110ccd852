"""Harms of depth: closed forms, plain loops, the published defects, and gradients that are finite everywhere."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast import draws
from holdfast.tasks.depth_errors import Pixels, Range, pixels
from holdfast.tasks.depth_pushes import SHIFT, STRIDES, gradient, l1, l1_log, l2, one_axis, pushes, silog, silog_warmup

WITHIN = Range(0.001, 10.0)
HARMS = pushes(WITHIN)
T = torch.zeros(1)


def drawn(*shape: int, low: float = 1.0, high: float = 9.0, seed: str = "depth") -> torch.Tensor:
    return low + (high - low) * torch.rand(*shape, generator=draws.generator(seed))


def raised(name: str, predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return HARMS[name]({"depth": predicted}, {"depth": truth}, T.expand(len(truth)))


def slope(name: str, predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    seen = predicted.clone().requires_grad_()
    return torch.autograd.grad(raised(name, seen, truth).sum(), seen)[0]


def shifted(truth: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The prediction whose log ratio, with the published shift, is g."""
    return (truth + SHIFT) * g.exp() - SHIFT


def both(predicted: torch.Tensor, truth: torch.Tensor) -> Pixels:
    return pixels(predicted, truth, Range(0.001, 80.0))


def test_the_default_is_depth_pgd_as_stated() -> None:
    assert next(iter(HARMS)) == "silog_gradient"


@pytest.mark.parametrize("c", [0.25, 0.9, 1.1, 4.0])
def test_a_constant_log_ratio_has_no_variance_and_no_gradient_term(c: float) -> None:
    truth = drawn(2, 9, 7).double()
    read = both(shifted(truth, torch.tensor(math.log(c))), truth)
    expected = [math.sqrt(0.15) * abs(math.log(c))] * 2
    assert silog(read).tolist() == pytest.approx(expected)
    assert silog_warmup(read).tolist() == pytest.approx(expected)
    assert gradient(read).tolist() == pytest.approx([0, 0], abs=1e-12)


def test_full_silog_beside_the_published_warm_up() -> None:
    """The study of the published code measured 0.1490 in warm-up and 0.2529 in full (it does not say on what).

    Both are functions of the mean and the variance of the log ratio alone, which these figures determine.
    """
    mean = 0.1490 / math.sqrt(0.15)
    deviation = math.sqrt(0.2529**2 - 0.1490**2)
    g = torch.randn(1, 12, 12, generator=draws.generator("silog"), dtype=torch.float64)
    g = mean + deviation * (g - g.mean()) / g.std()
    truth = drawn(1, 12, 12).double()
    read = both(shifted(truth, g), truth)
    assert silog_warmup(read).item() == pytest.approx(0.1490)
    assert silog(read).item() == pytest.approx(0.2529)


def test_the_warm_up_does_not_see_a_spread() -> None:
    truth = drawn(1, 8, 8).double()
    g = torch.ones(8, 8).double()
    g[::2] = -1
    read = both(shifted(truth, g[None]), truth)
    assert silog_warmup(read).item() == pytest.approx(0, abs=1e-9)
    assert silog(read).item() == pytest.approx(math.sqrt(64 / 63))


def plain_gradient(g: torch.Tensor, counts: torch.Tensor) -> float:
    """The gradient term of one image, [h, w], pixel by pixel."""
    found = 0.0
    for s in STRIDES:
        coarse, there = g[::s, ::s], counts[::s, ::s]
        h, w = coarse.shape
        apart = 0.0
        for i in range(h):
            for j in range(w):
                if i + 2 < h and there[i, j] and there[i + 2, j]:
                    apart += abs(float(coarse[i + 2, j] - coarse[i, j]))
                if j + 2 < w and there[i, j] and there[i, j + 2]:
                    apart += abs(float(coarse[i, j + 2] - coarse[i, j]))
        found += apart / max(int(there.sum()), 1)
    return found


def test_the_gradient_term_is_a_plain_loop() -> None:
    truth, g = drawn(3, 19, 14).double(), 0.3 * torch.randn(3, 19, 14, generator=draws.generator("g")).double()
    truth[0, drawn(19, 14, seed="holes") < 4] = 0
    read = both(shifted(truth, g), truth)
    expected = [plain_gradient(one, there) for one, there in zip(g, read.counts)]
    assert gradient(read).tolist() == pytest.approx(expected)


def test_the_gradient_of_a_ramp_by_hand() -> None:
    """g = 0.01 j on 16 x 32: two apart at stride s it changes by 0.02 s, for all but the last two columns."""
    truth = drawn(1, 16, 32).double()
    ramp = 0.01 * torch.arange(32).double().expand(1, 16, 32)
    expected = sum(0.02 * s * (n - 2) / n for s, n in ((1, 32), (2, 16), (4, 8), (6, 6)))
    assert gradient(both(shifted(truth, ramp), truth)).item() == pytest.approx(expected)
    up = truth.mT
    assert gradient(both(shifted(up, ramp.mT), up)).item() == pytest.approx(expected)


def test_the_published_gradient_sees_one_axis_and_the_correct_one_both() -> None:
    """A ratio that varies along the width alone: the shift of 1 mm is all that is left of it (published: 1.6e-4)."""
    truth = drawn(1, 24, 24)
    wave = (1 + 0.1 * torch.arange(24).remainder(5)).expand(1, 24, 24)
    across, down = both(truth * wave, truth), both(truth * wave.mT, truth)
    assert one_axis(across).item() < 1e-3 < 0.2 < one_axis(down).item()
    assert gradient(across).item() == pytest.approx(gradient(down).item(), rel=1e-2)
    assert gradient(across).item() > 0.2


def test_defects_are_made_of_their_parts() -> None:
    truth, predicted = drawn(2, 13, 11), drawn(2, 13, 11, seed="other")
    read = pixels(predicted, truth, WITHIN)
    expected = {
        "silog_gradient": silog(read) + gradient(read) / 2,
        "silog": silog(read),
        "silog_warmup": silog_warmup(read),
        "gradient_one_axis": silog(read) + one_axis(read) / 2,
        "published": silog_warmup(read) + one_axis(read) / 2,
    }
    for name, value in expected.items():
        assert torch.allclose(raised(name, predicted, truth).double(), value, rtol=1e-5), name
    assert len({float(value[0]) for value in expected.values()}) == len(expected)


def test_l1_l2_and_shifts_by_hand() -> None:
    truth = torch.tensor([[[2.0, 0.0, 5.0, 20.0]]])
    predicted = torch.tensor([[[4.0, 7.0, 4.0, 1.0]]])
    assert raised("l1_log", predicted, truth).item() == pytest.approx((math.log(2) + math.log(5 / 4)) / 2)
    assert raised("l1", predicted, truth).item() == pytest.approx(1.5)
    assert raised("l2", predicted, truth).item() == pytest.approx(2.5)
    assert raised("near", predicted, truth).item() == pytest.approx(6 / 9.999)
    assert raised("far", predicted, truth).item() == pytest.approx(3.999 / 9.999)
    read = pixels(predicted, truth, WITHIN)
    assert (l1_log(read).item(), l1(read).item(), l2(read).item()) == pytest.approx((math.log(2.5) / 2, 1.5, 2.5))


def test_shifts_move_every_pixel_that_counts_and_no_other() -> None:
    truth = drawn(2, 5, 5)
    truth[:, 0] = 0
    up, down = (slope(name, drawn(2, 5, 5, seed="p"), truth) for name in ("far", "near"))
    assert torch.allclose(up[:, 1:], torch.full_like(up[:, 1:], 1 / (20 * 9.999))) and not up[:, 0].any()
    assert torch.allclose(up, -down)


@pytest.mark.parametrize("name", HARMS)
def test_an_image_is_raised_from_its_own_pixels(name: str) -> None:
    truth, predicted = drawn(4, 15, 14), drawn(4, 15, 14, seed="other")
    truth[1, 3:9] = 0
    whole = raised(name, predicted, truth)
    assert whole.shape == (4,)
    for i in range(4):
        assert raised(name, predicted[i : i + 1], truth[i : i + 1]).item() == pytest.approx(float(whole[i]), rel=1e-5)
    seen = predicted.clone().requires_grad_()
    (reached,) = torch.autograd.grad(raised(name, seen, truth)[2], seen)
    assert bool(reached[2].any()) and not bool(reached[[0, 1, 3]].any())


@pytest.mark.parametrize("name", HARMS)
@pytest.mark.parametrize("case", ["no error", "constant", "nothing counts", "one pixel", "at the ends", "outside"])
def test_gradients_are_finite_everywhere(name: str, case: str) -> None:
    truth = torch.full((2, 14, 14), 4.0) if case == "constant" else drawn(2, 14, 14)
    predicted = truth.clone()
    if case == "constant":
        predicted = 2 * truth
    if case == "nothing counts":
        truth[:] = 0
    if case == "one pixel":
        truth[:, 1:], truth[:, 0, 1:] = 0, 0
    if case == "at the ends":
        predicted[:] = torch.tensor([WITHIN.near, WITHIN.far])[:, None, None]
    if case == "outside":
        predicted[:] = torch.tensor([-3.0, 30.0])[:, None, None]
    value, gradient_ = raised(name, predicted, truth), slope(name, predicted, truth)
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient_).all())
    if case == "nothing counts":
        assert not value.any() and not gradient_.any()
    if case == "no error" and name not in ("near", "far"):
        assert not value.any() and not gradient_.any()


@pytest.mark.parametrize("name", HARMS)
def test_pixels_that_do_not_count_are_neither_read_nor_moved(name: str) -> None:
    truth, predicted = drawn(2, 14, 14), drawn(2, 14, 14, seed="other")
    truth[:, 4:7], truth[:, :, 9] = 0, 11
    before = raised(name, predicted, truth)
    predicted[:, 4:7], predicted[:, :, 9] = torch.nan, torch.inf
    assert torch.equal(raised(name, predicted, truth), before)
    moved = slope(name, predicted, truth)
    assert not moved[:, 4:7].any() and not moved[:, :, 9].any()


def test_beyond_the_range_only_the_way_back_has_a_gradient() -> None:
    truth = torch.tensor([[[5.0, 5.0, 10.0, 0.5]]])
    predicted = torch.tensor([[[30.0, -3.0, 30.0, -3.0]]])
    assert slope("l2", predicted, truth).tolist() == [[[0, 0, 0, 0]]]
    assert (slope("near", predicted, truth) < 0).tolist() == [[[True, False, True, False]]]
    assert (slope("far", predicted, truth) > 0).tolist() == [[[False, True, False, True]]]


def test_float32_holds_the_variance_of_a_large_image() -> None:
    """A constant log ratio on 300,000 pixels: a variance as the difference of sums would be noise."""
    truth = drawn(1, 480, 640)
    found = raised("silog", 1.1 * truth, truth).item()
    assert found == pytest.approx(math.sqrt(0.15) * math.log(1.1), rel=1e-3)
