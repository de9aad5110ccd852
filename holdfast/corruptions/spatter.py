"""Spatter (Hendrycks and Dietterich 2019, arXiv 1903.12261): drops of water (severities 1 to 3) or mud (4 and 5).

The drops are made with OpenCV, as in the published code. No other corruption needs it: it is imported when the first
drop is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from holdfast import draws
from holdfast.errors import ExtraError
from holdfast.records import Corruption

# (mean and deviation of the noise, sigma of the Gaussian that runs it together, threshold above which it is liquid,
# strength of water or sigma of the Gaussian that rounds mud, 1 = mud)
SPATTER: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "cifar32": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "tiny64": (
        (0.62, 0.1, 0.7, 0.7, 0.6, 0),
        (0.65, 0.1, 0.8, 0.7, 0.6, 0),
        (0.65, 0.3, 1, 0.69, 0.6, 0),
        (0.65, 0.1, 0.7, 0.68, 0.6, 1),
        (0.65, 0.1, 0.5, 0.67, 0.6, 1),
    ),
    "inception299": (
        (0.65, 0.3, 4, 0.69, 0.9, 0),
        (0.65, 0.3, 3.5, 0.68, 0.9, 0),
        (0.65, 0.3, 3, 0.68, 0.8, 0),
        (0.65, 0.3, 1.2, 0.65, 1.8, 1),
        (0.67, 0.4, 1.2, 0.65, 1.8, 1),
    ),
}

_WATER, _MUD = (175.0, 238.0, 238.0), (63.0, 42.0, 20.0)
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32)


def draw_spatter(
    keys: Tensor, shape: tuple[int, int], *, parameters: tuple[float, ...], parts: tuple[str | int, ...]
) -> Tensor:
    """The noise that the drops are made of.

    Args:
        keys: the row `key`, int64 [b].
        shape: height and width of the images.
        parameters: not used.
        parts: seed, name and severity: what the draw is for.

    Returns:
        Standard normal, float32 [b, h, w].
    """
    return draws.normal(keys, shape, *parts)


def spatter(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Add water to the image, or cover it with mud.

    Where there is no liquid at all, the image stays as it is (the published code divides by zero there). The drops are
    made on the CPU, image by image, whatever the device.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (mean, deviation, sigma, threshold, strength or second sigma, 0 = water or 1 = mud).
        field: as `draw_spatter` gives it.
        mode: reference adds in float64, fast in float32 and only where there is a drop.

    Returns:
        Levels [b, h, w, 3]: float64, not clipped (reference), or uint8 (fast).
    """
    muddy = bool(parameters[5])
    drops = mud if muddy else water
    thickness = torch.from_numpy(np.stack([drops(z, parameters) for z in field.cpu().numpy()])).to(images.device)
    if mode == "reference":
        m, levels = thickness.double()[..., None], images.double()
        return (levels * (1 - m) if muddy else levels) + m * levels.new_tensor(_MUD if muddy else _WATER)
    wet = thickness.view(-1).nonzero().view(-1)
    m, pixels = thickness.view(-1)[wet, None], images.reshape(-1, 3)
    levels = pixels.index_select(0, wet).float()
    levels = (levels * (1 - m) if muddy else levels) + m * levels.new_tensor(_MUD if muddy else _WATER)
    return pixels.index_copy(0, wet, levels.clamp_(max=255).to(torch.uint8)).view(images.shape)


def water(normals: npt.NDArray[np.float32], parameters: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """How much of the colour of water each pixel gets.

    Brightest inside a drop and towards its lower right: the distance to the outlines (up to 20 px), its histogram
    flattened, embossed, times the amount of liquid.

    Args:
        normals: of one image, [h, w].
        parameters: as of `spatter`.

    Returns:
        float32 [h, w], 0 where it is dry; the largest value is the strength, unless all is dry.
    """
    cv2 = _opencv()
    threshold, strength = parameters[3], parameters[4]
    amount = _run_together(normals, parameters)
    # More than 1 wraps around, as it does in the published code on the usual processors; the cast to bytes alone would
    # leave that to the processor.
    liquid = (np.where(amount < threshold, 0, amount) * 255).astype(np.int64).astype(np.uint8)
    outlines = 255 - cv2.Canny(liquid, 50, 150)
    distance = np.minimum(cv2.distanceTransform(outlines, cv2.DIST_L2, 5), 20)
    relief = cv2.filter2D(cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8)), cv2.CV_8U, _EMBOSS)
    bright: npt.NDArray[np.float32] = liquid * cv2.blur(relief, (3, 3)).astype(np.float32)
    largest = bright.max()
    if largest > 0:
        bright *= np.float32(strength / largest)
    return bright


def mud(normals: npt.NDArray[np.float32], parameters: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """How far each pixel is covered.

    Args:
        normals: of one image, [h, w].
        parameters: as of `spatter`.

    Returns:
        float32 [h, w], 0 or 0.8 to 1.
    """
    blot = _run_together(normals, parameters) > parameters[3]
    cover = _smooth(blot.astype(np.float64), parameters[4]).astype(np.float32)
    cover[cover < 0.8] = 0
    return cover


def spatter_resources(corruption: Corruption) -> Mapping[str, Any]:
    """Nothing, but not without OpenCV.

    Raises:
        ExtraError: OpenCV is not installed.
    """
    _opencv()
    return {}


def _run_together(normals: npt.NDArray[np.float32], parameters: tuple[float, ...]) -> npt.NDArray[np.float64]:
    mean, deviation, sigma = parameters[:3]
    return _smooth(mean + deviation * normals.astype(np.float64), sigma)


def _smooth(plane: npt.NDArray[np.float64], sigma: float) -> npt.NDArray[np.float64]:
    """Gaussian, cut off at four standard deviations; the edge pixel continues. In float64: one level of liquid more or
    less can move an outline."""
    cv2 = _opencv()
    side = 2 * int(4 * sigma + 0.5) + 1
    smoothed: npt.NDArray[np.float64] = cv2.GaussianBlur(plane, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
    return smoothed


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ExtraError(
            "OpenCV, which outlines the drops, is not installed.",
            asked="spatter was asked for.",
            next='pip install "holdfast[opencv]", or leave spatter out.',
        ) from error
    return cv2
