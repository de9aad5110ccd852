"""A small victim and its images, for the tests of the executor; what two outcomes have to share."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from holdfast import draws
from holdfast.attacks.balls import Linf
from holdfast.attacks.executor import Found, Stage
from holdfast.attacks.harm import Harm, Out, Rows
from holdfast.attacks.pgd import PGD
from holdfast.attacks.scores import cross_entropy, difference, margin

N, EPS = 22, 36 / 255
ATTACK = PGD(Linf(), 5, 0.3)
SCHEDULE = (Stage(radius=2.0), Stage(radius=1.5, carry=True), Stage(carry=True))


def victim(seen: list[torch.Tensor] | None = None) -> Harm:
    """A small net, float64 inside: batches of other sizes then differ by less than float32 pixels resolve."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3, stride=2),
            torch.nn.Tanh(),
            torch.nn.Conv2d(6, 8, 3, stride=2),
            torch.nn.Tanh(),
            torch.nn.Flatten(),
            torch.nn.Linear(32, 5),
        ).double()
    net.requires_grad_(False)

    def see(x: torch.Tensor) -> Out:
        if seen is not None:
            seen.append(x)
        return {"logits": net(x.double()).float()}

    def push(out: Out, rows: Rows, t: torch.Tensor) -> torch.Tensor:
        if "target" in rows:
            return difference(out["logits"], rows["label"], rows["target"])
        return cross_entropy(out["logits"], rows["label"])

    return Harm(see, push, lambda out, rows: margin(out["logits"], rows["label"]))


def images(n: int = N) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Images, most of them classified as their label says; budgets of their own."""
    x = torch.rand(n, 3, 12, 12, generator=draws.generator("executor"))
    logits = victim().see(x)["logits"]
    label = logits.argmax(1)
    label[3::9] = (label[3::9] + 1) % 5
    ranked = logits.scatter(1, label[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
    eps = EPS * torch.linspace(0.5, 1.5, n)
    return x, {"key": draws.keys([f"image/{i}" for i in range(n)]), "eps": eps, "label": label, "ranked": ranked}


def part(rows: Mapping[str, torch.Tensor], at: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: row[at] for name, row in rows.items()}


def same(one: Found, two: Found) -> None:
    assert torch.equal(one.pixels, two.pixels) and torch.equal(one.score, two.score)
    assert one.trace.keys() == two.trace.keys()
    for name, value in one.trace.items():
        assert torch.equal(value, two.trace[name]), name
