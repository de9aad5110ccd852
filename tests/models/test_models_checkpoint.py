"""What people have, and what they get told: every row of the table of errors, on files written here."""

from __future__ import annotations

import argparse
import json
import os
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from holdfast.errors import CheckpointError, ConfigError
from holdfast.models import matching
from holdfast.models.architectures import IMAGENET, SMALL
from holdfast.models.checkpoint import load, save, series
from holdfast.models.encoder import Encoder, Geometry
from holdfast.records import Model

NET = "cifar_resnet8"
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PLAIN = {"mean": IMAGENET[0], "std": IMAGENET[1]}


def made(num_classes: int = 0, seed: int = 0) -> Encoder:
    return load(f"random:{NET}:{seed}", options=(f"num_classes={num_classes}",))


def tensors(encoder: Encoder, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: t.clone() for name, t in encoder.trunk.state_dict().items()}


def same(one: Encoder, other: Encoder) -> bool:
    mine, theirs = one.trunk.state_dict(), other.trunk.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in mine.items())


def tiny_module(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())


# -- containers and prefixes -------------------------------------------------------------------------------------------

CONTAINERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda t: t,
    "state_dict": lambda t: {"epoch": 3, "state_dict": t, "optimizer": {"state": {}, "param_groups": []}},
    "model": lambda t: {"model": t, "args": argparse.Namespace(arch="x")},
    "nested": lambda t: {"classy_state_dict": {"base_model": {"model": {"trunk": t}}}},
}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "backbone.", "module.encoder.", "_orig_mod.module.backbone."]
)
@pytest.mark.parametrize("container", CONTAINERS)
def test_reads_any_container_and_prefix(tmp_path: Path, container: str, prefix: str) -> None:
    truth = made()
    beside = {"projector.0.weight": torch.ones(3, 3)} if prefix else {}
    torch.save(CONTAINERS[container](tensors(truth, prefix) | beside), tmp_path / "a.pth")
    assert same(load(str(tmp_path / "a.pth"), arch=NET), truth)


def test_prefixes_are_removed_as_words_not_as_letters(tmp_path: Path) -> None:
    """`lstrip("backbone.")` would turn `conv1` into `v1`."""
    save_file(tensors(made(), "backbone."), tmp_path / "a.safetensors")
    assert same(load(tmp_path / "a.safetensors", arch=NET), made())


def test_teacher_is_read_unless_the_student_is_asked_for(tmp_path: Path) -> None:
    teacher, student = made(seed=1), made(seed=2)
    torch.save(
        {"student": tensors(student, "module.backbone."), "teacher": tensors(teacher, "backbone.")}, tmp_path / "a.pth"
    )
    read = load(str(tmp_path / "a.pth"), arch=NET)
    assert same(read, teacher)
    assert read.model.weights == "teacher"
    assert same(load(str(tmp_path / "a.pth"), arch=NET, weights="student"), student)


def test_momentum_copies_are_not_mistaken_for_the_encoder(tmp_path: Path) -> None:
    both = tensors(made(seed=1), "backbone.") | tensors(made(seed=2), "momentum_backbone.")
    torch.save({"state_dict": both}, tmp_path / "a.ckpt")
    assert same(load(str(tmp_path / "a.ckpt"), arch=NET), made(seed=1))
    assert same(load(str(tmp_path / "a.ckpt"), arch=NET, weights="momentum_backbone"), made(seed=2))


def test_two_encoders_on_an_equal_footing_are_asked_about(tmp_path: Path) -> None:
    torch.save(tensors(made(seed=1), "left.") | tensors(made(seed=2), "right."), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r'2 encoders: left\., right\..*weights="left"'):
        load(str(tmp_path / "a.pth"), arch=NET)
    assert same(load(str(tmp_path / "a.pth"), arch=NET, weights="right"), made(seed=2))
    with pytest.raises(CheckpointError, match='no encoder called "middle"'):
        load(str(tmp_path / "a.pth"), arch=NET, weights="middle")


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    save_file(
        {n: t.half() if t.is_floating_point() else t for n, t in tensors(made()).items()}, tmp_path / "a.safetensors"
    )
    read = load(tmp_path / "a.safetensors", arch=NET)
    assert {p.dtype for p in read.parameters()} == {torch.float32}
    assert torch.equal(read.trunk.conv1.weight, made().trunk.conv1.weight.half().float())


