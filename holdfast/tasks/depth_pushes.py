"""What attacks on depth raise: DepthPGD of Kowalczuk et al. 2024 (arXiv 2407.12588) as it was meant, and as it was run.

With p the predicted depth, clamped to the range, and d the measured one, g = ln(p + 0.001) - ln(d + 0.001), n pixels
that count, and all means and sums over them:

    silog              sqrt(Var g + 0.15 (mean g)^2), Var with n - 1      DINOv2's loss (after Eigen et al. 2014)
    silog_gradient     silog + gradient / 2                               what DepthPGD states
    gradient           sum over s in 1, 2, 4, 6 of (V_s + H_s) / n_s, with g_s every s-th row and column of g, V_s the
                       sum of |g_s[i + 2, j] - g_s[i, j]| where both count, and H_s that along rows (Li and Snavely
                       2018, arXiv 1804.00607)
    l1_log             mean |ln p - ln d|
    l1                 mean |p - d|
    l2                 mean (p - d)^2
    near, far          mean (far - p) / (far - near), mean (p - near) / (far - near): targeted, blind to d

and the defects of the published attack, one by one and together, to show what each does to the number:

    silog_warmup       sqrt(0.15 (mean g)^2): the loss's warm-up of 100 steps, begun anew for every image, which 20
                       steps never leave; against `silog`
    gradient_one_axis  silog + one_axis / 2, every s-th row alone and V_s alone: on depth without a channel, the code's
                       two axes are the batch, of one image, and the height; against `silog_gradient`
    published          silog_warmup + one_axis / 2, which was run; against `silog_gradient`

All are per image, 0 where no pixel counts, and have a finite gradient everywhere: 0 at a root of 0, and at the ends of
the range whatever leads back into it, where a plain clamp would be blind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.attacks.harm import Out, Push, Rows
from holdfast.tasks.depth_errors import Pixels, Range

SHIFT = 1e-3
"""Metres that both depths are raised by before the logarithm, as published."""
MEAN_WEIGHT = 0.15
GRADIENT_WEIGHT = 0.5
STRIDES = (1, 2, 4, 6)
APART = 2
Error = Callable[[Pixels], Tensor]


def silog(read: Pixels) -> Tensor:
    """Scale-invariant error with a share of the scale: [b, h, w] -> [b], dimensionless, at least 0."""
    g = _log_ratio(read)
    mean = _mean(read, g)
    # A mean and then the spread around it: the difference of two sums would lose every digit where g is constant.
    spread = read.total((g - mean[:, None, None]).square()) / (read.number - 1).clamp_min(1)
    return _root(spread + MEAN_WEIGHT * mean.square())


def silog_warmup(read: Pixels) -> Tensor:
    """The same without the variance, sqrt(0.15) |mean g|: [b, h, w] -> [b]."""
    return _root(MEAN_WEIGHT * _mean(read, _log_ratio(read)).square())


def gradient(read: Pixels) -> Tensor:
    """Differences of the log ratio along height and width, at four scales: [b, h, w] -> [b]."""
    g, total = _log_ratio(read), torch.zeros_like(read.predicted[:, 0, 0])
    for stride in STRIDES:
        coarse, counts = g[:, ::stride, ::stride], read.counts[:, ::stride, ::stride]
        number = counts.flatten(1).sum(1).clamp_min(1)
        total = total + (_steps(coarse, counts) + _steps(coarse.mT, counts.mT)) / number
    return total


def one_axis(read: Pixels) -> Tensor:
    """The same along the height alone, and only the height made coarser: [b, h, w] -> [b]."""
    g, total = _log_ratio(read), torch.zeros_like(read.predicted[:, 0, 0])
    for stride in STRIDES:
        counts = read.counts[:, ::stride]
        total = total + _steps(g[:, ::stride], counts) / counts.flatten(1).sum(1).clamp_min(1)
    return total


def l1_log(read: Pixels) -> Tensor:
    """Mean absolute log ratio: [b, h, w] -> [b], in nats."""
    return _mean(read, (read.predicted.log() - read.measured.log()).abs())


def l1(read: Pixels) -> Tensor:
    """Mean absolute error: [b, h, w] -> [b], in metres."""
    return _mean(read, (read.predicted - read.measured).abs())


def l2(read: Pixels) -> Tensor:
    """Mean squared error: [b, h, w] -> [b], in square metres."""
    return _mean(read, (read.predicted - read.measured).square())


def pushes(within: Range) -> Mapping[str, Push]:
    """All harms by name, on `out["depth"]` [b, h, w] and `rows["depth"]` [b, h, w]; the first is the default.

    Args:
        within: which pixels count, and where predictions are clamped to.
    """

    def nearer(read: Pixels) -> Tensor:
        return _mean(read, within.far - read.predicted) / (within.far - within.near)

    def farther(read: Pixels) -> Tensor:
        return _mean(read, read.predicted - within.near) / (within.far - within.near)

    errors: dict[str, Error] = {
        "silog_gradient": lambda read: silog(read) + GRADIENT_WEIGHT * gradient(read),
        "silog": silog,
        "l1_log": l1_log,
        "l1": l1,
        "l2": l2,
        "near": nearer,
        "far": farther,
        "silog_warmup": silog_warmup,
        "gradient_one_axis": lambda read: silog(read) + GRADIENT_WEIGHT * one_axis(read),
        "published": lambda read: silog_warmup(read) + GRADIENT_WEIGHT * one_axis(read),
    }
    return {name: _push(error, within) for name, error in errors.items()}


def _push(error: Error, within: Range) -> Push:
    def push(out: Out, rows: Rows, t: Tensor) -> Tensor:
        predicted, truth = out["depth"], rows["depth"]
        counts = within.counts(truth)
        clamped: Tensor = _Kept.apply(predicted, within.near, within.far)
        return error(Pixels(clamped.where(counts, 1), truth.where(counts, 1), counts))

    return push


class _Kept(torch.autograd.Function):
    """A clamp whose gradient at values outside is what leads back inside, for harms that are raised."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.ends = (low, high)
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *raised: Tensor) -> tuple[Tensor, None, None]:
        (values,), (low, high), (up,) = ctx.saved_tensors, ctx.ends, raised
        out = ((values < low) & (up < 0)) | ((values > high) & (up > 0))
        return up.masked_fill(out, 0), None, None


def _log_ratio(read: Pixels) -> Tensor:
    return (read.predicted + SHIFT).log() - (read.measured + SHIFT).log()


def _mean(read: Pixels, values: Tensor) -> Tensor:
    return read.total(values) / read.number.clamp_min(1)


def _root(values: Tensor) -> Tensor:
    """The square root of values >= 0, whose gradient at 0 is 0."""
    some = values > 0
    return values.where(some, 1).sqrt().where(some, 0)


def _steps(g: Tensor, counts: Tensor) -> Tensor:
    """Sum of |g[i + 2] - g[i]| over the rows i of [b, h, w] where both pixels count: [b]."""
    apart = (g[:, APART:] - g[:, :-APART]).abs()
    return apart.where(counts[:, APART:] & counts[:, :-APART], 0).flatten(1).sum(1)
