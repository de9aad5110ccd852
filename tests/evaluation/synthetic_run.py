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
from holdfast.evaluation.published import CORRUPTIONS as ALL
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
NO_OPENCV = "spatter was asked for. OpenCV, which outlines the drops, is not installed."
CLASSES = ("cat", "dog", "<i>owl</i>", "fox", "hen", "ant", "bee", "cow", "pig", "emu")


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
    absent: Sequence[str] = (),
    **data: Any,
) -> Run:
    """Write a run of `n` images and read it back; the first half of them is attacked, a quarter is looked at.

    Corruptions that are `absent` have failed cells. The fields of `data` are those of the images and of the stages.
    """
    shown = Data(source=data.get("source", "scenes"), split="test", limit=n, digest_of_images=f"images{n}")
    some = msgspec.structs.replace(shown, limit=n // 2, digest_of_images=f"images{n // 2}")
    stages: list[tuple[Data, tuple[Stage, ...]]] = [(shown, ())]
    fields = {"variant": "cifar32"} | {k: v for k, v in data.items() if k in Corruption.__struct_fields__}
    stages += [(shown, (Corruption(name=c, severity=s, **fields),)) for c in corruptions for s in (1, 2, 3, 4, 5)]
    stages += [(some, (msgspec.structs.replace(a, eps=e),)) for a in attacks for e in EPS]
    models = [Model(spec=f"{m.name}.pth", name=m.name, digest_of_weights=f"{at:064d}") for at, m in enumerate(encoders)]
    grid = [
        (made, Cell(data=d, stages=s, encoder=model, judge=judge(task)))
        for made, model in zip(encoders, models)
        for d, s in stages
        for task in tasks
        if task != "saliency"
    ]
    if "saliency" in tasks:
        looked = msgspec.structs.replace(shown, limit=n // 4, digest_of_images=f"images{n // 4}")
        grid += [
            (made, Cell(data=looked, stages=s, encoder=model, judge=judge("saliency")))
            for made, model in zip(encoders, models)
            for d, s in stages
            if d is shown
        ]
    config = BenchConfig(encoders=tuple(m.spec for m in models), out=str(folder), attacks=tuple(attacks), limit=n)
    store = Store(folder)
    store.open(config, cells=[cell for _, cell in grid], environment=ENVIRONMENT)
    for made, cell in grid:
        if cell.corruption is not None and cell.corruption.name in absent:
            error = f"Traceback\n  ...\nholdfast.errors.ConfigError: {NO_OPENCV}\n"
            store.put(msgspec.structs.replace(failed(cell), error=error), {})
        else:
            put(store, made, cell, size)
    return read(folder)


def judge(task: str) -> Judge:
    """The judge of a task."""
    if task == "embedding":
        return Judge(task="embedding", head="bank", fit=Data(source="scenes", split="train"))
    if task == "saliency":
        return Judge(task="saliency", head="linear", target="predicted", fit=Data(source="scenes", split="train"))
    if task == "segmentation" or task == "depth":
        return Judge(task=task, head="given", level="dense")
    return Judge(task="classification", head="linear", fit=Data(source="scenes", split="train"))


def put(store: Store, made: Made, cell: Cell, size: int = 32) -> None:
    """Make and keep one cell."""
    held = outcomes(made, cell)
    store.put(result(cell, held), held)
    if cell.attack is not None and cell.attack.through == cell.judge.task:
        store.put_gallery(cell.id, gallery(cell, held, size))
    if cell.corruption is not None and cell.judge.task == "saliency":
        store.put_gallery(cell.id, looks(cell, held, size))


def result(cell: Cell, held: dict[str, np.ndarray]) -> Result:
    """The record of a cell with these outcomes."""
    metrics = tuple(
        statistics.mean(o.metric, held[o.name], higher_is_better=o.worse == "lower", unit=o.unit)
        for o in OUTCOMES.values()
        if o.task == cell.judge.task and o.name in held
    )
    metrics += tuple(
        statistics.mean(name, held[name], higher_is_better=name != "cam_drift", unit=unit)
        for name, unit in (("cam_drift", "1 - cosine"), ("ssim", "SSIM"), ("psnr", "dB"))
        if name in held
    )
    if cell.judge.task == "saliency":
        metrics += (statistics.mean("accuracy", held["correct"]),)
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
        harm = 0.3 * made.threshold * _strength(cell.corruption) * (1.4 - 0.8 * draw[2])
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
    elif cell.judge.task == "saliency":
        strength = _strength(cell.corruption) if cell.corruption else 0.0
        spread = numpy_generator("similarity").random(4096)[:n]
        wrong = (label + 3) % 10
        held |= {
            "cam_drift": 1 - np.exp(-harm / (4 * falls)),
            "ssim": np.exp(-strength * (0.1 + 0.1 * spread)),
            "psnr": 35 - 3 * strength + 4 * spread if strength else np.full(n, 100.0),
            "label": label,
            "prediction": np.where(correct, label, wrong),
            "correct": correct,
            "clean_prediction": np.where(right, label, wrong),
            "clean_correct": right,
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


def looks(cell: Cell, held: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Four drawn pictures before and after a corruption, with maps of 4 x 4 positions."""
    assert cell.corruption is not None
    clean = _drawn(size)[:4]
    draw = numpy_generator("pictures", cell.corruption.name)
    noise = 12.0 * cell.corruption.severity * draw.standard_normal(clean.shape)
    at, rules = np.arange(4), np.array(["worst", "median", "all correct", "class"])
    maps = draw.random((2, 4, 4, 4))
    return {
        "id": held["id"][at],
        "rule": rules,
        "clean": clean,
        "changed": np.clip(clean + noise, 0, 255).astype(np.uint8),
        "clean_map": maps[0].astype(np.float16),
        "map": maps[1].astype(np.float16),
        **{name: held[name][at] for name in ("cam_drift", "ssim", "label", "clean_prediction", "prediction")},
        "classes": np.array(CLASSES),
    }


def gallery(cell: Cell, held: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Six drawn pictures with a perturbation."""
    draw = numpy_generator("pictures", size)
    clean = _drawn(size)
    assert cell.attack is not None
    chosen = slice(0, 6)
    none = np.full(6, -1)
    return {
        "id": held["id"][chosen],
        "rule": np.array(["worst", "worst", "median", "median", "surviving", "surviving"]),
        "clean": clean,
        "delta": (np.sign(draw.random(clean.shape) - 0.5) * cell.attack.eps).astype(np.float16),
        "label": held.get("label", none)[chosen] if "label" in held else none,
        "clean_prediction": held["label"][chosen] if "label" in held else none,
        "prediction": held["prediction"][chosen] if "prediction" in held else none,
        "confidence": held["confidence"][chosen] if "confidence" in held else np.zeros(6),
        "score": held["attack_score"][chosen],
    }


def _drawn(size: int) -> np.ndarray:
    """Six pictures uint8 [6, size, size, 3]: a disc on a gradient."""
    y, x = np.mgrid[:size, :size] / size
    discs = [((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.05 + 0.02 * k) * 1.0 for k in range(6)]
    shades = np.stack([np.stack([(x + k / 6) % 1, y, discs[k]], -1) for k in range(6)])
    return np.round(shades * 255).astype(np.uint8)


def _strength(stage: Corruption) -> float:
    """How strong a corruption is: the first five names as listed, others in turn; snow and its like dip at 3."""
    index = CORRUPTIONS.index(stage.name) if stage.name in CORRUPTIONS else 2
    if stage.name in ALL and stage.name not in CORRUPTIONS:
        index = (2 * ALL.index(stage.name)) % 5
    dips = stage.name in ("snow", "elastic_transform", "saturate") and stage.severity == 3
    return (1.5 if dips else stage.severity) * (0.5 + 0.35 * index)


def _probit(u: np.ndarray) -> np.ndarray:
    """A rough inverse of the normal distribution function (logistic)."""
    u = np.clip(u, 1e-6, 1 - 1e-6)
    return np.log(u / (1 - u)) / 1.702
