"""The executor: every row fares as it would in a plain loop of its own, whatever becomes of the others."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from small_victim import ATTACK, SCHEDULE, N, images, part, same, victim

from holdfast import draws
from holdfast.attacks.balls import L2, Linf
from holdfast.attacks.board import fitting
from holdfast.attacks.cascade import Member, cascade
from holdfast.attacks.executor import Found, Seen, Stage, State, pursue
from holdfast.attacks.harm import Harm, Out, Rows
from holdfast.attacks.momentum import MomentumPGD
from holdfast.attacks.noise import Noise
from holdfast.attacks.pgd import PGD
from holdfast.attacks.scores import cross_entropy
from holdfast.errors import TrustError


def alone(
    harm: Harm, x: torch.Tensor, row: Rows, stages: Sequence[Stage], stop: str
) -> tuple[torch.Tensor, dict[str, float]]:
    """PGD on one image, [1, 3, h, w], written out plainly: what is kept, its score and trace."""
    clean = float(harm.score(harm.see(x), row))
    kept, nearest, carried = x, torch.inf, None
    trace = {"score": clean, "clean_score": clean, "start_score": -torch.inf, "early_score": clean, "looks": 0}

    def look(adv: torch.Tensor, value: float, inside: bool) -> bool:
        nonlocal kept, nearest
        distance = float((adv - x).abs().max())
        better = value > 0 and distance <= nearest if stop == "nearest" else value >= trace["score"]
        if inside and better:
            kept, trace["score"], nearest = adv, value, distance
        return stop == "lost" and trace["score"] > 0

    def attacked(stage: Stage) -> torch.Tensor | None:
        """The last iterate of a stage; None = the image rests."""
        eps, inside, steps = float(row["eps"] * stage.radius), stage.radius <= 1, stage.looks(ATTACK.steps)
        here = {**row, "target": row["ranked"][:, stage.target]} if stage.target >= 0 else row
        noise = torch.rand(x.shape[1:], generator=draws.generator("linf", "pgd", 0, stage.restart, int(row["key"])))
        adv = (carried if carried is not None and stage.carry else x + (2 * noise - 1) * eps).clamp(0, 1)
        adv = (x + (adv - x).clamp(-eps, eps)).clamp(0, 1) if stage.carry else adv
        for step in range(steps):
            adv.requires_grad_()
            out = harm.see(adv)
            (gradient,) = torch.autograd.grad(harm.push(out, here, torch.zeros(1)).sum(), adv)
            adv, value = adv.detach(), float(harm.score(out, here).detach())
            trace["looks"] += 1
            if step == 0 and inside:
                trace["start_score"] = max(trace["start_score"], value)
            rests = look(adv, value, inside)
            if step + 1 <= 0.75 * steps:
                trace["early_score"] = trace["score"]
            if rests:
                return None
            adv = adv + torch.tensor(ATTACK.relative_step) * torch.tensor(eps) * gradient.sign()
            adv = (x + (adv - x).clamp(-eps, eps)).clamp(0, 1)
        return None if look(adv, float(harm.score(harm.see(adv), here)), inside) else adv

    for stage in stages if clean <= 0 or stop == "never" else ():
        carried = attacked(stage)
        if carried is None:
            break
    if trace["start_score"] == -torch.inf:
        trace["start_score"] = clean
    return kept, trace


PASSES: dict[str, tuple[Stage, ...]] = {
    "restarts": (Stage(0), Stage(1)),
    "targets": tuple(Stage(restart=k, target=k) for k in range(3)),
    "schedule": SCHEDULE,
    "shares": (Stage(share=0.4), Stage(carry=True, share=0.6)),
}


@pytest.mark.parametrize("stop", ["lost", "never", "nearest"])
@pytest.mark.parametrize("kind", sorted(PASSES))
def test_every_row_equals_a_plain_loop_of_its_own(kind: str, stop: str) -> None:
    harm, (x, rows), stages = victim(), images(), PASSES[kind]
    found = pursue(ATTACK, harm, x, rows, stages, slots=8, stop=stop)
    for i in range(N):
        at = slice(i, i + 1)
        pixels, trace = alone(harm, x[at], {k: v[at] for k, v in rows.items()}, stages, stop)
        assert torch.allclose(found.pixels[at], pixels, atol=1e-7), i
        assert float(found.score[i]) == pytest.approx(trace.pop("score"), abs=2e-6), i
        for name, value in trace.items():
            assert float(found.trace[name][i]) == pytest.approx(value, abs=2e-6), (i, name)
    clean = found.trace["clean_score"] > 0
    assert 0 < int(clean.sum()) < int((found.score > 0).sum()) < N, "rows of every fate"


@pytest.mark.parametrize("kind", sorted(PASSES))
@pytest.mark.parametrize("slots", [8, 20, 37, 64])
def test_nothing_depends_on_slots_order_or_company(kind: str, slots: int) -> None:
    harm, (x, rows), stages = victim(), images(), PASSES[kind]
    truth = pursue(ATTACK, harm, x, rows, stages, slots=8)
    order = draws.permutation(N, "order", slots)
    moved = pursue(ATTACK, harm, x[order], part(rows, order), stages, slots=slots)
    back = order.argsort()
    same(truth, Found(moved.pixels[back], moved.score[back], part(moved.trace, back)))
    for at in (torch.tensor([7]), torch.tensor([1, 12, 20])):
        few = pursue(ATTACK, harm, x[at], part(rows, at), stages, slots=slots)
        same(few, Found(truth.pixels[at], truth.score[at], part(truth.trace, at)))


@pytest.mark.parametrize("stop", ["lost", "nearest"])
def test_what_a_wider_stage_finds_is_a_start_and_no_outcome(stop: str) -> None:
    harm, (x, rows), seen = victim(), images(), []
    found = pursue(ATTACK, harm, x, rows, SCHEDULE, slots=8, stop=stop, watch=seen.append)
    norm = (found.pixels - x).flatten(1).abs().amax(1)
    assert bool((norm <= rows["eps"] + 1e-7).all())
    wide = {int(i) for look in seen for i, s, v in zip(look.at, look.stage, look.score, strict=True) if s < 2 and v > 0}
    kept = {int(i) for i in (found.score <= 0).nonzero()}
    assert wide & kept, "a row that only a wider stage loses is robust"
    only_wide = pursue(ATTACK, harm, x, rows, SCHEDULE[:2], slots=8, stop=stop)
    assert torch.equal(only_wide.pixels, x) and torch.equal(only_wide.score, only_wide.trace["clean_score"])
    assert torch.equal(only_wide.trace["start_score"], only_wide.trace["clean_score"])


def test_carry_is_no_given_start() -> None:
    """A given start stays what it was given as, for the stages that do not carry on."""
    harm, (x, rows) = victim(), images()
    begin = (x + rows["eps"].view(-1, 1, 1, 1) * torch.randn(x.shape, generator=draws.generator("given")).sign()).clamp(
        0, 1
    )
    attack, rows = PGD(Linf(), 3, 0.3, begin="given"), {**rows, "begin": begin}
    starts: dict[int, torch.Tensor] = {}

    def watch(look: Seen) -> None:
        for number, at, pixels in zip(
            look.stage[look.step == 0].tolist(), look.at[look.step == 0], look.pixels, strict=False
        ):
            starts[number] = starts.get(number, torch.zeros_like(x)).index_copy(0, at.view(1), pixels[None])

    pursue(attack, harm, x, rows, (Stage(), Stage(carry=True), Stage()), slots=24, stop="never", watch=watch)
    assert torch.equal(starts[0], starts[2]) and torch.allclose(starts[0], begin, atol=1e-7)
    assert not torch.allclose(starts[1], begin, atol=1e-4)


def climbing(need: Sequence[int]) -> tuple[Harm, torch.Tensor, dict[str, torch.Tensor], list[torch.Tensor]]:
    """Rows that are lost at a look of our choosing: the mean pixel rises by 0.01 a step, from 0.2; and what is seen."""
    seen: list[torch.Tensor] = []

    def see(x: torch.Tensor) -> Out:
        seen.append(x)
        return {"mean": x.flatten(1).mean(1)}

    def score(out: Out, rows: Rows, t: object = None) -> torch.Tensor:
        return out["mean"] - rows["bar"]

    n = len(need)
    rows = {"key": draws.keys([str(i) for i in range(n)]), "eps": torch.full((n,), 0.5)}
    rows["bar"] = 0.2 + 0.01 * torch.tensor(need) - 0.005
    return Harm(see, score, score), torch.full((n, 3, 2, 2), 0.2), rows, seen


RISE = PGD(Linf(), 20, 0.02, begin="zero")


@pytest.mark.parametrize("slots", [8, 16, 20, 37])
def test_passes_are_full_while_rows_wait(slots: int) -> None:
    need = torch.randint(0, 30, (150,), generator=draws.generator("need")).tolist()
    harm, x, rows, seen = climbing(need)
    passes: list[tuple[int, int]] = []
    found = pursue(RISE, harm, x, rows, slots=slots, watch=lambda look: passes.append((len(look.at), len(seen[-1]))))
    looks = torch.tensor([0 if k <= 0 else min(k + 1, 20) for k in need])
    assert torch.equal(found.trace["looks"].long(), looks)
    assert torch.equal(found.score > 0, torch.tensor(need) <= 20)
    waiting = sum(k > 0 for k in need) - slots
    assert passes[0] == (slots, slots)
    for live, _ in passes[: int(looks.sum()) // slots // 2]:
        assert waiting > 0 and live > 0.75 * slots, "a quarter is free and rows wait"
    assert all(size == fitting(size, slots) and size - live < max(8, 0.25 * slots) for live, size in passes)
    spent = sum(len(x) for x in seen)
    assert spent <= 1.35 * (int(looks.sum()) + 150 + sum(k >= 20 for k in need)), "most of the work is on live rows"
    assert {len(x) for x in seen} <= {fitting(k, slots) for k in range(1, slots + 1)}, "a few fixed sizes"


def test_the_number_of_passes_is_the_least_where_none_is_lost() -> None:
    harm, x, rows, seen = climbing([99] * 44)
    pursue(RISE, harm, x, rows, (Stage(0), Stage(1)), slots=16, stop="never")
    # 44 rows in passes of 16, 16 and 12, the last padded to 16: clean, and two stages of 20 steps and a last look.
    assert [len(x) for x in seen] == [16] * 3 + [16] * 42 * 3


def test_images_that_are_lost_clean_cost_one_pass() -> None:
    harm, x, rows, seen = climbing([-1] * 16)
    found = pursue(RISE, harm, x, rows, slots=16)
    assert [len(x) for x in seen] == [16]
    assert torch.equal(found.pixels, x) and bool((found.score > 0).all()) and int(found.trace["looks"].sum()) == 0
    harm, x, rows, seen = climbing([-1, 3])
    pursue(RISE, harm, x, rows, slots=64)
    assert {len(x) for x in seen} == {8}, "two images are not padded to 64"


@dataclass(frozen=True)
class Bounded(PGD):
    """PGD that has nothing to say beyond its last step."""

    def start(self, harm: Harm, x: torch.Tensor, rows: Rows, stage: Stage) -> State:
        return {**super().start(harm, x, rows, stage), "taken": torch.zeros_like(rows["key"])}

    def step(self, harm: Harm, x: torch.Tensor, rows: Rows, state: State, t: torch.Tensor) -> State:
        assert int(state["taken"].max()) < self.steps and float(t.max()) < 1, "stepped past its end"
        assert torch.allclose(t, state["taken"] / self.steps)
        return {**super().step(harm, x, rows, state, t), "taken": state["taken"] + 1}

    def finish(self, harm: Harm, x: torch.Tensor, rows: Rows, state: State) -> State:
        assert set(state["taken"].tolist()) == {self.steps}
        return super().finish(harm, x, rows, state)


def test_no_slot_is_stepped_past_its_end() -> None:
    """Slots whose row has left run on until they are filled: what lies in them must stay within the attack's steps."""
    need = [1, 2, 5, 99, 7, 99, 99, 3, 99, 1, 99, 4, 99, 99]
    for slots in (8, 14):
        harm, x, rows, _ = climbing(need)
        found = pursue(Bounded(Linf(), 6, 0.02, begin="zero"), harm, x, rows, tuple(map(Stage, range(4))), slots=slots)
        assert torch.equal(found.score > 0, torch.tensor(need) <= 6)


