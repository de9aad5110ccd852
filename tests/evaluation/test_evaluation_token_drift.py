"""EmbedAttack on every patch token of every window, where heads answer for every pixel: by hand, and in a bench."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_evaluation_dense import WEIGHTS, bench

from holdfast.configs import BenchConfig
from holdfast.evaluation.store import Run
from holdfast.evaluation.suites import suite_attacks
from holdfast.models.checkpoint import load
from holdfast.models.encoder import frozen
from holdfast.records import Attack
from holdfast.tasks import windows
from holdfast.tasks.task import seer
from holdfast.tasks.token_drift import TokenDrift
from holdfast.tasks.windows import Windows

WINDOW, STRIDE = 24, 8
TOKENS = Attack(through="embedding", push="mse", level="tokens", eps=4 / 255, steps=3)
FIELDS = {"attacks": [TOKENS], "eps": None, "corruptions": ["none"], "variant": ""}


@pytest.fixture(scope="module")
def slid(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return bench(tmp_path_factory.mktemp("slid"), window=WINDOW, stride=STRIDE, **FIELDS)


def by_hand(pixels: torch.Tensor) -> torch.Tensor:
    """Patch tokens of windows at 0 and 8 in either direction, one after the other: [b, everything]."""
    encoder, found = load(str(WEIGHTS)), []
    with frozen(encoder), torch.no_grad():
        for top in (0, STRIDE):
            for left in (0, STRIDE):
                crop = pixels[:, :, top : top + WINDOW, left : left + WINDOW]
                found.append(encoder.tokens(crop, "patch").flatten(1))
    return torch.cat(found, 1)


def test_windows_of_all_images_together_are_a_plain_loop() -> None:
    encoder = load(str(WEIGHTS))
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with frozen(encoder), torch.no_grad():
        seen = seer(encoder, TokenDrift(level="tokens", windows=Windows(WINDOW, STRIDE)))(pixels)["embedding"]
    assert torch.allclose(seen, by_hand(pixels), atol=1e-5)


def test_a_bench_raises_the_tokens_of_the_windows_that_its_heads_see(slid: Run) -> None:
    """The score that the attack kept is the distance of all windows' tokens, computed anew from the kept images."""
    (result,) = [r for r in slid.results if r.cell.attack is not None and r.cell.judge.task == "embedding"]
    assert (result.cell.judge.window, result.cell.judge.stride) == (WINDOW, STRIDE)
    gallery, held = slid.gallery(result.id), slid.outcomes(result.id)
    score = dict(zip(held["id"].tolist(), held["attack_score"].tolist()))
    images = {n: torch.from_numpy(gallery[n].astype(np.float32)).permute(0, 3, 1, 2) for n in ("clean", "adversarial")}
    distance = (by_hand(images["adversarial"]) - by_hand(images["clean"] / 255)).norm(dim=1)
    assert len(distance) and float(distance.min()) > 0
    assert distance.tolist() == pytest.approx([score[str(name)] for name in gallery["id"]], rel=1e-4)


def test_windows_that_are_computed_twice_give_the_same_digits(
    slid: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice, own = [], windows.checkpoint
    monkeypatch.setattr(windows, "checkpoint", lambda *a, **k: twice.append(a[1].shape) or own(*a, **k))
    again = bench(tmp_path, window=WINDOW, stride=STRIDE, recompute=True, **FIELDS)
    assert twice and all(shape[-1] == WINDOW for shape in twice)
    assert [r.id for r in again.results] == [r.id for r in slid.results]
    for result in again.results:
        kept, anew = slid.outcomes(result.id), again.outcomes(result.id)
        assert all(np.array_equal(kept[name], anew[name]) for name in kept if name != "cost")


def test_every_head_judges_it_and_the_whole_image_is_another_cell(slid: Run, tmp_path: Path) -> None:
    attacked = {r.cell.judge.task: r for r in slid.results if r.cell.attack is not None}
    assert {*attacked} == {"embedding", "segmentation", "depth"}
    whole = bench(tmp_path, **FIELDS)
    ids = {r.cell.judge.task: r.id for r in whole.results if r.cell.attack is not None}
    assert all(ids[task] != result.id for task, result in attacked.items())


def test_suites_raise_tokens_where_heads_answer_for_every_pixel_alone() -> None:
    def levels(*tasks: str) -> set[str]:
        config = BenchConfig(suite="quick", tasks=tasks)
        return {a.level for a in suite_attacks(config) if a.through == "embedding"}

    assert levels("embedding", "classification") == {""}
    assert levels("embedding", "depth") == {"", "tokens"}
