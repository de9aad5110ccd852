"""Windows over images, cut and joined again: differentiable, all images at once, in passes of bounded size.

Positions are those of mmsegmentation and of most published numbers: from the corner in steps of the stride, the last
one of each axis shifted inside. Where windows overlap, answers are averaged; averaged probabilities are kept as their
logarithm throughout (log-sum-exp), so that none becomes zero and no gradient is lost.

A loop that adds window after window in place makes autograd copy the whole image's answers for every one of them; here
cutting and joining have their own way back, which touches every window once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

Run = Callable[[Tensor], Tensor]
"""From crops [m, 3, h, w] to answers [m, ..., h, w]."""
Mean = Literal["probabilities", "values"]
"""What is averaged: the exponentials of answers, which stay logarithms, or the answers."""


class Cut(NamedTuple):
    """One window of neighbouring images.

    Attributes:
        images: which of the batch.
        rows: of the image.
        columns: of the image.
        at: place of these crops in their pass.
    """

    images: slice
    rows: slice
    columns: slice
    at: slice


class Plan(NamedTuple):
    """All windows of a batch.

    Attributes:
        size: height and width of the images.
        windows: how many see an image.
        passes: windows that are seen together.
        counts: how many windows see a pixel, float32 [h, w].
    """

    size: tuple[int, int]
    windows: int
    passes: tuple[tuple[Cut, ...], ...]
    counts: Tensor


def starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis: in steps of the stride, the last one shifted inside.

    Args:
        side: of the image in pixels.
        window: of the window; a larger one than the image counts as the image.
        stride: between windows, at most `window`.
    """
    last = max(side - window, 0)
    return sorted({*range(0, last, stride), last})


