"""The recipe of the corruption study, on miniature trees and random weights in the dialects that its files have."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import timm
import torch

import holdfast
from holdfast import recipe
from holdfast.configs import RunConfig
from holdfast.errors import ConfigError
from holdfast.evaluation.curves import subjects
from holdfast.evaluation.store import read
from holdfast.recipe import find

sys.path.append(str(Path(__file__).parents[1] / "data"))

from data_trees import noise, save

WNIDS = ("n01440764", "n02123045")
METHODS = ("barlowtwins", "byol", "simclr", "simsiam", "swav")


def test_inputs_are_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs data: folder of ImageNet.*--inputs data=\.\.\. corrupted="):
        holdfast.run("imagenet-c-study", out=str(tmp_path))
    with pytest.raises(ConfigError, match=r'no input "weigths=w".*Perhaps you meant "weights"'):
        holdfast.run("imagenet-c-study", inputs=["weigths=w"], out=str(tmp_path))
    with pytest.raises(ConfigError, match="demo asks for none"):
        holdfast.run("demo", inputs=["data=c"], out=str(tmp_path))


def test_inputs_stand_where_the_recipe_names_them(tmp_path: Path) -> None:
    said: list[tuple[str, object]] = []
    config = RunConfig(
        recipe="imagenet-c-study", inputs=("data=d", "corrupted=c", "weights=w"), out=str(tmp_path), device="cpu"
    )
    recipe.play(config, lambda line: None, lambda verb, step, say: said.append((verb, step)))
    (_, bench), (verb, _) = said
    assert verb == "report"
    assert (bench.data, bench.corrupted, bench.out) == ("imagenet:d", "c", f"{tmp_path}/bench")
    assert len(bench.models) == 15 and len({m.name for m in bench.models}) == 15
    assert {m.spec.partition("/")[0] for m in bench.models} == {"w"}
    raw = [m for m in bench.models if m.name.endswith("not normalised")]
    assert len(raw) == 7 and all((m.mean, m.std) == ((0, 0, 0), (1, 1, 1)) for m in raw)


def weights(folder: Path) -> None:
    folder.mkdir()
    for seed, name in enumerate((*METHODS, "dino_resnet50_pretrain", "supervised")):
        torch.manual_seed(seed)
        state = timm.create_model("resnet50").state_dict()
        if name in METHODS:
            head = {f"head.fc.{k}": state.pop(f"fc.{k}") for k in ("weight", "bias")}
            state = {"state_dict": {**{f"backbone.{k}": v for k, v in state.items()}, **head}}
        elif name.startswith("dino"):
            state = {k: v for k, v in state.items() if not k.startswith("fc.")}
        torch.save(state, folder / f"{name}.pth")
    vit = timm.create_model("vit_small_patch8_224", num_classes=0).state_dict()
    torch.save(vit, folder / "dino_deitsmall8_pretrain.pth")
    for name, width in (("dino_resnet50", 2048), ("dino_deitsmall8", 4 * 384)):
        linear = torch.nn.Linear(width, 1000).state_dict()
        wrapped = {"state_dict": {f"module.linear.{k}": v for k, v in linear.items()}}
        torch.save(wrapped, folder / f"{name}_linearweights.pth")


@pytest.mark.slow
def test_the_study_plays_on_its_files(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        weights(tmp_path / "w")
    for at, wnid in enumerate(WNIDS):
        for i in range(2):
            name = f"ILSVRC2012_val_{i:08d}.JPEG"
            save(tmp_path / "d" / "val" / wnid / name, noise(260, 280, 3, seed=10 * at + i))
            for severity in range(1, 6):
                save(
                    tmp_path / "c" / "weather" / "fog" / str(severity) / wnid / name,
                    noise(224, 224, 3, seed=100 * severity + 10 * at + i),
                )
    _, shipped = find("imagenet-c-study")
    bench, report = shipped.steps
    few = {**bench.config, "corruptions": ["fog"], "severities": [2], "chunk": 8}
    steps = (msgspec.structs.replace(bench, config=few), report)
    file = tmp_path / "study.yaml"
    file.write_bytes(msgspec.yaml.encode(msgspec.structs.replace(shipped, steps=steps)))
    inputs = [f"{key}={tmp_path / key[0]}" for key in ("data", "corrupted", "weights")]
    out = holdfast.run(str(file), inputs=inputs, out=str(tmp_path / "out"))
    found = read(out / "bench")
    assert not found.failed and len(found.results) == 15 * 2
    assert len(subjects([found])) == 15
    encoder = holdfast.load(str(tmp_path / "w" / "byol.pth"), arch="resnet50")
    clean = next(r for r in found.results if r.cell.encoder.name == "BYOL" and not r.cell.stages)
    from holdfast.data.sources import images, open_source

    source = open_source(images(f"imagenet:{tmp_path / 'd'}", split="val", resize=256, size=224))
    pixels = torch.stack([torch.from_numpy(source.read(i).pixels) for i in range(4)]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = encoder.logits(pixels).argmax(1)
    held = found.outcomes(clean.id)
    order = [held["id"].tolist().index(name) for name in source.ids]
    assert np.array_equal(held["prediction"][order], expected.numpy())
    page = (out / "bench" / "report.html").read_text()
    assert "DINO ViT-S/8, not normalised" in page
