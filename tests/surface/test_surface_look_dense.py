"""`holdfast attack` through a head that answers for every pixel: what it shows, what it writes, what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import holdfast
from holdfast import cli, verbs
from holdfast.configs import AttackConfig, VerifyConfig
from holdfast.data.scenes import CLASSES
from holdfast.data.sources import images as images_of
from holdfast.data.sources import open_source
from holdfast.errors import CheckpointError, ConfigError, DataError, HoldfastError, TrustError
from holdfast.looking import next_step
from holdfast.models.checkpoint import load, save
from holdfast.models.dense_files import read_dense_head, save_head
from holdfast.models.dense_heads import build_head, spec_for
from holdfast.models.encoder import Geometry
from holdfast.verifying import verify

WEIGHTS = Path(__file__).parents[1] / "golden" / "scenes_resnet8.safetensors"
PARTS = ("background", *CLASSES)
PICTURES = ("truth", "answer, clean", "answer, attacked", "error, clean", "error, attacked")
N, EPS = 3, 8 / 255


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random head of each task: answers are bad, and that is all the same here."""
    folder, encoder = tmp_path_factory.mktemp("heads"), load(str(WEIGHTS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_head(build_head(spec_for(encoder, "segmentation", outputs=9)), folder / "segmentation", parts=PARTS)
        save_head(build_head(spec_for(encoder, "depth", outputs=32)), folder / "depth")
        save_head(build_head(spec_for(encoder, "segmentation", outputs=2)), folder / "two", parts=("a", "b"))
    return folder


def fields(heads: Path, task: str, out: Path, **changed: Any) -> dict[str, Any]:
    asked = {"encoder": str(WEIGHTS), "data": "scenes", "limit": N, "steps": 3, "eps": EPS, "out": str(out)}
    return {**asked, f"{task}_heads": (str(heads / task),), **changed}


def played(heads: Path, task: str, out: Path, **changed: Any) -> tuple[Path, dict[str, np.ndarray], list[dict]]:
    said: list[str] = []
    verbs.play("attack", AttackConfig(**fields(heads, task, out, **changed)), say=said.append)
    assert any(f"through the {task} head of" in line and "on average" in line for line in said), said
    with np.load(out / "adversarial.npz") as held:
        arrays = {name: held[name] for name in held.files}
    return out, arrays, json.loads((out / "attack.json").read_text())["images"]


def agrees(out: Path) -> bool:
    return "everything about them agrees" in verify(VerifyConfig(runs=(str(out),)), say=print)[-1]


def miou(answer: np.ndarray, truth: np.ndarray) -> float:
    pairs = [((answer == k) & (truth == k), (answer == k) | (truth == k)) for k in range(9)]
    return float(np.mean([both.sum() / either.sum() for both, either in pairs if either.any()]))


# -- what is written ---------------------------------------------------------------------------------------------------


def test_the_numbers_of_segmentation_are_those_of_the_answers(heads: Path, tmp_path: Path) -> None:
    out, arrays, images = played(heads, "segmentation", tmp_path / "look")
    source = open_source(images_of("scenes", limit=N))
    for at, image in enumerate(images):
        assert np.array_equal(arrays["truth"][at], source.read(at).truth["mask"])
        for view, answer in (("clean", "clean_answer"), ("attacked", "answer")):
            right = float((arrays[answer][at] == arrays["truth"][at]).mean())
            assert image[view]["pixel_accuracy"] == pytest.approx(right)
            assert image[view]["miou"] == pytest.approx(miou(arrays[answer][at], arrays["truth"][at]))
        assert image["attacked"]["pixel_accuracy"] == pytest.approx(1 - arrays["score"][at], abs=1e-6)
        occurs = {PARTS[k] for k in np.unique(np.stack([arrays["truth"][at], arrays["answer"][at]]))}
        assert {name[4:] for name in image["attacked"] if name.startswith("iou/")} == occurs
        assert image["id"] == source.ids[at] and (out / image["picture"]).is_file()
    assert np.mean([i["attacked"]["pixel_accuracy"] - i["clean"]["pixel_accuracy"] for i in images]) < 0


def test_the_numbers_of_depth_are_those_of_the_answers(heads: Path, tmp_path: Path) -> None:
    _, arrays, images = played(heads, "depth", tmp_path / "look")
    truth = arrays["truth"].astype(np.float64)
    for name, view in (("clean_answer", "clean"), ("answer", "attacked")):
        apart = arrays[name].astype(np.float64) - truth
        for at, image in enumerate(images):
            assert image[view]["rmse"] == pytest.approx(float(np.sqrt((apart[at] ** 2).mean())), rel=1e-5)
            assert image[view]["abs_rel"] == pytest.approx(float((np.abs(apart[at]) / truth[at]).mean()), rel=1e-5)
            assert not any("pooled" in metric for metric in image[view])
    assert all(image["attacked"]["rmse"] > image["clean"]["rmse"] for image in images)


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_images_are_kept_without_loss_shown_and_judged_anew(heads: Path, tmp_path: Path, task: str) -> None:
    out, arrays, images = played(heads, task, tmp_path / "look")
    before = arrays["before"].astype(np.float32) / np.float32(255)
    norm = np.abs(arrays["adversarial"].astype(np.float64) - before).reshape(N, -1).max(1)
    assert norm.min() > 0 and norm.max() <= EPS + 1e-6
    assert [image["norm"] for image in images] == pytest.approx(norm.tolist())
    for at, image in enumerate(images):
        levels = np.round(arrays["adversarial"][at] * np.float32(255)).astype(np.uint8)
        assert np.array_equal(np.asarray(Image.open(out / image["picture"])), levels)
    page = (out / "gallery.html").read_text()
    assert page.count("data:image/webp") == N * (3 + len(PICTURES)) and "http" not in page
    assert all(page.count(f'<div class="name">{name}</div>') == N for name in PICTURES)
    assert agrees(out)


def test_classes_have_a_legend_and_depth_has_none(heads: Path, tmp_path: Path) -> None:
    out, arrays, _ = played(heads, "segmentation", tmp_path / "classes")
    page = (out / "gallery.html").read_text()
    there = np.unique(np.stack([arrays[name] for name in ("truth", "clean_answer", "answer")]))
    assert all((f"</i>{name}</span>" in page) == (k in there) for k, name in enumerate(PARTS))
    assert "no label" not in page.split('class="tiles')[0].split("grey ones have no label")[1]
    out, *_ = played(heads, "depth", tmp_path / "depth")
    page = (out / "gallery.html").read_text()
    assert "</i>" not in page and "grey was not measured" in page


def test_windows_crops_and_other_harms_are_judged_anew(heads: Path, tmp_path: Path) -> None:
    _, whole, _ = played(heads, "depth", tmp_path / "whole")
    out, crop, _ = played(heads, "depth", tmp_path / "crop", depth_crop="eigen", window=24, stride=8)
    assert agrees(out) and not np.allclose(whole["clean_answer"], crop["clean_answer"])
    out, _, _ = played(heads, "segmentation", tmp_path / "sea", method="sea", push="js", norm="l2", eps=0.5, steps=5)
    assert agrees(out)
    more = {"push": "ce_target", "targets": 2, "restarts": 2, "precision": "bf16"}
    out, _, _ = played(heads, "segmentation", tmp_path / "targets", **more)
    assert agrees(out)


def test_more_images_than_a_pass_holds(heads: Path, tmp_path: Path) -> None:
    out, arrays, images = played(heads, "segmentation", tmp_path / "look", limit=11, steps=1)
    assert len(images) == len(arrays["answer"]) == 11 and agrees(out)


def test_another_head_in_the_place_of_the_old_one_is_found(heads: Path, tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    file.write_bytes((heads / "segmentation" / "head.safetensors").read_bytes())
    out, *_ = played(heads, "segmentation", tmp_path / "look", segmentation_heads=(str(file),))
    assert agrees(out)
    save_head(build_head(read_dense_head(file).head.spec), file, parts=PARTS)
    with pytest.raises(TrustError, match="could not be judged"):
        verify(VerifyConfig(runs=(str(out),)), say=print)


def test_a_head_of_another_encoder_is_said(heads: Path, tmp_path: Path) -> None:
    head = read_dense_head(heads / "segmentation").head
    told = {}
    for name, digest in (("own", load(str(WEIGHTS)).digest()), ("other", 64 * "0")):
        file = save_head(head, tmp_path / name, parts=PARTS, extra={"digest_of_encoder": digest})
        out, *_ = played(heads, "segmentation", tmp_path / f"look_{name}", segmentation_heads=(str(file),), steps=1)
        told[name] = "fitted on another encoder" in (out / "gallery.html").read_text()
    assert told == {"own": False, "other": True}


def test_other_attacks_have_their_numbers_too(tmp_path: Path) -> None:
    asked = {"encoder": str(WEIGHTS), "limit": 2, "steps": 2, "eps": EPS, "out": str(tmp_path)}
    verbs.play("attack", AttackConfig(**asked), say=print)
    found = json.loads((tmp_path / "attack.json").read_text())
    with np.load(tmp_path / "adversarial.npz") as held:
        assert [i["attacked"]["l2_drift"] for i in found["images"]] == pytest.approx(held["l2"].tolist())
    assert found["cell"]["judge"]["task"] == "embedding"
    assert all(i["clean"]["l2_drift"] == 0 for i in found["images"])


def test_the_next_step_names_the_head(heads: Path) -> None:
    asked = {"segmentation_heads": ("my heads/a",), "window": 24, "stride": 8}
    found = cli.parse(shlex.split(next_step(AttackConfig(encoder="a.pth", data="voc:v", **asked)))[1:]).config
    assert {name: getattr(found, name) for name in asked} == asked
    asked = {"depth_heads": ("b",), "depth_crop": "garg"}
    found = cli.parse(shlex.split(next_step(AttackConfig(encoder="a.pth", **asked)))[1:]).config
    assert {name: getattr(found, name) for name in asked} == asked


# -- in Python ---------------------------------------------------------------------------------------------------------


def test_masks_and_depth_are_handed_over_in_python(heads: Path, tmp_path: Path) -> None:
    source = open_source(images_of("scenes", limit=N))
    read = [source.read(i) for i in range(N)]
    pixels = torch.from_numpy(np.stack([r.pixels for r in read])).permute(0, 3, 1, 2).float() / 255
    for task, row in (("segmentation", "mask"), ("depth", "depth")):
        truth = torch.from_numpy(np.stack([np.asarray(r.truth[row]) for r in read]))
        given = {f"{task}_heads": [str(heads / task)], "eps": EPS, "steps": 3}
        found = holdfast.attack(str(WEIGHTS), pixels, truth, **given)
        assert float((found - pixels).abs().max()) <= EPS + 1e-6 and not torch.equal(found, pixels)
    with pytest.raises(DataError, match=r"(?s)judged by masks: given was none.*int64 of shape \[3, h, w\]"):
        holdfast.attack(str(WEIGHTS), pixels, segmentation_heads=[str(heads / "segmentation")], eps=EPS)
    with pytest.raises(ConfigError, match="has features of its own"):
        holdfast.attack(
            str(WEIGHTS),
            pixels,
            torch.zeros(N, 32, 32, dtype=torch.int64),
            surrogate="random:scenes_resnet8",
            segmentation_heads=[str(heads / "segmentation")],
        )


# -- what is refused ---------------------------------------------------------------------------------------------------

MISTAKES: list[tuple[dict[str, Any], type[HoldfastError], str]] = [
    ({"segmentation_heads": ("{}/segmentatoin",)}, CheckpointError, 'no file.*Perhaps you meant "segmentation"'),
    ({"segmentation_heads": ("{}/nowhere/x",)}, CheckpointError, r"no folder .*nowhere\. Check the path"),
    ({"segmentation_heads": ("{}",)}, CheckpointError, r"read from .*holds no head\.safetensors.*holdfast probe"),
    ({"segmentation_heads": (str(WEIGHTS),)}, CheckpointError, "dense head is a file of holdfast probe.*Name another"),
    ({"segmentation_heads": ("{}/depth",)}, ConfigError, "is a head of depth. Name it with --depth-heads"),
    ({"segmentation_heads": ("{}/two",)}, ConfigError, "answers for 2 classes.*scenes has 9.*Fit a head"),
    ({"segmentation_heads": ("a", "b")}, ConfigError, "2 dense heads for one attack.*Name one"),
    ({"depth_heads": ("{}/depth",)}, ConfigError, "2 dense heads for one attack"),
    ({"segmentation_heads": (), "through": "depth"}, ConfigError, "no head was named.*holdfast probe .*--task depth"),
    ({"through": "embedding"}, ConfigError, "--segmentation-heads was given.*through embedding.*Leave one"),
    ({"surrogate": "other.pth"}, ConfigError, "made on other.pth.*Leave --surrogate out"),
    ({"target": "ring"}, ConfigError, "towards a class.*--targets 3"),
    ({"aim": "towards"}, ConfigError, "towards a class"),
    ({"images": ("cat.png",)}, DataError, "judged by masks: files .* have none.*--data street/"),
    ({"push": "segpdg"}, ConfigError, 'no harm "segpdg". Perhaps you meant "segpgd"'),
    ({"method": "fab"}, ConfigError, "fab attacks classification, and was to attack segmentation"),
    ({"stride": 8}, ConfigError, "a stride of 8 pixels, and no window"),
    ({"encoder": "random:cifar_resnet8", "options": ("width=4",)}, ConfigError, "the head reads.*fitted on this"),
]


@pytest.mark.parametrize(("changed", "kind", "says"), MISTAKES, ids=[says[:24] for *_, says in MISTAKES])
def test_a_mistake_is_said_and_loses_nothing(
    heads: Path, tmp_path: Path, changed: dict[str, Any], kind: type[HoldfastError], says: str
) -> None:
    named = {k: tuple(x.format(heads) for x in v) if k.endswith("_heads") else v for k, v in changed.items()}
    config = AttackConfig(**fields(heads, "segmentation", tmp_path / "look", **named))
    with pytest.raises(kind, match=f"(?s){says}"):
        verbs.play("attack", config, say=print)
    assert not (tmp_path / "look").exists()


def picture(path: Path, wide: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (wide, 32), (90, 40, 20)).save(path)


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_images_without_truth_are_refused(heads: Path, tmp_path: Path, task: str) -> None:
    for name in ("a/0.png", "b/1.png"):
        picture(tmp_path / "imgs" / "test" / name, 32)
    with pytest.raises(DataError, match=r"has no (masks|depth)\. See holdfast ls layouts"):
        played(heads, task, tmp_path / "look", data=str(tmp_path / "imgs"))


def test_images_of_a_folder_that_differ_in_size_are_named(tmp_path: Path) -> None:
    encoder = load(str(WEIGHTS))
    encoder.geometry = Geometry()
    anything = save(encoder, tmp_path / "any.safetensors")
    for name, wide in (("a/0.png", 32), ("a/1.png", 40)):
        picture(tmp_path / "imgs" / "test" / name, wide)
    config = AttackConfig(encoder=str(anything), data=str(tmp_path / "imgs"), steps=1, out=str(tmp_path / "look"))
    with pytest.raises(DataError, match=r"0\.png is 32x32 and .*1\.png is 32x40.*--size"):
        verbs.play("attack", config, say=print)