def planned(images: int, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], most: int) -> Plan:
    """The windows of a batch, window by window and not image by image, `most` to a pass.

    Args:
        images: in the batch.
        size: of the images.
        window: height and width, no larger than the images.
        stride: down and across.
        most: windows per pass.
    """
    places = [(y, x) for y in starts(size[0], window[0], stride[0]) for x in starts(size[1], window[1], stride[1])]
    total = len(places) * images
    passes = []
    for begin in range(0, total, most):
        end, cuts = min(begin + most, total), []
        for k in range(begin // images, -(-end // images)):
            first, last = max(begin, k * images), min(end, (k + 1) * images)
            y, x = places[k]
            rows, columns = slice(y, y + window[0]), slice(x, x + window[1])
            at = slice(first - begin, last - begin)
            cuts.append(Cut(slice(first - k * images, last - k * images), rows, columns, at))
        passes.append(tuple(cuts))
    counts = torch.zeros(size)
    for y, x in places:
        counts[y : y + window[0], x : x + window[1]] += 1
    return Plan(size, len(places), tuple(passes), counts)


def slid(run: Run, pixels: Tensor, plan: Plan, mean: Mean) -> Tensor:
    """Answers for whole images from those for their windows; activations of all windows are kept for the way back.

    Args:
        run: sees crops.
        pixels: [b, 3, h, w].
        plan: of the windows.
        mean: how overlaps are averaged.

    Returns:
        [b, ..., h, w]; with `probabilities` their logarithm.
    """
    return cast(Tensor, _Join.apply(plan, mean, len(pixels), *[run(crops) for crops in cropped(plan, pixels)]))


def slid_again(run: Run, pixels: Tensor, plan: Plan, mean: Mean, modules: Sequence[nn.Module]) -> Tensor:
    """As `slid`, digit for digit; nothing of a pass is kept, and each is computed once more on the way back.

    Args:
        run: as `slid`; draws the same random numbers both times.
        pixels: as `slid`.
        plan: as `slid`.
        mean: as `slid`.
        modules: whose weights `run` reads; those that want a gradient get it.
    """
    weights = [p for module in modules for p in module.parameters() if p.requires_grad]
    return cast(Tensor, _Again.apply(run, plan, mean, pixels, *weights))


def cropped(plan: Plan, pixels: Tensor) -> tuple[Tensor, ...]:
    """The crops [m, 3, h, w] of every pass, differentiable."""
    return cast(tuple[Tensor, ...], _Crops.apply(plan, pixels))


class _Crops(torch.autograd.Function):
    """The crops of all passes; back: their gradients added where they were cut."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, pixels: Tensor) -> tuple[Tensor, ...]:
        ctx.plan, ctx.shape = plan, pixels.shape
        return tuple(_cut(pixels, cuts) for cuts in plan.passes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        back = grads[0].new_zeros(ctx.shape)
        for cuts, grad in zip(ctx.plan.passes, grads, strict=True):
            _add(back, grad, cuts, "values")
        return None, back


class _Join(torch.autograd.Function):
    """The mean of all windows' answers; back: every window's share of the gradient."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, mean: Mean, images: int, *parts: Tensor) -> Tensor:
        total = _empty(parts[0], images, plan, mean)
        for cuts, part in zip(plan.passes, parts, strict=True):
            _add(total, part, cuts, mean)
        _average(total, plan, mean)
        ctx.plan, ctx.mean = plan, mean
        if mean == "probabilities":
            ctx.save_for_backward(total, *parts)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        total, *parts = ctx.saved_tensors or (None,)
        passes: tuple[tuple[Cut, ...], ...] = ctx.plan.passes
        grad = grad / ctx.plan.counts.to(grad)
        shares = [
            _share(grad, total, parts[i] if parts else None, cuts) if ctx.needs_input_grad[3 + i] else None
            for i, cuts in enumerate(passes)
        ]
        return None, None, None, *shares


class _Again(torch.autograd.Function):
    """Pass by pass without a graph; back: each pass with one, that is dropped before the next."""

    @staticmethod
    def forward(ctx: Any, run: Run, plan: Plan, mean: Mean, pixels: Tensor, *weights: Tensor) -> Tensor:
        total, states = torch.empty(0), []
        for i, cuts in enumerate(plan.passes):
            states.append(_random_state(pixels))
            part = run(_cut(pixels, cuts))
            total = _empty(part, len(pixels), plan, mean) if i == 0 else total
            _add(total, part, cuts, mean)
        _average(total, plan, mean)
        ctx.run, ctx.plan, ctx.mean, ctx.states = run, plan, mean, states
        ctx.save_for_backward(pixels, total, *weights)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        pixels, total, *weights = ctx.saved_tensors
        back, learnt = torch.zeros_like(pixels), [torch.zeros_like(w) for w in weights]
        grad = grad / ctx.plan.counts.to(grad)
        for cuts, state in zip(ctx.plan.passes, ctx.states, strict=True):
            with torch.enable_grad(), _replayed(state, pixels):
                crops = _cut(pixels, cuts).detach().requires_grad_()
                part = ctx.run(crops)
            seen = part.detach() if ctx.mean == "probabilities" else None
            share = _share(grad, total, seen, cuts)
            found, *others = torch.autograd.grad(part, (crops, *weights), share, allow_unused=True)
            _add(back, found, cuts, "values")
            for held, more in zip(learnt, others, strict=True):
                held += 0 if more is None else more
        return None, None, None, back, *learnt


def _cut(pixels: Tensor, cuts: Sequence[Cut]) -> Tensor:
    return torch.cat([pixels[cut.images, ..., cut.rows, cut.columns] for cut in cuts])


def _empty(part: Tensor, images: int, plan: Plan, mean: Mean) -> Tensor:
    """Where the answers of whole images are gathered: zeros, or minus infinity, the logarithm of zero."""
    start = -torch.inf if mean == "probabilities" else 0.0
    return part.new_full((images, *part.shape[1:-2], *plan.size), start)


def _add(total: Tensor, part: Tensor, cuts: Sequence[Cut], mean: Mean) -> None:
    """Add crops to what they were cut from, in place."""
    for cut in cuts:
        place = total[cut.images, ..., cut.rows, cut.columns]
        if mean == "probabilities":
            torch.logaddexp(place, part[cut.at], out=place)
        else:
            place += part[cut.at]


def _average(total: Tensor, plan: Plan, mean: Mean) -> None:
    """Sums to means, in place."""
    counts = plan.counts.to(total)
    if mean == "probabilities":
        total -= counts.log()
    else:
        total /= counts


def _share(grad: Tensor, total: Tensor | None, part: Tensor | None, cuts: Sequence[Cut]) -> Tensor:
    """The gradient of a pass's answers, from that of the mean, divided by the counts already.

    Args:
        grad: [b, ..., h, w].
        total: the mean.
        part: the answers of the pass, where probabilities were averaged: d mean / d part = exp(part - mean).
        cuts: of the pass.
    """
    if part is None or total is None:
        return _cut(grad, cuts)
    shares = torch.empty_like(part, memory_format=torch.contiguous_format)
    for cut in cuts:
        where = (cut.images, ..., cut.rows, cut.columns)
        torch.sub(part[cut.at], total[where], out=shares[cut.at]).exp_().mul_(grad[where])
    return shares


def _random_state(pixels: Tensor) -> tuple[Tensor, Any]:
    return torch.get_rng_state(), get_device_states(pixels) if pixels.device.type != "cpu" else None


@contextlib.contextmanager
def _replayed(state: tuple[Tensor, Any], pixels: Tensor) -> Iterator[None]:
    """Inside, the random numbers of the first time; after it the generators as they were."""
    cpu, others = state
    with torch.random.fork_rng(devices=others[0] if others else []):
        torch.set_rng_state(cpu)
        if others:
            set_device_states(*others)
        yield
