"""Numbers from a MATLAB 5 file, as Flowers102 keeps its labels and splits, so that reading them needs no SciPy.

Format: "MAT-File Format", The MathWorks, level 5. Only real numeric arrays are read; other variables are passed over.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from holdfast.errors import DataError

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_FIRST_NUMERIC, _LAST_NUMERIC = 6, 15


def read(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """The numeric arrays of a file, in MATLAB's shapes.

    Args:
        path: a level-5 MAT-file, little-endian (as every one written since 1996 on common machines).

    Returns:
        Name to float64 array.

    Raises:
        DataError: the file is not one.
    """
    try:
        content = path.read_bytes()
        if content[126:128] != b"IM":
            raise ValueError("no little-endian level-5 header")
        return dict(pair for kind, body in _elements(content[128:]) for pair in _variable(kind, body))
    except (OSError, ValueError, struct.error, zlib.error, KeyError) as error:
        raise DataError(f"{path} cannot be read as a MATLAB 5 file: {error}.", next="Replace the file.") from None


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of one element after the other; bodies of up to four bytes sit in the tag."""
    at = 0
    while at + 8 <= len(content):
        kind, length = struct.unpack_from("<II", content, at)
        if kind >> 16:
            yield kind & 0xFFFF, content[at + 4 : at + 4 + (kind >> 16)]
            at += 8
            continue
        body = content[at + 8 : at + 8 + length]
        if len(body) < length:
            raise ValueError(f"it ends {length - len(body)} bytes early")
        yield kind, body
        at += 8 + length + (0 if kind == _COMPRESSED else -length % 8)


def _variable(kind: int, body: bytes) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    if kind == _COMPRESSED:
        for inner, content in _elements(zlib.decompress(body)):
            yield from _variable(inner, content)
    if kind != _MATRIX:
        return
    parts = list(_elements(body))
    if len(parts) < 4 or not _FIRST_NUMERIC <= parts[0][1][0] <= _LAST_NUMERIC:
        return
    shape = np.frombuffer(parts[1][1], "<i4")
    values = np.frombuffer(parts[3][1], "<" + _NUMBERS[parts[3][0]]).astype(np.float64)
    yield parts[2][1].decode("ascii"), values.reshape(shape, order="F")
