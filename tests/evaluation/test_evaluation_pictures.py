"""The gallery keeps the very images that were judged, and chooses them by rule over all blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.draws import numpy_generator
from holdfast.evaluation.adversarial import EACH, candidates, chosen, exact8, harm, merged
from holdfast.records import Attack, Cell, Data, Judge, Model, Surrogate

N, BLOCK, CHUNK = 60, 16, 8
CELL = Cell(
    data=Data(source="scenes"),
    stages=(Attack(eps=0.1),),
    encoder=Model(spec="a.pth"),
    judge=Judge(task="classification", head="own"),
)


class Pass(NamedTuple):
    ids: list[str]
    clean: Tensor
    before: Tensor


def images(n: int = N) -> tuple[Tensor, Tensor]:
    """Decoded images, and what an attack made of them: not to be said in bytes."""
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(256, (n, 3, 4, 5), generator=draw).float() / 255
    return clean, (clean + 0.1 * (2 * torch.rand(clean.shape, generator=draw) - 1)).clamp(0, 1)


def outcomes(n: int = N) -> dict[str, np.ndarray]:
    draw = numpy_generator("pictures test", n)
    label = np.arange(n) % 10
    before = draw.standard_normal(n) - 1.0
    score = np.maximum(before, draw.standard_normal(n))
    return {
        "id": np.array([f"test/{i:03d}" for i in range(n)]),
        "attack_score": score.astype(np.float32),
        "attack_clean_score": before.astype(np.float32),
        "attack_norm": draw.random(n).astype(np.float32),
        "label": label,
        "prediction": np.where(score > 0, (label + 1) % 10, label),
        "confidence": draw.random(n).astype(np.float32),
        "rounded_correct": score <= 0.1,
    }


def kept(cell: Cell, whole: dict[str, np.ndarray], clean: Tensor, found: Tensor, block: int = BLOCK) -> list[dict]:
    """What the blocks of a cell keep; passes are padded with images that nobody asked for."""
    parts = []
    for first in range(0, len(clean), block):
        at = np.arange(first, min(first + block, len(clean)))
        passes = []
        for start in range(0, len(at), CHUNK):
            ids = [str(whole["id"][i]) for i in at[start : start + CHUNK]]
            pixels = clean[at[start : start + CHUNK]]
            padded = torch.cat([pixels, torch.ones(CHUNK - len(pixels), *pixels.shape[1:])])
            passes.append(Pass(ids, padded, padded))
        parts.append(candidates(cell, {name: part[at] for name, part in whole.items()}, passes, found[at]))
    return parts


def test_the_kept_images_are_those_that_were_judged_to_the_bit() -> None:
    clean, found = images()
    whole = outcomes()
    gallery = merged(CELL, whole, kept(CELL, whole, clean, found), classes=("a", "b"))
    assert len(gallery["id"]) == 3 * EACH
    assert gallery["adversarial"].dtype == np.float32 and gallery["before"].dtype == np.uint8
    for at, name in enumerate(gallery["id"].tolist()):
        row = whole["id"].tolist().index(name)
        assert np.array_equal(gallery["adversarial"][at], found[row].permute(1, 2, 0).numpy())
        assert np.array_equal(gallery["clean"][at], (clean[row] * 255).round().permute(1, 2, 0).numpy())
        before = gallery["before"][at].astype(np.float32) / np.float32(255)
        assert np.array_equal(before, clean[row].permute(1, 2, 0).numpy())
        assert gallery["score"][at] == whole["attack_score"][row]
        assert gallery["prediction"][at] == whole["prediction"][row]
        assert gallery["rounded_correct"][at] == whole["rounded_correct"][row]
        assert gallery["clean_prediction"][at] == gallery["label"][at] == whole["label"][row]
    assert gallery["classes"].tolist() == ["a", "b"]


@pytest.mark.parametrize("block", [8, 16, 60])
def test_worst_and_surviving_are_exact_whatever_the_blocks(block: int) -> None:
    clean, found = images()
    whole = outcomes()
    gallery = merged(CELL, whole, kept(CELL, whole, clean, found, block))
    right = np.flatnonzero(whole["attack_clean_score"] <= 0)
    order = right[np.argsort(-whole["attack_score"][right], kind="stable")]
    names = {rule: gallery["id"][gallery["rule"] == rule].tolist() for rule in ("worst", "median", "surviving")}
    assert names["worst"] == whole["id"][order[:EACH]].tolist()
    assert set(names["surviving"]) == set(whole["id"][order[-EACH:]].tolist())
    rank = {str(whole["id"][row]): at for at, row in enumerate(order)}
    there = [rank[n] for part in kept(CELL, whole, clean, found, block) if part for n in part["id"].tolist()]
    ends = {rank[n] for rule in ("worst", "surviving") for n in names[rule]}
    middle = (len(order) - 1) / 2
    nearest = sorted(abs(r - middle) for r in there if r not in ends)[:EACH]
    assert sorted(abs(rank[n] - middle) for n in names["median"]) == nearest


def test_one_block_gives_what_the_rules_give_over_all() -> None:
    clean, found = images()
    whole = outcomes()
    gallery = merged(CELL, whole, kept(CELL, whole, clean, found, N))
    lost = whole["attack_clean_score"] > 0
    assert set(gallery["id"].tolist()) == {str(whole["id"][i]) for i in chosen(whole["attack_score"], lost)}


def test_images_that_were_lost_before_are_not_shown() -> None:
    clean, found = images()
    whole = outcomes()
    whole["attack_clean_score"][:] = 1.0
    assert merged(CELL, whole, kept(CELL, whole, clean, found)) == {}
    whole["attack_clean_score"][17] = -1.0
    assert merged(CELL, whole, kept(CELL, whole, clean, found))["id"].tolist() == ["test/017"]


def test_a_corrupted_image_that_bytes_cannot_say_is_kept_as_it_is() -> None:
    clean, found = images(16)
    assert exact8(clean).dtype == np.uint8
    assert exact8(found).dtype == np.float32
    assert np.array_equal(exact8(found), found.permute(0, 2, 3, 1).numpy())


def test_bytes_and_pixels_of_different_blocks_are_joined_exactly() -> None:
    clean, found = images(32)
    whole = outcomes(32)
    parts = kept(CELL, whole, clean, found)
    parts[1] = {**parts[1], "before": parts[1]["before"].astype(np.float32) / np.float32(255)}
    gallery = merged(CELL, whole, parts)
    for at, name in enumerate(gallery["id"].tolist()):
        row = whole["id"].tolist().index(name)
        assert np.array_equal(gallery["before"][at], clean[row].permute(1, 2, 0).numpy())


def test_without_a_radius_the_nearest_is_the_worst() -> None:
    cell = Cell(data=CELL.data, stages=(Attack(method="fab", eps=0.0),), encoder=CELL.encoder, judge=CELL.judge)
    whole = outcomes()
    order = harm(cell, whole)
    found = whole["attack_score"] > 0
    assert np.array_equal(order[found], -whole["attack_norm"][found].astype(np.float64))
    assert np.isneginf(order[~found]).all()


def test_an_attack_on_a_surrogate_is_ordered_by_what_was_judged() -> None:
    surrogate = Surrogate(encoder=Model(spec="b.pth"), judge=CELL.judge)
    cell = Cell(data=CELL.data, stages=(Attack(surrogate=surrogate),), encoder=CELL.encoder, judge=CELL.judge)
    clean, found = images()
    whole = outcomes() | {"margin": -outcomes()["attack_score"], "clean_correct": np.ones(N, dtype=bool)}
    whole["clean_prediction"] = whole["label"]
    gallery = merged(cell, whole, kept(cell, whole, clean, found))
    assert gallery["id"][0] == whole["id"][whole["attack_score"].argmin()]
