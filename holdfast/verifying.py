"""`verify`: judge the adversarial images on disk anew, and say what does not agree with its record."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from holdfast.configs import VerifyConfig
from holdfast.devices import device_of
from holdfast.errors import ConfigError, TrustError
from holdfast.evaluation.store import read
from holdfast.evaluation.verifier import HeadOf, Verdict, verified
from holdfast.models.encoder import Encoder
from holdfast.models.heads import read_head
from holdfast.progress import Say
from holdfast.records import Cell
from holdfast.subjects import Stock
from holdfast.tasks.classification import Classification

SHOWN = 8


def verify(config: VerifyConfig, say: Say) -> list[str]:
    """Judge the adversarial images of some folders anew, from disk, in float32, apart from the attack.

    Args:
        config: folders of `bench` or of `attack`, and the device.
        say: prints a line.

    Returns:
        A table: a line per cell, then the sum.

    Raises:
        ConfigError: no folder was named.
        DataError: a folder holds no adversarial images.
        TrustError: an image disagrees with its record, or could not be judged; the table has been printed.
    """
    if not config.runs:
        raise ConfigError("No folder was named.", next="holdfast verify runs/bench")
    device = device_of(config.device)
    verdicts = [v for run in config.runs for v in verified(run, heads_of(Path(run), device), device=device)]
    lines = table(verdicts)
    if not any(verdict.problems for verdict in verdicts):
        return lines
    for line in lines:
        say(line)
    disagree, unjudged = _wrong(verdicts)
    if not disagree:
        raise TrustError(
            f"The adversarial images of {unjudged} of {len(verdicts)} cells could not be judged; the others agree.",
            next="The lines above say why: put back what has changed, or measure again.",
        )
    raise TrustError(
        f"The adversarial images of {disagree} of {len(verdicts)} cells do not agree with their records.",
        next="Put back what has changed, images or weights. If nothing has, believe no number of these cells.",
    )


def heads_of(folder: Path, device: torch.device) -> HeadOf:
    """Finds the heads of a run's cells: the checkpoint's own, those in files, or fitted as the run fitted them."""
    stock: list[Stock] = []

    def find(cell: Cell, encoder: Encoder) -> nn.Module | None:
        judge = cell.judge
        if judge.task != "classification":
            return None
        if judge.head == "own":
            # Without a head of its own, what a module returns was taken for logits.
            return None if encoder.head is not None else nn.Identity()
        if judge.head == "given":
            found = read_head(cell.encoder.head)
            if found.digest != judge.digest_of_head:
                raise TrustError(f"{cell.encoder.head} is not the head of the record.", next="Put the old file back.")
            return found.linear.to(device)
        if not stock:
            stock.append(Stock(read(folder).config, (), device=device, heads=folder / "heads"))
        task = stock[0].task(cell)
        return task.head if isinstance(task, Classification) else None

    return find


def table(verdicts: list[Verdict]) -> list[str]:
    """A line per cell with what was found, its disagreements below it, and the sum."""
    head = ("images", "lost", "in 8 bits", "outside", "off by", "cell")
    rows = [head, *(_row(verdict) for verdict in verdicts)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head) - 1)]
    lines: list[str] = []
    for row, problems in zip(rows, [(), *(v.problems for v in verdicts)]):
        lines.append("  ".join([*(part.rjust(width) for part, width in zip(row, widths)), row[-1]]))
        lines += [f"    {problem}" for problem in problems[:SHOWN]]
        lines += [f"    and {len(problems) - SHOWN} more"] * (len(problems) > SHOWN)
    disagree, unjudged = _wrong(verdicts)
    said = "everything agrees" if not disagree and not unjudged else f"{disagree} cells disagree"
    said += f", {unjudged} could not be judged" if unjudged else ""
    images = sum(v.images for v in verdicts if v.judged)
    return [*lines, f"{images} adversarial images of {len(verdicts)} cells judged anew in float32: {said}"]


def _wrong(verdicts: list[Verdict]) -> tuple[int, int]:
    """How many cells disagree, and how many could not be judged."""
    return sum(v.judged and bool(v.problems) for v in verdicts), sum(not v.judged for v in verdicts)


def _row(verdict: Verdict) -> tuple[str, ...]:
    none = "\N{EN DASH}"
    lost, rounded = (none if n is None else str(n) for n in (verdict.lost, verdict.lost_rounded))
    outside = none if verdict.excess is None else f"{max(verdict.excess, 0.0):.1e}" if verdict.excess > 0 else "0"
    about = f"{verdict.file.stem}  {verdict.about}"
    return str(verdict.images), lost, rounded, outside, f"{verdict.off:.1e}", about
