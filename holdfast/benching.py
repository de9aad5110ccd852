"""`bench`: from a config to records. Plans the grid, finds encoders, images and heads, and works it off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from holdfast.configs import BenchConfig
from holdfast.errors import ConfigError
from holdfast.evaluation import plan
from holdfast.evaluation.blocks import Bench
from holdfast.evaluation.estimate import estimate
from holdfast.evaluation.run import Run as Work
from holdfast.evaluation.run import work
from holdfast.evaluation.store import Run, Store, read
from holdfast.devices import device_of
from holdfast.progress import Say, spoken
from holdfast.subjects import Stock


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
    settled = plan.settled(config)
    stock, todo = _planned(settled, handed)
    store = Store.open(settled, replace=config.replace)
    cells = sum(len(job.cells) for job in todo)
    say(f"bench   {len(stock.subjects)} encoders, {cells} cells, {stock.device}, {torch.get_num_threads()} threads")
    bench = Bench(stock.source, stock.encoder, stock.task, stock.device)
    work(todo, Work(bench, store, chunk=config.chunk, block=config.block))
    return read(store.folder)


def foresee(config: BenchConfig, say: Say) -> list[str]:
    """What `measure` would do and about how long it would take, by timing one chunk of each kind of work.

    Returns:
        Lines to print: cells, images, estimate.
    """
    settled = plan.settled(config)
    stock, todo = _planned(settled, ())
    cells = [cell for job in todo for cell in job.cells]
    images = {cell.data.digest(): len(stock.source(cell.data)) for cell in cells}
    attacks = {cell.attack.digest() for cell in cells if cell.attack is not None}
    bench = Bench(stock.source, stock.encoder, stock.task, stock.device)
    done = 0
    if config.out and (Path(config.out) / "run.yaml").exists():
        store = Store.open(settled, replace=False)
        todo = [job for job in todo if not all(store.has(cell) for cell in job.cells)]
        done = len(cells) - sum(len(job.cells) for job in todo)
    seconds = estimate(todo, bench, stock.fits(todo), chunk=config.chunk)
    lines = [
        f"encoders  {', '.join(subject.model.name for subject in stock.subjects)}",
        f"images    {max(images.values())} ({min(images.values())} of them attacked, {len(attacks)} attacks)",
        f"cells     {len(cells)}" + (f", {done} done already" if done else ""),
        f"time      about {spoken(seconds)} on {stock.device} with {torch.get_num_threads()} threads",
    ]
    if stock.device.type == "cpu" and seconds > 3600 and config.suite != "quick":
        lines.append("shorter   --suite quick")
    return lines


def _planned(config: BenchConfig, handed: Sequence[nn.Module]) -> tuple[Stock, list[plan.Job]]:
    heads = Path(config.out or "runs/dry") / "heads"
    stock = Stock(config, handed, device=device_of(config.device), heads=heads)
    return stock, plan.jobs(plan.cells(config, stock.subjects), shard=config.shard)
