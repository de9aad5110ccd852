"""The images of a training run: in memory where they fit, with a part held out where there are labels to check with."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from holdfast import draws
from holdfast.data.batches import Source, read_all, to_pixels
from holdfast.errors import DataError

HELD = 1000
_NEIGHBOURS = 40
_READERS = 8
_TINY = 96 * 96
"""Images of fewer pixels are decoded faster by one thread than by many: little of it happens outside Python's lock."""


class Pool:
    """Images by number, as pixels on a device.

    Args:
        source: where they come from.
        seed: of the part that is held out: a tenth, at most 1,000, where there are labels. It is never trained on.
        device: where pixels are wanted.

    Attributes:
        train: numbers of the images to train on, int64 [n], ascending.
        held: numbers of those held out, ascending; empty without labels, or with fewer than 40 images.
        labels: int64 of all images, or None.
        keys: the row `key` of all images, int64.
        kept: where the images are: "memory of cuda:0", "memory", or "files" (read again each epoch).
    """

    def __init__(self, source: Source, *, seed: int, device: torch.device) -> None:
        n = len(source)
        self.source, self.device = source, device
        self.keys = draws.keys(source.ids)
        self.labels = None if source.labels is None else torch.tensor(source.labels, dtype=torch.int64)
        checked = self.labels is not None and n >= _NEIGHBOURS
        held = draws.subset(n, min(HELD, n // 10), seed, "held out") if checked else []
        self.held = torch.tensor(held, dtype=torch.int64)
        outside = torch.ones(n, dtype=torch.bool)
        outside[self.held] = False
        self.train = outside.nonzero().flatten()
        self._readers = 0
        self._stored = self._load()
        self.kept = "files" if self._stored is None else "memory"
        if self._stored is not None and self._stored.device.type != "cpu":
            self.kept = f"memory of {self._stored.device}"

    @property
    def in_files(self) -> bool:
        """Whether images are read again each time."""
        return self._stored is None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        high, wide = self.pixels(torch.tensor([0])).shape[-2:]
        return high, wide

    def pixels(self, numbers: Tensor) -> Tensor:
        """Those images, float32 [b, 3, h, w] in [0, 1] on the device.

        Raises:
            DataError: images of different sizes, or one that cannot be decoded.
        """
        if self._stored is None:
            found = read_all(self.source, numbers.tolist(), workers=self._readers)[0]
        else:
            found = self._stored[numbers.to(self._stored.device)]
        return to_pixels(found.to(self.device))

    def _load(self) -> Tensor | None:
        """All images as bytes: on the device, else in half of the machine's memory, else nowhere."""
        if not len(self.source):
            raise DataError(f"{self.source.data.root or self.source.data.source} holds no image.")
        high, wide = self.source.read(0).pixels.shape[:2]
        self._readers = 0 if high * wide < _TINY else _READERS
        need = len(self.source) * 3 * high * wide
        if need > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
            return None
        stored = read_all(self.source, workers=self._readers)[0]
        if self.device.type == "cuda" and need < torch.cuda.mem_get_info(self.device)[0] // 4:
            return stored.to(self.device)
        return stored
