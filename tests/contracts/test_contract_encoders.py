"""Every family of encoders keeps the same contract: a new family is enrolled by one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from holdfast.errors import CheckpointError, ConfigError, PixelError, TrustError
from holdfast.models.checkpoint import load, save
from holdfast.models.encoder import Encoder, frozen

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def plain() -> Encoder:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1))
    return load(net, mean=MEAN, std=STD)


def flat() -> Encoder:
    return load(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5)), mean=MEAN, std=STD)


def named(spec: str, *options: str) -> Callable[[], Encoder]:
    return lambda: load(spec, options=options, mean=MEAN, std=STD)


FAMILIES: dict[str, Callable[[], Encoder]] = {
    "cifar_resnet8": named("random:cifar_resnet8", "width=8", "num_classes=4"),
    "cifar_resnet18": named("random:cifar_resnet18", "width=8", "num_classes=4"),
    "resnet18": named("random:resnet18", "num_classes=4"),
    "mobilenet": named("random:mobilenetv2_050", "num_classes=4", "pad_type=same"),
    "convnext": named("random:convnext_atto", "num_classes=4"),
    "swin": named("random:swin_tiny_patch4_window7_224", "depths=(1, 1, 1, 1)", "img_size=32", "window_size=4"),
    "vit": named("random:vit_tiny_patch16_224", "depth=3", "num_classes=4"),
    "vit_registers": named("random:vit_tiny_patch16_224", "depth=2", "reg_tokens=2", "num_classes=4"),
    "vit_averaged": named("random:vit_tiny_patch16_224", "depth=2", "class_token=False", "global_pool=avg"),
    "plain": plain,
    "flat": flat,
}


@pytest.fixture(params=FAMILIES, scope="module")
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return FAMILIES[request.param]()


def images(n: int = 2, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def levels(encoder: Encoder) -> list[str]:
    return [level for level in encoder.levels if level != "patch" or encoder.vector(images()).shape[1] != 5]


def trunk_input(encoder: Encoder, call: Callable[[], object]) -> list[Tensor]:
    seen: list[Tensor] = []
    first = next(m for m in encoder.trunk.modules() if not list(m.children()))
    hook = first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        call()
    finally:
        hook.remove()
    return seen


def test_every_level_has_the_width_that_it_says(encoder: Encoder) -> None:
    x = images()
    with torch.no_grad():
        features = encoder(x, levels(encoder))
        assert features.pooled.shape == (2, encoder.dim)
        for level in levels(encoder):
            vector = encoder.vector(x, level)
            assert vector.shape == (2, encoder.dims(level)), level
            if level in features.maps:
                torch.testing.assert_close(vector, features.maps[level].mean((2, 3)))
            elif level != "pooled":
                torch.testing.assert_close(vector, features.prefix[level].flatten(1))


def test_only_requested_maps_are_returned(encoder: Encoder) -> None:
    x = images()
    with torch.no_grad():
        assert not encoder(x).maps
        assert not encoder(x).prefix
        for level in levels(encoder):
            features = encoder(x, (level,))
            assert set(features.maps) | set(features.prefix) == {level} - {"pooled"}
            torch.testing.assert_close(features.pooled, encoder(x).pooled)


def test_gradient_reaches_every_pixel_row(encoder: Encoder) -> None:
    for level in levels(encoder):
        x = images().requires_grad_()
        vector = encoder.vector(x, level)
        weights = torch.linspace(-1, 1, vector.shape[1]) ** 3
        (gradient,) = torch.autograd.grad((vector * weights).sum(), x)
        assert bool(torch.isfinite(gradient).all()), level
        assert bool((gradient.abs().amax((1, 2, 3)) > 0).all()), level


def test_features_do_not_depend_on_the_batch(encoder: Encoder) -> None:
    x = images(3)
    with frozen(encoder), torch.no_grad():
        together = encoder(x).pooled
        alone = torch.cat([encoder(row[None]).pooled for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_normalisation_happens_once_in_float32(encoder: Encoder) -> None:
    x = images()
    wanted = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        (seen,) = trunk_input(encoder, lambda: encoder(x))
        assert seen.dtype == torch.float32
        torch.testing.assert_close(seen, wanted, rtol=1e-6, atol=1e-6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (inside,) = trunk_input(encoder, lambda: encoder(x))
            under = encoder(x).pooled
        assert inside.dtype == torch.float32
        assert torch.equal(under, encoder(x).pooled)


def test_own_logits_equal_the_original_models(encoder: Encoder) -> None:
    x = images()
    with torch.no_grad():
        if encoder.head is None:
            with pytest.raises(ConfigError, match="no classification head"):
                encoder.logits(x)
            return
        whole = encoder.trunk((x - encoder.mean) / encoder.std)
        assert torch.equal(encoder.logits(x), whole)
        assert torch.equal(encoder.classify(encoder(x)), whole)
        assert whole.shape == (2, encoder.classes)


def test_unknown_level_names_the_nearest(encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match="pooled"):
        encoder(images(), ("poled",))
    with pytest.raises(ConfigError, match="pooled"):
        encoder.vector(images(), "poled")


@pytest.mark.parametrize("wrong", [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 32, 32).byte()])
def test_refuses_what_is_no_image(encoder: Encoder, wrong: Tensor) -> None:
    with pytest.raises(PixelError):
        encoder(wrong)


def test_refuses_half_precision_pixels(encoder: Encoder) -> None:
    with pytest.raises(PixelError, match="bfloat16"):
        encoder(images().bfloat16())


def test_digest_notices_one_changed_number(encoder: Encoder) -> None:
    before = encoder.digest()
    assert before == encoder.digest() == encoder.model.digest_of_weights
    with torch.no_grad():
        first = next(encoder.trunk.parameters()).view(-1)
        kept = first[0].clone()
        first[0] += 1e-6 + kept.abs() * 1e-3
        assert encoder.digest() != before
        first[0] = kept
    assert encoder.digest() == before


def test_save_and_load_are_equal_bit_for_bit(encoder: Encoder, tmp_path: Path) -> None:
    file = save(encoder, tmp_path / "run", extra={"method": "simclr"})
    assert file == tmp_path / "run" / "encoder.safetensors"
    if not encoder.model.arch:
        with pytest.raises(CheckpointError, match="handed over"):
            load(str(file))
        return
    again = load(str(tmp_path / "run"))
    assert again.digest() == encoder.digest()
    assert again.geometry == encoder.geometry
    assert (again.model.mean, again.classes) == (pytest.approx(MEAN), encoder.classes)
    with torch.no_grad():
        assert torch.equal(again(images()).pooled, encoder(images()).pooled)


def untidy(encoder: Encoder) -> None:
    """Mixed modes, flags and gradients, as in the middle of a training."""
    for i, module in enumerate(encoder.modules()):
        module.training = i % 2 == 0
    for i, p in enumerate(encoder.parameters()):
        p.requires_grad_(i % 3 != 0)
        p.grad = torch.full_like(p, 0.5) if i % 2 else None


def state(encoder: Encoder) -> list[object]:
    modes = [m.training for m in encoder.modules()]
    flags = [(p.requires_grad, id(p.grad), p.data_ptr()) for p in encoder.parameters()]
    return [modes, flags, [id(b) for b in encoder.buffers()], encoder.digest()]


@pytest.mark.parametrize("norm", ["eval", "batch"])
@pytest.mark.parametrize("fails", [False, True])
def test_frozen_restores_everything(encoder: Encoder, norm: str, fails: bool) -> None:
    untidy(encoder)
    before = state(encoder)
    try:
        with frozen(encoder, norm=norm):  # type: ignore[arg-type]
            assert not any(p.requires_grad for p in encoder.parameters())
            norms = [m.training for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
            assert all(mode == (norm == "batch") for mode in norms)
            assert sum(m.training for m in encoder.modules()) == sum(norms)
            x = images().requires_grad_()
            encoder(x).pooled.square().sum().backward()
            assert x.grad is not None
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert state(encoder) == before
    encoder.eval().requires_grad_(True).zero_grad()


def test_frozen_reports_a_changed_weight(encoder: Encoder) -> None:
    p = next(encoder.trunk.parameters())
    kept = p.detach().clone()
    with pytest.raises(TrustError, match="1 of"), frozen(encoder), torch.no_grad():
        p.add_(1)
    with torch.no_grad():
        p.copy_(kept)


def test_frozen_knows_no_other_norm(encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match="dual"), frozen(encoder, norm="dual"):  # type: ignore[arg-type]
        raise AssertionError("never entered")
