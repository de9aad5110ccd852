"""Yesterday's numbers on committed weights: a change in any room on the way shows here.

`python tests/golden/test_golden_records.py` measures anew and writes `records.json`; say in the commit why it changed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

import holdfast
from holdfast.evaluation.rows import condition
from holdfast.evaluation.store import Run

HERE = Path(__file__).parent
FIELDS = {
    "data": "scenes",
    "limit": 96,
    "attack_limit": 48,
    "fit_limit": 400,
    "eps": ["2/255", "8/255"],
    "steps": 10,
    "corruptions": ["all"],
    "severities": [3],
    "textures": "drawn",
    "variant": "cifar32",
    "chunk": 48,
    "threads": 1,
}


def measure(out: Path) -> dict[str, float]:
    """Every metric of the grid by cell and name."""
    found: Run = holdfast.bench(str(HERE / "scenes_resnet8.safetensors"), out=str(out), **FIELDS)
    return {
        f"{condition(r.cell)} | {r.cell.judge.task} | {m.name}": m.value
        for r in found.results
        for m in r.metrics
        if m.value is not None
    }


def test_records_are_what_they_were(tmp_path: Path) -> None:
    """Shares of images within two of 48 or 96, which other kernels may turn; distances and losses within 3 %."""
    now, before = measure(tmp_path / "run"), json.loads((HERE / "records.json").read_text())
    assert now.keys() == before.keys()
    shares = ("accuracy", "knn_accuracy", "neighbour_flips", "neighbours_kept", "breakaway")
    for name, value in before.items():
        if name.rpartition(" | ")[2] in shares:
            assert now[name] == pytest.approx(value, abs=2.01 / 48), name
        else:
            assert now[name] == pytest.approx(value, rel=0.03, abs=2e-3), name


def test_the_golden_encoder_is_worth_watching() -> None:
    """Numbers at chance would notice nothing: clean it is right, attacked it is wrong, in between in between."""
    held = json.loads((HERE / "records.json").read_text())
    assert held["clean | classification | accuracy"] > 0.75
    assert held["pgd-10 ce linf 8/255 | classification | accuracy"] < 0.1
    assert 0.1 < held["pgd-10 ce linf 2/255 | classification | accuracy"] < 0.6


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(measure(Path(folder) / "run"), indent=1, sort_keys=True)
        (HERE / "records.json").write_text(text + "\n")
