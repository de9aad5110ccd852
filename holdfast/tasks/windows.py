"""How a dense head sees images of any size: whole, or through windows that slide over them.

An answer is the same whether one window covers the image or the image is seen whole; windows of all images of a batch
go through the encoder together. Under attack the gradient reaches the pixels through every window that sees them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from holdfast.attacks.harm import See
from holdfast.errors import ConfigError, PixelError, nearest
from holdfast.models.dense_heads import DenseHead, check_fits
from holdfast.models.encoder import Encoder
from holdfast.models.padding import framed, look
from holdfast.models.precision import Engine, Precision
from holdfast.tasks.sliding import Mean, Plan, Run, cropped, planned, slid, slid_again

AT_ONCE = 2**19
"""Pixels in a pass of windows where no number of windows is named: two of 512 x 512, 512 of 32 x 32."""


class Windows(NamedTuple):
    """Windows that slide over an image.

    Attributes:
        window: side in pixels; 0 = the whole image. Of an image that is smaller, its own side.
        stride: from one window to the next in pixels; 0 = two thirds of a window (512: 341, as mmsegmentation).
        average: where windows overlap: of the probabilities, or of the logits.
        batch: windows per pass; 0 = as many as have `AT_ONCE` pixels. Whole images are one pass.
        memory: keep the activations of all windows for the way back, or recompute those of one pass at a time: memory
            is then bounded by a pass, and a step costs about half as much again.
    """

    window: int = 0
    stride: int = 0
    average: Literal["softmax", "logits"] = "softmax"
    batch: int = 0
    memory: Literal["keep", "recompute"] = "keep"


WHOLE = Windows()


def dense_see(
    encoder: Encoder,
    head: DenseHead,
    windows: Windows = WHOLE,
    *,
    precision: Precision = "fp32",
    engine: Engine = "eager",
) -> See:
    """The function from pixels to a dense head's answers.

    Args:
        encoder: gives the features; both it and the head are used as they are (`frozen` sets their modes).
        head: that was made for this encoder.
        windows: how images are seen.
        precision: of the encoder; the head runs in float32.
        engine: of the encoder.

    Returns:
        From float32 [b, 3, h, w] in [0, 1], of any size, to `logits` [b, K, h, w], or to `depth` [b, h, w] in metres.
        Where several windows were averaged by `softmax`, logits are the logarithm of the mean probability: cross
        entropy and argmax mean with them what they mean with the logits of one window.

    Raises:
        ConfigError: the head is another encoder's, or the windows cannot be.
    """
    checked(windows)
    check_fits(head.spec, encoder)
    name = "logits" if head.spec.task == "segmentation" else "depth"

    def run(crops: Tensor) -> Tensor:
        features, frame = look(encoder, head.spec, crops, precision=precision, engine=engine)
        with torch.autocast(crops.device.type, enabled=False):
            answers: Tensor = head(features, frame.size)
        return frame.undone(answers)

    def see(pixels: Tensor) -> dict[str, Tensor]:
        plan = plan_for(pixels, windows)
        soft = plan.windows > 1 and windows.average == "softmax" and name == "logits"
        mean: Mean = "probabilities" if soft else "values"
        answer: Run = (lambda crops: run(crops).log_softmax(1)) if soft else run
        if windows.memory == "recompute":
            return {name: slid_again(answer, pixels, plan, mean, (encoder, head))}
        return {name: slid(answer, pixels, plan, mean) if plan.windows > 1 else answer(pixels)}

    return see


def window_tokens(
    encoder: Encoder,
    level: str,
    windows: Windows = WHOLE,
    *,
    precision: Precision = "fp32",
    engine: Engine = "eager",
) -> See:
    """The function from pixels to every position of a map in every window: what EmbedAttack raises on dense tasks.

    Args:
        encoder: gives the map.
        level: as `Encoder.tokens` takes it.
        windows: how images are seen; `average` says nothing here.
        precision: as `Encoder.tokens` takes it.
        engine: as `Encoder.tokens` takes it.

    Returns:
        From float32 [b, 3, h, w] to `embedding` [b, windows * positions * channels], window by window; what overlaps is
        there as often as it is seen (Kowalczuk et al. 2024, arXiv 2407.12588).

    Raises:
        ConfigError: the encoder has no such map, or the windows cannot be.
    """
    checked(windows)
    if level not in encoder.mapped:
        raise ConfigError(f'{encoder.name} has no map at "{level}".', next=nearest(level, encoder.mapped))

    def run(crops: Tensor) -> Tensor:
        whole, _ = framed(encoder, crops)
        return encoder.tokens(whole, level, precision=precision, engine=engine).flatten(1)

    def kept_or_not(crops: Tensor) -> Tensor:
        if windows.memory == "keep" or not torch.is_grad_enabled():
            return run(crops)
        return checkpoint(run, crops, use_reentrant=False)

    def see(pixels: Tensor) -> dict[str, Tensor]:
        plan = plan_for(pixels, windows)
        if plan.windows == 1:
            return {"embedding": kept_or_not(pixels)}
        seen = torch.cat([kept_or_not(crops) for crops in cropped(plan, pixels)])
        return {"embedding": seen.view(plan.windows, len(pixels), -1).transpose(0, 1).flatten(1)}

    return see


def plan_for(pixels: Tensor, windows: Windows) -> Plan:
    """The windows of a batch of images [b, 3, h, w].

    Raises:
        PixelError: pixels of another shape.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise PixelError(f"pixels have shape {tuple(pixels.shape)}.", next="Give [b, 3, h, w].")
    images, _, height, width = pixels.shape
    side = (min(windows.window or height, height), min(windows.window or width, width))
    stride = windows.stride or max(1, windows.window * 2 // 3)
    most = windows.batch or max(1, AT_ONCE // (side[0] * side[1]))
    return planned(images, (height, width), side, (stride, stride), most)


def checked(windows: Windows) -> Windows:
    """Windows that can be.

    Raises:
        ConfigError: a negative number, an unknown word, or a stride that leaves pixels unseen.
    """
    for name, known in (("average", ("softmax", "logits")), ("memory", ("keep", "recompute"))):
        if getattr(windows, name) not in known:
            raise ConfigError(f'{name} "{getattr(windows, name)}".', next=nearest(getattr(windows, name), known))
    for name in ("window", "stride", "batch"):
        if getattr(windows, name) < 0:
            raise ConfigError(f"{name} is {getattr(windows, name)}.", next=f"{name} is a whole number from 0.")
    if windows.stride > windows.window:
        found = f"a stride of {windows.stride} pixels leaves some unseen between windows of {windows.window}."
        raise ConfigError(
            found if windows.window else f"a stride of {windows.stride} pixels, and no window.",
            next="Give a window at least as large as the stride.",
        )
    return windows
