"""Random views of images, a batch at a time and on any device: crop, flip, colour jitter, grey, blur, solarise.

The distribution is that of torchvision's transforms on PIL images (Chen et al., A Simple Framework for Contrastive
Learning of Visual Representations, ICML 2020, appendix A); only PIL's rounding after every operation is left out. All
numbers of one image and view come from one keyed block, so that a view depends on its key alone and never on its
neighbours in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from holdfast import draws
from holdfast.errors import ConfigError

_TRIES = 10
_COLOUR = 2 * _TRIES + 2
_BLOCK = 40
_CHUNK = 64
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


@dataclass(frozen=True)
class Policy:
    """What is drawn for a view. Probabilities and factors have no unit; lengths are in pixels.

    Attributes:
        scale: share of the image's area that the crop covers.
        ratio: width by height of the crop, drawn uniformly in its logarithm.
        flip: probability of the horizontal mirror image.
        jitter: probability that the colours are changed, in a random order of the four changes.
        brightness: the factor is uniform in 1 +- this; so are contrast and saturation.
        contrast: see brightness.
        saturation: see brightness.
        hue: the turn is uniform in +- this; 1 is the full circle.
        grey: probability of the grey image.
        blur: probability of a Gaussian blur.
        sigma: its standard deviation.
        solarise: probability that values from 128 / 255 on are inverted.
        pad: a crop of the image's own size is cut from the image with so many black pixels around it, instead of one of
            a random area; `scale` and `ratio` are not read then.
        size: side of the view; 0 = the height and width of the image.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    pad: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        chances = (self.flip, self.jitter, self.grey, self.blur, self.solarise)
        ranges = (self.scale, self.ratio, self.sigma)
        if not all(0 <= p <= 1 for p in chances) or not all(0 < low <= high for low, high in ranges):
            raise ConfigError(
                f"{self} is no distribution.", next="Probabilities are in [0, 1], ranges positive and ascending."
            )
        if self.scale[1] > 1 or not 0 <= self.hue <= 0.5 or min(self.size, self.pad) < 0:
            raise ConfigError(
                f"{self} is no distribution.", next="scale ends at 1, hue at 0.5; lengths are not negative."
            )


SIMCLR_CIFAR = Policy()
SIMCLR_IMAGENET = Policy(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)
EMP = Policy(hue=0.2, blur=0.1, solarise=0.1)
"""EMP-SSL's (Tong et al. 2023), of images of 32 pixels."""


def view(pixels: Tensor, keys: Tensor, policy: Policy, *parts: str | int) -> Tensor:
    """One random view of each image.

    Args:
        pixels: float32 [b, 3, h, w] in [0, 1].
        keys: the row `key`, int64 [b]; a view depends on its image, its key, `policy` and `parts` alone.
        policy: what is drawn.
        parts: what this view is for: "first", 2...

    Returns:
        float32 [b, 3, s, s] in [0, 1] on the device of `pixels` (h and w where `policy.size` is 0).
    """
    numbers = draws.uniform(keys.cpu(), (_BLOCK,), "view", *parts).double()
    chunk = _CHUNK if pixels.device.type == "cpu" else max(1, len(pixels))
    made = [_view(x, u, policy) for x, u in zip(torch.split(pixels, chunk), torch.split(numbers, chunk))]
    return torch.cat(made) if made else pixels


def _view(x: Tensor, u: Tensor, policy: Policy) -> Tensor:
    """`view` of few images, from their uniforms float64 [b, 40] on the CPU."""
    high, wide = x.shape[-2:]
    colour = u[:, _COLOUR:]
    if policy.pad:
        x, boxes = pad(x, (policy.pad,) * 4), _shifts(u, (high, wide), policy.pad)
    else:
        boxes = crop_boxes(u[:, :_COLOUR], (high, wide), policy)
    x = resized_crop(
        x,
        boxes,
        (policy.size or high, policy.size or wide),
        mirrored=colour[:, 0] < policy.flip,
    )
    x = jitter(x, colour[:, 1:10], policy)
    x = _on(x, colour[:, 10] < policy.grey, lambda part, _: grey(part).expand_as(part))
    sigma = policy.sigma[0] + colour[:, 12] * (policy.sigma[1] - policy.sigma[0])
    x = _on(x, colour[:, 11] < policy.blur, lambda part, rows: blur(part, sigma[rows], policy.sigma[1]))
    return _on(x, colour[:, 13] < policy.solarise, lambda part, _: solarise(part))


