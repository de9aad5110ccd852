"""Every fenced block of the README and of CONTRIBUTING is tagged, and every command on a person's images is played.

`bash setup` blocks are make targets; `bash yours`, `yaml yours NAME` and `python yours` run in order on a miniature
tree with the names that the README uses, with sizes made small. `make demo` is `python -m holdfast demo`, in a process.
"""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from PIL import Image

from holdfast import cli, configs, records, verbs
from holdfast.codec import Record
from holdfast.evaluation.store import read
from holdfast.train_config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]


class Block(NamedTuple):
    """A fenced block: language, the words after it, and its text."""

    language: str
    tags: tuple[str, ...]
    text: str


def _blocks(name: str) -> list[Block]:
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    return [Block((head.split() or [""])[0], tuple(head.split()[1:]), text) for head, text in found]


def _small(config: Record) -> Record:
    """The same command on few small images, with few steps."""
    images: dict[str, Any] = {"size": 32, "limit": 16}
    if isinstance(config, TrainConfig):
        return msgspec.structs.replace(config, **images, epochs=1, batch=8, steps=1)
    if isinstance(config, configs.ProbeConfig):
        return msgspec.structs.replace(config, **images, epochs=2)
    if isinstance(config, configs.AttackConfig):
        return msgspec.structs.replace(config, size=32, steps=2)
    if isinstance(config, configs.BenchConfig):
        few = {"eps": config.eps or (4 / 255,), "corruptions": config.corruptions or ("fog",), "severities": (3,)}
        looks = {"saliency": min(config.saliency, 4), "variant": "" if config.corrupted else "cifar32"}
        return msgspec.structs.replace(config, **images, **few, **looks, steps=2, attack_limit=4, chunk=8)
    if isinstance(config, configs.CorruptConfig):
        return msgspec.structs.replace(config, **images, corruptions=("fog",), variant="cifar32")
    return config


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the README speaks of."""
    import timm
    import torch

    folders = [Path("imgs", split, name) for split in ("train", "test") for name in ("cat", "dog")]
    names = [*(folder / f"{i}.png" for folder in folders for i in range(10)), Path("cat.png"), Path("dog.png")]
    for seed, name in enumerate(names):
        _picture(tmp_path / name, seed)
    for split in ("train", "test"):
        for i in range(12):
            _picture(tmp_path / "street" / "images" / split / f"{i}.png", 100 + i)
            mask = np.zeros((40, 40), dtype=np.uint8)
            mask[:, 10 + i :] = 1
            path = tmp_path / "street" / "masks" / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "mine.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_block_is_tagged(name: str) -> None:
    blocks = _blocks(name)
    assert blocks
    assert {(block.language, *block.tags[:1]) for block in blocks} <= {
        ("bash", "setup"),
        ("bash", "yours"),
        ("yaml", "yours"),
        ("python", "yours"),
    }
    assert (ROOT / name).read_text().count("```") == 2 * len(blocks)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_setup_commands_are_make_targets(name: str) -> None:
    lines = [line for b in _blocks(name) if b.tags[:1] == ("setup",) for line in b.text.splitlines()]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lines
    assert all(words[0] == "make" and words[1] in targets for words in map(str.split, lines)), lines


def test_readme_shows_every_verb() -> None:
    lines = [line for block in _blocks("README.md") for line in block.text.splitlines()]
    shown = {line.split()[1] for line in lines if line.startswith("holdfast ")}
    assert shown == set(cli.VERBS) - {"demo"}


def test_commands_of_the_readme_run_on_your_images(tree: Path) -> None:
    said: list[str] = []
    for block in (b for b in _blocks("README.md") if b.tags[:1] == ("yours",)):
        if block.language == "yaml":
            (tree / block.tags[1]).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, "README.md", "exec"), {})
        else:
            for line in block.text.splitlines():
                asked = cli.parse(shlex.split(line)[1:])
                assert verbs.play(asked.verb, _small(asked.config), say=said.append) == 0, line
    promised = ["plain/metrics.jsonl", "hard/metrics.jsonl", "probe/head.safetensors", "look/gallery.html"]
    promised += [f"bench/{name}" for name in ("run.yaml", "report.html", "results.csv", "table.tex")]
    promised += ["compared/report.html", "from_python/report.html"]
    assert [name for name in promised if not (tree / "runs" / name).is_file()] == []
    for run in ("bench", "mine", "dense", "from_file", "from_python"):
        assert list((tree / "runs" / run / "cells").glob("*.json")), run
    assert said


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `make demo` plays, once: its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "run"
    words = [sys.executable, "-m", "holdfast", "demo", "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return out, done.stdout + done.stderr


def test_demo_ends_with_a_page(demo: tuple[Path, str]) -> None:
    out, printed = demo
    pages = list(out.rglob("report.html"))
    assert pages
    assert all(str(page) in printed for page in pages)
    assert "Traceback" not in printed


def test_demo_shows_what_it_promises(demo: tuple[Path, str]) -> None:
    """Both encoders see, the plain one breaks, the hardened one holds out beyond the intervals."""
    found = read(demo[0] / "bench")
    assert not found.failed

    def accuracy(name: str, eps: float) -> records.Metric:
        for result in found.results:
            attack, judge = result.cell.attack, result.cell.judge.task
            right = attack is None if not eps else attack is not None and attack.push == "ce" and attack.eps == eps
            if result.cell.encoder.name == name and judge == "classification" and right and not result.cell.corruption:
                metric = result.metric("accuracy")
                assert metric is not None
                return metric
        raise AssertionError(f"no cell of {name} at {eps}")

    plain, hardened = accuracy("plain", 0), accuracy("hardened", 0)
    assert plain.value is not None and hardened.value is not None
    assert plain.value >= 0.8
    assert hardened.value >= 0.6
    weak, strong = accuracy("plain", 4 / 255), accuracy("hardened", 4 / 255)
    assert weak.value is not None and weak.high is not None and strong.low is not None
    assert weak.value <= plain.value / 2
    assert strong.low > weak.high


def test_no_section_of_the_demos_page_is_empty(demo: tuple[Path, str]) -> None:
    page = (demo[0] / "report.html").read_text()
    sections = re.split(r"<h2[^>]*>", page)[1:]
    titles = [html.unescape(re.sub("<[^>]+>", "", section.partition("</h2>")[0])) for section in sections]
    assert len(titles) >= 9, titles
    for title, section in zip(titles, sections, strict=True):
        assert re.search(r"<(svg|table|img)", section), f"{title} shows nothing"
        assert not re.search(r"\bnan\b|>None<", section.lower()), title
    assert page.count("data:image/webp") >= 24, "a gallery of two encoders under two attacks"
    assert len(page) < 5e6
    assert not re.search(r"(?:src|href)=[\"']?https?:", page)
