"""Square against the truth (a linear functional), its peer, then the promises of every attack."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from holdfast import draws
from holdfast.attacks.balls import BALLS
from holdfast.attacks.executor import Found, Seen, Stage, pursue
from holdfast.attacks.harm import Harm
from holdfast.attacks.scores import margin
from holdfast.attacks.square import Square
from holdfast.attacks.square_l2 import eta
from holdfast.attacks.square_windows import halvings, sides, windows
from holdfast.errors import ConfigError

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 6.0}
NORMS = sorted(EPS)
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
N = 20


def rows(n: int, eps: float, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"key": draws.keys([f"image/{i}" for i in range(n)]), "eps": torch.full((n,), eps), **more}


def refused(out, rows, t):
    raise AssertionError("Square asked for what is raised; it needs the score alone")


def linear(weight: torch.Tensor) -> Harm:
    return Harm(lambda x: {"value": (x * weight).flatten(1).sum(1)}, refused, lambda out, rows: out["value"])


def net(levels: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    """A small net; with `levels`, of pixels rounded to so many, which leaves no gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 16, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(16 * 9, 10),
        ).eval()
    return lambda x: model((x * levels).round() / levels if levels else x)


def through(model: Callable[[torch.Tensor], torch.Tensor]) -> Harm:
    return Harm(lambda x: {"logits": model(x)}, refused, lambda out, rows: margin(out["logits"], rows["label"]))


def images(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, 3, 16, 16, generator=draws.generator("images"))
    with torch.no_grad():
        return x, net()(x).argmax(1)


# -- the truth ---------------------------------------------------------------------------------------------------------


DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
SMALL = {"linf": 0.05, "l2": 0.2, "l1": 0.3}


