"""Elastic transformation again, one image at a time in NumPy and SciPy, from the definition alone: see
`corruption_references`."""

import numpy as np
from scipy import ndimage


def elastic_transform(x, alpha, sigma, reach, uniforms):
    height, width = x.shape[:2]
    signed = 2 * uniforms - 1
    x = warp_by_scipy(x, forward_affine(signed[:6].reshape(3, 2) * reach, height, width))
    noise = signed[6:].reshape(2, height, width)
    if alpha == 0:
        return x
    dx, dy = (ndimage.gaussian_filter(n, sigma, mode="reflect", truncate=3) * alpha for n in noise)
    return displace_by_scipy(x, dx, dy)


def triangle(height, width):
    arm = max(1, min(height, width) // 3)
    middle = np.array([width // 2, height // 2], float)
    return middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])


def forward_affine(offsets, height, width):
    """The 2 x 3 matrix that takes the triangle to its moved corners, by a linear system of six equations."""
    before = triangle(height, width)
    system, after = np.zeros((6, 6)), (before + offsets).ravel()
    for i, (x, y) in enumerate(before):
        system[2 * i, :3] = system[2 * i + 1, 3:] = x, y, 1
    return np.linalg.solve(system, after).reshape(2, 3)


def warp_by_scipy(x, forward):
    height, width = x.shape[:2]
    backward = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
    rows, columns = np.mgrid[:height, :width]
    column, row, _ = np.tensordot(backward, np.stack([columns, rows, np.ones_like(rows)]), 1)
    return sampled(x, row, column, "mirror")


def displace_by_scipy(x, dx, dy):
    rows, columns = np.mgrid[: x.shape[0], : x.shape[1]]
    return sampled(x, rows + dy, columns + dx, "reflect")


def sampled(x, row, column, mode):
    """Stored in single precision like the published images: what is a whole level exactly stays one."""
    planes = [ndimage.map_coordinates(x[..., c], [row, column], order=1, mode=mode) for c in range(3)]
    return np.stack(planes, -1).astype(np.float32).astype(np.float64)
