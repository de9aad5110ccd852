"""Views against PIL and torchvision, and against themselves in other company."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as peer

from holdfast.errors import ConfigError
from holdfast.views import (
    SIMCLR_CIFAR,
    Policy,
    blur,
    brighten,
    contrast,
    crop_boxes,
    grey,
    jitter,
    resized_crop,
    saturate,
    solarise,
    turn_hue,
    view,
)

EVERYTHING = Policy(jitter=0.9, hue=0.3, grey=0.3, blur=0.5, solarise=0.5)


def _bytes(n, high, wide, seed=0):
    """Images with both smooth parts and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:high, :wide]
    waves = [127 * (1 + np.sin(x / 5 + k + np.arange(3)[:, None, None]) * np.cos(y / 7 + k)) for k in range(n)]
    noisy = np.stack(waves) + rng.normal(0, 40, (n, 3, high, wide))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


def _float(images):
    return images.float() / 255


def _pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def _uniforms(n, width, seed=0):
    return torch.rand(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("size", "out"), [((32, 32), (32, 32)), ((40, 56), (24, 20)), ((96, 64), (32, 48))])
def test_crops_are_pil_crops_to_one_grey_level(size, out):
    images = _bytes(64, *size)
    boxes = crop_boxes(_uniforms(64, 22), size, Policy())
    ours = (resized_crop(_float(images), boxes, out) * 255).round()
    for image, box, mine in zip(images, boxes.tolist(), ours):
        theirs = np.asarray(peer.resized_crop(_pil(image), *box, list(out), InterpolationMode.BILINEAR))
        assert np.abs(mine.permute(1, 2, 0).numpy() - theirs).max() <= 1.0


def test_a_full_box_is_the_image_and_a_mirrored_one_its_mirror():
    x = _float(_bytes(3, 12, 16))
    full = torch.tensor([[0, 0, 12, 16]] * 3)
    mirrored = torch.tensor([True, False, True])
    made = resized_crop(x, full, (12, 16), mirrored=mirrored)
    assert torch.equal(made[1], x[1])
    assert torch.equal(made[::2], x[::2].flip(3))


def test_no_pixel_beside_the_box_is_seen():
    x = torch.zeros(1, 3, 16, 16)
    x[:, :, 4:10, 5:9] = 0.25
    for out in (2, 6, 32):
        made = resized_crop(x, torch.tensor([[4, 5, 6, 4]]), (out, out))
        assert torch.allclose(made, torch.full_like(made, 0.25), atol=1e-6)


def test_boxes_are_distributed_as_torchvisions():
    n, size = 4000, (32, 48)
    ours = crop_boxes(_uniforms(n, 22), size, Policy())
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= 32).all() and (ours[:, 1] + ours[:, 3] <= 48).all()
    blank = torch.empty(3, *size)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    theirs = torch.tensor(draws)
    for column in range(4):
        assert stats.ks_2samp(ours[:, column].numpy(), theirs[:, column].numpy()).pvalue > 1e-3
    ratio = (ours[:, 3] / ours[:, 2]).numpy(), (theirs[:, 3] / theirs[:, 2]).numpy()
    assert stats.ks_2samp(*ratio).pvalue > 1e-3


def test_where_no_try_fits_the_box_is_central_and_its_ratio_allowed():
    narrow = Policy(scale=(1.0, 1.0))
    assert crop_boxes(torch.full((1, 22), 0.3), (10, 100), narrow).tolist() == [[0, 43, 10, 13]]
    assert crop_boxes(torch.full((1, 22), 0.3), (100, 10), narrow).tolist() == [[43, 0, 13, 10]]


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (brighten, peer.adjust_brightness, (0.6, 1.4)),
        (contrast, peer.adjust_contrast, (0.6, 1.4)),
        (saturate, peer.adjust_saturation, (0.0, 1.4)),
        (turn_hue, peer.adjust_hue, (-0.2, 0.1)),
    ],
)
def test_colours_are_torchvisions(ours, theirs, factors):
    x = _float(_bytes(4, 16, 16))
    for factor in factors:
        made = ours(x, torch.full((4, 1, 1, 1), factor))
        assert torch.allclose(made, theirs(x, factor), atol=2e-4)  # its grey has 0.2989 red


def test_a_full_turn_of_the_hue_is_the_image_and_grey_has_no_hue():
    x = _float(_bytes(4, 16, 16))
    assert torch.allclose(turn_hue(x, torch.ones(4, 1, 1, 1)), x, atol=1e-5)
    flat = grey(x).expand(-1, 3, -1, -1)
    assert torch.allclose(turn_hue(flat, torch.full((4, 1, 1, 1), 0.37)), flat, atol=1e-6)
    red, green = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([0.0, 1, 0]).view(1, 3, 1, 1)
    assert torch.allclose(turn_hue(red, torch.full((1, 1, 1, 1), 1 / 3)), green, atol=1e-6)


