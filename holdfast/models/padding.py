"""Images of any size before a trunk that cuts them into patches, and answers for every pixel that fit them again.

An image is padded on all sides alike, as DINOv2 does for depth (Oquab et al. 2023, arXiv 2304.07193), to the next
multiple of the trunk's own patch, whatever that is. The frame has the encoder's mean colour, which is zero behind its
normalisation. What is answered for the frame is cut off again, so that no pixel moves.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from torch import Tensor
from torch.nn import functional

from holdfast.errors import ConfigError, PixelError
from holdfast.models.encoder import Encoder
from holdfast.models.features import Features
from holdfast.models.precision import Engine, Precision
from holdfast.records import DenseSpec


class Frame(NamedTuple):
    """What was put around images, in pixels.

    Attributes:
        top: rows above the image.
        left: columns beside it.
        height: of the image itself.
        width: of the image itself.
        size: height and width with the frame: what a head answers for.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    def undone(self, answers: Tensor) -> Tensor:
        """Answers [b, ..., *size] for image and frame -> [b, ..., height, width], those for the image."""
        if self.size == (self.height, self.width):
            return answers
        return answers[..., self.top : self.top + self.height, self.left : self.left + self.width]


def patch(encoder: Encoder) -> tuple[int, int]:
    """Height and width in pixels of the patches that a trunk cuts; (1, 1) for a CNN."""
    embed = getattr(encoder.trunk, "patch_embed", None)
    size: Any = getattr(embed, "patch_size", 1)
    return (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (int(size), int(size))


def framed(encoder: Encoder, pixels: Tensor) -> tuple[Tensor, Frame]:
    """Images with a frame of the encoder's mean colour, to a multiple of its patch; as they are where they fit.

    Args:
        encoder: whose patch and mean are meant.
        pixels: float [b, 3, h, w] in [0, 1].

    Returns:
        Pixels [b, 3, *size], differentiable, and the frame.

    Raises:
        PixelError: pixels of another shape.
        ConfigError: the trunk takes images of one size alone, and these have another.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise PixelError(f"pixels have shape {tuple(pixels.shape)}.", next="Give [b, 3, h, w].")
    height, width = pixels.shape[-2:]
    size = tuple(-(-side // p) * p for side, p in zip((height, width), patch(encoder)))
    _check_size(encoder, cast(tuple[int, int], size))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    frame = Frame(top, left, height, width, (size[0], size[1]))
    if frame.size == (height, width):
        return pixels, frame
    sides = (left, size[1] - width - left, top, size[0] - height - top)
    around = functional.pad(pixels.new_zeros(1, 1, height, width), sides, value=1.0) * encoder.mean
    return functional.pad(pixels, sides) + around, frame


def look(
    encoder: Encoder, spec: DenseSpec, pixels: Tensor, *, precision: Precision = "fp32", engine: Engine = "eager"
) -> tuple[Features, Frame]:
    """What a dense head reads of images of any size: the one way to it, for fitting, judging and attacking.

    Heads of segmentation read a ViT's tokens behind its last LayerNorm, heads of depth before it, as DINOv2's do.

    Args:
        encoder: gives the features.
        spec: of the head.
        pixels: float [b, 3, h, w] in [0, 1].
        precision: as `Encoder.forward` takes it.
        engine: as `Encoder.forward` takes it.

    Returns:
        Features of the framed images, and the frame: `frame.undone(head(features, frame.size))` answers for the images.

    Raises:
        PixelError, ConfigError: as `framed`.
    """
    whole, frame = framed(encoder, pixels)
    normed = spec.task == "segmentation"
    return cast(Features, encoder(whole, spec.levels, normed, precision=precision, engine=engine)), frame


def _check_size(encoder: Encoder, size: tuple[int, int]) -> None:
    embed: Any = getattr(encoder.trunk, "patch_embed", None)
    only = getattr(embed, "img_size", None)
    if only is not None and getattr(embed, "strict_img_size", False) and tuple(only) != size:
        raise ConfigError(
            f"{encoder.name} takes images of {only[0]} x {only[1]} pixels alone, not {size[0]} x {size[1]}.",
            next=f"Slide windows of {only[0]} pixels, or build it with dynamic_img_size=True.",
        )
