"""The program that measures sliding windows, run small: that it runs, and that the contenders do equal work."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--encoder", "cifar_resnet8", "--options", "width=4", "--windows", "16", "--scale", "2", "--images", "2")
TINY += ("--rounds", "1", "--classes", "3", "--large-window", "16", "--large-batch", "1")


@pytest.fixture(scope="module")
def windows() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_windows", ROOT / "benchmarks" / "windows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_windows_beside_a_loop(windows: ModuleType, tmp_path: Path) -> None:
    found = windows.main([*TINY, "--large", "0", "0", "--out", str(tmp_path / "found.json")])
    (row,) = found["small"]
    assert row["windows per image"] == 9
    assert {*row["seconds"]} == {"holdfast", "holdfast recompute", "loop", "limit"}
    assert all(s > 0 for took in row["seconds"].values() for s in took.values())
    assert max(row["largest difference from the loop"].values()) < 1e-4
    assert found["large"] is None
    assert json.loads((tmp_path / "found.json").read_text()) == found


@pytest.mark.parametrize("name", ["holdfast", "holdfast recompute"])
def test_a_contender_alone_says_what_it_adds(
    windows: ModuleType, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc")
    windows.main([*TINY, "--large", "96", "128", "--alone", name])
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0
    assert 0 <= found["peak MB"] < 2000


def test_all_take_the_same_step(windows: ModuleType) -> None:
    args = windows.parsed([*TINY])
    with windows.ground(args, 16, (32, 32), 2, 0) as on:
        ours, again, loop = (windows.step(see, on) for see in windows.SEES.values())
    assert torch.equal(ours, again)
    assert (ours != loop).float().mean() < 0.01, "a sign may turn where the gradient is zero but for its last digit"
    assert (ours != on.x).float().mean() > 0.9
