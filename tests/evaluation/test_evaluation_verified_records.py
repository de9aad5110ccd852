"""Every number of every image of a run is held against the others, and each way in which one can be false is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from judged_runs import Arrays, attacked, falsified, judged, small_run, small_weights, wrong
from synthetic_run import ENVIRONMENT, PLAIN, write_run

from holdfast.evaluation.measuring import measured
from holdfast.evaluation.store import Run
from holdfast.evaluation.verified_records import MEANS, contradictions
from holdfast.records import Cell, Data, Judge, Model, Result
from holdfast.tasks.classification import Classification
from holdfast.tasks.depth_errors import MEASURES as DEPTH
from holdfast.tasks.embedding import Embedding, bank
from holdfast.tasks.segmentation import MEASURES as SEGMENTATION
from holdfast.tasks.segmentation import iou_measures


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def run(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(weights, tmp_path_factory.mktemp("run") / "bench")


def unkept(run: Run, cell: str) -> int:
    """The row of an image of a cell that its gallery does not hold."""
    shown = set(run.gallery(cell)["id"].tolist())
    return next(row for row, name in enumerate(run.outcomes(cell)["id"].tolist()) if name not in shown)


def right(arrays: Arrays, row: int) -> None:
    arrays["correct"][row] = ~arrays["correct"][row]


def seen(arrays: Arrays, row: int) -> None:
    arrays["prediction"][row] = arrays["label"][row] + (1 if arrays["correct"][row] else 0)


def beyond(arrays: Arrays, row: int) -> None:
    arrays["attack_norm"][row] = 0.04


def unsaid(arrays: Arrays, row: int) -> None:
    del arrays["loss"]


def cut(arrays: Arrays, row: int) -> None:
    arrays["margin"] = arrays["margin"][:-1]


def words(arrays: Arrays, row: int) -> None:
    arrays["correct"] = arrays["correct"].astype(str)


def nowhere(arrays: Arrays, row: int) -> None:
    arrays["loss"][row] = np.nan


FALSE = {
    "verdict": (right, "correct contradicts prediction, label of 1 of 24 images"),
    "verdict and margin": (right, "correct contradicts margin of 1 of 24 images"),
    "verdict and accuracy": (right, "accuracy is "),
    "prediction": (seen, "correct contradicts prediction, label of 1 of 24 images"),
    "norm": (beyond, "attack_norm is above the linf radius"),
    "column": (unsaid, "loss is not among the outcomes"),
    "rows": (cut, "margin is not one number or more for each of 24 images"),
    "words": (words, "correct is not one number"),
    "no number": (nowhere, "and nan by loss"),
}


@pytest.mark.parametrize("name", FALSE)
def test_a_false_outcome_of_an_image_that_was_not_kept_is_found(run: Run, tmp_path: Path, name: str) -> None:
    change, says = FALSE[name]
    cell = attacked(run)
    row = unkept(run, cell)
    said = wrong(falsified(run, tmp_path / "run", cell, lambda arrays: change(arrays, row)))
    assert says in said and "contradictions in 1 cell" in said
    if name in ("verdict", "norm"):
        assert f"the first {run.outcomes(cell)['id'][row]}" in said and "everything about them agrees" in said


@pytest.mark.parametrize("task", ["classification", "embedding"])
@pytest.mark.parametrize("field", ["value", "n", "low"])
def test_a_false_number_of_a_clean_record_is_found(run: Run, tmp_path: Path, task: str, field: str) -> None:
    """Each metric of each task is held against its outcomes, not those of attacked cells alone."""
    shutil.copytree(run.folder, tmp_path / "run")
    clean = next(r for r in run.results if not r.cell.stages and r.cell.judge.task == task)
    path = tmp_path / "run" / "cells" / f"{clean.id}.json"
    record = json.loads(path.read_text())
    named = [
        m for m in record["metrics"] if m.get("value") is not None and (field != "low" or m["interval"] == "wilson")
    ]
    for metric in named:
        metric[field] = metric[field] + 1 if field == "n" else metric[field] + 1e-4
    path.write_text(json.dumps(record))
    said = wrong(tmp_path / "run")
    for metric in named:
        assert f"{metric['name']} is " in said, metric["name"]
    assert clean.id in said and "contradictions in 1 cell" in said and "everything about them agrees" in said


def test_a_run_without_an_attack_is_compared_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", (PLAIN,), n=16, corruptions=("fog",), attacks=())
    asked = f"no adversarial images; the records of {len(run.results)} cells compared with their outcomes"
    assert judged(run.folder) == [f"{asked}, not measured again: no contradiction"]


def test_every_metric_of_every_task_is_known_here() -> None:
    """A new measure is enrolled here, or is never held against its outcomes."""
    measures = [
        *Classification(within=(0, 1)).measures(),
        *Embedding(bank(torch.rand(4, 3), torch.arange(4), torch.tensor([0, 0, 1, 1]))).measures(),
    ]
    assert len(measures) > 8
    assert all(MEANS[measure.name] == measure.outcome for measure in measures)


def test_metrics_of_dense_tasks_are_made_again() -> None:
    """By formulas of the verifier, from outcomes drawn at random; a false one is found."""
    draw = np.random.default_rng(0)
    outcomes = {"id": np.array(["a", "b", "c", "d"])}
    for name in ("errors", "scaled"):
        outcomes[name] = draw.random((4, 10)) + np.array([9.0, *[1.0] * 4, 3.0, *[0.0] * 4])
    for name in ("values", "scaled_values"):
        outcomes[name] = np.concatenate([draw.random((4, 9)), np.array([[1.0], [1.0], [0.0], [1.0]])], axis=1)
    parts = draw.integers(5, 20, (4, 3))
    outcomes["counts"] = np.stack([parts, parts + draw.integers(0, 9, (4, 3)), parts + 2], axis=2)
    outcomes["counts"][:, 2] = 0
    for task, asked in (("segmentation", (*SEGMENTATION, *iou_measures(["sky", "road", "none"]))), ("depth", DEPTH)):
        metrics = measured(asked, outcomes)
        cell = Cell(data=Data(source="scenes"), encoder=Model(spec="a"), judge=Judge(task=task, head="given"))
        record = Result(id=cell.id, cell=cell, status="done", metrics=metrics, environment=ENVIRONMENT)
        assert contradictions(record, outcomes) == []
        valued = [m for m in metrics if m.value is not None]
        assert len(valued) == (5 if task == "segmentation" else 36)
        false = [msgspec.structs.replace(m, value=m.value + 1e-4, high=None) for m in valued if m.value is not None]
        found = contradictions(msgspec.structs.replace(record, metrics=(*metrics[:0], *false)), outcomes)
        assert len(found) == len(valued) or task == "segmentation"
        assert all(any(text.startswith(f"{m.name} is ") for text in found) for m in valued if "iou/" not in m.name)
