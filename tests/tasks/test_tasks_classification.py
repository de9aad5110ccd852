"""Outcomes of logits by hand, and the two heads."""

from __future__ import annotations

import pytest
import torch

from holdfast.errors import ConfigError
from holdfast.models.encoder import Encoder
from holdfast.tasks.classification import Classification
from holdfast.tasks.task import seer, victim

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 3.0, 1.0]])


def test_outcomes_by_hand() -> None:
    found = Classification().outcome({"logits": LOGITS}, {"label": torch.tensor([0, 2, 2])})
    assert found["correct"].tolist() == [True, False, False]
    assert found["prediction"].tolist() == [0, 0, 1]
    assert found["margin"].tolist() == [-1.0, 0.0, 2.0]
    assert found["loss"][1].item() == pytest.approx(1.0986, abs=1e-4)
    assert found["confidence"][1].item() == pytest.approx(1 / 3)


def test_a_dead_head_is_not_perfect() -> None:
    """Constant logits tie everywhere; argmax, not the margin, decides what is correct."""
    found = Classification().outcome({"logits": torch.zeros(10, 5)}, {"label": torch.arange(10) % 5})
    assert float(found["correct"].float().mean()) == pytest.approx(0.2)


def test_a_fitted_head_reads_its_level() -> None:
    encoder = Encoder(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()))
    head = torch.nn.Linear(4, 2)
    pixels = torch.rand(2, 3, 8, 8)
    out = seer(encoder, Classification(head))(pixels)["logits"]
    assert torch.allclose(out, head(encoder.vector(pixels)))


def test_an_unknown_harm_names_the_nearest() -> None:
    encoder = Encoder(torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(ConfigError, match='"margin"'), victim(encoder, Classification(), "margn"):
        pass
