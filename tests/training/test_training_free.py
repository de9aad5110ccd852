"""The free adversary, the published PGD, and BatchNorm's policies: at the known optimum, and what they leave behind."""

import copy

import pytest
import torch
from torch import nn

from holdfast.attacks.balls import L2, Linf
from holdfast.draws import keys
from holdfast.errors import ConflictError
from holdfast.models.checkpoint import load
from holdfast.models.encoder import frozen
from holdfast.training.adversary import PGD, Free, SummedPGD
from holdfast.training.batchnorm import DualBatchNorm, dual, routed, single
from holdfast.training.methods.method import Method
from holdfast.training.methods.simclr import SimCLR
from holdfast.training.step import Trainee, train_step

EPS = 8 / 255


class Linear(Method):
    """A loss that is linear in the pixels of the attacked view."""

    attacked = ("a",)

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.seen = []

    def views(self, x, rows):
        return {"a": x}

    def truth(self, views, rows):
        return rows

    def harm(self, adversarial, truth, t):
        return (adversarial["a"] * self.weight).flatten(1).sum(1)

    def forward(self, views, adversarial, truth):
        self.seen.append(adversarial["a"].detach().clone())
        return (adversarial["a"] * self.weight).flatten(1).sum(1).mean()

    def objective(self):
        return "none"


def _batch(n=4, side=4, seed=0):
    x = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return x, {"key": keys([f"image {i}" for i in range(n)])}


def _linear(ball, alpha, replays, eps=EPS):
    method = Linear(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1)))
    still = torch.optim.SGD(method.parameters(), lr=0.0)
    return Trainee(method, method, still, Free(ball, eps, alpha, replays), torch.autograd.backward)


def _simclr():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SimCLR(load("random:cifar_resnet8", options=("width=4",)), dim=8, attacked=("second",)).train()


def test_free_begins_clean_and_rises_by_one_step_per_replay_to_the_corner():
    trainee, (x, rows) = _linear(Linf(), EPS / 3, 5), _batch()
    sign = trainee.method.weight.detach().sign()
    train_step(trainee, {"a": x}, rows)
    expected = [(x + min(i / 3, 1) * EPS * sign).clamp(0, 1) for i in range(5)]
    assert len(trainee.method.seen) == 5
    for seen, wanted in zip(trainee.method.seen, expected):
        assert torch.allclose(seen, wanted, atol=1e-6)


def test_the_perturbation_stays_and_is_brought_into_the_ball_and_the_box_of_the_next_images():
    trainee, (x, rows) = _linear(Linf(), EPS, 2), _batch()
    sign = trainee.method.weight.detach().sign()
    train_step(trainee, {"a": 0.1 + 0.8 * x}, rows)
    white, grey = torch.ones_like(x), torch.full_like(x, 0.5)
    train_step(trainee, {"a": white}, rows)
    learned = (white + EPS * sign).clamp(0, 1)
    assert torch.allclose(trainee.method.seen[2], learned, atol=1e-6), "what was learned from x, in white's box"
    train_step(trainee, {"a": grey}, rows)
    assert all(float(seen.min()) >= 0 and float(seen.max()) <= 1 for seen in trainee.method.seen)
    assert float((trainee.method.seen[4] - grey).abs().max()) <= EPS * (1 + 1e-5)


def test_free_in_the_l2_ball_goes_along_the_gradient():
    trainee, (_, rows) = _linear(L2(), 0.1, 6, eps=0.25), _batch()
    x, weight = torch.full((4, 3, 4, 4), 0.5), trainee.method.weight.detach()
    train_step(trainee, {"a": x}, rows)
    assert torch.allclose(trainee.method.seen[-1] - x, (0.25 * weight / weight.norm()).expand_as(x), atol=1e-5)


def test_the_weights_get_the_gradient_of_the_loss_at_the_perturbed_views_and_nothing_else():
    method, (x, rows) = _simclr(), _batch(6, 8)
    adversary = Free(Linf(), EPS, EPS, 1, delta={"second": torch.full((6, 3, 8, 8), EPS / 2)})
    twin, sgd = copy.deepcopy(method), torch.optim.SGD(method.parameters(), lr=0.1)
    views = method.views(x, rows)
    loss = train_step(Trainee(method, method, sgd, adversary, torch.autograd.backward), views, rows)
    moved = {"second": (views["second"] + EPS / 2).clamp(0, 1)}
    expected = twin(views, moved, rows)
    assert torch.allclose(loss, expected.detach(), atol=1e-6)
    for now, was, gradient in zip(
        method.parameters(), twin.parameters(), torch.autograd.grad(expected, list(twin.parameters()))
    ):
        assert torch.allclose(now, was - 0.1 * gradient, atol=1e-6)


