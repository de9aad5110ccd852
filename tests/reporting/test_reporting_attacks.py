"""What the page says of attacks: norms side by side, AutoAttack, distances, flags, and what became of neighbours."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from parsed_page import Tree, parsed
from synthetic_run import CE, EPS, MSE, PLAIN, Made, outcomes, result, write_run

from holdfast.evaluation.curves import subjects
from holdfast.evaluation.flags import FLAGS
from holdfast.evaluation.store import Run, Store, read
from holdfast.records import Attack, Cell, Metric
from holdfast.reporting import attacks
from holdfast.reporting.page import report

AUTO = Attack(method="autoattack", push="", norm="linf", steps=20, eps=8 / 255)
FAB = Attack(method="fab", push="", norm="l2", steps=20, eps=0.0)


def more(run: Run, made: Made, attack: Attack, **held: np.ndarray) -> None:
    """Add the cell of one more attack, judged by what it goes through, with these outcomes beside the usual ones."""
    first = next(r.cell for r in run.results if r.cell.judge.task == attack.through and r.cell.attack is not None)
    cell = Cell(data=first.data, stages=(attack,), encoder=first.encoder, judge=first.judge)
    whole = {**outcomes(made, cell), **held}
    kept = result(cell, whole)
    if "kept" in held:
        extra = (Metric(name="neighbours_kept", value=0.5, n=30, low=0.4, high=0.6, interval="bootstrap 1000"),)
        kept = msgspec.structs.replace(kept, metrics=kept.metrics + extra)
    Store(run.folder).put(kept, whole)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One encoder under PGD in Linf and L1, AutoAttack of 20 steps, FAB for distances, embeddings in L1."""
    folder = tmp_path_factory.mktemp("attacks") / "bench"
    made = write_run(folder, (PLAIN,), n=60, corruptions=(), attacks=(CE, MSE))
    n = 30
    member = np.arange(n) % 4
    more(made, PLAIN, AUTO, attack_member=member)
    apart = np.linspace(0.1, 3, n)
    score = np.where(np.arange(n) < 25, 1.0, -1.0)
    more(made, PLAIN, FAB, attack_score=score, attack_norm=apart, attack_clean_score=np.full(n, -1.0))
    more(made, PLAIN, msgspec.structs.replace(CE, norm="l1", eps=12.0))
    share = np.linspace(0, 1, n)
    for eps in (6.0, 12.0):
        more(made, PLAIN, msgspec.structs.replace(MSE, norm="l1", eps=eps), kept=share, breakaway=share / 4)
    return read(folder)


@pytest.fixture(scope="module")
def tree(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return parsed(report([run], tmp_path_factory.mktemp("page")))


def test_norms_stand_side_by_side(run: Run, tree: Tree) -> None:
    seen = subjects([run])
    table = attacks.norms(seen, {"plain": 0})
    assert table is not None
    assert [cell.text for cell in table.rows[0]] == ["encoder", "Linf", "L2", "L1", "worst over norms"]
    assert [cell.text.split(" at ")[1] for cell in table.rows[1][1:4]] == ["8/255", "0.5", "12"]
    assert all("n = 30" in cell.small for cell in table.rows[1][1:])
    assert "Across norms" in tree.texts["accuracy"]


def test_one_norm_is_no_table_of_norms(synthetic: Run) -> None:
    seen = subjects([synthetic])
    assert attacks.tables(seen, {s.name: at for at, s in enumerate(seen)}) == []


def test_autoattack_is_shown_member_by_member_with_its_steps(tree: Tree) -> None:
    text = tree.texts["accuracy"]
    for head in ("APGD-CE", "+ APGD-T", "+ FAB-T", "+ Square"):
        assert head in text
    assert "plain at Linf 8/255: 20 steps instead of 100: not the standard version." in text


def test_every_member_of_autoattack_has_its_count(run: Run) -> None:
    table = attacks.autoattack(subjects([run]), {"plain": 0})
    assert table is not None
    clean, *left = [cell.text for cell in table.rows[1][2:]]
    # All that is right without an attack is lost at 8/255, member by member: 29 of 30.
    assert clean == "96.7 %" and left[-1].startswith("0.0 % ")
    assert sum(int(text.split("\u2212")[1].rstrip(")")) for text in left) == 29


def test_distances_have_a_median_and_count_who_was_never_fooled(run: Run, tree: Tree) -> None:
    table = attacks.distances(subjects([run]), {"plain": 0})
    assert table is not None
    _, name, norm, median, wrong, never = table.rows[1]
    # Thirty distances from 0.1 to 3 in equal steps of 0.1, the last five out of reach.
    assert (name.text, norm.text, median.text) == ("FAB-20", "L2", "1.55")
    assert (wrong.text, never.text) == ("0 of 30", "5 of 30 never fooled")
    assert "5 of 30 never fooled" in tree.texts["accuracy"]


def test_radii_of_l1_are_its_own(tree: Tree) -> None:
    for key in ("accuracy", "embedding"):
        assert "radius, L1" in tree.texts[key] and "12/255" not in tree.texts[key]
    assert "radius, L1, in /255" not in tree.texts["accuracy"]


def test_records_from_before_neighbours_were_counted_draw_no_complaint(tree: Tree) -> None:
    text = tree.texts["embedding"]
    assert "not recorded" not in text and "Breakaway risk" not in text
    assert "Not shown: no L2 attack on plain was judged by embedding." in text


def test_neighbours_have_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (PLAIN,), n=60, corruptions=(), attacks=(MSE,), tasks=("embedding",))
    store = Store(run.folder)
    for kept in run.results:
        held = dict(run.outcomes(kept.id))
        n = len(held["id"])
        share = np.full(n, 1.0 if kept.cell.attack is None else 1 - kept.cell.attack.eps / (2 * max(EPS)))
        store.put(kept, {**held, "kept": share, "breakaway": 1 - share})
    text = parsed(report([read(run.folder)], tmp_path / "out")).texts["embedding"]
    assert "Nearest neighbours kept" in text and "Breakaway risk" in text
    assert "50.0 % [50.0, 50.0], n = 30" in text


def test_flags_are_named_and_explained_failed_ones_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (Made("masked", 0.8, 3.0, masked=True),), n=60, corruptions=(), attacks=(CE,))
    page = report([run], tmp_path / "out")
    believable = parsed(page).texts["believable"]
    for flag in FLAGS.values():
        assert flag.id in believable and flag.name in believable and flag.threshold in believable
    numbers = believable[believable.index("The numbers behind") : believable.index("When each flag")]
    first = re.findall(r"(?<=masked)(failed|passed|not measured)", numbers)
    assert len(first) == len(FLAGS) and first[0] == "failed" and "passed" in first
    assert first == sorted(first, key=["failed", "passed", "not measured"].index)
    whole = page.read_text()
    box = whole[whole.index('class="alarm"') : whole.index('id="summary"')]
    assert "zero-gradients" in box
