"""Noise corruptions (Hendrycks and Dietterich 2019, arXiv 1903.12261): each value of each channel on its own.

Gaussian and speckle noise take standard normal numbers. Shot and impulse noise take uniform ones of 16 bits, kept as
int16 words: the word n stands for u = (n + 32768.5) / 65536, the middle of one of 65,536 equal parts of [0, 1]. No
probability is then wrong by more than 2^-16 = 1.5e-5, which 50,000 images of one severity could not show.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from holdfast import draws

# (standard deviation of the noise, in units of [0, 1],)
GAUSSIAN_NOISE: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    "cifar32": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    "tiny64": ((0.04,), (0.08,), (0.12,), (0.15,), (0.18,)),
    "inception299": ((0.09,), (0.13,), (0.19,), (0.27,), (0.40,)),
}

# (photons that a white value counts on average; a whole number,)
SHOT_NOISE: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((60,), (25,), (12,), (5,), (3,)),
    "cifar32": ((500,), (250,), (100,), (75,), (50,)),
    "tiny64": ((250,), (100,), (50,), (30,), (15,)),
    "inception299": ((50,), (20,), (10,), (5,), (3,)),
}

# (share of the values that are replaced,)
IMPULSE_NOISE: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    "cifar32": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    "tiny64": ((0.01,), (0.02,), (0.05,), (0.08,), (0.14,)),
    "inception299": ((0.04,), (0.07,), (0.10,), (0.18,), (0.28,)),
}

# (standard deviation of the factor by which a value moves,)
SPECKLE_NOISE: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
    "cifar32": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
    "tiny64": ((0.15,), (0.2,), (0.25,), (0.3,), (0.35,)),
    "inception299": ((0.16,), (0.21,), (0.36,), (0.46,), (0.61,)),
}

_WORDS = 2**16  # how many words of 16 bits there are


def draw_normals(
    keys: Tensor, shape: tuple[int, int], *, parameters: tuple[float, ...], parts: tuple[str | int, ...]
) -> Tensor:
    """Standard normal numbers, one per value.

    Args:
        keys: the row `key`, int64 [b].
        shape: height and width of the images.
        parameters: of the severity; the field does not depend on them.
        parts: seed, name and severity: what the draw is for.

    Returns:
        float32 [b, h, w, 3].
    """
    return draws.normal(keys, (*shape, 3), *parts)


def draw_words(
    keys: Tensor, shape: tuple[int, int], *, parameters: tuple[float, ...], parts: tuple[str | int, ...]
) -> Tensor:
    """Uniform words of 16 bits, one per value; arguments as `draw_normals`.

    Returns:
        int16 [b, h, w, 3], -32768 to 32767: n stands for the uniform number (n + 32768.5) / 65536.
    """
    count = shape[0] * shape[1] * 3
    raw = np.empty((len(keys), -(-count // 4)), dtype="<u8")
    for row, key in zip(raw, keys.tolist(), strict=True):
        row[:] = draws.counter(*parts, key).bit_generator.random_raw(row.size)
    words = raw.view("<i2")[:, :count].reshape(len(keys), *shape, 3)
    return torch.from_numpy(words.astype(np.int16, copy=False)).to(keys.device)


def gaussian_noise(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Add c * N(0, 1) to every value, pixels in [0, 1].

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (c,).
        field: standard normal [b, h, w, 3].
        mode: reference works in float64, fast in float32.

    Returns:
        Levels [b, h, w, 3], not clipped.
    """
    (scale,) = parameters
    if mode == "reference":
        return (images.double() / 255 + scale * field.double()).clamp(0, 1) * 255
    # Two operations, not one fused one, whose last bit would depend on a value's place in the tile.
    return (field.to(torch.float32) * (255 * scale)).add_(images)


