"""Iterates that are judged on the way: those of a plain loop, whatever the chunk, and no verdict changes for them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from judged_runs import small_weights
from torch.nn import functional

import holdfast
from holdfast.attacks.methods import settled, traced_steps
from holdfast.configs import BenchConfig
from holdfast.data.batches import batches
from holdfast.data.sources import images, open_source
from holdfast.errors import ConfigError, Interrupted
from holdfast.evaluation import keeping, plan
from holdfast.evaluation.curves import Subject, subjects
from holdfast.evaluation.step_curves import step_curves
from holdfast.evaluation.store import Run
from holdfast.models.checkpoint import load
from holdfast.models.encoder import frozen
from holdfast.records import Attack
from holdfast.signals import Stopping

EPS, STEPS = 4 / 255, 9
PGD = Attack(push="ce", eps=EPS, steps=STEPS, start="zero", traced=4)
DRIFT = Attack(through="embedding", push="mse", eps=EPS, steps=STEPS, traced=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_weights(tmp_path_factory.mktemp("weights"))


def bench(weights: Path, out: Path, **more: object) -> Run:
    fields = {"attacks": [PGD, DRIFT], "chunk": 8, "block": 20, "limit": 20, "fit_limit": 80, **more}
    return holdfast.bench(str(weights), out=str(out), data="scenes", corruptions=["none"], threads=1, **fields)


def cells(run: Run) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Outcomes by the head that was attacked and the judge."""
    found = [(r.cell.attack, r) for r in run.results]
    return {(a.through, r.cell.judge.task): run.outcomes(r.id) for a, r in found if a is not None}


@pytest.fixture(scope="module")
def traced(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return bench(weights, tmp_path_factory.mktemp("traced") / "run")


@pytest.mark.parametrize(
    ("steps", "traced", "expected"),
    [(20, 5, (0, 5, 10, 14, 19)), (9, 4, (0, 3, 5, 8)), (3, 9, (0, 1, 2)), (7, 1, (0,))],
)
def test_steps_are_spread_from_the_first_look_to_the_last(steps: int, traced: int, expected: tuple[int, ...]) -> None:
    assert traced_steps(Attack(steps=steps, traced=traced)) == expected


def test_iterates_are_those_of_a_plain_loop(weights: Path, traced: Run) -> None:
    encoder = load(weights)
    source = open_source(images("scenes", split="test", limit=20))
    (batch,) = batches(source, size=20)
    x, label, alpha = batch.pixels, batch.rows["label"], max(2.5 * EPS / STEPS, EPS / 4)
    found = cells(traced)["classification", "classification"]
    place = {name: at for at, name in enumerate(found["id"].tolist())}
    order = [place[name] for name in batch.ids]
    pixels, gone = x, np.zeros(20, dtype=bool)
    with frozen(encoder):
        for step in range(STEPS):
            with torch.no_grad():
                right = (encoder.logits(pixels).argmax(1) == label).numpy()
            gone |= ~right  # a row that is lost leaves, and stays lost
            if step in traced_steps(PGD):
                seen = found["step_correct"][order, traced_steps(PGD).index(step)]
                assert np.array_equal(seen, ~gone), step
            pixels = pixels.detach().requires_grad_()
            loss = functional.cross_entropy(encoder.logits(pixels), label, reduction="sum")
            moved = pixels.detach() + alpha * torch.autograd.grad(loss, pixels)[0].sign()
            pixels = (x + (moved - x).clamp(-EPS, EPS)).clamp(0, 1)
    assert 0 < found["step_correct"][:, -1].sum() < found["step_correct"][:, 0].sum(), (
        "the curve falls, and not to zero"
    )


def test_an_embedding_is_followed_under_every_attack(traced: Run) -> None:
    for through in ("classification", "embedding"):
        found = cells(traced)[through, "embedding"]
        assert found["step_l2"].shape == (20, 4) and found["step_knn_correct"].dtype == bool
    drift = cells(traced)["embedding", "embedding"]["step_l2"].mean(0)
    assert drift[-1] > drift[1] > drift[0] > 0, "EmbedAttack goes ever further"
    start = cells(traced)["classification", "embedding"]["step_l2"][:, 0]
    assert np.abs(start).max() < 1e-5, "the first look of PGD from the clean image is at the clean image"


def test_no_verdict_depends_on_tracing_and_no_curve_on_the_chunk(weights: Path, traced: Run, tmp_path: Path) -> None:
    bare = [msgspec.structs.replace(attack, traced=0) for attack in (PGD, DRIFT)]
    without, other = (
        cells(bench(weights, tmp_path / "a", attacks=bare)),
        cells(bench(weights, tmp_path / "b", chunk=16)),
    )
    for name, whole in cells(traced).items():
        assert not any(outcome.startswith("step_") for outcome in without[name])
        for outcome, values in without[name].items():
            assert np.array_equal(values, whole[outcome]), outcome
        for outcome in [n for n in whole if n.startswith("step_")]:
            assert np.allclose(whole[outcome], other[name][outcome], atol=1e-4), outcome


def test_stopped_in_the_middle_the_curve_is_the_undisturbed_one(
    weights: Path, traced: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "LOOK_S", 0.0)
    looks, resumed = [0], [0]

    def check(self: Stopping, done: str) -> None:
        looks[0] += 1
        if looks[0] % 11 == 0:
            raise Interrupted("stopped", next="again")

    kept = keeping.Kept.load

    def loaded(self: keeping.Kept, name: str):  # type: ignore[no-untyped-def]
        held = kept(self, name)
        resumed[0] += held is not None and bool(held["steps/looked"].any())
        return held

    monkeypatch.setattr(Stopping, "check", check)
    monkeypatch.setattr(keeping.Kept, "load", loaded)
    for _ in range(60):
        try:
            again = cells(bench(weights, tmp_path / "stopped"))
            break
        except Interrupted:
            continue
    assert resumed[0] >= 2, "it was never stopped inside an attack"
    for name, whole in cells(traced).items():
        for outcome, values in whole.items():
            assert np.array_equal(values, again[name][outcome]), (name, outcome)


@pytest.mark.parametrize(
    "change", [{"method": "autoattack", "push": ""}, {"restarts": 2}, {"method": "sea", "through": "segmentation"}]
)
def test_what_goes_in_several_passes_is_not_traced(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"to be traced.*one start"):
        settled(Attack(traced=3, **change))


def test_where_nothing_can_be_traced_it_is_said() -> None:
    asked = BenchConfig(encoders=("e",), tasks=("classification",), methods=("autoattack",), traced=3)
    with pytest.raises(ConfigError, match=r"no attack goes through its ball in one pass.*--methods pgd"):
        plan.settled(asked)
    usual = plan.settled(BenchConfig(encoders=("e",), traced=3))  # and the suite has attacks at no other radius
    assert {a.traced for a in plan.at_protocol(usual, BenchConfig(encoders=("e",), traced=3), 32).attacks} == {3}


def test_curves_have_an_interval_at_every_step(traced: Run) -> None:
    (subject,) = subjects([traced])
    assert isinstance(subject, Subject)
    (own,) = [c for c in step_curves(subject, "classification", "accuracy") if c.through == "classification"]
    values = [m.value for m in own.metrics]
    assert own.steps == (0, 3, 5, 8) and values == sorted(values, reverse=True)
    assert all(m.low is not None and m.low <= m.value <= m.high and m.n == 20 for m in own.metrics)
    page = holdfast.report(traced.folder).read_text()
    assert "Over the steps of an attack" in page and "on embedding MSE" in page
