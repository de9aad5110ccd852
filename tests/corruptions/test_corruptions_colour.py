"""Brightness, contrast and saturation against their closed forms, on constants, on greys and on made pictures."""

import numpy as np
import pytest
import torch
from corruption_references import photos, reference

from holdfast import draws
from holdfast.corruptions import table
from holdfast.records import Corruption

modes = pytest.mark.parametrize("mode", table.MODES)
COLOURS = [[200, 100, 50], [10, 20, 30], [250, 0, 125], [3, 3, 3], [255, 255, 255], [0, 0, 7], [90, 91, 90]]


def corrupted(name, images, severity, variant="imagenet224", mode="fast"):
    corruption = Corruption(name=name, severity=severity, variant=variant, mode=mode)
    return table.corrupt(images, corruption, draws.keys([str(i) for i in range(len(images))]))


def parameters(name, severity, variant="imagenet224"):
    return table.entry(name).severities[variant][severity - 1]


def colours(rows):
    return torch.tensor(rows, dtype=torch.uint8)[:, None, None, :].expand(-1, 4, 6, 3)


def greys():
    return torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 1, 3)


def assert_cut(found, exact):
    """`found` is the whole part of `exact`, or one less where `exact` is a whole number but for the last bits."""
    rest = np.asarray(exact, float) - np.asarray(found, float)
    assert rest.min() > -1e-4
    assert rest.max() < 1 + 1e-4


@modes
def test_brightness_of_constant_colours_in_closed_form(mode):
    for severity in range(1, 6):
        found = corrupted("brightness", colours(COLOURS), severity, mode=mode)
        for row, (r, g, b) in zip(found, COLOURS, strict=True):
            value = max(r, g, b) / 255
            assert_cut(row[0, 0], np.array([r, g, b]) * min(value + severity / 10, 1) / value)
            assert torch.equal(row, row[:1, :1].expand_as(row))


@modes
def test_brightness_makes_black_the_grey_c(mode):
    for severity, grey in zip(range(1, 6), [25, 51, 76, 102, 127], strict=True):
        assert corrupted("brightness", colours([[0, 0, 0]]), severity, mode=mode).unique().tolist() == [grey]


@modes
def test_brightness_of_every_grey_is_the_double_precision_sum(mode):
    for variant in table.variants():
        for severity in range(1, 6):
            (c,) = parameters("brightness", severity, variant)
            expected = [int(min(level / 255 + c, 1.0) * 255) for level in range(256)]
            assert corrupted("brightness", greys(), severity, variant, mode)[:, 0, 0, 1].tolist() == expected


@modes
def test_saturation_of_constant_colours_in_closed_form(mode):
    for variant in table.variants():
        for severity in range(1, 6):
            factor, added = parameters("saturate", severity, variant)
            found = corrupted("saturate", colours(COLOURS), severity, variant, mode)
            for row, colour in zip(found, COLOURS, strict=True):
                value, least = max(colour), min(colour)
                if value == least:
                    continue
                before = (value - least) / value
                after = min(before * factor + added, 1)
                assert_cut(row[0, 0], [value - (value - x) * after / before for x in colour])
                assert torch.equal(row, row[:1, :1].expand_as(row))


@modes
def test_the_quirk_of_the_published_sets_grey_becomes_reddish_where_saturation_is_added(mode):
    for severity, expected in zip(range(1, 6), [[128] * 3] * 3 + [[128, 115, 115], [128, 102, 102]], strict=True):
        assert corrupted("saturate", colours([[128] * 3]), severity, mode=mode)[0, 0, 0].tolist() == expected


@modes
def test_saturation_of_every_grey(mode):
    for variant in table.variants():
        for severity in range(1, 6):
            _, added = parameters("saturate", severity, variant)
            found = corrupted("saturate", greys(), severity, variant, mode)[:, 0, 0]
            assert found[:, 0].tolist() == list(range(256))
            for channel in (1, 2):
                assert_cut(found[:, channel], np.arange(256) * (1 - added))


@modes
def test_saturation_keeps_the_largest_channel_and_the_order_of_the_channels(mode):
    images = torch.from_numpy(photos(2, 64, 64))
    images[:, :8] = torch.tensor([[0, 0, 0]]).byte()
    images[:, 8:16] = torch.tensor([[255, 0, 255]]).byte()
    for severity in range(1, 6):
        found = corrupted("saturate", images, severity, mode=mode)
        assert torch.equal(found.amax(-1), images.amax(-1))
        coloured = images.amax(-1) > images.amin(-1)
        order = images.long().argsort(dim=-1, stable=True)
        assert (found.int().gather(-1, order)[coloured].diff(dim=-1) >= -1).all()
        spread = (images.amax(-1).int() - images.amin(-1), found.amax(-1).int() - found.amin(-1))
        assert ((spread[1] < spread[0]) == (severity < 3))[spread[0] > 3].float().mean() > 0.9


@modes
def test_contrast_leaves_a_constant_image_as_it_is(mode):
    for height, width in ((1, 1), (3, 7), (224, 224)):
        levels = greys()[:: 1 if height < 9 else 17]
        images = levels.expand(-1, height, width, 3)
        for severity in range(1, 6):
            assert torch.equal(corrupted("contrast", images, severity, mode=mode), images)


@modes
def test_contrast_of_two_levels_in_closed_form_each_channel_on_its_own(mode):
    image = torch.zeros(1, 4, 6, 3, dtype=torch.uint8)
    image[:, :2] = torch.tensor([200, 40, 0]).byte()
    for severity in range(1, 6):
        (c,) = parameters("contrast", severity)
        found = corrupted("contrast", image, severity, mode=mode)
        assert_cut(found[0, 0, 0], [100 + 100 * c, 20 + 20 * c, 0])
        assert_cut(found[0, 3, 5], [100 - 100 * c, 20 - 20 * c, 0])


@modes
def test_contrast_keeps_the_mean_but_for_the_cut(mode):
    images = torch.from_numpy(photos(3, 61, 45))
    for variant in table.variants():
        for severity in range(1, 6):
            found = corrupted("contrast", images, severity, variant, mode)
            lost = images.double().mean((1, 2)) - found.double().mean((1, 2))
            assert lost.min() > 0
            assert lost.max() < 1


@modes
def test_contrast_does_not_depend_on_where_the_pixels_are(mode):
    images = torch.from_numpy(photos(2, 50, 50))
    for severity in range(1, 6):
        found = corrupted("contrast", images, severity, mode=mode)
        order = draws.permutation(50 * 50, "order")
        shuffled = images.view(2, -1, 3)[:, order].view(images.shape)
        again = corrupted("contrast", shuffled, severity, mode=mode)
        assert torch.equal(again.view(2, -1, 3), found.view(2, -1, 3)[:, order])


@pytest.mark.parametrize(("name", "share"), [("brightness", 0.005), ("contrast", 0), ("saturate", 0.1)])
@modes
def test_every_variant_is_the_references_but_for_whole_levels(name, share, mode):
    images = photos(3, 48, 61)
    for variant in table.variants():
        for severity in range(1, 6):
            expected = np.stack([reference(name, i, parameters(name, severity, variant)) for i in images])
            found = corrupted(name, torch.from_numpy(images), severity, variant, mode).numpy()
            difference = np.abs(found.astype(int) - expected)
            assert difference.max() <= (1 if share else 0)
            assert (difference > 0).mean() <= (share if mode == "fast" else share / 5)
