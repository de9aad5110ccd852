"""Segmentation and depth through the bench: records, curves, the worst case, the summary, galleries, refusals."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import holdfast
from holdfast.corruptions.table import moves
from holdfast.data.scenes import CLASSES
from holdfast.errors import CellsFailed, ConfigError, DataError, TrustError
from holdfast.evaluation.curves import Subject, subjects
from holdfast.evaluation.dense_curves import curve, joint, per_class
from holdfast.evaluation.measuring import NOT_THERE, measured
from holdfast.evaluation.store import Run
from holdfast.evaluation.summary import summary
from holdfast.models.checkpoint import load
from holdfast.models.dense_files import read_dense_head, save_head
from holdfast.models.dense_heads import build_head, spec_for
from holdfast.tasks.segmentation import MEASURES, iou_measures

WEIGHTS = Path(__file__).parents[1] / "golden" / "scenes_resnet8.safetensors"
PARTS = ("background", *CLASSES)
N, FEW = 20, 12
ATTACK = {"stage": "attack", "through": "segmentation", "push": "ce", "steps": 2}


def heads(folder: Path) -> dict[str, str]:
    """A random head of each task: answers are bad, and that is all the same here."""
    encoder = load(str(WEIGHTS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = {
            "segmentation": build_head(spec_for(encoder, "segmentation", outputs=len(PARTS))),
            "depth": build_head(spec_for(encoder, "depth", outputs=32)),
        }
    save_head(found["segmentation"], folder / "segmentation", parts=PARTS, sizes=tuple(range(1, len(PARTS) + 1)))
    save_head(found["depth"], folder / "depth")
    return {task: str(folder / task) for task in found}


def bench(folder: Path, **changed: object) -> Run:
    given = heads(folder)
    fields: dict[str, object] = {
        "data": "scenes",
        "limit": N,
        "attack_limit": FEW,
        "fit_limit": 40,
        "chunk": 16,
        "threads": 1,
        "corruptions": ["fog"],
        "severities": [3],
        "variant": "cifar32",
        "segmentation_heads": [given["segmentation"]],
        "depth_heads": [given["depth"]],
        "tasks": ["embedding", "segmentation", "depth"],
        "attacks": [
            {"stage": "attack", "through": "segmentation", "push": "ce", "steps": 3},
            {"stage": "attack", "through": "segmentation", "method": "sea", "push": "js", "steps": 5},
            {"stage": "attack", "through": "depth", "push": "l2", "steps": 3},
            {"stage": "attack", "through": "embedding", "push": "mse", "steps": 3},
        ],
        "eps": ["1/255", "4/255"],
        "out": str(folder / "run"),
    }
    return holdfast.bench(str(WEIGHTS), **{**fields, **changed})  # type: ignore[arg-type,return-value]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return bench(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def subject(run: Run) -> Subject:
    (only,) = subjects([run])
    return only


def test_every_task_judges_every_condition(run: Run) -> None:
    """Clean, one corruption, four attacks at two radii; three judges each, transfers between heads among them."""
    assert not run.failed and len(run.results) == 3 * (1 + 1 + 4 * 2)


def test_a_record_is_the_arithmetic_of_its_counts(run: Run) -> None:
    for result in run.results:
        if result.cell.judge.task != "segmentation":
            continue
        held = run.outcomes(result.id)
        counts = held["counts"].sum(0)
        inter, guess, true = counts.T.astype(float)
        union = guess + true - inter
        known = union > 0
        assert result.metric("miou").value == pytest.approx((inter[known] / union[known]).mean())
        assert result.metric("pixel_accuracy").value == pytest.approx(inter.sum() / true.sum())
        labelled = true > 0
        assert result.metric("mean_class_recall").value == pytest.approx((inter[labelled] / true[labelled]).mean())
        assert (counts[:, 2].sum() + held["ignored"].sum()) == len(held["id"]) * 32 * 32
        metric = result.metric("miou")
        assert metric.low <= metric.value <= metric.high and metric.interval.startswith("bootstrap")


def test_depth_is_given_in_both_forms(run: Run) -> None:
    clean = next(r for r in run.results if r.cell.judge.task == "depth" and not r.cell.stages)
    held = run.outcomes(clean.id)
    assert clean.metric("rmse").value == pytest.approx(float(held["rmse"].mean()), rel=1e-5)
    assert clean.metric("rmse_pooled").value >= clean.metric("rmse").value - 1e-6
    assert {"delta1", "silog", "abs_rel_scaled", "rmse_pooled_scaled"} <= {m.name for m in clean.metrics}


@pytest.mark.parametrize(("task", "metric", "sign"), [("segmentation", "miou", 1), ("depth", "rmse", -1)])
def test_the_worst_case_is_never_weaker_than_a_member_or_a_smaller_radius(
    subject: Subject, task: str, metric: str, sign: int
) -> None:
    drawn = curve(subject, task, metric, "linf")
    worst = [sign * p.worst.value for p in drawn.points]
    assert not drawn.reason and len(worst) == 3
    assert all(later <= before + 1e-9 for before, later in itertools.pairwise(worst))
    for r in subject.attacked(task, "linf"):
        at = [p.eps for p in drawn.points].index(r.cell.attack.eps)
        assert worst[at] <= sign * r.metric(metric).value + 1e-9
    own = curve(subject, task, metric, "linf", head=task)
    assert sign * own.points[-1].worst.value < sign * own.points[0].worst.value, "the attack does nothing"


def test_the_joint_picture_has_every_head(subject: Subject) -> None:
    conditions = [line.condition for line in joint(subject, "segmentation", ("miou",))]
    assert conditions[:2] == ["clean", "fog, severities pooled"]
    for head in ("embedding", "segmentation", "depth"):
        assert f"through {head}, Linf 4/255" in conditions


def test_classes_that_never_occur_are_absent_with_a_reason() -> None:
    counts = np.zeros((3, 2, 3), dtype=np.int64)
    counts[:, 0] = [[3, 4, 3], [2, 2, 3], [1, 2, 1]]
    miou, *_ = measured(MEASURES, {"counts": counts})
    each = measured(iou_measures(("sky", "boat")), {"counts": counts})
    assert each[0].value == pytest.approx(6 / (8 + 7 - 6)) == miou.value
    assert each[1].value is None and each[1].reason == NOT_THERE


def test_the_page_and_the_summary_say_it(run: Run, subject: Subject, tmp_path: Path) -> None:
    titles = [column.title for column in summary([subject])]
    assert {"clean mIoU", "worst-case mIoU at 4/255", "clean depth RMSE", "worst-case depth RMSE at 1/255"} <= {*titles}
    page = Path(holdfast.report(run, out=str(tmp_path))).read_text()
    for text in ("Segmentation under attack", "Depth under attack", "IoU class by class", "answer, attacked"):
        assert text in page, text
    assert {"background", "star"} <= set(per_class(subject))


def test_a_gallery_holds_what_the_head_answered(run: Run) -> None:
    direct = [r for r in run.results if r.cell.attack and r.cell.attack.through == r.cell.judge.task == "segmentation"]
    for result in direct:
        gallery = run.gallery(result.id)
        held = run.outcomes(result.id)
        place = {name: at for at, name in enumerate(held["id"].tolist())}
        for at, name in enumerate(gallery["id"].tolist()):
            wrong = (gallery["answer"][at] != gallery["truth"][at]).mean()
            assert wrong == pytest.approx(float(held["wrong"][place[name]]), abs=1e-6)
        assert gallery["parts"].tolist() == list(PARTS)


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    given = heads(tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)head of depth.*--depth-heads"):
        bench(tmp_path, segmentation_heads=[given["depth"]])
    with pytest.raises(ConfigError, match=r"(?s)2 heads of depth for 1 encoders"):
        bench(tmp_path, depth_heads=[given["depth"]] * 2)
    with pytest.raises(ConfigError, match=r"(?s)no head was given.*holdfast probe .*--task segmentation"):
        bench(tmp_path, segmentation_heads=[])
    with pytest.raises(ConfigError, match=r"(?s)--depth-heads were given.*--tasks depth"):
        bench(tmp_path, tasks=["segmentation"])
    two = build_head(spec_for(load(str(WEIGHTS)), "segmentation", outputs=2))
    save_head(two, tmp_path / "two", parts=("a", "b"))
    with pytest.raises(ConfigError, match="answers for 2 classes"):
        bench(tmp_path, segmentation_heads=[str(tmp_path / "two")])


def test_images_without_masks_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "imgs" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(np.full((32, 32, 3), 40 * i + 5, np.uint8)).save(folder / f"{i}.png")
    with pytest.raises(DataError, match="has no masks"):
        given = {"depth_heads": [], "attacks": [], "methods": ["pgd"], "tasks": ["segmentation"]}
        bench(tmp_path, data=str(tmp_path / "imgs"), **given)


def test_kept_images_are_judged_anew(run: Run) -> None:
    """From disk, by other arithmetic; and a truth that was changed is found."""
    said = "\n".join(holdfast.verify(str(run.folder)))
    assert "everything about them agrees" in said and "not judged" not in said
    direct = next(r for r in run.results if r.cell.attack and r.cell.attack.through == r.cell.judge.task == "depth")
    path = run.folder / "images" / f"{direct.id}.npz"
    held = dict(np.load(path))
    before = path.read_bytes()
    kept = run.gallery(direct.id)["id"].tolist()
    held["rmse"][held["id"].tolist().index(kept[0])] += 0.1
    np.savez(path, **held)
    try:
        with pytest.raises(TrustError):
            holdfast.verify(str(run.folder))
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("window", "stride", "crop"), [(24, 8, "eigen"), (20, 0, "garg"), (40, 0, "none"), (0, 0, "eigen_kitti")]
)
def test_answers_through_windows_and_in_crops_are_judged_anew(
    window: int, stride: int, crop: str, tmp_path: Path
) -> None:
    """As they were judged: by a loop over windows of the verifier's own."""
    attacks = [
        {"stage": "attack", "through": t, "push": p, "steps": 2} for t, p in (("segmentation", "ce"), ("depth", "l2"))
    ]
    more = {"window": window, "stride": stride, "depth_crop": crop, "attacks": attacks, "eps": ["4/255"]}
    run = bench(tmp_path, tasks=["segmentation", "depth"], corruptions=["none"], variant="", **more)
    foreign = {r.cell.judge.task for r in run.results if "compared with no published number" in " ".join(r.warnings)}
    assert foreign == ({"depth"} if crop != "none" else set()), "scenes are square"
    said = "\n".join(holdfast.verify(str(run.folder)))
    assert "12 of 24 adversarial images of 2 cells judged anew" in said and "not judged" not in said, said