def test_free_continues_from_what_it_saved_and_refuses_another_batch():
    trainee, (x, rows) = _linear(Linf(), EPS / 3, 2), _batch()
    train_step(trainee, {"a": x}, rows)
    other = Free(Linf(), EPS, EPS / 3, 2)
    other.load_state_dict(trainee.adversary.state_dict())
    assert torch.equal(other.delta["a"], trainee.adversary.delta["a"]) and float(other.delta["a"].abs().max()) > 0
    with pytest.raises(ConflictError, match=r"--batch"):
        other.propose(trainee.method, {"a": x[:2]}, rows)


def test_pgd_from_zero_begins_at_the_image():
    method, (x, rows) = Linear(torch.randn(3, 4, 4)), _batch()
    assert torch.equal(PGD(Linf(), EPS, EPS, 0, begin="zero").propose(method, {"a": x}, rows)["a"], x)


def test_the_published_pgd_adds_the_gradients_of_its_ascents_to_the_weights_and_moves_statistics():
    (x, rows), plain = _batch(6, 8), _simclr()
    summed = copy.deepcopy(plain)
    views = plain.views(x, rows)
    still = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (plain, summed)]
    pgd = PGD(Linf(), EPS, EPS / 2, 2, begin="zero")
    train_step(Trainee(plain, plain, still[0], pgd, torch.autograd.backward), views, rows)
    leaky = SummedPGD(Linf(), EPS, EPS / 2, 2, begin="zero")
    train_step(Trainee(summed, summed, still[1], leaky, torch.autograd.backward), views, rows)

    twin = copy.deepcopy(_simclr())
    with torch.no_grad(), frozen(twin, "batch"):
        truth = twin.truth(views, rows)
    total = [torch.zeros_like(p) for p in twin.parameters()]
    moved = views["second"]
    for _ in range(2):
        seen = moved.clone().requires_grad_()
        harm = twin.harm({"second": seen}, truth, torch.zeros(6))
        *weights, pixels = torch.autograd.grad(harm, [*twin.parameters(), seen], allow_unused=True)
        total = [t + (g if g is not None else 0) for t, g in zip(total, weights)]
        moved = Linf().project(views["second"], (seen + EPS / 2 * pixels.sign()).detach(), torch.full((6,), EPS))
    last = torch.autograd.grad(twin(views, {"second": moved}, truth), list(twin.parameters()))
    for ours, attack, loss, clean in zip(summed.parameters(), total, last, plain.parameters()):
        assert torch.allclose(ours.grad, attack + loss, atol=1e-5)
        assert torch.allclose(clean.grad, loss, atol=1e-5)
    batches = [m.encoder.trunk.bn1.num_batches_tracked.item() for m in (plain, summed)]
    assert batches == [1, 3]


# -- BatchNorm ---------------------------------------------------------------------------------------------------------


def test_a_dual_net_begins_alike_and_each_set_learns_from_its_own_images():
    net = dual(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    x = torch.rand(8, 3, 4, 4)
    assert isinstance(net[1], DualBatchNorm)
    assert torch.equal(net[1].clean.weight, net[1].moved.weight)
    net(x)
    before = copy.deepcopy(net.state_dict())
    with routed(net, perturbed=True):
        net(x + 3)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.moved.running_mean", "1.moved.running_var", "1.moved.num_batches_tracked"}
    assert not net[1].perturbed


def test_one_set_of_a_dual_net_is_left_for_export():
    net = dual(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    with routed(net, perturbed=True):
        net(torch.rand(8, 3, 4, 4) + 3)
    moved, clean = single(net, perturbed=True), single(net, perturbed=False)
    assert set(moved.state_dict()) == {"0.weight", "0.bias", *(f"1.{n}" for n in net[1].clean.state_dict())}
    assert torch.equal(moved[1].running_mean, net[1].moved.running_mean)
    assert torch.equal(clean[1].running_mean, torch.zeros(4))
    assert isinstance(net[1], DualBatchNorm), "the net itself is left as it is"


def test_perturbed_views_pass_through_their_own_set_in_training():
    method = _simclr()
    plain = copy.deepcopy(method)
    dual(method)
    method.dual = True
    x, rows = _batch(6, 8)
    views = method.views(x, rows)
    moved = {"second": (views["second"] + EPS).clamp(0, 1)}
    method(views, moved, rows)
    norm = method.encoder.trunk.bn1
    means = [plain.encoder.trunk.conv1((v - 0.5) / 0.25).mean((0, 2, 3)) for v in (views["first"], moved["second"])]
    assert torch.allclose(norm.clean.running_mean, 0.1 * means[0], atol=1e-5)
    assert torch.allclose(norm.moved.running_mean, 0.1 * means[1], atol=1e-5)
    assert set(plain.state_dict()) == set(single(method, perturbed=True).state_dict())
