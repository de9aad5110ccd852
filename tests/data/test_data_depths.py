"""Depth: metres whatever the file holds, 0 where nothing was measured, and named where it cannot be depth."""

from __future__ import annotations

import sys
from pathlib import Path

import dense_trees as trees
import numpy as np
import pytest
import torch
from scipy.io import savemat

from holdfast.data import dense
from holdfast.data.batches import Source, batches
from holdfast.data.depths import Scale, metres
from holdfast.data.sources import images, open_source, parse, splits
from holdfast.errors import ConfigError, DataError, ExtraError
from holdfast.records import Data


def opened(kind: str, root: Path, split: str, **fields: object) -> Source:
    return open_source(Data(source=kind, root=str(root), split=split, **fields))


def depth_of(source: Source, i: int = 0) -> np.ndarray:
    return np.asarray(source.read(i).truth["depth"])


def shows(source: Source, *, lossless: bool = True) -> None:
    """Every picture shows its depth, as grey, in decimetres; JPEG may be some levels off."""
    for i in range(len(source)):
        pixels, truth = source.read(i)
        depth = np.asarray(truth["depth"])
        assert depth.dtype == np.float32
        error = np.abs(pixels[..., 2].astype(float) - 10 * depth)[depth > 0]
        assert error.max() <= 0.01 if lossless else error.mean() < 4


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_millimetres_by_hand() -> None:
    stored = np.array([[0, 1, 1000], [2500, 65535, 10001]], np.uint16)
    found = metres(stored, Scale(scale=1000, max_depth=10, invalid=(65535,)), "a.png")
    assert found.dtype == np.float32
    assert found.tolist() == np.array([[0, 0.001, 1], [2.5, 0, 10.001]], np.float32).tolist()


def test_what_is_not_finite_was_not_measured() -> None:
    stored = np.array([[np.nan, np.inf, -np.inf, 2.0]], np.float32)
    assert metres(stored, Scale(scale=1, max_depth=10), "a.tiff").tolist() == [[0, 0, 0, 2]]


def test_a_distance_below_zero_is_named() -> None:
    stored = np.array([[-1.0, 2.0]], np.float32)
    with pytest.raises(DataError, match=r"a\.tiff holds -1\..*depth\.yaml can name"):
        metres(stored, Scale(scale=1, max_depth=10), "a.tiff")
    assert metres(stored, Scale(scale=1, max_depth=10, invalid=(-1,)), "a.tiff").tolist() == [[0, 2]]


# -- NYU ---------------------------------------------------------------------------------------------------------------


def test_the_official_mat(tmp_path: Path) -> None:
    pixels, depth = trees.nyu(tmp_path)
    source = opened("nyu", tmp_path, "test")
    assert source.ids == ["images/0007", "images/0002", "images/0004", "images/0006"], "numbered from 1"
    for i, place in enumerate((6, 1, 3, 5)):
        assert np.array_equal(source.read(i).pixels, pixels[place]), "HDF5 has MATLAB's axes backwards"
        assert np.array_equal(depth_of(source, i), depth[place])
    assert source.max_depth == 10.0
    assert source.labels is None
    assert [len(opened("nyu", tmp_path, split)) for split in ("train", "all")] == [3, 7]
    shows(source)


def test_the_mat_is_read_from_several_threads(tmp_path: Path) -> None:
    _, depth = trees.nyu(tmp_path, n=9)
    source = opened("nyu", tmp_path, "all")
    rows = torch.cat([batch.rows["depth"] for batch in batches(source, size=2, workers=3)])
    assert rows.dtype == torch.float32
    assert np.array_equal(rows.numpy(), depth)


def test_the_mat_without_its_splits(tmp_path: Path) -> None:
    trees.nyu(tmp_path, splits=False)
    with pytest.raises(DataError, match=r"No file .*splits\.mat.*--split all"):
        opened("nyu", tmp_path, "test")
    assert images(str(tmp_path)).split == "test", "all images are never measured instead, unasked"
    savemat(tmp_path / "splits.mat", {"testNdxs": np.array([[1, 8]], np.uint16)})
    with pytest.raises(DataError, match=r"from 1 to 7 were.*under testNdxs, up to 8"):
        opened("nyu", tmp_path, "test")
    with pytest.raises(DataError, match=r"names 0 images under trainNdxs"):
        opened("nyu", tmp_path, "train")


def test_a_mat_of_something_else(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs h5py: pip install -e '.[datasets]'")
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    path.write_bytes(b"MATLAB 5.0" * 100)
    with pytest.raises(DataError, match=r"labeled\.mat is no MATLAB 7\.3 file"):
        opened("nyu", tmp_path, "all")
    with h5py.File(path, "w") as file:
        file["images"], file["depths"] = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.float32)
    with pytest.raises(DataError, match=r"\[n, 3, w, h\].*holds images \(2, 8, 8, 3\) uint8"):
        opened("nyu", tmp_path, "all")


