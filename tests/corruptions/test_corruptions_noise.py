"""Noise: what it is on constants and given draws, and its distribution."""

import numpy as np
import pytest
import torch
from corruption_references import photos, reference
from scipy import stats

from holdfast import draws
from holdfast.corruptions import noise, table
from holdfast.records import Corruption

EVERY = [(v, s) for v in table.variants() for s in range(1, 6)]
every = pytest.mark.parametrize(("variant", "severity"), EVERY)
modes = pytest.mark.parametrize("mode", table.MODES)
PHOTONS = sorted({c for rows in noise.SHOT_NOISE.values() for (c,) in rows})


def parameter(name, variant, severity):
    return table.entry(name).severities[variant][severity - 1][0]


def noisy(name, level, severity, variant, count=256):
    images = torch.full((count, 32, 32, 3), level, dtype=torch.uint8)
    corruption = Corruption(name=name, severity=severity, variant=variant)
    return table.corrupt(images, corruption, draws.keys([f"image{i}" for i in range(count)])).double()


def assert_levels(found, chance):
    """Mean, overall and of each channel, and deviation of levels that have these 256 chances."""
    mean = (chance * np.arange(256)).sum()
    deviation = np.sqrt((chance * (np.arange(256) - mean) ** 2).sum())
    error = deviation / np.sqrt(found.numel())
    assert abs(found.mean().item() - mean) < 3.5 * error
    assert abs(found.std().item() / deviation - 1) < 0.012
    for channel in range(3):
        assert abs(found[..., channel].mean().item() - mean) < 3.5 * error * np.sqrt(3)


def cut_normal(level, scale):
    """The chance of each level under floor(clip(level + scale * z, 0, 255))."""
    edges = stats.norm.cdf((np.arange(257) - level) / scale)
    chance = np.diff(edges)
    chance[0], chance[254], chance[255] = edges[1], edges[255] - edges[254], 1 - edges[255]
    return chance


def cut_poisson(level, photons):
    """The chance of each level under floor(255 * min(k / c, 1)), k Poisson with the mean level / 255 * c."""
    chance = stats.poisson.pmf(np.arange(photons), level / 255 * photons)
    levels = (np.arange(photons) / photons * 255).astype(int)
    return np.bincount(np.append(levels, 255), np.append(chance, 1 - chance.sum()), minlength=256)


def every_word():
    """Each word once, in ascending order: int16 [1, 256, 256, 1]."""
    return torch.arange(-32768, 32768).to(torch.int16).view(1, 256, 256, 1)


def test_gaussian_closed_form_each_value_moves_by_its_own_number_and_is_cut_not_rounded():
    images = torch.tensor([[[[0, 100, 255], [10, 20, 30]]]], dtype=torch.uint8)
    field = torch.tensor([[[[-1.0, 0.5, 9.0], [0.0, 1.0, -0.1]]]])
    levels = noise.gaussian_noise(images, (0.1,), field=field, mode="fast")
    expected = torch.tensor([[[[-25.5, 112.75, 484.5], [10.0, 45.5, 27.45]]]])
    torch.testing.assert_close(levels, expected)
    corruption = Corruption(name="gaussian_noise", severity=5, variant="cifar32")  # c = 0.1
    stored = table.corrupt(images, corruption, draws.keys(["a"]), field=field)
    assert stored.tolist() == [[[[0, 112, 255], [10, 45, 27]]]]


@modes
def test_speckle_closed_form_a_value_moves_in_proportion_to_itself(mode):
    images = torch.tensor([[[[0, 100, 255], [10, 20, 30]]]], dtype=torch.uint8)
    field = torch.tensor([[[[9.0, 0.53, -0.51], [0.0, -30.0, 1.01]]]])
    corruption = Corruption(name="speckle_noise", severity=5, variant="cifar32", mode=mode)  # c = 0.2
    stored = table.corrupt(images, corruption, draws.keys(["a"]), field=field)
    assert stored.tolist() == [[[[0, 110, 228], [10, 0, 36]]]]


@every
def test_gaussian_noise_has_the_mean_and_deviation_of_the_definition(variant, severity):
    scale = 255 * parameter("gaussian_noise", variant, severity)
    assert_levels(noisy("gaussian_noise", 128, severity, variant), cut_normal(128, scale))


@every
def test_speckle_noise_has_the_mean_and_deviation_of_the_definition(variant, severity):
    scale = parameter("speckle_noise", variant, severity)
    for level in (60, 180):
        assert_levels(noisy("speckle_noise", level, severity, variant), cut_normal(level, level * scale))


@every
def test_shot_noise_has_the_mean_and_deviation_of_the_definition(variant, severity):
    photons = parameter("shot_noise", variant, severity)
    for level in (60, 180):
        assert_levels(noisy("shot_noise", level, severity, variant), cut_poisson(level, photons))


@pytest.mark.parametrize("severity", range(1, 6))
def test_photons_are_poisson_distributed(severity):
    photons, level, count = parameter("shot_noise", "imagenet224", severity), 90, 128
    found = noisy("shot_noise", level, severity, "imagenet224", count).numpy()
    counts = np.ceil(found / 255 * photons - 1e-9)  # the level is the whole part of 255 * k / c
    rate = level / 255 * photons
    expected = stats.poisson.pmf(np.arange(photons), rate) * found.size
    observed = np.bincount(counts.astype(int).ravel(), minlength=photons + 1)
    kept = np.flatnonzero(expected > 20)
    rest = found.size - expected[kept].sum(), found.size - observed[kept].sum()
    pairs = [(expected[k], observed[k]) for k in kept] + ([rest] if rest[0] > 20 else [])
    if rest[0] <= 20:
        assert abs(rest[1] - rest[0]) < 5 + 5 * np.sqrt(rest[0])
    statistic = sum((o - e) ** 2 / e for e, o in pairs)
    assert stats.chi2.sf(statistic, len(pairs) - 1) > 1e-3


