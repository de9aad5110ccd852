"""Noise again, one image at a time in NumPy and SciPy, from the definition alone: see `corruption_references`."""

import numpy as np
from scipy import stats


def gaussian_noise(x, scale, normals):
    return x + scale * normals


def speckle_noise(x, scale, normals):
    return x + x * (scale * normals)


def shot_noise(x, photons, words):
    """Level by level: how many of the chances that SciPy gives lie below the uniform number."""
    u = uniform(words)
    counts = np.zeros(x.shape)
    for value in np.unique(x):
        chances = stats.poisson.cdf(np.arange(photons), value * photons)
        counts[x == value] = np.searchsorted(chances, u[x == value])
    return counts / float(photons)


def impulse_noise(x, share, words):
    u = uniform(words)
    out = x.copy()
    out[u <= share] = 0
    out[u <= share / 2] = 1
    return out


def uniform(words):
    """The middle of the word's part of [0, 1]: 65,536 parts, of which -32768 is the first."""
    return (words.astype(np.float64) + 32768.5) / 65536
