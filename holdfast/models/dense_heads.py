"""Heads that answer for every pixel, on frozen features of one or several levels of any encoder.

Segmentation: `linear` (batch normalisation and a 1x1 convolution, as DINOv2's linear evaluation, Oquab et al. 2023,
arXiv 2304.07193; with several levels the multi-layer one), `upernet`, `dpt`. Depth: `bins` (DINOv2's linear head, after
AdaBins, Bhat et al. 2021, arXiv 2011.14141: a depth is the mean of fixed bins under the head's weights), `dpt`.

A 1x1 convolution and a bilinear resize may change places, since the weights of a resize sum to 1: all heads project
before they resize, where published code resizes hundreds of channels to throw them away afterwards.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.errors import CheckpointError, ConfigError, nearest
from holdfast.models.decoders import FINER, Dpt, Upernet, resized
from holdfast.models.encoder import Encoder
from holdfast.models.features import Features
from holdfast.records import DenseSpec

Answer = Literal["segmentation", "depth"]
FINER_BINS = 4
"""Bins are resized to so many times the finest grid before they are weighed (DINOv2), and no finer than the image."""
LEAST = 0.1
"""Added to every bin's weight, so that none is zero (DINOv2)."""


class DenseHead(nn.Module, ABC):
    """From features of an encoder to one answer per pixel.

    Args:
        spec: what it reads and answers.
    """

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Answers for images of `size`.

        Args:
            features: with the maps of `spec.levels`, as `models.padding.look` gives them.
            size: height and width in pixels of the images that the features are of.

        Returns:
            Segmentation: logits [b, outputs, *size]. Depth: metres [b, *size], from `spec.near` to `spec.far`.
        """

    def maps(self, features: Features) -> list[Tensor]:
        """The maps [b, c, h, w] of the levels that it reads, from shallow to deep."""
        return [features.maps[level] for level in self.spec.levels]


class Linear(DenseHead):
    """Batch normalisation and a 1x1 convolution of each level, summed on the finest grid.

    On levels of one grid (a ViT's) that is one batch normalisation and one convolution of all levels' channels.
    """

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__(spec)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in spec.channels)
        self.convs = nn.ModuleList(nn.Conv2d(c, spec.outputs, 1, bias=not i) for i, c in enumerate(spec.channels))

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """See `DenseHead`."""
        parts = zip(self.convs, self.norms, self.maps(features), strict=True)
        return resized(_summed([conv(norm(x)) for conv, norm, x in parts]), size)


class Decoded(DenseHead):
    """Classes by a 1x1 convolution on what a decoder gives: `upernet`, `dpt`."""

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__(spec)
        self.decoder = _decoder(spec)
        self.classify = nn.Conv2d(spec.width, spec.outputs, 1)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """See `DenseHead`."""
        return resized(self.classify(self.decoder(self.maps(features))), size)


class Bins(DenseHead):
    """DINOv2's linear depth head: weights of fixed bins, max(z, 0) + 0.1 over their sum, and the bins' mean under them.

    With `cls` every token has the class token beside it: its part is one number per bin and image.
    """

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__(spec)
        self.conv_depth = nn.Conv2d(sum(spec.channels) * (1 + spec.cls), spec.outputs, 1)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """See `DenseHead`."""
        weights = iter(torch.split(self.conv_depth.weight, self._widths(), 1))
        parts = []
        for level, x in zip(self.spec.levels, self.maps(features), strict=True):
            parts.append(functional.conv2d(x, next(weights)))
            if self.spec.cls:
                token = _class_token(features, level)
                parts[-1] = parts[-1] + functional.conv2d(token[:, :, None, None], next(weights))
        assert self.conv_depth.bias is not None, "a convolution with a bias"
        bins = _summed(parts) + self.conv_depth.bias[:, None, None]
        finer = [min(FINER_BINS * side, most) for side, most in zip(bins.shape[-2:], size)]
        weighed = resized(bins, finer)
        weighed = functional.relu(weighed, inplace=weighed is not bins)  # 256 channels: memory is what it costs
        return _metres(_mean(weighed, LEAST, self.spec), size, self.spec)

    def _widths(self) -> list[int]:
        return [c for channels in self.spec.channels for c in (channels,) * (1 + self.spec.cls)]


class DecodedDepth(DenseHead):
    """The mean of fixed bins under the softmax of what a decoder gives: `dpt`.

    A softmax has a gradient everywhere, where a clamped regression has none at its ends.
    """

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__(spec)
        self.decoder = _decoder(spec)
        self.weigh = nn.Conv2d(spec.width, spec.outputs, 1)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """See `DenseHead`."""
        weighed = self.weigh(self.decoder(self.maps(features))).softmax(1)
        return _metres(_mean(weighed, 0.0, self.spec), size, self.spec)


KINDS: dict[Answer, dict[str, Callable[[DenseSpec], DenseHead]]] = {
    "segmentation": {"linear": Linear, "upernet": Decoded, "dpt": Decoded},
    "depth": {"bins": Bins, "dpt": DecodedDepth},
}
"""Kinds of heads by what they answer; the first is the default."""


def build_head(spec: DenseSpec) -> DenseHead:
    """A head with random weights, drawn from the global generator: the caller seeds it, and holds it apart.

    Raises:
        ConfigError: an unknown kind, or a spec that cannot be.
    """
    kinds = KINDS[spec.task]
    if spec.kind not in kinds:
        raise ConfigError(f'there is no head "{spec.kind}" for {spec.task}.', next=nearest(spec.kind, kinds))
    wrong = _wrong(spec)
    if wrong:
        raise ConfigError(f"a {spec.kind} head for {spec.task} cannot be: {wrong}.", next="Change that.")
    return kinds[spec.kind](spec)


def default_levels(encoder: Encoder, kind: str = "") -> tuple[str, ...]:
    """The levels that a head reads where none are named, from shallow to deep.

    Of a ViT the last four blocks; for a decoder (`upernet`, `dpt`) four that are evenly spread, as DPT reads them
    (Ranftl et al. 2021). Of a CNN all stages but the first, for `bins` but the first two. Of a module that shows
    nothing else its last map.
    """
    blocks = [level for level in encoder.levels if level.startswith("block")]
    stages = [level for level in encoder.levels if level.startswith("stage")]
    if not blocks:
        # Bins are upsampled four times: on a map of a quarter of the image that would be all bins for every pixel.
        return tuple((stages[2:] if kind == "bins" else []) or stages[1:] or stages or ("patch",))
    if kind not in ("upernet", "dpt"):
        return tuple(blocks[-4:])
    count = min(4, len(blocks))
    return tuple(blocks[len(blocks) * (i + 1) // count - 1] for i in range(count))


def spec_for(
    encoder: Encoder,
    task: Answer,
    kind: str = "",
    levels: Sequence[str] = (),
    *,
    outputs: int,
    width: int = 64,
    near: float = 0.001,
    far: float = 10.0,
) -> DenseSpec:  # parameters: the fields of the record that an encoder does not say
    """What a head on this encoder is.

    Args:
        encoder: whose levels are read.
        task: segmentation or depth.
        kind: of head; empty = linear, or bins.
        levels: from shallow to deep; empty = `default_levels`.
        outputs: classes, or bins.
        width: channels of a decoder.
        near: smallest depth in metres.
        far: largest.

    Raises:
        ConfigError: an unknown kind or level, or a level without positions.
    """
    kind = kind or next(iter(KINDS[task]))
    if kind not in KINDS[task]:
        raise ConfigError(f'there is no head "{kind}" for {task}.', next=nearest(kind, KINDS[task]))
    levels = tuple(levels) or default_levels(encoder, kind)
    for level in levels:
        if level not in encoder.mapped:
            raise ConfigError(f'{encoder.name} has no map at "{level}".', next=nearest(level, encoder.mapped))
    return DenseSpec(
        task=task,
        kind=kind,
        levels=levels,
        channels=tuple(encoder.dims(level) for level in levels),
        outputs=outputs,
        cls=kind == "bins" and "cls1" in encoder.levels,
        width=width,
        near=near,
        far=far,
    )


def check_fits(spec: DenseSpec, encoder: Encoder) -> None:
    """Refuse a head that was made for other levels than this encoder has.

    Raises:
        ConfigError: which levels, and how wide both are.
    """
    widths = tuple(encoder.dims(level) if level in encoder.mapped else 0 for level in spec.levels)
    if widths != spec.channels:
        raise ConfigError(
            f"the head reads {', '.join(f'{c} of {level}' for c, level in zip(spec.channels, spec.levels))}; "
            f"{encoder.name} has {', '.join(map(str, widths))} there.",
            next="Name the head that was fitted on this encoder.",
        )
    if spec.cls and "cls1" not in encoder.levels:
        raise ConfigError(
            f"the head reads a class token, and {encoder.name} has none.",
            next="Name the head that was fitted on this encoder.",
        )


def _wrong(spec: DenseSpec) -> str:
    """What about a spec cannot be; empty where nothing is."""
    tokens = _tokens(spec)
    decoded = spec.kind in ("upernet", "dpt")
    checks = {
        f"{len(spec.levels)} levels with {len(spec.channels)} widths": len(spec.levels) != len(spec.channels),
        "no level": not spec.levels,
        "a level twice": len(set(spec.levels)) != len(spec.levels),
        f"channels {spec.channels}": min(spec.channels, default=1) < 1,
        f"outputs {spec.outputs}": spec.outputs < 2,
        f"width {spec.width}": spec.width < 1,
        f"depth from {spec.near} to {spec.far} metres": not 0 < spec.near < spec.far < float("inf"),
        "a class token, which bins alone read": spec.cls and spec.kind != "bins",
        f"{len(spec.levels)} levels of a ViT, where a decoder reads {len(FINER)}": decoded
        and tokens
        and len(spec.levels) > len(FINER),
    }
    return next((what for what, bad in checks.items() if bad), "")


def _tokens(spec: DenseSpec) -> bool:
    """Whether the levels are of a ViT, and so of one grid."""
    return not any(level.startswith("stage") for level in spec.levels)


def _decoder(spec: DenseSpec) -> Upernet | Dpt:
    kind = Upernet if spec.kind == "upernet" else Dpt
    return kind(spec.channels, spec.width, tokens=_tokens(spec))


def _summed(maps: Sequence[Tensor]) -> Tensor:
    """The sum of maps on the finest of their grids."""
    finest = max((x.shape[-2:] for x in maps), key=lambda size: size[0] * size[1])
    return functools.reduce(torch.add, (resized(x, finest) for x in maps))


def _mean(weights: Tensor, least: float, spec: DenseSpec) -> Tensor:
    """The mean in metres of the bins under weights [b, outputs, h, w] that each are raised by `least` -> [b, 1, h, w].

    One pass over all the bins gives their weighted sum and the sum of their weights.
    """
    bins = torch.linspace(spec.near, spec.far, spec.outputs, device=weights.device)
    both = torch.stack([bins, torch.ones_like(bins)])[:, :, None, None]
    sums = functional.conv2d(weights, both, least * both.sum((1, 2, 3)))
    return sums[:, :1] / sums[:, 1:]


def _metres(depth: Tensor, size: tuple[int, int], spec: DenseSpec) -> Tensor:
    """[b, 1, h, w] -> [b, *size]; the last digit of a sum is kept within the range, as DINOv2's clamp does."""
    return resized(depth, size)[:, 0].clamp(spec.near, spec.far)


def _class_token(features: Features, level: str) -> Tensor:
    """[b, c] at a level."""
    if level not in features.prefix:
        raise CheckpointError(
            f'the encoder has no class token at "{level}".', next="Fit a head on this encoder: holdfast probe."
        )
    return features.prefix[level][:, 0]
