"""The corruptions again, one image at a time in NumPy, SciPy, Pillow and Matplotlib, written from the definition alone.

`reference(name, image, parameters, field)` is what the tests compare with and what `benchmarks/corruptions.py` times.
Images are uint8 [h, w, 3]; a field is one row of `holdfast.corruptions.table.fields`, as float64 (or as it is, where it
holds integers). A function takes the image in [0, 1], or in levels where it is named in `ON_LEVELS`.
"""

from __future__ import annotations

import numpy as np
import references_blur
import references_colour
import references_digital
import references_elastic
import references_noise
import references_snow
import references_weather

MODULES = (
    references_noise,
    references_blur,
    references_weather,
    references_colour,
    references_digital,
    references_elastic,
    references_snow,
)
ON_LEVELS = ("frost", "pixelate", "jpeg_compression")


def reference(name, image, parameters, field=None):
    """uint8 [h, w, 3]: clipped to [0, 1], times 255, truncated; functions in ON_LEVELS give uint8 themselves."""
    function = next(getattr(m, name) for m in MODULES if hasattr(m, name))
    drawn = () if field is None else (field,)
    if name in ON_LEVELS:
        return function(image, *parameters, *drawn)
    return (np.clip(function(image / 255.0, *parameters, *drawn), 0, 1) * 255).astype(np.uint8)


def photos(count, height, width):
    """uint8 [count, height, width, 3]: like photos, with swells of all sizes, an edge, burnt and black regions."""
    rng = np.random.Generator(np.random.PCG64(20))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    fall = 1 / np.maximum(np.hypot(y, x), 1 / max(height, width)) ** 1.2
    rows = []
    for _ in range(count):
        grey = np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) * fall).real
        tint = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, height, width))) * fall).real.transpose(1, 2, 0)
        picture = grey[..., None] / grey.std() + 0.4 * tint / tint.std()
        picture[height // 4 : height // 2, : width // 3] += 1.5
        rows.append(np.clip(110 + 60 * picture, 0, 255).astype(np.uint8))
    return np.stack(rows)
