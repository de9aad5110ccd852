"""How a trunk is read: its levels, the maps and tokens at each, and what the head sees.

Levels are `pooled` (what the head reads), `patch` (the last map before pooling; of a ViT its patch tokens as a map),
`stageN` (the N-th map of timm's `feature_info`, from 0), `blockN` (a ViT's patch tokens after block N, as a map) and
`clsN` (the class tokens of the last N blocks; N = 4 and N = 1 are DINO's linear evaluation, Caron et al. 2021).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.errors import CheckpointError, ConfigError, nearest


class Features(NamedTuple):
    """What an encoder sees in b images.

    Attributes:
        pooled: [b, d], what a head reads.
        maps: per level that was asked for, [b, c, h, w].
        prefix: per level, the tokens that are no patches (class token, registers), [b, p, c]; of `clsN` the N class
            tokens, from shallow to deep. Empty for CNNs.
    """

    pooled: Tensor
    maps: dict[str, Tensor]
    prefix: dict[str, Tensor]


class CamLayer(NamedTuple):
    """A module at which Grad-CAM reads activations.

    Attributes:
        module: it runs on the way to the level.
        side: which of its tensors is meant, the first input or the output.
        prefix: leading tokens of [b, p + n, c] that are no patches; None = the tensor is a map [b, c, h, w].
    """

    module: nn.Module
    side: Literal["input", "output"]
    prefix: int | None


class Reader(ABC):
    """Reads one kind of trunk; holds no weights.

    Attributes:
        levels: the names of all levels.
    """

    levels: tuple[str, ...]

    @abstractmethod
    def read(self, x: Tensor, levels: Sequence[str], normed: bool) -> Features:
        """Features of normalised pixels [b, 3, h, w] at these levels."""

    @abstractmethod
    def at(self, x: Tensor, level: str) -> Features:
        """As `read` at one level other than `pooled`, no further than needed: `pooled` stays empty, [b, 0]."""

    @abstractmethod
    def dims(self, level: str) -> int | None:
        """Width of the vector at a level, [b, width]; None where only a trial shows it."""

    @abstractmethod
    def cam_layer(self, level: str) -> CamLayer | None:
        """Where Grad-CAM reads (Selvaraju et al. 2017): the last map, or the last patch tokens, before the level pools.

        None = the map of the level itself (of `pooled`: that of `patch`), which `onwards` pools.

        Raises:
            ConfigError: the trunk has no such layer.
        """

    def onwards(self, seen: Tensor, level: str) -> Tensor:
        """The vector [b, d] of a level from the map that it pools, where `cam_layer` is None."""
        return seen.mean((2, 3))

    def check(self, levels: Sequence[str]) -> None:
        """Raise `ConfigError` for a level that the trunk has not; the nearest is named."""
        for level in levels:
            if level not in self.levels:
                raise ConfigError(f'the encoder has no level "{level}".', next=nearest(level, self.levels))


def reader(trunk: nn.Module) -> Reader:
    """The reader that fits a trunk: timm's dialect where it is spoken, else the output of the module alone."""
    dialect = ("forward_features", "forward_intermediates", "forward_head", "get_classifier", "feature_info")
    if not all(hasattr(trunk, name) for name in dialect):
        return Opaque(trunk)
    tokens = hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "blocks")
    return Tokens(trunk) if tokens else Maps(trunk)


class Opaque(Reader):
    """A module that gives [b, d] or [b, c, h, w] and shows nothing else."""

    def __init__(self, trunk: nn.Module) -> None:
        self.trunk = trunk
        self.levels = ("pooled", "patch")

    def read(self, x: Tensor, levels: Sequence[str], normed: bool) -> Features:
        """See `Reader`; a map is averaged. `normed` has no meaning here."""
        y = self.trunk(x)
        if not isinstance(y, Tensor) or y.ndim not in (2, 4):
            shape = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise CheckpointError(
                f"{type(self.trunk).__name__} gives {shape}.", next="Wrap it so that it gives [b, d] or [b, c, h, w]."
            )
        if y.ndim == 2 and "patch" in levels:
            raise ConfigError(f"{type(self.trunk).__name__} gives [b, d] and no map.", next='Use the level "pooled".')
        return Features(y if y.ndim == 2 else y.mean((2, 3)), {"patch": y} if "patch" in levels else {}, {})

    def at(self, x: Tensor, level: str) -> Features:
        """See `Reader`."""
        return self.read(x, (level,), True)

    def dims(self, level: str) -> int | None:
        """None: the module does not say."""
        return None

    def cam_layer(self, level: str) -> CamLayer | None:
        """What its last adaptive pooling averages, where no convolution comes after it; else the map that it gives."""
        parts = [m for m in self.trunk.modules() if isinstance(m, (nn.AdaptiveAvgPool2d, nn.Conv2d))]
        last = parts[-1] if parts else None
        return CamLayer(last, "input", None) if isinstance(last, nn.AdaptiveAvgPool2d) else None


