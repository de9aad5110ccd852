"""The table: names, severities, errors, remarks, and what a field is."""

import pytest
import torch
from corruption_references import photos

from holdfast import draws
from holdfast.corruptions import table
from holdfast.errors import ConfigError, PixelError
from holdfast.records import Corruption

# Copied from the published definition, not from the package: (imagenet224, cifar32).
PUBLISHED = {
    "gaussian_noise": (
        [(0.08,), (0.12,), (0.18,), (0.26,), (0.38,)],
        [(0.04,), (0.06,), (0.08,), (0.09,), (0.1,)],
    ),
    "defocus_blur": (
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    ),
    "fog": (
        [(1.5, 2, 256), (2, 2, 256), (2.5, 1.7, 256), (2.5, 1.5, 256), (3, 1.4, 256)],
        [(0.2, 3, 32), (0.5, 3, 32), (0.75, 2.5, 32), (1, 2, 32), (1.5, 1.75, 32)],
    ),
    "brightness": (
        [(0.1,), (0.2,), (0.3,), (0.4,), (0.5,)],
        [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)],
    ),
    "jpeg_compression": (
        [(25,), (18,), (15,), (10,), (7,)],
        [(80,), (65,), (58,), (50,), (40,)],
    ),
}


def asked(name="fog", severity=3, variant="cifar32", seed=0):
    return Corruption(name=name, severity=severity, variant=variant, seed=seed)


def batch(count=2, side=32):
    return torch.from_numpy(photos(count, side, side)), draws.keys([f"image{i}" for i in range(count)])


def test_severities_are_the_published_ones():
    assert set(table.names()) == set(PUBLISHED)
    for name, (large, small) in PUBLISHED.items():
        assert table.entry(name).severities == {"imagenet224": tuple(large), "cifar32": tuple(small)}


def test_every_name_is_in_one_family_and_in_the_mce():
    assert list(table.families()) == ["noise", "blur", "weather", "digital"]
    assert sorted(n for members in table.families().values() for n in members) == sorted(table.names())
    assert table.families()["digital"] == ("brightness", "jpeg_compression")
    assert all(table.entry(n).in_mce for n in table.names())
    assert table.variants() == ("imagenet224", "cifar32")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (asked(name="fogg"), 'There is no corruption "fogg". Perhaps you meant "fog".'),
        (asked(variant="cifar23"), 'There is no variant "cifar23". Perhaps you meant "cifar32".'),
        (asked(severity=6), "fog at severity 6. There are severities 1 to 5"),
        (asked(severity=-1), "fog at severity -1."),
        (asked(severity=2.0), "fog at severity 2.0."),
    ],
)
def test_what_does_not_exist_is_refused_with_a_hint(wrong, hint):
    images, keys = batch()
    for call in (
        lambda: table.corrupt(images, wrong, keys),
        lambda: table.fields(wrong, keys, 32, 32),
        lambda: table.notes(wrong, 32, 32),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert str(error.value).startswith(hint)


def test_an_unknown_mode_is_refused():
    images, keys = batch()
    with pytest.raises(ConfigError, match=r'no mode "exact".*Known: fast, reference'):
        table.corrupt(images, asked(), keys, mode="exact")


def test_keys_and_fields_must_belong_to_the_images():
    images, keys = batch()
    with pytest.raises(ConfigError, match="one row of keys for each of the 2 images"):
        table.corrupt(images, asked(), keys[:1])
    field = table.fields(asked(), keys[:1], 32, 32)
    with pytest.raises(ConfigError, match="one row of field for each of the 2 images"):
        table.corrupt(images, asked(), keys, field=field)
    with pytest.raises(ConfigError, match="brightness has nothing random"):
        table.corrupt(images, asked(name="brightness"), keys, field=torch.zeros(2))


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 32, 32, 3), torch.zeros(2, 3, 32, 32).byte(), torch.zeros(2, 0, 9, 3).byte()],
)
def test_other_images_are_refused(images):
    with pytest.raises(PixelError, match=r"corrupt takes uint8 \[b, h, w, 3\]"):
        table.corrupt(images, asked(), draws.keys(["a", "b"]))


def test_notes_are_empty_at_the_size_of_the_variant_and_say_what_was_decided_elsewhere():
    assert table.notes(asked(), 32, 32) == ()
    assert table.notes(asked(variant="imagenet224"), 224, 224) == ()
    assert table.notes(asked(severity=0), 300, 400) == ()
    (size,) = table.notes(asked(variant="imagenet224"), 96, 96)
    assert size == "fog: imagenet224 was made for images of 224 x 224 px; these are 96 x 96 px."
    size, larger = table.notes(asked(variant="imagenet224"), 300, 513)
    assert "300 x 513" in size
    assert "a map of 1024 px was drawn, whose swells are 4 times as wide" in larger
    assert len(table.notes(asked(name="gaussian_noise"), 300, 513)) == 1


def test_a_field_depends_on_seed_name_severity_and_key_alone():
    _, keys = batch()
    field = table.fields(asked(), keys, 32, 32)
    assert field.shape == (2, 1023)
    assert torch.equal(field, table.fields(asked(), keys, 20, 31))
    for other in (asked(severity=4), asked(seed=1)):
        assert not torch.equal(field, table.fields(other, keys, 32, 32))
    assert torch.equal(field[1:], table.fields(asked(), keys[1:], 32, 32))
    assert not torch.equal(field[0], field[1])
    assert table.fields(asked(name="brightness"), keys, 32, 32) is None
    assert table.fields(asked(severity=0), keys, 32, 32) is None
    assert table.fields(asked("gaussian_noise"), keys, 20, 31).shape == (2, 20, 31, 3)
