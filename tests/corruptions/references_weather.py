"""Weather again, one image at a time in NumPy and SciPy, from the definition alone: see `corruption_references`."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import ndimage

from holdfast.corruptions.frost import draw_textures

MUD, WATER = np.array([63, 42, 20]) / 255, np.array([175, 238, 238]) / 255


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


def frost(image, kept, laid, factor, uniforms):
    """With the drawn textures; on levels."""
    height, width = image.shape[:2]
    texture = shrunk(draw_textures()[int(5 * uniforms[0])].numpy(), factor)
    top, left = (int(u * (n - m)) for u, n, m in zip(uniforms[1:], texture.shape, (height, width), strict=False))
    crop = texture[top : top + height, left : left + width]
    return np.clip(kept * image.astype(float) + laid * crop.astype(float), 0, 255).astype(np.uint8)


def shrunk(texture, factor):
    """OpenCV's bilinear shrinking without smoothing, in its whole numbers, line by line."""
    if factor == 1:
        return texture
    if factor == 0.2:
        return texture[2::5, 2::5]
    table = texture.astype(int)
    columns = [near * table[:, i] + far * table[:, i + 1] >> 4 for i, near, far in taps(texture.shape[1], factor)]
    table = np.stack(columns, 1)
    rows = [(near * table[i] >> 16) + (far * table[i + 1] >> 16) for i, near, far in taps(texture.shape[0], factor)]
    return (np.stack(rows) + 2 >> 2).astype(np.uint8)


def taps(n, factor):
    """(first pixel, its weight, the next one's) at every new place; the new pixels' middles in the old ones' units."""
    share = Fraction(str(factor))
    for i in range(round(n * factor)):
        place = Fraction(2 * i + 1, 2) / share - Fraction(1, 2)
        far = round((place - int(place)) * 2048)
        yield int(place), 2048 - far, far


def spatter(x, mean, deviation, sigma, threshold, strength, mud, normals):  # parameters: of a severity
    amount = ndimage.gaussian_filter(mean + deviation * normals, sigma, mode="nearest", truncate=4)
    if mud:
        cover = ndimage.gaussian_filter((amount > threshold).astype(float), strength, mode="nearest", truncate=4)
        cover = np.where(cover < 0.8, 0, cover).astype(np.float32)[..., None].astype(float)
        return x * (1 - cover) + cover * MUD
    liquid = (np.where(amount < threshold, 0, amount) * 255).astype(np.uint8)
    thickness = liquid * relief(liquid)
    if thickness.max() == 0:
        return x
    return x + (thickness / thickness.max() * strength)[..., None] * WATER


def relief(liquid):
    """OpenCV finds outlines and distances; the rest is written out, in whole numbers as it is there."""
    cv2 = pytest.importorskip("cv2")
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    near = (boxed(np.minimum(distance, 20)) * (1 / 9)).astype(np.float32).astype(np.uint8)
    counts = np.bincount(near.ravel(), minlength=256)
    first = near.min()
    spread = (np.cumsum(counts) - counts[first]).clip(0) * np.float32(255 / max(1, near.size - counts[first]))
    flat = near if counts[first] == near.size else np.rint(spread)[near]
    emboss = [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]
    raised = ndimage.correlate(flat.astype(float), np.array(emboss, float), mode="mirror").clip(0, 255)
    return np.rint(boxed(raised) / 9)


def boxed(plane):
    return ndimage.correlate(plane.astype(float), np.ones((3, 3)), mode="mirror")
