"""Brightness against its closed form and Matplotlib's HSV; JPEG against Pillow, to the bit."""

import numpy as np
import pytest
import torch
from corruption_references import jpeg_compression, photos

from holdfast import draws
from holdfast.corruptions import table
from holdfast.records import Corruption

MODES = ["fast", "reference"]


def corrupted(name, images, severity, variant="imagenet224", mode="fast"):
    corruption = Corruption(name=name, severity=severity, variant=variant)
    return table.corrupt(images, corruption, draws.keys([str(i) for i in range(len(images))]), mode=mode)


def colours(rows):
    return torch.tensor(rows, dtype=torch.uint8)[:, None, None, :].expand(-1, 4, 6, 3)


@pytest.mark.parametrize("mode", MODES)
def test_brightness_of_constant_colours_in_closed_form(mode):
    rows = [[200, 100, 50], [10, 20, 30], [250, 0, 125], [3, 3, 3], [255, 255, 255], [0, 0, 7]]
    for severity in range(1, 6):
        found = corrupted("brightness", colours(rows), severity, mode=mode)
        for row, (r, g, b) in zip(found, rows, strict=True):
            value = max(r, g, b) / 255
            gain = min(value + severity / 10, 1) / value
            exact = np.array([r, g, b]) * gain
            assert np.all(exact - row[0, 0].numpy() > -1e-9)
            assert np.all(exact - row[0, 0].numpy() < 1 + 1e-9)
            assert torch.equal(row, row[:1, :1].expand_as(row))


@pytest.mark.parametrize("mode", MODES)
def test_brightness_makes_black_the_grey_c(mode):
    for severity, grey in zip(range(1, 6), [25, 51, 76, 102, 127], strict=True):
        assert corrupted("brightness", colours([[0, 0, 0]]), severity, mode=mode).unique().tolist() == [grey]


def test_brightness_of_every_grey_is_the_double_precision_sum():
    greys = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 1, 3)
    for variant in table.variants():
        for severity in range(1, 6):
            (c,) = table.entry("brightness").severities[variant][severity - 1]
            expected = [int(min(level / 255 + c, 1.0) * 255) for level in range(256)]
            for mode in MODES:
                found = corrupted("brightness", greys, severity, variant, mode)[:, 0, 0, 1].tolist()
                assert found == expected


@pytest.mark.parametrize("mode", MODES)
def test_jpeg_is_pillows_to_the_bit(mode):
    for shape in ((32, 32), (33, 47), (224, 224), (1, 1)):
        images = photos(2, 64, 64)[:, : shape[0], : shape[1]] if max(shape) < 64 else photos(2, *shape)
        for quality_of in table.variants():
            for severity in (1, 3, 5):
                (quality,) = table.entry("jpeg_compression").severities[quality_of][severity - 1]
                found = corrupted("jpeg_compression", torch.from_numpy(images), severity, quality_of, mode)
                for row, image in zip(found.numpy(), images, strict=True):
                    assert np.array_equal(row, jpeg_compression(image, quality))


def test_jpeg_of_constant_greys_in_closed_form():
    # A block of the grey v has the single coefficient 8 * (v - 128), rounded to a multiple of the table's first step.
    greys = torch.arange(0, 256, 5, dtype=torch.uint8)
    images = greys[:, None, None, None].expand(-1, 16, 16, 3)
    for variant in table.variants():
        for severity in range(1, 6):
            (quality,) = table.entry("jpeg_compression").severities[variant][severity - 1]
            step = (16 * (5000 // quality if quality < 50 else 200 - 2 * quality) + 50) // 100
            found = corrupted("jpeg_compression", images, severity, variant)
            kept = (8 * (greys.double() - 128) / step).round() * step / 8 + 128
            ties = (8 * (greys.double() - 128) / step).frac().abs() == 0.5
            assert torch.equal(found, found[:, :1, :1, :1].expand_as(found))
            assert ((found[:, 0, 0, 0] - kept.clamp(0, 255)).abs() <= 0.5)[~ties].all()


def test_jpeg_halves_the_chroma():
    # Red and blue columns of equal luma alternate: at half chroma resolution they melt into one colour.
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    image[:, :, ::2], image[:, :, 1::2] = torch.tensor([149, 0, 0]).byte(), torch.tensor([0, 0, 255]).byte()
    found = corrupted("jpeg_compression", image, 1, "cifar32").int()
    assert (found[:, :, ::2] - found[:, :, 1::2]).abs().float().mean() < 40


def test_jpeg_loses_more_at_each_severity():
    images = torch.from_numpy(photos(4, 64, 64))
    errors = [
        (corrupted("jpeg_compression", images, s).int() - images).float().square().mean().item() for s in range(1, 6)
    ]
    assert errors == sorted(errors)
    assert errors[0] > 0
