"""Defocus blur: its kernel, constants, one bright pixel, and borders."""

import numpy as np
import pytest
import torch
from corruption_references import defocus_blur, defocus_blur_by_fft, photos
from corruption_references import disk as disk_by_scipy

from holdfast import draws
from holdfast.corruptions import table
from holdfast.corruptions.blur import DEFOCUS_BLUR, disk
from holdfast.records import Corruption

EVERY = [p for v in ("imagenet224", "cifar32") for p in DEFOCUS_BLUR[v]]


def blurred(images, severity, variant="imagenet224"):
    corruption = Corruption(name="defocus_blur", severity=severity, variant=variant)
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
    np.testing.assert_allclose([disk(*p).sum() for p in DEFOCUS_BLUR["cifar32"]], 1)
    assert [disk(*p).shape for p in DEFOCUS_BLUR["cifar32"][:3]] == [(3, 3)] * 3


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_a_constant_stays_or_brightens_by_the_sum_of_the_kernel(severity):
    total = [1, 1, 1, 1.0130, 1.0108][severity - 1]
    levels = torch.tensor([0, 1, 50, 150, 254, 255], dtype=torch.uint8)
    images = levels[:, None, None, None].expand(-1, 40, 56, 3)
    found = blurred(images, severity)
    expected = (levels.double() * total).clamp(max=255).floor().to(torch.uint8)
    assert torch.equal(found, expected[:, None, None, None].expand_as(found))
    if severity > 3:
        assert found[3, 0, 0, 0] == 151


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_one_bright_pixel_becomes_the_disk(severity):
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    image[0, 30, 33, 1] = 255
    found = blurred(image, severity)
    kernel = disk(*DEFOCUS_BLUR["imagenet224"][severity - 1])
    arm = kernel.shape[0] // 2
    spot = found[0, 30 - arm : 31 + arm, 33 - arm : 34 + arm, 1].numpy()
    assert np.array_equal(spot, np.floor(255 * kernel + 1e-6))
    assert found.sum() == spot.sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (5, 3), (17, 50)])
def test_images_smaller_than_the_kernel_are_mirrored_as_often_as_needed(shape):
    images = photos(1, 40, 60)[:, : shape[0], : shape[1]]
    for severity in (1, 5):
        expected = defocus_blur(images[0] / 255.0, *DEFOCUS_BLUR["imagenet224"][severity - 1])
        difference = blurred(torch.from_numpy(images), severity)[0].numpy() - np.minimum(expected * 255, 255)
        assert np.all((difference <= 1e-6) & (difference > -1 - 1e-6))


def test_the_fast_reference_of_the_benchmark_is_the_plain_one():
    image = photos(1, 40, 60)[0] / 255.0
    for parameters in EVERY:
        quick, plain = defocus_blur_by_fft(image, *parameters), defocus_blur(image, *parameters)
        np.testing.assert_allclose(quick, plain, atol=1e-12)
