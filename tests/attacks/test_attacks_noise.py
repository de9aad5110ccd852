"""Noise: the draws are those that it promises, whoever else is in the batch, and the worst of them is kept."""

from __future__ import annotations

import pytest
import torch

from holdfast import draws
from holdfast.attacks.balls import BALLS, L2, Linf
from holdfast.attacks.executor import Seen, Stage, pursue
from holdfast.attacks.harm import Harm, Rows
from holdfast.attacks.noise import Noise
from holdfast.attacks.pgd import PGD

N, STEPS = 21, 6


def victim() -> Harm:
    """Two classes apart by a random plane; the gradient is cut, since noise has no use for it."""
    weight = torch.randn(3, 6, 6, generator=draws.generator("plane"), dtype=torch.float64)

    def value(out: Rows, rows: Rows, t: object = None) -> torch.Tensor:
        return out["value"].float() - rows["bar"]

    return Harm(see=lambda x: {"value": (x.detach() * weight).flatten(1).sum(1)}, push=value, score=value)


def rows(x: torch.Tensor, eps: float, quantile: float) -> dict[str, torch.Tensor]:
    bar = victim().see(x)["value"].float() + torch.linspace(-0.05, quantile, len(x))
    return {"key": draws.keys([str(i) for i in range(len(x))]), "eps": torch.full((len(x),), eps), "bar": bar}


def images(n: int = N) -> torch.Tensor:
    return torch.rand(n, 3, 6, 6, generator=draws.generator("noise images"))


def points(norm: str, x: torch.Tensor, row: dict[str, torch.Tensor], restart: int) -> list[torch.Tensor]:
    """What every image has to look at in one restart: a plain loop over images and steps."""
    steps = []
    for step in range(STEPS + 1):
        keys = torch.tensor([draws.key(int(k), restart, step) for k in row["key"]])
        steps.append(BALLS[norm].start(x, row["eps"], keys, "noise", 3))
    return steps


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_it_equals_the_plain_loop(norm: str) -> None:
    harm, x, eps = victim(), images(), {"linf": 0.05, "l2": 0.4, "l1": 3.0}[norm]
    row = rows(x, eps, 0.6)
    found = pursue(Noise(BALLS[norm], STEPS, 3), harm, x, row, (Stage(0), Stage(2)), slots=8)
    for i in range(N):
        pixels, score, looks = x[i], float(harm.score(harm.see(x[i : i + 1]), {"bar": row["bar"][i : i + 1]})), 0
        for point in [p for restart in (0, 2) for p in points(norm, x, row, restart)]:
            if score > 0:
                break
            looks += 1
            value = float(harm.score(harm.see(point[i : i + 1]), {"bar": row["bar"][i : i + 1]}))
            pixels, score = (point[i], value) if value >= score else (pixels, score)
        assert torch.equal(found.pixels[i], pixels) and float(found.score[i]) == score
        assert abs(looks - int(found.trace["looks"][i])) <= 2, "the last look of a stage is not counted"
    lost = int((found.score > 0).sum())
    assert int((found.trace["clean_score"] > 0).sum()) < lost < N, "noise that finds all or nothing shows nothing"


def test_points_do_not_depend_on_company() -> None:
    x, row = images(), rows(images(), 0.05, 0.6)
    seen: list[Seen] = []
    pursue(Noise(Linf(), STEPS, 3), victim(), x, row, (Stage(0), Stage(1)), slots=8, stop="never", watch=seen.append)
    truth = [points("linf", x, row, restart) for restart in (0, 1)]
    count = 0
    for look in seen:
        for at, stage, step, pixels in zip(*(part.tolist() for part in look[:3]), look.pixels, strict=True):
            assert torch.equal(pixels, truth[stage][step][at])
            count += 1
    assert count == N * 2 * STEPS
    flat = torch.stack([p[0].flatten() for p in truth[0] + truth[1]])
    assert len(flat.unique(dim=0)) == 2 * (STEPS + 1), "every look is a fresh point"


def test_it_needs_no_gradient_and_is_the_weaker_control() -> None:
    """On a linear victim the gradient reaches eps * |w|_2; a point of a high-dimensional ball is nearly orthogonal."""
    weight = torch.randn(3, 6, 6, generator=draws.generator("plane"))

    def value(out: Rows, rows: Rows, t: object = None) -> torch.Tensor:
        return out["value"]

    harm = Harm(see=lambda x: {"value": (x * weight).flatten(1).sum(1)}, push=value, score=value)
    x = torch.full((8, 3, 6, 6), 0.5)
    row = {"key": draws.keys([str(i) for i in range(8)]), "eps": torch.full((8,), 0.3)}
    gains = [
        pursue(attack, harm, x, row, slots=8, stop="never").score - value(harm.see(x), row)
        for attack in (Noise(L2(), 20), PGD(L2(), 20, 0.25))
    ]
    assert bool((gains[0] > 0).all()) and bool((gains[0] < 0.5 * gains[1]).all())
    blind = pursue(Noise(L2(), 20), victim(), x, {**row, "bar": torch.zeros(8)}, slots=8, stop="never")
    assert float(blind.trace["zero_gradients"].max()) == 0 and float(blind.trace["broken_gradients"].max()) == 0