def test_memory_is_no_part_of_a_number(tmp_path: Path) -> None:
    """Recomputed windows are the same digits, and the same cells: a run may go on with them."""
    attack = {"stage": "attack", "through": "segmentation", "push": "ce", "steps": 2}
    more = {
        "window": 24,
        "stride": 8,
        "attacks": [attack],
        "eps": ["4/255"],
        "tasks": ["segmentation"],
        "depth_heads": [],
    }
    runs = [
        bench(tmp_path, corruptions=["none"], variant="", recompute=again, out=str(tmp_path / str(again)), **more)
        for again in (False, True)
    ]
    assert [r.id for r in runs[0].results] == [r.id for r in runs[1].results]
    for result in runs[0].results:
        kept, again = (run.outcomes(result.id) for run in runs)
        assert all(np.array_equal(kept[name], again[name]) for name in kept)
    bench(tmp_path, corruptions=["none"], variant="", recompute=True, out=str(tmp_path / "False"), **more)


def test_what_displaces_the_image_is_said_in_the_record_and_on_the_page(tmp_path: Path) -> None:
    more = {"corruptions": ["elastic_transform", "motion_blur", "brightness"], "attacks": []}
    run = bench(tmp_path, tasks=["embedding", "segmentation"], depth_heads=[], eps=["4/255"], **more)
    said = {(r.cell.corruption.name, r.cell.judge.task): " ".join(r.warnings) for r in run.results if r.cell.corruption}
    assert all("masks and depth stay" in said[name, "segmentation"] for name in ("elastic_transform", "motion_blur"))
    assert "masks and depth stay" not in said["elastic_transform", "embedding"] + said["brightness", "segmentation"]
    page = holdfast.report(run.folder).read_text()
    assert "elastic_transform, severities pooled \u2020" in page and "brightness, severities pooled \u2020" not in page


