"""Weather again, one image at a time in NumPy and SciPy, from the definition alone: see `corruption_references`."""

import numpy as np


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
