"""The command line: merging, hints, numbers, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast import cli, codec, configs, errors, verbs
from holdfast.codec import Record
from holdfast.records import Attack
from holdfast.train_config import TrainConfig


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Record]]:
    """What reached `verbs.play`; nothing is executed."""
    calls: list[tuple[str, Record]] = []

    def play(verb: str, config: Record, *, say: Callable[[str], None]) -> int:
        calls.append((verb, config))
        return 0

    monkeypatch.setattr(verbs, "play", play)
    return calls


def _plays(monkeypatch: pytest.MonkeyPatch, raises: BaseException | type[BaseException]) -> None:
    def play(verb: str, config: Record, *, say: Callable[[str], None]) -> int:
        raise raises

    monkeypatch.setattr(verbs, "play", play)


# -- parsing -----------------------------------------------------------------------------------------------------------

LEADING = [
    ("train simclr", TrainConfig(method="simclr")),
    ("probe runs/a", configs.ProbeConfig(encoder="runs/a")),
    ("attack runs/a --images a.png b.png", configs.AttackConfig(encoder="runs/a", images=("a.png", "b.png"))),
    ("bench a b --data imgs", configs.BenchConfig(encoders=("a", "b"), data="imgs")),
    ("bench --data imgs a b", configs.BenchConfig(encoders=("a", "b"), data="imgs")),
    ("report runs/a runs/b", configs.ReportConfig(runs=("runs/a", "runs/b"))),
    ("ls models", configs.LsConfig(what="models")),
    ("run demo --dry-run", configs.RunConfig(recipe="demo", dry_run=True)),
    ("demo --out x", configs.RunConfig(recipe="demo", out="x")),
]


@pytest.mark.parametrize(("line", "config"), LEADING, ids=[line for line, _ in LEADING])
def test_words_become_the_config(line: str, config: Record, played: list[tuple[str, Record]]) -> None:
    assert cli.main(line.split()) == 0
    assert played == [(line.split()[0], config)]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_no_words_give_the_defaults_of_the_struct(verb: str) -> None:
    known = cli.VERBS[verb]
    assert cli.parse([verb]).config == known.config(**dict(known.fixed))


@pytest.mark.parametrize("text", ["8/255", "0.03137254901960784", "8.0/255"])
def test_fraction_is_a_number_for_one_float(text: str) -> None:
    config = cli.parse(["attack", "x", "--eps", text]).config
    assert isinstance(config, configs.AttackConfig)
    assert config.eps == 8 / 255


def test_fraction_is_a_number_for_many_floats() -> None:
    config = cli.parse(["bench", "x", "--eps", "1/255", "2/255", "--mean", "1/2", "0.5", "5e-1"]).config
    assert isinstance(config, configs.BenchConfig)
    assert config.eps == (1 / 255, 2 / 255)
    assert config.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("text", ["1/x", "1/0", "eight"])
def test_what_is_no_number_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attack", "x", "--eps", text]) == 2
    assert f'"{text}" is not a number' in capsys.readouterr().err


# -- the file ----------------------------------------------------------------------------------------------------------


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text("encoders: [a]\nsuite: full\neps: [8/255]\nreplace: true\nattacks: [{stage: attack, steps: 3}]\n")
    config = cli.parse(["bench", "--config", str(file), "--suite", "standard", "--no-replace"]).config
    attacks = (Attack(steps=3),)
    assert config == configs.BenchConfig(encoders=("a",), suite="standard", eps=(8 / 255,), attacks=attacks)


@pytest.mark.parametrize("line", [line for line, _ in LEADING])
def test_printed_config_reads_back_as_itself(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*line.split(), "--print-config"]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    asked = cli.parse(line.split())
    assert cli.parse([asked.verb, f"--config={file}"]) == asked


def test_print_config_plays_nothing(played: list[tuple[str, Record]]) -> None:
    assert cli.main(["bench", "a", "--print-config"]) == 0
    assert played == []


MISTAKES = [
    ("atacks: []", 'unknown field "atacks"', '"attacks"'),
    ("attacks: [{stage: attack, stps: 3}]", 'unknown field "stps" at $.attacks[0]', '"steps"'),
    ("chunk: many", "$.chunk", "--help"),
    ("- a\n- b", "holds no fields", "eps"),
    ("a: [", "is not YAML", "eps"),
]


@pytest.mark.parametrize(("text", "found", "hint"), MISTAKES, ids=[m[1] for m in MISTAKES])
def test_mistake_in_the_file_is_named(
    text: str, found: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text(text)
    assert cli.main(["bench", "--config", str(file)]) == 2
    message = capsys.readouterr().err
    assert found in message
    assert hint in message
    assert "bench.yaml" in message


def test_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_demo_refuses_another_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: mine")
    assert cli.main(["demo", "--config", str(file)]) == 2
    assert "holdfast run --config" in capsys.readouterr().err


# -- hints -------------------------------------------------------------------------------------------------------------

TYPOS = [
    ("bnch", '"bench"'),
    ("trian", '"train"'),
    ("bench a --sute quick", '"--suite"'),
    ("bench a --fit_splt train", '"--fit-split"'),
    ("attack a --epss=8/255", '"--eps"'),
    ("ls models --faild", '"--failed"'),
    ("bench a --confg x.yaml", '"--config"'),
]


@pytest.mark.parametrize(("line", "hint"), TYPOS, ids=[t[0] for t in TYPOS])
def test_typo_names_the_nearest(line: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    printed = capsys.readouterr()
    assert f"Perhaps you meant {hint}" in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_help_says_every_flag_with_its_text_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in msgspec.structs.fields(configs.BenchConfig):
        flag = "ENCODER" if field.name == "encoders" else f"--{field.name.replace('_', '-')}"
        assert (flag in printed) == (field.name not in ("models", "attacks")), field.name
    assert "images per block, the unit of resume (default: 256)" in printed
    assert "timm name" in printed


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_flag_has_a_help_text(verb: str) -> None:
    assert [flag.name for flag in cli._flag_fields(cli.VERBS[verb]) if not flag.help] == []


def test_help_writes_a_radius_as_people_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    assert "(default: 8/255)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"), [(8 / 255, "8/255"), (0.001, "0.001"), (1.0, "1.0"), (0.1, "0.1"), (0.03, "0.03")]
)
def test_spoken_number_reads_back(value: float, text: str) -> None:
    assert cli._spoken(value) == text
    assert codec.number(text) == value


# -- exit codes --------------------------------------------------------------------------------------------------------

ENDINGS = [
    (errors.DataError("No folder data/val.", next="Use --split test."), 2, "Use --split test."),
    (errors.ConflictError("runs/b was made with eps 2/255."), 2, "runs/b was made"),
    (errors.TrustError("the encoder changed."), 1, "the encoder changed."),
    (errors.CellsFailed("1 of 3 cells failed."), 1, "1 of 3"),
    (errors.Interrupted("2 of 3 cells done."), 130, "2 of 3 cells done."),
    (KeyboardInterrupt, 130, "same command continues"),
    (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero. This is not your mistake"),
]


@pytest.mark.parametrize(("raised", "code", "message"), ENDINGS, ids=[str(e[0]) for e in ENDINGS])
def test_error_gives_its_exit_code_and_no_traceback(
    raised: Any, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _plays(monkeypatch, raised)
    assert cli.main(["ls", "models"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert "Traceback" not in printed.err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _plays(monkeypatch, ZeroDivisionError("division by zero"))
    assert cli.main(["ls", "models", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_code_of_the_verb_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "play", lambda verb, config, *, say: 1)
    assert cli.main(["ls", "models"]) == 1


@pytest.mark.parametrize("line", ["attack a --steps many", "bench a --subset frist", "ls a b"])
def test_value_that_does_not_fit_is_the_users_mistake(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.err
    assert "Traceback" not in printed.err


def test_nothing_typed_shows_the_help_as_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: holdfast VERB")


def test_top_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {verb:8}{known.line}\n" in printed for verb, known in cli.VERBS.items())


def test_examples_in_the_help_parse(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    examples = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  holdfast ")]
    assert len(examples) >= 6
    assert {cli.parse(words).verb for words in examples} <= set(cli.VERBS)


def test_sigterm_ends_as_ctrl_c_does() -> None:
    code = (
        "import os, signal, time\nfrom holdfast import cli, verbs\n"
        "def play(verb, config, *, say):\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(30)\n"
        "verbs.play = play\nraise SystemExit(cli.main(['ls']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert "Interrupted" in done.stderr
    assert "Traceback" not in done.stderr


def test_reader_that_leaves_early_is_no_error() -> None:
    code = (
        "import sys\nfrom holdfast import cli, verbs\n"
        "verbs.play = lambda verb, config, *, say: [say('x' * 1000) for _ in range(1000)] and 0\n"
        "raise SystemExit(cli.main(['ls']))"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
