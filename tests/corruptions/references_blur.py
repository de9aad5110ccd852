"""Blur again, one image at a time in NumPy and SciPy, from the definition alone: see `corruption_references`.

A value that is a whole level counts as that level, as in the package: hence `TIE`.
"""

import numpy as np
from scipy import ndimage, signal

TIE = 1e-9 / 255


def defocus_blur(x, radius, softening):
    kernel = disk(radius, softening)
    return np.stack([ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(3)], axis=-1) + TIE


def defocus_blur_by_fft(x, radius, softening):
    """The same in the way of OpenCV's large filters, many times faster: what a benchmark should be measured against."""
    kernel = disk(radius, softening)[..., None]
    arm = kernel.shape[0] // 2
    wide = np.pad(x, ((arm, arm), (arm, arm), (0, 0)), mode="reflect")
    return signal.fftconvolve(wide, kernel, mode="valid", axes=(0, 1))


def disk(radius, softening):
    """The whole grid, zeros included; SciPy's `mirror` is the border rule of the published code."""
    reach, arm = (8, 1) if radius <= 8 else (radius, 2)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (x**2 + y**2 <= radius**2).astype(float)
    kernel /= kernel.sum()
    weights = np.exp(-0.5 * (np.arange(-arm, arm + 1) / softening) ** 2)
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, weights / weights.sum(), axis=axis, mode="mirror")
    return kernel


def gaussian_blur(x, sigma):
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4) + TIE


def glass_blur(x, sigma, reach, passes, codes):
    levels = (gaussian_blur(x, sigma) * 255).astype(np.uint8)
    return gaussian_blur(stirred(levels, reach, codes) / 255.0, sigma)


def stirred(levels, reach, codes):
    """Visit after visit; what is assigned is a whole pixel, and only one way."""
    height, width = levels.shape[:2]
    pixels = [list(map(tuple, row)) for row in levels.tolist()]
    for one_pass in codes.tolist():
        for row, steps in zip(range(height - reach, reach, -1), one_pass, strict=True):
            for column, code in zip(range(width - reach, reach, -1), steps, strict=True):
                dx, dy = code // (2 * reach) - reach, code % (2 * reach) - reach
                pixels[row][column] = pixels[row + dy][column + dx]
    return np.array(pixels, dtype=np.uint8).reshape(levels.shape)


def motion_blur(x, radius, sigma, field):
    return streaked(x, radius, sigma, -45 + 90 * field[0])


def streaked(x, radius, sigma, degrees):
    """Tap by tap, by clamped coordinates."""
    rows, columns = np.mgrid[: x.shape[0], : x.shape[1]]
    taps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2)) / np.exp(-(taps**2) / (2 * sigma**2)).sum()
    down, along = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    total = np.zeros(x.shape)
    for i, weight in zip(taps, weights, strict=True):
        y = np.clip(rows + int(np.ceil(i * down - 0.5)), 0, x.shape[0] - 1)
        total += weight * x[y, np.clip(columns + int(np.ceil(i * along - 0.5)), 0, x.shape[1] - 1)]
    return total + TIE


def zoom_blur(x, end, step):
    zooms = np.arange(1, end, step)
    return (x + sum(clipped_zoom(x, z) for z in zooms)) / (len(zooms) + 1) + TIE


def clipped_zoom(x, zoom):
    for axis in (0, 1):
        n = x.shape[axis]
        used = int(np.ceil(n / float(zoom)))
        first = (n - used) // 2
        x = x.take(range(first, first + used), axis=axis)
        x = ndimage.zoom(x, [zoom if a == axis else 1 for a in range(x.ndim)], order=1)
        trim = (x.shape[axis] - n) // 2
        x = x.take(range(trim, trim + n), axis=axis)
    return x