def shares(norm: str, steps: int, weight: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """How much of its optimum, eps times the dual norm of the weight, a linear functional is raised by: [8]."""
    x, harm, eps = torch.full((8, *weight.shape), 0.5), linear(weight), SMALL[norm]
    found = pursue(Square(BALLS[norm], steps, seed), harm, x, rows(8, eps), slots=8, stop="never")
    gain = found.score - harm.score(harm.see(x), {})
    return gain / (eps * float(torch.linalg.vector_norm(weight.flatten(), DUAL[norm])))


@pytest.mark.parametrize(
    ("norm", "steps", "least", "mean"), [("linf", 1000, 0.9, 0.95), ("l2", 1000, 0.4, 0.5), ("l1", 300, 0.4, 0.7)]
)
def test_linear_functional_is_raised_towards_its_optimum(norm: str, steps: int, least: float, mean: float) -> None:
    """Linf reaches it. The patterns of L2 and L1 are smooth and at least 3 x 3: white weights they cannot follow."""
    found = shares(norm, steps, torch.randn(3, 8, 8, generator=draws.generator("weight")))
    assert float(found.min()) >= least and float(found.mean()) >= mean, found
    assert float(found.max()) <= 1 + 1e-5


@pytest.mark.parametrize("norm", NORMS)
def test_linear_functional_is_raised_as_far_as_by_the_peer(norm: str) -> None:
    """Mean over 24 runs, not more than two of its standard errors below the peer's."""
    peer = pytest.importorskip("pyautoattack.square").SquareAttack
    weight, x = torch.randn(3, 10, 10, generator=draws.generator("weight")), torch.full((8, 3, 10, 10), 0.5)
    ours = torch.cat([shares(norm, 100, weight, seed) for seed in range(3)])
    value, theirs = linear(weight).see, []
    for seed in range(3):
        # As a classifier with one other class: its margin is the functional, far from being lost.
        attack = peer(
            lambda x: torch.stack((1000 - value(x)["value"], torch.zeros(len(x))), 1),
            norm=NAMES[norm],
            n_queries=100,
            eps=SMALL[norm],
            device="cpu",
        )
        attack.init_hyperparam(x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, adversarial = attack.attack_single_run(x.clone(), torch.zeros(8, dtype=torch.int64))
        theirs.append(value(adversarial)["value"] - value(x)["value"])
    best = SMALL[norm] * float(torch.linalg.vector_norm(weight.flatten(), DUAL[norm]))
    other = torch.cat(theirs) / best
    error = float((ours.var() / len(ours) + other.var() / len(other)).sqrt())
    assert float(ours.mean() - other.mean()) > -2 * error, (ours, other)


@pytest.mark.parametrize("norm", NORMS)
def test_every_proposal_is_in_ball_and_box_and_the_best_never_falls(norm: str) -> None:
    model, (x, label) = net(), images()
    x = x.where(x > 0.3, 0).where(x < 0.7, 1)
    seen: list[Seen] = []
    found = pursue(
        Square(BALLS[norm], 60),
        through(model),
        x,
        rows(N, EPS[norm], label=label),
        slots=N,
        stop="never",
        watch=seen.append,
    )
    for look in seen:
        assert float(BALLS[norm].norm(look.pixels.double() - x[look.at].double()).max()) <= EPS[norm] * (1 + 2e-6)
        assert float(look.pixels.min()) >= 0 and float(look.pixels.max()) <= 1
    best = torch.stack([look.score for look in seen]).cummax(0).values
    assert bool((found.score >= best[-1]).all())
    # Every proposal grows from the best so far: outside its windows it shows the best that was seen before.
    if norm == "linf":
        shown, top = seen[0].pixels, seen[0].score
        for look in seen[1:]:
            changed = (look.pixels != shown).any(1)
            assert bool((changed.flatten(1).sum(1) > 0).all()), "a look was wasted"
            side = torch.maximum(changed.any(2).sum(1), changed.any(1).sum(1))
            assert int(side.max()) <= max(sides(0.8, 16, 16, odd=False))
            better = look.score > top
            shown = torch.where(better.view(-1, 1, 1, 1), look.pixels, shown)
            top = torch.maximum(top, look.score)


def test_length_is_used_up_in_l2() -> None:
    """In the middle of the box nothing is clamped, and every proposal is as long as the radius."""
    x, seen = torch.full((8, 3, 16, 16), 0.5), []
    harm = linear(torch.randn(3, 16, 16, generator=draws.generator("weight")))
    pursue(Square(BALLS["l2"], 40), harm, x, rows(8, 0.5), slots=8, stop="never", watch=seen.append)
    length = torch.stack([BALLS["l2"].norm(look.pixels - x) for look in seen])
    assert torch.allclose(length, torch.full_like(length, 0.5), rtol=2e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_photographs_stay_in_the_ball(norm: str) -> None:
    """150,528 values: sums in float32 must not carry a proposal over the radius that the verifier allows."""
    x = torch.rand(1, 3, 224, 224, generator=draws.generator("photo")).expand(8, -1, -1, -1)
    eps, seen = {"l2": 3.0, "l1": 20.0}[norm], []
    harm = linear(torch.randn(3, 224, 224, generator=draws.generator("weight")))
    pursue(Square(BALLS[norm], 3), harm, x, rows(8, eps), slots=8, stop="never", watch=seen.append)
    for look in seen:
        order = 2 if norm == "l2" else 1
        length = torch.linalg.vector_norm((look.pixels.double() - x.double()).flatten(1), order, dim=1)
        assert float(length.max()) <= eps * (1 + 1e-6)


# -- the schedule and the patterns -------------------------------------------------------------------------------------


def test_schedule_is_the_published_one() -> None:
    """p is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 looks, scaled to the steps."""
    count = torch.tensor([0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2001, 4001, 6001, 8000, 8001, 9999])
    expected = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 8, 9, 9]
    assert halvings(count, 10_000).tolist() == expected
    assert halvings(torch.tensor([5, 6, 4000, 4001]), 5000).tolist() == [0, 1, 8, 9]
    assert sides(0.8, 32, 32, odd=False) == (29, 20, 14, 10, 7, 5, 4, 3, 2, 1)
    assert sides(0.8, 32, 32, odd=True) == (29, 21, 15, 11, 7, 5, 5, 3, 3, 3)
    assert sides(0.8, 8, 16, odd=True)[:2] == (8, 7)


def test_windows_reach_every_corner_evenly() -> None:
    n, side = 4000, torch.tensor([3]).repeat(4000)
    words = draws.words(torch.arange(n), torch.zeros(n, dtype=torch.int64), 2)
    (window,) = windows(words, side, 3, 6, 5)
    assert torch.bincount(window.top.flatten(), minlength=4).tolist() == pytest.approx(
        [n / 4] * 4, abs=4 * math.sqrt(n)
    )
    assert torch.bincount(window.left.flatten(), minlength=3).tolist() == pytest.approx(
        [n / 3] * 3, abs=4 * math.sqrt(n)
    )


@pytest.mark.parametrize(("norm", "order"), [("L2", 2), ("L1", 1)])
def test_patterns_are_those_of_the_peer(norm: str, order: int) -> None:
    peer = pytest.importorskip("pyautoattack.square").SquareAttack(None, norm=norm, eps=1.0, device="cpu")
    for side in (2, 3, 4, 5, 6, 7, 11, 29, 44):
        with torch.random.fork_rng(devices=[]):
            theirs, ours = peer.eta(side), eta(side, order)
        assert min(float((theirs - ours).abs().max()), float((theirs - ours.T).abs().max())) < 1e-6
        assert float(torch.linalg.vector_norm(ours, order)) == pytest.approx(1, abs=1e-5)
    assert eta(1, order).tolist() == [[-1.0]]


# -- the peer ----------------------------------------------------------------------------------------------------------

QUERIES, PICTURES = 120, 100


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 4 / 255), ("l2", 0.75), ("l1", 12.0)])
def test_as_strong_as_the_peer_on_a_real_net(norm: str, eps: float, real: Callable[[str], Path]) -> None:
    """Both are random and see the same images: a mean over three seeds may differ by three standard errors of its
    difference, and at least by one image in a hundred."""
    pytest.importorskip("pyautoattack")
    x, label, logits = cifar(real)
    row = rows(len(x), eps, label=label)
    ours, theirs = [], []
    for seed in range(3):
        found = pursue(Square(BALLS[norm], QUERIES, seed), through(logits), x, row, slots=50)
        ours.append((found.score <= 0).float())
        theirs.append(peer_survivors(logits, x, label, norm, eps, seed).float())
    one, two = torch.stack(ours), torch.stack(theirs)
    # Per image, survival is drawn anew by every seed: the variance of its mean, summed over the images.
    spread = float((one.var(0) + two.var(0)).sum() / 3) ** 0.5
    difference = float((one.mean(0) - two.mean(0)).sum())
    assert difference <= max(3 * spread, len(x) / 100), (difference, spread)
    assert 0.2 * len(x) < float(one.sum(1).mean()) < 0.9 * len(x), "an attack that fools all or none shows nothing"


