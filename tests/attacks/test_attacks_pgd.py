"""PGD against the truth (a linear functional), then against foolbox, then the executor's promises."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast import draws, records
from holdfast.attacks import methods
from holdfast.attacks.balls import BALLS, L2, Linf
from holdfast.attacks.board import laid
from holdfast.attacks.executor import Seen, Stage, pursue
from holdfast.attacks.harm import Harm, check_pixels
from holdfast.attacks.pgd import PGD
from holdfast.attacks.scores import cross_entropy, margin
from holdfast.errors import ConfigError, PixelError, TrustError


def rows(n: int, eps: float, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"key": draws.keys([f"image/{i}" for i in range(n)]), "eps": torch.full((n,), eps), **more}


def linear(weight: torch.Tensor) -> Harm:
    def value(out, rows, t=None):
        return out["value"]

    return Harm(see=lambda x: {"value": (x * weight).flatten(1).sum(1)}, push=value, score=value)


def only(found):
    return found.pixels, found.score


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_linear_functional_is_raised_to_its_closed_form(norm: str, dual: int) -> None:
    weight = torch.randn(3, 8, 8, generator=draws.generator("weight"))
    x, eps = torch.full((5, 3, 8, 8), 0.5), 0.05
    harm = linear(weight)
    (member,) = methods.build(records.Attack(norm=norm, eps=eps, alpha=eps / 2, steps=20))
    attack, stages = member.attack, member.stages
    _, score = only(pursue(attack, harm, x, rows(5, eps), stages, slots=8, stop="never"))
    gain = score - harm.score(harm.see(x), {})
    assert gain == pytest.approx(eps * float(torch.linalg.vector_norm(weight.flatten(), dual)), rel=1e-3)


def test_the_box_binds_where_it_must() -> None:
    x = torch.zeros(1, 3, 4, 4)
    harm = linear(-torch.ones(3, 4, 4))
    pixels, score = only(pursue(PGD(Linf(), 5, 0.5), harm, x, rows(1, 0.1), slots=8, stop="never"))
    assert torch.equal(pixels, x) and float(score[0]) == 0.0


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_balls_keep_their_word(norm: str) -> None:
    ball, generator = BALLS[norm], draws.generator("ball", norm)
    x = torch.rand(64, 3, 5, 5, generator=generator)
    eps = torch.linspace(0.01, 2, 64)
    keys = draws.keys([str(i) for i in range(64)])
    start = ball.start(x, eps, keys, "a")
    moved = ball.project(x, x + torch.randn(x.shape, generator=generator) * 3, eps)
    for inside in (start, moved):
        assert bool((ball.norm(inside - x) <= eps * (1 + 1e-5)).all())
        assert float(inside.min()) >= 0 and float(inside.max()) <= 1
    assert torch.equal(start[7:9], ball.start(x[7:9], eps[7:9], keys[7:9], "a"))
    assert not torch.equal(start, ball.start(x, eps, keys, "b"))
    direction = ball.steepest(torch.randn(x.shape, generator=generator) * 1e-25)
    assert torch.allclose(ball.norm(direction), torch.ones(64))
    assert torch.equal(ball.steepest(torch.zeros(2, 3, 5, 5)), torch.zeros(2, 3, 5, 5))


def test_l2_start_fills_the_ball_uniformly() -> None:
    """In d dimensions the radius to the power d is uniform: its mean is 1/2, whatever d is."""
    x, n = torch.full((2000, 3, 1, 1), 0.5), 2000
    start = L2().start(x, torch.full((n,), 0.3), draws.keys([str(i) for i in range(n)]), 0)
    share = ((start - x).flatten(1).norm(dim=1) / 0.3) ** 3
    assert float(share.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * n))


def test_rescaled_cube_start_reaches_its_corners() -> None:
    x = torch.full((500, 3, 2, 2), 0.5)
    start = Linf().start(x, torch.full((500,), 0.1), draws.keys([str(i) for i in range(500)]), 0) - x
    assert float(start.abs().max()) > 0.099 and float(start.mean()) == pytest.approx(0, abs=0.005)


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


def through(model: torch.nn.Module) -> Harm:
    return Harm(
        see=lambda x: {"logits": model(x)},
        push=lambda out, rows, t: cross_entropy(out["logits"], rows["label"]),
        score=lambda out, rows: margin(out["logits"], rows["label"]),
    )


def images(n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, 3, 16, 16, generator=draws.generator("images"))
    return x, net()(x).argmax(1).detach()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("norm", "peer"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_without_random_start_equal_to_foolbox(norm: str, peer: str) -> None:
    """Linf bit for bit; L2 to float32 rounding, since the order of its divisions differs."""
    foolbox = pytest.importorskip("foolbox")
    model, (x, label) = net(), images()
    eps, steps, alpha = (8 / 255, 10, 2 / 255) if norm == "linf" else (0.5, 10, 0.1)
    theirs = getattr(foolbox.attacks, peer)(abs_stepsize=alpha, steps=steps, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    raw, _, _ = theirs(wrapped, x, label, epsilons=eps)
    # A constant score makes the executor keep the last iterate, as foolbox does.
    harm = Harm(through(model).see, through(model).push, lambda out, rows: torch.zeros(len(out["logits"])))
    record = records.Attack(norm=norm, eps=eps, alpha=alpha, steps=steps, start="zero")
    (member,) = methods.build(record)
    attack, stages = member.attack, member.stages
    ours, _ = only(pursue(attack, harm, x, rows(20, eps, label=label), stages, slots=20, stop="never"))
    if norm == "linf":
        assert torch.equal(ours, raw)
    else:
        assert torch.allclose(ours, raw, atol=2e-6)
    assert float((ours - x).abs().max()) > alpha / 2


def plain_pgd(harm: Harm, x: torch.Tensor, row: dict[str, torch.Tensor], steps: int, relative: float) -> torch.Tensor:
    """The paper's loop with the worst iterate kept, written out plainly: the final score of each image."""
    eps = row["eps"].view(-1, 1, 1, 1)
    generators = [draws.generator("linf", "pgd", 0, 0, int(k)) for k in row["key"]]
    noise = torch.stack([torch.rand(x.shape[1:], generator=g) for g in generators])
    adv = (x + (2 * noise - 1) * eps).clamp(0, 1)
    best = harm.score(harm.see(laid(x)), row)
    for _ in range(steps):
        adv = laid(adv).requires_grad_()  # another layout has other last digits, and a sign may turn by them
        out = harm.see(adv)
        (gradient,) = torch.autograd.grad(harm.push(out, row, None).sum(), adv)
        best = torch.maximum(best, harm.score(out, row).detach())
        adv = (adv + relative * eps * gradient.sign()).detach()
        adv = (x + (adv - x).clamp(-eps, eps)).clamp(0, 1)
    return torch.maximum(best, harm.score(harm.see(laid(adv)), row).detach())


