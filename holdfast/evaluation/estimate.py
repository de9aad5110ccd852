"""How long a grid will take: one chunk of each kind of work is timed, the rest is arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from holdfast.attacks.harm import Rows, ascent
from holdfast.attacks.methods import budget
from holdfast.evaluation.blocks import Bench, corrupted, padded
from holdfast.evaluation.plan import Job
from holdfast.records import Corruption, Data, Model
from holdfast.tasks.embedding import Embedding
from holdfast.tasks.task import still, victim

_Key = tuple[str, ...]


def estimate(todo: Sequence[Job], bench: Bench, fits: Sequence[tuple[Model, Data]], *, chunk: int) -> float:
    """Seconds that jobs will take on this machine, heads included.

    Args:
        todo: what is left to do.
        bench: images, encoders.
        fits: encoder and images of every head or bank that has still to be fitted.
        chunk: images per pass.
    """
    clock = _Clock(bench, chunk)
    seconds = sum(clock.forward(model, data) * len(bench.source(data)) for model, data in fits)
    for job in todo:
        n, models = len(bench.source(job.data)), {cell.encoder.digest(): cell.encoder for cell in job.cells}
        looks = sum(2 for cell in job.cells if cell.judge.task == "saliency")
        for model in models.values():
            seconds += n * clock.forward(model, job.data)
            # Grad-CAM of the clean and of the changed image.
            seconds += n * looks * clock.gradient(model, job.data)
        for stage in job.stages:
            if isinstance(stage, Corruption):
                seconds += n * clock.corruption(stage, job.data)
                continue
            model = job.cells[0].encoder
            cost = budget(stage)
            # What was found and a rounded copy of it are judged too, and what the victim shows about the attack.
            judged = (5 + cost.forwards) * clock.forward(model, job.data)
            seconds += n * (cost.gradients * clock.gradient(model, job.data) + judged)
    return seconds


class _Clock:
    """Seconds per image of a kind of work, measured once on a chunk of real images after a warm-up."""

    def __init__(self, bench: Bench, chunk: int) -> None:
        self.bench, self.chunk = bench, chunk
        self._known: dict[_Key, float] = {}
        self._chunks: dict[str, tuple[Tensor, Rows]] = {}

    def forward(self, model: Model, data: Data) -> float:
        """Of `Encoder.forward`, with what it takes to read the image."""
        encoder, task = self.bench.encoder(model), Embedding()
        pixels, _ = self._pixels(data)

        def work() -> None:
            with still(encoder, task), torch.no_grad():
                encoder.vector(pixels)

        return (
            self._timed(("forward", model.digest_of_weights, *self._shape(data)), work)
            + self._known[("read", data.digest())]
        )

    def gradient(self, model: Model, data: Data) -> float:
        """Of one step of an attack."""
        encoder, task = self.bench.encoder(model), Embedding()
        pixels, rows = self._pixels(data)

        def work() -> None:
            with victim(encoder, task, "mse") as harm:
                truth = {**rows, "clean": torch.zeros(len(pixels), encoder.dim, device=pixels.device)}
                ascent(harm, pixels, truth, torch.zeros(len(pixels), device=pixels.device))

        return self._timed(("gradient", model.digest_of_weights, *self._shape(data)), work)

    def corruption(self, stage: Corruption, data: Data) -> float:
        """Of one corruption at this severity."""
        if stage.root:
            return self._read(data)
        pixels, rows = self._pixels(data)
        return self._timed(
            ("corruption", stage.name, str(stage.severity), *self._shape(data)), lambda: corrupted(pixels, stage, rows)
        )

    def _read(self, data: Data) -> float:
        self._pixels(data)
        return self._known[("read", data.digest())]

    def _timed(self, key: _Key, work: Callable[[], object]) -> float:
        if key not in self._known:
            work()
            began = time.perf_counter()
            work()
            self._known[key] = (time.perf_counter() - began) / self.chunk
        return self._known[key]

    def _shape(self, data: Data) -> _Key:
        return (str(tuple(self._pixels(data)[0].shape)),)

    def _pixels(self, data: Data) -> tuple[Tensor, Rows]:
        digest = data.digest()
        if digest not in self._chunks:
            began = time.perf_counter()
            indices = range(min(self.chunk, len(self.bench.source(data))))
            batch = self.bench.batches(data, indices, self.chunk)[0]
            self._known[("read", digest)] = (time.perf_counter() - began) / len(batch.ids)
            self._chunks[digest] = padded(batch, self.chunk, self.bench.device)
        return self._chunks[digest]
