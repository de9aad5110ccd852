"""`holdfast attack`: what it writes of a few images and says about them, and what it asks to be typed next."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast import cli, verbs
from holdfast.configs import AttackConfig, VerifyConfig
from holdfast.data.sources import images as images_of
from holdfast.data.sources import open_source
from holdfast.errors import ConfigError, DataError, TrustError
from holdfast.looking import next_step
from holdfast.models.checkpoint import load, save
from holdfast.models.encoder import Geometry
from holdfast.tasks.features import extract
from holdfast.training.probe import fit_linear
from holdfast.verifying import verify


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden encoder of scenes with a head that was fitted here, so that most clean images are seen rightly."""
    encoder = load(Path(__file__).parents[1] / "golden" / "scenes_resnet8.safetensors")
    source = open_source(images_of("scenes", split="train", limit=240))
    held = extract(encoder, source, level="pooled", chunk=64)
    head = fit_linear(held.vectors, torch.tensor(source.labels), classes=len(source.classes))
    encoder.trunk.reset_classifier(len(source.classes))
    encoder.head.load_state_dict(head.state_dict())
    return save(encoder, tmp_path_factory.mktemp("weights") / "small.safetensors")


def played(weights: Path, out: Path, **fields: Any) -> Path:
    config = AttackConfig(
        **{"encoder": str(weights), "limit": 5, "steps": 3, "out": str(out), "eps": 8 / 255, **fields}
    )
    said: list[str] = []
    verbs.play("attack", config, say=said.append)
    assert any("image" in line for line in said)
    return out


@pytest.mark.parametrize("way", ["embedding", "classification"])
def test_images_are_kept_without_loss_and_as_pictures(weights: Path, tmp_path: Path, way: str) -> None:
    out = played(weights, tmp_path / "look", through=way)
    with np.load(out / "adversarial.npz") as held:
        arrays = {name: held[name] for name in held.files}
    moved = arrays["adversarial"]
    assert moved.dtype == np.float32 and moved.shape == (5, 32, 32, 3)
    before = arrays["before"].astype(np.float32) / np.float32(255)
    norm = np.abs(moved.astype(np.float64) - before).reshape(5, -1).max(1)
    assert 0 < norm.max() <= 8 / 255 + 1e-6 and np.allclose(norm, arrays["attack_norm"])
    assert float(arrays["eps"]) == 8 / 255 and str(arrays["norm"]) == "linf"
    assert str(arrays["encoder"]) == load(str(weights)).digest() and '"pgd"' in str(arrays["attack"])
    for at, path in enumerate(sorted(out.glob("*.png"))):
        picture = np.asarray(Image.open(path))
        assert np.array_equal(picture, np.round(moved[at] * np.float32(255)).astype(np.uint8))
    page = (out / "gallery.html").read_text()
    assert "rounded" in page and page.count("data:image/webp") == 15 and "http" not in page
    assert ("8 bits" in page) and "prefers-color-scheme: dark" in page
    assert "everything about them agrees" in verify(VerifyConfig(runs=(str(out),)), say=print)[-1]


def test_the_factor_of_the_difference_is_said_and_cuts_nothing(weights: Path, tmp_path: Path) -> None:
    page = (played(weights, tmp_path / "look", eps=0.5 / 255) / "gallery.html").read_text()
    assert "difference \N{MULTIPLICATION SIGN} 200" in page and "0.5 + 200 δ" in page


def test_files_of_ones_own_are_attacked_and_judged_again(weights: Path, tmp_path: Path) -> None:
    paths = []
    for at, tint in enumerate(((200, 30, 30), (20, 40, 180))):
        paths.append(tmp_path / f"own{at}.png")
        Image.new("RGB", (40, 36), tint).save(paths[-1])
    out = played(weights, tmp_path / "look", images=tuple(map(str, paths)), size=32)
    assert [p.name for p in sorted(out.glob("*.png"))] == ["000-own0.png", "001-own1.png"]
    assert "everything about them agrees" in verify(VerifyConfig(runs=(str(out),)), say=print)[-1]
    Image.new("RGB", (40, 36), (200, 30, 31)).save(paths[0])
    with pytest.raises(TrustError, match="1 of 1 cell does not agree"):
        verify(VerifyConfig(runs=(str(out),)), say=print)


def own(folder: Path, *tints: tuple[int, int, int]) -> tuple[str, ...]:
    """Files of one colour each."""
    paths = [folder / f"own{at}.png" for at in range(len(tints))]
    for path, tint in zip(paths, tints):
        Image.new("RGB", (40, 36), tint).save(path)
    return tuple(map(str, paths))


def test_what_has_no_label_is_not_called_wrong(weights: Path, tmp_path: Path) -> None:
    files = own(tmp_path, (200, 30, 30), (20, 40, 180))
    fields = {"through": "classification", "eps": 64 / 255, "steps": 20}
    page = (played(weights, tmp_path / "look", images=files, size=32, **fields) / "gallery.html").read_text()
    assert "clean prediction " in page and "of 2 are changed, " in page
    assert "label " not in page and "misclassified" not in page
    page = (played(weights, tmp_path / "labelled", **fields) / "gallery.html").read_text()
    assert (
        re.search(r"label [a-z]+: predicted [a-z]+, attacked", page)
        and "are misclassified, " in page
        and "clean prediction" not in page
    )


