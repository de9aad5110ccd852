"""Semantic segmentation through a head on a frozen encoder: a class for every pixel.

Outcomes are counts per class and image, so that metrics are those of the confusion matrix of any set or resampling of
images: mIoU is the mean over classes of (sum of intersections) / (sum of unions), and not a mean of images' own mIoU.
A class that occurs neither in the truth nor in what was answered has no IoU and is left out of the mean; one that
occurs nowhere in the truth has no recall. Pixels of a mask that are `IGNORE` are counted as ignored, and nowhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks.harm import Out, Push, Rows, See
from holdfast.data.batches import IGNORE
from holdfast.errors import ConfigError, DataError
from holdfast.models.dense_heads import DenseHead
from holdfast.models.encoder import Encoder
from holdfast.models.precision import Engine, Precision
from holdfast.tasks.segmentation_pixels import Pixels, predicted
from holdfast.tasks.segmentation_pushes import PUSHES
from holdfast.tasks.task import DENSE, Floats, Measure, Member
from holdfast.tasks.windows import WHOLE, Windows, dense_see

ENSEMBLE = ("masked", "balanced", "js", "margin")
"""Harms of the members: the three of SEA (arXiv 2306.12941), and a margin, which no scale of the logits flattens."""
INTERSECTION, PREDICTED, LABELLED = range(3)
"""What is counted of each class: pixels that have it and were given it, that were given it, that have it."""


def counts(answer: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Pixels of each class: those of it that were taken for it, those taken for it, those of it.

    One scatter into a confusion matrix for each image: no loop over classes, and nothing waits for the device.

    Args:
        answer: int64 [b, h, w], 0 to classes - 1.
        mask: int64 [b, h, w], the same, or `IGNORE`, whose pixels are counted nowhere.
        classes: how many there are, K.

    Returns:
        int64 [b, K, 3]: `INTERSECTION`, `PREDICTED`, `LABELLED`.
    """
    truth = mask.where(mask != IGNORE, classes).flatten(1)
    image = torch.arange(len(mask), device=mask.device)[:, None]
    place = (image * (classes + 1) + truth) * classes + answer.flatten(1)
    ones = torch.ones((), dtype=torch.int64, device=mask.device).expand(place.numel())
    confusion = ones.new_zeros(len(mask) * (classes + 1) * classes).scatter_add_(0, place.flatten(), ones)
    known = confusion.view(len(mask), classes + 1, classes)[:, :classes]
    return torch.stack([known.diagonal(dim1=1, dim2=2), known.sum(1), known.sum(2)], dim=2)


def iou(sums: Floats) -> Floats:
    """Intersection over union of each class: counts [..., K, 3] -> [..., K]; NaN where it does not occur."""
    within = sums[..., INTERSECTION]
    return _ratio(within, sums[..., PREDICTED] + sums[..., LABELLED] - within)


def mean_iou(sums: Floats) -> Floats:
    """Mean over the classes that occur of `iou`: counts [..., K, 3] -> [...]; NaN where none does."""
    return _mean(iou(sums))


def pixel_accuracy(sums: Floats) -> Floats:
    """Share of the labelled pixels that are right: counts [..., K, 3] -> [...]; NaN where nothing is labelled."""
    return _ratio(sums[..., INTERSECTION].sum(-1), sums[..., LABELLED].sum(-1))


def mean_class_recall(sums: Floats) -> Floats:
    """Mean over the classes that are labelled of their share that is right (mAcc): counts [..., K, 3] -> [...]."""
    return _mean(_ratio(sums[..., INTERSECTION], sums[..., LABELLED]))


def iou_of(sums: Floats, at: int) -> Floats:
    """`iou` of class number `at`: counts [..., K, 3] -> [...]."""
    found: Floats = iou(sums)[..., at]
    return found


MEASURES = (
    Measure("miou", "counts", higher_is_better=True, of=mean_iou),
    Measure("pixel_accuracy", "counts", higher_is_better=True, of=pixel_accuracy),
    Measure("mean_class_recall", "counts", higher_is_better=True, of=mean_class_recall),
)
"""Metrics over all classes."""


def iou_measures(parts: Sequence[str]) -> tuple[Measure, ...]:
    """IoU of each of these classes, 0 to K - 1, as `iou/NAME`."""
    return tuple(
        Measure(f"iou/{name}", "counts", higher_is_better=True, of=functools.partial(iou_of, at=at))
        for at, name in enumerate(parts)
    )


