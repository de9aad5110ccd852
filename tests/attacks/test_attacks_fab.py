"""FAB against the truth (linear classifiers), a plain loop, AutoAttack's own, then the executor's promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from scipy.optimize import linprog, minimize

from holdfast import draws
from holdfast.attacks.balls import BALLS
from holdfast.attacks.cascade import Member, cascade
from holdfast.attacks.executor import Found, Seen, Stage, pursue
from holdfast.attacks.fab import FAB, OUTSIDE, SEARCHES
from holdfast.attacks.harm import Harm
from holdfast.attacks.hyperplane import plane
from holdfast.attacks.scores import difference, margin
from holdfast.data.batches import batches
from holdfast.data.sources import images as images_of
from holdfast.data.sources import open_source
from holdfast.errors import ConfigError, TrustError
from holdfast.models.checkpoint import load
from holdfast.models.encoder import frozen
from holdfast.tasks.classification import Classification
from holdfast.tasks.task import victim

Real = Callable[[str], Path]
NORMS = ("linf", "l2", "l1")
PEER = {"linf": "Linf", "l2": "L2", "l1": "L1"}
INF = float("inf")


def through(see: Callable[[torch.Tensor], torch.Tensor], samples: int = 1) -> Harm:
    return Harm(
        see=lambda x: {"logits": see(x)},
        push=lambda out, rows, t: difference(out["logits"], rows["label"], rows["target"]),
        score=lambda out, rows: margin(out["logits"], rows["label"]),
        samples=samples,
    )


def known(harm: Harm, x: torch.Tensor, eps: float, label: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Rows with the predicted label, and the other classes, the likeliest first."""
    with torch.no_grad():
        logits = harm.see(x)["logits"]
    label = logits.argmax(1) if label is None else label
    ranked = logits.scatter(1, label[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
    keys = draws.keys([f"image/{i}" for i in range(len(x))])
    return {"key": keys, "eps": torch.full((len(x),), eps), "label": label, "ranked": ranked}


def nearest(norm: str, harm: Harm, x: torch.Tensor, stages: Sequence[Stage] = (Stage(),), **fields: object) -> Found:
    return pursue(FAB(BALLS[norm], **fields), harm, x, known(harm, x, INF), stages, slots=8, stop="nearest")


# -- the truth ---------------------------------------------------------------------------------------------------------


def linear(classes: int, side: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = draws.generator("linear", classes, side)
    weight = torch.randn(classes, 3 * side * side, generator=generator) / side
    return weight, torch.randn(classes, generator=generator) * 0.02 - weight.sum(1) / 2


def closed_form(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, norm: str) -> torch.Tensor:
    """The distance to the nearest other class of a linear classifier, without the box: [b]."""
    logits = x.flatten(1) @ weight.T + bias
    label = logits.argmax(1)
    normal = weight[None] - weight[label][:, None]
    steep = torch.linalg.vector_norm(normal, {"linf": 1, "l2": 2, "l1": INF}[norm], dim=2)
    distance = (logits.gather(1, label[:, None]) - logits) / steep
    return distance.scatter(1, label[:, None], INF).amin(1)


def solved(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, norm: str) -> float:
    """The same for one image inside the box, by a linear program (Linf, L1) or a quadratic one (L2)."""
    point, best = x.flatten().double().numpy(), INF
    logits, n = weight @ x.flatten() + bias, x.numel()
    label, box = int(logits.argmax()), [(-p, 1 - p) for p in point]
    bounds = torch.cat([torch.eye(n), -torch.eye(n)])
    slack = {"linf": -torch.ones(2 * n, 1), "l1": -torch.eye(n).repeat(2, 1)}
    for other in set(range(len(weight))) - {label}:
        normal, rise = (weight[other] - weight[label]).double().numpy(), float(logits[label] - logits[other])
        if norm == "l2":
            constraint = {"type": "eq", "fun": lambda d: normal @ d - rise, "jac": lambda d: normal}  # noqa: B023
            begin, jac = normal * rise / (normal @ normal), lambda d: 2 * d
            found = minimize(lambda d: d @ d, begin, jac=jac, bounds=box, constraints=constraint, method="SLSQP")
            best = min(best, found.fun**0.5) if found.success else best
            continue
        more = slack[norm].shape[1]
        above = torch.cat([bounds, slack[norm]], 1).numpy()
        equal, cost = [[*normal, *[0.0] * more]], [0.0] * n + [1.0] * more
        spans = [*box, *[(0, None)] * more]
        found = linprog(cost, A_ub=above, b_ub=[0.0] * 2 * n, A_eq=equal, b_eq=[rise], bounds=spans)
        best = min(best, found.fun) if found.success else best
    return best


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


def images(n: int = 20) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=draws.generator("images"))


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


def theirs(
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
