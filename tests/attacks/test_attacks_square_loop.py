"""Square against the paper's loop, written out plainly: one image after the other, with the same draws."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast import draws
from holdfast.attacks.balls import BALLS, Ball
from holdfast.attacks.executor import pursue
from holdfast.attacks.harm import Harm
from holdfast.attacks.scores import margin
from holdfast.attacks.square import SEARCHES, Square
from holdfast.attacks.square_l2 import eta

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 6.0}


def through(model: torch.nn.Module) -> Harm:
    return Harm(lambda x: {"logits": model(x)}, lambda *_: None, lambda out, rows: margin(out["logits"], rows["label"]))


def net() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 49, 10)
        ).eval()


class Drawn:
    """The words of one image at one step, one after the other, by Python's own integers."""

    def __init__(self, stream: int, step: int, lanes: int) -> None:
        self.words = draws.words(torch.tensor([stream]), torch.tensor([step]), lanes)[0].tolist()
        self.place = 0

    def word(self) -> int:
        self.place += 1
        return self.words[self.place - 1]

    def below(self, high: int) -> int:
        return self.word() * high // 2**31

    def signs(self, n: int) -> torch.Tensor:
        return self.of(self.word(), n)

    @staticmethod
    def of(word: int, n: int) -> torch.Tensor:
        return torch.tensor([1.0 if word >> i & 1 else -1.0 for i in range(n)]).view(n, 1, 1)


def share_after(i: int, steps: int, p: float) -> float:
    for bound, part in zip((8000, 6000, 4000, 2000, 1000, 500, 200, 50, 10), (512, 256, 128, 64, 32, 16, 8, 4, 2)):
        if i * 10_000 // steps > bound:
            return p / part
    return p


def pattern(side: int, order: int, turned: int) -> torch.Tensor:
    return eta(side, order).T if turned else eta(side, order)


def mass(part: torch.Tensor, order: int) -> torch.Tensor:
    return part.abs().pow(order).sum((1, 2), keepdim=True)


def plain_start(x: torch.Tensor, ball: Ball, norm: str, eps: float, stream: int) -> torch.Tensor:
    c, h, w = x.shape
    if norm == "linf":
        drawn = Drawn(stream, 0, c * w)
        sign = torch.tensor([[1.0 if drawn.word() & 1 else -1.0 for _ in range(w)] for _ in range(c)])
        return (x + eps * sign[:, None, :]).clamp(0, 1)
    order, side = {"l2": 2, "l1": 1}[norm], h // 5
    drawn, delta = Drawn(stream, 0, 2 * (h // side) * (w // side)), torch.zeros_like(x)
    for i in range(h // side):
        for j in range(w // side):
            top, left = h % side // 2 + i * side, w % side // 2 + j * side
            turned = drawn.word() & 1
            delta[:, top : top + side, left : left + side] = pattern(side, order, turned) * drawn.signs(c)
    if norm == "l2":
        return (x + eps * (1 - 1e-6) * delta / delta.norm()).clamp(0, 1)
    return ball.project(x[None], (x + delta)[None], torch.tensor([eps]))[0]


def plain_proposal(
    x: torch.Tensor, best: torch.Tensor, ball: Ball, norm: str, eps: float, p: float, drawn: Drawn
) -> torch.Tensor:  # parameters: what a proposal depends on
    c, h, w = x.shape
    side = max(round(math.sqrt(p * h * w)), 1)
    if norm == "linf":
        side = min(side, h, w)
        top, left = drawn.below(h + 1 - side), drawn.below(w + 1 - side)
        place = (slice(None), slice(top, top + side), slice(left, left + side))
        new, sign, others = best.clone(), drawn.signs(c), drawn.below(2**c - 1)
        new[place] = (x[place] + eps * sign).clamp(0, 1)
        if torch.equal(new, best):
            new[place] = (x[place] - eps * sign * drawn.of(1 + others, c)).clamp(0, 1)
        return new
    order, side = {"l2": 2, "l1": 1}[norm], min(max(side, 3) // 2 * 2 + 1, h, w)
    corners = [(drawn.below(h + 1 - side), drawn.below(w + 1 - side)) for _ in range(2)]
    one, two = [(slice(None), slice(top, top + side), slice(left, left + side)) for top, left in corners]
    delta, either = best - x, torch.zeros_like(x)
    either[one], either[two] = 1, 1
    new = pattern(side, order, drawn.word() & 1) * drawn.signs(c)
    new = new + delta[one] / (mass(delta[one], order) ** (1 / order) + 1e-12)
    radius = eps * (1 - 1e-6) if norm == "l2" else eps
    rest = max(radius**order - float(mass(delta, order).sum()), 0)
    length = (rest / c + mass(delta * either, order)) ** (1 / order)
    new = new / (mass(new, order) ** (1 / order) + 1e-12) * length
    delta[two] = 0
    delta[one] = new * (c if norm == "l1" else 1)
    if norm == "l2":
        return (x + delta).clamp(0, 1)
    return ball.project(x[None], (x + delta)[None], torch.tensor([eps]))[0]


def plain_square(harm: Harm, x: torch.Tensor, row: dict[str, torch.Tensor], norm: str, steps: int) -> torch.Tensor:
    """One image after the other: the best score of each, which is never below the clean one's."""
    ball, lanes, found = BALLS[norm], SEARCHES[type(BALLS[norm])].lanes, []
    for i in range(len(x)):
        mine = {name: part[i : i + 1] for name, part in row.items()}
        eps, stream = float(row["eps"][i]), draws.key("square", 0, 0, int(row["key"][i]))
        best = plain_start(x[i], ball, norm, eps, stream)
        with torch.no_grad():
            top = float(harm.score(harm.see(best[None]), mine))
            for step in range(steps):
                p = share_after(step, steps, 0.8)
                new = plain_proposal(x[i], best, ball, norm, eps, p, Drawn(stream, step + 1, lanes))
                score = float(harm.score(harm.see(new[None]), mine))
                if score > top:
                    best, top = new, score
            found.append(max(top, float(harm.score(harm.see(x[i : i + 1]), mine))))
    return torch.tensor(found)


@pytest.mark.parametrize("norm", sorted(EPS))
def test_executor_equals_the_plain_loop(norm: str) -> None:
    """Radii, and so verdicts, differ from row to row; ten rows in sixteen slots are padded."""
    harm, x = through(net()), torch.rand(10, 3, 16, 16, generator=draws.generator("images"))
    row = {"key": draws.keys([f"image/{i}" for i in range(10)]), "eps": EPS[norm] * torch.linspace(0.5, 1, 10)}
    with torch.no_grad():
        row["label"] = harm.see(x)["logits"].argmax(1)
        expected = plain_square(harm, x, row, norm, 40)
    found = pursue(Square(BALLS[norm], 40), harm, x, row, slots=16, stop="never")
    assert torch.allclose(found.score, expected, atol=2e-5)
