"""FAB against the truth (linear classifiers), a plain loop, AutoAttack's own, then the executor's promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fab_cases import INF, NORMS, PEER, closed_form, images, known, linear, nearest, net, solved, through

from holdfast import draws
from holdfast.attacks.balls import BALLS
from holdfast.attacks.cascade import Member, cascade
from holdfast.attacks.executor import Stage, pursue
from holdfast.attacks.fab import FAB, SEARCHES
from holdfast.attacks.scores import margin
from holdfast.data.batches import batches
from holdfast.data.sources import images as images_of
from holdfast.data.sources import open_source
from holdfast.models.checkpoint import load
from holdfast.models.encoder import frozen
from holdfast.tasks.classification import Classification
from holdfast.tasks.task import victim

Real = Callable[[str], Path]


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("norm", NORMS)
def test_linear_distances_are_the_closed_form(norm: str, classes: int) -> None:
    """Grey images and little noise: the box is far away. Untargeted, and towards every class in turn."""
    weight, bias = linear(classes)
    x = 0.5 + 0.02 * torch.randn(8, 3, 4, 4, generator=draws.generator("grey"))
    harm, best = through(lambda p: p.flatten(1) @ weight.T + bias), closed_form(weight, bias, x, norm)
    every = tuple(Stage(target=rank) for rank in range(classes - 1))
    for stages in ((Stage(),), every):
        found = nearest(norm, harm, x, stages, steps=10)
        distance = BALLS[norm].norm(found.pixels - x)
        assert bool((found.score > 0).all())
        assert bool((distance >= best * (1 - 1e-4)).all()), "nearer than possible: the oracle is wrong"
        assert bool((distance <= best * 1.05).all())
        assert float((distance / best).median()) < 1.001, "the final search finds a linear boundary"


@pytest.mark.parametrize("norm", NORMS)
def test_linear_distances_where_the_box_binds(norm: str) -> None:
    """Half of all values lie at an end of the box, and the five classes are far away."""
    weight, bias = linear(5)
    x = (torch.rand(8, 3, 4, 4, generator=draws.generator("box")) * 2 - 0.5).clamp(0, 1)
    harm = through(lambda p: p.flatten(1) @ weight.T + bias)
    best = torch.tensor([solved(weight, bias, one, norm) for one in x])
    free = closed_form(weight, bias, x, norm)
    assert bool((best > free * 1.02).any()), "the box does not bind"
    distance = BALLS[norm].norm(nearest(norm, harm, x, steps=30).pixels - x)
    assert bool((distance >= best * (1 - 1e-4)).all()) and bool((distance <= best * 1.05).all())


@pytest.mark.parametrize("norm", NORMS)
def test_robust_accuracy_of_a_linear_classifier_is_exact(norm: str) -> None:
    """Lost are exactly those whose boundary lies inside the radius, be it by a thousandth."""
    weight, bias = linear(5)
    x = 0.5 + 0.02 * torch.randn(16, 3, 4, 4, generator=draws.generator("grey"))
    harm, best = through(lambda p: p.flatten(1) @ weight.T + bias), closed_form(weight, bias, x, norm)
    row = known(harm, x, 1.0)
    row["eps"] = best * torch.tensor([1.001, 0.999]).repeat(8)
    found = pursue(FAB(BALLS[norm], steps=20), harm, x, row, slots=8, stop="lost")
    assert (found.score > 0).tolist() == [True, False] * 8
    assert bool((BALLS[norm].norm(found.pixels - x) <= row["eps"] * (1 + 1e-6)).all())


# -- a plain loop ------------------------------------------------------------------------------------------------------


def plain_shift(x: torch.Tensor, weight: torch.Tensor, rise: float, norm: str) -> torch.Tensor:
    """Projection of one image by bisection: on the common level (Linf, L2), on the smallest weight that moves (L1)."""
    sign = weight.sign() * (-1 if rise < 0 else 1)
    gain, room = weight.abs().double(), torch.where(sign > 0, 1 - x, x).double() * (weight != 0)
    low, high = 0.0, {"linf": 1.0, "l2": 1e9, "l1": float(gain.max())}[norm]

    def moved(level: float) -> torch.Tensor:
        if norm == "l1":
            return room * (gain > level)
        return torch.minimum(level * (gain if norm == "l2" else torch.ones_like(gain)), room)

    for _ in range(200):
        middle = (low + high) / 2
        enough = float((gain * moved(middle)).sum()) >= abs(rise)
        if enough == (norm == "l1"):
            low = middle
        else:
            high = middle
    move = moved(high)
    if norm == "l1":  # one value moves in part
        part = (gain > low) & (gain <= high)
        left = abs(rise) - float((gain * move).sum())
        move = move + part * room * min(1.0, left / max(float((gain * room * part).sum()), 1e-30))
    return (sign * move).to(x)


def plain_fab(
    see: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, row: dict[str, torch.Tensor], norm: str, steps: int
) -> tuple[torch.Tensor, float]:
    """The paper's loop over one image, written out plainly: the nearest lost iterate and its distance."""
    label, targets = int(row["label"]), row.get("target", row["ranked"])
    order, dual = {"linf": (INF, 1), "l2": (2, 2), "l1": (1, INF)}[norm]
    best, distance, seen = x, INF, x
    for _ in range(steps):
        at = seen.clone().requires_grad_()
        logits = see(at[None])[0]
        choices = []
        for other in targets.reshape(-1).tolist():
            value = logits[other] - logits[label]
            (normal,) = torch.autograd.grad(value, at, retain_graph=True)
            choices.append((float(value.detach().abs() / torch.linalg.vector_norm(normal, dual)), value, normal))
        _, level, normal = min(choices, key=lambda choice: choice[0])
        value = float(level.detach())
        near = plain_shift(seen, normal, -value, norm)
        own = plain_shift(x, normal, -value - float((normal * (x - seen)).sum()), norm)
        one, two = float(torch.linalg.vector_norm(near, order)), float(torch.linalg.vector_norm(own, order))
        alpha = min(one / (one + two), 0.1)
        seen = ((1 - alpha) * (seen + 1.05 * near) + alpha * (x + 1.05 * own)).clamp(0, 1)
        if float(margin(see(seen[None]).detach(), row["label"].view(1))) > 0:
            away = float(torch.linalg.vector_norm(seen - x, order))
            if away < distance:
                best, distance = seen, away
            seen = x + 0.9 * (seen - x)
    inner, outer = x, best
    for _ in range(SEARCHES if distance < INF else 0):
        deep, high = (float(margin(see(p[None]).detach(), row["label"].view(1))) for p in (inner, outer))
        between = inner + (0.95 * deep / (deep - high) + 0.05) * (outer - inner)
        if float(margin(see(between[None]).detach(), row["label"].view(1))) > 0:
            outer = between
        else:
            inner = between
    return outer, float(torch.linalg.vector_norm(outer - x, order))