@dataclass(frozen=True)
class Segmentation:
    """Classes of pixels from a dense head.

    Attributes:
        head: maps an encoder's features to logits [b, K, h, w].
        parts: names of the classes 0 to K - 1.
        windows: how images are read.
        sizes: pixels of each class in the images that the head was fitted on, for the harm `balanced`, as SEA has it;
            empty = not known, and that harm is refused.

    Raises:
        ConfigError: other numbers of names or sizes than the head knows classes.
    """

    head: DenseHead
    parts: tuple[str, ...]
    windows: Windows = WHOLE
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for what, given in (("parts", self.parts), ("sizes", self.sizes or self.parts)):
            if len(given) != self.classes:
                raise ConfigError(
                    f"{len(given)} {what} for a head of {self.classes} classes.", next="Give one for each class."
                )

    @property
    def level(self) -> str:
        """Every pixel is answered for."""
        return DENSE

    @property
    def pushes(self) -> Mapping[str, Push]:
        """Every harm of `segmentation_pushes.py`; the first is the default."""
        return PUSHES

    @property
    def ensemble(self) -> tuple[Member, ...]:
        """The segmentation ensemble: Auto-PGD from twice the radius inwards, 300 steps, on four harms.

        The worst image is not the same for every metric: reading chooses it for each (`evaluation/dense_worst.py`).
        """
        return tuple(Member(push, "sea") for push in ENSEMBLE)

    @property
    def stop(self) -> bool:
        """One wrong pixel does not lose an image: the whole run counts."""
        return False

    @property
    def classes(self) -> int:
        """How many classes the head tells apart."""
        return self.head.spec.outputs

    def aims(self, out: Out, rows: Rows, *, seed: int) -> Rows:
        """`ranked` int64 [b, K - 1]: classes that all of an image is aimed at, first the likeliest where it is wrong.

        By the sum of a class's probability over the labelled pixels of other classes.
        """
        read = Pixels(out["logits"], rows["mask"])
        elsewhere = read.logits.softmax(1).scatter(1, read.label[:, None], 0)
        elsewhere = elsewhere.where(read.labelled[:, None], 0).flatten(2).sum(2)
        return {"ranked": elsewhere.argsort(dim=1, descending=True, stable=True)[:, :-1]}

    def modules(self) -> tuple[nn.Module, ...]:
        """The head."""
        return (self.head,)

    def passes(self, encoder: Encoder, precision: Precision, engine: Engine) -> See:
        """From pixels [b, 3, h, w] to `logits` [b, K, h, w], and their `answer` int64 [b, h, w] for harm and score."""
        see = dense_see(encoder, self.head, self.windows, precision=precision, engine=engine)

        def answered(pixels: Tensor) -> dict[str, Tensor]:
            out = dict(see(pixels))
            return {**out, "answer": predicted(out["logits"])}

        return answered

    def read(self, encoder: Encoder, vector: Tensor) -> Out:
        """Refuses: one vector does not answer for every pixel.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("Segmentation was to be read from one vector.", next="It sees pixels: tasks.task.seer.")

    def score(self, out: Out, rows: Rows) -> Tensor:
        """Share of the labelled pixels that are wrong, float32 [b] in [0, 1]; 0 where nothing is labelled."""
        read = Pixels(out["logits"], rows["mask"], given=out.get("answer"))
        return read.mean((~read.right).float())

    def truth(self, pixels: Tensor, rows: Rows, see: See) -> Rows:
        """The mask is there already; adds `sizes` [b, K], where there are any.

        Raises:
            DataError: no mask, one of another size than the pixels, or with classes that the head does not know.
        """
        asked = "Segmentation was to be compared with masks."
        if "mask" not in rows:
            raise DataError("The images have none.", asked=asked, next="holdfast ls layouts names those that do.")
        for name in ("mask", "target_mask"):
            if name in rows:
                _check(name, rows[name], (len(pixels), *pixels.shape[2:]), self.classes, asked)
        if not self.sizes:
            return rows
        sizes = torch.tensor(self.sizes, dtype=torch.float32, device=pixels.device)
        return {**rows, "sizes": sizes.expand(len(pixels), -1)}

    def outcome(self, out: Out, rows: Rows) -> dict[str, Tensor]:
        """`counts` int64 [b, K, 3]; `wrong` float32 [b], the score; `ignored` int64 [b], pixels without a label; `loss`
        float32 [b], mean cross-entropy in nats, 0 where nothing is labelled."""
        read = Pixels(out["logits"], rows["mask"], given=out.get("answer"))
        return {
            "counts": counts(read.answer, read.mask, read.logits.shape[1]),
            "wrong": self.score(out, rows),
            "ignored": (~read.labelled).flatten(1).sum(1),
            "loss": read.mean(read.ce).float(),
        }

    def measures(self) -> tuple[Measure, ...]:
        """mIoU, pixel accuracy, mean class recall, and the IoU of each class."""
        return (*MEASURES, *iou_measures(self.parts))

    def absent(self) -> dict[str, str]:
        """Nothing: a class that never occurs says so itself."""
        return {}


def _check(name: str, mask: Tensor, size: tuple[int, ...], classes: int, asked: str) -> None:
    """Refuse a mask that is no class of each pixel; a class that is not there would end a GPU's program."""
    if mask.dtype != torch.int64 or mask.shape != size:
        found = f"{name} is {mask.dtype} {list(mask.shape)}; the pixels need int64 {list(size)}."
        raise DataError(found, asked=asked)
    strange = (mask != IGNORE) & ((mask < 0) | (mask >= classes))
    if bool(strange.any()):
        raise DataError(
            f"{name} has class {int(mask[strange][0])}; the head knows 0 to {classes - 1}.",
            asked=asked,
            next=f"Write {IGNORE} where there is no label, or fit a head on these classes: holdfast probe.",
        )


def _ratio(above: Floats, below: Floats) -> Floats:
    """NaN where there is nothing below."""
    some = below > 0
    divided: Floats = np.where(some, above / np.where(some, below, 1), np.nan)
    return divided


def _mean(values: Floats) -> Floats:
    """The mean of [..., K] over what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(-1), there.sum(-1))
