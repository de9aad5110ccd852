"""What a dense head is fitted on, chosen by and measured on: never one image twice."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow

from holdfast.configs import ProbeConfig
from holdfast.data.sources import images, open_source
from holdfast.errors import ConfigError, DataError
from holdfast.models.encoder import Geometry
from holdfast.training.dense_splits import Part, parts_for
from holdfast.training.probe import probe

GOLDEN = Path(__file__).parents[1] / "golden" / "scenes_resnet8.safetensors"
SIDES = Geometry(size=32, resize=32)


def _quiet(text):
    del text


def _config(data, **fields):
    small = {"task": "segmentation", "levels": ("stage3",), "batch": 8, "epochs": 1}
    return ProbeConfig(encoder=str(GOLDEN), data=data, **{**small, **fields})


def _masks(root, counts):
    """A folder of images and masks with these splits."""
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            values = torch.randint(0, 255, (8, 8, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
            Pillow.fromarray(values.numpy()).save(root / "images" / split / f"{split}{i}.png")
            Pillow.fromarray((values[..., 0] // 128).numpy()).save(root / "masks" / split / f"{split}{i}.png")
    (root / "classes.txt").write_text("dark\nbright\n")
    return str(root)


def test_a_share_of_the_training_images_chooses_where_there_is_no_val(tmp_path):
    root = _masks(tmp_path / "set", {"train": 20, "test": 4})
    config = _config(root, out=str(tmp_path / "p"), val_share=0.25)
    parts, same, other = (parts_for(c, SIDES) for c in (config, config, _config(root, val_share=0.25, seed=3)))
    assert [len(part.indices) for part in parts] == [15, 5, 4]
    assert not {*parts.train.ids} & {*parts.val.ids} and len({*parts.train.ids, *parts.val.ids}) == 20
    assert parts.val.indices == same.val.indices and parts.digest == same.digest
    assert parts.digest != other.digest
    assert "5 images of train that were held out" in parts.spoken()
    found = json.loads((probe(config, say=_quiet) / "probe.json").read_text())
    assert (found["train"]["images"], found["val"]["images"], found["test"]["images"]) == (15, 5, 4)


def test_val_is_measured_where_there_is_no_test_and_chooses_where_there_is(tmp_path):
    two = _masks(tmp_path / "two", {"train": 10, "val": 3})
    parts = parts_for(_config(two), SIDES)
    assert (parts.test.name, len(parts.test.indices), len(parts.val.indices)) == ("val", 3, 1)
    three = _masks(tmp_path / "three", {"train": 10, "val": 3, "test": 2})
    parts = parts_for(_config(three), SIDES)
    assert [(part.name, len(part.indices)) for part in parts] == [("train", 10), ("val", 3), ("test", 2)]
    parts = parts_for(_config(three, test_split="val"), SIDES)
    assert (parts.test.name, parts.val.name) == ("val", "train that were held out")


def test_images_that_will_not_do_are_refused_with_what_to_type(tmp_path):
    two = _masks(tmp_path / "two", {"train": 10, "test": 3})
    cases = [
        (two, {"test_split": "train"}, "fitted on"),
        (two, {"test_split": "nowhere"}, "Give --test-split test"),
        (_masks(tmp_path / "one", {"train": 3}), {}, "folders train and test"),
        (two, {"task": "depth"}, "depth_folder:"),
        (f"flat:{two}/images", {"split": "train", "test_split": "test"}, "has no masks"),
    ]
    for data, fields, message in cases:
        with pytest.raises(DataError, match=message):
            parts_for(_config(data, **fields), SIDES)
    with pytest.raises(ConfigError, match="--val-share"):
        parts_for(_config(two, val_share=0.01), SIDES)


def test_a_part_that_is_a_whole_source_has_its_digest():
    source = open_source(images("scenes", split="val", size=16, limit=6))
    assert Part(source, list(range(6)), "val").digest == source.data.digest_of_images
    assert Part(source, [0, 1], "val").digest != Part(source, [0, 2], "val").digest
