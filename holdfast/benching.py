"""`bench`: from a config to records. Plans the grid, finds encoders, images and heads, and works it off."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import nn

from holdfast import disk
from holdfast.configs import BenchConfig
from holdfast.corruptions.table import made_for
from holdfast.data import corrupted
from holdfast.data.sources import parse
from holdfast.devices import device_of
from holdfast.environment import environment
from holdfast.errors import ConfigError, nearest
from holdfast.evaluation import plan
from holdfast.evaluation.blocks import Bench
from holdfast.evaluation.checks import checks_record
from holdfast.evaluation.curves import subjects
from holdfast.evaluation.estimate import estimate
from holdfast.evaluation.rows import called, full
from holdfast.evaluation.run import Run as Work
from holdfast.evaluation.run import work
from holdfast.evaluation.store import CHECKS, Run, Store, read
from holdfast.evaluation.summary import summary
from holdfast.models.precision import emulates_half
from holdfast.progress import Say, spoken
from holdfast.records import Cell, Variant
from holdfast.subjects import Stock
from holdfast.training.card import with_robustness
from holdfast.training.loop import CARD, ENCODER


def measure(config: BenchConfig, handed: Sequence[nn.Module], say: Say) -> Run:
    """Measure encoders and return the run as it lies on disk.

    Args:
        config: of the verb.
        handed: encoders or modules given in Python.
        say: prints a line.

    Raises:
        ConfigError: no `out`, or a grid that cannot be.
        ConflictError: `out` was made with another config.
        CellsFailed: some cells failed; the others are on disk.
        Interrupted: a signal came; what was finished is on disk.
    """
    if not config.out:
        raise ConfigError("No folder was named.", next="Add --out runs/bench; the same command continues it.")
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "bench needs gradients and was called inside torch.inference_mode().", next="Call it outside."
        )
    settled, stock, grid = _planned(config, handed, say)
    store = Store(config.out)
    store.open(settled, replace=config.replace, cells=grid, environment=environment(stock.device))
    todo = plan.jobs(grid, shard=config.shard)
    say(f"bench   {len(stock.subjects)} encoders, {len(grid)} cells, {stock.device}, {torch.get_num_threads()} threads")
    bench = Bench(
        stock.source,
        stock.encoder,
        stock.task,
        stock.partner,
        stock.device,
        shown=config.gallery_classes,
        engine=config.engine,
        recompute=config.recompute,
    )
    run = Work(bench, store, chunk=config.chunk, block=config.block)
    work(todo, run)
    if run.done < run.cells:
        say(f"{run.cells - run.done} of {run.cells} cells are held by another process; the same command looks again")
    found = read(store.folder)
    _write_cards(found)
    _write_checks(found)
    return found


def _write_checks(found: Run) -> None:
    """Whether the attacks are to be believed, encoder by encoder: `checks.json` beside the records."""
    verdicts = {subject.name: checks_record(subject) for subject in subjects([found])}
    disk.write(found.folder / CHECKS, json.dumps(verdicts, indent=1) + "\n")


def _write_cards(found: Run) -> None:
    """Add the numbers to the model cards of encoders that are run folders."""
    seen = subjects([found])
    columns = summary(seen)
    folders = {called(result.cell): Path(result.cell.encoder.spec) for result in found.results}
    for at, subject in enumerate(seen):
        card = folders.get(subject.name, Path()) / CARD
        if not (card.is_file() and (card.parent / ENCODER).is_file() and os.access(card.parent, os.W_OK)):
            continue
        cells = {column.title: (column.cells[at], column.norm) for column in columns if len(column.cells[at].ids)}
        rows = {title: cell.text or full(cell.metric, norm) for title, (cell, norm) in cells.items()}
        origin = f"records in `{found.folder}`, {found.config.data}, suite {found.config.suite}"
        disk.write(card, with_robustness(card.read_text(), rows, origin=origin))


def foresee(config: BenchConfig, say: Say) -> list[str]:
    """What `measure` would do and about how long it would take, by timing one chunk of each kind of work.

    Returns:
        Lines to print: cells, images, estimate.
    """
    settled, stock, cells = _planned(config, (), say)
    todo = plan.jobs(cells, shard=config.shard)
    images = {cell.data.digest(): len(stock.source(cell.data)) for cell in cells}
    attacks = {cell.attack.digest() for cell in cells if cell.attack is not None}
    bench = Bench(stock.source, stock.encoder, stock.task, stock.partner, stock.device)
    done = 0
    if config.out and (Path(config.out) / "run.yaml").exists() and not config.replace:
        store = Store(config.out)
        store.open(settled, cells=cells)
        todo = [job for job in todo if not all(store.has(cell) for cell in job.cells)]
        done = len(cells) - sum(len(job.cells) for job in todo)
    seconds = estimate(todo, bench, stock.fits(todo), chunk=config.chunk)
    attacked = {cell.attack.through for job in todo for cell in job.cells if cell.attack is not None}
    # Lost images leave an attack, and nobody knows yet how many.
    bound = "at most" if "classification" in attacked else "about"
    lines = [
        f"encoders  {', '.join(subject.model.name for subject in stock.subjects)}",
        f"images    {max(images.values())} ({min(images.values())} of them attacked, {len(attacks)} attacks)",
        f"cells     {len(cells)}" + (f", {done} done already" if done else ""),
        f"time      {bound} {spoken(seconds)} on {stock.device} with {torch.get_num_threads()} threads",
    ]
    if stock.device.type == "cpu" and seconds > 3600 and config.suite != "quick":
        lines.append("shorter   --suite quick")
    return lines


def _planned(config: BenchConfig, handed: Sequence[nn.Module], say: Say) -> tuple[BenchConfig, Stock, list[Cell]]:
    """The config with nothing left open, what it needs, and its grid."""
    config = _without_clean(config, say)
    settled = plan.settled(config)
    heads = Path(config.out or "runs/dry") / "heads"
    stock = Stock(settled, handed, device=device_of(config.device), heads=heads)
    if settled.corruptions and not settled.variant and not settled.corrupted:
        settled = msgspec.structs.replace(settled, variant=_variant(stock))
        say(f"severity table {settled.variant}, after the size of the images; --variant names another")
    if config.textures == "auto" and "frost" in (settled.corruptions or ()) and not settled.corrupted:
        found = {"published": "those of ImageNet-C, found here", "drawn": "drawn ones; HOLDFAST_FROST names a folder"}
        say(f"textures of frost: {found[settled.textures]}")
    _check_classes(settled, stock)
    side = max(max(stock.source(subject.attacked).read(0).pixels.shape[:2]) for subject in stock.subjects)
    settled = plan.at_protocol(settled, config, side)
    grid = plan.cells(settled, stock.subjects)
    halved = any(cell.attack is not None and cell.attack.precision == "bf16" for cell in grid)
    if halved and emulates_half(stock.device):
        say("bf16    this CPU has no instructions for it and is many times slower with it than in fp32")
    return settled, stock, grid


def _check_classes(config: BenchConfig, stock: Stock) -> None:
    """Refuse a gallery of a class that the images do not have."""
    known = stock.source(stock.subjects[0].images).classes
    for name in config.gallery_classes:
        if name not in known:
            raise ConfigError(f'The images have no class "{name}" for the gallery.', next=nearest(name, known))


def _without_clean(config: BenchConfig, say: Say) -> BenchConfig:
    """The config for an official corrupted set alone: accuracy is all that can be measured there, and that is said."""
    if config.data == "scenes" or parse(config.data)[0] not in corrupted.KINDS:
        return config
    if config.corrupted not in ("", config.data):
        raise ConfigError(
            f"{config.data} is a set of corrupted images itself, and {config.corrupted} was named beside it.",
            next="Name the clean images: --data CLEAN --corrupted FOLDER; or leave --corrupted out.",
        )
    if (config.tasks and "classification" not in config.tasks) or config.saliency:
        raise ConfigError(
            f"{config.data} holds corrupted images alone, of which only accuracy can be measured.",
            next="Drift and saliency need the clean images as well: --data CLEAN --corrupted FOLDER.",
        )
    say(f"{config.data} holds corrupted images alone: accuracy is measured; drift, saliency and attacks need the clean")
    say("images as well: --data CLEAN --corrupted FOLDER")
    attacks = tuple(attack for attack in config.attacks if attack.through == "classification")
    return msgspec.structs.replace(
        config, tasks=("classification",), corrupted=config.data, attacks=attacks, attack_limit=1
    )


def _variant(stock: Stock) -> Variant:
    """The severity table that was made for images of this very size; it is said, and recorded in every cell."""
    sides = {stock.source(subject.images).read(0).pixels.shape[:2] for subject in stock.subjects}
    found = {made_for(*side) for side in sides}
    if len(found) == 1 and found != {""}:
        return found.pop()  # type: ignore[return-value]  # the names of the table are those of the record
    shown = ", ".join(f"{high}x{wide}" for high, wide in sorted(sides))
    raise ConfigError(
        f"Corruptions need a severity table, and none was made for images of {shown}.",
        next="Add --variant imagenet224, cifar32, tiny64 or inception299, or --corruptions none.",
    )
