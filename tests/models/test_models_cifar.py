"""The small nets against their published sizes and against torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from holdfast.errors import ConfigError
from holdfast.models import cifar


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_sizes_are_those_of_the_paper(depth: int, parameters: int) -> None:
    """He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million."""
    net = cifar.build(f"cifar_resnet{depth}", num_classes=10)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_resnet18_is_torchvisions_with_another_stem() -> None:
    peer = torchvision.models.resnet18(num_classes=10)
    peer.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    peer.maxpool = nn.Identity()
    ours = cifar.build("cifar_resnet18", num_classes=10)
    ours.load_state_dict(peer.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), peer.eval()(x))


def test_shortcut_without_parameters_pads_channels_on_both_sides() -> None:
    x = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    y = cifar.OptionA(2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_a_zeroed_block_is_its_shortcut() -> None:
    block = cifar.BasicBlock(4, 8, stride=2, padded=True).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 4, 6, 6)
    assert torch.equal(block(x), block.downsample(x))


def test_intermediates_are_those_asked_for() -> None:
    net = cifar.build("cifar_resnet8", width=8).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        final, taken = net.forward_intermediates(x, indices=[0, 2])
        only = net.forward_intermediates(x, indices=[2], stop_early=True, intermediates_only=True)
        assert [t.shape[1:] for t in taken] == [(8, 32, 32), (16, 16, 16)]
        assert torch.equal(only[0], taken[1])
        assert torch.equal(final, net.forward_features(x))


def test_stopping_early_leaves_later_stages_alone() -> None:
    net = cifar.build("cifar_resnet8", width=8).eval()
    ran: list[str] = []
    for name in net.stages:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    net.forward_intermediates(torch.rand(1, 3, 32, 32), indices=[1], stop_early=True, intermediates_only=True)
    assert ran == ["layer1"]


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("cifar_resnet19", {}, 'meant "cifar_resnet1'),
        ("cifar_resnet20", {"widht": 8}, 'meant "width"'),
        ("cifar_resnet20", {"width": 0}, "whole number"),
        ("cifar_resnet20", {"width": "wide"}, "whole number"),
    ],
)
def test_refuses_what_it_does_not_know(name: str, options: dict[str, object], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        cifar.build(name, **options)


def test_refuses_an_impossible_depth() -> None:
    with pytest.raises(ConfigError, match="6n"):
        cifar.he_resnet(21)