def test_old_files_without_batch_counters_are_whole(tmp_path: Path) -> None:
    old = {n: t for n, t in tensors(made()).items() if not n.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "a.th", _use_new_zipfile_serialization=False)
    assert same(load(tmp_path / "a.th", arch=NET), made())


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "head"),
    [("", "linear"), ("", "fc"), ("module.", "head"), ("backbone.", "fc"), ("backbone.", "^classifier")],
)
def test_a_fitting_head_becomes_the_encoders_own(tmp_path: Path, prefix: str, head: str) -> None:
    place = head[1:] if head.startswith("^") else prefix + head
    weight, bias = torch.randn(5, 64), torch.randn(5)
    torch.save(tensors(made(), prefix) | {f"{place}.weight": weight, f"{place}.bias": bias}, tmp_path / "a.pth")
    read = load(str(tmp_path / "a.pth"), arch=NET)
    assert read.classes == 5
    with torch.no_grad():
        torch.testing.assert_close(read.logits(X), read(X).pooled @ weight.T + bias)


def test_a_projection_is_no_head(tmp_path: Path) -> None:
    mlp = {"fc.0.weight": torch.ones(64, 64), "fc.2.weight": torch.ones(16, 64)}
    torch.save(tensors(made()) | mlp, tmp_path / "a.pth")
    assert load(str(tmp_path / "a.pth"), arch=NET).head is None
    moco = tensors(made(), "module.encoder_q.") | {"module.encoder_q.fc.weight": torch.ones(128, 64)}
    torch.save({"state_dict": moco}, tmp_path / "b.pth")
    assert load(str(tmp_path / "b.pth"), arch=NET).head is None


def test_a_head_of_another_width_is_refused(tmp_path: Path) -> None:
    torch.save(tensors(made()) | {"fc.weight": torch.ones(5, 99)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"head \[5, 99\].*\[5, 64\]\. Nothing was loaded"):
        load(str(tmp_path / "a.pth"), arch=NET)


def test_the_number_of_classes_must_be_the_files(tmp_path: Path) -> None:
    torch.save(tensors(made(num_classes=5)), tmp_path / "a.pth")
    assert load(str(tmp_path / "a.pth"), arch=NET, options=("num_classes=5",)).classes == 5
    with pytest.raises(CheckpointError, match=r"num_classes=10: .* knows 5 classes"):
        load(str(tmp_path / "a.pth"), arch=NET, options=("num_classes=10",))


# -- all or nothing ----------------------------------------------------------------------------------------------------


def test_a_missing_weight_is_counted_and_named(tmp_path: Path) -> None:
    short = tensors(made())
    del short["layer2.0.conv1.weight"]
    torch.save(short, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"34 of 35 weights matched \(first to fail: layer2\.0\.conv1\.weight.*Nothing was loaded"
    ):
        load(str(tmp_path / "a.pth"), arch=NET)


def test_a_weight_of_another_shape_says_both(tmp_path: Path) -> None:
    torch.save(tensors(made()), tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"first to fail: conv1\.weight, \[16, 3, 3, 3\] in the file, \[8, 3, 3, 3\]"
    ):
        load(str(tmp_path / "a.pth"), arch=NET, options=("width=8",))


def test_a_weight_too_many_is_refused(tmp_path: Path) -> None:
    torch.save(tensors(made()) | {"layer1.0.scale": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"35 of 35 weights matched, 1 left over .*layer1\.0\.scale, in the file alone"
    ):
        load(str(tmp_path / "a.pth"), arch=NET)


def test_the_likely_architecture_is_named(tmp_path: Path) -> None:
    torch.save(tensors(load("random:cifar_resnet20")), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match='looks like cifar_resnet20: say arch "cifar_resnet20"'):
        load(str(tmp_path / "a.pth"), arch="cifar_resnet56")
    with pytest.raises(CheckpointError, match=r"does not say its architecture.*cifar_resnet20"):
        load(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet34", "resnet50", "resnet101", "vit_tiny_patch16_224", "vit_small_patch14_dinov2"]
)
def test_architectures_are_told_by_their_shapes(arch: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(arch, **({"depth": 2} if arch.startswith("vit") else {}))
    assert matching.likely({f"module.{n}": t for n, t in model.state_dict().items()}) == arch


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bad = tensors(made())
    bad["bn1.bias"][3] = float("nan")
    torch.save(bad, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"1 weights hold NaN or infinity \(first: bn1\.bias\)"):
        load(str(tmp_path / "a.pth"), arch=NET)


def test_normalisation_that_nobody_says_is_asked_for(tmp_path: Path) -> None:
    torch.save(tensors(load("random:cifar_resnet18", options=("width=8",))), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="does not say which mean and std"):
        load(str(tmp_path / "a.pth"), arch="cifar_resnet18", options=("width=8",))
    read = load(str(tmp_path / "a.pth"), arch="cifar_resnet18", options=("width=8",), **PLAIN)
    assert (read.model.mean, read.model.std) == IMAGENET


# -- files that are no weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-LFS pointer"),
        (b'{"error": "not found"}', "is a JSON text"),
        (b"hello world, no weights", "begins with b'hello wo'"),
        (b"PK\x03\x04" + b"a" * 60, "cut short or damaged"),
        (b"\x80\x02}q\x00(X", "cut short or damaged|will not open"),
    ],
)
def test_a_file_that_holds_no_weights_is_described(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=found):
        load(str(tmp_path / "a.pth"), arch=NET)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short_is_named(tmp_path: Path, kind: str, keep: float) -> None:
    file = tmp_path / "a.bin"
    if kind == "safetensors":
        save_file(tensors(made()), file)
    else:
        torch.save(tensors(made()), file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        load(str(file), arch=NET)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("exit 1",))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"state_dict": {}, "x": Evil()}, "posix.system"),
        ({"state_dict": {}, "x": ArgumentError}, "argparse.ArgumentError"),
    ],
)
def test_code_in_a_file_is_refused_by_name(tmp_path: Path, content: object, name: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"contains code \({name}\).*Not opened"):
        load(str(tmp_path / "a.pth"), arch=NET)


