"""Drift, quantiles, flips and kNN on embeddings whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast import draws
from holdfast.models.encoder import Encoder
from holdfast.tasks.embedding import Embedding, bank
from holdfast.tasks.task import seer

KEYS = draws.keys([f"bank/{i}" for i in range(4)])
CORNERS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


def outcome(z: torch.Tensor, clean: torch.Tensor, task: Embedding, **rows: torch.Tensor) -> dict[str, torch.Tensor]:
    row = {"key": draws.keys([f"query/{i}" for i in range(len(z))]), "clean": clean, **rows}
    return task.outcome({"embedding": z}, row)


def test_outcomes_by_hand() -> None:
    task = Embedding(bank(CORNERS, KEYS, torch.tensor([0, 0, 1, 1])))
    clean = torch.tensor([[1.0, 0.1], [1.0, 0.1]])
    found = outcome(torch.tensor([[1.0, 0.1], [-0.1, 1.0]]), clean, task)
    assert found["l2"].tolist() == pytest.approx([0, math.hypot(1.1, 0.9)])
    assert found["cosine"].tolist() == pytest.approx([0, 1], abs=1e-6)
    assert found["flip"].tolist() == [False, True]
    # Pairs of corners are sqrt(2) apart (two thirds) or 2 apart: nothing is nearer than hypot(1.1, 0.9) = 1.421.
    assert found["quantile"].tolist() == pytest.approx([0, 2 / 3], abs=0.03)


def test_random_pairs_are_never_an_image_with_itself() -> None:
    assert float(bank(CORNERS, KEYS, None).distances.min()) == pytest.approx(math.sqrt(2))


def test_an_image_is_not_its_own_neighbour() -> None:
    task = Embedding(bank(CORNERS, KEYS, torch.tensor([0, 1, 0, 1])))
    rows = {"key": KEYS[:1], "clean": CORNERS[:1], "label": torch.tensor([0])}
    moved = task.outcome({"embedding": torch.tensor([[1.0, 0.5]])}, rows)
    assert bool(moved["flip"][0]) is False, "the nearest other corner of both is (0, 1)"


def test_knn_is_absent_with_a_reason_where_it_cannot_be() -> None:
    for labels, reason in ((None, "no labels"), (torch.arange(4), "no class has two images")):
        task = Embedding(bank(CORNERS, KEYS, labels))
        assert "knn_correct" not in outcome(CORNERS, CORNERS, task)
        assert reason in task.absent()["knn_accuracy"]
        assert "knn_accuracy" not in {measure.name for measure in task.measures()}


def test_gradient_is_zero_at_the_clean_image_and_finite() -> None:
    """Why a random start is mandatory: all three harms are flat there, and none is NaN."""
    encoder = Encoder(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()))
    task = Embedding()
    x = torch.rand(2, 3, 8, 8, generator=draws.generator("x"), requires_grad=True)
    see = seer(encoder, task)
    rows = {"clean": see(x)["embedding"].detach()}
    for name, push in task.pushes.items():
        (gradient,) = torch.autograd.grad(push(see(x), rows, torch.zeros(2)).sum(), x)
        assert bool(torch.isfinite(gradient).all()), name
        assert float(gradient.abs().max()) < 1e-5, name
