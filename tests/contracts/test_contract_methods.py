"""What every method owes: its loss falls, nothing collapses, attacks leave no gradient, a run resumes exactly.

A new method is enrolled by one line in `table.METHODS`.
"""

import copy

import pytest
import torch
from torch import nn

from holdfast.data.batches import batches
from holdfast.data.sources import images, open_source
from holdfast.models.checkpoint import load
from holdfast.models.encoder import frozen
from holdfast.train_config import TrainConfig
from holdfast.training import build
from holdfast.training.methods.table import HARDENING, METHODS
from holdfast.training.step import Trainee, train_step

SIDE, COUNT = 16, 48
SMALL = {
    "barlow": {"dim": 32},
    "byol": {"dim": 16, "hidden": 64, "momentum": 0.9},
    "dino": {"dim": 64, "hidden": 64, "momentum": 0.9, "small_crops": 2},
    "empssl": {"dim": 16, "hidden": 64, "crops": 4},
    "simclr": {"dim": 16},
    "simsiam": {"dim": 64},
    "supcon": {"dim": 16},
    "swav": {"dim": 16, "hidden": 64, "prototypes": 24, "small_crops": 2, "queue": 48},
}

RATES = {"empssl": 1e-3}
ALONE = {"supervised", "trades", *HARDENING}
"""Methods of one view."""


@pytest.fixture(scope="module")
def scenes():
    source = open_source(images("scenes", split="train", size=SIDE, limit=COUNT))
    return next(iter(batches(source, size=COUNT)))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=sorted(set(METHODS) - set(HARDENING)))
def name(request):
    return request.param


@pytest.fixture(params=sorted(METHODS))
def every(request):
    """Hardening too, which is always against an adversary and starts where it should stay."""
    return request.param


def _trainee(name, adversary="", **fields):
    config = TrainConfig(
        method=name, lr=RATES.get(name, 3e-3), adversary=adversary, steps=2, replays=2, **SMALL.get(name, {}), **fields
    )
    with build.seeded(torch.device("cpu"), "contract"):
        encoder = build.headed(load("random:cifar_resnet8", options=("width=8",)), config, 8)
        method = build.method_for(encoder, config, SIDE).train()
    optimizer = build.optimizer_for(method, config)
    return Trainee(method, method, optimizer, build.adversary_for(config), torch.autograd.backward)


def _rows(batch, step):
    return {"key": batch.rows["key"] + step, "label": batch.rows["label"]}


def _step(trainee, batch, step):
    rows = _rows(batch, step)
    return train_step(trainee, trainee.method.views(batch.pixels, rows), rows, step)


def _steps(trainee, batch, steps):
    return [float(_step(trainee, batch, step)) for step in steps]


def _effective_rank(z):
    """Exponential of the entropy of the covariance's spectrum (Roy and Vetterli 2007)."""
    share = torch.linalg.svdvals((z - z.mean(0)).double()) ** 2
    share = share / share.sum()
    return float((-(share * share.clamp_min(1e-30).log()).sum()).exp())


@pytest.mark.parametrize("adversary", ["none", "pgd", "free"])
def test_the_loss_falls_and_the_features_do_not_collapse(name, adversary, scenes):
    trainee = _trainee(name, adversary)
    losses = _steps(trainee, scenes, range(40))
    assert sum(losses[-10:]) / 10 < losses[0] - 0.1, losses
    with frozen(trainee.method, "batch"), torch.no_grad():
        z = nn.functional.normalize(trainee.method.encoder(scenes.pixels).pooled)
    assert _effective_rank(z) > 2.5
    assert float(z.std(0).mean()) > 0.02


def test_the_rank_that_guards_against_collapse_sees_it():
    cloud = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    assert _effective_rank(cloud) > 5.9
    assert _effective_rank(cloud[:, :1] * torch.ones(6) + 1e-3 * cloud) < 1.1


