"""Recipes: every option of every shipped one makes configs that are sound; choices are set by name; small ones play."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import recipe
from holdfast.configs import RunConfig
from holdfast.errors import ConfigError
from holdfast.evaluation.store import read
from holdfast.training import build


def _steps(name: str, *, out: str = "o", **fields: Any) -> list[tuple[str, Any]]:
    said: list[tuple[str, Any]] = []
    _, found = recipe.find(name)
    inputs = tuple(f"{key}=in/{key}" for key in found.inputs)
    config = RunConfig(recipe=name, inputs=inputs, out=out, **fields)
    recipe.play(config, lambda line: None, lambda verb, step, say: said.append((verb, step)))
    return said


@pytest.mark.parametrize("name", sorted(recipe.names()))
def test_every_option_makes_steps_that_are_sound(name: str) -> None:
    _, found = recipe.find(name)
    options = [[f"{choice}={option}" for option in words] for choice, words in found.choices.items()]
    for combination in itertools.product(*options):
        steps = _steps(name, set=combination)
        assert steps, combination
        for verb, step in steps:
            assert "{" not in str(step), (combination, step)
            if verb == "train":
                build.check(step)
        outs = [step.out for verb, step in steps if verb != "report"]
        assert len(set(outs)) == len(outs), "every step has a folder of its own, or none could be continued"


def test_the_seven_rows_are_those_of_the_table() -> None:
    trained = {s.out.rpartition("/")[2]: s for verb, s in _steps("cf-amc-ssl", set=("row=all",)) if verb == "train"}
    assert len(trained) == 9
    kinds = {(s.method, build.settled(s).adversary, s.policy, s.epochs) for s in trained.values()}
    assert kinds == {
        ("empssl", "free", "crops", 10), ("empssl", "free", "patches", 10), ("simclr", "free", "crops", 167),
        ("empssl", "pgd", "crops", 30), ("empssl", "pgd", "patches", 30), ("simclr", "pgd", "crops", 500),
        ("simclr", "pgd", "patches", 500), ("empssl", "none", "crops", 30), ("simclr", "none", "crops", 500),
    }  # fmt: skip
    published = ("row=all", "arithmetic=published")
    rows = {
        (build.settled(s).adversary, s.schedule) for verb, s in _steps("cf-amc-ssl", set=published) if verb == "train"
    }
    assert rows == {("free", "rewarmed"), ("pgd_summed", "cosine"), ("none", "cosine")}


def test_one_row_is_trained_and_benched_alone() -> None:
    steps = _steps("cf-amc-ssl", set=("row=patch-emp-free", "scale=small"))
    assert [verb for verb, _ in steps] == ["train", "bench", "bench", "report", "report"]
    assert steps[1][1].encoders == ("o/patch-emp-free",) and steps[2][1].encoders == ("patches:16:o/patch-emp-free",)


def test_a_single_word_is_set_with_its_type() -> None:
    steps = dict(_steps("cf-amc-ssl", set=("epochs_emp_free=3", "eps=[1/255]", "model=cifar_resnet8")))
    assert steps["train"].epochs == 3 and steps["train"].model == "cifar_resnet8"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("scale=smal", r'scale is one of full, small, not "smal".*meant "small"'),
        ("scal=small", r'nothing to set by "scal=small".*meant "scale"'),
        ("epoch=3", r'nothing to set by "epoch=3".*meant "epochs"'),
        ("small", 'nothing to set by "small"'),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_nearest(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _steps("protocols", set=(given,))
    with pytest.raises(ConfigError, match="demo has no choices"):
        _steps("demo", set=("scale=small",))


def test_a_dry_run_says_the_choices_and_what_was_published() -> None:
    lines: list[str] = []
    config = RunConfig(recipe="cf-amc-ssl", inputs=("data=d",), set=("scale=small",), out="o", dry_run=True)
    recipe.play(config, lines.append, lambda verb, step, say: pytest.fail("nothing is done"))
    assert "set     row=crop-emp-free scale=small arithmetic=corrected" in lines
    assert any(line.startswith("published    crop-emp-free") and "55.97" in line for line in lines)


def test_the_protocols_end_in_one_table_that_names_them(tmp_path: Path) -> None:
    words = ["scale=small", "images=60", "epochs=1", "batch=18", "shown=10"]
    given = ["encoder=random:cifar_resnet8", "data=scenes"]
    out = holdfast.run("protocols", inputs=given, set=words, out=str(tmp_path), device="cpu")
    run = read(tmp_path / "bench")
    assert {result.cell.encoder.name for result in run.results} == {"SLF", "ALF", "AFF"}
    assert not run.failed and (Path(out) / "report.html").exists()
    page = (Path(out) / "report.html").read_text()
    assert all(name in page for name in ("SLF", "ALF", "AFF"))


def test_a_row_of_cf_amc_ssl_is_measured_whole_and_by_crops(tmp_path: Path) -> None:
    words = ["scale=small", "images=60", "model=cifar_resnet8", "crops=2", "hidden=32", "dim=16", "emp_batch=18"]
    words += ["epochs_emp_free=1", "shown=6"]
    holdfast.run("cf-amc-ssl", inputs=["data=scenes"], set=words, out=str(tmp_path), device="cpu")
    for part, name in (("central", "crop-emp-free"), ("crops", "crop-emp-free (16 crops)")):
        run = read(tmp_path / part)
        assert not run.failed and {result.cell.encoder.name for result in run.results} == {name}
    card = (tmp_path / "crop-emp-free" / "README.md").read_text()
    # 54 trained images make three batches of 18; two crops, three replays, one pass each.
    assert "| cost | 324 forward-backward passes of one view;" in card and "cpu:" in card
