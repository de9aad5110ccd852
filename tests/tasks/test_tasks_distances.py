"""Distances of embeddings: by hand, against SciPy, and where their gradient is zero."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast import draws
from holdfast.models.encoder import Encoder
from holdfast.tasks.distances import DISTANCES, ce, ce_raw, cosine, cosine_std, l2, l2_std, mse, mse_std
from holdfast.tasks.embedding import Embedding
from holdfast.tasks.task import seer

Z, C = torch.tensor([[3.0, 0.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0, 3.0]])
TRUE_DISTANCES = [name for name in DISTANCES if name != "ce_raw"]


def drawn(seed: str, n: int = 6, d: int = 9) -> torch.Tensor:
    return 2 * torch.randn(n, d, generator=draws.generator(seed))


def test_by_hand() -> None:
    assert mse(Z, C).item() == pytest.approx(14 / 4)
    assert l2(Z, C).item() == pytest.approx(math.sqrt(14))
    assert cosine(Z, C).item() == pytest.approx(1 - 4 / math.sqrt(10 * 12))
    # The values of C have mean 3/2 and, with d - 1, variance (3/4 + 9/4) / 3 = 1: its units are its own.
    assert mse_std(Z, C).item() == pytest.approx(14 / 4)
    assert mse_std(2 * Z, 2 * C).item() == pytest.approx(14 / 4)
    assert l2_std(5 * Z, 5 * C).item() == pytest.approx(math.sqrt(14))
    # Less the mean: (1.5, -1.5, -0.5, -1.5) and (-0.5, -0.5, -0.5, 1.5).
    assert cosine_std(Z, C).item() == pytest.approx(1 + 2 / math.sqrt(7 * 3))


def test_cross_entropies_by_hand() -> None:
    """Both are divided by their largest value, which is 3: logits (1, 0, 1/3, 0), target softmax(1/3, 1/3, 1/3, 1)."""
    target = [math.exp(v) for v in (1 / 3, 1 / 3, 1 / 3, 1)]
    logits = (1, 0, 1 / 3, 0)
    total = math.log(sum(math.exp(v) for v in logits))
    assert ce(Z, C).item() == pytest.approx(sum(p * (total - v) for p, v in zip(target, logits)) / sum(target))
    raw = math.log(math.exp(3) + math.e + 2)
    assert ce_raw(Z, C).item() == pytest.approx((raw - 3) + raw + (raw - 1) + 3 * raw)


def test_a_temperature_below_one_is_never_used() -> None:
    small = torch.tensor([[0.5, 0.2, -3.0]])
    expected = -(small.softmax(1) * (small / 2).log_softmax(1)).sum()
    assert ce(small / 2, small).item() == pytest.approx(float(expected))


def test_against_scipy() -> None:
    spatial, stats = pytest.importorskip("scipy.spatial.distance"), pytest.importorskip("scipy.stats")
    special = pytest.importorskip("scipy.special")
    z, c = drawn("z"), drawn("c")
    for i, (one, other) in enumerate(zip(z.double().numpy(), c.double().numpy())):
        assert mse(z, c)[i].item() == pytest.approx(spatial.sqeuclidean(one, other) / len(one), rel=1e-5)
        assert l2(z, c)[i].item() == pytest.approx(spatial.euclidean(one, other), rel=1e-5)
        assert cosine(z, c)[i].item() == pytest.approx(spatial.cosine(one, other), rel=1e-5)
        assert l2_std(z, c)[i].item() == pytest.approx(spatial.euclidean(one, other) / other.std(ddof=1), rel=1e-5)
        mean = other.mean()
        assert cosine_std(z, c)[i].item() == pytest.approx(spatial.cosine(one - mean, other - mean), rel=1e-5)
        p, q = (special.softmax(v / max(1, v.max())) for v in (other, one))
        assert ce(z, c)[i].item() == pytest.approx(stats.entropy(p) + stats.entropy(p, q), rel=1e-5)


def test_the_published_cross_entropy_is_torchs_with_the_clean_embedding_as_target() -> None:
    z, c = drawn("z"), drawn("c")
    assert torch.allclose(ce_raw(z, c), torch.nn.functional.cross_entropy(z, c, reduction="none"), rtol=1e-5)


@pytest.mark.parametrize("name", TRUE_DISTANCES)
def test_smallest_and_flat_at_the_clean_embedding(name: str) -> None:
    c = drawn("c")
    z = c.clone().requires_grad_()
    at_home = DISTANCES[name](z, c)
    (gradient,) = torch.autograd.grad(at_home.sum(), z)
    assert float(gradient.abs().max()) < 1e-6
    for seed in ("one", "two"):
        assert bool((DISTANCES[name](c + 0.1 * drawn(seed), c) > at_home).all())


def test_the_published_cross_entropy_is_no_distance() -> None:
    """Its gradient at the clean embedding is not zero, and one way from there it falls."""
    c = drawn("c")
    z = c.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ce_raw(z, c).sum(), z)
    assert float(gradient.abs().amax(1).min()) > 1e-3
    assert bool((ce_raw(c - 1e-2 * gradient, c) < ce_raw(c, c)).all())


@pytest.mark.parametrize("name", list(DISTANCES))
def test_pixels_are_flat_at_the_clean_image_and_nowhere_else(name: str) -> None:
    """Why a random start is mandatory; `ce_raw` alone is not flat there, since it is no distance."""
    convolution = torch.nn.Conv2d(3, 4, 3)
    with torch.no_grad():  # drawn by key: with other weights too few channels may be alive to turn a vector
        convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=draws.generator("w")) / 5)
        convolution.bias.fill_(0.1)
    encoder = Encoder(torch.nn.Sequential(convolution, torch.nn.ReLU()))
    task = Embedding()
    x = torch.rand(2, 3, 8, 8, generator=draws.generator("x"))
    see, rows = seer(encoder, task), {}
    rows["clean"] = see(x)["embedding"].detach()
    largest = []
    for pixels in (x, (x + 8 / 255 * torch.randn(x.shape, generator=draws.generator("n")).sign()).clamp(0, 1)):
        pixels = pixels.clone().requires_grad_()
        value = task.pushes[name](see(pixels), rows, torch.zeros(2))
        (gradient,) = torch.autograd.grad(value.sum(), pixels)
        assert bool(torch.isfinite(gradient).all())
        largest.append(float(gradient.abs().max()))
    assert largest[1] > 0
    assert (largest[0] < 1e-3 * largest[1]) == (name != "ce_raw")


@pytest.mark.parametrize("name", list(DISTANCES))
def test_a_dead_or_single_valued_embedding_gives_finite_numbers(name: str) -> None:
    for c in (torch.zeros(2, 5), torch.full((2, 5), 3.0), torch.ones(2, 1)):
        z = (c + 0.5 * torch.arange(c.shape[1])).requires_grad_()
        value = DISTANCES[name](z, c)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert value.shape == (2,) and bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", list(DISTANCES))
def test_each_number_belongs_to_its_image(name: str) -> None:
    z, c = drawn("z"), drawn("c")
    together = DISTANCES[name](z, c)
    alone = torch.cat([DISTANCES[name](z[i : i + 1], c[i : i + 1]) for i in range(len(z))])
    assert torch.allclose(together, alone)


def test_rescaling_keeps_a_gradient_where_the_softmax_has_none() -> None:
    """One value of 200 among ordinary ones, as embeddings have: the plain softmax is a one in float32."""
    c = torch.tensor([[200.0, 1.0, 0.0, -1.0]])
    z = (c + torch.tensor([[-3.0, 1.0, 0.0, 2.0]])).requires_grad_()
    plain = -(c.softmax(1) * z.log_softmax(1)).sum()
    (without,) = torch.autograd.grad(plain, z)
    (rescaled,) = torch.autograd.grad(ce(z, c).sum(), z)
    assert float(without.abs().max()) == 0 and float(rescaled.abs().min()) > 1e-6


def test_standardised_lengths_point_the_same_way() -> None:
    z, c = drawn("z").requires_grad_(), drawn("c")
    signs = [
        torch.autograd.grad(DISTANCES[name](z, c).sum(), z)[0].sign() for name in ("mse", "l2", "mse_std", "l2_std")
    ]
    assert all(torch.equal(sign, signs[0]) for sign in signs)
