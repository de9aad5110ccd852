"""Margins and cross-entropies by hand."""

import math

import torch

from holdfast.attacks.scores import cross_entropy, margin


def test_margin_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [2.0, 2.0, 0.0]])
    assert margin(logits, torch.tensor([1, 0, 0])).tolist() == [-1.0, 2.0, 0.0]


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])
    assert torch.allclose(cross_entropy(logits, torch.tensor([0])), torch.tensor([math.log(4)]))