def test_a_container_without_tensors_lists_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "args": argparse.Namespace()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no weights; it holds epoch, args"):
        load(str(tmp_path / "a.pth"), arch=NET)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    torch.save(tensors(made()), tmp_path / "epoch100.pth")
    with pytest.raises(CheckpointError, match=r'no file .*epoch10\.pth.*meant "epoch100\.pth"'):
        load(str(tmp_path / "epoch10.pth"), arch=NET)
    with pytest.raises(CheckpointError, match="no folder"):
        load(str(tmp_path / "gone" / "epoch10.pth"), arch=NET)


def test_a_folder_without_a_run_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no run: it has no encoder\.safetensors"):
        load(str(tmp_path))
    torch.save(tensors(made()), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"1 weights files\. Name one: .*a\.pth"):
        load(str(tmp_path))


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "arch", "hint"),
    [
        ("resnet1888", "", 'meant "resnet'),
        ("random:cifar_resnet2", "", 'meant "cifar_resnet'),
        ("random:zzzzzz", "", "holdfast ls models"),
        ("resnet18.a1_in1", "", 'meant "resnet18.a1_in1k"'),
        ("random:resnet18", "", "cannot be built"),
        ("no_such_package:net", "", "PYTHONPATH"),
    ],
)
def test_unknown_names_give_a_hint(spec: str, arch: str, hint: str) -> None:
    options = ("nonsense=1",) if hint == "cannot be built" else ()
    with pytest.raises(ConfigError, match=hint):
        load(spec, arch=arch, options=options)


def test_an_option_is_name_and_value() -> None:
    with pytest.raises(ConfigError, match="no name=value"):
        load(f"random:{NET}", options=("width",))


def test_an_architecture_alone_has_no_weights() -> None:
    with pytest.raises(CheckpointError, match='"random:cifar_resnet18"'):
        load("cifar_resnet18")


def test_a_module_that_was_handed_over_cannot_be_found_again() -> None:
    with pytest.raises(CheckpointError, match="handed over in Python"):
        load("module:Sequential")


