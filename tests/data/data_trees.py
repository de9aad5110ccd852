"""Miniature data sets with the official names and encodings, and the truth that was written into them."""

from __future__ import annotations

import gzip
import importlib.resources
import json
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import dense_trees
import numpy as np
from PIL import Image
from scipy.io import savemat

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def folders(root: Path, counts: Mapping[str, int], *, size: int = 8) -> Path:
    """`folders(root, {"train/cat": 3})` writes three noise images into root/train/cat; 0 makes an empty folder."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            save(root / name / f"{i:04d}.png", noise(size, size, 3, seed=100 * number + i))
    return root


def cifar10(root: Path, per_batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Five training batches and a test batch; returns the test images uint8 [n, 32, 32, 3] and labels."""
    home = root / "cifar-10-batches-py"
    home.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for seed, name in enumerate(names):
        pixels, labels = noise(per_batch, 32, 32, 3, seed=seed), [(seed + i) % 10 for i in range(per_batch)]
        rows = pixels.transpose(0, 3, 1, 2).reshape(per_batch, -1)
        (home / name).write_bytes(pickle.dumps({b"data": rows, b"labels": labels}, protocol=2))
    (home / "batches.meta").write_bytes(pickle.dumps({b"label_names": [c.encode() for c in CIFAR10]}, protocol=2))
    return pixels, np.array(labels)


def cifar100(root: Path, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Written as Python 2 wrote the official file; returns the test images and fine labels."""
    home = root / "cifar-100-python"
    home.mkdir(parents=True)
    for seed, name in enumerate(("train", "test")):
        pixels, labels = noise(n, 32, 32, 3, seed=seed), np.arange(n) * 7 + seed
        (home / name).write_bytes(python2_pickle(pixels.transpose(0, 3, 1, 2).reshape(n, -1), labels.tolist()))
    (home / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"fine{i:02d}" for i in range(100)]}, protocol=2))
    return pixels, labels


def python2_pickle(rows: np.ndarray, labels: Sequence[int]) -> bytes:
    """{"fine_labels": labels, "data": rows} as cPickle of Python 2 wrote it, opcode by opcode."""

    def word(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode()

    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    dtype = (
        b"cnumpy\ndtype\n("
        + word("u1")
        + b"K\x00K\x01tR(K\x03"
        + word("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    content = b"T" + struct.pack("<I", rows.size) + rows.tobytes()
    shape = b"(" + b"".join(b"M" + struct.pack("<H", length) for length in rows.shape) + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + word("b") + b"tR(K\x01" + shape
    return b"\x80\x02}(" + word("fine_labels") + numbers + word("data") + array + dtype + b"\x89" + content + b"tbu."


def mnist(root: Path, name: str = "MNIST", n: int = 6, *, zipped: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """IDX files; returns the grey test images [n, 28, 28] and labels."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for seed, prefix in enumerate(("train", "t10k")):
        pixels, labels = noise(n, 28, 28, seed=seed), (np.arange(n, dtype=np.uint8) * 3) % 10
        for stem, array in ((f"{prefix}-images-idx3-ubyte", pixels), (f"{prefix}-labels-idx1-ubyte", labels)):
            head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape)
            body = head + array.tobytes()
            path = raw / (stem + (".gz" if zipped else ""))
            path.write_bytes(gzip.compress(body) if zipped else body)
    return pixels, labels


