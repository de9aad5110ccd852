"""What people do wrong is said before anything is lost: one line per mistake, exit code 2, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast import cli
from holdfast.errors import ConfigError, ConflictError, DataError
from holdfast.models.checkpoint import load, save

BENCH = ["--data", "scenes", "--limit", "16", "--attack-limit", "8", "--fit-limit", "40", "--steps", "1"]
BENCH += ["--eps", "4/255", "--corruptions", "none", "--chunk", "8"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = load("random:cifar_resnet8", options=("width=4",))
    return save(encoder, tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def done(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "run"
    assert cli.main(["bench", str(weights), *BENCH, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--level", "poled"], 'Perhaps you meant "pooled"'),
        (["--block", "0"], "--block 1 or more"),
        (["--chunk", "4"], "--chunk 8 or more"),
        (["--fit-limit", "1"], "One image cannot be compared"),
        (["--classes", "disk"], "holds one class, disk"),
        (["--eps"], "--eps was given without a radius"),
        (["--suite", "qick"], 'Perhaps you meant "quick"'),
        (["--data", "nowhere/"], "No folder nowhere"),
    ],
)
def test_a_mistake_with_replace_loses_nothing(
    weights: Path, done: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file()}
    code = cli.main(["bench", str(weights), *BENCH, *flags, "--replace", "--out", str(done)])
    said = capsys.readouterr().err
    assert code == 2, said
    assert says in said
    assert "Traceback" not in said
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(("can", "said"), [("AVX2", True), ("AVX512", False)])
def test_bfloat16_without_instructions_is_said_beforehand(
    weights: Path, can: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: can)
    assert cli.main(["bench", str(weights), *BENCH, "--precision", "bf16", "--device", "cpu", "--dry-run"]) == 0
    heard = capsys.readouterr()
    assert ("no instructions for it" in heard.out + heard.err) is said
    assert cli.main(["bench", str(weights), *BENCH, "--device", "cpu", "--dry-run"]) == 0
    heard = capsys.readouterr()
    assert "bf16" not in heard.out + heard.err


def test_what_lost_images_will_save_is_not_foreseen(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tasks, said in (("classification", "at most"), ("embedding", "about")):
        assert cli.main(["bench", str(weights), *BENCH, "--tasks", tasks, "--dry-run"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time ")]
        assert line.split(" on ")[0].removeprefix("time").strip().startswith(said), line


def test_an_out_that_is_a_file(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert cli.main(["bench", str(weights), *BENCH, "--out", str(tmp_path / "file")]) == 2
    assert "Choose another --out" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_cache_is_made_anew(weights: Path, done: Path) -> None:
    (cache,) = (done / "heads").iterdir()
    whole = cache.read_bytes()
    cache.write_bytes(whole[:100])
    for cell in (done / "cells").iterdir():
        cell.unlink()
    assert cli.main(["bench", str(weights), *BENCH, "--out", str(done)]) == 0
    assert cache.read_bytes() == whole


def test_a_module_that_was_handed_over_keeps_its_modes() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).train()
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images = torch.rand(2, 3, 8, 8)
    moved = holdfast.attack(module, images, eps="4/255", steps=2)
    assert 0 < float((moved - images).abs().max()) <= 4 / 255 + 1e-6
    assert [part.training for part in module] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "labels", [torch.tensor([9, 3]), torch.tensor([-1, 0]), torch.tensor([0]), torch.tensor([0.0, 1.0]), [0, 1]]
)
def test_labels_that_do_not_fit_are_named(labels: object) -> None:
    encoder = load("random:cifar_resnet8", options=("width=4", "num_classes=3"))
    with pytest.raises(DataError, match=r"labels are.*int64"):
        holdfast.attack(encoder, torch.rand(2, 3, 16, 16), labels, through="classification", steps=1)  # type: ignore[arg-type]


def test_a_bench_inside_inference_mode_is_refused(weights: Path, tmp_path: Path) -> None:
    with torch.inference_mode(), pytest.raises(ConfigError, match="inference_mode"):
        holdfast.bench(str(weights), out=str(tmp_path / "run"), data="scenes")
    assert not (tmp_path / "run").exists()


def test_pictures_do_not_go_into_a_run(weights: Path, done: Path) -> None:
    from holdfast import verbs
    from holdfast.configs import AttackConfig

    config = AttackConfig(encoder=str(weights), data="scenes", limit=2, steps=1, out=str(done))
    with pytest.raises(ConflictError, match="another verb"):
        verbs.play("attack", config, say=print)


def test_an_unfinished_training_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.pt").write_bytes(b"")
    assert cli.main(["bench", str(tmp_path / "run"), *BENCH, "--out", str(tmp_path / "out")]) == 2
    assert "the same train command continues it" in capsys.readouterr().err.lower()


def test_weights_that_are_not_finite_are_no_result(tmp_path: Path) -> None:
    words = "train simclr --data scenes --model cifar_resnet8 --limit 32 --batch 16 --epochs 1 --lr 1e12 --warmup 0"
    command = [sys.executable, "-m", "holdfast", *words.split(), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    assert "Lower --lr" in done.stderr
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
