"""What an attack has under way, kept on disk, so that a killed one goes on within the block where it was."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from holdfast import disk
from holdfast.errors import Interrupted

EVERY_S = 120.0
LOOK_S = 1.0


class Kept:
    """A folder of unfinished pursuits; see `attacks.executor.Keep`.

    Args:
        folder: of one block of a job.
        check: raises `Interrupted` where the run is to stop; what is under way is kept first.
        every_s: seconds between two savings.
    """

    def __init__(self, folder: Path, check: Callable[[], None], *, every_s: float = EVERY_S) -> None:
        self.folder, self.check, self.every_s = folder, check, every_s
        self._saved = self._looked = time.monotonic()

    def load(self, name: str) -> Mapping[str, Tensor] | None:
        """What was kept under a name; None where there is nothing, or nothing whole: it is made again then."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            found: dict[str, Tensor] = load(path.read_bytes())
        except SafetensorError:
            path.unlink()
            return None
        return found

    def offer(self, name: str, held: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep what is held if the last time is long enough ago, or if the run is to stop.

        Raises:
            Interrupted: the run is to stop.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        try:
            self.check()
        except Interrupted:
            self.save(name, held())
            raise
        if now - self._saved >= self.every_s:
            self.save(name, held())

    def save(self, name: str, held: Mapping[str, Tensor]) -> None:
        """Keep tensors under a name."""
        whole = {key: part.detach().to("cpu", memory_format=torch.contiguous_format) for key, part in held.items()}
        disk.write(self._path(name), save({key: part.clone() for key, part in whole.items()}))
        self._saved = time.monotonic()

    def _path(self, name: str) -> Path:
        return self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}.safetensors"