def test_executor_equals_the_plain_loop() -> None:
    model, (x, label) = net(), images()
    row = rows(20, 4 / 255, label=label)
    _, score = only(pursue(PGD(Linf(), 7, 0.25), through(model), x, row, slots=20, stop="never"))
    assert torch.allclose(score, plain_pgd(through(model), x, row, 7, 0.25).detach(), atol=1e-6)


@pytest.mark.parametrize("stop", ["lost", "never"])
def test_verdicts_do_not_depend_on_slots_or_order(stop: str) -> None:
    model, (x, label) = net(), images(20)
    row = rows(20, 2 / 255, label=label)
    attack = PGD(Linf(), 6, 0.3)

    def run(order: torch.Tensor, slots: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        moved = {name: part[order] for name, part in row.items()}
        found = pursue(attack, through(model), x[order], moved, (Stage(0), Stage(1)), slots=slots, stop=stop)
        back = order.argsort()
        return found.score[back], {name: part.float()[back] for name, part in found.trace.items()}

    one, traced = run(torch.arange(20), 20)
    other, retraced = run(torch.arange(19, -1, -1), 8)
    assert torch.allclose(one, other, atol=1e-4) and torch.equal(one > 0, other > 0)
    for name, part in traced.items():
        assert torch.allclose(part, retraced[name], atol=1e-4), name
    assert 0 < int((one > 0).sum()) < 20, "an attack that fools all or none shows nothing"


def test_restarts_never_help_the_defender() -> None:
    model, (x, label) = net(), images()
    row = rows(20, 2 / 255, label=label)
    attack, harm = PGD(Linf(), 3, 0.5), through(model)
    passes = [tuple(Stage(i) for i in range(n)) for n in (1, 4)]
    scores = [only(pursue(attack, harm, x, row, stages, slots=20, stop="never"))[1] for stages in passes]
    assert bool((scores[1] >= scores[0]).all()) and bool((scores[1] > scores[0]).any())


def test_watch_sees_every_step() -> None:
    model, (x, label) = net(), images(3)
    seen: list[Seen] = []
    attack, row = PGD(Linf(), 4, 0.25), rows(3, 0.02, label=label)
    pursue(attack, through(model), x, row, slots=8, stop="never", watch=seen.append)
    assert [s.step.tolist() for s in seen] == [[i, i, i] for i in range(4)]
    assert all(s.pixels.shape == (3, 3, 16, 16) and s.value.shape == (3,) and s.at.tolist() == [0, 1, 2] for s in seen)
    assert float(seen[-1].value.sum()) > float(seen[0].value.sum())


def test_bad_input_is_refused() -> None:
    harm, x = linear(torch.ones(3, 4, 4)), torch.rand(2, 3, 4, 4)
    with pytest.raises(PixelError, match=r"span \[-1, 1\].*drop Normalize"):
        check_pixels(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 2, 2))
    with pytest.raises(PixelError, match="uint8"):
        check_pixels(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    with pytest.raises(PixelError):
        check_pixels(torch.full((1, 3, 2, 2), float("nan")))
    with pytest.raises(ConfigError, match="8 slots"):
        pursue(PGD(Linf(), 1, 1), harm, x, rows(2, 0.1), slots=4)
    with pytest.raises(TrustError, match="inference_mode"), torch.inference_mode():
        pursue(PGD(Linf(), 1, 1), harm, x, rows(2, 0.1), slots=8)
    broken = Harm(harm.see, lambda out, rows, t: out["value"] * torch.inf, harm.score)
    with pytest.raises(TrustError, match="not finite"):
        pursue(PGD(Linf(), 1, 1), broken, x, rows(2, 0.1), slots=8, stop="never")
    with pytest.raises(ConfigError, match='"pgd"'):
        methods.build(records.Attack(method="pdg"))


@pytest.mark.parametrize("eps", [3.0, 10.0])
def test_l2_stays_in_its_ball_on_photographs(eps: float) -> None:
    """150,528 values: a length summed in float32 is off by more than the verifier allows."""
    x = torch.rand(2, 3, 224, 224, generator=draws.generator("photo"))
    moved = L2().project(x, x + torch.randn(x.shape, generator=draws.generator("far")) * 3, torch.full((2,), eps))
    length = (moved.double() - x.double()).flatten(1).norm(dim=1)
    assert float(length.max()) <= eps + 1e-6 * eps


@pytest.mark.parametrize("eps", [0.0, -0.01, 8.0])
def test_a_radius_that_is_none_is_refused(eps: float) -> None:
    with pytest.raises(ConfigError, match="eps"):
        methods.build(records.Attack(eps=eps))


@pytest.mark.parametrize("stop", ["lost", "never"])
def test_a_clean_score_that_is_no_number_is_refused(stop: str) -> None:
    """With NaN for a score nothing is active: the clean image would come back as if it had been attacked."""
    harm = linear(torch.ones(3, 4, 4))
    broken = Harm(harm.see, harm.push, lambda out, rows: out["value"] * torch.nan)
    with pytest.raises(TrustError, match="score of an image is not finite"):
        pursue(PGD(Linf(), 1, 1), broken, torch.rand(2, 3, 4, 4), rows(2, 0.1), slots=8, stop=stop)


def test_targets_raise_the_targeted_form_of_the_harm() -> None:
    (member,) = methods.build(records.Attack(push="ce", targets=3), classes=10)
    assert member.push == "ce_target" and [stage.target for stage in member.stages] == [0, 1, 2]
    (plain,) = methods.build(records.Attack(push="ce"), classes=10)
    assert plain.push == "ce"
