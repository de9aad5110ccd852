"""FAB in the executor: rows with targets of their own, radii, restarts, given starts, averaged passes, refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fab_cases import INF, images, known, linear, nearest, net, through

from holdfast.attacks.balls import BALLS
from holdfast.attacks.executor import Found, Seen, Stage, pursue
from holdfast.attacks.fab import FAB, OUTSIDE
from holdfast.attacks.hyperplane import plane
from holdfast.errors import ConfigError, TrustError


@pytest.mark.parametrize("stop", ["lost", "nearest"])
def test_verdicts_do_not_depend_on_slots_or_order(stop: str) -> None:
    model, x = net(), images(20)
    harm = through(model)
    eps = 0.008 if stop == "lost" else INF
    row = known(harm, x, eps)
    stages = (Stage(target=0), Stage(restart=1), Stage(target=1))

    def run(order: torch.Tensor, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        moved = {name: part[order] for name, part in row.items()}
        found = pursue(FAB(BALLS["linf"], steps=5), harm, x[order], moved, stages, slots=slots, stop=stop)
        back = order.argsort()
        return found.score[back], BALLS["linf"].norm(found.pixels[back] - x)

    one, near = run(torch.arange(20), 20)
    other, far = run(torch.arange(19, -1, -1), 8)
    assert torch.equal(one > 0, other > 0) and torch.allclose(one, other, atol=1e-4)
    assert torch.allclose(near, far, rtol=1e-3)
    if stop == "lost":
        assert 0 < int((one > 0).sum()) < 20, "an attack that fools all or none shows nothing"
        assert bool((near <= eps).all())


def test_rows_of_one_batch_have_their_own_targets() -> None:
    """Half of a batch untargeted, the others aimed: each moves as it does among its like."""
    model, x = net(), images(8)
    harm, attack = through(model), FAB(BALLS["l2"])
    row = known(harm, x, INF)
    row["target"] = row["ranked"][:, 4]
    t = torch.zeros(8)
    aimed = attack.start(harm, x, row, Stage(target=4))
    free = attack.start(harm, x, row, Stage())
    half = torch.arange(8) < 4

    def mixed(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return torch.where(half.view(-1, *[1] * (one.ndim - 1)), one, two)

    both = {name: mixed(aimed[name], free[name]) for name in aimed}
    for _ in range(4):
        aimed, free, both = (attack.step(harm, x, row, state, t) for state in (aimed, free, both))
        for name, part in both.items():
            assert torch.allclose(part.float(), mixed(aimed[name], free[name]).float(), atol=1e-5), name
    assert not torch.allclose(aimed["pixels"][half], free["pixels"][half], atol=1e-4)


def test_what_lies_outside_the_radius_is_no_outcome() -> None:
    model, x = net(), images(8)
    harm = through(model)
    free = BALLS["l2"].norm(nearest("l2", harm, x, steps=10).pixels - x)
    seen: list[Seen] = []
    row = known(harm, x, 0.8 * float(free.min()))
    attack = FAB(BALLS["l2"], steps=10)
    found = pursue(attack, harm, x, row, slots=8, stop="lost", watch=seen.append)
    assert bool((found.score <= 0).all())
    assert bool((BALLS["l2"].norm(found.pixels - x) <= row["eps"]).all())
    looked = torch.stack([part.score for part in seen])
    assert bool((looked == OUTSIDE).any()) and bool(torch.isfinite(looked).all())


def test_the_final_search_only_comes_nearer() -> None:
    model, x = net(), images(16)
    harm, seen = through(model), list[Seen]()
    row = known(harm, x, INF)
    found = pursue(FAB(BALLS["l2"], steps=5), harm, x, row, slots=16, stop="nearest", watch=seen.append)
    away = torch.stack([BALLS["l2"].norm(part.pixels - x).where(part.score > 0, INF) for part in seen]).amin(0)
    distance = BALLS["l2"].norm(found.pixels - x)
    assert bool((distance <= away).all()) and bool((distance < 0.999 * away).any())
    assert found.trace["looks"].tolist() == [5.0] * 16


def test_random_restarts_are_keyed_and_help() -> None:
    """They begin within half the radius, or half the authors' default one where there is none.

    This net has hardly a gradient at the clean images, and so no hyperplane within reach of them.
    """
    model, x = net(), (images(16) * 50).floor() / 50 + 0.01
    harm, ball = through(lambda p: model(p + (100 * torch.pi * p).sin() / (100 * torch.pi))), BALLS["linf"]
    row = known(harm, x, 0.02)

    def run(restarts: int, seed: int) -> Found:
        stages = tuple(Stage(i) for i in range(restarts))
        return pursue(FAB(ball, steps=6, seed=seed), harm, x, row, stages, slots=8, stop="nearest")

    one, two, same, other = run(1, 0), run(3, 0), run(3, 0), run(3, 1)
    assert torch.equal(two.pixels, same.pixels) and not torch.equal(two.pixels, other.pixels)
    assert int((one.score > 0).sum()) < 4 < 8 < int((two.score > 0).sum())
    start = ball.norm(FAB(ball).start(harm, x, row, Stage(restart=1))["pixels"] - x)
    assert float(start.min()) > 0.009 and float(start.max()) <= 0.01 + 1e-6
    start = ball.norm(FAB(ball).start(harm, x, known(harm, x, INF), Stage(restart=1))["pixels"] - x)
    assert float(start.min()) > 0.14 and float(start.max()) <= plane(ball).reach / 2 + 1e-6


def test_it_goes_on_from_a_given_start() -> None:
    """Four steps, and four more from there, find what lies nearer than four steps alone."""
    model, x = net(), images(16)
    harm = through(model)
    four = BALLS["l1"].norm(nearest("l1", harm, x, steps=4).pixels - x)
    more = BALLS["l1"].norm(nearest("l1", harm, x, (Stage(), Stage(carry=True)), steps=4).pixels - x)
    assert bool((more <= four).all()) and bool((more < 0.99 * four).any())


@pytest.mark.parametrize("target", [-1, 0])
def test_passes_are_averaged(target: int) -> None:
    """A victim whose logits are turn and turn about larger and smaller is, on average, the plain one."""
    model, x = net(), images(8)
    turn = [1.0]

    def noisy(pixels: torch.Tensor) -> torch.Tensor:
        turn[0] = -turn[0]
        return model(pixels) * (1 + 0.5 * turn[0])

    stages = (Stage(target=target),)
    row = known(through(model), x, INF)
    plainly = pursue(FAB(BALLS["l2"], steps=4), through(model), x, row, stages, slots=8, stop="nearest")
    twice = pursue(FAB(BALLS["l2"], steps=4), through(noisy, 2), x, row, stages, slots=8, stop="nearest")
    assert torch.allclose(plainly.pixels, twice.pixels, atol=1e-4)


@pytest.mark.parametrize("target", [-1, 0])
def test_a_victim_without_gradient(target: int) -> None:
    """A zero gradient is counted, one that is not finite is too, and none at all is refused."""
    weight, bias = linear(3)
    x = images(8)[:, :, :4, :4]
    plainly = through(lambda p: p.flatten(1) @ weight.T + bias)
    stages, row = (Stage(target=target),), known(plainly, x, 0.1)

    def share(see: Callable[[torch.Tensor], torch.Tensor], name: str) -> float:
        found = pursue(FAB(BALLS["linf"], steps=3), through(see), x, row, stages, slots=8, stop="never")
        return float(found.trace[name].mean())

    assert share(lambda p: (p * 0).flatten(1) @ weight.T + 10 * torch.eye(3)[row["label"]], "zero_gradients") == 1
    assert share(lambda p: (p - p).sqrt().flatten(1) @ weight.T + torch.eye(3)[row["label"]], "broken_gradients") == 1
    with pytest.raises(TrustError, match="method square"):
        share(lambda p: p.detach().flatten(1) @ weight.T + bias, "zero_gradients")
    with pytest.raises(TrustError, match="not finite"):
        share(lambda p: (p.flatten(1) @ weight.T + bias) * (INF if p.requires_grad else 1.0), "zero_gradients")


def test_without_classes_it_says_so() -> None:
    model, x = net(), images(8)
    row = known(through(model), x, 0.1)
    del row["ranked"]
    with pytest.raises(ConfigError, match='rows\\["ranked"\\]'):
        pursue(FAB(BALLS["l2"], steps=2), through(model), x, row, slots=8)
