"""The verifier agrees with what a right program stores, and finds each way in which it can be wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_runs import Arrays, attacked, falsified, judged, small_run, small_weights, wrong

import holdfast
from holdfast.configs import AttackConfig, VerifyConfig
from holdfast.errors import ConfigError, DataError, TrustError
from holdfast.evaluation.store import Run
from holdfast.evaluation.verifier import NORMS
from holdfast.looking import look
from holdfast.models.checkpoint import load, save
from holdfast.verifying import verify

EPS = 8 / 255


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def run(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(weights, tmp_path_factory.mktemp("run") / "bench")


@pytest.fixture(scope="module")
def looked(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of `holdfast attack` through the head and one through the embedding."""
    root = tmp_path_factory.mktemp("looked")
    for way in ("classification", "embedding"):
        config = AttackConfig(encoder=str(weights), limit=5, steps=5, eps=EPS, through=way, out=str(root / way))
        look(config, lambda line: None)
    return {way: root / way for way in ("classification", "embedding")}


def changed(folder: Path, to: Path, change: Callable[[Arrays], None]) -> Path:
    shutil.copytree(folder, to)
    with np.load(to / "adversarial.npz") as held:
        arrays = {name: held[name].copy() for name in held.files}
    change(arrays)
    np.savez(to / "adversarial.npz", **arrays)
    return to


# -- what is right -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["classification", "embedding"])
def test_what_an_attack_writes_is_right(looked: dict[str, Path], way: str) -> None:
    lines = judged(looked[way])
    assert lines[-1] == "5 of 5 adversarial images of 1 cell judged anew in float32: everything about them agrees"
    assert lines[1].split()[:3] == ["5", "of", "5"]
    assert (lines[1].split()[3] == "5") == (way == "classification"), "lost images are counted where there is a label"


def test_norms_are_those_of_the_textbook() -> None:
    delta = np.array([[3.0, 0.0, -4.0], [0.0, 0.0, 0.0]])
    assert NORMS["linf"](delta).tolist() == [4, 0]
    assert NORMS["l2"](delta).tolist() == [5, 0]
    assert NORMS["l1"](delta).tolist() == [7, 0]


def test_it_knows_no_attack() -> None:
    code = "import sys, holdfast.evaluation.verifier, holdfast.evaluation.verified_records\n"
    code += "print(*[m for m in sys.modules if m.startswith(('holdfast.attacks', 'holdfast.tasks'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


def test_every_attacked_cell_of_a_run_is_judged(run: Run) -> None:
    lines = judged(run.folder)
    cells = [r for r in run.results if r.cell.attack is not None and r.cell.attack.through == r.cell.judge.task]
    kept = sum(len(run.gallery(r.id)["id"]) for r in cells)
    assert len(cells) == 4 and 0 < kept < 4 * 24
    assert lines[-2:] == [
        f"{kept} of 96 adversarial images of 4 cells judged anew in float32: everything about them agrees",
        f"the records of {len(run.results)} cells compared with their outcomes, not measured again: no contradiction",
    ]
    assert sum(f"{len(run.gallery(r.id)['id'])} of 24 " in line for r in cells for line in lines if r.id in line) == 4
    for result in cells:
        gallery, whole = run.gallery(result.id), run.outcomes(result.id)
        rows = [whole["id"].tolist().index(name) for name in gallery["id"]]
        assert gallery["adversarial"].dtype == np.float32
        before = gallery["before"].astype(np.float32) / np.float32(255)
        norm = np.abs(gallery["adversarial"].astype(np.float64) - before).reshape(len(rows), -1).max(1)
        assert np.allclose(norm, whole["attack_norm"][rows], atol=1e-7)


def test_a_head_that_was_fitted_is_found_again(weights: Path, tmp_path: Path) -> None:
    holdfast.bench(
        str(weights), out=str(tmp_path / "run"), data="scenes", limit=16, attack_limit=16, fit_limit=80, head="linear",
        eps=["8/255"], steps=2, corruptions=["none"], chunk=8, tasks=["classification"],
    )  # fmt: skip
    assert "everything about them agrees" in judged(tmp_path / "run")[-2]


# -- what is wrong -----------------------------------------------------------------------------------------------------


def nudge(arrays: Arrays) -> None:
    """One value a little further than the ball allows, where the box allows it."""
    before = arrays["before"][0].astype(np.float32) / np.float32(255)
    y, x, c = np.argwhere(before < 0.5)[0]
    arrays["adversarial"][0, y, x, c] = before[y, x, c] + np.float32(EPS + 3e-6)


def bright(arrays: Arrays) -> None:
    arrays["adversarial"][1, 0, 0, 0] = 1.0001


def another(arrays: Arrays) -> None:
    for name in ("clean", "before"):
        arrays[name][0, 0, 0, 0] ^= 1


def begun(arrays: Arrays) -> None:
    arrays["before"][2, 3, 3, 1] ^= 1


def relabelled(arrays: Arrays) -> None:
    arrays["label"][3] = (arrays["label"][3] + 1) % 8


def kept_clean(arrays: Arrays) -> None:
    arrays["adversarial"][:] = arrays["before"].astype(np.float32) / np.float32(255)


def shifted(name: str, by: float) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][0] += by

    return change


