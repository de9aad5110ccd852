"""Snow again, one image at a time in NumPy and SciPy, from the definition alone: see `corruption_references`."""

import numpy as np
from references_blur import TIE, clipped_zoom, streaked


def snow(x, mean, deviation, zoom, threshold, radius, sigma, mix, field):  # parameters: of a severity
    grey = x @ np.array([0.299, 0.587, 0.114])
    layer = snow_layer(field, x.shape[:2], mean, deviation, zoom, threshold, radius, sigma)[..., None] / 255.0
    bleached = mix * x + (1 - mix) * np.maximum(x, (1.5 * grey + 0.5)[..., None])
    return bleached + layer + np.rot90(layer, 2) + TIE


def snow_layer(field, shape, mean, deviation, zoom, threshold, radius, sigma):  # parameters: of a severity
    """uint8 [h, w]. Noise as large as the image; only its middle is drawn, and nothing else of it may be seen."""
    height, width = (int(np.ceil(n / float(zoom))) for n in shape)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    noise = np.full(shape, 1e9)
    noise[top : top + height, left : left + width] = mean + deviation * field[:-1].reshape(height, width)
    layer = clipped_zoom(noise, zoom)
    layer[layer < threshold] = 0
    levels = (np.clip(layer, 0, 1) * 255).astype(np.uint8)
    return (streaked(levels / 255.0, radius, sigma, -135 + 90 * field[-1]) * 255).astype(np.uint8)