def cifar(real: Callable[[str], Path]) -> tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Images that the net has right, with their labels and the net."""
    from holdfast.data.batches import batches
    from holdfast.data.sources import images as named
    from holdfast.data.sources import open_source
    from holdfast.models.checkpoint import load

    encoder = load(str(real("weights") / "cifar10_resnet20.th"), arch="cifar_resnet20").eval().requires_grad_(False)
    source = open_source(named(f"cifar10:{real('cifar10_lossless')}", split="test", limit=PICTURES, subset="first"))
    parts = list(batches(source, size=50))
    x, label = torch.cat([p.pixels for p in parts]), torch.cat([p.rows["label"] for p in parts]).long()
    right = encoder.logits(x).argmax(1) == label
    return x[right], label[right], encoder.logits


def peer_survivors(
    logits: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    label: torch.Tensor,
    norm: str,
    eps: float,
    seed: int,
) -> torch.Tensor:
    from pyautoattack.square import SquareAttack

    attack = SquareAttack(logits, norm=NAMES[norm], n_queries=QUERIES, eps=eps, seed=seed, device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return logits(attack.perturb(x.contiguous(), label)).argmax(1) == label


# -- the promises ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["lost", "never"])
@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_do_not_depend_on_slots_or_order(norm: str, stop: str) -> None:
    """With refilled slots rows are at different steps and restarts, so that windows of one batch differ in size."""
    model, (x, label) = net(), images()
    row = rows(N, 0.4 * EPS[norm], label=label)

    def run(order: torch.Tensor, slots: int) -> Found:
        moved = {name: part[order] for name, part in row.items()}
        stages = (Stage(0), Stage(1))
        return pursue(Square(BALLS[norm], 30), through(model), x[order], moved, stages, slots=slots, stop=stop)

    one, order = run(torch.arange(N), N), torch.arange(N - 1, -1, -1)
    other = run(order, 8)
    assert torch.allclose(one.score, other.score[order], atol=1e-4)
    assert torch.equal(one.score > 0, other.score[order] > 0)
    assert torch.equal(one.trace["looks"], other.trace["looks"][order])
    assert 0 < int((one.score > 0).sum()) < N, "an attack that fools all or none shows nothing"


def test_seed_and_restart_draw_anew() -> None:
    model, (x, label) = net(), images()
    row = rows(N, 0.01, label=label)

    def score(seed: int, *stages: Stage) -> torch.Tensor:
        return pursue(Square(BALLS["linf"], 20, seed), through(model), x, row, stages, slots=N, stop="never").score

    first = score(0, Stage(0))
    assert torch.equal(first, score(0, Stage(0)))
    assert not torch.equal(first, score(1, Stage(0))) and not torch.equal(first, score(0, Stage(1)))
    assert bool((score(0, Stage(0), Stage(1)) >= first).all())


def test_carried_on_from_the_best() -> None:
    """A second stage that carries begins at the best of the first, and so never ends below it."""
    model, (x, label) = net(), images()
    seen: list[Seen] = []
    pursue(
        Square(BALLS["l2"], 12),
        through(model),
        x,
        rows(N, 0.3, label=label),
        (Stage(0), Stage(1, carry=True)),
        slots=N,
        stop="never",
        watch=seen.append,
    )
    best = torch.stack([look.score for look in seen[:12]]).amax(0)
    assert bool((seen[12].score >= best - 1e-4).all())


@pytest.mark.parametrize("norm", NORMS)
def test_victims_without_gradient_are_attacked(norm: str) -> None:
    """Pixels rounded to 16 levels: the gradient is zero everywhere, and Square never asks for one."""
    quantised, (x, _) = net(levels=15), images()
    with torch.no_grad():
        label = quantised(x).argmax(1)
    found = pursue(Square(BALLS[norm], 100), through(quantised), x, rows(N, 2 * EPS[norm], label=label), slots=N)
    assert int((found.score > 0).sum()) >= N // 2


def test_oblong_and_tiny_images() -> None:
    for h, w in ((4, 4), (9, 20), (31, 12)):
        harm, x = linear(torch.randn(3, h, w, generator=draws.generator(h))), torch.full((8, 3, h, w), 0.5)
        clean = harm.score(harm.see(x), {})
        for norm in NORMS:
            found = pursue(Square(BALLS[norm], 30), harm, x, rows(8, EPS[norm]), slots=8, stop="never")
            assert bool((found.score > clean).all())


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    pursue(Square(BALLS["l2"], 3), linear(torch.ones(3, 8, 8)), torch.full((8, 3, 8, 8), 0.5), rows(8, 0.1), slots=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_ball_that_it_does_not_know_is_refused() -> None:
    class Odd:
        pass

    with pytest.raises(ConfigError, match=r"no ball Odd.*Linf, L2, L1"):
        Square(Odd(), 3).start(linear(torch.ones(3, 4, 4)), torch.zeros(1, 3, 4, 4), rows(1, 0.1), Stage())  # type: ignore[arg-type]


def test_windows_may_keep_to_a_longer_schedule() -> None:
    """Of 5,000 queries under the schedule of 10,000 the last proposals have windows of the seventh halving."""
    search = Square(BALLS["linf"], steps=5000, schedule=10_000)
    assert halvings(torch.tensor([10, 11, 4999]), search.schedule or search.steps).tolist() == [0, 1, 7]
    assert halvings(torch.tensor([4999]), Square(BALLS["linf"], steps=5000).steps).tolist() == [9]
