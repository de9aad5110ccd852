"""Momentum PGD against the paper's loop, torchattacks, PGD (decay 0), and a landscape that it was made for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from holdfast import draws
from holdfast.attacks.balls import BALLS, Linf
from holdfast.attacks.executor import Seen, Stage, pursue
from holdfast.attacks.harm import Harm
from holdfast.attacks.momentum import MomentumPGD
from holdfast.attacks.pgd import PGD
from holdfast.attacks.scores import cross_entropy, margin

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 4.0}


def net() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 16, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(16 * 9, 10),
        ).eval()


def through(model: Callable[[torch.Tensor], torch.Tensor]) -> Harm:
    return Harm(
        see=lambda x: {"logits": model(x)},
        push=lambda out, rows, t: cross_entropy(out["logits"], rows["label"]),
        score=lambda out, rows: margin(out["logits"], rows["label"]),
    )


def precise() -> Harm:
    """In float64 inside, so that batches of other sizes differ by less than the pixels resolve."""
    model = net().double()
    return through(lambda x: model(x.double()).float())


def images(n: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x = torch.rand(n, 3, 16, 16, generator=draws.generator("images"))
    label = net()(x).argmax(1).detach()
    return x, {"key": draws.keys([str(i) for i in range(n)]), "label": label}


def last(attack: MomentumPGD | PGD, harm: Harm, x: torch.Tensor, row: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last iterate: one step more is watched, and what it looks at is where the one before ended."""
    seen: list[Seen] = []
    pursue(attack, harm, x, row, slots=len(x), stop="never", watch=seen.append)
    return seen[-1].pixels


def plain(
    harm: Harm, x: torch.Tensor, row: dict[str, torch.Tensor], norm: str, steps: int, decay: float
) -> torch.Tensor:
    """Algorithm 1 of the paper (its steps 3 to 6), each image with its own L1 norm; the last iterate."""
    adv, g, eps, alpha = x.clone(), torch.zeros_like(x), EPS[norm], EPS[norm] / 4
    for _ in range(steps):
        adv.requires_grad_()
        (gradient,) = torch.autograd.grad(harm.push(harm.see(adv), row, torch.zeros(len(x))).sum(), adv)
        for i in range(len(x)):
            g[i] = decay * g[i] + gradient[i] / gradient[i].abs().sum()
        if norm == "linf":
            adv = (adv.detach() + alpha * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        else:
            adv = BALLS[norm].project(x, adv.detach() + alpha * BALLS[norm].steepest(g), torch.full((len(x),), eps))
    return adv


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("norm", sorted(EPS))
def test_it_equals_the_plain_loop(norm: str, decay: float) -> None:
    harm = precise()
    x, row = images(16)
    row["eps"] = torch.full((16,), EPS[norm])
    ours = last(MomentumPGD(BALLS[norm], 8, 0.25, decay, begin="zero"), harm, x, row)
    theirs = plain(harm, x, row, norm, 7, decay)
    assert torch.allclose(ours, theirs, atol=2e-6)
    assert float((theirs - x).abs().max()) > EPS[norm] / 50
    if norm != "linf" or decay == 1.0:
        other = last(MomentumPGD(BALLS[norm], 8, 0.25, 0.25, begin="zero"), harm, x, row)
        assert not torch.allclose(other, theirs, atol=1e-4), "the decay shows"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equal_to_torchattacks_bit_for_bit() -> None:
    """Sixteen images: torchattacks takes the mean of the loss over its batch, and a division by 16 is exact."""
    torchattacks = pytest.importorskip("torchattacks")
    model, (x, row) = net(), images(16)
    theirs = torchattacks.MIFGSM(model, eps=8 / 255, alpha=2 / 255, steps=10, decay=1.0)(x, row["label"])
    row["eps"] = torch.full((16,), 8 / 255)
    ours = last(MomentumPGD(Linf(), 11, 0.25, begin="zero"), through(model), x, row)
    assert torch.equal(ours, theirs)
    assert not torch.equal(last(PGD(Linf(), 11, 0.25, begin="zero"), through(model), x, row), theirs)


@pytest.mark.parametrize("norm", sorted(EPS))
def test_without_decay_it_is_pgd(norm: str) -> None:
    harm, (x, row) = through(net()), images(16)
    row["eps"] = torch.full((16,), EPS[norm])
    momentum, pgd = MomentumPGD(BALLS[norm], 6, 0.25, 0.0, begin="zero"), PGD(BALLS[norm], 6, 0.25, begin="zero")
    assert torch.allclose(last(momentum, harm, x, row), last(pgd, harm, x, row), atol=1e-5)


def test_momentum_is_of_the_row_and_begins_anew_in_every_stage() -> None:
    harm, (x, row) = precise(), images(20)
    row["eps"] = torch.full((20,), 1 / 255)
    attack = MomentumPGD(Linf(), 4, 0.3)
    together = pursue(attack, harm, x, row, (Stage(0), Stage(1)), slots=8)
    for i in (0, 7, 19):
        alone = {name: part[i : i + 1] for name, part in row.items()}
        found = pursue(attack, harm, x[i : i + 1], alone, (Stage(0), Stage(1)), slots=8)
        assert torch.equal(found.pixels[0], together.pixels[i])
    assert 0 < int((together.score > 0).sum()) < 20
    one, two = (pursue(attack, harm, x, row, (Stage(k),), slots=20, stop="never").score for k in (0, 1))
    both = pursue(attack, harm, x, row, (Stage(0), Stage(1)), slots=20, stop="never").score
    assert torch.equal(both, torch.maximum(one, two))


def test_a_gradient_of_zero_leaves_the_momentum() -> None:
    """The second look is flat: plain PGD rests there, momentum goes on."""
    x = torch.full((8, 3, 2, 2), 0.5)

    def push(out: dict[str, torch.Tensor], rows: object, t: torch.Tensor) -> torch.Tensor:
        return torch.where(t > 0, 0 * out["value"], out["value"])

    harm = Harm(lambda p: {"value": p.flatten(1).sum(1)}, push, lambda out, rows: out["value"].detach() - 100)
    row = {"key": draws.keys([str(i) for i in range(8)]), "eps": torch.full((8,), 0.2)}
    found = pursue(MomentumPGD(Linf(), 4, 0.25, begin="zero"), harm, x, row, slots=8, stop="never")
    assert found.pixels.flatten().numpy() == pytest.approx(0.7)
    assert found.trace["zero_gradients"].tolist() == [0.75] * 8
    rested = pursue(PGD(Linf(), 4, 0.25, begin="zero"), harm, x, row, slots=8, stop="never")
    assert rested.pixels.flatten().numpy() == pytest.approx(0.55)
