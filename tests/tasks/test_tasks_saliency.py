"""Grad-CAM against captum, against a map derived by hand and against finite differences; what it must not touch; the
drift of maps in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from holdfast.draws import generator
from holdfast.errors import ConfigError, DataError, PixelError, TrustError
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder, frozen
from holdfast.models.features import reader
from holdfast.tasks.saliency import Saliency, cam_drift, grad_cam, upsampled
from holdfast.tasks.similarity import psnr, ssim
from holdfast.tasks.task import observe, seer

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
LABELS = {"label": torch.tensor([0, 1, 2, 3])}


def images(h: int = 32, w: int = 32, *, n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, h, w, generator=generator("images", seed))


def named(spec: str, *options: str) -> Encoder:
    return load(f"random:{spec}", options=(*options, "num_classes=4"), mean=MEAN, std=STD)


def redrawn(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """All weights normal: no bias is zero and no LayerNorm is plain, so that no term is hidden."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator("weights", name)))
    return module


def vit(*options: str) -> Encoder:
    """Two blocks, a class token, two registers."""
    encoder = named("vit_tiny_patch16_224", "depth=2", "embed_dim=24", "num_heads=2", "reg_tokens=2", *options)
    redrawn(encoder, 0.4)
    return encoder


def pooled_convolution() -> Encoder:
    """A module as torchvision builds them: pooling, flattening and the last layer are its own."""
    stem = (nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
    net = nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return load(redrawn(net), mean=MEAN, std=STD)


def convolution() -> Encoder:
    return load(pooled_convolution().trunk[:5], mean=MEAN, std=STD)


def head(width: int) -> nn.Module:
    return redrawn(nn.Linear(width, 4))


FAMILIES: dict[str, Callable[[], Saliency]] = {
    "cifar_resnet8": lambda: Saliency(named("cifar_resnet8", "width=8")),
    "resnet18": lambda: Saliency(named("resnet18")),
    "mobilenet": lambda: Saliency(named("mobilenetv2_050")),
    "swin": lambda: Saliency(
        named("swin_tiny_patch4_window7_224", "depths=(1, 1, 1, 2)", "embed_dim=12", "img_size=64", "window_size=4")
    ),
    "vit": lambda: Saliency(vit()),
    "vit_averaged": lambda: Saliency(vit("global_pool=avg", "class_token=False")),
    "fitted": lambda: Saliency(convolution(), head(8)),
    "fitted_stage": lambda: Saliency(named("cifar_resnet8", "width=8"), head(16), head_level="stage2"),
    "fitted_block": lambda: Saliency(vit(), head(24), target="true", head_level="block0"),
    "fitted_tokens": lambda: Saliency(vit(), head(48), head_level="cls2"),
    "similarity": lambda: Saliency(vit(), target="similarity"),
    "pooled": lambda: Saliency(pooled_convolution(), target="similarity"),
}


@pytest.fixture(params=FAMILIES, scope="module")
def task(request: pytest.FixtureRequest) -> Saliency:
    return FAMILIES[request.param]()


def truth(task: Saliency, x: Tensor, **rows: Tensor) -> Mapping[str, Tensor]:
    with torch.no_grad():
        return task.truth(x, rows or {name: row[: len(x)] for name, row in LABELS.items()}, seer(task.encoder, task))


def relative(maps: Tensor) -> Tensor:
    maps = maps.relu()
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-30)


class Logits(nn.Module):
    """Encoder and head in one, as captum wants them."""

    def __init__(self, task: Saliency) -> None:
        super().__init__()
        self.encoder, self.head, self.level = task.encoder, task.head, task.head_level

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.logits(x) if self.head is None else self.head(self.encoder.vector(x, self.level))


CONVOLUTIONS = {"cifar_resnet8": "layer3", "resnet18": "layer4", "mobilenet": "bn2", "fitted": "4"}


