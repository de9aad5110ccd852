"""Which attacks a record names: what each method stands for, beside its source."""

from __future__ import annotations

import pytest
import torch
from small_victim import images, victim

from holdfast import records
from holdfast.attacks.cascade import cascade
from holdfast.attacks.methods import METHODS, build
from holdfast.attacks.pgd import PGD
from holdfast.attacks.square import Square


def names(record: records.Attack) -> list[str]:
    return [member.name for member in build(record, classes=10)]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_coarse_precision_adds_a_gradient_only_where_there_was_one(method: str) -> None:
    through = METHODS[method].through[0]
    push = "ce" if through in ("classification", "segmentation") else "mse"
    record = records.Attack(method=method, through=through, push=push, precision="bf16")
    added = set(names(record)) - set(names(records.Attack(method=method, through=through, push=push)))
    assert added == ({"float32"} if METHODS[method].gradient else set())


def test_autoattack_is_the_published_one_in_every_norm() -> None:
    for norm, starts, targets in (("linf", 1, 9), ("l2", 1, 9), ("l1", 5, 5)):
        members = {m.name: m for m in build(records.Attack(method="autoattack", push="", norm=norm), classes=10)}
        assert list(members) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert len({s.restart for s in members["apgd-ce"].stages}) == starts
        assert len({s.target for s in members["apgd-t"].stages}) == targets
        assert len({s.target for s in members["fab-t"].stages}) == 9
        square = members["square"].attack
        assert isinstance(square, Square) and (square.steps, square.schedule) == (5000, 10_000)


def test_fgsm_begins_at_the_clean_image_and_ends_at_the_walls() -> None:
    (member,) = build(records.Attack(method="fgsm", eps=4 / 255), classes=10)
    assert isinstance(member.attack, PGD) and member.attack.begin == "zero"
    harm, (x, rows) = victim(), images()
    rows = {**rows, "eps": torch.full((len(x),), 4 / 255)}
    found = cascade((member,), harm, {"ce": harm.push}, x, rows, stop="never")
    inside = (x > 0.1) & (x < 0.9) & (found.pixels != x)
    assert bool(inside.any())
    torch.testing.assert_close((found.pixels - x).abs()[inside], torch.tensor(4 / 255).expand(int(inside.sum())))
    (drawn,) = build(records.Attack(method="fgsm", through="embedding", push="mse"), classes=0)
    assert isinstance(drawn.attack, PGD) and drawn.attack.begin == "random" and drawn.attack.relative_step == 1.25
