"""The worst case of a segmented set: for pixel accuracy image by image, for mIoU over all images together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from holdfast.evaluation.dense_worst import Counts, worst_miou, worst_pixel_accuracy
from holdfast.tasks.segmentation import mean_iou, pixel_accuracy


def counts_of(confusion: Counts) -> Counts:
    """From confusion matrices [..., K (truth), K (answer)] to counts [..., K, 3]."""
    return np.stack([np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-2), confusion.sum(-1)], axis=-1)


def drawn(seed: int, attacks: int, n: int, k: int) -> Counts:
    """Counts of n images under several attacks, whose masks are the same; some hold few classes, the first none."""
    random = np.random.default_rng(seed)
    labelled = random.integers(0, 40, (n, k)) * (random.random((n, k)) < 0.6)
    labelled[0] = 0
    chances = random.dirichlet(np.ones(k) * 0.5, (attacks, n, k))
    return counts_of(random.multinomial(np.broadcast_to(labelled, (attacks, n, k)), chances))


def together(by_attack: Counts, chosen: Counts) -> Counts:
    return by_attack[chosen, np.arange(by_attack.shape[1])].sum(0)


def test_pixel_accuracy_by_hand_and_ties_to_the_first() -> None:
    """Right pixels of two images under three attacks: 3, 1, 1 and 0, 2, 0."""
    right = np.array([[3, 0], [1, 2], [1, 0]])
    by_attack = np.zeros((3, 2, 2, 3), dtype=np.int64)
    by_attack[..., 0, 0] = right
    by_attack[..., 0, 1] = right
    by_attack[..., 1, 1] = 4 - right
    by_attack[..., 0, 2] = 4
    assert worst_pixel_accuracy(by_attack).tolist() == [1, 0]


def test_miou_has_a_selection_of_its_own() -> None:
    """Two images of 100 pixels of class 0, the first with 4 of class 1 besides, which is all there is of it.

    Attack A leaves 60 pixels of class 0 in both images and all of class 1, attack B 80 and none; what they take from
    class 0 is answered as class 2. By pixels A is the worse on both: mIoU = (120/200 + 1 + 0) / 3. With B on the first
    image class 1 is gone, and four of its pixels are answered as class 0.
    """
    a = counts_of(np.array([[[60, 0, 40], [0, 4, 0], [0, 0, 0]], [[60, 0, 40], [0, 0, 0], [0, 0, 0]]]))
    b = counts_of(np.array([[[80, 0, 20], [4, 0, 0], [0, 0, 0]], [[80, 0, 20], [0, 0, 0], [0, 0, 0]]]))
    by_attack = np.stack([a, b])
    assert worst_pixel_accuracy(by_attack).tolist() == [0, 0]
    best = min(itertools.product(range(2), repeat=2), key=lambda c: float(mean_iou(together(by_attack, np.array(c)))))
    assert worst_miou(by_attack).tolist() == list(best) == [1, 0]
    assert float(mean_iou(together(by_attack, np.array([1, 0])))) == pytest.approx(140 / 204 / 3)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_weaker_than_its_members_nor_than_the_choice_for_pixels(seed: int) -> None:
    by_attack = drawn(seed, 4, 30, 6)
    n = by_attack.shape[1]
    single = [together(by_attack, np.full(n, attack)) for attack in range(4)]
    pixels, miou = (together(by_attack, choose(by_attack)) for choose in (worst_pixel_accuracy, worst_miou))
    assert pixel_accuracy(pixels) <= min(float(pixel_accuracy(sums)) for sums in [*single, miou])
    assert mean_iou(miou) <= min(float(mean_iou(sums)) for sums in [*single, pixels])
    assert mean_iou(miou) < min(float(mean_iou(sums)) for sums in single)


def test_begins_at_the_choice_for_pixels_where_that_is_the_lower_one() -> None:
    """A set, found by search, where the descent from the best single attack ends above the choice for pixels."""
    by_attack = drawn(177, 3, 4, 3)
    pixels, miou = (together(by_attack, choose(by_attack)) for choose in (worst_pixel_accuracy, worst_miou))
    assert float(mean_iou(miou)) <= float(mean_iou(pixels)) < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_no_other_attack_for_any_one_image_makes_it_lower(seed: int) -> None:
    by_attack = drawn(seed, 3, 12, 5)
    chosen = worst_miou(by_attack)
    lowest = float(mean_iou(together(by_attack, chosen)))
    for image, attack in itertools.product(range(12), range(3)):
        other = chosen.copy()
        other[image] = attack
        assert float(mean_iou(together(by_attack, other))) >= lowest - 1e-12


def test_close_to_the_lowest_of_all_choices() -> None:
    """Of 3^6 choices for six images, on 40 drawn sets: the lowest in most, never far above."""
    gaps = []
    for seed in range(40):
        by_attack = drawn(100 + seed, 3, 6, 3)
        every = [float(mean_iou(together(by_attack, np.array(c)))) for c in itertools.product(range(3), repeat=6)]
        gaps.append(float(mean_iou(together(by_attack, worst_miou(by_attack)))) - min(every))
    assert min(gaps) >= -1e-12 and max(gaps) < 0.03 and sum(gap < 1e-12 for gap in gaps) >= 30


def test_deterministic_and_a_matter_of_images_not_of_their_order() -> None:
    by_attack = drawn(3, 4, 50, 6)
    chosen = worst_miou(by_attack)
    assert np.array_equal(worst_miou(by_attack.copy()), chosen) and len(np.unique(chosen)) > 1
    turned = np.random.default_rng(0).permutation(50)
    assert np.array_equal(worst_pixel_accuracy(by_attack[:, turned]), worst_pixel_accuracy(by_attack)[turned])


def test_counts_stay_what_they_were_and_means_will_do() -> None:
    """Means over severities are no whole numbers: thirds, whose sums round."""
    by_attack = drawn(5, 3, 40, 4)
    kept = by_attack.copy()
    chosen = worst_miou(by_attack)
    assert np.array_equal(by_attack, kept)
    assert np.array_equal(worst_miou(by_attack / 3), chosen)


def test_one_attack_and_nothing_labelled() -> None:
    by_attack = drawn(2, 1, 5, 3)
    assert worst_miou(by_attack).tolist() == worst_pixel_accuracy(by_attack).tolist() == [0] * 5
    nothing = np.zeros((2, 3, 4, 3), dtype=np.int64)
    assert worst_miou(nothing).tolist() == worst_pixel_accuracy(nothing).tolist() == [0] * 3


def test_refuses_what_is_no_set_of_counts_and_other_masks() -> None:
    by_attack = drawn(1, 2, 4, 3)
    for wrong in (by_attack[0], by_attack[..., :2], by_attack[:0]):
        with pytest.raises(ValueError, match="counts of shape"):
            worst_miou(wrong)
    by_attack[1, 2, 0, 2] += 1
    with pytest.raises(ValueError, match="same masks"):
        worst_pixel_accuracy(by_attack)
