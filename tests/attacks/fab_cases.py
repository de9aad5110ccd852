"""Victims and closed forms that the tests of FAB share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from scipy.optimize import linprog, minimize

from holdfast import draws
from holdfast.attacks.balls import BALLS
from holdfast.attacks.executor import Found, Stage, pursue
from holdfast.attacks.fab import FAB
from holdfast.attacks.harm import Harm
from holdfast.attacks.scores import difference, margin

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
