"""What a dense head is fitted on: features of a frozen encoder beside their truth, kept in memory or computed anew.

Every pass of the encoder has the same number of images, filled up where there are fewer: all run the same kernels, so
that a head which is fitted on kept features is, to the bit, the one that is fitted on fresh ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.executor import SMALLEST
from holdfast.attacks.harm import Out, Rows
from holdfast.data.batches import Batch, batches
from holdfast.models.dense_heads import DenseHead
from holdfast.models.encoder import Encoder
from holdfast.models.features import Features
from holdfast.models.padding import Frame, look
from holdfast.progress import Bar
from holdfast.tasks.depth import Depth
from holdfast.tasks.segmentation import Segmentation
from holdfast.tasks.windows import plan_for
from holdfast.training.dense_splits import Part
from holdfast.training.dense_views import TRUTH, Views, check, flips, mirrored, view, with_truth

KEPT = 2 * 2**30
"""Bytes of features and truth that are kept in memory, all sets of images together."""

DenseTask = Segmentation | Depth


class Sight(NamedTuple):
    """Images as a head sees them.

    Attributes:
        out: the task's outputs; differentiable by the head alone.
        rows: truth of the same images, on the device of the outputs.
    """

    out: Callable[[], Out]
    rows: Rows


@dataclass(frozen=True)
class Seer:
    """An encoder, which is frozen by the caller, before a head.

    Attributes:
        encoder: gives the features.
        task: has the head, and says through which windows it sees.
        batch: images per pass.
    """

    encoder: Encoder
    task: DenseTask
    batch: int

    @property
    def head(self) -> DenseHead:
        """What is fitted."""
        return self.task.head

    @property
    def device(self) -> torch.device:
        """Where encoder and head live."""
        return self.encoder.mean.device

    def whole(self, pixels: Tensor) -> bool:
        """Whether one window covers these images, so that what the encoder sees of them can be kept."""
        return plan_for(pixels, self.task.windows).windows == 1

    @torch.no_grad()
    def features(self, pixels: Tensor) -> tuple[Features, Frame]:
        """What the head reads of images [b, 3, h, w], b <= batch, that one window covers."""
        at = torch.arange(max(self.batch, SMALLEST)) % len(pixels)
        spec, n = self.head.spec, len(pixels)
        seen, frame = look(self.encoder, spec, pixels[at].to(self.device))
        maps, prefix = ({name: part[name][:n] for name in spec.levels if name in part} for part in seen[1:])
        return Features(seen.pooled[:n], maps, prefix), frame

    def sight(self, features: Features, frame: Frame, rows: Rows) -> Sight:
        """Images whose features are there."""
        name = "logits" if isinstance(self.task, Segmentation) else "depth"
        return Sight(lambda: {name: frame.undone(self.head(features, frame.size))}, _moved(rows, self.device))

    def seen(self, pixels: Tensor, rows: Rows) -> Sight:
        """Images [b, 3, h, w] of any size, through as many windows as they need."""
        rows = self.task.truth(pixels, rows, _unseen)
        if self.whole(pixels):
            return self.sight(*self.features(pixels), rows)
        see = self.task.passes(self.encoder, "fp32", "eager")
        return Sight(lambda: see(pixels.to(self.device)), _moved(rows, self.device))


class Feed(ABC):
    """Gives images of one set in any order.

    Attributes:
        held: bytes that are kept in memory.
    """

    held: int = 0

    @abstractmethod
    def sights(self, places: Tensor, epoch: int) -> Iterator[Sight]:
        """Images by their places in the set, int64 [n], a batch at a time and in this order; `epoch` draws views."""


class Fresh(Feed):
    """Reads, changes and encodes images whenever they are asked for.

    Args:
        seer: encoder and head.
        part: which images.
        views: what is drawn for each.
    """

    def __init__(self, seer: Seer, part: Part, views: Views) -> None:
        self._seer, self._part, self._views = seer, part, views

    def sights(self, places: Tensor, epoch: int) -> Iterator[Sight]:
        """See `Feed`."""
        for batch in _read(self._seer, self._part, places.tolist()):
            check(self._views, (batch.pixels.shape[2], batch.pixels.shape[3]))
            yield self._seer.seen(*view(batch.pixels, batch.rows, self._views, epoch))


class Kept(Feed):
    """Holds the features of all images, and of their mirror images where views are flipped.

    Args:
        seer: encoder and head.
        part: which images, all of one size that one window covers.
        views: none or flip.
    """

    def __init__(self, seer: Seer, part: Part, views: Views) -> None:
        self._seer, self._views, count = seer, views, len(part.indices)
        self._rows: dict[str, Tensor] = {}
        self._sides: tuple[dict[str, Tensor], ...] = ({},) if views.augment == "none" else ({}, {})
        start = 0
        with Bar(f"features of {seer.encoder.name}", count * len(self._sides)) as bar:
            for batch in _read(seer, part, range(count)):
                _put(self._rows, _packed(seer.task.truth(batch.pixels, batch.rows, _unseen)), start, count)
                for stored, pixels in zip(self._sides, (batch.pixels, batch.pixels.flip(3))):
                    features, self._frame = seer.features(pixels)
                    _put(stored, _named(features), start, count)
                    bar.advance(len(batch.ids))
                start += len(batch.ids)
        self.held = sum(t.nbytes for stored in (self._rows, *self._sides) for t in stored.values())

    def sights(self, places: Tensor, epoch: int) -> Iterator[Sight]:
        """See `Feed`."""
        for at in torch.split(places, self._seer.batch):
            flipped = flips(self._rows["key"][at], self._views, epoch)
            rows = {name: _unpacked(t[at]) for name, t in self._rows.items()}
            turned = with_truth(rows, {name: mirrored(rows[name], flipped) for name in TRUTH if name in rows})
            features = {name: t[at] for name, t in self._sides[0].items()}
            if flipped.any():
                for name, t in self._sides[1].items():
                    features[name][flipped] = t[at[flipped]]
            yield self._seer.sight(_features(_moved(features, self._seer.device)), self._frame, turned)


def feed_for(seer: Seer, part: Part, views: Views, *, most: int) -> Feed:
    """Images of a set: kept where their views allow it and they fit.

    Args:
        seer: encoder and head.
        part: which images.
        views: what is drawn for each; crops are never kept.
        most: bytes that may be kept.
    """
    if views.augment == "crop":
        return Fresh(seer, part, views)
    first = next(_read(seer, part, [0]))
    if not seer.whole(first.pixels):
        return Fresh(seer, part, views)
    features = sum(t.nbytes for t in _named(seer.features(first.pixels)[0]).values())
    truth = sum(t.nbytes for t in _packed(first.rows).values())
    needed = len(part.indices) * (features * (1 if views.augment == "none" else 2) + truth)
    return Kept(seer, part, views) if needed <= most else Fresh(seer, part, views)


def _read(seer: Seer, part: Part, places: range | list[int]) -> Iterator[Batch]:
    return batches(part.source, size=seer.batch, indices=[part.indices[i] for i in places])


def _put(stored: dict[str, Tensor], tensors: Mapping[str, Tensor], start: int, count: int) -> None:
    """Copy a batch [b, ...] to its place in tensors [count, ...] on the CPU, which are made with the first one."""
    for name, t in tensors.items():
        if name not in stored:
            stored[name] = torch.empty((count, *t.shape[1:]), dtype=t.dtype)
        stored[name][start : start + len(t)] = t.cpu()


def _named(features: Features) -> dict[str, Tensor]:
    """Maps and prefixes under the names `maps/LEVEL` and `prefix/LEVEL`."""
    kinds = {"maps": features.maps, "prefix": features.prefix}
    return {f"{kind}/{level}": t for kind, part in kinds.items() for level, t in part.items()}


def _features(named: Mapping[str, Tensor]) -> Features:
    kinds: dict[str, dict[str, Tensor]] = {"maps": {}, "prefix": {}}
    for name, t in named.items():
        kind, _, level = name.partition("/")
        kinds[kind][level] = t
    return Features(torch.empty(0), kinds["maps"], kinds["prefix"])


def _packed(rows: Rows) -> dict[str, Tensor]:
    """What is kept of rows; a class, or `IGNORE`, is a byte."""
    kept = {name: rows[name] for name in ("key", *TRUTH) if name in rows}
    return {name: t.to(torch.uint8) if name == "mask" else t for name, t in kept.items()}


def _unpacked(truth: Tensor) -> Tensor:
    return truth if truth.is_floating_point() else truth.long()


def _moved(rows: Rows, device: torch.device) -> Rows:
    return {name: t.to(device) for name, t in rows.items()}


def _unseen(pixels: Tensor) -> Out:
    raise AssertionError("masks and depth are compared with nothing that an encoder sees")
