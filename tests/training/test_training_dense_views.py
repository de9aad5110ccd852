"""Joint views: every pixel keeps its truth, by hand and for whatever is drawn."""

import pytest
import torch

from holdfast import draws
from holdfast.errors import ConfigError
from holdfast.training import dense_views
from holdfast.training.dense_views import STILL, Views, check, flips, view

H, W = 12, 20


def _batch(n=3):
    """Images whose red is the row and green the column, a mask that numbers both, and a depth that is their sum."""
    row, column = (torch.arange(H).view(1, H, 1).expand(n, H, W), torch.arange(W).view(1, 1, W).expand(n, H, W))
    pixels = torch.stack([row / H, column / W, torch.zeros(n, H, W)], 1)
    rows = {
        "key": draws.keys([f"image {i}" for i in range(n)]),
        "mask": row * W + column,
        "depth": (1 + row + column).float(),
        "label": torch.arange(n),
    }
    return pixels, rows


def _fixed(monkeypatch, *numbers):
    """Every image draws the same: mirror, enlarge, down, across."""
    row = torch.tensor([numbers], dtype=torch.float64)
    monkeypatch.setattr(dense_views, "_drawn", lambda keys, views, epoch: row.expand(len(keys), -1))


def test_nothing_is_drawn_where_nothing_is_asked_for():
    pixels, rows = _batch()
    for epoch in (0, 7):
        same, truth = view(pixels, rows, STILL, epoch)
        assert same is pixels and truth is rows
    assert not flips(rows["key"], STILL, 3).any()


def test_a_flip_turns_image_mask_and_depth_of_the_same_rows_and_of_about_half():
    pixels, rows = _batch(64)
    turned, truth = view(pixels, rows, Views("flip", seed=1), 0)
    chosen = flips(rows["key"], Views("flip", seed=1), 0)
    assert 16 < int(chosen.sum()) < 48
    for before, after in ((pixels, turned), (rows["mask"], truth["mask"]), (rows["depth"], truth["depth"])):
        assert torch.equal(after[chosen], before[chosen].flip(-1)) and torch.equal(after[~chosen], before[~chosen])
    assert torch.equal(truth["label"], rows["label"])


def test_a_crop_that_is_not_enlarged_is_a_slice_of_everything(monkeypatch):
    _fixed(monkeypatch, 0.9, 0.0, 0.0, 0.5)
    pixels, rows = _batch()
    cut, truth = view(pixels, rows, Views("crop"), 0)
    left = (W - H + 1) // 2
    assert torch.allclose(cut, pixels[..., left : left + H], atol=1e-6)
    assert torch.equal(truth["mask"], rows["mask"][..., left : left + H])
    assert torch.equal(truth["depth"], rows["depth"][..., left : left + H])


def test_an_image_enlarged_twice_repeats_its_mask_and_halves_its_depth(monkeypatch):
    _fixed(monkeypatch, 0.2, 1.0, 0.999, 0.0)
    pixels, rows = _batch()
    cut, truth = view(pixels, rows, Views("crop"), 0)
    corner = rows["mask"][:, H - 6 :, :6].repeat_interleave(2, 1).repeat_interleave(2, 2).flip(-1)
    assert torch.equal(truth["mask"], corner)
    depth = rows["depth"][:, H - 6 :, :6].repeat_interleave(2, 1).repeat_interleave(2, 2).flip(-1)
    assert torch.equal(truth["depth"], depth / 2)
    # Red is the row: what is resized bilinearly stays within half a row of its truth.
    assert float((cut[:, 0] * H - corner // W).abs().max()) <= 0.5 + 1e-4


@pytest.mark.parametrize("side", [5, H, 2 * H])
def test_whatever_is_drawn_pixels_and_truth_stay_together(side):
    pixels, rows = _batch(200)
    views = Views("crop", side, seed=4)
    check(views, (H, W))
    cut, truth = view(pixels, rows, views, 2)
    assert cut.shape == (200, 3, side, side) and truth["mask"].shape == (200, side, side)
    row, column = truth["mask"] // W, truth["mask"] % W
    # A row that is averaged at the rim of its box is off by up to half a pixel, as the nearest neighbour is.
    assert float((cut[:, 0] * H - row).abs().max()) < 1.01 and float((cut[:, 1] * W - column).abs().max()) < 1.01
    factor = (1 + row + column).float() / truth["depth"]
    assert float((factor - factor[:, :1, :1]).abs().max()) < 1e-4
    assert float(factor.min()) > 0.9 and float(factor.max()) < 2.3
    assert (int(row.min()), int(row.max()), int(column.min()), int(column.max())) == (0, H - 1, 0, W - 1)


def test_a_view_depends_on_its_key_and_epoch_alone():
    pixels, rows = _batch(8)
    views = Views("crop", seed=3)
    all_of_them, truth = view(pixels, rows, views, 5)
    one, alone = view(pixels[6:7], {name: t[6:7] for name, t in rows.items()}, views, 5)
    assert torch.equal(one[0], all_of_them[6]) and torch.equal(alone["mask"][0], truth["mask"][6])
    assert not torch.equal(view(pixels, rows, views, 6)[0], all_of_them)
    assert not torch.equal(view(pixels, rows, views._replace(seed=4), 5)[0], all_of_them)


def test_a_pixel_without_a_measurement_has_none_after_any_view():
    pixels, rows = _batch(20)
    rows["depth"] = torch.zeros_like(rows["depth"])
    for augment in ("flip", "crop"):
        assert not view(pixels, rows, Views(augment), 1)[1]["depth"].any()


@pytest.mark.parametrize("side", [-1, 2 * H + 1])
def test_a_crop_that_cannot_be_is_refused(side):
    with pytest.raises(ConfigError, match="--crop-size 12"):
        check(Views("crop", side), (H, W))
