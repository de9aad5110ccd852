"""NT-Xent against closed forms and an independent plain loop."""

import math

import numpy as np
import pytest
import torch

from holdfast.training.methods.simclr import nt_xent


def _plain(first, second, temperature):
    """Equation 1 of the paper, pair by pair, in float64."""
    z = np.concatenate([first, second]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    n, b, total = len(z), len(first), 0.0
    for i in range(n):
        partner = (i + b) % n
        others = sum(math.exp(z[i] @ z[k] / temperature) for k in range(n) if k != i)
        total -= math.log(math.exp(z[i] @ z[partner] / temperature) / others)
    return total / n


@pytest.mark.parametrize(("b", "temperature"), [(2, 0.5), (7, 0.1), (16, 1.0)])
def test_nt_xent_is_equation_one(b, temperature):
    rng = np.random.default_rng(b)
    first, second = rng.normal(size=(2, b, 5))
    ours = nt_xent(torch.tensor(first), torch.tensor(second), temperature)
    assert ours.shape == () and ours.dtype == torch.float32
    assert abs(float(ours) - _plain(first, second, temperature)) < 2e-5


@pytest.mark.parametrize("b", [2, 5, 64])
def test_a_collapsed_batch_scores_the_logarithm_of_the_others(b):
    same = torch.ones(b, 8)
    assert math.isclose(float(nt_xent(same, 3 * same, 0.5)), math.log(2 * b - 1), rel_tol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_orthogonal_images_with_equal_views_have_their_closed_form(temperature):
    b = 8
    expected = math.log(1 + (2 * b - 2) * math.exp(-1 / temperature))
    assert math.isclose(float(nt_xent(torch.eye(b), 5 * torch.eye(b), temperature)), expected, rel_tol=1e-4)


def test_nt_xent_is_symmetric_and_blind_to_length_and_joint_order():
    first, second = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    value = nt_xent(first, second, 0.3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(nt_xent(second, first, 0.3), value, atol=1e-6)
    assert torch.allclose(nt_xent(first * 7, second / 3, 0.3), value, atol=1e-6)
    assert torch.allclose(nt_xent(first[order], second[order], 0.3), value, atol=1e-6)
    assert not torch.allclose(nt_xent(first[order], second, 0.3), value, atol=1e-2)


def test_half_precision_projections_are_summed_in_float32():
    first, second = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    exact = nt_xent(first.double(), second.double(), 0.1)
    assert torch.allclose(nt_xent(first, second, 0.1), exact, rtol=1e-6)
