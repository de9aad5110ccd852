"""Corrupted cells read as mean corruption errors: matched by image, absent with a reason, marked where they deviate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from synthetic_run import HARDENED, PLAIN, failed, write_run

from holdfast.evaluation.corruption_errors import CorruptionErrors
from holdfast.evaluation.curves import OUTCOMES, Subject, corruption_errors, mean_over_corruptions, profiles, subjects
from holdfast.evaluation.published import ALEXNET_ERRORS, CORRUPTIONS, FAMILIES, MCE_CORRUPTIONS
from holdfast.evaluation.store import Run
from holdfast.evaluation.summary import summary, table
from holdfast.records import Corruption, Result

OFFICIAL = {"storage": "jpeg85", "textures": "published", "mode": "reference"}
N = 40


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All nineteen corruptions of two encoders on ImageNet, made as the official set is."""
    run = write_run(
        tmp_path_factory.mktemp("imagenet") / "run", (PLAIN, HARDENED), n=N, corruptions=CORRUPTIONS, attacks=(),
        tasks=("classification",), source="imagenet", variant="imagenet224",
    )  # fmt: skip
    return altered(run, stage=OFFICIAL)


def altered(run: Run, *, stage: dict[str, Any] | None = None, data: dict[str, Any] | None = None) -> Run:
    """The run with other fields in its corruptions or its images; outcomes stay."""
    results = []
    for result in run.results:
        cell = result.cell
        if stage and cell.corruption:
            cell = msgspec.structs.replace(cell, stages=(msgspec.structs.replace(cell.corruption, **stage),))
        if data:
            cell = msgspec.structs.replace(cell, data=msgspec.structs.replace(cell.data, **data))
        results.append(msgspec.structs.replace(result, cell=cell))
    return with_results(run, results)


def with_results(run: Run, results: list[Result], held: dict[str, Any] | None = None) -> Run:
    return Run(run.folder, run.record, results, {r.id: run.outcomes(r.id) for r in run.results} | (held or {}))


def of(run: Run) -> CorruptionErrors:
    return corruption_errors(subjects([run])[0])[1]


def stage_of(result: Result) -> Corruption:
    assert result.cell.corruption is not None
    return result.cell.corruption


def without(run: Run, *names: str) -> list[Result]:
    return [r for r in run.results if not r.cell.corruption or r.cell.corruption.name not in names]


def test_the_numbers_are_those_of_the_outcomes(imagenet: Run) -> None:
    subject = subjects([imagenet])[0]
    ids, found = corruption_errors(subject)
    rate = {
        (stage_of(r).name, stage_of(r).severity): 1 - imagenet.outcomes(r.id)["correct"].mean()
        for r in subject.corrupted("classification")
    }
    ces = [sum(rate[c, s] for s in range(1, 6)) / sum(ALEXNET_ERRORS[c]) for c in MCE_CORRUPTIONS]
    assert found.mce.value == pytest.approx(np.mean(ces))
    assert found.metrics["mean_error_19"].value == pytest.approx(np.mean(list(rate.values())))
    assert len(ids) == found.mce.n == N
    assert all(m.value is not None for m in found.metrics.values())
    assert corruption_errors(subject)[1] is found


def test_images_are_matched_by_id_and_not_by_place(imagenet: Run) -> None:
    turned = {
        r.id: {k: v[::-1] for k, v in imagenet.outcomes(r.id).items()}
        for at, r in enumerate(imagenet.results)
        if at % 2
    }
    before, after = (
        corruption_errors(subjects([imagenet])[0]),
        corruption_errors(subjects([with_results(imagenet, imagenet.results, turned)])[0]),
    )
    order = np.argsort(after[0])
    assert after[1].values[order] == pytest.approx(before[1].values[np.argsort(before[0])])


