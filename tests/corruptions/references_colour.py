"""Colour again, one image at a time in NumPy and Matplotlib, from the definition alone: see `corruption_references`."""

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv


def brightness(x, raised):
    hsv = rgb_to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + raised, 0, 1)
    return hsv_to_rgb(hsv)


def saturate(x, factor, added):
    hsv = rgb_to_hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + added, 0, 1)
    return hsv_to_rgb(hsv)


def contrast(x, gain):
    """The mean from whole levels, so that it is exact; a sum of fractions depends on its order in the last bit."""
    mean = np.rint(x * 255).sum(axis=(0, 1)) / (255 * x.shape[0] * x.shape[1])
    return (x - mean) * gain + mean
