"""The conditions of an official set as corruption stages, and whether they belong to given clean images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from holdfast.data import corrupted
from holdfast.data.batches import Source
from holdfast.data.copies import NAMES, Copy, read_copy
from holdfast.data.sources import parse
from holdfast.errors import DataError, nearest
from holdfast.records import Corruption


class Sides(NamedTuple):
    """How images become those of a set: sides in pixels (0 = as stored), and the resize's interpolation."""

    resize: int
    size: int
    interpolation: Literal["bilinear", "bicubic"]


# Hendrycks and Dietterich 2019: ImageNet-C was made of the centre 224 of 256 pixels. C-bar and 3DCC follow it.
IMAGENET_C = Sides(256, 224, "bilinear")


class Folder(NamedTuple):
    """A folder of corrupted images.

    Attributes:
        kind: one of `corrupted.KINDS`.
        root: as the stages name it.
        copy: how it was made, where `holdfast corrupt` wrote it.
        stages: the conditions that were asked for.
    """

    kind: str
    root: str
    copy: Copy | None
    stages: tuple[Corruption, ...]

    @property
    def sides(self) -> Sides | None:
        """How clean images must be cut to show what the folder shows; None where they are taken as they are stored."""
        if self.copy is not None:
            data = self.copy.data
            return Sides(data.resize, data.size, data.interpolation)
        return IMAGENET_C if corrupted.VARIANTS[self.kind] == "imagenet224" else None


def folder(text: str, names: tuple[str, ...] | None, severities: tuple[int, ...] | None) -> Folder:
    """Open a folder of corrupted images.

    Args:
        text: as `sources.parse` takes it.
        names: of corruptions; None or ("all",) = all that are there, ("none",) = none.
        severities: of each; None or () = all that are there.

    Raises:
        DataError: no corrupted set, a copy that is not finished, a corruption or severity that is not there.
    """
    kind, root = parse(text)
    if kind in ("folder", "flat"):
        corrupted.conditions("imagenet_c", root)  # says what a folder lacks, and which one near it looks right
    if kind not in corrupted.KINDS:
        raise DataError(
            f"{text} is read as {kind}.",
            asked="A set of corrupted images was asked for.",
            next=f"It holds corruption/severity/class/image or corruption.npy: {', '.join(corrupted.KINDS)}.",
        )
    copy = read_copy(root)
    if copy is not None and not copy.finished:
        raise DataError(
            f"{root} is not finished.",
            asked=f"Corrupted images of {text} were asked for.",
            next="The same holdfast corrupt command continues it.",
        )
    there = corrupted.conditions(kind, root)
    known = tuple(dict.fromkeys(name for name, _ in there))
    asked = () if names == ("none",) else known if names in (None, (), ("all",)) else names or ()
    for name in asked:
        if name not in known:
            raise DataError(f'{text} has no corruption "{name}".', next=nearest(name, known))
        missing = sorted(set(severities or ()) - {s for n, s in there if n == name})
        if missing:
            raise DataError(
                f"{text} has no severity {missing[0]} of {name}.",
                asked=f"Severities {', '.join(map(str, severities or ()))} were asked for.",
                next=f"It has {', '.join(str(s) for n, s in there if n == name)}: --severities.",
            )
    own = {(stage.name, stage.severity): stage for stage in copy.corruptions} if copy is not None else {}
    wanted = [(n, s) for n, s in there if n in asked and (not severities or s in severities)]
    stages = (own.get((name, severity)) or _official(kind, name, severity) for name, severity in wanted)
    return Folder(kind, root, copy, tuple(msgspec.structs.replace(stage, root=root) for stage in stages))


def check_cut(found: Folder, sides: Sides) -> None:
    """Make sure that clean images, cut like this, show what the folder shows.

    Args:
        found: the folder.
        sides: of the clean images.

    Raises:
        DataError: another part of the picture, or, of a copy, another size or interpolation.
    """
    own, here = found.sides, f"resize {sides.resize}, size {sides.size}, {sides.interpolation}"
    if own is None:
        return
    alike = sides == own if found.copy is not None else abs(sides.resize * own.size - sides.size * own.resize) <= 256
    if not alike:
        raise DataError(
            f"The clean images would be cut otherwise ({here}) than those of {found.root} (resize {own.resize}, size "
            f"{own.size}, {own.interpolation}).",
            asked="Corrupted images are compared with their clean selves, pixel by pixel.",
            next="Leave --resize, --size and --interpolation out: they are taken from the folder.",
        )


def check_images(found: Folder, clean: Source) -> None:
    """Make sure that a copy was made of these very images: by their ids, the split among them.

    Args:
        found: the folder.
        clean: the images that are measured.

    Raises:
        DataError: an image of which it has no copy.
    """
    names = Path(found.root) / NAMES
    if found.copy is None or not names.is_file():
        return
    known = set(names.read_text(encoding="utf-8").splitlines())
    missing = [one for one in clean.ids if one not in known]
    if missing:
        raise DataError(
            f"{found.root} was made of {found.copy.data.source}, split {found.copy.data.split}: it has no {missing[0]}"
            f"{f' and {len(missing) - 1:,} others' if len(missing) > 1 else ''}.",
            asked=f"The corrupted versions of {len(clean):,} images, split {clean.data.split}, were asked for.",
            next=f"Measure those of the copy, --split {found.copy.data.split}, or make another copy.",
        )


def check_alike(first: Source, other: Source) -> None:
    """Make sure that two conditions of a set hold the same images under the same labels.

    Args:
        first: one condition.
        other: another; ids begin with the condition's name ("fog/3/...").

    Raises:
        DataError: an image or a class that only one of them has.
    """
    if first.classes != other.classes:
        odd = sorted(set(first.classes) ^ set(other.classes))[0]
        holder, lacking = (first, other) if odd in first.classes else (other, first)
        raise DataError(
            f'{holder.data.split} of {first.data.root} has class "{odd}", {lacking.data.split} has not.',
            asked="Labels are places among the class folders, so that all conditions must have the same.",
            next=f"Unpack {other.data.split} again, or leave it out with --corruptions.",
        )
    names, others = (dict.fromkeys(one.removeprefix(f"{s.data.split}/") for one in s.ids) for s in (first, other))
    odd_ones = [one for one in names if one not in others] or [one for one in others if one not in names]
    if odd_ones:
        lacking = other if odd_ones[0] in names else first
        raise DataError(
            f"{lacking.data.split} of {first.data.root} has no {odd_ones[0]}, other conditions have.",
            asked="All conditions must hold the same images to be averaged.",
            next=f"Unpack {lacking.data.split} again, or leave it out with --corruptions.",
        )


def _official(kind: str, name: str, severity: int) -> Corruption:
    """How the official set was made."""
    return Corruption(
        name=name,
        severity=severity,
        variant=corrupted.VARIANTS[kind],
        mode="reference",
        storage="none" if kind in ("cifar10_c", "cifar100_c") else "jpeg85",
        textures="published",
    )
