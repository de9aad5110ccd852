"""An encoder whose features are averaged over n crops of an image, as EMP-SSL and CF-AMC-SSL evaluate.

Published evaluation draws fresh crops, colours included, for every image and look, so that a number cannot be repeated
and an attack sees another function at every step. Here the n views are drawn once, by their place 0 to n - 1, and are
the same for every image and encoder: the average is a fixed, differentiable function of the pixels. An attack perturbs
the image before it is cropped; where `apart`, the crops lie one below the other in the pixels that come in
(`data.stacked`), and each may be perturbed for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from holdfast.errors import ConfigError, PixelError
from holdfast.models.encoder import NECK, Encoder, Engine, Features, Precision
from holdfast.records import Model
from holdfast.views import MULTICROPS, crop_of


class MultiCrop(Encoder):
    """An encoder that reads n views of an image and averages its features.

    Args:
        encoder: its trunk is shared, not copied.
        words: as `views.worded` gives them.
        model: where it comes from, with the words in its spec.

    It has vectors and no maps: a mean over crops has no places.
    """

    crops: Tensor

    def __init__(self, encoder: Encoder, words: str, model: Model) -> None:
        mean, std = encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()
        super().__init__(encoder.trunk, mean=mean, std=std, geometry=encoder.geometry, model=model, neck=encoder.neck)
        kind, count, *apart = words.rstrip(":").split(":")
        self.kind, self.count, self.apart = kind, int(count), bool(apart)
        # Part of the digest: the same weights under other crops are another encoder.
        what = [list(MULTICROPS).index(kind), self.count, int(self.apart)]
        self.register_buffer("crops", torch.tensor(what), persistent=False)

    @property
    def name(self) -> str:
        """That of the encoder, and how many crops it reads."""
        apart = " apart" if self.apart else ""
        return self._model.name or f"{super().name} ({self.count} {self.kind}{apart})"

    @property
    def mapped(self) -> tuple[str, ...]:
        """None."""
        return ()

    def forward(
        self,
        pixels: Tensor,
        levels: Sequence[str] = (),
        normed: bool = True,
        *,
        precision: Precision = "fp32",
        engine: Engine = "eager",
    ) -> Features:
        """Features averaged over the crops; arguments as `Encoder.forward`.

        Raises:
            ConfigError: a level was asked for beside `pooled`.
        """
        if levels:
            raise ConfigError(
                f"{self.name} has no maps: its features are averaged over {self.count} crops.",
                next="Name the encoder without crops for what reads maps (dense tasks, saliency: --saliency 0).",
            )
        crops = self._cropped(pixels)
        return Features(
            _mean(super(MultiCrop, self).forward(x, precision=precision, engine=engine).pooled for x in crops), {}, {}
        )

    def vector(
        self, pixels: Tensor, level: str = "pooled", *, precision: Precision = "fp32", engine: Engine = "eager"
    ) -> Tensor:
        """The mean of the crops' vectors, float32 [b, dims(level)]; arguments as `Encoder.vector`."""
        if level == "pooled":
            return self(pixels, precision=precision, engine=engine).pooled  # type: ignore[no-any-return]
        if level == NECK:
            seen = (
                super(MultiCrop, self).forward(x, precision=precision, engine=engine) for x in self._cropped(pixels)
            )
            return _mean(self._necked(features.pooled) for features in seen)
        one = super().vector
        return _mean(one(x, level, precision=precision, engine=engine) for x in self._cropped(pixels))

    def _cropped(self, pixels: Tensor) -> Iterator[Tensor]:
        return (self._crop(pixels, number) for number in range(self.count))

    def _crop(self, pixels: Tensor, number: int) -> Tensor:
        if not self.apart:
            return crop_of(pixels, self.kind, number)
        if pixels.shape[2] != self.count * pixels.shape[3]:
            raise PixelError(
                f"{pixels.shape[2]}x{pixels.shape[3]} pixels are not {self.count} square crops one below the other.",
                next=f"Give the images as {self.kind}:{self.count}: too (--data).",
            )
        return pixels.chunk(self.count, dim=2)[number]


def _mean(vectors: Iterable[Tensor]) -> Tensor:
    """The mean of one tensor or more, added one by one."""
    total, count = torch.zeros(()), 0
    for count, vector in enumerate(vectors, 1):
        total = total + vector if count > 1 else vector
    return total / count
