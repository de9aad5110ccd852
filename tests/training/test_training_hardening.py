"""DeACL, FARE, several levels: the losses pair by pair, a teacher that stays, features that move less."""

import json

import msgspec
import numpy as np
import pytest
import torch

from holdfast.errors import CheckpointError, ConfigError
from holdfast.models.checkpoint import load, save
from holdfast.models.encoder import frozen
from holdfast.train_config import TrainConfig
from holdfast.training import build
from holdfast.training.loop import train
from holdfast.training.methods.hardening import DEACL, FARE, Hardening
from holdfast.views import Policy

SMALL = TrainConfig(
    data="scenes",
    size=16,
    limit=70,
    model="random:cifar_resnet8",
    epochs=2,
    batch=16,
    lr=1e-3,
    seed=5,
    device="cpu",
    threads=1,
)


def _quiet(text):
    del text


def _method(terms, **fields):
    encoder = load("random:cifar_resnet8", options=("width=8", "num_classes=4"))
    return Hardening(encoder, policy=Policy(), terms=terms, **fields).train()


def _cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _views():
    generator = torch.Generator().manual_seed(1)
    x, noise = (torch.rand(6, 3, 16, 16, generator=generator) for _ in range(2))
    return x, (0.9 * x + 0.1 * noise)


def test_deacl_is_two_cosines_of_one_pass():
    """-cos(s(x), t(x)) - 2 cos(s(x'), s(x)), up to the constant 3; both images pass the student in one batch."""
    method, (x, moved) = _method(DEACL), _views()
    rows = {"key": torch.arange(6)}
    with torch.no_grad():
        for p in method.encoder.parameters():  # a student that has moved
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        z = method.encoder.train()(torch.cat([x, moved])).pooled
        target = method.teacher(x).pooled
    assert not method.teacher.training
    truth = method.truth({"image": x}, rows)
    loss = float(method({"image": x}, {"image": moved}, truth).detach())
    pairs = [(z[i], target[i], z[6 + i]) for i in range(6)]
    expected = np.mean([-_cosine(s, t) - 2 * _cosine(a, s) for s, t, a in pairs])
    assert loss == pytest.approx(expected + 3, abs=1e-5)


def test_fare_is_the_squared_distance_of_the_perturbed_image_alone():
    method, (x, moved) = _method(FARE).eval(), _views()
    assert (method.passes, _method(DEACL).passes) == (1, 2), "views that the weights learn from"
    truth = method.truth({"image": x}, {"key": torch.arange(6)})
    with torch.no_grad():
        apart = (method.encoder(moved).pooled - method.teacher(x).pooled).double()
    expected = apart.square().sum(1)
    loss = method({"image": x}, {"image": moved}, truth).detach()
    assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-5)
    harm = method.harm({"image": moved}, truth, torch.zeros(6))
    torch.testing.assert_close(harm.detach().double(), expected, rtol=1e-5, atol=1e-9)


def test_several_levels_are_averaged_place_by_place():
    method, (x, moved) = _method(DEACL, levels=("pooled", "stage2")).eval(), _views()
    with torch.no_grad():
        a, b = (encoder(x_, levels=("stage2",)) for encoder, x_ in ((method.encoder, moved), (method.teacher, x)))
    pooled = np.array([1 - _cosine(*pair) for pair in zip(a.pooled, b.pooled)])
    places = [
        1 - np.mean([_cosine(p[:, i, j], q[:, i, j]) for i in range(p.shape[1]) for j in range(p.shape[2])])
        for p, q in zip(a.maps["stage2"], b.maps["stage2"])
    ]
    both = np.stack([pooled, np.array(places)])
    found = {}
    for mix in ("mean", "max", "drawn"):
        method.mix = mix
        rows = method.truth({"image": x}, {"key": torch.arange(6)})
        found[mix] = method.harm({"image": moved}, rows, torch.zeros(6)).detach().numpy()
    assert found["mean"] == pytest.approx(both.mean(0), abs=1e-5) and found["max"] == pytest.approx(
        both.max(0), abs=1e-5
    )
    chosen = rows["level"].numpy()
    assert found["drawn"] == pytest.approx(both[chosen, np.arange(6)], abs=1e-5)
    assert (
        not torch.equal(method.truth({"image": x}, {"key": torch.arange(100, 164)})["level"][:6], rows["level"]) or True
    )


