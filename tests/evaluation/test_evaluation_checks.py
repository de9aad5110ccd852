"""Believability: each check fails on the fault that it is for, and none is green unless it was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from synthetic_run import CE, HARDENED, MARGIN, MSE, PLAIN, Made, judge, write_run

from holdfast.evaluation.checks import Check, checks, flags
from holdfast.evaluation.curves import Subject, subjects
from holdfast.evaluation.store import Run, read
from holdfast.records import Attack, Model, Result, Surrogate

Held = dict[str, np.ndarray]
MADE_BY_THE_ATTACK = ["noise-as-good", "zero-gradients", "still-gaining", "lost-in-rounding", "out-of-ball"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checks") / "run"
    write_run(path, (HARDENED,), n=120, corruptions=())
    return path


def named(found: list[Check], flag: str) -> Check:
    (one,) = [c for c in found if c.flag == flag]
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
    assert named(found, "black-box-better").status == "not measured"
    assert named(found, "randomised").status == "not measured"
    assert named(found, "out-of-ball").status == "passed"
    assert all(c.text and c.subject == "hardened" for c in found)


def test_nothing_is_green_that_was_not_measured(tmp_path: Path) -> None:
    (subject,) = subjects([write_run(tmp_path / "r", (PLAIN,), n=20, corruptions=("fog",), attacks=())])
    assert {c.status for c in checks(subject)} == {"not measured"}


@pytest.mark.parametrize("flag", MADE_BY_THE_ATTACK)
def test_missing_traces_are_grey(folder: Path, flag: str) -> None:
    subject = tampered(
        folder, lambda r, held: {k: v for k, v in held.items() if not k.startswith(("attack_", "rounded_"))}
    )
    assert named(checks(subject), flag).status == "not measured"


def broken(**change: Callable[[Held], np.ndarray]) -> Callable[[Result, Held], Held]:
    """Change outcomes of the cells where the attacked head judges."""

    def apply(result: Result, held: Held) -> Held:
        attack = result.cell.attack
        direct = attack is not None and attack.through == result.cell.judge.task
        return held | {name: made(held) for name, made in change.items()} if direct else held

    return apply


@pytest.mark.parametrize(
    ("flag", "change", "says"),
    [
        ("noise-as-good", broken(attack_start_score=lambda h: h["attack_score"] + 1.0), "worse under noise"),
        ("noise-as-good", broken(attack_start_score=lambda h: h["attack_score"].copy()), "no other"),
        ("zero-gradients", broken(attack_zero_gradients=lambda h: np.full(len(h["id"]), 0.38)), "38.0%"),
        ("still-gaining", broken(attack_early_score=lambda h: np.full(len(h["id"]), -1.0)), "last quarter"),
        ("lost-in-rounding", broken(rounded_correct=lambda h: np.ones(len(h["id"]), bool)), "returns by"),
        ("out-of-ball", broken(attack_norm=lambda h: h["attack_norm"] + 2e-6), "exceeds"),
    ],
)
def test_each_fault_is_found_by_its_own_check(
    folder: Path, flag: str, change: Callable[[Result, Held], Held], says: str
) -> None:
    found = named(checks(tampered(folder, change)), flag)
    assert found.status == "failed"
    assert says in found.text


def test_a_norm_within_the_tolerance_passes(folder: Path) -> None:
    subject = tampered(folder, broken(attack_norm=lambda h: h["attack_norm"] + 5e-7))
    assert named(checks(subject), "out-of-ball").status == "passed"


def test_a_few_images_lost_to_noise_alone_are_no_alarm(folder: Path) -> None:
    def few(result: Result, held: Held) -> Held:
        if "attack_start_score" not in held or result.cell.judge.task != "classification":
            return held
        n = len(held["id"])
        lost = np.arange(n) < 2
        score, start = np.where(lost, 0.1, -0.5), np.where(lost, 0.1, -1.0)
        return held | {"attack_clean_score": np.full(n, -1.0), "attack_start_score": start, "attack_score": score}

    assert named(checks(tampered(folder, few)), "noise-as-good").status == "passed"


def test_accuracy_that_rises_with_the_radius_is_found(folder: Path) -> None:
    def rises(result: Result, held: Held) -> Held:
        attack = result.cell.attack
        if attack is None or attack.push != "margin" or attack.eps < 7 / 255 or "correct" not in held:
            return held
        return held | {"correct": np.ones(len(held["id"]), bool)}

    found = named(checks(tampered(folder, rises)), "not-monotone")
    assert found.status == "failed"
    assert "margin" in found.text and "4/255 to 8/255" in found.text


def test_cross_entropy_that_fails_where_margin_does_not_is_found(folder: Path) -> None:
    def masked(result: Result, held: Held) -> Held:
        attack = result.cell.attack
        hit = attack is not None and attack.push == "ce" and "correct" in held
        return held | {"correct": np.ones(len(held["id"]), bool)} if hit else held

    found = checks(tampered(folder, masked))
    assert named(found, "ce-margin-gap").status == "failed"
    assert "cross-entropy meets masked gradients" in named(found, "ce-margin-gap").text
    through = tampered(
        folder, lambda r, h: masked(r, h) if not (r.cell.attack and r.cell.attack.push == "margin") else None
    )
    assert named(checks(through), "other-head-better").status == "failed"


def test_missing_clean_answers_are_found(folder: Path) -> None:
    without = tampered(folder, lambda r, held: held if r.cell.stages or r.cell.judge.task == "embedding" else None)
    assert named(checks(without), "clean-unknown").status == "failed"
    fewer = tampered(folder, lambda r, held: held if r.cell.stages else {k: v[:30] for k, v in held.items()})
    assert "without a clean answer" in named(checks(fewer), "clean-unknown").text


def test_chance_needs_a_radius_that_settles_it(tmp_path: Path) -> None:
    strong = Made("strong", 0.9, 500.0)
    (ends_early,) = subjects([write_run(tmp_path / "a", (strong,), n=40, corruptions=(), attacks=(CE,))])
    assert named(checks(ends_early), "above-chance").status == "not measured"
    (weak,) = subjects([write_run(tmp_path / "b", (PLAIN,), n=40, corruptions=(), attacks=(CE, MARGIN, MSE))])
    assert named(checks(weak), "above-chance").status == "passed"

    def whole_range(result: Result) -> Result:
        attack = result.cell.attack
        if attack is None:
            return result
        cell = msgspec.structs.replace(result.cell, stages=(msgspec.structs.replace(attack, eps=0.5 + attack.eps),))
        return msgspec.structs.replace(result, cell=cell)

    run = ends_early.run
    (grey,) = subjects([Run(run.folder, run.record, [whole_range(r) for r in run.results])])
    assert named(checks(grey), "above-chance").status == "failed"


@pytest.mark.parametrize("flag", MADE_BY_THE_ATTACK)
def test_nothing_is_green_where_every_image_was_lost_before_the_attack(folder: Path, flag: str) -> None:
    def lost(result: Result, held: Held) -> Held:
        attack = result.cell.attack
        if attack is None:
            return held
        if attack.through != "classification":
            return {k: v for k, v in held.items() if not k.startswith(("attack_", "rounded_"))}
        return held | {"attack_clean_score": np.ones(len(held["id"]))}

    assert named(checks(tampered(folder, lost)), flag).status == "not measured"


# -- what the victim showed --------------------------------------------------------------------------------------------


def looked(**change: float) -> Callable[[Result, Held], Held]:
    """Evidence of a plain victim in every attacked classification cell, but for what is changed."""

    def apply(result: Result, held: Held) -> Held:
        if result.cell.attack is None or result.cell.judge.task != "classification":
            return held
        n = len(held["id"])
        plain = {"repeated": 0.0, "company": 1e-6, "outside": 0.0, "probabilities": 0.0}
        made = {f"check_{name}": np.full(n, value) for name, value in (plain | change).items()}
        return held | made | {"check_probabilities": made["check_probabilities"] > 0}

    return apply


def raised(found: list[Check]) -> set[str]:
    return {c.flag for c in found if c.status == "failed"}


def test_a_victim_that_was_looked_at_is_green(folder: Path) -> None:
    found = checks(tampered(folder, looked()))
    for flag in ("randomised", "coupled-batch", "probabilities", "out-of-range"):
        assert named(found, flag).status == "passed", flag
    assert not raised(found)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"repeated": 2e-3}, "randomised"),
        ({"company": 2e-3}, "coupled-batch"),
        ({"probabilities": 1.0}, "probabilities"),
        ({"outside": 1e-7}, "out-of-range"),
    ],
)
def test_what_the_victim_shows_raises_its_own_flag(folder: Path, change: dict[str, float], flag: str) -> None:
    subject = tampered(folder, looked(**change))
    assert raised(checks(subject)) == {flag}
    cell = next(r for r in subject.results if r.cell.attack and r.cell.judge.task == "classification")
    assert flags(cell.cell, subject.run.outcomes(cell.id)) == ((flag,) if cell.cell.attack.push != "mse" else ())


@pytest.mark.parametrize("change", [{"repeated": 0.3, "company": 0.3}, {"company": 0.3}])
def test_single_answers_are_not_compared_where_they_change_by_themselves(
    folder: Path, change: dict[str, float]
) -> None:
    def worse_under_noise(result: Result, held: Held) -> Held:
        held = looked(**change)(result, held)
        return held | {"attack_start_score": held["attack_score"] + 1} if "attack_score" in held else held

    def only_heads(result: Result, held: Held) -> Held | None:
        return None if result.cell.judge.task == "embedding" else worse_under_noise(result, held)

    found = checks(tampered(folder, only_heads))
    assert raised(found) == {"randomised" if "repeated" in change else "coupled-batch"}
    for flag in ("noise-as-good", "still-gaining", "lost-in-rounding", "not-monotone", "black-box-better"):
        assert named(found, flag).status == "not measured", flag


# -- attacks against each other ----------------------------------------------------------------------------------------

NOISE = Attack(method="noise", steps=10)
SQUARE = Attack(method="square", push="margin", steps=10)
OTHER = Attack(push="ce", steps=10, surrogate=Surrogate(encoder=Model(spec="other"), judge=judge("classification")))


@pytest.fixture(scope="module")
def rivals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rivals") / "run"
    attacks = (CE, MARGIN, NOISE, SQUARE, OTHER, msgspec.structs.replace(CE, steps=20))
    write_run(path, (HARDENED,), n=120, corruptions=(), attacks=attacks, tasks=("classification",))
    return path


def but(kind: str, correct: Callable[[Held], np.ndarray]) -> Callable[[Result, Held], Held]:
    """Other verdicts for noise, square, transfer, or the longer attack; noise loses nothing where nothing is said."""

    def apply(result: Result, held: Held) -> Held:
        attack = result.cell.attack
        if attack is None:
            return held
        own = attack.method if attack.method != "pgd" else "longer" if attack.steps == 20 else "pgd"
        own = "transfer" if attack.surrogate else own
        if own == kind:
            return held | {"correct": correct(held)}
        return held | {"correct": held["attack_clean_score"] <= 0} if own == "noise" else held

    return apply


def test_controls_that_find_no_more_pass(rivals: Path) -> None:
    found = checks(tampered(rivals, but("nobody", lambda h: h["correct"])))
    assert not raised(found)
    for flag in ("noise-as-good", "black-box-better", "not-monotone", "ce-margin-gap"):
        assert named(found, flag).status == "passed", flag


@pytest.mark.parametrize("kind", ["square", "transfer"])
def test_one_image_that_only_a_black_box_loses_is_enough(rivals: Path, kind: str) -> None:
    def one_more(held: Held) -> np.ndarray:
        correct = held["correct"].copy()
        correct[np.flatnonzero(correct)[:1]] = False
        return correct

    found = checks(tampered(rivals, but(kind, one_more)))
    assert raised(found) == {"black-box-better"}
    assert "loses 1 of 60 images that no white-box attack loses (3 made)" in named(found, "black-box-better").text


def test_on_average_a_black_box_may_be_as_good(rivals: Path) -> None:
    """As many images lost, but others: no average shows it."""

    def others(held: Held) -> np.ndarray:
        correct = held["correct"].copy()
        lost, left = np.flatnonzero(~correct & (held["attack_clean_score"] <= 0)), np.flatnonzero(correct)
        correct[lost[:1]], correct[left[:1]] = True, False
        return correct

    assert raised(checks(tampered(rivals, but("square", others)))) == {"black-box-better"}


def test_noise_that_loses_what_the_gradient_loses_is_found(rivals: Path) -> None:
    found = checks(tampered(rivals, but("noise", lambda h: h["correct"])))
    assert raised(found) == {"noise-as-good"}


def test_an_attack_that_moves_images_no_further_than_noise_is_found(rivals: Path) -> None:
    """Every image is raised above its start, as a random walk raises it; but never six times as far."""

    def walk(result: Result, held: Held) -> Held:
        held = but("nobody", lambda h: h["correct"])(result, held)
        if result.cell.attack is None or result.cell.attack.method != "pgd":
            return held
        clean = np.full(len(held["id"]), -10.0)
        return held | {
            "attack_clean_score": clean,
            "attack_start_score": clean + 1,
            "attack_score": clean + 4,
            "attack_early_score": clean + 4,
        }

    found = named(checks(tampered(rivals, walk)), "noise-as-good")
    assert found.status == "failed" and "moves 0% of the images that survive noise 6 times as far" in found.text


def test_more_steps_that_find_less_are_found(rivals: Path) -> None:
    found = checks(tampered(rivals, but("longer", lambda h: h["attack_clean_score"] <= 0)))
    assert raised(found) == {"not-monotone"}
    assert "from 10 steps to 20" in named(found, "not-monotone").text


def test_a_black_box_alone_is_no_comparison(rivals: Path) -> None:
    def controls(result: Result, held: Held) -> Held | None:
        attack = result.cell.attack
        return held if attack is None or attack.method in ("noise", "square") or attack.surrogate else None

    found = checks(tampered(rivals, controls))
    gradient = ("noise-as-good", "zero-gradients", "still-gaining", "black-box-better", "ce-margin-gap", "above-chance")
    assert {named(found, flag).status for flag in gradient} == {"not measured"}


@pytest.mark.parametrize(("member", "status"), [(0, "passed"), (3, "failed")])
def test_an_ensemble_says_what_its_black_box_found(tmp_path: Path, member: int, status: str) -> None:
    run = write_run(
        tmp_path / "run",
        (HARDENED,),
        n=120,
        corruptions=(),
        attacks=(Attack(method="autoattack", push="", steps=100),),
        tasks=("classification",),
    )
    kept = {}
    for result in run.results:
        held = dict(run.outcomes(result.id))
        member_of = {"attack_member": np.where(held["correct"], 0, member)}
        kept[result.id] = held | member_of if result.cell.attack else held
    (subject,) = subjects([Run(run.folder, run.record, run.results, kept)])
    assert named(checks(subject), "black-box-better").status == status


# -- one cell by itself ------------------------------------------------------------------------------------------------
