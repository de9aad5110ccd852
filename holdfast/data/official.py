"""The official layouts of small sets, read as they were published; nothing is downloaded and no checksum is demanded.

CIFAR-10/100 (Krizhevsky 2009), MNIST (LeCun et al. 1998), Fashion-MNIST (Xiao et al. 2017), STL-10 (Coates et al.
2011), Flowers102 (Nilsback and Zisserman 2008), Food-101 (Bossard et al. 2014). The folder is the set's or its parent.
"""

from __future__ import annotations

import functools
import gzip
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from holdfast.data import matlab
from holdfast.data.batches import Pixels8
from holdfast.data.folders import from_files
from holdfast.data.listings import Listing, Splits
from holdfast.errors import DataError

MARKERS = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "stl10": "stl10_binary",
    "flowers102": "flowers-102",
    "food101": "food-101",
}

_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_STL = "airplane,bird,car,cat,deer,dog,horse,monkey,ship,truck"


def cifar10(root: Path) -> Splits:
    """`cifar-10-batches-py`: data_batch_1 to 5, test_batch, batches.meta."""
    train = [f"data_batch_{i}" for i in range(1, 6)]
    return _cifar(
        _home(root, "cifar10"), {"train": train, "test": ["test_batch"]}, "batches.meta", ("labels", "label_names")
    )


def cifar100(root: Path) -> Splits:
    """`cifar-100-python`: train, test, meta; the fine labels."""
    splits = {"train": ["train"], "test": ["test"]}
    return _cifar(_home(root, "cifar100"), splits, "meta", ("fine_labels", "fine_label_names"))


def mnist(root: Path) -> Splits:
    """`MNIST/raw`: IDX files, gzipped or not; grey becomes RGB by replication."""
    return _idx(_home(root, "mnist"), tuple("0123456789"))


def fashion_mnist(root: Path) -> Splits:
    """`FashionMNIST/raw`: as MNIST."""
    return _idx(_home(root, "fashion_mnist"), tuple(_FASHION.split(",")))


def stl10(root: Path) -> Splits:
    """`stl10_binary`: train, test, and unlabeled (without labels); the pixels stay on disk and are mapped."""
    home = _home(root, "stl10")
    return {
        split: functools.partial(_stl, home, split)
        for split in ("train", "test", "unlabeled")
        if (home / f"{split}_X.bin").is_file()
    }


def flowers102(root: Path) -> Splits:
    """`flowers-102`: jpg/, imagelabels.mat, setid.mat."""
    home = _home(root, "flowers102")
    columns = {"train": "trnid", "val": "valid", "test": "tstid"} if (home / "setid.mat").is_file() else {}
    return {split: functools.partial(_flowers, home, column) for split, column in columns.items()}


def food101(root: Path) -> Splits:
    """`food-101`: images/class/*.jpg, meta/train.json, meta/test.json."""
    home = _home(root, "food101")
    return {
        split: functools.partial(_food, home, split)
        for split in ("train", "test")
        if (home / "meta" / f"{split}.json").is_file()
    }


def _home(root: Path, kind: str) -> Path:
    inside = root / MARKERS[kind]
    return inside if inside.is_dir() else root


def _missing(path: Path) -> DataError:
    return DataError(f"No file {path}.", next="See holdfast ls layouts for what a set looks like on disk.")


def from_array(split: str, pixels: Pixels8, labels: Sequence[int] | None, classes: tuple[str, ...]) -> Listing:
    """A listing whose images are one array, uint8 [n, h, w, 3]."""
    if labels is not None:
        worst = max(labels, default=0)
        if len(labels) != len(pixels) or worst >= len(classes) or min(labels, default=0) < 0:
            raise DataError(
                f"{split}: {len(pixels):,} images, {len(labels):,} labels up to {worst}, {len(classes)} classes.",
                next="The files do not belong together; replace them.",
            )
    ids = [f"{split}/{i:05d}" for i in range(len(pixels))]
    return Listing(ids, labels, classes if labels is not None else (), lambda i: pixels[i])


# -- CIFAR -------------------------------------------------------------------------------------------------------------


def _cifar(home: Path, files: Mapping[str, Sequence[str]], meta: str, keys: tuple[str, str]) -> Splits:
    def listing(split: str) -> Listing:
        parts = [_unpickled(home / name, "data", keys[0]) for name in files[split]]
        rows = np.concatenate([np.asarray(part["data"], dtype=np.uint8).reshape(-1, 3, 32, 32) for part in parts])
        labels = [int(label) for part in parts for label in part[keys[0]]]
        classes = tuple(_text(name) for name in _unpickled(home / meta, keys[1])[keys[1]])
        return from_array(split, np.ascontiguousarray(rows.transpose(0, 2, 3, 1)), labels, classes)

    return {split: functools.partial(listing, split) for split, names in files.items() if (home / names[0]).is_file()}


