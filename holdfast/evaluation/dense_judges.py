"""The heads of a bench that answer for every pixel: read once, matched to encoder and images, made into judges."""

from __future__ import annotations

from typing import Literal

import torch

from holdfast.configs import BenchConfig
from holdfast.data.batches import Source
from holdfast.errors import ConfigError, DataError
from holdfast.models.dense_files import ReadHead, read_dense_head
from holdfast.models.dense_heads import DenseHead, check_fits
from holdfast.models.encoder import Encoder
from holdfast.records import Judge, Model
from holdfast.tasks.depth import Depth
from holdfast.tasks.segmentation import Segmentation
from holdfast.tasks.task import DENSE, Task
from holdfast.tasks.windows import Windows

Answer = Literal["segmentation", "depth"]


class DenseHeads:
    """Dense heads by encoder and task.

    Args:
        config: names a head of each task for each encoder, in their order.
        device: where heads live.
    """

    def __init__(self, config: BenchConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        given: dict[Answer, tuple[str, ...]] = {
            "segmentation": config.segmentation_heads,
            "depth": config.depth_heads,
        }
        self._given = {task: heads for task, heads in given.items() if heads}
        self._heads: dict[str, ReadHead] = {}
        self._order: list[str] = []

    def check(self, encoders: int) -> None:
        """Refuse heads that are not one for each encoder.

        Raises:
            ConfigError: how many there are of both.
        """
        for task, heads in self._given.items():
            if len(heads) != encoders:
                raise ConfigError(
                    f"{len(heads)} heads of {task} for {encoders} encoders.",
                    next=f"Name one for each, in their order: --{task}-heads A B ...",
                )

    def judges(self, model: Model, encoder: Encoder, source: Source) -> dict[str, Judge]:
        """The judges of the next encoder, in the order of the config.

        Args:
            model: of the encoder.
            encoder: whose levels the heads read.
            source: images that they answer for.

        Raises:
            ConfigError: a head of another task, of another encoder's levels, or of other classes than the images have.
            DataError: images without masks, or without depth.
        """
        if model.digest_of_weights not in self._order:
            self._order.append(model.digest_of_weights)
        at = self._order.index(model.digest_of_weights)
        found: dict[str, Judge] = {}
        for task, heads in self._given.items():
            if task not in self.config.tasks:
                continue
            read = read_dense_head(heads[at], encoder=encoder)
            _check(task, heads[at], read, encoder, source)
            read.head.to(self.device)
            self._heads[read.digest] = read
            found[task] = Judge(
                task=task,
                head="given",
                level=DENSE,
                digest_of_head=read.digest,
                window=self.config.window,
                stride=self.config.stride,
                crop=self.config.depth_crop if task == "depth" else "none",
            )
        return found

    def task(self, judge: Judge, source: Source) -> Task:
        """The task of a judge, on these images."""
        if judge.digest_of_head not in self._heads:
            raise ConfigError(
                f"no head that was given has the digest {judge.digest_of_head[:12]}: a file was replaced.",
                next=f"Put the head of {judge.task} that was measured back.",
            )
        read = self._heads[judge.digest_of_head]
        head: DenseHead = read.head
        memory: Literal["keep", "recompute"] = "recompute" if self.config.recompute else "keep"
        windows = Windows(window=judge.window, stride=judge.stride, memory=memory)
        if judge.task == "segmentation":
            return Segmentation(head=head, parts=source.parts, windows=windows, sizes=read.sizes)
        return Depth(head=head, windows=windows, max_depth=source.max_depth, crop=judge.crop)


def _check(task: Answer, name: str, read: ReadHead, encoder: Encoder, source: Source) -> None:
    spec, where = read.head.spec, source.data.root or source.data.source
    if spec.task != task:
        raise ConfigError(f"{name} is a head of {spec.task}.", next=f"Name it with --{spec.task}-heads.")
    check_fits(spec, encoder)
    if task == "segmentation" and not source.parts:
        raise DataError(f"{where} has no masks.", next="See holdfast ls layouts, or leave --segmentation-heads out.")
    if task == "segmentation" and (spec.outputs != len(source.parts) or read.parts != source.parts):
        raise ConfigError(
            f"{name} answers for {spec.outputs} classes ({', '.join(read.parts[:4])}...), "
            f"{where} has {len(source.parts)} ({', '.join(source.parts[:4])}...).",
            next="Fit a head on these classes: holdfast probe --task segmentation.",
        )
    if task == "depth" and not source.max_depth:
        raise DataError(f"{where} has no depth.", next="See holdfast ls layouts, or leave --depth-heads out.")
