"""Batch norms folded into convolutions: the same function, found and checked on the trunk itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from holdfast.models import folding
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder, frozen


def moved(encoder: Encoder) -> Encoder:
    """With batch statistics that are not those of an identity."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in encoder.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor, low in ((part.running_var, 0.5), (part.weight, 0.5), (part.running_mean, -0.2)):
                    tensor.copy_(low + torch.rand(tensor.shape, generator=draw))
    return encoder.eval()


def images(side: int = 32) -> Tensor:
    return torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))


def gradient(encoder: Encoder, pixels: Tensor, **how: str) -> Tensor:
    seen = pixels.clone().requires_grad_()
    (found,) = torch.autograd.grad(encoder.vector(seen, **how).square().sum(), seen)  # type: ignore[arg-type]
    return found


def test_a_fold_in_closed_form() -> None:
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0).eval()
    with torch.no_grad():
        for tensor, value in ((conv.weight, 3), (conv.bias, 5), (norm.running_mean, 1), (norm.running_var, 4)):
            tensor.fill_(value)
        norm.weight.fill_(6)
        norm.bias.fill_(7)
    fold = folding._fold(conv, norm)
    assert float(fold.weight) == 3 * 6 / 2
    assert float(fold.bias) == (5 - 1) * 6 / 2 + 7


@pytest.mark.parametrize(("net", "unfolded"), [("cifar_resnet8", 1), ("mobilenetv2_050", 1), ("densenet121", 63)])
def test_features_and_gradients_stay(net: str, unfolded: int) -> None:
    """All but the stem's norm are folded; of a DenseNet those alone that read one convolution."""
    encoder, x = moved(load(f"random:{net}")), images()
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in encoder.modules())
    with frozen(encoder):
        plain, slope = encoder.vector(x), gradient(encoder, x)
        fold = encoder.vector(x, engine="folded")
        assert len(folding._KNOWN[encoder.trunk].folds) == norms - unfolded
        assert (fold - plain).abs().max() < 1e-4 * plain.abs().max()
        assert (gradient(encoder, x, engine="folded") - slope).norm() < 1e-3 * slope.norm()
        level = encoder.levels[2]
        torch.testing.assert_close(
            encoder.vector(x, level, engine="folded"), encoder.vector(x, level), rtol=1e-3, atol=1e-4
        )
    assert not any("forward" in vars(part) for part in encoder.modules())


def test_bfloat16_folds_too_and_leaves_the_stem_alone() -> None:
    encoder, x = moved(load("random:cifar_resnet8")), images()
    seen: list[torch.dtype] = []
    encoder.trunk.conv1.register_forward_hook(lambda _, given, gave: seen.extend((given[0].dtype, gave.dtype)))
    with frozen(encoder):
        plain = gradient(encoder, x)
        seen.clear()
        found = gradient(encoder, x, precision="bf16", engine="folded")
    assert {*seen} == {torch.float32}
    assert len(folding._KNOWN[encoder.trunk].folds) == 6
    assert (found.sign() == plain.sign()).float().mean() > 0.95


def test_new_weights_are_folded_anew() -> None:
    encoder, x = moved(load("random:cifar_resnet8")), images()
    with frozen(encoder):
        encoder.vector(x, engine="folded")
    with torch.no_grad():
        encoder.trunk.layer1[0].bn1.running_mean.add_(1)
    with frozen(encoder):
        torch.testing.assert_close(encoder.vector(x, engine="folded"), encoder.vector(x))


def test_exchanged_weights_and_layers_are_folded_anew() -> None:
    encoder, other, x = moved(load("random:cifar_resnet8")), moved(load("random:cifar_resnet8")), images()
    with torch.no_grad():
        for weight in other.trunk.parameters():
            weight.copy_(weight + 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    block, new = encoder.trunk.layer1[0], other.trunk.layer1[0]

    def exchange() -> None:
        """The new weight has been written to just as often as the old one."""
        fresh = nn.Parameter(new.conv1.weight.detach().clone())
        with torch.no_grad():
            while fresh._version < block.conv1.weight._version:
                fresh.copy_(new.conv1.weight)
        assert fresh._version == block.conv1.weight._version
        block.conv1.weight = fresh

    for change in (exchange, lambda: block.register_module("conv2", new.conv2)):
        with frozen(encoder):
            before = encoder.vector(x, engine="folded")
        change()
        with frozen(encoder):
            after = encoder.vector(x, engine="folded")
            torch.testing.assert_close(after, encoder.vector(x))
        assert not torch.allclose(before, after, atol=1e-4), "the change is large enough to be seen"


def test_a_convolution_that_is_read_twice_is_found_out() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.stem(x))
            return y + self.norm(y)

    encoder, x = moved(Encoder(Twice())), images()
    with frozen(encoder):
        assert torch.equal(encoder.vector(x, engine="folded"), encoder.vector(x))
    assert folding._KNOWN[encoder.trunk].folds == ()


def test_without_batch_norms_nothing_changes() -> None:
    encoder, x = load("random:vit_tiny_patch16_224", options=("depth=1",)), images()
    with frozen(encoder):
        assert torch.equal(encoder.vector(x, engine="folded"), encoder.vector(x))


def test_weights_that_count_no_writes_are_not_folded() -> None:
    with torch.inference_mode():
        encoder = moved(load("random:cifar_resnet8"))
    x = images()
    with torch.no_grad():
        assert torch.equal(encoder.vector(x, engine="folded"), encoder.vector(x))
