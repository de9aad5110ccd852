"""Saliency cells: recorded outcomes, aligned pairs, galleries by rule; and corrupted sets that lie in folders."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import holdfast
from holdfast.errors import CellsFailed, ConfigError, DataError
from holdfast.evaluation.store import Run, read
from holdfast.models.checkpoint import load, save
from holdfast.tasks.similarity import ssim

sys.path.append(str(Path(__file__).parents[1] / "data"))

from data_trees import cifar10

NAMES = ["contrast", "gaussian_noise"]
FIELDS = {
    "data": "scenes",
    "limit": 24,
    "fit_limit": 80,
    "suite": "corruptions",
    "corruptions": NAMES,
    "severities": [1, 5],
    "saliency": 10,
    "chunk": 8,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(load("random:scenes_resnet8"), tmp_path_factory.mktemp("weights") / "tiny.safetensors"))


@pytest.fixture(scope="module")
def run(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return holdfast.bench(weights, out=str(tmp_path_factory.mktemp("run") / "r"), **FIELDS)


def looks(run: Run) -> dict[tuple[str, int], str]:
    cells = [r for r in run.results if r.cell.judge.task == "saliency"]
    return {((c := r.cell.corruption) and (c.name, c.severity)) or ("clean", 0): r.id for r in cells}


def test_every_condition_has_its_saliency_and_the_clean_one_is_at_rest(run: Run) -> None:
    assert set(looks(run)) == {("clean", 0), *((n, s) for n in NAMES for s in (1, 5))}
    clean = run.outcomes(looks(run)["clean", 0])
    assert (clean["ssim"] == 1).all() and (clean["cam_drift"] == 0).all() and (clean["psnr"] == 100).all()
    assert len(clean["id"]) == 10
    strong, weak = (run.outcomes(looks(run)["gaussian_noise", s]) for s in (5, 1))
    assert (strong["ssim"] < weak["ssim"]).all()
    assert (strong["psnr"] < weak["psnr"]).all()
    result = next(r for r in run.results if r.id == looks(run)["gaussian_noise", 5])
    assert result.metric("ssim").value == pytest.approx(strong["ssim"].mean())
    assert result.metric("cam_drift").n == 10 and result.metric("cam_drift").value > 0
    assert result.cost.backwards == 0 < result.cost.forwards


def test_predictions_are_those_of_classification_on_the_same_pixels(run: Run) -> None:
    for r in run.results:
        stage = r.cell.corruption
        if r.cell.judge.task != "classification" or stage is None:
            continue
        judged, seen = run.outcomes(r.id), run.outcomes(looks(run)[stage.name, stage.severity])
        at = [judged["id"].tolist().index(name) for name in seen["id"]]
        assert np.array_equal(judged["prediction"][at], seen["prediction"])
        assert np.array_equal(judged["correct"][at], seen["correct"])


def test_galleries_are_chosen_by_rule_from_the_record(run: Run) -> None:
    for at, name in looks(run).items():
        gallery = run.gallery(name)
        if at == ("clean", 0):
            assert not gallery
            continue
        whole = run.outcomes(name)
        rules = dict(zip(gallery["rule"].tolist(), range(len(gallery["rule"]))))
        place = whole["id"].tolist().index(gallery["id"][rules["worst"]])
        assert whole["cam_drift"][place] == whole["cam_drift"].max()
        assert gallery["clean_map"].shape == gallery["map"].shape
        assert gallery["map"].min() >= 0 and gallery["map"].max() <= 1
        pairs = (torch.from_numpy(gallery[k]).permute(0, 3, 1, 2) / 255 for k in ("clean", "changed"))
        assert torch.allclose(ssim(*pairs), torch.from_numpy(gallery["ssim"]).float(), atol=1e-5)
        kept = [whole["id"].tolist().index(i) for i in gallery["id"]]
        assert np.array_equal(gallery["prediction"], whole["prediction"][kept])


def test_named_classes_are_shown_and_an_unknown_one_is_refused(weights: str, tmp_path: Path) -> None:
    from holdfast.data.sources import images, open_source

    names = open_source(images("scenes", limit=24)).classes
    fields = {**FIELDS, "corruptions": ["contrast"], "severities": [5], "saliency": 24}
    found = holdfast.bench(weights, out=str(tmp_path / "r"), gallery_classes=[names[2]], **fields)
    gallery = found.gallery(looks(found)["contrast", 5])
    shown = gallery["label"][gallery["rule"] == "class"]
    assert shown.tolist() == [2] or 2 in gallery["label"]
    with pytest.raises(ConfigError, match=r"no class.*Perhaps you meant"):
        holdfast.bench(weights, out=str(tmp_path / "s"), gallery_classes=[names[2] + "x"], **fields)


def test_without_a_head_the_map_explains_the_clean_embedding(weights: str, tmp_path: Path) -> None:
    fields = {**FIELDS, "corruptions": ["contrast"], "severities": [5], "tasks": ["embedding"]}
    found = holdfast.bench(weights, out=str(tmp_path / "r"), **fields)
    (cell,) = [r.cell for r in found.results if r.cell.judge.task == "saliency" and r.cell.stages]
    assert (cell.judge.head, cell.judge.target) == ("none", "similarity")
    whole = found.outcomes(cell.id)
    assert "prediction" not in whole and (whole["cam_drift"] > 0).any()
    with pytest.raises(ConfigError, match="--saliency-target similarity"):
        holdfast.bench(weights, out=str(tmp_path / "s"), saliency_target="true", **fields)


def test_spatter_without_opencv_fails_before_the_run_and_the_rest_is_done(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    fields = {**FIELDS, "corruptions": ["spatter", "contrast"], "severities": [2], "saliency": 0}
    with pytest.raises(CellsFailed, match="2 of 6 cells failed; 4 are done"):
        holdfast.bench(weights, out=str(tmp_path / "r"), **fields)
    found = read(tmp_path / "r")
    assert {r.cell.corruption.name for r in found.failed} == {"spatter"}
    assert all("holdfast[opencv]" in r.error for r in found.failed)
    monkeypatch.undo()
    pytest.importorskip("cv2")
    assert not holdfast.bench(weights, out=str(tmp_path / "r"), **fields).failed


def test_a_corrupted_set_alone_gives_accuracy_under_corruption_and_nothing_else(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cifar10(tmp_path / "set", per_batch=6)
    copy = holdfast.corrupt(f"cifar10:{tmp_path / 'set'}", str(tmp_path / "c"), corruptions=NAMES)
    with pytest.raises(DataError, match="--data CLEAN --corrupted FOLDER"):
        holdfast.bench(weights, out=str(tmp_path / "r"), data=f"cifar10_c:{copy}")
    headed = save(load("random:cifar_resnet8", options=("num_classes=10",)), tmp_path / "headed.safetensors")
    found = holdfast.bench(str(headed), out=str(tmp_path / "r"), data=f"cifar10_c:{copy}", chunk=8)
    assert "drift, saliency and attacks need the clean" in capsys.readouterr().err
    assert len(found.results) == 10 and all(r.cell.judge.task == "classification" for r in found.results)
    stages = [r.cell.corruption for r in found.results]
    assert {(s.name, s.severity) for s in stages} == {(n, s) for n in NAMES for s in range(1, 6)}
    assert {s.mode for s in stages} == {"fast"}, "what corrupt.yaml says about the folder is in the record"
    both = holdfast.bench(
        str(headed), out=str(tmp_path / "b"), data=f"cifar10:{tmp_path / 'set'}", corrupted=str(copy),
        tasks=["classification"], suite="corruptions", chunk=8,
    )  # fmt: skip
    assert len(both.results) == 11
    alone = {(s.name, s.severity): r for s, r in zip(stages, found.results)}
    for result in both.results:
        if stage := result.cell.corruption:
            one, other = both.outcomes(result.id), found.outcomes(alone[stage.name, stage.severity].id)
            assert np.array_equal(one["prediction"], other["prediction"])
            assert msgspec.structs.replace(stage, root="") == msgspec.structs.replace(
                alone[stage.name, stage.severity].cell.corruption, root=""
            )
