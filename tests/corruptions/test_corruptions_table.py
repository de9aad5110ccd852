"""The table: names, severities, errors, remarks, and what a field is."""

import io

import msgspec
import numpy as np
import pytest
import torch
from corruption_references import photos
from PIL import Image
from published_severities import published

from holdfast import draws
from holdfast.corruptions import table
from holdfast.errors import ConfigError, PixelError
from holdfast.evaluation.published import CORRUPTIONS, FAMILIES, MCE_CORRUPTIONS
from holdfast.records import Corruption


def asked(name="fog", severity=3, variant="cifar32", seed=0):
    return Corruption(name=name, severity=severity, variant=variant, seed=seed)


def batch(count=2, side=32):
    return torch.from_numpy(photos(count, side, side)), draws.keys([f"image{i}" for i in range(count)])


def test_severities_are_the_published_ones():
    expected = published()
    assert set(table.names()) == set(expected)
    for name, variants in expected.items():
        found = table.entry(name).severities
        assert set(found) == set(variants) == set(table.variants())
        for variant, severities in variants.items():
            assert found[variant] == severities, (name, variant)


def test_names_stand_in_the_order_of_the_published_sets_in_five_families():
    assert table.names() == CORRUPTIONS
    assert table.families() == FAMILIES
    assert tuple(n for n in table.names() if table.entry(n).in_mce) == MCE_CORRUPTIONS


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


def test_an_unknown_mode_or_storage_is_refused():
    images, keys = batch()
    for field, wrong, known in (("mode", "exact", "fast, reference"), ("storage", "png", "jpeg85, none")):
        with pytest.raises(ConfigError, match=rf'no {field} "{wrong}".*Known: {known}'):
            table.corrupt(images, msgspec.structs.replace(asked(), **{field: wrong}), keys)


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


def test_storage_sends_the_result_through_the_jpeg_file_of_the_official_sets():
    images, keys = batch()
    plain = table.corrupt(images, asked(), keys)
    stored = table.corrupt(images, msgspec.structs.replace(asked(), storage="jpeg85"), keys)
    for one, other in zip(plain.numpy(), stored.numpy(), strict=True):
        file = io.BytesIO()
        Image.fromarray(one).save(file, "JPEG", quality=85, optimize=True)
        assert (np.asarray(Image.open(file)) == other).all()
    clean = table.corrupt(images, msgspec.structs.replace(asked(severity=0), storage="jpeg85"), keys)
    assert not torch.equal(clean, images)


def test_what_a_folder_holds_is_not_made():
    images, keys = batch()
    stage = msgspec.structs.replace(asked(name="plasma_noise"), root="set-c")
    table.check(stage)
    assert table.notes(stage, 99, 99) == ()
    with pytest.raises(ConfigError, match="read from there"):
        table.corrupt(images, stage, keys)
