"""Zoom blur: its magnifications, the grid against SciPy, constants, and a ramp in closed form."""

import numpy as np
import pytest
import torch
from corruption_references import photos
from references_blur import clipped_zoom
from scipy import ndimage

from holdfast import draws
from holdfast.corruptions import table
from holdfast.corruptions.zoom import ZOOM_BLUR, magnifications, middle, places, stretched
from holdfast.records import Corruption

MODES = ["fast", "reference"]
SNOW = (1.0, 1.25, 1.75, 2.0, 2.25, 2.5, 3.0, 4.0, 4.5)


def zoomed(images, severity, variant="imagenet224", mode="fast"):
    corruption = Corruption(name="zoom_blur", severity=severity, variant=variant, mode=mode)
    return table.corrupt(images, corruption, draws.keys([str(i) for i in range(len(images))]))


def test_the_ends_of_the_published_ranges_as_floats_give_them():
    counts = {v: [len(magnifications(*p)) for p in ZOOM_BLUR[v]] for v in table.variants()}
    assert counts["imagenet224"] == counts["inception299"] == [12, 16, 11, 13, 11]
    assert counts["cifar32"] == counts["tiny64"] == [7, 12, 16, 21, 26]
    last = [round(magnifications(*p)[-1], 6) for p in (*ZOOM_BLUR["imagenet224"], *ZOOM_BLUR["cifar32"])]
    assert last == [1.11, 1.15, 1.2, 1.24, 1.3, 1.06, 1.11, 1.15, 1.2, 1.25]
    assert all(magnifications(*p)[0] == 1.0 for v in table.variants() for p in ZOOM_BLUR[v])


@pytest.mark.parametrize("n", [1, 2, 7, 32, 64, 224, 299])
def test_a_magnified_line_is_that_of_scipy(n):
    line = np.random.Generator(np.random.PCG64(n)).random((n, 2))
    for zoom in {*SNOW, *(z for v in table.variants() for p in ZOOM_BLUR[v] for z in magnifications(*p))}:
        first, used = middle(n, zoom)
        whole = ndimage.zoom(line[first : first + used], (zoom, 1), order=1)
        trim = (len(whole) - n) // 2
        found = stretched(torch.from_numpy(line).narrow(0, first, used), n, zoom, dim=0)
        np.testing.assert_allclose(found.numpy(), whole[trim : trim + n], atol=1e-12)


def test_magnified_images_are_those_of_scipy_in_both_directions_at_once():
    image = photos(1, 40, 61)[0] / 255.0
    for zoom in (1.0, 1.07, 1.24, 2.5):
        used = [middle(n, zoom) for n in image.shape[:2]]
        inner = image[used[0][0] : sum(used[0]), used[1][0] : sum(used[1])]
        whole = ndimage.zoom(inner, (zoom, zoom, 1), order=1)
        top, left = ((m - n) // 2 for m, n in zip(whole.shape[:2], image.shape[:2], strict=True))
        np.testing.assert_allclose(clipped_zoom(image, zoom), whole[top : top + 40, left : left + 61], atol=1e-12)


def test_the_grid_in_closed_form():
    # 5 of 10 pixels become 10, the ends on the ends: pixel i comes from 4 * i / 9.
    low, high, part = places(10, 2.0)
    assert middle(10, 2.0) == (2, 5)
    np.testing.assert_allclose(low.numpy() + part.numpy(), np.arange(10) * 4 / 9, atol=1e-12)
    assert torch.equal(high, torch.tensor([1, 1, 1, 2, 2, 3, 3, 4, 4, 4]))
    assert torch.equal(places(9, 1.0)[0], torch.arange(9)) and places(9, 1.0)[2].max() == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", ["imagenet224", "cifar32"])
def test_constants_stay(variant, mode):
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 9, 14, 3)
    for severity in range(1, 6):
        assert torch.equal(zoomed(levels, severity, variant, mode), levels)


@pytest.mark.parametrize("mode", MODES)
def test_a_ramp_becomes_flatter_by_the_mean_of_the_steps(mode):
    # A magnified ramp is a ramp whose step is (used - 1) / (made - 1); the mean of ramps is one too.
    ramp = torch.arange(224, dtype=torch.uint8)[None, :, None, None].expand(1, -1, 224, 3)
    for severity in range(1, 6):
        zooms = magnifications(*ZOOM_BLUR["imagenet224"][severity - 1])
        lines = [np.arange(224.0)]
        for zoom in zooms:
            used = int(np.ceil(224 / zoom))
            made = round(used * zoom)
            lines.append((224 - used) // 2 + (np.arange(224) + (made - 224) // 2) * (used - 1) / (made - 1))
        expected = np.floor(np.mean(lines, axis=0) + 1e-9)
        found = zoomed(ramp, severity, mode=mode)[0, :, 100, 1].numpy()
        assert np.abs(found - expected).max() <= (mode == "fast")
        assert (found != expected).mean() <= 0.02
        assert torch.equal(zoomed(ramp.transpose(1, 2), severity, mode=mode)[0, 100, :, 1], torch.from_numpy(found))
