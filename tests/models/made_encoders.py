"""Small encoders with random weights, and their tensors under any prefix."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.models.architectures import IMAGENET
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder

NET = "cifar_resnet8"
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PLAIN = {"mean": IMAGENET[0], "std": IMAGENET[1]}


def made(num_classes: int = 0, seed: int = 0) -> Encoder:
    return load(f"random:{NET}:{seed}", options=(f"num_classes={num_classes}",))


def tensors(encoder: Encoder, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: t.clone() for name, t in encoder.trunk.state_dict().items()}


def same(one: Encoder, other: Encoder) -> bool:
    mine, theirs = one.trunk.state_dict(), other.trunk.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in mine.items())
