"""Believability: each check fails on the fault that it is for, and none is green unless it was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from synthetic_run import CE, HARDENED, MARGIN, MSE, PLAIN, Made, write_run

from holdfast.evaluation.checks import Check, checks
from holdfast.evaluation.curves import Subject, subjects
from holdfast.evaluation.store import Run, read
from holdfast.records import Result

Held = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checks") / "run"
    write_run(path, (HARDENED,), n=120, corruptions=())
    return path


def named(found: list[Check], word: str) -> Check:
    (one,) = [c for c in found if word in c.name]
    return one


def tampered(folder: Path, change: Callable[[Result, Held], Held | None]) -> Subject:
    """The run with outcomes changed in memory; a result whose change is None is left out."""
    run = read(folder)
    changed = {r.id: change(r, dict(run.outcomes(r.id))) for r in run.results}
    kept = [r for r in run.results if changed[r.id] is not None]
    held = {key: value for key, value in changed.items() if value is not None}
    (subject,) = subjects([Run(run.folder, run.record, kept, held)])
    return subject


def test_a_healthy_run_fails_nothing_and_says_what_it_did_not_measure(folder: Path) -> None:
    (subject,) = subjects([read(folder)])
    found = checks(subject)
    assert {c.status for c in found} == {"passed", "not measured"}
    assert named(found, "black-box").status == "not measured"
    assert named(found, "same answer").status == "not measured"
    assert named(found, "Ball").status == "passed"
    assert all(c.text and c.subject == "hardened" for c in found)


def test_nothing_is_green_that_was_not_measured(tmp_path: Path) -> None:
    (subject,) = subjects([write_run(tmp_path / "r", (PLAIN,), n=20, corruptions=("fog",), attacks=())])
    assert {c.status for c in checks(subject)} == {"not measured"}


@pytest.mark.parametrize("word", ["noise", "not zero", "converged", "8 bits", "Ball"])
def test_missing_traces_are_grey(folder: Path, word: str) -> None:
    subject = tampered(
        folder, lambda r, held: {k: v for k, v in held.items() if not k.startswith(("attack_", "rounded_"))}
    )
    assert named(checks(subject), word).status == "not measured"


def broken(**change: Callable[[Held], np.ndarray]) -> Callable[[Result, Held], Held]:
    """Change outcomes of the cells where the attacked head judges."""

    def apply(result: Result, held: Held) -> Held:
        attack = result.cell.attack
        direct = attack is not None and attack.through == result.cell.judge.task
        return held | {name: made(held) for name, made in change.items()} if direct else held

    return apply


@pytest.mark.parametrize(
    ("word", "change", "says"),
    [
        ("noise", broken(attack_start_score=lambda h: h["attack_score"] + 1.0), "worse under noise"),
        ("noise", broken(attack_start_score=lambda h: h["attack_score"].copy()), "no other"),
        ("not zero", broken(attack_zero_gradients=lambda h: np.full(len(h["id"]), 0.38)), "38.0%"),
        ("converged", broken(attack_early_score=lambda h: np.full(len(h["id"]), -1.0)), "last quarter"),
        ("8 bits", broken(rounded_correct=lambda h: np.ones(len(h["id"]), bool)), "returns by"),
        ("Ball", broken(attack_norm=lambda h: h["attack_norm"] + 2e-6), "exceeds"),
    ],
)
def test_each_fault_is_found_by_its_own_check(
    folder: Path, word: str, change: Callable[[Result, Held], Held], says: str
) -> None:
    found = named(checks(tampered(folder, change)), word)
    assert found.status == "failed"
    assert says in found.text


def test_a_norm_within_the_tolerance_passes(folder: Path) -> None:
    subject = tampered(folder, broken(attack_norm=lambda h: h["attack_norm"] + 5e-7))
    assert named(checks(subject), "Ball").status == "passed"


def test_a_few_images_lost_to_noise_alone_are_no_alarm(folder: Path) -> None:
    def few(result: Result, held: Held) -> Held:
        if "attack_start_score" not in held or result.cell.judge.task != "classification":
            return held
        n = len(held["id"])
        lost = np.arange(n) < 2
        score, start = np.where(lost, 0.1, -0.5), np.where(lost, 0.1, -1.0)
        return held | {"attack_clean_score": np.full(n, -1.0), "attack_start_score": start, "attack_score": score}

    assert named(checks(tampered(folder, few)), "noise").status == "passed"


def test_accuracy_that_rises_with_the_radius_is_found(folder: Path) -> None:
    def rises(result: Result, held: Held) -> Held:
        attack = result.cell.attack
        if attack is None or attack.push != "margin" or attack.eps < 7 / 255 or "correct" not in held:
            return held
        return held | {"correct": np.ones(len(held["id"]), bool)}

    found = named(checks(tampered(folder, rises)), "larger radius")
    assert found.status == "failed"
    assert "margin" in found.text and "4/255 to 8/255" in found.text


def test_cross_entropy_that_fails_where_margin_does_not_is_found(folder: Path) -> None:
    def masked(result: Result, held: Held) -> Held:
        attack = result.cell.attack
        hit = attack is not None and attack.push == "ce" and "correct" in held
        return held | {"correct": np.ones(len(held["id"]), bool)} if hit else held

    found = checks(tampered(folder, masked))
    assert named(found, "agree").status == "failed"
    assert "cross-entropy meets masked gradients" in named(found, "agree").text
    through = tampered(
        folder, lambda r, h: masked(r, h) if not (r.cell.attack and r.cell.attack.push == "margin") else None
    )
    assert named(checks(through), "through another head").status == "failed"


def test_missing_clean_answers_are_found(folder: Path) -> None:
    without = tampered(folder, lambda r, held: held if r.cell.stages or r.cell.judge.task == "embedding" else None)
    assert named(checks(without), "Clean").status == "failed"
    fewer = tampered(folder, lambda r, held: held if r.cell.stages else {k: v[:30] for k, v in held.items()})
    assert "without a clean answer" in named(checks(fewer), "Clean").text


def test_chance_needs_a_radius_that_settles_it(tmp_path: Path) -> None:
    strong = Made("strong", 0.9, 500.0)
    (ends_early,) = subjects([write_run(tmp_path / "a", (strong,), n=40, corruptions=(), attacks=(CE,))])
    assert named(checks(ends_early), "chance").status == "not measured"
    (weak,) = subjects([write_run(tmp_path / "b", (PLAIN,), n=40, corruptions=(), attacks=(CE, MARGIN, MSE))])
    assert named(checks(weak), "chance").status == "passed"

    def whole_range(result: Result) -> Result:
        attack = result.cell.attack
        if attack is None:
            return result
        cell = msgspec.structs.replace(result.cell, stages=(msgspec.structs.replace(attack, eps=0.5 + attack.eps),))
        return msgspec.structs.replace(result, cell=cell)

    run = ends_early.run
    (grey,) = subjects([Run(run.folder, run.record, [whole_range(r) for r in run.results])])
    assert named(checks(grey), "chance").status == "failed"


@pytest.mark.parametrize("word", ["noise", "not zero", "converged", "8 bits", "Ball"])
def test_nothing_is_green_where_every_image_was_lost_before_the_attack(folder: Path, word: str) -> None:
    def lost(result: Result, held: Held) -> Held:
        attack = result.cell.attack
        if attack is None:
            return held
        if attack.through != "classification":
            return {k: v for k, v in held.items() if not k.startswith(("attack_", "rounded_"))}
        return held | {"attack_clean_score": np.ones(len(held["id"]))}

    assert named(checks(tampered(folder, lost)), word).status == "not measured"
