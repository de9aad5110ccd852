"""Digital corruptions again, one image at a time in NumPy and SciPy, from the definition alone: see `corruption_references`."""

import io

import numpy as np
from PIL import Image


def jpeg_compression(image, quality):
    """With Pillow's own choice of everything but the quality, as in the published code."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))