def stl10(root: Path, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Columns before rows, labels from 1; returns the test images [n, 96, 96, 3] and labels from 0."""
    home = root / "stl10_binary"
    home.mkdir(parents=True)
    for seed, split in enumerate(("unlabeled", "train", "test")):
        pixels, labels = noise(n, 96, 96, 3, seed=seed), np.arange(n) * 4
        (home / f"{split}_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())
        if split != "unlabeled":
            (home / f"{split}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (home / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    return pixels, labels


def flowers102(root: Path, *, compressed: bool = True) -> list[int]:
    """Nine images, three per split; returns the labels of the test split."""
    home = root / "flowers-102"
    for number in range(1, 10):
        save(home / "jpg" / f"image_{number:05d}.jpg", noise(16, 16, 3, seed=number))
    labels = np.array([[77, 1, 102, 5, 5, 6, 30, 31, 32]], dtype=np.uint8)
    splits = {"trnid": [[9, 8, 7]], "valid": [[6, 5, 4]], "tstid": [[3, 1, 2]]}
    savemat(home / "imagelabels.mat", {"labels": labels}, do_compression=compressed)
    savemat(home / "setid.mat", {k: np.array(v, dtype=np.uint16) for k, v in splits.items()}, do_compression=compressed)
    return [101, 76, 0]


def food101(root: Path) -> list[str]:
    """Two classes, two training images and one test image each; returns the ids of the test split."""
    home = root / "food-101"
    listed: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for seed, name in enumerate(("waffles", "apple_pie")):
        for i in range(3):
            save(home / "images" / name / f"{1000 + i}.jpg", noise(16, 16, 3, seed=10 * seed + i))
            listed["train" if i < 2 else "test"].setdefault(name, []).append(f"{name}/{1000 + i}")
    (home / "meta").mkdir()
    for split, content in listed.items():
        (home / "meta" / f"{split}.json").write_text(json.dumps(content))
    return ["images/apple_pie/1002.jpg", "images/waffles/1002.jpg"]


WNIDS = ("n01443537", "n01629819", "n02085620")


def corrupted(  # parameters: what a tree varies in
    root: Path,
    names: Sequence[str] = ("fog", "snow"),
    severities: Sequence[int] = (1, 3),
    *,
    classes: Sequence[str] = WNIDS[:2],
    count: int = 3,
    size: int = 16,
    suffix: str = ".JPEG",
) -> Path:
    """corruption/severity/class/ILSVRC2012_val_00000001.JPEG, numbered through the classes; names may hold a family."""
    for at, (name, severity) in enumerate((n, s) for n in names for s in severities):
        for i, (label, _) in enumerate((label, k) for label in classes for k in range(count)):
            path = root / name / str(severity) / label / f"ILSVRC2012_val_{i:08d}{suffix}"
            save(path, noise(size, size, 3, seed=100 * at + i))
    return root


def clean_imagenet(root: Path, count: int = 3, size: int = 16) -> Path:
    """The clean images of `corrupted`: val/wnid/ILSVRC2012_val_00000001.JPEG."""
    for i, (wnid, _) in enumerate((wnid, k) for wnid in WNIDS[:2] for k in range(count)):
        save(root / "val" / wnid / f"ILSVRC2012_val_{i:08d}.JPEG", noise(size, size, 3, seed=i))
    return root


def cifar_c(
    root: Path, names: Sequence[str] = ("fog", "snow"), *, n: int = 4, classes: int = 10, repeated: bool = True
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """corruption.npy and labels.npy; returns the arrays [5 n, 32, 32, 3] by name and the labels [n]."""
    root.mkdir(parents=True, exist_ok=True)
    arrays = {name: noise(5 * n, 32, 32, 3, seed=seed) for seed, name in enumerate(names)}
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    labels = (np.arange(n) * 7 + classes - 1) % classes
    np.save(root / "labels.npy", np.tile(labels, 5) if repeated else labels)
    return arrays, labels


def two_hundred(kind: str) -> list[str]:
    """The wnids of ImageNet-A or -R as timm lists them, by its other file: their places among the 1,000."""
    info = importlib.resources.files("timm.data").joinpath("_info")
    wnids = info.joinpath("imagenet_synsets.txt").read_text().split()
    return [wnids[int(i)] for i in info.joinpath(f"{kind}_indices.txt").read_text().split()]


def shifted(root: Path, kind: str) -> Path:
    """The folders of ImageNet-A or -R, one image each; the set's own folder, not its parent."""
    for i, wnid in enumerate(two_hundred(kind)):
        save(root / wnid / f"0.{i:06d}_fox squirrel _ fox squirrel_0.5.jpg", noise(8, 8, 3, seed=i))
    return root


def imagenet_v2(root: Path, labels: Sequence[int] = (0, 1, 2, 9, 10, 11, 100, 999), version: str = "") -> Path:
    """One image per label, its folder named by the number; returns the folder of the set."""
    home = root / f"imagenetv2-{version or 'matched-frequency'}-format-val"
    for label in labels:
        save(home / str(label) / f"{label:040x}.jpeg", noise(8, 8, 3, seed=label))
    return home


def imagenet_sketch(root: Path) -> Path:
    """Two official classes; returns the folder of the set."""
    for i, wnid in enumerate(WNIDS):
        for k in range(2):
            save(root / "sketch" / wnid / f"sketch_{k}.JPEG", noise(8, 8, seed=10 * i + k))
    return root / "sketch"


def cifar10_1(root: Path, versions: Sequence[str] = ("v6", "v4"), n: int = 5) -> dict[str, np.ndarray]:
    """Data and labels of each version; returns the images by version."""
    root.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed, version in enumerate(versions):
        found[version] = noise(n + seed, 32, 32, 3, seed=seed)
        np.save(root / f"cifar10.1_{version}_data.npy", found[version])
        np.save(root / f"cifar10.1_{version}_labels.npy", (np.arange(n + seed, dtype=np.int32) * 3 + seed) % 10)
    return found


def tiny_imagenet(root: Path) -> Path:
    """Three classes listed out of order, four training images, three of val; returns the folder of the set."""
    home = root / "tiny-imagenet-200"
    listed = [WNIDS[2], WNIDS[0], WNIDS[1]]
    for i, wnid in enumerate(listed):
        for k in range(1 + (i == 0)):
            save(home / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", noise(64, 64, 3, seed=10 * i + k))
        (home / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        save(home / "val" / "images" / f"val_{i}.JPEG", noise(64, 64, 3, seed=100 + i))
    (home / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in listed))
    rows = [f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63\n" for i, wnid in enumerate(listed)]
    (home / "val" / "val_annotations.txt").write_text("".join(rows))
    return home


def _class_folders(root: Path) -> None:
    folders(root, {"train/cat": 4, "train/dog": 3, "test/cat": 5, "test/dog": 4})


def _imagenet(root: Path) -> None:
    folders(root, {"val/n01440764": 3, "val/n01530575": 4})


def _flat(root: Path) -> None:
    folders(root, {"": 5, "more": 4})


# kind -> (what writes the tree, a split of it)
TREES: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (_class_folders, "test"),
    "flat": (_flat, "all"),
    "imagenet": (_imagenet, "val"),
    "cifar10": (cifar10, "train"),
    "cifar100": (cifar100, "test"),
    "mnist": (mnist, "test"),
    "fashion_mnist": (lambda root: mnist(root, "FashionMNIST", zipped=True), "train"),
    "stl10": (stl10, "test"),
    "flowers102": (flowers102, "val"),
    "food101": (food101, "train"),
    "tiny_imagenet": (tiny_imagenet, "train"),
    "imagenet_a": (lambda root: shifted(root / "imagenet-a", "imagenet_a"), "test"),
    "imagenet_r": (lambda root: shifted(root / "imagenet-r", "imagenet_r"), "test"),
    "imagenet_v2": (imagenet_v2, "matched-frequency"),
    "imagenet_sketch": (imagenet_sketch, "test"),
    "cifar10_1": (cifar10_1, "v6"),
    "imagenet_c": (corrupted, "fog/3"),
    "imagenet_c_bar": (lambda root: corrupted(root, ("sparkles", "perlin_noise")), "sparkles/1"),
    "imagenet_3dcc": (lambda root: corrupted(root, ("fog_3d",)), "fog_3d/3"),
    "tiny_imagenet_c": (lambda root: corrupted(root, size=64), "snow/1"),
    "cifar10_c": (cifar_c, "snow/5"),
    "cifar100_c": (lambda root: cifar_c(root, classes=100), "fog/2"),
    **dense_trees.TREES,
}