def test_the_summary_has_mean_errors_and_mce(imagenet: Run, tmp_path: Path) -> None:
    corrupted = subjects([imagenet])[1].corrupted("classification")
    right = {r.id: imagenet.outcomes(r.id) | {"correct": np.ones(N, bool)} for r in corrupted}
    columns = {c.key: c for c in summary(subjects([with_results(imagenet, imagenet.results, right)]))}
    assert columns["mean15"].best == columns["mean19"].best == columns["mce"].best == 1
    gap = columns["mce"].against_first[1]
    assert gap is not None and gap.n == N and gap.clear
    assert gap.value == pytest.approx(-(of(imagenet).mce.value or 0))
    assert columns["corrupted"].cells[0].metric.value == pytest.approx(
        1 - (columns["mean19"].cells[0].metric.value or 0)
    )
    assert [c.title for c in columns.values()][1:5] == [
        "corrupted accuracy", "mean error (15)", "mean error (19)", "mCE",
    ]  # fmt: skip
    assert table(imagenet).row_count == len(columns)
    few = write_run(tmp_path / "few", (PLAIN,), n=10, corruptions=("fog",), attacks=(), tasks=("classification",))
    assert [c.key for c in summary(subjects([few]))] == ["clean", "corrupted"]


@pytest.mark.parametrize(
    ("source", "variant", "classes", "said"),
    [
        ("cifar10", "cifar32", (), "CIFAR-10-C has no AlexNet baseline; the mean error over 15 is what AugMix"),
        ("cifar100", "cifar32", (), "CIFAR-100-C has no AlexNet baseline"),
        ("folder", "imagenet224", (), "1000 classes of ImageNet; these images are folder"),
        ("imagenet", "imagenet224", ("cat", "dog"), "a subset of 2 classes"),
        ("imagenet", "inception299", (), "these are inception299"),
    ],
)
def test_mce_is_refused_for_other_images(
    imagenet: Run, source: str, variant: str, classes: tuple[str, ...], said: str
) -> None:
    found = of(altered(imagenet, stage={"variant": variant}, data={"source": source, "classes": classes}))
    absent = (found.mce, found.relative, *found.each.values(), *found.relative_each.values())
    assert all(m.value is None and said in m.reason for m in absent)
    assert found.metrics["mean_error_15"].value is not None and found.metrics["mean_error_19"].value is not None


def test_the_official_set_itself_is_imagenet(imagenet: Run) -> None:
    assert of(altered(imagenet, data={"source": "imagenet_c"})).mce.value is not None


def test_one_strange_cell_is_enough_to_refuse(imagenet: Run) -> None:
    results = list(imagenet.results)
    last = results[-1]
    strange = msgspec.structs.replace(last.cell, data=msgspec.structs.replace(last.cell.data, source="folder"))
    results[-1] = msgspec.structs.replace(last, cell=strange)
    assert corruption_errors(subjects([with_results(imagenet, results)])[1])[1].mce.value is None


def test_what_is_made_as_the_official_set_needs_no_remark(imagenet: Run) -> None:
    assert of(imagenet).remark == ""
    ours = of(altered(imagenet, stage={"root": "folder", "textures": "drawn", "storage": "none"}))
    assert "frost has drawn textures" in ours.remark, "a copy of our own is what corrupt.yaml says"
    lossless = altered(imagenet, stage={"storage": "none", "variant": "cifar32"}, data={"source": "cifar10"})
    assert of(lossless).remark == ""


@pytest.mark.parametrize(
    ("stage", "data", "said"),
    [
        ({"textures": "drawn"}, {}, "frost has drawn textures, not the published ones"),
        ({"storage": "none"}, {}, "all corruptions not stored as JPEG of quality 85 (storage none)"),
        ({"mode": "fast"}, {}, "all corruptions in fast arithmetic"),
        ({"variant": "cifar32"}, {"source": "cifar10"}, "stored as JPEG of quality 85, which the official files"),
        ({}, {"size": 192}, "images of 192 pixels"),
    ],
)
def test_a_deviation_is_marked_and_the_number_is_given(
    imagenet: Run, stage: dict[str, Any], data: dict[str, Any], said: str
) -> None:
    found = of(altered(imagenet, stage=stage, data=data))
    assert said in found.remark and ";" not in found.remark
    assert (found.mce.value is not None) == ("variant" not in stage)


