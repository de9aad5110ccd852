"""What several processes of one run do together: gather rows, sum statistics, share a number. Alone, nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """This process's number among them, 0 alone."""
    return distributed.get_rank() if _together() else 0


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, in rank order, with the gradient that a single process would have.

    A loss over gathered rows is the same on every rank; its gradients are summed over the ranks on the way back, and
    averaged by the distributed wrapper, which gives the gradient of that one loss.

    Args:
        rows: [b, ...], of one shape on every rank.

    Returns:
        [world * b, ...]; `rows` itself alone.
    """
    if world() == 1:
        return rows
    found: Tensor = _Gather.apply(rows)
    return found


def summed(value: Tensor) -> Tensor:
    """The sum over all ranks, of any shape, with gradient; `value` itself alone."""
    if world() == 1:
        return value
    found: Tensor = _Sum.apply(value)
    return found


def wait() -> None:
    """Until every rank is here; on a CPU or GPU alike."""
    if _together():
        distributed.barrier()


def anyone(flag: bool) -> bool:
    """Whether any rank says so; every rank must ask."""
    if world() == 1:
        return flag
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    count = torch.tensor([int(flag)], device=device)
    distributed.all_reduce(count)
    return bool(count)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total