@pytest.mark.parametrize(("name", "layer"), CONVOLUTIONS.items())
def test_equals_captum_on_convolutions(name: str, layer: str) -> None:
    attribution = pytest.importorskip("captum.attr")
    task, x = FAMILIES[name](), images(96, 64)
    model = Logits(task).eval()
    clean = truth(task, x)
    with frozen(model):
        found = task.maps(x, clean)
    cam = attribution.LayerGradCam(model, task.encoder.trunk.get_submodule(layer))
    wanted = cam.attribute(x, target=clean["clean_class"], relu_attributions=True).detach()[:, 0]
    assert float(wanted.amax()) > 0
    torch.testing.assert_close(found, relative(wanted), rtol=0, atol=1e-6)


def uniform_vit() -> tuple[Encoder, VisionTransformer]:
    """One block, no LayerNorm, an MLP that adds a constant, keys of zero: every token attends to all tokens alike."""
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 6, "depth": 1, "num_heads": 2, "num_classes": 4}
    net = VisionTransformer(**sizes, reg_tokens=3, norm_layer=nn.Identity)
    redrawn(net)
    for part in (net.blocks[0].attn.qkv.weight[:12], net.blocks[0].attn.qkv.bias[:12], net.blocks[0].mlp.fc2.weight):
        nn.init.zeros_(part)
    return load(net, mean=MEAN, std=STD).double(), net


def test_equals_a_map_derived_by_hand() -> None:
    """The class token becomes itself + P V mean(tokens): the gradient at each of 13 tokens is V' P' w / 13."""
    encoder, net = uniform_vit()
    x, task = images(24, 24), Saliency(encoder)
    with torch.no_grad():
        tokens = net._pos_embed(net.patch_embed((x - encoder.mean) / encoder.std))
        chosen = net((x - encoder.mean) / encoder.std).argmax(1)
        value, out = net.blocks[0].attn.qkv.weight[12:], net.blocks[0].attn.proj.weight
        gradient = (net.head.weight[chosen] @ out @ value) / 13
        wanted = torch.stack([(tokens[i, 4:] @ gradient[i]).view(3, 3) for i in range(4)])
    assert float(relative(wanted).amax((1, 2)).min()) == 1
    torch.testing.assert_close(task.maps(x, {}), relative(wanted), rtol=0, atol=1e-12)


def by_differences(task: Saliency, module: nn.Module, prefix: int, x: Tensor, chosen: int) -> Tensor:
    """The map of one image: each number of a layer's output moved up and down, the logit seen; sums in plain loops."""
    moved, seen = [0, 0, 0.0], []

    def shift(_: nn.Module, given: object, out: Tensor) -> Tensor:
        seen.append(out.detach())
        out = out.clone()
        out[0, moved[0], moved[1]] += moved[2]
        return out

    def logit(token: int, channel: int, by: float) -> float:
        moved[:] = [token, channel, by]
        return float(Logits(task)(x)[0, chosen])

    handle = module.register_forward_hook(shift)
    with frozen(task.encoder), torch.no_grad():
        logit(0, 0, 0.0)
        values = seen[0][0]
        weight = torch.zeros(values.shape[1], dtype=torch.float64)
        for token in range(prefix, len(values)):
            for channel in range(len(weight)):
                change = logit(token, channel, 1e-4) - logit(token, channel, -1e-4)
                weight[channel] += change / 2e-4 / (len(values) - prefix)
    handle.remove()
    return (values[prefix:] @ weight)[None, None]


TOKENS = {
    "vit": (FAMILIES["vit"], "blocks.1.norm1", 3, (32, 48), (2, 3)),
    "vit_averaged": (FAMILIES["vit_averaged"], "blocks.1.norm1", 2, (32, 48), (2, 3)),
    "fitted_tokens": (FAMILIES["fitted_tokens"], "blocks.0.norm1", 3, (32, 48), (2, 3)),
    "swin": (FAMILIES["swin"], "layers.3.blocks.1.norm2", 0, (64, 64), (2, 2)),
}


