"""What people have, and what they get told: every row of the table of errors, on files written here."""

from __future__ import annotations

import argparse
import os
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from made_encoders import NET, PLAIN, X, made, same, tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from holdfast.errors import CheckpointError
from holdfast.models import matching
from holdfast.models.architectures import IMAGENET
from holdfast.models.checkpoint import load

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
