"""The exception tree. Every message repeats what was asked, says what was found, and what to type next.

HoldfastError                 exit 1   ours, or the machine's
|-- UserError                 exit 2   what was typed, or what lies on disk
|   |-- ConfigError                    an unknown field, an impossible value, two options that contradict
|   |-- DataError                      a missing folder, an empty class, an unreadable image, a strange mask
|   |-- CheckpointError                a file that is not weights, or weights that do not fit
|   |-- PixelError                     pixels outside [0, 1], or of the wrong shape
|   |-- ConflictError                  an `out` that was made with another config
|   `-- ExtraError                     an optional package that is not installed
|-- TrustError                exit 1   a result that must not be believed (a frozen encoder changed, a NaN)
|-- MemoryShortage            exit 1   not even the smallest chunk fits
|-- CellsFailed               exit 1   some cells of a grid failed; the others are on disk
`-- Interrupted               exit 130 Ctrl-C or SIGTERM; what was finished is on disk
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HoldfastError(Exception):
    """Base of all errors that Holdfast raises on purpose.

    Args:
        found: what is the case, in one or two sentences.
        asked: what was asked for, where the message would not be clear without it.
        next: what to type or change next.
    """

    exit_code = 1

    def __init__(self, found: str, *, asked: str = "", next: str = "") -> None:  # noqa: A002 - the caller's word
        self.asked, self.found, self.next = asked, found, next
        super().__init__(" ".join(part for part in (asked, found, next) if part))


class UserError(HoldfastError):
    """Something that the user can mend: exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """An unknown field, an impossible value, or options that contradict each other."""


class DataError(UserError):
    """Images, labels or folders that are not what was asked for."""


class CheckpointError(UserError):
    """A file that holds no weights, or weights that do not fit the architecture."""


class PixelError(UserError):
    """Pixels that are not floats in [0, 1] of shape [b, 3, h, w]."""


class ConflictError(UserError):
    """An `out` folder that was made with another config."""


class ExtraError(UserError):
    """An optional package that is needed here and not installed."""


class TrustError(HoldfastError):
    """A result that must not be believed; nothing of it was written."""


class MemoryShortage(HoldfastError):
    """Not even the smallest chunk fits into the memory of the device."""


class CellsFailed(HoldfastError):
    """Some cells failed; their tracebacks are in their records, the others are done."""


class Interrupted(HoldfastError):
    """Stopped by a signal; what was finished is on disk and the same command continues."""

    exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, or lists them all.

    Args:
        word: what was typed.
        known: the words that would have been right.

    Returns:
        `'Perhaps you meant "pgd".'`, or `'Known: a, b, c.'` when nothing is near.
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f'Perhaps you meant "{close[0]}".'
    return "Known: " + ", ".join(names) + "." if names else ""
