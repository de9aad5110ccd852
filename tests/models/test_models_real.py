"""Published weights give their published accuracy; skipped, loudly, where data or weights are absent."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.models.checkpoint import load

Real = Callable[[str], Path]


@pytest.fixture(scope="module")
def batch(real: Real) -> Path:
    """The official test batch, where a user would have it."""
    return real("cifar10_lossless") / "cifar-10-batches-py" / "test_batch"


@pytest.mark.parametrize("depth", [20, 56])
def test_published_cifar_weights_load_whole(real: Real, depth: int) -> None:
    encoder = load(real("weights") / (f"cifar10_resnet{depth}.th"), arch=f"cifar_resnet{depth}")
    raw = torch.load(real("weights") / f"cifar10_resnet{depth}.th", map_location="cpu", weights_only=True)["state_dict"]
    ours = encoder.trunk.state_dict()
    assert all(torch.equal(ours[name.removeprefix("module.")], tensor) for name, tensor in raw.items())
    assert len(raw) == sum(not name.endswith("num_batches_tracked") for name in ours)
    assert encoder.classes == 10


@pytest.mark.parametrize(("depth", "right"), [(20, 915), (56, 926)])
def test_published_cifar_weights_are_as_accurate_as_published(real: Real, batch: Path, depth: int, right: int) -> None:
    """He et al. 2015 give 91.25 and 93.03 % on all 10,000; these are the first 1,000, counted within half a percent."""
    encoder = load(real("weights") / (f"cifar10_resnet{depth}.th"), arch=f"cifar_resnet{depth}")
    stored = pickle.loads(batch.read_bytes(), encoding="bytes")
    pixels = torch.from_numpy(np.array(stored[b"data"][:1000])).view(-1, 3, 32, 32).float() / 255
    labels = torch.tensor(stored[b"labels"][:1000])
    with torch.no_grad():
        found = torch.cat([encoder.logits(part).argmax(1) for part in pixels.split(100)])
    assert abs(int((found == labels).sum()) - right) <= 5


def test_folded_half_precision_weights_load_with_their_padding(real: Real) -> None:
    file = real("weights") / "timm_mobilenetv2_100_imagenet.safetensors"
    half = (0.5, 0.5, 0.5)
    encoder = load(file, arch="mobilenetv2_100", options=("pad_type=same",), mean=half, std=half)
    assert (encoder.classes, encoder.dim, encoder.geometry[:2]) == (1000, 1280, (224, 256))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
