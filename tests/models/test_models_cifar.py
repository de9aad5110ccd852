"""The small nets against their published sizes and against torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import conv2d

from holdfast.errors import ConfigError
from holdfast.models import cifar, matching
from holdfast.models.checkpoint import load
from holdfast.models.encoder import frozen


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


@pytest.mark.parametrize("layers", [34, 50])
def test_deeper_kin_are_torchvisions_with_another_stem(layers: int) -> None:
    peer = getattr(torchvision.models, f"resnet{layers}")(num_classes=10)
    peer.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    peer.maxpool = nn.Identity()
    ours = cifar.build(f"cifar_resnet{layers}", num_classes=10)
    ours.load_state_dict(peer.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), peer.eval()(x), rtol=1e-4, atol=1e-4)
    assert matching.likely(peer.state_dict()) == f"cifar_resnet{layers}"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cifar_wrn28_10", 36_479_194), ("cifar_wrn34_10", 46_160_474), ("cifar_wrn40_2", 2_243_546)],
)
def test_wide_nets_have_the_published_sizes(name: str, parameters: int) -> None:
    """Zagoruyko and Komodakis 2016, table 4: 36.5 and 2.2 million; WRN-34-10 as in TRADES, 46.16 million."""
    with torch.device("meta"):
        net = cifar.build(name, num_classes=10)
    assert sum(p.numel() for p in net.parameters()) == parameters
    names = {n.rsplit(".", 1)[0] for n in net.state_dict()}
    assert {"conv1", "bn1", "fc", "block1.layer.0.convShortcut", "block3.layer.1.bn2"} <= names
    assert "block2.layer.1.convShortcut" not in names
    assert matching.likely({f"module.{n}": t for n, t in net.state_dict().items()}) == name


def test_preactivation_is_the_papers_loop() -> None:
    """BatchNorm and ReLU before every convolution; the shortcut leaves after the first ReLU where the shape changes."""
    net = cifar.build("cifar_preactresnet18", width=8, num_classes=3).eval()
    generator = torch.Generator().manual_seed(1)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
    weights = net.state_dict()

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        mean, var, gain, shift = (
            weights[f"{name}.{field}"].view(shape) for field in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * gain + shift).clamp_min(0)

    x = torch.rand(2, 3, 16, 16)
    y = conv2d(x, weights["conv1.weight"], padding=1)
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and not block else 1
            active = normed(y, f"{name}.bn1")
            inner = conv2d(active, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = conv2d(normed(inner, f"{name}.bn2"), weights[f"{name}.conv2.weight"], padding=1)
            key = f"{name}.shortcut.0.weight"
            y = inner + (conv2d(active, weights[key], stride=stride) if key in weights else y)
    y = normed(y, "bn").mean((2, 3))
    with torch.no_grad():
        torch.testing.assert_close(net(x), y @ weights["linear.weight"].T + weights["linear.bias"])
        final, taken = net.forward_intermediates(x)
    assert [t.shape[1] for t in taken] == [8, 8, 16, 32, 64]
    torch.testing.assert_close(final.mean((2, 3)), y)


def test_preactivation_nets_are_recognised() -> None:
    with torch.device("meta"):
        net = cifar.build("cifar_preactresnet18", num_classes=10)
    assert matching.likely(net.state_dict()) == "cifar_preactresnet18"


@pytest.mark.parametrize("name", ["cifar_preactresnet18", "cifar_wrn40_2"])
def test_preactivation_encoders_read_and_fold_alike(name: str) -> None:
    encoder = load(f"random:{name}", options=("width=8",))
    x = torch.rand(2, 3, 32, 32)
    with frozen(encoder), torch.no_grad():
        eager = encoder(x, levels=("patch", "stage1")).pooled
        torch.testing.assert_close(encoder(x, engine="folded").pooled, eager, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder.vector(x, "patch"), eager)
    assert encoder.dim == eager.shape[1]


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
