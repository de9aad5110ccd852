"""Flags that one attacked cell decides, what is documented of them, and how they are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import CE, HARDENED, judge, write_run
from test_evaluation_checks import MADE_BY_THE_ATTACK, looked, tampered

from holdfast.evaluation.cell_checks import CELL_CHECKS, Attacked
from holdfast.evaluation.checks import FLAGS, checks_record, flags
from holdfast.records import Attack, Cell, Data, Model

Held = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checks") / "run"
    write_run(path, (HARDENED,), n=120, corruptions=())
    return path


def attacked(attack: Attack, *, by: str = "classification", **held: float | bool) -> Attacked:
    """A cell of ten images, all of them right when clean, with these outcomes for each, judged by a task."""
    cell = Cell(data=Data(source="scenes"), stages=(attack,), encoder=Model(spec="e"), judge=judge(by))
    rows = {"attack_clean_score": -1.0} | held
    return Attacked(cell, attack, {"id": np.arange(10).astype(str), **{k: np.full(10, v) for k, v in rows.items()}})


def test_what_several_passes_gain_late_is_an_upper_limit() -> None:
    """What falls late in the first pass might have fallen in the second: it can be ruled out, and not be claimed."""
    late, early = {"attack_score": 0.5, "attack_early_score": -0.5}, {"attack_score": 0.5, "attack_early_score": 0.5}
    gaining = CELL_CHECKS["still-gaining"]
    assert gaining(attacked(CE, **late)).status == "failed"
    assert gaining(attacked(CE, **early)).status == "passed"
    for several in (Attack(restarts=5), Attack(push="margin_target", targets=9), Attack(method="autoattack", push="")):
        assert gaining(attacked(several, **late)).status == "not measured"
        assert gaining(attacked(several, **early)).status == "passed"


REACHED = (
    Attack(through="embedding", push="mse", scored="knn"),
    Attack(through="embedding", push="mse", scored="probe"),
    Attack(through="embedding", push="mse", aim="towards"),
    Attack(push="ce", aim="towards"),
)


@pytest.mark.parametrize("attack", REACHED, ids=lambda a: f"{a.through}-{a.scored}-{a.aim}")
def test_what_is_reached_late_counts_wherever_something_is_reached(attack: Attack) -> None:
    """A vote turned, a head fooled, a target found: by images, and not by how far a distance went."""
    gaining, through = CELL_CHECKS["still-gaining"], attack.through
    late, early = {"attack_score": 0.5, "attack_early_score": -0.5}, {"attack_score": 0.5, "attack_early_score": 0.4}
    found = gaining(attacked(attack, by=through, **late))
    assert found.status == "failed" and "of the images fall" in found.text
    assert gaining(attacked(attack, by=through, **early)).status == "passed", "a distance would have risen by a fifth"


def test_a_drift_that_rises_late_is_told_by_how_far() -> None:
    drift, gaining = Attack(through="embedding", push="mse"), CELL_CHECKS["still-gaining"]
    late = attacked(drift, by="embedding", attack_score=0.5, attack_early_score=0.4)
    found = gaining(late)
    assert found.status == "failed" and found.text.startswith("20.0% of the drift")


@pytest.mark.parametrize(("task", "push"), [("segmentation", "segpgd"), ("depth", "silog_gradient")])
def test_of_an_answer_for_every_pixel_the_rise_from_the_clean_one_counts(task: str, push: str) -> None:
    """Clean 0.4 and attacked 0.6: of the rise by 0.2, 0.02 at most may come late; and noise may make 0.03 of it."""
    attack = Attack(through=task, push=push, steps=20)
    clean, end = {"attack_clean_score": 0.4}, {"attack_score": 0.6}
    gaining, noise = CELL_CHECKS["still-gaining"], CELL_CHECKS["noise-as-good"]
    late = gaining(attacked(attack, by=task, **clean, **end, attack_early_score=0.575))
    assert late.status == "failed" and "12.5% of the rise comes" in late.text
    assert gaining(attacked(attack, by=task, **clean, **end, attack_early_score=0.585)).status == "passed"
    weak = noise(attacked(attack, by=task, **clean, **end, attack_start_score=0.44))
    assert weak.status == "failed" and "0% of the images that survive noise 6 times" in weak.text
    assert noise(attacked(attack, by=task, **clean, **end, attack_start_score=0.42)).status == "passed"
    assert noise(attacked(attack, by=task, **clean, **end, attack_start_score=0.38)).status == "passed"
    nothing = noise(attacked(attack, by=task, **clean, attack_score=0.4, attack_start_score=0.4))
    assert nothing.status == "failed", "what moves nothing is no better than noise that moves nothing"
    wide = Attack(method="sea", through=task, push="masked" if task == "segmentation" else "l2", steps=300)
    assert noise(attacked(wide, by=task, **clean, **end, attack_start_score=0.59)).status == "not measured"


def test_an_attack_towards_a_class_is_no_rival_of_one_that_takes_any() -> None:
    """That Square finds what an attack towards one class does not is no sign of a masked gradient."""
    held = {"correct": True, "attack_score": -0.5}
    assert attacked(CE, **held).rival
    for aimed in (Attack(push="ce", aim="towards"), Attack(through="embedding", push="mse", aim="towards")):
        assert attacked(aimed, **held).white_box == (aimed.through == "classification")
        assert not attacked(aimed, **held).rival


def test_the_nearest_images_lie_on_the_boundary() -> None:
    """Half a level of grey brings them back, whatever the model: no flag."""
    held = {"correct": False, "rounded_correct": True, "attack_score": 0.1, "attack_norm": 0.2}
    nearest = attacked(Attack(method="fab", push="", eps=0.0), **held, attack_early_score=-1.0, attack_start_score=-1.0)
    assert {CELL_CHECKS[flag](nearest).status for flag in MADE_BY_THE_ATTACK if flag != "zero-gradients"} == {
        "not measured"
    }
    assert CELL_CHECKS["lost-in-rounding"](attacked(CE, **held)).status == "failed"


def test_gradients_that_are_not_finite_are_told_apart() -> None:
    found = CELL_CHECKS["zero-gradients"](attacked(CE, attack_zero_gradients=0.5, attack_broken_gradients=0.25))
    assert found.status == "failed" and "50.0%" in found.text and "25.0% not finite" in found.text


@pytest.mark.parametrize("blind", [Attack(method="noise"), Attack(method="square", push="margin")])
def test_an_attack_without_gradient_has_none_that_could_be_zero(blind: Attack) -> None:
    held = {"attack_zero_gradients": 0.0, "attack_score": 0.5, "attack_start_score": 0.5, "attack_early_score": -1.0}
    found = {CELL_CHECKS[flag](attacked(blind, **held)).status for flag in MADE_BY_THE_ATTACK[:3]}
    assert found == {"not measured"}


# -- as data -----------------------------------------------------------------------------------------------------------


def test_every_flag_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "believability.md").read_text()
    for flag in FLAGS.values():
        assert f"`{flag.id}`" in page, flag.id
        assert flag.name and flag.threshold and flag.about.endswith("."), flag.id


def test_the_checks_can_be_kept_as_json(folder: Path) -> None:
    subject = tampered(folder, looked(repeated=1.0))
    kept = json.loads(json.dumps(checks_record(subject)))
    assert [item["flag"] for item in kept] == list(FLAGS)
    (one,) = [item for item in kept if item["flag"] == "randomised"]
    assert one["status"] == "failed" and one["subject"] == "hardened" and "two passes" in one["threshold"]


def test_a_cell_without_attack_or_judged_by_another_head_raises_no_flag(folder: Path) -> None:
    subject = tampered(folder, looked(repeated=1.0))
    for result in subject.results:
        attack = result.cell.attack
        if attack is None or attack.through != result.cell.judge.task:
            assert flags(result.cell, subject.run.outcomes(result.id)) == ()
