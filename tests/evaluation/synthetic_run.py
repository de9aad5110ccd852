"""A run that nobody computed: images with thresholds drawn by key, written through the store like a real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from holdfast.configs import BenchConfig
from holdfast.draws import numpy_generator
from holdfast.evaluation import statistics
from holdfast.evaluation.curves import OUTCOMES
from holdfast.evaluation.store import Run, Store, read
from holdfast.records import Attack, Cell, Corruption, Cost, Data, Environment, Judge, Model, Result, Stage

EPS = tuple(e / 255 for e in (0.5, 1, 2, 4, 8))
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "brightness", "jpeg_compression")
ENVIRONMENT = Environment(
    holdfast="0.1.0",
    commit="abc123",
    python="3.11.9",
    torch="2.15.0",
    device="cpu: x86_64",
    threads=2,
    platform="Linux",
)
CE = Attack(push="ce", steps=10)
MARGIN = Attack(push="margin", steps=10)
MSE = Attack(push="mse", through="embedding", steps=10)


@dataclass(frozen=True)
class Made:
    """How one encoder of the synthetic run behaves: clean accuracy, and the median radius at which an image falls."""

    name: str
    clean: float = 0.85
    threshold: float = 1.0
    masked: bool = False


PLAIN = Made("plain", 0.9, 0.6)
HARDENED = Made("hardened", 0.84, 5.0)
ODD = Made('odd <b>&"$x_1$', 0.7, 1.5)


def write_run(  # parameters: each test leaves out another part of a run
    folder: Path,
    encoders: Sequence[Made] = (PLAIN, HARDENED, ODD),
    *,
    n: int = 200,
    corruptions: Sequence[str] = CORRUPTIONS,
    attacks: Sequence[Attack] = (CE, MARGIN, MSE),
    tasks: Sequence[str] = ("classification", "embedding"),
    size: int = 32,
    **data: Any,
) -> Run:
    """Write a run of `n` images and read it back; the first half of them is attacked."""
    shown = Data(source=data.get("source", "scenes"), split="test", limit=n, digest_of_images=f"images{n}")
    some = msgspec.structs.replace(shown, limit=n // 2, digest_of_images=f"images{n // 2}")
    stages: list[tuple[Data, tuple[Stage, ...]]] = [(shown, ())]
    variant = data.get("variant", "cifar32")
    stages += [
        (shown, (Corruption(name=c, severity=s, variant=variant),)) for c in corruptions for s in (1, 2, 3, 4, 5)
    ]
    stages += [(some, (msgspec.structs.replace(a, eps=e),)) for a in attacks for e in EPS]
    models = [Model(spec=f"{m.name}.pth", name=m.name, digest_of_weights=f"{at:064d}") for at, m in enumerate(encoders)]
    grid = [
        (made, Cell(data=d, stages=s, encoder=model, judge=judge(task)))
        for made, model in zip(encoders, models)
        for d, s in stages
        for task in tasks
    ]
    config = BenchConfig(encoders=tuple(m.spec for m in models), out=str(folder), attacks=tuple(attacks), limit=n)
    store = Store(folder)
    store.open(config, cells=[cell for _, cell in grid], environment=ENVIRONMENT)
    for made, cell in grid:
        put(store, made, cell, size)
    return read(folder)


def judge(task: str) -> Judge:
    """The judge of a task."""
    if task == "embedding":
        return Judge(task="embedding", head="bank", fit=Data(source="scenes", split="train"))
    return Judge(task="classification", head="linear", fit=Data(source="scenes", split="train"))


def put(store: Store, made: Made, cell: Cell, size: int = 32) -> None:
    """Make and keep one cell."""
    held = outcomes(made, cell)
    store.put(result(cell, held), held)
    if cell.attack is not None and cell.attack.through == cell.judge.task:
        store.put_gallery(cell.id, gallery(cell, held, size))


def result(cell: Cell, held: dict[str, np.ndarray]) -> Result:
    """The record of a cell with these outcomes."""
    metrics = tuple(
        statistics.mean(o.metric, held[o.name], higher_is_better=o.worse == "lower", unit=o.unit)
        for o in OUTCOMES.values()
        if o.task == cell.judge.task and o.name in held
    )
    cost = Cost(seconds=1.5, forwards=100, backwards=50, peak_mb=321.0)
    return Result(
        id=cell.id,
        cell=cell,
        status="done",
        metrics=metrics,
        cost=cost,
        environment=ENVIRONMENT,
        chunk=64,
        asked=len(held["id"]),
    )


def failed(cell: Cell) -> Result:
    """The record of a cell that crashed."""
    return Result(
        id=cell.id,
        cell=cell,
        status="failed",
        environment=ENVIRONMENT,
        error="Traceback\n  ...\nRuntimeError: <boom> & gone\n",
    )


def outcomes(made: Made, cell: Cell) -> dict[str, np.ndarray]:
    """Outcomes that follow from a threshold per image: the radius (in 1/255) or severity at which it falls."""
    n = cell.data.limit
    draw = numpy_generator("synthetic", made.name).random((4, 4096))[:, :n]
    right = draw[0] < made.clean
    falls = made.threshold * np.exp(0.7 * _probit(draw[1]))
    harm = cell.attack.eps * 255 if cell.attack else 0.0
    if cell.corruption:
        index = CORRUPTIONS.index(cell.corruption.name) if cell.corruption.name in CORRUPTIONS else 2
        harm = 0.3 * made.threshold * cell.corruption.severity * (0.5 + 0.35 * index) * (1.4 - 0.8 * draw[2])
    correct = right & (harm < falls)
    label = np.arange(n) % 10
    held: dict[str, np.ndarray] = {"id": np.array([f"test/{i:05d}" for i in range(n)])}
    score = np.where(right, harm - falls, 0.5 + draw[3])
    if cell.judge.task == "classification":
        held |= {
            "correct": correct,
            "label": label,
            "prediction": np.where(correct, label, (label + 3) % 10),
            "confidence": 0.5 + 0.5 * draw[3],
            "margin": score,
        }
    else:
        drift = 1 - np.exp(-harm / (2 * falls))
        held |= {"cosine": drift, "l2": 3 * drift, "quantile": drift**2, "flip": harm > 0.8 * falls}
        held["knn_correct"] = (draw[2] < made.clean - 0.05) & (harm < 1.1 * falls)
        score = 3 * drift
    if cell.attack and cell.attack.through == cell.judge.task:
        tiny = 1e-3
        held |= {
            "attack_clean_score": np.where(right, -falls, 0.5 + draw[3]),
            "attack_start_score": score if made.masked else score - 0.9 * np.abs(score) - tiny,
            "attack_early_score": score - tiny * (score > 0.5 * tiny),
            "attack_score": score,
            "attack_zero_gradients": np.full(n, 0.38 if made.masked else 0.0),
            "attack_norm": np.full(n, cell.attack.eps),
        }
        if cell.judge.task == "classification":
            held["attack_start_score"] = np.where(right, -falls, score) if not made.masked else score
            held["attack_early_score"] = held["attack_score"]
            held["rounded_correct"] = correct
    return held


def gallery(cell: Cell, held: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Six drawn pictures with a perturbation."""
    draw = numpy_generator("pictures", size)
    y, x = np.mgrid[:size, :size] / size
    clean = np.stack(
        [
            np.stack([(x + k / 6) % 1, y, ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.05 + 0.02 * k) * 1.0], -1)
            for k in range(6)
        ]
    )
    assert cell.attack is not None
    chosen = slice(0, 6)
    none = np.full(6, -1)
    return {
        "id": held["id"][chosen],
        "rule": np.array(["worst", "worst", "median", "median", "surviving", "surviving"]),
        "clean": np.round(clean * 255).astype(np.uint8),
        "delta": (np.sign(draw.random(clean.shape) - 0.5) * cell.attack.eps).astype(np.float16),
        "label": held.get("label", none)[chosen] if "label" in held else none,
        "clean_prediction": held["label"][chosen] if "label" in held else none,
        "prediction": held["prediction"][chosen] if "prediction" in held else none,
        "confidence": held["confidence"][chosen] if "confidence" in held else np.zeros(6),
        "score": held["attack_score"][chosen],
    }


def _probit(u: np.ndarray) -> np.ndarray:
    """A rough inverse of the normal distribution function (logistic)."""
    u = np.clip(u, 1e-6, 1 - 1e-6)
    return np.log(u / (1 - u)) / 1.702
