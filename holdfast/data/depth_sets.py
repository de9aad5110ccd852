"""Sets of images with depth in 16-bit files: lists of pairs, frames of a path, any two folders.

NYU Depth v2 as PNG files and KITTI in Eigen's split (Silberman et al. 2012; Geiger et al. 2013; Eigen et al. 2014),
both by the lists that BTS published (Lee et al. 2019) and that AdaBins and most later work read: a line names image,
depth and focal length, so that nobody has to guess which raw frame belongs to which depth. 7-Scenes (Shotton et al.
2013): frames of a camera's path, in millimetres; depth and colour are not registered to a pixel there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from holdfast.codec import build
from holdfast.data import folders, pairs
from holdfast.data.depths import Cut, Scale, Shape, measured
from holdfast.data.listings import Listing, Splits
from holdfast.errors import DataError

NYU_SCALE = Scale(scale=1000.0, max_depth=10.0)
_KITTI_SCALE = Scale(scale=256.0, max_depth=80.0)
_SEVEN_SCALE = Scale(scale=1000.0, max_depth=10.0, invalid=(65535.0,))
_KITTI_WINDOW = (352, 1216)
_LISTS = ("", "train_test_inputs", "data_splits", "splits")
_NYU_PLACES = {"train": ("", "sync", "train"), "test": ("", "official_splits/test", "test")}
_KITTI_IMAGES = ("", "raw", "kitti_dataset", "input")
_KITTI_DEPTHS = ("", "data_depth_annotated", "data_depth_annotated/train", "data_depth_annotated/val", "gt_depth")
_DEPTHS = ("depth", "depths")
SCALE_FILE = "depth.yaml"
# In tenths of a path, one after the other: neighbours look alike, so that no frame is drawn from among them.
_STRETCHES = {"train": (0, 6), "val": (6, 8), "test": (8, 10)}


def nyu_png(root: Path) -> Splits:
    """NYU Depth v2 by nyudepthv2_train_files_with_gt.txt and nyudepthv2_test_files_with_gt.txt; 16 bits, millimetres.

    The training files are those of sync/ (48 x 640 frames with sync_depth_*.png), the test files those of
    official_splits/test/; the lists lie in the folder, or in its train_test_inputs, data_splits or splits.
    """
    found = _lists(root, "nyudepthv2_{}_files_with_gt.txt")
    return {name: functools.partial(_nyu_png, root, path, _NYU_PLACES[name]) for name, path in found.items()}


def _nyu_png(root: Path, path: Path, places: Sequence[str]) -> Listing:
    return measured(root, _pairs(root, path, places, places), NYU_SCALE)


def kitti_eigen(root: Path) -> Splits:
    """KITTI by eigen_train_files_with_gt.txt and eigen_test_files_with_gt.txt; 16 bits, 1/256 m, up to 80 m.

    Images whose depth is "None" in the list are left out (45 of the 697 test images). Frames differ in size by some
    pixels: of each the lower middle 352 x 1216 are read, as on the KITTI benchmark and in BTS.
    """
    found = _lists(root, "eigen_{}_files_with_gt.txt")
    return {name: functools.partial(_kitti_eigen, root, path) for name, path in found.items()}


def _kitti_eigen(root: Path, path: Path) -> Listing:
    return measured(root, _pairs(root, path, _KITTI_IMAGES, _KITTI_DEPTHS), _KITTI_SCALE, lower_middle(_KITTI_WINDOW))


def lower_middle(window: Shape) -> Cut:
    """The part of that height and width at the bottom of an image, in the middle of its columns.

    The function that is returned raises `DataError` where the image is smaller.
    """
    height, width = window

    def cut(shape: Shape, name: str) -> tuple[slice, slice]:
        if shape[0] < height or shape[1] < width:
            raise DataError(
                f"{name} is {shape[0]}x{shape[1]} pixels.",
                asked=f"KITTI's {height}x{width} were asked for.",
                next=f"Take the frames as published, or images and depth of your own size with a {SCALE_FILE}.",
            )
        left = (shape[1] - width) // 2
        return slice(shape[0] - height, shape[0]), slice(left, left + width)

    return cut


def _lists(root: Path, pattern: str) -> dict[str, Path]:
    """Train and test lists of a name, where they lie."""
    places = [root / place / pattern.format(name) for name in ("train", "test") for place in _LISTS]
    return {path.name.split("_")[1]: path for path in reversed(places) if path.is_file()}


def _pairs(root: Path, path: Path, images: Sequence[str], depths: Sequence[str]) -> list[pairs.Pair]:
    found = []
    for words in pairs.listed(path):
        if len(words) < 2:
            raise DataError(
                f"{path} has a line of one word ({words[0]}).",
                asked="A line names an image, its depth and the focal length.",
                next="Take the list that was published with BTS or AdaBins.",
            )
        if words[1] != "None":
            found.append((pairs.located(root, images, words[0]), pairs.located(root, depths, words[1])))
    return found


def depth_folder(root: Path) -> Splits:
    """`images` and `depth` (or depths), with splits in them or above them, and a depth.yaml beside them.

    Depth has the path and stem of its image. depth.yaml says `scale: 1000` (so many units are one metre), `max_depth:
    10` (metres), and where need be `invalid: [65535]`.
    """
    there = pairs.twin_folders(root, "images", _DEPTHS)
    return {split: functools.partial(_depth_folder, root, pair) for split, pair in there.items()}


def _depth_folder(root: Path, pair: pairs.Pair) -> Listing:
    path = root / SCALE_FILE
    if not path.is_file():
        raise DataError(
            f"No file {path}.",
            asked=f"The depth of {root} was asked for, and nothing says what its numbers mean.",
            next="Write two lines into it: `scale: 1000` (units per metre) and `max_depth: 10` (metres).",
        )
    try:
        fields = msgspec.yaml.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is not YAML: {error}.", next="Write `scale: 1000` and `max_depth: 10`.") from None
    return measured(root, pairs.by_stem(root, *pair), build(Scale, fields, origin=str(path)))


# -- 7-Scenes ----------------------------------------------------------------------------------------------------------


def seven_scenes(root: Path) -> Splits:
    """Frames of a path (frame-000000.color.png or .jpg, frame-000000.depth.png), in the folder or its seq-01, seq-02.

    Where TrainSplit.txt and TestSplit.txt lie beside the sequences, they say which belong to train and test. Else every
    path is cut into three stretches: the first 60 % are train, the next 20 % val, the last 20 % test.
    """
    sequences = _sequences(root)
    if not sequences:
        return {}
    lists = {name: root / f"{name.capitalize()}Split.txt" for name in ("train", "test")}
    if all(path.is_file() for path in lists.values()):
        return {name: functools.partial(_official, root, path) for name, path in lists.items()}
    return {name: functools.partial(_stretches, root, sequences, name) for name in _STRETCHES}


def _sequences(root: Path) -> list[str]:
    named = [name for name in folders.subfolders(root) if name.startswith("seq-")]
    return [name for name in ("", *named) if next((root / name).glob("frame-*.color.*"), None) is not None]


def _official(root: Path, path: Path) -> Listing:
    """The sequences of a split file, whose lines are `sequence1`."""
    numbers = [words[0].removeprefix("sequence") for words in pairs.listed(path)]
    if not all(number.isdigit() and (root / f"seq-{int(number):02d}").is_dir() for number in numbers):
        raise DataError(
            f"{path} names sequences that are not in {root}.", next="Add their folders (seq-01...), or remove the file."
        )
    return _frames(root, [file for number in numbers for file in _of_path(root, f"seq-{int(number):02d}")])


def _stretches(root: Path, sequences: Sequence[str], split: str) -> Listing:
    first, last = _STRETCHES[split]
    found: list[str] = []
    for name in sequences:
        path = _of_path(root, name)
        found += path[len(path) * first // 10 : len(path) * last // 10]
    return _frames(root, found)


def _of_path(root: Path, sequence: str) -> list[str]:
    return [str(file.relative_to(root).as_posix()) for file in sorted((root / sequence).glob("frame-*.color.*"))]


def _frames(root: Path, images: Sequence[str]) -> Listing:
    return measured(root, [(image, f"{image.rsplit('.color.', 1)[0]}.depth.png") for image in images], _SEVEN_SCALE)


READERS: Mapping[str, Callable[[Path], Splits]] = {
    "nyu_png": nyu_png,
    "kitti_eigen": kitti_eigen,
    "seven_scenes": seven_scenes,
    "depth_folder": depth_folder,
}
