"""A linear head that lies in a file of its own: ours (`holdfast probe`), DINO's linear weights, a state dict."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from holdfast.errors import CheckpointError
from holdfast.models import containers

FILE = "head.safetensors"


class Head(NamedTuple):
    """A head and what its file says about it.

    Attributes:
        linear: [b, d] -> [b, classes], without gradient.
        level: of the features that it reads; empty where the file does not say.
        digest: SHA-256 of weight and bias, 64 digits.
    """

    linear: nn.Linear
    level: str
    digest: str


def read_head(path: str | Path) -> Head:
    """Read a linear head.

    Args:
        path: a weights file with one weight [classes, d] and at most one bias [classes], under any names; or the folder
            of a probe.

    Raises:
        CheckpointError: no such file, not weights, more than one layer, or numbers that are not finite.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    content = containers.read(file)
    tensors = {name: t.float() for name, t in content.tensors.items() if t.is_floating_point()}
    weights = [name for name, t in tensors.items() if t.ndim == 2]
    biases = [name for name, t in tensors.items() if t.ndim == 1]
    if len(weights) != 1 or len(biases) > 1 or len(tensors) != 1 + len(biases):
        raise CheckpointError(
            f"{file} holds {len(tensors)} tensors ({', '.join(list(tensors)[:3])}...).",
            asked="A head is one linear layer.",
            next="Name the file of the linear layer, or leave the head out where the checkpoint has its own.",
        )
    weight = tensors[weights[0]]
    bias = tensors[biases[0]] if biases else torch.zeros(len(weight))
    if len(bias) != len(weight) or not all(bool(torch.isfinite(t).all()) for t in (weight, bias)):
        raise CheckpointError(
            f"{file}: weight {list(weight.shape)}, bias {list(bias.shape)} do not belong together, or are not finite.",
            next="Take another file.",
        )
    return Head(_linear(weight, bias), content.metadata.get("level", ""), _digest(weight, bias))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device="cpu")
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head.requires_grad_(False)


def _digest(weight: Tensor, bias: Tensor) -> str:
    total = hashlib.sha256()
    for tensor in (weight, bias):
        total.update(f"{tuple(tensor.shape)};".encode())
        total.update(tensor.contiguous().numpy().data)
    return total.hexdigest()
