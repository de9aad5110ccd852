"""The programs that measure, run small: that they run, and that the contenders do equal work."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def tiny(folder: Path) -> list[str]:
    """The words for small weights and drawn scenes."""
    from holdfast.models.checkpoint import load, save

    weights = save(load("random:cifar_resnet8", options=("width=4", "num_classes=8")), folder / "tiny.safetensors")
    return [str(weights), "--data", "scenes", "--limit", "40", "--batch", "20", "--out", str(folder / "found.json")]


@pytest.mark.filterwarnings("ignore")
def test_pgd_beside_its_peers(tmp_path: Path) -> None:
    words = [*tiny(tmp_path), "--steps", "4", "--rounds", "1", "--eps", "linf:8/255", "l2:0.5"]
    found = program("attacks").main(words)
    assert {*found["absent"]} <= {"foolbox", "torchattacks", "art", "pyautoattack apgd"}
    for radius in found["radii"]:
        robust = radius["robust accuracy"]
        assert robust["holdfast"] == robust["holdfast, whole budget"] <= robust["bare loop"] <= found["clean accuracy"]
        for peer in {"foolbox", "torchattacks", "art"} & {*robust}:
            # In the Linf ball the steps are the same arithmetic, to a last digit; in L2 each divides in its own way.
            assert robust[peer] == pytest.approx(robust["bare loop"], abs=0.1 if radius["norm"] == "linf" else 2.6)
        assert all(seconds > 0 for seconds in radius["seconds"].values())
    assert json.loads((tmp_path / "found.json").read_text()) == found


def test_a_contender_alone_says_what_it_adds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc")
    program("attacks").main([*tiny(tmp_path), "--steps", "4", "--alone", "holdfast, whole budget"])
    assert 0 <= json.loads(capsys.readouterr().out) < 2000


def test_the_bare_loop_and_holdfast_take_the_same_steps(tmp_path: Path) -> None:
    """The contenders do equal work: with nothing to keep or to drop, their last pixels are the same ones."""
    import torch

    from holdfast import records

    attacks = program("attacks")
    args = attacks.parsed(tiny(tmp_path))
    on = attacks.ground(args, records.Attack(eps=8 / 255, steps=1, start="zero"))
    worst = attacks.CONTENDERS["holdfast, whole budget"](on)
    bare = attacks.CONTENDERS["bare loop"](on)
    moved = (worst != on.x).flatten(1).any(1)
    assert moved.float().mean() > 0.5
    assert torch.equal(worst[moved], bare[moved])
    assert torch.equal(attacks.CONTENDERS["limit"](on), on.x)


@pytest.mark.filterwarnings("ignore")
def test_autoattack_beside_its_peer(tmp_path: Path) -> None:
    pytest.importorskip("pyautoattack")
    words = [*tiny(tmp_path), "--steps", "3", "--limit", "16", "--eps", "linf:1/255", "--bf16"]
    found = program("attack_strength").main(words)
    (radius,) = found["radii"]
    for part in ("apgd-ce", "apgd-t", "fab-t", "square", "cascade"):
        kept = radius[part]["robust images"]
        assert {*kept} == {"holdfast", "holdfast bf16", "pyautoattack"}
        assert all(0 <= n <= found["correct"] for n in kept.values())
        lost = radius[part]["lost to holdfast alone"] - radius[part]["lost to pyautoattack alone"]
        assert kept["pyautoattack"] - kept["holdfast"] == lost
        assert radius["cascade"]["robust images"]["holdfast"] <= kept["holdfast"]
    assert radius["largest cross-entropy of apgd-ce"]["holdfast"] > 0
    assert json.loads((tmp_path / "found.json").read_text()) == found


def test_a_recipe_is_timed_step_by_step(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    step = {"data": "scenes", "limit": 48, "model": "scenes_resnet8", "epochs": 1, "batch": 16, "out": "{out}/a"}
    recipe.write_text(json.dumps({"about": "small", "steps": [{"verb": "train", "config": step}]}))
    found = program("demo").main(["--recipe", str(recipe)])
    assert found["exit code"] == 0
    assert [step["verb"] for step in found["steps"]] == ["train"]
    assert found["wall seconds"] >= found["steps"][0]["seconds"] > 0
    assert found["peak MB"] > 10


@pytest.mark.filterwarnings("ignore")
def test_training_beside_the_published_arithmetic(tmp_path: Path) -> None:
    words = [
        "--model",
        "cifar_resnet8",
        "--images",
        "4",
        "--crops",
        "3",
        "--side",
        "16",
        "--dim",
        "16",
        "--hidden",
        "32",
    ]
    words += ["--rows", "10", "--views", "16", "--rounds", "1", "--out", str(tmp_path / "found.json")]
    found = program("training").main(words)
    losses = found["step"]["losses of the first step"]
    assert losses["fp32"] == pytest.approx(losses["reference"], rel=1e-4)
    for part in ("step", "coding rate", "views"):
        assert found[part]["times as fast"]["reference"] == 1.0 and len(found[part]["times as fast"]) == 2
    assert "minutes" not in found["step"], "an estimate for a GPU, made on one alone"
    assert json.loads((tmp_path / "found.json").read_text())["views"]["images"] == 16


@pytest.mark.filterwarnings("ignore")
def test_a_method_at_a_small_scale(tmp_path: Path) -> None:
    words = ["--limit", "60", "--epochs", "1", "--batch", "16", "--methods", "simclr", "--adversaries", "none", "free"]
    found = program("methods").main([*words, "--out", str(tmp_path / "found.json")])
    assert [row["adversary"] for row in found] == ["none", "free"]
    for row in found:
        low, high = row["interval"]
        assert row["held out"] == 6 and low <= row["kNN after"] <= high
    assert program("methods").wilson(50, 100) == pytest.approx((0.404, 0.596), abs=1e-3)


def test_a_step_of_deacl_is_the_one_written_down(tmp_path: Path) -> None:
    words = ["--model", "cifar_resnet8", "--images", "8", "--rounds", "1", "--steps", "2", "--side", "16"]
    found = program("hardening").main([*words, "--out", str(tmp_path / "found.json")])
    losses = found["losses of the first step"]
    assert losses["holdfast"] == pytest.approx(losses["limit"], abs=1e-5) == losses["published"]
    assert found["times the limit"]["limit"] == 1.0 and set(found["seconds"]) == {"limit", "holdfast", "published"}
