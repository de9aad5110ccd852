"""Defocus and Gaussian blur: their kernels, constants, one bright pixel, and borders."""

import numpy as np
import pytest
import torch
from corruption_references import photos
from references_blur import defocus_blur, defocus_blur_by_fft
from references_blur import disk as disk_by_scipy
from references_blur import gaussian_blur as gaussian_by_scipy

from holdfast import draws
from holdfast.corruptions import table
from holdfast.corruptions.blur import (
    DEFOCUS_BLUR,
    GAUSSIAN_BLUR,
    disk,
    gaussian_blur,
    gaussian_weights,
    weighted_rows,
    whole_weights,
)
from holdfast.records import Corruption

MODES = ["fast", "reference"]
EVERY = [p for v in table.variants() for p in DEFOCUS_BLUR[v]]


def blurred(images, severity, variant="imagenet224", mode="fast", name="defocus_blur"):
    corruption = Corruption(name=name, severity=severity, variant=variant, mode=mode)
    return table.corrupt(images, corruption, draws.keys([str(i) for i in range(len(images))]))


@pytest.mark.parametrize("parameters", EVERY)
def test_the_kernel_is_that_of_the_definition(parameters):
    found, whole = disk(*parameters), disk_by_scipy(*parameters)
    cut = (whole.shape[0] - found.shape[0]) // 2
    inner = whole[cut : whole.shape[0] - cut, cut : whole.shape[1] - cut]
    np.testing.assert_allclose(found, inner, atol=1e-15)
    assert abs(whole.sum() - inner.sum()) < 1e-12
    np.testing.assert_allclose(found, found.T, atol=1e-17)
    np.testing.assert_allclose(found, found[::-1, ::-1], atol=1e-17)


def test_taps_and_sums_are_the_published_ones():
    kernels = [disk(*p) for p in DEFOCUS_BLUR["imagenet224"]]
    assert [int((k > 1e-6).sum()) for k in kernels] == [29, 89, 169, 257, 401]
    assert [round(k.sum(), 4) for k in kernels] == [1, 1, 1, 1.0130, 1.0108]
    for small in ("cifar32", "tiny64"):
        np.testing.assert_allclose([disk(*p).sum() for p in DEFOCUS_BLUR[small]], 1)
    assert [disk(*p).shape for p in DEFOCUS_BLUR["cifar32"][:3]] == [(3, 3)] * 3
    assert [round(disk(*p).sum(), 4) for p in DEFOCUS_BLUR["inception299"]] == [1, 1, 1.0029, 1.0108, 1.0078]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_a_constant_stays_or_brightens_by_the_sum_of_the_disk(severity, mode):
    total = [1, 1, 1, 1.0130, 1.0108][severity - 1]
    levels = torch.tensor([0, 1, 50, 150, 254, 255], dtype=torch.uint8)
    images = levels[:, None, None, None].expand(-1, 40, 56, 3)
    found = blurred(images, severity, mode=mode)
    expected = (levels.double() * total).clamp(max=255).floor().to(torch.uint8)
    assert torch.equal(found, expected[:, None, None, None].expand_as(found))
    if severity > 3:
        assert found[3, 0, 0, 0] == 151


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_one_bright_pixel_becomes_the_disk(severity, mode):
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    image[0, 30, 33, 1] = 255
    found = blurred(image, severity, mode=mode)
    kernel = disk(*DEFOCUS_BLUR["imagenet224"][severity - 1])
    arm = kernel.shape[0] // 2
    spot = found[0, 30 - arm : 31 + arm, 33 - arm : 34 + arm, 1].numpy()
    assert np.array_equal(spot, np.floor(255 * kernel + 1e-6))
    assert found.sum() == spot.sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (5, 3), (17, 50)])
def test_images_smaller_than_the_disk_are_mirrored_as_often_as_needed(shape):
    images = photos(1, 40, 60)[:, : shape[0], : shape[1]]
    for severity in (1, 5):
        expected = defocus_blur(images[0] / 255.0, *DEFOCUS_BLUR["imagenet224"][severity - 1])
        for mode, slack in (("reference", 1e-6), ("fast", 0.05)):
            found = blurred(torch.from_numpy(images), severity, mode=mode)[0].numpy()
            difference = found - np.minimum(expected * 255, 255)
            assert np.all((difference <= slack) & (difference > -1 - slack))


def test_the_fast_reference_of_the_benchmark_is_the_plain_one():
    image = photos(1, 40, 60)[0] / 255.0
    for parameters in EVERY:
        quick, plain = defocus_blur_by_fft(image, *parameters), defocus_blur(image, *parameters)
        np.testing.assert_allclose(quick, plain, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", table.variants())
def test_gaussian_blur_keeps_every_constant(variant, mode):
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 5, 9, 3)
    for severity in range(1, 6):
        assert torch.equal(blurred(levels, severity, variant, mode, "gaussian_blur"), levels)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sigma", [0.4, 0.7, 1, 1.5, 3])
def test_gaussian_blur_of_one_bright_pixel_is_the_product_of_two_gaussians(sigma, mode):
    image = torch.zeros(1, 40, 48, 3, dtype=torch.uint8)
    image[0, 19, 23, 2] = 255
    line = np.exp(-(np.arange(-13, 14) ** 2) / (2 * sigma**2))
    line[np.abs(np.arange(-13, 14)) > int(4 * sigma + 0.5)] = 0
    line /= line.sum()
    found = gaussian_blur(image, (sigma,), mode=mode)[0, 6:33, 10:37, 2].double().numpy()
    difference = found - 255 * np.outer(line, line)
    assert np.all((difference < 0.01) & (difference > (-1.01 if mode == "fast" else -1e-8)))
    assert gaussian_blur(image, (sigma,), mode=mode)[..., :2].double().sum() < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (7, 2), (40, 53)])
def test_gaussian_blur_is_that_of_scipy_at_every_size(shape):
    image = photos(1, 64, 64)[:, : shape[0], : shape[1]]
    for (sigma,) in (p for v in table.variants() for p in GAUSSIAN_BLUR[v]):
        expected = gaussian_by_scipy(image[0] / 255.0, sigma) * 255
        exact, fast = (gaussian_blur(torch.from_numpy(image), (sigma,), mode=m)[0] for m in ("reference", "fast"))
        np.testing.assert_allclose(exact.numpy(), expected, atol=1e-8)
        difference = np.floor(fast.double().numpy()) - expected
        assert np.all((difference < 0.02) & (difference > -1.02))


def test_a_gaussian_narrower_than_a_pixel_is_the_identity():
    images = torch.from_numpy(photos(2, 9, 11))
    for mode in MODES:
        assert torch.equal(gaussian_blur(images, (0.05,), mode=mode).to(torch.uint8), images)


def test_whole_weights_lose_nothing_and_stay_close():
    for sigma in (0.7, 2, 6.5):
        weights = gaussian_weights(sigma)
        whole = whole_weights(weights, 2**16)
        assert sum(whole) == 2**16 and min(whole) >= 0
        assert np.abs(np.cumsum(whole) - 2**16 * np.cumsum(weights)).max() <= 0.5 + 1e-6


def test_weighted_rows_in_closed_form():
    table_of_rows = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    index, weights = torch.tensor([[0, 2], [1, 1]]), torch.tensor([[3.0, 0.5], [1.0, -2.0]])
    assert weighted_rows(table_of_rows, index, weights).tolist() == [[53, 106], [-10, -20]]