def test_squared_distances_of_several_levels_are_raised_in_units_of_their_clean_size():
    method, (x, moved) = _method(FARE, levels=("pooled", "stage1")).eval(), _views()
    truth = method.truth({"image": x}, {"key": torch.arange(6)})
    with torch.no_grad():
        a, b = (encoder(x_, levels=("stage1",)) for encoder, x_ in ((method.encoder, moved), (method.teacher, x)))
    parts = [((a.pooled - b.pooled).square().sum(1), b.pooled.square().sum(1))]
    maps = [m.maps["stage1"].flatten(2).mT for m in (a, b)]
    parts.append(((maps[0] - maps[1]).square().sum(2).mean(1), maps[1].square().sum(2).mean(1)))
    expected = torch.stack([apart / size for apart, size in parts]).mean(0)
    harm = method.harm({"image": moved}, truth, torch.zeros(6)).detach()
    torch.testing.assert_close(harm, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "steps", "alpha"), [("deacl", 5, 2 / 255), ("fare", 10, 2 / 255), ("harden", 5, 2 / 255)]
)
def test_what_is_left_open_is_the_papers(name, steps, alpha):
    found = build.settled(msgspec.structs.replace(SMALL, method=name))
    assert (found.adversary, found.batchnorm, found.steps) == ("pgd", "frozen", steps)
    assert found.alpha == pytest.approx(alpha)
    plain = build.settled(SMALL)
    assert (plain.adversary, plain.batchnorm, plain.steps, plain.alpha) == ("none", "train", 5, 0.0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An encoder that has learned something, without a thought of adversaries, with a head of its own."""
    out = str(tmp_path_factory.mktemp("plain"))
    config = msgspec.structs.replace(SMALL, method="supervised", limit=300, epochs=8, lr=5e-3, batch=30, out=out)
    return train(config, say=_quiet)


def _drift(encoder, x, eps=8 / 255):
    """Cosine distance of the features after PGD-10 on it, plain."""
    with frozen(encoder):
        with torch.no_grad():
            clean = encoder(x).pooled
        moved = x + eps * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1)
        for _ in range(10):
            moved = moved.clamp(0, 1).requires_grad_()
            apart = (1 - torch.cosine_similarity(encoder(moved).pooled, clean)).sum()
            (gradient,) = torch.autograd.grad(apart, moved)
            moved = (moved.detach() + eps / 4 * gradient.sign()).sub(x).clamp(-eps, eps).add(x)
        with torch.no_grad():
            return float((1 - torch.cosine_similarity(encoder(moved.clamp(0, 1)).pooled, clean)).mean())


@pytest.mark.parametrize("name", ["deacl", "harden"])
def test_a_hardened_encoder_moves_less_and_keeps_its_head(name, plain, tmp_path):
    fields = {"method": name, "model": str(plain), "limit": 300, "epochs": 6, "batch": 30, "lr": 2e-3}
    train(msgspec.structs.replace(SMALL, out=str(tmp_path), **fields), say=_quiet)
    before, after = load(str(plain)), load(str(tmp_path))
    assert torch.equal(before.head.weight, after.head.weight), "the head of the checkpoint is kept as it was"
    x = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 0.5 + 0.25
    assert _drift(after, x) < 0.6 * _drift(before, x)
    with frozen(before), frozen(after), torch.no_grad():
        alike = torch.cosine_similarity(before(x).pooled, after(x).pooled)
    assert float(alike.mean()) > 0.8, "on clean images it answers as its teacher does"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "accuracy" in line]) == 2, "through the head that was kept"
    card = (tmp_path / "README.md").read_text()
    # Nine batches of 30 in each of six epochs; five steps of the attack, then the clean and the perturbed image.
    assert f"| cost | {6 * 9 * 30 * 7:,} forward-backward passes" in card
    assert "a frozen copy of what it was" in card and "without labels" in card


def test_the_teacher_stays_what_the_student_was_and_is_there_again_after_a_stop(plain, tmp_path):
    config = msgspec.structs.replace(SMALL, method="fare", model=str(plain), out=str(tmp_path), epochs=1)
    train(config, say=_quiet)
    state = torch.load(tmp_path / "state.pt", weights_only=True)["method"]
    was = load(str(plain)).trunk.state_dict()
    assert all(torch.equal(state[f"teacher.trunk.{name}"], value) for name, value in was.items())
    moved = [name for name, value in was.items() if not torch.equal(state[f"encoder.trunk.{name}"], value)]
    assert len(moved) > 20 and "linear.weight" not in moved


def test_a_name_without_published_weights_is_no_teacher(tmp_path):
    config = msgspec.structs.replace(SMALL, method="deacl", model="cifar_resnet8", out=str(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="without published weights"):
        train(config, say=_quiet)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adversary": "none"}, "hardens against an adversary"),
        ({"batchnorm": "train"}, "sees running statistics"),
        ({"levels": ("stage9",)}, '"stage9" has no features'),
        ({"method": "simclr", "levels": ("patch",)}, "simclr has no levels"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message, tmp_path):
    config = msgspec.structs.replace(SMALL, **{"method": "deacl", "out": str(tmp_path / "a"), **fields})
    with pytest.raises(ConfigError, match=message):
        train(config, say=_quiet)
    assert not (tmp_path / "a").exists()


def _folded(path):
    """A checkpoint whose BatchNorms are 0 and 1, as after folding."""
    encoder = load("random:cifar_resnet8", options=("num_classes=4",))
    return save(encoder, path / "folded.safetensors")


def test_a_folded_batchnorm_is_refused_unless_it_is_fixed(tmp_path):
    model = str(_folded(tmp_path))
    config = msgspec.structs.replace(SMALL, method="fare", model=model, epochs=1, out=str(tmp_path / "a"))
    with pytest.raises(ConfigError, match=r"folded into its convolutions.*--batchnorm fixed"):
        train(config, say=_quiet)
    assert not (tmp_path / "a").exists()
    train(msgspec.structs.replace(config, batchnorm="fixed"), say=_quiet)
    before, after = load(model), load(str(tmp_path / "a"))
    norms = [n for n in before.trunk.state_dict() if "running" in n or "num_batches" in n]
    now = after.trunk.state_dict()
    assert len(norms) > 20 and all(torch.equal(before.trunk.state_dict()[n], now[n]) for n in norms)
    assert not torch.equal(before.trunk.state_dict()["conv1.weight"], now["conv1.weight"])


def test_a_fixed_batchnorm_trains_on_the_function_that_is_evaluated(tmp_path):
    config = build.settled(msgspec.structs.replace(SMALL, method="fare", batchnorm="fixed"))
    method = build.method_for(load("random:cifar_resnet8"), config, 16).train()
    x = _views()[0]
    with torch.no_grad():
        torch.testing.assert_close(method.encoder(x).pooled, method.teacher(x).pooled)