def test_a_factory_is_called_with_the_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_nets.py").write_text("from torch import nn\ndef net(width=4):\n    return nn.Conv2d(3, width, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = load("my_nets:net", options=("width=6",))
    assert (encoder.dim, encoder.model.arch) == (6, "my_nets:net")
    file = save(encoder, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"was made by my_nets:net.*trust"):
        load(file)
    assert load(file, arch="my_nets:net").digest() == encoder.digest()
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="0 of 2 weights matched"):
        load(str(tmp_path / "b.pth"), arch="my_nets:net")


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = made(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert same(one, made(seed=1))
    assert not same(one, made(seed=2))
    assert (one.model.mean, one.model.std) == SMALL
    assert one.head is None


def test_a_record_is_opened_and_its_digest_held(tmp_path: Path) -> None:
    torch.save(tensors(made()), tmp_path / "a.pth")
    read = load(Model(spec=str(tmp_path / "a.pth"), arch=NET, name="mine"))
    assert (read.name, read.model.arch) == ("mine", NET)
    assert load(read.model).digest() == read.digest()
    torch.save(tensors(made(seed=4)), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="not those of the record"):
        load(read.model)


def test_fields_beside_a_record_or_a_text_are_the_models() -> None:
    assert load(f"random:{NET}", model=Model(spec="", name="ours")).name == "ours"
    with pytest.raises(ConfigError, match='meant "name"'):
        load(f"random:{NET}", nmae="ours")


def test_an_encoder_comes_back_as_it_is() -> None:
    encoder = made()
    assert load(encoder) is encoder
    renamed = load(encoder, name="other")
    assert (renamed.name, renamed.trunk) == ("other", encoder.trunk)
    with pytest.raises(ConfigError, match="has its mean and std"):
        load(encoder, **PLAIN)


# -- saving and series -------------------------------------------------------------------------------------------------


def test_a_saved_encoder_says_all_about_itself(tmp_path: Path) -> None:
    encoder = load(f"random:{NET}", options=("width=8", "num_classes=3"), mean=(0.1, 0.2, 0.3))
    encoder.geometry = Geometry(48, 56, "bicubic")
    file = save(encoder, tmp_path / "run", extra={"method": "simclr"})
    read = load(str(tmp_path / "run"))
    assert (read.geometry, read.classes, read.name) == (Geometry(48, 56, "bicubic"), 3, "run")
    assert read.model.options == ("width=8",)
    assert torch.equal(read.logits(X), encoder.logits(X))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["encoder.safetensors"]
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    assert header["__metadata__"]["method"] == "simclr"


def test_a_saved_encoder_that_was_changed_is_refused(tmp_path: Path) -> None:
    file = save(made(), tmp_path / "a.safetensors")
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)
    with pytest.raises(CheckpointError, match="changed after it was saved"):
        load(file)


def test_another_mean_is_taken_for_a_saved_encoder(tmp_path: Path) -> None:
    file = save(made(), tmp_path / "a.safetensors")
    assert load(file, mean=(0.1, 0.2, 0.3)).model.mean == (0.1, 0.2, 0.3)


def test_a_series_is_in_natural_order(tmp_path: Path) -> None:
    for name in ("epoch10.pth", "epoch9.pth", "epoch100.safetensors", "notes.txt", ".hidden.pth"):
        (tmp_path / name).write_bytes(b"x")
    save(made(), tmp_path / "epoch20")
    assert [p.name for p in series(tmp_path)] == ["epoch9.pth", "epoch10.pth", "epoch20", "epoch100.safetensors"]
    assert series(tmp_path / "epoch20") == [tmp_path / "epoch20" / "encoder.safetensors"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        series(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no folder"):
        series(tmp_path / "gone")


# -- the hub -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["resnet18", "resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"])
def test_offline_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"is not in the cache .* this machine is offline"):
        load(spec)


def cache(folder: Path, repository: str, files: dict[str, Any]) -> None:
    """A cache of the hub with one repository, as huggingface_hub lays it out."""
    root = folder / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    (root / "snapshots" / "abc").mkdir(parents=True)
    for name, content in files.items():
        place = root / "snapshots" / "abc" / name
        if name.endswith(".json"):
            place.write_text(json.dumps(content))
        else:
            save_file(content, place)


def test_cached_weights_need_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    truth = load("random:mobilenetv2_050:3", options=("num_classes=1000",))
    cache(tmp_path, "timm/mobilenetv2_050.lamb_in1k", {"model.safetensors": tensors(truth)})
    read = load("mobilenetv2_050")
    assert same(read, truth)
    assert (read.classes, read.model.mean, "state_dict" in read.trunk.pretrained_cfg) == (1000, IMAGENET[0], False)
    assert load(save(read, tmp_path / "run")).digest() == read.digest()


def test_cached_weights_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache(
        tmp_path, "timm/mobilenetv2_050.lamb_in1k", {"model.safetensors": {"conv_stem.weight": torch.ones(16, 3, 3, 3)}}
    )
    with pytest.raises(CheckpointError, match="Nothing was loaded"):
        load("mobilenetv2_050")
    with pytest.raises(ConfigError, match="have 1000 classes"):
        load("mobilenetv2_050", options=("num_classes=10",))


def test_a_cached_repository_says_its_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    truth = load("random:resnet18:3", options=("num_classes=7",))
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64], "crop_pct": 1.0, "unknown": 1}
    config = {"architecture": "resnet18", "num_classes": 7, "pretrained_cfg": cfg}
    cache(tmp_path, "me/mine", {"model.safetensors": tensors(truth), "config.json": config})
    read = load("hf-hub:me/mine")
    assert same(read, truth)
    assert (read.classes, read.model.mean, read.geometry.size, read.name) == (7, (0.1, 0.2, 0.3), 64, "mine")
