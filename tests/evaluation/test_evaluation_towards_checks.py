"""Checks of attacks that do not take any wrong class: those towards something, those that a vote or a head scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from judged_runs import small_weights
from synthetic_run import CE, HARDENED, MARGIN, MSE, judge, write_run
from test_evaluation_checks import named, raised

import holdfast
from holdfast.evaluation.cell_checks import CELL_CHECKS, Attacked
from holdfast.evaluation.checks import Check, checks
from holdfast.evaluation.curves import subjects
from holdfast.evaluation.flags import STILL_DRIFTING, STILL_RISING
from holdfast.evaluation.store import Run
from holdfast.records import Attack, Cell, Data, Model, Result, Surrogate

Held = dict[str, np.ndarray]
N = 60
SQUARE, NOISE = Attack(method="square", push="margin", steps=10), Attack(method="noise", steps=10)
OTHER = Attack(push="ce", steps=10, surrogate=Surrogate(encoder=Model(spec="other"), judge=judge("classification")))
TO_CLASS, TO_IMAGE = Attack(push="ce", steps=10, aim="towards"), Attack(push="mse", through="embedding", aim="towards")
TO_CLASS_BY_MARGIN = Attack(push="margin", steps=10, aim="towards")
TARGETS = Attack(push="margin", steps=10, targets=9)


# -- rivals ------------------------------------------------------------------------------------------------------------


def compared(folder: Path, *lost: tuple[Attack, list[int]], eps: float = 0.0) -> list[Check]:
    """The checks of 60 images, all right when clean, of which each attack loses those that are named.

    Args:
        folder: of the run.
        lost: attacks with the places of the images that they lose.
        eps: a radius in the place of the largest; 0 = none.
    """
    places = {msgspec.structs.replace(attack, eps=0.0): at for attack, at in lost}
    run = write_run(
        folder, (HARDENED,), n=2 * N, corruptions=(), attacks=[a for a, _ in lost], tasks=("classification",)
    )
    kept, results = {}, []
    for result in run.results:
        held, attack = dict(run.outcomes(result.id)), result.cell.attack
        correct = np.ones(len(held["id"]), dtype=bool)
        if attack is not None:
            correct[places[msgspec.structs.replace(attack, eps=0.0)]] = False
        kept[result.id] = held | {"correct": correct} | (_traces(correct) if attack is not None else {})
        results.append(_wider(result, eps) if attack is not None and eps else result)
    (subject,) = subjects([Run(run.folder, run.record, results, kept)])
    return checks(subject)


def _traces(correct: np.ndarray) -> Held:
    """Of an attack that has converged far from its start."""
    scores = {"clean": -1.0, "start": -0.95, "early": np.where(correct, -0.1, 0.5), "": np.where(correct, -0.1, 0.5)}
    traces = {f"attack_{name}_score".replace("__", "_"): np.zeros(N) + value for name, value in scores.items()}
    return traces | {"rounded_correct": correct}


def _wider(result: Result, eps: float) -> Result:
    attack = result.cell.attack
    assert attack is not None
    changed = msgspec.structs.replace(attack, eps=eps + attack.eps)
    return msgspec.structs.replace(result, cell=msgspec.structs.replace(result.cell, stages=(changed,)))


@pytest.mark.parametrize("black", [SQUARE, OTHER])
@pytest.mark.parametrize("towards", [TO_CLASS, TO_CLASS_BY_MARGIN])
def test_what_only_a_targeted_attack_loses_too_is_no_excuse(tmp_path: Path, black: Attack, towards: Attack) -> None:
    """It reached a class of its own; that no attack of the gradient towards any wrong class lost the image stays so."""
    found = named(compared(tmp_path / "run", (CE, [0, 1]), (black, [0, 2]), (towards, [0, 1, 2])), "black-box-better")
    assert found.status == "failed" and "loses 1 of 60 images" in found.text and "(1 made)" in found.text


@pytest.mark.parametrize("black", [SQUARE, OTHER])
def test_a_black_box_beside_targeted_attacks_alone_is_not_compared(tmp_path: Path, black: Attack) -> None:
    """However little they lose: they were to reach one class."""
    found = compared(tmp_path / "run", (black, [0, 1, 2, 3]), (TO_CLASS, []), (TO_CLASS_BY_MARGIN, [0]))
    assert named(found, "black-box-better").status == "not measured"
    assert raised(found) == set()


def test_an_attack_over_several_targets_takes_any_wrong_class_and_is_a_rival(tmp_path: Path) -> None:
    ours, theirs = (CE, [0, 1]), (SQUARE, [0, 2])
    found = named(compared(tmp_path / "with", ours, theirs, (TARGETS, [2])), "black-box-better")
    assert found.status == "passed" and "(2 made)" in found.text
    found = named(compared(tmp_path / "weak", theirs, (TARGETS, [0])), "black-box-better")
    assert found.status == "failed" and "(1 made)" in found.text


def test_noise_is_no_control_of_a_targeted_attack(tmp_path: Path) -> None:
    noise = (NOISE, list(range(8)))
    found = compared(tmp_path / "beside", (CE, list(range(30))), noise, (TO_CLASS, [0]))
    assert raised(found) == set()
    assert named(compared(tmp_path / "weak", (CE, [0]), noise), "noise-as-good").status == "failed"


def test_harms_towards_a_class_are_not_held_against_each_other(tmp_path: Path) -> None:
    one, two = (TO_CLASS, list(range(40))), (TO_CLASS_BY_MARGIN, [0])
    assert named(compared(tmp_path / "towards", one, two), "ce-margin-gap").status == "not measured"
    away = compared(tmp_path / "away", (CE, list(range(40))), (MARGIN, [0]))
    assert named(away, "ce-margin-gap").status == "failed"


def test_accuracy_above_chance_is_no_fault_of_a_targeted_attack(tmp_path: Path) -> None:
    found = named(compared(tmp_path / "towards", (TO_CLASS, [0]), eps=0.5), "above-chance")
    assert found.status == "not measured" and "no attack through" in found.text
    assert named(compared(tmp_path / "away", (CE, [0]), eps=0.5), "above-chance").status == "failed"


def test_the_embedding_is_not_compared_with_a_targeted_attack_through_the_head(tmp_path: Path) -> None:
    through = (MSE, list(range(30)))
    assert named(compared(tmp_path / "towards", (TO_CLASS, [0]), through), "other-head-better").status == "not measured"
    both = compared(tmp_path / "both", (CE, list(range(35))), (TO_CLASS, [0]), through)
    assert named(both, "other-head-better").status == "passed"
    assert named(compared(tmp_path / "away", (CE, [0]), through), "other-head-better").status == "failed"


def test_an_impersonation_beats_the_direct_attack_as_any_other_attack_through_the_embedding(tmp_path: Path) -> None:
    found = compared(tmp_path / "run", (CE, [0]), (msgspec.structs.replace(TO_IMAGE, steps=10), list(range(30))))
    assert named(found, "other-head-better").status == "failed"


# -- still gaining -----------------------------------------------------------------------------------------------------

DRIFT = Attack(push="mse", through="embedding", steps=20)
LOSING = {
    "knn": msgspec.structs.replace(DRIFT, scored="knn"),
    "probe": msgspec.structs.replace(DRIFT, scored="probe"),
    "towards an image": msgspec.structs.replace(DRIFT, aim="towards"),
    "towards a class": Attack(push="ce", steps=20, aim="towards"),
}


def gaining(attack: Attack, early: np.ndarray, score: np.ndarray, clean: float = -1.0) -> tuple[str, str]:
    """Status and text of the check of a cell whose images had these scores, before the last quarter and in the end."""
    cell = Cell(data=Data(source="scenes"), stages=(attack,), encoder=Model(spec="e"), judge=judge(attack.through))
    held = {"attack_early_score": early, "attack_score": score, "attack_clean_score": np.full(len(score), clean)}
    found = CELL_CHECKS["still-gaining"](Attacked(cell, attack, {"id": np.arange(len(score)).astype(str), **held}))
    return found.status, found.text


@pytest.mark.parametrize("kind", LOSING)
def test_where_something_is_reached_late_images_are_counted(kind: str) -> None:
    """Scores that rise and stay below 0 are no gain; of 100 images 3 may fall, and not 4."""
    attack, allowed = LOSING[kind], round(100 * STILL_RISING)
    for late, status in ((0, "passed"), (allowed, "passed"), (allowed + 1, "failed")):
        early, score = np.full(100, -0.9), np.full(100, -0.1)
        score[:late] = 0.2
        early[50:], score[50:] = 0.1, 0.8  # these had fallen before
        found, text = gaining(attack, early, score)
        assert found == status, (late, text)
        assert f"{late:.1f}% of the images fall in the last quarter of the 20 steps" in text
        assert ("more steps would find more" in text) == (status == "failed")


def test_where_nothing_is_reached_the_drift_is_measured() -> None:
    """Every score is above 0 from the first look, which says nothing."""
    score = np.full(100, 2.0)
    for share, status in ((STILL_DRIFTING / 2, "passed"), (2 * STILL_DRIFTING, "failed")):
        found, text = gaining(DRIFT, score * (1 - share), score)
        assert found == status and f"{share:.1%} of the drift comes" in text


@pytest.mark.parametrize("kind", LOSING)
def test_what_was_reached_when_clean_is_no_image_to_attack(kind: str) -> None:
    early = np.full(10, -1.0)
    assert gaining(LOSING[kind], early, early + 2, clean=0.1) == ("not measured", "there was no image to attack")
    assert gaining(DRIFT, early + 1.5, early + 3, clean=0.0)[0] == "failed", "a clean embedding has not drifted"


@pytest.mark.parametrize("kind", LOSING)
@pytest.mark.parametrize(
    "change",
    [{"restarts": 3}, {"method": "square"}, {"method": "noise"}, {"surrogate": OTHER.surrogate}, {"steps": 1}],
)
def test_several_passes_and_blind_attacks_are_not_judged_by_their_last_quarter(
    kind: str, change: dict[str, object]
) -> None:
    attack = msgspec.structs.replace(LOSING[kind], **change)
    assert gaining(attack, np.full(10, -1.0), np.full(10, 1.0))[0] == "not measured"


def _slow_and_settled() -> list[Attack]:
    """Each with eight steps of 1/255 into a ball of 8/255, and with as many as it needs."""
    wide = [msgspec.structs.replace(attack, eps=8 / 255) for attack in (*LOSING.values(), DRIFT)]
    short = [msgspec.structs.replace(attack, steps=8, alpha=1 / 255) for attack in wide]
    return [*short, *(msgspec.structs.replace(attack, steps=24) for attack in wide)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Attack], tuple[str, ...]]:
    """The flags of an attack that was really made."""
    folder = tmp_path_factory.mktemp("gaining")
    run = holdfast.bench(
        str(small_weights(folder)), out=str(folder / "run"), data="scenes", limit=40, fit_limit=100,
        attacks=_slow_and_settled(), corruptions=["none"], chunk=40, threads=1,
    )  # fmt: skip
    direct = {r.cell.attack: r for r in run.results if r.cell.attack and r.cell.attack.through == r.cell.judge.task}
    return lambda attack: direct[attack].flags


@pytest.mark.parametrize(
    "attack", _slow_and_settled(), ids=[*(f"{k}-slow" for k in (*LOSING, "drift")), *LOSING, "drift"]
)
def test_an_attack_that_ends_on_its_way_is_flagged_and_one_that_has_arrived_is_not(
    measured: Callable[[Attack], tuple[str, ...]], attack: Attack
) -> None:
    assert ("still-gaining" in measured(attack)) == (attack.steps == 8)
