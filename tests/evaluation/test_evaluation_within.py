"""A set of fewer classes than the head knows: accuracy among its own classes is given where it was measured, and only
there. An attack stops at any wrong class, so that nobody looked for what these alone would lose."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.data.batches import read_all
from holdfast.data.sources import images, open_source
from holdfast.evaluation.measuring import LEFT_OUT
from holdfast.evaluation.store import Run, read
from holdfast.models.checkpoint import load, save
from holdfast.records import Attack, Metric, Result
from holdfast.training.probe import fit_linear

sys.path.append(str(Path(__file__).parents[1] / "data"))

import data_trees as trees

CLASSES = "tench,goldfish,hammerhead,stingray,hen"
"""ImageNet-R has no tench."""
ATTACKS = [Attack(eps=8 / 255, steps=2), Attack(method="noise", eps=8 / 255, steps=2)]
THROUGH = Attack(through="embedding", push="mse", eps=8 / 255, steps=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A net that tells the four images apart, and takes two of them for a tench."""
    root = tmp_path_factory.mktemp("within")
    home = f"imagenet_r:{trees.shifted(root / 'imagenet-r', 'imagenet_r')}"
    pixels, labels = read_all(open_source(images(home, classes=CLASSES)))
    assert sorted(labels.tolist()) == [1, 2, 3, 4]
    encoder = load("random:cifar_resnet8", options=("width=4", "num_classes=5"))
    with torch.no_grad():
        features = encoder(pixels.float() / 255).pooled
        head = fit_linear(features, labels, classes=5, weight_decay=0.0)
        ahead = (head(features).gather(1, labels[:, None]) - head(features)[:, :1]).squeeze(1).sort().values
        head.bias[0] += (ahead[1] + ahead[2]) / 2
    encoder.head.load_state_dict(head.state_dict())
    weights = save(encoder, root / "net.safetensors")
    holdfast.bench(
        str(weights), out=str(root / "run"), data=home, classes=CLASSES, size=8, attacks=[*ATTACKS, THROUGH],
        corruptions=["brightness"], severities=[1], variant="cifar32", chunk=8, threads=1,
    )  # fmt: skip
    return read(root / "run")


def classified(run: Run) -> list[Result]:
    return [r for r in run.results if r.cell.judge.task == "classification"]


def within(result: Result) -> Metric:
    found = result.metric("accuracy_within")
    assert found is not None, "neither a number nor a reason"
    return found


def test_it_is_there_where_nothing_was_attacked_through_this_head(run: Run) -> None:
    clean = next(r for r in classified(run) if not r.cell.stages)
    assert clean.metric("accuracy").value == 0.5 and within(clean).value == 1.0 and within(clean).n == 4
    assert run.outcomes(clean.id)["correct_within"].all()
    others = [r for r in classified(run) if r.cell.corruption or (r.cell.attack and r.cell.attack == THROUGH)]
    assert len(others) == 2
    for result in others:
        held = run.outcomes(result.id)["correct_within"]
        assert within(result).value == held.mean() and within(result).low is not None and not within(result).reason


def test_under_an_attack_through_this_head_it_is_absent_with_the_reason(run: Run) -> None:
    attacked = [r for r in classified(run) if r.cell.attack and r.cell.attack.through == "classification"]
    assert sorted(r.cell.attack.method for r in attacked) == ["noise", "pgd"]
    for result in attacked:
        assert within(result).value is None and within(result).n == 0
        assert within(result).reason == LEFT_OUT["correct_within"]
        assert result.metric("accuracy").value <= 0.5
        assert not {"correct_within", "rounded_correct_within"} & set(run.outcomes(result.id))