@pytest.mark.parametrize(("stored", "bare"), [("tiff", False), ("png", False), ("tiff", True)])
def test_hugging_faces_parquet(tmp_path: Path, stored: str, bare: bool) -> None:
    depth = trees.nyu_parquet(tmp_path, stored=stored, bare=bare)
    assert parse(str(tmp_path))[0] == "nyu_parquet"
    assert splits(str(tmp_path)) == ("train", "val")
    source = opened("nyu_parquet", tmp_path, "val")
    assert source.ids[4] == "data/validation-00001-of-00002.parquet/000000"
    for i in (5, 0, 3, 4, 1, 2):
        assert np.allclose(depth_of(source, i), depth[i], atol=1e-6), "metres in TIFF, millimetres in PNG"
    assert source.max_depth == 10.0
    shows(source)


def test_the_converters_folders_are_splits(tmp_path: Path) -> None:
    trees.nyu_parquet(tmp_path)
    (tmp_path / "default" / "validation").mkdir(parents=True)
    (tmp_path / "data" / "train-00000-of-00001.parquet").rename(tmp_path / "default" / "validation" / "0000.parquet")
    source = opened("nyu_parquet", tmp_path, "val")
    assert len(source) == 7
    assert "default/validation/0000.parquet/000000" in source.ids


def test_parquet_with_other_columns(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e '.[datasets]'")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install -e '.[datasets]'")
    parquet.write_table(arrow.table({"image": [b""], "depth": [b""]}), tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match=r"image and depth_map were.*has the columns image, depth\..*Rename"):
        opened("nyu_parquet", tmp_path, "train")
    parquet.write_table(arrow.table({"image": [b"no"], "depth_map": [None]}), tmp_path / "train-0.parquet")
    source = opened("nyu_parquet", tmp_path, "train")
    with pytest.raises(DataError, match=r"000000 \(image\) cannot be read as an image"):
        source.read(0)
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train-0\.parquet cannot be read as parquet"):
        opened("nyu_parquet", tmp_path, "train")


@pytest.mark.parametrize(("kind", "package"), [("nyu", "h5py"), ("nyu_parquet", "pyarrow")])
def test_a_missing_package_is_named(tmp_path: Path, kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"")
    (tmp_path / "train-0.parquet").write_bytes(b"")
    for name in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExtraError, match=rf'was asked for\. The package {package} is.*pip install -e "\.\[datasets\]"'):
        opened(kind, tmp_path, "train")


def test_png_files_by_the_published_lists(tmp_path: Path) -> None:
    depth = trees.nyu_png(tmp_path)
    source = opened("nyu_png", tmp_path, "test")
    assert source.ids == [f"official_splits/test/bathroom/rgb_{k:05d}.jpg" for k in (45, 46, 508)]
    for i, name in enumerate(source.ids):
        assert np.allclose(depth_of(source, i), depth[name], atol=1e-6)
    assert opened("nyu_png", tmp_path, "train").ids == ["sync/kitchen_0028b/rgb_00045.jpg"]
    assert source.max_depth == 10.0
    shows(source, lossless=False)


# -- KITTI -------------------------------------------------------------------------------------------------------------


def test_kitti_by_eigens_lists(tmp_path: Path) -> None:
    depth = trees.kitti(tmp_path)
    source = opened("kitti_eigen", tmp_path, "test")
    assert len(source) == 3, "the frame whose depth is None is left out"
    assert source.max_depth == 80.0
    for i, name in enumerate(source.ids):
        pixels, truth = source.read(i)
        whole = depth[name]
        left = (whole.shape[1] - 1216) // 2
        assert pixels.shape == (352, 1216, 3)
        assert np.array_equal(truth["depth"], whole[-352:, left : left + 1216]), "1/256 m, the lower middle"
        assert np.array_equal(pixels[..., 2], truth["depth"])
    assert len(opened("kitti_eigen", tmp_path, "train")) == 1


def test_kitti_frames_that_are_too_small(tmp_path: Path) -> None:
    trees.kitti(tmp_path)
    line = (tmp_path / "eigen_train_files_with_gt.txt").read_text().split()
    trees.save(tmp_path / line[0], np.zeros((200, 1242, 3), np.uint8))
    trees.save(tmp_path / "data_depth_annotated" / "train" / line[1], np.ones((200, 1242), np.uint16))
    with pytest.raises(DataError, match=r"is 200x1242 pixels.*depth\.yaml"):
        opened("kitti_eigen", tmp_path, "train")
    (tmp_path / "eigen_train_files_with_gt.txt").write_text("one.png\n")
    with pytest.raises(DataError, match=r"a line of one word \(one\.png\)"):
        opened("kitti_eigen", tmp_path, "train")


# -- folders and frames ------------------------------------------------------------------------------------------------


