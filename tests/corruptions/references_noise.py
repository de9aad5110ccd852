"""Noise again, one image at a time in NumPy and SciPy, from the definition alone: see `corruption_references`."""

def gaussian_noise(x, scale, normals):
    return x + scale * normals
