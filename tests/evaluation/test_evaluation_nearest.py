"""Minimal-norm attacks give the curve directly: right at a radius = the nearest adversarial image lies further."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import holdfast
from holdfast.evaluation.curves import OUTCOMES, curve, distances, subjects
from holdfast.records import Attack

WEIGHTS = Path(__file__).parents[1] / "golden" / "scenes_resnet8.safetensors"
FIELDS = {"data": "scenes", "limit": 24, "fit_limit": 200, "corruptions": ["none"], "tasks": ["classification"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> holdfast.evaluation.store.Run:
    attacks = [Attack(method="fab", push="", norm=norm, eps=0.0, steps=20, targets=2) for norm in ("linf", "l2")] + [
        Attack(method="apgd", norm="linf", eps=eps, steps=10) for eps in (1 / 255, 4 / 255)
    ]
    out = tmp_path_factory.mktemp("nearest") / "run"
    return holdfast.bench(str(WEIGHTS), out=str(out), attacks=attacks, chunk=24, threads=1, **FIELDS)


def test_the_curve_is_the_distribution_of_distances(run: holdfast.evaluation.store.Run) -> None:
    (subject,) = subjects([run])
    (nearest,) = subject.nearest("classification", "l2")
    ids, apart = distances(subject, nearest)
    drawn = curve(subject, OUTCOMES["correct"], "l2")
    assert len(drawn.points) > 4 and np.array_equal(drawn.ids, ids)
    for point in drawn.points[1:]:
        assert point.worst.value == pytest.approx(float((apart > point.eps).mean()))
    assert drawn.points[-1].worst.value < drawn.points[0].worst.value


def test_it_takes_part_in_the_worst_case_at_the_radii_of_other_attacks(run: holdfast.evaluation.store.Run) -> None:
    (subject,) = subjects([run])
    drawn = curve(subject, OUTCOMES["correct"], "linf")
    assert [point.eps for point in drawn.points] == pytest.approx([0, 1 / 255, 4 / 255])
    ids, apart = distances(subject, subject.nearest("classification", "linf")[0])
    assert np.array_equal(drawn.ids, ids)
    for eps in (1 / 255, 4 / 255):
        assert not drawn.running[eps][apart <= eps].any()


def test_the_record_says_which_images_were_fooled_at_all(run: holdfast.evaluation.store.Run) -> None:
    (nearest,) = subjects([run])[0].nearest("classification", "linf")
    held = run.outcomes(nearest.id)
    fooled = held["attack_score"] > 0
    assert nearest.cell.attack.eps == 0 and fooled.any()
    assert not held["correct"][fooled & (held["attack_clean_score"] <= 0)].any()
    assert (held["attack_norm"][held["attack_clean_score"] > 0] == 0).all()
