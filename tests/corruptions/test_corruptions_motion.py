"""Motion blur: one pixel's streak, constants, a loop over taps, and the range of directions."""

import math

import numpy as np
import pytest
import torch
from corruption_references import photos
from references_blur import motion_blur as motion_in_loops
from references_blur import streaked

from holdfast import draws
from holdfast.corruptions import table
from holdfast.corruptions.motion import MOTION_BLUR, draw_angle, motion_blur, streak, taps
from holdfast.records import Corruption

MODES = ["fast", "reference"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("angle", "step"), [(0, (0, 1)), (90, (1, 0)), (-90, (-1, 0))])
def test_one_bright_pixel_becomes_half_a_gaussian_on_one_side(angle, step, mode):
    radius, sigma = 5, 2
    image = torch.zeros(1, 31, 33, 3, dtype=torch.uint8)
    image[0, 15, 16, 1] = 255
    found = streak(image, [angle], radius=radius, sigma=sigma, mode=mode)
    weights = np.exp(-(np.arange(11) ** 2) / (2 * sigma**2))
    expected = np.zeros((31, 33))
    for i, weight in enumerate(weights / weights.sum()):
        expected[15 - i * step[0], 16 - i * step[1]] = math.floor(255 * weight)
    assert np.array_equal(found[0, :, :, 1], expected)
    assert found[..., [0, 2]].max() == 0


def test_taps_of_a_diagonal_in_closed_form():
    # i / sqrt(2) - 0.5, rounded up: 0, 1, 1, 2, 3, 4, 4; steps that are met twice weigh twice.
    steps, weights = taps(45, radius=3, sigma=1e6)
    assert steps == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]
    np.testing.assert_allclose(weights, np.array([1, 2, 1, 1, 2]) / 7, atol=1e-9)
    assert taps(-45, radius=1, sigma=1)[0] == [(0, 0), (-1, 1)]


@pytest.mark.parametrize("mode", MODES)
def test_constants_stay_at_every_angle(mode):
    levels = torch.arange(0, 256, 5, dtype=torch.uint8)[:, None, None, None].expand(-1, 9, 12, 3)
    keys = draws.keys([str(i) for i in range(len(levels))])
    for variant in table.variants():
        for severity in range(1, 6):
            corruption = Corruption(name="motion_blur", severity=severity, variant=variant, mode=mode)
            assert torch.equal(table.corrupt(levels, corruption, keys), levels)


@pytest.mark.parametrize("variant", table.variants())
def test_it_is_a_loop_over_the_taps(variant):
    image = photos(1, 40, 33)
    for parameters in MOTION_BLUR[variant]:
        for u in (0.0, 0.13, 0.5, 0.77, 0.99):
            expected = motion_in_loops(image[0] / 255.0, *parameters, np.array([u])) * 255
            field = torch.tensor([[u]], dtype=torch.float64)
            for mode in MODES:
                found = motion_blur(torch.from_numpy(image), parameters, field=field, mode=mode)[0].numpy()
                difference = found - expected
                assert np.all((difference < 1e-3) & (difference > -1 - 1e-3))
                assert (found != np.floor(expected)).mean() <= 0.002


@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (20, 1), (3, 2)])
def test_the_edge_goes_on_where_an_image_is_shorter_than_the_streak(shape):
    image = photos(1, 20, 20)[:, : shape[0], : shape[1]]
    for angle in (-135.0, -90.0, -45.0, 17.0, 45.0, 100.0, 180.0):
        expected = np.floor(streaked(image[0] / 255.0, 10, 4, angle) * 255)
        found = streak(torch.from_numpy(image), [angle], radius=10, sigma=4, mode="reference")[0].numpy()
        assert np.array_equal(found, expected)


def test_directions_are_uniform_between_both_diagonals():
    u = draw_angle(draws.keys([str(i) for i in range(2000)]), (8, 8), parameters=(10, 3), parts=(0, "m", 1))[:, 0]
    assert u.min() >= 0 and u.max() < 1
    np.testing.assert_allclose(np.histogram(u, bins=5, range=(0, 1))[0] / 2000, 0.2, atol=0.04)
    point = torch.zeros(2, 40, 40, 1, dtype=torch.uint8)
    point[:, 20, 20] = 255
    ends = motion_blur(point, (10, 8), field=torch.tensor([[0.0], [1.0]]), mode="fast")[..., 0].nonzero()
    first, last = ends[ends[:, 0] == 0], ends[ends[:, 0] == 1]
    # Sampled up and to the right, the point is smeared down and to the left; and the other way round.
    assert torch.equal(first[:, 1] - 20, 20 - first[:, 2]) and first[:, 1].max() > 30
    assert torch.equal(last[:, 1], last[:, 2]) and last[:, 1].min() < 10