@pytest.mark.parametrize("name", TOKENS)
def test_equals_finite_differences_on_tokens(name: str) -> None:
    """Two registers, with a class token, without, with two of them read; another size than the ViT's own; a Swin."""
    made, layer, prefix, size, grid = TOKENS[name]
    task, x = made(), images(*size, n=1)
    nn.ModuleList([task.encoder, *task.modules()]).double()
    flat = by_differences(task, task.encoder.trunk.get_submodule(layer), prefix, x, int(truth(task, x)["clean_class"]))
    found = task.maps(x, {})
    assert 0 < float(found.mean()) < 1
    torch.testing.assert_close(found, relative(flat).view(1, *grid), rtol=0, atol=1e-6)


def test_vectors_are_those_of_the_encoder(task: Saliency) -> None:
    """What is explained is what the other tasks judge, to the bit."""
    x = images(64, 64)
    with frozen(task.encoder), torch.no_grad():
        look = grad_cam(task.encoder, x, task.head_level, lambda vector: vector.sum(1))
        assert torch.equal(look.vector, task.encoder.vector(x, task.head_level))
    assert not look.maps.requires_grad
    assert not look.vector.requires_grad
    tops = look.maps.amax((1, 2))
    assert float(look.maps.min()) >= 0
    assert set(tops.tolist()) <= {0.0, 1.0}, "each is divided by its largest value"


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_does_not_see_its_batch(name: str) -> None:
    """In double precision, where kernels that differ with the batch hide nothing."""
    task, x = FAMILIES[name](), images(64, 64)
    nn.ModuleList([task.encoder, *task.modules()]).double()
    alone = torch.cat([task.maps(x[i : i + 1], {"label": LABELS["label"][i : i + 1]}) for i in range(4)])
    torch.testing.assert_close(task.maps(x, LABELS), alone, rtol=0, atol=1e-9)


def test_identical_pixels_do_not_drift_and_others_do(task: Saliency) -> None:
    x, y = (images(64, 64, seed=seed) for seed in (0, 1))
    rows = truth(task, x)
    same = observe(task, task.encoder, x.clone(), rows)
    assert [same[name].tolist() for name in ("cam_drift", "ssim", "psnr")] == [[0.0] * 4, [1.0] * 4, [100.0] * 4]
    found = observe(task, task.encoder, y, rows)
    assert float(found["cam_drift"].max()) > 1e-6
    assert torch.equal(found["cam_drift"], task.score(task.read(task.encoder, y), rows))
    assert torch.equal(found["cam_drift"], cam_drift(rows["clean_map"], task.maps(y, rows)))
    assert torch.equal(found["ssim"], ssim(x, y))
    assert torch.equal(found["psnr"], psnr(x, y))
    assert {measure.outcome for measure in task.measures()} <= found.keys()
    assert not {measure.name for measure in task.measures()} & task.absent().keys()


def state(module: nn.Module) -> list[object]:
    modes = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
    flags = [(p.requires_grad, p.grad is None or p.grad.sum().item(), id(p.grad), p.data_ptr(), p._version)
             for p in module.parameters()]  # fmt: skip
    return [modes, flags, [(id(b), b.double().sum().item()) for b in module.buffers()]]


@pytest.mark.parametrize("frozen_weights", [True, False])
def test_leaves_everything_as_it_was(task: Saliency, frozen_weights: bool) -> None:
    parts = nn.ModuleList([task.encoder, *task.modules()])
    for i, module in enumerate(parts.modules()):
        module.training = i % 2 == 0
    for i, p in enumerate(parts.parameters()):
        p.requires_grad_(not frozen_weights and i % 3 != 0)
        p.grad = torch.full_like(p, 0.5) if i % 2 else None
    before, drawn = state(parts), torch.get_rng_state()
    x = images(64, 64)
    with torch.no_grad():
        rows = truth(task, x)
        task.outcome({"pixels": images(64, 64, seed=1)}, rows)
        assert not torch.is_grad_enabled()
    again = task.maps(x, rows)
    assert state(parts) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(x, images(64, 64))
    assert not x.requires_grad
    assert torch.equal(again, rows["clean_map"]), "frozen or not, with gradient or without: one map"
    parts.eval().requires_grad_(True).zero_grad()


