"""Files that are whole or absent: atomic writes, leases, checksums. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


def write(path: Path, fill: bytes | str | Callable[[BinaryIO], object]) -> Path:
    """Write a file so that a reader sees the old one or the whole new one, also after `kill -9`.

    Args:
        path: where; missing parents are made.
        fill: the content, or a function that writes it into an open binary file.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(fill):
                fill(file)
            else:
                file.write(fill.encode() if isinstance(fill, str) else fill)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lease(path: Path, *, stale_s: float = 1800.0) -> Iterator[bool]:
    """Claim a piece of work among processes that share a folder.

    The lease is a small file that names host and process. It is taken over when its process is gone (same host) or
    when it has not been renewed for `stale_s` seconds (another host); `renew` touches it.

    Args:
        path: the lease file; missing parents are made.
        stale_s: age in seconds after which another host's lease counts as abandoned.

    Yields:
        True where the lease is ours for the length of the block, False where somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = _claim(path) or (_abandoned(path, stale_s) and _seize(path))
    try:
        yield mine
    finally:
        if mine and _ours(path):
            path.unlink(missing_ok=True)


def renew(path: Path) -> None:
    """Say that the holder of a lease is alive; a lease that somebody else has taken over is left alone."""
    if _ours(path):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)


def sweep(folder: Path, *, older_s: float = 3600.0) -> int:
    """Remove part files that a killed process left behind.

    Args:
        folder: searched with all its children.
        older_s: only files at least this old, in seconds, so that a running process keeps its own.

    Returns:
        How many were removed.
    """
    gone = 0
    for part in folder.rglob(".*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime >= older_s:
                part.unlink()
                gone += 1
    return gone


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _owner() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _ours(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()) == _owner())
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def _claim(path: Path) -> bool:
    owner = json.dumps(_owner())
    try:
        with path.open("x") as file:
            file.write(owner)
    except FileExistsError:
        return False
    return True


def _seize(path: Path) -> bool:
    """Take an abandoned lease: rename first, so that of two that try only one succeeds."""
    grave = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return _claim(path)
    grave.unlink(missing_ok=True)
    return _claim(path)


def _abandoned(path: Path, stale_s: float) -> bool:
    try:
        owner = json.loads(path.read_text() or "{}")
        age = time.time() - path.stat().st_mtime
    except (FileNotFoundError, json.JSONDecodeError):
        return True
    if owner.get("host") == socket.gethostname():
        try:
            os.kill(int(owner["pid"]), 0)
        except (ProcessLookupError, KeyError, ValueError):
            return True
        except PermissionError:
            return False
        return False
    return age > stale_s
