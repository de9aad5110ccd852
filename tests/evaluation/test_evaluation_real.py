"""A published net on real images, from its checkpoint to the records; skipped, loudly, without `$HOLDFAST_DATA`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import holdfast
from holdfast.evaluation.rows import condition
from holdfast.evaluation.store import Run

Real = Callable[[str], Path]


def accuracies(found: Run) -> dict[str, float]:
    """Accuracy by condition."""
    named = {condition(r.cell): r.metric("accuracy") for r in found.results if r.cell.judge.task == "classification"}
    return {name: metric.value for name, metric in named.items() if metric is not None and metric.value is not None}


def bench(real: Real, out: Path, **fields: object) -> dict[str, float]:
    """ResNet-20 with its own head on the bit-exact CIFAR-10 test images."""
    weights = real("weights") / "cifar10_resnet20.th"
    data = f"cifar10:{real('cifar10_lossless')}"
    given = {"arch": "cifar_resnet20", "data": data, "subset": "first", "variant": "cifar32", "out": str(out)}
    return accuracies(holdfast.bench(str(weights), **given, **fields))


def test_a_plain_net_is_right_and_breaks(real: Real, tmp_path: Path) -> None:
    """On 120 images, within three standard errors of what 1,000 give (91.5, 78, 18 %)."""
    found = bench(
        real,
        tmp_path / "run",
        limit=120,
        attack_limit=120,
        tasks=["classification"],
        corruptions=["gaussian_noise"],
        severities=[5],
        eps=["0.25/255", "1/255"],
        steps=10,
    )
    assert found["clean"] == pytest.approx(0.915, abs=0.08)
    assert found["gaussian_noise 5"] == pytest.approx(0.23, abs=0.12)
    assert found["pgd-10 ce linf 0.25/255"] == pytest.approx(0.78, abs=0.12)
    assert found["pgd-10 ce linf 1/255"] == pytest.approx(0.20, abs=0.12)


@pytest.mark.slow
def test_the_published_accuracy_and_the_known_curve(real: Real, tmp_path: Path) -> None:
    """He et al. 2015 give 91.25 % on all 10,000. The curve was measured once with three implementations."""
    found = bench(
        real,
        tmp_path / "run",
        limit=1000,
        attack_limit=1000,
        tasks=["classification"],
        eps=["0.25/255", "0.5/255", "1/255"],
        steps=20,
    )
    assert found["clean"] == pytest.approx(0.915, abs=0.005)
    assert found["pgd-20 ce linf 0.25/255"] == pytest.approx(0.78, abs=0.01)
    assert found["pgd-20 ce linf 0.5/255"] == pytest.approx(0.55, abs=0.01)
    assert found["pgd-20 ce linf 1/255"] == pytest.approx(0.175, abs=0.015)
    curve = [found[f"gaussian_noise {severity}"] for severity in range(1, 6)]
    assert curve == sorted(curve, reverse=True)
    assert curve[0] > 0.6 > curve[2] > curve[4] > 0.1
