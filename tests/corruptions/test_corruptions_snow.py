"""Snow: what bleaching does without flakes, where one flake lands, the draws, and an independent restatement."""

import numpy as np
import pytest
import torch
from corruption_references import photos
from references_snow import snow as restated
from references_snow import snow_layer

from holdfast import draws
from holdfast.corruptions import table
from holdfast.corruptions.snow import SNOW, draw_snow, snow
from holdfast.records import Corruption

MODES = ["fast", "reference"]
# No flake, 0 degrees from the vertical, flakes of one pixel: what remains is the bleaching.
CLEAR = (0.0, 0.3, 1, 0.5, 3, 1, 0.8)


def to_levels(found):
    return found.clamp(0, 255).to(torch.uint8) if found.is_floating_point() else found


def calm(shape, value=0.0):
    return torch.cat([torch.full((1, shape[0] * shape[1]), value), torch.tensor([[0.5]])], dim=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mix", sorted({p[6] for v in SNOW.values() for p in v}))
def test_without_flakes_colours_are_bleached_as_in_the_closed_form(mix, mode):
    rows = np.array([[0, 0, 0], [255, 255, 255], [200, 30, 90], [10, 250, 40], [1, 2, 3], [255, 0, 0], [0, 0, 255]])
    images = torch.from_numpy(rows.astype(np.uint8))[:, None, None].expand(-1, 4, 5, 3)
    found = to_levels(snow(images, (*CLEAR[:6], mix), field=calm((4, 5)).expand(len(rows), -1), mode=mode))
    grey = rows @ [0.299, 0.587, 0.114]
    exact = mix * rows + (1 - mix) * np.maximum(rows, 1.5 * grey[:, None] + 127.5)
    difference = found[:, 2, 3].numpy() - np.minimum(exact, 255)
    assert np.all((difference < 1e-6) & (difference > -1))
    assert torch.equal(found, found[:, :1, :1].expand_as(found))


@pytest.mark.parametrize("mode", MODES)
def test_a_flake_is_a_streak_and_its_half_turn(mode):
    # Black is bleached to 25.5; a flake of 255 at (3, 5) is smeared downwards, and once more half a turn away.
    field = calm((15, 21))
    field[0, 3 * 21 + 5] = 100.0
    found = to_levels(snow(torch.zeros(1, 15, 21, 3, dtype=torch.uint8), CLEAR, field=field, mode=mode))[0, ..., 0]
    weights = np.exp(-(np.arange(7) ** 2) / 2)
    fall = np.floor(255 * weights / weights.sum())
    expected = np.full((15, 21), 25.5)
    expected[3:10, 5] += fall
    expected[11 - 6 : 12, 15] += fall[::-1]
    assert np.array_equal(found, np.floor(expected))


@pytest.mark.parametrize("variant", table.variants())
@pytest.mark.parametrize("shape", [(50, 50), (23, 61), (2, 1)])
def test_it_is_the_restatement_from_the_definition(variant, shape):
    images = photos(2, 64, 64)[:, : shape[0], : shape[1]]
    for severity, parameters in enumerate(SNOW[variant], 1):
        corruption = Corruption(name="snow", severity=severity, variant=variant)
        field = table.fields(corruption, draws.keys(["a", "b"]), *shape)
        for image, row in zip(images, field, strict=True):
            expected = np.clip(restated(image / 255.0, *parameters, row.double().numpy()), 0, 1) * 255
            for mode in MODES:
                found = snow(torch.from_numpy(image)[None], parameters, field=row[None], mode=mode)
                difference = to_levels(found)[0].numpy().astype(int) - expected.astype(int)
                assert np.abs(difference).max() <= 1
                assert (difference != 0).mean() <= 0.002


def test_there_is_snow_at_every_severity_and_more_of_it_at_the_worst():
    shares = []
    for severity, parameters in enumerate(SNOW["imagenet224"], 1):
        corruption = Corruption(name="snow", severity=severity, variant="imagenet224")
        field = table.fields(corruption, draws.keys(list("abcd")), 96, 96).double().numpy()
        shares.append(np.mean([(snow_layer(f, (96, 96), *parameters[:6]) > 20).mean() for f in field]))
    assert min(shares) > 0.02 and max(shares) == shares[-1] < 0.9


@pytest.mark.parametrize(("zoom", "count"), [(1, 32 * 40), (3, 11 * 14), (4.5, 8 * 9), (1.25, 26 * 32)])
def test_only_the_middle_is_drawn_and_then_the_wind(zoom, count):
    parameters = (0.1, 0.3, zoom, 0.5, 10, 4, 0.8)
    field = draw_snow(draws.keys(["a", "b"]), (32, 40), parameters=parameters, parts=(0, "snow", 1))
    assert field.shape == (2, count + 1) and field.dtype == torch.float32
    assert field[:, -1].min() >= 0 and field[:, -1].max() < 1
    assert abs(float(field[:, :-1].mean())) < 5 / np.sqrt(2 * count)


@pytest.mark.parametrize(("u", "side"), [(0.0, 1), (1.0, -1)])
def test_the_wind_blows_between_both_diagonals(u, side):
    # The line is sampled upwards, so flakes fall: to the right for -135 degrees, to the left for -45.
    field = calm((40, 40))
    field[0, 10 * 40 + 20], field[0, -1] = 100.0, u
    black = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    found = snow(black, (0.0, 0.3, 1, 0.5, 5, 4, 0.8), field=field, mode="fast")[0, :20, :, 0].int() - 25
    lit = found.nonzero()
    assert len(lit) > 5
    assert torch.equal((lit[:, 0] - 10) * side, lit[:, 1] - 20)