def _on(x: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`x` with the chosen rows changed in place; the choice is made on the CPU, so that no device waits for it."""
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return x
    there = rows.to(x.device, non_blocking=True)
    return x.index_copy_(0, there, change(x.index_select(0, there), rows))


# -- crop and flip -----------------------------------------------------------------------------------------------------


def crop_boxes(u: Tensor, size: tuple[int, int], policy: Policy) -> Tensor:
    """Boxes of random resized crops, as torchvision's `RandomResizedCrop.get_params` draws them.

    Ten tries at an area and a ratio; the first box that fits is placed uniformly; where none fits, the largest central
    box whose ratio is allowed.

    Args:
        u: uniforms in [0, 1), [b, 22].
        size: height and width of the images.
        policy: `scale` and `ratio` are read.

    Returns:
        int64 [b, 4]: top, left, height, width.
    """
    high, wide = size
    u = u.double()
    area = high * wide * (policy.scale[0] + u[:, :_TRIES] * (policy.scale[1] - policy.scale[0]))
    low, top = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    ratio = torch.exp(low + u[:, _TRIES : 2 * _TRIES] * (top - low))
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= wide) & (h > 0) & (h <= high)
    first = fits.byte().argmax(1, keepdim=True)
    h, w = h.gather(1, first).squeeze(1), w.gather(1, first).squeeze(1)
    i = (u[:, 2 * _TRIES] * (high - h + 1)).floor()
    j = (u[:, 2 * _TRIES + 1] * (wide - w + 1)).floor()
    drawn = torch.stack([i, j, h, w], 1).long()
    return torch.where(fits.any(1, keepdim=True), drawn, torch.tensor(_central(high, wide, policy.ratio)))


def _shifts(u: Tensor, size: tuple[int, int], by: int) -> Tensor:
    """Boxes of the image's own size within the image padded by so many pixels, uniform over all of them."""
    places = (u[:, 2 * _TRIES : 2 * _TRIES + 2] * (2 * by + 1)).long()
    return torch.cat([places, torch.tensor([size]).expand(len(u), 2)], 1)


def _central(high: int, wide: int, ratio: tuple[float, float]) -> list[int]:
    h, w = high, wide
    if wide / high < ratio[0]:
        h = min(high, round(wide / ratio[0]))
    elif wide / high > ratio[1]:
        w = min(wide, round(high * ratio[1]))
    return [(high - h) // 2, (wide - w) // 2, h, w]


def resized_crop(x: Tensor, boxes: Tensor, size: tuple[int, int], *, mirrored: Tensor | None = None) -> Tensor:
    """Crop each image to its own box and resize it bilinearly, with PIL's antialiasing; the same to one grey level.

    Two batched matrix products with one matrix per image and axis. Their weights end at the edge of the box, so that no
    pixel outside the box is seen.

    Args:
        x: [b, c, h, w].
        boxes: int64 [b, 4]: top, left, height, width.
        size: height and width of the result.
        mirrored: bool [b]: which results are flipped from left to right.

    Returns:
        [b, c, *size].
    """
    b, c, high, wide = x.shape
    top, left, tall, broad = boxes.to(x, non_blocking=True).unbind(1)
    rows, columns = _weights(top, tall, high, size[0]), _weights(left, broad, wide, size[1])
    if mirrored is not None:
        columns = torch.where(mirrored.to(x.device, non_blocking=True).view(-1, 1, 1), columns.flip(1), columns)
    across = torch.bmm(x.reshape(b, c * high, wide), columns.transpose(1, 2))
    down = torch.matmul(rows.unsqueeze(1), across.view(b, c, high, size[1]))
    return down.clamp_(0, 1)


def _weights(start: Tensor, length: Tensor, n: int, out: int) -> Tensor:
    """PIL's bilinear weights [b, out, n] from the pixels start..start+length-1 to `out`; every row sums to one."""
    stretch = (length / out).view(-1, 1, 1)
    support = stretch.clamp_min(1.0)
    centre = (torch.arange(out, device=start.device) + 0.5).view(1, -1, 1) * stretch
    place = torch.arange(n, device=start.device).view(1, 1, -1) - start.view(-1, 1, 1)
    weight = (1 - ((place + 0.5 - centre) / support).abs()).clamp_min(0)
    weight = weight * ((place >= 0) & (place < length.view(-1, 1, 1)))
    return weight / weight.sum(2, keepdim=True)


# -- colours -----------------------------------------------------------------------------------------------------------


def grey(x: Tensor) -> Tensor:
    """Luma of ITU-R 601, [b, 1, h, w], from [b, 3, h, w] in [0, 1]."""
    return (0.299 * x[:, :1]).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:], alpha=0.114)


