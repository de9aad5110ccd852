"""Spatter: dry, drenched and covered images in closed form, what water and mud can do, and a missing OpenCV."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from corruption_references import photos, reference
from references_weather import relief
from scipy import ndimage, stats

from holdfast import draws
from holdfast.corruptions import table
from holdfast.corruptions.spatter import SPATTER, draw_spatter
from holdfast.corruptions.spatter import mud as covered
from holdfast.corruptions.spatter import water as wetted
from holdfast.errors import ExtraError
from holdfast.records import Corruption

EVERY = [(v, s) for v in SPATTER for s in range(1, 6)]
WET, MUDDY = ([e for e in EVERY if SPATTER[e[0]][e[1] - 1][5] == m] for m in (0, 1))


def spattered(images, variant, severity, field=None, mode="fast"):
    corruption = Corruption(name="spatter", severity=severity, variant=variant, mode=mode)
    return table.corrupt(images, corruption, draws.keys([str(i) for i in range(len(images))]), field=field)


def normals(count, side, *parts):
    return draw_spatter(draws.keys([str(i) for i in range(count)]), (side, side), parameters=(), parts=parts)


@pytest.fixture(scope="module", autouse=True)
def opencv():
    return pytest.importorskip("cv2")


@pytest.mark.parametrize(("variant", "severity"), EVERY)
def test_without_liquid_the_image_stays_as_it_is(variant, severity):
    images = torch.from_numpy(photos(2, 40, 30))
    for mode in table.MODES:
        assert torch.equal(spattered(images, variant, severity, torch.full((2, 40, 30), -1.0), mode), images)


@pytest.mark.parametrize(("variant", "severity"), WET)
def test_a_film_of_water_without_outlines_adds_its_colour_everywhere(variant, severity):
    images = torch.from_numpy(photos(2, 40, 30))
    mean, deviation, _, threshold, strength, _ = SPATTER[variant][severity - 1]
    film = torch.full((2, 40, 30), (threshold - mean + 0.05) / deviation)
    added = torch.tensor([175, 238, 238]) * strength
    expected = (images + added + 1e-4).clamp(max=255).to(torch.uint8)
    for mode in table.MODES:
        assert (spattered(images, variant, severity, film, mode).int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(("variant", "severity"), MUDDY)
def test_under_a_layer_of_mud_nothing_is_left(variant, severity):
    images = torch.from_numpy(photos(2, 40, 30))
    for mode in table.MODES:
        found = spattered(images, variant, severity, torch.ones(2, 40, 30), mode)
        assert torch.equal(found, torch.tensor([63, 42, 20], dtype=torch.uint8).expand(2, 40, 30, 3))


@pytest.mark.parametrize(("variant", "severity"), WET)
def test_water_brightens_in_its_own_colour_and_leaves_the_rest(variant, severity):
    images = torch.full((4, 96, 96, 3), 15, dtype=torch.uint8)
    added = spattered(images, variant, severity).int() - 15
    assert added.min() == 0
    assert 0.005 < (added > 0).any(3).float().mean() < 0.6
    strength = SPATTER[variant][severity - 1][4]
    for image in added:  # the thickest drop has the full strength
        assert abs(image[..., 1].max() - min(240, 238 * strength)) <= 1
        assert abs(image[..., 0].max() - 175 * strength) <= 1
    unclipped = added[added[..., 1] < 240]
    assert (unclipped[:, 0] - unclipped[:, 1] * 175 / 238).abs().max() < 2
    assert torch.equal(added[..., 1], added[..., 2])


@pytest.mark.parametrize(("variant", "severity"), MUDDY)
def test_mud_covers_by_four_fifths_or_not_at_all(variant, severity):
    parameters = SPATTER[variant][severity - 1]
    for plane in normals(4, 96, severity).numpy():
        cover = covered(plane, parameters)
        assert set(np.unique(cover == 0)) == {False, True}
        assert cover[cover > 0].min() >= np.float32(0.8)
        assert cover.max() <= 1


@pytest.mark.parametrize(
    ("variant", "severity"), [("imagenet224", 1), ("imagenet224", 3), ("cifar32", 2), ("tiny64", 3)]
)
def test_water_is_liquid_times_relief(variant, severity):
    mean, deviation, sigma, threshold, strength, _ = parameters = SPATTER[variant][severity - 1]
    for plane in normals(3, 96, severity).numpy():
        amount = ndimage.gaussian_filter(mean + deviation * plane.astype(float), sigma, mode="nearest", truncate=4)
        liquid = (np.where(amount < threshold, 0, amount) * 255).astype(np.uint8)
        thickness = liquid * relief(liquid)
        np.testing.assert_allclose(wetted(plane, parameters), thickness / thickness.max() * strength, atol=1e-6)


@pytest.mark.parametrize(("variant", "severity"), [("cifar32", 1), ("cifar32", 3), ("cifar32", 5), ("tiny64", 2)])
def test_drawn_drops_have_the_distribution_of_the_reference(variant, severity):
    side, count = {"cifar32": 32, "tiny64": 64}[variant], 150
    parameters = SPATTER[variant][severity - 1]
    grey = np.full((side, side, 3), 100, dtype=np.uint8)
    ours = spattered(torch.from_numpy(grey).expand(count, -1, -1, -1), variant, severity).numpy()
    random = np.random.default_rng(severity)
    drawn = random.standard_normal((count, side, side))
    theirs = np.stack([reference("spatter", grey, parameters, z) for z in drawn])
    for statistic in (
        lambda x: x[..., 0].mean((1, 2)),
        lambda x: (x != 100).any(3).mean((1, 2)),
        lambda x: x[:, : side // 2, : side // 2, 1].std((1, 2)),
        lambda x: (np.diff(x[..., 2].astype(float), axis=1) ** 2).mean((1, 2)),
    ):
        assert stats.ks_2samp(statistic(ours), statistic(theirs)).pvalue > 1e-3


def test_the_field_is_normal_and_does_not_depend_on_the_image():
    field = normals(20, 32, "normal").double()
    assert field.shape == (20, 32, 32)
    assert stats.kstest(field.flatten().numpy(), "norm").pvalue > 1e-3
    for a, b in ((field[1:], field[:-1]), (field[:, 1:], field[:, :-1]), (field[:, :, 1:], field[:, :, :-1])):
        assert abs((a * b).mean().item()) < 4 / np.sqrt(a.numel())


def test_a_missing_opencv_is_said_before_and_when_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    corruption = Corruption(name="spatter", severity=1, variant="cifar32")
    for call in (
        lambda: table.check(corruption),
        lambda: spattered(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "cifar32", 1),
    ):
        with pytest.raises(ExtraError, match=r'OpenCV.* is not installed\. pip install "holdfast\[opencv\]"'):
            call()
    table.check(Corruption(name="frost", severity=1, variant="cifar32"))


def test_nothing_imports_opencv_until_a_drop_is_made():
    code = (
        "import sys; import holdfast.corruptions.table as t; from holdfast.records import Corruption;"
        "t.check(Corruption(name='elastic_transform', severity=1, variant='cifar32'));"
        "sys.exit('cv2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
