"""The public functions: one per verb. Each makes its config, calls the rooms below and returns what lies on disk.

Nothing of torch is imported before a verb is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.codec import Record, build
from holdfast.configs import (
    AttackConfig,
    BenchConfig,
    CorruptConfig,
    LsConfig,
    ProbeConfig,
    ReportConfig,
    RunConfig,
    VerifyConfig,
)
from holdfast.errors import ConfigError
from holdfast.progress import Say
from holdfast.progress import say as to_stderr
from holdfast.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.evaluation.store import Run
    from holdfast.models.encoder import Encoder


def load(spec: str | nn.Module, **fields: Any) -> Encoder:
    """Load an encoder.

    Args:
        spec: timm name, `hf-hub:owner/name`, weights file, run folder, `package.module:factory`, or an `nn.Module`.
        **fields: of `records.Model`: arch, options, weights, mean, std, name.

    Returns:
        An encoder that takes pixels float32 [b, 3, h, w] in [0, 1] and owns its normalisation.

    Raises:
        CheckpointError: the file holds no weights, or not all of them fit; nothing was loaded then.
    """
    from holdfast.models.checkpoint import load as read

    return read(spec, **fields)


def train(method: str = "simclr", **fields: Any) -> Path:
    """Pre-train an encoder; an `out` that was begun is continued.

    Args:
        method: simclr, supcon, simsiam, byol, barlow, swav, dino, empssl, supervised, trades, deacl, fare or harden.
        **fields: of `train_config.TrainConfig`: data, model, out, epochs, adversary, eps...

    Returns:
        The folder with `encoder.safetensors`, `metrics.jsonl` and the model card.

    Raises:
        ConflictError: `out` was made with another config.
        Interrupted: a signal came; the checkpoint is on disk.
    """
    return _train(build(TrainConfig, {"method": method, **fields}), to_stderr)


def probe(encoder: str, **fields: Any) -> Path:
    """Fit a linear head on a frozen encoder and measure it.

    Args:
        encoder: as `load` takes it.
        **fields: of `configs.ProbeConfig`: data, out, level, epochs...

    Returns:
        The folder with `head.safetensors` and `probe.json`.

    Raises:
        TrustError: the frozen encoder changed while the head was fitted.
    """
    return _probe(build(ProbeConfig, {"encoder": encoder, **fields}), to_stderr)


def attack(
    encoder: str | nn.Module,
    images: Tensor | Sequence[Tensor],
    labels: Tensor | None = None,
    *,
    delta: Tensor | str | Path | None = None,
    surrogate: str | nn.Module | None = None,
    **fields: Any,
) -> Tensor:
    """Attack images and return them; nothing is written.

    Args:
        encoder: as `load` takes it.
        images: float32 [b, 3, h, w] in [0, 1], or b images [3, h, w] of one size.
        labels: int64 [b]; with them, or a `target`, the attack is through classification unless `through` is given.
            With `segmentation_heads` or `depth_heads` it is through that head: masks int64 [b, h, w], or metres.
        delta: where to begin: perturbations in pixel units, [b, 3, h, w] or [3, h, w], or a file of them.
        surrogate: encoder that the attack is made on, where it is another one (transfer).
        **fields: of `configs.AttackConfig`: method, eps (`4/255` or a number), norm, steps, push, through, target...

    Returns:
        The worst iterate of each image, float32 [b, 3, h, w] in [0, 1], within eps of it.

    Raises:
        PixelError: images outside [0, 1].
        ConfigError: an unknown harm or norm, or no labels where they are needed.
    """
    from holdfast.devices import threads_of
    from holdfast.looking import attacked

    open_still = fields.keys().isdisjoint({"through", "segmentation_heads", "depth_heads"})
    if open_still and (labels is not None or "target" in fields):
        fields["through"] = "classification"
    config = build(AttackConfig, fields)
    with threads_of(config.threads):
        made_on = None if surrogate is None else load(surrogate)
        return attacked(load(encoder), images, labels, config, delta=delta, surrogate=made_on).pixels


def bench(encoders: str | nn.Module | Sequence[str | nn.Module] = (), **fields: Any) -> Run:
    """Measure encoders on a grid; an `out` that was begun is continued.

    Args:
        encoders: specs as `load` takes them, or modules; a folder of checkpoints is a series.
        **fields: of `configs.BenchConfig`: data, out, suite, eps, corruptions, variant...

    Returns:
        The run as it lies on disk: `.results`, `.rows()`, `.table()`.

    Raises:
        ConflictError: `out` was made with another config.
        CellsFailed: some cells failed; the others are on disk.
        Interrupted: a signal came; what was finished is on disk.
    """
    from torch import nn

    from holdfast.benching import measure
    from holdfast.devices import threads_of

    given = [encoders] if isinstance(encoders, str | nn.Module) else list(encoders)
    names = [item for item in given if isinstance(item, str)]
    handed = [item for item in given if isinstance(item, nn.Module)]
    config = build(BenchConfig, {"encoders": names, **fields})
    with threads_of(config.threads):
        return measure(config, handed, to_stderr)


def corrupt(data: str, out: str, **fields: Any) -> Path:
    """Write a corrupted copy of images in the layout of the official sets; an `out` that was begun is continued.

    Args:
        data: a folder, or a source, as everywhere.
        out: folder to write to.
        **fields: of `configs.CorruptConfig`: corruptions, severities, variant, storage, layout...

    Returns:
        The folder.

    Raises:
        ConflictError: `out` was made with another config.
        Interrupted: a signal came; what was written is whole.
    """
    return _corrupt(build(CorruptConfig, {"data": data, "out": out, **fields}), to_stderr)


def verify(runs: str | Path | Sequence[str | Path], **fields: Any) -> list[str]:
    """Judge the adversarial images that runs keep anew: from disk, in float32, apart from the attack.

    Args:
        runs: folders of `bench` or of `attack`.
        **fields: of `configs.VerifyConfig`: device, threads.

    Returns:
        A table: a line per cell, then the sum.

    Raises:
        TrustError: an image disagrees with its record, or lies outside its ball; the table has been printed.
    """
    given = [runs] if isinstance(runs, str | Path) else list(runs)
    return _verify(build(VerifyConfig, {"runs": [str(run) for run in given], **fields}), to_stderr)


def report(runs: str | Path | Run | Sequence[str | Path | Run], out: str | Path = "", *, title: str = "") -> Path:
    """Draw the page, `results.csv` and `table.tex` from records.

    Args:
        runs: folders of `bench`, or what it returned; several are compared.
        out: folder to write to, or a file that ends in .html; empty = the first run's folder.
        title: of the page.

    Returns:
        The HTML file: one file, no network, no script needed.
    """
    from holdfast.evaluation.store import Run as Stored
    from holdfast.evaluation.store import read
    from holdfast.reporting.page import report as draw

    given = [runs] if isinstance(runs, str | Path | Stored) else list(runs)
    if not given:
        raise ConfigError("No run was named.", next="holdfast report runs/bench")
    found = [item if isinstance(item, Stored) else read(Path(item)) for item in given]
    read_back = list({item.folder.resolve(): item for item in found}.values())
    page: Path = draw(read_back, Path(out) if out else read_back[0].folder, title=title)
    return page


def run(recipe: str, **fields: Any) -> Path:
    """Play a recipe: steps, each a verb with its config and its own `out`; run again, it continues.

    Args:
        recipe: a shipped recipe's name, or a YAML file.
        **fields: of `configs.RunConfig`: out, device.

    Returns:
        The folder of its steps.
    """
    return _run(build(RunConfig, {"recipe": recipe, **fields}), to_stderr)


def ls(what: str = "suites", *, failed: bool = False) -> list[str]:
    """What exists, or what a run or a weights file holds, a line each.

    Args:
        what: models, attacks, flags, corruptions, suites, tasks, methods, recipes, layouts, a run folder, weights.
        failed: of a run, the failed cells alone, with their errors.
    """
    from holdfast.listing import lines

    return lines(build(LsConfig, {"what": what, "failed": failed}))


def play(verb: str, config: Record, *, say: Say) -> int:
    """Do what a command line asks for.

    Args:
        verb: demo, run, train, probe, attack, bench, verify, corrupt, report or ls.
        config: the verb's own.
        say: prints a line.

    Returns:
        The exit code.
    """
    for line in _PLAYED[verb](config, say):
        say(line)
    return 0


# -- one function per verb: a config in, lines out ---------------------------------------------------------------------


def _train(config: TrainConfig, say: Say) -> Path:
    from holdfast.devices import threads_of
    from holdfast.training.loop import train as learn

    if not config.out:
        raise ConfigError("No folder was named.", next="Add --out runs/a; the same command continues it.")
    with threads_of(config.threads):
        return learn(config, say=say)


def _probe(config: ProbeConfig, say: Say) -> Path:
    from holdfast.devices import threads_of
    from holdfast.training.probe import probe as fit

    if not config.encoder:
        raise ConfigError("No encoder was named.", next="holdfast probe ENCODER --data imgs/ --out runs/p")
    with threads_of(config.threads):
        return fit(config, say=say)


def _corrupt(config: CorruptConfig, say: Say) -> Path:
    from holdfast.corrupting import write
    from holdfast.devices import threads_of

    with threads_of(config.threads):
        return write(config, say)


def _verify(config: VerifyConfig, say: Say) -> list[str]:
    from holdfast.devices import threads_of
    from holdfast.verifying import verify as judge

    with threads_of(config.threads):
        return judge(config, say)


def _run(config: RunConfig, say: Say) -> Path:
    from holdfast.recipe import play as play_recipe

    return play_recipe(config, say, lambda verb, step, tell: play(verb, step, say=tell))


def _play_train(config: TrainConfig, say: Say) -> list[str]:
    out = _train(config, say)
    return [f"next  holdfast bench {out} --data {config.data} --out runs/bench"]


def _play_probe(config: ProbeConfig, say: Say) -> list[str]:
    return [f"head  {_probe(config, say)}"]


def _play_attack(config: AttackConfig, say: Say) -> list[str]:
    from holdfast.devices import threads_of
    from holdfast.looking import look

    with threads_of(config.threads):
        return [f"gallery  {look(config, say)}"]


def _play_bench(config: BenchConfig, say: Say) -> list[str]:
    from holdfast.benching import foresee, measure
    from holdfast.devices import threads_of

    with threads_of(config.threads):
        if config.dry_run:
            return foresee(config, say)
        found = measure(config, (), say)
    _print_table(found)
    return [f"records  {found.folder}", f"next     holdfast report {found.folder}"]


def _play_corrupt(config: CorruptConfig, say: Say) -> list[str]:
    out = _corrupt(config, say)
    split = f" --split {config.split}" if config.split else ""
    asked = f"holdfast bench ENCODER --data {config.data}{split} --corrupted {out} --out runs/b"
    return [f"written  {out}", f"next     {asked}"]


def _play_report(config: ReportConfig, say: Say) -> list[str]:
    page = report(list(config.runs), config.out, title=config.title)
    return [f"page  {page}"]


def _play_run(config: RunConfig, say: Say) -> list[str]:
    _run(config, say)
    return []


def _play_ls(config: LsConfig, say: Say) -> list[str]:
    from holdfast.listing import lines

    return lines(config)


def _print_table(found: Run) -> None:
    from rich.console import Console

    from holdfast.evaluation.summary import table

    Console().print(table(found))


_PLAYED: dict[str, Callable[[Any, Say], list[str]]] = {
    "demo": _play_run,
    "run": _play_run,
    "train": _play_train,
    "probe": _play_probe,
    "attack": _play_attack,
    "bench": _play_bench,
    "verify": _verify,
    "corrupt": _play_corrupt,
    "report": _play_report,
    "ls": _play_ls,
}