def _allowed() -> dict[tuple[str, str], Any]:
    """What a pickled array needs, under the names of old and new NumPy, and nothing that runs code."""
    rebuild = np.ndarray(0).__reduce__()[0]
    return {
        ("numpy.core.multiarray", "_reconstruct"): rebuild,
        ("numpy._core.multiarray", "_reconstruct"): rebuild,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }


class _Arrays(pickle.Unpickler):
    """Opens pickles of builtins and NumPy arrays, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _allowed()[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it contains code ({module}.{name})") from None


def _unpickled(path: Path, *needed: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _Arrays(file, encoding="latin1").load()
        named = {_text(key): value for key, value in content.items()}
        if not set(needed) <= set(named):
            raise ValueError(f"it has {', '.join(sorted(named))}, not {', '.join(needed)}")
        return named
    except FileNotFoundError:
        raise _missing(path) from None
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, IndexError, TypeError) as error:
        raise DataError(f"{path} is not a CIFAR file: {error}. Not opened.", next="Replace the file.") from None


def _text(word: str | bytes) -> str:
    return word.decode() if isinstance(word, bytes) else word


# -- MNIST -------------------------------------------------------------------------------------------------------------


def _idx(home: Path, classes: tuple[str, ...]) -> Splits:
    raw = home / "raw" if (home / "raw").is_dir() else home

    def listing(split: str, prefix: str) -> Listing:
        grey = _read_idx(raw / f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(raw / f"{prefix}-labels-idx1-ubyte", 1)
        return from_array(split, np.broadcast_to(grey[..., None], (*grey.shape, 3)), labels.tolist(), classes)

    names = {"train": "train", "test": "t10k"}
    there = {split: prefix for split, prefix in names.items() if any(raw.glob(f"{prefix}-images-idx3-ubyte*"))}
    return {split: functools.partial(listing, split, prefix) for split, prefix in there.items()}


def _read_idx(path: Path, dimensions: int) -> Pixels8:
    """IDX: two zero bytes, 8 (uint8), the number of dimensions, their lengths as big-endian int32, the values."""
    zipped = path.with_name(path.name + ".gz")
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(zipped.read_bytes())
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, EOFError) as error:
        raise DataError(f"{zipped} cannot be unpacked: {error}.", next="Replace the file.") from None
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:start], ">i4").tolist())
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) - start != int(np.prod(shape)):
        raise DataError(
            f"{path} is not an IDX file of {dimensions} dimensions, or cut short.", next="Replace the file."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# -- STL-10, Flowers102, Food-101 --------------------------------------------------------------------------------------


def _stl(home: Path, split: str) -> Listing:
    path = home / f"{split}_X.bin"
    if path.stat().st_size % (3 * 96 * 96) or not path.stat().st_size:
        raise DataError(f"{path} is no whole number of 96x96 images.", next="Replace the file.")
    stored: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r").reshape(-1, 3, 96, 96)
    names = home / "class_names.txt"
    classes = tuple(names.read_text().split()) if names.is_file() else tuple(_STL.split(","))
    truth = home / f"{split}_y.bin"
    if split != "unlabeled" and not truth.is_file():
        raise _missing(truth)
    labels = None if split == "unlabeled" else [int(label) - 1 for label in np.fromfile(truth, np.uint8)]
    # Columns come before rows in the file.
    return from_array(split, stored.transpose(0, 3, 2, 1), labels, classes)


def _flowers(home: Path, column: str) -> Listing:
    from torchvision.datasets import Flowers102

    truth = matlab.read(home / "imagelabels.mat")["labels"].ravel()
    numbers = [int(number) for number in matlab.read(home / "setid.mat")[column].ravel()]
    labels = [int(truth[number - 1]) - 1 for number in numbers]
    files = [f"jpg/image_{number:05d}.jpg" for number in numbers]
    return from_files(home, files, labels=labels, classes=tuple(Flowers102.classes))


def _food(home: Path, split: str) -> Listing:
    listed: Mapping[str, Sequence[str]] = json.loads((home / "meta" / f"{split}.json").read_text())
    classes = tuple(sorted(listed))
    pairs = [(f"images/{file}.jpg", label) for label, name in enumerate(classes) for file in listed[name]]
    return from_files(home, [file for file, _ in pairs], labels=[label for _, label in pairs], classes=classes)


READERS: Mapping[str, Callable[[Path], Splits]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "stl10": stl10,
    "flowers102": flowers102,
    "food101": food101,
}
