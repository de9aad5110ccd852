"""Elastic transformation (Hendrycks and Dietterich 2019, arXiv 1903.12261), after Simard et al. (2003)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from holdfast import draws

# (alpha: pixels per unit of the smoothed noise, sigma of its Gaussian, reach of the corners that make the affine map).
# At 224 px the published code counts in units of 244. Its severity 2 is harder than its 3.
ELASTIC_TRANSFORM: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": (
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
    "cifar32": ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    "tiny64": ((0, 0, 5.12), (3.2, 19.2, 3.84), (6.4, 5.12, 3.84), (6.4, 1.92, 1.92), (10.24, 1.92, 1.28)),
    "inception299": ((720, 252, 36), (720, 28.8, 72), (18, 3.6, 7.2), (25.2, 3.6, 7.2), (43.2, 3.6, 7.2)),
}

# Far above the error of float64, far below anything that is seen: what is a whole level exactly (a flat region, a shift
# by whole pixels) stays one on every machine, as the single precision of the published code makes it stay.
_TIE = 1e-7
# Rows that are smoothed by one matrix product: few enough that it holds few zeros, enough that the product is quick.
_BLOCK = 32


def draw_elastic(
    keys: Tensor, shape: tuple[int, int], *, parameters: tuple[float, ...], parts: tuple[str | int, ...]
) -> Tensor:
    """The numbers that move the pixels.

    Args:
        keys: the row `key`, int64 [b].
        shape: height and width of the images.
        parameters: not used; the count does not depend on the severity.
        parts: seed, name and severity: what the draw is for.

    Returns:
        Uniform in [0, 1), float32 [b, 6 + 2 * h * w]: x and y of the three points in turn, then the noise of the
        displacements along the width, then that along the height, row by row.
    """
    return draws.uniform(keys, (6 + 2 * shape[0] * shape[1],), *parts)


def elastic_transform(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Move the image by a random affine map, then each pixel by smoothed noise.

    Three corners of a centred square move by up to `reach` pixels each way; the affine map that takes them there is
    applied with bilinear weights, the image continued as its mirror image (edge pixel not repeated). Every pixel of the
    result is then fetched, again with bilinear weights, from where alpha times the smoothed noise points to, the image
    continued with its edge pixel repeated. Both modes are this one, in float64: exact enough that no batch size, thread
    count or device changes a level.

    Args:
        images: uint8 [b, h, w, 3].
        parameters: (alpha, sigma, reach), all in pixels.
        field: as `draw_elastic` gives it.
        mode: no difference here.

    Returns:
        uint8 [b, h, w, 3].
    """
    alpha, sigma, reach = parameters
    b, height, width = images.shape[:3]
    signed = field.double().mul_(2).sub_(1)
    planes = images.permute(0, 3, 1, 2).to(torch.float64)
    moved = warp(planes, inverse_affine(signed[:, :6] * reach, height, width))
    if alpha:
        noise = signed[:, 6:].reshape(b * 2, height, width)
        moved = displace(moved, smooth(noise, sigma).view(b, 2, height, width), alpha=alpha)
    return moved.add_(_TIE).to(torch.uint8).permute(0, 2, 3, 1)


def inverse_affine(offsets: Tensor, height: int, width: int) -> Tensor:
    """Where the pixels of the result come from.

    The corners (right, bottom), (right, top), (left, top) of a square around the middle of the image move by the
    offsets. Half its side is a third of the image's shorter side, and at least a pixel.

    Args:
        offsets: in pixels, x and y of each of the three corners, float64 [b, 6].
        height: of the images.
        width: of the images.

    Returns:
        float64 [b, 2, 3]: (x, y) of the source = this times (x, y, 1) of the result. A map that cannot be inverted
        fetches everything from the top left pixel, as OpenCV's does.
    """
    arm, x, y = max(1, min(height, width) // 3), width // 2, height // 2
    corners = offsets.new_tensor([[x + arm, y + arm], [x + arm, y - arm], [x - arm, y - arm]])
    low, right, start = (offsets.view(-1, 3, 2) + corners).unbind(1)  # where they go, [b, 2] each
    (a, c), (b, d) = ((right - start) / (2 * arm)).unbind(1), ((low - right) / (2 * arm)).unbind(1)
    area = a * d - b * c
    scale = torch.where(area == 0, area, 1 / area)
    linear = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) * scale[:, None, None]
    shift = corners[2] * (scale != 0)[:, None] - (linear * start[:, None]).sum(2)
    return torch.cat([linear, shift[:, :, None]], 2)


