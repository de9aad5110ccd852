"""Corruptions by the independent reference with NumPy's own random numbers, drawn as the published code draws them.

What a distribution is compared with, and what a benchmark times: nothing here knows of keys or of the package's draws.
"""

from __future__ import annotations

import numpy as np
from corruption_references import reference


def by_numpy(name, image, parameters, rng):
    """uint8 [h, w, 3]: the image corrupted with numbers from `rng`, a NumPy generator, where any are due."""
    if name in WHOLE:
        return (np.clip(WHOLE[name](image / 255.0, *parameters, rng), 0, 1) * 255).astype(np.uint8)
    if name == "defocus_blur":  # in the way of OpenCV's large filters, not in the plainest and by far slowest
        return reference("defocus_blur_by_fft", image, parameters)
    field = FIELDS[name](rng, *image.shape[:2], parameters) if name in FIELDS else None
    return reference(name, image, parameters, field)


def counted(x, photons, rng):
    return rng.poisson(x * photons) / float(photons)


def flipped(x, share, rng):
    """Twice asked: whether, and to what."""
    return np.where(rng.random(x.shape) <= share, rng.random(x.shape) <= 0.5, x)


def steps(rng, height, width, parameters):
    """dx, dy of each visit, as one number."""
    reach, passes = int(parameters[1]), int(parameters[2])
    dx, dy = rng.integers(-reach, reach, (2, passes, max(0, height - 2 * reach), max(0, width - 2 * reach)))
    return 2 * reach * (dx + reach) + dy + reach


def flakes(rng, height, width, parameters):
    """Of a whole image's noise the middle, then the wind."""
    rows, columns = (int(np.ceil(n / float(parameters[2]))) for n in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    noise = rng.standard_normal((height, width))[top : top + rows, left : left + columns]
    return np.append(noise.ravel(), rng.random())


def swells(rng, height, width, parameters):
    side = int(parameters[2])
    while side < max(height, width):
        side *= 2
    return rng.random(side * side - 1)


WHOLE = {"shot_noise": counted, "impulse_noise": flipped}
FIELDS = {
    "gaussian_noise": lambda rng, h, w, _: rng.standard_normal((h, w, 3)),
    "speckle_noise": lambda rng, h, w, _: rng.standard_normal((h, w, 3)),
    "spatter": lambda rng, h, w, _: rng.standard_normal((h, w)),
    "motion_blur": lambda rng, h, w, _: rng.random(1),
    "frost": lambda rng, h, w, _: rng.random(3),
    "elastic_transform": lambda rng, h, w, _: rng.random(6 + 2 * h * w),
    "glass_blur": steps,
    "snow": flakes,
    "fog": swells,
}
