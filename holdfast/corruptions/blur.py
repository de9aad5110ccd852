"""Blur corruptions that are one linear filter per image (Hendrycks and Dietterich 2019, arXiv 1903.12261).

The fast mode works on rows: a weighted sum of rows of a table is what an embedding bag computes, several times faster
than a convolution or a chain of shifted additions. Its weights are whole numbers small enough for every sum to be exact
in float32 or int32, so that no order of summation, batch size, thread count or device changes a level.

In both modes a value that is a whole level counts as that level. In the published code such a value can come out one
lower, where the float64 weights happen to add up to slightly less than one.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Array = npt.NDArray[np.float64]

# (radius of the disk in pixels, standard deviation of the Gaussian that softens its rim)
DEFOCUS_BLUR: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "cifar32": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "tiny64": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    "inception299": ((4, 0.1), (5, 0.5), (7, 0.5), (10, 0.5), (12, 0.5)),
}

# (standard deviation in pixels,)
GAUSSIAN_BLUR: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((1,), (2,), (3,), (4,), (6,)),
    "cifar32": ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
    "tiny64": ((0.5,), (0.75,), (1,), (1.25,), (1.5,)),
    "inception299": ((1.5,), (2.5,), (3.5,), (4.5,), (6.5,)),
}

# Far above the error of float64 (about 1e-12 levels), far below anything that is seen: a flat region, whose exact value
# is a whole level, comes out the same on every machine instead of one level lower here and there.
TIE = 1e-9


def defocus_blur(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """Correlate each channel with a disk; the image continues as its mirror image (edge pixel not repeated).

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (radius, softening), see `disk`.
        mode: reference is one float64 FFT per channel, whatever the radius; fast sums the columns of the disk, then
            these, with the rim rounded to 1 / 65,000. That is too coarse for the smallest disks, whose sums are often
            a hair below a whole level: they are transformed in both modes.

    Returns:
        Levels [b, h, w, 3], not clipped: float64, in the fast mode float32 where the disk is large enough.
    """
    kernel = disk(*parameters)
    reach = kernel.shape[0] // 2
    height, width = images.shape[1:3]
    rows, columns = (_mirror(n, reach).to(images.device) for n in (height, width))
    if mode == "reference" or reach < 3:
        wide = images.index_select(1, rows).index_select(2, columns)
        return _by_transform(wide, parameters, (height, width)) + TIE
    whole, scale = _whole_disk(*parameters)
    around = torch.arange(height, device=images.device)[:, None] + torch.arange(2 * reach + 1, device=images.device)
    weights = whole.to(images.device)[: reach + 1, None, :].expand(-1, height, -1).reshape(-1, 2 * reach + 1)
    index = rows[around].repeat(reach + 1, 1)
    wide = _widened(images, columns[:reach], columns[reach + width :])
    sums = weighted_rows(as_rows(wide), index, weights).reshape(reach + 1, height, -1, width + 2 * reach, 3)
    total = sums[reach, :, :, reach : reach + width].clone()
    for j in chain(range(reach), range(reach + 1, 2 * reach + 1)):
        total.add_(sums[min(j, 2 * reach - j), :, :, j : j + width])
    return total.div_(scale).transpose(0, 1)


def gaussian_blur(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """Gaussian blur, cut off at four standard deviations; the image continues as its edge pixels.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (standard deviation in pixels,); below 0.125 it is the identity.
        mode: reference works in float64, columns before rows; fast sums the rows in whole numbers, within 0.00001
            levels of it. The smallest Gaussians are in float64 in both modes.

    Returns:
        Levels [b, h, w, 3]: float64, in the fast mode uint8 where the Gaussian is large enough.
    """
    (sigma,) = parameters
    weights = gaussian_weights(sigma)
    reach, (height, width) = len(weights) // 2, images.shape[1:3]
    if mode == "reference" or reach < 3:
        down, along = (_blur_matrix(n, sigma).to(images.device) for n in images.shape[1:3])
        blurred = torch.matmul(down, images.double().flatten(2)).reshape(images.shape)
        return torch.matmul(along, blurred) + TIE
    # The tails decide in calm regions, where a sum lies a hair beside a whole level: 26 bits of weight, in two parts of
    # which each is exact in float32 around level 128, then columns in float64.
    first = torch.tensor(_whole_gaussian(sigma, 2**26), device=images.device)
    left, right = images.new_zeros(reach, dtype=torch.int64), images.new_full((reach,), width - 1, dtype=torch.int64)
    wide = as_rows(_widened(images ^ 128, left, right).view(torch.int8))
    near = (torch.arange(height)[:, None] + torch.arange(-reach, reach + 1)).clamp_(0, height - 1).to(images.device)
    fine = first & 1023
    coarse, fine = (part.to(torch.float32).expand(height, -1) for part in (first - fine, fine))
    sums = weighted_rows(wide, near, coarse).double().add_(weighted_rows(wide, near, fine))
    sums = sums.reshape(height, -1, width + 2 * reach, 3)
    second = (weights / 2**26).tolist()
    total: Tensor = sums[:, :, reach : reach + width] * second[reach]
    for j in chain(range(reach), range(reach + 1, 2 * reach + 1)):
        total.add_(sums[:, :, j : j + width], alpha=second[j])
    return total.add_(128 + TIE).to(torch.uint8).transpose(0, 1)


def weighted_rows(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sums of rows: row i is the sum over k of weights[i, k] * table[index[i, k]].

    Args:
        table: float32 [n, d].
        index: int64 [m, k].
        weights: float32 [m, k].

    Returns:
        float32 [m, d].
    """
    return functional.embedding_bag(index, table, mode="sum", per_sample_weights=weights.contiguous())


