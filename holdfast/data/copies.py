"""What `holdfast corrupt` writes beside its images: how every one of them was made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from holdfast.records import Corruption, Data, Environment, Record, build

RECORD = "corrupt.yaml"
Layout = Literal["folders", "arrays"]


class Copy(Record, frozen=True, kw_only=True):
    """The content of `corrupt.yaml`.

    Attributes:
        data: the images, with the digest of their list.
        corruptions: every condition.
        layout: folders (corruption/severity/class/image) or arrays (corruption.npy).
        environment: where it began.
        warnings: in words.
    """

    data: Data
    corruptions: tuple[Corruption, ...]
    layout: Layout
    environment: Environment
    warnings: tuple[str, ...] = ()


def read_copy(root: str | Path) -> Copy | None:
    """The record of a folder that `holdfast corrupt` wrote; None for the sets of others.

    Raises:
        ConfigError: a field of the file is unknown or does not fit.
    """
    path = Path(root) / RECORD
    return build(Copy, msgspec.yaml.decode(path.read_bytes()), origin=str(path)) if path.is_file() else None
