"""Elastic transformation: identities and shifts in closed form, then OpenCV's warp, SciPy's Gaussian and sampling."""

import numpy as np
import pytest
import torch
from corruption_references import photos
from references_elastic import displace_by_scipy, forward_affine, triangle
from scipy import ndimage, stats

from holdfast import draws
from holdfast.corruptions import table
from holdfast.corruptions.elastic import (
    ELASTIC_TRANSFORM,
    displace,
    draw_elastic,
    elastic_transform,
    inverse_affine,
    smooth,
    warp,
)
from holdfast.records import Corruption

SIDES = {"imagenet224": 224, "cifar32": 32, "tiny64": 64, "inception299": 299}
EVERY = [(v, s) for v in ELASTIC_TRANSFORM for s in range(1, 6)]


def keys(count):
    return draws.keys([str(i) for i in range(count)])


def planes(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).double()


def offsets(values):
    return torch.as_tensor(np.array(values, float)).view(-1, 6)


def test_parameters_are_multiples_of_the_published_sizes():
    factors = [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)]
    for variant, base in (("imagenet224", 244), ("inception299", 360)):
        np.testing.assert_allclose(ELASTIC_TRANSFORM[variant], base * np.array(factors))


@pytest.mark.parametrize(("variant", "severity"), EVERY)
def test_nothing_moves_where_every_draw_is_in_the_middle(variant, severity):
    corruption = Corruption(name="elastic_transform", severity=severity, variant=variant)
    for height, width in ((40, 56), (33, 9), (2, 2), (1, 1)):
        images = torch.from_numpy(photos(2, 60, 60)[:, :height, :width].copy())
        field = torch.full((2, 6 + 2 * height * width), 0.5)
        assert torch.equal(table.corrupt(images, corruption, keys(2), field=field), images)


@pytest.mark.parametrize(("across", "down"), [(5, 0), (0, -3), (-7, 11), (31, -40)])
def test_equal_offsets_shift_the_image_and_mirror_it_without_its_edge(across, down):
    images = photos(1, 40, 56)
    found = warp(planes(images), inverse_affine(offsets([across, down] * 3), 40, 56))[0].permute(1, 2, 0)
    margin = 50
    wide = np.pad(images[0], ((margin,) * 2, (margin,) * 2, (0, 0)), mode="reflect")
    expected = wide[margin - down : margin - down + 40, margin - across : margin - across + 56]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_half_a_pixel_is_the_mean_of_two():
    line = torch.tensor([[0.0, 10, 40, 20]], dtype=torch.float64).view(1, 1, 1, 4)
    moved = warp(line, inverse_affine(offsets([0.5, 0] * 3), 1, 4))
    np.testing.assert_allclose(moved.flatten(), [5, 5, 25, 30], atol=1e-12)  # the first lies between 10 and 0
    directions = torch.zeros(1, 2, 1, 4, dtype=torch.float64)
    directions[:, 0] = -0.25
    moved = displace(line, directions, alpha=2)
    np.testing.assert_allclose(moved.flatten(), [0, 5, 25, 30], atol=1e-12)  # the first lies between 0 and 0


def test_the_affine_map_takes_the_corners_where_they_were_sent():
    random = np.random.default_rng(0)
    for height, width in ((224, 224), (299, 299), (40, 56), (5, 1)):
        moves = random.uniform(-4, 4, (20, 3, 2))
        found = inverse_affine(offsets(moves), height, width).numpy()
        for inverse, move in zip(found, moves, strict=True):
            after = np.column_stack([triangle(height, width) + move, np.ones(3)])
            np.testing.assert_allclose(after @ inverse.T, triangle(height, width), atol=1e-6)
            whole = np.vstack([forward_affine(move, height, width), [0, 0, 1]])
            np.testing.assert_allclose(np.linalg.inv(whole)[:2], inverse, rtol=1e-6, atol=1e-6)


def test_a_map_that_cannot_be_inverted_fetches_the_first_pixel():
    images = photos(1, 30, 30)
    inverse = inverse_affine(offsets([0, -20, 0, 0, 20, 0]), 30, 30)  # all three corners meet in one point
    assert torch.isfinite(inverse).all()
    found = warp(planes(images), inverse)[0]
    assert torch.equal(found, planes(images)[0, :, :1, :1].expand(3, 30, 30))


@pytest.mark.parametrize("shape", [(224, 224), (100, 41), (1, 7), (3, 1)])
@pytest.mark.parametrize("sigma", [0.96, 2.44, 6.4, 19.52, 170.8])
def test_smoothing_is_that_of_scipy(shape, sigma):
    noise = np.random.default_rng(1).uniform(-1, 1, (2, *shape))
    found = smooth(torch.from_numpy(noise), sigma).numpy()
    for plane, expected in zip(found, noise, strict=True):
        expected = ndimage.gaussian_filter(expected, sigma, mode="reflect", truncate=3)
        np.testing.assert_allclose(plane, expected, atol=1e-13)


