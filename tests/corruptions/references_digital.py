"""Digital corruptions again, one image at a time in Pillow, from the definition alone: see `corruption_references`."""

import io

import numpy as np
from PIL import Image


def pixelate(image, share):
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((max(1, int(width * share)), max(1, int(height * share))), Image.BOX)
    return np.asarray(small.resize((width, height), Image.BOX))


def jpeg_compression(image, quality):
    """With Pillow's own choice of everything but the quality, as in the published code."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))