def test_what_a_folder_calls_by_a_name_of_its_own_is_not_known_to_stay_in_place() -> None:
    assert moves("brightness") is False and moves("elastic_transform") is True and moves("plasma_noise") is None


def test_balanced_is_refused_where_the_head_does_not_say_what_it_was_fitted_on(tmp_path: Path) -> None:
    """Equal weights with other sizes are another head: the records of one are never taken for those of the other."""
    fields = {"tasks": ["segmentation"], "depth_heads": [], "corruptions": ["none"], "eps": ["4/255"], "variant": ""}
    attack = {**ATTACK, "push": "balanced"}
    first = bench(tmp_path, **fields, attacks=[attack])
    head = read_dense_head(tmp_path / "segmentation").head
    found = [[r for r in first.results if r.cell.attack]]
    even = (5,) * len(PARTS)
    save_head(head, tmp_path / "even", parts=PARTS, sizes=even)
    again = bench(
        tmp_path, **fields, attacks=[attack], segmentation_heads=[str(tmp_path / "even")], out=str(tmp_path / "o")
    )
    found += [[r for r in again.results if r.cell.attack]]
    (one,), (other,) = found
    assert one.id != other.id and one.cell.judge.digest_of_head != other.cell.judge.digest_of_head
    counts = [run.outcomes(r.id)["counts"] for run, r in ((first, one), (again, other))]
    assert one.cell.attack == other.cell.attack and not np.array_equal(*counts), "the weights of classes do nothing"
    save_head(head, tmp_path / "silent", parts=PARTS)
    silent = [str(tmp_path / "silent")]
    with pytest.raises(CellsFailed):
        bench(tmp_path, **fields, attacks=[attack], segmentation_heads=silent, out=str(tmp_path / "s"))
    said = [path.read_text() for path in (tmp_path / "s").rglob("*.json")]
    assert any("images that the head was fitted on" in text and "take masked" in text for text in said)
