"""Fog: the diamond-square map against a loop over pixels, its distribution, and what the image keeps."""

import numpy as np
import pytest
import torch
from corruption_references import photos
from references_weather import fog_map, fog_map_in_loops
from scipy import stats

from holdfast import draws
from holdfast.corruptions import table
from holdfast.corruptions.weather import fog, swells
from holdfast.records import Corruption


def uniforms(count, side, seed=0):
    return np.random.Generator(np.random.PCG64(seed)).random((count, side * side - 1))


def foggy(images, severity, variant, **more):
    corruption = Corruption(name="fog", severity=severity, variant=variant)
    return table.corrupt(images, corruption, draws.keys([str(i) for i in range(len(images))]), **more)


@pytest.mark.parametrize(("side", "decay"), [(2, 3), (4, 2), (32, 3), (32, 1.75), (64, 2.5), (256, 1.4)])
def test_the_map_is_that_of_a_loop_over_pixels_with_the_same_draws(side, decay):
    field = uniforms(2, side)
    found = swells(torch.from_numpy(field), side=side, decay=decay).numpy()
    for row, draw in zip(found, field, strict=True):
        expected = fog_map_in_loops(draw, side, decay)
        np.testing.assert_allclose(row, expected, atol=1e-12)
        np.testing.assert_allclose(fog_map(draw, side, decay), expected, atol=1e-12)
        if side == 256:
            break


def test_the_smallest_map_in_closed_form():
    # One corner at 0; centre 1e4 * n0; upper side (2 * centre) / 4 + 1e4 * n1; left side likewise with n2.
    noise = np.array([0.4, -0.6, 0.1])
    raw = np.array([[0, 0.2 - 0.6], [0.2 + 0.1, 0.4]])
    found = swells(torch.from_numpy((noise + 1) / 2)[None], side=2, decay=2.0)[0].numpy()
    np.testing.assert_allclose(found, (raw - raw.min()) / (raw.max() - raw.min()), atol=1e-12)


def test_single_precision_is_enough_for_the_map():
    field = torch.from_numpy(uniforms(4, 256)).float()
    error = swells(field, side=256, decay=1.4).double() - swells(field.double(), side=256, decay=1.4)
    assert error.abs().max() < 1e-6


def test_a_constant_image_spans_what_the_formula_says():
    images = torch.full((2, 256, 256, 3), 100, dtype=torch.uint8)  # the whole map is in sight
    x = 100 / 255
    for severity, (thickness, _, _) in enumerate(table.entry("fog").severities["imagenet224"], start=1):
        found = foggy(images, severity, "imagenet224")
        assert found.amin((1, 2, 3)).tolist() == [int(255 * x * x / (x + thickness))] * 2
        assert set(found.amax((1, 2, 3)).tolist()) <= {99, 100}
        assert torch.equal(found[..., 0], found[..., 2])


def test_an_all_black_image_stays_black_beside_others():
    images = torch.from_numpy(photos(3, 32, 32))
    images[1] = 0
    for severity in range(1, 6):
        found = foggy(images, severity, "cifar32")
        assert found[1].max() == 0
        assert found[0].max() > 0


def test_a_larger_image_gets_the_next_power_of_two():
    for height, width, side in ((257, 9, 512), (256, 256, 256), (10, 10, 256)):
        images = torch.from_numpy(photos(1, height, width))
        corruption = Corruption(name="fog", severity=2, variant="imagenet224")
        field = table.fields(corruption, draws.keys(["0"]), height, width)
        assert field.shape == (1, side * side - 1)
        layer = torch.from_numpy(fog_map(field[0].double().numpy(), side, 2))[:height, :width, None]
        largest = images.max() / 255
        expected = 255 * (images[0] / 255 + 2 * layer) * largest / (largest + 2)
        found = foggy(images, 2, "imagenet224")[0].double()
        assert (expected.clamp(max=255) - found).abs().max() < 1.001


@pytest.mark.parametrize(
    ("variant", "side"), [("imagenet224", 256), ("cifar32", 32), ("tiny64", 64), ("inception299", 512)]
)
def test_each_variant_has_a_map_of_its_own_size(variant, side):
    images = torch.from_numpy(photos(1, 20, 30))
    largest = images.max() / 255
    for severity, (thickness, decay, _) in enumerate(table.entry("fog").severities[variant], start=1):
        corruption = Corruption(name="fog", severity=severity, variant=variant)
        field = table.fields(corruption, draws.keys(["0"]), 20, 30)
        assert field.shape == (1, side * side - 1)
        layer = torch.from_numpy(fog_map(field[0].double().numpy(), side, decay))[:20, :30, None]
        expected = 255 * (images[0] / 255 + thickness * layer) * largest / (largest + thickness)
        found = foggy(images, severity, variant)[0].double()
        assert (expected.clamp(max=255) - found).abs().max() < 1.001


def test_the_field_has_no_silent_size():
    images = torch.from_numpy(photos(1, 32, 32))
    with pytest.raises(RuntimeError, match="shape"):
        fog(images, (1, 2, 32), field=torch.rand(1, 255), mode="fast")


@pytest.mark.parametrize(("decay", "deviation"), [(3.0, 0.13), (1.4, 0.18)])
def test_maps_of_256_have_the_mean_and_deviation_of_the_definition(decay, deviation):
    field = draws.uniform(draws.keys([str(i) for i in range(64)]), (256 * 256 - 1,), "test")
    maps = swells(field, side=256, decay=decay)
    assert maps.amin((1, 2)).eq(0).all()
    assert maps.amax((1, 2)).eq(1).all()
    seen = maps[:, :224, :224]  # the part that lies over an image
    # The mean is 1/2 by symmetry: u and 1 - u are equally likely. One map's mean varies by 0.09.
    assert abs(seen.mean().item() - 0.5) < 3.5 * 0.09 / 8
    assert abs(seen.std((1, 2)).mean().item() - deviation) < 0.01


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_drawn_fog_has_the_distribution_of_the_reference(severity):
    count = 500
    parameters = table.entry("fog").severities["cifar32"][severity - 1]
    corruption = Corruption(name="fog", severity=severity, variant="cifar32")
    field = table.fields(corruption, draws.keys([str(i) for i in range(count)]), 32, 32)
    ours = swells(field.double(), side=32, decay=parameters[1]).numpy()
    theirs = np.stack([fog_map(u, 32, parameters[1]) for u in uniforms(count, 32, seed=severity)])
    for statistic in (
        lambda m: m.mean((1, 2)),
        lambda m: m.std((1, 2)),
        lambda m: m[:, 5, 9],
        lambda m: m[:, :8, :8].mean((1, 2)),
        lambda m: (np.diff(m, axis=1) ** 2).mean((1, 2)),
        lambda m: (np.diff(m, axis=2) ** 2).mean((1, 2)),
    ):
        assert stats.ks_2samp(statistic(ours), statistic(theirs)).pvalue > 1e-3
    np.testing.assert_allclose(radial_spectrum(ours)[1:17], radial_spectrum(theirs)[1:17], rtol=0.05)


def radial_spectrum(maps):
    """Mean amplitude at each whole number of waves across a map of 32 pixels."""
    amplitude = np.abs(np.fft.fft2(maps)).mean(0).ravel()
    waves = np.arange(-16, 16)
    ring = np.fft.ifftshift(np.hypot(waves[:, None], waves)).round().astype(int).ravel()
    return np.bincount(ring, amplitude) / np.bincount(ring)
