"""What is raised: `harm = push(see(x), rows, t)`, judged by a fixed score. Knows neither model nor task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.errors import PixelError, TrustError

Rows = Mapping[str, Tensor]
Out = Mapping[str, Tensor]
See = Callable[[Tensor], Out]
Push = Callable[[Out, Rows, Tensor], Tensor]
Score = Callable[[Out, Rows], Tensor]


@dataclass(frozen=True)
class Harm:
    """A frozen victim with what is raised and how iterates are judged.

    Attributes:
        see: pixels float32 [b, 3, h, w] in [0, 1] -> named outputs [b, ...]; closed over model, head, layers.
        push: (outputs, rows, progress t [b] in [0, 1]) -> [b], number i from image i alone, or [] where coupled.
        score: (outputs, rows) -> [b]; fixed, compares iterates and attacks; above 0 = lost, where that means something.
    """

    see: See
    push: Push
    score: Score


class Ascent(NamedTuple):
    """One look at the harm: gradient [b, 3, h, w], what was raised [b] or [], score [b]."""

    gradient: Tensor
    value: Tensor
    score: Tensor


def ascent(harm: Harm, pixels: Tensor, rows: Rows, t: Tensor) -> Ascent:
    """Gradient of the push with respect to the pixels alone, and the score of the same outputs.

    Works under `no_grad`. Parameters get no gradient: `autograd.grad` is taken on the pixels.

    Args:
        harm: what is raised.
        pixels: float32 [b, 3, h, w].
        rows: what belongs to the images, leading dimension b.
        t: progress in [0, 1], [b].

    Returns:
        Detached tensors.

    Raises:
        TrustError: the harm or its gradient is not finite.
    """
    with torch.enable_grad():
        seen = pixels.detach().requires_grad_()
        out = harm.see(seen)
        value = harm.push(out, rows, t)
        (gradient,) = torch.autograd.grad(value.sum(), seen)
    with torch.no_grad():
        score = harm.score({name: part.detach() for name, part in out.items()}, rows)
    if not bool(torch.isfinite(gradient.sum() + value.detach().sum())) and not bool(torch.isfinite(gradient).all()):
        raise TrustError(
            "The gradient of the harm is not finite.", next="Judge the encoder in float32 and look for overflow in it."
        )
    return Ascent(gradient, value.detach(), score)


def judged(harm: Harm, pixels: Tensor, rows: Rows) -> Tensor:
    """The score of pixels, without gradient: float32 [b]."""
    with torch.no_grad():
        return harm.score(harm.see(pixels), rows)


def check_pixels(pixels: Tensor) -> None:
    """Refuse what is not an image batch.

    Args:
        pixels: should be float32 [b, 3, h, w] in [0, 1].

    Raises:
        PixelError: another type, shape or range, with what was found.
    """
    if pixels.dtype != torch.float32 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise PixelError(
            f"pixels are {pixels.dtype} of shape {list(pixels.shape)}; images must be float32 [b, 3, h, w] in [0, 1].",
            next="uint8 images: images.float() / 255, channels first.",
        )
    if pixels.numel() == 0:
        raise PixelError(f"an empty batch of shape {list(pixels.shape)}.", next="Give at least one image.")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0.0 and high <= 1.0):
        raise PixelError(
            f"pixels span [{low:.3g}, {high:.3g}]; images must be in [0, 1].",
            next="The encoder normalises inside; drop Normalize from your transform.",
        )