def warp(planes: Tensor, sources: Tensor) -> Tensor:
    """Fetch every pixel from where an affine map points to: bilinear, mirrored without repeating the edge pixel.

    Args:
        planes: [b, c, h, w], float64.
        sources: as `inverse_affine` gives them.

    Returns:
        [b, c, h, w].
    """
    height, width = planes.shape[2:]
    x, y = (torch.arange(n, dtype=torch.float64, device=planes.device) for n in (width, height))
    # torch counts from -1 at the middle of the first pixel to 1 at the middle of the last.
    unit = sources.new_tensor([2 / max(1, width - 1), 2 / max(1, height - 1)])
    along, down, shift = (sources * unit[:, None]).unbind(2)
    grid = along[:, :, None, None] * x + (down[:, :, None] * y + (shift - 1)[:, :, None])[..., None]
    return grid_sample(planes, grid.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=True)


def displace(planes: Tensor, directions: Tensor, *, alpha: float) -> Tensor:
    """Fetch every pixel from alpha * direction away: bilinear, mirrored with the edge pixel repeated.

    Args:
        planes: [b, c, h, w], float64.
        directions: along the width, then along the height, [b, 2, h, w].
        alpha: pixels per unit of the directions.

    Returns:
        [b, c, h, w].
    """
    height, width = planes.shape[2:]
    x, y = (torch.arange(n, dtype=torch.float64, device=planes.device) for n in (width, height))
    # torch counts from -1 at the first pixel's outer side to 1 at the last one's.
    grid = torch.empty_like(directions)
    torch.add((2 * x + 1) / width - 1, directions[:, 0], alpha=2 * alpha / width, out=grid[:, 0])
    torch.add(((2 * y + 1) / height - 1)[:, None], directions[:, 1], alpha=2 * alpha / height, out=grid[:, 1])
    return grid_sample(planes, grid.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)


def smooth(planes: Tensor, sigma: float) -> Tensor:
    """Gaussian of any width, cut off at three standard deviations, the plane mirrored with its edge values repeated.

    Matrix products with the border rule in the matrix: the effort has a limit however wide the Gaussian is.

    Args:
        planes: float64 [k, h, w].
        sigma: standard deviation in pixels, above 0.

    Returns:
        float64 [k, h, w].
    """
    height, width = planes.shape[1:]
    along = torch.empty_like(planes)
    for rows, near, weights in _bands(width, sigma):
        torch.mm(planes.view(-1, width)[:, near], weights.to(planes.device).T, out=along.view(-1, width)[:, rows])
    both = torch.empty_like(planes)
    for rows, near, weights in _bands(height, sigma):
        both[:, rows] = torch.matmul(weights.to(planes.device), along[:, near])
    return both


@lru_cache(maxsize=32)
def _bands(n: int, sigma: float) -> tuple[tuple[slice, slice, Tensor], ...]:
    """The matrix that smooths a line of n values, as (rows, columns, float64 weights), zeros at the sides left out."""
    radius = int(3 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    place = (np.arange(n)[:, None] + np.arange(-radius, radius + 1)) % (2 * n)
    place = np.minimum(place, 2 * n - 1 - place)
    step = _BLOCK if 2 * radius + _BLOCK < n // 2 else n
    bands = []
    for first in range(0, n, step):
        last = min(n, first + step)
        columns = slice(int(place[first:last].min()), int(place[first:last].max()) + 1)
        block = np.zeros((last - first, n))
        np.add.at(block, (np.arange(last - first)[:, None], place[first:last]), weights)
        bands.append((slice(first, last), columns, torch.from_numpy(block[:, columns].copy())))
    return tuple(bands)
