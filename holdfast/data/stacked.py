"""Images as the crops that an encoder of n crops reads, one below the other: each can be perturbed for itself."""

from __future__ import annotations

import msgspec
import numpy as np
import torch

from holdfast.data.batches import Image, Source, fingerprint, to_pixels
from holdfast.errors import DataError
from holdfast.records import Data
from holdfast.views import crop_of


class Stacked(Source):
    """A source whose images are the n views of another's, [n * h, w], rounded to bytes.

    Args:
        source: of whole images, square ones.
        words: "crops:16:" or "patches:16:".
        data: the record that names it; a digest in it must be met.

    Raises:
        DataError: another digest.
    """

    def __init__(self, source: Source, words: str, data: Data) -> None:
        self._source = source
        self._kind, count = words.rstrip(":").split(":")
        self._count = int(count)
        self.ids, self.labels, self.classes, self.within = source.ids, source.labels, source.classes, source.within
        found = fingerprint([f"{words}{name}" for name in source.ids], source.labels)
        if data.digest_of_images not in ("", found):
            raise DataError(
                f"The images of {data.root or data.source} have changed since this run began.",
                next="Choose another --out, or --replace.",
            )
        self.data = msgspec.structs.replace(data, digest_of_images=found, classes_there=source.data.classes_there)

    def read(self, i: int) -> Image:
        """See `Source`.

        Raises:
            DataError: the image is not square.
        """
        image = self._source.read(i)
        high, wide = image.pixels.shape[:2]
        if high != wide:
            raise DataError(
                f"{self.ids[i]} is {high}x{wide} pixels.", asked="Square crops.", next="Crop them: --size 224."
            )
        pixels = to_pixels(torch.from_numpy(image.pixels).permute(2, 0, 1)[None])
        crops = torch.cat([crop_of(pixels, self._kind, number)[0] for number in range(self._count)], 1)
        bytes_ = crops.mul(255).round().to(torch.uint8).permute(1, 2, 0)
        return Image(np.ascontiguousarray(bytes_.numpy()), image.truth)
