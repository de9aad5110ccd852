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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pgd_beside_its_peers(tmp_path: Path) -> None:
    pytest.importorskip("foolbox")
    from holdfast.models.checkpoint import load, save

    weights = save(load("random:cifar_resnet8", options=("width=4", "num_classes=8")), tmp_path / "tiny.safetensors")
    words = [str(weights), "--data", "scenes", "--limit", "40", "--batch", "20", "--steps", "4", "--eps", "8/255"]
    found = program("attacks").main([*words, "--out", str(tmp_path / "found.json")])
    (radius,) = found["radii"]
    accuracy = radius["accuracy"]
    assert accuracy["holdfast"] == accuracy["holdfast, whole budget"] <= accuracy["foolbox"] <= accuracy["clean"]
    assert accuracy["foolbox"] == pytest.approx(accuracy["bare loop"])
    assert all(seconds > 0 for seconds in radius["median CPU seconds per batch"].values())
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
