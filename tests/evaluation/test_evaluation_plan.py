"""Grids: suites written out, cells counted, doubles and contradictions refused before anything is measured."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.configs import BenchConfig
from holdfast.errors import ConfigError
from holdfast.evaluation.identity import RunRecord, differences
from holdfast.evaluation.plan import ENCODERS_PER_JOB, Subject, cells, jobs, settled
from holdfast.evaluation.suites import SUITES
from holdfast.records import Attack, Data, Model
from holdfast.tasks.segmentation import ENSEMBLE


def subject(number: int = 0) -> Subject:
    shown = Data(source="scenes", limit=40, digest_of_images="a")
    attacked = msgspec.structs.replace(shown, limit=8, digest_of_images="b")
    fit = msgspec.structs.replace(shown, split="train", digest_of_images="c")
    return Subject(Model(spec=f"e{number}", digest_of_weights=str(number)), shown, attacked, fit, own_head=False)


def config(**fields: object) -> BenchConfig:
    return settled(BenchConfig(**{"encoders": ("e",), "variant": "cifar32", **fields}))


def test_the_grid_is_what_the_suite_says() -> None:
    asked = config()
    grid = cells(asked, [subject()])
    usual = [a for a in SUITES["quick"].attacks if a.through in ("classification", "embedding")]
    attacks = [a for a in usual if a.level != "tokens"]  # that one is for dense heads
    conditions = 1 + 15 * 5 + len(attacks)
    assert len(grid) == 2 * conditions == len({cell.id for cell in grid})
    assert {cell.data.limit for cell in grid if cell.attack} == {8}


def test_jobs_make_pixels_once() -> None:
    asked = config(corruptions=("fog",), severities=(1,), eps=(1 / 255,), steps=1)
    many = [subject(i) for i in range(ENCODERS_PER_JOB + 1)]
    grid = cells(asked, many)
    made = jobs(grid)
    assert sorted(cell.id for job in made for cell in job.cells) == sorted(cell.id for cell in grid)
    for job in made:
        encoders = {cell.encoder.spec for cell in job.cells}
        assert len(encoders) == 1 if job.cells[0].attack else len(encoders) <= ENCODERS_PER_JOB
    assert len({job.key for job in made}) == len(made)
    parts = [jobs(grid, shard=f"{i}/3") for i in (1, 2, 3)]
    assert sorted(job.key for part in parts for job in part) == sorted(job.key for job in made)


def test_what_is_named_twice_is_measured_once() -> None:
    asked = config(
        corruptions=("fog", "fog"), severities=(1, 1), eps=(1 / 255, 1 / 255), tasks=("embedding", "embedding"), steps=2
    )
    grid = cells(asked, [subject()])
    assert len(grid) == len({cell.id for cell in grid}) == 3
    same = config(attacks=(Attack(steps=5), Attack(steps=7)), steps=3)
    assert len(same.attacks) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"suite": "qick"}, 'Perhaps you meant "quick"'),
        ({"corruptions": ("fogg",)}, 'Perhaps you meant "fog"'),
        ({"severities": (0,)}, "Severities are 1 to 5"),
        ({"eps": (8.0,)}, "Did you mean 8/255"),
        ({"eps": (0.0,)}, "attack of radius 0.*fab finds the nearest"),
        ({"steps": -1}, "at least 1"),
        ({"norm": "l2"}, "Add --norm l2 --eps"),
        ({"tasks": ("embedding",), "attacks": (Attack(),)}, "Add it: --tasks embedding classification"),
        ({"attacks": (Attack(through="embedding", push="mse", start="zero"),)}, "exactly zero"),
        ({"attacks": (Attack(method="pdg"),)}, 'Perhaps you meant "pgd"'),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((("ce", 1), ("margin", 2)), (("ce", 2), ("margin", 1))),
        ((("ce", 0.031 * 255),), (("ce", 0.0310001 * 255),)),
    ],
)
def test_two_grids_never_share_a_folder(one: tuple, other: tuple) -> None:
    before, after = (
        RunRecord(config=config(attacks=tuple(Attack(push=push, eps=eps / 255) for push, eps in attacks)))
        for attacks in (one, other)
    )
    assert differences(before, after)
    assert not differences(before, before)


def test_an_ensemble_by_name_is_all_of_its_members() -> None:
    asked = config(methods=("sea",), tasks=("segmentation",), segmentation_heads=("h",), eps=(1 / 255,))
    assert [(a.method, a.push, a.steps) for a in asked.attacks] == [("sea", push, 300) for push in ENSEMBLE]