def test_jitter_follows_the_order_and_leaves_out_who_is_not_chosen():
    x = _float(_bytes(2, 8, 8))
    policy = Policy(hue=0.0)
    # Order of the second image: saturation, contrast, brightness (hue has no strength).
    u = torch.tensor([[0.9] + [0.5] * 8, [0.1, 0.6, 0.5, 0.4, 0.1, 0.9, 0.3, 0.2, 0.5]], dtype=torch.float64)
    made = jitter(x.clone(), u, policy)
    factor = [torch.full((1, 1, 1, 1), 1 + 0.4 * (2 * v - 1)) for v in (0.9, 0.3, 0.2)]
    expected = brighten(contrast(saturate(x[1:], factor[2]), factor[1]), factor[0])
    assert torch.equal(made[0], x[0])
    assert torch.allclose(made[1:], expected, atol=1e-6)


def test_blur_keeps_constants_and_is_scipys_and_near_pils():
    from scipy.ndimage import gaussian_filter1d

    assert torch.allclose(blur(torch.full((1, 3, 9, 7), 0.3), torch.tensor([1.7]), 2.0), torch.tensor(0.3), atol=1e-6)
    x = _float(_bytes(2, 20, 24))
    made = blur(x, torch.tensor([0.7, 1.5]), 2.0)
    for image, sigma, mine in zip(x, (0.7, 1.5), made):
        across = gaussian_filter1d(image.numpy(), sigma, axis=1, mode="nearest", radius=6)
        expected = gaussian_filter1d(across, sigma, axis=2, mode="nearest", radius=6)
        assert np.abs(mine.numpy() - expected).max() < 1e-5
        pil = _pil((image * 255).byte()).filter(ImageFilter.GaussianBlur(sigma))
        assert np.abs(mine.permute(1, 2, 0).numpy() * 255 - np.asarray(pil)).mean() < 2.5


def test_solarise_is_torchvisions():
    x = _float(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16))
    theirs = peer.solarize((x * 255).round().byte(), 128).float() / 255
    assert torch.allclose(solarise(x), theirs, atol=1e-6)


@pytest.mark.parametrize("policy", [SIMCLR_CIFAR, EVERYTHING, Policy(size=20)])
def test_views_depend_on_no_neighbour(policy):
    x, keys = _float(_bytes(70, 24, 24)), torch.arange(70)
    whole = view(x, keys, policy, 5, "first")
    assert torch.equal(torch.cat([view(x[i : i + 1], keys[i : i + 1], policy, 5, "first") for i in range(70)]), whole)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(3))
    assert torch.equal(view(x[order], keys[order], policy, 5, "first"), whole[order])
    assert not torch.equal(view(x, keys, policy, 5, "second"), whole)
    assert not torch.equal(view(x, keys + 70, policy, 5, "first"), whole)


def test_views_stay_in_range_leave_the_image_and_the_global_generator_alone():
    x = _float(_bytes(64, 16, 16))
    before, state = x.clone(), torch.get_rng_state()
    made = view(x, torch.arange(64), EVERYTHING, 1)
    assert made.shape == x.shape and made.min() >= 0 and made.max() <= 1
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert view(x[:0], torch.arange(0), EVERYTHING, 1).shape == (0, 3, 16, 16)


def test_the_shares_are_those_of_the_policy():
    n, three = 2000, 4 * math.sqrt(0.25 / 2000)
    ramp = torch.linspace(0, 1, 8).view(1, 1, 1, 8) * torch.tensor([0.9, 0.5, 0.2]).view(1, 3, 1, 1)
    x, keys = ramp.expand(n, 3, 8, 8).contiguous(), torch.arange(n)
    still = Policy(scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter=0.0, grey=0.0)
    made = view(x, keys, still, 0)
    mirrored = made[:, 0, 0, 0] > made[:, 0, 0, -1]
    assert abs(float(mirrored.float().mean()) - 0.5) < three
    greyed = view(x, keys, Policy(scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter=0.0, flip=0.0), 0)
    assert abs(float((greyed[:, 0] == greyed[:, 2]).flatten(1).all(1).float().mean()) - 0.2) < three
    coloured = view(x, keys, Policy(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, grey=0.0), 0)
    assert abs(float((coloured == x).flatten(1).all(1).float().mean()) - 0.2) < three


def test_an_impossible_policy_is_refused():
    for wrong in ({"flip": 1.2}, {"scale": (0.5, 0.1)}, {"scale": (0.1, 1.5)}, {"hue": 0.7}):
        with pytest.raises(ConfigError, match="no distribution"):
            Policy(**wrong)