def test_images_keep_one_memory_layout() -> None:
    seen: list[torch.Tensor] = []
    x, rows = images()
    assert x.is_contiguous()
    for attack in (ATTACK, PGD(L2(), 4, 0.3), MomentumPGD(Linf(), 4, 0.3), Noise(Linf(), 4)):
        pursue(attack, victim(seen), x, rows, (Stage(0), Stage(1, carry=True)), slots=16)
    assert len(seen) > 40 and all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_no_global_generator_is_drawn_from() -> None:
    x, rows = images()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for attack in (ATTACK, Noise(L2(), 4)):
        pursue(attack, victim(), x, rows, (Stage(0), Stage(1)), slots=8)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and np.random.get_state()[1].tolist() == before[2]


def test_a_loss_that_float32_denies_is_none() -> None:
    """The coarse victim is three steps ahead of the exact one, whose word counts: rows are lost when that agrees."""
    need = [3, 9, 21, 99, 5, 22, 12, 1, 0, 23, -1, 4]
    harm, x, rows, _ = climbing(need)
    rough = dataclasses.replace(harm, see=lambda x: {"mean": harm.see(x)["mean"] + 0.03}, exact=harm.see)
    for slots in (8, 12):
        truth, found = (pursue(RISE, h, x, rows, slots=slots) for h in (harm, rough))
        assert torch.equal(found.score > 0, truth.score > 0) and torch.equal(found.trace["looks"], truth.trace["looks"])
        lost = truth.score > 0
        assert torch.equal(found.pixels[lost], truth.pixels[lost]) and torch.equal(found.score[lost], truth.score[lost])
        assert torch.equal(found.trace["clean_score"], truth.trace["clean_score"]), "clean images are judged exactly"
    alone = pursue(RISE, dataclasses.replace(rough, exact=None), x, rows, slots=8)
    assert (alone.score > 0).sum() == (truth.score > 0).sum() + 3, "21 to 23 steps are lost by the coarse one's word"


