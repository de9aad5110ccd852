"""A momentum teacher: a copy whose weights follow those of the student (Tarvainen and Valpola 2017; He et al. 2020)."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


def follower(student: nn.Module) -> nn.Module:
    """A copy of a module that no gradient reaches."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's weights to momentum * teacher + (1 - momentum) * student; buffers are the student's.

    Args:
        teacher: as `follower` made it.
        student: the module that was copied.
        momentum: in [0, 1].
    """
    theirs = [p.detach() for p in teacher.parameters()]
    torch._foreach_lerp_(theirs, [p.detach() for p in student.parameters()], 1 - momentum)
    for theirs_, ours_ in zip(teacher.buffers(), student.buffers()):
        theirs_.copy_(ours_)


def rising(base: float, done: float) -> float:
    """A momentum that rises from `base` to 1 along half a cosine (Grill et al. 2020, appendix J).

    Args:
        base: at the start.
        done: share of the run in [0, 1].
    """
    return 1 - (1 - base) * (math.cos(math.pi * done) + 1) / 2
