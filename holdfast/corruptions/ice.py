"""Drawn pictures of frost, for those who have not the ones of ImageNet-C.

Clouds, creases and crystals, mixed so that mean, deviation and grain of each picture are about those of a published
one. All numbers come from one keyed generator per picture; shapes are drawn, and sizes changed, in 8 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from holdfast import draws

Plane = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """What one picture shows.

    Attributes:
        size: height and width in pixels.
        mean: of red, green and blue.
        deviation: of red, green and blue.
        clouds: weight of slow changes of brightness.
        creases: weight of the slopes of a crumpled sheet.
        crystals: weight of the crystals.
        count: of crystals.
        length: of a crystal in pixels, from and to.
        width: of a crystal, as a share of its length.
        barbs: pixels between the barbs of a feather; 0 = a plain needle.
        tint: weight of slow changes of colour.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    clouds: float
    creases: float
    crystals: float = 0
    count: int = 0
    length: tuple[float, float] = (0, 0)
    width: float = 0
    barbs: float = 0
    tint: float = 0


_NEEDLES = Look(
    (315, 560),
    (201, 205, 214),
    (21, 22, 23),
    clouds=0.9,
    creases=0.3,
    crystals=0.7,
    count=3500,
    length=(8, 50),
    width=0.05,
)
LOOKS = (
    Look((600, 900), (78, 149, 166), (27, 17, 15), clouds=1, creases=0.8, tint=1.2),
    _NEEDLES,
    _NEEDLES,
    Look(
        (350, 527),
        (138, 153, 165),
        (28, 28, 30),
        0.8,
        0.4,
        crystals=0.75,
        count=7000,
        length=(3, 16),
        width=0.12,
        barbs=1.5,
    ),
    Look(
        (495, 660),
        (112, 123, 135),
        (44, 43, 42),
        1,
        0.2,
        crystals=0.75,
        count=5000,
        length=(10, 34),
        width=0.11,
        barbs=2,
    ),
)


def painted(number: int) -> npt.NDArray[np.uint8]:
    """One of the pictures, always the same.

    Args:
        number: which of `LOOKS`.

    Returns:
        uint8 [h, w, 3].
    """
    look = LOOKS[number]
    random = draws.numpy_generator("frost", number)
    grey = look.clouds * _unit(_clouds(random, look.size, (256, 128, 64, 32, 16)))
    grey += look.creases * _unit(_creases(random, look.size))
    if look.count:
        grey += look.crystals * _unit(_crystals(random, look))
    tint = look.tint * _unit(_clouds(random, look.size, (200, 100)))
    shares = zip((1, 0.2, 0), look.mean, look.deviation)  # of the tint in red, green and blue
    planes = [mean + deviation * _unit(_unit(grey) + share * tint) for share, mean, deviation in shares]
    return np.stack(planes, -1).round().clip(0, 255).astype(np.uint8)


def _unit(plane: Plane) -> Plane:
    result: Plane = (plane - plane.mean()) / plane.std()
    return result


def _clouds(random: np.random.Generator, size: tuple[int, int], cells: tuple[int, ...], fall: float = 0.6) -> Plane:
    """Random values on grids of these cell sizes, interpolated; each grid `fall` times as strong as the one before."""
    plane = np.zeros(size)
    for level, cell in enumerate(cells):
        coarse = random.integers(0, 256, (size[0] // cell + 2, size[1] // cell + 2), dtype=np.uint8)
        fine = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
        plane += fall**level * (np.asarray(fine) / 127.5 - 1)
    return plane


def _creases(random: np.random.Generator, size: tuple[int, int]) -> Plane:
    """A crumpled sheet, lit from the upper left and pushed about."""
    margin = 30
    around = (size[0] + 2 * margin, size[1] + 2 * margin)
    sheet = np.zeros(around)
    for cell, weight in ((40, 1), (20, 0.7), (10, 0.5), (5, 0.35), (3, 0.3), (2, 0.3)):
        sheet += weight * np.abs(_clouds(random, around, (cell,)))
    lit = sheet - np.roll(sheet, (2, 2), (0, 1))
    down, along = (
        (14 * _clouds(random, size, (60, 30))).round().astype(int).clip(4 - margin, margin - 4) for _ in size
    )
    pushed: Plane = lit[np.arange(size[0])[:, None] + down + margin, np.arange(size[1]) + along + margin]
    return pushed


def _crystals(random: np.random.Generator, look: Look) -> Plane:
    """Needles or feathers, each with a facet in the shade, drawn at twice the size."""
    height, width = 2 * look.size[0], 2 * look.size[1]
    sheet = Image.new("L", (width, height), 128)
    pen = ImageDraw.Draw(sheet)
    shortest, longest = look.length
    for x, y, long, turn, bright, broad in random.random((look.count, 6)):
        length = 2 * (shortest + (longest - shortest) * long * long)
        dx, dy = length * math.cos(2 * math.pi * turn), length * math.sin(2 * math.pi * turn)
        arm, tone = look.width * (0.5 + broad), int(255 * bright**0.7)
        spot = _Frame(x * width, y * height, dx, dy)
        pen.polygon([spot(0, 0), spot(0.4, -arm), spot(1, 0), spot(0.4, 0)], fill=tone // 2)
        if look.barbs:
            pen.line(_feather(spot, arm, max(2, int(length / 2 / look.barbs))), fill=tone)
        else:
            pen.polygon([spot(0, 0), spot(0.4, arm), spot(1, 0), spot(0.4, 0)], fill=tone)
    return np.asarray(sheet.resize(look.size[::-1], Image.Resampling.BOX)) / 127.5 - 1


class _Frame(NamedTuple):
    """A crystal's own coordinates: along its axis and across it, in units of its length."""

    x: float
    y: float
    dx: float
    dy: float

    def __call__(self, along: float, across: float) -> tuple[float, float]:
        return self.x + along * self.dx - across * self.dy, self.y + along * self.dy + across * self.dx


def _feather(spot: _Frame, arm: float, count: int) -> list[tuple[float, float]]:
    """One line that runs along the axis and out to the tip of each barb and back."""
    path = []
    for i in range(count + 1):
        along = i / count
        reach = 2 * arm * (1 - along) * min(1, 3 * along + 0.3)
        foot, ahead = spot(along, 0), along + 0.6 * reach
        path += [foot, spot(ahead, reach), foot, spot(ahead, -reach), foot]
    return path
