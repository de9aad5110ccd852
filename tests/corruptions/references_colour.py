"""Brightness, contrast, saturation again, one image at a time in NumPy and SciPy, from the definition alone: see `corruption_references`."""

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv


def brightness(x, raised):
    hsv = rgb_to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + raised, 0, 1)
    return hsv_to_rgb(hsv)
