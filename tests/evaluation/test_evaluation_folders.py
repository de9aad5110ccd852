"""Clean images beside a folder of corrupted ones: the same pictures, cut alike, all of them, or an error."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import holdfast
from holdfast.data.copies import RECORD
from holdfast.errors import ConfigError, ConflictError, DataError
from holdfast.evaluation.store import Run
from holdfast.models.checkpoint import load, save
from holdfast.models.encoder import Encoder, Geometry

sys.path.append(str(Path(__file__).parents[1] / "corruptions"))

from corruption_references import photos


def tree(root: Path) -> Path:
    """split/class/image.png of 80 x 90 px, the same names in both splits."""
    pictures = iter(photos(16, 80, 90))
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(next(pictures)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture(scope="module")
def copy(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("copy") / "c"
    fields = {"resize": 36, "size": 32, "corruptions": ["brightness", "fog"], "severities": [1, 2]}
    return holdfast.corrupt(str(images), str(out), **fields)


def encoder() -> Encoder:
    """One whose own geometry is neither that of a copy nor that of ImageNet-C."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 5, 2))
    return Encoder(trunk.eval(), geometry=Geometry(32, 33, "bicubic"))


def bench(images: Path, out: Path, **fields: object) -> Run:
    given = {"tasks": ["embedding"], "suite": "corruptions", "chunk": 8, "saliency": 8, "data": str(images), **fields}
    return holdfast.bench([encoder()], out=str(out), **given)


def ssim(run: Run, name: str) -> float:
    found = [r for r in run.results if r.cell.judge.task == "saliency" and r.cell.corruption]
    return next(r for r in found if r.cell.corruption.name == name).metric("ssim").value


def test_clean_images_are_cut_as_those_of_the_folder_were(images: Path, copy: Path, tmp_path: Path) -> None:
    read = bench(images, tmp_path / "read", corrupted=str(copy))
    data = {r.cell.data for r in read.results}
    assert {(d.resize, d.size, d.interpolation) for d in data} == {(36, 32, "bilinear")}
    fields = {"corruptions": ["brightness"], "severities": [1], "resize": 36, "size": 32}
    made = bench(images, tmp_path / "made", interpolation="bilinear", **fields)
    one, other = (
        next(r for r in run.results if (c := r.cell.corruption) and (c.name, c.severity) == ("brightness", 1))
        for run in (made, read)
    )
    assert np.array_equal(made.outcomes(one.id)["l2"], read.outcomes(other.id)["l2"])
    assert ssim(read, "brightness") > 0.9
    with pytest.raises(DataError, match=r"would be cut otherwise \(resize 33, size 32, bilinear\).*Leave --resize"):
        bench(images, tmp_path / "other", corrupted=str(copy), resize=33, size=32)
    with pytest.raises(DataError, match=r"bicubic\) than those of .*resize 36, size 32, bilinear"):
        bench(images, tmp_path / "other", corrupted=str(copy), interpolation="bicubic")


