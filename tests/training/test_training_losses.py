"""The losses of the methods against closed forms, plain loops in float64, and lightly where it is installed."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from holdfast.training.methods.barlow import barlow_loss
from holdfast.training.methods.dino import missed
from holdfast.training.methods.empssl import EPSILON, coding_rate, emp_loss
from holdfast.training.methods.simclr import nt_xent, sup_con
from holdfast.training.methods.simsiam import apart
from holdfast.training.methods.swav import codes, swapped
from holdfast.training.methods.teacher import follow, follower, rising


def _draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- SupCon ------------------------------------------------------------------------------------------------------------


def _plain_sup_con(first, second, labels, temperature):
    """Equation 2 of the paper, pair by pair, in float64."""
    z = np.concatenate([first, second]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    y, n, total = [*labels, *labels], len(z), 0.0
    for i in range(n):
        others = sum(math.exp(z[i] @ z[k] / temperature) for k in range(n) if k != i)
        partners = [k for k in range(n) if k != i and y[k] == y[i]]
        total -= sum(math.log(math.exp(z[i] @ z[k] / temperature) / others) for k in partners) / len(partners)
    return total / n


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0], [0] * 6, [3, 4, 5, 6, 7, 8]])
def test_sup_con_is_equation_two(labels):
    first, second = _draw(6, 5), _draw(6, 5, seed=1)
    ours = sup_con(first, second, torch.tensor(labels), 0.3)
    assert abs(float(ours) - _plain_sup_con(first.numpy(), second.numpy(), labels, 0.3)) < 1e-5


def test_sup_con_with_all_labels_different_is_nt_xent():
    first, second = _draw(9, 4), _draw(9, 4, seed=1)
    assert torch.allclose(sup_con(first, second, torch.arange(9), 0.2), nt_xent(first, second, 0.2), atol=1e-6)


# -- SimSiam, BYOL -----------------------------------------------------------------------------------------------------


def test_apart_is_the_negative_cosine_and_the_target_gets_no_gradient():
    p, z = _draw(7, 5).requires_grad_(), _draw(7, 5, seed=1).requires_grad_()
    expected = [-float(a @ b / a.norm() / b.norm()) for a, b in zip(p.detach(), z.detach())]
    found = apart(p, z)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    found.sum().backward()
    assert z.grad is None and float(p.grad.abs().max()) > 0
    unit = normalize(p.detach(), dim=1) - normalize(z.detach(), dim=1)
    assert torch.allclose(2 + 2 * found, unit.square().sum(1), atol=1e-5), "BYOL's distance of unit vectors"


def test_a_teacher_follows_weights_by_its_momentum_and_takes_buffers_over():
    student = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    teacher = follower(student)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
        student[1].running_mean.fill_(5.0)
    follow(teacher, student, 0.9)
    for now, was in zip(teacher.parameters(), before):
        assert torch.allclose(now, was + 0.1, atol=1e-6) and not now.requires_grad
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)


def test_the_momentum_rises_from_its_base_to_one():
    assert rising(0.996, 0.0) == pytest.approx(0.996)
    assert rising(0.996, 0.5) == pytest.approx(0.998)
    assert rising(0.996, 1.0) == 1.0


# -- Barlow Twins ------------------------------------------------------------------------------------------------------


def test_barlow_is_zero_at_the_identity_and_counts_the_diagonal_and_the_rest():
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert float(barlow_loss(signs, signs)) < 1e-8
    assert float(barlow_loss(signs, -signs)) == pytest.approx(8.0, rel=1e-4), "(1 + 1)^2 twice"
    same = signs[:, :1].expand(4, 2)
    assert float(barlow_loss(same, same, 0.25)) == pytest.approx(2 * 0.25, rel=1e-4)


def test_barlow_is_the_plain_correlation_of_standardised_values():
    a, b = _draw(16, 6), _draw(16, 6, seed=1) + 0.5 * _draw(16, 6)
    c = np.zeros((6, 6))
    x, y = a.double().numpy(), b.double().numpy()
    for i in range(6):
        for j in range(6):
            u = (x[:, i] - x[:, i].mean()) / math.sqrt(x[:, i].var() + 1e-5)
            v = (y[:, j] - y[:, j].mean()) / math.sqrt(y[:, j].var() + 1e-5)
            c[i, j] = (u * v).mean()
    on, off = np.diag(c), c[~np.eye(6, dtype=bool)]
    expected = ((1 - on) ** 2).sum() + 0.005 * (off**2).sum()
    assert float(barlow_loss(a, b)) == pytest.approx(expected, rel=1e-5)


# -- SwAV --------------------------------------------------------------------------------------------------------------


def _plain_codes(scores, sharpness, rounds):
    """Algorithm 1 of the paper in float64: columns, then rows, of a matrix that sums to one."""
    q = np.exp((scores.astype(np.float64) - scores.max()) / sharpness).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(rounds):
        q = q / q.sum(1, keepdims=True) / k
        q = q / q.sum(0, keepdims=True) / b
    return (q * b).T


def test_codes_are_algorithm_one_and_use_every_prototype_equally():
    scores = normalize(_draw(24, 8), dim=1) @ normalize(_draw(6, 8, seed=1), dim=1).T
    assert np.allclose(codes(scores).numpy(), _plain_codes(scores.numpy(), 0.05, 3), atol=1e-5)
    many = codes(scores, rounds=200)
    assert torch.allclose(many.sum(0), torch.full((6,), 4.0), atol=1e-3)
    assert torch.allclose(many.sum(1), torch.ones(24), atol=1e-5)


def test_codes_stay_finite_where_a_plain_exponential_overflows():
    found = codes(_draw(8, 4) * 100)
    assert bool(torch.isfinite(found).all()) and torch.allclose(found.sum(1), torch.ones(8), atol=1e-5)


def test_swapped_is_the_cross_entropy_to_the_code():
    scores, code = _draw(5, 4), torch.eye(5, 4) + torch.tensor([0, 0, 0, 0, 1.0])[:, None] / 4
    expected = [-sum(float(c) * float(v) for c, v in zip(code[i], (scores[i] / 0.1).log_softmax(0))) for i in range(5)]
    assert swapped(scores, code, 0.1).tolist() == pytest.approx(expected, rel=1e-5)


# -- DINO --------------------------------------------------------------------------------------------------------------


def test_missed_is_the_entropy_where_the_student_answers_as_the_teacher():
    target = _draw(3, 6).softmax(1)
    entropy = torch.special.entr(target).sum(1)
    assert torch.allclose(missed(0.1 * target.log(), target), entropy, atol=1e-5)
    assert bool((missed(_draw(3, 6, seed=2), target) > entropy).all())


# -- EMP-SSL -----------------------------------------------------------------------------------------------------------


def _plain_rate(z):
    """The published form: the determinant of the d x d matrix, in float64."""
    b, d = z.shape
    return 0.5 * np.linalg.slogdet(np.eye(d) + d / (b * EPSILON) * z.T @ z)[1]


@pytest.mark.parametrize(("b", "d"), [(5, 12), (12, 5), (8, 8), (1, 4)])
def test_the_coding_rate_is_the_published_determinant_on_either_side(b, d):
    z = normalize(_draw(3, b, d), dim=2)
    found = coding_rate(z)
    assert found.shape == (3,)
    assert found.tolist() == pytest.approx([_plain_rate(part) for part in z.double().numpy()], rel=1e-5)


@pytest.mark.parametrize(("b", "d"), [(5, 12), (12, 5)])
def test_its_gradient_in_closed_form_is_that_of_the_determinant(b, d):
    z = normalize(_draw(2, b, d), dim=2)
    ours = z.clone().requires_grad_()
    (coding_rate(ours) * torch.tensor([1.0, 3.0])).sum().backward()
    plain = z.double().requires_grad_()
    eye = torch.eye(d, dtype=torch.float64)
    rates = 0.5 * torch.logdet(eye + d / (b * EPSILON) * plain.mT @ plain)
    (rates * torch.tensor([1.0, 3.0])).sum().backward()
    assert torch.allclose(ours.grad.double(), plain.grad, atol=1e-5)


def test_orthogonal_rows_reach_the_largest_rate_and_equal_ones_the_least():
    b, d = 6, 16
    s = d / (b * EPSILON)
    assert float(coding_rate(torch.eye(b, d))) == pytest.approx(0.5 * b * math.log1p(s), rel=1e-6)
    same = torch.eye(1, d).expand(b, d)
    assert float(coding_rate(same)) == pytest.approx(0.5 * math.log1p(s * b), rel=1e-5)


def test_the_emp_loss_prefers_spread_features_to_collapsed_ones_and_is_the_published_sum():
    v, b, d = 4, 6, 16
    spread = torch.eye(b, d).expand(v, b, d)
    collapsed = torch.eye(1, d).expand(v, b, d)
    assert float(emp_loss(spread)) < float(emp_loss(collapsed)) - 1
    z = normalize(_draw(v, b, d), dim=2)
    mean = z.mean(0)
    cosines = [float(z[i, j] @ mean[j] / z[i, j].norm() / mean[j].norm()) for i in range(v) for j in range(b)]
    cosine = sum(cosines) / len(cosines)
    rate = sum(_plain_rate(part) for part in z.double().numpy()) / v
    assert float(emp_loss(z)) == pytest.approx(-200 * cosine - rate, rel=1e-5)


def test_the_emp_loss_is_finite_for_half_precision_projections():
    z = normalize(_draw(4, 100, 64), dim=2).to(torch.bfloat16).requires_grad_()
    loss = emp_loss(z)
    loss.backward()
    assert loss.dtype == torch.float32 and bool(torch.isfinite(loss)) and bool(torch.isfinite(z.grad).all())


# -- beside lightly ----------------------------------------------------------------------------------------------------


def test_losses_beside_lightly():
    lightly = pytest.importorskip("lightly.loss")
    from lightly.loss.swav_loss import sinkhorn

    first, second = _draw(12, 16), _draw(12, 16, seed=1)
    assert torch.allclose(nt_xent(first, second, 0.2), lightly.NTXentLoss(temperature=0.2)(first, second), atol=1e-5)
    assert torch.allclose(apart(first, second).mean(), lightly.NegativeCosineSimilarity()(first, second), atol=1e-6)
    assert torch.allclose(barlow_loss(first, second), lightly.BarlowTwinsLoss()(first, second), rtol=1e-4)
    scores = normalize(first, dim=1) @ normalize(_draw(5, 16, seed=2), dim=1).T
    assert torch.allclose(codes(scores), sinkhorn(scores, iterations=3, epsilon=0.05), atol=1e-4)