def test_looks_at_a_randomised_victim_are_averaged() -> None:
    """Passes are off by +0.05, -0.05, ... in turn: any pair averages to the truth, in gradient and verdict alike."""
    need, state = [3, 9, 99, 22, 5, 99, 12, 99, 99], [0]
    plain, x, rows, _ = climbing(need)

    def noisy(x: torch.Tensor) -> Out:
        state[0] += 1
        off = 0.05 if state[0] % 2 else -0.05
        return {"mean": plain.see(x)["mean"] * (1 + 10 * off) + off}

    harm = dataclasses.replace(plain, see=noisy, samples=2)
    truth = pursue(RISE, plain, x, rows, slots=8)
    for averaged in (
        harm,
        dataclasses.replace(harm, exact=noisy),
        dataclasses.replace(harm, see=plain.see, exact=noisy),
    ):
        found = pursue(RISE, averaged, x, rows, slots=8)
        assert torch.allclose(found.score, truth.score, atol=1e-6) and torch.allclose(found.pixels, truth.pixels)
        assert torch.equal(found.trace["looks"], truth.trace["looks"])
    lucky = pursue(RISE, dataclasses.replace(harm, samples=1), x, rows, slots=8)
    assert int((lucky.score > 0).sum()) > int((truth.score > 0).sum()), "one lucky pass loses a row"


