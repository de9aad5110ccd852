"""`corrupt`: a corrupted copy of images on disk, in the layout of the official sets.

Folders as in ImageNet-C (corruption/severity/class/image), arrays as in CIFAR-10-C (corruption.npy, uint8
[5 n, h, w, 3], severity s in rows (s - 1) n to s n; labels.npy; ids.txt with the name of each of the n). Every file is
whole or absent, so that the same command continues; read back, the copy gives the numbers that the same corruptions
give on the fly.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import msgspec
import numpy as np
import torch
from PIL import Image as Pillow

from holdfast import disk, draws
from holdfast.codec import build, to_yaml
from holdfast.configs import CorruptConfig
from holdfast.corruptions import table
from holdfast.corruptions.digital import STORED_QUALITY, to_jpeg
from holdfast.data.batches import Pixels8, Source
from holdfast.data.copies import NAMES, RECORD, Copy, Layout, read_copy
from holdfast.data.sources import images, open_source
from holdfast.devices import device_of
from holdfast.environment import environment
from holdfast.errors import ConfigError, ConflictError, DataError, nearest
from holdfast.evaluation.blocks import spans
from holdfast.evaluation.plan import textures
from holdfast.progress import Bar, Say
from holdfast.records import Corruption
from holdfast.signals import Stopping


def write(config: CorruptConfig, say: Say) -> Path:
    """Write a corrupted copy of images.

    Args:
        config: of the verb.
        say: prints a line.

    Returns:
        The folder.

    Raises:
        ConfigError: no `out`, an unknown corruption or severity, no severity table for images of this size.
        ConflictError: `out` was made with another config, or holds something else.
        DataError: images that cannot be read, or two whose copies would have one name.
        ExtraError: a package that a corruption needs is not installed.
        Interrupted: a signal came; what was written is whole, and the same command continues.
    """
    if not config.out:
        raise ConfigError("No folder was named.", next="Add --out imgs-c; the same command continues it.")
    source, conditions, layout = _planned(config, say)
    out, high, wide = Path(config.out), *source.read(0).pixels.shape[:2]
    remarks = tuple(dict.fromkeys(text for stage in conditions for text in table.notes(stage, high, wide)))
    copy = Copy(
        data=source.data,
        corruptions=tuple(conditions),
        classes=source.classes,
        layout=layout,
        environment=environment(device_of(config.device)),
        warnings=remarks,
    )
    finished = _finished(out, copy, replace=config.replace)
    if not finished:
        disk.write(out / NAMES, "".join(f"{name}\n" for name in source.ids))
        disk.write(out / RECORD, to_yaml(copy))
    disk.sweep(out)
    for text in remarks:
        say(text)
    say(f"corrupt {len(source):,} images, {len(conditions)} conditions, {layout}")
    fill = _folders if layout == "folders" else _arrays
    with Bar("corrupt", len(source) * len(conditions)) as bar, Stopping(bar.say, ends="this block") as stopping:

        def tell(by: int, done: str) -> None:
            bar.advance(by)
            stopping.check(done)

        whole = fill(out, source, conditions, config, tell)
    if not whole:
        say("some arrays are held by another process; the same command looks again")
    elif not finished:
        disk.write(out / RECORD, to_yaml(msgspec.structs.replace(copy, finished=True)))
    return out


def _planned(config: CorruptConfig, say: Say) -> tuple[Source, list[Corruption], Layout]:
    data = images(
        config.data,
        split=config.split,
        limit=config.limit,
        subset=config.subset,
        classes=config.classes,
        seed=config.seed,
        size=config.size,
        resize=config.resize,
        interpolation=config.interpolation or "bilinear",
    )
    source = open_source(data)
    if not len(source):
        raise DataError(f"{config.data} holds no image.", next="See holdfast ls layouts.")
    if config.block < 1 or not config.severities:
        raise ConfigError(
            f"block {config.block}, severities {config.severities}.",
            next="Take --block 1 or more, and severities 1 to 5.",
        )
    high, wide = source.read(0).pixels.shape[:2]
    variant = config.variant or table.made_for(high, wide)
    if not variant:
        raise ConfigError(
            f"Corruptions need a severity table, and none was made for images of {high}x{wide}.",
            next="Add --resize 256 --size 224 (ImageNet-C), or --variant imagenet224, cifar32, tiny64, inception299.",
        )
    if not config.variant:
        say(f"severity table {variant}, after the size of the images; --variant names another")
    conditions = _conditions(config, variant)
    own: Layout = "arrays" if _is_arrays(source) else "folders"
    layout = own if config.layout == "auto" else config.layout
    if layout == "arrays" and set(config.severities) != {1, 2, 3, 4, 5}:
        raise ConfigError(
            "An official array holds severities 1 to 5.", next="Leave --severities out, or --layout folders."
        )
    return source, conditions, layout


def _conditions(config: CorruptConfig, variant: str) -> list[Corruption]:
    """Every corruption at every severity that was asked for, each known to be possible here."""
    names = table.names() if config.corruptions in ((), ("all",)) else tuple(dict.fromkeys(config.corruptions))
    for name in names:
        if name not in table.names():
            raise ConfigError(f'no corruption is called "{name}".', next=nearest(name, table.names()))
    chosen = textures(config.textures) if "frost" in names else "drawn"
    conditions = [
        build(
            Corruption,
            {
                "name": name,
                "severity": severity,
                "variant": variant,
                "seed": config.seed,
                "mode": config.mode,
                "storage": config.storage,
                "textures": chosen if name == "frost" else "drawn",
            },
        )
        for name in names
        for severity in dict.fromkeys(config.severities)
    ]
    for stage in conditions:
        if stage.severity == 0:
            raise ConfigError("severity 0 is the clean image.", next="Severities are 1 to 5.")
        table.check(stage)
    return conditions


def _is_arrays(source: Source) -> bool:
    """Whether the images have no files of their own: their names are numbers."""
    return all(PurePosixPath(name).name.isdigit() for name in source.ids[:10])


def _finished(out: Path, copy: Copy, *, replace: bool) -> bool:
    """Whether a folder holds this copy, all of it; makes sure that it was begun with the same, and cleared where it is
    to be replaced."""
    old = read_copy(out)
    if old is not None:
        if (old.data, old.corruptions, old.layout) == (copy.data, copy.corruptions, copy.layout):
            return old.finished
        if not replace:
            raise ConflictError(
                f"{out} was made with {_differing(old, copy)}.", next="Choose another --out, or --replace."
            )
        for name in {stage.name for stage in old.corruptions}:
            shutil.rmtree(out / name, ignore_errors=True)
            (out / f"{name}.npy").unlink(missing_ok=True)
        for name in (NAMES, "labels.npy"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / ".parts", ignore_errors=True)
    elif out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        if read_copy(out) is not None:  # another process began between the two looks
            return _finished(out, copy, replace=replace)
        raise ConflictError(f"{out} holds something else.", next="Choose an --out that is empty or new.")
    return False


def _differing(old: Copy, new: Copy) -> str:
    if old.layout != new.layout:
        return f"layout {old.layout}; you ask {new.layout}"
    if old.data != new.data:
        before, after = msgspec.structs.asdict(old.data), msgspec.structs.asdict(new.data)
        field = next(name for name in before if before[name] != after[name])
        return f"{field} {before[field]} of the images; you ask {after[field]}"
    for a, b in zip(old.corruptions, new.corruptions):
        before, after = msgspec.structs.asdict(a), msgspec.structs.asdict(b)
        field = next((name for name in before if before[name] != after[name]), "")
        if field:
            return f"{field} {before[field]}; you ask {after[field]}"
    return f"{len(old.corruptions)} conditions; you ask {len(new.corruptions)}"


Tell = Callable[[int, str], None]


# -- folders -----------------------------------------------------------------------------------------------------------


def _folders(out: Path, source: Source, conditions: Sequence[Corruption], config: CorruptConfig, tell: Tell) -> bool:
    """corruption/severity/class/image: each image is decoded once, and one file per condition is written.

    Returns:
        True: every file is there. Two processes that write the same file write the same bytes.
    """
    names = _relative(source)
    suffix = {"none": ".png", "jpeg85": ".JPEG"}[config.storage]
    for span in spans(len(source), config.block):
        block: tuple[Pixels8, torch.Tensor] | None = None
        for stage in conditions:
            home = out / stage.name / str(stage.severity)
            missing = [i for i in span if not (home / f"{names[i]}{suffix}").exists()]
            if missing:
                block = block or _read(source, span)
                # What is written is the file itself: the one JPEG compression is that of the file.
                bare = msgspec.structs.replace(stage, storage="none")
                changed = _corrupted(block, bare, config)
                for i in missing:
                    disk.write(home / f"{names[i]}{suffix}", _encoded(changed[i - span.start], config.storage))
            tell(len(span), f"{span.stop:,} of {len(source):,} images begun, {stage.name} {stage.severity} written")
    return True


def _relative(source: Source) -> list[str]:
    """Class folder and stem of every image, without the split's folder."""
    prefix = f"{source.data.split}/"
    names = [str(PurePosixPath(name.removeprefix(prefix)).with_suffix("")) for name in source.ids]
    first: dict[str, str] = {}
    for name, whole in zip(names, source.ids):
        if name in first:
            raise DataError(
                f"{first[name]} and {whole} would both be written as {name}.", next="Rename one of the two files."
            )
        first[name] = whole
    return names