def jitter(x: Tensor, u: Tensor, policy: Policy) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image in an order of its own.

    Every image passes four turns; in each one, the images are divided among the four changes.

    Args:
        x: [b, 3, h, w] in [0, 1]; changed in place.
        u: uniforms in [0, 1), [b, 9], on the CPU: whether, the order (4), the factors (4).
        policy: `jitter`, `brightness`, `contrast`, `saturation` and `hue` are read.

    Returns:
        `x`.
    """
    chosen = u[:, 0] < policy.jitter
    order = u[:, 1:5].argsort(1)
    strength = torch.tensor([policy.brightness, policy.contrast, policy.saturation, policy.hue], dtype=torch.float64)
    factors = (1 + strength * (2 * u[:, 5:9] - 1)).clamp_min(0)
    factors[:, _HUE] = policy.hue * (2 * u[:, 8] - 1)
    for turn in range(4):
        for kind, change in ((_BRIGHTNESS, brighten), (_CONTRAST, contrast), (_SATURATION, saturate), (_HUE, turn_hue)):
            if strength[kind] > 0:
                x = _on(x, chosen & (order[:, turn] == kind), _by(change, factors[:, kind]))
    return x


def _by(change: Callable[[Tensor, Tensor], Tensor], factors: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda part, rows: change(part, factors[rows].to(part, non_blocking=True).view(-1, 1, 1, 1))


def brighten(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor, clamped; x [b, 3, h, w] in [0, 1], factor [b, 1, 1, 1]."""
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean of the image's grey; arguments as `brighten`."""
    mean = grey(x).mean((2, 3), keepdim=True)
    return torch.addcmul(mean * (1 - factor), x, factor).clamp_(0, 1)


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image; arguments as `brighten`."""
    return torch.addcmul(grey(x) * (1 - factor), x, factor).clamp_(0, 1)


def turn_hue(x: Tensor, by: Tensor) -> Tensor:
    """Turn the hue of HSV; `by` [b, 1, 1, 1] in turns of the circle, x [b, 3, h, w] in [0, 1]."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - low
    scale = 1 / chroma.clamp_min(1e-12)
    r, g, b = x[:, :1], x[:, 1:2], x[:, 2:]
    sixth = torch.where(value == r, (g - b) * scale, torch.where(value == g, (b - r) * scale + 2, (r - g) * scale + 4))
    sixth = sixth + 6 * by
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = torch.remainder(sixth + n, 6.0)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.cat(channels, 1)


def solarise(x: Tensor) -> Tensor:
    """Values from 128 / 255 on are inverted."""
    return torch.where(x >= 128 / 255, 1 - x, x)


def blur(x: Tensor, sigma: Tensor, widest: float) -> Tensor:
    """Gaussian blur with the edge pixels repeated, as two matrix products with one matrix per image.

    Args:
        x: [b, c, h, w].
        sigma: standard deviations in pixels, [b].
        widest: the largest that `sigma` can be; the kernel ends at three times it.

    Returns:
        [b, c, h, w].
    """
    there = sigma.to(x, non_blocking=True)
    rows, columns = (_gaussian(there, widest, n).unsqueeze(1) for n in x.shape[-2:])
    return torch.matmul(torch.matmul(rows, x), columns.transpose(2, 3))


def _gaussian(sigma: Tensor, widest: float, n: int) -> Tensor:
    """Matrices [b, n, n] of the blur of n pixels; what falls beside the image is added to its edge."""
    radius = math.ceil(3 * widest)
    place = torch.arange(-radius, n + radius, device=sigma.device)
    offset = place.view(1, 1, -1) - place[radius : radius + n].view(1, -1, 1)
    weight = torch.exp(-0.5 * (offset / sigma.view(-1, 1, 1)) ** 2) * (offset.abs() <= radius)
    weight = weight / weight.sum(2, keepdim=True)
    inside = weight[:, :, radius : radius + n].clone()
    inside[:, :, 0] += weight[:, :, :radius].sum(2)
    inside[:, :, -1] += weight[:, :, radius + n :].sum(2)
    return inside


# -- n crops for evaluation --------------------------------------------------------------------------------------------

MULTICROPS: dict[str, Policy] = {"crops": EMP, "patches": replace(EMP, scale=(0.25, 0.25), ratio=(1.0, 1.0))}
"""What a view is where n of them are averaged, by the word before an encoder: `crops:16:runs/a`. Colours change too."""
MOST = 1024


def worded(text: str) -> tuple[str, str]:
    """The words before an encoder or images, and what follows: ("crops:16:", "runs/a"), ("crops:16:apart:", "runs/a").

    Returns:
        ("", text) where there are none.

    Raises:
        ConfigError: no number of crops, or nothing behind it.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in MULTICROPS:
        return "", text
    count, _, inner = rest.partition(":")
    if not count.isdecimal() or not 1 <= int(count) <= MOST or not inner:
        raise ConfigError(f'"{text}" says no number of crops (1 to {MOST}), or not of what.', next=f"{kind}:16:runs/a")
    apart, colon, behind = inner.partition(":")
    if apart == "apart" and colon and behind:
        return f"{kind}:{count}:apart:", behind
    return f"{kind}:{count}:", inner


def crop_of(pixels: Tensor, kind: str, number: int) -> Tensor:
    """View `number` of images, the same for every image: drawn by its number alone.

    Args:
        pixels: float32 [b, 3, h, w] in [0, 1].
        kind: a key of `MULTICROPS`.
        number: 0 for the first.

    Returns:
        [b, 3, h, w] in [0, 1], differentiable.
    """
    key = torch.tensor([draws.key("multicrop", kind, number)]).expand(len(pixels))
    return view(pixels, key, MULTICROPS[kind], "multicrop")
