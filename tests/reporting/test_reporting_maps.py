"""Pairs of images with their maps: what is drawn, which are chosen, and what the captions say."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from parsed_page import parsed
from PIL import Image
from synthetic_run import CE, ODD, PLAIN, write_run

from holdfast.evaluation.curves import Subject, subjects
from holdfast.evaluation.store import Run, Store
from holdfast.reporting.maps import overlaid, pair_walls, reduced
from holdfast.reporting.page import images, report


@pytest.fixture(scope="module")
def seen(study: Run) -> list[Subject]:
    return subjects([study])


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


def test_a_map_lies_over_the_image_in_grey_on_one_scale() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    for level in (0.0, 0.5, 1.0):
        colour = np.array(matplotlib.colormaps["viridis"](level)[:3])
        wanted = np.round((0.5 * 100 / 255 + 0.5 * colour) * 255)
        assert np.abs(overlaid(grey, np.full((2, 2), level)).astype(int) - wanted).max() <= 1
    ramp = overlaid(np.zeros((4, 64, 3), np.uint8), np.array([[0.0, 1.0]]))[0, :, 0].astype(int)
    yellow = overlaid(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1)))[0, 0, 0]
    assert ramp[-1] == yellow and len(np.unique(ramp)) > 20, "bilinear, not in blocks"


def test_large_images_are_halved_by_means() -> None:
    small = np.arange(160 * 160 * 3, dtype=np.uint8).reshape(160, 160, 3)
    assert reduced(small) is small
    large = np.zeros((224, 224, 3), np.uint8)
    large[::2] = 200
    assert reduced(large).shape == (112, 112, 3) and (reduced(large) == 100).all()


def test_pairs_are_those_of_the_gallery(seen: list[Subject]) -> None:
    walls, _ = pair_walls(seen)
    found = {(c.name, c.severity): r for r in seen[0].corrupted("saliency") for c in [r.cell.corruption] if c}
    result = found["gaussian_noise", 3]
    held, pair = seen[0].run.gallery(result.id), walls[0].pairs[0]
    assert (pair.condition, pair.rule, pair.id) == ("gaussian noise, severity 3", "worst drift", str(held["id"][0]))
    assert [name for name, _ in pair.images] == [
        "clean", "Grad-CAM of the clean image", "corrupted", "Grad-CAM of the corrupted image",
    ]  # fmt: skip
    wanted = (
        held["clean"][0], overlaid(held["clean"][0], held["clean_map"][0]),
        held["changed"][0], overlaid(held["changed"][0], held["map"][0]),
    )  # fmt: skip
    for (_, uri), image in zip(pair.images, wanted):
        assert (decoded(uri) == image).all()
    assert pair.numbers == f"CAM drift {held['cam_drift'][0]:.3f}, SSIM {held['ssim'][0]:.3f}"
    label, names = int(held["label"][0]), held["classes"].tolist()
    assert pair.truth == names[label]
    for (when, said, right), key in zip(pair.verdicts, ("clean_prediction", "prediction"), strict=True):
        assert said == names[int(held[key][0])] and right == (int(held[key][0]) == label), when


def test_one_corruption_of_each_family_comes_first_for_every_encoder(seen: list[Subject]) -> None:
    walls, left_out = pair_walls(seen, most=10)
    assert [w.subject for w in walls] == [PLAIN.name, ODD.name]
    first = ["gaussian noise", "defocus blur", "snow", "contrast", "speckle noise"]
    for wall in walls:
        assert [p.condition for p in wall.pairs] == [f"{name}, severity 3" for name in first]
        assert {p.rule for p in wall.pairs} == {"worst drift"}
    assert left_out == 2 * 18 * 5 * 4 - 10
    rules = [p.rule for p in pair_walls(seen, most=40)[0][0].pairs]
    assert rules == [r for r in ("worst drift", "median drift", "right clean and corrupted", "class") for _ in first]


def test_the_nearest_severity_stands_in_for_the_third(seen: list[Subject]) -> None:
    def other(subject: Subject) -> Subject:
        kept = [r for r in subject.results if not r.cell.corruption or r.cell.corruption.severity in (1, 4, 5)]
        return Subject(subject.name, subject.run, subject.model, tuple(kept))

    walls, _ = pair_walls([other(s) for s in seen], most=10)
    assert {p.condition.split(", ")[1] for w in walls for p in w.pairs} == {"severity 4"}


def test_a_budget_leaves_no_encoder_out(seen: list[Subject]) -> None:
    whole, _ = pair_walls(seen, most=4)
    cost = [sum(len(uri) for _, uri in p.images) for w in whole for p in w.pairs]
    walls, left_out = pair_walls(seen, budget=sum(cost))
    assert [w.subject for w in walls] == [PLAIN.name, ODD.name]
    assert sum(len(uri) for w in walls for p in w.pairs for _, uri in p.images) <= sum(cost)
    assert left_out == 720 - sum(len(w.pairs) for w in walls)
    assert pair_walls(seen, budget=10) == ([], 720)


def test_maps_and_attacks_share_the_page(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "r", (PLAIN,), n=16, corruptions=("fog", "snow"), attacks=(CE,), size=96,
        tasks=("classification", "saliency"),
    )  # fmt: skip
    (walls, _), (pairs, left_out) = images(subjects([run]), budget=220_000)
    attacked = sum(len(uri) for w in walls for t in w.tiles for _, uri in t.images)
    looked_at = sum(len(uri) for w in pairs for p in w.pairs for _, uri in p.images)
    assert attacked and looked_at and left_out > 0
    assert looked_at <= 0.45 * 220_000 and attacked + looked_at <= 220_000


def test_captions_say_right_and_wrong_in_words(study: Run, tmp_path: Path) -> None:
    text = parsed(report([study], tmp_path)).texts["saliency"]
    assert "\u2713 right" in text and "\u2717 wrong" in text and "true class cat" in text
    assert "more pairs were left out" in text and "worst drift" in text


def test_without_a_head_there_is_no_verdict(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (PLAIN,), n=16, corruptions=("fog",), attacks=(), tasks=("saliency",))
    for result in run.results:
        if gallery := run.gallery(result.id):
            none = {name: np.full(4, -1) for name in ("label", "prediction", "clean_prediction", "ssim")}
            Store(run.folder).put_gallery(result.id, gallery | none)
    (wall,), _ = pair_walls(subjects([run]))
    assert all(p.truth == "" and p.verdicts == () and "SSIM" not in p.numbers for p in wall.pairs)
    text = parsed(report([run], tmp_path / "out")).texts["saliency"]
    assert "right" not in text.split("fog, severity 3")[1].split("CAM drift")[0]
    assert "true class" not in text