class Maps(Reader):
    """A CNN, or a hierarchical transformer, in timm's dialect."""

    def __init__(self, trunk: Any) -> None:
        self.trunk = trunk
        self.channels = [int(stage["num_chs"]) for stage in trunk.feature_info]
        self.levels = ("pooled", "patch", *(f"stage{i}" for i in range(len(self.channels))))

    def read(self, x: Tensor, levels: Sequence[str], normed: bool) -> Features:
        """See `Reader`; `normed` has no meaning here."""
        stages = _numbers("stage", levels)
        if stages:
            final, taken = self.trunk.forward_intermediates(x, indices=stages)
            maps = {f"stage{i}": y for i, y in zip(stages, taken, strict=True)}
        else:
            final, maps = self.trunk.forward_features(x), {}
        if "patch" in levels:
            maps["patch"] = self._last(final)
        return Features(_pooled(self.trunk, final), maps, {})

    def at(self, x: Tensor, level: str) -> Features:
        """See `Reader`."""
        if level == "patch":
            return Features(x.new_empty(len(x), 0), {level: self._last(self.trunk.forward_features(x))}, {})
        only = self.trunk.forward_intermediates(
            x, indices=_numbers("stage", (level,)), stop_early=True, intermediates_only=True
        )
        return Features(x.new_empty(len(x), 0), {level: only[0]}, {})

    def dims(self, level: str) -> int | None:
        """See `Reader`."""
        if level.startswith("stage"):
            return self.channels[_numbers("stage", (level,))[0]]
        return _width(self.trunk) if level == "pooled" else int(self.trunk.num_features)

    def cam_layer(self, level: str) -> CamLayer | None:
        """The map itself; of a channels-last transformer (Swin) the second LayerNorm of its last block."""
        if level.startswith("stage") or not self._channels_last():
            return None
        norms = [m for name, m in self.trunk.named_modules() if name.rpartition(".")[2] == "norm2"]
        if not norms:
            raise ConfigError(
                f"{type(self.trunk).__name__} has no block with a norm2.", next=f'Use "{self.levels[-1]}".'
            )
        return CamLayer(norms[-1], "output", 0)

    def onwards(self, seen: Tensor, level: str) -> Tensor:
        """See `Reader`."""
        return _pooled(self.trunk, seen) if level == "pooled" else seen.mean((2, 3))

    def _last(self, final: Tensor) -> Tensor:
        if final.ndim != 4:
            raise ConfigError("the last features of this encoder are no map.", next=f'Use "{self.levels[-1]}".')
        return final.permute(0, 3, 1, 2) if self._channels_last() else final

    def _channels_last(self) -> bool:
        return getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"


class Tokens(Reader):
    """A ViT in timm's dialect."""

    def __init__(self, trunk: Any) -> None:
        self.trunk = trunk
        self.depth = len(trunk.blocks)
        has_class = trunk.num_prefix_tokens > 0 and getattr(trunk, "cls_token", None) is not None
        tokens = tuple(f"cls{n}" for n in range(1, self.depth + 1)) if has_class else ()
        self.levels = ("pooled", "patch", *(f"block{i}" for i in range(self.depth)), *tokens)

    def read(self, x: Tensor, levels: Sequence[str], normed: bool) -> Features:
        """See `Reader`; `normed` passes every block's tokens through the last LayerNorm, as DINO's evaluation does."""
        blocks = self._blocks(levels)
        if not blocks:
            return Features(_pooled(self.trunk, self.trunk.forward_features(x)), {}, {})
        final, taken = self.trunk.forward_intermediates(x, indices=blocks, return_prefix_tokens=True, norm=normed)
        return self._sorted(levels, blocks, taken, _pooled(self.trunk, final))

    def at(self, x: Tensor, level: str) -> Features:
        """See `Reader`."""
        blocks = self._blocks((level,))
        taken = self.trunk.forward_intermediates(
            x, indices=blocks, return_prefix_tokens=True, norm=True, stop_early=True, intermediates_only=True
        )
        return self._sorted((level,), blocks, taken, x.new_empty(len(x), 0))

    def dims(self, level: str) -> int | None:
        """See `Reader`."""
        if level == "pooled":
            return _width(self.trunk)
        return int(self.trunk.embed_dim) * sum(_numbers("cls", (level,)) or [1])

    def cam_layer(self, level: str) -> CamLayer | None:
        """The first LayerNorm (the attention's input) of the block; where a level has several, of the first one."""
        first = min(self._blocks((level,)), default=self.depth - 1)
        norm = getattr(self.trunk.blocks[first], "norm1", None)
        if not isinstance(norm, nn.Module):
            raise ConfigError(
                f"the blocks of {type(self.trunk).__name__} have no norm1.", next="Grad-CAM cannot read this encoder."
            )
        return CamLayer(norm, "output", int(self.trunk.num_prefix_tokens))

    def _blocks(self, levels: Sequence[str]) -> list[int]:
        last = max([int("patch" in levels), *_numbers("cls", levels)])
        return sorted({*_numbers("block", levels), *range(self.depth - last, self.depth)})

    def _sorted(self, levels: Sequence[str], blocks: list[int], taken: Any, pooled: Tensor) -> Features:
        pairs = {i: y if isinstance(y, tuple) else (y, None) for i, y in zip(blocks, taken, strict=True)}
        maps, prefix = {}, {}
        for level in levels:
            if level.startswith("cls"):
                n = _numbers("cls", (level,))[0]
                prefix[level] = torch.stack([pairs[i][1][:, 0] for i in blocks[-n:]], 1)
            elif level != "pooled":
                patches, others = pairs[self.depth - 1 if level == "patch" else _numbers("block", (level,))[0]]
                maps[level] = patches
                prefix |= {} if others is None else {level: others}
        return Features(pooled, maps, prefix)


def _numbers(kind: str, levels: Sequence[str]) -> list[int]:
    found = (re.fullmatch(rf"{kind}(\d+)", level) for level in levels)
    return sorted({int(match[1]) for match in found if match})


def _pooled(trunk: Any, final: Tensor) -> Tensor:
    """What the trunk's own head reads; a trunk built without pooling is averaged."""
    pooled: Tensor = trunk.forward_head(final, pre_logits=True)
    return pooled if pooled.ndim == 2 else pooled.flatten(2).mean(2) if pooled.ndim == 4 else pooled.mean(1)


def _width(trunk: Any) -> int:
    return int(getattr(trunk, "head_hidden_size", 0) or trunk.num_features)