def flipped(name: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = ~arrays[name]

    return change


def turned(arrays: Arrays) -> None:
    arrays["prediction"][4] = (arrays["prediction"][4] + 1) % 8


def coarse(arrays: Arrays) -> None:
    arrays["adversarial"] = arrays["adversarial"].astype(np.float16)


WRONG = {
    "out of the ball": ("classification", nudge, "outside the linf ball"),
    "out of the box": ("classification", bright, "pixels span"),
    "another image": ("classification", another, "is not the image of that name"),
    "another beginning": ("classification", begun, "did not begin at these images"),
    "another label": ("classification", relabelled, "has label"),
    "not adversarial": ("classification", kept_clean, "recorded as lost and is right"),
    "margin": ("classification", shifted("margin", 5e-3), "margin is"),
    "norm": ("classification", shifted("attack_norm", 2e-3), "attack_norm is"),
    "verdict": ("classification", flipped("correct"), "recorded as right and is lost"),
    "rounded verdict": ("classification", flipped("rounded_correct"), "rounded, is recorded as"),
    "prediction": ("classification", turned, "is seen as"),
    "drift": ("embedding", shifted("l2", 5e-3), "l2 is"),
    "angle": ("embedding", shifted("cosine", 5e-3), "cosine is"),
    "half precision": ("embedding", coarse, "not stored exactly"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_way_of_being_wrong_is_found(looked: dict[str, Path], tmp_path: Path, name: str) -> None:
    way, change, says = WRONG[name]
    assert says in wrong(changed(looked[way], tmp_path / "changed", change))


def test_an_unchanged_copy_is_right(looked: dict[str, Path], tmp_path: Path) -> None:
    assert "them agrees" in judged(changed(looked["embedding"], tmp_path / "same", lambda arrays: None))[-1]


def test_other_weights_are_not_judged(looked: dict[str, Path], weights: Path, tmp_path: Path) -> None:
    kept = weights.read_bytes()
    try:
        encoder = load(str(weights))
        with torch.no_grad():
            next(encoder.parameters()).mul_(1.01)
        save(encoder, weights)
        assert "not judged: the weights of" in wrong(looked["classification"])
    finally:
        weights.write_bytes(kept)


def test_a_record_that_was_changed_is_found(run: Run, tmp_path: Path) -> None:
    def turn(arrays: Arrays) -> None:
        arrays["prediction"] = (arrays["prediction"] + 1) % 8

    cell = attacked(run)
    said = wrong(falsified(run, tmp_path / "run", cell, turn))
    assert "is seen as" in said and cell in said


def test_images_that_were_lost_are_missed(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    cell = attacked(run)
    (tmp_path / "run" / "gallery" / f"{cell}.npz").unlink()
    said = wrong(tmp_path / "run")
    line = next(at for at, text in enumerate(said.splitlines()) if cell in text)
    assert "not judged: its images are missing" in said.splitlines()[line + 1]
    assert "1 cell could not be judged" in said and "everything about them agrees" in said


def test_the_same_bench_makes_lost_images_again(run: Run, weights: Path, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    cell = attacked(run)
    (tmp_path / "run" / "gallery" / f"{cell}.npz").unlink()
    others = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "gallery").iterdir()}
    again = small_run(weights, tmp_path / "run")
    before, after = run.gallery(cell), again.gallery(cell)
    assert after["id"].tolist() == before["id"].tolist()
    assert np.array_equal(after["adversarial"], before["adversarial"])
    # What its job made beside it is not made again.
    assert {p: p.stat().st_mtime_ns for p in others} == others
    assert "everything about them agrees" in judged(tmp_path / "run")[-2]


@pytest.mark.parametrize("room", ["images", "gallery"])
def test_one_file_that_is_not_whole_does_not_hide_the_others(run: Run, tmp_path: Path, room: str) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    cells = attacked(run), attacked(run, "embedding")
    path = tmp_path / "run" / room / f"{cells[0]}.npz"
    path.write_bytes(b"no archive" if room == "images" else path.read_bytes()[:300])
    said = wrong(tmp_path / "run")
    assert f"not judged: {path} is not whole" in said and "pickle" not in said and "unsafe" not in said
    assert f"{len(run.gallery(cells[1])['id'])} of 24" in next(line for line in said.splitlines() if cells[1] in line)


def test_a_folder_that_cannot_be_read_does_not_hide_the_next(looked: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(TrustError, match="1 of 2 cells could not be judged"):
        verify(VerifyConfig(runs=(str(tmp_path), str(looked["embedding"])), device="cpu"), say=said.append)
    assert any("holds no adversarial images" in line for line in said) and any("5 of 5" in line for line in said)


def test_a_module_that_was_handed_over_is_said_to_lie_nowhere(weights: Path, tmp_path: Path) -> None:
    holdfast.bench(
        load(str(weights)).trunk, out=str(tmp_path / "run"), data="scenes", limit=16, attack_limit=16, fit_limit=40,
        eps=["8/255"], steps=2, corruptions=["none"], tasks=["embedding"], chunk=8,
    )  # fmt: skip
    with pytest.raises(TrustError, match=r"handed over in Python.*Nothing disagrees.*from a file") as caught:
        judged(tmp_path / "run")
    assert "put back" not in str(caught.value) and "1 cells" not in str(caught.value)


def test_nothing_to_judge_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no adversarial images"):
        judged(tmp_path)
    with pytest.raises(ConfigError, match="No folder was named"):
        verify(VerifyConfig(), say=print)
    (tmp_path / "adversarial.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="not whole or not ours"):
        judged(tmp_path)
