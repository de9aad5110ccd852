"""What an attack on a few images goes through, and the head from a file that answers for every pixel."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from holdfast.attacks.harm import Rows
from holdfast.configs import AttackConfig, BenchConfig
from holdfast.data.batches import Image, Source
from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.dense_judges import DenseHeads
from holdfast.evaluation.dense_pictures import TRUTHS
from holdfast.models.dense_files import ReadHead, read_dense_head
from holdfast.models.encoder import Encoder
from holdfast.records import DENSE_TASKS, Data, Judge
from holdfast.tasks.task import Task


class Head(NamedTuple):
    """A head that answers for every pixel.

    Attributes:
        judge: its record.
        task: what is attacked, and answers.
        file: where it lies.
        own: whether it was fitted on this very encoder; None = its file does not say.
    """

    judge: Judge
    task: Task
    file: str
    own: bool | None


def decided(config: AttackConfig) -> AttackConfig:
    """The config with nothing left open about what the attack goes through.

    Raises:
        ConfigError: several heads, one that the attack does not go through, or none where one is needed; another
            encoder, which the head does not read; a class to aim at.
    """
    given = {"segmentation": config.segmentation_heads, "depth": config.depth_heads}
    named = [task for task, heads in given.items() if heads]
    if len(named) > 1 or any(len(heads) > 1 for heads in given.values()):
        raise ConfigError(
            f"{sum(map(len, given.values()))} dense heads for one attack on one encoder.",
            next="Name one: --segmentation-heads A, or --depth-heads A.",
        )
    through = config.through or (named[0] if named else "embedding")
    if named and through not in named:
        raise ConfigError(
            f"--{named[0]}-heads was given, and the attack goes through {through}.",
            next=f"Leave one of the two out; --{named[0]}-heads alone attacks through {named[0]}.",
        )
    if through in DENSE_TASKS and not named:
        raise ConfigError(
            f"an attack through {through}, and no head was named that answers it.",
            next=f"holdfast probe {config.encoder or 'ENCODER'} --task {through} --data {config.data} "
            f"--out runs/{through}; then --{through}-heads runs/{through}",
        )
    if named and config.surrogate:
        raise ConfigError(
            f"an attack made on {config.surrogate}, whose features the head of {named[0]} does not read.",
            next="Leave --surrogate out.",
        )
    if named and (config.target or config.aim == "towards"):
        raise ConfigError(
            f"an attack through {named[0]} towards a class, which is for whole images.",
            next="Aim at the likeliest wrong classes of pixels, --push ce_target --targets 3; or attack through "
            "classification.",
        )
    return msgspec.structs.replace(config, through=through)


def dense_head(config: AttackConfig, encoder: Encoder, source: Source | None = None) -> Head | None:
    """The head that an attack goes through, matched to encoder and images; None where it goes through none such.

    Args:
        config: as `decided` returns it.
        encoder: whose features the head reads.
        source: of the images; None = images that were handed over, whose classes and range are taken to be the head's.

    Raises:
        CheckpointError: no such file, or no dense head.
        ConfigError: a head of another task, of another encoder's levels, or of other classes than the images have.
        DataError: images without masks, or without depth.
    """
    if config.through not in DENSE_TASKS:
        return None
    (file,) = config.segmentation_heads or config.depth_heads
    asked = BenchConfig(
        segmentation_heads=config.segmentation_heads,
        depth_heads=config.depth_heads,
        window=config.window,
        stride=config.stride,
        depth_crop=config.depth_crop,
        tasks=(config.through,),  # type: ignore[arg-type]  # one of `DENSE_TASKS`
    )
    heads = DenseHeads(asked, encoder.mean.device)
    read = read_dense_head(file, encoder=encoder)
    shown = _Handed(read) if source is None else source
    judge = heads.judges(encoder.model, encoder, shown)[config.through]
    fitted_on = read.metadata.get("digest_of_encoder")
    return Head(judge, heads.task(judge, shown), file, None if fitted_on is None else fitted_on == encoder.digest())


def truth_of(truth: Tensor | None, through: str, images: int) -> Rows:
    """What the answers of a dense head are compared with, as a row; `Task.truth` looks at its values.

    Args:
        truth: masks, integers [b, h, w], or depth in metres [b, h, w].
        through: segmentation or depth.
        images: how many there are, b.

    Raises:
        DataError: none, or not one for each image.
    """
    kind, known = ("int64", torch.int64) if through == "segmentation" else ("float32", torch.float32)
    wanted = {"segmentation": "masks", "depth": "measured depth"}[through]
    if not isinstance(truth, Tensor) or truth.ndim != 3 or len(truth) != images:
        shown = f"{truth.dtype} {list(truth.shape)}" if isinstance(truth, Tensor) else "none"
        raise DataError(
            f"given was {shown}.",
            asked=f"An attack through {through} is judged by {wanted}:",
            next=f"Give {kind} of shape [{images}, h, w].",
        )
    return {TRUTHS[through]: truth.to(known)}


class _Handed(Source):
    """Images that were handed over in Python: their masks have the head's classes, their depth its range."""

    def __init__(self, read: ReadHead) -> None:
        self.data, self.ids, self.labels, self.classes = Data(source="images"), [], None, ()
        self.parts, self.max_depth = read.parts, 0.0 if read.parts else read.head.spec.far

    def read(self, i: int) -> Image:
        """Never asked for."""
        raise NotImplementedError
