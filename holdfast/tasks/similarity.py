"""How alike two aligned images are: SSIM (Wang et al., IEEE Transactions on Image Processing 2004) and PSNR.

SSIM has the settings of the paper: a Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, population
covariance, and only positions where the window lies inside the image. Both compare pixel with pixel: of images that
were moved (elastic transform, zoom, another crop) they say little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast.attacks.harm import check_pixels
from holdfast.errors import PixelError

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
IDENTICAL_DB = 100.0
_CACHED = 3 * 224 * 224  # values per tile on the CPU: float64 temporaries of more do not stay in its cache

_WEIGHTS = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
_KERNEL = [weight / sum(_WEIGHTS) for weight in _WEIGHTS]


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity, the mean over positions and channels, in float64 inside.

    Args:
        first: float [b, 3, h, w] in [0, 1], both sides at least 11 px.
        second: as `first`, aligned with it.

    Returns:
        float32 [b], at most 1; exactly 1 for identical images. Number i depends on pair i alone.

    Raises:
        PixelError: other types, ranges or shapes, shapes that differ, or images smaller than the window.
    """
    _check(first, second)
    if min(first.shape[2:]) < WINDOW:
        raise PixelError(
            f"the images have {first.shape[2]} x {first.shape[3]} px.",
            asked=f"SSIM slides a window of {WINDOW} x {WINDOW} px over both.",
            next="Leave SSIM out (PSNR has no window), or measure at a larger size.",
        )
    return torch.cat([_ssim(x, y) for x, y in _tiles(first, second)]).float()


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio: 10 log10(1 / mean squared difference) over all values of an image.

    Args:
        first: float [b, 3, h, w] in [0, 1].
        second: as `first`, aligned with it.

    Returns:
        float32 [b] in dB, from 0 to `IDENTICAL_DB`: identical images, whose ratio is infinite, have 100 dB, and so have
        those that differ by less (one value by one 8-bit level in 224 x 224 px is 99.9 dB).

    Raises:
        PixelError: other types, ranges or shapes, or shapes that differ.
    """
    _check(first, second)
    error = torch.cat([(x - y).square_().mean((1, 2, 3)) for x, y in _tiles(first, second)])
    return (-10 * error.log10()).clamp_max(IDENTICAL_DB).float()


def _tiles(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both batches in float64, a few images at a time on the CPU."""
    tile = len(first) if first.is_cuda else max(1, _CACHED // first[0].numel())
    for x, y in zip(torch.split(first, tile), torch.split(second, tile)):
        yield x.double(), y.double()


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    """The paper's formula, written in the difference d = x - y, so that equal images give 1 without rounding.

    2 mx my = mx^2 + my^2 - md^2 and 2 cov(x, y) = var(x) + var(y) - var(d) turn both quotients into 1 - quotient.
    """
    d = x - y
    mean_x, mean_d = _window_mean(x), _window_mean(d)
    mean_y = mean_x - mean_d
    means = mean_x.square() + mean_y.square()
    both = (_window_mean(x.square() + y.square()) - means).clamp_min(0)
    apart = (_window_mean(d.square()) - mean_d.square()).clamp_min(0)
    luminance = 1 - mean_d.square() / (means + C1)
    structure = 1 - apart / (both + C2)
    return (luminance * structure).mean((1, 2, 3))


def _window_mean(x: Tensor) -> Tensor:
    """Gaussian mean over the windows inside, [b, c, h, w] -> [b, c, h - 10, w - 10].

    Sums of shifted images and no convolution: elementwise arithmetic does not depend on the batch.
    """
    half = WINDOW // 2
    for dim in (2, 3):
        n = x.shape[dim] - WINDOW + 1
        total = x.narrow(dim, half, n) * _KERNEL[half]
        for i in range(half):
            total += (x.narrow(dim, i, n) + x.narrow(dim, WINDOW - 1 - i, n)).mul_(_KERNEL[i])
        x = total
    return x


def _check(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise PixelError(
            f"the images have shapes {list(first.shape)} and {list(second.shape)}.",
            asked="SSIM and PSNR compare pixel with pixel.",
            next="Align first: one resize and crop for both; what is stored cropped is not cropped again.",
        )
    for images in (first, second):
        check_pixels(images.float() if images.is_floating_point() else images)
