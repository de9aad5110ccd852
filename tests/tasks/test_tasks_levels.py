"""Every level of an encoder as what an embedding attack reads: its vector, or every position of its map."""

from __future__ import annotations

import pytest
import timm
import torch

from holdfast import draws, records
from holdfast.attacks.cascade import cascade
from holdfast.attacks.methods import build
from holdfast.errors import ConfigError
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder
from holdfast.tasks.distances import DISTANCES
from holdfast.tasks.embedding import Embedding
from holdfast.tasks.task import at_level, check_level, seer, victim

N = 8


def net(kind: str) -> tuple[Encoder, torch.Tensor]:
    """A net with random weights, and images that fit it."""
    if kind == "resnet":
        encoder, side = load("random:cifar_resnet8:0"), 32
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vit = timm.models.vision_transformer.VisionTransformer(
                img_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True
            )
        encoder, side = Encoder(vit), 32
    return encoder.eval(), torch.rand(N, 3, side, side, generator=draws.generator("levels"))


LEVELS = {
    "resnet": ("pooled", "patch", "stage1", "patch-tokens", "stage1-tokens"),
    "vit": ("pooled", "patch", "block0", "cls2", "patch-tokens", "block0-tokens"),
}
CASES = [(kind, level) for kind, levels in LEVELS.items() for level in levels]


@pytest.mark.parametrize(("kind", "level"), CASES)
def test_an_attack_at_any_level_moves_what_it_reads(kind: str, level: str) -> None:
    encoder, x = net(kind)
    check_level(encoder, level)
    task = Embedding(level=level)
    rows = {"key": draws.keys([str(i) for i in range(N)]), "eps": torch.full((N,), 4 / 255)}
    with victim(encoder, task, "mse") as harm:
        truth = task.truth(x, rows, harm.see)
        record = records.Attack(through="embedding", push="mse", eps=4 / 255, steps=4)
        found = cascade(build(record), harm, task.pushes, x, truth, slots=N, stop="never")
        assert bool((found.score > 1.2 * found.trace["start_score"]).all()), "no further than the random start"
        assert float(found.trace["zero_gradients"].max()) == 0
        away = harm.see(found.pixels)["embedding"] - truth["clean"]
    assert torch.allclose(away.norm(dim=1), found.score, rtol=1e-4)


def test_tokens_are_the_map_position_by_position() -> None:
    for kind, level in (("resnet", "stage1"), ("vit", "block0"), ("vit", "patch")):
        encoder, x = net(kind)
        with torch.no_grad():
            whole = encoder(x, (level,)).maps[level]
            tokens = encoder.tokens(x, level)
            flat = at_level(encoder, x, f"{level}-tokens")
            mean = at_level(encoder, x, level)
        b, c, h, w = whole.shape
        assert tokens.shape == (b, h * w, c) and flat.shape == (b, h * w * c)
        assert torch.allclose(tokens[:, 1], whole[:, :, 0, 1], atol=1e-5)
        assert torch.allclose(tokens[:, w], whole[:, :, 1, 0], atol=1e-5)
        assert torch.allclose(flat.view(b, h * w, c).mean(1), mean, atol=1e-5)


def test_tokens_of_a_vit_leave_the_class_token_out() -> None:
    encoder, x = net("vit")
    with torch.no_grad():
        peer = encoder.trunk.forward_features(x)
        assert torch.allclose(encoder.tokens(x, "patch"), peer[:, 1:], atol=1e-5)
    assert at_level(encoder, x, "patch-tokens").shape == (N, 16 * 12)


def test_a_distance_over_tokens_sees_what_their_mean_does_not() -> None:
    """Tokens that change places keep their mean: the drift of `patch` is 0, that of `patch-tokens` is not."""
    encoder, x = net("vit")
    with torch.no_grad():
        tokens = encoder.tokens(x)
    swapped = tokens.flip(1)
    for name, distance in DISTANCES.items():
        if name != "ce_raw":
            home = distance(tokens.mean(1), tokens.mean(1))
            assert torch.allclose(distance(swapped.mean(1), tokens.mean(1)), home, atol=1e-5), name
            assert bool((distance(swapped.flatten(1), tokens.flatten(1)) > distance(*[tokens.flatten(1)] * 2)).all()), (
                name
            )


@pytest.mark.parametrize("push", list(DISTANCES))
def test_the_gradient_of_every_harm_passes_the_tokens(push: str) -> None:
    encoder, x = net("vit")
    task = Embedding(level="block0-tokens")
    see = seer(encoder, task)
    rows = task.truth(x, {}, see)
    moved = (x + 0.03 * torch.randn(x.shape, generator=draws.generator("m"))).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(task.pushes[push](see(moved), rows, torch.zeros(N)).sum(), moved)
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().flatten(1).amax(1).min()) > 0


def test_a_level_that_is_not_there_names_the_nearest() -> None:
    encoder, x = net("vit")
    with pytest.raises(ConfigError, match='Perhaps you meant "block1-tokens"'):
        check_level(encoder, "blok1-tokens")
    with pytest.raises(ConfigError, match='no level "pooled-tokens"'):
        check_level(encoder, "pooled-tokens")
    with pytest.raises(ConfigError, match='"pooled" has no positions'):
        at_level(encoder, x, "pooled-tokens")
    with pytest.raises(ConfigError, match='"cls1" has no positions'):
        encoder.tokens(x, "cls1")
