"""An encoder: pixels in [0, 1] go in, features come out; normalisation and precision are its own. How to freeze it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.errors import ConfigError, PixelError, TrustError, nearest
from holdfast.models.features import Features, reader
from holdfast.models.folding import folded, folds
from holdfast.models.precision import Engine, Precision, Stem, Wanted, coarse, compiled, eager, stem, true_float32
from holdfast.records import Model

__all__ = ["Encoder", "Engine", "Features", "Geometry", "Precision", "frozen"]

NORMS = ("eval", "batch")
NECK = "neck"


class Geometry(NamedTuple):
    """The images that an encoder expects.

    Attributes:
        size: side of the centre crop in pixels; 0 = as stored.
        resize: shorter side before the crop, in pixels; 0 = not resized.
        interpolation: of the resize.
    """

    size: int = 0
    resize: int = 0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


class Encoder(nn.Module):
    """A trunk with its normalisation.

    Args:
        trunk: a timm model, one of `models.cifar`, or any module from normalised pixels to [b, d] or [b, c, h, w].
        mean: per channel, of pixels in [0, 1].
        std: per channel, above zero.
        geometry: images that it expects.
        model: where it comes from; `mean` and `std` are filled in.
        neck: from `pooled` to the features that a method of pre-training reads in its place (EMP-SSL's "pre-feature"),
            [b, d] -> [b, width]: the level `neck`.

    An autocast outside is switched off, so that no caller can move the pixels; `precision` is an argument of a pass.

    Raises:
        ConfigError: a mean or std that is no normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        geometry: Geometry | None = None,
        model: Model | None = None,
        neck: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(
                f"mean {tuple(mean)} and std {tuple(std)} are no normalisation.",
                next="Give three numbers each, for pixels in [0, 1], std above zero.",
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.trunk = trunk
        self.neck = neck
        self.geometry = geometry or Geometry()
        given = model or Model(spec=f"module:{type(trunk).__name__}")
        m, s = (tuple(float(v) for v in values) for values in (mean, std))
        self._model = msgspec.structs.replace(given, mean=m, std=s)
        self._reader = reader(trunk)
        self._dims: dict[str, int] = {}
        self._first: tuple[Stem] | None = None

    def forward(
        self,
        pixels: Tensor,
        levels: Sequence[str] = (),
        normed: bool = True,
        *,
        precision: Precision = "fp32",
        engine: Engine = "eager",
    ) -> Features:
        """Features of images, float32 whatever the precision.

        Args:
            pixels: float [b, 3, h, w] in [0, 1].
            levels: of the maps and tokens to return beside `pooled`; others cost nothing.
            normed: pass a ViT's tokens through its last LayerNorm.
            precision: bf16 = the layers behind the one that sees the pixels run in bfloat16.
            engine: eager = layer by layer, to the bit as the trunk alone; folded = batch norms within the convolutions
                before them, of a frozen encoder; compiled = by `torch.compile`, once per batch size. The last two
                differ by some 1e-6.

        Raises:
            PixelError: not a float image batch of three channels.
            ConfigError: the trunk has no such level, or cannot be compiled here.
        """
        self._reader.check(levels)
        return self._seen(pixels, Wanted(tuple(levels), normed), precision, engine)

    def vector(
        self,
        pixels: Tensor,
        level: str = "pooled",
        *,
        precision: Precision = "fp32",
        engine: Engine = "eager",
    ) -> Tensor:
        """One vector per image, float32 [b, dims(level)]; computes no further than the level.

        A map is averaged over its positions, the class tokens of `clsN` are laid end to end. Arguments and errors as
        `forward`.
        """
        if level in ("pooled", NECK):
            pooled = cast(Features, self(pixels, precision=precision, engine=engine)).pooled
            return pooled if level == "pooled" else self._necked(pooled)
        self._reader.check((level,))
        seen = self._seen(pixels, Wanted((level,), only=True), precision, engine)
        return seen.maps[level].mean((2, 3)) if level in seen.maps else seen.prefix[level].flatten(1)

    def tokens(
        self, pixels: Tensor, level: str = "patch", *, precision: Precision = "fp32", engine: Engine = "eager"
    ) -> Tensor:
        """Every position of a map, row by row, float32 [b, h * w, c]; of a ViT its patch tokens, after the LayerNorm.

        Computes no further than the level. Arguments and errors as `forward`.

        Raises:
            ConfigError: the level is not among `mapped`.
        """
        if level not in self.mapped:
            raise ConfigError(f'"{level}" has no positions.', next=f"These have: {', '.join(self.mapped)}.")
        seen = self._seen(pixels, Wanted((level,), only=True), precision, engine)
        return seen.maps[level].flatten(2).mT

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [b, classes] of the checkpoint's own head; to the bit those of the original model."""
        return self.classify(self(pixels))

    def classify(self, features: Features) -> Tensor:
        """Logits [b, classes] of the checkpoint's own head on `features.pooled`.

        Raises:
            ConfigError: there is no head.
        """
        if self.head is None:
            raise ConfigError(f"{self.name} has no classification head of its own.", next="Fit one: holdfast probe.")
        with self._exact(features.pooled):
            return cast(Tensor, self.head(features.pooled))

    @property
    def head(self) -> nn.Module | None:
        """The checkpoint's own classification head, [b, dim] -> [b, classes]; None where it has none, or several."""
        found = cast(Any, self.trunk).get_classifier() if hasattr(self.trunk, "get_classifier") else None
        return found if isinstance(found, nn.Module) and not isinstance(found, nn.Identity) else None

    @property
    def classes(self) -> int:
        """How many classes the own head tells apart; 0 without one."""
        return int(cast(Any, self.trunk).num_classes) if self.head is not None else 0

    @property
    def levels(self) -> tuple[str, ...]:
        """The names that `forward` and `vector` take."""
        return (*self._reader.levels, *([NECK] if self.neck is not None else []))

    @property
    def mapped(self) -> tuple[str, ...]:
        """The levels that have positions, whose `tokens` can be read."""
        return tuple(name for name in self.levels if name not in ("pooled", NECK) and not name.startswith("cls"))

    @property
    def dim(self) -> int:
        """Width of `pooled`."""
        return self.dims("pooled")

    def dims(self, level: str) -> int:
        """Width of `vector(pixels, level)`; a module that does not say is tried once on a black image."""
        if level == NECK:
            return int(cast(nn.Linear, self._neck()[0]).out_features)
        self._reader.check((level,))
        if level not in self._dims:
            width = self._reader.dims(level)
            self._dims[level] = self._tried(level) if width is None else width
        return self._dims[level]

    @property
    def name(self) -> str:
        """How the page calls it: the name that was given, else the last part of the spec (of a run, its folder)."""
        spec = self._model.spec.rstrip("/").removesuffix("/encoder.safetensors")
        return self._model.name or spec.rpartition("/")[2]

    @property
    def model(self) -> Model:
        """Where it comes from, with `mean`, `std` and the digest of the weights as they are now."""
        return msgspec.structs.replace(self._model, digest_of_weights=self.digest())

    def digest(self) -> str:
        """SHA-256 over names, shapes, types and bytes of all parameters and buffers, computed anew; 64 digits."""
        total = hashlib.sha256()
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        for name, tensor in sorted(tensors.items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            total.update(flat.view(torch.uint8).numpy().data)
        return total.hexdigest()

    def _normalised(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise PixelError(f"pixels have shape {tuple(pixels.shape)}.", next="Give [b, 3, h, w].")
        if pixels.dtype not in (torch.float32, torch.float64):
            raise PixelError(
                f"pixels are {pixels.dtype}.", next="Give float32 in [0, 1]: uint8 / 255, and no autocast."
            )
        return (pixels.float() - self.mean) / self.std

    def _seen(self, pixels: Tensor, wanted: Wanted, precision: Precision, engine: Engine) -> Features:
        with self._exact(pixels):
            x = self._normalised(pixels)
            if precision == "bf16" and x.is_cuda:  # where its matrix units take the channels of a pixel together
                x = x.contiguous(memory_format=torch.channels_last)
            with coarse(self._stem(x), x.device) if precision == "bf16" else contextlib.nullcontext():
                seen = self._run(x, wanted, engine)
        if precision == "fp32":
            return seen
        return Features(
            seen.pooled.float(),
            {name: part.float() for name, part in seen.maps.items()},
            {name: part.float() for name, part in seen.prefix.items()},
        )

    def _run(self, x: Tensor, wanted: Wanted, engine: Engine) -> Features:
        if engine == "compiled":
            return compiled(self._reader, x, wanted)
        if engine == "eager":
            return eager(self._reader, x, wanted)
        few, first = x[:2].detach(), self._stem(x)
        found = folds(self.trunk, first and first[0], lambda: self._reader.read(few, (), True).pooled)
        with folded(found):
            return eager(self._reader, x, wanted)

    def _stem(self, x: Tensor) -> Stem:
        if self._first is None:
            self._first = (stem(self.trunk, x[:1].detach()),)
        return self._first[0]

    def _necked(self, pooled: Tensor) -> Tensor:
        with self._exact(pooled):
            return cast(Tensor, self._neck()(pooled))

    def _neck(self) -> nn.Sequential:
        if self.neck is None:
            raise ConfigError(
                f"{self.name} has no neck.", next="Encoders that EMP-SSL trained have one; others are read at pooled."
            )
        return self.neck

    def _exact(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, enabled=False)

    def _tried(self, level: str) -> int:
        side = self.geometry.size or 32
        with frozen(self), torch.no_grad():
            return self.vector(torch.zeros(1, 3, side, side, device=self.mean.device), level).shape[1]


@contextlib.contextmanager
def frozen(module: nn.Module, norm: Literal["eval", "batch"] = "eval") -> Iterator[nn.Module]:
    """A module that is looked at and not changed: evaluation mode, no gradient for its weights, true float32.

    On leaving, also by an exception, every submodule has its own training flag back, every parameter its
    `requires_grad` and its `.grad` object, every buffer its tensor and its values. Flags are set one by one, so that a
    module whose `train()` does more than that is not disturbed.

    Args:
        module: any module; nested use is fine.
        norm: what batch normalisation does: `eval` = running statistics, `batch` = those of the batch, the running ones
            restored on leaving (and arithmetic as it was set: it is for training).

    Yields:
        `module`.

    Raises:
        ConfigError: an unknown `norm`.
        TrustError: a parameter was changed or exchanged inside the block.
    """
    if norm not in NORMS:
        raise ConfigError(f'frozen knows no norm "{norm}".', next=nearest(norm, NORMS))
    parts = list(module.named_modules())
    modes = [(part, part.training) for _, part in parts]
    weights = [_Weight(part, path, n, p) for path, part in parts for n, p in part._parameters.items() if p is not None]
    held = [(weight, weight.tensor.requires_grad, weight.tensor.grad, _version(weight.tensor)) for weight in weights]
    inside = [(part, tuple(part._modules.values())) for _, part in parts]
    buffers = [(part, dict(part._buffers)) for _, part in parts if part._buffers]
    values = [(b, b.detach().clone()) for _, named in buffers for b in named.values() if b is not None]
    try:
        for part, training in modes:
            _train(part, training, norm == "batch" and isinstance(part, _BatchNorm))
        for weight in weights:
            if weight.tensor.requires_grad:
                weight.tensor.requires_grad_(False)
        with true_float32() if norm == "eval" else contextlib.nullcontext():
            yield module
        moved = [weight for weight, *_, version in held if weight.moved or _version(weight.tensor) != version]
        if moved or any(tuple(part._modules.values()) != known for part, known in inside):
            _refuse(module, weights, moved)
    finally:
        for part, training in modes:
            _train(part, part.training, training)
        _give_back(held)
        for part, named in buffers:
            _put_back(part, named)
        with torch.no_grad():
            for b, value in values:
                if not torch.equal(b, value):  # untouched ones keep their version: a graph may still need them
                    b.copy_(value)


def _train(part: nn.Module, now: bool, wanted: bool) -> None:
    """Set a flag that differs: setting is slow, and there is one per submodule and pass."""
    if now != wanted:
        part.training = wanted


def _put_back(part: nn.Module, named: dict[str, Tensor | None]) -> None:
    """The buffers of a module, where it holds others; TorchScript's cannot be exchanged."""
    now = dict(part._buffers.items())
    if now.keys() != named.keys() or any(now[name] is not b for name, b in named.items()):
        part._buffers.clear()
        part._buffers.update(named)


def _give_back(held: list[tuple[_Weight, bool, Tensor | None, int]]) -> None:
    """Every parameter's `requires_grad` and `.grad` object, where they differ."""
    for weight, wanted, grad, _ in held:
        if weight.tensor.requires_grad != wanted:
            weight.tensor.requires_grad_(wanted)
        if weight.tensor.grad is not grad:
            weight.tensor.grad = grad


class _Weight(NamedTuple):
    """A parameter where it was found."""

    part: nn.Module
    path: str
    name: str
    tensor: nn.Parameter

    @property
    def moved(self) -> bool:
        """Whether its module holds another one now."""
        return dict(self.part._parameters.items()).get(self.name) is not self.tensor  # TorchScript's has no `get`


def _refuse(module: nn.Module, weights: list[_Weight], moved: list[_Weight]) -> None:
    """Name what changed; where a module was exchanged for another, the weights that are no longer to be found."""
    now = {id(p) for p in module.parameters()}
    moved = moved or [weight for weight in weights if id(weight.tensor) not in now]
    if moved:
        first = ".".join(filter(None, (moved[0].path, moved[0].name)))
        raise TrustError(
            f"{len(moved)} of {len(weights)} weights of a frozen module changed (first: {first}).",
            next="Nothing measured with it can be believed; look for what writes into it.",
        )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
