"""NYU Depth v2 (Silberman et al. 2012) in few large files: the official .mat, and Hugging Face's parquet.

Both need an extra package, which is imported when such a file is opened. The .mat is MATLAB 7.3, which is HDF5 with
MATLAB's axes backwards: images [n, 3, w, h] and depths [n, w, h] in metres. Parquet holds encoded files: `image`, and
`depth_map` as TIFF in metres, or as 16-bit PNG in millimetres.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.data import decode, matlab
from holdfast.data.batches import Pixels8
from holdfast.data.depth_sets import NYU_SCALE
from holdfast.data.depths import Depth, Scale, metres, read_numbers
from holdfast.data.listings import Listing, PerPixel, Splits
from holdfast.errors import DataError, ExtraError

LABELLED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
_IN_METRES = Scale(scale=1.0, max_depth=NYU_SCALE.max_depth)
_NAMES = {"validation": "val", "valid": "val", "training": "train", "testing": "test"}


def _needed(name: str, what: str) -> Any:
    """A package of the extra `datasets`."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExtraError(
            f"The package {name.partition('.')[0]} is not installed.",
            asked=f"{what} was asked for.",
            next='pip install -e ".[datasets]"',
        ) from error


# -- the official .mat -------------------------------------------------------------------------------------------------


def nyu(root: Path) -> Splits:
    """nyu_depth_v2_labeled.mat with splits.mat beside it: 795 images to train on, 654 to test; "all" are 1,449.

    Depth is `depths`: in metres, in the image's frame, holes filled in by the authors. An image is called by its
    number there, from 1.
    """
    if not (root / LABELLED).is_file():
        return {}
    columns = {"train": "trainNdxs", "test": "testNdxs", "all": ""}
    return {split: functools.partial(_nyu, root, column) for split, column in columns.items()}


class _Labelled:
    """The arrays of the .mat, read image by image: one thread at a time, as the HDF5 library wants it."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            file = _needed("h5py", path.name).File(path, "r")
            self._images, self._depths = file["images"], file["depths"]
        except (OSError, KeyError) as error:
            raise DataError(
                f"{path} is no MATLAB 7.3 file with images and depths: {error}.", next="Replace the file."
            ) from None
        n, w, h = self._depths.shape
        if self._images.shape != (n, 3, w, h) or self._images.dtype != np.uint8:
            raise DataError(
                f"{path} holds images {self._images.shape} {self._images.dtype} and depths {self._depths.shape}.",
                asked="images uint8 [n, 3, w, h] and depths [n, w, h] were asked for.",
                next="Replace the file.",
            )
        self.path, self.count = path, int(n)

    def image(self, i: int) -> Pixels8:
        with self._lock:
            stored: Pixels8 = self._images[i]
        return np.ascontiguousarray(stored.transpose(2, 1, 0))

    def depth(self, i: int) -> Depth:
        with self._lock:
            stored = self._depths[i]
        return metres(np.ascontiguousarray(stored.T), _IN_METRES, f"{self.path} (image {i + 1})")


def _nyu(root: Path, column: str) -> Listing:
    file = _Labelled(root / LABELLED)
    chosen = _chosen(root / SPLITS, column, file.count) if column else list(range(1, file.count + 1))
    return Listing(
        [f"images/{number:04d}" for number in chosen],
        None,
        (),
        lambda i: file.image(chosen[i] - 1),
        truth=PerPixel(
            load=lambda i: {"depth": file.depth(chosen[i] - 1)}, check=_unchecked, max_depth=NYU_SCALE.max_depth
        ),
    )


def _chosen(path: Path, column: str, count: int) -> list[int]:
    if not path.is_file():
        raise DataError(
            f"No file {path}.",
            asked="The official training and test images were asked for.",
            next=f"Put {SPLITS} beside the images, or take all of them: --split all.",
        )
    arrays = matlab.read(path)
    numbers = [int(number) for number in arrays[column].ravel()] if column in arrays else []
    if not numbers or not 1 <= min(numbers) <= max(numbers) <= count:
        raise DataError(
            f"{path} names {len(numbers)} images under {column}{f', up to {max(numbers)}' if numbers else ''}.",
            asked=f"Numbers from 1 to {count} were asked for.",
            next="Replace the file.",
        )
    return numbers


def _unchecked(i: int) -> None:
    """Image and depth lie in one file, whose shapes were looked at when it was opened."""


# -- Hugging Face's parquet --------------------------------------------------------------------------------------------


def nyu_parquet(root: Path) -> Splits:
    """*.parquet in the folder or beneath it, with columns `image` and `depth_map`.

    A file belongs to the split that its name begins with (train-00000-of-00099.parquet), else to that of its folder
    (validation/0000.parquet, which is val). Rows are read with their row group: slow in a random order.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        word = path.stem.split("-")[0].lower()
        name = path.parent.name.lower() if word.isdigit() else word
        found.setdefault(_NAMES.get(name, name), []).append(path)
    return {split: functools.partial(_parquet, root, paths) for split, paths in found.items()}


def _parquet(root: Path, paths: Sequence[Path]) -> Listing:
    places: list[tuple[Path, int, int]] = []
    ids: list[str] = []
    for path in paths:
        rows = [(path, group, row) for group, n in enumerate(_groups(path)) for row in range(n)]
        ids += [f"{path.relative_to(root).as_posix()}/{i:06d}" for i in range(len(rows))]
        places += rows
    # Two row groups: of neighbours on either side of a border none is read twice.
    group = functools.lru_cache(maxsize=2)(_group)
    lock = threading.Lock()

    def cell(i: int, column: str) -> bytes:
        path, number, row = places[i]
        with lock:
            found = group(path, number)[column][row]
        if found is None:
            raise DataError(f"{ids[i]} has no {column}.", next="Replace the file.")
        return found

    def depth(i: int) -> dict[str, Depth]:
        stored = read_numbers(io.BytesIO(cell(i, "depth_map")), f"{ids[i]} (depth_map)")
        scale = _IN_METRES if stored.dtype.kind == "f" else NYU_SCALE
        return {"depth": metres(stored, scale, f"{ids[i]} (depth_map)")}

    return Listing(
        ids,
        None,
        (),
        lambda i: decode.decode(io.BytesIO(cell(i, "image")), f"{ids[i]} (image)"),
        truth=PerPixel(load=depth, check=_unchecked, max_depth=NYU_SCALE.max_depth),
    )


def _opened(path: Path) -> Any:
    parquet = _needed("pyarrow.parquet", path.name)
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}.", next="Replace the file.") from None
    missing = {"image", "depth_map"} - set(file.schema_arrow.names)
    if missing:
        raise DataError(
            f"{path} has the columns {', '.join(file.schema_arrow.names)}.",
            asked="The columns image and depth_map were asked for.",
            next="Rename them, or store images and depth as files (holdfast ls layouts: depth_folder).",
        )
    return file


def _groups(path: Path) -> list[int]:
    with _opened(path) as file:
        return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


def _group(path: Path, number: int) -> Mapping[str, Sequence[bytes | None]]:
    with _opened(path) as file:
        table = file.read_row_group(number, columns=["image", "depth_map"])
    return {name: [_bytes(cell) for cell in table[name].to_pylist()] for name in ("image", "depth_map")}


def _bytes(cell: Any) -> bytes | None:
    """Hugging Face's `Image` is a struct of bytes and path; others keep the bytes alone."""
    found: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
    return found


READERS: Mapping[str, Callable[[Path], Splits]] = {"nyu": nyu, "nyu_parquet": nyu_parquet}
