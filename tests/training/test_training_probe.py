"""Linear heads against closed forms and scipy's optimum; the probe on drawn scenes, and its distrust."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import minimize
from torch import nn

from holdfast.configs import ProbeConfig
from holdfast.data.sources import images, open_source
from holdfast.errors import ConfigError, ConflictError, DataError, TrustError
from holdfast.models.checkpoint import load, save
from holdfast.tasks.features import extract
from holdfast.training import probe as module
from holdfast.training.probe import fit_linear, probe


def _quiet(text):
    del text


def _clouds(n=600, d=6, classes=3, apart=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = apart * torch.randn(classes, d, generator=generator)
    return centres[labels] + torch.randn(n, d, generator=generator), labels


def _loss(head, x, y):
    return float(nn.functional.cross_entropy(head(x), y))


def test_the_loss_is_that_of_scipys_optimum():
    x, y = _clouds(apart=0.5)
    head = fit_linear(x, y, classes=3, epochs=200, lr=0.02, weight_decay=0.0)
    onehot, design = np.eye(3)[y], np.c_[x.double().numpy(), np.ones(len(x))]

    def objective(flat):
        logits = design @ flat.reshape(7, 3)
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        value = -np.log((p * onehot).sum(1)).mean()
        return value, (design.T @ (p - onehot) / len(x)).ravel()

    best = minimize(objective, np.zeros(21), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "gtol": 1e-9}).fun
    assert best <= _loss(head, x, y) + 1e-6
    assert _loss(head, x, y) < best * 1.001


def test_labels_without_a_trace_in_the_features_give_the_class_shares():
    y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    head = fit_linear(torch.ones(100, 4), y, classes=3, epochs=600, lr=0.05)
    assert torch.equal(head.weight, torch.zeros(3, 4))
    assert torch.allclose(head(torch.ones(1, 4)).softmax(1), torch.tensor([[0.6, 0.3, 0.1]]), atol=0.01)


def test_the_fold_makes_the_head_blind_to_shift_and_scale_of_the_features():
    x, y = _clouds()
    scale, shift = torch.tensor([1.0, 100.0, 0.01, 3.0, 7.0, 0.5]), torch.tensor([0.0, 5.0, -1.0, 200.0, 0.3, 9.0])
    plain, moved = (fit_linear(v, y, classes=3, epochs=20) for v in (x, x * scale + shift))
    assert torch.allclose(plain(x), moved(x * scale + shift), atol=1e-2)


def test_the_fit_is_the_same_every_time_and_leaves_the_global_generator_alone():
    x, y = _clouds()
    state = torch.get_rng_state()
    first, again, other = (fit_linear(x, y, classes=3, epochs=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight) and torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)
    assert not first.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_decay_shrinks_the_weight():
    x, y = _clouds()
    free, held = (fit_linear(x, y, classes=3, epochs=30, weight_decay=decay) for decay in (0.0, 1.0))
    assert float(held.weight.norm()) < 0.9 * float(free.weight.norm())


def test_labels_outside_the_classes_and_features_that_are_no_numbers_are_refused():
    x, y = _clouds(n=30)
    with pytest.raises(DataError, match="2 classes"):
        fit_linear(x, y, classes=2)
    with pytest.raises(TrustError, match="not finite"):
        fit_linear(x.where(x < 1, torch.nan), y, classes=3, epochs=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save(load("random:cifar_resnet8"), folder)
    return folder


def _config(run, **fields):
    given = {"encoder": str(run), "size": 16, "limit": 96, "batch": 32, "epochs": 20}
    return ProbeConfig(**{**given, **fields})


def test_the_probe_writes_a_head_that_gives_the_accuracy_it_says(run):
    out = probe(_config(run), say=_quiet)
    assert out == run / "probe"
    found, weights = json.loads((out / "probe.json").read_text()), load_file(out / "head.safetensors")
    test = open_source(images("scenes", split="test", size=16, limit=96))
    logits = extract(load(run), test, level="pooled", chunk=7).vectors @ weights["weight"].T + weights["bias"]
    right = int((logits.argmax(1) == torch.tensor(test.labels)).sum())
    assert found["test"]["accuracy"] == pytest.approx(right / 96, abs=1.5 / 96)
    assert found["test"]["images"] == found["train"]["images"] == 96
    assert found["train"]["accuracy"] > 1 / 8
    assert found["digest_of_encoder"] == load(run).digest()


def test_an_encoder_that_writes_into_itself_is_not_believed(run, tmp_path, monkeypatch):
    encoder = load(run)

    def restless(bn, *_):
        bn.running_mean += 1e-3

    encoder.trunk.bn1.register_forward_hook(restless)
    monkeypatch.setattr(module, "load", lambda *_, **__: encoder)
    with pytest.raises(TrustError, match="changed while it was frozen"):
        probe(_config(run, out=str(tmp_path / "probe")), say=_quiet)
    assert not (tmp_path / "probe").exists()


def test_a_patient_encoder_is_left_as_it_was(run, tmp_path, monkeypatch):
    encoder = load(run).train()
    digest = encoder.digest()
    monkeypatch.setattr(module, "load", lambda *_, **__: encoder)
    probe(_config(run, out=str(tmp_path / "probe"), epochs=1), say=_quiet)
    assert encoder.digest() == digest and all(part.training for part in encoder.modules())


def test_another_config_on_the_same_folder_is_refused(run, tmp_path):
    config = {"out": str(tmp_path / "probe"), "epochs": 1}
    probe(_config(run, **config), say=_quiet)
    with pytest.raises(ConflictError, match=r"lr was 0\.0, is 0\.1"):
        probe(_config(run, lr=0.1, **config), say=_quiet)


def test_the_head_is_not_measured_on_what_it_was_fitted_on(run, tmp_path):
    with pytest.raises(DataError, match="fitted on"):
        probe(_config(run, test_split="train", out=str(tmp_path / "probe")), say=_quiet)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"encoder": ""}, "no encoder"), ({"epochs": 0}, "epochs is 0"), ({"encoder": "resnet18"}, "--out")],
)
def test_what_cannot_be_probed_is_refused(run, fields, message):
    with pytest.raises(ConfigError, match=message):
        probe(_config(run, **fields), say=_quiet)