def test_the_clean_class_is_held_and_the_true_one_is_the_label() -> None:
    task, x = FAMILIES["cifar_resnet8"](), images(n=2)
    rows = dict(truth(task, x))
    maps = [task.maps(x, {**rows, "clean_class": torch.full((2,), c)}) for c in range(4)]
    assert torch.equal(task.maps(x, {}), rows["clean_map"]), "alone, an image names its own class"
    for i, c in enumerate(rows["clean_class"].tolist()):
        assert torch.equal(rows["clean_map"][i], maps[c][i])
    other = {**rows, "clean_class": (rows["clean_class"] + 1) % 4}
    assert float(observe(task, task.encoder, x, other)["cam_drift"].min()) > 0
    assert observe(task, task.encoder, x, other)["prediction"].tolist() == rows["clean_class"].tolist()
    label = torch.tensor([3, 1])
    labelled = Saliency(task.encoder, target="true").maps(x, {**rows, "label": label})
    assert torch.equal(labelled, torch.stack([maps[3][0], maps[1][1]]))


def test_similarity_shows_something_on_the_clean_image_and_a_cosine_would_not() -> None:
    task, x, y = Saliency(convolution(), target="similarity"), images(), images(seed=1)
    with frozen(task.encoder):
        direction = truth(task, x)["clean_direction"]
        seen, changed = (task.encoder(z, ("patch",)).maps["patch"] for z in (x, y))
        z = seen.mean((2, 3)).requires_grad_()
        (steep,) = torch.autograd.grad(nn.functional.cosine_similarity(z, direction).sum(), z)
    assert float(steep.abs().max()) < 1e-6, "the map of a cosine would be rounding"
    assert task.maps(x, {}).amax((1, 2)).tolist() == [1.0] * 4
    for pixels, activations, rows in ((x, seen, {}), (y, changed, {"clean_direction": direction})):
        wanted = relative((activations * direction[:, :, None, None]).sum(1))
        torch.testing.assert_close(task.maps(pixels, rows), wanted, rtol=0, atol=1e-6)


def test_drift_in_closed_form() -> None:
    zero, one = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    other, both = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    first = torch.stack([zero, zero, one, one, one, both])
    second = torch.stack([zero, one, zero, other, both, 0.25 * both])
    assert cam_drift(first, second).tolist() == pytest.approx([0, 1, 1, 1, 1 - 0.5**0.5, 0], abs=1e-7)
    x = images(7, 7)[:, 0]
    assert cam_drift(x, x.clone()).tolist() == [0.0] * 4


def test_a_map_without_a_positive_value_is_zero() -> None:
    """A head of negative weights after a ReLU: nothing speaks for any class."""
    fitted = head(8)
    nn.init.constant_(fitted.get_parameter("weight"), -1)
    task, x = Saliency(convolution(), fitted), images()
    assert float(task.maps(x, {}).abs().max()) == 0
    assert observe(task, task.encoder, images(seed=1), truth(task, x))["cam_drift"].tolist() == [0.0] * 4


def test_upsampled_maps_are_bilinear() -> None:
    corner = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    wanted = torch.tensor([1, 0.75, 0.25, 0])
    torch.testing.assert_close(upsampled(corner, (4, 4))[0], wanted[:, None] * wanted[None])
    assert upsampled(images(7, 5)[:, 0], (224, 160)).shape == (4, 224, 160)


def test_outcomes_of_a_head_with_labels() -> None:
    task = FAMILIES["fitted"]()
    assert (task.level, task.pushes, task.ensemble, task.stop) == ("pixels", {}, (), False)
    x, y = images(), images(seed=1)
    with torch.no_grad():
        before, now = (Logits(task).eval()(z).argmax(1) for z in (x, y))
    label = torch.stack([before[0], now[1], 3 - before[2], now[3]])
    found = observe(task, task.encoder, y, truth(task, x, label=label))
    wanted = {"prediction": now, "clean_prediction": before, "correct": now == label, "clean_correct": before == label}
    assert all(torch.equal(found[name], row) for name, row in wanted.items())
    assert found["correct"].tolist()[1::2] == [True, True]
    better = {"cam_drift": False, "ssim": True, "psnr": True, "accuracy": True}
    assert {m.name: m.higher_is_better for m in task.measures()} == better
    assert task.absent() == {}


