"""What `holdfast corrupt` writes beside its images: how every one of them was made (`corrupt.yaml`), and their names in
the order of the clean images (`ids.txt`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from holdfast.codec import Record, build
from holdfast.records import Corruption, Data, Environment

RECORD, NAMES = "corrupt.yaml", "ids.txt"
Layout = Literal["folders", "arrays"]


class Copy(Record, frozen=True, kw_only=True):
    """The content of `corrupt.yaml`.

    Attributes:
        data: the images, with the digest of their list.
        corruptions: every condition.
        classes: names of the labels, in their order; empty where there are none.
        layout: folders (corruption/severity/class/image) or arrays (corruption.npy).
        environment: where it began.
        warnings: in words.
        finished: whether every image of every condition is there.
    """

    data: Data
    corruptions: tuple[Corruption, ...]
    classes: tuple[str, ...] = ()
    layout: Layout
    environment: Environment
    warnings: tuple[str, ...] = ()
    finished: bool = False


def read_copy(root: str | Path) -> Copy | None:
    """The record of a folder that `holdfast corrupt` wrote; None for the sets of others.

    Raises:
        ConfigError: a field of the file is unknown or does not fit.
    """
    path = Path(root) / RECORD
    return build(Copy, msgspec.yaml.decode(path.read_bytes()), origin=str(path)) if path.is_file() else None
