"""Features averaged over n crops: a fixed function of the pixels, its gradient, and both ways to attack it."""

import pytest
import torch

import holdfast
from holdfast.data.sources import images, open_source
from holdfast.errors import ConfigError, DataError, PixelError
from holdfast.models.checkpoint import load, save
from holdfast.models.encoder import frozen
from holdfast.train_config import TrainConfig
from holdfast.training.loop import train
from holdfast.views import MULTICROPS, crop_of, worded

ARCH = "random:cifar_resnet8"


def _pixels(n=3, side=16):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", sorted(MULTICROPS))
def test_features_are_the_mean_over_the_crops_and_do_not_depend_on_the_batch(kind):
    many, one, x = load(f"{kind}:5:{ARCH}"), load(ARCH), _pixels()
    with torch.no_grad():
        plain = torch.stack([one.vector(crop_of(x, kind, number)) for number in range(5)]).mean(0)
        torch.testing.assert_close(many.vector(x), plain)
        torch.testing.assert_close(many(x).pooled, plain)
        assert torch.equal(many.vector(x), many.vector(x)), "nothing is drawn anew"
        torch.testing.assert_close(many.vector(x[1:2]), plain[1:2])
    assert not torch.allclose(crop_of(x, kind, 0), crop_of(x, kind, 1))
    assert many.digest() != one.digest() != load(f"{kind}:6:{ARCH}").digest()
    assert many.name == f"cifar_resnet8 (5 {kind})" or many.name.endswith(f"(5 {kind})")


def test_the_gradient_reaches_the_image_through_every_crop():
    many = load(f"crops:4:{ARCH}")
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0))
    seen = (_pixels(1) * 0.8 + 0.1).requires_grad_()
    with frozen(many):
        (gradient,) = torch.autograd.grad((many.vector(seen) @ weight).sum(), seen)
        step = 1e-2 * gradient / gradient.norm()
        with torch.no_grad():
            rise = (many.vector(seen + step) - many.vector(seen - step)) @ weight
    assert float((gradient != 0).float().mean()) > 0.9, "the crops cover the image"
    assert float(rise.sum()) == pytest.approx(2e-2 * float(gradient.norm()), rel=0.1)


def test_crops_that_lie_apart_are_those_that_are_cut_up_to_rounding_to_bytes():
    stacked = open_source(images("crops:4:scenes", size=16, limit=3))
    whole = open_source(images("scenes", size=16, limit=3))
    assert stacked.ids == whole.ids and stacked.labels == whole.labels
    assert stacked.data.digest_of_images != whole.data.digest_of_images
    image = torch.from_numpy(stacked.read(1).pixels).permute(2, 0, 1)[None] / 255
    assert image.shape == (1, 3, 64, 16)
    x = torch.from_numpy(whole.read(1).pixels).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(image[:, :, 16:32], crop_of(x, "crops", 1), atol=0.5001 / 255, rtol=0)
    cut, apart = load(f"crops:4:{ARCH}"), load(f"crops:4:apart:{ARCH}")
    with torch.no_grad():
        torch.testing.assert_close(apart.vector(image), cut.vector(x), atol=0.02, rtol=0.02)
        with pytest.raises(PixelError, match="4 square crops"):
            apart.vector(x)


@pytest.mark.parametrize("text", ["crops:runs/a", "crops:0:a", "crops:4:", "patches:5000:a"])
def test_what_says_no_number_of_crops_is_refused(text):
    with pytest.raises(ConfigError, match="number of crops"):
        worded(text)


def test_words_and_the_encoder_behind_them():
    assert worded("runs/a") == ("", "runs/a")
    assert worded("crops:16:random:x:3") == ("crops:16:", "random:x:3")
    assert worded("patches:2:apart:runs/a") == ("patches:2:apart:", "runs/a")
    with pytest.raises(ConfigError, match="no maps"):
        load(f"crops:2:{ARCH}")(_pixels(), levels=("patch",))
    assert load(f"crops:2:{ARCH}").mapped == ()