def test_what_cannot_be_measured_is_absent_with_a_reason() -> None:
    own = named("cifar_resnet8", "width=8")
    similar, unlabelled = Saliency(own, target="similarity"), Saliency(own, labelled=False)
    assert similar.absent() == {"accuracy": "there is no classification head"}
    assert "prediction" not in observe(similar, own, images(), truth(similar, images()))
    assert unlabelled.absent() == {"accuracy": "the images have no labels"}
    found = observe(unlabelled, own, images(seed=1), truth(unlabelled, images(), key=torch.arange(4)))
    assert {"prediction", "correct"} & found.keys() == {"prediction"}


SMALL = {
    "ssim": (lambda size: Saliency(convolution(), head(8), size=size), 8, "11 x 11"),
    "cam_drift": (lambda size: Saliency(named("resnet18"), size=size), 32, "single position.*size=32"),
}


@pytest.mark.parametrize("name", SMALL)
def test_pixels_too_small_for_a_measure(name: str) -> None:
    """SSIM below its window; ResNet-18 at 32 px, where every map would be 1 or 0, and every drift too."""
    made, size, message = SMALL[name]
    task, x = made(size), images(size, size)
    assert f"of {size} px" in task.absent()[name]
    found = observe(task, task.encoder, images(size, size, seed=1), truth(task, x))
    assert name not in found
    assert {m.outcome for m in task.measures()} <= found.keys()
    with pytest.raises(PixelError, match=message):
        made(0).outcome({"pixels": x}, truth(task, x))


def flat() -> Saliency:
    return Saliency(load(nn.Flatten(), mean=MEAN, std=STD), target="similarity")


def endless() -> Saliency:
    fitted = head(8)
    nn.init.constant_(fitted.get_parameter("weight"), torch.inf)
    return Saliency(convolution(), fitted)


MISTAKES: dict[str, tuple[type[Exception], Callable[[Encoder], object]]] = {
    '"predicted"': (ConfigError, lambda own: Saliency(own, target="predictd")),
    'no head on "pooled".*similarity': (ConfigError, lambda own: Saliency(convolution())),
    'no head on "stage2"': (ConfigError, lambda own: Saliency(own, head_level="stage2")),
    "needs labels": (ConfigError, lambda own: Saliency(own, target="true", labelled=False)),
    "labelled=False": (DataError, lambda own: truth(Saliency(own), images(), key=torch.arange(4))),
    "one Saliency per encoder": (TrustError, lambda own: Saliency(own).read(convolution(), images())),
    '"stage3"': (ConfigError, lambda own: Saliency(own, target="similarity", head_level="stage4").maps(images(), {})),
    r"inference_mode.*no_grad": (ConfigError, torch.inference_mode()(lambda own: Saliency(own).maps(images(), {}))),
    r"last map before pooling.*gives \[b, d\]": (ConfigError, lambda own: flat().maps(images(), {})),
    "are no map": (ConfigError, lambda own: Saliency(named("mixer_s32_224", "img_size=32")).maps(images(), {})),
    "not finite": (TrustError, lambda own: endless().maps(images(), {})),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message: str) -> None:
    error, call = MISTAKES[message]
    with pytest.raises(error, match=message):
        call(named("cifar_resnet8", "width=8"))


def test_pooling_inside_a_block_is_no_last_map() -> None:
    """A squeeze-and-excitation gate pools too; a convolution after it says that it is not the last."""
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1))
    assert reader(nn.Sequential(nn.Conv2d(3, 8, 3), gate)).cam_layer("pooled") is None
    assert reader(pooled_convolution().trunk).cam_layer("pooled") is not None