def test_smoothing_keeps_a_constant_and_its_planes_apart():
    constant = torch.full((1, 90, 90), 0.3, dtype=torch.float64)
    torch.testing.assert_close(smooth(constant, 2.44), constant)
    noise = torch.rand(3, 90, 90, dtype=torch.float64, generator=draws.generator("planes"))
    torch.testing.assert_close(smooth(noise, 2.44)[1:2], smooth(noise[1:2], 2.44), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("variant", "severity"), EVERY)
def test_the_affine_part_is_that_of_opencv(variant, severity):
    cv2 = pytest.importorskip("cv2")
    if int(cv2.__version__.split(".")[0]) < 5:
        pytest.skip("OpenCV 4 rounds the places it fetches from to 1/32 of a pixel")
    reach, side = ELASTIC_TRANSFORM[variant][severity - 1][2], SIDES[variant]
    images = photos(2, side, side)
    moves = np.random.default_rng(severity).uniform(-reach, reach, (2, 3, 2)).astype(np.float32)
    found = warp(planes(images), inverse_affine(offsets(moves), side, side)).permute(0, 2, 3, 1).numpy()
    for image, move, ours in zip(images, moves, found, strict=True):
        before = triangle(side, side).astype(np.float32)
        matrix = cv2.getAffineTransform(before, before + move)
        x = image.astype(np.float32) / 255
        theirs = 255 * cv2.warpAffine(x, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
        assert np.abs(theirs - ours).max() < 0.02
        assert (np.floor(theirs + 1e-4) != np.floor(ours + 1e-4)).mean() <= 0.005


def test_displacements_of_any_length_are_sampled_as_by_scipy():
    images = photos(1, 40, 56)
    moves = np.random.default_rng(3).normal(0, 60, (2, 40, 56))
    found = displace(planes(images), torch.from_numpy(moves)[None] / 8, alpha=8)[0].permute(1, 2, 0)
    np.testing.assert_allclose(found, displace_by_scipy(images[0].astype(float), *moves), atol=1e-4)


@pytest.mark.parametrize(("variant", "severity"), [e for e in EVERY if ELASTIC_TRANSFORM[e[0]][e[1] - 1][0]])
def test_the_displacement_is_as_long_as_the_definition_says(variant, severity):
    alpha, sigma, _ = ELASTIC_TRANSFORM[variant][severity - 1]
    side = SIDES[variant]
    share = np.abs(ndimage.gaussian_filter1d(np.eye(side), sigma, mode="reflect", truncate=3, axis=0))
    expected = alpha * np.sqrt(np.outer((share**2).sum(1), (share**2).sum(1)).mean() / 3)  # a uniform's variance is 1/3
    field = draw_elastic(keys(24), (side, side), parameters=(), parts=(severity, "length"))[:, 6:]
    moves = alpha * smooth((2 * field - 1).double().view(48, side, side), sigma)
    # As many independent numbers as patches of the Gaussian's size fit into 48 planes; at least one per plane.
    patches = 48 * max(1, (side / (2 * np.sqrt(np.pi) * sigma)) ** 2)
    assert abs(moves.square().mean().sqrt().item() / expected - 1) < 3.5 / np.sqrt(2 * patches)


def test_displacements_at_224_are_the_measured_ones():
    lengths = []
    for severity, (alpha, sigma, _) in enumerate(ELASTIC_TRANSFORM["imagenet224"][1:], start=2):
        field = draw_elastic(keys(8), (224, 224), parameters=(), parts=(severity,))[:, 6:]
        lengths.append(
            (alpha * smooth((2 * field - 1).double().view(16, 224, 224), sigma)).square().mean().sqrt().item()
        )
    np.testing.assert_allclose(lengths, [4.8, 0.84, 1.16, 2.0], rtol=0.1)


def test_without_displacement_the_draws_stay_in_order():
    for variant, severity in EVERY:
        corruption = Corruption(name="elastic_transform", severity=severity, variant=variant)
        assert table.fields(corruption, keys(2), 30, 20).shape == (2, 6 + 2 * 30 * 20)
    images = torch.from_numpy(photos(2, 32, 32))
    field = draw_elastic(keys(2), (32, 32), parameters=(), parts=(0,))
    other = torch.cat([field[:, :6], torch.zeros(2, 2 * 32 * 32)], 1)
    first, third = ELASTIC_TRANSFORM["cifar32"][0], ELASTIC_TRANSFORM["cifar32"][2]
    for parameters, same in ((first, True), (third, False)):
        found = [elastic_transform(images, parameters, field=f, mode="fast") for f in (field, other)]
        assert torch.equal(*found) == same


def test_the_draws_are_uniform_and_differ_from_image_to_image():
    field = draw_elastic(keys(20), (32, 32), parameters=(), parts=(0, "uniform")).double()
    assert stats.kstest(field.flatten().numpy(), "uniform").pvalue > 1e-3
    centred = field - 0.5
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs((a * b).mean().item()) < 4 / 12 / np.sqrt(a.numel())


def test_flat_and_burnt_regions_keep_their_level():
    for level in (0, 1, 77, 254, 255):
        images = torch.full((3, 50, 50, 3), level, dtype=torch.uint8)
        for variant, severity in EVERY:
            corruption = Corruption(name="elastic_transform", severity=severity, variant=variant)
            assert torch.equal(table.corrupt(images, corruption, keys(3)), images)