def test_a_remark_names_the_corruptions_that_it_is_about(imagenet: Run) -> None:
    results = []
    for result in imagenet.results:
        stage = result.cell.corruption
        if stage and stage.name in ("spatter", "fog"):
            changed = msgspec.structs.replace(result.cell, stages=(msgspec.structs.replace(stage, storage="none"),))
            result = msgspec.structs.replace(result, cell=changed)
        results.append(result)
    assert of(with_results(imagenet, results)).remark.startswith("fog, spatter not stored as JPEG")


def test_a_failed_corruption_says_its_error(imagenet: Run) -> None:
    results = [
        msgspec.structs.replace(failed(r.cell), id=r.id, error="Traceback\nholdfast.errors.ExtraError: no OpenCV here.")
        if r.cell.corruption and r.cell.corruption.name == "spatter"
        else r
        for r in imagenet.results
    ]
    found = of(with_results(imagenet, results))
    assert found.metrics["mean_error_19"].reason.endswith("1 is missing: spatter (ExtraError: no OpenCV here.)")
    assert found.families["extra"].value is None and "no OpenCV" in found.families["extra"].reason
    assert found.mce.value is not None and found.metrics["mean_error_15"].value is not None


def test_a_failure_of_another_encoder_is_not_mine(imagenet: Run) -> None:
    results = [failed(r.cell) if r.cell.encoder.name == "plain" and r.cell.corruption else r for r in imagenet.results]
    plain, hardened = subjects([with_results(imagenet, results)])
    assert "RuntimeError: <boom>" in corruption_errors(plain)[1].mce.reason
    assert corruption_errors(plain)[1].plain.reason == "no corruption was measured"
    assert corruption_errors(hardened)[1].mce.value is not None


def test_a_missing_corruption_or_severity_is_named(imagenet: Run) -> None:
    results = [r for r in without(imagenet, "saturate") if not r.cell.corruption or r.cell.corruption.severity != 2]
    found = of(with_results(imagenet, results))
    assert "gaussian_noise at severity 2 (not measured)" in found.mce.reason
    assert found.severities(15)[3].value is not None and found.severities(19)[3].reason.endswith(
        "1 is missing: saturate (not measured)"
    )


def test_without_clean_images_the_mce_stays(imagenet: Run) -> None:
    found = of(with_results(imagenet, [r for r in imagenet.results if r.cell.stages]))
    assert found.mce.value == of(imagenet).mce.value
    assert found.relative.reason == "no clean image was judged by classification"


def test_clean_images_that_are_others_are_not_compared(imagenet: Run) -> None:
    clean = [r for r in imagenet.results if not r.cell.stages]
    other = {r.id: imagenet.outcomes(r.id) | {"id": np.array([f"other/{at}" for at in range(N)])} for r in clean}
    found = of(with_results(imagenet, imagenet.results, other))
    assert found.mce.value is not None and "no image in common" in found.relative.reason
    some = {r.id: {k: v[:10] for k, v in imagenet.outcomes(r.id).items()} for r in clean}
    shared = of(with_results(imagenet, imagenet.results, some))
    assert shared.relative.n == shared.mce.n == 10


def test_corrupted_cells_of_different_images_have_no_mean(imagenet: Run) -> None:
    last = imagenet.results[-1]
    other = {last.id: imagenet.outcomes(last.id) | {"id": np.array([f"other/{at}" for at in range(N)])}}
    found = corruption_errors(subjects([with_results(imagenet, imagenet.results, other)])[1])[1]
    assert "no image in common" in found.mce.reason and found.plain.value is None


