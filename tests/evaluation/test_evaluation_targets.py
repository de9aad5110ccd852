"""Which classes a targeted attack aims at: the likeliest wrong ones of the image that it begins at."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.evaluation.attacking import compared
from holdfast.records import Attack
from holdfast.tasks.classification import Classification

CLEAN, CORRUPTED = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
LOGITS = {0.0: [4.0, 3.0, 2.0, 1.0], 1.0: [4.0, 1.0, 2.0, 3.0]}
"""Of the clean images, and of the corrupted ones: other classes are near."""


def see(pixels: Tensor) -> dict[str, Tensor]:
    return {"logits": torch.tensor([LOGITS[float(image[0, 0, 0])] for image in pixels])}


def ranked(attack: Attack, before: Tensor) -> list[list[int]]:
    rows = {"label": torch.zeros(2, dtype=torch.int64), "key": torch.arange(2)}
    found = compared(Classification(known=4), attack, CLEAN, rows, see, before=before)
    return [row[:3] for row in found["ranked"].tolist()]


def test_targets_are_ranked_by_the_pixels_that_the_attack_begins_at() -> None:
    for attack in (Attack(targets=3), Attack(method="autoattack", push=""), Attack(method="fab", push="")):
        assert ranked(attack, CLEAN) == [[1, 2, 3]] * 2
        assert ranked(attack, CORRUPTED) == [[3, 2, 1]] * 2


def test_an_attack_without_targets_ranks_nothing() -> None:
    rows = {"label": torch.zeros(2, dtype=torch.int64), "key": torch.arange(2)}
    assert "ranked" not in compared(Classification(known=4), Attack(), CLEAN, rows, see, before=CORRUPTED)
