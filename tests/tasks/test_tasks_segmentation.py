"""Segmentation as a task: counts and metrics by hand and beside torchmetrics, refusals, and attacks through a head."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast import draws, records
from holdfast.attacks.balls import Linf
from holdfast.attacks.cascade import cascade
from holdfast.attacks.executor import Found, Stage, pursue
from holdfast.attacks.methods import build
from holdfast.attacks.pgd import PGD
from holdfast.data.batches import IGNORE, to_pixels
from holdfast.data.scenes import Scenes
from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.dense_worst import worst_miou, worst_pixel_accuracy
from holdfast.evaluation.measuring import measured
from holdfast.models.dense_heads import build_head, spec_for
from holdfast.models.encoder import Encoder
from holdfast.records import Data
from holdfast.tasks.segmentation import (
    ENSEMBLE,
    MEASURES,
    Segmentation,
    counts,
    iou,
    iou_measures,
    mean_class_recall,
    mean_iou,
    pixel_accuracy,
)
from holdfast.tasks.segmentation_pushes import LOSSES
from holdfast.tasks.task import DENSE, Dense, observe, seer, victim

N, SIDE = 10, 24


class Fitted:
    """An encoder with a head that has seen the masks of some scenes, and other scenes; image 3 has no label."""

    def __init__(self) -> None:
        pixels, mask, parts = scenes("train", 192)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            trunk = nn.Sequential(
                nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1)
            )
            self.encoder = Encoder(trunk, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
            head = build_head(spec_for(self.encoder, "segmentation", "linear", ("patch",), outputs=len(parts)))
        self.task = Segmentation(head, parts, sizes=tuple(mask[mask != IGNORE].bincount(minlength=len(parts)).tolist()))
        see, weights = seer(self.encoder, self.task), [*self.encoder.parameters(), *head.parameters()]
        adam = torch.optim.Adam(weights, 5e-3)
        for step in range(240):
            some = slice(32 * (step % 6), 32 * (step % 6) + 32)
            adam.zero_grad()
            self.task.pushes["ce"](see(pixels[some]), {"mask": mask[some]}, torch.zeros(32)).mean().backward()
            adam.step()
        adam.zero_grad()
        head.eval()
        self.pixels, self.mask, _ = scenes("test", N)
        self.mask[:, :4, :4] = IGNORE
        self.mask[3] = IGNORE
        self.rows = {"key": draws.keys([str(i) for i in range(N)]), "mask": self.mask}

    def attacked(self, eps: float, push: str = "ce", rows: dict[str, Tensor] | None = None, **stage: int) -> Found:
        with victim(self.encoder, self.task, push) as harm:
            truth = {**self.task.truth(self.pixels, rows or self.rows, harm.see), "eps": torch.full((N,), eps)}
            attack = PGD(Linf(), 20, 0.25)
            return pursue(attack, harm, self.pixels, truth, (Stage(**stage),), slots=N, stop="never")

    def counts(self, pixels: Tensor) -> np.ndarray:
        return observe(self.task, self.encoder, pixels, self.rows)["counts"].numpy()


def scenes(split: str, n: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    source = Scenes(Data(source="scenes", split=split, limit=n, size=SIDE))
    images = [source.read(i) for i in range(n)]
    pixels = torch.stack([torch.from_numpy(image.pixels) for image in images]).permute(0, 3, 1, 2)
    masks = torch.stack([torch.from_numpy(np.asarray(image.truth["mask"], dtype=np.int64)) for image in images])
    return to_pixels(pixels).contiguous(), masks, source.parts


@functools.cache
def fitted() -> Fitted:
    return Fitted()


def test_counts_and_metrics_of_a_two_by_two_confusion_matrix() -> None:
    """Truth 0 0 0 1 and 1 with one ignored pixel; answers 0 0 1 1 and 0: matrix [[2, 1], [1, 1]]."""
    truth = torch.tensor([[[0, 0, 0], [1, 1, IGNORE]]])
    answer = torch.tensor([[[0, 0, 1], [1, 0, 1]]])
    found = counts(answer, truth, 2)
    assert found.dtype == torch.int64 and found.tolist() == [[[2, 3, 3], [1, 2, 2]]]
    sums = found[0].double().numpy()
    assert iou(sums).tolist() == pytest.approx([2 / 4, 1 / 3])
    assert float(mean_iou(sums)) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert float(pixel_accuracy(sums)) == pytest.approx(3 / 5)
    assert float(mean_class_recall(sums)) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_counts_are_those_of_a_loop_over_images_and_classes() -> None:
    random = torch.Generator().manual_seed(0)
    answer, mask = (torch.randint(7, (5, 9, 11), generator=random) for _ in range(2))
    mask[torch.rand(5, 9, 11, generator=random) < 0.2] = IGNORE
    mask[2] = IGNORE
    found = counts(answer, mask, 7)
    for i in range(5):
        for c in range(7):
            known = mask[i] != IGNORE
            has, given = (mask[i] == c) & known, (answer[i] == c) & known
            assert found[i, c].tolist() == [int((has & given).sum()), int(given.sum()), int(has.sum())]


def test_counts_ask_the_device_for_nothing() -> None:
    answer, mask = (torch.zeros(2, 3, 3, dtype=torch.int64, device="meta") for _ in range(2))
    assert counts(answer, mask, 4).shape == (2, 4, 3)


def test_miou_is_that_of_the_set_as_torchmetrics_has_it_and_no_mean_of_images() -> None:
    metrics = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is not installed")
    random = torch.Generator().manual_seed(4)
    answer = torch.randint(6, (8, 12, 12), generator=random)
    other, kept = torch.randint(6, (8, 12, 12), generator=random), torch.rand(8, 12, 12, generator=random)
    mask = torch.where(kept < torch.arange(8)[:, None, None] / 8, answer, other)
    mask[:4] = mask[:4].clamp_max(2)  # classes that some images have not
    mask[:, 0] = IGNORE
    answer, mask = answer.clamp_max(4), mask.where((mask < 5) | (mask == IGNORE), 4)  # and one that none has
    per_set = metrics.MulticlassJaccardIndex(num_classes=6, average="macro", ignore_index=IGNORE)
    recall = metrics.MulticlassRecall(num_classes=6, average="macro", ignore_index=IGNORE)
    for i in range(8):
        per_set.update(answer[i : i + 1], mask[i : i + 1])
        recall.update(answer[i : i + 1], mask[i : i + 1])
    each = counts(answer, mask, 6).double().numpy()
    assert float(mean_iou(each.sum(0))) == pytest.approx(float(per_set.compute()), rel=1e-6)
    assert float(mean_iou(each.mean(0))) == pytest.approx(float(per_set.compute()), rel=1e-6)
    assert float(mean_class_recall(each.sum(0))) == pytest.approx(float(recall.compute()), rel=1e-6)
    assert abs(float(mean_iou(each).mean()) - float(per_set.compute())) > 0.01


def test_mean_class_recall_is_no_precision() -> None:
    """All is taken for class 0: recall 1 and 0, where precision (totals of what was answered) would be 1/4 alone."""
    sums = counts(torch.zeros(1, 2, 2, dtype=torch.int64), torch.tensor([[[0, 1], [1, 1]]]), 2)[0].double().numpy()
    assert float(mean_class_recall(sums)) == 0.5 and float(pixel_accuracy(sums)) == 0.25


def test_a_class_that_never_occurs_is_absent_and_one_that_is_never_labelled_has_no_recall() -> None:
    """Class 1 is answered and never labelled: IoU 0, no recall. Class 2 is neither: no IoU."""
    sums = np.array([[3.0, 4.0, 4.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    sums[0, 1] = 3
    assert iou(sums)[:2].tolist() == [0.75, 0.0] and np.isnan(iou(sums)[2])
    assert float(mean_iou(sums)) == 0.375 and float(mean_class_recall(sums)) == 0.75
    nothing = np.zeros((2, 3, 3))
    for of in (mean_iou, pixel_accuracy, mean_class_recall):
        assert np.isnan(of(nothing)).all() and of(nothing).shape == (2,)
    read = {m.name: m for m in measured((*MEASURES, *iou_measures("abc")), {"counts": np.stack([sums, sums])})}
    assert read["iou/c"].value is None and "not occur" in read["iou/c"].reason
    assert read["iou/a"].value == 0.75 and read["iou/b"].value == 0.0 and read["miou"].value == 0.375


def test_metrics_take_all_resamples_at_once() -> None:
    resamples = np.random.default_rng(0).integers(0, 9, (4, 5, 6, 3)).astype(np.float64)
    resamples[..., 1:] += resamples[..., :1]
    for m in (*MEASURES, *iou_measures([str(i) for i in range(6)])):
        assert m.of is not None and m.outcome == "counts" and m.higher_is_better
        whole = m.of(resamples)
        assert whole.shape == (4, 5)
        assert whole[2, 3] == m.of(resamples[2, 3])


def test_the_head_has_learned_something_to_lose() -> None:
    made = fitted()
    sums = made.counts(made.pixels).sum(0)
    common = sums[:, 2].max() / sums[:, 2].sum()
    assert float(pixel_accuracy(sums)) > common + 0.05 and float(mean_iou(sums)) > 0.3


def test_pgd_lowers_accuracy_and_never_less_with_more_epsilon() -> None:
    made = fitted()
    clean = made.counts(made.pixels)
    before, others = pixel_accuracy(clean.sum(0)), torch.arange(N) != 3
    lowest = made.task.score(seer(made.encoder, made.task)(made.pixels), made.rows)
    for eps in (0.5 / 255, 2 / 255, 8 / 255):
        found = made.attacked(eps)
        assert bool((found.score >= lowest).all()) and found.score[others].mean() > lowest[others].mean() + 0.01
        sums = made.counts(found.pixels).sum(0)
        assert pixel_accuracy(sums) < before and not found.trace["broken_gradients"].any()
        before, lowest = pixel_accuracy(sums), found.score
    assert before < 0.7 * pixel_accuracy(clean.sum(0)) and mean_iou(sums) < 0.5 * mean_iou(clean.sum(0))


@pytest.mark.parametrize("push", LOSSES)
def test_every_harm_lowers_accuracy(push: str) -> None:
    found = fitted().attacked(4 / 255, push)
    assert float(found.score.mean()) > 1.3 * float(found.trace["clean_score"].mean())
    assert not found.trace["broken_gradients"].any()


def test_segpgd_is_no_weaker_than_pixel_pgd() -> None:
    made = fitted()
    plain, segpgd = (made.counts(made.attacked(4 / 255, push).pixels).sum(0) for push in ("ce", "segpgd"))
    assert mean_iou(segpgd) < mean_iou(plain) + 0.005


def test_an_image_without_a_label_is_left_alone_and_counts_nowhere() -> None:
    made = fitted()
    found = made.attacked(8 / 255)
    after = observe(made.task, made.encoder, found.pixels, made.rows)
    assert found.score[3] == 0 and after["ignored"].tolist() == [SIDE * SIDE if i == 3 else 16 for i in range(N)]
    assert not any(after[name][3].any() for name in ("counts", "wrong", "loss"))
    assert all(bool(torch.isfinite(part).all()) for part in after.values())


def test_clean_and_attacked_metrics_agree_to_the_bit_at_epsilon_zero() -> None:
    made = fitted()
    found = made.attacked(0.0)
    clean, after = (observe(made.task, made.encoder, x, made.rows) for x in (made.pixels, found.pixels))
    assert torch.equal(found.pixels, made.pixels) and torch.equal(after["wrong"], found.score)
    assert clean.keys() == after.keys() and all(torch.equal(clean[name], after[name]) for name in clean)


def test_outcomes_agree_with_each_other() -> None:
    made = fitted()
    with torch.no_grad():
        out = seer(made.encoder, made.task)(made.pixels)
    found, k = made.task.outcome(out, made.rows), made.task.classes
    labelled = (made.mask != IGNORE).flatten(1).sum(1)
    assert found["counts"].shape == (N, k, 3) and found["counts"].dtype == torch.int64
    assert found["wrong"].dtype == found["loss"].dtype == torch.float32 and found["ignored"].dtype == torch.int64
    for column in (1, 2):
        assert found["counts"][..., column].sum(1).tolist() == labelled.tolist()
    wrong = 1 - found["counts"][..., 0].sum(1) / labelled.clamp_min(1)
    assert torch.allclose(found["wrong"], wrong.where(labelled > 0, 0), atol=1e-6)
    assert torch.equal(found["wrong"], made.task.score(out, made.rows))
    assert {m.outcome for m in made.task.measures()} <= found.keys()


def test_the_ensemble_is_never_weaker_than_a_member_by_either_metric() -> None:
    made = fitted()
    assert [(m.push, m.method) for m in made.task.ensemble] == [(push, "sea") for push in ENSEMBLE]
    each = []
    for member in made.task.ensemble:
        record = records.Attack(method=member.method, through="segmentation", push=member.push, eps=2 / 255, steps=20)
        with victim(made.encoder, made.task, member.push) as harm:
            rows = {**made.task.truth(made.pixels, made.rows, harm.see), "eps": torch.full((N,), record.eps)}
            found = cascade(build(record), harm, made.task.pushes, made.pixels, rows, slots=N, stop="never")
        assert float((found.pixels - made.pixels).abs().max()) <= record.eps + 1e-6
        each.append(made.counts(found.pixels))
    by_attack, clean = np.stack(each), made.counts(made.pixels).sum(0)
    pixels, miou = (by_attack[w(by_attack), np.arange(N)].sum(0) for w in (worst_pixel_accuracy, worst_miou))
    for member_counts in each:
        sums = member_counts.sum(0)
        assert pixel_accuracy(pixels) <= pixel_accuracy(sums) < pixel_accuracy(clean) - 0.02
        assert mean_iou(miou) <= mean_iou(sums) < mean_iou(clean) - 0.02
    assert mean_iou(miou) <= mean_iou(pixels) and pixel_accuracy(pixels) <= pixel_accuracy(miou)


def test_aims_are_the_classes_that_are_likeliest_where_they_are_wrong() -> None:
    """By hand: label 0 at both pixels of the first image; of the second, one has label 2 and one none."""
    p = torch.tensor([[[0.6, 0.3, 0.1], [0.5, 0.1, 0.4]], [[0.1, 0.3, 0.6], [0.0, 1.0, 0.0]]]).movedim(2, 1)[:, :, None]
    rows = {"mask": torch.tensor([[[0, 0]], [[2, IGNORE]]])}
    aims = fitted().task.aims({"logits": p.clamp_min(1e-9).log()}, rows, seed=0)
    assert aims["ranked"].tolist() == [[2, 1], [1, 0]]


def test_a_class_is_put_everywhere_by_targeted_segpgd_and_a_mask_where_it_says() -> None:
    made = fitted()
    see = seer(made.encoder, made.task)
    with torch.no_grad():
        clean = see(made.pixels)
        aims = made.task.aims(clean, made.rows, seed=0)
    known = made.mask != IGNORE
    put = aims["ranked"][:, 1, None, None].expand_as(made.mask).where(known, IGNORE)
    for rows, stage in ((dict(aims), {"target": 1}), ({"target_mask": put}, {})):
        found = made.attacked(8 / 255, "segpgd_target", {**made.rows, **rows}, **stage)
        with torch.no_grad():
            seen = clean, see(found.pixels)
        before, after = (float((out["logits"].argmax(1) == put)[known].float().mean()) for out in seen)
        assert after > before + 0.3


def test_as_a_task() -> None:
    made = fitted()
    task = made.task
    assert isinstance(task, Dense) and task.level == DENSE and not task.stop and task.classes == len(task.parts)
    assert task.modules() == (task.head,) and task.absent() == {} and next(iter(task.pushes)) == "ce"
    named = ["miou", "pixel_accuracy", "mean_class_recall", *(f"iou/{part}" for part in task.parts)]
    assert [m.name for m in task.measures()] == named
    with pytest.raises(ConfigError, match="one vector"):
        task.read(made.encoder, torch.zeros(1, 3))


def test_sizes_of_the_fitted_classes_become_rows() -> None:
    made = fitted()
    task = Segmentation(made.task.head, made.task.parts, sizes=tuple(range(1, made.task.classes + 1)))
    rows = task.truth(made.pixels, made.rows, lambda pixels: {})
    assert rows["sizes"].shape == (N, task.classes) and rows["sizes"][4].tolist() == list(task.sizes)
    silent = Segmentation(made.task.head, made.task.parts)
    assert silent.truth(made.pixels, made.rows, lambda pixels: {}) == made.rows


@pytest.mark.parametrize("wrong", [{"parts": ("a", "b")}, {"sizes": (1, 2)}])
def test_refuses_other_numbers_of_classes_than_the_head_has(wrong: dict[str, tuple[str, ...]]) -> None:
    made = fitted()
    with pytest.raises(ConfigError, match=f"2 {next(iter(wrong))} for a head of {made.task.classes} classes"):
        Segmentation(**{"head": made.task.head, "parts": made.task.parts, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "have none"),
        ({"mask": torch.zeros(2, 4, 5, dtype=torch.int64)}, r"\[2, 4, 5\]; the pixels need int64 \[2, 4, 4\]"),
        ({"mask": torch.zeros(2, 4, 4)}, "float32"),
        ({"mask": torch.full((2, 4, 4), 9)}, "class 9; the head knows 0 to 8"),
        ({"mask": torch.full((2, 4, 4), -1)}, "class -1"),
        ({"mask": torch.full((2, 4, 4), IGNORE), "target_mask": torch.full((2, 4, 4), 254)}, "target_mask has class"),
    ],
)
def test_refuses_images_without_usable_masks(rows: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fitted().task.truth(torch.zeros(2, 3, 4, 4), rows, lambda pixels: {})
