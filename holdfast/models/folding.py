"""Batch norms folded into the convolutions before them: the same function in fewer passes over memory.

With running statistics a batch norm is scale * y + shift, and a convolution takes both into its weights (Jacob et al.
2018, arXiv 1712.05877, section 3.2). Products are rounded elsewhere, so that outputs differ by some 1e-6: for passes
under attack, not for judgement. The layer that sees pixels is left as it is, since it has a precision of its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from holdfast.models.precision import replaced

NORMS = (nn.BatchNorm2d, BatchNormAct2d)
# Of the largest feature: folding moves features by 1e-6 of it, a norm that was not the only reader by far more.
TOLERANCE = 1e-3
UNCOUNTED = -1


class Fold(NamedTuple):
    """A convolution that is also its batch norm.

    Attributes:
        conv: runs with `weight` and `bias`.
        norm: passes on what it is given; one that ends in an activation applies that.
        weight: of both.
        bias: of both.
    """

    conv: nn.Conv2d
    norm: nn.Module
    weight: Tensor
    bias: Tensor


class Folds(NamedTuple):
    """All of a trunk.

    Attributes:
        made_from: where every module and tensor of the trunk lies, what lay there, and how often it had been written to
            (`UNCOUNTED` for a module), to know whether the folds still hold. It is asked in every pass, and no walk.
        folds: none where the trunk then gives other features.
    """

    made_from: tuple[tuple[dict[str, Any], str, Any, int], ...]
    folds: tuple[Fold, ...]

    def hold(self) -> bool:
        """Whether nothing of the trunk was exchanged or written to."""
        return all(
            place.get(name) is part and (version == UNCOUNTED or cast(Tensor, part)._version == version)
            for place, name, part, version in self.made_from
        )


def folds(trunk: nn.Module, stem: nn.Module | None, run: Callable[[], Tensor]) -> tuple[Fold, ...]:
    """What can be folded, found by one pass, checked by another, and remembered until a weight changes.

    Args:
        trunk: in evaluation mode.
        stem: is left as it is.
        run: a pass over a few images; returns features.
    """
    known = _KNOWN.get(trunk)
    if known is None or not known.hold():
        if any(t.is_inference() for t in (*trunk.parameters(), *trunk.buffers())):
            return ()  # they count no writes, so that nobody would know whether folds still hold
        device = next((t.device.type for t in trunk.parameters()), "cpu")
        with torch.no_grad(), torch.autocast(device, enabled=False):
            found, plain = _found(trunk, stem, run)
            with folded(found):
                moved = (run() - plain).abs().max()
        known = Folds(_parts(trunk), found if float(moved) <= TOLERANCE * float(plain.abs().max()) else ())
        _KNOWN[trunk] = known
    return known.folds


@contextlib.contextmanager
def folded(found: tuple[Fold, ...]) -> Iterator[None]:
    """Inside, convolutions do the work of their batch norms."""
    convs = [(fold.conv, functools.partial(_convolved, fold)) for fold in found]
    norms = [(fold.norm, functools.partial(_passed, fold.norm)) for fold in found]
    with replaced(*convs, *norms):
        yield


def _parts(trunk: nn.Module) -> tuple[tuple[dict[str, Any], str, Any, int], ...]:
    """Where every module and tensor lies, what lies there, and how often it was written to."""
    found: list[tuple[dict[str, Any], str, Any, int]] = []
    for module in trunk.modules():
        for place in (module._parameters, module._buffers, module._modules):
            held = cast(dict[str, Any], place)
            found += [(held, k, v, v._version if isinstance(v, Tensor) else UNCOUNTED) for k, v in held.items()]
    return tuple(found)


_KNOWN: WeakKeyDictionary[nn.Module, Folds] = WeakKeyDictionary()


def _found(trunk: nn.Module, stem: nn.Module | None, run: Callable[[], Tensor]) -> tuple[tuple[Fold, ...], Tensor]:
    """Convolutions whose output a batch norm was given as it was, both run once; and the features of the pass."""
    given: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are held, so that no two have one identity
    pairs: list[tuple[nn.Conv2d, Any]] = []
    ran: list[nn.Module] = []

    def note(layer: nn.Module, seen: tuple[Tensor, ...], gave: Tensor) -> None:
        ran.append(layer)
        if isinstance(layer, nn.Conv2d):
            given[id(gave)] = (layer, gave)
        elif id(seen[0]) in given:
            pairs.append((given[id(seen[0])][0], layer))

    with contextlib.ExitStack() as stack:
        for layer in trunk.modules():
            if type(layer) in (nn.Conv2d, *NORMS):
                stack.callback(layer.register_forward_hook(note).remove)
        plain = run()
    once = [p for p in pairs if p[0] is not stem and all(ran.count(layer) == 1 for layer in p)]
    return tuple(_fold(conv, norm) for conv, norm in once if _fixed(norm)), plain


def _fixed(norm: Any) -> bool:
    return not norm.training and norm.running_mean is not None


def _fold(conv: nn.Conv2d, norm: Any) -> Fold:
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias.double()
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    return Fold(conv, norm, weight.detach().to(conv.weight), shift.detach().to(conv.weight))


def _convolved(fold: Fold, x: Tensor) -> Tensor:
    return cast(Tensor, fold.conv._conv_forward(x, fold.weight, fold.bias))


def _passed(norm: Any, x: Tensor) -> Tensor:
    return cast(Tensor, norm.act(norm.drop(x))) if isinstance(norm, BatchNormAct2d) else x
