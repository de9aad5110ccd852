"""Exact robust accuracy on linear models: an image is lost just where its margin is less than eps * |w|_dual.

Away from the walls of the box a linear score rises by at most eps times the dual norm of its weights, and the best
perturbation reaches that, so that what a budget attack must find is known for every image.
"""

from __future__ import annotations

import pytest
import torch

from holdfast import draws
from holdfast.attacks.balls import L1, L2, Ball, Linf
from holdfast.attacks.executor import Attack, Stage, pursue
from holdfast.attacks.harm import Harm, Out, Rows
from holdfast.attacks.momentum import MomentumPGD
from holdfast.attacks.pgd import PGD
from holdfast.attacks.scores import cross_entropy, difference, margin

N, SIZE = 60, 5
# Radius, the ball whose step is the steepest, and the order of the dual norm.
CASES: dict[str, tuple[float, Ball, float]] = {
    "linf": (0.04, Linf(), 1),
    "l2": (0.2, L2(), 2),
    "l1": (0.25, L1(share=0.0), torch.inf),
}


def weights(classes: int) -> torch.Tensor:
    return torch.randn(classes, 3 * SIZE * SIZE, generator=draws.generator("linear", classes), dtype=torch.float64)


def victim(classes: int, dual: float, eps: float) -> tuple[Harm, torch.Tensor, dict[str, torch.Tensor]]:
    """Images in the middle of the box, and biases that spread their margins over [0, 2 * what eps can reach].

    Returns:
        The harm, the images, and rows with `best`, the highest score that the ball allows, and `reach`, the gain in it.
    """
    weight = weights(classes)
    x = 0.5 + 0.2 * (torch.rand(N, 3, SIZE, SIZE, generator=draws.generator("middle")) - 0.5)
    label = torch.arange(N) % classes
    logits = x.double().flatten(1) @ weight.T
    reach = eps * torch.linalg.vector_norm(weight[label][:, None] - weight, dual, dim=2)
    generator = draws.generator("margins", classes)
    # The nearest of many classes decides: the more there are, the farther each.
    wanted = reach * 2 * torch.rand(N, classes, generator=generator, dtype=torch.float64) ** (1 / (classes - 1))
    true = logits.gather(1, label[:, None])
    bias = (true - wanted - logits).scatter(1, label[:, None], 0.0)
    order = (logits + bias).scatter(1, label[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
    rows = {"key": draws.keys([str(i) for i in range(N)]), "eps": torch.full((N,), eps), "label": label}
    rows |= {"bias": bias, "ranked": order}

    def push(out: Out, rows: Rows, t: torch.Tensor) -> torch.Tensor:
        logits = out["logits"] + rows["bias"]
        if "target" in rows:
            return difference(logits, rows["label"], rows["target"])
        return cross_entropy(logits, rows["label"])

    harm = Harm(
        see=lambda pixels: {"logits": pixels.double().flatten(1) @ weight.T},
        push=push,
        score=lambda out, rows: margin(out["logits"] + rows["bias"], rows["label"]).float(),
    )
    best, chosen = (logits + bias - true + reach).scatter(1, label[:, None], -torch.inf).max(1)
    return harm, x, {**rows, "best": best, "reach": reach.gather(1, chosen[:, None]).squeeze(1)}


@pytest.mark.parametrize("kind", [PGD, MomentumPGD])
@pytest.mark.parametrize("norm", sorted(CASES))
@pytest.mark.parametrize("classes", [2, 5])
def test_robust_accuracy_is_that_of_the_closed_form(classes: int, norm: str, kind: type[PGD | MomentumPGD]) -> None:
    eps, ball, dual = CASES[norm]
    harm, x, rows = victim(classes, dual, eps)
    # Two classes need no target: cross-entropy and margin point the same way.
    stages = tuple(Stage(target=k) for k in range(classes - 1)) if classes > 2 else (Stage(),)
    attack: Attack = kind(ball, 30, 0.25)
    verdicts = pursue(attack, harm, x, rows, stages, slots=16, stop="lost").score > 0
    far = rows["best"].abs() > 0.01 * rows["reach"]
    assert torch.equal(verdicts[far], (rows["best"] > 0)[far])
    assert int(far.sum()) >= N - 5 and 10 <= int(verdicts.sum()) <= N - 10, "margins on both sides of the boundary"
    found = pursue(attack, harm, x, rows, stages, slots=16, stop="never")
    assert bool(((found.pixels > 0) & (found.pixels < 1)).all()), "the box is not to bind here"
    short = (rows["best"] - found.score) / rows["reach"]
    assert float(short.max()) < 1e-3
    assert float(short.min()) > -1e-6, "more than the ball allows"


def test_the_share_of_a_step_is_what_l1_gives_up() -> None:
    """Equal weights on the largest values reach their mean, not the largest: the exact step is for linear victims."""
    eps, _, dual = CASES["l1"]
    harm, x, rows = victim(2, dual, eps)
    short = []
    for share in (0.0, 0.1):
        found = pursue(PGD(L1(share), 30, 0.25), harm, x, rows, slots=16, stop="never")
        short.append(float(((rows["best"] - found.score) / rows["reach"]).mean()))
    assert short[0] < 1e-3 < 0.02 < short[1]
