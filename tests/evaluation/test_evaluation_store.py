"""The store: what is committed is whole, the same command continues, another one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from synthetic_run import CE, ENVIRONMENT, MSE, PLAIN, failed, gallery, judge, outcomes, result, write_run

from holdfast import disk
from holdfast.configs import BenchConfig
from holdfast.errors import ConflictError, DataError, TrustError
from holdfast.evaluation.adversarial import chosen, harm, lost_before
from holdfast.evaluation.store import Store, read, shows
from holdfast.records import Attack, Cell, Data, Judge, Model

CONFIG = BenchConfig(encoders=("a.pth",), attacks=(msgspec.structs.replace(CE, eps=2 / 255),))
CELL = Cell(
    data=Data(source="scenes", limit=12, digest_of_images="i1"),
    encoder=Model(spec="a.pth", name="a", digest_of_weights="w1" * 32),
    judge=judge("classification"),
)


def kept(folder: Path, cell: Cell = CELL) -> Store:
    store = Store(folder)
    store.open(CONFIG, cells=[cell], environment=ENVIRONMENT)
    held = outcomes(PLAIN, cell)
    store.put(result(cell, held), held)
    return store


def test_a_cell_comes_back_as_it_was_put(tmp_path: Path) -> None:
    store = kept(tmp_path / "r")
    held = outcomes(PLAIN, CELL)
    run = read(tmp_path / "r")
    assert store.has(CELL)
    assert run.results == [result(CELL, held)]
    assert run.config == CONFIG
    assert run.environment == ENVIRONMENT
    back = run.outcomes(CELL.id)
    assert set(back) == set(held)
    for name, values in held.items():
        assert back[name].dtype == values.dtype
        np.testing.assert_array_equal(back[name], values)


def test_the_json_is_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    held = outcomes(PLAIN, CELL)
    write = disk.write

    def dies_at_json(path: Path, fill: object) -> Path:
        if path.suffix == ".json":
            raise OSError("killed")
        return write(path, fill)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "write", dies_at_json)
    with pytest.raises(OSError, match="killed"):
        store.put(result(CELL, held), held)
    assert (tmp_path / "images" / f"{CELL.id}.npz").exists()
    assert not store.has(CELL)


def test_a_failed_cell_is_kept_and_tried_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "r")
    store.open(CONFIG)
    store.put(failed(CELL), {})
    assert not store.has(CELL)
    run = read(tmp_path / "r")
    assert [r.status for r in run.failed] == ["failed"]
    assert run.rows()[0]["reason"] == "RuntimeError: <boom> & gone"
    held = outcomes(PLAIN, CELL)
    store.put(result(CELL, held), held)
    assert store.has(CELL)
    assert read(tmp_path / "r").failed == []


def test_a_record_without_its_outcomes_is_not_done(tmp_path: Path) -> None:
    store = kept(tmp_path / "r")
    (tmp_path / "r" / "images" / f"{CELL.id}.npz").unlink()
    assert not store.has(CELL)
    with pytest.raises(DataError, match="missing"):
        read(tmp_path / "r").outcomes(CELL.id)


@pytest.mark.parametrize("change", [{"chunk": 8}, {"block": 32}, {"device": "cuda"}, {"shard": "1/4"}, {"out": "else"}])
def test_the_same_run_continues_whatever_its_speed(tmp_path: Path, change: dict[str, object]) -> None:
    store = kept(tmp_path / "r")
    store.open(msgspec.structs.replace(CONFIG, **change), cells=[CELL])
    assert store.has(CELL)
    assert read(tmp_path / "r").config == CONFIG


def test_another_eps_is_refused_in_the_words_of_the_caller(tmp_path: Path) -> None:
    store = kept(tmp_path / "b")
    asked = msgspec.structs.replace(CONFIG, attacks=(msgspec.structs.replace(CE, eps=4 / 255),))
    with pytest.raises(ConflictError) as caught:
        store.open(asked)
    folder = tmp_path / "b"
    assert str(caught.value) == (
        f"{folder} was made with eps 2/255; you ask 4/255. Choose another --out, or --replace."
    )


def test_every_differing_field_is_named(tmp_path: Path) -> None:
    store = kept(tmp_path / "b")
    with pytest.raises(ConflictError, match=r"limit 0 \(you ask 9\).*seed 0 \(you ask 3\)"):
        store.open(msgspec.structs.replace(CONFIG, limit=9, seed=3))


def test_replace_starts_anew_with_nothing_kept(tmp_path: Path) -> None:
    store = kept(tmp_path / "b")
    disk.write(tmp_path / "b" / "heads" / "h.safetensors", b"head")
    store.open(msgspec.structs.replace(CONFIG, limit=9), replace=True)
    assert not store.has(CELL)
    assert read(tmp_path / "b").results == []
    assert not (tmp_path / "b" / "heads").exists(), "features of the images as they were before"


def test_replace_with_the_same_config_continues(tmp_path: Path) -> None:
    store = kept(tmp_path / "b")
    store.open(CONFIG, replace=True, cells=[CELL])
    assert store.has(CELL)


def test_changed_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    store = kept(tmp_path / "b")
    other = msgspec.structs.replace(CELL, encoder=msgspec.structs.replace(CELL.encoder, digest_of_weights="w2" * 32))
    with pytest.raises(ConflictError, match="weights of a w1"):
        store.open(CONFIG, cells=[other])


def test_changed_images_are_refused(tmp_path: Path) -> None:
    store = kept(tmp_path / "b")
    other = msgspec.structs.replace(CELL, data=msgspec.structs.replace(CELL.data, digest_of_images="i2"))
    with pytest.raises(ConflictError, match="images i1; you ask i2"):
        store.open(CONFIG, cells=[other])


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    disk.write(tmp_path / "encoder.safetensors", b"weights")
    with pytest.raises(ConflictError, match=r"encoder\.safetensors"):
        Store(tmp_path).open(CONFIG)


@pytest.mark.parametrize("content", [b"", b'{"id": "half', b"[]", b'{"id": 3}'])
def test_half_a_record_is_named(tmp_path: Path, content: bytes) -> None:
    store = kept(tmp_path / "r")
    path = tmp_path / "r" / "cells" / f"{CELL.id}.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=CELL.id):
        read(tmp_path / "r")
    with pytest.raises(DataError, match=CELL.id):
        store.has(CELL)


def test_a_record_under_another_name_is_refused(tmp_path: Path) -> None:
    kept(tmp_path / "r")
    cells = tmp_path / "r" / "cells"
    (cells / f"{CELL.id}.json").rename(cells / "000000000000.json")
    with pytest.raises(DataError, match="000000000000"):
        read(tmp_path / "r")


def test_half_of_the_outcomes_is_named(tmp_path: Path) -> None:
    kept(tmp_path / "r")
    path = tmp_path / "r" / "images" / f"{CELL.id}.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=path.name):
        read(tmp_path / "r").outcomes(CELL.id)


def test_a_pickle_is_not_opened_and_nothing_unsafe_is_advised(tmp_path: Path) -> None:
    kept(tmp_path / "r")
    path = tmp_path / "r" / "images" / f"{CELL.id}.npz"
    for code in (lambda: np.savez(path, id=np.array([{"code": 1}], dtype=object)), lambda: path.write_bytes(b"code")):
        code()
        with pytest.raises(DataError, match=r"no archive of plain arrays.*Remove it and run the same bench") as caught:
            read(tmp_path / "r").outcomes(CELL.id)
        assert "allow_pickle" not in str(caught.value) and "unsafely" not in str(caught.value)


def test_a_broken_stream_inside_an_archive_is_named(tmp_path: Path) -> None:
    kept(tmp_path / "r")
    path = tmp_path / "r" / "images" / f"{CELL.id}.npz"
    whole = bytearray(path.read_bytes())
    whole[60:90] = b"\xff" * 30
    path.write_bytes(whole)
    with pytest.raises(DataError, match=f"{CELL.id}.npz is not whole"):
        read(tmp_path / "r").outcomes(CELL.id)


# -- galleries ---------------------------------------------------------------------------------------------------------


def under(attack: Attack, task: str = "classification") -> Cell:
    return msgspec.structs.replace(CELL, stages=(attack,), judge=judge(task))


def test_a_cell_whose_images_were_lost_is_not_done(tmp_path: Path) -> None:
    cell = under(CE)
    store = kept(tmp_path / "r", cell)
    assert not store.has(cell), "its outcomes say that images were to be kept"
    store.put_gallery(cell.id, gallery(cell, outcomes(PLAIN, cell), 8))
    assert store.has(cell)
    (tmp_path / "r" / "gallery" / f"{cell.id}.npz").unlink()
    assert not store.has(cell)


@pytest.mark.parametrize("cell", [under(MSE), under(CE, "embedding"), CELL])
def test_a_cell_that_keeps_no_images_is_done_without(tmp_path: Path, cell: Cell) -> None:
    assert kept(tmp_path / "r", cell).has(cell)


def test_a_cell_with_every_image_lost_before_is_done_without(tmp_path: Path) -> None:
    cell = under(CE)
    store = kept(tmp_path / "r", cell)
    held = outcomes(PLAIN, cell)
    lost = held | {"correct": np.zeros(12, dtype=bool), "attack_clean_score": np.full(12, 0.5)}
    store.put(result(cell, lost), lost)
    assert store.has(cell)
    lost["attack_clean_score"][7] = 0.0
    store.put(result(cell, lost), lost)
    assert not store.has(cell)


@pytest.mark.parametrize("lost", ["all", "some", "none"])
@pytest.mark.parametrize("way", ["away", "towards"])
@pytest.mark.parametrize("name", ["classification", "embedding", "knn", "segmentation", "depth", "other judge"])
def test_images_are_expected_where_some_are_chosen(name: str, way: str, lost: str) -> None:
    """The rule that reads no attack's code, against the one that chooses."""
    through = {"knn": "embedding", "other judge": "embedding"}.get(name, name)
    attack = Attack(through=through, aim=way, scored="knn" if name == "knn" else "drift")
    cell = Cell(
        data=CELL.data,
        stages=(attack,),
        encoder=CELL.encoder,
        judge=Judge(task="classification" if name == "other judge" else through, head="given"),
    )
    score = {"all": [1.0, 2.0], "some": [1.0, -1.0], "none": [0.0, -1.0]}[lost]
    held = {"id": np.array(["a", "b"]), "attack_clean_score": np.array(score), "attack_score": np.array([3.0, 3.0])}
    if way == "towards" and through == "classification":
        held |= {"clean_correct": np.array(score) <= 0, "attack_clean_score": np.array([-1.0, -1.0])}
    expected = bool(chosen(harm(cell, held), lost_before(cell, held))) and name != "other judge"
    assert shows(cell, held) == expected
    if name == "classification":
        assert expected == (lost != "all")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"margin": np.full(12, np.nan)}, "not finite"),
        ({"margin": np.array(0.0)}, "shape"),
        ({"margin": np.zeros(11)}, "shape"),
        ({"id": np.array([None] * 12, dtype=object)}, "pickle"),
    ],
)
def test_outcomes_that_cannot_be_trusted_are_not_kept(
    tmp_path: Path, change: dict[str, np.ndarray], match: str
) -> None:
    store = Store(tmp_path)
    held = outcomes(PLAIN, CELL)
    with pytest.raises(TrustError, match=match):
        store.put(result(CELL, held), held | change)
    assert not store.has(CELL)