def test_views_are_pixels_that_differ_and_depend_on_the_key_alone(every, scenes):
    method, rows = _trainee(every).method, _rows(scenes, 0)
    views = method.views(scenes.pixels, rows)
    assert len(views) == 1 if every in ALONE else len(views) > 1
    for view in views.values():
        assert view.shape[:2] == (COUNT, 3) and float(view.min()) >= 0 and float(view.max()) <= 1
    half = method.views(scenes.pixels[:9], {"key": rows["key"][:9]})
    assert all(torch.equal(half[k], views[k][:9]) for k in views)
    assert not any(torch.equal(v, views[k]) for k, v in method.views(scenes.pixels, _rows(scenes, 1)).items())


def test_the_attacked_views_are_views_and_exist_only_against_an_adversary(name, scenes):
    assert _trainee(name).method.attacked == ()
    method, rows = _trainee(name, "pgd").method, _rows(scenes, 0)
    views = method.views(scenes.pixels, rows)
    assert method.attacked and set(method.attacked) <= set(views)
    truth = method.truth(views, rows)
    assert not any(value.requires_grad for value in truth.values())
    seen = {k: views[k].requires_grad_() for k in method.attacked}
    harm = method.harm(seen, truth, torch.zeros(COUNT))
    assert harm.shape in ((), (COUNT,))
    gradients = torch.autograd.grad(harm.sum(), list(seen.values()))
    assert all(float(g.abs().amax((1, 2, 3)).min()) > 0 for g in gradients), "an image that no attack can reach"


def test_no_gradient_of_the_attack_reaches_the_weights(every, scenes):
    trainee = _trainee(every, "pgd")
    twin, rows = copy.deepcopy(trainee.method), _rows(scenes, 0)
    train_step(trainee, trainee.method.views(scenes.pixels, rows), rows)
    with torch.no_grad():
        views = twin.views(scenes.pixels, rows)
        with frozen(twin, trainee.adversary.norm):
            truth = twin.truth(views, rows)
    adversarial = trainee.adversary.propose(twin, views, truth)
    torch.autograd.backward(twin(views, adversarial, truth))
    pairs = [(a.grad, b.grad) for a, b in zip(trainee.method.parameters(), twin.parameters()) if a.requires_grad]
    assert len(pairs) > 10 and all(torch.equal(moved, alone) for moved, alone in pairs)


@pytest.mark.parametrize("adversary", ["none", "pgd", "free"])
def test_a_run_resumes_to_the_same_bits(every, adversary, scenes, tmp_path):
    if adversary == "none" and every in HARDENING:
        adversary = "pgd_summed"
    whole, first, second = (_trainee(every, adversary) for _ in range(3))
    losses = _steps(whole, scenes, range(6))
    began = _steps(first, scenes, range(3))
    parts = {"method": first.method, "optimizer": first.optimizer, "adversary": first.adversary}
    torch.save({k: v.state_dict() for k, v in parts.items()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    second.method.load_state_dict(saved["method"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.adversary.load_state_dict(saved["adversary"])
    assert began + _steps(second, scenes, range(3, 6)) == losses
    now = second.method.state_dict()
    assert all(torch.equal(value, now[k]) for k, value in whole.method.state_dict().items())


def test_the_objective_is_said_in_a_sentence(name):
    assert _trainee(name).method.objective().endswith(".")
    assert _trainee(name).method.objective() != _trainee(name, "pgd").method.objective()


def test_perturbed_views_leave_the_clean_set_of_a_dual_net_alone(name, scenes):
    trainee = _trainee(name, "pgd", batchnorm="dual")
    rows = _rows(scenes, 0)
    views = trainee.method.views(scenes.pixels, rows)
    train_step(trainee, views, rows)
    norm = trainee.method.encoder.trunk.bn1
    seen = [int(part.num_batches_tracked) for part in (norm.clean, norm.moved)]
    clean = len({v.shape for n, v in views.items() if n not in trainee.method.attacked}) + (name == "trades")
    assert seen == [clean, 1], "one pass for each size of view, and one for the perturbed ones"


def test_bfloat16_trains_to_finite_losses_near_those_of_float32(name, scenes):
    losses = [_steps(_trainee(name, "pgd", precision=precision), scenes, range(3)) for precision in ("fp32", "bf16")]
    assert all(torch.isfinite(torch.tensor(row)).all() for row in losses)
    assert abs(losses[1][0] - losses[0][0]) <= 0.05 * (1 + abs(losses[0][0])), losses
