"""Frost (Hendrycks and Dietterich 2019, arXiv 1903.12261): a picture of ice, laid over the image.

The pictures of ImageNet-C name no author and no licence, so they are not part of this package. Where they are asked
for, they are read from a folder or from an installed `imagecorruptions`, and checked. Otherwise five are drawn, of the
same sizes and of about the same brightness, contrast and grain.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from holdfast import draws
from holdfast.corruptions.ice import LOOKS, painted
from holdfast.errors import ConfigError
from holdfast.records import Corruption

Textures = tuple[Tensor, ...]

# (weight of the image, weight of the texture, factor by which the texture is resized first)
FROST: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
    "cifar32": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    "tiny64": ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
    "inception299": ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
}

# The second and the third show the same picture, which is therefore twice as frequent; a sixth file was never used.
_PUBLISHED = {
    "frost1.png": "6ead634ace1f366d77e87078b465863c",
    "frost2.png": "98f0d2b1d74a048d3bc9c7ecfd886939",
    "frost3.png": "b3ed8eb147824261888e730f916c0d8b",
    "frost4.jpg": "d70b9d6aa0b1fe7bd8133b113787e078",
    "frost5.jpg": "50984ae2c871b7df2c28f1d71ca460a0",
}
VARIABLE, _DISTRIBUTION = "HOLDFAST_FROST", "imagecorruptions"


def draw_frost(
    keys: Tensor, shape: tuple[int, int], *, parameters: tuple[float, ...], parts: tuple[str | int, ...]
) -> Tensor:
    """Which part of which texture an image gets.

    Args:
        keys: the row `key`, int64 [b].
        shape: not used.
        parameters: not used.
        parts: seed, name and severity: what the draw is for.

    Returns:
        Uniform in [0, 1), float32 [b, 3]: the texture, the crop's first row, its first column, each as a share of what
        there is to choose from.
    """
    return draws.uniform(keys, (3,), *parts)


def frost(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str, textures: Textures) -> Tensor:
    """Weigh the image and a crop of a texture, and add them.

    The last possible row and column of a crop are never taken, as in the published code. A texture that is smaller than
    the image once it is resized is resized by as much as covers the image instead; `remark_on_frost` says so.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (weight of the image, weight of the texture, factor).
        field: as `draw_frost` gives it.
        mode: reference computes in float64; fast looks up what that gives, and is equal to it.
        textures: uint8 [*, *, 3], red first, on the CPU.

    Returns:
        Levels [b, h, w, 3]: uint8 (fast), or float64, not clipped (reference).
    """
    kept, laid, factor = parameters
    crops = [_crop(row, factor, textures, images.shape[1:3]) for row in field.tolist()]
    layer = torch.stack(crops).to(images.device)
    if mode == "reference":
        return kept * images.double() + laid * layer.double()
    place = layer.to(torch.int32).add_(images, alpha=256)
    return _sums(kept, laid).to(images.device).index_select(0, place.view(-1)).view(place.shape)


def frost_resources(corruption: Corruption) -> Mapping[str, Textures]:
    """The textures that a corruption asks for, as the keyword `textures` of `frost`.

    Raises:
        ConfigError: as `load_published`, where the published ones are asked for.
    """
    return {"textures": load_published() if corruption.textures == "published" else draw_textures()}


def remark_on_frost(corruption: Corruption, parameters: tuple[float, ...], height: int, width: int) -> str:
    """Say where the textures are not the published ones, and where an image is larger than a texture.

    Args:
        corruption: says which textures.
        parameters: as of `frost`.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        Sentences; empty where there is nothing to say.
    """
    said = []
    if corruption.textures == "drawn":
        said.append("the textures are drawn ones, not those of ImageNet-C.")
    factor = parameters[2]
    small = sum(round(h * factor) < height or round(w * factor) < width for h, w in (look.size for look in LOOKS))
    if small:
        said.append(
            f"{small} of the {len(LOOKS)} textures are smaller than these images and were enlarged to cover them."
        )
    return " ".join(said)


def draw_textures() -> Textures:
    """Five drawn pictures of frost: always the same ones, made once.

    Returns:
        uint8 [h, w, 3], red first, each of the size of its published counterpart: 315 px or more high.
    """
    return _drawn()


def find_published() -> Path | None:
    """The folder of the published textures.

    It is `$HOLDFAST_FROST` where that is set, else where an installed `imagecorruptions` has them (which is not
    imported).

    Returns:
        A folder that holds all five files, whatever is in them; None where there is none.
    """
    if named := os.environ.get(VARIABLE):
        places = [Path(named).expanduser()]
    else:
        try:
            files = importlib.metadata.files(_DISTRIBUTION) or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        places = [Path(str(f.locate())).parent for f in files if f.name == "frost1.png"]
    return next((p for p in places if all((p / name).is_file() for name in _PUBLISHED)), None)


def load_published() -> Textures:
    """The five textures of ImageNet-C in their published order, each file checked by its MD5 sum.

    Returns:
        uint8 [h, w, 3], red first. The second is equal to the third.

    Raises:
        ConfigError: they are nowhere, or a file is another one; says where was looked and what to type.
    """
    folder = find_published()
    if folder is not None:
        return _read(folder)
    named = os.environ.get(VARIABLE)
    where = f"in {named}, which {VARIABLE} names" if named else f"in an installed {_DISTRIBUTION}"
    raise ConfigError(
        f"The five files {', '.join(_PUBLISHED)} are not {where}" + ("." if named else f", and {VARIABLE} is not set."),
        asked='Frost with textures="published".',
        next=f'Set {VARIABLE}=FOLDER to the folder that holds them, or write textures: "drawn".',
    )


@lru_cache(maxsize=2)
def _read(folder: Path) -> Textures:
    pictures = []
    for name, expected in _PUBLISHED.items():
        found = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        if found != expected:
            raise ConfigError(
                f"{folder / name} has the MD5 sum {found}; that of ImageNet-C has {expected}.",
                asked='Frost with textures="published".',
                next='Put the published file there, or write textures: "drawn".',
            )
        with Image.open(folder / name) as picture:
            pictures.append(torch.from_numpy(np.array(picture.convert("RGB"))))
    return tuple(pictures)


@lru_cache(maxsize=1)
def _drawn() -> Textures:
    return tuple(torch.from_numpy(painted(number)) for number in range(len(LOOKS)))


def _crop(row: list[float], factor: float, textures: Textures, shape: torch.Size) -> Tensor:
    height, width = shape
    texture = _fitted(textures[int(row[0] * len(textures))], factor, height, width)
    top, left = (int(u * max(1, n - m)) for u, n, m in zip(row[1:], texture.shape, shape))
    return texture[top : top + height, left : left + width]


# A tensor is hashed by what it is, not by what it holds: the textures are made once.
@lru_cache(maxsize=32)
def _fitted(texture: Tensor, factor: float, height: int, width: int) -> Tensor:
    """The texture resized by the factor, or by what covers the image where that is more."""
    factor = max(factor, height / texture.shape[0], width / texture.shape[1])
    return texture if factor == 1 else torch.from_numpy(resized(texture.numpy(), factor))


def resized(picture: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    """Resize with bilinear weights at pixel centres, without smoothing first, in the integers of OpenCV's `resize`.

    Weights are whole numbers of 1/2048; four bits are dropped between the passes and what is left is rounded. Shrinking
    by 5 therefore takes every fifth pixel, starting at the third.

    Args:
        picture: [h, w, 3].
        factor: the new size is the old one times this, rounded.

    Returns:
        uint8 [*, *, 3].
    """
    (above, below, down), (before, after, along) = (_taps(n, factor) for n in picture.shape[:2])
    wide = picture.astype(np.int32)
    near, far = (w[:, None].astype(np.int32) for w in (2048 - along, along))
    lines = (wide[:, before] * near + wide[:, after] * far) >> 4
    near, far = (w[:, None, None].astype(np.int32) for w in (2048 - down, down))
    return (((lines[above] * near >> 16) + (lines[below] * far >> 16) + 2) >> 2).astype(np.uint8)


def _taps(n: int, factor: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For every new place the two old ones beside it, and the weight of the second in 1/2048."""
    place = ((np.arange(round(n * factor)) + 0.5) / factor - 0.5).clip(0, n - 1)
    first = np.floor(place).astype(np.int64)
    return first, np.minimum(first + 1, n - 1), np.rint((place - first) * 2048).astype(np.int64)


@lru_cache(maxsize=32)
def _sums(kept: float, laid: float) -> Tensor:
    """The level of every pair of levels, at 256 * image + texture: uint8 [65536]."""
    levels = np.arange(256.0)
    return torch.from_numpy((kept * levels[:, None] + laid * levels).clip(0, 255).astype(np.uint8).reshape(-1))
