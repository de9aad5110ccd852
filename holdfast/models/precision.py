"""How a pass over a trunk is computed: bfloat16 behind a float32 stem, compiled, a shorter way back to the pixels.

bfloat16 keeps eight bits: pixels in [0, 1] that are cast to it move by up to 0.5/255, as far as a small attack. So the
normalisation and the first layer, the only ones that see pixels, stay in float32, and autocast rules behind them. Under
autocast frozen weights are cast anew in every pass, since its cache holds only those that want a gradient; a copy of
the weights in bfloat16, made once, was measured no faster (ResNet-20 at 32 px, MobileNetV2 and ViT-S at 224 px, CPU:
within 2 %) and would hold the weights twice, so that there is none.
"""

from __future__ import annotations

import contextlib
import functools
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.errors import ConfigError
from holdfast.models.features import Features, Reader

Precision = Literal["fp32", "bf16"]
Engine = Literal["eager", "folded", "compiled"]
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# One graph per batch size, gradient or none, precision and level; beyond it torch would silently stay eager.
MOST_GRAPHS = 64
Forward = Callable[..., Any]
Stem = tuple[nn.Module, Forward] | None
"""The layer that sees the pixels, with its float32 pass; None = none is known."""


class Wanted(NamedTuple):
    """What is read of a trunk.

    Attributes:
        levels: beside `pooled`.
        normed: as `Reader.read`.
        only: the one level that is named, and no further than that.
    """

    levels: tuple[str, ...] = ()
    normed: bool = True
    only: bool = False


def emulates_half(device: torch.device) -> bool:
    """Whether bfloat16 is computed without instructions of its own, as by x86 without AVX-512 (17 times slower there,
    ResNet-20)."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("NO AVX", "AVX2")


def eager(reader: Reader, x: Tensor, wanted: Wanted) -> Features:
    """Features of normalised pixels [b, 3, h, w], layer by layer."""
    trunk = cast(Any, reader).trunk
    shorter = x.requires_grad and torch.is_grad_enabled() and x.device.type == "cpu"
    with short_norms(trunk) if shorter else contextlib.nullcontext():
        return _read(reader, x, wanted)


def compiled(reader: Reader, x: Tensor, wanted: Wanted) -> Features:
    """The same by `torch.compile`, one graph per batch size; channels lie together, whatever the device.

    Weights that want a gradient make it slower than `eager`: the way back of all of them is compiled too.

    Raises:
        ConfigError: it cannot be compiled here.
    """
    import torch._dynamo
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    trunk = cast(Any, reader).trunk
    if trunk not in _COMPILED:
        own = types.FunctionType(_read.__code__.replace(), _read.__globals__, _read.__name__)  # graphs of its own
        _COMPILED[trunk] = torch.compile(own, dynamic=False)
    try:
        with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS), warnings.catch_warnings():
            # What tracing itself looks at.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            x = x.contiguous(memory_format=torch.channels_last)
            return cast(Features, _COMPILED[trunk](reader, x, wanted))
    except (TorchDynamoException, InductorError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"{type(trunk).__name__} could not be compiled: {words[0]}",
            asked="engine compiled",
            next="Use --engine eager; on a CPU, torch.compile needs a C++ compiler such as g++.",
        ) from error


def _read(reader: Reader, x: Tensor, wanted: Wanted) -> Features:
    return reader.at(x, wanted.levels[0]) if wanted.only else reader.read(x, wanted.levels, wanted.normed)


_COMPILED: WeakKeyDictionary[nn.Module, Callable[..., Any]] = WeakKeyDictionary()


class _FoundError(Exception):
    """Ends the pass that looks for the stem."""


def stem(trunk: nn.Module, pixels: Tensor) -> Stem:
    """The convolution or linear layer that runs first, and so sees the pixels, with its pass in float32.

    Args:
        trunk: any module; the pass over it ends at that layer.
        pixels: normalised, [b, 3, h, w]; one image is enough.
    """
    found: list[nn.Module] = []

    def note(layer: nn.Module, _: Any) -> None:
        found.append(layer)
        raise _FoundError

    with contextlib.ExitStack() as stack:
        for layer in trunk.modules():
            if isinstance(layer, LAYERS):
                stack.callback(layer.register_forward_pre_hook(note).remove)
        with contextlib.suppress(_FoundError), torch.no_grad():
            trunk(pixels)
    return (found[0], functools.partial(_exact, found[0])) if found else None


@contextlib.contextmanager
def coarse(stem: Stem, device: torch.device) -> Iterator[None]:
    """Inside, layers run in bfloat16, and the stem in float32: its output is not rounded until a layer reads it.

    Args:
        stem: None = everything stays in float32, lest pixels be rounded.
        device: of the pixels.
    """
    if stem is None:
        yield
        return
    with replaced(stem), torch.autocast(device.type, dtype=torch.bfloat16):
        yield


@contextlib.contextmanager
def true_float32() -> Iterator[None]:
    """Inside, float32 on a GPU is float32: no TensorFloat-32, and convolutions whose sums have one order.

    torch's default lets convolutions round their inputs to 10 bits, which moves a pixel by up to 0.12/255; some of the
    faster ones add up in whatever order comes. Settings are those of the process, and are as they were afterwards.
    """
    library, products = torch.backends.cudnn, torch.backends.cuda.matmul
    # Two ways to say it since torch 2.9; the older may refuse to be asked where the newer was used, and restores less.
    newer = [(part, part.fp32_precision) for part in _named(library, products)]
    older: list[tuple[Any, bool]] = []
    for part in (library, products):
        with contextlib.suppress(RuntimeError):
            older.append((part, part.allow_tf32))
    ordered = library.deterministic
    try:
        for part, _ in older:
            part.allow_tf32 = False
        for part, _ in newer:
            part.fp32_precision = "ieee"
        library.deterministic = True
        yield
    finally:
        for part, before in older:
            part.allow_tf32 = before
        for part, word in newer:
            part.fp32_precision = word
        library.deterministic = ordered


def _named(library: Any, products: Any) -> list[Any]:
    """Settings of convolutions and of matrix products that name a precision, where this torch has them."""
    return [part for part in (getattr(library, "conv", None), products) if hasattr(part, "fp32_precision")]


def _exact(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return cast(Tensor, type(layer).forward(layer, x))


@contextlib.contextmanager
def short_norms(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms with running statistics go back to their input by two products, digit for digit the same.

    torch's own way back also sums over the batch for weights that want no gradient, and keeps its input for it: on a
    CPU an eighth of the time of ResNet-20's gradient, and half of the activations that are held.

    Args:
        module: its plain batch norms; whose `forward` was replaced already, those stay as they are.
    """
    norms = [part for part in module.modules() if type(part) in NORMS and "forward" not in vars(part)]
    with replaced(*[(part, functools.partial(_short, part)) for part in norms]):
        yield


