"""An attack that is stopped in the middle of a member goes on from there, and the record is the undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import holdfast
from holdfast.errors import Interrupted
from holdfast.evaluation import keeping
from holdfast.evaluation.store import Run
from holdfast.records import Attack
from holdfast.signals import Stopping

WEIGHTS = Path(__file__).parents[1] / "golden" / "scenes_resnet8.safetensors"
SHORT = Attack(method="autoattack", push="", eps=3 / 255, steps=4)
FIELDS = {
    "data": "scenes",
    "limit": 20,
    "fit_limit": 200,
    "corruptions": ["none"],
    "tasks": ["classification"],
    "attacks": [SHORT],
    "chunk": 8,
    "block": 20,
    "threads": 1,
}


def measured(out: Path) -> Run:
    return holdfast.bench(str(WEIGHTS), out=str(out), **FIELDS)


def attacked(run: Run) -> dict[str, np.ndarray]:
    (result,) = [r for r in run.results if r.cell.attack is not None]
    return run.outcomes(result.id)


def test_stopped_again_and_again_it_gives_the_same_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attacked(measured(tmp_path / "whole"))
    assert len(set(whole["attack_member"].tolist()) - {-1}) > 1, "one member alone took part"
    monkeypatch.setattr(keeping, "LOOK_S", 0.0)
    looks, stops = [0], [0]

    def check(self: Stopping, done: str) -> None:
        looks[0] += 1
        if looks[0] % 37 == 0:
            stops[0] += 1
            raise Interrupted("stopped", next="again")

    resumed: list[int] = []
    load = keeping.Kept.load

    def loaded(self: keeping.Kept, name: str):  # type: ignore[no-untyped-def]
        held = load(self, name)
        resumed.append(held is not None)
        return held

    monkeypatch.setattr(Stopping, "check", check)
    monkeypatch.setattr(keeping.Kept, "load", loaded)
    for _ in range(200):
        try:
            run = measured(tmp_path / "stopped")
            break
        except Interrupted:
            continue
    assert stops[0] >= 3 and sum(resumed) >= 2, "it was never stopped inside the attack"
    again = attacked(run)
    assert whole.keys() == again.keys()
    for name, values in whole.items():
        assert np.array_equal(values, again[name]), name
    assert not list((tmp_path / "stopped" / "blocks").glob("*/*")), "nothing is left under way"


def test_a_damaged_file_under_way_is_made_again(tmp_path: Path) -> None:
    kept = keeping.Kept(tmp_path, lambda: None)
    kept.save("0 apgd-ce", {"key": np_to_tensor([1, 2, 3])})
    (path,) = tmp_path.glob("*.safetensors")
    assert kept.load("0 apgd-ce")["key"].tolist() == [1, 2, 3]
    path.write_bytes(path.read_bytes()[:20])
    assert kept.load("0 apgd-ce") is None and not path.exists()


def test_checks_lie_beside_the_records(tmp_path: Path) -> None:
    run = measured(tmp_path / "run")
    (verdicts,) = json.loads((run.folder / "checks.json").read_text()).values()
    assert {"zero-gradients", "randomised"} <= {verdict["flag"] for verdict in verdicts}


def np_to_tensor(values: list[int]):  # type: ignore[no-untyped-def]
    import torch

    return torch.tensor(values)
