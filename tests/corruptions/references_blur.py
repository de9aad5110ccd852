"""Blur again, one image at a time in NumPy and SciPy, from the definition alone: see `corruption_references`."""

import numpy as np
from scipy import ndimage, signal


def defocus_blur(x, radius, softening):
    kernel = disk(radius, softening)
    return np.stack([ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(3)], axis=-1)


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
