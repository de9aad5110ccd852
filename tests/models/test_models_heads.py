"""A linear head from a file of its own: read whole, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from holdfast.errors import CheckpointError
from holdfast.models.heads import read_head


def test_dinos_linear_weights_are_read_under_their_wrappers(tmp_path: Path) -> None:
    linear = nn.Linear(6, 3)
    torch.save({"state_dict": {f"module.linear.{k}": v for k, v in linear.state_dict().items()}}, tmp_path / "l.pth")
    head = read_head(tmp_path / "l.pth")
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head.linear(x), linear(x).detach())
    assert head.level == ""
    assert not any(p.requires_grad for p in head.linear.parameters())


def test_a_probe_folder_says_its_level(tmp_path: Path) -> None:
    tensors = {"weight": torch.ones(3, 6), "bias": torch.zeros(3)}
    save_file(tensors, tmp_path / "head.safetensors", metadata={"level": "cls4"})
    assert read_head(tmp_path).level == "cls4"
    changed = {**tensors, "bias": torch.ones(3)}
    save_file(changed, tmp_path / "other.safetensors")
    assert read_head(tmp_path).digest != read_head(tmp_path / "other.safetensors").digest


def test_a_missing_bias_is_zero(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.ones(2, 3)}, tmp_path / "h.safetensors")
    assert torch.equal(read_head(tmp_path / "h.safetensors").linear.bias, torch.zeros(2))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": torch.ones(2, 3), "b.weight": torch.ones(2, 3)}, "2 tensors"),
        ({"conv.weight": torch.ones(2, 3, 1, 1)}, "one linear layer"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(4)}, "do not belong together"),
        ({"weight": torch.full((2, 3), torch.nan)}, "not finite"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "h.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_head(tmp_path / "h.safetensors")
