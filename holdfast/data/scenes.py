"""Drawn scenes with class, mask and depth: for the demo, the tests and CI, with no file to fetch.

A scene is a textured object of one of eight shapes before a blotched, tilted background, sometimes between a blob
behind it and a bar or blob before it, under light from one side. It is a pure function of (seed, split, index, side):
its layout is drawn first and in units of the image's side, so that the same scene looks the same at 32 and at 224
pixels; only the camera's noise, drawn last, is per pixel. A class has one shape and one texture; position, scale, lean,
both colours, their contrast's sign and the light say nothing about it. A linear probe on raw pixels at 32 px finds 25
to 31 % of the classes (2,000 to 4,000 scenes to fit on, 1,000 to test; chance is 12.5 %).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

from holdfast import draws
from holdfast.data.batches import Image, Source, fingerprint
from holdfast.data.shapes import SHAPES, TEXTURES, Array
from holdfast.errors import DataError, nearest
from holdfast.records import Data

Rng = np.random.Generator

CLASSES = ("disk", "square", "triangle", "cross", "ring", "star", "crescent", "hourglass")
SPLITS = ("train", "val", "test")
SIDE = 32
COUNT = 1000
MAX_DEPTH = 10.0

_SMALLEST = 8
_CAMERA_NOISE = 0.015
_CALM = 0.25  # of the background's two colours, how far apart they are left
_TURN = 0.45  # radians that an object leans to either side
_CLUTTER = (0.8, 0.2)  # probabilities of no blob behind the object, and of one
_OCCLUDED = (0.6, 0.4)  # probabilities of nothing before it, and of one bar or blob
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Scenes(Source):
    """Scenes chosen by a `Data` record: `limit` of them (0 = 1000), `size` pixels wide and high (0 = `resize`, or 32).

    `read(i).truth` holds "label"; "mask" uint8 [h, w], the label + 1 where the object is visible and 0 elsewhere
    (background, clutter and occluders alike); "depth" float32 [h, w] in metres, > 0, of the nearest surface. Both are
    of the pixel's centre. `parts` are "background" and the classes; `max_depth` is 10 m. `data.subset` changes nothing:
    all scenes are drawn. With `data.classes`, scenes of other classes are passed over, so that an id names one scene
    whatever was chosen. Classes are balanced to within one.

    Raises:
        DataError: an unknown split or class, a class named twice, a size that cannot be drawn, or other scenes than the
            digest says.
    """

    def __init__(self, data: Data) -> None:
        if data.split not in SPLITS:
            raise DataError(f"Scenes have no split {data.split!r}.", next=nearest(data.split, SPLITS))
        self._side = _drawn_side(data)
        self.classes = _chosen_classes(data)
        self.parts, self.max_depth = ("background", *self.classes), MAX_DEPTH
        places = {CLASSES.index(name): label for label, name in enumerate(self.classes)}
        chosen = list(_stream(data.seed, data.split, set(places), data.limit or COUNT))
        self._indices = [index for index, _ in chosen]
        self.labels: list[int] = [places[shape] for _, shape in chosen]
        self.ids = [f"scenes/{data.split}/{index:06d}" for index in self._indices]
        digest = fingerprint(self.ids, self.labels)
        if data.digest_of_images not in ("", digest):
            raise DataError(
                f"These scenes have the digest {digest[:12]}.",
                asked=f"The record names the scenes {data.digest_of_images[:12]}.",
                next="Leave digest_of_images empty, or start anew in another --out.",
            )
        self.data = msgspec.structs.replace(data, digest_of_images=digest)

    def read(self, i: int) -> Image:
        """Scene number i."""
        kept = _kept if self._side <= SIDE else draw
        image = kept(self.data.seed, self.data.split, self._indices[i], side=self._side)
        size = self.data.size or self._side
        crop = slice((self._side - size) // 2, (self._side - size) // 2 + size)
        label = self.labels[i]
        mask = (np.asarray(image.truth["mask"]) > 0).astype(np.uint8) * np.uint8(label + 1)
        depth = np.asarray(image.truth["depth"])
        truth: dict[str, Any] = {"label": label, "mask": mask[crop, crop], "depth": depth[crop, crop].copy()}
        return Image(image.pixels[crop, crop].copy(), truth)


def class_of(seed: int, split: str, index: int) -> int:
    """Index into `CLASSES` of a scene: eight scenes that begin at a multiple of eight hold each class once."""
    block, place = divmod(index, len(CLASSES))
    return _block(seed, split, block)[place]


def draw(seed: int, split: str, index: int, *, side: int = SIDE) -> Image:
    """One scene.

    Args:
        seed: of the set.
        split: train, val or test.
        index: of the scene in its split, >= 0.
        side: height and width in pixels.

    Returns:
        Pixels uint8 [side, side, 3]; truth "label", "mask" and "depth" as in `Scenes`, labelled by `CLASSES`.
    """
    rng = draws.numpy_generator(seed, "scene", split, index)
    shape = class_of(seed, split, index)
    canvas, depth = _background(rng, side)
    back = float(canvas.mean())
    mask = np.zeros((side, side), np.uint8)
    light = _light(rng)
    for layer in (*_clutter(rng, side), _object(rng, side, shape, back, light), *_occluders(rng, side)):
        inside = layer.distance < 0
        if layer.shade > 0:
            canvas *= 1 - layer.shade * np.exp(-8 * np.maximum(layer.distance, 0))[..., None]
        cover = np.clip(0.5 - layer.distance * side, 0, 1)[..., None]
        canvas += cover * (layer.colour - canvas)
        depth[inside] = layer.depth[inside] if isinstance(layer.depth, np.ndarray) else layer.depth
        mask[inside] = layer.mask
    x, y = _grid(side)
    canvas *= (light.gain + light.x * x + light.y * y)[..., None] * light.tint
    canvas += rng.standard_normal(canvas.shape, np.float32) * np.float32(_CAMERA_NOISE)
    pixels = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return Image(pixels, {"label": shape, "mask": mask, "depth": depth})


_kept = functools.lru_cache(maxsize=4096)(draw)
"""Small scenes that were drawn, 33 MB at most: a recipe trains on them, fits heads on them and measures on them."""


# -- which scenes ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _block(seed: int, split: str, block: int) -> tuple[int, ...]:
    return tuple(draws.numpy_generator(seed, "scene classes", split, block).permutation(len(CLASSES)).tolist())


def _stream(seed: int, split: str, shapes: set[int], count: int) -> Iterator[tuple[int, int]]:
    """The first `count` scenes of these shapes: index and shape."""
    index = 0
    while count:
        shape = class_of(seed, split, index)
        if shape in shapes:
            yield index, shape
            count -= 1
        index += 1


def _drawn_side(data: Data) -> int:
    side = data.resize or data.size or SIDE
    if min(data.limit, data.size, data.resize) < 0 or side < max(_SMALLEST, data.size):
        raise DataError(
            f"limit {data.limit}, size {data.size}, resize {data.resize}: no such scenes can be drawn.",
            next=f"Use --size {SIDE}, any size from {_SMALLEST}, and --resize not under --size.",
        )
    return side


def _chosen_classes(data: Data) -> tuple[str, ...]:
    for i, name in enumerate(data.classes):
        if name not in CLASSES:
            raise DataError(f"Scenes have no class {name!r}.", next=nearest(name, CLASSES))
        if name in data.classes[:i]:
            raise DataError(f"Class {name!r} is named twice.", next="Name every class once: its place is its label.")
    return data.classes or CLASSES


# -- layers ------------------------------------------------------------------------------------------------------------


class _Layer(NamedTuple):
    """What is laid over the picture where `distance` (in sides, negative inside) says; `shade` darkens around it."""

    distance: Array
    colour: Array
    depth: Array | float
    mask: int = 0
    shade: float = 0.0


class _Light(NamedTuple):
    """Gain at the centre, its slope per side, the colour, and where it comes from (a unit vector)."""

    gain: float
    x: float
    y: float
    tint: Array
    towards: tuple[float, float]


def _light(rng: Rng) -> _Light:
    angle, slope = rng.uniform(0, math.tau), rng.uniform(0, 0.5)
    towards = (math.cos(angle), math.sin(angle))
    tint = (1 + rng.uniform(-0.1, 0.1, 3)).astype(np.float32)
    return _Light(rng.uniform(0.75, 1.1), slope * towards[0], slope * towards[1], tint, towards)


def _background(rng: Rng, side: int) -> tuple[Array, Array]:
    """A tilted plane 4 to 8 m away, blotched in two colours. Inverse depth is linear on it."""
    x, y = _grid(side)
    first, second = _colours(rng, 0.15)
    second = first + _CALM * (second - first)
    blotches = _blotches(rng, side, 5) + 0.5 * _blotches(rng, side, 9)
    mixed = 0.5 + 0.5 * np.clip(blotches, -1, 1)
    tilt = rng.uniform(-0.3, 0.3, 2)
    depth = rng.uniform(4, 8) / (1 + tilt[0] * x + tilt[1] * y)
    return first + mixed[..., None] * (second - first), depth.astype(np.float32)


def _clutter(rng: Rng, side: int) -> list[_Layer]:
    """In one scene of five a blob between the background and the object, 3 to 3.8 m away."""
    depths = sorted(rng.uniform(3, 3.8, int(rng.choice(2, p=_CLUTTER))), reverse=True)
    return [_Layer(_blob(rng, side, 0.05, 0.12), _plain(rng), z) for z in depths]


def _occluders(rng: Rng, side: int) -> list[_Layer]:
    """In two scenes of five a bar or blob before the object, 0.8 to 1.4 m away."""
    depths = sorted(rng.uniform(0.8, 1.4, int(rng.choice(2, p=_OCCLUDED))), reverse=True)
    kinds = [_bar if rng.random() < 0.5 else _blob for _ in depths]
    return [_Layer(kind(rng, side, 0.03, 0.07), _plain(rng), z, shade=0.2) for kind, z in zip(kinds, depths)]


def _object(rng: Rng, side: int, shape: int, back: float, light: _Light) -> _Layer:
    """The main object, 1.6 to 2.8 m away and bulging towards the camera by up to 0.2 m."""
    x, y = _grid(side)
    radius, turn = rng.uniform(0.4, 0.5), rng.uniform(-_TURN, _TURN)
    free = max(0.5 - 0.9 * radius, 0.02)
    px, py = x - rng.uniform(-free, free), y - rng.uniform(-free, free)
    c, s = math.cos(turn) / radius, math.sin(turn) / radius
    u, v = c * px + s * py, c * py - s * px
    local = SHAPES[shape](u, v)
    pattern = TEXTURES[shape](u, v, rng.uniform(0.85, 1.2)) * rng.uniform(0.6, 1.0)
    first, second = _colours(rng, 0.4, away_from=back)
    colour = first + (0.5 + 0.5 * pattern)[..., None] * (second - first)
    bevel = np.exp(-np.square(local / 0.25)) * 0.25
    facing = (px * light.towards[0] + py * light.towards[1]) / radius
    colour *= (1 + bevel * facing)[..., None]
    bulge = np.minimum(-local, 0.5).astype(np.float32)
    depth = rng.uniform(1.6, 2.8) - 0.4 * bulge
    return _Layer(local * np.float32(radius), colour, depth, mask=shape + 1, shade=rng.uniform(0, 0.4))


def _colours(rng: Rng, contrast: float, *, away_from: float | None = None) -> tuple[Array, Array]:
    """Two colours whose lumas differ by `contrast` at least, and whose mean luma is 0.15 at least from `away_from`."""
    while True:
        first, second = rng.uniform(0.1, 0.9, 2).tolist()
        far = away_from is None or abs((first + second) / 2 - away_from) >= 0.15
        if far and abs(first - second) >= contrast:
            return _colour(rng, first), _colour(rng, second)


def _colour(rng: Rng, luma: float) -> Array:
    """A colour of this luma, but for what is cut off at black and white."""
    drawn = rng.uniform(0, 1, 3).astype(np.float32)
    found: Array = np.clip(drawn + np.float32(luma - float((drawn * _LUMA).sum())), 0.02, 0.98)
    return found


def _plain(rng: Rng) -> Array:
    return _colour(rng, rng.uniform(0.1, 0.9))


def _blob(rng: Rng, side: int, low: float, high: float) -> Array:
    """An ellipse that is up to twice as long as wide, anywhere; `low` and `high` bound its shorter half axis."""
    x, y = _grid(side)
    place, turn = rng.uniform(-0.45, 0.45, 2), rng.uniform(0, math.pi)
    small = rng.uniform(low, high)
    c, s, stretch = math.cos(turn), math.sin(turn), rng.uniform(1, 2)
    u, v = c * (x - place[0]) + s * (y - place[1]), c * (y - place[1]) - s * (x - place[0])
    found: Array = np.hypot(u / stretch, v) - small
    return found


def _bar(rng: Rng, side: int, low: float, high: float) -> Array:
    """A bar across the whole picture, twice `low` to twice `high` wide."""
    x, y = _grid(side)
    turn, offset = rng.uniform(0, math.pi), rng.uniform(-0.35, 0.35)
    found: Array = np.abs(math.cos(turn) * x + math.sin(turn) * y - offset) - np.float32(rng.uniform(low, high))
    return found


@functools.lru_cache(maxsize=8)
def _grid(side: int) -> tuple[Array, Array]:
    """Pixel centres in units of the side, the middle of the picture at 0: x along the columns, y along the rows."""
    at = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    x, y = (np.ascontiguousarray(a) for a in np.meshgrid(at, at))
    return x, y


@functools.lru_cache(maxsize=32)
def _spread(side: int, n: int) -> Array:
    """Smooth interpolation [side, n] from n lattice points to pixels."""
    at = (np.arange(side) + 0.5) / side * (n - 1)
    left = np.minimum(at.astype(int), n - 2)
    t = at - left
    weight = t * t * (3 - 2 * t)
    matrix = np.zeros((side, n), np.float32)
    matrix[np.arange(side), left], matrix[np.arange(side), left + 1] = 1 - weight, weight
    return matrix


def _blotches(rng: Rng, side: int, n: int) -> Array:
    """Value noise in [-1, 1] from an n x n lattice."""
    spread = _spread(side, n)
    return spread @ rng.uniform(-1, 1, (n, n)).astype(np.float32) @ spread.T
