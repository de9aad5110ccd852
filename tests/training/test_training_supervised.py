"""Classification in training: TRADES by its equation, heads on encoders that stay as they are, padded crops."""

import json
import math

import msgspec
import pytest
import torch
from torch.nn.functional import pad

from holdfast.errors import ConfigError
from holdfast.models.checkpoint import load
from holdfast.train_config import TrainConfig
from holdfast.training import build
from holdfast.training.loop import train
from holdfast.training.methods.supervised import divergence
from holdfast.training.schedule import Pace
from holdfast.views import Policy, view

SMALL = TrainConfig(
    data="scenes", size=16, limit=70, model="cifar_resnet8", epochs=2, batch=16, lr=0.05, seed=5, device="cpu"
)


def _quiet(text):
    del text


def _method(name, **fields):
    config = TrainConfig(method=name, adversary="pgd", steps=2, **fields)
    encoder = build.headed(load("random:cifar_resnet8", options=("width=8",)), config, 5)
    return build.method_for(encoder, config, 16)


def test_divergence_is_the_sum_over_classes():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), 1)
    plain = []
    for p, z in zip(expected.tolist(), logits.double().tolist()):
        total = sum(map(math.exp, z))
        plain.append(sum(a * (math.log(a) - math.log(math.exp(b) / total)) for a, b in zip(p, z)))
    assert divergence(expected, logits).tolist() == pytest.approx(plain, abs=1e-6)


def test_trades_is_cross_entropy_and_six_times_the_divergence():
    method = _method("trades").eval()
    x, moved = torch.rand(6, 3, 16, 16), torch.rand(6, 3, 16, 16)
    rows = {"key": torch.arange(6), "label": torch.tensor([0, 1, 2, 3, 4, 0])}
    truth = method.truth({"image": x}, rows)
    with torch.no_grad():
        loss = method({"image": x}, {"image": moved}, truth)
        clean, other = (method.encoder.logits(part) for part in (x, moved))
    p, q = clean.softmax(1), other.softmax(1)
    entropy = -clean.log_softmax(1)[torch.arange(6), rows["label"]].mean()
    assert float(loss) == pytest.approx(float(entropy + 6 * (p * (p / q).log()).sum(1).mean()), abs=1e-5)
    harm = method.harm({"image": moved}, truth, torch.zeros(6))
    torch.testing.assert_close(harm.detach(), (p * (p / q).log()).sum(1), atol=1e-5, rtol=1e-4)


def test_supervised_trains_on_the_perturbed_image_alone():
    method = _method("supervised").eval()
    x, moved = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    rows = {"label": torch.tensor([0, 1, 2, 3])}
    with torch.no_grad():
        alone = method({"image": x}, {"image": moved}, rows)
        logits = method.encoder.logits(moved)
    assert float(alone) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, rows["label"])), abs=1e-6)


@pytest.mark.parametrize("method", ["supervised", "trades"])
def test_a_head_is_trained_while_the_encoder_stays_to_the_bit(method, tmp_path):
    fields = {"adversary": "pgd", "steps": 2, "start": "normal", "optimizer": "sgd", "schedule": "stepped"}
    config = msgspec.structs.replace(SMALL, method=method, out=str(tmp_path), trained="head", **fields)
    train(config, say=_quiet)
    found, begun = load(str(tmp_path)), build.encoder_for(config)
    assert found.classes == 8
    began = {n: t for n, t in begun.trunk.state_dict().items() if not n.startswith("linear")}
    now = found.trunk.state_dict()
    assert len(began) > 20 and all(torch.equal(t, now[n]) for n, t in began.items())
    fresh = build.headed(begun, config, 8).trunk.state_dict()
    assert not torch.equal(fresh["linear.weight"], now["linear.weight"]), "the head was trained"
    card = (tmp_path / "README.md").read_text()
    assert "the head alone was trained" in card and "with labels" in card and "normal start" in card


