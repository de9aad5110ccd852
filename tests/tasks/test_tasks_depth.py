"""Depth as a task: what it refuses, what it reports, and that attacks through a head raise its error."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from holdfast import draws, records
from holdfast.attacks.balls import Linf
from holdfast.attacks.cascade import cascade
from holdfast.attacks.executor import Found, pursue
from holdfast.attacks.methods import build
from holdfast.attacks.pgd import PGD
from holdfast.data.batches import to_pixels
from holdfast.data.scenes import Scenes
from holdfast.errors import ConfigError, DataError
from holdfast.models.dense_heads import build_head, spec_for
from holdfast.models.encoder import Encoder
from holdfast.records import Data
from holdfast.tasks.depth import ENSEMBLE, Depth
from holdfast.tasks.depth_errors import MEASURES
from holdfast.tasks.task import DENSE, Dense, observe, seer, victim

N, SIDE = 10, 24
FAR = 10.0


class Fitted:
    """An encoder with a head that has seen the depth of some scenes, and other scenes."""

    def __init__(self) -> None:
        pixels, depth = scenes("train", 48)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            trunk = nn.Sequential(
                nn.Conv2d(3, 16, 5, 2, 2), nn.Tanh(), nn.Conv2d(16, 24, 3, 2, 1), nn.Tanh(), nn.Conv2d(24, 24, 3, 1, 1)
            )
            self.encoder = Encoder(trunk, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
            head = build_head(spec_for(self.encoder, "depth", "bins", ("patch",), outputs=32, far=FAR))
        self.task = Depth(head, max_depth=FAR)
        see, weights = seer(self.encoder, self.task), [*self.encoder.parameters(), *head.parameters()]
        adam = torch.optim.Adam(weights, 3e-3)
        for _ in range(60):
            adam.zero_grad()
            self.task.pushes["l2"](see(pixels), {"depth": depth}, torch.zeros(1)).mean().backward()
            adam.step()
        adam.zero_grad()
        self.pixels, self.depth = scenes("test", N)
        self.depth[:, :4, :4] = 0
        self.depth[3] = 0
        self.rows = {"key": draws.keys([str(i) for i in range(N)]), "depth": self.depth}

    def attacked(self, eps: float, push: str = "silog_gradient", task: Depth | None = None) -> Found:
        task = task or self.task
        with victim(self.encoder, task, push) as harm:
            rows = {**task.truth(self.pixels, self.rows, harm.see), "eps": torch.full((N,), eps)}
            return pursue(PGD(Linf(), 10, 0.25), harm, self.pixels, rows, slots=N, stop="never")


def scenes(split: str, n: int) -> tuple[Tensor, Tensor]:
    source = Scenes(Data(source="scenes", split=split, limit=n, size=SIDE))
    images = [source.read(i) for i in range(n)]
    pixels = torch.stack([torch.from_numpy(image.pixels) for image in images]).permute(0, 3, 1, 2)
    return to_pixels(pixels).contiguous(), torch.stack([torch.from_numpy(image.truth["depth"]) for image in images])


@functools.cache
def fitted() -> Fitted:
    return Fitted()


def metrics(task: Depth, found: dict[str, Tensor]) -> dict[str, float]:
    return {m.name: float(m.of(found[m.outcome].numpy().mean(0))) for m in task.measures() if m.of is not None}


def test_the_head_has_learned_something_to_lose() -> None:
    made = fitted()
    clean = metrics(made.task, observe(made.task, made.encoder, made.pixels, made.rows))
    counts = made.depth > 0
    constant = [float((d[c] - made.depth[counts].median()).square().mean().sqrt()) for d, c in zip(made.depth, counts)]
    assert clean["rmse"] < 0.9 * sum(value for i, value in enumerate(constant) if i != 3) / (N - 1)


def test_pgd_raises_the_error_and_more_so_with_epsilon() -> None:
    made = fitted()
    before, others = None, torch.arange(N) != 3
    for eps in (0.5 / 255, 2 / 255, 8 / 255):
        found = made.attacked(eps)
        score = found.score[others]
        lower = found.trace["clean_score"][others] if before is None else before
        assert bool((score > lower).all())
        before = score
    assert float((before / found.trace["clean_score"][others]).mean()) > 1.3


@pytest.mark.parametrize("push", ["silog", "l1_log", "l1", "l2", "near", "far", "silog_warmup", "gradient_one_axis"])
def test_every_harm_raises_the_error(push: str) -> None:
    found = fitted().attacked(8 / 255, push)
    assert float(found.score.mean()) > 1.1 * float(found.trace["clean_score"].mean())
    assert not found.trace["broken_gradients"].any()


def test_shifts_go_where_they_aim() -> None:
    made = fitted()
    see, counts = seer(made.encoder, made.task), made.depth > 0
    with torch.no_grad():
        clean, near, far = (
            see(x)["depth"][counts].mean()
            for x in (made.pixels, made.attacked(8 / 255, "near").pixels, made.attacked(8 / 255, "far").pixels)
        )
    assert near < clean - 0.2 and far > clean + 0.2


def test_an_image_where_nothing_was_measured_is_left_alone_and_counts_nowhere() -> None:
    made = fitted()
    found = made.attacked(8 / 255)
    assert found.score[3] == 0 and found.trace["broken_gradients"][3] == 0
    after = observe(made.task, made.encoder, found.pixels, made.rows)
    assert not any(after[name][3].any() for name in after)
    assert all(bool(torch.isfinite(part).all()) for part in after.values())


def test_clean_and_attacked_metrics_agree_to_the_bit_at_epsilon_zero() -> None:
    made = fitted()
    clean = observe(made.task, made.encoder, made.pixels, made.rows)
    found = made.attacked(0.0)
    after = observe(made.task, made.encoder, found.pixels, made.rows)
    assert torch.equal(found.pixels, made.pixels)
    assert clean.keys() == after.keys() and all(torch.equal(clean[name], after[name]) for name in clean)
    assert torch.allclose(after["rmse"], found.score, rtol=1e-6)


def test_the_same_pixels_count_whatever_is_predicted() -> None:
    made = fitted()
    clean = observe(made.task, made.encoder, made.pixels, made.rows)
    after = observe(made.task, made.encoder, made.attacked(8 / 255).pixels, made.rows)
    count = (made.depth > 0).flatten(1).sum(1)
    for found in (clean, after):
        assert found["errors"][:, 0].tolist() == found["scaled"][:, 0].tolist() == count.tolist()
    assert float(after["rmse"].mean()) > float(clean["rmse"].mean())


def test_the_score_is_the_outcome_and_the_first_value() -> None:
    made = fitted()
    with torch.no_grad():
        out = seer(made.encoder, made.task)(made.pixels)
    found, score = made.task.outcome(out, made.rows), made.task.score(out, made.rows)
    assert score.dtype == torch.float32 and score.shape == (N,) and torch.equal(score, found["rmse"])
    assert torch.allclose(found["values"][:, 0], score.double(), rtol=1e-6)
    assert {m.outcome for m in made.task.measures()} < found.keys()
    for name in ("errors", "values", "scaled", "scaled_values"):
        assert found[name].dtype == torch.float64 and found[name].shape == (N, 10)


def test_every_member_of_the_ensemble_raises_the_error_and_none_is_the_worst_by_every_metric() -> None:
    made = fitted()
    assert [(m.push, m.method) for m in made.task.ensemble] == [(push, "apgd") for push in ENSEMBLE]
    clean = observe(made.task, made.encoder, made.pixels, made.rows)["values"]
    each = []
    for member in made.task.ensemble:
        record = records.Attack(method=member.method, through="depth", push=member.push, eps=2 / 255, steps=8)
        with victim(made.encoder, made.task, member.push) as harm:
            rows = {**made.rows, "eps": torch.full((N,), record.eps)}
            found = cascade(build(record), harm, made.task.pushes, made.pixels, rows, slots=N, stop="never")
        each.append(observe(made.task, made.encoder, found.pixels, made.rows)["values"])
        assert bool((each[-1][:, 0] >= clean[:, 0] - 1e-6).all()) and each[-1][:, 0].mean() > clean[:, 0].mean() + 0.05
    others = torch.arange(N) != 3
    rmse, silog = (torch.stack(each)[:, others, i] for i in (0, 5))
    assert ENSEMBLE[int(rmse.mean(1).argmax())] == "l2" and ENSEMBLE[int(silog.mean(1).argmax())] == "silog_gradient"
    assert len(silog.argmax(0).unique()) > 1


def test_the_published_defects_understate_the_harm() -> None:
    """Full SILog with both axes raises the scale-invariant error further than what was run, on nearly every image."""
    made = fitted()
    others = torch.arange(N) != 3
    fixed, run = (
        observe(made.task, made.encoder, made.attacked(8 / 255, push).pixels, made.rows)["values"][others, 5]
        for push in ("silog_gradient", "published")
    )
    assert float((fixed > run).float().mean()) > 0.75 and float(fixed.mean()) > 1.05 * float(run.mean())


def test_a_crop_leaves_the_border_out_of_metrics_and_gradients() -> None:
    made = fitted()
    task = Depth(made.task.head, max_depth=FAR, crop="eigen")
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[45 * SIDE // 480 : 471 * SIDE // 480, 41 * SIDE // 640 : 601 * SIDE // 640] = True
    with torch.no_grad():
        depth = seer(made.encoder, task)(made.pixels)["depth"]
    counts = (made.depth > 0) & inside
    assert task.outcome({"depth": depth}, made.rows)["errors"][:, 0].tolist() == counts.flatten(1).sum(1).tolist()
    for push in task.pushes.values():
        seen = depth.clone().requires_grad_()
        (moved,) = torch.autograd.grad(push({"depth": seen}, made.rows, torch.zeros(N)).sum(), seen)
        assert not moved[:, ~inside].any()


def test_predictions_beyond_the_images_range_are_clamped_alike_everywhere() -> None:
    made = fitted()
    task = Depth(made.task.head, max_depth=5.0)
    out = {"depth": torch.full_like(made.depth, 9.0)}
    found = task.outcome(out, made.rows)
    counts = (made.depth > 0) & (made.depth <= 5)
    expected = [float((5 - d[c]).square().mean().sqrt()) if bool(c.any()) else 0 for d, c in zip(made.depth, counts)]
    assert found["rmse"].tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(task.score(out, made.rows), found["rmse"])
    assert task.pushes["l2"](out, made.rows, torch.zeros(N)).sqrt().tolist() == pytest.approx(expected, rel=1e-5)


def test_as_a_task() -> None:
    made = fitted()
    task = made.task
    assert isinstance(task, Dense) and task.level == DENSE and not task.stop and task.classes == 0
    assert task.modules() == (task.head,) and task.measures() == MEASURES and task.absent() == {}
    assert task.aims({}, {}, seed=0) == {}
    with pytest.raises(ConfigError, match="one vector"):
        task.read(made.encoder, torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_depth": 0.0}, "to 0 m"),
        ({"near": 0.0}, "from 0 "),
        ({"near": 20.0}, "from 20"),
        ({"crop": "eiger"}, "eigen"),
    ],
)
def test_refuses_what_cannot_be(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Depth(fitted().task.head, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "no depth"),
        ({"depth": torch.ones(2, 4, 5)}, r"depth \[2, 4, 5\] of pixels \[2, 3, 4, 4\]"),
        ({"depth": torch.full((2, 4, 4), -1.0)}, "negative"),
        ({"depth": torch.full((2, 4, 4), torch.nan)}, "not finite"),
    ],
)
def test_refuses_images_without_usable_depth(rows: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fitted().task.truth(torch.zeros(2, 3, 4, 4), rows, lambda pixels: {})
