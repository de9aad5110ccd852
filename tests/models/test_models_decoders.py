"""The two decoders: shapes on any grids, one image alone, and what a resize and a residual unit are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from holdfast.models.decoders import Dpt, Pyramid, Residual, Upernet, groups, resized

DECODERS = (Upernet, Dpt)


def maps(*shapes: tuple[int, int, int], images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, *shape, generator=generator) for shape in shapes]


def seeded(kind: type[nn.Module], channels: tuple[int, ...], *, tokens: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(channels, 16, tokens=tokens).eval()


@pytest.mark.parametrize("kind", DECODERS)
def test_stages_are_decoded_on_the_finest_grid(kind: type[nn.Module]) -> None:
    x = maps((4, 17, 24), (8, 9, 12), (12, 5, 6))
    assert seeded(kind, (4, 8, 12), tokens=False)(x).shape == (2, 16, 17, 24)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_tokens_are_decoded_four_times_finer(kind: type[nn.Module], count: int) -> None:
    x = maps(*[(8, 3, 5)] * count)
    assert seeded(kind, (8,) * count, tokens=True)(x).shape == (2, 16, 12, 20)


def test_tokens_become_a_pyramid() -> None:
    x = maps(*[(8, 4, 6)] * 4)
    grids = [tuple(y.shape[-2:]) for y in seeded(Pyramid, (8,) * 4, tokens=True)(x)]
    assert grids == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("kind", DECODERS)
def test_every_level_is_read(kind: type[nn.Module]) -> None:
    x = [y.requires_grad_() for y in maps((4, 16, 16), (8, 8, 8), (12, 4, 4))]
    grads = torch.autograd.grad(seeded(kind, (4, 8, 12), tokens=False)(x).square().sum(), x)
    assert all(bool((g != 0).any()) and bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("kind", DECODERS)
def test_an_image_is_decoded_alone_fitted_or_not(kind: type[nn.Module]) -> None:
    x = maps((4, 16, 16), (8, 8, 8))
    net = seeded(kind, (4, 8), tokens=False)
    assert torch.allclose(net([y[:1] for y in x]), net(x)[:1], atol=1e-5)
    assert torch.equal(net.train()(x), net.eval()(x))


def test_a_residual_unit_by_hand() -> None:
    unit = Residual(1)
    with torch.no_grad():
        for conv, centre in ((unit.first, 2.0), (unit.second, 3.0)):
            conv.weight.zero_()
            conv.weight[0, 0, 1, 1] = centre
        assert unit.second.bias is not None
        unit.second.bias.fill_(0.5)
    x = torch.tensor([[[[1.0, -1.0], [3.0, 0.0]]]])
    inside = torch.tensor([[2.0, 0.0], [6.0, 0.0]])  # relu, times 2; then over the group: mean 2, variance 6
    normed = ((inside - 2) / (6 + 1e-5) ** 0.5).clamp_min(0)
    assert torch.allclose(unit(x)[0, 0], x[0, 0] + 3 * normed + 0.5)


def test_a_resize_goes_by_pixel_centres() -> None:
    x = torch.tensor([[[[0.0, 4.0]]]])
    assert resized(x, (1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert resized(x, (1, 2)) is x


def test_groups_divide_any_width() -> None:
    assert [groups(width) for width in (1, 6, 7, 12, 16, 64)] == [1, 6, 7, 6, 8, 8]
