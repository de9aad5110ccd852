"""Gaussian noise: what it is on constants, and its distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

from holdfast import draws
from holdfast.corruptions import table
from holdfast.corruptions.noise import gaussian_noise
from holdfast.records import Corruption

EVERY = [(v, s) for v in ("imagenet224", "cifar32") for s in range(1, 6)]


def noisy(level, severity, variant, count=512):
    images = torch.full((count, 32, 32, 3), level, dtype=torch.uint8)
    corruption = Corruption(name="gaussian_noise", severity=severity, variant=variant)
    return table.corrupt(images, corruption, draws.keys([f"image{i}" for i in range(count)])).double()


def test_closed_form_each_value_moves_by_its_own_number_and_is_cut_not_rounded():
    images = torch.tensor([[[[0, 100, 255], [10, 20, 30]]]], dtype=torch.uint8)
    field = torch.tensor([[[[-1.0, 0.5, 9.0], [0.0, 1.0, -0.1]]]])
    levels = gaussian_noise(images, (0.1,), field=field, mode="fast")
    expected = torch.tensor([[[[-25.5, 112.75, 484.5], [10.0, 45.5, 27.45]]]])
    torch.testing.assert_close(levels, expected)
    corruption = Corruption(name="gaussian_noise", severity=5, variant="cifar32")  # c = 0.1
    stored = table.corrupt(images, corruption, draws.keys(["a"]), field=field)
    assert stored.tolist() == [[[[0, 112, 255], [10, 45, 27]]]]


@pytest.mark.parametrize(("variant", "severity"), EVERY)
def test_mean_and_deviation_are_those_of_cut_and_clipped_noise(variant, severity):
    scale = 255 * table.entry("gaussian_noise").severities[variant][severity - 1][0]
    found = noisy(128, severity, variant)
    # The exact distribution of floor(clip(128 + scale * z, 0, 255)).
    edges = stats.norm.cdf((np.arange(257) - 128) / scale)
    chance = np.diff(edges)
    chance[0], chance[254], chance[255] = edges[1], edges[255] - edges[254], 1 - edges[255]
    mean = (chance * np.arange(256)).sum()
    deviation = np.sqrt((chance * (np.arange(256) - mean) ** 2).sum())
    error = deviation / np.sqrt(found.numel())
    assert abs(found.mean().item() - mean) < 3.5 * error
    assert abs(found.std().item() / deviation - 1) < 0.01
    for channel in range(3):
        assert abs(found[..., channel].mean().item() - mean) < 3.5 * error * np.sqrt(3)


def test_the_field_is_normal_and_its_values_are_independent():
    field = table.fields(
        Corruption(name="gaussian_noise", severity=1, variant="cifar32"),
        draws.keys([f"image{i}" for i in range(40)]),
        32,
        32,
    ).double()
    assert stats.kstest(field.flatten().numpy(), "norm").pvalue > 1e-3
    limit = 4 / np.sqrt(field.numel())
    pairs = {
        "channels": (field[..., 0], field[..., 1]),
        "columns": (field[:, :, 1:], field[:, :, :-1]),
        "rows": (field[:, 1:], field[:, :-1]),
        "images": (field[1:], field[:-1]),
    }
    for what, (a, b) in pairs.items():
        assert abs((a * b).mean().item()) < limit * 1.8, what
