"""imagecorruptions (bethgelab), the peer of the corruptions, made to run beside today's libraries.

Version 1.1.2 of 2020, the last one released, needs `pkg_resources` (setuptools below 81), the scikit-image of its time
for Gaussian and glass blur, and the NumPy of its time for fog. Two names in its namespace are replaced when it is first
called; its files stay as they are. It always uses the severities of 224-pixel images, whatever the size.

It draws from NumPy's global generator, apart from impulse noise, which scikit-image draws from a fresh one. Its snow,
frost and elastic transformation are other corruptions than those of ImageNet-C: other crops, other flakes, no affine
map. `make_peer_fixtures.py` beside the tests says what agrees with what.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

OTHERS = ("snow", "frost", "elastic_transform")  # named as in ImageNet-C, and not the same


class PeerMissingError(ImportError):
    """imagecorruptions cannot be imported; the message says what is missing and what to type."""


def peer(name: str, image: npt.NDArray[np.uint8], severity: int) -> npt.NDArray[np.uint8]:
    """Corrupt one image as imagecorruptions does.

    Args:
        name: of the corruption.
        image: uint8 [h, w, 3], at least 32 x 32 pixels.
        severity: 1 to 5, of the table for 224-pixel images.

    Returns:
        uint8 [h, w, 3], truncated as the peer truncates.

    Raises:
        PeerMissingError: imagecorruptions or what it needs is not installed.
    """
    functions = repaired()
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = getattr(functions, name)(Image.fromarray(image), severity)
    return np.asarray(found).astype(np.uint8)


@lru_cache(maxsize=1)
def repaired() -> ModuleType:
    """The peer's module of corruptions, with `gaussian` and `np` replaced in its namespace.

    Raises:
        PeerMissingError: as `peer`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pkg_resources, and of scipy.ndimage.interpolation
            functions = importlib.import_module("imagecorruptions.corruptions")
    except ImportError as error:
        raise PeerMissingError(
            f'{error}. imagecorruptions is the peer that was asked for. Next: pip install "imagecorruptions==1.1.2" '
            '"setuptools<81" scikit-image opencv-python-headless, or leave the peer out.'
        ) from error
    functions.gaussian = _gaussian  # type: ignore[attr-defined]
    functions.np = _NumPy()  # type: ignore[attr-defined]
    return functions


def version() -> str:
    """The installed version of imagecorruptions; empty where there is none."""
    try:
        return importlib.metadata.version("imagecorruptions")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _gaussian(image: Array, sigma: Any = 1, multichannel: bool = False, **more: Any) -> Array:
    """scikit-image's Gaussian, told in today's words that the last axis holds channels."""
    from skimage.filters import gaussian

    found: Array = gaussian(image, sigma, channel_axis=-1 if multichannel else None, **more)  # type: ignore[no-untyped-call]
    return found


class _NumPy:
    """NumPy with the name that its second version dropped."""

    float_ = np.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)
