"""Records read as curves and summaries: everything is matched by image, and absent data say why."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from synthetic_run import CE, EPS, HARDENED, MARGIN, MSE, PLAIN, Made, write_run

from holdfast.evaluation.curves import OUTCOMES, curve, families, profiles, subjects
from holdfast.evaluation.paired import difference
from holdfast.evaluation.store import Run
from holdfast.evaluation.summary import summary


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("curves") / "run"
    return write_run(folder, (PLAIN, HARDENED), n=100, corruptions=("fog", "brightness"))


def test_a_curve_begins_with_the_clean_accuracy_of_the_attacked_images(run: Run) -> None:
    plain = subjects([run])[0]
    found = curve(plain, OUTCOMES["correct"], "linf")
    clean = run.outcomes(plain.clean("classification").id)  # type: ignore[union-attr]
    assert [p.eps for p in found.points] == [0.0, *EPS]
    assert len(found.ids) == 50
    assert found.points[0].worst.value == clean["correct"][:50].mean()
    values = [p.worst.value or 0.0 for p in found.points]
    assert values == sorted(values, reverse=True)


def test_the_worst_case_joins_attacks_per_image(run: Run) -> None:
    plain = subjects([run])[0]
    held = {r.id: dict(run.outcomes(r.id)) for r in run.results}
    for result in plain.attacked("classification"):
        place = {"ce": 0, "margin": 1, "mse": 2}[result.cell.attack.push]  # type: ignore[union-attr]
        held[result.id]["correct"] = np.arange(50) % 3 != place
    clean = plain.clean("classification").id  # type: ignore[union-attr]
    held[clean]["correct"] = np.ones(100, bool)
    changed = subjects([Run(run.folder, run.record, run.results, held)])[0]
    assert curve(changed, OUTCOMES["correct"], "linf").points[1].worst.value == 0.0
    one = curve(changed, OUTCOMES["correct"], "linf", attack="PGD-10 on cross-entropy").points[1].worst.value
    assert one == pytest.approx(33 / 50)


def test_images_are_matched_by_id_and_not_by_place(run: Run) -> None:
    plain = subjects([run])[0]
    held = {r.id: run.outcomes(r.id) for r in run.results}
    for result in plain.attacked("classification"):
        held[result.id] = {k: v[::-1] for k, v in held[result.id].items()}
    changed = subjects([Run(run.folder, run.record, run.results, held)])[0]
    before, after = (curve(s, OUTCOMES["correct"], "linf").points for s in (plain, changed))
    assert [p.worst for p in before] == [p.worst for p in after]


def test_the_attacks_of_a_run_have_names_without_radii(run: Run) -> None:
    found = families(subjects([run])[0].attacked("classification"))
    assert set(found) == {"PGD-10 on cross-entropy", "PGD-10 on margin", "PGD-10 on embedding MSE"}
    assert all([r.cell.attack.eps for r in group] == list(EPS) for group in found.values())  # type: ignore[union-attr]


def test_absent_curves_say_why(run: Run) -> None:
    plain = subjects([run])[0]
    assert "no L2 attack" in curve(plain, OUTCOMES["correct"], "l2").reason
    held = {r.id: {k: v for k, v in run.outcomes(r.id).items() if k != "knn_correct"} for r in run.results}
    without = subjects([Run(run.folder, run.record, run.results, held)])[0]
    assert "no labels" in curve(without, OUTCOMES["knn_correct"], "linf").reason


def test_profiles_go_family_by_family_and_begin_clean(run: Run) -> None:
    found = profiles(subjects([run])[0], OUTCOMES["correct"])
    assert [(p.family, p.corruption) for p in found.values()] == [("weather", "fog"), ("weather", "brightness")]
    assert list(found["fog"].severities) == [0, 1, 2, 3, 4, 5]
    each = [m.value or 0.0 for s, m in found["fog"].severities.items() if s]
    assert found["fog"].mean.value == pytest.approx(np.mean(each))
    assert found["fog"].mean.n == 100


def test_only_a_clear_winner_is_best(run: Run, tmp_path: Path) -> None:
    columns = {(c.key, c.eps): c for c in summary(subjects([run]))}
    assert columns[("half", 0.0)].best == 1
    assert columns[("worst", EPS[-2])].best == 1
    twins = write_run(tmp_path / "t", (HARDENED, Made("twin", 0.84, 5.0)), n=60, corruptions=(), attacks=(CE,))
    assert all(c.best is None for c in summary(subjects([twins])) if c.key in ("half", "worst"))


def test_differences_are_over_common_images_of_one_set(run: Run, tmp_path: Path) -> None:
    column = next(c for c in summary(subjects([run])) if c.key == "clean")
    gap = difference(column.cells[1], column.cells[0])
    assert gap is not None and gap.n == 100
    assert column.against_first[1] == gap
    assert gap.value == pytest.approx(column.cells[1].metric.value - column.cells[0].metric.value)  # type: ignore[operator]
    other = write_run(tmp_path / "o", (PLAIN,), n=100, corruptions=(), attacks=(), source="cifar10")
    clean = next(c for c in summary(subjects([run, other])) if c.key == "clean")
    assert clean.against_first[2] is None and clean.best is None


def test_subjects_of_several_runs_have_names_that_differ(run: Run, tmp_path: Path) -> None:
    again = write_run(tmp_path / "again", (PLAIN,), n=20, corruptions=(), attacks=())
    assert [s.name for s in subjects([run, again])] == ["plain (run)", "hardened", "plain (again)"]
    assert len({s.name for s in subjects([run, run])}) == 4


def test_seeds_of_one_attack_are_told_apart(run: Run) -> None:
    results = subjects([run])[0].attacked("classification")
    seeded = []
    for result in results[:1]:
        stage = msgspec.structs.replace(result.cell.attack, seed=7)
        seeded.append(msgspec.structs.replace(result, cell=msgspec.structs.replace(result.cell, stages=(stage,))))
    assert any("seed 7" in name for name in families([*results, *seeded]))
    assert {CE.push, MARGIN.push, MSE.push} == {r.cell.attack.push for r in results if r.cell.attack}
