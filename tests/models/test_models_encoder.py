"""Encoders in closed form; freezing when things go wrong."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys

import pytest
import timm
import torch
from torch import Tensor, nn

from holdfast.errors import CheckpointError, ConfigError, TrustError
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder, frozen


def identity() -> Encoder:
    return Encoder(nn.Identity(), mean=(0.5, 0.0, 0.0), std=(0.5, 1.0, 2.0))


def test_an_identity_trunk_gives_the_mean_of_normalised_pixels() -> None:
    x = torch.ones(2, 3, 4, 4)
    features = identity()(x, ("patch",))
    assert torch.equal(features.pooled, torch.tensor([[1.0, 1.0, 0.5]]).expand(2, 3))
    assert features.maps["patch"].shape == (2, 3, 4, 4)
    assert identity().dim == 3


def test_gradient_of_an_identity_trunk_is_one_over_std_and_area() -> None:
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(identity()(x).pooled.sum(), x)
    for channel, std in enumerate((0.5, 1.0, 2.0)):
        torch.testing.assert_close(gradient[0, channel], torch.full((4, 4), 1 / (std * 16)))


def test_digest_is_sha256_over_names_shapes_types_and_bytes() -> None:
    encoder = Encoder(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        encoder.trunk.weight.copy_(torch.tensor([[1.0, 2.0]]))
    words = hashlib.sha256()
    for name, tensor in (
        ("mean", torch.zeros(1, 3, 1, 1)),
        ("std", torch.ones(1, 3, 1, 1)),
        ("trunk.weight", torch.tensor([[1.0, 2.0]])),
    ):
        words.update(f"{name} {tuple(tensor.shape)} torch.float32;".encode() + tensor.numpy().tobytes())
    assert encoder.digest() == words.hexdigest()


def test_digest_sees_normalisation_and_buffers() -> None:
    one, other = Encoder(nn.BatchNorm2d(3)), Encoder(nn.BatchNorm2d(3), mean=(0.1, 0, 0))
    assert one.digest() != other.digest()
    before = one.digest()
    one.train()(torch.rand(2, 3, 4, 4))
    assert one.digest() != before


@pytest.mark.parametrize(("mean", "std"), [((0, 0), (1, 1)), ((0, 0, 0), (1, 0, 1))])
def test_refuses_a_normalisation_that_is_none(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="no normalisation"):
        Encoder(nn.Identity(), mean=mean, std=std)


def test_class_tokens_are_the_last_ones_from_shallow_to_deep() -> None:
    encoder = load("random:vit_tiny_patch16_224", options=("depth=3",))
    x = torch.rand(2, 3, 48, 32)
    with torch.no_grad():
        features = encoder(x, ("block1", "block2", "cls2", "patch"))
        raw = encoder(x, ("block2",), normed=False)
    wanted = torch.stack([features.prefix["block1"][:, 0], features.prefix["block2"][:, 0]], 1)
    assert torch.equal(features.prefix["cls2"], wanted)
    assert torch.equal(features.pooled, features.prefix["cls2"][:, -1])
    assert features.maps["patch"].shape == (2, 192, 3, 2)
    assert torch.equal(features.maps["patch"], features.maps["block2"])
    norm = encoder.trunk.norm
    torch.testing.assert_close(
        norm(raw.maps["block2"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), features.maps["block2"]
    )


def test_vector_stops_at_its_level() -> None:
    encoder = load("random:resnet18")
    ran: list[str] = []
    for name in ("layer1", "layer2", "layer3"):
        encoder.trunk.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    encoder.vector(torch.rand(1, 3, 32, 32), "stage2")
    assert ran == ["layer1", "layer2"]


def test_a_timm_model_keeps_its_normalisation_and_logits() -> None:
    with torch.random.fork_rng():
        model = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    encoder = load(model)
    assert encoder.mean.flatten().tolist() == pytest.approx(model.pretrained_cfg["mean"])
    assert encoder.geometry == (224, 256, "bicubic")
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder.logits(x), model((x - encoder.mean) / encoder.std))
    assert (encoder.classes, encoder.dim) == (7, 1024)


def test_a_module_that_gives_no_features_is_named() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(CheckpointError, match="Pair gives a tuple"):
        load(Pair())(torch.rand(1, 3, 4, 4))


def test_a_copy_reads_its_own_weights() -> None:
    encoder = load("random:cifar_resnet8", options=("width=8",))
    x = torch.rand(1, 3, 16, 16)
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        assert torch.equal(twin(x).pooled, encoder(x).pooled)
        for p in twin.parameters():
            p.zero_()
        assert not twin(x).pooled.any()
        assert encoder(x).pooled.any()


def test_frozen_puts_exchanged_and_new_buffers_back() -> None:
    norm = nn.BatchNorm2d(3)
    mean = norm.running_mean
    with frozen(norm):
        norm.running_mean = torch.ones(3)
        norm.register_buffer("extra", torch.zeros(1))
    assert norm.running_mean is mean
    assert not hasattr(norm, "extra")


def test_frozen_nests() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    with frozen(net):
        with frozen(net[0]):
            pass
        assert not net[1].training
        assert not net[0].weight.requires_grad
    assert net[1].training
    assert net[0].weight.requires_grad


def test_frozen_calls_no_train_method() -> None:
    class Loud(nn.Module):
        def train(self, mode: bool = True) -> Loud:
            raise AssertionError("called")

    net = Loud()
    with frozen(net):
        assert not net.training
    assert net.training


def test_a_graph_made_inside_can_be_used_outside() -> None:
    net = nn.BatchNorm2d(3)
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    with frozen(net):
        y = net(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, (1 + net.eps) ** -0.5))


def test_batch_statistics_are_used_and_forgotten() -> None:
    net = nn.BatchNorm2d(3, affine=False)
    x = 5 + torch.rand(8, 3, 4, 4)
    with frozen(net, norm="batch"):
        assert net(x).mean().abs() < 1e-4
    assert torch.equal(net.running_mean, torch.zeros(3))
    assert int(net.num_batches_tracked) == 0


SET = {
    "as torch has it": "",
    "by the older names": "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True",
    "by a word": "torch.set_float32_matmul_precision('high')",
    "by the newer names": "torch.backends.cudnn.conv.fp32_precision = 'tf32'; "
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "for all": "torch.backends.fp32_precision = 'tf32'",
}
ASKED = """
import torch
from holdfast.models.encoder import frozen
def told():
    found = [torch.backends.cudnn.deterministic]
    for ask in (
        lambda: torch.backends.cudnn.conv.fp32_precision, lambda: torch.backends.cuda.matmul.fp32_precision,
        lambda: torch.backends.cudnn.allow_tf32, lambda: torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            found.append(ask())
        except (RuntimeError, AttributeError) as error:
            found.append(type(error).__name__)
    return found
{set}
before, module = told(), torch.nn.Conv2d(3, 2, 3)
try:
    with frozen(module), frozen(module):
        inside = told()
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
assert told() == before, (before, told())
with frozen(module, norm="batch"):
    assert told() == before, "training goes on as it was set"
assert inside[0] and (inside[1:3] == ["ieee", "ieee"] or inside[1] == "AttributeError"), inside
assert True not in inside[3:5], inside
"""


@pytest.mark.parametrize("name", list(SET))
def test_float32_is_float32_while_a_frozen_module_is_looked_at_and_as_it_was_set_afterwards(name: str) -> None:
    """In a process of its own: what was set in one way may refuse to be asked in another, for good."""
    if "newer" in name and not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("this torch has no such names")
    done = subprocess.run(
        [sys.executable, "-c", ASKED.format(set=SET[name])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_is_frozen_and_given_back(how: str) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    module = torch.jit.script(plain) if how == "script" else torch.jit.trace(plain, torch.rand(1, 3, 8, 8))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
        module(torch.rand(2, 3, 8, 8))
    assert all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with pytest.raises(TrustError, match="weights of a frozen module changed"), frozen(module), torch.no_grad():
        next(module.parameters()).add_(1)