@pytest.mark.parametrize("photons", PHOTONS)
def test_every_chance_of_shot_noise_is_right_to_a_65536th(photons):
    for level in (0, 1, 3, 40, 100, 128, 200, 254, 255):
        images = torch.full((1, 256, 256, 1), level, dtype=torch.uint8)
        found = noise.shot_noise(images, (photons,), field=every_word(), mode="fast").flatten()
        assert (found[1:] >= found[:-1]).all()
        share = np.bincount(found.numpy(), minlength=256) / 65536
        assert np.abs(share - cut_poisson(level, photons)).max() <= 1 / 65536 + 1e-9


@pytest.mark.parametrize("photons", PHOTONS)
def test_both_modes_of_shot_noise_agree_to_the_bit_on_every_level(photons):
    words = every_word().flatten()
    for place, levels in enumerate(torch.arange(256, dtype=torch.uint8).split(32)):
        images = levels[:, None, None, None].expand(-1, 128, 128, 1)
        field = words[place % 4 :: 4].view(1, 128, 128, 1).expand(len(levels), -1, -1, -1)
        fast, exact = (noise.shot_noise(images, (photons,), field=field, mode=m) for m in ("fast", "reference"))
        assert torch.equal(fast, exact.to(torch.uint8))


@modes
def test_shot_noise_of_three_photons_in_closed_form(mode):
    # White counts 3 on average: none with chance e^-3, at most one 4 e^-3, at most two 8.5 e^-3; 3 or more are white.
    ends = np.exp(-3) * np.array([1, 4, 8.5])
    last = np.floor(ends * 65536 - 0.5).astype(int) - 32768  # (n + 32768.5) / 65536 <= end
    words = torch.from_numpy(np.stack((last, last + 1), 1).reshape(1, 1, 2, 3)).to(torch.int16)
    white = torch.full((1, 1, 2, 3), 255, dtype=torch.uint8)
    corruption = Corruption(name="shot_noise", severity=5, variant="imagenet224", mode=mode)
    found = table.corrupt(white, corruption, draws.keys(["a"]), field=words)
    assert found.flatten().tolist() == [0, 85, 85, 170, 170, 255]
    assert table.corrupt(white * 0, corruption, draws.keys(["a"]), field=words).max() == 0


@pytest.mark.parametrize("share", sorted({c for rows in noise.IMPULSE_NOISE.values() for (c,) in rows}))
def test_impulse_noise_makes_half_of_the_share_white_and_half_black(share):
    images = torch.full((1, 256, 256, 1), 77, dtype=torch.uint8)
    for mode in table.MODES:
        found = noise.impulse_noise(images, (share,), field=every_word(), mode=mode).flatten().int()
        white, black = (found == 255).sum().item(), (found == 0).sum().item()
        assert (found[:white] == 255).all()
        assert (found[white : white + black] == 0).all()
        assert (found[white + black :] == 77).all()
        assert abs(white - share / 2 * 65536) <= 0.5
        assert abs(white + black - share * 65536) <= 0.5


@every
def test_impulse_noise_hits_each_channel_on_its_own(variant, severity):
    share = parameter("impulse_noise", variant, severity)
    found = noisy("impulse_noise", 100, severity, variant, count=128).numpy()
    assert set(np.unique(found)) == {0, 100, 255}
    for chance, level in ((share / 2, 0), (share / 2, 255), (1 - share, 100)):
        hits = (found == level).sum(axis=(0, 1, 2))
        error = np.sqrt(chance * (1 - chance) * found[..., 0].size)
        assert np.abs(hits - chance * found[..., 0].size).max() < 4 * error
    kind = np.searchsorted([0, 100, 255], found)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        together = np.bincount((kind[..., one] * 3 + kind[..., other]).ravel(), minlength=9).reshape(3, 3)
        assert stats.chi2_contingency(together).pvalue > 1e-4


@modes
@pytest.mark.parametrize("name", ["shot_noise", "impulse_noise"])
def test_words_give_the_pixels_of_the_reference_at_odd_sizes(name, mode):
    for height, width in ((1, 1), (7, 5), (33, 50)):
        images = photos(2, 50, 50)[:, :height, :width]
        for variant, severity in EVERY[::3]:
            corruption = Corruption(name=name, severity=severity, variant=variant, mode=mode)
            keys = draws.keys(["a", "b"])
            field = table.fields(corruption, keys, height, width)
            assert (field.dtype, field.shape) == (torch.int16, (2, height, width, 3))
            found = table.corrupt(torch.from_numpy(images), corruption, keys, field=field)
            parameters = table.entry(name).severities[variant][severity - 1]
            for row, image, words in zip(found.numpy(), images, field.numpy(), strict=True):
                assert np.array_equal(row, reference(name, image, parameters, words))


@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise", "shot_noise", "impulse_noise"])
def test_the_field_has_its_distribution_and_its_values_are_independent(name):
    corruption = Corruption(name=name, severity=1, variant="cifar32")
    field = table.fields(corruption, draws.keys([f"image{i}" for i in range(40)]), 32, 32).double()
    if name in ("shot_noise", "impulse_noise"):
        for byte in (field.numpy().astype(int) >> 8, field.numpy().astype(int)):
            assert stats.chisquare(np.bincount(byte.ravel() & 255, minlength=256)).pvalue > 1e-3
        field = (field + 0.5) / (65536 / np.sqrt(12))  # mean 0, deviation 1
        assert stats.kstest(field.flatten().numpy(), stats.uniform(-np.sqrt(3), np.sqrt(12)).cdf).pvalue > 1e-3
    else:
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
