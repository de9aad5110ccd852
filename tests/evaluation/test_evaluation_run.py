"""A grid is worked off to the same records whatever happens on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import holdfast
from holdfast.errors import CellsFailed, ConfigError, ConflictError, MemoryShortage
from holdfast.evaluation import blocks, run
from holdfast.evaluation.store import Run, read
from holdfast.models.checkpoint import load, save

FIELDS = {
    "data": "scenes",
    "limit": 40,
    "attack_limit": 24,
    "fit_limit": 120,
    "eps": ["1/255", "4/255"],
    "steps": 3,
    "corruptions": ["brightness", "gaussian_noise"],
    "severities": [3],
    "chunk": 16,
    "block": 16,
}
FLAGS = "--data scenes --limit 40 --attack-limit 24 --fit-limit 120 --eps 1/255 4/255 --steps 3 --severities 3"
FLAGS += " --corruptions brightness gaussian_noise --chunk 16 --block 16"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    return save(load("random:cifar_resnet8", options=("width=4",)), path)


@pytest.fixture(scope="module")
def whole(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return holdfast.bench(str(weights), out=str(tmp_path_factory.mktemp("whole") / "run"), **FIELDS)


def numbers(found: Run) -> dict[str, list[tuple]]:
    return {r.id: [(m.name, m.value, m.low, m.high, m.n, m.reason) for m in r.metrics] for r in found.results}


def same(one: Run, other: Run) -> None:
    assert numbers(one) == numbers(other)
    for result in one.results:
        a, b = one.outcomes(result.id), other.outcomes(result.id)
        assert a.keys() == b.keys()
        for name in a:
            assert np.array_equal(a[name], b[name]), (result.id, name)


def command(weights: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "holdfast", "bench", str(weights), *FLAGS.split(), "--out", str(out), *more]


def test_every_cell_has_evidence(whole: Run) -> None:
    # clean, 2 corruptions, 2 attacks x 2 radii: 7 conditions, each judged by 2 tasks
    assert len(whole.results) == 14 and all(r.status == "done" for r in whole.results)
    for result in whole.results:
        n = 24 if result.cell.attack else 40
        for metric in result.metrics:
            assert metric.reason or (metric.n == n and metric.low <= metric.value <= metric.high), metric
        assert result.cost.seconds > 0 and result.cost.forwards > 0
        assert (result.cost.backwards > 0) == (result.cell.attack is not None)
        assert result.environment.torch == torch.__version__
        assert len(set(whole.outcomes(result.id)["id"].tolist())) == n


def test_attacked_images_are_among_the_clean_ones(whole: Run) -> None:
    clean = next(r for r in whole.results if not r.cell.stages)
    attacked = next(r for r in whole.results if r.cell.attack)
    assert set(whole.outcomes(attacked.id)["id"]) < set(whole.outcomes(clean.id)["id"])


def test_attacks_harm_what_they_raise(whole: Run) -> None:
    attacked = [(r, r.cell.attack) for r in whole.results if r.cell.attack]
    by = {(attack.push, round(attack.eps * 255), r.cell.judge.task): r for r, attack in attacked}
    small, large = (by["mse", eps, "embedding"].metric("l2_drift").value for eps in (1, 4))
    assert large > small > 0
    losses = [by["ce", eps, "classification"].metric("loss").value for eps in (1, 4)]
    assert losses[1] > losses[0]


def test_a_finished_run_is_not_touched(whole: Run, weights: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (whole.folder / "cells").iterdir()}
    holdfast.bench(str(weights), out=str(whole.folder), **FIELDS)
    assert {p: p.stat().st_mtime_ns for p in (whole.folder / "cells").iterdir()} == before


def test_batch_size_changes_no_verdict(whole: Run, weights: Path, tmp_path: Path) -> None:
    other = holdfast.bench(str(weights), out=str(tmp_path / "run"), **{**FIELDS, "chunk": 40, "block": 24})
    for result in whole.results:
        a, b = whole.outcomes(result.id), other.outcomes(result.id)
        for name in a:
            if a[name].dtype == np.bool_ and "margin" in a:
                near = np.minimum(np.abs(a["margin"]), np.abs(b["margin"])) < 1e-4
                assert np.array_equal(a[name][~near], b[name][~near]), name
        for metric in result.metrics:
            if metric.value is not None:
                twin = next(r for r in other.results if r.id == result.id).metric(metric.name)
                assert twin.value == pytest.approx(metric.value, rel=1e-2, abs=1e-4), metric.name


def test_shards_are_the_whole(whole: Run, weights: Path, tmp_path: Path) -> None:
    for shard in ("1/3", "3/3", "2/3"):
        found = holdfast.bench(str(weights), out=str(tmp_path / "run"), shard=shard, **FIELDS)
    same(whole, found)
    with pytest.raises(ConfigError, match="i/n"):
        holdfast.bench(str(weights), out=str(tmp_path / "run"), shard="4/3", **FIELDS)


def test_killed_and_run_again_is_the_same(whole: Run, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(command(weights, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 120
        while not list(out.glob("cells/*.json")) and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    done = len(list(out.glob("cells/*.json")))
    assert 0 < done < 14, "killed too early or too late to show anything"
    subprocess.run(command(weights, out), check=True, capture_output=True)
    same(whole, read(out))


def test_first_ctrl_c_ends_the_batch_and_says_what_is_done(whole: Run, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = command(weights, out)
    with subprocess.Popen(asked, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        limit = time.monotonic() + 120
        while not list(out.glob("cells/*.json")) and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "of 14 cells done. Same command continues." in said and "Traceback" not in said
    assert not list(out.rglob("*.part"))
    subprocess.run(command(weights, out), check=True, capture_output=True)
    same(whole, read(out))


def test_out_of_memory_halves_the_batch_once(
    whole: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = blocks.outcomes

    def short(job, indices, chunk, bench, **fields):  # type: ignore[no-untyped-def]
        asked.append(chunk)
        if chunk > 16:
            raise torch.OutOfMemoryError("too much")
        return real(job, indices, chunk, bench, **fields)

    monkeypatch.setattr(run, "outcomes", short)
    found = holdfast.bench(str(weights), out=str(tmp_path / "run"), **{**FIELDS, "chunk": 64})
    assert asked[:3] == [40, 32, 16] and set(asked[3:]) == {16}
    assert all("memory was short: chunks of 16" in " ".join(r.warnings) and r.chunk == 16 for r in found.results)
    for result in found.results:
        if result.cell.judge.task == "classification":
            mine, theirs = found.outcomes(result.id)["correct"], whole.outcomes(result.id)["correct"]
            assert np.array_equal(mine, theirs)


def test_nothing_fits(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args, **fields):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(run, "outcomes", never)
    with pytest.raises(CellsFailed):
        holdfast.bench(str(weights), out=str(tmp_path / "run"), **FIELDS)
    assert MemoryShortage.__name__ in read(tmp_path / "run").results[0].error


def test_one_failed_cell_does_not_stop_the_rest(
    whole: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = blocks.corrupt

    def broken(images, corruption, keys):  # type: ignore[no-untyped-def]
        if corruption.name == "brightness":
            raise RuntimeError("no light")
        return real(images, corruption, keys)

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "corrupt", broken)
        with pytest.raises(CellsFailed, match=r"2 of 14 cells failed; 12 are done.*--failed"):
            holdfast.bench(str(weights), out=str(tmp_path / "run"), **FIELDS)
    assert any("no light" in line for line in holdfast.ls(str(tmp_path / "run"), failed=True))
    same(whole, holdfast.bench(str(weights), out=str(tmp_path / "run"), **FIELDS))


def test_another_config_on_the_same_out_shows_the_difference(whole: Run, weights: Path) -> None:
    with pytest.raises(ConflictError, match=r"steps.*Choose another --out, or --replace"):
        holdfast.bench(str(weights), out=str(whole.folder), **{**FIELDS, "steps": 4})


def test_a_folder_of_checkpoints_is_a_series_with_heads_of_their_own(tmp_path: Path) -> None:
    for seed in (1, 2, 10):
        encoder = load(f"random:cifar_resnet8:{seed}", options=("width=4",))
        save(encoder, tmp_path / "series" / f"epoch{seed}.safetensors")
    found = holdfast.bench(
        str(tmp_path / "series"),
        out=str(tmp_path / "run"),
        **{**FIELDS, "corruptions": ["none"], "attacks": [], "eps": ["8/255"], "attack_limit": 8},
    )
    names = list(dict.fromkeys(r.cell.encoder.name for r in found.results))
    assert names == ["epoch1.safetensors", "epoch2.safetensors", "epoch10.safetensors"], "in natural order"
    assert len(list((tmp_path / "run" / "heads").iterdir())) == 3


def test_dry_run_says_cells_images_and_time(weights: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(weights, tmp_path / "run", "--dry-run"), check=True, capture_output=True, text=True)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert " 14" in lines["cells"] and "40 (24 of them attacked" in lines["images"] and "at most" in lines["time"]
    assert not (tmp_path / "run" / "cells").exists()


def test_modules_handed_over_in_python_are_measured(tmp_path: Path) -> None:
    encoder = load("random:cifar_resnet8", options=("width=4",))
    fields = {**FIELDS, "corruptions": ["none"], "attack_limit": 8, "tasks": ["embedding"]}
    found = holdfast.bench(encoder, out=str(tmp_path / "run"), **fields)
    assert {r.cell.judge.task for r in found.results} == {"embedding"} and found.results[0].status == "done"


def test_records_are_plain_json(whole: Run) -> None:
    path = next((whole.folder / "cells").iterdir())
    held = json.loads(path.read_text())
    assert held["schema"] == 1 and held["metrics"] and held["cell"]["encoder"]["digest_of_weights"]
    assert not list((whole.folder / "blocks").glob("*/*")), "blocks of finished jobs"
