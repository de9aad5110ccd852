"""Blur corruptions (Hendrycks and Dietterich 2019, arXiv 1903.12261)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# (radius of the disk in pixels, standard deviation of the Gaussian that softens its rim)
DEFOCUS_BLUR: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "cifar32": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
}

# Far above the error of a float64 transform (about 1e-12 levels), far below anything that is seen: a flat region, whose
# exact value is a whole level, comes out the same on every machine instead of one level lower here and there.
_TIE = 1e-7


def defocus_blur(images: Tensor, parameters: tuple[float, ...], *, mode: str) -> Tensor:
    """Correlate each channel with a disk; the image continues as its mirror image (edge pixel not repeated).

    One float64 FFT per channel, whatever the radius: several times faster than a convolution with a 21 x 21 kernel, and
    exact enough that no batch size, thread count or device changes a level. Both modes are this one.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (radius, softening), see `disk`.
        mode: no difference here.

    Returns:
        Levels, float64 [b, h, w, 3], not clipped.
    """
    radius, softening = parameters
    height, width = images.shape[1:3]
    pad = disk(radius, softening).shape[0] // 2
    rows, columns = (_mirror(n, pad).to(images.device) for n in (height, width))
    wide = images.index_select(1, rows).index_select(2, columns).permute(0, 3, 1, 2)
    size = (_round_up(wide.shape[2]), _round_up(wide.shape[3]))
    plane = torch.zeros((*wide.shape[:2], *size), dtype=torch.float64, device=images.device)
    plane[..., : wide.shape[2], : wide.shape[3]] = wide
    spectrum = torch.fft.rfft2(plane) * _spectrum(radius, softening, *size).to(images.device)
    blurred: Tensor = torch.fft.irfft2(spectrum, s=size)[..., pad : pad + height, pad : pad + width]
    return blurred.permute(0, 2, 3, 1) + _TIE


@lru_cache(maxsize=64)
def disk(radius: float, softening: float) -> npt.NDArray[np.float64]:
    """The kernel of the published sets.

    A disk of sum 1 on a 17 x 17 grid, softened by a 3 x 3 Gaussian; above radius 8 on a grid of the disk's size,
    softened by a 5 x 5 one. The Gaussian sees the grid mirrored at its border and nothing is normalised afterwards:
    where the disk reaches the border (radius 8 and 10), the sum is 1.0130 and 1.0108, so that these severities also
    brighten by 1 %.

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


@lru_cache(maxsize=64)
def _spectrum(radius: float, softening: float, height: int, width: int) -> Tensor:
    """Transform of the kernel with its centre at the origin: real, since the kernel is symmetric."""
    kernel = disk(radius, softening)
    plane = np.zeros((height, width))
    plane[: kernel.shape[0], : kernel.shape[1]] = kernel
    centred = np.roll(plane, (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), axis=(0, 1))
    return torch.from_numpy(np.ascontiguousarray(np.fft.rfft2(centred).real))


def _mirror(n: int, pad: int) -> Tensor:
    """Which pixel stands at -pad ... n + pad - 1 when a line of n is mirrored at both ends, as often as needed."""
    place = torch.arange(-pad, n + pad).abs() % max(1, 2 * (n - 1))
    return torch.minimum(place, 2 * (n - 1) - place).clamp_(min=0)


def _round_up(n: int) -> int:
    """A length near n with small prime factors at the usual image sizes, which is what a fast transform wants."""
    return -(-n // 16) * 16
