"""A small run that was really measured, what the verifier says of it, and copies of it that are false."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import holdfast
from holdfast.configs import VerifyConfig
from holdfast.data.sources import images, open_source
from holdfast.errors import TrustError
from holdfast.evaluation.store import Run
from holdfast.models.checkpoint import load, save
from holdfast.tasks.features import extract
from holdfast.training.probe import fit_linear
from holdfast.verifying import verify

Arrays = dict[str, np.ndarray]


def small_weights(folder: Path) -> Path:
    """The golden encoder of scenes with a head that is fitted here."""
    encoder = load(Path(__file__).parents[1] / "golden" / "scenes_resnet8.safetensors")
    source = open_source(images("scenes", split="train", limit=240))
    held = extract(encoder, source, level="pooled", chunk=64)
    head = fit_linear(held.vectors, torch.tensor(source.labels), classes=len(source.classes))
    encoder.trunk.reset_classifier(len(source.classes))
    encoder.head.load_state_dict(head.state_dict())
    return save(encoder, folder / "small.safetensors")


def small_run(weights: Path, folder: Path) -> Run:
    """A run of two blocks with the checkpoint's own head: two radii, two tasks, 24 images."""
    return holdfast.bench(
        str(weights), out=str(folder), data="scenes", limit=24, attack_limit=24,
        fit_limit=80, eps=["2/255", "8/255"], steps=3, corruptions=["none"], chunk=8, block=16,
    )  # fmt: skip


def judged(folder: Path) -> list[str]:
    return verify(VerifyConfig(runs=(str(folder),), device="cpu"), say=lambda line: None)


def wrong(folder: Path) -> str:
    """What the verifier prints about a folder that it must not accept."""
    said: list[str] = []
    with pytest.raises(TrustError, match=r"not agree with|could not be judged"):
        verify(VerifyConfig(runs=(str(folder),), device="cpu"), say=said.append)
    return "\n".join(said)


def attacked(run: Run, task: str = "classification") -> str:
    """The id of the first cell under attack through the head of a task, and judged by it."""
    cells = ((r.id, r.cell) for r in run.results if r.cell.attack is not None and r.cell.judge.task == task)
    return next(name for name, cell in cells if cell.attack is not None and cell.attack.through == task)


def falsified(run: Run, to: Path, cell: str, change: Callable[[Arrays], None]) -> Path:
    """A copy of the run with changed outcomes of a cell."""
    shutil.copytree(run.folder, to)
    path = to / "images" / f"{cell}.npz"
    with np.load(path) as held:
        arrays = {name: held[name].copy() for name in held.files}
    change(arrays)
    np.savez(path, **arrays)
    return to