def _again(run: Run, name: str, **fields: Any) -> Run:
    """The run with further cells of one corruption of its first encoder: every image wrong."""
    results, held = list(run.results), {}
    for result in subjects([run])[0].corrupted("classification"):
        if stage_of(result).name == name:
            twin = msgspec.structs.replace(result.cell, stages=(msgspec.structs.replace(stage_of(result), **fields),))
            results.append(msgspec.structs.replace(result, id=twin.id, cell=twin))
            held[twin.id] = run.outcomes(result.id) | {"correct": np.zeros(N, bool)}
    return with_results(run, results, held)


def test_an_official_set_by_itself_is_matched_across_its_folders(imagenet: Run) -> None:
    """Read without its clean images, every condition is a split of its own, and ids begin with it."""
    results, held = [], {}
    for result in imagenet.results:
        if result.cell.corruption:
            split = f"{stage_of(result).name}/{stage_of(result).severity}"
            data = msgspec.structs.replace(result.cell.data, source="imagenet_c", split=split, root="c")
            stage = msgspec.structs.replace(stage_of(result), root="c")
            cell = msgspec.structs.replace(result.cell, data=data, stages=(stage,))
            results.append(msgspec.structs.replace(result, cell=cell))
            ids = np.array([f"{split}/{name}" for name in imagenet.outcomes(result.id)["id"]])
            held[result.id] = imagenet.outcomes(result.id) | {"id": ids}
    alone = with_results(imagenet, results, held)
    assert of(alone).mce == of(imagenet).mce
    assert of(alone).relative.value is None and of(alone).remark == ""
    corrupted = next(c for c in summary(subjects([alone])) if c.key == "corrupted")
    assert corrupted.cells[0].metric.n == N and corrupted.against_first[1] is not None


def test_seeds_are_averaged_and_ways_are_not(imagenet: Run) -> None:
    once = of(imagenet).each["fog"].value
    seeds = of(_again(imagenet, "fog", seed=1))
    assert once is not None and seeds.each["fog"].value == pytest.approx((once + 5 / sum(ALEXNET_ERRORS["fog"])) / 2)
    two = of(_again(imagenet, "fog", storage="none"))
    assert two.each["fog"].value is None and "fog (measured in 2 ways" in two.mce.reason
    assert two.families["noise"].value is not None
    profile = profiles(subjects([_again(imagenet, "fog", seed=1)])[0], OUTCOMES["correct"])["fog"]
    single = profiles(subjects([imagenet])[0], OUTCOMES["correct"])["fog"]
    assert profile.severities[3].value == pytest.approx((single.severities[3].value or 0) / 2)


def test_severity_0_is_no_corruption(imagenet: Run) -> None:
    again = _again(imagenet, "fog", severity=0)
    subject: Subject = subjects([again])[0]
    assert of(again).mce.value == of(imagenet).mce.value
    assert (
        profiles(subject, OUTCOMES["correct"])["fog"].mean
        == profiles(subjects([imagenet])[0], OUTCOMES["correct"])["fog"].mean
    )
    assert mean_over_corruptions(subject, OUTCOMES["correct"])[1].mean() == pytest.approx(
        mean_over_corruptions(subjects([imagenet])[0], OUTCOMES["correct"])[1].mean()
    )


def test_profiles_are_in_the_published_order(imagenet: Run) -> None:
    found = profiles(subjects([imagenet])[0], OUTCOMES["correct"])
    assert tuple(found) == CORRUPTIONS
    assert {name: p.family for name, p in found.items() if p.family == "extra"} == dict.fromkeys(
        FAMILIES["extra"], "extra"
    )


def test_nothing_corrupted_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (PLAIN,), n=10, corruptions=(), attacks=(), tasks=("classification",))
    ids, found = corruption_errors(subjects([run])[0])
    assert len(ids) == 0 and found.mce.reason == "no corruption was judged by classification"