def test_any_images_and_depth(tmp_path: Path) -> None:
    depth = trees.depth_folder(tmp_path)
    source = open_source(images(str(tmp_path)))
    assert (source.data.source, source.data.split) == ("depth_folder", "all")
    assert all(np.allclose(depth_of(source, i), depth[i], atol=1e-6) for i in range(4))
    assert source.max_depth == 8.0
    trees.depth_folder(tmp_path / "tiff", "scale: 100\nmax_depth: 8\ninvalid: [50]\n", suffix=".tiff")
    found = depth_of(open_source(images(str(tmp_path / "tiff"))))
    assert np.allclose(found, np.where(depth[0] == 0.5, 0, depth[0]), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("", DataError, r"nothing says what its numbers mean.*No file .*depth\.yaml.*scale: 1000.*max_depth: 10"),
        ("scale: 1000\n", ConfigError, r"max_depth"),
        ("scal: 1000\nmax_depth: 10\n", ConfigError, r"scale"),
        ("scale: 0\nmax_depth: 10\n", ConfigError, r"above 0"),
        ("scale: [\n", DataError, r"depth\.yaml is not YAML"),
    ],
)
def test_a_scale_that_is_missing_or_wrong(tmp_path: Path, text: str, kind: type[Exception], told: str) -> None:
    trees.depth_folder(tmp_path, text)
    with pytest.raises(kind, match=told):
        opened("depth_folder", tmp_path, "all")


def test_depth_is_cut_and_shrunk_with_its_image(tmp_path: Path) -> None:
    trees.depth_folder(tmp_path)
    whole = opened("depth_folder", tmp_path, "all")
    cut = opened("depth_folder", tmp_path, "all", size=8)
    assert np.array_equal(depth_of(cut), depth_of(whole)[2:10, 4:12])
    assert np.array_equal(cut.read(0).pixels, whole.read(0).pixels[2:10, 4:12])
    small = depth_of(opened("depth_folder", tmp_path, "all", resize=6))
    assert np.array_equal(small, depth_of(whole)[1::2, 1::2]), "the nearest to the centre, never a mean across an edge"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.zeros((trees.H, trees.W), np.uint8), r"00\.png holds 8 bits or colours \(mode L\): .* a picture of depth"),
        (np.zeros((trees.H, trees.W, 3), np.uint8), r"mode RGB.*16-bit PNG"),
        (np.zeros((trees.W, trees.H), np.uint16), r"00\.jpg is 12x16 pixels, .*00\.png 16x12: it is transposed"),
        (np.zeros((6, 8), np.uint16), r"00\.png 6x8\."),
    ],
)
def test_what_is_no_depth_is_named(tmp_path: Path, values: np.ndarray, told: str) -> None:
    trees.depth_folder(tmp_path)
    trees.save(tmp_path / "depth" / "00.png", values)
    with pytest.raises(DataError, match=told):
        opened("depth_folder", tmp_path, "all")


def test_missing_depth_is_named(tmp_path: Path) -> None:
    trees.depth_folder(tmp_path)
    (tmp_path / "depth" / "02.png").unlink()
    with pytest.raises(DataError, match=r"depth of .*images/02\.jpg was.*No file .*depth/02\.png"):
        opened("depth_folder", tmp_path, "all")


def test_frames_of_a_path_are_cut_into_stretches(tmp_path: Path) -> None:
    depth = trees.seven_scenes(tmp_path, n=17)
    numbers = {split: [int(name[6:12]) // 10 for name in opened("seven_scenes", tmp_path, split).ids]
               for split in ("train", "val", "test")}  # fmt: skip
    assert numbers == {"train": [*range(10)], "val": [10, 11, 12], "test": [13, 14, 15, 16]}
    source = opened("seven_scenes", tmp_path, "test")
    assert all(np.allclose(depth_of(source, i), depth[13 + i], atol=1e-6) for i in range(4))
    assert depth_of(source)[0, :2].tolist() == [0, 0], "0 and 65535 are not measured"
    shows(source, lossless=False)


def test_every_sequence_is_cut(tmp_path: Path) -> None:
    trees.seven_scenes(tmp_path, n=10, sequences=("seq-01", "seq-02"), suffix="png")
    assert opened("seven_scenes", tmp_path, "val").ids == [
        f"seq-0{s}/frame-0000{k}.color.png" for s in (1, 2) for k in (60, 70)
    ]
    shows(opened("seven_scenes", tmp_path, "train"))


def test_official_splits_of_seven_scenes(tmp_path: Path) -> None:
    trees.seven_scenes(tmp_path, n=3, sequences=("seq-01", "seq-02", "seq-03"), suffix="png")
    (tmp_path / "TrainSplit.txt").write_text("sequence1\nsequence3\n")
    (tmp_path / "TestSplit.txt").write_text("sequence2\n")
    assert splits(f"seven_scenes:{tmp_path}") == ("train", "test")
    assert {name[:6] for name in opened("seven_scenes", tmp_path, "train").ids} == {"seq-01", "seq-03"}
    (tmp_path / "TestSplit.txt").write_text("sequence4\n")
    with pytest.raises(DataError, match=r"TestSplit\.txt names sequences that are not in"):
        opened("seven_scenes", tmp_path, "test")


def test_every_dense_kind_has_a_layout() -> None:
    assert set(dense.LAYOUTS) == set(dense.READERS) == set(trees.TREES)
