"""Glass blur: which pixel ends where, against a loop over the visits; identity, one step, and the draws."""

import numpy as np
import pytest
import torch
from corruption_references import photos
from references_blur import stirred

from holdfast import draws
from holdfast.corruptions import table
from holdfast.corruptions.blur import gaussian_blur
from holdfast.corruptions.glass import GLASS_BLUR, draw_copies, glass_blur, sources
from holdfast.records import Corruption

MODES = ["fast", "reference"]
EVERY = [(v, s) for v in table.variants() for s in range(1, 6)]


def field_of(parameters, shape, count=2):
    keys = draws.keys([str(i) for i in range(count)])
    return draw_copies(keys, shape, parameters=parameters, parts=(0, "glass", 3))


@pytest.mark.parametrize(("variant", "severity"), EVERY)
@pytest.mark.parametrize("shape", [(24, 37), (11, 9)])
def test_the_chains_resolve_to_what_a_loop_over_the_visits_gives(variant, severity, shape):
    parameters = GLASS_BLUR[variant][severity - 1]
    field = field_of(parameters, shape)
    # Each pixel holds its own number, so that the loop shows where it went.
    own = np.arange(shape[0] * shape[1]).reshape(*shape, 1)
    numbered = np.concatenate([own // 256, own % 256, own * 0], axis=2).astype(np.uint8)
    found = sources(field, shape, parameters[1]).reshape(2, -1).numpy()
    for i, codes in enumerate(field.numpy()):
        moved = stirred(numbered, parameters[1], codes).astype(int)
        assert np.array_equal(found[i] - i * own.size, (moved[..., 0] * 256 + moved[..., 1]).ravel())


def test_the_loop_copies_what_views_of_an_array_exchange():
    # The published statement itself: an exchange of two views of one array.
    image = photos(1, 12, 15)[0]
    for reach in (1, 2, 3):
        codes = field_of((1, reach, 2), (12, 15), count=1)[0].numpy()
        x = image.copy()
        for one_pass in codes.tolist():
            for i, h in enumerate(range(12 - reach, reach, -1)):
                for j, w in enumerate(range(15 - reach, reach, -1)):
                    dx, dy = divmod(one_pass[i][j], 2 * reach)
                    other = h + dy - reach, w + dx - reach
                    x[h, w], x[other] = x[other], x[h, w]
        assert np.array_equal(stirred(image, reach, codes), x)


@pytest.mark.parametrize("mode", MODES)
def test_steps_of_length_zero_leave_two_gaussians(mode):
    images = torch.from_numpy(photos(2, 20, 26))
    for parameters in GLASS_BLUR["imagenet224"]:
        reach = parameters[1]
        still = torch.full_like(field_of(parameters, (20, 26)), 2 * reach * reach + reach)
        once = gaussian_blur(images, parameters[:1], mode=mode).to(torch.uint8)
        twice = gaussian_blur(once, parameters[:1], mode=mode)
        assert torch.equal(glass_blur(images, parameters, field=still, mode=mode), twice)


def test_one_step_up_and_left_in_closed_form():
    # Code 0 at reach 1 is the pixel above and to the left, which is visited later: all take an old value.
    codes = torch.zeros(1, 1, 4, 5, dtype=torch.uint8)
    found = sources(codes, (6, 7), 1).reshape(6, 7)
    own = torch.arange(42).reshape(6, 7)
    expected = own.clone()
    expected[2:6, 2:7] = own[1:5, 1:6]
    assert torch.equal(found, expected.int())


def test_a_chain_of_new_values_in_closed_form():
    # Reach 2, every pixel takes its right neighbour, which was visited just before: the last column wins.
    codes = torch.full((1, 1, 5, 6), 4 * (1 + 2) + (0 + 2), dtype=torch.uint8)
    found = sources(codes, (9, 10), 2).reshape(9, 10)
    assert torch.equal(found[3:8, 3:9], (torch.arange(3, 8) * 10 + 9).int()[:, None].expand(-1, 6))
    assert torch.equal(found[:3], torch.arange(30).int().reshape(3, 10))


@pytest.mark.parametrize("mode", MODES)
def test_constants_stay(mode):
    levels = torch.tensor([0, 1, 127, 254, 255], dtype=torch.uint8)[:, None, None, None].expand(-1, 16, 19, 3)
    for variant, severity in EVERY:
        corruption = Corruption(name="glass_blur", severity=severity, variant=variant, mode=mode)
        assert torch.equal(table.corrupt(levels, corruption, draws.keys(list("abcde"))), levels)


@pytest.mark.parametrize("reach", [1, 2, 3, 4, 5])
def test_every_step_is_equally_likely(reach):
    codes = field_of((1, reach, 2), (110, 110)).numpy().ravel()
    counts = np.bincount(codes, minlength=4 * reach**2)
    assert len(counts) == 4 * reach**2
    expected = codes.size / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * np.sqrt(2 * len(counts))


def test_the_field_has_one_code_per_visit_and_is_empty_where_there_is_none():
    assert field_of((1.5, 4, 2), (30, 41)).shape == (2, 2, 22, 33)
    assert field_of((1.5, 4, 2), (8, 41)).shape == (2, 2, 0, 33)
    assert field_of((1.5, 4, 2), (3, 3), count=0).shape == (0, 2, 0, 0)