def gaussian_weights(sigma: float) -> Array:
    """The Gaussian at -r ... r, r = int(4 * sigma + 0.5), of sum 1."""
    reach = int(4 * sigma + 0.5)
    weights: Array = np.exp(-0.5 / sigma**2 * np.arange(-reach, reach + 1) ** 2)
    weights /= weights.sum()
    return weights


def _whole_gaussian(sigma: float, total: int) -> list[int]:
    """`gaussian_weights` as whole numbers, still symmetric."""
    weights = gaussian_weights(sigma)
    reach = len(weights) // 2
    half = whole_weights(np.append(weights[:reach], weights[reach:].sum()), total)[:reach]
    return [*half, total - 2 * sum(half), *reversed(half)]


def whole_weights(weights: Array, total: int) -> list[int]:
    """Weights of sum 1 as whole numbers of sum `total`, of which every partial sum is off by half a unit at most."""
    ends = np.rint(np.cumsum(weights) * total).astype(np.int64)
    ends[-1] = total
    found: list[int] = np.diff(ends, prepend=0).tolist()
    return found


@lru_cache(maxsize=64)
def disk(radius: float, softening: float) -> Array:
    """The kernel of the published sets.

    A disk of sum 1 on a 17 x 17 grid, softened by a 3 x 3 Gaussian; above radius 8 on a grid of the disk's size,
    softened by a 5 x 5 one. The Gaussian sees the grid mirrored at its border and nothing is normalised afterwards:
    where the disk comes near the border (radius 7, 8, 10 and 12), the sum is 1.0029, 1.0130, 1.0108 and 1.0078, so that
    these severities also brighten by up to 1 %.

    Args:
        radius: in pixels.
        softening: standard deviation in pixels.

    Returns:
        float64 [k, k], k odd, sides of zeros cut off.
    """
    reach, arm = (8, 1) if radius <= 8 else (int(radius), 2)
    steps = np.arange(-reach, reach + 1)
    kernel = (steps[:, None] ** 2 + steps[None, :] ** 2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    weights = np.exp(-(np.arange(-arm, arm + 1) ** 2) / (2 * softening**2))
    weights /= weights.sum()
    for axis in (0, 1):
        margin = [(arm, arm) if a == axis else (0, 0) for a in (0, 1)]
        wide = np.pad(kernel, margin, mode="reflect")
        shifted = (np.take(wide, steps + reach + i, axis=axis) for i in range(2 * arm + 1))
        kernel = np.sum([w * s for w, s in zip(weights, shifted, strict=True)], axis=0)
    used = int(np.abs(steps)[kernel.max(axis=0) > 1e-12].max())
    return kernel[reach - used : reach + used + 1, reach - used : reach + used + 1]


def _by_transform(wide: Tensor, parameters: tuple[float, ...], shape: tuple[int, int]) -> Tensor:
    """Correlate with the disk by a float64 FFT; `wide` has the disk's reach on every side more than `shape`."""
    wide = wide.permute(0, 3, 1, 2)
    reach = (wide.shape[2] - shape[0]) // 2
    size = (_round_up(wide.shape[2]), _round_up(wide.shape[3]))
    plane = torch.zeros((*wide.shape[:2], *size), dtype=torch.float64, device=wide.device)
    plane[..., : wide.shape[2], : wide.shape[3]] = wide
    spectrum = torch.fft.rfft2(plane) * _spectrum(*parameters, *size).to(wide.device)
    blurred: Tensor = torch.fft.irfft2(spectrum, s=size)[..., reach : reach + shape[0], reach : reach + shape[1]]
    return blurred.permute(0, 2, 3, 1)


@lru_cache(maxsize=64)
def _spectrum(radius: float, softening: float, height: int, width: int) -> Tensor:
    """Transform of the kernel with its centre at the origin: real, since the kernel is symmetric."""
    kernel = disk(radius, softening)
    plane = np.zeros((height, width))
    plane[: kernel.shape[0], : kernel.shape[1]] = kernel
    centred = np.roll(plane, (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), axis=(0, 1))
    return torch.from_numpy(np.ascontiguousarray(np.fft.rfft2(centred).real))


@lru_cache(maxsize=64)
def _whole_disk(radius: float, softening: float) -> tuple[Tensor, float]:
    """The kernel in whole numbers, float32 [k, k], and what they are divided by: a multiple of the pixels of the disk,
    so that its inside is exact, with sums below 2^24."""
    kernel = disk(radius, softening)
    inside = round(1 / kernel.max()) if kernel.max() < 0.99 else 1
    scale = inside * int(2**24 / (255 * max(1.0, float(kernel.sum())) * inside))
    whole = np.rint(kernel * scale)
    whole[len(whole) // 2, len(whole) // 2] += np.rint(kernel.sum() * scale) - whole.sum()
    return torch.from_numpy(whole.astype(np.float32)), float(scale)


@lru_cache(maxsize=64)
def _blur_matrix(n: int, sigma: float) -> Tensor:
    """float64 [n, n] that blurs a line of n pixels which goes on as its end pixels."""
    weights = gaussian_weights(sigma)
    matrix = np.zeros((n, n))
    for step, weight in enumerate(weights, -(len(weights) // 2)):
        np.add.at(matrix, (np.arange(n), np.clip(np.arange(n) + step, 0, n - 1)), weight)
    return torch.from_numpy(matrix)


def as_rows(images: Tensor) -> Tensor:
    """float32 [h, b * w * 3]: row y of every image in one row."""
    return images.transpose(0, 1).reshape(images.shape[1], -1).to(torch.float32)


def _widened(images: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The images with the columns of these numbers before and after."""
    return torch.cat((images.index_select(2, left), images, images.index_select(2, right)), dim=2)


def _mirror(n: int, pad: int) -> Tensor:
    """Which pixel stands at -pad ... n + pad - 1 when a line of n is mirrored at both ends, as often as needed."""
    place = torch.arange(-pad, n + pad).abs() % max(1, 2 * (n - 1))
    return torch.minimum(place, 2 * (n - 1) - place).clamp_(min=0)


def _round_up(n: int) -> int:
    """A length near n with small prime factors at the usual image sizes, which is what a fast transform wants."""
    return -(-n // 16) * 16