def test_crops_of_dense_images_and_crops_of_crops_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        images("crops:2:crops:2:scenes")
    with pytest.raises(DataError, match="cannot be read"):
        images("crops:2:apart:scenes")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """An encoder of EMP-SSL with its neck."""
    config = TrainConfig(
        method="empssl", data="scenes", size=16, limit=80, model="cifar_resnet8", epochs=2, batch=20, crops=4, dim=16,
        hidden=48, lr=1e-3, device="cpu", threads=1, out=str(tmp_path_factory.mktemp("emp")),
    )  # fmt: skip
    return train(config, say=lambda line: None)


def test_the_neck_is_kept_with_the_encoder_and_read_at_its_level(pretrained, tmp_path):
    encoder, x = load(str(pretrained)), _pixels()
    assert encoder.levels[-1] == "neck" and encoder.dims("neck") == 48 and encoder.mapped[-1] != "neck"
    state = torch.load(pretrained / "state.pt", weights_only=True)["method"]
    with torch.no_grad():
        pooled = encoder.vector(x)
        y = pooled @ state["pre_feature.0.weight"].T + state["pre_feature.0.bias"]
        mean, var = state["pre_feature.1.running_mean"], state["pre_feature.1.running_var"]
        y = (y - mean) / (var + 1e-5).sqrt() * state["pre_feature.1.weight"] + state["pre_feature.1.bias"]
        torch.testing.assert_close(encoder.vector(x, "neck"), y.clamp_min(0), atol=1e-5, rtol=1e-5)
        again = load(str(save(encoder, tmp_path / "again.safetensors")))
        assert torch.equal(again.vector(x, "neck"), encoder.vector(x, "neck"))
    with pytest.raises(ConfigError, match="has no neck"):
        load(ARCH).vector(x, "neck")


def test_a_bench_attacks_the_average_and_each_crop(pretrained, tmp_path):
    fields = {"limit": 24, "attack_limit": 12, "fit_limit": 40, "size": 16, "corruptions": ["none"], "saliency": 0}
    attack = {"stage": "attack", "through": "classification", "push": "ce", "steps": 3}
    fields |= {"attacks": [attack], "eps": ["4/255"], "threads": 1, "level": "neck", "tasks": ["classification"]}
    both = [f"crops:3:{pretrained}", str(pretrained)]
    fields |= {"device": "cpu", "block": 12}
    run = holdfast.bench(both, data="scenes", out=str(tmp_path / "whole"), **fields)
    names = {result.cell.encoder.name for result in run.results}
    assert len(names) == 2 and any(name.endswith("(3 crops)") for name in names)
    apart = holdfast.bench(f"crops:3:apart:{pretrained}", data="crops:3:scenes", out=str(tmp_path / "apart"), **fields)

    for part, encoder in ((run, f"crops:3:{pretrained}"), (apart, f"crops:3:apart:{pretrained}")):
        cells = {
            r.cell.stages[-1].eps if r.cell.stages else 0.0: r for r in part.results if r.cell.encoder.spec == encoder
        }
        clean, attacked = (cells[eps].metric("accuracy") for eps in (0.0, 4 / 255))
        assert clean is not None and attacked is not None and clean.n == 24 and attacked.n == 12
        outcomes = [part.outcomes(cells[eps].id)["correct"] for eps in (0.0, 4 / 255)]
        assert (outcomes[1] <= outcomes[0][:12]).all(), "an attack makes nothing right"
    verified = holdfast.verify(str(tmp_path / "apart"))
    assert verified
    with pytest.raises(ConfigError, match="holds whole images"):
        holdfast.bench(f"crops:3:apart:{pretrained}", data="scenes", out=str(tmp_path / "x"), **fields)
    with pytest.raises(ConfigError, match="reads whole images"):
        holdfast.bench(str(pretrained), data="crops:3:scenes", out=str(tmp_path / "y"), **fields)