def _encoded(pixels: Pixels8, storage: str) -> bytes:
    if storage == "jpeg85":
        return to_jpeg(pixels, quality=STORED_QUALITY, optimize=True)
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


# -- arrays ------------------------------------------------------------------------------------------------------------


def _arrays(out: Path, source: Source, conditions: Sequence[Corruption], config: CorruptConfig, tell: Tell) -> bool:
    """corruption.npy, severity by severity: a severity is the piece that is redone after an interruption.

    Returns:
        Whether every array is there; another process may hold one.
    """
    if source.labels is not None:
        disk.write(out / "labels.npy", lambda file: np.save(file, np.array(list(source.labels or ()) * 5)))
    names = tuple(dict.fromkeys(stage.name for stage in conditions))
    for name in names:
        stages = sorted((s for s in conditions if s.name == name), key=lambda s: s.severity)
        with disk.lease(out / ".parts" / f"{name}.lease") as mine:
            if mine and not (out / f"{name}.npy").exists():
                _array(out, source, stages, config, tell)
            else:
                tell(len(source) * len(stages), f"{name} passed over")
    with contextlib.suppress(OSError):  # not empty: another process works there
        (out / ".parts").rmdir()
    return all((out / f"{name}.npy").exists() for name in names)


def _array(out: Path, source: Source, stages: Sequence[Corruption], config: CorruptConfig, tell: Tell) -> None:
    parts = [out / ".parts" / f"{stage.name}-{stage.severity}.npy" for stage in stages]
    for stage, part in zip(stages, parts):
        if part.exists():
            tell(len(source), f"{stage.name} {stage.severity} written")
        else:
            disk.write(part, _severity(source, stage, config, tell))
    disk.write(out / f"{stages[0].name}.npy", _whole(parts))
    for part in parts:
        part.unlink(missing_ok=True)