def test_blocks_come_back_by_index_and_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for index in (10, 2):
        store.put_block("job", index, {"cell/correct": np.array([True, False]), "cost": np.array([1.0, index])})
    found = store.blocks("job")
    assert list(found) == [2, 10]
    assert found[10]["cost"].tolist() == [1.0, 10.0]
    assert found[2]["cell/correct"].dtype == np.bool_
    store.drop_blocks("job")
    assert store.blocks("job") == {}


def test_rows_are_flat_and_one_per_metric(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (PLAIN,), n=20, corruptions=("fog",), attacks=(CE,))
    rows = run.rows()
    assert len(rows) == sum(len(r.metrics) for r in run.results)
    assert len({tuple(row) for row in rows}) == 1
    attacked = next(row for row in rows if row["attack"] and row["metric"] == "accuracy")
    assert (attacked["push"], attacked["n"], attacked["condition"]) == ("ce", 10, "pgd-10 ce linf 0.5/255")
    assert json.dumps(rows)


def test_results_come_in_the_order_of_the_grid(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (PLAIN,), n=20, corruptions=("fog",), attacks=(CE,), tasks=("classification",))
    stages = [len(r.cell.stages) for r in run.results]
    assert stages[0] == 0
    assert [r.cell.corruption.severity for r in run.results if r.cell.corruption] == [1, 2, 3, 4, 5]
    eps = [r.cell.attack.eps for r in run.results if r.cell.attack]
    assert eps == sorted(eps) and len(eps) == 5


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.yaml"):
        read(tmp_path)