@pytest.mark.parametrize("target", [-1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_executor_equals_the_plain_loop(norm: str, target: int) -> None:
    model, x = net(), images(8)
    harm = through(model)
    row = known(harm, x, INF)
    found = nearest(norm, harm, x, (Stage(target=target),), steps=6)
    distance = BALLS[norm].norm(found.pixels - x)
    for i in range(8):
        one = {name: part[i] for name, part in row.items()}
        if target >= 0:
            one["target"] = row["ranked"][i, target]
        pixels, plain = plain_fab(model, x[i], one, norm, 6)
        assert float(distance[i]) == pytest.approx(plain, rel=1e-3), i
        assert torch.allclose(found.pixels[i], pixels, atol=2e-3 * plain), i


# -- the peer ----------------------------------------------------------------------------------------------------------


def theirs(  # parameters: those of the peer
    model: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    label: torch.Tensor,
    norm: str,
    eps: float,
    ranks: int,
    steps: int = 100,
) -> tuple[torch.Tensor, torch.Tensor]:
    """AutoAttack's FAB: pixels of the nearest lost image, and the distance, infinite where none is; 0 = untargeted."""
    peer = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT
    attack = peer(
        model, norm=PEER[norm], n_iter=steps, eps=eps if eps < INF else None, device="cpu", targeted=ranks > 0
    )
    attack.n_target_classes = ranks
    best, distance = x.clone(), torch.full((len(x),), INF)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for target in range(2, 2 + max(ranks, 1)) if eps == INF else (None,):
            attack.target_class = target
            single = target is not None
            pixels = attack.attack_single_run(x, label, is_targeted=ranks > 0) if single else attack.perturb(x, label)
            away = BALLS[norm].norm(pixels - x).where(margin(model(pixels), label) > 0, INF)
            best = torch.where((away < distance).view(-1, 1, 1, 1), pixels, best)
            distance = torch.minimum(away, distance)
    return best, distance


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_as_near_as_the_peer(norm: str, ranks: int) -> None:
    """A small net: the final search is ours alone, so that no median may be larger."""
    model, x = net(), images(8)
    harm = through(model)
    row = known(harm, x, INF)
    _, peer = theirs(model, x, row["label"], norm, INF, ranks, steps=30)
    stages = tuple(Stage(target=rank) for rank in range(ranks)) or (Stage(),)
    distance = BALLS[norm].norm(nearest(norm, harm, x, stages, steps=30).pixels - x)
    assert 0.95 * float(peer.median()) <= float(distance.median()) <= 1.001 * float(peer.median())
    assert bool((distance <= peer * 1.05).all())


@pytest.mark.parametrize(("norm", "eps", "ranks"), [("linf", 1 / 255, 3), ("l2", 0.25, 3), ("linf", 0.5 / 255, 0)])
@pytest.mark.slow
def test_as_strong_as_the_peer_on_a_published_net(real: Real, norm: str, eps: float, ranks: int) -> None:
    """ResNet-20: at most one more robust image of 200, towards three classes in turn; untargeted of 24."""
    n = 200 if ranks else 24
    encoder = load(str(real("weights") / "cifar10_resnet20.th"), arch="cifar_resnet20")
    source = open_source(images_of(f"cifar10:{real('cifar10_lossless')}", split="test", limit=n, subset="first"))
    parts = list(batches(source, size=50))
    x = torch.cat([part.pixels for part in parts])
    rows = {name: torch.cat([part.rows[name] for part in parts]) for name in parts[0].rows}
    task = Classification(known=10)
    stages = tuple(Stage(target=rank) for rank in range(ranks)) or (Stage(),)
    with victim(encoder, task, "margin") as harm:
        row = {**rows, "eps": torch.full((n,), eps), **task.aims(harm.see(x), rows, seed=0)}
        members = (Member("fab", FAB(BALLS[norm]), "margin_target", stages),)
        lost = cascade(members, harm, task.pushes, x, row).score > 0
    with frozen(encoder):
        _, distance = theirs(encoder.logits, x, rows["label"], norm, eps, ranks)
    assert int((~lost).sum()) <= int((distance > eps * (1 + 1e-6)).sum()) + 1
    assert int((~lost).sum()) >= int((distance > eps * (1 + 1e-6)).sum()) - 4


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.slow
def test_distances_of_the_peer_on_a_published_net(real: Real, norm: str) -> None:
    """ResNet-20, towards the likeliest class, 50 images: as many found, and the median within 5 %.

    In L1 the median is that of the ratios, image by image: the distances lie far apart, so that a single image moves
    their own median by 7 %, while the paths of two programs part at the first rounding.
    """
    encoder = load(str(real("weights") / "cifar10_resnet20.th"), arch="cifar_resnet20")
    source = open_source(images_of(f"cifar10:{real('cifar10_lossless')}", split="test", limit=50, subset="first"))
    (batch,) = batches(source, size=50)
    label = batch.rows["label"]
    with frozen(encoder):
        harm = through(encoder.logits)
        _, peer = theirs(encoder.logits, batch.pixels, label, norm, INF, 1)
        row = known(harm, batch.pixels, INF, label)
        attack = FAB(BALLS[norm])
        found = pursue(attack, harm, batch.pixels, row, (Stage(target=0),), slots=50, stop="nearest")
    distance = BALLS[norm].norm(found.pixels - batch.pixels).where(found.score > 0, INF)
    assert int((distance < INF).sum()) >= int((peer < INF).sum()) - 1
    if norm == "l1":
        both = (distance < INF) & (peer < INF) & (peer > 0)
        assert float((distance / peer)[both].median()) == pytest.approx(1, abs=0.05)
    else:
        assert float(distance.median()) == pytest.approx(float(peer.median()), rel=0.05)


# -- the executor's promises -------------------------------------------------------------------------------------------