def test_gradients_that_are_no_numbers_are_counted_and_do_not_stop() -> None:
    harm, (x, rows) = victim(), images()
    broken, flat = torch.arange(N) % 4 == 1, torch.arange(N) % 4 == 2
    rows |= {"broken": broken, "flat": flat}

    def push(out: Out, rows: Rows, t: torch.Tensor) -> torch.Tensor:
        value = cross_entropy(out["logits"], rows["label"])
        zero = value - value.detach()
        root = torch.where(rows["broken"], zero, 1).sqrt()
        return torch.where(rows["flat"], value * 0, value) + torch.where(rows["broken"], root, 0)

    sick = dataclasses.replace(harm, push=push)
    found = pursue(ATTACK, sick, x, rows, slots=8, stop="never")
    assert found.trace["broken_gradients"].tolist() == broken.float().tolist()
    assert found.trace["zero_gradients"].tolist() == (broken | flat).float().tolist()
    well = pursue(ATTACK, harm, x, rows, slots=8, stop="never")
    assert torch.equal(found.pixels[~(broken | flat)], well.pixels[~(broken | flat)])


def test_a_score_that_is_no_number_stops() -> None:
    """In the middle of an attack, where the clean images were judged in order."""
    harm, x, rows, _ = climbing([99] * 8)

    def score(out: Out, rows: Rows) -> torch.Tensor:
        return (out["mean"] - rows["bar"]).where(out["mean"] < 0.25, torch.nan)

    with pytest.raises(TrustError, match="score of an image is not finite"):
        pursue(RISE, dataclasses.replace(harm, score=score), x, rows, slots=8)


def test_a_cascade_watches_by_the_position_of_the_row() -> None:
    harm, (x, rows) = victim(), images()
    seen: list[Seen] = []
    members = (Member("pgd", ATTACK, "push"), Member("momentum", MomentumPGD(Linf(), 4, 0.3), "push"))
    found = cascade(members, harm, {"push": harm.push}, x, rows, slots=8, watch=seen.append)
    for look in seen:
        assert bool(((look.pixels - x[look.at]).flatten(1).abs().amax(1) <= rows["eps"][look.at] + 1e-6).all())
        assert torch.allclose(harm.score(harm.see(look.pixels), part(rows, look.at)), look.score, atol=1e-6)
    second = {int(i) for look in seen[-4:] for i in look.at}
    assert second and all(found.trace["looks"][i] > ATTACK.steps for i in second)
    assert torch.bincount(torch.cat([look.at for look in seen]), minlength=N).tolist() == found.trace["looks"].tolist()