def test_fine_tuning_keeps_the_head_of_a_checkpoint_and_learns_its_labels(tmp_path):
    first = msgspec.structs.replace(SMALL, method="supervised", out=str(tmp_path / "a"), epochs=12, lr=0.02)
    train(first, say=_quiet)
    checks = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in checks if "accuracy" in line] == [0, 36]
    second = msgspec.structs.replace(first, model=str(tmp_path / "a"), out=str(tmp_path / "b"), epochs=1, lr=1e-9)
    train(second, say=_quiet)
    a, b = (load(str(tmp_path / name)).trunk.state_dict()["linear.weight"] for name in "ab")
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "trades"}, "needs an adversary"),
        ({"method": "simclr", "beta": 3.0}, "simclr has no beta"),
        ({"method": "simclr", "trained": "head"}, "simclr has no trained"),
        ({"method": "supervised", "trained": "head", "adversary": "pgd", "batchnorm": "dual"}, "running statistics"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(msgspec.structs.replace(SMALL, out=str(tmp_path / "a"), **fields), say=_quiet)
    assert not (tmp_path / "a").exists()


def test_a_module_that_cannot_be_given_a_head_is_refused(tmp_path):
    config = msgspec.structs.replace(SMALL, method="supervised", model="torch.nn:Flatten", out=str(tmp_path / "a"))
    with pytest.raises(ConfigError, match="cannot be given a head for 8 classes"):
        train(config, say=_quiet)


def test_a_padded_crop_is_a_window_of_the_padded_image():
    policy = Policy(pad=3, jitter=0.0, grey=0.0, flip=0.0)
    x, keys = torch.rand(64, 3, 8, 8), torch.arange(64)
    seen, places = view(x, keys, policy), set()
    wide = pad(x, (3,) * 4)
    for image, window in zip(wide, seen):
        at = [(i, j) for i in range(7) for j in range(7) if torch.equal(image[:, i : i + 8, j : j + 8], window)]
        assert len(at) == 1
        places |= set(at)
    assert {i for i, _ in places} == {j for _, j in places} == set(range(7)), "every shift is drawn"


def test_the_stepped_schedule_falls_twice():
    pace = Pace(total=25, warmup=2, peak=0.1, falls=(0.6, 0.8))
    assert pace.rate(0) == pytest.approx(0.05)
    assert [pace.rate(step) for step in (2, 14, 15, 19, 20, 24)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_a_normal_start_is_near_the_image_and_within_the_ball():
    method = _method("trades", start="normal", eps=8 / 255)
    adversary = build.adversary_for(TrainConfig(method="trades", adversary="pgd", start="normal", steps=1, alpha=1e-9))
    x = torch.rand(4, 3, 16, 16) * 0.8 + 0.1
    rows = {"key": torch.arange(4), "label": torch.zeros(4, dtype=torch.int64)}
    moved = adversary.propose(method, {"image": x}, method.truth({"image": x}, rows))["image"]
    delta = (moved - x).detach()
    assert 0.0009 < float(delta.std()) < 0.0011 and float(delta.abs().max()) < 0.006


def test_the_radius_grows_over_the_ramp(tmp_path):
    method = _method("supervised", eps=8 / 255)
    config = TrainConfig(method="supervised", adversary="pgd", steps=3, eps=8 / 255, epochs=10, ramp=5.0)
    adversary = build.adversary_for(config)
    x = torch.rand(4, 3, 16, 16) * 0.8 + 0.1
    rows = {"key": torch.arange(4), "label": torch.zeros(4, dtype=torch.int64)}
    reached = []
    for method.done in (0.0, 0.25, 0.5, 0.9):
        moved = adversary.propose(method, {"image": x}, rows)["image"]
        reached.append(float((moved - x).abs().max()) * 255)
    assert reached == pytest.approx([0.08, 4.0, 8.0, 8.0], abs=1e-3)
    with pytest.raises(ConfigError, match="does not grow"):
        train(msgspec.structs.replace(SMALL, method="supervised", adversary="free", ramp=1.0, out=str(tmp_path / "a")))
