"""Pixelation and JPEG against Pillow, to the bit, and against their closed forms."""

import numpy as np
import pytest
import torch
from corruption_references import photos
from PIL import Image
from references_digital import jpeg_compression, pixelate

from holdfast import draws
from holdfast.corruptions import digital, table
from holdfast.records import Corruption

modes = pytest.mark.parametrize("mode", table.MODES)
SHAPES = [(32, 32), (33, 47), (224, 224), (299, 299), (1, 1), (1, 9), (50, 3), (7, 120)]


def corrupted(name, images, severity, variant="imagenet224", mode="fast"):
    corruption = Corruption(name=name, severity=severity, variant=variant, mode=mode)
    return table.corrupt(images, corruption, draws.keys([str(i) for i in range(len(images))]))


def parameter(name, variant, severity):
    return table.entry(name).severities[variant][severity - 1][0]


def pictures(height, width):
    return photos(2, max(height, 9), max(width, 9))[:, :height, :width]


@modes
@pytest.mark.parametrize("shape", SHAPES)
def test_pixelation_is_pillows_to_the_bit(shape, mode):
    images = pictures(*shape)
    for variant in table.variants():
        for severity in range(1, 6):
            share = parameter("pixelate", variant, severity)
            found = corrupted("pixelate", torch.from_numpy(images), severity, variant, mode)
            for row, image in zip(found.numpy(), images, strict=True):
                assert np.array_equal(row, pixelate(image, share))


def means_of_boxes(line, length):
    """[n, ...] to [length, ...]: the rounded mean of the pixels whose centre lies in the box, halves upwards."""
    step = len(line) / length
    centres = (np.arange(length) + 0.5) * step
    inside = (np.arange(len(line)) + 0.5 - centres[:, None]) / step
    boxes = [line[(row >= -0.5) & (row < 0.5)].astype(int) for row in inside]
    return np.stack([(2 * b.sum(axis=0) + len(b)) // (2 * len(b)) for b in boxes])


@pytest.mark.parametrize(("side", "variant"), [(224, "imagenet224"), (32, "cifar32"), (64, "tiny64")])
def test_pixelation_by_arithmetic_alone_first_along_the_lines_then_down(side, variant):
    (image,) = photos(1, side, side)
    for severity in range(1, 6):
        count = int(side * parameter("pixelate", variant, severity))
        short = means_of_boxes(image.transpose(1, 0, 2), count).transpose(1, 0, 2)
        small = means_of_boxes(short, count)
        nearest = ((np.arange(side) + 0.5) * count / side).astype(int)
        found = corrupted("pixelate", torch.from_numpy(image)[None], severity, variant)[0].numpy()
        assert np.array_equal(found, small[nearest][:, nearest])


def test_pixelation_to_a_half_in_closed_form():
    image = torch.tensor([[[0, 1], [3, 0]], [[10, 20], [30, 41]]]).byte()  # 2 x 2 blocks side by side
    image = torch.cat((image[0], image[1]), 1)[None, :, :, None].expand(-1, -1, -1, 3)
    # Lines (0 + 1) / 2 -> 1 and (3 + 0) / 2 -> 2, then (1 + 2) / 2 -> 2; 15 and 36, then 26.
    expected = torch.tensor([2, 2, 26, 26]).byte()[None, None, :, None].expand(1, 2, 4, 3)
    assert torch.equal(corrupted("pixelate", image, 2), expected)


def test_pixelation_keeps_as_many_pixels_as_it_says():
    rows = torch.from_numpy(np.random.Generator(np.random.PCG64(3)).permutation(240 * 200).reshape(1, 240, 200))
    images = torch.stack((rows & 255, rows >> 8, rows & 63), -1).byte()
    for severity in range(1, 6):
        share = parameter("pixelate", "imagenet224", severity)
        found = corrupted("pixelate", images, severity)[0].int()
        edges = (found.diff(dim=0).abs().sum((1, 2)) > 0).sum(), (found.diff(dim=1).abs().sum((0, 2)) > 0).sum()
        assert [e.item() + 1 for e in edges] == [int(240 * share), int(200 * share)]


def test_where_boxes_take_in_two_pixels_they_are_not_taken_for_copies():
    assert digital._copies((89, 89), (224, 224))
    assert not digital._copies((74, 74), (299, 299))
    ramp = Image.fromarray(np.arange(74 * 74 * 3, dtype=np.int64).reshape(74, 74, 3).astype(np.uint8))
    by_box, nearest = (np.asarray(ramp.resize((299, 299), m)) for m in (Image.BOX, Image.NEAREST))
    assert not np.array_equal(by_box, nearest)


@modes
def test_jpeg_is_pillows_to_the_bit(mode):
    for shape in SHAPES:
        images = pictures(*shape)
        for variant in table.variants():
            for severity in (1, 3, 5):
                quality = parameter("jpeg_compression", variant, severity)
                found = corrupted("jpeg_compression", torch.from_numpy(images), severity, variant, mode)
                for row, image in zip(found.numpy(), images, strict=True):
                    assert np.array_equal(row, jpeg_compression(image, quality))


def test_jpeg_of_constant_greys_in_closed_form():
    # A block of the grey v has the single coefficient 8 * (v - 128), rounded to a multiple of the table's first step.
    greys = torch.arange(0, 256, 5, dtype=torch.uint8)
    images = greys[:, None, None, None].expand(-1, 16, 16, 3)
    for variant in table.variants():
        for severity in range(1, 6):
            quality = parameter("jpeg_compression", variant, severity)
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


@pytest.mark.parametrize("name", ["jpeg_compression", "pixelate"])
def test_more_is_lost_at_each_severity(name):
    images = torch.from_numpy(photos(4, 64, 64))
    for variant in table.variants():
        found = [corrupted(name, images, s, variant).int() for s in range(1, 6)]
        errors = [(f - images).float().square().mean().item() for f in found]
        assert errors == sorted(errors)
        assert errors[0] > 0
