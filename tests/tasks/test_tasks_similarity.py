"""SSIM against scikit-image with the settings of the paper, PSNR against its formula, and both where they must not be
asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.corruptions.table import corrupt
from holdfast.data.batches import batches
from holdfast.data.scenes import Scenes
from holdfast.draws import generator
from holdfast.errors import PixelError
from holdfast.records import Corruption, Data
from holdfast.tasks.similarity import IDENTICAL_DB, psnr, ssim


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=generator("images", seed))


def scenes(n: int) -> Tensor:
    """Drawn scenes: edges, flat areas, texture."""
    return next(iter(batches(Scenes(Data(source="scenes", limit=n)), size=n))).pixels


def corrupted(images: Tensor, name: str) -> Tensor:
    levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    changed = corrupt(levels, Corruption(name=name, severity=3, variant="cifar32"), torch.arange(len(images)))
    return changed.permute(0, 3, 1, 2).float() / 255


def wang(first: Tensor, second: Tensor) -> list[float]:
    metrics = pytest.importorskip("skimage.metrics")
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    pairs = zip(first.double().numpy(), second.double().numpy())
    return [float(metrics.structural_similarity(x, y, channel_axis=0, **settings)) for x, y in pairs]


def test_ssim_of_two_flat_images_is_the_luminance_term() -> None:
    """(2 a b + C1) / (a^2 + b^2 + C1): nothing varies, so that the structure term is 1."""
    first, second = torch.full((1, 3, 16, 20), 0.25), torch.full((1, 3, 16, 20), 0.75)
    wanted = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert float(ssim(first, second)) == pytest.approx(wanted, abs=1e-7)


def test_ssim_of_one_window_by_hand() -> None:
    """An image of 11 x 11 px has one position: the weighted moments of the paper, summed without a filter."""
    x, y = noise(1, 3, 11, 11), noise(1, 3, 11, 11, seed=1)
    side = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weight = np.outer(side, side) / side.sum() ** 2
    found = []
    for a, b in zip(x[0].double().numpy(), y[0].double().numpy()):
        ma, mb = (weight * a).sum(), (weight * b).sum()
        va, vb, cov = (
            weight * (p - mp) * (q - mq) for p, mp, q, mq in ((a, ma, a, ma), (b, mb, b, mb), (a, ma, b, mb))
        )
        top = (2 * ma * mb + 1e-4) * (2 * cov.sum() + 9e-4)
        found.append(top / ((ma**2 + mb**2 + 1e-4) * (va.sum() + vb.sum() + 9e-4)))
    assert float(ssim(x, y)) == pytest.approx(np.mean(found), abs=1e-7)


@pytest.mark.parametrize("name", ["gaussian_noise", "fog", "contrast", "jpeg_compression"])
def test_ssim_equals_scikit_image_on_corrupted_scenes(name: str) -> None:
    clean = scenes(6)
    changed = corrupted(clean, name)
    assert ssim(clean, changed).tolist() == pytest.approx(wang(clean, changed), abs=1e-6)


def test_ssim_equals_scikit_image_where_little_varies() -> None:
    """Bright and almost flat: where a variance is a small difference of large numbers."""
    clean = 0.9 + 0.02 * noise(3, 3, 40, 33)
    changed = clean + 0.02 * noise(3, 3, 40, 33, seed=1)
    assert ssim(clean, changed).tolist() == pytest.approx(wang(clean, changed), abs=1e-6)
    opposite = 1 - clean
    assert ssim(clean, opposite).tolist() == pytest.approx(wang(clean, opposite), abs=1e-6)


@pytest.mark.parametrize(("h", "w"), [(11, 11), (32, 32), (37, 51), (224, 224)])
def test_an_image_is_wholly_like_itself(h: int, w: int) -> None:
    x = noise(3, 3, h, w, seed=h)
    assert ssim(x, x.clone()).tolist() == [1.0] * 3
    assert ssim(x.double(), x.double()).dtype == torch.float32


def test_ssim_is_symmetric_and_below_one() -> None:
    x, y = noise(2, 3, 24, 24), noise(2, 3, 24, 24, seed=1)
    torch.testing.assert_close(ssim(x, y), ssim(y, x), rtol=0, atol=1e-7)
    assert bool((ssim(x, x + (1 - x) * 1e-3) < 1).all())


@pytest.mark.parametrize("measure", [ssim, psnr])
def test_a_pair_does_not_see_its_neighbours(measure: object) -> None:
    x, y = noise(7, 3, 32, 40), noise(7, 3, 32, 40, seed=1)
    together = measure(x, y)  # type: ignore[operator]
    alone = torch.cat([measure(x[i : i + 1], y[i : i + 1]) for i in range(7)])  # type: ignore[operator]
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(together, alone)
    assert torch.equal(together, measure(last, y))  # type: ignore[operator]


def test_psnr_in_closed_form() -> None:
    x = torch.zeros(4, 3, 5, 7)
    y = torch.stack([torch.full((3, 5, 7), v) for v in (1.0, 0.1, 0.01, 0.0)])
    assert psnr(x, y).tolist() == pytest.approx([0, 20, 40, IDENTICAL_DB], abs=1e-5)
    y = x.clone()
    y[0, 1, 2, 3] = 0.5
    assert float(psnr(x, y)[0]) == pytest.approx(10 * math.log10(3 * 5 * 7 / 0.25), abs=1e-5)


def test_psnr_never_ends() -> None:
    """No record holds an infinity, and less difference is never a lower ratio."""
    x = torch.full((3, 3, 300, 300), 0.5)
    y = x.clone()
    y[1, 0, 0, 0] += 1 / 255
    y[2] += 0.1
    found = psnr(x, y)
    assert found.tolist()[:2] == [IDENTICAL_DB, IDENTICAL_DB]
    assert float(found[2]) == pytest.approx(20, abs=1e-4)


@pytest.mark.parametrize("measure", [ssim, psnr])
def test_what_is_not_aligned_is_refused(measure: object) -> None:
    with pytest.raises(PixelError, match=r"\[1, 3, 32, 32\] and \[1, 3, 28, 28\].*Align first"):
        measure(noise(1, 3, 32, 32), noise(1, 3, 28, 28))  # type: ignore[operator]
    with pytest.raises(PixelError, match="uint8"):
        measure(*2 * [torch.zeros(1, 3, 32, 32, dtype=torch.uint8)])  # type: ignore[operator]
    with pytest.raises(PixelError, match=r"\[0, 255\]"):
        measure(torch.zeros(1, 3, 32, 32), torch.arange(256.0).repeat(12).view(1, 3, 32, 32))  # type: ignore[operator]


def test_ssim_of_images_below_its_window_is_refused() -> None:
    with pytest.raises(PixelError, match=r"11 x 11 px over both.*10 x 40 px.*PSNR"):
        ssim(noise(1, 3, 10, 40), noise(1, 3, 10, 40))
