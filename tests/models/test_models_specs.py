"""Everything that `load` takes for a name, what `save` writes, series, and the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from made_encoders import NET, PLAIN, X, made, same, tensors
from safetensors.torch import save_file

from holdfast.errors import CheckpointError, ConfigError
from holdfast.models.architectures import IMAGENET, SMALL
from holdfast.models.checkpoint import load, save, series
from holdfast.models.encoder import Geometry
from holdfast.records import Model

# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "arch", "hint"),
    [
        ("resnet1888", "", 'meant "resnet'),
        ("random:cifar_resnet2", "", 'meant "cifar_resnet'),
        ("random:zzzzzz", "", "holdfast ls models"),
        ("resnet18.a1_in1", "", 'meant "resnet18.a1_in1k"'),
        ("random:resnet18", "", "cannot be built"),
        ("no_such_package:net", "", "PYTHONPATH"),
    ],
)
def test_unknown_names_give_a_hint(spec: str, arch: str, hint: str) -> None:
    options = ("nonsense=1",) if hint == "cannot be built" else ()
    with pytest.raises(ConfigError, match=hint):
        load(spec, arch=arch, options=options)


def test_an_option_is_name_and_value() -> None:
    with pytest.raises(ConfigError, match="no name=value"):
        load(f"random:{NET}", options=("width",))


def test_an_architecture_alone_has_no_weights() -> None:
    with pytest.raises(CheckpointError, match='"random:cifar_resnet18"'):
        load("cifar_resnet18")


def test_a_module_that_was_handed_over_cannot_be_found_again() -> None:
    with pytest.raises(CheckpointError, match="handed over in Python"):
        load("module:Sequential")


def test_a_factory_is_called_with_the_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_nets.py").write_text("from torch import nn\ndef net(width=4):\n    return nn.Conv2d(3, width, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = load("my_nets:net", options=("width=6",))
    assert (encoder.dim, encoder.model.arch) == (6, "my_nets:net")
    file = save(encoder, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"was made by my_nets:net.*trust"):
        load(file)
    assert load(file, arch="my_nets:net").digest() == encoder.digest()
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="0 of 2 weights matched"):
        load(str(tmp_path / "b.pth"), arch="my_nets:net")


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = made(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert same(one, made(seed=1))
    assert not same(one, made(seed=2))
    assert (one.model.mean, one.model.std) == SMALL
    assert one.head is None


def test_a_record_is_opened_and_its_digest_held(tmp_path: Path) -> None:
    torch.save(tensors(made()), tmp_path / "a.pth")
    read = load(Model(spec=str(tmp_path / "a.pth"), arch=NET, name="mine"))
    assert (read.name, read.model.arch) == ("mine", NET)
    assert load(read.model).digest() == read.digest()
    torch.save(tensors(made(seed=4)), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="not those of the record"):
        load(read.model)


def test_fields_beside_a_record_or_a_text_are_the_models() -> None:
    assert load(f"random:{NET}", model=Model(spec="", name="ours")).name == "ours"
    with pytest.raises(ConfigError, match='meant "name"'):
        load(f"random:{NET}", nmae="ours")


def test_an_encoder_comes_back_as_it_is() -> None:
    encoder = made()
    assert load(encoder) is encoder
    renamed = load(encoder, name="other")
    assert (renamed.name, renamed.trunk) == ("other", encoder.trunk)
    with pytest.raises(ConfigError, match="has its mean and std"):
        load(encoder, **PLAIN)


# -- saving and series -------------------------------------------------------------------------------------------------


def test_a_saved_encoder_says_all_about_itself(tmp_path: Path) -> None:
    encoder = load(f"random:{NET}", options=("width=8", "num_classes=3"), mean=(0.1, 0.2, 0.3))
    encoder.geometry = Geometry(48, 56, "bicubic")
    file = save(encoder, tmp_path / "run", extra={"method": "simclr"})
    read = load(str(tmp_path / "run"))
    assert (read.geometry, read.classes, read.name) == (Geometry(48, 56, "bicubic"), 3, "run")
    assert read.model.options == ("width=8",)
    assert torch.equal(read.logits(X), encoder.logits(X))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["encoder.safetensors"]
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    assert header["__metadata__"]["method"] == "simclr"


def test_a_saved_encoder_that_was_changed_is_refused(tmp_path: Path) -> None:
    file = save(made(), tmp_path / "a.safetensors")
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)
    with pytest.raises(CheckpointError, match="changed after it was saved"):
        load(file)


def test_another_file_of_ours_is_no_encoder(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "head.safetensors", {"holdfast": "0.1.0"})
    with pytest.raises(CheckpointError, match="a Holdfast file and no encoder"):
        load(tmp_path / "head.safetensors")


def test_another_mean_is_taken_for_a_saved_encoder(tmp_path: Path) -> None:
    file = save(made(), tmp_path / "a.safetensors")
    assert load(file, mean=(0.1, 0.2, 0.3)).model.mean == (0.1, 0.2, 0.3)


def test_a_series_is_in_natural_order(tmp_path: Path) -> None:
    for name in ("epoch10.pth", "epoch9.pth", "epoch100.safetensors", "notes.txt", ".hidden.pth"):
        (tmp_path / name).write_bytes(b"x")
    save(made(), tmp_path / "epoch20")
    assert [p.name for p in series(tmp_path)] == ["epoch9.pth", "epoch10.pth", "epoch20", "epoch100.safetensors"]
    assert series(tmp_path / "epoch20") == [tmp_path / "epoch20" / "encoder.safetensors"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        series(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no folder"):
        series(tmp_path / "gone")


# -- the hub -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["resnet18", "resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"])
def test_offline_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"is not in the cache .* this machine is offline"):
        load(spec)


def cache(folder: Path, repository: str, files: dict[str, Any]) -> None:
    """A cache of the hub with one repository, as huggingface_hub lays it out."""
    root = folder / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    (root / "snapshots" / "abc").mkdir(parents=True)
    for name, content in files.items():
        place = root / "snapshots" / "abc" / name
        if name.endswith(".json"):
            place.write_text(json.dumps(content))
        else:
            save_file(content, place)


def test_cached_weights_need_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    truth = load("random:mobilenetv2_050:3", options=("num_classes=1000",))
    cache(tmp_path, "timm/mobilenetv2_050.lamb_in1k", {"model.safetensors": tensors(truth)})
    read = load("mobilenetv2_050")
    assert same(read, truth)
    assert (read.classes, read.model.mean, "state_dict" in read.trunk.pretrained_cfg) == (1000, IMAGENET[0], False)
    assert load(save(read, tmp_path / "run")).digest() == read.digest()


def test_cached_weights_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache(
        tmp_path, "timm/mobilenetv2_050.lamb_in1k", {"model.safetensors": {"conv_stem.weight": torch.ones(16, 3, 3, 3)}}
    )
    with pytest.raises(CheckpointError, match="Nothing was loaded"):
        load("mobilenetv2_050")
    with pytest.raises(ConfigError, match="have 1000 classes"):
        load("mobilenetv2_050", options=("num_classes=10",))


def test_a_cached_repository_says_its_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    truth = load("random:resnet18:3", options=("num_classes=7",))
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64], "crop_pct": 1.0, "unknown": 1}
    config = {"architecture": "resnet18", "num_classes": 7, "pretrained_cfg": cfg}
    cache(tmp_path, "me/mine", {"model.safetensors": tensors(truth), "config.json": config})
    read = load("hf-hub:me/mine")
    assert same(read, truth)
    assert (read.classes, read.model.mean, read.geometry.size, read.name) == (7, (0.1, 0.2, 0.3), 64, "mine")