def test_one_image_is_one(weights: Path, tmp_path: Path) -> None:
    page = (played(weights, tmp_path / "look", limit=1, through="classification") / "gallery.html").read_text()
    assert "<p>1 image, " in page and "of 1 is misclassified, " in page


def test_the_next_step_repeats_how_encoder_and_images_are_read(weights: Path, tmp_path: Path) -> None:
    files = own(tmp_path, (200, 30, 30))
    page = (played(weights, tmp_path / "plain") / "gallery.html").read_text()
    assert f"<code>holdfast bench {weights} --data scenes --out runs/bench</code>" in page
    fields = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.25), "size": 32, "split": "val"}
    page = (played(weights, tmp_path / "fitted", images=files, **fields) / "gallery.html").read_text()
    read = "--mean 0.4 0.5 0.6 --std 0.2 0.2 0.25 --size 32"
    assert f"<code>holdfast bench {weights} --data imgs/ {read} --out runs/bench</code>" in page


def test_the_next_step_is_read_as_it_was_meant() -> None:
    asked = {"arch": "resnet18", "options": ("pad_type=same", "b=1"), "mean": (0.1, 0.2, 0.3), "split": "val"}
    asked |= {"std": (1.0, 1.0, 1.0), "resize": 256, "interpolation": "bicubic", "classes": "cat,dog", "data": "voc:v"}
    words = shlex.split(next_step(AttackConfig(encoder="my nets/a.pth", images=(), **asked)))
    found = cli.parse(words[1:]).config
    assert words[0] == "holdfast" and found.encoders == ("my nets/a.pth",) and found.out == "runs/bench"
    assert {name: getattr(found, name) for name in asked} == asked


def test_files_that_are_not_there_and_folders_are_told_apart(weights: Path, tmp_path: Path) -> None:
    (file,) = own(tmp_path, (200, 30, 30))
    with pytest.raises(DataError, match=r"own1\.png does not exist\. Perhaps you meant .*own0\.png"):
        played(weights, tmp_path / "look", images=(file, str(tmp_path / "own1.png")), size=32)
    with pytest.raises(DataError, match=r"is a folder, not an image.*--data "):
        played(weights, tmp_path / "look", images=(str(tmp_path),), size=32)


def test_files_of_different_sizes_are_named(weights: Path, tmp_path: Path) -> None:
    encoder = load(str(weights))
    encoder.geometry = Geometry()
    anything = save(encoder, tmp_path / "any.safetensors")
    for name, size in (("a.png", (32, 32)), ("b.png", (40, 32))):
        Image.new("RGB", size).save(tmp_path / name)
    with pytest.raises(DataError, match=r"a.png is 32x32.*b.png 32x40.*--size"):
        played(anything, tmp_path / "look", images=(str(tmp_path / "a.png"), str(tmp_path / "b.png")))


def test_a_class_is_aimed_at_by_name(weights: Path, tmp_path: Path) -> None:
    out = played(weights, tmp_path / "look", through="classification", target="ring", steps=20, eps=64 / 255)
    with np.load(out / "adversarial.npz") as held:
        number = held["classes"].tolist().index("ring")
        assert set(held["target"].tolist()) == {number}
        assert np.array_equal(held["score"] > 0, held["prediction"] == number)
        assert (held["prediction"] == number).any()
    with pytest.raises(ConfigError, match='Perhaps you meant "ring"'):
        played(weights, tmp_path / "look", through="classification", target="rnig")


@pytest.mark.parametrize("way", ["embedding", "classification"])
def test_an_aim_that_was_drawn_is_said_and_judged_again(weights: Path, tmp_path: Path, way: str) -> None:
    out = played(weights, tmp_path / "look", through=way, aim="towards", steps=20, eps=16 / 255)
    with np.load(out / "adversarial.npz") as held:
        reached = held["goal_reached" if way == "embedding" else "target_reached"]
        assert np.array_equal(held["score"] > 0, reached) and reached.any()
        if way == "classification":
            assert not (held["target"] == held["label"]).any()
    assert "everything about them agrees" in verify(VerifyConfig(runs=(str(out),)), say=print)[-1]


def test_another_norm_and_no_radius(weights: Path, tmp_path: Path) -> None:
    for norm, eps in (("l2", 0.5), ("l1", 12.0)):
        out = played(weights, tmp_path / norm, through="classification", method="apgd", norm=norm, eps=eps)
        assert "everything about them agrees" in verify(VerifyConfig(runs=(str(out),)), say=print)[-1]
    out = played(weights, tmp_path / "nearest", through="classification", method="fab", eps=0, targets=3)
    with np.load(out / "adversarial.npz") as held:
        assert (held["score"] > 0).all() and float(held["eps"]) == 0
    assert "nearest in linf" in (out / "gallery.html").read_text()
    assert "everything about them agrees" in verify(VerifyConfig(runs=(str(out),)), say=print)[-1]


def test_a_mistake_loses_nothing(weights: Path, tmp_path: Path) -> None:
    out = played(weights, tmp_path / "look")
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    for fields in ({"eps": 8.0}, {"method": "pdg"}, {"through": "classification", "target": "rnig"}):
        with pytest.raises(ConfigError):
            played(weights, out, **fields)
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before
