"""`verify`: judge the adversarial images on disk anew, and say what does not agree with its record."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from holdfast.configs import VerifyConfig
from holdfast.devices import device_of
from holdfast.errors import ConfigError, DataError, TrustError
from holdfast.evaluation.store import read
from holdfast.evaluation.verified_files import FILE
from holdfast.evaluation.verifier import HeadOf, Verdict, verified
from holdfast.models.dense_files import read_dense_head
from holdfast.models.encoder import Encoder
from holdfast.models.heads import read_head
from holdfast.progress import Say
from holdfast.records import DENSE_TASKS, Cell
from holdfast.subjects import Stock
from holdfast.tasks.classification import Classification
from holdfast.tasks.depth import Depth
from holdfast.tasks.segmentation import Segmentation

SHOWN = 8


def verify(config: VerifyConfig, say: Say) -> list[str]:
    """Judge the adversarial images of some folders anew, from disk, in float32, apart from the attack.

    Of images that were not kept, records and outcomes are held against each other.

    Args:
        config: folders of `bench` or of `attack`, and the device.
        say: prints a line.

    Returns:
        A table: a line per cell with images, then what was found.

    Raises:
        ConfigError: no folder was named.
        DataError: the one folder that was named holds no adversarial images, or nothing that can be read.
        TrustError: something disagrees with its record, or could not be judged; the table has been printed.
    """
    if not config.runs:
        raise ConfigError("No folder was named.", next="holdfast verify runs/bench")
    device = device_of(config.device)
    verdicts: list[Verdict] = []
    for run in config.runs:
        try:
            verdicts += verified(run, heads_of(Path(run), device), device=device)
        except DataError as error:
            if len(config.runs) == 1:
                raise
            verdicts.append(Verdict(Path(run), "", 0, why=str(error)))
    lines = table(verdicts)
    refusal = _refusal(verdicts)
    if refusal is None:
        return lines
    for line in lines:
        say(line)
    raise refusal


def _refusal(verdicts: list[Verdict]) -> TrustError | None:
    """What is raised about these verdicts; None = everything agrees."""
    wrong, unjudged = [v for v in verdicts if v.wrong], [v for v in verdicts if v.why]
    if wrong:
        are = "does not agree with its record" if len(verdicts) == 1 else "do not agree with their records"
        return TrustError(
            f"{len(wrong)} of {_count(len(verdicts), 'cell')} {are}.",
            next="Put back what has changed: images, weights, numbers. If nothing has, believe no number of them.",
        )
    if not unjudged:
        return None
    asked = f"The adversarial images of {len(unjudged)} of {_count(len(_looked(verdicts)), 'cell')} could not be judged"
    if all(verdict.handed for verdict in unjudged):
        return TrustError(
            f"{asked}: the encoder was handed over in Python and lies on no disk. Nothing disagrees.",
            next="To have them judged, bench an encoder from a file, or one named as package.module:factory.",
        )
    return TrustError(
        f"{asked}; nothing else disagrees.",
        next="The lines above say why: put back what has changed or is missing, or run the same bench again.",
    )


def heads_of(folder: Path, device: torch.device) -> HeadOf:
    """Finds the heads of a run's cells: the checkpoint's own, those in files, or fitted as the run fitted them."""
    stock: list[Stock] = []

    def find(cell: Cell, encoder: Encoder) -> nn.Module | None:
        judge = cell.judge
        if judge.task not in ("classification", *DENSE_TASKS):
            return None
        if judge.head == "own":
            # Without a head of its own, what a module returns was taken for logits.
            return None if encoder.head is not None else nn.Identity()
        if judge.head == "given" and judge.task not in DENSE_TASKS:
            found = read_head(cell.encoder.head)
            if found.digest != judge.digest_of_head:
                raise TrustError(f"{cell.encoder.head} is not the head of the record.", next="Put the old file back.")
            return found.linear.to(device)
        if judge.task in DENSE_TASKS and (folder / FILE).is_file():
            # Of an `attack`: its cell names the file, where a run's config does.
            read_back = read_dense_head(cell.encoder.head, encoder=encoder)
            if read_back.digest != judge.digest_of_head:
                raise TrustError(f"{cell.encoder.head} is not the head of the record.", next="Put the old file back.")
            return read_back.head.to(device)
        if not stock:
            stock.append(Stock(read(folder).config, (), device=device, heads=folder / "heads"))
        task = stock[0].task(cell)
        return task.head if isinstance(task, Classification | Segmentation | Depth) else None

    return find


def table(verdicts: list[Verdict]) -> list[str]:
    """A line per cell with images, what disagrees below it and below other cells that disagree, and the sums."""
    shown = [verdict for verdict in verdicts if verdict.images or verdict.why or verdict.wrong]
    head = ("images", "lost", "in 8 bits", "outside", "off by", "cell")
    rows = [head, *(_row(verdict) for verdict in shown)] if shown else []
    widths = [max(len(row[at]) for row in rows) for at in range(len(head) - 1)] if rows else []
    lines: list[str] = []
    for row, said in zip(rows, [[], *map(_said, shown)]):
        lines.append("  ".join([*(part.rjust(width) for part, width in zip(row, widths)), row[-1]]))
        lines += [f"    {text}" for text in said[:SHOWN]]
        lines += [f"    and {len(said) - SHOWN} more"] * (len(said) > SHOWN)
    return [*lines, *_sums(verdicts)]


def _said(verdict: Verdict) -> list[str]:
    return [*([f"not judged: {verdict.why}"] if verdict.why else []), *verdict.wrong]


def _sums(verdicts: list[Verdict]) -> list[str]:
    """What was judged anew; and what was only compared, for which nothing more is claimed."""
    lines, looked = [], _looked(verdicts)
    if looked:
        disagree, unjudged = sum(bool(v.problems) for v in looked), sum(bool(v.why) for v in looked)
        images, all_of_them = sum(v.images for v in looked), sum(v.of for v in looked)
        said = f"disagreement in {_count(disagree, 'cell')}" if disagree else "everything about them agrees"
        said += f", {_count(unjudged, 'cell')} could not be judged" if unjudged else ""
        cells = _count(len(looked), "cell")
        lines.append(f"{images} of {all_of_them} adversarial images of {cells} judged anew in float32: {said}")
    compared = [verdict for verdict in verdicts if verdict.compared]
    if compared:
        wrong = sum(bool(verdict.contradictions) for verdict in compared)
        said = f"contradictions in {_count(wrong, 'cell')}" if wrong else "no contradiction"
        none = "" if looked else "no adversarial images; "
        cells = _count(len(compared), "cell")
        lines.append(f"{none}the records of {cells} compared with their outcomes, not measured again: {said}")
    return lines


def _looked(verdicts: list[Verdict]) -> list[Verdict]:
    """Those of cells whose images were judged anew, or should have been."""
    return [verdict for verdict in verdicts if verdict.images or verdict.why]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _row(verdict: Verdict) -> tuple[str, ...]:
    none = "\N{EN DASH}"
    lost, rounded = (none if n is None else str(n) for n in (verdict.lost, verdict.lost_rounded))
    outside = none if verdict.excess is None else f"{max(verdict.excess, 0.0):.1e}" if verdict.excess > 0 else "0"
    off = f"{verdict.off:.1e}" if verdict.images else none
    images = f"{verdict.images} of {verdict.of}" if verdict.of else none
    return images, lost, rounded, outside, off, f"{verdict.file.stem}  {verdict.about}"
