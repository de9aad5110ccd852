"""bfloat16 behind a float32 stem, the short way back through batch norms, and the compiled engine."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from holdfast.errors import ConfigError
from holdfast.models import precision
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder, frozen

NETS = ("cifar_resnet8", "vit_tiny_patch16_224", "mobilenetv2_050")


def made(name: str) -> Encoder:
    """Random weights, with batch statistics that are not those of an identity."""
    options = {"cifar_resnet8": ("width=8", "num_classes=5"), "vit_tiny_patch16_224": ("depth=2", "num_classes=5")}
    encoder = load(f"random:{name}", options=options.get(name, ("num_classes=5",)))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in encoder.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor, low in ((part.running_var, 0.5), (part.weight, 0.5), (part.running_mean, -0.2)):
                    tensor.copy_(low + torch.rand(tensor.shape, generator=draw))
    return encoder.eval()


def images(n: int = 4, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def gradient(see: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    seen = pixels.clone().requires_grad_()
    (found,) = torch.autograd.grad(see(seen).square().sum(), seen)
    return found


def arriving(encoder: Encoder, pixels: Tensor, **how: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What every layer was given and gave in one pass, by its name, in order."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        part.register_forward_hook(lambda _, given, gave, name=name: seen.update({name: (given[0], gave)}))
        for name, part in encoder.trunk.named_modules()
        if isinstance(part, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        encoder.vector(pixels, **how)  # type: ignore[arg-type]
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("net", NETS)
def test_the_stem_sees_exact_pixels_and_the_rest_is_coarse(net: str) -> None:
    encoder, x = made(net), images()
    (first, *others) = arriving(encoder, x, precision="bf16").values()
    assert torch.equal(first[0], (x - encoder.mean) / encoder.std)
    assert first[1].dtype == torch.float32
    assert others
    assert {gave.dtype for _, gave in others} == {torch.bfloat16}
    assert {gave.dtype for _, gave in arriving(encoder, x).values()} == {torch.float32}


def test_pixels_less_than_a_bfloat16_apart_are_told_apart() -> None:
    encoder, x = made("cifar_resnet8"), images().clamp(0.5, 0.9)
    moved = x + 0.2 / 255
    assert torch.equal(x.bfloat16(), moved.bfloat16()) is False  # some cross a rounding boundary
    still = x.bfloat16() == moved.bfloat16()
    assert still.float().mean() > 0.7  # and most do not: a cast would lose the step there
    (before, *_), (after, *_) = (arriving(encoder, p, precision="bf16").values() for p in (x, moved))
    assert bool((before[0] != after[0]).all())


@pytest.mark.parametrize("net", NETS)
def test_features_are_float32_and_close(net: str) -> None:
    encoder, x = made(net), images()
    levels = ("patch", encoder.levels[3])
    with torch.no_grad():
        exact, coarse = encoder(x, levels), encoder(x, levels, precision="bf16")
    for one, other in [(exact.pooled, coarse.pooled), *((exact.maps[k], coarse.maps[k]) for k in levels)]:
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        assert (one - other).norm() < 0.05 * one.norm()
    assert torch.equal(encoder.vector(x, precision="bf16").detach(), coarse.pooled)
    of_level = encoder.vector(x, levels[1], precision="bf16").detach()
    torch.testing.assert_close(of_level, coarse.maps[levels[1]].mean((2, 3)), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("net", ["cifar_resnet8", "vit_tiny_patch16_224"])
def test_gradients_point_the_same_way(net: str) -> None:
    encoder, x = made(net), images()
    with frozen(encoder):
        exact = gradient(encoder.vector, x)
        coarse = gradient(lambda p: encoder.vector(p, precision="bf16"), x)
    assert coarse.dtype == torch.float32
    assert (exact.sign() == coarse.sign()).float().mean() > 0.95


def test_an_autocast_outside_changes_nothing() -> None:
    encoder, x = made("cifar_resnet8"), images()
    with torch.no_grad():
        plain = {how: encoder.vector(x, precision=how) for how in ("fp32", "bf16")}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(torch.equal(encoder.vector(x, precision=how), seen) for how, seen in plain.items())
            assert encoder.logits(x).dtype == torch.float32


def test_nothing_stays_on_the_model() -> None:
    encoder, x = made("cifar_resnet8"), images()
    digest = encoder.digest()
    with frozen(encoder):
        gradient(lambda p: encoder.vector(p, precision="bf16"), x)
        gradient(encoder.vector, x)
    assert encoder.digest() == digest
    assert not any("forward" in vars(part) or part._forward_pre_hooks for part in encoder.modules())
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
        assert not twin.vector(x, precision="bf16").any()
        assert encoder.vector(x, precision="bf16").any()


def test_a_layer_that_fails_leaves_nothing_behind() -> None:
    encoder = made("cifar_resnet8")

    def fail(*_: object) -> None:
        raise RuntimeError("on the way")

    hook = encoder.trunk.layer2.register_forward_hook(fail)
    with frozen(encoder), pytest.raises(RuntimeError, match="on the way"):
        gradient(lambda p: encoder.vector(p, precision="bf16"), images())
    hook.remove()
    assert not any("forward" in vars(part) for part in encoder.modules())
    assert not torch.is_autocast_enabled("cpu")


def test_the_stem_is_the_layer_that_runs_first_not_the_one_that_is_named_first() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.stem = nn.Conv2d(4, 2, 1), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).relu())

    encoder = Encoder(Late())
    assert arriving(encoder, images(), precision="bf16")["stem"][1].dtype == torch.float32
    assert arriving(encoder, images(), precision="bf16")["head"][1].dtype == torch.bfloat16


def test_without_a_layer_that_sees_pixels_all_is_float32() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3 * 32 * 32, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight

    encoder, x = Encoder(Product()), images()
    assert torch.equal(encoder.vector(x, precision="bf16"), encoder.vector(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
def test_the_short_way_back_has_the_digits_of_the_long_one(layout: torch.memory_format, affine: bool) -> None:
    draw = torch.Generator().manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 24, 3, bias=False), nn.BatchNorm2d(24, affine=affine), nn.ReLU(), nn.Flatten())
    norm = net[1]
    for tensor in (norm.running_var, norm.running_mean, *norm.parameters()):
        tensor.data.copy_(0.3 + torch.rand(24, generator=draw))
    x = images(6, 17).contiguous(memory_format=layout)
    with frozen(net):
        long = gradient(net, x)
        with precision.short_norms(net):
            assert torch.equal(gradient(net, x), long)
            with torch.no_grad():
                short = net(x)
        assert torch.equal(short, net(x))


def test_the_short_way_back_is_not_taken_where_weights_or_statistics_move() -> None:
    norm, x = nn.BatchNorm2d(3).eval(), images()
    with precision.short_norms(norm):
        norm(x.requires_grad_()).square().sum().backward()
        assert norm.weight.grad is not None
        with frozen(norm, norm="batch"):
            assert norm(x).mean().abs() < 1e-4
    twin = nn.BatchNorm2d(3).eval()
    twin(x.detach()).square().sum().backward()
    assert torch.equal(norm.weight.grad, twin.weight.grad)


def test_an_encoder_gives_the_gradient_of_its_plain_trunk_to_the_bit() -> None:
    for name in ("cifar_resnet8", "mobilenetv2_050"):
        encoder, x = made(name), images()
        with frozen(encoder):
            plain = gradient(lambda p, e=encoder: e.trunk((p - e.mean) / e.std), x)
            assert torch.equal(gradient(encoder.logits, x), plain)


def test_a_model_that_cannot_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def broken(*_: object) -> None:
        raise BackendCompilerFailed(lambda: None, RuntimeError("no compiler found"), None)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    with pytest.raises(ConfigError, match=r"(?s)SmallResNet could not be compiled.*--engine eager"):
        made("cifar_resnet8").vector(images(), engine="compiled")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_and_eager_agree() -> None:
    import torch._dynamo

    encoder, x = made("cifar_resnet8"), images(8)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(2):
        with frozen(encoder):
            exact = gradient(encoder.vector, x)
            for how in ("fp32", "bf16"):
                see = lambda p, how=how: encoder.vector(p, precision=how, engine="compiled")  # noqa: E731
                found = gradient(see, x)
                assert (found.sign() == exact.sign()).float().mean() > (0.99 if how == "fp32" else 0.95)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs == 2  # frozen anew, compiled once
