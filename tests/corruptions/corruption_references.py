"""The corruptions again, one image at a time in NumPy, SciPy, Pillow and Matplotlib, written from the definition alone.

`reference(name, image, parameters, field)` is what the tests compare with and what `benchmarks/corruptions.py` times.
Images are uint8 [h, w, 3]; a field is one row of `holdfast.corruptions.table.fields`, as float64.
"""

from __future__ import annotations

import io

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage, signal


def reference(name, image, parameters, field=None):
    """uint8 [h, w, 3]: clipped to [0, 1], times 255, truncated."""
    if name == "jpeg_compression":
        return jpeg_compression(image, *parameters)
    x = image / 255.0
    y = globals()[name](x, *parameters) if field is None else globals()[name](x, *parameters, np.float64(field))
    return (np.clip(y, 0, 1) * 255).astype(np.uint8)


def gaussian_noise(x, scale, normals):
    return x + scale * normals


def defocus_blur(x, radius, softening):
    kernel = disk(radius, softening)
    return np.stack([ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(3)], axis=-1)


def defocus_blur_by_fft(x, radius, softening):
    """The same in the way of OpenCV's large filters, many times faster: what a benchmark should be measured against."""
    kernel = disk(radius, softening)[..., None]
    arm = kernel.shape[0] // 2
    wide = np.pad(x, ((arm, arm), (arm, arm), (0, 0)), mode="reflect")
    return signal.fftconvolve(wide, kernel, mode="valid", axes=(0, 1))


def disk(radius, softening):
    """The whole grid, zeros included; SciPy's `mirror` is the border rule of the published code."""
    reach, arm = (8, 1) if radius <= 8 else (radius, 2)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (x**2 + y**2 <= radius**2).astype(float)
    kernel /= kernel.sum()
    weights = np.exp(-0.5 * (np.arange(-arm, arm + 1) / softening) ** 2)
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, weights / weights.sum(), axis=axis, mode="mirror")
    return kernel


def fog(x, thickness, decay, side, uniforms):
    height, width = x.shape[:2]
    while side < max(height, width):
        side *= 2
    layer = fog_map(uniforms, side, decay)[:height, :width, None]
    return (x + thickness * layer) * x.max() / (x.max() + thickness)


def fog_map(uniforms, side, decay):
    """The map on strided slices of one array, as fast as plain NumPy does it."""
    grid = np.zeros((side, side))
    step, wibble, used = side, 100.0, 0
    while step >= 2:
        half, count = step // 2, (side // step) ** 2
        noise = wibble * (2 * wibble * uniforms[used : used + 3 * count] - wibble)
        noise = noise.reshape(3, side // step, side // step)
        corners = grid[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        centres = (pairs + np.roll(pairs, -1, axis=1)) / 4 + noise[0]
        uppers = (corners + np.roll(corners, -1, axis=1) + centres + np.roll(centres, 1, axis=0)) / 4 + noise[1]
        lefts = (corners + np.roll(corners, -1, axis=0) + centres + np.roll(centres, 1, axis=1)) / 4 + noise[2]
        grid[half::step, half::step], grid[::step, half::step], grid[half::step, ::step] = centres, uppers, lefts
        step, wibble, used = half, wibble / decay, used + 3 * count
    grid -= grid.min()
    return grid / grid.max()


def fog_map_in_loops(uniforms, side, decay):
    """The map pixel by pixel: four neighbours at distance step / 2 around the torus, draws taken one after another."""
    grid, draws = np.zeros((side, side)), iter(uniforms)
    step, wibble = side, 100.0
    diagonal, straight = ((-1, -1), (-1, 1), (1, -1), (1, 1)), ((-1, 0), (1, 0), (0, -1), (0, 1))
    while step >= 2:
        half = step // 2
        for down, along, around in ((half, half, diagonal), (0, half, straight), (half, 0, straight)):
            for row in range(down, side, step):
                for column in range(along, side, step):
                    near = [grid[(row + half * dy) % side, (column + half * dx) % side] for dy, dx in around]
                    grid[row, column] = sum(near) / 4 + wibble * wibble * (2 * next(draws) - 1)
        step, wibble = half, wibble / decay
    assert next(draws, None) is None, "the map must use every draw"
    return (grid - grid.min()) / (grid.max() - grid.min())


def brightness(x, raised):
    hsv = rgb_to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + raised, 0, 1)
    return hsv_to_rgb(hsv)


def jpeg_compression(image, quality):
    """With Pillow's own choice of everything but the quality, as in the published code."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def photos(count, height, width):
    """uint8 [count, height, width, 3]: like photos, with swells of all sizes, an edge, burnt and black regions."""
    rng = np.random.Generator(np.random.PCG64(20))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    fall = 1 / np.maximum(np.hypot(y, x), 1 / max(height, width)) ** 1.2
    rows = []
    for _ in range(count):
        grey = np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) * fall).real
        tint = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, height, width))) * fall).real.transpose(1, 2, 0)
        picture = grey[..., None] / grey.std() + 0.4 * tint / tint.std()
        picture[height // 4 : height // 2, : width // 3] += 1.5
        rows.append(np.clip(110 + 60 * picture, 0, 255).astype(np.uint8))
    return np.stack(rows)