def test_a_copy_of_another_split_is_refused(images: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split test: it has no train/cat/0\.png and 7 others.*--split test"):
        bench(images, tmp_path / "r", corrupted=str(copy), split="train", fit_split="test")


def test_an_unfinished_copy_is_refused(images: Path, copy: Path, tmp_path: Path) -> None:
    record = copy / RECORD
    whole = record.read_text()
    record.write_text(whole.replace("finished: true", "finished: false"))
    try:
        with pytest.raises(DataError, match=r"is not finished.*same holdfast corrupt command"):
            bench(images, tmp_path / "r", corrupted=str(copy))
    finally:
        record.write_text(whole)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"severities": [2, 4]}, "no severity 4 of fog.*It has 1, 2"),
        ({"corruptions": ["fogg"]}, 'no corruption "fogg". Perhaps you meant "fog"'),
    ],
)
def test_what_a_folder_lacks_is_named_and_never_made_here(
    images: Path, copy: Path, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        bench(images, tmp_path / "r", corrupted=str(copy), **fields)


def test_a_folder_without_conditions_gives_the_clean_cells_alone(images: Path, copy: Path, tmp_path: Path) -> None:
    found = bench(images, tmp_path / "r", corrupted=str(copy), corruptions=["none"])
    assert all(not r.cell.stages for r in found.results)


def test_a_kind_that_was_named_is_kept(images: Path, copy: Path, tmp_path: Path) -> None:
    found = bench(images, tmp_path / "r", corrupted=f"imagenet_c:{copy}", corruptions=["fog"], severities=[1])
    assert not found.failed and ssim(found, "fog") < 1


def test_a_corrupted_set_is_no_clean_set_for_another(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a set of corrupted images itself"):
        bench(copy, tmp_path / "r", corrupted=str(tmp_path))


def test_a_set_unpacked_beside_the_clean_split_is_still_read(images: Path, copy: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(images, both)
    shutil.copytree(copy / "fog", both / "fog")
    fields = {"data": f"folder:{both}", "corrupted": f"imagenet_c:{both}", "resize": 37, "size": 32}
    found = bench(both, tmp_path / "r", severities=[2], **fields)
    (fog,) = [r for r in found.results if r.cell.judge.task == "embedding" and r.cell.stages]
    assert (found.outcomes(fog.id)["l2"] > 0).all()


def own_head(tmp_path: Path, classes: int) -> str:
    encoder = load("random:cifar_resnet8", options=("width=4", f"num_classes={classes}"))
    return str(save(encoder, tmp_path / f"headed{classes}.safetensors"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: shutil.rmtree(c / "fog" / "2" / "cat"), r'fog/1 of .* has class "cat", fog/2 has not'),
        (lambda c: (c / "fog" / "2" / "cat").rename(c / "fog" / "2" / "zeppelin"), 'has class "'),
        (lambda c: (c / "fog" / "2" / "dog" / "3.png").unlink(), r"fog/2 of .* has no dog/3\.png"),
    ],
)
def test_conditions_of_a_set_alone_must_hold_the_same_images(
    copy: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    alone = tmp_path / "c"
    shutil.copytree(copy, alone)
    whole = holdfast.bench(own_head(tmp_path, 2), data=f"imagenet_c:{alone}", out=str(tmp_path / "r"), chunk=8)
    assert {r.metric("accuracy").n for r in whole.results} == {8}
    spoil(alone)
    with pytest.raises(DataError, match=message):
        holdfast.bench(own_head(tmp_path, 2), data=f"imagenet_c:{alone}", out=str(tmp_path / "s"), chunk=8)


def test_a_copy_that_was_made_anew_is_another_run(images: Path, tmp_path: Path) -> None:
    fields = {"resize": 36, "size": 32, "corruptions": ["fog"], "severities": [1]}
    holdfast.corrupt(str(images), str(tmp_path / "c"), **fields)
    bench(images, tmp_path / "r", corrupted=str(tmp_path / "c"))
    holdfast.corrupt(str(images), str(tmp_path / "c"), storage="jpeg85", replace=True, **fields)
    with pytest.raises(ConflictError, match="heads or corrupted images"):
        bench(images, tmp_path / "r", corrupted=str(tmp_path / "c"))


def test_a_head_from_a_file_judges_and_another_in_its_place_is_another_run(images: Path, tmp_path: Path) -> None:
    fields = {"tasks": ["classification"], "saliency": 0, "corruptions": ["none"], "resize": 36, "size": 32}
    for name, sign in (("a", 1.0), ("b", -1.0)):
        weight = sign * torch.cat([torch.ones(1, 16), -torch.ones(1, 16)])
        save_file({"weight": weight, "bias": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    spec, head = own_head(tmp_path, 2), tmp_path / "head.safetensors"
    found = {}
    for name in "ab":
        shutil.copy(tmp_path / f"{name}.safetensors", head)
        given = {"data": str(images), "heads": [str(head)], "suite": "corruptions", "chunk": 8, **fields}
        if name == "b":
            with pytest.raises(ConflictError, match="heads or corrupted images"):
                holdfast.bench([spec], out=str(tmp_path / "a"), **given)
            with pytest.raises(ConfigError, match="--head own asks for another"):
                holdfast.bench([spec], out=str(tmp_path / "x"), head="own", **given)
        (result,) = holdfast.bench([spec], out=str(tmp_path / name), **given).results
        assert result.cell.judge.head == "given"
        found[name] = result.metric("accuracy").value
    assert found["a"] + found["b"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"storage": "jpeg85"}, "--storage jpeg85 would change nothing"),
        ({"variant": "tiny64"}, "--variant tiny64 would change nothing"),
        ({"corruption_mode": "reference"}, "--corruption-mode reference would change nothing"),
        ({"heads": ["h.pt"]}, "--heads were given"),
    ],
)
def test_what_would_change_nothing_is_refused(
    images: Path, copy: Path, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bench(images, tmp_path / "r", corrupted=str(copy), **fields)
