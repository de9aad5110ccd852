"""Snow (Hendrycks and Dietterich 2019, arXiv 1903.12261)."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast import draws
from holdfast.corruptions.blur import TIE
from holdfast.corruptions.motion import streak
from holdfast.corruptions.zoom import middle, stretched

# (mean and standard deviation of the noise, its magnification, the value below which there is no flake, radius and
# standard deviation of the streaks in pixels, share of the image that is not bleached: whole hundredths)
SNOW: dict[str, tuple[tuple[float, ...], ...]] = {
    "imagenet224": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "cifar32": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
}
SNOW["tiny64"] = tuple((*p[:6], mix) for p, mix in zip(SNOW["cifar32"], (0.8, 0.8, 0.7, 0.65, 0.6), strict=True))
SNOW["inception299"] = SNOW["imagenet224"]

# Grey as OpenCV weighs it, red, green, blue, in thousandths.
_GREY = (299, 587, 114)


def draw_snow(
    keys: Tensor, shape: tuple[int, int], *, parameters: tuple[float, ...], parts: tuple[str | int, ...]
) -> Tensor:
    """The noise that the flakes are made of, and the direction of the wind.

    Of the published h * w numbers only the middle ceil(h / zoom) * ceil(w / zoom) are seen, so no others are drawn.

    Args:
        keys: the row `key`, int64 [b].
        shape: height and width of the images.
        parameters: of the severity; the third is the magnification.
        parts: seed, name and severity: what the draw is for.

    Returns:
        float32 [b, n + 1]: n = ceil(h / zoom) * ceil(w / zoom) standard normal numbers, row by row, and one that is
        uniform in [0, 1), where 0 stands for -135 degrees and 1 for -45.
    """
    rows, columns = (middle(n, parameters[2])[1] for n in shape)
    normals = draws.normal(keys, (rows * columns,), *parts, "flakes")
    return torch.cat((normals, draws.uniform(keys, (1,), *parts, "wind")), dim=1)


def snow(images: Tensor, parameters: tuple[float, ...], *, field: Tensor, mode: str) -> Tensor:
    """Bleach the image, and add the flakes and the flakes turned by half a circle.

    Bleached is mix * x + (1 - mix) * max(x, 1.5 * grey(x) + 0.5), pixels in [0, 1].

    Args:
        images: uint8 [b, h, w, 3].
        parameters: mean, deviation, magnification, threshold, radius and deviation of the streaks, mix.
        field: as `draw_snow` gives it.
        mode: reference works in float64; fast bleaches in whole numbers. The flakes are the same, but for the streak.

    Returns:
        Levels [b, h, w, 3]: float64, not clipped; in the fast mode uint8.
    """
    mix = parameters[6]
    flakes = _flakes(field, images.shape[1:3], parameters, mode)
    layer = flakes.to(torch.int32) + flakes.flip(1, 2)
    if mode == "reference":
        x = images.double() / 255
        grey = (x * torch.tensor(_GREY, dtype=x.dtype, device=x.device) / 1000).sum(3, keepdim=True)
        return (mix * x + (1 - mix) * torch.maximum(x, grey * 1.5 + 0.5) + layer[..., None] / 255) * 255 + TIE
    # In units of 1 / 200,000 of a level: 1.5 * grey is a whole number of two thousandths, the mix of hundredths.
    kept = round(100 * mix)
    planes = images.permute(0, 3, 1, 2).to(torch.int32, memory_format=torch.contiguous_format)
    bright = torch.full_like(planes[:, 0], 255_000)
    for plane, weight in zip(planes.unbind(1), _GREY, strict=True):
        bright.add_(plane, alpha=3 * weight)
    total = torch.maximum(planes.mul_(2000), bright[:, None]).mul_(100 - kept).add_(planes, alpha=kept)
    total.add_(layer[:, None], alpha=200_000).clamp_(max=255 * 200_000)
    return total.to(torch.float32).div_(200_000).to(torch.int32).to(torch.uint8).permute(0, 2, 3, 1)


def _flakes(field: Tensor, shape: torch.Size, parameters: tuple[float, ...], mode: str) -> Tensor:
    """The streaks, uint8 [b, h, w]. In float64 up to the threshold, which would show any rounding."""
    mean, deviation, zoom, threshold, radius, sigma, _ = parameters
    height, width = shape
    noise = field[:, :-1].double().reshape(-1, middle(height, zoom)[1], middle(width, zoom)[1]) * deviation + mean
    noise = stretched(stretched(noise, width, zoom, dim=2), height, zoom, dim=1)
    spots = torch.where(noise < threshold, 0.0, noise).clamp_(0, 1).mul_(255).to(torch.uint8)
    angles = [90 * u - 135 for u in field[:, -1].tolist()]
    return streak(spots[..., None], angles, radius=radius, sigma=sigma, mode=mode)[..., 0]
