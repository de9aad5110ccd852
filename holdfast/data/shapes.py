"""Outlines and textures of the drawn objects, as functions of the object's own coordinates (its radius is 1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

# -- shapes: signed distances in the object's own unit, its radius; negative inside ------------------------------------


def _disk(u: Array, v: Array) -> Array:
    found: Array = np.hypot(u, v) - np.float32(0.85)
    return found


def _square(u: Array, v: Array) -> Array:
    found: Array = np.maximum(np.abs(u), np.abs(v)) - np.float32(0.75)
    return found


def _triangle(u: Array, v: Array) -> Array:
    found: Array = np.maximum(np.abs(u) * np.float32(math.sqrt(0.75)) - 0.5 * v, v) - np.float32(0.5)
    return found


def _cross(u: Array, v: Array) -> Array:
    a, b = np.abs(u), np.abs(v)
    found: Array = np.maximum(np.maximum(a, b) - np.float32(1), np.minimum(a, b) - np.float32(0.3))
    return found


def _ring(u: Array, v: Array) -> Array:
    found: Array = np.abs(np.hypot(u, v) - np.float32(0.75)) - np.float32(0.22)
    return found


def _star(u: Array, v: Array) -> Array:
    """Five points: folded into half a tenth of the circle, the edge is one line from the tip to the inner corner."""
    sector = math.tau / 5
    angle = np.abs(np.remainder(np.arctan2(v, u), np.float32(sector)) - np.float32(sector / 2))
    angle = np.float32(sector / 2) - angle
    r = np.hypot(u, v)
    inner = np.array([math.cos(sector / 2), math.sin(sector / 2)]) * 0.42
    normal = np.array([inner[1], 1 - inner[0]]) / math.hypot(inner[1], 1 - inner[0])
    edge = (r * np.cos(angle) - 1) * np.float32(normal[0]) + r * np.sin(angle) * np.float32(normal[1])
    found: Array = edge.astype(np.float32)
    return found


def _crescent(u: Array, v: Array) -> Array:
    found: Array = np.maximum(np.hypot(u, v) - np.float32(0.95), np.float32(0.72) - np.hypot(u - np.float32(0.5), v))
    return found


def _hourglass(u: Array, v: Array) -> Array:
    a, b = np.abs(u), np.abs(v)
    found: Array = np.maximum((a - b) * np.float32(math.sqrt(0.5)) - np.float32(0.1), b - np.float32(0.8))
    return found


SHAPES: tuple[Callable[[Array, Array], Array], ...] = (
    _disk,
    _square,
    _triangle,
    _cross,
    _ring,
    _star,
    _crescent,
    _hourglass,
)


# -- textures in [-1, 1], in the object's own unit; f stretches them, phases are fixed by the object's place ----------


def _stripes(u: Array, v: Array, f: float) -> Array:
    found: Array = np.sin(np.float32(9 * f) * u)
    return found


def _checks(u: Array, v: Array, f: float) -> Array:
    found: Array = np.tanh(4 * np.sin(np.float32(7 * f) * u) * np.sin(np.float32(7 * f) * v))
    return found


def _dots(u: Array, v: Array, f: float) -> Array:
    found: Array = np.tanh(3 * (np.cos(np.float32(8 * f) * u) + np.cos(np.float32(8 * f) * v) - 0.7))
    return found


def _zigzag(u: Array, v: Array, f: float) -> Array:
    found: Array = np.sin(np.float32(8 * f) * (v + np.float32(0.6) * np.abs(np.remainder(2 * u, 2) - 1)))
    return found


def _rings(u: Array, v: Array, f: float) -> Array:
    found: Array = np.sin(np.float32(12 * f) * np.hypot(u, v))
    return found


def _spokes(u: Array, v: Array, f: float) -> Array:
    found: Array = np.sin(np.float32(6) * np.arctan2(v, u))
    return found


def _ramp(u: Array, v: Array, f: float) -> Array:
    found: Array = np.clip(np.float32(1.2 * f) * v, -1, 1)
    return found


def _even(u: Array, v: Array, f: float) -> Array:
    found: Array = np.full_like(u, 1 - f)
    return found


TEXTURES: tuple[Callable[[Array, Array, float], Array], ...] = (
    _checks,
    _stripes,
    _even,
    _ramp,
    _dots,
    _spokes,
    _zigzag,
    _rings,
)