@contextlib.contextmanager
def replaced(*pairs: tuple[nn.Module, Forward]) -> Iterator[None]:
    """Other `forward`s, of these modules, for the length of the block; hooks run as ever."""
    before = [(vars(module), vars(module).get("forward")) for module, _ in pairs]
    try:
        for module, forward in pairs:
            vars(module)["forward"] = forward
        yield
    finally:
        for held, own in before:
            held.pop("forward", None)
            if own is not None:
                held["forward"] = own


def _short(norm: Any, x: Tensor) -> Tensor:
    """A batch norm's output; the gradient of its input the short way, where the digits are known to agree."""
    weights = (norm.weight, norm.bias)
    learns = norm.training or norm.running_mean is None or any(w is not None and w.requires_grad for w in weights)
    if learns or not x.requires_grad or x.dtype != torch.float32 or x.device.type != "cpu":
        return cast(Tensor, type(norm).forward(norm, x))
    norm._check_input_dim(x)
    return cast(Tensor, _Affine.apply(x, norm.running_mean, norm.running_var, *weights, norm.eps))


class _Affine(torch.autograd.Function):
    """Batch normalisation by fixed statistics; the way back is dy / sqrt(variance + eps) * weight, in this order."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:  # parameters: those of a batch norm
        wide = (1, -1, *[1] * (x.ndim - 2))
        # torch takes this root in double precision and rounds it, so that the last digit agrees.
        ctx.root = (1 / torch.sqrt(variance.double() + eps)).float().view(wide)
        ctx.weight = None if weight is None else weight.detach().view(wide)
        return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx = dy * ctx.root
        return (dx if ctx.weight is None else dx * ctx.weight), None, None, None, None, None
