"""What becomes of an image under attack depends on that image alone: every method, enrolled by its registry."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import msgspec
import pytest
import torch
from torch import Tensor

from holdfast import draws, records
from holdfast.attacks.cascade import cascade
from holdfast.attacks.executor import Found
from holdfast.attacks.methods import METHODS, build
from holdfast.models.encoder import Encoder
from holdfast.tasks.classification import Classification
from holdfast.tasks.task import victim

N, CLASSES = 24, 5
EPS = {"linf": 5 / 255, "l2": 0.35, "l1": 5.0}
STEPS = {"square": 25, "noise": 10, "fgsm": 1, "autoattack": 2, "fab": 3}
FURTHER = {"noise": 8, "square": 1.5}
"""Times the radius: what looks along no gradient finds little."""


@functools.cache
def made() -> tuple[Encoder, Tensor, Tensor, Classification]:
    """A small net with batch norm, images, and as labels what it says of them, but for two that are lost at once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        trunk = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 6, 3, 2)
        )
        trunk[1].running_var.fill_(0.3)
        encoder = Encoder(trunk, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        head = torch.nn.Linear(6, CLASSES)
    images = torch.rand(N, 3, 12, 12, generator=draws.generator("rows"))
    task = Classification(head.requires_grad_(False), known=CLASSES)
    with victim(encoder, task, "ce") as harm, torch.no_grad():
        label = harm.see(images)["logits"].argmax(1)
    label[5::12] = (label[5::12] + 1) % CLASSES
    return encoder, images, label, task


def cases() -> Iterator[records.Attack]:
    """Every method that attacks classification, in every ball that it knows; and each form with targets."""
    for name, method in METHODS.items():
        if "classification" not in method.through:
            continue
        for norm in method.norms:
            push = "" if method.pushes else "ce"
            attack = records.Attack(
                method=name, push=push, norm=norm, eps=EPS[norm] * FURTHER.get(name, 1), steps=STEPS.get(name, 6)
            )
            yield attack
            if norm == "linf" and not method.fixed and name not in ("noise", "fgsm"):
                yield msgspec.structs.replace(attack, targets=2)


def attacked(attack: records.Attack, order: Tensor, *, slots: int, stop: str = "lost") -> Found:
    """The images in some order, each with its own key and label; what was found, in that order."""
    encoder, images, label, task = made()
    rows = {"key": draws.keys([str(i) for i in range(N)])[order], "label": label[order]}
    rows["eps"] = torch.full((len(order),), attack.eps)
    members = build(attack, classes=CLASSES)
    with torch.no_grad(), victim(encoder, task, members[0].push) as harm:
        out = harm.see(images[order])
        truth = task.truth(images[order], {**rows, **task.aims(out, rows, seed=0)}, harm.see)
        return cascade(members, harm, task.pushes, images[order], truth, slots=slots, stop=stop)  # type: ignore[arg-type]


def called(attack: records.Attack) -> str:
    return f"{attack.method}-{attack.norm}" + ("-targets" if attack.targets else "")


@pytest.mark.parametrize("attack", list(cases()), ids=called)
def test_verdicts_depend_on_no_slots_no_order_no_shard_and_no_dropping(attack: records.Attack) -> None:
    every = torch.arange(N)
    lost = attacked(attack, every, slots=16).score > 0
    assert 2 < int(lost.sum()) < N, "some are lost and some are not, or nothing would be shown"
    backwards, shard = every.flip(0), every[::3]
    assert torch.equal(attacked(attack, every, slots=8).score > 0, lost), "slots"
    assert torch.equal(attacked(attack, every, slots=N).score > 0, lost), "slots"
    assert torch.equal((attacked(attack, backwards, slots=16).score > 0)[backwards], lost), "order"
    assert torch.equal(attacked(attack, shard, slots=8).score > 0, lost[shard]), "shard"
    whole = attacked(attack, every, slots=16, stop="never").score
    assert torch.equal(whole > 0, lost), "dropping"