def speckle_noise(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Add x * c * N(0, 1) to every value x; arguments and result as `gaussian_noise`."""
    (scale,) = parameters
    if mode == "reference":
        x = images.double() / 255
        return (x + x * (scale * field.double())).clamp(0, 1) * 255
    return (field.to(torch.float32) * scale).mul_(images).add_(images)


def shot_noise(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Replace every value x by Poisson(x * c) / c: the fewest photons k with P(at most k) >= u. From c on it is white.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (c,), a whole number.
        field: words of 16 bits [b, h, w, 3], see `draw_words`.
        mode: reference searches the distribution in float64 for each value. fast looks up what that gives, by level and
            word, so that both are equal to the bit.

    Returns:
        Levels [b, h, w, 3]: uint8 in the fast mode, float64 in the other.
    """
    photons = int(parameters[0])
    if mode == "reference":
        # One sorted row for all levels: that of level v lies in [v, v + 1].
        chances = torch.from_numpy(_at_most(photons)).to(images.device)
        places = torch.arange(256, device=images.device)[:, None]
        levels = images.long()
        found = torch.searchsorted((chances + places).reshape(-1), (levels + _uniform(field)).contiguous())
        return ((found - levels * photons).double() / photons).clamp(0, 1) * 255
    starts, runs = (t.to(images.device) for t in _exposed(photons))
    place = images.to(torch.int32).mul_(_WORDS).add_(field).add_(_WORDS // 2).reshape(-1)
    found = starts.index_select(0, place >> 8).add_(place & 255)
    return runs.index_select(0, found).reshape(images.shape)


def impulse_noise(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Replace a share c of the values, channel by channel, by white or black, equally often.

    The published code asks twice, whether a value is replaced and by what. One uniform number answers both: white where
    u <= c / 2, black where c / 2 < u <= c.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (c,).
        field: words of 16 bits [b, h, w, 3], see `draw_words`.
        mode: reference compares float64 numbers, fast the words; both are equal to the bit.

    Returns:
        Levels [b, h, w, 3]: uint8 in the fast mode, float64 in the other.
    """
    (share,) = parameters
    if mode == "reference":
        u = _uniform(field)
        salt = (u <= share / 2).double()
        return torch.where(u <= share, salt, images.double() / 255) * 255
    kept = (field > _last_word(share)).to(torch.uint8)
    white = (field <= _last_word(share / 2)).to(torch.uint8)
    return (images * kept).sub_(white)  # modulo 256: 0 - 1 is 255


def _uniform(field: Tensor) -> Tensor:
    return (field.double() + (_WORDS / 2 + 0.5)) / _WORDS


def _last_word(chance: float) -> int:
    """The largest word whose uniform number is at most `chance`."""
    return int(np.floor(chance * _WORDS - (_WORDS / 2 + 0.5)))


@lru_cache(maxsize=8)
def _at_most(photons: int) -> npt.NDArray[np.float64]:
    """P(at most k photons) of a value of each level, float64 [256, c], k below c = `photons`."""
    rate = np.arange(256)[:, None] / 255 * photons
    steps = np.concatenate((np.exp(-rate), rate / np.arange(1, photons)), axis=1)
    chances: npt.NDArray[np.float64] = np.cumsum(np.cumprod(steps, axis=1), axis=1).clip(max=1)
    return chances


@lru_cache(maxsize=8)
def _exposed(photons: int) -> tuple[Tensor, Tensor]:
    """What each level becomes for each word, uint8 [256 * 65536], in runs of 256 words; a run of one level is kept once
    for all, so that what is mostly read stays in the cache. Returns where each of the 65,536 runs starts, int32, and
    the runs, uint8."""
    # Of the 65,536 uniform numbers (j + 1/2) / 65536, this many are at most the chance.
    until = np.floor(_at_most(photons) * _WORDS + 0.5).astype(np.int64)
    ends = np.concatenate((np.zeros((256, 1), np.int64), until, np.full((256, 1), _WORDS)), axis=1)
    levels = (np.arange(photons + 1) / photons * 255).astype(np.uint8)
    table = np.repeat(np.tile(levels, 256), np.diff(ends, axis=1).reshape(-1)).reshape(-1, 256)
    mixed = table[:, 0] != table[:, -1]
    which = table[:, 0].astype(np.int32)
    which[mixed] = 256 + np.arange(mixed.sum())
    runs = np.concatenate((np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, axis=1), table[mixed]))
    return torch.from_numpy(which * 256), torch.from_numpy(runs.reshape(-1))
