"""A pursuit that is stopped anywhere and taken up again comes to the same end, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from small_victim import ATTACK, SCHEDULE, images, same, victim

from holdfast.attacks.balls import Linf
from holdfast.attacks.cascade import Member, cascade
from holdfast.attacks.executor import Found, Stage, Stop, pursue
from holdfast.attacks.momentum import MomentumPGD
from holdfast.attacks.noise import Noise
from holdfast.attacks.pgd import PGD


class Stopped(Exception):
    """What a keep raises where a run is to stop."""


class Memory:
    """A keep that stops after so many offers; `lazy` = it keeps what is held only then."""

    def __init__(self, after: int, lazy: bool = False) -> None:
        self.held: dict[str, dict[str, torch.Tensor]] = {}
        self.after, self.lazy = after, lazy

    def load(self, name: str) -> Mapping[str, torch.Tensor] | None:
        return self.held.get(name)

    def offer(self, name: str, held: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        self.after -= 1
        if not self.lazy or self.after == 0:
            self.held[name] = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in held().items()}
        if self.after == 0:
            raise Stopped


MEMBERS = (
    Member("noise", Noise(Linf(), 2), "push", exact=True),
    Member("momentum", MomentumPGD(Linf(), 2, 0.2, begin="given"), "push", (Stage(radius=1.5), Stage(carry=True))),
    Member("pgd", PGD(Linf(), 3, 0.4), "push", (Stage(0), Stage(1, target=1))),
)


def run(stop: Stop, keep: Memory | None = None) -> Found:
    harm, (x, rows) = victim(), images(12)
    return cascade(MEMBERS, harm, {"push": harm.push}, x, rows, slots=8, stop=stop, keep=keep)


@pytest.mark.parametrize(("stop", "lazy"), [("lost", False), ("lost", True), ("nearest", True)])
def test_a_cascade_interrupted_anywhere_goes_on_to_the_same_end(stop: Stop, lazy: bool) -> None:
    whole, after, names = run(stop), 0, set()
    while True:
        after += 1
        keep = Memory(after, lazy)
        try:
            same(run(stop, keep), whole)
            break
        except Stopped:
            names |= set(keep.held)
            again, kept = Memory(0, lazy=True), {name: dict(held) for name, held in keep.held.items()}
            again.held, before = kept, {name: {k: v.clone() for k, v in held.items()} for name, held in kept.items()}
            same(run(stop, again), whole)
            for name, held in before.items():
                assert all(torch.equal(v, kept[name][k]) for k, v in held.items()), "what was kept is written over"
    assert after > 15 and names == {"0 noise", "1 momentum", "2 pgd"}, "interrupted within every member"
    assert len(set(whole.trace["member"].tolist()) - {-1}) >= 2, "more than one member finds something"


def test_a_cascade_interrupted_again_and_again_comes_to_the_same_end() -> None:
    keep, stops = Memory(0), 0
    while True:
        keep.after = 3
        try:
            found = run("lost", keep)
            break
        except Stopped:
            stops += 1
    same(found, run("lost"))
    assert stops > 5


@pytest.mark.parametrize(("before", "after"), [(16, 8), (8, 16), (20, 8)])
def test_a_pursuit_goes_on_with_other_slots(before: int, after: int) -> None:
    harm, (x, rows) = victim(), images()
    keep = Memory(7)
    with pytest.raises(Stopped):
        pursue(ATTACK, harm, x, rows, SCHEDULE, slots=before, keep=keep)
    same(
        pursue(ATTACK, harm, x, rows, SCHEDULE, slots=after, keep=keep),
        pursue(ATTACK, harm, x, rows, SCHEDULE, slots=8),
    )