def _severity(source: Source, stage: Corruption, config: CorruptConfig, tell: Tell) -> Callable[[BinaryIO], object]:
    """Writes one severity, block after block."""

    def fill(file: BinaryIO) -> None:
        _header(file, (len(source), *source.read(0).pixels.shape))
        for span in spans(len(source), config.block):
            file.write(np.ascontiguousarray(_corrupted(_read(source, span), stage, config)).data)
            tell(len(span), f"{stage.name} {stage.severity} begun")

    return fill


def _whole(parts: Sequence[Path]) -> Callable[[BinaryIO], object]:
    """Writes the severities one after another."""

    def fill(file: BinaryIO) -> None:
        pieces = [np.load(part, mmap_mode="r") for part in parts]
        _header(file, (sum(len(piece) for piece in pieces), *pieces[0].shape[1:]))
        for piece in pieces:
            for span in spans(len(piece), 4096):
                file.write(np.ascontiguousarray(piece[span.start : span.stop]).data)

    return fill


def _header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    head = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)


# -- pixels ------------------------------------------------------------------------------------------------------------


def _read(source: Source, span: range) -> tuple[Pixels8, torch.Tensor]:
    pictures = [source.read(i).pixels for i in span]
    for i, picture in zip(span, pictures):
        if picture.shape != pictures[0].shape:
            raise DataError(
                f"{source.ids[span.start]} is {_spoken(pictures[0])} and {source.ids[i]} is {_spoken(picture)} pixels.",
                asked="A severity table is for images of one size.",
                next="Cut them to one: --resize 256 --size 224.",
            )
    return np.stack(pictures), draws.keys([source.ids[i] for i in span])


def _corrupted(block: tuple[Pixels8, torch.Tensor], stage: Corruption, config: CorruptConfig) -> Pixels8:
    pictures, keys = block
    device = device_of(config.device)
    changed: Pixels8 = table.corrupt(torch.from_numpy(pictures).to(device), stage, keys).cpu().numpy()
    return changed


def _spoken(picture: Pixels8) -> str:
    return f"{picture.shape[0]}x{picture.shape[1]}"
