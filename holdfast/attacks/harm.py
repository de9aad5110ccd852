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
        exact: the same `see` in float32 where `see` itself is not: a row is lost only where this one agrees.
        samples: passes averaged in every look at a randomised victim (expectation over transformation, Athalye et al.
            2018, arXiv 1707.07397).
    """

    see: See
    push: Push
    score: Score
    exact: See | None = None
    samples: int = 1


class Ascent(NamedTuple):
    """One look at the harm.

    Attributes:
        gradient: of the push, [b, 3, h, w]; zero where it was not finite.
        value: what was raised, [b] or [].
        score: [b].
        flat: whether the gradient was zero everywhere, or not finite: bool [b].
        broken: whether it was not finite: bool [b].
    """

    gradient: Tensor
    value: Tensor
    score: Tensor
    flat: Tensor
    broken: Tensor


def ascent(harm: Harm, pixels: Tensor, rows: Rows, t: Tensor) -> Ascent:
    """Gradient of the push with respect to the pixels alone, and the score of the same outputs.

    Works under `no_grad`. Parameters get no gradient: `autograd.grad` is taken on the pixels.

    Args:
        harm: what is raised.
        pixels: float32 [b, 3, h, w].
        rows: what belongs to the images, leading dimension b.
        t: progress in [0, 1], [b].

    Returns:
        Detached tensors, averaged over `harm.samples` passes.

    Raises:
        TrustError: the push is not finite, or does not depend on the pixels.
    """
    gradient, value, score = _look(harm, pixels, rows, t)
    for _ in range(harm.samples - 1):
        more = _look(harm, pixels, rows, t)
        gradient, value, score = gradient + more[0], value + more[1], score + more[2]
    if harm.samples > 1:
        gradient, value, score = gradient / harm.samples, value / harm.samples, score / harm.samples
    # One largest value per row tells zero from not finite: NaN and infinity pass through a maximum.
    largest = gradient.flatten(1).abs().amax(1)
    broken = ~torch.isfinite(largest)
    # Asked together: every answer that the host waits for empties a GPU's queue.
    senseless, mended = torch.stack([~torch.isfinite(value).all(), broken.any()]).tolist()
    if senseless:
        raise TrustError("The harm of an image is not finite.", next="Look for overflow in the encoder.")
    if mended:
        gradient = gradient.where(~broken.view(-1, *[1] * (gradient.ndim - 1)), 0)
    return Ascent(gradient, value, score, broken | (largest == 0), broken)


def _look(harm: Harm, pixels: Tensor, rows: Rows, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        seen = pixels.detach().requires_grad_()
        out = harm.see(seen)
        value = harm.push(out, rows, t)
        if not value.requires_grad:
            raise TrustError(
                "The harm does not depend on the pixels: the victim has no gradient.",
                next="Attack it without one: method square.",
            )
        (gradient,) = torch.autograd.grad(value.sum(), seen)
    with torch.no_grad():
        score = harm.score({name: part.detach() for name, part in out.items()}, rows)
    return gradient, value.detach(), score


def judged(harm: Harm, pixels: Tensor, rows: Rows, *, exact: bool = False) -> Tensor:
    """The score of pixels, without gradient, averaged over `harm.samples` passes: float32 [b].

    Args:
        harm: gives `see` and `score`.
        pixels: float32 [b, 3, h, w].
        rows: what belongs to the images.
        exact: in float32, where the harm sees in another precision.
    """
    see = harm.exact if exact and harm.exact is not None else harm.see
    with torch.no_grad():
        total = harm.score(see(pixels), rows)
        for _ in range(harm.samples - 1):
            total = total + harm.score(see(pixels), rows)
    return total / harm.samples if harm.samples > 1 else total


def check_pixels(pixels: Tensor) -> None:
    """Refuse what is not an image batch.

    Args:
        pixels: should be float32 [b, 3, h, w] in [0, 1].

    Raises:
        PixelError: another type, shape or range, with what was found.
    """
    if pixels.dtype != torch.float32 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise PixelError(
            f"these pixels are {pixels.dtype} of shape {list(pixels.shape)}.",
            asked="Images are float32 [b, 3, h, w] in [0, 1].",
            next="uint8 images: images.float() / 255, channels first.",
        )
    if pixels.numel() == 0:
        raise PixelError(
            f"this is an empty batch of shape {list(pixels.shape)}.",
            asked="Images are float32 [b, 3, h, w] in [0, 1].",
            next="Give at least one image.",
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0.0 and high <= 1.0):
        raise PixelError(
            f"these pixels span [{low:.3g}, {high:.3g}].",
            asked="Images are float32 [b, 3, h, w] in [0, 1].",
            next="The encoder normalises inside; drop Normalize from your transform.",
        )
